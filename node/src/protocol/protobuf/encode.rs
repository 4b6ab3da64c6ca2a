//! From replies and pushes to their Protobuf form, behind their length. Zero values are left out by the form itself.

use super::messages as proto;
use crate::protocol::json::VERSION;
use crate::protocol::{Answer, ConnectResult, Push, Reply, SubscribeResult};
use prost::Message;
use weir_wire::envelope::{ClientInfo, Publication};

pub fn reply(reply: &Reply) -> Vec<u8> {
    let mut out = proto::Reply { id: reply.id, ..Default::default() };
    match &reply.answer {
        Answer::Error(e) => {
            let message = e.message.to_owned();
            out.error = Some(proto::Error { code: e.code, message, temporary: e.temporary });
        }
        Answer::Connect(result) => out.connect = Some(connect(result)),
        Answer::Subscribe(result) => out.subscribe = Some(subscribe(result)),
        Answer::Unsubscribe => out.unsubscribe = Some(proto::Empty {}),
        Answer::Publish => out.publish = Some(proto::Empty {}),
        Answer::Presence(members) => {
            let presence = members.iter().map(|m| (m.info.client.clone(), client_info(&m.info))).collect();
            out.presence = Some(proto::PresenceResult { presence });
        }
        Answer::PresenceStats(stats) => {
            let (num_clients, num_users) = (stats.clients, stats.users);
            out.presence_stats = Some(proto::PresenceStatsResult { num_clients, num_users });
        }
        Answer::History { top, publications } => {
            let publications = publications.iter().map(|p| publication(p, String::new())).collect();
            let (epoch, offset) = (top.epoch.to_string(), top.offset);
            out.history = Some(proto::HistoryResult { publications, epoch, offset });
        }
        Answer::Refresh { client, ttl } => {
            let proto::Expiry { expires, ttl } = expiry(*ttl);
            let (client, version) = (client.to_string(), VERSION.to_owned());
            out.refresh = Some(proto::RefreshResult { client, version, expires, ttl });
        }
        Answer::SubRefresh { ttl } => out.sub_refresh = Some(expiry(*ttl)),
    }
    out.encode_length_delimited_to_vec()
}

pub fn push(push: &Push) -> Vec<u8> {
    let push = Some(to_push(push));
    proto::Reply { push, ..Default::default() }.encode_length_delimited_to_vec()
}

fn to_push(push: &Push) -> proto::Push {
    let mut out = proto::Push::default();
    match push {
        Push::Publication { channel, publication: p, epoch } => {
            out.channel = channel.to_string();
            out.publication = Some(publication(p, epoch.map(|e| e.to_string()).unwrap_or_default()));
        }
        Push::Join { channel, info } => {
            out.channel = channel.to_string();
            out.join = Some(proto::OfInfo { info: Some(client_info(info)) });
        }
        Push::Leave { channel, info } => {
            out.channel = channel.to_string();
            out.leave = Some(proto::OfInfo { info: Some(client_info(info)) });
        }
        Push::Unsubscribe { channel, code } => {
            out.channel = channel.to_string();
            out.unsubscribe = Some(proto::Unsubscribe { code: code.code, reason: code.reason.to_owned() });
        }
        Push::Subscribe { channel, result } => {
            out.channel = channel.to_string();
            let proto::SubscribeResult { recoverable, epoch, offset, positioned, data, .. } =
                subscribe(result);
            out.subscribe = Some(proto::Subscribe { recoverable, epoch, offset, positioned, data });
        }
        Push::Connect(result) => out.connect = Some(connect(result)),
        Push::Disconnect { code, reason, reconnect } => {
            let (code, reason) = (u32::from(*code), reason.clone());
            out.disconnect = Some(proto::Disconnect { code, reason, reconnect: *reconnect });
        }
        Push::Refresh { ttl } => out.refresh = Some(expiry(*ttl)),
    }
    out
}

fn connect(result: &ConnectResult) -> proto::ConnectResult {
    let proto::Expiry { expires, ttl } = expiry(result.ttl);
    proto::ConnectResult {
        client: result.client.to_string(),
        version: VERSION.to_owned(),
        expires,
        ttl,
        subs: result.subs.iter().map(|(channel, sub)| (channel.to_string(), subscribe(sub))).collect(),
        ping: result.ping,
        pong: result.pong,
    }
}

fn subscribe(result: &SubscribeResult) -> proto::SubscribeResult {
    let proto::Expiry { expires, ttl } = expiry(result.ttl);
    let publications = &result.publications;
    proto::SubscribeResult {
        expires,
        ttl,
        recoverable: result.recoverable,
        epoch: result.position.map(|p| p.epoch.to_string()).unwrap_or_default(),
        publications: publications.iter().map(|p| publication(p, String::new())).collect(),
        recovered: result.recovered,
        offset: result.position.map_or(0, |p| p.offset),
        positioned: result.positioned,
        data: result.data.clone(),
        was_recovering: result.was_recovering,
    }
}

fn publication(p: &Publication, epoch: String) -> proto::Publication {
    proto::Publication {
        data: p.data.clone(),
        info: p.info.as_ref().map(client_info),
        offset: p.offset,
        tags: p.tags.iter().cloned().collect(),
        epoch,
    }
}

fn client_info(info: &ClientInfo) -> proto::ClientInfo {
    proto::ClientInfo {
        user: info.user.clone(),
        client: info.client.clone(),
        conn_info: info.conn_info.clone(),
        chan_info: info.chan_info.clone(),
    }
}

fn expiry(ttl: Option<u32>) -> proto::Expiry {
    proto::Expiry { expires: ttl.is_some(), ttl: ttl.unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use weir_wire::close::Close;
    use weir_wire::code::ErrorCode;

    #[test]
    fn bytes_on_the_wire() {
        // By hand, from the field numbers of the protocol.
        let publish = reply(&Reply { id: 3, answer: Answer::Publish });
        assert_eq!(publish, b"\x04\x08\x03\x42\x00", "an empty result is there");
        let error = reply(&Reply { id: 1, answer: Answer::Error(ErrorCode::INTERNAL) });
        assert_eq!(error, b"\x1f\x08\x01\x12\x1b\x08\x64\x12\x15internal server error\x18\x01");
        let publication = Publication {
            offset: 300,
            data: Bytes::from_static(b"{}"),
            info: None,
            tags: vec![("k".into(), "v".into())],
        };
        let pushed = push(&Push::Publication { channel: "c".into(), publication, epoch: None });
        assert_eq!(pushed, b"\x16\x22\x14\x12\x01c\x22\x0f\x22\x02{}\x30\xac\x02\x3a\x06\x0a\x01k\x12\x01v");
        let Close { code, reason } = Close::SHUTDOWN;
        let last = push(&Push::Disconnect { code, reason: reason.into_owned(), reconnect: true });
        assert_eq!(last, b"\x13\x22\x11\x5a\x0f\x08\xb9\x17\x12\x08shutdown\x18\x01");
    }
}
