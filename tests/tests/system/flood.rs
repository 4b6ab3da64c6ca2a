//! Too many: connects from one network, and more than there are descriptors. Who has nothing to do with it
//! notices nothing.

use futures_util::stream::{self, StreamExt};
use nix::sched::{CloneFlags, unshare};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use weir_tests::client::{Client, Open};
use weir_tests::echo::{self, EchoServer};
use weir_tests::edge::upgrade;
use weir_tests::ports::Port;
use weir_tests::process::{Process, Spec};
use weir_tests::{conf, until, within};

const CONNECTS: usize = 10_000;
const AT_ONCE: usize = 200;
/// `max_connections_per_ip` as it ships.
const PER_ADDRESS: usize = 1000;

/// Runs a test in a network of its own, in which all of 2001:db8::/32 is here. It needs root; without it the test
/// runs in the machine's own network. Says which.
fn in_own_network(test: impl AsyncFnOnce(bool) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // Of this thread, and of the processes that it starts.
        let own = unshare(CloneFlags::CLONE_NEWNET).is_ok();
        if own {
            for command in ["link set lo up", "-6 route add local 2001:db8::/32 dev lo"] {
                let done = Command::new("ip").args(command.split(' ')).status();
                assert!(done.as_ref().is_ok_and(std::process::ExitStatus::success), "ip {command}: {done:?}");
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(own));
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// From any address of a network that is routed here, whether a device has it or not.
async fn connect_from(source: Ipv6Addr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_freebind_v6(true)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.set_nonblocking(true)?;
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}

/// The head of what is answered.
async fn answer(tcp: &mut TcpStream) -> String {
    let mut got = Vec::new();
    within("an answer", async {
        while !got.windows(4).any(|w| w == b"\r\n\r\n") {
            if !matches!(tcp.read_buf(&mut got).await, Ok(1..)) {
                break;
            }
        }
    })
    .await;
    String::from_utf8_lossy(&got).into_owned()
}

struct Neighbour {
    client: Client,
    sent: u64,
}

impl Neighbour {
    async fn connect(addr: SocketAddr) -> Neighbour {
        let mut client = Open::to(addr).target("/?key=neighbour").open().await;
        client.expect("the server's name", |m| m.get("server").is_some()).await;
        Neighbour { client, sent: 0 }
    }

    /// Echoes until told to stop; the latency that one in a hundred exceeds.
    async fn p99(&mut self, until: impl Fn() -> bool) -> Duration {
        let mut took = Vec::new();
        while !until() || took.len() < 100 {
            let start = Instant::now();
            self.sent += 1;
            let n = self.sent;
            self.client.send(json!({"n": n})).await;
            self.client.expect("the echo", |m| m["n"] == n).await;
            took.push(start.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        took.sort();
        took[took.len() * 99 / 100]
    }
}

#[derive(Default)]
struct Flood {
    held: RefCell<Vec<TcpStream>>,
    refused: Cell<usize>,
    done: Cell<bool>,
}

impl Flood {
    async fn run(&self, own: bool, addr: SocketAddr, addr6: SocketAddr) {
        let connects = stream::iter(0..CONNECTS).map(|n| async move {
            let mut tcp = if own {
                let host = (rand::random::<u64>() | 1, n);
                let source = Ipv6Addr::from_bits((0x2001_0db8_0000_0066 << 64) | u128::from(host.0));
                within("to connect", connect_from(source, addr6)).await
            } else {
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind((Ipv4Addr::new(127, 0, 0, 66), 0).into()).unwrap();
                within("to connect", socket.connect(addr)).await
            }
            .expect("a connection");
            tcp.write_all(upgrade(&format!("/?key={n}")).as_bytes()).await.unwrap();
            let head = answer(&mut tcp).await;
            if head.starts_with("HTTP/1.1 101 ") {
                self.held.borrow_mut().push(tcp);
                return;
            }
            assert!(head.starts_with("HTTP/1.1 429 ") || head.starts_with("HTTP/1.1 503 "), "{head:?}");
            assert!(head.contains("\r\nRetry-After: "), "{head}");
            self.refused.set(self.refused.get() + 1);
        });
        connects.buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
        self.done.set(true);
    }
}

#[test]
fn ten_thousand_connects_from_one_network() {
    in_own_network(async |own| {
        let (ports, addrs) = echo::ports(1);
        let _server = EchoServer::start(&ports[0], "a").await;
        let listen = Port::free();
        let (addr, port) = (listen.addr(), listen.addr().port());
        let all = if own { format!("[::]:{port}") } else { addr.to_string() };
        // The limits are those that ship.
        let process =
            Spec::text("proxy", conf::proxy("app", &addrs)).set("proxy.listen", all).start(&[]).await;
        let addr6 = SocketAddr::from(("2001:db8:0:1::1".parse::<Ipv6Addr>().unwrap(), port));
        let mut neighbour = Neighbour::connect(addr).await;
        let calm_until = Instant::now() + Duration::from_millis(500);
        let calm = neighbour.p99(|| Instant::now() > calm_until).await;
        let before = process.rss_kib();
        let (flood, start) = (Flood::default(), Instant::now());
        // New neighbours, too: one of another network (if there are several), each on its own connection.
        let newcomers = async {
            let mut came = 0;
            while !flood.done.get() || came < 3 {
                let mut tcp = match own {
                    true => connect_from("2001:db8:0:67::1".parse().unwrap(), addr6).await.unwrap(),
                    false => TcpStream::connect(addr).await.unwrap(),
                };
                tcp.write_all(upgrade("/").as_bytes()).await.unwrap();
                let head = answer(&mut tcp).await;
                assert!(head.starts_with("HTTP/1.1 101 "), "a newcomer got {head:?}");
                came += 1;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            came
        };
        let ((), during, came) =
            tokio::join!(flood.run(own, addr, addr6), neighbour.p99(|| flood.done.get()), newcomers);
        let (held, refused) = (flood.held.borrow().len(), flood.refused.get());
        let grown = process.rss_kib().saturating_sub(before);
        println!(
            "{CONNECTS} connects (own network: {own}) in {:?}: {held} let in, {refused} refused; {came} newcomers; \
             a neighbour's p99 {during:?}, calm {calm:?}; {grown} KiB of memory",
            start.elapsed()
        );
        assert!(held <= PER_ADDRESS, "{held} of one network let in");
        assert_eq!(held + refused, CONNECTS);
        assert!(during < (2 * calm).max(Duration::from_secs(1)), "p99 {during:?}, calm {calm:?}");
        assert!(grown < 32 * 1024, "{grown} KiB");
        let counted = process.metric("weir_proxy_refused_total", &[]).await;
        assert_eq!(counted as usize, refused);
        // It is over: they leave, and one of them may come again.
        flood.held.borrow_mut().clear();
        if own {
            until("the network is let in again", || async {
                let mut tcp = connect_from("2001:db8:0:66::1".parse().unwrap(), addr6).await.unwrap();
                tcp.write_all(upgrade("/").as_bytes()).await.unwrap();
                let head = answer(&mut tcp).await;
                if head.starts_with("HTTP/1.1 101 ") { Ok(()) } else { Err(head) }
            })
            .await;
        }
        assert!(!process.log().contains("panicked"), "{}", process.log());
    });
}

fn limit_descriptors(process: &Process, to: usize) {
    let limit = format!("--nofile={to}:{to}");
    let done = Command::new("prlimit").args(["--pid", &process.pid().to_string(), &limit]).status();
    assert!(done.as_ref().is_ok_and(std::process::ExitStatus::success), "prlimit: {done:?}");
}

#[tokio::test]
async fn no_descriptor_left() {
    let (ports, addrs) = echo::ports(1);
    let _server = EchoServer::start(&ports[0], "a").await;
    let listen = Port::free();
    let process = Spec::text("proxy", conf::proxy("app", &addrs))
        .set("proxy.handshake_rate", "0/s")
        .set("proxy.max_connections_per_ip", 0)
        .set("proxy.head_timeout", "60s")
        .start(&[("proxy.listen", &listen)])
        .await;
    let mut neighbour = Neighbour::connect(listen.addr()).await;
    limit_descriptors(&process, process.descriptors() + 50);
    // More than there are descriptors, and than the kernel's backlog holds: some are still connecting at the end.
    let mut held = tokio::task::JoinSet::new();
    for _ in 0..500 {
        let addr = listen.addr();
        held.spawn(async move {
            let _stays = TcpStream::connect(addr).await;
            std::future::pending::<()>().await;
        });
    }
    process.logged("of the exhaustion", |l| l.contains("cannot accept")).await;
    // Who is in stays in, and waiting for a descriptor costs next to nothing.
    let (start, cpu) = (Instant::now(), process.cpu());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (spent, share) = (process.cpu() - cpu, start.elapsed());
    assert!(spent < share / 20, "{spent:?} of CPU in {share:?}");
    neighbour.p99(|| true).await;
    let lines = process.log().lines().filter(|l| l.contains("cannot accept")).count();
    assert!(lines < 200, "{lines} lines about it");
    held.shutdown().await;
    until("new clients are let in", || async {
        let mut tcp = TcpStream::connect(listen.addr()).await.map_err(|e| e.to_string())?;
        tcp.write_all(upgrade("/").as_bytes()).await.map_err(|e| e.to_string())?;
        let head = answer(&mut tcp).await;
        if head.starts_with("HTTP/1.1 101 ") { Ok(()) } else { Err(head) }
    })
    .await;
}
