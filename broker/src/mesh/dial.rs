//! Connecting to another broker, and again whenever the link is gone.

use super::hello;
use super::live::{self, Held};
use super::registry::Shared;
use crate::link::{FrameReader, GOODBYE_DEADLINE, HANDSHAKE_DEADLINE, LinkError, write_frame};
use crate::metrics::Cause;
use crate::socket::{self, ReadSide, WriteSide};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use weir_core::backoff::Backoff;
use weir_wire::id::BrokerId;
use weir_wire::mesh::{Purpose, Shake};
use weir_wire::peer::{Bye, HELLO_SIZE};

const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

pub struct Dialled {
    pub held: Held,
    pub reader: FrameReader<ReadSide>,
    pub writer: WriteSide,
}

/// Until it is aborted, or this broker stops. The other side does the same: which link stays is
/// decided in `pair`.
pub async fn keep_linked(shared: Arc<Shared>, id: BrokerId, addr: String, down: Arc<Notify>) {
    tokio::select! {
        () = dial_on_and_on(shared.clone(), id, addr, down) => {}
        () = shared.ending() => {}
    }
}

async fn dial_on_and_on(shared: Arc<Shared>, id: BrokerId, addr: String, down: Arc<Notify>) {
    let mut rng = SmallRng::from_os_rng();
    let mut backoff = Backoff::new(shared.conf.redial.0, shared.conf.redial.1);
    let (mut first, mut said) = (true, String::new());
    loop {
        let waits = Instant::now();
        while shared.link(id).is_some() {
            down.notified().await;
        }
        // It was up for a while: what comes now is another trouble.
        if waits.elapsed() > shared.conf.redial.1 {
            backoff.reset();
        }
        let mut wait = if std::mem::take(&mut first) { Duration::ZERO } else { backoff.next(&mut rng) };
        if id < shared.me.id {
            // Its link would win over ours: a head start for it, so that seldom two are made.
            wait += shared.conf.redial.0;
        }
        sleep(wait).await;
        if shared.link(id).is_some() {
            continue;
        }
        match dial(&shared, &addr, Purpose::Link, Some(id)).await {
            Ok(dialled) => {
                said.clear();
                tokio::spawn(live::run(dialled.held, dialled.reader, dialled.writer));
            }
            Err(error) => failed(&shared, id, &addr, &error, &mut said),
        }
    }
}

/// Says the same thing once.
fn failed(shared: &Shared, id: BrokerId, addr: &str, error: &LinkError, said: &mut String) {
    shared.metrics.dial_failures.get_or_create(&Cause { cause: error.cause() }).inc();
    let text = error.to_string();
    if matches!(error, LinkError::Bye(Bye::Twin) | LinkError::Refused(Bye::Twin)) || text == *said {
        tracing::debug!(broker = %id, addr, %error, "no link to a broker");
    } else {
        tracing::warn!(broker = %id, addr, %error, "no link to a broker");
        said.clone_from(&text);
    }
    shared.note_error(id, Some(text));
}

/// A proved link that is already the one, if it is for more than calls.
pub async fn dial(
    shared: &Arc<Shared>,
    addr: &str,
    purpose: Purpose,
    to: Option<BrokerId>,
) -> Result<Dialled, LinkError> {
    let stream = timeout(CONNECT_DEADLINE, TcpStream::connect(addr)).await;
    let stream =
        stream.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "connecting took too long"))??;
    shared.may_talk_to(stream.peer_addr()?.ip())?;
    socket::tune(&stream);
    let deadline = Instant::now() + HANDSHAKE_DEADLINE;
    let (reader, mut writer) = socket::connected(stream, addr, shared.conf.tls.as_ref(), deadline).await?;
    let mut reader = FrameReader::new(reader, HELLO_SIZE);
    let shaken = timeout_at(deadline, hello::dialled(shared, &mut reader, &mut writer, purpose, to));
    let shaken = shaken.await.unwrap_or(Err(LinkError::Deadline("the handshake")));
    let link = match shaken {
        Ok(link) => link,
        Err(error) => {
            say_bye(&mut writer, &error).await;
            return Err(error);
        }
    };
    if purpose == Purpose::Link {
        if let Err(error) = shared.adopt(&link) {
            live::farewell(&link, &mut writer, &error).await;
            return Err(error);
        }
        tracing::info!(broker = %link.who.id, name = link.who.name, addr, "linked to a broker");
        shared.note_error(link.who.id, None);
    }
    Ok(Dialled { held: Held::new(shared, link), reader, writer })
}

/// Before the link lives.
pub async fn say_bye(writer: &mut WriteSide, error: &LinkError) {
    if let Some(bye) = error.bye() {
        let _taken = timeout(GOODBYE_DEADLINE, write_frame(writer, &Shake::Bye(bye))).await;
    }
}
