//! `tokio-centrifuge`, the Rust SDK on crates.io. It neither recovers nor asks for presence, and
//! tells no close codes; what it does is looked at here.

use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_centrifuge::client::{Client, RequestError};
use tokio_centrifuge::config::Config;
use weir_tests::net::Link;
use weir_tests::systems::Embedded;
use weir_tests::{conf, unique, within};

/// What a client was told: publications, and changes of state with their codes.
#[derive(Debug, PartialEq)]
enum Told {
    Publication(Value, u64),
    Subscribed,
    Connected,
    Connecting(u32),
    Disconnected(u32),
}

struct Sdk {
    client: Client,
    told: UnboundedReceiver<Told>,
    sender: tokio::sync::mpsc::UnboundedSender<Told>,
}

impl Sdk {
    fn new(addr: std::net::SocketAddr, config: Config) -> Sdk {
        let client = Client::new(&format!("ws://{addr}/connection/websocket"), config.use_json());
        let (sender, told) = unbounded_channel();
        let [connected, connecting, disconnected] = [sender.clone(), sender.clone(), sender.clone()];
        client.on_connected(move |_| drop(connected.send(Told::Connected)));
        client.on_connecting(move |e| drop(connecting.send(Told::Connecting(e.code))));
        client.on_disconnected(move |e| drop(disconnected.send(Told::Disconnected(e.code))));
        Sdk { client, told, sender }
    }

    async fn subscribe(&self, channel: &str) -> tokio_centrifuge::subscription::Subscription {
        let sub = self.client.new_subscription(channel);
        let [publications, subscribed] = [self.sender.clone(), self.sender.clone()];
        sub.on_publication(move |p| {
            let data = serde_json::from_slice(&p.data).expect("JSON");
            drop(publications.send(Told::Publication(data, p.offset)));
        });
        sub.on_subscribed(move |_| drop(subscribed.send(Told::Subscribed)));
        within("the subscription", sub.subscribe()).await.expect("subscribed");
        sub
    }

    /// Passes over what comes before.
    async fn expect(&mut self, wanted: Told) {
        let mut before = Vec::new();
        within(&format!("{wanted:?}"), async {
            loop {
                let next = self.told.recv().await.expect("the test holds a sender");
                if next == wanted {
                    return;
                }
                before.push(next);
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishes_subscribes_and_hears_the_backend() {
    let weir = Embedded::start().await;
    let token = conf::jwt(&json!({"sub": "ann", "exp": conf::in_seconds(600)}));
    let mut ann = Sdk::new(weir.proxy(), Config::new().with_token(token));
    within("connect", ann.client.connect()).await.expect("connected");
    let channel = unique("chat:");
    let sub = ann.subscribe(&channel).await;
    within("publish", sub.publish(br#"{"n":1}"#.to_vec())).await.expect("published");
    weir.api().publish(&channel, json!({"n": 2})).await;
    ann.expect(Told::Publication(json!({"n": 1}), 1)).await;
    ann.expect(Told::Publication(json!({"n": 2}), 2)).await;
    let refused = within("rpc", ann.client.rpc("no-such-method", b"{}".to_vec())).await;
    match refused {
        Err(RequestError::ErrorResponse(error)) => assert_eq!(error.code, 108, "{error:?}"),
        other => panic!("rpc: {other:?}"),
    }
    within("unsubscribe", sub.unsubscribe()).await;
    within("disconnect", ann.client.disconnect()).await;
    ann.expect(Told::Disconnected(0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn comes_back_by_itself_when_its_link_is_cut() {
    let weir = Embedded::start().await;
    let link = Link::to(weir.proxy()).await;
    let mut client = Sdk::new(link.addr(), Config::new());
    within("connect", client.client.connect()).await.expect("connected");
    let channel = unique("chat:");
    client.subscribe(&channel).await;
    client.expect(Told::Subscribed).await;
    link.cut();
    within("to notice", async { while !matches!(client.told.recv().await, Some(Told::Connecting(_))) {} })
        .await;
    link.heal();
    client.expect(Told::Connected).await;
    client.expect(Told::Subscribed).await;
    weir.api().publish(&channel, json!("welcome back")).await;
    client.expect(Told::Publication(json!("welcome back"), 1)).await;
}
