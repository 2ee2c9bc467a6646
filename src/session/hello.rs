//! The hello, from both sides (PROTOCOL 2), and the refusal that ends one.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::FrameReader;
use crate::config::{HELLO_BYTES_MAX, HELLO_TIMEOUT};
use crate::conn::Conn;
use crate::error::{Error, Refusal, Result, WireError};
use crate::name::Nickname;
use crate::wire::{self, Decoder, Frame, Message, Subject, MODE_PLAIN, VERSION};

/// The client's half: says HELLO and PEER, and gives the server's PEER and our nickname.
///
/// # Errors
/// [`Error::Refused`], [`Error::Wire`] for a stranger, [`Error::Timeout`] for silence.
pub(crate) fn greet_as_client(conn: &Arc<Conn>, me: &wire::Peer) -> Result<(wire::Peer, Nickname, FrameReader)> {
    let mut hello = Vec::new();
    Message::Hello { version_low: VERSION, version_high: VERSION, mode: MODE_PLAIN }.encode(&mut hello);
    Message::Peer(me.clone()).encode(&mut hello);
    write_all(conn, &hello)?;
    let mut wait = Wait::new(conn, Decoder::for_client(), usize::MAX);
    match wait.message()? {
        Message::Welcome { version: VERSION, mode: MODE_PLAIN } => {}
        Message::Refused { subject: Subject::Connection, refusal } => return Err(Error::Refused(refusal)),
        _ => return Err(Error::violation("2.2", "WELCOME to something that was not offered")),
    }
    let Message::Peer(peer) = wait.message()? else {
        return Err(Error::violation("2.1", "no PEER after WELCOME"));
    };
    let Message::Named(nickname) = wait.message()? else {
        return Err(Error::violation("2.1", "no NAMED after PEER"));
    };
    wait.reader.hello_complete();
    Ok((peer, nickname, wait.reader))
}

/// The server's first half: reads HELLO and PEER. [`welcome`] or [`refuse`] is the second.
///
/// # Errors
/// As [`greet_as_client`]; the caller refuses with [`refusal_for`].
pub(crate) fn greet_as_server(conn: &Arc<Conn>) -> Result<(wire::Peer, FrameReader)> {
    let mut wait = Wait::new(conn, Decoder::for_server(), HELLO_BYTES_MAX);
    let Message::Hello { version_low, version_high, mode } = wait.message()? else {
        return Err(Error::violation("2.1", "no HELLO"));
    };
    if !(version_low..=version_high).contains(&VERSION) {
        return Err(Error::Refused(Refusal::Version(VERSION)));
    }
    if mode != MODE_PLAIN {
        return Err(Error::Refused(Refusal::Mode(u64::from(MODE_PLAIN))));
    }
    let Message::Peer(peer) = wait.message()? else {
        return Err(Error::violation("2.1", "no PEER after HELLO"));
    };
    wait.reader.hello_complete();
    Ok((peer, wait.reader))
}

/// The server's second half.
///
/// # Errors
/// [`Error::Broken`].
pub(crate) fn welcome(conn: &Conn, me: &wire::Peer, nickname: &Nickname) -> Result<()> {
    let mut bytes = Vec::new();
    Message::Welcome { version: VERSION, mode: MODE_PLAIN }.encode(&mut bytes);
    Message::Peer(me.clone()).encode(&mut bytes);
    Message::Named(nickname.clone()).encode(&mut bytes);
    write_all(conn, &bytes)
}

/// PROTOCOL 2.9: tells a stranger why it is turned away, and ends.
pub(crate) fn refuse(conn: &Conn, error: &Error) {
    let refusal = match error {
        Error::Refused(refusal) => *refusal,
        Error::Timeout { .. } => Refusal::HelloTimeout(u64::try_from(HELLO_TIMEOUT.as_millis()).unwrap_or(u64::MAX)),
        // The client tries again where nobody says that it broke a rule.
        Error::Wire(error) if error.is_damage() => return conn.end(),
        Error::Wire(WireError::NotPostwire { .. }) => Refusal::NotPostwire,
        Error::Wire(_) | Error::Violation(_) => Refusal::Protocol,
        _ => return conn.end(),
    };
    let mut bytes = Vec::new();
    Message::Refused { subject: Subject::Connection, refusal }.encode(&mut bytes);
    if conn.write_now(&bytes).is_ok() {
        conn.linger_after_refusal();
    }
    conn.end();
}

/// Reads the few messages of a hello within its deadline.
struct Wait<'a> {
    conn: &'a Conn,
    reader: FrameReader,
    deadline: Instant,
    bytes_max: usize,
}

impl<'a> Wait<'a> {
    fn new(conn: &'a Arc<Conn>, decoder: Decoder, bytes_max: usize) -> Wait<'a> {
        let deadline = Instant::now() + HELLO_TIMEOUT;
        Wait { conn, reader: FrameReader::new(Arc::clone(conn), decoder), deadline, bytes_max }
    }

    fn message(&mut self) -> Result<Message> {
        loop {
            match self.reader.buffered_frame()? {
                Some(Frame::Message(message)) => return Ok(message),
                Some(_) => continue,
                None => {}
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(timeout());
            }
            if self.reader.bytes() > u64::try_from(self.bytes_max).unwrap_or(u64::MAX) {
                return Err(Error::violation("2.1", "too many bytes before the hello was complete"));
            }
            self.conn.set_read_timeout(left).map_err(Error::system("set a timeout"))?;
            match self.reader.read() {
                Ok(0) if self.reader.bytes() == 0 => {
                    return Err(WireError::NotPostwire { start: Vec::new() }.into());
                }
                Ok(0) => return Err(self.reader.end_of_stream()),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Err(timeout());
                }
                Err(source) => return Err(Error::Broken { source: Some(source) }),
            }
        }
    }
}

fn timeout() -> Error {
    Error::Timeout { waiting_for: "the other side's hello", after: HELLO_TIMEOUT }
}

/// The few bytes of a hello; a fresh connection takes them at once.
fn write_all(conn: &Conn, mut bytes: &[u8]) -> Result<()> {
    let started = Instant::now();
    while !bytes.is_empty() {
        match conn.write(bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(source) => return Err(Error::Broken { source: Some(source) }),
        }
        if started.elapsed() > HELLO_TIMEOUT + Duration::from_secs(1) {
            return Err(timeout());
        }
    }
    Ok(())
}
