//! How cost grows: throughput with a file's size, memory with idle clients, time with the number of files.

use crate::common::Scratch;
use crate::connections::with_idle_clients;
use crate::files::{alone, tree_of};
use crate::report::{bytes, digits, seconds, thousands, Record};
use crate::{Bench, Measured};

const MIB: u64 = 1 << 20;

pub fn growth(bench: &Bench) -> Measured {
    let mut records = Vec::new();
    let mut step = |series: &str, at: String, cost: String| {
        records.push(Record::Step { series: series.into(), at, cost });
    };
    for size in [MIB, 8 * MIB, 64 * MIB, 512 * MIB, 4096 * MIB, 8192 * MIB].map(|size| bench.scaled(size)) {
        // A copy lies on either side.
        let cost = if memory_available() < size * 5 / 2 {
            "left out, too little memory".to_owned()
        } else {
            let scratch = Scratch::new();
            let file = scratch.file("file", size, 1);
            let time = alone(bench, &file, &scratch.directory("inbox"));
            format!("{} GB/s", digits(size as f64 / 1e9 / time))
        };
        step("throughput of one file, tmpfs", bytes(size), cost);
    }
    for count in [1, 10, 100, 1000, 10_000].map(|count| bench.connections(count)) {
        let cost = match with_idle_clients(count, false) {
            Ok((_, with)) => format!("{} MiB", digits(with / 1024.0)),
            Err(why) => format!("left out, {why}"),
        };
        step("memory of a server with idle clients", thousands(count as u64), cost);
    }
    for count in [1, 10, 100, 1000, 10_000, 100_000].map(|count| bench.scaled(count)) {
        let scratch = Scratch::new();
        let time = alone(bench, &tree_of(&scratch, count), &scratch.directory("inbox"));
        step("time for files of 4 KiB, tmpfs", thousands(count), seconds(time));
    }
    Ok(records)
}

fn memory_available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}
