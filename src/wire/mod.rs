//! The wire: [`Message`]s to bytes, bytes to [`Frame`]s. The rules are in [`protocol`].
//!
//! Functions of bytes only: no sockets, files, threads or clock. `session` and `transfer` use it.

mod decoder;
mod layout;
mod message;

#[doc = include_str!("PROTOCOL.md")]
pub mod protocol {}

pub use decoder::{Decoder, Frame};
pub use layout::CHUNK_HEAD_BYTES;
pub use message::{
    seal_chunk, CancelReason, Chunk, Delivered, Entry, Message, Offer, Peer, Presence, Receipt, Relay, Relayed, RunId,
    Subject, Text, Time,
};

/// What HELLO and WELCOME begin with.
pub const MAGIC: [u8; 8] = *b"POSTWIRE";
/// The version of this page of the protocol.
pub const VERSION: u16 = 1;
/// Mode 0: frames follow as they are.
pub const MODE_PLAIN: u8 = 0;
/// Mode 1: what follows HELLO and WELCOME is sealed (PROTOCOL 10).
pub const MODE_SEALED: u8 = 1;
