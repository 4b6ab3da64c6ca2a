//! `[channel]`: options of channels without a namespace, and `[[channel.namespace]]`.
//! Names and meanings are those of the Centrifugo protocol.

use std::collections::BTreeMap;
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
