//! The proxy's metric families, all under `weir_proxy_`.

use crate::tls::metrics::TlsMetrics;
use crate::upstream::server::Known;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use weir_core::accept::Transport;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    pub outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Cause {
    pub cause: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Handshake {
    pub outcome: &'static str,
    pub transport: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Class {
    pub class: &'static str,
    pub transport: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Carried {
    pub transport: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TunnelEnd {
    pub cause: &'static str,
    pub transport: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Direction {
    pub direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ServerLabels {
    pub upstream: String,
    pub server: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UpstreamFailure {
    pub upstream: String,
    pub server: String,
    pub cause: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UpstreamLabels {
    pub upstream: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct QueueOutcome {
    pub upstream: String,
    pub outcome: &'static str,
}

/// Seconds per server.
#[derive(Clone)]
pub struct PerServer(pub Family<ServerLabels, Histogram, fn() -> Histogram>);

impl Default for PerServer {
    fn default() -> PerServer {
        // From 1 ms on, doubled: 1 ms to 8 s.
        PerServer(Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 14))))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RouteOutcome {
    pub route: String,
    pub outcome: &'static str,
    pub transport: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RouteClass {
    pub route: String,
    pub class: &'static str,
    pub transport: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RouteUpstream {
    pub route: String,
    pub upstream: String,
}

/// From the request's head to the answer that switches protocols.
#[derive(Clone)]
pub struct Latency(Family<RouteUpstream, Histogram>);

impl Default for Latency {
    fn default() -> Latency {
        // From a server next door to the longest that deadlines allow.
        let buckets =
            || Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]);
        Latency(Family::new_with_constructor(buckets))
    }
}

impl Latency {
    pub fn of(&self, route: &str, upstream: &str) -> Histogram {
        let labels = RouteUpstream { route: route.into(), upstream: upstream.into() };
        self.0.get_or_create(&labels).clone()
    }
}

#[derive(Clone, Default)]
pub struct Metrics {
    pub connections: Gauge,
    pub under_way: Gauge,
    pub tunnels: Family<Carried, Gauge>,
    pub handshakes: Family<Handshake, Counter>,
    pub requests: Family<Class, Counter>,
    pub route_handshakes: Family<RouteOutcome, Counter>,
    pub route_requests: Family<RouteClass, Counter>,
    pub latency: Latency,
    pub refused: Family<Cause, Counter>,
    pub tokens: Family<Outcome, Counter>,
    pub jwks_fetches: Family<Outcome, Counter>,
    pub tunnel_ends: Family<TunnelEnd, Counter>,
    pub drain_remaining: Gauge,
    pub breaker_state: Family<ServerLabels, Gauge>,
    pub upstream_failures: Family<UpstreamFailure, Counter>,
    pub upstream_connections: Family<ServerLabels, Gauge>,
    pub upstream_healthy: Family<ServerLabels, Gauge>,
    pub upstream_handshakes: PerServer,
    pub upstream_slow: Family<ServerLabels, Counter>,
    pub upstream_moves: Family<UpstreamLabels, Counter>,
    pub upstream_resent: Family<UpstreamLabels, Counter>,
    pub upstream_share: Family<UpstreamLabels, Counter>,
    pub retries: Family<UpstreamLabels, Counter>,
    pub retries_denied: Family<UpstreamLabels, Counter>,
    pub queue: Family<UpstreamLabels, Gauge>,
    pub queue_outcomes: Family<QueueOutcome, Counter>,
    pub tls: TlsMetrics,
    pub acme_orders: Family<Outcome, Counter>,
    pub http3_errors: Family<Cause, Counter>,
    /// No figure, but shared by the same holders: the servers that figures are of.
    pub servers: Known,
    pub quic: crate::quic::Metrics,
    /// Towards the server.
    pub bytes_up: Counter,
    /// Towards the client.
    pub bytes_down: Counter,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Metrics {
        let bytes = Family::<Direction, Counter>::default();
        let direction = |direction| bytes.get_or_create(&Direction { direction }).clone();
        let metrics =
            Metrics { bytes_up: direction("up"), bytes_down: direction("down"), ..Metrics::default() };
        let r = registry.sub_registry_with_prefix("weir_proxy");
        r.register("connections", "Open client connections", metrics.connections.clone());
        r.register(
            "requests_under_way",
            "Requests under way to servers, tunnels among them",
            metrics.under_way.clone(),
        );
        r.register(
            "tunnels",
            "Open tunnels (WebSockets, sessions of WebTransport) to servers over the network",
            metrics.tunnels.clone(),
        );
        r.register("handshakes", "WebSocket handshakes by outcome", metrics.handshakes.clone());
        r.register("requests", "Other HTTP requests by class of status", metrics.requests.clone());
        r.register(
            "route_handshakes",
            "Handshakes of each route, by outcome",
            metrics.route_handshakes.clone(),
        );
        r.register(
            "route_requests",
            "Other requests of each route, by class",
            metrics.route_requests.clone(),
        );
        r.register(
            "handshake_seconds",
            "Accepted handshakes, from head to answer",
            metrics.latency.0.clone(),
        );
        r.register("refused", "Requests and connections refused, by cause", metrics.refused.clone());
        r.register("tokens", "Tokens judged, by outcome: good, or what was wrong", metrics.tokens.clone());
        r.register("jwks_fetches", "Fetches of sets of keys, by outcome", metrics.jwks_fetches.clone());
        r.register("tunnel_ends", "Ended tunnels by cause", metrics.tunnel_ends.clone());
        r.register(
            "drain_remaining",
            "Open tunnels that are being told to go, in a drain",
            metrics.drain_remaining.clone(),
        );
        r.register("tunnel_bytes", "Bytes relayed, up: towards the server", bytes);
        r.register(
            "breaker_state",
            "A server's breaker: 0 closed, 1 half open, 2 open",
            metrics.breaker_state.clone(),
        );
        r.register(
            "upstream_connect_failures",
            "Servers that could not be reached, by cause",
            metrics.upstream_failures.clone(),
        );
        metrics.register_upstreams(r);
        metrics.tls.register(r);
        r.register(
            "acme_orders",
            "Certificates asked for, by outcome: issued, renewed, or what was wrong",
            metrics.acme_orders.clone(),
        );
        metrics.quic.register(r);
        r.register(
            "http3_errors",
            "Rules broken and limits met on HTTP/3 connections, by cause",
            metrics.http3_errors.clone(),
        );
        metrics
    }

    fn register_upstreams(&self, r: &mut Registry) {
        r.register(
            "upstream_connections",
            "Open tunnels and requests of a server",
            self.upstream_connections.clone(),
        );
        r.register(
            "upstream_healthy",
            "1: the server's active checks succeed, or it has none; 0: they fail",
            self.upstream_healthy.clone(),
        );
        r.register(
            "upstream_handshake_seconds",
            "From the connect to a server to its answer to a handshake",
            self.upstream_handshakes.0.clone(),
        );
        r.register(
            "upstream_slow",
            "Requests whose time ran out before the server answered them; held against it only if it answers nobody",
            self.upstream_slow.clone(),
        );
        r.register(
            "upstream_moves",
            "Clients that went to another server than their key says, because of load_factor",
            self.upstream_moves.clone(),
        );
        r.register(
            "upstream_resent",
            "Plain requests sent again since the kept connection closed at that moment",
            self.upstream_resent.clone(),
        );
        r.register(
            "upstream_share_waits",
            "Requests that had to wait since their address holds its share of the servers' places",
            self.upstream_share.clone(),
        );
        r.register("upstream_retries", "Connects tried again elsewhere", self.retries.clone());
        r.register(
            "upstream_retries_denied",
            "Connects not tried again: the retry budget was spent",
            self.retries_denied.clone(),
        );
        r.register("upstream_queue", "Clients that wait for a server below its limits", self.queue.clone());
        r.register(
            "upstream_queue_outcomes",
            "Clients that waited, by what became of them; full: they could not",
            self.queue_outcomes.clone(),
        );
    }

    pub fn handshake(&self, outcome: &'static str, transport: Transport) {
        self.handshakes.get_or_create(&Handshake { outcome, transport: transport.as_str() }).inc();
    }

    /// To a server of this upstream, on another connection.
    pub fn resent(&self, upstream: &str) {
        self.upstream_resent.get_or_create(&UpstreamLabels { upstream: upstream.into() }).inc();
    }

    pub fn refuse(&self, cause: &'static str) {
        self.refused.get_or_create(&Cause { cause }).inc();
    }

    pub fn http3_error(&self, cause: &'static str) {
        self.http3_errors.get_or_create(&Cause { cause }).inc();
    }

    pub fn token(&self, outcome: &'static str) {
        self.tokens.get_or_create(&Outcome { outcome }).inc();
    }

    pub fn jwks_fetch(&self, outcome: &'static str) {
        self.jwks_fetches.get_or_create(&Outcome { outcome }).inc();
    }

    pub fn acme_order(&self, outcome: &'static str) {
        self.acme_orders.get_or_create(&Outcome { outcome }).inc();
    }

    /// Of a route; the sum over all routes, and what came to none, is in `handshakes`.
    pub fn route_handshake(&self, route: &str, outcome: &'static str, transport: Transport) {
        let labels = RouteOutcome { route: route.into(), outcome, transport: transport.as_str() };
        self.route_handshakes.get_or_create(&labels).inc();
    }

    pub fn request(&self, route: &str, status: u16, transport: Transport) {
        let transport = transport.as_str();
        let class = match status {
            100..=199 => "1xx",
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            500..=599 => "5xx",
            _ => "none",
        };
        self.requests.get_or_create(&Class { class, transport }).inc();
        self.route_requests.get_or_create(&RouteClass { route: route.into(), class, transport }).inc();
    }
}
