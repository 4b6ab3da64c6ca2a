//! `weir`, `weir run`, `weir check`, `weir conf`, `weir cert`, `weir bench`; and the verbs for a running process,
//! `weir reload`, `weir drain`, `weir upstream`, `weir broker`, `weir status`, in `cli/ask.rs`.
//!
//! Exit codes: 0 done; 1 a listener could not be bound, a run failed, or an order was refused; 78 (`EX_CONFIG` of
//! sysexits.h) the conf has mistakes. `weir bench` has its own, see there.

mod ask;
mod cert;

use crate::judge::{self, For};
use crate::{Inheritance, Weir, bench, descriptors, signal};
use clap::{Args, Parser, Subcommand};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use weir_conf::{Config, Errors, Loaded, Sources};
use weir_core::drain::Drain;

const EX_CONFIG: u8 = 78;

/// An edge layer for WebSockets: proxy, node and broker in one binary.
///
/// Without a command it runs the demo: all three tiers on loopback, with a page at http://127.0.0.1:8000/
#[derive(Parser)]
#[command(name = "weir", version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the tiers that a conf file names
    Run(Run),
    /// Check conf files and the certificates, keys and secrets that they name: every mistake with file, line and
    /// column; exit code 78 if there is one
    Check {
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Print the effective conf, each value with its source; secrets are not shown
    Conf(Source),
    /// Have a running process read its conf again; no connection closes
    Reload(ask::Target),
    /// Have a running process send its clients away, oldest first, and end; shows progress
    Drain(ask::DrainArgs),
    /// Show the servers of upstreams, or set one: weir upstream app drain 10.0.0.3:3000
    Upstream(ask::UpstreamArgs),
    /// The cluster of brokers: its members and shards, joining and leaving
    Broker(ask::BrokerArgs),
    /// What a running process is doing
    Status(ask::Target),
    /// Certificates for development
    Cert(cert::CertArgs),
    /// Put load on a running system and report what arrived
    Bench(Box<bench::BenchArgs>),
}

#[derive(Args)]
struct Run {
    #[command(flatten)]
    source: Source,
    /// Take over the listeners of the running process, which is then sent SIGQUIT
    #[arg(long)]
    upgrade: bool,
}

#[derive(Args, Default)]
struct Source {
    /// Conf file; without it, the built-in defaults
    #[arg(long)]
    config: Option<PathBuf>,
    /// One key over file and environment; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

pub fn main() -> ExitCode {
    match Cli::parse().command {
        None => serve(
            Sources::new().text("demo.toml (built in)", weir_conf::DEMO).process_environment(),
            How::Demo,
        ),
        Some(Command::Run(Run { source, upgrade })) => match source.sources() {
            Ok(sources) => serve(sources, if upgrade { How::Upgrade } else { How::Plain }),
            Err(code) => code,
        },
        Some(Command::Reload(target)) => ask::reload(&target),
        Some(Command::Drain(args)) => ask::drain(&args),
        Some(Command::Upstream(args)) => ask::upstream(&args),
        Some(Command::Broker(args)) => ask::broker(&args),
        Some(Command::Status(target)) => ask::status(&target),
        Some(Command::Check { files }) => check(&files),
        Some(Command::Conf(source)) => source.sources().map_or_else(|code| code, |s| print_conf(&s)),
        Some(Command::Cert(args)) => cert::main(&args),
        Some(Command::Bench(args)) => bench::main(*args),
    }
}

impl Source {
    fn sources(&self) -> Result<Sources, ExitCode> {
        let mut sources = Sources::new().process_environment();
        if let Some(path) = &self.config {
            sources = sources.file(path);
        }
        for pair in &self.set {
            let Some((key, value)) = pair.split_once('=') else {
                eprintln!("weir: command line --set {pair}: not KEY=VALUE");
                return Err(ExitCode::from(EX_CONFIG));
            };
            sources = sources.set(key, value);
        }
        Ok(sources)
    }
}

/// With a look at the files that it names.
fn load(sources: &Sources, what_for: For) -> Result<Loaded, ExitCode> {
    shown(judge::load(sources, what_for))
}

fn shown(loaded: Result<Loaded, Errors>) -> Result<Loaded, ExitCode> {
    match loaded {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                eprintln!("weir: warning: {warning}");
            }
            Ok(loaded)
        }
        Err(errors) => {
            eprintln!("{errors}");
            Err(ExitCode::from(EX_CONFIG))
        }
    }
}

fn check(files: &[PathBuf]) -> ExitCode {
    let mut good = true;
    for file in files {
        match load(&Sources::new().process_environment().file(file), For::Check) {
            Ok(_) => println!("{}: ok", file.display()),
            Err(_) => good = false,
        }
    }
    if good { ExitCode::SUCCESS } else { ExitCode::from(EX_CONFIG) }
}

fn print_conf(sources: &Sources) -> ExitCode {
    let loaded = match shown(weir_conf::load(sources)) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    // A closed pipe (`weir conf | head`) is the reader's choice.
    let _closed = std::io::stdout().write_all(loaded.to_toml().as_bytes());
    ExitCode::SUCCESS
}

#[derive(Clone, Copy, PartialEq)]
enum How {
    Plain,
    /// The built-in conf; says where to look.
    Demo,
    /// With the listeners of a predecessor.
    Upgrade,
}

fn serve(sources: Sources, how: How) -> ExitCode {
    let config = match load(&sources, For::Use) {
        Ok(loaded) => loaded.config,
        Err(code) => return code,
    };
    if let Err(error) = weir_core::telemetry::init(&config.telemetry) {
        eprintln!("weir: {error}");
        return ExitCode::from(EX_CONFIG);
    }
    descriptors::prepare(&config);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("weir").build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("weir: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run(&config, sources, how));
    // Whatever a tier left running in a blocking thread must not hold the exit.
    runtime.shutdown_background();
    code
}

async fn run(config: &Config, sources: Sources, how: How) -> ExitCode {
    let drain = Drain::new();
    let (serving, operator) = tokio::sync::oneshot::channel();
    let signals = signal::watch(drain.clone(), operator);
    let inheritance = match how {
        How::Upgrade => match inherit(config.clone(), &drain).await {
            Ok(inheritance) => inheritance,
            Err(why) => {
                eprintln!("weir: {why}");
                return ExitCode::FAILURE;
            }
        },
        How::Plain | How::Demo => Inheritance::default(),
    };
    let weir = match Weir::bind(config, inheritance).await {
        Ok(weir) => weir,
        Err(error) => {
            eprintln!("weir: {error}");
            return ExitCode::FAILURE;
        }
    };
    if how == How::Demo
        && let Some(addr) = weir.proxy_addrs().first()
    {
        eprintln!("Weir runs. Open http://{addr}/ in two tabs. Ctrl-C stops it.");
    }
    let operator = weir.operator(sources, &drain);
    // It is watched as long as the process serves.
    let _watched = serving.send(operator.clone());
    let finished = weir.run(operator, drain).await;
    signals.abort();
    if finished { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Waits for a predecessor, or for a signal that ends this process.
async fn inherit(config: Config, drain: &Drain) -> Result<Inheritance, String> {
    let waiting = tokio::task::spawn_blocking(move || Inheritance::await_predecessor(&config));
    tokio::select! {
        inheritance = waiting => inheritance.unwrap_or_else(|error| Err(error.to_string())),
        () = drain.begun() => Err("told to stop before a predecessor came".into()),
    }
}
