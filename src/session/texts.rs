//! Texts on their way to one run: in order, within the peer's window, until they are acknowledged (PROTOCOL 4).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::mailbox::TextReport;
use super::outbox::Outbox;
use crate::config::{OUTBOX_BYTES_MAX, OUTBOX_BYTES_SLOW, OUTBOX_SLOW_AFTER, TEXTS_MAX};
use crate::error::{Error, Refusal, Result};
use crate::worker::{Lock, Signal};

/// The peer reads too slowly, and is to be cut off.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooSlow;

/// See the module.
pub(crate) struct Texts {
    state: Mutex<State>,
    outbox: Arc<Outbox>,
    /// Wakes who waits for room.
    room: Signal,
    report: Box<dyn Fn(TextReport) + Send + Sync>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Entry>,
    queued_bytes: usize,
    /// What of the outboxes' memory the queue takes.
    cost: usize,
    /// How many of the queue's first texts were sent on this connection, and their tails' bytes.
    sent: usize,
    sent_bytes: usize,
    /// TEXT_ACK's last count on this connection.
    acknowledged: u64,
    window_bytes: usize,
    attached: bool,
    /// Since when too much waits.
    slow_since: Option<Instant>,
    closed: bool,
}

struct Entry {
    frame: Arc<[u8]>,
    /// PROTOCOL 4.5 counts the tail.
    tail_bytes: usize,
    /// The sequence of a text of ours that the application wants to hear of.
    sequence: Option<u64>,
    /// What of the outboxes' memory it takes.
    cost: usize,
}

impl State {
    /// PROTOCOL 4.5.
    fn may_send(&self, tail_bytes: usize) -> bool {
        self.sent == 0 || (self.sent < TEXTS_MAX && self.sent_bytes + tail_bytes <= self.window_bytes)
    }
}

/// What a queued text costs beside its frame.
const ENTRY_BYTES: usize = 64;

impl Drop for Texts {
    fn drop(&mut self) {
        self.outbox.give_back(self.state.take().cost);
    }
}

impl Texts {
    pub(super) fn new(outbox: Arc<Outbox>, report: impl Fn(TextReport) + Send + Sync + 'static) -> Texts {
        Texts { state: Mutex::default(), outbox, room: Signal::new(), report: Box::new(report) }
    }

    /// Queues a text's frame, which so many `receivers` share.
    ///
    /// # Errors
    /// [`TooSlow`] when too much waits, or waits for too long; the text is not queued.
    pub(crate) fn push(
        &self,
        frame: &Arc<[u8]>,
        tail_bytes: usize,
        sequence: Option<u64>,
        receivers: usize,
    ) -> std::result::Result<(), TooSlow> {
        self.push_at(Instant::now(), frame, tail_bytes, sequence, receivers)
    }

    fn push_at(
        &self,
        now: Instant,
        frame: &Arc<[u8]>,
        tail_bytes: usize,
        sequence: Option<u64>,
        receivers: usize,
    ) -> std::result::Result<(), TooSlow> {
        let mut state = self.state.take();
        if state.queued_bytes + frame.len() > OUTBOX_BYTES_MAX {
            return Err(TooSlow);
        }
        if state.queued_bytes > OUTBOX_BYTES_SLOW {
            let since = *state.slow_since.get_or_insert(now);
            if state.attached && now.saturating_duration_since(since) > OUTBOX_SLOW_AFTER {
                return Err(TooSlow);
            }
        }
        let cost = ENTRY_BYTES + frame.len() / receivers.max(1);
        if !self.outbox.take(cost, state.cost) {
            return Err(TooSlow);
        }
        state.cost += cost;
        state.queued_bytes += frame.len();
        state.queue.push_back(Entry { frame: Arc::clone(frame), tail_bytes, sequence, cost });
        Ok(())
    }

    /// Waits until `bytes` more find room, for whoever sends its own texts and can wait.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub(crate) fn wait_for_room(&self, bytes: usize) -> Result<()> {
        let full = |state: &mut State| !state.closed && state.queued_bytes + bytes > OUTBOX_BYTES_SLOW;
        let state = self.room.wait_while(self.state.take(), full).unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            Err(Error::Closed)
        } else {
            Ok(())
        }
    }

    /// Nobody reads them for a while: the others who had them too may be done with them.
    pub(crate) fn keep_alone(&self) {
        let state = &mut *self.state.take();
        for entry in &mut state.queue {
            let more = (ENTRY_BYTES + entry.frame.len()).saturating_sub(entry.cost);
            entry.cost += more;
            state.cost += more;
            self.outbox.add(more);
        }
    }

    /// What it takes of the outboxes' memory.
    pub(crate) fn cost(&self) -> usize {
        self.state.take().cost
    }

    /// Nobody will take the texts any more.
    pub(crate) fn close(&self) {
        self.state.take().closed = true;
        self.room.notify_all();
    }

    pub(super) fn attach(&self, window_bytes: u32) {
        let mut state = self.state.take();
        state.window_bytes = usize::try_from(window_bytes).unwrap_or(usize::MAX);
        (state.sent, state.sent_bytes, state.acknowledged) = (0, 0, 0);
        state.attached = true;
    }

    pub(super) fn detach(&self) {
        self.state.take().attached = false;
    }

    /// Appends frames that the window allows; about 64 KiB at a time.
    pub(super) fn take(&self, out: &mut Vec<u8>) {
        const ENOUGH_BYTES: usize = 64 * 1024;
        let state = &mut *self.state.take();
        while out.len() < ENOUGH_BYTES && state.attached {
            let Some(entry) = state.queue.get(state.sent) else { break };
            if !state.may_send(entry.tail_bytes) {
                break;
            }
            state.sent += 1;
            state.sent_bytes += entry.tail_bytes;
            out.extend_from_slice(&entry.frame);
        }
    }

    /// PROTOCOL 4.4.
    pub(super) fn on_ack(&self, count: u64) -> Result<()> {
        let mut delivered = Vec::new();
        {
            let mut state = self.state.take();
            let newly = count.checked_sub(state.acknowledged).and_then(|newly| usize::try_from(newly).ok());
            let Some(newly) = newly.filter(|&newly| newly <= state.sent) else {
                return Err(Error::violation("4.4", "TEXT_ACK for texts that were not sent"));
            };
            state.acknowledged = count;
            for _ in 0..newly {
                let Some(entry) = state.queue.pop_front() else { break };
                state.sent -= 1;
                state.sent_bytes -= entry.tail_bytes;
                state.queued_bytes -= entry.frame.len();
                state.cost -= entry.cost;
                self.outbox.give_back(entry.cost);
                delivered.extend(entry.sequence);
            }
            if state.queued_bytes <= OUTBOX_BYTES_SLOW {
                state.slow_since = None;
            }
        }
        self.room.notify_all();
        delivered.into_iter().for_each(|sequence| (self.report)(TextReport::Delivered { sequence }));
        Ok(())
    }

    /// PROTOCOL 4.4: one text can't be delivered.
    pub(super) fn on_refused(&self, number: u64, refusal: Refusal) -> Result<()> {
        let sequence = {
            let mut state = self.state.take();
            let index = number.checked_sub(state.acknowledged + 1).and_then(|index| usize::try_from(index).ok());
            let sent = state.sent;
            let entry = index.filter(|&index| index < sent).and_then(|index| state.queue.get_mut(index));
            let Some(entry) = entry else {
                return Err(Error::violation("4.4", "a text was refused that was not sent"));
            };
            entry.sequence.take()
        };
        if let Some(sequence) = sequence {
            (self.report)(TextReport::Refused { sequence, refusal });
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state.take().queue.is_empty()
    }

    /// Whether [`Texts::take`] would give something.
    pub(super) fn has_work(&self) -> bool {
        let state = self.state.take();
        let next = state.queue.get(state.sent);
        state.attached && next.is_some_and(|next| state.may_send(next.tail_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TEXT_WINDOW_BYTES;
    use std::time::Duration;

    fn attached() -> Texts {
        let texts = Texts::new(Arc::new(Outbox::new(usize::MAX)), |_| ());
        texts.attach(u32::try_from(TEXT_WINDOW_BYTES).unwrap());
        texts
    }

    fn frame(bytes: usize) -> Arc<[u8]> {
        vec![0; bytes].into()
    }

    #[test]
    fn as_much_waits_as_an_outbox_holds_and_not_a_byte_more() {
        let texts = attached();
        let now = Instant::now();
        let quarter = frame(OUTBOX_BYTES_MAX / 4);
        (0..4).for_each(|_| texts.push_at(now, &quarter, quarter.len(), None, 1).unwrap());
        assert_eq!(texts.push_at(now, &frame(1), 1, None, 1), Err(TooSlow));
        texts.take(&mut Vec::new());
        texts.on_ack(1).unwrap();
        texts.push_at(now, &quarter, quarter.len(), None, 1).unwrap();
        assert_eq!(texts.push_at(now, &frame(1), 1, None, 1), Err(TooSlow));
    }

    #[test]
    fn whoever_leaves_too_much_waiting_is_too_slow_after_a_while() {
        let texts = attached();
        let (now, one) = (Instant::now(), frame(1));
        texts.push_at(now, &frame(OUTBOX_BYTES_SLOW), OUTBOX_BYTES_SLOW, None, 1).unwrap();
        // So much may wait for ever.
        let day = Duration::from_secs(24 * 3600);
        texts.push_at(now + day, &one, 1, None, 1).unwrap();
        // A byte more may not.
        let since = now + 2 * day;
        texts.push_at(since, &one, 1, None, 1).unwrap();
        texts.push_at(since + OUTBOX_SLOW_AFTER, &one, 1, None, 1).unwrap();
        let late = since + OUTBOX_SLOW_AFTER + Duration::from_millis(1);
        assert_eq!(texts.push_at(late, &one, 1, None, 1), Err(TooSlow));
        // Nor does it count while there is no connection.
        texts.detach();
        texts.push_at(late, &one, 1, None, 1).unwrap();
        // What is acknowledged makes it quick again.
        texts.attach(u32::try_from(TEXT_WINDOW_BYTES).unwrap());
        texts.take(&mut Vec::new());
        texts.on_ack(1).unwrap();
        texts.push_at(late, &one, 1, None, 1).unwrap();
    }

    #[test]
    fn no_more_is_sent_unacknowledged_than_the_window_but_one_text_always_is() {
        let texts = Texts::new(Arc::new(Outbox::new(usize::MAX)), |_| ());
        texts.attach(10);
        let sent = |texts: &Texts| {
            let mut out = Vec::new();
            texts.take(&mut out);
            out.len()
        };
        texts.push(&frame(20), 20, None, 1).unwrap();
        (0..3).for_each(|_| texts.push(&frame(5), 5, None, 1).unwrap());
        assert_eq!(sent(&texts), 20);
        assert_eq!(sent(&texts), 0);
        texts.on_ack(1).unwrap();
        assert_eq!(sent(&texts), 10, "two of five fill it");
        assert!(texts.on_ack(4).is_err(), "more than was sent");
        texts.on_ack(2).unwrap();
        assert_eq!(sent(&texts), 5);
    }
}
