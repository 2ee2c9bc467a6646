//! The real output of `--json`, on both sides, is what its page says.
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

use common::{client, client_fed, client_spawn, Scratch, Server, Signal};
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

/// Checks lines against the page, and remembers what was seen.
struct Check {
    page: BTreeMap<String, BTreeMap<String, Key>>,
    seen: BTreeSet<String>,
    seen_keys: BTreeSet<(String, String)>,
}

impl Check {
    fn lines(&mut self, output: &str) {
        for line in output.lines() {
            let object: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            let object = object.as_object().unwrap();
            let kind = object["type"].as_str().unwrap();
            let keys = self.page.get(kind).unwrap_or_else(|| panic!("no such type on the page: {line}"));
            for (name, value) in object.iter().filter(|(name, _)| *name != "type") {
                let key = keys.get(name).unwrap_or_else(|| panic!("no key {name} on the page: {line}"));
                assert!(key.values.contains(kind_of(value)), "{name} is {}: {line}", kind_of(value));
                self.seen_keys.insert((kind.to_owned(), name.clone()));
            }
            for (name, key) in keys {
                assert!(!key.is_always_there || object.contains_key(name), "{name} is missing: {line}");
            }
            self.seen.insert(kind.to_owned());
        }
    }
}

#[test]
fn everything_that_is_printed_is_on_the_page_and_everything_on_it_was_printed() {
    let scratch = Scratch::new();
    let (inbox, here) = (scratch.directory("inbox"), scratch.directory("here"));
    let mut check = Check { page: page(), seen: BTreeSet::new(), seen_keys: BTreeSet::new() };
    let exec = scratch.path("exec");
    fs::write(&exec, "#!/bin/sh\n[ \"$RECEIVED_TYPE\" = file ] || kill -9 $$\n").unwrap();
    fs::set_permissions(&exec, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let arguments = ["--json", "--dir", &inbox, "--share", &inbox, "--exec", &exec, "--max-file", "2M"];
    let mut server = Server::start(&arguments);
    let address = server.address();

    // Files, directories, streams, names of any bytes; what can't be sent, what is refused, what is left out.
    let tree = scratch.directory("tree");
    fs::write(Path::new(&tree).join(OsStr::from_bytes(b"caf\xe9")), "x").unwrap();
    std::os::unix::fs::symlink("x", Path::new(&tree).join(OsStr::from_bytes(b"l\xefnk"))).unwrap();
    let big = scratch.file("big", 3 << 20, 1);
    let none = Path::new(OsStr::from_bytes(b"n\xf6ne")).to_owned();
    let mut sender = std::process::Command::new(common::BINARY);
    sender.args(["client", "--json", "--to", &address, "--file", &tree, &big, "/nowhere", "--"]).arg(none);
    check.lines(&common::Running::spawn(sender).wait().assert_code(9).stdout);
    let stream = client_fed(&["--json", "--to", &address, "--file", "-", "--as", "s", "--text", "done"], b"stream");
    check.lines(&stream.assert_code(0).stdout);
    check.lines(&client(&["--json", "--to", &address, "--text", "x", "--for", "nobody"]).assert_code(7).stdout);

    // Asking.
    std::os::unix::fs::symlink("x", format!("{inbox}/tree/link")).unwrap();
    let asked = ["--json", "--to", &address, "--dir", &here, "--list", "--get", "tree", "--get", "none"];
    check.lines(&client(&asked).assert_code(9).stdout);

    // The room.
    let mut ann = client_spawn(&["--json", "--to", &address, "--nick", "ann", "--stay"]);
    server.wait_stdout(|line| line.contains("\"joined\"") && line.contains("\"ann\""));
    let chat = client_fed(&["--json", "--to", &address, "--nick", "bob"], b"hello\n");
    check.lines(&chat.assert_code(0).stdout);
    ann.wait_stdout(|line| line.contains("\"left\""));
    server.type_line("/who");
    server.type_line("/msg ann for you");
    server.type_line("/msg nobody x");
    ann.wait_stdout(|line| line.contains("for you"));
    server.wait_stdout(|line| line.contains("\"type\":\"error\""));
    rename_somebody(&address);
    ann.wait_stdout(|line| line.contains("\"renamed\""));

    // A stranger, a break, an end that is not orderly.
    TcpStream::connect(&address).unwrap().write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    server.wait_stdout(|line| line.contains("\"refused\""));
    let to_server = Line { reset_after_bytes: Some(100_000), ..Line::default() };
    let faults = Faults { to_server, only_connections: Some(1), ..Faults::default() };
    let proxy = Proxy::start(address.parse().unwrap(), faults);
    let some = scratch.file("some", 1 << 20, 2);
    let broken = client(&["--json", "--to", &proxy.address().to_string(), "--retry", "20s", &some]);
    check.lines(&broken.assert_code(0).stdout);
    check.lines(&client(&["--json", "--to", "127.0.0.1:1", &some]).assert_code(3).stdout);
    ann.signal(Signal::TERM);
    check.lines(&ann.wait().stdout);
    check.lines(&server.terminate().stdout);

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
