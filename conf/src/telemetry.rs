//! `[telemetry]`: what is logged, and how.

use crate::section::{Reader, Value, keys};
use crate::tree::Item;
use crate::write::quote;

#[derive(Clone, Debug, PartialEq)]
pub struct Telemetry {
    /// A `tracing` filter: `"info,rumqttd=off,openraft=off,pingora=warn"`.
    pub filter: String,
    pub format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

keys!(Telemetry { filter, format });

impl Value for Format {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Format> {
        match item.as_text() {
            Some("text") => Some(Format::Text),
            Some("json") => Some(Format::Json),
            _ => reader.refuse(item, path, "a log format", "\"text\", \"json\""),
        }
    }

    fn write(&self) -> String {
        quote(match self {
            Format::Text => "text",
            Format::Json => "json",
        })
    }
}
