//! Each option: well given, badly given, not given.

use std::time::Duration;

use super::*;

fn order(words: &[&str]) -> Result<Order, String> {
    let arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
    read("/usr/bin/postwire".as_ref(), &arguments, &Environment::default()).map_err(|usage| usage.to_string())
}

fn client_order(words: &[&str]) -> ClientOrder {
    match order(&[&["client", "--to", "h"], words].concat()) {
        Ok(Order::Client(order)) => order,
        other => panic!("{words:?}: {other:?}"),
    }
}

fn server_order(words: &[&str]) -> ServerOrder {
    match order(&[&["server"], words].concat()) {
        Ok(Order::Server(order)) => order,
        other => panic!("{words:?}: {other:?}"),
    }
}

fn wrong(words: &[&str]) -> String {
    order(words).unwrap_err()
}

fn file(path: &str) -> Item {
    Item::File { path: path.into(), name: None }
}

#[test]
fn a_link_named_client_or_server_is_that_subcommand() {
    let read = |program: &str, words: &[&str]| {
        let arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
        read(program.as_ref(), &arguments, &Environment::default())
    };
    assert!(matches!(read("/bin/client", &["--to", "h", "server"]), Ok(Order::Client(_))));
    assert!(matches!(read("./server", &[]), Ok(Order::Server(_))));
    assert!(matches!(read("client", &["--help"]), Ok(Order::Help(Some(Side::Client)))));
}

#[test]
fn files_and_texts_may_be_for_others() {
    let recipients = |words: &[&str]| client_order(words).recipients;
    let b7 = || Nickname::parse(b"b7").unwrap();
    let for_b7 = |leave, wait| Some(Recipients { to: Some(vec![b7()]), leave, wait });
    assert_eq!(recipients(&["--text", "x", "--for", "b7"]), for_b7(false, Some(Duration::ZERO)));
    assert_eq!(recipients(&["a", "--for", "b7", "--leave"]), for_b7(true, Some(Duration::ZERO)));
    assert_eq!(recipients(&["a", "--for", "b7", "--retry", "forever"]), for_b7(false, None));
    let several = recipients(&["a", "--for", "b7", "--retry", "9s", "--for", "b8"]).unwrap();
    assert_eq!((several.to.unwrap().len(), several.wait), (2, Some(Duration::from_secs(9))));
    assert_eq!(recipients(&["a", "--for", "*"]).unwrap().to, None);
    assert_eq!(recipients(&["--text", "x"]), None);
    assert_eq!(client_order(&["--list", "--from", "b7"]).from, Some(b7()));
    for (words, complaint) in [
        (&["--for", "b7"][..], "--for takes"),
        (&["--for", "b7", "--stay"], "--for takes"),
        (&["--for", "b7", "--list"], "--for takes"),
        (&["--for", "b 7", "--text", "x"], "--for takes"),
        (&["--for", "*", "--for", "b7", "a"], "--for takes"),
        (&["--leave", "a"], "--leave takes"),
        (&["--leave", "--for", "*", "a"], "--leave takes"),
        (&["--from", "b7", "a"], "--from takes"),
        (&["--from", "b7"], "--from takes"),
    ] {
        let line = wrong(&[&["client", "--to", "h"], words].concat());
        assert!(line.starts_with(complaint), "{words:?}: {line}");
    }
}

#[test]
fn without_a_subcommand_there_is_help_and_version() {
    assert!(matches!(order(&[]), Ok(Order::Help(None))));
    assert!(matches!(order(&["--help"]), Ok(Order::Help(None))));
    assert!(matches!(order(&["--version"]), Ok(Order::Version)));
    assert!(matches!(order(&["-V"]), Ok(Order::Version)));
    assert!(matches!(order(&["server", "-V"]), Ok(Order::Version)));
    assert!(matches!(order(&["client", "-h", "--max-file", "x"]), Ok(Order::Help(Some(Side::Client)))));
    assert_eq!(wrong(&["sever"]), "the first word is client, server or keygen, got \"sever\" (see postwire --help)");
}

#[test]
fn every_option_reaches_the_configuration() {
    let words = "--dir d --nick b7 --if-exists refuse --max-file 1k --min-free 2k --max-memory 3M --keep-partials 1h --no-fsync --limit-rate 2M";
    let words: Vec<&str> = words.split(' ').collect();
    for config in [client_order(&words).config, server_order(&words).config] {
        assert_eq!(config.dir, Some("d".into()));
        assert_eq!(config.nick.unwrap().as_str(), "b7");
        assert_eq!(config.if_exists, IfExists::Refuse);
        assert_eq!((config.max_file, config.min_free, config.max_memory), (1024, 2048, 3 << 20));
        assert_eq!((config.keep_partials, config.fsync), (Duration::from_secs(3600), false));
        assert_eq!(config.limit_rate, Some(2 << 20));
    }
    assert_eq!(client_order(&["--exec", "p"]).exec, Some("p".into()));
    assert_eq!(server_order(&["--exec", "p"]).exec, Some("p".into()));
    let config = client_order(&["--connect-timeout", "5", "--retry", "2m"]).config;
    assert_eq!((config.connect_timeout, config.retry), (Duration::from_secs(5), Retry::For(Duration::from_secs(120))));
    assert_eq!(client_order(&["--retry", "0"]).config.retry, Retry::For(Duration::ZERO));
    assert_eq!(client_order(&["--retry", "forever"]).config.retry, Retry::Forever);
    let server = server_order(&["--listen", "[::1]:0", "--port-file", "p", "--no-relay", "--max-clients", "5"]);
    assert_eq!((server.listen, server.port_file), (Listen::On("[::1]:0".into()), Some("p".into())));
    assert_eq!(server_order(&["--listen", "-"]).listen, Listen::Stdin);
    assert_eq!((server.config.relay, server.config.max_clients), (false, 5));
}

#[test]
fn what_is_not_given_is_the_default() {
    let server = server_order(&[]);
    assert_eq!((server.listen, server.port_file), (Listen::On(":7117".into()), None));
    assert!(server.config.relay && server.config.fsync && server.config.dir.is_none() && server.exec.is_none());
    assert_eq!(server.config.limit_rate, None);
    assert_eq!(server.output, Output { json: false, to_stdout: false, level: Level::Notice });
    let client = client_order(&[]);
    assert_eq!((client.address.as_str(), client.config.retry), ("h", Retry::Default));
    assert_eq!(client.config.nick, None);
}

#[test]
fn a_bad_value_names_the_option_and_what_it_takes() {
    let bad = [
        ("--max-file", "x"),
        ("--min-free", "-1"),
        ("--max-memory", "1M"),
        ("--keep-partials", "x"),
        ("--if-exists", "ask"),
        ("--nick", "a b"),
        ("--dir", ""),
        ("--exec", ""),
        ("--limit-rate", "1023"),
        ("--limit-rate", "fast"),
    ];
    for side in ["client", "server"] {
        for (option, value) in bad {
            let line = wrong(&[side, option, value]);
            assert!(line.starts_with(&format!("{option} takes ")), "{line}");
            assert!(line.ends_with(&format!(", got \"{value}\" (see postwire {side} --help)")), "{line}");
        }
    }
    for (option, value) in [
        ("--to", ""),
        ("--retry", "never"),
        ("--connect-timeout", "0"),
        ("--count", "0"),
        ("--as", "../x"),
        ("--file", ""),
    ] {
        let line = wrong(&["client", option, value]);
        assert!(line.starts_with(&format!("{option} takes ")) && line.contains(&format!("got \"{value}\"")), "{line}");
    }
    for (option, value) in [("--max-clients", "0"), ("--max-clients", "x"), ("--listen", ""), ("--port-file", "")] {
        assert!(wrong(&["server", option, value]).starts_with(&format!("{option} takes ")));
    }
    let long = "x".repeat(65 * 1024);
    assert!(wrong(&["client", "--to", "h", "--text", &long])
        .starts_with("--text takes a text of at most 64 KiB, got 66560 bytes"));
}

#[test]
fn every_option_with_a_value_misses_it() {
    for side in [Side::Client, Side::Server] {
        for row in side.rows().filter(|row| !row.value.is_empty()) {
            let option = format!("--{}", row.long);
            let line = wrong(&[side.name(), &option]);
            assert_eq!(
                line,
                format!("{option} takes {}, got nothing (see postwire {} --help)", row.takes, side.name())
            );
        }
    }
}

#[test]
fn a_client_needs_an_address() {
    assert!(wrong(&["client", "x"]).starts_with("--to HOST[:PORT] is missing"));
    let environment = Environment { to: Some("board".into()), nick: Some("b7".into()), ..Environment::default() };
    let read = |words: &[&str]| {
        let arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
        match read("client".as_ref(), &arguments, &environment) {
            Ok(Order::Client(order)) => (order.address, order.config.nick.unwrap().as_str().to_owned()),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(read(&[]), ("board".into(), "b7".into()));
    assert_eq!(read(&["--to", "other", "--nick", "n"]), ("other".into(), "n".into()));
}

#[test]
fn a_bad_variable_is_named() {
    let environment = Environment { nick: Some("a b".into()), ..Environment::default() };
    let usage = read("server".as_ref(), &[], &environment).unwrap_err().to_string();
    assert!(usage.starts_with("POSTWIRE_NICK takes 1 to 32 of A-Z a-z 0-9 . _ -, got \"a b\""), "{usage}");
    assert!(read("server".as_ref(), &["--nick".into(), "b7".into()], &environment).is_ok());
}

#[test]
fn a_client_run_is_a_job_a_chat_or_a_stay() {
    let job = client_order(&["a", "--text", "t", "--file", "b", "--", "-c"]);
    let items = [file("a"), Item::Text("t".into()), file("b"), file("-c")];
    assert_eq!(job.run, ClientRun::Job(items.into()));
    assert!(!job.config.join_room);
    let chat = client_order(&[]);
    assert_eq!(chat.run, ClientRun::Chat);
    assert!(chat.config.join_room);
    let stay = client_order(&["--stay", "--count", "3"]);
    assert_eq!(stay.run, ClientRun::Stay { count: Some(3) });
    assert!(stay.config.join_room);
    assert_eq!(stay.config.retry, Retry::Forever);
    assert_eq!(client_order(&["--stay", "--retry", "0"]).config.retry, Retry::For(Duration::ZERO));
}

#[test]
fn words_that_exclude_each_other_are_refused() {
    for words in [
        &["client", "--to", "h", "--stay", "a"][..],
        &["client", "--to", "h", "--count", "3"],
        &["client", "--to", "h", "--as", "n"],
        &["client", "--to", "h", "--as", "n", "a", "b"],
        &["client", "--to", "h", "-q", "-v"],
        &["server", "a"],
    ] {
        assert!(order(words).is_err(), "{words:?}");
    }
    let name = SafePath::parse(b"logs/n").ok();
    let run = client_order(&["--as", "logs/n", "--text", "t", "a"]).run;
    let items = [Item::Text("t".into()), Item::File { path: "a".into(), name }];
    assert_eq!(run, ClientRun::Job(items.into()));
}

#[test]
fn verbosity_counts() {
    let level = |words: &[&str]| client_order(words).output.level;
    assert_eq!([level(&["-q"]), level(&[]), level(&["-v"])], [Level::Error, Level::Notice, Level::Detail]);
    assert_eq!([level(&["-vv"]), level(&["-v", "--verbose"])], [Level::Trace, Level::Trace]);
    assert!(client_order(&["--json"]).output.json);
}
