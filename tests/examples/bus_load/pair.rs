//! A publisher and a subscriber with a bus between them, and nothing else.

use crate::pace::{Beat, Latencies, now};
use crate::{Options, Orders, redis, weir};
use serde_json::json;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use weir_broker::Event;
use weir_wire::envelope::Body;

pub fn channel(number: usize) -> String {
    format!("bench:{number}")
}

/// What the answers say, for both kinds of bus.
#[derive(Default)]
pub struct Answers {
    pub latencies: Latencies,
    pub failed: u64,
}

pub async fn publish(bus: &str, addr: &str, options: &Options, mut orders: Orders) {
    let (rate, seconds) = (options.number("rate", 2000.0), options.number("seconds", 10.0));
    let (channels, size) = (options.count("channels", 50), options.count("size", 100));
    let (history, every) = (options.is_on("history", true), options.is_on("every", false));
    let answers: Arc<Mutex<Answers>> = Arc::default();
    let mut send: Box<dyn FnMut(usize)> = match bus {
        "weir" => {
            let (bus, mut inbox) = weir::attach(addr, 1024).await;
            tokio::spawn(async move { while inbox.next().await.is_some() {} });
            let answers = answers.clone();
            Box::new(move |n| {
                let (bus, answers) = (bus.clone(), answers.clone());
                let publish = weir::publication(channel(n), size, history);
                let stamp = weir::stamp(&publish.data);
                tokio::spawn(async move {
                    let outcome = bus.publish(publish).await;
                    let mut answers = answers.lock().unwrap();
                    match outcome {
                        Ok(_) => answers.latencies.since(stamp),
                        Err(_) => answers.failed += 1,
                    }
                });
            })
        }
        "redis" => {
            let mut publisher = redis::Publisher::connect(addr, answers.clone()).await;
            Box::new(move |n| publisher.publish(&channel(n), size))
        }
        other => panic!("{other}: weir or redis"),
    };
    orders.ready().await;
    let beat = Beat::new(rate);
    let (total, mut sent, mut last) = ((rate * seconds) as u64, 0, now());
    let mut late = Latencies::default();
    let begun = now();
    while sent < total {
        for _ in 0..beat.next().await.min(total - sent) {
            sent += 1;
            let due = begun + (sent as f64 / rate * 1e9) as u64;
            late.since(due);
            send(sent as usize % channels);
        }
        if every && now() - last >= 1_000_000_000 {
            last = now();
            report(sent, &answers, &mut late);
        }
    }
    if !every {
        let all = async {
            while (answers.lock().unwrap().latencies.count() as u64) < total {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let _reported = timeout(Duration::from_secs(5), all).await;
    }
    report(sent, &answers, &mut late);
    // Stays, so that its processor time can be read.
    orders.next().await;
}

fn report(sent: u64, answers: &Mutex<Answers>, late: &mut Latencies) {
    let mut answers = answers.lock().unwrap();
    let (latencies, late) = (answers.latencies.take(), late.take());
    println!("{}", json!({"sent": sent, "failed": answers.failed, "answers": latencies, "late": late}));
}

pub async fn receive(bus: &str, addr: &str, options: &Options, mut orders: Orders) {
    let channels: Vec<String> = (0..options.count("channels", 50)).map(channel).collect();
    let arrived: Rc<RefCell<Latencies>> = Rc::default();
    match bus {
        "weir" => {
            let (bus, mut inbox) = weir::attach(addr, 16384).await;
            for channel in &channels {
                let stream = options.is_on("history", true).then_some(weir::STREAM);
                bus.subscribe(channel.clone(), stream).await.unwrap();
            }
            orders.ready().await;
            loop {
                tokio::select! {
                    event = inbox.next() => match event.unwrap() {
                        Event::Deliver(delivery) => {
                            let Body::Publication(publication) = delivery.body else { continue };
                            arrived.borrow_mut().since(weir::stamp(&publication.data));
                        }
                        Event::Resync(_) => eprintln!("a resync"),
                        _ => {}
                    },
                    _report = orders.next() => println!("{}", arrived.borrow_mut().take()),
                }
            }
        }
        "redis" => {
            let mut subscriber = redis::Subscriber::connect(addr, &channels).await;
            orders.ready().await;
            loop {
                tokio::select! {
                    () = subscriber.read(|data| arrived.borrow_mut().since(weir::stamp(data))) => {}
                    _report = orders.next() => println!("{}", arrived.borrow_mut().take()),
                }
            }
        }
        other => panic!("{other}: weir or redis"),
    }
}
