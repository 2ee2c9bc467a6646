//! The real binary with `--exec`: what the program is told, how many run at once, and what becomes of those that hang.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{client, client_spawn, Running, Scratch, Server, BINARY, DEADLINE};

/// Notes what it is told in the directory OUT.
const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/received");

/// What one run of the program was told, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Told {
    kind: String,
    name: Vec<u8>,
    path: Vec<u8>,
    bytes: String,
    crc32: String,
    nick: String,
    address: String,
    stdin: Vec<u8>,
}

/// The binary, whose program notes in `out`.
fn binary(out: &str) -> Command {
    let mut command = Command::new(BINARY);
    command.env("OUT", out);
    command
}

/// Looks again and again until `count` files of `out` begin with `word`; gives their names.
fn wait_for(out: &str, word: &str, count: usize) -> Vec<OsString> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let names: Vec<OsString> = fs::read_dir(out)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name.as_bytes().starts_with(word.as_bytes()))
            .collect();
        if names.len() >= count {
            return names;
        }
        assert!(Instant::now() < deadline, "{} of {count} are {word}", names.len());
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// What `count` runs were told, once that many are done.
fn told(out: &str, count: usize) -> Vec<Told> {
    let read = |name: OsString| {
        let noted = fs::read(Path::new(out).join(name)).unwrap();
        let mut parts = noted.splitn(8, |&byte| byte == 0).map(<[u8]>::to_vec);
        let mut bytes = || parts.next().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Told {
            kind: text(bytes()),
            name: bytes(),
            path: bytes(),
            bytes: text(bytes()),
            crc32: text(bytes()),
            nick: text(bytes()),
            address: text(bytes()),
            stdin: bytes(),
        }
    };
    wait_for(out, "done", count).into_iter().map(read).collect()
}

#[test]
fn a_file_is_told_in_the_environment_whatever_its_name() {
    let scratch = Scratch::new();
    let out = scratch.directory("out");
    let dir = "in \"$(box)\"\n'";
    scratch.directory(dir);
    let mut command = binary(&out);
    command.current_dir(scratch.path(""));
    let mut server = Server::start_by(command, &["--dir", dir, "--exec", PROGRAM]);
    let name = OsString::from_vec(b"caf\xe9 \"$(touch x)\" 'y' `z` ;\\".to_vec());
    let file = Path::new(&scratch.directory("from")).join(&name);
    fs::write(&file, "12345").unwrap();
    let mut command = Command::new(BINARY);
    command.args(["client", "--nick", "ann", "--to", &server.address(), "--"]).arg(&file);
    Running::spawn(command).wait().assert_code(0);
    let told = told(&out, 1).remove(0);
    let path = Path::new(&scratch.path(dir)).join(&name);
    assert_eq!((told.kind.as_str(), told.bytes.as_str(), told.crc32.as_str()), ("file", "5", "cbf53a1c"));
    assert_eq!(OsStr::from_bytes(&told.name), name);
    assert_eq!(OsStr::from_bytes(&told.path), path);
    assert_eq!(fs::read(OsStr::from_bytes(&told.path)).unwrap(), b"12345");
    assert_eq!((told.nick.as_str(), told.stdin), ("ann", Vec::new()));
    assert!(told.address.parse::<SocketAddr>().unwrap().ip().is_loopback(), "{}", told.address);
    server.wait_stderr(|line| line == "said by the program");
    server
        .terminate()
        .assert_code(0)
        .assert(fs::read_dir(scratch.path("")).unwrap().count() == 3, "nothing else is there");
}

#[test]
fn a_text_is_its_standard_input_byte_for_byte() {
    let scratch = Scratch::new();
    let out = scratch.directory("out");
    let server = Server::start_by(binary(&out), &["--exec", PROGRAM]);
    let long = "x".repeat(64 * 1024);
    let texts = ["no line end", "line end\n", "\"two\"\n'lines' $(x)\u{1b}[2J\u{e9}\n", long.as_str()];
    for text in texts {
        client(&["--nick", "ann", "--to", &server.address(), "--text", text]).assert_code(0);
    }
    let mut told = told(&out, texts.len());
    told.sort_by_key(|told| texts.iter().position(|text| text.as_bytes() == told.stdin));
    for (told, text) in told.iter().zip(texts) {
        assert_eq!(told.stdin, text.as_bytes());
        let crc32 = format!("{:08x}", crc32fast::hash(text.as_bytes()));
        assert_eq!((told.kind.as_str(), &told.bytes, &told.crc32), ("text", &text.len().to_string(), &crc32));
        assert_eq!((told.name.as_slice(), told.path.as_slice(), told.nick.as_str()), (&b""[..], &b""[..], "ann"));
        assert!(told.address.starts_with("127.0.0.1:"), "{}", told.address);
    }
}

#[test]
fn a_client_runs_it_too_before_it_ends() {
    let scratch = Scratch::new();
    let (out, inbox) = (scratch.directory("out"), scratch.directory("inbox"));
    let mut server = Server::start(&[]);
    let address = server.address();
    let mut command = binary(&out);
    command.args(["client", "--to", &address, "--nick", "b7", "--stay", "--count", "2"]);
    command.args(["--dir", &inbox, "--exec", PROGRAM]).env("WAIT", "1");
    let mut staying = Running::spawn(command);
    server.wait_stderr(|line| line == "b7 joined");
    server.type_line("hello");
    server.type_line(&format!("/send {}", scratch.file("a", 10, 1)));
    wait_for(&out, "started", 2);
    fs::write(format!("{out}/go"), "").unwrap();
    staying.wait().assert_code(0);
    let mut told = told(&out, 2);
    told.sort();
    let [file, text] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((file.kind.as_str(), file.path.as_slice()), ("file", format!("{inbox}/a").as_bytes()));
    assert_eq!((text.kind.as_str(), text.stdin.as_slice()), ("text", &b"hello"[..]));
    for told in [file, text] {
        assert_eq!((told.nick.as_str(), &told.address), ("server", &address));
    }
}

#[test]
fn four_run_at_once_and_the_others_wait() {
    let scratch = Scratch::new();
    let out = scratch.directory("out");
    let mut command = binary(&out);
    command.env("WAIT", "1");
    let server = Server::start_by(command, &["--exec", PROGRAM]);
    let texts: Vec<String> = (0..10).map(|number| format!("text {number}")).collect();
    for text in &texts {
        client(&["--to", &server.address(), "--text", text]).assert_code(0);
    }
    assert_eq!(wait_for(&out, "started", 4).len(), 4, "all ten were acknowledged");
    fs::write(format!("{out}/go"), "").unwrap();
    let mut heard: Vec<String> =
        told(&out, 10).into_iter().map(|told| String::from_utf8(told.stdin).unwrap()).collect();
    heard.sort();
    assert_eq!(heard, texts);
}

#[test]
fn too_many_that_wait_withhold_acknowledgements_and_a_signal_ends_it_all() {
    let scratch = Scratch::new();
    let out = scratch.directory("out");
    let mut command = binary(&out);
    command.env("WAIT", "1");
    let server = Server::start_by(command, &["--exec", PROGRAM]);
    // Four run, 64 wait, and one more than that is not acknowledged.
    let mut arguments = vec!["--to".to_owned(), server.address(), "--retry".into(), "0".into()];
    (0..72).for_each(|number| arguments.extend(["--text".to_owned(), format!("text {number}")]));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut sending = client_spawn(&arguments);
    wait_for(&out, "started", 4);
    assert!(!sending.ends_within(Duration::from_millis(500)), "all was acknowledged");
    let run = server.terminate();
    run.assert_code(0);
    let lines = |end: &str| run.stderr.lines().filter(|line| line.contains(end)).count();
    run.assert(lines("from c1: killed, it took too long, 1") == 4, "those that run get 10 s");
    run.assert(lines("from c1: not run, we stop") >= 64, "those that wait are dropped");
    sending.wait();
}

#[test]
fn a_failure_is_one_line_and_every_run_an_object() {
    let scratch = Scratch::new();
    let (out, inbox) = (scratch.directory("out"), scratch.directory("inbox"));
    let file = scratch.file("a\"b", 10, 1);
    let run = |code: &str, options: &[&str]| {
        let mut command = binary(&out);
        command.env("CODE", code);
        let server = Server::start_by(command, &[&["--dir", &inbox, "--exec", PROGRAM], options].concat());
        let done = fs::read_dir(&out).unwrap().filter(|name| name.as_ref().unwrap().path().is_file()).count();
        client(&["--to", &server.address(), "--nick", "ann", &file]).assert_code(0);
        client(&["--to", &server.address(), "--nick", "ann", "--text", "hello"]).assert_code(0);
        wait_for(&out, "done", done + 2);
        server.terminate()
    };
    let quiet = run("3", &["-q"]);
    let mut lines: Vec<&str> = quiet.stderr.lines().filter(|line| *line != "said by the program").collect();
    lines.sort_unstable();
    quiet.assert(lines.len() == 2, "one line for each failure");
    quiet.assert(lines[0].starts_with("program for \"a\"b\" from ann: exit code 3, "), "the file's");
    quiet.assert(lines[1].starts_with("program for a text from ann: exit code 3, "), "the text's");
    let good = run("0", &["-q"]);
    good.assert(good.stderr.lines().all(|line| line == "said by the program"), "success is silent");
    let json = run("0", &["--json"]);
    let object = |start: &str| json.stdout.lines().filter(|line| line.starts_with(start)).count();
    let file = "{\"type\":\"exec\",\"received\":\"file\",\"name\":\"a\\\"b\",\"nick\":\"ann\",\"code\":0,\"seconds\":";
    let text = "{\"type\":\"exec\",\"received\":\"text\",\"name\":\"\",\"nick\":\"ann\",\"code\":0,\"seconds\":";
    json.assert((object(file), object(text)) == (1, 1), "an object for each");
}

#[test]
fn a_program_that_cannot_run_is_wrong_usage_before_anything_is_opened() {
    let scratch = Scratch::new();
    let plain = scratch.file("plain", 10, 1);
    let missing = scratch.path("missing");
    for program in [&plain, &missing, &scratch.directory("directory")] {
        let port_file = scratch.path("port");
        let mut command = Command::new(BINARY);
        command.args(["server", "--dir", &missing, "--listen", "127.0.0.1:0", "--port-file", &port_file]);
        command.args(["--exec", program]);
        let server = Running::spawn(command).wait();
        // Port 1 of this address: nobody would be there, exit code 3.
        let client = client(&["--to", "127.0.0.9:1", "--exec", program, "--text", "x"]);
        for run in [server, client] {
            run.assert_code(2);
            run.assert(run.stderr.starts_with("postwire: --exec takes the path of a program, got \""), "the option");
            run.assert(run.stderr.lines().count() == 1 && run.stdout.is_empty(), "one line");
        }
        assert!(!Path::new(&port_file).exists());
    }
}
