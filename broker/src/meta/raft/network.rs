//! openraft's calls to the other members, over [`Peers`].

use super::Types;
use crate::meta::Peers;
use crate::meta::call::{Answer, Ask, Call, decode, encode};
use crate::meta::state::Meta;
use openraft::error::{
    Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, Snapshot, Vote};
use serde_json::value::RawValue;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use weir_wire::id::BrokerId;

type Failed<E = RaftError<u64>> = RPCError<u64, BasicNode, E>;

/// After a member could not be reached.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone)]
pub struct Network {
    pub me: BrokerId,
    pub meta: watch::Receiver<Arc<Meta>>,
    pub peers: Arc<dyn Peers>,
}

pub struct Link {
    network: Network,
    to: BrokerId,
    /// As openraft knows it; the state may know better.
    addr: String,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Link;

    async fn new_client(&mut self, to: u64, node: &BasicNode) -> Link {
        Link { network: self.clone(), to: BrokerId(to), addr: node.addr.clone() }
    }
}

impl Link {
    async fn ask(&self, ask: Ask, within: Duration) -> Result<Answer, Unreachable> {
        let (addr, cluster) = {
            let meta = self.network.meta.borrow();
            let addr = meta.brokers.get(&self.to).map_or_else(|| self.addr.clone(), |b| b.addr.clone());
            (addr, meta.cluster)
        };
        let call = Call { from: self.network.me, to: Some(self.to), cluster, ask };
        let deadline = Instant::now() + within;
        let answer = self.network.peers.call(Some(self.to), &addr, encode(&call), deadline).await;
        let answer = answer.map_err(|e| Unreachable::new(&e))?;
        match decode::<Answer>(&answer) {
            Ok(Answer::No(no)) | Err(no) => Err(Unreachable::new(&no)),
            Ok(answer) => Ok(answer),
        }
    }
}

fn odd() -> NetworkError {
    NetworkError::new(&io::Error::other("an answer to something else"))
}

impl RaftNetwork<Types> for Link {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, Failed> {
        match self.ask(Ask::Append(rpc), option.hard_ttl()).await? {
            Answer::Append(response) => Ok(response),
            _ => Err(odd().into()),
        }
    }

    async fn vote(&mut self, rpc: VoteRequest<u64>, option: RPCOption) -> Result<VoteResponse<u64>, Failed> {
        match self.ask(Ask::Vote(rpc), option.hard_ttl()).await? {
            Answer::Vote(response) => Ok(response),
            _ => Err(odd().into()),
        }
    }

    /// Never called: snapshots go whole.
    async fn install_snapshot(
        &mut self,
        _: InstallSnapshotRequest<Types>,
        _: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, Failed<RaftError<u64, openraft::error::InstallSnapshotError>>>
    {
        Err(odd().into())
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<u64>,
        snapshot: Snapshot<Types>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<Types, Fatal<u64>>> {
        let text = String::from_utf8(snapshot.snapshot.into_inner()).ok();
        let meta = text.and_then(|text| RawValue::from_string(text).ok()).ok_or_else(odd)?;
        let ask = self.ask(Ask::Snapshot { vote, head: snapshot.meta, meta }, option.hard_ttl());
        tokio::select! {
            answer = ask => match answer? {
                Answer::Snapshot(response) => Ok(response),
                _ => Err(odd().into()),
            },
            closed = cancel => Err(closed.into()),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(PAUSE))
    }
}
