//! What is in a directory that is sent: its files, in the order of their names, and each directory after what it holds, so
//! that its time is the last thing to be set. Links and special files are left out.

use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::vec::IntoIter;

use rustix::io::Errno;

use super::dir::{Dir, Entry, Kind};
use super::origin::{failed, Origin, Top};
use super::Time;
use crate::error::{Error, Result};
use crate::name::{SafeName, SafePath};

/// Walks through a tree, a few handles and one directory's names a level at a time.
pub(crate) struct Tree {
    top: Arc<Top>,
    /// What the top is called on the other side.
    name: SafePath,
    /// The directories under way, outermost first.
    levels: Vec<Level>,
}

struct Level {
    dir: Arc<Dir>,
    names: IntoIter<Vec<u8>>,
    /// Below the top; `None` for the top itself.
    below: Option<SafePath>,
    name: SafePath,
}

/// One step of the walk.
pub(crate) enum Found {
    /// To be offered under `name`.
    File { origin: Origin, name: SafePath },
    /// All in it was found before; the top is the last.
    Directory { name: SafePath, path: PathBuf, mtime: Time, mode: u32, is_top: bool },
    /// Left out.
    Skipped { path: PathBuf, why: Skipped },
    /// Can't be looked at.
    Unreadable { path: PathBuf, name: SafePath, error: Error },
}

/// Why something in a tree is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Skipped {
    /// A symbolic link.
    Link,
    /// A device, FIFO or socket.
    Special,
    /// A name that no receiver takes, or more than 64 of them.
    Name,
}

impl Tree {
    /// The tree below `top`, which is called `name` on the other side.
    ///
    /// # Errors
    /// [`Error::File`] where the top can't be listed.
    pub(crate) fn new(top: Arc<Top>, name: SafePath) -> Result<Tree> {
        let level = Level::new(Arc::clone(&top.dir), None, name.clone()).map_err(failed("list", top.path.clone()))?;
        Ok(Tree { top, name, levels: vec![level] })
    }

    /// What the top is called on the other side.
    pub(crate) fn name(&self) -> &SafePath {
        &self.name
    }

    /// As this side's user named the top.
    pub(crate) fn path(&self) -> PathBuf {
        self.top.path.clone()
    }

    fn look_at(&mut self, bytes: Vec<u8>) -> Option<Found> {
        let level = self.levels.last()?;
        let path = || level.path(&self.top).join(std::ffi::OsString::from_vec(bytes.clone()));
        let entry = match level.dir.entry(std::ffi::OsString::from_vec(bytes.clone()).as_ref()) {
            Ok(entry) => entry?,
            Err(error) => return Some(Found::unreadable("look at", path(), &level.name, error)),
        };
        let skipped = |why| Some(Found::Skipped { path: path(), why });
        match entry.kind {
            Kind::Link => return skipped(Skipped::Link),
            Kind::Other => return skipped(Skipped::Special),
            Kind::File | Kind::Directory => {}
        }
        let Ok(file_name) = SafeName::parse(&bytes) else { return skipped(Skipped::Name) };
        let below = match &level.below {
            Some(below) => below.join(file_name.clone()),
            None => Ok(SafePath::from(file_name.clone())),
        };
        let (Ok(below), Ok(name)) = (below, level.name.join(file_name.clone())) else { return skipped(Skipped::Name) };
        if entry.kind == Kind::File {
            return Some(Found::File { origin: Origin::Below(Arc::clone(&self.top), below), name });
        }
        let open = || Level::new(Arc::new(level.dir.enter(&file_name)?), Some(below), name.clone());
        let inner = open();
        match inner {
            Ok(inner) => {
                self.levels.push(inner);
                None
            }
            Err(error) => Some(Found::unreadable("list", path(), &name, error)),
        }
    }

    fn leave(&self, level: Level) -> Found {
        let path = level.path(&self.top);
        match Entry::of(level.dir.as_fd()) {
            Ok(Entry { mtime, mode, .. }) => {
                Found::Directory { is_top: level.below.is_none(), name: level.name, path, mtime, mode }
            }
            Err(error) => Found::unreadable("look at", path, &level.name, error),
        }
    }
}

impl Iterator for Tree {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        loop {
            match self.levels.last_mut()?.names.next() {
                Some(bytes) => {
                    if let Some(found) = self.look_at(bytes) {
                        return Some(found);
                    }
                }
                None => {
                    let level = self.levels.pop()?;
                    return Some(self.leave(level));
                }
            }
        }
    }
}

impl Level {
    fn new(dir: Arc<Dir>, below: Option<SafePath>, name: SafePath) -> std::result::Result<Level, Errno> {
        let mut names = dir.names()?;
        names.sort_unstable();
        Ok(Level { dir, names: names.into_iter(), below, name })
    }

    fn path(&self, top: &Top) -> PathBuf {
        self.below.as_ref().map_or_else(|| top.path.clone(), |below| super::naming::below(&top.path, below))
    }
}

impl Found {
    fn unreadable(action: &'static str, path: PathBuf, name: &SafePath, error: Errno) -> Found {
        Found::Unreadable { error: failed(action, path.clone())(error), path, name: name.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn walk(root: &std::path::Path) -> Vec<String> {
        let top = Arc::new(Top::open(root).unwrap());
        let show = |found| match found {
            Found::File { name, .. } => format!("file {name}"),
            Found::Directory { name, is_top, .. } => format!("directory {name}{}", if is_top { " top" } else { "" }),
            Found::Skipped { path, why } => format!("{why:?} {}", path.strip_prefix(root).unwrap().display()),
            Found::Unreadable { path, .. } => format!("unreadable {}", path.strip_prefix(root).unwrap().display()),
        };
        Tree::new(top, SafePath::parse(b"t").unwrap()).unwrap().map(show).collect()
    }

    #[test]
    fn files_come_in_order_and_a_directory_after_what_it_holds() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("b/empty")).unwrap();
        for name in ["a", "b/x", "c"] {
            fs::write(root.path().join(name), name).unwrap();
        }
        symlink("/etc", root.path().join("link")).unwrap();
        fs::write(root.path().join("bad\nname"), "").unwrap();
        let found = walk(root.path());
        let expected = [
            "file t/a",
            "directory t/b/empty",
            "file t/b/x",
            "directory t/b",
            "Name bad\nname",
            "file t/c",
            "Link link",
            "directory t top",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_tree_that_is_too_deep_is_cut_there() {
        let root = tempfile::tempdir().unwrap();
        let deep: PathBuf = std::iter::repeat_n("d", 64).collect();
        fs::create_dir_all(root.path().join(&deep)).unwrap();
        let found = walk(root.path());
        assert_eq!(found.len(), 65, "63 directories below the top, the top, and the one that is cut");
        assert!(found[0].starts_with("Name d/d"));
    }

    #[test]
    fn what_became_a_link_since_is_not_followed() {
        let (root, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(root.path().join("d")).unwrap();
        for place in [root.path().join("d/f"), elsewhere.path().join("f")] {
            fs::write(place, "x").unwrap();
        }
        let top = Arc::new(Top::open(root.path()).unwrap());
        let mut tree = Tree::new(top, SafePath::parse(b"t").unwrap()).unwrap();
        let Some(Found::File { origin, .. }) = tree.next() else { panic!("a file is first") };
        assert!(origin.open().is_ok());
        fs::remove_dir_all(root.path().join("d")).unwrap();
        symlink(elsewhere.path(), root.path().join("d")).unwrap();
        assert!(origin.open().is_err());
    }
}
