//! The real binary: texts and files among several clients, and strangers at the door.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use postwire::wire::{CancelReason, Message, Peer, RunId, Text};

use common::raw::offer;
use common::{assert_same_file, client, client_spawn, Running, Scratch, Server};

/// A chat client in the room.
fn chat(server: &mut Server, nick: &str) -> Running {
    let client = client_spawn(&["--to", &server.address(), "--nick", nick]);
    server.wait_stderr(|line| line == format!("{nick} joined"));
    client
}

#[test]
fn what_is_said_in_the_room_reaches_everyone_once() {
    let mut server = Server::start(&[]);
    let (mut ann, mut bob) = (chat(&mut server, "ann"), chat(&mut server, "bob"));
    ann.type_line("hello \u{1b}[2J");
    bob.wait_stdout(|line| line == "ann: hello \\u{1b}[2J");
    server.wait_stdout(|line| line.starts_with("ann: hello"));
    server.type_line("from the server");
    ann.wait_stdout(|line| line == "server: from the server");
    bob.wait_stdout(|line| line == "server: from the server");
    ann.close_stdin();
    let ann = ann.wait();
    ann.assert_code(0);
    ann.assert(!ann.stdout.contains("ann:"), "nobody hears themselves");
    bob.close_stdin();
    let bob = bob.wait();
    assert_eq!(bob.stdout.matches("hello").count(), 1);
    assert_eq!(server.terminate().stdout.matches("hello").count(), 1);
}

#[test]
fn without_relay_texts_stay_between_server_and_sender() {
    let mut server = Server::start(&["--no-relay"]);
    let (mut ann, mut bob) = (chat(&mut server, "ann"), chat(&mut server, "bob"));
    ann.type_line("secret");
    server.wait_stdout(|line| line == "ann: secret");
    server.type_line("last");
    bob.wait_stdout(|line| line == "server: last");
    bob.close_stdin();
    let bob = bob.wait();
    bob.assert(!bob.stdout.contains("secret"), "not carried on");
}

#[test]
fn a_job_hears_nothing_and_is_announced_to_nobody() {
    let scratch = Scratch::new();
    let inbox = scratch.directory("inbox");
    let mut server = Server::start(&["--dir", &inbox]);
    let mut ann = chat(&mut server, "ann");
    let job = client(&["--to", &server.address(), "--nick", "job", "--file", &scratch.file("a", 1000, 1)]);
    job.assert_code(0);
    job.assert(job.stdout.is_empty(), "nothing is heard");
    server.type_line("after");
    ann.wait_stdout(|line| line == "server: after");
    ann.close_stdin();
    let ann = ann.wait();
    ann.assert(!ann.stderr.contains("job"), "nobody is told");
    let server = server.terminate();
    server.assert(!server.stderr.contains("job joined"), "not in the room");
}

#[test]
fn a_taken_nickname_gets_a_number() {
    let mut server = Server::start(&[]);
    let _first = chat(&mut server, "b7");
    let mut second = client_spawn(&["--to", &server.address(), "--nick", "b7"]);
    server.wait_stderr(|line| line == "b7-2 joined");
    second.wait_stderr(|line| line.contains("b7-2"));
}

#[test]
fn whoever_is_kicked_ends_and_does_not_come_back() {
    let mut server = Server::start(&[]);
    let (mut ann, mut bob) = (chat(&mut server, "ann"), chat(&mut server, "bob"));
    let mut stay = client_spawn(&["--to", &server.address(), "--nick", "stay", "--stay"]);
    server.wait_stderr(|line| line == "stay joined");
    server.type_line("/kick nobody");
    server.wait_stderr(|line| line == "nobody is called nobody");
    server.type_line("/kick ann");
    server.type_line("/kick stay");
    bob.wait_stderr(|line| line == "ann left");
    for kicked in [ann.wait(), stay.wait()] {
        kicked.assert_code(7);
        kicked.assert(kicked.stderr.contains("removed by the operator"), "it says why");
    }
    server.type_line("still here");
    bob.wait_stdout(|line| line == "server: still here");
    let server = server.terminate();
    assert_eq!(server.stderr.matches(" joined").count(), 3, "nobody came back");
}

#[test]
fn a_text_for_one_goes_to_nobody_else() {
    let mut server = Server::start(&[]);
    let (mut ann, mut bob) = (chat(&mut server, "ann"), chat(&mut server, "bob"));
    let send =
        |to: &str, text: &str| client(&["--to", &server.address(), "--nick", "job", "--for", to, "--text", text]);
    send("ann", "for ann").assert_code(0);
    ann.wait_stdout(|line| line == "job: for ann");
    let nobody = send("cat", "for cat");
    nobody.assert_code(7);
    nobody.assert(nobody.stderr.contains("nobody of that name"), "it says why");
    server.type_line("last");
    bob.wait_stdout(|line| line == "server: last");
    assert!(bob.find_stdout(|line| line.contains("for ann")).is_none());
}

#[test]
fn the_console_sends_files_to_whoever_takes_them() {
    let scratch = Scratch::new();
    let mut server = Server::start(&[]);
    let here = scratch.directory("here");
    let file = scratch.file("fw.bin", 5_000_000, 1);
    let mut stay = client_spawn(&["--to", &server.address(), "--nick", "b7", "--stay", "--dir", &here, "--count", "2"]);
    server.wait_stderr(|line| line == "b7 joined");
    let without = chat(&mut server, "b8");
    server.type_line(&format!("/send {file} @b7"));
    server.wait_stderr(|line| line.contains("fw.bin") && line.contains("b7") && line.contains("durable"));
    assert_same_file(&file, format!("{here}/fw.bin"));
    server.type_line(&format!("/send {file} @b8"));
    server.wait_stderr(|line| line.contains("b8") && line.contains("--dir"));
    server.type_line("done");
    stay.wait().assert_code(0);
    drop(without);
}

#[test]
fn a_text_passes_a_large_file_on_the_same_connection() {
    let scratch = Scratch::new();
    let mut server = Server::start(&[]);
    let here = scratch.directory("here");
    let file = scratch.file("big", 512 * 1024 * 1024, 1);
    let mut stay = client_spawn(&["--to", &server.address(), "--nick", "b7", "--stay", "--dir", &here, "--count", "2"]);
    server.wait_stderr(|line| line == "b7 joined");
    server.type_line(&format!("/send {file} @b7"));
    server.type_line("beside it");
    stay.wait_stdout(|line| line == "server: beside it");
    assert!(std::fs::metadata(format!("{here}/big")).is_err(), "the text came after the file");
    stay.wait().assert_code(0);
    assert_same_file(&file, format!("{here}/big"));
}

#[test]
fn a_client_that_stays_comes_back_after_the_server_does() {
    let mut server = Server::start(&[]);
    let port = server.port().to_string();
    let mut stay = client_spawn(&["--to", &server.address(), "--nick", "b7", "--stay", "--count", "1"]);
    server.wait_stderr(|line| line == "b7 joined");
    server.terminate();
    let listen = format!("127.0.0.1:{port}");
    let mut command = std::process::Command::new(common::BINARY);
    command.args(["server", "--listen", &listen]);
    let mut again = Running::spawn(command);
    again.wait_stderr(|line| line == "b7 joined");
    again.type_line("welcome back");
    stay.wait().assert_code(0);
    again.kill();
}

#[test]
fn strangers_are_refused_with_a_reason_and_the_server_goes_on() {
    let mut server = Server::start(&[]);
    let hello: [(&[u8], &str); 3] = [
        (b"GET / HTTP/1.1\r\n\r\n", "HTTP client"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "TLS"),
        (b"\x00\xff\x13\x37 random", "unknown bytes"),
    ];
    for (bytes, reason) in hello {
        let mut stranger = TcpStream::connect(server.address()).unwrap();
        stranger.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        stranger.read_to_end(&mut answer).unwrap();
        assert_eq!(answer.first(), Some(&0x84), "REFUSED");
        server.wait_stderr(|line| line.contains("refused") && line.contains(reason));
    }
    let mut silent = TcpStream::connect(server.address()).unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(14))).unwrap();
    let begin = Instant::now();
    let mut answer = Vec::new();
    silent.read_to_end(&mut answer).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(13), "the hello deadline is 10 s");
    server.wait_stderr(|line| line.contains("refused") && line.contains("timed out"));
    client(&["--to", &server.address(), "--text", "still here"]).assert_code(0);
}

const RUN: RunId = RunId([1; 16]);

/// A peer that says what it likes, in the room.
fn raw_peer(server: &Server) -> TcpStream {
    let mut bytes = Vec::new();
    Message::Hello { version_low: 1, version_high: 1, mode: 0 }.encode(&mut bytes);
    Message::Peer(Peer {
        run: RUN,
        in_room: true,
        takes_files: false,
        relays: false,
        text_bytes: 65_536,
        text_window_bytes: 65_536,
        chunk_bytes: 65_536,
        offers: 1,
        nickname: None,
    })
    .encode(&mut bytes);
    let mut peer = TcpStream::connect(server.address()).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    peer.write_all(&bytes).unwrap();
    // WELCOME, PEER and NAMED: PROTOCOL 2.1 wants nothing before them.
    peer.read_exact(&mut [0; 96]).unwrap();
    peer
}

/// A text of the raw peer, to nobody by name.
fn text(sequence: u64, text: impl Into<String>) -> Message {
    let text = text.into();
    Message::Text(Text { run: RUN, sequence, from: None, to: None, leave: false, to_room: false, text })
}

/// What a terminal obeys, or what changes or hides what else is seen: C0, DEL, C1, bidirectional, invisible.
fn hostile() -> String {
    let ranges = [0x01..=0x1f, 0x7f..=0x9f, 0x200b..=0x200f, 0x2028..=0x202e, 0x2060..=0x206f, 0xe0000..=0xe007f];
    let one_by_one = "\u{ad}\u{61c}\u{180e}\u{feff}\u{fff9}\u{3164}\u{1d173}";
    let clear_and_home = "\u{1b}[2J\u{1b}[H\u{1b}]0;title\u{7}\u{9b}31m";
    let chars = ranges.into_iter().flatten().filter_map(char::from_u32);
    clear_and_home.chars().chain(one_by_one.chars()).chain(chars).collect()
}

#[test]
fn nothing_that_a_peer_says_is_obeyed_by_a_terminal() {
    for more in [&["-vv"][..], &["-vv", "--json"]] {
        let scratch = Scratch::new();
        let inbox = scratch.directory("inbox");
        let mut server = Server::start(&[&["--dir", &inbox], more].concat());
        let address = server.address();
        let mut ann = client_spawn(&[&["--to", &address, "--nick", "ann"], more].concat());
        server.wait_either(|line| line.contains("ann") && line.contains("join"));
        let mut peer = raw_peer(&server);
        let mut bytes = Vec::new();
        let path = format!("a{}", hostile()).replace(['\n', '/'], "").into_bytes();
        text(1, hostile() + "end").encode(&mut bytes);
        Message::Offer(offer(1, 1, &path)).encode(&mut bytes);
        Message::Offer(offer(2, 1, b"bytes-\xff\x9b\xc2.bin")).encode(&mut bytes);
        Message::Cancel { transfer: 2, reason: CancelReason::Other(7) }.encode(&mut bytes);
        text(2, "last").encode(&mut bytes);
        peer.write_all(&bytes).unwrap();
        ann.wait_stdout(|line| line.contains("last"));
        server.wait_stdout(|line| line.contains("last"));
        server.wait_either(|line| line.contains("unsafe-name"));
        // Whoever does not say goodbye would be waited for.
        drop(peer);
        ann.close_stdin();
        let (ann, server) = (ann.wait(), server.terminate());
        for run in [ann, server] {
            let obeyed = |c: char| c != '\n' && !c.is_ascii_graphic() && hostile().contains(c);
            run.assert(!run.stdout.contains(obeyed) && !run.stderr.contains(obeyed), "nothing is obeyed");
            run.assert(!run.stdout_bytes.contains(&0xff) && run.stdout.contains("end"), "the text came");
        }
    }
}

#[test]
fn a_long_text_with_a_damaged_tail_ends_the_connection() {
    let server = Server::start(&[]);
    let mut peer = raw_peer(&server);
    let mut bytes = Vec::new();
    text(1, "x".repeat(60_000)).encode(&mut bytes);
    *bytes.last_mut().unwrap() ^= 1;
    peer.write_all(&bytes).unwrap();
    let mut answer = Vec::new();
    peer.read_to_end(&mut answer).unwrap();
    assert!(!answer.contains(&0x84), "REFUSED would tell a client not to try again");
    assert!(!server.terminate().stdout.contains("xxx"), "a flipped bit never reaches a text");
}

/// Accepts one connection, passes it to `talk`, and tells what a client that dialled it ended with.
fn dial_stranger(talk: impl FnOnce(TcpStream) + Send + 'static) -> common::Run {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || talk(listener.accept().unwrap().0));
    let run = client(&["--to", &address, "--text", "x"]);
    thread.join().unwrap();
    run
}

#[test]
fn a_client_that_dials_a_stranger_says_what_it_met() {
    let http = dial_stranger(|mut stream| {
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    });
    http.assert_code(5);
    http.assert(http.stderr.contains("HTTP server"), "it is named");
    let echo = dial_stranger(|mut stream| {
        let mut heard = [0; 1024];
        let count = stream.read(&mut heard).unwrap();
        let _ = stream.write_all(&heard[..count]);
        let _ = stream.read(&mut heard);
    });
    echo.assert_code(5);
    echo.assert(echo.stderr.contains("echo"), "it is named");
    let silent = dial_stranger(|mut stream| {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
    });
    silent.assert_code(4);
}
