//! A file on its way out. It is only read, at any place and by any thread, and what it was when it was opened is what is sent.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::buffer::spare_capacity;
use rustix::fs::OFlags;
use rustix::io::{pread, retry_on_intr};

use super::block::block_crc;
use super::dir::file_system;
use super::{Stream, Time};
use crate::config::READ_BYTES;
use crate::error::{Error, Result};

/// File systems whose files are made as they are read (statfs(2) names the numbers): proc, sysfs, cgroup, cgroup2, debugfs,
/// tracefs, securityfs, configfs.
const MADE_AS_READ: [u32; 8] =
    [0x9fa0, 0x6265_6572, 0x0027_e0eb, 0x6367_7270, 0x6462_6720, 0x7472_6163, 0x7363_6673, 0x6265_6570];

/// See the module.
#[derive(Debug)]
pub(crate) struct Source {
    file: File,
    path: PathBuf,
    size: u64,
    mtime: Time,
    mode: u32,
}

impl Source {
    /// Opens a regular file. A link is followed, since it is this side's user who named it.
    ///
    /// # Errors
    /// [`Error::File`] where it can't be opened or is no regular file.
    pub(crate) fn open(path: &Path) -> Result<Source> {
        let failed = |action| move |source| Error::File { action, path: path.to_owned(), source };
        // A FIFO would wait for its other end.
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits();
        let flags = i32::try_from(flags).unwrap_or_default();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed("open"))?;
        Source::of(file, path.to_owned())
    }

    /// What was opened as `path`.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub(super) fn of(file: File, path: PathBuf) -> Result<Source> {
        let failed = |action| {
            let path = path.clone();
            move |source| Error::File { action, path, source }
        };
        let metadata = file.metadata().map_err(failed("look at"))?;
        if !metadata.is_file() {
            let kind = if metadata.is_dir() { io::ErrorKind::IsADirectory } else { io::ErrorKind::Unsupported };
            let what = if metadata.is_dir() { "it is a directory" } else { "it is not a regular file" };
            return Err(failed("send")(io::Error::new(kind, what)));
        }
        let mtime = mtime_of(&metadata);
        Ok(Source { file, path, size: metadata.size(), mtime, mode: metadata.mode() & 0o7777 })
    }

    /// The same file, as it was offered.
    ///
    /// # Errors
    /// As [`Source::check`].
    pub(super) fn offered_as(self, size: u64, mtime: Time) -> Result<Source> {
        let found = (self.size, self.mtime);
        let source = Source { size, mtime, ..self };
        source.compare(found)?;
        Ok(source)
    }

    /// Whether the size says nothing of the content: the files of /proc, /sys and the like say 0, or one page.
    pub(crate) fn is_stream(&self) -> bool {
        file_system(&self.file).is_some_and(|magic| MADE_AS_READ.contains(&magic))
            || (self.size == 0 && matches!(self.file.read_at(&mut [0], 0), Ok(1)))
    }

    /// Its content as a stream.
    pub(crate) fn into_stream(self) -> Stream {
        Stream::of_file(self.file, self.path, self.mode)
    }

    /// Bytes, when it was opened.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// When it had last been changed when it was opened.
    pub(crate) fn mtime(&self) -> Time {
        self.mtime
    }

    /// Permission bits, 07777.
    pub(crate) fn mode(&self) -> u32 {
        self.mode
    }

    /// Appends `length` bytes from `offset` to `out`, whose memory is not cleared for many.
    ///
    /// # Errors
    /// [`Error::SourceChanged`] where the file is shorter by now; [`Error::File`].
    pub(crate) fn append_from(&self, offset: u64, length: usize, out: &mut Vec<u8>) -> Result<()> {
        let (start, end) = (out.len(), out.len() + length);
        if length < READ_BYTES {
            out.resize(end, 0);
            let space = out.get_mut(start..).unwrap_or_default();
            return self.file.read_exact_at(space, offset).map_err(|error| self.failed("read", error));
        }
        out.reserve(length);
        // What is read is whatever there is room for.
        if out.capacity() > end + length / 4 {
            out.shrink_to(end);
        }
        while out.len() < end {
            let at = offset + u64::try_from(out.len() - start).unwrap_or(u64::MAX);
            match retry_on_intr(|| pread(&self.file, spare_capacity(out), at)) {
                Ok(0) => return Err(self.failed("read", io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) => return Err(self.failed("read", error.into())),
            }
        }
        out.truncate(end);
        Ok(())
    }

    /// The CRC of one block (PROTOCOL 5.3); `buffer` is scratch.
    ///
    /// # Errors
    /// As [`Source::append_from`].
    pub(crate) fn block_crc(&self, index: u64, buffer: &mut Vec<u8>) -> Result<u32> {
        block_crc(&self.file, self.size, index, buffer).map_err(|error| self.failed("read", error))
    }

    /// Whether it grew since it was opened: what was offered is there all the same.
    ///
    /// # Errors
    /// [`Error::SourceChanged`] when it is shorter, or as long with another mtime; [`Error::File`].
    pub(crate) fn check(&self) -> Result<bool> {
        let metadata = self.file.metadata().map_err(|error| self.failed("look at", error))?;
        self.compare((metadata.size(), mtime_of(&metadata)))
    }

    fn compare(&self, (size, mtime): (u64, Time)) -> Result<bool> {
        if size > self.size {
            return Ok(true);
        }
        if (size, mtime) == (self.size, self.mtime) {
            return Ok(false);
        }
        Err(Error::SourceChanged { path: self.path.clone() })
    }

    fn failed(&self, action: &'static str, source: io::Error) -> Error {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            return Error::SourceChanged { path: self.path.clone() };
        }
        Error::File { action, path: self.path.clone(), source }
    }
}

fn mtime_of(metadata: &Metadata) -> Time {
    Time { seconds: metadata.mtime(), nanoseconds: u32::try_from(metadata.mtime_nsec()).unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;
    use std::time::{Duration, SystemTime};

    fn source(content: &[u8]) -> (tempfile::TempDir, PathBuf, Source) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("source");
        fs::write(&path, content).unwrap();
        let source = Source::open(&path).unwrap();
        (root, path, source)
    }

    #[test]
    fn a_source_that_only_grew_is_what_was_offered() {
        let (_root, path, source) = source(b"abc");
        assert!(!source.check().unwrap());
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"def").unwrap();
        assert!(source.check().unwrap());
        let mut buffer = Vec::new();
        assert_eq!(source.block_crc(0, &mut buffer).unwrap(), crc32fast::hash(b"abc"));
        let again = Source::open(&path).unwrap().offered_as(source.size(), source.mtime()).unwrap();
        assert_eq!(again.block_crc(0, &mut buffer).unwrap(), crc32fast::hash(b"abc"));
        let other = Source::open(&path).unwrap().offered_as(7, source.mtime());
        assert!(matches!(other, Err(Error::SourceChanged { .. })));
    }

    #[test]
    fn a_source_that_is_shorter_changed() {
        let (_root, path, source) = source(b"abc");
        OpenOptions::new().write(true).open(&path).unwrap().set_len(2).unwrap();
        assert!(matches!(source.append_from(0, 3, &mut Vec::new()), Err(Error::SourceChanged { .. })));
        assert!(matches!(source.check(), Err(Error::SourceChanged { .. })));
    }

    #[test]
    fn a_source_as_long_with_another_time_changed() {
        let (_root, path, source) = source(b"abc");
        let later = SystemTime::now() + Duration::from_secs(10);
        OpenOptions::new().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert!(matches!(source.check(), Err(Error::SourceChanged { .. })));
    }

    #[test]
    fn a_link_is_followed_and_what_is_no_file_is_refused_at_once() {
        let (root, path, _) = source(b"abc");
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(Source::open(&link).unwrap().size(), 3);
        let fifo = root.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        for path in [root.path(), &fifo, Path::new("/dev/null"), Path::new("/nowhere")] {
            assert!(matches!(Source::open(path), Err(Error::File { .. })), "{path:?}");
        }
    }
}
