//! The real output of `--json`, and the log of `-v`, on both sides, are what their page says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;
#[path = "tools/proxy.rs"]
mod proxy;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use common::{client, client_fed, client_spawn, Run, Scratch, Server, Signal};
use proxy::{Faults, Line, Proxy};
use serde_json::Value;

/// What the page says of a key: what its value may be, and whether it is always there.
struct Key {
    values: BTreeSet<String>,
    is_always_there: bool,
}

/// The page's types, with their keys.
fn page() -> BTreeMap<String, BTreeMap<String, Key>> {
    let text = fs::read_to_string("src/cli/JSON.md").unwrap();
    let mut types: BTreeMap<String, BTreeMap<String, Key>> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines().filter(|line| line.starts_with('|') && !line.starts_with("| ---")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [kind, key, values, means] = cells[..] else { panic!("{line}") };
        if kind == "type" {
            continue;
        }
        if !kind.is_empty() {
            current = kind.to_owned();
        }
        let values = values.split(", ").map(str::to_owned).collect();
        let key_ = Key { values, is_always_there: !means.contains("only ") };
        assert!(types.entry(current.clone()).or_default().insert(key.to_owned(), key_).is_none(), "{line} twice");
    }
    types
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "string",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::Bool(_) => "boolean",
        Value::Null => "null",
        _ => "something else",
    }
}

/// What of a run tells what happened.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// Objects on standard output.
    Json,
    /// Lines on standard error.
    Log,
}

impl Form {
    fn option(self) -> &'static str {
        match self {
            Form::Json => "--json",
            Form::Log => "-vv",
        }
    }

    /// Whether it is a line of this type.
    fn is(self, line: &str, kind: &str) -> bool {
        match self {
            Form::Json => line.starts_with(&format!("{{\"type\":\"{kind}\",")),
            Form::Log => line.split(' ').nth(2) == Some(kind),
        }
    }
}

/// Checks lines against the page, and remembers what was seen.
struct Check {
    form: Form,
    page: BTreeMap<String, BTreeMap<String, Key>>,
    seen: BTreeSet<String>,
    seen_keys: BTreeSet<(String, String)>,
}

impl Check {
    fn run(&mut self, run: &Run) {
        match self.form {
            Form::Json => run.stdout.lines().for_each(|line| self.object(line)),
            Form::Log => run.stderr.lines().for_each(|line| self.log_line(line)),
        }
    }

    fn object(&mut self, line: &str) {
        let object: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        let object = object.as_object().unwrap();
        let kind = object["type"].as_str().unwrap();
        let keys = self.keys(kind, line);
        for (name, value) in object.iter().filter(|(name, _)| *name != "type") {
            let key = keys.get(name).unwrap_or_else(|| panic!("no key {name} on the page: {line}"));
            assert!(key.values.contains(kind_of(value)), "{name} is {}: {line}", kind_of(value));
        }
        self.saw(kind, object.keys().filter(|name| *name != "type").cloned().collect(), line);
    }

    /// TIME LEVEL TYPE KEY=VALUE..., or TIME LEVEL msg=TEXT.
    fn log_line(&mut self, line: &str) {
        let [time, level, rest] = line.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("no log line: {line}") };
        let is_time = time.len() == 24 && time.as_bytes()[10] == b'T' && time.ends_with('Z');
        assert!(is_time && ["error", "info", "debug", "trace"].contains(&level), "no log line: {line}");
        if rest.starts_with("msg=") {
            return;
        }
        let (kind, mut rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let mut names = BTreeSet::new();
        while let Some((name, after)) = rest.split_once('=') {
            // A value is a JSON string, or has no space.
            let mut values = serde_json::Deserializer::from_str(after).into_iter::<Value>();
            let end = match after.starts_with('"') {
                true => values.next().unwrap().map(|_| values.byte_offset()).unwrap(),
                false => after.find(' ').unwrap_or(after.len()),
            };
            names.insert(name.to_owned());
            rest = after[end..].trim_start();
        }
        assert!(rest.is_empty(), "no key=value: {line}");
        self.saw(kind, names, line);
    }

    fn keys(&self, kind: &str, line: &str) -> &BTreeMap<String, Key> {
        self.page.get(kind).unwrap_or_else(|| panic!("no such type on the page: {line}"))
    }

    fn saw(&mut self, kind: &str, names: BTreeSet<String>, line: &str) {
        let keys = self.keys(kind, line);
        for name in &names {
            assert!(keys.contains_key(name), "no key {name} on the page: {line}");
        }
        for (name, key) in keys {
            assert!(!key.is_always_there || names.contains(name), "{name} is missing: {line}");
        }
        self.seen.insert(kind.to_owned());
        self.seen_keys.extend(names.into_iter().map(|name| (kind.to_owned(), name)));
    }
}

#[test]
fn every_object_is_on_the_page_and_everything_on_it_was_printed() {
    check(Form::Json, &[]);
}

/// A listing is data, and stands on standard output.
#[test]
fn every_log_line_is_on_the_page_and_everything_on_it_was_logged() {
    check(Form::Log, &["entry"]);
}

fn check(form: Form, never: &[&str]) {
    let scratch = Scratch::new();
    let (inbox, here) = (scratch.directory("inbox"), scratch.directory("here"));
    let mut check = Check { form, page: page(), seen: BTreeSet::new(), seen_keys: BTreeSet::new() };
    check.page.retain(|kind, _| !never.contains(&kind.as_str()));
    let option = form.option();
    let client = |arguments: &[&str]| client(&[&[option], arguments].concat());
    let exec = scratch.path("exec");
    fs::write(&exec, "#!/bin/sh\n[ \"$RECEIVED_TYPE\" = file ] || kill -9 $$\n").unwrap();
    fs::set_permissions(&exec, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let arguments = [option, "--dir", &inbox, "--share", &inbox, "--exec", &exec, "--max-file", "2M"];
    let mut server = Server::start(&arguments);
    let address = server.address();

    // Files, directories, streams, names of any bytes; what can't be sent, what is refused, what is left out.
    let tree = scratch.directory("tree");
    fs::write(Path::new(&tree).join(OsStr::from_bytes(b"caf\xe9")), "x").unwrap();
    std::os::unix::fs::symlink("x", Path::new(&tree).join(OsStr::from_bytes(b"l\xefnk"))).unwrap();
    let big = scratch.file("big", 3 << 20, 1);
    let none = Path::new(OsStr::from_bytes(b"n\xf6ne")).to_owned();
    let mut sender = std::process::Command::new(common::BINARY);
    sender.args(["client", option, "--to", &address, "--file", &tree, &big, "/nowhere", "--"]).arg(none);
    check.run(common::Running::spawn(sender).wait().assert_code(9));
    let stream = client_fed(&[option, "--to", &address, "--file", "-", "--as", "s", "--text", "done"], b"stream");
    check.run(stream.assert_code(0));
    check.run(client(&["--to", &address, "--text", "x", "--for", "nobody"]).assert_code(7));

    // Asking.
    check.run(client(&["--to", &address, "--dir", &here, "--get", "s"]).assert_code(0));
    std::os::unix::fs::symlink("x", format!("{inbox}/tree/link")).unwrap();
    let asked = ["--to", &address, "--dir", &here, "--list", "--get", "tree", "--get", "none"];
    check.run(client(&asked).assert_code(9));

    if form == Form::Log {
        // A text is no data where standard output is a file's.
        let mut one_file = Server::start(&[option, "--stdout"]);
        check.run(client(&["--to", &one_file.address(), "--text", "a text", "--file", &big]).assert_code(0));
        let run = one_file.wait();
        assert!(run.assert_code(0).stdout_bytes == fs::read(&big).unwrap());
        check.run(&run);
    }

    // The room.
    let mut ann = client_spawn(&[option, "--to", &address, "--nick", "ann", "--stay"]);
    server.wait_either(|line| form.is(line, "joined") && line.contains("ann"));
    let chat = client_fed(&[option, "--to", &address, "--nick", "bob"], b"hello\n");
    check.run(chat.assert_code(0));
    ann.wait_either(|line| form.is(line, "left"));
    server.type_line("/who");
    server.type_line("/msg ann for you");
    server.type_line("/msg nobody x");
    ann.wait_stdout(|line| line.contains("for you"));
    server.wait_either(|line| form.is(line, "error"));
    rename_somebody(&address);
    ann.wait_either(|line| form.is(line, "renamed"));

    // A stranger, a break, an end that is not orderly, one before it began.
    TcpStream::connect(&address).unwrap().write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    server.wait_either(|line| form.is(line, "refused"));
    let to_server = Line { reset_after_bytes: Some(100_000), ..Line::default() };
    let faults = Faults { to_server, only_connections: Some(1), ..Faults::default() };
    let proxy = Proxy::start(address.parse().unwrap(), faults);
    let some = scratch.file("some", 1 << 20, 2);
    let broken = client(&["--to", &proxy.address().to_string(), "--retry", "20s", &some]);
    check.run(broken.assert_code(0));
    check.run(client(&["--to", "127.0.0.1:1", &some]).assert_code(3));
    check.run(client(&["--to", "127.0.0.1:1", "--dir", "/no/such/directory", &some]).assert_code(8));
    ann.signal(Signal::TERM);
    check.run(&ann.wait());
    check.run(&server.terminate());

    let all: BTreeSet<String> = check.page.keys().cloned().collect();
    let unseen: Vec<_> = all.difference(&check.seen).collect();
    assert!(unseen.is_empty(), "on the page, and never printed: {unseen:?}");
    let keys = check.page.iter().flat_map(|(kind, keys)| keys.keys().map(move |key| (kind.clone(), key.clone())));
    let unseen: Vec<_> = keys.filter(|key| !check.seen_keys.contains(key)).collect();
    assert!(unseen.is_empty(), "keys that were never printed: {unseen:?}");
}

/// Somebody in the room asks for another nickname, as `/nick` does.
fn rename_somebody(address: &str) {
    let config = postwire::Config { join_room: true, ..postwire::Config::default() };
    let client = postwire::Client::connect(address, config).unwrap();
    client.wait_connected(common::DEADLINE).unwrap();
    client.rename(&postwire::Nickname::parse(b"zoe").unwrap());
    common::until("the new nickname", || client.nickname().filter(|nickname| nickname.as_str() == "zoe").map(drop));
    client.disconnect();
    client.wait_disconnected(common::DEADLINE).unwrap();
}
