//! The proxy's metric families, all under `weir_proxy_`.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    pub outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Cause {
    pub cause: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Class {
    pub class: &'static str,
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

#[derive(Clone, Default)]
pub struct Metrics {
    pub connections: Gauge,
    pub tunnels: Gauge,
    pub handshakes: Family<Outcome, Counter>,
    pub requests: Family<Class, Counter>,
    pub refused: Family<Cause, Counter>,
    pub tokens: Family<Outcome, Counter>,
    pub jwks_fetches: Family<Outcome, Counter>,
    pub tunnel_ends: Family<Cause, Counter>,
    pub breaker_state: Family<ServerLabels, Gauge>,
    pub upstream_failures: Family<UpstreamFailure, Counter>,
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
        r.register("tunnels", "Open WebSocket tunnels to servers over the network", metrics.tunnels.clone());
        r.register("handshakes", "WebSocket handshakes by outcome", metrics.handshakes.clone());
        r.register("requests", "Other HTTP requests by class of status", metrics.requests.clone());
        r.register("refused", "Requests and connections refused, by cause", metrics.refused.clone());
        r.register("tokens", "Tokens judged, by outcome: good, or what was wrong", metrics.tokens.clone());
        r.register("jwks_fetches", "Fetches of sets of keys, by outcome", metrics.jwks_fetches.clone());
        r.register("tunnel_ends", "Ended tunnels by cause", metrics.tunnel_ends.clone());
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
        metrics
    }

    pub fn handshake(&self, outcome: &'static str) {
        self.handshakes.get_or_create(&Outcome { outcome }).inc();
    }

    pub fn refuse(&self, cause: &'static str) {
        self.refused.get_or_create(&Cause { cause }).inc();
    }

    pub fn token(&self, outcome: &'static str) {
        self.tokens.get_or_create(&Outcome { outcome }).inc();
    }

    pub fn jwks_fetch(&self, outcome: &'static str) {
        self.jwks_fetches.get_or_create(&Outcome { outcome }).inc();
    }

    pub fn request(&self, status: u16) {
        let class = match status {
            100..=199 => "1xx",
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            500..=599 => "5xx",
            _ => "none",
        };
        self.requests.get_or_create(&Class { class }).inc();
    }
}
