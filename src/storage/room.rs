//! How much of the disk is spoken for: what files on their way in will still take, beside what the user wants left free.
//!
//! It knows numbers only; [`Partial`](super::Partial) takes the room, ahead of its data.

use std::sync::{Arc, Mutex};

use super::dir::Dir;
use crate::worker::Lock;

/// The room of one [`Store`](super::Store).
pub(super) struct Room {
    min_free_bytes: u64,
    reserved_bytes: Mutex<u64>,
}

/// What one file will still take. It goes down as the file takes it, and all goes back when it is dropped.
pub(super) struct Reservation {
    room: Arc<Room>,
    bytes: Mutex<u64>,
}

impl Room {
    pub(super) fn new(min_free_bytes: u64) -> Room {
        Room { min_free_bytes, reserved_bytes: Mutex::new(0) }
    }

    /// Whether a file that will take `bytes` more fits where `dir` is. A file that takes nothing always does.
    pub(super) fn fits(&self, dir: &Dir, bytes: u64) -> bool {
        fits(bytes, dir.free_bytes(), *self.reserved_bytes.take(), self.min_free_bytes)
    }

    /// Keeps `bytes` for one file; `None` when they do not fit.
    pub(super) fn reserve(room: &Arc<Room>, dir: &Dir, bytes: u64) -> Option<Reservation> {
        let free_bytes = dir.free_bytes();
        let mut reserved_bytes = room.reserved_bytes.take();
        if !fits(bytes, free_bytes, *reserved_bytes, room.min_free_bytes) {
            return None;
        }
        *reserved_bytes = reserved_bytes.saturating_add(bytes);
        Some(Reservation { room: Arc::clone(room), bytes: Mutex::new(bytes) })
    }
}

impl Reservation {
    /// The file has taken all but `bytes`.
    pub(super) fn shrink_to(&self, bytes: u64) {
        let taken_bytes = {
            let mut reserved = self.bytes.take();
            let taken_bytes = reserved.saturating_sub(bytes);
            *reserved -= taken_bytes;
            taken_bytes
        };
        let mut reserved_bytes = self.room.reserved_bytes.take();
        *reserved_bytes = reserved_bytes.saturating_sub(taken_bytes);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

/// `free_bytes` is `None` where the file system does not know: the write will tell.
fn fits(bytes: u64, free_bytes: Option<u64>, reserved_bytes: u64, min_free_bytes: u64) -> bool {
    let needed_bytes = bytes.saturating_add(reserved_bytes).saturating_add(min_free_bytes);
    bytes == 0 || free_bytes.is_none_or(|free_bytes| needed_bytes <= free_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_reserved_and_what_must_stay_free_is_not_given() {
        assert!(fits(50, Some(100), 30, 20));
        assert!(!fits(51, Some(100), 30, 20));
        assert!(fits(0, Some(0), 30, 20));
        assert!(fits(u64::MAX, None, 30, 20));
    }

    #[test]
    fn a_reservation_goes_down_as_it_is_taken_and_back_when_dropped() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let room = Arc::new(Room::new(0));
        let half = dir.free_bytes().unwrap() / 2 + (1 << 30);
        let first = Room::reserve(&room, &dir, half).unwrap();
        assert!(Room::reserve(&room, &dir, half).is_none());
        assert!(!room.fits(&dir, half));
        first.shrink_to(half / 4);
        first.shrink_to(half / 2);
        assert_eq!(*room.reserved_bytes.take(), half / 4);
        drop(first);
        assert_eq!(*room.reserved_bytes.take(), 0);
        assert!(Room::reserve(&room, &dir, half).is_some());
    }
}
