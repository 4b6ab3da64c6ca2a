//! Why there is no certificate: in words fit for a log, by a cause fit for a metric, and with what the
//! authority said of when to come again.

use instant_acme::{Error, Problem};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Enough for what authorities tell of a failed challenge.
const MAX_TEXT: usize = 600;
const NAMESPACE: &str = "urn:ietf:params:acme:error:";
/// Of an authority that names no time: most of its limits are for some hours.
const RATE_LIMITED: Duration = Duration::from_secs(3600);

#[derive(Clone, Debug)]
pub struct Failure {
    pub cause: Cause,
    pub text: String,
    pub retry_after: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No connection, no answer in time, or none that is ACME.
    Unreachable,
    RateLimited,
    /// It has another nonce in mind: nothing is wrong with what was asked.
    Nonce,
    /// It does not know our account.
    Account,
    /// It says no, for any other reason: the challenge above all.
    Refused,
    /// It gave a certificate that is none.
    Unusable,
    /// On our side: the store, or a mistake of ours.
    Internal,
}

impl Cause {
    pub fn outcome(self) -> &'static str {
        match self {
            Cause::Unreachable => "unreachable",
            Cause::RateLimited => "rate_limited",
            Cause::Nonce | Cause::Account | Cause::Refused => "refused",
            Cause::Unusable => "unusable",
            Cause::Internal => "internal",
        }
    }
}

/// An answer that the crate would make nothing of, or none.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct NoAnswer {
    pub text: String,
    pub rate_limited: bool,
    pub retry_after: Option<Duration>,
}

impl NoAnswer {
    pub fn new(text: impl Into<String>) -> NoAnswer {
        NoAnswer { text: text.into(), rate_limited: false, retry_after: None }
    }
}

impl Failure {
    pub fn new(cause: Cause, text: impl AsRef<str>) -> Failure {
        Failure { cause, text: printable(text.as_ref()), retry_after: None }
    }

    /// Nothing is wrong with what was asked, only with how it was signed.
    pub fn is_fleeting(&self) -> bool {
        matches!(self.cause, Cause::Nonce | Cause::Account)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            Error::Api(problem) => problem.into(),
            Error::Timeout(at) => {
                let retry_after = at.map(|at| at.saturating_duration_since(Instant::now()));
                Failure {
                    retry_after,
                    ..Failure::new(Cause::Unreachable, "the authority did not decide in time")
                }
            }
            Error::Other(error) => match error.downcast::<NoAnswer>() {
                Ok(none) => {
                    let cause = if none.rate_limited { Cause::RateLimited } else { Cause::Unreachable };
                    Failure { retry_after: none.retry_after, ..Failure::new(cause, &none.text) }
                }
                Err(error) => Failure::new(Cause::Unreachable, error.to_string()),
            },
            Error::Json(error) => {
                Failure::new(Cause::Unreachable, format!("the answer is not as ACME has it: {error}"))
            }
            Error::Crypto | Error::KeyRejected => Failure::new(Cause::Internal, error.to_string()),
            error => Failure::new(Cause::Unreachable, error.to_string()),
        }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Failure {
        let kind =
            problem.r#type.as_deref().and_then(|kind| kind.strip_prefix(NAMESPACE)).unwrap_or_default();
        let cause = match kind {
            "badNonce" => Cause::Nonce,
            "rateLimited" => Cause::RateLimited,
            "accountDoesNotExist" => Cause::Account,
            _ => Cause::Refused,
        };
        let retry_after = (cause == Cause::RateLimited).then_some(RATE_LIMITED);
        Failure { retry_after, ..Failure::new(cause, told(&problem)) }
    }
}

/// `unauthorized: The key authorization file …; example.com: …`
pub fn told(problem: &Problem) -> String {
    let short = |kind: &Option<String>| {
        let kind = kind.as_deref().unwrap_or("no type");
        kind.strip_prefix(NAMESPACE).unwrap_or(kind).to_owned()
    };
    let mut text = short(&problem.r#type);
    if let Some(detail) = &problem.detail {
        let _always_fits = write!(text, ": {detail}");
    }
    for part in problem.subproblems.iter().take(10) {
        let name = part.identifier.as_ref().map(|identifier| format!("{} ", identifier.authorized(false)));
        let detail = part.detail.as_deref().unwrap_or_default();
        let _always_fits = write!(text, "; {}{}: {detail}", name.unwrap_or_default(), short(&part.r#type));
    }
    text
}

/// What others wrote, on one line and no longer than a line should be.
pub fn printable(text: &str) -> String {
    let invisible = |c: char| {
        c.is_control()
            // Marks that turn the direction of what follows, and other characters without a shape.
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let mut shown: String = text.chars().take(MAX_TEXT).map(|c| if invisible(c) { ' ' } else { c }).collect();
    if text.chars().nth(MAX_TEXT).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(json: &str) -> Problem {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn problems_are_told_by_what_is_to_be_done_about_them() {
        let of = |kind: &str| {
            let json = format!(r#"{{"type":"{NAMESPACE}{kind}","detail":"because"}}"#);
            let failure = Failure::from(Error::Api(problem(&json)));
            assert_eq!(failure.text, format!("{kind}: because"));
            (failure.cause, failure.retry_after)
        };
        assert_eq!(of("badNonce"), (Cause::Nonce, None));
        assert_eq!(of("rateLimited"), (Cause::RateLimited, Some(RATE_LIMITED)));
        assert_eq!(of("accountDoesNotExist"), (Cause::Account, None));
        assert_eq!(of("unauthorized"), (Cause::Refused, None));
        let text = told(&problem(
            r#"{"type":"about:blank","subproblems":[{"type":"urn:ietf:params:acme:error:caa","detail":"no",
                "identifier":{"type":"dns","value":"a.example"}}]}"#,
        ));
        assert_eq!(text, "about:blank; a.example caa: no");
    }

    #[test]
    fn what_an_authority_writes_cannot_forge_a_log() {
        let text = printable("a\nb\x1b[31mred\u{202e}evil");
        assert_eq!(text, "a b [31mred evil");
        let long = printable(&"ä".repeat(5000));
        assert_eq!(long.chars().count(), MAX_TEXT + 1);
    }
}
