//! What operators ask of the broker of this process, where it is in a cluster.

use serde_json::Value;
use weir_broker::Control;
use weir_core::admin::verbs::Failure;

pub fn is_verb(verb: &str) -> bool {
    verb == "broker" || verb.starts_with("broker/")
}

pub async fn call(broker: Option<&Control>, verb: &str, order: &Value) -> Result<Value, Failure> {
    let Some(broker) = broker else {
        return Err(Failure::unknown("this process has no broker that is part of a cluster (broker.peers)"));
    };
    let done = match verb.strip_prefix("broker/").unwrap_or_default() {
        "" => return Ok(broker.status().await),
        "shards" => return Ok(broker.shards()),
        "bootstrap" => broker.bootstrap().await,
        "join" => broker.join(text(order, "seed")?).await,
        "leave" => broker.leave().await,
        "drain" => broker.drain().await,
        "move" => broker.hand(shard(order)?, text(order, "to")?).await,
        "give_up" => broker.give_up(shard(order)?).await,
        other => return Err(Failure::unknown(format!("a broker knows no {other:?}"))),
    };
    done.map_err(Failure::refused)
}

fn text<'a>(order: &'a Value, key: &str) -> Result<&'a str, Failure> {
    order[key].as_str().ok_or_else(|| Failure::bad(format!("{key}: a text is needed")))
}

fn shard(order: &Value) -> Result<u16, Failure> {
    let shard = order["shard"].as_u64().and_then(|n| u16::try_from(n).ok());
    shard.ok_or_else(|| Failure::bad("shard: a number is needed"))
}
