//! Packets from a successor, which reads the UDP socket, to its predecessor, whose connections they are
//! for: over a pair of unix datagram sockets, each message with what the kernel said about it in front.
//!
//! ```text
//!   octet 0   1       2        4        5         21     23       27       28         44
//!   version   ECN     stride   family   address   port   scope    family   local IP   packets …
//! ```
//!
//! All packets of a message have the length of `stride`, but the last one may be shorter. A message that
//! finds no room is dropped, and QUIC sends again what was in it.

use quinn::udp::{EcnCodepoint, RecvMeta};
use socket2::{SockRef, Socket};
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::net::UnixDatagram;
use std::task::{Context, Poll, ready};
use tokio::io::Interest;

const VERSION: u8 = 1;
const HEADER: usize = 44;
/// For what comes while the predecessor is busy; the kernel gives `net.core.wmem_max` at most, and counts
/// bookkeeping, so it is about a quarter of it in packets.
const BUFFER: usize = 4 << 20;

/// Both ends: the predecessor's and the successor's.
pub fn pair() -> io::Result<(UnixDatagram, UnixDatagram)> {
    let (ours, theirs) = UnixDatagram::pair()?;
    for end in [&ours, &theirs] {
        end.set_nonblocking(true)?;
        let _as_large_as_may_be = SockRef::from(end).set_send_buffer_size(BUFFER);
    }
    Ok((ours, theirs))
}

/// The successor's side. `WouldBlock`: there is no room.
pub fn send(to: &UnixDatagram, meta: &RecvMeta, packets: &[u8]) -> io::Result<()> {
    let header = encode(meta);
    SockRef::from(to).send_vectored(&[IoSlice::new(&header), IoSlice::new(packets)]).map(|_| ())
}

/// The predecessor's side.
#[derive(Debug)]
pub struct Feed(tokio::net::UnixDatagram);

impl Feed {
    /// In the context of a runtime.
    pub fn new(socket: UnixDatagram) -> io::Result<Feed> {
        tokio::net::UnixDatagram::from_std(socket).map(Feed)
    }

    /// As `AsyncUdpSocket::poll_recv`, a message for each buffer; but it may be ready with none.
    pub fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_recv_ready(cx))?;
            let received = self.0.try_io(Interest::READABLE, || {
                let socket = SockRef::from(&self.0);
                receive(&socket, bufs, meta)
            });
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return Poll::Ready(received),
            }
        }
    }
}

/// Nothing but broken messages: 0. `WouldBlock` is said only where the kernel does, or we would not be woken
/// for what is still there.
fn receive(mut socket: &Socket, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> io::Result<usize> {
    let mut count = 0;
    for at in 0..bufs.len().min(meta.len()) {
        let mut header = [0; HEADER];
        let mut message = [IoSliceMut::new(&mut header), IoSliceMut::new(&mut bufs[count])];
        match socket.read_vectored(&mut message) {
            Ok(length) => {
                let about = length.checked_sub(HEADER).and_then(|length| decode(&header, length));
                if let Some(about) = about {
                    meta[count] = about;
                    count += 1;
                }
            }
            Err(error) if at == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(count)
}

fn encode(meta: &RecvMeta) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = VERSION;
    header[1] = meta.ecn.map_or(0, |ecn| ecn as u8);
    // A packet fits into 64 KiB; a stride beyond that means that there is one.
    header[2..4].copy_from_slice(&u16::try_from(meta.stride).unwrap_or(u16::MAX).to_be_bytes());
    header[4] = put(meta.addr.ip(), &mut header[5..21]);
    header[21..23].copy_from_slice(&meta.addr.port().to_be_bytes());
    if let SocketAddr::V6(addr) = meta.addr {
        header[23..27].copy_from_slice(&addr.scope_id().to_be_bytes());
    }
    if let Some(local) = meta.dst_ip {
        header[27] = put(local, &mut header[28..44]);
    }
    header
}

fn decode(header: &[u8; HEADER], length: usize) -> Option<RecvMeta> {
    if header[0] != VERSION {
        return None;
    }
    let port = u16::from_be_bytes([header[21], header[22]]);
    let addr = match take(header[4], &header[5..21])? {
        IpAddr::V4(ip) => SocketAddr::from((ip, port)),
        IpAddr::V6(ip) => {
            let scope = u32::from_be_bytes([header[23], header[24], header[25], header[26]]);
            SocketAddrV6::new(ip, port, 0, scope).into()
        }
    };
    let stride = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let sound = stride > 0 && length > 0;
    sound.then_some(RecvMeta {
        addr,
        len: length,
        stride,
        ecn: EcnCodepoint::from_bits(header[1]),
        dst_ip: take(header[27], &header[28..44]),
    })
}

/// The family's mark.
fn put(ip: IpAddr, into: &mut [u8]) -> u8 {
    match ip {
        IpAddr::V4(ip) => {
            into[..4].copy_from_slice(&ip.octets());
            4
        }
        IpAddr::V6(ip) => {
            into[..16].copy_from_slice(&ip.octets());
            6
        }
    }
}

fn take(family: u8, from: &[u8]) -> Option<IpAddr> {
    match family {
        4 => <[u8; 4]>::try_from(from.get(..4)?).ok().map(|ip| Ipv4Addr::from(ip).into()),
        6 => <[u8; 16]>::try_from(from.get(..16)?).ok().map(|ip| Ipv6Addr::from(ip).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    async fn through(
        feed: &Feed,
        from: &UnixDatagram,
        meta: &RecvMeta,
        packets: &[u8],
    ) -> (RecvMeta, Vec<u8>) {
        send(from, meta, packets).unwrap();
        let (mut buf, mut metas) = (vec![0; 70_000], [RecvMeta::default()]);
        let mut receive =
            |cx: &mut Context<'_>| feed.poll_recv(cx, &mut [IoSliceMut::new(&mut buf)], &mut metas);
        while poll_fn(&mut receive).await.unwrap() == 0 {}
        (metas[0], buf[..metas[0].len].to_vec())
    }

    #[tokio::test]
    async fn what_the_kernel_said_goes_along() {
        let (ours, theirs) = pair().unwrap();
        let feed = Feed::new(ours).unwrap();
        for (addr, dst_ip, ecn, packets, stride) in [
            ("192.0.2.7:4433", Some("198.51.100.1"), Some(EcnCodepoint::Ce), vec![1; 1200], 1200),
            ("[2001:db8::1]:1", Some("::1"), Some(EcnCodepoint::Ect0), vec![2; 50_000], 1252),
            ("[::ffff:192.0.2.7]:65535", None, None, vec![3; 21], 1472),
        ] {
            let meta = RecvMeta {
                addr: addr.parse().unwrap(),
                len: packets.len(),
                stride,
                ecn,
                dst_ip: dst_ip.map(|ip| ip.parse().unwrap()),
            };
            let (got, data) = through(&feed, &theirs, &meta, &packets).await;
            assert_eq!(format!("{got:?}"), format!("{meta:?}"));
            assert_eq!(data, packets);
        }
    }

    #[tokio::test]
    async fn what_is_broken_is_left_out() {
        let (ours, theirs) = pair().unwrap();
        let feed = Feed::new(ours).unwrap();
        let meta =
            RecvMeta { addr: "192.0.2.7:4433".parse().unwrap(), len: 3, stride: 3, ..Default::default() };
        let sound = encode(&meta);
        for (at, value) in [(0, 9), (4, 5)] {
            let mut header = sound;
            header[at] = value;
            theirs.send(&[&header[..], b"abc"].concat()).unwrap();
        }
        theirs.send(&sound).unwrap();
        theirs.send(b"short").unwrap();
        theirs.send(b"").unwrap();
        assert_eq!(through(&feed, &theirs, &meta, b"abc").await.1, b"abc");
    }

    #[test]
    fn a_full_socket_does_not_block_and_an_ended_predecessor_is_noticed() {
        let (ours, theirs) = pair().unwrap();
        let meta = RecvMeta {
            addr: "192.0.2.7:4433".parse().unwrap(),
            len: 1200,
            stride: 1200,
            ..Default::default()
        };
        let mut sent = 0;
        let full = loop {
            match send(&theirs, &meta, &[0; 1200]) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert!((32..100_000).contains(&sent), "{sent}");
        drop(ours);
        let gone = send(&theirs, &meta, &[0; 1200]).unwrap_err().kind();
        assert!(matches!(gone, io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset), "{gone}");
    }
}
