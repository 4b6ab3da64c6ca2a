//! Header names from hop to hop. The proxy overwrites all of them; a node or a proxy honours
//! them only from peers listed in `trusted`.

/// The addresses a request has passed, the client's first (de facto standard; RFC 7239 calls it `for`).
pub const FORWARDED_FOR: &str = "x-forwarded-for";
/// `http` or `https`: what the client spoke.
pub const FORWARDED_PROTO: &str = "x-forwarded-proto";
/// The connection's name in the logs of every tier, see [`crate::id::ConnId`].
pub const REQUEST_ID: &str = "x-request-id";
