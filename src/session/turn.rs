//! The send turn: whoever has a frame for a peer whose turn is free takes the turn and sends without waiting.
//!
//! Only what the socket did not take, and what must be read from a file, is left to a writer thread, which ends when idle. The
//! order is control, texts, then one chunk, so that a text waits for at most one chunk. Acknowledgements, pongs and
//! answers are state until the turn is taken: they can't pile up.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::Session;
use crate::config::{FLUSH_BYTES, REFUSED_TIMEOUT, TEXTS_ACKNOWLEDGED_TOGETHER, WRITE_BYTES};
use crate::error::{Error, Goodbye, Refusal};
use crate::name::Nickname;
use crate::wire::{Message, Presence, Subject};
use crate::worker::{self, spawn, Lock};

/// What waits for the turn, and who has it.
pub(super) struct Turn {
    taken: bool,
    /// The writer has nothing to do and waits; it takes the turn when woken.
    writer_waits: bool,
    /// What the socket did not take.
    rest: Vec<u8>,
    /// How often the other side was asked, and whether to ask now.
    pings: u64,
    ping: bool,
    pong: Option<u64>,
    pub(super) named: Option<Nickname>,
    presence: VecDeque<Presence>,
    refused_texts: VecDeque<(u64, Refusal)>,
    refused: Option<Refusal>,
    /// REFUSED is the last word (PROTOCOL 2.9).
    has_refused: bool,
    /// What the disk thread found wrong with the peer: why the session ends.
    pub(super) violation: Option<Error>,
    texts_arrived: u64,
    /// Texts handled in order, those handled before an earlier one, and the last count that was said.
    texts_handled: u64,
    texts_handled_early: BTreeSet<u64>,
    texts_said: u64,
    unhandled_bytes: usize,
    closing: Closing,
    pub(super) ended: bool,
}

/// Where an orderly end stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    No,
    /// GOODBYE follows what is queued.
    AfterAll(Goodbye),
    /// GOODBYE follows what this side owes for what it received.
    AfterOwed(Goodbye),
    /// GOODBYE was said.
    Said(Goodbye),
}

/// Somebody who reads no presence is no member of the room for long.
const PRESENCE_MAX: usize = 4096;

impl Turn {
    /// The hello has it first: nothing may be said before its last frame.
    pub(super) fn new() -> Turn {
        Turn {
            taken: true,
            writer_waits: false,
            rest: Vec::new(),
            pings: 0,
            ping: false,
            pong: None,
            named: None,
            presence: VecDeque::new(),
            refused_texts: VecDeque::new(),
            refused: None,
            has_refused: false,
            violation: None,
            texts_arrived: 0,
            texts_handled: 0,
            texts_handled_early: BTreeSet::new(),
            texts_said: 0,
            unhandled_bytes: 0,
            closing: Closing::No,
            ended: false,
        }
    }

    /// Asks the other side for a sign of life; gives the token of its PONG.
    pub(super) fn ping(&mut self) -> u64 {
        self.ping = true;
        self.pings += 1;
        self.pings
    }

    /// PROTOCOL 2.7: only the last PING is answered.
    pub(super) fn pong(&mut self, token: u64) {
        self.pong = Some(token);
    }

    pub(super) fn announce(&mut self, presence: impl IntoIterator<Item = Presence>) {
        let room = PRESENCE_MAX.saturating_sub(self.presence.len());
        self.presence.extend(presence.into_iter().take(room));
    }

    /// A text came; gives its place on this connection, from 1.
    pub(super) fn text_arrived(&mut self, bytes: usize) -> u64 {
        self.texts_arrived += 1;
        self.unhandled_bytes += bytes;
        self.texts_arrived
    }

    /// PROTOCOL 4.4: counts in the order of arrival.
    pub(super) fn text_handled(&mut self, number: u64, bytes: usize) {
        self.unhandled_bytes = self.unhandled_bytes.saturating_sub(bytes);
        self.texts_handled_early.insert(number);
        while self.texts_handled_early.remove(&(self.texts_handled + 1)) {
            self.texts_handled += 1;
        }
    }

    /// Whether that is worth a write of its own: while more of them wait to be handled they are acknowledged together.
    pub(super) fn is_to_acknowledge(&self) -> bool {
        let unsaid = self.texts_handled - self.texts_said;
        unsaid > 0 && (self.texts_handled == self.texts_arrived || unsaid >= TEXTS_ACKNOWLEDGED_TOGETHER)
    }

    /// PROTOCOL 4.5: bytes of texts that are not handled, and texts whose acknowledgement was not said.
    pub(super) fn unacknowledged(&self) -> (usize, u64) {
        (self.unhandled_bytes, self.texts_arrived - self.texts_said)
    }

    pub(super) fn refuse_text(&mut self, number: u64, refusal: Refusal) {
        self.refused_texts.push_back((number, refusal));
    }

    pub(super) fn close(&mut self, reason: Goodbye) {
        if self.closing == Closing::No {
            self.closing = Closing::AfterAll(reason);
        }
    }

    pub(super) fn dismiss(&mut self, reason: Goodbye) {
        if !self.said_goodbye() {
            self.closing = Closing::AfterOwed(reason);
        }
    }

    /// PROTOCOL 2.8: the other side said GOODBYE.
    pub(super) fn answer_goodbye(&mut self) {
        self.dismiss(Goodbye::Done);
    }

    pub(super) fn said_goodbye(&self) -> bool {
        matches!(self.closing, Closing::Said(_))
    }

    pub(super) fn said_reconnect(&self) -> bool {
        self.closing == Closing::Said(Goodbye::Reconnect)
    }
}

impl Session {
    /// The hello is complete: sends what came up meanwhile.
    pub(super) fn begin(&self) {
        self.turn.take().taken = false;
        self.flush();
    }

    /// Sends what there is, if the turn is free; whoever has it sends it else.
    pub(super) fn flush(&self) {
        let mut turn = self.turn.take();
        if turn.taken {
            return;
        }
        turn.taken = true;
        loop {
            let mut out = std::mem::take(&mut turn.rest);
            out.reserve(FLUSH_BYTES);
            self.gather(&mut turn, &mut out);
            if out.is_empty() {
                if self.wants_writer(&turn) {
                    return self.hand_to_writer(turn);
                }
                turn.taken = false;
                return;
            }
            drop(turn);
            let written = match self.conn.write_now(&out) {
                Ok(written) => written,
                // The reader meets the same error, and tells it.
                Err(_) => return self.conn.end(),
            };
            turn = self.turn.take();
            if written < out.len() {
                turn.rest = out.split_off(written);
                return self.hand_to_writer(turn);
            }
        }
    }

    /// PROTOCOL 2.9: refuses the connection, as its last word. Whoever has the turn says it; that is waited for, but not for long.
    pub(super) fn refuse_connection(&self, refusal: Refusal) {
        self.turn.take().refused = Some(refusal);
        self.flush();
        let deadline = Instant::now() + REFUSED_TIMEOUT;
        while self.is_still_to_refuse() && Instant::now() < deadline {
            worker::pause(Duration::from_millis(2));
        }
    }

    fn is_still_to_refuse(&self) -> bool {
        let turn = self.turn.take();
        // After GOODBYE it is not said any more.
        (turn.refused.is_some() && !turn.said_goodbye()) || (turn.taken && !turn.ended)
    }

    fn wants_writer(&self, turn: &Turn) -> bool {
        !turn.said_goodbye() && !turn.has_refused && self.mailbox.files.has_work()
    }

    /// The turn stays taken; a writer that waits, or a new one, goes on with it.
    fn hand_to_writer(&self, mut turn: std::sync::MutexGuard<'_, Turn>) {
        if turn.writer_waits {
            turn.writer_waits = false;
            drop(turn);
            self.work.notify_all();
            return;
        }
        drop(turn);
        let Some(this) = self.this.upgrade() else { return };
        if spawn("writer", move || this.write()).is_err() {
            self.conn.end();
        }
    }

    /// The writer thread. It has the turn whenever it does not wait.
    fn write(self: Arc<Self>) {
        let _end = EndOnPanic(&self);
        let mut out = Vec::new();
        loop {
            let mut turn = self.turn.take();
            if turn.ended {
                return;
            }
            out.append(&mut turn.rest);
            self.gather(&mut turn, &mut out);
            let has_ended = turn.said_goodbye() || turn.has_refused;
            drop(turn);
            if out.is_empty() && !has_ended {
                while out.len() < WRITE_BYTES && self.mailbox.files.fill(&mut out) {}
            }
            if !out.is_empty() {
                if self.write_all(&out).is_err() {
                    return self.conn.end();
                }
                out.clear();
                continue;
            }
            if !self.wait_for_work() {
                return;
            }
        }
    }

    /// Gives the turn back and waits for it; `false` when there was nothing for a while.
    fn wait_for_work(&self) -> bool {
        let mut turn = self.turn.take();
        // What came since the turn was last looked at would be missed.
        if self.has_something(&turn) {
            return true;
        }
        turn.taken = false;
        turn.writer_waits = true;
        loop {
            let idle = worker::idle();
            let at_most = self.mailbox.files.pause().unwrap_or(idle).min(idle);
            let (next, timeout) = self
                .work
                .wait_timeout_while(turn, at_most, |turn| turn.writer_waits && !turn.ended)
                .unwrap_or_else(PoisonError::into_inner);
            turn = next;
            if !turn.writer_waits {
                return true;
            }
            // The end of a pause wakes nobody.
            if !turn.ended && !turn.taken && self.wants_writer(&turn) {
                (turn.taken, turn.writer_waits) = (true, false);
                return true;
            }
            if turn.ended || (timeout.timed_out() && (idle.is_zero() || !self.mailbox.files.is_active())) {
                turn.writer_waits = false;
                return false;
            }
        }
    }

    /// Whether [`Session::gather`] or the files would give something. After the last word there is only its rest to send: a
    /// writer that went on looking would take a processor for itself until the other side ends.
    fn has_something(&self, turn: &Turn) -> bool {
        if turn.said_goodbye() || turn.has_refused {
            return !turn.rest.is_empty();
        }
        let control = turn.ping || turn.pong.is_some() || !turn.presence.is_empty() || !turn.refused_texts.is_empty();
        control
            || turn.named.is_some()
            || turn.refused.is_some()
            || turn.texts_handled > turn.texts_said
            || !turn.rest.is_empty()
            || !self.inbound.has_nothing_to_say()
            || self.mailbox.texts.has_work()
            || self.mailbox.requests.has_work()
            || self.mailbox.has_outcomes()
            || self.may_say_goodbye(turn).is_some()
            || self.wants_writer(turn)
    }

    fn write_all(&self, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            let count = self.conn.write(bytes)?;
            bytes = bytes.get(count..).unwrap_or_default();
        }
        Ok(())
    }

    /// Turns what waits into frames: control, then texts, then GOODBYE when its time has come.
    fn gather(&self, turn: &mut Turn, out: &mut Vec<u8>) {
        if turn.said_goodbye() || turn.has_refused {
            return;
        }
        // PROTOCOL 10.5. Who wants to end after all is delivered does so on the next connection.
        if self.conn.is_worn() && matches!(turn.closing, Closing::No | Closing::AfterAll(Goodbye::Done)) {
            turn.dismiss(Goodbye::Reconnect);
        }
        if let Some(token) = turn.pong.take() {
            Message::Pong(token).encode(out);
        }
        if std::mem::take(&mut turn.ping) {
            Message::Ping(turn.pings).encode(out);
        }
        for (number, refusal) in turn.refused_texts.drain(..) {
            Message::Refused { subject: Subject::Text(number), refusal }.encode(out);
        }
        if turn.texts_handled > turn.texts_said {
            turn.texts_said = turn.texts_handled;
            Message::TextAck { count: turn.texts_said }.encode(out);
        }
        self.inbound.control(out);
        if let Some(nickname) = turn.named.take() {
            Message::Named(nickname).encode(out);
        }
        // A crowd's arrival is long, and comes once: its room is not kept.
        for presence in std::mem::take(&mut turn.presence) {
            Message::Presence(presence).encode(out);
        }
        self.mailbox.texts.take(out);
        self.mailbox.requests.control(out);
        self.mailbox.take_outcomes(out);
        if let Some(refusal) = turn.refused.take() {
            turn.has_refused = true;
            Message::Refused { subject: Subject::Connection, refusal }.encode(out);
        }
        if out.is_empty() {
            if let Some(reason) = self.may_say_goodbye(turn) {
                turn.closing = Closing::Said(reason);
                Message::Goodbye(reason).encode(out);
                // A few bytes: what the socket does not take now is not worth a wait.
                let _ = self.conn.write_now(out);
                out.clear();
                self.conn.shutdown_write();
            }
        }
    }

    fn may_say_goodbye(&self, turn: &Turn) -> Option<Goodbye> {
        match turn.closing {
            Closing::AfterAll(reason) => (self.mailbox.is_empty() && self.inbound.is_idle()).then_some(reason),
            Closing::AfterOwed(reason) => self.inbound.owes_nothing().then_some(reason),
            Closing::No | Closing::Said(_) => None,
        }
    }
}

/// A panic of the writer ends its connection, and no other.
struct EndOnPanic<'a>(&'a Session);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.conn.end();
        }
    }
}
