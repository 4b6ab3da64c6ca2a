//! One push, or several that are written at once: encoded at most once per format, as a finished frame.

use super::herald::Change;
use crate::frame;
use crate::protocol::{Format, Push};
use bytes::Bytes;
use std::cell::OnceCell;
use std::sync::Arc;
use weir_wire::envelope::Publication;
use weir_wire::id::Epoch;

pub(super) struct Frames {
    /// One publication, or joins and leaves.
    pushes: Vec<Push>,
    frames: [OnceCell<Bytes>; Format::COUNT],
}

impl Frames {
    pub fn publication(channel: &Arc<str>, publication: Publication, epoch: Option<Epoch>) -> Frames {
        // A stream's first publication says which stream it is.
        let epoch = epoch.filter(|_| publication.offset == 1);
        let push = Push::Publication { channel: channel.clone(), publication, epoch };
        Frames { pushes: vec![push], frames: Default::default() }
    }

    pub fn changes(channel: &Arc<str>, changes: impl IntoIterator<Item = Change>) -> Frames {
        let pushes = changes.into_iter().map(|change| change.push(channel.clone())).collect();
        Frames { pushes, frames: Default::default() }
    }

    /// 0: none.
    pub fn offset(&self) -> u64 {
        match self.pushes.first() {
            Some(Push::Publication { publication, .. }) => publication.offset,
            _ => 0,
        }
    }

    pub fn is_join_leave(&self) -> bool {
        !matches!(self.pushes.first(), Some(Push::Publication { .. }))
    }

    pub fn get(&self, format: Format) -> Bytes {
        let frame = || match &self.pushes[..] {
            [push] => frame::push(push, format),
            pushes => frame::pushes(pushes, format),
        };
        self.frames[format.index()].get_or_init(frame).clone()
    }
}
