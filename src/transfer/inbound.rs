//! All files on their way in on one connection.
//!
//! The session's reader passes messages in and never waits: what touches the disk is done by this connection's disk thread, in
//! order. What is to be said to the peer is kept as state and taken out by whoever has the send turn ([`Inbound::control`]).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::budget::Budget;
use super::compare::{Compare, Compared};
use super::holders::{Hold, Holders, Pulse};
use super::incoming::{Incoming, Stage};
use super::ledger::Ledger;
use super::{
    Arrived, Direction, Kind, Receipt, Relaying, Report, RequestId, Requests, TransferFailure, TransferIds, Way,
};
use crate::config::{
    CHUNK_BYTES_LEAST, OPEN_TRANSFERS_MAX, RELAYS_MAX, SMALL_FILES_BEGUN_MAX, SPARES_MAX, SPARE_SHARE_LEAST,
};
use crate::error::{Error, Refusal, Result};
use crate::name::SafePath;
use crate::storage::{Committed, Existing, Failure, Meta, Pipe, Store};
use crate::wire::{self, Chunk, Message, Offer, Subject};
use crate::worker::{Lock, Worker};

/// What [`Inbound`] needs from above.
pub(crate) struct InboundContext {
    /// `None` refuses files, but for one that goes into a pipe.
    pub(crate) store: Option<Arc<Store>>,
    /// Takes one file instead of the store.
    pub(crate) pipe: Option<Pipe>,
    pub(crate) budget: Arc<Budget>,
    /// How many offers may be open, as the peer was told.
    pub(crate) offers_max: u32,
    /// The longest chunk, as the peer was told.
    pub(crate) chunk_bytes_max: u32,
    /// Whether files are taken that were not asked for.
    pub(crate) takes_offers: bool,
    /// What was asked for.
    pub(crate) requests: Arc<Requests>,
    /// Takes what is for others; `None` refuses it.
    pub(crate) relaying: Option<Arc<dyn Relaying>>,
    /// Shared by all connections.
    pub(crate) holders: Arc<Holders>,
    /// This connection, for the others.
    pub(crate) pulse: Arc<dyn Pulse>,
    /// Hears what becomes of each file.
    pub(crate) report: Arc<dyn Fn(Report) + Send + Sync>,
    /// There is something to say.
    pub(crate) wake: Arc<dyn Fn() + Send + Sync>,
    /// The peer broke a rule.
    pub(crate) violated: Box<dyn Fn(Error) + Send + Sync>,
    pub(crate) ids: Arc<TransferIds>,
}

/// See the module.
pub(crate) struct Inbound {
    inner: Arc<Inner>,
}

struct Inner {
    context: InboundContext,
    ledger: Mutex<Ledger>,
    /// Buffers of chunks that are written, for the next ones.
    spares: Mutex<Vec<Vec<u8>>>,
    /// Those that offers may name.
    relays: Mutex<VecDeque<Arc<wire::Relay>>>,
    /// The connection is gone.
    closed: AtomicBool,
    /// Used by the disk thread alone, but for the end.
    files: Mutex<Files>,
    disk: OnceLock<Worker<Job>>,
    compare: OnceLock<Worker<(u32, Compare)>>,
    settle: OnceLock<Worker<(u32, Meta)>>,
}

#[derive(Default)]
struct Files {
    open: HashMap<u32, Incoming>,
    /// Larger files that are received or compared.
    large: usize,
    waiting: VecDeque<u32>,
    /// Small files that are begun: each holds a partial.
    small: BTreeSet<u32>,
    /// Open ones that are no directories, and directories that wait for their end.
    plain: usize,
    directories: VecDeque<u32>,
}

impl Files {
    /// Whether data for `number` would begin one small file too many.
    fn is_one_too_many(&self, number: u32) -> bool {
        let begins = |file: &Incoming| file.meta.is_small() && matches!(file.stage, Stage::Receiving(None));
        self.small.len() >= SMALL_FILES_BEGUN_MAX && self.open.get(&number).is_some_and(begins)
    }
}

/// What a file is offered for.
enum Why {
    /// For this side, unasked.
    Own,
    /// It answers this.
    Request(RequestId),
    /// For others.
    Relay(Arc<wire::Relay>),
}

enum Job {
    Offer(Offer, Why),
    /// Nobody else is to be waited for.
    Settled {
        number: u32,
    },
    /// It has one of the open places now.
    Placed {
        number: u32,
    },
    Chunk(Chunk),
    Damaged {
        number: u32,
        offset: u64,
        length: u64,
    },
    Sums {
        number: u32,
        first_block: u32,
        crcs: Vec<u32>,
    },
    Finish {
        number: u32,
        size: u64,
        crc: u32,
        grew: bool,
    },
    Cancel {
        number: u32,
    },
    Compared {
        number: u32,
        compared: Compared,
    },
    Committed {
        number: u32,
        result: std::result::Result<Committed, Failure>,
    },
}

impl Inbound {
    pub(crate) fn new(context: InboundContext) -> Inbound {
        let inner = Arc::new(Inner {
            ledger: Mutex::new(Ledger::new(Arc::clone(&context.budget), Arc::clone(&context.wake), context.offers_max)),
            spares: Mutex::default(),
            relays: Mutex::default(),
            closed: AtomicBool::new(false),
            context,
            files: Mutex::default(),
            disk: OnceLock::new(),
            compare: OnceLock::new(),
            settle: OnceLock::new(),
        });
        let weak = Arc::downgrade(&inner);
        let disk = Worker::new("disk", 64, move |jobs: Vec<Job>| {
            if let Some(inner) = weak.upgrade() {
                jobs.into_iter().for_each(|job| inner.work(job));
                inner.context.store.iter().for_each(|store| store.rest());
                (inner.context.wake)();
                inner.context.budget.wake_waiting();
            }
        });
        let weak = Arc::downgrade(&inner);
        let compare = Worker::new("compare", 1, move |jobs: Vec<(u32, Compare)>| {
            for (number, compare) in jobs {
                // The partial in it is let go before the disk thread hears of it.
                let compared = compare.run();
                post(&weak, Job::Compared { number, compared });
            }
        });
        let weak = Arc::downgrade(&inner);
        let settle = Worker::new("settle", 1, move |jobs: Vec<(u32, Meta)>| {
            for (number, meta) in jobs {
                let Some(holders) = weak.upgrade().map(|inner| Arc::clone(&inner.context.holders)) else { return };
                holders.settle(&meta, || weak.upgrade().is_none_or(|inner| inner.closed.load(Ordering::SeqCst)));
                post(&weak, Job::Settled { number });
            }
        });
        // Fresh cells take a value.
        let _ = inner.disk.set(disk);
        let _ = inner.compare.set(compare);
        let _ = inner.settle.set(settle);
        Inbound { inner }
    }

    /// PROTOCOL 5.1 and 5.4: an offer came.
    ///
    /// # Errors
    /// [`Error::Violation`], here and in the others.
    pub(crate) fn on_offer(&self, mut offer: Offer) -> Result<()> {
        self.inner.ledger.take().offered(offer.transfer, offer.path.len())?;
        let why = match (offer.request, offer.relay) {
            (0, 0) => Why::Own,
            (request, 0) => {
                let (id, path) = self.inner.context.requests.name_here(request, &offer.path)?;
                offer.path = path;
                Why::Request(id)
            }
            (_, relay) => {
                let relays = self.inner.relays.take();
                let known = relays.iter().rev().find(|known| known.relay == relay && offer.request == 0);
                Why::Relay(known.cloned().ok_or(Error::violation("11.2", "an OFFER under a RELAY never said"))?)
            }
        };
        self.post(Job::Offer(offer, why))
    }

    /// PROTOCOL 11.1: who offers under this number are for.
    pub(crate) fn on_relay(&self, relay: wire::Relay) {
        let mut relays = self.inner.relays.take();
        if relays.len() >= RELAYS_MAX {
            relays.pop_front();
        }
        relays.push_back(Arc::new(relay));
    }

    /// How long the next chunk may be: PEER's limit, within the credit (PROTOCOL 6.2).
    pub(crate) fn chunk_bytes_max(&self) -> usize {
        let room = self.inner.ledger.take().room();
        usize::try_from(room.min(self.inner.context.chunk_bytes_max.into())).unwrap_or(usize::MAX)
    }

    /// PROTOCOL 6.1 and 6.2: data came.
    pub(crate) fn on_chunk(&self, chunk: Chunk) -> Result<()> {
        let length = u64::try_from(chunk.data.len()).unwrap_or(u64::MAX);
        if self.inner.ledger.take().arrived(chunk.transfer, length)? {
            self.post(Job::Chunk(chunk))
        } else {
            Ok(())
        }
    }

    /// Whether few connections share the memory, so that each may be generous with it.
    pub(crate) fn is_roomy(&self) -> bool {
        self.inner.context.budget.share() >= SPARE_SHARE_LEAST
    }

    /// Gives buffers whose memory the next chunks may take.
    pub(crate) fn spares(&self) -> impl FnMut() -> Option<Vec<u8>> + Send + 'static {
        let inner = Arc::downgrade(&self.inner);
        move || inner.upgrade()?.spares.take().pop()
    }

    /// PROTOCOL 1.5: data came damaged.
    pub(crate) fn on_damaged_chunk(&self, number: u32, offset: u64, length: usize) -> Result<()> {
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        let known = self.inner.ledger.take().arrived(number, length)?;
        if known {
            self.post(Job::Damaged { number, offset, length })
        } else {
            Ok(())
        }
    }

    /// PROTOCOL 6.5.
    pub(crate) fn on_sums(&self, number: u32, first_block: u32, crcs: Vec<u32>) -> Result<()> {
        self.inner.ledger.take().known(number)?;
        self.post(Job::Sums { number, first_block, crcs })
    }

    /// PROTOCOL 6.7.
    pub(crate) fn on_finish(&self, number: u32, size: u64, crc: u32, grew: bool) -> Result<()> {
        self.inner.ledger.take().known(number)?;
        self.post(Job::Finish { number, size, crc, grew })
    }

    /// PROTOCOL 6.10.
    pub(crate) fn on_cancel(&self, number: u32) -> Result<()> {
        {
            let mut ledger = self.inner.ledger.take();
            ledger.known(number)?;
            ledger.is_over(number);
        }
        self.post(Job::Cancel { number })
    }

    /// Appends what is to be said: answers first, then acknowledgements; about 32 KiB at a time.
    pub(crate) fn control(&self, out: &mut Vec<u8>) {
        self.inner.ledger.take().control(out);
    }

    /// Whether nothing is open and nothing is left to say.
    pub(crate) fn is_idle(&self) -> bool {
        self.inner.ledger.take().is_idle()
    }

    /// Whether [`Inbound::control`] would add nothing.
    pub(crate) fn has_nothing_to_say(&self) -> bool {
        self.inner.ledger.take().has_nothing_to_say()
    }

    /// Whether no file is being committed and nothing is left to say, after the peer's GOODBYE.
    pub(crate) fn owes_nothing(&self) -> bool {
        let committing = |file: &Incoming| matches!(file.stage, Stage::Committing { .. });
        self.has_nothing_to_say() && self.inner.files.try_lock().is_ok_and(|files| !files.open.values().any(committing))
    }

    /// The connection is gone: lets go of every file. Commits under way still end.
    pub(crate) fn close(&self) {
        let inner = &self.inner;
        inner.closed.store(true, Ordering::SeqCst);
        inner.ledger.take().close();
        let files = std::mem::take(&mut *inner.files.take());
        files.open.values().for_each(Incoming::keep_whole);
        drop(files);
        inner.context.budget.wake_waiting();
    }

    fn post(&self, job: Job) -> Result<()> {
        let Some(disk) = self.inner.disk.get() else { return Ok(()) };
        disk.push(job).map_err(Error::system("start a thread"))
    }
}

/// Gives the disk thread a job, unless the connection is gone.
fn post(inner: &Weak<Inner>, job: Job) {
    let Some(inner) = inner.upgrade() else { return };
    if let Some(disk) = inner.disk.get() {
        if let Err(error) = disk.push(job) {
            (inner.context.violated)(Error::System { action: "start a thread", source: error });
        }
    }
}

impl Inner {
    fn work(self: &Arc<Self>, job: Job) {
        if self.closed.load(Ordering::SeqCst) {
            return;
        }
        let mut files = self.files.take();
        let result = match job {
            Job::Offer(offer, why) => {
                self.offered(&mut files, offer, &why);
                Ok(())
            }
            Job::Settled { number } => {
                self.begin(&mut files, number);
                Ok(())
            }
            Job::Placed { number } => {
                self.settle(&mut files, number);
                Ok(())
            }
            Job::Chunk(mut chunk) => {
                let result = self.chunk(&mut files, &chunk);
                self.spare(&files, std::mem::take(&mut chunk.data));
                result
            }
            Job::Damaged { number, offset, length } => self.damaged(&mut files, number, offset, length),
            Job::Sums { number, first_block, crcs } => self.sums(&mut files, number, first_block, crcs),
            Job::Finish { number, size, crc, grew } => self.finish(&mut files, number, size, crc, grew),
            Job::Cancel { number } => {
                self.fail(&mut files, number, Error::GivenUp);
                Ok(())
            }
            Job::Compared { number, compared } => self.compared(&mut files, number, compared),
            Job::Committed { number, result } => {
                self.committed(&mut files, number, result);
                Ok(())
            }
        };
        drop(files);
        if let Err(error) = result {
            (self.context.violated)(error);
        }
    }

    fn offered(self: &Arc<Self>, files: &mut Files, offer: Offer, why: &Why) {
        let number = offer.transfer;
        let path = SafePath::parse(&offer.path);
        let id = self.context.ids.next();
        let kind = Kind::from_wire(offer.kind);
        let is_for_others = matches!(why, Why::Relay(_));
        let request = match why {
            Why::Request(id) => Some(*id),
            _ => None,
        };
        let has_no_place = self.context.store.is_none() && self.context.pipe.is_none();
        let refusal = match (why, &path) {
            (Why::Own, _) if has_no_place || !self.context.takes_offers => Some(Refusal::NoDirectory),
            _ if kind.is_none() => Some(Refusal::Unsupported),
            _ if kind == Some(Kind::Directory) && self.context.pipe.is_some() && !is_for_others => {
                Some(Refusal::Unsupported)
            }
            (_, Err(_)) => Some(Refusal::BadName),
            _ => None,
        };
        let Ok(path) = path.map_err(|_| ()).or_else(|()| SafePath::parse(b"unsafe-name")) else { return };
        let kind = kind.unwrap_or_default();
        let meta = Meta {
            path,
            size: if kind == Kind::Stream { Meta::UNKNOWN_SIZE } else { offer.size },
            mtime: offer.mtime.into(),
            mode: offer.mode,
            content_crc: offer.content_crc,
            is_stream: kind == Kind::Stream,
        };
        let passage = if refusal.is_none() { self.passage(why, offer.item, kind, &meta) } else { Ok(None) };
        let mut file = Incoming::new(id, kind, request, meta);
        let large = file.is_large();
        let refusal = match passage {
            Ok(Some(Way::Through(passage))) => {
                file.meta.path = passage.place().1.clone();
                file.passage = Some(passage);
                refusal
            }
            Ok(Some(Way::Known(arrived, relayed))) => {
                self.reply_receipt(number, true, arrived.size, &Arrived { stored: file.meta.path, ..arrived });
                relayed.into_iter().for_each(|relayed| self.reply(Message::Relayed(relayed)));
                return self.ledger.take().ended(number);
            }
            Ok(None) if request.is_some() && has_no_place => Some(Refusal::NoDirectory),
            Ok(None) => refusal,
            Err(refusal) => Some(refusal),
        };
        files.plain += usize::from(kind != Kind::Directory);
        files.open.insert(number, file);
        if let Some(refusal) = refusal {
            return self.refuse(files, number, Failure { refusal, cause: None });
        }
        if large && files.large >= OPEN_TRANSFERS_MAX {
            files.waiting.push_back(number);
            return;
        }
        files.large += usize::from(large);
        self.settle(files, number);
    }

    /// How a file goes on, where it is not for this side.
    fn passage(&self, why: &Why, item: u32, kind: Kind, meta: &Meta) -> std::result::Result<Option<Way>, Refusal> {
        match (why, &self.context.relaying) {
            (Why::Relay(relay), Some(relaying)) => relaying.offered(relay, item, kind, meta).map(Some),
            (Why::Relay(_), None) => Err(Refusal::NoRelay),
            (Why::Request(request), _) if !self.context.requests.is_wanted(*request) => Err(Refusal::Nobody),
            (Why::Request(request), Some(relaying)) => {
                relaying.asked_for(*request, kind, meta).transpose().map(|passage| passage.map(Way::Through))
            }
            _ => Ok(None),
        }
    }

    /// Begins when nobody else is receiving this file, or those who are were asked.
    fn settle(self: &Arc<Self>, files: &mut Files, number: u32) {
        let Some(file) = files.open.get_mut(&number) else { return };
        // It has its place, which it gives back however it ends.
        file.stage = Stage::Settling;
        if !self.context.holders.is_held(&file.meta) {
            return self.begin(files, number);
        }
        let meta = file.meta.clone();
        if self.settle.get().is_none_or(|worker| worker.push((number, meta)).is_err()) {
            self.begin(files, number);
        }
    }

    /// Answers an offer: there already, SEND, or REFUSED.
    fn begin(self: &Arc<Self>, files: &mut Files, number: u32) {
        let Some(file) = files.open.get_mut(&number) else { return };
        // PROTOCOL 5.6: what comes into it would change its time.
        if file.kind == Kind::Directory && files.plain > 0 {
            return files.directories.push_back(number);
        }
        if let (None, Some(pipe)) = (&file.passage, &self.context.pipe) {
            return self.begin_piping(files, number, pipe);
        }
        if file.passage.is_some() && file.kind == Kind::Directory {
            // Nothing of it is to be kept but what the offer says.
            let stored = file.meta.path.clone();
            return self.committed(files, number, Ok(Committed { stored, already: false, durable: true }));
        }
        let Some(store) = &self.store_of(file) else { return };
        if file.kind == Kind::Directory {
            match store.make_directory(&file.meta.path) {
                Ok(directory) => {
                    file.stage = Stage::Committing { crc: 0 };
                    self.context.budget.begin_commit();
                    store.finish_directory(directory, &file.meta, self.done(number, file));
                }
                Err(failure) => self.refuse(files, number, failure),
            }
            return;
        }
        let hold = Arc::new(self.context.holders.hold(&file.meta, &self.context.pulse));
        file.hold = Some(hold);
        let answer = (|| {
            let candidates = store.admit(&file.meta)?;
            if file.meta.is_small() {
                if let Some(existing) = Existing::find_equal_small(candidates, &file.meta) {
                    return Ok(Some(existing));
                }
                if store.refuses_name(&file.meta)? {
                    return Err(Refusal::Exists.into());
                }
                file.stage = Stage::Receiving(None);
            } else if candidates.is_empty() {
                let partial = store.open_partial(&file.meta)?;
                file.have = partial.have();
                file.stage = Stage::Receiving(Some(Arc::new(partial)));
            } else {
                file.have = file.meta.size;
                file.stage = Stage::Candidates(candidates);
            }
            Ok(None)
        })();
        match answer {
            Err(failure) => self.refuse(files, number, failure),
            Ok(Some(existing)) => {
                let crc = file.meta.content_crc;
                self.confirm(file, number, existing, crc);
            }
            Ok(None) => {
                self.reply(Message::Send { transfer: number, have: file.have, credit: 0 });
                self.read_prefix(file, number);
            }
        }
    }

    fn begin_piping(self: &Arc<Self>, files: &mut Files, number: u32, pipe: &Pipe) {
        let Some(file) = files.open.get_mut(&number) else { return };
        match pipe.open(&file.meta) {
            Ok(have) => {
                file.have = have;
                file.stage = Stage::Piping(pipe.clone());
                if file.kind == Kind::Stream && have > 0 {
                    // Nothing is there yet, so nothing overlaps.
                    let _ = file.coverage.add(0, have, pipe.crc());
                }
                self.reply(Message::Send { transfer: number, have, credit: 0 });
            }
            Err(failure) => self.refuse(files, number, failure),
        }
    }

    /// What came of a stream on an earlier connection is there, and has no sums.
    fn read_prefix(&self, file: &mut Incoming, number: u32) {
        let Stage::Receiving(Some(partial)) = &file.stage else { return };
        if file.kind != Kind::Stream || file.have == 0 {
            return;
        }
        let (partial, hold) = (Arc::clone(partial), file.hold.clone());
        file.comparing += 1;
        if let Err(error) = self.compare(number, Compare::Prefix { partial, hold, length: file.have }) {
            (self.context.violated)(error);
        }
    }

    /// An equal file was there, as far as its blocks tell; FINISH has to say the same.
    fn confirm_equal(self: &Arc<Self>, files: &mut Files, number: u32, existing: Existing, crc: u32) {
        match files.open.get_mut(&number) {
            Some(file) if file.finish.is_some_and(|(expected, _)| expected == crc) => {
                self.confirm(file, number, existing, crc);
            }
            _ => self.refuse(files, number, Refusal::Damaged.into()),
        }
    }

    fn confirm(self: &Arc<Self>, file: &mut Incoming, number: u32, existing: Existing, crc: u32) {
        let Some(store) = &self.store_of(file) else { return };
        file.stage = Stage::Committing { crc };
        self.context.budget.begin_commit();
        store.confirm(existing, self.done(number, file));
    }

    /// Where a file is stored: with what goes on to others, or in the side's own store.
    fn store_of(&self, file: &Incoming) -> Option<Arc<Store>> {
        let passed_on = file.passage.as_ref().map(|passage| passage.place().0);
        passed_on.or(self.context.store.as_ref()).cloned()
    }

    fn done(self: &Arc<Self>, number: u32, file: &Incoming) -> crate::storage::Done {
        if let Some(hold) = &file.hold {
            hold.commits();
        }
        let unrun = Unrun {
            inner: Arc::downgrade(self),
            budget: Arc::clone(&self.context.budget),
            _hold: file.hold.clone(),
            number,
            ran: false,
        };
        Box::new(move |result| unrun.run(result))
    }

    /// Keeps a buffer for the next chunk, where few connections share the memory; and none when nothing is open.
    fn spare(&self, files: &Files, buffer: Vec<u8>) {
        let mut spares = self.spares.take();
        if !files.open.is_empty() && spares.len() < self.spares_max() {
            spares.push(buffer);
        }
    }

    fn spares_max(&self) -> usize {
        usize::try_from(self.context.budget.share() / SPARE_SHARE_LEAST).unwrap_or(SPARES_MAX).min(SPARES_MAX)
    }

    fn chunk(self: &Arc<Self>, files: &mut Files, chunk: &Chunk) -> Result<()> {
        let length = u64::try_from(chunk.data.len()).unwrap_or(u64::MAX);
        let number = chunk.transfer;
        if files.is_one_too_many(number) {
            return self.damaged(files, number, chunk.offset, length);
        }
        let written = (|| {
            let Some(file) = files.open.get_mut(&number) else { return Ok(Ok(())) };
            file.expect_chunk(chunk.offset, length)?;
            if let Stage::Piping(pipe) = &file.stage {
                let written = file.piped(pipe.write_at(chunk.offset, &chunk.data), chunk)?;
                self.tell_progress(file);
                return Ok(written);
            }
            let Some(store) = &self.store_of(file) else { return Ok(Ok(())) };
            let Stage::Receiving(partial) = &mut file.stage else {
                return Err(Error::violation("6.1", "CHUNK that was not asked for"));
            };
            if partial.is_none() {
                files.small.insert(number);
            }
            if file.kind == Kind::Stream {
                if let Err(failure) = store.check_size(chunk.offset + length) {
                    return Ok(Err(failure));
                }
            }
            let written = match partial {
                Some(partial) => partial.write_at(chunk.offset, &chunk.data),
                None => store.open_partial(&file.meta).and_then(|new| {
                    let new = partial.insert(Arc::new(new));
                    new.write_at(chunk.offset, &chunk.data)
                }),
            };
            if written.is_ok() {
                file.came(chunk)?;
                self.tell_progress(file);
            }
            Ok(written)
        })()?;
        self.settled(number, length);
        match written {
            Err(failure) => self.refuse(files, number, failure),
            Ok(()) => self.advance(files, number)?,
        }
        Ok(())
    }

    fn damaged(self: &Arc<Self>, files: &mut Files, number: u32, offset: u64, length: u64) -> Result<()> {
        let Some(file) = files.open.get_mut(&number) else {
            self.settled(number, length);
            return Ok(());
        };
        file.expect_chunk(offset, length)?;
        let damaged = file.chunk_damaged(offset, length);
        match damaged {
            Ok(()) => self.ask(file, number),
            Err(refusal) => self.refuse(files, number, Failure { refusal, cause: None }),
        }
        self.settled(number, length);
        Ok(())
    }

    fn sums(self: &Arc<Self>, files: &mut Files, number: u32, first_block: u32, crcs: Vec<u32>) -> Result<()> {
        let Some(file) = files.open.get_mut(&number) else { return Ok(()) };
        file.expect_sums(first_block, crcs.len())?;
        let all = file.all_sums_received();
        if let Stage::Piping(pipe) = &file.stage {
            let pipe = pipe.clone();
            if !file.compare_piped(&pipe, first_block, &crcs) {
                self.refuse(files, number, Refusal::Damaged.into());
            }
            return Ok(());
        }
        let compare = match &mut file.stage {
            Stage::Receiving(Some(partial)) => Compare::Partial {
                partial: Arc::clone(partial),
                hold: file.hold.clone(),
                first_block: first_block.into(),
                crcs,
            },
            Stage::Candidates(candidates) => {
                file.sums.extend(crcs);
                if !all {
                    return Ok(());
                }
                Compare::Existing { candidates: std::mem::take(candidates), crcs: std::mem::take(&mut file.sums) }
            }
            _ => return Err(Error::violation("6.5", "SUMS that were not asked for")),
        };
        file.comparing += 1;
        self.compare(number, compare)
    }

    fn compare(&self, number: u32, compare: Compare) -> Result<()> {
        let Some(worker) = self.compare.get() else { return Ok(()) };
        worker.push((number, compare)).map_err(Error::system("start a thread"))
    }

    fn compared(self: &Arc<Self>, files: &mut Files, number: u32, compared: Compared) -> Result<()> {
        let Some(file) = files.open.get_mut(&number) else { return Ok(()) };
        file.comparing -= 1;
        match compared {
            Compared::Partial(blocks) => {
                for (index, crc) in blocks {
                    let (offset, length) = file.block_range(index);
                    match crc {
                        // Half of the gaps are left to what is damaged on its way; what is past them is sent again.
                        Some(crc)
                            if !file.coverage.is_half_full() && file.coverage.add(offset, length, crc).is_ok() => {}
                        _ => file.want(offset, length),
                    }
                }
                self.ask(file, number);
                self.advance(files, number)
            }
            Compared::Prefix { length, crc } => {
                match crc {
                    Some(crc) if file.coverage.add(0, length, crc).is_ok() => self.advance(files, number)?,
                    _ => self.refuse(files, number, Refusal::Failed.into()),
                }
                Ok(())
            }
            Compared::Existing(Ok((existing, crc))) => {
                match file.finish {
                    Some(_) => self.confirm_equal(files, number, existing, crc),
                    None => file.stage = Stage::Equal(existing, crc),
                }
                Ok(())
            }
            Compared::Existing(Err(sums)) => self.receive_after_all(files, number, sums),
        }
    }

    /// Nothing that was there is equal: the data is wanted, but for what a partial holds.
    fn receive_after_all(self: &Arc<Self>, files: &mut Files, number: u32, mut sums: Vec<u32>) -> Result<()> {
        let Some(file) = files.open.get_mut(&number) else { return Ok(()) };
        let Some(store) = &self.store_of(file) else { return Ok(()) };
        let partial = match store.open_partial(&file.meta) {
            Ok(partial) => Arc::new(partial),
            Err(failure) => {
                self.refuse(files, number, failure);
                return Ok(());
            }
        };
        let held = partial.have();
        let blocks = usize::try_from(held.div_ceil(file.block_bytes())).unwrap_or(usize::MAX);
        sums.truncate(blocks);
        file.stage = Stage::Receiving(Some(Arc::clone(&partial)));
        if held < file.meta.size {
            file.want(held, file.meta.size - held);
        }
        self.ask(file, number);
        if sums.is_empty() {
            return Ok(());
        }
        file.comparing += 1;
        let hold = file.hold.clone();
        self.compare(number, Compare::Partial { partial, hold, first_block: 0, crcs: sums })
    }

    fn finish(self: &Arc<Self>, files: &mut Files, number: u32, size: u64, crc: u32, grew: bool) -> Result<()> {
        let Some(file) = files.open.get_mut(&number) else { return Ok(()) };
        if file.kind == Kind::Stream && size >= file.have + file.travelled {
            file.meta.size = size;
        }
        if size != file.meta.size || file.finish.is_some() || matches!(file.stage, Stage::Waiting | Stage::Settling) {
            return Err(Error::violation("6.7", "FINISH with another size, twice, or unasked"));
        }
        file.finish = Some((crc, grew));
        match std::mem::replace(&mut file.stage, Stage::Waiting) {
            Stage::Equal(existing, crc) => {
                self.confirm_equal(files, number, existing, crc);
                Ok(())
            }
            stage => {
                file.stage = stage;
                self.advance(files, number)
            }
        }
    }

    /// Commits a file when it is complete; asks for more of it when it is not.
    fn advance(self: &Arc<Self>, files: &mut Files, number: u32) -> Result<()> {
        let Some(file) = files.open.get_mut(&number) else { return Ok(()) };
        if !matches!(file.stage, Stage::Receiving(_) | Stage::Piping(_)) || file.finish.is_none() || file.comparing > 0
        {
            return Ok(());
        }
        let Some((crc, expected)) = file.complete() else {
            self.ask(file, number);
            let awaits = file.awaits_more();
            return if awaits { Ok(()) } else { Err(Error::violation("6.7", "FINISH before everything was sent")) };
        };
        files.small.remove(&number);
        let partial = match std::mem::replace(&mut file.stage, Stage::Committing { crc }) {
            Stage::Receiving(partial) => partial,
            Stage::Piping(pipe) => {
                let stored = file.meta.path.clone();
                let written = pipe.finish().map(|()| Committed { stored, already: false, durable: false });
                let result = if crc == expected { written } else { Err(Refusal::Damaged.into()) };
                self.committed(files, number, result);
                return Ok(());
            }
            _ => return Ok(()),
        };
        let Some(store) = &self.store_of(file) else { return Ok(()) };
        if crc != expected {
            partial.iter().for_each(|partial| partial.discard());
            self.refuse(files, number, Failure { refusal: Refusal::Damaged, cause: None });
            return Ok(());
        }
        let partial = match partial {
            Some(partial) => Arc::try_unwrap(partial).map_err(|_| Refusal::Failed),
            None => match store.open_partial(&file.meta) {
                Ok(partial) => Ok(partial),
                Err(failure) => {
                    self.refuse(files, number, failure);
                    return Ok(());
                }
            },
        };
        match partial {
            Ok(mut partial) => {
                partial.ends_at(file.meta.size);
                self.context.budget.begin_commit();
                store.commit(partial, file.meta.clone(), self.done(number, file));
            }
            Err(refusal) => self.refuse(files, number, Failure { refusal, cause: None }),
        }
        Ok(())
    }

    fn committed(self: &Arc<Self>, files: &mut Files, number: u32, result: std::result::Result<Committed, Failure>) {
        let committed = match result {
            Ok(committed) => committed,
            Err(failure) => return self.refuse(files, number, failure),
        };
        let Some(file) = files.open.get_mut(&number) else { return };
        let crc = match file.stage {
            Stage::Committing { crc } => crc,
            _ if file.kind == Kind::Directory => 0,
            _ => return,
        };
        let size = if file.kind == Kind::Directory { 0 } else { file.meta.size };
        let resumed = size.saturating_sub(file.travelled);
        let stored = committed.stored.to_bytes();
        let arrived = Arrived { size, crc, durable: committed.durable, stored: committed.stored };
        if let Some(mut passage) = file.passage.take() {
            if let Err(refusal) = passage.arrived(arrived.clone()) {
                return self.refuse(files, number, refusal.into());
            }
            let stored = passage.name().clone();
            self.reply_receipt(number, committed.already, resumed, &Arrived { stored, ..arrived });
            // Directories wait for the end of all files, here and where they go on to.
            passage.go_on();
            return self.end(files, number);
        }
        let report = Receipt {
            transfer: file.id,
            direction: Direction::Incoming,
            kind: file.kind,
            request: file.request,
            peer: None,
            address: None,
            source: None,
            name: file.meta.path.to_bytes(),
            stored,
            bytes: size,
            crc32: crc,
            durable: committed.durable,
            already: committed.already,
            resumed_bytes: resumed,
            grew: file.finish.is_some_and(|(_, grew)| grew),
            elapsed: file.started.elapsed(),
        };
        self.reply_receipt(number, committed.already, resumed, &arrived);
        (self.context.report)(Report::Stored(report));
        self.end(files, number);
    }

    fn reply_receipt(&self, number: u32, already: bool, resumed: u64, arrived: &Arrived) {
        self.reply(Message::Receipt(wire::Receipt {
            transfer: number,
            durable: arrived.durable,
            already,
            size: arrived.size,
            resumed,
            crc: arrived.crc,
            stored: arrived.stored.to_bytes(),
        }));
    }

    fn refuse(self: &Arc<Self>, files: &mut Files, number: u32, failure: Failure) {
        self.reply(Message::Refused { subject: Subject::Transfer(number), refusal: failure.refusal });
        self.fail(files, number, failure.cause.unwrap_or(Error::Refused(failure.refusal)));
    }

    fn fail(self: &Arc<Self>, files: &mut Files, number: u32, error: Error) {
        let Some(file) = files.open.get(&number) else { return };
        (self.context.report)(Report::Failed(TransferFailure {
            transfer: file.id,
            direction: Direction::Incoming,
            peer: None,
            request: file.request,
            source: None,
            name: file.offered_name(),
            error,
        }));
        self.end(files, number);
    }

    /// Forgets a transfer, and lets the next waiting one begin.
    fn end(self: &Arc<Self>, files: &mut Files, number: u32) {
        let Some(file) = files.open.remove(&number) else { return };
        files.waiting.retain(|&other| other != number);
        files.directories.retain(|&other| other != number);
        files.small.remove(&number);
        self.ledger.take().ended(number);
        if file.is_large() && !matches!(file.stage, Stage::Waiting) {
            files.large = files.large.saturating_sub(1);
        }
        if files.large < OPEN_TRANSFERS_MAX {
            if let Some(next) = files.waiting.pop_front() {
                files.large += 1;
                if let Some(file) = files.open.get_mut(&next) {
                    file.stage = Stage::Settling;
                }
                // Not at once: when it is refused it ends too, and so may thousands behind it.
                post(&Arc::downgrade(self), Job::Placed { number: next });
            }
        }
        if files.open.is_empty() {
            self.spares.take().clear();
        }
        files.plain -= usize::from(file.kind != Kind::Directory);
        if files.plain == 0 {
            std::mem::take(&mut files.directories).into_iter().for_each(|directory| self.begin(files, directory));
        }
    }

    fn tell_progress(&self, file: &mut Incoming) {
        if let Some(progress) = file.progress() {
            (self.context.report)(Report::Progress(progress));
        }
    }

    fn ask(&self, file: &mut Incoming, number: u32) {
        for (offset, length) in file.ask() {
            self.reply(Message::Repair { transfer: number, offset, length });
        }
    }

    fn reply(&self, message: Message) {
        self.ledger.take().reply(message);
    }

    /// Chunk bytes of a transfer are written, or found damaged: they are acknowledged, and give room.
    fn settled(&self, number: u32, length: u64) {
        self.ledger.take().settled(number, length);
        // What small files are owed goes out together, when the disk thread has done what waits for it.
        if length > u64::try_from(CHUNK_BYTES_LEAST).unwrap_or(u64::MAX) {
            (self.context.wake)();
        }
    }
}

/// Tells of a commit's end, also when no thread could be had for it and it was dropped.
struct Unrun {
    inner: Weak<Inner>,
    budget: Arc<Budget>,
    /// The storage lets go of the partial before this.
    _hold: Option<Arc<Hold>>,
    number: u32,
    ran: bool,
}

impl Unrun {
    fn run(mut self, result: std::result::Result<Committed, Failure>) {
        self.ran = true;
        self.budget.end_commit();
        post(&self.inner, Job::Committed { number: self.number, result });
    }
}

impl Drop for Unrun {
    fn drop(&mut self) {
        if !self.ran {
            self.budget.end_commit();
            let result = Err(Failure { refusal: Refusal::Failed, cause: None });
            post(&self.inner, Job::Committed { number: self.number, result });
        }
    }
}
