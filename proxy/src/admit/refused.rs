//! Who was refused, why, and by which key of the conf: for the client, the metrics, and the log.

use std::net::IpAddr;
use std::time::Duration;
use weir_core::limited;

/// What a client over a count is told: others go when they go, so nobody knows when.
const RETRY_COUNT: Duration = Duration::from_secs(5);

/// Why not: what the client is told, and the cause for metrics and log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    pub status: u16,
    pub cause: &'static str,
    pub retry_after: Option<Duration>,
}

impl Refused {
    pub(super) const fn forbidden(cause: &'static str) -> Refused {
        Refused { status: 403, cause, retry_after: None }
    }

    pub(super) fn too_fast(cause: &'static str, wait: Duration) -> Refused {
        Refused { status: 429, cause, retry_after: Some(wait.max(Duration::from_millis(1))) }
    }

    /// Over a number of its own.
    pub(super) const fn too_many(cause: &'static str) -> Refused {
        Refused { status: 429, cause, retry_after: Some(RETRY_COUNT) }
    }

    pub(super) const fn full(cause: &'static str) -> Refused {
        Refused { status: 503, cause, retry_after: Some(RETRY_COUNT) }
    }

    /// One line, limited by cause, with the key that an operator may want to change.
    pub fn log(&self, client: IpAddr) {
        let Refused { status, cause, .. } = *self;
        let key = key(cause);
        match is_per_address(cause) {
            true => limited!(
                warn,
                ("proxy refuses", cause),
                %client,
                status,
                cause,
                key,
                "a client was refused; if that address is a load balancer or a proxy, it belongs into proxy.trusted"
            ),
            false => {
                limited!(warn, ("proxy refuses", cause), %client, status, cause, key, "a client was refused")
            }
        }
    }
}

/// The same for what is wrong with a client's bytes, its patience or its certificate.
pub fn log_bad(client: IpAddr, cause: &'static str, why: &str) {
    let key = key(cause);
    limited!(info, ("proxy closes", cause), %client, cause, key, why, "a client's connection or request was refused");
}

/// The key of the conf behind a cause; "": none, the client broke a rule of its protocol.
pub fn key(cause: &str) -> &'static str {
    match cause {
        "denied" => "proxy.allow, proxy.deny, or those of the route",
        "connections" => "proxy.max_connections",
        "connections_per_ip" => "proxy.max_connections_per_ip",
        "requests" => "proxy.max_requests",
        "requests_per_ip" => "proxy.max_requests_per_ip",
        "descriptors" => "LimitNOFILE of the service (ulimit -Hn)",
        "displaced" => "proxy.max_connections",
        "rate" => "proxy.handshake_rate, handshake_burst",
        "tls_handshake_rate" => "proxy.tls.handshake_rate, handshake_burst",
        "budget" => "proxy.admission.rate, burst, wait",
        "budget_handshakes" => "proxy.admission.max_handshakes, max_share_per_ip, wait",
        "origin" => "proxy.route.origins, origin_required",
        "token" | "token_keys" => "proxy.route.token, proxy.token",
        "route_connections" => "proxy.route.limits.max_connections",
        "route_connections_per_ip" => "proxy.route.limits.max_connections_per_ip",
        "connections_per_key" => "proxy.route.limits.max_connections_per_key",
        "route_rate" => "proxy.route.limits.handshake_rate, handshake_burst",
        "key_rate" => "proxy.route.limits.key_rate, key_burst",
        "request_rate" => "proxy.route.limits.request_rate, request_burst",
        "proxy_protocol" => "proxy.proxy_protocol",
        "head_timeout" | "h2_preface" => "proxy.head_timeout",
        "head_size" => "proxy.head_size",
        "h2_flood" => "proxy.http2.max_resets",
        "quic_handshakes" => "proxy.quic.max_handshakes, retry_above",
        "quic_handshake_timeout" => "proxy.quic.handshake_timeout",
        "tls_handshake_timeout" => "proxy.tls.handshake_timeout",
        "queue_full" | "queue_timeout" => {
            "proxy.upstream.max_connections, max_handshakes, max_share_per_ip, queue, queue_timeout"
        }
        "retry_budget" => "proxy.upstream.retry_budget",
        "no_sockets" => "LimitNOFILE of the service (ulimit -Hn)",
        "body_size" => "proxy.max_body_size",
        _ => "",
    }
}

pub fn has_key(cause: &str) -> bool {
    !key(cause).is_empty()
}

/// These hit an office or a load balancer as one.
fn is_per_address(cause: &str) -> bool {
    matches!(
        cause,
        "connections_per_ip"
            | "requests_per_ip"
            | "rate"
            | "tls_handshake_rate"
            | "route_connections_per_ip"
            | "route_rate"
            | "request_rate"
    )
}
