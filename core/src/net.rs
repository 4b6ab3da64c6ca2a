//! Sockets that the tiers listen on.

use socket2::{Domain, SockRef, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;

/// So many connections may wait to be accepted; the kernel allows `net.core.somaxconn` of them at most. The
/// standard library's 128 are gone when a few hundred clients come at once, and each that finds no room
/// waits a second before it tries again.
pub const BACKLOG: i32 = 4096;

/// A non-blocking listener on this address; `inherited` from a predecessor, which may have asked for less.
pub fn listen(addr: SocketAddr, inherited: Option<TcpListener>) -> io::Result<TcpListener> {
    match inherited {
        Some(listener) => {
            SockRef::from(&listener).listen(BACKLOG)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        }
        None => bind(addr, Family::Both, false),
    }
}

/// Bytes that the kernel takes of what it cannot send yet.
const UNSENT: u32 = 128 << 10;

/// Has the kernel take what a slow reader has no room for in small pieces, rather than megabytes at once: so that a
/// deadline for progress sees that it reads, and so that what waits is where it is counted.
pub fn keep_little_unsent(tcp: &impl AsFd) {
    // Without it the deadline is coarser, and all else is as it was.
    let _ = SockRef::from(tcp).set_tcp_notsent_lowat(UNSENT);
}

/// Whose connections a socket on `[::]` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Those of IPv4, too.
    Both,
    /// There is a socket for IPv4 on the same port.
    V6,
}

impl Family {
    /// For a socket at `addr`, of which the others of this process are at `all`. Only `[::]` is asked.
    pub fn at(addr: SocketAddr, all: impl IntoIterator<Item = SocketAddr>) -> Family {
        let beside = |other: SocketAddr| other.is_ipv4() && other.port() == addr.port();
        match is_dual(addr) && addr.port() != 0 && all.into_iter().any(beside) {
            true => Family::V6,
            false => Family::Both,
        }
    }

    /// Of a socket; `None`: it is not at `[::]`.
    pub fn of<S: AsFd>(socket: &S, at: SocketAddr) -> Option<Family> {
        let only_v6 = SockRef::from(socket).only_v6().ok().filter(|_| is_dual(at))?;
        Some(if only_v6 { Family::V6 } else { Family::Both })
    }
}

fn is_dual(addr: SocketAddr) -> bool {
    addr.is_ipv6() && addr.ip().is_unspecified()
}

/// A new listener. `beside`: one of ours that goes has a part of this address still; see [`share`].
pub fn bind(addr: SocketAddr, family: Family, beside: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    // As the standard library does: or else a restart waits for old connections to time out.
    socket.set_reuse_address(true)?;
    if is_dual(addr) {
        socket.set_only_v6(family == Family::V6)?;
    }
    socket.set_reuse_port(beside)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    // Nobody else's is to come beside it.
    socket.set_reuse_port(false)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Lets a socket of this process come beside this one, which is to be closed then: `[::]` cannot be made narrower or
/// wider once it is bound.
pub fn share(listener: &TcpListener) -> io::Result<()> {
    SockRef::from(listener).set_reuse_port(true)
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

    fn answers(to: &str, port: u16) -> bool {
        std::net::TcpStream::connect((to, port)).is_ok()
    }

    #[test]
    fn both_families_have_a_socket_each_or_one_has_both() {
        let dual = listen("[::]:0".parse().unwrap(), None).unwrap();
        let port = dual.local_addr().unwrap().port();
        assert!(answers("127.0.0.1", port) && answers("::1", port));
        let (v4, v6) = (format!("0.0.0.0:{port}").parse().unwrap(), format!("[::]:{port}").parse().unwrap());
        assert_eq!(Family::of(&dual, v6), Some(Family::Both));
        assert_eq!((Family::at(v6, [v4, v6]), Family::at(v6, [v6])), (Family::V6, Family::Both));
        // As a stranger would come; as one of ours does, and back again.
        assert_eq!(bind(v4, Family::Both, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        share(&dual).unwrap();
        let two = [bind(v4, Family::Both, true).unwrap(), bind(v6, Family::V6, true).unwrap()];
        drop(dual);
        assert!(answers("127.0.0.1", port) && answers("::1", port));
        assert_eq!(bind(v6, Family::V6, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        two.iter().for_each(|socket| share(socket).unwrap());
        let dual = bind(v6, Family::Both, true).unwrap();
        drop(two);
        assert!(answers("127.0.0.1", port) && answers("::1", port));
        drop(dual);
        assert!(!answers("127.0.0.1", port) && !answers("::1", port));
    }
}
