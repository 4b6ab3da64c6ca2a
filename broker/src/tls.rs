//! TLS of the links, with certificates on both sides: who shows none from our authorities gets no
//! further. One object serves both directions, and reads its files again when they change.

use crate::error::BindError;
use crate::link::{GOODBYE_DEADLINE, LinkError};
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, Error, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use weir_core::sync::lock;

/// Handshakes look at most so often whether files have changed.
const LOOK: Duration = Duration::from_secs(2);
/// Of what comes after a handshake that failed, read so that our alert is not lost.
const HEARD_OUT: usize = 64 << 10;

/// A handle.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    files: Files,
    state: Mutex<State>,
}

struct Files {
    cert: PemFile,
    key: PemFile,
    ca: PemFile,
}

struct PemFile {
    /// In the configuration.
    key: &'static str,
    path: String,
}

struct State {
    ready: Ready,
    stamps: [Stamp; 3],
    looked: Instant,
}

#[derive(Clone)]
struct Ready {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

/// Of a file that is there: another one when it is written, replaced or given other rights.
type Stamp = Option<[i64; 4]>;

impl Tls {
    /// `None`: the links are plain.
    pub fn of_broker(conf: &weir_conf::broker::Broker) -> Result<Option<Tls>, BindError> {
        let file = |key, path: &str| PemFile { key, path: path.to_owned() };
        Tls::new(Files {
            cert: file("broker.tls_cert", &conf.tls_cert),
            key: file("broker.tls_key", &conf.tls_key),
            ca: file("broker.tls_ca", &conf.tls_ca),
        })
    }

    /// `None`: the links are plain.
    pub fn of_node(conf: &weir_conf::node::Node) -> Result<Option<Tls>, BindError> {
        let file = |key, path: &str| PemFile { key, path: path.to_owned() };
        Tls::new(Files {
            cert: file("node.broker_tls_cert", &conf.broker_tls_cert),
            key: file("node.broker_tls_key", &conf.broker_tls_key),
            ca: file("node.broker_tls_ca", &conf.broker_tls_ca),
        })
    }

    fn new(files: Files) -> Result<Option<Tls>, BindError> {
        if files.all().iter().all(|file| file.path.is_empty()) {
            return Ok(None);
        }
        if let Some(unset) = files.all().into_iter().find(|file| file.path.is_empty()) {
            return Err(unset.error("it has to be set when the others of the three are"));
        }
        let (stamps, ready) = (files.stamps(), files.load()?);
        let state = Mutex::new(State { ready, stamps, looked: Instant::now() });
        Ok(Some(Tls(Arc::new(Inner { files, state }))))
    }

    /// The side that was connected to, up to the deadline.
    pub async fn accept(
        &self,
        stream: TcpStream,
        deadline: Instant,
    ) -> Result<TlsStream<TcpStream>, LinkError> {
        let acceptor = self.now().await.acceptor;
        match timeout_at(deadline, acceptor.accept(stream).into_fallible()).await {
            Ok(Ok(stream)) => Ok(stream.into()),
            Ok(Err((error, stream))) => {
                let until = deadline.min(Instant::now() + GOODBYE_DEADLINE);
                let _enough = timeout_at(until, hear_out(stream)).await;
                Err(shake_error(error))
            }
            Err(_) => Err(LinkError::Deadline("the TLS handshake")),
        }
    }

    /// The side that has connected, by an address whose host the other's certificate has to name.
    /// Whether it takes ours is known with its first frame only.
    pub async fn connect(
        &self,
        stream: TcpStream,
        addr: &str,
        deadline: Instant,
    ) -> Result<TlsStream<TcpStream>, LinkError> {
        let name = server_name(addr)?;
        let connector = self.now().await.connector;
        match timeout_at(deadline, connector.connect(name, stream)).await {
            Ok(Ok(stream)) => Ok(stream.into()),
            Ok(Err(error)) => Err(shake_error(error)),
            Err(_) => Err(LinkError::Deadline("the TLS handshake")),
        }
    }

    async fn now(&self) -> Ready {
        if self.0.is_due(Instant::now()) {
            let inner = self.0.clone();
            // A panic there leaves what was read before.
            let _looked = tokio::task::spawn_blocking(move || inner.look()).await;
        }
        self.0.lock().ready.clone()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.0.files.cert.path).finish()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// True for one of those who ask.
    fn is_due(&self, now: Instant) -> bool {
        let mut state = self.lock();
        let due = now.saturating_duration_since(state.looked) >= LOOK;
        if due {
            state.looked = now;
        }
        due
    }

    /// Reads changed files. Those that cannot be used, such as a new certificate before its key
    /// has come, change nothing, and are said once.
    fn look(&self) {
        let stamps = self.files.stamps();
        if self.lock().stamps == stamps {
            return;
        }
        let read = self.files.load();
        let mut state = self.lock();
        state.stamps = stamps;
        match read {
            Ok(ready) => {
                state.ready = ready;
                tracing::info!(cert = self.files.cert.path, "TLS files have changed and are in use");
            }
            Err(error) => tracing::warn!(%error, "TLS files have changed; those from before stay in use"),
        }
    }
}

impl Files {
    fn all(&self) -> [&PemFile; 3] {
        [&self.cert, &self.key, &self.ca]
    }

    fn stamps(&self) -> [Stamp; 3] {
        self.all().map(|file| {
            let of = std::fs::metadata(&file.path).ok()?;
            Some([of.dev().cast_signed(), of.ino().cast_signed(), of.ctime(), of.ctime_nsec()])
        })
    }

    fn load(&self) -> Result<Ready, BindError> {
        let provider = Arc::new(ring::default_provider());
        let chain = self.cert.certs()?;
        let key = PrivateKeyDer::from_pem_file(&self.key.path).map_err(|e| self.key.error(e))?;
        let mut roots = RootCertStore::empty();
        for cert in self.ca.certs()? {
            roots.add(cert).map_err(|e| self.ca.error(e))?;
        }
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| self.ca.error(e))?;
        self.judge_ours(&chain, &*clients);
        let of_pair = |error: Error| match error {
            Error::InvalidCertificate(_) => self.cert.error(error),
            Error::InconsistentKeys(_) => self.key.error("it does not belong to the certificate"),
            error => self.key.error(error),
        };
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| self.cert.error(e))?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(of_pair)?;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| self.cert.error(e))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(of_pair)?;
        // A resumed session would not have its certificates looked at again.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        client.resumption = Resumption::disabled();
        Ok(Ready { acceptor: Arc::new(server).into(), connector: Arc::new(client).into() })
    }

    /// Others may know authorities that we do not, so this is no error.
    fn judge_ours(&self, chain: &[CertificateDer<'static>], verifier: &dyn ClientCertVerifier) {
        if let Some((ours, between)) = chain.split_first()
            && let Err(error) = verifier.verify_client_cert(ours, between, UnixTime::now())
        {
            let (key, file) = (self.cert.key, &self.cert.path);
            tracing::warn!(key, file, %error, "whoever knows only our own authorities refuses our certificate");
        }
    }
}

impl PemFile {
    fn certs(&self) -> Result<Vec<CertificateDer<'static>>, BindError> {
        let certs =
            CertificateDer::pem_file_iter(&self.path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let certs = certs.map_err(|e| self.error(e))?;
        match certs.is_empty() {
            true => Err(self.error("it has no certificate")),
            false => Ok(certs),
        }
    }

    fn error(&self, why: impl ToString) -> BindError {
        BindError::Tls { key: self.key, file: self.path.clone(), why: why.to_string() }
    }
}

/// Out of "host:port".
fn server_name(addr: &str) -> Result<ServerName<'static>, LinkError> {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(host.to_owned()).map_err(|_| LinkError::Tls(format!("{host:?} is no name for TLS")))
}

/// A close with bytes unread would be a reset, and that may overtake the alert.
async fn hear_out(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    let (mut buffer, mut heard) = ([0; 1024], 0);
    while heard < HEARD_OUT {
        match stream.read(&mut buffer).await? {
            0 => break,
            n => heard += n,
        }
    }
    Ok(())
}

fn shake_error(error: io::Error) -> LinkError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => LinkError::Tls("the other side closed in the TLS handshake".into()),
        _ => error.into(),
    }
}

/// What is wrong, if it is TLS that is wrong.
pub fn trouble(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match error {
        Error::InvalidMessage(_) => "the other side does not speak TLS, and here it is set".into(),
        Error::NoCertificatesPresented => "the other side shows no certificate".into(),
        Error::AlertReceived(alert) => format!("the other side refuses our TLS: {alert:?}"),
        error => error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::{self, Authority};
    use tokio::net::TcpListener;

    fn conf(files: &certs::Files) -> weir_conf::broker::Broker {
        let mut conf = weir_conf::Config::default().broker;
        files.set_broker(&mut conf);
        conf
    }

    fn tls(files: &certs::Files) -> Tls {
        Tls::of_broker(&conf(files)).unwrap().unwrap()
    }

    #[test]
    fn a_name_is_the_host_of_an_address() {
        for (addr, host) in [
            ("broker-1.internal:8200", "broker-1.internal"),
            ("10.0.0.7:8200", "10.0.0.7"),
            ("[2001:db8::1]:8200", "2001:db8::1"),
            ("localhost", "localhost"),
        ] {
            assert_eq!(server_name(addr).unwrap().to_str(), host);
        }
        assert!(server_name("no name:1").is_err() && server_name(":1").is_err());
    }

    #[test]
    fn a_bad_file_is_named_with_its_key() {
        let authority = Authority::new("ours");
        let (files, other) = (authority.files(), authority.files());
        let (text, empty) = (files.path("text"), files.path("empty"));
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        std::fs::write(&text, broken).unwrap();
        std::fs::write(&empty, "").unwrap();
        for (at, path, said) in [
            ("tls_cert", "/no/such/file", "No such file"),
            ("tls_cert", &*text, ""),
            ("tls_cert", &*empty, "it has no certificate"),
            ("tls_key", "/no/such/file", "No such file"),
            ("tls_key", &files.cert(), ""),
            ("tls_key", &other.key(), "does not belong to the certificate"),
            ("tls_key", "", "it has to be set"),
            ("tls_ca", "/no/such/file", "No such file"),
            ("tls_ca", &*text, ""),
            ("tls_ca", &files.key(), "it has no certificate"),
        ] {
            let mut conf = conf(&files);
            *match at {
                "tls_cert" => &mut conf.tls_cert,
                "tls_key" => &mut conf.tls_key,
                _ => &mut conf.tls_ca,
            } = path.to_owned();
            let error = Tls::of_broker(&conf).unwrap_err().to_string();
            let named = error.starts_with(&format!("broker.{at} = {path:?}: "));
            assert!(named && error.contains(said), "{at} {path}: {error}");
        }
        assert!(Tls::of_broker(&weir_conf::Config::default().broker).unwrap().is_none());
    }

    /// Up to the first byte of the other side, with which the dialler knows that it was taken.
    async fn shake(dials: &Tls, listens: &Tls) -> bool {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let accept = async {
            let (stream, _) = socket.accept().await.unwrap();
            let mut stream = listens.accept(stream, deadline).await?;
            stream.write_all(b"x").await?;
            stream.flush().await?;
            Ok::<_, LinkError>(stream)
        };
        let dial = async {
            let stream = TcpStream::connect(addr).await?;
            let mut stream = dials.connect(stream, &addr.to_string(), deadline).await?;
            Ok::<_, LinkError>(stream.read_u8().await?)
        };
        let (accepted, dialled) = tokio::join!(accept, dial);
        assert_eq!(accepted.is_ok(), dialled.is_ok(), "{:?} {dialled:?}", accepted.err());
        dialled.is_ok()
    }

    #[tokio::test]
    async fn files_that_change_are_used_without_a_restart() {
        let (old, new) = (Authority::new("old"), Authority::new("new"));
        let (files, peer) = (old.files(), old.files());
        let (a, b) = (tls(&files), tls(&peer));
        assert!(shake(&a, &b).await);
        files.replace(&new.files());
        assert!(shake(&a, &b).await, "not looked at yet");
        a.0.look();
        assert!(!shake(&a, &b).await && !shake(&b, &a).await, "each believes another authority");
        peer.replace(&new.files());
        b.0.look();
        assert!(shake(&a, &b).await && shake(&b, &a).await);
        // A certificate whose key has not come yet.
        let next = new.files();
        files.replace_one("cert.pem", &next);
        a.0.look();
        assert!(shake(&a, &b).await, "what was there before");
        std::fs::remove_file(files.key()).unwrap();
        a.0.look();
        files.replace_one("key.pem", &next);
        let before = a.0.lock().stamps;
        a.0.look();
        assert!(a.0.lock().stamps != before && shake(&a, &b).await && shake(&b, &a).await);
    }

    #[tokio::test(start_paused = true)]
    async fn handshakes_look_at_the_files_now_and_then() {
        let tls = tls(&Authority::new("ours").files());
        let start = Instant::now();
        assert!(!tls.0.is_due(start + LOOK / 2));
        assert!(tls.0.is_due(start + LOOK) && !tls.0.is_due(start + LOOK), "one of them looks");
        assert!(tls.0.is_due(start + LOOK * 2));
    }
}
