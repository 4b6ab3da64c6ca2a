//! Carries out what a session asks for: the hub's answers at once, the bus's when they come.

use crate::client::Client;
use crate::hub::{Hub, bus_error};
use crate::session::{Call, CallResult};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use weir_broker::{Bus, BusError};
use weir_core::limited;
use weir_wire::code::ErrorCode;
use weir_wire::envelope::{ClientInfo, Member};

pub type Running = Pin<Box<dyn Future<Output = CallResult> + Send>>;

/// Boxed, so that an idle connection does not carry the room for it.
pub enum Started {
    Done(CallResult),
    /// To be cut short when the connection ends: what it leaves in the hub goes with the rest.
    Running(Running),
    /// To be finished even then: a publication, the end of a membership.
    Lasting(Running),
}

pub fn start(hub: &Arc<Hub>, client: &Arc<Client>, call: Call) -> Started {
    let (hub, client) = (hub.clone(), client.clone());
    match call {
        Call::Register { user } => Started::Done(CallResult::Registered(hub.register(&client, user))),
        Call::Subscribe(call) => {
            Started::Running(Box::pin(
                async move { CallResult::Subscribed(hub.subscribe(client, *call).await) },
            ))
        }
        Call::Leave { channel } => Started::Lasting(Box::pin(async move {
            leave(&hub, &client, channel).await;
            CallResult::Left
        })),
        other => Started::Lasting(Box::pin(async move { ask(&hub, &client, other).await })),
    }
}

/// In order with what the same client asks next; if the bus is away, later and by the janitor.
async fn leave(hub: &Hub, client: &Client, channel: Arc<str>) {
    let left = match hub.bus() {
        Ok(bus) => bus.leave(channel.to_string(), client.id.to_string()).await,
        Err(error) => Err(error),
    };
    if let (Err(_), Some(janitor)) = (left, hub.janitor()) {
        janitor.leave(channel, client.id.clone()).await;
    }
}

async fn ask(hub: &Hub, client: &Client, call: Call) -> CallResult {
    let bus = hub.bus().cloned();
    if let Call::Presence { channel, .. } = &call {
        hub.presence_asked(channel);
    }
    match call {
        Call::Publish(publish) => {
            let result = with(bus, |bus| async move { bus.publish(*publish).await }).await;
            CallResult::Published(result.map(|_| ()))
        }
        Call::Presence { channel, bytes } => CallResult::Presence(
            with(bus, |bus| async move { bus.presence(channel).await }).await.and_then(|m| bounded(m, bytes)),
        ),
        Call::PresenceStats { channel } => {
            CallResult::PresenceStats(with(bus, |bus| async move { bus.presence_stats(channel).await }).await)
        }
        Call::History { channel, query, stream, bytes } => {
            // The broker makes a stream of a name that it does not know.
            let known = hub.channels.contains_key(&*channel);
            let taken = if known { Ok(()) } else { hub.take_new(client) };
            CallResult::History(match taken {
                Ok(()) => hub.history(&channel, query, stream, bytes).await,
                Err(error) => Err(error),
            })
        }
        Call::Register { .. } | Call::Subscribe(_) | Call::Leave { .. } => CallResult::Left,
    }
}

/// Too many to be told; how many they are can still be asked.
fn bounded(members: Vec<Member>, bytes: usize) -> Result<Vec<Member>, ErrorCode> {
    let size = |info: &ClientInfo| {
        // The client's id twice, and around it.
        info.user.len() + 2 * info.client.len() + info.conn_info.len() + info.chan_info.len() + 40
    };
    let fits = members.iter().map(|member| size(&member.info)).sum::<usize>() <= bytes;
    if !fits {
        let (key, members) = ("node.reply_size", members.len());
        limited!(warn, key, key, members, "presence is too large to be told");
    }
    fits.then_some(members).ok_or(ErrorCode::LIMIT_EXCEEDED)
}

async fn with<T, F: Future<Output = Result<T, BusError>>>(
    bus: Result<Arc<dyn Bus>, BusError>,
    call: impl FnOnce(Arc<dyn Bus>) -> F,
) -> Result<T, ErrorCode> {
    let result = match bus {
        Ok(bus) => call(bus).await,
        Err(error) => Err(error),
    };
    result.map_err(|e| bus_error(&e))
}
