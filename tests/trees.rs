//! The real binary sends directories with all that is in them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use common::{assert_same_file, client, Scratch, Server};

const LONG_AGO: Duration = Duration::from_secs(1_000_000_000);

/// A tree of every sort: nested, empty, with odd names and modes; its times are long ago.
fn tree(scratch: &Scratch) -> String {
    let top = scratch.directory("src");
    for name in ["a/b/c", "empty", ".hidden"] {
        fs::create_dir_all(format!("{top}/{name}")).unwrap();
    }
    for (name, size) in [("a/small", 1), ("a/b/block", 262_144), ("a/b/c/large", 700_001), (".hidden/.x", 10)] {
        scratch.file(&format!("src/{name}"), size, size + 1);
    }
    fs::write(Path::new(&top).join(OsStr::from_bytes(b"caf\xe9 %s ' \\")), "bytes").unwrap();
    fs::set_permissions(format!("{top}/a/b"), Permissions::from_mode(0o750)).unwrap();
    fs::set_permissions(format!("{top}/empty"), Permissions::from_mode(0o500)).unwrap();
    for name in ["a/b/c", "a/b", "a", "empty", ".hidden", ""] {
        File::open(format!("{top}/{name}")).unwrap().set_modified(SystemTime::UNIX_EPOCH + LONG_AGO).unwrap();
    }
    top
}

/// Every path below a directory, in order.
fn paths(top: &Path) -> Vec<std::path::PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(top).unwrap().map(|entry| entry.unwrap().path()).collect();
    for path in paths.clone() {
        if path.is_dir() && !path.is_symlink() {
            paths.extend(self::paths(&path));
        }
    }
    paths.sort();
    paths
}

fn assert_same_tree(left: &str, right: &str) {
    let names = |top: &str| -> Vec<_> {
        paths(top.as_ref()).iter().map(|path| path.strip_prefix(top).unwrap().to_owned()).collect()
    };
    assert_eq!(names(left), names(right));
    for name in names(left) {
        let (left, right) = (Path::new(left).join(&name), Path::new(right).join(&name));
        let (ours, theirs) = (fs::metadata(&left).unwrap(), fs::metadata(&right).unwrap());
        assert_eq!(ours.modified().unwrap(), theirs.modified().unwrap(), "{name:?}");
        assert_eq!(ours.mode() & !0o022, theirs.mode() & !0o022, "{name:?}");
        if ours.is_file() {
            assert_same_file(left, right);
        }
    }
}

#[test]
fn a_tree_arrives_with_empty_directories_times_and_modes_and_again_is_harmless() {
    let scratch = Scratch::new();
    let (source, inbox) = (tree(&scratch), scratch.directory("inbox"));
    let server = Server::start(&["--dir", &inbox]);
    for times in 1..=2 {
        let run = client(&["-q", "--to", &server.address(), "--file", &source, "--text", "all there"]);
        run.assert_code(0);
        run.assert(run.stdout.is_empty() && run.stderr.is_empty(), "-q is silent");
        assert_same_tree(&source, &format!("{inbox}/src"));
        assert_eq!(fs::read_dir(&inbox).unwrap().count(), 1, "after {times} times");
    }
}

#[test]
fn a_tree_can_have_another_name_and_one_without_a_name_has_that_of_the_place() {
    let scratch = Scratch::new();
    let (source, inbox) = (tree(&scratch), scratch.directory("inbox"));
    let server = Server::start(&["--dir", &inbox]);
    client(&["--to", &server.address(), "--as", "backup/today", "--file", &source]).assert_code(0);
    assert_same_tree(&source, &format!("{inbox}/backup/today"));
    client(&["--to", &server.address(), &format!("{source}/a/.")]).assert_code(0);
    assert_same_tree(&format!("{source}/a"), &format!("{inbox}/a"));
    client(&["--to", &server.address(), &format!("{source}/a/b/..")]).assert_code(0);
    assert_eq!(fs::read_dir(&inbox).unwrap().count(), 2, "it is a as well");
}

#[test]
fn links_and_special_files_are_left_out_and_the_way_to_keep_them_is_shown() {
    let scratch = Scratch::new();
    let (source, inbox) = (tree(&scratch), scratch.directory("inbox"));
    symlink("/etc/passwd", format!("{source}/a/link")).unwrap();
    symlink("/etc", format!("{source}/to-directory")).unwrap();
    let fifo = format!("{source}/fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    fs::write(format!("{source}/bad\nname"), "x").unwrap();
    let server = Server::start(&["--dir", &inbox]);
    let run = client(&["--to", &server.address(), &source, "--text", "after"]);
    run.assert_code(9);
    for line in ["a/link\": a symbolic link", "to-directory\": a symbolic link", "fifo\": a device, FIFO or socket"] {
        run.assert(run.stderr.contains(line), line);
    }
    run.assert(run.stderr.contains("bad\\nname\": a name that the other side"), "the bad name");
    run.assert(run.stderr.contains("tar c DIR | postwire client --to HOST --file - --as NAME.tar"), "the tar pipe");
    let json = client(&["--json", "--to", &server.address(), &source]);
    json.assert_code(9);
    json.assert(json.stdout.contains("{\"type\":\"skipped\",\"path\":\""), "JSON tells what is skipped");
    for name in ["a/link", "to-directory", "fifo", "bad\nname"] {
        fs::remove_file(format!("{source}/{name}")).unwrap();
        assert!(!Path::new(&format!("{inbox}/src/{name}")).exists());
    }
    let quiet = client(&["-q", "--to", &server.address(), &source]);
    quiet.assert_code(0);
}

#[test]
fn what_can_not_be_read_does_not_keep_the_rest_back() {
    if rustix::process::geteuid().is_root() && !can_drop_privileges() {
        return;
    }
    let scratch = Scratch::new();
    let (source, inbox) = (tree(&scratch), scratch.directory("inbox"));
    fs::set_permissions(format!("{source}/a/small"), Permissions::from_mode(0o0)).unwrap();
    fs::set_permissions(format!("{source}/a/b/c"), Permissions::from_mode(0o0)).unwrap();
    let server = Server::start(&["--dir", &inbox]);
    let run = as_nobody(&["client", "-q", "--to", &server.address(), &source]);
    run.assert_code(9);
    run.assert(run.stderr.lines().count() == 1, "-q is one line");
    assert_same_file(format!("{source}/a/b/block"), format!("{inbox}/src/a/b/block"));
    assert!(!Path::new(&format!("{inbox}/src/a/small")).exists());
}

/// Root may read everything, so the sender is somebody else.
fn as_nobody(arguments: &[&str]) -> common::Run {
    let mut command = match rustix::process::geteuid().is_root() {
        true => {
            let mut command = std::process::Command::new("setpriv");
            command.args(["--reuid=65534", "--clear-groups", "--inh-caps=-all", common::BINARY]);
            command
        }
        false => std::process::Command::new(common::BINARY),
    };
    command.args(arguments);
    common::Running::spawn(command).wait()
}

fn can_drop_privileges() -> bool {
    // The place of the tests and the binary must be open to others.
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid=65534", "--clear-groups", common::BINARY, "--version"]);
    let tmp_is_open = fs::metadata(std::env::temp_dir()).is_ok_and(|metadata| metadata.mode() & 0o005 == 0o005);
    tmp_is_open && command.output().is_ok_and(|output| output.status.success())
}

#[test]
fn a_directory_that_was_there_keeps_its_mode_and_what_is_in_it() {
    let scratch = Scratch::new();
    let (source, inbox) = (tree(&scratch), scratch.directory("inbox"));
    let private = scratch.directory("inbox/src/empty");
    fs::write(format!("{private}/kept"), "x").unwrap();
    fs::set_permissions(&private, Permissions::from_mode(0o711)).unwrap();
    let server = Server::start(&["--dir", &inbox]);
    client(&["--to", &server.address(), &source]).assert_code(0);
    assert_eq!(fs::metadata(&private).unwrap().mode() & 0o777, 0o711);
    assert_eq!(fs::read(format!("{private}/kept")).unwrap(), b"x");
}

#[test]
fn a_file_where_a_directory_should_be_is_not_replaced() {
    let scratch = Scratch::new();
    let (source, inbox) = (tree(&scratch), scratch.directory("inbox"));
    scratch.directory("inbox/src");
    fs::write(format!("{inbox}/src/a"), "a file").unwrap();
    let server = Server::start(&["--dir", &inbox, "--if-exists", "replace"]);
    let run = client(&["--to", &server.address(), &source]);
    run.assert_code(9);
    assert_eq!(fs::read(format!("{inbox}/src/a")).unwrap(), b"a file");
    assert!(Path::new(&format!("{inbox}/src/.hidden/.x")).exists());
}

#[test]
fn the_server_s_console_sends_trees_too() {
    let scratch = Scratch::new();
    let (source, inbox) = (tree(&scratch), scratch.directory("inbox"));
    let mut server = Server::start(&[]);
    let mut board = common::client_spawn(&["--to", &server.address(), "--nick", "b7", "--stay", "--dir", &inbox]);
    server.wait_stderr(|line| line.contains("b7 joined"));
    server.type_line(&format!("/send {source} @b7"));
    server.wait_stderr(|line| line.contains("large"));
    common::until("the whole tree", || (paths(inbox.as_ref()).len() == paths(source.as_ref()).len() + 1).then_some(()));
    server.terminate().assert_code(0);
    board.signal(common::Signal::TERM);
    board.wait().assert_code(0);
    assert_same_file(format!("{source}/a/b/c/large"), format!("{inbox}/src/a/b/c/large"));
}
