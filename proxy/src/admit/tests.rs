//! What passes on from one conf to the next, and what is given back.

use super::gate::{Admitted, AtGate};
use super::*;
use crate::testing::conf;
use http::request::Parts;
use weir_conf::proxy::{Admission, Proxy, Route, RouteLimits, Sticky};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn admit(change: impl FnOnce(&mut Proxy)) -> (Admit, Proxy) {
    let mut conf = conf();
    change(&mut conf);
    (Admit::new(&conf, &Metrics::default()).unwrap(), conf)
}

fn rate(per_second: f64) -> Option<Rate> {
    Some(Rate { per_second })
}

fn head(fields: &[(&'static str, &str)]) -> Parts {
    let mut builder = http::Request::get("/ws");
    for (name, value) in fields {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap().into_parts().0
}

struct Client {
    ip: &'static str,
    websocket: bool,
    fields: Vec<(&'static str, &'static str)>,
}

const WS: Client = Client { ip: "1.1.1.1", websocket: true, fields: Vec::new() };

async fn ask(admit: &Admit, route: &Route, client: &Client) -> Result<Admitted, &'static str> {
    let address = ip(client.ip);
    let mut head = head(&client.fields);
    let sticky = |head: &Parts, _claims: Option<&serde_json::Map<String, serde_json::Value>>| {
        head.headers.get("x-user").map(|user| user.as_bytes().to_vec())
    };
    let asked = AtGate { head: &mut head, client: address, websocket: client.websocket, sticky: &sticky };
    admit.gate(route).admit(admit, asked).await.map_err(|refused| refused.cause)
}

fn by_header() -> Route {
    Route { sticky: Sticky::Header("x-user".into()), ..conf().route[0].clone() }
}

#[test]
fn counts_are_exact_given_back_and_pass_on() {
    let (admit, mut conf) = admit(|c| {
        c.max_connections = 2;
        c.max_connections_per_ip = 1;
    });
    let a = admit.connection().unwrap();
    let _b = admit.connection().unwrap();
    assert!(admit.connection().is_err() && admit.connection().is_err());
    drop(a);
    drop(admit.connection().unwrap());
    let first = admit.address(ip("2001:db8::1")).unwrap();
    assert!(admit.address(ip("2001:db8::2")).is_err(), "its /64 is one client");
    let _elsewhere = admit.address(ip("2001:db8:0:1::3")).unwrap();
    conf.max_connections = 1;
    let next = admit.renew(&conf, &Metrics::default()).unwrap();
    assert!(next.connection().is_err() && next.address(ip("2001:db8::2")).is_err());
    drop(first);
    drop(next.address(ip("2001:db8::2")).unwrap());
    assert_eq!(next.lasting.total.get(), 1);
}

#[test]
fn deny_goes_over_allow_and_nothing_listed_is_everybody() {
    let range = |text: &str| Cidr { addr: ip(text), prefix: 8 };
    let (open, _) = admit(|_| {});
    assert!(open.listed(ip("9.9.9.9")).is_ok());
    let (listed, _) = admit(|c| {
        c.allow = vec![range("10.0.0.0"), range("11.0.0.0")];
        c.deny = vec![Cidr { addr: ip("10.9.0.0"), prefix: 16 }];
    });
    for (address, want) in [
        ("10.1.1.1", true),
        ("11.1.1.1", true),
        ("::ffff:10.1.1.1", true),
        ("10.9.1.1", false),
        ("9.9.9.9", false),
    ] {
        assert_eq!(listed.listed(ip(address)).is_ok(), want, "{address}");
    }
}

#[tokio::test]
async fn a_route_counts_by_itself_by_address_and_by_key() {
    let mut route = by_header();
    route.limits.max_connections = 3;
    route.limits.max_connections_per_ip = 2;
    route.limits.max_connections_per_key = 1;
    let (admit, _) = admit(|c| c.route = vec![route.clone()]);
    let user = |ip, name| Client { ip, fields: vec![("x-user", name)], ..WS };
    let ann = ask(&admit, &route, &user("1.1.1.1", "ann")).await.unwrap();
    assert_eq!(ask(&admit, &route, &user("2.2.2.2", "ann")).await.err(), Some("connections_per_key"));
    let bob = ask(&admit, &route, &user("1.1.1.1", "bob")).await.unwrap();
    assert_eq!(ask(&admit, &route, &user("1.1.1.1", "eve")).await.err(), Some("route_connections_per_ip"));
    let eve = ask(&admit, &route, &user("2.2.2.2", "eve")).await.unwrap();
    assert_eq!(ask(&admit, &route, &user("3.3.3.3", "dan")).await.err(), Some("route_connections"));
    drop(ann);
    // Without a key of its own a client's key is its address: its whole /64.
    let first = ask(&admit, &route, &Client { ip: "2001:db8::1", ..WS }).await.unwrap();
    drop(bob);
    assert_eq!(
        ask(&admit, &route, &Client { ip: "2001:db8::2", ..WS }).await.err(),
        Some("connections_per_key")
    );
    drop((eve, first));
    assert!(admit.routes[&gate::identity(&route)].is_empty(), "all given back");
}

#[tokio::test]
async fn who_is_refused_later_gets_back_what_was_taken_before() {
    let mut route = by_header();
    route.limits = RouteLimits { key_rate: rate(0.01), key_burst: 2, ..RouteLimits::default() };
    route.limits.handshake_rate = rate(0.01);
    route.limits.handshake_burst = 1;
    let (admit, _) = admit(|c| c.route = vec![route.clone()]);
    let user = |ip| Client { ip, fields: vec![("x-user", "ann")], ..WS };
    ask(&admit, &route, &user("1.1.1.1")).await.unwrap();
    for _ in 0..5 {
        assert_eq!(ask(&admit, &route, &user("1.1.1.1")).await.err(), Some("route_rate"));
    }
    ask(&admit, &route, &user("2.2.2.2")).await.unwrap();
    assert_eq!(ask(&admit, &route, &user("3.3.3.3")).await.err(), Some("key_rate"));
    let state = &admit.routes[&gate::identity(&route)];
    assert!(state.is_empty(), "places of refused handshakes are given back, too");
}

#[tokio::test]
async fn other_requests_have_a_rate_of_their_own() {
    let mut route = conf().route[0].clone();
    route.limits = RouteLimits { request_rate: rate(0.01), request_burst: 1, ..RouteLimits::default() };
    let (admit, _) = admit(|c| c.route = vec![route.clone()]);
    let plain = Client { websocket: false, ..WS };
    ask(&admit, &route, &plain).await.unwrap();
    assert_eq!(ask(&admit, &route, &plain).await.err(), Some("request_rate"));
    ask(&admit, &route, &WS).await.unwrap();
}

#[tokio::test]
async fn a_reload_gives_nobody_a_fresh_burst_unless_the_setting_changed() {
    let mut route = conf().route[0].clone();
    route.limits = RouteLimits { request_rate: rate(0.01), request_burst: 1, ..RouteLimits::default() };
    let (admit, mut conf) = admit(|c| {
        c.route = vec![route.clone()];
        c.handshake_rate = rate(0.01);
        c.handshake_burst = 1;
        c.admission = Admission {
            rate: rate(0.01),
            burst: 1,
            max_handshakes: 0,
            max_share_per_ip: 0.5,
            wait: Duration::ZERO,
        };
    });
    let plain = Client { websocket: false, ..WS };
    ask(&admit, &route, &WS).await.unwrap();
    ask(&admit, &route, &plain).await.unwrap();
    // Something else changes.
    conf.head_size = 2048;
    let same = admit.renew(&conf, &Metrics::default()).unwrap();
    assert_eq!(ask(&same, &route, &WS).await.err(), Some("rate"));
    assert_eq!(ask(&same, &route, &Client { ip: "2.2.2.2", ..WS }).await.err(), Some("budget"));
    assert_eq!(ask(&same, &route, &plain).await.err(), Some("request_rate"));
    conf.handshake_burst = 2;
    conf.admission.burst = 2;
    let changed = same.renew(&conf, &Metrics::default()).unwrap();
    ask(&changed, &route, &WS).await.unwrap();
}

#[tokio::test]
async fn the_budget_costs_nobody_his_handshakes_and_the_line_is_as_long_as_the_quota() {
    let (admit, conf) = admit(|c| {
        c.handshake_rate = rate(0.01);
        c.handshake_burst = 3;
        c.admission = Admission {
            rate: rate(1.0),
            burst: 1,
            max_handshakes: 0,
            max_share_per_ip: 0.5,
            wait: Duration::ZERO,
        };
    });
    let route = &conf.route[0];
    ask(&admit, route, &Client { ip: "9.9.9.9", ..WS }).await.unwrap();
    for _ in 0..3 {
        assert_eq!(ask(&admit, route, &WS).await.err(), Some("budget"));
    }
    for _ in 0..50 {
        assert_eq!(ask(&admit, route, &WS).await.err(), Some("rate"), "it can't fill the ledger");
    }
    assert_eq!(ask(&admit, route, &Client { ip: "2.2.2.2", ..WS }).await.err(), Some("budget"));
    // The budget is there again, and so are all three handshakes.
    let later = admit.renew(&conf, &Metrics::default()).unwrap();
    for _ in 0..3 {
        let now = Instant::now();
        assert!(later.handshakes.as_ref().unwrap().take(later.key(ip("1.1.1.1")), now).is_ok());
    }
}

#[tokio::test]
async fn handshakes_under_way_are_capped_and_given_back() {
    let (admit, conf) = admit(|c| {
        c.admission = Admission {
            rate: None,
            burst: 1,
            max_handshakes: 1,
            max_share_per_ip: 0.5,
            wait: Duration::ZERO,
        };
    });
    let route = &conf.route[0];
    let first = ask(&admit, route, &WS).await.unwrap();
    assert_eq!(ask(&admit, route, &WS).await.err(), Some("budget_handshakes"));
    drop(first.handshake);
    ask(&admit, route, &WS).await.unwrap();
}

#[test]
fn requests_under_way_count_by_address_and_in_total() {
    let (admit, mut conf) = admit(|c| {
        c.max_requests = 3;
        c.max_requests_per_ip = 2;
    });
    let cause = |admit: &Admit, address| admit.request(address).map_err(|r| (r.status, r.cause)).err();
    let one = Some(ip("2001:db8::1"));
    let _first = admit.request(one).unwrap();
    let second = admit.request(Some(ip("2001:db8::2"))).unwrap();
    assert_eq!(cause(&admit, one), Some((429, "requests_per_ip")), "its /64 is one client");
    // Who speaks for many has no number of its own.
    let _third = admit.request(None).unwrap();
    assert_eq!(cause(&admit, None), Some((503, "requests")));
    assert_eq!(cause(&admit, Some(ip("1.1.1.1"))), Some((503, "requests")));
    drop(second);
    drop(admit.request(one).unwrap());
    // They pass on to the next conf, which counts to another number.
    conf.max_requests_per_ip = 1;
    let next = admit.renew(&conf, &Metrics::default()).unwrap();
    assert_eq!(cause(&next, one), Some((429, "requests_per_ip")));
    drop(next.request(Some(ip("1.1.1.1"))).unwrap());
}

#[test]
fn few_descriptors_lower_all_numbers_alike() {
    let conf = conf();
    let most = |budget| {
        let Most { connections, connections_per_ip, requests, requests_per_ip } = Most::of(&conf, budget);
        [connections, connections_per_ip, requests, requests_per_ip]
    };
    let usual =
        [conf.max_connections, conf.max_connections_per_ip, conf.max_requests, conf.max_requests_per_ip];
    assert_eq!(most(usize::MAX), usual);
    for budget in [100, 1_000, 10_000] {
        let few = most(budget);
        assert!(few[0] + few[2] <= budget, "{few:?}");
        // No address gets more of it than of many.
        assert!(few[1] * usual[0] <= usual[1] * (few[0] + 1) && few[3] * usual[2] <= usual[3] * (few[2] + 1));
    }
    let off = weir_conf::proxy::Proxy { max_connections_per_ip: 0, max_requests: 0, ..conf.clone() };
    let few = Most::of(&off, 1_000);
    assert_eq!((few.connections_per_ip, few.requests), (0, 0), "no limit stays none");
}

/// Whatever the source calls a cause has its key, or breaks a rule of a protocol.
#[test]
fn each_refusal_names_its_key() {
    let sources =
        [include_str!("../admit.rs"), include_str!("gate.rs"), include_str!("../token.rs")].concat();
    let mut causes = Vec::new();
    for begin in [
        "Refused::full(\"",
        "Refused::forbidden(\"",
        "too_many(\"",
        "too_fast(\"",
        "cause: \"",
        "later(\"",
        "now, \"",
    ] {
        let named = sources.split(begin).skip(1).filter_map(|rest| rest.split('"').next());
        causes.extend(named.map(str::to_owned));
    }
    assert!(causes.len() > 15, "{causes:?}");
    for cause in causes {
        assert!(!refused::key(&cause).is_empty(), "{cause} names no key");
    }
}
