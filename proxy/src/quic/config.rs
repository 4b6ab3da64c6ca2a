//! From `[proxy.quic]` to quinn's own configuration.

use super::id::Generator;
use super::identity::Identity;
use super::tokens::Used;
use quinn::{
    EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig, TransportConfig, ValidationTokenConfig,
    VarInt,
};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// The one version that is not a draft, and for which our TLS has keys.
const VERSIONS: [u32; 1] = [1];
/// A Retry's token comes back at once, or the client has given up.
const RETRY_LIFETIME: Duration = Duration::from_secs(15);
/// First packets that nobody has looked at yet; an accept loop does that as they come. Each takes up to 2 KiB.
const MAX_INCOMING: usize = 4096;
/// What comes in between for each of them, and for all: a second packet of a large ClientHello, early data.
const INCOMING_BUFFER: u64 = 16 << 10;
const INCOMING_BUFFERS: u64 = 4 << 20;

/// What the endpoint has from its start to its end.
pub fn endpoint(identity: &Identity) -> EndpointConfig {
    let mut config = EndpointConfig::new(identity.reset_key.clone());
    let ids = identity.ids.clone();
    config.cid_generator(move || Box::new(Generator(ids.clone())));
    config.supported_versions(VERSIONS.to_vec());
    config
}

/// What new connections have.
pub fn server(
    conf: &weir_conf::proxy::Quic,
    crypto: Arc<dyn quinn::crypto::ServerConfig>,
    identity: &Identity,
    used: &Arc<Used>,
) -> io::Result<ServerConfig> {
    let mut config = ServerConfig::new(crypto, identity.token_key.clone());
    let mut tokens = ValidationTokenConfig::default();
    // One for the next time; a client that opens many connections at once is not the usual one.
    tokens.lifetime(conf.token_lifetime).log(used.clone()).sent(1);
    config
        .transport_config(Arc::new(transport(conf)?))
        .validation_token_config(tokens)
        .retry_token_lifetime(RETRY_LIFETIME)
        .migration(conf.migration)
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFERS);
    Ok(config)
}

fn transport(conf: &weir_conf::proxy::Quic) -> io::Result<TransportConfig> {
    let window = |bytes: usize| VarInt::try_from(bytes as u64).unwrap_or(VarInt::MAX);
    let idle = IdleTimeout::try_from(conf.idle_timeout).map_err(io::Error::other)?;
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(conf.keep_alive).filter(|interval| !interval.is_zero()))
        .max_concurrent_bidi_streams(VarInt::from_u32(conf.max_streams))
        .max_concurrent_uni_streams(VarInt::from_u32(conf.max_uni_streams))
        .stream_receive_window(window(conf.stream_window))
        .receive_window(window(conf.connection_window))
        .send_window(conf.send_window as u64)
        .datagram_receive_buffer_size(Some(conf.max_datagram_buffer).filter(|bytes| *bytes > 0))
        .datagram_send_buffer_size(conf.max_datagram_buffer)
        .initial_mtu(u16::try_from(conf.initial_mtu).unwrap_or(1200))
        .mtu_discovery_config(conf.mtu_discovery.then(MtuDiscoveryConfig::default))
        // It tells everybody on the way what the round trip is, and nobody asked for that.
        .allow_spin(false);
    Ok(transport)
}
