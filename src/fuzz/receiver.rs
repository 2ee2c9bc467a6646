//! Files on their way in: several connections of senders, honest ones and others, to one directory.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::Bytes;
use crate::config::{block_bytes, Config, IfExists, BLOCK_BYTES_LEAST, CREDIT_BYTES_LEAST, OFFERS_MAX, REPAIRS_MAX};
use crate::error::Error;
use crate::name::SafePath;
use crate::storage::Store;
use crate::transfer::{Budget, Holders, Inbound, InboundContext, Pulse, Report, Requests, TransferIds};
use crate::wire::{Chunk, Decoder, Frame, Message, Offer, Subject, Time};
use crate::worker::{held, Lock};

pub(super) const BLOCK: u64 = BLOCK_BYTES_LEAST;
const MAX_FILE_BYTES: u64 = 4 * BLOCK;
/// Files that are there from the start: a small one and a large one.
pub(super) const THERE: [(&str, u64); 2] = [("there", 300), ("large", BLOCK + 100)];
/// Transfers of one input: each may cost a file.
const OFFERS: usize = 16;

thread_local! {
    pub(super) static PLACE: Place = Place::new();
}

/// A directory that is used again and again, with one beside it that nothing may touch.
pub(super) struct Place {
    pub(super) root: PathBuf,
    /// One for each way of [`IfExists`].
    pub(super) stores: Vec<Arc<Store>>,
    /// What files hold: a part of this.
    content: Vec<u8>,
    /// What the files that are there looked like.
    there: RefCell<Vec<fs::Metadata>>,
}

impl Place {
    fn new() -> Place {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("postwire-fuzz-{}-{number}", std::process::id()));
        let inbox = root.join("in");
        fs::create_dir_all(&inbox).unwrap();
        fs::create_dir(root.join("out")).unwrap();
        let store = |if_exists| {
            let config = Config { if_exists, max_file: MAX_FILE_BYTES, min_free: 0, ..Config::default() };
            Arc::new(Store::open(&inbox, &config).unwrap())
        };
        let stores = [IfExists::Rename, IfExists::Replace, IfExists::Refuse].map(store).into();
        let content = (0..2 * MAX_FILE_BYTES + 4096).map(|at| u8::try_from(at / 61 % 251).unwrap()).collect();
        let place = Place { root, stores, content, there: RefCell::default() };
        place.restore();
        place
    }

    /// The content of a file, of one of four kinds.
    pub(super) fn content(&self, kind: u8, size: u64) -> &[u8] {
        let start = usize::from(kind % 4) * 1000;
        &self.content[start..start + usize::try_from(size.min(2 * MAX_FILE_BYTES)).unwrap()]
    }

    /// The directory as it was.
    pub(super) fn restore(&self) {
        let inbox = self.root.join("in");
        let mut wanted: HashMap<String, &fs::Metadata> = HashMap::new();
        let there = self.there.borrow();
        for ((name, _), metadata) in THERE.iter().zip(there.iter()) {
            wanted.insert((*name).to_owned(), metadata);
        }
        for entry in fs::read_dir(&inbox).unwrap() {
            let entry = entry.unwrap();
            let (name, metadata) = (entry.file_name().into_string(), entry.metadata().unwrap());
            let is_wanted = name.ok().and_then(|name| wanted.get(&name).copied()).is_some_and(|wanted| {
                (wanted.len(), wanted.modified().ok()) == (metadata.len(), metadata.modified().ok())
            });
            match metadata.is_dir() {
                true => fs::remove_dir_all(entry.path()).unwrap(),
                false if is_wanted || metadata.is_symlink() => {}
                false => fs::remove_file(entry.path()).unwrap(),
            }
        }
        drop(there);
        let made = THERE.iter().map(|(name, size)| {
            let path = inbox.join(name);
            if !path.exists() {
                fs::write(&path, self.content(0, *size)).unwrap();
            }
            fs::metadata(path).unwrap()
        });
        let made = made.collect();
        self.there.replace(made);
        if fs::symlink_metadata(inbox.join("link")).is_err() {
            std::os::unix::fs::symlink("../out", inbox.join("link")).unwrap();
        }
    }

    /// Whatever has a real name here was finished, or was there; nothing is anywhere else.
    pub(super) fn check(&self, finished: &BTreeSet<(u64, u32)>) {
        assert_eq!(fs::read_dir(self.root.join("out")).unwrap().count(), 0, "a link was followed");
        let names = fs::read_dir(&self.root).unwrap().map(|entry| entry.unwrap().file_name());
        let known = ["in", "out", "shared"];
        assert!(
            names.into_iter().all(|name| known.iter().any(|known| name == *known)),
            "something outside the directory"
        );
        check_files(&self.root.join("in"), finished);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn check_files(dir: &Path, finished: &BTreeSet<(u64, u32)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_encoded_bytes();
        let is_partial = name.starts_with(b".postwire-") && name.ends_with(b".part");
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            check_files(&entry.path(), finished);
        } else if kind.is_file() && !is_partial {
            let content = fs::read(entry.path()).unwrap();
            let (size, crc) = (u64::try_from(content.len()).unwrap(), crc32fast::hash(&content));
            assert!(finished.contains(&(size, crc)), "{:?} was never finished", entry.path());
        }
    }
}

/// Everybody is alive, and says so at once.
pub(super) struct Alive;

impl Pulse for Alive {
    fn ping(&self) -> u64 {
        1
    }

    fn has_answered(&self, _: u64) -> bool {
        true
    }

    fn silent_for(&self) -> Duration {
        Duration::ZERO
    }

    fn end(&self) {}
}

/// Whatever senders say, no file has a real name but what was finished, all that is said back keeps the protocol's rules,
/// and an honest sender's files all come to an end.
pub(super) fn inbound(data: &[u8]) {
    PLACE.with(|place| {
        held::begin(|_| ());
        Receiver::new(place, Bytes(data)).run();
        assert_eq!(held::end(), 0, "threads are left");
        place.restore();
    });
}

struct Receiver<'a> {
    place: &'a Place,
    bytes: Bytes<'a>,
    store: Arc<Store>,
    if_exists: IfExists,
    budget: Arc<Budget>,
    holders: Arc<Holders>,
    ids: Arc<TransferIds>,
    /// Size and CRC of all that was finished, or was there.
    finished: BTreeSet<(u64, u32)>,
    offers: usize,
    /// Ends of transfers that the application heard of.
    ended: Arc<Mutex<BTreeSet<u32>>>,
}

/// One connection, and what its sender knows.
struct Sender {
    inbound: Inbound,
    has_violated: Arc<AtomicBool>,
    /// It broke no rule.
    is_honest: bool,
    transfers: BTreeMap<u32, Transfer>,
    last_number: u32,
    credit: u64,
    sent: u64,
}

/// A file that is offered.
struct Transfer {
    kind: u8,
    size: u64,
    content: u8,
    state: State,
    /// Bytes sent, and those acknowledged.
    sent: u64,
    received: u64,
    next: u64,
    sums: u64,
    repairs: Vec<(u64, u64)>,
    finish: Option<(u64, u32)>,
}

#[derive(PartialEq, Debug)]
enum State {
    Offered,
    Sending {
        have: u64,
    },
    /// Given up by the sender: answers may still be under way.
    Cancelled,
    Ended,
}

impl<'a> Receiver<'a> {
    fn new(place: &'a Place, mut bytes: Bytes<'a>) -> Receiver<'a> {
        let how = bytes.below(3);
        let budget = bytes.one_of(&[16, 1, 1024]) * CREDIT_BYTES_LEAST;
        let finished = THERE.iter().map(|(_, size)| (*size, crc32fast::hash(place.content(0, *size)))).collect();
        Receiver {
            place,
            bytes,
            store: Arc::clone(&place.stores[how]),
            if_exists: [IfExists::Rename, IfExists::Replace, IfExists::Refuse][how],
            // Who waits for a commit here waits for ever: there is no other thread.
            budget: Arc::new(Budget::new(budget, usize::MAX)),
            holders: Arc::default(),
            ids: Arc::default(),
            finished,
            offers: 0,
            ended: Arc::default(),
        }
    }

    fn run(mut self) {
        let mut senders = [self.connect(), self.connect()];
        let mut which = 0;
        while !self.bytes.is_empty() {
            let sender = &mut senders[which];
            let mut is_going_on = Ok(());
            match self.bytes.u8() % 16 {
                0..=2 => is_going_on = self.offer(sender),
                3..=5 => is_going_on = self.send_next(sender),
                6 => is_going_on = self.send_any(sender),
                7 => is_going_on = self.sums_any(sender),
                8 => is_going_on = self.finish_any(sender),
                9 => is_going_on = self.cancel(sender),
                10 | 11 => {
                    held::run(usize::from(self.bytes.u8()));
                }
                12 => self.listen(sender),
                13 => self.work(sender),
                14 => which = 1 - which,
                _ => is_going_on = Err(Error::Closed),
            }
            let violated = is_going_on.is_err() || senders[which].has_violated.load(Ordering::SeqCst);
            if violated {
                let is_asked_for = matches!(is_going_on, Err(Error::Closed));
                assert!(is_asked_for || !senders[which].is_honest, "an honest sender is told {is_going_on:?}");
                senders[which].inbound.close();
                senders[which] = self.connect();
            }
        }
        for sender in &mut senders {
            self.end(sender);
        }
        for sender in &senders {
            sender.inbound.close();
        }
        while held::run(0) || held::run_waiting() {}
        drop(senders);
        assert!(self.budget.is_whole(), "some of the budget is lost");
        self.place.check(&self.finished);
    }

    fn connect(&self) -> Sender {
        let has_violated = Arc::new(AtomicBool::new(false));
        let (violated, ended) = (Arc::clone(&has_violated), Arc::clone(&self.ended));
        let inbound = Inbound::new(InboundContext {
            store: Some(Arc::clone(&self.store)),
            pipe: None,
            budget: Arc::clone(&self.budget),
            takes_offers: true,
            offers_max: OFFERS_MAX,
            chunk_bytes_max: u32::MAX,
            relaying: None,
            requests: Arc::new(Requests::new(Arc::default(), |_| ())),
            holders: Arc::clone(&self.holders),
            pulse: Arc::new(Alive),
            report: Arc::new(move |report| {
                let id = match report {
                    Report::Stored(receipt) => receipt.transfer,
                    Report::Failed(failure) => failure.transfer,
                    Report::Progress(_) | Report::Skipped { .. } | Report::Relayed { .. } => return,
                };
                assert!(ended.take().insert(id), "a transfer ends twice");
            }),
            wake: Arc::new(|| ()),
            violated: Box::new(move |_| violated.store(true, Ordering::SeqCst)),
            ids: Arc::clone(&self.ids),
        });
        Sender {
            inbound,
            has_violated,
            is_honest: true,
            transfers: BTreeMap::new(),
            last_number: 0,
            credit: 0,
            sent: 0,
        }
    }

    fn offer(&mut self, sender: &mut Sender) -> Result<(), Error> {
        let (kind, content, lie) = (self.bytes.one_of(&[0, 0, 0, 2, 1, 3]), self.bytes.u8() % 4, self.bytes.u8());
        let path = match self.bytes.below(16) {
            0 => self.bytes.string(),
            choice => [
                &b"a"[..],
                b"a.b",
                b"d/a",
                b"d/e/f",
                b"there",
                b"large",
                b"link/a",
                b"link",
                b"../a",
                b"d",
                b".postwire-0123456789abcdef-0.part",
                b"there/a",
            ][choice % 12]
                .to_vec(),
        };
        let size =
            self.bytes.one_of(&[5, 0, 1, 300, BLOCK + 100, BLOCK, BLOCK + 1, 2 * BLOCK, MAX_FILE_BYTES, u64::MAX]);
        let (size, seconds) = (if kind == 0 { size } else { 0 }, self.bytes.u8() % 2);
        if self.offers >= OFFERS {
            return Ok(());
        }
        self.offers += 1;
        // A stream's size is told at its end.
        let true_size = if kind == 2 { u64::from(lie) * BLOCK / 60 } else { size };
        let mut number = sender.last_number + 1;
        let mut content_crc = 0;
        if kind == 0 && size <= BLOCK {
            content_crc = crc32fast::hash(self.place.content(content, size));
        }
        match lie {
            0xf0 if kind != 2 => number = sender.last_number,
            0xf1 if kind != 2 => number += 77,
            0xf2 if kind != 2 => content_crc ^= 1,
            _ => {}
        }
        sender.is_honest &= number > sender.last_number && lie != 0xf2;
        let mtime = Time { seconds: seconds.into(), nanoseconds: 0 };
        let (request, relay, item) = (0, 0, 0);
        let offer = Offer { transfer: number, kind, size, mtime, mode: 0o644, content_crc, request, relay, item, path };
        sender.inbound.on_offer(offer)?;
        sender.last_number = number;
        let transfer = Transfer {
            kind,
            size: true_size,
            content,
            state: State::Offered,
            sent: 0,
            received: 0,
            next: 0,
            sums: 0,
            repairs: Vec::new(),
            finish: None,
        };
        sender.transfers.insert(number, transfer);
        Ok(())
    }

    /// What an honest sender says next of one of its transfers; sometimes of other content than it offered.
    fn send_next(&mut self, sender: &mut Sender) -> Result<(), Error> {
        let (choice, how) = (self.bytes.u8(), self.bytes.u8());
        let Some(number) = sender.pick(choice) else { return Ok(()) };
        let most = [BLOCK, BLOCK / 4, BLOCK / 16, 100][usize::from(how % 4)];
        let content = if how & 0xf0 == 0xf0 { 1 } else { 0 };
        self.step(sender, number, most, content, how & 0xf0 == 0xe0).map(drop)
    }

    /// One step of a transfer; `false` when there is none. `change` makes it other content, which is a lie.
    fn step(
        &mut self,
        sender: &mut Sender,
        number: u32,
        most: u64,
        change: u8,
        is_damaged: bool,
    ) -> Result<bool, Error> {
        let (credit, transfer) = (sender.credit - sender.sent, sender.transfers.get_mut(&number).unwrap());
        let State::Sending { have } = transfer.state else { return Ok(false) };
        let content = self.place.content(transfer.content.wrapping_add(change), transfer.size);
        let blocks = if transfer.kind == 2 { 0 } else { have.div_ceil(block_bytes(transfer.size)) };
        if transfer.sums < blocks {
            let block = usize::try_from(block_bytes(transfer.size)).unwrap();
            let crcs: Vec<u32> = content[..usize::try_from(have).unwrap()].chunks(block).map(crc32fast::hash).collect();
            sender.is_honest &= change == 0;
            transfer.sums = blocks;
            sender.inbound.on_sums(number, 0, crcs)?;
            return Ok(true);
        }
        let (offset, length) = match transfer.repairs.last() {
            Some(&range) => range,
            None => (transfer.next, transfer.size.saturating_sub(transfer.next)),
        };
        if length > 0 {
            let length = length.min(most).min(credit);
            if length == 0 {
                return Ok(false);
            }
            sender.is_honest &= change == 0;
            match transfer.repairs.last_mut() {
                Some((at, left)) if *left > length => (*at, *left) = (*at + length, *left - length),
                Some(_) => drop(transfer.repairs.pop()),
                None => transfer.next += length,
            }
            transfer.sent += length;
            sender.sent += length;
            let start = usize::try_from(offset).unwrap();
            let data = content[start..start + usize::try_from(length).unwrap()].to_vec();
            if is_damaged {
                sender.inbound.on_damaged_chunk(number, offset, data.len())?;
            } else {
                let crc = crc32fast::hash(&data);
                sender.inbound.on_chunk(Chunk { transfer: number, offset, crc, data })?;
            }
            return Ok(true);
        }
        if transfer.finish.is_some() {
            return Ok(false);
        }
        sender.is_honest &= change == 0;
        let finish = (transfer.size, crc32fast::hash(content));
        transfer.finish = Some(finish);
        self.finished.insert(finish);
        sender.inbound.on_finish(number, finish.0, finish.1, false)?;
        Ok(true)
    }

    /// Data that nobody asked for, perhaps.
    fn send_any(&mut self, sender: &mut Sender) -> Result<(), Error> {
        let (number, offset) =
            (sender.any_number(self.bytes.u8()), self.bytes.one_of(&[0, 5, BLOCK, 1 << 63, u64::MAX]));
        let (offset, data) = (offset.saturating_add(self.bytes.u8().into()), self.bytes.string());
        sender.is_honest = false;
        let length = u64::try_from(data.len()).unwrap();
        if let Some(transfer) = sender.transfers.get_mut(&number) {
            transfer.sent += length;
        }
        sender.sent = sender.credit.min(sender.sent + length);
        if self.bytes.u8() & 1 == 1 {
            return sender.inbound.on_damaged_chunk(number, offset, data.len());
        }
        sender.inbound.on_chunk(Chunk { transfer: number, offset, crc: crc32fast::hash(&data), data })
    }

    fn sums_any(&mut self, sender: &mut Sender) -> Result<(), Error> {
        let (number, first_block) = (sender.any_number(self.bytes.u8()), u32::from(self.bytes.u8() % 8));
        sender.is_honest = false;
        sender.inbound.on_sums(number, first_block, vec![self.bytes.u32(); 1 + self.bytes.below(4)])
    }

    fn finish_any(&mut self, sender: &mut Sender) -> Result<(), Error> {
        let (number, how) = (sender.any_number(self.bytes.u8()), self.bytes.u8());
        sender.is_honest = false;
        let right = sender.transfers.get(&number).map_or((0, 0), |transfer| {
            (transfer.size, crc32fast::hash(self.place.content(transfer.content, transfer.size)))
        });
        let size = if how & 1 == 1 { u64::from(self.bytes.u16()) } else { right.0 };
        let crc = if how & 2 == 2 { self.bytes.u32() } else { right.1 };
        self.finished.insert((size, crc));
        if let Some(transfer) = sender.transfers.get_mut(&number) {
            transfer.finish.get_or_insert((size, crc));
        }
        sender.inbound.on_finish(number, size, crc, how & 4 == 4)
    }

    fn cancel(&mut self, sender: &mut Sender) -> Result<(), Error> {
        let choice = self.bytes.u8();
        let Some(number) = sender.pick(choice) else { return Ok(()) };
        if let Some(transfer) = sender.transfers.get_mut(&number) {
            transfer.state = State::Cancelled;
        }
        sender.inbound.on_cancel(number)
    }

    /// All threads do what they have, and what they say is heard.
    fn work(&mut self, sender: &mut Sender) {
        while held::run(0) || held::run_waiting() {}
        self.listen(sender);
    }

    /// An honest sender goes on to the end of all its transfers, and gets there.
    fn end(&mut self, sender: &mut Sender) {
        self.work(sender);
        if sender.has_violated.load(Ordering::SeqCst) || !sender.is_honest {
            assert!(!sender.is_honest, "an honest sender is told of a violation");
            return;
        }
        // What the other one holds it may keep: of places, of credit, of partials.
        loop {
            let numbers: Vec<u32> = sender.transfers.keys().copied().collect();
            let mut has_moved = false;
            for number in numbers {
                while self.step(sender, number, BLOCK, 0, false).expect("an honest sender") {
                    has_moved = true;
                    self.work(sender);
                }
            }
            if !has_moved {
                break;
            }
        }
        self.work(sender);
        assert!(!sender.has_violated.load(Ordering::SeqCst), "an honest sender is told of a violation");
        if self.budget.is_lent() {
            // The other connection has it all.
            return;
        }
        for (number, transfer) in &sender.transfers {
            let has_ended = matches!(transfer.state, State::Ended | State::Cancelled);
            assert!(has_ended, "transfer {number} is left as {:?}, finished {:?}", transfer.state, transfer.finish);
        }
    }

    /// What is said to the sender keeps the rules.
    fn listen(&mut self, sender: &mut Sender) {
        // Who broke a rule is only told so.
        while !sender.has_violated.load(Ordering::SeqCst) {
            let mut out = Vec::new();
            sender.inbound.control(&mut out);
            if out.is_empty() {
                return;
            }
            let mut decoder = Decoder::for_server();
            super::wire::greet(&mut decoder);
            let mut rest = &out[..];
            while !rest.is_empty() {
                let (count, frame) = decoder.decode(rest).unwrap();
                rest = &rest[count..];
                let Some(Frame::Message(message)) = frame else { panic!("no whole message") };
                self.hear(sender, message);
            }
        }
    }

    fn hear(&mut self, sender: &mut Sender, message: Message) {
        let number = match &message {
            Message::Send { transfer, .. } | Message::Ack { transfer, .. } | Message::Repair { transfer, .. } => {
                *transfer
            }
            Message::Receipt(receipt) => receipt.transfer,
            Message::Refused { subject: Subject::Transfer(number), .. } => *number,
            other => panic!("a receiver says {other:?}"),
        };
        let has_open = sender.transfers.values().any(|transfer| matches!(transfer.state, State::Sending { .. }));
        let transfer = sender.transfers.get_mut(&number).expect("an answer to what was never offered");
        if let Message::Send { credit, .. } | Message::Ack { credit, .. } = message {
            // Whoever is given less than it has sent waits; what is void is void.
            if has_open && transfer.state != State::Cancelled {
                sender.credit = sender.credit.max(credit);
            } else if transfer.state != State::Cancelled {
                sender.credit = credit.max(sender.sent);
            }
        }
        if transfer.state == State::Cancelled {
            return;
        }
        assert_ne!(transfer.state, State::Ended, "{message:?} after the end");
        match message {
            Message::Send { have, .. } => {
                assert_eq!(transfer.state, State::Offered, "SEND twice");
                let is_block = have % block_bytes(transfer.size) == 0 && transfer.size > BLOCK_BYTES_LEAST;
                assert!(
                    transfer.kind == 2 || have == 0 || have <= transfer.size && (is_block || have == transfer.size)
                );
                assert!(transfer.kind == 2 || transfer.size > BLOCK_BYTES_LEAST || have == 0);
                transfer.state = State::Sending { have };
                transfer.next = have;
                if transfer.kind == 2 && have > transfer.size {
                    // Another stream of this name and time: this one can't go on there.
                    transfer.state = State::Cancelled;
                    let _ = sender.inbound.on_cancel(number);
                }
            }
            Message::Ack { received, .. } => {
                // Who sends before it is asked to may be told that it came.
                let was_asked = matches!(transfer.state, State::Sending { .. });
                assert!(was_asked || !sender.is_honest, "ACK before SEND");
                assert!((transfer.received..=transfer.sent).contains(&received), "ACK for what was not sent");
                transfer.received = received;
            }
            Message::Repair { offset, length, .. } => {
                let was_asked = matches!(transfer.state, State::Sending { .. });
                assert!(was_asked || !sender.is_honest, "REPAIR before SEND");
                let end = if transfer.kind == 2 { transfer.next.max(transfer.sent) } else { transfer.size };
                let is_inside = offset.checked_add(length).is_some_and(|until| until <= end);
                assert!(length > 0 && (is_inside || !sender.is_honest), "REPAIR outside the file");
                if is_inside && offset + length <= transfer.size {
                    transfer.repairs.push((offset, length));
                }
                assert!(transfer.repairs.len() <= REPAIRS_MAX, "more REPAIRs than may be open");
            }
            Message::Receipt(receipt) => {
                let stored = SafePath::parse(&receipt.stored).expect("a safe name");
                assert!(transfer.finish.is_some() || receipt.already || transfer.kind == 1, "a RECEIPT before FINISH");
                if transfer.kind != 1 {
                    // What was there already has a CRC of its own, whatever FINISH says.
                    let there = (transfer.size, receipt.crc);
                    let finish = transfer.finish.filter(|_| !receipt.already).unwrap_or(there);
                    assert_eq!((receipt.size, receipt.crc), finish, "a RECEIPT for something else");
                    assert!(self.finished.contains(&finish), "a RECEIPT for what was never finished");
                    if self.if_exists != IfExists::Replace {
                        let path = stored.names().iter().map(crate::name::SafeName::as_os_str);
                        let content = fs::read(self.place.root.join("in").join(path.collect::<PathBuf>())).unwrap();
                        assert_eq!(u64::try_from(content.len()).unwrap(), receipt.size);
                        assert_eq!(crc32fast::hash(&content), receipt.crc, "{stored} is not what was sent");
                    }
                }
                assert!(receipt.resumed <= receipt.size);
                transfer.state = State::Ended;
            }
            _ => transfer.state = State::Ended,
        }
    }
}

impl Sender {
    /// One that has not ended.
    fn pick(&self, choice: u8) -> Option<u32> {
        let is_open = |transfer: &Transfer| !matches!(transfer.state, State::Ended | State::Cancelled);
        let open: Vec<u32> = self.transfers.iter().filter(|(_, transfer)| is_open(transfer)).map(|(n, _)| *n).collect();
        open.get(usize::from(choice) % open.len().max(1)).copied()
    }

    /// One that there may be.
    fn any_number(&self, choice: u8) -> u32 {
        match choice {
            0xf0.. => u32::from(choice) << 24 | 0xff_ffff,
            _ => u32::from(choice) % (self.last_number + 2),
        }
    }
}
