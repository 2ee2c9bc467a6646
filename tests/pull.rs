//! The real client lists and gets what a server shares.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;
#[path = "tools/proxy.rs"]
mod proxy;

use std::fs;
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use common::{assert_same_file, client, client_spawn, Run, Running, Scratch, Server, BINARY};
use proxy::{Faults, Line, Proxy};

/// A server that shares a directory with files and a tree, and that directory.
fn server(scratch: &Scratch, more: &[&str]) -> (Server, String) {
    let share = scratch.directory("share");
    fs::create_dir_all(format!("{share}/crash/old/empty")).unwrap();
    for (name, size) in [("core", 3_000_000), ("small", 10), ("crash/core", 300_000), ("crash/old/core", 1)] {
        scratch.file(&format!("share/{name}"), size, size + 1);
    }
    fs::set_permissions(format!("{share}/crash/old"), fs::Permissions::from_mode(0o750)).unwrap();
    (Server::start(&[&["--share", share.as_str()], more].concat()), share)
}

/// A client that is started in `here`.
fn client_in(here: &str, arguments: &[&str]) -> Run {
    let mut command = Command::new(BINARY);
    command.arg("client").args(arguments).current_dir(here);
    Running::spawn(command).wait()
}

#[test]
fn files_and_trees_come_here_or_where_dir_says() {
    let scratch = Scratch::new();
    let (server, share) = server(&scratch, &[]);
    let (here, there) = (scratch.directory("here"), scratch.directory("there"));
    let run = client_in(&here, &["--to", &server.address(), "--get", "core", "--get", "crash/", "--get", "small"]);
    run.assert_code(0);
    for name in ["core", "small", "crash/core", "crash/old/core"] {
        assert_same_file(format!("{share}/{name}"), format!("{here}/{name}"));
        let times = [&share, &here].map(|top| fs::metadata(format!("{top}/{name}")).unwrap().mtime());
        assert_eq!(times[0], times[1]);
    }
    assert!(Path::new(&format!("{here}/crash/old/empty")).is_dir());
    assert_eq!(fs::metadata(format!("{here}/crash/old")).unwrap().mode() & 0o777, 0o750);
    let run =
        client(&["-q", "--to", &server.address(), "--dir", &there, "--as", "b7/crash.core", "--get", "crash/core"]);
    run.assert_code(0);
    run.assert(run.stdout.is_empty() && run.stderr.is_empty(), "-q is silent");
    assert_same_file(format!("{share}/crash/core"), format!("{there}/b7/crash.core"));
    let again = client_in(&here, &["--to", &server.address(), "--get", "core"]);
    again.assert_code(0);
    again.assert(again.stderr.contains("already there"), "a repeated command is harmless");
}

#[test]
fn a_listing_shows_names_sizes_and_times() {
    let scratch = Scratch::new();
    let (server, share) = server(&scratch, &[]);
    symlink("/etc", format!("{share}/link")).unwrap();
    fs::write(format!("{share}/.postwire-0123456789abcdef-0.part"), "x").unwrap();
    fs::write(format!("{share}/\u{1b}[2J"), "x").unwrap();
    let run = client(&["--to", &server.address(), "--list"]);
    run.assert_code(0);
    let names: Vec<&str> = run.stdout.lines().map(|line| line.rsplit_once("  ").unwrap().1).collect();
    let expected = ["core", "crash/", "crash/core", "crash/old/", "crash/old/core", "crash/old/empty/", "small"];
    assert_eq!(names, expected);
    run.assert(run.stdout.starts_with("     3000000  20"), "size, then time");
    let json = client(&["--json", "--to", &server.address(), "--list"]);
    json.assert_code(0);
    let first = "{\"type\":\"entry\",\"kind\":\"file\",\"name\":\"core\",\"bytes\":3000000,\"mtime\":";
    json.assert(json.stdout.contains(first), "JSON has the same");
}

#[test]
fn a_long_listing_is_whole() {
    let scratch = Scratch::new();
    let (server, share) = server(&scratch, &[]);
    for number in 0..3000 {
        fs::write(format!("{share}/crash/{number:04}"), "").unwrap();
    }
    let run = client(&["--to", &server.address(), "--list"]);
    run.assert_code(0);
    assert_eq!(run.stdout.lines().count(), 3007);
    assert!((0..3000).all(|number| run.stdout.contains(&format!("  crash/{number:04}\n"))));
}

#[test]
fn what_is_not_shared_is_not_to_be_had() {
    let scratch = Scratch::new();
    let (server, share) = server(&scratch, &[]);
    fs::write(scratch.path("secret"), "secret").unwrap();
    symlink(scratch.path("secret"), format!("{share}/link")).unwrap();
    symlink("..", format!("{share}/up")).unwrap();
    let here = scratch.directory("here");
    for name in ["nothing", "link", "up/secret", "crash/none/core"] {
        let run = client_in(&here, &["--to", &server.address(), "--get", name]);
        run.assert_code(7);
        run.assert(run.stderr.contains("--list shows what there is"), "what to do");
    }
    for name in ["../secret", "/etc/passwd", "", "a//b"] {
        client_in(&here, &["--to", &server.address(), "--get", name]).assert_code(2);
    }
    let some = client_in(&here, &["--to", &server.address(), "--get", "nothing", "--get", "small"]);
    some.assert_code(9);
    assert_eq!(fs::read_dir(&here).unwrap().count(), 1);
    let silent = Server::start(&[]);
    for what in [&["--list"][..], &["--get", "x"]] {
        let run = client_in(&here, &[&["--to", &silent.address()], what].concat());
        run.assert_code(7);
        run.assert(run.stderr.contains("start it with --share DIR"), "what to do");
    }
}

#[test]
fn links_in_a_tree_are_left_out_and_said() {
    let scratch = Scratch::new();
    let (server, share) = server(&scratch, &[]);
    symlink("/etc/passwd", format!("{share}/crash/link")).unwrap();
    let here = scratch.directory("here");
    let run = client_in(&here, &["--to", &server.address(), "--get", "crash"]);
    run.assert_code(9);
    run.assert(run.stderr.contains("\"crash\": links and special files are left out (1)"), "how many");
    assert_same_file(format!("{share}/crash/core"), format!("{here}/crash/core"));
}

#[test]
fn getting_goes_on_after_each_break() {
    let scratch = Scratch::new();
    let (server, share) = server(&scratch, &[]);
    scratch.file("share/crash/large", 5_000_000, 77);
    let cut = |bytes| [Line::default(), Line { reset_after_bytes: Some(bytes), ..Line::default() }];
    let by_connection = [2_000_000, 100, 700_000, 1_500_000].map(cut).to_vec();
    let proxy = Proxy::start(server.address().parse().unwrap(), Faults { by_connection, ..Faults::default() });
    let here = scratch.directory("here");
    let address = proxy.address().to_string();
    let run = client_in(&here, &["--to", &address, "--retry", "20s", "--get", "crash", "--get", "core", "--list"]);
    run.assert_code(0);
    run.assert(run.stderr.contains("resumed "), "what came before the break did not travel again");
    assert_eq!(proxy.connections(), 5);
    for name in ["core", "crash/large", "crash/core", "crash/old/core"] {
        assert_same_file(format!("{share}/{name}"), format!("{here}/{name}"));
    }
    assert!(!fs::read_dir(&here)
        .unwrap()
        .any(|entry| { entry.unwrap().file_name().to_string_lossy().ends_with(".part") }));
}

#[test]
fn a_client_that_gets_takes_nothing_it_did_not_ask_for() {
    let scratch = Scratch::new();
    let (mut server, share) = server(&scratch, &[]);
    let here = scratch.directory("here");
    let line = Line { rate_bytes_per_second: Some(1_000_000), ..Line::default() };
    let faults = Faults { to_client: line, ..Faults::default() };
    let proxy = Proxy::start(server.address().parse().unwrap(), faults);
    let mut command = Command::new(BINARY);
    command.args(["client", "--nick", "b7", "--to", &proxy.address().to_string(), "--get", "core"]).current_dir(&here);
    let mut getting = Running::spawn(command);
    common::until("data", || fs::read_dir(&here).unwrap().next().map(drop));
    server.type_line(&format!("/send {share}/small @b7"));
    server.wait_stderr(|line| line.contains("it takes no files"));
    getting.wait().assert_code(0);
    assert_eq!(fs::read_dir(&here).unwrap().count(), 1);
}

#[test]
fn a_disk_that_can_not_be_written_here_is_exit_8() {
    let scratch = Scratch::new();
    let (server, _) = server(&scratch, &[]);
    let here = scratch.directory("here");
    let big = client_in(&here, &["--to", &server.address(), "--max-file", "1k", "--get", "core"]);
    big.assert_code(8);
    client(&["--to", &server.address(), "--dir", &scratch.path("missing"), "--get", "core"]).assert_code(8);
    fs::write(format!("{here}/crash"), "a file where a directory should be").unwrap();
    client_in(&here, &["--to", &server.address(), "--get", "crash"]).assert_code(8);
}

#[test]
fn a_log_text_follows_what_was_got() {
    let scratch = Scratch::new();
    let (mut server, _) = server(&scratch, &[]);
    let here = scratch.directory("here");
    client_in(&here, &["--to", &server.address(), "--get", "core", "--text", "got it"]).assert_code(0);
    server.wait_stdout(|line| line == "c1: got it");
    client_in(&here, &["--to", &server.address(), "--get", "none", "--text", "not this"]).assert_code(7);
    let run = server.terminate();
    run.assert(!run.stdout.contains("not this"), "not after a failure");
    drop(client_spawn(&["--to", "127.0.0.1:1", "--list"]));
}
