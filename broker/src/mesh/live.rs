//! A link that lives: what comes goes to the handler, what waits is written, and pings tell
//! whether the other side is still there.

use super::hello::{heard, welcome};
use super::link::{Link, Room, encoded};
use super::parts::Parts;
use super::registry::Shared;
use super::reply::ReplyTo;
use super::{Opened, dial};
use crate::link::{FrameReader, GOODBYE_DEADLINE, LinkError};
use crate::socket::{ReadSide, WriteSide};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use weir_core::limited;
use weir_wire::codec::{self, HEADER};
use weir_wire::mesh::{Deliver, Forward, Hello, Lane, PART, Purpose, Replication, Talk};
use weir_wire::peer::Bye;

/// Group calls of one link that are served at the same time.
const MAX_SERVED: usize = 64;
/// Links for calls alone, whoever made them.
const MAX_CALLERS: usize = 256;
/// A link for calls alone on which nobody called for so long is closed by who made it.
const IDLE: Duration = Duration::from_secs(10);
/// So much is read before the other half of the link, the writing one, gets its turn.
const TURN: usize = 128 << 10;

/// A link that is served or about to be. Whatever becomes of that, nobody goes on counting on it.
pub struct Held {
    shared: Arc<Shared>,
    pub link: Arc<Link>,
}

impl Held {
    pub fn new(shared: &Arc<Shared>, link: Arc<Link>) -> Held {
        if link.purpose == Purpose::Calls {
            shared.callers.fetch_add(1, Relaxed);
        }
        Held { shared: shared.clone(), link }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.link.finish(None);
        self.shared.forget(&self.link);
        if self.link.purpose == Purpose::Calls {
            self.shared.callers.fetch_sub(1, Relaxed);
        }
    }
}

/// A connection to this broker's listener, to its end.
pub async fn accept(shared: &Arc<Shared>, opened: Opened) {
    let Opened { hello, mut reader, mut writer, peer, place, known, deadline } = opened;
    let greet = async {
        shared.may_talk_to(peer.ip())?;
        let (link, said) = heard(shared, &hello, &mut reader, &mut writer).await?;
        match hello.purpose {
            Purpose::Link => shared.adopt(&link)?,
            Purpose::Calls if shared.callers.load(Relaxed) >= MAX_CALLERS => return Err(LinkError::Full),
            Purpose::Calls => {}
        }
        let held = Held::new(shared, link);
        welcome(shared, &said, &mut writer).await?;
        Ok(held)
    };
    let greeted = tokio::select! {
        greeted = timeout_at(deadline, greet) => greeted.unwrap_or(Err(LinkError::Deadline("the handshake"))),
        () = place.taken() => Err(LinkError::Displaced),
        () = shared.ending() => Err(LinkError::Stopping),
    };
    drop(place);
    match greeted {
        Ok(held) => {
            known.proved(peer.ip());
            if held.link.purpose == Purpose::Link {
                tracing::info!(broker = %held.link.who.id, name = held.link.who.name, %peer, "linked by a broker");
            }
            run(held, reader, writer).await;
        }
        Err(error) => {
            refused(shared, &hello, peer, &error);
            dial::say_bye(&mut writer, &error).await;
        }
    }
}

fn refused(shared: &Shared, hello: &Hello, peer: std::net::SocketAddr, error: &LinkError) {
    shared.metrics.refused(error.cause());
    let (broker, name) = (hello.id, &hello.name);
    if matches!(error, LinkError::Refused(Bye::Twin)) {
        tracing::debug!(%peer, %broker, name, %error, "a broker was refused");
    } else {
        limited!(warn, ("a broker was refused", error.cause()), %peer, %broker, name, %error, "a broker was refused");
    }
}

/// Serves a proved link to its end.
pub async fn run(held: Held, mut reader: FrameReader<ReadSide>, mut writer: WriteSide) {
    let (shared, link) = (&held.shared, &held.link);
    reader.set_limit(HEADER + 1 + PART);
    reader.set_chunk(PART);
    let error = {
        let mut served = Served { shared, link, parts: Parts::default(), calls: JoinSet::new() };
        let mut write = pin!(write_all(shared, link, &mut writer));
        let (error, written) = tokio::select! {
            error = served.read(&mut reader) => (error, false),
            end = &mut write => (end.err().unwrap_or(LinkError::Closed), true),
            error = beat(shared, link) => (error, false),
            error = link.closed() => (error, false),
            () = shared.ending() => (LinkError::Stopping, false),
        };
        link.finish(Some(&error));
        shared.forget(link);
        if !written {
            let _taken = timeout(GOODBYE_DEADLINE, write).await;
        }
        error
    };
    if link.purpose == Purpose::Calls {
        return tracing::debug!(broker = %link.who.id, %error, "a link for calls ended");
    }
    shared.metrics.link_ended(error.cause());
    shared.note_error(link.who.id, Some(error.to_string()));
    let (broker, name) = (link.who.id, &link.who.name);
    match error {
        LinkError::Stopping | LinkError::Refused(_) | LinkError::Bye(Bye::Stopping | Bye::Twin) => {
            tracing::info!(%broker, name, %error, "the link to a broker ended");
        }
        _ => tracing::warn!(%broker, name, %error, "the link to a broker ended"),
    }
}

/// A link that is refused after the other side took it for proved.
pub async fn farewell(link: &Link, writer: &mut WriteSide, error: &LinkError) {
    link.finish(Some(error));
    let mut out = Vec::new();
    link.next(&mut out).await;
    let last = async {
        writer.write_all(&out).await?;
        writer.shutdown().await
    };
    let _taken = timeout(GOODBYE_DEADLINE, last).await;
}

async fn write_all(shared: &Shared, link: &Link, writer: &mut WriteSide) -> Result<(), LinkError> {
    let mut out = Vec::with_capacity(2 * PART);
    loop {
        out.clear();
        let written = link.next(&mut out).await;
        if !out.is_empty() {
            // `beat` ends this when the other side takes nothing.
            writer.write_all(&out).await?;
            writer.flush().await?;
        }
        if written.trouble {
            shared.metrics.trouble.inc();
            shared.handler.trouble(link.who.id);
        }
        if written.end {
            return Ok(writer.shutdown().await?);
        }
    }
}

/// Pings, and looks whether they are answered: what only comes in does not prove that anything
/// gets out.
async fn beat(shared: &Shared, link: &Link) -> LinkError {
    let dead_after = shared.conf.dead_after;
    loop {
        if let Some(ping) = encoded(&Talk::Ping(link.clock())) {
            // One that finds no room is one that will not be answered.
            link.push(Lane::Talk, ping, 0);
        }
        link.flush_taken();
        sleep(dead_after / 4).await;
        if link.silent() > dead_after {
            return LinkError::Silent(dead_after);
        }
        let ours = link.purpose == Purpose::Calls && link.ends.dialled_by == shared.me.id;
        if ours && link.calls.len() == 0 && link.unused() > IDLE {
            return LinkError::Stopping;
        }
    }
}

struct Served<'a> {
    shared: &'a Arc<Shared>,
    link: &'a Arc<Link>,
    parts: Parts,
    calls: JoinSet<()>,
}

impl Served<'_> {
    async fn read(&mut self, reader: &mut FrameReader<ReadSide>) -> LinkError {
        let mut read = 0;
        loop {
            if read >= TURN {
                read = 0;
                tokio::task::yield_now().await;
            }
            let taken = match reader.read_body().await {
                Ok(body) => {
                    read += body.len() + HEADER;
                    self.shared.metrics.received_bytes.inc_by((body.len() + HEADER) as u64);
                    self.parts.take(body).and_then(|message| match message {
                        Some((lane, data)) => self.received(lane, &data),
                        None => Ok(()),
                    })
                }
                Err(error) => Err(error),
            };
            if let Err(error) = taken {
                return error;
            }
        }
    }

    fn received(&mut self, lane: Lane, data: &[u8]) -> Result<(), LinkError> {
        let (link, handler, from) = (self.link, &self.shared.handler, self.link.who.id);
        self.shared.metrics.received(lane);
        if link.purpose == Purpose::Calls && lane != Lane::Talk {
            return Err(LinkError::Unexpected("such a lane"));
        }
        match lane {
            Lane::Talk => return self.talk(codec::decode(data)?),
            Lane::Replica | Lane::Bulk => match codec::decode(data)? {
                Replication::Message { shard, message } => handler.replica(from, shard, message),
                Replication::Beats(beats) => handler.beats(from, beats),
            },
            Lane::Forward | Lane::Control => match codec::decode(data)? {
                Forward::Request { id, within_ms, request } => {
                    if let Some(reply) = ReplyTo::new(link, lane, id) {
                        handler.request(from, request, deadline(within_ms), reply);
                    }
                }
                Forward::Reply { id, reply } => link.requests.answer(id, reply),
            },
            Lane::Deliver => match codec::decode(data)? {
                Deliver::Delivery(delivery) => {
                    let room = Room { link: link.clone(), len: data.len() };
                    handler.delivered(from, delivery, room);
                }
                Deliver::Resync { positions, last } => handler.resynced(from, positions, last),
            },
        }
        Ok(())
    }

    fn talk(&mut self, talk: Talk) -> Result<(), LinkError> {
        let link = self.link;
        match talk {
            Talk::Ping(n) => {
                link.talk(&Talk::Pong(n), 0)?;
            }
            Talk::Pong(n) => link.pong(n),
            Talk::Call { id, within_ms, body } => {
                while self.calls.try_join_next().is_some() {}
                if self.calls.len() >= MAX_SERVED {
                    link.talk(&Talk::Answer { id, body: None }, 0)?;
                    return Ok(());
                }
                let served = self.shared.handler.group_call(link.who.id, body);
                let link = link.clone();
                self.calls.spawn(async move {
                    // Nobody waits any longer for one that comes too late.
                    let Ok(body) = timeout_at(deadline(within_ms), served).await else { return };
                    if let Some(data) = encoded(&Talk::Answer { id, body: Some(body) }) {
                        link.push(Lane::Talk, data, 0);
                    }
                });
            }
            Talk::Answer { id, body } => link.calls.answer(id, body),
            Talk::Taken(total) => {
                if !link.peer_took(total) {
                    return Err(LinkError::Unexpected("more taken than was delivered"));
                }
                if link.wants_resync() {
                    self.shared.handler.behind(link.who.id);
                }
            }
            Talk::Bye(bye) => return Err(LinkError::Bye(bye)),
        }
        Ok(())
    }
}

fn deadline(within_ms: u32) -> Instant {
    Instant::now() + Duration::from_millis(u64::from(within_ms))
}
