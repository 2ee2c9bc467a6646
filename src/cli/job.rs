//! The run of a client with files and texts: it does them in order, and ends. [`Plan`] decides what comes next and touches
//! nothing; [`run`] does it.

use std::collections::{HashSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use postwire::{Client, Direction, Error, Event, Nickname, Refusal, RequestId, SafePath, State, TransferId};

use super::args::Item;
use super::asked::Asked;
use super::exit::{Exit, Tally};
use super::feed::{Feed, Happening};
use super::print::Printer;

/// What to do about links and special files.
const KEEPS_ALL: &str = "links and special files are left out; this keeps them: \
    tar c DIR | postwire client --to HOST --file - --as NAME.tar";

/// How long a run looks at what it sends before it begins, to tell later how far it is.
const MEASURING: Duration = Duration::from_millis(300);

/// What is still to be done, and what became of the rest.
#[derive(Default)]
struct Plan {
    items: VecDeque<Item>,
    texts_for: Option<Nickname>,
    /// Files and trees that have no answer yet. What is in a tree has transfers of its own, and the tree's is the last.
    files_waiting: HashSet<TransferId>,
    asked: Asked,
    texts_waiting: usize,
    file_failed: bool,
    /// The run ended before this could be queued.
    is_cut_off: bool,
    /// The listing goes on after this.
    page: Option<SafePath>,
    skipped: usize,
    tally: Tally,
}

/// What a plan wants done next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    SendFile(PathBuf, Option<SafePath>),
    SendStdin(SafePath),
    Get(SafePath, Option<SafePath>),
    List(Option<SafePath>),
    SendText(String),
    /// A text whose files did not all arrive.
    DropText,
    /// For answers.
    Wait,
    End,
}

impl Plan {
    /// Files are offered all at once; a text goes when every file before it was stored, and not if one failed.
    fn step(&mut self) -> Step {
        if let Some(last) = self.page.take() {
            return Step::List(Some(last));
        }
        let files_wait = !self.files_waiting.is_empty() || !self.asked.is_empty();
        if matches!(self.items.front(), Some(Item::Text(_))) && files_wait {
            return Step::Wait;
        }
        match self.items.pop_front() {
            Some(Item::File { path, name }) => Step::SendFile(path, name),
            Some(Item::Stdin { name }) => Step::SendStdin(name),
            Some(Item::Get { path, name }) => Step::Get(path, name),
            Some(Item::List) => Step::List(None),
            Some(Item::Text(_)) if self.file_failed => {
                self.tally.failed(Exit::Other);
                Step::DropText
            }
            Some(Item::Text(text)) => {
                self.texts_waiting += 1;
                Step::SendText(text)
            }
            None if self.is_answered() => Step::End,
            None => Step::Wait,
        }
    }

    /// Whether everything was sent and answered.
    fn is_answered(&self) -> bool {
        let nothing_waits = self.files_waiting.is_empty() && self.asked.is_empty() && self.texts_waiting == 0;
        self.items.is_empty() && nothing_waits && !self.is_cut_off
    }

    fn file_queued(&mut self, id: TransferId) {
        self.files_waiting.insert(id);
    }

    fn file_failed(&mut self, failure: &Error) {
        self.file_failed = true;
        self.answered(Some(failure));
    }

    fn text_answered(&mut self, failure: Option<&Error>) {
        self.texts_waiting = self.texts_waiting.saturating_sub(1);
        self.answered(failure);
    }

    fn answered(&mut self, failure: Option<&Error>) {
        match failure {
            Some(error) => self.tally.failed(Exit::of(error)),
            None => self.tally.done(),
        }
    }

    fn hear(&mut self, event: &Event) {
        match event {
            Event::Sent(receipt) => {
                self.files_waiting.remove(&receipt.transfer);
                self.answered(None);
            }
            Event::TransferFailed(failure) if failure.direction == Direction::Outgoing => {
                self.files_waiting.remove(&failure.transfer);
                self.file_failed(&failure.error);
            }
            Event::Received(receipt) if receipt.request.is_some() => self.answered(None),
            // What this side's own disk refused is this side's failure.
            Event::TransferFailed(failure) if failure.request.is_some() => match &failure.error {
                Error::Refused(Refusal::Damaged) => self.file_failed(&failure.error),
                Error::Refused(_) => {
                    self.file_failed = true;
                    self.tally.failed(Exit::File);
                }
                error => self.file_failed(error),
            },
            Event::Skipped { .. } => {
                self.skipped += 1;
                self.tally.failed(Exit::Partly);
            }
            Event::Got { left_out, failed, .. } => {
                if *failed > 0 {
                    self.file_failed = true;
                    self.tally.failed(Exit::Refused);
                }
                if *left_out > 0 {
                    self.tally.failed(Exit::Partly);
                }
            }
            Event::Listed { entries, more, .. } => match entries.last().filter(|_| *more) {
                Some(last) => self.page = Some(last.path.clone()),
                None => self.tally.done(),
            },
            Event::RequestFailed { error, .. } => self.file_failed(error),
            Event::TextDelivered { .. } => self.text_answered(None),
            Event::TextRefused { refusal, .. } => self.text_answered(Some(&Error::Refused(*refusal))),
            _ => {}
        }
    }
}

/// Does the items in order; the texts are for one, or for everybody.
pub fn run(
    client: &Client,
    items: VecDeque<Item>,
    texts_for: Option<Nickname>,
    feed: &mut Feed,
    printer: &mut Printer,
) -> Exit {
    let mut plan = Plan { items, texts_for, ..Plan::default() };
    expect_files(&plan, printer);
    let mut signal = None;
    advance(client, &mut plan, feed, printer);
    loop {
        match feed.next() {
            // The end of the connection ends these too, and says why.
            Happening::Event(Event::TransferFailed(failure)) if matches!(failure.error, Error::Closed) => {}
            Happening::Event(Event::StateChanged(State::Connected)) => {
                printer.connected(client.peer_addr(), client.nickname().as_ref());
            }
            Happening::Event(Event::RequestFailed { error: Error::Closed, .. }) => {}
            Happening::Event(event) => {
                plan.asked.say(&event, printer);
                plan.hear(&event);
                if let Event::Disconnected(error) = event {
                    return ended(&mut plan, signal, error, printer);
                }
                if signal.is_none() {
                    advance(client, &mut plan, feed, printer);
                }
            }
            Happening::Signal(number) => {
                signal = Some(number);
                client.abort();
                feed.end_soon();
            }
            Happening::EventsEnded | Happening::TimeUp => {
                return ended(&mut plan, signal, None, printer);
            }
            Happening::Line(_) | Happening::InputEnded => {}
        }
    }
}

/// Tells the printer how much is to come; what has no known size makes the sum unknown.
fn expect_files(plan: &Plan, printer: &mut Printer) {
    let deadline = Instant::now() + MEASURING;
    let mut files = Some(0);
    let mut bytes = Some(0);
    for item in &plan.items {
        let (one, size) = match item {
            Item::File { path, .. } => match fs::metadata(path) {
                Ok(metadata) if metadata.is_dir() => size(path, &metadata, deadline).unzip(),
                Ok(metadata) if metadata.is_file() => (Some(1), Some(metadata.len())),
                _ => (Some(1), None),
            },
            Item::Stdin { .. } => (Some(1), None),
            Item::Get { .. } => (None, None),
            Item::Text(_) | Item::List => continue,
        };
        files = files.zip(one).map(|(sum, files)| sum + files);
        bytes = bytes.zip(size).map(|(sum, bytes)| sum + bytes);
    }
    if files != Some(0) {
        printer.expect_files(files, bytes);
    }
}

/// How many files there are, and their bytes; `None` for what has no size, and when it takes too long to find out.
fn size(path: &Path, metadata: &fs::Metadata, deadline: Instant) -> Option<(usize, u64)> {
    if metadata.is_file() {
        return Some((1, metadata.len()));
    }
    if !metadata.is_dir() || Instant::now() > deadline {
        return None;
    }
    let mut sum = (0, 0);
    for entry in fs::read_dir(path).ok()?.filter_map(Result::ok) {
        // Of the entry itself, not of what a link leads to.
        let metadata = entry.metadata().ok()?;
        if metadata.is_file() || metadata.is_dir() {
            let (files, bytes) = size(&entry.path(), &metadata, deadline)?;
            sum = (sum.0 + files, sum.1 + bytes);
        }
    }
    Some(sum)
}

/// Sends what may go now; says goodbye when all is answered. A run that ended already refuses everything as closed: what it
/// refused stays unanswered, and the event of its end, which is on its way, says why.
fn advance(client: &Client, plan: &mut Plan, feed: &mut Feed, printer: &mut Printer) {
    loop {
        match plan.step() {
            Step::SendFile(path, name) => {
                let sent = match &name {
                    Some(name) => client.send_file_as(&path, name),
                    None => client.send_file(&path),
                };
                if !queued(sent, &path, plan, printer) {
                    return;
                }
            }
            Step::SendStdin(name) => {
                if !queued(client.send_stream(std::io::stdin(), &name), Path::new("-"), plan, printer) {
                    return;
                }
            }
            Step::Get(path, name) => {
                let label = path.to_string();
                if !asked(client.get(&path, name.as_ref()), label, plan, printer) {
                    return;
                }
            }
            Step::List(after) => {
                if !asked(client.list(after.as_ref()), "--list".to_owned(), plan, printer) {
                    return;
                }
            }
            Step::SendText(text) => match client.send_text(plan.texts_for.as_ref(), &text) {
                Ok(_) => {}
                Err(Error::Closed) => return,
                Err(error) => {
                    printer.error(&format!("text not sent: {error}"));
                    plan.text_answered(Some(&error));
                }
            },
            Step::DropText => printer.error("text not sent: a file before it failed"),
            Step::Wait => return,
            Step::End => {
                client.disconnect();
                feed.end_soon();
                return;
            }
        }
    }
}

/// Gives `false` when the run is over.
fn queued(sent: Result<TransferId, Error>, path: &Path, plan: &mut Plan, printer: &mut Printer) -> bool {
    match sent {
        Ok(id) => plan.file_queued(id),
        Err(Error::Closed) => {
            plan.is_cut_off = true;
            return false;
        }
        Err(error) => {
            printer.unsendable(path, &error);
            plan.file_failed(&error);
        }
    }
    true
}

/// Gives `false` when the run is over.
fn asked(asked: Result<RequestId, Error>, label: String, plan: &mut Plan, printer: &mut Printer) -> bool {
    match asked {
        Ok(id) => plan.asked.add(id, label),
        Err(Error::Closed) => {
            plan.is_cut_off = true;
            return false;
        }
        Err(error) => {
            printer.error(&format!("{label}: {error}"));
            plan.file_failed(&error);
        }
    }
    true
}

/// After an answer to everything it does not matter how the connection ended.
fn ended(plan: &mut Plan, signal: Option<i32>, error: Option<Error>, printer: &mut Printer) -> Exit {
    if let Some(signal) = signal {
        printer.fatal("interrupted: run the same command again to continue");
        return Exit::Signal(signal);
    }
    if plan.skipped > 0 {
        printer.notice(KEEPS_ALL);
    }
    if !plan.is_answered() {
        let error = error.unwrap_or(Error::Broken { source: None });
        printer.failed(&error);
        plan.tally.failed(Exit::of(&error));
    }
    plan.tally.exit()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Level, Output};
    use crate::cli::print::Run;
    use postwire::{Config, Kind, Receipt, TransferFailure};

    fn plan(words: &[&str]) -> Plan {
        let item = |word: &&str| match word.strip_prefix("text:") {
            Some(text) => Item::Text(text.into()),
            None => Item::File { path: word.into(), name: None },
        };
        Plan { items: words.iter().map(item).collect(), ..Plan::default() }
    }

    fn file(path: &str) -> Step {
        Step::SendFile(path.into(), None)
    }

    fn stored(transfer: TransferId) -> Event {
        Event::Sent(Receipt {
            transfer,
            direction: Direction::Outgoing,
            kind: Kind::File,
            peer: None,
            address: None,
            request: None,
            source: None,
            name: Vec::new(),
            stored: Vec::new(),
            bytes: 0,
            crc32: 0,
            durable: true,
            already: false,
            resumed_bytes: 0,
            grew: false,
            elapsed: Duration::ZERO,
        })
    }

    fn refused(transfer: TransferId) -> Event {
        Event::TransferFailed(TransferFailure {
            transfer,
            direction: Direction::Outgoing,
            peer: None,
            request: None,
            source: None,
            name: Vec::new(),
            error: Error::Refused(Refusal::NoDirectory),
        })
    }

    #[test]
    fn files_are_offered_at_once_and_a_text_waits_for_those_before_it() {
        let mut plan = plan(&["text:1", "a", "b", "text:2", "c"]);
        assert_eq!(plan.step(), Step::SendText("1".into()));
        assert_eq!([plan.step(), plan.step()], [file("a"), file("b")]);
        [1, 2].into_iter().for_each(|id| plan.file_queued(id));
        assert_eq!(plan.step(), Step::Wait);
        plan.hear(&stored(1));
        assert_eq!(plan.step(), Step::Wait);
        plan.hear(&stored(2));
        assert_eq!([plan.step(), plan.step()], [Step::SendText("2".into()), file("c")]);
        plan.file_queued(3);
        assert_eq!(plan.step(), Step::Wait);
        plan.hear(&Event::TextDelivered { sequence: 1 });
        plan.hear(&Event::TextDelivered { sequence: 2 });
        assert_eq!(plan.step(), Step::Wait);
        plan.hear(&stored(3));
        assert_eq!(plan.step(), Step::End);
        assert_eq!(plan.tally.exit(), Exit::Done);
    }

    #[test]
    fn a_tree_is_answered_by_its_own_transfer_and_each_failure_in_it_counts() {
        let mut plan = plan(&["tree", "text:stored"]);
        assert_eq!(plan.step(), file("tree"));
        plan.file_queued(1);
        plan.hear(&stored(2));
        plan.hear(&refused(3));
        plan.hear(&Event::Skipped { path: "tree/link".into(), why: postwire::Skipped::Link });
        assert_eq!(plan.step(), Step::Wait);
        plan.hear(&stored(1));
        assert_eq!([plan.step(), plan.step()], [Step::DropText, Step::End]);
        assert_eq!((plan.tally.exit(), plan.skipped), (Exit::Partly, 1));
    }

    #[test]
    fn a_text_does_not_go_when_a_file_before_it_failed() {
        let mut plan = plan(&["a", "text:stored", "b"]);
        assert_eq!(plan.step(), file("a"));
        plan.file_queued(1);
        assert_eq!(plan.step(), Step::Wait);
        plan.hear(&refused(1));
        assert_eq!([plan.step(), plan.step()], [Step::DropText, file("b")]);
        plan.file_queued(2);
        plan.hear(&refused(2));
        assert_eq!(plan.step(), Step::End);
        assert_eq!(plan.tally.exit(), Exit::Refused);
    }

    #[test]
    fn a_file_that_can_not_be_opened_lets_the_others_go() {
        let mut plan = plan(&["a", "b"]);
        assert_eq!(plan.step(), file("a"));
        plan.file_failed(&Error::SourceChanged { path: "a".into() });
        assert_eq!(plan.step(), file("b"));
        plan.file_queued(2);
        plan.hear(&stored(2));
        assert_eq!(plan.step(), Step::End);
        assert_eq!(plan.tally.exit(), Exit::Partly);
    }

    #[test]
    fn a_refused_text_is_a_failure() {
        let mut plan = plan(&["text:1"]);
        assert_eq!(plan.step(), Step::SendText("1".into()));
        plan.hear(&Event::TextRefused { sequence: 1, refusal: Refusal::NoRelay });
        assert_eq!(plan.step(), Step::End);
        assert_eq!(plan.tally.exit(), Exit::Refused);
    }

    #[test]
    fn a_run_that_ended_before_its_first_item_says_why() {
        let mut printer = Printer::new(Output { json: false, to_stdout: false, level: Level::Error }, Run::Job);
        for items in [plan(&["text:1"]).items, plan(&["Cargo.toml"]).items] {
            let client = Client::connect("127.0.0.9:1", Config::default()).unwrap();
            client.wait_disconnected(Duration::from_secs(30)).unwrap();
            let mut feed = Feed::new().unwrap();
            let events = client.clone();
            feed.add_events(move || events.next_event(None)).unwrap();
            assert_eq!(run(&client, items, None, &mut feed, &mut printer), Exit::Connect);
        }
    }
}
