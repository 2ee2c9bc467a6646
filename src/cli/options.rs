//! The one table of options, and the reading of a command line by it into [`Word`]s, in order.
//!
//! It knows what each option is called, takes and does for a reader of the help; it refuses to know what a value means: that
//! is `args`. `help` prints the table, `getopts` is fed from it.

use std::ffi::OsString;
use std::fmt;

use getopts::{Fail, Matches, Options, ParsingStyle};
use postwire::{config, escape, escape_path};

/// Which subcommand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// One option.
#[derive(Debug)]
pub struct Row {
    pub long: &'static str,
    /// One letter, or nothing.
    pub short: &'static str,
    /// What the help calls its value; empty for a flag.
    pub value: &'static str,
    /// What an error says that it takes.
    pub takes: &'static str,
    pub help: &'static str,
    pub sides: &'static [Side],
    /// Whether it may be given more than once.
    pub repeats: bool,
}

/// One thing that was said on a command line.
#[derive(Debug)]
pub enum Word {
    /// An option, with its value or with nothing.
    Option { row: &'static Row, value: String },
    /// A word that is no option.
    Path(OsString),
}

/// A command line that can't mean anything: one line for the user.
#[derive(Debug, PartialEq, Eq)]
pub struct Usage {
    message: String,
    side: Option<Side>,
}

const BOTH: &[Side] = &[Side::Client, Side::Server];
const CLIENT: &[Side] = &[Side::Client];
const SERVER: &[Side] = &[Side::Server];

const SIZE: &str = "a size such as 512k, 20M or 4G";
const TIME: &str = "a time such as 500ms, 90s, 10m or 2h";
const COUNT: &str = "a number, 1 or more";

/// In the order of the help.
pub const TABLE: &[Row] = &[
    valued(CLIENT, "to", "HOST[:PORT]", "a host, host:port or [v6]:port", "the server (port 7117 if none is given)"),
    repeated(
        CLIENT,
        "file",
        "PATH",
        "a path, or - for standard input",
        "send this file or directory; - is standard input",
    ),
    repeated(CLIENT, "text", "TEXT", "a text of at most 64 KiB", "send this text, after the files before it"),
    valued(CLIENT, "as", "NAME", "a name such as core.bin or logs/core.bin", "what the one file is called over there"),
    repeated(
        CLIENT,
        "for",
        "NICK",
        "a nickname, or '*'",
        "hand files and texts on to NICK; repeatable; '*': all in the room",
    ),
    flag(CLIENT, "", "leave", "with --for: the server keeps them until NICK comes"),
    repeated(
        CLIENT,
        "get",
        "NAME",
        "a name such as core or crash/core",
        "fetch this file or directory into --dir, or here",
    ),
    flag(CLIENT, "", "list", "list what the server shares"),
    valued(CLIENT, "from", "NICK", "a nickname", "--get and --list ask NICK, through the server"),
    flag(CLIENT, "", "stay", "stay in the room, reconnect for ever"),
    valued(CLIENT, "count", "N", COUNT, "with --stay: end after N texts and files"),
    valued(
        SERVER,
        "listen",
        "ADDRESS",
        "an address, :port, address:port, [v6]:port or -",
        "where to listen (all addresses, port 7117); -: standard input listens",
    ),
    repeated(
        SERVER,
        "allow",
        "CIDR",
        "an address or a network such as 10.0.0.0/8",
        "take connections from there only; may be given again",
    ),
    valued(SERVER, "port-file", "PATH", "a path to write", "write the port there once it listens"),
    valued(BOTH, "dir", "DIR", "a directory", "store received files in DIR; without it none are taken"),
    valued(BOTH, "share", "DIR", "a directory", "let the other side list and get what is in DIR"),
    valued(
        BOTH,
        "key-file",
        "FILE",
        "a file that postwire keygen made, or -",
        "seal with the key in FILE, or on standard input (-)",
    ),
    valued(BOTH, "nick", "NAME", "1 to 32 of A-Z a-z 0-9 . _ -", "the nickname to ask for"),
    valued(BOTH, "if-exists", "WAY", "rename, replace or refuse", "a name is taken: rename (default), replace, refuse"),
    valued(BOTH, "max-file", "SIZE", SIZE, "the largest file to take"),
    valued(BOTH, "min-free", "SIZE", SIZE, "what to leave free on the disk (1M)"),
    valued(BOTH, "max-memory", "SIZE", "a size such as 16M, 2M at least", "all buffers and queues (64M)"),
    valued(SERVER, "max-clients", "N", COUNT, "connections at once (1024, or what the system carries)"),
    flag(SERVER, "", "no-relay", "carry no texts and files from client to client"),
    valued(BOTH, "keep-partials", "TIME", TIME, "keep what a broken transfer left for TIME (7d)"),
    valued(
        BOTH,
        "limit-rate",
        "SIZE",
        "a size such as 512k or 20M, 1k at least",
        "send at most SIZE of file data a second; texts are not held back",
    ),
    flag(BOTH, "", "no-fsync", "do not wait for the disk: faster, not durable"),
    valued(
        CLIENT,
        "retry",
        "TIME",
        "a time such as 90s or 10m, 0, or forever",
        "give up after TIME without progress; 0: never try again; forever: never give up, but for a refusal (the first connection once, a broken one 30s)",
    ),
    valued(CLIENT, "connect-timeout", "TIME", TIME, "one try to connect (30s)"),
    valued(
        BOTH,
        "exec",
        "PROGRAM",
        "the path of a program",
        "run PROGRAM for each file and text that came, with RECEIVED_* set",
    ),
    flag(BOTH, "", "stdout", "write the one file that comes to standard output, and end"),
    flag(BOTH, "", "json", "one JSON object a line on standard output"),
    flag(BOTH, "q", "quiet", "say nothing but errors"),
    flag(BOTH, "v", "verbose", "say more; twice: still more"),
    flag(BOTH, "V", "version", "print the version"),
    flag(BOTH, "h", "help", "print this"),
];

const fn valued(
    sides: &'static [Side],
    long: &'static str,
    value: &'static str,
    takes: &'static str,
    help: &'static str,
) -> Row {
    Row { long, short: "", value, takes, help, sides, repeats: false }
}

const fn repeated(
    sides: &'static [Side],
    long: &'static str,
    value: &'static str,
    takes: &'static str,
    help: &'static str,
) -> Row {
    Row { long, short: "", value, takes, help, sides, repeats: true }
}

const fn flag(sides: &'static [Side], short: &'static str, long: &'static str, help: &'static str) -> Row {
    Row { long, short, value: "", takes: "no value", help, sides, repeats: true }
}

impl Side {
    /// The subcommand's name.
    pub fn name(self) -> &'static str {
        match self {
            Side::Client => "client",
            Side::Server => "server",
        }
    }

    /// The options that this subcommand has.
    pub fn rows(self) -> impl Iterator<Item = &'static Row> {
        TABLE.iter().filter(move |row| row.sides.contains(&self))
    }
}

impl Usage {
    pub fn new(side: Option<Side>, message: impl Into<String>) -> Usage {
        Usage { message: message.into(), side }
    }

    /// Option `long` does not take `got`.
    pub fn value(side: Side, long: &str, got: &str) -> Usage {
        let got = format!("\"{}\"", escape(got.as_bytes()));
        Usage::takes(side, &format!("--{long}"), long, &got)
    }

    /// What stands for option `long`, itself or a variable, does not take `got`.
    pub fn takes(side: Side, name: &str, long: &str, got: &str) -> Usage {
        let takes = side.rows().find(|row| row.long == long).map_or("no value", |row| row.takes);
        Usage::new(Some(side), format!("{name} takes {takes}, got {got}"))
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.side {
            Some(side) => write!(f, "{} (see postwire {} --help)", self.message, side.name()),
            None => write!(f, "{} (see postwire --help)", self.message),
        }
    }
}

/// Reads the words of one subcommand in their order. What follows `--` are paths, in any bytes.
pub fn read(side: Side, arguments: &[OsString]) -> Result<Vec<Word>, Usage> {
    let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    let (before, after) = arguments.split_at(end);
    let mut texts = Vec::with_capacity(before.len());
    for argument in before {
        let Some(text) = argument.to_str() else {
            let shown = escape_path(argument.as_ref());
            return Err(Usage::new(Some(side), format!("\"{shown}\" is not UTF-8: such paths go after --")));
        };
        texts.push(text);
    }
    let mut words = read_texts(side, &texts)?;
    words.extend(after.iter().skip(1).map(|path| Word::Path(path.clone())));
    let twice = side.rows().find(|row| !row.repeats && values(&words, row.long).count() > 1);
    match twice {
        Some(row) => Err(Usage::new(Some(side), format!("--{} takes one value, it was given twice", row.long))),
        None => Ok(words),
    }
}

/// The values that option `long` was given, in order.
pub fn values<'a>(words: &'a [Word], long: &'a str) -> impl Iterator<Item = &'a str> {
    words.iter().filter_map(move |word| match word {
        Word::Option { row, value } if row.long == long => Some(value.as_str()),
        _ => None,
    })
}

/// `getopts` does not say where among the options a path stood, so it is made to stop at each run of paths.
fn read_texts(side: Side, texts: &[&str]) -> Result<Vec<Word>, Usage> {
    let options = getopts_options(side);
    let mut words = Vec::new();
    let mut rest = texts;
    while !rest.is_empty() {
        let matches = options.parse(rest).map_err(|fail| explain(side, &fail))?;
        words.extend(in_order(side, &matches));
        rest = rest.split_at(rest.len() - matches.free.len()).1;
        let paths = rest.iter().take_while(|text| !text.starts_with('-') || **text == "-").count();
        let (paths, options_and_more) = rest.split_at(paths);
        words.extend(paths.iter().map(|path| Word::Path(path.into())));
        rest = options_and_more;
    }
    Ok(words)
}

fn getopts_options(side: Side) -> Options {
    let mut options = Options::new();
    options.parsing_style(ParsingStyle::StopAtFirstFree);
    for row in side.rows() {
        if row.value.is_empty() {
            options.optflagmulti(row.short, row.long, row.help);
        } else {
            options.optmulti(row.short, row.long, row.help, row.value);
        }
    }
    options
}

fn in_order(side: Side, matches: &Matches) -> Vec<Word> {
    let mut found: Vec<(usize, Word)> = Vec::new();
    for row in side.rows() {
        if row.value.is_empty() {
            let places = matches.opt_positions(row.long).into_iter();
            found.extend(places.map(|place| (place, Word::Option { row, value: String::new() })));
        } else {
            let places = matches.opt_strs_pos(row.long).into_iter();
            found.extend(places.map(|(place, value)| (place, Word::Option { row, value })));
        }
    }
    found.sort_by_key(|(place, _)| *place);
    found.into_iter().map(|(_, word)| word).collect()
}

fn explain(side: Side, fail: &Fail) -> Usage {
    let shown = |name: &str| {
        let dashes = if name.chars().count() == 1 { "-" } else { "--" };
        format!("{dashes}{}", escape(name.as_bytes()))
    };
    match fail {
        Fail::ArgumentMissing(name) => Usage::takes(side, &shown(name), name, "nothing"),
        Fail::UnexpectedArgument(name) => Usage::new(Some(side), format!("{} takes no value", shown(name))),
        Fail::UnrecognizedOption(name) if TABLE.iter().any(|row| row.long == name) => {
            let other = if side == Side::Client { Side::Server } else { Side::Client };
            Usage::new(Some(side), format!("{} is an option of postwire {}", shown(name), other.name()))
        }
        Fail::UnrecognizedOption(name) | Fail::OptionMissing(name) | Fail::OptionDuplicated(name) => {
            Usage::new(Some(side), format!("no such option: {}", shown(name)))
        }
    }
}

/// `--text` takes what a text takes; here because the table says 64 KiB in words.
const _: () = assert!(config::TEXT_BYTES_MAX == 64 * 1024);

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    fn read_all(side: Side, words: &[&str]) -> Result<Vec<String>, String> {
        let arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
        let words = read(side, &arguments).map_err(|usage| usage.to_string())?;
        let show = |word: &Word| match word {
            Word::Option { row, value } => format!("{}={value}", row.long),
            Word::Path(path) => path.to_string_lossy().into_owned(),
        };
        Ok(words.iter().map(show).collect())
    }

    #[test]
    fn options_and_paths_keep_their_order() {
        let words = ["a", "--text", "one", "-", "b", "-qv", "--file=c", "--", "--to", "--"];
        let expected = ["a", "text=one", "-", "b", "quiet=", "verbose=", "file=c", "--to", "--"];
        assert_eq!(read_all(Side::Client, &words).unwrap(), expected);
    }

    #[test]
    fn a_value_may_begin_with_a_dash() {
        assert_eq!(read_all(Side::Client, &["--text", "-1"]).unwrap(), ["text=-1"]);
    }

    #[test]
    fn wrong_usage_names_the_option() {
        let wrong = |side, words: &[&str]| read_all(side, words).unwrap_err();
        let missing = wrong(Side::Client, &["--max-file"]);
        assert_eq!(
            missing,
            "--max-file takes a size such as 512k, 20M or 4G, got nothing (see postwire client --help)"
        );
        assert!(wrong(Side::Client, &["--json=1"]).starts_with("--json takes no value"));
        assert!(wrong(Side::Server, &["--to", "x"]).starts_with("--to is an option of postwire client"));
        assert!(wrong(Side::Server, &["-x"]).starts_with("no such option: -x"));
        assert!(
            wrong(Side::Server, &["--dir", "a", "--dir=a"]).starts_with("--dir takes one value, it was given twice")
        );
    }

    #[test]
    fn after_two_dashes_a_path_may_be_any_bytes() {
        let path = OsString::from_vec(b"caf\xe9".to_vec());
        let words = read(Side::Client, &["--".into(), path.clone()]).unwrap();
        assert!(matches!(words.as_slice(), [Word::Path(only)] if *only == path));
        assert!(read(Side::Client, &[path]).unwrap_err().to_string().starts_with("\"caf\\xe9\" is not UTF-8"));
    }

    #[test]
    fn many_paths_are_read_in_one_go() {
        let words: Vec<String> = (0..100_000).map(|number| format!("{number}.bin")).collect();
        let arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
        assert_eq!(read(Side::Client, &arguments).unwrap().len(), 100_000);
    }
}
