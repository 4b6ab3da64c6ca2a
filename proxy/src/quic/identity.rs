//! What the QUIC endpoints of a process have in common: the form of their connection ids, and the keys of
//! tokens, resets and ids. A successor is told, so that it knows which packets are whose.

use super::id::{Form, Ids};
use ring::{hkdf, hmac};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Predecessors that still drain. An upgrade a second for longer than a drain takes is none that anybody
/// means; the oldest ones are cut off then.
const MAX_PREDECESSORS: usize = 8;

/// What a successor is told, besides the sockets. Not to be shown to anybody else.
#[derive(Clone, Serialize, Deserialize)]
pub struct Succession {
    material: Vec<u8>,
    /// Of the process that hands over, and of its own predecessors; the latest first.
    forms: Vec<Form>,
}

pub struct Identity {
    pub ids: Arc<Ids>,
    /// Processes whose packets this one passes on.
    pub predecessors: Vec<Form>,
    pub reset_key: Arc<hmac::Key>,
    pub token_key: Arc<hkdf::Prk>,
    material: Vec<u8>,
}

impl Identity {
    /// `before`: of a predecessor. The key in the conf goes over its key. `None`: the server id is too long,
    /// which the conf's checks rule out.
    pub fn new(conf: &weir_conf::proxy::Quic, before: Option<Succession>) -> Option<Identity> {
        let (inherited, mut predecessors) = before.map(|b| (b.material, b.forms)).unwrap_or_default();
        predecessors.truncate(MAX_PREDECESSORS);
        let material = match conf.token_key.reveal() {
            "" if inherited.is_empty() => rand::random::<[u8; 32]>().to_vec(),
            "" => inherited,
            key => key.as_bytes().to_vec(),
        };
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, b"weir quic").extract(&material);
        let mut key = [0; 16];
        key.copy_from_slice(&derived(&prk, b"connection ids")?[..16]);
        let is_taken = |process| predecessors.iter().any(|form| form.process() == process);
        let process = std::iter::repeat_with(rand::random::<u16>).find(|process| !is_taken(*process))?;
        let form = Form::new(conf.config_id, conf.server_id_bytes()?, process, key);
        Some(Identity {
            ids: Arc::new(Ids::new(form)?),
            reset_key: Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &derived(&prk, b"stateless resets")?)),
            token_key: Arc::new(hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &derived(&prk, b"tokens")?)),
            predecessors,
            material,
        })
    }

    pub fn succession(&self) -> Succession {
        let own = std::iter::once(self.ids.form().clone());
        Succession {
            material: self.material.clone(),
            forms: own.chain(self.predecessors.iter().cloned()).collect(),
        }
    }
}

/// `None` never happens: it is about other lengths.
fn derived(prk: &hkdf::Prk, purpose: &[u8]) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    prk.expand(&[purpose], hkdf::HKDF_SHA256).ok()?.fill(&mut key).ok()?;
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quinn::ConnectionIdGenerator;
    use weir_conf::units::Secret;

    fn conf(key: &str) -> weir_conf::proxy::Quic {
        weir_conf::proxy::Quic { token_key: Secret::new(key.into()), ..crate::testing::conf().quic }
    }

    fn id(of: &Identity) -> Vec<u8> {
        super::super::id::Generator(of.ids.clone()).generate_cid().to_vec()
    }

    fn packet(of: &Identity) -> Vec<u8> {
        [&[0x41], &*id(of), &[0; 30]].concat()
    }

    #[test]
    fn a_successor_knows_its_predecessors_packets() {
        let first = Identity::new(&conf(""), None).unwrap();
        let text = serde_json::to_string(&first.succession()).unwrap();
        let second = Identity::new(&conf(""), serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(second.predecessors, [first.ids.form().clone()]);
        assert!(second.ids.is_for_another(&packet(&first)) && first.ids.is_for_another(&packet(&second)));
        // With a key of its own, too.
        let third = Identity::new(&conf("another"), Some(second.succession())).unwrap();
        assert_eq!(third.predecessors.len(), 2);
        assert!(!third.ids.is_for_another(&packet(&first)));
        let known = third.predecessors.iter().map(|form| Ids::new(form.clone()).unwrap());
        let whose = |packet: &[u8]| known.clone().position(|ids| ids.is_for(packet));
        assert_eq!((whose(&packet(&first)), whose(&packet(&second))), (Some(1), Some(0)));
        assert_eq!(whose(&packet(&third)), None);
    }

    #[test]
    fn processes_with_one_key_take_each_others_tokens_and_tell_each_others_connections() {
        let (a, b) = (Identity::new(&conf("k"), None).unwrap(), Identity::new(&conf("k"), None).unwrap());
        assert!(hmac::verify(&a.reset_key, b"id", hmac::sign(&b.reset_key, b"id").as_ref()).is_ok());
        let other = Identity::new(&conf("l"), None).unwrap();
        assert!(hmac::verify(&a.reset_key, b"id", hmac::sign(&other.reset_key, b"id").as_ref()).is_err());
    }

    #[test]
    fn an_endless_line_of_predecessors_is_cut() {
        let mut last = Identity::new(&conf(""), None).unwrap();
        for _ in 0..20 {
            last = Identity::new(&conf(""), Some(last.succession())).unwrap();
        }
        assert_eq!(last.predecessors.len(), MAX_PREDECESSORS);
    }
}
