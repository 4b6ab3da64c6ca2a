//! Reading a section key by key: what the sources give, else the default; every mistake noted, and
//! keys that nobody asked for among them.
//!
//! A new key is a field, its name in the section's [`keys!`] list, and an entry in `weir.toml`.

use crate::error::{Mistake, Place};
use crate::tree::{Item, Raw, Table};
use crate::write::Writer;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

/// A single value, such as a duration.
pub(crate) trait Value: Sized {
    /// `None`: a mistake was noted.
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Self>;
    /// As TOML that reads back the same, on one line.
    fn write(&self) -> String;
}

/// What can stand under a key: a value, a section, a list of sections.
pub(crate) trait Field: Sized {
    fn read_field(section: &mut Section<'_, '_>, key: &'static str) -> Self;
    fn write_field(&self, writer: &mut Writer<'_>, key: &str);
}

/// The keys of a section, read and written in the order of their list.
pub(crate) trait Keys: Sized {
    fn read_keys(section: &mut Section<'_, '_>) -> Self;
    fn write_keys(&self, writer: &mut Writer<'_>);
}

impl<T: Value> Field for T {
    fn read_field(section: &mut Section<'_, '_>, key: &'static str) -> T {
        section.get(key)
    }

    fn write_field(&self, writer: &mut Writer<'_>, key: &str) {
        writer.value(key, Value::write(self));
    }
}

/// Lists a section's keys: `key`, `key in RANGE`, `key as UNIT`, `key as UNIT in RANGE`.
macro_rules! keys {
    ($section:ident { $($field:ident $(as $unit:ident)? $(in $range:expr)?),* $(,)? }) => {
        impl $crate::section::Keys for $section {
            fn read_keys(section: &mut $crate::section::Section<'_, '_>) -> $section {
                $section { $($field: $crate::section::keys!(@read section $field [$($unit)?] [$($range)?])),* }
            }

            fn write_keys(&self, writer: &mut $crate::write::Writer<'_>) {
                $($crate::section::keys!(@write self writer $field [$($unit)?]);)*
            }
        }

        impl $crate::section::Field for $section {
            fn read_field(section: &mut $crate::section::Section<'_, '_>, key: &'static str) -> $section {
                section.section(key, $crate::section::Keys::read_keys)
            }

            fn write_field(&self, writer: &mut $crate::write::Writer<'_>, key: &str) {
                writer.section(key, |writer| $crate::section::Keys::write_keys(self, writer));
            }
        }
    };
    (@read $s:ident $field:ident [] []) => { $crate::section::Field::read_field($s, stringify!($field)) };
    (@read $s:ident $field:ident [] [$range:expr]) => { $s.get_in(stringify!($field), $range) };
    (@read $s:ident $field:ident [$unit:ident] []) => { $s.get::<$unit>(stringify!($field)).into() };
    (@read $s:ident $field:ident [$unit:ident] [$range:expr]) => {
        $s.get_in::<$unit>(stringify!($field), $range).into()
    };
    (@write $self:ident $w:ident $field:ident []) => {
        $crate::section::Field::write_field(&$self.$field, $w, stringify!($field))
    };
    (@write $self:ident $w:ident $field:ident [$unit:ident]) => {
        $w.value(stringify!($field), $crate::section::Value::write(&$unit::from($self.$field)))
    };
}
pub(crate) use keys;

/// What goes along through all sections.
pub(crate) struct Reader<'t> {
    /// For `env:NAME`. `None`: not UTF-8.
    pub environment: &'t BTreeMap<String, Option<String>>,
    /// Variables that an `env:NAME` named.
    pub named: BTreeSet<String>,
    pub mistakes: Vec<Mistake>,
    pub warnings: Vec<Mistake>,
    /// Where each key that the sources give was given.
    pub places: BTreeMap<String, Place>,
    /// Conf files that hold secrets and that others can read.
    pub exposed: BTreeSet<Arc<str>>,
    /// All defaults, to tell what section a misplaced key belongs to.
    pub defaults: &'t Table,
}

impl<'t> Reader<'t> {
    pub fn new(environment: &'t BTreeMap<String, Option<String>>, defaults: &'t Table) -> Reader<'t> {
        Reader {
            environment,
            named: BTreeSet::new(),
            mistakes: Vec::new(),
            warnings: Vec::new(),
            places: BTreeMap::new(),
            exposed: BTreeSet::new(),
            defaults,
        }
    }

    pub fn mistake(&mut self, place: &Place, key: &str, text: impl Into<String>) {
        self.mistakes.push(Mistake { place: place.clone(), key: key.to_owned(), text: text.into() });
    }

    pub fn warn(&mut self, place: &Place, key: &str, text: impl Into<String>) {
        self.warnings.push(Mistake { place: place.clone(), key: key.to_owned(), text: text.into() });
    }

    /// `"abc" is not a size; accepted: …`
    pub fn refuse<T>(&mut self, item: &Item, path: &str, what: &str, accepted: &str) -> Option<T> {
        let text = format!("{} is not {what}; accepted: {accepted}", item.shown());
        self.mistake(&item.place, path, text);
        None
    }

    fn note(&mut self, path: &str, item: &Item) {
        self.places.insert(path.to_owned(), item.place.clone());
        if let Raw::List(items) = &item.value {
            for (i, item) in items.iter().enumerate() {
                self.places.insert(format!("{path}[{i}]"), item.place.clone());
            }
        } else if item.as_text().is_some() {
            // It may stand for a list of one.
            self.places.insert(format!("{path}[0]"), item.place.clone());
        }
    }
}

/// One table of the conf, with its defaults.
pub(crate) struct Section<'r, 't> {
    pub reader: &'r mut Reader<'t>,
    path: String,
    given: Option<&'t Table>,
    place: Place,
    defaults: &'t Table,
    asked: Vec<&'static str>,
}

impl<'r, 't> Section<'r, 't> {
    /// Reads the whole conf.
    pub fn root<T>(
        reader: &'r mut Reader<'t>,
        given: &'t Table,
        place: Place,
        read: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let defaults = reader.defaults;
        let mut section =
            Section { reader, path: String::new(), given: Some(given), place, defaults, asked: Vec::new() };
        let value = read(&mut section);
        section.finish();
        value
    }

    pub fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Where this table begins.
    pub fn place(&self) -> Place {
        self.place.clone()
    }

    pub fn defaults(&self) -> &'t Table {
        self.defaults
    }

    /// Where a key was given, else where its table begins.
    pub fn place_of(&self, key: &str) -> Place {
        self.reader.places.get(&self.path(key)).unwrap_or(&self.place).clone()
    }

    /// What the sources give for a key.
    pub fn given(&mut self, key: &'static str) -> Option<&'t Item> {
        self.asked.push(key);
        let item = self.given?.get(key)?;
        self.reader.note(&self.path(key), item);
        Some(item)
    }

    pub fn default(&self, key: &str) -> Option<&'t Item> {
        self.defaults.get(key)
    }

    /// A key that may be absent. `None` also for a mistake, which is noted.
    pub fn find<T: Value>(&mut self, key: &'static str) -> Option<T> {
        let item = self.given(key)?;
        T::read(item, &self.path(key), self.reader)
    }

    /// As [`Section::find`], for a key without which the section has no meaning.
    pub fn need<T: Value>(&mut self, key: &'static str, accepted: &str) -> Option<T> {
        if self.given(key).is_none() {
            let (place, path) = (self.place(), self.path(key));
            self.reader.mistake(&place, &path, format!("is missing; accepted: {accepted}"));
        }
        self.find(key)
    }

    pub fn get<T: Value>(&mut self, key: &'static str) -> T {
        let found = self.find(key);
        found.unwrap_or_else(|| self.fall_back(key))
    }

    pub fn get_in<T: Value + PartialOrd>(&mut self, key: &'static str, range: impl RangeBounds<T>) -> T {
        match self.find(key) {
            Some(value) if range.contains(&value) => value,
            Some(value) => {
                let (path, place) = (self.path(key), self.place_of(key));
                let text = format!("{} is out of range; accepted: {}", value.write(), shown(&range));
                self.reader.mistake(&place, &path, text);
                self.fall_back(key)
            }
            None => self.fall_back(key),
        }
    }

    /// The default. `weir.toml` is compiled in, and a test reads every key of it.
    fn fall_back<T: Value>(&mut self, key: &str) -> T {
        let path = self.path(key);
        let value = self.defaults.get(key).and_then(|item| T::read(item, &path, self.reader));
        value.unwrap_or_else(|| unreachable!("weir.toml lacks a sound {path}"))
    }

    /// A table below this one.
    pub fn section<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'_, 't>) -> T) -> T {
        let path = self.path(key);
        let item = self.given(key);
        let defaults = self.defaults.get(key).and_then(Item::as_table).unwrap_or(self.defaults);
        self.table(item, path, defaults, read)
    }

    /// A table below this one whose name the sources choose; `path` is shown in messages.
    pub fn table<T>(
        &mut self,
        item: Option<&'t Item>,
        path: String,
        defaults: &'t Table,
        read: impl FnOnce(&mut Section<'_, 't>) -> T,
    ) -> T {
        if let Some(item) = item {
            self.reader.note(&path, item);
            if item.as_table().is_none() {
                let _: Option<()> =
                    self.reader.refuse(item, &path, "a table", &format!("[{path}] and keys below it"));
            }
        }
        let given = item.and_then(Item::as_table);
        let place = item.map_or(Place::Default, |item| item.place.clone());
        let mut section =
            Section { reader: &mut *self.reader, path, given, place, defaults, asked: Vec::new() };
        let value = read(&mut section);
        section.finish();
        value
    }

    /// Keys that nobody asked for.
    fn finish(self) {
        let Some(given) = self.given else { return };
        for (key, item) in given {
            if self.asked.contains(&key.as_str()) {
                continue;
            }
            let hint = self.hint(key);
            let path = self.path(key);
            self.reader.mistake(&item.key_place, &path, format!("unknown key; {hint}"));
        }
    }

    fn hint(&self, key: &str) -> String {
        let mut elsewhere = Vec::new();
        find_key(self.reader.defaults, key, "", &mut elsewhere);
        let inside = format!("{}.", self.path);
        let below: Vec<&str> =
            elsewhere.iter().map(String::as_str).filter(|path| path.starts_with(&inside)).collect();
        if !below.is_empty() && !self.path.is_empty() {
            return format!("did you mean {}?", below.join(" or "));
        }
        let close = self.asked.iter().map(|known| (distance(key, known), known)).min();
        if let Some((distance, known)) = close
            && distance <= (key.len() / 3).clamp(1, 4)
        {
            return format!("did you mean {known}?");
        }
        if !elsewhere.is_empty() {
            return format!("did you mean {}?", elsewhere.join(" or "));
        }
        // A variable with one underscore for the dot.
        for (section, item) in self.reader.defaults.iter().filter(|_| self.path.is_empty()) {
            let rest = key.strip_prefix(section.as_str()).and_then(|rest| rest.strip_prefix('_'));
            if let (Some(rest), Some(table)) = (rest, item.as_table())
                && table.contains_key(rest)
            {
                let name = format!("WEIR_{section}__{rest}").to_uppercase();
                return format!("did you mean {section}.{rest}? As a variable: {name}");
            }
        }
        let mut asked = self.asked.clone();
        asked.dedup();
        match asked.as_slice() {
            known if known.len() <= 12 => format!("accepted here: {}", known.join(", ")),
            _ => "weir.toml lists all keys".to_owned(),
        }
    }
}

fn shown<T: Value>(range: &impl RangeBounds<T>) -> String {
    let bound = |bound: Bound<&T>| match bound {
        Bound::Included(value) | Bound::Excluded(value) => Some(value.write()),
        Bound::Unbounded => None,
    };
    match (bound(range.start_bound()), bound(range.end_bound())) {
        (Some(low), Some(high)) => format!("{low} to {high}"),
        (Some(low), None) => format!("{low} or more"),
        (None, Some(high)) => format!("{high} or less"),
        (None, None) => "any".to_owned(),
    }
}

/// Every place of a key by its last name.
fn find_key(table: &Table, key: &str, prefix: &str, found: &mut Vec<String>) {
    for (name, item) in table {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        if let Some(table) = item.as_table() {
            find_key(table, key, &path, found);
        }
        if name == key {
            found.push(path);
        }
    }
}

/// Levenshtein: how many characters to add, drop or change.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    // A key longer than any of ours is close to none of them.
    for (i, x) in a.chars().take(64).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
