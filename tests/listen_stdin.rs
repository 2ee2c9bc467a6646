//! The real binary with `--listen -`: whoever starts it gives it a listening socket as its stdin, and keeps that.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::fs;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use common::{assert_same_file, client, Running, Scratch, Signal, BINARY};

fn server_on(stdin: impl Into<Stdio>, arguments: &[&str]) -> Running {
    let mut command = Command::new(BINARY);
    command.args(["server", "--listen", "-"]).args(arguments);
    Running::spawn_on(command, stdin.into())
}

#[test]
fn one_server_after_another_listens_on_the_socket_that_it_is_given() {
    let scratch = Scratch::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    for number in 1..=2 {
        let (inbox, port_file) = (scratch.directory(&format!("inbox{number}")), scratch.path("port"));
        let socket = OwnedFd::from(listener.try_clone().unwrap());
        let mut server = server_on(socket, &["--dir", &inbox, "--port-file", &port_file]);
        server.wait_stderr(|line| line == format!("listening on {address}"));
        assert_eq!(format!("127.0.0.1:{}", fs::read_to_string(&port_file).unwrap().trim()), address);
        let file = scratch.file("a", 1000, number);
        client(&["--to", &address, "--nick", "ann", "--file", &file, "--text", "hello"]).assert_code(0);
        server.wait_stdout(|line| line == "ann: hello");
        assert_same_file(&file, format!("{inbox}/a"));
        server.signal(Signal::TERM);
        server.wait().assert_code(0);
    }
    // Whoever comes now waits for the next server.
    drop(TcpStream::connect(&address).unwrap());
    listener.accept().unwrap();
}

#[test]
fn what_is_no_listening_tcp_socket_is_wrong_usage() {
    let scratch = Scratch::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let unix = UnixListener::bind(scratch.path("socket")).unwrap();
    let sockets: [OwnedFd; 3] = [connected.into(), udp.into(), unix.into()];
    for stdin in sockets.map(Stdio::from).into_iter().chain([Stdio::null(), Stdio::piped()]) {
        let run = server_on(stdin, &[]).wait();
        run.assert_code(2);
        let says = run.stderr.starts_with("postwire: --listen - takes a listening TCP socket as standard input");
        run.assert(says && run.stderr.lines().count() == 1, "one helpful line");
    }
}
