//! Whose address counts: the socket's, or what a trusted peer says in `X-Forwarded-For`. Pure.

use http::HeaderMap;
use std::net::{IpAddr, SocketAddr};
use weir_conf::units::Cidr;
use weir_wire::hop::FORWARDED_FOR;

/// The peers whose word counts.
#[derive(Clone, Debug)]
pub struct Trusted(Vec<Cidr>);

impl Trusted {
    pub fn new(peers: &[Cidr]) -> Trusted {
        Trusted(peers.to_vec())
    }

    pub fn contains(&self, peer: IpAddr) -> bool {
        self.0.iter().any(|range| range.contains(peer))
    }

    /// The client's address: each trusted hop vouches for the one before it, so the rightmost
    /// address that is not trusted is the last one that somebody vouched for. Garbage ends the
    /// chain where it stands.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        if !self.contains(client) {
            return client;
        }
        let lines: Vec<&str> =
            headers.get_all(FORWARDED_FOR).iter().map(|v| v.to_str().unwrap_or("?")).collect();
        for hop in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
            let Some(address) = parse(hop.trim()) else { break };
            client = address.to_canonical();
            if !self.contains(client) {
                break;
            }
        }
        client
    }
}

/// `1.2.3.4`, `1.2.3.4:5`, `::1`, `[::1]`, `[::1]:5`.
fn parse(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|a| a.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rightmost_untrusted_address_counts_and_only_from_trusted_peers() {
        let trusted = Trusted::new(&[
            Cidr { addr: "10.0.0.0".parse().unwrap(), prefix: 8 },
            Cidr { addr: "fd00::".parse().unwrap(), prefix: 8 },
        ]);
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
            let found = trusted.client(peer.parse().unwrap(), &headers);
            assert_eq!(found, client.parse::<IpAddr>().unwrap(), "{peer} {chain:?}");
        }
    }
}
