//! The whole node over real sockets: port 0, a real WebSocket client, a twin of the bus.

mod api;
mod datagrams;
mod frames;
pub mod front;
mod handshake;
mod life;
mod missed;
mod protobuf;
mod protocol;
mod rates;
mod tokens;
mod webtransport;

use crate::auth::tests::token;
use crate::namespaces::tests::channels;
use crate::testing::{Twin, TwinBus};
use crate::{Health, Node};
use futures_util::{SinkExt, StreamExt};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use weir_conf::units::{Cidr, Rate, Secret};
use weir_core::accept::Acceptor;
use weir_core::drain::Drain;

const SECRET: &str = "secret";
const KEY: &str = "the api key";
/// Nothing here takes so long: a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

pub fn conf() -> weir_conf::node::Node {
    weir_conf::node::Node {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        name: "n1".into(),
        trusted: vec![Cidr { addr: IpAddr::V4(Ipv4Addr::LOCALHOST), prefix: 32 }],
        allowed_origins: vec![],
        api_key: Secret::new(KEY.into()),
        api_body_size: 10_000,
        token: crate::auth::tests::conf(SECRET),
        anonymous: true,
        uni_websocket: true,
        webtransport: true,
        demo_page: true,
        max_connections: 0,
        max_connections_per_ip: 0,
        max_connections_per_user: 0,
        channels_per_client: 128,
        channel_name_size: 255,
        message_size: 65_536,
        message_timeout: Duration::from_secs(30),
        outbox_size: 1 << 20,
        write_timeout: Duration::from_secs(5),
        handshake_timeout: Duration::from_secs(5),
        ping_interval: Duration::from_secs(25),
        pong_timeout: Duration::from_secs(8),
        stale_timeout: Duration::from_secs(10),
        expired_grace: Duration::from_secs(25),
        history_limit: 300,
        reply_size: 32 << 20,
        replies_memory: 256 << 20,
        brokers: vec![],
        broker_secret: Secret::default(),
        broker_tls_cert: String::new(),
        broker_tls_key: String::new(),
        broker_tls_ca: String::new(),
        bus_timeout: Duration::from_secs(5),
        inbox_size: 4096,
        join_leave_window: Duration::ZERO,
        rate: crate::rates::tests::conf(0.0, 0.0),
        drain: weir_conf::node::Drain { rate: Rate { per_second: 1000.0 }, timeout: Duration::from_secs(10) },
    }
}

struct Server {
    address: SocketAddr,
    twin: Twin,
    bus: Arc<TwinBus>,
    drain: Drain,
    health: Arc<Health>,
    acceptor: Arc<dyn Acceptor>,
    registry: Registry,
    running: tokio::task::JoinHandle<()>,
}

impl Server {
    fn start(change: impl FnOnce(&mut weir_conf::node::Node)) -> Server {
        Server::attached_to(&Twin::default(), change)
    }

    fn attached_to(twin: &Twin, change: impl FnOnce(&mut weir_conf::node::Node)) -> Server {
        let mut conf = conf();
        change(&mut conf);
        let mut registry = Registry::default();
        let node = Node::bind(&conf, &channels(), &mut registry, None).unwrap();
        let (bus, inbox) = twin.attach(node.id());
        let drain = Drain::new();
        Server {
            address: node.local_addr(),
            twin: twin.clone(),
            bus: bus.clone(),
            health: node.health(),
            acceptor: node.acceptor(),
            registry,
            running: tokio::spawn(node.run(bus, inbox, drain.clone())),
            drain,
        }
    }

    async fn open(&self, path: &str) -> Client {
        self.open_with(path, &[]).await.unwrap()
    }

    async fn open_with(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Client, tokio_tungstenite::tungstenite::Error> {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let mut request = format!("ws://{}{path}", self.address).into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let (ws, _) = tokio_tungstenite::client_async(request, tcp).await?;
        Ok(Client { ws, unread: vec![] })
    }

    /// A client that is connected; an empty user has no token.
    async fn client(&self, user: &str) -> Client {
        let mut client = self.open("/connection/websocket").await;
        let connect = match user {
            "" => json!({}),
            user => json!({"token": token(SECRET, &json!({"sub": user}))}),
        };
        let reply = client.ask(json!({"id": 1, "connect": connect})).await;
        assert!(reply["connect"]["client"].is_string(), "{reply}");
        client
    }

    async fn api(&self, method: &str, params: Value) -> Value {
        let (status, body) =
            self.post(&format!("/api/{method}"), &[("x-api-key", KEY)], &params.to_string()).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        let mut head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let (status, _, body) = self.raw(&format!("{head}\r\n{body}")).await;
        (status, body)
    }

    /// Sends bytes as they are; status, head and body of what comes until the end.
    async fn raw(&self, request: &str) -> (u16, String, String) {
        let mut tcp = TcpStream::connect(self.address).await.unwrap();
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut answer)).await.expect("an end");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        (status, head.to_owned(), body.to_owned())
    }

    /// The value of a metric, all its labels together.
    fn metric(&self, name: &str) -> f64 {
        self.metric_with(name, "")
    }

    /// The value of a metric where a label has this value.
    fn metric_with(&self, name: &str, label: &str) -> f64 {
        let of_label = |line: &&&str| label.is_empty() || line.contains(&format!("=\"{label}\""));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let of_name = |line: &&str| line.split(['{', ' ']).next() == Some(name);
        let lines: Vec<&str> = text.lines().filter(of_name).collect();
        assert!(!lines.is_empty(), "no {name} in {text}");
        lines.iter().filter(of_label).filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

struct Client {
    ws: WebSocketStream<TcpStream>,
    /// Of a frame of several messages, those not looked at yet.
    unread: Vec<Value>,
}

impl Client {
    async fn say(&mut self, text: impl ToString) {
        self.ws.send(Message::text(text.to_string())).await.unwrap();
    }

    /// The next message that is no ping.
    async fn hear(&mut self) -> Value {
        loop {
            if !self.unread.is_empty() {
                return self.unread.remove(0);
            }
            match self.next().await {
                Some(Message::Text(text)) => {
                    let all = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
                    self.unread = all.filter(|v| *v != json!({})).collect();
                }
                Some(Message::Close(frame)) => panic!("closed: {frame:?}"),
                None => panic!("the connection ended"),
                Some(_) => {}
            }
        }
    }

    async fn next(&mut self) -> Option<Message> {
        tokio::time::timeout(PATIENCE, self.ws.next()).await.expect("something within reason")?.ok()
    }

    async fn ask(&mut self, command: Value) -> Value {
        let id = command["id"].clone();
        self.say(command).await;
        loop {
            let message = self.hear().await;
            if message["id"] == id {
                return message;
            }
            assert!(message["push"].is_object(), "{message}");
        }
    }

    async fn subscribe(&mut self, channel: &str) -> Value {
        let reply = self.ask(json!({"id": 2, "subscribe": {"channel": channel}})).await;
        assert!(reply["error"].is_null(), "{reply}");
        reply["subscribe"].clone()
    }

    /// The next publication's data.
    async fn publication(&mut self) -> Value {
        loop {
            let message = self.hear().await;
            if !message["push"]["pub"].is_null() {
                return message["push"]["pub"]["data"].clone();
            }
        }
    }

    /// Reads on until the close, and gives its code.
    async fn close_code(&mut self) -> u16 {
        loop {
            match self.next().await {
                Some(Message::Close(frame)) => return frame.expect("a code").code.into(),
                Some(_) => {}
                None => return 1006,
            }
        }
    }
}
