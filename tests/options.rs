//! Every option that `--help` names: without its value, with a bad one, twice. What a good one does is the other tests' matter.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::process::Command;

use common::BINARY;

/// A value that the option can't have. Who gets a new option finds it missing here.
fn bad_value(option: &str) -> Option<&'static str> {
    Some(match option {
        "to" | "file" | "dir" | "share" | "port-file" | "listen" | "key-file" => "",
        "as" | "get" => "../up",
        "for" | "nick" => "no spaces",
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
            if ["file", "text", "get", "allow"].contains(&option.as_str()) {
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
