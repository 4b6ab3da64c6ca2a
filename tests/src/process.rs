//! Processes of the built binary: started with a conf, awaited until ready, killed in several ways, always
//! reaped; their logs are printed when the test fails.

use crate::ports::Port;
use crate::{conf, http, until, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// Lines kept of a process's log.
const LOG_LINES: usize = 20_000;
/// Ours, and no key of the conf: not for the processes under test.
const BIN: &str = "WEIR_BIN";

/// The binary, built when the first test asks: a test never runs yesterday's. `WEIR_BIN` names another.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os(BIN) {
        Some(path) => path.into(),
        None => build(),
    })
}

fn build() -> PathBuf {
    // This test is target/PROFILE/deps/NAME; the binary becomes target/PROFILE/weir.
    let own = std::env::current_exe().expect("own path");
    let folder = own.parent().and_then(Path::parent).expect("target/PROFILE/deps");
    let profile = match folder.file_name().and_then(|n| n.to_str()) {
        Some("debug") | None => "dev",
        Some(other) => other,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let done = std::process::Command::new(cargo)
        .args([
            "build",
            "--quiet",
            "--package",
            "weir",
            "--bin",
            "weir",
            "--profile",
            profile,
            "--target-dir",
        ])
        .arg(folder.parent().expect("target"))
        .current_dir(conf::repo())
        .status();
    assert!(done.as_ref().is_ok_and(ExitStatus::success), "cannot build weir: {done:?}");
    folder.join("weir")
}

enum Source {
    Text(String),
    Shipped(&'static str),
    Demo,
}

/// How to start a process.
pub struct Spec {
    name: String,
    source: Source,
    set: Vec<(String, String)>,
    descriptors: Option<usize>,
}

impl Spec {
    /// With this conf, written to a file of its own.
    pub fn text(name: &str, text: impl Into<String>) -> Spec {
        Spec::new(name, Source::Text(text.into()))
    }

    /// With a conf file that ships, such as `conf/node.toml`.
    pub fn shipped(name: &str, path: &'static str) -> Spec {
        Spec::new(name, Source::Shipped(path))
    }

    /// `weir` without arguments; keys are set by the environment then.
    pub fn demo() -> Spec {
        Spec::new("demo", Source::Demo)
    }

    fn new(name: &str, source: Source) -> Spec {
        Spec { name: name.to_owned(), source, set: Vec::new(), descriptors: None }
    }

    /// With a hard limit of descriptors.
    #[must_use]
    pub fn descriptors(mut self, limit: usize) -> Spec {
        self.descriptors = Some(limit);
        self
    }

    #[must_use]
    pub fn set(mut self, key: &str, value: impl ToString) -> Spec {
        self.set.push((key.to_owned(), value.to_string()));
        self
    }

    /// Starts it and waits until `/ready` says so. The keys of its listeners are given by their ports.
    pub async fn start(self, listeners: &[(&str, &Port)]) -> Process {
        let process = self.launch(listeners);
        process.await_ready().await;
        process
    }

    /// Starts it, and waits for nothing.
    pub fn launch(self, listeners: &[(&str, &Port)]) -> Process {
        let admin = Arc::new(Port::free());
        let folder = TempDir::new().expect("a folder for a conf");
        let mut set = self.set;
        set.extend(listeners.iter().map(|(key, port)| ((*key).to_owned(), port.to_string())));
        set.push(("admin.listen".to_owned(), admin.to_string()));
        let mut command = match self.descriptors {
            // It becomes the binary, and keeps its pid.
            Some(limit) => {
                let mut command = Command::new("prlimit");
                command.arg(format!("--nofile={limit}:{limit}")).arg(binary());
                command
            }
            None => Command::new(binary()),
        };
        command.env_remove(BIN);
        let mut arguments: Vec<String> = Vec::new();
        match &self.source {
            Source::Demo => {
                let variable = |key: &str| format!("WEIR_{}", key.replace('.', "__").to_uppercase());
                command.envs(set.iter().map(|(k, v)| (variable(k), v)));
            }
            Source::Text(_) | Source::Shipped(_) => {
                let path = match &self.source {
                    Source::Text(text) => {
                        let path = folder.path().join(format!("{}.toml", self.name));
                        std::fs::write(&path, text).expect("a conf file");
                        path
                    }
                    Source::Shipped(path) => conf::repo().join(path),
                    Source::Demo => unreachable!("matched above"),
                };
                arguments.extend(["run".to_owned(), "--config".to_owned(), path.display().to_string()]);
                arguments.extend(set.iter().map(|(k, v)| format!("--set={k}={v}")));
            }
        }
        command.args(&arguments);
        Process::spawn(self.name, command, admin, arguments, Arc::new(folder))
    }
}

/// A running process. Dropping it kills it.
pub struct Process {
    name: String,
    child: Child,
    pid: i32,
    admin: Arc<Port>,
    arguments: Vec<String>,
    log: Arc<Mutex<Vec<String>>>,
    readers: Vec<std::thread::JoinHandle<()>>,
    folder: Arc<TempDir>,
}

impl Process {
    fn spawn(
        name: String,
        mut command: Command,
        admin: Arc<Port>,
        arguments: Vec<String>,
        folder: Arc<TempDir>,
    ) -> Process {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|e| panic!("{name}: {}: {e}", binary().display()));
        let pid = i32::try_from(child.id().expect("just started")).expect("a pid");
        let log = Arc::new(Mutex::new(Vec::new()));
        let out = child.stdout.take().and_then(|o| o.into_owned_fd().ok()).expect("piped");
        let err = child.stderr.take().and_then(|o| o.into_owned_fd().ok()).expect("piped");
        // tokio's pipes do not block; a thread that reads wants one that does.
        let readers = [out, err].map(|fd| {
            let file = std::fs::File::from(fd);
            blocking(&file);
            keep_lines(file, log.clone())
        });
        Process { name, child, pid, admin, arguments, log, readers: readers.into(), folder }
    }

    /// `weir run --upgrade` with the same conf: it waits for this process to hand over.
    pub fn successor(&self) -> Process {
        let mut command = Command::new(binary());
        command.env_remove(BIN).args(&self.arguments).arg("--upgrade");
        let name = format!("{}'s successor", self.name);
        Process::spawn(name, command, self.admin.clone(), self.arguments.clone(), self.folder.clone())
    }

    /// Replaces its conf file; nobody has read it yet when this returns.
    pub fn rewrite(&self, text: &str) {
        std::fs::write(self.conf_file(), text).expect("a conf file");
    }

    /// Of a process that was started with a text of its own.
    pub fn conf_file(&self) -> PathBuf {
        self.folder.path().join(format!("{}.toml", self.name))
    }

    /// A path for a file of this process alone.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn admin(&self) -> SocketAddr {
        self.admin.addr()
    }

    pub async fn await_ready(&self) {
        let admin = self.admin();
        until(&format!("{} is ready", self.name), || async move {
            // A process that has ended will not become ready: fail now, with its log.
            let gone = kill(Pid::from_raw(self.pid), None).is_err() || self.is_zombie();
            assert!(!gone, "{} ended before it was ready", self.name);
            match http::try_raw(admin, b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await {
                Ok(response) if response.status == 200 => Ok(()),
                Ok(response) => Err(format!("{} {}", response.status, response.body)),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
    }

    /// The sum of a metric over its label sets, those only that have all of `labels` (`reason="slow"`).
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = http::get(self.admin(), "/metrics").await.body;
        let lines = text.lines().filter(|l| {
            let rest = l.strip_prefix(name);
            rest.is_some_and(|r| r.starts_with(['{', ' '])) && labels.iter().all(|label| l.contains(label))
        });
        lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Waits for a line of the log.
    pub async fn logged(&self, what: &str, accept: impl Fn(&str) -> bool) -> String {
        until(&format!("{}: log line: {what}", self.name), || async {
            self.log.lock().unwrap().iter().find(|l| accept(l)).cloned().ok_or_else(String::new)
        })
        .await
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).unwrap_or_else(|e| panic!("{}: {signal}: {e}", self.name));
    }

    /// As a power cut would: SIGKILL, and gone when this returns.
    pub async fn kill_9(mut self) {
        self.signal(Signal::SIGKILL);
        self.exit().await;
    }

    /// Waits for its end; the log is whole then.
    pub async fn exit(&mut self) -> ExitStatus {
        let what = format!("{} ends", self.name);
        let status = within(&what, self.child.wait()).await.unwrap_or_else(|e| panic!("{what}: {e}"));
        for reader in self.readers.drain(..) {
            reader.join().expect("a reader of the log");
        }
        status
    }

    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Ended, and not yet reaped.
    fn is_zombie(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("it runs").count()
    }

    /// CPU time so far, of all its threads.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).expect("it runs");
        let fields: Vec<u64> = stat
            .rsplit_once(") ")
            .map(|(_, rest)| rest.split(' ').map(|f| f.parse().unwrap_or_default()).collect())
            .unwrap_or_default();
        // User and system time, in ticks of 10 ms on every Linux there is.
        Duration::from_millis(10 * (fields[11] + fields[12]))
    }

    /// Resident memory in KiB.
    pub fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("it runs");
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _already_gone = kill(Pid::from_raw(self.pid), Signal::SIGKILL).is_err();
        if std::thread::panicking() {
            eprintln!("---- log of {} (pid {}) ----\n{}\n---- end ----", self.name, self.pid, self.log());
        }
    }
}

fn blocking(file: &std::fs::File) {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(file, FcntlArg::F_SETFL(OFlag::empty())).expect("a pipe's flags");
}

fn keep_lines(from: impl Read + Send + 'static, log: Arc<Mutex<Vec<String>>>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let mut log = log.lock().unwrap();
            if log.len() < LOG_LINES {
                log.push(line);
            }
        }
    })
}

/// Runs the binary to its end: exit code, standard output and standard error.
pub async fn run(arguments: &[&str]) -> (i32, String, String) {
    let command = Command::new(binary())
        .env_remove(BIN)
        .args(arguments)
        .current_dir(conf::repo())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let what = format!("weir {}", arguments.join(" "));
    let output = within(&what, command).await.unwrap_or_else(|e| panic!("{what}: {e}"));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}
