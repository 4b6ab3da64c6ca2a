//! What would stop this proxy's start, though the conf by itself is sound: files that are not there, or do not
//! hold what they should. Nothing is bound, and nobody is asked.

use crate::error::BindError;
use crate::metrics::Metrics;
use crate::token::Verifier;
use crate::upstream::tls::Client;
use weir_conf::proxy::Proxy;

pub use crate::tls::judge::{NO_NAMES, Part, Remark, Weight, authorities, pair};

/// By the key to blame.
pub fn files(conf: &Proxy) -> Vec<(String, String)> {
    let mut wrong = Vec::new();
    for (name, token) in &conf.token {
        if let Err(BindError::Token { token, key, reason }) =
            Verifier::build(name, token, None, &Metrics::default())
        {
            wrong.push((format!("proxy.token.{token}.{key}"), reason));
        }
    }
    for (name, upstream) in &conf.upstream {
        if let Some(Err(error)) = upstream.tls.as_ref().map(|tls| Client::new(tls, None)) {
            wrong.push((format!("proxy.upstream.{name}.tls"), error.to_string()));
        }
    }
    wrong
}
