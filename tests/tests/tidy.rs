//! Rules of the tree that a reader can rely on: who may depend on whom, how long a file and a
//! function may be, and that ARCHITECTURE.md names only what exists.

#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crate → the workspace crates it may use. Anything else is a new line here, with a reason in review.
const MAY_USE: &[(&str, &[&str])] = &[
    ("weir-conf", &[]),
    ("weir-wire", &[]),
    ("weir-h3", &[]),
    ("weir-core", &["weir-conf", "weir-wire"]),
    ("weir-broker", &["weir-conf", "weir-core", "weir-wire"]),
    ("weir-node", &["weir-conf", "weir-core", "weir-wire", "weir-broker"]),
    ("weir-proxy", &["weir-conf", "weir-core", "weir-wire", "weir-h3"]),
    ("weir", &["weir-conf", "weir-core", "weir-wire", "weir-broker", "weir-node", "weir-proxy", "weir-h3"]),
];

/// Libraries that one tier alone knows.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("pingora", &["weir-proxy"]),
    ("rumqttd", &["weir-broker"]),
    ("openraft", &["weir-broker"]),
    ("wincode", &["weir-wire"]),
    ("quinn", &["weir-proxy", "weir"]),
    ("instant-acme", &["weir-proxy"]),
    ("tokio-tungstenite", &["weir-node", "weir", "weir-tests"]),
];

const MAX_FILE_LINES: usize = 400;
const MAX_FUNCTION_LINES: usize = 70;

/// Longer than the limit, each with its reason.
const LONGER: &[(&str, &str)] = &[];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

#[test]
fn crates_depend_only_downwards() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let allowed: BTreeMap<_, _> = MAY_USE.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        for dependency in package["dependencies"].as_array().unwrap() {
            let used = dependency["name"].as_str().unwrap();
            let for_tests = dependency["kind"].as_str() == Some("dev");
            if let Some((_, tiers)) = ONLY_IN.iter().find(|(lib, _)| used.starts_with(lib))
                && !tiers.contains(&name)
                && !for_tests
            {
                wrong.push(format!("{name} uses {used}, which only {tiers:?} may know"));
            }
            if let Some(may_use) = allowed.get(name)
                && used.starts_with("weir")
                && !may_use.contains(&used)
                && !for_tests
            {
                wrong.push(format!("{name} uses {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = MAY_USE
        .iter()
        .map(|(name, _)| root().join(name.trim_start_matches("weir-")).join("src"))
        .chain([root().join("tests/src"), root().join("tests/tests")])
        .collect();
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 40, "the walk lost its way");
    found
}

#[test]
fn files_open_with_their_purpose_and_keep_their_size() {
    let longer: BTreeSet<_> = LONGER.iter().map(|(path, _)| *path).collect();
    let mut wrong = Vec::new();
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        if !text.starts_with("//!") {
            wrong.push(format!("{name}: does not open with what it is for"));
        }
        if is_test(&path) {
            continue;
        }
        // Tests stand last in a file and do not count.
        let tests =
            ["#[cfg(test)]\nmod ", "#[cfg(test)]\npub mod "].iter().filter_map(|mark| text.find(mark)).min();
        let code = tests.map_or(text.as_str(), |at| &text[..at]);
        if longer.contains(name.as_str()) {
            continue;
        }
        let lines = code.lines().count();
        if lines > MAX_FILE_LINES {
            wrong.push(format!("{name}: {lines} lines, {MAX_FILE_LINES} at most"));
        }
        for (function, lines) in long_functions(code) {
            wrong.push(format!("{name}: fn {function} has {lines} lines, {MAX_FUNCTION_LINES} at most"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A file of unit tests beside its module.
fn is_test(path: &Path) -> bool {
    path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n == "tests.rs" || n.ends_with("_tests.rs"))
}

/// Relies on rustfmt: a function ends at the `}` that stands as deep as its `fn`.
fn long_functions(code: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut long = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let words: Vec<&str> = line.split_whitespace().take_while(|w| !w.starts_with("//")).collect();
        let Some(at) = words.iter().position(|w| *w == "fn") else { continue };
        // A trait's method without a body.
        let head = lines[start..].iter().find(|l| l.ends_with(['{', ';', '}']));
        if head.is_some_and(|l| l.ends_with(';')) {
            continue;
        }
        let closing = format!("{}}}", " ".repeat(indent));
        let Some(length) = lines[start..].iter().position(|l| **l == closing) else { continue };
        if length + 1 > MAX_FUNCTION_LINES {
            let name = words.get(at + 1).map_or("?", |w| w.split(['(', '<']).next().unwrap_or(w));
            long.push((name.to_owned(), length + 1));
        }
    }
    long
}

#[test]
fn the_function_rule_can_fail() {
    let code = format!("fn long() {{\n{}}}\n", "    x();\n".repeat(MAX_FUNCTION_LINES));
    assert_eq!(long_functions(&code), [("long".to_owned(), MAX_FUNCTION_LINES + 2)]);
    let declared = format!("    fn declared(\n        &self,\n    ) -> u8;\n{code}");
    assert_eq!(long_functions(&declared).len(), 1, "a declaration has no length");
}

#[test]
fn architecture_names_only_what_exists() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut named = 0;
    for quoted in text.split('`').skip(1).step_by(2) {
        let is_path = quoted.contains('/') && quoted.ends_with(".rs") || quoted.ends_with(".toml");
        if !is_path || quoted.contains(['*', '{', ' ']) {
            continue;
        }
        named += 1;
        assert!(root().join(quoted).exists(), "ARCHITECTURE.md names {quoted}, which is not there");
    }
    assert!(named > 10, "ARCHITECTURE.md names hardly any file");
}
