//! The node, its brokers and its channels.

use super::Rules;
use super::listeners::is_loopback;
use crate::Config;
use crate::channel::{Ack, ChannelOptions, Delivery, WhenMinority};
use crate::units::{Bytes, duration_text};
use std::net::SocketAddr;

impl Rules<'_> {
    pub(super) fn node(&mut self) {
        let Config { node, roles, .. } = self.config;
        if !node.ping_interval.is_zero() && node.pong_timeout >= node.ping_interval {
            let text = format!(
                "is not shorter than ping_interval; accepted: less than {}",
                duration_text(node.ping_interval)
            );
            self.mistake(&["node.pong_timeout", "node.ping_interval"], text);
        }
        for (i, origin) in node.allowed_origins.iter().enumerate() {
            if !is_origin(origin) {
                let text = format!(
                    "{origin:?} is not an origin; accepted: \"*\", or SCHEME://HOST with a port if it is not the usual one and without a path, such as \"https://*.example.com\""
                );
                self.mistake(&[&format!("node.allowed_origins[{i}]")], text);
            }
        }
        let overflow = "one publication could overflow every subscriber's outbox";
        let fits = [
            ("node.api_body_size", node.api_body_size, "node.outbox_size", node.outbox_size, overflow),
            ("node.message_size", node.message_size, "node.outbox_size", node.outbox_size, overflow),
            (
                "node.reply_size",
                node.reply_size,
                "node.replies_memory",
                node.replies_memory,
                "one reply would cost everybody else's",
            ),
        ];
        for (key, size, other, limit, why) in fits {
            if size > limit {
                self.warn(
                    &[key, other],
                    format!("{} is more than {other} {}: {why}", Bytes(size), Bytes(limit)),
                );
            }
        }
        if roles.broker {
            self.node_and_broker();
        }
    }

    /// What one of them accepts and the other one does not.
    fn node_and_broker(&mut self) {
        let Config { node, broker, .. } = self.config;
        if node.message_size > broker.message_size {
            let text = format!(
                "{} is more than broker.message_size {}: the broker would refuse what the node accepts",
                Bytes(node.message_size),
                Bytes(broker.message_size)
            );
            self.warn(&["node.message_size", "broker.message_size"], text);
        }
        // Other nodes may have larger limits of their own.
        if broker.message_size > node.outbox_size {
            let text = format!(
                "{} is more than node.outbox_size {}: one publication could overflow every subscriber's outbox",
                Bytes(broker.message_size),
                Bytes(node.outbox_size)
            );
            self.warn(&["broker.message_size", "node.outbox_size"], text);
        }
    }

    pub(super) fn brokers(&mut self) {
        let Config { node, roles, .. } = self.config;
        let tls = [
            ("broker_tls_cert", &node.broker_tls_cert),
            ("broker_tls_key", &node.broker_tls_key),
            ("broker_tls_ca", &node.broker_tls_ca),
        ];
        let some_tls = tls.iter().any(|(_, path)| !path.is_empty());
        self.tls_files("node", tls);
        if roles.broker {
            if !node.brokers.is_empty() {
                let text = "the broker is in this process; accepted: no brokers here (others of its cluster: broker.peers), or no \"broker\" in roles";
                self.mistake(&["node.brokers", "roles"], text);
            }
            for (key, _) in tls.iter().filter(|(_, path)| !path.is_empty()) {
                let text = "has no effect: the broker is in this process; for its links see broker.tls_cert";
                self.warn(&[&format!("node.{key}"), "roles"], text);
            }
            return;
        }
        if node.brokers.is_empty() {
            let text = "no broker in this process and none to attach to; accepted: [\"HOST:PORT\"], or \"broker\" in roles";
            return self.mistake(&["node.brokers", "node", "roles"], text);
        }
        let brokers: Vec<&str> = node.brokers.iter().map(String::as_str).collect();
        self.servers("node.brokers", &brokers, false);
        let remote = |server: &String| server.parse().is_ok_and(|addr: SocketAddr| !is_loopback(addr));
        // Part of the TLS files is a mistake of its own.
        if node.broker_secret.is_empty() && !some_tls && node.brokers.iter().any(remote) {
            let text = "brokers on other machines ask for their secret, or for TLS; accepted: \"file:/path\", \"env:NAME\", or broker_tls_cert, broker_tls_key and broker_tls_ca";
            self.mistake(&["node.broker_secret", "node.brokers"], text);
        }
    }

    pub(super) fn channels(&mut self) {
        let channel = &self.config.channel;
        self.channel("channel", &channel.without_namespace);
        for (name, options) in &channel.namespace {
            self.channel(&format!("channel.namespace[{name}]"), options);
        }
    }

    fn channel(&mut self, section: &str, options: &ChannelOptions) {
        let key = |name: &str| format!("{section}.{name}");
        let (size, ttl) = (key("history_size"), key("history_ttl"));
        let history = options.history_size > 0 && !options.history_ttl.is_zero();
        if options.history_size > 0 && !history {
            self.mistake(
                &[&size, &ttl],
                "history is kept only with history_ttl too; accepted: 0, or history_ttl above \"0s\"",
            );
        } else if !options.history_ttl.is_zero() && !history {
            self.mistake(
                &[&ttl, &size],
                "history is kept only with history_size too; accepted: \"0s\", or history_size above 0",
            );
        }
        let positions = [
            ("force_positioning", options.force_positioning),
            ("allow_positioning", options.allow_positioning),
            ("force_recovery", options.force_recovery),
            ("allow_recovery", options.allow_recovery),
        ];
        for (name, on) in positions {
            if on && !history {
                self.mistake(
                    &[&key(name), &size, &ttl],
                    "needs history; accepted: false, or history_size and history_ttl",
                );
            }
        }
        if history {
            self.history_fits(&size, options.history_size as usize);
        }
        if history && options.history_meta_ttl < options.history_ttl {
            let text = format!(
                "is shorter than history_ttl; accepted: {} or more",
                duration_text(options.history_ttl)
            );
            self.mistake(&[&key("history_meta_ttl"), &ttl], text);
        }
        if options.delivery == Delivery::Datagram
            && (options.history_size > 0 || !options.history_ttl.is_zero())
        {
            self.mistake(
                &[&key("delivery"), &size, &ttl],
                "goes without history: with datagrams the newest publication wins, and lost ones are not caught up with; accepted: \"stream\", or no history_size and history_ttl",
            );
        }
        let kept = [
            ("ack", options.ack != Ack::Copies),
            ("when_minority", options.when_minority != WhenMinority::Refuse),
        ];
        for (name, said) in kept {
            if said && !history {
                self.warn(
                    &[&key(name), &size, &ttl],
                    "has no effect without history: what no broker keeps is delivered at most once, whatever it says",
                );
            }
        }
        if options.force_push_join_leave && !options.join_leave {
            self.mistake(
                &[&key("force_push_join_leave"), &key("join_leave")],
                "needs join_leave; accepted: false, or join_leave = true",
            );
        }
    }

    /// Whether a channel's history has room in the broker of this process, if all of it is used.
    fn history_fits(&mut self, key: &str, publications: usize) {
        let memory = self.config.broker.history_memory;
        // Publications of a tenth of the largest: a rough guess, but ten times what fits is no history.
        let most = publications.saturating_mul((self.config.node.message_size / 10).max(1));
        if self.config.roles.broker && most > memory {
            let text = format!(
                "{publications} publications of a tenth of node.message_size are more than broker.history_memory {}: so much is never kept",
                Bytes(memory)
            );
            self.warn(&[key, "broker.history_memory"], text);
        }
    }
}

fn is_origin(text: &str) -> bool {
    let plain =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_graphic() && !b"/?#".contains(&b));
    text == "*"
        || text == "null"
        || text.split_once("://").is_some_and(|(scheme, host)| plain(scheme) && plain(host))
}
