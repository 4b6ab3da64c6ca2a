//! Listening sockets from a running process to its successor, over a unix socket.
//!
//! ```text
//!   successor                                        predecessor
//!   weir run --upgrade: waits at admin.upgrade_socket
//!                                          SIGQUIT: connects
//!   ◄── a line of JSON: which listeners, in which order; which of QUIC, and what to know of them
//!   ◄── one byte and one descriptor for each, two for each of QUIC
//!   binds, serves ──► "ready\n"
//!                                          stops accepting, drains, ends
//! ```
//!
//! Both accept from the same queues until the predecessor stops, so no connection is refused. Until
//! "ready" nothing has changed there: a successor that fails leaves it serving. Both sides look at
//! the other's user id; a descriptor goes to nobody else.
//!
//! A successor that does not know of QUIC leaves its part unread, and one that does takes a hand-over without
//! it; so the version is the same.

mod place;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};
use weir_core::limited;
use weir_proxy::{QuicInheritance, QuicSocket, Succession};

/// For the other side to be there: an operator starts one by hand, and then signals the other.
const MEET: Duration = Duration::from_secs(60);
/// The predecessor connects to a successor that was started first; a moment covers a slow start.
const CONNECT: Duration = Duration::from_secs(5);
/// For a message; and, on the predecessor's side, for the successor to bind and serve.
const ANSWER: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);
/// Of the line that names the listeners.
const MAX_LINE: usize = 64 * 1024;
const VERSION: u32 = 1;
const READY: &[u8] = b"ready\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    Proxy,
    Node,
    Admin,
}

/// A listening socket, by the tier and the address in the conf.
#[derive(Debug)]
pub struct Handed {
    pub tier: Tier,
    pub addr: SocketAddr,
    pub listener: TcpListener,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Greeting {
    version: u32,
    listeners: Vec<(Tier, SocketAddr)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    quic: Option<Quic>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Quic {
    succession: Succession,
    sockets: Vec<SocketAddr>,
}

/// What a successor has from its predecessor.
pub struct Taken {
    pub listeners: Vec<Handed>,
    pub quic: Option<QuicInheritance>,
}

pub use place::{Side, judge, socket};

/// To be said once this process serves.
pub struct Ready(UnixStream);

impl Ready {
    pub fn say(mut self) {
        if let Err(error) = self.0.write_all(READY) {
            tracing::error!(%error, "the predecessor could not be told to drain");
        }
    }
}

/// The successor's side; blocks until a predecessor comes.
pub fn receive(path: &Path) -> Result<(Taken, Ready), String> {
    let at =
        |what: &str, error: io::Error| format!("admin.upgrade_socket {}: {what}: {error}", path.display());
    let listener = listen(path).map_err(|e| at("cannot wait there", e))?;
    tracing::info!(socket = %path.display(), "waiting for SIGQUIT to the predecessor");
    let taken = loop {
        let mut stream = match accept(&listener) {
            Ok(stream) => stream,
            Err(error) => break Err(at("no predecessor came", error)),
        };
        match take(&mut stream) {
            Ok(taken) => break Ok((taken, Ready(stream))),
            // It only looked whether somebody waits here, as another successor does.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => break Err(at("the predecessor's listeners could not be taken", error)),
        }
    };
    // Nobody else is to find it; a leftover would be taken away by the next successor.
    let _gone = std::fs::remove_file(path);
    taken
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    match UnixStream::connect(path) {
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another successor waits there")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    place::close_to_others(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn accept(listener: &UnixListener) -> io::Result<UnixStream> {
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) if is_ours(&stream)? => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(ANSWER))?;
                stream.set_write_timeout(Some(ANSWER))?;
                return Ok(stream);
            }
            Ok(_) => {
                limited!(warn, "upgrade socket", "a process of another user connected to the upgrade socket")
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if start.elapsed() > MEET {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("not within {} s", MEET.as_secs())));
        }
        std::thread::sleep(LOOK);
    }
}

fn take(stream: &mut UnixStream) -> io::Result<Taken> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
        if line.len() > MAX_LINE {
            return Err(io::Error::other("its greeting is too long"));
        }
    }
    let greeting: Greeting = serde_json::from_slice(&line)?;
    if greeting.version != VERSION {
        return Err(io::Error::other(format!("it speaks version {}, this is {VERSION}", greeting.version)));
    }
    let take = |(tier, addr)| Ok(Handed { tier, addr, listener: take_one(stream)?.into() });
    let listeners: io::Result<Vec<Handed>> = greeting.listeners.into_iter().map(take).collect();
    let take = |addr| {
        let (udp, feed) = (take_one(stream)?.into(), take_one(stream)?.into());
        Ok((addr, QuicSocket { udp, feed }))
    };
    let listeners = listeners?;
    let quic = greeting.quic.map(|quic| {
        let sockets: io::Result<Vec<_>> = quic.sockets.into_iter().map(take).collect();
        Ok::<_, io::Error>(QuicInheritance { succession: quic.succession, sockets: sockets? })
    });
    Ok(Taken { listeners, quic: quic.transpose()? })
}

fn take_one(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut iov = [IoSliceMut::new(&mut byte)];
    recvmsg(stream, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
            && let Some(descriptor) = descriptors.next()
        {
            return Ok(descriptor);
        }
    }
    Err(io::Error::other("a descriptor is missing"))
}

/// The predecessor's side: blocks until the successor serves. On an error nothing has changed.
pub fn give(path: &Path, handed: &[Handed], quic: Option<QuicInheritance>) -> Result<(), String> {
    let at =
        |what: &str, error: io::Error| format!("admin.upgrade_socket {}: {what}: {error}", path.display());
    let mut stream = connect(path).map_err(|e| at("no successor (weir run --upgrade) waits there", e))?;
    send(&mut stream, handed, quic).map_err(|e| at("the listeners could not be sent", e))?;
    let mut ready = [0; READY.len()];
    stream.read_exact(&mut ready).map_err(|e| at("the successor did not come to serve", e))?;
    match ready == READY {
        true => Ok(()),
        false => Err(at("the successor did not come to serve", io::Error::other("unknown answer"))),
    }
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    let start = Instant::now();
    let stream = loop {
        match UnixStream::connect(path) {
            Ok(stream) => break stream,
            Err(error) if start.elapsed() > CONNECT => return Err(error),
            Err(_) => std::thread::sleep(LOOK),
        }
    };
    if !is_ours(&stream)? {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it runs as another user"));
    }
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    Ok(stream)
}

/// The ends that are the successor's are closed here once it has them: it is to notice when we end.
fn send(stream: &mut UnixStream, handed: &[Handed], quic: Option<QuicInheritance>) -> io::Result<()> {
    let listeners = handed.iter().map(|h| (h.tier, h.addr)).collect();
    let (succession, sockets) = quic.map(|quic| (quic.succession, quic.sockets)).unzip();
    let sockets = sockets.unwrap_or_default();
    let addrs = || sockets.iter().map(|(addr, _)| *addr).collect();
    let quic = succession.map(|succession| Quic { succession, sockets: addrs() });
    let mut line = serde_json::to_vec(&Greeting { version: VERSION, listeners, quic })?;
    line.push(b'\n');
    stream.write_all(&line)?;
    for Handed { listener, .. } in handed {
        send_one(stream, listener.as_fd())?;
    }
    for (_, QuicSocket { udp, feed }) in &sockets {
        send_one(stream, udp.as_fd())?;
        send_one(stream, feed.as_fd())?;
    }
    Ok(())
}

fn send_one(stream: &UnixStream, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no space for a descriptor"));
    }
    sendmsg(stream, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn is_ours(stream: &UnixStream) -> io::Result<bool> {
    Ok(rustix::net::sockopt::socket_peercred(stream)?.uid == rustix::process::geteuid())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::unix::net::UnixDatagram;

    fn handed() -> Vec<Handed> {
        [Tier::Proxy, Tier::Admin]
            .map(|tier| {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                Handed { tier, addr: listener.local_addr().unwrap(), listener }
            })
            .into()
    }

    #[test]
    fn sockets_go_over_and_queues_with_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("upgrade.sock");
        let (ours, there) = (handed(), path.clone());
        let addr = ours[0].addr;
        // Connected before: it waits in the queue of a socket that the other side gets.
        let client = std::net::TcpStream::connect(addr).unwrap();
        let successor = std::thread::spawn(move || {
            let (theirs, ready) = receive(&there).unwrap();
            ready.say();
            theirs
        });
        let (udp, feed) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UnixDatagram::pair().unwrap());
        let (udp_addr, ours_of_feed) = (udp.local_addr().unwrap(), feed.0);
        let succession = r#"{"material":[1],"forms":[]}"#;
        let sockets = vec![(udp_addr, QuicSocket { udp, feed: feed.1 })];
        let quic = QuicInheritance { succession: serde_json::from_str(succession).unwrap(), sockets };
        give(&path, &ours, Some(quic)).unwrap();
        let Taken { listeners: theirs, quic } = successor.join().unwrap();
        let mut quic = quic.unwrap();
        assert_eq!(serde_json::to_string(&quic.succession).unwrap(), succession);
        let (addr, QuicSocket { udp, feed }) = quic.sockets.pop().unwrap();
        assert_eq!((addr, udp.local_addr().unwrap(), quic.sockets.len()), (udp_addr, udp_addr, 0));
        feed.send(b"a packet").unwrap();
        assert_eq!(ours_of_feed.recv(&mut [0; 20]).unwrap(), 8);
        // Its end is nowhere else: the other side notices when one is gone.
        drop(ours_of_feed);
        feed.send(b"a packet").unwrap_err();
        let names = |handed: &[Handed]| handed.iter().map(|h| (h.tier, h.addr)).collect::<Vec<_>>();
        assert_eq!(names(&theirs), names(&ours));
        drop(ours);
        let (_, peer) = theirs[0].listener.accept().unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn a_successor_that_fails_is_noticed_and_a_leftover_is_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("upgrade.sock");
        drop(UnixListener::bind(&path).unwrap());
        let there = path.clone();
        let successor = std::thread::spawn(move || drop(receive(&there).unwrap()));
        let error = give(&path, &handed(), None).unwrap_err();
        assert!(error.contains("did not come to serve"), "{error}");
        successor.join().unwrap();
    }

    #[test]
    fn two_successors_are_one_too_many() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("upgrade.sock");
        let _waits = UnixListener::bind(&path).unwrap();
        let error = receive(&path).err().unwrap();
        assert!(error.contains("another successor"), "{error}");
    }
}
