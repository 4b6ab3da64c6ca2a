//! `sticky`: the key of a route that keeps a client on one server.

use crate::inline::Inline;
use crate::section::{Reader, Value};
use crate::tree::{Item, Raw};
use crate::units::duration_text;
use crate::write::quote;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sticky {
    /// The client's address.
    Ip,
    Header(String),
    Cookie(String),
    Query(String),
    /// A segment of the path, counted from 1.
    Segment(usize),
    /// A group of the route's `path_regex`, by its number or name.
    Group(String),
    /// A claim of the token that the proxy verified.
    Claim(String),
    /// A cookie of ours that names the server.
    Affinity(Affinity),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// The cookie's name.
    pub name: String,
    /// Zero: until the browser closes.
    pub ttl: Duration,
    pub secure: Secure,
    pub same_site: SameSite,
    pub path: String,
    pub domain: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secure {
    /// Where the client came by TLS.
    Auto,
    Always,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameSite {
    Strict,
    Lax,
    None,
}

impl Default for Affinity {
    fn default() -> Affinity {
        Affinity {
            name: "weir_affinity".into(),
            ttl: Duration::from_secs(24 * 3600),
            secure: Secure::Auto,
            same_site: SameSite::Lax,
            path: "/".into(),
            domain: None,
        }
    }
}

const ACCEPTED: &str = "{ by = \"ip\" }, { by = \"header\", name = \"…\" } with header, cookie, query or claim, { by = \"path\", segment = 2 }, { by = \"affinity\" }";

const KEYS: [&str; 9] = ["by", "name", "segment", "capture", "ttl", "secure", "same_site", "path", "domain"];

impl Value for Sticky {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Sticky> {
        Inline::read(item, path, reader, ("a sticky key", ACCEPTED, &KEYS), |s| {
            let by: String = s.need("by", ACCEPTED)?;
            if !matches!(by.as_str(), "path" | "ip")
                && let Some(item) = s.given("name")
                && !item.as_text().is_some_and(is_token)
            {
                return s.refuse("name", "a name", "letters, digits and !#$%&'*+-.^_`|~");
            }
            let name = |s: &mut Inline<'_, '_, '_>| s.need("name", ACCEPTED);
            match by.as_str() {
                "ip" => Some(Sticky::Ip),
                "header" => name(s).map(Sticky::Header),
                "cookie" => name(s).map(Sticky::Cookie),
                "query" => name(s).map(Sticky::Query),
                "claim" => name(s).map(Sticky::Claim),
                "path" => by_path(s),
                "affinity" => affinity(s).map(Sticky::Affinity),
                _ => s.refuse("by", "a sticky key", ACCEPTED),
            }
        })
    }

    fn write(&self) -> String {
        let (by, name) = match self {
            Sticky::Ip => return "{ by = \"ip\" }".to_owned(),
            Sticky::Segment(n) => return format!("{{ by = \"path\", segment = {n} }}"),
            Sticky::Group(group) => return format!("{{ by = \"path\", capture = {} }}", quote(group)),
            Sticky::Affinity(affinity) => return affinity.write(),
            Sticky::Header(name) => ("header", name),
            Sticky::Cookie(name) => ("cookie", name),
            Sticky::Query(name) => ("query", name),
            Sticky::Claim(name) => ("claim", name),
        };
        format!("{{ by = {}, name = {} }}", quote(by), quote(name))
    }
}

fn by_path(s: &mut Inline<'_, '_, '_>) -> Option<Sticky> {
    match (s.find::<usize>("segment"), s.find::<String>("capture")) {
        (Some(0), None) => s.refuse("segment", "a segment of the path", "1 or more; /rooms/7 has two"),
        (Some(n), None) => Some(Sticky::Segment(n)),
        (None, Some(group)) => Some(Sticky::Group(group)),
        _ => {
            s.mistake("needs one of two; accepted: segment = 2, or capture = \"room\" with a path_regex that has (?P<room>…)");
            None
        }
    }
}

fn affinity(s: &mut Inline<'_, '_, '_>) -> Option<Affinity> {
    let default = Affinity::default();
    let affinity = Affinity {
        name: s.find("name").unwrap_or(default.name),
        ttl: s.find("ttl").unwrap_or(default.ttl),
        secure: secure(s).unwrap_or(default.secure),
        same_site: same_site(s).unwrap_or(default.same_site),
        path: s.find("path").unwrap_or(default.path),
        domain: s.find("domain"),
    };
    let fits = |b: u8| b.is_ascii_graphic() && b != b';' && b != b',';
    if !affinity.path.starts_with('/') || !affinity.path.bytes().all(fits) {
        return s.refuse("path", "a cookie's path", "\"/…\" without ; , and spaces");
    }
    let name = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    if affinity.domain.as_ref().is_some_and(|d| d.is_empty() || !d.bytes().all(name)) {
        return s.refuse("domain", "a cookie's domain", "a host name, such as \"example.com\"");
    }
    if affinity.same_site == SameSite::None && affinity.secure != Secure::Always {
        s.mistake("same_site \"None\" is taken by browsers only with Secure; accepted: secure = true, or \"Lax\", \"Strict\"");
    }
    Some(affinity)
}

fn secure(s: &mut Inline<'_, '_, '_>) -> Option<Secure> {
    match &s.given("secure")?.value {
        Raw::Bool(true) => Some(Secure::Always),
        Raw::Bool(false) => Some(Secure::Never),
        Raw::Text(text) if text == "auto" => Some(Secure::Auto),
        _ => s.refuse("secure", "a choice", "true, false, \"auto\""),
    }
}

fn same_site(s: &mut Inline<'_, '_, '_>) -> Option<SameSite> {
    match s.given("same_site")?.as_text() {
        Some("Strict") => Some(SameSite::Strict),
        Some("Lax") => Some(SameSite::Lax),
        Some("None") => Some(SameSite::None),
        _ => s.refuse("same_site", "a choice", "\"Strict\", \"Lax\", \"None\""),
    }
}

impl Affinity {
    fn write(&self) -> String {
        let secure = match self.secure {
            Secure::Auto => "\"auto\"",
            Secure::Always => "true",
            Secure::Never => "false",
        };
        let domain = self.domain.as_ref().map(|d| format!(", domain = {}", quote(d))).unwrap_or_default();
        format!(
            "{{ by = \"affinity\", name = {}, ttl = {}, secure = {secure}, same_site = \"{}\", path = {}{domain} }}",
            quote(&self.name),
            quote(&duration_text(self.ttl)),
            self.same_site.as_str(),
            quote(&self.path)
        )
    }
}

impl SameSite {
    /// As it stands in the cookie.
    pub fn as_str(self) -> &'static str {
        match self {
            SameSite::Strict => "Strict",
            SameSite::Lax => "Lax",
            SameSite::None => "None",
        }
    }
}

/// RFC 9110 §5.6.2: what names of headers, cookies and methods are made of.
pub(crate) fn is_token(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    (1..=256).contains(&text.len()) && text.bytes().all(fits)
}
