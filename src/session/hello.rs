//! The hello, from both sides (PROTOCOL 2), and the refusal that ends one.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::FrameReader;
use crate::config::{HELLO_BYTES_MAX, HELLO_TIMEOUT};
use crate::conn::Conn;
use crate::error::{Error, Refusal, Result, WireError};
use crate::key::Key;
use crate::name::Nickname;
use crate::wire::{self, Decoder, Frame, Message, Subject, MODE_PLAIN, MODE_SEALED, VERSION};

/// The client's half: says HELLO and PEER, and gives the server's PEER and our nickname. With a key all but HELLO and WELCOME
/// is sealed.
///
/// # Errors
/// [`Error::Refused`], [`Error::Wire`] for a stranger, [`Error::Timeout`] for silence.
pub(crate) fn greet_as_client(
    conn: &Arc<Conn>,
    me: &wire::Peer,
    key: Option<&Key>,
) -> Result<(wire::Peer, Nickname, FrameReader)> {
    let mode = mode_of(key);
    let mut hello = Vec::new();
    Message::Hello { version_low: VERSION, version_high: VERSION, mode }.encode(&mut hello);
    let mut peer = Vec::new();
    Message::Peer(me.clone()).encode(&mut peer);
    let said = match key {
        // Nothing of what follows depends on the answer.
        None => write_all(conn, &[&hello[..], &peer].concat()),
        Some(_) => write_all(conn, &hello),
    };
    let mut wait = Wait::new(conn, Decoder::for_client(), usize::MAX);
    // A server that takes nobody in says so and ends, perhaps before it was told anything.
    let answer = wait.message();
    match answer.or_else(|error| said.and(Err(error)))? {
        Message::Welcome { version: VERSION, mode: answered } if answered == mode => {}
        Message::Refused { subject: Subject::Connection, refusal } => return Err(Error::Refused(refusal)),
        _ => return Err(Error::violation("2.2", "WELCOME to something that was not offered")),
    }
    #[cfg(feature = "encrypt")]
    if let Some(key) = key {
        sealing::as_client(&mut wait, key, &hello)?;
        write_all(conn, &peer)?;
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
pub(crate) fn greet_as_server(conn: &Arc<Conn>, key: Option<&Key>) -> Result<(wire::Peer, FrameReader)> {
    let mut wait = Wait::new(conn, Decoder::for_server(), HELLO_BYTES_MAX);
    let Message::Hello { version_low, version_high, mode } = wait.message()? else {
        return Err(Error::violation("2.1", "no HELLO"));
    };
    if !(version_low..=version_high).contains(&VERSION) {
        return Err(Error::Refused(Refusal::Version(VERSION)));
    }
    if mode != mode_of(key) {
        return Err(Error::Refused(Refusal::Mode(u64::from(mode_of(key)))));
    }
    #[cfg(feature = "encrypt")]
    if let Some(key) = key {
        let mut hello = Vec::new();
        Message::Hello { version_low, version_high, mode }.encode(&mut hello);
        sealing::as_server(&mut wait, key, &hello)?;
    }
    let Message::Peer(peer) = wait.message()? else {
        return Err(Error::violation("2.1", "no PEER after HELLO"));
    };
    wait.reader.hello_complete();
    Ok((peer, wait.reader))
}

/// The server's second half. Who has a key has said WELCOME before.
///
/// # Errors
/// [`Error::Broken`].
pub(crate) fn welcome(conn: &Conn, me: &wire::Peer, nickname: &Nickname, key: Option<&Key>) -> Result<()> {
    let mut bytes = Vec::new();
    if key.is_none() {
        Message::Welcome { version: VERSION, mode: MODE_PLAIN }.encode(&mut bytes);
    }
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
    if conn.write_now(&refused(refusal)).is_ok() {
        conn.linger_after_refusal();
    }
    conn.end();
}

/// The same to somebody whose hello nobody has read, and without a wait.
pub(crate) fn refuse_at_once(conn: &Conn, refusal: Refusal) {
    // The buffers of a fresh connection are empty; if it is gone already, nobody is to be told.
    let _ = conn.write_now(&refused(refusal));
    conn.shutdown_write();
    conn.read_away_what_came();
}

fn refused(refusal: Refusal) -> Vec<u8> {
    let mut bytes = Vec::new();
    match refusal {
        // Where the other side awaits our message of the handshake (PROTOCOL 10.4).
        Refusal::WrongKey => bytes.extend([0, 0]),
        _ => Message::Refused { subject: Subject::Connection, refusal }.encode(&mut bytes),
    }
    bytes
}

fn mode_of(key: Option<&Key>) -> u8 {
    if key.is_some() {
        MODE_SEALED
    } else {
        MODE_PLAIN
    }
}

/// The handshake of a sealed connection (PROTOCOL 10.3), between WELCOME and PEER.
#[cfg(feature = "encrypt")]
mod sealing {
    use super::*;
    use crate::conn::{Handshake, HANDSHAKE_BYTES};

    pub(super) fn as_client(wait: &mut Wait, key: &Key, hello: &[u8]) -> Result<()> {
        let mut handshake = begin(key, hello, true)?;
        say(wait, &mut handshake)?;
        if !hear(wait, &mut handshake)? {
            return Err(Error::Refused(Refusal::WrongKey));
        }
        finish(wait, handshake)
    }

    pub(super) fn as_server(wait: &mut Wait, key: &Key, hello: &[u8]) -> Result<()> {
        let mut handshake = begin(key, hello, false)?;
        write_all(wait.conn, &welcome_bytes())?;
        if !hear(wait, &mut handshake)? {
            return Err(Error::Refused(Refusal::WrongKey));
        }
        say(wait, &mut handshake)?;
        finish(wait, handshake)
    }

    fn welcome_bytes() -> Vec<u8> {
        let mut bytes = Vec::new();
        Message::Welcome { version: VERSION, mode: MODE_SEALED }.encode(&mut bytes);
        bytes
    }

    fn begin(key: &Key, hello: &[u8], is_client: bool) -> Result<Handshake> {
        Handshake::new(key, &[hello, &welcome_bytes()].concat(), is_client).map_err(Error::system("seal"))
    }

    fn say(wait: &mut Wait, handshake: &mut Handshake) -> Result<()> {
        let message = handshake.say().map_err(Error::system("seal"))?;
        let length = u16::try_from(HANDSHAKE_BYTES).unwrap_or(u16::MAX).to_be_bytes();
        write_all(wait.conn, &[&length[..], &message].concat())
    }

    /// `false` for a message that another key made, or for the word that ours did.
    fn hear(wait: &mut Wait, handshake: &mut Handshake) -> Result<bool> {
        let (mut length, mut message) = ([0; 2], [0; HANDSHAKE_BYTES]);
        wait.bytes(&mut length)?;
        match usize::from(u16::from_be_bytes(length)) {
            0 => return Ok(false),
            HANDSHAKE_BYTES => wait.bytes(&mut message)?,
            _ => return Err(Error::violation("10.3", "a handshake of another length")),
        }
        Ok(handshake.hear(&message).is_ok())
    }

    fn finish(wait: &mut Wait, handshake: Handshake) -> Result<()> {
        wait.conn.seal(handshake.finish().map_err(Error::system("seal"))?);
        Ok(())
    }
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

    /// Fills `buffer` with bytes that are no frame. A peer that said more than its turn is none of ours.
    #[cfg(feature = "encrypt")]
    fn bytes(&mut self, buffer: &mut [u8]) -> Result<()> {
        if !self.reader.is_empty() {
            return Err(Error::violation("10.3", "more than the handshake's turn"));
        }
        let mut filled = 0;
        while filled < buffer.len() {
            self.wait_at_most_until_the_deadline()?;
            match self.conn.read(buffer.get_mut(filled..).unwrap_or_default()) {
                Ok(0) => return Err(Error::Broken { source: None }),
                Ok(count) => filled += count,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(source) => return Err(Error::Broken { source: Some(source) }),
            }
        }
        Ok(())
    }

    fn wait_at_most_until_the_deadline(&self) -> Result<()> {
        if Instant::now() >= self.deadline {
            return Err(timeout());
        }
        self.conn.set_read_deadline(self.deadline).map_err(Error::system("set a timeout"))
    }

    fn message(&mut self) -> Result<Message> {
        loop {
            match self.reader.buffered_frame()? {
                Some(Frame::Message(message)) => return Ok(message),
                Some(_) => continue,
                None => {}
            }
            if self.reader.bytes() > u64::try_from(self.bytes_max).unwrap_or(u64::MAX) {
                return Err(Error::violation("2.1", "too many bytes before the hello was complete"));
            }
            self.wait_at_most_until_the_deadline()?;
            match self.reader.read() {
                Ok(0) if self.reader.bytes() == 0 => {
                    return Err(WireError::NotPostwire { start: Vec::new() }.into());
                }
                Ok(0) => return Err(self.reader.end_of_stream()),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
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
