//! Who is there: both sides say who they are, and prove that they hold the secret.

use super::link::{Link, Who};
use super::pair::Ends;
use super::registry::Shared;
use crate::link::{FrameReader, LinkError, write_frame};
use crate::listener::TLS_KEYS;
use crate::proof::Transcript;
use crate::socket::{ReadSide, WriteSide};
use std::net::IpAddr;
use std::sync::Arc;
use weir_wire::id::BrokerId;
use weir_wire::mesh::{DIALLER_PROOF, Hello, LISTENER_PROOF, Opening, Purpose, Shake, TEXT_SIZE};
use weir_wire::peer::Bye;

const NO_SECRET: &str = "neither broker.secret nor TLS is set, and the other broker is not on loopback";

impl Shared {
    fn hello(&self, purpose: Purpose, to: Option<BrokerId>) -> Hello {
        let cut = |text: &str| text[..text.floor_char_boundary(TEXT_SIZE)].to_owned();
        Hello {
            cluster: self.cluster(),
            id: self.me.id,
            run: self.run,
            name: cut(&self.me.name),
            addr: cut(&self.me.addr),
            wire: (self.me.wire.min, self.me.wire.max),
            nonce: rand::random(),
            keyed: !self.conf.secret.is_empty(),
            purpose,
            to,
        }
    }

    /// Whether there may be a link with whoever says this. `None`: nothing is known of whom it is.
    fn judge(&self, hello: &Hello, purpose: Purpose, expected: Option<BrokerId>) -> Result<Who, LinkError> {
        if hello.name.len() > TEXT_SIZE || hello.addr.len() > TEXT_SIZE {
            return Err(LinkError::Unexpected("a name of this length"));
        }
        if hello.purpose != purpose {
            return Err(LinkError::Unexpected("another purpose"));
        }
        if hello.keyed == self.conf.secret.is_empty() {
            return Err(LinkError::Secret("one of the two brokers has a broker.secret, the other has none"));
        }
        if expected.is_some_and(|id| id != hello.id) {
            return Err(LinkError::Refused(Bye::OtherBroker));
        }
        if purpose == Purpose::Link {
            let (ours, theirs) = (self.cluster(), hello.cluster);
            if ours != 0 && theirs != 0 && ours != theirs {
                return Err(LinkError::Refused(Bye::OtherCluster));
            }
            if hello.id == self.me.id {
                return Err(LinkError::Refused(Bye::OtherBroker));
            }
            self.check(hello.id)?;
        }
        let (low, high) = (hello.wire.0.max(self.me.wire.min), hello.wire.1.min(self.me.wire.max));
        if low > high {
            return Err(LinkError::Refused(Bye::Versions));
        }
        Ok(Who { id: hello.id, name: hello.name.clone(), addr: hello.addr.clone(), wire: high })
    }

    fn link_of(&self, who: Who, run: u64, purpose: Purpose, dialled: bool) -> Arc<Link> {
        let (me, them) = (self.me.id, who.id);
        let (dialled_by, listens) = if dialled { (me, them) } else { (them, me) };
        Link::new(who, Ends { dialled_by, listens, run }, purpose, &self.conf, self.metrics.clone())
    }

    pub fn may_talk_to(&self, ip: IpAddr) -> Result<(), LinkError> {
        let open = self.conf.secret.is_empty() && self.conf.tls.is_none();
        match open && !ip.is_loopback() {
            true => Err(LinkError::Secret(NO_SECRET)),
            false => Ok(()),
        }
    }
}

/// The side that has connected.
pub async fn dialled(
    shared: &Shared,
    reader: &mut FrameReader<ReadSide>,
    writer: &mut WriteSide,
    purpose: Purpose,
    to: Option<BrokerId>,
) -> Result<Arc<Link>, LinkError> {
    let ours = Opening::Broker(shared.hello(purpose, to));
    write_frame(writer, &ours).await?;
    let theirs = match reader.read_first(TLS_KEYS).await? {
        Shake::Hello(hello) => hello,
        other => return Err(unexpected(other)),
    };
    let who = shared.judge(&theirs, purpose, to)?;
    let run = theirs.run;
    let said = Transcript::of(&ours, &Shake::Hello(theirs))?;
    let secret = shared.conf.secret.reveal();
    write_frame(writer, &Shake::Proof(said.prove(secret, DIALLER_PROOF))).await?;
    match reader.read().await? {
        Shake::Welcome(mac) if said.verify(secret, LISTENER_PROOF, &mac) => {
            Ok(shared.link_of(who, run, purpose, true))
        }
        Shake::Welcome(_) => Err(LinkError::Secret("that broker did not prove that it has our secret")),
        other => Err(unexpected(other)),
    }
}

/// The side that was connected to, up to its last frame: see [`welcome`].
pub async fn heard(
    shared: &Shared,
    hello: &Hello,
    reader: &mut FrameReader<ReadSide>,
    writer: &mut WriteSide,
) -> Result<(Arc<Link>, Transcript), LinkError> {
    let who = shared.judge(hello, hello.purpose, None)?;
    // Also when it came by another address than that of this broker: the id counts.
    if hello.to.is_some_and(|to| to != shared.me.id) {
        return Err(LinkError::Refused(Bye::OtherBroker));
    }
    let ours = Shake::Hello(shared.hello(hello.purpose, Some(hello.id)));
    write_frame(writer, &ours).await?;
    let said = Transcript::of(&Opening::Broker(hello.clone()), &ours)?;
    match reader.read().await? {
        Shake::Proof(mac) if said.verify(shared.conf.secret.reveal(), DIALLER_PROOF, &mac) => {
            Ok((shared.link_of(who, hello.run, hello.purpose, false), said))
        }
        Shake::Proof(_) => Err(LinkError::Secret("that broker's secret is wrong or missing (broker.secret)")),
        other => Err(unexpected(other)),
    }
}

pub async fn welcome(shared: &Shared, said: &Transcript, writer: &mut WriteSide) -> Result<(), LinkError> {
    write_frame(writer, &Shake::Welcome(said.prove(shared.conf.secret.reveal(), LISTENER_PROOF))).await
}

fn unexpected(shake: Shake) -> LinkError {
    match shake {
        Shake::Bye(bye) => LinkError::Bye(bye),
        _ => LinkError::Unexpected("such a frame in a handshake"),
    }
}
