//! `[[proxy.route]]`: which request goes where, and what keeps a client on one server.

use super::admission::{Gate, RouteLimits};
use crate::section::{Field, Reader, Section, Value};
use crate::tree::{Item, Raw};
use crate::write::{Writer, quote};

#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Exact host name, without port, any case; `None`: any.
    pub host: Option<String>,
    /// Path prefix, at a `/` boundary; `None`: any.
    pub path: Option<String>,
    /// An upstream's name. `"node"`: the node tier of this process, unless `[proxy.upstream.node]` lists nodes.
    pub to: String,
    pub sticky: Sticky,
    pub gate: Gate,
    pub limits: RouteLimits,
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
                gate: Gate::read(s),
                limits: RouteLimits::read(s),
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
                route.gate.write(w);
                route.limits.write(w);
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
pub(crate) fn is_token(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    (1..=256).contains(&text.len()) && text.bytes().all(fits)
}
