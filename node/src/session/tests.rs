//! The rules of the protocol, one by one, without a socket.

use super::*;
use crate::auth::tests::{conf, token};
use crate::namespaces::tests::channels;
use crate::protocol::json::{self, Lines};
use serde_json::{Value, json};
use weir_wire::envelope::{Member, Position, Publication};
use weir_wire::id::Epoch;

const UNIX: i64 = 1_800_000_000;
const SECRET: &str = "secret";

struct Fixture {
    session: Session,
    now: Now,
    /// Answers calls by itself, as a hub without trouble would.
    helpful: bool,
    tickets: u64,
}

fn settings() -> Settings {
    Settings {
        namespaces: Namespaces::new(&channels(), 255),
        auth: Auth::new(&conf(SECRET)).unwrap(),
        anonymous: true,
        channels_per_client: 3,
        history_limit: 300,
        piece_size: 1000,
        reply_size: 10_000,
        ping_interval: Duration::from_secs(25),
        pong_timeout: Duration::from_secs(8),
        stale_timeout: Duration::from_secs(10),
        expired_grace: Duration::from_secs(25),
    }
}

impl Fixture {
    fn with(settings: Settings, kind: Kind, chance: f64) -> Fixture {
        let now = Now { at: Instant::now(), unix: UNIX };
        let conf = crate::rates::tests::conf(20.0, 0.0);
        let rates = Arc::new(crate::rates::Rates::new(&conf, 1, now.at));
        let meter = Arc::new(rates.meter());
        let session = Session::new(Arc::new(settings), kind, false, "me".into(), meter, chance, now);
        Fixture { session, now, helpful: true, tickets: 0 }
    }

    fn new() -> Fixture {
        Fixture::with(settings(), Kind::Bidi, 0.0)
    }

    /// Connected as `user`; empty: without a token.
    fn connected(user: &str) -> Fixture {
        let mut f = Fixture::new();
        let connect = match user {
            "" => json!({"id": 1, "connect": {}}),
            user => json!({"id": 1, "connect": {"token": token(SECRET, &json!({"sub": user}))}}),
        };
        let said = f.say(&connect.to_string());
        assert!(said[0].contains("\"connect\""), "{said:?}");
        f
    }

    /// What is answered to a frame, in words: JSON for replies and pushes, otherwise a name.
    fn say(&mut self, frame: &str) -> Vec<String> {
        self.session.on_frame(Commands::Json(Lines::new(Bytes::copy_from_slice(frame.as_bytes()))));
        self.hear()
    }

    fn hear(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        while let Some(action) = self.session.poll_action(self.now) {
            said.extend(self.word(action));
        }
        said
    }

    fn word(&mut self, action: Action) -> Option<String> {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Some(match action {
            Action::Reply(reply) => text(json::reply(&reply)),
            Action::Push(push) => text(json::push(&push, crate::protocol::Format::Json)),
            Action::Ping => "ping".into(),
            Action::Call(call) if self.helpful => {
                let result = self.answer(call);
                self.session.on_call_done(self.now, result);
                return None;
            }
            Action::Call(call) => format!("call {call:?}"),
            Action::GoLive(live) => format!("live {}", live.channel),
            Action::Drop { channel } => format!("drop {channel}"),
            Action::DropAll => "drop all".into(),
            Action::Connected | Action::TokenRefused(_) | Action::RateRefused(_) => return None,
            Action::Close(close) => format!("close {}", close.code),
        })
    }

    fn answer(&mut self, call: Call) -> CallResult {
        let top = Position { epoch: Epoch(0xe), offset: 7 };
        match call {
            Call::Register { .. } => CallResult::Registered(true),
            Call::Subscribe(call) => {
                self.tickets += 1;
                CallResult::Subscribed(Ok(Subscribed {
                    channel: call.channel.as_str().into(),
                    ticket: self.tickets,
                    position: call.stream.map(|_| top),
                    publications: vec![],
                    behind: None,
                    recovered: call.since.is_some(),
                }))
            }
            Call::Leave { .. } => CallResult::Left,
            Call::Publish(_) => CallResult::Published(Ok(())),
            Call::Presence { .. } => CallResult::Presence(Ok(vec![])),
            Call::PresenceStats { .. } => CallResult::PresenceStats(Ok(Default::default())),
            Call::History { .. } => {
                CallResult::History(Ok(weir_wire::envelope::History { top, publications: vec![] }))
            }
        }
    }

    fn pass(&mut self, seconds: u64) -> Vec<String> {
        self.now.at += Duration::from_secs(seconds);
        self.now.unix += seconds as i64;
        self.session.on_timeout(self.now);
        self.hear()
    }

    fn error(&mut self, frame: &str) -> u64 {
        let said = self.say(frame);
        let value: Value = serde_json::from_str(&said[0]).unwrap_or_else(|_| panic!("{frame}: {said:?}"));
        assert_eq!(said.len(), 1, "exactly one reply: {said:?}");
        value["error"]["code"].as_u64().unwrap_or(0)
    }

    fn subscribe(&mut self, channel: &str) {
        let said = self.say(&json!({"id": 90, "subscribe": {"channel": channel}}).to_string());
        assert!(
            said.len() == 2 && said[0].contains("\"subscribe\"") && said[1].starts_with("live"),
            "{said:?}"
        );
    }
}

fn sub_token(claims: Value) -> String {
    token(SECRET, &claims)
}

#[test]
fn c1_5_breaches_close_with_their_code() {
    // (connected first?, frame, close code)
    let cases = [
        (false, r#"{"id":1,"subscribe":{"channel":"plain:a"}}"#, 3501),
        (false, "{}", 3501),
        (false, r#"{"id":0,"connect":{}}"#, 3501),
        (false, "nonsense", 3501),
        (false, "", 3501),
        (false, r#"{"id":1,"connect":{"token":"bad"}}"#, 3500),
        (true, r#"{"id":2,"connect":{}}"#, 3501),
        (true, r#"{"subscribe":{"channel":"plain:a"}}"#, 3501),
        (true, r#"{"id":2}"#, 3501),
        (true, r#"{"id":2,"future":{}}"#, 3501),
        (true, r#"{"send":{"data":1}}"#, 3508),
        (true, r#"{"id":5,"send":{"data":1}}"#, 3508),
        (true, r#"{"id":2,"subscribe":{}}"#, 3501),
        (true, r#"{"id":2,"publish":{"data":1}}"#, 3501),
        (true, r#"{"id":2,"history":{"channel":""}}"#, 3501),
        (true, "{}", 3501),
        (true, "{\"id\":2,\"rpc\":{}}\nx", 3501),
        (true, r#"{"id":2,"refresh":{"token":"bad"}}"#, 3500),
    ];
    for (first, frame, code) in cases {
        let mut f = if first { Fixture::connected("") } else { Fixture::new() };
        let said = f.say(frame);
        assert_eq!(said.last(), Some(&format!("close {code}")), "{frame}: {said:?}");
        assert!(f.say_after_close().is_empty(), "nothing after a close");
    }
}

impl Fixture {
    fn say_after_close(&mut self) -> Vec<String> {
        self.say(r#"{"id":9,"rpc":{}}"#)
    }
}

#[test]
fn c1_5_and_c1_10_refusals_are_replies() {
    let long = "x".repeat(256);
    let cases = [
        (r#"{"id":2,"ping":{}}"#.to_owned(), 108),
        (r#"{"id":2,"rpc":{"method":"x","data":{}}}"#.to_owned(), 108),
        (format!(r#"{{"id":2,"subscribe":{{"channel":"{long}"}}}}"#), 107),
        (r#"{"id":2,"subscribe":{"channel":"ä"}}"#.to_owned(), 107),
        (r#"{"id":2,"subscribe":{"channel":"nope:a"}}"#.to_owned(), 102),
        (r#"{"id":2,"subscribe":{"channel":"closed"}}"#.to_owned(), 103),
        (r#"{"id":2,"publish":{"channel":"nope:a","data":1}}"#.to_owned(), 102),
        (r#"{"id":2,"publish":{"channel":"closed","data":1}}"#.to_owned(), 103),
        (r#"{"id":2,"publish":{"channel":"plain:a","data":1}}"#.to_owned(), 103),
        (r#"{"id":2,"publish":{"channel":"open:a"}}"#.to_owned(), 107),
        (r#"{"id":2,"publish":{"channel":"open:a","data":null}}"#.to_owned(), 0),
        (r#"{"id":2,"presence":{"channel":"plain:a"}}"#.to_owned(), 108),
        (r#"{"id":2,"presence_stats":{"channel":"plain:a"}}"#.to_owned(), 108),
        (r#"{"id":2,"presence":{"channel":"open:a"}}"#.to_owned(), 0),
        (r#"{"id":2,"history":{"channel":"plain:a"}}"#.to_owned(), 108),
        (r#"{"id":2,"history":{"channel":"stream:a"}}"#.to_owned(), 103),
        (
            r#"{"id":2,"history":{"channel":"open:a","reverse":true,"since":{"offset":0,"epoch":""}}}"#
                .to_owned(),
            107,
        ),
        (r#"{"id":2,"history":{"channel":"open:a","since":{"offset":1,"epoch":"other"}}}"#.to_owned(), 112),
        (
            r#"{"id":2,"history":{"channel":"open:a","since":{"offset":1,"epoch":"000000000000000e"}}}"#
                .to_owned(),
            0,
        ),
        (r#"{"id":2,"sub_refresh":{"channel":"open:a","token":"x"}}"#.to_owned(), 103),
        (r#"{"id":2,"unsubscribe":{"channel":"open:a"}}"#.to_owned(), 0),
    ];
    for (frame, code) in cases {
        let mut f = Fixture::connected("");
        assert_eq!(f.error(&frame), code, "{frame}");
        assert_eq!(f.error(r#"{"id":3,"rpc":{}}"#), 108, "the connection lives on after {frame}");
    }
}

#[test]
fn connect_and_subscribe_in_one_frame_are_answered_in_order() {
    let mut f = Fixture::new();
    let said = f.say("{\"id\":1,\"connect\":{\"name\":\"js\"}}\n{\"id\":2,\"subscribe\":{\"channel\":\"open:a\",\"flag\":1}}\n");
    assert_eq!(
        said,
        [
            format!(r#"{{"id":1,"connect":{{"client":"me","version":"{}","ping":25,"pong":true}}}}"#, env!("CARGO_PKG_VERSION")),
            r#"{"id":2,"subscribe":{"recoverable":true,"epoch":"000000000000000e","offset":7,"positioned":true}}"#.into(),
            "live open:a".into(),
        ]
    );
}

#[test]
fn one_call_at_a_time_and_the_rest_of_the_frame_waits() {
    let mut f = Fixture::connected("");
    f.helpful = false;
    let said = f.say("{\"id\":2,\"subscribe\":{\"channel\":\"plain:a\"}}\n{\"id\":3,\"rpc\":{}}");
    assert!(said.len() == 1 && said[0].starts_with("call Subscribe"), "{said:?}");
    assert!(f.session.is_busy() && f.hear().is_empty());
    let failed = CallResult::Subscribed(Err(ErrorCode::INTERNAL));
    f.session.on_call_done(f.now, failed);
    let said = f.hear();
    assert!(
        said[0].contains(r#""id":2,"error":{"code":100"#) && said[0].contains("\"temporary\":true"),
        "{said:?}"
    );
    assert!(said[1].contains(r#""id":3,"error":{"code":108"#), "{said:?}");
    assert!(!f.session.is_busy());
}

#[test]
fn connect_outcomes() {
    let mut closed = settings();
    closed.anonymous = false;
    assert_eq!(Fixture::with(closed, Kind::Bidi, 0.0).say(r#"{"id":1,"connect":{}}"#), ["close 3501"]);

    let connect = |claims: Value| json!({"id": 1, "connect": {"token": token(SECRET, &claims)}}).to_string();
    for (claims, code) in [
        (json!({"sub": "1", "exp": UNIX}), 109),
        (json!({"sub": "1", "exp": UNIX + 60, "expire_at": UNIX - 1}), 110),
        (json!({"sub": "1", "channels": ["nope:x"]}), 102),
    ] {
        let mut f = Fixture::new();
        let said = f.say(&connect(claims));
        assert!(said.last().unwrap().contains(&format!("\"code\":{code}")), "{said:?}");
        assert_eq!(f.say(r#"{"id":2,"rpc":{}}"#), ["close 3501"], "unusable after a refused connect");
        let mut f = Fixture::new();
        f.say(&connect(json!({"sub": "1", "exp": UNIX})));
        assert_eq!(f.pass(10), ["close 3502"], "stale after a refused connect");
    }
    let mut f = Fixture::new();
    let said = f.say(&connect(json!({"sub": "42", "exp": UNIX + 60})));
    assert!(said[0].contains(r#""expires":true,"ttl":60"#), "{said:?}");
    assert_eq!(&*f.session.who().user, "42");

    let mut f = Fixture::new();
    f.helpful = false;
    f.say(r#"{"id":1,"connect":{}}"#);
    f.session.on_call_done(f.now, CallResult::Registered(false));
    assert_eq!(f.hear(), ["close 3504"]);
}

#[test]
fn a_token_brings_server_side_subscriptions_and_recovers_them() {
    let mut f = Fixture::new();
    let claims = json!({"sub": "42", "channels": ["open:a"], "subs": {"stream:b": {"data": {"x": 1},
        "override": {"force_recovery": {"value": true}}}}});
    let frame = json!({"id": 1, "connect": {"token": token(SECRET, &claims), "subs": {
        "open:a": {"recover": true, "epoch": "000000000000000e", "offset": 7}, "gone:c": {"recover": true}}}});
    let said = f.say(&frame.to_string());
    let reply: Value = serde_json::from_str(&said[0]).unwrap();
    let subs = &reply["connect"]["subs"];
    assert_eq!(subs.as_object().unwrap().len(), 2, "{said:?}");
    assert_eq!(subs["open:a"]["recovered"], true);
    assert_eq!(subs["stream:b"]["data"]["x"], 1);
    assert_eq!(subs["stream:b"]["recoverable"], true);
    assert_eq!(said[1..], ["live open:a", "live stream:b"]);
    assert_eq!(f.error(r#"{"id":2,"subscribe":{"channel":"open:a"}}"#), 105);
    // Its place in a stream lost: a server-side subscription costs the connection.
    f.session.on_event(Event::Insufficient { channel: "open:a".into(), ticket: 1 });
    assert_eq!(f.hear(), ["close 3010"]);
    // More of them than a client may have.
    let many = json!({"sub": "42", "channels": ["open:a", "open:b", "open:c", "open:d"]});
    let mut f = Fixture::new();
    assert_eq!(
        f.say(&json!({"id": 1, "connect": {"token": token(SECRET, &many)}}).to_string()),
        ["close 3505"]
    );
}

#[test]
fn subscribe_permissions_in_their_order() {
    let subscribe = |channel: &str, token: &str| {
        json!({"id": 2, "subscribe": {"channel": channel, "token": token}}).to_string()
    };
    let good = |channel: &str| sub_token(json!({"sub": "42", "channel": channel}));
    let mut f = Fixture::connected("42");
    // User-limited channels, private channels, and tokens where nothing else allows it.
    for (channel, token, code) in [
        ("open:x#41,42", "", 0),
        ("open:x#41,4", "", 103),
        ("$open:p", "", 103),
        ("$closed", &good("$closed"), 0),
        ("closed", "garbage", 103),
        ("closed", &sub_token(json!({"sub": "42", "channel": "closed", "exp": UNIX - 1})), 109),
        (
            "closed",
            &sub_token(json!({"sub": "42", "channel": "closed", "exp": UNIX + 9, "expire_at": 5})),
            110,
        ),
        ("closed", &good("closed"), 0),
        ("plain:one too many", "", 106),
        ("closed", "", 105),
    ] {
        let said = f.say(&subscribe(channel, token));
        let reply: Value = serde_json::from_str(&said[0]).unwrap();
        assert_eq!(reply["error"]["code"].as_u64().unwrap_or(0), code, "{channel}: {said:?}");
    }
    for claims in [
        json!({"sub": "42", "channel": "other"}),
        json!({"sub": "41", "channel": "closed"}),
        json!({"sub": "42", "channel": "closed", "client": "other"}),
    ] {
        let mut f = Fixture::connected("42");
        assert_eq!(f.say(&subscribe("closed", &sub_token(claims.clone()))), ["close 3500"], "{claims}");
    }
    assert_eq!(Fixture::connected("").error(&subscribe("open:x#", "")), 103, "an empty name is nobody's");
}

#[test]
fn positions_are_given_to_who_may_have_them() {
    let mut f = Fixture::connected("");
    let said = f.say(r#"{"id":2,"subscribe":{"channel":"stream:a"}}"#);
    assert_eq!(said[0], r#"{"id":2,"subscribe":{}}"#, "not asked for");
    let said = f.say(r#"{"id":3,"subscribe":{"channel":"stream:b","positioned":true}}"#);
    assert_eq!(said[0], r#"{"id":3,"subscribe":{"epoch":"000000000000000e","offset":7,"positioned":true}}"#);
    f.helpful = false;
    let said = f.say(r#"{"id":4,"subscribe":{"channel":"open:c","recover":true,"epoch":"000000000000000e","offset":4,"flag":2}}"#);
    assert!(
        said[0].contains("since: Some(Since") && said[0].contains("reject_unrecovered: true"),
        "{said:?}"
    );
    let publication = Publication { offset: 5, data: Bytes::from_static(b"1"), info: None, tags: vec![] };
    let subscribed = Subscribed {
        channel: "open:c".into(),
        ticket: 9,
        position: Some(Position { epoch: Epoch(0xe), offset: 4 }),
        publications: vec![publication],
        behind: None,
        recovered: true,
    };
    f.session.on_call_done(f.now, CallResult::Subscribed(Ok(subscribed)));
    assert_eq!(
        f.hear()[0],
        r#"{"id":4,"subscribe":{"recoverable":true,"epoch":"000000000000000e","offset":4,"publications":[{"data":1,"offset":5}],"recovered":true,"positioned":true,"was_recovering":true}}"#
    );
}

#[test]
fn a_publication_says_who_made_it() {
    let mut f = Fixture::new();
    let t = token(SECRET, &json!({"sub": "42", "info": {"n": 1}}));
    f.say(&json!({"id": 1, "connect": {"token": t}}).to_string());
    let st = sub_token(json!({"sub": "42", "channel": "plain:a", "info": "chan"}));
    f.say(&json!({"id": 2, "subscribe": {"channel": "plain:a", "token": st}}).to_string());
    f.helpful = false;
    f.say(r#"{"id":3,"publish":{"channel":"plain:a","data":{"x": 1}}}"#.trim());
    let Some(Waiting::Publish { id: 3 }) = f.session.waiting else { panic!("subscribers may publish") };
    let who = f.session.who().info(f.session.subs.get("plain:a").unwrap().info.clone());
    assert_eq!(
        (who.user.as_str(), &who.conn_info[..], &who.chan_info[..]),
        ("42", &b"{\"n\":1}"[..], &b"\"chan\""[..])
    );
}

#[test]
fn unsubscribe_stops_pushes_before_its_reply() {
    let mut f = Fixture::connected("");
    f.subscribe("open:a");
    assert_eq!(
        f.say(r#"{"id":2,"unsubscribe":{"channel":"open:a"}}"#),
        ["drop open:a", r#"{"id":2,"unsubscribe":{}}"#]
    );
    f.subscribe("open:a");
}

#[test]
fn pings_pongs_and_who_misses_them() {
    let mut f = Fixture::with(settings(), Kind::Bidi, 0.5);
    f.say(r#"{"id":1,"connect":{}}"#);
    let first = f.session.next_timeout().unwrap() - f.now.at;
    assert_eq!(first, Duration::from_millis(18_750), "between half the interval and the whole");
    assert_eq!(f.pass(19), ["ping"]);
    assert!(f.say("{}").is_empty(), "a pong gets no answer");
    assert_eq!(f.pass(25), ["ping"]);
    assert!(f.pass(7).is_empty());
    assert_eq!(f.pass(1), ["close 3012"]);

    // What we did not read we cannot miss.
    let mut f = Fixture::connected("");
    f.helpful = false;
    f.say(r#"{"id":2,"presence":{"channel":"open:a"}}"#);
    assert_eq!(f.pass(13), ["ping"]);
    assert!(f.pass(8).is_empty(), "busy: the pong may be there, unread");
    f.session.on_call_done(f.now, CallResult::Presence(Ok(vec![])));
    f.hear();
    assert_eq!(f.pass(8), ["close 3012"]);
    // One that answers nothing.
    let mut f = Fixture::connected("");
    f.pass(13);
    assert_eq!(f.say("{}\n{}"), ["close 3501"]);
}

#[test]
fn stale_and_expired() {
    let mut f = Fixture::new();
    assert!(f.pass(9).is_empty());
    assert_eq!(f.pass(1), ["close 3502"]);

    let connect = |exp: i64| {
        json!({"id": 1, "connect": {"token": token(SECRET, &json!({"sub": "42", "exp": exp}))}}).to_string()
    };
    let mut f = Fixture::new();
    f.session.settings = Arc::new(Settings { ping_interval: Duration::ZERO, ..settings() });
    f.say(&connect(UNIX + 60));
    assert!(f.pass(84).is_empty(), "within the grace");
    let refresh = |claims: Value| json!({"id": 2, "refresh": {"token": token(SECRET, &claims)}}).to_string();
    let said = f.say(&refresh(json!({"sub": "42", "exp": f.now.unix + 30})));
    assert!(
        said[0].contains(r#""refresh":{"client":"me""#) && said[0].contains(r#""expires":true,"ttl":30"#),
        "{said:?}"
    );
    assert!(f.pass(54).is_empty());
    assert_eq!(f.pass(1), ["close 3005"]);

    for (claims, code) in [
        (json!({"sub": "41", "exp": UNIX + 90}), 3500),
        (json!({"sub": "42", "exp": UNIX - 1}), 3005),
        (json!({"sub": "42", "exp": UNIX + 90, "channels": ["open:new"]}), 3010),
    ] {
        let mut f = Fixture::connected("42");
        assert_eq!(f.say(&refresh(claims.clone())), [format!("close {code}")], "{claims}");
    }
}

#[test]
fn a_subscription_runs_out_unless_refreshed() {
    let mut f = Fixture::connected("42");
    f.session.settings = Arc::new(Settings { ping_interval: Duration::ZERO, ..settings() });
    f.session.timers = Timers::new(f.now.at);
    let st = |exp: i64| sub_token(json!({"sub": "42", "channel": "closed", "exp": exp}));
    let said =
        f.say(&json!({"id": 2, "subscribe": {"channel": "closed", "token": st(UNIX + 10)}}).to_string());
    assert!(said[0].contains(r#""expires":true,"ttl":10"#), "{said:?}");
    f.pass(30);
    let refresh = |t: String| json!({"id": 3, "sub_refresh": {"channel": "closed", "token": t}}).to_string();
    assert_eq!(f.error(&refresh(st(UNIX))), 109);
    assert_eq!(f.say(&refresh(st(f.now.unix + 10))), [r#"{"id":3,"sub_refresh":{"expires":true,"ttl":10}}"#]);
    assert!(f.pass(34).is_empty());
    assert_eq!(
        f.pass(1),
        ["drop closed", r#"{"push":{"channel":"closed","unsubscribe":{"code":2501,"reason":"expired"}}}"#]
    );
    assert_eq!(Fixture::connected("42").error(&refresh(st(UNIX + 9))), 103, "not subscribed");
}

#[test]
fn lost_places_and_orders_of_the_backend() {
    let mut f = Fixture::connected("42");
    f.subscribe("open:a");
    f.session.on_event(Event::Insufficient { channel: "open:a".into(), ticket: 99 });
    assert!(f.hear().is_empty(), "of an earlier subscription");
    f.session.on_event(Event::Insufficient { channel: "open:a".into(), ticket: 1 });
    assert_eq!(
        f.hear(),
        [
            "drop open:a",
            r#"{"push":{"channel":"open:a","unsubscribe":{"code":2500,"reason":"insufficient state"}}}"#
        ]
    );
    let order = ServerSubscribe {
        channel: "open:b".into(),
        info: Bytes::new(),
        data: Bytes::from_static(b"{}"),
        since: None,
        expire_at: 0,
    };
    f.session.on_event(Event::Subscribe(Box::new(order)));
    assert_eq!(
        f.hear(),
        [
            r#"{"push":{"channel":"open:b","subscribe":{"recoverable":true,"epoch":"000000000000000e","offset":7,"positioned":true,"data":{}}}}"#,
            "live open:b"
        ]
    );
    f.session.on_event(Event::Unsubscribe { channel: "open:b".into() });
    assert_eq!(
        f.hear(),
        [
            "drop open:b",
            r#"{"push":{"channel":"open:b","unsubscribe":{"code":2000,"reason":"server unsubscribe"}}}"#
        ]
    );
    f.session.on_event(Event::Refresh { expired: false, expire_at: UNIX + 40, info: Bytes::new() });
    assert_eq!(f.hear(), [r#"{"push":{"refresh":{"expires":true,"ttl":40}}}"#]);
    f.session.on_event(Event::Disconnect(Close::custom(4500, "bye")));
    assert_eq!(f.hear(), ["close 4500"]);
}

#[test]
fn a_disconnect_does_not_wait_for_a_call() {
    let mut f = Fixture::connected("");
    f.helpful = false;
    f.say(r#"{"id":2,"presence":{"channel":"open:a"}}"#);
    f.session.on_event(Event::Disconnect(Close::SHUTDOWN));
    assert_eq!(f.hear(), ["close 3001"]);
    let member = Member { info: Default::default(), listed: true, announced: false };
    f.session.on_call_done(f.now, CallResult::Presence(Ok(vec![member])));
    assert!(f.hear().is_empty());
}

#[test]
fn a_listening_client_gets_pushes_and_closes() {
    let uni = |text: &str| {
        let mut f = Fixture::with(settings(), Kind::Uni, 0.0);
        f.session.on_connect_request(f.now, json::connect_request(text.as_bytes()));
        let said = f.hear();
        (f, said)
    };
    let (mut f, said) = uni(r#"{"subs":{"open:a":{},"plain:b":{}}}"#);
    assert!(said[0].contains(r#"{"connect":{"client":"me""#) && !said[0].contains("\"ping\""), "{said:?}");
    assert_eq!(said[1..], ["live open:a", "live plain:b"]);
    f.session.on_connect_request(f.now, Err(Malformed));
    assert!(f.hear().is_empty(), "what it says later is of no interest");
    f.session.close(Close::SHUTDOWN);
    assert_eq!(
        f.hear(),
        [r#"{"push":{"disconnect":{"code":3001,"reason":"shutdown","reconnect":true}}}"#, "close 3001"]
    );
    for (request, code) in [
        ("junk", 3501),
        (r#"{"subs":{"closed":{}}}"#, 3507),
        (r#"{"subs":{"nope:x":{}}}"#, 3004),
        (r#"{"subs":{"open:1":{},"open:2":{},"open:3":{},"open:4":{}}}"#, 3505),
    ] {
        assert_eq!(uni(request).1.last(), Some(&format!("close {code}")), "{request}");
    }
    let expired = json!({"token": token(SECRET, &json!({"exp": UNIX - 1}))}).to_string();
    assert_eq!(uni(&expired).1.last().map(String::as_str), Some("close 3005"));
}
