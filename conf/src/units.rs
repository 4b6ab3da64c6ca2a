//! Values with a unit, parsed once: durations are `std::time::Duration`, sizes are bytes in a
//! `usize`, addresses are `SocketAddr`; the rest is here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Events per second: `"20/s"`, `"600/min"`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub per_second: f64,
}

impl Rate {
    /// Zero is a rate too; negative is none.
    pub fn parse(text: &str) -> Option<Rate> {
        let (count, unit) = text.split_once('/')?;
        if !count.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let seconds = match unit {
            "s" => 1.0,
            "min" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let count: f64 = count.parse().ok()?;
        count.is_finite().then_some(Rate { per_second: count / seconds })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (seconds, unit) in [(1.0, "s"), (60.0, "min"), (3600.0, "h")] {
            let count = (self.per_second * seconds).round();
            if count / seconds == self.per_second {
                return write!(f, "{count}/{unit}");
            }
        }
        write!(f, "{}/s", self.per_second)
    }
}

/// A size, while it is read; sections hold it as a `usize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(crate) struct Bytes(pub usize);

const SIZES: [(&str, usize); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

pub(crate) fn parse_size(text: &str) -> Option<Bytes> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (count, unit) = text.split_at(end);
    let (_, bytes) = SIZES.into_iter().find(|(name, _)| *name == if unit.is_empty() { "B" } else { unit })?;
    count.parse::<usize>().ok()?.checked_mul(bytes).map(Bytes)
}

impl From<Bytes> for usize {
    fn from(bytes: Bytes) -> usize {
        bytes.0
    }
}

impl From<usize> for Bytes {
    fn from(bytes: usize) -> Bytes {
        Bytes(bytes)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIZES[..3].iter().find(|(_, bytes)| self.0 > 0 && self.0.is_multiple_of(*bytes)) {
            Some((unit, bytes)) => write!(f, "{}{unit}", self.0 / bytes),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// A size per second, while it is read: `"64KiB/s"`. Sections hold it as a `usize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BytesPerSecond(pub usize);

impl BytesPerSecond {
    pub(crate) fn parse(text: &str) -> Option<BytesPerSecond> {
        text.strip_suffix("/s").and_then(parse_size).map(|Bytes(bytes)| BytesPerSecond(bytes))
    }
}

impl From<BytesPerSecond> for usize {
    fn from(rate: BytesPerSecond) -> usize {
        rate.0
    }
}

impl From<usize> for BytesPerSecond {
    fn from(bytes: usize) -> BytesPerSecond {
        BytesPerSecond(bytes)
    }
}

impl fmt::Display for BytesPerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", Bytes(self.0))
    }
}

const DURATIONS: [(&str, u64); 5] =
    [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1), ("d", 86_400_000)];

/// `"25s"`, `"1h30m"`; a bare number has no unit and is refused.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total: u64 = 0;
    loop {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (count, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let (_, millis) = DURATIONS.into_iter().find(|(name, _)| *name == unit)?;
        total = total.checked_add(count.parse::<u64>().ok()?.checked_mul(millis)?)?;
        if tail.is_empty() {
            return Some(Duration::from_millis(total));
        }
        rest = tail;
    }
}

pub(crate) fn duration_text(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    let whole = DURATIONS[..4].iter().find(|(_, unit)| millis.is_multiple_of(u128::from(*unit)));
    let (unit, size) = whole.copied().unwrap_or(("ms", 1));
    format!("{}{unit}", millis / u128::from(size))
}

/// Text that is never printed. In conf: the value itself, `file:/path` or `env:NAME`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Secret {
        Secret(text)
    }

    /// The one way to its text; look for callers of this to see where secrets go.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "Secret(unset)" } else { "Secret(set)" })
    }
}

/// A range of addresses: `"10.0.0.0/8"`, `"::1"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub addr: IpAddr,
    pub prefix: u8,
}

impl Cidr {
    pub(crate) fn parse(text: &str) -> Option<Cidr> {
        let (addr, prefix) = match text.split_once('/') {
            Some((addr, prefix)) if prefix.bytes().all(|b| b.is_ascii_digit()) => {
                (addr, Some(prefix.parse::<u8>().ok()?))
            }
            Some(_) => return None,
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().ok()?;
        let bits = if addr.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(bits);
        if prefix > bits {
            return None;
        }
        match (addr, addr.to_canonical()) {
            // ::ffff:10.0.0.0/104 is 10.0.0.0/8.
            (IpAddr::V6(_), IpAddr::V4(v4)) if prefix >= 96 => {
                Some(Cidr { addr: v4.into(), prefix: prefix - 96 })
            }
            _ => Some(Cidr { addr, prefix }),
        }
    }

    /// The same range by its first address.
    pub(crate) fn network(&self) -> Cidr {
        let addr = match self.addr {
            IpAddr::V4(addr) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(addr.to_bits() & mask))
            }
            IpAddr::V6(addr) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(addr.to_bits() & mask))
            }
        };
        Cidr { addr, prefix: self.prefix }
    }

    /// An IPv4-mapped IPv6 address counts as its IPv4 address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.addr, ip.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                net.to_bits() & mask == ip.to_bits() & mask
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                net.to_bits() & mask == ip.to_bits() & mask
            }
            _ => false,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = if self.addr.is_ipv4() { 32 } else { 128 };
        if self.prefix == whole {
            write!(f, "{}", self.addr)
        } else {
            write!(f, "{}/{}", self.addr, self.prefix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let ms = |text| parse_duration(text).map(|d| d.as_millis());
        assert_eq!(ms("500ms"), Some(500));
        assert_eq!(ms("25s"), Some(25_000));
        assert_eq!(ms("1h30m"), Some(5_400_000));
        assert_eq!(ms("720h"), ms("30d"));
        assert_eq!(ms("0s"), Some(0));
        let bad = [
            "",
            "25",
            "s",
            "25 s",
            "-1s",
            "1.5s",
            "25S",
            "1s2",
            "٣s",
            "99999999999999999999s",
            "18446744073709551615h",
        ];
        for text in bad {
            assert_eq!(ms(text), None, "{text:?}");
        }
        for text in ["500ms", "90s", "5m", "720h", "0s", "1001ms"] {
            assert_eq!(duration_text(parse_duration(text).unwrap()), text);
        }
    }

    #[test]
    fn sizes() {
        let bytes = |text| parse_size(text).map(|b| b.0);
        assert_eq!(bytes("64KiB"), Some(65_536));
        assert_eq!(bytes("1MiB"), Some(1_048_576));
        assert_eq!(bytes("64kB"), Some(64_000));
        assert_eq!(bytes("1MB"), Some(1_000_000));
        assert_eq!(bytes("17"), Some(17));
        for text in [
            "",
            "KiB",
            "64 KiB",
            "64kib",
            "64K",
            "-1",
            "1.5MiB",
            "99999999999999999999",
            "18446744073709551615KiB",
        ] {
            assert_eq!(bytes(text), None, "{text:?}");
        }
        for text in ["64KiB", "3GiB", "1000B", "0B"] {
            assert_eq!(parse_size(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn sizes_per_second() {
        let bytes = |text| BytesPerSecond::parse(text).map(|b| b.0);
        assert_eq!(bytes("64KiB/s"), Some(65_536));
        assert_eq!(bytes("0B/s"), Some(0));
        for text in ["64KiB", "64KiB/min", "/s", "1.5MB/s"] {
            assert_eq!(bytes(text), None, "{text:?}");
        }
        assert_eq!(BytesPerSecond(3 << 20).to_string(), "3MiB/s");
    }

    #[test]
    fn rates() {
        let rate = |text| Rate::parse(text).map(|r| r.per_second);
        assert_eq!(rate("20/s"), Some(20.0));
        assert_eq!(rate("600/min"), Some(10.0));
        assert_eq!(rate("0/s"), Some(0.0));
        assert_eq!(rate("0.5/s"), Some(0.5));
        for text in ["", "20", "/s", "20/", "20/d", "-1/s", "+1/s", "inf/s", "NaN/s", "1e999/s", "20 /s"] {
            assert_eq!(rate(text), None, "{text:?}");
        }
        for text in ["20/s", "1/min", "7/h", "18/min", "0.123/s"] {
            assert_eq!(Rate::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn ranges_of_addresses() {
        let holds = |range: &str, ip: &str| Cidr::parse(range).unwrap().contains(ip.parse().unwrap());
        assert!(holds("10.0.0.0/8", "10.255.0.1"));
        assert!(!holds("10.0.0.0/8", "11.0.0.1"));
        assert!(holds("0.0.0.0/0", "11.0.0.1"));
        assert!(!holds("0.0.0.0/0", "::1"));
        assert!(holds("::/0", "2001:db8::1"));
        assert!(holds("::1", "::1"));
        assert!(holds("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(holds("::ffff:10.0.0.0/104", "10.1.2.3"));
        for text in
            ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "10.0.0.0/+8", "localhost", "10.0.0.0/8/8"]
        {
            assert_eq!(Cidr::parse(text), None, "{text:?}");
        }
        assert_ne!(Cidr::parse("10.0.0.1/8").unwrap().network(), Cidr::parse("10.0.0.1/8").unwrap());
        for text in ["10.0.0.0/8", "::1", "2001:db8::/32", "192.0.2.7"] {
            assert_eq!(Cidr::parse(text).unwrap().to_string(), text);
        }
    }
}
