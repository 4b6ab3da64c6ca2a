//! Whether a request was meant for this listener, by the name that it was asked by. Pure.
//!
//! A page of a stranger can have its own name lead to an address of ours (DNS rebinding): the browser then takes
//! what it reads here for that page's own. The name that it asks by gives it away. An address cannot be led
//! anywhere, nor can `localhost`; any other name has to be in `admin.hosts`. Who knows the token is no such page.

use http::header::{HOST, HeaderMap};
use http::uri::{Authority, Uri};
use std::net::{IpAddr, Ipv6Addr};

/// The host that a request names, without its port; `Err`: none that can be told, as it shall be shown.
pub fn named(uri: &Uri, headers: &HeaderMap) -> Result<String, String> {
    let mut hosts = headers.get_all(HOST).iter();
    let given = match (uri.authority(), hosts.next(), hosts.next()) {
        (Some(authority), ..) => authority.as_str().to_owned(),
        (None, Some(host), None) => host.to_str().map_err(|_| "(unreadable)".to_owned())?.to_owned(),
        (None, None, _) => return Err("(none)".to_owned()),
        (None, Some(_), Some(_)) => return Err("(two of them)".to_owned()),
    };
    let authority: Authority = given.parse().map_err(|_| "(unreadable)".to_owned())?;
    // The parser is lenient with what stands around the host.
    let port = given.strip_prefix(authority.host());
    let fits =
        |port: &str| port.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()));
    let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
    match port {
        Some(port) if !host.is_empty() && (port.is_empty() || fits(port)) => Ok(host),
        _ => Err("(unreadable)".to_owned()),
    }
}

/// Whether nobody else can have led a client here by this name.
pub fn is_ours(host: &str, hosts: &[String]) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let address = match bare {
        Some(bare) => bare.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4()),
    };
    address || host == "localhost" || hosts.iter().any(|known| known.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(uri: &str, fields: &[&str]) -> Result<bool, String> {
        let mut headers = HeaderMap::new();
        fields.iter().for_each(|host| {
            headers.append(HOST, host.parse().unwrap());
        });
        let hosts = ["weir.internal".to_owned()];
        named(&uri.parse().unwrap(), &headers).map(|host| is_ours(&host, &hosts))
    }

    #[test]
    fn addresses_localhost_and_names_of_the_conf() {
        for (host, want) in [
            ("127.0.0.1", true),
            ("127.0.0.1:9000", true),
            ("10.1.2.3:80", true),
            ("[::1]", true),
            ("[::1]:9000", true),
            ("localhost", true),
            ("LocalHost:9000", true),
            ("localhost.", true),
            ("weir.internal", true),
            ("WEIR.internal:9000", true),
            ("weir.internal.:9000", true),
            ("evil.example", false),
            ("evil.example:9000", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("evil-weir.internal", false),
            ("weir.internal.evil.example", false),
            ("1270.0.0.1", false),
            ("127.1", false),
            ("2130706433", false),
        ] {
            assert_eq!(ours("/", &[host]), Ok(want), "{host}");
            let absolute = ours(&format!("http://{host}/"), &["evil.example"]);
            assert_eq!(absolute, Ok(want), "{host}, as a whole URL");
        }
        for fields in [
            &[][..],
            &["localhost", "evil.example"],
            &["a b"],
            &["u@localhost"],
            &["[::1]x"],
            &["a:80:90"],
            &[""],
        ] {
            assert!(ours("/", fields).is_err(), "{fields:?}");
        }
    }
}
