//! The folder with the account and the certificates: each file is written whole or not at all, and is for
//! Weir's user alone.
//!
//! Below `proxy.acme.store` there is a folder for each directory URL: certificates of a trial do not stand in
//! for real ones. Processes may share it: who writes a file holds its lock.

use ring::digest::{SHA256, digest};
use std::fs::{File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use weir_core::private;

/// A chain of certificates for a hundred names is some tens of KiB.
const MAX_SIZE: u64 = 1 << 20;

#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
}

/// While it is held, no other process orders the same.
#[derive(Debug)]
pub struct Lock(Option<File>);

impl Store {
    /// Makes the folder if there is none, and sees whether it can be written.
    pub fn open(root: &Path, directory: &str) -> io::Result<Store> {
        let folder = root.join(slug(directory));
        private::folder(&folder)?;
        // A copy or a backup may have come with other modes.
        private::narrow_files(&folder)?;
        let store = Store { folder };
        store.write("directory", directory.as_bytes())?;
        Ok(store)
    }

    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.folder.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_SIZE {
            return Err(io::Error::other("is larger than 1MiB"));
        }
        Ok(Some(bytes))
    }

    /// Returns when it is on the disk: what was ordered is not to be had a second time so soon.
    pub fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        private::replace(&self.folder.join(name), bytes, 0o600)?;
        File::open(&self.folder)?.sync_all()
    }

    /// Out of the way, but not gone: somebody may want to look at it.
    pub fn set_aside(&self, name: &str) -> io::Result<()> {
        std::fs::rename(self.folder.join(name), self.folder.join(format!("{name}.old")))
    }

    /// `None`: another process has it.
    pub fn lock(&self, name: &str) -> io::Result<Option<Lock>> {
        let path = self.folder.join(format!("{name}.lock"));
        let file = private::options().write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(Some(file)))),
            Err(TryLockError::WouldBlock) => Ok(None),
            // There are file systems without locks; they are not shared by processes of one machine.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                Ok(Some(Lock(None)))
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A child that was forked meanwhile may hold a copy of the descriptor.
        let _closed_right_after = self.0.as_ref().map(File::unlock);
    }
}

/// The file of a certificate, by its names in any order.
pub fn certificate(names: &[String]) -> String {
    let mut sorted: Vec<&str> = names.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    // A name has 253 characters at most, a file name 255 with what is put behind it here and there.
    let first: String = sorted.first().map_or("unnamed", |first| *first).chars().take(200).collect();
    match sorted.as_slice() {
        [name] if first.len() == name.len() => format!("{first}.pem"),
        names => {
            format!("{first}+{}-{}.pem", names.len().saturating_sub(1), short_hash(&sorted.join(" ")))
        }
    }
}

/// Readable, and different for different URLs.
fn slug(directory: &str) -> String {
    let rest = directory.split_once("://").map_or(directory, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or_default();
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
    let host: String = host.chars().take(100).map(|c| if fits(c) { c } else { '_' }).collect();
    format!("{host}-{}", short_hash(directory))
}

fn short_hash(text: &str) -> String {
    digest(&SHA256, text.as_bytes()).as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const DIRECTORY: &str = "https://acme.example:14000/dir";

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_written_reads_back_and_is_for_us_alone() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        let store = Store::open(&inner, DIRECTORY).unwrap();
        assert_eq!(store.read("x.pem").unwrap(), None);
        store.write("x.pem", b"one").unwrap();
        store.write("x.pem", b"two").unwrap();
        assert_eq!(Store::open(&inner, DIRECTORY).unwrap().read("x.pem").unwrap().unwrap(), b"two");
        assert_eq!(mode(&store.path("x.pem")), 0o600);
        assert_eq!(mode(&store.folder), 0o700);
        assert_eq!(mode(&inner), 0o700);
        std::fs::set_permissions(store.path("x.pem"), PermissionsExt::from_mode(0o644)).unwrap();
        let store = Store::open(&inner, DIRECTORY).unwrap();
        assert_eq!(mode(&store.path("x.pem")), 0o600);
        store.set_aside("x.pem").unwrap();
        assert_eq!(store.read("x.pem").unwrap(), None);
        assert_eq!(store.read("x.pem.old").unwrap().unwrap(), b"two");
    }

    #[test]
    fn a_write_that_broke_off_leaves_what_was_there() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path(), DIRECTORY).unwrap();
        store.write("x.pem", b"whole").unwrap();
        std::fs::write(store.path("x.pem.new"), b"ha").unwrap();
        std::fs::set_permissions(store.path("x.pem.new"), PermissionsExt::from_mode(0o444)).unwrap();
        assert_eq!(store.read("x.pem").unwrap().unwrap(), b"whole");
        store.write("x.pem", b"next").unwrap();
        assert_eq!(store.read("x.pem").unwrap().unwrap(), b"next");
        assert_eq!(mode(&store.path("x.pem")), 0o600);
        std::fs::write(store.path("big"), vec![0; (1 << 20) + 1]).unwrap();
        assert!(store.read("big").is_err());
    }

    #[test]
    fn a_folder_that_cannot_be_is_told_at_once() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(Store::open(&file, DIRECTORY).is_err());
    }

    #[test]
    fn one_at_a_time_holds_a_lock() {
        let root = tempfile::tempdir().unwrap();
        let [store, other] = [(); 2].map(|()| Store::open(root.path(), DIRECTORY).unwrap());
        let held = store.lock("x.pem").unwrap();
        assert!(held.is_some());
        assert!(other.lock("x.pem").unwrap().is_none());
        assert!(other.lock("y.pem").unwrap().is_some());
        drop(held);
        assert!(other.lock("x.pem").unwrap().is_some());
    }

    #[test]
    fn file_names_tell_certificates_and_authorities_apart() {
        let file = |names: &[&str]| certificate(&names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(file(&["example.com"]), "example.com.pem");
        let both = file(&["example.com", "www.example.com"]);
        assert!(both.starts_with("example.com+1-"), "{both}");
        assert_eq!(both, file(&["www.example.com", "example.com"]));
        assert_ne!(both, file(&["example.com", "web.example.com"]));
        let label = "a".repeat(60);
        let long = [format!("{label}.{label}.{label}.{label}"), format!("{label}.{label}.{label}.b{label}")];
        assert!(file(&[&long[0]]).len() < 240);
        assert_ne!(file(&[&long[0]]), file(&[&long[1]]));
        let slugs = [DIRECTORY, "https://acme.example:14000/other", "https://acme.example/dir"].map(slug);
        assert!(slugs[0].starts_with("acme.example_14000-"), "{slugs:?}");
        assert!(slugs[0] != slugs[1] && slugs[1] != slugs[2], "{slugs:?}");
        assert!(!slug("https://../../etc/x").contains('/'));
    }
}
