//! The path as the server gets it: `strip_prefix`, `replace_prefix` or `rewrite`.

use super::pattern::Pattern;
use super::template::{Template, Var};
use crate::inline::Inline;
use crate::section::{Reader, Section, Value};
use crate::tree::{Item, Raw};
use crate::write::{Writer, quote};

#[derive(Clone, Debug, PartialEq)]
pub enum Rewrite {
    /// What the path begins with, up to a `/`, and what stands in its place. Another path stays as it is.
    Prefix { from: String, to: String },
    /// A path that matches as a whole, and what it becomes. Another path stays as it is.
    Regex { regex: Pattern, to: Template },
}

impl Rewrite {
    /// At most one of the three. `path` is the route's.
    pub(super) fn read(s: &mut Section<'_, '_>, path: Option<&str>) -> Option<Rewrite> {
        let given = ["strip_prefix", "replace_prefix", "rewrite"].map(|key| s.given(key).map(|_| key));
        let mut given = given.into_iter().flatten();
        let key = given.next()?;
        let wrong = |s: &mut Section<'_, '_>, key: &str, text: &str| {
            let (place, at) = (s.place_of(key), s.path(key));
            s.reader.mistake(&place, &at, text);
            None
        };
        if let Some(second) = given.next() {
            return wrong(
                s,
                second,
                "a path is changed in one way; accepted: one of strip_prefix, replace_prefix, rewrite",
            );
        }
        let needs_path =
            "replaces the route's path, and there is none; accepted: path = \"/…\" in this route";
        match key {
            "strip_prefix" => match (s.find::<Strip>(key)?, path) {
                (Strip::Nothing, _) => None,
                (Strip::Given(from), _) => Some(Rewrite::Prefix { from, to: String::new() }),
                (Strip::OwnPath, Some(path)) => {
                    Some(Rewrite::Prefix { from: path.into(), to: String::new() })
                }
                (Strip::OwnPath, None) => wrong(s, key, needs_path),
            },
            "replace_prefix" => {
                let to: String = s.find(key)?;
                match path {
                    Some(path) => Some(Rewrite::Prefix { from: path.into(), to }),
                    None => wrong(s, key, needs_path),
                }
            }
            _ => s.find(key),
        }
    }

    pub(super) fn write(&self, w: &mut Writer<'_>) {
        match self {
            Rewrite::Prefix { from, to } if to.is_empty() => w.value("strip_prefix", quote(from)),
            Rewrite::Prefix { to, .. } => w.value("replace_prefix", quote(to)),
            Rewrite::Regex { .. } => w.value("rewrite", Value::write(self)),
        }
    }
}

impl Value for Rewrite {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Rewrite> {
        let accepted = "{ regex = \"/v1/(.*)\", to = \"/{1}\" }";
        Inline::read(item, path, reader, ("a rewrite", accepted, &["regex", "to"]), |s| {
            let regex: Option<Pattern> = s.need("regex", accepted);
            let to: Option<String> = s.need("to", accepted);
            let (regex, to) = (regex?, to?);
            match Template::parse(&to, |name| regex.group(name).map(Var::Group)) {
                Ok(to) if to.text().starts_with('/') && !to.text().contains(['?', '#', ' ', '\t']) => {
                    Some(Rewrite::Regex { regex, to })
                }
                Ok(_) => s.refuse("to", "a path", "\"/…\" without ?, # and spaces"),
                Err(why) => {
                    s.refuse("to", &format!("a path: it {why}"), "{1} or {name} for the groups of regex")
                }
            }
        })
    }

    fn write(&self) -> String {
        match self {
            Rewrite::Regex { regex, to } => {
                format!("{{ regex = {}, to = {} }}", regex.write(), quote(to.text()))
            }
            Rewrite::Prefix { to, .. } => quote(to),
        }
    }
}

/// `true`: the route's own path; `false`: nothing; or a prefix.
enum Strip {
    Nothing,
    OwnPath,
    Given(String),
}

impl Value for Strip {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Strip> {
        match &item.value {
            Raw::Bool(true) => Some(Strip::OwnPath),
            Raw::Bool(false) => Some(Strip::Nothing),
            Raw::Text(text) => Some(Strip::Given(text.clone())),
            _ => reader.refuse(item, path, "a prefix", "true for the route's path, or \"/…\""),
        }
    }

    fn write(&self) -> String {
        match self {
            Strip::Nothing => "false".into(),
            Strip::OwnPath => "true".into(),
            Strip::Given(prefix) => quote(prefix),
        }
    }
}
