//! Carries out what a session asks for: the hub's answers at once, the bus's when they come.

use crate::client::Client;
use crate::hub::{Hub, bus_error};
use crate::session::{Call, CallResult};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use weir_broker::{Bus, BusError};
use weir_wire::code::ErrorCode;

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
        other => Started::Lasting(Box::pin(async move { ask(&hub, other).await })),
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

async fn ask(hub: &Hub, call: Call) -> CallResult {
    let bus = hub.bus().cloned();
    match call {
        Call::Publish(publish) => {
            let result = with(bus, |bus| async move { bus.publish(*publish).await }).await;
            CallResult::Published(result.map(|_| ()))
        }
        Call::Presence { channel } => {
            CallResult::Presence(with(bus, |bus| async move { bus.presence(channel).await }).await)
        }
        Call::PresenceStats { channel } => {
            CallResult::PresenceStats(with(bus, |bus| async move { bus.presence_stats(channel).await }).await)
        }
        Call::History { channel, query, stream } => CallResult::History(
            with(bus, |bus| async move { bus.history(channel, query, stream).await }).await,
        ),
        Call::Register { .. } | Call::Subscribe(_) | Call::Leave { .. } => CallResult::Left,
    }
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
