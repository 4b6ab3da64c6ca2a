//! A server on loopback with a handler of the test's, and a client that can do right and wrong. The client is
//! weir-h3's other role.

use super::{H3Stream, Handler, Limits, serve};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, StatusCode, request, response};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, ReadError, RecvStream, SendStream, TransportConfig};
use rustls::pki_types::PrivateKeyDer;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use weir_core::drain::Drain;
use weir_h3::capsule::{self, Capsule};
use weir_h3::frame::{self, Frame};
use weir_h3::stream::{self, Uni};
use weir_h3::{Code, Protocol, Settings, head, qpack};

pub type Answer = fn(request::Parts, H3Stream) -> BoxFuture<'static, ()>;

/// The handler of a test.
pub struct App {
    answer: Answer,
    causes: Mutex<Vec<&'static str>>,
    counted: Notify,
}

impl Handler for App {
    async fn request(&self, head: request::Parts, stream: H3Stream) {
        (self.answer)(head, stream).await;
    }

    fn refused(&self, cause: &'static str) {
        self.causes.lock().unwrap().push(cause);
        self.counted.notify_one();
    }
}

pub struct Server {
    pub app: Arc<App>,
    pub drain: Drain,
    addr: SocketAddr,
    client: quinn::ClientConfig,
    _endpoint: Endpoint,
}

impl Server {
    pub async fn start(answer: Answer) -> Server {
        Server::with(answer, Limits::default()).await
    }

    pub async fn with(answer: Answer, limits: Limits) -> Server {
        let (server, client) = tls();
        let endpoint = Endpoint::server(server, "127.0.0.1:0".parse().unwrap()).unwrap();
        let app = Arc::new(App { answer, causes: Mutex::default(), counted: Notify::new() });
        let drain = Drain::new();
        let (accepting, handler, draining) = (endpoint.clone(), app.clone(), drain.clone());
        tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                let Ok(connecting) = incoming.accept() else { continue };
                let Ok((conn, _)) = connecting.into_0rtt() else { continue };
                tokio::spawn(serve(conn, handler.clone(), limits, draining.clone()));
            }
        });
        Server { app, drain, addr: endpoint.local_addr().unwrap(), client, _endpoint: endpoint }
    }

    /// Waits until this was counted.
    pub async fn counted(&self, cause: &str) {
        while !self.app.causes.lock().unwrap().contains(&cause) {
            self.app.counted.notified().await;
        }
    }

    pub fn causes(&self) -> Vec<&'static str> {
        self.app.causes.lock().unwrap().clone()
    }

    pub fn endpoint(&self) -> Endpoint {
        let mut endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        endpoint.set_default_client_config(self.client.clone());
        endpoint
    }

    /// A connection on which nothing was said yet.
    pub async fn dial(&self) -> (Endpoint, Connection) {
        let endpoint = self.endpoint();
        let conn = endpoint.connect(self.addr, "localhost").unwrap().await.unwrap();
        (endpoint, conn)
    }

    pub fn connecting(&self, endpoint: &Endpoint) -> quinn::Connecting {
        endpoint.connect(self.addr, "localhost").unwrap()
    }

    pub async fn client(&self) -> Client {
        self.client_with(&Settings::new(16 * 1024).with_webtransport(1)).await
    }

    pub async fn client_with(&self, settings: &Settings) -> Client {
        let (endpoint, conn) = self.dial().await;
        Client::new(endpoint, conn, settings).await
    }
}

fn tls() -> (quinn::ServerConfig, quinn::ClientConfig) {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let cert = certified.cert.der().clone();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.clone()], key)
        .unwrap();
    server.alpn_protocols = vec![b"h3".to_vec()];
    server.max_early_data_size = u32::MAX;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert).unwrap();
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h3".to_vec()];
    client.enable_early_data = true;
    let mut transport = TransportConfig::default();
    // Small, so that a reader who stops is felt soon.
    transport.stream_receive_window(quinn::VarInt::from_u32(128 * 1024));
    let transport = Arc::new(transport);
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server).unwrap()));
    server.transport_config(transport.clone());
    let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).unwrap()));
    client.transport_config(transport);
    (server, client)
}

pub struct Client {
    pub conn: Connection,
    _endpoint: Endpoint,
    _control: SendStream,
    peer: RecvStream,
    frames: frame::Reader,
    ahead: Bytes,
}

impl Client {
    pub async fn new(endpoint: Endpoint, conn: Connection, settings: &Settings) -> Client {
        let mut output = Vec::new();
        Uni::Control.write(&mut output);
        frame::settings(settings, &mut output);
        let control = uni(&conn, &output).await;
        let mut peer = conn.accept_uni().await.unwrap();
        let mut kind = [7];
        peer.read_exact(&mut kind).await.unwrap();
        assert_eq!(kind, [0], "the control stream comes first");
        let frames = frame::Reader::control();
        Client { conn, _endpoint: endpoint, _control: control, peer, frames, ahead: Bytes::new() }
    }

    /// The next frame of the server's control stream.
    pub async fn control(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.frames.next(&mut self.ahead, usize::MAX).unwrap() {
                return frame;
            }
            self.ahead = self.peer.read_chunk(usize::MAX, true).await.unwrap().unwrap().bytes;
        }
    }

    pub async fn request(&self, method: Method, path: &str, fields: &[(&str, &str)]) -> Exchange {
        let mut head = request(method, path);
        fields.iter().for_each(|(name, value)| {
            head.headers
                .append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        });
        self.send(&head).await
    }

    pub async fn connect(&self, protocol: &str, path: &str) -> Exchange {
        let mut head = request(Method::CONNECT, path);
        head.extensions.insert(Protocol::new(protocol).unwrap());
        self.send(&head).await
    }

    pub async fn send(&self, head: &request::Parts) -> Exchange {
        self.fields(&head::encode_request(head).finish()).await
    }

    /// Any field section.
    pub async fn fields(&self, section: &[u8]) -> Exchange {
        let (mut send, recv) = self.conn.open_bi().await.unwrap();
        send.write_all(&frame::headers(section)).await.unwrap();
        Exchange { send, recv, frames: frame::Reader::request(1 << 16), ahead: Bytes::new() }
    }

    /// The code that the server closed the connection with.
    pub async fn closed(&self) -> Code {
        closed(&self.conn).await
    }
}

pub async fn closed(conn: &Connection) -> Code {
    match within(conn.closed()).await {
        quinn::ConnectionError::ApplicationClosed(close) => Code(close.error_code.into_inner()),
        other => panic!("{other}"),
    }
}

pub fn request(method: Method, path: &str) -> request::Parts {
    Request::builder().method(method).uri(format!("https://a.test{path}")).body(()).unwrap().into_parts().0
}

/// A unidirectional stream that says this.
pub async fn uni(conn: &Connection, bytes: &[u8]) -> SendStream {
    let mut stream = conn.open_uni().await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

impl Drop for Client {
    /// Before the control stream ends by being dropped, too.
    fn drop(&mut self) {
        self.conn.close(quinn::VarInt::from_u32(0x100), b"");
    }
}

/// A request's stream, at the client.
pub struct Exchange {
    pub send: SendStream,
    pub recv: RecvStream,
    frames: frame::Reader,
    ahead: Bytes,
}

impl Exchange {
    pub fn id(&self) -> u64 {
        u64::from(self.send.id())
    }

    async fn frame(&mut self) -> Result<Option<Frame>, ReadError> {
        loop {
            if let Some(frame) = self.frames.next(&mut self.ahead, usize::MAX).unwrap() {
                return Ok(Some(frame));
            }
            match within(self.recv.read_chunk(usize::MAX, true)).await? {
                Some(chunk) => self.ahead = chunk.bytes,
                None => return Ok(None),
            }
        }
    }

    pub async fn head(&mut self) -> response::Parts {
        match self.frame().await {
            Ok(Some(Frame::Headers(section))) => head::decode_response(&section, 1 << 16).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    pub async fn status(&mut self) -> StatusCode {
        self.head().await.status
    }

    /// What the stream was reset with.
    pub async fn reset(&mut self) -> Code {
        match self.frame().await {
            Err(ReadError::Reset(code)) => Code(code.into_inner()),
            other => panic!("{other:?}"),
        }
    }

    pub async fn data(&mut self) -> Option<Bytes> {
        match self.frame().await.unwrap() {
            Some(Frame::Data(data)) => Some(data),
            None => None,
            other => panic!("{other:?}"),
        }
    }

    /// The whole content, and the trailers.
    pub async fn content(&mut self) -> (Vec<u8>, HeaderMap) {
        let mut content = Vec::new();
        let mut trailers = HeaderMap::new();
        loop {
            match self.frame().await.unwrap() {
                Some(Frame::Data(data)) => content.extend_from_slice(&data),
                Some(Frame::Headers(section)) => trailers = head::decode_trailers(&section, 1 << 16).unwrap(),
                None => return (content, trailers),
                other => panic!("{other:?}"),
            }
        }
    }

    pub async fn write(&mut self, data: &[u8]) {
        write(&mut self.send, data).await;
    }
}

/// A stream of a session.
pub async fn open(client: &Client, session: u64) -> (SendStream, RecvStream) {
    let (mut send, recv) = client.conn.open_bi().await.unwrap();
    let mut beginning = Vec::new();
    stream::write_bidi(session, &mut beginning);
    send.write_all(&beginning).await.unwrap();
    (send, recv)
}

/// The close capsule of a session, and the end behind it.
pub async fn close(exchange: &mut Exchange) -> Option<(u32, String)> {
    let mut reader = capsule::Reader::default();
    let mut found = None;
    while let Some(mut data) = within(exchange.data()).await {
        while let Some(capsule) = reader.next(&mut data).unwrap() {
            if let Capsule::Close { code, reason } = capsule {
                found = Some((code, reason));
            }
        }
    }
    found
}

/// A DATA frame.
pub async fn write(send: &mut SendStream, data: &[u8]) {
    let mut output = Vec::new();
    frame::data_header(data.len(), &mut output);
    output.extend_from_slice(data);
    send.write_all(&output).await.unwrap();
}

/// No wait of a test is longer.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("too late")
}

pub fn section(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut encoder = qpack::Encoder::new();
    fields.iter().for_each(|(name, value)| encoder.field(name, value.as_bytes()));
    encoder.finish()
}
