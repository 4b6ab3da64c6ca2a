//! `weir bench`: the load tool that ships with Weir.
//!
//! Clients subscribe, publishers publish at a steady pace, and the report says what arrived: rate,
//! latency, what was lost or doubled by offset, who was dropped and why, and what the measured
//! processes used. Each message carries the time it was sent, so publishers and clients live in
//! this one process and no clocks are compared.
//!
//! The run is void when this process could not keep up: then the numbers describe the tool.

mod client;
mod dial;
mod h2;
mod h3;
mod publisher;
mod report;
mod run;
mod socket;
mod tls;

use clap::Args;
use dial::Transport;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// URLs that clients connect to, in turn: ws://HOST:PORT/PATH or wss://; for WebTransport
    /// https://, with ?cf_datagrams=true to have publications as datagrams where the namespace allows
    #[arg(long = "url", default_values_t = ["ws://127.0.0.1:8000/connection/websocket".to_owned()])]
    pub urls: Vec<String>,
    /// What carries the messages; all but h1 want TLS
    #[arg(long, value_enum, default_value_t = Transport::H1)]
    pub transport: Transport,
    /// Clients that share a connection of h2 (100 without this), h3 or webtransport (1)
    #[arg(long, value_name = "N")]
    pub streams_per_connection: Option<usize>,
    /// Take any certificate
    #[arg(long, conflicts_with = "ca")]
    pub insecure: bool,
    /// Authorities to trust in place of the system's (PEM); a self-signed certificate is its own
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Clients that connect and subscribe
    #[arg(long, default_value_t = 100)]
    pub clients: usize,
    /// Channels in use
    #[arg(long, default_value_t = 1)]
    pub channels: usize,
    /// Channels each client subscribes to
    #[arg(long, default_value_t = 1)]
    pub subscriptions: usize,
    /// Channel names are this, a dash and a number; a namespace goes in front ("chat:bench")
    #[arg(long, default_value = "bench")]
    pub channel_prefix: String,
    /// Publications per second, over all channels; 0: only connect, subscribe and hold
    #[arg(long, default_value_t = 20.0)]
    pub rate: f64,
    /// Size of a publication's data in bytes (at least 48)
    #[arg(long, default_value_t = 128)]
    pub size: usize,
    /// How long publications go on, once every client is there
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub duration: Duration,
    /// Publish by the HTTP API at this base URL (http://HOST:PORT/api); without it, clients publish over the first --url
    #[arg(long)]
    pub api: Option<String>,
    /// Key for --api
    #[arg(long, default_value = "")]
    pub api_key: String,
    /// Connections that publish side by side; a channel stays with one of them, so its order is kept
    #[arg(long, default_value_t = 1)]
    pub publishers: usize,
    /// Connection token (JWT) that each client sends
    #[arg(long, default_value = "")]
    pub token: String,
    /// New connections per second while clients come in
    #[arg(long, default_value_t = 500.0)]
    pub connect_rate: f64,
    /// Clients (on top of --clients) that stop reading once subscribed
    #[arg(long, default_value_t = 0)]
    pub stalled: usize,
    /// Clients (on top of --clients) that never answer a ping
    #[arg(long, default_value_t = 0)]
    pub mute: usize,
    /// Threads for clients
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Processes to measure: CPU in the publishing time, memory before the first client and at the end
    #[arg(long = "pid")]
    pub pids: Vec<u32>,
    /// Don't spread the clients' source addresses over 127.0.0.0/8 (done for loopback targets, so that
    /// limits per address and the number of ports don't end the run)
    #[arg(long)]
    pub one_source: bool,
    /// The report as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// Exit code 0: every message arrived once and the run counts. 1: lost, doubled or dropped. 2: void.
pub fn main(args: BenchArgs) -> ExitCode {
    match run::run(&args) {
        Ok(report) => {
            if args.json {
                println!("{}", report.to_json());
            } else {
                print!("{report}");
            }
            report.exit_code()
        }
        Err(error) => {
            eprintln!("weir bench: {error}");
            ExitCode::from(2)
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    weir_conf::units::parse_duration(text)
        .ok_or_else(|| format!("{text:?} is no duration; 90s, 5m or 1h30m is"))
}
