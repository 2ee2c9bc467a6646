//! Every option that `--help` names: without its value, with a bad one, twice; and where it is shown what a good one does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use common::raw::{bytes, hello, peer, Frames};
use common::{assert_same_file, client, client_spawn, until, Running, Scratch, Server, Signal, BINARY, DEADLINE};
use postwire::wire::{Decoder, Frame, Message, Peer};
use postwire::Nickname;

/// Where it is shown that an option does what its line in the help says: side, option, file, test.
const SHOWN: [(&str, &str, &str, &str); 54] = [
    ("client", "as", "trees", "a_tree_can_have_another_name_and_one_without_a_name_has_that_of_the_place"),
    ("client", "connect-timeout", "options", "one_try_to_connect_takes_no_longer_than_it_may"),
    ("client", "count", "rooms", "a_client_that_stays_comes_back_after_the_server_does"),
    ("client", "dir", "pull", "files_and_trees_come_here_or_where_dir_says"),
    ("client", "exec", "exec", "a_client_runs_it_too_before_it_ends"),
    ("client", "file", "end_to_end", "a_text_after_a_file_goes_only_when_that_file_is_stored"),
    ("client", "for", "relay", "a_file_for_one_is_on_its_disk_when_the_sender_ends"),
    ("client", "from", "relay", "what_others_share_is_listed_and_fetched_through_the_server"),
    ("client", "get", "pull", "files_and_trees_come_here_or_where_dir_says"),
    ("client", "help", "options", "help_and_version_are_all_that_is_said"),
    ("client", "if-exists", "options", "what_a_client_gets_is_stored_as_its_options_say"),
    ("client", "json", "json", "every_object_is_on_the_page_and_everything_on_it_was_printed"),
    ("client", "keep-partials", "options", "what_a_client_gets_is_stored_as_its_options_say"),
    ("client", "key-file", "keys", "with_the_same_key_everything_works_and_nothing_of_it_can_be_seen"),
    ("client", "leave", "relay", "what_is_left_is_delivered_in_order_and_once_though_the_server_is_killed"),
    ("client", "limit-rate", "limit_rate", "a_client_sends_no_faster_than_it_was_told"),
    ("client", "list", "pull", "a_listing_shows_names_sizes_and_times"),
    ("client", "max-file", "pull", "a_disk_that_can_not_be_written_here_is_exit_8"),
    ("client", "max-memory", "options", "less_memory_is_smaller_chunks_on_either_side"),
    ("client", "min-free", "options", "what_a_client_gets_is_stored_as_its_options_say"),
    ("client", "nick", "rooms", "a_taken_nickname_gets_a_number"),
    ("client", "no-fsync", "options", "without_a_sync_a_receipt_says_so_on_either_side"),
    ("client", "quiet", "end_to_end", "a_thousand_small_files_go_in_one_command"),
    ("client", "retry", "options", "nobody_there_is_tried_again_for_as_long_as_it_says"),
    ("client", "share", "relay", "what_others_share_is_listed_and_fetched_through_the_server"),
    ("client", "stay", "rooms", "a_client_that_stays_comes_back_after_the_server_does"),
    ("client", "stdout", "streams", "a_client_gets_to_standard_output"),
    ("client", "text", "end_to_end", "a_text_after_a_file_goes_only_when_that_file_is_stored"),
    ("client", "to", "end_to_end", "files_of_every_size_arrive_exactly_with_time_and_mode"),
    ("client", "verbose", "json", "every_log_line_is_on_the_page_and_everything_on_it_was_logged"),
    ("client", "version", "options", "help_and_version_are_all_that_is_said"),
    ("server", "allow", "keys", "only_who_is_allowed_gets_in_and_an_open_server_says_that_it_is_open"),
    ("server", "dir", "end_to_end", "a_server_without_a_directory_refuses_files_and_takes_texts"),
    ("server", "exec", "exec", "a_text_is_its_standard_input_byte_for_byte"),
    ("server", "help", "options", "help_and_version_are_all_that_is_said"),
    ("server", "if-exists", "end_to_end", "if_exists_replaces_or_refuses"),
    ("server", "json", "json", "every_object_is_on_the_page_and_everything_on_it_was_printed"),
    ("server", "keep-partials", "end_to_end", "partials_that_nobody_continues_go_after_a_while_wherever_they_are"),
    ("server", "key-file", "keys", "with_the_same_key_everything_works_and_nothing_of_it_can_be_seen"),
    ("server", "limit-rate", "limit_rate", "a_server_has_one_pace_for_all_and_a_text_overtakes_the_file"),
    ("server", "listen", "errors", "the_server_s_address_is_not_to_be_had"),
    ("server", "max-clients", "options", "no_more_clients_than_it_says_are_there_at_once"),
    ("server", "max-file", "streams", "a_stream_past_the_file_limit_is_refused"),
    ("server", "max-memory", "options", "less_memory_is_smaller_chunks_on_either_side"),
    ("server", "min-free", "errors", "the_disk_is_full"),
    // Our client shows it nowhere; others may.
    ("server", "nick", "options", "a_server_tells_its_nickname_to_whoever_comes"),
    ("server", "no-fsync", "options", "without_a_sync_a_receipt_says_so_on_either_side"),
    ("server", "no-relay", "rooms", "without_relay_texts_stay_between_server_and_sender"),
    ("server", "port-file", "listen_stdin", "one_server_after_another_listens_on_the_socket_that_it_is_given"),
    ("server", "quiet", "options", "a_quiet_server_says_what_goes_wrong_and_prints_what_is_said"),
    ("server", "share", "pull", "a_listing_shows_names_sizes_and_times"),
    ("server", "stdout", "streams", "a_server_writes_one_file_to_standard_output_and_ends"),
    ("server", "verbose", "json", "every_log_line_is_on_the_page_and_everything_on_it_was_logged"),
    ("server", "version", "options", "help_and_version_are_all_that_is_said"),
];

/// A value that the option can't have. Who gets a new option finds it missing here.
fn bad_value(option: &str) -> Option<&'static str> {
    Some(match option {
        "to" | "file" | "dir" | "share" | "port-file" | "listen" | "key-file" => "",
        "as" | "get" => "../up",
        "for" | "from" | "nick" => "no spaces",
        "count" | "max-clients" => "0",
        "if-exists" => "never",
        "max-file" | "min-free" => "10 potatoes",
        "max-memory" => "1M",
        "limit-rate" => "1",
        "keep-partials" | "retry" | "connect-timeout" => "soon",
        "exec" => "/no/such/program",
        "allow" => "10.0.0.1/8",
        // Any text is one.
        "text" => return None,
        other => panic!("--{other} is new: what value is bad?"),
    })
}

/// Name and whether it takes a value, for each option of a subcommand.
fn options(side: &str) -> Vec<(String, bool)> {
    let output = Command::new(BINARY).args([side, "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let lines = help.lines().skip_while(|line| *line != "Options:").skip(1).take_while(|line| !line.is_empty());
    let options: Vec<_> = lines
        .filter_map(|line| {
            let (before, rest) = line.split_once("--")?;
            if !before.trim().is_empty() && !before.trim().ends_with(',') {
                return None;
            }
            let (name, rest) = rest.split_once(' ')?;
            Some((name.to_owned(), rest.starts_with(|c: char| c.is_ascii_uppercase())))
        })
        .collect();
    assert!(options.len() > 15, "{help}");
    options
}

/// Runs a subcommand that must be wrong usage; gives its one line.
#[track_caller]
fn wrong(side: &str, arguments: &[&str]) -> String {
    let output = Command::new(BINARY).arg(side).args(arguments).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{side} {arguments:?}: {stderr}");
    assert!(output.stdout.is_empty() && stderr.lines().count() == 1, "{side} {arguments:?}: {stderr}");
    assert!(stderr.contains(&format!("postwire {side} --help")), "it says where to look: {stderr}");
    stderr
}

#[test]
fn a_value_that_is_missing_or_bad_is_told_with_what_the_option_takes() {
    for side in ["client", "server"] {
        for (option, takes_value) in options(side) {
            let long = format!("--{option}");
            if !takes_value {
                let line = wrong(side, &[&format!("{long}=1")]);
                assert!(line.contains(&format!("{long} takes no value")), "{line}");
                continue;
            }
            let line = wrong(side, &[&long]);
            assert!(line.contains(&format!("{long} takes ")) && line.contains("got nothing"), "{line}");
            let Some(bad) = bad_value(&option) else { continue };
            let to = if side == "client" && option != "to" { &["--to", "127.0.0.1:1"][..] } else { &[] };
            let line = wrong(side, &[to, &[&long, bad]].concat());
            assert!(line.contains(&format!("{long} takes ")), "{line}");
        }
    }
}

#[test]
fn what_takes_one_value_is_not_given_twice() {
    for side in ["client", "server"] {
        for (option, _) in options(side).iter().filter(|(_, takes_value)| *takes_value) {
            if ["file", "text", "get", "for", "allow"].contains(&option.as_str()) {
                continue;
            }
            let long = format!("--{option}");
            let line = wrong(side, &[&long, "1", &long, "1"]);
            assert!(line.contains(&format!("{long} takes one value, it was given twice")), "{line}");
        }
    }
}

#[test]
fn an_option_of_the_other_side_is_told_from_one_that_is_none() {
    let [client, server] = ["client", "server"].map(options);
    for (option, _) in client.iter().filter(|option| !server.contains(option)) {
        assert!(wrong("server", &[&format!("--{option}")]).contains("is an option of postwire client"));
    }
    for (option, _) in server.iter().filter(|option| !client.contains(option)) {
        assert!(wrong("client", &[&format!("--{option}")]).contains("is an option of postwire server"));
    }
    assert!(wrong("client", &["--flie", "x"]).contains("no such option: --flie"));
}

#[test]
fn each_option_has_a_test_that_shows_what_it_does() {
    for side in ["client", "server"] {
        let there: BTreeSet<String> = options(side).into_iter().map(|(option, _)| option).collect();
        let shown = SHOWN.iter().filter(|shown| shown.0 == side);
        let shown: BTreeSet<String> = shown.map(|(_, option, ..)| (*option).to_owned()).collect();
        assert_eq!(there, shown, "options of postwire {side}, and those of the table");
    }
    for (side, option, file, test) in SHOWN {
        let source = fs::read_to_string(format!("tests/{file}.rs")).unwrap();
        assert!(source.contains(&format!("fn {test}()")), "{side} --{option}: no {test} in {file}");
        let has_letter = ["quiet", "verbose", "help", "version"].contains(&option);
        let is_used = source.contains(&format!("\"--{option}\""))
            || (has_letter && source.contains(&format!("\"-{}", &option[..1])));
        assert!(is_used, "{side} --{option}: {file} never uses it");
    }
}

#[test]
fn help_and_version_are_all_that_is_said() {
    for side in ["client", "server"] {
        let said = |option: &str| {
            let output = Command::new(BINARY).args([side, option]).output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{side} {option}");
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(said("--version"), format!("postwire {}\n", env!("CARGO_PKG_VERSION")));
        assert_eq!(said("-V"), said("--version"));
        assert!(said("--help").contains(&format!("Usage: postwire {side}")));
        assert_eq!(said("-h"), said("--help"));
    }
}

#[test]
fn one_try_to_connect_takes_no_longer_than_it_may() {
    // Whoever comes when the queue is full gets no answer.
    let full = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&full, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    rustix::net::listen(&full, 0).unwrap();
    let full = TcpListener::from(full);
    let address = full.local_addr().unwrap();
    let wait = Duration::from_millis(200);
    let waiting: Vec<_> = (0..8).map_while(|_| TcpStream::connect_timeout(&address, wait).ok()).collect();
    assert!(waiting.len() < 8, "the queue has no end");
    let started = Instant::now();
    let run = client(&["--to", &address.to_string(), "--connect-timeout", "500ms", "--text", "x"]);
    run.assert_code(4).assert(run.stderr.contains("timed out after 0.5 s"), "how long");
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(500) && took < Duration::from_secs(15), "{took:?}, the default is 30 s");
}

#[test]
fn nobody_there_is_tried_again_for_as_long_as_it_says() {
    let started = Instant::now();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    client(&["--to", &nobody, "--retry", "0", "--text", "x"]).assert_code(3);
    client(&["--to", &nobody, "--retry", "1s", "--text", "x"]).assert_code(3);
    assert!(started.elapsed() >= Duration::from_secs(1));
    let mut waiting =
        ["1h", "forever"].map(|time| client_spawn(&["-v", "--to", &nobody, "--retry", time, "--text", time]));
    for client in &mut waiting {
        client.wait_stderr(|line| line.contains(" retrying "));
    }
    let mut command = Command::new(BINARY);
    command.args(["server", "--listen", &nobody]);
    let mut server = Running::spawn(command);
    for (client, time) in waiting.iter_mut().zip(["1h", "forever"]) {
        client.wait().assert_code(0);
        server.wait_stdout(|line| line.ends_with(&format!(": {time}")));
    }
}

#[test]
fn no_more_clients_than_it_says_are_there_at_once() {
    let mut server = Server::start(&["--max-clients", "1"]);
    let mut first = client_spawn(&["--to", &server.address(), "--nick", "ann", "--stay"]);
    server.wait_stderr(|line| line == "ann joined");
    let second = client(&["--to", &server.address(), "--text", "x"]);
    second.assert_code(7).assert(second.stderr.contains("too many connections (limit 1)"), "why");
    server.wait_stderr(|line| line.starts_with("refused 127.0.0.1:") && line.contains("--max-clients"));
    let mut third = client_spawn(&["-v", "--to", &server.address(), "--retry", "1m", "--text", "when it may"]);
    third.wait_stderr(|line| line.contains(" retrying "));
    first.signal(Signal::TERM);
    first.wait().assert_code(0);
    third.wait().assert_code(0);
    server.wait_stdout(|line| line.ends_with(": when it may"));
}

/// What a server with these arguments says of itself.
fn server_s_peer(arguments: &[&str]) -> Peer {
    let server = Server::start(arguments);
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(&bytes(&[hello(), peer(1)])).unwrap();
    let (mut frames, mut decoder) = (Frames::of(&stream), Decoder::for_client());
    loop {
        match frames.next(&mut decoder).expect("a PEER") {
            Frame::Message(Message::Peer(peer)) => return peer,
            frame => assert!(matches!(frame, Frame::Message(Message::Welcome { .. })), "{frame:?}"),
        }
    }
}

/// Takes in a client with these arguments; gives what it said of itself, and what comes from it.
fn client_s_peer(arguments: &[&str]) -> (Peer, Running, TcpStream, Frames, Decoder) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap().to_string();
    let client = client_spawn(&[&["--to", &to], arguments].concat());
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let named = Message::Named(Nickname::parse(b"c1").unwrap());
    stream.write_all(&bytes(&[Message::Welcome { version: 1, mode: 0 }, peer(2), named])).unwrap();
    let (mut frames, mut decoder) = (Frames::of(&stream), Decoder::for_server());
    loop {
        match frames.next(&mut decoder).expect("a PEER") {
            Frame::Message(Message::Peer(peer)) => {
                decoder.hello_complete();
                return (peer, client, stream, frames, decoder);
            }
            frame => assert!(matches!(frame, Frame::Message(Message::Hello { .. })), "{frame:?}"),
        }
    }
}

#[test]
fn less_memory_is_smaller_chunks_on_either_side() {
    let chunks = |arguments: &[&str]| {
        (server_s_peer(arguments).chunk_bytes, client_s_peer(&[&["--stay"], arguments].concat()).0.chunk_bytes)
    };
    assert_eq!(chunks(&[]), (1_048_576, 1_048_576));
    assert_eq!(chunks(&["--max-memory", "2M"]), (65_536, 65_536));
}

#[test]
fn a_server_tells_its_nickname_to_whoever_comes() {
    assert_eq!(server_s_peer(&[]).nickname, None);
    assert_eq!(server_s_peer(&["--nick", "b7"]).nickname, Nickname::parse(b"b7").ok());
}

#[test]
fn without_a_sync_a_receipt_says_so_on_either_side() {
    let scratch = Scratch::new();
    let (inbox, here) = (scratch.directory("inbox"), scratch.directory("here"));
    let file = scratch.file("file", 1000, 1);
    for (number, there) in [&[][..], &["--no-fsync"]].into_iter().enumerate() {
        let server = Server::start(&[&["--dir", &inbox, "--share", &inbox], there].concat());
        let to = ["--to", &server.address()];
        let name = format!("file{number}");
        let sent = client(&[&to[..], &["--no-fsync", "--as", &name, &file]].concat());
        sent.assert_code(0).assert(sent.stderr.contains(", not durable") != there.is_empty(), "the server's matter");
        let got = client(&[&to[..], &["--dir", &here, "--get", &name], there].concat());
        got.assert_code(0).assert(got.stderr.contains(", not durable") != there.is_empty(), "the client's matter");
    }
}

#[test]
fn what_a_client_gets_is_stored_as_its_options_say() {
    let scratch = Scratch::new();
    let (share, here) = (scratch.directory("share"), scratch.directory("here"));
    let core = scratch.file("share/core", 300_000, 1);
    let server = Server::start(&["--share", &share]);
    let get =
        |options: &[&str]| client(&[&["--to", &server.address(), "--dir", &here, "--get", "core"], options].concat());
    let stored = format!("{here}/core");
    fs::write(&stored, "other").unwrap();
    get(&["--if-exists", "refuse"]).assert_code(8);
    assert_eq!(fs::read(&stored).unwrap(), b"other");
    get(&["--if-exists", "rename"]).assert_code(0);
    assert_same_file(&core, format!("{here}/core-1"));
    fs::remove_file(format!("{here}/core-1")).unwrap();
    let full = get(&["--if-exists", "replace", "--min-free", "1000000T"]);
    full.assert_code(8).assert(full.stderr.contains("--min-free"), "what to change");
    assert_eq!(fs::read(&stored).unwrap(), b"other");
    get(&["--if-exists", "replace"]).assert_code(0);
    assert_same_file(&core, &stored);

    let partial = format!("{here}/.postwire-0123456789abcdef-0.part");
    fs::write(&partial, "x").unwrap();
    get(&["--keep-partials", "1h"]).assert_code(0);
    assert!(fs::exists(&partial).unwrap(), "it is not an hour old");
    until("the partial is old and gone", || {
        get(&["--keep-partials", "1ms"]).assert_code(0);
        (!fs::exists(&partial).unwrap()).then_some(())
    });
}

#[test]
fn a_quiet_server_says_what_goes_wrong_and_prints_what_is_said() {
    let mut server = Server::start(&["-q"]);
    client(&["--to", &server.address(), "--text", "hello"]).assert_code(0);
    server.type_line("/msg nobody x");
    server.wait_stderr(|line| line == "text not sent: nobody is called nobody");
    let run = server.terminate();
    assert_eq!((run.stdout.as_str(), run.stderr.lines().count()), ("c1: hello\n", 1));
}
