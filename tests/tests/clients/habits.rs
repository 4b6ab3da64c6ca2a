//! Ordinary HTTP over all its versions (`tests/clients/python/habits.py`), in front of servers that have habits of
//! their own: WSGI, one that knows no chunks, one that is slow or breaks off.

use crate::suites::{assert_ran, python_module, suite};
use crate::transports::{Secure, chromium};
use std::process::Stdio;
use weir_tests::ports::Port;
use weir_tests::recorder::{Recorder, Reply, ok};
use weir_tests::within;

/// With a route to a server at this port.
async fn in_front_of(server: &Port) -> Secure {
    let routes = format!(
        "[proxy.upstream.habits]\nservers = [\"{server}\"]\n\
         [proxy.token.users]\nhmac_secret = \"{}\"\nclaims = {{ sub = \"X-Auth-Subject\" }}\n\
         [[proxy.route]]\npath = \"/guarded\"\nto = \"habits\"\ntoken = \"users\"\n\
         [[proxy.route]]\npath = \"/tenant\"\nheader = {{ name = \"X-Tenant\", value = \"red\" }}\nto = \"habits\"\n\
         [[proxy.route]]\npath = \"/ws/free\"\nto = \"habits\"\n\
         [[proxy.route]]\npath = \"/ws/limited\"\nto = \"habits\"\n\
         tunnel = {{ max_frame_size = \"1MiB\", frames_rate = \"10000/s\" }}\n\
         [[proxy.route]]\npath_regex = \"/(wsgi|strict|slow|broken|old|plain|hop|early|empty|same|head|twice|list|differ|trailers).*\"\n\
         to = \"habits\"\n\
         request_headers = {{ set = {{ \"X-Tier\" = \"edge\" }}, remove = [\"X-Debug\"] }}\n",
        "0".repeat(32)
    );
    Secure::start_with(&routes, &[]).await
}

async fn python(kind: &str) -> String {
    let server = Port::free();
    let secure = in_front_of(&server).await;
    let [plain, tls, server] = [secure.weir.proxy(), secure.tls.port.addr(), server.addr()];
    let ports = [plain, tls, server].map(|addr| addr.port().to_string());
    let arguments = ["habits", kind, "127.0.0.1", &ports[0], &ports[1], &ports[2]];
    let output = suite(kind, &mut python_module(&arguments)).await;
    assert!(output.contains("ok: "), "{output}");
    output
}

/// The judge is a WSGI server of Python's standard library.
#[tokio::test]
async fn no_spelling_of_a_guarded_header_reaches_a_server() {
    python("guarded").await;
}

#[tokio::test]
async fn what_has_no_body_has_no_framing() {
    python("framing").await;
}

#[tokio::test]
async fn answers_come_as_the_server_sends_them() {
    python("answers").await;
}

/// The cases of Autobahn's test suite for which frames have to be understood (its sections 2 to 7), and closes besides.
/// (That suite itself wants Python 2.7.) The server is the `websockets` library's.
#[tokio::test]
async fn websockets_end_the_same_with_limits_and_without() {
    python("closing").await;
}

/// A browser's requests over HTTP/3, at a server that takes no chunks.
#[tokio::test]
async fn chromium_over_http_3_to_a_strict_server() {
    let server = Recorder::start(|request| match request.values("transfer-encoding").is_empty() {
        true => Reply::Answer(ok("fine")),
        false => Reply::Answer(b"HTTP/1.1 501 No\r\nContent-Length: 0\r\n\r\n".to_vec()),
    })
    .await;
    let routes = format!(
        "[proxy.upstream.strict]\nservers = [\"{}\"]\n[[proxy.route]]\npath = \"/strict\"\nto = \"strict\"\n",
        server.addr()
    );
    let secure = Secure::start_with(&routes, &[]).await;
    let mut command = chromium(&secure.tls, &secure.weir.process);
    command.env("WEIR_ONLY", "strict");
    assert_ran(&suite("Chromium", &mut command).await, 1);
    let seen: Vec<(String, Vec<String>)> = server
        .requests()
        .iter()
        .filter(|request| request.target().starts_with("/strict"))
        .map(|request| {
            let lengths = request.values("content-length").into_iter().map(str::to_owned);
            (request.head.split(' ').next().unwrap_or_default().to_owned(), lengths.collect())
        })
        .collect();
    let said = |method: &str, length: &[&str]| {
        (method.to_owned(), length.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(
        seen,
        [
            said("GET", &[]),
            said("HEAD", &[]),
            said("DELETE", &[]),
            said("POST", &["0"]),
            said("PUT", &["0"]),
            said("POST", &["4"]),
        ]
    );
}

/// Debian's curl over HTTP/2: a slow answer comes in its own time, trailers come, and a target with braces is passed.
#[tokio::test]
async fn curl_over_http_2() {
    let server = Recorder::start(|request| match request.target() {
        "/plain/trailers" => Reply::Answer(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nGrpc-Status: 0\r\n\r\n"
                .to_vec(),
        ),
        _ => Reply::Answer(ok("fine")),
    })
    .await;
    let routes = format!(
        "[proxy.upstream.app]\nservers = [\"{}\"]\n[[proxy.route]]\npath = \"/plain\"\nto = \"app\"\n",
        server.addr()
    );
    let secure = Secure::start_with(&routes, &[]).await;
    let curl = |target: &'static str| {
        let url = format!("https://{}{target}", secure.tls.port);
        async move {
            let mut command = tokio::process::Command::new("curl");
            command.args([
                "--http2",
                "--insecure",
                "--silent",
                "--show-error",
                "--include",
                "--globoff",
                &url,
            ]);
            let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
            let output = within("curl", output).await.unwrap();
            assert!(output.status.success(), "{target}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
    };
    let trailers = curl("/plain/trailers").await;
    assert!(trailers.starts_with("HTTP/2 200") && trailers.contains("ok"), "{trailers}");
    assert!(trailers.contains("grpc-status: 0"), "{trailers}");
    let braces = curl("/plain/?f={a:1}&g=[1]|^").await;
    assert!(braces.starts_with("HTTP/2 200"), "{braces}");
    let targets: Vec<String> = server.requests().iter().map(|request| request.target().to_owned()).collect();
    assert_eq!(targets, ["/plain/trailers", "/plain/?f={a:1}&g=[1]|^"]);
}
