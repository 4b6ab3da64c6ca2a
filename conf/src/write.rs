//! The effective conf as TOML, each value with where it came from.

use crate::error::Place;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Collects sections, each whole before those below it, whatever the order of their keys.
pub(crate) struct Writer<'a> {
    /// Where values were given; `None`: do not say.
    places: Option<&'a BTreeMap<String, Place>>,
    sections: Vec<Block>,
    /// The section that values go to.
    current: usize,
}

struct Block {
    header: String,
    /// TOML's dotted key of this section, and the key that messages use for it.
    path: String,
    shown: String,
    lines: Vec<(String, String)>,
}

impl<'a> Writer<'a> {
    pub fn new(places: Option<&'a BTreeMap<String, Place>>) -> Writer<'a> {
        let root =
            Block { header: String::new(), path: String::new(), shown: String::new(), lines: Vec::new() };
        Writer { places, sections: vec![root], current: 0 }
    }

    pub fn value(&mut self, key: &str, value: String) {
        let block = &mut self.sections[self.current];
        let comment = match self.places {
            Some(places) => source(places.get(&join(&block.shown, key))),
            None => String::new(),
        };
        block.lines.push((format!("{key} = {value}"), comment));
    }

    pub fn section(&mut self, key: &str, write: impl FnOnce(&mut Writer<'a>)) {
        let path = join(&self.sections[self.current].path, key);
        let shown = join(&self.sections[self.current].shown, key);
        self.block(format!("[{path}]"), path, shown, write);
    }

    /// One of a list of sections; `label` is its index or name in messages.
    pub fn list_item(&mut self, key: &str, label: &str, write: impl FnOnce(&mut Writer<'a>)) {
        let path = join(&self.sections[self.current].path, key);
        let shown = format!("{}[{label}]", join(&self.sections[self.current].shown, key));
        self.block(format!("[[{path}]]"), path, shown, write);
    }

    fn block(&mut self, header: String, path: String, shown: String, write: impl FnOnce(&mut Writer<'a>)) {
        let above = self.current;
        self.current = self.sections.len();
        self.sections.push(Block { header, path, shown, lines: Vec::new() });
        write(self);
        self.current = above;
    }

    pub fn finish(self) -> String {
        let mut out = String::new();
        for block in self.sections.iter().filter(|block| !block.lines.is_empty()) {
            if !block.header.is_empty() {
                let _ = writeln!(out, "\n{}", block.header);
            }
            let width = block.lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or(0).min(48);
            for (line, comment) in &block.lines {
                let _ = if comment.is_empty() {
                    writeln!(out, "{line}")
                } else {
                    writeln!(out, "{line:width$}  # {comment}")
                };
            }
        }
        out
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn source(place: Option<&Place>) -> String {
    let text = match place {
        None | Some(Place::Default) => "default".to_owned(),
        Some(Place::File { path, line, .. }) => format!("file {path}:{line}"),
        Some(place) => place.to_string(),
    };
    // A comment ends with its line; a path may hold anything.
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A TOML basic string.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
