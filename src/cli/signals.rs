//! Signals: the first of SIGINT, SIGTERM and SIGHUP is for the run, a later one ends the process at once.
//!
//! It refuses to take a SIGHUP that whoever started us had ignored: that is what `nohup` is for.

use std::fs;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use rustix::event::{poll, Timespec};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGTSTP, SIGXFSZ};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::terminal;

/// `timeout` and a lost terminal send the same signal twice within a moment: that is still the first.
const SAME_SIGNAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };

/// The signals that end a run.
pub struct Watch(Signals);

impl Watch {
    /// Watches from now on.
    pub fn start() -> io::Result<Watch> {
        // A handler that does nothing: writing past the file size limit is then an error, not a death.
        flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        let ends = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|&signal| !stays_ignored(signal));
        Signals::new(ends.chain([SIGTSTP])).map(Watch)
    }

    /// Waits for a signal that ends the run. ^Z stops the process, with the terminal as it was.
    pub fn next(&mut self) -> Option<i32> {
        self.0.forever().find(|&signal| {
            if signal == SIGTSTP {
                terminal::stop(|| drop(emulate_default_handler(SIGTSTP)));
            }
            signal != SIGTSTP
        })
    }

    /// Passes over what comes within a moment.
    pub fn skip_repeated(&mut self) {
        // Nothing but time is waited for.
        let _ = poll(&mut [], Some(&SAME_SIGNAL));
        self.0.pending().for_each(drop);
    }
}

/// Only SIGHUP: a shell script's `&` ignores SIGINT too, and a `kill -INT` that is aimed at us should still work.
fn stays_ignored(signal: i32) -> bool {
    signal == SIGHUP && fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hangup(&status))
}

/// Whether the mask of ignored signals in `/proc/PID/status` holds SIGHUP, its lowest bit.
fn ignores_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u128::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nohup_is_seen_in_the_mask_of_ignored_signals() {
        assert!(ignores_hangup("Name:\tx\nSigIgn:\t0000000000001001\n"));
        assert!(!ignores_hangup("Name:\tx\nSigIgn:\t0000000000001000\n"));
        assert!(!ignores_hangup("Name:\tx\n"));
    }
}
