//! What was left, as it stands in a file: the frames that say it.

use std::sync::Arc;

use super::{Key, Left, Parting};
use crate::name::{Nickname, SafePath};
use crate::storage::{Meta, Spool};
use crate::transfer::{Arrived, Kind, Parcel};
use crate::wire::{self, Decoder, Frame, Message, MODE_PLAIN, VERSION};

/// The first frame of a note says the version of the others.
pub(super) fn start() -> Vec<u8> {
    let mut bytes = Vec::new();
    Message::Hello { version_low: VERSION, version_high: VERSION, mode: MODE_PLAIN }.encode(&mut bytes);
    bytes
}

/// A note is the frames that say it: a TEXT with who it is from and for, and of a file the OFFER and the RECEIPT.
pub(super) fn of_file(key: Key, nickname: &Nickname, meta: &Meta, kind: Kind, arrived: &Arrived) -> Vec<u8> {
    let mut bytes = start();
    let (run, sequence) = (key.0, key.1.into());
    let text = wire::Text {
        run,
        sequence,
        from: None,
        to: Some(nickname.clone()),
        leave: true,
        to_room: false,
        text: String::new(),
    };
    Message::Text(text).encode(&mut bytes);
    let offer = wire::Offer {
        transfer: 1,
        kind: kind.to_wire(),
        size: arrived.size,
        mtime: meta.mtime.into(),
        mode: meta.mode,
        content_crc: 0,
        request: 0,
        relay: 0,
        item: key.1,
        path: meta.path.to_bytes(),
    };
    Message::Offer(offer).encode(&mut bytes);
    let receipt = wire::Receipt {
        transfer: 1,
        durable: arrived.durable,
        already: false,
        size: arrived.size,
        resumed: 0,
        crc: arrived.crc,
        stored: arrived.stored.to_bytes(),
    };
    Message::Receipt(receipt).encode(&mut bytes);
    bytes
}

/// What [`of_file`] or a text's end wrote; `None` for what it did not, and for a file that is gone.
pub(super) fn read(spool: &Arc<Spool>, bytes: &[u8], noted_seconds: i64) -> Option<(Nickname, Left)> {
    let mut decoder = Decoder::for_server();
    decoder.hello_complete();
    let mut rest = bytes;
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let (used, frame) = decoder.decode(rest).ok()?;
        rest = rest.get(used..)?;
        match frame {
            Some(Frame::Message(message)) => messages.push(message),
            None if used > 0 => {}
            _ => return None,
        }
    }
    let mut messages = messages.into_iter();
    match messages.next() {
        Some(Message::Hello { version_low: VERSION, .. }) => {}
        _ => return None,
    }
    let Some(Message::Text(text)) = messages.next() else { return None };
    let (nickname, run, number) = (text.to.clone()?, text.run, text.sequence);
    let what = match (messages.next(), messages.next()) {
        (None, None) => Parting::Text(text),
        (Some(Message::Offer(offer)), Some(Message::Receipt(receipt))) => {
            let held = Arc::new(spool.hold_stored(SafePath::parse(&receipt.stored).ok()?)?);
            held.set_stays(true);
            Parting::File(Parcel {
                kind: Kind::from_wire(offer.kind)?,
                name: SafePath::parse(&offer.path).ok()?,
                mtime: offer.mtime.into(),
                mode: offer.mode,
                held,
            })
        }
        _ => return None,
    };
    Some((nickname, Left { run, number, what, noted_seconds, has_started: false, is_refused: false }))
}
