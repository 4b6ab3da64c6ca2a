//! Who may come in: `[proxy.admission]`, and of a route `limits` and the keys of [`Gate`].

use crate::section::{Reader, Section, Value, keys};
use crate::tree::{Item, Raw};
use crate::units::{Cidr, Rate};
use crate::value::words;
use crate::write::{Writer, quote};
use std::ops::RangeFrom;
use std::time::Duration;

/// The budget of the whole process for WebSocket handshakes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Admission {
    /// Over it 503 with Retry-After. `None`: no limit ("0/s").
    pub rate: Option<Rate>,
    /// How many may come at once before the rate counts.
    pub burst: u32,
    /// Handshakes under way at once. 0: no limit.
    pub max_handshakes: usize,
    /// Of `max_handshakes`, for one address.
    pub max_share_per_ip: f64,
    /// How long a handshake may wait for its turn before it is refused.
    pub wait: Duration,
}

keys!(Admission {
    rate,
    burst in 1..,
    max_handshakes,
    max_share_per_ip in 0.0..=1.0,
    wait in Duration::ZERO..=Duration::from_secs(10),
});

/// Limits of one route; all off unless they are set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouteLimits {
    /// Open WebSockets and requests under way. 0: no limit, as below.
    pub max_connections: usize,
    pub max_connections_per_ip: usize,
    /// Per token subject, or per sticky key where the route asks for no token.
    pub max_connections_per_key: usize,
    /// WebSocket handshakes per address.
    pub handshake_rate: Option<Rate>,
    pub handshake_burst: u32,
    /// WebSocket handshakes per key.
    pub key_rate: Option<Rate>,
    pub key_burst: u32,
    /// Other requests per address.
    pub request_rate: Option<Rate>,
    pub request_burst: u32,
}

impl Default for RouteLimits {
    fn default() -> RouteLimits {
        RouteLimits {
            max_connections: 0,
            max_connections_per_ip: 0,
            max_connections_per_key: 0,
            handshake_rate: None,
            handshake_burst: 40,
            key_rate: None,
            key_burst: 10,
            request_rate: None,
            request_burst: 100,
        }
    }
}

impl RouteLimits {
    /// `[proxy.route.limits]`, below the route.
    pub(crate) fn read(route: &mut Section<'_, '_>) -> RouteLimits {
        let off = RouteLimits::default();
        route.section("limits", |s| RouteLimits {
            max_connections: s.find("max_connections").unwrap_or(off.max_connections),
            max_connections_per_ip: s.find("max_connections_per_ip").unwrap_or(off.max_connections_per_ip),
            max_connections_per_key: s.find("max_connections_per_key").unwrap_or(off.max_connections_per_key),
            handshake_rate: s.find::<Option<Rate>>("handshake_rate").unwrap_or(off.handshake_rate),
            handshake_burst: find_from(s, "handshake_burst", 1..).unwrap_or(off.handshake_burst),
            key_rate: s.find::<Option<Rate>>("key_rate").unwrap_or(off.key_rate),
            key_burst: find_from(s, "key_burst", 1..).unwrap_or(off.key_burst),
            request_rate: s.find::<Option<Rate>>("request_rate").unwrap_or(off.request_rate),
            request_burst: find_from(s, "request_burst", 1..).unwrap_or(off.request_burst),
        })
    }

    pub(crate) fn write(&self, writer: &mut Writer<'_>) {
        if *self == RouteLimits::default() {
            return;
        }
        writer.section("limits", |w| {
            w.value("max_connections", self.max_connections.write());
            w.value("max_connections_per_ip", self.max_connections_per_ip.write());
            w.value("max_connections_per_key", self.max_connections_per_key.write());
            w.value("handshake_rate", self.handshake_rate.write());
            w.value("handshake_burst", self.handshake_burst.write());
            w.value("key_rate", self.key_rate.write());
            w.value("key_burst", self.key_burst.write());
            w.value("request_rate", self.request_rate.write());
            w.value("request_burst", self.request_burst.write());
        });
    }
}

/// Whom a route lets in; its keys stand in the route itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gate {
    /// Addresses; `[]`: all.
    pub allow: Vec<Cidr>,
    /// Goes over `allow`.
    pub deny: Vec<Cidr>,
    /// Pages that may open WebSockets, `*` as a wildcard; `[]`: any.
    pub origins: Vec<String>,
    /// Whether a WebSocket without `Origin` is refused, too.
    pub origin_required: bool,
    /// The name of a `[proxy.token.NAME]` that requests must satisfy.
    pub token: Option<String>,
}

impl Gate {
    pub(crate) fn read(route: &mut Section<'_, '_>) -> Gate {
        Gate {
            allow: route.find("allow").unwrap_or_default(),
            deny: route.find("deny").unwrap_or_default(),
            origins: route.find("origins").unwrap_or_default(),
            origin_required: route.find("origin_required").unwrap_or_default(),
            token: route.find("token"),
        }
    }

    pub(crate) fn write(&self, writer: &mut Writer<'_>) {
        for (key, ranges) in [("allow", &self.allow), ("deny", &self.deny)] {
            if !ranges.is_empty() {
                writer.value(key, ranges.write());
            }
        }
        if !self.origins.is_empty() {
            writer.value("origins", self.origins.write());
        }
        if self.origin_required {
            writer.value("origin_required", self.origin_required.write());
        }
        if let Some(token) = &self.token {
            writer.value("token", quote(token));
        }
    }
}

/// Whether connections of trusted peers begin with a header of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    Off,
    Optional,
    Required,
}

/// The header in which trusted peers name the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardedHeader {
    XForwardedFor,
    Forwarded,
}

words!(ProxyProtocol: "a setting of the PROXY protocol" {
    Off = "off", Optional = "optional", Required = "required"
});
words!(ForwardedHeader: "a header with the client's address" {
    XForwardedFor = "x-forwarded-for", Forwarded = "forwarded"
});

/// As [`Section::find`], within a range.
pub(super) fn find_from<T: Value + PartialOrd>(
    section: &mut Section<'_, '_>,
    key: &'static str,
    range: RangeFrom<T>,
) -> Option<T> {
    let value: T = section.find(key)?;
    if value >= range.start {
        return Some(value);
    }
    let (path, place) = (section.path(key), section.place_of(key));
    let text = format!("{} is out of range; accepted: {} or more", value.write(), range.start.write());
    section.reader.mistake(&place, &path, text);
    None
}

/// A table of texts by name, on one line: `{ sub = "X-Auth-Subject" }`.
impl Value for std::collections::BTreeMap<String, String> {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Self> {
        let Raw::Table(table) = &item.value else {
            return reader.refuse(item, path, "a table of names", "{ sub = \"X-Auth-Subject\" }");
        };
        let read = |(name, item): (&String, &Item)| {
            Some((name.clone(), String::read(item, &format!("{path}.{name}"), reader)?))
        };
        // All of them before the first that is wrong decides.
        let pairs: Vec<Option<(String, String)>> = table.iter().map(read).collect();
        pairs.into_iter().collect()
    }

    fn write(&self) -> String {
        let pairs: Vec<String> = self.iter().map(|(k, v)| format!("{} = {}", quote(k), quote(v))).collect();
        format!("{{ {} }}", pairs.join(", "))
    }
}
