//! What is wrong in a conf, and where: one line for each mistake, all of them at once.
//!
//! `path:line:column: key: what is wrong; accepted: …`

use std::fmt;
use std::sync::Arc;

/// Where a value was written. The order is that of the sources, and within the file of its text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Compiled in.
    Default,
    /// Line and column count from one; the column counts characters. Line 0: the file as a whole.
    File { path: Arc<str>, line: usize, column: usize },
    /// A variable's name.
    Environment(String),
    /// The key of a `--set KEY=VALUE`.
    CommandLine(String),
}

/// One line of a report. Never holds the value of a secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    pub place: Place,
    /// The dotted key; empty where there is none (syntax).
    pub key: String,
    /// What is wrong, and what would be accepted.
    pub text: String,
}

/// Every mistake found, in the order of their places. Prints one per line. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors(pub(crate) Vec<Mistake>);

impl Errors {
    /// `None`: there are none.
    pub fn new(mut mistakes: Vec<Mistake>) -> Option<Errors> {
        mistakes.sort();
        (!mistakes.is_empty()).then_some(Errors(mistakes))
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Mistake> {
        self.0.iter()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Default => f.write_str("default"),
            Place::File { path, line: 0, .. } => f.write_str(path),
            Place::File { path, line, column } => write!(f, "{path}:{line}:{column}"),
            Place::Environment(name) => write!(f, "environment {name}"),
            Place::CommandLine(key) => write!(f, "command line --set {key}"),
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            write!(f, "{}: {}", self.place, self.text)
        } else {
            write!(f, "{}: {}: {}", self.place, self.key, self.text)
        }
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}
