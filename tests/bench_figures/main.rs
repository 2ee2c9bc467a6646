//! The project's figures: what is measured, against which peer, and what each must be. Measurements, so the one test is
//! ignored among the tests; `scripts/bench` runs it, installs the peers and shows what it wrote.
//!
//! Each round runs ours and the peers one after another, each round beginning with another one; what counts are the
//! ratios of the medians. `BENCH_FIGURES` names figures, `BENCH_SCALE` divides sizes and counts (for a look whether all
//! works), `ROUNDS` is how often each is repeated. What was measured is kept in `BENCH_OUT`, so that figures can be
//! measured one at a time: a figure measured again replaces what it was.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]
#![allow(clippy::print_stderr, clippy::as_conversions)]

mod chart;
#[path = "../common/mod.rs"]
mod common;
mod connections;
mod files;
mod growth;
#[path = "../faults/mounts.rs"]
#[allow(dead_code, clippy::print_stdout)]
mod mounts;
mod peers;
mod process;
#[path = "../tools/proxy.rs"]
mod proxy;
mod raw;
mod report;
mod resume;
mod sizes;
mod texts;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use postwire::config::descriptors_for;
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};

use report::{Record, Results};

/// What one measurement brings; an error says why it can't be done here.
type Measured = Result<Vec<Record>, String>;
type Measure = fn(&Bench) -> Measured;

/// All of them by name, in the order of the table.
const FIGURES: [(&str, Measure); 15] = [
    ("throughput", files::throughput),
    ("sealed", files::sealed),
    ("files", files::small_files),
    ("durable", files::small_files_on_ext4),
    ("far-files", files::small_files_far_away),
    ("far", files::large_file_far_away),
    ("ping", texts::ping),
    ("busy", texts::ping_beside_a_file),
    ("fan-out", texts::fan_out),
    ("uploads", connections::uploads_at_once),
    ("memory", connections::memory),
    ("idle", connections::texts_among_the_idle),
    ("size", sizes::static_binaries),
    ("start", files::one_small_file),
    ("resume", resume::half_sent),
];

/// How cost grows: measured when it is named, as it takes long.
const GROWTH: (&str, Measure) = ("growth", growth::growth);

/// How much is measured.
pub struct Bench {
    pub rounds: usize,
    scale: u64,
}

impl Bench {
    fn from_environment() -> Bench {
        let number = |name, default| match env::var(name) {
            Ok(word) => {
                word.parse::<u32>().ok().filter(|number| *number > 0).unwrap_or_else(|| panic!("{name}={word}"))
            }
            Err(_) => default,
        };
        Bench { rounds: number("ROUNDS", 5) as usize, scale: number("BENCH_SCALE", 1).into() }
    }

    /// A size or a count as it is measured now.
    pub fn scaled(&self, whole: u64) -> u64 {
        (whole / self.scale).max(1)
    }

    /// A number of connections: up to 100 of them is little enough to look whether all works.
    pub fn connections(&self, whole: u64) -> usize {
        self.scaled(whole).max(whole.min(100)) as usize
    }
}

#[test]
#[ignore = "a measurement"]
fn figures() {
    take_descriptors();
    let bench = Bench::from_environment();
    let wanted = env::var("BENCH_FIGURES").unwrap_or_default();
    let out = PathBuf::from(env::var("BENCH_OUT").expect("BENCH_OUT says where results go"));
    fs::create_dir_all(&out).unwrap();
    let mut results = Results::read(&out);
    let known: Vec<_> = FIGURES.into_iter().chain([GROWTH]).collect();
    let wanted: Vec<_> = wanted.split_whitespace().collect();
    for name in &wanted {
        assert!(known.iter().any(|(known, _)| known == name), "knows {}; not {name}", names(&known));
    }
    let mut now = Vec::new();
    for (name, measure) in known {
        let is_wanted = if wanted.is_empty() { name != GROWTH.0 } else { wanted.contains(&name) };
        if !is_wanted {
            continue;
        }
        eprintln!("bench: {name}");
        match measure(&bench) {
            Ok(records) => results.replace(name, &bench, records),
            Err(why) => {
                eprintln!("bench: {name}: left out: {why}");
                results.replace(name, &bench, Vec::new());
            }
        }
        now.push(name);
        // After each, as a later one may fail.
        results.write(&out, &FIGURES.map(|(name, _)| name), &now);
    }
}

/// As many as ten thousand connections want, at either end; who may not have them gets what there is.
fn take_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Some(u64::try_from(descriptors_for(2 * 10_000)).unwrap());
    if setrlimit(Resource::Nofile, Rlimit { current: wanted, maximum: wanted }).is_err() {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum.or(limit.current), ..limit }).unwrap();
    }
}

fn names(figures: &[(&str, Measure)]) -> String {
    figures.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

/// Lets time pass: between looks, or until all is still.
pub fn pause(time: Duration) {
    let begin = std::time::Instant::now();
    while let Some(left) = time.checked_sub(begin.elapsed()).filter(|left| !left.is_zero()) {
        thread::park_timeout(left);
    }
}
