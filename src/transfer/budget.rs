//! The memory that all connections of a process share for what they receive, and the bound on files open for commit.
//!
//! A connection never grants more credit than it got from here ([PROTOCOL 6.2](crate::wire)). As connections multiply, each
//! one's share shrinks; what a chunk occupied comes back when it is written.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::config::{CREDIT_BYTES_LEAST, WINDOW_BYTES_MAX};
use crate::worker::{Lock, Signal};

/// Shared by all connections of one server or client.
pub(crate) struct Budget {
    total: u64,
    /// Connections that hold credit or wait for it.
    active: AtomicUsize,
    state: Mutex<State>,
    commits: Mutex<usize>,
    commits_max: usize,
    commit_ended: Signal,
}

struct State {
    free: u64,
    /// Whoever found nothing free, to be woken in turn.
    waiting: VecDeque<Weak<dyn Fn() + Send + Sync>>,
}

impl Budget {
    /// A budget of `bytes`, and of so many files that are committed at once.
    pub(crate) fn new(bytes: u64, commits_max: usize) -> Budget {
        let state = State { free: bytes, waiting: VecDeque::new() };
        Budget {
            total: bytes,
            active: AtomicUsize::new(0),
            state: Mutex::new(state),
            commits: Mutex::new(0),
            commits_max,
            commit_ended: Signal::new(),
        }
    }

    /// A connection begins to receive.
    pub(crate) fn join(&self) {
        self.active.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection holds no credit any more, and has given back what it held.
    pub(crate) fn leave(&self) {
        self.active.fetch_sub(1, Ordering::Relaxed);
    }

    /// What one connection should hold now.
    pub(crate) fn share(&self) -> u64 {
        let active = u64::try_from(self.active.load(Ordering::Relaxed)).unwrap_or(u64::MAX).max(1);
        (self.total / active).clamp(CREDIT_BYTES_LEAST, WINDOW_BYTES_MAX.min(self.total))
    }

    /// Takes up to `bytes`, and nothing when less than the least credit is free. `wake` is called when there is more.
    pub(crate) fn take(&self, bytes: u64, wake: &Arc<dyn Fn() + Send + Sync>) -> u64 {
        let mut state = self.state.take();
        let taken = bytes.min(state.free);
        if taken < bytes.min(CREDIT_BYTES_LEAST) {
            let wake = Arc::downgrade(wake);
            if !state.waiting.iter().any(|waiting| waiting.ptr_eq(&wake)) {
                state.waiting.push_back(wake);
            }
            return 0;
        }
        state.free -= taken;
        taken
    }

    /// Gives `bytes` back. It may be called under a lock: who waits is woken by [`Budget::wake_waiting`].
    pub(crate) fn give_back(&self, bytes: u64) {
        let mut state = self.state.take();
        state.free = self.total.min(state.free + bytes);
    }

    /// Wakes whoever found nothing free, one after the other, while there is something. To be called without a lock held.
    pub(crate) fn wake_waiting(&self) {
        loop {
            let next = {
                let mut state = self.state.take();
                if state.free < CREDIT_BYTES_LEAST {
                    return;
                }
                state.waiting.pop_front()
            };
            match next {
                Some(next) => next.upgrade().iter().for_each(|wake| wake()),
                None => return,
            }
        }
    }

    /// Whether nobody holds any of it, and nothing is being committed.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn is_whole(&self) -> bool {
        let state = self.state.take();
        state.free == self.total && self.active.load(Ordering::Relaxed) == 0 && *self.commits.take() == 0
    }

    /// Whether somebody may find nothing free.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn is_lent(&self) -> bool {
        self.state.take().free < CREDIT_BYTES_LEAST
    }

    /// Waits until a file may be committed; only disk threads wait here.
    pub(crate) fn begin_commit(&self) {
        let commits = self.commits.take();
        let mut commits = self
            .commit_ended
            .wait_while(commits, |commits| *commits >= self.commits_max)
            .unwrap_or_else(PoisonError::into_inner);
        *commits += 1;
    }

    /// A commit ended, well or badly.
    pub(crate) fn end_commit(&self) {
        *self.commits.take() -= 1;
        self.commit_ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn no_more_is_lent_than_there_is_and_who_waits_is_woken() {
        let budget = Budget::new(4 * CREDIT_BYTES_LEAST, 1);
        let woken = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&woken);
        let wake: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(budget.take(3 * CREDIT_BYTES_LEAST, &wake), 3 * CREDIT_BYTES_LEAST);
        assert_eq!(budget.take(3 * CREDIT_BYTES_LEAST, &wake), CREDIT_BYTES_LEAST);
        assert_eq!(budget.take(1, &wake), 0);
        budget.give_back(CREDIT_BYTES_LEAST);
        budget.wake_waiting();
        assert_eq!(woken.load(Ordering::SeqCst), 1);
        assert_eq!(budget.take(1, &wake), 1);
    }

    #[test]
    fn only_so_many_files_are_committed_at_once() {
        let budget = Arc::new(Budget::new(0, 2));
        budget.begin_commit();
        budget.begin_commit();
        let begun = Arc::new(AtomicUsize::new(0));
        let (waiting, counter) = (Arc::clone(&budget), Arc::clone(&begun));
        let third = std::thread::spawn(move || {
            waiting.begin_commit();
            counter.fetch_add(1, Ordering::SeqCst);
        });
        std::thread::park_timeout(std::time::Duration::from_millis(50));
        assert_eq!(begun.load(Ordering::SeqCst), 0);
        budget.end_commit();
        third.join().unwrap();
        assert_eq!(begun.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn shares_shrink_as_connections_multiply() {
        let budget = Budget::new(WINDOW_BYTES_MAX, 1);
        budget.join();
        assert_eq!(budget.share(), WINDOW_BYTES_MAX);
        (0..3).for_each(|_| budget.join());
        assert_eq!(budget.share(), WINDOW_BYTES_MAX / 4);
        (0..10_000).for_each(|_| budget.join());
        assert_eq!(budget.share(), CREDIT_BYTES_LEAST);
    }
}
