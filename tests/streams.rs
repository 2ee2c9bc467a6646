//! The real binary sends what has no length: standard input, FIFOs, the files of /proc; and files that grow.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;
#[path = "tools/proxy.rs"]
mod proxy;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::process::{Command, Stdio};

use common::{assert_same_file, client, client_fed, client_spawn, Scratch, Server, Signal, BINARY};
use proxy::{Faults, Line, Proxy};

/// A server with a directory, and that directory.
fn server(scratch: &Scratch, more: &[&str]) -> (Server, String) {
    let inbox = scratch.directory("inbox");
    (Server::start(&[&["--dir", inbox.as_str()], more].concat()), inbox)
}

fn proxy(server: &Server, faults: Faults) -> Proxy {
    Proxy::start(server.address().parse().unwrap(), faults)
}

#[test]
fn standard_input_of_any_length_becomes_a_file() {
    let scratch = Scratch::new();
    let (server, inbox) = server(&scratch, &[]);
    for size in [0, 1, 65_536, 262_144, 262_145, 5_000_000] {
        let source = scratch.file(&format!("s{size}"), size, size + 1);
        let content = fs::read(&source).unwrap();
        let run =
            client_fed(&["--json", "--to", &server.address(), "--file", "-", "--as", &format!("s{size}")], &content);
        run.assert_code(0);
        run.assert(run.stdout.contains("\"kind\":\"stream\""), "the receipt says that it was a stream");
        run.assert(run.stdout.contains(&format!("\"bytes\":{size},")), "the receipt says its length");
        run.assert(run.stdout.contains("\"durable\":true"), "it is durable");
        assert_same_file(&source, format!("{inbox}/s{size}"));
    }
    assert_eq!(fs::read_dir(&inbox).unwrap().count(), 6, "no partial is left");
}

#[test]
fn a_stream_goes_on_after_each_break() {
    let scratch = Scratch::new();
    let (server, inbox) = server(&scratch, &[]);
    let source = scratch.file("source", 6_000_000, 7);
    let cut = |bytes| [Line { reset_after_bytes: Some(bytes), ..Line::default() }, Line::default()];
    let by_connection = [900_000, 50, 1_700_000, 300_001, 2_000_000].map(cut).to_vec();
    let proxy = proxy(&server, Faults { by_connection, ..Faults::default() });
    let address = proxy.address().to_string();
    let content = fs::read(&source).unwrap();
    let run = client_fed(&["-v", "--to", &address, "--retry", "20s", "--file", "-", "--as", "s"], &content);
    run.assert_code(0);
    let is_resumed = run.stderr.contains("info receipt direction=outgoing kind=stream name=s stored=s bytes=6000000")
        && !run.stderr.contains("resumed_bytes=0 ");
    run.assert(is_resumed, "what came before the break did not travel again");
    assert_eq!(proxy.connections(), 6);
    assert_same_file(&source, format!("{inbox}/s"));
    assert_eq!(fs::read_dir(&inbox).unwrap().count(), 1, "no partial is left");
}

#[test]
fn a_stream_goes_on_at_a_server_that_was_killed_and_started_again() {
    let scratch = Scratch::new();
    let (mut first, inbox) = server(&scratch, &[]);
    let source = scratch.file("source", 3_000_000, 8);
    let content = fs::read(&source).unwrap();
    let proxy = proxy(&first, Faults::default());
    let address = proxy.address().to_string();
    let mut client = client_spawn(&["-v", "--to", &address, "--retry", "20s", "--file", "-", "--as", "s"]);
    client.type_bytes(&content[..1_500_000]);
    common::until("a partial with half of it", || {
        let sizes = fs::read_dir(&inbox).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
        sizes.into_iter().find(|&size| size == 1_500_000)
    });
    first.signal(Signal::KILL);
    first.wait().assert_code(137);
    let second = Server::start(&["--dir", &inbox]);
    proxy.set_target(second.address().parse().unwrap());
    client.type_bytes(&content[1_500_000..]);
    client.close_stdin();
    client.wait().assert_code(0);
    assert_same_file(&source, format!("{inbox}/s"));
}

#[test]
fn damaged_data_of_a_stream_is_sent_again() {
    let scratch = Scratch::new();
    let (server, inbox) = server(&scratch, &[]);
    let source = scratch.file("source", 4_000_000, 9);
    let bits = (1..20).map(|n| n * 200_000 * 8 + 4_000).collect();
    let to_server = Line { flip_bits: bits, ..Line::default() };
    let proxy = proxy(&server, Faults { to_server, only_connections: Some(1), ..Faults::default() });
    let content = fs::read(&source).unwrap();
    let address = proxy.address().to_string();
    client_fed(&["--to", &address, "--retry", "20s", "--file", "-", "--as", "s"], &content).assert_code(0);
    assert!(proxy.flipped_bits() > 0);
    assert_same_file(&source, format!("{inbox}/s"));
}

#[test]
fn a_stream_that_is_given_up_leaves_nothing_under_its_name() {
    let scratch = Scratch::new();
    let (server, inbox) = server(&scratch, &[]);
    let mut client = client_spawn(&["--to", &server.address(), "--file", "-", "--as", "s"]);
    client.type_bytes(&[7; 500_000]);
    common::until("data", || fs::read_dir(&inbox).unwrap().next().map(drop));
    client.signal(Signal::INT);
    client.wait().assert_code(130);
    drop(server.terminate());
    assert!(!std::path::Path::new(&format!("{inbox}/s")).exists());
}

#[test]
fn a_stream_past_the_file_limit_is_refused() {
    let scratch = Scratch::new();
    let (server, inbox) = server(&scratch, &["--max-file", "1M"]);
    let run = client_fed(&["--to", &server.address(), "--file", "-", "--as", "s"], &[7; 2_000_000]);
    run.assert_code(7);
    run.assert(run.stderr.contains("too big"), "the reason");
    assert_eq!(fs::read_dir(inbox).unwrap().filter(|entry| entry.as_ref().unwrap().file_name() == "s").count(), 0);
}

#[test]
fn fifos_devices_and_the_files_of_proc_are_read_to_their_end() {
    let scratch = Scratch::new();
    let (server, inbox) = server(&scratch, &[]);
    let fifo = scratch.path("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    let mut sender = client_spawn(&["--to", &server.address(), &fifo, "/proc/version", "/dev/null"]);
    fs::write(&fifo, "through a fifo").unwrap();
    sender.wait().assert_code(0);
    assert_eq!(fs::read(format!("{inbox}/fifo")).unwrap(), b"through a fifo");
    assert_eq!(fs::read(format!("{inbox}/version")).unwrap(), fs::read("/proc/version").unwrap());
    assert_eq!(fs::metadata(format!("{inbox}/null")).unwrap().len(), 0);
}

#[test]
fn a_log_that_grows_lands_at_its_offered_length() {
    let scratch = Scratch::new();
    let (server, inbox) = server(&scratch, &[]);
    let log = scratch.file("log", 20_000_000, 10);
    let line = Line { rate_bytes_per_second: Some(20_000_000), ..Line::default() };
    let proxy = proxy(&server, Faults { to_server: line, ..Faults::default() });
    let mut sender = client_spawn(&["--json", "--to", &proxy.address().to_string(), &log]);
    common::until("data", || fs::read_dir(&inbox).unwrap().next().map(drop));
    let grown = OpenOptions::new().append(true).open(&log).and_then(|mut log| log.write_all(b"one more line\n"));
    grown.unwrap();
    let run = sender.wait();
    run.assert_code(0);
    run.assert(run.stdout.contains("\"bytes\":20000000,"), "the offered length");
    run.assert(run.stdout.contains("\"grew\":true"), "the receipt says so");
    assert_eq!(fs::read(format!("{inbox}/log")).unwrap(), fs::read(&log).unwrap()[..20_000_000]);
}

#[test]
fn standard_input_needs_a_name_and_can_be_read_once() {
    let run = client(&["--to", "127.0.0.1:1", "--file", "-"]);
    run.assert_code(2);
    run.assert(run.stderr.contains("give it one with --as NAME"), "what to do");
    client(&["--to", "127.0.0.1:1", "-", "-", "--as", "x"]).assert_code(2);
}

#[test]
fn a_tar_pipe_keeps_links() {
    let scratch = Scratch::new();
    let (server, inbox) = server(&scratch, &[]);
    let tree = scratch.directory("tree");
    std::os::unix::fs::symlink("nowhere", format!("{tree}/link")).unwrap();
    let mut tar = Command::new("tar").args(["-c", "-C", &tree, "."]).stdout(Stdio::piped()).spawn().unwrap();
    let mut command = Command::new(BINARY);
    command.args(["client", "-q", "--to", &server.address(), "--file", "-", "--as", "tree.tar"]);
    let sent = command.stdin(tar.stdout.take().unwrap()).status().unwrap();
    assert!(tar.wait().unwrap().success() && sent.success());
    let back = scratch.directory("back");
    let untar = Command::new("tar").args(["-x", "-C", &back, "-f", &format!("{inbox}/tree.tar")]).status().unwrap();
    assert!(untar.success());
    assert_eq!(fs::read_link(format!("{back}/link")).unwrap(), std::path::Path::new("nowhere"));
}

/// A server that writes one file to its standard output, which goes into a file.
fn piping_server(scratch: &Scratch, name: &str) -> (Server, String) {
    let path = scratch.path(name);
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$@\" > \"$0\"", &path, BINARY]);
    (Server::start_by(command, &["--stdout"]), path)
}

#[test]
fn a_server_writes_one_file_to_standard_output_and_ends() {
    let scratch = Scratch::new();
    for (size, is_stream) in
        [(0, true), (10, false), (10, true), (262_145, false), (7_000_000, false), (7_000_000, true)]
    {
        let source = scratch.file("source", size, size + 1);
        let (mut server, out) = piping_server(&scratch, "out");
        let run = match is_stream {
            true => client_fed(&["--to", &server.address(), "--file", "-", "--as", "x"], &fs::read(&source).unwrap()),
            false => client(&["--to", &server.address(), &source]),
        };
        run.assert_code(0);
        run.assert(run.stderr.contains("not durable"), "nobody says that it is on a disk");
        server.wait().assert_code(0);
        assert_same_file(&source, &out);
    }
}

#[test]
fn what_goes_to_standard_output_goes_on_after_breaks_and_damage() {
    let scratch = Scratch::new();
    let source = scratch.file("source", 6_000_000, 7);
    for is_stream in [false, true] {
        let (mut server, out) = piping_server(&scratch, "out");
        let cut = |bytes| {
            let flip_bits = vec![300_000 * 8, 600_000 * 8];
            [Line { reset_after_bytes: Some(bytes), flip_bits, ..Line::default() }, Line::default()]
        };
        let by_connection = [900_000, 1_700_000, 300_001, 2_000_000].map(cut).to_vec();
        let proxy = proxy(&server, Faults { by_connection, ..Faults::default() });
        let address = proxy.address().to_string();
        let arguments = ["--to", address.as_str(), "--retry", "20s"];
        let run = match is_stream {
            true => client_fed(&[&arguments[..], &["--file", "-", "--as", "x"]].concat(), &fs::read(&source).unwrap()),
            false => client(&[&arguments[..], &[source.as_str()]].concat()),
        };
        run.assert_code(0);
        server.wait().assert_code(0);
        assert_same_file(&source, &out);
        assert!(proxy.connections() >= 5);
    }
}

#[test]
fn a_tar_pipe_needs_no_disk_between() {
    let scratch = Scratch::new();
    let (tree, back) = (scratch.directory("tree"), scratch.directory("back"));
    scratch.file("tree/file", 3_000_000, 5);
    std::os::unix::fs::symlink("nowhere", format!("{tree}/link")).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("\"$@\" | tar -x -C '{back}'"), "sh", BINARY]);
    let mut server = Server::start_by(command, &["--stdout"]);
    let send = format!("tar -c -C '{tree}' . | '{BINARY}' client -q --file - --as x --to {}", server.address());
    assert!(Command::new("sh").args(["-c", &send]).status().unwrap().success());
    server.wait().assert_code(0);
    assert_same_file(format!("{tree}/file"), format!("{back}/file"));
    assert_eq!(fs::read_link(format!("{back}/link")).unwrap(), std::path::Path::new("nowhere"));
}

#[test]
fn a_client_gets_to_standard_output() {
    let scratch = Scratch::new();
    let share = scratch.directory("share");
    let source = scratch.file("share/core", 1_000_000, 5);
    scratch.directory("share/tree");
    let server = Server::start(&["--share", &share]);
    let run = client(&["-q", "--to", &server.address(), "--get", "core", "--stdout"]);
    run.assert_code(0);
    assert_eq!(run.stdout_bytes, fs::read(source).unwrap());
    let tree = client(&["--to", &server.address(), "--get", "tree", "--stdout"]);
    tree.assert(tree.code != 0 && tree.stdout_bytes.is_empty(), "a directory is no stream of bytes");
}

#[test]
fn standard_output_is_for_one_thing() {
    for wrong in
        [&["--get", "a", "--get", "b"][..], &["--text", "x"], &["--get", "a", "--json"], &["--get", "a", "--dir", "."]]
    {
        client(&[&["--to", "127.0.0.1:1", "--stdout"], wrong].concat()).assert_code(2);
    }
}

#[test]
fn a_pipe_whose_reader_went_away_is_a_failure_on_both_sides() {
    let scratch = Scratch::new();
    let source = scratch.file("source", 6_000_000, 7);
    let mut command = Command::new("bash");
    command.args(["-o", "pipefail", "-c", "\"$@\" | head -c 1000 >/dev/null", "sh", BINARY]);
    let mut server = Server::start_by(command, &["--stdout"]);
    client(&["--to", &server.address(), "--retry", "0", &source]).assert_code(7);
    server.wait().assert_code(8);
}

#[test]
fn a_line_that_damages_each_connection_is_given_up_and_said_so() {
    let scratch = Scratch::new();
    let (server, _) = server(&scratch, &[]);
    let source = scratch.file("source", 300_000, 7);
    // What follows the server's hello.
    let to_client = Line { flip_bits: vec![110 * 8], ..Line::default() };
    let proxy = proxy(&server, Faults { to_client, ..Faults::default() });
    let run = client(&["--to", &proxy.address().to_string(), "--retry", "10m", &source]);
    run.assert_code(6);
    run.assert(run.stderr.contains("in a row were damaged on their way: check the cable"), "what to do");
    assert_eq!(proxy.connections(), 6);
}
