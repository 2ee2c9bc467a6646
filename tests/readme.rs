//! README's everyday examples do what they say.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::process::Command;

use common::{assert_same_file, until, Run, Running, Scratch, Signal, BINARY};

/// The lines of the block, without what they mean.
fn examples() -> Vec<String> {
    let readme = fs::read_to_string("README.md").unwrap();
    let (_, after) = readme.split_once("## Everyday\n").unwrap();
    let block = after.lines().skip(1).take_while(|line| line.starts_with("    "));
    block.map(|line| line.split("  #").next().unwrap().trim().to_owned()).collect()
}

/// A place as the examples take for granted: links to the program, files, directories.
struct Place {
    scratch: Scratch,
    done: BTreeSet<String>,
}

impl Place {
    fn new() -> Place {
        let place = Place { scratch: Scratch::new(), done: BTreeSet::new() };
        for directory in ["bin", "inbox", "pub", "data", "etc/sub", "logs", "out", "here"] {
            place.scratch.directory(directory);
        }
        for link in ["client", "server"] {
            symlink(BINARY, place.scratch.path(&format!("bin/{link}"))).unwrap();
        }
        for (number, name) in [
            "a.bin",
            "b.bin",
            "build/out",
            "messages",
            "etc/sub/conf",
            "big.iso",
            "x",
            "pub/core",
            "pub/logs/log",
            "fw.bin",
            "var/crash/core",
        ]
        .iter()
        .enumerate()
        {
            place.scratch.file(name, 3000, u64::try_from(number).unwrap() + 1);
        }
        let script = "#!/bin/sh\necho \"$RECEIVED_TYPE\" >> seen\n";
        fs::write(place.scratch.path("on-receipt"), script).unwrap();
        fs::set_permissions(place.scratch.path("on-receipt"), fs::Permissions::from_mode(0o755)).unwrap();
        place
    }

    /// Starts an example in a directory of the place.
    fn start(&mut self, example: &str, at: &str, changed: &[(&str, &str)]) -> Running {
        assert!(examples().iter().any(|line| line == example), "not in the README: {example}");
        self.done.insert(example.to_owned());
        let line = changed.iter().fold(example.to_owned(), |line, (from, to)| {
            assert!(line.contains(from), "{line}: no {from}");
            line.replacen(from, to, 1)
        });
        let path = format!("{}:{}", self.scratch.path("bin"), std::env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        command.args(["-c", &line]).env("PATH", path).current_dir(self.scratch.path(at));
        Running::spawn(command)
    }

    fn run(&mut self, example: &str, at: &str, changed: &[(&str, &str)]) -> Run {
        self.start(example, at, changed).wait()
    }

    /// Starts a server, and gives its address.
    fn serve(&mut self, example: &str, at: &str) -> (Running, String) {
        let port_file = self.scratch.path("port");
        let _ = fs::remove_file(&port_file);
        let listen = format!("exec server --listen 127.0.0.1:0 --port-file {port_file}");
        let server = match example.contains('|') {
            true => self.start(example, at, &[("server", listen.trim_start_matches("exec "))]),
            false => self.start(example, at, &[("server", &listen)]),
        };
        let port = until("the port", || fs::read_to_string(&port_file).ok().filter(|port| !port.is_empty()));
        (server, format!("127.0.0.1:{}", port.trim()))
    }

    fn same(&self, left: &str, right: &str) {
        assert_same_file(self.scratch.path(left), self.scratch.path(right));
    }
}

fn end(mut server: Running) {
    server.signal(Signal::TERM);
    server.wait().assert_code(0);
}

#[test]
fn each_everyday_example_does_what_it_says() {
    let mut place = Place::new();
    let (server, address) = place.serve("server --dir inbox", "");
    let host = [("host", address.as_str())];
    place.run("client --to host a.bin b.bin --text done", "", &host).assert_code(0);
    place.same("a.bin", "inbox/a.bin");
    let messages = [host[0], ("/var/log/messages", "messages")];
    let cron = place.run("client -q --to host /var/log/messages", "", &messages);
    cron.assert_code(0).assert(cron.stdout.is_empty() && cron.stderr.is_empty(), "silence and 0");
    place.run("client --to host --as fw.bin --file build/out", "", &host).assert_code(0);
    place.same("build/out", "inbox/fw.bin");
    place.run("client --to host --file /etc", "", &[host[0], ("/etc", "etc")]).assert_code(0);
    place.same("etc/sub/conf", "inbox/etc/sub/conf");
    let piped = "tar c . | client --to host --file - --as x.tar";
    place.run(piped, "etc", &host).assert_code(0);
    assert!(fs::metadata(place.scratch.path("inbox/x.tar")).unwrap().len() > 3000);
    place.run("client --to host --limit-rate 500k big.iso", "", &host).assert_code(0);
    place.same("big.iso", "inbox/big.iso");
    let v6 = "client --to '[2001:db8::1]:9000' --retry 10m x";
    place.run(v6, "", &[("'[2001:db8::1]:9000'", &address)]).assert_code(0);
    // In the shell's place, so that the signal at the end is for it.
    let stays = [host[0], ("/data", "data"), ("/var", "var"), ("client", "exec client")];
    let mut board = place.start("client --to host --nick b7 --dir /data --share /var --stay", "", &stays);
    board.wait_stderr(|line| line == "you are b7");
    let mut ann = place.start("client --to host --nick ann", "", &host);
    ann.wait_stderr(|line| line == "you are ann");
    place.run("client --to host --for ann --text \"come home\"", "", &host).assert_code(0);
    ann.wait_stdout(|line| line.ends_with(": come home"));
    ann.type_line("hello");
    board.wait_stdout(|line| line == "ann: hello");
    place.run("client --to host --for b7 fw.bin --text flash", "", &host).assert_code(0);
    place.same("fw.bin", "data/fw.bin");
    board.wait_stdout(|line| line.ends_with(": flash"));
    let all = place.run("client --to host --for '*' fw.bin", "", &host);
    all.assert_code(0).assert(all.stderr.lines().count() == 1, "ann, who only talks, is not meant");
    place.run("client --to host --from b7 --get crash/core", "here", &host).assert_code(0);
    place.same("var/crash/core", "here/core");
    fs::remove_file(place.scratch.path("here/core")).unwrap();
    place.run("client --to host --for b9 --leave fw.bin", "", &host).assert_code(0);
    ann.close_stdin();
    ann.wait().assert_code(0);
    end(board);
    end(server);

    let (server, address) = place.serve("server --dir inbox --share pub", "");
    let host = [("host", address.as_str())];
    let listing = place.run("client --to host --list", "", &host);
    listing.assert_code(0).assert(listing.stdout.lines().count() == 3, "three entries");
    place.run("client --to host --get core --get logs", "here", &host).assert_code(0);
    place.same("pub/core", "here/core");
    place.same("pub/logs/log", "here/logs/log");
    end(server);

    let (server, address) = place.serve("server --dir inbox --exec ./on-receipt", "");
    let host = [("host", address.as_str())];
    place.run("client --to host a.bin b.bin --text done", "", &host).assert_code(0);
    until("three runs of the program", || {
        let seen = fs::read_to_string(place.scratch.path("seen")).unwrap_or_default();
        (seen.lines().count() == 3 && seen.contains("text") && seen.contains("file")).then_some(())
    });
    end(server);

    let (mut server, address) = place.serve("server --stdout | tar x", "out");
    place.run(piped, "etc", &[("host", &address)]).assert_code(0);
    server.wait().assert_code(0);
    place.same("etc/sub/conf", "out/sub/conf");

    // Its stdin here is no socket, which it says.
    let refused = place.run("server --dir inbox --listen -", "", &[]);
    refused.assert_code(2).assert(refused.stderr.contains("a listening TCP socket"), "what it takes");

    let all: BTreeSet<String> = examples().into_iter().collect();
    let untried: Vec<_> = all.difference(&place.done).collect();
    assert!(untried.is_empty(), "examples that were not tried: {untried:?}");
}

#[test]
fn the_exit_codes_are_those_of_the_help() {
    let readme = fs::read_to_string("README.md").unwrap();
    let help = Command::new(BINARY).args(["client", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (_, codes) = help.split_once("Exit codes:\n").unwrap();
    let codes: Vec<&str> = codes.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(codes.len() >= 11, "{codes:?}");
    for code in codes.iter().filter(|code| code.parse::<u8>().is_ok() || **code == "128+N") {
        assert!(readme.contains(&format!("| {code} | ")), "exit code {code}");
    }
}
