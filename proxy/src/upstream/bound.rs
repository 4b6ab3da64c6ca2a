//! Authentication of connections (NTLM, Negotiate: RFC 4559) breaks HTTP's rule that a request stands for itself: what
//! comes on a connection after the handshake is taken for whoever made it. So a server connection on which any of it
//! was seen serves one client's connection alone: kept under a group of its own, found again for the next leg of the
//! handshake, and closed with the client's connection.

use super::stream::ServerStream;
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, WWW_AUTHENTICATE};
use pingora_core::upstreams::peer::{Tracer, Tracing};
use socket2::{SockRef, Socket};
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Shutdown};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use weir_core::sync::lock;

/// Schemes that authenticate a connection.
const SCHEMES: [&str; 5] = ["ntlm", "negotiate", "nego2", "kerberos", "credssp"];

/// No two connections that may not stand for each other are of one group; 0 is that of all others.
static GROUP: AtomicU64 = AtomicU64::new(1);

pub fn new_group() -> u64 {
    GROUP.fetch_add(1, Relaxed)
}

/// A client takes part in it, or a server asks for it.
pub fn is_seen(headers: &HeaderMap) -> bool {
    let of = |name: HeaderName| headers.get_all(name).into_iter();
    let values = of(AUTHORIZATION)
        .chain(of(PROXY_AUTHORIZATION))
        .chain(of(WWW_AUTHENTICATE))
        .chain(of(PROXY_AUTHENTICATE));
    // Several challenges may stand in one field.
    values.flat_map(|value| value.as_bytes().split(|b| *b == b',')).any(|challenge| {
        let scheme =
            challenge.trim_ascii_start().split(|b| b.is_ascii_whitespace()).next().unwrap_or_default();
        SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known.as_bytes()))
    })
}

/// The server connections of one client's connection. The last clone closes them.
#[derive(Clone, Debug, Default)]
pub struct Bound(Arc<Guard>);

#[derive(Debug, Default)]
struct Guard(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    /// `None`: nothing was seen yet.
    group: Option<u64>,
    /// Behind a trusted peer one connection brings several clients.
    client: Option<IpAddr>,
    sockets: HashMap<u64, Socket>,
}

impl Bound {
    /// From here on its requests go on connections of its own.
    pub fn begin(&self, client: IpAddr) -> u64 {
        if let Some(group) = self.group(client) {
            return group;
        }
        let mut kept = lock(&self.0.0);
        let group = new_group();
        kept.close();
        (kept.group, kept.client) = (Some(group), Some(client));
        group
    }

    /// `None`: it may use the connections of all.
    pub fn group(&self, client: IpAddr) -> Option<u64> {
        let kept = lock(&self.0.0);
        kept.group.filter(|_| kept.client == Some(client))
    }

    /// Whoever is told of the end of the connection that is about to be made.
    pub fn follow(&self) -> Followed {
        Followed { kept: self.0.0.clone(), id: new_group() }
    }
}

impl Kept {
    fn close(&mut self) {
        for (_, socket) in self.sockets.drain() {
            let _closed_already = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        lock(&self.0).close();
    }
}

/// One server connection, of which a second handle is held as long as it lives.
#[derive(Clone, Debug)]
pub struct Followed {
    kept: Arc<Mutex<Kept>>,
    id: u64,
}

impl Followed {
    /// It is there. Without a second handle it is closed by its idle time alone.
    pub fn made(&self, stream: &ServerStream) {
        let tcp = |tcp: &tokio::net::TcpStream| SockRef::from(tcp).try_clone();
        let socket = stream.socket(tcp, |unix| SockRef::from(unix).try_clone());
        if let Ok(socket) = socket {
            lock(&self.kept).sockets.insert(self.id, socket);
        }
    }

    pub fn tracer(&self) -> Tracer {
        Tracer(Box::new(self.clone()))
    }
}

impl Tracing for Followed {
    fn on_connected(&self) {}

    /// Pingora has let go of it: it must not stay open for the second handle.
    fn on_disconnected(&self) {
        lock(&self.kept).sockets.remove(&self.id);
    }

    fn boxed_clone(&self) -> Box<dyn Tracing> {
        Box::new(self.clone())
    }
}

/// Connections in the common pool on which a server has asked for it, by their descriptors. Each that is opened anew
/// takes its descriptor off, so none stands for another.
#[derive(Debug, Default)]
pub struct Tainted(Mutex<BTreeSet<RawFd>>);

impl Tainted {
    pub fn add(&self, fd: RawFd) {
        lock(&self.0).insert(fd);
    }

    pub fn take(&self, fd: RawFd) -> bool {
        let mut tainted = lock(&self.0);
        !tainted.is_empty() && tainted.remove(&fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn schemes_that_authenticate_a_connection_are_known_in_any_spelling() {
        for (name, value, expected) in [
            ("authorization", "NTLM TlRMTVNTUAAB", true),
            ("authorization", "negotiate YII", true),
            ("authorization", "Basic bnRsbTpuZWdvdGlhdGU=", false),
            ("authorization", "Bearer Negotiate", false),
            ("authorization", "NTLMv9 x", false),
            ("www-authenticate", "Negotiate", true),
            ("www-authenticate", "Basic realm=\"a\", NTLM", true),
            ("www-authenticate", "Basic realm=\"NTLM\"", false),
            ("proxy-authenticate", " Kerberos", true),
            ("x-authorization", "NTLM x", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("accept", HeaderValue::from_static("NTLM"));
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
            assert_eq!(is_seen(&headers), expected, "{name}: {value}");
        }
    }

    #[test]
    fn a_group_is_of_one_connection_and_of_one_client_on_it() {
        let [a, b] = [1, 2].map(|n| IpAddr::from([10, 0, 0, n]));
        let (one, other) = (Bound::default(), Bound::default());
        assert_eq!(one.group(a), None);
        let group = one.begin(a);
        assert_eq!((one.begin(a), one.group(a), one.group(b)), (group, Some(group), None));
        assert!(other.begin(a) != group && one.begin(b) != group && one.group(a).is_none());
    }

    #[tokio::test]
    async fn its_connections_end_with_it() {
        use tokio::io::AsyncReadExt;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = || tokio::net::TcpStream::connect(listener.local_addr().unwrap());
        let bound = Bound::default();
        bound.begin([10, 0, 0, 1].into());
        let (followed, gone) = (bound.follow(), bound.follow());
        let stream = ServerStream::Tcp(connect().await.unwrap());
        let mut server = listener.accept().await.unwrap().0;
        followed.made(&stream);
        gone.made(&ServerStream::Tcp(connect().await.unwrap()));
        let mut other = listener.accept().await.unwrap().0;
        gone.on_disconnected();
        assert_eq!(other.read(&mut [0; 1]).await.unwrap(), 0, "nothing holds it open");
        drop(bound);
        assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
        drop(stream);
    }
}
