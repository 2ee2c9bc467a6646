//! One line of happenings for the one loop that every run is: the events of the library, the lines of standard input and
//! signals, each waited for by a thread of its own.
//!
//! It refuses to hold more than one happening of each kind: each thread waits until the loop takes what it has, so the library's
//! bound on waiting texts stays a bound. Events that are there together are handed over together, as long as none is a text.

use std::collections::VecDeque;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use postwire::{config, Error, Event, Result};

use super::exit::Exit;
use super::input::{Line, LineReader};
use super::signals::Watch;

/// How long a run that was told to end may take, at most.
pub const END_TIMEOUT: Duration = config::STOP_TIMEOUT.saturating_add(config::CLOSE_TIMEOUT);

/// What a run waits for.
pub enum Happening {
    Event(Event),
    /// No event follows.
    EventsEnded,
    Line(Line),
    InputEnded,
    /// The first signal; a later one ends the process at once.
    Signal(i32),
    /// The time set by [`Feed::end_soon`] has passed.
    TimeUp,
}

pub struct Feed {
    sender: SyncSender<Handed>,
    receiver: Receiver<Handed>,
    /// What was handed over and is not taken yet.
    events: VecDeque<Event>,
    deadline: Option<Instant>,
    at_signal: Arc<OnceLock<AtSignal>>,
}

/// What one thread hands to the loop at a time.
enum Handed {
    One(Happening),
    Events(VecDeque<Event>),
}

/// Events that are handed over together, at most.
const EVENTS_TOGETHER: usize = 64;

/// See [`Feed::at_signal`].
type AtSignal = Box<dyn Fn() + Send + Sync>;

/// Lets standard input be read line by line, as the run has room for the next.
pub struct Gate(mpsc::Sender<()>);

impl Feed {
    /// A feed of signals.
    pub fn new() -> Result<Feed> {
        let (sender, receiver) = mpsc::sync_channel(0);
        let mut watch = Watch::start().map_err(|source| Error::System { action: "watch signals", source })?;
        let feed = Feed { sender, receiver, events: VecDeque::new(), deadline: None, at_signal: Arc::default() };
        let (sender, at_signal) = (feed.sender.clone(), Arc::clone(&feed.at_signal));
        spawn("signals", move || {
            let Some(signal) = watch.next() else { return };
            let first = Arc::new(move || {
                if let Some(at_signal) = at_signal.get() {
                    at_signal();
                }
                let _ = sender.send(Handed::One(Happening::Signal(signal)));
            });
            let beside = Arc::clone(&first);
            // The run may be stuck in a write and never take the first signal: that must not keep the second from working,
            // unless there is no thread for it.
            if spawn("first signal", move || beside()).is_err() {
                first();
            }
            watch.skip_repeated();
            if let Some(signal) = watch.next() {
                Exit::Signal(signal).end();
            }
        })?;
        Ok(feed)
    }

    /// What to do at the first signal, at once: the run may be waiting for something that this ends.
    pub fn at_signal(&self, what: impl Fn() + Send + Sync + 'static) {
        let _ = self.at_signal.set(Box::new(what));
    }

    /// Adds the events that `next` gives, which waits for one at most so long or for ever, until it gives none.
    pub fn add_events(&self, next: impl Fn(Option<Duration>) -> Result<Option<Event>> + Send + 'static) -> Result<()> {
        let sender = self.sender.clone();
        spawn("events", move || {
            while let Ok(Some(first)) = next(None) {
                let mut events = VecDeque::from([first]);
                while events.len() < EVENTS_TOGETHER && !matches!(events.back(), Some(Event::Text(_))) {
                    match next(Some(Duration::ZERO)) {
                        Ok(Some(event)) => events.push_back(event),
                        _ => break,
                    }
                }
                if sender.send(Handed::Events(events)).is_err() {
                    return;
                }
            }
            let _ = sender.send(Handed::One(Happening::EventsEnded));
        })
    }

    /// Adds the lines of standard input, or what is typed where lines are edited; each when the gate was opened for it. It is
    /// open for the first.
    pub fn add_input(&self, edits: bool) -> Result<Gate> {
        let sender = self.sender.clone();
        let (gate, opened) = mpsc::channel();
        let gate = Gate(gate);
        gate.open();
        spawn("stdin", move || {
            let mut reader = LineReader::new(edits);
            for () in opened {
                let Some(line) = reader.next_line() else {
                    let _ = sender.send(Handed::One(Happening::InputEnded));
                    return;
                };
                if sender.send(Handed::One(Happening::Line(line))).is_err() {
                    return;
                }
            }
        })?;
        Ok(gate)
    }

    /// The run was told to end, and has [`END_TIMEOUT`] for it.
    pub fn end_soon(&mut self) {
        self.deadline.get_or_insert_with(|| Instant::now() + END_TIMEOUT);
    }

    /// The run ends unless something else is said within this time; `None`: it need not end.
    pub fn end_within(&mut self, time: Option<Duration>) {
        self.deadline = time.map(|time| Instant::now() + time);
    }

    /// Waits for the next happening.
    pub fn next(&mut self) -> Happening {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Happening::Event(event);
            }
            let handed = match self.deadline {
                None => self.receiver.recv().map_err(RecvTimeoutError::from),
                Some(deadline) => self.receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())),
            };
            match handed {
                Ok(Handed::One(happening)) => return happening,
                Ok(Handed::Events(events)) => self.events = events,
                Err(RecvTimeoutError::Timeout) => return Happening::TimeUp,
                Err(RecvTimeoutError::Disconnected) => return Happening::EventsEnded,
            }
        }
    }
}

impl Gate {
    /// Lets one more line through.
    pub fn open(&self) {
        // After the end of the input nobody waits at the gate.
        let _ = self.0.send(());
    }
}

/// Starts a thread.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    let started = thread::Builder::new().name(name.to_owned()).spawn(body);
    started.map(drop).map_err(|source| Error::System { action: "start a thread", source })
}
