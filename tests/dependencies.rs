//! What the program is made of: as many crates as README says, one version of each, all under licences that let it be given away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::process::Command;

/// Licences that ask for no more than their text, which goes along.
const ALLOWED: [&str; 9] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

struct Crate {
    name: String,
    version: String,
    licence: String,
}

/// All that is linked into a build with these features, itself included. The target is named so that the figures are the same on
/// every machine.
fn crates(features: &str) -> Vec<Crate> {
    let cargo = env::var_os("CARGO").unwrap_or("cargo".into());
    let mut command = Command::new(cargo);
    command.args(["tree", "--locked", "--offline", "--edges", "normal", "--target", "x86_64-unknown-linux-gnu"]);
    command.args(["--prefix", "none", "--no-dedupe", "--format", "{p}|{l}", "--features", features]);
    let output = command.output().unwrap();
    let (tree, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stderr}");
    let lines: BTreeSet<&str> = tree.lines().filter(|line| !line.is_empty()).collect();
    let parse = |line: &str| {
        let (package, licence) = line.split_once('|').unwrap();
        let mut words = package.split(' ').map(str::to_owned);
        Crate { name: words.next().unwrap(), version: words.next().unwrap(), licence: licence.to_owned() }
    };
    lines.into_iter().map(parse).collect()
}

/// Whether each part joined by AND has an alternative that is allowed: stricter than some expressions mean, never laxer.
fn is_allowed(expression: &str) -> bool {
    let alternative = |one: &str| ALLOWED.contains(&one.trim_matches([' ', '(', ')']));
    expression.split(" AND ").all(|part| part.replace('/', " OR ").split(" OR ").any(alternative))
}

#[test]
fn as_many_crates_as_readme_says() {
    let readme = fs::read_to_string("README.md").unwrap();
    let row = readme.lines().find(|line| line.starts_with("| static binary |")).unwrap();
    let words: Vec<&str> = row.split([' ', ',', ';']).filter(|word| !word.is_empty()).collect();
    let published: Vec<usize> =
        words.windows(2).filter(|pair| pair[1] == "crates").map(|pair| pair[0].parse().unwrap()).collect();
    let counted = ["full", "default"].map(|features| crates(features).len());
    assert_eq!(published, counted, "crates of a full and a default build, README and now: {row}");
}

#[test]
fn one_version_of_each_crate() {
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for one in crates("full") {
        versions.entry(one.name).or_default().push(one.version);
    }
    versions.retain(|_, versions| versions.len() > 1);
    assert!(versions.is_empty(), "{versions:?}");
}

#[test]
fn every_licence_is_one_that_is_allowed() {
    for one in crates("full") {
        assert!(is_allowed(&one.licence), "{} {}: {:?}", one.name, one.version, one.licence);
    }
    for (expression, expected) in [
        ("MIT/Apache-2.0", true),
        ("Unlicense OR MIT", true),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("GPL-3.0-only", false),
        ("MIT AND GPL-3.0-only", false),
        ("GPL-3.0-only WITH Classpath-exception-2.0", false),
        ("", false),
    ] {
        assert_eq!(is_allowed(expression), expected, "{expression:?}");
    }
}
