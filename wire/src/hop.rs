//! Header names from hop to hop. The proxy overwrites all of them; a node or a proxy honours
//! them only from peers listed in `trusted`. And what a proxy upgrades a connection to for a session of
//! WebTransport.

/// The addresses a request has passed, the client's first (de facto standard; RFC 7239 calls it `for`).
pub const FORWARDED_FOR: &str = "x-forwarded-for";
/// `http` or `https`: what the client spoke.
pub const FORWARDED_PROTO: &str = "x-forwarded-proto";
/// The connection's name in the logs of every tier, see [`crate::id::ConnId`].
pub const REQUEST_ID: &str = "x-request-id";

/// From the upgrade on the proxy says the bytes of the session's stream, as they are. The node says them in data frames
/// (RFC 6455, 5.2, unmasked), and ends with a Close frame: the session's code and reason.
pub const WEBTRANSPORT: &str = "weir-webtransport";
