//! How each kind of value is read from TOML and written back.

use crate::access::exposed;
use crate::error::Place;
use crate::section::{Reader, Value};
use crate::tree::{Item, Raw};
use crate::units::{Bytes, Cidr, Rate, Secret, duration_text, parse_duration, parse_size};
use crate::write::quote;
use std::io::Read;
use std::net::SocketAddr;
use std::time::Duration;

/// Secrets that ship in examples, and are none.
pub(crate) const PLACEHOLDERS: [&str; 2] = ["change-me", "demo"];

/// Secrets are keys and PEM blocks; no file of that kind is larger.
const SECRET_SIZE: u64 = 64 * 1024;

impl Value for bool {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<bool> {
        match item.value {
            Raw::Bool(b) => Some(b),
            _ => reader.refuse(item, path, "a switch", "true, false"),
        }
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

macro_rules! whole_numbers {
    ($($kind:ty),*) => {$(
        impl Value for $kind {
            fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<$kind> {
                match item.value {
                    Raw::Integer(n) if <$kind>::try_from(n).is_ok() => <$kind>::try_from(n).ok(),
                    Raw::Integer(_) => {
                        let max = <$kind>::MAX;
                        let accepted = match <$kind>::BITS {
                            64.. => "0 or more".to_owned(),
                            _ => format!("0 to {max}"),
                        };
                        let text = format!("{} is out of range; accepted: {accepted}", item.shown());
                        reader.mistake(&item.place, path, text);
                        None
                    }
                    _ => reader.refuse(item, path, "a whole number", "a number without a unit, such as 100"),
                }
            }

            fn write(&self) -> String {
                self.to_string()
            }
        }
    )*};
}
whole_numbers!(u8, u32, usize);

impl Value for f64 {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<f64> {
        match item.value {
            Raw::Float(n) if n.is_finite() => Some(n),
            Raw::Integer(n) if n.unsigned_abs() < 1 << 53 => Some(n as f64),
            _ => reader.refuse(item, path, "a number", "a number without a unit, such as 1.25"),
        }
    }

    fn write(&self) -> String {
        format!("{self:?}")
    }
}

impl Value for String {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<String> {
        match item.as_text() {
            Some(text) => Some(text.to_owned()),
            None => reader.refuse(item, path, "text", "\"…\""),
        }
    }

    fn write(&self) -> String {
        quote(self)
    }
}

/// Values that are one of a few words.
macro_rules! words {
    ($kind:ident: $what:literal { $($variant:ident = $word:literal),* }) => {
        impl $crate::section::Value for $kind {
            fn read(item: &$crate::tree::Item, path: &str, reader: &mut $crate::section::Reader<'_>) -> Option<$kind> {
                match item.as_text() {
                    $(Some($word) => Some($kind::$variant),)*
                    _ => {
                        let accepted = [$(concat!("\"", $word, "\"")),*].join(", ");
                        reader.refuse(item, path, $what, &accepted)
                    }
                }
            }

            fn write(&self) -> String {
                $crate::write::quote(match self { $($kind::$variant => $word),* })
            }
        }
    };
}
pub(crate) use words;

/// A list; one value alone stands for a list of one.
impl<T: Value> Value for Vec<T> {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Vec<T>> {
        let Raw::List(items) = &item.value else {
            return T::read(item, path, reader).map(|value| vec![value]);
        };
        let read = |(i, item)| T::read(item, &format!("{path}[{i}]"), reader);
        // All of them before the first that is wrong decides: each has its own mistake.
        let values: Vec<Option<T>> = items.iter().enumerate().map(read).collect();
        values.into_iter().collect()
    }

    fn write(&self) -> String {
        let items: Vec<String> = self.iter().map(T::write).collect();
        format!("[{}]", items.join(", "))
    }
}

impl Value for SocketAddr {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<SocketAddr> {
        match item.as_text().and_then(|text| text.parse().ok()) {
            Some(addr) => Some(addr),
            None => reader.refuse(
                item,
                path,
                "an address to listen on",
                "\"IP:PORT\", such as \"127.0.0.1:8000\", \"0.0.0.0:8000\", \"[::]:8000\"",
            ),
        }
    }

    fn write(&self) -> String {
        quote(&self.to_string())
    }
}

impl Value for Duration {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Duration> {
        match item.as_text().and_then(parse_duration) {
            Some(duration) => Some(duration),
            None => reader.refuse(item, path, "a duration", "\"500ms\", \"25s\", \"5m\", \"720h\", \"0s\""),
        }
    }

    fn write(&self) -> String {
        quote(&duration_text(*self))
    }
}

impl Value for Bytes {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Bytes> {
        let size = match &item.value {
            Raw::Integer(n) => usize::try_from(*n).ok().map(Bytes),
            _ => item.as_text().and_then(parse_size),
        };
        match size {
            Some(size) => Some(size),
            None => reader.refuse(
                item,
                path,
                "a size",
                "bytes as a number, or \"64KiB\", \"1MiB\", \"64kB\", \"1MB\"",
            ),
        }
    }

    fn write(&self) -> String {
        quote(&self.to_string())
    }
}

const RATES: &str = "\"20/s\", \"600/min\", \"50/h\"";

impl Value for Rate {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Rate> {
        match item.as_text().and_then(Rate::parse) {
            Some(rate) if rate.per_second > 0.0 => Some(rate),
            _ => reader.refuse(item, path, "a rate above zero", RATES),
        }
    }

    fn write(&self) -> String {
        quote(&self.to_string())
    }
}

/// `"0/s"`: no limit.
impl Value for Option<Rate> {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Option<Rate>> {
        match item.as_text().and_then(Rate::parse) {
            Some(rate) => Some(Some(rate).filter(|rate| rate.per_second > 0.0)),
            None => reader.refuse(item, path, "a rate", &format!("{RATES}, or \"0/s\" for no limit")),
        }
    }

    fn write(&self) -> String {
        self.as_ref().map_or_else(|| quote("0/s"), Rate::write)
    }
}

impl Value for Cidr {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Cidr> {
        let accepted = "\"10.0.0.0/8\", \"192.0.2.7\", \"2001:db8::/32\", \"::1\"";
        let Some(range) = item.as_text().and_then(Cidr::parse) else {
            return reader.refuse(item, path, "a range of addresses", accepted);
        };
        let network = range.network();
        if network.addr != range.addr {
            let text = format!("{} has bits beyond its prefix; accepted: {}", item.shown(), network.write());
            reader.mistake(&item.place, path, text);
            return None;
        }
        Some(range)
    }

    fn write(&self) -> String {
        quote(&self.to_string())
    }
}

/// Messages here say what is wrong with where a secret is, never what it holds.
impl Value for Secret {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Secret> {
        let Some(text) = item.as_text() else {
            reader.mistake(&item.place, path, "is not text; accepted: \"…\", \"file:/path\", \"env:NAME\"");
            return None;
        };
        let result = if let Some(name) = text.strip_prefix("env:") {
            secret_from_environment(name, reader)
        } else if let Some(file) = text.strip_prefix("file:") {
            secret_from_file(file, item, path, reader)
        } else {
            look_at_place(text, item, path, reader);
            Ok(text.to_owned())
        };
        match result {
            Ok(text) => Some(Secret::new(text)),
            Err(why) => {
                reader.mistake(&item.place, path, why);
                None
            }
        }
    }

    fn write(&self) -> String {
        quote(if self.is_empty() { "" } else { "(set)" })
    }
}

fn secret_from_environment(name: &str, reader: &mut Reader<'_>) -> Result<String, String> {
    reader.named.insert(name.to_owned());
    match reader.environment.get(name) {
        Some(Some(text)) if !text.is_empty() => Ok(text.clone()),
        Some(Some(_)) => {
            Err(format!("the variable {name} is empty; accepted: a variable that holds the secret"))
        }
        Some(None) => Err(format!("the variable {name} is not UTF-8; accepted: text")),
        None => Err(format!("the variable {name} is not set; accepted: a variable that holds the secret")),
    }
}

fn secret_from_file(file: &str, item: &Item, path: &str, reader: &mut Reader<'_>) -> Result<String, String> {
    let accepted = "accepted: a readable text file with the secret alone";
    let failed = |error: std::io::Error| format!("cannot read the file {file:?}: {error}; {accepted}");
    let opened = std::fs::File::open(file).map_err(failed)?;
    let about = opened.metadata().map_err(failed)?;
    let mut text = String::new();
    opened.take(SECRET_SIZE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > SECRET_SIZE {
        return Err(format!("the file {file:?} is larger than 64KiB; {accepted}"));
    }
    let secret = text.strip_suffix('\n').unwrap_or(&text);
    let secret = secret.strip_suffix('\r').unwrap_or(secret);
    if secret.is_empty() {
        return Err(format!("the file {file:?} is empty; {accepted}"));
    }
    if let Some(who) = exposed(&about).filter(|_| !is_public(secret)) {
        reader.warn(&item.place, path, format!("{who} the file {file:?}; better: chmod 600"));
    }
    Ok(secret.to_owned())
}

/// The secret itself stands in the conf, or on the command line: whoever can read that has it. Said once for a file.
fn look_at_place(secret: &str, item: &Item, path: &str, reader: &mut Reader<'_>) {
    if secret.is_empty() || is_public(secret) || PLACEHOLDERS.contains(&secret) {
        return;
    }
    let text = match &item.place {
        Place::File { path: file, .. } => {
            let about = std::fs::metadata(&**file).ok();
            let Some(who) = about.as_ref().and_then(exposed) else { return };
            if !reader.exposed.insert(file.clone()) {
                return;
            }
format!("{who} this file, and it holds this secret; better: chmod 600, \"file:/path\" or \"env:NAME\"")
        }
        Place::CommandLine(_) => "every user of this machine can read a command line; better: \"file:/path\", \"env:NAME\", or the \
             variable in place of --set"
            .to_owned(),
        Place::Default | Place::Environment(_) => return,
    };
    reader.warn(&item.place, path, text);
}

/// Keys to verify with are read by the same keys of the conf as secrets.
fn is_public(text: &str) -> bool {
    ["-----BEGIN PUBLIC KEY-----", "-----BEGIN RSA PUBLIC KEY-----", "-----BEGIN CERTIFICATE-----"]
        .iter()
        .any(|begin| text.starts_with(begin))
}
