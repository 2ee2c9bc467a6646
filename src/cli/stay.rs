//! The run of a client with `--stay`: it listens in the room, reads no input, and ends by a signal or when enough came.

use postwire::{Client, Event, State};
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
    loop {
        match feed.next() {
            Happening::Event(event @ Event::Disconnected(_)) => {
                printer.event(&event);
                return exit.unwrap_or_else(|| ended(&event, printer));
            }
            Happening::Event(Event::StateChanged(State::Connected)) => {
                printer.connected(client.peer_addr(), client.nickname().as_ref());
            }
            Happening::Event(Event::Text(text)) if left == Some(0) => surplus.push(text),
            Happening::Event(event) => {
                printer.event(&event);
                let is_item = matches!(event, Event::Text(_) | Event::Received(_));
                left = left.map(|left| left.saturating_sub(u64::from(is_item)));
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

/// The connection ended, and we had not wished it.
fn ended(event: &Event, printer: &mut Printer) -> Exit {
    let Event::Disconnected(Some(error)) = event else {
        return Exit::Done;
    };
    printer.fatal(error);
    Exit::of(error)
}
