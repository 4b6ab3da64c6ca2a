//! Confs of the test systems, as text: what an operator would write.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

pub const API_KEY: &str = "test-api-key";
pub const HMAC: &str = "a-test-secret-of-thirty-two-bytes!!";
pub const BROKER_SECRET: &str = "a-broker-secret-of-32-bytes-or-so";

/// Namespaces that the suites of all clients rely on.
pub const CHANNELS: &str = r#"
[channel]
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_subscriber = true
allow_publish_for_anonymous = true

# Everything on.
[[channel.namespace]]
name = "chat"
presence = true
join_leave = true
force_push_join_leave = true
history_size = 1000
history_ttl = "5m"
force_recovery = true
force_positioning = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_subscriber = true
allow_publish_for_anonymous = true
allow_presence_for_subscriber = true
allow_presence_for_anonymous = true
allow_history_for_subscriber = true
allow_history_for_anonymous = true

# A history that ends soon.
[[channel.namespace]]
name = "short"
history_size = 3
history_ttl = "5m"
force_recovery = true
force_positioning = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true

# Who is there, and nothing kept of what was said.
[[channel.namespace]]
name = "room"
presence = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_subscriber = true
allow_publish_for_anonymous = true

# Only with a token for the channel.
[[channel.namespace]]
name = "priv"
"#;

/// One process with all tiers.
pub fn all_tiers() -> String {
    format!(
        r#"
[node]
anonymous = true
api_key = "{API_KEY}"
uni_websocket = true

[node.token]
hmac_secret = "{HMAC}"

[[proxy.route]]
to = "node"
{CHANNELS}"#
    )
}

pub fn broker() -> String {
    format!("roles = [\"broker\"]\n[broker]\nsecret = \"{BROKER_SECRET}\"\n")
}

pub fn node(broker: SocketAddr) -> String {
    format!(
        r#"
roles = ["node"]

[node]
anonymous = true
api_key = "{API_KEY}"
trusted = ["127.0.0.1/32"]
brokers = ["{broker}"]
broker_secret = "{BROKER_SECRET}"

[node.token]
hmac_secret = "{HMAC}"
{CHANNELS}"#
    )
}

/// A proxy in front of these nodes or app servers, sticky by the query's `key`.
pub fn proxy(upstream: &str, servers: &[SocketAddr]) -> String {
    let servers: Vec<_> = servers.iter().map(|s| format!("\"{s}\"")).collect();
    format!(
        r#"
roles = ["proxy"]

[proxy.upstream.{upstream}]
servers = [{}]

[[proxy.route]]
to = "{upstream}"
sticky = {{ by = "query", name = "key" }}
"#,
        servers.join(", ")
    )
}

/// A connection or subscription token as a backend would sign it.
pub fn jwt(claims: &Value) -> String {
    jwt_by(HMAC, claims)
}

/// Written out, so that no library that the node shares could be wrong on both sides.
pub fn jwt_by(secret: &str, claims: &Value) -> String {
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let body = format!("{}.{}", part(br#"{"alg":"HS256","typ":"JWT"}"#), part(claims.to_string().as_bytes()));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), body.as_bytes());
    format!("{body}.{}", part(signature.as_ref()))
}

/// Seconds since 1970, from now.
pub fn in_seconds(seconds: u64) -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() + seconds
}

/// The source tree.
pub fn repo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_owned()
}
