//! What is in a directory that is shared, a page at a time, each directory before what it holds.

use std::sync::Arc;

use rustix::io::Errno;

use super::dir::{Dir, Entry, Kind};
use super::naming::below;
use super::origin::{Origin, Top};
use super::tree::Tree;
use super::Time;
use crate::config::{LIST_BYTES_MAX, LIST_ENTRIES_MAX, PATH_DEPTH_MAX};
use crate::name::{SafeName, SafePath};

/// One file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) path: SafePath,
    pub(crate) is_directory: bool,
    pub(crate) size: u64,
    pub(crate) mtime: Time,
}

/// A page, and whether more follow it.
#[derive(Default)]
pub(crate) struct Page {
    pub(crate) entries: Vec<Listed>,
    pub(crate) more: bool,
    bytes: usize,
}

impl Top {
    /// What follows `after` in the order of the listing. What can't be read, and what no receiver takes, is left out.
    pub(crate) fn list(&self, after: Option<&SafePath>) -> Page {
        let after: Vec<SafeName> = after.map(|path| path.names().to_vec()).unwrap_or_default();
        let mut page = Page::default();
        page.add(&self.dir, None, &after);
        page
    }

    /// What is at `path`; links are not followed.
    pub(crate) fn find(self: &Arc<Self>, path: &SafePath) -> Option<Shared> {
        let mut dir = Arc::clone(&self.dir);
        for name in path.directories() {
            dir = Arc::new(dir.enter(name).ok()?);
        }
        let entry = dir.entry(path.file_name().as_os_str()).ok()??;
        match entry.kind {
            Kind::File => {
                let name = SafePath::from(path.file_name().clone());
                Some(Shared::File(Origin::Below(Arc::clone(self), path.clone()), name))
            }
            Kind::Directory => {
                let top = Top { dir: Arc::new(dir.enter(path.file_name()).ok()?), path: below(&self.path, path) };
                Tree::new(Arc::new(top), SafePath::from(path.file_name().clone())).ok().map(Shared::Tree)
            }
            Kind::Link | Kind::Other => None,
        }
    }
}

/// What is shared under a path, with its own last name.
pub(crate) enum Shared {
    File(Origin, SafePath),
    Tree(Tree),
}

impl Page {
    /// Adds what follows `after`, which is below `dir`; stops when the page is full.
    fn add(&mut self, dir: &Dir, prefix: Option<&SafePath>, after: &[SafeName]) {
        let mut names: Vec<SafeName> =
            dir.names().unwrap_or_default().iter().filter_map(|name| SafeName::parse(name).ok()).collect();
        names.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        let (first, rest) = after.split_first().map_or((None, &[][..]), |(first, rest)| (Some(first), rest));
        for name in names {
            let order = first.map(|first| name.as_bytes().cmp(first.as_bytes()));
            if self.more || order == Some(std::cmp::Ordering::Less) {
                continue;
            }
            let is_after = order != Some(std::cmp::Ordering::Equal);
            let path = match prefix {
                Some(prefix) => prefix.join(name.clone()),
                None => Ok(SafePath::from(name.clone())),
            };
            let (Ok(path), Ok(Some(entry))) = (path, dir.entry(name.as_os_str())) else { continue };
            if is_after && !self.push(&path, &entry) {
                return;
            }
            if entry.kind == Kind::Directory && path.names().len() < PATH_DEPTH_MAX {
                let inner: Result<Dir, Errno> = dir.enter(&name);
                if let Ok(inner) = inner {
                    self.add(&inner, Some(&path), if is_after { &[] } else { rest });
                }
            }
        }
    }

    /// `false` when the page was full before.
    fn push(&mut self, path: &SafePath, entry: &Entry) -> bool {
        if !matches!(entry.kind, Kind::File | Kind::Directory) {
            return true;
        }
        if self.entries.len() >= LIST_ENTRIES_MAX || self.bytes >= LIST_BYTES_MAX {
            self.more = true;
            return false;
        }
        self.bytes += path.to_bytes().len();
        let is_directory = entry.kind == Kind::Directory;
        let size = if is_directory { 0 } else { entry.size };
        self.entries.push(Listed { path: path.clone(), is_directory, size, mtime: entry.mtime });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn pages_follow_each_other_without_a_gap() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a/b/c", "a/b.d", "z"] {
            fs::create_dir_all(root.path().join(name)).unwrap();
        }
        for name in 0..LIST_ENTRIES_MAX + 10 {
            fs::write(root.path().join(format!("a/b/{name}")), "x").unwrap();
        }
        std::os::unix::fs::symlink("z", root.path().join("link")).unwrap();
        fs::write(root.path().join(".postwire-0123456789abcdef-0.part"), "x").unwrap();
        let top = Top::open(root.path()).unwrap();
        let mut paths: Vec<SafePath> = Vec::new();
        loop {
            let page = top.list(paths.last());
            paths.extend(page.entries.into_iter().map(|entry| entry.path));
            if !page.more {
                break;
            }
        }
        assert_eq!(paths.len(), LIST_ENTRIES_MAX + 10 + 5);
        let shown: Vec<String> = paths.iter().map(ToString::to_string).collect();
        assert_eq!(shown[..3], ["a", "a/b", "a/b/0"]);
        assert_eq!(shown[shown.len() - 3..], ["a/b/c", "a/b.d", "z"]);
        for (index, path) in paths.iter().enumerate().step_by(97) {
            assert_eq!(top.list(Some(path)).entries.first().map(|entry| &entry.path), paths.get(index + 1));
        }
    }

    #[test]
    fn a_page_has_no_more_bytes_than_one_path_more_than_the_limit() {
        let root = tempfile::tempdir().unwrap();
        let name_bytes = 250;
        let count = LIST_BYTES_MAX / name_bytes + 2;
        (0..count).for_each(|n| fs::write(root.path().join(format!("{n:0name_bytes$}")), "x").unwrap());
        let top = Top::open(root.path()).unwrap();
        let page = top.list(None);
        // 262 times 250 are less than 64 KiB, 263 times are more.
        assert_eq!((page.entries.len(), page.more), (LIST_BYTES_MAX.div_ceil(name_bytes), true));
        let rest = top.list(page.entries.last().map(|entry| &entry.path));
        assert_eq!((page.entries.len() + rest.entries.len(), rest.more), (count, false));
    }

    #[test]
    fn nothing_outside_is_found() {
        let (root, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(elsewhere.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), root.path().join("link")).unwrap();
        let top = Arc::new(Top::open(root.path()).unwrap());
        for path in ["link", "link/secret", "none"] {
            assert!(top.find(&SafePath::parse(path.as_bytes()).unwrap()).is_none(), "{path}");
        }
    }
}
