//! Where a file that is sent is, so that it is found again after it was closed: a sender with many offers keeps no handle for
//! each.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::dir::Dir;
use super::naming::below;
use super::{Source, Stream, Time};
use crate::error::{Error, Result};
use crate::name::SafePath;

/// See the module.
#[derive(Clone)]
pub(crate) enum Origin {
    /// As this side's user named it: a link is followed.
    Path(PathBuf),
    /// Below a directory, where no link is followed: what others put there leads nowhere else.
    Below(Arc<Top>, SafePath),
}

/// What the user named to be sent.
pub(crate) enum Named {
    File(Origin),
    /// A directory, with all that is in it.
    Tree(Arc<Top>),
    /// A FIFO or a device.
    Stream(Stream),
}

impl Named {
    /// Looks at a path, and follows a link.
    ///
    /// # Errors
    /// [`Error::File`] for what is not there, can't be read, or is a socket.
    pub(crate) fn look(path: &Path) -> Result<Named> {
        let metadata =
            std::fs::metadata(path).map_err(|source| Error::File { action: "open", path: path.to_owned(), source })?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Ok(Named::Tree(Arc::new(Top::open(path)?)));
        }
        if kind.is_fifo() || kind.is_char_device() || kind.is_block_device() {
            return Ok(Named::Stream(Stream::of_path(path, metadata.mode() & 0o777)));
        }
        Source::open(path)?;
        Ok(Named::File(Origin::Path(path.to_owned())))
    }
}

/// A directory whose content is sent.
pub(crate) struct Top {
    pub(super) dir: Arc<Dir>,
    /// As this side's user named it.
    pub(super) path: PathBuf,
}

impl Top {
    /// Opens the directory that the user named; a link may lead to it.
    ///
    /// # Errors
    /// [`Error::File`].
    pub(crate) fn open(path: &Path) -> Result<Top> {
        let dir = Dir::open(path).map_err(failed("open", path.to_owned()))?;
        Ok(Top { dir: Arc::new(dir), path: path.to_owned() })
    }
}

impl Origin {
    /// As this side's log shows it.
    pub(crate) fn path(&self) -> PathBuf {
        match self {
            Origin::Path(path) => path.clone(),
            Origin::Below(top, path) => below(&top.path, path),
        }
    }

    /// Opens the file.
    ///
    /// # Errors
    /// [`Error::File`] where it can't be opened or is no regular file.
    pub(crate) fn open(&self) -> Result<Source> {
        match self {
            Origin::Path(path) => Source::open(path),
            Origin::Below(top, path) => {
                let file = open_below(&top.dir, path).map_err(failed("open", self.path()))?;
                Source::of(file, self.path())
            }
        }
    }

    /// Opens again, by its size and mtime, what was offered.
    ///
    /// # Errors
    /// As [`Origin::open`], and [`Error::SourceChanged`].
    pub(crate) fn reopen(&self, size: u64, mtime: Time) -> Result<Source> {
        self.open()?.offered_as(size, mtime)
    }
}

pub(super) fn open_below(top: &Arc<Dir>, path: &SafePath) -> std::result::Result<File, Errno> {
    let mut dir = Arc::clone(top);
    for name in path.directories() {
        dir = Arc::new(dir.enter(name)?);
    }
    dir.open_file(path.file_name().as_os_str(), OFlags::RDONLY).map(File::from)
}

/// For `map_err`, with what was tried on which path.
pub(super) fn failed(action: &'static str, path: PathBuf) -> impl FnOnce(Errno) -> Error {
    move |source| Error::File { action, path, source: source.into() }
}
