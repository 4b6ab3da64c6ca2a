//! The signatures of tokens, over `ring`, which the process links anyway (TLS, the broker's
//! hello): jsonwebtoken's own `rust_crypto` would bring the `rsa` crate with RUSTSEC-2023-0071.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result, new_error};
use jsonwebtoken::signature::{Error, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::{hmac, signature as ring_signature};

/// Installs it for this process; later calls change nothing.
pub fn install() {
    static PROVIDER: CryptoProvider = CryptoProvider {
        signer_factory: no_signer,
        verifier_factory: verifier,
        key_utils: KeyUtils::new_unimplemented(),
    };
    // Somebody was first: in this process that can only be this very provider.
    let _ = PROVIDER.install_default();
}

/// Weir verifies tokens; it makes none.
fn no_signer(_: &Algorithm, _: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    Err(new_error(ErrorKind::UnsupportedAlgorithm))
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    let (family, check) = match algorithm {
        Algorithm::HS256 => (AlgorithmFamily::Hmac, Check::Hmac(hmac::HMAC_SHA256)),
        Algorithm::HS384 => (AlgorithmFamily::Hmac, Check::Hmac(hmac::HMAC_SHA384)),
        Algorithm::HS512 => (AlgorithmFamily::Hmac, Check::Hmac(hmac::HMAC_SHA512)),
        Algorithm::RS256 => rsa(&ring_signature::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::RS384 => rsa(&ring_signature::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::RS512 => rsa(&ring_signature::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::ES256 => (AlgorithmFamily::Ec, Check::Public(&ring_signature::ECDSA_P256_SHA256_FIXED)),
        Algorithm::ES384 => (AlgorithmFamily::Ec, Check::Public(&ring_signature::ECDSA_P384_SHA384_FIXED)),
        _ => return Err(new_error(ErrorKind::UnsupportedAlgorithm)),
    };
    let DecodingKeyKind::SecretOrDer(bytes) = key.kind() else {
        return Err(new_error(ErrorKind::InvalidKeyFormat));
    };
    // A public key never verifies an HMAC, nor the reverse.
    if key.family() != family {
        return Err(new_error(ErrorKind::InvalidKeyFormat));
    }
    Ok(Box::new(RingVerifier { algorithm: *algorithm, check, key: bytes.clone() }))
}

fn rsa(parameters: &'static ring_signature::RsaParameters) -> (AlgorithmFamily, Check) {
    (AlgorithmFamily::Rsa, Check::Public(parameters))
}

enum Check {
    Hmac(hmac::Algorithm),
    Public(&'static dyn ring_signature::VerificationAlgorithm),
}

struct RingVerifier {
    algorithm: Algorithm,
    check: Check,
    key: Vec<u8>,
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
        match self.check {
            Check::Hmac(algorithm) => hmac::verify(&hmac::Key::new(algorithm, &self.key), message, signature),
            Check::Public(algorithm) => {
                ring_signature::UnparsedPublicKey::new(algorithm, &self.key).verify(message, signature)
            }
        }
        .map_err(|_| Error::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
