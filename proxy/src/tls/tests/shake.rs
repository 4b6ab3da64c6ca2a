//! What comes to the port, and what it gets.

use super::common::{Authority, LIMIT, LOCAL, SPEAKS, Site};
use crate::tls::accept::{Arrived, Cause};
use crate::tls::certs::ACME_TLS_1;
use crate::tls::config::Speaks;
use bytes::BytesMut;
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::version::{TLS12, TLS13};
use rustls::{HandshakeKind, ServerConfig};
use std::io::Write;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::Instant;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use weir_conf::proxy::tls::Version;

fn site() -> (Authority, Site) {
    let authority = Authority::new();
    let site = Site::showing(&authority.sign(&["a.example"]));
    (authority, site)
}

fn arrived(stream: DuplexStream, ahead: &[u8]) -> Arrived<DuplexStream> {
    Arrived { stream, ahead: BytesMut::from(ahead), local: LOCAL, speaks: SPEAKS }
}

#[tokio::test]
async fn protocols_are_those_of_the_listener() {
    let (authority, site) = site();
    let client = Arc::new(authority.client());
    let mut odd = authority.client();
    odd.alpn_protocols = vec![b"spdy/3".to_vec()];
    let mut silent = authority.client();
    silent.alpn_protocols.clear();
    for (client, http2, expected) in [
        (client.clone(), true, Ok(Some(&b"h2"[..]))),
        (client, false, Ok(Some(b"http/1.1"))),
        (Arc::new(silent), true, Ok(None)),
        (Arc::new(odd), true, Err(Cause::Alpn)),
    ] {
        let shaken = site.shake_as(&client, "a.example", Speaks { http2, ..SPEAKS }).await;
        let agreed = shaken.server.as_ref().map(|server| server.get_ref().1.alpn_protocol());
        assert_eq!(agreed.map_err(|cause| *cause), expected);
    }
}

#[tokio::test]
async fn what_is_said_goes_through() {
    let (authority, site) = site();
    let shaken = site.shake(&Arc::new(authority.client()), "a.example").await;
    let (mut client, mut server) = (shaken.client.unwrap(), shaken.server.unwrap());
    client.write_all(b"ping").await.unwrap();
    client.flush().await.unwrap();
    let mut read = [0; 4];
    server.read_exact(&mut read).await.unwrap();
    server.write_all(&read).await.unwrap();
    server.flush().await.unwrap();
    client.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"ping");
}

#[tokio::test]
async fn old_versions_and_strangers_are_told_apart() {
    let (authority, mut site) = site();
    let old = Arc::new(authority.client_of(&[&TLS12], None));
    assert!(site.shake(&old, "a.example").await.server.is_ok());
    site.conf.min_version = Version::Tls13;
    site.reload();
    let new = Arc::new(authority.client_of(&[&TLS13], None));
    assert!(site.shake(&new, "a.example").await.server.is_ok());
    let shaken = site.shake(&old, "a.example").await;
    assert_eq!(shaken.cause(), Cause::Version);
    assert!(shaken.client.unwrap_err().to_string().contains("ProtocolVersion"));
    // Does not believe our authority.
    let stranger = Arc::new(Authority::new().client());
    assert_eq!(site.shake(&stranger, "a.example").await.cause(), Cause::Alert);
    site.tls.certs.set_files(&[]);
    assert_eq!(site.shake(&new, "a.example").await.cause(), Cause::NoCertificate);
    for (outcome, count) in [("accepted", 2), ("version", 1), ("alert", 1), ("no_certificate", 1)] {
        assert_eq!(site.metrics.count(outcome), count, "{outcome}");
    }
}

/// Of what a client sends in place of a handshake: the cause, and what it gets to read.
async fn sends(site: &Site, bytes: &[u8], ahead: usize) -> (Cause, Vec<u8>) {
    let (mut theirs, ours) = tokio::io::duplex(64 << 10);
    theirs.write_all(&bytes[ahead..]).await.unwrap();
    theirs.shutdown().await.unwrap();
    let cause = site.tls.accept(arrived(ours, &bytes[..ahead]), LIMIT).await.unwrap_err();
    let mut answer = Vec::new();
    theirs.read_to_end(&mut answer).await.unwrap();
    (cause, answer)
}

#[tokio::test]
async fn plain_http_is_told_so_in_plain_http() {
    let (_, site) = site();
    for ahead in [0, 1, 5] {
        let (cause, answer) = sends(&site, b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", ahead).await;
        let answer = String::from_utf8(answer).unwrap();
        assert_eq!(cause, Cause::PlainHttp);
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n400 The plain HTTP request was sent to HTTPS port\n"), "{answer}");
    }
    assert_eq!(site.metrics.count("plain_http"), 3);
}

#[tokio::test]
async fn garbage_gets_an_alert_and_no_more() {
    let (_, site) = site();
    for (bytes, expected, alert) in [
        (&b""[..], Cause::Eof, false),
        (b"\x16\x03\x01", Cause::Eof, false),
        (&[0; 64], Cause::BadRecord, true),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", Cause::BadRecord, true),
        // A record of application data before any handshake.
        (b"\x17\x03\x03\x00\x01\x00", Cause::Protocol, false),
        // A handshake message that says to be 16 MiB long.
        (b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", Cause::BadRecord, false),
    ] {
        for ahead in [0, bytes.len()] {
            let (cause, answer) = sends(&site, bytes, ahead).await;
            assert_eq!((cause, answer.first() == Some(&21)), (expected, alert), "{bytes:?} {answer:?}");
        }
    }
}

/// A client by hand, which has nothing written yet.
fn by_hand(config: &Arc<rustls::ClientConfig>) -> rustls::ClientConnection {
    let name = rustls::pki_types::ServerName::try_from("a.example").unwrap();
    rustls::ClientConnection::new(config.clone(), name).unwrap()
}

fn written(client: &mut rustls::ClientConnection) -> Vec<u8> {
    let mut out = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut out).unwrap();
    }
    out
}

/// Until the handshake is done, and what the client has to say is sent.
async fn talk(client: &mut rustls::ClientConnection, stream: &mut DuplexStream) {
    let mut buf = [0; 4096];
    while client.is_handshaking() {
        let n = stream.read(&mut buf).await.unwrap();
        assert_ne!(n, 0, "closed");
        let mut rest = &buf[..n];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
        }
        client.process_new_packets().unwrap();
        stream.write_all(&written(client)).await.unwrap();
    }
}

/// A proxy in front has written its own header first, and what comes after it was read along.
#[tokio::test]
async fn what_was_read_ahead_counts() {
    let (authority, site) = site();
    let config = Arc::new(authority.client());
    for ahead in [1, 6, 100, usize::MAX] {
        let mut client = by_hand(&config);
        let hello = written(&mut client);
        let ahead = ahead.min(hello.len());
        let (mut theirs, ours) = tokio::io::duplex(64 << 10);
        theirs.write_all(&hello[ahead..]).await.unwrap();
        let accepting = site.tls.accept(arrived(ours, &hello[..ahead]), LIMIT);
        let (server, ()) = tokio::join!(accepting, talk(&mut client, &mut theirs));
        assert!(server.is_ok(), "ahead = {ahead}: {:?}", server.err());
    }
}

#[tokio::test(start_paused = true)]
async fn who_drips_is_not_waited_for() {
    let (authority, site) = site();
    // A byte at a time is no reason to start again.
    let (mut theirs, ours) = tokio::io::duplex(64);
    let dripping = tokio::spawn(async move {
        loop {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            if theirs.write_all(b"\x16").await.is_err() {
                return;
            }
        }
    });
    let begun = Instant::now();
    // The first byte makes a record of 0x1616 bytes.
    assert_eq!(site.tls.accept(arrived(ours, b"\x16\x03\x01"), LIMIT).await.unwrap_err(), Cause::Timeout);
    assert_eq!(begun.elapsed(), LIMIT);
    dripping.await.unwrap();

    // Silence in the middle of it.
    let hello = written(&mut by_hand(&Arc::new(authority.client())));
    let (_theirs, ours) = tokio::io::duplex(64 << 10);
    let begun = Instant::now();
    assert_eq!(site.tls.accept(arrived(ours, &hello), LIMIT).await.unwrap_err(), Cause::Timeout);
    assert_eq!((begun.elapsed(), site.metrics.count("timeout")), (LIMIT, 2));
}

#[tokio::test]
async fn sessions_are_resumed_over_reloads_unless_they_are_off() {
    let (authority, mut site) = site();
    for versions in [&[&TLS13][..], &[&TLS12]] {
        let client = Arc::new(authority.client_of(versions, None));
        let mut kinds = Vec::new();
        for _ in 0..3 {
            site.reload();
            let shaken = site.shake(&client, "a.example").await;
            let (mut theirs, mut ours) = (shaken.client.unwrap(), shaken.server.unwrap());
            kinds.push(ours.get_ref().1.handshake_kind().unwrap());
            // The tickets of 1.3 come after the handshake.
            ours.write_all(b"x").await.unwrap();
            ours.flush().await.unwrap();
            theirs.read_exact(&mut [0]).await.unwrap();
        }
        use HandshakeKind::{Full, Resumed};
        assert_eq!(kinds, [Full, Resumed, Resumed], "{versions:?}");
    }
    assert_eq!(site.metrics.resumed(), 4);

    // Not by those who were given a ticket before, either.
    let mut config = authority.client();
    config.resumption = Resumption::in_memory_sessions(8);
    let client = Arc::new(config);
    for tickets in [true, false, false] {
        site.conf.session_tickets = tickets;
        site.reload();
        let shaken = site.shake(&client, "a.example").await;
        let (mut theirs, mut ours) = (shaken.client.unwrap(), shaken.server.unwrap());
        assert_eq!(ours.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        ours.write_all(b"x").await.unwrap();
        ours.flush().await.unwrap();
        theirs.read_exact(&mut [0]).await.unwrap();
    }
}

/// Somebody else had this name before, and took early data. We do not, and the client is none the worse.
#[tokio::test]
async fn early_data_is_skipped_and_comes_again() {
    let (authority, site) = site();
    let mut config = authority.client_of(&[&TLS13], None);
    config.enable_early_data = true;
    let config = Arc::new(config);
    let mut before = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(site.tls.certs.clone());
    before.max_early_data_size = 1000;
    before.alpn_protocols = vec![b"h2".to_vec()];
    let (theirs, ours) = tokio::io::duplex(64 << 10);
    let (client, server) = (TlsConnector::from(config.clone()), TlsAcceptor::from(Arc::new(before)));
    let name = rustls::pki_types::ServerName::try_from("a.example").unwrap();
    let (theirs, ours) = tokio::join!(client.connect(name, theirs), server.accept(ours));
    let (mut theirs, mut ours) = (theirs.unwrap(), ours.unwrap());
    ours.write_all(b"x").await.unwrap();
    ours.flush().await.unwrap();
    theirs.read_exact(&mut [0]).await.unwrap();

    let mut client = by_hand(&config);
    let said = [7; 900];
    client.early_data().unwrap().write_all(&said).unwrap();
    let sent = written(&mut client);
    assert!(sent.len() > 900);
    let (mut theirs, ours) = tokio::io::duplex(64 << 10);
    let hear = async {
        let mut server = site.tls.accept(arrived(ours, &sent), LIMIT).await.unwrap();
        let mut heard = [0; 900];
        server.read_exact(&mut heard).await.unwrap();
        heard
    };
    let say = async {
        talk(&mut client, &mut theirs).await;
        assert!(!client.is_early_data_accepted());
        client.writer().write_all(&said).unwrap();
        theirs.write_all(&written(&mut client)).await.unwrap();
    };
    assert_eq!(tokio::join!(hear, say).0, said);
}

#[tokio::test(start_paused = true)]
async fn challenges_are_shown_to_those_who_ask_for_nothing_else() {
    let (authority, site) = site();
    let challenge = authority.sign(&["a.example"]);
    site.tls.certs.set_challenge("A.example", challenge.cert().key);
    let client = |protocols: &[&[u8]]| {
        let mut client = authority.client();
        client.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
        Arc::new(client)
    };
    let asking = client(&[ACME_TLS_1]);
    let shaken = site.shake(&asking, "a.example").await;
    assert_eq!((shaken.shown(), shaken.cause()), (&challenge.chain[0], Cause::Challenge));
    // What is on the other end wants a page, too: it is a browser, and gets no challenge.
    let shaken = site.shake(&client(&[ACME_TLS_1, b"h2"]), "a.example").await;
    assert!(shaken.server.is_ok());
    assert_ne!(shaken.shown(), &challenge.chain[0]);
    site.tls.certs.remove_challenge("a.example");
    assert_eq!(site.shake(&asking, "a.example").await.cause(), Cause::Alpn);
}
