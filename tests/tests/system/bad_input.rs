//! Nothing that a client sends stops a process: a bad frame ends one connection, with a code that says why.

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use weir_tests::http::{self, raw};
use weir_tests::systems::Embedded;
use weir_tests::unique;

#[tokio::test]
async fn each_bad_frame_has_its_code_and_ends_its_connection_only() {
    let weir = Embedded::start().await;
    let mut witness = weir.client().connect().await;
    let cases: [(&str, Message, u16); 7] = [
        ("no JSON", Message::text("{"), 3501),
        ("an array", Message::text("[]"), 3501),
        ("no text", Message::text(""), 3501),
        ("an unknown command", Message::text(r#"{"id":7,"explode":{}}"#), 3501),
        ("a command without id", Message::text(r#"{"subscribe":{"channel":"a"}}"#), 3501),
        ("a second connect", Message::text(r#"{"id":7,"connect":{}}"#), 3501),
        ("nested beyond reason", Message::text("[".repeat(50_000)), 3501),
    ];
    for (what, frame, code) in cases {
        let mut client = weir.client().connect().await;
        client.raw(frame).await;
        let close = client.expect_close().await;
        assert_eq!(close.0, code, "{what}: {close:?}");
        witness.fence().await;
    }
    assert!(weir.process.metric("weir_node_disconnects_total", &["3501"]).await >= 6.0);
    assert!(weir.process.metric("weir_node_panics_total", &[]).await < 1.0, "{}", weir.process.log());
}

#[tokio::test]
async fn a_command_before_connect_is_3501() {
    let weir = Embedded::start().await;
    let mut client = weir.client().open().await;
    client.send(json!({"id": 1, "subscribe": {"channel": unique("chat:")}})).await;
    assert_eq!(client.expect_close().await.0, 3501);
}

#[tokio::test]
async fn who_never_connects_is_3502() {
    let weir = Embedded::start_with(&[("node.stale_timeout", "300ms")]).await;
    let mut client = weir.client().open().await;
    assert_eq!(client.expect_close().await.0, 3502);
}

#[tokio::test]
async fn no_http_is_400_and_the_proxy_lives_on() {
    let weir = Embedded::start().await;
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /connection/websocket HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ] {
        let response = raw(weir.proxy(), bytes).await;
        assert_eq!(response.status, 400, "{}: {response:?}", String::from_utf8_lossy(bytes));
    }
    weir.client().connect().await.fence().await;
}

#[tokio::test]
async fn the_api_says_what_is_wrong() {
    let weir = Embedded::start().await;
    let api = weir.api();
    assert_eq!(api.post("publish", "{").await.status, 400);
    assert_eq!(api.post("no_such_method", "{}").await.status, 404);
    assert_eq!(api.post("publish", &"x".repeat(600_000)).await.status, 413);
    let wrong = http::Api { addr: api.addr, key: "wrong".to_owned() };
    assert_eq!(wrong.post("publish", r#"{"channel":"chat:a","data":1}"#).await.status, 401);
    let unknown = api.call("publish", &json!({"channel": "no-such-namespace:a", "data": 1})).await;
    assert_eq!(unknown["error"]["code"], 102);
}
