//! What a signed token has to say to count, and how its claims become headers. Pure.

use super::Wrong;
use http::HeaderValue;
use serde_json::{Map, Value};
use std::time::Duration;
use weir_conf::proxy::Token;

pub struct Rules {
    audience: Vec<String>,
    issuer: Vec<String>,
    leeway: f64,
    require_exp: bool,
    /// Claims that have to be there, and to say something.
    required: Vec<String>,
}

impl Rules {
    pub fn new(conf: &Token) -> Rules {
        Rules {
            audience: conf.audience.clone(),
            issuer: conf.issuer.clone(),
            leeway: conf.leeway.as_secs_f64(),
            require_exp: conf.require_exp,
            required: conf.required(),
        }
    }

    /// `now` in Unix seconds; how long it still counts, `None`: for ever.
    pub fn check(&self, claims: &Map<String, Value>, now: f64) -> Result<Option<Duration>, Wrong> {
        let exp = time(claims, "exp")?;
        if exp.is_none() && self.require_exp {
            return Err(Wrong::new("claims", "no exp"));
        }
        let (nbf, iat) = (time(claims, "nbf")?, time(claims, "iat")?);
        if !self.audience.is_empty() && !self.is_for_us(claims.get("aud")) {
            return Err(Wrong::new("audience", "wrong audience (aud)"));
        }
        let issuer = claims.get("iss").and_then(Value::as_str);
        if !self.issuer.is_empty() && !issuer.is_some_and(|iss| self.issuer.iter().any(|i| i == iss)) {
            return Err(Wrong::new("issuer", "wrong issuer (iss)"));
        }
        if let Some(claim) = self.required.iter().find(|claim| !is_said(claims.get(*claim))) {
            return Err(Wrong::new("claims", format!("no {claim}")));
        }
        // Last: a token that is wrong as well is wrong.
        for (name, time) in [("nbf", nbf), ("iat", iat)] {
            if time.is_some_and(|time| time - self.leeway > now) {
                return Err(Wrong::new("not_yet", format!("not valid yet ({name})")));
            }
        }
        match exp.map(|exp| exp + self.leeway - now) {
            None => Ok(None),
            Some(left) if left <= 0.0 => Err(Wrong::new("expired", "expired")),
            Some(left) => Ok(Duration::try_from_secs_f64(left).ok()),
        }
    }

    /// A claim as the header that it is passed on in; none if it says nothing. What it says is passed on or the
    /// token does not count: a server that got no header would take somebody for nobody.
    pub fn header(&self, claims: &Map<String, Value>, name: &str) -> Result<Option<HeaderValue>, Wrong> {
        let Some(claim) = claims.get(name).filter(|claim| is_said(Some(claim))) else { return Ok(None) };
        let unfit = || Wrong::new("claims", format!("{name} cannot be a header"));
        as_header(claim).map(Some).ok_or_else(unfit)
    }

    fn is_for_us(&self, aud: Option<&Value>) -> bool {
        let ours = |aud: &Value| aud.as_str().is_some_and(|aud| self.audience.iter().any(|a| a == aud));
        match aud {
            Some(Value::Array(all)) => all.iter().any(ours),
            Some(one) => ours(one),
            None => false,
        }
    }
}

fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<f64>, Wrong> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => match value.as_f64().filter(|time| time.is_finite()) {
            Some(time) => Ok(Some(time)),
            None => Err(Wrong::new("claims", format!("{name} is no time"))),
        },
    }
}

/// Whether a claim says anything.
fn is_said(claim: Option<&Value>) -> bool {
    !matches!(claim, None | Some(Value::Null)) && claim.and_then(Value::as_str) != Some("")
}

/// Text as it is, everything else as JSON. `None`: it could be read as something else in a header, by control
/// characters or blanks at its ends.
fn as_header(claim: &Value) -> Option<HeaderValue> {
    let text = match claim {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if text.trim() != text {
        return None;
    }
    HeaderValue::from_bytes(text.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_become_headers_that_say_one_thing() {
        for (claim, want) in [
            (json!("ann"), Some("ann")),
            (json!(42), Some("42")),
            (json!(true), Some("true")),
            (json!(["a", "b,c"]), Some("[\"a\",\"b,c\"]")),
            (json!({"x": 1}), Some("{\"x\":1}")),
            (json!(" ann"), None),
            (json!("ann\u{a0}"), None),
            (json!("ann\r\nX-Admin: 1"), None),
            (json!("ann\n"), None),
            (json!("a\u{0}b"), None),
            (json!("a\u{7f}b"), None),
            (json!(["a\r\nb"]), Some("[\"a\\r\\nb\"]")),
        ] {
            let got = as_header(&claim);
            assert_eq!(got.as_ref().map(HeaderValue::as_bytes), want.map(str::as_bytes), "{claim}");
        }
    }

    #[test]
    fn a_claim_is_passed_on_or_says_nothing_or_is_refused() {
        let rules = |required: Option<Vec<String>>| {
            let claims = [("sub".to_owned(), "X-User".to_owned())].into();
            Rules::new(&Token { claims, required_claims: required, require_exp: false, ..Token::default() })
        };
        let map = |claims: Value| claims.as_object().unwrap().clone();
        let usual = rules(None);
        for (claims, good) in [
            (json!({"sub": "ann"}), true),
            (json!({"sub": 7}), true),
            (json!({}), false),
            (json!({"sub": null}), false),
            (json!({"sub": ""}), false),
        ] {
            assert_eq!(usual.check(&map(claims.clone()), 0.0).is_ok(), good, "{claims}");
        }
        assert!(rules(Some(vec![])).check(&map(json!({})), 0.0).is_ok());
        let tenant = rules(Some(vec!["tenant".into()]));
        assert!(tenant.check(&map(json!({"sub": "ann"})), 0.0).is_err());
        for (claims, says) in [
            (json!({}), Ok(None)),
            (json!({"sub": null}), Ok(None)),
            (json!({"sub": ""}), Ok(None)),
            (json!({"sub": "ann"}), Ok(Some("ann"))),
            (json!({"sub": "a\nb"}), Err("claims")),
            (json!({"sub": " "}), Err("claims")),
        ] {
            let header = usual.header(&map(claims.clone()), "sub");
            let header = header.map(|h| h.map(|h| h.to_str().unwrap().to_owned())).map_err(|w| w.reason);
            assert_eq!(header, says.map(|h| h.map(str::to_owned)), "{claims}");
        }
    }
}
