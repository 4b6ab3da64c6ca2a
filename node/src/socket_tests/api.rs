//! The server HTTP API.

use super::*;

#[tokio::test]
async fn who_may_call_and_what_is_no_call() {
    let server = Server::start(|_| {});
    let good = json!({"channel": "plain:c", "data": {}}).to_string();
    let long = format!("\"{}\"", "x".repeat(11_000));
    let key = [("X-API-Key", KEY)];
    let authorization = format!("apikey {KEY}");
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str, u16);
    let cases: &[Case<'_>] = &[
        ("/api/publish", &[], &good, 401),
        ("/api/publish", &[("X-API-Key", "other")], &good, 401),
        ("/api/publish", &[("X-API-Key", "")], &good, 401),
        ("/api/publish", &[("Authorization", "bearer x")], &good, 401),
        ("/api/publish", &key, &good, 200),
        ("/api/publish", &[("Authorization", &authorization)], &good, 200),
        ("/api/publish?api_key=the%20api%20key", &[], &good, 200),
        ("/api/publish", &key, "{", 400),
        ("/api/publish", &key, "[]", 400),
        ("/api/publish", &key, r#"{"channel":7}"#, 400),
        ("/api/publish", &key, &long, 413),
        ("/api/nothing", &key, "{}", 404),
        ("/api", &key, r#"{"method":"publish","params":{"channel":"plain:c","data":1}}"#, 200),
        ("/api", &key, r#"{"params":{}}"#, 400),
    ];
    for (path, headers, body, status) in cases {
        let (got, text) = server.post(path, headers, body).await;
        assert_eq!(got, *status, "{path} {headers:?}: {text}");
    }
    let (status, ..) = server
        .raw(&format!("GET /api/info HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-API-Key: {KEY}\r\n\r\n"))
        .await;
    assert_eq!(status, 405);
    let off = Server::start(|c| c.api_key = Secret::default());
    assert_eq!(off.post("/api/publish", &[("X-API-Key", "")], &good).await.0, 404);
}

#[tokio::test]
async fn errors_have_codes_and_on_wish_statuses() {
    let server = Server::start(|_| {});
    let cases = [
        ("publish", json!({"channel": "nope:c", "data": 1}), 102, 404),
        ("publish", json!({"channel": "plain:c"}), 107, 400),
        ("publish", json!({"data": 1}), 107, 400),
        ("publish", json!({"channel": "plain:c", "b64data": "bm9wZQ=="}), 107, 400),
        ("broadcast", json!({"channels": [], "data": 1}), 107, 400),
        ("presence", json!({"channel": "plain:c"}), 108, 400),
        ("presence_stats", json!({"channel": "plain:c"}), 108, 400),
        ("history", json!({"channel": "plain:c"}), 108, 400),
        ("history_remove", json!({"channel": "plain:c"}), 108, 400),
        ("history", json!({"channel": "open:c", "since": {"offset": 1, "epoch": "x"}}), 112, 416),
        ("disconnect", json!({}), 107, 400),
        ("disconnect", json!({"user": "1", "disconnect": {"code": 1000}}), 107, 400),
        ("subscribe", json!({"user": "1", "channel": "nope:c"}), 102, 404),
        ("rpc", json!({}), 108, 400),
    ];
    for (method, params, code, status) in cases {
        assert_eq!(server.api(method, params.clone()).await["error"]["code"], code, "{method} {params}");
        let headers = [("X-API-Key", KEY), ("X-Centrifugo-Error-Mode", "transport")];
        let (got, _) = server.post(&format!("/api/{method}"), &headers, &params.to_string()).await;
        assert_eq!(got, status, "{method} {params}");
    }
}

#[tokio::test]
async fn publish_broadcast_and_what_is_kept() {
    let server = Server::start(|_| {});
    let mut client = server.client("").await;
    client.subscribe("open:a").await;
    client.subscribe("plain:b").await;
    let params = json!({"channel": "open:a", "b64data": "eyJ4IjoxfQ==", "tags": {"k": "v"}, "idempotency_key": "once"});
    let first = server.api("publish", params.clone()).await;
    assert_eq!(first["result"]["offset"], 1);
    assert_eq!(server.api("publish", params).await, first, "a repeat is the first");
    let push = loop {
        let push = client.hear().await;
        if push["push"]["pub"].is_object() {
            break push["push"]["pub"].clone();
        }
    };
    assert_eq!(
        (&push["data"], &push["tags"], &push["info"]),
        (&json!({"x": 1}), &json!({"k": "v"}), &Value::Null)
    );

    let pretty = "{\"channels\": [\"open:a\", \"nope:x\", \"plain:b\"],\n \"data\": {\n  \"n\": 1\n }}";
    let (status, body) = server.post("/api/broadcast", &[("X-API-Key", KEY)], pretty).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    let responses = &body["result"]["responses"];
    assert_eq!((status, &responses[0]["result"]["offset"]), (200, &json!(2)));
    assert_eq!((&responses[1]["error"]["code"], &responses[2]["result"]), (&json!(102), &json!({})));
    assert_eq!(client.publication().await, json!({"n": 1}), "one line, whatever it was before");
    assert_eq!(client.publication().await, json!({"n": 1}));

    server.api("publish", json!({"channel": "open:a", "data": "passing", "skip_history": true})).await;
    assert_eq!(client.publication().await, "passing");
    let history = server.api("history", json!({"channel": "open:a", "limit": -1, "reverse": true})).await;
    let offsets: Vec<_> =
        history["result"]["publications"].as_array().unwrap().iter().map(|p| p["offset"].clone()).collect();
    assert_eq!(offsets, [2, 1]);
    assert_eq!(server.api("history_remove", json!({"channel": "open:a"})).await, json!({"result": {}}));
    let history = server.api("history", json!({"channel": "open:a", "limit": -1})).await;
    assert_eq!((&history["result"]["publications"], &history["result"]["offset"]), (&json!([]), &json!(2)));
}

#[tokio::test]
async fn commands_reach_their_connections_on_any_node() {
    let twin = Twin::default();
    let (a, b) = (Server::attached_to(&twin, |_| {}), Server::attached_to(&twin, |_| {}));
    let (mut ann, mut bob) = (b.client("ann").await, b.client("bob").await);
    a.api("subscribe", json!({"user": "ann", "channel": "plain:s", "data": {"why": "so"}})).await;
    assert_eq!(ann.hear().await["push"], json!({"channel": "plain:s", "subscribe": {"data": {"why": "so"}}}));
    a.api("publish", json!({"channel": "plain:s", "data": 1})).await;
    assert_eq!(ann.publication().await, 1);
    a.api("unsubscribe", json!({"user": "ann", "channel": "plain:s"})).await;
    assert_eq!(ann.hear().await["push"]["unsubscribe"]["code"], 2000);
    a.api("refresh", json!({"user": "ann", "expire_at": crate::conn::now().unix + 100})).await;
    assert_eq!(ann.hear().await["push"]["refresh"]["expires"], true);

    ann.subscribe("open:c").await;
    bob.subscribe("open:c").await;
    let presence = a.api("presence", json!({"channel": "open:c"})).await;
    assert_eq!(presence["result"]["presence"].as_object().unwrap().len(), 2);
    let stats = a.api("presence_stats", json!({"channel": "open:c"})).await;
    assert_eq!(stats["result"], json!({"num_clients": 2, "num_users": 2}));
    let channels = a.api("channels", json!({"pattern": "open:*"})).await;
    assert_eq!(channels["result"]["channels"], json!({"open:c": {"num_clients": 2}}));
    let info = a.api("info", json!({})).await;
    let nodes = info["result"]["nodes"].as_array().unwrap();
    assert_eq!(nodes.iter().map(|n| n["num_clients"].as_u64().unwrap()).sum::<u64>(), 2);
    assert_eq!(nodes.iter().map(|n| n["num_subs"].as_u64().unwrap()).sum::<u64>(), 2);
    assert!(nodes.iter().all(|n| n["process"]["rss"].as_u64().unwrap() > 0 && n["name"] == "n1"));

    a.api("disconnect", json!({"user": "ann"})).await;
    assert_eq!(ann.close_code().await, 3503);
    a.api("disconnect", json!({"user": "bob", "disconnect": {"code": 4001, "reason": "later"}})).await;
    assert_eq!(bob.close_code().await, 4001);
}

#[tokio::test]
async fn a_batch_is_answered_in_order() {
    let server = Server::start(|_| {});
    for parallel in [false, true] {
        let commands = json!([
            {"publish": {"channel": "open:b", "data": 1}},
            {"publish": {"channel": "nope:b", "data": 1}},
            {"presence_stats": {"channel": "open:b"}},
            {"nonsense": {}},
            {},
        ]);
        let answer = server.api("batch", json!({"commands": commands, "parallel": parallel})).await;
        let replies = answer["result"]["replies"].as_array().unwrap();
        assert!(replies[0]["publish"]["offset"].is_u64(), "{answer}");
        assert_eq!(replies[1]["error"]["code"], 102);
        assert_eq!(replies[2]["presence_stats"]["num_clients"], 0);
        assert_eq!((&replies[3]["error"]["code"], &replies[4]["error"]["code"]), (&json!(104), &json!(107)));
    }
}
