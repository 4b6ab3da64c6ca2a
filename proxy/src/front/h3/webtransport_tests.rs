//! Sessions of WebTransport.

use super::testing::{Client, Exchange, Server, close, open, within};
use super::{H3Stream, Limits, WebTransportStream};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, StatusCode, request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weir_core::accept::{NoDatagram, Session, Stream};
use weir_h3::capsule;
use weir_h3::frame::Frame;
use weir_h3::stream::Uni;
use weir_h3::webtransport::{PROTOCOL, PROTOCOL_DRAFT15, ask_draft02};
use weir_h3::{Code, Protocol, Settings, datagram};

/// Accepts; `/refuse` is refused. Bytes are echoed until "bye", datagrams always; the end has a code.
fn sessions(head: request::Parts, mut stream: H3Stream) -> BoxFuture<'static, ()> {
    async move {
        assert!(stream.is_session());
        if head.uri.path() == "/refuse" {
            stream.send_head(StatusCode::FORBIDDEN, &HeaderMap::new(), true).await.unwrap();
            return;
        }
        let shared = stream.shared().clone();
        let stream = stream.accept_session(HeaderMap::new()).await.unwrap();
        if echo(stream).await.is_none() {
            shared.count("left by the client");
        }
    }
    .boxed()
}

async fn echo(mut stream: WebTransportStream) -> Option<()> {
    let session = stream.session().unwrap();
    let handle = stream.handle();
    tokio::spawn(async move {
        while let Some(datagram) = handle.datagram().await {
            let _closed = handle.send_datagram(datagram);
        }
        assert_eq!(handle.send_datagram(Bytes::new()), Err(NoDatagram::Closed));
    });
    let mut buffer = vec![0; 1000];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(length) if buffer[..length].ends_with(b"bye") => {
                stream.write_all(&buffer[..length]).await.ok()?;
                session.close(3501, "as you wish");
                return Some(());
            }
            Ok(length) => stream.write_all(&buffer[..length]).await.ok()?,
        }
    }
}

async fn ask(client: &Client, protocol: &str, path: &str, draft02: bool) -> Exchange {
    let mut head = super::testing::request(Method::CONNECT, path);
    head.extensions.insert(Protocol::new(protocol).unwrap());
    if draft02 {
        ask_draft02(&mut head.headers);
    }
    client.send(&head).await
}

fn dialects() -> Vec<(&'static str, bool, Settings)> {
    let base = Settings { h3_datagram: true, ..Settings::new(1 << 16) };
    vec![
        (PROTOCOL, true, Settings { wt_draft02: true, ..base.clone() }),
        (PROTOCOL, false, Settings { wt_max_sessions_draft07: 1, ..base.clone() }),
        (
            PROTOCOL,
            false,
            Settings { wt_max_sessions_draft13: 1, wt_initial_max_data: 1 << 30, ..base.clone() },
        ),
        (PROTOCOL_DRAFT15, false, Settings { wt_enabled: true, ..base }),
    ]
}

/// An open session is use, whether anything is said in it or not.
#[tokio::test]
async fn a_session_keeps_its_connection() {
    let idle = std::time::Duration::from_millis(200);
    let limits = Limits { head_timeout: idle, idle_timeout: idle, ..Limits::default() };
    let server = Server::with(sessions, limits).await;
    let (protocol, draft02, settings) = dialects().remove(0);
    let client = server.client_with(&settings).await;
    let mut connect = ask(&client, protocol, "/", draft02).await;
    assert_eq!(connect.status().await, StatusCode::OK);
    tokio::time::sleep(5 * idle).await;
    let (mut send, mut recv) = open(&client, connect.id()).await;
    send.write_all(b"bye").await.unwrap();
    assert_eq!(within(recv.read_to_end(100)).await.unwrap(), b"bye");
    assert_eq!(close(&mut connect).await, Some((3501, "as you wish".to_owned())));
    connect.send.finish().unwrap();
    assert_eq!(client.closed().await, Code::H3_NO_ERROR);
}

#[tokio::test]
async fn bytes_datagrams_and_a_close_in_every_dialect() {
    let server = Server::start(sessions).await;
    for (protocol, draft02, settings) in dialects() {
        let client = server.client_with(&settings).await;
        let mut connect = ask(&client, protocol, "/", draft02).await;
        let head = connect.head().await;
        assert_eq!(head.status, StatusCode::OK);
        let draft = head.headers.get("sec-webtransport-http3-draft").map(|value| value.to_str().unwrap());
        assert_eq!(draft, draft02.then_some("draft02"));

        let (mut send, mut recv) = open(&client, connect.id()).await;
        let sent: Vec<u8> = (0..300_000_u32).map(|n| (n / 7) as u8 & 0x3f).collect();
        let copy = sent.clone();
        let writer = tokio::spawn(async move {
            send.write_all(&copy).await.unwrap();
            send
        });
        let mut echoed = vec![0; sent.len()];
        within(recv.read_exact(&mut echoed)).await.unwrap();
        assert!(echoed == sent, "{protocol} {draft02}");

        client.conn.send_datagram(datagram::write(connect.id(), b"ping")).unwrap();
        let answer = within(client.conn.read_datagram()).await.unwrap();
        assert_eq!(datagram::read(answer), Ok((connect.id(), Bytes::from_static(b"ping"))));

        let mut send = writer.await.unwrap();
        send.write_all(b"bye").await.unwrap();
        // All that was written comes, then the code.
        assert_eq!(within(recv.read_to_end(100)).await.unwrap(), b"bye");
        assert_eq!(close(&mut connect).await, Some((3501, "as you wish".to_owned())));
        connect.send.finish().unwrap();
        assert_eq!(within(send.stopped()).await.unwrap(), Some(quinn::VarInt::from_u32(0x170d_7b68)));
    }
    assert_eq!(server.causes(), Vec::<&str>::new());
}

#[tokio::test]
async fn streams_and_datagrams_may_overtake_the_request() {
    let server = Server::start(sessions).await;
    let client = server.client().await;
    // The first stream's request is held back.
    let (mut request, recv) = client.conn.open_bi().await.unwrap();
    let id = u64::from(request.id());
    let (mut send, mut from) = open(&client, id).await;
    send.write_all(b"early").await.unwrap();
    client.conn.send_datagram(datagram::write(id, b"early, too")).unwrap();
    let mut refused = client.request(Method::GET, "/refused-as-late", &[]).await;
    drop(refused.send.reset(quinn::VarInt::from_u32(0x10c)));
    let mut head = super::testing::request(Method::CONNECT, "/");
    head.extensions.insert(Protocol::new(PROTOCOL).unwrap());
    let section = weir_h3::head::encode_request(&head).finish();
    request.write_all(&weir_h3::frame::headers(&section)).await.unwrap();
    let mut echoed = [0; 5];
    within(from.read_exact(&mut echoed)).await.unwrap();
    assert_eq!(&echoed, b"early");
    let answer = within(client.conn.read_datagram()).await.unwrap();
    assert_eq!(datagram::read(answer).unwrap().1, "early, too");
    drop(recv);
}

#[tokio::test]
async fn a_session_has_one_stream_and_others_are_refused() {
    let limits = Limits { max_sessions: 2, ..Limits::default() };
    let server = Server::with(sessions, limits).await;
    let client = server.client().await;
    let mut connect = ask(&client, PROTOCOL, "/", false).await;
    assert_eq!(connect.status().await, StatusCode::OK);
    let (mut send, mut recv) = open(&client, connect.id()).await;
    send.write_all(b"1").await.unwrap();
    within(recv.read_exact(&mut [0])).await.unwrap();
    let rejected = Some(quinn::VarInt::from_u32(0x3994_bd84));
    let (second, _recv) = open(&client, connect.id()).await;
    assert_eq!(within(second.stopped()).await.unwrap(), rejected);
    let mut beginning = Vec::new();
    Uni::WebTransport(connect.id()).write(&mut beginning);
    let third = super::testing::uni(&client.conn, &beginning).await;
    assert_eq!(within(third.stopped()).await.unwrap(), rejected);

    let mut another = ask(&client, PROTOCOL, "/", false).await;
    assert_eq!(another.status().await, StatusCode::OK);
    let mut too_many = ask(&client, PROTOCOL, "/", false).await;
    assert_eq!(too_many.reset().await, Code::H3_REQUEST_REJECTED);
    // One goes: there is room for another one. That one's own stream was refused with it.
    another.send.finish().unwrap();
    assert_eq!(close(&mut another).await, None);
    let mut refused = ask(&client, PROTOCOL, "/refuse", false).await;
    let (stream, _recv) = open(&client, refused.id()).await;
    assert_eq!(refused.status().await, StatusCode::FORBIDDEN);
    assert!(within(stream.stopped()).await.unwrap().is_some());
    send.write_all(b"2").await.unwrap();
    within(recv.read_exact(&mut [0])).await.unwrap();
}

#[tokio::test]
async fn a_client_closes_with_a_capsule_an_end_or_rubbish() {
    let server = Server::start(sessions).await;
    let client = server.client().await;
    for capsule in [capsule::close(7, "enough"), Vec::new(), vec![0x68, 0x43, 1, 0]] {
        let mut connect = ask(&client, PROTOCOL, "/", false).await;
        assert_eq!(connect.status().await, StatusCode::OK);
        let (mut send, mut recv) = open(&client, connect.id()).await;
        send.write_all(b"1").await.unwrap();
        within(recv.read_exact(&mut [0])).await.unwrap();
        if capsule.is_empty() {
            connect.send.finish().unwrap();
        } else {
            connect.write(&capsule).await;
        }
        if capsule.len() == 4 {
            assert_eq!(connect.reset().await, Code::H3_MESSAGE_ERROR);
        } else {
            assert_eq!(close(&mut connect).await, None);
        }
        let gone = within(recv.read_chunk(10, true)).await.unwrap_err();
        assert_eq!(gone, quinn::ReadError::Reset(quinn::VarInt::from_u32(0x170d_7b68)));
        within(server.counted("left by the client")).await;
    }
}

/// As Safari does: so many bytes, and more when it says so.
#[tokio::test]
async fn a_sessions_own_flow_control_is_obeyed() {
    let server = Server::start(sessions).await;
    let settings = Settings {
        h3_datagram: true,
        wt_max_sessions_draft13: 1,
        wt_initial_max_data: 10,
        ..Settings::new(1 << 16)
    };
    let mut client = server.client_with(&settings).await;
    let Frame::Settings(offered) = client.control().await else { panic!() };
    assert!(offered.has_session_limits());
    let mut connect = ask(&client, PROTOCOL, "/", false).await;
    assert_eq!(connect.status().await, StatusCode::OK);
    let (mut send, mut recv) = open(&client, connect.id()).await;
    send.write_all(b"0123456789abcdefghij").await.unwrap();
    let mut echoed = [0; 10];
    within(recv.read_exact(&mut echoed)).await.unwrap();
    assert_eq!(&echoed, b"0123456789");
    // An answer to this one comes only after the eleventh byte would have.
    client.conn.send_datagram(datagram::write(connect.id(), b"ping")).unwrap();
    within(client.conn.read_datagram()).await.unwrap();
    assert!(recv.read_chunk(1, true).now_or_never().is_none());
    connect.write(&capsule::max_data(15)).await;
    within(recv.read_exact(&mut echoed[..5])).await.unwrap();
    assert_eq!(&echoed[..5], b"abcde");
    connect.write(&capsule::max_data(15)).await;
    assert_eq!(connect.reset().await, Code::WT_FLOW_CONTROL_ERROR);
}

#[tokio::test]
async fn datagrams_say_why_they_are_not_sent() {
    fn large(_: request::Parts, stream: H3Stream) -> BoxFuture<'static, ()> {
        async move {
            let shared = stream.shared().clone();
            let stream = stream.accept_session(HeaderMap::new()).await.unwrap();
            let session = stream.session().unwrap();
            match session.send_datagram(vec![0; 60_000].into()) {
                Err(NoDatagram::TooLarge) => shared.count("too large"),
                Err(NoDatagram::Unsupported) => shared.count("unsupported"),
                _ => {}
            }
        }
        .boxed()
    }
    let server = Server::start(large).await;
    let client = server.client().await;
    let mut connect = ask(&client, PROTOCOL, "/", false).await;
    assert_eq!(connect.status().await, StatusCode::OK);
    within(server.counted("too large")).await;
    // Dropped without a code.
    assert_eq!(close(&mut connect).await, None);
    let client = server.client_with(&Settings { wt_draft02: true, ..Settings::new(1 << 16) }).await;
    let mut connect = ask(&client, PROTOCOL, "/", true).await;
    assert_eq!(connect.status().await, StatusCode::OK);
    within(server.counted("unsupported")).await;
}
