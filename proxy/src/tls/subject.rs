//! Who a client's certificate says that it is, for servers to read in a header. Pure.
//!
//! The certificate was verified; what is in it is still text that somebody else chose. So it is written in
//! printable ASCII, with all that has a meaning in it escaped (RFC 4514 §2.4), and never cut short: half a
//! name may be somebody else's.

use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::CertificateDer;
use std::fmt::Write;
use std::net::IpAddr;
use x509_parser::asn1_rs::{Oid, ToDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// `CN=alice,O=Example`
pub static SUBJECT: HeaderName = HeaderName::from_static("x-client-cert-subject");
/// `DNS:a.example,URI:spiffe://…`
pub static NAMES: HeaderName = HeaderName::from_static("x-client-cert-san");

/// Of each of the two texts.
const LONGEST: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCert {
    /// As RFC 4514 writes it; may be empty.
    pub subject: Box<str>,
    /// The alternative names; may be empty.
    pub names: Box<str>,
}

impl ClientCert {
    /// Of the chain that a client has shown, its own first. `None`: it cannot be told in full.
    pub fn of(chain: &[CertificateDer<'_>]) -> Option<ClientCert> {
        let (_, cert) = X509Certificate::from_der(chain.first()?).ok()?;
        let alternatives = cert.subject_alternative_name().ok()?;
        let names = alternatives.map(|names| alternative(&names.value.general_names));
        let names = names.unwrap_or_else(|| Some(String::new()))?;
        let subject = distinguished(cert.subject());
        let fits = subject.len() <= LONGEST && names.len() <= LONGEST;
        fits.then(|| ClientCert { subject: subject.into(), names: names.into() })
    }
}

/// What a server gets to read of the client's certificate; whatever the client wrote there itself is gone.
pub fn tell(headers: &mut HeaderMap, cert: Option<&ClientCert>) {
    headers.remove(&SUBJECT);
    headers.remove(&NAMES);
    let Some(cert) = cert else { return };
    for (name, text) in [(&SUBJECT, &cert.subject), (&NAMES, &cert.names)] {
        if let (false, Ok(value)) = (text.is_empty(), HeaderValue::from_str(text)) {
            headers.insert(name, value);
        }
    }
}

/// The last part of the name comes first.
fn distinguished(name: &X509Name<'_>) -> String {
    let mut parts: Vec<_> = name.iter_rdn().collect();
    parts.reverse();
    let part = |attributes: Vec<String>| attributes.join("+");
    let texts: Vec<String> = parts.iter().map(|rdn| part(rdn.iter().map(attribute).collect())).collect();
    texts.join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type();
    match (short(oid), attribute.as_str()) {
        (Some(short), Ok(value)) => {
            let mut out = format!("{short}=");
            escape(value, &mut out);
            out
        }
        // §2.4: what has no text, or no short name, as the hexadecimal of its BER.
        (short, _) => {
            let name = short.map_or_else(|| oid.to_id_string(), str::to_owned);
            let encoded = attribute.attr_value().to_der_vec().unwrap_or_default();
            format!("{name}=#{}", hex(&encoded))
        }
    }
}

/// §3, the names that every implementation knows.
fn short(oid: &Oid<'_>) -> Option<&'static str> {
    Some(match oid.to_id_string().as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.6" => "C",
        "2.5.4.9" => "STREET",
        "0.9.2342.19200300.100.1.25" => "DC",
        "0.9.2342.19200300.100.1.1" => "UID",
        _ => return None,
    })
}

/// `None`: one of them has no text, or none that means it alone.
fn alternative(names: &[GeneralName<'_>]) -> Option<String> {
    let mut out = String::new();
    for name in names {
        let (kind, text) = match name {
            GeneralName::DNSName(text) => ("DNS", (*text).to_owned()),
            GeneralName::RFC822Name(text) => ("email", (*text).to_owned()),
            GeneralName::URI(text) => ("URI", (*text).to_owned()),
            GeneralName::IPAddress(bytes) => ("IP", address(bytes)?.to_string()),
            GeneralName::DirectoryName(name) => ("dirName", distinguished(name)),
            GeneralName::RegisteredID(oid) => ("RID", oid.to_id_string()),
            GeneralName::OtherName(oid, value) => ("otherName", format!("{oid}=#{}", hex(value))),
            GeneralName::X400Address(_) | GeneralName::EDIPartyName(_) | GeneralName::Invalid(..) => {
                return None;
            }
        };
        let comma = if out.is_empty() { "" } else { "," };
        let _infallible = write!(out, "{comma}{kind}:");
        escape(&text, &mut out);
    }
    Some(out)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

pub fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn escape(text: &str, out: &mut String) {
    let last = text.len().saturating_sub(1);
    for (i, byte) in text.bytes().enumerate() {
        let edge = (byte == b' ' && (i == 0 || i == last)) || (byte == b'#' && i == 0);
        if edge || b"\"+,;<>\\".contains(&byte) {
            out.push('\\');
            out.push(char::from(byte));
        } else if byte == b' ' || byte.is_ascii_graphic() {
            out.push(char::from(byte));
        } else {
            let _infallible = write!(out, "\\{byte:02X}");
        }
    }
}
