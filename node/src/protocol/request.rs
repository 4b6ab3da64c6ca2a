//! Which request a command is, however it was written: both formats have it in fields of the same names.

/// Of several requests the first one counts. `$data`: a publication's payload, out of `$publish`.
macro_rules! request {
    ($raw:expr, $publish:ident => $data:expr) => {{
        use $crate::protocol::{HistoryRequest, Request};
        let raw = $raw;
        if let Some(connect) = raw.connect {
            Request::Connect(Box::new(connect.into()))
        } else if let Some(subscribe) = raw.subscribe {
            Request::Subscribe(Box::new(subscribe.into()))
        } else if let Some(of) = raw.unsubscribe {
            Request::Unsubscribe { channel: of.channel }
        } else if let Some($publish) = raw.publish {
            let data = $data;
            Request::Publish { channel: $publish.channel, data }
        } else if let Some(of) = raw.presence {
            Request::Presence { channel: of.channel }
        } else if let Some(of) = raw.presence_stats {
            Request::PresenceStats { channel: of.channel }
        } else if let Some(history) = raw.history {
            Request::History(Box::new(HistoryRequest {
                channel: history.channel,
                limit: history.limit,
                since: history.since.map(|s| (s.offset, s.epoch)),
                reverse: history.reverse,
            }))
        } else if raw.ping.is_some() {
            Request::Ping
        } else if raw.send.is_some() {
            Request::Send
        } else if raw.rpc.is_some() {
            Request::Rpc
        } else if let Some(refresh) = raw.refresh {
            Request::Refresh { token: refresh.token }
        } else if let Some(refresh) = raw.sub_refresh {
            Request::SubRefresh { channel: refresh.channel, token: refresh.token }
        } else if raw.id == 0 {
            Request::Pong
        } else {
            Request::Unknown
        }
    }};
}

pub(super) use request;
