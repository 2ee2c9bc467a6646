//! What can go wrong, sorted by who is to blame.
//!
//! This module refuses to hold bare strings: each variant carries the evidence, and its message is lower case with the
//! cause last. What the *peer* is told is a [`Refusal`], never one of these texts. Everybody calls it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something could not be done.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The caller: an argument that can't mean anything.
    Argument {
        /// What the argument is, such as `address`.
        what: &'static str,
        /// What was given.
        got: String,
        /// What it takes.
        expected: &'static str,
    },
    /// The system refused an operation on a path of this machine.
    File {
        /// What was tried, such as `open`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused an operation on a socket, a thread or the like.
    System {
        /// What was tried, such as `listen`.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// No address is known for a name.
    NoSuchHost {
        /// The name as given.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Nobody answered at the address, or it said no.
    Connect {
        /// The address as given.
        address: String,
        /// What the system said of the last address tried.
        source: io::Error,
    },
    /// The clock: a wait ended without what it waited for.
    Timeout {
        /// What was awaited.
        waiting_for: &'static str,
        /// How long.
        after: Duration,
    },
    /// The peer's bytes are not, or no longer, this protocol.
    Wire(WireError),
    /// The peer's frames are well formed and break a rule of the protocol.
    Violation(Violation),
    /// The connection ended without GOODBYE (PROTOCOL 1.7).
    Broken {
        /// What the system said, or nothing when the stream just ended.
        source: Option<io::Error>,
    },
    /// The other side said no.
    Refused(Refusal),
    /// The other side said goodbye before the work was done.
    Goodbye(Goodbye),
    /// A source changed, or was cut short, while it was sent.
    SourceChanged {
        /// Which.
        path: PathBuf,
    },
    /// One connection after the other was damaged on its way, and none brought anything.
    LineDamaged {
        /// How many.
        connections: u32,
    },
    /// A stream can't go on after a break: the other side lost what it had written of it.
    StreamLost,
    /// The other side gave a transfer up.
    GivenUp,
    /// This side's own end was closed or stopped.
    Closed,
}

/// Bytes that are no frame (PROTOCOL 1).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WireError {
    /// The first bytes are no HELLO or WELCOME: what they look like instead.
    NotPostwire {
        /// Up to 32 first bytes, as they came.
        start: Vec<u8>,
    },
    /// A frame type this version does not know and may not skip (1.2).
    UnknownType {
        /// The type byte.
        got: u8,
    },
    /// A length outside the type's limits (1.3).
    Length {
        /// The type byte.
        frame_type: u8,
        /// The length field.
        got: u64,
        /// The least that the type takes.
        least: u64,
        /// The most that the type takes.
        most: u64,
    },
    /// The head's CRC does not fit (1.4).
    HeadCrc {
        /// The type byte.
        frame_type: u8,
        /// The field in the frame.
        got: u32,
        /// What the bytes give.
        expected: u32,
    },
    /// The tail's CRC does not fit, in a frame that can't be asked for again (1.5).
    TailCrc {
        /// The type byte.
        frame_type: u8,
        /// The field in the frame.
        got: u32,
        /// What the bytes give.
        expected: u32,
    },
    /// A field holds a value that it can't have.
    Field {
        /// The type byte.
        frame_type: u8,
        /// The field's name in PROTOCOL.md.
        field: &'static str,
    },
    /// The stream ended inside a frame (1.7).
    EndInsideFrame,
}

/// A rule of PROTOCOL.md that the peer broke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The rule's number.
    pub rule: &'static str,
    /// What it did, in a few words.
    pub what: &'static str,
}

/// Why the other side said no, or why we do: the table of PROTOCOL 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// We broke a rule.
    Protocol,
    /// No version in common; the highest that the other side speaks.
    Version(u16),
    /// Another mode is wanted.
    Mode(u64),
    /// Too many connections; the limit.
    Busy(u64),
    /// The other side is stopping.
    Stopping,
    /// This address, or this request, is not allowed.
    NotAllowed,
    /// It shares nothing of that name.
    NotFound,
    /// It takes no files: it was started without a directory.
    NoDirectory,
    /// The name is taken, and the other side does not replace or rename.
    Exists,
    /// Over the file limit; the limit in bytes.
    TooBig(u64),
    /// The disk or the quota is full.
    NoRoom,
    /// The place can't be written: permissions, a read-only file system, a file where a directory must be.
    NotWritable,
    /// A path with a name that is not safe.
    BadName,
    /// Damaged beyond repair.
    Damaged,
    /// Not a thing this version can do.
    Unsupported,
    /// Nobody of that nickname.
    Nobody,
    /// Nothing is carried from client to client.
    NoRelay,
    /// A queue over there is full.
    TooMuch,
    /// The other side's storage failed.
    Failed,
    /// No complete hello in time.
    HelloTimeout(u64),
    /// The first bytes were no HELLO.
    NotPostwire,
    /// Its key is another.
    WrongKey,
    /// It shares nothing: it was started without a directory to share.
    NoShare,
    /// A code this version does not know.
    Other(u16, u64),
}

/// Why a side says GOODBYE (PROTOCOL 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Goodbye {
    /// Nothing more to do.
    Done,
    /// The program is stopping.
    Stopping,
    /// A newer connection of the same run took over.
    Replaced,
    /// It read too slowly.
    TooSlow,
    /// The operator removed it.
    Removed,
    /// The keys of this connection are used up; the next one has others.
    Reconnect,
    /// A code this version does not know.
    Other(u16),
}

impl Refusal {
    /// The code and the detail that stand for it on the wire.
    #[must_use]
    pub fn to_wire(self) -> (u16, u64) {
        match self {
            Refusal::Protocol => (1, 0),
            Refusal::Version(highest) => (2, u64::from(highest)),
            Refusal::Mode(wanted) => (3, wanted),
            Refusal::Busy(limit) => (4, limit),
            Refusal::Stopping => (5, 0),
            Refusal::NotAllowed => (6, 0),
            Refusal::NotFound => (7, 0),
            Refusal::NoDirectory => (8, 0),
            Refusal::Exists => (9, 0),
            Refusal::TooBig(limit) => (10, limit),
            Refusal::NoRoom => (11, 0),
            Refusal::NotWritable => (12, 0),
            Refusal::BadName => (13, 0),
            Refusal::Damaged => (14, 0),
            Refusal::Unsupported => (15, 0),
            Refusal::Nobody => (16, 0),
            Refusal::NoRelay => (17, 0),
            Refusal::TooMuch => (18, 0),
            Refusal::Failed => (19, 0),
            Refusal::HelloTimeout(ms) => (20, ms),
            Refusal::NotPostwire => (21, 0),
            Refusal::NoShare => (22, 0),
            Refusal::WrongKey => (23, 0),
            Refusal::Other(code, detail) => (code, detail),
        }
    }

    /// What a code and a detail from the wire mean.
    #[must_use]
    pub fn from_wire(code: u16, detail: u64) -> Refusal {
        match code {
            1 => Refusal::Protocol,
            2 => Refusal::Version(u16::try_from(detail).unwrap_or(u16::MAX)),
            3 => Refusal::Mode(detail),
            4 => Refusal::Busy(detail),
            5 => Refusal::Stopping,
            6 => Refusal::NotAllowed,
            7 => Refusal::NotFound,
            8 => Refusal::NoDirectory,
            9 => Refusal::Exists,
            10 => Refusal::TooBig(detail),
            11 => Refusal::NoRoom,
            12 => Refusal::NotWritable,
            13 => Refusal::BadName,
            14 => Refusal::Damaged,
            15 => Refusal::Unsupported,
            16 => Refusal::Nobody,
            17 => Refusal::NoRelay,
            18 => Refusal::TooMuch,
            19 => Refusal::Failed,
            20 => Refusal::HelloTimeout(detail),
            21 => Refusal::NotPostwire,
            22 => Refusal::NoShare,
            23 => Refusal::WrongKey,
            _ => Refusal::Other(code, detail),
        }
    }
}

impl Goodbye {
    /// The code that stands for it on the wire.
    #[must_use]
    pub fn to_wire(self) -> u16 {
        match self {
            Goodbye::Done => 0,
            Goodbye::Stopping => 1,
            Goodbye::Replaced => 2,
            Goodbye::TooSlow => 3,
            Goodbye::Removed => 4,
            Goodbye::Reconnect => 5,
            Goodbye::Other(code) => code,
        }
    }

    /// What a code from the wire means.
    #[must_use]
    pub fn from_wire(code: u16) -> Goodbye {
        match code {
            0 => Goodbye::Done,
            1 => Goodbye::Stopping,
            2 => Goodbye::Replaced,
            3 => Goodbye::TooSlow,
            4 => Goodbye::Removed,
            5 => Goodbye::Reconnect,
            other => Goodbye::Other(other),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Protocol => write!(f, "a rule of the protocol was broken"),
            Refusal::Version(highest) => write!(f, "no version in common: it speaks up to version {highest}"),
            Refusal::Mode(0) => write!(f, "it has no key: give it ours with --key-file, or use none"),
            Refusal::Mode(1) => write!(f, "it takes only those who have its key: --key-file"),
            Refusal::Mode(mode) => write!(f, "it wants mode {mode}, which this version can't do"),
            Refusal::Busy(limit) => write!(f, "too many connections (limit {limit}): try again later"),
            Refusal::Stopping => write!(f, "it is stopping"),
            Refusal::NotAllowed => write!(f, "it does not take connections from this address"),
            Refusal::NotFound => write!(f, "it shares nothing of that name: --list shows what there is"),
            Refusal::NoDirectory => write!(f, "it takes no files: start it with --dir DIR"),
            Refusal::Exists => write!(f, "the name is taken there"),
            Refusal::TooBig(limit) => write!(f, "too big: it takes at most {limit} bytes a file"),
            Refusal::NoRoom => write!(f, "no room: its disk or quota is full"),
            Refusal::NotWritable => write!(f, "its directory can't be written"),
            Refusal::BadName => write!(f, "the name is not safe"),
            Refusal::Damaged => write!(f, "damaged beyond repair"),
            Refusal::Unsupported => write!(f, "its version can't do that"),
            Refusal::Nobody => write!(f, "nobody of that name is there"),
            Refusal::NoRelay => write!(f, "it does not carry anything between clients"),
            Refusal::TooMuch => write!(f, "its queue is full: try again later"),
            Refusal::Failed => write!(f, "its storage failed"),
            Refusal::HelloTimeout(ms) => write!(f, "no hello within {ms} ms"),
            Refusal::WrongKey => write!(f, "the keys of both sides are not the same: --key-file"),
            Refusal::NoShare => write!(f, "it shares nothing: start it with --share DIR"),
            Refusal::NotPostwire => write!(f, "the first bytes were not postwire's"),
            Refusal::Other(code, detail) => write!(f, "refused with code {code} ({detail})"),
        }
    }
}

impl fmt::Display for Goodbye {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Goodbye::Done => write!(f, "done"),
            Goodbye::Stopping => write!(f, "stopping"),
            Goodbye::Replaced => write!(f, "replaced by a newer connection"),
            Goodbye::TooSlow => write!(f, "too slow a reader"),
            Goodbye::Removed => write!(f, "removed by the operator"),
            Goodbye::Reconnect => write!(f, "the keys of this connection are used up"),
            Goodbye::Other(code) => write!(f, "code {code}"),
        }
    }
}

impl WireError {
    /// What a line does to the frames of a peer that broke no rule: a break (PROTOCOL 1.4, 1.5, 1.7). An end before the
    /// first byte is one too.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            WireError::EndInsideFrame => true,
            WireError::NotPostwire { start } => start.is_empty(),
            error => error.is_flipped(),
        }
    }

    /// Bytes came that were not sent so. An unknown type is one of them: versions were agreed on (PROTOCOL 1.2).
    pub(crate) fn is_flipped(&self) -> bool {
        matches!(self, WireError::HeadCrc { .. } | WireError::TailCrc { .. } | WireError::UnknownType { .. })
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireError::NotPostwire { start } => write!(f, "not postwire: {}", describe_stranger(start)),
            WireError::UnknownType { got } => write!(f, "unknown frame type {got:#04x}"),
            WireError::Length { frame_type, got, least, most } => {
                write!(f, "frame {frame_type:#04x}: length {got}, expected {least} to {most}")
            }
            WireError::HeadCrc { frame_type, got, expected } => {
                write!(f, "frame {frame_type:#04x}: head checksum {got:08x}, expected {expected:08x}")
            }
            WireError::TailCrc { frame_type, got, expected } => {
                write!(f, "frame {frame_type:#04x}: checksum {got:08x}, expected {expected:08x}")
            }
            WireError::Field { frame_type, field } => write!(f, "frame {frame_type:#04x}: impossible {field}"),
            WireError::EndInsideFrame => write!(f, "the stream ended inside a frame"),
        }
    }
}

/// Names what the first bytes of a stranger look like.
fn describe_stranger(start: &[u8]) -> &'static str {
    const HTTP_METHODS: [&[u8]; 7] = [b"GET ", b"POST", b"HEAD", b"PUT ", b"OPTI", b"CONN", b"PRI "];
    match start {
        [] => "nothing was said",
        // A handshake, or the alert that refuses ours.
        [0x15 | 0x16, 0x03, ..] => "it speaks TLS",
        _ if start.starts_with(b"HTTP/") => "it is an HTTP server",
        _ if HTTP_METHODS.iter().any(|method| start.starts_with(method)) => "it is an HTTP client",
        _ if start.starts_with(b"SSH-") => "it speaks SSH",
        [0x81, ..] => "it answers a hello with a hello: an echo server, or another client",
        [0x82, ..] => "it answers like a server",
        [first, ..] if first.is_ascii_graphic() => "it speaks a text protocol",
        _ => "unknown bytes",
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "protocol rule {} broken: {}", self.rule, self.what)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Argument { what, got, expected } => {
                write!(f, "{what} \"{}\": expected {expected}", crate::name::escape(got.as_bytes()))
            }
            Error::File { action, path, source } => {
                write!(f, "can't {action} \"{}\": {source}", crate::name::escape_path(path))
            }
            Error::System { action, source } => write!(f, "can't {action}: {source}"),
            Error::NoSuchHost { host, source } => {
                write!(f, "no address for host \"{}\": {source}", crate::name::escape(host.as_bytes()))
            }
            Error::Connect { address, source } => {
                write!(f, "can't connect to {}: {source}", crate::name::escape(address.as_bytes()))
            }
            Error::Timeout { waiting_for, after } => {
                write!(f, "timed out after {:.1} s waiting for {waiting_for}", after.as_secs_f64())
            }
            Error::Wire(error) => error.fmt(f),
            Error::Violation(violation) => violation.fmt(f),
            Error::Broken { source: Some(source) } => write!(f, "connection broken: {source}"),
            Error::Broken { source: None } => write!(f, "connection broken: the other side ended without goodbye"),
            Error::Refused(refusal) => write!(f, "refused: {refusal}"),
            Error::Goodbye(reason) => write!(f, "the other side said goodbye: {reason}"),
            Error::SourceChanged { path } => {
                write!(f, "\"{}\" changed while it was sent", crate::name::escape_path(path))
            }
            Error::LineDamaged { connections } => write!(
                f,
                "{connections} connections in a row were damaged on their way: check the cable, the network card and the memory"
            ),
            Error::StreamLost => write!(f, "can't go on after the break: the other side lost its part: start it again"),
            Error::GivenUp => write!(f, "given up by the other side"),
            Error::Closed => write!(f, "closed"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::File { source, .. }
            | Error::System { source, .. }
            | Error::NoSuchHost { source, .. }
            | Error::Connect { source, .. }
            | Error::Broken { source: Some(source) } => Some(source),
            Error::Wire(error) => Some(error),
            _ => None,
        }
    }
}

impl std::error::Error for WireError {}

impl From<WireError> for Error {
    fn from(error: WireError) -> Error {
        Error::Wire(error)
    }
}

impl From<Violation> for Error {
    fn from(violation: Violation) -> Error {
        Error::Violation(violation)
    }
}

impl Error {
    /// A violation of `rule`.
    pub(crate) fn violation(rule: &'static str, what: &'static str) -> Error {
        Error::Violation(Violation { rule, what })
    }

    /// For `map_err` on a system call about sockets, threads and the like.
    pub(crate) fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Error {
        move |source| Error::System { action, source: source.into() }
    }
}
