//! A session, with files and texts of its own to send and requests to ask, and a peer who may say anything.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, Weak};

use super::connection::peer;
use super::receiver::{Place, BLOCK, PLACE, THERE};
use super::wire::{any_message, encode, greet};
use super::Bytes;
use crate::config::{CREDIT_BYTES_LEAST, OFFERS_MAX, REQUESTS_MAX};
use crate::conn::Conn;
use crate::error::{Goodbye, Refusal};
use crate::name::{Nickname, SafePath};
use crate::session::{
    greet_as_server, Handled, Mailbox, MailboxContext, Outbox, Owner, Session, SessionContext, TextReport,
};
use crate::storage::Top;
use crate::transfer::{Budget, InboundContext, Pace, Report};
use crate::wire::{
    CancelReason, Chunk, Decoder, Entry, Frame, Message, Offer, Presence, Receipt, RunId, Subject, Text, Time, VERSION,
};
use crate::worker::held::{self, Wait};
use crate::worker::Lock;

/// What the session has to send: names, and sizes.
const OURS: [(&str, u64); 3] = [("one", 300), ("two", 3 * BLOCK + 7), ("tree/three", 5)];
/// Texts of its own.
const TEXTS: u64 = 3;
/// No more is given at once than fits the sockets' buffers, with what else may be said.
const CREDIT_MOST: u64 = 64 * 1024;

/// Whatever the peer says, a session ends or goes on: it says what the protocol lets it, hears of each of its texts and files
/// once at most, and gives back all that it holds.
pub(super) fn session(data: &[u8]) {
    PLACE.with(|place| run(place, &shared(place), Bytes(data)));
}

/// The directory that is shared, made once.
fn shared(place: &Place) -> PathBuf {
    let shared = place.root.join("shared");
    if !shared.exists() {
        fs::create_dir_all(shared.join("tree")).unwrap();
        OURS.iter().for_each(|(name, size)| fs::write(shared.join(name), place.content(2, *size)).unwrap());
    }
    shared
}

fn run(place: &Place, shared: &Path, mut bytes: Bytes) {
    let budget = Arc::new(Budget::new(bytes.one_of(&[16, 1, 1024]) * CREDIT_BYTES_LEAST, usize::MAX));
    let store = Arc::clone(&place.stores[bytes.below(3)]);
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let owner = Arc::new(Room::default());
    let (mailbox, ended) = mailbox(shared);
    let script = Rc::new(RefCell::new(Script::new(bytes.0.to_vec(), theirs, Arc::clone(&owner))));
    let is_running = Cell::new(false);
    let playing = Rc::clone(&script);
    held::begin(move |wait| {
        playing.borrow_mut().listen();
        if wait == Wait::ToSend || is_running.replace(true) {
            return;
        }
        if !playing.borrow_mut().holds_threads() {
            while held::run(0) {}
            playing.borrow_mut().listen();
        }
        loop {
            let Some(act) = playing.borrow_mut().say() else { break };
            act();
        }
        is_running.set(false);
    });
    let conn = Arc::new(Conn::of_pair(ours));
    let (who, reader) = greet_as_server(&conn, None).expect("the script's hello");
    let (budget_there, holders) = (Arc::clone(&budget), Arc::default());
    let requests = Arc::clone(&mailbox.requests);
    let room: Arc<dyn Owner> = owner.clone();
    let context = SessionContext {
        mailbox: Arc::clone(&mailbox),
        owner: room,
        inbound: Box::new(move |hooks| InboundContext {
            store: Some(store),
            pipe: None,
            budget: budget_there,
            takes_offers: true,
            offers_max: OFFERS_MAX,
            chunk_bytes_max: u32::MAX,
            requests,
            relaying: None,
            holders,
            pulse: hooks.pulse,
            report: Arc::new(|_| ()),
            wake: hooks.wake,
            violated: hooks.violated,
            ids: Arc::default(),
        }),
    };
    let session = Session::new(conn, who, context);
    script.borrow_mut().session = Arc::downgrade(&session);
    let result = session.run(reader);
    while held::run(0) || held::run_waiting() {}
    owner.kept.take().clear();
    drop(session);
    while held::run(0) || held::run_waiting() {}
    script.borrow_mut().listen();
    assert!(budget.is_whole(), "some of the budget is lost after {result:?}");
    mailbox.files.fail_all(|| crate::Error::Closed);
    mailbox.requests.fail_all(|| crate::Error::Closed);
    assert!(mailbox.files.is_idle() && mailbox.requests.is_empty());
    drop(mailbox);
    // One for each file, the tree's directory, and what else was asked for.
    assert!(ended.take().len() >= OURS.len(), "a file has no end");
    let mut finished = std::mem::take(&mut script.borrow_mut().finished);
    finished.extend(THERE.iter().map(|(_, size)| (*size, crc32fast::hash(place.content(0, *size)))));
    while held::run(0) || held::run_waiting() {}
    assert_eq!(held::end(), 0, "threads are left");
    place.check(&finished);
    place.restore();
}

/// With files, texts and requests; and which transfers have ended.
fn mailbox(shared: &Path) -> (Arc<Mailbox>, Arc<Mutex<BTreeSet<u32>>>) {
    let path = |name: &str| SafePath::parse(name.as_bytes()).unwrap();
    let (ended, texts) = (Arc::<Mutex<BTreeSet<u32>>>::default(), Mutex::new(BTreeSet::new()));
    let hears = Arc::clone(&ended);
    let top = Top::open(shared).unwrap();
    let (pace, outbox) = (Arc::new(Pace::new(None)), Arc::new(Outbox::new(usize::MAX)));
    let context = MailboxContext { ids: Arc::default(), pace, outbox, share: Some(Arc::new(top)) };
    let text_report = move |report| {
        let (TextReport::Delivered { sequence } | TextReport::Refused { sequence, .. }) = report;
        assert!(texts.take().insert(sequence) && sequence <= TEXTS, "a text ends twice");
    };
    let report = move |report| match report {
        Report::Stored(receipt) => assert!(hears.take().insert(receipt.transfer), "a transfer ends twice"),
        Report::Failed(failure) => assert!(hears.take().insert(failure.transfer), "a transfer ends twice"),
        Report::Progress(_) | Report::Skipped { .. } | Report::Relayed { .. } => {}
    };
    let mailbox = Arc::new(Mailbox::new(context, text_report, report, |_| ()));
    for (name, _) in &OURS[..2] {
        mailbox.files.add_path(&shared.join(name), &path(name), None).unwrap();
    }
    mailbox.files.add_path(&shared.join("tree"), &path("tree"), None).unwrap();
    mailbox.requests.get(None, path("theirs"), path("here"));
    mailbox.requests.list(None, None);
    for sequence in 1..=TEXTS {
        let (run, leave, to_room, text) = (RunId([7; 16]), false, false, "hello".repeat(40));
        let text = Text { run, sequence, from: None, to: None, leave, to_room, text };
        let frame: Arc<[u8]> = encode(&Message::Text(text)).into();
        mailbox.texts.push(&frame, 200, Some(sequence), 1).unwrap();
    }
    (mailbox, ended)
}

/// Takes texts, refuses some, and keeps some for later.
#[derive(Default)]
struct Room {
    how: Mutex<u8>,
    kept: Mutex<Vec<Handled>>,
}

impl Owner for Room {
    fn text(&self, _: Text, handled: Handled) -> Result<(), (Refusal, Handled)> {
        let how = *self.how.take();
        match how % 3 {
            0 => drop(handled),
            1 => self.kept.take().push(handled),
            _ => return Err((Refusal::Nobody, handled)),
        }
        Ok(())
    }

    fn presence(&self, _: Presence) {}

    fn named(&self, _: Nickname) {}
}

/// Something that this side's application does.
type Act = Box<dyn FnOnce()>;

/// The peer: what it still says, and what it heard.
struct Script {
    bytes: Vec<u8>,
    at: usize,
    stream: UnixStream,
    owner: Arc<Room>,
    session: Weak<Session>,
    has_greeted: bool,
    has_ended: bool,
    decoder: Decoder,
    /// The last word was heard.
    heard_last: bool,
    /// What the session offered, with the bytes of its CHUNKs that came.
    offered: BTreeMap<u32, (Offer, u64)>,
    /// SEND was said, and no end.
    wanted: BTreeSet<u32>,
    credit: u64,
    chunk_bytes: u64,
    /// What this peer offered: sizes and kinds of content.
    offers: Vec<(u64, u8)>,
    texts_said: u64,
    texts_acknowledged: u64,
    requests: BTreeSet<u32>,
    requests_heard: u32,
    pings: BTreeSet<u64>,
    finished: BTreeSet<(u64, u32)>,
}

impl Script {
    fn new(bytes: Vec<u8>, stream: UnixStream, owner: Arc<Room>) -> Script {
        let mut decoder = Decoder::for_server();
        greet(&mut decoder);
        Script {
            bytes,
            at: 0,
            stream,
            owner,
            session: Weak::new(),
            has_greeted: false,
            has_ended: false,
            decoder,
            heard_last: false,
            offered: BTreeMap::new(),
            wanted: BTreeSet::new(),
            credit: 0,
            chunk_bytes: 0,
            offers: Vec::new(),
            texts_said: 0,
            texts_acknowledged: 0,
            requests: BTreeSet::new(),
            requests_heard: 0,
            pings: BTreeSet::new(),
            finished: BTreeSet::new(),
        }
    }

    /// Whether this side's threads are not to run yet.
    fn holds_threads(&self) -> bool {
        self.bytes.get(self.at).is_some_and(|kind| kind & 0xe0 == 0xe0)
    }

    /// Says something, or that it says no more, unless something is to be done here first.
    fn say(&mut self) -> Option<Act> {
        let mut out = Vec::new();
        let mut act: Option<Act> = None;
        if !self.has_greeted {
            self.has_greeted = true;
            Message::Hello { version_low: VERSION, version_high: VERSION, mode: 0 }.encode(&mut out);
            Message::Peer(peer("them")).encode(&mut out);
        }
        while out.is_empty() && self.at < self.bytes.len() {
            let bytes = std::mem::take(&mut self.bytes);
            let mut rest = Bytes(&bytes[self.at..]);
            match self.message(&mut rest) {
                Said::Message(message) => message.encode(&mut out),
                Said::Bytes(bytes) => out = bytes,
                Said::Act(doing) => act = Some(doing),
                Said::Nothing => {}
            }
            self.at = bytes.len() - rest.0.len();
            self.bytes = bytes;
            if act.is_some() {
                return act;
            }
        }
        // What does not fit any more is not said; the session may have ended.
        let is_said = self.stream.write(&out).is_ok_and(|count| count == out.len());
        if (out.is_empty() || !is_said) && !self.has_ended {
            self.has_ended = true;
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        None
    }

    fn message(&mut self, bytes: &mut Bytes) -> Said {
        let session = self.session.clone();
        Said::Message(match bytes.u8() % 32 {
            0 => return Said::Bytes(bytes.string()),
            1 | 2 => self.any(bytes),
            3 | 4 => self.offer(bytes),
            5 | 6 => self.chunk(bytes),
            7 => self.finish(bytes),
            8 => Message::Cancel { transfer: self.mine(bytes), reason: CancelReason::GivenUp },
            9..=11 => self.want(bytes),
            12 | 13 => self.acknowledge(bytes),
            14 => {
                let (transfer, offset) = (self.theirs(bytes), bytes.one_of(&[0, 5, BLOCK, 3 * BLOCK]));
                Message::Repair { transfer, offset, length: bytes.one_of(&[1, 7, BLOCK, 3 * BLOCK + 7, u64::MAX]) }
            }
            15 | 16 => self.receipt(bytes),
            17 => {
                let subject = match bytes.below(4) {
                    0 => Subject::Connection,
                    1 => Subject::Text(1 + u64::from(bytes.u8() % 4)),
                    2 => Subject::Transfer(self.theirs(bytes)),
                    _ => Subject::Request(u32::from(bytes.u8() % 4)),
                };
                Message::Refused { subject, refusal: Refusal::NotFound }
            }
            18 => {
                *self.owner.how.take() = bytes.u8();
                self.texts_said += 1;
                let to = (bytes.u8() & 1 == 1).then(|| Nickname::counted(1));
                let text = String::from_utf8_lossy(&bytes.string()).into();
                let (run, sequence, leave, to_room) = (RunId([9; 16]), self.texts_said, false, false);
                Message::Text(Text { run, sequence, from: None, to, leave, to_room, text })
            }
            19 => Message::TextAck { count: u64::from(bytes.u8() % 5) },
            20 | 21 => {
                let request = u32::from(bytes.u8() % 24);
                self.requests.insert(request);
                let path =
                    bytes.one_of(&[&b"one"[..], b"two", b"tree", b"", b"none", b"../two", b"tree/three"]).to_vec();
                match bytes.u8() & 1 {
                    0 => Message::Get { request, from: None, path },
                    _ => Message::List { request, from: None, after: path },
                }
            }
            22 => {
                let (request, kind) = (u32::from(bytes.u8() % 4), bytes.u8() % 4);
                let mtime = Time::default();
                Message::Entry(Entry { request, kind, size: bytes.u64(), mtime, path: bytes.string() })
            }
            23 => {
                let request = u32::from(bytes.u8() % 4);
                Message::Ended { request, more: bytes.u8() & 1 == 1, left_out: 0, failed: 0 }
            }
            24 => {
                let token = u64::from(bytes.u8());
                self.pings.insert(token);
                Message::Ping(token)
            }
            25 => Message::Goodbye(Goodbye::Done),
            26 => return Said::act(session, |session| session.close(Goodbye::Done)),
            27 => return Said::act(session, |session| session.dismiss(Goodbye::Removed)),
            28 => return Said::act(session, |session| session.announce([Presence::Left(Nickname::counted(3))])),
            29 => return Said::act(session, |session| session.name(Nickname::counted(4))),
            30 => {
                let owner = Arc::clone(&self.owner);
                let which = usize::from(bytes.u8());
                return Said::Act(Box::new(move || {
                    let handled = {
                        let mut kept = owner.kept.take();
                        let count = kept.len().max(1);
                        (!kept.is_empty()).then(|| kept.remove(which % count))
                    };
                    drop(handled);
                }));
            }
            _ => return Said::Nothing,
        })
    }

    fn any(&mut self, bytes: &mut Bytes) -> Message {
        let message = any_message(bytes);
        match &message {
            Message::Ping(token) => drop(self.pings.insert(*token)),
            Message::Text(_) => self.texts_said += 1,
            Message::Get { request, .. } | Message::List { request, .. } => drop(self.requests.insert(*request)),
            Message::Send { transfer, .. } => drop(self.wanted.insert(*transfer)),
            Message::Finish { size, crc, .. } => drop(self.finished.insert((*size, *crc))),
            _ => {}
        }
        // Credit is bounded, so that all fits the sockets' buffers.
        match message {
            Message::Send { transfer, have, credit } => {
                Message::Send { transfer, have, credit: self.grant(credit % CREDIT_MOST) }
            }
            Message::Ack { transfer, received, credit } => {
                Message::Ack { transfer, received, credit: self.grant(credit % CREDIT_MOST) }
            }
            other => other,
        }
    }

    fn grant(&mut self, credit: u64) -> u64 {
        self.credit = self.credit.max(credit);
        credit
    }

    /// The number of a transfer of the session's, perhaps.
    fn theirs(&self, bytes: &mut Bytes) -> u32 {
        u32::from(bytes.u8()) % (u32::try_from(self.offered.len()).unwrap() + 2)
    }

    /// The number of a transfer of this peer's, perhaps.
    fn mine(&self, bytes: &mut Bytes) -> u32 {
        u32::from(bytes.u8()) % (u32::try_from(self.offers.len()).unwrap() + 2)
    }

    fn offer(&mut self, bytes: &mut Bytes) -> Message {
        let (kind, content) = (bytes.one_of(&[0, 0, 0, 2, 1]), bytes.u8() % 4);
        let size = if kind == 0 { bytes.one_of(&[5, 0, 300, BLOCK + 100, 2 * BLOCK]) } else { 0 };
        let path =
            bytes.one_of(&[&b"a"[..], b"d/a", b"there", b"large", b"here", b"theirs", b"theirs/x", b"link/a", b""]);
        let request = u32::from(bytes.u8() % 8 == 1);
        let content_crc = match kind {
            0 if size <= BLOCK => PLACE.with(|place| crc32fast::hash(place.content(content, size))),
            _ => 0,
        };
        self.offers.push((size, content));
        let transfer = u32::try_from(self.offers.len()).unwrap();
        let mtime = Time::default();
        let (mode, relay, item, path) = (0o644, 0, 0, path.to_vec());
        Message::Offer(Offer { transfer, kind, size, mtime, mode, content_crc, request, relay, item, path })
    }

    fn chunk(&mut self, bytes: &mut Bytes) -> Message {
        let transfer = self.mine(bytes);
        let (offset, length) = (bytes.one_of(&[0, BLOCK / 2, BLOCK]), bytes.one_of(&[BLOCK, BLOCK / 2, 5]));
        let index = usize::try_from(transfer).unwrap().wrapping_sub(1);
        let (size, content) = self.offers.get(index).copied().unwrap_or((BLOCK, 0));
        let length = if bytes.u8() == 0xff { length } else { length.min(size.saturating_sub(offset)) };
        let content =
            PLACE.with(|place| place.content(content, offset + length)[usize::try_from(offset).unwrap()..].to_vec());
        Message::Chunk(Chunk { transfer, offset, crc: crc32fast::hash(&content), data: content })
    }

    fn finish(&mut self, bytes: &mut Bytes) -> Message {
        let transfer = self.mine(bytes);
        let index = usize::try_from(transfer).unwrap().wrapping_sub(1);
        let (size, content) = self.offers.get(index).copied().unwrap_or_default();
        let crc = PLACE.with(|place| crc32fast::hash(place.content(content, size)));
        let crc = if bytes.u8() == 0xff { 1 } else { crc };
        self.finished.insert((size, crc));
        Message::Finish { transfer, size, crc, grew: false }
    }

    fn want(&mut self, bytes: &mut Bytes) -> Message {
        let transfer = self.theirs(bytes);
        let size = self.offered.get(&transfer).map_or(0, |(offer, _)| offer.size);
        let have = bytes.one_of(&[0, 0, BLOCK, size, 7]);
        self.wanted.insert(transfer);
        let credit = bytes.one_of(&[CREDIT_MOST, 1000, 0]);
        Message::Send { transfer, have, credit: self.grant(credit) }
    }

    fn acknowledge(&mut self, bytes: &mut Bytes) -> Message {
        let transfer = self.theirs(bytes);
        let came = self.offered.get(&transfer).map_or(0, |(_, came)| *came);
        let received = bytes.one_of(&[came, came, came / 2, came + 1]);
        let credit = bytes.one_of(&[CREDIT_MOST, 1000, 0]);
        Message::Ack { transfer, received, credit: self.grant(credit) }
    }

    fn receipt(&mut self, bytes: &mut Bytes) -> Message {
        let (transfer, flags) = (self.theirs(bytes), bytes.u8());
        let size = self.offered.get(&transfer).map_or(0, |(offer, _)| offer.size);
        let is_tree = self.offered.get(&transfer).is_some_and(|(offer, _)| offer.kind == 1);
        let crc = if is_tree { 0 } else { PLACE.with(|place| crc32fast::hash(place.content(2, size))) };
        Message::Receipt(Receipt {
            transfer,
            durable: flags & 1 == 1,
            already: flags & 2 == 2,
            size: if flags & 0x70 == 0x70 { 1 } else { size },
            resumed: 0,
            crc: if flags & 0x78 == 0x68 { 1 } else { crc },
            stored: b"stored".to_vec(),
        })
    }

    /// Hears all that was said so far.
    fn listen(&mut self) {
        let mut buffer = [0; 16 * 1024];
        while let Ok(count @ 1..) = self.stream.read(&mut buffer) {
            let mut rest = &buffer[..count];
            while !rest.is_empty() {
                let (count, frame) = self.decoder.decode(rest).expect("frames");
                rest = &rest[count..];
                if let Some(frame) = frame {
                    let Frame::Message(message) = frame else { panic!("{frame:?} is said") };
                    self.hear(message);
                }
            }
        }
    }

    fn hear(&mut self, message: Message) {
        assert!(!self.heard_last, "{message:?} after the last word");
        match message {
            Message::Goodbye(_) | Message::Refused { subject: Subject::Connection, .. } => self.heard_last = true,
            Message::Refused { subject: Subject::Text(number), .. } => assert!((1..=self.texts_said).contains(&number)),
            Message::Refused { subject: Subject::Request(request), .. } | Message::Ended { request, .. } => {
                assert!(self.requests.contains(&request), "an end of what was not asked for");
            }
            Message::Entry(entry) => assert!(self.requests.contains(&entry.request)),
            Message::TextAck { count } => {
                assert!(count > self.texts_acknowledged && count <= self.texts_said, "TEXT_ACK {count}");
                self.texts_acknowledged = count;
            }
            Message::Text(text) => assert!((1..=TEXTS).contains(&text.sequence)),
            Message::Pong(token) => assert!(self.pings.contains(&token)),
            Message::Get { request, .. } | Message::List { request, .. } => {
                assert_eq!(request, self.requests_heard + 1);
                self.requests_heard = request;
                assert!(usize::try_from(request).unwrap() <= REQUESTS_MAX);
            }
            Message::Offer(offer) => {
                let number = offer.transfer;
                assert_eq!(usize::try_from(number).unwrap(), self.offered.len() + 1, "numbers count up");
                assert!(number <= OFFERS_MAX && SafePath::parse(&offer.path).is_ok());
                assert!(offer.request == 0 || self.requests.contains(&offer.request));
                self.offered.insert(number, (offer, 0));
            }
            Message::Chunk(chunk) => {
                let length = u64::try_from(chunk.data.len()).unwrap();
                let (offer, came) = self.offered.get_mut(&chunk.transfer).expect("an offered file");
                assert!(self.wanted.contains(&chunk.transfer), "data that nobody wants");
                assert!(length > 0 && chunk.offset + length <= offer.size, "data outside the file");
                *came += length;
                self.chunk_bytes += length;
                assert!(self.chunk_bytes <= self.credit, "more than the credit");
                let start = usize::try_from(chunk.offset).unwrap();
                let is_right = PLACE.with(|place| place.content(2, offer.size)[start..].starts_with(&chunk.data));
                assert!(is_right, "other data than the file's");
            }
            Message::Finish { transfer, size, crc, grew } => {
                let (offer, _) = self.offered.get(&transfer).expect("an offered file");
                assert!(self.wanted.contains(&transfer) && size == offer.size && !grew);
                assert_eq!(crc, PLACE.with(|place| crc32fast::hash(place.content(2, size))));
            }
            Message::Sums { transfer, .. } | Message::Cancel { transfer, .. } => {
                assert!(self.offered.contains_key(&transfer));
            }
            Message::Send { .. } | Message::Ack { .. } | Message::Repair { .. } | Message::Receipt(_) => {}
            Message::Refused { subject: Subject::Transfer(_), .. } | Message::Ping(_) => {}
            Message::Presence(_) | Message::Named(_) => {}
            other => panic!("a session says {other:?}"),
        }
    }
}

/// What a script comes up with.
enum Said {
    Message(Message),
    Bytes(Vec<u8>),
    Act(Act),
    Nothing,
}

impl Said {
    fn act(session: Weak<Session>, act: impl FnOnce(&Session) + 'static) -> Said {
        Said::Act(Box::new(move || {
            if let Some(session) = session.upgrade() {
                act(&session);
            }
        }))
    }
}
