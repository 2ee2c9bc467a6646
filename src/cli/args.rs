//! What a command line means: an [`Order`]. A function of its arguments and two variables of the environment; it opens
//! nothing, prints nothing and asks nobody. Called by `cli::main`.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use postwire::{config, escape_path, Config, IfExists, Network, Nickname, Recipients, Retry, SafePath};

use super::keys::KeySource;
use super::options::{self, Side, Usage, Word};
use super::units;

/// The variables of the environment that count; an empty one is none.
#[derive(Debug, Default)]
pub struct Environment {
    pub to: Option<OsString>,
    pub nick: Option<OsString>,
    pub key_file: Option<OsString>,
    pub key: Option<OsString>,
}

/// What the program is to do.
#[derive(Debug)]
pub enum Order {
    /// Print the help of a subcommand, or of the whole.
    Help(Option<Side>),
    Version,
    /// Make a key in this file, or on standard output.
    Keygen(PathBuf),
    Client(ClientOrder),
    Server(ServerOrder),
}

#[derive(Debug)]
pub struct ClientOrder {
    pub address: String,
    pub run: ClientRun,
    /// Who else a job's files and texts are for; the server, and everybody in the room, if nobody.
    pub recipients: Option<Recipients>,
    /// Who else is asked for what a job gets and lists.
    pub from: Option<Nickname>,
    /// How long to wait for those who are not there; `None`: for ever.
    pub wait: Option<Duration>,
    pub config: Config,
    pub exec: Option<PathBuf>,
    pub key: Option<KeySource>,
    pub output: Output,
}

/// Which of its three runs a client is.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientRun {
    /// Does these in order, and ends.
    Job(VecDeque<Item>),
    /// Talks in the room until its input ends.
    Chat,
    /// Listens in the room, until so many texts and files came.
    Stay { count: Option<u64> },
}

/// One thing that a job sends.
#[derive(Debug, PartialEq, Eq)]
pub enum Item {
    Text(String),
    File {
        path: PathBuf,
        name: Option<SafePath>,
    },
    /// Standard input, as a file of this name.
    Stdin {
        name: SafePath,
    },
    /// What the other side shares, to be stored under its own last name or another.
    Get {
        path: SafePath,
        name: Option<SafePath>,
    },
    List,
}

#[derive(Debug)]
pub struct ServerOrder {
    pub listen: Listen,
    pub port_file: Option<PathBuf>,
    pub config: Config,
    pub exec: Option<PathBuf>,
    pub key: Option<KeySource>,
    pub output: Output,
}

/// Where a server takes its connections from.
#[derive(Debug, PartialEq, Eq)]
pub enum Listen {
    On(String),
    /// Standard input, which listens already.
    Stdin,
}

/// How much is said, and in which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    pub json: bool,
    /// Standard output is for the one file that comes.
    pub to_stdout: bool,
    pub level: Level,
}

impl Output {
    /// Before anybody could choose.
    pub const PLAIN: Output = Output { json: false, to_stdout: false, level: Level::Notice };

    /// Lines on standard error are those of a log.
    pub fn is_log(self) -> bool {
        !self.json && self.level > Level::Notice
    }
}

/// How important a line is, and up to which a run prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Error,
    Notice,
    /// With `-v`.
    Detail,
    /// With `-vv`.
    Trace,
}

impl Order {
    /// How much is said, and in which form.
    pub fn output(&self) -> Output {
        match self {
            Order::Client(order) => order.output,
            Order::Server(order) => order.output,
            Order::Help(_) | Order::Version | Order::Keygen(_) => Output::PLAIN,
        }
    }

    /// The program of `--exec`, and whose.
    pub fn exec(&self) -> Option<(Side, &Path)> {
        match self {
            Order::Client(order) => Some((Side::Client, order.exec.as_deref()?)),
            Order::Server(order) => Some((Side::Server, order.exec.as_deref()?)),
            Order::Help(_) | Order::Version | Order::Keygen(_) => None,
        }
    }
}

/// Reads a whole command line; `program` is its word 0.
pub fn read(program: &OsStr, arguments: &[OsString], environment: &Environment) -> Result<Order, Usage> {
    let side_of = |word: &OsStr| [Side::Client, Side::Server].into_iter().find(|side| word == side.name());
    if let Some(side) = Path::new(program).file_name().and_then(side_of) {
        return read_side(side, arguments, environment);
    }
    let Some((first, rest)) = arguments.split_first() else {
        return Ok(Order::Help(None));
    };
    if let Some(side) = side_of(first) {
        return read_side(side, rest, environment);
    }
    match first.to_str() {
        Some("-h" | "--help") => Ok(Order::Help(None)),
        Some("-V" | "--version") => Ok(Order::Version),
        Some("keygen") => keygen(rest),
        _ => {
            let got = escape_path(first.as_ref());
            Err(Usage::new(None, format!("the first word is client, server or keygen, got \"{got}\"")))
        }
    }
}

fn read_side(side: Side, arguments: &[OsString], environment: &Environment) -> Result<Order, Usage> {
    let given = Given { side, words: options::read(side, arguments)? };
    if given.has("help") {
        return Ok(Order::Help(Some(side)));
    }
    if given.has("version") {
        return Ok(Order::Version);
    }
    match side {
        Side::Client => client(&given, environment).map(Order::Client),
        Side::Server => server(&given, environment).map(Order::Server),
    }
}

/// The words of one subcommand.
struct Given {
    side: Side,
    words: Vec<Word>,
}

impl Given {
    fn has(&self, long: &str) -> bool {
        self.count(long) > 0
    }

    fn count(&self, long: &str) -> usize {
        options::values(&self.words, long).count()
    }

    /// The value of option `long` as `parse` understands it, or nothing when the option was not given.
    fn value<T>(&self, long: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Usage> {
        let Some(value) = options::values(&self.words, long).next() else {
            return Ok(None);
        };
        parse(value).map(Some).ok_or_else(|| Usage::value(self.side, long, value))
    }

    fn wrong(&self, message: &str) -> Usage {
        Usage::new(Some(self.side), message)
    }
}

fn client(given: &Given, environment: &Environment) -> Result<ClientOrder, Usage> {
    let mut config = common(given, environment)?;
    let exec = exec(given)?;
    let run = client_run(given)?;
    let from = from(given, &run)?;
    let gets = match &run {
        ClientRun::Job(items) => items.iter().filter(|item| matches!(item, Item::Get { .. })).count(),
        _ => 0,
    };
    if given.has("stdout") && gets != 1 {
        return Err(given.wrong("--stdout takes what one --get fetches: give exactly one with it"));
    }
    if gets > 0 {
        // Nothing comes here that was not asked for, unless a directory was named for it.
        config.take_offers = config.dir.is_some();
        if !given.has("stdout") {
            config.dir.get_or_insert_with(|| PathBuf::from("."));
        }
    }
    config.join_room = !matches!(run, ClientRun::Job(_));
    if matches!(run, ClientRun::Stay { .. }) {
        config.retry = Retry::Forever;
    }
    set(&mut config.retry, given.value("retry", retry)?);
    let wait = match config.retry {
        Retry::Default => Some(Duration::ZERO),
        Retry::For(time) => Some(time),
        Retry::Forever => None,
    };
    let recipients = recipients(given, &run, wait)?;
    set(
        &mut config.connect_timeout,
        given.value("connect-timeout", |text| units::time(text).filter(|time| !time.is_zero()))?,
    );
    let variable = from_environment(given, "POSTWIRE_TO", "to", environment.to.as_deref(), not_empty)?;
    let Some(address) = given.value("to", not_empty)?.or(variable) else {
        return Err(given.wrong("--to HOST[:PORT] is missing, and there is no POSTWIRE_TO"));
    };
    let key = key(given, environment)?;
    let reads_stdin =
        matches!(&run, ClientRun::Job(items) if items.iter().any(|item| matches!(item, Item::Stdin { .. })));
    if key == Some(KeySource::Stdin) && (reads_stdin || run == ClientRun::Chat) {
        return Err(given.wrong("--key-file - takes standard input, which this run needs itself: name a file"));
    }
    Ok(ClientOrder { address, run, recipients, from, wait, config, exec, key, output: output(given)? })
}

fn client_run(given: &Given) -> Result<ClientRun, Usage> {
    let mut items = items(given)?;
    let count = given.value("count", |text| text.parse().ok().filter(|&count: &u64| count > 0))?;
    name_one(given, &mut items)?;
    if given.has("stay") {
        if !items.is_empty() {
            return Err(given.wrong("--stay takes no value, and no --file, --text, --get, --list or path beside it"));
        }
        return Ok(ClientRun::Stay { count });
    }
    if count.is_some() {
        return Err(given.wrong("--count takes a number beside --stay only"));
    }
    Ok(if items.is_empty() { ClientRun::Chat } else { ClientRun::Job(items) })
}

/// `--as` is for one file. Standard input has no name of its own.
fn name_one(given: &Given, items: &mut VecDeque<Item>) -> Result<(), Usage> {
    let as_name = given.value("as", |text| SafePath::parse(text.as_bytes()).ok())?;
    let has_stdin = items.iter().any(|item| matches!(item, Item::Stdin { .. }));
    let mut files = items.iter_mut().filter(|item| !matches!(item, Item::Text(_) | Item::List));
    let (first, second) = (files.next(), files.next());
    match (first, as_name) {
        (Some(item), Some(as_name)) if second.is_none() => match item {
            Item::File { name, .. } | Item::Get { name, .. } => *name = Some(as_name),
            Item::Stdin { name } => *name = as_name,
            Item::Text(_) | Item::List => {}
        },
        (_, Some(_)) => return Err(given.wrong("--as takes the name of one file: give exactly one file with it")),
        (_, None) if has_stdin => {
            return Err(given.wrong("standard input (-) has no name: give it one with --as NAME"));
        }
        (_, None) => {}
    }
    Ok(())
}

/// Who else the files and texts are for. They are waited for as long as the server is.
fn recipients(given: &Given, run: &ClientRun, wait: Option<Duration>) -> Result<Option<Recipients>, Usage> {
    let words: Vec<&str> = options::values(&given.words, "for").collect();
    let leave = given.has("leave");
    if words.is_empty() {
        return if leave { Err(given.wrong("--leave takes --for NICK beside it")) } else { Ok(None) };
    }
    let is_sent = |item: &Item| matches!(item, Item::File { .. } | Item::Stdin { .. } | Item::Text(_));
    if !matches!(run, ClientRun::Job(items) if items.iter().any(is_sent)) {
        return Err(given.wrong("--for takes the nickname that a --file or --text is for: give one with it"));
    }
    let to = if words == ["*"] {
        None
    } else {
        let parse = |word: &&str| Nickname::parse(word.as_bytes()).map_err(|_| Usage::value(given.side, "for", word));
        Some(words.iter().map(parse).collect::<Result<Vec<_>, _>>()?)
    };
    if leave && to.is_none() {
        return Err(given.wrong("--leave takes --for NICK beside it: '*' is whoever is there"));
    }
    Ok(Some(Recipients { to, leave, wait }))
}

/// Who else is asked.
fn from(given: &Given, run: &ClientRun) -> Result<Option<Nickname>, Usage> {
    let from = given.value("from", |text| Nickname::parse(text.as_bytes()).ok())?;
    let is_asked = |item: &Item| matches!(item, Item::Get { .. } | Item::List);
    if from.is_some() && !matches!(run, ClientRun::Job(items) if items.iter().any(is_asked)) {
        return Err(given.wrong("--from takes the nickname that a --get or --list asks: give one with it"));
    }
    Ok(from)
}

/// The files and texts of a job, in the order of the command line.
fn items(given: &Given) -> Result<VecDeque<Item>, Usage> {
    let mut items = VecDeque::new();
    for word in &given.words {
        match word {
            Word::Option { row, value } if row.long == "text" => {
                if value.len() > config::TEXT_BYTES_MAX {
                    return Err(Usage::takes(given.side, "--text", "text", &format!("{} bytes", value.len())));
                }
                items.push_back(Item::Text(value.clone()));
            }
            Word::Option { row, value } if row.long == "file" => items.push_back(file(given, value.as_ref())?),
            Word::Option { row, value } if row.long == "get" => {
                let path = SafePath::parse(value.trim_end_matches('/').as_bytes());
                let path = path.map_err(|_| Usage::value(given.side, "get", value))?;
                items.push_back(Item::Get { path, name: None });
            }
            Word::Option { row, .. } if row.long == "list" => items.push_back(Item::List),
            Word::Path(path) => items.push_back(file(given, path)?),
            Word::Option { .. } => {}
        }
    }
    Ok(items)
}

fn file(given: &Given, path: &OsStr) -> Result<Item, Usage> {
    if path.is_empty() {
        return Err(Usage::value(given.side, "file", ""));
    }
    if path == "-" {
        // `--as` says the real one.
        let name = SafePath::parse(b"stdin").map_err(|_| given.wrong("standard input has no name"))?;
        return Ok(Item::Stdin { name });
    }
    Ok(Item::File { path: path.into(), name: None })
}

fn server(given: &Given, environment: &Environment) -> Result<ServerOrder, Usage> {
    let mut config = common(given, environment)?;
    let path = given.words.iter().find_map(|word| match word {
        Word::Path(path) => Some(path),
        Word::Option { .. } => None,
    });
    if let Some(path) = path {
        return Err(given.wrong(&format!("a server takes options only, got \"{}\"", escape_path(path.as_ref()))));
    }
    config.relay = !given.has("no-relay");
    for value in options::values(&given.words, "allow") {
        let network = Network::parse(value).map_err(|_| Usage::value(given.side, "allow", value))?;
        config.allow.push(network);
    }
    set(
        &mut config.max_clients,
        given.value("max-clients", |text| text.parse().ok().filter(|&clients: &usize| clients > 0))?,
    );
    let listen = match given.value("listen", not_empty)? {
        Some(address) if address == "-" => Listen::Stdin,
        Some(address) => Listen::On(address),
        None => Listen::On(format!(":{}", config::DEFAULT_PORT)),
    };
    let port_file = given.value("port-file", not_empty)?.map(PathBuf::from);
    let key = key(given, environment)?;
    if key == Some(KeySource::Stdin) && matches!(listen, Listen::Stdin) {
        return Err(given.wrong("--key-file - takes standard input, which is the socket: name a file"));
    }
    Ok(ServerOrder { listen, port_file, config, exec: exec(given)?, key, output: output(given)? })
}

fn keygen(words: &[OsString]) -> Result<Order, Usage> {
    match words {
        [word] if word == "-h" || word == "--help" => Ok(Order::Help(None)),
        [path] if path == "-" || !(path.is_empty() || path.as_encoded_bytes().starts_with(b"-")) => {
            Ok(Order::Keygen(path.into()))
        }
        _ => Err(Usage::new(None, "keygen takes the FILE to make, or - for standard output")),
    }
}

/// Where the key is: what the command line says, else the environment.
fn key(given: &Given, environment: &Environment) -> Result<Option<KeySource>, Usage> {
    let source = |path: String| if path == "-" { KeySource::Stdin } else { KeySource::File(path.into()) };
    let variable =
        from_environment(given, "POSTWIRE_KEY_FILE", "key-file", environment.key_file.as_deref(), not_empty)?;
    if let Some(path) = given.value("key-file", not_empty)?.or(variable) {
        return Ok(Some(source(path)));
    }
    let text = environment.key.as_ref().filter(|text| !text.is_empty());
    Ok(text.map(|text| KeySource::Text(text.to_string_lossy().into_owned())))
}

/// What both subcommands have.
fn common(given: &Given, environment: &Environment) -> Result<Config, Usage> {
    let nickname = |text: &str| Nickname::parse(text.as_bytes()).ok();
    let variable = from_environment(given, "POSTWIRE_NICK", "nick", environment.nick.as_deref(), nickname)?;
    let mut config = Config {
        dir: given.value("dir", not_empty)?.map(PathBuf::from),
        share: given.value("share", not_empty)?.map(PathBuf::from),
        nick: given.value("nick", nickname)?.or(variable),
        fsync: !given.has("no-fsync"),
        ..Config::default()
    };
    set(&mut config.if_exists, given.value("if-exists", if_exists)?);
    set(&mut config.max_file, given.value("max-file", units::size)?);
    set(&mut config.min_free, given.value("min-free", units::size)?);
    set(&mut config.max_memory, given.value("max-memory", memory)?);
    config.limit_rate = given.value("limit-rate", limit_rate)?;
    set(&mut config.keep_partials, given.value("keep-partials", units::time)?);
    Ok(config)
}

fn exec(given: &Given) -> Result<Option<PathBuf>, Usage> {
    Ok(given.value("exec", not_empty)?.map(PathBuf::from))
}

fn output(given: &Given) -> Result<Output, Usage> {
    let level = match (given.has("quiet"), given.count("verbose")) {
        (true, 0) => Level::Error,
        (true, _) => return Err(given.wrong("--quiet takes no --verbose beside it")),
        (false, 0) => Level::Notice,
        (false, 1) => Level::Detail,
        (false, _) => Level::Trace,
    };
    let (json, to_stdout) = (given.has("json"), given.has("stdout"));
    if to_stdout && (json || given.has("dir") || given.has("list")) {
        return Err(given.wrong("--stdout takes standard output for one file: no --dir, --json or --list beside it"));
    }
    Ok(Output { json, to_stdout, level })
}

/// The value of a variable that stands in for option `long`; a wrong one counts only where the option was not given.
fn from_environment<T>(
    given: &Given,
    name: &str,
    long: &str,
    value: Option<&OsStr>,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, Usage> {
    let Some(value) = value.filter(|value| !value.is_empty() && !given.has(long)) else {
        return Ok(None);
    };
    let wrong = || Usage::takes(given.side, name, long, &format!("\"{}\"", escape_path(value.as_ref())));
    value.to_str().and_then(parse).map(Some).ok_or_else(wrong)
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn not_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn if_exists(text: &str) -> Option<IfExists> {
    match text {
        "rename" => Some(IfExists::Rename),
        "replace" => Some(IfExists::Replace),
        "refuse" => Some(IfExists::Refuse),
        _ => None,
    }
}

fn memory(text: &str) -> Option<usize> {
    let bytes = usize::try_from(units::size(text)?).ok()?;
    (bytes >= config::MAX_MEMORY_BYTES_LEAST).then_some(bytes)
}

fn limit_rate(text: &str) -> Option<u64> {
    units::size(text).filter(|&rate| rate >= config::LIMIT_RATE_LEAST)
}

fn retry(text: &str) -> Option<Retry> {
    match text {
        "forever" => Some(Retry::Forever),
        _ => units::time(text).map(Retry::For),
    }
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
