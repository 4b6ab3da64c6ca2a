//! What clients see: connect, subscribe, publish, recover, presence, history.

use super::*;
use crate::testing::Faults;

#[tokio::test]
async fn a_message_from_one_client_to_another_on_another_node() {
    let twin = Twin::default();
    let (a, b) = (Server::attached_to(&twin, |_| {}), Server::attached_to(&twin, |_| {}));
    let (mut ann, mut bob) = (a.client("ann").await, b.client("bob").await);
    let sub = bob.subscribe("open:c").await;
    assert_eq!((&sub["recoverable"], &sub["positioned"]), (&json!(true), &json!(true)));
    assert_eq!(bob.hear().await["push"]["join"]["info"]["user"], "bob", "its own, after the reply");
    let reply = ann.ask(json!({"id": 5, "publish": {"channel": "open:c", "data": {"text": "hi"}}})).await;
    assert_eq!(reply, json!({"id": 5, "publish": {}}));
    let push = bob.hear().await;
    assert_eq!(push["push"]["channel"], "open:c");
    let publication = &push["push"]["pub"];
    assert_eq!(publication["data"], json!({"text": "hi"}));
    assert_eq!(publication["offset"], 1);
    assert_eq!(publication["epoch"], sub["epoch"]);
    assert_eq!(publication["info"]["user"], "ann");

    let presence = ann.ask(json!({"id": 6, "presence": {"channel": "open:c"}})).await;
    let members = presence["presence"]["presence"].as_object().unwrap();
    assert_eq!(members.values().map(|m| &m["user"]).collect::<Vec<_>>(), ["bob"]);
    let stats = ann.ask(json!({"id": 7, "presence_stats": {"channel": "open:c"}})).await;
    assert_eq!(stats["presence_stats"], json!({"num_clients": 1, "num_users": 1}));
    let history = ann.ask(json!({"id": 8, "history": {"channel": "open:c", "limit": -1}})).await;
    assert_eq!(history["history"]["publications"][0]["data"]["text"], "hi");
    let top = ann.ask(json!({"id": 9, "history": {"channel": "open:c"}})).await;
    assert_eq!(top["history"], json!({"publications": [], "epoch": sub["epoch"], "offset": 1}));

    // Gone with the connection, and told to those who stay.
    ann.subscribe("open:c").await;
    drop(bob);
    loop {
        let push = ann.hear().await;
        if push["push"]["leave"]["info"]["user"] == "bob" {
            break;
        }
    }
}

#[tokio::test]
async fn a_client_that_comes_back_gets_what_it_missed() {
    let server = Server::start(|_| {});
    let mut client = server.client("").await;
    let sub = client.subscribe("stream:c").await;
    assert_eq!(sub, json!({}));
    let positioned = json!({"channel": "stream:d", "positioned": true, "recoverable": true});
    let sub = client.ask(json!({"id": 3, "subscribe": positioned})).await["subscribe"].clone();
    assert_eq!(sub["offset"], Value::Null, "zero is left out");
    drop(client);
    for n in 1..=5 {
        let answer = server.api("publish", json!({"channel": "stream:d", "data": n})).await;
        assert_eq!(answer["result"]["offset"], n);
    }
    let mut client = server.open("/connection/websocket").await;
    let recover = json!({"channel": "stream:d", "recoverable": true, "recover": true, "epoch": sub["epoch"], "offset": 2});
    let frame = format!("{}\n{}", json!({"id": 1, "connect": {}}), json!({"id": 2, "subscribe": recover}));
    client.say(frame).await;
    assert!(client.hear().await["connect"].is_object());
    let reply = client.hear().await["subscribe"].clone();
    assert_eq!(
        (&reply["recovered"], &reply["was_recovering"], &reply["offset"]),
        (&json!(true), &json!(true), &json!(2))
    );
    let missed: Vec<_> =
        reply["publications"].as_array().unwrap().iter().map(|p| p["data"].clone()).collect();
    assert_eq!(missed, [3, 4, 5]);
    server.api("publish", json!({"channel": "stream:d", "data": 6})).await;
    assert_eq!(client.publication().await, 6);
}

#[tokio::test]
async fn while_the_broker_is_away_connections_stay_and_errors_are_temporary() {
    let server = Server::start(|_| {});
    let mut client = server.client("").await;
    client.subscribe("plain:c").await;
    server.bus.set(Faults { down: true, ..Faults::default() });
    assert!(!server.health.is_ready());
    for command in [
        json!({"id": 3, "publish": {"channel": "plain:c", "data": 1}}),
        json!({"id": 4, "subscribe": {"channel": "plain:new"}}),
        json!({"id": 5, "presence": {"channel": "open:c"}}),
    ] {
        let reply = client.ask(command).await;
        assert_eq!(
            (&reply["error"]["code"], &reply["error"]["temporary"]),
            (&json!(100), &json!(true)),
            "{reply}"
        );
    }
    let api = server.api("publish", json!({"channel": "plain:c", "data": 1})).await;
    assert_eq!(api["error"]["code"], 100);
    server.bus.set(Faults::default());
    assert!(server.health.is_ready());
    client.say(json!({"id": 6, "publish": {"channel": "plain:c", "data": 2}})).await;
    let both = [client.hear().await, client.hear().await];
    assert!(both.iter().any(|m| m["publish"] == json!({})), "{both:?}");
    assert!(both.iter().any(|m| m["push"]["pub"]["data"] == 2), "{both:?}");
    assert_eq!(server.metric("weir_node_errors_total"), 3.0);
}

#[tokio::test]
async fn a_listening_client() {
    let server = Server::start(|_| {});
    let connect = "%7B%22subs%22:%7B%22plain:c%22:%7B%7D%7D%7D";
    let mut by_url = server.open(&format!("/connection/uni_websocket?cf_connect={connect}")).await;
    let mut by_message = server.open("/connection/uni_websocket").await;
    by_message.say(json!({"subs": {"plain:c": {}}})).await;
    for client in [&mut by_url, &mut by_message] {
        let hello = client.hear().await;
        assert!(hello["connect"]["subs"]["plain:c"].is_object(), "{hello}");
    }
    server.api("publish", json!({"channel": "plain:c", "data": [1]})).await;
    for client in [&mut by_url, &mut by_message] {
        assert_eq!(client.hear().await, json!({"channel": "plain:c", "pub": {"data": [1]}}));
    }
    by_url.say("whatever").await;
    server.drain.begin();
    assert_eq!(by_url.hear().await["disconnect"]["code"], 3001);
    assert_eq!(by_url.close_code().await, 3001);
}

#[tokio::test]
async fn a_token_that_is_refreshed_and_one_that_is_not() {
    let server = Server::start(|c| c.expired_grace = Duration::from_millis(300));
    let now = crate::conn::now().unix;
    let connect =
        |exp: i64| json!({"id": 1, "connect": {"token": token(SECRET, &json!({"sub": "u", "exp": exp}))}});
    let mut kept = server.open("/connection/websocket").await;
    assert_eq!(kept.ask(connect(now + 2)).await["connect"]["expires"], true);
    let fresh = token(SECRET, &json!({"sub": "u", "exp": now + 100}));
    let reply = kept.ask(json!({"id": 2, "refresh": {"token": fresh}})).await;
    assert_eq!(reply["refresh"]["expires"], true, "{reply}");
    let mut left = server.open("/connection/websocket").await;
    left.ask(connect(now + 2)).await;
    assert_eq!(left.close_code().await, 3005);
    assert_eq!(kept.ask(json!({"id": 3, "rpc": {}})).await["error"]["code"], 108, "still there");
}
