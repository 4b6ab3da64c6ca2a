//! What clients of HTTP/2 and QUIC may not do ends at their own connection, is counted, and costs no more than
//! is said here. Meanwhile others talk over HTTP/1.1, HTTP/2 and HTTP/3, and each of them gets every answer.

use crate::suites::{python_module, suite};
use crate::transports::Secure;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdout};
use weir_tests::process::Process;
use weir_tests::{until, within};

/// By which a process may have grown after all attacks of a test, allocator and all.
const GROWTH_KIB: u64 = 24 << 10;

/// Each ends its connection.
const FLOODS: [&str; 16] = [
    "continuation",
    "tiny_continuation",
    "settings",
    "changing_settings",
    "ping",
    "ping_and_read",
    "priority",
    "window_update",
    "unknown_frames",
    "empty_data",
    "empty_headers",
    "rapid_reset",
    "slow_reset",
    "hpack_bomb",
    "reset_by_too_large_a_window",
    "reset_by_itself_as_parent",
];
/// And each of these, as what it sends is against the protocol.
const BROKEN: [&str; 3] = ["reset_by_empty_update", "reset_by_data_after_the_end", "table_sizes"];

/// `tests/clients/python/probe.py`, talking.
struct Probe {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Probe {
    async fn start(port: &str) -> Probe {
        let mut child = python_module(&["probe", "127.0.0.1", port])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        within("the probe is ready", output.read_line(&mut line)).await.unwrap();
        assert_eq!(line, "ready\n");
        Probe { child, output }
    }

    /// All its answers came in time, and nothing of it was closed.
    async fn finish(mut self) {
        drop(self.child.stdin.take());
        let mut told = String::new();
        within("the probe ends", self.output.read_to_string(&mut told)).await.unwrap();
        assert!(within("the probe ends", self.child.wait()).await.unwrap().success(), "the probe: {told}");
        println!("probe {told}");
    }
}

/// A system under attack, and what it was before.
struct Attacked {
    secure: Secure,
    probe: Probe,
    port: String,
    rss: u64,
    descriptors: usize,
}

impl Attacked {
    async fn start(set: &[(&str, &str)]) -> Attacked {
        let secure = Secure::start_with("", set).await;
        let port = secure.tls.port.addr().port().to_string();
        let probe = Probe::start(&port).await;
        let (rss, descriptors) = (secure.weir.process.rss_kib(), secure.weir.process.descriptors());
        Attacked { secure, probe, port, rss, descriptors }
    }

    fn process(&self) -> &Process {
        &self.secure.weir.process
    }

    async fn by(&self, module: &str, attacks: &[&str]) {
        let arguments = [&[module, "127.0.0.1", &self.port], attacks].concat();
        let output = suite(module, &mut python_module(&arguments)).await;
        assert!(output.contains(&format!("ok: all {}", attacks.len())), "{output}");
        println!("{output}");
    }

    async fn refused(&self, cause: &str) -> f64 {
        self.process().metric("weir_proxy_refused_total", &[&format!("cause=\"{cause}\"")]).await
    }

    async fn http3_errors(&self, cause: &str) -> f64 {
        self.process().metric("weir_proxy_http3_errors_total", &[&format!("cause=\"{cause}\"")]).await
    }

    async fn quic(&self, name: &str, outcome: &str) -> f64 {
        self.process().metric(&format!("weir_proxy_quic_{name}"), &[outcome]).await
    }

    /// The others noticed nothing, and nothing is left of it.
    async fn end(self) {
        let Attacked { secure, probe, rss, descriptors, .. } = self;
        let process = &secure.weir.process;
        until("descriptors are given back", || async {
            let open = process.descriptors();
            if open <= descriptors { Ok(()) } else { Err(format!("{open}, {descriptors} before")) }
        })
        .await;
        let grown = process.rss_kib().saturating_sub(rss);
        println!("grown by {grown} KiB");
        assert!(grown < GROWTH_KIB, "{grown} KiB");
        probe.finish().await;
        assert!(!process.log().contains("panicked"), "{}", process.log());
    }
}

#[tokio::test]
async fn floods_of_http_2_cost_their_connections() {
    let attacked = Attacked::start(&[]).await;
    attacked.by("floods_h2", &FLOODS).await;
    assert_eq!(attacked.refused("h2_flood").await as usize, FLOODS.len());
    attacked.by("floods_h2", &BROKEN).await;
    assert_eq!(attacked.refused("h2_protocol").await as usize, BROKEN.len());
    attacked.by("floods_h2", &["large_head"]).await;
    attacked.end().await;
}

/// By `head_timeout`, and by the 5 s that an answer of ours may take to be taken.
#[tokio::test]
async fn what_stalls_on_http_2_has_deadlines() {
    let deadlines = [("proxy.head_timeout", "3s"), ("proxy.keepalive_timeout", "3s")];
    let attacked = Attacked::start(&deadlines).await;
    tokio::join!(
        attacked.by("floods_h2", &["half_a_frame"]),
        attacked.by("floods_h2", &["half_a_frame_after_a_request"]),
        attacked.by("floods_h2", &["stalled"]),
    );
    assert_eq!(attacked.refused("head_timeout").await, 2.0);
    assert_eq!(attacked.refused("unread").await, 100.0);
    attacked.end().await;
}

#[tokio::test]
async fn first_packets_of_quic_from_anywhere() {
    let limits = [("proxy.quic.retry_above", "50"), ("proxy.quic.handshake_timeout", "3s")];
    let attacked = Attacked::start(&limits).await;
    attacked.by("floods_quic", &["initials", "garbage", "versions", "mangled"]).await;
    assert!(attacked.quic("incoming_total", "outcome=\"retry\"").await > 200.0);
    until("handshakes that nobody goes on with end", || async {
        let open = attacked.quic("handshakes_open", "").await;
        if open < 1.0 { Ok(()) } else { Err(format!("{open} open")) }
    })
    .await;
    assert!(attacked.quic("handshakes_total", "outcome=\"timeout\"").await > 0.0);
    attacked.end().await;
}

#[tokio::test]
async fn floods_of_http_3_cost_their_streams_or_connections() {
    let attacked = Attacked::start(&[]).await;
    let attacks =
        ["qpack_bomb", "qpack_table", "too_many_streams", "resets", "empty_frames", "streams_one_way"];
    attacked.by("floods_quic", &attacks).await;
    for cause in [
        "field section too large",
        "instruction for a dynamic table",
        "QUIC rule broken",
        "too many cancelled requests",
        "too many empty or unknown frames",
    ] {
        assert_eq!(attacked.http3_errors(cause).await, 1.0, "{cause}");
    }
    attacked.end().await;
}

/// GET is answered from it, CONNECT and POST are told to come again.
#[tokio::test]
async fn early_data_is_for_get_alone() {
    let secure = Secure::start_with("", &[("proxy.quic.early_data", "true")]).await;
    let port = secure.tls.port.addr().port().to_string();
    let output = suite("0-RTT", &mut python_module(&["floods_quic", "127.0.0.1", &port, "early"])).await;
    assert!(output.contains("early: 200 425 425"), "{output}");
    let labels = ["cause=\"early data with an unsafe method\""];
    assert_eq!(secure.weir.process.metric("weir_proxy_http3_errors_total", &labels).await, 2.0);
}
