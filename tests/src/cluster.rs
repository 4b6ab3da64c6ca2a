//! Brokers and two nodes as processes, and load whose log the checker reads.

use crate::checker::{Checker, Rules, Verdict};
use crate::load::publisher::{self, END, Plan};
use crate::load::subscriber::Subscriber;
use crate::load::{Log, Target, look};
use crate::ports::Port;
use crate::process::{Process, Spec};
use crate::{conf, http, until, within};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;

const ADMIN_TOKEN: &str = "an-admin-token-for-tests";
const CHANNELS: &str = r#"
[[channel.namespace]]
name = "load"
presence = true
history_size = 100000
history_ttl = "1h"
force_recovery = true
force_positioning = true
allow_subscribe_for_client = true
"#;

pub struct Cluster {
    /// Whoever is down is `None`.
    brokers: Vec<Option<Process>>,
    nodes: [Option<Process>; 2],
    broker_ports: Vec<Port>,
    node_ports: [Port; 2],
    folder: TempDir,
    on_disk: bool,
}

impl Cluster {
    /// One broker, which is its whole cluster.
    pub async fn alone() -> Cluster {
        Cluster::start(1, false).await
    }

    pub async fn in_memory() -> Cluster {
        Cluster::start(3, false).await
    }

    pub async fn on_disk() -> Cluster {
        Cluster::start(3, true).await
    }

    async fn start(brokers: usize, on_disk: bool) -> Cluster {
        let mut cluster = Cluster {
            brokers: (0..brokers).map(|_| None).collect(),
            nodes: [None, None],
            broker_ports: (0..brokers).map(|_| Port::free()).collect(),
            node_ports: [Port::free(), Port::free()],
            folder: TempDir::new().expect("a folder"),
            on_disk,
        };
        cluster.launch_brokers();
        cluster.await_healthy().await;
        for n in 0..cluster.nodes.len() {
            cluster.start_node(n).await;
        }
        cluster
    }

    pub fn brokers(&self) -> std::ops::Range<usize> {
        0..self.brokers.len()
    }

    pub fn launch_brokers(&mut self) {
        self.brokers().for_each(|n| self.launch_broker(n));
    }

    pub fn launch_broker(&mut self, n: usize) {
        let mut spec = Spec::text(&format!("broker-{n}"), conf::broker())
            .set("admin.token", ADMIN_TOKEN)
            .set("broker.node_lease", "3s");
        if self.brokers.len() > 1 {
            let others = self.broker_ports.iter().enumerate().filter(|(m, _)| *m != n);
            let peers: Vec<_> = others.map(|(_, port)| format!("\"{port}\"")).collect();
            spec = spec
                .set("broker.name", format!("b{n}"))
                .set("broker.peers", format!("[{}]", peers.join(", ")))
                .set("broker.bootstrap", n == 0);
        }
        if self.on_disk {
            spec = spec.set("broker.data_dir", self.data_dir(n).display());
        }
        self.brokers[n] = Some(spec.launch(&[("broker.listen", &self.broker_ports[n])]));
    }

    pub fn data_dir(&self, n: usize) -> PathBuf {
        self.folder.path().join(format!("broker-{n}"))
    }

    pub async fn start_node(&mut self, n: usize) {
        let brokers: Vec<_> = self.broker_ports.iter().map(|p| format!("\"{p}\"")).collect();
        let text = format!(
            "roles = [\"node\"]\n[node]\napi_key = \"{}\"\nbrokers = [{}]\nbroker_secret = \"{}\"\nhistory_limit = 2000\n\
             ping_interval = \"3s\"\npong_timeout = \"2s\"\n[node.token]\nhmac_secret = \"{}\"\n{CHANNELS}",
            conf::API_KEY,
            brokers.join(", "),
            conf::BROKER_SECRET,
            conf::HMAC
        );
        let spec = Spec::text(&format!("node-{n}"), text);
        self.nodes[n] = Some(spec.start(&[("node.listen", &self.node_ports[n])]).await);
    }

    pub fn broker(&self, n: usize) -> &Process {
        self.brokers[n].as_ref().expect("it runs")
    }

    pub async fn kill_broker(&mut self, n: usize) {
        self.brokers[n].take().expect("it runs").kill_9().await;
    }

    pub async fn kill_node(&mut self, n: usize) {
        self.nodes[n].take().expect("it runs").kill_9().await;
    }

    /// SIGTERM to all brokers; each must end in order.
    pub async fn stop_brokers(&mut self) {
        self.brokers.iter().flatten().for_each(|broker| broker.signal(Signal::SIGTERM));
        for broker in &mut self.brokers {
            let status = broker.as_mut().expect("it runs").exit().await;
            assert!(
                status.success(),
                "a broker that was told to stop: {status}\n{}",
                broker.take().unwrap().log()
            );
            *broker = None;
        }
    }

    /// SIGTERM; it ends in order, and this is its log.
    pub async fn stop_broker(&mut self, n: usize) -> String {
        let mut broker = self.brokers[n].take().expect("it runs");
        broker.signal(Signal::SIGTERM);
        let status = broker.exit().await;
        assert!(status.success(), "a broker that was told to stop: {status}");
        broker.log()
    }

    /// What `weir broker status` prints.
    pub async fn status(&self, n: usize) -> Result<Value, String> {
        let admin = self.broker(n).admin();
        let head = format!(
            "POST /admin/v1/broker HTTP/1.1\r\nHost: {admin}\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\n\
             Content-Length: 2\r\nConnection: close\r\n\r\n{{}}"
        );
        let response = http::try_raw(admin, head.as_bytes()).await.map_err(|e| e.to_string())?;
        if response.status == 200 {
            Ok(response.json())
        } else {
            Err(format!("{} {}", response.status, response.body))
        }
    }

    /// The broker that leads.
    pub async fn leader(&self) -> usize {
        let status = self.status(0).await.expect("a status");
        let name = status["leader"].as_str().expect("a leader");
        name.trim_start_matches('b').parse().expect("the name of one of ours")
    }

    /// Until all brokers say so.
    pub async fn await_healthy(&self) -> Duration {
        let begun = Instant::now();
        if self.brokers.len() == 1 {
            self.broker(0).await_ready().await;
            return begun.elapsed();
        }
        until("every broker is healthy", || async {
            for n in self.brokers() {
                let status = self.status(n).await?;
                let members = status["members"].as_array().map_or(0, Vec::len);
                if status["healthy"] != true || members != self.brokers.len() {
                    return Err(format!("broker {n}: {status}"));
                }
            }
            Ok(())
        })
        .await;
        begun.elapsed()
    }

    pub fn target(&self) -> Target {
        Target { nodes: self.node_ports.iter().map(Port::addr).collect(), api_key: conf::API_KEY.to_owned() }
    }
}

/// Publishers and subscribers on ten channels.
pub struct Load {
    folder: TempDir,
    target: Target,
    channels: Vec<String>,
    stop: watch::Sender<bool>,
    publishers: JoinHandle<()>,
    subscribers: Vec<(AbortHandle, watch::Receiver<String>, String)>,
    log: Log,
}

impl Load {
    pub fn start(cluster: &Cluster) -> Load {
        let folder = TempDir::new().expect("a folder for a log");
        let (target, log) = (cluster.target(), Log::create(&folder.path().join("log")));
        let channels: Vec<_> = (0..10).map(|n| format!("load:{n}")).collect();
        let subscribers = (0..20).map(|n| {
            let channel = &channels[n % channels.len()];
            let subscriber = Subscriber::new(&format!("s{n}"), channel, &target, &log);
            let last = subscriber.last();
            (tokio::spawn(subscriber.run()).abort_handle(), last, channel.clone())
        });
        let subscribers = subscribers.collect();
        let plan = Plan {
            target: target.clone(),
            channels: channels.clone(),
            per_channel: 2,
            rate: 100.0,
            name: "p".to_owned(),
            give_up: Duration::from_secs(30),
            deadline: Duration::from_secs(7),
        };
        let ((stop, stopped), to) = (watch::channel(false), log.clone());
        let publishers = tokio::spawn(async move { publisher::run(&plan, &to, stopped).await });
        Load { folder, target, channels, stop, publishers, subscribers, log }
    }

    /// Ends the publishers, waits for the subscribers, reads what is left, and checks.
    pub async fn finish(self) -> Verdict {
        self.stop.send_replace(true);
        within("the publishers end", self.publishers).await.expect("they do not panic");
        for (_, last, channel) in &self.subscribers {
            let (mut last, end) = (last.clone(), format!("{END}p:{channel}"));
            // Whoever does not get there is told by the checker.
            let _in_time = timeout(Duration::from_secs(10), last.wait_for(|id| *id == end)).await.is_ok();
        }
        look::look(&self.target, &self.channels, Some(2), Duration::from_secs(10), &self.log)
            .await
            .expect("a last look");
        self.subscribers.iter().for_each(|(task, _, _)| task.abort());
        self.log.flush();
        let mut checker = Checker::new(Rules::default());
        checker.read(&self.folder.path().join("log")).expect("a log");
        checker.verdict()
    }

    /// Like [`Load::finish`], and nothing was broken.
    pub async fn finish_right(self) -> Verdict {
        let verdict = self.finish().await;
        assert!(verdict.right, "{:#}", verdict.json());
        assert!(verdict.counts["acked"].as_u64() > Some(100), "hardly any load: {:#}", verdict.json());
        verdict
    }

    /// Every channel's epoch and history, as it is now.
    pub async fn histories(&self) -> Vec<Value> {
        let path = self.folder.path().join("look");
        let _old_one_goes = std::fs::remove_file(&path).is_ok();
        let log = Log::create(&path);
        look::look(&self.target, &self.channels, None, Duration::from_secs(15), &log).await.expect("a look");
        let text = std::fs::read_to_string(&path).expect("a log");
        let mut all: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("an event")).collect();
        all.iter_mut().for_each(|event| event["t"] = Value::Null);
        all
    }

    /// Ends the publishers alone.
    pub async fn quiet(&mut self) {
        self.stop.send_replace(true);
        let ended = std::mem::replace(&mut self.publishers, tokio::spawn(async {}));
        within("the publishers end", ended).await.expect("they do not panic");
    }
}
