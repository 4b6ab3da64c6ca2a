//! The families of this tier, under `weir_node_`.

use crate::client::Client;
use crate::rates::Refused;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use weir_core::accept::Transport;
use weir_core::limited;
use weir_wire::close::Close;

/// One label, from a closed set: close codes, error codes, outcomes.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Code {
    pub code: u32,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Outcome {
    pub outcome: &'static str,
}

/// [`Transport::as_str`].
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct By {
    pub transport: &'static str,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Handshake {
    pub outcome: &'static str,
    pub transport: &'static str,
}

/// A rate that was exceeded: what of, and whose.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct OfRate {
    pub kind: &'static str,
    pub by: &'static str,
}

#[derive(Clone, Default)]
pub struct Metrics {
    pub connections: Family<By, Gauge>,
    pub handshakes: Family<Handshake, Counter>,
    pub messages_in: Counter,
    pub messages_out: Counter,
    pub bytes_in: Counter,
    pub bytes_out: Counter,
    pub publications: Counter,
    pub deliveries: Counter,
    pub datagrams: Family<Outcome, Counter>,
    pub subscriptions: Gauge,
    pub channels: Gauge,
    pub disconnects: Family<Code, Counter>,
    pub errors: Family<Code, Counter>,
    pub gaps: Family<Outcome, Counter>,
    pub catch_ups: Family<Outcome, Counter>,
    pub rate_refusals: Family<OfRate, Counter>,
    pub backlog_closes: Counter,
    pub resyncs: Counter,
    pub panics: Counter,
    pub api_requests: Family<Outcome, Counter>,
    pub accept_errors: Counter,
    pub leaves_lost: Counter,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Metrics {
        let m = Metrics::default();
        let r = registry.sub_registry_with_prefix("weir_node");
        r.register("connections", "Open client connections by transport", m.connections.clone());
        r.register("handshakes", "Handshakes by outcome and transport", m.handshakes.clone());
        r.register("messages_in", "Messages from clients", m.messages_in.clone());
        r.register("messages_out", "Frames handed to client sockets", m.messages_out.clone());
        r.register("bytes_in", "Bytes from clients after the handshake", m.bytes_in.clone());
        r.register("bytes_out", "Bytes handed to client sockets after the handshake", m.bytes_out.clone());
        r.register("publications", "Publications that came from the bus", m.publications.clone());
        r.register(
            "deliveries",
            "Publications put into clients' outboxes or sent as datagrams",
            m.deliveries.clone(),
        );
        r.register("datagrams", "Publications for clients that take datagrams, by what became of them (too_large, unsupported: they went by the stream)", m.datagrams.clone());
        r.register("subscriptions", "Subscriptions of clients here", m.subscriptions.clone());
        r.register("channels", "Channels with interest at the bus", m.channels.clone());
        r.register("disconnects", "Connections ended, by close code (1000: by the client, 1006: lost, 4000: a code of the backend's)", m.disconnects.clone());
        r.register("errors", "Error replies by code", m.errors.clone());
        r.register("gaps", "Holes in a channel's deliveries, by what became of them", m.gaps.clone());
        r.register(
            "catch_ups",
            "Subscribers that were given what they missed in pieces (lost: the stream had dropped the rest)",
            m.catch_ups.clone(),
        );
        r.register(
            "backlog_closes",
            "Clients closed with 3008 because replies took node.replies_memory, and they read theirs slowest",
            m.backlog_closes.clone(),
        );
        r.register(
            "rate_refusals",
            "Commands over a rate of node.rate, by what they ask for and whose rate it is",
            m.rate_refusals.clone(),
        );
        r.register("resyncs", "Channels whose deliveries the bus could not vouch for", m.resyncs.clone());
        r.register("panics", "Panics that were contained", m.panics.clone());
        r.register("api_requests", "Server HTTP API calls by outcome", m.api_requests.clone());
        r.register(
            "accept_errors",
            "Failures of accept(), such as too many open files",
            m.accept_errors.clone(),
        );
        // Shown before the first one comes.
        m.connections(Transport::H1);
        r.register("leaves_lost", "Memberships that could not be ended in time", m.leaves_lost.clone());
        m
    }

    pub fn connections(&self, transport: Transport) -> Gauge {
        self.connections.get_or_create(&By { transport: transport.as_str() }).clone()
    }

    pub fn handshake(&self, outcome: &'static str, transport: Transport) {
        self.handshakes.get_or_create(&Handshake { outcome, transport: transport.as_str() }).inc();
    }

    pub fn gap(&self, outcome: &'static str) {
        self.gaps.get_or_create(&Outcome { outcome }).inc();
    }

    pub fn rate_refused(&self, refused: Refused, client: &Client) {
        let (kind, by) = (refused.kind.name(), refused.by.name());
        self.rate_refusals.get_or_create(&OfRate { kind, by }).inc();
        let user = client.user().map(|user| &**user);
        limited!(
            info,
            (by, kind),
            user,
            client = &*client.id,
            "over node.rate.{by}.{kind}: answered with 111"
        );
    }

    /// So many clients were closed to make room for replies.
    pub fn backlog(&self, closed: usize) {
        if closed > 0 {
            self.backlog_closes.inc_by(closed as u64);
            tracing::warn!(
                closed,
                key = "node.replies_memory",
                "replies take all their memory: slow readers are closed"
            );
        }
    }

    pub fn catch_up(&self, outcome: &'static str) {
        self.catch_ups.get_or_create(&Outcome { outcome }).inc();
    }

    pub fn datagrams(&self, outcome: &'static str, n: u64) {
        self.datagrams.get_or_create(&Outcome { outcome }).inc_by(n);
    }

    pub fn error(&self, code: u32) {
        self.errors.get_or_create(&Code { code }).inc();
    }

    pub fn disconnect(&self, code: u16) {
        // Codes that backends choose come to one label: they are no closed set.
        let known = matches!(code, 1000 | 1006) || Close::ALL.iter().any(|c| c.code == code);
        let code = if known { u32::from(code) } else { 4000 };
        self.disconnects.get_or_create(&Code { code }).inc();
    }
}
