//! How large the static binaries are.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::common::Scratch;
use crate::process::{command, run};
use crate::report::{bytes, Row};
use crate::{Bench, Measured};

pub fn static_binaries(_: &Bench) -> Measured {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut build = command("scripts/build-static", &[]);
    run({
        build.current_dir(root);
        build
    });
    let scratch = Scratch::new();
    let empty = empty_main(root, &scratch);
    let sizes = ["postwire", "postwire-small"].map(|name| fs::metadata(root.join("dist").join(name)).unwrap().len());
    let [full, small] = sizes.map(|size| (size - empty) as f64 / 1024.0);
    let of_crates = |size: u64, features| format!("{} of {} crates", bytes(size), crates(root, features));
    let ours = format!("{}; `postwire-small`: {}", of_crates(sizes[0], "full"), of_crates(sizes[1], "default"));
    let peer = format!("an empty `main` built the same way {}; compared is what is above", bytes(empty));
    Ok(vec![
        Row::at_most(&["static binary", &ours, &peer], full / 1024.0, "MiB", 1.8, 1.2),
        Row::at_most(&["the same, `postwire-small`", &bytes(sizes[1]), &peer], small, "KiB", 700.0, 450.0),
    ])
}

/// All that is linked into a build with these features, itself included.
fn crates(root: &Path, features: &str) -> usize {
    let mut tree = command("cargo", &["tree", "--locked", "-e", "normal", "--prefix", "none", "--no-dedupe"]);
    tree.args(["--target", "x86_64-unknown-linux-gnu", "--features", features]);
    let output = tree.stdout(Stdio::piped()).current_dir(root).output().unwrap();
    assert!(output.status.success(), "cargo tree: {}", output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|line| !line.is_empty()).collect::<BTreeSet<_>>().len()
}

/// With the same profile, for the same target.
fn empty_main(root: &Path, scratch: &Scratch) -> u64 {
    let package = scratch.directory("empty");
    fs::create_dir(format!("{package}/src")).unwrap();
    fs::write(format!("{package}/src/main.rs"), "fn main() {}\n").unwrap();
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let profile = manifest.split_once("[profile.release]").unwrap().1.split("\n[").next().unwrap();
    let head = "[package]\nname = \"empty\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\n[profile.release]";
    fs::write(format!("{package}/Cargo.toml"), format!("{head}{profile}")).unwrap();
    let script = ". \"$root/scripts/lib.sh\"\ncargo build --quiet --release --target \"$(static_target)\"\n\
                  cp \"target/$(static_target)/release/empty\" empty\n";
    let mut build = command("sh", &["-euc", script]);
    build.current_dir(&package).env("root", root).env("CARGO_TARGET_DIR", format!("{package}/target"));
    build.env("RUSTFLAGS", "-C target-feature=+crt-static");
    run(build);
    fs::metadata(format!("{package}/empty")).unwrap().len()
}
