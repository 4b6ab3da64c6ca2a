//! A connection of HTTP/2 (RFC 9113): the h2 crate does the framing; here are its limits, its idle time, its
//! GOAWAY in a drain, and each request's stream.
//!
//! Flow control is the tunnel's backpressure: what a stream brings is given back to its window only when it
//! was taken, and what goes to the client waits for the stream's window. The connection's window has room for
//! all streams' windows, so a stream that nobody reads stalls itself alone.

mod calm;
mod stream;

pub use stream::Stream;

use bytes::Bytes;
use calm::{Calm, Watched};
use h2::server::{Builder, Connection};
use http::request::Parts;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};
use weir_conf::proxy::Http2;
use weir_core::drain::Drain;

/// Of what is to be sent on a stream and waits for the connection.
const SEND_BUFFER: usize = 64 << 10;
/// Streams that ended by a reset and of which frames may still come.
const RESET_STREAMS: usize = 20;
/// The table of headers that the client may refer to.
const HEADER_TABLE: u32 = 4096;
/// A frame's payload; the RFC's own smallest maximum.
const FRAME: u32 = 16 << 10;
/// After GOAWAY a client has this long to have its requests on the way counted in.
const IDLE_LOOK: Duration = Duration::from_secs(5);

/// Deadlines of a connection.
#[derive(Clone, Copy)]
pub struct Deadlines {
    /// For the preface, and for whoever has no stream open.
    pub head: Duration,
    pub idle: Duration,
}

/// Why a connection ended, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By the client, or by GOAWAY and the end of all streams.
    Closed,
    /// Its preface did not come, or not in time.
    NoPreface,
    /// It had no stream for too long.
    Idle,
    /// The same, with a frame that had begun.
    HalfAFrame,
    /// It broke the protocol, or flooded: it got a GOAWAY that says so.
    Protocol(h2::Reason),
    /// The socket failed.
    Io,
}

impl End {
    /// For the metric of refusals; `None`: it was an ordinary end.
    pub fn cause(self) -> Option<&'static str> {
        match self {
            End::Closed | End::Idle | End::Io => None,
            End::NoPreface => Some("h2_preface"),
            End::HalfAFrame => Some("head_timeout"),
            End::Protocol(h2::Reason::ENHANCE_YOUR_CALM) => Some("h2_flood"),
            End::Protocol(h2::Reason::FLOW_CONTROL_ERROR) => Some("h2_flow_control"),
            End::Protocol(h2::Reason::COMPRESSION_ERROR) => Some("h2_compression"),
            End::Protocol(_) => Some("h2_protocol"),
        }
    }
}

/// Serves a connection to its end; each request is given to `take`, which must not block.
pub async fn serve<T>(
    io: T,
    conf: &Http2,
    deadlines: Deadlines,
    drain: &Drain,
    mut take: impl FnMut(Parts, Stream),
) -> End
where
    T: AsyncRead + AsyncWrite + Unpin + Send,
{
    let calm = Arc::new(Calm::default());
    let handshake = builder(conf).handshake::<Watched<T>, Bytes>(Watched::new(io, calm.clone()));
    let mut conn = match timeout(deadlines.head, handshake).await {
        Ok(Ok(conn)) => conn,
        Ok(Err(error)) => return ended(&error, End::NoPreface),
        Err(_) => return End::NoPreface,
    };
    // Since when there has been no stream.
    let (mut idle, mut since, mut going) = (deadlines.head, Instant::now(), false);
    loop {
        let look = tokio::time::sleep(IDLE_LOOK.min(idle));
        tokio::select! {
            accepted = conn.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    idle = deadlines.idle;
                    let (parts, body) = request.into_parts();
                    take(parts, Stream::new(body, respond, calm.clone()));
                }
                Some(Err(error)) => return ended(&error, End::Closed),
                None => return End::Closed,
            },
            () = drain.begun(), if !going => {
                going = true;
                conn.graceful_shutdown();
            }
            () = calm.over() => {
                conn.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                closed(&mut conn, deadlines.head).await;
                return End::Protocol(h2::Reason::ENHANCE_YOUR_CALM);
            }
            () = look => {}
        }
        if conn.has_streams() {
            since = Instant::now();
        } else if since.elapsed() >= idle {
            conn.graceful_shutdown();
            let end = if calm.is_within_a_frame() { End::HalfAFrame } else { End::Idle };
            closed(&mut conn, deadlines.head).await;
            return end;
        }
    }
}

/// Says what there is to be said, to a client that may not listen.
async fn closed<T: AsyncRead + AsyncWrite + Unpin>(conn: &mut Connection<T, Bytes>, limit: Duration) {
    let _gone_or_late = timeout(limit, poll_fn(|cx| conn.poll_closed(cx))).await;
}

fn builder(conf: &Http2) -> Builder {
    let mut builder = h2::server::Builder::new();
    let all = (conf.max_streams as usize).saturating_mul(conf.stream_window).min(i32::MAX as usize);
    builder
        .enable_connect_protocol()
        .max_concurrent_streams(conf.max_streams)
        .initial_window_size(u32::try_from(conf.stream_window).unwrap_or(i32::MAX as u32))
        .initial_connection_window_size(all.max(65_535) as u32)
        .max_frame_size(FRAME)
        .max_header_list_size(u32::try_from(conf.max_header_list).unwrap_or(u32::MAX))
        .header_table_size(HEADER_TABLE)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(RESET_STREAMS)
        .max_pending_accept_reset_streams(conf.max_resets as usize)
        .max_local_error_reset_streams(Some(conf.max_resets as usize));
    builder
}

fn ended(error: &h2::Error, otherwise: End) -> End {
    match error.reason() {
        Some(h2::Reason::NO_ERROR) => End::Closed,
        // The client's own GOAWAY is its business.
        Some(_) if error.is_remote() => End::Closed,
        Some(reason) => End::Protocol(reason),
        None if otherwise == End::NoPreface => End::NoPreface,
        None => End::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::sleep;

    #[tokio::test(start_paused = true)]
    async fn pings_keep_no_connection_open() {
        let (client, server) = tokio::io::duplex(64 << 10);
        let conf = crate::testing::conf().http2;
        let deadlines = Deadlines { head: Duration::from_secs(10), idle: Duration::from_secs(60) };
        let pinging = async {
            let (_kept, mut conn) = h2::client::handshake(client).await.unwrap();
            let mut pings = conn.ping_pong().unwrap();
            let ping = async {
                while pings.ping(h2::Ping::opaque()).await.is_ok() {
                    sleep(Duration::from_secs(1)).await;
                }
            };
            tokio::join!(conn, ping).0
        };
        let drain = Drain::new();
        let both = async { tokio::join!(serve(server, &conf, deadlines, &drain, |_, _| {}), pinging) };
        let (end, _) = timeout(Duration::from_secs(600), both).await.unwrap();
        assert_eq!(end, End::Idle);
    }
}
