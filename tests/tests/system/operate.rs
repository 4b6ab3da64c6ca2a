//! What operators do to a running process: reload, drain, hand over.

use futures_util::{SinkExt, StreamExt};
use nix::sys::signal::Signal;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};
use weir_tests::echo::EchoServer;
use weir_tests::ports::Port;
use weir_tests::process::{Process, Spec, run};
use weir_tests::{until, within};

const TOKEN: &str = "an-admin-token-for-tests";

struct Edge {
    weir: Process,
    proxy: Port,
    app: Port,
    _server: EchoServer,
}

/// A conf of a proxy in front of one server; the listeners are in it, so that a reload can change them.
fn conf(listen: &[&Port], app: &Port, host: &str, more: &str) -> String {
    let listen: Vec<String> = listen.iter().map(|p| format!("\"{p}\"")).collect();
    format!(
        "roles = [\"proxy\"]\n[proxy]\nlisten = [{}]\nhandshake_rate = \"0/s\"\nmax_connections_per_ip = 0\n{more}\n\
         [proxy.upstream.app]\nservers = [\"{app}\"]\n\
         [[proxy.route]]\nhost = \"{host}\"\nto = \"app\"\n",
        listen.join(", ")
    )
}

impl Edge {
    async fn start() -> Edge {
        let (proxy, app) = (Port::free(), Port::free());
        let server = EchoServer::start(&app, "app").await;
        let socket = std::env::temp_dir().join(weir_tests::unique("weir-upgrade-"));
        let weir = Spec::text("edge", conf(&[&proxy], &app, "a.test", ""))
            .set("admin.token", TOKEN)
            .set("admin.upgrade_socket", socket.display())
            .start(&[])
            .await;
        Edge { weir, proxy, app, _server: server }
    }

    async fn ask(&self, verb: &[&str]) -> (i32, String, String) {
        let token = self.weir.path("token");
        std::fs::write(&token, TOKEN).unwrap();
        let admin = format!("http://{}", self.weir.admin());
        let token = token.display().to_string();
        run(&[&verb[..1], &["--admin", &admin, "--token", &token], &verb[1..]].concat()).await
    }

    async fn reload(&self, text: &str) -> (i32, String, String) {
        self.weir.rewrite(text);
        self.ask(&["reload"]).await
    }
}

type Ws = WebSocketStream<TcpStream>;

/// Opens a tunnel; an error is what went wrong.
async fn try_open(addr: SocketAddr, host: &str) -> Result<Ws, String> {
    let open = async {
        let tcp = TcpStream::connect(addr).await.map_err(|e| e.to_string())?;
        let (mut ws, _) = client_async(format!("ws://{host}/"), tcp).await.map_err(|e| e.to_string())?;
        match ws.next().await {
            Some(Ok(_greeting)) => Ok(ws),
            other => Err(format!("{other:?}")),
        }
    };
    within("a tunnel opens", open).await
}

async fn echoes(ws: &mut Ws) {
    let text = Message::text(weir_tests::unique("echo"));
    ws.send(text.clone()).await.unwrap();
    assert_eq!(within("an echo", ws.next()).await.unwrap().unwrap(), text);
}

#[tokio::test]
async fn a_reload_swaps_routes_and_listeners_and_closes_nothing() {
    let edge = Edge::start().await;
    let mut open = Vec::new();
    for _ in 0..20 {
        open.push(try_open(edge.proxy.addr(), "a.test").await.unwrap());
    }
    let second = Port::free();
    let (code, out, err) = edge.reload(&conf(&[&edge.proxy, &second], &edge.app, "b.test", "")).await;
    assert_eq!((code, out.contains("opened: 1, closed: 0")), (0, true), "{out}{err}");
    for addr in [edge.proxy.addr(), second.addr()] {
        assert!(try_open(addr, "a.test").await.unwrap_err().contains("404"));
        open.push(try_open(addr, "b.test").await.unwrap());
    }

    edge.weir.rewrite(&conf(&[&second], &edge.app, "b.test", ""));
    edge.weir.signal(Signal::SIGHUP);
    edge.weir.logged("the first listener closed", |l| l.contains("reloaded") && l.contains("closed=1")).await;
    assert!(TcpStream::connect(edge.proxy.addr()).await.is_err(), "its port is free again");
    open.push(try_open(second.addr(), "b.test").await.unwrap());
    for ws in &mut open {
        echoes(ws).await;
    }
    assert_eq!(edge.weir.metric("weir_proxy_tunnel_ends_total", &[]).await, 0.0);
}

#[tokio::test]
async fn a_reload_with_mistakes_changes_nothing_and_says_why() {
    let edge = Edge::start().await;
    let (other, taken) = (Port::free(), Port::free());
    let _in_use = std::net::TcpListener::bind(taken.addr()).unwrap();
    let bad = [
        (conf(&[&other], &edge.app, "b.test", "idle = \"1s\""), "edge.toml:6:1: proxy.idle"),
        (conf(&[&other, &taken], &edge.app, "b.test", ""), "proxy.listen: cannot listen on"),
        ("[proxy".to_owned(), "edge.toml:1"),
    ];
    for (text, why) in bad {
        let (code, out, err) = edge.reload(&text).await;
        assert_eq!(code, 1, "{out}{err}");
        assert!(err.contains(why), "{err:?} does not say {why:?}");
        let mut still = try_open(edge.proxy.addr(), "a.test").await.unwrap();
        echoes(&mut still).await;
        assert!(TcpStream::connect(other.addr()).await.is_err());
    }
    let (code, out, err) = edge.reload(&conf(&[&edge.proxy], &edge.app, "a.test", "threads = 7")).await;
    assert_eq!((code, out.contains("proxy.threads")), (0, true), "what needs a restart is named: {out}{err}");
}

#[tokio::test]
async fn a_successor_takes_over_without_a_refused_connection() {
    let mut edge = Edge::start().await;
    let mut before = Vec::new();
    for _ in 0..20 {
        before.push(try_open(edge.proxy.addr(), "a.test").await.unwrap());
    }
    let (stop, opened) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let arriving = tokio::spawn({
        let (addr, stop, opened) = (edge.proxy.addr(), stop.clone(), opened.clone());
        async move {
            while !stop.load(Relaxed) {
                try_open(addr, "a.test").await.unwrap();
                opened.fetch_add(1, Relaxed);
            }
        }
    });
    let successor = edge.weir.successor();
    successor.logged("waits", |l| l.contains("waiting for SIGQUIT")).await;
    for ws in &mut before {
        echoes(ws).await;
    }
    edge.weir.signal(Signal::SIGQUIT);
    edge.weir.logged("handed over", |l| l.contains("the successor serves")).await;
    let seen = opened.load(Relaxed);
    until("more arrive after it", || async {
        let now = opened.load(Relaxed);
        if now > seen + 50 { Ok(()) } else { Err(format!("{now} of {}", seen + 50)) }
    })
    .await;
    stop.store(true, Relaxed);
    arriving.await.unwrap();
    assert!(successor.metric("weir_proxy_handshakes_total", &["accepted"]).await >= 50.0);
    // They drain in the old one, at its pace, and each is told.
    for ws in &mut before {
        let end = within("an old tunnel drains", ws.next()).await;
        assert!(matches!(end, Some(Ok(Message::Close(_))) | Some(Err(_)) | None), "{end:?}");
    }
    drop(before);
    assert!(edge.weir.exit().await.success());
    try_open(edge.proxy.addr(), "a.test").await.unwrap();
}

#[tokio::test]
async fn without_a_successor_sigquit_changes_nothing() {
    let edge = Edge::start().await;
    edge.weir.signal(Signal::SIGQUIT);
    edge.weir.logged("no successor", |l| l.contains("not handed over")).await;
    try_open(edge.proxy.addr(), "a.test").await.unwrap();
}

#[tokio::test]
async fn weir_drain_goes_at_its_pace_shows_progress_and_ends_the_process() {
    let mut edge = Edge::start().await;
    let mut open = Vec::new();
    for _ in 0..30 {
        open.push(try_open(edge.proxy.addr(), "a.test").await.unwrap());
    }
    let start = Instant::now();
    let clients = tokio::spawn(async move {
        let mut ends = Vec::new();
        for ws in &mut open {
            let end = within("a tunnel is told to go", ws.next()).await.unwrap().unwrap();
            let Message::Close(Some(frame)) = end else { panic!("{end:?}") };
            ends.push((u16::from(frame.code), start.elapsed()));
            while let Some(Ok(_)) = ws.next().await {}
        }
        ends
    });
    let (code, out, err) = edge.ask(&["drain", "--rate", "15/s"]).await;
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("proxy: 2") && out.contains(" left"), "{out}");
    let ends = clients.await.unwrap();
    // Opened one after the other, told one after the other: the oldest first.
    assert!(ends.iter().all(|(code, _)| *code == 1012), "{ends:?}");
    let took = ends.last().unwrap().1;
    assert!(took > Duration::from_millis(1500) && took < Duration::from_secs(4), "30 at 15/s took {took:?}");
    assert!(edge.weir.exit().await.success());
}

#[tokio::test]
async fn servers_are_drained_and_set_down_by_name_and_it_is_kept() {
    let edge = Edge::start().await;
    let server = edge.app.to_string();
    let mut open = try_open(edge.proxy.addr(), "a.test").await.unwrap();
    let (code, out, err) = edge.ask(&["upstream", "app", "drain", &server]).await;
    assert_eq!((code, out.trim_end()), (0, &*format!("app: {server}: draining")), "{err}");
    assert!(try_open(edge.proxy.addr(), "a.test").await.unwrap_err().contains("503"));
    echoes(&mut open).await;
    let (code, ..) =
        edge.reload(&conf(&[&edge.proxy], &edge.app, "a.test", "keepalive_timeout = \"5s\"")).await;
    assert_eq!(code, 0);
    let (_, out, _) = edge.ask(&["upstream"]).await;
    assert!(out.starts_with("app\n") && out.contains(&server) && out.contains("draining"), "{out}");
    assert!(out.contains("1 open"), "{out}");

    let (code, ..) = edge.ask(&["upstream", "app", "down", &server]).await;
    assert_eq!(code, 0);
    let end = within("its tunnels go", open.next()).await.unwrap().unwrap();
    assert!(matches!(end, Message::Close(Some(frame)) if u16::from(frame.code) == 1012));
    let (code, ..) = edge.ask(&["upstream", "app", "up", &server]).await;
    assert_eq!(code, 0);
    try_open(edge.proxy.addr(), "a.test").await.unwrap();

    for (order, why) in [
        (["upstream", "none", "up", &server], "there is no upstream"),
        (["upstream", "app", "up", "10.0.0.9:1"], "there is no server"),
    ] {
        let (code, _, err) = edge.ask(&order).await;
        assert!(code == 1 && err.contains(why), "{err}");
    }
}
