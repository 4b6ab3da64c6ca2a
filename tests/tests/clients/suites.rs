//! Runs the suites that are written in the clients' own languages, each against a system of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::Command;
use weir_tests::conf::{API_KEY, HMAC, repo};
use weir_tests::process::{Spec, binary};
use weir_tests::systems::{Embedded, Nodes};

/// A whole suite, on a machine that does other things too.
const SUITE_DEADLINE: Duration = Duration::from_secs(240);

pub fn js() -> PathBuf {
    let folder = repo().join("tests/clients/js");
    assert!(folder.join("node_modules/centrifuge").exists(), "not installed: run tests/setup.sh");
    folder
}

pub fn python() -> PathBuf {
    let python = repo().join("tests/clients/python/.venv/bin/python");
    assert!(python.exists(), "not installed: run tests/setup.sh");
    python
}

/// Output is shown if it fails. Returns it.
pub async fn suite(name: &str, command: &mut Command) -> String {
    let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let Ok(output) = tokio::time::timeout(SUITE_DEADLINE, running).await else {
        panic!("{name}: not within {SUITE_DEADLINE:?}")
    };
    let output = output.unwrap_or_else(|e| panic!("{name}: cannot be started: {e}"));
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(ExitStatus::success(&output.status), "{name}: {}\n{text}", output.status);
    text.into_owned()
}

/// Where the SDK suites find the system: clients through the proxy, the API at the node.
fn sdk(command: Command, weir: &Embedded) -> Command {
    sdk_at(command, weir.proxy(), weir.node())
}

fn sdk_at(mut command: Command, clients: SocketAddr, api: SocketAddr) -> Command {
    command
        .env("WEIR_WS", format!("ws://{clients}/connection/websocket"))
        .env("WEIR_API", format!("http://{api}/api"))
        .env("WEIR_API_KEY", API_KEY)
        .env("WEIR_HMAC", HMAC);
    command
}

pub fn node_tests(file: &str) -> Command {
    let mut command = Command::new("node");
    command.current_dir(js()).args(["--test", "--test-reporter=spec", file]);
    command
}

/// The number in node's summary: a suite in which nothing ran has not passed.
pub fn assert_ran(output: &str, least: usize) {
    let passed = output.lines().find_map(|l| l.split("ℹ pass ").nth(1)?.trim().parse::<usize>().ok());
    assert!(passed.is_some_and(|n| n >= least), "{passed:?} tests passed, {least} expected:\n{output}");
}

/// Python with a module of its own or of ours.
pub fn python_module(arguments: &[&str]) -> Command {
    let mut command = Command::new(python());
    command.current_dir(repo().join("tests/clients/python")).env("PYTHONDONTWRITEBYTECODE", "1");
    command.arg("-m").args(arguments);
    command
}

/// The number in unittest's summary.
pub fn assert_unittest_ran(output: &str, least: usize) {
    let ran = output.lines().find_map(|l| l.strip_prefix("Ran ")?.split(' ').next()?.parse::<usize>().ok());
    assert!(ran.is_some_and(|n| n >= least), "{ran:?} tests ran, {least} expected:\n{output}");
}

#[tokio::test]
async fn javascript_sdk() {
    let weir = Embedded::start().await;
    let output = suite("centrifuge (npm)", &mut sdk(node_tests("centrifuge.test.js"), &weir)).await;
    assert_ran(&output, 20);
}

/// The same where everything crosses: clients at one node, the API at another, the broker in a third process.
#[tokio::test]
async fn javascript_sdk_across_nodes() {
    let nodes = Nodes::start().await;
    let mut command = sdk_at(node_tests("centrifuge.test.js"), nodes.addr(1), nodes.addr(0));
    assert_ran(&suite("centrifuge (npm), two nodes", &mut command).await, 20);
}

#[tokio::test]
async fn python_sdk() {
    let weir = Embedded::start().await;
    let command = python_module(&["unittest", "--verbose", "test_centrifuge"]);
    let output = suite("centrifuge-python (PyPI)", &mut sdk(command, &weir)).await;
    assert_unittest_ran(&output, 17);
}

/// The demo page as it ships, in a real browser; what it looked like is in `target/screenshots`.
#[tokio::test]
async fn demo_page_in_chromium() {
    let demo = Embedded::start_spec(Spec::demo()).await;
    let folder = binary().parent().and_then(std::path::Path::parent).unwrap().join("screenshots");
    let mut command = node_tests("demo.test.js");
    command.env("WEIR_PAGE", format!("http://{}/", demo.proxy())).env("WEIR_SCREENSHOTS", &folder);
    let output = suite("demo page", &mut command).await;
    assert_ran(&output, 4);
    for shot in ["demo-first-tab.png", "demo-second-tab.png", "demo-recovered.png"] {
        let size = std::fs::metadata(folder.join(shot)).unwrap_or_else(|e| panic!("{shot}: {e}")).len();
        assert!(size > 10_000, "{shot} has {size} bytes");
    }
}
