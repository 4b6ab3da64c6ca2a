//! A small table that is one value, such as `{ by = "cookie", name = "sid" }`.

use crate::section::{Reader, Value};
use crate::tree::{Item, Table};

pub(crate) struct Inline<'a, 'r, 't> {
    pub reader: &'r mut Reader<'t>,
    item: &'a Item,
    table: &'a Table,
    path: &'a str,
    asked: Vec<&'static str>,
}

impl<'a> Inline<'a, '_, '_> {
    /// `None`: a mistake was noted, be it by `read`, in a value or of a key. `keys` are all there are;
    /// which of them mean something may depend on others.
    pub fn read<T>(
        item: &'a Item,
        path: &'a str,
        reader: &mut Reader<'_>,
        (what, accepted, keys): (&str, &str, &[&str]),
        read: impl FnOnce(&mut Inline<'a, '_, '_>) -> Option<T>,
    ) -> Option<T> {
        let Some(table) = item.as_table() else { return reader.refuse(item, path, what, accepted) };
        let before = reader.mistakes.len();
        let mut inline = Inline { reader, item, table, path, asked: Vec::new() };
        let value = read(&mut inline);
        let Inline { reader, asked, .. } = inline;
        for (key, item) in table {
            let text = if !keys.contains(&key.as_str()) {
                format!("unknown key; accepted here: {}", keys.join(", "))
            } else if value.is_some() && !asked.contains(&key.as_str()) {
                format!("has no meaning here; accepted: {}", asked.join(", "))
            } else {
                continue;
            };
            reader.mistake(&item.key_place, &format!("{path}.{key}"), text);
        }
        value.filter(|_| reader.mistakes.len() == before)
    }

    pub fn given(&mut self, key: &'static str) -> Option<&'a Item> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        self.table.get(key)
    }

    pub fn find<T: Value>(&mut self, key: &'static str) -> Option<T> {
        let item = self.given(key)?;
        let path = format!("{}.{key}", self.path);
        self.reader.places.insert(path.clone(), item.place.clone());
        T::read(item, &path, self.reader)
    }

    pub fn need<T: Value>(&mut self, key: &'static str, accepted: &str) -> Option<T> {
        if !self.table.contains_key(key) {
            self.mistake(format!("has no {key:?}; accepted: {accepted}"));
        }
        self.find(key)
    }

    /// Refuses the value of one key.
    pub fn refuse<T>(&mut self, key: &str, what: &str, accepted: &str) -> Option<T> {
        let item = self.table.get(key).unwrap_or(self.item);
        self.reader.refuse(item, &format!("{}.{key}", self.path), what, accepted)
    }

    /// A mistake of the table as a whole.
    pub fn mistake(&mut self, text: impl Into<String>) {
        self.reader.mistake(&self.item.place, self.path, text);
    }
}
