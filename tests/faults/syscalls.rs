//! System calls that fail, and kills at system calls, by strace, in a transfer of 4 MiB and of a small file.
//!
//! Which calls there are, a run that nothing disturbs says, at the start of each programme: every call that takes a file's
//! name or handle is one, of both sides. A kill comes after a call and before the next one of any thread. An error comes at
//! the first, the second and so on that each thread makes of a call, as strace counts them; so strace is also attached in the
//! middle of a transfer, for calls whose like was made before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{assert_same_file, client, client_spawn, until, Run, Running, Scratch, Server, Signal, BINARY};
use crate::disk::{sizes_of_partials, slow_proxy};
use crate::{is_partial, names_in, Programme};

/// Calls on files, in strace's words, and those of them that are here on memory, sockets and streams.
const CALLS: &str = "%file,%desc";
const NOT_ON_FILES: [&str; 8] = ["mmap", "poll", "ppoll", "read", "write", "ioctl", "fcntl", "execve"];
const ERRORS: [&str; 7] = ["ENOSPC", "EDQUOT", "EIO", "EINTR", "EMFILE", "ENOMEM", "EROFS"];
const MIB: u64 = 1024 * 1024;

/// Whose calls, and when strace begins to count them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Calls {
    /// From the start of the program.
    Sender,
    /// Once it listens, so that its start is not hit.
    Receiver,
    /// Once a MiB is there.
    ReceiverInTheMiddle,
    /// When both files are there already.
    ReceiverAgain,
}

/// A kill at every call: the n-th of the process, whichever thread makes it.
#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn syscall_kill() {
    let mut points = Vec::new();
    for calls in [Calls::Sender, Calls::Receiver, Calls::ReceiverAgain] {
        let plain = Plain::run(calls);
        println!("syscall_kill: {} {calls:?}", plain.count);
        points.extend((1..=plain.count).map(|nth| (calls, nth, plain.names.clone())));
    }
    let programme = Programme::new("syscall_kill", u64::try_from(points.len()).unwrap());
    programme.run(
        2,
        || (),
        |number, ()| {
            let (calls, nth, names) = &points[spread(number, points.len())];
            let mut job = Job::new(number, *calls);
            // Each call is held for a moment when it is done, and told at once. Lines of calls begin with the thread.
            let counted = "n=0; while read -r thread call; do case $call in *' = '*) n=$((n + 1)) ;; esac;";
            // strace may wait for ever for what was killed while it was held, so it goes too.
            let kill = format!("|{counted} [ $n != {nth} ] || kill -9 $thread $PPID; done");
            let inject = format!("inject={names}:delay_exit=3000");
            let first = job.run(&["-s", "0", "-e", "signal=none", "-o", &kill, "-e", &inject], names);
            job.assert_true(&first);
            programme.count(if first.code == 0 { "not reached, or too late to matter" } else { "killed" });
            if *calls != Calls::Sender {
                drop(job.server.kill());
                job.server = Server::start(&["--dir", &job.inbox]);
            }
            job.again();
            programme.count("right");
        },
    );
}

/// Every error at every call of each thread.
#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn syscall_errors() {
    let mut points = Vec::new();
    for calls in [Calls::Sender, Calls::Receiver, Calls::ReceiverInTheMiddle, Calls::ReceiverAgain] {
        let plain = Plain::run(calls);
        println!("syscall_errors: {calls:?}: {:?}", plain.most_of_a_thread);
        for (name, most) in plain.most_of_a_thread {
            // In the middle of the data every write is like the one before.
            if calls != Calls::ReceiverInTheMiddle || name != "pwrite64" {
                points.extend((1..=most).flat_map(|nth| ERRORS.map(|error| (calls, name.clone(), nth, error))));
            }
        }
    }
    let programme = Programme::new("syscall_errors", u64::try_from(points.len()).unwrap());
    programme.run(
        2,
        || (),
        |number, ()| {
            let (calls, name, nth, error) = &points[spread(number, points.len())];
            let job = Job::new(number, *calls);
            let log = job.scratch.path("log");
            let inject = format!("inject={name}:error={error}:when={nth}");
            let first = job.run(&["-s", "0", "-o", &log, "-e", &inject], name);
            job.assert_true(&first);
            let what = format!("{calls:?}: {name} {nth} gave {error}");
            // Its own files, 8; the loader ends a program that it can't load with 127.
            let is_senders = *calls == Calls::Sender && matches!(first.code, 8 | 127);
            let is_told = matches!(first.code, 0 | 5 | 7 | 9) || is_senders;
            first.assert(is_told, &format!("{what}: the end is told by its code"));
            let was_hit = fs::read_to_string(&log).unwrap().contains("(INJECTED)");
            first.assert(was_hit || first.code == 0, &format!("{what}: only what failed may end it"));
            programme.count(match (was_hit, first.code) {
                (false, _) => "not reached",
                (true, 0) => "made good",
                (true, _) => "refused",
            });
            let second = job.again();
            // Be it of data or of the directory. What was there before is not sent again, only compared again.
            if name == "fsync" && first.code != 0 && *calls != Calls::ReceiverAgain {
                let is_large = |line: &&str| line.contains("\"receipt\"") && line.contains("\"name\":\"large\"");
                let receipt = second.stdout.lines().find(is_large).unwrap_or_default();
                let is_new = receipt.contains("\"resumed_bytes\":0,") && receipt.contains("\"already\":false");
                second.assert(is_new, &format!("{what}: all of it is sent again"));
                programme.count("sent again after a failed sync");
            }
            programme.count("right");
        },
    );
}

/// A tenth takes every tenth point, not the first ones.
fn spread(number: u64, points: usize) -> usize {
    usize::try_from(number * 7919).unwrap() % points
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
            let mut strace = Command::new("strace");
            strace.args(["-f", "-o", "/dev/null", "-e", &format!("trace={call}")]);
            strace.args(["-e", &format!("inject={call}:error=EIO:when=1")]);
            let mut strace = attach(strace, &server);
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

/// The calls on files of a run that nothing disturbs.
struct Plain {
    /// Of all threads.
    count: u64,
    /// As strace takes them.
    names: String,
    most_of_a_thread: BTreeMap<String, u64>,
}

impl Plain {
    fn run(calls: Calls) -> Plain {
        let job = Job::new(0, calls);
        let log = job.scratch.path("log");
        job.run(&["-s", "0", "-o", &log], CALLS).assert_code(0);
        let mut of_threads = BTreeMap::<_, u64>::new();
        for line in fs::read_to_string(&log).unwrap().lines() {
            let (thread, call) = line.split_once(' ').unwrap();
            // Lines without a name go on with another one, or tell of signals and ends.
            let Some((name, _)) = call.trim_start().split_once('(') else { continue };
            let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            if is_name && !NOT_ON_FILES.contains(&name) {
                *of_threads.entry((name.to_owned(), thread.to_owned())).or_default() += 1;
            }
        }
        let names: BTreeSet<_> = of_threads.keys().map(|(name, _)| name.as_str()).collect();
        assert!(names.len() >= 5, "{calls:?}: calls on files are missing: {names:?}");
        let names = names.into_iter().collect::<Vec<_>>().join(",");
        let mut most_of_a_thread = BTreeMap::new();
        for ((name, _), &count) in &of_threads {
            let most = most_of_a_thread.entry(name.clone()).or_default();
            *most = count.max(*most);
        }
        Plain { count: of_threads.values().sum(), names, most_of_a_thread }
    }
}

/// Attaches strace to a server.
fn attach(mut strace: Command, server: &Server) -> Running {
    strace.args(["-p", &server.pid().as_raw_nonzero().to_string()]);
    let mut strace = Running::spawn(strace);
    strace.wait_stderr(|line| line.contains("attached"));
    strace
}

/// A file of 4 MiB and a small one, to be sent to a server.
struct Job {
    scratch: Scratch,
    server: Server,
    inbox: String,
    files: [String; 2],
    calls: Calls,
}

impl Job {
    fn new(round: u64, calls: Calls) -> Job {
        let scratch = Scratch::new();
        let inbox = scratch.directory("inbox");
        let files = [scratch.file("large", 4 * MIB, 2 * round + 1), scratch.file("small", 10_000, 2 * round + 2)];
        let job = Job { server: Server::start(&["--dir", &inbox]), scratch, inbox, files, calls };
        if calls == Calls::ReceiverAgain {
            job.again();
        }
        job
    }

    /// Sends both under strace, which is told what to trace and more.
    fn run(&self, options: &[&str], trace: &str) -> Run {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-e", &format!("trace={trace}")]).args(options);
        let to = self.server.address();
        if self.calls == Calls::Sender {
            // Cargo's folders, where the loader would look for each library first.
            strace.args([BINARY, "client"]).args(self.arguments(&to)).env_remove("LD_LIBRARY_PATH");
            return Running::spawn(strace).wait();
        }
        let (mut strace, first) = if self.calls == Calls::ReceiverInTheMiddle {
            let proxy = slow_proxy(&self.server, 3 * MIB);
            let mut sending = client_spawn(&self.arguments(&proxy.address().to_string()));
            until("a MiB", || sizes_of_partials(&self.inbox).into_iter().find(|&size| size >= MIB));
            (attach(strace, &self.server), sending.wait())
        } else {
            (attach(strace, &self.server), client(&self.arguments(&to)))
        };
        // It has ended if the server has.
        strace.signal(Signal::TERM);
        drop(strace.wait());
        first
    }

    fn arguments<'a>(&'a self, to: &'a str) -> [&'a str; 9] {
        ["--json", "--retry", "0", "--to", to, "--file", &self.files[0], "--file", &self.files[1]]
    }

    fn stored(&self, file: &str) -> PathBuf {
        Path::new(&self.inbox).join(name_of(file))
    }

    /// What has a real name is whole, and what was acknowledged has one.
    fn assert_true(&self, run: &Run) {
        for file in &self.files {
            let (stored, name) = (self.stored(file), name_of(file));
            let is_acknowledged =
                run.stdout.lines().any(|line| line.contains("\"receipt\"") && line.contains(&format!("\"{name}\"")));
            run.assert(!is_acknowledged || stored.exists(), "what is acknowledged is there");
            if stored.exists() {
                assert_same_file(file, stored);
            }
        }
    }

    /// The same command, now undisturbed: a partial that could not be removed before is used.
    fn again(&self) -> Run {
        let run = self.run_undisturbed();
        let there = names_in(&self.inbox);
        if self.calls == Calls::ReceiverAgain && there.len() > 2 {
            // What could not be read counts as different, so there may be a whole copy, or a partial for one.
            for name in there.iter().filter(|name| !is_partial(name)) {
                let file = self.files.iter().find(|file| name.starts_with(name_of(file)));
                assert_same_file(file.unwrap(), Path::new(&self.inbox).join(name));
                fs::remove_file(Path::new(&self.inbox).join(name)).unwrap();
            }
            self.run_undisturbed();
        }
        let there = names_in(&self.inbox);
        run.assert(there.len() == 2, &format!("the two files and nothing else are there: {there:?}"));
        run
    }

    fn run_undisturbed(&self) -> Run {
        let run = client(&self.arguments(&self.server.address()));
        run.assert_code(0);
        for file in &self.files {
            assert_same_file(file, self.stored(file));
        }
        run
    }
}

fn name_of(file: &str) -> &str {
    Path::new(file).file_name().unwrap().to_str().unwrap()
}
