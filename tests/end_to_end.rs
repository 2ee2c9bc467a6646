//! The real binary, as a user starts it: files and exit codes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use common::{assert_same_file, client, client_spawn, until, Scratch, Server, BINARY};

const BLOCK: u64 = 262_144;

/// A server with a directory, and that directory.
fn server(scratch: &Scratch, more: &[&str]) -> (Server, String) {
    let inbox = scratch.directory("inbox");
    let mut arguments = vec!["--dir", inbox.as_str()];
    arguments.extend(more);
    (Server::start(&arguments), inbox)
}

#[test]
fn files_of_every_size_arrive_exactly_with_time_and_mode() {
    let scratch = Scratch::new();
    let (server, inbox) = server(&scratch, &[]);
    let sizes = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7, 64 * 1024 * 1024];
    let files: Vec<String> = sizes.iter().map(|&size| scratch.file(&format!("f{size}"), size, size + 1)).collect();
    fs::set_permissions(&files[1], fs::Permissions::from_mode(0o4750)).unwrap();
    let address = server.address();
    let mut arguments = vec!["--to", address.as_str()];
    arguments.extend(files.iter().map(String::as_str));
    client(&arguments).assert_code(0);
    for (file, size) in files.iter().zip(sizes) {
        let stored = format!("{inbox}/f{size}");
        assert_same_file(file, &stored);
        let (ours, theirs) = (fs::metadata(file).unwrap(), fs::metadata(&stored).unwrap());
        assert_eq!((ours.mtime(), ours.mtime_nsec()), (theirs.mtime(), theirs.mtime_nsec()));
    }
    let mode = fs::metadata(format!("{inbox}/f1")).unwrap().mode() & 0o7777;
    assert_eq!(mode & 0o7027, 0, "setuid or more than the sender gave: {mode:o}");
    assert_eq!(fs::read_dir(inbox).unwrap().count(), sizes.len(), "no partial is left");
}

#[test]
fn a_thousand_small_files_go_in_one_command() {
    let scratch = Scratch::new();
    let (server, inbox) = server(&scratch, &[]);
    let files: Vec<String> = (0..1000_u64).map(|n| scratch.file(&format!("s{n}"), n * 7, n + 1)).collect();
    let address = server.address();
    let mut arguments = vec!["-q", "--to", address.as_str()];
    arguments.extend(files.iter().map(String::as_str));
    let run = client(&arguments);
    run.assert_code(0);
    assert!(run.stdout.is_empty() && run.stderr.is_empty(), "-q is silent");
    for (n, file) in files.iter().enumerate() {
        assert_same_file(file, format!("{inbox}/s{n}"));
    }
}

#[test]
fn fifty_clients_send_at_once() {
    let scratch = Scratch::new();
    let (server, inbox) = server(&scratch, &[]);
    let address = server.address();
    let files: Vec<String> = (0..50_u64).map(|n| scratch.file(&format!("c{n}"), 1_000_000 + n, n + 1)).collect();
    let clients: Vec<_> = files.iter().map(|file| client_spawn(&["--to", &address, "--file", file])).collect();
    for mut client in clients {
        client.wait().assert_code(0);
    }
    for (n, file) in files.iter().enumerate() {
        assert_same_file(file, format!("{inbox}/c{n}"));
    }
}

#[test]
fn a_repeated_command_finds_the_file_there() {
    let scratch = Scratch::new();
    let (server, inbox) = server(&scratch, &[]);
    let address = server.address();
    for size in [0, 1000, 3 * BLOCK + 5] {
        let file = scratch.file(&format!("f{size}"), size, 3);
        client(&["--to", &address, &file]).assert_code(0);
        let again = client(&["--to", &address, &file]);
        again.assert_code(0);
        again.assert(again.stderr.contains("already there"), "it says so");
    }
    assert_eq!(fs::read_dir(inbox).unwrap().count(), 3);
}

#[test]
fn other_content_gets_a_number_and_an_equal_numbered_one_counts() {
    let scratch = Scratch::new();
    let (server, inbox) = server(&scratch, &[]);
    let address = server.address();
    for size in [500, 2 * BLOCK] {
        let name = format!("a{size}.tar.gz");
        for seed in [1, 2, 2, 3] {
            let file = scratch.file(&name, size, seed);
            client(&["--to", &address, &file]).assert_code(0);
        }
        assert_same_file(scratch.file("second", size, 2), format!("{inbox}/a{size}-1.tar.gz"));
        assert_same_file(scratch.file("third", size, 3), format!("{inbox}/a{size}-2.tar.gz"));
    }
    assert_eq!(fs::read_dir(inbox).unwrap().count(), 6);
}

#[test]
fn if_exists_replaces_or_refuses() {
    for size in [500, 2 * BLOCK] {
        let scratch = Scratch::new();
        let (replacing, inbox) = server(&scratch, &["--if-exists", "replace"]);
        let send = |server: &Server, seed| client(&["--to", &server.address(), &scratch.file("a", size, seed)]);
        send(&replacing, 1).assert_code(0);
        send(&replacing, 2).assert_code(0);
        assert_same_file(scratch.file("second", size, 2), format!("{inbox}/a"));
        drop(replacing);
        let (refusing, inbox) = server(&scratch, &["--if-exists", "refuse"]);
        let refused = send(&refusing, 3);
        refused.assert_code(7);
        refused.assert(refused.stderr.contains("taken"), "the reason is told");
        send(&refusing, 2).assert_code(0);
        assert_same_file(scratch.file("second", size, 2), format!("{inbox}/a"));
        assert_eq!(fs::read_dir(inbox).unwrap().count(), 1, "no partial is left");
    }
}

#[test]
fn a_server_without_a_directory_refuses_files_and_takes_texts() {
    let scratch = Scratch::new();
    let mut server = Server::start(&[]);
    let address = server.address();
    let refused = client(&["--to", &address, &scratch.file("a", 10, 1)]);
    refused.assert_code(7);
    refused.assert(refused.stderr.contains("--dir"), "the missing option is named");
    client(&["--to", &address, "--nick", "ann", "--text", "hello"]).assert_code(0);
    server.wait_stdout(|line| line == "ann: hello");
}

#[test]
fn a_text_after_a_file_goes_only_when_that_file_is_stored() {
    let scratch = Scratch::new();
    let (mut server, inbox) = server(&scratch, &[]);
    let address = server.address();
    let file = scratch.file("a", 3 * BLOCK, 1);
    client(&["--to", &address, "--nick", "n", "--file", &file, "--text", "stored"]).assert_code(0);
    server.wait_stdout(|line| line == "n: stored");
    assert!(fs::metadata(format!("{inbox}/a")).is_ok());
    let missing = scratch.path("missing");
    client(&["--to", &address, "--file", &missing, "--text", "never"]).assert_code(8);
    let some = client(&["--to", &address, "--file", &missing, "--file", &file]);
    some.assert_code(9);
    let run = server.terminate();
    run.assert(!run.stdout.contains("never"), "a text after a failed file is not said");
}

#[test]
fn what_cannot_be_reached_or_is_mistyped_has_its_code_and_one_line() {
    // Nothing listens there; a port just given back may still be open in a child that another test forks.
    let free = "127.0.0.9:1";
    let nobody = client(&["--to", free, "--text", "x"]);
    nobody.assert_code(3);
    common::client_fed(&["--to", free], b"x\n").assert_code(3);
    common::client_fed(&["--to", free], b"").assert_code(3);
    let no_name = client(&["--to", "no-such-host.invalid", "--text", "x"]);
    no_name.assert_code(3);
    let wrong = client(&["--to", "localhost", "--max-file", "lots", "x"]);
    wrong.assert_code(2);
    wrong.assert(wrong.stderr.lines().count() == 1 && wrong.stderr.contains("--max-file"), "one line names the option");
    client(&["--to", "localhost", "--no-such-option"]).assert_code(2);
}

#[test]
fn a_link_named_client_is_that_subcommand() {
    let scratch = Scratch::new();
    let (server, inbox) = server(&scratch, &[]);
    let link = scratch.path("client");
    std::os::unix::fs::symlink(BINARY, &link).unwrap();
    let file = scratch.file("a", 10, 1);
    let done = Command::new(&link).args(["--to", &server.address(), "--file", &file]).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    assert_same_file(&file, format!("{inbox}/a"));
}

#[test]
fn a_job_leaves_the_stdin_of_its_loop_alone() {
    let scratch = Scratch::new();
    let (server, inbox) = server(&scratch, &[]);
    let files: Vec<String> = (1..=3_u64).map(|n| scratch.file(&format!("w{n}"), 100, n)).collect();
    let list = scratch.path("list");
    fs::write(&list, files.join("\n") + "\n").unwrap();
    let script =
        format!("while read f; do '{BINARY}' client -q --to {} --file \"$f\"; done < '{list}'", server.address());
    assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    assert_eq!(fs::read_dir(inbox).unwrap().count(), 3);
}

#[test]
fn json_is_one_object_a_line() {
    let scratch = Scratch::new();
    let inbox = scratch.directory("inbox");
    let mut server = Server::start(&["--json", "--dir", &inbox]);
    let listening = server.wait_stdout(|line| line.contains("\"listening\""));
    assert!(listening.contains(&format!("\"port\":{}", server.port())), "{listening}");
    let file = scratch.file("a", 1234, 1);
    let sent = client(&["--json", "--to", &server.address(), "--file", &file]);
    sent.assert_code(0);
    sent.assert(sent.stdout.lines().all(|line| line.starts_with('{') && line.ends_with('}')), "objects only");
    sent.assert(sent.stdout.contains("\"durable\":true") && sent.stdout.contains("\"bytes\":1234"), "a receipt");
    server.wait_stdout(|line| line.contains("\"receipt\"") && line.contains("\"stored\":\"a\""));
}

#[test]
fn a_killed_sender_resumes_with_the_same_command() {
    let scratch = Scratch::new();
    let (mut server, inbox) = server(&scratch, &["-v"]);
    let file = scratch.file("big", 256 * 1024 * 1024, 1);
    let mut sending = client_spawn(&["--to", &server.address(), "--file", &file]);
    let partial_holds = |bytes| {
        fs::read_dir(&inbox).unwrap().any(|entry| entry.unwrap().metadata().is_ok_and(|meta| meta.len() >= bytes))
    };
    let deadline = std::time::Instant::now() + common::DEADLINE;
    while !partial_holds(16 * 1024 * 1024) {
        assert!(std::time::Instant::now() < deadline, "nothing arrives");
        std::thread::yield_now();
    }
    sending.kill();
    // Until the server has noticed, the partial belongs to the old connection.
    server.wait_stderr(|line| line.contains("disconnected"));
    client(&["--to", &server.address(), "--file", &file]).assert_code(0);
    assert_same_file(&file, format!("{inbox}/big"));
    assert_eq!(fs::read_dir(inbox).unwrap().count(), 1, "no partial is left");
}

#[test]
#[ignore = "slow: over 4 GiB"]
fn a_file_over_4_gib_arrives() {
    let scratch = Scratch::new();
    let (mut server, inbox) = server(&scratch, &[]);
    let path = scratch.path("huge");
    let file = fs::File::create(&path).unwrap();
    file.set_len((4 << 30) + 12345).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"the end", (4 << 30) + 12338).unwrap();
    let mut sending = client_spawn(&["--to", &server.address(), "--file", &path]);
    server.wait_stderr(|line| line.contains("huge"));
    sending.wait().assert_code(0);
    assert_same_file(&path, format!("{inbox}/huge"));
}

#[test]
fn partials_that_nobody_continues_go_after_a_while_wherever_they_are() {
    let scratch = Scratch::new();
    let inbox = scratch.directory("inbox");
    fs::create_dir_all(format!("{inbox}/a/b")).unwrap();
    let old = [".postwire-0123456789abcdef-0.part", "a/b/.postwire-0123456789abcdef-1.part"];
    let kept = ["a/b/.postwire-notes.part", "a/b/file"];
    for name in old.iter().chain(&kept) {
        fs::write(format!("{inbox}/{name}"), "x").unwrap();
    }
    let changed = fs::metadata(format!("{inbox}/{}", old[1])).unwrap().ctime();
    let is_old = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() > changed.unsigned_abs() + 1;
    until("the partials are more than a second old", || is_old().then_some(()));
    let server = Server::start(&["--dir", &inbox, "--keep-partials", "1s"]);
    let is_there = |name: &&str| Path::new(&format!("{inbox}/{name}")).exists();
    until("the partials are gone", || (!old.iter().any(is_there)).then_some(()));
    assert!(kept.iter().all(is_there));
    server.terminate().assert_code(0);
}
