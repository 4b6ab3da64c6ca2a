//! `[proxy.upstream.NAME]`: servers of one app.

use crate::section::{Field, Section, Value};
use crate::write::Writer;
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// `host:port`; names are resolved at start.
    pub servers: Vec<String>,
}

/// `[proxy.upstream.NAME]`
impl Field for BTreeMap<String, Upstream> {
    fn read_field(section: &mut Section<'_, '_>, key: &'static str) -> Self {
        let path = section.path(key);
        let Some(item) = section.given(key) else { return BTreeMap::new() };
        let Some(table) = item.as_table() else {
            let _: Option<()> =
                section.reader.refuse(item, &path, "a table", "[proxy.upstream.NAME] with servers");
            return BTreeMap::new();
        };
        let defaults = section.reader.defaults;
        let mut upstreams = BTreeMap::new();
        for (name, item) in table {
            let path = format!("{path}.{name}");
            if !is_name(name) {
                let text = format!(
                    "{name:?} is not an upstream's name; accepted: letters, digits, - and _, 64 at most"
                );
                section.reader.mistake(&item.key_place, &path, text);
            }
            let servers = section.table(Some(item), path, defaults, |s| {
                s.need("servers", "a list of \"HOST:PORT\", such as [\"127.0.0.1:3000\"]")
            });
            upstreams.insert(name.clone(), Upstream { servers: servers.unwrap_or_default() });
        }
        upstreams
    }

    fn write_field(&self, writer: &mut Writer<'_>, key: &str) {
        for (name, upstream) in self {
            writer.section(&format!("{key}.{name}"), |w| w.value("servers", upstream.servers.write()));
        }
    }
}

/// Short, and safe in metrics and variables.
pub(super) fn is_name(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=64).contains(&text.len()) && text.bytes().all(fits)
}
