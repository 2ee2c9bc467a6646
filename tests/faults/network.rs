//! Bad networks: random jobs over connections with random faults, alone and beside a second run of the same command.

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{self, assert_same_file, Run, Running, Scratch, Server, Signal};
use crate::proxy::{Direction, Faults, Line, Proxy};
use crate::{is_partial, json_value, Programme, Random};

/// Most of a round is waiting: for pauses before a new try, for delays, for slow lines.
const THREADS: usize = 8;
/// A client meets at most four damaged connections, and what costs most on one is a wait of 30 s for the rest of a frame.
const CLIENT_DEADLINE: Duration = Duration::from_secs(150);
/// A line on which nothing moves so long is stalled, as far as this test is concerned.
const STALLED_AFTER: Duration = Duration::from_millis(1000);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn network() {
    let programme = Programme::new("network", 1000);
    programme.run(
        THREADS,
        || (),
        |number, ()| {
            let plan = Plan::of_round(number);
            round(&plan).into_iter().for_each(|what| programme.count(what));
        },
    );
}

/// Everything that a round does, drawn from its number.
#[derive(Debug)]
struct Plan {
    round: u64,
    /// The server sends, and a client that stays receives.
    is_down: bool,
    sizes: Vec<u64>,
    text: Option<String>,
    /// The first connections: to the server, to the client.
    lines: Vec<[Line; 2]>,
    /// The same command a second time, straight to the server, this long after the first.
    second: Option<Duration>,
    /// Nothing moves between these moments; nothing is closed.
    blackhole: Option<(Duration, Duration)>,
}

impl Drop for Plan {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("{self:#?}");
        }
    }
}

impl Plan {
    fn of_round(round: u64) -> Plan {
        let mut random = Random::of_round(round);
        let is_down = random.below(3) == 0;
        let in_pieces = random.below(6) == 0;
        let size_max = if in_pieces { 32 << 10 } else { 2 << 20 };
        let sizes: Vec<u64> = (0..=random.below(3)).map(|_| size(&mut random, size_max)).collect();
        let total: u64 = sizes.iter().sum();
        let text = (random.below(3) == 0).then(|| format!("text of round {round}: ä\t{:016x}", random.next()));
        let (to_server, to_client) = if is_down { (0, total) } else { (total, 0) };
        let connections = 1 + random.below(4);
        let lines = (0..connections)
            .map(|_| [line(&mut random, to_server, in_pieces), line(&mut random, to_client, in_pieces)])
            .collect();
        let second = (!is_down && random.below(6) == 0).then(|| Duration::from_millis(random.below(400)));
        let blackhole = (random.below(10) == 0)
            .then(|| (Duration::from_millis(random.below(300)), Duration::from_millis(100 + random.below(1500))));
        Plan { round, is_down, sizes, text, lines, second, blackhole }
    }

    fn all(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().flatten()
    }

    /// What can't be told from a stranger's or a broken peer's bytes may end a run; all else must be got over.
    fn may_fail(&self) -> bool {
        self.all().any(|line| !line.flip_bits.is_empty())
    }

    fn stalls(&self) -> usize {
        self.all().filter(|line| line.stall_after.is_some()).count()
    }
}

/// 0 bytes, a few, around a block, or anything up to `most`.
fn size(random: &mut Random, most: u64) -> u64 {
    match random.below(8) {
        0 => 0,
        1 => random.below(100),
        2 => (256 * 1024 - 2 + random.below(5)).min(most),
        3 | 4 => random.below(most.min(20_000)),
        _ => random.below(most + 1),
    }
}

/// One direction that carries about `bytes` of data besides heads and control.
fn line(random: &mut Random, bytes: u64, in_pieces: bool) -> Line {
    let mut line = Line::default();
    if random.below(5) == 0 {
        line.delay = Duration::from_millis(random.below(40));
    }
    if random.below(6) == 0 {
        let least = 64 * 1024 + bytes / 3;
        line.rate_bytes_per_second = Some(u32::try_from(least + random.below(4 << 20)).unwrap());
    }
    if in_pieces && random.below(2) == 0 {
        line.pieces = Some(1..=1 + usize::try_from(random.below(7)).unwrap());
    }
    let at = offset(random, bytes);
    match random.below(20) {
        0..5 => line.reset_after_bytes = Some(at),
        5..8 => line.half_close_after = Some(at),
        8 => line.stall_after = Some(at),
        9..14 => {
            let count = 1 + random.below(3);
            line.flip_bits = (0..count).map(|_| offset(random, bytes) * 8 + random.below(8)).collect();
        }
        _ => {}
    }
    line
}

/// In the hello, in the first control frames, or anywhere.
fn offset(random: &mut Random, bytes: u64) -> u64 {
    match random.below(4) {
        0 => random.below(150),
        1 => random.below(700),
        _ => random.below(bytes + 700),
    }
}

/// A place for one round: source files, an inbox, a server, a proxy before it.
struct Place<'a> {
    plan: &'a Plan,
    _scratch: Scratch,
    sources: Vec<(String, String)>,
    inbox: String,
    server: Server,
    /// The console's items that have not been accepted, without the nickname that they are for.
    unsaid: Vec<String>,
    /// The client, when it is there.
    nick: Option<String>,
}

fn round(plan: &Plan) -> Vec<&'static str> {
    let mut place = Place::new(plan);
    let target: SocketAddr = place.server.address().parse().unwrap();
    let faults = Faults { by_connection: plan.lines.clone(), seed: plan.round, ..Faults::default() };
    let proxy = Proxy::start(target, faults);
    let mut counts = vec![if plan.is_down { "down" } else { "up" }];

    let mut client = place.start(&proxy.address().to_string());
    let mut second = None;
    let mut texts_at_least = 0;
    let started = Instant::now();
    let mut moved = (started, 0);
    let mut stalls_left = plan.stalls();
    let mut blackhole = plan.blackhole;
    let mut in_blackhole = None;
    while !client.ends_within(LOOK_AGAIN) {
        let now = started.elapsed();
        if now > CLIENT_DEADLINE {
            panic!("round {}: a client that does not end", plan.round);
        }
        place.console();
        if second.is_none() && plan.second.is_some_and(|after| now >= after) {
            second = Some(place.start(&place.server.address()));
        }
        if let Some((_, length)) = blackhole.take_if(|(at, _)| now >= *at) {
            proxy.pause();
            in_blackhole = Some(now + length);
        }
        if in_blackhole.take_if(|end| now >= *end).is_some() {
            proxy.resume();
            counts.push("blackholes");
        }
        let bytes = proxy.bytes_forwarded(Direction::ToServer) + proxy.bytes_forwarded(Direction::ToClient);
        if moved.1 != bytes {
            moved = (Instant::now(), bytes);
        } else if moved.0.elapsed() > STALLED_AFTER && stalls_left > 0 && in_blackhole.is_none() {
            proxy.kill_all();
            counts.push("stalls cut");
            stalls_left -= 1;
            moved.0 = Instant::now();
        }
    }
    // The second run beside it may have been given no time to start.
    if let Some(second) = second {
        proxy.resume();
        let run = finish(second, plan);
        run.assert_code(0);
        place.check_receipts(&run);
        texts_at_least += 1;
        counts.push("second runs");
    }
    let mut run = client.wait();
    if proxy.flipped_bits() > 0 {
        counts.push("with flipped bits");
    }
    if proxy.connections() > 1 {
        counts.push("with reconnects");
    }
    let mut texts_at_most = texts_at_least + 1;
    place.check_inbox(run.code == 0);
    place.check_receipts(&run);
    if run.code == 0 {
        counts.push("ended well");
        texts_at_least += 1;
    } else {
        run.assert(plan.may_fail(), "without flipped bits everything is got over");
        run.assert([4, 5, 9].contains(&run.code), "a code for what a bad line does");
        run.assert(!run.stderr.is_empty(), "a failure says why");
        counts.push(match run.code {
            4 => "exit 4",
            5 => "exit 5",
            _ => "exit 9",
        });
        let mut again = place.start(&place.server.address());
        place.until_ended(&mut again);
        run = again.wait();
        run.assert_code(0);
        place.check_receipts(&run);
        place.check_inbox(true);
        texts_at_least += 1;
        texts_at_most += 1;
    }
    drop(proxy);
    place.check_end(&run, texts_at_least, texts_at_most);
    counts
}

/// Waits for a client that nobody types for.
fn finish(mut client: Running, plan: &Plan) -> Run {
    let started = Instant::now();
    while !client.ends_within(LOOK_AGAIN) {
        assert!(started.elapsed() < CLIENT_DEADLINE, "round {}: a second client that does not end", plan.round);
    }
    client.wait()
}

impl Place<'_> {
    fn new(plan: &Plan) -> Place<'_> {
        let scratch = Scratch::new();
        scratch.directory("out");
        let inbox = scratch.directory("inbox");
        let sources = plan.sizes.iter().enumerate().map(|(index, &size_bytes)| {
            let name = format!("f{index}.bin");
            let path = scratch.file(&format!("out/{name}"), size_bytes, plan.round * 8 + u64::try_from(index).unwrap());
            (name, path)
        });
        let sources = sources.collect();
        let server = match plan.is_down {
            true => Server::start(&["--json"]),
            false => Server::start(&["--json", "--dir", &inbox]),
        };
        Place { plan, _scratch: scratch, sources, inbox, server, unsaid: Vec::new(), nick: None }
    }

    /// Starts the command towards an address.
    fn start(&mut self, address: &str) -> Running {
        let mut arguments = vec!["--to", address, "--retry", "20s", "--json"];
        let count = (self.sources.len() + usize::from(self.plan.text.is_some())).to_string();
        if self.plan.is_down {
            arguments.extend(["--nick", "b7", "--stay", "--count", &count, "--dir", &self.inbox]);
            self.unsaid = self.sources.iter().map(|(_, path)| format!("/send {path} @NICK")).collect();
            self.unsaid.extend(self.plan.text.iter().map(|text| format!("/msg NICK {text}")));
            // Who came before does not count; the name b7 may still be taken by one whose end has not been heard of.
            while self.server.find_stdout(came).is_some() {}
            self.nick = None;
        } else {
            arguments.extend(self.sources.iter().map(|(_, path)| path.as_str()));
            arguments.extend(self.plan.text.iter().flat_map(|text| ["--text", text]));
        }
        common::client_spawn(&arguments)
    }

    /// Types what the client is to get once it is there; what was typed while it was away is typed again when it is back.
    fn console(&mut self) {
        while let Some(line) = self.server.find_stdout(came) {
            self.nick = Some(field(&line, "nick").to_owned());
        }
        while let (Some(nick), Some(line)) = (&self.nick, self.unsaid.first()) {
            self.server.type_line(&line.replace("NICK", nick));
            // What is no command has an answer, and answers come in order.
            self.server.type_line("/typed");
            let nobody = "nobody is called";
            let line = self.server.wait_stdout(|line| line.contains("/typed") || line.contains(nobody));
            if line.contains(nobody) {
                self.server.wait_stdout(|line| line.contains("/typed"));
                self.nick = None;
            } else {
                self.unsaid.remove(0);
            }
        }
    }

    fn until_ended(&mut self, client: &mut Running) {
        let started = Instant::now();
        while !client.ends_within(LOOK_AGAIN) {
            assert!(
                started.elapsed() < CLIENT_DEADLINE,
                "round {}: a repeated client that does not end",
                self.plan.round
            );
            self.console();
        }
    }

    /// What has a real name is whole; all is there where the run said so.
    fn check_inbox(&self, all: bool) {
        for entry in fs::read_dir(&self.inbox).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            match self.sources.iter().find(|(source, _)| *source == name) {
                Some((_, path)) => assert_same_file(path, format!("{}/{name}", self.inbox)),
                None => assert!(is_partial(&name), "round {}: a file that nobody sent: {name}", self.plan.round),
            }
        }
        for (name, _) in self.sources.iter().filter(|_| all) {
            assert!(
                fs::exists(format!("{}/{name}", self.inbox)).unwrap(),
                "round {}: {name} is missing",
                self.plan.round
            );
        }
    }

    /// Every receipt that was printed is true, and a sender that ended well has one for each file.
    fn check_receipts(&self, run: &Run) {
        let receipts: Vec<&str> = run.stdout.lines().filter(|line| line.contains("\"type\":\"receipt\"")).collect();
        for receipt in &receipts {
            let source = self.sources.iter().find(|(name, _)| field(receipt, "name") == name);
            let (name, path) = source.unwrap_or_else(|| panic!("a receipt for what was not sent: {receipt}"));
            let data = fs::read(path).unwrap();
            let is_true = field(receipt, "stored") == name
                && field(receipt, "bytes") == data.len().to_string()
                && field(receipt, "crc32") == format!("{:08x}", crc32fast::hash(&data))
                && field(receipt, "durable") == "true"
                && field(receipt, "grew") == "false";
            run.assert(is_true, &format!("round {}: a receipt that is not true: {receipt}", self.plan.round));
        }
        if run.code == 0 && run.command.contains(" client ") {
            for (name, _) in &self.sources {
                let count = receipts.iter().filter(|receipt| field(receipt, "name") == name).count();
                let exact = if self.plan.is_down { count >= 1 } else { count == 1 };
                run.assert(exact, &format!("round {}: {count} receipts for {name}", self.plan.round));
            }
        }
    }

    /// The server ends well, its receipts are true as well, and no text came twice or was lost.
    fn check_end(&mut self, last: &Run, texts_at_least: usize, texts_at_most: usize) {
        self.check_inbox(true);
        self.server.signal(Signal::TERM);
        let served = self.server.wait();
        served.assert_code(0);
        self.check_receipts(&served);
        let Some(text) = &self.plan.text else { return };
        let (printed, least, most) = match self.plan.is_down {
            true => (last, 1, 1),
            false => (&served, texts_at_least, texts_at_most),
        };
        let texts: Vec<&str> = printed.stdout.lines().filter(|line| line.contains("\"type\":\"text\"")).collect();
        let exact = texts.iter().all(|line| field(line, "text") == text.replace('\t', "\\t"));
        printed.assert(exact, &format!("round {}: a text that nobody said", self.plan.round));
        let rule = format!("round {}: a text came {} times, not {least} to {most}", self.plan.round, texts.len());
        printed.assert((least..=most).contains(&texts.len()), &rule);
    }
}

/// Somebody is there.
fn came(line: &str) -> bool {
    line.contains("\"peer_connected\"")
}

/// The value of a key, or nothing.
fn field<'a>(line: &'a str, key: &str) -> &'a str {
    json_value(line, key).unwrap_or_default()
}
