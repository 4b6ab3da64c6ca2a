//! One entry of `servers`, TLS towards it, and how its health is checked.

use super::{held, within};
use crate::section::{Reader, Section, Value};
use crate::tree::{Item, Raw, Table};
use crate::write::{Writer, quote};
use std::time::Duration;

/// `"HOST:PORT"`, `"unix:/path"`, or `{ address = "…", weight = 2 }`.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    pub address: String,
    /// Its share, relative to that of the others.
    pub weight: u32,
}

const WEIGHTS: std::ops::RangeInclusive<u32> = 1..=100;
const SERVERS: &str = "\"HOST:PORT\", \"unix:/path\", or { address = \"…\", weight = 2 }";

impl Value for Server {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Server> {
        let Some(table) = item.as_table() else {
            return match item.as_text() {
                Some(address) => Some(Server { address: address.to_owned(), weight: 1 }),
                None => reader.refuse(item, path, "a server", SERVERS),
            };
        };
        let sound = only(table, &["address", "weight"], path, reader);
        let Some(address) = table.get("address") else {
            reader.mistake(&item.place, path, format!("has no \"address\"; accepted: {SERVERS}"));
            return None;
        };
        let address = String::read(address, &format!("{path}.address"), reader);
        let weight = match table.get("weight") {
            None => Some(1),
            Some(item) => {
                let path = format!("{path}.weight");
                let weight = u32::read(item, &path, reader)?;
                if !WEIGHTS.contains(&weight) {
                    reader.mistake(
                        &item.place,
                        &path,
                        format!("{weight} is out of range; accepted: 1 to 100"),
                    );
                    return None;
                }
                Some(weight)
            }
        };
        Some(Server { address: address?, weight: weight? }).filter(|_| sound)
    }

    fn write(&self) -> String {
        match self.weight {
            1 => quote(&self.address),
            weight => format!("{{ address = {}, weight = {weight} }}", quote(&self.address)),
        }
    }
}

/// TLS towards servers.
#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    /// The name that is asked for and that the certificate must carry; `None`: the server's host.
    pub sni: Option<String>,
    /// A PEM file of the authorities that are believed; `None`: those of the system.
    pub ca: Option<String>,
    /// False: any certificate will do.
    pub verify: bool,
}

/// `true`, `false`, or `{ sni = "…", ca = "file.pem", verify = true }`.
impl Value for Option<Tls> {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Option<Tls>> {
        let plain = Tls { sni: None, ca: None, verify: true };
        match &item.value {
            Raw::Bool(on) => return Some(on.then_some(plain)),
            Raw::Table(_) => {}
            _ => {
                let accepted =
                    "true, false, { sni = \"app.example.com\", ca = \"/etc/weir/ca.pem\", verify = true }";
                return reader.refuse(item, path, "TLS", accepted);
            }
        }
        let table = item.as_table()?;
        let sound = only(table, &["sni", "ca", "verify"], path, reader);
        let mut text = |key: &str| match table.get(key) {
            Some(item) => String::read(item, &format!("{path}.{key}"), reader).map(Some),
            None => Some(None),
        };
        let (sni, ca) = (text("sni"), text("ca"));
        let verify = match table.get("verify") {
            Some(item) => bool::read(item, &format!("{path}.verify"), reader),
            None => Some(true),
        };
        Some(Some(Tls { sni: sni?, ca: ca?, verify: verify? })).filter(|_| sound)
    }

    fn write(&self) -> String {
        let Some(tls) = self else { return "false".to_owned() };
        let text = |key: &str, value: &Option<String>| {
            value.as_ref().map_or_else(String::new, |v| format!("{key} = {}, ", quote(v)))
        };
        format!("{{ {}{}verify = {} }}", text("sni", &tls.sni), text("ca", &tls.ca), tls.verify)
    }
}

fn only(table: &Table, known: &[&str], path: &str, reader: &mut Reader<'_>) -> bool {
    let mut sound = true;
    for (key, item) in table.iter().filter(|(key, _)| !known.contains(&key.as_str())) {
        let text = format!("unknown key; accepted here: {}", known.join(", "));
        reader.mistake(&item.key_place, &format!("{path}.{key}"), text);
        sound = false;
    }
    sound
}

/// `[proxy.upstream.NAME.health]`
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    pub kind: Check,
    /// What is asked for, and by which host; for `http` and `websocket`.
    pub path: String,
    pub host: Option<String>,
    /// From one check of a server to its next, give or take a tenth.
    pub interval: Duration,
    pub timeout: Duration,
    /// Checks in a row that must succeed until it is up again, and fail until it is down.
    pub rise: u32,
    pub fall: u32,
    /// The statuses that are good, for `http`.
    pub status: Statuses,
}

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// A connection (and TLS, where the upstream has it).
    Tcp,
    /// A GET.
    Http,
    /// A whole handshake.
    WebSocket,
}

const CHECKS: [(&str, Check); 3] =
    [("tcp", Check::Tcp), ("http", Check::Http), ("websocket", Check::WebSocket)];

impl Health {
    /// As it is with nothing but a kind.
    pub fn of(kind: Check) -> Health {
        Health {
            kind,
            path: "/".to_owned(),
            host: None,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            rise: 2,
            fall: 3,
            status: Statuses(200, 399),
        }
    }

    pub(super) fn read(s: &mut Section<'_, '_>) -> Health {
        let d = Health::of(s.need("kind", "\"tcp\", \"http\", \"websocket\"").unwrap_or(Check::Tcp));
        let some = |t: &Duration| !t.is_zero();
        let path = |p: &String| p.starts_with('/') && p.bytes().all(|b| b.is_ascii_graphic());
        let host = |h: &String| !h.is_empty() && h.bytes().all(|b| b.is_ascii_graphic());
        Health {
            kind: d.kind,
            path: held(s, "path", d.path, path, "\"/…\" without spaces"),
            host: s
                .given("host")
                .map(|_| held(s, "host", String::new(), host, "a host, such as \"app.example.com\"")),
            interval: held(s, "interval", d.interval, some, "1ms or more"),
            timeout: held(s, "timeout", d.timeout, some, "1ms or more"),
            rise: within(s, "rise", d.rise, 1..=100),
            fall: within(s, "fall", d.fall, 1..=100),
            status: s.find("status").unwrap_or(d.status),
        }
    }

    pub(super) fn write(&self, w: &mut Writer<'_>) {
        w.value("kind", self.kind.write());
        w.value("path", quote(&self.path));
        if let Some(host) = &self.host {
            w.value("host", quote(host));
        }
        w.value("interval", self.interval.write());
        w.value("timeout", self.timeout.write());
        w.value("rise", self.rise.write());
        w.value("fall", self.fall.write());
        w.value("status", self.status.write());
    }
}

impl Value for Check {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Check> {
        match item.as_text().and_then(|text| CHECKS.iter().find(|(name, _)| *name == text)) {
            Some((_, check)) => Some(*check),
            None => reader.refuse(item, path, "a kind of check", "\"tcp\", \"http\", \"websocket\""),
        }
    }

    fn write(&self) -> String {
        quote(CHECKS.iter().find(|(_, check)| check == self).map_or("tcp", |(name, _)| name))
    }
}

/// From one status to another, both included: `"200-399"`, `"204"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statuses(pub u16, pub u16);

impl Statuses {
    pub fn contains(self, status: u16) -> bool {
        (self.0..=self.1).contains(&status)
    }
}

impl Value for Statuses {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Statuses> {
        let text = match &item.value {
            Raw::Integer(n) => Some(n.to_string()),
            _ => item.as_text().map(str::to_owned),
        };
        let found = text.and_then(|text| {
            let (low, high) = text.split_once('-').unwrap_or((&text, &text));
            Some(Statuses(low.parse().ok()?, high.parse().ok()?))
        });
        match found {
            Some(found) if (100..=599).contains(&found.0) && (found.0..=599).contains(&found.1) => {
                Some(found)
            }
            _ => reader.refuse(item, path, "a range of statuses", "\"200-399\", \"204\""),
        }
    }

    fn write(&self) -> String {
        quote(&if self.0 == self.1 { self.0.to_string() } else { format!("{}-{}", self.0, self.1) })
    }
}
