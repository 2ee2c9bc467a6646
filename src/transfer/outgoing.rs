//! One file on its way out: what has been offered, sent, acknowledged, and asked for again.
//!
//! It does no input or output; [`Outbound`](super::Outbound) asks it for the next step and tells it what came of it.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::{combine_crc, Direction, Kind, Progress, Receipt, Report, Seldom, TransferFailure, TransferId};
use crate::config::{block_bytes, BLOCK_BYTES_LEAST, REPAIRS_MAX, ROOM_GUESSED};
use crate::error::{Error, Result};
use crate::name::{Nickname, SafePath};
use crate::storage::{self, Held, Origin, Source, Stream};
use crate::wire::{self, Time};

/// One file that is to be sent, over as many connections as it takes.
pub(super) struct Outgoing {
    pub(super) id: TransferId,
    /// Its number on this connection, once it is offered (PROTOCOL 5.1).
    pub(super) number: u32,
    pub(super) purpose: Purpose,
    pub(super) content: Content,
    /// The path that is offered, as bytes.
    pub(super) name: Vec<u8>,
    pub(super) started: Instant,
    pub(super) offered: Offered,
    pub(super) phase: Phase,
    /// Keeps what is read where it is until this has ended.
    held: Option<Arc<Held>>,
    /// Those whose outcome was reported, of those that it is for.
    told: BTreeSet<Nickname>,
    progress_is_told: Seldom,
    /// What came before the receipt.
    pub(super) early: Vec<wire::Relayed>,
}

/// What is sent, and why.
#[derive(Clone)]
pub(super) enum Purpose {
    /// The application wants the other side to have it.
    Own,
    /// It answers the other side's GET of this number (PROTOCOL 9.2).
    Request(u32),
    /// It is for others, whom the other side hands it on to (PROTOCOL 11).
    Relay(Arc<wire::Relay>),
}

/// Where what is sent comes from.
#[derive(Clone)]
pub(super) enum Content {
    File(Origin),
    /// Nothing but its mode and time; `is_top` for the whole tree's, which is the last of it.
    Directory {
        path: PathBuf,
        mtime: storage::Time,
        mode: u32,
        is_top: bool,
    },
    Stream(Arc<Stream>),
}

/// A source that is open, or how to open it.
pub(super) enum Opening {
    Open(Arc<Source>),
    Origin(Origin, Offered),
    Stream(Arc<Stream>),
}

/// What is to be looked at before FINISH.
pub(super) enum Finishing {
    Source(Arc<Source>),
    Stream(Arc<Stream>),
    /// Nothing was read of it.
    Nothing,
}

/// What the last offer said; a source that is another by now is not sent under it.
#[derive(Clone, Default)]
pub(super) struct Offered {
    pub(super) size: u64,
    pub(super) mtime: Time,
    /// The CRC of a small file's content.
    pub(super) content_crc: u32,
}

pub(super) enum Phase {
    /// Not offered on this connection yet.
    Waiting,
    /// Offered, not answered.
    Offered,
    /// Answered with SEND.
    Sending(Sending),
    /// The other side has it, and hands it on.
    Relaying(Receipt),
}

/// A transfer whose data was asked for.
pub(super) struct Sending {
    /// Opened when the first bytes are read.
    pub(super) source: Option<Arc<Source>>,
    have: u64,
    /// Where the next new chunk begins.
    next: u64,
    /// The CRC of the new data sent so far.
    new_crc: u32,
    /// The CRC of the blocks below `have`, once all their sums are sent.
    held_crc: Option<u32>,
    /// Bytes of chunks sent on this connection, repairs included.
    sent: u64,
    acknowledged: u64,
    repairs: VecDeque<(u64, u64)>,
    /// What was sent and not acknowledged, in the order in which it was sent.
    under_way: VecDeque<(u64, u64)>,
    finished: bool,
    pub(super) grew: bool,
}

/// What a transfer can do next.
pub(super) enum Step {
    /// Send these bytes.
    Chunk { offset: u64, length: u64 },
    /// Everything was sent once: check the source and say FINISH.
    Finish,
}

impl Content {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Content::File(_) => Kind::File,
            Content::Directory { .. } => Kind::Directory,
            Content::Stream(_) => Kind::Stream,
        }
    }

    /// As this side's log shows it; `None` where it has no name.
    pub(super) fn path(&self) -> Option<PathBuf> {
        match self {
            Content::File(origin) => Some(origin.path()),
            Content::Directory { path, .. } => Some(path.clone()),
            Content::Stream(stream) => stream.path().cloned(),
        }
    }
}

impl Purpose {
    /// The request that it answers, or 0.
    pub(super) fn request(&self) -> u32 {
        match self {
            Purpose::Request(number) => *number,
            Purpose::Own | Purpose::Relay(_) => 0,
        }
    }

    /// The RELAY that says whom it is for, or 0.
    pub(super) fn relay(&self) -> u32 {
        match self {
            Purpose::Relay(relay) => relay.relay,
            Purpose::Own | Purpose::Request(_) => 0,
        }
    }
}

impl Outgoing {
    pub(super) fn new(id: TransferId, purpose: Purpose, name: &SafePath, content: Content) -> Outgoing {
        Outgoing {
            id,
            number: 0,
            purpose,
            content,
            name: name.to_bytes(),
            started: Instant::now(),
            offered: Offered::default(),
            phase: Phase::Waiting,
            held: None,
            told: BTreeSet::new(),
            progress_is_told: Seldom::default(),
            early: Vec::new(),
        }
    }

    /// The same, which keeps what is read where it is until it has ended.
    pub(super) fn holding(self, held: Arc<Held>) -> Outgoing {
        Outgoing { held: Some(held), ..self }
    }

    /// The request that it answers, or 0.
    pub(super) fn request(&self) -> u32 {
        self.purpose.request()
    }

    /// Whether what becomes of it at those whom it is for is told here.
    pub(super) fn is_for_others(&self) -> bool {
        matches!(&self.purpose, Purpose::Relay(relay) if !relay.leave)
    }

    /// How many RELAYEDs follow its RECEIPT, as far as this side knows.
    pub(super) fn outcomes_due(&self) -> usize {
        match &self.purpose {
            Purpose::Relay(relay) if !relay.leave => relay.to.as_ref().map_or(ROOM_GUESSED, Vec::len),
            _ => 0,
        }
    }

    pub(super) fn is_directory(&self) -> bool {
        matches!(self.content, Content::Directory { .. })
    }

    pub(super) fn is_small(&self) -> bool {
        self.content.kind() == Kind::File && self.offered.size <= BLOCK_BYTES_LEAST
    }

    /// Whether nothing more of it goes to the other side, which hands it on.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Relaying(_))
    }

    /// The next step, with at most `length_max` bytes; `None` while there is only waiting.
    pub(super) fn step(&self, length_max: u64) -> Option<Step> {
        let Phase::Sending(sending) = &self.phase else { return None };
        let (end, is_whole) = match &self.content {
            Content::Stream(stream) => stream.extent(),
            _ => (self.offered.size, true),
        };
        sending.step(end, is_whole, length_max)
    }

    /// What its bytes are read from.
    pub(super) fn opening(&self) -> Option<Opening> {
        let open = match &self.phase {
            Phase::Sending(sending) => sending.source.clone(),
            _ => None,
        };
        match &self.content {
            Content::File(origin) => {
                let again = || Opening::Origin(origin.clone(), self.offered.clone());
                Some(open.map_or_else(again, Opening::Open))
            }
            Content::Stream(stream) => Some(Opening::Stream(Arc::clone(stream))),
            Content::Directory { .. } => None,
        }
    }

    /// What is to be looked at before FINISH.
    pub(super) fn finishing(&self) -> Finishing {
        match (&self.content, &self.phase) {
            (Content::Stream(stream), _) => Finishing::Stream(Arc::clone(stream)),
            (_, Phase::Sending(Sending { source: Some(source), .. })) => Finishing::Source(Arc::clone(source)),
            _ => Finishing::Nothing,
        }
    }

    /// It has ended: nothing more is read of it.
    pub(super) fn close(&self) {
        if let Content::Stream(stream) = &self.content {
            stream.close();
        }
    }

    /// PROTOCOL 5.5: SEND was received.
    pub(super) fn begin(&mut self, have: u64) -> Result<()> {
        if !matches!(self.phase, Phase::Offered) {
            return Err(Error::violation("5.4", "SEND for a transfer that waits for no answer"));
        }
        let size = self.offered.size;
        let held_crc = match &self.content {
            Content::Stream(stream) => Some(stream.crc_until(have)?),
            _ => (have == 0).then_some(0),
        };
        let on_a_block = have == size || have % block_bytes(size) == 0;
        let is_possible = match self.content.kind() {
            Kind::File => have <= size && on_a_block && (have == 0 || !self.is_small()),
            Kind::Directory => false,
            Kind::Stream => true,
        };
        if !is_possible {
            return Err(Error::violation("5.5", "SEND with an impossible have"));
        }
        self.phase = Phase::Sending(Sending {
            source: None,
            have,
            next: have,
            new_crc: 0,
            held_crc,
            sent: 0,
            acknowledged: 0,
            repairs: VecDeque::new(),
            under_way: VecDeque::new(),
            finished: false,
            grew: false,
        });
        Ok(())
    }

    pub(super) fn sending(&mut self) -> Option<&mut Sending> {
        match &mut self.phase {
            Phase::Sending(sending) => Some(sending),
            _ => None,
        }
    }

    /// How far it is, now and then.
    pub(super) fn progress(&mut self) -> Option<Progress> {
        if self.is_small() || !self.progress_is_told.is_due() {
            return None;
        }
        let Phase::Sending(sending) = &self.phase else { return None };
        Some(Progress {
            transfer: self.id,
            direction: Direction::Outgoing,
            name: self.name.clone(),
            bytes: sending.next.min(sending.have + sending.acknowledged),
            size_bytes: (self.content.kind() != Kind::Stream).then_some(self.offered.size),
        })
    }

    /// RECEIPT was received: PROTOCOL 6.9.
    pub(super) fn receipt(&self, receipt: wire::Receipt) -> Result<Receipt> {
        let (size, expected_crc, grew) = match &self.phase {
            Phase::Waiting | Phase::Relaying(_) => {
                return Err(Error::violation("6.9", "RECEIPT for a transfer that waits for none"));
            }
            Phase::Offered => {
                let crc = receipt.already.then_some(self.offered.content_crc).filter(|_| self.is_small());
                let size = match &self.content {
                    // It came on an earlier connection.
                    Content::Stream(stream) => stream.extent().0,
                    _ => self.offered.size,
                };
                (size, crc, false)
            }
            Phase::Sending(sending) => {
                let size = if self.content.kind() == Kind::Stream { sending.next } else { self.offered.size };
                (size, sending.whole_crc(size), sending.grew)
            }
        };
        let finished = matches!(&self.phase, Phase::Sending(sending) if sending.finished);
        if !finished && !receipt.already && !self.is_directory() {
            return Err(Error::violation("6.8", "RECEIPT before everything was sent"));
        }
        if receipt.size != size || expected_crc.is_some_and(|crc| crc != receipt.crc) {
            return Err(Error::violation("6.9", "RECEIPT for other content than was sent"));
        }
        Ok(Receipt {
            transfer: self.id,
            direction: Direction::Outgoing,
            peer: None,
            address: None,
            request: None,
            kind: self.content.kind(),
            source: self.source(),
            name: self.name.clone(),
            stored: receipt.stored,
            bytes: receipt.size,
            crc32: receipt.crc,
            durable: receipt.durable,
            already: receipt.already,
            resumed_bytes: receipt.resumed,
            grew,
            elapsed: self.started.elapsed(),
        })
    }

    /// PROTOCOL 11.4: what became of it at one of those it is for; `None` where that was told before.
    fn relayed(&mut self, receipt: &Receipt, relayed: &wire::Relayed) -> Option<Report> {
        if !self.told.insert(relayed.nickname.clone()) {
            return None;
        }
        let peer = Some(relayed.nickname.clone());
        Some(match &relayed.outcome {
            Ok(delivered) => Report::Stored(Receipt {
                peer,
                stored: delivered.stored.clone(),
                durable: delivered.durable,
                already: delivered.already,
                elapsed: self.started.elapsed(),
                ..receipt.clone()
            }),
            Err(refusal) => Report::Failed(TransferFailure {
                transfer: self.id,
                direction: Direction::Outgoing,
                peer,
                request: None,
                source: self.source(),
                name: self.name.clone(),
                error: Error::Refused(*refusal),
            }),
        })
    }

    /// What the outcomes that have come say, and whether they are all.
    pub(super) fn outcomes(&mut self) -> (Vec<Report>, bool) {
        let Phase::Relaying(receipt) = &self.phase else { return (Vec::new(), false) };
        let (receipt, early) = (receipt.clone(), std::mem::take(&mut self.early));
        let reports = early.iter().filter_map(|relayed| self.relayed(&receipt, relayed)).collect();
        (reports, early.iter().any(|relayed| relayed.last))
    }

    /// As this side's user named it; `None` where that was not so.
    fn source(&self) -> Option<PathBuf> {
        if self.held.is_some() {
            return None;
        }
        self.content.path()
    }

    pub(super) fn failure(self, error: Error) -> TransferFailure {
        TransferFailure {
            transfer: self.id,
            direction: Direction::Outgoing,
            peer: None,
            request: None,
            source: self.source(),
            name: self.name,
            error,
        }
    }
}

impl Sending {
    /// Of what can be sent up to `end`, which is the whole or not.
    fn step(&self, end: u64, is_whole: bool, length_max: u64) -> Option<Step> {
        if let Some(&(offset, length)) = self.repairs.front() {
            return (length_max > 0).then_some(Step::Chunk { offset, length: length.min(length_max) });
        }
        if self.next < end {
            let length = (end - self.next).min(length_max);
            return (length > 0).then_some(Step::Chunk { offset: self.next, length });
        }
        (is_whole && !self.finished && self.held_crc.is_some()).then_some(Step::Finish)
    }

    /// The chunk that [`Sending::step`] named left, with this CRC.
    pub(super) fn chunk_sent(&mut self, offset: u64, length: u64, crc: u32) {
        self.sent += length;
        self.under_way.push_back((offset, length));
        if let Some((at, left)) = self.repairs.front_mut().filter(|(at, _)| *at == offset) {
            (*at, *left) = (*at + length, left.saturating_sub(length));
            if *left == 0 {
                self.repairs.pop_front();
            }
            return;
        }
        self.new_crc = combine_crc(self.new_crc, crc, length);
        self.next = offset + length;
    }

    /// All sums of the blocks below `have` are on their way; `crc` is theirs together.
    pub(super) fn sums_sent(&mut self, crc: u32) {
        self.held_crc = Some(crc);
    }

    pub(super) fn finished(&mut self) {
        self.finished = true;
    }

    /// The CRC of the whole, once everything was read.
    pub(super) fn whole_crc(&self, size: u64) -> Option<u32> {
        let all_read = self.next == size;
        self.held_crc.filter(|_| all_read).map(|held| combine_crc(held, self.new_crc, size - self.have))
    }

    /// ACK was received; gives how many bytes it acknowledged anew.
    pub(super) fn acknowledged(&mut self, received: u64) -> Result<u64> {
        if received < self.acknowledged || received > self.sent {
            return Err(Error::violation("6.3", "ACK for bytes that were not sent"));
        }
        let newly = received - self.acknowledged;
        self.acknowledged = received;
        let mut left = newly;
        while let Some((at, length)) = self.under_way.front_mut() {
            let part = left.min(*length);
            (*at, *length, left) = (*at + part, *length - part, left - part);
            if *length > 0 {
                break;
            }
            self.under_way.pop_front();
        }
        Ok(newly)
    }

    /// What is before this offset will not be sent again on this connection (PROTOCOL 6.3: a REPAIR comes before the ACK that
    /// counts what it asks for).
    pub(super) fn done_until(&self) -> u64 {
        let wanted = self.under_way.iter().chain(&self.repairs).map(|&(offset, _)| offset);
        wanted.min().unwrap_or(self.next).min(self.next)
    }

    /// Everything was read.
    pub(super) fn reached(&self) -> u64 {
        self.next
    }

    /// Bytes under way.
    pub(super) fn unacknowledged(&self) -> u64 {
        self.sent - self.acknowledged
    }

    /// REPAIR was received: PROTOCOL 6.6.
    pub(super) fn repair(&mut self, size: u64, offset: u64, length: u64) -> Result<()> {
        let inside = offset.checked_add(length).is_some_and(|end| end <= size);
        if length == 0 || !inside || self.repairs.len() >= REPAIRS_MAX {
            return Err(Error::violation("6.6", "REPAIR outside the file, or too many"));
        }
        self.repairs.push_back((offset, length));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_may_ask_for_so_many_ranges_and_no_more() {
        let stream = Content::Stream(Arc::new(Stream::of_reader(std::io::empty())));
        let mut file = Outgoing::new(1, Purpose::Own, &SafePath::parse(b"a").unwrap(), stream);
        file.phase = Phase::Offered;
        file.begin(0).unwrap();
        let sending = file.sending().unwrap();
        let size = 1000;
        for (offset, length) in [(0, 0), (size, 1), (0, size + 1), (u64::MAX, 2)] {
            assert!(sending.repair(size, offset, length).is_err(), "{length} bytes at {offset}");
        }
        (0..REPAIRS_MAX).for_each(|_| sending.repair(size, 0, size).unwrap());
        assert!(sending.repair(size, 0, size).is_err());
    }
}
