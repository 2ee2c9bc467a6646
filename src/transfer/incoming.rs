//! One file on its way in: what is verified, what is asked for again, whether it is complete.
//!
//! It does no input or output; [`Inbound`](super::Inbound) does what it says.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::coverage::Coverage;
use super::holders::Hold;
use super::{Direction, Kind, Passage, Progress, RequestId, Seldom, TransferId};
use crate::config::{block_bytes, DAMAGED_CHUNKS_MAX, REPAIRS_MAX};
use crate::error::{Error, Refusal, Result};
use crate::storage::{Existing, Failure, Meta, Partial, Pipe, Taken};
use crate::wire::Chunk;

/// An offered file.
pub(super) struct Incoming {
    pub(super) id: TransferId,
    pub(super) meta: Meta,
    pub(super) kind: Kind,
    /// Our request that it answers.
    pub(super) request: Option<RequestId>,
    /// It is for others.
    pub(super) passage: Option<Box<dyn Passage>>,
    pub(super) started: Instant,
    pub(super) stage: Stage,
    /// Let go after the partial in `stage`.
    pub(super) hold: Option<Arc<Hold>>,
    /// What SEND said.
    pub(super) have: u64,
    pub(super) coverage: Coverage,
    /// Bytes of good chunks.
    pub(super) travelled: u64,
    /// Ranges asked for and not yet here.
    asked: Vec<(u64, u64)>,
    /// Ranges to ask for.
    wanted: VecDeque<(u64, u64)>,
    damaged: u32,
    /// Comparisons under way.
    pub(super) comparing: u32,
    /// Sums received so far; kept while files that were there are compared.
    pub(super) sums: Vec<u32>,
    pub(super) sums_received: u64,
    progress_is_told: Seldom,
    /// FINISH: the CRC of the whole, and whether the source grew.
    pub(super) finish: Option<(u32, bool)>,
}

/// How far an offered file is.
pub(super) enum Stage {
    /// Waits for one of the open places.
    Waiting,
    /// Has a place, and waits for its answer, or for others who receive the same file.
    Settling,
    /// Goes into a pipe.
    Piping(Pipe),
    /// SEND was answered; a partial is opened when it is needed.
    Receiving(Option<Arc<Partial>>),
    /// Compared with files of its size that were there.
    Candidates(Vec<Existing>),
    /// An equal one was there, with this CRC; its receipt waits for FINISH.
    Equal(Existing, u32),
    /// With the storage.
    Committing { crc: u32 },
}

impl Incoming {
    pub(super) fn new(id: TransferId, kind: Kind, request: Option<RequestId>, meta: Meta) -> Incoming {
        Incoming {
            id,
            meta,
            kind,
            request,
            passage: None,
            started: Instant::now(),
            stage: Stage::Waiting,
            hold: None,
            have: 0,
            coverage: Coverage::default(),
            travelled: 0,
            asked: Vec::new(),
            wanted: VecDeque::new(),
            damaged: 0,
            comparing: 0,
            sums: Vec::new(),
            sums_received: 0,
            progress_is_told: Seldom::default(),
            finish: None,
        }
    }

    /// As it was offered: what is for others is kept under another path.
    pub(super) fn offered_name(&self) -> Vec<u8> {
        match &self.passage {
            Some(passage) => passage.name().to_bytes(),
            None => self.meta.path.to_bytes(),
        }
    }

    /// Whether it takes one of the places of PROTOCOL 5.4.
    pub(super) fn is_large(&self) -> bool {
        match self.kind {
            Kind::File => !self.meta.is_small(),
            Kind::Directory => false,
            Kind::Stream => true,
        }
    }

    /// The connection is gone: a stream goes on where it has its first gap, as nothing will tell the next connection of it.
    pub(super) fn keep_whole(&self) {
        if let (Kind::Stream, Stage::Receiving(Some(partial))) = (self.kind, &self.stage) {
            partial.keep_until(self.coverage.end_from(self.have));
        }
    }

    /// PROTOCOL 6.1: whether this chunk was asked for. Takes it off what is asked.
    pub(super) fn expect_chunk(&mut self, offset: u64, length: u64) -> Result<()> {
        let end = offset.checked_add(length).filter(|&end| end <= self.meta.size && length > 0);
        let Some(end) = end else { return Err(Error::violation("6.1", "CHUNK outside the file")) };
        if self.coverage.overlaps(offset, length) {
            return Err(Error::violation("6.1", "CHUNK over verified bytes"));
        }
        let covering = self.asked.iter().position(|&(at, asked)| at <= offset && end <= at + asked);
        match covering {
            Some(position) => {
                let (at, asked) = self.asked.swap_remove(position);
                let (before, after) = ((at, offset - at), (end, at + asked - end));
                self.asked.extend([before, after].into_iter().filter(|&(_, length)| length > 0));
                Ok(())
            }
            None if offset >= self.have => Ok(()),
            None => Err(Error::violation("6.1", "CHUNK that was not asked for")),
        }
    }

    /// A part was written.
    pub(super) fn came(&mut self, chunk: &Chunk) -> Result<()> {
        let length = u64::try_from(chunk.data.len()).unwrap_or(u64::MAX);
        self.travelled += length;
        let added = self.coverage.add(chunk.offset, length, chunk.crc);
        added.map_err(|_| Error::violation("6.1", "CHUNK over verified bytes"))?;
        if self.coverage.has_too_many_gaps() {
            return Err(Error::violation("6.6", "more gaps in a file than there may be"));
        }
        Ok(())
    }

    /// A part went into the pipe, or there was no room for what its gap keeps waiting.
    pub(super) fn piped(
        &mut self,
        taken: std::result::Result<Taken, Failure>,
        chunk: &Chunk,
    ) -> Result<std::result::Result<(), Failure>> {
        match taken {
            Ok(Taken::Written) => self.came(chunk)?,
            Ok(Taken::NoRoom) => self.want(chunk.offset, u64::try_from(chunk.data.len()).unwrap_or(u64::MAX)),
            Err(failure) => return Ok(Err(failure)),
        }
        Ok(Ok(()))
    }

    /// Compares what went into the pipe before a break; `false` when it was something else.
    pub(super) fn compare_piped(&mut self, pipe: &Pipe, first_block: u32, crcs: &[u32]) -> bool {
        (u64::from(first_block)..).zip(crcs).all(|(index, &crc)| {
            let (offset, length) = self.block_range(index);
            pipe.block_crc(index) == Some(crc) && self.coverage.add(offset, length, crc).is_ok()
        })
    }

    /// A range is wanted again, because its chunk was damaged.
    ///
    /// # Errors
    /// [`Refusal::Damaged`] once that happened too often.
    pub(super) fn chunk_damaged(&mut self, offset: u64, length: u64) -> std::result::Result<(), Refusal> {
        self.damaged += 1;
        self.wanted.push_back((offset, length));
        if self.damaged > DAMAGED_CHUNKS_MAX {
            Err(Refusal::Damaged)
        } else {
            Ok(())
        }
    }

    /// A range is wanted; joined to the last one where they touch.
    pub(super) fn want(&mut self, offset: u64, length: u64) {
        match self.wanted.back_mut() {
            Some((at, wanted)) if *at + *wanted == offset => *wanted += length,
            _ => self.wanted.push_back((offset, length)),
        }
    }

    /// PROTOCOL 6.6: the ranges to ask for now.
    pub(super) fn ask(&mut self) -> Vec<(u64, u64)> {
        let room = REPAIRS_MAX.saturating_sub(self.asked.len()).min(self.wanted.len());
        let ranges: Vec<_> = self.wanted.drain(..room).collect();
        self.asked.extend_from_slice(&ranges);
        ranges
    }

    /// PROTOCOL 6.5: sums arrive in order, and as many as there are blocks below `have`.
    pub(super) fn expect_sums(&mut self, first_block: u32, count: usize) -> Result<()> {
        let blocks = self.have.div_ceil(self.block_bytes());
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        if self.kind == Kind::Stream
            || u64::from(first_block) != self.sums_received
            || count > blocks - self.sums_received
        {
            return Err(Error::violation("6.5", "SUMS out of order"));
        }
        self.sums_received += count;
        Ok(())
    }

    /// A stream has none: what came of it earlier is read here, and FINISH has the CRC of all.
    pub(super) fn all_sums_received(&self) -> bool {
        self.kind == Kind::Stream || self.sums_received == self.have.div_ceil(self.block_bytes())
    }

    pub(super) fn block_bytes(&self) -> u64 {
        block_bytes(self.meta.size)
    }

    /// Where a block is, and how long.
    pub(super) fn block_range(&self, index: u64) -> (u64, u64) {
        let offset = index * self.block_bytes();
        (offset, self.block_bytes().min(self.meta.size.saturating_sub(offset)))
    }

    /// The CRC of the whole, once everything is there, verified, and FINISH has come.
    pub(super) fn complete(&self) -> Option<(u32, u32)> {
        let (expected, _) = self.finish?;
        self.coverage.whole(self.meta.size).map(|crc| (crc, expected))
    }

    /// Whether something that is missing is still on its way.
    pub(super) fn awaits_more(&self) -> bool {
        self.comparing > 0 || !self.asked.is_empty() || !self.wanted.is_empty() || !self.all_sums_received()
    }

    /// How far it is, now and then.
    pub(super) fn progress(&mut self) -> Option<Progress> {
        if self.meta.is_small() || !self.progress_is_told.is_due() {
            return None;
        }
        Some(Progress {
            transfer: self.id,
            direction: Direction::Incoming,
            name: self.offered_name(),
            bytes: self.meta.size.min(self.have + self.travelled),
            size_bytes: (self.kind != Kind::Stream).then_some(self.meta.size),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::SafePath;
    use crate::storage::Time;

    fn incoming() -> Incoming {
        let path = SafePath::parse(b"a").unwrap();
        let mtime = Time { seconds: 1, nanoseconds: 0 };
        let meta = Meta { path, size: 1 << 40, mtime, mode: 0o644, content_crc: 0, is_stream: false };
        Incoming::new(1, Kind::File, None, meta)
    }

    #[test]
    fn no_more_ranges_are_asked_for_than_a_sender_takes() {
        let mut file = incoming();
        let many = u64::try_from(REPAIRS_MAX).unwrap() + 1;
        // Every other byte, so that no two are one range.
        (0..many).for_each(|number| file.want(2 * number, 1));
        assert_eq!(file.ask().len(), REPAIRS_MAX);
        assert_eq!(file.ask(), []);
        file.expect_chunk(0, 1).unwrap();
        assert_eq!(file.ask(), [(2 * many - 2, 1)]);
    }

    #[test]
    fn a_line_that_damages_too_much_is_given_up() {
        let mut file = incoming();
        (0..DAMAGED_CHUNKS_MAX).for_each(|_| file.chunk_damaged(0, 1).unwrap());
        assert_eq!(file.chunk_damaged(0, 1), Err(Refusal::Damaged));
    }
}
