//! Power cuts: at any moment the image of a real file system is what a disk would hold, and from it everything must go on.
//!
//! The receiving ext4 lies in an image file on another one, which is frozen in the moment of the cut: whatever the inner file
//! system had given to its device by then is in the image, whatever was only in memory is not, and a sync that was under way
//! is cut in its middle. The image is copied, mounted, which recovers its journal, and looked at. A write cache in the device
//! that forgets or reorders is not modelled: what was written before the cut is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use crate::common::{client, client_spawn, random_file, Run, Running, Scratch, Server, Signal};
use crate::mounts::{in_private_namespace, make_ext4, run, Frozen, Mount};
use crate::proxy::{Faults, Line, Proxy};
use crate::{is_partial, json_value, names_in, pause, Programme, Random};

const IMAGE_BYTES: u64 = 64 * 1024 * 1024;

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn a_power_cut_loses_nothing_that_was_acknowledged() {
    if !in_private_namespace("power::a_power_cut_loses_nothing_that_was_acknowledged") {
        return;
    }
    let programme = Programme::new("power", 300);
    let scratch = Scratch::new();
    // In memory, so that the time goes into cuts.
    let memory = Mount::tmpfs(&scratch, "memory", "size=1g");
    make_ext4(&memory.path("outer"), 3 * IMAGE_BYTES, &["-O", "^has_journal"]);
    let outer = Mount::new(&scratch, "outer", &["-o", "loop,noatime", &memory.path("outer")]);
    make_ext4(&memory.path("template"), IMAGE_BYTES, &[]);
    for round in programme.rounds() {
        Round::new(round, &scratch, &memory, &outer).go(&programme);
    }
    programme.report();
}

/// What the name held before the client came.
#[derive(Clone, Copy, PartialEq)]
enum Before {
    Nothing,
    /// Other content, on the disk.
    Other,
    /// The same content, not on the disk yet: a receipt that says "already there" must bring it there.
    SameUnsynced,
}

struct Round<'a> {
    number: u64,
    random: Random,
    scratch: &'a Scratch,
    memory: &'a Mount,
    outer: &'a Mount,
    /// Where the client's files are.
    source: String,
    names: Vec<String>,
    before: BTreeMap<String, Before>,
    replaces: bool,
}

/// What the client said before the cut.
struct Receipt {
    name: String,
    stored: String,
    already: bool,
}

impl<'a> Round<'a> {
    fn new(number: u64, scratch: &'a Scratch, memory: &'a Mount, outer: &'a Mount) -> Round<'a> {
        let random = Random::of_round(number);
        let source = memory.directory(&format!("source-{number}"));
        Round {
            number,
            random,
            scratch,
            memory,
            outer,
            source,
            names: vec![],
            before: BTreeMap::new(),
            replaces: false,
        }
    }

    fn go(mut self, programme: &Programme) {
        self.make_files();
        // Sometimes the power goes again while what the first cut left is continued.
        let cuts = 1 + u64::from(self.random.below(3) == 0);
        let mut image = self.memory.path("template");
        let mut receipts = Vec::new();
        for number in 0..cuts {
            let inner_image = self.outer.path("inner");
            run("cp", &["--sparse=always", &image, &inner_image]);
            image = self.memory.path("copy");
            let inner = Mount::new(self.scratch, "inner", &["-o", "loop,data=ordered", &inner_image]);
            if number == 0 {
                self.prepare_inbox(&inner.directory("inbox"));
                // What the cut may not touch is on the device before.
                run("sync", &["--file-system", inner.root()]);
                self.write_unsynced(&inner.path("inbox"));
            }
            let said = self.send_until_cut(&inner.path("inbox"), &image);
            drop(inner);
            fs::remove_file(inner_image).unwrap();

            let new = self.receipts(&said);
            programme.count("cuts");
            programme.add("receipts before a cut", new.len() as u64);
            programme.add("of them already there", new.iter().filter(|receipt| receipt.already).count() as u64);
            let within = !new.is_empty() && new.len() < self.names.len();
            programme.add("cuts between the first and the last receipt", within.into());
            programme.add("cuts after the last receipt", (new.len() == self.names.len()).into());
            receipts.extend(new);
            let copy = Mount::new(self.scratch, "copy", &["-o", "loop,data=ordered", &image]);
            let unacknowledged = self.check_after_cut(&copy.path("inbox"), &receipts, &said);
            programme.add("names without a receipt", unacknowledged);
            let partials = names_in(copy.path("inbox")).iter().filter(|name| is_partial(name)).count();
            programme.add("partials in the image", partials as u64);
        }
        let copy = Mount::new(self.scratch, "copy", &["-o", "loop,data=ordered", &image]);
        programme.add("files resumed", self.send_again(&copy.path("inbox")));
        drop(copy);
        fs::remove_file(image).unwrap();
        fs::remove_dir_all(&self.source).unwrap();
    }

    /// The client sends all until the power goes; what it had said by then.
    fn send_until_cut(&mut self, inbox: &str, image: &str) -> Run {
        let server = Server::start(&self.server_arguments(inbox));
        // On a line that needs up to half a second for all of it, so that there is a middle to hit.
        let bytes: u64 = self.names.iter().map(|name| fs::metadata(self.source_of(name)).unwrap().len()).sum();
        let line_time = Duration::from_millis(80 + self.random.below(400));
        let rate = u32::try_from((bytes + 1000) * 1000 / line_time.as_millis() as u64).unwrap();
        let to_server = Line { rate_bytes_per_second: Some(rate), ..Line::default() };
        let proxy = Proxy::start(([127, 0, 0, 1], server.port()).into(), Faults { to_server, ..Faults::default() });
        let client = client_spawn(&as_words(&self.client_arguments(&proxy.address().to_string())));
        self.cut(server, client, line_time, image)
    }

    fn make_files(&mut self) {
        const KIB: u64 = 1024;
        // (how many, the least and the most bytes): few large, many small, between, and all kinds at once.
        let kinds: &[(u64, u64, u64)] = match self.random.below(4) {
            0 => &[(1, 1, 8192 * KIB)],
            1 => &[(20 + self.random.below(300), 0, 24 * KIB)],
            2 => &[(2 + self.random.below(5), 200 * KIB, 3072 * KIB)],
            _ => &[(40, 0, 64 * KIB), (4, 200 * KIB, 1500 * KIB), (1, 2048 * KIB, 4096 * KIB)],
        };
        for &(count, least, most) in kinds {
            for _ in 0..count {
                let name = format!("f{:04}.bin", self.names.len());
                let size = least + self.random.below(most - least + 1);
                let seed = self.random.next();
                random_file(self.source_of(&name), size.try_into().unwrap(), seed);
                self.names.push(name);
            }
        }
        // Small before large and the other way round.
        for index in (1..self.names.len()).rev() {
            let other = self.random.below(index as u64 + 1) as usize;
            self.names.swap(index, other);
        }
        self.replaces = self.random.below(3) == 0;
        let some_taken = self.random.below(3) == 0;
        for name in &self.names {
            let before = match self.random.below(8) {
                0 if some_taken => Before::Other,
                1 if some_taken => Before::SameUnsynced,
                _ => Before::Nothing,
            };
            self.before.insert(name.clone(), before);
        }
    }

    fn prepare_inbox(&self, inbox: &str) {
        for name in self.before.iter().filter(|(_, &before)| before == Before::Other).map(|(name, _)| name) {
            fs::write(format!("{inbox}/{name}"), other_content(name)).unwrap();
        }
    }

    fn write_unsynced(&self, inbox: &str) {
        for name in self.before.iter().filter(|(_, &before)| before == Before::SameUnsynced).map(|(name, _)| name) {
            fs::copy(self.source_of(name), format!("{inbox}/{name}")).unwrap();
        }
    }

    fn server_arguments<'b>(&self, inbox: &'b str) -> Vec<&'b str> {
        let way = if self.replaces { "replace" } else { "rename" };
        vec!["--dir", inbox, "--if-exists", way, "--min-free", "0"]
    }

    fn client_arguments(&self, to: &str) -> Vec<String> {
        let mut arguments = vec!["--json".into(), "--to".into(), to.into()];
        arguments.extend(self.names.iter().map(|name| self.source_of(name)));
        arguments
    }

    /// Lets them run for a random while, then takes the image as it is in one moment.
    fn cut(&mut self, mut server: Server, mut client: Running, line_time: Duration, image: &str) -> Run {
        let by_receipts = self.random.below(3) == 0;
        if by_receipts {
            for _ in 0..self.random.below(self.names.len() as u64) {
                client.wait_stdout(|line| json_value(line, "type") == Some("receipt"));
            }
        }
        let at_most = if by_receipts { Duration::from_millis(3) } else { line_time };
        pause(at_most.mul_f64(self.random.below(1000) as f64 / 1000.0));
        if self.random.below(3) == 0 {
            // What the system does on its own now and then: it brings half a file to the disk.
            run("sync", &["--file-system", &self.scratch.path("inner")]);
            pause(Duration::from_micros(self.random.below(10_000)));
        }
        let killed_before = self.random.below(3) == 0;
        if killed_before {
            server.kill();
        }
        let frozen = Frozen::new(self.outer);
        // Whoever acknowledges without a sync still can; a sync can't end any more.
        pause(Duration::from_micros(self.random.below(20_000)));
        if !killed_before {
            server.signal(Signal::KILL);
        }
        // What it has printed by its end counts: nothing that was acknowledged may depend on what came after the cut.
        let said = client.kill();
        run("cp", &["--sparse=always", &self.outer.path("inner"), image]);
        drop(frozen);
        server.wait();
        said
    }

    fn receipts(&self, said: &Run) -> Vec<Receipt> {
        let lines = said.stdout.lines().filter(|line| line.ends_with('}'));
        let receipts = lines.filter(|line| json_value(line, "type") == Some("receipt"));
        let receipts = receipts.filter(|line| json_value(line, "durable") == Some("true"));
        let value = |line: &str, key| json_value(line, key).unwrap().to_owned();
        receipts
            .map(|line| Receipt {
                name: Path::new(&value(line, "name")).file_name().unwrap().to_str().unwrap().to_owned(),
                stored: value(line, "stored"),
                already: value(line, "already") == "true",
            })
            .collect()
    }

    /// The rules of the image; gives the number of the client's files in it that have no receipt.
    fn check_after_cut(&self, inbox: &str, receipts: &[Receipt], said: &Run) -> u64 {
        let acknowledged: BTreeSet<_> = receipts.iter().map(|receipt| receipt.stored.as_str()).collect();
        for Receipt { name, stored, .. } in receipts {
            let found = fs::read(format!("{inbox}/{stored}"));
            let right = found.is_ok_and(|found| found == self.content_of(name));
            said.assert(right, &self.rule(&format!("{stored} was acknowledged and is not there, or not right")));
        }
        let mut unacknowledged = 0;
        for stored in names_in(inbox).iter().filter(|name| !is_partial(name)) {
            let name = base_of(stored);
            let before = self.before.get(&name).copied();
            said.assert(before.is_some(), &self.rule(&format!("{stored} is a name that nobody sent")));
            let found = fs::read(format!("{inbox}/{stored}")).unwrap();
            let is_new = found == self.content_of(&name);
            unacknowledged += u64::from(is_new && !acknowledged.contains(stored.as_str()));
            let is_old = before == Some(Before::Other) && *stored == name && found == other_content(&name);
            // This test wrote it without a sync: it may be short until somebody acknowledged it.
            let is_ours =
                before == Some(Before::SameUnsynced) && *stored == name && !acknowledged.contains(stored.as_str());
            let rule = format!("{stored} has a name and is neither the whole new file nor the whole old one");
            said.assert(is_new || is_old || is_ours, &self.rule(&rule));
        }
        for (name, _) in self.before.iter().filter(|(_, &before)| before == Before::Other && !self.replaces) {
            let kept = fs::read(format!("{inbox}/{name}")).is_ok_and(|found| found == other_content(name));
            said.assert(kept, &self.rule(&format!("{name} was there and was not to be touched")));
        }
        unacknowledged
    }

    /// The same command at a server on what the cut left ends well; gives the number of files that went on.
    fn send_again(&self, inbox: &str) -> u64 {
        let server = Server::start(&self.server_arguments(inbox));
        let again = client(&as_words(&self.client_arguments(&server.address())));
        again.assert(again.code == 0, &self.rule("the same command after the cut ends with 0"));
        let receipts = self.receipts(&again);
        again.assert(receipts.len() == self.names.len(), &self.rule("each file has a receipt"));
        for Receipt { name, stored, .. } in &receipts {
            let right = fs::read(format!("{inbox}/{stored}")).unwrap() == self.content_of(name);
            again.assert(right, &self.rule(&format!("{stored} is right after the same command")));
        }
        let names = names_in(inbox);
        again.assert(!names.iter().any(|name| is_partial(name)), &self.rule(&format!("no partial is left: {names:?}")));
        if !self.before.values().any(|&before| before == Before::SameUnsynced) {
            let kept = self.before.values().filter(|&&before| before == Before::Other && !self.replaces).count();
            let rule = self.rule(&format!("no file was stored twice: {names:?}"));
            again.assert(names.len() == self.names.len() + kept, &rule);
        }
        server.terminate();
        let resumed = |line: &&str| {
            json_value(line, "resumed_bytes") != Some("0") && json_value(line, "already") == Some("false")
        };
        let receipts = again.stdout.lines().filter(|line| json_value(line, "type") == Some("receipt"));
        receipts.filter(resumed).count() as u64
    }

    fn source_of(&self, name: &str) -> String {
        format!("{}/{name}", self.source)
    }

    fn content_of(&self, name: &str) -> Vec<u8> {
        fs::read(self.source_of(name)).unwrap()
    }

    fn rule(&self, rule: &str) -> String {
        format!("round {}: {rule}", self.number)
    }
}

fn as_words(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

fn other_content(name: &str) -> Vec<u8> {
    let mut content = Vec::new();
    (0..500).for_each(|number| writeln!(content, "{name}, line {number} of what was here before").unwrap());
    content
}

/// `f0001.bin` of `f0001-2.bin`.
fn base_of(stored: &str) -> String {
    let (stem, rest) = stored.split_once('.').unwrap_or((stored, ""));
    let stem = stem.split_once('-').map_or(stem, |(stem, _)| stem);
    format!("{stem}.{rest}")
}
