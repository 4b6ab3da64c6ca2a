//! The verbs that ask a running process, by its admin listener.

mod broker;

pub use broker::{BrokerArgs, broker};

use bytes::Bytes;
use clap::Args;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::net::TcpStream;
use weir_conf::Sources;

/// A reload resolves names, which takes its time.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at a drain's progress.
const LOOK: Duration = Duration::from_millis(500);

/// Which process.
#[derive(Args)]
pub struct Target {
    /// Its conf file: [admin] says where it listens, and with which token
    #[arg(long)]
    config: Option<PathBuf>,
    /// Its admin listener, such as http://127.0.0.1:9000
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// File with its admin token
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
}

#[derive(Args)]
pub struct DrainArgs {
    #[command(flatten)]
    target: Target,
    /// Clients sent away per second, such as 200/s; over what the conf says
    #[arg(long)]
    rate: Option<String>,
    /// Whoever is left after this is closed, such as 30s; over what the conf says
    #[arg(long)]
    timeout: Option<String>,
    /// Only begin it
    #[arg(long)]
    no_wait: bool,
}

#[derive(Args)]
pub struct UpstreamArgs {
    #[command(flatten)]
    target: Target,
    /// Of this upstream only
    name: Option<String>,
    /// What the server is to be: nobody new (drain), nobody at all (down), or in service (up)
    #[arg(requires = "server")]
    state: Option<Wanted>,
    /// The server's name as it is shown, or its entry in the conf
    server: Option<String>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Wanted {
    Up,
    Drain,
    Down,
}

pub fn upstream(args: &UpstreamArgs) -> ExitCode {
    if let (Some(name), Some(state), Some(server)) = (&args.name, args.state, &args.server) {
        let state = match state {
            Wanted::Up => "up",
            Wanted::Drain => "draining",
            Wanted::Down => "down",
        };
        let order = json!({ "upstream": name, "server": server, "state": state });
        return ordered(&args.target, "upstream", order, |answer| {
            println!("{name}: {}: {state}", list(&answer["servers"]).join(", "));
        });
    }
    done(async {
        let answer = args.target.process()?.order("upstreams", Value::Null).await?;
        let all = answer.as_object().into_iter().flatten();
        let mut wanted = all.filter(|(name, _)| args.name.as_ref().is_none_or(|n| n == *name)).peekable();
        if let (None, Some(name)) = (wanted.peek(), &args.name) {
            return Err(format!("there is no upstream {name:?}"));
        }
        for (name, servers) in wanted {
            println!("{name}");
            servers.as_array().into_iter().flatten().for_each(show);
        }
        Ok(())
    })
}

fn show(server: &Value) {
    let text = |key: &str| server[key].as_str().unwrap_or_default();
    let health = if server["healthy"].as_bool() == Some(false) { ", unhealthy" } else { "" };
    let failure = match (server["last_failure"]["cause"].as_str(), server["last_failure"]["ago_s"].as_u64()) {
        (Some(cause), Some(ago)) => format!(", last failure {cause} {ago} s ago"),
        _ => String::new(),
    };
    println!(
        "  {:<28} {:<8} breaker {}{health}, {} open, weight {}{failure}",
        text("server"),
        text("state"),
        text("breaker"),
        server["open"],
        server["weight"]
    );
}

pub fn reload(target: &Target) -> ExitCode {
    ordered(target, "reload", Value::Null, |answer| {
        for warning in list(&answer["warnings"]) {
            eprintln!("weir: warning: {warning}");
        }
        let count = |key: &str| answer["listeners"][key].as_u64().unwrap_or(0);
        println!("reloaded; listeners opened: {}, closed: {}", count("opened"), count("closed"));
        let restart = list(&answer["needs_restart"]);
        if !restart.is_empty() {
            println!("changed, but only a restart puts it in force: {}", restart.join(", "));
        }
    })
}

pub fn status(target: &Target) -> ExitCode {
    ordered(target, "status", Value::Null, |answer| println!("{answer:#}"))
}

pub fn drain(args: &DrainArgs) -> ExitCode {
    done(async {
        let process = args.target.process()?;
        process.order("drain", json!({ "rate": args.rate, "timeout": args.timeout })).await?;
        println!("drain begun");
        if !args.no_wait {
            watch(&process).await;
        }
        Ok(())
    })
}

/// Shows how many are left, until the process ends and nobody answers.
async fn watch(process: &Process) {
    let mut last = None;
    while let Ok(status) = process.order("status", Value::Null).await {
        let left = (status["proxy"]["busy"].as_u64(), status["node"]["connections"].as_u64());
        if last != Some(left) {
            let shown = |name: &str, n: Option<u64>| n.map(|n| format!("{name}: {n} left"));
            let parts = [shown("proxy", left.0), shown("node", left.1)];
            println!("{}", parts.into_iter().flatten().collect::<Vec<_>>().join(", "));
            last = Some(left);
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn ordered(target: &Target, verb: &str, order: Value, show: impl FnOnce(Value)) -> ExitCode {
    done(async {
        show(target.process()?.order(verb, order).await?);
        Ok(())
    })
}

/// Runs it to its end, or says why not.
fn done(work: impl Future<Output = Result<(), String>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("weir: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("weir: {why}");
            ExitCode::FAILURE
        }
    }
}

fn list(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

impl Target {
    fn process(&self) -> Result<Process, String> {
        let mut sources = Sources::new().process_environment();
        if let Some(path) = &self.config {
            sources = sources.file(path);
        }
        // Without a conf file the defaults say where; mistakes in one are for `weir check`.
        let admin = match weir_conf::load(&sources) {
            Ok(loaded) => loaded.config.admin,
            Err(mistakes) if self.config.is_some() => return Err(mistakes.to_string()),
            Err(_) => weir_conf::Config::default().admin,
        };
        let token = match &self.token {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
                text.trim_end().to_owned()
            }
            None => admin.token.reveal().to_owned(),
        };
        if token.is_empty() {
            return Err(
                "an admin token is needed; accepted: --token FILE, or --config FILE with admin.token".into(),
            );
        }
        let authority = match &self.admin {
            Some(url) => {
                let rest = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
                if rest.contains('/') {
                    return Err(format!("--admin {url}: accepted: http://HOST:PORT"));
                }
                rest.to_owned()
            }
            None => admin.listen.to_string(),
        };
        Ok(Process { authority, token })
    }
}

struct Process {
    authority: String,
    token: String,
}

impl Process {
    async fn order(&self, verb: &str, order: Value) -> Result<Value, String> {
        let answer = tokio::time::timeout(TIMEOUT, self.exchange(verb, order)).await;
        let (status, body) = answer
            .map_err(|_| format!("{}: no answer within {} s", self.authority, TIMEOUT.as_secs()))?
            .map_err(|error| format!("{}: {error}", self.authority))?;
        let text = String::from_utf8_lossy(&body);
        if status != StatusCode::OK {
            return Err(text.trim_end().to_owned());
        }
        serde_json::from_slice(&body).map_err(|error| format!("{}: {error}", self.authority))
    }

    async fn exchange(
        &self,
        verb: &str,
        order: Value,
    ) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error>> {
        let tcp = TcpStream::connect(&self.authority).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await?;
        // It ends with its socket.
        tokio::spawn(connection);
        let body = if order.is_null() { Bytes::new() } else { order.to_string().into() };
        let request = Request::post(format!("/admin/v1/{verb}"))
            .header(header::HOST, &self.authority)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .body(Full::new(body))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        Ok((status, answer.into_body().collect().await?.to_bytes()))
    }
}
