//! What breaks, damages and fills up, many times over: each programme runs the real binary and prints one line of counts.
//!
//! They are slow, so `cargo test` passes over them; `scripts/test-slow` runs them whole, and a tenth of them in CI.
//! `POSTWIRE_FAULTS` says how much: `full`, or a tenth. Every random choice comes from the number of its round, so
//! `POSTWIRE_ROUND=17` runs that round alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]
#![allow(clippy::as_conversions, clippy::should_implement_trait)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../tools/proxy.rs"]
mod proxy;

mod attackers;
mod bits;
mod disk;
mod kill;
mod memory;
mod mounts;
mod network;
mod power;
mod relay;
mod slow;
mod syscalls;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use common::until;

/// Counts what the rounds of a programme did, and says so in one line at the end.
pub struct Programme {
    name: &'static str,
    rounds: u64,
    started: Instant,
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

/// Whether all of it is wanted, or a tenth.
pub fn is_full() -> bool {
    env::var("POSTWIRE_FAULTS").is_ok_and(|how_much| how_much == "full")
}

impl Programme {
    /// `full_rounds` of them, or a tenth.
    pub fn new(name: &'static str, full_rounds: u64) -> Programme {
        let rounds = if is_full() { full_rounds } else { full_rounds.div_ceil(10) };
        Programme { name, rounds, started: Instant::now(), counts: Mutex::default() }
    }

    /// The numbers of the rounds to run: each seeds its own [`Random`].
    pub fn rounds(&self) -> Range<u64> {
        match env::var("POSTWIRE_ROUND").ok().and_then(|round| round.parse().ok()) {
            Some(round) => round..round + 1,
            None => 0..self.rounds,
        }
    }

    /// Runs every round and reports, some at a time where they mostly wait, each in a place of its thread. A round that panics
    /// leaves its place, is named, and fails the programme at the end.
    pub fn run<P>(&self, at_a_time: usize, place: impl Fn() -> P + Sync, round: impl Fn(u64, &P) + Sync) {
        let rounds = Mutex::new(self.rounds());
        let next = || rounds.lock().unwrap().next();
        let failed = Mutex::new(Vec::new());
        let work = || {
            let mut here = place();
            while let Some(number) = next() {
                if panic::catch_unwind(AssertUnwindSafe(|| round(number, &here))).is_err() {
                    println!("{}: round {number} failed", self.name);
                    failed.lock().unwrap().push(number);
                    here = place();
                }
            }
        };
        thread::scope(|scope| (0..at_a_time).for_each(|_| drop(scope.spawn(work))));
        self.report();
        let failed = failed.into_inner().unwrap();
        assert!(failed.is_empty(), "rounds that failed: {failed:?}");
    }

    /// One more of what happened.
    pub fn count(&self, what: &'static str) {
        self.add(what, 1);
    }

    /// More of what happened.
    pub fn add(&self, what: &'static str, how_much: u64) {
        *self.counts.lock().unwrap().entry(what).or_default() += how_much;
    }

    /// The most of what happened in one round.
    pub fn most(&self, what: &'static str, how_much: u64) {
        let mut counts = self.counts.lock().unwrap();
        let most = counts.entry(what).or_default();
        *most = how_much.max(*most);
    }

    /// Prints the line.
    pub fn report(&self) {
        let counts = self.counts.lock().unwrap();
        let counts: Vec<_> = counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
        let rounds = self.rounds().count();
        println!(
            "{}: {rounds} rounds, {}; {:.0} s",
            self.name,
            counts.join(", "),
            self.started.elapsed().as_secs_f64()
        );
    }
}

/// Lets time go by: to hit a random moment, never in the hope that something has happened by then.
#[allow(clippy::disallowed_methods)]
pub fn pause(time: Duration) {
    thread::sleep(time);
}

/// The value of a key in one line of `--json`, as it stands there without quotes; enough for names that need no escape.
pub fn json_value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!("\"{key}\":"))?;
    match rest.strip_prefix('"') {
        Some(text) => text.split_once('"').map(|(value, _)| value),
        None => rest.split_once([',', '}']).map(|(value, _)| value),
    }
}

/// The names in a directory, sorted.
pub fn names_in(directory: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(directory.as_ref()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Whether a name is a partial's.
pub fn is_partial(name: &str) -> bool {
    name.starts_with(".postwire-") && name.ends_with(".part")
}

/// The choices of one round: splitmix64, the same for the same round.
pub struct Random(u64);

impl Random {
    /// Those of this round.
    pub fn of_round(round: u64) -> Random {
        Random(round.wrapping_mul(0xD134_2543_DE82_EF95) ^ 0x2545_F491_4F6C_DD1D)
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
