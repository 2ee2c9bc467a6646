//! What a server carries between its clients (PROTOCOL 11): files for others, what others share, and what is left for who is
//! not there.
//!
//! A file is stored first, in the spool, and whoever sent it has its receipt; then each of those that it is for gets it as any
//! file is sent. So each leg goes on by itself after a break, and the bytes come once. What is under way is in memory: whoever
//! sent it offers it again after a restart, and the spool has it. What is left is in notes, which outlive the process.
//!
//! Nothing is called while the state is locked that may come back here.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::member::Member;
use super::{encode_text, is_the_servers, Hub};
use crate::config::{Config, LEFT_MAX, RELAYED_MAX, RETRY_BROKEN};
use crate::error::{Error, Refusal};
use crate::name::{Nickname, SafePath};
use crate::session::{Mailbox, RequestOf, TextReport};
use crate::storage::{Held, Meta, Spool, Store};
use crate::transfer::{Answer, Arrived, Kind, Parcel, Passage, Relaying, Report, RequestId, TransferId, Way};
use crate::wire::{self, Decoder, Delivered, Frame, Message, RunId, MODE_PLAIN, VERSION};
use crate::worker::{spawn, Lock, Signal};

/// See the module.
pub(super) struct Relay {
    config: Config,
    spool: Mutex<Option<Arc<Spool>>>,
    is_stopped: AtomicBool,
    state: Mutex<State>,
    /// A deadline is new.
    changed: Signal,
}

#[derive(Default)]
struct State {
    items: HashMap<Key, Item>,
    /// Of all items, those who have no outcome; and those of what is on its way here.
    awaited: usize,
    /// Items of which all outcomes were said, oldest first. They are kept for who did not hear them.
    over: VecDeque<Key>,
    /// What transfers to those it is for are about.
    legs: HashMap<TransferId, Leg>,
    left: BTreeMap<Nickname, Queue>,
    last_note: u64,
    /// What texts under way to who has come are about.
    said: HashMap<u64, (Nickname, u64)>,
    fetches: HashMap<RequestId, Fetch>,
    has_clock: bool,
}

/// Who sent a file, and its number there.
type Key = (RunId, u32);

/// A file that has come for others.
struct Item {
    meta: Meta,
    kind: Kind,
    arrived: Arrived,
    origin: Arc<Mailbox>,
    /// How long to wait for who is not there; `None`: for ever.
    patience: Option<Duration>,
    /// Until everybody has an outcome.
    parcel: Option<Parcel>,
    recipients: Vec<Recipient>,
}

struct Recipient {
    nickname: Nickname,
    /// How it is on its way.
    via: Option<(TransferId, Arc<Mailbox>)>,
    /// When it is given up, where nobody of that name is here.
    until: Option<Instant>,
    outcome: Option<Result<Delivered, Refusal>>,
}

#[derive(Clone)]
enum Leg {
    Item(Key, Nickname),
    Left(Nickname, u64),
}

/// What is left for one who is not there, in order.
#[derive(Default)]
struct Queue {
    via: Option<Arc<Mailbox>>,
    notes: BTreeMap<u64, Left>,
}

struct Left {
    run: RunId,
    /// The file's number there, or the text's.
    number: u64,
    what: Parting,
    /// In seconds since 1970.
    noted_seconds: i64,
    has_started: bool,
    /// It was refused; it is tried again when its receiver comes again.
    is_refused: bool,
}

enum Parting {
    File(Parcel),
    Text(wire::Text),
}

/// A request that is handed on.
struct Fetch {
    asker: Arc<Mailbox>,
    epoch: u32,
    number: u32,
    from: Nickname,
    via: Arc<Mailbox>,
    what: Wanted,
    until: Option<Instant>,
}

enum Wanted {
    File(SafePath),
    List(Option<SafePath>),
}

/// What is to be done once the state is not locked any more.
enum Deed {
    Send(Arc<Mailbox>, TransferId, Parcel),
    Say(Arc<Mailbox>, wire::Text, u64),
    Withdraw(Arc<Mailbox>, TransferId),
    Wake(Arc<Mailbox>),
    Refuse(Fetch),
    Forget(u64, Left),
    /// Nothing but the end of what kept a file.
    Drop(#[expect(dead_code, reason = "held for its drop")] Option<Parcel>),
}

impl Relay {
    /// Reads what was left before.
    ///
    /// # Errors
    /// [`Error::File`].
    pub(super) fn new(config: &Config) -> crate::error::Result<Relay> {
        let spool = match &config.dir {
            Some(dir) if config.relay => Spool::open(dir, config, false)?,
            _ => None,
        };
        let relay = Relay {
            config: config.clone(),
            spool: Mutex::new(None),
            is_stopped: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Signal::new(),
        };
        if let Some(spool) = spool {
            relay.read_notes(&spool);
            *relay.spool.take() = Some(spool);
        }
        Ok(relay)
    }

    fn read_notes(&self, spool: &Arc<Spool>) {
        let keep_from = self.keep_from();
        let state = &mut *self.state.take();
        for (number, bytes) in spool.notes() {
            state.last_note = state.last_note.max(number);
            let noted = spool.noted_seconds(number).filter(|&noted| noted >= keep_from);
            match noted.and_then(|noted| read_note(spool, &bytes, noted)) {
                Some((nickname, left)) => {
                    state.left.entry(nickname).or_default().notes.insert(number, left);
                }
                None => spool.forget(number),
            }
        }
        spool.sweep(self.config.keep_partials);
    }

    /// What was left before this is not kept any more; in seconds since 1970.
    fn keep_from(&self) -> i64 {
        seconds_now().saturating_sub(i64::try_from(self.config.keep_partials.as_secs()).unwrap_or(i64::MAX))
    }

    /// The spool, which is made when it is first needed.
    fn spool(&self) -> Result<Arc<Spool>, Refusal> {
        if !self.config.relay {
            return Err(Refusal::NoRelay);
        }
        let mut spool = self.spool.take();
        if self.is_stopped.load(Ordering::SeqCst) {
            return Err(Refusal::Stopping);
        }
        if let Some(spool) = &*spool {
            return Ok(Arc::clone(spool));
        }
        let dir = self.config.dir.as_deref().ok_or(Refusal::NoDirectory)?;
        let made = Spool::open(dir, &self.config, true).ok().flatten().ok_or(Refusal::NotWritable)?;
        // Another server may have used it until now.
        self.read_notes(&made);
        Ok(Arc::clone(spool.insert(made)))
    }

    /// Whom a file is for. Nobody at all refuses it.
    fn recipients(&self, hub: &Hub, run: RunId, relay: &wire::Relay) -> Result<Vec<Nickname>, Refusal> {
        let Some(to) = &relay.to else {
            let takes = |member: &Arc<Member>| member.session.peer().takes_files && member.session.peer().run != run;
            let others = hub.room_but(0).into_iter().filter(takes);
            let nicknames: Vec<_> = others.map(|member| member.info.nickname.clone()).collect();
            return if nicknames.is_empty() { Err(Refusal::Nobody) } else { Ok(nicknames) };
        };
        let nicknames: BTreeSet<Nickname> = to.iter().cloned().collect();
        if relay.leave && nicknames.iter().any(is_the_servers) {
            return Err(Refusal::Nobody);
        }
        let waits = relay.leave || relay.patience_seconds > 0;
        if !waits && !nicknames.iter().any(|nickname| hub.mailbox_in_room(nickname).is_some()) {
            return Err(Refusal::Nobody);
        }
        Ok(nicknames.into_iter().collect())
    }

    /// Somebody is here, under this nickname.
    pub(super) fn arrive(&self, hub: &Hub, nickname: &Nickname, mailbox: &Arc<Mailbox>) {
        let mut deeds = Vec::new();
        {
            let state = &mut *self.state.take();
            for (key, item) in &mut state.items {
                let Some(parcel) = &item.parcel else { continue };
                let Some(recipient) = item.recipients.iter_mut().find(|it| it.is_awaited() && it.nickname == *nickname)
                else {
                    continue;
                };
                recipient.until = None;
                if let Some((_, via)) = &recipient.via {
                    if Arc::ptr_eq(via, mailbox) {
                        continue;
                    }
                }
                if let Some((id, via)) = recipient.via.take() {
                    state.legs.remove(&id);
                    deeds.push(Deed::Withdraw(via, id));
                }
                let id = hub.ids.next();
                recipient.via = Some((id, Arc::clone(mailbox)));
                state.legs.insert(id, Leg::Item(*key, nickname.clone()));
                deeds.push(Deed::Send(Arc::clone(mailbox), id, parcel.clone()));
            }
            state.ask_again(nickname, mailbox);
            if let Some(queue) = state.left.get_mut(nickname) {
                if queue.via.as_ref().is_none_or(|via| !Arc::ptr_eq(via, mailbox)) {
                    queue.notes.values_mut().for_each(|left| left.has_started = false);
                    state.said.retain(|_, (to, _)| to != nickname);
                    let legs = &mut state.legs;
                    let via = queue.via.replace(Arc::clone(mailbox));
                    let is_its = |leg: &Leg| matches!(leg, Leg::Left(to, _) if to == nickname);
                    let old: Vec<TransferId> = legs.iter().filter(|(_, leg)| is_its(leg)).map(|(&id, _)| id).collect();
                    for id in old {
                        legs.remove(&id);
                        deeds.extend(via.clone().map(|via| Deed::Withdraw(via, id)));
                    }
                }
                queue.notes.values_mut().for_each(|left| left.is_refused = false);
            }
            state.deliver_left(hub, nickname, &mut deeds);
        }
        self.run(deeds);
        mailbox.wake();
    }

    /// Whoever had this mailbox is gone, for now.
    pub(super) fn depart(self: &Arc<Self>, mailbox: &Arc<Mailbox>) {
        let has_deadline = {
            let state = &mut *self.state.take();
            // PROTOCOL 9.5: who asked asks again.
            state.give_up(|fetch| Arc::ptr_eq(&fetch.asker, mailbox));
            let mut has_deadline = false;
            for item in state.items.values_mut() {
                let patience = item.patience.map(|patience| patience.max(RETRY_BROKEN));
                let is_on_its_way =
                    |it: &&mut Recipient| it.via.as_ref().is_some_and(|(_, via)| Arc::ptr_eq(via, mailbox));
                for recipient in item.recipients.iter_mut().filter(is_on_its_way) {
                    recipient.until = patience.and_then(|patience| Instant::now().checked_add(patience));
                    has_deadline |= recipient.until.is_some();
                }
            }
            for fetch in state.fetches.values_mut().filter(|fetch| Arc::ptr_eq(&fetch.via, mailbox)) {
                fetch.until = Instant::now().checked_add(RETRY_BROKEN);
                has_deadline = true;
            }
            has_deadline
        };
        if has_deadline {
            self.wind_up();
        }
    }

    /// That run is over: what it sent for others and they do not have yet is not theirs any more.
    pub(super) fn forget_run(&self, run: RunId) {
        let mut deeds = Vec::new();
        {
            let state = &mut *self.state.take();
            let keys: Vec<Key> = state.items.keys().filter(|(of, _)| *of == run).copied().collect();
            keys.into_iter().for_each(|key| state.remove(&key, &mut deeds));
        }
        self.run(deeds);
    }

    /// The server is over: lets go of the spool, so that the next one finds it, and of all that is waited for.
    pub(super) fn stop(&self) {
        self.is_stopped.store(true, Ordering::SeqCst);
        let _spool = self.spool.take().take();
        let state = {
            let state = &mut *self.state.take();
            let has_clock = state.has_clock;
            std::mem::replace(state, State { has_clock, ..State::default() })
        };
        self.changed.notify_all();
        for (_, item) in state.items {
            // It is offered to the next server again, which then has it.
            item.parcel.iter().for_each(|parcel| parcel.held.set_stays(true));
            for (id, via) in item.recipients.into_iter().filter_map(|recipient| recipient.via) {
                via.files.withdraw(id);
            }
        }
    }

    /// What became of a transfer; whether it is of no interest to the application.
    pub(super) fn hears(self: &Arc<Self>, hub: &Hub, report: &Report) -> bool {
        let id = match report {
            Report::Progress(progress) => return self.state.take().legs.contains_key(&progress.transfer),
            Report::Stored(receipt) => receipt.transfer,
            Report::Failed(failure) => failure.transfer,
            Report::Skipped { .. } | Report::Relayed { .. } => return false,
        };
        let outcome = match report {
            Report::Stored(receipt) => {
                Ok(Delivered { durable: receipt.durable, already: receipt.already, stored: receipt.stored.clone() })
            }
            Report::Failed(failure) => Err(&failure.error),
            _ => return false,
        };
        let is_gone = matches!(outcome, Err(Error::Closed));
        let outcome = outcome.map_err(|error| match error {
            Error::Refused(refusal) => *refusal,
            _ => Refusal::Failed,
        });
        let mut deeds = Vec::new();
        {
            let state = &mut *self.state.take();
            match state.legs.remove(&id) {
                None => return false,
                Some(Leg::Item(key, nickname)) if is_gone => {
                    if let Some(item) = state.items.get_mut(&key) {
                        item.wait_for(&nickname, true);
                    }
                }
                Some(Leg::Item(key, nickname)) => state.end(&key, &nickname, outcome, &mut deeds),
                Some(Leg::Left(nickname, note)) => {
                    state.end_left(&nickname, note, outcome.is_ok(), is_gone, &mut deeds);
                    if !is_gone {
                        state.deliver_left(hub, &nickname, &mut deeds);
                    }
                }
            }
        }
        self.run(deeds);
        if is_gone {
            self.wind_up();
        }
        is_gone
    }

    /// What became of a text; whether it is of no interest to the application.
    pub(super) fn hears_text(&self, hub: &Hub, report: TextReport) -> bool {
        let (sequence, is_delivered) = match report {
            TextReport::Delivered { sequence } => (sequence, true),
            TextReport::Refused { sequence, .. } => (sequence, false),
        };
        let mut deeds = Vec::new();
        {
            let state = &mut *self.state.take();
            let Some((nickname, note)) = state.said.remove(&sequence) else { return false };
            state.end_left(&nickname, note, is_delivered, false, &mut deeds);
            state.deliver_left(hub, &nickname, &mut deeds);
        }
        self.run(deeds);
        true
    }

    /// What came of a request; whether it was one that is handed on.
    pub(super) fn hears_answer(&self, answer: &Answer) -> bool {
        let (Answer::Listed { request, .. } | Answer::Got { request, .. } | Answer::Failed { request, .. }) = answer;
        let Some(fetch) = self.state.take().fetches.remove(request) else { return false };
        let Fetch { asker, epoch, number, .. } = fetch;
        match answer {
            Answer::Listed { entries, more, .. } => asker.files.answer_list(epoch, number, entries, *more),
            Answer::Got { left_out, failed, .. } => asker.files.handed_on(epoch, number, *left_out, *failed),
            Answer::Failed { error: Error::Refused(refusal), .. } => {
                asker.files.not_handed_on(epoch, number, *refusal);
            }
            Answer::Failed { .. } => asker.files.not_handed_on(epoch, number, Refusal::Nobody),
        }
        true
    }

    /// Asks `from` what it shares, for a request of another.
    pub(super) fn ask(
        self: &Arc<Self>,
        hub: &Hub,
        asker: &Arc<Mailbox>,
        from: &Nickname,
        RequestOf { epoch, number }: RequestOf,
        what: Option<SafePath>,
        is_list: bool,
    ) -> Result<(), Refusal> {
        if is_list && !self.config.relay {
            return Err(Refusal::NoRelay);
        }
        if !is_list {
            self.spool()?;
        }
        let via = hub.mailbox_in_room(from).ok_or(Refusal::Nobody)?;
        let what = match (is_list, what) {
            (true, after) => Wanted::List(after),
            (false, Some(path)) => Wanted::File(path),
            (false, None) => return Err(Refusal::BadName),
        };
        if !is_list {
            asker.files.ask_others(epoch, number);
        }
        let fetch = Fetch {
            asker: Arc::clone(asker),
            epoch,
            number,
            from: from.clone(),
            via: Arc::clone(&via),
            what,
            until: None,
        };
        {
            let state = &mut *self.state.take();
            state.give_up(|old| Arc::ptr_eq(&old.asker, asker) && old.epoch != epoch);
            state.ask(fetch);
        }
        via.wake();
        if !hub.is_here(&via) {
            self.depart(&via);
        }
        Ok(())
    }

    /// A text is left for one who may not be there; it is noted before this returns.
    pub(super) fn leave_text(self: &Arc<Self>, hub: &Hub, text: wire::Text) -> Result<(), Refusal> {
        let Some(nickname) = text.to.clone() else { return Err(Refusal::Unsupported) };
        let spool = self.spool()?;
        if is_the_servers(&nickname) {
            return Err(Refusal::Nobody);
        }
        let mut bytes = note_start();
        Message::Text(text.clone()).encode(&mut bytes);
        let left = Left {
            run: text.run,
            number: text.sequence,
            what: Parting::Text(text),
            noted_seconds: seconds_now(),
            has_started: false,
            is_refused: false,
        };
        self.leave(&spool, vec![(nickname.clone(), left, bytes)])?;
        self.go_on_with_left(hub, &nickname);
        Ok(())
    }

    /// Notes all of these, or none.
    fn leave(&self, spool: &Spool, parted: Vec<(Nickname, Left, Vec<u8>)>) -> Result<(), Refusal> {
        let mut deeds = Vec::new();
        self.state.take().forget_old(self.keep_from(), &mut deeds);
        self.run(deeds);
        let first = {
            let mut state = self.state.take();
            if state.left.values().map(|queue| queue.notes.len()).sum::<usize>() + parted.len() > LEFT_MAX {
                return Err(Refusal::TooMuch);
            }
            let first = state.last_note + 1;
            state.last_note += u64::try_from(parted.len()).unwrap_or(u64::MAX);
            first
        };
        for (number, (.., bytes)) in (first..).zip(&parted) {
            if let Err(error) = spool.note(number, bytes) {
                (first..number).for_each(|noted| spool.forget(noted));
                return Err(match error {
                    rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT => Refusal::NoRoom,
                    _ => Refusal::Failed,
                });
            }
        }
        let mut state = self.state.take();
        for (number, (nickname, left, _)) in (first..).zip(parted) {
            if let Parting::File(parcel) = &left.what {
                parcel.held.set_stays(true);
            }
            state.left.entry(nickname).or_default().notes.insert(number, left);
        }
        Ok(())
    }

    fn go_on_with_left(self: &Arc<Self>, hub: &Hub, nickname: &Nickname) {
        let Some(mailbox) = hub.mailbox_in_room(nickname) else { return };
        self.arrive(hub, nickname, &mailbox);
        // Who left meanwhile is waited for, but not for ever.
        if !hub.is_here(&mailbox) {
            self.depart(&mailbox);
        }
    }

    /// A file has come: it goes to those who are here.
    fn go_on(self: &Arc<Self>, hub: &Hub, key: Key) {
        let nicknames: Vec<Nickname> = {
            let state = self.state.take();
            let Some(item) = state.items.get(&key) else { return };
            item.recipients.iter().map(|recipient| recipient.nickname.clone()).collect()
        };
        let mut deeds = Vec::new();
        let mut somebody_is_away = false;
        for nickname in nicknames {
            let mailbox = hub.mailbox_in_room(&nickname);
            let state = &mut *self.state.take();
            let Some(item) = state.items.get_mut(&key) else { break };
            // Who came meanwhile has it on its way.
            let is_due = |it: &&mut Recipient| it.nickname == nickname && it.is_awaited() && it.via.is_none();
            let Some(recipient) = item.recipients.iter_mut().find(is_due) else { continue };
            match (mailbox, &item.parcel) {
                (Some(mailbox), Some(parcel)) => {
                    let id = hub.ids.next();
                    recipient.via = Some((id, Arc::clone(&mailbox)));
                    state.legs.insert(id, Leg::Item(key, nickname));
                    deeds.push(Deed::Send(mailbox, id, parcel.clone()));
                }
                (None, _) if item.patience == Some(Duration::ZERO) || is_the_servers(&nickname) => {
                    state.end(&key, &nickname, Err(Refusal::Nobody), &mut deeds);
                }
                (None, _) => {
                    item.wait_for(&nickname, false);
                    somebody_is_away = true;
                }
                _ => {}
            }
        }
        let sent: Vec<Arc<Mailbox>> = deeds.iter().filter_map(Deed::receiver).collect();
        self.run(deeds);
        // Who left meanwhile was not seen to have anything on its way.
        sent.iter().filter(|mailbox| !hub.is_here(mailbox)).for_each(|mailbox| self.depart(mailbox));
        if somebody_is_away {
            self.wind_up();
        }
    }

    fn run(&self, deeds: Vec<Deed>) {
        for deed in deeds {
            match deed {
                Deed::Send(mailbox, id, parcel) => mailbox.files.hand_on(id, &parcel),
                Deed::Say(mailbox, text, sequence) => {
                    let (frame, tail_bytes) = encode_text(text);
                    if mailbox.texts.push(&frame, tail_bytes, Some(sequence), 1).is_err() {
                        // It is said when another was heard, or its receiver comes again.
                        self.state.take().unsay(sequence);
                    }
                    mailbox.wake();
                }
                Deed::Withdraw(mailbox, id) => mailbox.files.withdraw(id),
                Deed::Wake(mailbox) => mailbox.wake(),
                Deed::Refuse(Fetch { asker, epoch, number, .. }) => {
                    asker.files.not_handed_on(epoch, number, Refusal::Nobody);
                }
                Deed::Forget(note, left) => {
                    // The file goes first: after a kill in between, a note without a file is told from one that waits.
                    if let Parting::File(parcel) = left.what {
                        parcel.held.set_stays(false);
                    }
                    if let Some(spool) = &*self.spool.take() {
                        spool.forget(note);
                    }
                }
                Deed::Drop(_) => {}
            }
        }
    }

    /// Starts the clock where something has a deadline; it ends with the last one.
    fn wind_up(self: &Arc<Self>) {
        {
            let mut state = self.state.take();
            if state.next_deadline().is_none() {
                return;
            }
            self.changed.notify_all();
            if std::mem::replace(&mut state.has_clock, true) {
                return;
            }
        }
        let this = Arc::clone(self);
        if spawn("relay", move || this.keep_time()).is_err() {
            self.state.take().has_clock = false;
        }
    }

    fn keep_time(&self) {
        loop {
            let mut deeds = Vec::new();
            {
                let mut state = self.state.take();
                let Some(deadline) = state.next_deadline() else {
                    state.has_clock = false;
                    return;
                };
                let left = deadline.saturating_duration_since(Instant::now());
                if !left.is_zero() {
                    drop(self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner));
                    continue;
                }
                state.give_up_overdue(&mut deeds);
            }
            self.run(deeds);
        }
    }
}

impl Recipient {
    fn is_awaited(&self) -> bool {
        self.outcome.is_none()
    }
}

impl Item {
    /// Its receiver is not here; `has_begun` when it was.
    fn wait_for(&mut self, nickname: &Nickname, has_begun: bool) {
        let least = if has_begun { RETRY_BROKEN } else { Duration::ZERO };
        let patience = self.patience.map(|patience| patience.max(least));
        if let Some(recipient) = self.recipients.iter_mut().find(|it| it.nickname == *nickname) {
            recipient.via = None;
            recipient.until = patience.and_then(|patience| Instant::now().checked_add(patience));
        }
    }

    fn relayed(&self, item: u32) -> Vec<wire::Relayed> {
        let is_over = !self.recipients.iter().any(Recipient::is_awaited);
        let mut told: Vec<wire::Relayed> = self
            .recipients
            .iter()
            .filter_map(|it| {
                let (nickname, outcome) = (it.nickname.clone(), it.outcome.clone()?);
                Some(wire::Relayed { item, nickname, outcome, last: false })
            })
            .collect();
        if let Some(last) = told.last_mut() {
            last.last = is_over;
        }
        told
    }
}

impl Deed {
    fn receiver(&self) -> Option<Arc<Mailbox>> {
        match self {
            Deed::Send(mailbox, ..) => Some(Arc::clone(mailbox)),
            _ => None,
        }
    }
}

impl State {
    /// One of those that a file is for has it, or will not get it.
    fn end(&mut self, key: &Key, nickname: &Nickname, outcome: Result<Delivered, Refusal>, deeds: &mut Vec<Deed>) {
        let Some(item) = self.items.get_mut(key) else { return };
        let Some(recipient) = item.recipients.iter_mut().find(|it| it.nickname == *nickname && it.is_awaited()) else {
            return;
        };
        recipient.outcome = Some(outcome.clone());
        (recipient.via, recipient.until) = (None, None);
        self.awaited = self.awaited.saturating_sub(1);
        let last = !item.recipients.iter().any(Recipient::is_awaited);
        if last {
            deeds.push(Deed::Drop(item.parcel.take()));
            self.over.push_back(*key);
        }
        // In the order in which they end, as the last one says that it is.
        item.origin.put_outcome(wire::Relayed { item: key.1, nickname: nickname.clone(), outcome, last });
        deeds.push(Deed::Wake(Arc::clone(&item.origin)));
        while self.over.len() > RELAYED_MAX {
            let Some(oldest) = self.over.pop_front() else { return };
            if self.items.get(&oldest).is_some_and(|item| item.parcel.is_none()) {
                self.items.remove(&oldest);
            }
        }
    }

    fn remove(&mut self, key: &Key, deeds: &mut Vec<Deed>) {
        let Some(item) = self.items.remove(key) else { return };
        self.awaited = self.awaited.saturating_sub(item.recipients.iter().filter(|it| it.is_awaited()).count());
        for (id, via) in item.recipients.into_iter().filter_map(|recipient| recipient.via) {
            self.legs.remove(&id);
            deeds.push(Deed::Withdraw(via, id));
        }
        deeds.push(Deed::Drop(item.parcel));
    }

    fn ask(&mut self, fetch: Fetch) {
        let requests = &fetch.via.requests;
        let id = match &fetch.what {
            Wanted::File(path) => requests.get(None, path.clone(), SafePath::from(path.file_name().clone())),
            Wanted::List(after) => requests.list(None, after.clone()),
        };
        self.fetches.insert(id, fetch);
    }

    /// Those who asked want it no more.
    fn give_up(&mut self, is_it: impl Fn(&Fetch) -> bool) -> Vec<Fetch> {
        let ids: Vec<RequestId> = self.fetches.iter().filter(|(_, fetch)| is_it(fetch)).map(|(&id, _)| id).collect();
        let given_up = ids.into_iter().filter_map(|id| {
            let fetch = self.fetches.remove(&id)?;
            fetch.via.requests.give_up(id);
            Some(fetch)
        });
        given_up.collect()
    }

    /// Who was asked is here on another run, which knows nothing of it.
    fn ask_again(&mut self, nickname: &Nickname, mailbox: &Arc<Mailbox>) {
        let is_its = |fetch: &Fetch| fetch.from == *nickname;
        let ids: Vec<RequestId> = self.fetches.iter().filter(|(_, it)| is_its(it)).map(|(&id, _)| id).collect();
        for id in ids {
            let Some(mut fetch) = self.fetches.remove(&id) else { continue };
            fetch.until = None;
            if Arc::ptr_eq(&fetch.via, mailbox) {
                self.fetches.insert(id, fetch);
            } else {
                fetch.via.requests.give_up(id);
                fetch.via = Arc::clone(mailbox);
                self.ask(fetch);
            }
        }
    }

    /// Something that was left has come, or has not.
    fn end_left(&mut self, nickname: &Nickname, note: u64, is_done: bool, is_gone: bool, deeds: &mut Vec<Deed>) {
        let Some(queue) = self.left.get_mut(nickname) else { return };
        if is_gone {
            queue.via = None;
        }
        if is_done {
            deeds.extend(queue.notes.remove(&note).map(|left| Deed::Forget(note, left)));
            if queue.notes.is_empty() {
                self.left.remove(nickname);
            }
        } else if let Some(left) = queue.notes.get_mut(&note) {
            left.has_started = false;
            left.is_refused = !is_gone;
        }
    }

    /// What was left and is not on its way is kept for a while only.
    fn forget_old(&mut self, keep_from: i64, deeds: &mut Vec<Deed>) {
        self.left.retain(|_, queue| {
            let is_old = |left: &Left| left.noted_seconds < keep_from && !left.has_started;
            let old: Vec<u64> = queue.notes.iter().filter(|(_, left)| is_old(left)).map(|(&note, _)| note).collect();
            deeds.extend(old.into_iter().filter_map(|note| Some(Deed::Forget(note, queue.notes.remove(&note)?))));
            !queue.notes.is_empty()
        });
    }

    /// A text that was left had no room.
    fn unsay(&mut self, sequence: u64) {
        let Some((nickname, note)) = self.said.remove(&sequence) else { return };
        let left = self.left.get_mut(&nickname).and_then(|queue| queue.notes.get_mut(&note));
        left.into_iter().for_each(|left| left.has_started = false);
    }

    /// Sends what was left, in the order in which each run left it: files together, a text once all before it came, and nothing
    /// past what was refused.
    fn deliver_left(&mut self, hub: &Hub, nickname: &Nickname, deeds: &mut Vec<Deed>) {
        let Some(queue) = self.left.get_mut(nickname) else { return };
        let Some(mailbox) = queue.via.clone() else { return };
        let (mut held_up, mut have_files) = (BTreeSet::new(), BTreeSet::new());
        for (&note, left) in &mut queue.notes {
            if held_up.contains(&left.run) {
                continue;
            }
            match &left.what {
                _ if left.is_refused => {
                    held_up.insert(left.run);
                }
                Parting::File(parcel) => {
                    have_files.insert(left.run);
                    if !std::mem::replace(&mut left.has_started, true) {
                        let id = hub.ids.next();
                        self.legs.insert(id, Leg::Left(nickname.clone(), note));
                        deeds.push(Deed::Send(Arc::clone(&mailbox), id, parcel.clone()));
                    }
                }
                Parting::Text(text) => {
                    held_up.insert(left.run);
                    if !have_files.contains(&left.run) && !std::mem::replace(&mut left.has_started, true) {
                        let sequence = hub.next_sequence();
                        self.said.insert(sequence, (nickname.clone(), note));
                        // PROTOCOL 11.5: what its run says meanwhile comes before it, and must not hide it.
                        let run = RunId(text.run.0.map(|byte| !byte));
                        let text = wire::Text { run, leave: false, ..text.clone() };
                        deeds.push(Deed::Say(Arc::clone(&mailbox), text, sequence));
                    }
                }
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let items = self.items.values().flat_map(|item| item.recipients.iter().filter_map(|it| it.until));
        items.chain(self.fetches.values().filter_map(|fetch| fetch.until)).min()
    }

    fn give_up_overdue(&mut self, deeds: &mut Vec<Deed>) {
        let now = Instant::now();
        let is_overdue = |until: Option<Instant>| until.is_some_and(|until| until <= now);
        let mut overdue = Vec::new();
        for (key, item) in &mut self.items {
            for recipient in item.recipients.iter_mut().filter(|it| is_overdue(it.until)) {
                overdue.push((*key, recipient.nickname.clone()));
                if let Some((id, via)) = recipient.via.take() {
                    self.legs.remove(&id);
                    deeds.push(Deed::Withdraw(via, id));
                }
            }
        }
        overdue.iter().for_each(|(key, nickname)| self.end(key, nickname, Err(Refusal::Nobody), deeds));
        deeds.extend(self.give_up(|fetch| is_overdue(fetch.until)).into_iter().map(Deed::Refuse));
    }

    fn has_left(&self, key: &Key, nickname: &Nickname) -> bool {
        let is_it =
            |left: &Left| left.run == key.0 && left.number == u64::from(key.1) && matches!(left.what, Parting::File(_));
        self.left.get(nickname).is_some_and(|queue| queue.notes.values().any(is_it))
    }
}

/// What one member's incoming files may go on to.
pub(super) struct MemberRelaying {
    pub(super) hub: Weak<Hub>,
    pub(super) run: RunId,
    pub(super) mailbox: Arc<Mailbox>,
}

impl Relaying for MemberRelaying {
    fn offered(&self, relay: &wire::Relay, item: u32, kind: Kind, meta: &Meta) -> Result<Way, Refusal> {
        let hub = self.hub.upgrade().ok_or(Refusal::Stopping)?;
        let key = (self.run, item);
        let spool = hub.relay.spool()?;
        let mut deeds = Vec::new();
        let known = {
            let state = &mut *hub.relay.state.take();
            match state.items.get_mut(&key) {
                Some(known) if known.kind == kind && is_same(&known.meta, meta) => {
                    known.origin = Arc::clone(&self.mailbox);
                    Some(Way::Known(known.arrived.clone(), known.relayed(item)))
                }
                // The source changed.
                Some(_) => {
                    state.remove(&key, &mut deeds);
                    None
                }
                None => None,
            }
        };
        hub.relay.run(deeds);
        if let Some(known) = known {
            return Ok(known);
        }
        let nicknames = hub.relay.recipients(&hub, self.run, relay)?;
        {
            let mut state = hub.relay.state.take();
            if state.awaited + nicknames.len() > RELAYED_MAX {
                return Err(Refusal::TooMuch);
            }
            state.awaited += nicknames.len();
        }
        let passage = RelayPassage {
            hub: Weak::clone(&self.hub),
            key,
            mailbox: Arc::clone(&self.mailbox),
            leaves: relay.leave,
            patience: Some(relay.patience_seconds).filter(|&seconds| seconds < u32::MAX),
            nicknames,
            meta: meta.clone(),
            kind,
            held: Arc::new(spool.hold(meta)),
        };
        Ok(Way::Through(Box::new(passage)))
    }

    fn asked_for(&self, request: RequestId, kind: Kind, meta: &Meta) -> Option<Result<Box<dyn Passage>, Refusal>> {
        let hub = self.hub.upgrade()?;
        if !hub.relay.state.take().fetches.contains_key(&request) {
            return None;
        }
        let spool = match hub.relay.spool() {
            Ok(spool) => spool,
            Err(refusal) => return Some(Err(refusal)),
        };
        let held = Arc::new(spool.hold(meta));
        let parcel = Parcel { kind, name: meta.path.clone(), mtime: meta.mtime, mode: meta.mode, held };
        Some(Ok(Box::new(FetchPassage { hub: Weak::clone(&self.hub), request, parcel })))
    }
}

fn seconds_now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

/// A stream's size is not known before its end; its stamp tells it from others.
fn is_same(one: &Meta, other: &Meta) -> bool {
    (&one.path, one.size, one.mtime, one.content_crc) == (&other.path, other.size, other.mtime, other.content_crc)
}

/// A file on its way in, for others.
struct RelayPassage {
    hub: Weak<Hub>,
    key: Key,
    mailbox: Arc<Mailbox>,
    leaves: bool,
    /// In seconds; `None`: for ever.
    patience: Option<u32>,
    /// They count as awaited while they are here.
    nicknames: Vec<Nickname>,
    meta: Meta,
    kind: Kind,
    held: Arc<Held>,
}

impl Drop for RelayPassage {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            let mut state = hub.relay.state.take();
            state.awaited = state.awaited.saturating_sub(self.nicknames.len());
        }
    }
}

impl RelayPassage {
    fn parcel(&self) -> Parcel {
        Parcel {
            kind: self.kind,
            name: self.meta.path.clone(),
            mtime: self.meta.mtime,
            mode: self.meta.mode,
            held: Arc::clone(&self.held),
        }
    }

    fn leave(&self, hub: &Hub, arrived: &Arrived) -> Result<(), Refusal> {
        let spool = hub.relay.spool()?;
        let mut nicknames = self.nicknames.clone();
        {
            let state = hub.relay.state.take();
            nicknames.retain(|nickname| !state.has_left(&self.key, nickname));
        }
        let parted = |nickname: Nickname| {
            // Each note keeps the file for itself.
            let parcel = Parcel { held: Arc::new(self.held.again()), ..self.parcel() };
            let (run, number) = (self.key.0, self.key.1.into());
            let noted = note(self.key, &nickname, &self.meta, self.kind, arrived);
            let (what, noted_seconds) = (Parting::File(parcel), seconds_now());
            let left = Left { run, number, what, noted_seconds, has_started: false, is_refused: false };
            (nickname, left, noted)
        };
        let parted: Vec<_> = nicknames.into_iter().map(parted).collect();
        hub.relay.leave(&spool, parted)
    }
}

impl Passage for RelayPassage {
    fn name(&self) -> &SafePath {
        &self.meta.path
    }

    fn place(&self) -> (&Arc<Store>, &SafePath) {
        (self.held.store(), self.held.path())
    }

    fn arrived(&mut self, arrived: Arrived) -> Result<(), Refusal> {
        let hub = self.hub.upgrade().ok_or(Refusal::Stopping)?;
        self.held.is_stored_as(arrived.stored.clone());
        if self.leaves {
            return self.leave(&hub, &arrived);
        }
        let recipient = |nickname: Nickname| Recipient { nickname, via: None, until: None, outcome: None };
        let item = Item {
            meta: self.meta.clone(),
            kind: self.kind,
            arrived,
            origin: Arc::clone(&self.mailbox),
            patience: self.patience.map(|seconds| Duration::from_secs(seconds.into())),
            parcel: Some(self.parcel()),
            // They are the item's from now on.
            recipients: std::mem::take(&mut self.nicknames).into_iter().map(recipient).collect(),
        };
        let mut deeds = Vec::new();
        {
            let state = &mut *hub.relay.state.take();
            // It may have been offered twice.
            state.remove(&self.key, &mut deeds);
            state.items.insert(self.key, item);
        }
        hub.relay.run(deeds);
        Ok(())
    }

    fn go_on(self: Box<Self>) {
        let Some(hub) = self.hub.upgrade() else { return };
        if self.leaves {
            self.nicknames.iter().for_each(|nickname| hub.relay.go_on_with_left(&hub, nickname));
        } else {
            hub.relay.go_on(&hub, self.key);
        }
    }
}

/// A file on its way to who asked for it.
struct FetchPassage {
    hub: Weak<Hub>,
    request: RequestId,
    parcel: Parcel,
}

impl Passage for FetchPassage {
    fn name(&self) -> &SafePath {
        &self.parcel.name
    }

    fn place(&self) -> (&Arc<Store>, &SafePath) {
        (self.parcel.held.store(), self.parcel.held.path())
    }

    fn arrived(&mut self, arrived: Arrived) -> Result<(), Refusal> {
        self.parcel.held.is_stored_as(arrived.stored);
        Ok(())
    }

    fn go_on(self: Box<Self>) {
        let Some(hub) = self.hub.upgrade() else { return };
        let asker = {
            let state = hub.relay.state.take();
            state.fetches.get(&self.request).map(|it| (Arc::clone(&it.asker), it.epoch, it.number))
        };
        if let Some((asker, epoch, number)) = asker {
            asker.files.hand_on_asked(epoch, number, &self.parcel);
        }
    }
}

/// The first frame of a note says the version of the others.
fn note_start() -> Vec<u8> {
    let mut bytes = Vec::new();
    Message::Hello { version_low: VERSION, version_high: VERSION, mode: MODE_PLAIN }.encode(&mut bytes);
    bytes
}

/// A note is the frames that say it: a TEXT with who it is from and for, and of a file the OFFER and the RECEIPT.
fn note(key: Key, nickname: &Nickname, meta: &Meta, kind: Kind, arrived: &Arrived) -> Vec<u8> {
    let mut bytes = note_start();
    let (run, sequence) = (key.0, key.1.into());
    let text = wire::Text {
        run,
        sequence,
        from: None,
        to: Some(nickname.clone()),
        leave: true,
        to_room: false,
        text: String::new(),
    };
    Message::Text(text).encode(&mut bytes);
    let offer = wire::Offer {
        transfer: 1,
        kind: kind.to_wire(),
        size: arrived.size,
        mtime: meta.mtime.into(),
        mode: meta.mode,
        content_crc: 0,
        request: 0,
        relay: 0,
        item: key.1,
        path: meta.path.to_bytes(),
    };
    Message::Offer(offer).encode(&mut bytes);
    let receipt = wire::Receipt {
        transfer: 1,
        durable: arrived.durable,
        already: false,
        size: arrived.size,
        resumed: 0,
        crc: arrived.crc,
        stored: arrived.stored.to_bytes(),
    };
    Message::Receipt(receipt).encode(&mut bytes);
    bytes
}

/// What [`note`] wrote; `None` for what it did not, and for a file that is gone.
fn read_note(spool: &Arc<Spool>, bytes: &[u8], noted_seconds: i64) -> Option<(Nickname, Left)> {
    let mut decoder = Decoder::for_server();
    decoder.hello_complete();
    let mut rest = bytes;
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let (used, frame) = decoder.decode(rest).ok()?;
        rest = rest.get(used..)?;
        match frame {
            Some(Frame::Message(message)) => messages.push(message),
            None if used > 0 => {}
            _ => return None,
        }
    }
    let mut messages = messages.into_iter();
    match messages.next() {
        Some(Message::Hello { version_low: VERSION, .. }) => {}
        _ => return None,
    }
    let Some(Message::Text(text)) = messages.next() else { return None };
    let (nickname, run, number) = (text.to.clone()?, text.run, text.sequence);
    let what = match (messages.next(), messages.next()) {
        (None, None) => Parting::Text(text),
        (Some(Message::Offer(offer)), Some(Message::Receipt(receipt))) => {
            let held = Arc::new(spool.hold_stored(SafePath::parse(&receipt.stored).ok()?)?);
            held.set_stays(true);
            Parting::File(Parcel {
                kind: Kind::from_wire(offer.kind)?,
                name: SafePath::parse(&offer.path).ok()?,
                mtime: offer.mtime.into(),
                mode: offer.mode,
                held,
            })
        }
        _ => return None,
    };
    Some((nickname, Left { run, number, what, noted_seconds, has_started: false, is_refused: false }))
}
