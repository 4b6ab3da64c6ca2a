//! Requests, tunnels, breaches and drains, by a client on loopback. Sessions of WebTransport have their own.

use super::testing::{Server, closed, section, uni, within, write};
use super::{H3Stream, Limits};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, StatusCode, request};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weir_h3::frame::Frame;
use weir_h3::stream::Uni;
use weir_h3::{Code, EarlyData, Protocol, Settings, varint};

/// Content and trailers come back, with what was asked in a header. Tunnels echo.
fn echo(head: request::Parts, mut stream: H3Stream) -> BoxFuture<'static, ()> {
    async move {
        let mut headers = HeaderMap::new();
        for (name, value) in &head.headers {
            if name == "cookie" || name == "x-repeated" {
                headers.append(name, value.clone());
            }
        }
        if let Some(protocol) = head.extensions.get::<Protocol>() {
            headers.insert("x-protocol", protocol.as_str().parse().unwrap());
        }
        if head.extensions.get::<EarlyData>().is_some() {
            headers.insert("x-early", "1".parse().unwrap());
        }
        stream.send_head(StatusCode::OK, &headers, false).await.unwrap();
        if head.method == Method::CONNECT {
            let mut buffer = vec![0; 4096];
            while let Ok(length) = stream.read(&mut buffer).await {
                if length == 0 {
                    stream.shutdown().await.unwrap();
                    return;
                }
                if stream.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
            }
            return;
        }
        while let Some(data) = stream.data().await {
            let Ok(data) = data else { return };
            stream.send_data(data, false).await.unwrap();
        }
        match stream.take_trailers() {
            Some(trailers) => stream.send_trailers(&trailers).await.unwrap(),
            None => stream.finish().await.unwrap(),
        }
    }
    .boxed()
}

/// Never answers; says when the client has gone.
fn wait(_: request::Parts, mut stream: H3Stream) -> BoxFuture<'static, ()> {
    async move {
        stream.gone().await;
        assert!(stream.is_gone());
        stream.shared().count("gone");
    }
    .boxed()
}

#[test]
fn a_stream_is_small() {
    fn goes_anywhere<T: Send + Sync + Unpin>() {}
    goes_anywhere::<H3Stream>();
    goes_anywhere::<super::WebTransportStream>();
    assert!(size_of::<H3Stream>() < 400, "{}", size_of::<H3Stream>());
}

#[tokio::test]
async fn content_trailers_and_split_cookies() {
    let server = Server::start(echo).await;
    let mut client = server.client().await;
    let Frame::Settings(settings) = client.control().await else { panic!() };
    assert!(settings.enable_connect_protocol && settings.h3_datagram && settings.has_webtransport());
    assert_eq!((settings.qpack_max_table_capacity, settings.qpack_blocked_streams), (0, 0));

    let mut get = client.request(Method::GET, "/", &[]).await;
    get.send.finish().unwrap();
    assert_eq!(get.status().await, StatusCode::OK);
    assert_eq!(get.content().await, (Vec::new(), HeaderMap::new()));

    let fields = [("cookie", "a=1"), ("x-repeated", "1"), ("cookie", "b=2"), ("x-repeated", "2")];
    let mut post = client.request(Method::POST, "/", &fields).await;
    let content = vec![7; 300_000];
    let (content_too, mut send) = (content.clone(), post.send);
    let writer = tokio::spawn(async move {
        for piece in content_too.chunks(10_000) {
            write(&mut send, piece).await;
        }
        // A frame of no known type, and trailers.
        send.write_all(&[0x21, 3, 1, 2, 3]).await.unwrap();
        send.write_all(&weir_h3::frame::headers(&section(&[("x-sum", "7")]))).await.unwrap();
        send.finish().unwrap();
        send
    });
    post.send = client.conn.open_bi().await.unwrap().0;
    let head = post.head().await;
    assert_eq!(head.headers["cookie"], "a=1; b=2");
    assert_eq!(head.headers.get_all("x-repeated").iter().collect::<Vec<_>>(), ["1", "2"]);
    let (echoed, trailers) = post.content().await;
    assert!(echoed == content);
    assert_eq!(trailers["x-sum"], "7");
    writer.await.unwrap();
    assert_eq!(server.causes(), Vec::<&str>::new());
}

/// 1 MiB there and back on one tunnel, while another one's client does not read: only that one stalls.
#[tokio::test]
async fn a_tunnel_that_stalls_holds_up_nobody_else() {
    let server = Server::start(echo).await;
    let client = server.client().await;
    let mut stalled = client.connect("websocket", "/stalled").await;
    assert_eq!(stalled.status().await, StatusCode::OK);
    let mut taken = 0;
    // Until both windows are full, which is before the end of what we have.
    let piece = vec![1; 16 * 1024];
    let is_full = loop {
        if taken > 4 << 20 {
            break false;
        }
        let blocked =
            tokio::time::timeout(Duration::from_millis(500), write(&mut stalled.send, &piece)).await;
        match blocked {
            Ok(()) => taken += piece.len(),
            Err(_) => break true,
        }
    };
    assert!(is_full, "{taken} bytes were taken of a client that does not read");

    let mut tunnel = client.connect("websocket", "/").await;
    let head = tunnel.head().await;
    assert_eq!(head.headers["x-protocol"], "websocket");
    let sent: Vec<u8> = (0..1_u32 << 20).map(|n| (n / 3) as u8).collect();
    let (copy, mut send) = (sent.clone(), tunnel.send);
    let writer = tokio::spawn(async move {
        for piece in copy.chunks(40_000) {
            write(&mut send, piece).await;
        }
        send.finish().unwrap();
        send
    });
    tunnel.send = client.conn.open_bi().await.unwrap().0;
    let (echoed, _) = tunnel.content().await;
    assert!(echoed == sent);
    writer.await.unwrap();
}

#[tokio::test]
async fn connect_comes_with_its_protocol_or_without() {
    let server = Server::start(echo).await;
    let client = server.client().await;
    let mut unknown = client.connect("connect-udp", "/").await;
    assert_eq!(unknown.head().await.headers["x-protocol"], "connect-udp");
    let mut plain = client.fields(&section(&[(":method", "CONNECT"), (":authority", "a.test:1")])).await;
    assert!(!plain.head().await.headers.contains_key("x-protocol"));
}

#[tokio::test]
async fn breaches_close_the_connection_with_their_code() {
    let server = Server::start(echo).await;
    let control = |payload: &[u8]| [&[0, 4, payload.len() as u8], payload].concat();
    let cases: Vec<(&str, Vec<Vec<u8>>, Code)> = vec![
        ("setting twice", vec![control(&[6, 1, 6, 1])], Code::H3_SETTINGS_ERROR),
        ("HTTP/2's setting", vec![control(&[3, 1])], Code::H3_SETTINGS_ERROR),
        ("no settings", vec![vec![0, 7, 1, 0]], Code::H3_MISSING_SETTINGS),
        ("settings twice", vec![[control(&[]), vec![4, 0]].concat()], Code::H3_FRAME_UNEXPECTED),
        ("data", vec![[control(&[]), vec![0, 1, 0]].concat()], Code::H3_FRAME_UNEXPECTED),
        ("HTTP/2's ping", vec![[control(&[]), vec![6, 1, 0]].concat()], Code::H3_FRAME_UNEXPECTED),
        ("two control streams", vec![control(&[]), control(&[])], Code::H3_STREAM_CREATION_ERROR),
        ("two encoder streams", vec![vec![2], vec![2]], Code::H3_STREAM_CREATION_ERROR),
        ("two decoder streams", vec![vec![3], vec![3]], Code::H3_STREAM_CREATION_ERROR),
        ("push", vec![vec![1, 0]], Code::H3_STREAM_CREATION_ERROR),
        ("an insert", vec![vec![2, 0xc0, 0]], Code::QPACK_ENCODER_STREAM_ERROR),
        ("an acknowledgement", vec![vec![3, 0x80]], Code::QPACK_DECODER_STREAM_ERROR),
        ("push id lowered", vec![[control(&[]), vec![0xd, 1, 9, 0xd, 1, 8]].concat()], Code::H3_ID_ERROR),
        ("cancelled push", vec![[control(&[]), vec![3, 1, 0]].concat()], Code::H3_ID_ERROR),
        ("a session of no client", vec![vec![0x40, 0x54, 3]], Code::H3_ID_ERROR),
    ];
    for (name, streams, code) in cases {
        let (_endpoint, conn) = server.dial().await;
        let mut open = Vec::new();
        for stream in &streams {
            open.push(uni(&conn, stream).await);
        }
        assert_eq!(closed(&conn).await, code, "{name}");
    }
    let (_endpoint, conn) = server.dial().await;
    uni(&conn, &control(&[])).await.finish().unwrap();
    assert_eq!(closed(&conn).await, Code::H3_CLOSED_CRITICAL_STREAM);
    for (bytes, code) in [
        ([0, 1, 0].as_slice(), Code::H3_FRAME_UNEXPECTED),
        (&[4, 0], Code::H3_FRAME_UNEXPECTED),
        (&[0x8, 0], Code::H3_FRAME_UNEXPECTED),
        (&[1, 3, 2, 0, 0x80], Code::QPACK_DECOMPRESSION_FAILED),
        (&[0x40, 0x41, 2], Code::H3_ID_ERROR),
    ] {
        let (_endpoint, conn) = server.dial().await;
        let (mut send, _recv) = conn.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        assert_eq!(closed(&conn).await, code, "{bytes:x?}");
    }
    let (_endpoint, conn) = server.dial().await;
    conn.send_datagram(vec![0xc0].into()).unwrap();
    assert_eq!(closed(&conn).await, Code::H3_DATAGRAM_ERROR);
    // GREASE, QPACK streams without a word against them, and half a type.
    let client = server.client().await;
    let _open = [
        uni(&client.conn, &[0x21, 1, 2]).await,
        uni(&client.conn, &[2, 0x20]).await,
        uni(&client.conn, &[3, 0x44]).await,
        uni(&client.conn, &[0x40]).await,
    ];
    let mut get = client.request(Method::GET, "/", &[]).await;
    assert_eq!(get.status().await, StatusCode::OK);
}

#[tokio::test]
async fn a_bad_request_ends_its_stream_alone() {
    let server = Server::start(echo).await;
    let client = server.client().await;
    let get = [(":method", "GET"), (":scheme", "https"), (":authority", "a.test"), (":path", "/")];
    // The longest entry of the static table, over and over; and a frame that says it is huge.
    let mut bomb = client.fields(&[section(&get), [0xff, 85 - 63].repeat(5_000)].concat()).await;
    assert_eq!(bomb.status().await, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    assert_eq!(bomb.data().await, None);
    let mut huge = client.fields(&[0; 20_000]).await;
    assert_eq!(huge.status().await, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    for wrong in [("connection", "upgrade"), ("X-Upper", "1"), (":path", "/"), ("x", "a\r\nb: c")] {
        let mut exchange = client.fields(&section(&[&get[..], &[wrong]].concat())).await;
        assert_eq!(exchange.reset().await, Code::H3_MESSAGE_ERROR, "{wrong:?}");
    }
    for (length, content) in [("3", "abcd"), ("5", "abcd")] {
        let mut exchange = client.request(Method::POST, "/", &[("content-length", length)]).await;
        assert_eq!(exchange.status().await, StatusCode::OK);
        exchange.write(content.as_bytes()).await;
        exchange.send.finish().unwrap();
        let code = loop {
            match exchange.recv.read_chunk(100, true).await {
                Ok(Some(_)) => {}
                Err(quinn::ReadError::Reset(code)) => break code.into_inner(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(Code(code), Code::H3_MESSAGE_ERROR, "{length}");
    }
    let mut good = client.fields(&section(&get)).await;
    assert_eq!(good.status().await, StatusCode::OK);
    let causes = server.causes();
    assert_eq!(causes.iter().filter(|cause| **cause == "field section too large").count(), 2, "{causes:?}");
    assert!(causes.contains(&"content longer than content-length"), "{causes:?}");
}

#[tokio::test]
async fn heads_have_a_deadline() {
    let limits = Limits { head_timeout: Duration::from_millis(100), ..Limits::default() };
    let server = Server::with(echo, limits).await;
    let client = server.client().await;
    for beginning in [&[0x40][..], &[1, 40, 0, 0]] {
        let (mut send, mut recv) = client.conn.open_bi().await.unwrap();
        send.write_all(beginning).await.unwrap();
        let result = within(recv.read_chunk(10, true)).await;
        assert_eq!(result.unwrap_err(), quinn::ReadError::Reset(quinn::VarInt::from_u32(0x10b)));
    }
    let stream = uni(&client.conn, &[0x40]).await;
    let stopped = within(stream.stopped()).await.unwrap();
    assert_eq!(stopped, Some(quinn::VarInt::from_u32(0x103)));
    assert_eq!(client.request(Method::GET, "/", &[]).await.status().await, StatusCode::OK);
}

#[tokio::test]
async fn who_gives_up_is_noticed_and_floods_of_them_end() {
    let server = Server::start(wait).await;
    let client = server.client().await;
    let mut patient = client.request(Method::GET, "/", &[]).await;
    patient.send.finish().unwrap();
    let mut exchange = client.request(Method::GET, "/", &[]).await;
    exchange.recv.stop(quinn::VarInt::from_u32(0x10c)).unwrap();
    within(server.counted("gone")).await;
    assert_eq!(server.causes(), ["gone"], "who only ends its side waits on");
    let mut resets = 0;
    while client.conn.close_reason().is_none() && resets < 2_000 {
        let Ok((mut send, mut recv)) = client.conn.open_bi().await else { break };
        let head = weir_h3::head::encode_request(&super::testing::request(Method::GET, "/")).finish();
        if send.write_all(&weir_h3::frame::headers(&head)).await.is_err() {
            break;
        }
        let _closed = (send.reset(quinn::VarInt::from_u32(0x10c)), recv.stop(quinn::VarInt::from_u32(0x10c)));
        resets += 1;
    }
    assert_eq!(client.closed().await, Code::H3_EXCESSIVE_LOAD);
}

#[tokio::test]
async fn an_unfinished_answer_is_reset() {
    fn half(_: request::Parts, mut stream: H3Stream) -> BoxFuture<'static, ()> {
        async move {
            stream.send_head(StatusCode::OK, &HeaderMap::new(), false).await.unwrap();
            stream.send_data("half of".into(), false).await.unwrap();
        }
        .boxed()
    }
    let server = Server::start(half).await;
    let client = server.client().await;
    let mut exchange = client.request(Method::GET, "/", &[]).await;
    let code = loop {
        match within(exchange.recv.read_chunk(100, true)).await {
            Ok(Some(_)) => {}
            Err(quinn::ReadError::Reset(code)) => break code.into_inner(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(Code(code), Code::H3_REQUEST_CANCELLED);
}

#[tokio::test]
async fn a_drain_finishes_what_was_taken() {
    let server = Server::start(echo).await;
    let mut client = server.client().await;
    let mut tunnel = client.connect("websocket", "/").await;
    assert_eq!(tunnel.status().await, StatusCode::OK);
    server.drain.begin();
    let goaway = loop {
        if let Frame::GoAway(id) = within(client.control()).await {
            break id;
        }
    };
    assert_eq!(goaway, tunnel.id() + 4);
    let mut late = client.request(Method::GET, "/", &[]).await;
    assert_eq!(late.reset().await, Code::H3_REQUEST_REJECTED);
    tunnel.write(b"still here").await;
    assert_eq!(tunnel.data().await.unwrap(), "still here");
    tunnel.send.finish().unwrap();
    assert_eq!(tunnel.data().await, None);
    assert_eq!(client.closed().await, Code::H3_NO_ERROR);
    assert_eq!(server.causes(), ["request after GOAWAY"]);
}

#[tokio::test]
async fn a_stop_does_not_wait() {
    let server = Server::start(echo).await;
    let client = server.client().await;
    let mut tunnel = client.connect("websocket", "/").await;
    assert_eq!(tunnel.status().await, StatusCode::OK);
    server.drain.stop();
    assert_eq!(client.closed().await, Code::H3_NO_ERROR);
}

/// The second connection's request travels with its first packet.
#[tokio::test]
async fn early_data_is_for_safe_methods() {
    let server = Server::start(echo).await;
    let endpoint = server.endpoint();
    let first = server.connecting(&endpoint).await.unwrap();
    let settings = Settings::new(1 << 16);
    let client = super::testing::Client::new(endpoint.clone(), first, &settings).await;
    let mut get = client.request(Method::GET, "/", &[]).await;
    get.send.finish().unwrap();
    assert!(!get.head().await.headers.contains_key("x-early"));
    get.content().await;
    drop(client);

    let Ok((conn, accepted)) = server.connecting(&endpoint).into_0rtt() else { panic!("no ticket") };
    let send = async |method: Method| {
        let (mut send, recv) = conn.open_bi().await.unwrap();
        let head = weir_h3::head::encode_request(&super::testing::request(method, "/")).finish();
        send.write_all(&weir_h3::frame::headers(&head)).await.unwrap();
        send.finish().unwrap();
        (send, recv)
    };
    let mut answers = Vec::new();
    for method in [Method::GET, Method::POST] {
        answers.push(send(method).await.1);
    }
    assert!(within(accepted).await, "early data was refused");
    for (mut recv, (status, is_early)) in answers.into_iter().zip([("200", true), ("425", false)]) {
        let answer = within(recv.read_to_end(1000)).await.unwrap();
        let mut input = bytes::Bytes::from(answer);
        let frame = weir_h3::frame::Reader::request(1000).next(&mut input, 1000).unwrap();
        let Some(Frame::Headers(section)) = frame else { panic!("{frame:?}") };
        let head = weir_h3::head::decode_response(&section, 1000).unwrap();
        assert_eq!(head.status.as_str(), status);
        assert_eq!(head.headers.contains_key("x-early"), is_early);
    }
    assert_eq!(server.causes(), ["early data with an unsafe method"]);
}

/// Empty frames cost the client nothing and us a little: there is an end to it.
#[tokio::test]
async fn a_flood_of_empty_frames_ends() {
    let server = Server::start(echo).await;
    let client = server.client().await;
    let mut exchange = client.request(Method::POST, "/", &[]).await;
    let _closed = exchange.send.write_all(&[0, 0].repeat(200_000)).await;
    assert_eq!(client.closed().await, Code::H3_EXCESSIVE_LOAD);
    let mut beginning = Vec::new();
    Uni::Control.write(&mut beginning);
    varint::write(4, &mut beginning);
    varint::write(0, &mut beginning);
    let (_endpoint, conn) = server.dial().await;
    let mut control = uni(&conn, &beginning).await;
    let _closed = control.write_all(&[0x21, 0].repeat(200_000)).await;
    assert_eq!(closed(&conn).await, Code::H3_EXCESSIVE_LOAD);
}

/// Pings keep none open, nor do streams that never become a request; a tunnel does.
#[tokio::test]
async fn a_connection_without_a_request_ends() {
    let limits = Limits {
        head_timeout: Duration::from_millis(300),
        idle_timeout: Duration::from_millis(300),
        ..Limits::default()
    };
    let server = Server::with(echo, limits).await;
    // Not a word, not even settings; and one that has said hello.
    let (_endpoint, silent) = server.dial().await;
    let greeted = server.client().await;
    // Streams that begin, one after the other.
    let (_second, beginner) = server.dial().await;
    let begin = beginner.clone();
    tokio::spawn(async move {
        let mut begun = Vec::new();
        while let Ok((mut send, recv)) = begin.open_bi().await {
            let _may_have_ended = send.write_all(&[1]).await;
            begun.push((send, recv));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    // A tunnel from before that stays, as long as it is open.
    let client = server.client().await;
    let mut tunnel = client.connect("websocket", "/ws").await;
    assert_eq!(tunnel.status().await, StatusCode::OK);
    assert_eq!(closed(&silent).await, Code::H3_NO_ERROR);
    assert_eq!(greeted.closed().await, Code::H3_NO_ERROR);
    assert_eq!(closed(&beginner).await, Code::H3_NO_ERROR);
    tunnel.write(b"still here").await;
    assert_eq!(&tunnel.data().await.unwrap()[..], b"still here");
    tunnel.send.finish().unwrap();
    assert_eq!(client.closed().await, Code::H3_NO_ERROR);
    // Between two requests it stays.
    let client = server.client().await;
    for _ in 0..3 {
        assert_eq!(client.request(Method::GET, "/", &[]).await.status().await, StatusCode::OK);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
