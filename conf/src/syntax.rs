//! From TOML text to a [`Table`], with every mistake of syntax.
//!
//! The parser's own recovery loses what follows some mistakes. So a line with a mistake is taken
//! out and the rest is read again, until the rest is sound: then the meaning of all other lines
//! can be checked too, and one slip does not show up as ten.

use crate::error::{Mistake, Place};
use crate::tree::{Item, Raw, Table};
use std::ops::Range;
use std::sync::Arc;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Error};

/// More mistakes of syntax than this are not looked for: the file is no conf.
const ENOUGH: usize = 50;

/// What the sound lines of a text say, and what is wrong with the others.
pub(crate) struct Parsed {
    pub table: Table,
    pub mistakes: Vec<Mistake>,
}

pub(crate) fn parse(path: &str, text: &str) -> Parsed {
    let path: Arc<str> = path.into();
    let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
    let mut mistakes = Vec::new();
    loop {
        let text = lines.join("\n");
        let places = Places::new(&path, &text);
        let (tree, errors) = DeTable::parse_recoverable(&text);
        let tree = tree.get_ref();
        let (twice, broken): (Vec<&Error>, Vec<&Error>) = errors.iter().partition(|e| is_repetition(e));
        let Some(error) = broken.iter().min_by_key(|e| start(e)) else {
            mistakes.extend(twice.iter().map(|e| repetition(e, &text, &places)));
            return Parsed { table: table(tree, &places), mistakes };
        };
        let (at, mistake) = describe(error, &broken, tree, &text, &places);
        let line = places.line(at);
        mistakes.push(mistake);
        if mistakes.len() >= ENOUGH || !take_out(&mut lines[line]) {
            return Parsed { table: Table::new(), mistakes };
        }
    }
}

/// A value alone: what a variable or `--set` gives. What is not TOML is text.
pub(crate) fn parse_value(text: &str, place: Place) -> Item {
    let value = match DeValue::parse(text) {
        Ok(value) => raw(value.get_ref(), &|_| place.clone()),
        Err(_) => Raw::Text(text.to_owned()),
    };
    Item { value, key_place: place.clone(), place, text: Some(text.to_owned()) }
}

/// Makes a line harmless: a section's header stays one, anything else goes. False: it cannot.
fn take_out(line: &mut String) -> bool {
    let Some(header) = line.trim_start().strip_prefix('[') else {
        let progress = !line.is_empty();
        line.clear();
        return progress;
    };
    let (open, close) = if header.starts_with('[') { ("[[", "]]") } else { ("[", "]") };
    let name: String = header
        .trim_start_matches(['[', ' ', '\t'])
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || "_-.".contains(*c))
        .collect();
    let sound = format!("{open}{name}{close}");
    let progress = !name.is_empty() && *line != sound;
    *line = sound;
    progress
}

fn start(error: &Error) -> usize {
    error.span().map_or(0, |span| span.start)
}

/// The parser keeps the first of two definitions and goes on; nothing needs to be taken out.
fn is_repetition(error: &Error) -> bool {
    error.message() == "duplicate key" || error.message().starts_with("cannot extend value")
}

fn repetition(error: &Error, text: &str, places: &Places) -> Mistake {
    let span = error.span().unwrap_or(0..0);
    let name = text.get(span.clone()).unwrap_or_default();
    let key = match section_above(text, span.start) {
        Some(section) => format!("{section}.{name}"),
        None => name.to_owned(),
    };
    let text = if error.message() == "duplicate key" {
        "is set twice; accepted: once".to_owned()
    } else {
        error.message().to_owned()
    };
    Mistake { place: places.at(span.start), key, text }
}

/// The header that a line stands under, if it is none itself.
fn section_above(text: &str, offset: usize) -> Option<&str> {
    let line = text[..offset].rfind('\n').map_or(0, |newline| newline + 1);
    if text[line..].trim_start().starts_with('[') {
        return None;
    }
    let header = text[..line].lines().rev().map(str::trim).find(|line| line.starts_with('['))?;
    Some(header.trim_start_matches('[').split(']').next()?.trim())
}

/// The offset to blame, and the words for it.
fn describe(
    error: &Error,
    all: &[&Error],
    tree: &DeTable<'_>,
    text: &str,
    places: &Places,
) -> (usize, Mistake) {
    let mut open = Vec::new();
    spans(tree, "", &mut open);
    // What has no end runs into the lines below, which then look wrong: its beginning is to blame.
    let unclosed: Vec<usize> = all.iter().filter(|e| is_unclosed(e)).map(|e| start(e)).collect();
    let first = start(error);
    let runs_on = |(_, span): &&(String, Range<usize>)| {
        let value = text.get(span.clone()).unwrap_or_default();
        span.start <= first
            && first <= span.end
            && closer(value).is_some_and(|c| unclosed.contains(&span.end) || !value.ends_with(c))
    };
    if !unclosed.is_empty()
        && let Some((key, span)) = open.iter().filter(runs_on).min_by_key(|(_, span)| span.start)
    {
        let closer = closer(&text[span.start..]).unwrap_or_default();
        let text = format!("is not closed; accepted: a closing {closer}");
        return (span.start, Mistake { place: places.at(span.start), key: key.clone(), text });
    }
    let line = text[..first].rfind('\n').map_or(0, |newline| newline + 1);
    let is_header = text[line..].trim_start().starts_with('[');
    let around = |(_, span): &&(String, Range<usize>)| span.start <= first && first <= span.end && !is_header;
    let key = open.iter().find(around).map(|(key, _)| key.clone());
    let empty = error.span().is_some_and(|span| span.is_empty());
    let text = match error.message() {
        m if m.starts_with("string values must be quoted") && empty => {
            "has no value; accepted: key = value".to_owned()
        }
        m if m.starts_with("string values must be quoted") => {
            "text must be quoted; accepted: \"…\", a number, true, false, [\"a list\"]".to_owned()
        }
        m => m.replacen(", expected ", "; expected ", 1),
    };
    (first, Mistake { place: places.at(first), key: key.unwrap_or_default(), text })
}

fn is_unclosed(error: &Error) -> bool {
    let starts = ["unclosed array,", "unclosed inline table", "invalid multi-line"];
    starts.iter().any(|start| error.message().starts_with(start))
}

fn closer(value: &str) -> Option<char> {
    match value.chars().next()? {
        '[' => Some(']'),
        '{' => Some('}'),
        quote @ ('"' | '\'') => Some(quote),
        _ => None,
    }
}

/// Every value with its dotted key, but for tables of headers: those span their header only.
fn spans(table: &DeTable<'_>, prefix: &str, out: &mut Vec<(String, Range<usize>)>) {
    for (key, value) in table {
        let key =
            if prefix.is_empty() { key.get_ref().to_string() } else { format!("{prefix}.{}", key.get_ref()) };
        out.push((key.clone(), value.span()));
        match value.get_ref() {
            DeValue::Table(table) => spans(table, &key, out),
            DeValue::Array(items) => {
                for item in items.iter() {
                    if let DeValue::Table(table) = item.get_ref() {
                        spans(table, &key, out);
                    }
                }
            }
            _ => {}
        }
    }
}

fn table(table: &DeTable<'_>, places: &Places) -> Table {
    table_at(table, &|span| places.at(span.start))
}

fn table_at(table: &DeTable<'_>, at: &dyn Fn(Range<usize>) -> Place) -> Table {
    let entry = |key: &Spanned<_>, value: &Spanned<DeValue<'_>>| Item {
        value: raw(value.get_ref(), at),
        place: at(value.span()),
        key_place: at(key.span()),
        text: None,
    };
    table.iter().map(|(key, value)| (key.get_ref().to_string(), entry(key, value))).collect()
}

fn raw(value: &DeValue<'_>, at: &dyn Fn(Range<usize>) -> Place) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        // Too long for 128 bits is out of every range.
        DeValue::Integer(n) => Raw::Integer(i128::from_str_radix(n.as_str(), n.radix()).unwrap_or(i128::MAX)),
        DeValue::Float(n) => Raw::Float(n.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(b) => Raw::Bool(*b),
        DeValue::Datetime(time) => Raw::Datetime(time.to_string()),
        DeValue::Table(table) => Raw::Table(table_at(table, at)),
        DeValue::Array(items) => Raw::List(
            items
                .iter()
                .map(|item| Item {
                    value: raw(item.get_ref(), at),
                    place: at(item.span()),
                    key_place: at(item.span()),
                    text: None,
                })
                .collect(),
        ),
    }
}

/// Turns byte offsets into places.
struct Places<'a> {
    path: &'a Arc<str>,
    text: &'a str,
    line_starts: Vec<usize>,
}

impl<'a> Places<'a> {
    fn new(path: &'a Arc<str>, text: &'a str) -> Places<'a> {
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
        Places { path, text, line_starts }
    }

    /// Counted from zero.
    fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset).saturating_sub(1)
    }

    fn at(&self, offset: usize) -> Place {
        let line = self.line(offset);
        let before = self.text.get(self.line_starts[line]..offset).unwrap_or_default();
        Place::File { path: self.path.clone(), line: line + 1, column: before.chars().count() + 1 }
    }
}
