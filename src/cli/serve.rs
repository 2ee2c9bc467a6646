//! The run of a server: it prints what happens and does what its console says, until it is told to stop.

use std::fs;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postwire::config::descriptors_for;
use postwire::{Direction, Error, Event, Nickname, Refusal, RequestId, Result, Server};
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
use signal_hook::consts::SIGINT;

use super::args::{Listen, ServerOrder};
use super::asked::Asked;
use super::console::{self, Command};
use super::editor::Typed;
use super::exit::Exit;
use super::feed::{Feed, Gate, Happening};
use super::input::Line;
use super::options::Side;
use super::print::{self, Printer, Run};
use super::{screen, with_exec};

/// What it means to have no key where anybody may come.
const OPEN: &str = "no key: anybody who reaches this port can send here and talk; see --key-file and --allow";

/// Whether others than this machine's and its neighbours' may reach an address.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !(v4.is_loopback() || v4.is_private() || v4.is_link_local()),
        // Unique local addresses, and those of one link.
        IpAddr::V6(v6) => {
            let [first, ..] = v6.segments();
            !(v6.is_loopback() || first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfe80)
        }
    }
}

/// Shells give a program fewer descriptors than it may take.
fn take_descriptors(max_clients: usize) {
    let limit = getrlimit(Resource::Nofile);
    let wanted = u64::try_from(descriptors_for(max_clients)).unwrap_or(u64::MAX);
    let wanted = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    if limit.current.is_some_and(|current| current < wanted) {
        // Where it may not after all, fewer clients are taken.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit });
    }
}

struct Serve {
    server: Server,
    printer: Printer,
    /// Of the console, where there is one.
    gate: Option<Gate>,
    asked: Asked,
    /// Who was asked last what there is.
    lists_from: Option<Nickname>,
}

/// Serves until a signal or `/quit`.
pub fn run(mut order: ServerOrder) -> Result<Exit> {
    let mut feed = Feed::new()?;
    let mut printer = Printer::new(order.output, Run::Server);
    printer = with_exec(printer, order.exec.as_deref(), &order.config, &feed)?;
    let mut one_file = order.output.to_stdout.then(OneFile::default);
    if one_file.is_some() {
        order.config.sink = Some(print::stdout_sink()?);
    }
    take_descriptors(order.config.max_clients);
    let wanted_clients = order.config.max_clients;
    let is_guarded = order.config.key.is_some() || !order.config.allow.is_empty();
    let server = match &order.listen {
        Listen::On(address) => Server::bind(address, order.config)?,
        Listen::Stdin => Server::from_listener(stdin_listener()?, order.config)?,
    };
    printer.listening(server.local_addr());
    if let (clients, Some(by)) = server.max_clients() {
        printer.notice(&format!("takes {clients} clients at once, not {wanted_clients}, for want of {by}"));
    }
    if !is_guarded && is_public(server.server_address()) {
        printer.notice(OPEN);
    }
    if let Some(path) = &order.port_file {
        write_port_file(path, server.server_port())?;
    }
    let events = server.clone();
    feed.add_events(move |timeout| events.next_event(timeout))?;
    let gate = match order.listen {
        Listen::On(_) => Some(printer.add_input(&feed)?),
        Listen::Stdin => None,
    };
    let mut serve = Serve { server, printer, gate, asked: Asked::default(), lists_from: None };
    let mut exit = None;
    loop {
        let stop = match feed.next() {
            Happening::Event(event) => {
                serve.hear(&event);
                let one_file = one_file.as_mut().filter(|_| exit.is_none());
                match one_file.and_then(|one_file| one_file.hear(&event, &mut feed)) {
                    Some(ended) => ended,
                    None => continue,
                }
            }
            Happening::Line(line) => {
                if !serve.line(line) {
                    serve.gate.iter().for_each(Gate::open);
                    continue;
                }
                Exit::Done
            }
            Happening::InputEnded => continue,
            Happening::Signal(SIGINT) => Exit::Signal(SIGINT),
            Happening::Signal(_) => Exit::Done,
            // Before we stopped it there is no end; if there is one, it is a failure.
            Happening::TimeUp if exit.is_none() => {
                serve.printer.fatal("the sender did not come back");
                Exit::Timeout
            }
            Happening::EventsEnded | Happening::TimeUp => {
                serve.printer.finish();
                return exit.ok_or(Error::Closed);
            }
        };
        exit = Some(stop);
        serve.printer.notice("stopping: open transfers get 10 s, a second signal ends them");
        serve.server.stop();
        feed.end_soon();
    }
}

/// What a server does that writes one file to standard output.
#[derive(Default)]
struct OneFile {
    is_begun: bool,
}

/// How long a sender that was cut off may take to come back; its own patience is half of it, unless it was told more.
const COMES_BACK_WITHIN: Duration = Duration::from_secs(60);

impl OneFile {
    /// How the run ends, when the file is there or will not come whole.
    fn hear(&mut self, event: &Event, feed: &mut Feed) -> Option<Exit> {
        match event {
            Event::Progress(progress) => {
                self.is_begun |= progress.direction == Direction::Incoming && progress.bytes > 0;
                feed.end_within(None);
            }
            Event::PeerDisconnected { .. } if self.is_begun => feed.end_within(Some(COMES_BACK_WITHIN)),
            Event::Received(_) => return Some(Exit::Done),
            Event::TransferFailed(failure) if failure.direction == Direction::Incoming => {
                let is_ours = matches!(failure.error, Error::File { .. });
                return (self.is_begun || is_ours).then(|| Exit::of(&failure.error));
            }
            _ => {}
        }
        None
    }
}

impl Serve {
    /// Does what a line says; true when it says to stop.
    fn line(&mut self, line: Line) -> bool {
        let parsed = match line {
            Line::Typed(bytes) => return screen::typed(&bytes).into_iter().any(|typed| self.typed(typed)),
            Line::Text(text) => console::parse(Side::Server, &text),
            Line::TooLong => Err("line not sent: longer than 64 KiB".to_owned()),
            Line::NotUtf8 => Err("line not sent: not UTF-8".to_owned()),
        };
        match parsed {
            Ok(Command::Quit) => return true,
            Ok(command) => self.command(command),
            Err(usage) => self.printer.error(&usage),
        }
        false
    }

    /// ^D is the end of a line here, and of nothing else.
    fn typed(&mut self, typed: Typed) -> bool {
        let Typed::Line(text) = typed else { return false };
        screen::entered(&text);
        self.line(Line::Text(text))
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Say(text) => self.say(None, &text),
            Command::Message { to, text } => self.say(Some(&to), &text),
            Command::Send { path, to } => {
                if let Err(error) = self.server.send_file(to.as_ref(), &path) {
                    match nobody(&error, to.as_ref()) {
                        Some(nobody) => self.printer.error(&format!("file not sent: {nobody}")),
                        None => self.printer.unsendable(&path, &error),
                    }
                }
            }
            Command::Who => self.server.peers().iter().for_each(|peer| self.printer.peer(peer)),
            Command::Kick(nickname) => {
                if let Err(error) = self.server.kick(&nickname) {
                    let why = nobody(&error, Some(&nickname)).unwrap_or_else(|| error.to_string());
                    self.printer.error(&why);
                }
            }
            Command::Help => self.printer.answer(console::help(Side::Server)),
            Command::Get { path, from: Some(from) } => {
                let label = path.to_string();
                self.ask(self.server.get(&from, &path, None), label);
            }
            Command::List { from: Some(from) } => {
                self.ask(self.server.list(&from, None), "/list".to_owned());
                self.lists_from = Some(from);
            }
            Command::Get { .. } | Command::List { .. } | Command::Nick(_) | Command::Quit | Command::Nothing => {}
        }
    }

    fn ask(&mut self, asked: Result<RequestId>, label: String) {
        match asked {
            Ok(id) => self.asked.add(id, label),
            Err(Error::Argument { .. }) => self.printer.error("nothing can be stored here: start with --dir DIR"),
            Err(error) => self.printer.error(&format!("{label}: {error}")),
        }
    }

    /// Says what there is to say about an event, and asks for the rest of a listing.
    fn hear(&mut self, event: &Event) {
        self.asked.say(event, &mut self.printer);
        if let (Event::Listed { entries, more: true, .. }, Some(from)) = (event, self.lists_from.clone()) {
            let next = self.server.list(&from, entries.last().map(|last| &last.path));
            self.ask(next, "/list".to_owned());
        }
    }

    fn say(&mut self, to: Option<&Nickname>, text: &str) {
        if let Err(error) = self.server.send_text(to, text) {
            let why = nobody(&error, to).unwrap_or_else(|| error.to_string());
            self.printer.error(&format!("text not sent: {why}"));
        }
    }
}

/// Who is missing, when that is the error.
fn nobody(error: &Error, to: Option<&Nickname>) -> Option<String> {
    match (error, to) {
        (Error::Refused(Refusal::Nobody), None) => Some("nobody is in the room".to_owned()),
        (Error::Refused(Refusal::Nobody), Some(to)) => Some(format!("nobody is called {to}")),
        _ => None,
    }
}

/// Standard input as a socket; whether it is one is found out by whoever uses it.
fn stdin_listener() -> Result<TcpListener> {
    let stdin = io::stdin().as_fd().try_clone_to_owned();
    stdin.map(TcpListener::from).map_err(|source| Error::System { action: "open standard input", source })
}

/// Whoever waits for the file finds it whole or not at all.
fn write_port_file(path: &Path, port: u16) -> Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let written = fs::write(&beside, format!("{port}\n")).and_then(|()| fs::rename(&beside, path));
    written.map_err(|source| {
        // What is left of it helps nobody.
        let _ = fs::remove_file(&beside);
        Error::File { action: "write", path: path.to_owned(), source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_file_is_whole_and_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("port");
        write_port_file(&path, 1).unwrap();
        write_port_file(&path, 7117).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "7117\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(matches!(write_port_file(&dir.path().join("no/port"), 1), Err(Error::File { .. })));
    }
}
