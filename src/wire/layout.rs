//! The one table of frame types: how long their fixed fields are and how long their tail may be (PROTOCOL 3).

use crate::config::{
    CHUNK_BYTES_MAX, NICKNAME_BYTES_MAX, PATH_BYTES_MAX, RELAY_NICKNAMES_BYTES_MAX, SKIPPED_TAIL_BYTES_MAX,
    SUMS_PER_FRAME, TEXT_BYTES_MAX,
};

pub(super) const HELLO: u8 = 0x81;
pub(super) const WELCOME: u8 = 0x82;
pub(super) const PEER: u8 = 0x83;
pub(super) const REFUSED: u8 = 0x84;
pub(super) const GOODBYE: u8 = 0x85;
pub(super) const NAMED: u8 = 0x86;
pub(super) const PING: u8 = 0x87;
pub(super) const PONG: u8 = 0x88;
pub(super) const TEXT: u8 = 0x90;
pub(super) const TEXT_ACK: u8 = 0x91;
pub(super) const OFFER: u8 = 0xa0;
pub(super) const SEND: u8 = 0xa1;
pub(super) const CHUNK: u8 = 0xa2;
pub(super) const ACK: u8 = 0xa3;
pub(super) const REPAIR: u8 = 0xa4;
pub(super) const SUMS: u8 = 0xa5;
pub(super) const FINISH: u8 = 0xa6;
pub(super) const RECEIPT: u8 = 0xa7;
pub(super) const CANCEL: u8 = 0xa8;
pub(super) const GET: u8 = 0xa9;
pub(super) const LIST: u8 = 0xaa;
pub(super) const ENTRY: u8 = 0xab;
pub(super) const ENDED: u8 = 0xac;
pub(super) const RELAY: u8 = 0xad;
pub(super) const RELAYED: u8 = 0xae;
pub(super) const PRESENCE: u8 = 0xc0;

/// Type and length.
pub(super) const PREFIX_BYTES: usize = 9;
/// tail_crc and head_crc.
pub(super) const CRCS_BYTES: usize = 8;
/// No head is longer: OFFER's has 45 bytes of fixed fields.
pub(super) const HEAD_BYTES_MAX: usize = PREFIX_BYTES + 45 + CRCS_BYTES;
/// The head of a CHUNK, which the sender leaves room for before the data.
pub const CHUNK_HEAD_BYTES: usize = PREFIX_BYTES + 12 + CRCS_BYTES;

/// Bytes of the fixed fields, and the most that the tail may hold; `None` for a type that PROTOCOL 1.2 refuses.
pub(super) fn layout(frame_type: u8) -> Option<(usize, usize)> {
    Some(match frame_type {
        HELLO => (13, 0),
        WELCOME => (11, 0),
        PEER => (34, NICKNAME_BYTES_MAX),
        REFUSED => (19, 0),
        GOODBYE => (2, 0),
        NAMED => (0, NICKNAME_BYTES_MAX),
        PING | PONG | TEXT_ACK => (8, 0),
        TEXT => (27, 2 * NICKNAME_BYTES_MAX + TEXT_BYTES_MAX),
        OFFER => (45, PATH_BYTES_MAX),
        SEND | ACK | REPAIR => (20, 0),
        CHUNK => (12, CHUNK_BYTES_MAX),
        SUMS => (8, 4 * SUMS_PER_FRAME),
        FINISH => (17, 0),
        RECEIPT => (25, PATH_BYTES_MAX),
        CANCEL => (6, 0),
        GET | LIST => (5, NICKNAME_BYTES_MAX + PATH_BYTES_MAX),
        ENTRY => (25, PATH_BYTES_MAX),
        ENDED => (13, 0),
        RELAY => (9, RELAY_NICKNAMES_BYTES_MAX),
        RELAYED => (16, NICKNAME_BYTES_MAX + PATH_BYTES_MAX),
        PRESENCE => (0, 2 + 2 * NICKNAME_BYTES_MAX),
        0xc1..=0xff => (0, SKIPPED_TAIL_BYTES_MAX),
        _ => return None,
    })
}

/// Whether a type may come before the hello is complete (PROTOCOL 2.1).
pub(super) fn may_precede_hello(frame_type: u8) -> bool {
    matches!(frame_type, HELLO | WELCOME | PEER | REFUSED | GOODBYE | NAMED)
}
