//! A file on its way in: `.postwire-<identity>-<n>.part` in the directory where it will get its name.
//!
//! The identity only finds it: what is in it counts once it was compared. While a partial is used it is locked, and one that
//! somebody else uses is passed over.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Mutex};

use rustix::fs::{fallocate, fdatasync, flock, FallocateFlags, FlockOperation, OFlags};
use rustix::io::{Errno, Result};

use super::dir::Dir;
use super::existing::block_crc;
use super::{Failure, Meta};
use crate::config::{block_bytes, BLOCK_BYTES_LEAST, FALLOCATE_BYTES, SYNC_BYTES};
use crate::name::{PARTIAL_PREFIX, PARTIAL_SUFFIX};
use crate::worker::{spawn, Lock};

/// An open, locked partial. Dropped without a commit it is kept where that saves sending a block again, else removed.
pub(crate) struct Partial {
    pub(super) file: Arc<File>,
    pub(super) dir: Arc<Dir>,
    /// Directories in which a directory was made for this file: to be synced.
    pub(super) made_in: Vec<Arc<Dir>>,
    pub(super) name: String,
    size: u64,
    have: u64,
    fsync: bool,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    written: u64,
    /// Written when the last sync began.
    sync_began_at: u64,
    syncing: bool,
    /// PROTOCOL 7.3: after a failed sync nothing of it is kept.
    sync_failed: bool,
    allocated: u64,
    /// It has another name now.
    committed: bool,
}

impl Partial {
    /// Finds or makes one.
    pub(super) fn open(dir: Arc<Dir>, made_in: Vec<Arc<Dir>>, meta: &Meta, fsync: bool) -> Result<Partial> {
        const HELD_MAX: u32 = 1000;
        let identity = identity(meta);
        for number in 0..HELD_MAX {
            let name = format!("{PARTIAL_PREFIX}{identity}-{number}{PARTIAL_SUFFIX}");
            let Some((file, have)) = open_one(&dir, &name, meta.size)? else { continue };
            let state = State { written: have, sync_began_at: have, allocated: have, ..State::default() };
            let (file, state) = (Arc::new(file), Arc::new(Mutex::new(state)));
            return Ok(Partial { file, dir, made_in, name, size: meta.size, have, fsync, state });
        }
        Err(Errno::EXIST)
    }

    /// Bytes that it held when it was opened: whole blocks, or all. Not verified.
    pub(crate) fn have(&self) -> u64 {
        self.have
    }

    /// Writes a verified part.
    pub(crate) fn write_at(&self, offset: u64, data: &[u8]) -> std::result::Result<(), Failure> {
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        let end = offset.saturating_add(length);
        if self.state.take().sync_failed {
            return Err(self.failure("sync", Errno::IO));
        }
        self.take_room(end)?;
        self.file
            .write_all_at(data, offset)
            .map_err(|error| self.failure("write", Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        let begin_sync = {
            let mut state = self.state.take();
            state.written += length;
            let due = self.fsync && !state.syncing && state.written - state.sync_began_at >= SYNC_BYTES;
            if due {
                state.syncing = true;
                state.sync_began_at = state.written;
            }
            due
        };
        if begin_sync {
            self.sync_beside();
        }
        Ok(())
    }

    /// The CRC of one block; `None` when it can't be read, which is like being different.
    pub(crate) fn block_crc(&self, index: u64, buffer: &mut Vec<u8>) -> Option<u32> {
        block_crc(&self.file, self.size, index, buffer).ok()
    }

    /// Syncs the data; whoever fails here keeps nothing of it.
    pub(super) fn sync(&self) -> Result<()> {
        if self.state.take().sync_failed {
            return Err(Errno::IO);
        }
        let result = rustix::fs::fsync(&self.file);
        if result.is_err() {
            self.sync_failed();
        }
        result
    }

    /// PROTOCOL 6.8: what is in it is wrong, and is not kept.
    pub(crate) fn discard(&self) {
        self.sync_failed();
    }

    pub(super) fn sync_failed(&self) {
        self.state.take().sync_failed = true;
    }

    /// It has another name now.
    pub(super) fn committed(&self) {
        self.state.take().committed = true;
    }

    /// Room is taken ahead of the data, so that a full disk is met early, and not all at once, which takes long.
    fn take_room(&self, end: u64) -> std::result::Result<(), Failure> {
        let from = {
            let mut state = self.state.take();
            if self.size <= BLOCK_BYTES_LEAST || end <= state.allocated {
                return Ok(());
            }
            let from = state.allocated;
            state.allocated = self.size.min(end.saturating_add(FALLOCATE_BYTES));
            from
        };
        let length = self.size.min(end.saturating_add(FALLOCATE_BYTES)) - from;
        match fallocate(&self.file, FallocateFlags::KEEP_SIZE, from, length) {
            Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(self.failure("take room for", error)),
            // Elsewhere it is not offered, or the write will tell better.
            _ => Ok(()),
        }
    }

    /// Every 64 MiB the data so far is synced by a thread of its own, so that the last sync is short.
    fn sync_beside(&self) {
        let (file, state) = (Arc::clone(&self.file), Arc::clone(&self.state));
        let sync = move || {
            let failed = fdatasync(&file).is_err();
            let mut state = state.take();
            state.syncing = false;
            state.sync_failed |= failed;
        };
        if spawn("sync", sync).is_err() {
            // The last sync does it all.
            self.state.take().syncing = false;
        }
    }

    fn failure(&self, action: &'static str, error: Errno) -> Failure {
        Failure::new(action, self.name.as_ref(), error)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let state = self.state.take();
        let holds_a_block = self.file.metadata().is_ok_and(|meta| meta.size() >= block_bytes(self.size));
        if !state.committed && (state.sync_failed || !holds_a_block) {
            // What can't be removed is found by the next offer.
            let _ = self.dir.unlink(&self.name);
        }
    }
}

/// Opens one name: a free partial of ours with what it holds, a new one, or `None` when it must be passed over.
fn open_one(dir: &Dir, name: &str, size: u64) -> Result<Option<(File, u64)>> {
    let fd = match dir.open_file(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, 0o600) {
        Err(Errno::EXIST) => match dir.open_file(name, OFlags::RDWR, 0) {
            Err(Errno::NOENT | Errno::LOOP | Errno::ACCESS | Errno::NXIO | Errno::ISDIR) => return Ok(None),
            result => result?,
        },
        result => result?,
    };
    match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        // Somebody uses it. Where locks are not offered, nobody else can hold one either.
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Ok(()) | Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOLCK) => {}
        Err(error) => return Err(error),
    }
    let file = File::from(fd);
    let Ok(meta) = file.metadata() else { return Ok(None) };
    let same = dir.identify(name) == Ok((meta.dev(), meta.ino()));
    let ours = meta.is_file() && meta.nlink() == 1 && meta.uid() == rustix::process::geteuid().as_raw();
    if !same || !ours || meta.size() > size {
        return Ok(None);
    }
    let block = block_bytes(size);
    let have = if meta.size() == size { size } else { meta.size() - meta.size() % block };
    Ok(Some((file, have)))
}

/// 16 hexadecimal digits of path, size and mtime.
fn identity(meta: &Meta) -> String {
    let path = crc32fast::hash(&meta.path.to_bytes());
    let mut hasher = crc32fast::Hasher::new_with_initial(path);
    hasher.update(&meta.size.to_be_bytes());
    hasher.update(&meta.mtime.seconds.to_be_bytes());
    hasher.update(&meta.mtime.nanoseconds.to_be_bytes());
    format!("{path:08x}{:08x}", hasher.finalize())
}
