//! What is said, and where: texts and JSON on standard output, all else on standard error.
//!
//! It refuses to go on without standard output: the process ends inside the call, while the caller still holds the text that
//! could not be printed, so that it is never acknowledged.

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use postwire::{escape_path, Direction, Error, Event, Nickname, PeerInfo, Result, Sink};

use super::advice;
use super::args::{Level, Output};
use super::exec::{Ended, Exec};
use super::exit::Exit;
use super::feed::{Feed, Gate};
use super::human;
use super::json::{self, Object};
use super::log;
use super::progress::Progress;
use super::{screen, terminal};

/// Says what happens, in the form and up to the level that the user chose.
pub struct Printer {
    output: Output,
    run: Run,
    /// A quiet job's first error, and how many came after it.
    held: Option<(String, usize)>,
    exec: Option<Exec>,
    progress: Option<Progress>,
}

/// What the printer speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    Job,
    Room,
    Server,
}

/// Ends the program with one line and the code for it.
pub fn end_with(output: Output, line: impl Display, exit: Exit) -> ! {
    screen::finish();
    let line = format!("postwire: {line}");
    screen::err(&if output.is_log() { log::message(Level::Error, &line) } else { line });
    exit.end()
}

/// `--help` and `--version`.
pub fn print_help(text: &str) {
    if !text.is_empty() {
        to_stdout(Output::PLAIN, text.trim_end_matches('\n'));
    }
}

/// Standard output as the place for one file, unbuffered.
///
/// # Errors
/// [`Error::System`].
pub fn stdout_sink() -> Result<Sink> {
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    let stdout = stdout.map_err(|source| Error::System { action: "use standard output", source })?;
    Ok(Sink::new(File::from(stdout)))
}

/// A program of `--exec` has ended. It is said at once and beside the run, which may be waiting for just that.
pub fn exec_ended(output: Output, ended: &Ended) {
    let (level, line) = human::exec_ended(ended);
    if output.json {
        to_stdout(output, &json::exec_ended(ended).line());
    } else if level <= output.level {
        screen::err(&if output.is_log() { log::object(level, &json::exec_ended(ended)) } else { line });
    }
}

impl Printer {
    pub fn new(output: Output, run: Run) -> Printer {
        Printer { output, run, held: None, exec: None, progress: None }
    }

    /// Passes on what comes to a program too, after it was said.
    pub fn with_exec(self, exec: Exec) -> Printer {
        Printer { exec: Some(exec), ..self }
    }

    pub fn output(&self) -> Output {
        self.output
    }

    /// The lines of standard input; on a terminal they are edited there, and come as bytes that were typed.
    pub fn add_input(&self, feed: &Feed) -> Result<Gate> {
        let edits = terminal::is_for_editing() && !self.output.to_stdout;
        if edits {
            screen::begin_editing();
        }
        feed.add_input(edits)
    }

    /// Whether anybody wants to know how far it is.
    pub fn tells_progress(&self) -> bool {
        self.output.level > Level::Error
    }

    /// Files will come: so many, and so many bytes, where that is known.
    pub fn expect_files(&mut self, files: Option<usize>, bytes: Option<u64>) {
        self.progress = Some(Progress::new(files, bytes, Instant::now()));
    }

    /// Says what there is to say about an event.
    pub fn event(&mut self, event: &Event) {
        self.print_event(event);
        let now = Instant::now();
        if let Some(progress) = &mut self.progress {
            if progress.hear(event, now) {
                screen::draw(now, |columns| progress.line(now, columns));
            }
        }
        if let Some(exec) = &self.exec {
            exec.hear(event);
        }
    }

    fn print_event(&mut self, event: &Event) {
        if let Event::Listed { entries, .. } = event {
            let line = |entry| if self.output.json { json::listed(entry) } else { human::listed(entry) };
            return entries.iter().for_each(|entry| to_stdout(self.output, &line(entry)));
        }
        if self.output.json {
            if let Some(object) = json::event(event) {
                to_stdout(self.output, &object.line());
            }
            return;
        }
        match event {
            Event::Text(text) => {
                let line = human::text(text.from.as_ref(), &text.text);
                match json::event(event) {
                    _ if !self.output.to_stdout => to_stdout(self.output, &line),
                    Some(object) if self.output.is_log() => screen::err(&log::object(Level::Notice, &object)),
                    _ => screen::err(&line),
                }
            }
            Event::Named(nickname) if self.run == Run::Room => self.say(Level::Notice, &format!("you are {nickname}")),
            // Thousands of small files would each be put into words for nobody.
            Event::Sent(receipt) | Event::Received(receipt) if human::of_kind(receipt) > self.output.level => {}
            event => {
                if let Some((level, line)) = human::event(event) {
                    self.say_object(level, &line, || json::event(event));
                }
            }
        }
    }

    /// A server listens.
    pub fn listening(&mut self, address: SocketAddr) {
        let object = || Object::new("listening").address_and_port(address);
        self.object_or_line(object, Level::Notice, &format!("listening on {address}"));
    }

    /// A client is connected.
    pub fn connected(&mut self, address: Option<SocketAddr>, nickname: Option<&Nickname>) {
        let address = address.map(|address| address.to_string());
        let nickname = nickname.map(Nickname::as_str);
        let object = || Object::new("connected").nullable("address", address.as_deref()).nullable("nick", nickname);
        let line = format!("connected to {} as {}", address.as_deref().unwrap_or("?"), nickname.unwrap_or("?"));
        self.object_or_line(object, Level::Detail, &line);
    }

    /// A file of this machine can't be sent.
    pub fn unsendable(&mut self, path: &Path, error: &Error) {
        if let Some(progress) = &mut self.progress {
            progress.failed();
        }
        let name = path.as_os_str().as_encoded_bytes();
        let object = || json::failed(Direction::Outgoing, name, error).nullable("peer", None);
        self.object_or_line(object, Level::Error, &human::unsendable(&escape_path(path), error));
    }

    /// All that was asked for under this name has come, or what of it could not.
    pub fn got(&mut self, name: &str, left_out: u32, failed: u32) {
        let object = || Object::new("got").text("name", name).number("left_out", left_out).number("failed", failed);
        if self.output.json || self.output.is_log() {
            let level = if left_out > 0 || failed > 0 { Level::Error } else { Level::Notice };
            return self.object_or_line(object, level, "");
        }
        if left_out > 0 {
            self.say(Level::Error, &format!("\"{name}\": links and special files are left out ({left_out})"));
        }
        if failed > 0 {
            self.say(Level::Error, &format!("\"{name}\": the other side could not read all of it ({failed} not sent)"));
        }
    }

    /// What was asked for under this name is not to be had.
    pub fn request_failed(&mut self, name: &str, error: &Error) {
        let object = || json::request_failed(name, error);
        self.object_or_line(object, Level::Error, &format!("\"{name}\": {}", advice::line(error)));
    }

    /// One of those who are connected, for `/who`.
    pub fn peer(&mut self, peer: &PeerInfo) {
        let room = if peer.in_room { "in the room" } else { "delivering" };
        let line = format!("{} {} {room}", peer.nickname, peer.address);
        // Quiet or not; in a log it is no error.
        let level = if self.output.is_log() { Level::Notice } else { Level::Error };
        self.object_or_line(|| json::of_peer("peer", peer), level, &line);
    }

    /// What a person asked for, quiet or not; nothing in JSON.
    pub fn answer(&mut self, lines: &str) {
        if !self.output.json {
            screen::err(lines);
        }
    }

    /// A line that a person is glad of; nothing in JSON.
    pub fn notice(&mut self, line: &str) {
        if !self.output.json {
            self.say(Level::Notice, line);
        }
    }

    /// Something went wrong, and the run goes on.
    pub fn error(&mut self, line: &str) {
        self.object_or_line(|| Object::new("error").text("message", line), Level::Error, line);
    }

    /// The error that ends the run, and what to do about it.
    pub fn failed(&mut self, error: &Error) {
        self.fatal(advice::line(error));
    }

    /// Why the run ends, on standard error in any form.
    pub fn fatal(&mut self, line: impl Display) {
        self.say(Level::Error, &format!("postwire: {line}"));
    }

    /// The run is over: waits for the programs that run, and says what there is to say about all of it, and what a quiet job
    /// held back, in one line.
    pub fn finish(&mut self) {
        if let Some(exec) = &self.exec {
            exec.finish();
        }
        if let Some(summary) = self.progress.take().and_then(|progress| progress.summary(Instant::now())) {
            self.notice(&summary);
        }
        match self.held.take() {
            Some((line, 0)) => screen::err(&line),
            Some((line, more)) => screen::err(&format!("{line} (and {more} more)")),
            None => {}
        }
        screen::finish();
    }

    fn object_or_line(&mut self, object: impl FnOnce() -> Object, level: Level, line: &str) {
        if self.output.json {
            to_stdout(self.output, &object().line());
        } else {
            self.say_object(level, line, || Some(object()));
        }
    }

    fn say(&mut self, level: Level, line: &str) {
        self.say_object(level, line, || None);
    }

    /// The line for a person; in a log the object, where there is one.
    fn say_object(&mut self, level: Level, line: &str, object: impl FnOnce() -> Option<Object>) {
        if level > self.output.level {
            return;
        }
        if self.output.is_log() {
            let told = object().map_or_else(|| log::message(level, line), |object| log::object(level, &object));
            return screen::err(&told);
        }
        if self.output.level > Level::Error || self.run != Run::Job {
            screen::err(line);
            return;
        }
        match &mut self.held {
            Some((_, more)) => *more += 1,
            None => self.held = Some((line.to_owned(), 0)),
        }
    }
}

fn to_stdout(output: Output, line: &str) {
    match screen::out(line) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::of_output(&error).end(),
        Err(error) => end_with(output, format_args!("can't write standard output: {error}"), Exit::of_output(&error)),
    }
}
