//! The checker can fail: one fault of each kind, planted in a good log, is found, and nothing else is.

use super::event::Event;
use super::fault::Fault;
use super::{Checker, Rules};

const CHANNELS: [&str; 2] = ["a", "b"];
const CLIENTS: [&str; 2] = ["ann", "bob"];
const LAST: u64 = 20;

fn id(channel: &str, n: u64) -> String {
    format!("{channel}:{n}")
}

fn publication(channel: &str, n: u64) -> Vec<Event> {
    let (t, id, ch) = (n * 10, id(channel, n), channel.to_owned());
    let begun = Event::Pub { t, id: id.clone(), ch, by: format!("p-{channel}") };
    let ack = Event::Ack { t: t + 1, id: id.clone(), ep: "one".into(), off: n };
    // Every fifth needed a second attempt.
    let open = n.is_multiple_of(5).then(|| Event::Unknown { t, id: id.clone(), why: "timeout".into() });
    [Some(begun), open, Some(ack)].into_iter().flatten().collect()
}

fn sub(c: &str, ch: &str, ep: &str, off: u64, recovered: bool) -> Event {
    Event::Sub { t: 0, c: c.into(), ch: ch.into(), ep: ep.into(), off, was: recovered, recovered }
}

fn msg(c: &str, ch: &str, n: u64) -> Event {
    Event::Msg { t: n * 10 + 2, c: c.into(), ch: ch.into(), off: n, id: id(ch, n) }
}

fn hist(ch: &str) -> Event {
    let pubs = (1..=LAST).map(|n| (n, id(ch, n))).collect();
    Event::Hist { t: 999, ch: ch.into(), ep: "one".into(), off: LAST, pubs }
}

/// Two channels, two subscribers on each, one of which reconnects in the middle.
fn good() -> Vec<Event> {
    let mut log = Vec::new();
    for ch in CHANNELS {
        log.extend((1..=LAST).flat_map(|n| publication(ch, n)));
        for c in CLIENTS {
            log.push(sub(c, ch, "one", 0, false));
            log.extend((1..=10).map(|n| msg(c, ch, n)));
            log.extend((c == "bob").then(|| sub(c, ch, "one", 10, true)));
            log.extend((11..=LAST).map(|n| msg(c, ch, n)));
        }
        log.push(hist(ch));
        log.push(Event::Presence { t: 999, ch: ch.into(), users: CLIENTS.map(str::to_owned).into() });
    }
    log
}

fn check(rules: Rules, log: Vec<Event>) -> super::Verdict {
    let mut checker = Checker::new(rules);
    for event in log {
        checker.take(event);
    }
    checker.verdict()
}

/// The log with a fault in it, and what must be found.
fn planted(change: impl FnOnce(&mut Vec<Event>), expected: &[Fault]) {
    let mut log = good();
    change(&mut log);
    let verdict = check(Rules::default(), log);
    assert_eq!(verdict.faults.kinds(), expected, "{:#?}", verdict.faults.examples());
    assert!(!verdict.right);
}

fn at(log: &[Event], event: &Event) -> usize {
    log.iter().position(|e| e == event).expect("it is in the good log")
}

#[test]
fn a_good_log_is_right() {
    let verdict = check(Rules::default(), good());
    assert!(verdict.right, "{:#?}", verdict.faults.examples());
    assert_eq!((&verdict.counts["published"], &verdict.counts["acked"]), (&40.into(), &40.into()));
    assert_eq!(verdict.figures.json()["delivered"], 80);
}

#[test]
fn an_acknowledged_publication_that_history_does_not_have() {
    planted(
        |log| {
            let ack = Event::Ack { t: 500, id: "a:lost".into(), ep: "one".into(), off: LAST + 1 };
            log.push(Event::Pub { t: 500, id: "a:lost".into(), ch: "a".into(), by: "p-a".into() });
            log.push(ack);
        },
        &[Fault::Lost],
    );
}

#[test]
fn an_epoch_that_was_given_up() {
    let change = |log: &mut Vec<Event>| {
        for event in log {
            match event {
                Event::Hist { ch, ep, off, pubs, .. } if ch == "a" => {
                    (*ep, *off) = ("two".into(), 0);
                    pubs.clear();
                }
                _ => {}
            }
        }
    };
    planted(change, &[Fault::LostWithEpoch, Fault::Behind]);
    // Everyone was told: no broken promise, where epochs may end.
    let mut log = good();
    change(&mut log);
    log.extend(CLIENTS.map(|c| sub(c, "a", "two", 0, false)));
    let verdict = check(Rules { epochs_may_end: true, ..Rules::default() }, log);
    assert!(verdict.right, "{:#?}", verdict.faults.examples());
    assert_eq!(verdict.faults.count(Fault::LostWithEpoch), LAST);
    assert_eq!(verdict.figures.resets, 2);
}

#[test]
fn a_second_copy_at_a_subscriber() {
    planted(
        |log| {
            let place = at(log, &msg("bob", "a", 7));
            log.insert(place + 1, msg("bob", "a", 7));
        },
        &[Fault::Duplicate],
    );
}

#[test]
fn a_message_that_overtakes() {
    planted(
        |log| {
            let place = at(log, &msg("ann", "b", 7));
            log.swap(place, place + 1);
        },
        // Whoever is overtaken was passed by first.
        &[Fault::OutOfOrder, Fault::Gap],
    );
}

#[test]
fn a_message_that_is_passed_by() {
    planted(
        |log| {
            let place = at(log, &msg("ann", "b", 7));
            log.remove(place);
        },
        &[Fault::Gap],
    );
}

#[test]
fn a_gap_that_was_told_is_none() {
    let mut log = good();
    let place = at(&log, &msg("ann", "b", 7));
    log.splice(place..place + 2, [sub("ann", "b", "one", 8, false)]);
    let verdict = check(Rules::default(), log);
    assert!(verdict.right, "{:#?}", verdict.faults.examples());
    assert_eq!(verdict.figures.resets, 1);
}

#[test]
fn two_subscribers_with_different_data_at_an_offset() {
    planted(
        |log| {
            let place = at(log, &msg("bob", "a", 7));
            let other = Event::Msg { t: 72, c: "bob".into(), ch: "a".into(), off: 7, id: id("a", 8) };
            log[place] = other;
        },
        &[Fault::Split],
    );
}

#[test]
fn one_publication_at_two_offsets() {
    planted(
        |log| {
            for event in log.iter_mut() {
                if let Event::Hist { ch, off, pubs, .. } = event
                    && ch == "a"
                {
                    *off += 1;
                    pubs.push((LAST + 1, id("a", 3)));
                }
            }
            let again =
                |c: &str| Event::Msg { t: 999, c: c.into(), ch: "a".into(), off: LAST + 1, id: id("a", 3) };
            log.extend(CLIENTS.map(again));
        },
        &[Fault::Twice],
    );
}

#[test]
fn one_whose_outcome_is_unknown_comes_twice() {
    let mut log = good();
    let begun = Event::Pub { t: 500, id: "b:open".into(), ch: "b".into(), by: "p2".into() };
    log.insert(0, begun);
    log.insert(1, Event::Unknown { t: 501, id: "b:open".into(), why: "timeout".into() });
    // Not at all is right,
    assert!(check(Rules::default(), log.clone()).right);
    let deliver = |log: &mut Vec<Event>, off: u64| {
        log.extend(CLIENTS.map(|c| Event::Msg {
            t: 999,
            c: c.into(),
            ch: "b".into(),
            off,
            id: "b:open".into(),
        }));
        for event in log.iter_mut() {
            if let Event::Hist { ch, off: top, pubs, .. } = event
                && ch == "b"
            {
                *top = off;
                pubs.push((off, "b:open".into()));
            }
        }
    };
    // once is right,
    deliver(&mut log, LAST + 1);
    let verdict = check(Rules::default(), log.clone());
    assert!(verdict.right, "{:#?}", verdict.faults.examples());
    // and twice is not.
    deliver(&mut log, LAST + 2);
    assert_eq!(check(Rules::default(), log).faults.kinds(), [Fault::Twice]);
}

#[test]
fn a_repeat_that_is_given_another_place() {
    planted(|log| log.push(Event::Ack { t: 999, id: id("a", 3), ep: "one".into(), off: 4 }), &[Fault::Moved]);
}

#[test]
fn a_publisher_whose_later_one_stands_before() {
    planted(
        |log| {
            for event in log.iter_mut() {
                match event {
                    Event::Ack { id, .. } if id == "a:3" => *id = "a:4".into(),
                    Event::Ack { id, .. } if id == "a:4" => *id = "a:3".into(),
                    Event::Msg { id, .. } if id == "a:3" => *id = "a:4".into(),
                    Event::Msg { id, .. } if id == "a:4" => *id = "a:3".into(),
                    Event::Hist { ch, pubs, .. } if ch == "a" => {
                        (pubs[2].1, pubs[3].1) = ("a:4".into(), "a:3".into());
                    }
                    _ => {}
                }
            }
        },
        &[Fault::AckOrder],
    );
}

#[test]
fn what_nobody_published() {
    planted(
        |log| {
            log.retain(|e| !matches!(e, Event::Pub { id, .. } | Event::Ack { id, .. } if id == "a:20"));
            log.retain(|e| !matches!(e, Event::Unknown { id, .. } if id == "a:20"));
        },
        &[Fault::Phantom],
    );
}

#[test]
fn what_was_published_elsewhere() {
    planted(
        |log| {
            for event in log.iter_mut() {
                if let Event::Pub { id, ch, .. } = event
                    && id == "a:20"
                {
                    *ch = "b".into();
                }
            }
            log.retain(|e| !matches!(e, Event::Ack { id, .. } if id == "a:20"));
        },
        &[Fault::Phantom],
    );
}

#[test]
fn what_was_refused_for_certain() {
    planted(
        |log| {
            for event in log.iter_mut() {
                let refused = match event {
                    Event::Ack { id, .. } | Event::Unknown { id, .. } if id == "a:20" => id.clone(),
                    _ => continue,
                };
                *event = Event::Nack { t: 201, id: refused, why: "103".into() };
            }
        },
        &[Fault::Refused],
    );
}

#[test]
fn a_recovery_into_another_epoch() {
    planted(
        |log| {
            let place = at(log, &sub("bob", "a", "one", 10, true));
            log[place] = sub("bob", "a", "two", 10, true);
        },
        &[Fault::FalseRecovery],
    );
}

#[test]
fn an_epoch_whose_top_goes_back() {
    planted(
        |log| {
            let place = at(log, &msg("ann", "b", 7));
            log.splice(
                place + 1..place + 1,
                [sub("ann", "b", "one", 5, false), msg("ann", "b", 6), msg("ann", "b", 7)],
            );
        },
        &[Fault::TopWentBack],
    );
    planted(
        |log| {
            let pubs = (1..=LAST - 1).map(|n| (n, id("a", n))).collect();
            log.push(Event::Hist { t: 1000, ch: "a".into(), ep: "one".into(), off: LAST - 1, pubs });
        },
        &[Fault::Lost, Fault::TopWentBack, Fault::Behind],
    );
}

#[test]
fn the_last_look_counts_wherever_it_stands() {
    let mut log = good();
    let pubs = (1..=LAST - 1).map(|n| (n, id("a", n))).collect();
    log.push(Event::Hist { t: 1, ch: "a".into(), ep: "one".into(), off: LAST - 1, pubs });
    let verdict = check(Rules::default(), log);
    assert!(verdict.right, "{:#?}", verdict.faults.examples());
}

#[test]
fn a_hole_in_history() {
    planted(
        |log| {
            for event in log.iter_mut() {
                if let Event::Hist { ch, pubs, .. } = event
                    && ch == "a"
                {
                    pubs.remove(5);
                }
            }
        },
        &[Fault::Lost, Fault::Hole],
    );
}

#[test]
fn a_message_for_nobody() {
    planted(|log| log.push(msg("eve", "a", 1)), &[Fault::Stray]);
}

#[test]
fn a_subscriber_that_was_left_behind() {
    planted(
        |log| {
            let place = at(log, &msg("ann", "b", LAST));
            log.remove(place);
        },
        &[Fault::Behind],
    );
    // Who left is not waited for.
    let mut log = good();
    let place = at(&log, &msg("ann", "b", LAST));
    log[place] = Event::Gone { t: 300, c: "ann".into() };
    for event in &mut log {
        if let Event::Presence { users, .. } = event {
            users.retain(|u| u != "ann");
        }
    }
    let verdict = check(Rules::default(), log);
    assert!(verdict.right, "{:#?}", verdict.faults.examples());
}

#[test]
fn presence_that_is_wrong_either_way() {
    let change = |users: &'static [&str]| {
        move |log: &mut Vec<Event>| {
            let users = users.iter().map(|u| (*u).to_owned()).collect();
            log.push(Event::Presence { t: 1000, ch: "a".into(), users });
        }
    };
    planted(change(&["ann"]), &[Fault::Absent]);
    planted(change(&["ann", "bob", "eve"]), &[Fault::Ghost]);
    planted(change(&["ann", "bob", "bob"]), &[Fault::Ghost]);
}

#[test]
fn a_window_forgives_only_what_is_older() {
    let keep_from = |first: u64| {
        let mut log = good();
        for event in &mut log {
            if let Event::Hist { pubs, .. } = event {
                pubs.retain(|(offset, _)| *offset >= first);
            }
        }
        log
    };
    let window = Rules { window: true, ..Rules::default() };
    assert!(check(window, keep_from(11)).right);
    assert_eq!(check(Rules::default(), keep_from(11)).faults.count(Fault::Lost), 20);
    // Nothing of it left, and a top below what was acknowledged: lost all the same.
    let mut log = keep_from(LAST + 1);
    for event in &mut log {
        if let Event::Hist { off, .. } = event {
            *off = 5;
        }
    }
    assert_eq!(check(window, log).faults.count(Fault::Lost), 30);
}

#[test]
fn what_is_only_live_may_come_or_not_and_is_no_gap() {
    let mut log = good();
    log.insert(0, Event::Pub { t: 500, id: "b:live".into(), ch: "b".into(), by: "p2".into() });
    log.insert(1, Event::Ack { t: 501, id: "b:live".into(), ep: String::new(), off: 0 });
    let place = at(&log, &msg("ann", "b", 7));
    log.insert(place, Event::Msg { t: 502, c: "ann".into(), ch: "b".into(), off: 0, id: "b:live".into() });
    let verdict = check(Rules::default(), log.clone());
    assert!(verdict.right, "{:#?}", verdict.faults.examples());
    let figures = verdict.figures.json();
    assert_eq!((&figures["without_offset"], &figures["acked_without_offset"]), (&1.into(), &1.into()));
    log.remove(0);
    log.remove(0);
    assert_eq!(check(Rules::default(), log).faults.kinds(), [Fault::Phantom]);
}

#[test]
fn silences_and_first_acknowledgements() {
    let mut log = good();
    log.push(Event::Mark { t: 55, what: "kill".into(), chs: vec!["a".into()] });
    log.push(Event::Pub { t: 300, id: "a:late".into(), ch: "a".into(), by: "p2".into() });
    log.push(Event::Ack { t: 1201, id: "a:late".into(), ep: "one".into(), off: LAST + 1 });
    // As when another log is read first.
    log.rotate_right(2);
    let verdict = check(Rules::default(), log);
    assert_eq!(verdict.figures.longest_silence_ms(), 1000);
    // Those at 61 and 71 were on their way.
    assert_eq!(verdict.figures.first_acks("kill"), [81 - 55]);
}

#[test]
fn a_log_is_read_back_as_it_was_written() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("log");
    let lines: Vec<_> = good().iter().map(|e| serde_json::to_string(e).unwrap()).collect();
    let torn = format!("{}\n{{\"e\":\"ms", lines.join("\n"));
    std::fs::write(&path, torn).unwrap();
    let mut checker = Checker::new(Rules::default());
    checker.read(&path).unwrap();
    assert!(checker.verdict().right);
    std::fs::write(&path, format!("nonsense\n{}\n", lines.join("\n"))).unwrap();
    assert!(Checker::new(Rules::default()).read(&path).unwrap_err().contains("log:1: "));
}
