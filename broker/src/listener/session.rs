//! One link of one proven node: its requests in the order in which they come, its deliveries, and
//! its end.

use super::outlet::LinkOutlet;
use super::{Proven, refuse, say_bye};
use crate::engine::{Attachment, Engine, Submitted};
use crate::link::{FrameReader, GOODBYE_DEADLINE, Kind, LinkError, SendQueue, write_frame, write_loop};
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep_until, timeout};
use weir_core::drain::Drain;
use weir_core::limited;
use weir_wire::codec::{self, CodecError, MAX_FRAME};
use weir_wire::envelope::Question;
use weir_wire::peer::{BROKER_PROOF, Bye, FromBroker, FromNode, Op, Outcome, Welcome};

/// Bytes of replies that may wait; over it no further request is read.
const MAX_REPLIES: usize = 4 << 20;
/// A link on which nothing is heard for so long is cut, by either side: a broker that hangs must not
/// hold its nodes until their lease runs out.
const LINK_DEAD: Duration = Duration::from_secs(4);
/// Surveys of one node under way.
const MAX_SURVEYS: usize = 16;
/// Calls of one node that wait for their commit; over it no further request is read.
const MAX_WAITING: usize = 4096;

pub(super) async fn run(proven: Proven, peer: SocketAddr, engine: &Arc<Engine>, drain: &Drain) {
    let Proven { hello, said, mut reader, mut writer } = proven;
    let lease = engine.conf().node_lease.min(LINK_DEAD);
    let queue = Arc::new(SendQueue::default());
    let outlet = Arc::new(LinkOutlet::new(queue.clone(), engine, hello.inbox));
    let attachment = match engine.attach(hello.node, &hello.name, outlet.clone()) {
        Ok(attachment) => attachment,
        Err(bye) => {
            let kind = ("broker.listen", LinkError::Full.cause());
            limited!(warn, kind, %peer, node = %hello.node, name = hello.name, reason = bye.reason(), "a node was refused");
            refuse(engine, LinkError::Full.cause());
            return say_bye(&mut writer, bye).await;
        }
    };
    let welcome = FromBroker::Welcome(Welcome {
        mac: said.prove(engine.conf().secret.reveal(), BROKER_PROOF),
        lease_ms: millis(lease),
        message_size: engine.conf().message_size as u64,
        survey_ms: millis(engine.conf().survey_timeout),
    });
    let Ok(heartbeat) = codec::encode(&FromBroker::Heartbeat) else { return };
    reader.set_limit(MAX_FRAME);
    let end = {
        let read = serve(&mut reader, &attachment, &queue, &outlet, lease);
        let write = async {
            timeout(lease, write_frame(&mut writer, &welcome))
                .await
                .map_err(|_| LinkError::Stuck(lease))??;
            write_loop(&mut writer, &queue, heartbeat, lease, || outlet.look_for_room()).await
        };
        let (mut read, mut write) = (pin!(read), pin!(write));
        let (end, written) = tokio::select! {
            end = &mut read => (end, false),
            // Finished without an error: another link took over.
            end = &mut write => (end.and(Err(LinkError::Replaced)), true),
            () = drain.begun() => (Err(LinkError::Stopping), false),
        };
        if !written {
            let bye = end.as_ref().err().and_then(LinkError::bye);
            queue.finish(bye.and_then(|bye| codec::encode(&FromBroker::Bye(bye)).ok()));
            let _taken = timeout(GOODBYE_DEADLINE, write).await;
        }
        end
    };
    match end {
        Ok(()) => attachment.leave(),
        Err(error) => {
            tracing::warn!(%peer, node = %hello.node, name = hello.name, %error, "the link to a node ended");
            refuse(engine, error.cause());
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Reads and carries out; `Ok` when the node stops of its own will.
async fn serve(
    reader: &mut FrameReader<impl AsyncRead + Unpin>,
    attachment: &Attachment,
    queue: &SendQueue,
    outlet: &LinkOutlet,
    lease: Duration,
) -> Result<(), LinkError> {
    let mut surveys = FuturesUnordered::new();
    let mut waiting = FuturesUnordered::new();
    let mut restored = false;
    let mut heard = Instant::now();
    let mut silent = pin!(sleep_until(heard + lease));
    loop {
        let frame = tokio::select! {
            // Replies wait for a node that does not read: then it has to wait too.
            frame = async { queue.below(Kind::Talk, MAX_REPLIES).await; reader.read().await },
                if waiting.len() < MAX_WAITING => frame?,
            Some((id, outcome)) = waiting.next(), if !waiting.is_empty() => {
                reply(queue, id, outcome)?;
                if waiting.len() + 1 == MAX_WAITING {
                    // Not silent: it was not listened to.
                    heard = Instant::now();
                }
                continue;
            }
            Some(()) = surveys.next(), if !surveys.is_empty() => continue,
            () = silent.as_mut(), if waiting.len() < MAX_WAITING => {
                // Set when it fires, not with each frame: that would cost as much as the frame.
                if Instant::now() < heard + lease {
                    silent.as_mut().reset(heard + lease);
                    continue;
                }
                return Err(LinkError::Silent(lease));
            }
        };
        heard = Instant::now();
        // Frames that are there already are no reason to wait, but others have their turn too.
        consume_budget().await;
        if queue.is_finished() {
            return Err(LinkError::Replaced);
        }
        match frame {
            FromNode::Restore(restore) if !restored => attachment.restore(restore),
            FromNode::Restored if !restored => {
                restored = true;
                outlet.go_live();
                attachment.resync();
            }
            FromNode::Request { id, op: Op::Survey(_) } if restored && surveys.len() >= MAX_SURVEYS => {
                reply(queue, id, Outcome::Limit("too many surveys at once".into()))?;
            }
            FromNode::Request { id, op: Op::Survey(question) } if restored => {
                surveys.push(survey(attachment, queue, id, question));
            }
            FromNode::Request { id, op } if restored => match attachment.submit(op) {
                Submitted::Now(outcome) => reply(queue, id, outcome)?,
                later => waiting.push(async move { (id, later.outcome().await) }),
            },
            FromNode::Consumed(count) => {
                if !outlet.consumed(count) {
                    return Err(LinkError::Unexpected("more consumed than was delivered"));
                }
            }
            FromNode::Heartbeat => {}
            FromNode::Bye(Bye::Stopping) => return Ok(()),
            FromNode::Bye(bye) => return Err(LinkError::Bye(bye)),
            _ => return Err(LinkError::Unexpected("such a frame")),
        }
    }
}

async fn survey(attachment: &Attachment, queue: &SendQueue, id: u64, question: Question) {
    let result = attachment.call(Op::Survey(question)).await;
    if let Err(error) = reply(queue, id, result) {
        tracing::error!(%error, "a survey's result cannot be sent");
    }
}

fn reply(queue: &SendQueue, id: u64, result: Outcome) -> Result<(), CodecError> {
    match queue.talk(&FromBroker::Reply { id, result }) {
        // Too long for one frame: presence of a very large channel, or a survey.
        Err(CodecError::TooLong { .. }) => {
            queue.talk(&FromBroker::Reply { id, result: Outcome::Refused("the answer is too long".into()) })
        }
        done => done,
    }
}
