//! The servers of the proxy's upstreams, as an operator sees and sets them.

use serde_json::{Value, json};
use weir_core::admin::verbs::Failure;
use weir_proxy::{Control, ServerState, ServerStatus};

/// `{"app": [{"server": …}, …]}`
pub fn list(proxy: &Control) -> Value {
    let all = proxy.upstreams().into_iter();
    all.map(|(name, servers)| (name, servers.iter().map(shown).collect::<Value>())).collect()
}

fn shown(server: &ServerStatus) -> Value {
    json!({
        "server": &*server.name,
        "entry": &*server.entry,
        "state": server.state.as_str(),
        "healthy": server.healthy,
        "breaker": server.breaker.as_str(),
        "open": server.open,
        "handshakes": server.handshakes,
        "weight": server.weight,
        "share": server.share,
        "last_failure": server.last_failure.map(|(cause, ago)| json!({ "cause": cause, "ago_s": ago.as_secs() })),
    })
}

/// `{"upstream": "app", "server": "10.0.0.3:3000", "state": "draining"}`. Of a server that is down the
/// tunnels go, at the pace of `[proxy.drain]`; that is not waited for.
pub fn set(proxy: &Control, order: &Value) -> Result<Value, Failure> {
    let text = |key: &str| {
        order.get(key).and_then(Value::as_str).ok_or_else(|| Failure::bad(format!("{key}: is missing")))
    };
    let (upstream, server) = (text("upstream")?, text("server")?);
    let state = match text("state")? {
        "up" => ServerState::Up,
        "draining" => ServerState::Draining,
        "down" => ServerState::Down,
        _ => return Err(Failure::bad("state: accepted: \"up\", \"draining\", \"down\"")),
    };
    let Some(found) = proxy.set_server(upstream, server, state) else {
        let known: Vec<String> = proxy.upstreams().into_keys().collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(Failure::unknown(format!("there is no upstream {upstream:?}; known are {known}")));
    };
    let servers = found.map_err(|error| Failure::unknown(error.to_string()))?;
    if state == ServerState::Down {
        for server in &servers {
            let (proxy, upstream, server) = (proxy.clone(), upstream.to_owned(), server.clone());
            tokio::spawn(async move {
                let told = proxy.drain_tunnels(&upstream, Some(&server)).await;
                tracing::info!(upstream, %server, told, "the tunnels of a server that is down were sent away");
            });
        }
    }
    let names: Vec<&str> = servers.iter().map(|name| &**name).collect();
    Ok(json!({ "servers": names, "state": state.as_str() }))
}
