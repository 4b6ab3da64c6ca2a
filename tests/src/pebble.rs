//! Pebble, the ACME test server of Let's Encrypt, as a real process: it refuses a fifth of all good nonces, and
//! finds every name at 127.0.0.1, except those below `nowhere.test`, which are nowhere.
//!
//! `tests/setup.sh` builds it, and so does the first test that needs it, in a folder of the target directory.

use crate::ports::Port;
use crate::until;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// As in `tests/setup.sh`.
const VERSION: &str = "v2.10.1";

pub struct Pebble {
    child: Child,
    at: SocketAddr,
    management: SocketAddr,
    folder: TempDir,
    _ports: [Port; 2],
}

/// Where it looks for challenges, and what it asks of accounts.
pub struct Spec {
    /// HTTP-01.
    pub http: SocketAddr,
    /// TLS-ALPN-01.
    pub tls: SocketAddr,
    /// Id and key (base64url) of the external account that each account must be bound to.
    pub external: Option<(&'static str, &'static str)>,
}

impl Pebble {
    /// Starts it and waits until it answers.
    pub async fn start(spec: &Spec) -> Pebble {
        let ports = [Port::free(), Port::free()];
        let [at, management] = ports.each_ref().map(Port::addr);
        let folder = TempDir::new().expect("a folder for pebble");
        let path = |name: &str| folder.path().join(name);
        certificates(folder.path());
        let conf = json!({ "pebble": {
            "listenAddress": at,
            "managementListenAddress": management,
            "certificate": path("server.pem"),
            "privateKey": path("server.key"),
            "httpPort": spec.http.port(),
            "tlsPort": spec.tls.port(),
            "externalAccountBindingRequired": spec.external.is_some(),
            "externalAccountMACKeys": spec.external.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
            "retryAfter": { "authz": 1, "order": 1 },
        }});
        std::fs::write(path("conf.json"), conf.to_string()).expect("pebble's conf");
        let log = File::create(path("log")).expect("pebble's log");
        let child = Command::new(binary())
            .arg("-config")
            .arg(path("conf.json"))
            .args(["-dnsserver", &names().await.to_string()])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_WFE_NONCEREJECT", "20")
            // Each order shows its names anew.
            .env("PEBBLE_AUTHZREUSE", "0")
            .stdin(Stdio::null())
            .stderr(log.try_clone().expect("one log"))
            .stdout(log)
            .kill_on_drop(true)
            .spawn()
            .expect("pebble starts");
        let pebble = Pebble { child, at, management, folder, _ports: ports };
        for addr in [at, management] {
            let connect =
                || async move { TcpStream::connect(addr).await.map(drop).map_err(|e| e.to_string()) };
            until("pebble answers", connect).await;
        }
        pebble
    }

    /// For `proxy.acme.directory`.
    pub fn directory(&self) -> String {
        format!("https://{}/dir", self.at)
    }

    /// For `proxy.acme.ca`.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// PEM of the authority that it issues from.
    pub async fn root(&self) -> String {
        let ca = std::fs::read_to_string(self.ca()).expect("pebble's own authority");
        let mut tls =
            handshake(self.management, "127.0.0.1", &ca).await.expect("pebble shows its certificate");
        let request = b"GET /roots/0 HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n";
        tls.write_all(request).await.expect("a request");
        let mut answer = Vec::new();
        tls.read_to_end(&mut answer).await.expect("an answer");
        let answer = String::from_utf8(answer).expect("PEM");
        answer[answer.find("-----BEGIN CERTIFICATE-----").expect("a root")..].to_owned()
    }

    /// Of its other listener, where a test can change windows of renewal.
    pub fn management(&self) -> String {
        format!("https://{}", self.management)
    }

    /// What it did so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// It answers nobody any more; its files stay.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("pebble is killed");
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of pebble ----\n{}\n---- end ----", self.log());
        }
    }
}

/// With a server that shows a certificate for this name, of this authority (PEM).
pub async fn handshake(addr: SocketAddr, name: &str, authority: &str) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(authority.as_bytes()) {
        roots.add(root.expect("PEM")).expect("an authority");
    }
    let conf = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions that ring knows")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    TlsConnector::from(Arc::new(conf)).connect(name, TcpStream::connect(addr).await?).await
}

/// Built if it is not there.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        // This test is target/PROFILE/deps/NAME.
        let own = std::env::current_exe().expect("own path");
        let target = own.ancestors().nth(3).expect("target/PROFILE/deps");
        let folder = target.join("tools").join(format!("pebble-{VERSION}"));
        let binary = folder.join("pebble");
        if !binary.exists() {
            let built = std::process::Command::new("go")
                .args(["install", &format!("github.com/letsencrypt/pebble/v2/cmd/pebble@{VERSION}")])
                .env("GOBIN", &folder)
                .status();
            let sound = built.as_ref().is_ok_and(ExitStatus::success);
            assert!(sound, "cannot build pebble, for which Go is needed: {built:?}");
        }
        binary
    })
}

/// An authority, and a certificate of it for 127.0.0.1.
fn certificates(folder: &Path) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let ca = params.self_signed(&key).expect("an authority");
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
    let server = params.signed_by(&key, &issuer).expect("a certificate");
    for (name, text) in
        [("ca.pem", ca.pem()), ("server.pem", server.pem()), ("server.key", key.serialize_pem())]
    {
        std::fs::write(folder.join(name), text).expect("a file of pebble's");
    }
}

/// A server of names for whoever asks over TCP, as pebble does.
async fn names() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port for names");
    let addr = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            // One that breaks off has no more to ask.
            tokio::spawn(async move { drop(answer(tcp).await) });
        }
    });
    addr
}

async fn answer(mut tcp: TcpStream) -> io::Result<()> {
    loop {
        let length = tcp.read_u16().await?;
        let mut query = vec![0; length.into()];
        tcp.read_exact(&mut query).await?;
        let answer = resolve(&query).ok_or(io::ErrorKind::InvalidData)?;
        tcp.write_u16(u16::try_from(answer.len()).map_err(io::Error::other)?).await?;
        tcp.write_all(&answer).await?;
    }
}

/// RFC 1035 §4. An A record for 127.0.0.1, nothing of any other kind, and nothing at all below `nowhere.test`.
fn resolve(query: &[u8]) -> Option<Vec<u8>> {
    let (mut at, mut name) = (12, Vec::new());
    loop {
        let length = usize::from(*query.get(at)?);
        if length == 0 {
            break;
        }
        name.push(String::from_utf8_lossy(query.get(at + 1..at + 1 + length)?).to_lowercase());
        at += 1 + length;
    }
    let question = query.get(12..at + 5)?;
    let is_a = question.ends_with(&[0, 1, 0, 1]);
    let nowhere = name.ends_with(&["nowhere".to_owned(), "test".to_owned()]);
    let found = u8::from(is_a && !nowhere);
    let mut answer = query.get(..2)?.to_vec();
    // A response to a recursive query; 3: there is no such name.
    answer.extend([0x81, if nowhere { 0x83 } else { 0x80 }, 0, 1, 0, found, 0, 0, 0, 0]);
    answer.extend(question);
    if found == 1 {
        // The name as in the question, A, IN, for a minute, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    Some(answer)
}
