//! What a peer says that is not the program: frames by hand, as PROTOCOL.md has them.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;

use postwire::wire::{Decoder, Frame, Message, Offer, Peer, RunId, Time};

/// The frames of messages, one behind the other.
pub fn bytes(messages: &[Message]) -> Vec<u8> {
    let mut bytes = Vec::new();
    messages.iter().for_each(|message| message.encode(&mut bytes));
    bytes
}

pub fn hello() -> Message {
    Message::Hello { version_low: 1, version_high: 1, mode: 0 }
}

/// A peer outside the room that takes files; `number` is its run.
pub fn peer(number: u8) -> Message {
    Message::Peer(honest(RunId([number; 16])))
}

/// What [`peer`] says of itself.
pub fn honest(run: RunId) -> Peer {
    Peer {
        run,
        in_room: false,
        takes_files: true,
        relays: false,
        text_bytes: 65_536,
        text_window_bytes: 262_144,
        chunk_bytes: 262_144,
        offers: 4096,
        nickname: None,
    }
}

/// A regular file of `size` bytes, for the receiver itself.
pub fn offer(transfer: u32, size: u64, path: &[u8]) -> Offer {
    let mtime = Time { seconds: 1, nanoseconds: 0 };
    let path = path.to_vec();
    Offer { transfer, kind: 0, size, mtime, mode: 0o644, content_crc: 1, request: 0, relay: 0, item: 0, path }
}

/// The frames that come from the other side.
pub struct Frames {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Frames {
    pub fn of(stream: &TcpStream) -> Frames {
        Frames { stream: stream.try_clone().unwrap(), buffer: Vec::new() }
    }

    /// The next frame; `None` after the end.
    pub fn next(&mut self, decoder: &mut Decoder) -> Option<Frame> {
        loop {
            let (taken, frame) = decoder.decode(&self.buffer).unwrap();
            self.buffer.drain(..taken);
            if frame.is_some() {
                return frame;
            }
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece) {
                Ok(0) => return None,
                Ok(count) => self.buffer.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }
}
