//! A connection's life and end: closes, panics, the drain, and clients that a front brings.

use super::front::{Pipe, Tcp, bring, head};
use super::*;
use crate::testing::Faults;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use weir_core::accept::Transport;
use weir_wire::id::ConnId;

#[tokio::test]
async fn a_close_of_the_client_is_answered_and_the_socket_ends() {
    let server = Server::start(|_| {});
    let mut client = server.client("").await;
    client.subscribe("open:c").await;
    let close = CloseFrame { code: 1000.into(), reason: "done".into() };
    client.ws.send(Message::Close(Some(close.clone()))).await.unwrap();
    assert_eq!(client.close_code().await, 1000);
    assert_eq!(client.next().await, None, "and then the end");
    while !server.twin.members("open:c").is_empty() || server.health.connections() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(server.metric("weir_node_connections"), 0.0);
    assert_eq!(server.metric("weir_node_subscriptions"), 0.0);
}

#[tokio::test]
async fn what_was_asked_before_the_end_is_done() {
    let server = Server::start(|_| {});
    let mut listener = server.client("").await;
    listener.subscribe("open:c").await;
    let mut client = server.client("").await;
    server.bus.set(Faults { stalled: true, ..Faults::default() });
    client.say(json!({"id": 5, "publish": {"channel": "open:c", "data": "last words"}})).await;
    client.ws.send(Message::Close(None)).await.unwrap();
    while server.twin.calls("publish") == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.bus.set(Faults::default());
    assert_eq!(listener.publication().await, "last words");
}

#[tokio::test]
async fn a_panic_ends_one_connection() {
    let server = Server::start(|_| {});
    let (mut victim, mut bystander) = (server.client("").await, server.client("").await);
    bystander.subscribe("plain:c").await;
    victim.subscribe("open:c").await;
    server.bus.set(Faults { panics: true, ..Faults::default() });
    victim.say(json!({"id": 5, "publish": {"channel": "open:c", "data": 1}})).await;
    assert_eq!(victim.close_code().await, 1011);
    server.bus.set(Faults::default());
    server.api("publish", json!({"channel": "plain:c", "data": 2})).await;
    assert_eq!(bystander.publication().await, 2);
    assert_eq!(server.metric("weir_node_panics_total"), 1.0);
    while !server.twin.members("open:c").is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_drain_sends_the_oldest_first_and_at_its_pace() {
    let server = Server::start(|c| c.drain.rate = Rate { per_second: 20.0 });
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(server.client("").await);
    }
    let begun = std::time::Instant::now();
    server.drain.begin();
    let mut ends = Vec::new();
    for client in &mut clients {
        assert_eq!(client.close_code().await, 3001);
        assert_eq!(client.next().await, None);
        ends.push(begun.elapsed());
    }
    assert!(ends.is_sorted(), "{ends:?}");
    assert!(ends[9] >= Duration::from_millis(400), "10 at 20/s: {ends:?}");
    tokio::time::timeout(PATIENCE, server.running).await.expect("run returns").unwrap();
    assert!(server.drain.complete(PATIENCE).await);
    assert!(TcpStream::connect(server.address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn a_drain_does_not_take_longer_than_its_timeout() {
    let server = Server::start(|c| {
        c.drain.rate = Rate { per_second: 0.1 };
        c.drain.timeout = Duration::from_millis(300);
    });
    let mut clients = [server.client("").await, server.client("").await, server.client("").await];
    server.drain.begin();
    for client in &mut clients {
        assert_eq!(client.close_code().await, 3001);
        assert_eq!(client.next().await, None);
    }
    tokio::time::timeout(PATIENCE, server.running).await.expect("run returns").unwrap();
}

#[tokio::test]
async fn clients_from_a_front_in_this_process() {
    let server = Server::start(|_| {});
    // The listener's answer says that `run` is under way.
    server.client("").await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (fronts, _) = listener.accept().await.unwrap();
    let (answer, permit) =
        bring(&server, Transport::H1, head("/connection/websocket"), Box::new(Tcp(fronts))).await;
    assert_eq!(answer.unwrap()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let ws = WebSocketStream::from_raw_socket(tcp, Role::Client, None).await;
    let mut client = Client { ws, unread: vec![] };
    client.ask(json!({"id": 1, "connect": {}})).await;
    assert_eq!(Arc::strong_count(&permit), 2, "held while it lives");
    drop(client);
    while Arc::strong_count(&permit) > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let (pipe, fronts) = tokio::io::duplex(1 << 16);
    // Over HTTP/2 the handshake is an extended CONNECT and has no key.
    let mut h2 = http::Request::builder()
        .method("CONNECT")
        .uri("https://x/connection/websocket")
        .version(http::Version::HTTP_2)
        .header("sec-websocket-version", "13");
    h2 = h2.header("origin", "https://x");
    let (answer, _) =
        bring(&server, Transport::H2, h2.body(()).unwrap().into_parts().0, Box::new(Pipe(fronts))).await;
    assert!(answer.unwrap().get("sec-websocket-accept").is_none());
    let mut ws = WebSocketStream::from_raw_socket(pipe, Role::Client, None).await;
    ws.send(Message::text(r#"{"id":1,"connect":{}}"#)).await.unwrap();
    assert!(ws.next().await.unwrap().unwrap().to_text().unwrap().contains("\"connect\""));

    let (_, fronts) = tokio::io::duplex(64);
    let (refused, _) = bring(&server, Transport::H1, head("/nowhere"), Box::new(Pipe(fronts))).await;
    assert_eq!(refused.unwrap_err().status(), 404);
}

#[test]
fn a_front_on_a_runtime_of_its_own() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (nodes, fronts) = (runtime(), runtime());
    let server = nodes.block_on(async {
        let server = Server::start(|_| {});
        server.client("").await;
        server
    });
    fronts.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (front, _) = listener.accept().await.unwrap();
        bring(&server, Transport::H1, head("/connection/websocket"), Box::new(Tcp(front))).await.0.unwrap();
        let ws = WebSocketStream::from_raw_socket(tcp, Role::Client, None).await;
        let mut client = Client { ws, unread: vec![] };
        client.ask(json!({"id": 1, "connect": {}})).await;
        // The front's runtime ends; the connection is not its own any more.
        drop(listener);
        assert_eq!(client.ask(json!({"id": 2, "rpc": {}})).await["error"]["code"], 108);
    });
}

#[tokio::test]
async fn a_port_in_use_names_key_and_address() {
    let server = Server::start(|_| {});
    let taken = weir_conf::node::Node { listen: server.address, ..conf() };
    let error = Node::bind(&taken, &channels(), &mut Registry::default(), None).err().unwrap().to_string();
    assert!(error.contains("node.listen") && error.contains(&server.address.to_string()), "{error}");
}

#[tokio::test]
async fn an_idle_connection_is_small() {
    let settings = Arc::new(crate::session::Settings {
        namespaces: crate::namespaces::Namespaces::new(&channels(), 255),
        auth: crate::auth::Auth::new(&conf().token).unwrap(),
        anonymous: true,
        channels_per_client: 1,
        history_limit: 1,
        piece_size: 1000,
        reply_size: 1000,
        ping_interval: Duration::ZERO,
        pong_timeout: Duration::ZERO,
        stale_timeout: Duration::from_secs(1),
        expired_grace: Duration::ZERO,
    });
    let id = weir_wire::id::NodeId(1);
    let shared = crate::shared::Shared::new(conf(), settings, Default::default(), id, "n".into());
    let accepted = crate::conn::Accepted {
        waiting: None,
        conn: ConnId::from_random(1),
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        transport: weir_core::accept::Transport::H1,
        format: crate::protocol::Format::Json,
        control_pings: false,
        datagrams: false,
        connect: None,
        permits: vec![],
    };
    let (_, pipe) = tokio::io::duplex(1);
    let socket = crate::conn::Socket::Other(Box::new(Pipe(pipe)), None);
    let conn = crate::conn::Conn::new(Arc::new(shared), socket, accepted);
    let size = size_of_val(&*conn) + size_of_val(&conn.run());
    assert!(size <= 1400, "the task of a connection takes {size} bytes");
}

/// Alone, since it reads the memory of the whole process:
/// `cargo test -p weir-node memory_of -- --ignored --nocapture`
#[tokio::test]
#[ignore = "measures the process: run it alone"]
async fn memory_of_connected_and_subscribed_clients() {
    use super::frames::{frame, raw};
    let server = Server::start(|_| {});
    let commands = br#"{"id":1,"connect":{}}
{"id":2,"subscribe":{"channel":"stream:c"}}"#;
    let hello = frame(0x81, &[commands.len() as u8], commands);
    let mut clients = Vec::new();
    let mut open = async |n: usize| {
        for _ in 0..n {
            let mut tcp = raw(&server).await;
            tcp.write_all(&hello).await.unwrap();
            clients.push(tcp);
        }
        while server.metric("weir_node_subscriptions") < clients.len() as f64 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        crate::process::rss_bytes()
    };
    let before = open(1000).await;
    let after = open(4000).await;
    let each = (after - before) / 4000;
    eprintln!("{each} bytes of resident memory per client, the test's own side included");
    assert!(each <= 10 << 10);
}
