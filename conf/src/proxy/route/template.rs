//! Text with placeholders: `https://{host}{path}`. `{{` and `}}` stand for the braces themselves.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Var {
    /// The client's address.
    ClientIp,
    /// The host that was asked for, without its port.
    Host,
    RequestId,
    /// The path as it was sent.
    Path,
    /// The path after the route's `path`; empty, or with its leading slash.
    PathRest,
    /// The query with its question mark; empty if there is none.
    Query,
    /// A group of the rewrite's regular expression.
    Group(usize),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Text(String),
    Var(Var),
}

#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

/// Where a header's value is made.
pub(crate) const IN_HEADERS: [(&str, Var); 3] =
    [("client_ip", Var::ClientIp), ("host", Var::Host), ("request_id", Var::RequestId)];
/// Where a redirect's target is made.
pub(crate) const IN_REDIRECTS: [(&str, Var); 4] =
    [("host", Var::Host), ("path", Var::Path), ("path_rest", Var::PathRest), ("query", Var::Query)];

impl Template {
    /// Printable ASCII and tabs only: no value can begin a line of its own.
    pub(crate) fn parse(text: &str, named: impl Fn(&str) -> Option<Var>) -> Result<Template, String> {
        if text.bytes().any(|b| !(b == b'\t' || (b' '..=b'~').contains(&b))) {
            return Err("has characters other than printable ASCII".into());
        }
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let (brace, tail) = rest[at..].split_at(1);
            if let Some(tail) = tail.strip_prefix(brace) {
                literal.push_str(brace);
                rest = tail;
                continue;
            }
            let end = tail.find('}').filter(|_| brace == "{").ok_or("has a brace without its other half")?;
            let name = &tail[..end];
            let var = named(name).ok_or_else(|| format!("names {{{name}}}, which is not known here"))?;
            if !literal.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut literal)));
            }
            parts.push(Part::Var(var));
            rest = &tail[end + 1..];
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Template { text: text.to_owned(), parts })
    }

    /// As it stands in the conf.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn parts(&self) -> &[Part] {
        &self.parts
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

/// By its name in a list such as [`IN_HEADERS`].
pub(crate) fn among(known: &'static [(&str, Var)]) -> impl Fn(&str) -> Option<Var> {
    move |name| known.iter().find(|(n, _)| *n == name).map(|(_, var)| *var)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_and_braces() {
        let parse = |text| Template::parse(text, among(&IN_HEADERS)).map(|t| t.parts);
        let text = |t: &str| Part::Text(t.into());
        assert_eq!(
            parse("a{host}b{client_ip}"),
            Ok(vec![text("a"), Part::Var(Var::Host), text("b"), Part::Var(Var::ClientIp)])
        );
        assert_eq!(parse("{{\"a\":1}}"), Ok(vec![text("{\"a\":1}")]));
        assert_eq!(parse(""), Ok(vec![]));
        for bad in ["{path}", "{", "a}", "{host", "a\r\nX: y", "ä", "\0"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
