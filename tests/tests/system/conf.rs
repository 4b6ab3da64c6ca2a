//! Mistakes of an operator: told at once, all of them, before anything is bound.

use serde_json::json;
use std::net::TcpListener;
use weir_tests::conf::{API_KEY, HMAC, jwt, repo};
use weir_tests::ports::Port;
use weir_tests::process::{Spec, run};
use weir_tests::systems::Embedded;

#[tokio::test]
async fn every_shipped_conf_is_sound() {
    let mut shipped: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(repo().join("conf")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".toml") && name != "Cargo.toml" {
            shipped.push(format!("conf/{name}"));
        }
    }
    assert!(shipped.len() >= 6, "{shipped:?}");
    let mut arguments = vec!["check"];
    arguments.extend(shipped.iter().map(String::as_str));
    let (code, out, err) = run(&arguments).await;
    assert_eq!(code, 0, "{err}");
    for file in &shipped {
        assert!(out.contains(&format!("{file}: ok")), "{out}");
    }
}

#[tokio::test]
async fn a_bad_conf_tells_every_mistake_at_its_place_and_binds_nothing() {
    let port = Port::free();
    let text = format!(
        "[proxy]\nlisten = \"{port}\"\nhead_size = \"16 KiloBites\"\nno_such_key = 1\n\n[node]\nping_interval = 25\n\
         [[proxy.route]]\nto = \"nowhere\"\n"
    );
    let mut process = Spec::text("bad", text).launch(&[]);
    let status = process.exit().await;
    assert_eq!(status.code(), Some(78), "{}", process.log());
    let told = process.log();
    for (place, key) in [
        ("bad.toml:3:", "proxy.head_size"),
        ("bad.toml:4:", "proxy.no_such_key"),
        ("bad.toml:7:", "node.ping_interval"),
        ("bad.toml:9:", "nowhere"),
    ] {
        let line = told.lines().find(|l| l.contains(place)).unwrap_or_else(|| panic!("{place}: {told}"));
        assert!(line.contains(key), "{line}");
    }
    assert!(!told.contains("serving") && !told.contains("listens"), "{told}");
    TcpListener::bind(port.addr()).expect("free: nothing was bound");
}

#[tokio::test]
async fn check_finds_what_run_would_find() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.toml");
    std::fs::write(&path, "[proxy]\nlisten = \"here\"\n[brokr]\n").unwrap();
    let (code, out, err) = run(&["check", path.to_str().unwrap(), "conf/demo.toml"]).await;
    assert_eq!(code, 78);
    assert!(err.contains("bad.toml:2:") && err.contains("proxy.listen"), "{err}");
    assert!(err.contains("bad.toml:3:") && err.contains("brokr"), "{err}");
    assert!(out.contains("conf/demo.toml: ok"), "one bad file hides a good one: {out}");
}

#[tokio::test]
async fn a_file_that_is_not_there_is_78() {
    let (code, _, err) = run(&["run", "--config", "no/such/file.toml"]).await;
    assert_eq!(code, 78, "{err}");
    assert!(err.contains("no/such/file.toml"), "{err}");
}

/// Whichever listener it is: exit 1, with its key and its address, and the others do not linger.
#[tokio::test]
async fn a_port_in_use_names_key_and_address() {
    let keys = ["proxy.listen", "node.listen", "broker.listen"];
    for taken in keys {
        let ports = [Port::free(), Port::free(), Port::free()];
        let at = keys.iter().position(|k| *k == taken).unwrap();
        let _other_process = TcpListener::bind(ports[at].addr()).unwrap();
        let listeners: Vec<_> = keys.iter().copied().zip(&ports).collect();
        let mut process = Spec::text("weir", weir_tests::conf::all_tiers()).launch(&listeners);
        let status = process.exit().await;
        let log = process.log();
        assert_eq!(status.code(), Some(1), "{taken}: {log}");
        let addr = ports[at].to_string();
        assert!(log.lines().any(|l| l.contains(taken) && l.contains(&addr)), "{taken} at {addr}: {log}");
    }
}

#[tokio::test]
async fn the_admin_port_in_use_names_key_and_address() {
    let taken = Port::free();
    let _other_process = TcpListener::bind(taken.addr()).unwrap();
    let listen = format!("admin.listen={taken}");
    let (code, _, err) = run(&["run", "--config", "conf/broker.toml", "--set", &listen]).await;
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("admin.listen") && err.contains(&taken.to_string()), "{err}");
}

#[tokio::test]
async fn the_effective_conf_says_where_values_come_from_and_hides_secrets() {
    let arguments =
        ["conf", "--config", "conf/node.toml", "--set", "node.api_key=a-very-secret-key-for-this-test"];
    let (code, out, err) = run(&arguments).await;
    assert_eq!(code, 0, "{err}");
    assert!(!out.contains("a-very-secret-key"), "{out}");
    assert!(out.contains("node.toml") && out.contains("command line"), "{out}");
}

/// Logged as talkatively as it can be: a client's token, what it says, keys and query strings are not in there.
#[tokio::test]
async fn secrets_stay_out_of_the_log() {
    let filter = [("telemetry.filter", "trace,pingora=debug,rumqttd=off,hyper=off")];
    let weir = Embedded::start_with(&filter).await;
    let token = jwt(&json!({"sub": "ann"}));
    let mut client = weir.client().target("/connection/websocket?secret=in-the-query").open().await;
    client.connect(json!({"token": token})).await;
    client.subscribe("chat:log").await;
    client.ok("publish", json!({"channel": "chat:log", "data": "a-private-text"})).await;
    weir.api().publish("chat:log", json!("another-private-text")).await;
    drop(client);
    weir.process.logged("the end", |l| l.contains("cause=")).await;
    let log = weir.process.log();
    for secret in [token.rsplit('.').next().unwrap(), "in-the-query", "private-text", API_KEY, HMAC] {
        assert!(!log.contains(secret), "{secret:?} in the log");
    }
}
