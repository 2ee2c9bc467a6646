//! Programs that are measured: how long they take, what they cost, what they hold; and those that only listen meanwhile.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{kill_process, Pid, Signal};

use crate::common::{until, Server, BINARY};

/// What a run took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    pub wall_seconds: f64,
    /// Of both sides, user and system.
    pub cpu_seconds: f64,
}

/// Runs `work`, and counts the processor time of the children that end in it and of the server that goes on.
pub fn timed(server: Option<&Server>, work: impl FnOnce()) -> Cost {
    let cpu = || ended_children_cpu() + server.map_or(0.0, |server| own_cpu(server.pid()));
    let (before, begin) = (cpu(), Instant::now());
    work();
    Cost { wall_seconds: begin.elapsed().as_secs_f64(), cpu_seconds: cpu() - before }
}

fn ended_children_cpu() -> f64 {
    cpu_fields("self", 13)
}

fn own_cpu(pid: Pid) -> f64 {
    cpu_fields(&pid.as_raw_nonzero().to_string(), 11)
}

/// User and system time out of /proc/PID/stat, counted from the field after the name.
fn cpu_fields(process: &str, first: usize) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u32 = fields[first..first + 2].iter().map(|ticks| ticks.parse::<u32>().unwrap()).sum();
    f64::from(ticks) / TICKS_PER_SECOND
}

/// What it has in memory now.
pub fn resident_kib(pid: Pid) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// A program that is to end well.
pub struct Started {
    command: String,
    child: Child,
}

/// Starts a program.
pub fn start(mut command: Command) -> Started {
    let shown = format!("{command:?}");
    let child = command.spawn().unwrap_or_else(|error| panic!("can't run {shown}: {error}"));
    Started { command: shown, child }
}

impl Started {
    /// Waits for its end without a look in between, which would be measured.
    pub fn finish(mut self) {
        let pid = Pid::from_child(&self.child);
        let (done, waiting) = mpsc::channel::<()>();
        let watch = thread::spawn(move || {
            if waiting.recv_timeout(TIME_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
                kill_process(pid, Signal::KILL).unwrap();
            }
        });
        let status = self.child.wait().unwrap();
        drop(done);
        watch.join().unwrap();
        assert!(status.success(), "{}: {status}", self.command);
    }
}

/// Runs a program to its end.
pub fn run(command: Command) {
    start(command).finish();
}

/// `program` with `arguments`, nothing on stdin, and an output that nobody wants.
pub fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// `postwire client --to ADDRESS`, silent, with further arguments.
pub fn client(address: &str, arguments: &[&str]) -> Command {
    let mut client = command(BINARY, &["client", "-q", "--to", address]);
    client.args(arguments);
    client
}

/// A server whose output is thrown away: to read it would cost processor time.
pub fn server(arguments: &[&str]) -> Server {
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" >/dev/null 2>&1", BINARY]);
    Server::start_by(shell, arguments)
}

/// A peer's server, ended when dropped.
pub struct Daemon {
    child: Child,
    pub port: u16,
}

impl Daemon {
    /// Starts it on the port that it was told, and waits until it listens.
    pub fn start(port: u16, mut command: Command) -> Daemon {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.unwrap_or_else(|error| panic!("can't run {command:?}: {error}"));
        let daemon = Daemon { child, port };
        until_listening(port);
        daemon
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// For those that can't tell which port 0 became.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Looks without a connection, as some take only one.
pub fn until_listening(port: u16) {
    let socket = format!(":{port:04X} 00000000:0000 0A ");
    until("a peer that listens", || fs::read_to_string("/proc/net/tcp").unwrap().contains(&socket).then_some(()));
}

/// USER_HZ, the same on every Linux that matters here.
const TICKS_PER_SECOND: f64 = 100.0;
/// Nothing that is measured takes longer.
const TIME_MAX: Duration = Duration::from_secs(600);
