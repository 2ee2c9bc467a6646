//! How large the static binaries are.

use std::fs;
use std::path::Path;

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
    let row = |name: &str, what: &str, unit: &str, must: f64, aim: f64| {
        let size = fs::metadata(root.join("dist").join(name)).unwrap().len();
        let above = (size - empty) as f64 / if unit == "KiB" { 1024.0 } else { 1024.0 * 1024.0 };
        let figure = format!("static binary, {what}, above an empty `main` built the same way");
        Row::at_most(&[&figure, &bytes(size), &bytes(empty)], above, unit, must, aim)
    };
    Ok(vec![row("postwire-small", "small", "KiB", 700.0, 450.0), row("postwire", "full", "MiB", 1.8, 1.2)])
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
