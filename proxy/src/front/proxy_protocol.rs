//! The header of the PROXY protocol, versions 1 and 2, at the beginning of a connection: whose it
//! is. Pure. (The HAProxy project's `proxy-protocol.txt`, 2.1 and 2.2.)

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Version 1, its line end included.
const V1_MAX: usize = 107;
/// Version 2 with its fields (TLVs); the longest addresses take 232.
const V2_MAX: usize = 4096;
const V1_START: &[u8] = b"PROXY ";
const V2_START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// So far it may be one.
    Partial,
    /// It is something else.
    Absent,
    /// It ends after `length`. `client` is `None` where the peer speaks for itself (a health check), or
    /// for somebody without an IP address.
    Whole { length: usize, client: Option<SocketAddr> },
    /// It begins as one and is none.
    Bad(&'static str),
}

pub fn parse(bytes: &[u8]) -> Parsed {
    let begins = |start: &[u8]| start.starts_with(&bytes[..bytes.len().min(start.len())]);
    if begins(V1_START) {
        if bytes.len() < V1_START.len() { Parsed::Partial } else { v1(bytes) }
    } else if begins(V2_START) {
        if bytes.len() < V2_FIXED { Parsed::Partial } else { v2(bytes) }
    } else {
        Parsed::Absent
    }
}

/// `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443`
fn v1(bytes: &[u8]) -> Parsed {
    let seen = &bytes[..bytes.len().min(V1_MAX)];
    let Some(end) = seen.windows(2).position(|two| two == b"\r\n") else {
        return if seen.len() < V1_MAX { Parsed::Partial } else { Parsed::Bad("longer than 107 bytes") };
    };
    let Ok(line) = std::str::from_utf8(&seen[V1_START.len()..end]) else { return Parsed::Bad("no ASCII") };
    let length = end + 2;
    let words: Vec<&str> = line.split(' ').collect();
    let client: Option<SocketAddr> = match words[..] {
        // Whatever follows is to be ignored.
        ["UNKNOWN", ..] => return Parsed::Whole { length, client: None },
        ["TCP4", from, to, from_port, to_port] => ends::<Ipv4Addr>(from, to, from_port, to_port),
        ["TCP6", from, to, from_port, to_port] => ends::<Ipv6Addr>(from, to, from_port, to_port),
        _ => None,
    };
    match client {
        Some(client) => Parsed::Whole { length, client: Some(client) },
        None => Parsed::Bad("malformed line"),
    }
}

/// The first end, if both are sound.
fn ends<A: FromStr + Into<IpAddr>>(
    from: &str,
    to: &str,
    from_port: &str,
    to_port: &str,
) -> Option<SocketAddr> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    let (from, _to) = (from.parse::<A>().ok()?, to.parse::<A>().ok()?);
    port(to_port).and(port(from_port)).map(|port| SocketAddr::new(from.into(), port))
}

fn v2(bytes: &[u8]) -> Parsed {
    let (version, command) = (bytes[12] >> 4, bytes[12] & 0xf);
    let length = V2_FIXED + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if version != 2 || command > 1 {
        return Parsed::Bad("unknown version or command");
    }
    if length > V2_MAX {
        return Parsed::Bad("longer than 4 KiB");
    }
    // Family and transport: stream sockets only, since this is one.
    let least = match (command, bytes[13]) {
        (0, _) | (_, 0x00) => 0,
        (_, 0x11) => 12,
        (_, 0x21) => 36,
        (_, 0x31) => 216,
        _ => return Parsed::Bad("unknown family or transport"),
    };
    if length - V2_FIXED < least {
        return Parsed::Bad("shorter than its addresses");
    }
    let Some(addresses) = bytes.get(V2_FIXED..length) else { return Parsed::Partial };
    let end = |ip: Option<IpAddr>, port: usize| {
        let port = addresses.get(port..)?.first_chunk::<2>().map(|bytes| u16::from_be_bytes(*bytes))?;
        Some(SocketAddr::new(ip?, port))
    };
    let client = match (command, bytes[13]) {
        (1, 0x11) => end(addresses.first_chunk::<4>().map(|octets| IpAddr::from(*octets)), 8),
        (1, 0x21) => end(addresses.first_chunk::<16>().map(|octets| IpAddr::from(*octets)), 32),
        _ => None,
    };
    Parsed::Whole { length, client }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version_command: u8, family: u8, length: u16, rest: &[u8]) -> Vec<u8> {
        let mut bytes = V2_START.to_vec();
        bytes.extend([version_command, family]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    fn whole(length: usize, client: &str) -> Parsed {
        Parsed::Whole { length, client: Some(client.parse().unwrap()) }
    }

    fn v6(from: &str) -> Vec<u8> {
        let mut rest = from.parse::<Ipv6Addr>().unwrap().octets().to_vec();
        rest.extend([0; 16]);
        rest.extend([1, 2, 0, 0]);
        rest
    }

    fn good() -> Vec<(Vec<u8>, Parsed)> {
        let none = |length| Parsed::Whole { length, client: None };
        let four = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 4, 1, 0xbb];
        vec![
            (b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n".to_vec(), whole(45, "192.0.2.1:56324")),
            (b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n".to_vec(), whole(36, "[2001:db8::1]:1")),
            (b"PROXY UNKNOWN\r\n".to_vec(), none(15)),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), none(35)),
            (header(0x21, 0x11, 12, &four), whole(28, "192.0.2.1:56324")),
            (header(0x21, 0x11, 15, &[&four[..], &[4, 0, 0]].concat()), whole(31, "192.0.2.1:56324")),
            (header(0x21, 0x21, 36, &v6("2001:db8::1")), whole(52, "[2001:db8::1]:258")),
            (header(0x20, 0x00, 0, &[]), none(16)),
            (header(0x20, 0x11, 12, &four), none(28)),
            (header(0x21, 0x00, 3, &[4, 0, 0]), none(19)),
            (header(0x21, 0x31, 216, &[b'x'; 216]), none(232)),
            (header(0x21, 0x11, 4080, &[&four[..], &[0; 4068]].concat()), whole(4096, "192.0.2.1:56324")),
        ]
    }

    #[test]
    fn good_headers_at_every_cut_and_with_what_follows() {
        for (bytes, parsed) in good() {
            for cut in 0..bytes.len() {
                assert_eq!(parse(&bytes[..cut]), Parsed::Partial, "cut at {cut} of {bytes:?}");
            }
            assert_eq!(parse(&bytes), parsed);
            let more = [&bytes[..], b"GET / HTTP/1.1\r\n\r\n"].concat();
            assert_eq!(parse(&more), parsed);
        }
    }

    #[test]
    fn what_begins_as_one_and_is_none_is_bad_and_all_else_absent() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(100));
        let table = [
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443 1\r\n",
            "PROXY TCP4  192.0.2.1 198.51.100.1 56324 443\r\n",
            "PROXY TCP4 192.0.2.256 198.51.100.1 56324 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100 56324 443\r\n",
            "PROXY TCP4 2001:db8::1 ::1 1 2\r\n",
            "PROXY TCP6 192.0.2.1 198.51.100.1 1 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 65536 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 +1 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\nX: y\r\n",
            "PROXY UDP4 192.0.2.1 198.51.100.1 56324 443\r\n",
            "PROXY tcp4 192.0.2.1 198.51.100.1 56324 443\r\n",
            "PROXY \r\n",
            long.as_str(),
        ];
        for line in table {
            assert!(
                matches!(parse(line.as_bytes()), Parsed::Bad(_)),
                "{line:?}: {:?}",
                parse(line.as_bytes())
            );
        }
        let four = [0; 12];
        for bytes in [
            header(0x11, 0x11, 12, &four),
            header(0x31, 0x11, 12, &four),
            header(0x22, 0x11, 12, &four),
            header(0x21, 0x12, 12, &four),
            header(0x21, 0x22, 36, &[0; 36]),
            header(0x21, 0x41, 12, &four),
            header(0x21, 0x11, 11, &four),
            header(0x21, 0x21, 35, &[0; 36]),
            header(0x21, 0x31, 215, &[0; 216]),
            header(0x21, 0x11, 4081, &[]),
            header(0x21, 0x11, 65535, &[]),
        ] {
            assert!(matches!(parse(&bytes), Parsed::Bad(_)), "{bytes:?}");
        }
        for other in ["GET / HTTP/1.1\r\n", "PROXXY", "PROXY\r\n", "\r\n\r\n\0\r\nQUIX", "\r\nGET", "\0"] {
            assert_eq!(parse(other.as_bytes()), Parsed::Absent, "{other:?}");
        }
        assert_eq!(parse(b""), Parsed::Partial);
    }
}
