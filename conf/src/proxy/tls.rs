//! `[proxy.tls]`: listeners with TLS, and the certificates that they show. Whether files hold what they
//! should is for the proxy to find out, when it reads them.

use crate::inline::Inline;
use crate::section::{Reader, Value, keys};
use crate::tree::{Item, Raw};
use crate::units::Rate;
use crate::value::words;
use crate::write::quote;
use std::net::SocketAddr;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    pub listen: Vec<Listen>,
    /// The first one is for clients that ask for no name, or for one that is in none.
    pub certificates: Vec<Certificate>,
    pub min_version: Version,
    /// A PEM file of the authorities whose clients are believed; empty: none.
    pub client_ca: String,
    /// Whether clients may resume their sessions.
    pub session_tickets: bool,
    /// From the first byte to the end of the handshake.
    pub handshake_timeout: Duration,
    /// Handshakes per address, over TCP and QUIC.
    pub handshake_rate: Option<Rate>,
    pub handshake_burst: u32,
    /// `max-age` of Strict-Transport-Security. Zero: not sent.
    pub hsts: Duration,
    /// Whether listeners without TLS send their clients to those with.
    pub redirect_http: bool,
}

/// One port number, over TCP and (for HTTP/3) UDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    pub addr: SocketAddr,
    pub http2: bool,
    pub http3: bool,
    pub client_certs: ClientCerts,
}

/// A PEM file with a certificate and those between it and its authority, and one with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub cert: String,
    pub key: String,
}

/// Whether clients are asked for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum ClientCerts {
    #[default]
    Off,
    /// Asked for; one that is shown must be good.
    Optional,
    Required,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Tls12,
    Tls13,
}

keys!(Tls {
    listen,
    certificates,
    min_version,
    client_ca,
    session_tickets,
    handshake_timeout in Duration::from_millis(1)..,
    handshake_rate,
    handshake_burst in 1..,
    hsts,
    redirect_http,
});

words!(Version: "a version of TLS" { Tls12 = "1.2", Tls13 = "1.3" });
words!(ClientCerts: "a way to treat certificates of clients" { Off = "off", Optional = "optional", Required = "required" });

impl Listen {
    /// As it is with nothing but an address.
    pub fn at(addr: SocketAddr) -> Listen {
        Listen { addr, http2: true, http3: true, client_certs: ClientCerts::Off }
    }
}

impl Tls {
    /// Whether a listener wants this of its clients.
    pub fn asks_clients(&self) -> bool {
        self.listen.iter().any(|listen| listen.client_certs != ClientCerts::Off)
    }
}

const LISTEN: &str = "\"IP:PORT\", such as \"0.0.0.0:8443\", or { addr = \"0.0.0.0:8443\", http2 = true, http3 = true, client_certs = \"off\" }";

impl Value for Listen {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Listen> {
        if !matches!(item.value, Raw::Table(_)) {
            return match item.as_text().and_then(|text| text.parse().ok()) {
                Some(addr) => Some(Listen::at(addr)),
                None => reader.refuse(item, path, "an address to listen on", LISTEN),
            };
        }
        let known = ("an address to listen on", LISTEN, &["addr", "http2", "http3", "client_certs"][..]);
        Inline::read(item, path, reader, known, |table| {
            let addr = table.need("addr", LISTEN);
            let http2 = table.find("http2").unwrap_or(true);
            let http3 = table.find("http3").unwrap_or(true);
            let client_certs = table.find("client_certs").unwrap_or_default();
            Some(Listen { addr: addr?, http2, http3, client_certs })
        })
    }

    fn write(&self) -> String {
        let Listen { addr, http2, http3, client_certs } = self;
        if *self == Listen::at(*addr) {
            return addr.write();
        }
        let (addr, client_certs) = (addr.write(), client_certs.write());
        format!("{{ addr = {addr}, http2 = {http2}, http3 = {http3}, client_certs = {client_certs} }}")
    }
}

const CERTIFICATE: &str = "{ cert = \"/etc/weir/fullchain.pem\", key = \"/etc/weir/key.pem\" }";

impl Value for Certificate {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Certificate> {
        let known = ("a certificate", CERTIFICATE, &["cert", "key"][..]);
        Inline::read(item, path, reader, known, |table| {
            let (cert, key) =
                (table.need::<String>("cert", CERTIFICATE), table.need::<String>("key", CERTIFICATE));
            let (cert, key) = (cert?, key?);
            for (name, file) in [("cert", &cert), ("key", &key)] {
                if file.is_empty() {
                    return table.refuse(name, "a file", "the path of a PEM file");
                }
            }
            Some(Certificate { cert, key })
        })
    }

    fn write(&self) -> String {
        format!("{{ cert = {}, key = {} }}", quote(&self.cert), quote(&self.key))
    }
}
