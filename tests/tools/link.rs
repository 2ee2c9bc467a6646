//! One direction of one of the proxy's connections, with its faults: a state machine that never waits.
//!
//! It refuses to know time and threads: the proxy's carrier calls [`Pump::step`] with the moment, then waits as
//! [`Pump::wants_to_read`], [`Pump::wants_to_write`] and [`Pump::next_moment`] say.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// One direction. The default carries everything at once, and whole.
#[derive(Debug, Clone, Default)]
pub struct Line {
    /// Each byte arrives so much later.
    pub delay: Duration,
    /// Bytes a second; what does not fit waits in the sender's socket, as at the near end of a slow link.
    pub rate_bytes_per_second: Option<u32>,
    /// Each write has a random number of bytes in this range.
    pub pieces: Option<RangeInclusive<usize>>,
    /// When exactly so many bytes have been carried, both ends see a reset.
    pub reset_after_bytes: Option<u64>,
    /// After so many bytes the receiving end sees the end of the stream; what follows is read away.
    pub half_close_after: Option<u64>,
    /// After so many bytes nothing more is read or written in this direction, and nothing is closed.
    pub stall_after: Option<u64>,
    /// Bits that arrive inverted: `8 * offset + bit`, bit 0 the lowest.
    pub flip_bits: Vec<u64>,
}

/// One direction of one connection: reads as the link's rate allows, writes what is due.
pub struct Pump {
    line: Line,
    random: u64,
    buffer: Vec<u8>,
    read_bytes: u64,
    written_bytes: u64,
    /// On the link, each with the moment it arrives; the first may have been written in part.
    under_way: VecDeque<Piece>,
    under_way_bytes: usize,
    /// When the link takes the next byte.
    link_free_at: Instant,
    /// When the end of the source's stream arrives.
    end_due: Option<Instant>,
    /// The destination has seen the end, or never will.
    pub is_done: bool,
    is_stalled: bool,
    half_closed: bool,
    flipped_bits: u64,
}

struct Piece {
    due: Instant,
    bytes: Vec<u8>,
    written: usize,
}

impl Pump {
    pub fn new(line: Line, seed: u64, now: Instant) -> Pump {
        Pump {
            line,
            random: seed | 1,
            buffer: vec![0; READ_BYTES],
            read_bytes: 0,
            written_bytes: 0,
            under_way: VecDeque::new(),
            under_way_bytes: 0,
            link_free_at: now,
            end_due: None,
            is_done: false,
            is_stalled: false,
            half_closed: false,
            flipped_bits: 0,
        }
    }

    /// How many bits were flipped since the last call.
    pub fn take_flipped(&mut self) -> u64 {
        std::mem::take(&mut self.flipped_bits)
    }

    /// Reads and writes what can be without waiting; gives the bytes written. An error: reset both ends.
    pub fn step(&mut self, source: &TcpStream, destination: &TcpStream, now: Instant) -> io::Result<u64> {
        let before = self.written_bytes;
        // A fault at byte 0 comes before any reading.
        self.apply_cuts(destination)?;
        if self.wants_to_read(now) {
            self.read(source, now)?;
        }
        while self.wants_to_write(now) && self.write(destination)? {
            self.apply_cuts(destination)?;
        }
        if self.end_due.is_some_and(|due| due <= now) && self.under_way.is_empty() && !self.is_done && !self.is_stalled
        {
            self.is_done = true;
            // Refused only where the destination has gone, which its own direction finds out.
            let _ = if self.half_closed { Ok(()) } else { destination.shutdown(Shutdown::Write) };
        }
        Ok(self.written_bytes - before)
    }

    pub fn wants_to_read(&self, now: Instant) -> bool {
        self.end_due.is_none() && !self.is_stalled && self.link_free_at <= now && self.may_read_bytes() > 0
    }

    pub fn wants_to_write(&self, now: Instant) -> bool {
        !self.is_stalled && self.under_way.front().is_some_and(|piece| piece.due <= now)
    }

    /// The next moment, after `now`, at which it wants more than it wants now.
    pub fn next_moment(&self, now: Instant) -> Option<Instant> {
        let piece = self.under_way.front().map(|piece| piece.due);
        let link = self.end_due.is_none().then_some(self.link_free_at);
        [piece, link, self.end_due].into_iter().flatten().filter(|moment| *moment > now).min()
    }

    /// How many bytes it may read at once: what the link carries in a moment, and nothing beyond the next cut.
    fn may_read_bytes(&self) -> usize {
        let cuts = [
            self.line.reset_after_bytes,
            self.line.stall_after,
            self.line.half_close_after.filter(|_| !self.half_closed),
        ];
        let until_cut =
            cuts.into_iter().flatten().map(|cut| cut.saturating_sub(self.read_bytes)).min().unwrap_or(u64::MAX);
        let in_a_moment = self
            .line
            .rate_bytes_per_second
            .map_or(READ_BYTES, |rate| usize::try_from(rate / MOMENTS_PER_SECOND).unwrap().clamp(1, READ_BYTES));
        let room = UNDER_WAY_BYTES_MAX.saturating_sub(self.under_way_bytes);
        in_a_moment.min(room).min(usize::try_from(until_cut).unwrap_or(usize::MAX))
    }

    fn read(&mut self, mut source: &TcpStream, now: Instant) -> io::Result<()> {
        let wanted = self.may_read_bytes();
        let count = match source.read(&mut self.buffer[..wanted]) {
            Ok(0) => {
                self.end_due = Some(now + self.line.delay);
                return Ok(());
            }
            Ok(count) => count,
            Err(error) if is_later(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let start = self.read_bytes;
        self.read_bytes += u64::try_from(count).unwrap();
        let mut due = now + self.line.delay;
        if let Some(rate) = self.line.rate_bytes_per_second {
            // A thread that wakes late makes it up, by one moment at most.
            let begin = now.checked_sub(MOMENT).map_or(self.link_free_at, |earliest| self.link_free_at.max(earliest));
            let nanoseconds = u64::try_from(count).unwrap() * 1_000_000_000 / u64::from(rate.max(1));
            self.link_free_at = begin + Duration::from_nanos(nanoseconds);
            due = self.link_free_at + self.line.delay;
        }
        if self.half_closed {
            return Ok(());
        }
        for bit in &self.line.flip_bits {
            let offset = (bit / 8).checked_sub(start).and_then(|offset| usize::try_from(offset).ok());
            if let Some(byte) = offset.and_then(|offset| self.buffer[..count].get_mut(offset)) {
                *byte ^= 1 << (bit % 8);
                self.flipped_bits += 1;
            }
        }
        let mut at = 0;
        while at < count {
            let length = self.piece_bytes().min(count - at);
            self.under_way.push_back(Piece { due, bytes: self.buffer[at..at + length].to_vec(), written: 0 });
            at += length;
        }
        self.under_way_bytes += count;
        Ok(())
    }

    /// Writes the first piece, or what is left of it; false when the destination takes no more now.
    fn write(&mut self, mut destination: &TcpStream) -> io::Result<bool> {
        let Some(piece) = self.under_way.front_mut() else {
            return Ok(false);
        };
        match destination.write(&piece.bytes[piece.written..]) {
            Ok(count) => {
                piece.written += count;
                self.written_bytes += u64::try_from(count).unwrap();
                self.under_way_bytes -= count;
                if piece.written == piece.bytes.len() {
                    self.under_way.pop_front();
                }
                Ok(true)
            }
            Err(error) if is_later(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What happens at the byte that has just been written. Nothing beyond a cut was read, so none is passed.
    fn apply_cuts(&mut self, destination: &TcpStream) -> io::Result<()> {
        let here = Some(self.written_bytes);
        if self.line.reset_after_bytes == here {
            return Err(ErrorKind::ConnectionReset.into());
        }
        if self.line.half_close_after == here && !self.half_closed {
            self.half_closed = true;
            destination.shutdown(Shutdown::Write)?;
        }
        self.is_stalled |= self.line.stall_after == here;
        Ok(())
    }

    /// xorshift64, by Marsaglia: any seed but 0 will do.
    fn piece_bytes(&mut self) -> usize {
        let Some(range) = &self.line.pieces else {
            return usize::MAX;
        };
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let span = u64::try_from(range.end() - range.start() + 1).unwrap();
        range.start() + usize::try_from(self.random % span).unwrap()
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// A slow link carries its bytes in portions of so long.
const MOMENT: Duration = Duration::from_millis(5);
const MOMENTS_PER_SECOND: u32 = 200;
const READ_BYTES: usize = 64 * 1024;
/// What a link without a rate holds at most: 1 GB/s over 64 ms.
const UNDER_WAY_BYTES_MAX: usize = 64 * 1024 * 1024;
