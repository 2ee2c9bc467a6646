//! All files on their way to one peer, over as many connections as that takes.
//!
//! The session's writer calls [`Outbound::fill`], which reads files; the session's reader passes in the answers, which never
//! waits for a disk. A new connection offers everything again that has no receipt ([`Outbound::attach`]).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::outgoing::{Offered, Outgoing, Phase, Step};
use super::pace::Pace;
use super::window::Window;
use super::{Report, TransferId};
use crate::config::{block_bytes, CHUNK_BYTES_LEAST, CHUNK_BYTES_MAX, SUMS_PER_FRAME};
use crate::error::{Error, Refusal, Result};
use crate::name::SafePath;
use crate::storage::Source;
use crate::wire::{self, seal_chunk, CancelReason, Message, CHUNK_HEAD_BYTES};
use crate::worker::{spawn, Lock};

/// See the module.
pub(crate) struct Outbound {
    state: Mutex<State>,
    report: Box<dyn Fn(Report) + Send + Sync>,
    pace: Arc<Pace>,
}

struct State {
    files: BTreeMap<TransferId, Outgoing>,
    /// Not offered on this connection yet, in order.
    waiting: VecDeque<TransferId>,
    /// Answered with SEND and not finished, in turn.
    sending: VecDeque<TransferId>,
    link: Option<Link>,
    /// Counts connections, so that what an old one's thread finds out late is dropped.
    epoch: u32,
}

/// What belongs to one connection.
struct Link {
    wake: Arc<dyn Fn() + Send + Sync>,
    offers_max: u32,
    chunk_bytes_max: u64,
    /// Transfer numbers of this connection (PROTOCOL 5.1).
    numbers: HashMap<u32, TransferId>,
    last_number: u32,
    unanswered: u32,
    window: Window,
    pace: Arc<Pace>,
    sent: u64,
    credit: u64,
    /// SUMS and CANCEL, ready to go.
    ready: VecDeque<Message>,
}

/// What [`Outbound::fill`] does next, outside the lock.
enum Work {
    Offer { id: TransferId, path: PathBuf },
    Chunk { number: u32, id: TransferId, offset: u64, length: u64, source: Opening },
    Finish { number: u32, id: TransferId, source: Option<Arc<Source>> },
}

/// A source that is open, or how to open it.
enum Opening {
    Open(Arc<Source>),
    Path(PathBuf, Offered),
}

impl Outbound {
    /// Nothing to send yet. `report` hears what becomes of each file.
    pub(crate) fn new(pace: Arc<Pace>, report: impl Fn(Report) + Send + Sync + 'static) -> Outbound {
        let state =
            State { files: BTreeMap::new(), waiting: VecDeque::new(), sending: VecDeque::new(), link: None, epoch: 0 };
        Outbound { state: Mutex::new(state), report: Box::new(report), pace }
    }

    /// Takes a file to send under `name`. Its `id` is the caller's, and above all before.
    pub(crate) fn add(&self, id: TransferId, path: &Path, name: &SafePath) {
        let file = Outgoing {
            id,
            number: 0,
            path: path.to_owned(),
            name: name.to_bytes(),
            started: Instant::now(),
            offered: Offered::default(),
            phase: Phase::Waiting,
        };
        {
            let mut state = self.state.take();
            state.files.insert(id, file);
            state.waiting.push_back(id);
        }
        self.wake();
    }

    /// A connection stands: everything without a receipt is offered on it. `wake` is called when there is something to send.
    pub(crate) fn attach(&self, peer: &wire::Peer, wake: Arc<dyn Fn() + Send + Sync>) {
        let mut state = self.state.take();
        state.epoch += 1;
        state.link = Some(Link {
            wake,
            offers_max: peer.offers,
            chunk_bytes_max: u64::from(peer.chunk_bytes),
            numbers: HashMap::new(),
            last_number: 0,
            unanswered: 0,
            window: Window::new(),
            pace: Arc::clone(&self.pace),
            sent: 0,
            credit: 0,
            ready: VecDeque::new(),
        });
        state.sending.clear();
        state.waiting = state.files.keys().copied().collect();
        for file in state.files.values_mut() {
            file.phase = Phase::Waiting;
        }
    }

    /// The connection is gone.
    pub(crate) fn detach(&self) {
        self.state.take().link = None;
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
            state.sending.clear();
            std::mem::take(&mut state.files)
        };
        for (_, file) in files {
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
                message.encode(out);
                return true;
            }
            (state.pick(), state.epoch)
        };
        match work {
            None => return false,
            Some(Work::Offer { id, path }) => self.offer(epoch, id, &path, out),
            Some(Work::Chunk { number, id, offset, length, source }) => {
                if let Err(error) = self.chunk(epoch, number, id, offset, length, source, out) {
                    self.fail(epoch, id, error);
                }
            }
            Some(Work::Finish { number, id, source }) => {
                if let Err(error) = self.finish(epoch, number, id, source.as_deref(), out) {
                    self.fail(epoch, id, error);
                }
            }
        }
        true
    }

    fn offer(&self, epoch: u32, id: TransferId, path: &Path, out: &mut Vec<u8>) {
        let offered = Source::open(path).and_then(|source| {
            let mut offered = Offered { size: source.size(), mtime: source.mtime().into(), content_crc: 0 };
            if offered.size <= crate::config::BLOCK_BYTES_LEAST {
                offered.content_crc = source.block_crc(0, &mut Vec::new())?;
            }
            Ok((offered, source.mode()))
        });
        let (offered, mode) = match offered {
            Ok(offered) => offered,
            Err(error) => return self.fail(epoch, id, error),
        };
        let state = &mut *self.state.take();
        if state.epoch != epoch {
            return;
        }
        let (Some(link), Some(file)) = (&mut state.link, state.files.get_mut(&id)) else { return };
        link.last_number += 1;
        link.unanswered += 1;
        link.numbers.insert(link.last_number, id);
        file.phase = Phase::Offered;
        file.number = link.last_number;
        file.offered = offered.clone();
        let offer = wire::Offer {
            transfer: link.last_number,
            kind: 0,
            size: offered.size,
            mtime: offered.mtime,
            mode,
            content_crc: offered.content_crc,
            path: file.name.clone(),
        };
        Message::Offer(offer).encode(out);
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
            Opening::Open(source) => source,
            Opening::Path(path, offered) => Arc::new(Source::reopen(&path, offered.size, offered.mtime.into())?),
        };
        let start = out.len();
        let size = usize::try_from(length).unwrap_or(CHUNK_BYTES_MAX);
        out.resize(start + CHUNK_HEAD_BYTES + size, 0);
        let (_, frame) = out.split_at_mut(start);
        let read = source.read_at(offset, frame.get_mut(CHUNK_HEAD_BYTES..).unwrap_or_default());
        if let Err(error) = read {
            out.truncate(start);
            return Err(error);
        }
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
        sending.source = Some(source);
        sending.chunk_sent(offset, length, crc);
        link.sent += length;
        let now = Instant::now();
        link.window.sent(length, now);
        link.pace.sent(length, now);
        Ok(())
    }

    /// PROTOCOL 6.7: everything was sent once. Looks whether the source is still what was offered.
    fn finish(
        &self,
        epoch: u32,
        number: u32,
        id: TransferId,
        source: Option<&Source>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let grew = source.map_or(Ok(false), Source::check)?;
        let mut state = self.state.take();
        let current = state.epoch == epoch;
        let Some(file) = state.files.get_mut(&id).filter(|_| current) else { return Ok(()) };
        let (size, content_crc, small) = (file.offered.size, file.offered.content_crc, file.is_small());
        let path = file.path.clone();
        let Some(sending) = file.sending() else { return Ok(()) };
        let Some(crc) = sending.whole_crc(size) else { return Ok(()) };
        if small && crc != content_crc {
            return Err(Error::SourceChanged { path });
        }
        sending.grew = grew;
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
            state.remove(id)
        };
        if let Some(file) = file {
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
            link.unanswered = link.unanswered.saturating_sub(1);
        }
        let Some(file) = state.files.get_mut(&id) else { return Ok(()) };
        file.begin(have)?;
        let (path, offered) = (file.path.clone(), file.offered.clone());
        state.sending.push_back(id);
        drop(state);
        if have > 0 {
            let this = Arc::clone(self);
            let sums = move || {
                if let Err(error) = this.send_sums(epoch, number, id, &path, &offered, have) {
                    this.fail(epoch, id, error);
                    this.wake();
                }
            };
            if let Err(error) = spawn("sums", sums) {
                self.fail(epoch, id, Error::System { action: "start a thread", source: error });
            }
        }
        Ok(())
    }

    /// PROTOCOL 6.5: reads the blocks that the receiver holds and tells their CRCs, beside the new data.
    fn send_sums(
        &self,
        epoch: u32,
        number: u32,
        id: TransferId,
        path: &Path,
        offered: &Offered,
        have: u64,
    ) -> Result<()> {
        let source = Source::reopen(path, offered.size, offered.mtime.into())?;
        let block = block_bytes(offered.size);
        let blocks = have.div_ceil(block);
        let mut buffer = Vec::new();
        let mut whole = 0;
        let mut index = 0;
        while index < blocks {
            let first_block = u32::try_from(index).unwrap_or(u32::MAX);
            let mut crcs = Vec::new();
            while index < blocks && crcs.len() < SUMS_PER_FRAME {
                let crc = source.block_crc(index, &mut buffer)?;
                whole = super::combine_crc(whole, crc, block.min(have - index * block));
                crcs.push(crc);
                index += 1;
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
        if !file.is_small() {
            if let Some(progress) = file.progress() {
                (self.report)(Report::Progress(progress));
            }
        }
        Ok(())
    }

    /// PROTOCOL 6.6: the peer wants a range again.
    pub(crate) fn on_repair(&self, number: u32, offset: u64, length: u64) -> Result<()> {
        let mut state = self.state.take();
        let Some(id) = state.answered(number)? else { return Ok(()) };
        let Some(file) = state.files.get_mut(&id) else { return Ok(()) };
        let size = file.offered.size;
        let Some(sending) = file.sending() else {
            return Err(Error::violation("6.6", "REPAIR before SEND"));
        };
        sending.repair(size, offset, length)?;
        if !state.sending.contains(&id) {
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
            state.remove(id);
            receipt
        };
        (self.report)(Report::Stored(receipt));
        Ok(())
    }

    /// PROTOCOL 6.10: the peer will not have the file.
    pub(crate) fn on_refused(&self, number: u32, refusal: Refusal) -> Result<()> {
        let file = {
            let mut state = self.state.take();
            let Some(id) = state.answered(number)? else { return Ok(()) };
            state.remove(id)
        };
        if let Some(file) = file {
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
    /// The file that a number of this connection stands for, `None` when it has ended.
    fn answered(&self, number: u32) -> Result<Option<TransferId>> {
        let Some(link) = &self.link else { return Ok(None) };
        if number == 0 || number > link.last_number {
            return Err(Error::violation("5.1", "an answer to a transfer never offered"));
        }
        Ok(link.numbers.get(&number).copied())
    }

    fn cancel(&mut self, id: TransferId, reason: CancelReason) {
        let known = self.files.get(&id).filter(|file| !matches!(file.phase, Phase::Waiting));
        if let (Some(link), Some(file)) = (&mut self.link, known) {
            link.ready.push_back(Message::Cancel { transfer: file.number, reason });
        }
    }

    /// Forgets a file; the queues pass over what is not there.
    fn remove(&mut self, id: TransferId) -> Option<Outgoing> {
        let mut file = self.files.remove(&id)?;
        if let Some(link) = &mut self.link {
            match &mut file.phase {
                Phase::Waiting => return Some(file),
                Phase::Offered => link.unanswered = link.unanswered.saturating_sub(1),
                Phase::Sending(sending) => link.window.acknowledged(sending.unacknowledged(), Instant::now()),
            }
            link.numbers.remove(&file.number);
        }
        Some(file)
    }

    fn has_work(&self) -> bool {
        let Some(link) = &self.link else { return false };
        let can_offer = !self.waiting.is_empty() && link.unanswered < link.offers_max;
        let length_max = link.length_max();
        !link.ready.is_empty()
            || can_offer
            || self.sending.iter().any(|id| match self.files.get(id) {
                Some(Outgoing { offered, phase: Phase::Sending(sending), .. }) => {
                    sending.step(offered.size, length_max).is_some()
                }
                _ => false,
            })
    }

    /// The next piece of work: offers first, so that small files share a round trip; then the transfers in turn.
    fn pick(&mut self) -> Option<Work> {
        let link = self.link.as_ref()?;
        let length_max = link.length_max();
        if link.unanswered < link.offers_max {
            while let Some(id) = self.waiting.pop_front() {
                if let Some(file) = self.files.get(&id) {
                    return Some(Work::Offer { id, path: file.path.clone() });
                }
            }
        }
        for _ in 0..self.sending.len() {
            let id = self.sending.pop_front()?;
            let Some(file) = self.files.get_mut(&id) else { continue };
            let number = file.number;
            let (path, offered) = (file.path.clone(), file.offered.clone());
            let Some(sending) = file.sending() else { continue };
            match sending.step(offered.size, length_max) {
                Some(Step::Chunk { offset, length }) => {
                    self.sending.push_back(id);
                    let source = sending.source.clone().map_or(Opening::Path(path, offered), Opening::Open);
                    return Some(Work::Chunk { number, id, offset, length, source });
                }
                // It leaves the turn; a REPAIR brings it back.
                Some(Step::Finish) => return Some(Work::Finish { number, id, source: sending.source.clone() }),
                None => self.sending.push_back(id),
            }
        }
        None
    }
}

impl Link {
    /// How long a chunk may be now; 0 while the window or the credit is used up, or the pace wants a pause.
    fn length_max(&self) -> u64 {
        if !self.pace.pause(Instant::now()).is_zero() {
            return 0;
        }
        let credit = self.credit.saturating_sub(self.sent);
        let wanted = self.window.chunk_bytes().min(self.chunk_bytes_max).min(self.pace.chunk_bytes());
        let room = self.window.room().min(credit);
        let least = u64::try_from(CHUNK_BYTES_LEAST).unwrap_or(u64::MAX).min(wanted);
        if room < least {
            0
        } else {
            wanted.min(room)
        }
    }
}
