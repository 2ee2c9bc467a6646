//! Partials that nobody continues: removed when they are old, and oldest first when room is short.
//!
//! It never touches one that is in use, that is not certainly ours, or whose name we would not make.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{futimens, Timespec, Timestamps, UTIME_NOW};

use super::dir::Dir;
use super::partial::{lock_unused, Identity};
use crate::config::{HOUSEKEEPING_PAUSE, PATH_DEPTH_MAX};
use crate::name::SafeName;
use crate::worker::{spawn, Lock};

/// One that nobody uses; nobody can begin to while this is held.
struct UnusedPartial {
    name: OsString,
    file: File,
    changed_seconds: i64,
}

impl UnusedPartial {
    fn lock(dir: &Dir, name: OsString) -> Option<UnusedPartial> {
        let (file, entry) = lock_unused(dir, &name).ok()??;
        Some(UnusedPartial { name, file, changed_seconds: entry.changed_seconds })
    }

    /// Where it can't be removed it stays, and the next run tries again.
    fn remove(self, dir: &Dir) -> bool {
        dir.unlink(&self.name).is_ok()
    }

    /// Dates it now.
    fn stamp(&self) {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let _ = futimens(&self.file, &Timestamps { last_access: now, last_modification: now });
    }
}

/// Looks for old partials at its first [`Rounds::make`], and when the last round is long ago.
pub(super) struct Rounds {
    keep: Duration,
    last: Mutex<Option<Instant>>,
}

impl Rounds {
    pub(super) fn new(keep: Duration) -> Rounds {
        Rounds { keep, last: Mutex::new(None) }
    }

    /// Goes through all directories below `root` when it is time to, on a thread of its own.
    pub(super) fn make(&self, root: &Arc<Dir>) {
        let mut last = self.last.take();
        if last.is_some_and(|last| last.elapsed() < HOUSEKEEPING_PAUSE) {
            return;
        }
        *last = Some(Instant::now());
        let (root, keep) = (Arc::clone(root), self.keep);
        // Without a thread the next round does it.
        let _ = spawn("housekeeping", move || remove_old(&root, keep, PATH_DEPTH_MAX));
    }
}

/// Removes the partials in `dir` and `depth` levels below it that nobody has written to for `keep`. Other file systems that are
/// mounted there are left alone.
fn remove_old(dir: &Dir, keep: Duration, depth: usize) {
    let now_seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let now_seconds = i64::try_from(now_seconds).unwrap_or(i64::MAX);
    for (name, _) in partial_names(dir) {
        let Some(partial) = UnusedPartial::lock(dir, name) else { continue };
        match judge(partial.changed_seconds, now_seconds, keep) {
            Verdict::Keep => {}
            Verdict::Stamp => partial.stamp(),
            Verdict::Remove => {
                partial.remove(dir);
            }
        }
    }
    let Some(depth) = depth.checked_sub(1) else { return };
    // Names that no transfer makes hold nothing of ours.
    let names = dir.directories().unwrap_or_default();
    for name in names.iter().filter_map(|name| SafeName::parse(name).ok()) {
        match dir.enter(&name) {
            Ok(inner) if inner.id().device == dir.id().device => remove_old(&inner, keep, depth),
            _ => {}
        }
    }
}

/// Removes the partial in `dir` that was left alone longest, but none of `spared`; `false` when none went.
pub(super) fn remove_oldest(dir: &Dir, spared: &Identity) -> bool {
    let mut oldest: Option<UnusedPartial> = None;
    for (name, identity) in partial_names(dir) {
        if identity == *spared {
            continue;
        }
        let Some(partial) = UnusedPartial::lock(dir, name) else { continue };
        if oldest.as_ref().is_none_or(|oldest| partial.changed_seconds < oldest.changed_seconds) {
            oldest = Some(partial);
        }
    }
    oldest.is_some_and(|partial| partial.remove(dir))
}

/// Names like those of our partials. A directory that can't be listed is left as it is.
fn partial_names(dir: &Dir) -> Vec<(OsString, Identity)> {
    let names = dir.names().unwrap_or_default().into_iter();
    names.filter_map(|name| Identity::in_name(&name).map(|identity| (OsString::from_vec(name), identity))).collect()
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    Stamp,
    Remove,
}

/// Boards have no clock: a date that can't be right says nothing about the age, so it is counted from now.
fn judge(changed_seconds: i64, now_seconds: i64, keep: Duration) -> Verdict {
    /// The start of 2025: no partial is older than this program.
    const FIRST_POSSIBLE_SECONDS: i64 = 1_735_689_600;
    if changed_seconds > now_seconds || changed_seconds < FIRST_POSSIBLE_SECONDS {
        return Verdict::Stamp;
    }
    let age_seconds = u64::try_from(now_seconds - changed_seconds).unwrap_or(0);
    if age_seconds > keep.as_secs() {
        Verdict::Remove
    } else {
        Verdict::Keep
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const SUMMER_2026: i64 = 1_780_000_000;

    #[test]
    fn a_date_that_can_not_be_right_is_no_age() {
        assert_eq!(judge(SUMMER_2026, SUMMER_2026 + 24 * 3600, DAY), Verdict::Keep);
        assert_eq!(judge(SUMMER_2026, SUMMER_2026 + 24 * 3600 + 1, DAY), Verdict::Remove);
        assert_eq!(judge(SUMMER_2026 + 60, SUMMER_2026, DAY), Verdict::Stamp);
        assert_eq!(judge(86_400, SUMMER_2026, DAY), Verdict::Stamp);
        assert_eq!(judge(SUMMER_2026, 86_400, DAY), Verdict::Stamp);
    }

    #[test]
    fn only_what_we_would_name_so_and_nobody_uses_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let (a, b) = (".postwire-0123456789abcdef-0.part", ".postwire-fedcba9876543210-1.part");
        let others = [".postwire-notes.part", ".postwire-0123456789ABCDEF-0.part", ".postwire-0123456789abcdef-x.part"];
        for name in [a, b].into_iter().chain(others) {
            fs::write(root.path().join(name), "x").unwrap();
        }
        let spared = Identity::in_name(a.as_bytes()).unwrap();
        let used = UnusedPartial::lock(&dir, b.into()).unwrap();
        assert!(!remove_oldest(&dir, &spared));
        drop(used);
        assert!(remove_oldest(&dir, &spared));
        assert!(!remove_oldest(&dir, &spared));
        remove_old(&dir, DAY, 1);
        assert!(root.path().join(a).exists() && !root.path().join(b).exists());
        assert!(others.iter().all(|name| root.path().join(name).exists()));
    }
}
