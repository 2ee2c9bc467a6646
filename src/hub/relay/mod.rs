//! What a server carries between its clients (PROTOCOL 11): files for others, what others share, and what is left for who is
//! not there.
//!
//! A file is stored first, in the spool, and whoever sent it has its receipt; then each of those that it is for gets it as any
//! file is sent. So each leg goes on by itself after a break, and the bytes come once. What is under way is in memory: whoever
//! sent it offers it again after a restart, and the spool has it. What is left is in notes, which outlive the process.
//!
//! Nothing is called while the state is locked that may come back here.

mod note;
mod passage;
mod state;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::member::Member;
use super::{encode_text, is_the_servers, Hub};
use crate::config::{Config, LEFT_MAX, RETRY_BROKEN};
use crate::error::{Error, Refusal};
use crate::name::{Nickname, SafePath};
use crate::session::{Mailbox, RequestOf, TextReport};
use crate::storage::{Meta, Spool};
use crate::transfer::{Answer, Arrived, Kind, Parcel, Report, RequestId, TransferId};
use crate::wire::{self, Delivered, Message, RunId};
use crate::worker::{spawn, Lock, Signal};

pub(super) use passage::MemberRelaying;

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
            match noted.and_then(|noted| note::read(spool, &bytes, noted)) {
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
        let mut bytes = note::start();
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

fn seconds_now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}
