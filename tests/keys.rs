//! Keys and sealed connections, with the real binary: who gets in, who does not, and what can be seen on the wire.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;
#[path = "tools/proxy.rs"]
mod proxy;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::thread;

use common::raw::{bytes, peer};
use common::{client, Run, Running, Scratch, Server, BINARY, DEADLINE};
use postwire::wire::{Message, Subject};
use postwire::Refusal;

fn postwire(arguments: &[&str], environment: &[(&str, &str)], input: &[u8]) -> Run {
    // What the tests' own environment says is taken away from the command that is started.
    let mut command = Command::new("env");
    command.args(environment.iter().map(|(name, value)| format!("{name}={value}"))).arg(BINARY).args(arguments);
    let mut running = Running::spawn(command);
    running.type_bytes(input);
    running.close_stdin();
    running.wait()
}

/// Makes a key in a file of a scratch.
fn key(scratch: &Scratch, name: &str) -> String {
    let path = scratch.path(name);
    postwire(&["keygen", &path], &[], b"").assert_code(0);
    path
}

#[test]
fn a_new_key_is_for_its_owner_alone_and_replaces_nothing() {
    let scratch = Scratch::new();
    let path = key(&scratch, "key");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.len() == 65 && text.trim_end().bytes().all(|byte| byte.is_ascii_hexdigit()), "{text}");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let again = postwire(&["keygen", &path], &[], b"");
    again.assert_code(8);
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    let shown = postwire(&["keygen", "-"], &[], b"");
    shown.assert_code(0).assert(shown.stdout.len() == 65 && shown.stdout != text, "another one, on standard output");
    for wrong in [&["keygen"][..], &["keygen", "a", "b"], &["keygen", "-x"], &["keygen", ""]] {
        postwire(wrong, &[], b"").assert_code(2);
    }
}

#[test]
fn a_key_that_is_none_or_that_others_can_read_is_refused_with_what_to_do() {
    let scratch = Scratch::new();
    let path = key(&scratch, "key");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let open = client(&["--to", "127.0.0.1:1", "--key-file", &path, "--text", "x"]);
    open.assert_code(2)
        .assert(open.stderr.contains("chmod 600") && open.stderr.contains("--key-file - <"), "what to do");
    for (content, name) in [("", "empty"), ("secret\n", "short"), (&"0".repeat(64), "zeros")] {
        let path = scratch.path(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let run = client(&["--to", "127.0.0.1:1", "--key-file", &path, "--text", "x"]);
        run.assert_code(2).assert(run.stderr.contains("postwire keygen"), "where keys come from");
        run.assert(content.len() < 2 || !run.stderr.contains(content.trim()), "it is not repeated");
    }
    client(&["--to", "127.0.0.1:1", "--key-file", "/no/such/key", "--text", "x"]).assert_code(8);
    let wrong = postwire(&["client", "--to", "127.0.0.1:1", "--text", "x"], &[("POSTWIRE_KEY", "abc")], b"");
    wrong.assert_code(2).assert(wrong.stderr.contains("POSTWIRE_KEY"), "which one");
}

#[test]
fn only_who_is_allowed_gets_in_and_an_open_server_says_that_it_is_open() {
    let refusing = Server::start(&["--allow", "10.0.0.0/8", "--allow", "::1"]);
    let run = client(&["--to", &refusing.address(), "--text", "x"]);
    run.assert_code(7).assert(run.stderr.contains("does not take connections from this address"), "why");
    let log = refusing.terminate();
    log.assert(log.stderr.contains("--allow does not name its address"), "what to do");
    let taking = Server::start(&["--allow", "10.0.0.0/8", "--allow", "127.0.0.0/8"]);
    client(&["--to", &taking.address(), "--text", "x"]).assert_code(0);
    for (arguments, is_open) in [
        (&["--listen", "0.0.0.0:0"][..], true),
        (&["--listen", "0.0.0.0:0", "--allow", "127.0.0.1"], false),
        (&["--listen", "127.0.0.1:0"], false),
    ] {
        let mut command = Command::new(BINARY);
        command.arg("server").args(arguments);
        let mut server = Running::spawn(command);
        server.wait_stderr(|line| line.starts_with("listening on"));
        server.signal(common::Signal::TERM);
        let run = server.wait();
        run.assert(run.stderr.contains("no key: anybody who reaches this port") == is_open, "whether it is open");
    }
}

/// `--key-file` and a key that was made for it, or nothing.
fn keyed(scratch: &Scratch, has_key: bool) -> Vec<String> {
    match has_key {
        true => vec!["--key-file".to_owned(), key(scratch, "key")],
        false => Vec::new(),
    }
}

/// Every kind of connection that this build makes.
fn plain_and_keyed() -> impl Iterator<Item = bool> {
    [false, true].into_iter().filter(|has_key| !has_key || cfg!(feature = "encrypt"))
}

fn says_to(server: &Server, messages: &[Message]) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(&bytes(messages)).unwrap();
    stream
}

#[test]
fn a_server_refuses_versions_and_modes_that_it_does_not_speak() {
    for has_key in plain_and_keyed() {
        let scratch = Scratch::new();
        let arguments = keyed(&scratch, has_key);
        let mut server = Server::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let mode = u8::from(has_key);
        let wanted = Refusal::Mode(u64::from(has_key));
        let no_version = "this side speaks up to version 1";
        let no_mode = if has_key { "only those who have ours are taken" } else { "there is none here: --key-file" };
        for (version_low, version_high, mode, refusal, says) in [
            (2, 3, mode, Refusal::Version(1), no_version),
            (0, 0, mode, Refusal::Version(1), no_version),
            (9, u16::MAX, mode, Refusal::Version(1), no_version),
            (1, 1, 1 - mode, wanted, no_mode),
            (1, 1, 2, wanted, no_mode),
            (1, 9, 255, wanted, no_mode),
            // In another version a mode may mean another thing.
            (2, 3, 2, Refusal::Version(1), no_version),
        ] {
            let mut stream = says_to(&server, &[Message::Hello { version_low, version_high, mode }]);
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            assert_eq!(
                answer,
                bytes(&[Message::Refused { subject: Subject::Connection, refusal }]),
                "versions {version_low} to {version_high}, mode {mode}: {refusal:?} alone"
            );
            // It waits a moment for who was refused to go, then tells.
            drop(stream);
            server.wait_stderr(|line| line.starts_with("refused 127.0.0.1:") && line.contains(says));
        }
        // One that speaks ours among others is welcome, whatever it says next.
        let hello = Message::Hello { version_low: 0, version_high: u16::MAX, mode };
        let mut stream = says_to(&server, &[hello, peer(1)]);
        let welcome = bytes(&[Message::Welcome { version: 1, mode }]);
        let mut answer = vec![0; welcome.len()];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, welcome);
    }
}

#[test]
fn a_client_tells_what_a_server_does_not_speak() {
    let refused = |refusal| Message::Refused { subject: Subject::Connection, refusal };
    for has_key in plain_and_keyed() {
        let scratch = Scratch::new();
        let (mode, key) = (u8::from(has_key), keyed(&scratch, has_key));
        let answers = [
            (refused(Refusal::Version(3)), 5, "it speaks up to version 3; update the older side"),
            (refused(Refusal::Version(0)), 5, "it speaks up to version 0; update the older side"),
            (refused(Refusal::Mode(2)), 7, "it wants mode 2, which this version can't do; update the older side"),
            (Message::Welcome { version: 2, mode }, 5, "WELCOME to something that was not offered"),
            (Message::Welcome { version: 1, mode: 1 - mode }, 5, "WELCOME to something that was not offered"),
            (Message::Welcome { version: 1, mode: 2 }, 5, "WELCOME to something that was not offered"),
        ];
        for (answer, code, says) in answers {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let other = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(&bytes(&[answer])).unwrap();
                let _ = stream.read_to_end(&mut Vec::new());
                listener
            });
            let mut arguments = vec!["client".to_owned(), "--to".to_owned(), address];
            arguments.extend(key.iter().cloned());
            arguments.extend(["--retry", "10s", "--text", "x"].map(str::to_owned));
            let run = postwire(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), &[], b"");
            run.assert_code(code).assert(run.stderr.contains(says) && run.stderr.lines().count() == 1, says);
            let listener = other.join().unwrap();
            listener.set_nonblocking(true).unwrap();
            assert!(listener.accept().is_err(), "it does not ask again: {says}");
        }
    }
}

#[cfg(not(feature = "encrypt"))]
#[test]
fn a_build_that_can_not_encrypt_says_so_before_it_opens_anything() {
    let scratch = Scratch::new();
    let path = key(&scratch, "key");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    for arguments in [
        &["client", "--to", &address, "--key-file", &path, "--text", "x"][..],
        &["server", "--listen", "127.0.0.1:0", "--key-file", &path],
    ] {
        let run = postwire(arguments, &[], b"");
        run.assert_code(2).assert(run.stderr.contains("--features full"), "how to get one that can");
    }
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "nobody called");
}

#[cfg(feature = "encrypt")]
mod sealed {
    use super::*;
    use common::{assert_same_file, client_fed};
    use proxy::{Faults, Line, Proxy};
    use std::sync::{Arc, Mutex};

    /// Carries connections to a server, and keeps all that goes over the line.
    struct Tap {
        address: String,
        seen: Arc<Mutex<Vec<u8>>>,
    }

    impl Tap {
        fn new(server: &Server) -> Tap {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let (seen, target) = (Arc::default(), server.address());
            let kept = Arc::clone(&seen);
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let (near, far) = (stream.unwrap(), TcpStream::connect(&target).unwrap());
                    let directions = [(near.try_clone(), far.try_clone()), (far.try_clone(), near.try_clone())];
                    for (from, to) in directions {
                        let kept: Arc<Mutex<Vec<u8>>> = Arc::clone(&kept);
                        let (mut from, mut to) = (from.unwrap(), to.unwrap());
                        thread::spawn(move || {
                            let mut piece = [0; 4096];
                            while let Ok(count @ 1..) = from.read(&mut piece) {
                                kept.lock().unwrap().extend_from_slice(&piece[..count]);
                                if to.write_all(&piece[..count]).is_err() {
                                    break;
                                }
                            }
                            let _ = to.shutdown(std::net::Shutdown::Write);
                        });
                    }
                }
            });
            Tap { address, seen }
        }

        fn saw(&self, words: &[u8]) -> bool {
            self.seen.lock().unwrap().windows(words.len()).any(|window| window == words)
        }
    }

    #[test]
    fn with_the_same_key_everything_works_and_nothing_of_it_can_be_seen() {
        let scratch = Scratch::new();
        let (key, inbox) = (key(&scratch, "key"), scratch.directory("inbox"));
        let mut server = Server::start(&["--dir", &inbox, "--share", &inbox, "--key-file", &key]);
        let tap = Tap::new(&server);
        fs::write(scratch.path("needle-name"), "needle-content ".repeat(50_000)).unwrap();
        scratch.file("tree/sub/file", 700_000, 3);
        let files = [scratch.path("needle-name"), scratch.path("tree")];
        let sent = [
            "--to",
            &tap.address,
            "--key-file",
            &key,
            "--file",
            &files[0],
            "--file",
            &files[1],
            "--text",
            "needle-text",
        ];
        client(&sent).assert_code(0);
        server.wait_stdout(|line| line.ends_with(": needle-text"));
        assert_same_file(&files[0], format!("{inbox}/needle-name"));
        assert_same_file(scratch.path("tree/sub/file"), format!("{inbox}/tree/sub/file"));
        let there = scratch.directory("there");
        client(&["--to", &tap.address, "--key-file", &key, "--dir", &there, "--get", "tree", "--list"]).assert_code(0);
        assert_same_file(scratch.path("tree/sub/file"), format!("{there}/tree/sub/file"));
        assert!(tap.saw(b"POSTWIRE"));
        assert!(!tap.saw(b"needle") && !tap.saw(b"sub/file"), "something was not sealed");
    }

    #[test]
    fn the_key_may_come_from_the_environment_or_standard_input() {
        let scratch = Scratch::new();
        let key = key(&scratch, "key");
        let text = fs::read_to_string(&key).unwrap();
        let server = Server::start(&["--key-file", &key]);
        let arguments = ["client", "--to", &server.address(), "--text", "x"];
        postwire(&arguments, &[("POSTWIRE_KEY", text.trim())], b"").assert_code(0);
        postwire(&arguments, &[("POSTWIRE_KEY_FILE", &key)], b"").assert_code(0);
        client_fed(&["--to", &server.address(), "--text", "x", "--key-file", "-"], text.as_bytes()).assert_code(0);
        client(&["--to", &server.address(), "--key-file", "-", "--file", "-", "--as", "x"]).assert_code(2);
    }

    #[test]
    fn who_has_no_key_or_another_one_is_refused_on_both_sides_and_says_nothing_first() {
        let scratch = Scratch::new();
        let (ours, other) = (key(&scratch, "ours"), key(&scratch, "other"));
        let cells: [(Option<&str>, Option<&str>, &str); 3] = [
            (Some(&ours), None, "it takes only those who have its key: --key-file"),
            (None, Some(&ours), "it has no key: give it ours with --key-file"),
            (Some(&ours), Some(&other), "the keys of both sides are not the same: --key-file"),
        ];
        for (there, here, says) in cells {
            let keyed = |key: Option<&str>| key.map_or(Vec::new(), |key| vec!["--key-file".to_owned(), key.to_owned()]);
            let server_key = keyed(there);
            let mut server = Server::start(&server_key.iter().map(String::as_str).collect::<Vec<_>>());
            let tap = Tap::new(&server);
            let mut arguments = vec!["--to".to_owned(), tap.address.clone()];
            arguments.extend(["--nick", "needle", "--text", "needle"].map(str::to_owned));
            arguments.extend(keyed(here));
            let run = client(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
            run.assert_code(7);
            run.assert(run.stderr.contains(says) && run.stderr.lines().count() == 1, says);
            server.wait_stderr(|line| line.starts_with("refused 127.0.0.1:") && line.contains("key"));
            // A plain client says its nickname with its hello, and no more.
            let text = tap.seen.lock().unwrap().windows(6).filter(|window| window == b"needle").count();
            assert!(text <= usize::from(here.is_none()), "a payload was on the wire");
        }
    }

    #[test]
    fn breaks_and_damage_are_survived_as_in_the_plain_mode() {
        let scratch = Scratch::new();
        let (key, inbox) = (key(&scratch, "key"), scratch.directory("inbox"));
        let server = Server::start(&["--dir", &inbox, "--key-file", &key]);
        let file = scratch.file("file", 6_000_000, 7);
        let cut = |bytes| [Line { reset_after_bytes: Some(bytes), ..Line::default() }, Line::default()];
        let flip = |bit| [Line { flip_bits: vec![bit], ..Line::default() }, Line::default()];
        let by_connection = vec![cut(1_500_000), flip(9_000_003), cut(60), flip(200), cut(2_000_000), flip(1_000_000)];
        let proxy = Proxy::start(server.address().parse().unwrap(), Faults { by_connection, ..Faults::default() });
        let address = proxy.address().to_string();
        let run = client(&["-v", "--to", &address, "--key-file", &key, "--retry", "20s", &file]);
        run.assert_code(0);
        run.assert(!run.stderr.contains("resumed_bytes=0 "), "what came before the breaks did not travel again");
        assert_same_file(&file, format!("{inbox}/file"));
        assert_eq!(proxy.connections(), 7);
    }

    #[test]
    fn one_flipped_bit_anywhere_in_the_hello_lets_nobody_in_and_nothing_wrong() {
        let scratch = Scratch::new();
        let key = key(&scratch, "key");
        let mut server = Server::start(&["--key-file", &key]);
        for number in 0..40_u64 {
            let damaged = Line { flip_bits: vec![number * 27], ..Line::default() };
            let lines = if number % 2 == 0 { [damaged, Line::default()] } else { [Line::default(), damaged] };
            let faults = Faults { by_connection: vec![lines], ..Faults::default() };
            let proxy = Proxy::start(server.address().parse().unwrap(), faults);
            let text = format!("text {number}");
            let address = proxy.address().to_string();
            let run = client(&["--to", &address, "--key-file", &key, "--retry", "20s", "--text", &text]);
            // In the handshake damage can't be told from another key.
            run.assert(run.code == 0 || run.code == 7, "done, or taken for another key");
            if run.code == 0 {
                server.wait_stdout(|line| line.ends_with(&text));
            }
        }
    }
}
