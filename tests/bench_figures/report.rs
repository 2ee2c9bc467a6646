//! What was measured, kept as lines of tab-separated words in `figures.tsv`; beside it the same as a table for a terminal, for
//! README, and as a chart. No measurement here.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{chart, Bench};

#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    Row(Row),
    /// One bar of a chart.
    Bar {
        chart: String,
        label: String,
        value: f64,
    },
    /// How a cost grows: one step of a series.
    Step {
        series: String,
        at: String,
        cost: String,
    },
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub figure: String,
    pub ours: String,
    pub peer: String,
    /// What is compared with the bounds, and its unit; a ratio has none.
    pub value: f64,
    pub unit: String,
    /// Whether more is better.
    pub at_least: bool,
    pub must: f64,
    pub aim: f64,
}

impl Row {
    /// Ours is to be so many times as good as the peer, at least.
    pub fn at_least(what: &[&str; 3], value: f64, must: f64, aim: f64) -> Record {
        Row::record(what, value, "", true, [must, aim])
    }

    /// Ours is to be so many times the peer, or so many of a unit, at most.
    pub fn at_most(what: &[&str; 3], value: f64, unit: &str, must: f64, aim: f64) -> Record {
        Row::record(what, value, unit, false, [must, aim])
    }

    fn record(
        [figure, ours, peer]: &[&str; 3],
        value: f64,
        unit: &str,
        at_least: bool,
        [must, aim]: [f64; 2],
    ) -> Record {
        let [figure, ours, peer, unit] = [figure, ours, peer, unit].map(|word| (*word).to_owned());
        Record::Row(Row { figure, ours, peer, value, unit, at_least, must, aim })
    }

    fn meets(&self, bound: f64) -> bool {
        if self.at_least {
            self.value >= bound
        } else {
            self.value <= bound
        }
    }

    /// The columns of the table.
    fn cells(&self) -> [String; 7] {
        let unit = if self.unit.is_empty() { String::new() } else { format!(" {}", self.unit) };
        let sign = if self.at_least { "≥" } else { "≤" };
        let bound = |bound: f64| format!("{sign} {bound}{unit}");
        let met = if self.meets(self.aim) {
            "aim"
        } else if self.meets(self.must) {
            "must"
        } else {
            "no"
        };
        let value = format!("{}{unit}", digits(self.value));
        [
            self.figure.clone(),
            self.ours.clone(),
            self.peer.clone(),
            value,
            bound(self.must),
            bound(self.aim),
            met.into(),
        ]
    }
}

/// Three digits or so: more would claim what was not measured.
pub fn digits(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

pub fn seconds(value: f64) -> String {
    match value {
        small if small < 0.001 => format!("{} µs", digits(value * 1e6)),
        small if small < 1.0 => format!("{} ms", digits(value * 1e3)),
        _ => format!("{} s", digits(value)),
    }
}

pub fn bytes(value: u64) -> String {
    const UNITS: [&str; 4] = ["bytes", "KiB", "MiB", "GiB"];
    let steps = if value == 0 { 0 } else { (value.ilog2() / 10).min(3) };
    let value = value as f64 / f64::from(1_u32 << (10 * steps));
    let shown = if value.fract() == 0.0 { format!("{value:.0}") } else { digits(value) };
    format!("{shown} {}", UNITS[steps as usize])
}

pub fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap()).collect();
    groups.join(",")
}

/// The middle one, or between the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[half]
    } else {
        (sorted[half - 1] + sorted[half]) / 2.0
    }
}

pub fn p99(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() - 1) * 99 / 100]
}

/// All that is known.
pub struct Results(Vec<Line>);

#[derive(Clone)]
struct Line {
    name: String,
    /// When, how often, how small.
    run: [String; 3],
    record: Record,
}

impl Results {
    pub fn read(directory: &Path) -> Results {
        let text = fs::read_to_string(directory.join("figures.tsv")).unwrap_or_default();
        Results(text.lines().filter_map(Line::parse).collect())
    }

    pub fn replace(&mut self, name: &str, bench: &Bench, records: Vec<Record>) {
        self.0.retain(|line| line.name != name);
        let date = Command::new("date").arg("+%F").output().unwrap();
        let date = String::from_utf8(date.stdout).unwrap().trim().to_owned();
        let run = [date, bench.rounds.to_string(), bench.scale.to_string()];
        self.0.extend(records.into_iter().map(|record| Line { name: name.to_owned(), run: run.clone(), record }));
    }

    /// Everything that is known, and as a table for a terminal what was measured now.
    pub fn write(&mut self, directory: &Path, order: &[&str], now: &[&str]) {
        self.0.sort_by_key(|line| order.iter().position(|name| *name == line.name).unwrap_or(order.len()));
        let put = |name: &str, text: String| fs::write(directory.join(name), text).unwrap();
        put("figures.tsv", self.0.iter().map(Line::to_text).collect());
        put("table.txt", Results(self.0.iter().filter(|line| now.contains(&&*line.name)).cloned().collect()).table());
        put("table.md", self.markdown());
        put("chart.svg", chart::svg(&self.bars()));
    }

    fn rows(&self) -> Vec<[String; 7]> {
        let rows = self.0.iter().filter_map(|line| match &line.record {
            Record::Row(row) => Some(row.cells()),
            _ => None,
        });
        rows.collect()
    }

    fn bars(&self) -> Vec<(&str, &str, f64)> {
        let bars = self.0.iter().filter_map(|line| match &line.record {
            Record::Bar { chart, label, value } => Some((chart.as_str(), label.as_str(), *value)),
            _ => None,
        });
        bars.collect()
    }

    /// Each series with its steps.
    fn growth(&self) -> Vec<(&str, String)> {
        let mut all: Vec<(&str, String)> = Vec::new();
        for line in &self.0 {
            let Record::Step { series, at, cost } = &line.record else { continue };
            match all.last_mut().filter(|(last, _)| last == series) {
                Some((_, steps)) => write!(steps, "; {at}: {cost}").unwrap(),
                None => all.push((series, format!("{at}: {cost}"))),
            }
        }
        all
    }

    fn table(&self) -> String {
        let mut rows = self.rows();
        if !rows.is_empty() {
            rows.insert(0, HEAD.map(str::to_owned));
        }
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
        let mut text = format!("{}\n\n", self.caption());
        for row in &rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            writeln!(text, "{}", cells.collect::<Vec<_>>().join(" | ").trim_end()).unwrap();
        }
        for (series, steps) in self.growth() {
            writeln!(text, "\n{series}\n  {}", steps.replace("; ", "\n  ")).unwrap();
        }
        text
    }

    fn markdown(&self) -> String {
        let mut text = format!(
            "{} What a figure needs is in its row: `must` to be released, `aim` to be content. Where ours does more than a \
             peer, the figure says so.\n\n![Throughput against peers](scripts/bench.svg)\n\n| {} |\n|{}\n",
            self.caption(),
            HEAD.join(" | "),
            " --- |".repeat(HEAD.len())
        );
        for row in self.rows() {
            writeln!(text, "| {} |", row.map(|cell| cell.replace('|', "\\|")).join(" | ")).unwrap();
        }
        let growth = self.growth();
        if !growth.is_empty() {
            text += "\nHow cost grows (`scripts/bench growth`):\n\n| what | |\n| --- | --- |\n";
            growth.iter().for_each(|(series, steps)| writeln!(text, "| {series} | {steps} |").unwrap());
        }
        text
    }

    /// When, where and how.
    fn caption(&self) -> String {
        let column = |index: usize| {
            let mut values: Vec<&str> = self.0.iter().map(|line| line.run[index].as_str()).collect();
            values.sort_unstable();
            values.dedup();
            values
        };
        let dates = column(0);
        let when = match dates.as_slice() {
            [first, .., last] => format!("{first} to {last}"),
            [only] => (*only).to_owned(),
            [] => "never".to_owned(),
        };
        let scales = column(2);
        let trial = if scales.iter().any(|scale| *scale != "1") {
            format!(" A trial: sizes and counts divided by {}, no measurement.", scales.join(" or "))
        } else {
            String::new()
        };
        let rounds = column(1).join(" or ");
        format!(
            "Measured {when} on {}, by `scripts/bench`: medians of {rounds} interleaved rounds, so ratios count.{trial}",
            machine()
        )
    }
}

fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let value = |text: &str, key: &str| {
        text.lines()
            .filter(|line| line.starts_with(key))
            .find_map(|line| Some(line.split_once(':')?.1.trim().to_owned()))
    };
    let cores = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let model = value(&cpus, "model name").map_or(String::new(), |model| format!(" of {model}"));
    let memory = value(&read("/proc/meminfo"), "MemTotal").and_then(|size| size.split(' ').next()?.parse::<u64>().ok());
    let memory = memory.map_or(String::new(), |kib| format!(", {} GiB", (kib + (1 << 19)) >> 20));
    let release = read("/proc/sys/kernel/osrelease");
    let release = release.split(['.', '-']).take(2).collect::<Vec<_>>().join(".");
    format!("{cores} cores{model}{memory}, Linux {release}")
}

impl Line {
    fn to_text(&self) -> String {
        let mut words = vec![self.name.clone()];
        words.extend(self.run.clone());
        words.extend(match &self.record {
            Record::Row(row) => {
                let Row { figure, ours, peer, value, unit, at_least, must, aim } = row;
                let numbers =
                    [value.to_string(), unit.clone(), at_least.to_string(), must.to_string(), aim.to_string()];
                [vec!["row".into(), figure.clone(), ours.clone(), peer.clone()], numbers.to_vec()].concat()
            }
            Record::Bar { chart, label, value } => {
                vec!["bar".into(), chart.clone(), label.clone(), value.to_string()]
            }
            Record::Step { series, at, cost } => vec!["step".into(), series.clone(), at.clone(), cost.clone()],
        });
        words.join("\t") + "\n"
    }

    /// A line of another version of this program is passed over.
    fn parse(line: &str) -> Option<Line> {
        let words: Vec<&str> = line.split('\t').collect();
        let (head, words) = words.split_at_checked(5)?;
        let word = |index: usize| words.get(index).map(|word| (*word).to_owned());
        let number = |index: usize| words.get(index)?.parse().ok();
        let record = match head[4] {
            "row" => Record::Row(Row {
                figure: word(0)?,
                ours: word(1)?,
                peer: word(2)?,
                value: number(3)?,
                unit: word(4)?,
                at_least: words.get(5)?.parse().ok()?,
                must: number(6)?,
                aim: number(7)?,
            }),
            "bar" => Record::Bar { chart: word(0)?, label: word(1)?, value: number(2)? },
            "step" => Record::Step { series: word(0)?, at: word(1)?, cost: word(2)? },
            _ => return None,
        };
        let run = [head[1], head[2], head[3]].map(str::to_owned);
        Some(Line { name: head[0].to_owned(), run, record })
    }
}

const HEAD: [&str; 7] = ["figure", "ours", "peer", "ratio", "must", "aim", "met"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let row = Row::at_most(&["a | b", "1 s", "nc"], 1.25, "KiB", 3.0, 1.0);
        let bar = Record::Bar { chart: "one".into(), label: "nc".into(), value: 0.5 };
        let step = Record::Step { series: "files".into(), at: "10".into(), cost: "1 s".into() };
        for record in [row, bar, step] {
            let run = ["2026-01-02", "5", "1"].map(str::to_owned);
            let text = Line { name: "x".into(), run, record: record.clone() }.to_text();
            assert_eq!(Line::parse(text.trim_end()).unwrap().record, record);
        }
        assert!(Line::parse("x\t2026-01-02\t5\t1\trow\ta").is_none());
    }

    #[test]
    fn what_is_met_depends_on_which_way_is_better() {
        let met = |record| match record {
            Record::Row(row) => row.cells()[6].clone(),
            _ => unreachable!("a row"),
        };
        let what = ["", "", ""];
        let fast = [2.0, 1.8, 1.0].map(|value| met(Row::at_least(&what, value, 1.5, 2.0)));
        assert_eq!(fast, ["aim", "must", "no"]);
        let small = [1.0, 1.3, 1.6].map(|value| met(Row::at_most(&what, value, "", 1.5, 1.2)));
        assert_eq!(small, ["aim", "must", "no"]);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([0.123, 12.34, 1234.5].map(digits), ["0.12", "12.3", "1234"]);
        assert_eq!(
            [0, 1023, 4096, 1 << 30, 10 << 30].map(bytes),
            ["0 bytes", "1023 bytes", "4 KiB", "1 GiB", "10 GiB"]
        );
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0])], [2.0, 2.5]);
        assert_eq!(p99(&(0..=100).map(f64::from).collect::<Vec<_>>()), 99.0);
    }
}
