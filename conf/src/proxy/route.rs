//! `[[proxy.route]]`: which request goes where, what is changed on the way, and what keeps a client
//! on one server.

mod action;
mod headers;
mod pattern;
mod rewrite;
mod sticky;
mod template;

pub use action::{Action, Answer, Redirect};
pub use headers::{HeaderEdits, HeaderMatch, HeaderTest, HeaderValues};
pub use pattern::Pattern;
pub use rewrite::Rewrite;
pub(crate) use sticky::is_token;
pub use sticky::{Affinity, SameSite, Secure, Sticky};
pub use template::{Part, Template, Var};

use super::admission::{Gate, RouteLimits};
use super::tunnel::TunnelOverride;
use crate::section::{Field, Reader, Section, Value};
use crate::tree::{Item, Raw};
use crate::units::Bytes;
use crate::write::{Writer, quote};
use std::time::Duration;

/// A request is this route's if all that is given here fits.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// In logs and metrics; `None`: its place in the list, `route[2]`.
    pub name: Option<String>,
    /// Host names without port, any case; `*.example.com`: all names below it. Empty: any.
    pub host: Vec<String>,
    /// Prefix, at a `/` boundary.
    pub path: Option<String>,
    pub path_exact: Option<String>,
    /// Against the whole path.
    pub path_regex: Option<Pattern>,
    /// Each of them.
    pub header: Vec<HeaderMatch>,
    /// One of them; empty: any.
    pub method: Vec<String>,
    /// WebSocket handshakes only, or anything else only.
    pub websocket: Option<bool>,
    pub action: Action,
    pub rewrite: Option<Rewrite>,
    pub request_headers: HeaderEdits,
    pub response_headers: HeaderEdits,
    pub host_header: HostHeader,
    pub sticky: Sticky,
    /// These replace those of `[proxy]`.
    pub connect_timeout: Option<Duration>,
    pub handshake_timeout: Option<Duration>,
    pub read_timeout: Option<Duration>,
    pub write_timeout: Option<Duration>,
    pub max_body_size: Option<usize>,
    /// Whether its requests are in the access log.
    pub access_log: bool,
    /// Over `[proxy.tunnel]`, key by key.
    pub tunnel: TunnelOverride,
    /// Whom it lets in.
    pub gate: Gate,
    pub limits: RouteLimits,
}

/// The `Host` that a server gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostHeader {
    /// As the client sent it.
    #[default]
    Client,
    /// The server's own name.
    Upstream,
    Literal(String),
}

impl Route {
    /// Every request, to this upstream.
    pub fn to(upstream: impl Into<String>) -> Route {
        Route {
            name: None,
            host: Vec::new(),
            path: None,
            path_exact: None,
            path_regex: None,
            header: Vec::new(),
            method: Vec::new(),
            websocket: None,
            action: Action::To(upstream.into()),
            rewrite: None,
            request_headers: HeaderEdits::default(),
            response_headers: HeaderEdits::default(),
            host_header: HostHeader::Client,
            sticky: Sticky::Ip,
            connect_timeout: None,
            handshake_timeout: None,
            read_timeout: None,
            write_timeout: None,
            max_body_size: None,
            access_log: true,
            tunnel: TunnelOverride::default(),
            gate: Gate::default(),
            limits: RouteLimits::default(),
        }
    }

    /// The upstream's name, if it leads to one.
    pub fn upstream(&self) -> Option<&str> {
        match &self.action {
            Action::To(to) => Some(to),
            _ => None,
        }
    }

    fn read(s: &mut Section<'_, '_>) -> Route {
        let path: Option<String> = s.find("path");
        Route {
            name: s.find("name"),
            host: s.find("host").unwrap_or_default(),
            path_exact: s.find("path_exact"),
            path_regex: s.find("path_regex"),
            header: s.find("header").unwrap_or_default(),
            method: s.find("method").unwrap_or_default(),
            websocket: s.find("websocket"),
            action: Action::read(s),
            rewrite: Rewrite::read(s, path.as_deref()),
            path,
            request_headers: s.find("request_headers").unwrap_or_default(),
            response_headers: s.find("response_headers").unwrap_or_default(),
            host_header: s.find("host_header").unwrap_or_default(),
            sticky: s.find("sticky").unwrap_or(Sticky::Ip),
            connect_timeout: deadline(s, "connect_timeout"),
            handshake_timeout: deadline(s, "handshake_timeout"),
            read_timeout: deadline(s, "read_timeout"),
            write_timeout: deadline(s, "write_timeout"),
            max_body_size: s.find::<Bytes>("max_body_size").map(usize::from),
            access_log: s.find("access_log").unwrap_or(true),
            tunnel: Field::read_field(s, "tunnel"),
            gate: Gate::read(s),
            limits: RouteLimits::read(s),
        }
    }

    fn write(&self, w: &mut Writer<'_>) {
        let mut text = |key: &str, value: &Option<String>| {
            if let Some(value) = value {
                w.value(key, quote(value));
            }
        };
        text("name", &self.name);
        text("path", &self.path);
        text("path_exact", &self.path_exact);
        let mut given = |key: &str, is_given: bool, value: &dyn Fn() -> String| {
            if is_given {
                w.value(key, value());
            }
        };
        given("host", !self.host.is_empty(), &|| self.host.write());
        given("header", !self.header.is_empty(), &|| self.header.write());
        given("method", !self.method.is_empty(), &|| self.method.write());
        given("request_headers", !self.request_headers.is_empty(), &|| self.request_headers.write());
        given("response_headers", !self.response_headers.is_empty(), &|| self.response_headers.write());
        given("host_header", self.host_header != HostHeader::Client, &|| self.host_header.write());
        given("access_log", !self.access_log, &|| self.access_log.write());
        if let Some(pattern) = &self.path_regex {
            w.value("path_regex", pattern.write());
        }
        if let Some(websocket) = self.websocket {
            w.value("websocket", websocket.write());
        }
        self.action.write(w);
        if let Some(rewrite) = &self.rewrite {
            rewrite.write(w);
        }
        w.value("sticky", self.sticky.write());
        for (key, deadline) in [
            ("connect_timeout", self.connect_timeout),
            ("handshake_timeout", self.handshake_timeout),
            ("read_timeout", self.read_timeout),
            ("write_timeout", self.write_timeout),
        ] {
            if let Some(deadline) = deadline {
                w.value(key, deadline.write());
            }
        }
        if let Some(size) = self.max_body_size {
            w.value("max_body_size", Bytes(size).write());
        }
        self.gate.write(w);
        self.tunnel.write_field(w, "tunnel");
        self.limits.write(w);
    }
}

/// A deadline is never off.
fn deadline(s: &mut Section<'_, '_>, key: &'static str) -> Option<Duration> {
    let found: Duration = s.find(key)?;
    if found.is_zero() {
        let (place, path) = (s.place_of(key), s.path(key));
        s.reader.mistake(&place, &path, "\"0s\" is out of range; accepted: \"1ms\" or more");
        return None;
    }
    Some(found)
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
            routes.push(section.table(Some(item), format!("{path}[{i}]"), defaults, Route::read));
        }
        routes
    }

    fn write_field(&self, writer: &mut Writer<'_>, key: &str) {
        for (i, route) in self.iter().enumerate() {
            writer.list_item(key, &i.to_string(), |w| route.write(w));
        }
    }
}

impl Value for HostHeader {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<HostHeader> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b);
        match item.as_text() {
            Some("client") => Some(HostHeader::Client),
            Some("upstream") => Some(HostHeader::Upstream),
            Some(host) if (1..=255).contains(&host.len()) && host.bytes().all(fits) => {
                Some(HostHeader::Literal(host.to_owned()))
            }
            _ => reader.refuse(
                item,
                path,
                "a Host",
                "\"client\", \"upstream\", or a host with or without port",
            ),
        }
    }

    fn write(&self) -> String {
        quote(match self {
            HostHeader::Client => "client",
            HostHeader::Upstream => "upstream",
            HostHeader::Literal(host) => host,
        })
    }
}
