//! `[proxy.quic]`: the UDP side of TLS listeners, below HTTP/3.

use crate::section::keys;
use crate::units::{Bytes, Secret};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct Quic {
    /// A connection on which nothing came for so long is over.
    pub idle_timeout: Duration,
    /// A connection that was silent for so long is pinged. Zero: never.
    pub keep_alive: Duration,
    /// From a client's first packet to the end of the handshake.
    pub handshake_timeout: Duration,
    /// Handshakes under way above which a client must show that it is at its address. 0: always.
    pub retry_above: usize,
    /// Handshakes under way above which nobody is let in. 0: no limit.
    pub max_handshakes: usize,
    /// Requests and WebSockets that one connection has open at once.
    pub max_streams: u32,
    /// Streams in one direction that a client has open at once.
    pub max_uni_streams: u32,
    /// Unread bytes of one stream.
    pub stream_window: usize,
    /// Unread bytes of all streams of a connection.
    pub connection_window: usize,
    /// Bytes of a connection that were sent and not yet acknowledged, or wait to be sent.
    pub send_window: usize,
    /// Datagrams of a connection that wait, in each direction. 0: none are taken.
    pub max_datagram_buffer: usize,
    /// UDP payload that every path is taken to carry.
    pub initial_mtu: usize,
    /// Whether larger packets are tried.
    pub mtu_discovery: bool,
    /// Whether a client may come from another address.
    pub migration: bool,
    /// Whether requests are taken before the handshake is over.
    pub early_data: bool,
    /// Of the tokens that let a returning client in without Retry.
    pub token_lifetime: Duration,
    /// What tokens and resets are signed with; empty: a random one.
    pub token_key: Secret,
    /// In each connection id, for load balancers: hex. Empty: none.
    pub server_id: String,
    /// Which of the load balancer's configurations that is.
    pub config_id: u8,
}

/// The most bytes that `server_id` can have: an id has 20, and the rest is needed.
pub const MAX_SERVER_ID: usize = 9;

impl Quic {
    /// `None`: it is not hex, or too long. Empty: there is none.
    pub fn server_id_bytes(&self) -> Option<Vec<u8>> {
        let text = self.server_id.as_bytes();
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        if !text.len().is_multiple_of(2) || text.len() / 2 > MAX_SERVER_ID {
            return None;
        }
        text.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
    }
}

const TICK: Duration = Duration::from_millis(1);
const KIB: usize = 1024;

keys!(Quic {
    // Two round trips of a bad path, and a bound that a varint of milliseconds and a timer can hold.
    idle_timeout in Duration::from_secs(1)..=Duration::from_secs(3600),
    keep_alive,
    handshake_timeout in TICK..,
    retry_above,
    max_handshakes,
    max_streams in 1..=65_536,
    // HTTP/3 needs three: control, QPACK encoder, QPACK decoder.
    max_uni_streams in 3..=65_536,
    stream_window as Bytes in Bytes(4 * KIB)..=Bytes(1 << 30),
    connection_window as Bytes in Bytes(16 * KIB)..=Bytes(1 << 30),
    send_window as Bytes in Bytes(16 * KIB)..=Bytes(1 << 30),
    max_datagram_buffer as Bytes in Bytes(0)..=Bytes(16 << 20),
    // By RFC 9000; what is more than the Ethernet carries is for networks of one's own.
    initial_mtu in 1200..=9000,
    mtu_discovery,
    migration,
    early_data,
    token_lifetime in Duration::from_secs(1)..,
    token_key,
    server_id,
    config_id in 0..=6,
});

#[cfg(test)]
mod tests {
    #[test]
    fn server_ids() {
        let parse = |text: &str| {
            let mut quic = crate::Config::default().proxy.quic;
            quic.server_id = text.into();
            quic.server_id_bytes()
        };
        assert_eq!(parse(""), Some(vec![]));
        assert_eq!(parse("0aFf"), Some(vec![0x0a, 0xff]));
        assert_eq!(parse("000000000000000001").map(|id| id.len()), Some(super::MAX_SERVER_ID));
        for bad in ["0", "0x", "zz", "+1", "é", "00000000000000000001"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
