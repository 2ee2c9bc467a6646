//! The real server where the system gives it little: few descriptors, few processes, many who want in.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

mod common;

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{bind, connect, socket, AddressFamily, SocketType};
use rustix::process::{geteuid, getrlimit, prlimit, Pid, Resource, Rlimit};

use common::{assert_same_file, client, client_spawn, processor_time, until, Running, Scratch, Server, Signal, BINARY};
use postwire::config::{STRANGERS_MAX, STRANGERS_PER_ADDRESS_MAX};
use postwire::wire::{Decoder, Frame, Message, Subject};
use postwire::Refusal;

/// Each of these tests wants the machine for itself.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fails when a process that has nothing to do is busy.
fn assert_rests(pid: Pid) {
    let (before, started) = (processor_time(pid), Instant::now());
    while started.elapsed() < Duration::from_secs(1) {
        std::thread::park_timeout(Duration::from_millis(100));
    }
    let used = processor_time(pid) - before;
    assert!(used < started.elapsed() / 4, "{used:?} of {:?}", started.elapsed());
}

/// Sets the soft limit on descriptors of a process that runs.
fn limit_descriptors(pid: Pid, current: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(current), maximum }).unwrap();
}

/// Clients that all come at once, each with a text and a file: all of them are served in the end.
fn crowd(address: &str, count: u64, scratch: &Scratch, inbox: &str) {
    let mut clients: Vec<(u64, String, Running)> = (0..count)
        .map(|number| {
            let file = scratch.file(&format!("f{number}"), 1000 + number, number + 1);
            let text = format!("text {number}");
            (number, file.clone(), client_spawn(&["--to", address, "--retry", "30s", "--text", &text, "--file", &file]))
        })
        .collect();
    for (number, file, client) in &mut clients {
        client.wait().assert_code(0);
        assert_same_file(file, format!("{inbox}/f{number}"));
    }
}

/// How often each text of [`crowd`] came, at most and in all.
fn texts(stdout: &str) -> (usize, usize) {
    let mut texts: Vec<&str> =
        stdout.lines().filter_map(|line| line.split_once(": text ")).map(|line| line.1).collect();
    let all = texts.len();
    texts.sort_unstable();
    texts.dedup();
    (texts.len(), all)
}

fn with_64_descriptors() -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 64; exec \"$@\"", "sh", BINARY]);
    command
}

#[test]
fn two_hundred_clients_at_once_are_served_by_a_server_with_64_descriptors() {
    let _alone = alone();
    let scratch = Scratch::new();
    let inbox = scratch.directory("inbox");
    let mut server = Server::start_by(with_64_descriptors(), &["--dir", &inbox]);
    server.wait_stderr(|line| line.starts_with("takes ") && line.ends_with("for want of open files (ulimit -n)"));
    crowd(&server.address(), 200, &scratch, &inbox);
    let started = Instant::now();
    client(&["--to", &server.address(), "--text", "fresh"]).assert_code(0);
    // A moment; the bound is for a loaded machine.
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_rests(server.pid());
    let run = server.terminate();
    run.assert_code(0);
    assert_eq!(texts(&run.stdout), (200, 200));
}

#[test]
fn hundreds_of_small_files_of_many_chunks_need_few_descriptors_on_either_side() {
    let _alone = alone();
    let scratch = Scratch::new();
    let inbox = scratch.directory("inbox");
    // So little memory makes small chunks: each file takes two of them.
    let mut server = Server::start_by(with_64_descriptors(), &["--dir", &inbox, "--max-memory", "2M", "--no-fsync"]);
    server.wait_stderr(|line| line.ends_with("for want of open files (ulimit -n)"));
    for number in 0..300 {
        scratch.file(&format!("tree/f{number}"), 100_000, number + 1);
    }
    let mut command = with_64_descriptors();
    command.args(["client", "-q", "--to", &server.address(), "--file", &scratch.path("tree")]);
    Running::spawn(command).wait().assert_code(0);
    for number in 0..300 {
        assert_same_file(scratch.path(&format!("tree/f{number}")), format!("{inbox}/tree/f{number}"));
    }
    server.terminate().assert_code(0);
}

#[test]
fn accept_waits_for_descriptors_and_goes_on_when_there_are_some() {
    let _alone = alone();
    let server = Server::start(&[]);
    let open: Vec<u64> = fs::read_dir(format!("/proc/{}/fd", server.pid().as_raw_nonzero()))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    let first_free = (0..).find(|number| !open.contains(number)).unwrap();
    for _ in 0..2 {
        limit_descriptors(server.pid(), first_free);
        // The accept that waits already has its descriptor.
        client(&["--to", &server.address(), "--text", "first"]).assert_code(0);
        let mut waiting: Vec<Running> =
            (0..5).map(|_| client_spawn(&["--to", &server.address(), "--text", "waited"])).collect();
        // Long enough for the longest pause, in which nobody is taken in.
        assert_rests(server.pid());
        assert!(waiting.iter_mut().all(|client| !client.ends_within(Duration::ZERO)), "there is no descriptor for it");
        limit_descriptors(server.pid(), 1000);
        let started = Instant::now();
        waiting.iter_mut().for_each(|client| {
            client.wait().assert_code(0);
        });
        // A second at most; the rest is for a loaded machine.
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
    let run = server.terminate();
    run.assert_code(0);
    let told = run.stderr.lines().filter(|line| line.starts_with("no connections for a while: ")).count();
    run.assert(told == 1, "one line for all of it");
}

/// `prlimit` with these arguments, as another user.
fn prlimit_as(uid: u32, arguments: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={uid}"), "--clear-groups", "prlimit"]).args(arguments);
    command
}

/// Sets the soft limit on the processes of that user, where a process of it starts one.
fn limit_processes(uid: u32, pid: Pid, most: u32) {
    let pid = pid.as_raw_nonzero().to_string();
    assert!(prlimit_as(uid, &["--pid", &pid, &format!("--nproc={most}:")]).status().unwrap().success());
}

/// A server of a user of its own, so that the limit on processes binds it and counts nobody else; `None` where there is no way.
fn server_of_another_user(uid: u32, processes: u32, scratch: &Scratch) -> Option<(Running, String)> {
    if !geteuid().is_root() || !prlimit_as(uid, &["true"]).status().is_ok_and(|status| status.success()) {
        println!("skipped: takes root, and setpriv and prlimit of util-linux");
        return None;
    }
    let everybody = |path: &str, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let (binary, inbox) = (scratch.path("postwire"), scratch.directory("inbox"));
    fs::copy(BINARY, &binary).unwrap();
    everybody(&scratch.path(""), 0o755);
    everybody(&binary, 0o755);
    everybody(&inbox, 0o777);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let limit = format!("--nproc={processes}:");
    let command = prlimit_as(uid, &[&limit, &binary, "server", "--listen", "-", "--dir", &inbox]);
    let mut server = Running::spawn_on(command, OwnedFd::from(listener).into());
    server.wait_stderr(|line| line.starts_with("listening on "));
    Some((server, address))
}

#[test]
fn a_crowd_is_served_by_a_server_with_40_processes() {
    let _alone = alone();
    let scratch = Scratch::new();
    let Some((mut server, address)) = server_of_another_user(64_321, 40, &scratch) else { return };
    server.wait_stderr(|line| line.starts_with("takes ") && line.ends_with("for want of processes (ulimit -u)"));
    crowd(&address, 50, &scratch, &scratch.path("inbox"));
    client(&["--to", &address, "--text", "fresh"]).assert_code(0);
    assert_rests(server.pid());
    server.signal(Signal::TERM);
    let run = server.wait();
    run.assert_code(0);
    assert_eq!(texts(&run.stdout), (50, 50));
}

#[test]
fn without_a_thread_for_it_a_client_is_told_so_and_the_others_stay() {
    let _alone = alone();
    let scratch = Scratch::new();
    let Some((mut server, address)) = server_of_another_user(64_322, 4000, &scratch) else { return };
    let mut ann = client_spawn(&["--to", &address, "--nick", "ann"]);
    server.wait_stderr(|line| line == "ann joined");
    // What has arrived when the threads run out is stored all the same.
    let large = scratch.file("large", 1_200_000, 2);
    let mut sender = client_spawn(&["--to", &address, "--limit-rate", "600k", "--file", &large]);
    until("data in the inbox", || {
        let has_data = |entry: fs::DirEntry| entry.metadata().is_ok_and(|metadata| metadata.len() > 0);
        fs::read_dir(scratch.path("inbox")).unwrap().flatten().any(has_data).then_some(())
    });
    limit_processes(64_322, server.pid(), 1);
    // A disk thread that found nothing to do for a moment ended, and the connection with it: then the next one has to wait.
    sender.ends_within(Duration::from_secs(5));
    let file = scratch.file("f", 300_000, 1);
    let run = client(&["--to", &address, "--text", "now"]);
    run.assert_code(7).assert(run.stderr.contains("too many connections"), "it is told why");
    server.wait_stderr(|line| line.starts_with("no connections for a while: can't start a thread: "));
    let mut later = client_spawn(&["--to", &address, "--retry", "30s", "--text", "later", "--file", &file]);
    assert_rests(server.pid());
    // What needs no thread goes on.
    ann.type_line("still here");
    server.wait_stdout(|line| line == "ann: still here");
    limit_processes(64_322, server.pid(), 4000);
    sender.wait().assert_code(0);
    assert_same_file(&large, scratch.path("inbox/large"));
    later.wait().assert_code(0);
    assert_same_file(&file, scratch.path("inbox/f"));
    ann.close_stdin();
    ann.wait().assert_code(0);
    // Nor does the end need a thread.
    limit_processes(64_322, server.pid(), 1);
    server.signal(Signal::TERM);
    server.wait().assert_code(0);
}

/// A connection that says nothing.
fn stranger(from: [u8; 4], port: u16) -> TcpStream {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &std::net::SocketAddr::from((from, 0))).unwrap();
    connect(&socket, &std::net::SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    TcpStream::from(socket)
}

/// What is said to who says nothing; `None` for nothing.
fn refusal(stranger: &mut TcpStream) -> Option<Refusal> {
    stranger.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut said = Vec::new();
    stranger.read_to_end(&mut said).unwrap();
    match Decoder::for_client().decode(&said).unwrap() {
        (_, Some(Frame::Message(Message::Refused { subject: Subject::Connection, refusal }))) => Some(refusal),
        (0, None) => None,
        other => panic!("{other:?}"),
    }
}

fn hears_nothing(stranger: &mut TcpStream) -> bool {
    stranger.set_nonblocking(true).unwrap();
    matches!(stranger.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn strangers_over_the_limit_are_told_busy_at_once_and_the_others_are_heard() {
    let _alone = alone();
    let server = Server::start(&["--max-clients", "1"]);
    // As many from one address, then as many in all, and from each one more.
    let mut within = Vec::new();
    for last in 1..=u8::try_from(STRANGERS_MAX / STRANGERS_PER_ADDRESS_MAX).unwrap() {
        let address = [127, 0, 0, last];
        within.extend((0..STRANGERS_PER_ADDRESS_MAX).map(|_| stranger(address, server.port())));
        let refused = refusal(&mut stranger(address, server.port()));
        let most = if within.len() < STRANGERS_MAX { STRANGERS_PER_ADDRESS_MAX } else { STRANGERS_MAX };
        assert_eq!(refused, Some(Refusal::Busy(u64::try_from(most).unwrap())), "from {address:?}");
    }
    let elsewhere = refusal(&mut stranger([127, 0, 0, 99], server.port()));
    assert_eq!(elsewhere, Some(Refusal::Busy(u64::try_from(STRANGERS_MAX).unwrap())));
    assert!(within.iter_mut().all(hears_nothing), "those within the limit have time for their hello");
    let run = client(&["--to", &server.address(), "--text", "now"]);
    run.assert_code(7).assert(run.stderr.contains("too many connections"), "it is told why");
    // One place is enough for all who know what to say.
    let mut later = client_spawn(&["--to", &server.address(), "--retry", "30s", "--text", "later"]);
    drop(within);
    later.wait().assert_code(0);
    let run = server.terminate();
    run.assert_code(0);
    let told = run.stderr.lines().filter(|line| line.contains("too many connections")).count();
    run.assert((1..=8).contains(&told), "a line for each run of them");
}

#[test]
fn as_many_clients_are_taken_as_may_be_and_one_more_is_told_busy() {
    let _alone = alone();
    let mut server = Server::start(&["--max-clients", "2"]);
    let mut chat = |nick: &str| {
        let client = client_spawn(&["--to", &server.address(), "--nick", nick]);
        server.wait_stderr(|line| line == format!("{nick} joined"));
        client
    };
    let (mut ann, _bob) = (chat("ann"), chat("bob"));
    let run = client(&["--to", &server.address(), "--text", "one too many"]);
    run.assert_code(7).assert(run.stderr.contains("too many connections (limit 2)"), "it is told why");
    server.wait_stderr(|line| line.contains("too many connections (limit 2:"));
    let mut later = client_spawn(&["--to", &server.address(), "--retry", "30s", "--text", "later"]);
    ann.close_stdin();
    ann.wait().assert_code(0);
    later.wait().assert_code(0);
    let run = server.terminate();
    run.assert_code(0).assert(!run.stdout.contains("one too many"), "nothing was taken of it");
}
