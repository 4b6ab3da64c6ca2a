//! What a client may ask for in a second, on every way on which it can ask.

use super::webtransport::PATH;
use super::*;
use crate::rates::tests::conf as rates;

/// Nobody waits for a bucket here: one is left in a hundred thousand seconds, and two come at once.
fn few(conf: &mut weir_conf::node::Node) {
    conf.rate = rates(0.00001, 0.0);
    conf.rate.connection.commands = None;
    conf.channels_per_client = 2;
}

fn ask(id: u32, what: &str) -> Value {
    match what {
        "publications" => json!({"id": id, "publish": {"channel": "open:c", "data": id}}),
        "rpcs" => json!({"id": id, "rpc": {"method": "m"}}),
        "reads" if id.is_multiple_of(3) => json!({"id": id, "presence": {"channel": "open:c"}}),
        "reads" if id % 3 == 1 => json!({"id": id, "presence_stats": {"channel": "open:c"}}),
        "reads" => json!({"id": id, "history": {"channel": "open:c", "limit": 1}}),
        "new_channels" => json!({"id": id, "subscribe": {"channel": format!("plain:{id}")}}),
        "commands" => json!({"id": id, "refresh": {"token": ""}}),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn each_kind_has_a_rate_in_single_frames_and_in_batches() {
    for what in ["publications", "rpcs", "reads", "new_channels"] {
        for batch in [false, true] {
            let server = Server::start(few);
            let mut client = server.client("u").await;
            client.subscribe("open:c").await;
            let commands: Vec<String> = (10..16).map(|id| ask(id, what).to_string()).collect();
            match batch {
                true => client.say(commands.join("\n")).await,
                false => {
                    for command in &commands {
                        client.say(command).await;
                    }
                }
            }
            let (mut taken, mut refused) = (0, 0);
            while taken + refused < 6 {
                let message = client.hear().await;
                match (message["id"].is_u64(), message["error"]["code"].as_u64()) {
                    (true, Some(111)) => {
                        assert_eq!(message["error"]["temporary"], true);
                        refused += 1;
                    }
                    (true, _) => taken += 1,
                    _ => {}
                }
            }
            // The channel that it is in was one, and a subscription.
            let (all, kind) = if what == "new_channels" { (1, "subscribes") } else { (1, what) };
            assert_eq!((taken, refused), (all, 6 - all), "{what}, in one frame: {batch}");
            assert_eq!(server.metric_with("weir_node_rate_refusals_total", kind), 5.0, "{what}");
        }
    }
}

/// One client that asks for names: the rest is refused, and the node keeps what it gave.
#[tokio::test]
async fn names_have_a_rate_and_names_that_others_have_none() {
    let server = Server::start(|c| {
        few(c);
        c.rate.connection.subscribes = None;
        c.channels_per_client = 3;
    });
    let mut owner = server.client("owner").await;
    for n in 0..3 {
        owner.ask(json!({"id": 5, "subscribe": {"channel": format!("plain:owned{n}")}})).await;
    }
    let mut client = server.client("u").await;
    let mut refused = 0;
    for n in 0..50 {
        for channel in [format!("plain:new{n}"), format!("plain:owned{}", n % 3)] {
            let reply = client.ask(json!({"id": 7, "subscribe": {"channel": channel}})).await;
            refused += u32::from(reply["error"]["code"] == 111);
            client.ask(json!({"id": 8, "unsubscribe": {"channel": channel}})).await;
        }
    }
    assert_eq!(refused, 47);
    assert_eq!(server.metric_with("weir_node_rate_refusals_total", "new_channels"), 47.0);
    assert!(server.metric("weir_node_channels") <= 6.0);
}

#[tokio::test]
async fn who_goes_on_is_closed_with_3013_and_others_are_not() {
    let server = Server::start(|c| {
        few(c);
        c.rate.connection.commands = Some(Rate { per_second: 0.001 });
    });
    let mut other = server.client("").await;
    other.subscribe("plain:c").await;
    let flood: Vec<String> = (10..400).map(|id| ask(id, "publications").to_string()).collect();
    let mut client = server.client("u").await;
    client.say(flood.join("\n")).await;
    assert_eq!(client.close_code().await, 3013);
    let mut session = server.session(PATH, "plain:c").await;
    session.say(flood.join("\n")).await;
    let mut last = Value::Null;
    while let Some(line) = session.line().await {
        last = serde_json::from_str(&line).unwrap();
    }
    assert_eq!(last["push"]["disconnect"]["code"], 3013, "{last}");
    // Who only listens has nothing to say.
    let mut uni = server.open("/connection/uni_websocket").await;
    uni.say(json!({})).await;
    assert!(uni.hear().await["connect"].is_object());
    for _ in 0..200 {
        if uni.ws.send(Message::text("x")).await.is_err() {
            break;
        }
    }
    assert_eq!(uni.close_code().await, 3013);
    server.api("publish", json!({"channel": "plain:c", "data": 3})).await;
    assert_eq!(other.publication().await, 3);
}

/// Many subscriptions within one connect command are as many.
#[tokio::test]
async fn subscriptions_of_a_connect_command_count() {
    let server = Server::start(|c| {
        few(c);
        c.rate.burst = Duration::from_millis(1);
    });
    let subs =
        |n: usize| (0..n).map(|n| (format!("plain:{n}"), json!({}))).collect::<serde_json::Map<_, _>>();
    let mut uni = server.open("/connection/uni_websocket").await;
    uni.say(json!({"subs": subs(2)})).await;
    assert_eq!(uni.hear().await["connect"]["subs"].as_object().map(serde_json::Map::len), Some(2));
    // A user's are one for all his connections.
    let server = Server::start(|c| {
        c.rate = rates(0.0, 0.00001);
        c.rate.user.commands = None;
        c.channels_per_client = 2;
    });
    let claims = json!({"sub": "bob", "channels": ["plain:1", "plain:2"]});
    let connect = json!({"id": 1, "connect": {"token": token(SECRET, &claims)}});
    let mut first = server.open("/connection/websocket").await;
    assert!(first.ask(connect.clone()).await["connect"].is_object());
    let mut second = server.open("/connection/websocket").await;
    assert_eq!(second.ask(connect).await["error"]["code"], 111);
    assert_eq!(server.metric_with("weir_node_rate_refusals_total", "user"), 1.0);
}
