//! One push, encoded at most once per format, as a finished frame.

use crate::frame;
use crate::protocol::{Format, Push};
use bytes::Bytes;
use std::cell::OnceCell;
use std::sync::Arc;
use weir_wire::envelope::{Body, Delivery, Publication};
use weir_wire::id::Epoch;

pub(super) struct Frames {
    push: Push,
    frames: [OnceCell<Bytes>; Format::COUNT],
}

impl Frames {
    pub fn new(channel: &Arc<str>, delivery: &Delivery) -> Frames {
        let channel = channel.clone();
        let push = match &delivery.body {
            Body::Publication(publication) => {
                return Frames::publication(&channel, publication.clone(), delivery.epoch);
            }
            Body::Join(info) => Push::Join { channel, info: info.clone() },
            Body::Leave(info) => Push::Leave { channel, info: info.clone() },
        };
        Frames { push, frames: Default::default() }
    }

    pub fn publication(channel: &Arc<str>, publication: Publication, epoch: Option<Epoch>) -> Frames {
        // A stream's first publication says which stream it is.
        let epoch = epoch.filter(|_| publication.offset == 1);
        let push = Push::Publication { channel: channel.clone(), publication, epoch };
        Frames { push, frames: Default::default() }
    }

    /// 0: none.
    pub fn offset(&self) -> u64 {
        match &self.push {
            Push::Publication { publication, .. } => publication.offset,
            _ => 0,
        }
    }

    pub fn is_join_leave(&self) -> bool {
        !matches!(self.push, Push::Publication { .. })
    }

    pub fn get(&self, format: Format) -> Bytes {
        self.frames[format.index()].get_or_init(|| frame::push(&self.push, format)).clone()
    }
}
