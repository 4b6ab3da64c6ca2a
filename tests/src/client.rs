//! A scripted client of the Centrifugo protocol in JSON: sends what the script says, and says what came.

use crate::{DEADLINE, within};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

pub const PATH: &str = "/connection/websocket";

/// How a connection is made, where it is not the plain way.
#[derive(Clone)]
pub struct Open {
    addr: SocketAddr,
    target: String,
    source: Ipv4Addr,
    receive_buffer: Option<u32>,
    headers: Vec<(&'static str, String)>,
}

impl Open {
    pub fn to(addr: SocketAddr) -> Open {
        Open {
            addr,
            target: PATH.to_owned(),
            source: Ipv4Addr::LOCALHOST,
            receive_buffer: None,
            headers: Vec::new(),
        }
    }

    /// Path and query.
    #[must_use]
    pub fn target(mut self, target: &str) -> Open {
        target.clone_into(&mut self.target);
        self
    }

    /// From this address of 127.0.0.0/8.
    #[must_use]
    pub fn from(mut self, source: Ipv4Addr) -> Open {
        self.source = source;
        self
    }

    #[must_use]
    pub fn receive_buffer(mut self, size: u32) -> Open {
        self.receive_buffer = Some(size);
        self
    }

    #[must_use]
    pub fn header(mut self, name: &'static str, value: &str) -> Open {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// The WebSocket, without a command sent yet; or the HTTP answer that refused it.
    pub async fn try_open(
        &self,
    ) -> Result<Client, tokio_tungstenite::tungstenite::http::Response<Option<Vec<u8>>>> {
        let what = format!("handshake with {}", self.addr);
        let handshake = async {
            let socket = TcpSocket::new_v4()?;
            if let Some(size) = self.receive_buffer {
                socket.set_recv_buffer_size(size)?;
            }
            socket.bind((self.source, 0).into())?;
            let stream = socket.connect(self.addr).await?;
            stream.set_nodelay(true)?;
            let mut request = format!("ws://{}{}", self.addr, self.target).into_client_request()?;
            for (name, value) in &self.headers {
                request.headers_mut().insert(*name, value.parse().expect("a header value"));
            }
            client_async(request, stream).await
        };
        match within(&what, handshake).await {
            Ok((ws, _)) => Ok(Client::new(ws)),
            Err(Error::Http(response)) => Err(*response),
            Err(error) => panic!("{what}: {error}"),
        }
    }

    pub async fn open(&self) -> Client {
        let what = self.addr;
        self.try_open().await.unwrap_or_else(|r| panic!("{what}: handshake refused: {r:?}"))
    }

    /// Open, and through `connect`.
    pub async fn connect(&self) -> Client {
        let mut client = self.open().await;
        client.connect(json!({})).await;
        client
    }
}

/// An open WebSocket.
pub struct Client {
    ws: WebSocketStream<TcpStream>,
    /// Messages that came while another one was waited for.
    waiting: VecDeque<Value>,
    next_id: u32,
    pongs: bool,
    /// The id that the server gave to this client.
    pub id: String,
}

impl Client {
    fn new(ws: WebSocketStream<TcpStream>) -> Client {
        Client { ws, waiting: VecDeque::new(), next_id: 1, pongs: true, id: String::new() }
    }

    /// From now on server pings are not answered.
    pub fn stop_pongs(&mut self) {
        self.pongs = false;
    }

    pub async fn connect(&mut self, request: Value) -> Value {
        let reply = self.ok("connect", request).await;
        reply["client"].as_str().unwrap_or_default().clone_into(&mut self.id);
        reply
    }

    pub async fn subscribe(&mut self, channel: &str) -> Value {
        self.ok("subscribe", json!({"channel": channel})).await
    }

    /// Sends a command and gives the reply's result; an error fails the test.
    pub async fn ok(&mut self, method: &str, request: Value) -> Value {
        let mut reply = self.command(method, &request).await;
        assert!(reply.get("error").is_none(), "{method} {request}: {reply}");
        assert!(reply.get(method).is_some(), "{method} {request}: no result: {reply}");
        reply[method].take()
    }

    /// Sends a command and gives the code of the error that answers it.
    pub async fn refused(&mut self, method: &str, request: Value) -> u64 {
        let reply = self.command(method, &request).await;
        reply["error"]["code"].as_u64().unwrap_or_else(|| panic!("{method} {request}: not refused: {reply}"))
    }

    /// Sends a command and gives its whole reply.
    pub async fn command(&mut self, method: &str, request: &Value) -> Value {
        let id = self.next_id;
        self.next_id += 1;
        self.send(json!({"id": id, method: request})).await;
        self.expect(&format!("reply to {method} {request}"), |m| m["id"] == id).await
    }

    /// Sends JSON as it is.
    pub async fn send(&mut self, message: Value) {
        self.raw(Message::text(message.to_string())).await;
    }

    pub async fn raw(&mut self, message: Message) {
        within("a write to the server", self.ws.send(message)).await.expect("open for writing");
    }

    /// Like [`Client::raw`], where the server may have closed already.
    pub async fn try_raw(&mut self, message: Message) -> Result<(), Error> {
        within("a write to the server", self.ws.send(message)).await
    }

    /// Answers come in order: once this is back, all that was sent before has been handled, and all that the
    /// server had for us before is here.
    pub async fn fence(&mut self) {
        assert_eq!(self.refused("rpc", json!({"method": "no-such-method", "data": {}})).await, 108);
    }

    /// The next message for which `accept` holds; others are kept for later.
    pub async fn expect(&mut self, what: &str, accept: impl Fn(&Value) -> bool) -> Value {
        if let Some(at) = self.waiting.iter().position(&accept) {
            return self.waiting.remove(at).expect("just found");
        }
        let start = tokio::time::Instant::now();
        loop {
            let Ok(next) = tokio::time::timeout_at(start + DEADLINE, self.next()).await else {
                panic!("{what}: not within {DEADLINE:?}; meanwhile: {:?}", self.waiting)
            };
            match next {
                Ok(messages) => self.waiting.extend(messages),
                Err(end) => panic!("{what}: {end}; before that: {:?}", self.waiting),
            }
            if let Some(at) = self.waiting.iter().position(&accept) {
                return self.waiting.remove(at).expect("just found");
            }
        }
    }

    /// The next publication of a channel: the whole `pub`.
    pub async fn publication(&mut self, channel: &str) -> Value {
        let is_pub = |m: &Value| m["push"]["channel"] == channel && m["push"].get("pub").is_some();
        self.expect(&format!("publication in {channel}"), is_pub).await["push"]["pub"].take()
    }

    /// Nothing that came and was not asked for yet satisfies `unwanted`. Use after [`Client::fence`].
    pub fn assert_none(&self, what: &str, unwanted: impl Fn(&Value) -> bool) {
        let found: Vec<_> = self.waiting.iter().filter(|m| unwanted(m)).collect();
        assert!(found.is_empty(), "{what}: {found:?}");
    }

    /// The code and reason with which the server closes; what comes before is passed over.
    pub async fn expect_close(&mut self) -> (u16, String) {
        within("the server's close", async {
            loop {
                match self.ws.next().await {
                    Some(Ok(Message::Close(Some(frame)))) => {
                        return (frame.code.into(), frame.reason.to_string());
                    }
                    Some(Ok(_)) => {}
                    other => panic!("ended without a close frame: {other:?}"),
                }
            }
        })
        .await
    }

    /// Reads to the end, however it ends: a client that was cut off while it did not read may get no code.
    pub async fn drain_to_end(&mut self) -> Option<u16> {
        within("the connection's end", async {
            let mut code = None;
            while let Some(Ok(message)) = self.ws.next().await {
                if let Message::Close(Some(frame)) = message {
                    code = Some(frame.code.into());
                }
            }
            code
        })
        .await
    }

    /// The messages of the next frame; pings among them are answered.
    async fn next(&mut self) -> Result<Vec<Value>, String> {
        loop {
            let text = match self.ws.next().await {
                Some(Ok(Message::Text(text))) => text,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                other => return Err(format!("no text but {other:?}")),
            };
            let lines = text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}")));
            let (pings, messages): (Vec<Value>, Vec<Value>) = lines.partition(|m| *m == json!({}));
            if self.pongs && !pings.is_empty() {
                self.ws.send(Message::text("{}")).await.map_err(|e| e.to_string())?;
            }
            if !messages.is_empty() {
                return Ok(messages);
            }
        }
    }
}
