//! The client's unidirectional streams: control and QPACK once each, none of them ever ending.

use super::shared::{Shared, code};
use bytes::Bytes;
use quinn::RecvStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout};
use weir_h3::frame::{self, Frame};
use weir_h3::qpack::{Instructions, Kind};
use weir_h3::stream::{self, Uni};
use weir_h3::{Code, Error};

/// Which of the streams that may be there once have come.
#[derive(Default)]
pub struct Critical {
    control: AtomicBool,
    encoder: AtomicBool,
    decoder: AtomicBool,
}

/// Reads one stream to its end. An error is the connection's.
pub async fn read(shared: Arc<Shared>, critical: Arc<Critical>, mut recv: RecvStream) -> Result<(), Error> {
    let mut ahead = Bytes::new();
    let kind = timeout(shared.limits.head_timeout, kind(&mut recv, &mut ahead)).await;
    let Ok(kind) = kind else {
        shared.count("unidirectional stream without a type");
        let _ended = recv.stop(code(Code::H3_STREAM_CREATION_ERROR));
        return Ok(());
    };
    match kind {
        Some(Uni::Control) => {
            once(&critical.control)?;
            control(&shared, recv, ahead).await
        }
        Some(Uni::QpackEncoder) => {
            once(&critical.encoder)?;
            instructions(Kind::Encoder, recv, ahead).await
        }
        Some(Uni::QpackDecoder) => {
            once(&critical.decoder)?;
            instructions(Kind::Decoder, recv, ahead).await
        }
        Some(Uni::Push) => Err(Error::connection(Code::H3_STREAM_CREATION_ERROR, "push stream of a client")),
        Some(Uni::WebTransport(session)) => {
            // Its stream is all that a session has.
            shared.count("stream of a session refused");
            let _ended = recv.stop(code(Code::WT_BUFFERED_STREAM_REJECTED));
            super::sessions::check(session)
        }
        Some(Uni::Unknown(_)) => {
            let _ended = recv.stop(code(Code::H3_STREAM_CREATION_ERROR));
            Ok(())
        }
        None => Ok(()),
    }
}

fn once(seen: &AtomicBool) -> Result<(), Error> {
    match seen.swap(true, Ordering::Relaxed) {
        false => Ok(()),
        true => Err(Error::connection(Code::H3_STREAM_CREATION_ERROR, "critical stream twice")),
    }
}

/// `None`: it ended before.
async fn kind(recv: &mut RecvStream, ahead: &mut Bytes) -> Option<Uni> {
    loop {
        if let Some(kind) = stream::uni(ahead) {
            return Some(kind);
        }
        let chunk = recv.read_chunk(usize::MAX, true).await.ok()??;
        *ahead = if ahead.is_empty() { chunk.bytes } else { [&ahead[..], &chunk.bytes].concat().into() };
    }
}

/// More of a stream that must not end. `None`: the connection is lost.
async fn more(recv: &mut RecvStream) -> Result<Option<Bytes>, Error> {
    match recv.read_chunk(usize::MAX, true).await {
        Ok(Some(chunk)) => Ok(Some(chunk.bytes)),
        Ok(None) | Err(quinn::ReadError::Reset(_)) => {
            Err(Error::connection(Code::H3_CLOSED_CRITICAL_STREAM, "critical stream closed"))
        }
        Err(_) => Ok(None),
    }
}

async fn control(shared: &Shared, mut recv: RecvStream, mut ahead: Bytes) -> Result<(), Error> {
    const WRONG_ID: Error = Error::connection(Code::H3_ID_ERROR, "wrong id in a control frame");
    let mut frames = frame::Reader::control();
    let (mut max_push, mut goaway) = (0, u64::MAX);
    let mut second = Instant::now();
    loop {
        while let Some(frame) = frames.next(&mut ahead, usize::MAX)? {
            match frame {
                // The reader lets them come once.
                Frame::Settings(settings) => drop(shared.settings.set(*settings)),
                // We push nothing; the ids have to make sense all the same.
                Frame::MaxPushId(id) if id >= max_push => max_push = id,
                Frame::GoAway(id) if id <= goaway => goaway = id,
                _ => return Err(WRONG_ID),
            }
        }
        if second.elapsed() >= Duration::from_secs(1) {
            frames.rested();
            second = Instant::now();
        }
        // An empty rest would hold on to the packet it came in.
        drop(std::mem::take(&mut ahead));
        match more(&mut recv).await? {
            Some(bytes) => ahead = bytes,
            None => return Ok(()),
        }
    }
}

async fn instructions(kind: Kind, mut recv: RecvStream, ahead: Bytes) -> Result<(), Error> {
    let mut instructions = Instructions::new(kind);
    instructions.read(&ahead)?;
    drop(ahead);
    while let Some(bytes) = more(&mut recv).await? {
        instructions.read(&bytes)?;
    }
    Ok(())
}
