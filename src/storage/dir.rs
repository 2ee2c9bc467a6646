//! Directories by their handles: a name below one can't lead elsewhere, and what becomes of its own path does not matter.
//!
//! [`Place`] walks to the directory of an offered path and follows no link on the way; [`Anchors`] remembers which directories
//! on it need no sync of their own any more. Every system call that takes a name is here, for the rest of `storage`.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::fs::{self, Access, AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::{Errno, Result};

use super::failure::is_not_offered;
use super::Time;
use crate::config::{DIRECTORIES_REMEMBERED, TRAIL_MAX};
use crate::name::SafeName;
use crate::worker::Lock;

/// An open directory.
pub(super) struct Dir {
    fd: OwnedFd,
    id: Id,
}

/// What the system knows a file or directory by, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Id {
    pub(super) device: u64,
    number: u64,
}

/// What has a name, or is open.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) id: Id,
    pub(super) kind: Kind,
    pub(super) size: u64,
    /// Bytes that it takes on the disk, room taken ahead of the data included.
    pub(super) disk_bytes: u64,
    pub(super) links: u64,
    owner: u32,
    /// When it last changed in any way, in seconds since 1970: unlike the mtime nobody can set it.
    pub(super) changed_seconds: i64,
    pub(super) mtime: Time,
    /// Permission bits, 07777.
    pub(super) mode: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Link,
    Other,
}

impl Dir {
    /// Opens the directory that the user named; a link may lead to it.
    pub(super) fn open(path: &Path) -> Result<Dir> {
        Dir::of(fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// The directory `name` in this one; a link is not followed.
    pub(super) fn enter(&self, name: &SafeName) -> Result<Dir> {
        let open = |how| {
            let flags = how | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            fs::openat(&self.fd, name.as_os_str(), flags, Mode::empty())
        };
        match open(OFlags::RDONLY) {
            // A drop box, where files may be put and not listed, has to do without a sync.
            Err(Errno::ACCESS) => Dir::of(open(OFlags::PATH)?),
            result => Dir::of(result?),
        }
    }

    /// As [`Dir::enter`], of what is made where it is missing; gives whether it was.
    fn enter_or_make(&self, name: &SafeName, make: bool) -> Result<(Dir, bool)> {
        match self.enter(name) {
            Err(Errno::NOENT) if make => {
                let made = match fs::mkdirat(&self.fd, name.as_os_str(), Mode::from_raw_mode(0o777)) {
                    // Another transfer was faster.
                    Err(Errno::EXIST) => false,
                    result => result.map(|()| true)?,
                };
                Ok((self.enter(name)?, made))
            }
            result => result.map(|dir| (dir, false)),
        }
    }

    fn of(fd: OwnedFd) -> Result<Dir> {
        let id = Entry::of(&fd)?.id;
        Ok(Dir { fd, id })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn id(&self) -> Id {
        self.id
    }

    /// Whether files can be made here.
    pub(super) fn check_writable(&self) -> Result<()> {
        fs::accessat(&self.fd, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::empty())
    }

    /// What has this name, a link included; `None` when nothing has.
    pub(super) fn entry(&self, name: &OsStr) -> Result<Option<Entry>> {
        match fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Entry::from(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens `name` without following a link and without waiting for a FIFO's other end.
    pub(super) fn open_file(&self, name: &OsStr, how: OFlags) -> Result<OwnedFd> {
        let flags = how | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        rustix::io::retry_on_intr(|| fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR))
    }

    /// The names here; those that can't be read are left out.
    pub(super) fn names(&self) -> Result<Vec<Vec<u8>>> {
        self.names_of(|_| true)
    }

    /// The names here that may be directories', which some file systems do not tell.
    pub(super) fn directories(&self) -> Result<Vec<Vec<u8>>> {
        self.names_of(|kind| matches!(kind, FileType::Directory | FileType::Unknown))
    }

    fn names_of(&self, wanted: impl Fn(FileType) -> bool) -> Result<Vec<Vec<u8>>> {
        let entries = fs::Dir::read_from(&self.fd)?.map_while(Result::ok);
        let is_itself = |name: &[u8]| name == b"." || name == b"..";
        let wanted = entries.filter(|entry| wanted(entry.file_type()) && !is_itself(entry.file_name().to_bytes()));
        Ok(wanted.map(|entry| entry.file_name().to_bytes().to_vec()).collect())
    }

    pub(super) fn unlink(&self, name: &OsStr) -> Result<()> {
        fs::unlinkat(&self.fd, name, AtFlags::empty())
    }

    /// Removes an empty directory.
    pub(super) fn remove_directory(&self, name: &OsStr) -> Result<()> {
        fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)
    }

    /// A second name for the same file; fails where the name is taken.
    pub(super) fn link(&self, from: &OsStr, to: &OsStr) -> Result<()> {
        fs::linkat(&self.fd, from, &self.fd, to, AtFlags::empty())
    }

    /// Moves a name, in one step, over what has the other one.
    pub(super) fn rename_over(&self, from: &OsStr, to: &OsStr) -> Result<()> {
        fs::renameat(&self.fd, from, &self.fd, to)
    }

    /// Moves a name, in one step; fails where the other one is taken.
    pub(super) fn rename_new(&self, from: &OsStr, to: &OsStr) -> Result<()> {
        fs::renameat_with(&self.fd, from, &self.fd, to, RenameFlags::NOREPLACE)
    }

    /// Syncs the names here; `false` where that is not offered.
    pub(super) fn sync(&self) -> Result<bool> {
        match fs::fsync(&self.fd) {
            Ok(()) => Ok(true),
            Err(error) if is_not_offered(error) || error == Errno::BADF => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Syncs everything on the file system.
    pub(super) fn sync_file_system(&self) -> Result<()> {
        fs::syncfs(&self.fd)
    }

    /// Bytes that an unprivileged program may still write; `None` where the file system does not know.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        let known = fs::fstatvfs(&self.fd).ok().filter(|room| room.f_blocks > 0)?;
        Some(known.f_bavail.saturating_mul(known.f_frsize))
    }

    /// Whether room that is taken ahead would be memory, cleared for what is written over it.
    pub(super) fn is_in_memory(&self) -> bool {
        self.file_system() == Some(TMPFS)
    }

    /// The file system's magic number, as in statfs(2).
    pub(super) fn file_system(&self) -> Option<u32> {
        file_system(&self.fd)
    }
}

/// As in statfs(2).
pub(super) const TMPFS: u32 = 0x0102_1994;

/// The magic number of the file system that something open is on, as in statfs(2).
#[allow(clippy::useless_conversion)] // Its type is another on other architectures.
pub(super) fn file_system(fd: impl AsFd) -> Option<u32> {
    let magic = i64::from(fs::fstatfs(fd).ok()?.f_type) & i64::from(u32::MAX);
    u32::try_from(magic).ok()
}

impl Entry {
    /// Whether it belongs to the user that this process acts as.
    pub(super) fn is_ours(&self) -> bool {
        self.owner == rustix::process::geteuid().as_raw()
    }

    pub(super) fn of(fd: impl AsFd) -> Result<Entry> {
        fs::fstat(fd).map(|stat| Entry::from(&stat))
    }
}

#[allow(clippy::useless_conversion, clippy::unnecessary_fallible_conversions)] // The fields' types are others elsewhere.
impl From<&Stat> for Entry {
    fn from(stat: &Stat) -> Entry {
        const SECTOR_BYTES: u64 = 512;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Link,
            _ => Kind::Other,
        };
        Entry {
            id: Id { device: stat.st_dev.into(), number: stat.st_ino.into() },
            kind,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            disk_bytes: u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(SECTOR_BYTES),
            links: stat.st_nlink.into(),
            owner: stat.st_uid,
            changed_seconds: i64::try_from(stat.st_ctime).unwrap_or(i64::MAX),
            mtime: Time {
                seconds: i64::try_from(stat.st_mtime).unwrap_or(i64::MAX),
                nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            },
            mode: stat.st_mode & 0o7777,
        }
    }
}

/// The directory that a path ends in.
pub(super) struct Place {
    pub(super) dir: Arc<Dir>,
    /// Directories to sync before a file in `dir` is durable, each with what it names.
    pub(super) unanchored: Vec<(Arc<Dir>, Id)>,
}

impl Place {
    /// Walks down from `root`; `None` where a directory is missing.
    pub(super) fn find(root: &Arc<Dir>, names: &[SafeName], anchors: &Anchors) -> Result<Option<Place>> {
        match Place::walk(root, names, anchors, false) {
            Err(Errno::NOENT) => Ok(None),
            result => result.map(Some),
        }
    }

    /// As [`Place::find`], and makes what is missing.
    pub(super) fn make(root: &Arc<Dir>, names: &[SafeName], anchors: &Anchors) -> Result<Place> {
        Place::walk(root, names, anchors, true)
    }

    fn walk(root: &Arc<Dir>, names: &[SafeName], anchors: &Anchors, make: bool) -> Result<Place> {
        let mut place = Place { dir: Arc::clone(root), unanchored: Vec::new() };
        // It is not locked while the disk is waited for: who comes meanwhile does without.
        let mut trail = std::mem::take(&mut *anchors.trail.take());
        for (level, name) in names.iter().enumerate() {
            let parent = Arc::clone(&place.dir);
            let (dir, made) = match trail.at(level, name, &parent) {
                Some(dir) => (dir, false),
                None => {
                    let (dir, made) = parent.enter_or_make(name, make)?;
                    let dir = Arc::new(dir);
                    trail.put(level, name, &dir);
                    (dir, made)
                }
            };
            let child = dir.id();
            if made {
                anchors.made(child);
            }
            if made || !anchors.hold(child) {
                anchors.forget(child);
                place.unanchored.push((parent, child));
            }
            place.dir = dir;
        }
        *anchors.trail.take() = trail;
        Ok(place)
    }
}

/// The directories that the last path led through, so that thousands of files in one of them do not open it thousands of times.
#[derive(Default)]
struct Trail(Vec<(SafeName, Arc<Dir>)>);

impl Trail {
    /// The directory that this name led to, while it still does.
    fn at(&self, level: usize, name: &SafeName, parent: &Dir) -> Option<Arc<Dir>> {
        let (_, dir) = self.0.get(level).filter(|(known, _)| known == name)?;
        let named = parent.entry(name.as_os_str()).ok()??;
        (named.id == dir.id).then(|| Arc::clone(dir))
    }

    fn put(&mut self, level: usize, name: &SafeName, dir: &Arc<Dir>) {
        self.0.truncate(level);
        if self.0.len() == level && level < TRAIL_MAX {
            self.0.push((name.clone(), Arc::clone(dir)));
        }
    }
}

/// What is remembered of directories.
#[derive(Default)]
pub(super) struct Anchors {
    /// Those whose names are known to be on the disk. One that was merely found there may have been made by a run that was
    /// killed before it synced the name, so each is synced into its parent once. What is forgotten is synced once more.
    synced: Mutex<HashSet<Id>>,
    /// Those that this process made: they alone get the mode and time that a peer says. What is forgotten keeps its own.
    made: Mutex<HashSet<Id>>,
    trail: Mutex<Trail>,
}

impl Anchors {
    /// Nothing is to be kept open.
    pub(super) fn let_go(&self) {
        self.trail.take().0.clear();
    }

    /// The name of this directory was synced.
    pub(super) fn add(&self, id: Id) {
        remember(&self.synced, id);
    }

    fn hold(&self, id: Id) -> bool {
        self.synced.take().contains(&id)
    }

    /// A number may be used again for another directory.
    fn forget(&self, id: Id) {
        self.synced.take().remove(&id);
    }

    fn made(&self, id: Id) {
        remember(&self.made, id);
    }

    /// Whether this process made it.
    pub(super) fn is_ours(&self, id: Id) -> bool {
        self.made.take().contains(&id)
    }
}

fn remember(ids: &Mutex<HashSet<Id>>, id: Id) {
    let mut ids = ids.take();
    if ids.len() >= DIRECTORIES_REMEMBERED {
        ids.clear();
    }
    ids.insert(id);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::SafePath;
    use std::os::unix::fs::symlink;

    fn walk(root: &Path, path: &str, anchors: &Anchors) -> Result<Place> {
        let path = SafePath::parse(path.as_bytes()).unwrap();
        Place::make(&Arc::new(Dir::open(root).unwrap()), path.directories(), anchors)
    }

    #[test]
    fn a_linked_directory_is_not_followed() {
        let (root, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(elsewhere.path(), root.path().join("a")).unwrap();
        let error = walk(root.path(), "a/b/file", &Anchors::default()).map(|_| ()).unwrap_err();
        assert!(matches!(error, Errno::NOTDIR | Errno::LOOP), "{error}");
        assert_eq!(elsewhere.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn each_directory_is_synced_into_its_parent_once() {
        let root = tempfile::tempdir().unwrap();
        let anchors = Anchors::default();
        let first = walk(root.path(), "a/b/file", &anchors).unwrap();
        assert_eq!(first.unanchored.len(), 2);
        // Not yet synced by the first, so the second has to.
        assert_eq!(walk(root.path(), "a/b/other", &anchors).unwrap().unanchored.len(), 2);
        first.unanchored.iter().for_each(|&(_, child)| anchors.add(child));
        assert_eq!(walk(root.path(), "a/b/other", &anchors).unwrap().unanchored.len(), 0);
        std::fs::remove_dir_all(root.path().join("a/b")).unwrap();
        assert_eq!(walk(root.path(), "a/b/file", &anchors).unwrap().unanchored.len(), 1);
    }

    #[test]
    fn no_more_directories_are_remembered_than_the_limit() {
        let ids = Mutex::default();
        for number in 0..u64::try_from(2 * DIRECTORIES_REMEMBERED + 1).unwrap() {
            remember(&ids, Id { device: 1, number });
            assert!((1..=DIRECTORIES_REMEMBERED).contains(&ids.take().len()));
        }
        assert_eq!(ids.take().len(), 1, "all are forgotten at once");
    }

    #[test]
    fn a_missing_directory_is_found_missing_and_not_made() {
        let root = tempfile::tempdir().unwrap();
        let path = SafePath::parse(b"a/file").unwrap();
        let dir = Arc::new(Dir::open(root.path()).unwrap());
        assert!(Place::find(&dir, path.directories(), &Anchors::default()).unwrap().is_none());
        assert!(!root.path().join("a").exists());
    }

    #[test]
    fn a_drop_box_can_be_entered_and_not_synced() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o300)).unwrap();
        let place = walk(root.path(), "a/file", &Anchors::default()).unwrap();
        // Root may read it all the same.
        assert_eq!(place.dir.sync(), Ok(rustix::process::geteuid().is_root()));
    }
}
