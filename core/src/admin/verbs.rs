//! `POST /admin/v1/VERB`: what operators can ask a running process to do. A JSON object in, a JSON
//! object out; a failure is a status and a text that an operator can act on.

use http::StatusCode;
use serde_json::Value;
use std::future::Future;
use std::pin::Pin;

/// Larger than any order that makes sense.
pub const MAX_BODY: usize = 64 * 1024;

pub type Answer<'a> = Pin<Box<dyn Future<Output = Result<Value, Failure>> + Send + 'a>>;

/// Whoever knows the tiers of this process.
pub trait Verbs: Send + Sync + 'static {
    /// `order` is an object, empty where the request had no body.
    fn call<'a>(&'a self, verb: &'a str, order: Value) -> Answer<'a>;
}

/// Why an order was not carried out.
#[derive(Debug)]
pub struct Failure {
    pub status: StatusCode,
    pub text: String,
}

impl Failure {
    /// The order makes no sense: 400.
    pub fn bad(text: impl Into<String>) -> Failure {
        Failure { status: StatusCode::BAD_REQUEST, text: text.into() }
    }

    /// There is no such thing here: 404.
    pub fn unknown(text: impl Into<String>) -> Failure {
        Failure { status: StatusCode::NOT_FOUND, text: text.into() }
    }

    /// It makes sense, and could not be done; nothing has changed: 409.
    pub fn refused(text: impl Into<String>) -> Failure {
        Failure { status: StatusCode::CONFLICT, text: text.into() }
    }
}
