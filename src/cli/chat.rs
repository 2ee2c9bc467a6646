//! The run of a client with nothing to send: each line of standard input is a text to the room, and at its end the run waits
//! until all it said was answered. On a terminal lines that begin with a slash are commands.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Duration;

use postwire::{config, Client, Direction, Error, Event, Nickname, Recipients, RequestId, State, TransferId};

use super::asked::Asked;
use super::console::{self, Command};
use super::editor::Typed;
use super::exit::{Exit, Tally};
use super::feed::{Feed, Gate, Happening};
use super::input::Line;
use super::options::Side;
use super::print::Printer;
use super::screen;

/// What a text without an answer counts beside its length, so that empty ones are bounded too.
const TEXT_COST: usize = 64;

struct Chat<'a> {
    client: &'a Client,
    printer: &'a mut Printer,
    gate: Gate,
    /// Commands are for people.
    takes_commands: bool,
    /// What was said and not answered: sequence and cost.
    texts_waiting: BTreeMap<u64, usize>,
    /// Files and trees that have no answer yet; a tree's is its last.
    files_waiting: HashSet<TransferId>,
    asked: Asked,
    /// Who was asked last what there is; the server, if nobody.
    lists_from: Option<Nickname>,
    /// Who is in the room beside us.
    room: BTreeSet<Nickname>,
    /// The gate stays shut until some of `texts_waiting` are answered.
    is_full: bool,
    /// Nothing more will be said.
    is_over: bool,
    /// It was connected once: even an empty input ends well only if there is somebody to say nothing to.
    was_connected: bool,
    /// Something was not taken since the run had ended; the event that says why is on its way.
    is_cut_off: bool,
    /// The signal that ended the run.
    signal: Option<i32>,
    tally: Tally,
}

/// Talks until the input ends.
pub fn run(client: &Client, feed: &mut Feed, printer: &mut Printer) -> Result<Exit, Error> {
    let gate = printer.add_input(feed)?;
    let mut chat = Chat {
        client,
        printer,
        gate,
        takes_commands: io::stdin().is_terminal(),
        texts_waiting: BTreeMap::new(),
        files_waiting: HashSet::new(),
        asked: Asked::default(),
        lists_from: None,
        room: BTreeSet::new(),
        is_full: false,
        is_over: false,
        was_connected: false,
        is_cut_off: false,
        signal: None,
        tally: Tally::default(),
    };
    loop {
        match feed.next() {
            Happening::Event(event) => {
                chat.hear(&event);
                if let Event::Disconnected(error) = event {
                    return Ok(chat.ended(error));
                }
            }
            Happening::EventsEnded | Happening::TimeUp => return Ok(chat.ended(None)),
            Happening::Line(line) => {
                chat.line(line);
                chat.open_gate();
            }
            Happening::InputEnded => chat.over(),
            // What was said and not answered would hold up an orderly end.
            Happening::Signal(number) if !chat.is_answered() => {
                client.abort();
                return Ok(Exit::Signal(number));
            }
            Happening::Signal(number) => {
                chat.signal = Some(number);
                client.disconnect();
                feed.end_soon();
            }
        }
    }
}

impl Chat<'_> {
    fn line(&mut self, line: Line) {
        match line {
            _ if self.is_over => {}
            Line::Text(text) if self.takes_commands => match console::parse(Side::Client, &text) {
                Ok(command) => self.command(command),
                Err(usage) => self.printer.error(&usage),
            },
            Line::Text(text) => self.say(None, &text),
            Line::Typed(bytes) => {
                for typed in screen::typed(&bytes) {
                    self.typed(typed);
                }
            }
            Line::TooLong => self.unsaid("line not sent: longer than 64 KiB"),
            Line::NotUtf8 => self.unsaid("line not sent: not UTF-8"),
        }
    }

    /// For the next line, unless too much is unanswered.
    fn open_gate(&mut self) {
        self.is_full = self.texts_waiting.values().sum::<usize>() >= config::TEXT_WINDOW_BYTES;
        if !self.is_full {
            self.gate.open();
        }
    }

    fn typed(&mut self, typed: Typed) {
        match typed {
            Typed::Line(text) => {
                screen::entered(&text);
                self.line(Line::Text(text));
            }
            Typed::End => self.over(),
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Say(text) => self.say(None, &text),
            Command::Message { to, text } => self.say(Some(&to), &text),
            Command::Send { path, to } => match self.send_file(&path, to) {
                Ok(id) => drop(self.files_waiting.insert(id)),
                Err(Error::Closed) => self.is_cut_off = true,
                Err(error) => {
                    self.printer.unsendable(&path, &error);
                    self.tally.failed(Exit::of(&error));
                }
            },
            Command::Get { path, from } => {
                let label = path.to_string();
                self.ask(self.client.get_from(from.as_ref(), &path, None), label);
            }
            Command::List { from } => {
                self.lists_from = from;
                self.ask(self.client.list_from(self.lists_from.as_ref(), None), "/list".to_owned());
            }
            Command::Nick(nickname) => self.client.rename(&nickname),
            Command::Who => self.who(),
            Command::Help => self.printer.answer(console::help(Side::Client)),
            Command::Quit => self.over(),
            Command::Kick(_) | Command::Nothing => {}
        }
    }

    fn send_file(&self, path: &Path, to: Option<Nickname>) -> Result<TransferId, Error> {
        let Some(to) = to else { return self.client.send_file(path) };
        let recipients = Recipients { to: Some(vec![to]), leave: false, wait: Some(Duration::ZERO) };
        self.client.send_file_for(path, None, &recipients)
    }

    fn say(&mut self, to: Option<&Nickname>, text: &str) {
        match self.client.send_text(to, text) {
            Ok(sequence) => {
                self.texts_waiting.insert(sequence, text.len() + TEXT_COST);
            }
            Err(Error::Closed) => self.is_cut_off = true,
            Err(error) => {
                self.printer.error(&format!("text not sent: {error}"));
                self.tally.failed(Exit::of(&error));
            }
        }
    }

    fn ask(&mut self, asked: Result<RequestId, Error>, label: String) {
        match asked {
            Ok(id) => self.asked.add(id, label),
            Err(Error::Closed) => self.is_cut_off = true,
            Err(Error::Argument { .. }) => self.unsaid("nothing can be stored here: start with --dir DIR"),
            Err(error) => self.unsaid(&error.to_string()),
        }
    }

    fn who(&mut self) {
        let others: Vec<&str> = self.room.iter().map(Nickname::as_str).collect();
        let line = match others.as_slice() {
            [] => "nobody else is in the room".to_owned(),
            others => format!("you and {}", others.join(", ")),
        };
        self.printer.answer(&line);
    }

    fn unsaid(&mut self, why: &str) {
        self.printer.error(why);
        self.tally.failed(Exit::Other);
    }

    fn hear(&mut self, event: &Event) {
        match event {
            Event::StateChanged(State::Connected) => {
                self.printer.connected(self.client.peer_addr(), self.client.nickname().as_ref());
                self.was_connected = true;
                // The server tells anew who is there.
                self.room.clear();
                self.leave_when_answered();
            }
            event => self.asked.say(event, self.printer),
        }
        match event {
            Event::TextDelivered { sequence } => self.text_answered(*sequence, None),
            Event::TextRefused { sequence, refusal } => {
                self.text_answered(*sequence, Some(Exit::of(&Error::Refused(*refusal))));
            }
            // One of those that it is for has an outcome; all have theirs at the end.
            Event::Sent(receipt) if receipt.peer.is_some() => self.answered(None),
            Event::TransferFailed(failure) if failure.peer.is_some() => {
                self.answered(Some(Exit::of(&failure.error)));
            }
            Event::Relayed { transfer } => {
                self.files_waiting.remove(transfer);
                self.leave_when_answered();
            }
            Event::Sent(receipt) => self.file_answered(receipt.transfer, None),
            Event::TransferFailed(failure) if matches!(failure.error, Error::Closed) => {}
            Event::TransferFailed(failure) if failure.direction == Direction::Outgoing => {
                self.file_answered(failure.transfer, Some(Exit::of(&failure.error)));
            }
            Event::Listed { entries, more: true, .. } => {
                let after = entries.last().map(|last| &last.path);
                let next = self.client.list_from(self.lists_from.as_ref(), after);
                self.ask(next, "/list".to_owned());
            }
            Event::Listed { .. } | Event::Got { failed: 0, .. } => self.answered(None),
            Event::Got { .. } | Event::RequestFailed { .. } => self.answered(Some(Exit::Refused)),
            Event::Joined(nickname) => drop(self.room.insert(nickname.clone())),
            Event::Left(nickname) => drop(self.room.remove(nickname)),
            Event::Renamed { from, to } => {
                self.room.remove(from);
                self.room.insert(to.clone());
            }
            _ => {}
        }
    }

    fn text_answered(&mut self, sequence: u64, failure: Option<Exit>) {
        self.texts_waiting.remove(&sequence);
        self.answered(failure);
        let waiting: usize = if self.is_full { self.texts_waiting.values().sum() } else { 0 };
        if self.is_full && waiting < config::TEXT_WINDOW_BYTES {
            self.is_full = false;
            self.gate.open();
        }
    }

    fn file_answered(&mut self, id: TransferId, failure: Option<Exit>) {
        self.files_waiting.remove(&id);
        self.answered(failure);
    }

    fn answered(&mut self, failure: Option<Exit>) {
        match failure {
            Some(how) => self.tally.failed(how),
            None => self.tally.done(),
        }
        self.leave_when_answered();
    }

    /// Nothing more will be said.
    fn over(&mut self) {
        self.is_over = true;
        self.leave_when_answered();
    }

    fn leave_when_answered(&self) {
        if self.is_over && self.is_answered() {
            self.client.disconnect();
        }
    }

    fn is_answered(&self) -> bool {
        let nothing_waits = self.texts_waiting.is_empty() && self.files_waiting.is_empty() && self.asked.is_empty();
        nothing_waits && self.was_connected && !self.is_cut_off
    }

    /// The connection ended: as we wished, or not.
    fn ended(&mut self, error: Option<Error>) -> Exit {
        if let Some(number) = self.signal {
            return Exit::Signal(number);
        }
        if self.is_over && self.is_answered() {
            return self.tally.exit();
        }
        let error = error.unwrap_or(Error::Broken { source: None });
        self.printer.failed(&error);
        let how = Exit::of(&error);
        if !self.is_over {
            return how;
        }
        self.tally.failed(how);
        self.tally.exit()
    }
}
