//! A file that is to be sent.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::existing::block_crc;
use super::Time;
use crate::error::{Error, Result};

/// An open source, and what it was when it was opened.
pub(crate) struct Source {
    file: File,
    path: PathBuf,
    size: u64,
    mtime: Time,
    mode: u32,
}

impl Source {
    /// Opens a regular file; links are followed, since the user named it.
    ///
    /// # Errors
    /// [`Error::File`].
    pub(crate) fn open(path: &Path) -> Result<Source> {
        let error = |action| move |source| Error::File { action, path: path.to_owned(), source };
        // A FIFO must not make us wait for its other end.
        let nonblocking = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or_default();
        let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(error("open"))?;
        let meta = file.metadata().map_err(error("open"))?;
        if !meta.is_file() {
            let what = if meta.is_dir() { "it is a directory" } else { "it is not a regular file" };
            return Err(error("send")(io::Error::new(io::ErrorKind::InvalidInput, what)));
        }
        let mtime = time_of(&meta);
        Ok(Source { file, path: path.to_owned(), size: meta.size(), mtime, mode: meta.mode() & 0o7777 })
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// When it was last changed.
    pub(crate) fn mtime(&self) -> Time {
        self.mtime
    }

    /// Permission bits.
    pub(crate) fn mode(&self) -> u32 {
        self.mode
    }

    /// Reads exactly this range.
    ///
    /// # Errors
    /// [`Error::SourceChanged`] where the file is shorter by now.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|error| self.read_error(error))
    }

    /// The CRC of one block of the size that it had when it was opened.
    ///
    /// # Errors
    /// As [`Source::read_at`].
    pub(crate) fn block_crc(&self, index: u64, size: u64, buffer: &mut Vec<u8>) -> Result<u32> {
        block_crc(&self.file, size, index, buffer).map_err(|error| self.read_error(error))
    }

    /// Whether the file only grew since it had `size` and `mtime`.
    ///
    /// # Errors
    /// [`Error::SourceChanged`] when it is shorter, or as long with another mtime.
    pub(crate) fn check(&self, size: u64, mtime: Time) -> Result<bool> {
        let meta = self.file.metadata().map_err(|error| self.read_error(error))?;
        match meta.size() {
            now if now > size => Ok(true),
            now if now == size && time_of(&meta) == mtime => Ok(false),
            _ => Err(Error::SourceChanged { path: self.path.clone() }),
        }
    }

    fn read_error(&self, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => Error::SourceChanged { path: self.path.clone() },
            _ => Error::File { action: "read", path: self.path.clone(), source },
        }
    }
}

fn time_of(meta: &std::fs::Metadata) -> Time {
    Time { seconds: meta.mtime(), nanoseconds: u32::try_from(meta.mtime_nsec()).unwrap_or_default() }
}
