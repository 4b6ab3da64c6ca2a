//! Whose address counts: the socket's, or what a trusted peer says in `X-Forwarded-For` or
//! `Forwarded` (RFC 7239). Pure.

use http::HeaderMap;
use http::header::FORWARDED;
use std::net::{IpAddr, SocketAddr};
use weir_conf::proxy::ForwardedHeader;
use weir_conf::units::Cidr;
use weir_wire::hop::FORWARDED_FOR;

/// The network whose addresses are one client: of IPv6 so many bits, since a host is given a whole /64 and can
/// change within it at will. An IPv4-mapped address is its IPv4 address.
pub fn network(ip: IpAddr, v6_prefix: u8) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(v6_prefix.min(128))).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
        v4 => v4,
    }
}

/// The peers whose word counts.
#[derive(Clone, Debug)]
pub struct Trusted(Vec<Cidr>);

/// What a trusted peer said about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub client: IpAddr,
    /// The header that was believed; `None`: neither was there, or nobody to be believed.
    pub by: Option<ForwardedHeader>,
    /// `http` or `https`, where `Forwarded` says so of the client.
    pub proto: Option<&'static str>,
}

/// One hop that somebody told of; `None`: what was said is no address.
type Hop = (Option<IpAddr>, Option<&'static str>);

impl Trusted {
    pub fn new(peers: &[Cidr]) -> Trusted {
        Trusted(peers.to_vec())
    }

    pub fn contains(&self, peer: IpAddr) -> bool {
        self.0.iter().any(|range| range.contains(peer))
    }

    /// The client's address. `believed` is the header that counts; the other one is looked at only
    /// if that is not there, and the two are never mixed.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap, believed: ForwardedHeader) -> Told {
        let peer = peer.to_canonical();
        let by = believed_of(headers, believed).filter(|_| self.contains(peer));
        let (client, proto) = match by {
            None => (peer, None),
            Some(ForwardedHeader::XForwardedFor) => self.walk(peer, x_forwarded_for(headers)),
            Some(ForwardedHeader::Forwarded) => self.walk(peer, forwarded(headers)),
        };
        Told { client, by, proto }
    }

    /// Each trusted hop vouches for the one before it, so the rightmost address that is not trusted
    /// is the last one that somebody vouched for. Garbage ends the chain where it stands.
    fn walk(&self, peer: IpAddr, hops: impl Iterator<Item = Hop>) -> (IpAddr, Option<&'static str>) {
        let mut client = (peer, None);
        for (address, proto) in hops {
            let Some(address) = address else { break };
            client = (address.to_canonical(), proto);
            if !self.contains(client.0) {
                break;
            }
        }
        client
    }
}

fn believed_of(headers: &HeaderMap, believed: ForwardedHeader) -> Option<ForwardedHeader> {
    use ForwardedHeader::{Forwarded, XForwardedFor};
    let there = |header| match header {
        XForwardedFor => headers.contains_key(FORWARDED_FOR),
        Forwarded => headers.contains_key(FORWARDED),
    };
    let other = if believed == Forwarded { XForwardedFor } else { Forwarded };
    [believed, other].into_iter().find(|header| there(*header))
}

/// From the nearest hop to the farthest, as is the next.
fn x_forwarded_for(headers: &HeaderMap) -> impl Iterator<Item = Hop> {
    let lines: Vec<&str> = headers.get_all(FORWARDED_FOR).iter().map(|v| v.to_str().unwrap_or("?")).collect();
    lines.into_iter().rev().flat_map(|line| line.rsplit(',')).map(|hop| (parse(hop.trim()), None))
}

fn forwarded(headers: &HeaderMap) -> impl Iterator<Item = Hop> {
    let lines: Vec<&str> = headers.get_all(FORWARDED).iter().map(|v| v.to_str().unwrap_or("?")).collect();
    lines.into_iter().rev().flat_map(|line| split(line, b',').into_iter().rev()).map(element)
}

/// `for="[2001:db8::1]:4711";proto=https;by=203.0.113.43`. Two `for` in one are nobody's address.
fn element(text: &str) -> Hop {
    let (mut address, mut proto, mut named) = (None, None, 0);
    for pair in split(text, b';') {
        let Some((name, value)) = pair.split_once('=') else { continue };
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        if name.eq_ignore_ascii_case("for") {
            (address, named) = (parse(value), named + 1);
        } else if name.eq_ignore_ascii_case("proto") {
            proto = ["http", "https"].into_iter().find(|known| value.eq_ignore_ascii_case(known));
        }
    }
    (address.filter(|_| named == 1), proto)
}

/// The parts between separators that do not stand in quotes, trimmed.
fn split(text: &str, separator: u8) -> Vec<&str> {
    let (mut parts, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (i, b) in text.bytes().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b if b == separator && !quoted => {
                parts.push(text[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts
}

/// `1.2.3.4`, `1.2.3.4:5`, `::1`, `[::1]`, `[::1]:5`.
fn parse(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|a| a.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusted() -> Trusted {
        Trusted::new(&[
            Cidr { addr: "10.0.0.0".parse().unwrap(), prefix: 8 },
            Cidr { addr: "fd00::".parse().unwrap(), prefix: 8 },
        ])
    }

    #[test]
    fn the_rightmost_untrusted_address_counts_and_only_from_trusted_peers() {
        let trusted = trusted();
        let table: [(&str, &[&str], &str); 14] = [
            ("1.1.1.1", &[], "1.1.1.1"),
            ("1.1.1.1", &["9.9.9.9"], "1.1.1.1"),
            ("::ffff:1.1.1.1", &["9.9.9.9"], "1.1.1.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["9.9.9.9"], "9.9.9.9"),
            ("::ffff:10.0.0.1", &["9.9.9.9"], "9.9.9.9"),
            ("10.0.0.1", &["8.8.8.8, 9.9.9.9"], "9.9.9.9"),
            ("10.0.0.1", &["8.8.8.8", "9.9.9.9 , 10.0.0.2"], "9.9.9.9"),
            ("10.0.0.1", &["10.0.0.3,10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["9.9.9.9, garbage, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["garbage"], "10.0.0.1"),
            ("fd00::1", &["[2001:db8::1]:443"], "2001:db8::1"),
            ("fd00::1", &["[2001:db8::1]"], "2001:db8::1"),
            ("fd00::1", &["9.9.9.9:1234"], "9.9.9.9"),
        ];
        for (peer, chain, client) in table {
            let mut headers = HeaderMap::new();
            for line in chain {
                headers.append(FORWARDED_FOR, line.parse().unwrap());
            }
            let found = trusted.client(peer.parse().unwrap(), &headers, ForwardedHeader::XForwardedFor);
            assert_eq!(found.client, client.parse::<IpAddr>().unwrap(), "{peer} {chain:?}");
        }
    }

    #[test]
    fn forwarded_is_read_by_the_same_rule() {
        let table: [(&str, &[&str], &str, Option<&str>); 14] = [
            ("1.1.1.1", &["for=9.9.9.9;proto=https"], "1.1.1.1", None),
            ("10.0.0.1", &["for=9.9.9.9;proto=https"], "9.9.9.9", Some("https")),
            ("10.0.0.1", &["For=\"9.9.9.9:4711\" ; Proto=HTTP"], "9.9.9.9", Some("http")),
            ("10.0.0.1", &["for=\"[2001:db8::1]:443\""], "2001:db8::1", None),
            ("10.0.0.1", &["for=\"[2001:db8::1]\";by=_x"], "2001:db8::1", None),
            ("10.0.0.1", &["for=6.6.6.6, for=9.9.9.9, for=10.0.0.2;proto=https"], "9.9.9.9", None),
            ("10.0.0.1", &["for=8.8.8.8", "for=10.0.0.3"], "8.8.8.8", None),
            ("10.0.0.1", &["for=9.9.9.9, for=unknown, for=10.0.0.2"], "10.0.0.2", None),
            ("10.0.0.1", &["for=_hidden"], "10.0.0.1", None),
            ("10.0.0.1", &["for=9.9.9.9;for=8.8.8.8"], "10.0.0.1", None),
            ("10.0.0.1", &["proto=https"], "10.0.0.1", None),
            ("10.0.0.1", &["by=\"a,for=6.6.6.6\";for=9.9.9.9"], "9.9.9.9", None),
            ("10.0.0.1", &["for=\"9.9.9.9"], "10.0.0.1", None),
            ("10.0.0.1", &["for=9.9.9.9;proto=\"javascript\""], "9.9.9.9", None),
        ];
        for (peer, chain, client, proto) in table {
            let mut headers = HeaderMap::new();
            for line in chain {
                headers.append(FORWARDED, line.parse().unwrap());
            }
            let found = trusted().client(peer.parse().unwrap(), &headers, ForwardedHeader::Forwarded);
            assert_eq!(found.client, client.parse::<IpAddr>().unwrap(), "{peer} {chain:?}");
            assert_eq!(found.proto, proto, "{peer} {chain:?}");
        }
    }

    #[test]
    fn one_header_is_believed_and_the_other_not_mixed_in() {
        use ForwardedHeader::{Forwarded, XForwardedFor};
        let mut headers = HeaderMap::new();
        headers.insert(FORWARDED, "for=8.8.8.8, for=unknown".parse().unwrap());
        headers.insert(FORWARDED_FOR, "9.9.9.9".parse().unwrap());
        let told = |headers: &HeaderMap, believed| {
            let told = trusted().client("10.0.0.1".parse().unwrap(), headers, believed);
            (told.client.to_string(), told.by)
        };
        assert_eq!(told(&headers, XForwardedFor), ("9.9.9.9".to_owned(), Some(XForwardedFor)));
        assert_eq!(told(&headers, Forwarded), ("10.0.0.1".to_owned(), Some(Forwarded)));
        headers.remove(FORWARDED);
        assert_eq!(told(&headers, Forwarded), ("9.9.9.9".to_owned(), Some(XForwardedFor)));
    }
}
