//! What the sources say, before anything is known of its meaning: one tree of values, each with
//! the place it was written at.

use crate::error::Place;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

pub(crate) type Table = BTreeMap<String, Item>;

#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub value: Raw,
    pub place: Place,
    pub key_place: Place,
    /// The text of a variable or of the command line: a number there may be meant as text.
    pub text: Option<String>,
}

#[derive(Clone, Debug)]
pub(crate) enum Raw {
    Text(String),
    Integer(i128),
    Float(f64),
    Bool(bool),
    Datetime(String),
    List(Vec<Item>),
    Table(Table),
}

impl Item {
    pub fn as_table(&self) -> Option<&Table> {
        match &self.value {
            Raw::Table(table) => Some(table),
            _ => None,
        }
    }

    /// Text, also where a variable's text happens to look like a number.
    pub fn as_text(&self) -> Option<&str> {
        match &self.value {
            Raw::Text(text) => Some(text),
            _ => self.text.as_deref(),
        }
    }

    /// For messages: short, on one line. Not for secrets.
    pub fn shown(&self) -> String {
        match &self.value {
            Raw::Text(text) if text.chars().count() > 60 => {
                format!("{:?}…", text.chars().take(60).collect::<String>())
            }
            Raw::Text(text) => format!("{text:?}"),
            // What did not fit is held as the largest.
            Raw::Integer(i128::MAX) => "a number of this length".into(),
            Raw::Integer(n) => n.to_string(),
            Raw::Float(n) => n.to_string(),
            Raw::Bool(b) => b.to_string(),
            Raw::Datetime(text) => text.clone(),
            Raw::List(_) => "a list".into(),
            Raw::Table(_) => "a table".into(),
        }
    }
}

/// Lays `item` over what `root` has at `path`. Tables are joined, all else is replaced. False: a
/// value stands in the way, and stays.
#[must_use]
pub(crate) fn overlay(root: &mut Table, path: &[String], item: Item) -> bool {
    let Some((key, rest)) = path.split_first() else { return false };
    if rest.is_empty() {
        overlay_item(root, key.clone(), item);
        return true;
    }
    let table = root.entry(key.clone()).or_insert_with(|| Item {
        value: Raw::Table(Table::new()),
        place: item.place.clone(),
        key_place: item.key_place.clone(),
        text: None,
    });
    match &mut table.value {
        Raw::Table(table) => overlay(table, rest, item),
        _ => false,
    }
}

fn overlay_item(table: &mut Table, key: String, item: Item) {
    match table.entry(key) {
        Entry::Vacant(slot) => {
            slot.insert(item);
        }
        Entry::Occupied(mut slot) => match (&mut slot.get_mut().value, item.value) {
            (Raw::Table(below), Raw::Table(above)) => {
                for (key, item) in above {
                    overlay_item(below, key, item);
                }
            }
            (_, value) => {
                slot.insert(Item { value, ..item });
            }
        },
    }
}
