//! What comes from the bus: deliveries to the hub, commands to the connections they are for,
//! questions to whom they concern. One task, in order; nothing in it waits.

use crate::process;
use crate::session::{Event as ClientEvent, ServerSubscribe};
use crate::shared::Shared;
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use weir_broker::{Event, Inbox};
use weir_wire::close::Close;
use weir_wire::envelope::{Answer, Control, NodeInfo, Question, Target};

/// Ends when the bus does.
pub async fn run(shared: Arc<Shared>, mut inbox: Inbox) {
    loop {
        let reading = AssertUnwindSafe(async {
            while let Some(event) = inbox.next().await {
                handle(&shared, event);
            }
        });
        if reading.catch_unwind().await.is_ok() {
            return;
        }
        shared.metrics.panics.inc();
        tracing::error!("a panic while handling what came from the bus; going on");
    }
}

fn handle(shared: &Arc<Shared>, event: Event) {
    match event {
        Event::Deliver(delivery) => shared.hub.deliver(delivery),
        Event::Control(control) => apply(shared, control),
        Event::Survey { id, question } => {
            let shared = shared.clone();
            tokio::spawn(async move {
                let answer = answer(&shared, question);
                let Ok(bus) = shared.hub.bus() else { return };
                if let Err(error) = bus.answer(id, answer).await {
                    tracing::debug!(%error, "could not answer a survey");
                }
            });
        }
        Event::Resync(positions) => {
            for (channel, top) in positions {
                shared.hub.resync(&channel, top);
            }
        }
        Event::Link(up) if up => tracing::info!("the broker is back"),
        Event::Link(_) => tracing::warn!("the broker is away; live connections stay"),
    }
}

fn apply(shared: &Shared, control: Control) {
    let post = |target: &Target, event: ClientEvent| shared.hub.post(target, &[], &event);
    match control {
        Control::Disconnect { target, whitelist, code, reason } => {
            let close = Close::custom(code, &reason);
            shared.hub.post(&target, &whitelist, &ClientEvent::Disconnect(close));
        }
        Control::Unsubscribe { target, channel } => post(&target, ClientEvent::Unsubscribe { channel }),
        Control::Subscribe { target, channel, info, data, recover_since, expire_at } => {
            let order = ServerSubscribe { channel, info, data, since: recover_since, expire_at };
            post(&target, ClientEvent::Subscribe(Box::new(order)));
        }
        Control::Refresh { target, expired, expire_at, info } => {
            post(&target, ClientEvent::Refresh { expired, expire_at, info });
        }
    }
}

fn answer(shared: &Shared, question: Question) -> Answer {
    match question {
        Question::Info => Answer::Info(info(shared)),
        Question::Channels { pattern } => {
            let counts = shared.hub.channel_counts();
            let matching = counts.into_iter().filter(|(name, _)| pattern.is_empty() || glob(&pattern, name));
            Answer::Channels(matching.map(|(name, n)| (name.to_string(), n)).collect())
        }
    }
}

pub fn info(shared: &Shared) -> NodeInfo {
    let channels = shared.hub.channel_counts();
    let subscriptions: u32 = channels.iter().map(|(_, n)| n).sum();
    NodeInfo {
        node: shared.id,
        name: shared.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        clients: shared.hub.clients() as u32,
        users: shared.hub.users() as u32,
        subscriptions,
        channels: channels.len() as u32,
        uptime_s: shared.started.elapsed().as_secs() as u32,
        cpu_percent: process::cpu_percent(),
        rss_bytes: process::rss_bytes(),
    }
}

/// `*` is any text, `?` any one character; linear in both, whatever the pattern.
pub fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, t) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, text, want) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abbd", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*:1", "chat:1", true),
            ("chat:*", "chat", false),
            ("**a**", "bab", true),
            ("", "x", false),
        ] {
            assert_eq!(glob(pattern, text), want, "{pattern} {text}");
        }
    }
}
