//! The run of a client with files and texts: it does them in order, and ends. [`Plan`] decides what comes next and touches
//! nothing; [`run`] does it.

use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;

use postwire::{Client, Direction, Error, Event, Nickname, SafePath, State};

use super::args::Item;
use super::exit::{Exit, Tally};
use super::feed::{Feed, Happening};
use super::print::Printer;

/// What is still to be done, and what became of the rest.
#[derive(Default)]
struct Plan {
    items: VecDeque<Item>,
    texts_for: Option<Nickname>,
    files_waiting: usize,
    texts_waiting: usize,
    file_failed: bool,
    tally: Tally,
}

/// What a plan wants done next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    SendFile(PathBuf, Option<SafePath>),
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
        if matches!(self.items.front(), Some(Item::Text(_))) && self.files_waiting > 0 {
            return Step::Wait;
        }
        match self.items.pop_front() {
            Some(Item::File { path, name }) => {
                self.files_waiting += 1;
                Step::SendFile(path, name)
            }
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
        self.items.is_empty() && self.files_waiting == 0 && self.texts_waiting == 0
    }

    fn file_answered(&mut self, failure: Option<&Error>) {
        self.files_waiting = self.files_waiting.saturating_sub(1);
        self.file_failed |= failure.is_some();
        self.answered(failure);
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
            Event::Sent(_) => self.file_answered(None),
            Event::TransferFailed(failure) if failure.direction == Direction::Outgoing => {
                self.file_answered(Some(&failure.error));
            }
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
            Happening::Event(event) => {
                printer.event(&event);
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

/// Tells the printer how much is to come; a file whose size is not known makes the sum unknown.
fn expect_files(plan: &Plan, printer: &mut Printer) {
    let files = plan.items.iter().filter_map(|item| match item {
        Item::File { path, .. } => Some(path),
        Item::Text(_) => None,
    });
    let sizes = files.map(|path| fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|metadata| metadata.len()));
    let (count, sum) = sizes.fold((0, Some(0_u64)), |(count, sum), size| {
        (count + 1, sum.zip(size).and_then(|(sum, size)| sum.checked_add(size)))
    });
    if count > 0 {
        printer.expect_files(count, sum);
    }
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
                match sent {
                    Ok(_) => {}
                    Err(Error::Closed) => return,
                    Err(error) => {
                        printer.unsendable(&path, &error);
                        plan.file_answered(Some(&error));
                    }
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

/// After an answer to everything it does not matter how the connection ended.
fn ended(plan: &mut Plan, signal: Option<i32>, error: Option<Error>, printer: &mut Printer) -> Exit {
    if let Some(signal) = signal {
        printer.fatal("interrupted: run the same command again to continue");
        return Exit::Signal(signal);
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
    use postwire::{Config, Refusal};
    use std::time::Duration;

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

    #[test]
    fn files_are_offered_at_once_and_a_text_waits_for_those_before_it() {
        let mut plan = plan(&["text:1", "a", "b", "text:2", "c"]);
        assert_eq!(plan.step(), Step::SendText("1".into()));
        assert_eq!([plan.step(), plan.step(), plan.step()], [file("a"), file("b"), Step::Wait]);
        plan.file_answered(None);
        assert_eq!(plan.step(), Step::Wait);
        plan.file_answered(None);
        assert_eq!([plan.step(), plan.step(), plan.step()], [Step::SendText("2".into()), file("c"), Step::Wait]);
        plan.hear(&Event::TextDelivered { sequence: 1 });
        plan.hear(&Event::TextDelivered { sequence: 2 });
        assert_eq!(plan.step(), Step::Wait);
        plan.file_answered(None);
        assert_eq!(plan.step(), Step::End);
        assert_eq!(plan.tally.exit(), Exit::Done);
    }

    #[test]
    fn a_text_does_not_go_when_a_file_before_it_failed() {
        let mut plan = plan(&["a", "text:stored", "b"]);
        assert_eq!([plan.step(), plan.step()], [file("a"), Step::Wait]);
        plan.file_answered(Some(&Error::Refused(Refusal::NoDirectory)));
        assert_eq!([plan.step(), plan.step()], [Step::DropText, file("b")]);
        plan.file_answered(Some(&Error::Refused(Refusal::NoDirectory)));
        assert_eq!(plan.step(), Step::End);
        assert_eq!(plan.tally.exit(), Exit::Refused);
    }

    #[test]
    fn a_file_that_can_not_be_opened_lets_the_others_go() {
        let mut plan = plan(&["a", "b"]);
        assert_eq!(plan.step(), file("a"));
        plan.file_answered(Some(&Error::SourceChanged { path: "a".into() }));
        assert_eq!(plan.step(), file("b"));
        plan.file_answered(None);
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
        let mut printer = Printer::new(Output { json: false, level: Level::Error }, Run::Job);
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
