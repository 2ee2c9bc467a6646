//! All files on their way to one peer, over as many connections as that takes.
//!
//! The session's writer calls [`Outbound::fill`], which reads files; the session's reader passes in the answers, which never
//! waits for a disk. A new connection offers everything again that has no receipt ([`Outbound::attach`]).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::outgoing::{Content, Finishing, Offered, Opening, Outgoing, Phase, Purpose, Step};
use super::pace::Pace;
use super::window::Window;
use super::{Direction, Kind, Listed, Receipt, Report, TransferFailure, TransferId, TransferIds};
use crate::config::{
    block_bytes, BLOCK_BYTES_LEAST, CHUNK_BYTES_MAX, OFFER_PATH_BYTES, OPEN_TRANSFERS_MAX, OUTCOMES_DUE_MAX,
    RELAYS_MAX, RELAY_NICKNAMES_BYTES_MAX, REQUESTS_MAX, SUMS_PER_FRAME, TREE_STEP,
};
use crate::error::{Error, Refusal, Result};
use crate::name::SafePath;
use crate::storage::{self, Found, Held, Named, Origin, Shared, Stream, Tree};
use crate::wire::{self, seal_chunk, CancelReason, Message, Subject, CHUNK_HEAD_BYTES};
use crate::worker::{Lock, Signal, Worker};

/// See the module.
pub(crate) struct Outbound {
    state: Mutex<State>,
    report: Box<dyn Fn(Report) + Send + Sync>,
    ids: Arc<TransferIds>,
    pace: Arc<Pace>,
    /// What was ready is on its way, or its connection is gone.
    drained: Signal,
    /// Reads what the other side holds already, one file at a time.
    sums: OnceLock<Worker<Sums>>,
}

/// A file whose first blocks the other side holds.
struct Sums {
    epoch: u32,
    number: u32,
    id: TransferId,
    origin: Origin,
    offered: Offered,
    have: u64,
}

struct State {
    files: BTreeMap<TransferId, Outgoing>,
    /// Not offered on this connection yet, in order.
    waiting: VecDeque<TransferId>,
    /// Trees that are not walked through yet, with the transfer of their top.
    trees: VecDeque<(TransferId, Tree)>,
    /// The tree that is walked through right now.
    walking: Option<TransferId>,
    /// Directories not offered yet, in order. They follow all files.
    directories: VecDeque<TransferId>,
    /// Answered with SEND and not finished: small ones one after the other, the others, and what is asked for again, in turn.
    sending: VecDeque<TransferId>,
    sending_small: VecDeque<TransferId>,
    /// Which of the two had the last turn.
    was_small: bool,
    /// Outcomes that are to come of what was offered for others.
    outcomes: usize,
    link: Option<Link>,
    /// Counts connections, so that what an old one's thread finds out late is dropped.
    epoch: u32,
}

/// What belongs to one connection.
struct Link {
    wake: Arc<dyn Fn() + Send + Sync>,
    offers_max: usize,
    chunk_bytes_max: u64,
    /// Transfer numbers of this connection (PROTOCOL 5.1).
    numbers: HashMap<u32, TransferId>,
    last_number: u32,
    /// Bytes of the offered paths of `numbers`.
    path_bytes: usize,
    window: Window,
    pace: Arc<Pace>,
    sent: u64,
    credit: u64,
    /// SUMS, CANCEL and answers to requests, ready to go.
    ready: VecDeque<Message>,
    /// The RELAYs that offers may name (PROTOCOL 11.1).
    relays: VecDeque<u32>,
    last_request: u32,
    /// Requests of the other side whose end was not said yet.
    asked: BTreeMap<u32, Asked>,
}

/// A file or directory that came for others, and is handed on.
#[derive(Clone)]
pub(crate) struct Parcel {
    pub(crate) kind: Kind,
    pub(crate) name: SafePath,
    pub(crate) mtime: storage::Time,
    pub(crate) mode: u32,
    pub(crate) held: Arc<Held>,
}

impl Parcel {
    fn outgoing(&self, id: TransferId, purpose: Purpose) -> Outgoing {
        let content = match self.kind {
            Kind::Directory => {
                let path = self.held.origin().path();
                Content::Directory { path, mtime: self.mtime, mode: self.mode, is_top: false }
            }
            Kind::File | Kind::Stream => Content::File(self.held.origin()),
        };
        Outgoing::new(id, purpose, &self.name, content).holding(Arc::clone(&self.held))
    }
}

/// A request of the other side.
#[derive(Default)]
struct Asked {
    /// Transfers that answer it and have not ended.
    open: usize,
    left_out: u32,
    failed: u32,
}

/// What [`Outbound::fill`] does next, outside the lock.
enum Work {
    Walk { top: TransferId, tree: Tree },
    Offer { id: TransferId, content: Content },
    Chunk { number: u32, id: TransferId, offset: u64, length: u64, source: Opening },
    Finish { number: u32, id: TransferId, source: Finishing },
}

impl Outbound {
    /// Nothing to send yet. `report` hears what becomes of each file.
    pub(crate) fn new(
        ids: Arc<TransferIds>,
        pace: Arc<Pace>,
        report: impl Fn(Report) + Send + Sync + 'static,
    ) -> Outbound {
        let state = State {
            files: BTreeMap::new(),
            waiting: VecDeque::new(),
            trees: VecDeque::new(),
            walking: None,
            directories: VecDeque::new(),
            sending: VecDeque::new(),
            sending_small: VecDeque::new(),
            was_small: false,
            outcomes: 0,
            link: None,
            epoch: 0,
        };
        let report = Box::new(report);
        Outbound { state: Mutex::new(state), report, ids, pace, drained: Signal::new(), sums: OnceLock::new() }
    }

    /// Takes what a path leads to: a file, a tree or a stream, to be sent under `name`. Of a tree it gives the transfer of the
    /// top, which ends last.
    ///
    /// # Errors
    /// [`Error::File`] where it can't be read.
    pub(crate) fn add_path(&self, path: &Path, name: &SafePath, relay: Option<Arc<wire::Relay>>) -> Result<TransferId> {
        let purpose = relay.map_or(Purpose::Own, Purpose::Relay);
        Ok(match Named::look(path)? {
            Named::File(origin) => self.add(purpose, name, Content::File(origin)),
            Named::Tree(top) => self.add_tree(purpose, Tree::new(top, name.clone())?),
            Named::Stream(stream) => self.add(purpose, name, Content::Stream(Arc::new(stream))),
        })
    }

    /// Takes a stream to send under `name`.
    pub(crate) fn add_stream(&self, stream: Stream, name: &SafePath, relay: Option<Arc<wire::Relay>>) -> TransferId {
        let purpose = relay.map_or(Purpose::Own, Purpose::Relay);
        self.add(purpose, name, Content::Stream(Arc::new(stream)))
    }

    /// Takes what somebody else sent, to be handed on as transfer `id`.
    pub(crate) fn hand_on(&self, id: TransferId, parcel: &Parcel) {
        let file = parcel.outgoing(id, Purpose::Own);
        self.state.take().add(file);
        self.wake();
    }

    /// PROTOCOL 9.2: as [`Outbound::hand_on`], for a request of the other side on that connection.
    pub(crate) fn hand_on_asked(&self, epoch: u32, number: u32, parcel: &Parcel) {
        {
            let mut state = self.state.take();
            if state.epoch != epoch || state.link.is_none() {
                return;
            }
            state.add(parcel.outgoing(self.ids.next(), Purpose::Request(number)));
        }
        self.wake();
    }

    /// A transfer is not wanted any more; nobody hears of it.
    pub(crate) fn withdraw(&self, id: TransferId) {
        {
            let mut state = self.state.take();
            state.cancel(id, CancelReason::GivenUp);
            state.remove(id);
        }
        self.wake();
    }

    fn add_tree(&self, purpose: Purpose, tree: Tree) -> TransferId {
        let id = self.ids.next();
        {
            let mut state = self.state.take();
            let top = Content::Directory { path: tree.path(), mtime: storage::Time::default(), mode: 0, is_top: true };
            state.insert(Outgoing::new(id, purpose, tree.name(), top));
            state.trees.push_back((id, tree));
        }
        self.wake();
        id
    }

    fn add(&self, purpose: Purpose, name: &SafePath, content: Content) -> TransferId {
        let id = self.ids.next();
        self.state.take().add(Outgoing::new(id, purpose, name, content));
        self.wake();
        id
    }

    /// PROTOCOL 9.1: the other side asks for something; gives the connection that it did so on.
    ///
    /// # Errors
    /// [`Error::Violation`].
    pub(crate) fn asked(&self, number: u32) -> Result<u32> {
        let mut state = self.state.take();
        let epoch = state.epoch;
        let Some(link) = &mut state.link else { return Ok(epoch) };
        if number <= link.last_request {
            return Err(Error::violation("9.1", "a request number used twice"));
        }
        if link.asked.len() >= REQUESTS_MAX {
            return Err(Error::violation("9.1", "too many open requests"));
        }
        link.last_request = number;
        link.asked.insert(number, Asked::default());
        Ok(epoch)
    }

    /// PROTOCOL 9.2: what was asked for is offered.
    pub(crate) fn answer_get(&self, epoch: u32, number: u32, shared: Shared) {
        if self.state.take().epoch != epoch {
            return;
        }
        match shared {
            Shared::File(origin, name) => self.add(Purpose::Request(number), &name, Content::File(origin)),
            Shared::Tree(tree) => self.add_tree(Purpose::Request(number), tree),
        };
    }

    /// Whether the next request's answer is to be made: once the last one is on its way, on the connection that asked.
    pub(crate) fn is_awaited(&self, epoch: u32) -> bool {
        self.wait_until_drained(epoch)
    }

    /// PROTOCOL 9.4: what was asked for is told.
    pub(crate) fn answer_list(&self, epoch: u32, number: u32, entries: &[Listed], more: bool) {
        let entries = entries.iter().map(|entry| {
            Message::Entry(wire::Entry {
                request: number,
                kind: entry.kind.to_wire(),
                size: entry.size_bytes,
                mtime: wire::Time { seconds: entry.mtime_seconds, nanoseconds: 0 },
                path: entry.path.to_bytes(),
            })
        });
        let ended = Message::Ended { request: number, more, left_out: 0, failed: 0 };
        self.put_ready(epoch, entries.chain([ended]));
    }

    /// PROTOCOL 9.2 and 9.4: it is not to be had.
    pub(crate) fn refuse_request(&self, epoch: u32, number: u32, refusal: Refusal) {
        let refused = Message::Refused { subject: Subject::Request(number), refusal };
        self.put_ready(epoch, [refused]);
    }

    /// PROTOCOL 11.6: others are asked for what was asked here; its end comes with [`Outbound::handed_on`].
    pub(crate) fn ask_others(&self, epoch: u32, number: u32) {
        let mut state = self.state.take();
        if state.epoch == epoch {
            state.count(number, |asked| asked.open += 1);
        }
    }

    /// PROTOCOL 9.3: others have offered all of it.
    pub(crate) fn handed_on(&self, epoch: u32, number: u32, left_out: u32, failed: u32) {
        {
            let mut state = self.state.take();
            if state.epoch != epoch {
                return;
            }
            state.count(number, |asked| {
                asked.left_out = asked.left_out.saturating_add(left_out);
                asked.failed = asked.failed.saturating_add(failed);
            });
            state.end_answered(number);
        }
        self.wake();
    }

    /// PROTOCOL 11.6: others won't give it; what they gave before counts.
    pub(crate) fn not_handed_on(&self, epoch: u32, number: u32, refusal: Refusal) {
        let has_begun = {
            let state = self.state.take();
            let asked = state.link.as_ref().and_then(|link| link.asked.get(&number));
            asked.is_some_and(|asked| asked.open > 1) && state.epoch == epoch
        };
        if has_begun {
            self.handed_on(epoch, number, 0, 1);
        } else {
            self.refuse_request(epoch, number, refusal);
        }
    }

    fn put_ready(&self, epoch: u32, messages: impl IntoIterator<Item = Message>) {
        {
            let mut state = self.state.take();
            let current = state.epoch == epoch;
            let Some(link) = state.link.as_mut().filter(|_| current) else { return };
            link.ready.extend(messages);
        }
        self.wake();
    }

    /// A connection stands: everything without a receipt is offered on it. `wake` is called when there is something to send.
    pub(crate) fn attach(&self, peer: &wire::Peer, wake: Arc<dyn Fn() + Send + Sync>) {
        let mut state = self.state.take();
        state.epoch += 1;
        state.link = Some(Link {
            wake,
            offers_max: usize::try_from(peer.offers).unwrap_or(usize::MAX),
            chunk_bytes_max: u64::from(peer.chunk_bytes),
            numbers: HashMap::new(),
            last_number: 0,
            path_bytes: 0,
            window: Window::new(),
            pace: Arc::clone(&self.pace),
            sent: 0,
            credit: 0,
            ready: VecDeque::new(),
            relays: VecDeque::new(),
            last_request: 0,
            asked: BTreeMap::new(),
        });
        state.sending.clear();
        state.sending_small.clear();
        state.outcomes = 0;
        state.forget_requested();
        for file in state.files.values_mut() {
            file.phase = Phase::Waiting;
        }
        state.line_up();
        drop(state);
        self.drained.notify_all();
    }

    /// The connection is gone.
    pub(crate) fn detach(&self) {
        let mut state = self.state.take();
        state.link = None;
        state.forget_requested();
        drop(state);
        self.drained.notify_all();
    }

    /// Waits until what is ready is on its way, so that no more than one answer is ever kept; `false` when the connection is gone.
    fn wait_until_drained(&self, epoch: u32) -> bool {
        let is_current = |state: &State| state.epoch == epoch && state.link.is_some();
        let waits = |state: &mut State| is_current(state) && state.link.iter().any(|link| !link.ready.is_empty());
        let state = self.drained.wait_while(self.state.take(), waits).unwrap_or_else(PoisonError::into_inner);
        is_current(&state)
    }

    /// Whether every file has its receipt or failed.
    pub(crate) fn is_idle(&self) -> bool {
        self.state.take().files.is_empty()
    }

    /// Ends every file that is left; `error` says why, once for each.
    pub(crate) fn fail_all(&self, error: impl Fn() -> Error) {
        let files = {
            let mut state = self.state.take();
            state.waiting.clear();
            state.trees.clear();
            state.directories.clear();
            state.sending.clear();
            state.sending_small.clear();
            state.outcomes = 0;
            std::mem::take(&mut state.files)
        };
        for (_, file) in files {
            file.close();
            (self.report)(Report::Failed(file.failure(error())));
        }
    }

    /// Whether [`Outbound::fill`] would find something to do.
    pub(crate) fn has_work(&self) -> bool {
        self.state.take().has_work()
    }

    /// How long the pace holds back chunks, where it does.
    pub(crate) fn pause(&self) -> Option<Duration> {
        Some(self.pace.pause(Instant::now())).filter(|pause| !pause.is_zero())
    }

    /// Whether anything is under way on this connection, so that more work may come soon.
    pub(crate) fn is_active(&self) -> bool {
        let state = self.state.take();
        state.link.is_some() && !state.files.is_empty()
    }

    /// Appends one step's frames to `out`, reading files where it must: SUMS and CANCEL, an offer, a chunk or the end of one
    /// file. Gives `false` when there is nothing to do now.
    pub(crate) fn fill(self: &Arc<Self>, out: &mut Vec<u8>) -> bool {
        let (work, epoch) = {
            let mut state = self.state.take();
            let Some(link) = &mut state.link else { return false };
            if let Some(message) = link.ready.pop_front() {
                if let Message::Ended { request, .. } | Message::Refused { subject: Subject::Request(request), .. } =
                    &message
                {
                    link.asked.remove(request);
                }
                message.encode(out);
                if link.ready.is_empty() {
                    self.drained.notify_all();
                }
                return true;
            }
            (state.pick(), state.epoch)
        };
        match work {
            None => return false,
            Some(Work::Walk { top, tree }) => self.walk(top, tree),
            Some(Work::Offer { id, content }) => self.offer(epoch, id, content, out),
            Some(Work::Chunk { number, id, offset, length, source }) => {
                if let Err(error) = self.chunk(epoch, number, id, offset, length, source, out) {
                    self.fail(epoch, id, error);
                }
            }
            Some(Work::Finish { number, id, source }) => {
                if let Err(error) = self.finish(epoch, number, id, &source, out) {
                    self.fail(epoch, id, error);
                }
            }
        }
        true
    }

    /// Goes on through a tree, a few entries at a time.
    fn walk(&self, top: TransferId, mut tree: Tree) {
        let purpose = self.state.take().files.get(&top).map(|file| file.purpose.clone());
        let is_through = purpose.is_none_or(|purpose| self.walk_on(top, &purpose, &mut tree));
        {
            let mut state = self.state.take();
            state.walking = None;
            if !is_through && state.files.contains_key(&top) {
                state.trees.push_front((top, tree));
            }
        }
        // Another connection may have come meanwhile.
        self.wake();
    }

    /// Gives whether the top was reached, which is the last.
    fn walk_on(&self, top: TransferId, purpose: &Purpose, tree: &mut Tree) -> bool {
        let request = purpose.request();
        for found in tree.take(TREE_STEP) {
            match found {
                Found::File { origin, name } => self.found(purpose, &name, Content::File(origin)),
                Found::Directory { name, path, mtime, mode, is_top } => {
                    let content = Content::Directory { path, mtime, mode, is_top };
                    if !is_top {
                        self.found(purpose, &name, content);
                        continue;
                    }
                    let state = &mut *self.state.take();
                    if let Some(file) = state.files.get_mut(&top) {
                        file.content = content;
                        state.directories.push_back(top);
                    }
                    return true;
                }
                Found::Skipped { path, why } => {
                    self.state.take().count(request, |asked| asked.left_out = asked.left_out.saturating_add(1));
                    (self.report)(Report::Skipped { path, why });
                }
                Found::Unreadable { path, name, error } => {
                    self.state.take().count(request, |asked| asked.failed = asked.failed.saturating_add(1));
                    (self.report)(Report::Failed(TransferFailure {
                        transfer: self.ids.next(),
                        direction: Direction::Outgoing,
                        peer: None,
                        request: None,
                        source: Some(path),
                        name: name.to_bytes(),
                        error,
                    }));
                }
            }
        }
        false
    }

    fn found(&self, purpose: &Purpose, name: &SafePath, content: Content) {
        let file = Outgoing::new(self.ids.next(), purpose.clone(), name, content);
        self.state.take().add(file);
    }

    fn offer(self: &Arc<Self>, epoch: u32, id: TransferId, content: Content, out: &mut Vec<u8>) {
        let (content, offered, mode) = match self.look_at(content) {
            Ok(looked) => looked,
            Err(error) => return self.fail(epoch, id, error),
        };
        let state = &mut *self.state.take();
        if state.epoch != epoch {
            return;
        }
        let (Some(link), Some(file)) = (&mut state.link, state.files.get_mut(&id)) else { return };
        if let Purpose::Relay(relay) = &file.purpose {
            link.say_relay(relay, out);
        }
        link.last_number += 1;
        link.path_bytes += file.name.len();
        link.numbers.insert(link.last_number, id);
        file.phase = Phase::Offered;
        file.number = link.last_number;
        file.offered = offered.clone();
        file.content = content;
        state.outcomes += file.outcomes_due();
        let offer = wire::Offer {
            transfer: link.last_number,
            kind: file.content.kind().to_wire(),
            size: offered.size,
            mtime: offered.mtime,
            mode,
            content_crc: offered.content_crc,
            request: file.request(),
            relay: file.purpose.relay(),
            item: id,
            path: file.name.clone(),
        };
        Message::Offer(offer).encode(out);
    }

    /// What is to be offered. A file whose size says nothing of it is a stream.
    fn look_at(self: &Arc<Self>, content: Content) -> Result<(Content, Offered, u32)> {
        let content = match content {
            Content::File(origin) => {
                let source = origin.open()?;
                if !source.is_stream() {
                    let mut offered = Offered { size: source.size(), mtime: source.mtime().into(), content_crc: 0 };
                    if offered.size <= BLOCK_BYTES_LEAST {
                        offered.content_crc = source.block_crc(0, &mut Vec::new())?;
                    }
                    return Ok((Content::File(origin), offered, source.mode()));
                }
                Content::Stream(Arc::new(source.into_stream()))
            }
            other => other,
        };
        let (offered, mode) = match &content {
            Content::Stream(stream) => {
                let this = Arc::downgrade(self);
                let wake = move || this.upgrade().iter().for_each(|this| this.wake());
                stream.begin(wake)?;
                (Offered { size: 0, mtime: stream.mtime().into(), content_crc: stream.stamp() }, stream.mode())
            }
            Content::Directory { mtime, mode, .. } => {
                (Offered { size: 0, mtime: (*mtime).into(), content_crc: 0 }, *mode)
            }
            Content::File(_) => (Offered::default(), 0),
        };
        Ok((content, offered, mode))
    }

    #[allow(clippy::too_many_arguments)]
    fn chunk(
        &self,
        epoch: u32,
        number: u32,
        id: TransferId,
        offset: u64,
        length: u64,
        source: Opening,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let source = match source {
            Opening::Open(source) => Opening::Open(source),
            Opening::Origin(origin, offered) => {
                Opening::Open(Arc::new(origin.reopen(offered.size, offered.mtime.into())?))
            }
            stream => stream,
        };
        let start = out.len();
        let size = usize::try_from(length).unwrap_or(CHUNK_BYTES_MAX);
        out.resize(start + CHUNK_HEAD_BYTES, 0);
        let read = match &source {
            Opening::Open(source) => source.append_from(offset, size, out),
            Opening::Stream(stream) => {
                out.resize(start + CHUNK_HEAD_BYTES + size, 0);
                stream.read_at(offset, out.get_mut(start + CHUNK_HEAD_BYTES..).unwrap_or_default())
            }
            Opening::Origin(..) => Ok(()),
        };
        if let Err(error) = read {
            out.truncate(start);
            return Err(error);
        }
        let (_, frame) = out.split_at_mut(start);
        let crc = seal_chunk(frame, number, offset);
        let mut state = self.state.take();
        let state = &mut *state;
        let current = state.epoch == epoch;
        let sending = state.files.get_mut(&id).filter(|_| current).and_then(Outgoing::sending);
        let (Some(sending), Some(link)) = (sending, &mut state.link) else {
            // The transfer ended while its data was read.
            out.truncate(start);
            return Ok(());
        };
        if let Opening::Open(source) = source {
            sending.source = Some(source);
        }
        sending.chunk_sent(offset, length, crc);
        link.sent += length;
        let now = Instant::now();
        link.window.sent(length, now);
        link.pace.sent(length, now);
        Ok(())
    }

    /// PROTOCOL 6.7: everything was sent once. Looks whether the source is still what was offered.
    fn finish(&self, epoch: u32, number: u32, id: TransferId, source: &Finishing, out: &mut Vec<u8>) -> Result<()> {
        let grew = match source {
            Finishing::Source(source) => source.check()?,
            Finishing::Stream(stream) => {
                stream.check()?;
                false
            }
            Finishing::Nothing => false,
        };
        let mut state = self.state.take();
        let current = state.epoch == epoch;
        let Some(file) = state.files.get_mut(&id).filter(|_| current) else { return Ok(()) };
        let (mut size, content_crc, small) = (file.offered.size, file.offered.content_crc, file.is_small());
        let path = file.content.path().unwrap_or_default();
        let Some(sending) = file.sending() else { return Ok(()) };
        if matches!(source, Finishing::Stream(_)) {
            size = sending.reached();
        }
        let Some(crc) = sending.whole_crc(size) else { return Ok(()) };
        if small && crc != content_crc {
            return Err(Error::SourceChanged { path });
        }
        sending.grew = grew;
        if small {
            // Thousands may wait for their receipts; a REPAIR opens it again.
            sending.source = None;
        }
        sending.finished();
        Message::Finish { transfer: number, size, crc, grew }.encode(out);
        Ok(())
    }

    /// A file can't be sent any more: CANCEL to the peer where it knows of it, the reason to the application.
    fn fail(&self, epoch: u32, id: TransferId, error: Error) {
        let file = {
            let mut state = self.state.take();
            let reason = match error {
                Error::SourceChanged { .. } => CancelReason::Changed,
                _ => CancelReason::Unreadable,
            };
            if state.epoch == epoch {
                state.cancel(id, reason);
            }
            let request = state.files.get(&id).map_or(0, Outgoing::request);
            state.count(request, |asked| asked.failed = asked.failed.saturating_add(1));
            state.remove(id)
        };
        if let Some(file) = file {
            file.close();
            (self.report)(Report::Failed(file.failure(error)));
        }
    }

    /// PROTOCOL 5.5: the peer wants the data.
    ///
    /// # Errors
    /// [`Error::Violation`], here and in the other answers.
    pub(crate) fn on_send(self: &Arc<Self>, number: u32, have: u64, credit: u64) -> Result<()> {
        let mut state = self.state.take();
        let Some(id) = state.answered(number)? else { return Ok(()) };
        let epoch = state.epoch;
        if let Some(link) = &mut state.link {
            link.credit = credit;
        }
        let is_large = |file: &Outgoing| !file.is_small() && !file.is_directory();
        let is_open = |file: &&Outgoing| is_large(file) && matches!(file.phase, Phase::Sending(_));
        if state.files.get(&id).is_some_and(is_large)
            && state.files.values().filter(is_open).count() >= OPEN_TRANSFERS_MAX
        {
            return Err(Error::violation("5.4", "more larger files at once than a receiver may have open"));
        }
        let Some(file) = state.files.get_mut(&id) else { return Ok(()) };
        match file.begin(have) {
            Ok(()) => {}
            Err(error @ Error::StreamLost) => {
                drop(state);
                self.fail(epoch, id, error);
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let begun = match &file.content {
            Content::File(origin) if have > 0 => Some((origin.clone(), file.offered.clone())),
            _ => None,
        };
        let line = if file.is_small() { &mut state.sending_small } else { &mut state.sending };
        line.push_back(id);
        drop(state);
        if let Some((origin, offered)) = begun {
            let this = Arc::downgrade(self);
            let sums = self.sums.get_or_init(|| {
                Worker::new("sums", 1, move |jobs: Vec<Sums>| {
                    let Some(this) = this.upgrade() else { return };
                    for job in jobs {
                        let (epoch, id) = (job.epoch, job.id);
                        if let Err(error) = this.send_sums(job) {
                            this.fail(epoch, id, error);
                            this.wake();
                        }
                    }
                })
            });
            if let Err(error) = sums.push(Sums { epoch, number, id, origin, offered, have }) {
                self.fail(epoch, id, Error::System { action: "start a thread", source: error });
            }
        }
        Ok(())
    }

    /// PROTOCOL 6.5: reads the blocks that the receiver holds and tells their CRCs, beside the new data.
    fn send_sums(&self, Sums { epoch, number, id, origin, offered, have }: Sums) -> Result<()> {
        let source = origin.reopen(offered.size, offered.mtime.into())?;
        let block = block_bytes(offered.size);
        let blocks = have.div_ceil(block);
        let mut buffer = Vec::new();
        let mut whole = 0;
        let mut index = 0;
        while index < blocks {
            let first_block = u32::try_from(index).unwrap_or(u32::MAX);
            let mut crcs = Vec::new();
            while index < blocks && crcs.len() < SUMS_PER_FRAME {
                if self.state.take().epoch != epoch {
                    return Ok(());
                }
                let crc = source.block_crc(index, &mut buffer)?;
                whole = super::combine_crc(whole, crc, block.min(have - index * block));
                crcs.push(crc);
                index += 1;
            }
            if !self.wait_until_drained(epoch) {
                return Ok(());
            }
            let mut state = self.state.take();
            let current = state.epoch == epoch;
            let Some(link) = state.link.as_mut().filter(|_| current) else { return Ok(()) };
            link.ready.push_back(Message::Sums { transfer: number, first_block, crcs });
            if index == blocks {
                if let Some(sending) = state.files.get_mut(&id).and_then(Outgoing::sending) {
                    sending.sums_sent(whole);
                }
            }
            drop(state);
            self.wake();
        }
        Ok(())
    }

    /// PROTOCOL 6.3: the peer has written more.
    pub(crate) fn on_ack(&self, number: u32, received: u64, credit: u64) -> Result<()> {
        let mut state = self.state.take();
        let id = state.answered(number)?;
        let state = &mut *state;
        let Some(link) = &mut state.link else { return Ok(()) };
        link.credit = credit;
        let Some(file) = id.and_then(|id| state.files.get_mut(&id)) else { return Ok(()) };
        let Some(sending) = file.sending() else {
            return Err(Error::violation("6.3", "ACK before SEND"));
        };
        let newly = sending.acknowledged(received)?;
        link.window.acknowledged(newly, Instant::now());
        let done_until = sending.done_until();
        if let Content::Stream(stream) = &file.content {
            stream.release_until(done_until);
        }
        if let Some(progress) = file.progress() {
            (self.report)(Report::Progress(progress));
        }
        Ok(())
    }

    /// PROTOCOL 6.6: the peer wants a range again.
    pub(crate) fn on_repair(&self, number: u32, offset: u64, length: u64) -> Result<()> {
        let mut state = self.state.take();
        let Some(id) = state.answered(number)? else { return Ok(()) };
        let Some(file) = state.files.get_mut(&id) else { return Ok(()) };
        let (size, is_stream) = (file.offered.size, matches!(file.content, Content::Stream(_)));
        let Some(sending) = file.sending() else {
            return Err(Error::violation("6.6", "REPAIR before SEND"));
        };
        let end = if is_stream { sending.reached() } else { size };
        sending.repair(end, offset, length)?;
        // A small one has left its line, where each waits for the one before it, and does not come back there.
        if !state.sending.contains(&id) && !state.sending_small.contains(&id) {
            state.sending.push_back(id);
        }
        Ok(())
    }

    /// PROTOCOL 6.9: the file is stored.
    pub(crate) fn on_receipt(&self, receipt: wire::Receipt) -> Result<()> {
        let receipt = {
            let mut state = self.state.take();
            let number = receipt.transfer;
            let Some(id) = state.answered(number)? else { return Ok(()) };
            let Some(file) = state.files.get(&id) else { return Ok(()) };
            let receipt = file.receipt(receipt)?;
            if file.is_for_others() {
                state.relays(id, receipt);
                drop(state);
                self.tell_outcomes(id);
                return Ok(());
            }
            state.remove(id).iter().for_each(Outgoing::close);
            receipt
        };
        (self.report)(Report::Stored(receipt));
        Ok(())
    }

    /// PROTOCOL 11.4: what became of a file at one of those it is for.
    pub(crate) fn on_relayed(&self, relayed: wire::Relayed) -> Result<()> {
        let id = relayed.item;
        {
            let mut state = self.state.take();
            let Some(file) = state.files.get_mut(&id).filter(|file| file.is_for_others()) else { return Ok(()) };
            if file.early.len() >= RELAY_NICKNAMES_BYTES_MAX {
                return Err(Error::violation("11.4", "more outcomes than nicknames"));
            }
            file.early.push(relayed);
        }
        self.tell_outcomes(id);
        Ok(())
    }

    /// Reports what became of a file, once its receipt has come.
    fn tell_outcomes(&self, id: TransferId) {
        let (reports, is_over) = {
            let mut state = self.state.take();
            let Some((reports, is_over)) = state.files.get_mut(&id).map(Outgoing::outcomes) else { return };
            if is_over {
                state.remove(id).iter().for_each(Outgoing::close);
            }
            (reports, is_over)
        };
        reports.into_iter().for_each(|report| (self.report)(report));
        if is_over {
            (self.report)(Report::Relayed { transfer: id });
        }
    }

    /// PROTOCOL 6.10: the peer will not have the file.
    pub(crate) fn on_refused(&self, number: u32, refusal: Refusal) -> Result<()> {
        let file = {
            let mut state = self.state.take();
            let Some(id) = state.answered(number)? else { return Ok(()) };
            state.remove(id)
        };
        if let Some(file) = file {
            file.close();
            (self.report)(Report::Failed(file.failure(Error::Refused(refusal))));
        }
        Ok(())
    }

    fn wake(&self) {
        let wake = self.state.take().link.as_ref().map(|link| Arc::clone(&link.wake));
        if let Some(wake) = wake {
            wake();
        }
    }
}

impl State {
    fn add(&mut self, file: Outgoing) {
        let line = if file.is_directory() { &mut self.directories } else { &mut self.waiting };
        line.push_back(file.id);
        self.insert(file);
    }

    fn insert(&mut self, file: Outgoing) {
        self.count(file.request(), |asked| asked.open += 1);
        self.files.insert(file.id, file);
    }

    /// Changes what is counted of an open request.
    fn count(&mut self, request: u32, change: impl FnOnce(&mut Asked)) {
        if let Some(asked) = self.link.as_mut().and_then(|link| link.asked.get_mut(&request)) {
            change(asked);
        }
    }

    /// PROTOCOL 9.3: the last transfer that answers a request has ended.
    fn end_answered(&mut self, request: u32) {
        let Some(link) = &mut self.link else { return };
        let Some(asked) = link.asked.get_mut(&request) else { return };
        asked.open = asked.open.saturating_sub(1);
        if asked.open == 0 {
            let (left_out, failed) = (asked.left_out, asked.failed);
            link.ready.push_back(Message::Ended { request, more: false, left_out, failed });
        }
    }

    /// PROTOCOL 9.5: the other side asks again on its next connection.
    fn forget_requested(&mut self) {
        for (_, file) in std::mem::take(&mut self.files) {
            if file.request() == 0 {
                self.files.insert(file.id, file);
            } else {
                file.close();
            }
        }
        let files = &self.files;
        self.trees.retain(|(top, _)| files.contains_key(top));
    }

    /// Everything is to be offered from the start: files in order, directories after what they hold.
    fn line_up(&mut self) {
        let walked = |id: &TransferId| self.walking != Some(*id) && !self.trees.iter().any(|(top, _)| top == id);
        let is_top = |file: &Outgoing| matches!(file.content, Content::Directory { is_top: true, .. });
        let (directories, files): (Vec<_>, Vec<_>) = self.files.values().partition(|file| file.is_directory());
        let (tops, inner): (Vec<_>, Vec<_>) = directories.into_iter().partition(|file| is_top(file));
        self.waiting = files.iter().map(|file| file.id).collect();
        self.directories = inner.iter().chain(&tops).map(|file| file.id).filter(walked).collect();
    }

    /// Whether nothing but directories is left to offer.
    fn is_down_to_directories(&self) -> bool {
        self.waiting.is_empty() && self.trees.is_empty() && self.walking.is_none()
    }

    /// The file that a number of this connection stands for, `None` when it has ended.
    fn answered(&self, number: u32) -> Result<Option<TransferId>> {
        let Some(link) = &self.link else { return Ok(None) };
        if number == 0 || number > link.last_number {
            return Err(Error::violation("5.1", "an answer to a transfer never offered"));
        }
        Ok(link.numbers.get(&number).copied())
    }

    fn cancel(&mut self, id: TransferId, reason: CancelReason) {
        let known = self.files.get(&id).filter(|file| !matches!(file.phase, Phase::Waiting | Phase::Relaying(_)));
        if let (Some(link), Some(file)) = (&mut self.link, known) {
            link.ready.push_back(Message::Cancel { transfer: file.number, reason });
        }
    }

    /// Forgets a file; the queues pass over what is not there.
    fn remove(&mut self, id: TransferId) -> Option<Outgoing> {
        let file = self.files.remove(&id)?;
        if !matches!(file.phase, Phase::Waiting) {
            self.outcomes = self.outcomes.saturating_sub(file.outcomes_due());
        }
        self.end_answered(file.request());
        if let Some(link) = &mut self.link {
            link.ended(&file);
        }
        Some(file)
    }

    /// PROTOCOL 11.4: the other side has a file, and hands it on.
    fn relays(&mut self, id: TransferId, receipt: Receipt) {
        let Some(file) = self.files.get_mut(&id) else { return };
        if let Some(link) = &mut self.link {
            link.ended(file);
        }
        file.phase = Phase::Relaying(receipt);
    }

    /// PROTOCOL 11.2: whether the next offer waits for the outcomes of others.
    fn is_held_back(&self) -> bool {
        let next = self.waiting.front().or_else(|| self.trees.front().map(|(top, _)| top));
        let next = next.or_else(|| self.directories.front()).and_then(|id| self.files.get(id));
        self.outcomes > 0 && next.is_some_and(|file| self.outcomes + file.outcomes_due() > OUTCOMES_DUE_MAX)
    }

    fn has_work(&self) -> bool {
        let Some(link) = &self.link else { return false };
        let has_offers = !self.waiting.is_empty()
            || !self.trees.is_empty()
            || (!self.directories.is_empty() && self.is_down_to_directories());
        let length_max = link.length_max();
        !link.ready.is_empty()
            || (has_offers && link.may_offer() && !self.is_held_back())
            || self
                .lines()
                .any(|id| self.files.get(&id).is_none_or(|file| file.has_ended() || file.step(length_max).is_some()))
    }

    /// Those that may have a step to do: a small file waits for the one before it.
    fn lines(&self) -> impl Iterator<Item = TransferId> + '_ {
        self.sending.iter().chain(self.sending_small.front()).copied()
    }

    /// The next piece of work: offers first, so that small files share a round trip; then the transfers in turn, each with
    /// one chunk, or a small file with all of them.
    fn pick(&mut self) -> Option<Work> {
        let link = self.link.as_ref()?;
        let length_max = link.length_max();
        if link.may_offer() && !self.is_held_back() {
            while let Some(id) = self.waiting.pop_front() {
                if let Some(file) = self.files.get(&id) {
                    return Some(Work::Offer { id, content: file.content.clone() });
                }
            }
            if let Some((top, tree)) = self.trees.pop_front() {
                self.walking = Some(top);
                return Some(Work::Walk { top, tree });
            }
            while let Some(&id) = self.directories.front().filter(|_| self.is_down_to_directories()) {
                self.directories.pop_front();
                if let Some(file) = self.files.get(&id) {
                    return Some(Work::Offer { id, content: file.content.clone() });
                }
            }
        }
        let first = if self.was_small { State::pick_large } else { State::pick_small };
        let second = if self.was_small { State::pick_small } else { State::pick_large };
        first(self, length_max).or_else(|| second(self, length_max))
    }

    /// One chunk of the next larger file that has one.
    fn pick_large(&mut self, length_max: u64) -> Option<Work> {
        self.was_small = false;
        for _ in 0..self.sending.len() {
            let id = self.sending.pop_front()?;
            let Some(file) = self.files.get(&id).filter(|file| !file.has_ended()) else { continue };
            match file.step(length_max) {
                // It leaves the turn; a REPAIR brings it back.
                Some(Step::Finish) => return Some(file.finish_work()),
                Some(Step::Chunk { offset, length }) => {
                    self.sending.push_back(id);
                    if let Some(work) = file.chunk_work(offset, length) {
                        return Some(work);
                    }
                }
                None => self.sending.push_back(id),
            }
        }
        None
    }

    /// The next chunk of the first small file, which keeps its turn to its end: each that is begun holds descriptors on both
    /// sides.
    fn pick_small(&mut self, length_max: u64) -> Option<Work> {
        self.was_small = true;
        while let Some(&id) = self.sending_small.front() {
            let file = self.files.get(&id).filter(|file| !file.has_ended());
            match file.map(|file| (file, file.step(length_max))) {
                Some((file, Some(Step::Chunk { offset, length }))) => return file.chunk_work(offset, length),
                Some((_, None)) => return None,
                Some((file, Some(Step::Finish))) => {
                    let work = file.finish_work();
                    self.sending_small.pop_front();
                    return Some(work);
                }
                None => drop(self.sending_small.pop_front()),
            }
        }
        None
    }
}

impl Outgoing {
    fn chunk_work(&self, offset: u64, length: u64) -> Option<Work> {
        let source = self.opening()?;
        Some(Work::Chunk { number: self.number, id: self.id, offset, length, source })
    }

    fn finish_work(&self) -> Work {
        Work::Finish { number: self.number, id: self.id, source: self.finishing() }
    }
}

impl Link {
    /// A transfer has ended on this connection.
    fn ended(&mut self, file: &Outgoing) {
        match &file.phase {
            Phase::Waiting | Phase::Relaying(_) => return,
            Phase::Offered => {}
            Phase::Sending(sending) => self.window.acknowledged(sending.unacknowledged(), Instant::now()),
        }
        self.path_bytes -= self.numbers.remove(&file.number).map_or(0, |_| file.name.len());
    }

    /// PROTOCOL 11.1: says whom the next offer is for, unless the other side remembers.
    fn say_relay(&mut self, relay: &wire::Relay, out: &mut Vec<u8>) {
        if self.relays.contains(&relay.relay) {
            return;
        }
        if self.relays.len() >= RELAYS_MAX {
            self.relays.pop_front();
        }
        self.relays.push_back(relay.relay);
        Message::Relay(relay.clone()).encode(out);
    }

    /// PROTOCOL 5.4.
    fn may_offer(&self) -> bool {
        self.numbers.len() < self.offers_max && self.path_bytes <= self.offers_max.saturating_mul(OFFER_PATH_BYTES)
    }

    /// How long a chunk may be now; 0 while the window or the credit is used up, or the pace wants a pause.
    fn length_max(&self) -> u64 {
        if !self.pace.pause(Instant::now()).is_zero() {
            return 0;
        }
        let credit = self.credit.saturating_sub(self.sent);
        let wanted = self.window.chunk_bytes().min(self.chunk_bytes_max).min(self.pace.chunk_bytes());
        let room = self.window.room().min(credit);
        // A crumb waits until it is a chunk, as long as what is under way will be acknowledged.
        let shortest = if self.window.in_flight() > 0 { wanted } else { Window::chunk_least().min(wanted) };
        if room < shortest {
            0
        } else {
            let length = wanted.min(room);
            length - length % Window::chunk_least().min(length)
        }
    }
}
