//! Whether a JSON Web Token was signed with one of our keys. What it claims is the caller's to judge.
//!
//! Which algorithms count follows from the key, never from the token: an HMAC secret allows HS*, an
//! RSA key RS* and PS*, an EC key ES*, an Ed25519 key EdDSA. `jku`, `jwk` and `x5u` of the header are
//! not looked at. The signatures are over `ring`, which the process links anyway (TLS, the broker's
//! hello): jsonwebtoken's own `rust_crypto` would bring the `rsa` crate with RUSTSEC-2023-0071.

pub use jsonwebtoken::{Algorithm, DecodingKey};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result as JwtResult, new_error};
use jsonwebtoken::signature::{Error, Verifier};
use jsonwebtoken::{AlgorithmFamily, DecodingKeyKind, EncodingKey, Header, Validation};
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey};
use ring::{digest, hmac};
use serde::de::DeserializeOwned;

/// Longer ones are refused unread.
pub const MAX_TOKEN: usize = 8 << 10;

pub const HMAC: &[Algorithm] = &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
pub const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];
pub const EC: &[Algorithm] = &[Algorithm::ES256, Algorithm::ES384];
pub const ED: &[Algorithm] = &[Algorithm::EdDSA];

#[derive(Clone, Debug)]
pub struct Key {
    key: DecodingKey,
    algorithms: Vec<Algorithm>,
}

impl Key {
    pub fn new(key: DecodingKey, algorithms: &[Algorithm]) -> Key {
        Key { key, algorithms: algorithms.to_vec() }
    }

    pub fn hmac(secret: &[u8]) -> Key {
        Key::new(DecodingKey::from_secret(secret), HMAC)
    }

    /// From PEM, as are the next two; the error says why not.
    pub fn rsa(pem: &[u8]) -> Result<Key, String> {
        DecodingKey::from_rsa_pem(pem).map(|key| Key::new(key, RSA)).map_err(no_pem)
    }

    pub fn ec(pem: &[u8]) -> Result<Key, String> {
        DecodingKey::from_ec_pem(pem).map(|key| Key::new(key, EC)).map_err(no_pem)
    }

    pub fn ed25519(pem: &[u8]) -> Result<Key, String> {
        DecodingKey::from_ed_pem(pem).map(|key| Key::new(key, ED)).map_err(no_pem)
    }

    /// Only these of its algorithms.
    pub fn restricted(mut self, to: &[Algorithm]) -> Key {
        self.algorithms.retain(|algorithm| to.contains(algorithm));
        self
    }

    /// Whether it is of any use.
    pub fn takes_any(&self) -> bool {
        !self.algorithms.is_empty()
    }

    pub fn takes(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }
}

fn no_pem(error: jsonwebtoken::errors::Error) -> String {
    format!("not a public key in PEM form: {error}")
}

/// The token's header, nothing of which is proven yet; the error is a reason for the log.
pub fn header(token: &str) -> Result<Header, String> {
    if token.len() > MAX_TOKEN {
        return Err("longer than 8 KiB".to_owned());
    }
    let header = jsonwebtoken::decode_header(token).map_err(|error| error.to_string())?;
    // RFC 7515, section 4.1.11: whoever does not understand all that is listed there must refuse the token, and no
    // extension is known here. A list that is empty or none is no better.
    if asks_for_an_extension(token) {
        return Err("asks for an extension (crit)".to_owned());
    }
    Ok(header)
}

/// By the header's own text: what it is read into takes `null` for nothing.
fn asks_for_an_extension(token: &str) -> bool {
    let first = token.split('.').next().unwrap_or_default();
    let text = URL_SAFE_NO_PAD.decode(first).unwrap_or_default();
    let fields: Option<serde_json::Map<String, serde_json::Value>> = serde_json::from_slice(&text).ok();
    fields.is_none_or(|fields| fields.contains_key("crit"))
}

/// The claims, if one of the keys signed the token. No claim is judged, the times neither.
pub fn claims<'k, T: DeserializeOwned>(
    token: &str,
    header: &Header,
    keys: impl IntoIterator<Item = &'k Key>,
) -> Result<T, String> {
    install();
    let mut reason = format!("no key configured for {:?}", header.alg);
    for key in keys.into_iter().filter(|key| key.takes(header.alg)) {
        let mut validation = Validation::new(header.alg);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        match jsonwebtoken::decode(token, &key.key, &validation) {
            Ok(data) => return Ok(data.claims),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(reason)
}

/// Whether a secret that was given is the one, in a time that says nothing about where they differ:
/// digests are compared. Nothing is the same as an unset secret.
pub fn same_secret(given: &str, secret: &str) -> bool {
    let hash = |text: &str| digest::digest(&digest::SHA256, text.as_bytes());
    !secret.is_empty() && hash(given).as_ref() == hash(secret).as_ref()
}

/// For this process; later calls change nothing.
fn install() {
    static PROVIDER: CryptoProvider = CryptoProvider {
        signer_factory: no_signer,
        verifier_factory: verifier,
        key_utils: KeyUtils::new_unimplemented(),
    };
    // Somebody was first: in this process that can only be this very provider.
    let _ = PROVIDER.install_default();
}

/// Weir verifies tokens; it makes none.
fn no_signer(_: &Algorithm, _: &EncodingKey) -> JwtResult<Box<dyn JwtSigner>> {
    Err(new_error(ErrorKind::UnsupportedAlgorithm))
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> JwtResult<Box<dyn JwtVerifier>> {
    let (family, check) = match algorithm {
        Algorithm::HS256 => (AlgorithmFamily::Hmac, Check::Hmac(hmac::HMAC_SHA256)),
        Algorithm::HS384 => (AlgorithmFamily::Hmac, Check::Hmac(hmac::HMAC_SHA384)),
        Algorithm::HS512 => (AlgorithmFamily::Hmac, Check::Hmac(hmac::HMAC_SHA512)),
        Algorithm::RS256 => rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::RS384 => rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::RS512 => rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::PS256 => rsa(&signature::RSA_PSS_2048_8192_SHA256),
        Algorithm::PS384 => rsa(&signature::RSA_PSS_2048_8192_SHA384),
        Algorithm::PS512 => rsa(&signature::RSA_PSS_2048_8192_SHA512),
        Algorithm::ES256 => (AlgorithmFamily::Ec, Check::Public(&signature::ECDSA_P256_SHA256_FIXED)),
        Algorithm::ES384 => (AlgorithmFamily::Ec, Check::Public(&signature::ECDSA_P384_SHA384_FIXED)),
        Algorithm::EdDSA => (AlgorithmFamily::Ed, Check::Public(&signature::ED25519)),
        _ => return Err(new_error(ErrorKind::UnsupportedAlgorithm)),
    };
    // A public key never verifies an HMAC, nor the reverse.
    if key.family() != family {
        return Err(new_error(ErrorKind::InvalidKeyFormat));
    }
    Ok(Box::new(RingVerifier { algorithm: *algorithm, check, key: key.kind().clone() }))
}

fn rsa(parameters: &'static RsaParameters) -> (AlgorithmFamily, Check) {
    (AlgorithmFamily::Rsa, Check::Rsa(parameters))
}

enum Check {
    Hmac(hmac::Algorithm),
    Rsa(&'static RsaParameters),
    Public(&'static dyn signature::VerificationAlgorithm),
}

struct RingVerifier {
    algorithm: Algorithm,
    check: Check,
    key: DecodingKeyKind,
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signed: &Vec<u8>) -> Result<(), Error> {
        let sound = match (&self.check, &self.key) {
            (Check::Hmac(algorithm), DecodingKeyKind::SecretOrDer(secret)) => {
                hmac::verify(&hmac::Key::new(*algorithm, secret), message, signed)
            }
            (Check::Rsa(parameters), DecodingKeyKind::SecretOrDer(der)) => {
                UnparsedPublicKey::new(*parameters, der).verify(message, signed)
            }
            (Check::Rsa(parameters), DecodingKeyKind::RsaModulusExponent { n, e }) => {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signed)
            }
            (Check::Public(algorithm), DecodingKeyKind::SecretOrDer(point)) => {
                UnparsedPublicKey::new(*algorithm, point).verify(message, signed)
            }
            _ => Err(ring::error::Unspecified),
        };
        sound.map_err(|_| Error::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
