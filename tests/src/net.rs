//! A TCP link that a test can cut, stall and delay.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Up,
    /// Bytes wait, connections stay: what a dead host looks like from outside.
    Stalled,
    /// Connections are reset, new ones too.
    Cut,
}

/// A relay to one address. Dropping it cuts it for good.
pub struct Link {
    addr: SocketAddr,
    state: watch::Sender<State>,
    delay: watch::Sender<Duration>,
}

impl Link {
    pub async fn to(target: SocketAddr) -> Link {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port for a link");
        let addr = listener.local_addr().expect("its address");
        let (state, states) = watch::channel(State::Up);
        let (delay, delays) = watch::channel(Duration::ZERO);
        tokio::spawn(accept(listener, target, states, delays));
        Link { addr, state, delay }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    pub fn stall(&self) {
        self.state.send_replace(State::Stalled);
    }

    pub fn heal(&self) {
        self.state.send_replace(State::Up);
    }

    /// Each piece of data waits for so long, in both directions.
    pub fn delay(&self, by: Duration) {
        self.delay.send_replace(by);
    }
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    mut states: watch::Receiver<State>,
    delays: watch::Receiver<Duration>,
) {
    loop {
        let client = tokio::select! {
            accepted = listener.accept() => accepted,
            gone = async { while states.changed().await.is_ok() {} } => { let () = gone; return }
        };
        let Ok((client, _)) = client else { return };
        if *states.borrow() == State::Cut {
            reset(&client);
            continue;
        }
        tokio::spawn(relay(client, target, states.clone(), delays.clone()));
    }
}

fn reset(stream: &TcpStream) {
    #[allow(deprecated)] // zero never blocks: that is the case the deprecation is not about
    let _already_gone = stream.set_linger(Some(Duration::ZERO));
}

async fn relay(
    client: TcpStream,
    target: SocketAddr,
    mut states: watch::Receiver<State>,
    delays: watch::Receiver<Duration>,
) {
    let Ok(server) = TcpStream::connect(target).await else { return reset(&client) };
    let _nagle = (client.set_nodelay(true), server.set_nodelay(true));
    reset(&client);
    reset(&server);
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let up = pump(client_read, server_write, states.clone(), delays.clone());
    let down = pump(server_read, client_write, states.clone(), delays);
    tokio::select! {
        _both = async { tokio::join!(up, down) } => {}
        _cut = states.wait_for(|s| *s == State::Cut) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut states: watch::Receiver<State>,
    delays: watch::Receiver<Duration>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if states.wait_for(|s| *s != State::Stalled).await.is_err() {
            return;
        }
        let Ok(n @ 1..) = from.read(&mut buffer).await else { break };
        if states.wait_for(|s| *s != State::Stalled).await.is_err() {
            return;
        }
        let delay = *delays.borrow();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            break;
        }
    }
    let _gone = to.shutdown().await;
}
