//! A file on its way in, under a name that nobody takes for a file: `.postwire-<identity>-<n>.part`.
//!
//! The identity only *finds* a partial; whether its bytes are right is for the blocks' CRCs to say (PROTOCOL 6.5). Whoever
//! uses one holds its lock. It refuses what is not certainly our own file: links, others' files, files with a second name.

use std::ffi::OsStr;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{fallocate, fdatasync, flock, fsync, ftruncate, FallocateFlags, FlockOperation, OFlags};
use rustix::io::{pwrite, retry_on_intr, Errno, Result};

use super::block::{block_crc, crc};
use super::dir::{Dir, Entry, Id, Kind, Place};
use super::failure::{errno_of, is_not_offered, Failure};
use super::room::{Reservation, Room};
use super::Meta;
use crate::config::{block_bytes, FALLOCATE_BYTES, PARTIALS_OF_A_FILE_MAX, SYNC_BYTES};
use crate::name::{SafeName, PARTIAL_PREFIX, PARTIAL_SUFFIX};
use crate::worker::{spawn, Lock};

/// See the module. Written by one thread and read by another at once; dropped without a commit, it is kept for a later run if
/// that could use it.
pub(crate) struct Partial {
    held: Arc<Held>,
    place: Arc<Place>,
    room: Arc<Room>,
    reservation: Option<Reservation>,
    /// [`Meta::UNKNOWN_SIZE`] for a stream.
    size: u64,
    have: u64,
    is_small: bool,
    is_stream: bool,
    fsync: bool,
    ahead: Mutex<Ahead>,
    has_real_name: AtomicBool,
    /// As this side's log shows it.
    label: PathBuf,
}

/// What the thread that syncs shares.
struct Held {
    file: File,
    /// As it was when it was opened: nothing else is ever unlinked, and whether it is so needs no second look at the file.
    id: Id,
    dir: Arc<Dir>,
    name: String,
    /// Held while syncing: a failed sync is told to one caller only, and the next must not believe its own.
    sync_turn: Mutex<()>,
    is_syncing: AtomicBool,
    /// Nothing of it is to be kept.
    is_lost: AtomicBool,
}

/// How far the file system has got.
struct Ahead {
    /// Room is taken up to here.
    taken_end: u64,
    takes_room: bool,
    unsynced_bytes: u64,
}

impl Partial {
    /// Finds one that nobody uses, or makes one.
    pub(super) fn open(
        place: Place,
        meta: &Meta,
        identity: &Identity,
        room: &Arc<Room>,
        label: PathBuf,
        fsync: bool,
    ) -> Result<Partial> {
        for number in 0..PARTIALS_OF_A_FILE_MAX {
            let name = identity.partial_name(number);
            let Some(Opened { file, id, have }) = open_one(&place.dir, name.as_ref(), meta)? else { continue };
            let held = Held {
                file,
                id,
                dir: Arc::clone(&place.dir),
                name,
                sync_turn: Mutex::new(()),
                is_syncing: AtomicBool::new(false),
                is_lost: AtomicBool::new(false),
            };
            let takes_room = !meta.is_small() && !meta.is_stream && !place.dir.is_in_memory();
            return Ok(Partial {
                held: Arc::new(held),
                place: Arc::new(place),
                room: Arc::clone(room),
                reservation: None,
                size: meta.size,
                have,
                is_small: meta.is_small(),
                is_stream: meta.is_stream,
                fsync,
                ahead: Mutex::new(Ahead { taken_end: have, takes_room, unsynced_bytes: 0 }),
                has_real_name: AtomicBool::new(false),
                label,
            });
        }
        Err(Errno::EXIST)
    }

    /// Reserves the room that it will still take; `false` when that is not there.
    pub(super) fn reserve(&mut self) -> bool {
        // A small one is empty when it is opened.
        let disk_bytes = if self.is_small { 0 } else { Entry::of(&self.held.file).map_or(0, |entry| entry.disk_bytes) };
        let needed_bytes = if self.is_stream { 0 } else { self.size.saturating_sub(disk_bytes) };
        self.reservation = Room::reserve(&self.room, &self.place.dir, needed_bytes);
        self.reservation.is_some()
    }

    /// Bytes that it held when it was opened, unverified: whole blocks or all, and 0 for a small file (PROTOCOL 5.5).
    pub(crate) fn have(&self) -> u64 {
        self.have
    }

    /// Writes a part. Once this failed for the sync of an earlier part, it and the commit always do.
    pub(crate) fn write_at(&self, offset: u64, data: &[u8]) -> std::result::Result<(), Failure> {
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        let end = offset.checked_add(length).filter(|&end| end <= self.size);
        let Some(end) = end else { return Err(self.failure("write past the end of", Errno::INVAL, offset)) };
        if self.is_lost() {
            return Err(self.failure("sync", Errno::IO, offset));
        }
        self.take_room(end)?;
        self.write_all(offset, data)?;
        if self.fsync && self.sync_is_due(length) {
            self.sync_beside();
        }
        Ok(())
    }

    /// The CRC of one block; `buffer` is scratch.
    pub(crate) fn block_crc(&self, index: u64, buffer: &mut Vec<u8>) -> std::result::Result<u32, Failure> {
        block_crc(&self.held.file, self.size, index, buffer)
            .map_err(|error| self.failure("read", errno_of(&error), self.size))
    }

    /// The CRC of the first `length` bytes.
    pub(crate) fn crc_until(&self, length: u64, buffer: &mut Vec<u8>) -> std::result::Result<u32, Failure> {
        crc(&self.held.file, 0, length, buffer).map_err(|error| self.failure("read", errno_of(&error), length))
    }

    /// The end of a stream has come.
    pub(crate) fn ends_at(&mut self, size: u64) {
        self.size = size;
    }

    /// Keeps what is before `length` alone: what follows of a stream has a gap in it, which a later connection can't see.
    pub(crate) fn keep_until(&self, length: u64) {
        let _ = ftruncate(&self.held.file, length);
    }

    /// PROTOCOL 6.8: its content is wrong as a whole, so nothing of it is kept.
    pub(crate) fn discard(&self) {
        self.held.is_lost.store(true, Ordering::Relaxed);
    }

    pub(super) fn file(&self) -> &File {
        &self.held.file
    }

    pub(super) fn name(&self) -> &OsStr {
        self.held.name.as_ref()
    }

    /// Whether its name still is its own, and its size the whole file's.
    pub(super) fn is_intact(&self) -> bool {
        is_named(&self.held.dir, self.name(), self.held.id)
            && Entry::of(&self.held.file).is_ok_and(|entry| entry.size == self.size)
    }

    pub(super) fn dir(&self) -> &Arc<Dir> {
        &self.place.dir
    }

    pub(super) fn place(&self) -> &Arc<Place> {
        &self.place
    }

    /// As this side's log shows it.
    pub(super) fn label(&self) -> &PathBuf {
        &self.label
    }

    /// Whether nothing of it may be kept.
    pub(super) fn is_lost(&self) -> bool {
        self.held.is_lost.load(Ordering::Relaxed)
    }

    /// Syncs content and inode; `false` where that is not offered.
    pub(super) fn sync(&self) -> Result<bool> {
        self.held.sync(|file| fsync(file))
    }

    /// It has its real name now, so dropping it leaves that alone.
    pub(super) fn named(&self) {
        self.has_real_name.store(true, Ordering::Relaxed);
    }

    /// Removes the real name that it was given.
    pub(super) fn take_back(&self, name: &OsStr) {
        if is_named(&self.held.dir, name, self.held.id) {
            let _ = self.held.dir.unlink(name);
        }
    }

    /// Takes room ahead of the data, so that a full disk is met early; not all at once, which costs 0.1 s a GiB.
    fn take_room(&self, end: u64) -> std::result::Result<(), Failure> {
        let (from, until, takes_room) = {
            let mut ahead = self.ahead.take();
            if end <= ahead.taken_end {
                return Ok(());
            }
            let until = if ahead.takes_room { self.size.min(end.saturating_add(FALLOCATE_BYTES)) } else { end };
            (std::mem::replace(&mut ahead.taken_end, until), until, ahead.takes_room)
        };
        if takes_room {
            let taken = retry_on_intr(|| fallocate(&self.held.file, FallocateFlags::KEEP_SIZE, from, until - from));
            match taken {
                Ok(()) => {}
                Err(error @ (Errno::NOSPC | Errno::DQUOT)) => return Err(self.failure("take room for", error, from)),
                // Not offered here, or the write itself will say it better.
                Err(_) => self.ahead.take().takes_room = false,
            }
        }
        if let Some(reservation) = &self.reservation {
            reservation.shrink_to(self.size - until);
        }
        Ok(())
    }

    fn write_all(&self, mut offset: u64, mut data: &[u8]) -> std::result::Result<(), Failure> {
        while !data.is_empty() {
            match retry_on_intr(|| pwrite(&self.held.file, data, offset)) {
                Ok(0) => return Err(self.failure("write", Errno::IO, offset)),
                Ok(count) => {
                    data = data.get(count..).unwrap_or_default();
                    offset += u64::try_from(count).unwrap_or(0);
                }
                Err(error) => return Err(self.failure("write", error, offset)),
            }
        }
        Ok(())
    }

    fn sync_is_due(&self, written_bytes: u64) -> bool {
        let mut ahead = self.ahead.take();
        ahead.unsynced_bytes += written_bytes;
        let due = ahead.unsynced_bytes >= SYNC_BYTES && !self.held.is_syncing.swap(true, Ordering::Relaxed);
        if due {
            ahead.unsynced_bytes = 0;
        }
        due
    }

    /// Syncs what is there so far beside what still comes.
    fn sync_beside(&self) {
        let held = Arc::clone(&self.held);
        let sync = move || {
            if held.sync(|file| fdatasync(file)).is_err() {
                // The partial may have been dropped since, and found again by another transfer.
                held.unlink();
            }
            held.is_syncing.store(false, Ordering::Relaxed);
        };
        if spawn("sync", sync).is_err() {
            // Without a thread the last sync does it all.
            self.held.is_syncing.store(false, Ordering::Relaxed);
        }
    }

    /// Whether a later run could use what is there.
    fn is_worth_keeping(&self) -> bool {
        let block = if self.is_stream { 1 } else { block_bytes(self.size) };
        let holds_a_block = Entry::of(&self.held.file).is_ok_and(|entry| entry.size >= block);
        !self.is_small && !self.is_lost() && holds_a_block
    }

    fn failure(&self, action: &'static str, error: Errno, reached_bytes: u64) -> Failure {
        Failure::at(action, self.label.clone(), error, reached_bytes)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.has_real_name.load(Ordering::Relaxed) {
            return;
        }
        if !self.is_worth_keeping() {
            self.held.unlink();
        }
        // A thread that still syncs has the file open, and would keep it from the next who wants to go on with it.
        let _ = flock(&self.held.file, FlockOperation::Unlock);
    }
}

impl Held {
    /// PROTOCOL 7.3: after a failed sync the page cache lies, so there is no second try and nothing is kept.
    fn sync(&self, sync: impl Fn(&File) -> Result<()>) -> Result<bool> {
        let _turn = self.sync_turn.take();
        if self.is_lost.load(Ordering::Relaxed) {
            return Err(Errno::IO);
        }
        match retry_on_intr(|| sync(&self.file)) {
            Ok(()) => Ok(true),
            Err(error) if is_not_offered(error) => Ok(false),
            Err(error) => {
                self.is_lost.store(true, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    /// Removes the partial's name while it still is this file's. What can't be removed is found by the next offer, or by
    /// housekeeping.
    fn unlink(&self) {
        if is_named(&self.dir, self.name.as_ref(), self.id) {
            let _ = self.dir.unlink(self.name.as_ref());
        }
    }
}

/// What a partial is found by: a function of path, size and mtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity(String);

impl Identity {
    pub(super) fn of(meta: &Meta) -> Identity {
        let path = crc32fast::hash(&meta.path.to_bytes());
        let mut version = crc32fast::Hasher::new();
        version.update(&path.to_be_bytes());
        version.update(&meta.size.to_be_bytes());
        version.update(&meta.mtime.seconds.to_be_bytes());
        version.update(&meta.mtime.nanoseconds.to_be_bytes());
        if meta.is_stream {
            version.update(&meta.content_crc.to_be_bytes());
        }
        Identity(format!("{path:08x}{:08x}", version.finalize()))
    }

    /// As the name of a directory for what has this identity.
    pub(super) fn name(&self) -> SafeName {
        SafeName::hexadecimal(&self.0)
    }

    pub(super) fn partial_name(&self, number: u32) -> String {
        format!("{PARTIAL_PREFIX}{}-{number}{PARTIAL_SUFFIX}", self.0)
    }

    /// The identity in a partial's name; `None` for a name that we never make.
    pub(super) fn in_name(name: &[u8]) -> Option<Identity> {
        let inner = std::str::from_utf8(name).ok()?.strip_prefix(PARTIAL_PREFIX)?.strip_suffix(PARTIAL_SUFFIX)?;
        let (identity, number) = inner.split_once('-')?;
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let fits = identity.len() == 16 && identity.bytes().all(is_hex) && number.parse::<u32>().is_ok();
        fits.then(|| Identity(identity.to_owned()))
    }

    /// What the first partial of this identity takes on the disk already.
    pub(super) fn bytes_on_disk(&self, dir: &Dir) -> u64 {
        let entry = dir.entry(self.partial_name(0).as_ref()).ok().flatten();
        entry.filter(|entry| entry.kind == Kind::File).map_or(0, |entry| entry.disk_bytes)
    }
}

/// A partial that is locked.
struct Opened {
    file: File,
    id: Id,
    have: u64,
}

/// Opens and locks one name: a partial of ours that nobody uses, with the bytes it holds, or a new one. `None` when the next
/// number is to be tried.
fn open_one(dir: &Dir, name: &OsStr, meta: &Meta) -> Result<Option<Opened>> {
    match dir.open_file(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL) {
        Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
        Ok(file) => {
            let file = File::from(file);
            let id = Entry::of(&file)?.id;
            return match lock(&file)? {
                // Housekeeping was faster than we, or another who wants the same.
                Lockable::Busy => Ok(None),
                // Where it can't be said it is taken for ours: it was made just now, and the commit looks again.
                _ => match dir.entry(name) {
                    Ok(named) if named.as_ref().map(|named| named.id) != Some(id) => Ok(None),
                    _ => Ok(Some(Opened { file, id, have: 0 })),
                },
            };
        }
    }
    let Some((file, entry)) = lock_unused(dir, name)? else { return Ok(None) };
    if meta.is_small() || entry.size > meta.size {
        ftruncate(&file, 0)?;
        return Ok(Some(Opened { file, id: entry.id, have: 0 }));
    }
    let part_of_block = if meta.is_stream || entry.size == meta.size { 0 } else { entry.size % block_bytes(meta.size) };
    Ok(Some(Opened { file, id: entry.id, have: entry.size - part_of_block }))
}

/// Opens and locks a partial that is there; `None` unless it certainly is ours and nobody uses it.
pub(super) fn lock_unused(dir: &Dir, name: &OsStr) -> Result<Option<(File, Entry)>> {
    let file = match dir.open_file(name, OFlags::RDWR) {
        Ok(file) => File::from(file),
        // A link, a directory, a socket, a program that runs, another's file, or gone since.
        Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO | Errno::NODEV | Errno::TXTBSY) => return Ok(None),
        Err(Errno::ACCESS | Errno::PERM | Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let entry = Entry::of(&file)?;
    // Where locks are not offered nobody can tell whether it is in use.
    if lock(&file)? != Lockable::Locked || !is_named(dir, name, entry.id) {
        return Ok(None);
    }
    // What was written to it before it was locked counts too.
    let entry = Entry::of(&file)?;
    let is_ours = entry.kind == Kind::File && entry.is_ours() && entry.links == 1;
    Ok(is_ours.then_some((file, entry)))
}

#[derive(PartialEq, Eq)]
enum Lockable {
    Locked,
    Busy,
    NotOffered,
}

fn lock(file: &File) -> Result<Lockable> {
    match retry_on_intr(|| flock(file, FlockOperation::NonBlockingLockExclusive)) {
        Ok(()) => Ok(Lockable::Locked),
        Err(Errno::WOULDBLOCK) => Ok(Lockable::Busy),
        Err(error) if is_not_offered(error) || error == Errno::NOLCK => Ok(Lockable::NotOffered),
        Err(error) => Err(error),
    }
}

/// Whether the name still is this file's: between opening and locking it may have been committed or removed.
fn is_named(dir: &Dir, name: &OsStr, id: Id) -> bool {
    matches!(dir.entry(name), Ok(Some(named)) if named.id == id)
}
