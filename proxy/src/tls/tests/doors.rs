//! A whole proxy that asks its clients for certificates, over TCP and QUIC, with `early_data` and without: nobody
//! comes in as nobody who was to say who he is.

use super::common::{Authority, Pair};
use crate::front::h3::testing::{request, within};
use crate::{Inherited, Proxy};
use http::Method;
use prometheus_client::registry::Registry;
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{CertificateParams, DnType, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::pki_types::ServerName;
use rustls::version::TLS13;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use weir_conf::proxy::tls::{ClientCerts, Listen};
use weir_conf::proxy::{Route, Upstream};
use weir_core::drain::Drain;
use weir_h3::stream::Uni;
use weir_h3::{Settings, frame, head};
use weir_tests::ports::Port;

struct House {
    at: Port,
    /// The heads that its server was asked with.
    asked: mpsc::UnboundedReceiver<String>,
    drain: Drain,
}

fn house(authority: &Authority, asks: ClientCerts, early: bool) -> House {
    let (files, at) = (tempfile::tempdir().unwrap(), Port::free());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut conf = crate::testing::conf();
    conf.listen = vec!["127.0.0.1:0".parse().unwrap()];
    (conf.threads, conf.quic.early_data) = (1, early);
    conf.tls.listen = vec![Listen { client_certs: asks, ..Listen::at(at.addr()) }];
    conf.tls.certificates = vec![authority.sign(&["localhost"]).put(files.path(), "site")];
    std::fs::write(files.path().join("ca.pem"), &authority.pem).unwrap();
    conf.tls.client_ca = files.path().join("ca.pem").to_str().unwrap().to_owned();
    conf.upstream.clear();
    conf.upstream.insert("app".into(), Upstream::of([listener.local_addr().unwrap().to_string()]));
    conf.route = vec![Route::to("app")];
    let proxy = Proxy::bind(&conf, None, &mut Registry::default(), Inherited::new()).unwrap();
    let drain = Drain::new();
    tokio::spawn(proxy.run(drain.clone()));
    let (heads, asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { break };
                head.push(byte);
            }
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let _gone = stream.write_all(answer).await;
            let _test_over = heads.send(String::from_utf8(head).unwrap());
        }
    });
    House { at, asked, drain }
}

impl House {
    /// Whether a request was answered.
    async fn ask_quic(&self, authority: &Authority, shows: Option<&Pair>) -> bool {
        let mut tls = authority.client_of(&[&TLS13], shows);
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let crypto = QuicClientConfig::try_from(tls).unwrap();
        let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
        let Ok(conn) = within(endpoint.connect(self.at.addr(), "localhost").unwrap()).await else {
            return false;
        };
        // As soon as the client may: it is done before the server has seen its certificate.
        let exchange = async {
            let mut hello = Vec::new();
            Uni::Control.write(&mut hello);
            frame::settings(&Settings::new(16 * 1024), &mut hello);
            let (mut control, (mut send, mut recv)) =
                (conn.open_uni().await.ok()?, conn.open_bi().await.ok()?);
            control.write_all(&hello).await.ok()?;
            let asked = head::encode_request(&request(Method::GET, "/")).finish();
            send.write_all(&frame::headers(&asked)).await.ok()?;
            send.finish().ok()?;
            recv.read_to_end(4096).await.ok().filter(|answer| !answer.is_empty())
        };
        within(exchange).await.is_some()
    }

    async fn ask_tcp(&self, authority: &Authority, shows: Option<&Pair>) -> bool {
        let mut tls = authority.client_of(&[&TLS13], shows);
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let exchange = async {
            let stream = TcpStream::connect(self.at.addr()).await.ok()?;
            let name = ServerName::try_from("localhost").ok()?;
            let mut stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await.ok()?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await.ok()?;
            let mut answer = Vec::new();
            // It may end without a goodbye.
            let _ended = stream.read_to_end(&mut answer).await;
            (!answer.is_empty()).then_some(())
        };
        within(exchange).await.is_some()
    }
}

fn of(authority: &Authority, change: impl FnOnce(&mut CertificateParams)) -> Pair {
    authority.sign_as(&[], &PKCS_ECDSA_P256_SHA256, change)
}

#[tokio::test]
async fn no_request_goes_up_before_its_certificate_is_known_and_can_be_told() {
    let (authority, other) = (Authority::new(), Authority::new());
    let named =
        |authority, name: &str| of(authority, |p| p.distinguished_name.push(DnType::CommonName, name));
    let (alice, mallory) = (named(&authority, "alice"), named(&other, "mallory"));
    let long = named(&authority, &"x".repeat(2000));
    let many = of(&authority, |params| {
        let name = |i| SanType::DnsName(format!("{i:04}.example").try_into().unwrap());
        params.subject_alt_names = (0..200).map(name).collect();
    });
    for (asks, early) in [
        (ClientCerts::Required, false),
        (ClientCerts::Required, true),
        (ClientCerts::Optional, false),
        (ClientCerts::Optional, true),
    ] {
        let mut house = house(&authority, asks, early);
        let stranger = if asks == ClientCerts::Optional { Some(None) } else { None };
        for (what, shows, told) in [
            ("alice", Some(&alice), Some(Some("CN=alice"))),
            ("alice again", Some(&alice), Some(Some("CN=alice"))),
            ("a name that is too long", Some(&long), None),
            ("too many names", Some(&many), None),
            ("another authority's", Some(&mallory), None),
            ("none", None, stranger),
        ] {
            for over in ["tcp", "quic"] {
                let answered = match over {
                    "tcp" => house.ask_tcp(&authority, shows).await,
                    _ => house.ask_quic(&authority, shows).await,
                };
                let at = format!("{what}, {asks:?}, early_data = {early}, {over}");
                assert_eq!(answered, told.is_some(), "{at}");
                let head = house.asked.try_recv().ok();
                let said = head.as_deref().map(|head| {
                    let line = head.lines().find_map(|l| l.strip_prefix("X-Client-Cert-Subject: "));
                    let low = head.lines().find_map(|l| l.strip_prefix("x-client-cert-subject: "));
                    line.or(low)
                });
                assert_eq!(said, told, "{at}: {head:?}");
            }
        }
        house.drain.stop();
    }
}
