//! A reader that stops, and a client that falls silent: each is cut, and nobody else notices.

use serde_json::json;
use weir_tests::systems::Embedded;
use weir_tests::{DEADLINE, unique, until};

#[tokio::test]
async fn a_reader_that_stops_is_cut_with_3008_and_others_lose_nothing() {
    let weir = Embedded::start_with(&[("node.outbox_size", "1MiB"), ("node.write_timeout", "60s")]).await;
    let channel = unique("chat:");
    let mut slow = weir.client().receive_buffer(4096).connect().await;
    slow.subscribe(&channel).await;
    let mut readers = Vec::new();
    for _ in 0..3 {
        let mut reader = weir.client().connect().await;
        reader.subscribe(&channel).await;
        readers.push(reader);
    }
    // Kernel buffers take some megabytes (4 MiB, as shipped by Debian) before anything waits in the outbox; this is
    // more than both hold. No publication waits for the slow one: each is read by the others before the next goes out.
    let data = "x".repeat(100_000);
    for published in 1..=150_u64 {
        let result = weir.api().publish(&channel, json!(data)).await;
        assert_eq!(result["offset"], published);
        for reader in &mut readers {
            let publication = reader.publication(&channel).await;
            assert_eq!(publication["offset"], published);
            assert_eq!(publication["data"].as_str().map(str::len), Some(data.len()));
        }
    }
    // The close frame is given some seconds to get out before the connection is gone.
    until("it is cut", || async {
        let cut = weir.process.metric("weir_node_disconnects_total", &["3008"]).await;
        if cut == 1.0 { Ok(()) } else { Err(format!("{cut} cut")) }
    })
    .await;
    let line = weir.process.logged("of the cut", |l| l.contains("connection dropped")).await;
    assert!(line.contains("code=3008") && line.contains("age_ms="), "{line}");
    // What the kernel had taken arrives; the close frame may or may not have found room after it.
    let code = slow.drain_to_end().await;
    assert!(matches!(code, None | Some(3008)), "{code:?}");
    for reader in &mut readers {
        reader.fence().await;
    }
}

/// The slow one comes back, and gets what it missed.
#[tokio::test]
async fn who_was_cut_recovers() {
    let weir = Embedded::start_with(&[("node.outbox_size", "1MiB")]).await;
    let channel = unique("chat:");
    let mut slow = weir.client().receive_buffer(4096).connect().await;
    let epoch = slow.subscribe(&channel).await["epoch"].clone();
    let data = "x".repeat(100_000);
    let mut published = 0_u64;
    let start = std::time::Instant::now();
    while weir.process.metric("weir_node_connections", &[]).await > 0.0 {
        assert!(start.elapsed() < DEADLINE, "{published} publications, and who does not read is still there");
        weir.api().publish(&channel, json!(data)).await;
        published += 1;
    }
    println!("cut after {published} publications and {:?}", start.elapsed());
    let mut again = weir.client().connect().await;
    // More than a reply holds, which is a quarter of the outbox: what is left follows it.
    let request = json!({"channel": channel, "recover": true, "epoch": epoch, "offset": published - 5});
    let reply = again.ok("subscribe", request).await;
    assert_eq!(reply["recovered"], true);
    let mut offsets: Vec<_> =
        reply["publications"].as_array().unwrap().iter().map(|p| p["offset"].as_u64()).collect();
    while offsets.len() < 5 {
        offsets.push(again.publication(&channel).await["offset"].as_u64());
    }
    assert_eq!(offsets, (published - 4..=published).map(Some).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_client_that_falls_silent_is_closed_with_3012_and_logged() {
    let weir = Embedded::start_with(&[("node.ping_interval", "1s"), ("node.pong_timeout", "500ms")]).await;
    let channel = unique("chat:");
    let mut silent = weir.client().connect().await;
    silent.stop_pongs();
    let mut healthy = weir.client().connect().await;
    healthy.subscribe(&channel).await;
    let silence = async {
        let close = silent.expect_close().await;
        assert_eq!(close, (3012, "no pong".to_owned()));
        weir.api().publish(&channel, json!("still here?")).await;
    };
    let (publication, ()) = tokio::join!(healthy.publication(&channel), silence);
    assert_eq!(publication["data"], "still here?");
    let line = weir.process.logged("of the drop", |l| l.contains("connection dropped")).await;
    assert!(line.contains("code=3012") && line.contains("age_ms="), "{line}");
    until("it is counted", || async {
        let closed = weir.process.metric("weir_node_disconnects_total", &["3012"]).await;
        if closed > 0.0 { Ok(()) } else { Err(closed.to_string()) }
    })
    .await;
}
