//! Other people's HTTP/2, HTTP/3 and WebTransport against the running binary: Python's h2 and aioquic, headless
//! Chromium, and h2spec.

use crate::suites::{assert_ran, node_tests, python_module, suite};
use nix::sys::signal::Signal;
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use weir_tests::ports::Port;
use weir_tests::process::{Process, Spec, binary};
use weir_tests::recorder::{Recorder, Reply, ok};
use weir_tests::systems::Embedded;
use weir_tests::{conf, within};

/// All tiers in one process, with TLS.
pub struct Secure {
    pub weir: Embedded,
    pub tls: Tls,
}

/// A listener with TLS, and its certificate.
pub struct Tls {
    pub port: Port,
    /// Of its certificate, as `serverCertificateHashes` wants it.
    hash: String,
    files: TempDir,
}

impl Tls {
    pub fn new() -> Tls {
        let files = tempfile::tempdir().unwrap();
        let made = Command::new(binary())
            .args(["cert", "self-signed", "--names", "localhost,127.0.0.1", "--out"])
            .arg(files.path())
            .output()
            .unwrap();
        let told = String::from_utf8(made.stdout).unwrap();
        assert!(made.status.success(), "{told}{}", String::from_utf8_lossy(&made.stderr));
        let hash = told.lines().find_map(|line| line.strip_prefix("base64")).unwrap().trim().to_owned();
        Tls { port: Port::free(), hash, files }
    }

    pub fn conf(&self) -> String {
        let (cert, key) = (self.files.path().join("cert.pem"), self.files.path().join("key.pem"));
        let tls = &self.port;
        format!(
            "[proxy.tls]\nlisten = [\"{tls}\"]\ncertificates = [{{ cert = {cert:?}, key = {key:?} }}]\n\
             [[proxy.route]]\npath_exact = \"/page\"\n\
             answer = {{ status = 200, content_type = \"text/html\", body = \"<!doctype html><title>t</title>\" }}\n"
        )
    }

    async fn python(&self, kind: &str) -> String {
        let port = self.port.addr().port().to_string();
        let output = suite(kind, &mut python_module(&["transports", kind, "127.0.0.1", &port])).await;
        assert!(output.contains("ok: "), "{output}");
        output
    }
}

impl Secure {
    async fn start() -> Secure {
        Secure::start_with("", &[]).await
    }

    /// With these routes of its own, and these keys set.
    pub async fn start_with(routes: &str, set: &[(&str, &str)]) -> Secure {
        let tls = Tls::new();
        let text = format!(
            "{}{routes}{}\n[[channel.namespace]]\nname = \"cursor\"\ndelivery = \"datagram\"\n\
             allow_subscribe_for_client = true\nallow_subscribe_for_anonymous = true\n\
             allow_publish_for_subscriber = true\nallow_publish_for_anonymous = true\n",
            tls.conf(),
            conf::all_tiers()
        );
        let spec = Spec::text("weir", text).set("proxy.handshake_rate", "0/s");
        let spec = spec.set("proxy.max_connections_per_ip", "0").set("proxy.tls.handshake_rate", "0/s");
        let weir =
            Embedded::start_spec(set.iter().fold(spec, |spec, (key, value)| spec.set(key, value))).await;
        Secure { weir, tls }
    }

    async fn handshakes(&self, transport: &str) -> f64 {
        let labels = [format!("transport=\"{transport}\""), "handed_to_node".to_owned()];
        let labels = labels.each_ref().map(String::as_str);
        self.weir.process.metric("weir_proxy_handshakes_total", &labels).await
    }

    async fn python(&self, kind: &str) {
        self.tls.python(kind).await;
    }
}

#[tokio::test]
async fn a_thousand_websockets_on_ten_connections_of_http_2() {
    let secure = Secure::start().await;
    secure.python("http2").await;
    assert_eq!(secure.handshakes("h2").await, 1000.0);
    assert_eq!(secure.weir.process.metric("weir_proxy_tls_handshakes_total", &["accepted"]).await, 10.0);
}

#[tokio::test]
async fn aioquic_opens_websockets_over_http_3() {
    let secure = Secure::start().await;
    secure.python("http3").await;
    assert_eq!(secure.handshakes("h3").await, 20.0);
}

pub fn chromium(tls: &Tls, proxy: &Process) -> tokio::process::Command {
    let mut command = node_tests("transports.test.js");
    command
        .env("WEIR_TLS", tls.port.to_string())
        .env("WEIR_CERT_HASH", &tls.hash)
        .env("WEIR_CERT", tls.files.path().join("cert.pem"))
        .env("WEIR_METRICS", format!("http://{}/metrics", proxy.admin()));
    command
}

#[tokio::test]
async fn chromium_over_http_2_http_3_and_webtransport() {
    let secure = Secure::start().await;
    let mut command = chromium(&secure.tls, &secure.weir.process);
    assert_ran(&suite("Chromium", &mut command).await, 4);
}

/// Behind a NAT that gives the client another port before each message.
#[tokio::test]
async fn a_client_that_moves_a_hundred_times_loses_nothing() {
    let secure = Secure::start().await;
    secure.python("migrate").await;
    for transport in ["h3", "webtransport"] {
        assert_eq!(secure.handshakes(transport).await, 1.0, "{transport}: opened once");
    }
}

/// Broker, node and proxy with TLS, each a process of its own.
struct Apart {
    tls: Tls,
    node: Process,
    proxy: Process,
    _broker: Process,
    _ports: [Port; 3],
}

impl Apart {
    async fn start() -> Apart {
        let (tls, ports) = (Tls::new(), [Port::free(), Port::free(), Port::free()]);
        let [broker_port, node_port, proxy_port] = &ports;
        let broker = Spec::text("broker", conf::broker()).start(&[("broker.listen", broker_port)]).await;
        let node =
            Spec::text("node", conf::node(broker_port.addr())).start(&[("node.listen", node_port)]).await;
        // Of two routes that fit the first one counts.
        let upstream = "[proxy.upstream.node]";
        let text = conf::proxy("node", &[node_port.addr()]).replace(upstream, &(tls.conf() + upstream));
        let proxy = Spec::text("proxy", text).start(&[("proxy.listen", proxy_port)]).await;
        Apart { tls, node, proxy, _broker: broker, _ports: ports }
    }
}

/// One client is closed for what it says, the other one when the node stops.
#[tokio::test]
async fn a_session_of_webtransport_reaches_a_node_in_another_process() {
    let apart = Apart::start().await;
    let (node, proxy) = (&apart.node, &apart.proxy);
    let stop_the_node = async {
        // The clients' own deadline is this one's, too.
        while node.metric("weir_node_disconnects_total", &[]).await < 1.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(node.metric("weir_node_handshakes_total", &["accepted", "webtransport"]).await, 2.0);
        node.signal(Signal::SIGTERM);
    };
    let (output, ()) = tokio::join!(apart.tls.python("sessions"), stop_the_node);
    assert!(output.contains("closed with 3501 bad request, 3001 shutdown"), "{output}");
    for code in ["3501", "3001"] {
        let what = format!("the end of a session with {code}");
        let line =
            |line: &str| line.contains("webtransport") && line.contains(code) && line.contains("closed");
        proxy.logged(&what, line).await;
    }
}

#[tokio::test]
async fn chromium_over_webtransport_to_a_node_in_another_process() {
    let apart = Apart::start().await;
    let mut command = chromium(&apart.tls, &apart.proxy);
    command.env("WEIR_NODE_APART", "1");
    assert_ran(&suite("Chromium", &mut command).await, 1);
    assert_eq!(apart.node.metric("weir_node_handshakes_total", &["accepted", "webtransport"]).await, 2.0);
}

/// All of its 145 cases. They are told apart by what the server does with the rest of a request, so what they ask for
/// is at a server behind that answers when it has read all of it. (An answer of the proxy's own does not wait.)
#[tokio::test]
async fn h2spec_passes() {
    let server = Recorder::start(|_| Reply::Answer(ok("whole"))).await;
    let addr = server.addr();
    let routes = format!(
        "[proxy.upstream.whole]\nservers = [\"{addr}\"]\n[[proxy.route]]\npath_exact = \"/whole\"\nto = \"whole\"\n"
    );
    let secure = Secure::start_with(&routes, &[]).await;
    let h2spec = binary().parent().and_then(std::path::Path::parent).unwrap().join("tools/h2spec/h2spec");
    assert!(h2spec.exists(), "not installed: run tests/setup.sh");
    let port = secure.tls.port.addr().port().to_string();
    let mut command = tokio::process::Command::new(h2spec);
    command.args(["--tls", "--insecure", "--host", "127.0.0.1", "--path", "/whole", "--port", &port]);
    // Its own 2 s are for a server that has the machine to itself.
    command.args(["--timeout", "20"]);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = within("h2spec", output).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let verdict = text.lines().last().unwrap_or_default();
    let failures = text.find("Failures:").map_or(&*text, |at| &text[at..]);
    assert_eq!(verdict, "145 tests, 145 passed, 0 skipped, 0 failed", "{failures}");
}
