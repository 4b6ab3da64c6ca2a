//! The handshake with a server: which one of the plan can be reached, and how it answered.
//!
//! The server's answer is believed only if it is a valid 101: status, `Upgrade`, `Connection`
//! and the `Sec-WebSocket-Accept` of this very key. Until then nothing that the client sent
//! after its request goes anywhere; after any other answer it dies with the connection.
//!
//! For a session of WebTransport the 101 is to [`WEBTRANSPORT`], which nodes alone know: there is no key, and who
//! answers as if nothing of that kind had been asked is no node.

use super::answer::{self, Answer, ReadError};
use super::refusal::Refusal;
use crate::access::Access;
use crate::forward;
use crate::front::upgrade::accept_for;
use crate::upstream::attempt::{Attempt, Permit, blame, no_sockets};
use crate::upstream::{Exhausted, Plan, ServerStream};
use bytes::Bytes;
use http::header::SEC_WEBSOCKET_KEY;
use http::request::Parts;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use weir_core::accept::Transport;
use weir_core::limited;
use weir_wire::hop::WEBTRANSPORT;

/// How a server took a handshake.
pub enum Greeted {
    /// It switched: the headers of its answer, its socket, what it sent right after, and the tunnel's
    /// place at the server.
    Accepted(http::HeaderMap, ServerStream, Bytes, Option<Permit>),
    /// It gave an ordinary answer, to be passed on as it comes.
    Refused(Refusal),
    /// There is no answer; what to tell the client, and why.
    Failed {
        status: u16,
        retry_after: Option<Duration>,
        cause: &'static str,
    },
    ClientGone,
}

/// Deadlines of a handshake with a server.
#[derive(Clone, Copy)]
pub struct Deadlines {
    pub connect: Duration,
    pub handshake: Duration,
}

/// Asks the servers of the plan, one after the other, until one can be reached. A client that leaves
/// meanwhile is not waited for, and holds no place in a queue.
pub async fn greet(
    plan: &mut Plan,
    head: &Parts,
    deadlines: Deadlines,
    access: &mut Access,
    client_gone: impl Future<Output = ()>,
) -> Greeted {
    tokio::select! {
        biased;
        greeted = ask(plan, head, deadlines, access) => greeted,
        () = client_gone => Greeted::ClientGone,
    }
}

async fn ask(plan: &mut Plan, head: &Parts, deadlines: Deadlines, access: &mut Access) -> Greeted {
    loop {
        let mut attempt = match plan.next().await {
            Ok(attempt) => attempt,
            Err(exhausted) => return unavailable(exhausted),
        };
        access.server = Some(attempt.name().clone());
        access.moved = attempt.moved();
        match attempt.connect(deadlines.connect).await {
            Ok(server) => {
                let of_session = access.transport() == Transport::WebTransport;
                return handshake(server, attempt, (head, of_session), deadlines.handshake).await;
            }
            Err(error) => match blame(&error) {
                Some(cause) => attempt.fail(Instant::now(), cause),
                None => {
                    attempt.give_up();
                    no_sockets(&error);
                    return Greeted::Failed {
                        status: 503,
                        retry_after: Some(Duration::from_secs(1)),
                        cause: "no_sockets",
                    };
                }
            },
        }
    }
}

fn unavailable(Exhausted { retry_after, cause }: Exhausted) -> Greeted {
    Greeted::Failed { status: 503, retry_after: Some(retry_after), cause }
}

/// Sends the request and judges the answer. Not tried again elsewhere: the server may have acted.
async fn handshake(
    mut server: ServerStream,
    mut attempt: Attempt,
    (head, of_session): (&Parts, bool),
    deadline: Duration,
) -> Greeted {
    let failed = |status, cause| Greeted::Failed { status, retry_after: None, cause };
    let exchange = async {
        let mut request = Vec::with_capacity(1024);
        forward::write_request_to(attempt.server().entry.authority(), head, &mut request);
        server.write_all(&request).await.map_err(|_| ReadError::Closed)?;
        server.flush().await.map_err(|_| ReadError::Closed)?;
        attempt.sent(Instant::now(), deadline, "handshake_timeout");
        answer::read(&mut server).await
    };
    let answer = match timeout(deadline, exchange).await {
        Err(_) => {
            attempt.late(Instant::now());
            return failed(504, "handshake_timeout");
        }
        Ok(answer) => answer,
    };
    let status = match &answer {
        Ok(Answer::Switch { .. }) => Some(101),
        Ok(Answer::Plain(response)) => Some(response.status().as_u16()),
        Err(_) => None,
    };
    attempt.answered(Instant::now(), status);
    match answer {
        Err(ReadError::Closed) => failed(502, "server_closed"),
        Err(ReadError::Malformed) => failed(502, "malformed_answer"),
        Err(ReadError::TooLarge) => failed(502, "answer_too_large"),
        Ok(Answer::Switch { headers, rest }) => {
            let key = head.headers.get(SEC_WEBSOCKET_KEY).map(|key| accept_for(key.as_bytes()));
            let is_valid = match of_session {
                true => answer::switches_to(&headers, WEBTRANSPORT),
                false => key.is_some_and(|accept| answer::is_valid_switch(&headers, &accept)),
            };
            match is_valid {
                true => Greeted::Accepted(headers, server, rest, attempt.into_permit()),
                false => failed(502, "false_switch"),
            }
        }
        Ok(Answer::Plain(response)) if of_session && !is_refusal(response.status().as_u16()) => {
            let (server, status) = (&**attempt.name(), response.status().as_u16());
            limited!(
                warn,
                "not a node",
                server,
                status,
                "no session of WebTransport: the server is not a node of Weir"
            );
            failed(502, "not_a_node")
        }
        Ok(Answer::Plain(response)) => {
            Greeted::Refused(Refusal::new(response, server, attempt.into_permit(), deadline))
        }
    }
}

/// Whether whoever answers so to an upgrade to [`WEBTRANSPORT`] may be a node, which refuses this client. The others
/// are the words of those who took it for a plain request, or for a bad handshake.
fn is_refusal(status: u16) -> bool {
    status >= 400 && !matches!(status, 400 | 405 | 426 | 501 | 505)
}
