//! Each method of the API. Those that change something on every node go out as a command over
//! the bus, since a user may be connected anywhere; their answer says that it went out.

use super::commands::{disconnect, refresh, subscribe, unsubscribe};
use super::params::{self, parse, payload};
use super::{Answer, Failure, error_object};
use crate::hub::bus_error;
use crate::namespaces;
use crate::protocol::HistoryRequest;
use crate::protocol::json::{member_map, write_publication, write_str};
use crate::session::history_query;
use crate::shared::Shared;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use std::collections::BTreeMap;
use std::sync::Arc;
use weir_broker::{Bus, BusError};
use weir_conf::channel::ChannelOptions;
use weir_wire::code::ErrorCode;
use weir_wire::envelope::{self, Position, Publish, Question};
use weir_wire::id::Epoch;

/// Parts of a broadcast, or of a parallel batch, under way at once.
const AT_ONCE: usize = 32;
const CHANNELS_AT_ONCE: usize = 10_000;

const METHODS: &[&str] = &[
    "publish",
    "broadcast",
    "subscribe",
    "unsubscribe",
    "disconnect",
    "refresh",
    "presence",
    "presence_stats",
    "history",
    "history_remove",
    "channels",
    "info",
    "rpc",
    "batch",
];

pub fn is_method(name: &str) -> bool {
    METHODS.contains(&name)
}

pub async fn call(shared: &Arc<Shared>, method: &str, params: &str) -> Answer {
    match method {
        "batch" => batch(shared, parse(params)?).await,
        other => one(shared, other, params).await,
    }
}

async fn one(shared: &Arc<Shared>, method: &str, params: &str) -> Answer {
    match method {
        "publish" => publish(shared, &parse(params)?).await,
        "broadcast" => broadcast(shared, &parse(params)?).await,
        "subscribe" => subscribe(shared, parse(params)?).await,
        "unsubscribe" => unsubscribe(shared, parse(params)?).await,
        "disconnect" => disconnect(shared, parse(params)?).await,
        "refresh" => refresh(shared, parse(params)?).await,
        "presence" => presence(shared, &parse(params)?).await,
        "presence_stats" => presence_stats(shared, &parse(params)?).await,
        "history" => history(shared, parse(params)?).await,
        "history_remove" => history_remove(shared, &parse(params)?).await,
        "channels" => channels(shared, parse(params)?).await,
        "info" => info(shared).await,
        "rpc" => Err(ErrorCode::NOT_AVAILABLE.into()),
        _ => Err(super::NOT_FOUND.into()),
    }
}

pub fn options<'a>(shared: &'a Shared, channel: &str) -> Result<&'a ChannelOptions, Failure> {
    shared.settings.namespaces.options(channel).map(|o| &**o).map_err(Failure::Error)
}

pub fn bus(shared: &Shared) -> Result<&Arc<dyn Bus>, Failure> {
    shared.hub.bus().map_err(failed)
}

pub fn failed(error: BusError) -> Failure {
    Failure::Error(bus_error(&error))
}

async fn publish(shared: &Shared, params: &params::Publish<'_>) -> Answer {
    let data = payload(params.data, &params.b64data)?;
    publish_one(shared, params, params.channel.clone(), data).await
}

async fn publish_one(shared: &Shared, params: &params::Publish<'_>, channel: String, data: Bytes) -> Answer {
    let options = options(shared, &channel)?;
    if data.is_empty() {
        return Err(ErrorCode::BAD_REQUEST.into());
    }
    let publish = Publish {
        channel,
        data,
        info: None,
        tags: params.tags.clone().into_iter().collect(),
        stream: namespaces::stream(options).filter(|_| !params.skip_history),
        idempotency_key: Some(params.idempotency_key.clone()).filter(|key| !key.is_empty()),
        version: params.version,
        version_epoch: params.version_epoch.clone(),
        ack: namespaces::ack(options),
        live_without_owner: namespaces::live_without_owner(options),
    };
    let published = bus(shared)?.publish(publish).await.map_err(failed)?;
    Ok(published.map_or("{}".to_owned(), |at| format!("{{{}}}", position(at))))
}

fn position(at: Position) -> String {
    format!("\"offset\":{},\"epoch\":\"{}\"", at.offset, at.epoch)
}

async fn broadcast(shared: &Shared, params: &params::Publish<'_>) -> Answer {
    if params.channels.is_empty() || params.channels.len() > CHANNELS_AT_ONCE {
        return Err(ErrorCode::BAD_REQUEST.into());
    }
    let data = payload(params.data, &params.b64data)?;
    let channels = params.channels.clone().into_iter();
    let each = channels.map(|channel| publish_one(shared, params, channel, data.clone()));
    let responses: Vec<String> = stream::iter(each).buffered(AT_ONCE).map(response).collect().await;
    Ok(format!("{{\"responses\":[{}]}}", responses.join(",")))
}

/// The `{"result":…}` or `{"error":…}` of one part.
fn response(answer: Answer) -> String {
    match answer {
        Ok(result) => format!("{{\"result\":{result}}}"),
        Err(failure) => format!("{{\"error\":{}}}", error_object(code(failure))),
    }
}

fn code(failure: Failure) -> ErrorCode {
    match failure {
        Failure::Malformed => ErrorCode::BAD_REQUEST,
        Failure::Error(error) => error,
    }
}

async fn batch(shared: &Arc<Shared>, params: params::Batch) -> Answer {
    let at_once = if params.parallel { AT_ONCE } else { 1 };
    let each = params.commands.into_iter().map(|command| async move {
        let mut parts = command.into_iter();
        match (parts.next(), parts.next()) {
            (Some((method, params)), None) => match one(shared, &method, params.get()).await {
                Ok(result) => format!("{{\"{method}\":{result}}}"),
                Err(failure) => format!("{{\"error\":{}}}", error_object(code(failure))),
            },
            _ => format!("{{\"error\":{}}}", error_object(ErrorCode::BAD_REQUEST)),
        }
    });
    let replies: Vec<String> = stream::iter(each).buffered(at_once).collect().await;
    Ok(format!("{{\"replies\":[{}]}}", replies.join(",")))
}

async fn presence(shared: &Shared, params: &params::Whom) -> Answer {
    if !options(shared, &params.channel)?.presence {
        return Err(ErrorCode::NOT_AVAILABLE.into());
    }
    let members = bus(shared)?.presence(params.channel.clone()).await.map_err(failed)?;
    let mut out = b"{\"presence\":".to_vec();
    member_map(&mut out, &members);
    out.push(b'}');
    utf8(out)
}

async fn presence_stats(shared: &Shared, params: &params::Whom) -> Answer {
    if !options(shared, &params.channel)?.presence {
        return Err(ErrorCode::NOT_AVAILABLE.into());
    }
    let stats = bus(shared)?.presence_stats(params.channel.clone()).await.map_err(failed)?;
    Ok(format!("{{\"num_clients\":{},\"num_users\":{}}}", stats.clients, stats.users))
}

async fn history(shared: &Shared, params: params::History) -> Answer {
    let stream = namespaces::stream(options(shared, &params.channel)?).ok_or(ErrorCode::NOT_AVAILABLE)?;
    let epoch = params.since.as_ref().map(|s| s.epoch.clone()).unwrap_or_default();
    let request = HistoryRequest {
        since: params.since.map(|s| (s.offset, s.epoch)),
        channel: params.channel,
        limit: params.limit,
        reverse: params.reverse,
    };
    let query = history_query(&request, shared.settings.history_limit)?;
    let history = bus(shared)?.history(request.channel, query, stream).await.map_err(failed)?;
    if !epoch.is_empty() && Epoch::parse(&epoch) != Some(history.top.epoch) {
        return Err(ErrorCode::UNRECOVERABLE_POSITION.into());
    }
    let mut out = b"{\"publications\":[".to_vec();
    for (i, publication) in history.publications.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_publication(&mut out, publication, None);
    }
    out.extend_from_slice(format!("],{}}}", position(history.top)).as_bytes());
    utf8(out)
}

async fn history_remove(shared: &Shared, params: &params::Whom) -> Answer {
    namespaces::stream(options(shared, &params.channel)?).ok_or(ErrorCode::NOT_AVAILABLE)?;
    bus(shared)?.history_remove(params.channel.clone()).await.map_err(failed)?;
    Ok("{}".to_owned())
}

async fn channels(shared: &Shared, params: params::Channels) -> Answer {
    let question = Question::Channels { pattern: params.pattern };
    let survey = bus(shared)?.survey(question).await.map_err(failed)?;
    let mut all: BTreeMap<String, u32> = BTreeMap::new();
    for (_, answer) in survey.answers {
        if let envelope::Answer::Channels(channels) = answer {
            for (name, clients) in channels {
                *all.entry(name).or_default() += clients;
            }
        }
    }
    let mut out = b"{\"channels\":{".to_vec();
    for (i, (name, clients)) in all.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_str(&mut out, name);
        out.extend_from_slice(format!(":{{\"num_clients\":{clients}}}").as_bytes());
    }
    out.extend_from_slice(b"}");
    if !survey.missing.is_empty() {
        // Beyond Centrifugo's answer: some nodes did not say what they have.
        out.extend_from_slice(format!(",\"missing_nodes\":{}", survey.missing.len()).as_bytes());
    }
    out.extend_from_slice(b"}");
    utf8(out)
}

async fn info(shared: &Shared) -> Answer {
    let survey = bus(shared)?.survey(Question::Info).await.map_err(failed)?;
    let nodes: Vec<serde_json::Value> = survey.answers.into_iter().filter_map(|(_, a)| node(a)).collect();
    let mut info = serde_json::json!({ "nodes": nodes });
    if !survey.missing.is_empty() {
        info["missing_nodes"] = survey.missing.len().into();
    }
    Ok(info.to_string())
}

fn node(answer: envelope::Answer) -> Option<serde_json::Value> {
    let envelope::Answer::Info(n) = answer else { return None };
    Some(serde_json::json!({
        "uid": n.node.to_string(),
        "name": n.name,
        "version": n.version,
        "num_clients": n.clients,
        "num_users": n.users,
        "num_subs": n.subscriptions,
        "num_channels": n.channels,
        "uptime": n.uptime_s,
        "process": { "cpu": n.cpu_percent, "rss": n.rss_bytes },
    }))
}

/// Everything written is UTF-8; should it not be, that is our mistake, not the caller's.
fn utf8(out: Vec<u8>) -> Answer {
    String::from_utf8(out).map_err(|_| ErrorCode::INTERNAL.into())
}
