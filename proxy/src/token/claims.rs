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
}

impl Rules {
    pub fn new(conf: &Token) -> Rules {
        Rules {
            audience: conf.audience.clone(),
            issuer: conf.issuer.clone(),
            leeway: conf.leeway.as_secs_f64(),
            require_exp: conf.require_exp,
        }
    }

    /// `now` in Unix seconds; how long it still counts, `None`: for ever.
    pub fn check(&self, claims: &Map<String, Value>, now: f64) -> Result<Option<Duration>, Wrong> {
        let exp = time(claims, "exp")?;
        if exp.is_none() && self.require_exp {
            return Err(Wrong::new("claims", "no exp"));
        }
        if time(claims, "nbf")?.is_some_and(|nbf| nbf - self.leeway > now) {
            return Err(Wrong::new("not_yet", "not valid yet (nbf)"));
        }
        time(claims, "iat")?;
        if !self.audience.is_empty() && !self.is_for_us(claims.get("aud")) {
            return Err(Wrong::new("audience", "wrong audience (aud)"));
        }
        let issuer = claims.get("iss").and_then(Value::as_str);
        if !self.issuer.is_empty() && !issuer.is_some_and(|iss| self.issuer.iter().any(|i| i == iss)) {
            return Err(Wrong::new("issuer", "wrong issuer (iss)"));
        }
        // Last: a token that is wrong as well is wrong.
        match exp.map(|exp| exp + self.leeway - now) {
            None => Ok(None),
            Some(left) if left <= 0.0 => Err(Wrong::new("expired", "expired")),
            Some(left) => Ok(Duration::try_from_secs_f64(left).ok()),
        }
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

/// Text as it is, everything else as JSON. What could be read as something else in a header is left
/// out: control characters, blanks at the ends.
pub fn as_header(claim: &Value) -> Option<HeaderValue> {
    let text = match claim {
        Value::Null => return None,
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if text.is_empty() || text.trim() != text {
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
            (json!(null), None),
            (json!(""), None),
            (json!(" ann"), None),
            (json!("ann\r\nX-Admin: 1"), None),
            (json!("a\u{0}b"), None),
            (json!(["a\r\nb"]), Some("[\"a\\r\\nb\"]")),
        ] {
            let got = as_header(&claim);
            assert_eq!(got.as_ref().map(HeaderValue::as_bytes), want.map(str::as_bytes), "{claim}");
        }
    }
}
