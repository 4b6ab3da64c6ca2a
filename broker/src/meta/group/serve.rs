//! Answers to the other brokers.

use super::Inner;
use crate::meta::call::{Answer, Ask, Call, No, decode};
use bytes::Bytes;
use openraft::Snapshot;
use openraft::error::RaftError;
use std::fmt::Display;
use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Inner {
    pub(super) async fn serve(self: &Arc<Inner>, request: &Bytes) -> Answer {
        let call = match decode::<Call>(request) {
            Ok(call) => call,
            Err(no) => return Answer::No(no),
        };
        if call.to.is_some_and(|to| to != self.me) {
            return Answer::No(No::OtherBroker(self.me));
        }
        let ours = self.meta.borrow().cluster;
        if let (Some(ours), Some(theirs)) = (ours, call.cluster)
            && ours != theirs
        {
            return Answer::No(No::OtherCluster(ours));
        }
        self.answer(call).await
    }

    async fn answer(self: &Arc<Inner>, call: Call) -> Answer {
        match call.ask {
            Ask::Append(rpc) => self.raft.append_entries(rpc).await.map_or_else(stopped, Answer::Append),
            Ask::Vote(rpc) => self.raft.vote(rpc).await.map_or_else(stopped, Answer::Vote),
            Ask::Snapshot { vote, head, meta } => {
                let bytes = Box::<str>::from(meta).into_string().into_bytes();
                let snapshot = Snapshot { meta: head, snapshot: Box::new(Cursor::new(bytes)) };
                let installed = self.raft.install_full_snapshot(vote, snapshot).await;
                installed.map_or_else(|e| stopped(RaftError::<u64>::Fatal(e)), Answer::Snapshot)
            }
            Ask::Renew => self.renew(call.from).await,
            Ask::Submit(commands) => self.propose_for(commands).await.map_or_else(Answer::No, Answer::Done),
            Ask::Hello => Answer::Hello {
                id: self.me,
                cluster: self.meta.borrow().cluster,
                name: self.conf.who.name.clone(),
                would_bootstrap: self.would_bootstrap.load(Ordering::Relaxed),
            },
            Ask::Join(who) => {
                // To its end, even if nobody waits: it must not leave the leader's table half changed.
                let inner = self.clone();
                let admitted = tokio::spawn(async move { inner.admit(call.from, who).await }).await;
                admitted.unwrap_or(Answer::No(No::Unknown))
            }
            Ask::Heard => Answer::Heard(self.heard()),
        }
    }
}

fn stopped(error: impl Display) -> Answer {
    Answer::No(No::Stopped(error.to_string()))
}
