//! The books of one connection's incoming data: what was offered, what came, what may come, and what is to be said of it.
//!
//! It touches no file. The reader and the disk thread enter what happens; whoever has the send turn takes out
//! ([`Ledger::control`]) what the peer is to be told. Credit comes out of the [`Budget`] that all connections share.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::budget::Budget;
use crate::config::{CHUNKS_MAX, CREDIT_BYTES_LEAST, OFFER_PATH_BYTES, OPEN_TRANSFERS_MAX, REPAIRS_MAX};
use crate::error::{Error, Result};
use crate::wire::{self, Message, Subject};

/// See the module.
pub(super) struct Ledger {
    budget: Arc<Budget>,
    /// Called when the budget has something again.
    wake: Arc<dyn Fn() + Send + Sync>,
    last_number: u32,
    /// Offered and not ended.
    open: BTreeSet<u32>,
    /// Offers whose end was not said yet, with the bytes of their paths, and these together.
    standing: BTreeMap<u32, usize>,
    standing_bytes: usize,
    offers_max: usize,
    replies: VecDeque<Message>,
    /// Bytes of each transfer that were written or found damaged; ACK is due for those in `acks`.
    received: BTreeMap<u32, u64>,
    acks: BTreeSet<u32>,
    /// Transfers whose SEND was said: no other can be acknowledged.
    sending: BTreeSet<u32>,
    /// Chunks that wait for the disk thread.
    chunks: usize,
    /// All chunk bytes that came.
    arrived: u64,
    /// Those that are written or thrown away.
    consumed: u64,
    credit: u64,
    /// Data under way when credit became void is still within what was allowed.
    credit_highest: u64,
    /// What of the credit is taken from the budget.
    held: u64,
    in_budget: bool,
    /// Bytes were consumed since the credit was last said. Where their transfer has ended, another one's ACK says it.
    untold: bool,
    /// The last ACK could not raise the credit: another is due once the budget has something again.
    starved: bool,
}

impl Ledger {
    /// For a peer that was told that it may have `offers_max` offers open.
    pub(super) fn new(budget: Arc<Budget>, wake: Arc<dyn Fn() + Send + Sync>, offers_max: u32) -> Ledger {
        Ledger {
            budget,
            wake,
            last_number: 0,
            open: BTreeSet::new(),
            standing: BTreeMap::new(),
            standing_bytes: 0,
            offers_max: usize::try_from(offers_max).unwrap_or(usize::MAX),
            replies: VecDeque::new(),
            received: BTreeMap::new(),
            acks: BTreeSet::new(),
            sending: BTreeSet::new(),
            chunks: 0,
            arrived: 0,
            consumed: 0,
            credit: 0,
            credit_highest: 0,
            held: 0,
            in_budget: false,
            untold: false,
            starved: false,
        }
    }

    /// PROTOCOL 5.1 and 5.4: an offer came.
    pub(super) fn offered(&mut self, number: u32, path_bytes: usize) -> Result<()> {
        if number <= self.last_number {
            return Err(Error::violation("5.1", "a transfer number used twice"));
        }
        if self.standing.len() >= self.offers_max
            || self.standing_bytes > self.offers_max.saturating_mul(OFFER_PATH_BYTES)
            || self.replies.len() > self.replies_max()
        {
            return Err(Error::violation("5.4", "too many open offers"));
        }
        self.last_number = number;
        self.standing.insert(number, path_bytes);
        self.standing_bytes += path_bytes;
        self.open.insert(number);
        Ok(())
    }

    /// Both sides know, or will before they hear anything else, that a transfer has ended: another may be offered.
    pub(super) fn is_over(&mut self, number: u32) {
        self.standing_bytes -= self.standing.remove(&number).unwrap_or(0);
    }

    /// Answers, repairs and ends that a peer which reads can be owed; one that cancels and does not read would be owed more.
    fn replies_max(&self) -> usize {
        2 * self.offers_max + OPEN_TRANSFERS_MAX * REPAIRS_MAX
    }

    /// PROTOCOL 5.1: the number was offered, whether it has ended or not.
    pub(super) fn known(&self, number: u32) -> Result<()> {
        if number == 0 || number > self.last_number {
            return Err(Error::violation("5.1", "data for a transfer never offered"));
        }
        Ok(())
    }

    /// PROTOCOL 6.2 and 6.10: chunk bytes came; `false` when their transfer has ended and they are thrown away.
    pub(super) fn arrived(&mut self, number: u32, length: u64) -> Result<bool> {
        self.known(number)?;
        self.arrived += length;
        if self.arrived > self.credit_highest {
            return Err(Error::violation("6.2", "more data than the credit allows"));
        }
        let open = self.open.contains(&number);
        if !open {
            self.consume(length);
            // What is left of the credit for the next transfer may be used up by this.
            self.starved |= self.in_budget;
        } else if self.arrived > self.credit {
            return Err(Error::violation("6.2", "more data than the credit allows"));
        } else {
            self.chunks += 1;
            if self.chunks > 2 * CHUNKS_MAX {
                return Err(Error::violation("6.4", "more unacknowledged chunks than there may be"));
            }
        }
        Ok(open)
    }

    /// PROTOCOL 6.2: how many bytes of data may still come.
    pub(super) fn room(&self) -> u64 {
        self.credit_highest.saturating_sub(self.arrived)
    }

    /// Chunk bytes are written, or found damaged: they are acknowledged, and give room.
    pub(super) fn settled(&mut self, number: u32, length: u64) {
        self.chunks = self.chunks.saturating_sub(1);
        if let Some(received) = self.received.get_mut(&number) {
            *received += length;
            self.acks.insert(number);
        }
        self.consume(length);
    }

    /// Something is to be said.
    pub(super) fn reply(&mut self, message: Message) {
        if let Message::Send { transfer, .. } = &message {
            self.received.insert(*transfer, 0);
        }
        self.replies.push_back(message);
    }

    /// A transfer ended. With the last one the credit is void (PROTOCOL 6.2).
    pub(super) fn ended(&mut self, number: u32) {
        self.open.remove(&number);
        self.received.remove(&number);
        self.acks.remove(&number);
        self.sending.remove(&number);
        if self.open.is_empty() {
            self.release();
        }
    }

    /// The connection is gone.
    pub(super) fn close(&mut self) {
        self.replies.clear();
        self.release();
    }

    /// Appends what is to be said: answers first, then acknowledgements; about 32 KiB at a time.
    pub(super) fn control(&mut self, out: &mut Vec<u8>) {
        const ENOUGH_BYTES: usize = 32 * 1024;
        while out.len() < ENOUGH_BYTES {
            let wants_credit = matches!(self.replies.front(), Some(Message::Send { .. }));
            if wants_credit && !self.top_up() {
                break;
            }
            let Some(mut message) = self.replies.pop_front() else { break };
            match &mut message {
                Message::Send { transfer, credit, .. } => {
                    *credit = self.credit;
                    if self.received.contains_key(transfer) {
                        self.sending.insert(*transfer);
                    }
                }
                Message::Receipt(wire::Receipt { transfer, .. })
                | Message::Refused { subject: Subject::Transfer(transfer), .. } => {
                    let number = *transfer;
                    self.is_over(number);
                }
                _ => {}
            }
            message.encode(out);
        }
        let before = self.credit;
        let is_raised = self.starved && self.held < CREDIT_BYTES_LEAST && self.top_up() && self.credit > before;
        if is_raised || (self.untold && self.acks.is_empty()) {
            self.acks.extend(self.sending.first());
        }
        while out.len() < ENOUGH_BYTES {
            let Some(transfer) = self.acks.pop_first() else { break };
            self.top_up();
            let received = self.received.get(&transfer).copied().unwrap_or(0);
            self.untold = false;
            Message::Ack { transfer, received, credit: self.credit }.encode(out);
        }
    }

    /// Whether [`Ledger::control`] would add nothing.
    pub(super) fn has_nothing_to_say(&self) -> bool {
        let waits_for_credit = matches!(self.replies.front(), Some(Message::Send { .. })) && self.held == 0;
        let credit_is_said = !self.untold || self.sending.is_empty();
        (self.replies.is_empty() || waits_for_credit) && self.acks.is_empty() && credit_is_said
    }

    /// Whether nothing is open and nothing is left to say.
    pub(super) fn is_idle(&self) -> bool {
        self.open.is_empty() && self.replies.is_empty()
    }

    fn consume(&mut self, length: u64) {
        self.consumed += length;
        self.untold = true;
        let back = self.held.min(length);
        self.held -= back;
        self.budget.give_back(back);
    }

    /// Raises the credit to this connection's share; tells whether there is any.
    fn top_up(&mut self) -> bool {
        if !self.in_budget {
            self.in_budget = true;
            self.budget.join();
        }
        let share = self.budget.share();
        if self.held < share {
            self.held += self.budget.take(share - self.held, &self.wake);
            self.starved = self.held < CREDIT_BYTES_LEAST;
        }
        self.credit = self.credit.max(self.consumed + self.held);
        self.credit_highest = self.credit_highest.max(self.credit);
        self.held > 0
    }

    /// Gives back what the budget lent.
    fn release(&mut self) {
        if self.in_budget {
            self.in_budget = false;
            self.budget.give_back(std::mem::take(&mut self.held));
            self.budget.leave();
            self.credit = self.consumed;
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{OFFERS_MAX, WINDOW_BYTES_MAX};
    use crate::error::Refusal;

    fn ledger(budget: &Arc<Budget>) -> Ledger {
        Ledger::new(Arc::clone(budget), Arc::new(|| ()), OFFERS_MAX)
    }

    /// Opens a transfer; gives whether its SEND could go.
    fn open(ledger: &mut Ledger, number: u32) -> bool {
        ledger.offered(number, 1).unwrap();
        ledger.reply(Message::Send { transfer: number, have: 0, credit: 0 });
        let mut out = Vec::new();
        ledger.control(&mut out);
        !out.is_empty()
    }

    #[test]
    fn data_past_the_credit_is_a_violation() {
        let budget = Arc::new(Budget::new(WINDOW_BYTES_MAX, 1));
        let mut ledger = ledger(&budget);
        assert!(open(&mut ledger, 1));
        assert!(ledger.arrived(1, WINDOW_BYTES_MAX).unwrap());
        assert!(ledger.arrived(1, 1).is_err());
    }

    #[test]
    fn chunks_are_bounded_however_short() {
        let budget = Arc::new(Budget::new(WINDOW_BYTES_MAX, 1));
        let mut ledger = ledger(&budget);
        assert!(open(&mut ledger, 1));
        (0..2 * CHUNKS_MAX).for_each(|_| assert!(ledger.arrived(1, 1).unwrap()));
        ledger.settled(1, 1);
        assert!(ledger.arrived(1, 1).unwrap());
        assert!(ledger.arrived(1, 1).is_err());
    }

    #[test]
    fn void_credit_is_no_credit_for_the_next_transfer() {
        let budget = Arc::new(Budget::new(WINDOW_BYTES_MAX, 1));
        let (mut first, mut second) = (ledger(&budget), ledger(&budget));
        assert!(open(&mut first, 1));
        first.ended(1);
        assert!(open(&mut second, 1));
        open(&mut first, 2);
        assert!(!first.arrived(1, CREDIT_BYTES_LEAST).unwrap(), "what was under way is read away");
        assert!(first.arrived(2, WINDOW_BYTES_MAX - CREDIT_BYTES_LEAST).is_err());
    }

    #[test]
    fn an_offer_counts_until_its_end_is_said() {
        let budget = Arc::new(Budget::new(WINDOW_BYTES_MAX, 1));
        let mut ledger = Ledger::new(budget, Arc::new(|| ()), 2);
        let refused = |transfer| Message::Refused { subject: Subject::Transfer(transfer), refusal: Refusal::BadName };
        for number in 1..=2 {
            ledger.offered(number, 1).unwrap();
            ledger.reply(refused(number));
            ledger.ended(number);
        }
        assert!(ledger.offered(3, 1).is_err(), "nothing of it was said");
        ledger.control(&mut Vec::new());
        ledger.offered(3, 600).unwrap();
        assert!(ledger.offered(4, 1).is_err(), "the path is too long for another");
        ledger.is_over(3);
        ledger.offered(4, 1).unwrap();
    }

    #[test]
    fn numbers_and_offers_are_bounded() {
        let budget = Arc::new(Budget::new(WINDOW_BYTES_MAX, 1));
        let mut ledger = ledger(&budget);
        for number in 1..=OFFERS_MAX {
            ledger.offered(number, 1).unwrap();
        }
        assert!(ledger.offered(OFFERS_MAX + 1, 1).is_err());
        assert!(ledger.offered(3, 1).is_err());
        assert!(ledger.known(0).is_err() && ledger.known(OFFERS_MAX + 1).is_err());
    }

    #[test]
    fn nothing_is_acknowledged_before_its_send() {
        let budget = Arc::new(Budget::new(CREDIT_BYTES_LEAST, 1));
        let (mut first, mut second) = (ledger(&budget), ledger(&budget));
        assert!(open(&mut first, 1));
        assert!(!open(&mut second, 1) && !open(&mut second, 2));
        assert_eq!(second.sending.first(), None, "both wait for credit");
        first.ended(1);
        second.control(&mut Vec::new());
        assert_eq!(second.sending.first(), Some(&1));
    }

    #[test]
    fn room_that_an_ended_transfer_leaves_is_told_to_the_others() {
        let budget = Arc::new(Budget::new(CREDIT_BYTES_LEAST, 1));
        let mut ledger = ledger(&budget);
        assert!(open(&mut ledger, 1) && open(&mut ledger, 2));
        let credit = ledger.credit;
        assert!(ledger.arrived(1, credit).unwrap(), "all of it");
        ledger.settled(1, credit);
        ledger.ended(1);
        let mut out = Vec::new();
        assert!(!ledger.has_nothing_to_say());
        ledger.control(&mut out);
        assert!(!out.is_empty() && ledger.credit > credit, "an ACK of the second says it");
        assert!(ledger.has_nothing_to_say());
        assert!(!ledger.arrived(1, 100).unwrap(), "late data is thrown away");
        assert!(!ledger.has_nothing_to_say());
    }

    #[test]
    fn a_starved_connection_is_told_when_the_budget_has_room_again() {
        let budget = Arc::new(Budget::new(CREDIT_BYTES_LEAST, 1));
        let (mut first, mut second) = (ledger(&budget), ledger(&budget));
        assert!(open(&mut first, 1));
        assert!(!open(&mut second, 1), "nothing is left for the second");
        first.ended(1);
        let mut out = Vec::new();
        second.control(&mut out);
        assert!(!out.is_empty(), "SEND goes now");
        assert!(second.arrived(1, second.credit).unwrap());
        // A third takes what the second gives back by writing.
        second.settled(1, second.held);
        let mut third = ledger(&budget);
        assert!(open(&mut third, 1));
        let mut out = Vec::new();
        second.control(&mut out);
        let credit = second.credit;
        third.ended(1);
        second.control(&mut Vec::new());
        assert!(second.credit > credit, "an ACK raises it");
    }
}
