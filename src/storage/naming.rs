//! Which name a complete file gets: its own, a numbered one, or that of what it replaces; and how it gets it in one step.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::io::{Errno, Result};

use super::dir::Dir;
use super::failure::is_not_offered;
use crate::config::{IfExists, NUMBERED_NAMES_MAX};
use crate::name::{SafeName, SafePath};
use crate::worker::Lock;

/// The names that a file may get, in the order in which they are tried.
pub(super) fn names_for(name: &SafeName, if_exists: IfExists) -> impl Iterator<Item = SafeName> + '_ {
    let last = if if_exists == IfExists::Rename { NUMBERED_NAMES_MAX } else { 0 };
    std::iter::once(name.clone()).chain((1..=last).map(|number| name.numbered(number)))
}

/// What became of a partial.
pub(super) enum Named<Equal> {
    /// It has this name.
    Moved(SafeName),
    /// Its like has a name already, and it still has its own.
    Equal(Equal),
}

/// Moves the partial `from` to `name`, or to what stands for it. Where a name is taken `find_equal` says whether by its like, as
/// another run of the same command may have been faster. `EXIST` when no name is free.
pub(super) fn give_name<Equal>(
    dir: &Dir,
    from: &OsStr,
    name: &SafeName,
    if_exists: IfExists,
    find_equal: impl Fn(&SafeName) -> Option<Equal>,
) -> Result<Named<Equal>> {
    if if_exists == IfExists::Replace {
        return match dir.rename_over(from, name.as_os_str()) {
            // Nothing takes the place of a directory.
            Err(Errno::ISDIR) => Err(Errno::EXIST),
            result => result.map(|()| Named::Moved(name.clone())),
        };
    }
    for name in names_for(name, if_exists) {
        match rename_new(dir, from, name.as_os_str()) {
            Err(Errno::EXIST) => {
                if let Some(equal) = find_equal(&name) {
                    return Ok(Named::Equal(equal));
                }
            }
            result => return result.map(|()| Named::Moved(name)),
        }
    }
    Err(Errno::EXIST)
}

/// A path below a directory, as this side's log shows it.
pub(super) fn below(top: &Path, path: &SafePath) -> PathBuf {
    top.join(path.names().iter().map(SafeName::as_os_str).collect::<PathBuf>())
}

fn rename_new(dir: &Dir, from: &OsStr, to: &OsStr) -> Result<()> {
    match dir.rename_new(from, to) {
        Err(error) if is_not_offered(error) => link_new(dir, from, to),
        result => result,
    }
}

/// Where a rename can't be told not to replace: a link can't.
fn link_new(dir: &Dir, from: &OsStr, to: &OsStr) -> Result<()> {
    match dir.link(from, to) {
        Err(error) if is_not_offered(error) => look_and_rename(dir, from, to),
        Err(error) => Err(error),
        Ok(()) => {
            // The file has its name. The other one, if it can't go now, is never used again, as it has two links.
            let _ = dir.unlink(from);
            Ok(())
        }
    }
}

/// Where there are no links either (FUSE, shared folders of virtual machines). The lock keeps our own transfers apart;
/// another program could still take the name in between. A placeholder could not be overtaken, but would leave an
/// empty file with a real name at a power cut.
fn look_and_rename(dir: &Dir, from: &OsStr, to: &OsStr) -> Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.take();
    if dir.entry(to)?.is_some() {
        return Err(Errno::EXIST);
    }
    dir.rename_over(from, to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    type Way = fn(&Dir, &OsStr, &OsStr) -> Result<()>;

    #[test]
    fn no_way_of_naming_replaces_unasked() {
        let ways: [Way; 3] = [rename_new, link_new, look_and_rename];
        for way in ways {
            let root = tempfile::tempdir().unwrap();
            let dir = Dir::open(root.path()).unwrap();
            fs::write(root.path().join("new"), "new").unwrap();
            fs::write(root.path().join("old"), "old").unwrap();
            assert_eq!(way(&dir, "new".as_ref(), "old".as_ref()), Err(Errno::EXIST));
            assert_eq!(fs::read(root.path().join("old")).unwrap(), b"old");
            assert_eq!(way(&dir, "new".as_ref(), "free".as_ref()), Ok(()));
            assert_eq!(fs::read(root.path().join("free")).unwrap(), b"new");
            assert!(!root.path().join("new").exists());
        }
    }

    #[test]
    fn only_renaming_tries_numbers() {
        let name = SafeName::parse(b"a.tar.gz").unwrap();
        let names = |if_exists| names_for(&name, if_exists).take(3).map(|name| name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(IfExists::Rename), ["a.tar.gz", "a-1.tar.gz", "a-2.tar.gz"]);
        let all = names_for(&name, IfExists::Rename);
        assert_eq!(u32::try_from(all.count()), Ok(1 + NUMBERED_NAMES_MAX));
        assert_eq!(names(IfExists::Replace), ["a.tar.gz"]);
        assert_eq!(names(IfExists::Refuse), ["a.tar.gz"]);
    }
}
