//! From sources to a [`Config`]: a file, over it the environment, over that the command line.

use crate::error::{Errors, Mistake, Place};
use crate::section::{Keys, Reader, Section};
use crate::syntax::{self, Parsed};
use crate::tree::{Table, overlay};
use crate::{Config, REFERENCE, check};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// A conf is kilobytes; a larger file is another kind of file.
const FILE_SIZE: u64 = 4 * 1024 * 1024;

/// What `weir.toml` says.
static DEFAULTS: LazyLock<Table> = LazyLock::new(|| syntax::parse("weir.toml", REFERENCE).table);
static NOTHING: Table = Table::new();
static NO_VARIABLES: BTreeMap<String, Option<String>> = BTreeMap::new();

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
    places: BTreeMap<String, Place>,
}

impl Loaded {
    /// Where a key was given, or the nearest table around it.
    pub fn place(&self, key: &str) -> Place {
        let mut key = key;
        loop {
            if let Some(place) = self.places.get(key) {
                return place.clone();
            }
            let Some(end) = key.rfind(['.', '[']) else { return Place::Default };
            key = &key[..end];
        }
    }

    /// The effective conf as TOML, each value with its source as a comment; secrets are not shown.
    /// Sections of roles that this process does not run are left out.
    pub fn to_toml(&self) -> String {
        self.config.write(Some(&self.places))
    }
}

/// Reads all sources and checks them. Reports every mistake at once.
pub fn load(sources: &Sources) -> Result<Loaded, Errors> {
    let (whole, Parsed { table: mut given, mut mistakes }) = sources.read_file();
    sources.lay_environment(&mut given, &mut mistakes);
    for (key, value) in &sources.set {
        let path = key.split('.').map(|part| part.trim().to_owned()).collect();
        lay(&mut given, path, value, Place::CommandLine(key.clone()), &mut mistakes);
    }
    let mut reader = Reader::new(&sources.environment, &DEFAULTS);
    let config = Section::root(&mut reader, &given, whole.clone(), Config::read_keys);
    // What a broken line was to say is not known: rules across keys would blame the wrong ones.
    if mistakes.is_empty() {
        check::check(&config, &mut reader, &whole);
    }
    let Reader { named, mistakes: more, mut warnings, places, .. } = reader;
    // A variable that a secret names is no key, whatever it is called.
    let is_named = |m: &Mistake| matches!(&m.place, Place::Environment(name) if named.contains(name));
    mistakes.extend(more.into_iter().filter(|m| !is_named(m)));
    mistakes.sort();
    mistakes.dedup();
    warnings.sort();
    warnings.dedup();
    if mistakes.is_empty() { Ok(Loaded { config, warnings, places }) } else { Err(Errors(mistakes)) }
}

impl Sources {
    /// The file's place as a whole, and what it says.
    fn read_file(&self) -> (Place, Parsed) {
        let at = |name: &str| Place::File { path: name.into(), line: 0, column: 0 };
        match &self.file {
            None => (Place::Default, Parsed { table: Table::new(), mistakes: Vec::new() }),
            Some(File::Text { name, text }) => (at(name), syntax::parse(name, text)),
            Some(File::Path(path)) => {
                let name = path.display().to_string();
                let parsed = match read_text(path) {
                    Ok(text) => syntax::parse(&name, &text),
                    Err(text) => {
                        let mistake = Mistake { place: at(&name), key: String::new(), text };
                        Parsed { table: Table::new(), mistakes: vec![mistake] }
                    }
                };
                (at(&name), parsed)
            }
        }
    }

    fn lay_environment(&self, given: &mut Table, mistakes: &mut Vec<Mistake>) {
        for (name, value) in &self.environment {
            let Some(key) = name.strip_prefix("WEIR_") else { continue };
            let place = Place::Environment(name.clone());
            let Some(value) = value else {
                let text = "is not UTF-8; accepted: text".to_owned();
                mistakes.push(Mistake { place, key: String::new(), text });
                continue;
            };
            if is_service_link(name) {
                continue;
            }
            let path = key.split("__").map(str::to_lowercase).collect();
            lay(given, path, value, place, mistakes);
        }
    }
}

fn lay(given: &mut Table, path: Vec<String>, value: &str, place: Place, mistakes: &mut Vec<Mistake>) {
    if !overlay(given, &path, syntax::parse_value(value, place.clone())) {
        let text = "unknown key; a key above it holds a value, not keys".to_owned();
        mistakes.push(Mistake { place, key: path.join("."), text });
    }
}

/// Kubernetes puts `WEIR_SERVICE_HOST`, `WEIR_NODE_PORT_8100_TCP_ADDR` and so on into every container
/// beside a service called `weir` or `weir-node`. Keys of ours have a `__`.
fn is_service_link(name: &str) -> bool {
    let port = |(_, after): (&str, &str)| after.starts_with(|c: char| c.is_ascii_digit());
    !name.contains("__")
        && (name.ends_with("_SERVICE_HOST")
            || name.ends_with("_SERVICE_PORT")
            || name.contains("_SERVICE_PORT_")
            || name.ends_with("_PORT")
            || name.split_once("_PORT_").is_some_and(port))
}

fn read_text(path: &Path) -> Result<String, String> {
    let accepted = "accepted: a conf file in TOML";
    let failed = |error: std::io::Error| format!("cannot be read: {error}; {accepted}");
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(FILE_SIZE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_SIZE {
        return Err(format!("is larger than 4MiB; {accepted}"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let sound = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = sound.iter().filter(|b| **b == b'\n').count() + 1;
        format!("is not UTF-8 in line {line}; {accepted}")
    })
}

impl Default for Config {
    fn default() -> Config {
        let mut reader = Reader::new(&NO_VARIABLES, &DEFAULTS);
        Section::root(&mut reader, &NOTHING, Place::Default, Config::read_keys)
    }
}
