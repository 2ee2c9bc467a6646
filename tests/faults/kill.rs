//! `kill -9` at random moments, one to three times a round: sender, receiver, or both, in both directions.
//!
//! A round ends when the same command has succeeded. Then every file is there byte for byte, under its own name alone, no
//! partial is left, and what travelled is the files, once, and for each kill a window and a block of each file.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::common::{assert_same_file, client_spawn, Run, Scratch, Server};
use crate::proxy::{Direction, Faults, Proxy};
use crate::{names_in, pause, Programme, Random};

/// What is killed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Victim {
    Sender,
    Receiver,
    Both,
}

const MIB: u64 = 1024 * 1024;
/// The largest window, and the block of files of this size.
const AGAIN_AFTER_A_KILL_MAX: u64 = 16 * MIB + FILES_MAX * 256 * 1024;
const FILES_MAX: u64 = 3;
/// Longer than a round's transfer, so that some kills come too late.
const KILL_WITHIN_MS: u64 = 150;

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn kill_sender() {
    run("kill_sender", Victim::Sender);
}

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn kill_receiver() {
    run("kill_receiver", Victim::Receiver);
}

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn kill_both() {
    run("kill_both", Victim::Both);
}

fn run(name: &'static str, victim: Victim) {
    let programme = Programme::new(name, 300);
    programme.run(
        3,
        || (),
        |number, ()| {
            let round = Round::new(number, victim, &programme);
            // Every third round the server sends.
            if number % 3 == 2 {
                round.downward();
            } else {
                round.upward();
            }
            round.check();
            programme.count("right");
        },
    );
}

struct Round<'a> {
    programme: &'a Programme,
    victim: Victim,
    scratch: Scratch,
    /// Paths and sizes.
    files: Vec<(String, u64)>,
    /// When to kill, each after the one before.
    moments: Vec<Duration>,
}

impl Round<'_> {
    fn new(number: u64, victim: Victim, programme: &Programme) -> Round<'_> {
        let random = &mut Random::of_round(number);
        let scratch = Scratch::new();
        scratch.directory("inbox");
        let moments = (0..=random.below(3)).map(|_| Duration::from_millis(random.below(KILL_WITHIN_MS))).collect();
        let files = (0..=random.below(FILES_MAX))
            .map(|index| {
                let size = [random.below(300), random.below(600_000), MIB + random.below(12 * MIB)];
                let size = size[usize::try_from(random.below(4)).unwrap().min(2)];
                (scratch.file(&format!("file-{index}"), size, random.next()), size)
            })
            .collect();
        Round { programme, victim, scratch, files, moments }
    }

    /// The client sends; the same command again and again.
    fn upward(&self) {
        let inbox = self.inbox();
        let start = || Server::start(&["--dir", &inbox]);
        let mut server = start();
        let proxy = Proxy::start(address(&server), Faults::default());
        let to = proxy.address().to_string();
        let mut arguments = vec!["--to", &to, "--retry", "30s"];
        arguments.extend(self.files.iter().flat_map(|(path, _)| ["--file", path]));
        let mut sender = client_spawn(&arguments);
        for &moment in &self.moments {
            pause(moment);
            if self.kills(Victim::Receiver) {
                drop(server.kill());
                server = start();
                proxy.set_target(address(&server));
            }
            if self.kills(Victim::Sender) {
                drop(sender.kill());
                sender = client_spawn(&arguments);
            }
        }
        let run = sender.wait();
        run.assert_code(0);
        self.check_traffic(&run, proxy.bytes_forwarded(Direction::ToServer));
    }

    /// The server sends, from its console, to a client that stays.
    fn downward(&self) {
        let inbox = self.inbox();
        let mut server = Server::start(&[]);
        let proxy = Proxy::start(address(&server), Faults::default());
        let to = proxy.address().to_string();
        let receive = |name: &str| client_spawn(&["--to", &to, "--stay", "--dir", &inbox, "--nick", name]);
        let send = |server: &mut Server, name: &str| {
            server.wait_stderr(|line| line == format!("{name} joined"));
            self.files.iter().for_each(|(path, _)| server.type_line(&format!("/send {path} @{name}")));
        };
        // A name each, so that the answers of one are not taken for another's.
        let mut names = (1..).map(|number| format!("board-{number}"));
        let mut name = names.next().unwrap();
        let mut receiver = receive(&name);
        send(&mut server, &name);
        for &moment in &self.moments {
            pause(moment);
            if self.kills(Victim::Sender) {
                drop(server.kill());
                server = Server::start(&[]);
                proxy.set_target(address(&server));
            }
            if self.kills(Victim::Receiver) {
                drop(receiver.kill());
                name = names.next().unwrap();
                receiver = receive(&name);
            }
            send(&mut server, &name);
        }
        for (path, _) in &self.files {
            let sent = format!("sent \"{}\" to {name}", file_name(path));
            server.wait_stderr(|line| line.starts_with(&sent));
        }
        drop(receiver.kill());
    }

    fn inbox(&self) -> String {
        self.scratch.path("inbox")
    }

    /// Whether this side is to be killed, which is counted.
    fn kills(&self, side: Victim) -> bool {
        let is_victim = [side, Victim::Both].contains(&self.victim);
        self.programme.add("kills", is_victim.into());
        is_victim
    }

    fn check_traffic(&self, run: &Run, travelled: u64) {
        let size: u64 = self.files.iter().map(|(_, size)| size).sum();
        let kills = u64::try_from(self.moments.len()).unwrap();
        // Heads, offers and sums are a thousandth, and a few KiB a connection.
        let overhead = size / 500 + (kills + 1) * 64 * 1024;
        let again = travelled.saturating_sub(size);
        let rule = format!("{again} bytes of {size} travelled again after {kills} kills");
        run.assert(again <= kills * AGAIN_AFTER_A_KILL_MAX + overhead, &rule);
        self.programme.add("KiB sent again", again / 1024);
        self.programme.most("KiB again at most", again / 1024);
    }

    fn check(&self) {
        let inbox = self.inbox();
        for (path, _) in &self.files {
            assert_same_file(path, Path::new(&inbox).join(file_name(path)));
        }
        let there = names_in(&inbox);
        assert_eq!(there.len(), self.files.len(), "more than was sent: {there:?}");
    }
}

fn address(server: &Server) -> SocketAddr {
    server.address().parse().unwrap()
}

fn file_name(path: &str) -> &str {
    Path::new(path).file_name().unwrap().to_str().unwrap()
}
