//! The path that routes are compared with, as the most lenient server would read it. Pure.
//!
//! `/%61dmin`, `//admin`, `/admin;x` and `\admin` are `/admin` to some server or other, so they are here: a
//! route that guards `/admin` is not walked around by writing it differently. What could mean another
//! place altogether (dot segments in any disguise) is refused. Servers get the path as it was sent.

use crate::front::head::Bad;
use std::borrow::Cow;

const BAD: Bad = Bad { status: 400, why: "ambiguous path" };

/// Decoded, one `/` between segments, none of them empty, no `;parameters`.
pub fn tidy(path: &str) -> Result<Cow<'_, [u8]>, Bad> {
    if !path.starts_with('/') || is_tidy(path) {
        return Ok(Cow::Borrowed(path.as_bytes()));
    }
    let mut out = Vec::with_capacity(path.len());
    let mut ends_at_slash = true;
    for segment in (Segments { path, at: 0 }) {
        let (name, parameters) = segment.text.split_once(';').unwrap_or((segment.text, ""));
        let name = decode(name)?;
        decode(parameters)?;
        let bare = name.split(|b| *b == b';').next().unwrap_or_default();
        if matches!(bare, b"." | b"..") {
            return Err(BAD);
        }
        ends_at_slash = name.is_empty();
        if !ends_at_slash {
            out.push(b'/');
            out.extend_from_slice(&name);
        }
    }
    if ends_at_slash {
        out.push(b'/');
    }
    Ok(Cow::Owned(out))
}

/// Nothing in it that could be read in two ways; true for nearly all paths.
fn is_tidy(path: &str) -> bool {
    let bytes = path.as_bytes();
    !bytes.iter().any(|b| matches!(b, b'%' | b';' | b'\\'))
        && !bytes.windows(2).any(|pair| matches!(pair, b"//" | b"/."))
}

/// `/app` covers `/app` and `/app/x`, not `/apple`; `/app/` covers `/app/x`; `/` covers all.
pub fn is_under(prefix: &str, path: &[u8]) -> bool {
    let Some(rest) = path.strip_prefix(prefix.as_bytes()) else { return prefix == "/" };
    prefix.ends_with('/') || matches!(rest.first(), None | Some(b'/'))
}

/// What follows a prefix that covers the path: empty, or the rest as it was sent, after one slash.
pub fn rest(path: &str, prefix: &str) -> String {
    let count = prefix.split('/').filter(|segment| !segment.is_empty()).count();
    let mut named = Segments { path, at: 0 }.filter(|s| !s.text.is_empty() && !s.text.starts_with(';'));
    let end = if count == 0 { 0 } else { named.nth(count - 1).map_or(path.len(), |segment| segment.end) };
    let rest = &path[end..];
    if rest.is_empty() { String::new() } else { format!("/{}", without_separators(rest)) }
}

/// Past the separators at its start: `//x` would name a host in a redirect, and to some servers.
pub fn without_separators(path: &str) -> &str {
    let mut path = path;
    while let Some(length) = separator(path) {
        path = &path[length..];
    }
    path
}

/// Decoded bytes as a path again.
pub fn encode(bytes: &[u8], out: &mut String) {
    for b in bytes {
        if b.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@/".contains(b) {
            out.push(char::from(*b));
        } else {
            escape(*b, out);
        }
    }
}

/// A path or query as it was sent, without what a browser or a log could take for something else.
pub fn escape_odd(text: &str, out: &mut String) {
    for b in text.bytes() {
        if b.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&b) {
            out.push(char::from(b));
        } else {
            escape(b, out);
        }
    }
}

fn escape(b: u8, out: &mut String) {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    out.extend(['%', HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]);
}

fn decode(text: &str) -> Result<Vec<u8>, Bad> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    let digit = |bytes: &mut std::str::Bytes<'_>| {
        let digit = char::from(bytes.next().unwrap_or_default()).to_digit(16);
        digit.and_then(|d| u8::try_from(d).ok()).ok_or(BAD)
    };
    while let Some(b) = bytes.next() {
        let b = if b == b'%' { (digit(&mut bytes)? << 4) | digit(&mut bytes)? } else { b };
        if b == 0 {
            return Err(BAD);
        }
        out.push(b);
    }
    Ok(out)
}

/// The length of the separator that a text begins with.
fn separator(text: &str) -> Option<usize> {
    match text.as_bytes() {
        [b'/' | b'\\', ..] => Some(1),
        [b'%', b'2', b'f' | b'F', ..] | [b'%', b'5', b'c' | b'C', ..] => Some(3),
        _ => None,
    }
}

struct Segment<'a> {
    text: &'a str,
    /// Where in the path it ends.
    end: usize,
}

/// What follows each separator.
struct Segments<'a> {
    path: &'a str,
    at: usize,
}

impl<'a> Iterator for Segments<'a> {
    type Item = Segment<'a>;

    fn next(&mut self) -> Option<Segment<'a>> {
        let start = self.at + separator(self.path.get(self.at..)?)?;
        let rest = &self.path[start..];
        let looks_like = |(i, _): &(usize, char)| separator(&rest[*i..]).is_some();
        let length = rest.char_indices().find(looks_like).map_or(rest.len(), |(i, _)| i);
        self.at = start + length;
        Some(Segment { text: &rest[..length], end: self.at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disguises_come_off() {
        for (sent, read) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/", "/a/"),
            ("//a///b//", "/a/b/"),
            ("/%61dmin", "/admin"),
            ("/admin;x=1/b;y", "/admin/b"),
            ("/;x/admin", "/admin"),
            ("/a/;x", "/a/"),
            ("/a%2Fb%5cc\\d", "/a/b/c/d"),
            ("/a%20b", "/a b"),
            ("/a%3bb", "/a;b"),
            ("/%2561", "/%61"),
            ("/.well-known/x", "/.well-known/x"),
            ("/...", "/..."),
            ("*", "*"),
        ] {
            assert_eq!(
                tidy(sent).map(|t| String::from_utf8_lossy(&t).into_owned()),
                Ok(read.into()),
                "{sent}"
            );
        }
    }

    #[test]
    fn what_could_lead_elsewhere_is_refused() {
        for sent in [
            "/a/../b",
            "/a/./b",
            "/..",
            "/%2e%2e/b",
            "/a/.%2E",
            "/a/..%2fb",
            "/a%2f..%2fb",
            "/a/..\\b",
            "/a\\..\\b",
            "/a/..%5cb",
            "/a/..;/b",
            "/a/..;x=1/b",
            "/a/%2e%2e;/b",
            "/a/..%3b/b",
            "/%2F..%2F",
            "/a%00",
            "/a;%00",
            "/%",
            "/%2",
            "/%zz",
            "/a;%zz",
        ] {
            assert_eq!(tidy(sent), Err(BAD), "{sent}");
        }
    }

    #[test]
    fn a_prefix_ends_at_a_slash() {
        for (prefix, path, under) in [
            ("/app", "/app", true),
            ("/app", "/app/x", true),
            ("/app", "/apple", false),
            ("/app/", "/app/x", true),
            ("/app/", "/app", false),
            ("/", "/anything", true),
            ("/", "*", true),
            ("/app", "/App", false),
        ] {
            assert_eq!(is_under(prefix, path.as_bytes()), under, "{prefix} {path}");
        }
    }

    #[test]
    fn the_rest_is_what_was_sent_and_never_names_a_host() {
        for (path, prefix, left) in [
            ("/app", "/app", ""),
            ("/app/", "/app", "/"),
            ("/app/x%20y;z", "/app", "/x%20y;z"),
            ("/app/x", "/app/", "/x"),
            ("/app//evil.example", "/app", "/evil.example"),
            ("/app/%2f\\evil.example", "/app", "/evil.example"),
            ("//%61pp;x=1//y", "/app", "/y"),
            ("/app%2Fx", "/app", "/x"),
            ("//x", "/", "/x"),
            ("/a/b/c", "/a/b", "/c"),
        ] {
            assert_eq!(rest(path, prefix), left, "{path} {prefix}");
        }
    }
}
