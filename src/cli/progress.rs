//! How far the files of a run are: one line for all of them while they go, and one at the end. A function of events and
//! moments; `print` draws it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use postwire::{escape, Direction, Event, Kind, Receipt, TransferId};

use super::columns::{shortened, width};
use super::units;

/// The rate is that of the last seconds.
const RATE_OVER: Duration = Duration::from_secs(5);
/// A run that took longer, or had more than one file, ends with a line about all of it.
const SHORT_RUN: Duration = Duration::from_secs(1);
/// A name that is shorter than this tells nothing.
const NAME_COLUMNS_LEAST: usize = 8;

/// What a run has done so far.
pub struct Progress {
    started: Instant,
    /// What is to come in all, where that is known.
    files_expected: Option<usize>,
    bytes_expected: Option<u64>,
    open: BTreeMap<(bool, TransferId), Open>,
    /// The file that was last heard of.
    name: String,
    files_done: usize,
    files_failed: usize,
    files_already: usize,
    bytes_done: u64,
    bytes_resumed: u64,
    /// Of a file that somebody has whom it is for.
    relayed: Option<Receipt>,
    /// The connection is gone and will be tried again.
    is_cut_off: bool,
    samples: VecDeque<(Instant, u64)>,
}

/// A transfer that goes on.
struct Open {
    bytes: u64,
    /// Bytes that were there when it was first heard of.
    held: u64,
}

impl Progress {
    /// A run that begins; so many files and bytes will come, where that is known.
    pub fn new(files_expected: Option<usize>, bytes_expected: Option<u64>, now: Instant) -> Progress {
        Progress {
            started: now,
            files_expected,
            bytes_expected,
            open: BTreeMap::new(),
            name: String::new(),
            files_done: 0,
            files_failed: 0,
            files_already: 0,
            bytes_done: 0,
            bytes_resumed: 0,
            relayed: None,
            is_cut_off: false,
            samples: VecDeque::from([(now, 0)]),
        }
    }

    /// Takes in what happened; true when it changed what is to be seen.
    pub fn hear(&mut self, event: &Event, now: Instant) -> bool {
        match event {
            Event::Progress(progress) => {
                self.is_cut_off = false;
                self.name = escape(&progress.name);
                let key = (progress.direction == Direction::Incoming, progress.transfer);
                let open = self.open.entry(key).or_insert(Open { bytes: 0, held: progress.bytes });
                open.bytes = progress.bytes;
                open.held = open.held.min(progress.bytes);
            }
            // What is for others is done when they have it, once.
            Event::Sent(receipt) if receipt.peer.is_some() => {
                self.relayed = Some(receipt.clone());
                return false;
            }
            Event::Relayed { transfer } => match self.relayed.take_if(|receipt| receipt.transfer == *transfer) {
                Some(receipt) => self.stored(&receipt),
                None => return false,
            },
            Event::Sent(receipt) | Event::Received(receipt) => self.stored(receipt),
            Event::TransferFailed(failure) => {
                self.open.remove(&(failure.direction == Direction::Incoming, failure.transfer));
                self.failed();
            }
            Event::Retrying { .. } => self.is_cut_off = true,
            _ => return false,
        }
        self.sample(now);
        true
    }

    /// A file ended that never was a transfer.
    pub fn failed(&mut self) {
        self.files_failed += 1;
        // Its size is not known any more.
        self.bytes_expected = None;
    }

    fn stored(&mut self, receipt: &Receipt) {
        let open = self.open.remove(&(receipt.direction == Direction::Incoming, receipt.transfer));
        if receipt.kind == Kind::Directory {
            return;
        }
        // A receipt counts what travelled on the last connection; this run may have had others before.
        let resumed = open.map_or(u64::MAX, |open| open.held).min(receipt.resumed_bytes);
        self.files_done += 1;
        self.files_already += usize::from(receipt.already);
        self.bytes_done += receipt.bytes;
        self.bytes_resumed += if receipt.already { receipt.bytes } else { resumed };
        self.name = escape(&receipt.name);
        self.is_cut_off = false;
    }

    /// Bytes that are over there, and how many of them travelled.
    fn bytes(&self) -> (u64, u64) {
        let there = self.bytes_done + self.open.values().map(|open| open.bytes).sum::<u64>();
        let held = self.bytes_resumed + self.open.values().map(|open| open.held).sum::<u64>();
        (there, there.saturating_sub(held))
    }

    fn sample(&mut self, now: Instant) {
        self.samples.push_back((now, self.bytes().1));
        // One sample before the span is kept, so that there is always a span.
        while self.samples.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= RATE_OVER) {
            self.samples.pop_front();
        }
        // A thousand small files a second are not a thousand samples.
        if self.samples.len() > 100 {
            self.samples = self.samples.iter().copied().step_by(2).collect();
        }
    }

    /// Bytes a second, lately.
    fn rate(&self, now: Instant) -> u64 {
        let (at, before) = self.samples.front().copied().unwrap_or((self.started, 0));
        per_second(self.bytes().1.saturating_sub(before), now.duration_since(at))
    }

    /// The line, at most `columns` wide.
    pub fn line(&self, now: Instant, columns: usize) -> String {
        let (there, _) = self.bytes();
        let total = self.bytes_expected.filter(|&total| total >= there && total > 0);
        let mut facts = Vec::new();
        match total {
            Some(total) => facts.push(format!("{:3}%", u128::from(there) * 100 / u128::from(total))),
            None => facts.push(units::show_size(there)),
        }
        if self.is_cut_off {
            facts.push("connection lost, trying again".to_owned());
        } else {
            let rate = self.rate(now);
            facts.push(format!("{}/s", units::show_size(rate)));
            let left = total.and_then(|total| (total - there).checked_div(rate));
            facts.extend(left.map(|seconds| format!("{} left", units::show_time(seconds))));
        }
        let ended = self.files_done + self.files_failed;
        match self.files_expected {
            Some(files) if files > 1 => facts.push(format!("{ended} of {files} files")),
            None if ended > 1 => facts.push(format!("{ended} files")),
            _ => {}
        }
        // From the end, so that the first facts stay on the narrowest terminal.
        while facts.len() > 1 && width(&facts.join("  ")) > columns {
            facts.pop();
        }
        let line = facts.join("  ");
        match columns.checked_sub(width(&line) + 2) {
            Some(room) if room >= NAME_COLUMNS_LEAST => format!("{line}  {}", shortened(&self.name, room)),
            _ => shortened(&line, columns),
        }
    }

    /// What to say at the end, where it is worth a line.
    pub fn summary(&self, now: Instant) -> Option<String> {
        let took = now.duration_since(self.started);
        let ended = self.files_done + self.files_failed;
        if ended == 0 || (ended == 1 && took < SHORT_RUN) {
            return None;
        }
        let travelled = self.bytes_done.saturating_sub(self.bytes_resumed);
        let plural = if self.files_done == 1 { "" } else { "s" };
        let seconds = took.as_secs_f64();
        let mut line = format!("{} file{plural}, {} bytes in {seconds:.1} s", self.files_done, self.bytes_done);
        if travelled > 0 {
            line.push_str(&format!(", {}/s", units::show_size(per_second(travelled, took))));
        }
        if self.files_already > 0 {
            line.push_str(&format!(", {} already there", self.files_already));
        }
        if self.bytes_resumed > 0 {
            line.push_str(&format!(", {} bytes were there", self.bytes_resumed));
        }
        if self.files_failed > 0 {
            line.push_str(&format!(", {} failed", self.files_failed));
        }
        Some(line)
    }
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    let ms = time.as_millis().max(1);
    u64::try_from(u128::from(bytes) * 1000 / ms).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use postwire::Progress as Heard;

    fn heard(transfer: TransferId, name: &str, bytes: u64, size_bytes: u64) -> Event {
        let direction = Direction::Outgoing;
        Event::Progress(Heard { transfer, direction, name: name.into(), bytes, size_bytes: Some(size_bytes) })
    }

    fn stored(transfer: TransferId, bytes: u64, resumed_bytes: u64) -> Event {
        Event::Sent(Receipt {
            direction: Direction::Outgoing,
            transfer,
            kind: Kind::File,
            peer: None,
            address: None,
            request: None,
            source: None,
            name: b"a".to_vec(),
            stored: b"a".to_vec(),
            bytes,
            crc32: 0,
            durable: true,
            already: false,
            resumed_bytes,
            grew: false,
            elapsed: Duration::ZERO,
        })
    }

    const KIB: u64 = 1024;

    #[test]
    fn the_line_tells_how_much_how_fast_and_how_long() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut progress = Progress::new(Some(3), Some(1000 * KIB), start);
        progress.hear(&heard(1, "one.bin", 0, 500 * KIB), at(0));
        progress.hear(&heard(1, "one.bin", 100 * KIB, 500 * KIB), at(1));
        assert_eq!(progress.line(at(1), 79), " 10%  100.0 KiB/s  0:09 left  0 of 3 files  one.bin");
        progress.hear(&stored(1, 500 * KIB, 0), at(5));
        assert_eq!(progress.line(at(5), 79), " 50%  100.0 KiB/s  0:05 left  1 of 3 files  a");
        assert_eq!(progress.line(at(5), 20), " 50%  100.0 KiB/s");
        assert_eq!(progress.line(at(5), 4), " 50%");
    }

    #[test]
    fn the_line_fits_whatever_the_name_is() {
        let now = Instant::now();
        let mut progress = Progress::new(Some(2), Some(1000), now);
        progress.hear(&heard(1, &"世界\u{1b}[2Je\u{301}".repeat(50), 10, 1000), now);
        for columns in 1..200 {
            let line = progress.line(now, columns);
            assert!(width(&line) <= columns && !line.contains('\u{1b}'), "{columns}: {line}");
        }
    }

    #[test]
    fn without_a_total_there_is_no_percentage() {
        let now = Instant::now();
        let mut progress = Progress::new(Some(1), None, now);
        progress.hear(&heard(1, "stream", 0, 0), now);
        progress.hear(&heard(1, "stream", 3 * KIB * KIB, 0), now + Duration::from_secs(1));
        assert_eq!(progress.line(now + Duration::from_secs(1), 79), "3.0 MiB  3.0 MiB/s  stream");
    }

    #[test]
    fn what_was_there_before_does_not_make_the_line_faster() {
        let now = Instant::now();
        let mut progress = Progress::new(Some(1), Some(1000), now);
        progress.hear(&heard(1, "a", 900, 1000), now);
        progress.hear(&heard(1, "a", 910, 1000), now + Duration::from_secs(1));
        assert!(progress.line(now + Duration::from_secs(1), 79).starts_with(" 91%  10 B/s"));
        progress.hear(&stored(1, 1000, 900), now + Duration::from_secs(2));
        let summary = progress.summary(now + Duration::from_secs(2)).unwrap();
        assert_eq!(summary, "1 file, 1000 bytes in 2.0 s, 50 B/s, 900 bytes were there");
    }

    #[test]
    fn what_travelled_before_a_break_of_this_run_counts_for_its_rate() {
        let now = Instant::now();
        let mut progress = Progress::new(Some(1), Some(1000), now);
        progress.hear(&heard(1, "a", 0, 1000), now);
        progress.hear(&heard(1, "a", 500, 1000), now);
        progress.hear(&Event::Retrying { error: postwire::Error::Closed, after: Duration::ZERO }, now);
        progress.hear(&heard(1, "a", 400, 1000), now);
        progress.hear(&stored(1, 1000, 400), now);
        let summary = progress.summary(now + Duration::from_secs(2)).unwrap();
        assert_eq!(summary, "1 file, 1000 bytes in 2.0 s, 500 B/s");
    }

    #[test]
    fn what_did_not_travel_has_no_rate() {
        let now = Instant::now();
        let mut progress = Progress::new(Some(2), Some(20), now);
        let Event::Sent(receipt) = stored(1, 10, 0) else { panic!() };
        for transfer in 1..=2 {
            progress.hear(&Event::Sent(Receipt { transfer, already: true, ..receipt.clone() }), now);
        }
        let summary = progress.summary(now + Duration::from_secs(2)).unwrap();
        assert_eq!(summary, "2 files, 20 bytes in 2.0 s, 2 already there, 20 bytes were there");
    }

    #[test]
    fn one_file_that_was_quick_needs_no_summary() {
        let now = Instant::now();
        let mut progress = Progress::new(Some(1), Some(10), now);
        progress.hear(&stored(1, 10, 0), now);
        assert_eq!(progress.summary(now), None);
        progress.failed();
        assert!(progress.summary(now).unwrap().ends_with(", 1 failed"));
    }
}
