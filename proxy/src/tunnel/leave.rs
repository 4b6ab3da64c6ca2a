//! The end of a tunnel that we close: in each direction the frame under way ends, a Close frame follows
//! it, and then the peers have a moment to answer. Where no frame of ours may stand, there is none, and
//! the connection just ends.

use super::frames::{self, Rules, Stop};
use super::relay::Way;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};

/// So much of what a peer still sends is read and thrown away: closing at once would reset the connection,
/// and with it our Close frame. Who floods is not listened to for longer.
const PATIENCE: usize = 1 << 20;

/// One direction of a tunnel that ends.
pub struct Parting {
    stage: Stage,
    /// A Close frame of ours went this way.
    pub spoke: bool,
    /// Nothing more is to be expected from where this direction comes from.
    pub heard: bool,
    /// Of what may still be thrown away.
    patience: usize,
}

/// ```text
///   Answers ──(a Close frame)──┐
///   Frame ──(it has ended)─────┴──► Close ──(it is written)──► Silent
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// What the peer still says to what came before, up to its own Close frame.
    Answers,
    Frame,
    Close,
    /// All that was to be written is; what comes in is thrown away.
    Silent,
}

impl Parting {
    /// `close`: the Close frame to end with. `finish`: a frame under way is worth waiting for; `hear_out`: and all
    /// that follows it.
    pub fn new(way: &mut Way, close: Option<&[u8]>, finish: bool, hear_out: bool) -> Parting {
        let mut parting =
            Parting { stage: Stage::Frame, spoke: false, heard: !way.is_open(), patience: PATIENCE };
        parting.heard |= way.scanner.close().is_some();
        if hear_out && close.is_some() && !parting.heard && !way.scanner.is_lost() {
            parting.stage = Stage::Answers;
        } else if close.is_none() || !finish || way.scanner.is_at_boundary() || way.scanner.is_lost() {
            parting.close(way, close);
        }
        parting
    }

    fn close(&mut self, way: &mut Way, close: Option<&[u8]>) {
        self.spoke = close.is_some_and(|frame| way.inject_last(frame));
        self.stage = Stage::Close;
    }

    /// Goes on as far as it can. What was spilled of whole frames is still written.
    pub fn poll<R, W>(
        &mut self,
        way: &mut Way,
        (from, to): (&mut R, &mut W),
        close: Option<&[u8]>,
        scratch: &mut [u8],
        cx: &mut Context<'_>,
    ) where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        while self.stage == Stage::Answers {
            match way.is_stuck().then(|| way.flush(to, cx)) {
                None | Some(Poll::Ready(Ok(()))) => {}
                Some(Poll::Ready(Err(_))) => self.stage = Stage::Silent,
                Some(Poll::Pending) => return,
            }
            match way.fill(from, scratch, usize::MAX, cx) {
                Poll::Ready(Ok((end @ 1.., _))) => self.answers(way, to, &scratch[..end], close, cx),
                Poll::Ready(_) => {
                    self.heard = true;
                    self.close(way, close);
                }
                Poll::Pending => return,
            }
        }
        while self.stage == Stage::Frame {
            match way.is_stuck().then(|| way.flush(to, cx)) {
                None | Some(Poll::Ready(Ok(()))) => {}
                Some(Poll::Ready(Err(_))) => self.stage = Stage::Silent,
                Some(Poll::Pending) => break,
            }
            if way.scanner.is_at_boundary() {
                self.close(way, close);
                break;
            }
            match way.fill(from, scratch, usize::MAX, cx) {
                Poll::Ready(Ok((end @ 1.., _))) => {
                    let pass = way.scanner.pass(end);
                    way.keep(&scratch[pass..end], true);
                    if way.write(to, &scratch[..pass], cx).is_err() {
                        self.stage = Stage::Silent;
                    }
                }
                Poll::Ready(_) => (self.stage, self.heard) = (Stage::Silent, true),
                Poll::Pending => break,
            }
        }
        if self.stage == Stage::Close
            && let Poll::Ready(_gone_or_not) = way.flush(to, cx)
        {
            self.stage = Stage::Silent;
        }
        if matches!(self.stage, Stage::Close | Stage::Silent) {
            self.listen(way, from, scratch, cx);
        }
    }

    /// Passes on what stands before the peer's Close frame; in place of that one comes ours.
    fn answers<W: AsyncWrite + Unpin>(
        &mut self,
        way: &mut Way,
        to: &mut W,
        bytes: &[u8],
        close: Option<&[u8]>,
        cx: &mut Context<'_>,
    ) {
        let (pass, stop) = way.scanner.scan(bytes, &Rules::UP_TO_CLOSE);
        if way.write(to, &bytes[..pass], cx).is_err() {
            self.stage = Stage::Silent;
            return;
        }
        match stop {
            Stop::More => way.keep(&bytes[pass..], false),
            Stop::Close => {
                self.heard = true;
                self.close(way, close);
            }
            _ => {
                way.scanner.lose();
                self.close(way, close);
            }
        }
    }

    /// Throws away what comes, up to the peer's Close frame or its end.
    fn listen<R: AsyncRead + Unpin>(
        &mut self,
        way: &mut Way,
        from: &mut R,
        scratch: &mut [u8],
        cx: &mut Context<'_>,
    ) {
        while !self.heard {
            match way.fill(from, scratch, usize::MAX, cx) {
                Poll::Ready(Ok((end @ 1.., _))) => {
                    self.patience = self.patience.saturating_sub(end);
                    let (n, stop) = way.scanner.scan(&scratch[..end], &Rules::NONE);
                    if stop == Stop::Nonsense {
                        way.scanner.lose();
                    } else {
                        way.keep(&scratch[n..end], false);
                    }
                    self.heard = way.scanner.close().is_some() || self.patience == 0;
                }
                Poll::Ready(_) => self.heard = true,
                Poll::Pending => return,
            }
        }
    }

    pub fn is_written(&self) -> bool {
        self.stage == Stage::Silent
    }
}

/// The codes of an end of ours, to the client and to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codes {
    pub client: u16,
    pub server: u16,
}

/// RFC 6455, 7.4.1, and the registry of codes.
pub const GOING_AWAY: u16 = 1001;
pub const PROTOCOL_ERROR: u16 = 1002;
pub const POLICY: u16 = 1008;
pub const TOO_BIG: u16 = 1009;
pub const SERVICE_RESTART: u16 = 1012;
/// The server went away without a word. Said to sessions of WebTransport alone: WebSockets just end then.
pub const BAD_GATEWAY: u16 = 1014;

/// A tunnel on its way out.
pub struct Leaving {
    to_client: Option<Vec<u8>>,
    to_server: Option<Vec<u8>>,
    up: Parting,
    down: Parting,
    /// The client is taken for dead: nothing of it is waited for.
    client_is_gone: bool,
    /// Nothing more goes to the client.
    hung_up: bool,
}

/// Who is still worth a word, and a wait.
#[derive(Clone, Copy)]
pub struct Manner {
    pub codes: Codes,
    /// The client's frame under way may end.
    pub finish_up: bool,
    /// The server may answer what came before.
    pub hear_out: bool,
    pub client_is_gone: bool,
}

impl Leaving {
    pub fn new(up: &mut Way, down: &mut Way, manner: Manner) -> Leaving {
        let to_client = (!manner.client_is_gone).then(|| frames::close(manner.codes.client, None));
        let to_server = Some(frames::close(manner.codes.server, Some(rand::random())));
        Leaving {
            up: Parting::new(up, to_server.as_deref(), manner.finish_up, false),
            down: Parting::new(down, to_client.as_deref(), true, manner.hear_out),
            to_client,
            to_server,
            client_is_gone: manner.client_is_gone,
            hung_up: false,
        }
    }

    /// Ready when there is nothing more to write, and nobody's answer to wait for.
    pub fn poll<C, S>(
        &mut self,
        (up, down): (&mut Way, &mut Way),
        (client, server): (&mut C, &mut S),
        scratch: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Poll<()>
    where
        C: AsyncRead + AsyncWrite + Unpin,
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.up.poll(up, (&mut *client, &mut *server), self.to_server.as_deref(), scratch, cx);
        self.down.poll(down, (&mut *server, &mut *client), self.to_client.as_deref(), scratch, cx);
        // Its Close frame would not be known among what is no frame: it sees the connection's end, and ends its side.
        if self.down.spoke && self.down.is_written() && up.scanner.is_lost() && !self.hung_up {
            self.hung_up = Pin::new(&mut *client).poll_shutdown(cx).is_ready();
        }
        let written = self.up.is_written() && (self.down.is_written() || self.client_is_gone);
        let client_done = self.client_is_gone || !self.down.spoke || self.up.heard;
        let server_done = !self.up.spoke || self.down.heard;
        if written && client_done && server_done { Poll::Ready(()) } else { Poll::Pending }
    }

    /// The server has had its time to answer; true: it was still having it.
    pub fn hurry(&mut self, down: &mut Way) -> bool {
        let answers = self.down.stage == Stage::Answers;
        if answers && down.scanner.is_at_boundary() {
            self.down.close(down, self.to_client.as_deref());
        } else if answers {
            self.down.stage = Stage::Frame;
        }
        answers
    }

    /// The client was told why.
    pub fn told_client(&self) -> bool {
        self.down.spoke
    }
}
