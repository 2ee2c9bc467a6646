//! `scripts/package`: the man page and the completions know every option of `--help`, and those who read them find no fault.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]
#![allow(clippy::print_stdout)]

mod common;

use std::fs;
use std::process::Command;

use common::{Scratch, BINARY};

/// The options that the help of one subcommand lists: a letter, where there is one, and a name.
fn options(side: &str) -> Vec<(Option<String>, String)> {
    let output = Command::new(BINARY).args([side, "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let lines = help.lines().skip_while(|line| *line != "Options:").skip(1).take_while(|line| !line.is_empty());
    // A help of more than one line goes on where it began.
    let options: Vec<_> = lines
        .filter(|line| line.trim_start().starts_with('-'))
        .map(|line| {
            let (letter, rest) = line.split_once("--").unwrap();
            let letter = letter.trim().strip_suffix(',').map(str::to_owned);
            (letter, rest.split(' ').next().unwrap().to_owned())
        })
        .collect();
    assert!(options.len() > 10, "{help}");
    options
}

/// What `scripts/package` makes, in a temporary directory.
fn package() -> Scratch {
    let scratch = Scratch::new();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/package");
    let output = Command::new(script).args([BINARY, &scratch.path("")]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    scratch
}

/// Runs a program that may not be here; what it prints, once it found no fault.
fn checked(program: &str, arguments: &[&str]) -> Option<String> {
    let Ok(output) = Command::new(program).args(arguments).env("LC_ALL", "C.UTF-8").env("MANWIDTH", "100").output()
    else {
        println!("{program} is not installed, {arguments:?} not looked at");
        return None;
    };
    assert!(output.status.success() && output.stderr.is_empty(), "{program} {arguments:?}: {output:?}");
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_man_page_has_every_option() {
    let scratch = package();
    let page = scratch.path("postwire.1");
    let text = fs::read_to_string(&page).unwrap();
    let (client, server) = text.split_once("\n.SH SERVER\n").unwrap();
    for (side, text) in [("client", client), ("server", server)] {
        for (letter, name) in options(side) {
            let letter = letter.map_or(String::new(), |letter| format!("\\fB{}\\fR, ", letter.replace('-', "\\-")));
            let start = format!("\n.TP\n{letter}\\fB\\-\\-{}\\fR", name.replace('-', "\\-"));
            assert!(text.contains(&start), "{side} --{name}: {text}");
        }
    }
    checked("groff", &["-man", "-ww", "-z", &page]);
    let Some(shown) = checked("man", &["--warnings", "-l", &page]) else { return };
    for line in ["client --to board *.log --text \"logs are there\"", "--keep-partials TIME", "128+N", "-q, --quiet"] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
}

#[test]
fn zsh_and_fish_complete_every_option() {
    let scratch = package();
    let [zsh, fish] = ["_postwire", "postwire.fish"].map(|name| scratch.path(&format!("completions/{name}")));
    let text = fs::read_to_string(&zsh).unwrap();
    let (client, server) = text.split_once("\nserver)\n").unwrap();
    let fish_text = fs::read_to_string(&fish).unwrap();
    for (side, zsh_text) in [("client", client), ("server", server)] {
        for (letter, name) in options(side) {
            assert!(zsh_text.contains(&format!(" '*--{name}[")), "{side} --{name}: {zsh_text}");
            let letter = letter.unwrap_or_default();
            assert!(zsh_text.contains(&format!(" '*{letter}")), "{side} {letter}: {zsh_text}");
            let short = letter.strip_prefix('-').map_or(String::new(), |letter| format!(" -s {letter}"));
            let start = format!("complete -c postwire -n '__fish_seen_subcommand_from {side}'{short} -l {name} ");
            assert!(fish_text.lines().any(|line| line.starts_with(&start)), "{start}: {fish_text}");
        }
    }
    checked("zsh", &["-n", &zsh]);
    checked("fish", &["--no-execute", &fish]);
}

#[test]
fn bash_completes_every_option_and_what_can_be_known_of_values() {
    let scratch = package();
    let script = scratch.path("completions/postwire.bash");
    scratch.directory("files/a folder");
    scratch.file("files/a file", 1, 1);
    checked("bash", &["-n", &script]).expect("bash is there");
    let files = scratch.path("files");
    let complete = |words: &[&str]| -> Vec<String> {
        let words: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let (words, last) = (words.join(" "), words.len() - 1);
        let body = format!(
            "set -eu; cd '{files}'; . '{script}'; complete -p postwire >/dev/null
            COMP_WORDS=({words}); COMP_CWORD={last}; _postwire; printf '%s\\n' ${{COMPREPLY[@]+\"${{COMPREPLY[@]}}\"}}"
        );
        let mut found: Vec<String> = checked("bash", &["-c", &body])
            .unwrap()
            .lines()
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect();
        found.sort();
        found
    };
    for side in ["client", "server"] {
        let mut every: Vec<String> = options(side)
            .into_iter()
            .flat_map(|(letter, name)| letter.into_iter().chain([format!("--{name}")]))
            .collect();
        every.sort();
        assert_eq!(complete(&["postwire", side, "-"]), every);
        assert_eq!(complete(&[side, "-"]), every, "by a link");
    }
    assert_eq!(complete(&["postwire", ""]), ["--help", "--version", "client", "server"]);
    assert_eq!(complete(&["postwire", "server", "--max-"]), ["--max-clients", "--max-file", "--max-memory"]);
    assert_eq!(complete(&["postwire", "server", "--if-exists", "re"]), ["refuse", "rename", "replace"]);
    assert_eq!(complete(&["postwire", "server", "--dir", "a"]), ["a folder"]);
    assert_eq!(complete(&["postwire", "client", "--file", "a"]), ["a file", "a folder"]);
    assert_eq!(complete(&["postwire", "client", "--to", "a"]), [""; 0]);
    assert_eq!(complete(&["postwire", "client", "a f"]), ["a file", "a folder"]);
    assert_eq!(complete(&["postwire", "server", "a f"]), [""; 0]);
}
