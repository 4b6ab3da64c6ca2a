//! `weir bench` over each transport: every client connects, and every message arrives once.

use serde_json::Value;
use weir_tests::conf;
use weir_tests::ports::Port;
use weir_tests::process::{Spec, run};
use weir_tests::systems::Embedded;

#[tokio::test(flavor = "multi_thread")]
async fn every_transport_delivers() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().display().to_string();
    let (code, _, error) = run(&["cert", "self-signed", "--names", "127.0.0.1", "--out", &out]).await;
    assert_eq!(code, 0, "{error}");
    let tls = Port::free();
    let tables = format!(
        "\n[proxy.tls]\nlisten = [\"{tls}\"]\ncertificates = [{{ cert = \"{out}/cert.pem\", key = \"{out}/key.pem\" }}]\n"
    );
    let spec = Spec::text("weir", conf::all_tiers() + &tables).set("proxy.handshake_rate", "0/s");
    let weir = Embedded::start_spec(spec).await;
    let ca = format!("{out}/cert.pem");
    for (transport, path) in
        [("h1", "websocket"), ("h2", "websocket"), ("h3", "websocket"), ("webtransport", "webtransport")]
    {
        let url = format!("wss://{tls}/connection/{path}");
        let mut arguments = vec!["bench", "--json", "--transport", transport, "--url", &url, "--ca", &ca];
        // Two connections' worth where connections are shared.
        arguments.extend([
            "--clients",
            "6",
            "--streams-per-connection",
            "3",
            "--channel-prefix",
            "chat:bench",
        ]);
        arguments.extend(["--duration", "1s", "--rate", "10"]);
        let (_void_on_a_busy_machine, report, error) = run(&arguments).await;
        let report: Value = serde_json::from_str(&report).unwrap_or_else(|_| panic!("{transport}: {error}"));
        assert_eq!(report["connect_and_subscribe_us"]["count"], 6, "{transport}: {report}");
        let due = report["published"].as_u64().unwrap() * 6;
        assert!(due > 0, "{transport}: {report}");
        assert_eq!(report["deliveries"].as_u64(), Some(due), "{transport}: {report}");
        for none in ["lost", "duplicated"] {
            assert_eq!(report[none], 0, "{transport}: {report}");
        }
    }
    // A certificate that nobody vouches for is refused.
    let url = format!("wss://{tls}/connection/websocket");
    let (code, _, error) = run(&["bench", "--url", &url, "--clients", "1"]).await;
    assert_eq!(code, 2, "{error}");
    drop(weir);
}
