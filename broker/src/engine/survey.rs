//! Commands and questions to all attached nodes, and their answers.

use super::{Engine, Refusal, Submitted, lock};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;
use weir_wire::codec;
use weir_wire::envelope::{Answer, Control, Question, Survey};
use weir_wire::id::NodeId;
use weir_wire::peer::{FromBroker, Outcome};

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

impl Engine {
    /// A command for the nodes attached here.
    pub fn control_here(&self, control: Control) -> Submitted {
        match codec::encode(&FromBroker::Control(control)) {
            Ok(frame) => {
                self.to_all(frame);
                Outcome::Done.into()
            }
            Err(_) => Refusal::TooLarge.into(),
        }
    }

    /// A question to the nodes attached here.
    pub async fn survey_here(&self, question: Question) -> Result<Survey, Outcome> {
        let nodes: Vec<NodeId> = self.slots.all().iter().map(|h| h.node).collect();
        if nodes.is_empty() {
            return Ok(Survey { answers: Vec::new(), missing: Vec::new() });
        }
        let Some((id, complete)) = self.surveys.begin(nodes) else {
            return Err(Outcome::Limit("too many surveys at once".into()));
        };
        // Ends the survey also where the caller gives up waiting.
        let ending = EndOnDrop { engine: self, id };
        match codec::encode(&FromBroker::Survey { id, question }) {
            Ok(frame) => self.to_all(frame),
            Err(_) => return Err(Submitted::from(Refusal::TooLarge).outcome().await),
        }
        let _missing_ones_are_named =
            tokio::time::timeout(self.conf.survey_timeout, complete.notified()).await;
        Ok(ending.end())
    }
}

struct EndOnDrop<'a> {
    engine: &'a Engine,
    id: u64,
}

impl EndOnDrop<'_> {
    fn end(&self) -> Survey {
        self.engine.surveys.end(self.id)
    }
}

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        let _ended_before = self.engine.surveys.end(self.id);
    }
}
