//! The beginning of a connection, plain and sealed, and the records of a sealed one.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::wire::stream;
use super::Bytes;
use crate::config::{CHUNK_BYTES_MAX, OFFERS_MAX, TEXT_BYTES_MAX, TEXT_WINDOW_BYTES};
use crate::conn::Conn;
use crate::key::Key;
use crate::name::Nickname;
use crate::session::{greet_as_client, greet_as_server, refuse, welcome};
use crate::wire::{Decoder, Frame, Message, Peer, RunId, MODE_PLAIN, MODE_SEALED, VERSION};

/// What this side says of itself.
pub(super) fn peer(name: &str) -> Peer {
    Peer {
        run: RunId([7; 16]),
        in_room: true,
        takes_files: true,
        relays: true,
        text_bytes: u32::try_from(TEXT_BYTES_MAX).unwrap(),
        text_window_bytes: u32::try_from(TEXT_WINDOW_BYTES).unwrap(),
        chunk_bytes: u32::try_from(CHUNK_BYTES_MAX).unwrap(),
        offers: OFFERS_MAX,
        nickname: Some(Nickname::parse(name.as_bytes()).unwrap()),
    }
}

/// Whoever is greeted by any bytes gives an error, or has heard what PROTOCOL 2 says, and says nothing but that itself.
pub(super) fn hello(data: &[u8]) {
    let mut bytes = Bytes(data);
    let how = bytes.u8();
    let (is_client, is_sealed) = (how & 1 == 1, how & 2 == 2 && cfg!(feature = "encrypt"));
    let key = is_sealed.then(|| Key::parse(&"5a".repeat(32)).unwrap());
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut said = Vec::new();
    #[cfg(feature = "encrypt")]
    if let (true, Some(key)) = (how & 4 == 4, &key) {
        said = sealed::beginning(key, is_client, bytes.one_of(&[0, 0, 0, 1]), usize::from(bytes.u8()));
    }
    said.extend(stream(&mut bytes));
    said.truncate(16 * 1024);
    theirs.write_all(&said).unwrap();
    theirs.shutdown(Shutdown::Write).unwrap();
    let conn = Arc::new(Conn::of_pair(ours));
    let me = peer("b7");
    let greeted = if is_client {
        greet_as_client(&conn, &me, key.as_ref()).map(|(peer, nickname, _)| vec![peer.nickname, Some(nickname)])
    } else {
        greet_as_server(&conn, key.as_ref()).map(|(peer, _)| vec![peer.nickname])
    };
    match &greeted {
        Ok(names) => {
            assert!(!is_sealed, "nobody without the key gets in");
            assert_eq!(names, &first_names(is_client, &said));
            if !is_client {
                welcome(&conn, &me, me.nickname.as_ref().unwrap(), None).unwrap();
            }
        }
        Err(error) if !is_client => refuse(&conn, error),
        Err(_) => {}
    }
    drop(conn);
    let mut heard = Vec::new();
    // What was not read of what this side said is answered by a reset.
    let _ = theirs.read_to_end(&mut heard);
    assert_is_hello(is_client, is_sealed, greeted.is_ok(), &heard);
}

/// The nicknames that a plain hello brings: of PEER, and for a client of NAMED.
fn first_names(is_client: bool, mut said: &[u8]) -> Vec<Option<Nickname>> {
    let mut decoder = if is_client { Decoder::for_client() } else { Decoder::for_server() };
    let mut next = || loop {
        let (count, frame) = decoder.decode(said).unwrap();
        said = &said[count..];
        match frame {
            Some(Frame::Message(message)) => return message,
            Some(_) => {}
            None => assert!(count > 0, "a greeting that ends early"),
        }
    };
    match next() {
        Message::Hello { version_low, version_high, mode: MODE_PLAIN } if !is_client => {
            assert!((version_low..=version_high).contains(&VERSION));
        }
        Message::Welcome { version: VERSION, mode: MODE_PLAIN } if is_client => {}
        other => panic!("greeted by {other:?}"),
    }
    let mut names = Vec::new();
    match next() {
        Message::Peer(peer) => names.push(peer.nickname),
        other => panic!("no PEER but {other:?}"),
    }
    if is_client {
        match next() {
            Message::Named(nickname) => names.push(Some(nickname)),
            other => panic!("no NAMED but {other:?}"),
        }
    }
    names
}

/// What one side says in a hello, whatever it hears.
fn assert_is_hello(is_client: bool, is_sealed: bool, was_greeted: bool, mut heard: &[u8]) {
    let mut decoder = if is_client { Decoder::for_server() } else { Decoder::for_client() };
    let mut messages = Vec::new();
    while !heard.is_empty() {
        let (count, frame) = decoder.decode(heard).unwrap();
        heard = &heard[count..];
        let Some(Frame::Message(message)) = frame else { panic!("no message in a hello") };
        let begins = matches!(message, Message::Hello { .. } | Message::Welcome { .. });
        messages.push(message);
        if let (true, true, [0, length, rest @ ..]) = (is_sealed, begins, heard) {
            // A message of the handshake, or what is said instead of one: no frame.
            heard = &rest[usize::from(*length)..];
        }
    }
    let mode = if is_sealed { MODE_SEALED } else { MODE_PLAIN };
    let rest = match (is_client, messages.split_first()) {
        (true, Some((Message::Hello { version_low: VERSION, version_high: VERSION, mode: said }, rest))) => {
            assert_eq!(*said, mode);
            match rest.split_first() {
                Some((Message::Peer(_), rest)) if !is_sealed => rest,
                _ => rest,
            }
        }
        (false, Some((Message::Welcome { version: VERSION, mode: said }, rest))) => {
            assert_eq!(*said, mode);
            assert!(is_sealed || was_greeted);
            match rest {
                [Message::Peer(_), Message::Named(_)] if was_greeted => &[],
                rest => rest,
            }
        }
        (false, Some(_)) => &messages[..],
        (false, None) => &[],
        other => panic!("{other:?}"),
    };
    assert!(matches!(rest, [] | [Message::Refused { .. }]), "{messages:?}");
}

#[cfg(feature = "encrypt")]
pub(super) use sealed::record;

#[cfg(feature = "encrypt")]
mod sealed {
    use std::cell::{Cell, RefCell};

    use super::super::wire::encode;
    use super::*;
    use crate::conn::{Handshake, Seal, HANDSHAKE_BYTES};

    thread_local! {
        /// A client's side of a handshake, and a first message: a server takes it from anybody who says it again.
        static FIRST: [u8; HANDSHAKE_BYTES] = Handshake::new(&key(), &prologue(), true).unwrap().say().unwrap();
        /// Both sides of a sealed connection: a handshake takes as long as hundreds of records.
        static PAIR: RefCell<(Seal, Seal)> = RefCell::new(pair());
        /// The number of the next record. None comes twice: a fuzzer sees the tags that are compared, and learns them.
        static NUMBER: Cell<u32> = const { Cell::new(0) };
    }

    fn key() -> Key {
        Key::parse(&"5a".repeat(32)).unwrap()
    }

    fn hello() -> Vec<u8> {
        encode(&Message::Hello { version_low: VERSION, version_high: VERSION, mode: MODE_SEALED })
    }

    fn welcome() -> Vec<u8> {
        encode(&Message::Welcome { version: VERSION, mode: MODE_SEALED })
    }

    fn prologue() -> Vec<u8> {
        [hello(), welcome()].concat()
    }

    fn pair() -> (Seal, Seal) {
        let handshake = |is_client| Handshake::new(&key(), &prologue(), is_client).unwrap();
        let (mut client, mut server) = (handshake(true), handshake(false));
        server.hear(&client.say().unwrap()).unwrap();
        client.hear(&server.say().unwrap()).unwrap();
        (client.finish().unwrap(), server.finish().unwrap())
    }

    /// What the other side says first: its part of the hello, and a message of the handshake that is right but for `mask`
    /// in one of its bytes.
    pub(super) fn beginning(key: &Key, is_client: bool, mask: u8, at: usize) -> Vec<u8> {
        assert_eq!(*key, self::key());
        let mut message = FIRST.with(|first| *first);
        message[at % HANDSHAKE_BYTES] ^= mask;
        let begins = if is_client { welcome() } else { hello() };
        [&begins[..], &u16::try_from(HANDSHAKE_BYTES).unwrap().to_be_bytes(), &message].concat()
    }

    /// What was sealed comes out however it is cut; nothing that was changed, left out, moved or said again does.
    pub(in super::super) fn record(data: &[u8]) {
        let mut bytes = Bytes(data);
        let how = bytes.u8();
        let steps = [bytes.u16(), bytes.u16()].map(|step| 1 + usize::from(step));
        // Every piece costs a call, so much comes in large ones only.
        let most = if how & 2 == 2 { 40_000 } else { 400 };
        let plain_bytes = 1 + usize::from(bytes.u16()) % (16 * steps[0].min(steps[1])).min(most);
        PAIR.with_borrow_mut(|(client, server)| {
            let number = NUMBER.get();
            NUMBER.set(number.wrapping_add(64));
            client.restart(number);
            server.restart(number);
            let plain: Vec<u8> = data.iter().copied().cycle().take(plain_bytes).collect();
            let mut records = seal(client, &plain, steps[0], bytes.u8());
            let right = records.concat();
            while !bytes.is_empty() {
                change(&mut records, &mut bytes);
            }
            let line = if how & 1 == 1 { data[1..].to_vec() } else { records.concat() };
            let (out, end) = open(server, &line, steps[1]);
            assert!(plain.starts_with(&out), "something else came out");
            if line == right {
                assert!(end.is_ok() && out == plain);
            } else {
                assert!(end.is_err() || out.len() < plain.len(), "a changed line is taken for the whole");
                let same = right.iter().zip(&line).take_while(|(right, came)| right == came).count();
                assert!(out.len() <= same, "more came out than came in");
            }
        });
    }

    /// One of the changes that somebody on the way can make.
    fn change(records: &mut Vec<Vec<u8>>, bytes: &mut Bytes) {
        if records.is_empty() {
            bytes.take(1);
            return;
        }
        let (kind, at) = (bytes.u8(), usize::from(bytes.u8()) % records.len());
        match kind % 6 {
            0 => {
                let place = usize::from(bytes.u16()) % records[at].len();
                records[at][place] ^= bytes.u8();
            }
            1 => drop(records.remove(at)),
            2 => records.insert(at, records[at].clone()),
            3 => {
                let other = usize::from(bytes.u8()) % records.len();
                records.swap(at, other);
            }
            4 => records[at].truncate(1 + usize::from(bytes.u16())),
            _ => records.insert(at, bytes.string()),
        }
        records.retain(|record| !record.is_empty());
    }

    /// Seals all of `plain`, at most `step` bytes of ciphertext at a time; gives the writes, one record at least each.
    fn seal(seal: &Seal, mut plain: &[u8], step: usize, part: u8) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        let part = plain.len() / 16 + 1 + usize::from(part) * 128;
        while !plain.is_empty() {
            let end = plain.len().min(part);
            let (mut now, later) = plain.split_at(end);
            let line = RefCell::new(Vec::new());
            while !now.is_empty() {
                let may = RefCell::new(step);
                let count = seal.write(now, |part| {
                    let count = part.len().min(may.replace(0));
                    line.borrow_mut().extend_from_slice(&part[..count]);
                    Ok(count)
                });
                now = &now[count.unwrap()..];
            }
            records.push(line.into_inner());
            plain = later;
        }
        records
    }

    fn open(seal: &Seal, line: &[u8], step: usize) -> (Vec<u8>, std::io::Result<()>) {
        let (left, mut out, mut buffer) = (RefCell::new(line), Vec::new(), [0; 4096]);
        loop {
            let came = seal.read(&mut buffer, |space| {
                let count = left.borrow().len().min(space.len()).min(step);
                let (now, later) = left.borrow().split_at(count);
                space[..count].copy_from_slice(now);
                left.replace(later);
                Ok(count)
            });
            match came {
                Ok(0) => return (out, Ok(())),
                Ok(count) => out.extend_from_slice(&buffer[..count]),
                Err(error) => return (out, Err(error)),
            }
        }
    }
}
