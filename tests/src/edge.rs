//! A proxy in front of servers that keep what they see.

use crate::conf;
use crate::ports::Port;
use crate::process::{Process, Spec};
use crate::recorder::{Connection, Recorder, Reply, Request, exchange, ok, statuses, switch};
use nix::sys::signal::Signal;
use std::net::{Ipv4Addr, SocketAddr};

/// A handshake for this target; a host of any name.
pub fn upgrade(target: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

pub struct Edge {
    pub process: Process,
    pub server: Recorder,
    listen: Port,
}

impl Edge {
    /// With these keys set. Deadlines are short, as nothing here has to be waited for in earnest.
    pub async fn start(
        set: &[(&str, &str)],
        script: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Edge {
        let server = Recorder::start(script).await;
        let listen = Port::free();
        let spec = Spec::text("proxy", conf::proxy("app", &[server.addr()]))
            .set("proxy.handshake_rate", "0/s")
            .set("proxy.max_connections_per_ip", 0)
            .set("proxy.head_timeout", "2s")
            .set("proxy.keepalive_timeout", "500ms")
            .set("proxy.drain.timeout", "1s");
        let spec = set.iter().fold(spec, |spec, (key, value)| spec.set(key, value));
        let process = spec.start(&[("proxy.listen", &listen)]).await;
        Edge { process, server, listen }
    }

    pub fn addr(&self) -> SocketAddr {
        self.listen.addr()
    }

    /// What is sent back to these bytes.
    pub async fn send(&self, bytes: &[u8]) -> Vec<u8> {
        exchange(self.addr(), Ipv4Addr::LOCALHOST, bytes).await
    }

    /// Somebody who did nothing wrong is served, both ways.
    pub async fn assert_serves(&self) {
        let plain = self.send(b"GET /probe HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert_eq!(statuses(&plain), [200], "{}", String::from_utf8_lossy(&plain));
        let mut client = crate::client::Open::to(self.addr()).target("/probe?key=ws").open().await;
        client.raw(tokio_tungstenite::tungstenite::Message::text("hello")).await;
    }

    /// Ends the proxy, and gives all that its server has seen.
    pub async fn finish(mut self) -> Vec<Connection> {
        self.process.signal(Signal::SIGTERM);
        self.process.exit().await;
        let log = self.process.log();
        assert!(!log.contains("panicked"), "{log}");
        self.server.ended().await;
        self.server.connections()
    }
}

/// Answers as an app would: switches where it is asked to, and 200 to all else.
pub fn app(request: &Request) -> Reply {
    if request.values("upgrade").is_empty() {
        Reply::Answer(ok("hello"))
    } else {
        Reply::Last(switch(request))
    }
}
