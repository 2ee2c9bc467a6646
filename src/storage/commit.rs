//! From a complete partial to a receipt, in the order that makes the receipt true:
//! times and mode, sync of the data, the name, sync of the directory, and only then `done` (PROTOCOL 6.8).
//!
//! Small files share their syncs: one thread takes whatever waits when the last round ended. Nothing here decides whether a
//! file is complete or right; `transfer` has.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{fchmod, futimens, Mode, Timespec, Timestamps};
use rustix::io::{Errno, Result};

use super::dir::Dir;
use super::{numbered_names, Existing, Failure, Meta, Partial, Time};
use crate::config::{IfExists, GROUP_FILES_MAX, GROUP_FILE_BYTES_MAX, SYNCFS_FILES_LEAST};
use crate::error::Refusal;
use crate::name::SafePath;
use crate::worker::{spawn, Worker};

/// A file under its real name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Committed {
    pub(crate) stored: SafePath,
    /// Data, name and directories are synced.
    pub(crate) durable: bool,
}

/// Hears once what became of a commit.
pub(crate) type Done = Box<dyn FnOnce(std::result::Result<Committed, Failure>) + Send>;

/// What waits for its commit.
pub(super) enum Commit {
    Partial { partial: Partial, meta: Meta, mode: u32, if_exists: IfExists, fsync: bool, done: Done },
    Existing { existing: Existing, fsync: bool, done: Done },
}

/// Group commit for small files, a thread each for large ones.
pub(super) struct Committer {
    group: Worker<Commit>,
}

impl Committer {
    pub(super) fn new() -> Committer {
        Committer { group: Worker::new("commit", GROUP_FILES_MAX, commit_group) }
    }

    pub(super) fn push(&self, commit: Commit) {
        let large = matches!(&commit, Commit::Partial { meta, .. } if meta.size > GROUP_FILE_BYTES_MAX);
        if !large {
            // Without a thread the commit is dropped, its `done` with it, and the session ends by that.
            let _ = self.group.push(commit);
            return;
        }
        let _ = spawn("commit", move || commit_group(vec![commit]));
    }
}

/// A commit on its way through a round; `outcome` holds the first failure.
struct Step {
    commit: Commit,
    outcome: std::result::Result<SafePath, Failure>,
    durable: bool,
}

/// One round: all data synced, all names moved, each directory synced once, all acknowledged.
fn commit_group(commits: Vec<Commit>) {
    let mut steps: Vec<Step> = commits.into_iter().map(Step::prepare).collect();
    sync_data(&mut steps);
    steps.iter_mut().for_each(Step::move_name);
    sync_directories(&mut steps);
    for step in steps {
        let Step { commit, outcome, durable } = step;
        // The lock, and a partial that failed, are gone before anyone hears of it.
        let done = match commit {
            Commit::Partial { partial, done, .. } => {
                drop(partial);
                done
            }
            Commit::Existing { existing, done, .. } => {
                drop(existing);
                done
            }
        };
        done(outcome.map(|stored| Committed { stored, durable }));
    }
}

fn sync_data(steps: &mut [Step]) {
    let waiting = steps.iter().filter(|step| step.wants_sync()).count();
    if waiting >= SYNCFS_FILES_LEAST {
        let dir = steps.iter().find(|step| step.wants_sync()).map(|step| Arc::clone(step.dir()));
        // All are below one root; a mount below it gets an fsync each, as its files' type may not be known.
        let one_device = steps.iter().all(|step| step.on_device_of(steps));
        if dir.is_some_and(|dir| one_device && syncs_whole(dir.file_system()) && dir.sync_file_system().is_ok()) {
            return;
        }
    }
    steps.iter_mut().filter(|step| step.wants_sync()).for_each(Step::sync_data);
}

/// ext4, xfs, btrfs, f2fs and tmpfs: `syncfs` there reports what failed and writes only what is dirty.
fn syncs_whole(file_system: u64) -> bool {
    matches!(file_system, 0xef53 | 0x5846_5342 | 0x9123_683e | 0xf2f5_2010 | 0x0102_1994)
}

fn sync_directories(steps: &mut [Step]) {
    let mut synced: Vec<(Arc<Dir>, Result<bool>)> = Vec::new();
    for step in steps.iter_mut().filter(|step| step.wants_sync()) {
        step.durable = true;
        for dir in step.directories() {
            let known = synced.iter().find(|(other, _)| Arc::ptr_eq(other, &dir)).map(|(_, result)| *result);
            let result = known.unwrap_or_else(|| {
                let result = dir.sync();
                synced.push((Arc::clone(&dir), result));
                result
            });
            match result {
                Ok(offered) => step.durable &= offered,
                Err(error) => step.fail("sync the directory of", error),
            }
        }
    }
}

impl Step {
    /// Times and mode, before the data is synced.
    fn prepare(commit: Commit) -> Step {
        let outcome = match &commit {
            Commit::Existing { existing, .. } => Ok(existing.path.clone()),
            Commit::Partial { partial, meta, mode, .. } => {
                // A file system without times or modes still keeps the content.
                let _ = futimens(&partial.file, &times(meta.mtime));
                let _ = fchmod(&partial.file, Mode::from_raw_mode(*mode));
                Ok(meta.path.clone())
            }
        };
        Step { commit, outcome, durable: false }
    }

    fn wants_sync(&self) -> bool {
        let (Commit::Partial { fsync, .. } | Commit::Existing { fsync, .. }) = &self.commit;
        *fsync && self.outcome.is_ok()
    }

    fn dir(&self) -> &Arc<Dir> {
        match &self.commit {
            Commit::Partial { partial, .. } => &partial.dir,
            Commit::Existing { existing, .. } => &existing.dir,
        }
    }

    fn directories(&self) -> Vec<Arc<Dir>> {
        let mut directories = vec![Arc::clone(self.dir())];
        if let Commit::Partial { partial, .. } = &self.commit {
            directories.extend(partial.made_in.iter().cloned());
        }
        directories
    }

    fn on_device_of(&self, steps: &[Step]) -> bool {
        let device = |step: &Step| match &step.commit {
            Commit::Partial { partial, .. } => rustix::fs::fstat(partial.file.as_fd()).map(|stat| stat.st_dev),
            Commit::Existing { existing, .. } => rustix::fs::fstat(existing.file.as_fd()).map(|stat| stat.st_dev),
        };
        steps.first().is_some_and(|first| device(first) == device(self))
    }

    fn sync_data(&mut self) {
        let result = match &self.commit {
            Commit::Partial { partial, .. } => partial.sync(),
            Commit::Existing { existing, .. } => rustix::fs::fsync(&existing.file),
        };
        if let Err(error) = result {
            self.fail("sync", error);
        }
    }

    fn move_name(&mut self) {
        let (Commit::Partial { partial, meta, if_exists, .. }, Ok(_)) = (&self.commit, &self.outcome) else { return };
        let moved = give_name(partial, &meta.path, *if_exists);
        if moved.is_ok() {
            partial.committed();
        }
        match moved {
            Ok(stored) => self.outcome = Ok(stored),
            Err(Errno::EXIST) => self.outcome = Err(Failure { refusal: Refusal::Exists, cause: None }),
            Err(error) => self.fail("name", error),
        }
    }

    fn fail(&mut self, action: &'static str, error: Errno) {
        let name = match &self.commit {
            Commit::Partial { meta, .. } => meta.path.file_name(),
            Commit::Existing { existing, .. } => existing.path.file_name(),
        };
        self.outcome = Err(Failure::new(action, name.as_os_str().as_ref(), error));
    }
}

/// Moves the partial to its name, or to a numbered one, or over what is there.
fn give_name(partial: &Partial, path: &SafePath, if_exists: IfExists) -> Result<SafePath> {
    match if_exists {
        IfExists::Refuse => partial.dir.rename_new(&partial.name, path.file_name()).map(|()| path.clone()),
        IfExists::Replace if partial.dir.has_directory(path.file_name()) => Err(Errno::EXIST),
        IfExists::Replace => partial.dir.rename_over(&partial.name, path.file_name()).map(|()| path.clone()),
        IfExists::Rename => {
            for name in numbered_names(path.file_name()) {
                match partial.dir.rename_new(&partial.name, &name) {
                    Err(Errno::EXIST) => {}
                    result => return result.map(|()| path.with_file_name(name)),
                }
            }
            Err(Errno::EXIST)
        }
    }
}

fn times(mtime: Time) -> Timestamps {
    let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    Timestamps {
        last_access: now,
        last_modification: Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() },
    }
}
