//! What `scripts/service` has for systemd, BusyBox and OpenWrt, installed into a temporary directory and run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Command, Output, Stdio};

use common::{assert_same_file, client, Running, Scratch, Signal, BINARY};

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/service");

/// A copy of a file of `scripts/service` that has `scratch` for the whole machine.
fn installed(scratch: &Scratch, name: &str) -> String {
    let places = [
        ("/usr/local/bin/postwire", BINARY.to_owned()),
        ("/usr/bin/postwire", BINARY.to_owned()),
        ("/srv/inbox", scratch.directory("inbox")),
        ("/var/log/postwire", scratch.path("log")),
        ("/var/run/postwire.pid", scratch.path("pid")),
        ("/etc/default/postwire", scratch.path("settings")),
    ];
    let text = fs::read_to_string(format!("{SCRIPTS}/{name}")).unwrap();
    let copy = scratch.path(name);
    fs::write(&copy, places.iter().fold(text, |text, (there, here)| text.replace(there, here))).unwrap();
    copy
}

/// An init script, which is stopped at the end.
struct Init(String);

impl Init {
    fn run(&self, action: &str) -> Output {
        Command::new("sh").args([&self.0, action]).output().unwrap()
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        self.run("stop");
    }
}

fn line(output: &Output) -> String {
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn the_script_for_busybox_init_starts_one_server_and_stops_it() {
    let scratch = Scratch::new();
    let init = Init(installed(&scratch, "S99postwire"));
    let port_file = scratch.path("port");
    fs::write(scratch.path("settings"), format!("options='--listen 127.0.0.1:0 --port-file {port_file}'\n")).unwrap();
    for round in 1..=2 {
        let _ = fs::remove_file(&port_file);
        assert_eq!(line(&init.run("start")), "");
        let address = format!("127.0.0.1:{}", common::wait_for_file(&port_file).trim());
        let pid = fs::read_to_string(scratch.path("pid")).unwrap();
        assert_eq!(line(&init.run("start")), format!("postwire runs already, pid {pid}"));
        let file = scratch.file(&format!("file{round}"), 1000, round);
        client(&["--to", &address, &file]).assert_code(0);
        assert_same_file(&file, scratch.path(&format!("inbox/file{round}")));
        assert_eq!(line(&init.run("stop")), "");
        client(&["--to", &address, &file]).assert_code(3);
    }
    assert_eq!(line(&init.run("stop")), "", "it does not run");
    assert_eq!(init.run("").status.code(), Some(2));
    let log = fs::read_to_string(scratch.path("log")).unwrap();
    assert_eq!(log.matches("stopping: ").count(), 2, "{log}");
}

#[test]
fn the_script_for_inetd_writes_nothing_into_its_socket() {
    let scratch = Scratch::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = || Stdio::from(OwnedFd::from(listener.try_clone().unwrap()));
    let mut command = Command::new("sh");
    command.arg("-c").arg("exec sh \"$0\" >&0 2>&0").arg(installed(&scratch, "inetd"));
    let mut server = Running::spawn_on(command, socket());
    let address = listener.local_addr().unwrap().to_string();
    let file = scratch.file("file", 1000, 1);
    client(&["--to", &address, "--nick", "ann", "--file", &file, "--text", "hello"]).assert_code(0);
    assert_same_file(&file, scratch.path("inbox/file"));
    server.signal(Signal::TERM);
    server.wait().assert_code(0);
    let log = fs::read_to_string(scratch.path("log")).unwrap();
    assert!(log.contains("ann: hello\n"), "{log}");
}

#[test]
fn systemd_finds_no_fault_in_the_units() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return println!("systemd-analyze is not installed, units not looked at");
    }
    let scratch = Scratch::new();
    let units = ["postwire.socket", "postwire.service"].map(|name| installed(&scratch, name));
    let output = Command::new("systemd-analyze").arg("verify").args(&units).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn every_script_is_one_for_any_shell() {
    for name in ["S99postwire", "inetd", "openwrt"] {
        let output = Command::new("sh").arg("-n").arg(format!("{SCRIPTS}/{name}")).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }
}
