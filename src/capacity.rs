//! What the system's limits carry: how many connections, strangers and commits at once.
//!
//! A descriptor too few is an error for whoever needs it; a memory map too few, when a thread starts, ends the process. So
//! nothing is let in that would need them. Who asks for less than is carried gets that.

use std::fs;
use std::path::Path;

use rustix::process::{getrlimit, Resource};

use crate::config::{
    COMMITS_MAX, DESCRIPTORS_OWN, DESCRIPTORS_PER_CLIENT, DESCRIPTORS_PER_COMMIT, MAPS_OWN, MAPS_PER_THREAD,
    STRANGERS_LEAST, STRANGERS_MAX, STRANGERS_PER_ADDRESS_MAX, THREADS_OWN, THREADS_PER_CLIENT,
};

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capacity {
    /// Connections whose hello is complete.
    pub(crate) clients: usize,
    /// Connections whose hello is not, in all and from one address.
    pub(crate) strangers: usize,
    pub(crate) strangers_per_address: usize,
    /// Files between their last byte and their receipt.
    pub(crate) commits: usize,
    /// What carries no more clients than that, when it is less than was asked for.
    pub(crate) lowered_by: Option<&'static str>,
}

impl Capacity {
    /// What this process may have, now.
    pub(crate) fn of_system(max_clients: usize) -> Capacity {
        let soft = |resource| getrlimit(resource).current.map_or(usize::MAX, clamped);
        Capacity::within(soft(Resource::Nofile), soft(Resource::Nproc), threads_by_maps(), max_clients)
    }

    /// `threads` are those of all of this user's processes, `mapped` those that there are memory maps for.
    fn within(descriptors: usize, threads: usize, mapped: usize, max_clients: usize) -> Capacity {
        let descriptors = descriptors.saturating_sub(DESCRIPTORS_OWN);
        let threads = threads.saturating_sub(THREADS_OWN);
        let mapped = mapped.saturating_sub(THREADS_OWN);
        let strangers = STRANGERS_MAX.min(descriptors.min(threads).min(mapped) / 4).max(1);
        let commits = COMMITS_MAX.min(descriptors / 8 / DESCRIPTORS_PER_COMMIT).max(1);
        let apart = strangers + commits * DESCRIPTORS_PER_COMMIT;
        let carried = [
            ("open files (ulimit -n)", descriptors.saturating_sub(apart) / DESCRIPTORS_PER_CLIENT),
            ("processes (ulimit -u)", threads.saturating_sub(strangers) / THREADS_PER_CLIENT),
            ("memory maps (vm.max_map_count)", mapped.saturating_sub(strangers) / THREADS_PER_CLIENT),
        ];
        let least =
            carried.into_iter().filter(|&(_, clients)| clients < max_clients).min_by_key(|&(_, clients)| clients);
        Capacity {
            clients: least.map_or(max_clients, |(_, clients)| clients.max(1)),
            strangers,
            strangers_per_address: (strangers / 4).clamp(STRANGERS_LEAST, STRANGERS_PER_ADDRESS_MAX).min(strangers),
            commits,
            lowered_by: least.map(|(name, _)| name).filter(|_| max_clients > 1),
        }
    }
}

/// How many threads the memory maps of a process are enough for. Where nobody tells, the kernel's default holds.
pub(crate) fn threads_by_maps() -> usize {
    const DEFAULT: usize = 65_530;
    let told = fs::read_to_string(Path::new("/proc/sys/vm/max_map_count"));
    let maps = told.ok().and_then(|told| told.trim().parse().ok()).unwrap_or(DEFAULT);
    (maps.saturating_sub(MAPS_OWN) / MAPS_PER_THREAD).max(THREADS_OWN)
}

fn clamped(limit: u64) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{descriptors_for, MAX_CLIENTS};

    #[test]
    fn the_default_fits_what_it_asks_for() {
        let enough = Capacity::within(descriptors_for(MAX_CLIENTS), 10_000, 10_000, MAX_CLIENTS);
        let (strangers, commits) = (STRANGERS_MAX, COMMITS_MAX);
        let strangers_per_address = STRANGERS_PER_ADDRESS_MAX;
        let whole = Capacity { clients: MAX_CLIENTS, strangers, strangers_per_address, commits, lowered_by: None };
        assert_eq!(enough, whole);
        let short = Capacity::within(descriptors_for(MAX_CLIENTS) - 1, 10_000, 10_000, MAX_CLIENTS);
        let lowered_by = Some("open files (ulimit -n)");
        assert_eq!(short, Capacity { clients: MAX_CLIENTS - 1, lowered_by, ..whole });
    }

    #[test]
    fn whatever_is_short_is_never_promised() {
        for short in [0, 10, 64, 100, 256, 1024, 4096, 65_536] {
            for [descriptors, threads, mapped] in
                [[short, 1 << 20, 1 << 20], [1 << 20, short, 1 << 20], [1 << 20, 1 << 20, short]]
            {
                let fits = Capacity::within(descriptors, threads, mapped, 1 << 20);
                assert!(fits.clients >= 1 && fits.strangers >= 1 && fits.commits >= 1, "{fits:?}");
                assert!((1..=fits.strangers).contains(&fits.strangers_per_address), "{fits:?}");
                let held = DESCRIPTORS_OWN + fits.clients * DESCRIPTORS_PER_CLIENT;
                let held = held + fits.strangers + fits.commits * DESCRIPTORS_PER_COMMIT;
                let running = THREADS_OWN + fits.clients * THREADS_PER_CLIENT + fits.strangers;
                // Below that nothing fits, and one connection is tried.
                if short >= 64 {
                    assert!(held <= descriptors && running <= threads.min(mapped), "{fits:?}");
                }
                assert!(fits.lowered_by.is_some());
            }
        }
    }

    #[test]
    fn fewer_clients_than_are_carried_are_not_lowered() {
        let fits = Capacity::within(64, 64, 64, 2);
        assert_eq!((fits.clients, fits.lowered_by), (2, None));
    }

    #[test]
    fn this_machine_tells_its_limits() {
        assert!(threads_by_maps() >= THREADS_OWN);
        assert_eq!(Capacity::of_system(1).clients, 1);
    }
}
