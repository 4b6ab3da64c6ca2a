//! From sources to a [`Config`]: a file, over it the environment, over that the command line.

use crate::Config;
use crate::error::{Errors, Mistake};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// Where to look. Later sources win: file (or text), environment, command line.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    file: Option<File>,
    environment: BTreeMap<String, Option<String>>,
    set: Vec<(String, String)>,
}

#[derive(Clone, Debug)]
enum File {
    Path(PathBuf),
    Text { name: String, text: String },
}

impl Sources {
    pub fn new() -> Sources {
        Sources::default()
    }

    /// A conf file; read by [`load`]. Not there, not readable: a mistake.
    pub fn file(mut self, path: impl Into<PathBuf>) -> Sources {
        self.file = Some(File::Path(path.into()));
        self
    }

    /// A text in place of a file, such as [`crate::DEMO`]; `name` is shown in its place.
    pub fn text(mut self, name: impl Into<String>, text: impl Into<String>) -> Sources {
        self.file = Some(File::Text { name: name.into(), text: text.into() });
        self
    }

    /// Variables: `WEIR_PROXY__LISTEN` and the like, and those that `env:NAME` secrets name.
    pub fn environment(mut self, pairs: impl IntoIterator<Item = (OsString, OsString)>) -> Sources {
        for (name, value) in pairs {
            self.environment.insert(name.to_string_lossy().into_owned(), value.into_string().ok());
        }
        self
    }

    /// The environment of this process.
    pub fn process_environment(self) -> Sources {
        self.environment(std::env::vars_os())
    }

    /// One `--set key=value` of the command line.
    pub fn set(mut self, key: impl Into<String>, value: impl Into<String>) -> Sources {
        self.set.push((key.into(), value.into()));
        self
    }
}

/// A conf without mistakes.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// Legal, but likely not what was meant. One line each.
    pub warnings: Vec<Mistake>,
}

impl Loaded {
    /// The effective conf as TOML, each value with its source as a comment; secrets are not shown.
    pub fn to_toml(&self) -> String {
        unimplemented!()
    }
}

/// Reads all sources and checks them. Reports every mistake at once.
pub fn load(sources: &Sources) -> Result<Loaded, Errors> {
    let _ = (&sources.file, &sources.environment, &sources.set);
    unimplemented!()
}
