//! What a server carries between real clients: files and texts for others, what is left for who is not there, and what others
//! share.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;
#[path = "tools/proxy.rs"]
mod proxy;

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use common::{assert_same_file, client, client_spawn, until, Run, Running, Scratch, Server, Signal};
use postwire::config::RELAYED_MAX;
use postwire::{Client, Config, Event, Nickname, Recipients, SafePath};
use proxy::{Direction, Faults, Line, Proxy};

/// A server with a directory, and clients that stay.
struct Net {
    scratch: Scratch,
    server: Server,
}

impl Net {
    fn new(more: &[&str]) -> Net {
        let scratch = Scratch::new();
        let inbox = scratch.directory("inbox");
        let server = Server::start(&[&["--dir", inbox.as_str()], more].concat());
        Net { scratch, server }
    }

    /// Somebody who stays in the room and takes files into a directory of that name.
    fn board(&self, nick: &str, more: &[&str]) -> Running {
        self.board_at(&self.server.address(), nick, more)
    }

    fn board_at(&self, address: &str, nick: &str, more: &[&str]) -> Running {
        let dir = self.scratch.directory(nick);
        let fixed = ["--to", address, "--nick", nick, "--dir", &dir, "--stay"];
        let mut board = client_spawn(&[&fixed[..], more].concat());
        board.wait_stderr(|line| line == format!("you are {nick}"));
        board
    }

    fn send(&self, arguments: &[&str]) -> Run {
        client(&[&["--to", self.server.address().as_str()], arguments].concat())
    }

    fn start(&self, arguments: &[&str]) -> Running {
        client_spawn(&[&["--to", self.server.address().as_str()], arguments].concat())
    }

    fn path(&self, name: &str) -> String {
        self.scratch.path(name)
    }

    /// What the server keeps for others: its files, and its notes.
    fn kept(&self) -> [usize; 2] {
        ["files", "notes"].map(|part| {
            let path = self.path(&format!("inbox/.postwire-relay-0.part/{part}"));
            fs::read_dir(path).map_or(0, Iterator::count)
        })
    }

    fn wait_until_nothing_is_kept(&self) {
        until("an empty spool", || (self.kept() == [0, 0]).then_some(()));
    }

    /// Kills the server, does something, and starts it again on its port.
    fn restart_server(&mut self, meanwhile: impl FnOnce(&Net)) {
        self.server.kill();
        meanwhile(self);
        let inbox = self.path("inbox");
        self.server.restart(&["--dir", &inbox]);
    }
}

#[test]
fn a_file_for_one_is_on_its_disk_when_the_sender_ends() {
    let net = Net::new(&[]);
    let mut b7 = net.board("b7", &[]);
    for (name, size) in [("fw.bin", 3_000_000), ("small", 10), ("empty", 0)] {
        let file = net.scratch.file(name, size, 1);
        let run = net.send(&["--nick", "ann", "--for", "b7", "--file", &file, "--text", "flash"]);
        run.assert_code(0);
        assert_same_file(&file, net.path(&format!("b7/{name}")));
        run.assert(run.stderr.contains(&format!("sent \"{name}\" to b7: {size} bytes")), "the receipt is b7's");
        b7.wait_stdout(|line| line == "ann: flash");
    }
    let again = net.send(&["--json", "--for", "b7", "--file", &net.path("fw.bin")]);
    again.assert_code(0);
    again.assert(again.stdout.contains("\"already\":true") && again.stdout.contains("\"peer\":\"b7\""), "as JSON");
    net.wait_until_nothing_is_kept();
    assert_eq!(fs::read_dir(net.path("inbox")).unwrap().count(), 1, "the server has nothing of it but its spool");
}

#[test]
fn trees_and_streams_go_on_too() {
    let net = Net::new(&[]);
    let _b7 = net.board("b7", &[]);
    for (name, size) in [("tree/a/large", 600_000), ("tree/a/small", 5), ("tree/b", 1)] {
        net.scratch.file(name, size, size);
    }
    net.scratch.directory("tree/empty");
    net.send(&["--for", "b7", "--file", &net.path("tree")]).assert_code(0);
    for name in ["tree/a/large", "tree/a/small", "tree/b"] {
        assert_same_file(net.path(name), net.path(&format!("b7/{name}")));
    }
    assert!(Path::new(&net.path("b7/tree/empty")).is_dir());
    let input = fs::read(net.path("tree/a/large")).unwrap();
    let address = net.server.address();
    common::client_fed(&["--to", &address, "--for", "b7", "--file", "-", "--as", "s.bin"], &input).assert_code(0);
    assert_same_file(net.path("tree/a/large"), net.path("b7/s.bin"));
    net.wait_until_nothing_is_kept();
}

#[test]
fn directories_go_on_after_the_last_file_in_them() {
    let net = Net::new(&["--no-fsync"]);
    let boards = ["b0", "b1", "b2"].map(|nick| net.board(nick, &["--no-fsync"]));
    let then = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for tree in 0..10 {
        let top = net.scratch.directory(&format!("tree{tree}"));
        for number in 0..200 {
            net.scratch.directory(&format!("tree{tree}/e{number}"));
        }
        let inner = (0..12).map(|number| format!("tree{tree}/d{number}"));
        for (number, inner) in (0..).zip(inner.clone()) {
            net.scratch.file(&format!("{inner}/f"), 10, number);
            File::open(net.path(&inner)).unwrap().set_modified(then).unwrap();
        }
        net.send(&["--for", "*", "--file", &top]).assert_code(0);
        for (board, inner) in (0..boards.len()).flat_map(|board| inner.clone().map(move |inner| (board, inner))) {
            let modified = fs::metadata(net.path(&format!("b{board}/{inner}"))).unwrap().modified().unwrap();
            assert_eq!(modified, then, "{inner} at b{board}");
        }
    }
}

#[test]
fn of_several_each_has_its_own_receipt_and_only_those_who_have_the_file_hear_the_text() {
    let net = Net::new(&[]);
    let (mut b7, mut b8, mut b9) = (net.board("b7", &[]), net.board("b8", &["--max-file", "1k"]), net.board("b9", &[]));
    let file = net.scratch.file("fw.bin", 2_000_000, 1);
    let upload = Proxy::start(net.server.address().parse().unwrap(), Faults::default());
    let address = upload.address().to_string();
    let fixed = ["--to", &address, "--nick", "ann", "--file", &file, "--text", "flash"];
    let run = client(&[&fixed[..], &["--for", "b7", "--for", "b8", "--for", "b9", "--for", "nobody"]].concat());
    run.assert_code(9);
    for line in
        ["sent \"fw.bin\" to b7", "sent \"fw.bin\" to b9", "fw.bin\" to b8: refused: ", "\" to nobody: refused: "]
    {
        run.assert(run.stderr.contains(line), line);
    }
    assert!(upload.bytes_forwarded(Direction::ToServer) < 2_100_000, "the bytes come once");
    for name in ["b7", "b9"] {
        assert_same_file(&file, net.path(&format!("{name}/fw.bin")));
    }
    let run = net.send(&["--nick", "ann", "--for", "*", "--file", &file, "--text", "all"]);
    run.assert_code(9);
    for board in [&mut b7, &mut b9] {
        assert_eq!(board.wait_stdout(|_| true), "ann: flash");
        assert_eq!(board.wait_stdout(|_| true), "ann: all");
    }
    net.send(&["--nick", "ann", "--for", "*", "--text", "end"]).assert_code(0);
    assert_eq!(b8.wait_stdout(|_| true), "ann: end", "it heard no text before");
    net.wait_until_nothing_is_kept();
}

#[test]
fn who_is_not_there_is_waited_for_as_long_as_retry_says() {
    let net = Net::new(&[]);
    let file = net.scratch.file("fw.bin", 300_000, 1);
    let send = |more: &[&str]| net.send(&[&["--for", "b7", "--file", &file, "--text", "x"], more].concat());
    let run = send(&[]);
    run.assert_code(7);
    run.assert(run.stderr.contains("nobody of that name"), "it says why");
    send(&["--retry", "1s"]).assert_code(7);
    net.wait_until_nothing_is_kept();
    let text_only = net.send(&["--for", "b7", "--text", "x", "--retry", "1s"]);
    text_only.assert_code(7);
    text_only.assert(text_only.stderr.lines().count() == 1, "said once");
    let mut waiting = net.start(&["--for", "b7", "--file", &file, "--text", "x", "--retry", "30s"]);
    let mut text = net.start(&["--for", "b7", "--text", "y", "--retry", "30s"]);
    until("the file in the spool", || (net.kept() == [1, 0]).then_some(()));
    let mut b7 = net.board("b7", &[]);
    let mut heard = [b7.wait_stdout(|_| true), b7.wait_stdout(|_| true)];
    heard.sort_by_key(|line| line.chars().next_back());
    assert!(heard[0].ends_with(": x") && heard[1].ends_with(": y"), "{heard:?}");
    waiting.wait().assert_code(0);
    text.wait().assert_code(0);
    assert_same_file(&file, net.path("b7/fw.bin"));
}

#[test]
fn each_leg_goes_on_by_itself_after_a_break() {
    let net = Net::new(&[]);
    let target = net.server.address().parse().unwrap();
    let cut = |at| Faults {
        by_connection: vec![
            [Line { reset_after_bytes: Some(at), ..Line::default() }, Line::default()],
            [Line { reset_after_bytes: Some(at), ..Line::default() }, Line::default()],
        ],
        ..Faults::default()
    };
    let upload = Proxy::start(target, cut(1_500_000));
    let faults = Faults {
        by_connection: vec![[Line::default(), cut(2_400_000).by_connection[0][0].clone()]],
        ..Faults::default()
    };
    let download = Proxy::start(target, faults);
    let _b7 = net.board_at(&download.address().to_string(), "b7", &[]);
    let file = net.scratch.file("fw.bin", 3_000_000, 1);
    let run = client(&["--to", &upload.address().to_string(), "--for", "b7", "--file", &file, "--retry", "30s"]);
    run.assert_code(0);
    assert_same_file(&file, net.path("b7/fw.bin"));
    assert!(upload.connections() >= 3 && download.connections() >= 2);
}

#[test]
fn a_board_that_is_switched_off_and_on_has_its_nickname_and_its_file() {
    let net = Net::new(&[]);
    let line = Proxy::start(net.server.address().parse().unwrap(), Faults::default());
    let first = net.board_at(&line.address().to_string(), "b7", &[]);
    let file = net.scratch.file("fw.bin", 3_000_000, 1);
    // Off without a word: the server has a connection that nobody answers.
    line.pause();
    let mut waiting = net.start(&["--for", "b7", "--file", &file, "--retry", "30s"]);
    until("the file in the spool", || (net.kept()[0] == 1).then_some(()));
    first.signal(Signal::KILL);
    let _second = net.board("b7", &[]);
    waiting.wait().assert_code(0);
    assert_same_file(&file, net.path("b7/fw.bin"));
    line.resume();
}

#[test]
fn a_server_may_be_killed_between_storing_and_handing_on() {
    let mut net = Net::new(&[]);
    let file = net.scratch.file("fw.bin", 3_000_000, 1);
    let mut sending =
        client_spawn(&["--to", &net.server.address(), "--for", "b7", "--file", &file, "--text", "x", "--retry", "30s"]);
    until("the file in the spool", || {
        let kept = fs::read_dir(net.path("inbox/.postwire-relay-0.part/files")).ok()?.next()?.ok()?.path();
        fs::metadata(kept.join("fw.bin")).ok()
    });
    net.restart_server(|_| {});
    let mut b7 = net.board("b7", &[]);
    sending.wait().assert_code(0);
    assert_same_file(&file, net.path("b7/fw.bin"));
    b7.wait_stdout(|line| line.ends_with(": x"));
    net.wait_until_nothing_is_kept();
}

#[test]
fn what_is_left_is_delivered_in_order_and_once_though_the_server_is_killed() {
    let mut net = Net::new(&[]);
    let file = net.scratch.file("fw.bin", 2_000_000, 1);
    let small = net.scratch.file("small", 20, 1);
    let leave = |net: &Net, more: &[&str]| net.send(&[&["--nick", "ann", "--leave", "--for", "b7"], more].concat());
    leave(&net, &["--file", &file, "--text", "flash", "--file", &small, "--text", "then this"]).assert_code(0);
    leave(&net, &["--text", "later"]).assert_code(0);
    let listed = net.send(&["--list"]);
    listed.assert(listed.stdout.is_empty(), "nothing of it is listed");
    net.restart_server(|net| assert_eq!(net.kept(), [2, 5]));
    let mut b7 = net.board("b7", &["--count", "5"]);
    let heard: Vec<String> = (0..3).map(|_| b7.wait_stdout(|_| true)).collect();
    let of_first: Vec<&String> = heard.iter().filter(|line| *line != "ann: later").collect();
    assert_eq!(of_first, ["ann: flash", "ann: then this"]);
    b7.wait().assert_code(0);
    assert_same_file(&file, net.path("b7/fw.bin"));
    assert_same_file(&small, net.path("b7/small"));
    net.wait_until_nothing_is_kept();
    let mut again = net.board("b7", &[]);
    net.send(&["--for", "*", "--text", "end"]).assert_code(0);
    assert!(again.wait_stdout(|_| true).ends_with(": end"), "nothing comes twice");
}

#[test]
fn what_is_left_for_two_waits_for_the_second_though_the_server_ends_after_the_first() {
    let mut net = Net::new(&[]);
    let file = net.scratch.file("fw.bin", 300_000, 1);
    net.send(&["--leave", "--for", "b7", "--for", "b8", "--file", &file]).assert_code(0);
    net.board("b7", &["--count", "1"]).wait().assert_code(0);
    net.server.wait_stderr(|line| line == "b7 left");
    until("one note less", || (net.kept() == [1, 1]).then_some(()));
    net.server.signal(Signal::TERM);
    net.server.wait().assert_code(0);
    let inbox = net.path("inbox");
    net.server.restart(&["--dir", &inbox]);
    net.board("b8", &["--count", "1"]).wait().assert_code(0);
    assert_same_file(&file, net.path("b8/fw.bin"));
    net.wait_until_nothing_is_kept();
}

#[test]
fn a_kill_between_the_ends_of_a_file_and_of_its_note_leaves_neither() {
    let mut net = Net::new(&[]);
    let file = net.scratch.file("fw.bin", 300_000, 1);
    net.send(&["--leave", "--for", "b7", "--file", &file, "--text", "flash"]).assert_code(0);
    net.restart_server(|net| {
        let files = net.path("inbox/.postwire-relay-0.part/files");
        fs::remove_dir_all(&files).unwrap();
        fs::create_dir(&files).unwrap();
    });
    assert_eq!(net.kept(), [0, 1], "only the text's");
    // It stays until it has acknowledged what it printed.
    let mut b7 = net.board("b7", &[]);
    b7.wait_stdout(|line| line.ends_with(": flash"));
    net.wait_until_nothing_is_kept();
}

#[test]
fn what_was_left_and_refused_comes_when_its_receiver_comes_again() {
    let net = Net::new(&[]);
    let file = net.scratch.file("fw.bin", 2_000_000, 1);
    net.send(&["--leave", "--for", "b7", "--file", &file, "--text", "flash"]).assert_code(0);
    let mut full = net.board("b7", &["--max-file", "1k"]);
    full.wait_stderr(|line| line.starts_with("refused \"fw.bin\""));
    net.send(&["--nick", "ann", "--for", "b7", "--text", "hello"]).assert_code(0);
    assert_eq!(full.wait_stdout(|_| true), "ann: hello", "no text overtakes a file that did not come");
    full.signal(Signal::TERM);
    full.wait();
    let mut b7 = net.board("b7", &[]);
    b7.wait_stdout(|line| line.ends_with(": flash"));
    assert_same_file(&file, net.path("b7/fw.bin"));
}

#[test]
fn what_others_share_is_listed_and_fetched_through_the_server() {
    let net = Net::new(&[]);
    for (name, size) in [("share/crash/core", 2_000_000), ("share/crash/log", 30), ("share/top", 1)] {
        net.scratch.file(name, size, size);
    }
    let line = Proxy::start(net.server.address().parse().unwrap(), Faults::default());
    let _b7 = net.board_at(&line.address().to_string(), "b7", &["--share", &net.path("share")]);
    let listed = net.send(&["--from", "b7", "--list"]);
    listed.assert_code(0);
    let names: Vec<&str> = listed.stdout.lines().map(|line| line.rsplit_once("  ").unwrap().1).collect();
    assert_eq!(names, ["crash/", "crash/core", "crash/log", "top"]);
    let here = net.scratch.directory("here");
    let get = |name: &str| net.send(&["--from", "b7", "--get", name, "--dir", &here]);
    get("crash/core").assert_code(0);
    assert_same_file(net.path("share/crash/core"), format!("{here}/core"));
    get("crash").assert_code(0);
    for name in ["crash/core", "crash/log"] {
        assert_same_file(net.path(&format!("share/{name}")), format!("{here}/{name}"));
    }
    let missing = get("nothing");
    missing.assert_code(7);
    missing.assert(missing.stderr.contains("shares nothing of that name"), "what b7 says is passed on");
    let absent = net.send(&["--from", "b8", "--get", "x", "--dir", &here]);
    absent.assert_code(7);
    absent.assert(absent.stderr.contains("nobody of that name"), "it says who is missing");
    // A break of the board's line in the middle of it.
    let faults = Faults {
        by_connection: vec![[Line { reset_after_bytes: Some(1_000_000), ..Line::default() }, Line::default()]],
        ..Faults::default()
    };
    line.set_faults(faults);
    line.kill_all();
    net.scratch.file("share/large", 3_000_000, 9);
    let run = net.send(&["--from", "b7", "--get", "large", "--dir", &here, "--retry", "30s"]);
    run.assert_code(0);
    assert_same_file(net.path("share/large"), format!("{here}/large"));
    net.wait_until_nothing_is_kept();
}

#[test]
fn a_server_may_carry_nothing() {
    let net = Net::new(&["--no-relay", "--share", "tests"]);
    let _b7 = net.board("b7", &["--share", "src"]);
    let cases = [
        &["--for", "b7", "Cargo.toml"][..],
        &["--for", "*", "Cargo.toml"],
        &["--leave", "--for", "b8", "Cargo.toml"],
        &["--leave", "--for", "b8", "--text", "x"],
        &["--from", "b7", "--list"],
        &["--from", "b7", "--get", "lib.rs", "--dir", "/tmp"],
    ];
    for case in cases {
        let run = net.send(case);
        run.assert_code(7);
        run.assert(run.stderr.contains("does not carry"), "it says so");
    }
    assert_eq!(fs::read_dir(net.path("inbox")).unwrap().count(), 0);
    // Without a directory there is no place for what is carried.
    let bare = Server::start(&[]);
    let run = client(&["--to", &bare.address(), "--leave", "--for", "b7", "Cargo.toml"]);
    run.assert_code(7);
    run.assert(run.stderr.contains("--dir"), "it says what to do");
}

#[test]
fn a_console_and_a_chat_do_the_same() {
    let mut net = Net::new(&[]);
    net.scratch.file("share/core", 400_000, 3);
    let mut b7 = net.board("b7", &["--share", &net.path("share")]);
    net.server.type_line("/list @b7");
    net.server.wait_stdout(|line| line.ends_with("  core"));
    net.server.type_line("/get core @b7");
    net.server.wait_stderr(|line| line.starts_with("received \"core\" from b7"));
    assert_same_file(net.path("share/core"), net.path("inbox/core"));
    net.server.type_line("/get nothing @b7");
    net.server.wait_stderr(|line| line.contains("shares nothing of that name"));
    net.server.type_line("/get core @b8");
    net.server.wait_stderr(|line| line.contains("nobody"));
    let send = format!("/send {} @b7", net.path("share/core"));
    net.server.type_line(&send);
    b7.wait_stderr(|line| line.starts_with("received \"core\""));
}

#[test]
fn what_many_leave_at_once_is_all_noted() {
    const MANY: usize = 24;
    let mut net = Net::new(&[]);
    let texts: Vec<String> = (0..MANY).map(|number| format!("text {number}")).collect();
    let leaving: Vec<Running> =
        texts.iter().map(|text| net.start(&["--nick", "ann", "--leave", "--for", "b7", "--text", text])).collect();
    leaving.into_iter().for_each(|mut client| {
        client.wait().assert_code(0);
    });
    net.restart_server(|net| assert_eq!(net.kept(), [0, MANY]));
    let mut b7 = net.board("b7", &["--count", &MANY.to_string()]);
    let run = b7.wait();
    run.assert_code(0);
    for text in &texts {
        run.assert(run.stdout.lines().filter(|line| line.ends_with(&format!(": {text}"))).count() == 1, text);
    }
}

/// A server in this process, whose events are taken.
fn library_server(net: &Net) -> postwire::Server {
    let config = Config { dir: Some(net.path("inbox").into()), ..Config::default() };
    let server = postwire::Server::bind("127.0.0.1:0", config).unwrap();
    let draining = server.clone();
    std::thread::spawn(move || while draining.next_event(None).unwrap().is_some() {});
    server
}

/// Stops it, and waits until it has let go of the directory.
fn stop(net: &Net, server: postwire::Server) {
    server.stop();
    drop(server);
    let spool = File::open(net.path("inbox/.postwire-relay-0.part")).unwrap();
    until("the spool's lock", || rustix::fs::flock(&spool, rustix::fs::FlockOperation::NonBlockingLockExclusive).ok());
}

#[test]
fn what_is_left_for_two_is_there_for_the_second_though_the_server_was_stopped_between() {
    let net = Net::new(&["--no-relay"]);
    let file = net.scratch.file("fw.bin", 300_000, 1);
    let server = library_server(&net);
    let address = server.local_addr().to_string();
    client(&["--to", &address, "--leave", "--for", "b7", "--for", "b8", "--file", &file]).assert_code(0);
    net.board_at(&address, "b7", &["--count", "1"]).wait().assert_code(0);
    until("one note", || (net.kept() == [1, 1]).then_some(()));
    stop(&net, server);
    assert_eq!(net.kept(), [1, 1]);
    let server = library_server(&net);
    net.board_at(&server.local_addr().to_string(), "b8", &["--count", "1"]).wait().assert_code(0);
    assert_same_file(&file, net.path("b8/fw.bin"));
    net.wait_until_nothing_is_kept();
}

#[test]
fn a_server_that_takes_over_a_spool_delivers_what_is_in_it() {
    let mut net = Net::new(&[]);
    let leave = |address: &str, nick: &str| {
        client(&["--to", address, "--leave", "--for", nick, "--text", &format!("for {nick}")]).assert_code(0);
    };
    leave(&net.server.address(), "b7");
    let second = Server::start(&["--dir", &net.path("inbox")]);
    net.server.kill();
    leave(&second.address(), "b8");
    second.terminate().assert_code(0);
    net.restart_server(|net| assert_eq!(net.kept(), [0, 2]));
    for nick in ["b7", "b8"] {
        net.board(nick, &[]).wait_stdout(|line| line.ends_with(&format!(": for {nick}")));
    }
}

#[test]
fn what_is_said_meanwhile_does_not_hide_a_text_that_was_left_before() {
    let net = Net::new(&["--limit-rate", "1M"]);
    let mut b7 = net.board("b7", &[]);
    let ann = Client::connect(&net.server.address(), Config::default()).unwrap();
    let nick = Nickname::parse(b"b7").unwrap();
    let recipients = Recipients { to: Some(vec![nick.clone()]), leave: true, wait: None };
    let file = net.scratch.file("fw.bin", 2_000_000, 1);
    ann.send_file_for(Path::new(&file), None, &recipients).unwrap();
    while !matches!(ann.next_event(Some(common::DEADLINE)).unwrap(), Some(Event::Sent(_))) {}
    ann.leave_text(&nick, "flash").unwrap();
    ann.send_text(Some(&nick), "hello").unwrap();
    let heard = [b7.wait_stdout(|_| true), b7.wait_stdout(|_| true)];
    assert!(heard[0].ends_with(": hello") && heard[1].ends_with(": flash"), "{heard:?}");
    ann.disconnect();
}

#[test]
fn a_tree_for_many_is_no_more_than_a_server_carries_at_once() {
    let net = Net::new(&["--no-fsync"]);
    let _board = net.board("n0", &["--no-fsync"]);
    // More files, each for all of them, than a server has for others.
    let nicknames: Vec<String> = (0..16).map(|number| format!("n{number}")).collect();
    let files = RELAYED_MAX / nicknames.len() + 100;
    (0..files).for_each(|number| drop(net.scratch.file(&format!("tree/f{number}"), 1, 1)));
    let fors: Vec<&str> = nicknames.iter().flat_map(|nickname| ["--for", nickname]).collect();
    let run = net.send(&[&["--retry", "1s", "--file", &net.path("tree")], &fors[..]].concat());
    run.assert_code(9);
    assert_eq!(fs::read_dir(net.path("n0/tree")).unwrap().count(), files);
    run.assert(!run.stderr.contains("queue is full"), "nothing is too much");
}

#[test]
fn a_stream_that_is_stored_is_known_again_after_a_break() {
    let net = Net::new(&[]);
    let line = Proxy::start(net.server.address().parse().unwrap(), Faults::default());
    let address = line.address().to_string();
    let _b8 = net.board("b8", &[]);
    let for_both = ["--for", "b7", "--for", "b8"];
    let fixed = ["--to", &address, "--file", "-", "--as", "s", "--retry", "30s"];
    let mut sending = client_spawn(&[&fixed[..], &for_both].concat());
    sending.type_bytes(b"content");
    sending.close_stdin();
    sending.wait_stderr(|line| line.starts_with("sent \"s\" to b8"));
    line.kill_all();
    until("another connection", || (line.connections() == 2).then_some(()));
    let _b7 = net.board("b7", &[]);
    sending.wait().assert_code(0);
    assert_eq!(fs::read(net.path("b7/s")).unwrap(), b"content");
}

#[test]
fn a_stopped_server_lets_go_of_what_is_left_whoever_is_still_waited_for() {
    let net = Net::new(&["--no-relay"]);
    let file = net.scratch.file("fw.bin", 300_000, 1);
    let server = library_server(&net);
    let address = server.local_addr().to_string();
    client(&["--to", &address, "--leave", "--for", "b8", "--text", "left"]).assert_code(0);
    let _waiting = client_spawn(&["--to", &address, "--for", "b7", "--file", &file, "--retry", "1h"]);
    until("the file in the spool", || (net.kept() == [1, 1]).then_some(()));
    stop(&net, server);
    let server = library_server(&net);
    net.board_at(&server.local_addr().to_string(), "b8", &[]).wait_stdout(|line| line.ends_with(": left"));
}

#[test]
fn what_nobody_came_for_is_not_kept_longer_than_partials() {
    let net = Net::new(&["--keep-partials", "1s"]);
    let file = net.scratch.file("fw.bin", 3000, 1);
    net.send(&["--leave", "--for", "b7", "--file", &file, "--text", "flash"]).assert_code(0);
    assert_eq!(net.kept(), [1, 2]);
    until("the old to go", || {
        net.send(&["--leave", "--for", "b8", "--text", "new"]).assert_code(0);
        (net.kept()[0] == 0).then_some(())
    });
    let mut b7 = net.board("b7", &[]);
    net.send(&["--for", "*", "--text", "end"]).assert_code(0);
    assert!(b7.wait_stdout(|_| true).ends_with(": end"), "it is not delivered");
}

#[test]
fn who_fetches_from_another_goes_on_after_a_break() {
    let net = Net::new(&[]);
    net.scratch.file("share/tree/large", 3_000_000, 1);
    net.scratch.file("share/tree/small", 30, 1);
    let _b7 = net.board("b7", &["--share", &net.path("share")]);
    let cut = Line { reset_after_bytes: Some(1_000_000), ..Line::default() };
    let faults =
        Faults { by_connection: vec![[Line::default(), cut.clone()], [Line::default(), cut]], ..Faults::default() };
    let line = Proxy::start(net.server.address().parse().unwrap(), faults);
    let here = net.scratch.directory("here");
    let run = client(&["--to", &line.address().to_string(), "--from", "b7", "--get", "tree", "--dir", &here]);
    run.assert_code(0);
    for name in ["large", "small"] {
        assert_same_file(net.path(&format!("share/tree/{name}")), format!("{here}/tree/{name}"));
    }
    assert!(line.connections() >= 3);
    net.wait_until_nothing_is_kept();
}

#[test]
fn who_asks_itself_gets_what_it_shares() {
    let net = Net::new(&[]);
    net.scratch.file("share/core", 400_000, 1);
    let here = net.scratch.directory("here");
    let mut config =
        Config { share: Some(net.path("share").into()), dir: Some(here.clone().into()), ..Config::default() };
    (config.nick, config.join_room) = (Nickname::parse(b"b7").ok(), true);
    let b7 = Client::connect(&net.server.address(), config).unwrap();
    b7.wait_connected(common::DEADLINE).unwrap();
    b7.get_from(Nickname::parse(b"b7").ok().as_ref(), &SafePath::parse(b"core").unwrap(), None).unwrap();
    loop {
        match b7.next_event(Some(common::DEADLINE)).unwrap().unwrap() {
            Event::Got { failed, .. } => break assert_eq!(failed, 0),
            Event::RequestFailed { error, .. } => panic!("{error}"),
            _ => {}
        }
    }
    assert_same_file(net.path("share/core"), format!("{here}/core"));
    b7.disconnect();
    net.wait_until_nothing_is_kept();
}

#[test]
fn what_a_server_has_for_others_is_not_sent_again_to_the_next() {
    let mut net = Net::new(&[]);
    let upload = Proxy::start(net.server.address().parse().unwrap(), Faults::default());
    let file = net.scratch.file("fw.bin", 3_000_000, 1);
    let address = upload.address().to_string();
    let _b8 = net.board("b8", &[]);
    let fors = ["--for", "b7", "--for", "b8", "--file", &file];
    let mut sending = client_spawn(&[&["--to", &address, "--retry", "30s"], &fors[..]].concat());
    sending.wait_stderr(|line| line.starts_with("sent \"fw.bin\" to b8"));
    net.server.signal(Signal::TERM);
    net.server.wait().assert_code(0);
    net.restart_server(|net| assert_eq!(net.kept(), [1, 0]));
    let _b7 = net.board("b7", &[]);
    sending.wait().assert_code(0);
    assert_same_file(&file, net.path("b7/fw.bin"));
    assert!(upload.bytes_forwarded(Direction::ToServer) < 3_500_000, "its bytes come once");
    net.wait_until_nothing_is_kept();
}
