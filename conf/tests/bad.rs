//! Each file in `bad/` carries the report it must get, line by line: `#> line:column: key: …`.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use weir_conf::{Sources, load};

#[test]
fn each_bad_file_gets_the_report_it_carries() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad");
    let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    assert!(names.len() >= 10, "{names:?}");
    let mut wrong = String::new();
    for path in names {
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let expected: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("#> ")).collect();
        let sources = Sources::new().file(&path).environment([("EMPTY".into(), "".into())]);
        let found = match load(&sources) {
            Ok(_) => "no mistake found".to_owned(),
            Err(errors) => errors.to_string().replace(&format!("{}:", path.display()), ""),
        };
        if found.lines().collect::<Vec<_>>() != expected {
            let found: String = found.lines().map(|line| format!("#> {line}\n")).collect();
            wrong.push_str(&format!("--- {name} says:\n{found}"));
        }
    }
    assert!(wrong.is_empty(), "reports other than the files carry:\n{wrong}");
}
