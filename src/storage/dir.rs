//! A directory by its handle: names below it can't lead elsewhere, and what happens to its own path does not matter.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{self, Access, AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::{Errno, Result};

use crate::name::SafeName;

/// An open directory.
pub(super) struct Dir {
    fd: OwnedFd,
}

impl Dir {
    /// Opens the directory that the user named; a link may lead to it.
    pub(super) fn open(path: &Path) -> Result<Dir> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        fs::open(path, flags, Mode::empty()).map(|fd| Dir { fd })
    }

    /// The directory `name` in this one; a link is not followed.
    pub(super) fn enter(&self, name: &SafeName) -> Result<Dir> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        fs::openat(&self.fd, name.as_os_str(), flags, Mode::empty()).map(|fd| Dir { fd })
    }

    /// As [`Dir::enter`], and makes it where it is missing; tells whether it did.
    pub(super) fn make(&self, name: &SafeName) -> Result<(Dir, bool)> {
        let made = match fs::mkdirat(&self.fd, name.as_os_str(), Mode::from_raw_mode(0o777)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error),
        };
        self.enter(name).map(|dir| (dir, made))
    }

    /// Whether files can be made here.
    pub(super) fn check_writable(&self) -> Result<()> {
        fs::accessat(&self.fd, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::empty())
    }

    /// Whether anything has this name, a dangling link included.
    pub(super) fn has(&self, name: &SafeName) -> Result<bool> {
        match fs::statat(&self.fd, name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether a directory has this name.
    pub(super) fn has_directory(&self, name: &SafeName) -> bool {
        fs::statat(&self.fd, name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    /// Bytes that an unprivileged program may still write.
    pub(super) fn free_bytes(&self) -> Result<u64> {
        let room = fs::fstatvfs(&self.fd)?;
        Ok(room.f_bavail.saturating_mul(room.f_frsize))
    }

    /// Opens `name` without following a link and without waiting for a FIFO's other end.
    pub(super) fn open_file(&self, name: &str, flags: OFlags, mode: u32) -> Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        fs::openat(&self.fd, name, flags, Mode::from_raw_mode(mode))
    }

    /// As [`Dir::open_file`], for reading.
    pub(super) fn open_to_read(&self, name: &SafeName) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        fs::openat(&self.fd, name.as_os_str(), flags, Mode::empty())
    }

    /// The device and number of what has this name.
    pub(super) fn identify(&self, name: &str) -> Result<(u64, u64)> {
        let stat = fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// The names in it that are UTF-8, as far as they can be read.
    pub(super) fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::Dir::read_from(&self.fd) else { return Vec::new() };
        let name = |entry: Result<fs::DirEntry>| entry.ok()?.file_name().to_str().ok().map(str::to_owned);
        entries.filter_map(name).collect()
    }

    /// Removes a name of ours.
    pub(super) fn unlink(&self, name: &str) -> Result<()> {
        fs::unlinkat(&self.fd, name, AtFlags::empty())
    }

    /// Moves our file `from` to `to`, where nothing may be.
    pub(super) fn rename_new(&self, from: &str, to: &SafeName) -> Result<()> {
        match fs::renameat_with(&self.fd, from, &self.fd, to.as_os_str(), RenameFlags::NOREPLACE) {
            // Not offered here: a link refuses a taken name as well.
            Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {
                fs::linkat(&self.fd, from, &self.fd, to.as_os_str(), AtFlags::empty())?;
                self.unlink(from)
            }
            result => result,
        }
    }

    /// Moves our file `from` to `to`, in the place of what is there.
    pub(super) fn rename_over(&self, from: &str, to: &SafeName) -> Result<()> {
        fs::renameat(&self.fd, from, &self.fd, to.as_os_str())
    }

    /// Syncs the names; `false` where the file system does not offer that.
    pub(super) fn sync(&self) -> Result<bool> {
        match fs::fsync(&self.fd) {
            Ok(()) => Ok(true),
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The file system's type, as `statfs` tells it.
    pub(super) fn file_system(&self) -> u64 {
        fs::fstatfs(&self.fd).map_or(0, |stat| u64::try_from(stat.f_type).unwrap_or_default())
    }

    /// Syncs the whole file system.
    pub(super) fn sync_file_system(&self) -> Result<()> {
        fs::syncfs(&self.fd)
    }
}
