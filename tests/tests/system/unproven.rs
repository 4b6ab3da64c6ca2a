//! Connections that show nothing of who they are keep nobody out: silent ones, and such as begin and go on a byte at
//! a time, from one address and from several, at every listener.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use weir_tests::client::Open;
use weir_tests::ports::Port;
use weir_tests::process::{Process, Spec};
use weir_tests::systems::Embedded;
use weir_tests::{conf, http, within};

const SILENT: usize = 250;
const DRIPPING: usize = 250;
/// Of one system; each address has its share.
const ADDRESSES: u8 = 8;
/// What everybody else may wait for.
const PATIENCE: Duration = Duration::from_secs(1);

/// They come again as soon as they are closed, until this is dropped. `begins` is what dripping ones begin with.
async fn crowd(at: SocketAddr, begins: &'static [u8]) -> JoinSet<()> {
    let mut crowd = JoinSet::new();
    let (came, mut coming) = tokio::sync::mpsc::unbounded_channel();
    for n in 0..SILENT + DRIPPING {
        let source = Ipv4Addr::new(127, 0, 0, 1 + n as u8 % ADDRESSES);
        let (drips, came) = (n >= SILENT, came.clone());
        crowd.spawn(async move {
            loop {
                if let Ok(stream) = connect(source, at).await {
                    let _nobody_counts_any_more = came.send(());
                    let begins = if drips { begins } else { b"" };
                    stay(stream, begins).await;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }
    for _ in 0..SILENT + DRIPPING {
        within("the crowd has come", coming.recv()).await;
    }
    crowd
}

async fn connect(source: Ipv4Addr, at: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    socket.connect(at).await
}

/// To the end that the other side makes.
async fn stay(stream: TcpStream, begins: &[u8]) {
    let (mut read, mut write) = stream.into_split();
    let drip = async {
        if begins.is_empty() {
            std::future::pending::<()>().await;
        }
        for byte in begins.iter().chain(std::iter::repeat(&b'x')) {
            if write.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let mut seen = Vec::new();
    let end =
        async { while matches!(tokio::io::AsyncReadExt::read_buf(&mut read, &mut seen).await, Ok(1..)) {} };
    tokio::select! { () = drip => {}, () = end => {} }
}

/// So long a node takes from its start to its attachment.
async fn start_node(name: &str, broker: &Port) -> (Process, Port, Duration) {
    let (port, start) = (Port::free(), Instant::now());
    let node = Spec::text(name, conf::node(broker.addr())).start(&[("node.listen", &port)]).await;
    (node, port, start.elapsed())
}

#[tokio::test]
async fn at_the_brokers_listener_and_at_the_operators() {
    let (port, elsewhere) = (Port::free(), Port::free());
    let broker = Spec::text("broker", conf::broker()).start(&[("broker.listen", &port)]).await;
    // At another one, so that no node has proved itself here before.
    let _other = Spec::text("other", conf::broker()).start(&[("broker.listen", &elsewhere)]).await;
    let (_first, _port, calm) = start_node("calm", &elsewhere).await;
    // The length of a frame, and what makes it one.
    let _at_the_broker = crowd(port.addr(), b"\x80\0\0\0\xb7\x01").await;
    let _at_the_operators = crowd(broker.admin(), b"GET /").await;
    for n in 0..3 {
        let (_node, _port, took) = start_node(&format!("node-{n}"), &port).await;
        assert!(took < calm + PATIENCE, "a node took {took:?} to attach, {calm:?} before");
        for path in ["/health", "/ready"] {
            let start = Instant::now();
            assert_eq!(http::get(broker.admin(), path).await.status, 200);
            assert!(start.elapsed() < PATIENCE, "{path} took {:?}", start.elapsed());
        }
    }
    for (metric, cause) in
        [("weir_broker_links_refused_total", "displaced"), ("weir_admin_closed_total", "displaced")]
    {
        let cause = format!("cause=\"{cause}\"");
        assert!(broker.metric(metric, &[&cause]).await > 0.0, "{metric} {cause}");
    }
    let lines = broker.log().lines().count();
    assert!(lines < 300, "{lines} lines of log");
    broker.logged("how many lines were left out", |l| l.contains("left_out=")).await;
}

#[tokio::test]
async fn at_the_proxy_and_the_node() {
    // Room for a part of them.
    let weir =
        Embedded::start_with(&[("proxy.max_connections", "300"), ("proxy.max_connections_per_ip", "0")])
            .await;
    let _at_the_proxy = crowd(weir.proxy(), b"GET /").await;
    let _at_the_node = crowd(weir.node(), b"GET /").await;
    for at in [weir.proxy(), weir.node()] {
        for _ in 0..10 {
            let start = Instant::now();
            let mut client = Open::to(at).from(Ipv4Addr::new(127, 0, 0, 99)).connect().await;
            client.fence().await;
            assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
        }
    }
    assert!(weir.process.metric("weir_proxy_refused_total", &["cause=\"displaced\""]).await > 0.0);
}
