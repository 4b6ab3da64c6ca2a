//! Requests that wait for their answers, on one link.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use tokio::sync::oneshot;
use weir_core::sync::lock;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The other side surely never saw it.
    NotSent,
    /// It may have, and it may have done it.
    Broke,
}

type Caller<T> = oneshot::Sender<Result<T, Lost>>;
pub type Waiting<T> = oneshot::Receiver<Result<T, Lost>>;

pub struct Pending<T> {
    /// `None` after the end.
    callers: Mutex<Option<HashMap<u64, Caller<T>>>>,
    most: usize,
}

impl<T> Pending<T> {
    pub fn new(most: usize) -> Pending<T> {
        Pending { callers: Mutex::new(Some(HashMap::new())), most }
    }

    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, Caller<T>>>> {
        lock(&self.callers)
    }

    /// `None`: too many, or the link has ended.
    pub fn insert(&self, id: u64) -> Option<Waiting<T>> {
        let mut callers = self.lock();
        let callers = callers.as_mut()?;
        if callers.len() >= self.most {
            return None;
        }
        let (caller, waiting) = oneshot::channel();
        callers.insert(id, caller);
        Some(waiting)
    }

    pub fn forget(&self, id: u64) {
        if let Some(callers) = self.lock().as_mut() {
            callers.remove(&id);
        }
    }

    pub fn answer(&self, id: u64, answer: T) {
        let caller = self.lock().as_mut().and_then(|callers| callers.remove(&id));
        if let Some(caller) = caller {
            let _gave_up = caller.send(Ok(answer));
        }
    }

    /// Nobody will be answered any more. `unsent`: those that never went out.
    pub fn finish(&self, unsent: &[u64]) {
        let Some(mut callers) = self.lock().take() else { return };
        for id in unsent {
            if let Some(caller) = callers.remove(id) {
                let _gave_up = caller.send(Err(Lost::NotSent));
            }
        }
        for caller in callers.into_values() {
            let _gave_up = caller.send(Err(Lost::Broke));
        }
    }

    pub fn len(&self) -> usize {
        self.lock().as_ref().map_or(0, HashMap::len)
    }
}
