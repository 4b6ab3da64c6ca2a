//! Endpoints from outside: quinn's clients, and raw datagrams where no client would send such.

use super::id::Generator;
use super::*;
use crate::admit::Refused;
use crate::admit::counts::Counts;
use prometheus_client::metrics::gauge::Gauge;
use quinn::ConnectionIdGenerator;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, RecvStream, SendStream};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use weir_core::sync::lock;

pub const SOON: Duration = Duration::from_secs(10);

/// A certificate for `localhost`, and whoever trusts it.
pub struct Cert {
    pub tls: rustls::ServerConfig,
    pub der: CertificateDer<'static>,
}

impl Cert {
    /// `names` besides: a certificate can be made as long as one likes.
    pub fn new(names: usize) -> Cert {
        let more = (0..names).map(|n| format!("name-{n}.of-some-length.example.com"));
        let made = rcgen::generate_simple_self_signed(
            std::iter::once("localhost".to_owned()).chain(more).collect::<Vec<_>>(),
        )
        .unwrap();
        let der = made.cert.der().clone();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![der.clone()], key.into())
            .unwrap();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        Cert { tls, der }
    }

    pub fn settings<'a>(&self, conf: &'a weir_conf::proxy::Quic) -> Settings<'a> {
        let mut tls = self.tls.clone();
        tls.max_early_data_size = if conf.early_data { u32::MAX } else { 0 };
        let tls: Arc<dyn quinn::crypto::ServerConfig> = Arc::new(QuicServerConfig::try_from(tls).unwrap());
        Settings { conf, crypto: Arc::new(move || tls.clone()), early: conf.early_data }
    }

    pub fn client_tls(&self) -> rustls::ClientConfig {
        client_tls(self.der.clone())
    }

    pub fn client(&self) -> ClientConfig {
        ClientConfig::new(Arc::new(QuicClientConfig::try_from(self.client_tls()).unwrap()))
    }
}

pub fn client_tls(trusted: CertificateDer<'static>) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted).unwrap();
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    tls
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A host that echoes each stream, and has limits of its own.
#[derive(Default)]
pub struct Echo {
    total: Gauge,
    pub counts: Arc<Counts>,
    pub max_per_ip: AtomicUsize,
    pub denied: Mutex<Vec<IpAddr>>,
    pub served: AtomicUsize,
    /// Streams that began before the handshake was over, and whether they were told so.
    pub early: AtomicUsize,
    /// Whether each stream counts as a connection of its address, besides.
    pub count_streams: AtomicBool,
    /// Handshakes that there were, and that there may be; 0: no limit.
    pub shaken: AtomicUsize,
    pub max_shaken: AtomicUsize,
}

impl Host for Echo {
    fn connection(&self, ip: IpAddr) -> Result<Place, Refused> {
        let refused = |cause| Refused { status: 403, cause, retry_after: None };
        if lock(&self.denied).contains(&ip) {
            return Err(refused("denied"));
        }
        Place::among(&self.total, 0).ok_or(refused("connections"))
    }

    fn address(&self, ip: IpAddr) -> Result<Option<KeyPlace>, Refused> {
        let refused = |cause| Refused { status: 503, cause, retry_after: None };
        if lock(&self.denied).contains(&ip) {
            return Err(refused("denied"));
        }
        let key = crate::admit::key::of_ip(ip, 64);
        self.counts.place(key, self.max_per_ip.load(Relaxed)).map_err(|()| refused("connections_per_ip"))
    }

    fn handshake(&self, ip: IpAddr) -> Result<(), Refused> {
        if self.owes(ip) {
            return Err(Refused { status: 429, cause: "tls_handshake_rate", retry_after: None });
        }
        self.shaken.fetch_add(1, Relaxed);
        Ok(())
    }

    fn owes(&self, _: IpAddr) -> bool {
        let max = self.max_shaken.load(Relaxed);
        max != 0 && self.shaken.load(Relaxed) >= max
    }

    async fn serve(self: Arc<Self>, arrival: Arrival) {
        self.served.fetch_add(1, Relaxed);
        let mut streams = JoinSet::new();
        while let Ok((send, receive)) = arrival.connection.accept_bi().await {
            if receive.is_0rtt() && !arrival.confirmed.is_done() {
                self.early.fetch_add(1, Relaxed);
            }
            let place = match self.count_streams.load(Relaxed) {
                true => self.address(arrival.follower.address()).ok().flatten(),
                false => None,
            };
            if let Some(place) = &place {
                arrival.follower.follow(place);
            }
            streams.spawn(async move {
                echo(send, receive).await;
                drop(place);
            });
        }
    }
}

async fn echo(mut send: SendStream, mut receive: RecvStream) {
    while let Ok(Some(chunk)) = receive.read_chunk(64 << 10, true).await {
        if send.write_all(&chunk.bytes).await.is_err() {
            return;
        }
    }
}

/// An endpoint that serves.
pub struct Served {
    pub endpoint: Endpoint,
    pub host: Arc<Echo>,
    pub metrics: Metrics,
    pub identity: Arc<Identity>,
    pub task: JoinHandle<io::Result<()>>,
}

impl Served {
    pub fn start(
        conf: &weir_conf::proxy::Quic,
        cert: &Cert,
        inherited: Option<(Handed, Succession)>,
        host: Echo,
    ) -> Served {
        let (handed, before) = inherited.unzip();
        let identity = Arc::new(Identity::new(conf, before).unwrap());
        let settings = cert.settings(conf);
        let metrics = Metrics::default();
        let at = (Ipv4Addr::LOCALHOST, 0).into();
        let endpoint =
            Endpoint::bind((at, Family::Both), handed, &settings, identity.clone(), metrics.clone()).unwrap();
        let host = Arc::new(host);
        let (served, with) = (endpoint.clone(), host.clone());
        let task = tokio::spawn(async move { served.serve(with).await });
        Served { endpoint, host, metrics, identity, task }
    }

    pub fn addr(&self) -> SocketAddr {
        self.endpoint.local_addr()
    }

    pub async fn counted(&self, family: &str, outcome: &'static str, at_least: u64) {
        let there = async {
            while self.metrics.count(family, outcome) < at_least {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let what = || format!("{family} {outcome}: {} of {at_least}", self.metrics.count(family, outcome));
        timeout(SOON, there).await.unwrap_or_else(|_| panic!("{}", what()));
    }
}

pub fn conf() -> weir_conf::proxy::Quic {
    crate::testing::conf().quic
}

pub fn client() -> quinn::Endpoint {
    quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap()
}

pub async fn connect(client: &quinn::Endpoint, config: ClientConfig, to: SocketAddr) -> Connection {
    let connecting = client.connect_with(config, to, "localhost").unwrap();
    timeout(SOON, connecting).await.unwrap().unwrap()
}

/// A stream whose messages come back.
pub struct Line(SendStream, RecvStream, u64);

impl Line {
    pub async fn open(connection: &Connection) -> Line {
        let (send, receive) = connection.open_bi().await.unwrap();
        let mut line = Line(send, receive, 0);
        line.round().await;
        line
    }

    /// The next number, there and back.
    pub async fn round(&mut self) {
        let Line(send, receive, next) = self;
        let mut back = [0; 8];
        send.write_all(&next.to_be_bytes()).await.unwrap();
        timeout(SOON, receive.read_exact(&mut back)).await.expect("no echo").unwrap();
        assert_eq!(u64::from_be_bytes(back), *next);
        *next += 1;
    }
}

/// The first datagram of a client, that it sends to somebody who never answers.
async fn initial(cert: &Cert) -> Vec<u8> {
    let sink = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let client = client();
    let _pending = client.connect_with(cert.client(), sink.local_addr().unwrap(), "localhost").unwrap();
    let mut datagram = vec![0; 2000];
    let length = sink.recv(&mut datagram).await.unwrap();
    datagram.truncate(length);
    assert!(datagram.len() >= 1200);
    datagram
}

async fn raw(to: SocketAddr) -> tokio::net::UdpSocket {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(to).await.unwrap();
    socket
}

/// All that comes within this time.
async fn answers(socket: &tokio::net::UdpSocket, within: Duration) -> Vec<Vec<u8>> {
    let (until, mut all, mut datagram) = (Instant::now() + within, Vec::new(), vec![0; 2000]);
    while let Ok(Ok(length)) = tokio::time::timeout_at(until, socket.recv(&mut datagram)).await {
        all.push(datagram[..length].to_vec());
    }
    all
}

#[tokio::test]
async fn a_client_comes_in_and_its_place_is_given_back() {
    let cert = Cert::new(0);
    let served = Served::start(&conf(), &cert, None, Echo::default());
    served.host.max_per_ip.store(1, Relaxed);
    let client = client();
    let connection = connect(&client, cert.client(), served.addr()).await;
    Line::open(&connection).await;
    assert_eq!((served.metrics.connections.get(), served.metrics.handshakes.get()), (1, 0));
    // Over the limit of its address: told so at once.
    let second = client.connect_with(cert.client(), served.addr(), "localhost").unwrap().await;
    assert!(matches!(second, Err(quinn::ConnectionError::ConnectionClosed(_))), "{second:?}");
    assert_eq!(served.metrics.count("incoming", "denied"), 1);
    connection.close(0u32.into(), b"");
    while served.metrics.connections.get() > 0 {
        sleep(Duration::from_millis(5)).await;
    }
    connect(&client, cert.client(), served.addr()).await;
    assert!(served.metrics.packets_sent.get() > 2);
    lock(&served.host.denied).push(Ipv4Addr::LOCALHOST.into());
    client.connect_with(cert.client(), served.addr(), "localhost").unwrap().await.unwrap_err();
}

#[tokio::test]
async fn above_the_threshold_clients_show_their_address_once() {
    let cert = Cert::new(0);
    let served =
        Served::start(&weir_conf::proxy::Quic { retry_above: 0, ..conf() }, &cert, None, Echo::default());
    let (client, config) = (client(), cert.client());
    let connection = connect(&client, config.clone(), served.addr()).await;
    Line::open(&connection).await;
    let counted = |outcome| served.metrics.count("incoming", outcome);
    assert_eq!((counted("retry"), counted("accepted")), (1, 1));
    // It comes back with the token that it got on that connection.
    Line::open(&connect(&client, config, served.addr()).await).await;
    assert_eq!((counted("retry"), counted("accepted")), (1, 2));
    // Nobody else has such a token, and answers to who never comes back keep nothing.
    let flood = raw(served.addr()).await;
    let first = initial(&cert).await;
    for sent in 1..=50 {
        flood.send(&first).await.unwrap();
        // The same again, while one waits to be looked at, counts as a part of it.
        served.counted("incoming", "retry", 1 + sent).await;
    }
    assert_eq!(served.metrics.handshakes.get(), 0);
}

/// Who only writes its address on packets takes nothing from it, and gets no further than anybody.
#[tokio::test]
async fn an_address_over_its_rate_of_handshakes_has_to_show_itself_and_is_refused() {
    let cert = Cert::new(0);
    let served = Served::start(&conf(), &cert, None, Echo::default());
    served.host.max_shaken.store(2, Relaxed);
    for sent in 1..=5 {
        // Never finished.
        raw(served.addr()).await.send(&initial(&cert).await).await.unwrap();
        served.counted("incoming", "accepted", sent).await;
    }
    assert_eq!(served.host.shaken.load(Relaxed), 0);
    let client = client();
    for _ in 0..2 {
        Line::open(&connect(&client, cert.client(), served.addr()).await).await;
    }
    let counted = |outcome| served.metrics.count("incoming", outcome);
    assert_eq!((counted("retry"), counted("denied")), (0, 0));
    let third = client.connect_with(cert.client(), served.addr(), "localhost").unwrap().await;
    assert!(matches!(third, Err(quinn::ConnectionError::ConnectionClosed(_))), "{third:?}");
    assert_eq!((counted("retry"), counted("denied")), (1, 1));
    served.host.max_shaken.store(3, Relaxed);
    Line::open(&connect(&client, cert.client(), served.addr()).await).await;
}

#[tokio::test]
async fn a_flood_of_first_packets_stops_at_the_limit_and_takes_nobodys_place() {
    let cert = Cert::new(0);
    let limits = weir_conf::proxy::Quic {
        retry_above: 2,
        max_handshakes: 2,
        handshake_timeout: Duration::from_millis(700),
        ..conf()
    };
    let served = Served::start(&limits, &cert, None, Echo::default());
    served.host.max_per_ip.store(1, Relaxed);
    let flood = raw(served.addr()).await;
    for _ in 0..3 {
        // Each of another client.
        flood.send(&initial(&cert).await).await.unwrap();
    }
    served.counted("incoming", "ignored", 1).await;
    assert_eq!((served.metrics.count("incoming", "accepted"), served.metrics.handshakes.get()), (2, 2));
    // Until they have had their time a client gets no answer; then it is in, at the same address.
    let connection = connect(&client(), cert.client(), served.addr()).await;
    Line::open(&connection).await;
    assert_eq!(served.metrics.count("handshakes", "timeout"), 2);
}

#[tokio::test]
async fn an_address_that_was_not_shown_gets_three_times_what_it_sent_at_most() {
    // Its handshake alone is longer than that.
    let cert = Cert::new(300);
    assert!(cert.der.len() > 8000);
    let short = weir_conf::proxy::Quic { handshake_timeout: Duration::from_millis(2500), ..conf() };
    let served = Served::start(&short, &cert, None, Echo::default());
    let first = initial(&cert).await;
    let socket = raw(served.addr()).await;
    socket.send(&first).await.unwrap();
    let back = answers(&socket, Duration::from_secs(3)).await;
    let bytes: usize = back.iter().map(Vec::len).sum();
    assert!(bytes > first.len(), "{bytes}");
    assert!(bytes <= 3 * first.len(), "{bytes} for {}", first.len());
    assert_eq!(served.metrics.count("handshakes", "timeout"), 1);
    // Who answers gets all of it.
    connect(&client(), cert.client(), served.addr()).await;
}

#[tokio::test]
async fn garbage_gets_no_answer_and_does_nothing() {
    let cert = Cert::new(0);
    let served = Served::start(&conf(), &cert, None, Echo::default());
    let socket = raw(served.addr()).await;
    let first = initial(&cert).await;
    for n in 0..2000_usize {
        let mut noise: Vec<u8> = (0..n % 1400).map(|_| rand::random()).collect();
        // A full-sized one in the long form would be a version that we do not know.
        if let Some(form) = noise.first_mut().filter(|_| n % 1400 >= 1200) {
            *form &= 0x7f;
        }
        socket.send(&noise).await.unwrap();
        if n.is_multiple_of(50) {
            tokio::task::yield_now().await;
        }
    }
    // Too small to be a first packet, damaged, and with the type of a later one.
    socket.send(&first[..1199]).await.unwrap();
    socket.send(&[&first[..100], &vec![0xaa; 1100]].concat()).await.unwrap();
    socket.send(&[&[first[0] | 0x30], &first[1..]].concat()).await.unwrap();
    let back = answers(&socket, Duration::from_millis(300)).await;
    assert!(back.is_empty(), "{back:02x?}");
    assert_eq!(served.metrics.count("incoming", "accepted"), 0);
    Line::open(&connect(&client(), cert.client(), served.addr()).await).await;
}

#[tokio::test]
async fn other_versions_are_told_of_ours() {
    let cert = Cert::new(0);
    let served = Served::start(&conf(), &cert, None, Echo::default());
    let socket = raw(served.addr()).await;
    let mut hello = [&[0xc3, 0x1a, 0x2a, 0x3a, 0x4a, 8][..], &[1; 8], &[8], &[2; 8]].concat();
    hello.resize(1199, 0);
    socket.send(&hello).await.unwrap();
    assert!(answers(&socket, Duration::from_millis(100)).await.is_empty());
    hello.push(0);
    socket.send(&hello).await.unwrap();
    let back = answers(&socket, Duration::from_millis(300)).await;
    let [answer] = &back[..] else { panic!("{back:02x?}") };
    assert_eq!((answer[0] & 0x80, &answer[1..5]), (0x80, &[0; 4][..]));
    let (ids, versions) = answer[5..].split_at(18);
    assert_eq!(ids, [&[8][..], &[2; 8], &[8], &[1; 8]].concat());
    assert!(versions.chunks(4).any(|version| version == [0, 0, 0, 1]), "{versions:02x?}");
    assert!(answer.len() < hello.len());
}

#[tokio::test]
async fn clients_see_the_server_id() {
    let cert = Cert::new(0);
    let balanced = weir_conf::proxy::Quic { server_id: "0a01".into(), config_id: 3, ..conf() };
    let served = Served::start(&balanced, &cert, None, Echo::default());
    let socket = raw(served.addr()).await;
    socket.send(&initial(&cert).await).await.unwrap();
    let mut answer = vec![0; 2000];
    timeout(SOON, socket.recv(&mut answer)).await.unwrap().unwrap();
    let after_theirs = 6 + usize::from(answer[5]);
    let id = &answer[after_theirs + 1..][..usize::from(answer[after_theirs])];
    assert_eq!((id[0] >> 5, usize::from(id[0] & 31) + 1, &id[1..3]), (3, id.len(), &[0x0a, 1][..]));
    Line::open(&connect(&client(), cert.client(), served.addr()).await).await;
}

/// After a restart with the same key: clients learn at once that their connections are gone.
#[tokio::test]
async fn connections_of_a_former_process_are_reset() {
    let cert = Cert::new(0);
    let keyed = weir_conf::proxy::Quic {
        token_key: weir_conf::units::Secret::new("the same key for all of them, always".into()),
        ..conf()
    };
    let former = Identity::new(&keyed, None).unwrap();
    let served = Served::start(&keyed, &cert, None, Echo::default());
    let socket = raw(served.addr()).await;
    let id = Generator(former.ids.clone()).generate_cid();
    let packet = [&[0x41], &*id, &[7; 60]].concat();
    socket.send(&packet).await.unwrap();
    let mut reset = vec![0; 2000];
    let length = timeout(SOON, socket.recv(&mut reset)).await.unwrap().unwrap();
    assert!(length < packet.len());
    let token = ring::hmac::sign(&served.identity.reset_key, &id);
    assert_eq!(reset[length - 16..length], token.as_ref()[..16]);
}

#[tokio::test]
async fn certificates_are_swapped_for_new_connections_and_none_closes() {
    let (old, new, newest) = (Cert::new(0), Cert::new(1), Cert::new(2));
    let served = Served::start(&conf(), &old, None, Echo::default());
    let client = client();
    let connection = connect(&client, old.client(), served.addr()).await;
    let mut line = Line::open(&connection).await;
    let shown = async |trusting: &Cert| {
        let shown = connect(&client, trusting.client(), served.addr()).await.peer_identity().unwrap();
        *shown.downcast::<Vec<CertificateDer<'static>>>().unwrap()
    };
    // By a reload, and then by itself: a file has changed.
    let conf = conf();
    let (before, after) = (new.settings(&conf).crypto, newest.settings(&conf).crypto);
    let changed = Arc::new(AtomicBool::new(false));
    let of = changed.clone();
    let crypto: Crypto = Arc::new(move || if of.load(Relaxed) { after() } else { before() });
    served.endpoint.configure(&Settings { conf: &conf, crypto, early: false }).unwrap();
    assert_eq!(shown(&new).await.first(), Some(&new.der));
    line.round().await;
    changed.store(true, Relaxed);
    assert_eq!(shown(&newest).await.first(), Some(&newest.der));
    line.round().await;
}

#[tokio::test]
async fn early_data_is_taken_only_where_the_conf_says_so_and_is_told_apart() {
    for early_data in [false, true] {
        let cert = Cert::new(0);
        let served =
            Served::start(&weir_conf::proxy::Quic { early_data, ..conf() }, &cert, None, Echo::default());
        served.host.max_per_ip.store(2, Relaxed);
        let mut tls = cert.client_tls();
        tls.enable_early_data = true;
        let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let client = client();
        let first = connect(&client, config.clone(), served.addr()).await;
        let mut line = Line::open(&first).await;
        line.round().await;
        let connecting = client.connect_with(config, served.addr(), "localhost").unwrap();
        let early = connecting.into_0rtt();
        assert_eq!(early.is_ok(), early_data);
        let Ok((connection, accepted)) = early else { continue };
        Line::open(&connection).await;
        assert!(accepted.await);
        assert_eq!(served.host.early.load(Relaxed), 1);
        served.counted("handshakes", "done", 2).await;
        // Both have their place at the address by now.
        client.connect_with(cert.client(), served.addr(), "localhost").unwrap().await.unwrap_err();
    }
}

#[tokio::test]
async fn closed_to_new_connections_the_open_ones_stay() {
    let cert = Cert::new(0);
    let served = Served::start(&conf(), &cert, None, Echo::default());
    let client = client();
    let connection = connect(&client, cert.client(), served.addr()).await;
    let mut line = Line::open(&connection).await;
    served.endpoint.close();
    let refused = client.connect_with(cert.client(), served.addr(), "localhost").unwrap().await;
    assert!(matches!(refused, Err(quinn::ConnectionError::ConnectionClosed(_))), "{refused:?}");
    line.round().await;
    assert!(served.endpoint.reopen());
    connect(&client, cert.client(), served.addr()).await.close(0u32.into(), b"");
    line.round().await;
    served.endpoint.close();
    connection.close(0u32.into(), b"");
    timeout(SOON, served.task).await.unwrap().unwrap().unwrap();
    assert!(!served.endpoint.reopen());
}
