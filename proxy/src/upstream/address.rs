//! Where a server is, and its name: the text by which operators, logs, metrics and the ring know it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

/// One entry of `servers` in the conf.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// As it is written.
    pub text: Arc<str>,
    pub weight: u32,
    pub place: Place,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    At(Address),
    /// To be resolved.
    Name {
        host: String,
        port: u16,
    },
}

/// Ways to reach one server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// The preferred one first, and never none.
    Tcp(SocketAddr, Option<SocketAddr>),
    Unix(PathBuf),
}

impl Entry {
    /// `None`: not an address; the conf's rules have refused it before.
    pub fn parse(server: &weir_conf::proxy::Server) -> Option<Entry> {
        let text = server.address.as_str();
        let place = match (text.strip_prefix("unix:"), text.parse::<SocketAddr>()) {
            (Some(path), _) => Place::At(Address::Unix(PathBuf::from(path))),
            (None, Ok(addr)) => Place::At(Address::Tcp(addr, None)),
            (None, Err(_)) => {
                let (host, port) = text.rsplit_once(':')?;
                Place::Name { host: host.to_owned(), port: port.parse().ok()? }
            }
        };
        Some(Entry { text: text.into(), weight: server.weight, place })
    }

    /// What `Host` says where a server is to be asked as itself.
    pub fn authority(&self) -> &str {
        match &self.place {
            Place::At(Address::Unix(_)) => "localhost",
            _ => &self.text,
        }
    }

    /// The host that it names, for TLS.
    pub fn host(&self) -> Option<String> {
        match &self.place {
            Place::At(Address::Tcp(addr, _)) => Some(addr.ip().to_string()),
            Place::At(Address::Unix(_)) => None,
            Place::Name { host, .. } => Some(host.clone()),
        }
    }
}

/// A name with several addresses stands for as many servers; one with addresses of both families for servers that can
/// be reached both ways, by IPv4 first. Which belong together is not told, so a family that has fewer stands beside
/// several: each address is tried, however the others fare.
pub fn group(found: &[IpAddr], port: u16) -> Vec<Address> {
    let at = |ip: &IpAddr| SocketAddr::new(*ip, port);
    let (v4, v6): (Vec<_>, Vec<_>) = found.iter().map(at).partition(SocketAddr::is_ipv4);
    if v4.is_empty() {
        return v6.into_iter().map(|addr| Address::Tcp(addr, None)).collect();
    }
    let beside = |n: usize| v6.get(n % v6.len().max(1)).copied();
    let both = v4.iter().enumerate().map(|(n, addr)| Address::Tcp(*addr, beside(n)));
    both.chain(v6.iter().skip(v4.len()).map(|addr| Address::Tcp(*addr, None))).collect()
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(addr, _) => addr.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_both_families_are_one_server() {
        let [a, b, c, d] = ["127.0.0.1", "::1", "127.0.0.2", "::2"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let at = |ip| SocketAddr::new(ip, 1);
        let (one, both) = (|ip| Address::Tcp(at(ip), None), |v4, v6| Address::Tcp(at(v4), Some(at(v6))));
        assert_eq!(group(&[b, a], 1), [both(a, b)]);
        assert_eq!(group(&[b, a, c], 1), [both(a, b), both(c, b)]);
        assert_eq!(group(&[b, a, d], 1), [both(a, b), one(d)]);
        assert_eq!(group(&[b, d], 1), [one(b), one(d)]);
        assert_eq!(group(&[a, c], 1), [one(a), one(c)]);
    }

    #[test]
    fn entries_are_what_they_say() {
        for (text, name, host) in [
            ("10.0.0.1:3000", Some("10.0.0.1:3000"), Some("10.0.0.1")),
            ("[::1]:3000", Some("[::1]:3000"), Some("::1")),
            ("unix:/run/app.sock", Some("unix:/run/app.sock"), None),
            ("app.local:3000", None, Some("app.local")),
        ] {
            let entry = Entry::parse(&weir_conf::proxy::Server { address: text.into(), weight: 3 }).unwrap();
            let shown = match &entry.place {
                Place::At(address) => Some(address.to_string()),
                Place::Name { .. } => None,
            };
            assert_eq!((shown.as_deref(), entry.host().as_deref()), (name, host), "{text}");
            assert_eq!((&*entry.text, entry.weight), (text, 3));
        }
    }
}
