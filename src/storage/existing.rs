//! A file that was there before, to be compared with what is offered, so that a repeated command is harmless.
//!
//! It is only read, and opened when it is first read: many candidates of one name cost no more handles than are compared.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustix::fs::{fadvise, fsync, Advice, OFlags};
use rustix::io::{retry_on_intr, Errno, Result};

use super::block::{block_crc, crc};
use super::dir::{Entry, Id, Kind, Place};
use super::failure::{errno_of, is_not_offered, Failure};
use super::{Meta, Partial};
use crate::config::block_bytes;
use crate::name::SafePath;

/// A regular file of the offered size.
pub(crate) struct Existing {
    place: Arc<Place>,
    path: SafePath,
    size: u64,
    id: Id,
    file: OnceLock<File>,
    /// As this side's log shows it.
    label: PathBuf,
}

impl Existing {
    pub(super) fn new(place: Arc<Place>, path: SafePath, entry: &Entry, label: PathBuf) -> Existing {
        Existing { place, path, size: entry.size, id: entry.id, file: OnceLock::new(), label }
    }

    /// The candidate whose content is a small file's. One that can't be read is as good as different.
    pub(crate) fn find_equal_small(candidates: Vec<Existing>, meta: &Meta) -> Option<Existing> {
        let mut buffer = Vec::new();
        candidates.into_iter().find(|existing| existing.crc(&mut buffer).is_ok_and(|crc| crc == meta.content_crc))
    }

    /// What has a name in a partial's directory by now, if it is a whole file like that partial.
    pub(super) fn find_like(partial: &Partial, path: SafePath) -> Option<Existing> {
        let entry = partial.dir().entry(path.file_name().as_os_str()).ok()??;
        let size = Entry::of(partial.file()).ok()?.size;
        if entry.kind != Kind::File || entry.size != size {
            return None;
        }
        let label = partial.label().with_file_name(path.file_name().as_os_str());
        let existing = Existing::new(Arc::clone(partial.place()), path, &entry, label);
        let mut buffer = Vec::new();
        let blocks = size.div_ceil(block_bytes(size));
        let is_like = (0..blocks).all(|index| match partial.block_crc(index, &mut buffer) {
            Ok(crc) => existing.block_crc(index, &mut buffer).is_ok_and(|other| other == crc),
            Err(_) => false,
        });
        is_like.then_some(existing)
    }

    /// The path it has below the directory.
    pub(crate) fn path(&self) -> &SafePath {
        &self.path
    }

    /// The CRC of one block; `buffer` is scratch. A failure is as good as a difference.
    pub(crate) fn block_crc(&self, index: u64, buffer: &mut Vec<u8>) -> std::result::Result<u32, Failure> {
        let file = self.file().map_err(|error| self.failure(error))?;
        block_crc(file, self.size, index, buffer).map_err(|error| self.failure(errno_of(&error)))
    }

    /// The CRC of all of it; `buffer` is scratch.
    fn crc(&self, buffer: &mut Vec<u8>) -> std::result::Result<u32, Failure> {
        let file = self.file().map_err(|error| self.failure(error))?;
        crc(file, 0, self.size, buffer).map_err(|error| self.failure(errno_of(&error)))
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// As this side's log shows it.
    pub(super) fn label(&self) -> &PathBuf {
        &self.label
    }

    /// Whether a sync of the directory's file system reaches it: something may be mounted on a file.
    pub(super) fn is_with_its_directory(&self) -> bool {
        self.id.device == self.place.dir.id().device
    }

    /// Syncs content and inode; `false` where that is not offered. A failed sync leaves pages that read well and are not on the
    /// disk: they are let go, so that the next comparison is with the disk.
    pub(super) fn sync(&self) -> Result<bool> {
        let file = self.file()?;
        match retry_on_intr(|| fsync(file)) {
            Ok(()) => Ok(true),
            Err(error) if is_not_offered(error) => Ok(false),
            Err(error) => {
                let _ = fadvise(file, 0, None, Advice::DontNeed);
                Err(error)
            }
        }
    }

    /// The file of that size that was found, and no other that took its name since.
    pub(super) fn file(&self) -> Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = self.place.dir.open_file(self.path.file_name().as_os_str(), OFlags::RDONLY)?;
        let entry = Entry::of(&file)?;
        if entry.id != self.id || entry.size != self.size {
            return Err(Errno::STALE);
        }
        Ok(self.file.get_or_init(|| File::from(file)))
    }

    fn failure(&self, error: Errno) -> Failure {
        Failure::new("read", self.label.clone(), error)
    }
}
