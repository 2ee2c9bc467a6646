//! The real binary, where something is wrong outside of it: one line that says what to do, on each side that sees it, and
//! the exit code of README's table.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use common::{client, client_spawn, Run, Running, Scratch, Server, BINARY};

/// One line on stderr that holds all of these, and nothing else.
#[track_caller]
fn says(run: &Run, code: i32, words: &[&str]) {
    run.assert_code(code);
    run.assert(run.stderr.lines().count() == 1, "one line");
    for word in words {
        run.assert(run.stderr.contains(word), &format!("it says: {word}"));
    }
}

/// Waits until the server says it in one line.
fn server_says(server: &mut Server, words: &[&str]) {
    server.wait_stderr(|line| words.iter().all(|word| line.contains(word)));
}

/// The program as a user who may do nothing: whoever runs this may be root, whom no mode stops.
fn as_nobody(scratch: &Scratch) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(BINARY);
    }
    let directory = scratch.directory("bin");
    fs::set_permissions(scratch.path("."), Permissions::from_mode(0o755)).unwrap();
    let copy = format!("{directory}/postwire");
    fs::copy(BINARY, &copy).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--clear-groups", &copy]);
    command
}

fn run(mut command: Command, arguments: &[&str]) -> Run {
    command.args(arguments);
    Running::spawn(command).wait()
}

#[test]
fn nobody_listens() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    says(&client(&["--to", &free, "--text", "x"]), 3, &[&free, "Connection refused", "does the server run there"]);
}

#[test]
fn there_is_no_such_name() {
    // A machine without a name server can't know that a name does not exist.
    let run = client(&["--to", "no-such-host.invalid", "--text", "x"]);
    says(&run, 3, &["no address for host \"no-such-host.invalid\""]);
    run.assert(run.stderr.contains("is the name right?") || run.stderr.contains("in place of the name"), "advice");
}

#[test]
fn no_name_server_answers() {
    let mut command = Command::new("unshare");
    command.args(["-rn", BINARY, "client", "--to", "host.example", "--text", "x"]);
    let run = Running::spawn(command).wait();
    says(&run, 3, &["no address for host \"host.example\"", "give an address in place of the name"]);
}

#[test]
fn somebody_else_has_the_port() {
    let strangers: [(&[u8], &str); 4] = [
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", "it is an HTTP server"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "it speaks SSH"),
        (b"\x15\x03\x01\x00\x02\x02\x16", "it speaks TLS"),
        (b"220 mail.example ESMTP\r\n", "it speaks a text protocol"),
    ];
    for (answer, name) in strangers {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap().to_string();
        let stranger = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(answer).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        });
        says(&client(&["--to", &to, "--text", "x"]), 5, &[name, "is the port right?"]);
        stranger.join().unwrap();
    }
}

#[test]
fn the_receiver_takes_no_files() {
    let scratch = Scratch::new();
    let mut server = Server::start(&[]);
    let file = scratch.file("a", 10, 1);
    says(&client(&["--to", &server.address(), &file]), 7, &["\"", "takes no files", "start it with --dir DIR"]);
    server_says(&mut server, &["refused \"a\"", "no files are taken without --dir DIR"]);
}

#[test]
fn the_name_is_taken() {
    let scratch = Scratch::new();
    let inbox = scratch.directory("inbox");
    fs::write(format!("{inbox}/a"), "other").unwrap();
    let mut server = Server::start(&["--dir", &inbox, "--if-exists", "refuse"]);
    let file = scratch.file("a", 10, 1);
    says(&client(&["--to", &server.address(), &file]), 7, &["the name is taken there", "--as gives"]);
    server_says(&mut server, &["refused \"a\"", "the name is taken"]);
}

#[test]
fn the_disk_is_full() {
    let scratch = Scratch::new();
    let inbox = scratch.directory("inbox");
    let mut server = Server::start(&["--dir", &inbox, "--min-free", "1000000T"]);
    let file = scratch.file("a", 10, 1);
    says(&client(&["--to", &server.address(), &file]), 7, &["its disk or quota is full", "make room there"]);
    server_says(&mut server, &["refused \"a\"", "see --min-free"]);
}

#[test]
fn the_receiver_may_not_write() {
    let scratch = Scratch::new();
    let nobody = as_nobody(&scratch);
    let inbox = scratch.directory("inbox");
    let closed = |mode| fs::set_permissions(&inbox, Permissions::from_mode(mode)).unwrap();
    closed(0o555);
    let at_start = run(as_nobody(&scratch), &["server", "--listen", "127.0.0.1:0", "--dir", &inbox]);
    says(&at_start, 8, &["inbox\": Permission denied", "as a user who may write there"]);
    // Where the port file goes.
    closed(0o777);
    let ports = scratch.directory("ports");
    fs::set_permissions(&ports, Permissions::from_mode(0o777)).unwrap();
    let mut server = server_by(nobody, &["--dir", &inbox], &format!("{ports}/port"));
    closed(0o555);
    let file = scratch.file("a", 10, 1);
    says(&client(&["--to", &server.1, &file]), 7, &["its directory can't be written", "the server's user"]);
    server.0.wait_stderr(|line| line.contains("\"a\"") && line.contains("Permission denied"));
    closed(0o777);
}

/// A server that can't write where the others put their port file.
fn server_by(mut command: Command, arguments: &[&str], port_file: &str) -> (Running, String) {
    command.args(["server", "--listen", "127.0.0.1:0", "--port-file", port_file]).args(arguments);
    let server = Running::spawn(command);
    let port = common::until("the port file", || fs::read_to_string(port_file).ok());
    (server, format!("127.0.0.1:{}", port.trim()))
}

#[test]
fn what_is_here_can_not_be_read() {
    let scratch = Scratch::new();
    let server = Server::start(&["--dir", &scratch.directory("inbox")]);
    let file = scratch.file("a", 10, 1);
    fs::set_permissions(&file, Permissions::from_mode(0o0)).unwrap();
    let to = server.address();
    let denied = run(as_nobody(&scratch), &["client", "--to", &to, &file]);
    says(&denied, 8, &["can't open", "Permission denied", "as a user who may read it"]);
    let missing = client(&["--to", &to, &scratch.path("missing")]);
    says(&missing, 8, &["missing\": No such file", "is the path right?"]);
    let one_of_two = client(&["-q", "--to", &to, &scratch.path("missing"), &scratch.file("b", 10, 1)]);
    says(&one_of_two, 9, &["missing\": No such file"]);
}

#[test]
fn a_directory_is_missing() {
    let scratch = Scratch::new();
    let missing = scratch.path("missing");
    let server =
        |arguments: &[&str]| run(Command::new(BINARY), &[&["server", "--listen", "127.0.0.1:0"], arguments].concat());
    says(&server(&["--dir", &missing]), 8, &["missing\": No such file", "directories are not made"]);
    says(&server(&["--dir", &scratch.file("a", 1, 1)]), 8, &["a\": Not a directory"]);
    let run = client_spawn(&["--to", "127.0.0.1:1", "--dir", &missing]).wait();
    says(&run, 8, &["missing\": No such file", "directories are not made"]);
}

#[test]
fn the_server_s_address_is_not_to_be_had() {
    let taken = Server::start(&[]);
    let listen = |address: &str| run(Command::new(BINARY), &["server", "--listen", address]);
    says(&listen(&taken.address()), 1, &["Address already in use", "--listen takes another"]);
    says(&listen("192.0.2.1:7117"), 1, &["no interface of this machine has that address"]);
}
