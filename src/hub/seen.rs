//! Which texts have been handled, so that none is said twice when it is sent again after a break (PROTOCOL 4.3).

use std::collections::HashMap;
use std::time::Instant;

use crate::config::{RUNS_REMEMBERED, RUN_REMEMBERED};
use crate::wire::RunId;

/// Each run's last sequence.
#[derive(Default)]
pub(crate) struct Seen {
    runs: HashMap<RunId, (u64, Instant)>,
}

impl Seen {
    /// Whether a text was not handled before.
    pub(crate) fn is_new(&self, run: RunId, sequence: u64) -> bool {
        self.runs.get(&run).is_none_or(|&(last, _)| sequence > last)
    }

    /// It is handled now.
    pub(crate) fn remember(&mut self, run: RunId, sequence: u64) {
        if self.runs.len() >= RUNS_REMEMBERED && !self.runs.contains_key(&run) {
            self.runs.retain(|_, (_, at)| at.elapsed() < RUN_REMEMBERED);
            if self.runs.len() >= RUNS_REMEMBERED {
                let oldest = self.runs.iter().min_by_key(|(_, (_, at))| *at).map(|(&run, _)| run);
                oldest.and_then(|run| self.runs.remove(&run));
            }
        }
        self.runs.insert(run, (sequence, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_new_once_and_memory_is_bounded() {
        let mut seen = Seen::default();
        let run = RunId([7; 16]);
        assert!(seen.is_new(run, 1));
        seen.remember(run, 2);
        assert!(!seen.is_new(run, 2) && !seen.is_new(run, 1) && seen.is_new(run, 3));
        for number in 0..5000_u32 {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&number.to_be_bytes());
            seen.remember(RunId(id), 1);
        }
        assert!(seen.runs.len() <= RUNS_REMEMBERED);
    }
}
