//! From a complete partial to what makes a receipt true, in this order (PROTOCOL 6.8): mode and times, sync of the data, the
//! real name, sync of the directories, and only then the answer.
//!
//! Small files share their syncs: one thread takes whatever waits when its last round ended. A large one has a thread of its
//! own, so that it holds up nobody. Nothing here decides whether a file is complete or right: `transfer` has.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use rustix::fs::{fchmod, futimens, Mode, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::{retry_on_intr, Errno, Result};

use super::dir::{Anchors, Dir, Id, Place, TMPFS};
use super::failure::{is_not_offered, Failure};
use super::naming::{give_name, Named};
use super::{Existing, Meta, Partial, Time};
use crate::config::{IfExists, GROUP_FILES_MAX, GROUP_FILE_BYTES_MAX, SYNCFS_FILES_LEAST};
use crate::error::Refusal;
use crate::name::{SafeName, SafePath};
use crate::worker::Worker;

/// A file under its real name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Committed {
    /// Below the directory; not always the offered path.
    pub(crate) stored: SafePath,
    /// The same content was there before.
    pub(crate) already: bool,
    /// Data, name and directories are synced.
    pub(crate) durable: bool,
}

/// Hears, once, what became of a commit.
pub(crate) type Done = Box<dyn FnOnce(std::result::Result<Committed, Failure>) + Send>;

/// Gives files their names, for one [`Store`](super::Store) and beyond its end.
pub(super) struct Committer {
    group: Worker<Job>,
    round: Arc<Round>,
}

/// One file to commit. The file is let go before the answer is.
pub(super) struct Job {
    file: Candidate,
    answer: Answer,
}

enum Candidate {
    Partial { partial: Partial, meta: Meta, mode: Mode, if_exists: IfExists },
    Existing(Existing),
    Directory { directory: Directory, mode: Mode, mtime: Time },
}

/// A directory of a tree, once all in it has its name.
pub(crate) struct Directory {
    /// Itself, and those above it.
    pub(super) place: Place,
    pub(super) path: SafePath,
    /// This process made it.
    pub(super) is_ours: bool,
    /// As this side's log shows it.
    pub(super) label: PathBuf,
}

/// A [`Done`] that is called even if a thread panics.
pub(super) struct Answer(Option<Done>);

impl Committer {
    pub(super) fn new(root: Arc<Dir>, anchors: Arc<Anchors>, fsync: bool) -> Committer {
        let syncfs_is_trusted = AtomicBool::new(syncs_whole(&root) && syncfs_tells_errors());
        let round = Arc::new(Round { root, anchors, fsync, syncfs_is_trusted });
        let group = {
            let round = Arc::clone(&round);
            Worker::new("commit", GROUP_FILES_MAX, move |jobs| round.run(jobs))
        };
        Committer { group, round }
    }

    pub(super) fn push(&self, job: Job) {
        // What has arrived whole is not to be lost for want of a thread.
        if job.file.size() <= GROUP_FILE_BYTES_MAX {
            self.group.push_or_do(job);
        } else {
            let round = Arc::clone(&self.round);
            Worker::new("commit-large", 1, move |jobs| round.run(jobs)).push_or_do(job);
        }
    }
}

impl Job {
    pub(super) fn commit(partial: Partial, meta: Meta, mode: Mode, if_exists: IfExists, answer: Answer) -> Job {
        Job { file: Candidate::Partial { partial, meta, mode, if_exists }, answer }
    }

    pub(super) fn finish_directory(directory: Directory, mode: Mode, mtime: Time, answer: Answer) -> Job {
        Job { file: Candidate::Directory { directory, mode, mtime }, answer }
    }

    pub(super) fn confirm(existing: Existing, answer: Answer) -> Job {
        Job { file: Candidate::Existing(existing), answer }
    }
}

impl Answer {
    pub(super) fn new(done: Done) -> Answer {
        Answer(Some(done))
    }

    fn give(mut self, result: std::result::Result<Committed, Failure>) {
        if let Some(done) = self.0.take() {
            done(result);
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Err(Refusal::Failed.into()));
        }
    }
}

/// What the rounds of one committer share.
struct Round {
    root: Arc<Dir>,
    anchors: Arc<Anchors>,
    fsync: bool,
    /// `syncfs` tells an error once, whichever file it was of. After that only an `fsync` each can be believed.
    syncfs_is_trusted: AtomicBool,
}

/// A job in a round; `outcome` is where the file is, or its first failure.
struct Step {
    job: Job,
    outcome: std::result::Result<SafePath, Failure>,
    durable: bool,
}

impl Round {
    /// All data is synced, all files get their names, each directory is synced once, all are answered.
    fn run(&self, jobs: Vec<Job>) {
        let mut steps: Vec<Step> = jobs.into_iter().map(|job| Step::begin(job, self.fsync)).collect();
        if self.fsync {
            self.sync_data(&mut steps);
        }
        steps.iter_mut().for_each(|step| step.give_name(self.fsync));
        if self.fsync {
            self.sync_directories(&mut steps);
        }
        steps.into_iter().for_each(Step::end);
    }

    fn sync_data(&self, steps: &mut [Step]) {
        let device = self.root.id().device;
        let all_here = steps.iter().all(|step| step.job.file.is_on(device));
        let files = steps.iter().filter(|step| step.outcome.is_ok()).count();
        if files >= SYNCFS_FILES_LEAST && all_here && self.syncfs_is_trusted.load(Ordering::Relaxed) {
            // Only the root's handle, older than all data written below it, is sure to hear of every error.
            match retry_on_intr(|| self.root.sync_file_system()) {
                Ok(()) => return,
                Err(_) => self.syncfs_is_trusted.store(false, Ordering::Relaxed),
            }
        }
        steps.iter_mut().filter(|step| step.outcome.is_ok()).for_each(Step::sync_data);
    }

    fn sync_directories(&self, steps: &mut [Step]) {
        let mut synced: HashMap<Id, Result<bool>> = HashMap::new();
        let mut sync = |dir: &Dir| *synced.entry(dir.id()).or_insert_with(|| retry_on_intr(|| dir.sync()));
        for step in steps.iter_mut().filter(|step| step.outcome.is_ok()) {
            let place = step.job.file.place();
            let mut result = sync(&place.dir);
            for (parent, child) in &place.unanchored {
                let parent_result = sync(parent);
                if parent_result == Ok(true) {
                    self.anchors.add(*child);
                }
                result = result.and_then(|durable| Ok(durable & parent_result?));
            }
            match result {
                Ok(offered) => step.durable &= offered,
                Err(error) => {
                    step.take_back();
                    step.sync_failed("sync the directory of", error);
                }
            }
        }
    }
}

impl Step {
    /// Mode and times, so that the sync of the data takes them along.
    fn begin(job: Job, fsync: bool) -> Step {
        let outcome = match &job.file {
            Candidate::Existing(existing) => Ok(existing.path().clone()),
            Candidate::Directory { directory, mode, mtime } => directory
                .finish(*mode, *mtime)
                .map(|()| directory.path.clone())
                .map_err(|(action, error)| Failure::new(action, directory.label.clone(), error)),
            Candidate::Partial { partial, meta, mode, .. } => finish_inode(partial, meta, *mode)
                .map(|()| meta.path.clone())
                .map_err(|(action, error)| Failure::new(action, partial.label().clone(), error)),
        };
        Step { job, outcome, durable: fsync }
    }

    /// What turns out to be there already is synced here, as it is not what was synced before.
    fn give_name(&mut self, fsync: bool) {
        let Candidate::Partial { partial, meta, if_exists, .. } = &self.job.file else { return };
        if self.outcome.is_err() {
            return;
        }
        // Others can write to the directory too, and whatever has the partial's name would get the real one.
        if !partial.is_intact() {
            self.outcome = Err(Failure::new("name", partial.label().clone(), Errno::STALE));
            return;
        }
        let find_like = |name: &SafeName| Existing::find_like(partial, meta.path.with_file_name(name.clone()));
        match give_name(partial.dir(), partial.name(), meta.path.file_name(), *if_exists, find_like) {
            Ok(Named::Moved(name)) => {
                partial.named();
                self.outcome = Ok(meta.path.with_file_name(name));
            }
            Ok(Named::Equal(existing)) => {
                partial.discard();
                self.outcome = Ok(existing.path().clone());
                self.job.file = Candidate::Existing(existing);
                if fsync {
                    self.sync_data();
                }
            }
            Err(Errno::EXIST) => self.outcome = Err(Refusal::Exists.into()),
            Err(error) => self.outcome = Err(Failure::new("name", partial.label().clone(), error)),
        }
    }

    /// A directory lies after a failed sync as a file does, so a name that may not be on the disk is no name. What was replaced
    /// can't be had back: there the new file stays.
    fn take_back(&self) {
        if let (Candidate::Partial { partial, if_exists, .. }, Ok(stored)) = (&self.job.file, &self.outcome) {
            if *if_exists != IfExists::Replace {
                partial.take_back(stored.file_name().as_os_str());
            }
        }
    }

    fn sync_data(&mut self) {
        match self.job.file.sync() {
            Ok(offered) => self.durable &= offered,
            Err(error) => self.sync_failed("sync", error),
        }
    }

    /// PROTOCOL 7.3: whatever the sync said, the data can't be trusted to be there.
    fn sync_failed(&mut self, action: &'static str, error: Errno) {
        let failure = Failure::new(action, self.job.file.label().clone(), error);
        self.outcome = Err(Failure { refusal: Refusal::Failed, ..failure });
    }

    fn end(self) {
        let Step { job: Job { file, answer }, outcome, durable } = self;
        let already = match &file {
            Candidate::Partial { .. } => false,
            Candidate::Existing(_) => true,
            Candidate::Directory { directory, .. } => !directory.is_ours,
        };
        drop(file);
        answer.give(outcome.map(|stored| Committed { stored, already, durable }));
    }
}

impl Candidate {
    fn size(&self) -> u64 {
        match self {
            Candidate::Partial { meta, .. } => meta.size,
            Candidate::Existing(existing) => existing.size(),
            Candidate::Directory { .. } => 0,
        }
    }

    fn place(&self) -> &Place {
        match self {
            Candidate::Partial { partial, .. } => partial.place(),
            Candidate::Existing(existing) => existing.place(),
            Candidate::Directory { directory, .. } => &directory.place,
        }
    }

    fn label(&self) -> &PathBuf {
        match self {
            Candidate::Partial { partial, .. } => partial.label(),
            Candidate::Existing(existing) => existing.label(),
            Candidate::Directory { directory, .. } => &directory.label,
        }
    }

    fn is_on(&self, device: u64) -> bool {
        let is_with_its_directory = match self {
            Candidate::Partial { .. } | Candidate::Directory { .. } => true,
            Candidate::Existing(existing) => existing.is_with_its_directory(),
        };
        is_with_its_directory && self.place().dir.id().device == device
    }

    fn sync(&self) -> Result<bool> {
        match self {
            Candidate::Partial { partial, .. } => partial.sync(),
            Candidate::Existing(existing) => existing.sync(),
            // It is synced with the directories.
            Candidate::Directory { .. } => Ok(true),
        }
    }
}

impl Directory {
    fn finish(&self, mode: Mode, mtime: Time) -> std::result::Result<(), (&'static str, Errno)> {
        if self.is_ours {
            set_mode_and_time(self.place.dir.as_fd(), mode, mtime)
        } else {
            Ok(())
        }
    }
}

fn finish_inode(partial: &Partial, meta: &Meta, mode: Mode) -> std::result::Result<(), (&'static str, Errno)> {
    if partial.is_lost() {
        return Err(("finish", Errno::IO));
    }
    set_mode_and_time(partial.file(), mode, meta.mtime)
}

/// Sets what the sender had, where the file system has such a thing.
fn set_mode_and_time(fd: impl AsFd, mode: Mode, mtime: Time) -> std::result::Result<(), (&'static str, Errno)> {
    // A handle that only leads somewhere can't change what is there.
    let is_passed_over = |error| is_not_offered(error) || error == Errno::BADF;
    let offered = |result: Result<()>| if result.is_err_and(is_passed_over) { Ok(()) } else { result };
    offered(fchmod(&fd, mode)).map_err(|error| ("set the mode of", error))?;
    offered(futimens(&fd, &times(mtime))).map_err(|error| ("set the time of", error))
}

#[allow(clippy::useless_conversion, clippy::unnecessary_fallible_conversions)] // Another type elsewhere.
fn times(mtime: Time) -> Timestamps {
    let nanoseconds = mtime.nanoseconds.min(999_999_999);
    let last_modification = Timespec { tv_sec: mtime.seconds, tv_nsec: nanoseconds.try_into().unwrap_or_default() };
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification }
}

/// File systems whose `syncfs` writes only what is dirty, and tells what failed (statfs(2) names the numbers).
fn syncs_whole(dir: &Dir) -> bool {
    const EXT4: u32 = 0xef53;
    const XFS: u32 = 0x5846_5342;
    const BTRFS: u32 = 0x9123_683e;
    const F2FS: u32 = 0xf2f5_2010;
    matches!(dir.file_system(), Some(EXT4 | XFS | BTRFS | F2FS | TMPFS))
}

/// Before Linux 5.8 `syncfs` said ok whatever happened to the data (syncfs(2)).
fn syncfs_tells_errors() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").is_ok_and(|release| is_linux_5_8(&release))
}

fn is_linux_5_8(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(5), Some(8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn syncfs_is_not_trusted_before_linux_5_8() {
        for (release, told) in
            [("5.8.0", true), ("6.1.0-13-amd64", true), ("5.7.19", false), ("4.19.0", false), ("", false)]
        {
            assert_eq!(is_linux_5_8(release), told, "{release}");
        }
    }

    #[test]
    fn a_commit_that_is_dropped_is_answered() {
        let (sender, receiver) = mpsc::channel();
        drop(Answer::new(Box::new(move |result| sender.send(result.is_err()).unwrap())));
        assert_eq!(receiver.recv(), Ok(true));
    }
}
