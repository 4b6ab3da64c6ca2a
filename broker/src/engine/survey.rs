//! Questions to all nodes, and their answers.

use super::lock;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;
use weir_wire::envelope::{Answer, Survey};
use weir_wire::id::NodeId;

/// Surveys under way at once; further ones are refused.
const MAX_OPEN: usize = 64;

#[derive(Default)]
pub struct Surveys {
    open: Mutex<HashMap<u64, Open>>,
}

struct Open {
    missing: Vec<NodeId>,
    answers: Vec<(NodeId, Answer)>,
    complete: Arc<Notify>,
}

impl Surveys {
    pub fn begin(&self, nodes: Vec<NodeId>) -> Option<(u64, Arc<Notify>)> {
        let mut open = lock(&self.open);
        if open.len() >= MAX_OPEN {
            return None;
        }
        let (id, complete) = (rand::random(), Arc::new(Notify::new()));
        open.insert(id, Open { missing: nodes, answers: Vec::new(), complete: complete.clone() });
        Some((id, complete))
    }

    /// An answer that comes too late, twice, or from a node that was not asked is dropped.
    pub fn answer(&self, id: u64, node: NodeId, answer: Answer) {
        let mut open = lock(&self.open);
        let Some(survey) = open.get_mut(&id) else { return };
        let Some(at) = survey.missing.iter().position(|n| *n == node) else { return };
        survey.missing.swap_remove(at);
        survey.answers.push((node, answer));
        if survey.missing.is_empty() {
            survey.complete.notify_one();
        }
    }

    pub fn end(&self, id: u64) -> Survey {
        let survey = lock(&self.open).remove(&id);
        survey.map_or(Survey { answers: vec![], missing: vec![] }, |s| Survey {
            answers: s.answers,
            missing: s.missing,
        })
    }
}
