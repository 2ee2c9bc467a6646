//! Frames: any bytes to the decoder, and every message there and back.

use super::{Bytes, Random};
use crate::config::{
    CHUNK_BYTES_LEAST, CHUNK_BYTES_MAX, NICKNAME_BYTES_MAX, OFFERS_MAX, SUMS_PER_FRAME, TEXT_BYTES_LEAST,
    TEXT_BYTES_MAX, TEXT_WINDOW_BYTES,
};
use crate::error::{Goodbye, Refusal, WireError};
use crate::name::Nickname;
use crate::wire::{
    CancelReason, Chunk, Decoder, Delivered, Entry, Frame, Message, Offer, Peer, Presence, Receipt, Relay, Relayed,
    RunId, Subject, Text, Time, VERSION,
};

/// No frame's tail is longer: TEXT's, CHUNK's and the skipped ones' are the longest (PROTOCOL 3).
const TAIL_BYTES_MAX: usize = CHUNK_BYTES_MAX;

/// Where a decoder stands.
#[derive(Clone, Copy)]
enum Side {
    Server,
    Client,
    Greeted,
}

/// A stream means the same however it is cut, is over after an error, and reserves nothing that is too long.
pub(super) fn decoder(data: &[u8]) {
    let mut bytes = Bytes(data);
    let side = bytes.one_of(&[Side::Greeted, Side::Server, Side::Client]);
    let chunk_bytes_max = bytes.one_of(&[CHUNK_BYTES_MAX, CHUNK_BYTES_LEAST]);
    let stream = stream(&mut bytes);
    let decode = |pieces: &mut dyn FnMut(usize) -> usize, straight| {
        decode(begin(side, chunk_bytes_max), &stream, pieces, straight)
    };
    let whole = decode(&mut |left| left, false);
    let mut random = Random::of(data);
    let (straight, most) = (random.below(2) == 0, 1 + random.below(40));
    assert_eq!(decode(&mut |left| 1 + random.below(left.min(most)), straight), whole);
    if stream.len() < 200 {
        assert_eq!(decode(&mut |_| 1, !straight), whole);
    }
}

fn begin(side: Side, chunk_bytes_max: usize) -> Decoder {
    let mut decoder = match side {
        Side::Client => Decoder::for_client(),
        Side::Server | Side::Greeted => Decoder::for_server(),
    };
    decoder.set_chunk_bytes_max(chunk_bytes_max);
    if matches!(side, Side::Greeted) {
        greet(&mut decoder);
    }
    decoder
}

/// A server's decoder has seen a hello.
pub(super) fn greet(decoder: &mut Decoder) {
    let hello = encode(&Message::Hello { version_low: VERSION, version_high: VERSION, mode: 0 });
    assert!(matches!(decoder.decode(&hello), Ok((count, Some(_))) if count == hello.len()));
    decoder.hello_complete();
}

/// All frames, and how the stream ended; `cut` tells how much of what is left comes next.
fn decode(
    mut decoder: Decoder,
    mut stream: &[u8],
    cut: &mut dyn FnMut(usize) -> usize,
    straight: bool,
) -> (Vec<Frame>, Result<bool, WireError>) {
    let mut frames = Vec::new();
    while !stream.is_empty() {
        let (mut piece, rest) = stream.split_at(cut(stream.len()));
        stream = rest;
        while !piece.is_empty() {
            let space = decoder.tail_space();
            assert!(space.len() <= TAIL_BYTES_MAX);
            let result = if straight && !space.is_empty() {
                let count = space.len().min(piece.len());
                space[..count].copy_from_slice(&piece[..count]);
                decoder.tail_filled(count).map(|frame| (count, frame))
            } else {
                decoder.decode(piece)
            };
            match result {
                Ok((count, frame)) => {
                    assert!(count > 0, "the decoder stands still");
                    piece = &piece[count..];
                    if let Some(Frame::Message(message)) = &frame {
                        assert_encodes(message);
                    }
                    frames.extend(frame);
                }
                Err(error) => {
                    assert_eq!(decoder.decode(piece), Err(error.clone()), "after an error it is done");
                    assert_eq!(decoder.decode(&[]), Err(error.clone()));
                    // How much of a stranger's first words is told depends on how they came.
                    let error = match error {
                        WireError::NotPostwire { start } if start.len() <= 32 => {
                            WireError::NotPostwire { start: Vec::new() }
                        }
                        other => other,
                    };
                    return (frames, Err(error));
                }
            }
        }
    }
    (frames, Ok(decoder.is_between_frames()))
}

/// What was decoded is encoded to what decodes to the same.
fn assert_encodes(message: &Message) {
    // Kinds that this version does not know are not said.
    if !matches!(message, Message::Presence(Presence::Unknown)) {
        assert_is_its_bytes(message);
    }
}

/// Every message is its bytes, and its bytes are the message.
pub(super) fn message(data: &[u8]) {
    let message = any_message(&mut Bytes(data));
    assert_is_its_bytes(&message);
    let bytes = encode(&message);
    // Before the hello is complete none of the others is taken.
    let hello_comes_first = decode(begin(Side::Server, CHUNK_BYTES_MAX), &bytes, &mut |left| left, false);
    assert_eq!(hello_comes_first.1.is_ok(), matches!(message, Message::Hello { .. }));
    // One changed bit is found, wherever it is.
    let mut random = Random::of(data);
    let mut changed = bytes;
    let at = random.below(changed.len());
    changed[at] ^= 1 << random.below(8);
    for frame in decode(begin(Side::Greeted, CHUNK_BYTES_MAX), &changed, &mut |left| left, false).0 {
        assert!(matches!(frame, Frame::DamagedChunk { .. }), "bit flipped in byte {at}: {frame:?}");
    }
}

fn assert_is_its_bytes(message: &Message) {
    let bytes = encode(message);
    let side = match message {
        Message::Hello { .. } => Side::Server,
        Message::Welcome { .. } => Side::Client,
        _ => Side::Greeted,
    };
    let (frames, end) = decode_once(begin(side, CHUNK_BYTES_MAX), &bytes);
    assert_eq!((frames, end), (Some(Frame::Message(message.clone())), bytes.len()));
}

fn decode_once(mut decoder: Decoder, bytes: &[u8]) -> (Option<Frame>, usize) {
    let (count, frame) = decoder.decode(bytes).unwrap();
    (frame, count)
}

pub(super) fn encode(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    bytes
}

/// Bytes of which some are frames: whole ones, some that break one rule, and anything.
pub(super) fn stream(bytes: &mut Bytes) -> Vec<u8> {
    let mut stream = Vec::new();
    while !bytes.is_empty() && stream.len() < 1 << 12 {
        let kind = bytes.u8();
        match kind % 8 {
            0 => stream.extend(bytes.string()),
            1 => stream.extend(encode(&Message::Hello { version_low: 0, version_high: VERSION, mode: kind >> 7 })),
            2 => stream.extend(encode(&Message::Welcome { version: VERSION, mode: kind >> 7 })),
            3 | 4 => stream.extend(encode(&any_message(bytes))),
            5 => {
                let (frame_type, fixed, tail) = (bytes.u8(), bytes.string(), bytes.string());
                stream.extend(frame(frame_type, &fixed, &tail, None));
            }
            6 => {
                let (frame_type, length) =
                    (bytes.u8(), bytes.one_of(&[0, 1, 7, 8, 1 << 16, 1 << 18, 1 << 19, 1 << 63]));
                let (length, fixed) = (length + u64::from(bytes.u8()), bytes.string());
                stream.extend(frame(frame_type, &fixed, &[], Some(length)));
            }
            _ => {
                // Of what there is so far, or of the next frame.
                let mut next = encode(&any_message(bytes));
                let at = usize::from(bytes.u16()) % next.len();
                next[at] ^= bytes.u8();
                stream.extend(next);
            }
        }
    }
    stream
}

/// A frame as PROTOCOL 1 has it, made without the code that is tested; `length` lies.
fn frame(frame_type: u8, fixed: &[u8], tail: &[u8], length: Option<u64>) -> Vec<u8> {
    let right = u64::try_from(fixed.len() + 8 + tail.len()).unwrap();
    let mut frame = vec![frame_type];
    frame.extend(length.unwrap_or(right).to_be_bytes());
    frame.extend_from_slice(fixed);
    frame.extend(crc32fast::hash(tail).to_be_bytes());
    frame.extend(crc32fast::hash(&frame).to_be_bytes());
    frame.extend_from_slice(tail);
    frame
}

fn nickname(bytes: &mut Bytes) -> Nickname {
    const FITTING: &[u8; 65] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    let length = 1 + bytes.below(u8::try_from(NICKNAME_BYTES_MAX).unwrap());
    let name: Vec<u8> = (0..length).map(|_| bytes.one_of(FITTING)).collect();
    Nickname::parse(&name).unwrap()
}

fn maybe_nickname(bytes: &mut Bytes) -> Option<Nickname> {
    (bytes.u8() & 1 == 1).then(|| nickname(bytes))
}

fn time(bytes: &mut Bytes) -> Time {
    let seconds = i64::from_be_bytes(bytes.array());
    Time { seconds, nanoseconds: bytes.u32() % 1_000_000_000 }
}

fn limit(bytes: &mut Bytes, least: usize, most: usize) -> u32 {
    let (least, most) = (u32::try_from(least).unwrap(), u32::try_from(most).unwrap());
    least + bytes.u32() % (most - least + 1)
}

/// Any message that can be said.
pub(super) fn any_message(bytes: &mut Bytes) -> Message {
    match bytes.below(27) {
        0 => {
            let version_high = bytes.u16();
            let version_low = bytes.u16().min(version_high);
            Message::Hello { version_low, version_high, mode: bytes.u8() }
        }
        1 => Message::Welcome { version: bytes.u16(), mode: bytes.u8() },
        2 => {
            let flags = bytes.u8();
            Message::Peer(Peer {
                run: RunId(bytes.array()),
                in_room: flags & 1 != 0,
                takes_files: flags & 2 != 0,
                relays: flags & 4 != 0,
                text_bytes: limit(bytes, TEXT_BYTES_LEAST, TEXT_BYTES_MAX),
                text_window_bytes: limit(bytes, 0, TEXT_WINDOW_BYTES),
                chunk_bytes: limit(bytes, CHUNK_BYTES_LEAST, CHUNK_BYTES_MAX),
                offers: limit(bytes, 1, usize::try_from(OFFERS_MAX).unwrap()),
                nickname: maybe_nickname(bytes),
            })
        }
        3 => {
            let subject = match bytes.below(4) {
                0 => Subject::Connection,
                1 => Subject::Text(bytes.u64()),
                2 => Subject::Transfer(bytes.u32()),
                _ => Subject::Request(bytes.u32()),
            };
            // A detail is kept by those that have one.
            let (code, detail) = Refusal::from_wire(bytes.u16() % 32, bytes.u64()).to_wire();
            Message::Refused { subject, refusal: Refusal::from_wire(code, detail) }
        }
        4 => Message::Goodbye(Goodbye::from_wire(bytes.u16() % 16)),
        5 => Message::Named(nickname(bytes)),
        6 => Message::Ping(bytes.u64()),
        7 => Message::Pong(bytes.u64()),
        8 => {
            let (run, sequence) = (RunId(bytes.array()), bytes.u64());
            let (from, to) = (maybe_nickname(bytes), maybe_nickname(bytes));
            let (leave, to_room) = (bytes.u8() & 1 == 1, bytes.u8() & 1 == 1);
            let text = String::from_utf8_lossy(&bytes.string()).into();
            Message::Text(Text { run, sequence, from, to, leave, to_room, text })
        }
        9 => Message::TextAck { count: bytes.u64() },
        10 | 11 => Message::Offer(Offer {
            transfer: bytes.u32(),
            kind: bytes.u8(),
            size: bytes.u64(),
            mtime: time(bytes),
            mode: bytes.u32(),
            content_crc: bytes.u32(),
            request: bytes.u32(),
            relay: bytes.u32(),
            item: bytes.u32(),
            path: bytes.string(),
        }),
        12 => Message::Send { transfer: bytes.u32(), have: bytes.u64(), credit: bytes.u64() },
        13 => {
            let (transfer, offset, data) = (bytes.u32(), bytes.u64(), bytes.string());
            Message::Chunk(Chunk { transfer, offset, crc: crc32fast::hash(&data), data })
        }
        14 => Message::Ack { transfer: bytes.u32(), received: bytes.u64(), credit: bytes.u64() },
        15 => Message::Repair { transfer: bytes.u32(), offset: bytes.u64(), length: bytes.u64() },
        16 => {
            let (transfer, first_block) = (bytes.u32(), bytes.u32());
            let count = if bytes.u8() == 0 { SUMS_PER_FRAME } else { 1 + bytes.below(8) };
            Message::Sums { transfer, first_block, crcs: vec![bytes.u32(); count] }
        }
        17 => Message::Finish { transfer: bytes.u32(), size: bytes.u64(), crc: bytes.u32(), grew: bytes.u8() & 1 == 1 },
        18 => {
            let flags = bytes.u8();
            Message::Receipt(Receipt {
                transfer: bytes.u32(),
                durable: flags & 1 != 0,
                already: flags & 2 != 0,
                size: bytes.u64(),
                resumed: bytes.u64(),
                crc: bytes.u32(),
                stored: bytes.string(),
            })
        }
        19 => {
            let transfer = bytes.u32();
            let reason = match bytes.u16() % 8 {
                1 => CancelReason::Unreadable,
                2 => CancelReason::Changed,
                3 => CancelReason::GivenUp,
                other => CancelReason::Other(other),
            };
            Message::Cancel { transfer, reason }
        }
        20 => Message::Get { request: bytes.u32(), from: maybe_nickname(bytes), path: bytes.string() },
        21 => Message::List { request: bytes.u32(), from: maybe_nickname(bytes), after: bytes.string() },
        22 => Message::Entry(Entry {
            request: bytes.u32(),
            kind: bytes.u8(),
            size: bytes.u64(),
            mtime: time(bytes),
            path: bytes.string(),
        }),
        23 => {
            let (request, more) = (bytes.u32(), bytes.u8() & 1 == 1);
            Message::Ended { request, more, left_out: bytes.u32(), failed: bytes.u32() }
        }
        24 => {
            let (relay, patience_seconds, leave) = (bytes.u32(), bytes.u32(), bytes.u8() & 1 == 1);
            let to = (bytes.u8() & 1 == 1).then(|| (0..=bytes.below(4)).map(|_| nickname(bytes)).collect());
            Message::Relay(Relay { relay, patience_seconds, leave, to })
        }
        25 => {
            let (item, nickname, flags) = (bytes.u32(), nickname(bytes), bytes.u8());
            let outcome = match bytes.u16() % 32 {
                0 => Ok(Delivered { durable: flags & 1 != 0, already: flags & 2 != 0, stored: bytes.string() }),
                code => {
                    let (code, detail) = Refusal::from_wire(code, bytes.u64()).to_wire();
                    Err(Refusal::from_wire(code, detail))
                }
            };
            Message::Relayed(Relayed { item, nickname, outcome, last: flags & 4 != 0 })
        }
        _ => Message::Presence(match bytes.below(3) {
            0 => Presence::Joined(nickname(bytes)),
            1 => Presence::Left(nickname(bytes)),
            _ => Presence::Renamed { from: nickname(bytes), to: nickname(bytes) },
        }),
    }
}
