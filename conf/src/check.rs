//! Rules across keys and sections: each value alone is sound, together they are not.
//!
//! A rule names every key it looked at. It is silent when one of them has a mistake of its own: what
//! was meant there is not known.

mod acme;
mod admission;
mod broker;
mod listeners;
mod node;
mod proxy;
mod quic;
mod reach;
mod route;
mod tls;

use crate::Config;
use crate::error::{Mistake, Place};
use crate::section::Reader;
use std::collections::BTreeMap;

pub(crate) fn check(config: &Config, reader: &mut Reader<'_>, whole: &Place) {
    let mut rules =
        Rules { config, places: &reader.places, earlier: &reader.mistakes, whole, found: Found::default() };
    rules.roles();
    rules.telemetry();
    rules.listeners();
    rules.exposed();
    rules.placeholders();
    if config.roles.proxy {
        rules.tls();
        rules.upstreams();
        rules.routes();
        rules.tunnels();
        rules.quic();
        rules.admission();
        rules.tokens();
        rules.acme();
    }
    if config.roles.node {
        rules.node();
        rules.brokers();
        rules.channels();
    }
    if config.roles.broker {
        rules.broker();
    }
    let Found { mistakes, warnings } = rules.found;
    reader.mistakes.extend(mistakes);
    reader.warnings.extend(warnings);
}

#[derive(Default)]
struct Found {
    mistakes: Vec<Mistake>,
    warnings: Vec<Mistake>,
}

struct Rules<'a> {
    config: &'a Config,
    places: &'a BTreeMap<String, Place>,
    earlier: &'a [Mistake],
    whole: &'a Place,
    found: Found,
}

impl Rules<'_> {
    /// The first key is the one to blame; the place is that of the first that was given.
    fn mistake(&mut self, keys: &[&str], text: impl Into<String>) {
        if let Some(mistake) = self.found_at(keys, text) {
            self.found.mistakes.push(mistake);
        }
    }

    fn warn(&mut self, keys: &[&str], text: impl Into<String>) {
        if let Some(mistake) = self.found_at(keys, text) {
            self.found.warnings.push(mistake);
        }
    }

    fn found_at(&self, keys: &[&str], text: impl Into<String>) -> Option<Mistake> {
        if keys.iter().any(|key| self.is_bad(key)) {
            return None;
        }
        let exact = keys.iter().find_map(|key| self.places.get(*key));
        let around = || keys.iter().find_map(|key| self.place(key));
        let place = exact.or_else(around).unwrap_or(self.whole).clone();
        Some(Mistake { place, key: keys.first()?.to_string(), text: text.into() })
    }

    /// Where a key was given, or the nearest table around it.
    fn place(&self, key: &str) -> Option<&Place> {
        let mut key = key;
        loop {
            if let Some(place) = self.places.get(key) {
                return Some(place);
            }
            key = &key[..key.rfind(['.', '['])?];
        }
    }

    fn is_bad(&self, key: &str) -> bool {
        let below = |long: &str, short: &str| {
            long.strip_prefix(short).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.earlier.iter().any(|m| !m.key.is_empty() && (below(&m.key, key) || below(key, &m.key)))
    }

    fn is_given(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    fn roles(&mut self) {
        let roles = self.config.roles;
        let sections = [
            ("proxy", "proxy", roles.proxy),
            ("node", "node", roles.node),
            ("channel", "node", roles.node),
            ("broker", "broker", roles.broker),
        ];
        for (section, role, listed) in sections {
            if !listed
                && let Some(place) = self.places.get(section)
                && !self.is_bad("roles")
            {
                let text = format!(
                    "this process has no {role} role; accepted: \"{role}\" in roles, or no [{section}] section"
                );
                self.found.mistakes.push(Mistake { place: place.clone(), key: section.to_owned(), text });
            }
        }
    }

    /// The shape of a `tracing` filter; target names are free.
    fn telemetry(&mut self) {
        let levels = ["off", "error", "warn", "info", "debug", "trace"];
        let filter = &self.config.telemetry.filter;
        // Spans and fields have commas and signs of their own; what reads the filter judges those.
        if filter.is_empty() || filter.contains(['[', ']', '{', '}']) {
            return;
        }
        for part in filter.split(',').map(str::trim) {
            let sound = match part.rsplit_once('=') {
                Some((_, level)) => levels.contains(&level.to_lowercase().as_str()),
                None => !part.is_empty(),
            };
            if !sound {
                let text = format!(
                    "{part:?} is not a part of a log filter; accepted: a level ({}) or TARGET=LEVEL",
                    levels.join(", ")
                );
                self.mistake(&["telemetry.filter"], text);
            }
        }
    }
}
