//! `--exec`: a program that runs for each file and text that came, four at once, the others in order.
//!
//! It refuses to interpret: one path, no shell, nothing from a peer on a command line. What came is told in variables of the
//! environment, and a text is the program's standard input. `print` passes in the events, and says what became of each run.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{self, Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use postwire::{config, Error, Event, Kind, Nickname, Receipt, Result, Text};
use rustix::fs::{access, memfd_create, Access, MemfdFlags};
use rustix::io::Errno;
use rustix::process::{kill_process_group, waitid, Pid, Signal, WaitId, WaitIdOptions};

use super::feed::spawn;
use super::options::{Side, Usage};

/// Runs the program. Clones are handles to the same one.
#[derive(Clone)]
pub struct Exec {
    shared: Arc<Shared>,
}

/// A run of the program that is over.
#[derive(Debug)]
pub struct Ended {
    pub came: Came,
    pub outcome: Outcome,
    pub elapsed: Duration,
}

/// What a run is for.
#[derive(Debug, Clone)]
pub struct Came {
    /// A file's name as offered; a text has none.
    pub file: Option<Vec<u8>>,
    pub nick: String,
}

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    Code(i32),
    Signal(i32),
    /// By us: it took too long.
    Killed,
    NotStarted(io::Error),
    /// We were told to stop before its turn came.
    Dropped,
}

/// One run to be done.
struct Task {
    came: Came,
    variables: [(&'static str, OsString); 7],
    text: Option<String>,
}

struct Shared {
    program: PathBuf,
    /// Where received files are.
    dir: Option<PathBuf>,
    limits: Limits,
    report: Box<dyn Fn(&Ended) + Send + Sync>,
    state: Mutex<State>,
    /// Something of the state is another.
    changed: Condvar,
}

/// How long a run may take, and how long when we were told to stop.
#[derive(Clone, Copy)]
struct Limits {
    run: Duration,
    stop: Duration,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Task>,
    running: Vec<Running>,
    /// Until when a run may go on after we were told to stop.
    stops_at: Option<Instant>,
}

struct Running {
    /// Which of our threads looks after it.
    worker: usize,
    /// Its process, from its start until it is reaped: so long the number means this process.
    process: Option<Pid>,
    kill_at: Instant,
    was_killed: bool,
}

/// What a process that was killed may take to end; one that takes longer hangs in the kernel, and nobody waits for it.
const KILLED_ENDS_WITHIN: Duration = Duration::from_secs(1);

/// Whether `program` can be run, before anything is opened.
pub fn check(side: Side, program: &Path) -> std::result::Result<(), Usage> {
    let is_file = program.metadata().map(|metadata| metadata.is_file());
    let why = match (is_file, access(program, Access::EXEC_OK)) {
        (Ok(true), Ok(())) => return Ok(()),
        (Ok(false), _) => "which is no file".to_owned(),
        (Ok(true), Err(error)) => io::Error::from(error).to_string(),
        (Err(error), _) => error.to_string(),
    };
    let got = format!("\"{}\": {why}", postwire::escape_path(program));
    Err(Usage::takes(side, "--exec", "exec", &got))
}

impl Exec {
    /// Gets ready to run `program` for what comes, files into `dir`. `report` hears the end of each run, on another thread.
    ///
    /// # Errors
    /// [`Error::System`] without threads, [`Error::File`] without a current directory.
    pub fn start(program: &Path, dir: Option<&Path>, report: impl Fn(&Ended) + Send + Sync + 'static) -> Result<Exec> {
        Exec::with_limits(program, dir, Limits { run: config::EXEC_TIMEOUT, stop: config::STOP_TIMEOUT }, report)
    }

    fn with_limits(
        program: &Path,
        dir: Option<&Path>,
        limits: Limits,
        report: impl Fn(&Ended) + Send + Sync + 'static,
    ) -> Result<Exec> {
        let shared = Arc::new(Shared {
            // With a slash it is not looked for in PATH.
            program: absolute(program)?,
            dir: dir.map(absolute).transpose()?,
            limits,
            report: Box::new(report),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        for worker in 0..config::EXEC_AT_ONCE {
            let shared = Arc::clone(&shared);
            spawn("exec", move || shared.work(worker))?;
        }
        let guard = Arc::clone(&shared);
        spawn("exec guard", move || guard.guard())?;
        Ok(Exec { shared })
    }

    /// Runs the program when the event is a file or a text that came. Waits while too many runs wait, so that whoever sends
    /// texts waits too.
    pub fn hear(&self, event: &Event) {
        let task = match event {
            Event::Received(receipt) if receipt.kind != Kind::Directory => self.shared.for_file(receipt),
            Event::Text(text) => for_text(text),
            _ => return,
        };
        let is_full = |state: &mut State| state.waiting.len() >= config::EXEC_WAITING_MAX && state.stops_at.is_none();
        let mut state = self.shared.wait_while(is_full);
        if state.stops_at.is_some() {
            drop(state);
            return self.shared.dropped(task);
        }
        state.waiting.push_back(task);
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Starts no more, and gives those that run 10 s.
    pub fn stop(&self) {
        let stops_at = Instant::now() + self.shared.limits.stop;
        let dropped = {
            let mut state = self.shared.lock();
            state.stops_at = Some(stops_at);
            state.running.iter_mut().for_each(|running| running.kill_at = running.kill_at.min(stops_at));
            std::mem::take(&mut state.waiting)
        };
        self.shared.changed.notify_all();
        dropped.into_iter().for_each(|task| self.shared.dropped(task));
    }

    /// Waits until all has run.
    pub fn finish(&self) {
        drop(self.shared.wait_while(|state| !state.waiting.is_empty() || !state.running.is_empty()));
    }
}

impl Shared {
    fn for_file(&self, receipt: &Receipt) -> Task {
        let path = self.dir.as_deref().unwrap_or(Path::new("")).join(OsStr::from_bytes(&receipt.stored));
        let came = Came { file: Some(receipt.name.clone()), nick: nick(receipt.peer.as_ref()) };
        let address = receipt.address.map_or(String::new(), |address| address.to_string());
        Task {
            variables: [
                ("RECEIVED_TYPE", "file".into()),
                ("RECEIVED_NAME", OsStr::from_bytes(&receipt.name).to_owned()),
                ("RECEIVED_PATH", path.into()),
                ("RECEIVED_BYTES", receipt.bytes.to_string().into()),
                ("RECEIVED_CRC32", format!("{:08x}", receipt.crc32).into()),
                ("RECEIVED_NICK", came.nick.clone().into()),
                ("RECEIVED_ADDRESS", address.into()),
            ],
            came,
            text: None,
        }
    }

    /// A thread that does one run after the other.
    fn work(&self, worker: usize) {
        loop {
            let task = self.next_task(worker);
            let started = Instant::now();
            let outcome = self.run(worker, &task).unwrap_or_else(Outcome::NotStarted);
            (self.report)(&Ended { came: task.came, outcome, elapsed: started.elapsed() });
            self.lock().running.retain(|running| running.worker != worker);
            self.changed.notify_all();
        }
    }

    fn next_task(&self, worker: usize) -> Task {
        loop {
            let mut state = self.wait_while(|state| state.waiting.is_empty());
            let Some(task) = state.waiting.pop_front() else { continue };
            let kill_at = Instant::now() + self.limits.run;
            state.running.push(Running { worker, process: None, kill_at, was_killed: false });
            drop(state);
            // There is room for one more.
            self.changed.notify_all();
            return task;
        }
    }

    fn run(&self, worker: usize, task: &Task) -> io::Result<Outcome> {
        let mut child = self.start_process(task)?;
        let process = Pid::from_child(&child);
        self.set_process(worker, Some(process));
        // It is left unreaped until the guard no longer knows it.
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while matches!(waitid(WaitId::Pid(process), ended), Err(Errno::INTR)) {}
        let was_killed = self.set_process(worker, None);
        let status = child.wait()?;
        Ok(match (status.code(), status.signal()) {
            (Some(code), _) => Outcome::Code(code),
            (None, _) if was_killed => Outcome::Killed,
            (None, signal) => Outcome::Signal(signal.unwrap_or_default()),
        })
    }

    fn start_process(&self, task: &Task) -> io::Result<Child> {
        let stdin = match &task.text {
            Some(text) => Stdio::from(in_memory(text)?),
            None => Stdio::null(),
        };
        let stdout = io::stderr().as_fd().try_clone_to_owned()?;
        let variables = task.variables.iter().map(|(name, value)| (name, value));
        Command::new(&self.program).envs(variables).stdin(stdin).stdout(stdout).process_group(0).spawn()
    }

    /// Tells the guard which process a worker looks after; gives whether the guard killed it.
    fn set_process(&self, worker: usize, process: Option<Pid>) -> bool {
        let mut state = self.lock();
        let running = state.running.iter_mut().find(|running| running.worker == worker);
        let was_killed = running.is_some_and(|running| {
            running.process = process;
            running.was_killed
        });
        drop(state);
        self.changed.notify_all();
        was_killed
    }

    /// A thread that kills what takes too long.
    fn guard(&self) {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let known = state.running.len();
            state.running.retain_mut(|running| running.kill_at > now || running.kill(now));
            if state.running.len() < known {
                self.changed.notify_all();
            }
            let next = state.running.iter().map(|running| running.kill_at).min();
            let left = next.map_or(self.limits.run, |next| next.saturating_duration_since(now));
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn dropped(&self, task: Task) {
        (self.report)(&Ended { came: task.came, outcome: Outcome::Dropped, elapsed: Duration::ZERO });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while(&self, condition: impl FnMut(&mut State) -> bool) -> MutexGuard<'_, State> {
        self.changed.wait_while(self.lock(), condition).unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Code(code) => write!(f, "exit code {code}"),
            Outcome::Signal(number) => write!(f, "ended by signal {number}"),
            Outcome::Killed => write!(f, "killed, it took too long"),
            Outcome::NotStarted(error) => write!(f, "can't be started: {error}"),
            Outcome::Dropped => write!(f, "not run, we stop"),
        }
    }
}

impl Running {
    /// Kills its process and what that started in its group. Gives `false` when that was done a while ago.
    fn kill(&mut self, now: Instant) -> bool {
        self.kill_at = now + KILLED_ENDS_WITHIN;
        let Some(process) = self.process else { return true };
        // The group is there until its first process is reaped.
        let _ = kill_process_group(process, Signal::KILL);
        !std::mem::replace(&mut self.was_killed, true)
    }
}

fn for_text(text: &Text) -> Task {
    let came = Came { file: None, nick: nick(text.from.as_ref()) };
    Task {
        variables: [
            ("RECEIVED_TYPE", "text".into()),
            ("RECEIVED_NAME", OsString::new()),
            ("RECEIVED_PATH", OsString::new()),
            ("RECEIVED_BYTES", text.text.len().to_string().into()),
            ("RECEIVED_CRC32", format!("{:08x}", crc32fast::hash(text.text.as_bytes())).into()),
            ("RECEIVED_NICK", came.nick.clone().into()),
            ("RECEIVED_ADDRESS", text.address.to_string().into()),
        ],
        came,
        text: Some(text.text.clone()),
    }
}

/// What the server says itself appears under this name.
fn nick(peer: Option<&Nickname>) -> String {
    peer.map_or("server", Nickname::as_str).to_owned()
}

/// A file without a name. Unlike a pipe it holds a text whole, whether the program reads it or not.
fn in_memory(text: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create("text", MemfdFlags::CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    path::absolute(path).map_err(|source| Error::File { action: "find", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::sync::mpsc::{self, Receiver};
    use std::thread;

    const LONG: Duration = Duration::from_secs(600);
    const DEADLINE: Duration = Duration::from_secs(30);

    /// Runs a program that never ends.
    fn hanging(run: Duration, stop: Duration) -> (Exec, Receiver<String>) {
        let (sender, reports) = mpsc::channel();
        let report = move |ended: &Ended| {
            let name = ended.came.file.clone().unwrap_or_default();
            let _ = sender.send(format!("{} {:?}", String::from_utf8_lossy(&name), ended.outcome));
        };
        let program = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/hang"));
        (Exec::with_limits(program, None, Limits { run, stop }, report).unwrap(), reports)
    }

    /// Who opens it for writing waits for a reader.
    fn fifo(dir: &Path) -> PathBuf {
        let path = dir.join("fifo");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    }

    /// Reads a FIFO to its end: a word when somebody has opened it for writing, another when nobody has any more.
    fn read(fifo: &Path) -> Receiver<&'static str> {
        let (sender, words) = mpsc::channel();
        let fifo = fifo.to_owned();
        thread::spawn(move || {
            let file = File::open(fifo).unwrap();
            let _ = sender.send("open");
            let _ = io::copy(&mut &file, &mut io::sink());
            let _ = sender.send("closed");
        });
        words
    }

    fn received(file: &str, stored: &Path) -> Event {
        Event::Received(Receipt {
            direction: postwire::Direction::Incoming,
            kind: Kind::File,
            transfer: 1,
            peer: None,
            address: None,
            request: None,
            source: None,
            name: file.into(),
            stored: stored.as_os_str().as_bytes().into(),
            bytes: 1,
            crc32: 1,
            durable: true,
            already: false,
            resumed_bytes: 0,
            grew: false,
            elapsed: Duration::ZERO,
        })
    }

    #[test]
    fn a_run_that_takes_too_long_is_killed_and_the_next_one_begins() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path());
        let (exec, reports) = hanging(Duration::from_millis(20), LONG);
        let count = 3 * config::EXEC_AT_ONCE;
        (0..count).for_each(|_| exec.hear(&received("a", &path)));
        exec.finish();
        assert_eq!(reports.try_iter().collect::<Vec<_>>(), vec!["a Killed"; count]);
    }

    #[test]
    fn all_that_the_program_started_is_killed_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path());
        let words = read(&path);
        let (exec, reports) = hanging(LONG, Duration::ZERO);
        exec.hear(&received("a", &path));
        assert_eq!(words.recv_timeout(DEADLINE), Ok("open"));
        exec.stop();
        assert_eq!(words.recv_timeout(DEADLINE), Ok("closed"));
        assert_eq!(reports.recv_timeout(DEADLINE).unwrap(), "a Killed");
    }

    #[test]
    fn what_waits_is_dropped_when_we_are_told_to_stop() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path());
        let (exec, reports) = hanging(LONG, Duration::ZERO);
        (0..=config::EXEC_AT_ONCE).for_each(|number| exec.hear(&received(&number.to_string(), &path)));
        let some_start = |state: &mut State| state.running.len() < config::EXEC_AT_ONCE;
        drop(exec.shared.changed.wait_timeout_while(exec.shared.lock(), DEADLINE, some_start).unwrap());
        exec.stop();
        exec.hear(&received("late", &path));
        exec.finish();
        let mut reports: Vec<String> = reports.try_iter().collect();
        reports.sort();
        assert_eq!(reports, ["0 Killed", "1 Killed", "2 Killed", "3 Killed", "4 Dropped", "late Dropped"]);
    }

    #[test]
    fn only_so_many_wait_and_who_has_another_waits_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path());
        let (exec, reports) = hanging(LONG, Duration::ZERO);
        let most = config::EXEC_AT_ONCE + config::EXEC_WAITING_MAX;
        (0..most).for_each(|_| exec.hear(&received("a", &path)));
        let (heard, later) = (mpsc::channel(), exec.clone());
        let one_more = received("one more", &path);
        thread::spawn(move || {
            later.hear(&one_more);
            heard.0.send(()).unwrap();
        });
        assert!(heard.1.recv_timeout(Duration::from_millis(100)).is_err(), "there is no room for it");
        exec.stop();
        heard.1.recv_timeout(DEADLINE).unwrap();
        exec.finish();
        assert_eq!(reports.try_iter().count(), most + 1);
    }
}
