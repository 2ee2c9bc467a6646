//! System calls that fail, and kills at system calls, by strace: each call on files that a transfer of 4 MiB and of a small
//! file makes, the first, the second and so on.
//!
//! strace counts the calls of each thread. It is attached once the server listens, so that the server's start is not hit.

use std::path::Path;
use std::process::Command;

use crate::common::{assert_same_file, client, Run, Running, Scratch, Server, Signal};
use crate::{names_in, Programme};

/// A call on files, and how often one thread makes it at most.
const SERVER_CALLS: [(&str, u64); 15] = [
    ("openat", 4),
    ("flock", 3),
    ("fstat", 4),
    ("newfstatat", 6),
    ("statx", 4),
    ("fstatfs", 3),
    ("fallocate", 2),
    ("pwrite64", 18),
    ("pread64", 2),
    ("fchmod", 2),
    ("utimensat", 2),
    ("fsync", 4),
    ("renameat2", 2),
    ("unlinkat", 2),
    ("close", 4),
];
const CLIENT_CALLS: [(&str, u64); 5] = [("openat", 12), ("pread64", 20), ("statx", 4), ("fstat", 4), ("sendto", 24)];
const ERRORS: [&str; 7] = ["ENOSPC", "EDQUOT", "EIO", "EINTR", "EMFILE", "ENOMEM", "EROFS"];

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn syscall_kill() {
    let points: Vec<_> = points(&SERVER_CALLS, "server").chain(points(&CLIENT_CALLS, "client")).collect();
    let programme = Programme::new("syscall_kill", u64::try_from(points.len()).unwrap() * KILLS_A_POINT);
    programme.run(
        2,
        || (),
        |number, ()| {
            // A tenth takes every tenth point, not the first ones.
            let index = usize::try_from(number * 7919).unwrap() % points.len();
            let (side, call, when) = points[index];
            let job = Job::new(number);
            let mut server = Server::start(&["--dir", &job.inbox]);
            let inject = format!("inject={call}:signal=SIGKILL:when={when}");
            let was_killed = if side == "server" {
                let mut strace = attach(&server, call, &inject);
                let first = job.run(&server, &["--retry", "0"]);
                drop(strace.kill());
                job.assert_true(&first);
                first.code != 0
            } else {
                let mut command = Command::new("strace");
                command.args(["-f", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject]);
                command.args([crate::common::BINARY, "client"]).args(job.arguments(&server, &[]));
                let first = Running::spawn(command).wait();
                job.assert_true(&first);
                first.code != 0
            };
            programme.count(if was_killed { "killed" } else { "not reached" });
            if was_killed && side == "server" {
                drop(server.kill());
                server = Server::start(&["--dir", &job.inbox]);
            }
            job.again(&server);
            programme.count("right");
        },
    );
}

/// Each point twice: of kills some more luck in timing.
const KILLS_A_POINT: u64 = 2;

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn syscall_errors() {
    let points: Vec<_> = points(&SERVER_CALLS, "server").collect();
    let rounds = points.len() * ERRORS.len();
    let programme = Programme::new("syscall_errors", u64::try_from(rounds).unwrap());
    programme.run(
        2,
        || (),
        |number, ()| {
            let index = usize::try_from(number * 7919).unwrap() % rounds;
            let (error, (_, call, when)) = (ERRORS[index % ERRORS.len()], points[index / ERRORS.len()]);
            let job = Job::new(number);
            let server = Server::start(&["--dir", &job.inbox]);
            let mut strace = attach(&server, call, &format!("inject={call}:error={error}:when={when}"));
            let first = job.run(&server, &[]);
            job.assert_true(&first);
            first.assert(
                matches!(first.code, 0 | 5 | 7 | 9),
                &format!("{call} {when} gave {error}: the end is told by its code"),
            );
            programme.count(if first.code == 0 { "made good" } else { "refused" });
            strace.signal(Signal::TERM);
            drop(strace.wait());
            let second = job.again(&server);
            if call == "fsync" && error == "EIO" && first.code != 0 {
                second.assert(!second.stdout.contains("resumed_bytes\":4"), "nothing is kept after a failed sync");
            }
            programme.count("right");
        },
    );
}

/// The 64 MiB syncs beside a transfer: one fails, all later ones would say ok.
#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn syscall_failed_sync() {
    let programme = Programme::new("syscall_failed_sync", 20);
    programme.run(
        1,
        || (),
        |number, ()| {
            let scratch = Scratch::new();
            let inbox = scratch.directory("inbox");
            let file = scratch.file("large", 150 << 20, number + 1);
            let server = Server::start(&["--dir", &inbox]);
            let call = ["fdatasync", "fsync"][usize::try_from(number % 2).unwrap()];
            let mut strace = attach(&server, call, &format!("inject={call}:error=EIO:when=1"));
            let first = client(&["--to", &server.address(), "--file", &file]);
            first.assert(first.code == 7, "a file whose sync failed is refused");
            assert_eq!(names_in(&inbox).len(), 0, "nothing of it is kept");
            strace.signal(Signal::TERM);
            drop(strace.wait());
            let second = client(&["--to", &server.address(), "--json", "--file", &file]);
            second.assert_code(0);
            second.assert(second.stdout.contains("\"resumed_bytes\":0,"), "all of it was sent again");
            assert_same_file(&file, format!("{inbox}/large"));
            programme.count("refused and sent again");
        },
    );
}

fn points(
    calls: &'static [(&'static str, u64)],
    side: &'static str,
) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
    calls.iter().flat_map(move |&(call, most)| (1..=most).map(move |when| (side, call, when)))
}

/// Attaches strace to a server that listens.
fn attach(server: &Server, call: &str, inject: &str) -> Running {
    let mut command = Command::new("strace");
    let pid = server.pid().as_raw_nonzero().to_string();
    command.args(["-f", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", inject, "-p", &pid]);
    let mut strace = Running::spawn(command);
    strace.wait_stderr(|line| line.contains("attached"));
    strace
}

/// A file of 4 MiB and a small one, to be sent.
struct Job {
    _scratch: Scratch,
    inbox: String,
    files: [String; 2],
}

impl Job {
    fn new(round: u64) -> Job {
        let scratch = Scratch::new();
        let inbox = scratch.directory("inbox");
        let files = [scratch.file("large", 4 << 20, 2 * round + 1), scratch.file("small", 10_000, 2 * round + 2)];
        Job { _scratch: scratch, inbox, files }
    }

    fn arguments(&self, server: &Server, more: &[&str]) -> Vec<String> {
        let address = server.address();
        let fixed = ["--json", "--to", &address, "--file", &self.files[0], "--file", &self.files[1]];
        fixed.iter().chain(more).map(|&word| word.to_owned()).collect()
    }

    fn run(&self, server: &Server, more: &[&str]) -> Run {
        client(&self.arguments(server, more).iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn stored(&self, file: &str) -> std::path::PathBuf {
        Path::new(&self.inbox).join(Path::new(file).file_name().unwrap())
    }

    /// What has a real name is whole, and what was acknowledged has one.
    fn assert_true(&self, run: &Run) {
        for file in &self.files {
            let stored = self.stored(file);
            let name = stored.file_name().unwrap().to_str().unwrap();
            let is_acknowledged =
                run.stdout.lines().any(|line| line.contains("\"receipt\"") && line.contains(&format!("\"{name}\"")));
            run.assert(!is_acknowledged || stored.exists(), "what is acknowledged is there");
            if stored.exists() {
                assert_same_file(file, stored);
            }
        }
    }

    /// The same command, now undisturbed.
    fn again(&self, server: &Server) -> Run {
        let run = self.run(server, &[]);
        run.assert_code(0);
        for file in &self.files {
            assert_same_file(file, self.stored(file));
        }
        let there = names_in(&self.inbox);
        run.assert(there.len() == 2, &format!("the two files and nothing else are there: {there:?}"));
        run
    }
}
