//! `[channel]`: options of channels without a namespace, and `[[channel.namespace]]`.
//! Names and meanings are those of the Centrifugo protocol.

use crate::section::{Field, Keys, Section, keys};
use crate::tree::Raw;
use crate::value::words;
use crate::write::{Writer, quote};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct Channels {
    pub without_namespace: ChannelOptions,
    pub namespace: BTreeMap<String, ChannelOptions>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ChannelOptions {
    pub presence: bool,
    pub join_leave: bool,
    /// Join and leave are pushed to all subscribers, asked for or not.
    pub force_push_join_leave: bool,
    /// History is on when both size and ttl are above zero.
    pub history_size: u32,
    pub history_ttl: Duration,
    pub history_meta_ttl: Duration,
    /// Of what a broker has for all channels, in percent.
    pub broker_share: u8,
    /// What an acknowledged publication has reached.
    pub ack: Ack,
    /// What a publish does where too few brokers are to be reached for `ack`.
    pub when_minority: WhenMinority,
    /// How publications go to clients that could take them as datagrams.
    pub delivery: Delivery,
    pub force_positioning: bool,
    pub allow_positioning: bool,
    pub force_recovery: bool,
    pub allow_recovery: bool,
    pub allow_subscribe_for_client: bool,
    pub allow_subscribe_for_anonymous: bool,
    pub allow_publish_for_client: bool,
    pub allow_publish_for_subscriber: bool,
    pub allow_publish_for_anonymous: bool,
    pub allow_presence_for_client: bool,
    pub allow_presence_for_subscriber: bool,
    pub allow_presence_for_anonymous: bool,
    pub allow_history_for_client: bool,
    pub allow_history_for_subscriber: bool,
    pub allow_history_for_anonymous: bool,
    pub allow_user_limited_channels: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// Every in-sync copy: survives the loss of all but one of them.
    Copies,
    /// The owner of the channel alone: lost with it, and then with a new epoch.
    Owner,
    /// Nobody: the publish does not wait.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenMinority {
    /// Error 100, temporary.
    Refuse,
    /// Delivered to whoever can be reached, without an offset and into no history.
    Live,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// All of them, in order.
    Stream,
    /// The newest is what counts: by datagram to whoever asked for it, so none waits for a lost one.
    Datagram,
}

words!(Ack: "a kind of acknowledgement" { Copies = "copies", Owner = "owner", None = "none" });
words!(WhenMinority: "a way to treat what too few brokers can take" { Refuse = "refuse", Live = "live" });
words!(Delivery: "a way to deliver" { Stream = "stream", Datagram = "datagram" });

keys!(ChannelOptions {
    presence,
    join_leave,
    force_push_join_leave,
    history_size,
    history_ttl,
    history_meta_ttl,
    broker_share in 1..=100,
    ack,
    when_minority,
    delivery,
    force_positioning,
    allow_positioning,
    force_recovery,
    allow_recovery,
    allow_subscribe_for_client,
    allow_subscribe_for_anonymous,
    allow_publish_for_client,
    allow_publish_for_subscriber,
    allow_publish_for_anonymous,
    allow_presence_for_client,
    allow_presence_for_subscriber,
    allow_presence_for_anonymous,
    allow_history_for_client,
    allow_history_for_subscriber,
    allow_history_for_anonymous,
    allow_user_limited_channels,
});

impl Field for Channels {
    fn read_field(section: &mut Section<'_, '_>, key: &'static str) -> Channels {
        section.section(key, |s| Channels {
            without_namespace: ChannelOptions::read_keys(s),
            namespace: read_namespaces(s),
        })
    }

    fn write_field(&self, writer: &mut Writer<'_>, key: &str) {
        writer.section(key, |w| {
            self.without_namespace.write_keys(w);
            for (name, options) in &self.namespace {
                w.list_item("namespace", name, |w| {
                    w.value("name", quote(name));
                    options.write_keys(w);
                });
            }
        });
    }
}

/// `[[channel.namespace]]`: what one leaves out is the default of `weir.toml`, not what
/// `[channel]` says.
fn read_namespaces(section: &mut Section<'_, '_>) -> BTreeMap<String, ChannelOptions> {
    let path = section.path("namespace");
    let Some(item) = section.given("namespace") else { return BTreeMap::new() };
    let Raw::List(items) = &item.value else {
        let _: Option<()> =
            section.reader.refuse(item, &path, "a list of namespaces", "[[channel.namespace]] with name");
        return BTreeMap::new();
    };
    let defaults = section.defaults();
    let mut namespaces = BTreeMap::new();
    for (i, item) in items.iter().enumerate() {
        let name = item.as_table().and_then(|table| table.get("name")).and_then(|name| name.as_text());
        // Messages name a namespace, once it has a name.
        let label = name.filter(|name| is_name(name)).map_or_else(|| i.to_string(), str::to_owned);
        section.table(Some(item), format!("{path}[{label}]"), defaults, |s| {
            let name: Option<String> = s.need("name", "the text before the : of its channels");
            let options = ChannelOptions::read_keys(s);
            let Some(name) = name else { return };
            let (key, place) = (s.path("name"), s.place_of("name"));
            if !is_name(&name) {
                let text = format!(
                    "{name:?} is not a namespace's name; accepted: letters, digits, - _ and ., 64 at most"
                );
                return s.reader.mistake(&place, &key, text);
            }
            match namespaces.entry(name) {
                Entry::Vacant(slot) => {
                    slot.insert(options);
                }
                Entry::Occupied(slot) => {
                    let text = format!("{:?} is defined twice; accepted: once", slot.key());
                    s.reader.mistake(&place, &key, text);
                }
            }
        });
    }
    namespaces
}

/// A channel's name has its `:` and its `#` elsewhere; the rest of what channels may be named.
fn is_name(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    (1..=64).contains(&text.len()) && text.bytes().all(fits)
}
