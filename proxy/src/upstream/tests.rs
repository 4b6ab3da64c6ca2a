//! An upstream without sockets: who is tried, who waits, and what a reload keeps.

use super::attempt::Attempt;
use super::*;
use crate::testing::conf;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;
use weir_conf::proxy::{Balance, Proxy, Upstream as Conf};

fn names(n: u16) -> Vec<String> {
    (1..=n).map(|port| format!("10.0.0.1:{port}")).collect()
}

fn with(of: Conf) -> Proxy {
    let mut conf = conf();
    conf.upstream.insert("app".into(), of);
    conf
}

fn built(conf: &Proxy) -> Arc<Upstream> {
    Upstream::build("app", conf, &Metrics::default(), None).unwrap()
}

fn first(upstream: &Arc<Upstream>, key: &str, now: Instant) -> Result<Attempt, Exhausted> {
    let found = upstream.plan(key.as_bytes(), None).pick(now, &mut None);
    found.map(|attempt| attempt.expect("nobody waits here"))
}

fn home(upstream: &Arc<Upstream>, now: Instant) -> Result<Arc<str>, Exhausted> {
    first(upstream, "key", now).map(|attempt| attempt.name().clone())
}

/// As many successes as close a breaker that is half open.
fn bring_back(upstream: &Arc<Upstream>, now: Instant) {
    for _ in 0..7 {
        first(upstream, "key", now).unwrap().succeed(now);
    }
}

#[test]
fn a_request_walks_on_past_failed_servers_and_comes_back() {
    let conf = Proxy { connect_tries: 2, ..with(Conf::of(names(3))) };
    let upstream = built(&conf);
    let now = Instant::now();
    let at_home = home(&upstream, now).unwrap();

    let mut plan = upstream.plan(b"key", None);
    let mut seen = Vec::new();
    while let Ok(Some(mut attempt)) = plan.pick(now, &mut None) {
        seen.push(attempt.name().clone());
        attempt.fail(now, "refused");
    }
    assert_eq!(seen.len(), 2, "connect_tries counts the first");
    assert!(seen[0] == at_home && seen[1] != at_home);
    assert_eq!(plan.pick(now, &mut None).err().unwrap().cause, "unreachable");

    for _ in 1..conf.breaker.failures {
        first(&upstream, "key", now).unwrap().fail(now, "refused");
    }
    assert_eq!(home(&upstream, now).unwrap(), seen[1], "its breaker is open");
    let later = now + conf.breaker.open_for;
    bring_back(&upstream, later);
    assert_eq!(home(&upstream, later).unwrap(), at_home, "the probes brought it back");
}

#[test]
fn half_open_lets_one_try_and_the_others_go_on() {
    let conf = with(Conf::of(names(2)));
    let upstream = built(&conf);
    let now = Instant::now();
    let at_home = home(&upstream, now).unwrap();
    for _ in 0..conf.breaker.failures {
        first(&upstream, "key", now).unwrap().fail(now, "handshake_timeout");
    }
    let later = now + conf.breaker.open_for;
    let probe = first(&upstream, "key", later).unwrap();
    assert_eq!(*probe.name(), at_home);
    for _ in 0..100 {
        assert_ne!(home(&upstream, later).unwrap(), at_home, "a second probe beside the first");
    }
    drop(probe); // the client left: as if it had never been
    assert_eq!(home(&upstream, later).unwrap(), at_home);
}

#[test]
fn with_every_breaker_open_the_wait_is_told_at_once() {
    let conf = with(Conf::of(names(2)));
    let upstream = built(&conf);
    let now = Instant::now();
    for _ in 0..2 * conf.breaker.failures {
        if let Ok(mut attempt) = first(&upstream, "key", now) {
            attempt.fail(now, "refused");
        }
    }
    let expected = Exhausted { retry_after: conf.breaker.open_for, cause: "breakers_open" };
    assert_eq!(home(&upstream, now).unwrap_err(), expected);
}

#[test]
fn slow_and_bad_answers_count_where_the_conf_says_so() {
    let mut conf = with(Conf::of(names(1)));
    conf.breaker.failure_ratio = 0.0;
    let now = Instant::now();
    let opens = |conf: &Proxy, after: Duration, status| {
        let upstream = built(conf);
        for _ in 0..conf.breaker.failures {
            first(&upstream, "key", now).unwrap().answered(now + after, status);
        }
        home(&upstream, now).is_err()
    };
    let (fast, slow) = (Duration::from_millis(99), Duration::from_millis(101));
    assert!(!opens(&conf, slow, Some(503)) && !opens(&conf, slow, None));
    conf.breaker.slow_handshake = Duration::from_millis(100);
    assert!(opens(&conf, slow, Some(101)) && !opens(&conf, fast, Some(503)));
    conf.breaker.server_errors = true;
    assert!(opens(&conf, fast, Some(503)) && opens(&conf, fast, None) && !opens(&conf, fast, Some(404)));
}

#[test]
fn open_connections_bound_the_load_until_they_end() {
    let upstream = built(&with(Conf { balance: Balance::Hash, load_factor: 1.25, ..Conf::of(names(4)) }));
    let now = Instant::now();
    let (mut held, mut moved) = (Vec::new(), 0);
    for n in 1..=400 {
        let mut attempt = first(&upstream, &format!("user-{n}"), now).unwrap();
        moved += usize::from(attempt.moved());
        attempt.succeed(now);
        held.push(attempt.into_permit().unwrap());
        let most = upstream.status().iter().map(|s| s.open).max().unwrap();
        assert!(most as f64 <= (1.25 * f64::from(n) / 4.0).ceil().max(10.0), "{most} of {n}");
    }
    assert!((1..200).contains(&moved), "{moved} of 400 were moved");
    drop(held);
    assert!(upstream.status().iter().all(|s| s.open == 0));
}

#[test]
fn a_client_that_is_there_is_moved_by_no_load_and_one_that_comes_is_counted() {
    for (load_factor, moves) in [(0.0, false), (1.25, true)] {
        let upstream = built(&with(Conf { load_factor, ..Conf::of(names(2)) }));
        let now = Instant::now();
        let at_home = home(&upstream, now).unwrap();
        let theirs: Vec<String> = (0..)
            .map(|n| format!("user-{n}"))
            .filter(|key| first(&upstream, key, now).unwrap().name() == &at_home)
            .take(100)
            .collect();
        // All that were tried are known for a while.
        let later = now + Duration::from_secs(3600);
        let mut open = vec![first(&upstream, "key", later).unwrap()];
        let mut moved = 0;
        for key in &theirs {
            let attempt = first(&upstream, key, later).unwrap();
            assert_eq!(attempt.moved(), attempt.name() != &at_home, "{key}");
            moved += usize::from(attempt.moved());
            open.push(attempt);
        }
        assert_eq!(moved > 20, moves, "{moved} at {load_factor}");
        assert_eq!(upstream.metrics.upstream_moves.get_or_create(&upstream.labels()).get(), moved as u64);
        // Overloaded or not: its next requests go where its first is, also a while after that has ended.
        for _ in 0..50 {
            assert_eq!(home(&upstream, later).unwrap(), at_home);
        }
        open.remove(0);
        assert_eq!(home(&upstream, later).unwrap(), at_home);
        assert!(open.iter().all(|attempt| attempt.name() == &at_home) != moves);
    }
}

fn ends(ip: &str) -> proxy_protocol::Ends {
    let client = format!("{ip}:1").parse().unwrap();
    proxy_protocol::Ends { client, local: client }
}

/// One that asks at this address.
async fn of_address(upstream: &Arc<Upstream>, ip: &str) -> Result<Attempt, Exhausted> {
    upstream.plan(b"key", None).on_behalf_of(ends(ip)).next().await
}

#[tokio::test(start_paused = true)]
async fn one_address_has_its_share_of_the_places_and_of_the_queue() {
    let changes: [fn(&mut Conf); 2] = [|of| of.max_handshakes = 4, |of| of.max_connections = 4];
    for change in changes {
        let upstream = limited(|of| {
            *of = Conf { queue: 10, ..Conf::of(names(1)) };
            change(of);
        });
        let mut greedy = Vec::new();
        for _ in 0..2 {
            greedy.push(of_address(&upstream, "10.0.0.1").await.unwrap());
        }
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let upstream = upstream.clone();
            waiting.spawn(async move { of_address(&upstream, "10.0.0.1").await.map(|_| ()) });
        }
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        let refused = std::iter::from_fn(|| waiting.try_join_next()).filter(|done| match done {
            Ok(done) => done.is_err_and(|refused| refused.cause == "queue_full"),
            Err(_) => false,
        });
        assert_eq!(refused.count(), 15, "half of the queue is theirs");
        // Others find a place at once, and after two the places are used up.
        let begun = tokio::time::Instant::now();
        let others = [of_address(&upstream, "10.0.0.2").await, of_address(&upstream, "10.0.0.3").await];
        assert!(others.iter().all(Result::is_ok) && begun.elapsed().is_zero());
        let (fourth, upstream_too) = (upstream.clone(), upstream.clone());
        let fourth = tokio::spawn(async move { of_address(&fourth, "10.0.0.4").await.map(|_| ()) });
        tokio::task::yield_now().await;
        assert!(!fourth.is_finished());
        // The greedy one gives a place back: it is the turn of each address, not of four that came before.
        drop(greedy.pop());
        fourth.await.unwrap().unwrap();
        drop((greedy, others));
        while let Some(done) = waiting.join_next().await {
            done.unwrap().unwrap();
        }
        assert!(upstream_too.desk.lock().queue.is_idle());
    }
}

#[test]
fn a_name_that_is_not_found_has_no_servers_until_it_is() {
    let conf = Proxy {
        dns_servers: vec!["127.0.0.1:1".parse().unwrap()],
        ..with(Conf::of(["nowhere.invalid:1", "10.0.0.1:1"]))
    };
    let upstream = built(&conf);
    let names = || upstream.status().into_iter().map(|s| s.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(), ["10.0.0.1:1"]);
    let now = Instant::now();
    assert!(upstream.next_lookup() <= now + AGAIN);
    let addrs = vec!["10.1.1.1".parse().unwrap()];
    upstream.looked_up("nowhere.invalid", Ok(Found { addrs, until: now }), now);
    assert_eq!(names(), ["10.0.0.1:1", "10.1.1.1:1"]);
}

#[test]
fn all_addresses_of_a_name_are_one_try() {
    let conf = Proxy { connect_tries: 1, ..with(Conf::of(["localhost:1", "10.0.0.1:1"])) };
    let upstream = built(&conf);
    let now = Instant::now();
    let addrs = (1..=6).map(|n| std::net::IpAddr::from([10, 1, 1, n])).collect();
    upstream.looked_up("localhost", Ok(Found { addrs, until: now + Duration::from_secs(60) }), now);
    let key = (0..)
        .map(|n| format!("user-{n}"))
        .find(|key| !first(&upstream, key, now).unwrap().name().starts_with("10.0"))
        .unwrap();
    let mut plan = upstream.plan(key.as_bytes(), None);
    let mut seen = BTreeSet::new();
    while let Ok(Some(mut attempt)) = plan.pick(now, &mut None) {
        seen.insert(attempt.name().to_string());
        attempt.fail(now, "refused");
    }
    assert_eq!(seen.len(), 6, "{seen:?}");
    assert!(seen.iter().all(|name| name.starts_with("10.1.1.")));
}

#[test]
fn operators_drain_servers_and_a_reload_keeps_what_they_said() {
    let conf = with(Conf::of(names(3)));
    let metrics = Metrics::default();
    let upstream = Upstream::build("app", &conf, &metrics, None).unwrap();
    let now = Instant::now();
    let at_home = home(&upstream, now).unwrap();
    let mut attempt = first(&upstream, "key", now).unwrap();
    attempt.succeed(now);
    let permit = attempt.into_permit().unwrap();
    for state in [State::Draining, State::Down] {
        assert_eq!(upstream.set_state(&at_home, state).unwrap()[0], at_home);
        assert_ne!(home(&upstream, now).unwrap(), at_home);
    }
    assert!(upstream.set_state("10.0.0.1:99", State::Up).unwrap_err().to_string().contains("10.0.0.1:3"));
    for _ in 0..conf.breaker.failures {
        first(&upstream, "key", now).unwrap().fail(now, "refused");
    }

    let reloaded = Upstream::build("app", &with(Conf::of(names(4))), &metrics, Some(&upstream)).unwrap();
    drop(upstream);
    let servers = reloaded.status();
    let of = |name: &str| servers.iter().find(|s| *s.name == *name).unwrap();
    assert_eq!((of(&at_home).state, of(&at_home).open), (State::Down, 1));
    let open = servers.iter().filter(|s| s.breaker == weir_core::breaker::State::Open).count();
    assert_eq!((servers.len(), open), (4, 1));
    drop(permit);
    reloaded.set_state(&at_home, State::Up).unwrap();
    assert_eq!(reloaded.status().iter().map(|s| s.open).sum::<usize>(), 0);
    assert!(reloaded.status().iter().all(|s| s.state == State::Up));
}

#[test]
fn a_server_that_a_reload_brings_starts_slowly_and_those_before_do_not() {
    let slow = |n| with(Conf { slow_start: Duration::from_secs(3600), ..Conf::of(names(n)) });
    let metrics = Metrics::default();
    let before = Upstream::build("app", &slow(2), &metrics, None).unwrap();
    assert!(before.status().iter().all(|s| s.share == 1.0));
    let after = Upstream::build("app", &slow(3), &metrics, Some(&before)).unwrap();
    let shares: Vec<_> = after.status().into_iter().map(|s| s.share).collect();
    assert_eq!(shares, [1.0, 1.0, 0.1]);
}

#[tokio::test(start_paused = true)]
async fn whatever_comes_and_goes_no_limit_is_passed_and_nobody_is_forgotten() {
    for seed in 1..=20 {
        let upstream = limited(|of| {
            *of = Conf { max_connections: 3, max_handshakes: 2, queue: 1_000, ..Conf::of(names(2)) };
            of.queue_timeout = Duration::from_secs(3600);
        });
        let mut rng = StdRng::seed_from_u64(seed);
        let mut clients = Vec::new();
        for n in 0..200 {
            let leaves = rng.random_bool(0.3);
            let (upstream, mut rng) = (upstream.clone(), StdRng::seed_from_u64(seed * 1_000 + n));
            let client = tokio::spawn(async move {
                for _ in 0..rng.random_range(0..50) {
                    tokio::task::yield_now().await;
                }
                let mut attempt = upstream.plan(&n.to_le_bytes(), None).next().await.unwrap();
                for server in upstream.status() {
                    assert!(server.open <= 3 && server.handshakes <= 2, "seed {seed}: {server:?}");
                }
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..20))).await;
                attempt.succeed(Instant::now());
                let permit = attempt.into_permit();
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..20))).await;
                drop(permit);
            });
            clients.push((client, leaves));
        }
        for (client, leaves) in &clients {
            if *leaves {
                for _ in 0..rng.random_range(0..5) {
                    tokio::task::yield_now().await;
                }
                client.abort();
            }
        }
        let begun = tokio::time::Instant::now();
        for (client, leaves) in clients {
            assert!(leaves || client.await.is_ok(), "seed {seed}");
        }
        // Aborted ones end with the runtime's next turn.
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(begun.elapsed() < Duration::from_secs(60), "seed {seed}: somebody waited in vain");
        assert!(upstream.desk.lock().queue.is_idle(), "seed {seed}");
        assert!(upstream.status().iter().all(|s| s.open == 0 && s.handshakes == 0), "seed {seed}");
    }
}

#[test]
fn with_no_server_up_it_is_said_at_once() {
    let upstream = built(&with(Conf::of(names(2))));
    for server in names(2) {
        upstream.set_state(&server, State::Draining).unwrap();
    }
    assert_eq!(home(&upstream, Instant::now()).unwrap_err().cause, "no_server");
}

#[test]
fn a_server_that_a_client_carries_the_name_of_goes_first() {
    let upstream = built(&with(Conf::of(names(4))));
    let now = Instant::now();
    let at_home = home(&upstream, now).unwrap();
    for server in names(4) {
        let mut plan = upstream.plan(b"key", Some(&server));
        assert_eq!(**plan.pick(now, &mut None).unwrap().unwrap().name(), *server);
        upstream.set_state(&server, State::Draining).unwrap();
        let mut plan = upstream.plan(b"key", Some(&server));
        assert_ne!(**plan.pick(now, &mut None).unwrap().unwrap().name(), *server);
        upstream.set_state(&server, State::Up).unwrap();
    }
    let mut plan = upstream.plan(b"key", Some("10.9.9.9:1"));
    assert_eq!(*plan.pick(now, &mut None).unwrap().unwrap().name(), at_home);
}

#[test]
fn checks_take_a_server_out_and_bring_it_back_slowly() {
    let upstream = built(&with(Conf { slow_start: Duration::from_secs(10), ..Conf::of(names(2)) }));
    let now = Instant::now();
    let server = upstream.set.load().servers[0].clone();
    let check = |outcome| server.shared.checked(outcome, 2, 3, now);
    assert!(!check(Err("check_refused")) && !check(Err("check_refused")) && !check(Ok(())));
    assert!(server.shared.is_healthy(), "two in a row are not three");
    assert!((0..3).all(|_| !check(Err("check_refused"))));
    assert!(!server.shared.is_healthy());
    assert!(
        (0..50)
            .all(|n| { first(&upstream, &format!("user-{n}"), now).unwrap().name() != &server.shared.name })
    );
    assert!(!check(Ok(())) && check(Ok(())) && server.shared.is_healthy());
    let share = |after| server.shared.share(Duration::from_secs(10), now + Duration::from_secs(after));
    assert_eq!([share(0), share(5), share(10), share(100)], [0.1, 0.5, 1.0, 1.0]);
}

#[test]
fn retries_end_with_their_budget() {
    let mut conf = with(Conf { retry_budget: 0.0, ..Conf::of(names(3)) });
    conf.breaker.failures = 1_000_000;
    conf.breaker.failure_ratio = 0.0;
    let upstream = built(&conf);
    let now = Instant::now();
    let (mut tries, mut denied) = (0, 0);
    for _ in 0..1_000 {
        let mut plan = upstream.plan(b"key", None);
        let end = loop {
            match plan.pick(now, &mut None) {
                Ok(Some(mut attempt)) => attempt.fail(now, "refused"),
                Ok(None) => panic!("nobody waits here"),
                Err(exhausted) => break exhausted,
            }
            tries += 1;
        };
        denied += u32::from(end.cause == "retry_budget");
    }
    // 30 within ten seconds are free: two each for 15 clients.
    assert_eq!((tries, denied), (1_030, 985));
}

fn limited(change: impl FnOnce(&mut Conf)) -> Arc<Upstream> {
    let mut of = Conf { max_connections: 1, queue: 2, ..Conf::of(names(1)) };
    change(&mut of);
    built(&with(of))
}

#[tokio::test(start_paused = true)]
async fn who_finds_all_servers_full_waits_in_order() {
    let upstream = limited(|_| {});
    let held = upstream.plan(b"key", None).next().await.unwrap();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let mut waiting = Vec::new();
    for n in 0..2 {
        let (upstream, tell) = (upstream.clone(), tell.clone());
        waiting.push(tokio::spawn(async move {
            let attempt = upstream.plan(b"key", None).next().await;
            tell.send(n).unwrap();
            attempt.map(|attempt| attempt.into_permit().unwrap())
        }));
        tokio::task::yield_now().await;
    }
    assert_eq!(upstream.plan(b"key", None).next().await.err().unwrap().cause, "queue_full");
    drop(held);
    assert_eq!(told.recv().await, Some(0));
    // Whoever comes now does not overtake the second.
    let late = tokio::spawn({
        let upstream = upstream.clone();
        async move { upstream.plan(b"key", None).next().await.map(|_| ()) }
    });
    let first = waiting.remove(0).await.unwrap().unwrap();
    assert!(told.try_recv().is_err());
    drop(first);
    assert_eq!(told.recv().await, Some(1));
    drop(waiting.remove(0).await.unwrap().unwrap());
    late.await.unwrap().unwrap();
    assert!(upstream.desk.lock().queue.is_idle());
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_is_told_and_who_leaves_is_forgotten() {
    let upstream = limited(|of| of.queue_timeout = Duration::from_secs(3));
    let held = upstream.plan(b"key", None).next().await.unwrap();
    let begun = tokio::time::Instant::now();
    let exhausted = upstream.plan(b"key", None).next().await.err().unwrap();
    assert_eq!((exhausted.cause, begun.elapsed().as_secs()), ("queue_timeout", 3));
    assert!((1..=5).contains(&exhausted.retry_after.as_secs()));
    let gone = tokio::spawn({
        let upstream = upstream.clone();
        async move { upstream.plan(b"key", None).next().await.map(|_| ()) }
    });
    tokio::task::yield_now().await;
    assert_eq!(upstream.desk.lock().queue.len(), 1);
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    assert!(upstream.desk.lock().queue.is_idle());
    drop(held);
    upstream.plan(b"key", None).next().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_is_not_taken_goes_to_the_next() {
    let upstream = limited(|_| {});
    let held = upstream.plan(b"key", None).next().await.unwrap();
    let (mut plan_a, mut plan_b) = (upstream.plan(b"a", None), upstream.plan(b"b", None));
    let (mut a, mut b) = (Box::pin(plan_a.next()), Box::pin(plan_b.next()));
    for waits in [&mut a, &mut b] {
        tokio::select! {
            biased;
            _ = waits => panic!("there was no place"),
            () = tokio::task::yield_now() => {}
        }
    }
    drop(held);
    drop(a); // called, and gone before it noticed
    tokio::time::timeout(Duration::from_secs(1), b).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_server_that_comes_back_takes_as_many_as_it_may() {
    let upstream = limited(|of| *of = Conf { max_connections: 3, ..Conf::of(names(2)) });
    let names = names(2);
    upstream.set_state(&names[1], State::Draining).unwrap();
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(upstream.plan(b"key", None).next().await.unwrap());
    }
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let upstream = upstream.clone();
        waiting.spawn(async move { upstream.plan(b"key", None).next().await });
    }
    tokio::task::yield_now().await;
    upstream.set_state(&names[1], State::Up).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut served = Vec::new();
    while let Some(done) = waiting.try_join_next() {
        served.push(done.unwrap().unwrap());
    }
    assert!(served.len() == 3 && served.iter().all(|attempt| **attempt.name() == *names[1]));
}

#[tokio::test(start_paused = true)]
async fn a_server_set_up_again_calls_those_who_wait() {
    let upstream = limited(|of| *of = Conf { max_connections: 1, ..Conf::of(names(2)) });
    let names = names(2);
    upstream.set_state(&names[1], State::Draining).unwrap();
    let held = upstream.plan(b"key", None).next().await.unwrap();
    let waits = tokio::spawn({
        let upstream = upstream.clone();
        async move { upstream.plan(b"key", None).next().await.unwrap().name().clone() }
    });
    tokio::task::yield_now().await;
    upstream.set_state(&names[1], State::Up).unwrap();
    assert_eq!(*waits.await.unwrap(), *names[1]);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn handshakes_are_paced_and_their_tunnels_are_not() {
    let upstream = limited(|of| (of.max_connections, of.max_handshakes) = (0, 2));
    let a = upstream.plan(b"key", None).next().await.unwrap();
    let mut b = upstream.plan(b"key", None).next().await.unwrap();
    let third = tokio::spawn({
        let upstream = upstream.clone();
        async move { upstream.plan(b"key", None).next().await.map(|_| ()) }
    });
    tokio::task::yield_now().await;
    assert!(!third.is_finished());
    b.succeed(Instant::now());
    let tunnel = b.into_permit().unwrap();
    third.await.unwrap().unwrap();
    drop((a, tunnel));
}

#[test]
fn a_name_that_was_known_stays_when_a_lookup_fails_and_changes_when_it_does_not() {
    let conf = with(Conf::of(["localhost:3000"]));
    let upstream = built(&conf);
    let before: Vec<_> = upstream.status().into_iter().map(|s| s.name).collect();
    assert!(before.iter().all(|name| name.ends_with(":3000")) && !before.is_empty());
    let now = Instant::now();
    upstream.looked_up("localhost", Err(io::Error::other("no answer")), now);
    assert_eq!(upstream.status().into_iter().map(|s| s.name).collect::<Vec<_>>(), before);
    assert_eq!(upstream.next_lookup(), now + conf.dns_min_ttl);
    upstream.set_state("localhost:3000", State::Draining).unwrap();
    let addrs = vec!["10.1.1.1".parse().unwrap(), "10.1.1.2".parse().unwrap()];
    upstream.looked_up("localhost", Ok(Found { addrs, until: now + Duration::from_secs(60) }), now);
    assert_eq!(upstream.next_lookup(), now + Duration::from_secs(60));
    let after: Vec<_> = upstream.status().into_iter().map(|s| (s.name.to_string(), s.state)).collect();
    // What was said of the name holds for whatever it stands for.
    let drained = |addr: &str| (addr.to_owned(), State::Draining);
    assert_eq!(after, [drained("10.1.1.1:3000"), drained("10.1.1.2:3000")]);
}

#[test]
fn figures_of_servers_that_are_gone_are_gone() {
    let mut registry = prometheus_client::registry::Registry::default();
    let metrics = Metrics::register(&mut registry);
    let shown = |registry: &prometheus_client::registry::Registry| {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text.contains("server=\"10.0.0.1:2\"")
    };
    let upstream = Upstream::build("app", &with(Conf::of(names(2))), &metrics, None).unwrap();
    let fails = (1..=9).find_map(|n| {
        let attempt = first(&upstream, &format!("user-{n}"), Instant::now()).unwrap();
        (**attempt.name() == *"10.0.0.1:2").then_some(attempt)
    });
    let mut held = fails.unwrap();
    held.fail(Instant::now(), "refused");
    let next = Upstream::build("app", &with(Conf::of(names(1))), &metrics, Some(&upstream)).unwrap();
    drop(upstream);
    assert!(shown(&registry), "something of it is still open");
    drop(held);
    assert!(!shown(&registry));
    drop(next);
}
