//! Regular expressions in conf: compiled once, and always held against the whole of a text.

use crate::section::{Reader, Value};
use crate::tree::Item;
use crate::write::quote;
use regex::bytes::{Regex, RegexBuilder};
use std::fmt;

/// Compiled size; a pattern that needs more is a mistake or an attack on memory.
const MAX_SIZE: usize = 256 * 1024;

/// Matches in linear time, over bytes: `\w` and `(?i)` are ASCII's.
#[derive(Clone)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

impl Pattern {
    pub fn parse(text: &str) -> Result<Pattern, String> {
        // `.` is any byte: a line feed in a path (%0A) must not be a way around `/admin/.*`.
        let build = |text: &str| {
            let mut builder = RegexBuilder::new(text);
            builder.unicode(false).dot_matches_new_line(true);
            builder.size_limit(MAX_SIZE).dfa_size_limit(MAX_SIZE).build()
        };
        // By itself first: a stray bracket must not end the group that anchors it.
        build(text)
            .and_then(|_| build(&format!("^(?:{text})$")))
            .map_err(|error| why(&error))
            .map(|regex| Pattern { text: text.to_owned(), regex })
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether all of it matches.
    pub fn is_match(&self, whole: &[u8]) -> bool {
        self.regex.is_match(whole)
    }

    /// The groups of a match, by number; one that took no part is empty.
    pub fn captures<'t>(&self, whole: &'t [u8]) -> Option<Vec<&'t [u8]>> {
        let captures = self.regex.captures(whole)?;
        Some(captures.iter().map(|group| group.map_or(&b""[..], |m| m.as_bytes())).collect())
    }

    /// A group's number, by its number or name as text.
    pub fn group(&self, name: &str) -> Option<usize> {
        match name.parse::<usize>() {
            Ok(number) => Some(number).filter(|n| *n < self.regex.captures_len()),
            Err(_) => self.regex.capture_names().position(|known| known == Some(name)),
        }
    }
}

/// The last line of a syntax error says what is wrong; those before it draw where.
fn why(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.trim().trim_start_matches("error: ").to_owned()
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.text == other.text
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

impl Value for Pattern {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Pattern> {
        let accepted = "a regular expression for the whole text, such as \"/rooms/[0-9]+/.*\"";
        let Some(text) = item.as_text() else {
            return reader.refuse(item, path, "a regular expression", accepted);
        };
        match Pattern::parse(text) {
            Ok(pattern) => Some(pattern),
            Err(why) => reader.refuse(item, path, &format!("a regular expression ({why})"), accepted),
        }
    }

    fn write(&self) -> String {
        quote(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_held_against_the_whole() {
        for (pattern, text, fits) in [
            ("/a", "/a", true),
            ("/a", "/ab", false),
            ("/a", "/x/a", false),
            ("/a|/b", "/bc", false),
            ("^/a$", "/a", true),
            ("/a", "/a\n", false),
            ("/a.*", "/a/\n/b", true),
            ("(?i)/ADMIN.*", "/admin/x", true),
            ("(?m)/a", "/a\n/b", false),
        ] {
            assert_eq!(
                Pattern::parse(pattern).unwrap().is_match(text.as_bytes()),
                fits,
                "{pattern} {text:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_compiled_says_why() {
        for (pattern, said) in
            [("a)|(b", "unopened group"), ("[a", "unclosed character class"), ("(a{500}){500}", "size limit")]
        {
            let why = Pattern::parse(pattern).unwrap_err();
            assert!(why.contains(said), "{pattern}: {why}");
        }
    }
}
