//! WebSockets and sessions of WebTransport from a front in the same process: no second socket, no relay. The front read the
//! head and keeps its own limits; everything that is checked at the node's listener is checked here.

use crate::conn::{Conn, Socket};
use crate::listener::handshake::{self, Visitor};
use crate::shared::Shared;
use http::StatusCode;
use std::io;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use weir_core::accept::{Acceptor, Request};
use weir_core::limited;
use weir_core::net::keep_little_unsent;

pub struct InProcess {
    pub shared: Arc<Shared>,
}

impl Acceptor for InProcess {
    fn accept(&self, request: Request) {
        let shared = self.shared.clone();
        match self.shared.runtime.get() {
            Some(runtime) => {
                runtime.spawn(take(shared, request));
            }
            // Before `run`: nobody is served yet. Without a runtime at all the client sees a close.
            None => {
                if let Ok(runtime) = Handle::try_current() {
                    runtime.spawn(async move {
                        let starting = handshake::text(StatusCode::SERVICE_UNAVAILABLE, "starting");
                        let _ = tokio::time::timeout(
                            shared.conf.handshake_timeout,
                            request.exchange.refuse(starting),
                        )
                        .await;
                    });
                }
            }
        }
    }
}

async fn take(shared: Arc<Shared>, request: Request) {
    let deadline = shared.conf.handshake_timeout;
    let Request { head, transport, client, conn, exchange, permit } = request;
    let visitor = Visitor { conn, transport, address: client, permit: Some(permit) };
    let (headers, accepted) = match handshake::check(&shared, &head, visitor) {
        Ok(good) => good,
        Err(refusal) => {
            let _ = tokio::time::timeout(deadline, exchange.refuse(refusal)).await;
            return;
        }
    };
    drop(head);
    let Ok(Ok(stream)) = tokio::time::timeout(deadline, exchange.accept(headers)).await else { return };
    let session = stream.session();
    let socket = match stream.into_tcp() {
        Ok((tcp, read)) => match adopt(tcp) {
            Ok(tcp) => Socket::Tcp(tcp, read),
            Err(error) => {
                return limited!(warn, "cannot take over a socket", %error, "cannot take over a socket");
            }
        },
        Err(stream) => Socket::Other(stream, session),
    };
    tokio::spawn(Conn::new(shared, socket, accepted).run());
}

/// A socket belongs to the runtime that polls for it: it comes from the front's, and goes to ours.
fn adopt(tcp: TcpStream) -> io::Result<TcpStream> {
    let _ = tcp.set_nodelay(true);
    keep_little_unsent(&tcp);
    TcpStream::from_std(tcp.into_std()?)
}
