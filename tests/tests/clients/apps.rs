//! Unchanged apps of several makers behind the proxy, by the conf that ships for it.

use crate::suites::{assert_ran, assert_unittest_ran, js, node_tests, python_module, suite};
use std::net::SocketAddr;
use std::process::Stdio;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use weir_tests::conf::repo;
use weir_tests::ports::Port;
use weir_tests::process::{Process, Spec};
use weir_tests::{echo, until};

/// An app's process, listening; what it prints is shown if the test fails.
async fn start(mut command: Command, addr: SocketAddr) -> Child {
    let child = command.stdin(Stdio::null()).kill_on_drop(true).spawn();
    let child = child.unwrap_or_else(|e| panic!("{command:?}: {e}"));
    until("the app listens", || async {
        TcpStream::connect(addr).await.map(|_| ()).map_err(|e| e.to_string())
    })
    .await;
    child
}

/// A process of the Socket.IO app at each of these; each says its name.
async fn socketio_apps(addrs: &[SocketAddr]) -> Vec<Child> {
    let mut apps = Vec::new();
    for (addr, name) in addrs.iter().zip(["a", "b"]) {
        let mut command = node("socketio-app.js", *addr);
        command.arg(name);
        apps.push(start(command, *addr).await);
    }
    apps
}

fn node(file: &str, addr: SocketAddr) -> Command {
    let mut command = Command::new("node");
    command.current_dir(js()).arg(file).arg(addr.port().to_string());
    command
}

/// The shipped conf, with where things listen set.
async fn proxy(spec: Spec, listen: &Port, servers: &[SocketAddr]) -> Process {
    let servers: Vec<_> = servers.iter().map(|s| format!("\"{s}\"")).collect();
    spec.set("proxy.upstream.app.servers", format!("[{}]", servers.join(", ")))
        .set("proxy.handshake_rate", "0/s")
        .start(&[("proxy.listen", listen)])
        .await
}

/// Two processes of an app behind conf/app.toml, by a cookie, which is the variant that the file itself
/// describes: all clients here have one address.
#[tokio::test]
async fn socket_io_app_in_two_processes() {
    let (_ports, addrs) = echo::ports(2);
    let _apps = socketio_apps(&addrs).await;
    let shipped = std::fs::read_to_string(repo().join("conf/app.toml")).unwrap();
    let by_ip = "\nsticky = { by = \"ip\" }\n#sticky = { by = \"cookie\"";
    assert!(shipped.contains(by_ip), "conf/app.toml no longer offers both:\n{shipped}");
    let listen = Port::free();
    let spec = Spec::text("app", shipped.replace(by_ip, "\nsticky = { by = \"cookie\""));
    let _proxy = proxy(spec, &listen, &addrs).await;
    let mut command = node_tests("socketio.test.js");
    command.env("WEIR_PROXY", format!("http://{listen}")).env("WEIR_STICKY_COOKIE", "sid");
    assert_ran(&suite("Socket.IO", &mut command).await, 6);
}

/// README's example as it stands, all defaults: an office of one address in front of two processes of a Socket.IO app.
#[tokio::test]
async fn socket_io_from_an_office_of_one_address() {
    let (_ports, addrs) = echo::ports(2);
    let _apps = socketio_apps(&addrs).await;
    let readme = std::fs::read_to_string(repo().join("README.md")).unwrap();
    let example = readme.split("```toml\n").skip(1).map(|block| block.split("```").next().unwrap());
    let example =
        example.into_iter().find(|block| block.starts_with("roles = [\"proxy\"]")).expect("an example");
    let servers: Vec<_> = addrs.iter().map(|s| format!("\"{s}\"")).collect();
    let listen = Port::free();
    let _proxy = Spec::text("readme", example)
        .set("proxy.upstream.app.servers", format!("[{}]", servers.join(", ")))
        .start(&[("proxy.listen", &listen)])
        .await;
    let mut command = node_tests("office.test.js");
    command.env("WEIR_PROXY", format!("http://{listen}"));
    assert_ran(&suite("Socket.IO office", &mut command).await, 1);
}

/// Node's own server with a keep-alive of a moment: closing connections are met, and nobody notices.
#[tokio::test]
async fn a_server_with_a_short_keep_alive() {
    let (_ports, addrs) = echo::ports(1);
    let listen = Port::free();
    let _proxy = proxy(Spec::shipped("app", "conf/app.toml"), &listen, &addrs).await;
    let mut command = node_tests("keepalive.test.js");
    command.env("WEIR_PROXY", format!("http://{listen}")).env("WEIR_APP_PORT", addrs[0].port().to_string());
    assert_ran(&suite("keep-alive", &mut command).await, 2);
}

/// One app of Node, one suite of published clients, and the conf as it ships.
async fn node_app(app: &str, tests: &str, least: usize) {
    let (_ports, addrs) = echo::ports(1);
    let _app = start(node(app, addrs[0]), addrs[0]).await;
    let listen = Port::free();
    let _proxy = proxy(Spec::shipped("app", "conf/app.toml"), &listen, &addrs).await;
    let mut command = node_tests(tests);
    command.env("WEIR_PROXY", format!("http://{listen}"));
    assert_ran(&suite(app, &mut command).await, least);
}

#[tokio::test]
async fn ws_app() {
    node_app("ws-app.js", "ws.test.js", 10).await;
}

#[tokio::test]
async fn plain_http_app() {
    node_app("http-app.js", "http.test.js", 10).await;
}

/// FastAPI on uvicorn, and Django Channels on daphne, each behind a proxy of its own.
#[tokio::test]
async fn python_apps() {
    let (_ports, addrs) = echo::ports(2);
    let port = |n: usize| addrs[n].port().to_string();
    let uvicorn = ["uvicorn", "--port", &port(0), "--log-level", "warning", "fastapi_app:app"];
    let daphne = ["daphne", "-v", "0", "-p", &port(1), "channels_app:application"];
    let _apps =
        tokio::join!(start(python_module(&uvicorn), addrs[0]), start(python_module(&daphne), addrs[1]),);
    let listen = [Port::free(), Port::free()];
    let _proxies = tokio::join!(
        proxy(Spec::shipped("fastapi", "conf/app.toml"), &listen[0], &addrs[..1]),
        proxy(Spec::shipped("channels", "conf/app.toml"), &listen[1], &addrs[1..]),
    );
    let mut command = python_module(&["unittest", "--verbose", "test_apps"]);
    command
        .env("WEIR_FASTAPI", format!("http://{}", listen[0]))
        .env("WEIR_CHANNELS", format!("http://{}", listen[1]));
    assert_unittest_ran(&suite("Python apps", &mut command).await, 16);
}
