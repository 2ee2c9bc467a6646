//! The memory that the outboxes of all mailboxes of a process share, parked ones included.
//!
//! One queue may hold a quarter of what is free. So however many readers are slow, they never take it all, and whoever reads
//! finds room.

use std::sync::Mutex;

use crate::worker::Lock;

/// See the module.
pub(crate) struct Outbox {
    max: usize,
    used: Mutex<usize>,
}

impl Outbox {
    /// Room for `max` bytes.
    pub(crate) fn new(max: usize) -> Outbox {
        Outbox { max, used: Mutex::new(0) }
    }

    /// Adds `bytes` for a queue that holds `held`; `false` when that is more than its part. An empty queue takes any text.
    pub(super) fn take(&self, bytes: usize, held: usize) -> bool {
        let mut used = self.used.take();
        let free = self.max.saturating_sub(*used);
        let fits = held == 0 || held.saturating_add(bytes) <= free / 4;
        *used += if fits { bytes } else { 0 };
        fits
    }

    /// Adds `bytes` that are there already.
    pub(super) fn add(&self, bytes: usize) {
        *self.used.take() += bytes;
    }

    pub(super) fn give_back(&self, bytes: usize) {
        let mut used = self.used.take();
        *used = used.saturating_sub(bytes);
    }

    /// Whether half of it is used, but for what is about to be given back: who is not connected has to go.
    pub(crate) fn is_short(&self, freed: usize) -> bool {
        self.used.take().saturating_sub(freed) > self.max / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_are_slow_there_is_room_for_one_more() {
        let outbox = Outbox::new(1 << 20);
        let mut held = vec![0; 1000];
        for _ in 0..1000 {
            for held in &mut held {
                *held += if outbox.take(1000, *held) { 1000 } else { 0 };
            }
        }
        let used: usize = held.iter().sum();
        assert!(used < 1 << 20, "{used}");
        assert!(outbox.is_short(0) && outbox.take(1000, 0));
        held.iter().for_each(|held| outbox.give_back(*held));
        assert!(!outbox.is_short(0) && outbox.take(100_000, 100_000));
    }
}
