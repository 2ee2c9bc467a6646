//! `kill -9` at random moments, one to three times a round: sender, receiver, or both, in both directions.
//!
//! A round ends when the same command has succeeded. Then every file is there byte for byte, under its own name alone, no
//! partial is left, and what travelled is the files, once, and for each kill a window and a block of each file.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::common::{assert_same_file, client_spawn, Scratch, Server};
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
            let random = &mut Random::of_round(number);
            let scratch = Scratch::new();
            let files = files(&scratch, random);
            // Every third round the server sends.
            let again = if number % 3 == 2 {
                downward(&programme, &scratch, &files, victim, random)
            } else {
                upward(&programme, &scratch, &files, victim, random)
            };
            check(&files, &scratch.path("inbox"));
            programme.count("right");
            programme.add("KiB sent again", again / 1024);
            programme.most("KiB again at most", again / 1024);
        },
    );
}

fn files(scratch: &Scratch, random: &mut Random) -> Vec<(String, u64)> {
    scratch.directory("inbox");
    (0..=random.below(FILES_MAX))
        .map(|index| {
            let size = [random.below(300), random.below(600_000), MIB + random.below(12 * MIB)];
            let size = size[usize::try_from(random.below(4)).unwrap().min(2)];
            (scratch.file(&format!("file-{index}"), size, random.next()), size)
        })
        .collect()
}

/// The client sends; gives how many bytes travelled more than once.
fn upward(
    programme: &Programme,
    scratch: &Scratch,
    files: &[(String, u64)],
    victim: Victim,
    random: &mut Random,
) -> u64 {
    let inbox = scratch.path("inbox");
    let start = || Server::start(&["--dir", &inbox]);
    let mut server = start();
    let proxy = Proxy::start(address(&server), Faults::default());
    let to = proxy.address().to_string();
    let mut arguments = vec!["--to", &to, "--retry", "30s"];
    arguments.extend(files.iter().flat_map(|(path, _)| ["--file", path]));
    let kills = 1 + random.below(3);
    let mut sender = client_spawn(&arguments);
    for _ in 0..kills {
        pause(Duration::from_millis(random.below(KILL_WITHIN_MS)));
        if victim != Victim::Sender {
            programme.count("kills");
            drop(server.kill());
            server = start();
            proxy.set_target(address(&server));
        }
        if victim != Victim::Receiver {
            programme.count("kills");
            drop(sender.kill());
            sender = client_spawn(&arguments);
        }
    }
    let run = sender.wait();
    run.assert_code(0);
    let travelled = proxy.bytes_forwarded(Direction::ToServer);
    let size: u64 = files.iter().map(|(_, size)| size).sum();
    // Heads, offers and sums are a thousandth, and a few KiB a connection.
    let overhead = size / 500 + (kills + 1) * 64 * 1024;
    let again = travelled.saturating_sub(size);
    run.assert(
        again <= kills * AGAIN_AFTER_A_KILL_MAX + overhead,
        &format!("{again} bytes of {size} travelled again after {kills} kills"),
    );
    again
}

/// The server sends, from its console.
fn downward(
    programme: &Programme,
    scratch: &Scratch,
    files: &[(String, u64)],
    victim: Victim,
    random: &mut Random,
) -> u64 {
    let inbox = scratch.path("inbox");
    // A name each, so that the answers of one are not taken for another's.
    let mut names = (1..).map(|number| format!("board-{number}"));
    let mut name = String::new();
    let mut begin = |server: &mut Server, name: &mut String| {
        *name = names.next().unwrap();
        let receiver = client_spawn(&["--to", &server.address(), "--stay", "--dir", &inbox, "--nick", name]);
        server.wait_stderr(|line| line == format!("{name} joined"));
        files.iter().for_each(|(path, _)| server.type_line(&format!("/send {path} @{name}")));
        receiver
    };
    let mut server = Server::start(&[]);
    let mut receiver = begin(&mut server, &mut name);
    for _ in 0..1 + random.below(3) {
        pause(Duration::from_millis(random.below(KILL_WITHIN_MS)));
        programme.count("kills");
        drop(receiver.kill());
        if victim != Victim::Receiver {
            programme.count("kills");
            drop(server.kill());
            server = Server::start(&[]);
        }
        receiver = begin(&mut server, &mut name);
    }
    for (path, _) in files {
        let file = Path::new(path).file_name().unwrap().to_str().unwrap();
        let sent = format!("sent \"{file}\" to {name}");
        server.wait_stderr(|line| line.starts_with(&sent));
    }
    drop(receiver.kill());
    drop(server.kill());
    0
}

fn address(server: &Server) -> SocketAddr {
    server.address().parse().unwrap()
}

fn check(files: &[(String, u64)], inbox: &str) {
    for (path, _) in files {
        assert_same_file(path, Path::new(inbox).join(Path::new(path).file_name().unwrap()));
    }
    let there = names_in(inbox);
    assert_eq!(there.len(), files.len(), "more than was sent: {there:?}");
}
