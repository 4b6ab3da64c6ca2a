//! The way to a server: its socket, the PROXY protocol's header in front, TLS around the rest.

use super::address::Address;
use super::stream::{ServerStream, Socket};
use super::tls;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::rustls::pki_types::ServerName;

pub struct Dial {
    pub address: Address,
    /// The other address was the better one last time.
    other: AtomicBool,
    pub tls: Option<(tls::Client, ServerName<'static>)>,
}

impl Dial {
    pub fn new(address: Address, tls: Option<(tls::Client, ServerName<'static>)>) -> Dial {
        Dial { address, other: AtomicBool::new(false), tls }
    }

    /// The address that the next connection goes to first; `None`: a unix socket.
    pub fn addr(&self) -> Option<SocketAddr> {
        match (&self.address, self.other.load(Relaxed)) {
            (Address::Tcp(_, Some(second)), true) => Some(*second),
            (Address::Tcp(first, _), _) => Some(*first),
            (Address::Unix(_), _) => None,
        }
    }

    /// The next connection goes to the other of its addresses, if there is one.
    pub fn other_address(&self) {
        self.other.fetch_xor(true, Relaxed);
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
            Address::Tcp(first, Some(_)) => {
                let addr = self.addr().unwrap_or(*first);
                match TcpStream::connect(addr).await {
                    Ok(tcp) => tcp,
                    Err(_) => {
                        self.other_address();
                        TcpStream::connect(self.addr().unwrap_or(*first)).await?
                    }
                }
            }
        };
        let _unsupported_matters_not = tcp.set_nodelay(true);
        Ok(Socket::Tcp(tcp))
    }
}
