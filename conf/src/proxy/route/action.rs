//! What a route does with a request: `to`, `answer` or `redirect`.

use super::headers::HeaderValues;
use super::template::{IN_REDIRECTS, Part, Template, Var, among};
use crate::inline::Inline;
use crate::section::{Reader, Section, Value};
use crate::tree::{Item, Raw};
use crate::write::{Writer, quote};

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// An upstream's name. `"node"`: the node tier of this process, unless `[proxy.upstream.node]` lists nodes.
    To(String),
    Answer(Answer),
    Redirect(Redirect),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
    pub content_type: String,
    pub headers: HeaderValues,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Redirect {
    pub to: Template,
    pub status: u16,
}

impl Action {
    /// Exactly one of the three.
    pub(super) fn read(s: &mut Section<'_, '_>) -> Action {
        let needed = "an upstream's name, or \"node\"";
        let others = [s.given("answer").map(|_| "answer"), s.given("redirect").map(|_| "redirect")];
        let to = match others {
            [None, None] => s.need("to", needed),
            _ => s.find("to"),
        };
        let (answer, redirect) = (s.find("answer"), s.find("redirect"));
        let others: Vec<&str> = others.into_iter().flatten().collect();
        if others.len() + usize::from(to.is_some()) > 1 {
            let text = "a route does one thing; accepted: one of to, answer, redirect";
            let last = others.last().copied().unwrap_or("to");
            let (place, path) = (s.place_of(last), s.path(last));
            s.reader.mistake(&place, &path, text);
        }
        match (answer, redirect) {
            (Some(answer), _) => Action::Answer(answer),
            (_, Some(redirect)) => Action::Redirect(redirect),
            _ => Action::To(to.unwrap_or_default()),
        }
    }

    pub(super) fn write(&self, w: &mut Writer<'_>) {
        match self {
            Action::To(to) => w.value("to", quote(to)),
            Action::Answer(answer) => w.value("answer", answer.write()),
            Action::Redirect(redirect) => w.value("redirect", redirect.write()),
        }
    }
}

fn status(s: &mut Inline<'_, '_, '_>, accepted: &str, fits: impl Fn(u16) -> bool) -> Option<u16> {
    match s.given("status")?.value {
        Raw::Integer(n) if u16::try_from(n).is_ok_and(&fits) => u16::try_from(n).ok(),
        _ => s.refuse("status", "a status for this", accepted),
    }
}

impl Value for Answer {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Answer> {
        let accepted = "{ status = 503, body = \"…\" }";
        Inline::read(
            item,
            path,
            reader,
            ("an answer", accepted, &["status", "body", "content_type", "headers"]),
            |s| {
                if s.given("status").is_none() {
                    s.mistake(format!("has no \"status\"; accepted: {accepted}"));
                }
                let status = status(s, "200 to 599", |n| (200..600).contains(&n))?;
                let body: String = s.find("body").unwrap_or_default();
                let content_type =
                    s.find("content_type").unwrap_or_else(|| "text/plain; charset=utf-8".to_owned());
                let headers = s.find("headers").unwrap_or_default();
                if matches!(status, 204 | 205 | 304) && !body.is_empty() {
                    return s.refuse("body", "possible with this status", "no body with 204, 205 and 304");
                }
                if content_type.is_empty() || !content_type.bytes().all(|b| (b' '..=b'~').contains(&b)) {
                    return s.refuse("content_type", "a media type", "\"text/html; charset=utf-8\"");
                }
                Some(Answer { status, body, content_type, headers })
            },
        )
    }

    fn write(&self) -> String {
        format!(
            "{{ status = {}, body = {}, content_type = {}, headers = {} }}",
            self.status,
            quote(&self.body),
            quote(&self.content_type),
            self.headers.write()
        )
    }
}

impl Value for Redirect {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Redirect> {
        let accepted = "{ to = \"https://{host}{path}{query}\", status = 301 }";
        Inline::read(item, path, reader, ("a redirect", accepted, &["to", "status"]), |s| {
            let text: String = s.need("to", accepted)?;
            let status = match s.given("status") {
                Some(_) => status(s, "301, 302, 303, 307, 308", |n| matches!(n, 301..=303 | 307 | 308))?,
                None => 302,
            };
            match Template::parse(&text, among(&IN_REDIRECTS)) {
                Ok(to) if leads_somewhere(&to) => Some(Redirect { to, status }),
                Ok(_) => s.refuse("to", "a target", "\"https://…\", \"http://…\", \"/…\", without spaces; it may begin with {path} or {path_rest}"),
                Err(why) => s.refuse("to", &format!("a target: it {why}"), "{host}, {path}, {path_rest}, {query} as placeholders"),
            }
        })
    }

    fn write(&self) -> String {
        format!("{{ to = {}, status = {} }}", quote(self.to.text()), self.status)
    }
}

/// A target whose host is the conf's choice, or the one that was asked for, and never a part of the path.
fn leads_somewhere(to: &Template) -> bool {
    let sound = |text: &str| !text.contains([' ', '\t', '"', '<', '>', '\\']);
    let begins = match to.parts() {
        [Part::Text(text), rest @ ..] => {
            let after = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
            match after {
                Some("") => matches!(rest.first(), Some(Part::Var(Var::Host))),
                Some(host) => !host.starts_with('/'),
                None => text.starts_with('/') && !text.starts_with("//"),
            }
        }
        [Part::Var(Var::Path | Var::PathRest), ..] => true,
        _ => false,
    };
    begins && sound(to.text())
}
