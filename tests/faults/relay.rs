//! A server that carries files and texts between boards: boards that nobody can connect to, kills of everybody at random moments,
//! many boards at once, and a board that has nothing to do.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{
    assert_same_file, client_spawn, processor_time, until, Run, Running, Scratch, Server, Signal, BINARY, DEADLINE,
};
use crate::mounts::{in_private_network, run, Mount};
use crate::proxy::{Direction, Faults, Line, Proxy};
use crate::{is_full, is_partial, json_value, names_in, pause, Programme, Random};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
/// Whoever sends waits for boards that come back, and for servers.
const SENDER_DEADLINE: Duration = Duration::from_secs(300);

// Boards that nobody can connect to.

/// Where the server is, in a network that has no route to any board's.
const SERVER: &str = "10.77.0.2:7117";
const FIRMWARE_BYTES: u64 = 6 * MIB;
const BOARD_LINE_BYTES_PER_SECOND: u32 = 4 << 20;
/// Less than the firmware.
const SMALL_DISK: &str = "size=3m";

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn boards_that_nobody_can_connect_to() {
    if !in_private_network("relay::boards_that_nobody_can_connect_to") {
        return;
    }
    let programme = Programme::new("relay: boards", 10);
    run("mount", &["-t", "tmpfs", "none", "/run"]);
    connect("server", 0);
    ["b1", "b2", "b3"].iter().zip(1..).for_each(|(board, number)| connect(board, number));
    programme.run(
        1,
        || (),
        |number, ()| {
            let net = Net::new();
            net.nobody_connects_to_a_board();
            net.sends(number, &programme);
        },
    );
}

/// A network of this name at the end of a line to this one, which is its gateway and passes no packet on.
fn connect(name: &str, number: u8) {
    let (here, gateway, there) = (format!("to-{name}"), format!("10.77.{number}.1/24"), format!("10.77.{number}.2/24"));
    run("ip", &["netns", "add", name]);
    run("ip", &["link", "add", &here, "type", "veth", "peer", "name", "up0", "netns", name]);
    run("ip", &["address", "add", &gateway, "dev", &here]);
    run("ip", &["link", "set", &here, "up"]);
    run("ip", &["-n", name, "address", "add", &there, "dev", "up0"]);
    run("ip", &["-n", name, "link", "set", "up0", "up"]);
    run("ip", &["-n", name, "link", "set", "lo", "up"]);
}

/// The program in the network of that name.
fn postwire_in(network: &str, arguments: &[&str]) -> Running {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{network}")).arg(BINARY).args(arguments);
    Running::spawn(command)
}

/// A server and three boards, each behind a gateway that carries what the board dialled, as one that translates addresses does.
struct Net {
    scratch: Scratch,
    _server: Running,
    gateways: Vec<Proxy>,
    disk: Mount,
}

impl Net {
    fn new() -> Net {
        let scratch = Scratch::new();
        let inbox = scratch.directory("inbox");
        let mut server = postwire_in("server", &["server", "--listen", SERVER, "--dir", &inbox]);
        server.wait_stderr(|line| line.starts_with("listening"));
        let slow = Line { rate_bytes_per_second: Some(BOARD_LINE_BYTES_PER_SECOND), ..Line::default() };
        let faults = Faults { to_client: slow, ..Faults::default() };
        let gateway =
            |number| Proxy::start_on(Ipv4Addr::new(10, 77, number, 1), SERVER.parse().unwrap(), faults.clone());
        let disk = Mount::tmpfs(&scratch, "b2", SMALL_DISK);
        Net { scratch, _server: server, gateways: (1..=3).map(gateway).collect(), disk }
    }

    /// What listens on a board is reached from the board's own network, and from nowhere else.
    fn nobody_connects_to_a_board(&self) {
        let mut listener = postwire_in("b1", &["server", "--listen", "10.77.1.2:7117"]);
        listener.wait_stderr(|line| line.starts_with("listening"));
        let dial =
            |from| postwire_in(from, &["client", "--to", "10.77.1.2:7117", "--retry", "0", "--text", "x"]).wait().code;
        assert_eq!([dial("b1"), dial("server"), dial("b2")], [0, 3, 3]);
    }

    fn board(&self, number: usize, nick: &str, called: &str, dir: &str) -> Running {
        let gateway = self.gateways[number - 1].address().to_string();
        let fixed = ["client", "--to", &gateway, "--nick", nick, "--dir", dir, "--stay"];
        let mut board = postwire_in(&format!("b{number}"), &fixed);
        board.wait_stderr(|line| line == format!("you are {called}"));
        board
    }

    fn send(&self, arguments: &[&str]) -> Running {
        postwire_in("server", &[&["client", "--to", SERVER, "--nick", "ann", "--json"], arguments].concat())
    }

    fn sends(&self, round: u64, programme: &Programme) {
        let (scratch, random) = (&self.scratch, &mut Random::of_round(round));
        let firmware = scratch.file("firmware", FIRMWARE_BYTES, random.next());
        let small = scratch.file("small", 100 * KIB, random.next());
        let (first, third) = (scratch.directory("b1"), scratch.directory("b3"));
        let mut b1 = self.board(1, "b1", "b1", &first);
        let _b2 = self.board(2, "b2", "b2", self.disk.root());
        let mut b3 = self.board(3, "b1", "b1-2", &third);

        // Nobody but b1 gets what is for b1, whose line is cut and comes back.
        let mut sender = self.send(&["--for", "b1", "--file", &firmware, "--text", "flash", "--retry", "4m"]);
        self.cut(round, random, programme);
        let cut_off = Instant::now();
        let run = ended(&mut sender);
        programme.most("s from the cut to the receipt", cut_off.elapsed().as_secs());
        run.assert_code(0);
        assert_receipts(&run, &[("firmware", "b1")]);
        assert_same_file(&firmware, format!("{first}/firmware"));
        assert_eq!(names_in(&third), [""; 0], "it is not for b1-2");
        b1.wait_stdout(|line| line == "ann: flash");
        let again = self.gateways[0].bytes_forwarded(Direction::ToClient).saturating_sub(FIRMWARE_BYTES);
        programme.most("KiB again at most", again / KIB);
        assert!(again < FIRMWARE_BYTES / 2, "{again} bytes travelled again");

        // A full disk, alone and beside others.
        let run = ended(&mut self.send(&["--for", "b2", "--file", &firmware]));
        run.assert_code(7).assert(run.stdout.contains("no room"), "says why");
        let run = ended(&mut self.send(&["--for", "b2", "--for", "b1-2", "--file", &firmware, "--text", "flash"]));
        run.assert_code(9).assert(run.stdout.contains("no room"), "says why");
        assert_receipts(&run, &[("firmware", "b1-2")]);
        assert_same_file(&firmware, format!("{third}/firmware"));
        assert_eq!(b3.wait_stdout(|_| true), "ann: flash", "it heard nothing that was for b1");
        assert_eq!(names_in(self.disk.root()), [""; 0]);
        // Everybody has what has room everywhere.
        let run = ended(&mut self.send(&["--for", "*", "--file", &small]));
        run.assert_code(0);
        assert_receipts(&run, &[("small", "b1"), ("small", "b1-2"), ("small", "b2")]);
        for dir in [first.as_str(), &third, self.disk.root()] {
            assert_same_file(&small, format!("{dir}/small"));
        }
        Spool::in_directory(&scratch.path("inbox")).wait_until_empty();
        programme.add("files right", 5);
    }

    /// Takes b1's line away once four fifths of the firmware have come, and gives it back.
    fn cut(&self, round: u64, random: &mut Random, programme: &Programme) {
        let gateway = &self.gateways[0];
        until("four fifths", || (gateway.bytes_forwarded(Direction::ToClient) > FIRMWARE_BYTES * 4 / 5).then_some(()));
        run("ip", &["-n", "b1", "link", "set", "up0", "down"]);
        let come = gateway.bytes_forwarded(Direction::ToClient);
        assert!(come < FIRMWARE_BYTES, "the cut came too late: {come} bytes");
        pause(Duration::from_millis(500 + random.below(3000)));
        if round % 2 == 1 {
            // The board finds out from the answer to its next word.
            gateway.kill_all();
            programme.count("gateways that forgot");
        }
        run("ip", &["-n", "b1", "link", "set", "up0", "up"]);
        programme.count("lines cut");
    }
}

/// Waits for one that may have to wait for others.
fn ended(running: &mut Running) -> Run {
    assert!(running.ends_within(SENDER_DEADLINE), "it does not end");
    running.wait()
}

/// There is one true receipt for each name and nickname, in any order.
#[track_caller]
fn assert_receipts(run: &Run, expected: &[(&str, &str)]) {
    let receipts = run.stdout.lines().filter(|line| line.contains("\"type\":\"receipt\""));
    let durable = receipts.filter(|line| json_value(line, "durable") == Some("true"));
    let mut said: Vec<_> =
        durable.map(|line| (json_value(line, "stored").unwrap(), json_value(line, "peer").unwrap())).collect();
    said.sort_unstable();
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    run.assert(said == expected, &format!("receipts {said:?}, expected {expected:?}"));
}

/// What a server keeps for others.
struct Spool(String);

impl Spool {
    fn in_directory(dir: &str) -> Spool {
        Spool(format!("{dir}/.postwire-relay-0.part"))
    }

    fn notes(&self) -> Vec<String> {
        names_below(&format!("{}/notes", self.0))
    }

    /// The paths of all files, partials too.
    fn files(&self) -> Vec<String> {
        let groups = names_below(&format!("{}/files", self.0));
        let in_group = |group: String| {
            let names = names_below(&format!("{}/files/{group}", self.0));
            names.into_iter().map(move |name| format!("{group}/{name}"))
        };
        groups.into_iter().flat_map(in_group).collect()
    }

    /// It is kept until others have it, and no longer.
    #[track_caller]
    fn wait_until_empty(&self) {
        until_none("in the spool", || [self.notes(), names_below(&format!("{}/files", self.0))].concat());
    }
}

/// What is in a directory that may be gone, or go.
fn names_below(path: &str) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

/// As [`crate::until`], and says what is still there.
#[track_caller]
fn until_none(what: &str, look: impl Fn() -> Vec<String>) {
    let started = Instant::now();
    loop {
        let left = look();
        if left.is_empty() {
            return;
        }
        assert!(started.elapsed() < DEADLINE, "still {what}: {left:?}");
        pause(LOOK_AGAIN);
    }
}

// Kills.

const KILL_WITHIN_MS: u64 = 300;
/// How long to wait for a stage to kill in.
const STAGE_WITHIN: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn kills_between_storing_and_delivering() {
    let programme = Programme::new("relay: kills", 100);
    programme.run(3, || (), |number, ()| Round::new(number, &programme).run());
}

/// One board, and one sender of files and texts by turns; in every second round they are left for the board, and in every fourth
/// for another besides, which comes when all else is over.
struct Round<'a> {
    programme: &'a Programme,
    random: Random,
    scratch: Scratch,
    leaves: bool,
    has_latecomer: bool,
    files: Vec<String>,
    server: Server,
    spool: Spool,
    board: Option<Running>,
    /// What each of the board's processes printed.
    heard: Vec<Run>,
    /// How often the sender was started.
    runs: usize,
    /// Those of them that ended well.
    done: Vec<usize>,
    kills: BTreeMap<&'static str, usize>,
}

impl Round<'_> {
    fn new(number: u64, programme: &Programme) -> Round<'_> {
        let mut random = Random::of_round(number);
        let scratch = Scratch::new();
        let inbox = scratch.directory("inbox");
        ["b7", "b8"].iter().for_each(|nick| drop(scratch.directory(nick)));
        let files = (0..=random.below(3)).map(|index| {
            let size = [random.below(300), random.below(600_000), MIB + random.below(12 * MIB)];
            let size = size[usize::try_from(random.below(4)).unwrap().min(2)];
            scratch.file(&format!("file-{index}"), size, random.next())
        });
        let files = files.collect();
        let server = Server::start(&["--dir", &inbox]);
        let spool = Spool::in_directory(&inbox);
        Round {
            programme,
            random,
            scratch,
            leaves: number % 2 == 1,
            has_latecomer: number % 4 == 1,
            files,
            server,
            spool,
            board: None,
            heard: Vec::new(),
            runs: 0,
            done: Vec::new(),
            kills: BTreeMap::new(),
        }
    }

    fn run(mut self) {
        let kills = 1 + self.random.below(4);
        let board_comes = self.random.below(kills + 2).saturating_sub(1);
        let mut sender = self.start_sender();
        for number in 0..kills {
            if number == board_comes {
                self.start_board();
            }
            self.wait_for_a_moment();
            self.programme.count(self.stage());
            match self.random.below(5) {
                0..=2 => {
                    let by_force = self.random.below(4) > 0;
                    self.end_server(by_force);
                }
                3 if self.board.is_some() => self.kill_board(),
                _ => sender = self.kill_sender(sender),
            }
            self.check_board_directory("b7");
        }
        if self.board.is_none() {
            self.start_board();
        }
        let run = ended(&mut sender);
        run.assert_code(0);
        self.done.push(self.runs);
        if !self.leaves {
            // Exit 0 is a promise about this moment.
            self.check_board_has_all("b7");
            let names: Vec<_> = self.files.iter().map(|path| (file_name(path), "b7")).collect();
            assert_receipts(&run, &names);
        }
        if self.has_latecomer {
            self.latecomer();
        }
        self.spool.wait_until_empty();
        if self.runs == 1 {
            until_none("on the board", || self.board_partials());
        } else {
            // Of a file that came twice at once, and broke off, one goes on.
            self.programme.add("partials of files sent twice", self.board_partials().len().try_into().unwrap());
        }
        self.check_board_has_all("b7");
        assert_eq!(names_in(self.scratch.path("inbox")), [".postwire-relay-0.part"], "the server has nothing of it");
        let mut board = self.board.take().unwrap();
        board.signal(Signal::TERM);
        self.heard.push(board.wait());
        self.check_texts();
        self.programme.count("right");
    }

    fn start_sender(&mut self) -> Running {
        self.runs += 1;
        let address = self.server.address();
        let texts: Vec<_> = (0..self.files.len()).map(|index| format!("{} {index}", self.runs)).collect();
        let mut arguments = vec!["--to", &address, "--nick", "ann", "--for", "b7", "--retry", "2m", "--json"];
        arguments.extend(self.leaves.then_some("--leave"));
        arguments.extend(self.has_latecomer.then_some(["--for", "b8"]).into_iter().flatten());
        arguments.extend(self.files.iter().zip(&texts).flat_map(|(file, text)| ["--file", file, "--text", text]));
        client_spawn(&arguments)
    }

    fn start_board(&mut self) {
        self.board = Some(self.board_of("b7"));
    }

    fn board_of(&self, nick: &str) -> Running {
        let (address, dir) = (self.server.address(), self.scratch.path(nick));
        client_spawn(&["--to", &address, "--nick", nick, "--dir", &dir, "--stay", "--json"])
    }

    /// It comes when the other has all, to a server that was started again meanwhile. It hears all that any of the runs left that
    /// ended well, and has the files.
    fn latecomer(&mut self) {
        until_none("on their way", || {
            let there = names_in(self.scratch.path("b7"));
            self.files.iter().filter(|path| !there.iter().any(|name| name == file_name(path))).cloned().collect()
        });
        pause(Duration::from_millis(self.random.below(100)));
        let by_force = self.random.below(2) == 0;
        self.end_server(by_force);
        let mut board = self.board_of("b8");
        for of_run in &self.done {
            for index in 0..self.files.len() {
                let said = format!("{of_run} {index}");
                board.wait_stdout(|line| json_value(line, "text") == Some(&said));
            }
        }
        self.check_board_has_all("b8");
        self.programme.count("latecomers right");
    }

    /// By force, or as whoever stops a service does.
    fn end_server(&mut self, by_force: bool) {
        if by_force {
            self.server.kill();
        } else {
            self.server.signal(Signal::TERM);
            self.server.wait().assert_code(0);
        }
        pause(Duration::from_millis(self.random.below(2) * self.random.below(100)));
        let inbox = self.scratch.path("inbox");
        self.server.restart(&["--dir", &inbox]);
        self.killed("ends of the server");
    }

    fn kill_board(&mut self) {
        self.heard.extend(self.board.take().map(|mut board| board.kill()));
        self.start_board();
        self.killed("kills of the board");
    }

    /// It may have ended well before.
    fn kill_sender(&mut self, mut sender: Running) -> Running {
        if sender.kill().code == 0 {
            self.done.push(self.runs);
        } else {
            self.killed("kills of the sender");
        }
        self.start_sender()
    }

    fn killed(&mut self, what: &'static str) {
        *self.kills.entry(what).or_default() += 1;
        self.programme.count(what);
    }

    fn has_killed(&self, what: &str) -> bool {
        self.kills.contains_key(what)
    }

    /// Any moment, or one soon after a stage has begun.
    fn wait_for_a_moment(&mut self) {
        let stage = self.random.below(4);
        if stage == 0 {
            return pause(Duration::from_millis(self.random.below(KILL_WITHIN_MS)));
        }
        let has_begun = || match stage {
            1 => !self.spool.files().is_empty(),
            2 => !self.spool.notes().is_empty() || self.spool.files().iter().any(|path| !is_partial(file_name(path))),
            _ => !self.board_partials().is_empty(),
        };
        let started = Instant::now();
        while !has_begun() && started.elapsed() < STAGE_WITHIN {
            pause(LOOK_AGAIN);
        }
        pause(Duration::from_millis(self.random.below(2) * self.random.below(30)));
    }

    fn stage(&self) -> &'static str {
        let files = self.spool.files();
        if !self.board_partials().is_empty() {
            "hit while it was handed on"
        } else if files.iter().any(|path| is_partial(file_name(path))) {
            "hit while it came"
        } else if !self.spool.notes().is_empty() {
            "hit with notes"
        } else if files.is_empty() {
            "hit with an empty spool"
        } else {
            "hit between storing and handing on"
        }
    }

    fn board_partials(&self) -> Vec<String> {
        names_in(self.scratch.path("b7")).into_iter().filter(|name| is_partial(name)).collect()
    }

    /// What has a real name is whole.
    fn check_board_directory(&self, board: &str) {
        for name in names_in(self.scratch.path(board)).iter().filter(|name| !is_partial(name)) {
            assert!(self.files.iter().any(|path| file_name(path) == name), "nobody sent {name}");
            assert_same_file(self.scratch.path(name), self.scratch.path(&format!("{board}/{name}")));
        }
    }

    fn check_board_has_all(&self, board: &str) {
        self.check_board_directory(board);
        let there = names_in(self.scratch.path(board));
        for path in &self.files {
            assert!(there.iter().any(|name| name == file_name(path)), "{board} does not have {path}: {there:?}");
        }
    }

    /// The texts of a run come in order, each after the file before it. Those that were left all come, and come again only
    /// where the board's process ended. Of the others one may be lost with the server, which had acknowledged it, or come again
    /// after the server's end, when its sender was back before the board was.
    fn check_texts(&self) {
        let mut first_heard: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for process in &self.heard {
            let mut here: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            let mut files = Vec::new();
            for line in process.stdout.lines() {
                match json_value(line, "type") {
                    Some("receipt") => files.push(json_value(line, "name").unwrap()),
                    Some("text") => {
                        let words = json_value(line, "text").unwrap().split_once(' ').unwrap();
                        let (of_run, index): (usize, usize) = (words.0.parse().unwrap(), words.1.parse().unwrap());
                        here.entry(of_run).or_default().push(index);
                        let first = first_heard.entry(of_run).or_default();
                        if !first.contains(&index) {
                            first.push(index);
                        }
                        let has_file = files.contains(&file_name(&self.files[index]));
                        process.assert(has_file || self.heard.len() > 1, "a text came before its file");
                    }
                    _ => {}
                }
            }
            let may_repeat = !self.leaves && self.has_killed("ends of the server");
            for indices in here.values() {
                process.assert(indices.is_sorted(), "texts not in order");
                let repeated = indices.windows(2).filter(|pair| pair[0] == pair[1]).count();
                process.assert(repeated == 0 || may_repeat, "texts twice");
                self.programme.add("texts twice that were not left", repeated.try_into().unwrap());
            }
        }
        let may_lose = !self.leaves && (self.has_killed("ends of the server") || self.has_killed("kills of the board"));
        for (of_run, indices) in &first_heard {
            assert!(indices.is_sorted(), "texts of run {of_run} not in order: {indices:?}");
            assert!(may_lose || indices.iter().copied().eq(0..indices.len()), "one is missing: {indices:?}");
        }
        for of_run in &self.done {
            let count = first_heard.get(of_run).map_or(0, Vec::len);
            assert!(may_lose || count == self.files.len(), "{count} texts of run {of_run}, whose end was good");
            let lost = self.files.len() - count;
            self.programme.add("texts lost that were not left", lost.try_into().unwrap());
        }
    }
}

fn file_name(path: &str) -> &str {
    Path::new(path).file_name().unwrap().to_str().unwrap()
}

// Requests.

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn kills_while_what_a_board_shares_is_fetched() {
    let programme = Programme::new("relay: requests", 100);
    programme.run(3, || (), |number, ()| fetch(&mut Random::of_round(number), &programme));
}

/// One asks for two files of a board. It may be told that the board is not there; then it asks again.
fn fetch(random: &mut Random, programme: &Programme) {
    let scratch = Scratch::new();
    let [inbox, share, here] = ["inbox", "share", "here"].map(|name| scratch.directory(name));
    let names = ["large", "small"];
    let sizes = [MIB + random.below(12 * MIB), random.below(200_000)];
    names.iter().zip(sizes).for_each(|(name, size)| drop(scratch.file(&format!("share/{name}"), size, random.next())));
    let mut server = Server::start(&["--dir", &inbox]);
    let address = server.address();
    let start_board = || {
        let mut board = client_spawn(&["--to", &address, "--nick", "b7", "--share", &share, "--stay"]);
        board.wait_stderr(|line| line == "you are b7");
        board
    };
    let get = ["--to", &address, "--from", "b7", "--get", names[0], "--get", names[1], "--dir", &here, "--retry", "2m"];
    let check = || {
        let there = names_in(&here).into_iter().filter(|name| !is_partial(name));
        there.map(|name| assert_same_file(format!("{share}/{name}"), format!("{here}/{name}"))).count()
    };
    let mut board = start_board();
    let mut asker = client_spawn(&get);
    for _ in 0..=random.below(3) {
        pause(Duration::from_millis(random.below(150)));
        match random.below(4) {
            0 | 1 => {
                server.kill();
                server.restart(&["--dir", &inbox]);
                programme.count("kills of the server");
            }
            2 => {
                board.kill();
                board = start_board();
                programme.count("kills of the board");
            }
            _ => {
                asker.kill();
                asker = client_spawn(&get);
                programme.count("kills of the asker");
            }
        }
        check();
    }
    let mut run = ended(&mut asker);
    if run.code != 0 {
        run.assert([7, 9].contains(&run.code) && run.stderr.contains("nobody of that name"), "the board is not there");
        programme.count("told that the board is not there");
        // It comes back after its first pauses.
        let again = [&get[..], &["--quiet"]].concat();
        run = until("the board", || Some(ended(&mut client_spawn(&again))).filter(|run| run.code != 7));
    }
    run.assert_code(0);
    assert_eq!(check(), names.len());
    programme.count("right");
}

// Many boards.

/// What `--max-memory` is by default, and what a process needs besides.
const SERVER_MEMORY_KIB_MAX: u64 = (64 + 8) * KIB;

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn a_firmware_for_many_boards_comes_once() {
    let (count, size) = if is_full() { (50, 64 * MIB) } else { (20, 16 * MIB) };
    let programme = Programme::new("relay: many boards", 1);
    let scratch = Scratch::new();
    let inbox = scratch.directory("inbox");
    let server = Server::start(&["--dir", &inbox]);
    let boards: Vec<_> = (1..=count).map(|number| format!("b{number}")).collect();
    let start_board = |nick: &String| {
        let dir = scratch.directory(nick);
        client_spawn(&["--to", &server.address(), "--nick", nick, "--dir", &dir, "--stay"])
    };
    let mut running: Vec<_> = boards.iter().map(start_board).collect();
    running.iter_mut().for_each(|board| drop(board.wait_stderr(|line| line.starts_with("you are "))));
    let upload = Proxy::start(server.address().parse().unwrap(), Faults::default());
    let firmware = scratch.file("firmware", size, 1);
    let started = Instant::now();
    let mut sender =
        client_spawn(&["--to", &upload.address().to_string(), "--for", "*", "--file", &firmware, "--json"]);
    let run = ended(&mut sender);
    programme.add("ms until all had it", started.elapsed().as_millis().try_into().unwrap());
    run.assert_code(0);
    let expected: Vec<_> = boards.iter().map(|nick| ("firmware", nick.as_str())).collect();
    assert_receipts(&run, &expected);
    boards.iter().for_each(|nick| assert_same_file(&firmware, scratch.path(&format!("{nick}/firmware"))));
    let uploaded = upload.bytes_forwarded(Direction::ToServer);
    assert!(uploaded < size + size / 500 + 64 * KIB, "{uploaded} bytes for {size}");
    let peak = server.peak_memory_kib();
    programme.add("boards", count);
    programme.add("KiB of firmware", size / KIB);
    programme.add("KiB uploaded", uploaded / KIB);
    programme.add("KiB of memory at the server", peak);
    programme.report();
    assert!(peak <= SERVER_MEMORY_KIB_MAX, "{peak} KiB at the server");
    Spool::in_directory(&inbox).wait_until_empty();
    running.iter_mut().for_each(|board| drop(board.kill()));
}

// Nothing to do.

const IDLE_PROCESSOR_TIME_MAX: Duration = Duration::from_millis(20);
/// A ping and its answer every quarter of a minute, in either direction.
const IDLE_BYTES_PER_SECOND_MAX: u64 = 10;

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn a_board_that_stays_costs_next_to_nothing() {
    let time = Duration::from_secs(if is_full() { 60 } else { 20 });
    let programme = Programme::new("relay: idle", 1);
    let scratch = Scratch::new();
    let server = Server::start(&["--dir", &scratch.directory("inbox")]);
    let line = Proxy::start(server.address().parse().unwrap(), Faults::default());
    let (to, dir) = (line.address().to_string(), scratch.directory("b7"));
    let mut board = client_spawn(&["--to", &to, "--nick", "b7", "--dir", &dir, "--stay"]);
    board.wait_stderr(|line| line == "you are b7");
    // What a beginning costs is over.
    pause(Duration::from_secs(1));
    let bytes = || line.bytes_forwarded(Direction::ToServer) + line.bytes_forwarded(Direction::ToClient);
    let used = || [&board, &server].map(|running| (processor_time(running.pid()), used_by_threads(running)));
    let (bytes_before, before) = (bytes(), used());
    pause(time);
    let (travelled, after) = (bytes() - bytes_before, used());
    programme.add("s", time.as_secs());
    programme.add("bytes on the line", travelled);
    for (side, name) in ["us of the board's processor", "us of the server's processor"].into_iter().enumerate() {
        let spent = after[side].0 - before[side].0;
        assert!(spent < IDLE_PROCESSOR_TIME_MAX, "{spent:?}: {name}");
        programme.add(name, after[side].1.saturating_sub(before[side].1) / 1000);
    }
    programme.report();
    assert!((1..=time.as_secs() * IDLE_BYTES_PER_SECOND_MAX).contains(&travelled), "{travelled} bytes");
}

/// What the threads that a process has now used of the processors, in nanoseconds.
fn used_by_threads(running: &Running) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", running.pid().as_raw_nonzero())).unwrap();
    let of_one = |task: fs::DirEntry| -> u64 {
        let schedule = fs::read_to_string(task.path().join("schedstat")).unwrap();
        schedule.split_whitespace().next().unwrap().parse().unwrap()
    };
    tasks.map(|task| of_one(task.unwrap())).sum()
}
