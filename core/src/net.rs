//! Sockets that the tiers listen on.

use socket2::{Domain, SockRef, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};

/// So many connections may wait to be accepted; the kernel allows `net.core.somaxconn` of them at most. The
/// standard library's 128 are gone when a few hundred clients come at once, and each that finds no room
/// waits a second before it tries again.
pub const BACKLOG: i32 = 4096;

/// A non-blocking listener on this address; `inherited` from a predecessor, which may have asked for less.
pub fn listen(addr: SocketAddr, inherited: Option<TcpListener>) -> io::Result<TcpListener> {
    let listener = match inherited {
        Some(listener) => {
            SockRef::from(&listener).listen(BACKLOG)?;
            listener
        }
        None => {
            let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
            // As the standard library does: or else a restart waits for old connections to time out.
            socket.set_reuse_address(true)?;
            socket.bind(&addr.into())?;
            socket.listen(BACKLOG)?;
            socket.into()
        }
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::task::JoinSet;

    /// Nobody accepts: each that finds no room is not let in at all.
    #[tokio::test]
    async fn hundreds_may_come_before_one_is_accepted() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        for inherited in [None, Some(TcpListener::bind(any).unwrap())] {
            let what = format!("{inherited:?}");
            let listener = listen(any, inherited).unwrap();
            let addr = listener.local_addr().unwrap();
            let mut clients = JoinSet::new();
            for _ in 0..500 {
                clients.spawn(tokio::net::TcpStream::connect(addr));
            }
            let all = tokio::time::timeout(Duration::from_secs(10), clients.join_all()).await;
            let connected = all.unwrap_or_else(|_| panic!("{what}: not all are let in"));
            assert!(connected.iter().all(Result::is_ok), "{what}");
        }
    }

    #[test]
    fn a_port_in_use_is_an_error() {
        let first = listen("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let again = listen(first.local_addr().unwrap(), None);
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
