//! Files in memory, of which a power failure keeps what was synced and some of the rest: a part
//! of each file's end, with a hole in it now and then. They can be full, and fail.

use super::super::files::{Appender, Files};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

#[derive(Default)]
pub struct Forgetful(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    files: BTreeMap<String, Content>,
    /// Names that are on disk.
    named: BTreeMap<String, u64>,
    ids: u64,
    boots: u64,
    room: Option<usize>,
    failing_syncs: u32,
    failing_writes: u32,
}

struct Content {
    id: u64,
    bytes: Vec<u8>,
    synced: usize,
}

impl Forgetful {
    pub fn boots(&self) -> u64 {
        self.0.lock().unwrap().boots
    }

    pub fn power_failure(&self, seed: u64) {
        let (mut rng, mut inner) = (StdRng::seed_from_u64(seed), self.0.lock().unwrap());
        inner.boots += 1;
        let inner = &mut *inner;
        // A name that was not synced is there or not, and so is its removal.
        let named = &inner.named;
        inner.files.retain(|name, c| named.get(name) == Some(&c.id) || rng.random());
        for content in inner.files.values_mut() {
            let keep = rng.random_range(content.synced..=content.bytes.len());
            content.bytes.truncate(keep);
            if keep > content.synced && rng.random_ratio(1, 3) {
                let hole = rng.random_range(content.synced..keep);
                let end = (hole + 512).min(keep);
                content.bytes[hole..end].fill(0);
            }
            content.synced = content.bytes.len();
        }
        inner.named = inner.files.iter().map(|(name, c)| (name.clone(), c.id)).collect();
    }

    pub fn set_room(&self, bytes: Option<usize>) {
        self.0.lock().unwrap().room = bytes;
    }

    pub fn fail(&self, writes: u32, syncs: u32) {
        let mut inner = self.0.lock().unwrap();
        (inner.failing_writes, inner.failing_syncs) = (writes, syncs);
    }

    pub fn total(&self) -> usize {
        self.0.lock().unwrap().files.values().map(|c| c.bytes.len()).sum()
    }

    pub fn names(&self) -> Vec<String> {
        self.0.lock().unwrap().files.keys().cloned().collect()
    }

    pub fn edit(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        edit(&mut self.0.lock().unwrap().files.get_mut(name).unwrap().bytes);
    }

    pub fn forget(&self, name: &str) {
        self.0.lock().unwrap().files.remove(name);
    }

    /// A copy that goes its own way.
    pub fn copy(&self) -> Arc<Forgetful> {
        let inner = self.0.lock().unwrap();
        let copy = |c: &Content| Content { id: c.id, bytes: c.bytes.clone(), synced: c.bytes.len() };
        let files = inner.files.iter().map(|(name, c)| (name.clone(), copy(c))).collect();
        let copied = Inner {
            files,
            named: inner.named.clone(),
            ids: inner.ids,
            boots: inner.boots,
            ..Inner::default()
        };
        Arc::new(Forgetful(Arc::new(Mutex::new(copied))))
    }
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Files for Forgetful {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.0.lock().unwrap().files.get(name).map(|c| c.bytes.clone()).ok_or_else(missing)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Appender>> {
        let mut inner = self.0.lock().unwrap();
        if inner.files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        inner.ids += 1;
        let id = inner.ids;
        inner.files.insert(name.into(), Content { id, bytes: Vec::new(), synced: 0 });
        Ok(Box::new(Open { inner: self.0.clone(), name: name.into(), id }))
    }

    fn cut(&self, name: &str, length: u64) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        let content = inner.files.get_mut(name).ok_or_else(missing)?;
        content.bytes.truncate(length as usize);
        content.synced = content.bytes.len();
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().unwrap().files.remove(name).map(drop).ok_or_else(missing)
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        inner.named = inner.files.iter().map(|(name, c)| (name.clone(), c.id)).collect();
        Ok(())
    }
}

struct Open {
    inner: Arc<Mutex<Inner>>,
    name: String,
    id: u64,
}

impl Open {
    fn with<R>(&self, with: impl FnOnce(&mut Content) -> R) -> io::Result<R> {
        let mut inner = self.inner.lock().unwrap();
        let content = inner.files.get_mut(&self.name).filter(|c| c.id == self.id);
        content.map(with).ok_or_else(missing)
    }
}

impl Appender for Open {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap();
        if inner.failing_writes > 0 {
            inner.failing_writes -= 1;
            return Err(io::Error::other("planted"));
        }
        let used: usize = inner.files.values().map(|c| c.bytes.len()).sum();
        let fits = inner.room.map_or(bytes.len(), |room| room.saturating_sub(used).min(bytes.len()));
        drop(inner);
        self.with(|c| c.bytes.extend_from_slice(&bytes[..fits]))?;
        if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap();
        if inner.failing_syncs > 0 {
            inner.failing_syncs -= 1;
            // As Linux does: what could not be written is dropped, and the next sync succeeds.
            drop(inner);
            self.with(|c| {
                let synced = c.synced;
                c.bytes[synced..].fill(0);
                c.synced = c.bytes.len();
            })?;
            return Err(io::Error::other("planted"));
        }
        drop(inner);
        self.with(|c| c.synced = c.bytes.len())
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.with(|c| {
            c.bytes.truncate(length as usize);
            c.synced = c.synced.min(c.bytes.len());
        })
    }
}
