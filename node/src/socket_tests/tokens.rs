//! Bad tokens on every way in: none of them is believed anywhere, and those that are only out of their time lead a
//! client to another one.

use super::webtransport::PATH;
use super::*;
use crate::auth::tests::{SECRET as SIGNS, bad_tokens};
use std::time::{SystemTime, UNIX_EPOCH};

fn unix() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

fn server() -> Server {
    Server::start(|conf| {
        conf.token.hmac_secret = Secret::new(SIGNS.into());
        (conf.token.audience, conf.token.issuer) = ("weir".into(), "app".into());
    })
}

fn good() -> Value {
    json!({"sub": "42", "aud": "weir", "iss": "app", "exp": unix() + 600})
}

fn with(mut claims: Value, key: &str, value: Value) -> Value {
    claims[key] = value;
    claims
}

/// The code of the error, or else of the close, that a token gets in place of what it is for.
async fn connect(server: &Server, token: &str) -> u64 {
    let mut client = server.open("/connection/websocket").await;
    outcome(&mut client, json!({"id": 1, "connect": {"token": token}}), "connect").await
}

async fn uni(server: &Server, token: &str) -> u64 {
    let mut client = server.open("/connection/uni_websocket").await;
    outcome(&mut client, json!({"token": token}), "push").await
}

async fn webtransport(server: &Server, token: &str) -> u64 {
    let mut client = server.session_with(PATH, 1 << 16).await;
    client.say(json!({"id": 1, "connect": {"token": token}})).await;
    let said = client.hear().await;
    code_of(&said).or_else(|| said["push"]["disconnect"]["code"].as_u64()).unwrap_or(0)
}

async fn connected(server: &Server) -> Client {
    let mut client = server.open("/connection/websocket").await;
    let fresh = token(SIGNS, &good());
    assert_eq!(outcome(&mut client, json!({"id": 1, "connect": {"token": fresh}}), "connect").await, 0);
    client
}

async fn refresh(server: &Server, token: &str) -> u64 {
    outcome(&mut connected(server).await, json!({"id": 2, "refresh": {"token": token}}), "refresh").await
}

async fn subscribe(server: &Server, token: &str) -> u64 {
    let wish = json!({"id": 2, "subscribe": {"channel": "closed", "token": token}});
    outcome(&mut connected(server).await, wish, "subscribe").await
}

async fn sub_refresh(server: &Server, bad: &str) -> u64 {
    let mut client = connected(server).await;
    let fresh = token(SIGNS, &with(good(), "channel", json!("closed")));
    let wish = json!({"id": 2, "subscribe": {"channel": "closed", "token": fresh}});
    assert_eq!(outcome(&mut client, wish, "subscribe").await, 0);
    let again = json!({"id": 3, "sub_refresh": {"channel": "closed", "token": bad}});
    outcome(&mut client, again, "sub_refresh").await
}

fn code_of(said: &Value) -> Option<u64> {
    said["error"]["code"].as_u64()
}

/// 0: it was good.
async fn outcome(client: &mut Client, command: Value, good: &str) -> u64 {
    client.ws.send(Message::Text(command.to_string().into())).await.unwrap();
    match client.next().await {
        Some(Message::Text(text)) => {
            let said: Value = serde_json::from_str(&text).unwrap();
            assert!(code_of(&said).is_some() || !said[good].is_null() || good == "push", "{said}");
            code_of(&said).unwrap_or(0)
        }
        Some(Message::Close(Some(close))) => u64::from(u16::from(close.code)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn no_bad_token_is_believed_anywhere() {
    let server = server();
    for (name, token) in bad_tokens(&good()) {
        // No token at all is nobody, where that is allowed.
        if token.is_empty() {
            continue;
        }
        assert_eq!(connect(&server, &token).await, 3500, "connect: {name}");
        assert_eq!(uni(&server, &token).await, 3500, "uni_websocket: {name}");
        assert_eq!(webtransport(&server, &token).await, 3500, "WebTransport: {name}");
        assert_eq!(refresh(&server, &token).await, 3500, "refresh: {name}");
    }
    let of_channel = with(good(), "channel", json!("closed"));
    for (name, token) in bad_tokens(&of_channel) {
        if token.is_empty() || name == "a channel claim" {
            continue;
        }
        assert_eq!(subscribe(&server, &token).await, 103, "subscribe: {name}");
        assert_eq!(sub_refresh(&server, &token).await, 3500, "sub_refresh: {name}");
    }
}

/// 109 has SDKs fetch another token; 3005 has them come back, and then fetch one.
#[tokio::test]
async fn a_token_out_of_its_time_leads_to_another_one() {
    let server = server();
    for (claim, at, late) in [
        ("exp", -1, true),
        ("nbf", 60, false),
        ("iat", 60, false),
        ("nbf", 3, false),
        ("iat", 3, false),
        ("exp", 30, false),
    ] {
        let name = format!("{claim} = now + {at}");
        let fresh = at < 10 && claim != "exp" || at == 30;
        let claims = with(good(), claim, json!(unix() + at));
        let want = |code: u64| if fresh { 0 } else { code };
        let of_channel = token(SIGNS, &with(claims.clone(), "channel", json!("closed")));
        let token = token(SIGNS, &claims);
        assert_eq!(connect(&server, &token).await, want(109), "connect: {name}");
        assert_eq!(uni(&server, &token).await, want(3005), "uni_websocket: {name}");
        assert_eq!(webtransport(&server, &token).await, want(109), "WebTransport: {name}");
        assert_eq!(refresh(&server, &token).await, want(if late { 3005 } else { 109 }), "refresh: {name}");
        assert_eq!(subscribe(&server, &of_channel).await, want(109), "subscribe: {name}");
        assert_eq!(sub_refresh(&server, &of_channel).await, want(109), "sub_refresh: {name}");
    }
    // Temporary: without that SDKs would give up, as the token that they showed was just fetched.
    let mut client = connected(&server).await;
    let early = token(SIGNS, &with(good(), "nbf", json!(unix() + 60)));
    client
        .ws
        .send(Message::Text(json!({"id": 2, "refresh": {"token": early}}).to_string().into()))
        .await
        .unwrap();
    let Some(Message::Text(said)) = client.next().await else { panic!("a reply") };
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((said["error"]["code"].as_u64(), &said["error"]["temporary"]), (Some(109), &json!(true)));
}
