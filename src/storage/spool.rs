//! What a server keeps for others until they have it: files, in a [`Store`] of its own below the directory that receives, and
//! notes of what was left for who is not there.
//!
//! Its name is like a partial's, so no peer can name it, list it or get it. A process locks the spool that it uses: a second
//! server on the same directory has one of its own.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{flock, mkdirat, FlockOperation, Mode, OFlags, CWD};
use rustix::io::Errno;

use super::dir::Dir;
use super::origin::{failed, open_below};
use super::partial::Identity;
use super::{Meta, Origin, Store, Top};
use crate::config::Config;
use crate::error::Result;
use crate::name::{SafeName, SafePath, PARTIAL_PREFIX, PARTIAL_SUFFIX};
use crate::worker::Lock;

/// A directory serves as many servers at once.
const SPOOLS_MAX: u32 = 64;
/// Where the files are.
const FILES: &str = "files";
/// Where the notes are.
const NOTES: &str = "notes";
/// What the name of a note begins with while it is written.
const NEW_NOTE: &str = "new-";

/// See the module.
pub(crate) struct Spool {
    store: Arc<Store>,
    top: Arc<Top>,
    notes: Dir,
    /// How many use what is kept under one name.
    users: Mutex<HashMap<SafeName, Users>>,
    /// Nobody else uses the spool.
    _lock: OwnedFd,
}

#[derive(Default)]
struct Users {
    count: usize,
    /// It was stored while it was used.
    is_stored: bool,
    /// It stays when the last one goes.
    stays: bool,
}

/// A file that is kept for others, or will be: it goes with the last of these, unless one of them says that it stays.
pub(crate) struct Held {
    spool: Arc<Spool>,
    path: SafePath,
    stored: OnceLock<SafePath>,
    stays: AtomicBool,
}

impl Spool {
    /// Opens the first spool in `dir` that nobody uses, and makes it where it is missing; `None` when none is there and none is
    /// to be made.
    ///
    /// # Errors
    /// [`Error::File`](crate::error::Error::File).
    pub(crate) fn open(dir: &Path, config: &Config, make: bool) -> Result<Option<Arc<Spool>>> {
        for number in 0..SPOOLS_MAX {
            let path = dir.join(format!("{PARTIAL_PREFIX}relay-{number}{PARTIAL_SUFFIX}"));
            if !make && !path.exists() {
                return Ok(None);
            }
            make_directory(&path)?;
            let root = rustix::fs::open(
                &path,
                OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(failed("open", path.clone()))?;
            match flock(&root, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Spool::with(root, &path, config).map(|spool| Some(Arc::new(spool))),
                Err(Errno::WOULDBLOCK) => {}
                Err(error) => return Err(failed("lock", path)(error)),
            }
        }
        Err(failed("lock", dir.to_owned())(Errno::WOULDBLOCK))
    }

    fn with(lock: OwnedFd, path: &Path, config: &Config) -> Result<Spool> {
        let (files, notes) = (path.join(FILES), path.join(NOTES));
        make_directory(&files)?;
        make_directory(&notes)?;
        let notes = Dir::open(&notes).map_err(failed("open", notes))?;
        // The names of all three are as durable as what is in them.
        for durable in [path.parent().unwrap_or(path), path] {
            let synced = Dir::open(durable).and_then(|dir| dir.sync());
            synced.map_err(failed("sync", durable.to_owned()))?;
        }
        let own = Config { if_exists: crate::config::IfExists::Rename, take_offers: true, ..config.clone() };
        Ok(Spool {
            store: Arc::new(Store::open(&files, &own)?),
            top: Arc::new(Top::open(&files)?),
            notes,
            users: Mutex::default(),
            _lock: lock,
        })
    }

    /// Keeps what is about to come, or has come: its like has the same name there.
    pub(crate) fn hold(self: &Arc<Spool>, meta: &Meta) -> Held {
        let group = Identity::of(meta).name();
        let name = meta.path.file_name().clone();
        let path = SafePath::from(group.clone()).join(name).unwrap_or_else(|_| SafePath::from(group));
        self.held(path)
    }

    /// As [`Spool::hold`], for what an earlier run stored; `None` where it is not there any more.
    pub(crate) fn hold_stored(self: &Arc<Spool>, stored: SafePath) -> Option<Held> {
        if matches!(open_below(&self.top.dir, &stored), Err(Errno::NOENT)) {
            return None;
        }
        let held = self.held(stored.clone());
        held.is_stored_as(stored);
        Some(held)
    }

    fn held(self: &Arc<Spool>, path: SafePath) -> Held {
        self.users.take().entry(group_of(&path)).or_default().count += 1;
        Held { spool: Arc::clone(self), path, stored: OnceLock::new(), stays: AtomicBool::new(false) }
    }

    /// Removes what nobody uses and nobody came back for in `keep`.
    pub(crate) fn sweep(&self, keep: Duration) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let keep_from = i64::try_from(now.saturating_sub(keep).as_secs()).unwrap_or(i64::MAX);
        for group in self.top.dir.directories().unwrap_or_default() {
            let Ok(group) = SafeName::parse(&group) else { continue };
            let users = self.users.take();
            if users.contains_key(&group) {
                continue;
            }
            let entries = self.top.dir.enter(&group).and_then(|dir| {
                let names = dir.names()?;
                Ok(names.iter().filter_map(|name| dir.entry(os(name)).ok()?).collect::<Vec<_>>())
            });
            if entries.unwrap_or_default().iter().all(|entry| entry.changed_seconds < keep_from) {
                self.remove(&group);
            }
        }
    }

    fn remove(&self, group: &SafeName) {
        // What stays behind is swept away later.
        if let Ok(dir) = self.top.dir.enter(group) {
            let names = dir.names().unwrap_or_default();
            names.iter().filter(|name| SafeName::parse(name).is_ok()).for_each(|name| {
                let _ = dir.unlink(os(name));
            });
        }
        let _ = self.top.dir.remove_directory(group.as_os_str());
    }

    /// Writes a note, durably.
    ///
    /// # Errors
    /// Nothing is noted.
    pub(crate) fn note(&self, number: u64, bytes: &[u8]) -> rustix::io::Result<()> {
        let name = note_name(number);
        // Several are written at once.
        let new = format!("{NEW_NOTE}{name}");
        let written = (|| {
            let file = self.notes.open_file(os(new.as_bytes()), OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?;
            let mut file = File::from(file);
            file.write_all(bytes).map_err(|error| super::failure::errno_of(&error))?;
            rustix::fs::fsync(&file)?;
            self.notes.rename_over(os(new.as_bytes()), os(name.as_bytes()))?;
            self.notes.sync().map(drop)
        })();
        if written.is_err() {
            let _ = self.notes.unlink(os(new.as_bytes()));
            self.forget(number);
        }
        written
    }

    /// All notes, in their order; what an earlier process did not write to its end is removed.
    pub(crate) fn notes(&self) -> Vec<(u64, Vec<u8>)> {
        let names = self.notes.names().unwrap_or_default();
        for name in names.iter().filter(|name| name.starts_with(NEW_NOTE.as_bytes())) {
            let _ = self.notes.unlink(os(name));
        }
        let number = |name: &Vec<u8>| u64::from_str_radix(std::str::from_utf8(name).ok()?, 16).ok();
        let mut numbers: Vec<u64> = names.iter().filter_map(number).collect();
        numbers.sort_unstable();
        let read = |number| {
            let mut bytes = Vec::new();
            let file = self.notes.open_file(os(note_name(number).as_bytes()), OFlags::RDONLY).ok()?;
            File::from(file).read_to_end(&mut bytes).ok()?;
            Some((number, bytes))
        };
        numbers.into_iter().filter_map(read).collect()
    }

    /// When a note was written, in seconds since 1970.
    pub(crate) fn noted_seconds(&self, number: u64) -> Option<i64> {
        Some(self.notes.entry(os(note_name(number).as_bytes())).ok()??.changed_seconds)
    }

    /// What a note was about is done.
    pub(crate) fn forget(&self, number: u64) {
        let _ = self.notes.unlink(os(note_name(number).as_bytes()));
        let _ = self.notes.sync();
    }
}

impl Held {
    /// The same, held once more.
    pub(crate) fn again(&self) -> Held {
        let held = self.spool.held(self.path.clone());
        self.stored.get().into_iter().for_each(|stored| held.is_stored_as(stored.clone()));
        held
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.spool.store
    }

    /// Where it is to be stored.
    pub(crate) fn path(&self) -> &SafePath {
        &self.path
    }

    /// It is stored there.
    pub(crate) fn is_stored_as(&self, stored: SafePath) {
        let _ = self.stored.set(stored);
    }

    /// Whether it stays when nobody holds it any more: a note tells of it.
    pub(crate) fn set_stays(&self, stays: bool) {
        self.stays.store(stays, Ordering::SeqCst);
    }

    /// Where it is read from.
    pub(crate) fn origin(&self) -> Origin {
        let stored = self.stored.get().unwrap_or(&self.path);
        Origin::Below(Arc::clone(&self.spool.top), stored.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let group = group_of(&self.path);
        let mut all = self.spool.users.take();
        let Some(users) = all.get_mut(&group) else { return };
        users.count -= 1;
        users.is_stored |= self.stored.get().is_some();
        users.stays |= self.stays.load(Ordering::SeqCst);
        if users.count > 0 {
            return;
        }
        let goes = users.is_stored && !users.stays;
        all.remove(&group);
        if goes {
            // Whoever comes now waits for the lock, and stores it again.
            self.spool.remove(&group);
        }
    }
}

/// What all that has one offered path, size and time is kept under.
fn group_of(path: &SafePath) -> SafeName {
    path.names().first().unwrap_or(path.file_name()).clone()
}

fn note_name(number: u64) -> String {
    format!("{number:016x}")
}

fn os(bytes: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}

fn make_directory(path: &PathBuf) -> Result<()> {
    match mkdirat(CWD, path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(failed("make", path.clone())(error)),
    }
}
