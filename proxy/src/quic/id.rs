//! Connection ids that say where a packet belongs: to a load balancer, which server; to a process of
//! ours, whether it is for itself or for a predecessor that still drains.
//!
//! ```text
//!   octet 0              server id    nonce, 10 octets
//!   config id | length   0 to 9       5 random | 2 process, 3 zero, both under the mask
//! ```
//!
//! The form is the plaintext one of QUIC-LB (draft-ietf-quic-load-balancers): three bits of config id, 7
//! for a server without one, and five bits of the length that follows. The mask is made by a keyed cipher
//! from all that stands before, so to anybody without the key the nonce is random, and the zeros show an
//! id that was never ours.

use quinn::{ConnectionId, ConnectionIdGenerator};
use quinn_proto::InvalidCid;
use ring::aead::quic::{AES_128, HeaderProtectionKey};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// QUIC-LB's mark of ids without a server id.
const UNROUTABLE: u8 = 0b111;
const RANDOM: usize = 5;
const SEALED: usize = 5;
const NONCE: usize = RANDOM + SEALED;
/// What the cipher takes: the octets before the mask, and zeros.
const SAMPLE: usize = 16;

/// The form of one process's ids. All its listeners share it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Form {
    config_id: u8,
    server_id: Vec<u8>,
    /// Tells a process from its predecessors.
    process: u16,
    key: [u8; 16],
}

/// A form, ready to make ids and to look at them.
pub struct Ids {
    form: Form,
    key: HeaderProtectionKey,
}

impl Form {
    /// `server_id` has 9 bytes at most, and may be empty; `config_id` is 0 to 6.
    pub fn new(config_id: u8, server_id: Vec<u8>, process: u16, key: [u8; 16]) -> Form {
        Form { config_id, server_id, process, key }
    }

    pub fn process(&self) -> u16 {
        self.process
    }

    fn length(&self) -> usize {
        1 + self.server_id.len() + NONCE
    }

    fn first(&self) -> u8 {
        let config_id = if self.server_id.is_empty() { UNROUTABLE } else { self.config_id };
        // 19 at most, so it fits into the five bits.
        config_id << 5 | (self.server_id.len() + NONCE) as u8
    }
}

impl Ids {
    /// `None`: it cannot be the form of any process (one that was handed over, and is broken).
    pub fn new(form: Form) -> Option<Ids> {
        let sound = form.server_id.len() <= weir_conf::proxy::MAX_SERVER_ID && form.config_id < UNROUTABLE;
        let key = HeaderProtectionKey::new(&AES_128, &form.key).ok()?;
        sound.then_some(Ids { form, key })
    }

    pub fn form(&self) -> &Form {
        &self.form
    }

    /// Whether a datagram is for a connection of this form's process.
    pub fn is_for(&self, datagram: &[u8]) -> bool {
        destination(datagram, self.form.length()).and_then(|id| self.process(id)) == Some(self.form.process)
    }

    /// Whether it is for a process with the same key, but not for this one.
    pub fn is_for_another(&self, datagram: &[u8]) -> bool {
        destination(datagram, self.form.length())
            .and_then(|id| self.process(id))
            .is_some_and(|process| process != self.form.process)
    }

    fn generate(&self) -> ConnectionId {
        let mut id = Vec::with_capacity(self.form.length());
        id.push(self.form.first());
        id.extend_from_slice(&self.form.server_id);
        id.extend_from_slice(&rand::random::<[u8; RANDOM]>());
        let [a, b] = self.form.process.to_be_bytes();
        let mask = self.mask(&id);
        id.extend([a, b, 0, 0, 0].iter().zip(mask).map(|(plain, mask)| plain ^ mask));
        ConnectionId::new(&id)
    }

    /// The process that made this id. `None`: none that has this key made it.
    fn process(&self, id: &[u8]) -> Option<u16> {
        let server_id = id.get(1..1 + self.form.server_id.len())?;
        if id.len() != self.form.length() || id[0] != self.form.first() || server_id != self.form.server_id {
            return None;
        }
        let (open, sealed) = id.split_at_checked(self.form.length() - SEALED)?;
        let mut plain = self.mask(open);
        plain.iter_mut().zip(sealed).for_each(|(mask, sealed)| *mask ^= sealed);
        let [a, b, 0, 0, 0] = plain else { return None };
        Some(u16::from_be_bytes([a, b]))
    }

    fn mask(&self, open: &[u8]) -> [u8; SEALED] {
        let mut sample = [0; SAMPLE];
        sample.iter_mut().zip(open).for_each(|(to, from)| *to = *from);
        // It only fails for a sample of another size.
        self.key.new_mask(&sample).unwrap_or_default()
    }
}

/// The id that a datagram's first packet is for; by RFC 9000 all packets in a datagram have the same one.
/// `short` is the length of ids in packets that do not tell it.
fn destination(datagram: &[u8], short: usize) -> Option<&[u8]> {
    let first = datagram.first()?;
    if first & 0x80 == 0 {
        return datagram.get(1..1 + short);
    }
    // The same in every version (RFC 8999).
    let length = usize::from(*datagram.get(5)?);
    datagram.get(6..6 + length)
}

/// What quinn makes ids with.
pub struct Generator(pub Arc<Ids>);

impl ConnectionIdGenerator for Generator {
    fn generate_cid(&mut self) -> ConnectionId {
        self.0.generate()
    }

    /// Ids of a process before this one are sound too: their connections are gone, and clients are told so by
    /// a stateless reset. Anything else gets no answer.
    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        self.0.process(id).map(|_| ()).ok_or(InvalidCid)
    }

    fn cid_len(&self) -> usize {
        self.0.form.length()
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(server_id: &[u8], process: u16, key: u8) -> Ids {
        Ids::new(Form::new(5, server_id.to_vec(), process, [key; 16])).unwrap()
    }

    fn short(id: &[u8]) -> Vec<u8> {
        [&[0x41], id, &[7; 30]].concat()
    }

    fn long(id: &[u8]) -> Vec<u8> {
        [&[0xc1, 0, 0, 0, 1, id.len() as u8], id, &[7; 1200]].concat()
    }

    #[test]
    fn load_balancers_find_the_server_id_and_the_length() {
        for server_id in [&[0x0a][..], &[1, 2, 3, 4], &[9; 9]] {
            let id = ids(server_id, 77, 1).generate();
            assert_eq!(id[0] >> 5, 5);
            assert_eq!(usize::from(id[0] & 0x1f) + 1, id.len());
            assert_eq!(id[1..1 + server_id.len()], *server_id);
            assert!(id.len() <= 20);
        }
        let id = ids(&[], 77, 1).generate();
        assert_eq!((id[0] >> 5, id[0] & 0x1f, id.len()), (0b111, 10, 11));
        assert!(Ids::new(Form::new(7, vec![1], 1, [0; 16])).is_none());
        assert!(Ids::new(Form::new(0, vec![1; 10], 1, [0; 16])).is_none());
    }

    #[test]
    fn a_process_knows_its_own_and_its_siblings() {
        let (ours, before, stranger) = (ids(&[1, 2], 1, 9), ids(&[1, 2], 2, 9), ids(&[1, 2], 1, 8));
        for _ in 0..100 {
            let (own, old, other) = (ours.generate(), before.generate(), stranger.generate());
            for wire in [short, long] {
                assert!(ours.is_for(&wire(&own)) && !ours.is_for_another(&wire(&own)));
                assert!(!ours.is_for(&wire(&old)) && ours.is_for_another(&wire(&old)));
                assert!(!ours.is_for(&wire(&other)) && !ours.is_for_another(&wire(&other)));
            }
            let generator = Generator(Arc::new(ids(&[1, 2], 1, 9)));
            assert!(generator.validate(&own).is_ok() && generator.validate(&old).is_ok());
            assert!(generator.validate(&other).is_err());
        }
    }

    #[test]
    fn ids_of_clients_and_garbage_are_nobodys() {
        let ours = ids(&[], 1, 9);
        for length in [0, 1, 2, 7, 8, 11, 20, 60] {
            for first in [0x00, 0x41, 0xc1, 0xff] {
                let noise: Vec<u8> =
                    std::iter::once(first).chain((0..length).map(|_| rand::random::<u8>())).collect();
                assert!(!ours.is_for(&noise) && !ours.is_for_another(&noise), "{noise:?}");
            }
        }
        assert!(!ours.is_for(&[]));
        assert!(!ours.is_for(&long(&[])));
    }

    /// To whoever does not have the key, two ids of one process have nothing in common but their server id.
    #[test]
    fn the_process_cannot_be_seen() {
        let ours = ids(&[], 0, 9);
        let some: Vec<ConnectionId> = (0..64).map(|_| ours.generate()).collect();
        for at in 1..11 {
            let mut octets: Vec<u8> = some.iter().map(|id| id[at]).collect();
            octets.sort_unstable();
            octets.dedup();
            assert!(octets.len() > 32, "octet {at}: {octets:?}");
        }
    }
}
