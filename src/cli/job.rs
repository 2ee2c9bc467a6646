//! The run of a client with files and texts: it does them in order, and ends. [`Plan`] decides what comes next and touches
//! nothing; [`run`] does it.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use postwire::{
    Client, Direction, Error, Event, Nickname, Receipt, Recipients, Refusal, RequestId, SafePath, State,
    TransferFailure, TransferId,
};

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

/// The pause before who is not there is asked for again.
const ABSENT_PAUSE: Duration = Duration::from_secs(1);

/// What is to be done.
#[derive(Default)]
pub struct Job {
    pub items: VecDeque<Item>,
    /// Who the files and texts are for; the server, and everybody in the room, if nobody.
    pub recipients: Option<Recipients>,
    /// Who is asked; the server, if nobody.
    pub from: Option<Nickname>,
}

/// What is still to be done, and what became of the rest.
#[derive(Default)]
struct Plan {
    items: VecDeque<Item>,
    recipients: Option<Recipients>,
    from: Option<Nickname>,
    /// One text, for each of those that it is for.
    saying: VecDeque<(Option<Nickname>, String)>,
    /// Those who have every file so far, and those who miss one.
    served: BTreeSet<Nickname>,
    unserved: BTreeSet<Nickname>,
    has_sent_files: bool,
    /// What may have to be tried again when somebody is not there, by its text's or its request's number.
    texts_under_way: HashMap<u64, (Option<Nickname>, String)>,
    requests_under_way: HashMap<RequestId, Step>,
    again: VecDeque<Step>,
    absent_since: Option<Instant>,
    /// How long to wait for them; `None`: for ever.
    wait: Option<Duration>,
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
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    SendFile(PathBuf, Option<SafePath>),
    SendStdin(SafePath),
    Get(SafePath, Option<SafePath>),
    List(Option<SafePath>),
    SendText(Option<Nickname>, String),
    /// A text whose files did not all arrive there.
    DropText(Option<Nickname>),
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
        if let Some((to, text)) = self.saying.pop_front() {
            if to.as_ref().is_some_and(|to| self.unserved.contains(to)) {
                self.tally.failed(Exit::Other);
                return Step::DropText(to);
            }
            self.texts_waiting += 1;
            return Step::SendText(to, text);
        }
        let files_wait = !self.files_waiting.is_empty() || !self.asked.is_empty() || !self.again.is_empty();
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
                Step::DropText(None)
            }
            Some(Item::Text(text)) => {
                self.saying = self.receivers().into_iter().map(|to| (to, text.clone())).collect();
                self.step()
            }
            None if self.is_answered() => Step::End,
            None => Step::Wait,
        }
    }

    /// Who the next text is for. Of a room, those who were there for the files.
    fn receivers(&self) -> Vec<Option<Nickname>> {
        match &self.recipients {
            Some(Recipients { to: Some(to), .. }) => to.iter().cloned().map(Some).collect(),
            Some(Recipients { to: None, .. }) if self.has_sent_files => {
                self.served.union(&self.unserved).cloned().map(Some).collect()
            }
            _ => vec![None],
        }
    }

    /// Whether somebody who is not there is to be asked for again; it is, after a pause.
    fn waits_for_absent(&mut self, event: &Event) -> bool {
        let step = match event {
            Event::TextRefused { sequence, refusal: Refusal::Nobody } => {
                self.texts_under_way.remove(sequence).map(|(to, text)| Step::SendText(to, text))
            }
            Event::RequestFailed { request, error: Error::Refused(Refusal::Nobody) } => {
                self.requests_under_way.remove(request)
            }
            Event::TextDelivered { sequence } => {
                self.texts_under_way.remove(sequence);
                self.absent_since = None;
                return false;
            }
            Event::Got { request, .. } | Event::Listed { request, .. } => {
                self.requests_under_way.remove(request);
                self.absent_since = None;
                return false;
            }
            _ => return false,
        };
        let Some(step) = step else { return false };
        let waited = self.absent_since.get_or_insert_with(Instant::now).elapsed();
        if self.wait.is_some_and(|wait| waited >= wait) {
            return false;
        }
        if let Event::RequestFailed { request, .. } = event {
            self.asked.forget(*request);
        }
        self.again.push_back(step);
        true
    }

    /// Whether everything was sent and answered.
    fn is_answered(&self) -> bool {
        let nothing_waits = self.files_waiting.is_empty() && self.asked.is_empty() && self.texts_waiting == 0;
        let nothing_is_left = self.items.is_empty() && self.saying.is_empty() && self.again.is_empty();
        nothing_is_left && nothing_waits && !self.is_cut_off
    }

    fn file_queued(&mut self, id: TransferId) {
        self.has_sent_files = true;
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
            // One of those that it is for has it; another may not.
            Event::Sent(Receipt { peer: Some(peer), .. }) => {
                self.served.insert(peer.clone());
                self.answered(None);
            }
            Event::TransferFailed(TransferFailure {
                peer: Some(peer), direction: Direction::Outgoing, error, ..
            }) => {
                self.unserved.insert(peer.clone());
                self.answered(Some(error));
            }
            Event::Relayed { transfer } => drop(self.files_waiting.remove(transfer)),
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

/// Does the items in order. Who is not there is waited for for `wait`, or for ever.
pub fn run(client: &Client, job: Job, wait: Option<Duration>, feed: &mut Feed, printer: &mut Printer) -> Exit {
    let Job { items, recipients, from } = job;
    let mut plan = Plan { items, recipients, from, wait, ..Plan::default() };
    if printer.tells_progress() {
        expect_files(&plan, printer);
    }
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
            Happening::Event(event) if plan.waits_for_absent(&event) => feed.end_within(Some(ABSENT_PAUSE)),
            Happening::TimeUp if signal.is_none() && !plan.again.is_empty() => {
                feed.end_within(None);
                for step in std::mem::take(&mut plan.again) {
                    perform(client, step, &mut plan, feed, printer);
                }
            }
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
        let step = plan.step();
        if !perform(client, step, plan, feed, printer) {
            return;
        }
    }
}

/// Gives `false` when there is nothing to do after it, for now.
fn perform(client: &Client, step: Step, plan: &mut Plan, feed: &mut Feed, printer: &mut Printer) -> bool {
    match &step {
        Step::SendFile(path, name) => queued(send_file(client, path, name.as_ref(), plan), path, plan, printer),
        Step::SendStdin(name) => {
            let sent = match &plan.recipients {
                Some(recipients) => client.send_stream_for(std::io::stdin(), name, recipients),
                None => client.send_stream(std::io::stdin(), name),
            };
            queued(sent, Path::new("-"), plan, printer)
        }
        Step::Get(path, name) => {
            let label = path.to_string();
            asked(client.get_from(plan.from.as_ref(), path, name.as_ref()), step, label, plan, printer)
        }
        Step::List(after) => {
            asked(client.list_from(plan.from.as_ref(), after.as_ref()), step, "--list".to_owned(), plan, printer)
        }
        Step::SendText(to, text) => {
            let leaves = plan.recipients.as_ref().is_some_and(|recipients| recipients.leave);
            let to_room = plan.recipients.as_ref().is_some_and(|recipients| recipients.to.is_none());
            let sent = match to {
                None if to_room => client.send_text_to_room(text),
                Some(to) if leaves => client.leave_text(to, text),
                to => client.send_text(to.as_ref(), text),
            };
            match sent {
                Ok(sequence) => drop(plan.texts_under_way.insert(sequence, (to.clone(), text.clone()))),
                Err(Error::Closed) => return false,
                Err(error) => {
                    printer.error(&format!("text not sent: {error}"));
                    plan.text_answered(Some(&error));
                }
            }
            true
        }
        Step::DropText(to) => {
            let whom = to.as_ref().map_or(String::new(), |to| format!(" to {to}"));
            printer.error(&format!("text not sent{whom}: a file before it failed"));
            true
        }
        Step::Wait => false,
        Step::End => {
            client.disconnect();
            feed.end_soon();
            false
        }
    }
}

fn send_file(client: &Client, path: &Path, name: Option<&SafePath>, plan: &Plan) -> Result<TransferId, Error> {
    match (&plan.recipients, name) {
        (Some(recipients), name) => client.send_file_for(path, name, recipients),
        (None, Some(name)) => client.send_file_as(path, name),
        (None, None) => client.send_file(path),
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
fn asked(asked: Result<RequestId, Error>, step: Step, label: String, plan: &mut Plan, printer: &mut Printer) -> bool {
    match asked {
        Ok(id) => {
            plan.asked.add(id, label);
            plan.requests_under_way.insert(id, step);
        }
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
    use postwire::{Config, Kind};

    fn plan(words: &[&str]) -> Plan {
        let item = |word: &&str| match word.strip_prefix("text:") {
            Some(text) => Item::Text(text.into()),
            None => Item::File { path: word.into(), name: None },
        };
        Plan { items: words.iter().map(item).collect(), ..Plan::default() }
    }

    fn say(text: &str) -> Step {
        Step::SendText(None, text.into())
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
        assert_eq!(plan.step(), say("1"));
        assert_eq!([plan.step(), plan.step()], [file("a"), file("b")]);
        [1, 2].into_iter().for_each(|id| plan.file_queued(id));
        assert_eq!(plan.step(), Step::Wait);
        plan.hear(&stored(1));
        assert_eq!(plan.step(), Step::Wait);
        plan.hear(&stored(2));
        assert_eq!([plan.step(), plan.step()], [say("2"), file("c")]);
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
        assert_eq!([plan.step(), plan.step()], [Step::DropText(None), Step::End]);
        assert_eq!((plan.tally.exit(), plan.skipped), (Exit::Partly, 1));
    }

    #[test]
    fn a_text_does_not_go_when_a_file_before_it_failed() {
        let mut plan = plan(&["a", "text:stored", "b"]);
        assert_eq!(plan.step(), file("a"));
        plan.file_queued(1);
        assert_eq!(plan.step(), Step::Wait);
        plan.hear(&refused(1));
        assert_eq!([plan.step(), plan.step()], [Step::DropText(None), file("b")]);
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
    fn a_text_after_a_file_goes_to_those_who_have_the_file() {
        let nickname = |name: &str| Nickname::parse(name.as_bytes()).unwrap();
        let has_it = |peer| match stored(1) {
            Event::Sent(receipt) => Event::Sent(Receipt { peer: Some(nickname(peer)), ..receipt }),
            other => other,
        };
        let full = match refused(1) {
            Event::TransferFailed(failure) => {
                Event::TransferFailed(TransferFailure { peer: Some(nickname("b8")), ..failure })
            }
            other => other,
        };
        let for_all = Recipients { to: None, leave: false, wait: None };
        let mut plan = Plan { recipients: Some(for_all), ..plan(&["fw", "text:flash"]) };
        assert_eq!(plan.step(), file("fw"));
        plan.file_queued(1);
        [has_it("b7"), full, has_it("b9")].iter().for_each(|event| plan.hear(event));
        assert_eq!(plan.step(), Step::Wait);
        plan.hear(&Event::Relayed { transfer: 1 });
        let flash = |to| Step::SendText(Some(nickname(to)), "flash".into());
        assert_eq!([plan.step(), plan.step()], [flash("b7"), Step::DropText(Some(nickname("b8")))]);
        assert_eq!(plan.step(), flash("b9"));
        [1, 2].into_iter().for_each(|sequence| plan.hear(&Event::TextDelivered { sequence }));
        assert_eq!((plan.step(), plan.tally.exit()), (Step::End, Exit::Partly));
    }

    #[test]
    fn who_is_not_there_is_asked_for_again_while_the_patience_lasts() {
        let mut plan = Plan { wait: Some(Duration::from_secs(60)), ..plan(&["text:1"]) };
        assert_eq!(plan.step(), say("1"));
        plan.texts_under_way.insert(1, (None, "1".into()));
        let nobody = |sequence| Event::TextRefused { sequence, refusal: Refusal::Nobody };
        assert!(plan.waits_for_absent(&nobody(1)) && plan.step() == Step::Wait);
        assert_eq!(plan.again.pop_front(), Some(say("1")));
        plan.wait = Some(Duration::ZERO);
        plan.texts_under_way.insert(2, (None, "1".into()));
        assert!(!plan.waits_for_absent(&nobody(2)));
    }

    #[test]
    fn a_refused_text_is_a_failure() {
        let mut plan = plan(&["text:1"]);
        assert_eq!(plan.step(), say("1"));
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
            feed.add_events(move |timeout| events.next_event(timeout)).unwrap();
            let job = Job { items, ..Job::default() };
            assert_eq!(run(&client, job, None, &mut feed, &mut printer), Exit::Connect);
        }
    }
}
