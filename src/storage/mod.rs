//! All file effects: [`Store`] is one directory that receives, [`Partial`] a file on its way in, [`Existing`] one that was
//! there, [`Source`] one on its way out.
//!
//! Everything here may block, so it is called on disk threads, never by a socket's reader. It knows no frames and
//! does not decide whether a file is complete or right: `transfer`, which calls it, does. The order that makes a receipt
//! true stands in [`commit`].

mod block;
mod commit;
mod dir;
mod existing;
mod failure;
mod housekeeping;
mod listing;
mod naming;
mod origin;
mod partial;
mod pipe;
mod room;
mod source;
mod spool;
mod stream;
#[cfg(test)]
mod tests;
mod tree;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::Mode;
use rustix::io::Errno;

pub(crate) use commit::{Committed, Done};
pub(crate) use existing::Existing;
pub(crate) use failure::Failure;
pub(crate) use listing::{Listed, Shared};
pub(crate) use origin::{Named, Origin, Top};
pub(crate) use partial::Partial;
pub(crate) use pipe::{Pipe, Taken};
pub(crate) use source::Source;
pub(crate) use spool::{Held, Spool};
pub(crate) use stream::Stream;
pub use tree::Skipped;
pub(crate) use tree::{Found, Tree};

use crate::config::{Config, IfExists, BLOCK_BYTES_LEAST, SAME_SIZE_FILES_MAX};
use crate::error::{Error, Refusal};
use crate::name::SafePath;
pub(crate) use commit::Directory;
use commit::{Answer, Committer, Job};
use dir::{Anchors, Dir, Kind, Place};
use housekeeping::Rounds;
use naming::names_for;
use partial::Identity;
use room::Room;

/// A moment as file systems keep it, since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// What an offer says of a file.
#[derive(Debug, Clone)]
pub(crate) struct Meta {
    pub(crate) path: SafePath,
    pub(crate) size: u64,
    pub(crate) mtime: Time,
    /// As the sender has it; [`Store`] takes the lower nine bits, under its umask.
    pub(crate) mode: u32,
    /// The CRC of the content of a small file; what tells a stream from another; 0 for others.
    pub(crate) content_crc: u32,
    /// The size is not known: it is [`Meta::UNKNOWN_SIZE`] until the end has come.
    pub(crate) is_stream: bool,
}

impl Meta {
    /// The size of a stream whose end has not come.
    pub(crate) const UNKNOWN_SIZE: u64 = u64::MAX;

    /// At most one block (PROTOCOL 5.3).
    pub(crate) fn is_small(&self) -> bool {
        self.size <= BLOCK_BYTES_LEAST
    }
}

/// One `--dir`. Its handle is opened once: whatever becomes of its name later, files go where it was.
pub(crate) struct Store {
    root: Arc<Dir>,
    /// As the user named it, for this side's log.
    path: PathBuf,
    config: Config,
    umask: Mode,
    room: Arc<Room>,
    anchors: Arc<Anchors>,
    rounds: Rounds,
    committer: Committer,
}

impl Store {
    /// Opens the directory, and begins to remove what partials are too old in it.
    ///
    /// # Errors
    /// [`Error::File`] when it is not there, no directory, or can't be written.
    pub(crate) fn open(dir: &Path, config: &Config) -> Result<Store, Error> {
        let failed = |action| move |source: Errno| Error::File { action, path: dir.to_owned(), source: source.into() };
        let root = Arc::new(Dir::open(dir).map_err(failed("open"))?);
        root.check_writable().map_err(failed("write to"))?;
        let rounds = Rounds::new(config.keep_partials);
        // Whoever only gets something has no directory of its own to keep.
        if config.take_offers {
            rounds.make(&root);
        }
        let anchors = Arc::new(Anchors::default());
        Ok(Store {
            path: dir.to_owned(),
            umask: umask(),
            room: Arc::new(Room::new(config.min_free)),
            committer: Committer::new(Arc::clone(&root), Arc::clone(&anchors), config.fsync),
            root,
            config: config.clone(),
            anchors,
            rounds,
        })
    }

    /// What can be said of an offer before a file is made for it; gives what it may be equal to. A file whose like may be there
    /// already is let in though the disk is full or its name is taken, so that a repeated command is harmless.
    pub(crate) fn admit(&self, meta: &Meta) -> Result<Vec<Existing>, Failure> {
        self.check_size(if meta.is_stream { 0 } else { meta.size })?;
        let place = self.find(&meta.path)?;
        let candidates = match &place {
            Some(place) if !meta.is_stream => self.same_size(meta, place)?,
            _ => Vec::new(),
        };
        if !candidates.is_empty() {
            return Ok(candidates);
        }
        if self.refuses_name(meta)? {
            return Err(Refusal::Exists.into());
        }
        let dir = place.as_ref().map_or(&self.root, |place| &place.dir);
        let identity = Identity::of(meta);
        // Of a small file nothing is kept that a later run could use.
        let partial_s = place.as_ref().filter(|_| !meta.is_small());
        let held_bytes = partial_s.map_or(0, |place| identity.bytes_on_disk(&place.dir));
        let needed_bytes = if meta.is_stream { 0 } else { meta.size.saturating_sub(held_bytes) };
        self.make_room(dir, &identity, || self.room.fits(dir, needed_bytes))?;
        Ok(candidates)
    }

    /// No more files come for now: lets go of what would be at hand for the next.
    pub(crate) fn rest(&self) {
        self.anchors.let_go();
    }

    /// Whether a file may be so long; asked of a stream as it grows.
    pub(crate) fn check_size(&self, bytes: u64) -> Result<(), Failure> {
        if bytes > self.config.max_file {
            return Err(Refusal::TooBig(self.config.max_file).into());
        }
        Ok(())
    }

    /// Regular files of the offered size under its name or, where names are numbered, a numbered one: their content may be
    /// equal. Each is opened when it is first read.
    fn same_size(&self, meta: &Meta, place: &Arc<Place>) -> Result<Vec<Existing>, Failure> {
        let mut found = Vec::new();
        for name in names_for(meta.path.file_name(), self.config.if_exists) {
            let entry =
                place.dir.entry(name.as_os_str()).map_err(|error| self.failure("look at", &meta.path, error))?;
            let Some(entry) = entry else { break };
            if entry.kind == Kind::File && entry.size == meta.size {
                let path = meta.path.with_file_name(name);
                let label = self.label(&path);
                found.push(Existing::new(Arc::clone(place), path, &entry, label));
            }
            if found.len() == SAME_SIZE_FILES_MAX {
                break;
            }
        }
        Ok(found)
    }

    /// Whether the name is taken by what may neither be replaced nor numbered; for a caller that has found no equal.
    pub(crate) fn refuses_name(&self, meta: &Meta) -> Result<bool, Failure> {
        if self.config.if_exists == IfExists::Rename {
            return Ok(false);
        }
        let Some(place) = self.find(&meta.path)? else { return Ok(false) };
        let entry = place.dir.entry(meta.path.file_name().as_os_str());
        let entry = entry.map_err(|error| self.failure("look at", &meta.path, error))?;
        // What is put in the place of a directory would take everything in it.
        let may_replace = |kind| self.config.if_exists == IfExists::Replace && kind != Kind::Directory;
        Ok(entry.is_some_and(|entry| !may_replace(entry.kind)))
    }

    /// The partial of this file that nobody uses, or a new one, in a directory that is made where it is missing. Its room is
    /// reserved until it is committed or dropped.
    pub(crate) fn open_partial(&self, meta: &Meta) -> Result<Partial, Failure> {
        if self.refuses_name(meta)? {
            return Err(Refusal::Exists.into());
        }
        if self.config.take_offers {
            self.rounds.make(&self.root);
        }
        let place = Place::make(&self.root, meta.path.directories(), &self.anchors)
            .map_err(|error| self.failure("make a directory for", &meta.path, error))?;
        let identity = Identity::of(meta);
        let mut partial = Partial::open(place, meta, &identity, &self.room, self.label(&meta.path), self.config.fsync)
            .map_err(|error| self.failure("make a file for", &meta.path, error))?;
        let dir = Arc::clone(partial.dir());
        self.make_room(&dir, &identity, || partial.reserve())?;
        Ok(partial)
    }

    /// Gives a complete file its name, as [`commit`] says, then calls `done`, whatever happens.
    pub(crate) fn commit(&self, partial: Partial, meta: Meta, done: Done) {
        let mode = self.mode(&meta);
        let if_exists = self.config.if_exists;
        self.committer.push(Job::commit(partial, meta, mode, if_exists, Answer::new(done)));
    }

    /// The directory of this name, made where it is missing.
    pub(crate) fn make_directory(&self, path: &SafePath) -> Result<Directory, Failure> {
        let place = Place::make(&self.root, path.names(), &self.anchors)
            .map_err(|error| self.failure("make the directory", path, error))?;
        let is_ours = self.anchors.is_ours(place.dir.id());
        Ok(Directory { place, path: path.clone(), is_ours, label: self.label(path) })
    }

    /// Gives a directory that this process made its mode and time, syncs it, its name and the directories above, then calls
    /// `done`, whatever happens.
    pub(crate) fn finish_directory(&self, directory: Directory, meta: &Meta, done: Done) {
        let mode = self.mode(meta);
        self.committer.push(Job::finish_directory(directory, mode, meta.mtime, Answer::new(done)));
    }

    /// Syncs a file that was there, its name and its directories, then calls `done`, whatever happens.
    pub(crate) fn confirm(&self, existing: Existing, done: Done) {
        self.committer.push(Job::confirm(existing, Answer::new(done)));
    }

    /// Where a path's directory is; `None` when it is not there.
    fn find(&self, path: &SafePath) -> Result<Option<Arc<Place>>, Failure> {
        Place::find(&self.root, path.directories(), &self.anchors)
            .map(|place| place.map(Arc::new))
            .map_err(|error| self.failure("enter the directory of", path, error))
    }

    /// Asks `fits` again after the oldest partial went, until it says yes or none is left to go.
    fn make_room(&self, dir: &Dir, identity: &Identity, mut fits: impl FnMut() -> bool) -> Result<(), Failure> {
        if fits() {
            return Ok(());
        }
        for dir in [&self.root, dir] {
            while housekeeping::remove_oldest(dir, identity) {
                if fits() {
                    return Ok(());
                }
            }
        }
        Err(Refusal::NoRoom.into())
    }

    fn mode(&self, meta: &Meta) -> Mode {
        Mode::from_raw_mode(meta.mode & 0o777 & !self.umask.as_raw_mode())
    }

    fn failure(&self, action: &'static str, path: &SafePath, error: Errno) -> Failure {
        Failure::new(action, self.label(path), error)
    }

    /// A path as this side's log shows it.
    fn label(&self, path: &SafePath) -> PathBuf {
        naming::below(&self.path, path)
    }
}

/// Without /proc the only way to learn the umask is to set it: once, as two at a time would see each other's.
fn umask() -> Mode {
    static UMASK: OnceLock<Mode> = OnceLock::new();
    *UMASK.get_or_init(|| {
        let umask = rustix::process::umask(Mode::RWXG | Mode::RWXO);
        rustix::process::umask(umask);
        umask
    })
}
