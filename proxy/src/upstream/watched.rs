//! Connections of ours to a server: for requests whose answer may end with trailers, and over TLS. Pingora reads over
//! trailers, so answers are followed here as their bytes pass, and what stands behind the last chunk is kept for
//! whoever writes to the client. Pingora's pool takes no stream but its own, so these are kept here ([`Idle`]), too.

use super::stream::ServerStream;
use crate::forward;
use crate::front::chunks::Chunks;
use bytes::BytesMut;
use http::header::{CONTENT_LENGTH, HOST, HeaderName, HeaderValue, SET_COOKIE, TRAILER};
use http::{HeaderMap, StatusCode};
use pingora_core::protocols::l4::virt::{VirtualSockOpt, VirtualSocket};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use weir_core::sync::lock;

/// Of an answer's head, as Pingora has it.
const MAX_HEAD: usize = 256 << 10;
const MAX_HEADERS: usize = 256;
/// Connections that are kept for one server.
const MAX_IDLE: usize = 128;

/// What is known of one request's connection.
#[derive(Debug, Default)]
pub struct Told {
    /// The request is a HEAD.
    head_alone: bool,
    /// The client takes trailers.
    pub wanted: bool,
    trailers: Mutex<Option<HeaderMap>>,
    kept: AtomicBool,
    /// Another client must not come on it.
    spoiled: AtomicBool,
}

impl Told {
    pub fn new(head_alone: bool, wanted: bool) -> Told {
        Told { head_alone, wanted, ..Told::default() }
    }

    pub fn take_trailers(&self) -> Option<HeaderMap> {
        lock(&self.trailers).take()
    }

    /// The connection had served another request before.
    pub fn was_kept(&self) -> bool {
        self.kept.load(Relaxed)
    }

    /// The connection closes with its exchange.
    pub fn keep_for_nobody(&self) {
        self.spoiled.store(true, Relaxed);
    }
}

/// Connections to one server that wait for a request, each looked after by a task.
#[derive(Debug, Default)]
pub struct Idle(Mutex<Vec<Waiting>>);

type Waiting = oneshot::Sender<oneshot::Sender<ServerStream>>;

impl Idle {
    /// One that is open still, the one used last first.
    async fn take(&self) -> Option<ServerStream> {
        loop {
            let waiting = lock(&self.0).pop()?;
            let (give, given) = oneshot::channel();
            if waiting.send(give).is_ok()
                && let Ok(stream) = given.await
            {
                return Some(stream);
            }
        }
    }

    fn put(&self, mut stream: ServerStream, keep: Duration) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (waiting, taken) = oneshot::channel::<oneshot::Sender<ServerStream>>();
        let mut all = lock(&self.0);
        all.retain(|waiting| !waiting.is_closed());
        if keep.is_zero() || all.len() >= MAX_IDLE {
            return;
        }
        all.push(waiting);
        runtime.spawn(async move {
            let mut byte = [0];
            tokio::select! {
                biased;
                // It is closed, or says what nobody has asked for.
                _ = stream.read(&mut byte) => {}
                give = taken => {
                    if let Ok(give) = give {
                        let _left_meanwhile = give.send(stream);
                    }
                }
                () = tokio::time::sleep(keep) => {}
            }
        });
    }
}

/// One exchange on a connection.
#[derive(Debug)]
pub struct Watched {
    /// Taken when it is dropped.
    stream: Option<ServerStream>,
    answer: Following,
    told: Arc<Told>,
    home: (Arc<Idle>, Duration),
    /// Pingora has no use for it any more, and nothing against it.
    released: bool,
}

#[derive(Debug)]
enum Following {
    Head(BytesMut),
    Length(u64),
    Chunks(Box<Chunks>),
    /// Up to the connection's end, or not understood.
    Unknown,
    Ended,
}

impl Watched {
    /// A kept connection, or one that `open` makes. `keep`: how long it may wait for its next request.
    pub async fn new(
        told: Arc<Told>,
        (idle, keep): (Arc<Idle>, Duration),
        fresh: bool,
        open: impl Future<Output = io::Result<ServerStream>>,
    ) -> io::Result<Watched> {
        let kept = if fresh { None } else { idle.take().await };
        told.kept.store(kept.is_some(), Relaxed);
        told.spoiled.store(false, Relaxed);
        let stream = match kept {
            Some(stream) => stream,
            None => open.await?,
        };
        let answer = Following::Head(BytesMut::new());
        Ok(Watched { stream: Some(stream), answer, told, home: (idle, keep), released: false })
    }

    fn stream(&mut self) -> io::Result<Pin<&mut ServerStream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Goes on to the answer's end, if that is in these bytes.
    fn follow(&mut self, mut bytes: &[u8]) {
        loop {
            match &mut self.answer {
                Following::Head(head) => {
                    head.extend_from_slice(bytes);
                    if head.len() > MAX_HEAD {
                        self.answer = Following::Unknown;
                        return;
                    }
                    let Some((next, length)) = framing(head, self.told.head_alone) else { return };
                    let rest = head.split_off(length);
                    self.answer = next;
                    return if rest.is_empty() { self.settle(0) } else { self.follow(&rest) };
                }
                Following::Length(left) => {
                    // No more than there are.
                    let n = (*left).min(bytes.len() as u64) as usize;
                    *left -= n as u64;
                    return self.settle(bytes.len() - n);
                }
                Following::Chunks(chunks) => {
                    let mut ahead = BytesMut::from(bytes);
                    loop {
                        match chunks.next(&mut ahead) {
                            Ok(Some(_)) => {}
                            Ok(None) => break,
                            Err(_) => {
                                self.answer = Following::Unknown;
                                return;
                            }
                        }
                    }
                    return self.settle(ahead.len());
                }
                Following::Ended if !bytes.is_empty() => {
                    self.answer = Following::Unknown;
                    bytes = &[];
                }
                Following::Ended | Following::Unknown => return,
            }
        }
    }

    /// Whether it has ended; `behind` are bytes that came after it.
    fn settle(&mut self, behind: usize) {
        match &mut self.answer {
            Following::Length(0) => self.answer = Following::Ended,
            Following::Chunks(chunks) if chunks.ended() => {
                *lock(&self.told.trailers) = fields(chunks.trailer());
                self.answer = Following::Ended;
            }
            _ => {}
        }
        if behind > 0 {
            self.answer = Following::Unknown;
        }
    }
}

/// How the answer goes on behind its head, and how long that is. `None`: it is not whole yet.
fn framing(head: &[u8], head_alone: bool) -> Option<(Following, usize)> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut fields);
    let length = match response.parse(head) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return None,
        Err(_) => return Some((Following::Unknown, head.len())),
    };
    let status = StatusCode::from_u16(response.code.unwrap_or(0)).unwrap_or(StatusCode::BAD_GATEWAY);
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Some((Following::Unknown, length));
    }
    if status.is_informational() {
        return Some((Following::Head(BytesMut::new()), length));
    }
    if head_alone || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Some((Following::Ended, length));
    }
    let values = |name: &str| {
        let all = response.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        all.map(|field| field.value.trim_ascii()).collect::<Vec<_>>()
    };
    let next = match (&values("transfer-encoding")[..], &values("content-length")[..]) {
        ([coding], _) if coding.eq_ignore_ascii_case(b"chunked") => {
            Following::Chunks(Box::new(Chunks::with_trailer()))
        }
        ([], [first, others @ ..]) if others.iter().all(|other| other == first) => {
            let text = std::str::from_utf8(first).ok();
            text.and_then(|text| text.parse().ok()).map_or(Following::Unknown, Following::Length)
        }
        _ => Following::Unknown,
    };
    Some((next, length))
}

/// What may stand in trailers (RFC 9110 §6.5.1): nothing that frames, routes or belongs to one connection.
fn fields(section: &[u8]) -> Option<HeaderMap> {
    let section = [section, b"\r\n"].concat();
    let mut parsed = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let Ok(httparse::Status::Complete((_, parsed))) = httparse::parse_headers(&section, &mut parsed) else {
        return None;
    };
    let mut headers = HeaderMap::new();
    for field in parsed {
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(field.name.as_bytes()), HeaderValue::from_bytes(field.value))
        {
            headers.append(name, value);
        }
    }
    forward::rewrite_response(&mut headers);
    for name in [CONTENT_LENGTH, HOST, SET_COOKIE, TRAILER] {
        headers.remove(name);
    }
    (!headers.is_empty()).then_some(headers)
}

impl Drop for Watched {
    fn drop(&mut self) {
        let good = self.released && !self.told.spoiled.load(Relaxed);
        if let (true, Some(stream)) = (good, self.stream.take()) {
            self.home.0.put(stream, self.home.1);
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Pingora looks whether it can keep the connection: it takes this for the end, and lets go.
        if matches!(self.answer, Following::Ended) {
            self.released = true;
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(self.stream()?.poll_read(cx, buf))?;
        self.follow(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    /// It is not to be used again.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.answer = Following::Unknown;
        self.stream()?.poll_shutdown(cx)
    }
}

impl VirtualSocket for Watched {
    fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
        Ok(()) // set when it was opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    const KEEP: Duration = Duration::from_secs(60);

    async fn watched(told: &Arc<Told>, idle: &Arc<Idle>) -> (Watched, Option<UnixStream>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let open = async { Ok(ServerStream::Unix(ours)) };
        let watched = Watched::new(told.clone(), (idle.clone(), KEEP), false, open).await.unwrap();
        let made = (!told.was_kept()).then_some(theirs);
        (watched, made)
    }

    /// What a reader of the answer gets, in pieces of this size. With its end it looks once more, as Pingora does.
    async fn through(answer: &[u8], size: usize, told: &Arc<Told>, idle: &Arc<Idle>) -> UnixStream {
        let (mut watched, server) = watched(told, idle).await;
        let mut server = server.expect("none is kept");
        server.write_all(answer).await.unwrap();
        let mut left = answer.len();
        while left > 0 {
            let mut piece = vec![0; size.min(left)];
            match watched.read(&mut piece).await.unwrap() {
                // What stands behind an answer is never read.
                0 => break,
                n => left -= n,
            }
        }
        let mut byte = [0];
        let more = tokio::time::timeout(Duration::from_millis(1), watched.read(&mut byte)).await;
        assert!(!matches!(more, Ok(Ok(1))));
        server
    }

    /// Whether it is kept for the next request.
    async fn is_kept(idle: &Arc<Idle>) -> bool {
        tokio::task::yield_now().await;
        idle.take().await.is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_followed_to_its_end_and_its_trailers_are_kept() {
        let ok = "HTTP/1.1 200 OK\r\n";
        for (answer, head_alone, kept, trailers) in [
            (format!("{ok}Content-Length: 2\r\n\r\nok"), false, true, ""),
            (format!("{ok}Content-Length: 2\r\ncontent-length: 2\r\n\r\nok"), false, true, ""),
            (format!("{ok}Content-Length: 0\r\n\r\n"), false, true, ""),
            (format!("{ok}Content-Length: 2\r\n\r\n"), true, true, ""),
            ("HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n".into(), false, true, ""),
            ("HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\n".into(), false, true, ""),
            (format!("HTTP/1.1 103 E\r\nLink: a\r\n\r\n{ok}Content-Length: 1\r\n\r\nx"), false, true, ""),
            (format!("{ok}Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"), false, true, ""),
            (
                format!(
                    "{ok}Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: b\r\nContent-Length: 1\r\nC: d\r\n\r\n"
                ),
                false,
                true,
                "a=b c=d",
            ),
            // Up to the connection's end, not at its end yet, more than one answer, or not to be understood.
            (format!("{ok}\r\nok"), false, false, ""),
            (format!("{ok}Content-Length: 3\r\n\r\nok"), false, false, ""),
            (format!("{ok}Content-Length: 1\r\n\r\nok"), false, false, ""),
            (format!("{ok}Content-Length: 1\r\nContent-Length: 2\r\n\r\nok"), false, false, ""),
            (format!("{ok}Transfer-Encoding: chunked\r\n\r\n2\nok\n0\n\n"), false, false, ""),
            (format!("{ok}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), false, false, ""),
            ("HTTP/1.1 101 S\r\n\r\n".into(), false, false, ""),
            ("nonsense\r\n\r\n".into(), false, false, ""),
        ] {
            for size in [1, 7, 10_000] {
                let (told, idle) = (Arc::new(Told::new(head_alone, true)), Arc::<Idle>::default());
                let _server = through(answer.as_bytes(), size, &told, &idle).await;
                let found = told.take_trailers().unwrap_or_default();
                let text: Vec<String> =
                    found.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
                let seen = (is_kept(&idle).await, text.join(" "));
                assert_eq!(seen, (kept, trailers.to_owned()), "{answer:?} in pieces of {size}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_kept_while_it_is_good_for_anybody() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let (told, idle) = (Arc::new(Told::default()), Arc::<Idle>::default());
        let mut server = through(answer, 100, &told, &idle).await;
        tokio::task::yield_now().await;
        let (mut again, made) = watched(&told, &idle).await;
        assert!(made.is_none() && told.was_kept());
        // Of the same server, and followed from its beginning.
        server.write_all(answer).await.unwrap();
        let mut whole = vec![0; answer.len()];
        again.read_exact(&mut whole).await.unwrap();
        // Pingora wants no more of it.
        again.shutdown().await.unwrap();
        drop(again);
        assert!(!is_kept(&idle).await);
        let told = Arc::new(Told::default());
        told.keep_for_nobody();
        let mut spoiled = through(answer, 100, &told, &idle).await;
        assert!(is_kept(&idle).await, "only what is said during its exchange counts");
        drop(spoiled);
        // The server closes it, says something, or nobody comes.
        let server = through(answer, 100, &told, &idle).await;
        tokio::task::yield_now().await;
        drop(server);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(!is_kept(&idle).await);
        spoiled = through(answer, 100, &told, &idle).await;
        tokio::task::yield_now().await;
        spoiled.write_all(b"x").await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(!is_kept(&idle).await);
        let _server = through(answer, 100, &told, &idle).await;
        tokio::task::yield_now().await;
        tokio::time::sleep(KEEP + Duration::from_millis(1)).await;
        assert!(!is_kept(&idle).await);
    }
}
