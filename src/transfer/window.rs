//! How many bytes may be under way: W = rate x (shortest round trip + 30 ms), the latter 3 MiB at most, PROTOCOL 6.4.
//!
//! A function of what was sent and acknowledged when; it reads no clock. [`Outbound`](super::Outbound) asks it before each chunk.
//!
//! Left to the kernel's buffers, a text behind a file on a slow line waits for megabytes. Here the queue on the way is as
//! long as the line carries in 30 ms, and a faster line gets a larger window within a few round trips. What is in memory's
//! fastest part when it is used next goes faster: so there is a limit to the queue of the fastest lines.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::config::{
    CHUNKS_MAX, CHUNK_BYTES_LEAST, CHUNK_BYTES_STEP, WINDOW_BYTES_LEAST, WINDOW_BYTES_MAX, WINDOW_QUEUE,
    WINDOW_QUEUE_BYTES_MAX,
};

/// The measured window of one connection.
pub(crate) struct Window {
    sent: u64,
    acknowledged: u64,
    bytes: u64,
    /// Chunks under way, oldest first.
    flights: VecDeque<Flight>,
    shortest_round_trip: Option<Duration>,
    /// Bytes a second, smoothed.
    rate: f64,
    start: Start,
}

/// A chunk under way: what had been sent and acknowledged when it left, and when.
struct Flight {
    sent: u64,
    acknowledged: u64,
    at: Instant,
}

/// The start-up, in which the window doubles each round trip, ends when that no longer brings a quarter more.
enum Start {
    Doubling { best_rate: f64, round_ends: u64, rounds_without_gain: u8 },
    Over,
}

impl Window {
    pub(crate) fn new() -> Window {
        let start = Start::Doubling { best_rate: 0.0, round_ends: 0, rounds_without_gain: 0 };
        let flights = VecDeque::new();
        Window {
            sent: 0,
            acknowledged: 0,
            bytes: WINDOW_BYTES_LEAST,
            flights,
            shortest_round_trip: None,
            rate: 0.0,
            start,
        }
    }

    /// How many more bytes may leave now.
    pub(crate) fn room(&self) -> u64 {
        if self.flights.len() >= CHUNKS_MAX {
            return 0;
        }
        self.bytes.saturating_sub(self.in_flight())
    }

    /// The largest chunk that suits the window: a quarter of it, in whole pages, and one of few lengths, so that the receiver's
    /// buffers fit again.
    pub(crate) fn chunk_bytes(&self) -> u64 {
        let most = self.bytes / 4;
        let step = if most >= 2 * CHUNK_BYTES_STEP { CHUNK_BYTES_STEP } else { Window::chunk_least() };
        (most / step).max(1) * step
    }

    /// Chunks are as long at least, or as many times as long, where there is so much.
    pub(crate) fn chunk_least() -> u64 {
        u64::try_from(CHUNK_BYTES_LEAST).unwrap_or(u64::MAX)
    }

    /// Bytes sent and not acknowledged.
    pub(crate) fn in_flight(&self) -> u64 {
        self.sent.saturating_sub(self.acknowledged)
    }

    /// A chunk of `bytes` leaves.
    pub(crate) fn sent(&mut self, bytes: u64, now: Instant) {
        self.sent += bytes;
        self.flights.push_back(Flight { sent: self.sent, acknowledged: self.acknowledged, at: now });
    }

    /// `bytes` more were acknowledged.
    pub(crate) fn acknowledged(&mut self, bytes: u64, now: Instant) {
        self.acknowledged = self.sent.min(self.acknowledged + bytes);
        let mut latest = None;
        while self.flights.front().is_some_and(|flight| flight.sent <= self.acknowledged) {
            latest = self.flights.pop_front();
        }
        let Some(flight) = latest else { return };
        let round_trip = now.saturating_duration_since(flight.at).max(Duration::from_micros(1));
        let shortest = self.shortest_round_trip.map_or(round_trip, |shortest| shortest.min(round_trip));
        self.shortest_round_trip = Some(shortest);
        let delivered = to_f64(self.acknowledged - flight.acknowledged);
        let sample = delivered / round_trip.as_secs_f64();
        self.rate = if self.rate == 0.0 { sample } else { self.rate + (sample - self.rate) / 4.0 };
        let under_way = from_f64(self.rate * shortest.as_secs_f64());
        let is_waiting = round_trip > shortest + shortest / 4;
        self.grow(bytes, sample, is_waiting, under_way + WINDOW_QUEUE_BYTES_MAX);
        if matches!(self.start, Start::Over) {
            let queue = from_f64(self.rate * WINDOW_QUEUE.as_secs_f64()).min(WINDOW_QUEUE_BYTES_MAX);
            self.bytes = (under_way + queue).clamp(WINDOW_BYTES_LEAST, WINDOW_BYTES_MAX);
        }
    }

    /// While something waits on the way it grows to `waiting_max` at most.
    fn grow(&mut self, bytes: u64, sample: f64, is_waiting: bool, waiting_max: u64) {
        let Start::Doubling { best_rate, round_ends, rounds_without_gain } = &mut self.start else { return };
        // It doubles; three times while nothing waits on the way, as on a long line that is nearly empty.
        let (factor, most) = if is_waiting { (1, waiting_max.max(self.bytes)) } else { (7, WINDOW_BYTES_MAX) };
        self.bytes = (self.bytes + factor * bytes).min(most).min(WINDOW_BYTES_MAX);
        if self.acknowledged < *round_ends {
            return;
        }
        *round_ends = self.sent;
        *rounds_without_gain = if sample > *best_rate * 1.25 { 0 } else { *rounds_without_gain + 1 };
        *best_rate = best_rate.max(sample);
        if *rounds_without_gain >= 3 || self.bytes == WINDOW_BYTES_MAX {
            self.start = Start::Over;
        }
    }
}

/// Byte counts below 2^52 are exact as `f64`, and a rate needs no more.
fn to_f64(bytes: u64) -> f64 {
    let high = u32::try_from(bytes >> 32).unwrap_or(u32::MAX);
    let low = u32::try_from(bytes & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

/// The reverse, at a resolution of a KiB, which is all that a window needs.
fn from_f64(bytes: f64) -> u64 {
    Duration::try_from_secs_f64(bytes / 1024.0).map_or(u64::MAX, |kib| kib.as_secs().saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends over a line of `rate` bytes a second with a round trip of `round_trip` for 10 s of its time; gives the window.
    fn run_line(rate: f64, round_trip: Duration) -> u64 {
        let mut window = Window::new();
        let mut now = Instant::now();
        let end = now + Duration::from_secs(10);
        let mut line_free = now;
        let mut arrivals: VecDeque<(Instant, u64)> = VecDeque::new();
        while now < end {
            loop {
                let chunk = window.chunk_bytes().min(1024 * 1024);
                if window.room() < chunk {
                    break;
                }
                window.sent(chunk, now);
                line_free = line_free.max(now) + Duration::from_secs_f64(to_f64(chunk) / rate);
                arrivals.push_back((line_free + round_trip, chunk));
            }
            let (at, chunk) = arrivals.pop_front().unwrap();
            now = at;
            window.acknowledged(chunk, now);
        }
        window.bytes
    }

    #[test]
    fn the_window_is_what_the_line_carries_in_a_round_trip_and_its_queue() {
        for (rate, round_trip_ms) in [(10e6, 1), (10e6, 50), (100e6, 50), (1e6, 200), (2e9, 1)] {
            let round_trip = Duration::from_millis(round_trip_ms);
            let window = to_f64(run_line(rate, round_trip));
            let queue = (rate * WINDOW_QUEUE.as_secs_f64()).min(to_f64(WINDOW_QUEUE_BYTES_MAX));
            let fitting = (rate * round_trip.as_secs_f64() + queue).max(to_f64(WINDOW_BYTES_LEAST));
            assert!((0.5..2.0).contains(&(window / fitting)), "{rate} B/s, {round_trip_ms} ms: {window} for {fitting}");
        }
    }

    #[test]
    fn the_window_stays_within_its_bounds() {
        assert_eq!(run_line(1e5, Duration::from_millis(1)), WINDOW_BYTES_LEAST);
        assert_eq!(run_line(10e9, Duration::from_millis(50)), WINDOW_BYTES_MAX);
    }
}
