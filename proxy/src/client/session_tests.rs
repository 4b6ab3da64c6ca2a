//! What a client's session gets of what a tunnel writes, and what it ends with. Time stands still.

use super::*;
use crate::tunnel::frames::tests::frame;
use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Waker;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::Instant;

/// The server's side of a session: a pipe, and what became of it.
struct Fake {
    /// `None`: the client has opened no stream.
    pipe: Option<DuplexStream>,
    fate: Rc<RefCell<Fate>>,
}

#[derive(Default)]
struct Fate {
    by_client: Option<u32>,
    by_us: Option<(u16, String)>,
}

impl Session for Fake {
    fn is_live(&self) -> bool {
        let fate = self.fate.borrow();
        fate.by_client.is_none() && fate.by_us.is_none()
    }

    fn is_attached(&self) -> bool {
        self.pipe.is_some()
    }

    fn closed(&self) -> Option<u32> {
        self.fate.borrow().by_client
    }

    fn close(&self, code: u16, reason: &str) {
        self.fate.borrow_mut().by_us.get_or_insert((code, reason.to_owned()));
    }
}

impl AsyncRead for Fake {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.is_live() {
            return Poll::Ready(Ok(()));
        }
        self.pipe.as_mut().map_or(Poll::Pending, |pipe| Pin::new(pipe).poll_read(cx, buf))
    }
}

impl AsyncWrite for Fake {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.pipe.as_mut().map_or(Poll::Pending, |pipe| Pin::new(pipe).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pipe.as_mut().map_or(Poll::Pending, |pipe| Pin::new(pipe).poll_shutdown(cx))
    }
}

/// The tunnel's end, the client's stream, and what became of the session.
fn session(room: usize) -> (SessionStream<Fake>, DuplexStream, Rc<RefCell<Fate>>) {
    let (near, far) = duplex(room);
    let fate = Rc::new(RefCell::default());
    (SessionStream::new(Fake { pipe: Some(near), fate: fate.clone() }), far, fate)
}

fn close(code: u16, reason: &str) -> Vec<u8> {
    frame(0x88, &[&code.to_be_bytes(), reason.as_bytes()].concat(), None)
}

/// All of it; the client stays.
async fn heard(mut client: DuplexStream) -> (Vec<u8>, DuplexStream) {
    let mut all = Vec::new();
    client.read_to_end(&mut all).await.unwrap();
    (all, client)
}

#[tokio::test(start_paused = true)]
async fn the_client_gets_what_frames_carry_and_the_code() {
    let long = vec![7; 70_000];
    let said = [
        frame(0x82, b"one\n", None),
        frame(0x82, b"", None),
        frame(0x89, b"ping", None),
        frame(0x82, &long, None),
        close(3001, "shutdown"),
        frame(0x82, b"nobody hears it", None),
    ];
    for room in [64, 1 << 20] {
        let (mut tunnel, client, fate) = session(room);
        let client = tokio::spawn(heard(client));
        tunnel.write_all(&said.concat()).await.unwrap();
        let (heard, _client) = client.await.unwrap();
        assert_eq!(heard, [b"one\n", &long[..]].concat(), "room for {room}");
        assert_eq!(fate.borrow().by_us, None, "it may read first");
        let begun = Instant::now();
        assert_eq!(tunnel.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(begun.elapsed().as_millis() / 10, FAREWELL.as_millis() / 10);
        assert_eq!(fate.borrow().by_us, Some((3001, "shutdown".to_owned())));
    }
}

#[tokio::test(start_paused = true)]
async fn who_leaves_by_itself_is_not_waited_for() {
    let begun = Instant::now();
    // Before it was told, and after.
    for before in [true, false] {
        let (mut tunnel, mut client, fate) = session(1 << 16);
        if before {
            client.shutdown().await.unwrap();
            assert_eq!(tunnel.read(&mut [0]).await.unwrap(), 0);
        }
        tunnel.write_all(&close(3000, "connection closed")).await.unwrap();
        if !before {
            client.write_all(b"too late").await.unwrap();
            client.shutdown().await.unwrap();
            assert_eq!(tunnel.read(&mut [0]).await.unwrap(), 0, "what it says then is for nobody");
        }
        tunnel.shutdown().await.unwrap();
        assert_eq!(fate.borrow().by_us, Some((3000, "connection closed".to_owned())));
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_end_without_a_close_frame_has_a_code_of_ours() {
    let (mut tunnel, client, fate) = session(1 << 16);
    // In the middle of a header, too.
    tunnel.write_all(&[&frame(0x82, b"half", None)[..], &[0x82]].concat()).await.unwrap();
    tunnel.shutdown().await.unwrap();
    assert_eq!(fate.borrow().by_us, Some((1014, String::new())));
    assert_eq!(heard(client).await.0, b"half");
    let (mut tunnel, _client, fate) = session(1 << 16);
    tunnel.end(End { whole: false, code: 1008 }, &mut Context::from_waker(Waker::noop()));
    assert_eq!(fate.borrow().by_us, Some((1008, String::new())));
    // And what was said already stands.
    let (mut tunnel, _client, fate) = session(1 << 16);
    tunnel.write_all(&close(3008, "slow")).await.unwrap();
    tunnel.end(End { whole: true, code: 1014 }, &mut Context::from_waker(Waker::noop()));
    assert_eq!(fate.borrow().by_us, Some((3008, "slow".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn a_session_without_a_stream_is_told_all_the_same() {
    let fate = Rc::new(RefCell::default());
    let mut tunnel = SessionStream::new(Fake { pipe: None, fate: Rc::clone(&fate) });
    let push = frame(0x82, b"why", None);
    let mut write = |bytes: Vec<u8>| {
        let written = Pin::new(&mut tunnel).poll_write(&mut Context::from_waker(Waker::noop()), &bytes);
        written.map(Result::unwrap)
    };
    assert_eq!(write(push.clone()), Poll::Ready(2), "its header");
    assert_eq!(write(push[2..].to_vec()), Poll::Pending);
    let rest = [&push[2..], &push, &close(3502, "stale")].concat();
    assert_eq!(write(rest.clone()), Poll::Ready(rest.len()));
    tunnel.shutdown().await.unwrap();
    assert_eq!(fate.borrow().by_us, Some((3502, "stale".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_closes_is_no_end_of_its_stream() {
    let (mut tunnel, _client, fate) = session(1 << 16);
    let read = poll_fn(|cx| {
        Poll::Ready(Pin::new(&mut tunnel).poll_read(cx, &mut ReadBuf::new(&mut [0])).is_pending())
    });
    assert!(read.await);
    fate.borrow_mut().by_client = Some(7);
    let gone = tunnel.read(&mut [0]).await.unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(
        (tunnel.closed(), tunnel.presence(&mut Context::from_waker(Waker::noop()))),
        (Some(7), Presence::Gone)
    );
}
