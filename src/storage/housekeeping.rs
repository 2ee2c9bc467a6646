//! Partials that nobody continues are removed when a directory is opened.
//!
//! Boards have no clock: what is dated in the future, or before this program was written, is stamped now and kept.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{flock, futimens, FlockOperation, OFlags, Timespec, Timestamps, UTIME_NOW};

use super::dir::Dir;
use crate::name::{PARTIAL_PREFIX, PARTIAL_SUFFIX};

/// 2026-01-01: before it no partial of ours was made by a machine that knew the time.
const WRITTEN_AT: Duration = Duration::from_secs(1_767_225_600);

/// Removes partials in this directory that nobody uses and nobody wrote to for `keep`. What can't be looked at stays.
pub(super) fn remove_old_partials(dir: &Dir, keep: Duration) {
    for name in dir.names() {
        if name.starts_with(PARTIAL_PREFIX) && name.ends_with(PARTIAL_SUFFIX) {
            remove_if_old(dir, &name, keep);
        }
    }
}

fn remove_if_old(dir: &Dir, name: &str, keep: Duration) {
    let Ok(fd) = dir.open_file(name, OFlags::RDWR, 0) else { return };
    if flock(&fd, FlockOperation::NonBlockingLockExclusive).is_err() {
        return;
    }
    let file = File::from(fd);
    let Ok(meta) = file.metadata() else { return };
    if !meta.is_file() || meta.nlink() != 1 {
        return;
    }
    let written = Duration::from_secs(u64::try_from(meta.mtime()).unwrap_or_default());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if written > now || written < WRITTEN_AT {
        let stamp = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        // A file system without times keeps it for ever, which loses nothing.
        let _ = futimens(&file, &Timestamps { last_access: stamp, last_modification: stamp });
    } else if now - written > keep {
        let _ = dir.unlink(name);
    }
}
