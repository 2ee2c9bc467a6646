//! What the application hears: [`Event`], in order, on a queue that closes from either end.
//!
//! The queue refuses to grow without bound: texts are bounded by the read buffer, progress keeps only the latest figure of each
//! transfer, files that come wait for room on their disk threads, and the rest comes from a peer at most as fast as it pays
//! for it on the wire. `hub` and `client` push,
//! the application takes.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::EVENTS_MAX;
use crate::error::{Error, Refusal, Result};
use crate::name::Nickname;
use crate::session::{Handled, TextReport};
use crate::storage::Skipped;
use crate::transfer::{Answer, Listed, Progress, Receipt, RequestId, TransferFailure, TransferId};
use crate::worker::{Lock, Signal};

/// One thing that happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A client's connection is in another [`State`].
    StateChanged(State),
    /// A client's connection could not be had, or broke, and will be tried again.
    Retrying {
        /// Why.
        error: Error,
        /// The pause before the next try.
        after: Duration,
    },
    /// A client's run is over: no further event follows. `None` after an orderly end.
    Disconnected(Option<Error>),
    /// A client learns the nickname that it has from now on.
    Named(Nickname),
    /// A peer completed its hello; `in_room` tells a client that stays from one that only delivers.
    PeerConnected {
        /// Who.
        peer: PeerInfo,
    },
    /// A peer's connection ended.
    PeerDisconnected {
        /// Who.
        peer: PeerInfo,
        /// Why, or `None` after GOODBYE from both sides.
        error: Option<Error>,
    },
    /// Somebody was turned away before a hello was complete.
    StrangerRefused {
        /// From where.
        address: SocketAddr,
        /// Why.
        error: Error,
    },
    /// The listener could not accept for a while (descriptors, memory); it goes on trying.
    AcceptError(Error),
    /// Somebody came into the room, or was there when we came.
    Joined(Nickname),
    /// Somebody left the room.
    Left(Nickname),
    /// Somebody in the room has another nickname from now on.
    Renamed {
        /// The old one.
        from: Nickname,
        /// The new one.
        to: Nickname,
    },
    /// A text arrived.
    Text(Text),
    /// A text of ours was handled by the other side; `sequence` as `send_text` gave it. Whoever asked a server to tell
    /// several peers hears one for each.
    TextDelivered {
        /// Which.
        sequence: u64,
    },
    /// A text of ours was refused by the other side.
    TextRefused {
        /// Which.
        sequence: u64,
        /// Why.
        refusal: Refusal,
    },
    /// More of a transfer has been written on the receiving side.
    Progress(Progress),
    /// A file of ours is stored on the other side.
    Sent(Receipt),
    /// A file from the other side is stored here.
    Received(Receipt),
    /// A transfer ended without a stored file.
    TransferFailed(TransferFailure),
    /// What became of a file of ours at each of those that it was for has been told.
    Relayed {
        /// Which.
        transfer: TransferId,
    },
    /// A page of what the other side shares.
    Listed {
        /// As `list` gave it.
        request: RequestId,
        /// In their order; what follows the last is asked for by its path.
        entries: Vec<Listed>,
        /// Whether anything follows.
        more: bool,
    },
    /// All that was asked for was offered, and each offer has ended.
    Got {
        /// As `get` gave it.
        request: RequestId,
        /// Links and special files that are not sent.
        left_out: u32,
        /// Files that the other side could not read.
        failed: u32,
    },
    /// A request was refused, or could not be made.
    RequestFailed {
        /// As `get` or `list` gave it.
        request: RequestId,
        /// Why.
        error: Error,
    },
    /// Something in a directory of ours is not sent.
    Skipped {
        /// What.
        path: PathBuf,
        /// Why.
        why: Skipped,
    },
}

/// A client's connection, as QAbstractSocket has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No connection, and none sought.
    Unconnected,
    /// The name is being looked up.
    HostLookup,
    /// The host was found; dialling, or waiting for WELCOME.
    Connecting,
    /// The hello is complete.
    Connected,
    /// Delivering what is queued, then ending.
    Closing,
}

/// Who is at the other end of a server's connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// The connection's number, counted up from 1 by the server.
    pub id: u32,
    /// The nickname it was given.
    pub nickname: Nickname,
    /// Its address and port.
    pub address: SocketAddr,
    /// Whether it joined the room.
    pub in_room: bool,
}

/// A text that arrived. It counts as handled, and is acknowledged, when this value is dropped: print it first.
pub struct Text {
    /// Who said it; `None`: the server itself.
    pub from: Option<Nickname>,
    /// The other end of the connection that brought it: the peer's address on a server, the server's on a client.
    pub address: SocketAddr,
    /// Whether it was for us alone.
    pub private: bool,
    /// The text, exactly as it was said. Escape it before a terminal sees it.
    pub text: String,
    #[expect(dead_code, reason = "held for its drop")]
    pub(crate) handled: Handled,
}

/// The queue between the threads of a server or client and its application.
#[derive(Clone)]
pub(crate) struct Events {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Signal,
    /// Something was taken.
    room: Signal,
}

struct Queue {
    events: VecDeque<Event>,
    /// Bytes of the texts that wait.
    text_bytes: usize,
    texts: usize,
    text_bytes_max: usize,
    closed: bool,
}

impl Events {
    /// A queue whose texts may hold `text_bytes_max`.
    pub(crate) fn new(text_bytes_max: usize) -> Events {
        let queue = Queue { events: VecDeque::new(), text_bytes: 0, texts: 0, text_bytes_max, closed: false };
        Events { shared: Arc::new(Shared { queue: Mutex::new(queue), wake: Signal::new(), room: Signal::new() }) }
    }

    /// Puts an event behind the others; progress replaces what waits of the same transfer. After [`Events::close`]
    /// it is dropped.
    pub(crate) fn push(&self, event: Event) {
        let mut queue = self.shared.queue.take();
        if queue.closed {
            drop(queue);
            return;
        }
        if let Event::Progress(new) = &event {
            let same = |old: &&mut Event| matches!(old, Event::Progress(old) if old.transfer == new.transfer && old.direction == new.direction);
            if let Some(old) = queue.events.iter_mut().find(same) {
                *old = event;
                return;
            }
        }
        if let Event::Text(text) = &event {
            queue.text_bytes += text.text.len();
            queue.texts += 1;
        }
        queue.events.push_back(event);
        drop(queue);
        self.shared.wake.notify_one();
    }

    /// As [`Events::push`], but waits while too much waits to be taken: for a connection's own threads, which by that slow down
    /// the peer that brings so much.
    pub(crate) fn push_when_there_is_room(&self, event: Event) {
        let is_full = |queue: &mut Queue| queue.events.len() >= EVENTS_MAX && !queue.closed;
        let queue = self.shared.queue.take();
        drop(self.shared.room.wait_while(queue, is_full).unwrap_or_else(PoisonError::into_inner));
        self.push(event);
    }

    /// Whether a text of `bytes` has room; one always has when none waits.
    pub(crate) fn has_room_for_text(&self, bytes: usize) -> bool {
        let queue = self.shared.queue.take();
        queue.texts == 0 || (queue.texts < EVENTS_MAX && queue.text_bytes + bytes <= queue.text_bytes_max)
    }

    /// Takes the next event; waits for it at most `timeout`, or for ever. `None`: closed, and nothing is left.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub(crate) fn next(&self, timeout: Option<Duration>) -> Result<Option<Event>> {
        let deadline = timeout.map(|timeout| (Instant::now() + timeout, timeout));
        let mut queue = self.shared.queue.take();
        loop {
            if let Some(event) = queue.events.pop_front() {
                if queue.events.len() < EVENTS_MAX {
                    self.shared.room.notify_all();
                }
                if let Event::Text(text) = &event {
                    queue.text_bytes -= text.text.len();
                    queue.texts -= 1;
                }
                return Ok(Some(event));
            }
            if queue.closed {
                return Ok(None);
            }
            queue = match deadline {
                None => self.shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some((deadline, after)) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(Error::Timeout { waiting_for: "an event", after });
                    }
                    self.shared.wake.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// No event follows; those that wait can still be taken.
    pub(crate) fn close(&self) {
        self.shared.queue.take().closed = true;
        self.shared.wake.notify_all();
        self.shared.room.notify_all();
    }

    /// Bytes of the texts that wait.
    pub(crate) fn text_bytes(&self) -> usize {
        self.shared.queue.take().text_bytes
    }

    /// Whether a whole text waits.
    pub(crate) fn has_text(&self) -> bool {
        self.shared.queue.take().events.iter().any(|event| matches!(event, Event::Text(_)))
    }

    /// How much text may wait, in bytes.
    pub(crate) fn text_bytes_max(&self) -> usize {
        self.shared.queue.take().text_bytes_max
    }

    /// Sets how much text may wait, in bytes.
    pub(crate) fn set_text_bytes_max(&self, bytes: usize) {
        self.shared.queue.take().text_bytes_max = bytes;
    }
}

impl From<TextReport> for Event {
    fn from(report: TextReport) -> Event {
        match report {
            TextReport::Delivered { sequence } => Event::TextDelivered { sequence },
            TextReport::Refused { sequence, refusal } => Event::TextRefused { sequence, refusal },
        }
    }
}

impl From<Answer> for Event {
    fn from(answer: Answer) -> Event {
        match answer {
            Answer::Listed { request, entries, more } => Event::Listed { request, entries, more },
            Answer::Got { request, left_out, failed } => Event::Got { request, left_out, failed },
            Answer::Failed { request, error } => Event::RequestFailed { request, error },
        }
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Text { from, address, private, text, .. } = self;
        let mut shown = f.debug_struct("Text");
        shown.field("from", from).field("address", address).field("private", private).field("text", text);
        shown.finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::{Direction, TransferId};

    fn progress(transfer: TransferId, bytes: u64) -> Event {
        let direction = Direction::Outgoing;
        Event::Progress(Progress { transfer, direction, name: b"a".to_vec(), bytes, size_bytes: Some(9) })
    }

    #[test]
    fn progress_keeps_only_the_latest_figure() {
        let events = Events::new(100);
        [progress(1, 1), progress(2, 1), progress(1, 5)].into_iter().for_each(|event| events.push(event));
        let mut seen = Vec::new();
        events.close();
        while let Some(Event::Progress(progress)) = events.next(None).unwrap() {
            seen.push((progress.transfer, progress.bytes));
        }
        assert_eq!(seen, [(1, 5), (2, 1)]);
    }

    #[test]
    fn what_a_disk_thread_brings_waits_for_room() {
        let events = Events::new(100);
        (0..EVENTS_MAX).for_each(|_| events.push(Event::AcceptError(Error::Closed)));
        let (sender, receiver) = std::sync::mpsc::channel();
        let pushing = events.clone();
        let thread = std::thread::spawn(move || {
            pushing.push_when_there_is_room(progress(1, 1));
            sender.send(()).unwrap();
        });
        assert!(receiver.recv_timeout(Duration::from_millis(50)).is_err());
        assert!(matches!(events.next(None), Ok(Some(Event::AcceptError(_)))));
        receiver.recv_timeout(Duration::from_secs(20)).unwrap();
        thread.join().unwrap();
        events.close();
        events.push_when_there_is_room(progress(1, 2));
    }

    #[test]
    fn a_timeout_is_told_from_the_end() {
        let events = Events::new(100);
        assert!(matches!(events.next(Some(Duration::ZERO)), Err(Error::Timeout { .. })));
        events.close();
        assert!(matches!(events.next(Some(Duration::ZERO)), Ok(None)));
    }

    #[test]
    fn a_text_is_handled_when_it_is_dropped() {
        let events = Events::new(4);
        let (sender, receiver) = std::sync::mpsc::channel();
        let handled = Handled::new(move || sender.send(()).unwrap());
        assert!(events.has_room_for_text(1000));
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        events.push(Event::Text(Text { from: None, address, private: false, text: "hello".into(), handled }));
        assert!(!events.has_room_for_text(1));
        let text = events.next(None).unwrap();
        assert!(receiver.try_recv().is_err());
        drop(text);
        assert!(receiver.try_recv().is_ok());
    }
}
