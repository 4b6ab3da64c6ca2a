//! `[proxy]`: tier 1.

use crate::section::{Field, Reader, Section, Value, keys};
use crate::tree::{Item, Raw};
use crate::units::{Bytes, Cidr, Rate};
use crate::write::{Writer, quote};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct Proxy {
    pub listen: Vec<SocketAddr>,
    /// Worker threads; 0: one per core.
    pub threads: usize,
    /// Peers whose forwarded headers count.
    pub trusted: Vec<Cidr>,
    /// Open client connections in this process; over it 503 with Retry-After. 0: no limit.
    pub max_connections: usize,
    /// Open client connections per address (IPv6: per `ipv6_prefix`); over it 503. 0: no limit.
    pub max_connections_per_ip: usize,
    /// WebSocket handshakes per address; over it 429 with Retry-After. `None`: no limit ("0/s").
    pub handshake_rate: Option<Rate>,
    /// How many may come at once before the rate counts.
    pub handshake_burst: u32,
    /// Bits of an IPv6 address that make one client.
    pub ipv6_prefix: u8,
    /// Total time for a request head, whatever the drip; over it 408.
    pub head_timeout: Duration,
    /// Over it 431.
    pub head_size: usize,
    /// A kept-alive connection without a request is closed after this.
    pub keepalive_timeout: Duration,
    /// TCP connect to one server.
    pub connect_timeout: Duration,
    /// Servers of the ring tried for one client, the first included.
    pub connect_tries: u32,
    /// From the request sent to a server to the head of its answer.
    pub handshake_timeout: Duration,
    /// A tunnel without a byte in either direction is closed after this. Zero: never.
    pub idle_timeout: Duration,
    /// How long a drain may take before tunnels are closed.
    pub drain_timeout: Duration,
    pub breaker: Breaker,
    pub upstream: BTreeMap<String, Upstream>,
    /// First match wins.
    pub route: Vec<Route>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Breaker {
    /// Consecutive failures of one server that open its breaker.
    pub failures: u32,
    pub open_for: Duration,
    pub open_max: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// `host:port`; names are resolved at start.
    pub servers: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Exact host name, without port, any case; `None`: any.
    pub host: Option<String>,
    /// Path prefix, at a `/` boundary; `None`: any.
    pub path: Option<String>,
    /// An upstream's name. `"node"`: the node tier of this process, unless `[proxy.upstream.node]` lists nodes.
    pub to: String,
    pub sticky: Sticky,
}

/// The key of consistent-hash routing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sticky {
    /// The client's address.
    Ip,
    Header(String),
    Cookie(String),
    Query(String),
}

/// The shortest deadline that makes sense; a deadline is never off.
const TICK: Duration = Duration::from_millis(1);

keys!(Proxy {
    listen,
    threads in 0..=1024,
    trusted,
    max_connections,
    max_connections_per_ip,
    handshake_rate,
    handshake_burst in 1..,
    ipv6_prefix in 1..=128,
    head_timeout in TICK..,
    head_size as Bytes in Bytes(1024)..=Bytes(1 << 20),
    keepalive_timeout in TICK..,
    connect_timeout in TICK..,
    connect_tries in 1..=100,
    handshake_timeout in TICK..,
    idle_timeout,
    drain_timeout,
    breaker,
    upstream,
    route,
});

keys!(Breaker { failures in 1.., open_for in TICK.., open_max in TICK.. });

/// `[proxy.upstream.NAME]`
impl Field for BTreeMap<String, Upstream> {
    fn read_field(section: &mut Section<'_, '_>, key: &'static str) -> Self {
        let path = section.path(key);
        let Some(item) = section.given(key) else { return BTreeMap::new() };
        let Some(table) = item.as_table() else {
            let _: Option<()> =
                section.reader.refuse(item, &path, "a table", "[proxy.upstream.NAME] with servers");
            return BTreeMap::new();
        };
        let defaults = section.reader.defaults;
        let mut upstreams = BTreeMap::new();
        for (name, item) in table {
            let path = format!("{path}.{name}");
            if !is_name(name) {
                let text = format!(
                    "{name:?} is not an upstream's name; accepted: letters, digits, - and _, 64 at most"
                );
                section.reader.mistake(&item.key_place, &path, text);
            }
            let servers = section.table(Some(item), path, defaults, |s| {
                s.need("servers", "a list of \"HOST:PORT\", such as [\"127.0.0.1:3000\"]")
            });
            upstreams.insert(name.clone(), Upstream { servers: servers.unwrap_or_default() });
        }
        upstreams
    }

    fn write_field(&self, writer: &mut Writer<'_>, key: &str) {
        for (name, upstream) in self {
            writer.section(&format!("{key}.{name}"), |w| w.value("servers", upstream.servers.write()));
        }
    }
}

/// Short, and safe in metrics and variables.
pub(crate) fn is_name(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=64).contains(&text.len()) && text.bytes().all(fits)
}

/// `[[proxy.route]]`
impl Field for Vec<Route> {
    fn read_field(section: &mut Section<'_, '_>, key: &'static str) -> Self {
        let path = section.path(key);
        let Some(item) = section.given(key).or_else(|| section.default(key)) else { return Vec::new() };
        let Raw::List(items) = &item.value else {
            let _: Option<()> =
                section.reader.refuse(item, &path, "a list of routes", "[[proxy.route]] with to");
            return Vec::new();
        };
        let defaults = section.reader.defaults;
        let mut routes = Vec::new();
        for (i, item) in items.iter().enumerate() {
            routes.push(section.table(Some(item), format!("{path}[{i}]"), defaults, |s| Route {
                host: s.find("host"),
                path: s.find("path"),
                to: s.need("to", "an upstream's name, or \"node\"").unwrap_or_default(),
                sticky: s.find("sticky").unwrap_or(Sticky::Ip),
            }));
        }
        routes
    }

    fn write_field(&self, writer: &mut Writer<'_>, key: &str) {
        for (i, route) in self.iter().enumerate() {
            writer.list_item(key, &i.to_string(), |w| {
                if let Some(host) = &route.host {
                    w.value("host", quote(host));
                }
                if let Some(path) = &route.path {
                    w.value("path", quote(path));
                }
                w.value("to", quote(&route.to));
                w.value("sticky", route.sticky.write());
            });
        }
    }
}

impl Value for Sticky {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Sticky> {
        let accepted = "{ by = \"ip\" }, or { by = \"header\", name = \"…\" } with header, cookie or query";
        let Some(table) = item.as_table() else {
            return reader.refuse(item, path, "a sticky key", accepted);
        };
        let mut sound = true;
        for (key, item) in table.iter().filter(|(key, _)| !matches!(key.as_str(), "by" | "name")) {
            reader.mistake(&item.key_place, &format!("{path}.{key}"), "unknown key; accepted here: by, name");
            sound = false;
        }
        let name = match table.get("name") {
            None => None,
            Some(item) => match item.as_text() {
                Some(name) if is_token(name) => Some(name.to_owned()),
                _ => {
                    let name_path = format!("{path}.name");
                    return reader.refuse(item, &name_path, "a name", "letters, digits and !#$%&'*+-.^_`|~");
                }
            },
        };
        let Some(by) = table.get("by") else {
            reader.mistake(&item.place, path, format!("has no \"by\"; accepted: {accepted}"));
            return None;
        };
        let sticky = match (by.as_text(), name) {
            (Some("ip"), None) => Sticky::Ip,
            (Some("header"), Some(name)) => Sticky::Header(name),
            (Some("cookie"), Some(name)) => Sticky::Cookie(name),
            (Some("query"), Some(name)) => Sticky::Query(name),
            (Some("ip"), Some(_)) => {
                reader.mistake(&by.place, path, format!("by ip takes no name; accepted: {accepted}"));
                return None;
            }
            (Some("header" | "cookie" | "query"), None) => {
                reader.mistake(&by.place, path, format!("has no name; accepted: {accepted}"));
                return None;
            }
            _ => return reader.refuse(by, &format!("{path}.by"), "a sticky key", accepted),
        };
        sound.then_some(sticky)
    }

    fn write(&self) -> String {
        let (by, name) = match self {
            Sticky::Ip => return "{ by = \"ip\" }".to_owned(),
            Sticky::Header(name) => ("header", name),
            Sticky::Cookie(name) => ("cookie", name),
            Sticky::Query(name) => ("query", name),
        };
        format!("{{ by = {}, name = {} }}", quote(by), quote(name))
    }
}

/// RFC 9110 §5.6.2: what header and cookie names are made of.
fn is_token(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    (1..=256).contains(&text.len()) && text.bytes().all(fits)
}
