//! The shipped files: each is sound, `weir.toml` is the default and names every key, and what
//! `weir conf` prints reads back the same.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use weir_conf::proxy::tls::{Certificate, ClientCerts, Listen};
use weir_conf::proxy::{Check, Health, Sticky, Upstream};
use weir_conf::units::Secret;
use weir_conf::{Config, DEMO, Loaded, REFERENCE, Sources, load};

/// In this order.
const SHIPPED: [&str; 9] = [
    "app.toml",
    "broker.toml",
    "cluster.toml",
    "demo.toml",
    "edge.toml",
    "node.toml",
    "proxy.toml",
    "tls.toml",
    "weir.toml",
];

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn sound(sources: &Sources) -> Loaded {
    load(sources).unwrap_or_else(|errors| panic!("{errors}"))
}

fn warnings(loaded: &Loaded) -> Vec<String> {
    loaded.warnings.iter().map(|warning| warning.to_string()).collect()
}

#[test]
fn the_reference_is_the_default() {
    let loaded = sound(&Sources::new().file(shipped("weir.toml")));
    assert_eq!(loaded.config, Config::default());
    assert_eq!(warnings(&loaded), [""; 0]);
    // No file at all says the same.
    assert_eq!(sound(&Sources::new()).config, Config::default());
}

#[test]
fn the_default_lets_nobody_in() {
    let config = Config::default();
    assert!(!config.node.anonymous && !config.node.demo_page);
    assert!(config.node.api_key.is_empty() && config.node.token.hmac_secret.is_empty());
    assert!(config.proxy.listen.iter().all(|addr| addr.ip().is_loopback()));
    assert!(config.node.listen.ip().is_loopback() && config.broker.listen.ip().is_loopback());
    assert!(config.admin.listen.ip().is_loopback());
    assert!(!config.proxy.route.iter().any(|route| route.path.as_deref() != Some("/connection")));
}

#[test]
fn each_shipped_file_is_sound() {
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(shipped(".")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.ends_with(".toml") || name == "Cargo.toml" {
            continue;
        }
        let loaded = sound(&Sources::new().file(&path));
        // A node by itself cannot know who may reach the proxy before it, so it says that its secrets
        // are the published ones. Nothing else has anything to say.
        let keys: Vec<&str> = loaded.warnings.iter().map(|warning| warning.key.as_str()).collect();
        let expected: &[&str] =
            if name == "node.toml" { &["node.api_key", "node.token.hmac_secret"] } else { &[] };
        assert_eq!(keys, expected, "{name}");
        seen.push(name);
    }
    seen.sort();
    assert_eq!(seen, SHIPPED);
}

#[test]
fn the_demo_is_open_on_loopback_only() {
    let loaded = sound(&Sources::new().text("demo.toml", DEMO));
    let config = &loaded.config;
    assert!(config.node.anonymous && config.node.demo_page && config.proxy.handshake_rate.is_none());
    assert!(config.channel.namespace["chat"].force_recovery);
    // A copy that listens to others must not keep the published key.
    let errors =
        load(&Sources::new().text("demo.toml", DEMO).set("proxy.listen", "0.0.0.0:8000")).unwrap_err();
    assert!(errors.to_string().contains("node.api_key: is a published example"), "{errors}");
}

#[test]
fn the_four_files_share_a_machine() {
    let file = |name: &str| Sources::new().file(shipped(name));
    let second = file("node.toml").set("node.listen", "127.0.0.1:8101").set("admin.listen", "127.0.0.1:9002");
    let [proxy, first, second, broker] =
        [file("proxy.toml"), file("node.toml"), second, file("broker.toml")].map(|s| sound(&s).config);
    let mut bound: Vec<_> = [&proxy, &first, &second, &broker].iter().map(|c| c.admin.listen).collect();
    bound.extend(&proxy.proxy.listen);
    bound.extend([first.node.listen, second.node.listen, broker.broker.listen]);
    assert_eq!(bound.iter().collect::<BTreeSet<_>>().len(), 8, "{bound:?}");
    // Each is told where the next one is.
    let nodes = [first.node.listen.to_string(), second.node.listen.to_string()];
    assert_eq!(proxy.proxy.upstream["node"], Upstream::of(nodes));
    assert_eq!(first.node.brokers, [broker.broker.listen.to_string()]);
    assert!(first.node.trusted.iter().any(|range| range.contains(proxy.proxy.listen[0].ip())));
    assert_eq!(proxy.proxy.route[0].sticky, Sticky::Ip);
}

/// As `cluster.toml` says at its top.
#[test]
fn three_brokers_share_a_machine_with_a_node() {
    let broker = || Sources::new().file(shipped("cluster.toml"));
    let other = |name: &str, listen: &str, admin: &str| {
        let named = broker().set("broker.name", name).set("broker.bootstrap", "false");
        named.set("broker.listen", listen).set("admin.listen", admin)
    };
    let brokers = [
        broker(),
        other("b2", "127.0.0.1:8201", "127.0.0.1:9004"),
        other("b3", "127.0.0.1:8202", "127.0.0.1:9005"),
    ];
    let brokers = brokers.map(|sources| {
        let loaded = sound(&sources);
        assert_eq!(warnings(&loaded), [""; 0]);
        loaded.config
    });
    let listed = r#"["127.0.0.1:8200","127.0.0.1:8201","127.0.0.1:8202"]"#;
    let node = Sources::new().file(shipped("node.toml")).set("node.brokers", listed);
    let [node, proxy] = [node, Sources::new().file(shipped("proxy.toml"))].map(|s| sound(&s).config);

    let listens: Vec<_> = brokers.iter().map(|c| c.broker.listen.to_string()).collect();
    assert_eq!(node.node.brokers, listens);
    let mut bound: BTreeSet<_> = brokers.iter().map(|c| c.broker.listen).collect();
    bound.extend(brokers.iter().chain([&node, &proxy]).map(|c| c.admin.listen));
    bound.extend(proxy.proxy.listen);
    bound.insert(node.node.listen);
    assert_eq!(bound.len(), 3 + 5 + 1 + 1, "{bound:?}");
    for config in &brokers {
        let own = config.broker.listen.to_string();
        let others: Vec<_> = listens.iter().filter(|listen| **listen != own).cloned().collect();
        assert_eq!(config.broker.seeds(), others);
    }
    assert_eq!(brokers.iter().filter(|c| c.broker.bootstrap).count(), 1);
    assert_eq!(brokers.iter().map(|c| &c.broker.name).collect::<BTreeSet<_>>().len(), 3);
}

/// The reference with its examples in place of what they are examples for, split by roles: one
/// text for proxy and node, one for the broker.
fn with_examples(secrets: &Path) -> (String, String) {
    // (header, lines); what comes before the first header is the root.
    let mut sections: Vec<(String, Vec<String>)> = vec![(String::new(), Vec::new())];
    for line in REFERENCE.lines() {
        let example = line.strip_prefix('#').filter(|rest| !rest.is_empty() && !rest.starts_with(' '));
        let line = example.unwrap_or(line);
        let lines = &mut sections.last_mut().unwrap().1;
        if line.starts_with('[') {
            sections.push((line.to_owned(), Vec::new()));
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            lines.retain(|old| example.is_none() || !old.starts_with(&format!("{key} = ")));
            lines.push(line.replace("/etc/weir", &secrets.display().to_string()));
        }
    }
    let text = |roles: &str, wanted: &[&str]| {
        let mut text = format!("roles = [{roles}]\n");
        for (header, lines) in &sections {
            let name = header.trim_matches(['[', ']']).split('.').next().unwrap();
            if wanted.contains(&name) {
                text.push_str(&format!("{header}\n{}\n", lines.join("\n")));
            }
        }
        text
    };
    (
        text("\"proxy\", \"node\"", &["telemetry", "admin", "proxy", "node", "channel"]),
        text("\"broker\"", &["broker"]),
    )
}

/// The keys of each section of a TOML text, comments and all.
fn keys(text: &str) -> BTreeSet<(String, String)> {
    let mut section = String::new();
    let mut keys = BTreeSet::new();
    for line in text.lines() {
        let line = line.strip_prefix('#').unwrap_or(line);
        if line.starts_with('[') {
            section = line.split("  #").next().unwrap().trim_matches(['[', ']']).to_owned();
            // Every upstream has the same keys.
            section = section.replace("proxy.upstream.node", "proxy.upstream.app");
        } else if let Some((key, _)) = line.split_once(" = ")
            && !key.contains(' ')
        {
            keys.insert((section.clone(), key.to_owned()));
        }
    }
    keys
}

#[test]
fn the_reference_names_every_key_and_its_examples_are_sound() {
    let secrets = std::env::temp_dir().join(format!("weir-conf-{}", std::process::id()));
    std::fs::create_dir_all(&secrets).unwrap();
    for name in ["admin-token", "api-key", "token-secret", "rsa.pub.pem", "affinity-secret", "quic-token-key"]
    {
        std::fs::write(secrets.join(name), format!("{name} of thirty-two characters or more\n")).unwrap();
    }
    let (front, back) = with_examples(&secrets);
    let variables = || [("BROKER_SECRET".into(), "sixteen bytes or more".into())];
    let front = sound(&Sources::new().text("examples", front).environment(variables()));
    let back = sound(&Sources::new().text("examples", back).environment(variables()));
    std::fs::remove_dir_all(&secrets).unwrap();
    assert_eq!(front.config.node.api_key.reveal(), "api-key of thirty-two characters or more");
    assert_eq!(back.config.broker.secret.reveal(), "sixteen bytes or more");
    let route = front.config.proxy.route.iter().rfind(|route| route.upstream() == Some("app")).unwrap();
    assert_eq!(route.sticky, Sticky::Cookie("sid".into()));

    // What is shown as the value of a key that is left out is its value.
    let mut app = front.config.proxy.upstream["app"].clone();
    let health = app.health.take().unwrap();
    assert_eq!(app, Upstream::of(["127.0.0.1:3000", "127.0.0.1:3001"]));
    assert_eq!(Health { host: None, ..health }, Health::of(Check::Http));

    let written = keys(REFERENCE);
    let known: BTreeSet<_> = [front, back].iter().flat_map(|loaded| keys(&loaded.to_toml())).collect();
    assert!(known.len() > 100, "{}", known.len());
    for (section, key) in known {
        // A namespace takes the options of [channel], a route those of [proxy.tunnel].
        let inherited = [("channel.namespace", "channel"), ("proxy.route.tunnel", "proxy.tunnel")]
            .iter()
            .any(|(heir, from)| section == *heir && written.contains(&((*from).to_owned(), key.clone())));
        assert!(
            inherited || written.contains(&(section.clone(), key.clone())),
            "{section}.{key} is not in weir.toml"
        );
    }
}

#[test]
fn what_is_printed_reads_back() {
    for name in SHIPPED {
        let sources = Sources::new().file(shipped(name)).set("admin.token", "to be hidden");
        let loaded = sound(&sources);
        let mut expected = loaded.config.clone();
        for secret in
            [&mut expected.admin.token, &mut expected.node.api_key, &mut expected.node.token.hmac_secret]
        {
            if !secret.is_empty() {
                *secret = Secret::new("(set)".into());
            }
        }
        for printed in [loaded.to_toml(), loaded.config.to_toml()] {
            assert!(!printed.contains("to be hidden") && !printed.contains("change-me"), "{printed}");
            assert_eq!(sound(&Sources::new().text("printed", printed)).config, expected, "{name}");
        }
    }
}

#[test]
fn listeners_with_tls_read_back_as_they_are_printed() {
    let text = r#"
roles = ["proxy"]
[proxy]
listen = []
[proxy.upstream.node]
servers = "127.0.0.1:8100"
[proxy.tls]
listen = ["127.0.0.1:8443", { addr = "[::1]:8443", http3 = false, client_certs = "required" }]
certificates = { cert = "/c \"1\".pem", key = "/k.pem" }
min_version = "1.3"
client_ca = "/ca.pem"
hsts = "1h"
"#;
    let loaded = sound(&Sources::new().text("tls", text));
    assert_eq!(warnings(&loaded), [""; 0]);
    let tls = &loaded.config.proxy.tls;
    let plain = Listen::at("127.0.0.1:8443".parse().unwrap());
    let other = Listen {
        http3: false,
        client_certs: ClientCerts::Required,
        ..Listen::at("[::1]:8443".parse().unwrap())
    };
    assert_eq!(tls.listen, [plain, other]);
    assert_eq!(tls.certificates, [Certificate { cert: "/c \"1\".pem".into(), key: "/k.pem".into() }]);
    assert_eq!(sound(&Sources::new().text("printed", loaded.to_toml())).config, loaded.config);
}

#[test]
fn what_is_printed_says_where_it_came_from() {
    let text = "[node]\nname = \"a\\\"b\"\n\n[[channel.namespace]]\nname = \"chat\"\npresence = true\n";
    let sources = Sources::new()
        .text("my.toml", text)
        .environment([("WEIR_NODE__DRAIN__RATE".into(), "60/min".into())])
        .set("proxy.listen", "127.0.0.1:7000");
    let printed = sound(&sources).to_toml();
    let line = |start: &str| {
        let line = printed.lines().find(|line| line.starts_with(start)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("name = \"a"), r#"name = "a\"b" # file my.toml:2"#);
    assert_eq!(line("rate = \"1/"), r#"rate = "1/s" # environment WEIR_NODE__DRAIN__RATE"#);
    assert_eq!(line("listen = [\"127"), r#"listen = ["127.0.0.1:7000"] # command line --set proxy.listen"#);
    assert_eq!(line("presence = true"), "presence = true # file my.toml:6");
    assert_eq!(line("outbox_size"), r#"outbox_size = "1MiB" # default"#);
}

#[test]
fn routes_of_every_kind_read_back_as_they_are_printed() {
    let text = r#"
roles = ["proxy"]
[proxy]
affinity_secret = "thirty-two characters and more of them"
[proxy.upstream.app]
servers = "127.0.0.1:3000"
[[proxy.route]]
name = "all"
host = ["a.example.com", "*.b.example.com"]
path = "/rooms"
path_exact = "/rooms/7"
path_regex = '/rooms/(?P<room>\d+)'
header = [{ name = "X-A", value = "1" }, { name = "X-B", regex = "a|b" }, { name = "X-C", present = false }]
method = "GET"
websocket = true
to = "app"
replace_prefix = "/r"
host_header = "upstream"
sticky = { by = "path", capture = "room" }
connect_timeout = "2s"
handshake_timeout = "3s"
read_timeout = "4s"
write_timeout = "5s"
max_body_size = "1MiB"
access_log = false
[proxy.route.request_headers]
remove = ["X-D"]
set = { "X-E" = "{client_ip}, {{}}" }
add = { "X-F" = "\"{host}\"" }
[[proxy.route]]
path = "/old"
redirect = { to = "https://{host}{path_rest}{query}", status = 308 }
[[proxy.route]]
path_exact = "/down"
answer = { status = 503, body = "back\nsoon", headers = { "Retry-After" = "60" } }
[[proxy.route]]
path = "/v1"
to = "app"
rewrite = { regex = "/v1/(.*)", to = "/{1}" }
host_header = "app.internal:80"
sticky = { by = "path", segment = 2 }
[[proxy.route]]
to = "app"
strip_prefix = "/x"
response_headers = { set = { "X-G" = "{request_id}" } }
sticky = { by = "affinity", name = "srv", ttl = "0s", secure = true, same_site = "None", domain = "example.com" }
"#;
    let loaded = sound(&Sources::new().text("routes.toml", text));
    assert_eq!(warnings(&loaded), [""; 0]);
    let mut routes = loaded.config.proxy.route.clone();
    assert_eq!(routes.len(), 5);
    for printed in [loaded.to_toml(), loaded.config.to_toml()] {
        let again = sound(&Sources::new().text("printed", printed)).config.proxy.route;
        assert_eq!(again, routes);
    }
    routes.dedup();
    assert_eq!(routes.len(), 5);
}
