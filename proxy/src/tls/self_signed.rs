//! A certificate for development: nobody has signed it, so browsers must be told to take it.

use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use ring::digest::{SHA256, digest};
use std::time::{Duration, SystemTime};

/// What WebTransport's `serverCertificateHashes` takes at most, besides the kind of key (P-256).
pub const MAX_PINNED_DAYS: u32 = 14;

/// Clocks of others may be behind ours.
const BEHIND: Duration = Duration::from_secs(3600);

pub struct SelfSigned {
    pub cert_pem: String,
    pub key_pem: String,
    /// Of the certificate as it goes over the wire.
    pub sha256: [u8; 32],
}

/// For these names and addresses; valid for exactly so long, from an hour ago on.
pub fn self_signed(names: &[String], days: u32) -> Result<SelfSigned, String> {
    let told = |error: rcgen::Error| error.to_string();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(told)?;
    let mut params = CertificateParams::new(names).map_err(told)?;
    let first = names.first().ok_or("a certificate needs a name")?;
    params.distinguished_name.push(DnType::CommonName, first.as_str());
    params.not_before = (SystemTime::now() - BEHIND).into();
    params.not_after = params.not_before + Duration::from_secs(u64::from(days) * 86_400);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let cert = params.self_signed(&key).map_err(told)?;
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(digest(&SHA256, cert.der()).as_ref());
    Ok(SelfSigned { cert_pem: cert.pem(), key_pem: key.serialize_pem(), sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::certs::Cert;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    #[test]
    fn what_browsers_take_for_a_hash() {
        let names = ["localhost", "*.a.example", "127.0.0.1", "::1"].map(str::to_owned);
        let made = self_signed(&names, MAX_PINNED_DAYS).unwrap();
        let der = CertificateDer::from_pem_slice(made.cert_pem.as_bytes()).unwrap();
        assert_eq!(digest(&SHA256, &der).as_ref(), made.sha256);
        let cert =
            Cert::new(vec![der], PrivateKeyDer::from_pem_slice(made.key_pem.as_bytes()).unwrap()).unwrap();
        assert_eq!(cert.names.dns, ["localhost", "*.a.example"]);
        assert_eq!(cert.names.ip.iter().map(ToString::to_string).collect::<Vec<_>>(), ["127.0.0.1", "::1"]);
        assert_eq!(cert.names.not_after - cert.names.not_before, 14 * 86_400);
        assert!(self_signed(&[], 1).is_err());
    }
}
