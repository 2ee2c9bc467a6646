//! The real binary on a terminal of 80 by 24, as a technician sees it: `tmux` types, and shows the screen.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use common::{client, until, Scratch, Server, Signal, BINARY};
use rustix::process::{kill_process, Pid};

/// A shell on a terminal of its own.
struct Terminal {
    scratch: Scratch,
}

impl Terminal {
    fn new() -> Terminal {
        let scratch = Scratch::new();
        std::fs::write(scratch.path("conf"), "set -g status off\nset -g default-terminal screen\n").unwrap();
        let terminal = Terminal { scratch };
        let mode = "stty -a | tr -d ';' | tr ' ' '\\n' | grep -xE -- '-?(icanon|echo)' | xargs echo";
        std::fs::write(terminal.scratch.path("mode"), mode).unwrap();
        terminal.tmux(&["new-session", "-d", "-x", "80", "-y", "24", "PS1='$ ' ENV= exec sh"]);
        terminal.shows("the prompt", |screen| screen.starts_with('$'));
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let (socket, config) = (self.scratch.path("socket"), self.scratch.path("conf"));
        let output = Command::new("tmux").args(["-u", "-S", &socket, "-f", &config]).args(arguments).output();
        let output = output.expect("these tests need tmux");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn keys(&self, keys: &str) {
        self.tmux(&["send-keys", "-l", keys]);
    }

    fn key(&self, name: &str) {
        self.tmux(&["send-keys", name]);
    }

    fn line(&self, line: &str) {
        self.keys(line);
        self.key("Enter");
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"]).trim_end().to_owned()
    }

    /// Waits until the screen is as wanted.
    #[track_caller]
    fn shows(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let mut last = String::new();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until(what, || {
                last = self.screen();
                wanted(&last).then(|| last.clone())
            })
        }));
        found.unwrap_or_else(|_| panic!("waited for {what}; the screen is\n{last}\n---"))
    }

    /// Waits for a row of the screen.
    #[track_caller]
    fn shows_row(&self, row: &str) -> String {
        self.shows(row, |screen| screen.lines().any(|line| line == row))
    }

    /// The last run ended with `code`, and the terminal is as a shell wants it.
    #[track_caller]
    fn is_sane_after(&self, code: i32) {
        self.shows("the shell", |screen| screen.lines().last() == Some("$"));
        self.line(&format!("echo code=$?; sh {}", self.scratch.path("mode")));
        self.shows_row(&format!("code={code}"));
        self.shows_row("icanon echo");
    }

    fn chat(&self, server: &mut Server, nick: &str) {
        self.line(&format!("clear; {BINARY} client --to {} --nick {nick}", server.address()));
        server.wait_stderr(|line| line == format!("{nick} joined"));
        self.shows_row(&format!("you are {nick}"));
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let socket = self.scratch.path("socket");
        let _ = Command::new("tmux").args(["-S", &socket, "kill-server"]).output();
    }
}

/// The process that serves or chats on the terminal.
fn running(terminal: &Terminal) -> Pid {
    let shell = terminal.tmux(&["display-message", "-p", "#{pane_pid}"]);
    let children = format!("/proc/{0}/task/{0}/children", shell.trim());
    let pid = until("the process on the terminal", || {
        std::fs::read_to_string(&children).unwrap().split(' ').next().and_then(|pid| pid.parse().ok())
    });
    Pid::from_raw(pid).unwrap()
}

#[test]
fn people_talk_with_commands() {
    let mut server = Server::start(&[]);
    let terminal = Terminal::new();
    terminal.chat(&mut server, "ann");
    terminal.line("/who");
    terminal.shows_row("nobody else is in the room");
    let other = Terminal::new();
    other.chat(&mut server, "bob");
    terminal.shows_row("bob joined");
    other.line("/nick ann");
    other.shows_row("you are ann-2");
    terminal.shows_row("bob is now ann-2");
    terminal.line("/who");
    terminal.shows_row("you and ann-2");
    terminal.line("/msg ann-2 for you");
    other.shows_row("ann: for you");
    terminal.line("/msg bob nobody");
    terminal.shows_row("text refused: nobody of that name is there");
    server.type_line("/kick ann-2");
    other.shows_row("postwire: the other side said goodbye: removed by the operator");
    other.is_sane_after(7);
    terminal.shows_row("ann-2 left");
    terminal.line("/help");
    let screen = terminal.shows("the help", |screen| screen.contains("/quit"));
    assert!(screen.lines().count() < 24, "{screen}");
    terminal.line("/quit");
    // One text was not delivered.
    terminal.is_sane_after(9);
}

#[test]
fn people_list_and_get_what_is_shared() {
    let terminal = Terminal::new();
    let share = terminal.scratch.directory("share");
    terminal.scratch.file("share/tree/core", 300_000, 7);
    let here = terminal.scratch.directory("here");
    let server = Server::start(&["--share", &share]);
    terminal.line(&format!("cd {here}; clear; {BINARY} client --to {} --nick ann", server.address()));
    terminal.shows("the nickname", |screen| screen.contains("you are ann"));
    terminal.line("/list");
    terminal.shows("the listing", |screen| screen.contains("300000") && screen.contains("tree/core"));
    terminal.line("/get tree/none");
    terminal.shows("what to do", |screen| screen.contains("--list shows what there is"));
    terminal.line("/get tree");
    terminal.shows("the receipt", |screen| screen.contains("received \"tree/core\": 300000 bytes"));
    terminal.line("/quit");
    terminal.shows("the prompt", |screen| screen.ends_with('$'));
    common::assert_same_file(format!("{share}/tree/core"), format!("{here}/tree/core"));
}

#[test]
fn what_comes_in_does_not_break_the_line_being_typed() {
    let mut server = Server::start(&[]);
    let terminal = Terminal::new();
    terminal.chat(&mut server, "ann");
    terminal.keys("half a lime");
    terminal.shows_row("> half a lime");
    server.type_line("from the \u{1b}[2J server");
    let screen = terminal.shows_row("server: from the \\u{1b}[2J server");
    assert!(screen.ends_with("> half a lime"), "{screen}");
    terminal.key("Left");
    terminal.key("BSpace");
    terminal.key("n");
    terminal.key("Enter");
    server.wait_stdout(|line| line == "ann: half a line");
    // A paste comes at once: nothing of it waits for another key.
    terminal.keys("one\rtwo\rthree");
    server.wait_stdout(|line| line == "ann: two");
    terminal.shows("the rest of the paste", |screen| screen.ends_with("> three"));
    terminal.key("C-u");
    terminal.key("Up");
    terminal.key("Up");
    terminal.key("Enter");
    server.wait_stdout(|line| line == "ann: one");
    // A line longer than the terminal stays on its row.
    terminal.keys(&"long ".repeat(40));
    let screen = terminal.shows("a long line", |screen| screen.ends_with("long long"));
    assert_eq!(screen.matches("long long").count(), screen.lines().last().unwrap().matches("long long").count());
    terminal.key("C-u");
    terminal.key("C-d");
    terminal.is_sane_after(0);
}

#[test]
fn the_terminal_is_given_back_however_it_ends() {
    let mut server = Server::start(&[]);
    let terminal = Terminal::new();
    terminal.chat(&mut server, "ann");
    terminal.keys("unsaid");
    terminal.shows_row("> unsaid");
    terminal.key("C-c");
    terminal.is_sane_after(130);
    terminal.chat(&mut server, "ann");
    kill_process(running(&terminal), Signal::TERM).unwrap();
    terminal.is_sane_after(143);
    terminal.chat(&mut server, "ann");
    terminal.keys("unsaid");
    terminal.shows_row("> unsaid");
    terminal.key("C-z");
    terminal.shows("the shell", |screen| screen.ends_with('$') && screen.contains("Stopped"));
    terminal.line("stty -a | grep -c -- -icanon");
    terminal.shows_row("0");
    terminal.line("fg");
    terminal.shows("the line", |screen| screen.ends_with("\n> unsaid"));
    terminal.keys("!");
    terminal.shows_row("> unsaid!");
    server.kill();
    terminal.keys(" gone");
    terminal.key("C-c");
    terminal.is_sane_after(130);
}

#[test]
fn a_server_has_a_console() {
    let terminal = Terminal::new();
    let program = terminal.scratch.path("program");
    std::fs::write(&program, "#!/bin/sh\nexit 3\n").unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    terminal.line(&format!("clear; {BINARY} server --listen 127.0.0.1:0 --exec {program}"));
    let screen = terminal.shows("the port", |screen| screen.contains("listening on"));
    let port = screen.lines().find_map(|line| line.strip_prefix("listening on ")).unwrap().to_owned();
    terminal.keys("half");
    terminal.shows_row("> half");
    client(&["--to", &port, "--nick", "job", "--text", "hello"]).assert_code(0);
    terminal.shows_row("job: hello");
    // Said by another thread.
    let screen = terminal.shows("the program's end", |screen| screen.contains("program for a text from job"));
    assert!(screen.ends_with("> half"), "{screen}");
    terminal.key("C-u");
    terminal.key("C-d");
    terminal.line("/help");
    let screen = terminal.shows("the help", |screen| screen.contains("/kick NICK"));
    assert!(screen.lines().count() <= 24, "{screen}");
    terminal.key("C-c");
    terminal.is_sane_after(130);
}

#[test]
fn a_server_in_the_background_leaves_the_keys_to_the_shell_and_goes_on() {
    let terminal = Terminal::new();
    terminal.line(&format!("clear; {BINARY} server --listen 127.0.0.1:0 &"));
    let screen = terminal.shows("the port", |screen| screen.contains("listening on 127.0.0.1:"));
    let (_, port) = screen.split_once("listening on ").unwrap();
    let port = port.split_whitespace().next().unwrap();
    // Whoever reads here now is stopped (SIGTTIN), and so is all else that it does.
    for number in 0..5 {
        terminal.line(&format!("echo typed-{number}"));
        terminal.shows_row(&format!("typed-{number}"));
    }
    client(&["--to", port, "--nick", "job", "--text", "hello"]).assert_code(0);
    terminal.shows("the text", |screen| screen.contains("job: hello"));
    terminal.line("clear; jobs");
    terminal.shows("the job", |screen| screen.contains("Running") && screen.ends_with('$'));
    terminal.line("clear; fg");
    terminal.shows("the console", |screen| screen.ends_with("\n>"));
    terminal.line("/help");
    terminal.shows("the help", |screen| screen.contains("/kick NICK"));
    terminal.key("C-z");
    terminal.shows("the shell", |screen| screen.ends_with('$') && screen.contains("Stopped"));
    terminal.line("clear; bg");
    terminal.shows("the job", |screen| screen.contains("[1]") && !screen.contains("Stopped") && screen.ends_with('$'));
    terminal.line("echo typed");
    terminal.shows_row("typed");
    client(&["--to", port, "--nick", "job", "--text", "again"]).assert_code(0);
    terminal.shows("the text", |screen| screen.contains("job: again"));
    terminal.line("clear; fg");
    // Only then is ^C for it, and not for the shell.
    terminal.shows("the console", |screen| screen.ends_with("\n>"));
    terminal.key("C-c");
    terminal.is_sane_after(130);
}

#[test]
fn one_line_tells_how_far_the_files_are() {
    let scratch = Scratch::new();
    let inbox = scratch.directory("inbox");
    let server = Server::start(&["--dir", &inbox, "--no-fsync"]);
    let big = scratch.path(&format!("{}.bin", "\u{4e16}e\u{301}".repeat(40)));
    File::create(&big).unwrap().set_len(600 << 20).unwrap();
    let small = scratch.file("small", 1000, 1);
    let terminal = Terminal::new();
    terminal.line(&format!("clear; {BINARY} client --to {} {small} {big}", server.address()));
    terminal.shows("progress", |screen| screen.contains("% ") && screen.contains("MiB/s"));
    // It stands still as long as the server does.
    server.signal(Signal::STOP);
    let screen = terminal.shows("a whole line", |screen| screen.lines().last().unwrap().contains("of 2 files"));
    let line = screen.lines().last().unwrap();
    assert!(line.contains("..") && line.ends_with(".bin"), "the name is shortened in the middle: {line}");
    assert!(line.chars().filter(|c| *c != '\u{301}').map(|c| if c.is_ascii() { 1 } else { 2 }).sum::<usize>() < 80);
    assert!(screen.lines().any(|line| line.starts_with("sent \"small\": 1000 bytes")), "{screen}");
    server.signal(Signal::CONT);
    let screen = terminal.shows("the end", |screen| screen.ends_with('$'));
    assert!(!screen.contains('%'), "nothing of it is left\n{screen}");
    assert!(screen.contains("2 files, 629146600 bytes in "), "{screen}");
}

#[test]
fn nothing_is_redrawn_where_no_terminal_obeys() {
    let scratch = Scratch::new();
    let inbox = scratch.directory("inbox");
    let server = Server::start(&["--dir", &inbox, "--no-fsync"]);
    let file = scratch.path("file");
    File::create(&file).unwrap().set_len(100 << 20).unwrap();
    let terminal = Terminal::new();
    let raw = scratch.path("raw");
    terminal.tmux(&["pipe-pane", &format!("cat >{raw}")]);
    terminal.line(&format!("TERM=dumb {BINARY} client --to {} {file}; echo done", server.address()));
    terminal.shows_row("done");
    terminal.line(&format!("{BINARY} client -q --to {} --as 2 {file}; echo quiet", server.address()));
    terminal.shows_row("quiet");
    let raw = until("all of the output", || {
        Some(std::fs::read_to_string(&raw).unwrap()).filter(|raw| raw.contains("\r\nquiet\r\n"))
    });
    assert!(!raw.contains('%'), "{raw}");
    let piped = client(&["--to", &server.address(), "--as", "3", &file]);
    piped.assert(!piped.stderr.contains(['\r', '%']), "no progress in a pipe");
}
