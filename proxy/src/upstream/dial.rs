//! The way to a server: its socket, the PROXY protocol's header in front, TLS around the rest.

use super::address::Address;
use super::stream::{ServerStream, Socket};
use super::tls;
use super::watched::Idle;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::ServerName;

/// Of the address that was the better one last time, over the other one (RFC 8305 §5).
const HEAD_START: Duration = Duration::from_millis(250);

pub struct Dial {
    pub address: Address,
    /// The other address was the better one last time.
    other: AtomicBool,
    pub tls: Option<(tls::Client, ServerName<'static>)>,
    /// Connections that wait for a request.
    pub idle: Arc<Idle>,
}

impl Dial {
    pub fn new(address: Address, tls: Option<(tls::Client, ServerName<'static>)>) -> Dial {
        Dial { address, other: AtomicBool::new(false), tls, idle: Arc::default() }
    }

    /// The address that the next connection goes to first; `None`: a unix socket.
    pub fn addr(&self) -> Option<SocketAddr> {
        match (&self.address, self.other.load(Relaxed)) {
            (Address::Tcp(_, Some(second)), true) => Some(*second),
            (Address::Tcp(first, _), _) => Some(*first),
            (Address::Unix(_), _) => None,
        }
    }

    /// The caller sets the deadline.
    pub async fn open(&self, header: Option<&[u8]>) -> io::Result<ServerStream> {
        let mut socket = self.socket().await?;
        if let Some(header) = header {
            socket.write_all(header).await?;
        }
        match &self.tls {
            Some((client, name)) => client.connect(socket, name.clone()).await,
            None => Ok(socket.into()),
        }
    }

    async fn socket(&self) -> io::Result<Socket> {
        let tcp = match &self.address {
            Address::Unix(path) => return UnixStream::connect(path).await.map(Socket::Unix),
            Address::Tcp(first, None) => TcpStream::connect(first).await?,
            Address::Tcp(first, Some(second)) => self.either(*first, *second).await?,
        };
        let _unsupported_matters_not = tcp.set_nodelay(true);
        Ok(Socket::Tcp(tcp))
    }

    /// To whichever can be reached, and the better one of last time has a head start (RFC 8305).
    async fn either(&self, first: SocketAddr, second: SocketAddr) -> io::Result<TcpStream> {
        let was_other = self.other.load(Relaxed);
        let (one, two) = if was_other { (second, first) } else { (first, second) };
        let to_one = TcpStream::connect(one);
        tokio::pin!(to_one);
        let failed = match timeout(HEAD_START, &mut to_one).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        let to_two = TcpStream::connect(two);
        tokio::pin!(to_two);
        let opened = match failed {
            Some(_) => to_two.await,
            None => tokio::select! {
                opened = &mut to_one => match opened {
                    Ok(tcp) => return Ok(tcp),
                    Err(_) => to_two.await,
                },
                opened = &mut to_two => match opened {
                    Ok(tcp) => Ok(tcp),
                    Err(_) => return to_one.await,
                },
            },
        };
        self.other.store(was_other ^ opened.is_ok(), Relaxed);
        opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn the_other_address_is_tried_in_the_same_attempt_and_first_the_next_time() {
        let up = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = up.local_addr().unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        full.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        full.listen(0).unwrap();
        let silent = full.local_addr().unwrap().as_socket().unwrap();
        // Its backlog is full: what comes now gets no answer.
        let _held: Vec<_> =
            futures_util::future::join_all((0..3).map(|_| timeout(HEAD_START, TcpStream::connect(silent))))
                .await;
        for elsewhere in [closed, silent] {
            let dial = Dial::new(Address::Tcp(elsewhere, Some(there)), None);
            assert_eq!(dial.addr(), Some(elsewhere));
            timeout(HEAD_START * 3, dial.open(None)).await.unwrap().unwrap();
            assert_eq!(dial.addr(), Some(there), "{elsewhere}");
        }
        let dial = Dial::new(Address::Tcp(closed, Some(closed)), None);
        assert_eq!(dial.open(None).await.err().unwrap().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(dial.addr(), Some(closed));
    }
}
