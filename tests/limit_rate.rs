//! The real binary with `--limit-rate`: a file takes its time, and a text does not wait for it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::time::{Duration, Instant};

use common::{assert_same_file, client, client_spawn, Scratch, Server};

const MIB: u64 = 1024 * 1024;

#[test]
fn a_client_sends_no_faster_than_it_was_told() {
    let scratch = Scratch::new();
    let inbox = scratch.directory("inbox");
    let server = Server::start(&["--dir", &inbox]);
    // Two large files and small ones share the pace.
    let files: Vec<String> = (0..10_u64)
        .map(|number| scratch.file(&format!("f{number}"), if number < 2 { 600 * 1024 } else { 100 * 1024 }, number))
        .collect();
    let address = server.address();
    let mut arguments = vec!["--limit-rate", "1M", "--to", &address];
    arguments.extend(files.iter().map(String::as_str));
    let started = Instant::now();
    client(&arguments).assert_code(0);
    // 2,000 KiB; what a burst and a last chunk save is far less than the rest.
    assert!(started.elapsed() > Duration::from_millis(1500), "{:?}", started.elapsed());
    for (number, file) in files.iter().enumerate() {
        assert_same_file(file, format!("{inbox}/f{number}"));
    }
}

#[test]
fn a_server_has_one_pace_for_all_and_a_text_overtakes_the_file() {
    let scratch = Scratch::new();
    let mut server = Server::start(&["--limit-rate", "1M"]);
    let file = scratch.file("file", MIB, 1);
    let mut clients: Vec<_> = ["ann", "bob"]
        .map(|nick| {
            let (address, dir) = (server.address(), scratch.directory(nick));
            client_spawn(&["--json", "--to", &address, "--nick", nick, "--stay", "--count", "2", "--dir", &dir])
        })
        .into();
    for _ in 0..2 {
        server.wait_stderr(|line| line.ends_with(" joined"));
    }
    let started = Instant::now();
    server.type_line(&format!("/send {file}"));
    server.type_line("hello");
    for (client, nick) in clients.iter_mut().zip(["ann", "bob"]) {
        let run = client.wait();
        run.assert_code(0);
        let at = |what: &str| run.stdout.find(what).unwrap_or(usize::MAX);
        run.assert(at("\"text\":\"hello\"") < at("\"type\":\"receipt\""), "the text is not behind the file");
        assert_same_file(&file, scratch.path(&format!("{nick}/file")));
    }
    assert!(started.elapsed() > Duration::from_millis(1500), "{:?}", started.elapsed());
}
