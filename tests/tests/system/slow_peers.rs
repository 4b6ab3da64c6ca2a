//! Peers that are slow, silent, deaf or gone: each costs little, for a limited time, and nobody else a thing.

use futures_util::future::join_all;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use weir_tests::edge::{Edge, app, upgrade};
use weir_tests::recorder::{Reply, Request, statuses, switch};
use weir_tests::{until, within};

const PEERS: usize = 30;
/// For all of the peers of a test: with 32 KiB kept for each that does not read it is a few MiB.
const GROWTH_KIB: u64 = 24 * 1024;

/// By the target: how the server behaves. `+` in front: it switches first.
fn servers(request: &Request) -> Reply {
    let head = match request.target().strip_prefix("/+") {
        Some(_) => switch(request),
        None => b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
    };
    let slow = Duration::from_millis(40);
    match request.target().trim_start_matches(['/', '+']).split('?').next().unwrap_or_default() {
        "silent" => Reply::Last(if request.target().contains('+') { head } else { Vec::new() }),
        "half" => Reply::Last(b"HTTP/1.1 101 Switching Pro".to_vec()),
        "drip" => Reply::Drip(switch(request), slow),
        "drip-body" => {
            let body = [b"HTTP/1.1 403 Forbidden\r\nContent-Length: 1000\r\n\r\n".to_vec(), vec![b'x'; 900]];
            Reply::Drip(body.concat(), slow)
        }
        "close" => Reply::Close(Vec::new()),
        "close-half" => Reply::Close(b"HTTP/1.1 101 Switching Pro".to_vec()),
        "endless" => Reply::Flood(b"HTTP/1.1 101 X\r\nX: ".to_vec()),
        "flood" => Reply::Flood(head),
        "deaf" => Reply::Deaf(if request.target().contains('+') { head } else { Vec::new() }),
        "gone" => Reply::Close(head),
        _ => app(request),
    }
}

async fn edge(set: &[(&str, &str)]) -> Edge {
    let never = [("proxy.breaker.failures", "100000")];
    Edge::start(&[set, &never].concat(), servers).await
}

/// A client whose receive buffer holds next to nothing.
async fn connect(edge: &Edge) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    within("to connect", socket.connect(edge.addr())).await.unwrap()
}

async fn ask(edge: &Edge, request: &str) -> TcpStream {
    let mut tcp = connect(edge).await;
    tcp.write_all(request.as_bytes()).await.unwrap();
    tcp
}

/// Reads as much as the head, and stops.
async fn open(edge: &Edge, target: &str) -> TcpStream {
    let mut tcp = ask(edge, &upgrade(target)).await;
    let mut got = [0; 12];
    within("the switch", tcp.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"HTTP/1.1 101");
    tcp
}

/// A number that moves while somebody can still get rid of bytes, once it stands still.
async fn settled(mut number: impl FnMut() -> usize) -> usize {
    let mut last = number();
    loop {
        tokio::time::sleep(Duration::from_millis(400)).await;
        let now = number();
        if now == last {
            return now;
        }
        last = now;
    }
}

async fn released(edge: &Edge, what: &str) {
    until(&format!("{what}: the server's side is released"), || async {
        match edge.server.busy() {
            0 => Ok(()),
            n => {
                let open = edge.server.connections().into_iter().filter(|c| !c.ended && !c.idle);
                let on = open.flat_map(|c| c.requests).map(|r| r.target().to_owned()).collect::<Vec<_>>();
                Err(format!("{n} are not: {on:?}"))
            }
        }
    })
    .await;
    until(&format!("{what}: the proxy's tunnels end"), || async {
        let open = edge.process.metric("weir_proxy_tunnels", &[]).await;
        if open < 1.0 { Ok(()) } else { Err(format!("{open} open")) }
    })
    .await;
}

#[tokio::test]
async fn heads_that_never_end_are_408_each_in_its_time() {
    let edge = edge(&[("proxy.head_timeout", "1s")]).await;
    let starts = ["", "G", "GET / HTTP/1.1", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n"];
    // Fewer than the kernel holds for a listener that is not quick enough.
    let count = 100;
    let edge_ref = &edge;
    let stuck = join_all((0..count).map(|n| async move {
        let start = Instant::now();
        let mut tcp = ask(edge_ref, starts[n % starts.len()]).await;
        let mut got = Vec::new();
        // Every tenth goes on for ever, a byte at a time; no pause of it is long.
        let (mut read, mut write) = tcp.split();
        let drip = async {
            while n % 10 == 9 && write.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            std::future::pending::<()>().await;
        };
        let end = async { within("a head's end", read.read_to_end(&mut got)).await };
        tokio::select! { () = drip => {}, _reset = end => {} }
        (start.elapsed(), statuses(&got))
    }));
    let served = async {
        for _ in 0..5 {
            let start = Instant::now();
            edge_ref.assert_serves().await;
            assert!(start.elapsed() < Duration::from_secs(2), "others waited {:?}", start.elapsed());
        }
    };
    let (stuck, ()) = tokio::join!(stuck, served);
    for (took, statuses) in stuck {
        assert_eq!(statuses, [408]);
        assert!(took >= Duration::from_millis(900), "given up after {took:?}");
        assert!(took < Duration::from_secs(6), "held for {took:?}");
    }
    let counted = edge.process.metric("weir_proxy_refused_total", &["head_timeout"]).await;
    assert_eq!(counted as usize, count);
    let seen = edge.finish().await;
    assert!(seen.iter().flat_map(|c| &c.requests).all(|r| r.target().starts_with("/probe")), "{seen:?}");
}

#[tokio::test]
async fn servers_that_are_slow_to_switch_are_given_up_in_time() {
    let edge = edge(&[("proxy.handshake_timeout", "500ms")]).await;
    let cases: [(&str, u16); 7] = [
        ("/silent", 504),
        ("/half", 504),
        ("/drip", 504),
        ("/drip-body", 504),
        ("/close", 502),
        ("/close-half", 502),
        ("/endless", 502),
    ];
    let edge_ref = &edge;
    let asked = (0..35).map(|n| cases[n % cases.len()]).map(|(target, status)| async move {
        let start = Instant::now();
        let got = edge_ref.send(upgrade(target).as_bytes()).await;
        assert_eq!(statuses(&got), [status], "{target}: {}", got.escape_ascii());
        assert!(start.elapsed() < Duration::from_secs(5), "{target}: {:?}", start.elapsed());
    });
    let served = async {
        for _ in 0..5 {
            edge_ref.assert_serves().await;
        }
    };
    tokio::join!(join_all(asked), served);
    released(&edge, "slow handshakes").await;
}

#[tokio::test]
async fn clients_that_never_read_cost_a_buffer_and_leave_nothing() {
    let edge = edge(&[]).await;
    edge.assert_serves().await;
    let before = edge.process.rss_kib();
    let mut deaf = Vec::new();
    for n in 0..PEERS {
        deaf.push(match n % 2 {
            0 => open(&edge, "/+flood").await,
            _ => ask(&edge, "GET /flood HTTP/1.1\r\nHost: a\r\n\r\n").await,
        });
    }
    // Nothing more is taken from the server than kernels and one buffer hold.
    let taken = settled(|| edge.server.flooded()).await;
    let grown = edge.process.rss_kib().saturating_sub(before);
    println!(
        "{PEERS} clients that do not read: {} KiB taken for each, {grown} KiB of memory",
        taken / PEERS / 1024
    );
    assert!(grown < GROWTH_KIB, "{grown} KiB for {PEERS} clients that do not read");
    edge.assert_serves().await;
    drop(deaf);
    released(&edge, "clients that left without having read").await;
}

#[tokio::test]
async fn a_client_that_never_reads_is_idle_in_the_end() {
    let edge = edge(&[("proxy.tunnel.idle_timeout", "1s")]).await;
    let _deaf = (open(&edge, "/+flood").await, open(&edge, "/+deaf").await);
    released(&edge, "clients that stay and do not read").await;
    until("it is counted", || async {
        let idle = edge.process.metric("weir_proxy_tunnel_ends_total", &["idle"]).await;
        if idle >= 2.0 { Ok(()) } else { Err(idle.to_string()) }
    })
    .await;
}

/// Pushes until the proxy takes nothing more, and gives how much it took.
async fn push(clients: &mut [TcpStream]) -> usize {
    let sent = std::cell::Cell::new(0);
    let piece = vec![b'x'; 64 * 1024];
    let push = join_all(clients.iter_mut().map(|client| async {
        while let Ok(n @ 1..) = client.write(&piece).await {
            sent.set(sent.get() + n);
        }
    }));
    tokio::select! {
        _all_ended = push => panic!("the proxy closed on clients that did nothing wrong"),
        taken = settled(|| sent.get()) => taken,
    }
}

/// Clients that push to servers which never read, then leave: what each cost, and that the proxy lets go of both.
async fn servers_never_read(what: &str, request: &str, set: &[(&str, &str)]) {
    let edge = edge(set).await;
    edge.assert_serves().await;
    let (before, descriptors) = (edge.process.rss_kib(), edge.process.descriptors());
    let mut clients = Vec::new();
    for _ in 0..PEERS {
        clients.push(ask(&edge, request).await);
    }
    let taken = push(&mut clients).await;
    let grown = edge.process.rss_kib().saturating_sub(before);
    println!("{PEERS} {what} to servers that do not read: {} KiB taken, {grown} KiB of memory", taken / 1024);
    assert!(grown < GROWTH_KIB, "{grown} KiB for {PEERS} servers that do not read");
    edge.assert_serves().await;
    drop(clients);
    // The kernel cannot tell a server that does not read of its client's end: the proxy's own sockets are looked at.
    until("the proxy lets go of clients that left, and of their servers", || async {
        let open = edge.process.metric("weir_proxy_tunnels", &[]).await;
        let sockets = edge.process.descriptors();
        let gone = open < 1.0 && sockets <= descriptors + 4;
        if gone {
            Ok(())
        } else {
            Err(format!("{open} tunnels, {sockets} descriptors, {descriptors} before"))
        }
    })
    .await;
}

#[tokio::test]
async fn tunnels_to_servers_that_never_read_cost_a_buffer_and_leave_nothing() {
    servers_never_read("tunnels", &upgrade("/+deaf"), &[]).await;
}

#[tokio::test]
async fn uploads_to_servers_that_never_read_cost_a_buffer_and_leave_nothing() {
    let upload = "POST /deaf HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n";
    // Bytes that the client's kernel has not got rid of stand before its end, which nobody can see.
    servers_never_read("uploads", upload, &[("proxy.write_timeout", "3s"), ("proxy.read_timeout", "3s")])
        .await;
}

/// Its end stands behind bytes that nobody takes, and so cannot be read.
#[tokio::test]
async fn a_client_that_ends_behind_stuck_bytes_is_noticed_in_seconds() {
    let edge = edge(&[]).await;
    let mut client = open(&edge, "/+deaf").await;
    let passed = || edge.process.metric("weir_proxy_tunnel_bytes_total", &["up"]);
    let mut sent = 0;
    // A piece at a time, so that none is left in the client's own kernel, up to the one that stays behind.
    'stuck: loop {
        sent += within("a piece", client.write(&[b'x'; 16 * 1024])).await.unwrap();
        let start = Instant::now();
        while (passed().await as usize) < sent {
            if start.elapsed() > Duration::from_secs(1) {
                break 'stuck;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let start = Instant::now();
    client.shutdown().await.unwrap();
    let mut got = Vec::new();
    let _reset = within("the end", client.read_to_end(&mut got)).await;
    println!("{sent} bytes sent; ended after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
    released(&edge, "a client that ended").await;
    let ends = edge.process.metric("weir_proxy_tunnel_ends_total", &["half_closed"]).await;
    assert_eq!(ends, 1.0);
}

/// However one side goes, the other learns of it.
#[tokio::test]
async fn a_side_that_goes_takes_the_other_along() {
    let edge = edge(&[]).await;
    // The server closes: at once, and after a request that it does not answer.
    for request in [upgrade("/+gone"), upgrade("/close"), "GET /close HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()]
    {
        let mut client = ask(&edge, &request).await;
        let mut got = Vec::new();
        within("the client's end", client.read_to_end(&mut got)).await.unwrap();
    }
    released(&edge, "the server closed").await;
    // The client resets, closes, or says that it has nothing more to say.
    for target in ["/+silent", "/+flood"] {
        let reset = open(&edge, target).await;
        socket2::SockRef::from(&reset).set_linger(Some(Duration::ZERO)).unwrap();
        drop(reset);
        let closed = open(&edge, target).await;
        drop(closed);
        released(&edge, target).await;
    }
    let mut half = open(&edge, "/+silent").await;
    half.shutdown().await.unwrap();
    let mut got = Vec::new();
    within("the server's end, passed on", half.read_to_end(&mut got)).await.unwrap();
    // And requests whose answer nobody waits for any more.
    for request in ["GET /silent HTTP/1.1\r\nHost: a\r\n\r\n", "GET /flood HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let client = ask(&edge, request).await;
        until("the server has the request", || async {
            if edge.server.busy() > 0 { Ok(()) } else { Err(String::new()) }
        })
        .await;
        drop(client);
        released(&edge, request).await;
    }
    edge.assert_serves().await;
}
