//! Sealed records on a connection (PROTOCOL 10): what is written is encrypted and cannot be changed, left out or said again.
//!
//! The send counter belongs to whoever has the send turn, the receive counter to the reader.

use std::io;
use std::sync::Mutex;

use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver, FallbackResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState, StatelessTransportState};

use super::cipher::ChaChaPoly;
use crate::key::{fill_random, Key};
use crate::worker::Lock;

/// The one suite (PROTOCOL 10.1).
const SUITE: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// What a record's ciphertext is longer than what is in it.
const TAG_BYTES: usize = 16;
/// The length before a record.
const LENGTH_BYTES: usize = 2;
/// As much as one record takes, below what its length can say.
const PLAIN_BYTES_MAX: usize = 16 * 1024;
const CIPHER_BYTES_MAX: usize = PLAIN_BYTES_MAX + TAG_BYTES;
/// Either message of the handshake: an ephemeral key and a tag.
pub(crate) const HANDSHAKE_BYTES: usize = 32 + TAG_BYTES;
/// Records in one direction (PROTOCOL 10.5).
const RECORDS_MAX: u64 = 1 << 32;
/// From so many on GOODBYE is due, which leaves room for what is owed. In tests as many as come within a second.
const RECORDS_WORN: u64 = if cfg!(test) { 100 } else { RECORDS_MAX - (1 << 20) };

/// A handshake under way.
pub(crate) struct Handshake(HandshakeState);

impl Handshake {
    /// `prologue` is HELLO and WELCOME, byte for byte, so that whoever changes them is found out.
    pub(crate) fn new(key: &Key, prologue: &[u8], is_client: bool) -> io::Result<Handshake> {
        let resolver = FallbackResolver::new(Box::new(Chosen), Box::new(DefaultResolver));
        let builder = Builder::with_resolver(SUITE.parse().map_err(failed)?, Box::new(resolver));
        let builder = builder.psk(0, key.as_bytes()).map_err(failed)?.prologue(prologue).map_err(failed)?;
        let state = if is_client { builder.build_initiator() } else { builder.build_responder() };
        state.map(Handshake).map_err(failed)
    }

    /// Our message.
    pub(crate) fn say(&mut self) -> io::Result<[u8; HANDSHAKE_BYTES]> {
        let mut message = [0; HANDSHAKE_BYTES];
        self.0.write_message(&[], &mut message).map_err(failed)?;
        Ok(message)
    }

    /// Theirs.
    ///
    /// # Errors
    /// It was made with another key, or changed on its way.
    pub(crate) fn hear(&mut self, message: &[u8; HANDSHAKE_BYTES]) -> io::Result<()> {
        self.0.read_message(message, &mut [0; HANDSHAKE_BYTES]).map(drop).map_err(failed)
    }

    /// Both messages were said and heard.
    pub(crate) fn finish(self) -> io::Result<Seal> {
        let noise = self.0.into_stateless_transport_mode().map_err(failed)?;
        Ok(Seal { noise, send: Mutex::default(), receive: Mutex::default() })
    }
}

/// What is not taken from the library's own: random numbers by the system call alone, as those that snow asks for want
/// /dev/urandom in a static binary, and machines with nothing on them have none; and the cipher, for its speed.
struct Chosen;

impl CryptoResolver for Chosen {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(SystemRandom))
    }

    fn resolve_dh(&self, _: &DHChoice) -> Option<Box<dyn Dh>> {
        None
    }

    fn resolve_hash(&self, _: &HashChoice) -> Option<Box<dyn Hash>> {
        None
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        match choice {
            CipherChoice::ChaChaPoly => Some(Box::new(ChaChaPoly::new()?)),
            _ => None,
        }
    }
}

struct SystemRandom;

impl Random for SystemRandom {
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), snow::Error> {
        fill_random(bytes).map_err(|_| snow::Error::Rng)
    }
}

/// Both directions of a sealed connection.
pub(crate) struct Seal {
    noise: StatelessTransportState,
    send: Mutex<Send>,
    receive: Mutex<Receive>,
}

#[derive(Default)]
struct Send {
    records: u64,
    /// Records that the system did not take whole, how much of them it took, and how many bytes are in them. They are said to be
    /// written when they are, so whoever writes comes back with the same bytes.
    rest: Vec<u8>,
    sent: usize,
    holds: usize,
}

#[derive(Default)]
struct Receive {
    records: u64,
    /// Ciphertext that came stands from `start` to `end`; the rest is room.
    cipher: Vec<u8>,
    start: usize,
    end: usize,
    /// What the last record held and was not taken yet, from `taken` on.
    plain: Vec<u8>,
    taken: usize,
}

impl Seal {
    /// Begins anew with this record, for a fuzz target that makes keys once.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn restart(&self, records: u32) {
        *self.send.take() = Send { records: records.into(), ..Send::default() };
        *self.receive.take() = Receive { records: records.into(), ..Receive::default() };
    }

    /// Writes `bytes` by `send`, which may take less than it is given, and nothing once it would wait.
    pub(crate) fn write(&self, bytes: &[u8], send: impl Fn(&[u8]) -> io::Result<usize>) -> io::Result<usize> {
        let state = &mut *self.send.take();
        let mut written = 0;
        loop {
            while let Some(rest) = state.rest.get(state.sent..).filter(|rest| !rest.is_empty()) {
                match send(rest)? {
                    0 => return Ok(written),
                    count => state.sent += count,
                }
            }
            state.rest.clear();
            state.sent = 0;
            written += std::mem::take(&mut state.holds);
            let left = bytes.get(written..).unwrap_or_default();
            if left.is_empty() {
                return Ok(written);
            }
            self.seal(left, state)?;
        }
    }

    /// Whether the connection must soon give way to one with new keys.
    pub(crate) fn is_worn(&self) -> bool {
        self.send.take().records >= RECORDS_WORN
    }

    /// As many records as make one write worth its call.
    fn seal(&self, bytes: &[u8], state: &mut Send) -> io::Result<()> {
        const RECORDS_A_WRITE: usize = 16;
        for plain in bytes.chunks(PLAIN_BYTES_MAX).take(RECORDS_A_WRITE) {
            if state.records >= RECORDS_MAX {
                return Err(io::Error::other("as many sealed records as one connection takes"));
            }
            let start = state.rest.len();
            let length = plain.len() + TAG_BYTES;
            state.rest.extend_from_slice(&u16::try_from(length).map_err(failed)?.to_be_bytes());
            state.rest.resize(start + LENGTH_BYTES + length, 0);
            let space = state.rest.get_mut(start + LENGTH_BYTES..).unwrap_or_default();
            if self.noise.write_message(state.records, plain, space).map_err(failed)? != length {
                return Err(io::Error::other("a record that could not be sealed"));
            }
            state.records += 1;
            state.holds += plain.len();
        }
        Ok(())
    }

    /// Fills `buffer` with what records hold; `receive` reads ciphertext. `Ok(0)` is the end of the stream.
    ///
    /// # Errors
    /// `InvalidData` for a record that does not open, besides what reading says.
    pub(crate) fn read(
        &self,
        buffer: &mut [u8],
        receive: impl Fn(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let state = &mut *self.receive.take();
        loop {
            let mut count = state.take(buffer);
            while let Some(space) = buffer.get_mut(count..).filter(|space| !space.is_empty()) {
                match self.open_next(state, space) {
                    Ok(Some(opened)) => count += opened,
                    Ok(None) => break,
                    // What came before it is given first.
                    Err(_) if count > 0 => break,
                    Err(error) => return Err(error),
                }
            }
            if count > 0 {
                return Ok(count);
            }
            state.cipher.copy_within(state.start..state.end, 0);
            (state.start, state.end) = (0, state.end - state.start);
            // Once, as zeros cost more than a small record.
            state.cipher.resize(LENGTH_BYTES + 4 * CIPHER_BYTES_MAX, 0);
            match receive(state.cipher.get_mut(state.end..).unwrap_or_default())? {
                0 if state.end > 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                0 => return Ok(0),
                count => state.end += count,
            }
        }
    }

    /// Opens the next record, if all of it has come, into `space`, and what that has no room for is kept; gives how much of
    /// `space` is filled.
    fn open_next(&self, state: &mut Receive, space: &mut [u8]) -> io::Result<Option<usize>> {
        let waiting = state.cipher.get(state.start..state.end).unwrap_or_default();
        let Some((length, rest)) = waiting.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes(*length));
        if !(TAG_BYTES + 1..=CIPHER_BYTES_MAX).contains(&length) || state.records >= RECORDS_MAX {
            return Err(unopened());
        }
        let Some(record) = rest.get(..length) else { return Ok(None) };
        let holds = length - TAG_BYTES;
        let open = |plain: &mut [u8]| self.noise.read_message(state.records, record, plain).map_err(|_| unopened());
        let filled = if let Some(place) = space.get_mut(..holds) {
            open(place)?;
            holds
        } else {
            // Nothing of a record that does not open stays there.
            let mut plain = std::mem::take(&mut state.plain);
            plain.resize(holds, 0);
            open(&mut plain)?;
            (state.plain, state.taken) = (plain, 0);
            state.take(space)
        };
        state.start += LENGTH_BYTES + length;
        state.records += 1;
        Ok(Some(filled))
    }
}

impl Receive {
    /// Moves what is left of the last record into `space`; gives how much.
    fn take(&mut self, space: &mut [u8]) -> usize {
        let left = self.plain.get(self.taken..).unwrap_or_default();
        let count = left.len().min(space.len());
        if let (Some(to), Some(from)) = (space.get_mut(..count), left.get(..count)) {
            to.copy_from_slice(from);
        }
        self.taken += count;
        count
    }
}

fn failed<E: std::fmt::Display>(error: E) -> io::Error {
    io::Error::other(error.to_string())
}

fn unopened() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a sealed record does not open: damaged, or not from who has the key")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn pair() -> (Seal, Seal) {
        let key = Key::generate().unwrap();
        let mut client = Handshake::new(&key, b"hello", true).unwrap();
        let mut server = Handshake::new(&key, b"hello", false).unwrap();
        server.hear(&client.say().unwrap()).unwrap();
        client.hear(&server.say().unwrap()).unwrap();
        (client.finish().unwrap(), server.finish().unwrap())
    }

    /// Sends all of `bytes`, at most `step` at a time, with a pause after each; gives what went over the line.
    fn send(seal: &Seal, mut bytes: &[u8], step: usize) -> Vec<u8> {
        let line = RefCell::new(Vec::new());
        while !bytes.is_empty() {
            let may = RefCell::new(step);
            let count = seal.write(bytes, |part| {
                let count = part.len().min(may.replace(0));
                line.borrow_mut().extend_from_slice(&part[..count]);
                Ok(count)
            });
            bytes = &bytes[count.unwrap()..];
        }
        line.into_inner()
    }

    fn receive(seal: &Seal, line: &[u8], step: usize) -> io::Result<Vec<u8>> {
        let (left, mut all) = (RefCell::new(line), Vec::new());
        let mut buffer = [0; 1000];
        loop {
            let count = seal.read(&mut buffer, |space| {
                let count = left.borrow().len().min(space.len()).min(step);
                let (now, later) = left.borrow().split_at(count);
                space[..count].copy_from_slice(now);
                left.replace(later);
                Ok(count)
            })?;
            if count == 0 {
                return Ok(all);
            }
            all.extend_from_slice(&buffer[..count]);
        }
    }

    #[test]
    fn what_is_sealed_comes_out_however_it_is_cut() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
        for step in [1, 7, 1000, 65_536, usize::MAX] {
            let (client, server) = pair();
            let bytes = if step == 1 { &bytes[..20_000] } else { &bytes };
            let line = send(&client, bytes, step);
            assert!(!line.windows(20).any(|window| bytes.windows(20).take(50).any(|plain| plain == window)));
            assert_eq!(receive(&server, &line, step).unwrap(), bytes);
            assert_eq!(receive(&client, &send(&server, b"back", step), step).unwrap(), b"back");
        }
    }

    #[test]
    fn nothing_that_was_changed_left_out_or_said_again_opens() {
        let (client, server) = pair();
        let (first, second) = (send(&client, b"first", 99), send(&client, b"second", 99));
        for bit in 0..first.len() * 8 {
            let (client, server) = pair();
            let mut line = send(&client, b"first", 99);
            line[bit / 8] ^= 1 << (bit % 8);
            assert!(receive(&server, &line, 99).is_err(), "bit {bit}");
        }
        assert!(receive(&server, &second, 99).is_err(), "the first is missing");
        let (client, server) = pair();
        let line = send(&client, b"first", 99);
        assert!(receive(&server, &[&line[..], &line].concat(), 99).is_err(), "said again");
        assert!(receive(&pair().1, &first, 99).is_err(), "of another connection");
    }

    #[test]
    fn another_key_or_another_hello_ends_the_handshake() {
        let key = Key::generate().unwrap();
        let message = Handshake::new(&key, b"hello", true).unwrap().say().unwrap();
        assert!(Handshake::new(&Key::generate().unwrap(), b"hello", false).unwrap().hear(&message).is_err());
        assert!(Handshake::new(&key, b"hallo", false).unwrap().hear(&message).is_err());
        assert!(Handshake::new(&key, b"hello", false).unwrap().hear(&message).is_ok());
    }
}
