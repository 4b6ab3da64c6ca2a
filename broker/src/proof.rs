//! Proof that the other side of a link holds the shared secret: HMAC-SHA256 over both nonces and
//! all else that was said before, under a label that tells the sides apart. A proof that one side
//! gave is none for the other, and none for another link.

use ring::hmac;
use weir_wire::codec::{self, CodecError, Encode};
use weir_wire::peer::{Challenge, FromBroker, FromNode, Hello};

/// What was said before anything had to be proved.
pub struct Transcript {
    bytes: Vec<u8>,
}

impl Transcript {
    /// Between a node and a broker.
    pub fn new(hello: &Hello, challenge: &Challenge) -> Result<Transcript, CodecError> {
        Transcript::of(&FromNode::Hello(hello.clone()), &FromBroker::Challenge(challenge.clone()))
    }

    /// Of the first frame of each side.
    pub fn of(first: &impl Encode, second: &impl Encode) -> Result<Transcript, CodecError> {
        let mut bytes = Vec::with_capacity(1024);
        // Frames begin with their length, so no two transcripts share their bytes.
        codec::encode_into(&mut bytes, first)?;
        codec::encode_into(&mut bytes, second)?;
        Ok(Transcript { bytes })
    }

    /// Empty without a secret.
    pub fn prove(&self, secret: &str, label: &[u8]) -> Vec<u8> {
        if secret.is_empty() {
            return Vec::new();
        }
        hmac::sign(&key(secret), &self.labelled(label)).as_ref().to_vec()
    }

    /// In constant time. Without a secret anything will do.
    pub fn verify(&self, secret: &str, label: &[u8], mac: &[u8]) -> bool {
        secret.is_empty() || hmac::verify(&key(secret), &self.labelled(label), mac).is_ok()
    }

    fn labelled(&self, label: &[u8]) -> Vec<u8> {
        [label, &self.bytes].concat()
    }
}

fn key(secret: &str) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_wire::id::NodeId;
    use weir_wire::peer::{BROKER_PROOF, NODE_PROOF};

    #[test]
    fn a_proof_holds_for_its_secret_side_and_link_only() {
        let hello = Hello { node: NodeId(1), name: "a".into(), nonce: [1; 32], inbox: 10 };
        let challenge = Challenge { broker: 2, nonce: [2; 32], keyed: true };
        let said = Transcript::new(&hello, &challenge).unwrap();
        let mac = said.prove("secret", NODE_PROOF);
        assert_eq!(mac.len(), 32);
        assert!(said.verify("secret", NODE_PROOF, &mac));
        assert!(!said.verify("other", NODE_PROOF, &mac), "another secret");
        assert!(!said.verify("secret", BROKER_PROOF, &mac), "reflected");
        assert!(!said.verify("secret", NODE_PROOF, &mac[..31]) && !said.verify("secret", NODE_PROOF, &[]));
        for other in [
            Transcript::new(&Hello { nonce: [3; 32], ..hello.clone() }, &challenge),
            Transcript::new(&hello, &Challenge { nonce: [3; 32], ..challenge.clone() }),
            Transcript::new(&Hello { node: NodeId(3), ..hello.clone() }, &challenge),
        ] {
            assert!(!other.unwrap().verify("secret", NODE_PROOF, &mac), "replayed");
        }
    }
}
