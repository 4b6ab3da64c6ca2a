//! The same certificates and rules within QUIC, as quinn runs it.

use super::common::{Authority, Site};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Endpoint, ServerConfig};
use rcgen::{DnType, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::CertificateDer;
use std::net::SocketAddr;
use std::sync::Arc;
use weir_conf::proxy::tls::ClientCerts;

const ANY: &str = "127.0.0.1:0";

/// Takes connections one after the other, each as `tls` has it then; says whom it has let in.
struct Server {
    endpoint: Endpoint,
    addr: SocketAddr,
}

impl Server {
    fn new(site: &Site) -> Server {
        let crypto = site.tls.quic(ClientCerts::Off, false);
        let endpoint = Endpoint::server(ServerConfig::with_crypto(crypto), ANY.parse().unwrap()).unwrap();
        let addr = endpoint.local_addr().unwrap();
        Server { endpoint, addr }
    }

    /// The certificates of the client that was let in.
    async fn accept(
        &self,
        site: &Site,
        asks: ClientCerts,
        early: bool,
    ) -> Result<Vec<CertificateDer<'static>>, String> {
        let incoming = self.endpoint.accept().await.unwrap();
        let config = Arc::new(ServerConfig::with_crypto(site.tls.quic(asks, early)));
        let told = |error: quinn::ConnectionError| error.to_string();
        let connection = incoming.accept_with(config).map_err(told)?.await.map_err(told)?;
        let identity = connection.peer_identity();
        // Tells the client that it is in.
        let mut stream = connection.open_uni().await.map_err(told)?;
        stream.write_all(b"x").await.map_err(|error| error.to_string())?;
        // Until the client has left: its session comes after the handshake.
        connection.closed().await;
        Ok(identity.and_then(|any| any.downcast().ok()).map_or_else(Vec::new, |chain| *chain))
    }
}

fn client(config: rustls::ClientConfig) -> Endpoint {
    let mut config = config;
    config.alpn_protocols = vec![b"h3".to_vec()];
    config.enable_early_data = true;
    let crypto = QuicClientConfig::try_from(config).unwrap();
    let mut endpoint = Endpoint::client(ANY.parse().unwrap()).unwrap();
    endpoint.set_default_client_config(ClientConfig::new(Arc::new(crypto)));
    endpoint
}

/// Whether early data was taken; `None`: there was nothing to try it with.
async fn connect(client: &Endpoint, to: SocketAddr) -> Result<Option<bool>, String> {
    let connecting = client.connect(to, "a.example").map_err(|error| error.to_string())?;
    let (connection, early) = match connecting.into_0rtt() {
        Ok((connection, accepted)) => (connection, Some(accepted.await)),
        Err(connecting) => (connecting.await.map_err(|error| error.to_string())?, None),
    };
    // A client is done with the handshake before the server has judged its certificate.
    let _told = connection.accept_uni().await.map_err(|error| error.to_string())?;
    connection.close(0u32.into(), b"");
    Ok(early)
}

#[tokio::test]
async fn certificates_sessions_and_clients() {
    let authority = Authority::new();
    let mut alice = None;
    let site = Site::new(|conf, folder| {
        conf.certificates = vec![authority.sign(&["a.example"]).put(folder, "site")];
        std::fs::write(folder.join("ca.pem"), &authority.pem).unwrap();
        conf.client_ca = folder.join("ca.pem").to_str().unwrap().to_owned();
        alice = Some(authority.sign_as(&[], &PKCS_ECDSA_P256_SHA256, |params| {
            params.distinguished_name.push(DnType::CommonName, "alice");
        }));
    });
    let alice = alice.unwrap();
    let server = Server::new(&site);
    let both = async |client: &Endpoint, asks, early| {
        tokio::join!(connect(client, server.addr), server.accept(&site, asks, early))
    };
    use ClientCerts::{Off, Required};

    // Early data is taken from those who have been here, as long as it is allowed, and over a reload.
    let anyone = client(authority.client_of(&[&rustls::version::TLS13], None));
    for (early, expected) in
        [(true, None), (true, Some(true)), (false, Some(false)), (true, None), (true, Some(true))]
    {
        site.reload();
        let (connected, accepted) = both(&anyone, Off, early).await;
        assert_eq!(connected, Ok(expected), "{accepted:?}");
    }
    // Who is asked for a certificate shows it, each time anew.
    let (connected, accepted) = both(&anyone, Required, true).await;
    assert!(connected.is_err() && accepted.is_err(), "{connected:?} {accepted:?}");
    let known = client(authority.client_of(&[&rustls::version::TLS13], Some(&alice)));
    for _ in 0..2 {
        let (connected, accepted) = both(&known, Required, true).await;
        assert_eq!((connected, accepted), (Ok(None), Ok(alice.chain.clone())));
    }
}
