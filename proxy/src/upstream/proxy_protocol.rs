//! The PROXY protocol, version 2, towards servers: who a connection is for, in front of its bytes.
//! Pure.

use std::net::{IpAddr, SocketAddr};

/// Both ends of a client's connection, as the client sees it. A port is 0 where it is not known: a
/// trusted peer told the address alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub client: SocketAddr,
    pub local: SocketAddr,
}

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// `None`: a connection of the proxy's own, such as a health check.
pub fn header(ends: Option<&Ends>) -> Vec<u8> {
    let mut out = SIGNATURE.to_vec();
    let Some(Ends { client, local }) = ends else {
        out.extend_from_slice(&[LOCAL, 0, 0, 0]);
        return out;
    };
    match (client.ip().to_canonical(), local.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend_from_slice(&[PROXY, TCP4, 0, 12]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
        // One family holds for both: an IPv4 address is mapped.
        (from, to) => {
            out.extend_from_slice(&[PROXY, TCP6, 0, 36]);
            for ip in [from, to] {
                let v6 = match ip {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                    IpAddr::V6(v6) => v6,
                };
                out.extend_from_slice(&v6.octets());
            }
        }
    }
    out.extend_from_slice(&client.port().to_be_bytes());
    out.extend_from_slice(&local.port().to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_those_of_the_specification() {
        let ends = |client: &str, local: &str| Ends {
            client: client.parse().unwrap(),
            local: local.parse().unwrap(),
        };
        let v4 = header(Some(&ends("192.0.2.7:4660", "[::ffff:10.0.0.1]:80")));
        assert_eq!(&v4[..12], b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A");
        assert_eq!(v4[12..], [0x21, 0x11, 0, 12, 192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x34, 0, 80]);
        let mixed = header(Some(&ends("[2001:db8::1]:1", "10.0.0.1:2")));
        assert_eq!(mixed.len(), 16 + 36);
        assert_eq!(mixed[12..16], [0x21, 0x21, 0, 36]);
        assert_eq!(mixed[32..48], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1]);
        assert_eq!(mixed[48..], [0, 1, 0, 2]);
        assert_eq!(header(None)[12..], [0x20, 0, 0, 0]);
    }
}
