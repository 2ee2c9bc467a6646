//! Flipped bits, each alone in a session of its own: in heads, control frames and data, both ways.
//!
//! Sessions are the library's, many beside each other in this process: a break is a pause before the next try, and a damaged
//! type can mean a wait for bytes that never come.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use postwire::{Client, Config, Error, Event, Nickname, Receipt, Retry, Server};
use tempfile::TempDir;

use crate::common::random_file;
use crate::proxy::{Direction, Faults, Line, Proxy};
use crate::{Programme, Random};

const THREADS: usize = 64;
/// Far above the 30 s that the rest of a frame is waited for, and the 90 s of a silent side.
const DEADLINE: Duration = Duration::from_secs(150);
/// How long an event of the server may come after the client has ended.
const LATE: Duration = Duration::from_millis(500);
/// Nothing of a session is shorter than the data in it by more than this: heads, hello and control.
const LEAST_CHUNK: u64 = 16 * 1024;
const BLOCK: u64 = 256 * 1024;

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn bits() {
    let programme = Programme::new("bits", 100_000);
    programme.run(THREADS, Place::new, |number, place| {
        programme.count(Session::of_round(number).run(place));
    });
}

/// One session: a text and a file one way, and one bit that is flipped on its first connection.
#[derive(Debug)]
struct Session {
    round: u64,
    /// The server sends them.
    is_down: bool,
    size_bytes: u64,
    /// Two blocks of it are there, one of them damaged, so that SUMS and REPAIR are said.
    is_resumed: bool,
    text: String,
    flip_to_server: bool,
    /// 8 x byte + bit.
    bit: u64,
}

/// A server with a proxy before it, for one session after another.
struct Place {
    scratch: TempDir,
    server: Server,
    proxy: Proxy,
}

/// What one end was told.
#[derive(Default)]
struct Told {
    texts: Vec<String>,
    delivered: u32,
    sent: Vec<Receipt>,
    received: Vec<Receipt>,
    refused: u32,
    failed: u32,
    retries: u32,
    /// The client's own end.
    end: Option<Option<Error>>,
}

impl Place {
    fn new() -> Place {
        let scratch = TempDir::new().unwrap();
        for name in ["out", "inbox"] {
            fs::create_dir(scratch.path().join(name)).unwrap();
        }
        // What syncs is another programme's question.
        let config = Config { dir: Some(scratch.path().join("inbox")), fsync: false, ..Config::default() };
        let server = Server::bind("127.0.0.1:0", config).unwrap();
        let proxy = Proxy::start(server.local_addr(), Faults::default());
        Place { scratch, server, proxy }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("{self:?}");
        }
    }
}

impl Session {
    fn of_round(round: u64) -> Session {
        let mut random = Random::of_round(round);
        let is_down = random.below(2) == 0;
        // Several chunks of a small file, of a larger one, or one.
        let kind = random.below(16);
        let size_bytes = match kind {
            0 => 100_000 + random.below(160_000),
            1 => 262_145 + random.below(100_000),
            2 => 2 * BLOCK + 1 + random.below(5000),
            _ => 2048 + random.below(4096),
        };
        let is_resumed = kind == 2;
        let travels = if is_resumed { size_bytes - BLOCK } else { size_bytes };
        let flip_to_server = random.below(2) == 0;
        let bytes = if flip_to_server == is_down { 400 } else { 700 + travels };
        let byte = if random.below(2) == 0 { random.below(500.min(bytes)) } else { random.below(bytes) };
        let bit = 8 * byte + random.below(8);
        let text = format!("round {round}: {:x}", random.next());
        Session { round, is_down, size_bytes, is_resumed, text, flip_to_server, bit }
    }

    fn run(&self, place: &Place) -> &'static str {
        let name = format!("{}.bin", self.round);
        let source = place.scratch.path().join("out").join(&name);
        let inbox = place.scratch.path().join("inbox");
        random_file(&source, usize::try_from(self.size_bytes).unwrap(), self.round);
        if self.is_resumed {
            hold_half(&source, &inbox, &name);
        }
        let damaged = Line { flip_bits: vec![self.bit], ..Line::default() };
        let (to_server, to_client) =
            if self.flip_to_server { (damaged, Line::default()) } else { (Line::default(), damaged) };
        let before = Measured::of(&place.proxy);
        place.proxy.set_faults(Faults { to_server, to_client, only_connections: Some(1), ..Faults::default() });

        let (client, server) = self.talk(place, &source, &inbox);
        let after = Measured::of(&place.proxy);
        let (sender, receiver) = if self.is_down { (&server, &client) } else { (&client, &server) };

        // Rule: no flipped bit in a text; each comes once, and was heard where that is claimed.
        assert!(receiver.texts.iter().all(|text| *text == self.text), "another text: {:?}", receiver.texts);
        assert!(receiver.texts.len() <= 1, "a text came {} times", receiver.texts.len());
        assert!(sender.texts.is_empty(), "a text came from nowhere: {:?}", sender.texts);
        let delivered = usize::try_from(sender.delivered).unwrap();
        assert!(delivered <= receiver.texts.len(), "delivered is not true");
        // Rule: what has a name is whole, and every receipt is true.
        let data = fs::read(&source).unwrap();
        let mut is_there = false;
        // A commit that was under way when the connection ended still ends: a partial may get its name between two looks.
        let looked = Instant::now();
        loop {
            let entries: Vec<_> = fs::read_dir(&inbox).unwrap().map(Result::unwrap).collect();
            if entries.is_empty() {
                break;
            }
            assert!(looked.elapsed() < DEADLINE, "the inbox does not become empty: {entries:?}");
            for entry in entries {
                let found = entry.file_name().into_string().unwrap();
                if found == name {
                    assert!(fs::read(entry.path()).unwrap() == data, "a file that is not what was sent");
                    fs::remove_file(entry.path()).unwrap();
                    is_there = true;
                } else {
                    let is_partial = found.starts_with(".postwire-") && found.ends_with(".part");
                    assert!(is_partial, "a file that nobody sent: {found}");
                    let removed = fs::remove_file(entry.path());
                    assert!(removed.is_ok() || !entry.path().exists(), "can't remove {found}: {removed:?}");
                }
            }
        }
        for receipt in sender.sent.iter().chain(&receiver.received) {
            let is_true = receipt.name == name.as_bytes()
                && receipt.stored == receipt.name
                && receipt.bytes == self.size_bytes
                && receipt.crc32 == crc32fast::hash(&data)
                && is_there;
            assert!(is_true, "a receipt that is not true: {receipt:?}");
        }
        assert!(sender.sent.len() <= 1 && sender.received.is_empty(), "receipts: {:?}", sender.sent);
        assert_eq!(sender.refused, 0, "a text was refused");
        fs::remove_file(&source).unwrap();

        // Rule: one flipped bit keeps nothing from being done.
        let done = delivered == 1 && sender.sent.len() == 1;
        assert!(done, "not all was done: {:?}", client.end);
        if after.flipped == before.flipped {
            "beyond the end"
        } else if client.retries > 0 {
            if self.is_resumed {
                "reconnects of resumed files"
            } else {
                "reconnects"
            }
        } else if after.bytes - before.bytes
            >= 2 * self.size_bytes.min(LEAST_CHUNK) + self.size_bytes.saturating_sub(LEAST_CHUNK)
                - if self.is_resumed { BLOCK } else { 0 }
        {
            if self.is_resumed {
                "chunks of resumed files again"
            } else {
                "chunks again"
            }
        } else {
            "after all was done"
        }
    }

    /// Sends, and hears both ends until the client has ended.
    fn talk(&self, place: &Place, source: &Path, inbox: &Path) -> (Told, Told) {
        let nick = Nickname::parse(format!("n{}", self.round).as_bytes()).unwrap();
        let config = Config {
            dir: self.is_down.then(|| inbox.to_owned()),
            nick: Some(nick.clone()),
            join_room: self.is_down,
            fsync: false,
            retry: Retry::For(Duration::from_secs(20)),
            ..Config::default()
        };
        let client = Client::connect(&place.proxy.address().to_string(), config).unwrap();
        let (mut here, mut there) = (Told::default(), Told::default());
        let (mut unsent_text, mut unsent_file) = (true, true);
        if !self.is_down {
            // Refused where the connection ended already; the event of its end says why.
            let _ = client.send_text(None, &self.text);
            let _ = client.send_file(source);
        }
        let started = Instant::now();
        let mut said_goodbye = false;
        while here.end.is_none() {
            assert!(started.elapsed() < DEADLINE, "a client that does not end");
            while let Ok(Some(event)) = client.next_event(Some(Duration::from_millis(2))) {
                here.hear(event);
            }
            while let Ok(Some(event)) = place.server.next_event(Some(Duration::ZERO)) {
                there.hear(event);
            }
            if self.is_down {
                unsent_text = unsent_text && place.server.send_text(Some(&nick), &self.text).is_err();
                unsent_file = unsent_file && place.server.send_file(Some(&nick), source).is_err();
            }
            let sender = if self.is_down { &there } else { &here };
            let answered = sender.delivered + sender.refused > 0 && !sender.sent.is_empty() || sender.failed > 0;
            if answered && !said_goodbye {
                said_goodbye = true;
                client.disconnect();
            }
        }
        // What the server was still about to say, of a connection that has ended as far as the client knows.
        let late = Instant::now();
        while late.elapsed() < LATE && place.server.peers().iter().any(|peer| peer.nickname == nick) {
            while let Ok(Some(event)) = place.server.next_event(Some(Duration::from_millis(2))) {
                there.hear(event);
            }
        }
        place.proxy.kill_all();
        while let Ok(Some(event)) = place.server.next_event(Some(Duration::ZERO)) {
            there.hear(event);
        }
        (here, there)
    }
}

/// Leaves the first two blocks of a file where a transfer that broke would have, with one wrong byte in the first.
fn hold_half(source: &Path, inbox: &Path, name: &str) {
    let metadata = fs::metadata(source).unwrap();
    let path_crc = crc32fast::hash(name.as_bytes());
    let version = [
        &path_crc.to_be_bytes()[..],
        &metadata.size().to_be_bytes(),
        &metadata.mtime().to_be_bytes(),
        &u32::try_from(metadata.mtime_nsec()).unwrap().to_be_bytes(),
    ];
    let version_crc = crc32fast::hash(&version.concat());
    let mut data = fs::read(source).unwrap();
    data.truncate(usize::try_from(2 * BLOCK).unwrap());
    data[1000] ^= 1;
    fs::write(inbox.join(format!(".postwire-{path_crc:08x}{version_crc:08x}-0.part")), data).unwrap();
}

/// What a proxy has seen so far.
struct Measured {
    flipped: u64,
    bytes: u64,
}

impl Measured {
    fn of(proxy: &Proxy) -> Measured {
        let bytes = proxy.bytes_forwarded(Direction::ToServer) + proxy.bytes_forwarded(Direction::ToClient);
        Measured { flipped: proxy.flipped_bits(), bytes }
    }
}

impl Told {
    fn hear(&mut self, event: Event) {
        match event {
            Event::Text(text) => self.texts.push(text.text.clone()),
            Event::TextDelivered { .. } => self.delivered += 1,
            Event::TextRefused { .. } => self.refused += 1,
            Event::Sent(receipt) => self.sent.push(receipt),
            Event::Received(receipt) => self.received.push(receipt),
            Event::TransferFailed(_) => self.failed += 1,
            Event::Retrying { .. } => self.retries += 1,
            Event::Disconnected(error) => self.end = Some(error),
            _ => {}
        }
    }
}
