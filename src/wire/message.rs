//! The messages of PROTOCOL 3, and their bytes.

use std::fmt;

use byteorder::{BigEndian, ByteOrder, ReadBytesExt, WriteBytesExt};

use super::layout::{self, CHUNK_HEAD_BYTES, CRCS_BYTES, PREFIX_BYTES};
use super::{MAGIC, MODE_PLAIN};
use crate::config::{
    CHUNK_BYTES_LEAST, CHUNK_BYTES_MAX, NICKNAME_BYTES_MAX, OFFERS_MAX, SUMS_PER_FRAME, TEXT_BYTES_LEAST,
    TEXT_BYTES_MAX, TEXT_WINDOW_BYTES,
};
use crate::error::{Goodbye, Refusal, WireError};
use crate::name::Nickname;

/// 16 random bytes, made once per run of a program (PROTOCOL 2.4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(pub [u8; 16]);

/// What a frame says. The fields are those of PROTOCOL 3.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Message {
    Hello { version_low: u16, version_high: u16, mode: u8 },
    Welcome { version: u16, mode: u8 },
    Peer(Peer),
    Refused { subject: Subject, refusal: Refusal },
    Goodbye(Goodbye),
    Named(Nickname),
    Ping(u64),
    Pong(u64),
    Text(Text),
    TextAck { count: u64 },
    Offer(Offer),
    Send { transfer: u32, have: u64, credit: u64 },
    Chunk(Chunk),
    Ack { transfer: u32, received: u64, credit: u64 },
    Repair { transfer: u32, offset: u64, length: u64 },
    Sums { transfer: u32, first_block: u32, crcs: Vec<u32> },
    Finish { transfer: u32, size: u64, crc: u32, grew: bool },
    Receipt(Receipt),
    Cancel { transfer: u32, reason: CancelReason },
    Get { request: u32, from: Option<Nickname>, path: Vec<u8> },
    List { request: u32, from: Option<Nickname>, after: Vec<u8> },
    Entry(Entry),
    Ended { request: u32, more: bool, left_out: u32, failed: u32 },
    Relay(Relay),
    Relayed(Relayed),
    Presence(Presence),
}

/// PROTOCOL 2.4.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Peer {
    pub run: RunId,
    pub in_room: bool,
    pub takes_files: bool,
    pub relays: bool,
    pub text_bytes: u32,
    pub text_window_bytes: u32,
    pub chunk_bytes: u32,
    pub offers: u32,
    pub nickname: Option<Nickname>,
}

/// What a REFUSED is about (PROTOCOL 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Subject {
    Connection,
    Text(u64),
    Transfer(u32),
    Request(u32),
}

/// PROTOCOL 4.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Text {
    pub run: RunId,
    pub sequence: u64,
    pub from: Option<Nickname>,
    pub to: Option<Nickname>,
    pub leave: bool,
    /// For everybody in the room, from one who is not in it.
    pub to_room: bool,
    pub text: String,
}

/// Seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// PROTOCOL 5.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Offer {
    pub transfer: u32,
    pub kind: u8,
    pub size: u64,
    pub mtime: Time,
    pub mode: u32,
    pub content_crc: u32,
    pub request: u32,
    pub relay: u32,
    pub item: u32,
    pub path: Vec<u8>,
}

/// PROTOCOL 9.4.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Entry {
    pub request: u32,
    pub kind: u8,
    pub size: u64,
    pub mtime: Time,
    pub path: Vec<u8>,
}

/// Data of a file; `crc` is the data's, and was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Chunk {
    pub transfer: u32,
    pub offset: u64,
    pub crc: u32,
    pub data: Vec<u8>,
}

/// PROTOCOL 6.9.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Receipt {
    pub transfer: u32,
    pub durable: bool,
    pub already: bool,
    pub size: u64,
    pub resumed: u64,
    pub crc: u32,
    pub stored: Vec<u8>,
}

/// Who the files are for that name it (PROTOCOL 11.1).
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Relay {
    pub relay: u32,
    /// How long to wait for who is not there.
    pub patience_seconds: u32,
    pub leave: bool,
    /// `None`: everybody in the room.
    pub to: Option<Vec<Nickname>>,
}

/// What became of a file on its way to one of those it is for (PROTOCOL 11.4).
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Relayed {
    pub item: u32,
    pub nickname: Nickname,
    pub outcome: Result<Delivered, Refusal>,
    /// No other follows.
    pub last: bool,
}

/// A file that is stored where it was to go.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Delivered {
    pub durable: bool,
    pub already: bool,
    pub stored: Vec<u8>,
}

/// Why a sender gives a transfer up (PROTOCOL 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum CancelReason {
    Unreadable,
    Changed,
    GivenUp,
    Other(u16),
}

/// Who came and left (PROTOCOL 3.2).
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Presence {
    Joined(Nickname),
    Left(Nickname),
    Renamed { from: Nickname, to: Nickname },
    Unknown,
}

impl Message {
    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.push(self.frame_type());
        out.extend_from_slice(&[0; PREFIX_BYTES - 1]);
        // Writing to a vector can't fail.
        let _ = self.write_fixed(out);
        let crcs = out.len();
        out.extend_from_slice(&[0; CRCS_BYTES]);
        self.write_tail(out);
        if let Some(frame) = out.get_mut(start..) {
            seal(frame, crcs - start);
        }
    }

    fn frame_type(&self) -> u8 {
        match self {
            Message::Hello { .. } => layout::HELLO,
            Message::Welcome { .. } => layout::WELCOME,
            Message::Peer(_) => layout::PEER,
            Message::Refused { .. } => layout::REFUSED,
            Message::Goodbye(_) => layout::GOODBYE,
            Message::Named(_) => layout::NAMED,
            Message::Ping(_) => layout::PING,
            Message::Pong(_) => layout::PONG,
            Message::Text(_) => layout::TEXT,
            Message::TextAck { .. } => layout::TEXT_ACK,
            Message::Offer(_) => layout::OFFER,
            Message::Send { .. } => layout::SEND,
            Message::Chunk(_) => layout::CHUNK,
            Message::Ack { .. } => layout::ACK,
            Message::Repair { .. } => layout::REPAIR,
            Message::Sums { .. } => layout::SUMS,
            Message::Finish { .. } => layout::FINISH,
            Message::Receipt(_) => layout::RECEIPT,
            Message::Cancel { .. } => layout::CANCEL,
            Message::Get { .. } => layout::GET,
            Message::List { .. } => layout::LIST,
            Message::Entry(_) => layout::ENTRY,
            Message::Ended { .. } => layout::ENDED,
            Message::Relay(_) => layout::RELAY,
            Message::Relayed(_) => layout::RELAYED,
            Message::Presence(_) => layout::PRESENCE,
        }
    }

    fn write_fixed(&self, out: &mut Vec<u8>) -> std::io::Result<()> {
        match self {
            Message::Hello { version_low, version_high, mode } => {
                out.extend_from_slice(&MAGIC);
                out.write_u16::<BigEndian>(*version_low)?;
                out.write_u16::<BigEndian>(*version_high)?;
                out.push(*mode);
            }
            Message::Welcome { version, mode } => {
                out.extend_from_slice(&MAGIC);
                out.write_u16::<BigEndian>(*version)?;
                out.push(*mode);
            }
            Message::Peer(peer) => {
                out.extend_from_slice(&peer.run.0);
                let flags = u16::from(peer.in_room) | u16::from(peer.takes_files) << 1 | u16::from(peer.relays) << 2;
                out.write_u16::<BigEndian>(flags)?;
                for limit in [peer.text_bytes, peer.text_window_bytes, peer.chunk_bytes, peer.offers] {
                    out.write_u32::<BigEndian>(limit)?;
                }
            }
            Message::Refused { subject, refusal } => {
                let (kind, number) = match subject {
                    Subject::Connection => (0, 0),
                    Subject::Text(number) => (1, *number),
                    Subject::Transfer(number) => (2, u64::from(*number)),
                    Subject::Request(number) => (3, u64::from(*number)),
                };
                let (code, detail) = refusal.to_wire();
                out.push(kind);
                out.write_u64::<BigEndian>(number)?;
                out.write_u16::<BigEndian>(code)?;
                out.write_u64::<BigEndian>(detail)?;
            }
            Message::Goodbye(reason) => out.write_u16::<BigEndian>(reason.to_wire())?,
            Message::Named(_) | Message::Presence(_) => {}
            Message::Ping(number) | Message::Pong(number) | Message::TextAck { count: number } => {
                out.write_u64::<BigEndian>(*number)?;
            }
            Message::Text(text) => {
                out.extend_from_slice(&text.run.0);
                out.write_u64::<BigEndian>(text.sequence)?;
                out.push(nickname_length(text.from.as_ref()));
                out.push(nickname_length(text.to.as_ref()));
                out.push(u8::from(text.leave) | u8::from(text.to_room) << 1);
            }
            Message::Offer(offer) => {
                out.write_u32::<BigEndian>(offer.transfer)?;
                out.push(offer.kind);
                out.write_u64::<BigEndian>(offer.size)?;
                write_time(offer.mtime, out)?;
                out.write_u32::<BigEndian>(offer.mode)?;
                out.write_u32::<BigEndian>(offer.content_crc)?;
                out.write_u32::<BigEndian>(offer.request)?;
                out.write_u32::<BigEndian>(offer.relay)?;
                out.write_u32::<BigEndian>(offer.item)?;
            }
            Message::Send { transfer, have: first, credit: second }
            | Message::Ack { transfer, received: first, credit: second }
            | Message::Repair { transfer, offset: first, length: second } => {
                out.write_u32::<BigEndian>(*transfer)?;
                out.write_u64::<BigEndian>(*first)?;
                out.write_u64::<BigEndian>(*second)?;
            }
            Message::Chunk(chunk) => {
                out.write_u32::<BigEndian>(chunk.transfer)?;
                out.write_u64::<BigEndian>(chunk.offset)?;
            }
            Message::Sums { transfer, first_block, .. } => {
                out.write_u32::<BigEndian>(*transfer)?;
                out.write_u32::<BigEndian>(*first_block)?;
            }
            Message::Finish { transfer, size, crc, grew } => {
                out.write_u32::<BigEndian>(*transfer)?;
                out.write_u64::<BigEndian>(*size)?;
                out.write_u32::<BigEndian>(*crc)?;
                out.push(u8::from(*grew));
            }
            Message::Receipt(receipt) => {
                out.write_u32::<BigEndian>(receipt.transfer)?;
                out.push(u8::from(receipt.durable) | u8::from(receipt.already) << 1);
                out.write_u64::<BigEndian>(receipt.size)?;
                out.write_u64::<BigEndian>(receipt.resumed)?;
                out.write_u32::<BigEndian>(receipt.crc)?;
            }
            Message::Cancel { transfer, reason } => {
                out.write_u32::<BigEndian>(*transfer)?;
                out.write_u16::<BigEndian>(match reason {
                    CancelReason::Unreadable => 1,
                    CancelReason::Changed => 2,
                    CancelReason::GivenUp => 3,
                    CancelReason::Other(code) => *code,
                })?;
            }
            Message::Get { request, from, .. } | Message::List { request, from, .. } => {
                out.write_u32::<BigEndian>(*request)?;
                out.push(nickname_length(from.as_ref()));
            }
            Message::Entry(entry) => {
                out.write_u32::<BigEndian>(entry.request)?;
                out.push(entry.kind);
                out.write_u64::<BigEndian>(entry.size)?;
                write_time(entry.mtime, out)?;
            }
            Message::Ended { request, more, left_out, failed } => {
                out.write_u32::<BigEndian>(*request)?;
                out.push(u8::from(*more));
                out.write_u32::<BigEndian>(*left_out)?;
                out.write_u32::<BigEndian>(*failed)?;
            }
            Message::Relay(relay) => {
                out.write_u32::<BigEndian>(relay.relay)?;
                out.write_u32::<BigEndian>(relay.patience_seconds)?;
                out.push(u8::from(relay.leave) | u8::from(relay.to.is_none()) << 1);
            }
            Message::Relayed(relayed) => {
                let (flags, (code, detail)) = match &relayed.outcome {
                    Ok(stored) => (u8::from(stored.durable) | u8::from(stored.already) << 1, (0, 0)),
                    Err(refusal) => (0, refusal.to_wire()),
                };
                out.write_u32::<BigEndian>(relayed.item)?;
                out.push(flags | u8::from(relayed.last) << 2);
                out.write_u16::<BigEndian>(code)?;
                out.write_u64::<BigEndian>(detail)?;
                out.push(nickname_length(Some(&relayed.nickname)));
            }
        }
        Ok(())
    }

    fn write_tail(&self, out: &mut Vec<u8>) {
        let nickname = |nickname: &Option<Nickname>| nickname.as_ref().map_or(Vec::new(), |n| n.as_str().into());
        match self {
            Message::Peer(peer) => out.extend(nickname(&peer.nickname)),
            Message::Named(named) => out.extend_from_slice(named.as_str().as_bytes()),
            Message::Text(text) => {
                out.extend(nickname(&text.from));
                out.extend(nickname(&text.to));
                out.extend_from_slice(text.text.as_bytes());
            }
            Message::Offer(offer) => out.extend_from_slice(&offer.path),
            Message::Chunk(chunk) => out.extend_from_slice(&chunk.data),
            Message::Sums { crcs, .. } => crcs.iter().for_each(|crc| out.extend_from_slice(&crc.to_be_bytes())),
            Message::Receipt(receipt) => out.extend_from_slice(&receipt.stored),
            Message::Get { from, path, .. } | Message::List { from, after: path, .. } => {
                out.extend(nickname(from));
                out.extend_from_slice(path);
            }
            Message::Entry(entry) => out.extend_from_slice(&entry.path),
            Message::Relay(relay) => {
                let nicknames: Vec<&str> = relay.to.iter().flatten().map(Nickname::as_str).collect();
                out.extend_from_slice(nicknames.join(" ").as_bytes());
            }
            Message::Relayed(relayed) => {
                out.extend_from_slice(relayed.nickname.as_str().as_bytes());
                out.extend_from_slice(relayed.outcome.as_ref().map_or(&[], |stored| &stored.stored));
            }
            Message::Presence(Presence::Joined(who)) => {
                out.push(1);
                out.extend_from_slice(who.as_str().as_bytes());
            }
            Message::Presence(Presence::Left(who)) => {
                out.push(2);
                out.extend_from_slice(who.as_str().as_bytes());
            }
            Message::Presence(Presence::Renamed { from, to }) => {
                out.push(3);
                out.extend_from_slice(from.as_str().as_bytes());
                out.push(b' ');
                out.extend_from_slice(to.as_str().as_bytes());
            }
            _ => {}
        }
    }

    /// The message of a frame whose CRCs are right. `fixed` has the length that the type's layout says.
    ///
    /// # Errors
    /// [`WireError::Field`] for a value that a field can't have.
    pub(super) fn parse(frame_type: u8, fixed: &[u8], tail: Vec<u8>, tail_crc: u32) -> Result<Message, WireError> {
        let bad = |field| WireError::Field { frame_type, field };
        // The layout's length was checked, so a read past the end can't happen; it would be named all the same.
        Parse { fixed, bad: &bad }.message(frame_type, tail, tail_crc)
    }
}

/// Reads fixed fields one after the other.
struct Parse<'a> {
    fixed: &'a [u8],
    bad: &'a dyn Fn(&'static str) -> WireError,
}

impl Parse<'_> {
    fn message(mut self, frame_type: u8, tail: Vec<u8>, tail_crc: u32) -> Result<Message, WireError> {
        let bad = self.bad;
        Ok(match frame_type {
            layout::HELLO => {
                self.magic()?;
                let (version_low, version_high, mode) = (self.u16()?, self.u16()?, self.u8()?);
                if version_low > version_high {
                    return Err(bad("version_high"));
                }
                Message::Hello { version_low, version_high, mode }
            }
            layout::WELCOME => {
                self.magic()?;
                Message::Welcome { version: self.u16()?, mode: self.u8()? }
            }
            layout::PEER => Message::Peer(self.peer(&tail)?),
            layout::REFUSED => {
                let (kind, number) = (self.u8()?, self.u64()?);
                let subject = match kind {
                    0 => Subject::Connection,
                    1 => Subject::Text(number),
                    2 => Subject::Transfer(u32::try_from(number).map_err(|_| bad("number"))?),
                    3 => Subject::Request(u32::try_from(number).map_err(|_| bad("number"))?),
                    _ => return Err(bad("subject")),
                };
                Message::Refused { subject, refusal: Refusal::from_wire(self.u16()?, self.u64()?) }
            }
            layout::GOODBYE => Message::Goodbye(Goodbye::from_wire(self.u16()?)),
            layout::NAMED => Message::Named(Nickname::parse(&tail).map_err(|_| bad("nickname"))?),
            layout::PING => Message::Ping(self.u64()?),
            layout::PONG => Message::Pong(self.u64()?),
            layout::TEXT => Message::Text(self.text(tail)?),
            layout::TEXT_ACK => Message::TextAck { count: self.u64()? },
            layout::OFFER => Message::Offer(Offer {
                transfer: self.u32()?,
                kind: self.u8()?,
                size: self.u64()?,
                mtime: self.time()?,
                mode: self.u32()?,
                content_crc: self.u32()?,
                request: self.u32()?,
                relay: self.u32()?,
                item: self.u32()?,
                path: tail,
            }),
            layout::SEND => Message::Send { transfer: self.u32()?, have: self.u64()?, credit: self.u64()? },
            layout::CHUNK => {
                Message::Chunk(Chunk { transfer: self.u32()?, offset: self.u64()?, crc: tail_crc, data: tail })
            }
            layout::ACK => Message::Ack { transfer: self.u32()?, received: self.u64()?, credit: self.u64()? },
            layout::REPAIR => Message::Repair { transfer: self.u32()?, offset: self.u64()?, length: self.u64()? },
            layout::SUMS => {
                if tail.is_empty() || tail.len() % 4 != 0 || tail.len() > 4 * SUMS_PER_FRAME {
                    return Err(bad("CRCs"));
                }
                let crcs = tail.chunks_exact(4).map(BigEndian::read_u32).collect();
                Message::Sums { transfer: self.u32()?, first_block: self.u32()?, crcs }
            }
            layout::FINISH => Message::Finish {
                transfer: self.u32()?,
                size: self.u64()?,
                crc: self.u32()?,
                grew: self.u8()? & 1 != 0,
            },
            layout::RECEIPT => {
                let (transfer, flags) = (self.u32()?, self.u8()?);
                Message::Receipt(Receipt {
                    transfer,
                    durable: flags & 1 != 0,
                    already: flags & 2 != 0,
                    size: self.u64()?,
                    resumed: self.u64()?,
                    crc: self.u32()?,
                    stored: tail,
                })
            }
            layout::CANCEL => {
                let (transfer, code) = (self.u32()?, self.u16()?);
                let reason = match code {
                    1 => CancelReason::Unreadable,
                    2 => CancelReason::Changed,
                    3 => CancelReason::GivenUp,
                    other => CancelReason::Other(other),
                };
                Message::Cancel { transfer, reason }
            }
            layout::GET => {
                let (request, (from, path)) = (self.u32()?, self.after_nickname("from", tail)?);
                Message::Get { request, from, path }
            }
            layout::LIST => {
                let (request, (from, after)) = (self.u32()?, self.after_nickname("from", tail)?);
                Message::List { request, from, after }
            }
            layout::ENTRY => Message::Entry(Entry {
                request: self.u32()?,
                kind: self.u8()?,
                size: self.u64()?,
                mtime: self.time()?,
                path: tail,
            }),
            layout::ENDED => Message::Ended {
                request: self.u32()?,
                more: self.u8()? & 1 != 0,
                left_out: self.u32()?,
                failed: self.u32()?,
            },
            layout::RELAY => Message::Relay(self.relay(&tail)?),
            layout::RELAYED => Message::Relayed(self.relayed(tail)?),
            layout::PRESENCE => Message::Presence(presence(&tail).map_err(|()| bad("nickname"))?),
            got => return Err(WireError::UnknownType { got }),
        })
    }

    /// PROTOCOL 2.4: a limit above ours is read as ours, one below the least is a violation.
    fn peer(&mut self, tail: &[u8]) -> Result<Peer, WireError> {
        let run = self.run()?;
        let flags = self.u16()?;
        let text_bytes = self.limit("text_bytes", TEXT_BYTES_LEAST, TEXT_BYTES_MAX)?;
        let text_window_bytes = self.limit("text_window_bytes", 0, TEXT_WINDOW_BYTES)?;
        let chunk_bytes = self.limit("chunk_bytes", CHUNK_BYTES_LEAST, CHUNK_BYTES_MAX)?;
        let offers = self.limit("offers", 1, usize::try_from(OFFERS_MAX).unwrap_or(usize::MAX))?;
        let nickname = match tail {
            [] => None,
            bytes => Some(Nickname::parse(bytes).map_err(|_| (self.bad)("nickname"))?),
        };
        Ok(Peer {
            run,
            in_room: flags & 1 != 0,
            takes_files: flags & 2 != 0,
            relays: flags & 4 != 0,
            text_bytes,
            text_window_bytes,
            chunk_bytes,
            offers,
            nickname,
        })
    }

    /// What follows a nickname, or nothing, of the length in the next field.
    fn after_nickname(
        &mut self,
        field: &'static str,
        mut tail: Vec<u8>,
    ) -> Result<(Option<Nickname>, Vec<u8>), WireError> {
        let length = usize::from(self.u8()?);
        if length > tail.len() {
            return Err((self.bad)(field));
        }
        let rest = tail.split_off(length);
        match &tail[..] {
            [] => Ok((None, rest)),
            bytes => Ok((Some(Nickname::parse(bytes).map_err(|_| (self.bad)(field))?), rest)),
        }
    }

    fn relay(&mut self, tail: &[u8]) -> Result<Relay, WireError> {
        let (relay, patience_seconds, flags) = (self.u32()?, self.u32()?, self.u8()?);
        let parse = |bytes| Nickname::parse(bytes).map_err(|_| (self.bad)("nicknames"));
        let to = match flags & 2 {
            0 => Some(tail.split(|&byte| byte == b' ').map(parse).collect::<Result<_, _>>()?),
            _ if tail.is_empty() => None,
            _ => return Err((self.bad)("nicknames")),
        };
        Ok(Relay { relay, patience_seconds, leave: flags & 1 != 0, to })
    }

    fn relayed(&mut self, tail: Vec<u8>) -> Result<Relayed, WireError> {
        let (item, flags, code, detail) = (self.u32()?, self.u8()?, self.u16()?, self.u64()?);
        let (nickname, stored) = self.after_nickname("nickname", tail)?;
        let nickname = nickname.ok_or((self.bad)("nickname"))?;
        let outcome = match code {
            0 => Ok(Delivered { durable: flags & 1 != 0, already: flags & 2 != 0, stored }),
            code => Err(Refusal::from_wire(code, detail)),
        };
        Ok(Relayed { item, nickname, outcome, last: flags & 4 != 0 })
    }

    fn text(&mut self, mut tail: Vec<u8>) -> Result<Text, WireError> {
        let (run, sequence) = (self.run()?, self.u64()?);
        let (from_length, to_length) = (usize::from(self.u8()?), usize::from(self.u8()?));
        let flags = self.u8()?;
        let (leave, to_room) = (flags & 1 != 0, flags & 2 != 0);
        if from_length > NICKNAME_BYTES_MAX || to_length > NICKNAME_BYTES_MAX || from_length + to_length > tail.len() {
            return Err((self.bad)("from_length, to_length"));
        }
        let text = String::from_utf8(tail.split_off(from_length + to_length)).map_err(|_| (self.bad)("text"))?;
        if text.len() > TEXT_BYTES_MAX {
            return Err((self.bad)("text"));
        }
        let (from, to) = tail.split_at(from_length);
        let nickname = |bytes: &[u8], field| match bytes {
            [] => Ok(None),
            bytes => Nickname::parse(bytes).map(Some).map_err(|_| (self.bad)(field)),
        };
        Ok(Text { run, sequence, from: nickname(from, "from")?, to: nickname(to, "to")?, leave, to_room, text })
    }

    fn limit(&mut self, field: &'static str, least: usize, most: usize) -> Result<u32, WireError> {
        let (least, most) = (u32::try_from(least).unwrap_or(u32::MAX), u32::try_from(most).unwrap_or(u32::MAX));
        let value = self.u32()?.min(most);
        if value < least {
            Err((self.bad)(field))
        } else {
            Ok(value)
        }
    }

    fn magic(&mut self) -> Result<(), WireError> {
        let mut magic = [0; MAGIC.len()];
        std::io::Read::read_exact(&mut self.fixed, &mut magic).map_err(|_| (self.bad)("magic"))?;
        if magic == MAGIC {
            Ok(())
        } else {
            Err((self.bad)("magic"))
        }
    }

    fn time(&mut self) -> Result<Time, WireError> {
        let seconds = self.u64()?.cast_signed_compat();
        let nanoseconds = Some(self.u32()?).filter(|&ns| ns < 1_000_000_000).ok_or((self.bad)("mtime_nanoseconds"))?;
        Ok(Time { seconds, nanoseconds })
    }

    fn run(&mut self) -> Result<RunId, WireError> {
        let mut run = [0; 16];
        std::io::Read::read_exact(&mut self.fixed, &mut run).map_err(|_| (self.bad)("run"))?;
        Ok(RunId(run))
    }

    fn u8(&mut self) -> Result<u8, WireError> {
        self.fixed.read_u8().map_err(|_| (self.bad)("length"))
    }

    fn u16(&mut self) -> Result<u16, WireError> {
        self.fixed.read_u16::<BigEndian>().map_err(|_| (self.bad)("length"))
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        self.fixed.read_u32::<BigEndian>().map_err(|_| (self.bad)("length"))
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        self.fixed.read_u64::<BigEndian>().map_err(|_| (self.bad)("length"))
    }
}

/// Completes a chunk's frame in place: `frame` holds `CHUNK_HEAD_BYTES` of space and then the data. Gives the data's CRC.
pub fn seal_chunk(frame: &mut [u8], transfer: u32, offset: u64) -> u32 {
    if let [frame_type, _, _, _, _, _, _, _, _, t0, t1, t2, t3, offset_field @ ..] = frame {
        *frame_type = layout::CHUNK;
        [*t0, *t1, *t2, *t3] = transfer.to_be_bytes();
        if let Some(field) = offset_field.get_mut(..8) {
            field.copy_from_slice(&offset.to_be_bytes());
        }
    }
    seal(frame, CHUNK_HEAD_BYTES - CRCS_BYTES)
}

/// Fills in the length and both CRCs of a frame whose CRC fields stand at `crcs`; gives the tail's CRC.
fn seal(frame: &mut [u8], crcs: usize) -> u32 {
    let length = u64::try_from(frame.len() - PREFIX_BYTES).unwrap_or(u64::MAX);
    let (head, tail) = frame.split_at_mut(crcs + CRCS_BYTES);
    let tail_crc = crc32fast::hash(tail);
    if let Some(field) = head.get_mut(1..PREFIX_BYTES) {
        field.copy_from_slice(&length.to_be_bytes());
    }
    let (before, crcs) = head.split_at_mut(crcs);
    let (tail_field, head_field) = crcs.split_at_mut(4);
    tail_field.copy_from_slice(&tail_crc.to_be_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(before);
    hasher.update(tail_field);
    head_field.copy_from_slice(&hasher.finalize().to_be_bytes());
    tail_crc
}

fn write_time(time: Time, out: &mut Vec<u8>) -> std::io::Result<()> {
    out.write_i64::<BigEndian>(time.seconds)?;
    out.write_u32::<BigEndian>(time.nanoseconds)
}

fn presence(tail: &[u8]) -> Result<Presence, ()> {
    let (kind, nickname) = tail.split_first().ok_or(())?;
    match kind {
        1 => Nickname::parse(nickname).map(Presence::Joined).map_err(|_| ()),
        2 => Nickname::parse(nickname).map(Presence::Left).map_err(|_| ()),
        3 => {
            let at = nickname.iter().position(|&byte| byte == b' ').ok_or(())?;
            let (from, to) = nickname.split_at(at);
            let to = to.strip_prefix(b" ").unwrap_or_default();
            Ok(Presence::Renamed {
                from: Nickname::parse(from).map_err(|_| ())?,
                to: Nickname::parse(to).map_err(|_| ())?,
            })
        }
        _ => Ok(Presence::Unknown),
    }
}

fn nickname_length(nickname: Option<&Nickname>) -> u8 {
    nickname.map_or(0, |nickname| u8::try_from(nickname.as_str().len()).unwrap_or(u8::MAX))
}

/// `u64::cast_signed` of newer Rust, for the MSRV.
trait CastSigned {
    fn cast_signed_compat(self) -> i64;
}

impl CastSigned for u64 {
    fn cast_signed_compat(self) -> i64 {
        i64::from_be_bytes(self.to_be_bytes())
    }
}

impl Peer {
    /// Whether a HELLO's mode is one that this version speaks.
    #[must_use]
    pub fn speaks_mode(mode: u8) -> bool {
        mode == MODE_PLAIN
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
