//! From a channel's name to its options, and whether the name is one at all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use weir_conf::channel::{self as conf, ChannelOptions, Channels};
use weir_wire::code::ErrorCode;
use weir_wire::envelope::{Ack, StreamOptions};

pub struct Namespaces {
    without: Arc<ChannelOptions>,
    named: BTreeMap<String, Arc<ChannelOptions>>,
    name_size: usize,
}

impl Namespaces {
    pub fn new(channels: &Channels, name_size: usize) -> Namespaces {
        let named = channels.namespace.iter().map(|(n, o)| (n.clone(), Arc::new(o.clone())));
        Namespaces {
            without: Arc::new(channels.without_namespace.clone()),
            named: named.collect(),
            name_size,
        }
    }

    /// 107 for a name that is none, 102 for a namespace that is not configured.
    pub fn options(&self, channel: &str) -> Result<&Arc<ChannelOptions>, ErrorCode> {
        let printable = |b: u8| (0x20..0x7f).contains(&b);
        if channel.is_empty() || channel.len() > self.name_size || !channel.bytes().all(printable) {
            return Err(ErrorCode::BAD_REQUEST);
        }
        // `$ns:x` is the private form of `ns:x`.
        let name = channel.strip_prefix('$').unwrap_or(channel);
        match name.split_once(':') {
            None => Ok(&self.without),
            Some((namespace, _)) => self.named.get(namespace).ok_or(ErrorCode::UNKNOWN_CHANNEL),
        }
    }
}

pub fn ack(options: &ChannelOptions) -> Ack {
    match options.ack {
        conf::Ack::Copies => Ack::Copies,
        conf::Ack::Owner => Ack::Owner,
        conf::Ack::None => Ack::None,
    }
}

pub fn live_without_owner(options: &ChannelOptions) -> bool {
    options.when_minority == conf::WhenMinority::Live
}

pub fn by_datagram(options: &ChannelOptions) -> bool {
    options.delivery == conf::Delivery::Datagram
}

/// `None`: the channel keeps no history.
pub fn stream(options: &ChannelOptions) -> Option<StreamOptions> {
    let on = options.history_size > 0 && options.history_ttl > Duration::ZERO;
    on.then(|| StreamOptions {
        size: options.history_size,
        ttl_ms: millis(options.history_ttl),
        meta_ttl_ms: millis(options.history_meta_ttl),
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A `$` channel is open to holders of a subscription token only.
pub fn is_private(channel: &str) -> bool {
    channel.starts_with('$')
}

/// The users a channel is limited to: what stands after `#`. `None`: not limited.
pub fn limited_to(channel: &str) -> Option<impl Iterator<Item = &str>> {
    channel.split_once('#').map(|(_, users)| users.split(','))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use weir_conf::channel::{Ack, Delivery, WhenMinority};

    /// Everything off.
    pub fn closed() -> ChannelOptions {
        ChannelOptions {
            presence: false,
            join_leave: false,
            force_push_join_leave: false,
            history_size: 0,
            history_ttl: Duration::ZERO,
            history_meta_ttl: Duration::from_secs(3600),
            broker_share: 50,
            ack: Ack::Copies,
            when_minority: WhenMinority::Refuse,
            delivery: Delivery::Stream,
            force_positioning: false,
            allow_positioning: false,
            force_recovery: false,
            allow_recovery: false,
            allow_subscribe_for_client: false,
            allow_subscribe_for_anonymous: false,
            allow_publish_for_client: false,
            allow_publish_for_subscriber: false,
            allow_publish_for_anonymous: false,
            allow_presence_for_client: false,
            allow_presence_for_subscriber: false,
            allow_presence_for_anonymous: false,
            allow_history_for_client: false,
            allow_history_for_subscriber: false,
            allow_history_for_anonymous: false,
            allow_user_limited_channels: false,
        }
    }

    /// Everything on, for everybody.
    pub fn open() -> ChannelOptions {
        ChannelOptions {
            presence: true,
            join_leave: true,
            force_push_join_leave: true,
            history_size: 100,
            history_ttl: Duration::from_secs(300),
            force_positioning: true,
            force_recovery: true,
            allow_positioning: true,
            allow_recovery: true,
            allow_subscribe_for_client: true,
            allow_subscribe_for_anonymous: true,
            allow_publish_for_client: true,
            allow_publish_for_subscriber: true,
            allow_publish_for_anonymous: true,
            allow_presence_for_client: true,
            allow_presence_for_subscriber: true,
            allow_presence_for_anonymous: true,
            allow_history_for_client: true,
            allow_history_for_subscriber: true,
            allow_history_for_anonymous: true,
            allow_user_limited_channels: true,
            ..closed()
        }
    }

    /// No namespace: everything off. `open:`: all on. `plain:`: subscribe and publish, no stream.
    /// `stream:`: a stream, positions only for who asks. `lossy:`: as `plain:`, by datagram, with joins. `long:`: a
    /// long stream, with recovery.
    pub fn channels() -> Channels {
        let plain = ChannelOptions {
            allow_subscribe_for_client: true,
            allow_subscribe_for_anonymous: true,
            allow_publish_for_subscriber: true,
            allow_publish_for_anonymous: true,
            ..closed()
        };
        let stream = ChannelOptions {
            history_size: 10,
            history_ttl: Duration::from_secs(300),
            allow_positioning: true,
            allow_recovery: true,
            allow_history_for_subscriber: true,
            ..plain.clone()
        };
        let lossy = ChannelOptions { delivery: Delivery::Datagram, join_leave: true, ..plain.clone() };
        let long = ChannelOptions { history_size: 5000, force_recovery: true, ..stream.clone() };
        let named =
            [("open", open()), ("plain", plain), ("stream", stream), ("lossy", lossy), ("long", long)];
        let namespace = named.into_iter().map(|(n, o)| (n.to_owned(), o)).collect();
        Channels { without_namespace: closed(), namespace }
    }

    #[test]
    fn names_and_namespaces() {
        let n = Namespaces::new(&channels(), 255);
        assert!(n.options("x").is_ok_and(|o| !o.presence));
        assert!(n.options("open:x:y").is_ok_and(|o| o.presence));
        assert!(n.options("$open:x").is_ok_and(|o| o.presence));
        assert_eq!(n.options("nope:x").unwrap_err(), ErrorCode::UNKNOWN_CHANNEL);
        assert_eq!(n.options(":x").unwrap_err(), ErrorCode::UNKNOWN_CHANNEL);
        for bad in ["", "ä", "a\nb", "a\0", "\u{7f}", &"x".repeat(256)] {
            assert_eq!(n.options(bad).unwrap_err(), ErrorCode::BAD_REQUEST, "{bad:?}");
        }
        assert!(n.options(&"x".repeat(255)).is_ok());
        let users = |c: &'static str| limited_to(c).map(|u| u.collect::<Vec<_>>());
        assert_eq!(users("chat#42,43"), Some(vec!["42", "43"]));
        assert_eq!(users("chat"), None);
    }
}
