//! Whose directory it is: one process at a time, one format, one broker of one cluster.

use super::OpenError;
use crate::meta::ClusterId;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use weir_core::private;
use weir_wire::id::BrokerId;

/// Raised when a version could not read what the next one writes.
const FORMAT: u32 = 1;
const FILE: &str = "identity.json";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub cluster: ClusterId,
    pub broker: BrokerId,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    owner: Option<Identity>,
}

/// Held as long as the process works with the directory.
#[derive(Debug)]
pub struct Held {
    dir: PathBuf,
    _lock: File,
}

impl Held {
    pub fn take(dir: &Path) -> Result<(Held, Option<Identity>), OpenError> {
        let io = |doing| move |error| OpenError::Io { path: dir.into(), doing, error };
        private::folder(dir).map_err(io("creating the directory"))?;
        let lock = private::options().create(true).truncate(false).write(true).open(dir.join("lock"));
        let lock = lock.map_err(io("opening the lock file"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path: dir.into() }),
            Err(TryLockError::Error(error)) => return Err(io("locking")(error)),
        }
        let held = Held { dir: dir.into(), _lock: lock };
        let path = dir.join(FILE);
        let stored: Stored = match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|_| OpenError::NotOurs { path: path.clone() })?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                held.refuse_strangers()?;
                held.write(None).map_err(io("writing identity.json"))?;
                Stored { format: FORMAT, owner: None }
            }
            Err(error) => return Err(io("reading identity.json")(error)),
        };
        if stored.format != FORMAT {
            return Err(OpenError::Format { path, found: stored.format, known: FORMAT });
        }
        // What is published is in them, and an earlier version left them for all to read. Now they are surely ours.
        private::narrow_files(dir).map_err(io("narrowing the files"))?;
        Ok((held, stored.owner))
    }

    /// A directory with a log but no identity, or with files of somebody else, is left alone.
    fn refuse_strangers(&self) -> Result<(), OpenError> {
        let io = |error| OpenError::Io { path: self.dir.clone(), doing: "listing", error };
        for entry in fs::read_dir(&self.dir).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            let known = ["lock", "lost+found", "identity.json.new"];
            if !known.iter().any(|k| name == *k) {
                return Err(OpenError::NotOurs { path: self.dir.join(name) });
            }
        }
        Ok(())
    }

    pub fn write(&self, owner: Option<Identity>) -> io::Result<()> {
        let bytes = serde_json::to_vec(&Stored { format: FORMAT, owner }).map_err(io::Error::other)?;
        private::replace(&self.dir.join(FILE), &bytes, 0o600)?;
        File::open(&self.dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::files::{Directory, Files};
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    /// Of a new directory, and of one that an earlier version has left.
    #[test]
    fn the_directory_and_its_files_are_nobody_elses() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("deep/data");
        drop(Held::take(&dir).unwrap());
        drop(Directory(dir.clone()).create("0000000000000001.log").unwrap());
        let all = ["lock", FILE, "0000000000000001.log"].map(|name| dir.join(name));
        for round in 0..2 {
            assert_eq!(mode(&dir), 0o700, "{round}");
            for file in &all {
                assert_eq!(mode(file), 0o600, "{round}: {}", file.display());
                fs::set_permissions(file, PermissionsExt::from_mode(0o644)).unwrap();
            }
            fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
            drop(Held::take(&dir).unwrap());
        }
    }
}
