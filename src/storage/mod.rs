//! All file effects: [`Store`] is one directory that receives, [`Partial`] a file on its way in, [`Source`] one on its way out.
//!
//! Everything here may block and is called from disk threads, never from the thread that reads a socket. Nothing here knows
//! the wire: `transfer` calls it. The order that makes a receipt true stands in [`commit`].

mod commit;
mod dir;
mod existing;
mod housekeeping;
mod partial;
mod source;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::Mode;

pub(crate) use commit::{Committed, Done};
pub(crate) use existing::Existing;
pub(crate) use partial::Partial;
pub(crate) use source::Source;

use crate::config::{Config, IfExists, BLOCK_BYTES_LEAST, NUMBERED_NAMES_MAX};
use crate::error::{Error, Refusal, Result};
use crate::name::{SafeName, SafePath};
use commit::{Commit, Committer};
use dir::Dir;

/// Seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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
    pub(crate) mode: u32,
    /// The CRC of a small file's content.
    pub(crate) content_crc: u32,
}

impl Meta {
    /// At most one block.
    pub(crate) fn is_small(&self) -> bool {
        self.size <= BLOCK_BYTES_LEAST
    }
}

/// Why this side's disk refuses: what the peer is told, and what only this side learns.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) refusal: Refusal,
    pub(crate) cause: Option<Error>,
}

/// One `--dir`. Its handle is opened once; whatever becomes of its name later, files go where it was.
pub(crate) struct Store {
    root: Arc<Dir>,
    path: PathBuf,
    if_exists: IfExists,
    max_file: u64,
    min_free: u64,
    fsync: bool,
    umask: u32,
    committer: Committer,
}

impl Store {
    /// Opens the directory.
    ///
    /// # Errors
    /// [`Error::File`] when it is not there, no directory, or not writable.
    pub(crate) fn open(path: &Path, config: &Config) -> Result<Store> {
        let file_error =
            |action, error: rustix::io::Errno| Error::File { action, path: path.to_owned(), source: error.into() };
        let root = Dir::open(path).map_err(|error| file_error("open", error))?;
        root.check_writable().map_err(|error| file_error("write to", error))?;
        housekeeping::remove_old_partials(&root, config.keep_partials);
        // The only way to learn the umask without /proc is to set it.
        let umask = rustix::process::umask(Mode::from_raw_mode(0o077));
        rustix::process::umask(umask);
        Ok(Store {
            root: Arc::new(root),
            path: path.to_owned(),
            if_exists: config.if_exists,
            max_file: config.max_file,
            min_free: config.min_free,
            fsync: config.fsync,
            umask: umask.as_raw_mode(),
            committer: Committer::new(),
        })
    }

    /// What can be said of an offer without touching a file.
    pub(crate) fn admit(&self, meta: &Meta) -> std::result::Result<(), Failure> {
        if meta.size > self.max_file {
            return Err(Failure { refusal: Refusal::TooBig(self.max_file), cause: None });
        }
        let free = self.root.free_bytes().map_err(|error| self.failure("look at the room of", error))?;
        if meta.size.saturating_add(self.min_free) > free {
            return Err(Failure { refusal: Refusal::NoRoom, cause: None });
        }
        Ok(())
    }

    /// Regular files of the offered size under its name or a numbered one, in that order: their content may be equal.
    pub(crate) fn same_size(&self, meta: &Meta) -> std::result::Result<Vec<Existing>, Failure> {
        const CANDIDATES_MAX: usize = 16;
        let mut found = Vec::new();
        let Some(dir) = self.find_directory(&meta.path)? else { return Ok(found) };
        for name in numbered_names(meta.path.file_name()) {
            if !dir.has(&name).map_err(|error| self.failure("look at", error))? {
                break;
            }
            let existing = Existing::open(Arc::clone(&dir), meta.path.with_file_name(name), meta.size);
            found.extend(existing.map_err(|error| self.failure("open", error))?);
            if found.len() == CANDIDATES_MAX {
                break;
            }
        }
        Ok(found)
    }

    /// Whether the name is taken and may not be replaced or numbered.
    pub(crate) fn refuses_name(&self, meta: &Meta) -> std::result::Result<bool, Failure> {
        if self.if_exists != IfExists::Refuse {
            return Ok(false);
        }
        let Some(dir) = self.find_directory(&meta.path)? else { return Ok(false) };
        dir.has(meta.path.file_name()).map_err(|error| self.failure("look at", error))
    }

    /// The partial of this file that nobody uses, or a new one, in a directory that is made where it is missing.
    pub(crate) fn open_partial(&self, meta: &Meta) -> std::result::Result<Partial, Failure> {
        let mut dir = Arc::clone(&self.root);
        let mut made_in = Vec::new();
        for name in meta.path.directories() {
            let (inner, made) = dir.make(name).map_err(|error| self.failure("make a directory in", error))?;
            if made {
                made_in.push(Arc::clone(&dir));
            }
            dir = Arc::new(inner);
        }
        Partial::open(dir, made_in, meta, self.fsync).map_err(|error| self.failure("create a file in", error))
    }

    /// Gives a complete file its name; see [`commit`].
    pub(crate) fn commit(&self, partial: Partial, meta: Meta, done: Done) {
        let mode = meta.mode & 0o777 & !self.umask;
        let if_exists = self.if_exists;
        self.committer.push(Commit::Partial { partial, meta, mode, if_exists, fsync: self.fsync, done });
    }

    /// Syncs a file that was there.
    pub(crate) fn confirm(&self, existing: Existing, done: Done) {
        self.committer.push(Commit::Existing { existing, fsync: self.fsync, done });
    }

    fn find_directory(&self, path: &SafePath) -> std::result::Result<Option<Arc<Dir>>, Failure> {
        let mut dir = Arc::clone(&self.root);
        for name in path.directories() {
            match dir.enter(name) {
                Ok(inner) => dir = Arc::new(inner),
                Err(rustix::io::Errno::NOENT) => return Ok(None),
                Err(error) => return Err(self.failure("enter a directory of", error)),
            }
        }
        Ok(Some(dir))
    }

    fn failure(&self, action: &'static str, error: rustix::io::Errno) -> Failure {
        Failure::new(action, &self.path, error)
    }
}

impl Failure {
    /// The one table from the system's errors to what the peer is told.
    fn new(action: &'static str, path: &Path, error: rustix::io::Errno) -> Failure {
        use rustix::io::Errno;
        let refusal = match error {
            Errno::NOSPC | Errno::DQUOT => Refusal::NoRoom,
            Errno::FBIG => Refusal::TooBig(0),
            Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::NOTDIR | Errno::LOOP | Errno::ISDIR | Errno::NOENT => {
                Refusal::NotWritable
            }
            Errno::NAMETOOLONG => Refusal::BadName,
            _ => Refusal::Failed,
        };
        Failure { refusal, cause: Some(Error::File { action, path: path.to_owned(), source: error.into() }) }
    }
}

/// The name, and what stands for it when it is taken.
fn numbered_names(name: &SafeName) -> impl Iterator<Item = SafeName> + '_ {
    std::iter::once(name.clone()).chain((1..NUMBERED_NAMES_MAX).map(|number| name.numbered(number)))
}

#[cfg(test)]
mod tests;
