//! What a person reads on standard error about an event: one line and how important it is. Everything that a peer sent
//! passes `escape`. Functions of events; `print` writes the lines.

use postwire::{
    escape, escape_path, Direction, Error, Event, Kind, Listed, Nickname, Receipt, Refusal, Skipped, State,
    TransferFailure,
};

use super::advice;
use super::args::Level;
use super::exec::{Ended, Outcome};

/// The line of an event, where it has one. A text has none here: it goes to standard output.
pub fn event(event: &Event) -> Option<(Level, String)> {
    let line = match event {
        Event::StateChanged(State::HostLookup) => (Level::Trace, "looking up the host".to_owned()),
        Event::StateChanged(State::Connecting) => (Level::Trace, "connecting".to_owned()),
        Event::StateChanged(State::Closing) => (Level::Trace, "closing".to_owned()),
        Event::Retrying { error, after } => {
            (Level::Detail, format!("{error}: trying again in {:.1} s", after.as_secs_f64()))
        }
        Event::Disconnected(None) => (Level::Detail, "disconnected".to_owned()),
        Event::Disconnected(Some(error)) => (Level::Detail, format!("disconnected: {error}")),
        Event::PeerConnected { peer } => (Level::Detail, format!("{} connected from {}", peer.nickname, peer.address)),
        Event::PeerDisconnected { peer, error: None } => (Level::Detail, format!("{} disconnected", peer.nickname)),
        Event::PeerDisconnected { peer, error: Some(error) } => {
            (Level::Detail, format!("{} disconnected: {error}", peer.nickname))
        }
        Event::StrangerRefused { address, error: Error::Refused(refusal) } => {
            (Level::Notice, format!("refused {address}: {}", own_refusal(*refusal)))
        }
        Event::StrangerRefused { address, error } => (Level::Notice, format!("refused {address}: {error}")),
        Event::AcceptError(error) => (Level::Error, format!("no connections for a while: {error}")),
        Event::Joined(nickname) => (Level::Notice, format!("{nickname} joined")),
        Event::Left(nickname) => (Level::Notice, format!("{nickname} left")),
        Event::Renamed { from, to } => (Level::Notice, format!("{from} is now {to}")),
        Event::TextDelivered { sequence } => (Level::Trace, format!("text {sequence} delivered")),
        Event::TextRefused { refusal, .. } => (Level::Error, format!("text refused: {refusal}")),
        Event::Sent(receipt) => (of_kind(receipt), of_receipt("sent", "to", receipt)),
        Event::Received(receipt) => (of_kind(receipt), of_receipt("received", "from", receipt)),
        Event::Skipped { path, why } => {
            (Level::Error, format!("not sent: \"{}\": {}", escape_path(path), self::why(*why)))
        }
        Event::TransferFailed(failure) => (Level::Error, of_failure(failure)),
        _ => return None,
    };
    Some(line)
}

/// The line of a file that can't be sent.
pub fn unsendable(shown_path: &str, error: &Error) -> String {
    match error {
        // These name the path themselves.
        Error::File { .. } | Error::SourceChanged { .. } => advice::line(error),
        _ => format!("\"{shown_path}\": {}", advice::line(error)),
    }
}

/// The line of a program of `--exec` that has ended.
pub fn exec_ended(ended: &Ended) -> (Level, String) {
    let came = match &ended.came.file {
        Some(name) => format!("\"{}\"", escape(name)),
        None => "a text".to_owned(),
    };
    let level = if matches!(ended.outcome, Outcome::Code(0)) { Level::Detail } else { Level::Error };
    let seconds = ended.elapsed.as_secs_f64();
    (level, format!("program for {came} from {}: {}, {seconds:.1} s", ended.came.nick, ended.outcome))
}

/// The line of a text.
pub fn text(from: Option<&Nickname>, text: &str) -> String {
    format!("{}: {}", from.map_or("server", Nickname::as_str), escape(text.as_bytes()))
}

/// The line of a file or directory that the other side shares.
pub fn listed(entry: &Listed) -> String {
    let is_directory = entry.kind == Kind::Directory;
    let size = if is_directory { "-".to_owned() } else { entry.size_bytes.to_string() };
    let slash = if is_directory { "/" } else { "" };
    format!("{size:>12}  {}  {}{slash}", utc(entry.mtime_seconds), entry.path)
}

/// `2026-11-23 18:05:09`, in UTC: a board knows no other time.
pub fn utc(seconds: i64) -> String {
    const DAY: i64 = 24 * 3600;
    let (day, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    // Years that begin in March end with the leap day; 400 of them, an era, always have as many days.
    let since_era_0 = day.saturating_add(719_468);
    let (era, day_of_era) = (since_era_0.div_euclid(146_097), since_era_0.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let months_since_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * months_since_march + 2) / 5 + 1;
    let month = (months_since_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day_of_month:02} {hour:02}:{minute:02}:{second:02}")
}

/// Why something in a tree is not sent.
pub fn why(why: Skipped) -> &'static str {
    match why {
        Skipped::Link => "a symbolic link",
        Skipped::Special => "a device, FIFO or socket",
        _ => "a name that the other side would not take",
    }
}

/// A tree's directories are no news.
pub fn of_kind(receipt: &Receipt) -> Level {
    if receipt.kind == Kind::Directory {
        Level::Detail
    } else {
        Level::Notice
    }
}

fn of_receipt(done: &str, preposition: &str, receipt: &Receipt) -> String {
    let mut facts = Vec::new();
    if receipt.stored != receipt.name {
        facts.push(format!("stored as \"{}\"", escape(&receipt.stored)));
    }
    if receipt.kind != Kind::Directory {
        facts.push(format!("{} bytes", receipt.bytes));
        facts.push(format!("crc32 {:08x}", receipt.crc32));
    }
    facts.push(if receipt.durable { "durable" } else { "not durable" }.to_owned());
    if receipt.already {
        facts.push("already there".to_owned());
    }
    if receipt.resumed_bytes > 0 && !receipt.already {
        facts.push(format!("resumed {} bytes", receipt.resumed_bytes));
    }
    if receipt.grew {
        facts.push("the source grew meanwhile".to_owned());
    }
    facts.push(format!("{:.1} s", receipt.elapsed.as_secs_f64()));
    let peer = of_peer(preposition, receipt.peer.as_ref());
    format!("{done} \"{}\"{peer}: {}", escape(&receipt.name), facts.join(", "))
}

fn of_failure(failure: &TransferFailure) -> String {
    let name = escape(&failure.name);
    match (failure.direction, &failure.error) {
        (Direction::Outgoing, error) => {
            let shown = failure.source.as_ref().map_or(name, |source| escape_path(source));
            let peer = of_peer("to", failure.peer.as_ref());
            if peer.is_empty() {
                unsendable(&shown, error)
            } else {
                format!("\"{shown}\"{peer}: {}", advice::line(error))
            }
        }
        (Direction::Incoming, error) => {
            let peer = of_peer("from", failure.peer.as_ref());
            match error {
                Error::Refused(refusal) => format!("refused \"{name}\"{peer}: {}", own_refusal(*refusal)),
                _ => format!("not received: \"{name}\"{peer}: {}", advice::line(error)),
            }
        }
    }
}

fn of_peer(preposition: &str, peer: Option<&Nickname>) -> String {
    peer.map_or(String::new(), |peer| format!(" {preposition} {peer}"))
}

/// Why this side refused somebody or a file, where a refusal's own words speak of the other side.
fn own_refusal(refusal: Refusal) -> String {
    match refusal {
        Refusal::Version(highest) => format!("no version in common: this side speaks up to version {highest}"),
        Refusal::Busy(limit) => {
            format!("too many connections (limit {limit}: --max-clients, or of those before their hello)")
        }
        Refusal::Stopping => "this side is stopping".to_owned(),
        Refusal::Mode(0) => "it wants to use a key, and there is none here: --key-file".to_owned(),
        Refusal::Mode(_) => "it has no key, and only those who have ours are taken: --key-file".to_owned(),
        Refusal::NotAllowed => "--allow does not name its address".to_owned(),
        Refusal::WrongKey => "its key is another than ours: --key-file".to_owned(),
        Refusal::NoDirectory => "no files are taken without --dir DIR".to_owned(),
        Refusal::Exists => "the name is taken".to_owned(),
        Refusal::TooBig(limit) => format!("bigger than {limit} bytes, see --max-file"),
        Refusal::NoRoom => "no room: the disk or quota is full, see --min-free".to_owned(),
        Refusal::NotWritable => "the directory can't be written".to_owned(),
        Refusal::Failed => "the storage failed".to_owned(),
        Refusal::Unsupported => "not a thing this version can do".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn receipt() -> Receipt {
        Receipt {
            direction: Direction::Outgoing,
            transfer: 1,
            kind: Kind::File,
            peer: Nickname::parse(b"b7").ok(),
            address: None,
            request: None,
            source: None,
            name: b"a.bin".to_vec(),
            stored: b"a.bin".to_vec(),
            bytes: 1234,
            crc32: 0x0a1b_2c3d,
            durable: true,
            already: false,
            resumed_bytes: 0,
            grew: false,
            elapsed: Duration::from_millis(100),
        }
    }

    #[test]
    fn a_receipt_is_one_line() {
        let line = |event_: Event| event(&event_).unwrap().1;
        let plain = line(Event::Received(receipt()));
        assert_eq!(plain, "received \"a.bin\" from b7: 1234 bytes, crc32 0a1b2c3d, durable, 0.1 s");
        let sent = Receipt { peer: None, stored: b"a-1.bin".to_vec(), durable: false, resumed_bytes: 5, ..receipt() };
        let expected =
            "sent \"a.bin\": stored as \"a-1.bin\", 1234 bytes, crc32 0a1b2c3d, not durable, resumed 5 bytes, 0.1 s";
        assert_eq!(line(Event::Sent(sent)), expected);
    }

    #[test]
    fn times_are_shown_in_utc() {
        for (seconds, shown) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_868_799, "2000-02-29 23:59:59"),
            (1_772_323_200, "2026-03-01 00:00:00"),
            (1_798_761_599, "2026-12-31 23:59:59"),
            (-1, "1969-12-31 23:59:59"),
        ] {
            assert_eq!(utc(seconds), shown);
        }
        assert!(!utc(i64::MAX).is_empty() && !utc(i64::MIN).is_empty());
    }

    #[test]
    fn a_failure_says_what_to_do() {
        let failure = |direction, refusal| TransferFailure {
            transfer: 1,
            direction,
            peer: None,
            request: None,
            source: None,
            name: b"x\x1b".to_vec(),
            error: Error::Refused(refusal),
        };
        let outgoing = of_failure(&failure(Direction::Outgoing, Refusal::NoDirectory));
        assert_eq!(outgoing, "\"x\\u{1b}\": refused: it takes no files: start it with --dir DIR");
        let incoming = of_failure(&failure(Direction::Incoming, Refusal::NoDirectory));
        assert_eq!(incoming, "refused \"x\\u{1b}\": no files are taken without --dir DIR");
    }

    #[test]
    fn a_text_is_one_line_that_no_terminal_obeys() {
        let nickname = Nickname::parse(b"b7").unwrap();
        assert_eq!(text(Some(&nickname), "a\nb\x1b[2J"), "b7: a\\nb\\u{1b}[2J");
        assert_eq!(text(None, "hello"), "server: hello");
    }
}
