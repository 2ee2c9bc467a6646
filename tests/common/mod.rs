//! Starts the real binary and looks at it from outside: its streams, its exit code, its files.
//!
//! It refuses to wait without a deadline or to sleep for luck: each wait names what it waits for, and a wait that fails prints
//! the command, how it ended and both its streams. End-to-end tests use it: `mod common;`.
#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stderr)]

mod files;
pub mod raw;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::{Deref, DerefMut};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{kill_process, Pid};

pub use rustix::process::Signal;

pub use files::{assert_same_file, random_file, Scratch};

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_postwire");
/// No test waits longer for one thing: far above what a loaded machine needs, far below a person's patience.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A postwire that runs. It is killed when dropped; in a failing test it then prints its streams.
pub struct Running {
    command: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Stream,
    stderr: Stream,
}

/// A postwire that has ended.
#[derive(Debug)]
pub struct Run {
    pub command: String,
    /// The exit code; 128 + N when signal N ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    /// For what is not UTF-8.
    pub stdout_bytes: Vec<u8>,
}

/// `postwire server` on a free port of 127.0.0.1; see [`Running`] for what it can be asked.
pub struct Server {
    running: Running,
    port: u16,
}

/// Looks again and again until `look` finds something.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {DEADLINE:?} for {what}");
        thread::park_timeout(Duration::from_millis(2));
    }
}

/// Runs `postwire client` to its end, with nothing on stdin.
pub fn client(arguments: &[&str]) -> Run {
    client_fed(arguments, b"")
}

/// Runs `postwire client` to its end with `input` on its stdin.
pub fn client_fed(arguments: &[&str], input: &[u8]) -> Run {
    let mut running = client_spawn(arguments);
    let mut stdin = running.stdin.take().unwrap();
    thread::scope(|scope| {
        // Beside the wait: a client that reads no stdin must not hold up the test. It may also end before it read all.
        scope.spawn(move || drop(stdin.write_all(input)));
        running.wait()
    })
}

/// Starts `postwire client`; its stdin is a pipe that stays open until [`Running::close_stdin`].
pub fn client_spawn(arguments: &[&str]) -> Running {
    let mut command = Command::new(BINARY);
    command.arg("client").args(arguments);
    Running::spawn(command)
}

/// What a process has used of the processors.
pub fn processor_time(pid: Pid) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap();
    // After the name in brackets: state, and eleven figures before user and system time, in hundredths of a second.
    let figures: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks = figures[11].parse::<u64>().unwrap() + figures[12].parse::<u64>().unwrap();
    Duration::from_millis(10 * ticks)
}

/// Waits until somebody has written this file; gives its text.
pub fn wait_for_file(path: &str) -> String {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(text) = fs::read_to_string(path).ok().filter(|text| !text.is_empty()) {
            return text;
        }
        assert!(Instant::now() < deadline, "nobody writes {path}");
        thread::park_timeout(LOOK_AGAIN);
    }
}

impl Server {
    /// Starts a server with further arguments, and waits until it listens.
    pub fn start(arguments: &[&str]) -> Server {
        Server::start_by(Command::new(BINARY), arguments)
    }

    /// The same by another command that ends in the program, such as `strace -f POSTWIRE`.
    pub fn start_by(mut command: Command, arguments: &[&str]) -> Server {
        let scratch = Scratch::new();
        let port_file = scratch.path("port");
        command.args(["server", "--listen", "127.0.0.1:0", "--port-file", &port_file]).args(arguments);
        let mut running = Running::spawn(command);
        let port = running.until("the port file", |running| {
            if running.child.try_wait().unwrap().is_some() {
                running.fail("the server ended before it listened");
            }
            // Not there yet, or created and not yet written.
            fs::read_to_string(&port_file).ok().filter(|text| !text.is_empty())
        });
        let port = port.trim().parse().unwrap_or_else(|_| running.fail("the port file holds no port"));
        Server { running, port }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// What `--to` takes.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts it again on its port, once it has ended.
    pub fn restart(&mut self, arguments: &[&str]) {
        let mut command = Command::new(BINARY);
        command.args(["server", "--listen", &self.address()]).args(arguments);
        self.running = Running::spawn(command);
        self.running.wait_stderr(|line| line.starts_with("listening"));
    }

    /// Sends SIGTERM and waits for the end.
    pub fn terminate(mut self) -> Run {
        self.signal(Signal::TERM);
        self.running.wait()
    }
}

impl Deref for Server {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.running
    }
}

impl DerefMut for Server {
    fn deref_mut(&mut self) -> &mut Running {
        &mut self.running
    }
}

impl Running {
    /// Starts `command`, without what the environment may say to it.
    pub fn spawn(command: Command) -> Running {
        Running::spawn_on(command, Stdio::piped())
    }

    /// The same with another stdin than a pipe.
    pub fn spawn_on(mut command: Command, stdin: Stdio) -> Running {
        for variable in ["POSTWIRE_TO", "POSTWIRE_NICK", "POSTWIRE_KEY_FILE", "POSTWIRE_KEY"] {
            command.env_remove(variable);
        }
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take();
        let stdout = Stream::collect(child.stdout.take().unwrap());
        let stderr = Stream::collect(child.stderr.take().unwrap());
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let command = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        Running { command, child, stdin, stdout, stderr }
    }

    /// The process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The most memory that it ever had.
    pub fn peak_memory_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid().as_raw_nonzero())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Types a line into its stdin.
    pub fn type_line(&mut self, line: &str) {
        self.type_bytes(format!("{line}\n").as_bytes());
    }

    /// Types bytes into its stdin.
    pub fn type_bytes(&mut self, bytes: &[u8]) {
        let mut stdin = self.stdin.as_ref().expect("stdin is closed");
        if let Err(error) = stdin.write_all(bytes) {
            self.fail(&format!("can't type {} bytes: {error}", bytes.len()));
        }
    }

    /// The end of its stdin.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits for a line on stdout that `wanted` takes, past or future. Each line is found once.
    pub fn wait_stdout(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        self.until("a line on stdout", |running| running.stdout.find(&wanted))
    }

    /// The same on stderr.
    pub fn wait_stderr(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        self.until("a line on stderr", |running| running.stderr.find(&wanted))
    }

    /// The same on either.
    pub fn wait_either(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        self.until("a line", |running| running.stdout.find(&wanted).or_else(|| running.stderr.find(&wanted)))
    }

    /// The same without waiting.
    pub fn find_stdout(&mut self, wanted: impl Fn(&str) -> bool) -> Option<String> {
        self.stdout.find(&wanted)
    }

    /// Whether it ends within so long.
    pub fn ends_within(&mut self, at_most: Duration) -> bool {
        let deadline = Instant::now() + at_most;
        loop {
            if self.child.try_wait().unwrap().is_some() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.stdout.listen(left);
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for its end, and for the end of its streams.
    pub fn wait(&mut self) -> Run {
        let status = self.until("its end", |running| running.child.try_wait().unwrap());
        self.until("the end of its streams", |running| {
            (running.stdout.has_ended() && running.stderr.has_ended()).then_some(())
        });
        Run {
            command: self.command.clone(),
            code: exit_code(status),
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
            stdout_bytes: self.stdout.bytes(),
        }
    }

    /// Ends it at once, with SIGKILL.
    pub fn kill(&mut self) -> Run {
        self.child.kill().unwrap();
        self.wait()
    }

    /// Looks again and again until `look` finds something; between looks it waits for its streams.
    fn until<T>(&mut self, what: &str, mut look: impl FnMut(&mut Running) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            // Looked up before the look, so that nothing can come between an end and the last look.
            let is_late = Instant::now() >= deadline;
            if let Some(found) = look(self) {
                return found;
            }
            if is_late {
                self.fail(&format!("waited {DEADLINE:?} for {what}"));
            }
            self.stdout.listen(LOOK_AGAIN);
            self.stderr.listen(LOOK_AGAIN);
            if self.stdout.has_ended && self.stderr.has_ended {
                // Nothing wakes this thread any more: without a pause it would take a processor for itself.
                let (_open, never) = mpsc::channel::<()>();
                let _ = never.recv_timeout(LOOK_AGAIN);
            }
        }
    }

    fn fail(&mut self, why: &str) -> ! {
        panic!("{why}: {}", self.command) // dropping `self` prints the rest
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let ended = self.child.try_wait().ok().flatten();
        if ended.is_none() {
            // It may end in this moment; a zombie takes the signal too.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if thread::panicking() {
            let ended = ended.map_or("still running".into(), |status| format!("exit code {}", exit_code(status)));
            self.stdout.listen(LAST_WORDS);
            self.stderr.listen(LAST_WORDS);
            eprintln!("{}", report(&self.command, &ended, &self.stdout.text(), &self.stderr.text()));
        }
    }
}

impl Run {
    /// Fails the test, with everything said, unless it ended with `code`.
    #[track_caller]
    pub fn assert_code(&self, code: i32) -> &Run {
        self.assert(self.code == code, &format!("expected exit code {code}"))
    }

    /// Fails the test, with everything said, unless `holds`.
    #[track_caller]
    pub fn assert(&self, holds: bool, rule: &str) -> &Run {
        let Run { command, code, stdout, stderr, .. } = self;
        assert!(holds, "{rule}\n{}", report(command, &format!("exit code {code}"), stdout, stderr));
        self
    }
}

fn report(command: &str, ended: &str, stdout: &str, stderr: &str) -> String {
    format!("command: {command}\n{ended}\n--- stdout\n{stdout}--- stderr\n{stderr}---")
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap()
}

/// What a process writes, a line at a time, read by a thread of its own so that the process never waits for the test.
struct Stream {
    lines: Receiver<Vec<u8>>,
    seen: Vec<Seen>,
    has_ended: bool,
}

struct Seen {
    line: Vec<u8>,
    was_found: bool,
}

impl Stream {
    fn collect(source: impl Read + Send + 'static) -> Stream {
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut source = BufReader::new(source);
            loop {
                let mut line = Vec::new();
                match source.read_until(b'\n', &mut line) {
                    Ok(1..) if sender.send(line).is_ok() => {}
                    _ => return,
                }
            }
        });
        Stream { lines, seen: Vec::new(), has_ended: false }
    }

    /// Waits at most so long for something new, then takes all that is there.
    fn listen(&mut self, mut at_most: Duration) {
        while !self.has_ended {
            match self.lines.recv_timeout(at_most) {
                Ok(line) => self.seen.push(Seen { line, was_found: false }),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => self.has_ended = true,
            }
            at_most = Duration::ZERO;
        }
    }

    fn find(&mut self, wanted: &impl Fn(&str) -> bool) -> Option<String> {
        self.listen(Duration::ZERO);
        self.seen.iter_mut().filter(|seen| !seen.was_found).find_map(|seen| {
            let text = String::from_utf8_lossy(&seen.line).trim_end_matches('\n').to_owned();
            seen.was_found = wanted(&text);
            seen.was_found.then_some(text)
        })
    }

    fn has_ended(&mut self) -> bool {
        self.listen(Duration::ZERO);
        self.has_ended
    }

    fn bytes(&self) -> Vec<u8> {
        self.seen.iter().flat_map(|seen| seen.line.iter().copied()).collect()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}

/// How long one look waits for a stream: short, as the end of a process is found by looking.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How long a killed process's last words may take through its pipe.
const LAST_WORDS: Duration = Duration::from_millis(200);
