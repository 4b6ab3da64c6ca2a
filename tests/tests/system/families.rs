//! IPv4 and IPv6 on one port: each in its own socket, or both in that of `[::]`; by start, reload and hand-over.

use nix::sys::signal::Signal;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use weir_tests::http::try_raw;
use weir_tests::ports::Port;
use weir_tests::process::{Process, Spec, binary};
use weir_tests::until;

const PING: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

fn conf(plain: &[String], tls: &[String], folder: &std::path::Path) -> String {
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    format!(
        "roles = [\"proxy\"]\n[proxy]\nlisten = {plain:?}\nhandshake_rate = \"0/s\"\n\
         [proxy.tls]\nlisten = {tls:?}\ncertificates = [{{ cert = {cert:?}, key = {key:?} }}]\n\
         [[proxy.route]]\nanswer = {{ status = 200, body = \"here\" }}\n"
    )
}

/// Whether each family is answered on this port.
async fn answers(port: u16) -> (bool, bool) {
    let ask =
        |addr: SocketAddr| async move { try_raw(addr, PING).await.is_ok_and(|answer| answer.status == 200) };
    (ask((Ipv4Addr::LOCALHOST, port).into()).await, ask((Ipv6Addr::LOCALHOST, port).into()).await)
}

/// UDP sockets of each family on this port.
fn udp(port: u16) -> (usize, usize) {
    let count = |file: &str| {
        let text = std::fs::read_to_string(file).unwrap();
        let of_port = |line: &&str| {
            line.split_whitespace().nth(1).is_some_and(|at| at.ends_with(&format!(":{port:04X}")))
        };
        text.lines().filter(of_port).count()
    };
    (count("/proc/net/udp"), count("/proc/net/udp6"))
}

async fn reload(weir: &Process, text: &str) {
    let before = weir.log().matches("reloaded").count();
    weir.rewrite(text);
    weir.signal(Signal::SIGHUP);
    until("a reload", || async {
        let log = weir.log();
        if log.matches("reloaded").count() > before { Ok(()) } else { Err(log) }
    })
    .await;
}

#[tokio::test]
async fn both_families_listen_on_one_port() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["cert", "self-signed", "--names", "localhost", "--out"];
    let made = Command::new(binary()).args(arguments).arg(folder.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let (plain, tls) = (Port::free(), Port::free());
    let [plain, tls] = [plain.addr().port(), tls.addr().port()];
    let both = |port: u16| vec![format!("0.0.0.0:{port}"), format!("[::]:{port}")];
    let wide = |port: u16| vec![format!("[::]:{port}")];
    let text = |plain: &[String], tls: &[String]| conf(plain, tls, folder.path());
    let socket = std::env::temp_dir().join(weir_tests::unique("weir-upgrade-"));
    let spec =
        || Spec::text("edge", text(&both(plain), &both(tls))).set("admin.upgrade_socket", socket.display());
    let mut weir = spec().start(&[]).await;
    assert_eq!((answers(plain).await, udp(tls)), ((true, true), (1, 1)), "from the start");
    reload(&weir, &text(&wide(plain), &both(tls))).await;
    assert_eq!(answers(plain).await, (true, true), "one socket has both");
    reload(&weir, &text(&both(plain), &both(tls))).await;
    assert_eq!(answers(plain).await, (true, true), "and each its own again");
    reload(&weir, &text(&both(plain)[..1], &both(tls))).await;
    assert_eq!(answers(plain).await, (true, false));
    // A successor whose conf has them otherwise than the process before it.
    reload(&weir, &text(&wide(plain), &wide(tls))).await;
    weir.rewrite(&text(&both(plain), &wide(tls)));
    let successor = weir.successor();
    successor.logged("waits", |l| l.contains("waiting for SIGQUIT")).await;
    weir.signal(Signal::SIGQUIT);
    weir.logged("handed over", |l| l.contains("the successor serves")).await;
    assert!(weir.exit().await.success());
    assert_eq!(answers(plain).await, (true, true), "by the successor");
}
