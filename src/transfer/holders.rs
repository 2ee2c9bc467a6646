//! Who is receiving a file this moment, so that a newcomer with the same file neither starts from nothing beside a
//! connection that is dead, nor throws out one that is alive, nor sends again what is just being committed.
//!
//! It knows connections by what they can be asked ([`Pulse`]), and files by what finds their partial. It decides nothing about
//! partials: whoever holds the lock has the partial, and [`Holders`] only tells when it is worth trying.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::{HOLDER_LOOK, HOLDER_SILENCE_MAX};
use crate::name::SafePath;
use crate::storage::{Meta, Time};
use crate::worker::{Lock, Signal};

/// A connection that can be asked whether it is alive.
pub(crate) trait Pulse: Send + Sync {
    /// Sends PING; gives its token, higher than those before.
    fn ping(&self) -> u64;
    /// Whether that PING or a later one was answered.
    fn has_answered(&self, token: u64) -> bool;
    /// How long nothing has come from it.
    fn silent_for(&self) -> Duration;
    /// Ends it at once.
    fn end(&self);
}

/// The files that all connections of one server or client are receiving.
#[derive(Default)]
pub(crate) struct Holders {
    files: Mutex<HashMap<Key, Vec<Arc<Holder>>>>,
    released: Signal,
}

/// What finds a partial: path, size in bytes, mtime.
type Key = (SafePath, u64, Time);

struct Holder {
    pulse: Arc<dyn Pulse>,
    /// The connection is not needed any more: the file gets its name whatever becomes of it.
    is_committing: AtomicBool,
}

/// A file that is being received. It is let go after the partial's lock, so it is kept wherever the partial is.
pub(crate) struct Hold {
    holders: Arc<Holders>,
    key: Key,
    holder: Arc<Holder>,
}

impl Holders {
    /// A connection receives this file from now on.
    pub(crate) fn hold(self: &Arc<Self>, meta: &Meta, pulse: &Arc<dyn Pulse>) -> Hold {
        let key = key_of(meta);
        let holder = Arc::new(Holder { pulse: Arc::clone(pulse), is_committing: AtomicBool::new(false) });
        self.files.take().entry(key.clone()).or_default().push(Arc::clone(&holder));
        Hold { holders: Arc::clone(self), key, holder }
    }

    /// Whether anybody receives this file.
    pub(crate) fn is_held(&self, meta: &Meta) -> bool {
        self.files.take().contains_key(&key_of(meta))
    }

    /// Waits until everybody who receives this file is known to be alive, or has let go of it, or `is_over`. Whoever does not
    /// answer for 5 s is ended; a commit is waited for, however long it takes.
    pub(crate) fn settle(&self, meta: &Meta, is_over: impl Fn() -> bool) {
        let key = key_of(meta);
        let asked = Instant::now();
        let mut asked_holders: Vec<_> =
            self.others(&key).into_iter().map(|holder| (holder.pulse.ping(), holder, false)).collect();
        while !is_over() {
            let there = self.others(&key);
            let waits_for = |(token, holder, ended): &mut (u64, Arc<Holder>, bool)| {
                let is_there = there.iter().any(|other| Arc::ptr_eq(other, holder));
                if !is_there || holder.is_committing.load(Ordering::SeqCst) || *ended {
                    return is_there;
                }
                if holder.pulse.has_answered(*token) {
                    return false;
                }
                // On a slow line the answer stands behind data; what a dead peer had sent is long read.
                if asked.elapsed() > HOLDER_SILENCE_MAX {
                    if holder.pulse.silent_for() < HOLDER_SILENCE_MAX / 2 {
                        return false;
                    }
                    holder.pulse.end();
                    *ended = true;
                }
                true
            };
            asked_holders.retain_mut(waits_for);
            if asked_holders.is_empty() {
                return;
            }
            let files = self.files.take();
            drop(self.released.wait_timeout(files, HOLDER_LOOK).unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn others(&self, key: &Key) -> Vec<Arc<Holder>> {
        self.files.take().get(key).cloned().unwrap_or_default()
    }
}

impl Hold {
    /// The file is complete and gets its name.
    pub(crate) fn commits(&self) {
        self.holder.is_committing.store(true, Ordering::SeqCst);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut files = self.holders.files.take();
        if let Some(holders) = files.get_mut(&self.key) {
            holders.retain(|holder| !Arc::ptr_eq(holder, &self.holder));
            if holders.is_empty() {
                files.remove(&self.key);
            }
        }
        drop(files);
        self.holders.released.notify_all();
    }
}

fn key_of(meta: &Meta) -> Key {
    (meta.path.clone(), meta.size, meta.mtime)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[derive(Default)]
    struct Peer {
        answers: bool,
        ended: AtomicBool,
    }

    impl Pulse for Peer {
        fn ping(&self) -> u64 {
            1
        }

        fn has_answered(&self, _: u64) -> bool {
            self.answers
        }

        fn silent_for(&self) -> Duration {
            Duration::from_secs(60)
        }

        fn end(&self) {
            self.ended.store(true, Ordering::SeqCst);
        }
    }

    fn meta(path: &str) -> Meta {
        let path = SafePath::parse(path.as_bytes()).unwrap();
        Meta { path, size: 1, mtime: Time { seconds: 0, nanoseconds: 0 }, mode: 0, content_crc: 0, is_stream: false }
    }

    #[test]
    fn one_who_answers_is_not_waited_for_nor_ended() {
        let holders = Arc::new(Holders::default());
        let peer = Arc::new(Peer { answers: true, ..Peer::default() });
        let pulse: Arc<dyn Pulse> = peer.clone();
        let hold = holders.hold(&meta("a"), &pulse);
        assert!(holders.is_held(&meta("a")) && !holders.is_held(&meta("b")));
        holders.settle(&meta("a"), || false);
        assert!(!peer.ended.load(Ordering::SeqCst) && holders.is_held(&meta("a")));
        drop(hold);
        assert!(!holders.is_held(&meta("a")));
    }

    #[test]
    fn one_who_is_silent_is_ended_and_waited_for() {
        let holders = Arc::new(Holders::default());
        let peer = Arc::new(Peer::default());
        let pulse: Arc<dyn Pulse> = peer.clone();
        let hold = holders.hold(&meta("a"), &pulse);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !peer.ended.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
                drop(hold);
            });
            holders.settle(&meta("a"), || false);
        });
        assert!(!holders.is_held(&meta("a")));
    }

    #[test]
    fn a_commit_is_waited_for_though_its_connection_answers() {
        let holders = Arc::new(Holders::default());
        let pulse: Arc<dyn Pulse> = Arc::new(Peer { answers: true, ..Peer::default() });
        let hold = holders.hold(&meta("a"), &pulse);
        hold.commits();
        let looks = std::cell::Cell::new(0);
        holders.settle(&meta("a"), || looks.replace(looks.get() + 1) == 2);
        assert_eq!(looks.get(), 3);
        drop(hold);
        holders.settle(&meta("a"), || false);
    }
}
