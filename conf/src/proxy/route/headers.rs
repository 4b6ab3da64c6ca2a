//! Headers that a route looks at, sets and removes.

use super::pattern::Pattern;
use super::sticky::is_token;
use super::template::{IN_HEADERS, Template, among};
use crate::inline::Inline;
use crate::section::{Reader, Value};
use crate::tree::Item;
use crate::write::quote;

/// One of a route's conditions.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderMatch {
    /// In lower case.
    pub name: String,
    pub test: HeaderTest,
}

#[derive(Clone, Debug, PartialEq)]
pub enum HeaderTest {
    /// One of its lines is exactly this.
    Value(String),
    /// One of its lines matches as a whole.
    Regex(Pattern),
    Present(bool),
}

/// Names, in lower case, with values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderValues(pub Vec<(String, Template)>);

/// Removed first, then set (in place of what was there), then added.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderEdits {
    pub remove: Vec<String>,
    pub set: HeaderValues,
    pub add: HeaderValues,
}

impl HeaderEdits {
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.0.is_empty() && self.add.0.is_empty()
    }
}

const NAME: &str = "letters, digits and !#$%&'*+-.^_`|~";

impl Value for HeaderMatch {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<HeaderMatch> {
        let accepted =
            "{ name = \"…\" } with one of value = \"…\", regex = \"…\", present = true, present = false";
        Inline::read(
            item,
            path,
            reader,
            ("a condition", accepted, &["name", "value", "regex", "present"]),
            |s| {
                let name: String = s.need("name", accepted)?;
                if !is_token(&name) {
                    return s.refuse("name", "a header's name", NAME);
                }
                let (value, regex, present) = (s.find("value"), s.find("regex"), s.find("present"));
                let test = match (value, regex, present) {
                    (Some(value), None, None) => HeaderTest::Value(value),
                    (None, Some(pattern), None) => HeaderTest::Regex(pattern),
                    (None, None, Some(present)) => HeaderTest::Present(present),
                    (None, None, None) if s.given("regex").is_some() => return None,
                    _ => {
                        s.mistake(format!("needs one test; accepted: {accepted}"));
                        return None;
                    }
                };
                Some(HeaderMatch { name: name.to_ascii_lowercase(), test })
            },
        )
    }

    fn write(&self) -> String {
        let name = quote(&self.name);
        match &self.test {
            HeaderTest::Value(value) => format!("{{ name = {name}, value = {} }}", quote(value)),
            HeaderTest::Regex(pattern) => format!("{{ name = {name}, regex = {} }}", pattern.write()),
            HeaderTest::Present(present) => format!("{{ name = {name}, present = {present} }}"),
        }
    }
}

impl Value for HeaderValues {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<HeaderValues> {
        let Some(table) = item.as_table() else {
            return reader.refuse(item, path, "a table of headers", "{ \"X-Tier\" = \"edge\" }");
        };
        let read = |(name, item): (&String, &Item)| {
            let path = format!("{path}.{name}");
            if !is_token(name) {
                reader.mistake(
                    &item.key_place,
                    &path,
                    format!("{name:?} is not a header's name; accepted: {NAME}"),
                );
                return None;
            }
            let Some(text) = item.as_text() else {
                return reader.refuse(item, &path, "a header's value", "\"…\"");
            };
            match Template::parse(text, among(&IN_HEADERS)) {
                Ok(template) => Some((name.to_ascii_lowercase(), template)),
                Err(why) => {
                    let what = format!("a header's value: it {why}");
                    let accepted = "printable ASCII, with {client_ip}, {host}, {request_id} as placeholders, {{ and }} for braces";
                    reader.refuse(item, &path, &what, accepted)
                }
            }
        };
        let values: Vec<_> = table.iter().map(read).collect();
        values.into_iter().collect::<Option<Vec<_>>>().map(HeaderValues)
    }

    fn write(&self) -> String {
        let values = self.0.iter().map(|(name, value)| format!("{} = {}", quote(name), quote(value.text())));
        format!("{{ {} }}", values.collect::<Vec<_>>().join(", "))
    }
}

impl Value for HeaderEdits {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<HeaderEdits> {
        let accepted = "{ set = { \"X-Tier\" = \"edge\" }, add = { … }, remove = [\"X-Debug\"] }";
        Inline::read(item, path, reader, ("a change of headers", accepted, &["set", "add", "remove"]), |s| {
            let remove: Vec<String> = s.find("remove").unwrap_or_default();
            if !remove.iter().all(|name| is_token(name)) {
                return s.refuse("remove", "a list of headers' names", NAME);
            }
            let remove = remove.iter().map(|name| name.to_ascii_lowercase()).collect();
            Some(HeaderEdits {
                remove,
                set: s.find("set").unwrap_or_default(),
                add: s.find("add").unwrap_or_default(),
            })
        })
    }

    fn write(&self) -> String {
        let (set, add) = (self.set.write(), self.add.write());
        format!("{{ set = {set}, add = {add}, remove = {} }}", self.remove.write())
    }
}
