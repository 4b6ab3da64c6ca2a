//! An app of somebody else's: a WebSocket server that names itself, then sends back what it gets. Any plain
//! HTTP request is answered 404 by it, which is no failure of a server.

use crate::ports::Port;
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_tungstenite::tungstenite::Message;

/// Dropping it ends the listener and all its connections; the port stays ours to start it again.
pub struct EchoServer {
    accepting: JoinHandle<()>,
}

impl EchoServer {
    /// Greets each client with `{"server": name}`.
    pub async fn start(port: &Port, name: &str) -> EchoServer {
        let listener = TcpListener::bind(port.addr()).await.unwrap_or_else(|e| panic!("{port}: {e}"));
        let name = name.to_owned();
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, name.clone()));
            }
        });
        EchoServer { accepting }
    }

    /// Gone when this returns: the next connect is refused.
    pub async fn stop(mut self) {
        self.accepting.abort();
        let _cancelled = (&mut self.accepting).await;
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(stream: TcpStream, name: String) {
    let Ok(mut ws) = tokio_tungstenite::accept_async(stream).await else { return };
    if ws.send(Message::text(json!({"server": name}).to_string())).await.is_err() {
        return;
    }
    while let Some(Ok(message)) = ws.next().await {
        if (message.is_text() || message.is_binary()) && ws.send(message).await.is_err() {
            return;
        }
    }
}

/// Some ports for servers, and their addresses.
pub fn ports(count: usize) -> (Vec<Port>, Vec<SocketAddr>) {
    let ports: Vec<_> = (0..count).map(|_| Port::free()).collect();
    let addrs = ports.iter().map(Port::addr).collect();
    (ports, addrs)
}
