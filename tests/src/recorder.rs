//! A server that keeps all that it was sent and answers by a script. It reads requests as strictly as can be:
//! what is not exactly one request after the other is kept as bytes, for the test to find.

mod wire;

use crate::{until, within};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use wire::{Wire, body, framing, latin1};

/// A request as it came.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// With its last line end, without the blank line.
    pub head: String,
    /// Without its framing.
    pub body: Vec<u8>,
    /// The body came to its end.
    pub whole: bool,
    /// What came once the answer had ended the conversation as HTTP.
    pub after: Vec<u8>,
}

impl Request {
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    pub fn values(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().skip(1).filter_map(|l| l.split_once(':'));
        fields.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim()).collect()
    }
}

/// What the script answers to a request.
pub enum Reply {
    /// These bytes, after the request's body; the next request is read then.
    Answer(Vec<u8>),
    /// These bytes at once; whatever comes afterwards is kept in [`Request::after`].
    Last(Vec<u8>),
    /// As `Last`, and it is this side that ends the connection.
    Close(Vec<u8>),
    /// As `Last`, one byte after the other.
    Drip(Vec<u8>, Duration),
    /// A head, then for ever more bytes, as fast as they are taken.
    Flood(Vec<u8>),
    /// These bytes, and nothing is read any more.
    Deaf(Vec<u8>),
}

/// One connection: what was read of it so far.
#[derive(Clone, Debug, Default)]
pub struct Connection {
    pub requests: Vec<Request>,
    /// Bytes that are no request.
    pub odd: Vec<u8>,
    pub ended: bool,
    /// All was answered, and no other request has come: the proxy may keep it for the next.
    pub idle: bool,
}

type Script = Arc<dyn Fn(&Request) -> Reply + Send + Sync>;

pub struct Recorder {
    addr: SocketAddr,
    connections: Arc<Mutex<Vec<Connection>>>,
    /// Written by floods.
    flooded: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Recorder {
    pub async fn start(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Recorder {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port for a server");
        let addr = listener.local_addr().expect("its address");
        let connections = Arc::new(Mutex::new(Vec::new()));
        let flooded = Arc::new(AtomicUsize::new(0));
        let (kept, script, count) = (connections.clone(), Arc::new(script) as Script, flooded.clone());
        let accepting = tokio::spawn(async move {
            let mut serving = tokio::task::JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let index = {
                    let mut kept = kept.lock().unwrap();
                    kept.push(Connection::default());
                    kept.len() - 1
                };
                let (kept, script, count) = (kept.clone(), script.clone(), count.clone());
                serving.spawn(async move {
                    let note = Note { kept: &kept, index };
                    serve(Wire { tcp, bytes: Vec::new() }, &note, &script, &count).await;
                    note.with(|c| c.ended = true);
                });
            }
        });
        Recorder { addr, connections, flooded, accepting }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Bytes that floods got rid of.
    pub fn flooded(&self) -> usize {
        self.flooded.load(SeqCst)
    }

    pub fn connections(&self) -> Vec<Connection> {
        self.connections.lock().unwrap().clone()
    }

    /// Connections on which something is under way.
    pub fn busy(&self) -> usize {
        self.connections.lock().unwrap().iter().filter(|c| !c.ended && !c.idle).count()
    }

    /// All requests, whatever their connection.
    pub fn requests(&self) -> Vec<Request> {
        self.connections().into_iter().flat_map(|c| c.requests).collect()
    }

    /// Waits until the other side has ended all its connections: what was seen then is all there will be.
    pub async fn ended(&self) {
        until("the proxy's connections to the server end", || async {
            match self.connections().iter().filter(|c| !c.ended).count() {
                0 => Ok(()),
                n => Err(format!("{n} open")),
            }
        })
        .await;
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// A good answer with this body.
pub fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// A good answer to a WebSocket handshake.
pub fn switch(request: &Request) -> Vec<u8> {
    let accept = derive_accept_key(request.values("sec-websocket-key").first().unwrap_or(&"").as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )
    .into_bytes()
}

/// Sends these bytes and reads until the other side has ended the connection.
pub async fn exchange(addr: SocketAddr, source: Ipv4Addr, sent: &[u8]) -> Vec<u8> {
    let what = format!("the end of the connection on which this was sent: {}", String::from_utf8_lossy(sent));
    within(&what, async {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind((source, 0).into()).expect("a source address");
        let mut tcp = socket.connect(addr).await.unwrap_or_else(|e| panic!("{addr}: {e}"));
        let (mut read, mut write) = tcp.split();
        let mut answer = Vec::new();
        // The proxy may refuse before all of it is sent; what it answered then still counts.
        let (_cut_short, _reset) = tokio::join!(write.write_all(sent), read.read_to_end(&mut answer));
        answer
    })
    .await
}

/// The statuses of the answers that stand in these bytes one after the other, informational ones left out; a
/// switch of protocols ends them.
pub fn statuses(mut bytes: &[u8]) -> Vec<u16> {
    let mut found = Vec::new();
    while let Some(end) = find(bytes, b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let status = head.strip_prefix("http/1.1 ").and_then(|h| h.get(..3)?.parse().ok());
        let status: u16 = status.unwrap_or_else(|| panic!("no status line: {head:?}"));
        bytes = &bytes[end + 4..];
        if (100..200).contains(&status) && status != 101 {
            continue;
        }
        found.push(status);
        let value = |name: &str| head.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
        let length = value("content-length").map(|v| v.parse::<usize>().expect("a length"));
        bytes = match length {
            Some(length) => bytes.get(length..).unwrap_or_default(),
            None if value("transfer-encoding").is_some() => {
                find(bytes, b"0\r\n\r\n").map_or(&[][..], |at| &bytes[at + 5..])
            }
            None => return found,
        };
    }
    assert!(bytes.is_empty(), "after {found:?}: {:?}", String::from_utf8_lossy(bytes));
    found
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|w| w == what)
}

struct Note<'a> {
    kept: &'a Mutex<Vec<Connection>>,
    index: usize,
}

impl Note<'_> {
    fn with<T>(&self, change: impl FnOnce(&mut Connection) -> T) -> T {
        change(&mut self.kept.lock().unwrap()[self.index])
    }

    fn request<T>(&self, change: impl FnOnce(&mut Request) -> T) -> T {
        self.with(|c| change(c.requests.last_mut().expect("a request was read")))
    }
}

async fn serve(mut wire: Wire, note: &Note<'_>, script: &Script, flooded: &AtomicUsize) {
    loop {
        let head = loop {
            if let Some(end) = find(&wire.bytes, b"\r\n\r\n") {
                break end + 2;
            }
            if !wire.fill().await {
                return note.with(|c| c.odd = wire.bytes);
            }
        };
        let head: Vec<u8> = wire.bytes.drain(..head).collect();
        let _blank = wire.bytes.drain(..2);
        drop(_blank);
        let Some(framing) = framing(&head) else {
            note.with(|c| c.odd = head);
            return keep_the_rest(&mut wire, |bytes| note.with(|c| c.odd.extend(bytes))).await;
        };
        let request = Request { head: latin1(&head), ..Request::default() };
        let reply = script(&request);
        note.with(|c| {
            c.requests.push(request);
            c.idle = false;
        });
        match reply {
            Reply::Answer(bytes) => {
                if !body(&mut wire, framing, note).await || wire.tcp.write_all(&bytes).await.is_err() {
                    return;
                }
                note.with(|c| c.idle = true);
            }
            other => return last(wire, other, note, flooded).await,
        }
    }
}

/// After these replies nothing is read as a request.
async fn last(mut wire: Wire, reply: Reply, note: &Note<'_>, flooded: &AtomicUsize) {
    let after = |bytes: &[u8]| note.request(|r| r.after.extend(bytes));
    match reply {
        Reply::Answer(bytes) | Reply::Last(bytes) => {
            let _gone = wire.tcp.write_all(&bytes).await;
        }
        Reply::Close(bytes) => {
            let _gone = wire.tcp.write_all(&bytes).await;
            let _gone = wire.tcp.shutdown().await;
        }
        Reply::Drip(bytes, every) => {
            let (mut read, mut write) = wire.tcp.split();
            let drip = async {
                for byte in bytes {
                    if write.write_all(&[byte]).await.is_err() {
                        break;
                    }
                    tokio::time::sleep(every).await;
                }
            };
            let mut seen = Vec::new();
            let end = async { while matches!(read.read_buf(&mut seen).await, Ok(1..)) {} };
            tokio::select! { () = drip => {}, () = end => {} }
            return after(&seen);
        }
        Reply::Flood(bytes) => {
            let _gone = wire.tcp.write_all(&bytes).await;
            let piece = [b'x'; 16 * 1024];
            while let Ok(n @ 1..) = wire.tcp.write(&piece).await {
                flooded.fetch_add(n, SeqCst);
            }
            return;
        }
        Reply::Deaf(bytes) => {
            let _gone = wire.tcp.write_all(&bytes).await;
            // Only its end is looked out for, now and then: what can be read stays unread.
            while wire.tcp.ready(tokio::io::Interest::READABLE).await.is_ok_and(|r| !r.is_read_closed()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            return;
        }
    }
    keep_the_rest(&mut wire, after).await;
}

async fn keep_the_rest(wire: &mut Wire, mut keep: impl FnMut(&[u8])) {
    loop {
        keep(&wire.bytes);
        wire.bytes.clear();
        if !wire.fill().await {
            return;
        }
    }
}
