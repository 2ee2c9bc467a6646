//! How fast file data leaves: `Config::limit_rate`, one pace for all connections of a process.
//!
//! A chunk leaves when those before it have had their time. Texts and control never ask. [`Outbound`](super::Outbound) asks
//! before each chunk and waits outside every lock, in the session's writer.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::config::{LIMIT_RATE_BURST, LIMIT_RATE_CHUNKS, LIMIT_RATE_LEAST};
use crate::worker::Lock;

/// See the module.
pub(crate) struct Pace {
    /// Bytes a second.
    limit: Option<u64>,
    /// When the next chunk may leave.
    next_at: Mutex<Instant>,
}

impl Pace {
    /// At most `limit` bytes a second, or as fast as it goes.
    pub(crate) fn new(limit: Option<u64>) -> Pace {
        Pace { limit: limit.map(|limit| limit.max(LIMIT_RATE_LEAST)), next_at: Mutex::new(Instant::now()) }
    }

    /// How long the next chunk waits; zero when it may leave.
    pub(super) fn pause(&self, now: Instant) -> Duration {
        match self.limit {
            Some(_) => self.next_at.take().saturating_duration_since(now),
            None => Duration::ZERO,
        }
    }

    /// The largest chunk that suits the pace: a fraction of a second's.
    pub(super) fn chunk_bytes(&self) -> u64 {
        self.limit.map_or(u64::MAX, |limit| limit / LIMIT_RATE_CHUNKS)
    }

    /// A chunk of `bytes` leaves.
    pub(super) fn sent(&self, bytes: u64, now: Instant) {
        let Some(limit) = self.limit else { return };
        let takes = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / limit);
        let mut next_at = self.next_at.take();
        // A wait that took too long is made up for, a longer rest is not.
        let earliest = now.checked_sub(LIMIT_RATE_BURST).unwrap_or(now);
        *next_at = (*next_at).max(earliest) + takes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends chunks of `bytes` for 10 s of the pace's time, after each wait so `late`; gives the bytes.
    fn run(pace: &Pace, bytes: u64, late: Duration) -> u64 {
        let mut now = Instant::now();
        let end = now + Duration::from_secs(10);
        let mut sent = 0;
        while now < end {
            while pace.pause(now).is_zero() {
                pace.sent(bytes, now);
                sent += bytes;
            }
            now += pace.pause(now) + late;
        }
        sent
    }

    #[test]
    fn over_a_while_the_rate_is_the_limit_however_late_each_chunk_is() {
        for (limit, bytes, late_ms) in
            [(1 << 20, 16 << 10, 0), (1 << 20, 16 << 10, 5), (1024, 128, 20), (10 << 20, 100, 1)]
        {
            let sent = run(&Pace::new(Some(limit)), bytes, Duration::from_millis(late_ms));
            assert!((limit * 10..=limit * 102 / 10).contains(&sent), "{limit} B/s: {sent} in 10 s");
        }
    }

    #[test]
    fn a_rest_saves_up_no_more_than_a_burst() {
        let pace = Pace::new(Some(1000 * LIMIT_RATE_LEAST));
        let later = Instant::now() + Duration::from_secs(3600);
        let mut sent = 0;
        while pace.pause(later).is_zero() {
            pace.sent(LIMIT_RATE_LEAST, later);
            sent += LIMIT_RATE_LEAST;
        }
        assert!(sent <= 102 * LIMIT_RATE_LEAST, "{sent}");
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let pace = Pace::new(None);
        pace.sent(u64::MAX, Instant::now());
        assert!(pace.pause(Instant::now()).is_zero());
        assert_eq!(pace.chunk_bytes(), u64::MAX);
    }
}
