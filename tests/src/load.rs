//! Load that keeps a log for the checker: publishers that repeat until they are told, subscribers that recover.

pub mod keep_alive;
pub mod look;
pub mod publisher;
pub mod subscriber;

use crate::checker::event::Event;
use std::io::{BufWriter, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// The nodes, whichever of them is up.
#[derive(Clone)]
pub struct Target {
    pub nodes: Vec<SocketAddr>,
    pub api_key: String,
}

/// Lines of JSON, from many tasks.
#[derive(Clone)]
pub struct Log(Arc<Mutex<BufWriter<std::fs::File>>>);

impl Log {
    pub fn create(path: &Path) -> Log {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        Log(Arc::new(Mutex::new(BufWriter::new(file.unwrap_or_else(|e| panic!("{}: {e}", path.display()))))))
    }

    pub fn add(&self, event: &Event) {
        let line = serde_json::to_string(event).expect("an event is JSON");
        writeln!(self.0.lock().unwrap(), "{line}").expect("the log can be written");
    }

    pub fn flush(&self) {
        self.0.lock().unwrap().flush().expect("the log can be written");
    }
}
