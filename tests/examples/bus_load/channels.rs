//! One node with very many channels: how fast they come and go.

use crate::{Options, Orders, weir};
use futures_util::stream::{self, StreamExt};
use serde_json::json;
use std::time::Instant;

pub async fn run(addr: &str, options: &Options, mut orders: Orders) {
    let (count, first) = (options.count("count", 100_000), options.count("first", 0));
    let (size, messages) = (options.count("size", 100), options.count("messages", 1));
    let under_way = options.count("under_way", 64);
    let (bus, mut inbox) = weir::attach(addr, 65536).await;
    tokio::spawn(async move { while inbox.next().await.is_some() {} });
    let name = |n: usize| format!("chat:room-{:06}", first + n);
    orders.ready().await;
    let all = |what: &'static str, times: usize| {
        let bus = bus.clone();
        async move {
            let begun = Instant::now();
            let calls = stream::iter(0..count * times).map(|n| {
                let (bus, channel) = (bus.clone(), name(n % count));
                async move {
                    match what {
                        "subscribe" => bus.subscribe(channel, Some(weir::STREAM)).await.map(drop),
                        "publish" => bus.publish(weir::publication(channel, size, true)).await.map(drop),
                        _ => bus.unsubscribe(channel).await,
                    }
                }
            });
            let failed =
                calls.buffer_unordered(under_way).filter(|r| std::future::ready(r.is_err())).count().await;
            let seconds = begun.elapsed().as_secs_f64();
            println!(
                "{}",
                json!({"what": what, "count": count * times, "failed": failed, "seconds": seconds})
            );
        }
    };
    all("subscribe", 1).await;
    loop {
        match orders.next().await.as_str() {
            "publish" => all("publish", messages).await,
            "unsubscribe" => all("unsubscribe", 1).await,
            "subscribe" => all("subscribe", 1).await,
            _ => return,
        }
    }
}
