//! The server HTTP API: `POST /api/<method>` with a key, for backends.
//!
//! 401 without the right key, 413 over `node.api_body_size`, 400 for what is no JSON or lacks its
//! shape, otherwise 200 with `{"result":…}` or `{"error":{"code":…,"message":…}}`. A caller that
//! sends `X-Centrifugo-Error-Mode: transport` gets errors as HTTP statuses instead.
#![expect(clippy::result_large_err, reason = "a refusal is the response itself, once per connection")]

mod commands;
mod methods;
mod params;

use crate::listener::handshake::{parameter, text};
use crate::listener::json;
use crate::metrics::Outcome;
use crate::protocol::json::write_str;
use crate::shared::Shared;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::sync::Arc;
use weir_core::jwt::same_secret;
use weir_wire::code::ErrorCode;

const ERROR_MODE: &str = "x-centrifugo-error-mode";

/// Why a call has no result.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// The parameters are no JSON of the right shape.
    Malformed,
    Error(ErrorCode),
}

impl From<ErrorCode> for Failure {
    fn from(error: ErrorCode) -> Failure {
        Failure::Error(error)
    }
}

/// The JSON text of a result.
pub type Answer = Result<String, Failure>;

/// In the server API a method or thing that is not there is 104.
pub const NOT_FOUND: ErrorCode = ErrorCode { message: "not found", ..ErrorCode::METHOD_NOT_FOUND };

pub async fn serve(request: Request<Incoming>, shared: Arc<Shared>) -> Response<Bytes> {
    let by_status = request.headers().get(ERROR_MODE).is_some_and(|v| v == "transport");
    let response = match admit(&request, &shared) {
        Err(response) => response,
        Ok(method) => match body(request, &shared).await {
            Ok(body) => run(&shared, method.as_deref(), &body, by_status).await,
            Err(response) => response,
        },
    };
    let outcome = match response.status().as_u16() {
        200 => "ok",
        401 => "unauthorized",
        400..=499 => "bad_request",
        _ => "error",
    };
    shared.metrics.api_requests.get_or_create(&Outcome { outcome }).inc();
    response
}

/// The method in the path; `None`: it is in the body.
fn admit(request: &Request<Incoming>, shared: &Shared) -> Result<Option<String>, Response<Bytes>> {
    if !has_key(request, shared.conf.api_key.reveal()) {
        return Err(text(StatusCode::UNAUTHORIZED, "unauthorized"));
    }
    if request.method() != Method::POST {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "the API takes POST");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return Err(response);
    }
    match request.uri().path().trim_end_matches('/').strip_prefix("/api/") {
        None => Ok(None),
        Some(method) if methods::is_method(method) => Ok(Some(method.to_owned())),
        Some(_) => Err(text(StatusCode::NOT_FOUND, "no such method")),
    }
}

fn has_key(request: &Request<Incoming>, key: &str) -> bool {
    let headers = request.headers();
    let of = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let given = of("x-api-key").map(str::to_owned).or_else(|| {
        let (scheme, key) = of("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("apikey").then(|| key.trim().to_owned())
    });
    let given = given.or_else(|| parameter(request.uri().query()?, "api_key")).unwrap_or_default();
    same_secret(&given, key)
}

async fn body(request: Request<Incoming>, shared: &Shared) -> Result<Bytes, Response<Bytes>> {
    let limited = Limited::new(request.into_body(), shared.conf.api_body_size);
    match tokio::time::timeout(shared.conf.handshake_timeout, limited.collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(text(StatusCode::PAYLOAD_TOO_LARGE, "body over node.api_body_size"))
        }
        Ok(Err(_)) => Err(text(StatusCode::BAD_REQUEST, "cannot read the body")),
        Err(_) => Err(text(StatusCode::REQUEST_TIMEOUT, "the body took too long")),
    }
}

/// The older form: the method in the body.
#[derive(Deserialize)]
struct Envelope<'a> {
    method: String,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

async fn run(shared: &Arc<Shared>, method: Option<&str>, body: &[u8], by_status: bool) -> Response<Bytes> {
    let Ok(body) = std::str::from_utf8(body) else { return text(StatusCode::BAD_REQUEST, "no UTF-8") };
    let answer = match method {
        Some(method) => methods::call(shared, method, if body.is_empty() { "{}" } else { body }).await,
        None => match serde_json::from_str::<Envelope<'_>>(body) {
            Ok(call) => methods::call(shared, &call.method, call.params.map_or("{}", RawValue::get)).await,
            Err(_) => Err(Failure::Malformed),
        },
    };
    match answer {
        Ok(result) => json(StatusCode::OK, format!("{{\"result\":{result}}}").into()),
        Err(Failure::Malformed) => text(StatusCode::BAD_REQUEST, "no JSON of the method's shape"),
        Err(Failure::Error(error)) => {
            let status = if by_status { status(error) } else { StatusCode::OK };
            json(status, format!("{{\"error\":{}}}", error_object(error)).into())
        }
    }
}

fn error_object(error: ErrorCode) -> String {
    let mut message = Vec::new();
    write_str(&mut message, error.message);
    format!("{{\"code\":{},\"message\":{}}}", error.code, String::from_utf8_lossy(&message))
}

fn status(error: ErrorCode) -> StatusCode {
    match error.code {
        102 | 104 => StatusCode::NOT_FOUND,
        107 | 108 => StatusCode::BAD_REQUEST,
        112 => StatusCode::RANGE_NOT_SATISFIABLE,
        113 => StatusCode::CONFLICT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
