//! File, environment and command line: which one wins, and how their mistakes are told.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::time::Duration;
use weir_conf::proxy::Upstream;
use weir_conf::{Config, Sources, load};

fn variables<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn config(sources: &Sources) -> Config {
    load(sources).unwrap_or_else(|errors| panic!("{errors}")).config
}

fn errors(sources: &Sources) -> Vec<String> {
    load(sources).unwrap_err().to_string().lines().map(str::to_owned).collect()
}

fn warnings(sources: &Sources) -> Vec<String> {
    load(sources).unwrap().warnings.iter().map(|warning| warning.to_string()).collect()
}

#[test]
fn the_later_source_wins() {
    let sources = Sources::new()
        .text("f", "[node]\nping_interval = \"20s\"\npong_timeout = \"2s\"\nstale_timeout = \"3s\"\n[node.drain]\nrate = \"1/s\"\n")
        .environment(variables([("WEIR_NODE__PING_INTERVAL", "21s"), ("WEIR_NODE__PONG_TIMEOUT", "4s")]))
        .set("node.ping_interval", "22s");
    let node = config(&sources).node;
    assert_eq!(node.ping_interval, Duration::from_secs(22));
    assert_eq!(node.pong_timeout, Duration::from_secs(4));
    assert_eq!(node.stale_timeout, Duration::from_secs(3));
    // Its neighbours in the section stay.
    assert_eq!(node.drain.rate.per_second, 1.0);
    assert_eq!(node.drain.timeout, Duration::from_secs(30));
}

#[test]
fn a_value_is_toml_or_text() {
    let sources = Sources::new()
        .environment(variables([
            ("WEIR_ROLES", "[\"node\"]"),
            ("WEIR_NODE__BROKERS", "127.0.0.1:8200"),
            ("WEIR_NODE__NAME", "007"),
            ("WEIR_NODE__API_KEY", "12345"),
            ("WEIR_NODE__ANONYMOUS", "true"),
            ("WEIR_NODE__MESSAGE_SIZE", "1024"),
            ("WEIR_NODE__DRAIN", "{ rate = \"2/s\" }"),
            ("PATH", "/bin"),
        ]))
        .set("node.allowed_origins", "[\"https://a.example\", \"*\"]")
        .set("channel.namespace", "[{ name = \"chat\", presence = true }]");
    let config = config(&sources);
    assert_eq!(config.node.brokers, ["127.0.0.1:8200"]);
    assert_eq!(config.node.name, "007");
    assert_eq!(config.node.api_key.reveal(), "12345");
    assert!(config.node.anonymous);
    assert_eq!(config.node.message_size, 1024);
    assert_eq!(config.node.drain.rate.per_second, 2.0);
    assert_eq!(config.node.allowed_origins, ["https://a.example", "*"]);
    assert!(config.channel.namespace["chat"].presence && !config.channel.namespace["chat"].join_leave);
}

#[test]
fn upstreams_have_names_of_their_own() {
    let sources = Sources::new()
        .text("f", "[proxy.upstream.app]\nservers = [\"127.0.0.1:3000\"]\n[[proxy.route]]\nto = \"app\"\n")
        .environment(variables([("WEIR_PROXY__UPSTREAM__APP__SERVERS", "[\"127.0.0.1:3001\"]")]));
    assert_eq!(config(&sources).proxy.upstream["app"], Upstream::of(["127.0.0.1:3001"]));
}

#[test]
fn mistakes_of_all_sources_are_told_at_once_in_order() {
    let sources = Sources::new()
        .text("f.toml", "[node]\nname = 1\n")
        .environment(variables([
            ("WEIR_LOG", "debug"),
            ("WEIR_NODE__PING_INTERVAL", "25"),
            ("WEIR_NODE_LISTEN", "127.0.0.1:1"),
            ("WEIR_NODE__TOKEN__HMAC_SECRETS", "do not print me"),
        ]))
        .set("proxy.lisen", "127.0.0.1:8000")
        .set("node.api_key", "[\"do not print me\"]")
        .set("node.api_key.x", "do not print me")
        .set("", "x")
        .set("proxy", "3");
    assert_eq!(
        errors(&sources),
        [
            "f.toml:2:8: node.name: 1 is not text; accepted: \"…\"",
            "environment WEIR_LOG: log: unknown key; accepted here: roles, telemetry, admin, proxy, node, channel, broker",
            "environment WEIR_NODE_LISTEN: node_listen: unknown key; did you mean node.listen? As a variable: WEIR_NODE__LISTEN",
            "environment WEIR_NODE__PING_INTERVAL: node.ping_interval: 25 is not a duration; accepted: \"500ms\", \"25s\", \"5m\", \"720h\", \"0s\"",
            "environment WEIR_NODE__TOKEN__HMAC_SECRETS: node.token.hmac_secrets: unknown key; did you mean hmac_secret?",
            "command line --set : unknown key; accepted here: roles, telemetry, admin, proxy, node, channel, broker",
            "command line --set node.api_key.x: node.api_key.x: unknown key; a key above it holds a value, not keys",
            "command line --set proxy: proxy: 3 is not a table; accepted: [proxy] and keys below it",
        ]
    );
}

#[test]
fn what_the_orchestrator_sets_is_no_mistake() {
    let sources = Sources::new().environment(variables([
        ("WEIR_SERVICE_HOST", "10.0.0.11"),
        ("WEIR_SERVICE_PORT", "8000"),
        ("WEIR_SERVICE_PORT_HTTP", "8000"),
        ("WEIR_PORT", "tcp://10.0.0.11:8000"),
        ("WEIR_PORT_8000_TCP", "tcp://10.0.0.11:8000"),
        ("WEIR_NODE_PORT_8100_TCP_ADDR", "10.0.0.12"),
    ]));
    assert_eq!(config(&sources), Config::default());
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_utf8_is_told() {
    use std::os::unix::ffi::OsStringExt;
    let bad = OsString::from_vec(vec![b'a', 0xff]);
    let sources = Sources::new().text("f", "[node]\napi_key = \"env:KEY\"\n").environment([
        ("WEIR_NODE__NAME".into(), bad.clone()),
        ("KEY".into(), bad.clone()),
        ("OTHER".into(), bad),
    ]);
    assert_eq!(
        errors(&sources),
        [
            "f:2:11: node.api_key: the variable KEY is not UTF-8; accepted: text",
            "environment WEIR_NODE__NAME: is not UTF-8; accepted: text",
        ]
    );
}

#[test]
fn files_that_are_none() {
    let folder = std::env::temp_dir().join(format!("weir-conf-none-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let binary = folder.join("binary.toml");
    std::fs::write(&binary, b"roles = [\"node\"]\n\xff\xfe").unwrap();
    let missing = folder.join("missing.toml");
    let told = |path: &std::path::Path| errors(&Sources::new().file(path)).join("\n");
    let (binary_told, missing_told, folder_told) = (told(&binary), told(&missing), told(&folder));
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(
        binary_told,
        format!("{}: is not UTF-8 in line 2; accepted: a conf file in TOML", binary.display())
    );
    assert!(
        missing_told.starts_with(&format!("{}: cannot be read: No such file", missing.display())),
        "{missing_told}"
    );
    assert!(folder_told.contains("cannot be read"), "{folder_told}");
}

#[cfg(unix)]
#[test]
fn secrets_come_from_files_and_variables() {
    use std::os::unix::fs::PermissionsExt;
    let file = std::env::temp_dir().join(format!("weir-conf-secret-{}", std::process::id()));
    std::fs::write(&file, "line one\nline two\r\n").unwrap();
    let text = format!(
        "[node]\napi_key = \"file:{}\"\n[node.token]\nhmac_secret = \"env:WEIR_TOKEN\"\n",
        file.display()
    );
    let sources = || {
        // A variable that a secret names is no key, even with our prefix.
        let secret = "a secret of thirty-two characters";
        Sources::new().text("f", &*text).environment(variables([("WEIR_TOKEN", secret)]))
    };
    let mode = |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o600);
    let node = config(&sources()).node;
    let calm = warnings(&sources());
    mode(0o644);
    let worried = warnings(&sources());
    std::fs::remove_file(&file).unwrap();
    assert_eq!(node.api_key.reveal(), "line one\nline two");
    assert_eq!(node.token.hmac_secret.reveal(), "a secret of thirty-two characters");
    assert_eq!(calm, [""; 0]);
    assert_eq!(
        worried,
        [format!(
            "f:2:11: node.api_key: every user of this machine can read the file {file:?}; better: chmod 600"
        )]
    );
}

#[test]
fn what_is_likely_not_meant_is_warned_of() {
    let text = r#"
[proxy.upstream.app]
servers = ["127.0.0.1:3000"]
[proxy.upstream.old]
servers = ["127.0.0.1:3001"]
[[proxy.route]]
path = "/a"
to = "node"
[[proxy.route]]
path = "/a/b"
host = "x.example"
to = "app"
[[proxy.route]]
path = "/ab"
to = "app"
[node]
outbox_size = "32KiB"
[node.token]
hmac_secret = "short"
"#;
    let told: Vec<String> = warnings(&Sources::new().text("f", text));
    let starts: Vec<&str> = told.iter().map(|line| line.split("; ").next().unwrap()).collect();
    assert_eq!(
        starts,
        [
            "f:4:1: proxy.upstream.old: no route leads to it",
            "f:9:1: proxy.route[1]: is never reached: proxy.route[0] takes all its requests",
            "f:17:15: broker.message_size: 1MiB is more than node.outbox_size 32KiB: one publication could overflow every subscriber's outbox",
            "f:17:15: node.api_body_size: 512KiB is more than node.outbox_size 32KiB: one publication could overflow every subscriber's outbox",
            "f:17:15: node.message_size: 64KiB is more than node.outbox_size 32KiB: one publication could overflow every subscriber's outbox",
            "f:19:15: node.token.hmac_secret: is shorter than 32 bytes (RFC 7518 §3.2), so it may be guessed",
        ]
    );
}

#[test]
fn limits_that_contradict_each_other_are_warned_of() {
    let told = |text: &str| {
        let told = warnings(&Sources::new().text("f", text));
        told.iter().map(|line| line.split(": ").nth(1).unwrap().to_owned()).collect::<Vec<_>>()
    };
    let none: [&str; 0] = [];
    let cases: &[(&str, &[&str])] = &[
        ("[node]\nmessage_size = \"1MiB\"\n", &none),
        ("[node]\nmessage_size = \"2MiB\"\n", &["node.message_size", "node.message_size"]),
        ("[node]\napi_body_size = \"2MiB\"\n", &["node.api_body_size"]),
        ("[node]\nreply_size = \"300MiB\"\n", &["node.reply_size"]),
        ("[broker]\nmessage_size = \"2MiB\"\n", &["broker.message_size"]),
        ("[node]\noutbox_size = \"2MiB\"\n[broker]\nmessage_size = \"2MiB\"\n", &none),
        ("[channel]\nhistory_size = 10000\nhistory_ttl = \"1h\"\n", &none),
        ("[channel]\nhistory_size = 100000\nhistory_ttl = \"1h\"\n", &["channel.history_size"]),
    ];
    for (text, keys) in cases {
        assert_eq!(told(text), *keys, "{text}");
    }
}

#[test]
fn tls_that_reaches_nobody_is_warned_of() {
    let without = Sources::new()
        .set("proxy.tls.hsts", "1h")
        .set("proxy.tls.certificates", r#"{ cert = "/c.pem", key = "/k.pem" }"#);
    let told = |sources: &Sources| -> Vec<String> {
        warnings(sources).iter().map(|line| line.split_once(": ").unwrap().1.to_owned()).collect()
    };
    assert_eq!(
        told(&without),
        [
            "proxy.tls.certificates: no listener shows them",
            "proxy.tls.hsts: no listener sends it, as none has TLS"
        ]
    );
    let unasked = without.set("proxy.tls.listen", "127.0.0.1:8443").set("proxy.tls.client_ca", "/ca.pem");
    assert_eq!(
        told(&unasked),
        [
            "proxy.tls.client_ca: no listener asks for certificates of clients; meant: client_certs = \"required\" in listen?"
        ]
    );
}

#[test]
fn what_a_broker_alone_or_its_cluster_makes_no_use_of_is_warned_of() {
    let told = |text: &str| {
        let told = warnings(&Sources::new().text("f", text));
        told.iter().map(|line| line.split("; ").next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let alone = "has no effect on a broker alone";
    assert_eq!(
        told(
            "[broker]\ncopies = 3\nfsync = \"always\"\nfsync_interval = \"1s\"\nunclean_after = \"5m\"\nlease = \"1s\"\n"
        ),
        [
            format!("f:2:10: broker.copies: {alone}"),
            "f:4:18: broker.fsync_interval: has no effect".to_owned(),
            format!("f:5:17: broker.unclean_after: {alone}"),
            format!("f:6:9: broker.lease: {alone}"),
        ]
    );
    assert_eq!(
        told(
            "[broker]\nlisten = \"127.0.0.1:0\"\nbootstrap = true\nunclean_after = \"never\"\nfsync = \"never\"\n"
        ),
        [
            "f:2:10: broker.listen: is another port after each start, so no peers can list it",
            "f:3:13: broker.bootstrap: has nobody to ask after a restart, and would begin a second cluster beside the first",
            "f:4:17: broker.unclean_after: what brokers have in memory does not come back with them: channels whose copies are all gone refuse until an operator gives them up",
            "f:5:9: broker.fsync: has no effect without data_dir",
        ]
    );
    assert_eq!(
        told(
            "[broker]\ndata_dir = \"/var/lib/weir\"\n[node]\nbroker_tls_cert = \"a\"\nbroker_tls_key = \"b\"\nbroker_tls_ca = \"c\"\n"
        ),
        [
            "f:4:19: node.broker_tls_cert: has no effect: the broker is in this process",
            "f:5:18: node.broker_tls_key: has no effect: the broker is in this process",
            "f:6:17: node.broker_tls_ca: has no effect: the broker is in this process",
        ]
    );
    assert_eq!(
        told(
            "[channel]\nack = \"copies\"\nwhen_minority = \"live\"\n[[channel.namespace]]\nname = \"a\"\nack = \"none\"\n[[channel.namespace]]\nname = \"b\"\nack = \"owner\"\nhistory_size = 1\nhistory_ttl = \"1m\"\n"
        ),
        [
            "f:3:17: channel.when_minority: has no effect without history: what no broker keeps is delivered at most once, whatever it says",
            "f:6:7: channel.namespace[a].ack: has no effect without history: what no broker keeps is delivered at most once, whatever it says",
        ]
    );
}

/// Brokers and nodes on different machines prove themselves by a secret, by TLS, or both.
#[test]
fn a_secret_or_tls_is_proof_enough() {
    let broker = |more: &str| {
        let text = format!(
            "roles = \"broker\"\n[broker]\nlisten = \"10.0.0.5:8200\"\npeers = \"10.0.0.6:8200\"\n{more}"
        );
        load(&Sources::new().text("f", text)).is_ok()
    };
    let node = |more: &str| {
        let text = format!("roles = \"node\"\n[node]\nbrokers = \"10.0.0.6:8200\"\n{more}");
        load(&Sources::new().text("f", text)).is_ok()
    };
    assert!(!broker("") && !node(""));
    assert!(broker("secret = \"sixteen bytes or more\"\n") && node("broker_secret = \"s\"\n"));
    assert!(broker("tls_cert = \"a\"\ntls_key = \"b\"\ntls_ca = \"c\"\n"));
    assert!(node("broker_tls_cert = \"a\"\nbroker_tls_key = \"b\"\nbroker_tls_ca = \"c\"\n"));
    assert!(!broker("tls_cert = \"a\"\ntls_key = \"b\"\n") && !node("broker_tls_ca = \"c\"\n"));
}

/// Whatever is in a file, it is told of, and nothing stops.
#[test]
fn damaged_files_are_told_of() {
    let mut state: u64 = 0x5eed;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let whole: Vec<char> = weir_conf::DEMO.chars().collect();
    let odd: Vec<char> = "[]{}=\"'#.,\n\\ \u{0}é☂0x_-".chars().collect();
    let mut told = 0;
    for round in 0..400 {
        let mut text = whole.clone();
        for _ in 0..=random(4) {
            let at = random(text.len());
            match random(4) {
                0 => drop(text.remove(at)),
                1 => text.insert(at, odd[random(odd.len())]),
                2 => text[at] = odd[random(odd.len())],
                _ => text.truncate(at.max(1)),
            }
        }
        let text: String = text.into_iter().collect();
        if let Err(errors) = load(&Sources::new().text("f", &*text)) {
            told += 1;
            assert!(
                errors.iter().count() > 0 && errors.to_string().starts_with("f:"),
                "round {round}: {errors}"
            );
        }
    }
    assert!(told > 100, "{told}");
}
