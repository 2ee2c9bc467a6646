//! The run of a client with `--stay`: it listens in the room, reads no input, and ends by a signal or when enough came.

use std::collections::HashSet;

use postwire::{Client, Event, Kind, Receipt, State};
use signal_hook::consts::SIGINT;

use super::exit::Exit;
use super::feed::{Feed, Happening};
use super::print::Printer;

/// Listens until a signal, or until `count` texts and files came.
pub fn run(client: &Client, count: Option<u64>, feed: &mut Feed, printer: &mut Printer) -> Exit {
    let mut left = count;
    let mut exit = None;
    // Texts past the count are neither printed nor, while the connection stands, dropped: that would acknowledge them. The
    // other side's window of unacknowledged texts bounds them (PROTOCOL 4.5).
    let mut surplus = Vec::new();
    let mut counted = Counted::default();
    loop {
        match feed.next() {
            Happening::Event(event @ Event::Disconnected(_)) => {
                printer.event(&event);
                return exit.unwrap_or_else(|| ended(&event, printer));
            }
            Happening::Event(Event::StateChanged(State::Connected)) => {
                counted.connection_began();
                printer.connected(client.peer_addr(), client.nickname().as_ref());
            }
            Happening::Event(Event::Text(text)) if left == Some(0) => surplus.push(text),
            Happening::Event(event) => {
                printer.event(&event);
                left = left.map(|left| {
                    let is_item = match &event {
                        Event::Text(_) => true,
                        Event::Received(receipt) => receipt.kind != Kind::Directory && counted.is_new(receipt),
                        _ => false,
                    };
                    left.saturating_sub(u64::from(is_item))
                });
                // The acknowledgement of the last item goes before the goodbye.
                drop(event);
                if left == Some(0) && exit.is_none() {
                    exit = Some(Exit::Done);
                    client.disconnect();
                    feed.end_soon();
                }
            }
            Happening::Signal(SIGINT) => {
                exit = Some(Exit::Signal(SIGINT));
                client.abort();
                feed.end_soon();
            }
            Happening::Signal(_) => {
                exit = Some(Exit::Done);
                client.disconnect();
                feed.end_soon();
            }
            Happening::EventsEnded | Happening::TimeUp => return exit.unwrap_or(Exit::Other),
            Happening::Line(_) | Happening::InputEnded => {}
        }
    }
}

/// The files that were counted, as many as the count at most. When a break took a receipt the other side offers the file
/// again: that is not another file.
#[derive(Default)]
struct Counted {
    on_this_connection: HashSet<Key>,
    before: HashSet<Key>,
}

/// Where it is stored, how long it is, its CRC.
type Key = (Vec<u8>, u64, u32);

impl Counted {
    fn connection_began(&mut self) {
        self.before.extend(self.on_this_connection.drain());
    }

    fn is_new(&mut self, receipt: &Receipt) -> bool {
        let key = (receipt.stored.clone(), receipt.bytes, receipt.crc32);
        let is_again = receipt.already && self.before.remove(&key);
        self.on_this_connection.insert(key);
        !is_again
    }
}

/// The connection ended, and we had not wished it.
fn ended(event: &Event, printer: &mut Printer) -> Exit {
    let Event::Disconnected(Some(error)) = event else {
        return Exit::Done;
    };
    printer.failed(error);
    Exit::of(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use postwire::Direction;
    use std::time::Duration;

    #[test]
    fn a_file_that_is_offered_again_after_a_break_is_counted_once() {
        let receipt = |already| Receipt {
            direction: Direction::Incoming,
            transfer: 1,
            kind: Kind::File,
            peer: None,
            address: None,
            request: None,
            source: None,
            name: b"a".to_vec(),
            stored: b"a".to_vec(),
            bytes: 1,
            crc32: 1,
            durable: true,
            already,
            resumed_bytes: 0,
            grew: false,
            elapsed: Duration::ZERO,
        };
        let mut counted = Counted::default();
        counted.connection_began();
        assert!(counted.is_new(&receipt(false)));
        assert!(counted.is_new(&receipt(true)), "sent twice");
        counted.connection_began();
        assert!(!counted.is_new(&receipt(true)), "the receipt was lost");
        counted.connection_began();
        assert!(!counted.is_new(&receipt(true)), "and lost again");
        assert!(counted.is_new(&receipt(true)), "sent once more");
    }
}
