//! The directory as the log needs it; a trait, so that tests can lose what was not synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

pub trait Files: Send + Sync + 'static {
    fn list(&self) -> io::Result<Vec<String>>;
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    fn create(&self, name: &str) -> io::Result<Box<dyn Appender>>;
    /// Shortens it, and waits until that is on disk.
    fn cut(&self, name: &str, length: u64) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Names that came or went are on disk.
    fn sync_names(&self) -> io::Result<()>;
}

pub trait Appender: Send {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
    /// Takes back what a failed append may have left.
    fn cut(&mut self, length: u64) -> io::Result<()>;
}

/// A real directory.
#[derive(Debug)]
pub struct Directory(pub PathBuf);

impl Files for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(&self.0)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        names.filter_map(io::Result::transpose).collect()
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.0.join(name))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Appender>> {
        let file = weir_core::private::options().append(true).create_new(true).open(self.0.join(name))?;
        Ok(Box::new(Appended(file)))
    }

    fn cut(&self, name: &str, length: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.0.join(name))?;
        file.set_len(length)?;
        file.sync_all()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.0.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }
}

struct Appended(File);

impl Appender for Appended {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }
}
