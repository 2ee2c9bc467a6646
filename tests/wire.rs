//! The wire: golden vectors both ways, streams cut anywhere, flipped bits, limits.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::collections::BTreeSet;
use std::fs;

use postwire::wire::{
    CancelReason, Chunk, Decoder, Delivered, Entry, Frame, Message, Offer, Peer, Presence, Receipt, Relay, Relayed,
    RunId, Subject, Text, Time,
};
use postwire::{Goodbye, Nickname, Refusal, WireError};

const RUN: RunId = RunId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);

fn nick(name: &str) -> Nickname {
    Nickname::parse(name.as_bytes()).unwrap()
}

/// Every vector's name and message.
fn expectations() -> Vec<(&'static str, Message)> {
    let peer = |in_room, serves, nickname| Peer {
        run: RUN,
        in_room,
        takes_files: serves,
        relays: serves,
        text_bytes: 65_536,
        text_window_bytes: 262_144,
        chunk_bytes: 262_144,
        offers: 4096,
        nickname,
    };
    let hello_crc = crc32fast::hash(b"hello");
    let text = |sequence, from, to, text: &str| {
        let (leave, to_room) = (false, false);
        Message::Text(Text { run: RUN, sequence, from, to, leave, to_room, text: text.into() })
    };
    let relay = |patience_seconds, to: Option<Vec<Nickname>>| {
        let leave = to.is_some();
        Message::Relay(Relay { relay: 1, patience_seconds, leave, to })
    };
    let relayed = |outcome| Message::Relayed(Relayed { item: 7, nickname: nick("b7"), outcome, last: true });
    let refused = |subject, refusal| Message::Refused { subject, refusal };
    vec![
        ("hello", Message::Hello { version_low: 1, version_high: 1, mode: 0 }),
        ("welcome", Message::Welcome { version: 1, mode: 0 }),
        ("peer", Message::Peer(peer(true, false, Some(nick("b7"))))),
        ("peer-server", Message::Peer(peer(false, true, None))),
        ("refused-connection", refused(Subject::Connection, Refusal::Busy(1024))),
        ("refused-text", refused(Subject::Text(3), Refusal::Nobody)),
        ("refused-transfer", refused(Subject::Transfer(9), Refusal::NoDirectory)),
        ("goodbye", Message::Goodbye(Goodbye::Stopping)),
        ("named", Message::Named(nick("b7-2"))),
        ("ping", Message::Ping(0x0123_4567_89ab_cdef)),
        ("pong", Message::Pong(0x0123_4567_89ab_cdef)),
        ("text", text(1, None, None, "Grüße")),
        ("text-carried", text(2, Some(nick("ann")), Some(nick("bob")), "hello")),
        ("text-ack", Message::TextAck { count: 5 }),
        (
            "offer",
            Message::Offer(Offer {
                transfer: 1,
                kind: 0,
                size: 5,
                mtime: Time { seconds: -1, nanoseconds: 999_999_999 },
                mode: 0o644,
                content_crc: hello_crc,
                request: 0,
                relay: 0,
                item: 7,
                path: b"log/a.txt".to_vec(),
            }),
        ),
        ("get", Message::Get { request: 3, from: None, path: b"crash/core".to_vec() }),
        ("get-from", Message::Get { request: 3, from: Some(nick("b7")), path: b"crash/core".to_vec() }),
        ("list", Message::List { request: 4, from: None, after: b"crash".to_vec() }),
        ("relay", relay(0, Some(vec![nick("b7"), nick("b8")]))),
        ("relay-everybody", relay(u32::MAX, None)),
        ("relayed", relayed(Ok(Delivered { durable: true, already: true, stored: b"fw-1.bin".to_vec() }))),
        ("relayed-refused", relayed(Err(Refusal::TooBig(5)))),
        (
            "entry",
            Message::Entry(Entry {
                request: 4,
                kind: 0,
                size: 5,
                mtime: Time { seconds: 1_750_000_000, nanoseconds: 0 },
                path: b"crash/core".to_vec(),
            }),
        ),
        ("ended", Message::Ended { request: 4, more: true, left_out: 1, failed: 2 }),
        ("refused-request", refused(Subject::Request(3), Refusal::NotFound)),
        ("send", Message::Send { transfer: 1, have: 524_288, credit: 16_777_216 }),
        ("chunk", Message::Chunk(Chunk { transfer: 1, offset: 524_288, crc: hello_crc, data: b"hello".to_vec() })),
        ("ack", Message::Ack { transfer: 1, received: 5, credit: 16_777_221 }),
        ("repair", Message::Repair { transfer: 1, offset: 262_144, length: 262_144 }),
        ("sums", Message::Sums { transfer: 1, first_block: 0, crcs: vec![0x1111_1111, 0x2222_2222] }),
        ("finish", Message::Finish { transfer: 1, size: 5, crc: hello_crc, grew: true }),
        (
            "receipt",
            Message::Receipt(Receipt {
                transfer: 1,
                durable: true,
                already: true,
                size: 5,
                resumed: 5,
                crc: hello_crc,
                stored: b"log/a-1.txt".to_vec(),
            }),
        ),
        ("cancel", Message::Cancel { transfer: 1, reason: CancelReason::Changed }),
        ("presence-joined", Message::Presence(Presence::Joined(nick("ann")))),
        ("presence-left", Message::Presence(Presence::Left(nick("ann")))),
        ("presence-renamed", Message::Presence(Presence::Renamed { from: nick("ann"), to: nick("bob") })),
    ]
}

fn vector(name: &str) -> Vec<u8> {
    let text = fs::read_to_string(format!("tests/vectors/{name}.hex")).unwrap();
    let digits: String = text.lines().filter(|line| !line.starts_with('#')).collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

fn encode(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    bytes
}

/// A decoder that has seen a whole hello.
fn greeted() -> Decoder {
    let mut decoder = Decoder::for_server();
    let hello = encode(&Message::Hello { version_low: 1, version_high: 1, mode: 0 });
    assert!(matches!(decoder.decode(&hello), Ok((_, Some(Frame::Message(_))))));
    decoder.hello_complete();
    decoder
}

/// All frames of a stream that comes in these pieces, and the error that ended it.
fn decode_pieces<'a>(
    mut decoder: Decoder,
    pieces: impl Iterator<Item = &'a [u8]>,
    straight_into_tails: bool,
) -> (Vec<Frame>, Option<WireError>) {
    let mut frames = Vec::new();
    for mut piece in pieces {
        while !piece.is_empty() {
            let space = decoder.tail_space();
            let result = if straight_into_tails && !space.is_empty() {
                let count = space.len().min(piece.len());
                space[..count].copy_from_slice(&piece[..count]);
                decoder.tail_filled(count).map(|frame| (count, frame))
            } else {
                decoder.decode(piece)
            };
            match result {
                Ok((taken, frame)) => {
                    piece = &piece[taken..];
                    frames.extend(frame);
                }
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

/// xorshift64: a test's random numbers, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

#[test]
fn every_vector_is_its_message_both_ways() {
    let expectations = expectations();
    let mut types = BTreeSet::new();
    for (name, message) in &expectations {
        let bytes = vector(name);
        types.insert(bytes[0]);
        assert_eq!(encode(message), bytes, "{name}");
        let decoder = match message {
            Message::Hello { .. } => Decoder::for_server(),
            Message::Welcome { .. } => Decoder::for_client(),
            _ => greeted(),
        };
        let decoded = decode_pieces(decoder, std::iter::once(bytes.as_slice()), false);
        assert_eq!(decoded, (vec![Frame::Message(message.clone())], None), "{name}");
    }
    let known: BTreeSet<u8> =
        (0x81..=0x88).chain([0x90, 0x91]).chain(0xa0..=0xae).chain(std::iter::once(0xc0)).collect();
    assert_eq!(types, known, "a message type has no vector");
    assert_eq!(fs::read_dir("tests/vectors").unwrap().count(), expectations.len(), "a vector has no expectation");
}

#[test]
fn a_stream_means_the_same_however_it_is_cut() {
    let messages: Vec<Vec<u8>> = expectations().iter().map(|(_, message)| encode(message)).collect();
    for seed in 1..=10_000 {
        let mut random = Random(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15));
        let mut stream = Vec::new();
        for _ in 0..random.below(12) + 1 {
            if random.below(4) == 0 {
                let data = vec![7; random.below(3000)];
                let crc = crc32fast::hash(&data);
                stream.extend(encode(&Message::Chunk(Chunk { transfer: 1, offset: 0, crc, data })));
            } else {
                stream.extend_from_slice(&messages[random.below(messages.len())]);
            }
        }
        for _ in 0..random.below(3) {
            let at = random.below(stream.len());
            stream[at] ^= 1 << random.below(8);
        }
        stream.truncate(stream.len() - random.below(2) * random.below(stream.len().min(40)));
        let whole = decode_pieces(greeted(), std::iter::once(stream.as_slice()), false);
        let mut cuts: Vec<usize> = (0..random.below(30)).map(|_| random.below(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let pieces = || cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]);
        assert_eq!(decode_pieces(greeted(), pieces(), false), whole, "seed {seed}");
        assert_eq!(decode_pieces(greeted(), pieces(), true), whole, "seed {seed}, straight into tails");
        let bytes = decode_pieces(greeted(), stream.chunks(1), seed % 2 == 0);
        assert_eq!(bytes, whole, "seed {seed}, byte by byte");
    }
}

#[test]
fn one_flipped_bit_never_gives_another_message() {
    for (name, message) in expectations() {
        let right = encode(&message);
        for bit in 0..right.len() * 8 {
            let mut wrong = right.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            let (frames, error) = decode_pieces(greeted(), std::iter::once(wrong.as_slice()), false);
            match frames.as_slice() {
                // A longer length waits for more; the CRC would judge it then.
                [] => {}
                [Frame::DamagedChunk { transfer: 1, offset: 524_288, length: 5 }] => assert_eq!(name, "chunk"),
                _ => panic!("{name}, bit {bit}: {frames:?}, {error:?}"),
            }
        }
    }
}

/// Where the head ends: the one place whose last four bytes are the CRC of all before them.
fn head_bytes(frame: &[u8]) -> usize {
    let ends = |&end: &usize| frame[end - 4..end] == crc32fast::hash(&frame[..end - 4]).to_be_bytes();
    (17..=frame.len()).find(ends).unwrap()
}

#[test]
fn a_length_past_the_limit_is_refused_before_the_tail_is_awaited() {
    for (name, message) in expectations() {
        let frame = encode(&message);
        let head = head_bytes(&frame);
        for length in [0, u64::MAX, 1_100_000] {
            let mut start = frame[..head].to_vec();
            start[1..9].copy_from_slice(&length.to_be_bytes());
            let damaged = decode_pieces(greeted(), std::iter::once(start.as_slice()), false);
            assert!(matches!(damaged, (_, Some(WireError::HeadCrc { .. }))), "{name}: {damaged:?}");
            let crc = crc32fast::hash(&start[..head - 4]);
            start[head - 4..].copy_from_slice(&crc.to_be_bytes());
            let (frames, error) = decode_pieces(greeted(), std::iter::once(start.as_slice()), false);
            assert!(frames.is_empty());
            assert!(matches!(error, Some(WireError::Length { got, .. }) if got == length), "{name}: {error:?}");
        }
    }
}

#[test]
fn each_tail_may_be_as_long_as_the_protocol_says_and_no_longer() {
    // PROTOCOL 3, and 1.2 for a type that is skipped.
    let limit = |name: &str| match name {
        "peer" | "peer-server" | "named" => 32,
        "text" | "text-carried" => 64 + 65_536,
        "offer" | "receipt" | "entry" => 16_384,
        "get" | "get-from" | "list" | "relayed" | "relayed-refused" => 32 + 16_384,
        "relay" | "relay-everybody" => 8_192,
        "chunk" => 1_048_576,
        "sums" => 65_536,
        "presence-joined" | "presence-left" | "presence-renamed" => 66,
        _ => 0,
    };
    let mut heads: Vec<(&str, Vec<u8>, u64)> = expectations()
        .iter()
        .map(|(name, message)| {
            let frame = encode(message);
            (*name, frame[..head_bytes(&frame)].to_vec(), limit(name))
        })
        .collect();
    let mut skipped = vec![0xd0];
    skipped.resize(17, 0);
    heads.push(("to be skipped", skipped, 65_536));
    for (name, mut head, limit) in heads {
        let end = head.len();
        for (tail, may) in [(limit, true), (limit + 1, false)] {
            let length = u64::try_from(end - 9).unwrap() + tail;
            head[1..9].copy_from_slice(&length.to_be_bytes());
            let crc = crc32fast::hash(&head[..end - 4]);
            head[end - 4..].copy_from_slice(&crc.to_be_bytes());
            let (_, error) = decode_pieces(greeted(), std::iter::once(head.as_slice()), false);
            let too_long = matches!(error, Some(WireError::Length { got, .. }) if got == length);
            assert_eq!(too_long, !may, "{name} with a tail of {tail}: {error:?}");
        }
    }
}

#[test]
fn a_peer_lowers_limits_to_the_least_and_raises_none() {
    let said = |text_bytes, chunk_bytes, offers, text_window_bytes| {
        let message = expectations().into_iter().find(|(name, _)| *name == "peer").unwrap().1;
        let Message::Peer(peer) = message else { unreachable!() };
        let peer = Message::Peer(Peer { text_bytes, chunk_bytes, offers, text_window_bytes, ..peer });
        match decode_pieces(greeted(), std::iter::once(encode(&peer).as_slice()), false) {
            (mut frames, None) => match frames.pop() {
                Some(Frame::Message(Message::Peer(peer))) => {
                    Some((peer.text_bytes, peer.chunk_bytes, peer.offers, peer.text_window_bytes))
                }
                other => panic!("{other:?}"),
            },
            (_, Some(error)) => {
                assert!(!matches!(error, WireError::HeadCrc { .. }), "{error:?}");
                None
            }
        }
    };
    let (least, most) = ((1024, 16_384, 1, 0), (65_536, 1_048_576, 4096, 262_144));
    assert_eq!(said(1024, 16_384, 1, 0), Some(least));
    assert_eq!(said(65_536, 1_048_576, 4096, 262_144), Some(most));
    assert_eq!(said(65_537, 1_048_577, 4097, 262_145), Some(most));
    assert_eq!(said(u32::MAX, u32::MAX, u32::MAX, u32::MAX), Some(most));
    assert_eq!(said(1023, 16_384, 1, 0), None);
    assert_eq!(said(1024, 16_383, 1, 0), None);
    assert_eq!(said(1024, 16_384, 0, 0), None);
}

#[test]
fn unknown_types_are_refused_or_skipped_by_their_range() {
    let unknown = |frame_type: u8| {
        let mut frame = encode(&Message::Presence(Presence::Joined(nick("ann"))));
        frame[0] = frame_type;
        let head_crc = crc32fast::hash(&frame[..13]);
        frame[13..17].copy_from_slice(&head_crc.to_be_bytes());
        decode_pieces(greeted(), std::iter::once(frame.as_slice()), false)
    };
    assert_eq!(unknown(0xc1), (vec![Frame::Skipped], None));
    assert_eq!(unknown(0xff), (vec![Frame::Skipped], None));
    assert_eq!(unknown(0xbf).1, Some(WireError::UnknownType { got: 0xbf }));
    assert_eq!(unknown(b'G').1, Some(WireError::UnknownType { got: b'G' }));
}

#[test]
fn a_stranger_is_known_by_its_first_byte() {
    for words in [b"GET / HTTP/1.1\r\n".as_slice(), b"\x16\x03\x01\x02", b"SSH-2.0-x\r\n", b"\x81 but no magic follows"]
    {
        let (_, error) = decode_pieces(Decoder::for_server(), std::iter::once(words), false);
        let error = error.unwrap();
        assert!(matches!(error, WireError::NotPostwire { .. } | WireError::Length { .. }), "{error:?}");
    }
}

#[test]
fn a_first_frame_with_a_flipped_bit_is_damaged_and_no_stranger() {
    let hello = encode(&Message::Hello { version_low: 1, version_high: 1, mode: 0 });
    let welcome = encode(&Message::Welcome { version: 1, mode: 0 });
    let decoders: [fn() -> Decoder; 2] = [Decoder::for_server, Decoder::for_client];
    for (frame, decoder) in [hello, welcome].into_iter().zip(decoders) {
        for bit in 0..frame.len() * 8 {
            let mut wrong = frame.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            let (frames, error) = decode_pieces(decoder(), std::iter::once(wrong.as_slice()), false);
            let is_damage = matches!(error, Some(WireError::HeadCrc { .. } | WireError::UnknownType { .. }));
            assert!(frames.is_empty() && is_damage, "bit {bit}: {error:?}");
        }
    }
}

#[test]
fn only_the_hello_may_come_before_the_hello_is_complete() {
    for (name, message) in expectations() {
        let mut stream = encode(&Message::Hello { version_low: 1, version_high: 1, mode: 0 });
        stream.extend(encode(&message));
        let (frames, error) = decode_pieces(Decoder::for_server(), std::iter::once(stream.as_slice()), false);
        let early = ["hello", "welcome", "peer", "refused", "goodbye", "named"];
        let may = early.iter().any(|start| name.starts_with(start));
        assert_eq!(frames.len() == 2, may, "{name}: {error:?}");
    }
}
