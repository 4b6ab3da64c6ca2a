//! Who is believed, and what may not leak: of the built binary, as an operator and a stranger meet it.

use serde_json::json;
use std::fs::{Permissions, set_permissions, write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use weir_tests::conf::{in_seconds, jwt, jwt_by};
use weir_tests::http::{get, raw};
use weir_tests::ports::Port;
use weir_tests::process::{Process, Spec, run};

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

/// A broker that keeps its log where an earlier version has left it for everybody to read.
#[tokio::test]
async fn what_a_broker_keeps_is_for_its_user_alone() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let text = format!(
        "roles = [\"broker\"]\n[broker]\nlisten = \"127.0.0.1:0\"\ndata_dir = {:?}\n",
        data.display().to_string()
    );
    for round in 0..2 {
        let broker = Spec::text("broker", &*text).start(&[]).await;
        assert_eq!(mode(&data), 0o700, "round {round}");
        let files: Vec<_> = std::fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(files.len() >= 3, "{files:?}");
        for file in &files {
            assert_eq!(mode(file), 0o600, "round {round}: {}", file.display());
        }
        broker.kill_9().await;
        set_permissions(&data, Permissions::from_mode(0o755)).unwrap();
        files.iter().for_each(|file| set_permissions(file, Permissions::from_mode(0o644)).unwrap());
    }
}

/// `weir check` and a start say the same of certificates, at the place of the key.
#[tokio::test]
async fn certificates_and_keys_are_looked_at_before_they_are_used() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name).display().to_string();
    for name in ["a", "b"] {
        let (code, _, err) = run(&["cert", "self-signed", "--out", &at(name)]).await;
        assert_eq!(code, 0, "{err}");
    }
    let conf = |cert: &str, key: &str| {
        format!(
            "roles = [\"proxy\"]\n[[proxy.route]]\nanswer = {{ status = 204 }}\n[proxy.tls]\nlisten = \"127.0.0.1:0\"\n\
             certificates = [{{ cert = {:?}, key = {:?} }}]\n",
            at(cert),
            at(key)
        )
    };
    for (cert, key, said) in [
        ("a/cert.pem", "none.pem", "key: cannot use the file"),
        ("none.pem", "a/key.pem", "cert: cannot use the file"),
        ("a/cert.pem", "b/key.pem", "does not belong to the certificate"),
        ("a/key.pem", "a/cert.pem", "the certificate is where the key should be"),
    ] {
        let file = at("bad.toml");
        write(&file, conf(cert, key)).unwrap();
        for verb in [&["check"][..], &["run", "--config"]] {
            let (code, _, err) = run(&[verb, &[&*file]].concat()).await;
            let placed = err.lines().any(|line| line.contains("bad.toml:6:") && line.contains(said));
            // What is not here may be where the conf is meant for.
            let stops = verb[0] != "check" || !(cert == "none.pem" || key == "none.pem");
            assert!(placed && code == if stops { 78 } else { 0 }, "{verb:?} {cert} {key}: {code} {err}");
        }
    }
    let (file, key) = (at("good.toml"), home.path().join("a/key.pem"));
    write(&file, conf("a/cert.pem", "a/key.pem")).unwrap();
    for (mode, warned) in [(0o600, false), (0o644, true)] {
        set_permissions(&key, Permissions::from_mode(mode)).unwrap();
        let (code, out, err) = run(&["check", &file]).await;
        assert!(code == 0 && out.contains("ok"), "{mode:o}: {err}");
        assert_eq!(err.contains("good.toml:6:") && err.contains("every user"), warned, "{mode:o}: {err}");
    }
}

#[tokio::test]
async fn a_page_whose_name_leads_here_reads_nothing() {
    let text = "[admin]\nhosts = [\"weir.internal\"]\ntoken = \"a-token-for-operators\"\n";
    let weir = embedded(text).await;
    let ask = |host: &'static str, path: &'static str, more: &'static str| {
        let admin = weir.admin();
        async move {
            let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n");
            raw(admin, head.as_bytes()).await
        }
    };
    for (host, path, more, status) in [
        ("evil.example", "/metrics", "", 421),
        ("evil.example", "/metrics", "Authorization: Bearer a-token-for-operators\r\n", 200),
        ("evil.example", "/health", "", 200),
        ("evil.example", "/ready", "", 200),
        ("weir.internal", "/metrics", "", 200),
        ("localhost:1", "/metrics", "", 200),
        ("[::1]:1", "/metrics", "", 200),
    ] {
        let answer = ask(host, path, more).await;
        assert_eq!(answer.status, status, "{host} {path}: {answer:?}");
        assert_eq!(answer.body.contains("admin.hosts"), status == 421, "{answer:?}");
    }
}

/// The demo asks nobody for a token: only pages of this machine's own names get to speak with it.
#[tokio::test]
async fn a_page_whose_name_leads_to_the_demo_does_not_come_in() {
    let demo = weir_tests::systems::Embedded::start_spec(Spec::demo()).await;
    let port = demo.proxy().port();
    for (name, status) in [("127.0.0.1", 101), ("localhost", 101), ("evil.example", 403)] {
        for path in ["/connection/websocket", "/connection/uni_websocket"] {
            let head = format!(
                "GET {path} HTTP/1.1\r\nHost: {name}:{port}\r\nOrigin: http://{name}:{port}\r\nConnection: Upgrade\r\n\
                 Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            );
            assert_eq!(raw(demo.proxy(), head.as_bytes()).await.status, status, "{name} {path}");
        }
    }
}

async fn embedded(more: &str) -> Process {
    let text = format!(
        "[node.token]\nhmac_secret = {:?}\n[broker]\nlisten = \"127.0.0.1:0\"\n{more}",
        weir_tests::conf::HMAC
    );
    let (proxy, node) = (Port::free(), Port::free());
    Spec::text("embedded", text).start(&[("proxy.listen", &proxy), ("node.listen", &node)]).await
}

/// Every kind of secret, and an upstream that is not there.
fn guarded(dead: &Port) -> String {
    format!(
        r#"
[proxy.upstream.dead]
servers = ["{dead}"]
[proxy.token.app]
hmac_secret = "{hmac}"
from = ["query:access", "authorization", "cookie:sid"]
claims = {{ sub = "X-User" }}
[[proxy.route]]
path = "/dead"
to = "dead"
[[proxy.route]]
path = "/guarded"
token = "app"
to = "dead"
[[proxy.route]]
to = "node"
[node]
api_key = "api-key-that-is-secret"
[node.token]
hmac_secret = "{hmac}"
[broker]
listen = "127.0.0.1:0"
[admin]
token = "admin-token-that-is-secret"
[telemetry]
filter = "debug,rumqttd=off,openraft=off,pingora=warn,h2=info,hyper=info"
"#,
        hmac = weir_tests::conf::HMAC,
    )
}

/// Everything that is logged about tokens, queries and keys, good and bad, with an upstream that fails: not one of
/// them.
#[tokio::test]
async fn no_secret_is_in_the_log() {
    let (edge, node, dead) = (Port::free(), Port::free(), Port::free());
    let weir =
        Spec::text("edge", guarded(&dead)).start(&[("proxy.listen", &edge), ("node.listen", &node)]).await;
    let claims = json!({"sub": "ann", "exp": in_seconds(600)});
    let tokens = [
        jwt(&claims),
        jwt_by("another-secret-of-thirty-two-bytes!", &claims),
        jwt(&json!({"sub": "a", "exp": 1})),
    ];
    for token in &tokens {
        for path in [
            format!("/dead?access={token}"),
            format!("/guarded?access={token}"),
            format!("/connection/uni_websocket?cf_connect=%7B%22token%22:%22{token}%22%7D"),
        ] {
            get(edge.addr(), &path).await;
            let upgrade = format!(
                "GET {path} HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {token}\r\nCookie: sid={token}\r\n\r\n"
            );
            let _answered_or_closed = weir_tests::http::try_raw(edge.addr(), upgrade.as_bytes()).await;
        }
    }
    for key in ["api-key-that-is-secret", "wrong-key-that-is-secret"] {
        get(node.addr(), &format!("/api/info?api_key={key}")).await;
        let bearer = format!(
            "GET /metrics HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\r\n"
        );
        raw(weir.admin(), bearer.as_bytes()).await;
    }
    weir.logged("requests", |line| line.contains("/guarded")).await;
    let log = weir.log();
    let signatures = tokens.iter().map(|token| token.rsplit_once('.').unwrap().1);
    for secret in signatures.chain([weir_tests::conf::HMAC, "that-is-secret"]) {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
    let (code, shown, _) = run(&["conf", "--config", weir.conf_file().to_str().unwrap()]).await;
    assert!(
        code == 0 && !shown.contains("that-is-secret") && !shown.contains(weir_tests::conf::HMAC),
        "{shown}"
    );
}
