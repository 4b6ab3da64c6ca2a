//! Headers that a route removes, sets and adds, and the text that its templates make. Pure.

use crate::guarded;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use pingora_http::ResponseHeader;
use std::net::IpAddr;
use weir_conf::proxy::{HeaderEdits, HeaderValues, Part, Template, Var};
use weir_wire::id::ConnId;

/// What the placeholders of a header stand for.
#[derive(Clone)]
pub struct Vars {
    pub client: IpAddr,
    pub host: Box<str>,
    pub conn: ConnId,
}

#[derive(Default)]
pub struct Edits {
    remove: Vec<HeaderName>,
    set: Vec<(HeaderName, Template)>,
    add: Vec<(HeaderName, Template)>,
}

/// Headers of our own, or of Pingora's.
pub trait Fields {
    fn remove(&mut self, name: &HeaderName);
    fn set(&mut self, name: &HeaderName, value: HeaderValue);
    fn add(&mut self, name: &HeaderName, value: HeaderValue);
}

impl Edits {
    pub fn new(conf: &HeaderEdits) -> Edits {
        Edits {
            remove: conf.remove.iter().filter_map(|name| name.parse().ok()).collect(),
            set: named(&conf.set),
            add: named(&conf.add),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    /// To a request. What is removed or set goes with all that a server may read as it.
    pub fn apply_to_request(&self, headers: &mut HeaderMap, vars: &Vars) {
        for name in self.remove.iter().chain(self.set.iter().map(|(name, _)| name)) {
            guarded::remove(headers, name.as_str());
        }
        self.apply(headers, vars);
    }

    pub fn apply(&self, fields: &mut impl Fields, vars: &Vars) {
        for name in &self.remove {
            fields.remove(name);
        }
        for (name, template) in &self.set {
            match value(template, vars) {
                Some(value) => fields.set(name, value),
                None => fields.remove(name),
            }
        }
        for (name, template) in &self.add {
            if let Some(value) = value(template, vars) {
                fields.add(name, value);
            }
        }
    }
}

pub fn named(values: &HeaderValues) -> Vec<(HeaderName, Template)> {
    let parsed = values.0.iter().filter_map(|(name, value)| Some((name.parse().ok()?, value.clone())));
    parsed.collect()
}

/// `None`: what a placeholder brought in cannot stand in a header.
pub fn value(template: &Template, vars: &Vars) -> Option<HeaderValue> {
    let text = expand(template, |var, out| match var {
        Var::ClientIp => out.push_str(&vars.client.to_string()),
        Var::Host => out.push_str(&vars.host),
        Var::RequestId => out.push_str(&vars.conn.to_string()),
        _ => {}
    });
    HeaderValue::try_from(text).ok()
}

pub fn expand(template: &Template, mut put: impl FnMut(Var, &mut String)) -> String {
    let mut out = String::with_capacity(64);
    for part in template.parts() {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Var(var) => put(*var, &mut out),
        }
    }
    out
}

impl Fields for HeaderMap {
    fn remove(&mut self, name: &HeaderName) {
        self.remove(name);
    }

    fn set(&mut self, name: &HeaderName, value: HeaderValue) {
        self.insert(name, value);
    }

    fn add(&mut self, name: &HeaderName, value: HeaderValue) {
        self.append(name, value);
    }
}

/// It has a limit of its own on headers; one that is too many is left out.
impl Fields for ResponseHeader {
    fn remove(&mut self, name: &HeaderName) {
        self.remove_header(name);
    }

    fn set(&mut self, name: &HeaderName, value: HeaderValue) {
        let _full = self.insert_header(name, value);
    }

    fn add(&mut self, name: &HeaderName, value: HeaderValue) {
        let _full = self.append_header(name, value);
    }
}
