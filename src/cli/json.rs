//! What `--json` prints: one object a line, with `type` and stable keys. Functions of events; `print` writes the lines.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use postwire::{escape, Direction, Error, Event, Kind, Listed, PeerInfo, Receipt, TransferFailure};

use super::exec::{Ended, Outcome};
use super::human;

/// An object: its keys and their values, as they stand in JSON.
pub struct Object(Vec<(String, String)>);

impl Object {
    /// An object of a type.
    pub fn new(kind: &str) -> Object {
        Object(Vec::new()).text("type", kind)
    }

    /// A text, exactly.
    pub fn text(self, key: &str, text: &str) -> Object {
        self.with(key, quoted(text))
    }

    /// Bytes that mostly are text; where they are not UTF-8, `KEY_hex` holds them exactly.
    pub fn bytes(self, key: &str, bytes: &[u8]) -> Object {
        let object = self.text(key, &String::from_utf8_lossy(bytes));
        if std::str::from_utf8(bytes).is_ok() {
            return object;
        }
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        object.text(&format!("{key}_hex"), &hex)
    }

    /// A text, or null.
    pub fn nullable(self, key: &str, text: Option<&str>) -> Object {
        match text {
            Some(text) => self.text(key, text),
            None => self.number(key, "null"),
        }
    }

    /// A number, or what else stands in JSON as it displays.
    pub fn number(self, key: &str, number: impl Display) -> Object {
        self.with(key, number.to_string())
    }

    pub fn boolean(self, key: &str, value: bool) -> Object {
        self.number(key, value)
    }

    pub fn seconds(self, key: &str, time: Duration) -> Object {
        self.number(key, format_args!("{:.3}", time.as_secs_f64()))
    }

    /// An address without its port, and the port.
    pub fn address_and_port(self, address: SocketAddr) -> Object {
        self.text("address", &address.ip().to_string()).number("port", address.port())
    }

    /// An error, where there is one.
    pub fn error(self, error: Option<&Error>) -> Object {
        match error {
            Some(error) => self.text("error", &error.to_string()),
            None => self,
        }
    }

    /// The line of `--json`, without its end.
    pub fn line(&self) -> String {
        let fields: Vec<String> = self.0.iter().map(|(key, value)| format!("{}:{value}", quoted(key))).collect();
        format!("{{{}}}", fields.join(","))
    }

    /// The same for a log: the type, then `key=value`; a text that needs no quotes has none.
    pub fn log(&self) -> String {
        let bare = |value: &str| {
            let text = value.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(value);
            let needs_quotes = text.is_empty() || text.contains([' ', '=', '"', '\\']);
            if needs_quotes {
                value.to_owned()
            } else {
                text.to_owned()
            }
        };
        let mut fields = self.0.iter();
        let kind = fields.next().map(|(_, kind)| bare(kind)).unwrap_or_default();
        let pairs = fields.map(|(key, value)| format!("{key}={}", bare(value)));
        std::iter::once(kind).chain(pairs).collect::<Vec<_>>().join(" ")
    }

    fn with(mut self, key: &str, value: String) -> Object {
        self.0.push((key.to_owned(), value));
        self
    }
}

/// Everything that a terminal could obey, and not only what JSON demands, is escaped: a reader gets it back exactly.
pub fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            ' '..='~' => quoted.push(c),
            _ if escape(c.encode_utf8(&mut [0; 4]).as_bytes()).starts_with('\\') => {
                c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| quoted.push_str(&format!("\\u{unit:04x}")));
            }
            _ => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// The object of an event, where it has one.
pub fn event(event: &Event) -> Option<Object> {
    Some(match event {
        Event::Retrying { error, after } => Object::new("retrying").error(Some(error)).seconds("seconds", *after),
        Event::Disconnected(error) => Object::new("disconnected").error(error.as_ref()),
        Event::PeerConnected { peer } => of_peer("peer_connected", peer),
        Event::PeerDisconnected { peer, error } => of_peer("peer_disconnected", peer).error(error.as_ref()),
        Event::StrangerRefused { address, error } => {
            Object::new("refused").text("address", &address.to_string()).error(Some(error))
        }
        Event::AcceptError(error) => Object::new("error").text("message", &error.to_string()),
        Event::Joined(nickname) => Object::new("joined").text("nick", nickname.as_str()),
        Event::Left(nickname) => Object::new("left").text("nick", nickname.as_str()),
        Event::Renamed { from, to } => Object::new("renamed").text("from", from.as_str()).text("nick", to.as_str()),
        Event::Text(text) => Object::new("text")
            .nullable("from", text.from.as_ref().map(|from| from.as_str()))
            .boolean("private", text.private)
            .text("text", &text.text),
        Event::TextDelivered { sequence } => Object::new("delivered").number("sequence", sequence),
        Event::TextRefused { sequence, refusal } => Object::new("text_refused")
            .number("sequence", sequence)
            .number("code", refusal.to_wire().0)
            .text("error", &refusal.to_string()),
        Event::Sent(receipt) => of_receipt("outgoing", receipt),
        Event::Received(receipt) => of_receipt("incoming", receipt),
        Event::TransferFailed(failure) => of_failure(failure),
        Event::Skipped { path, why } => {
            Object::new("skipped").bytes("path", path.as_os_str().as_encoded_bytes()).text("why", human::why(*why))
        }
        _ => return None,
    })
}

/// A peer of ours, in an object of type `kind`.
pub fn of_peer(kind: &str, peer: &PeerInfo) -> Object {
    let object = Object::new(kind).text("nick", peer.nickname.as_str());
    object.text("address", &peer.address.to_string()).boolean("in_room", peer.in_room)
}

/// A program of `--exec` that has ended: with a code, or with an error that says why there is none.
pub fn exec_ended(ended: &Ended) -> Object {
    let object = Object::new("exec").text("received", if ended.came.file.is_some() { "file" } else { "text" });
    let object = object.bytes("name", ended.came.file.as_deref().unwrap_or_default()).text("nick", &ended.came.nick);
    let object = match &ended.outcome {
        Outcome::Code(code) => object.number("code", code),
        outcome => object.nullable("code", None).text("error", &outcome.to_string()),
    };
    object.seconds("seconds", ended.elapsed)
}

/// A file or directory that the other side shares.
pub fn listed(entry: &Listed) -> String {
    let object = Object::new("entry").text("kind", kind(entry.kind)).bytes("name", &entry.path.to_bytes());
    object.number("bytes", entry.size_bytes).number("mtime", entry.mtime_seconds).line()
}

/// What was asked for is not to be had.
pub fn request_failed(name: &str, error: &Error) -> Object {
    let object = Object::new("request_failed").text("name", name);
    match error {
        Error::Refused(refusal) => object.number("code", refusal.to_wire().0).error(Some(error)),
        _ => object.error(Some(error)),
    }
}

/// A file that will not be stored.
pub fn failed(direction: Direction, name: &[u8], error: &Error) -> Object {
    let direction = match direction {
        Direction::Outgoing => "outgoing",
        Direction::Incoming => "incoming",
    };
    let object = Object::new("failed").text("direction", direction).bytes("name", name);
    match error {
        Error::Refused(refusal) => object.number("code", refusal.to_wire().0).error(Some(error)),
        _ => object.error(Some(error)),
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Directory => "directory",
        Kind::Stream => "stream",
        _ => "file",
    }
}

fn of_failure(failure: &TransferFailure) -> Object {
    let object = failed(failure.direction, &failure.name, &failure.error);
    object.nullable("peer", failure.peer.as_ref().map(|peer| peer.as_str()))
}

fn of_receipt(direction: &str, receipt: &Receipt) -> Object {
    Object::new("receipt")
        .text("direction", direction)
        .text("kind", kind(receipt.kind))
        .bytes("name", &receipt.name)
        .bytes("stored", &receipt.stored)
        .number("bytes", receipt.bytes)
        .text("crc32", &format!("{:08x}", receipt.crc32))
        .boolean("durable", receipt.durable)
        .boolean("already", receipt.already)
        .number("resumed_bytes", receipt.resumed_bytes)
        .boolean("grew", receipt.grew)
        .seconds("seconds", receipt.elapsed)
        .nullable("peer", receipt.peer.as_ref().map(|peer| peer.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use postwire::{Nickname, Refusal};

    #[test]
    fn strings_come_back_exactly_and_no_terminal_obeys_them() {
        let line = Object::new("text").text("text", "a\"b\\c\n\r\t\u{1b}[2J\u{9b}\u{202e}\u{e0041}é世").line();
        let expected = "{\"type\":\"text\",\"text\":\"a\\\"b\\\\c\\n\\r\\t\\u001b[2J\\u009b\\u202e\\udb40\\udc41é世\"}";
        assert_eq!(line, expected);
    }

    #[test]
    fn bytes_that_are_no_text_are_also_given_in_hex() {
        let line = Object::new("x").bytes("name", b"caf\xe9").line();
        assert_eq!(line, "{\"type\":\"x\",\"name\":\"caf\u{fffd}\",\"name_hex\":\"636166e9\"}");
    }

    #[test]
    fn a_receipt_has_all_its_keys() {
        let receipt = Receipt {
            direction: Direction::Incoming,
            transfer: 1,
            kind: Kind::File,
            peer: Nickname::parse(b"b7").ok(),
            address: None,
            request: None,
            source: None,
            name: b"a.bin".to_vec(),
            stored: b"a-1.bin".to_vec(),
            bytes: u64::MAX,
            crc32: 0xa1b2,
            durable: true,
            already: false,
            resumed_bytes: 7,
            grew: false,
            elapsed: Duration::from_millis(1500),
        };
        let expected = "{\"type\":\"receipt\",\"direction\":\"incoming\",\"kind\":\"file\",\"name\":\"a.bin\",\"stored\":\"a-1.bin\",\
            \"bytes\":18446744073709551615,\"crc32\":\"0000a1b2\",\"durable\":true,\"already\":false,\
            \"resumed_bytes\":7,\"grew\":false,\"seconds\":1.500,\"peer\":\"b7\"}";
        assert_eq!(event(&Event::Received(receipt)).unwrap().line(), expected);
    }

    #[test]
    fn a_refused_file_tells_the_code_of_the_protocol() {
        let line = failed(Direction::Outgoing, b"x", &Error::Refused(Refusal::Exists)).line();
        assert!(
            line.starts_with("{\"type\":\"failed\",\"direction\":\"outgoing\",\"name\":\"x\",\"code\":9,\"error\":")
        );
        let line = failed(Direction::Outgoing, b"x", &Error::Closed).line();
        assert_eq!(line, "{\"type\":\"failed\",\"direction\":\"outgoing\",\"name\":\"x\",\"error\":\"closed\"}");
    }
}
