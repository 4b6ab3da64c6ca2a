//! A connection to a server, whatever it goes over.

use crate::delegate::delegate;
use crate::tunnel::flushed::Flushed;
use crate::tunnel::presence;
use std::io;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

#[derive(Debug)]
pub enum ServerStream {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Boxed, so that tunnels without TLS do not pay for its size.
    Tls(Box<Flushed<TlsStream<Socket>>>),
}

/// What TLS runs over.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl From<Socket> for ServerStream {
    fn from(socket: Socket) -> ServerStream {
        match socket {
            Socket::Tcp(tcp) => ServerStream::Tcp(tcp),
            Socket::Unix(unix) => ServerStream::Unix(unix),
        }
    }
}

impl From<TlsStream<Socket>> for ServerStream {
    fn from(stream: TlsStream<Socket>) -> ServerStream {
        ServerStream::Tls(Box::new(Flushed::new(stream)))
    }
}

impl ServerStream {
    /// Lets the kernel notice a server that vanished without a word.
    pub fn watch_peer(&self, conf: &weir_conf::proxy::Proxy) -> io::Result<()> {
        self.socket(|tcp| presence::watch_peer(tcp, conf), |_unix| Ok(()))
    }

    /// Asks the socket below.
    pub fn socket<T>(&self, tcp: impl FnOnce(&TcpStream) -> T, unix: impl FnOnce(&UnixStream) -> T) -> T {
        match self {
            ServerStream::Tcp(stream) => tcp(stream),
            ServerStream::Unix(stream) => unix(stream),
            ServerStream::Tls(tls) => match tls.get_ref().get_ref().0 {
                Socket::Tcp(stream) => tcp(stream),
                Socket::Unix(stream) => unix(stream),
            },
        }
    }
}

delegate!(ServerStream { Tcp, Unix, Tls }, vectored: Tcp, Unix, Tls);
delegate!(Socket { Tcp, Unix }, vectored: Tcp, Unix);
