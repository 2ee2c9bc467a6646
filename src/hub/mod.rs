//! All peers of a server: who is connected, who is in the room, what is delivered to whom.
//!
//! A [`Hub`] owns no socket and no thread: `server` gives it connections on threads of their own ([`Hub::serve`]). It never
//! waits for a peer: a reader too slow for what is said is cut off.

mod member;
mod relay;
mod seen;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use seen::Seen;

use crate::capacity::Capacity;
use crate::config::{
    Config, CHUNK_BYTES_LEAST, CHUNK_BYTES_MAX, HOLDER_SILENCE_MAX, OFFERS_LEAST, OFFERS_MAX, OFFER_BYTES,
    REFUSED_TIMEOUT, RUNS_REMEMBERED, RUN_REMEMBERED, TEXT_BYTES_MAX, TEXT_WINDOW_BYTES,
};
use crate::conn::Conn;
use crate::error::{Error, Goodbye, Refusal, Result};
use crate::event::{Event, Events, PeerInfo};
use crate::key::fill_random;
use crate::name::{Nickname, SafeName, SafePath};
use crate::session::{
    greet_as_server, refuse, welcome, FrameReader, Handled, Mailbox, MailboxContext, MakeInbound, Outbox, Session,
    SessionContext,
};
use crate::storage::{Named, Pipe, Store, Top};
use crate::transfer::{Budget, Holders, InboundContext, Pace, Report, RequestId, Requests, TransferId, TransferIds};
use crate::wire::{self, Message, Presence, RunId};
use crate::worker::{Lock, Signal};
use member::{Called, Member, MemberOwner};
use relay::{MemberRelaying, Relay};

/// See the module.
pub(crate) struct Hub {
    config: Config,
    pub(crate) capacity: Capacity,
    run: RunId,
    pub(crate) events: Events,
    store: Option<Arc<Store>>,
    pipe: Option<Pipe>,
    budget: Arc<Budget>,
    holders: Arc<Holders>,
    ids: Arc<TransferIds>,
    pace: Arc<Pace>,
    outbox: Arc<Outbox>,
    share: Option<Arc<Top>>,
    relay: Arc<Relay>,
    state: Mutex<State>,
    /// Keeps the server's own sequences in the order of the queues.
    saying: Mutex<()>,
    /// Wakes who waits for a new peer, or for the last to leave.
    changed: Signal,
}

#[derive(Default)]
struct State {
    members: BTreeMap<u32, Arc<Member>>,
    /// Who has which nickname.
    called: HashMap<Nickname, u32>,
    /// All counted nicknames below this one are taken.
    counted_from: u32,
    last_member: u32,
    last_sequence: u64,
    seen: Seen,
    /// What is owed to runs whose connection broke.
    parked: HashMap<RunId, Parked>,
    /// Connections whose hello is not complete, by address.
    strangers: HashMap<IpAddr, usize>,
    /// Peers that nobody asked for yet.
    pending: VecDeque<PeerInfo>,
    stopping: bool,
}

struct Parked {
    mailbox: Arc<Mailbox>,
    called: Called,
    since: Instant,
}

impl Hub {
    /// # Errors
    /// The directory can't be opened, or the system has no random numbers.
    pub(crate) fn new(config: Config) -> Result<Arc<Hub>> {
        check_key(&config)?;
        let capacity = Capacity::of_system(config.max_clients);
        let store = config.dir.as_deref().map(|dir| Store::open(dir, &config)).transpose()?.map(Arc::new);
        Ok(Arc::new(Hub {
            run: random_run()?,
            events: Events::new(config.read_buffer_bytes),
            store,
            pipe: config.sink.clone().map(Pipe::new),
            budget: Arc::new(Budget::new(receive_budget(&config), capacity.commits)),
            holders: Arc::default(),
            ids: Arc::default(),
            pace: Arc::new(Pace::new(config.limit_rate)),
            outbox: Arc::new(Outbox::new(config.max_memory / 2)),
            share: config.share.as_deref().map(Top::open).transpose()?.map(Arc::new),
            relay: Arc::new(Relay::new(&config)?),
            state: Mutex::default(),
            saying: Mutex::default(),
            changed: Signal::new(),
            capacity,
            config,
        }))
    }

    /// Counts a fresh connection in.
    ///
    /// # Errors
    /// Too many strangers are there, or from there; or none are taken any more.
    pub(crate) fn admit_stranger(&self, address: IpAddr) -> std::result::Result<(), Refusal> {
        let mut state = self.state.take();
        let here = state.strangers.get(&network(address)).copied().unwrap_or(0);
        let all: usize = state.strangers.values().sum();
        if state.stopping {
            return Err(Refusal::Stopping);
        }
        let bounds = [(all, self.capacity.strangers), (here, self.capacity.strangers_per_address)];
        if let Some((_, most)) = bounds.into_iter().find(|(now, most)| now >= most) {
            return Err(Refusal::Busy(u64::try_from(most).unwrap_or(u64::MAX)));
        }
        *state.strangers.entry(network(address)).or_default() += 1;
        Ok(())
    }

    /// The hello is over, one way or the other.
    pub(crate) fn forget_stranger(&self, address: IpAddr) {
        let mut state = self.state.take();
        if let Some(count) = state.strangers.get_mut(&network(address)) {
            *count -= 1;
            if *count == 0 {
                state.strangers.remove(&network(address));
            }
        }
    }

    /// One connection, from its hello to its end, on the calling thread.
    pub(crate) fn serve(self: &Arc<Self>, conn: &Arc<Conn>) {
        let greeted = self.greet(conn).inspect_err(|error| refuse(conn, error));
        // Whoever is refused holds a descriptor and a thread for as long as that takes.
        self.forget_stranger(conn.peer_addr().ip());
        let (session, reader, info) = match greeted {
            Ok(greeted) => greeted,
            Err(error) => {
                let refused = Event::StrangerRefused { address: conn.peer_addr(), error };
                return self.events.push_when_there_is_room(refused);
            }
        };
        let run = session.peer().run;
        self.events.push_when_there_is_room(Event::PeerConnected { peer: info.clone() });
        self.introduce(&info, &session);
        if info.in_room {
            self.relay.arrive(self, &info.nickname, session.mailbox());
        }
        let result = session.run(reader);
        self.part(info.id, run, result);
    }

    /// The hello, and a place among the members.
    fn greet(self: &Arc<Self>, conn: &Arc<Conn>) -> Result<(Arc<Session>, FrameReader, PeerInfo)> {
        let address = conn.peer_addr().ip();
        if !self.config.allow.is_empty() && !self.config.allow.iter().any(|network| network.contains(address)) {
            return Err(Error::Refused(Refusal::NotAllowed));
        }
        let (peer, reader) = greet_as_server(conn, self.config.key.as_ref())?;
        if let Some(wished) = &peer.nickname {
            self.end_if_dead(wished, peer.run);
        }
        let (session, info, replaced, me) = {
            let mut state = self.state.take();
            if state.stopping {
                return Err(Error::Refused(Refusal::Stopping));
            }
            // PROTOCOL 7.1: the same run again takes over.
            let replaced =
                state.members.values().find(|member| member.session.peer().run == peer.run).map(|m| m.info.id);
            let replaced = replaced.and_then(|id| state.remove(id));
            if state.members.len() >= self.capacity.clients {
                return Err(Error::Refused(Refusal::Busy(u64::try_from(self.capacity.clients).unwrap_or(u64::MAX))));
            }
            let parked = state.parked.remove(&peer.run);
            state.last_member += 1;
            let id = state.last_member;
            let (called, mailbox) = match (&replaced, parked) {
                (Some(old), _) => (old.called.clone(), Arc::clone(old.session.mailbox())),
                (None, Some(parked)) if !state.is_taken(&parked.called.get(), id) => (parked.called, parked.mailbox),
                (None, _) => {
                    let called = Called::new(state.free_nickname(peer.nickname.as_ref(), id));
                    (called.clone(), self.new_mailbox(called))
                }
            };
            let address = conn.peer_addr();
            let info = PeerInfo { id, nickname: called.get(), address, in_room: peer.in_room };
            let owner = MemberOwner {
                hub: Arc::clone(self),
                id,
                in_room: peer.in_room,
                address,
                called: called.clone(),
                mailbox: Arc::clone(&mailbox),
                woken_next: Mutex::default(),
            };
            let owner = Arc::new(owner);
            let me = self.introduction(state.members.len() + 1);
            let inbound = self.inbound(called.clone(), address, peer.run, &mailbox, &me);
            let context = SessionContext { mailbox, owner, inbound };
            // As many as send chunks at once may have them read and waiting for the socket.
            let peer = wire::Peer { chunk_bytes: peer.chunk_bytes.min(me.chunk_bytes), ..peer };
            let session = Session::new(Arc::clone(conn), peer, context);
            state.add(Member { info: info.clone(), called, session: Arc::clone(&session) });
            if state.pending.len() < RUNS_REMEMBERED {
                state.pending.push_back(info.clone());
            }
            (session, info, replaced, me)
        };
        if let Some(old) = replaced {
            old.session.end();
        }
        self.changed.notify_all();
        if let Err(error) = welcome(conn, &me, &info.nickname, self.config.key.as_ref()) {
            self.state.take().remove(info.id);
            return Err(error);
        }
        Ok((session, reader, info))
    }

    /// PROTOCOL 3.2: tells the room who came, and who came who is there.
    fn introduce(&self, info: &PeerInfo, session: &Session) {
        if !info.in_room {
            return;
        }
        self.events.push_when_there_is_room(Event::Joined(info.nickname.clone()));
        let there = self.room_but(info.id);
        session.announce(there.iter().map(|member| Presence::Joined(member.info.nickname.clone())));
        for member in there {
            member.session.announce([Presence::Joined(info.nickname.clone())]);
        }
    }

    /// A session ended: what it is still owed waits for its run for a while.
    fn part(&self, id: u32, run: RunId, result: Result<Goodbye>) {
        let error = result.err();
        let mut over = Vec::new();
        // Dropped below, without the lock.
        let mut forgotten = Vec::new();
        let member = {
            let mut state = self.state.take();
            let member = state.remove(id);
            state.pending.retain(|pending| pending.id != id);
            let is_old = |parked: &Parked| parked.since.elapsed() >= RUN_REMEMBERED;
            over.extend(state.parked.iter().filter(|(_, parked)| is_old(parked)).map(|(&run, _)| run));
            state.parked.retain(|_, parked| !is_old(parked));
            if let (Some(member), Some(_)) = (&member, &error) {
                if state.parked.len() < RUNS_REMEMBERED {
                    let (mailbox, called) = (Arc::clone(member.session.mailbox()), member.called.clone());
                    mailbox.texts.keep_alone();
                    state.parked.insert(run, Parked { mailbox, called, since: Instant::now() });
                } else {
                    over.push(run);
                }
            }
            // Whoever is away longest goes before those who are here are cut short.
            let mut freed = 0;
            while self.outbox.is_short(freed) {
                let oldest = state.parked.iter().min_by_key(|(_, parked)| parked.since).map(|(run, _)| *run);
                let Some(run) = oldest else { break };
                let Some(parked) = state.parked.remove(&run) else { break };
                over.push(run);
                freed += parked.mailbox.texts.cost();
                forgotten.push(parked);
            }
            member
        };
        drop(forgotten);
        // Without a member a newer connection of the run took over: for the room nothing happened.
        let Some(member) = member else { return self.changed.notify_all() };
        let Member { info, session, .. } = &*member;
        if error.is_none() {
            session.mailbox().files.fail_all(|| Error::Closed);
            session.mailbox().requests.fail_all(|| Error::Closed);
            // Of a server that stops the client goes on with the next one.
            if !self.state.take().stopping {
                over.push(run);
            }
        }
        over.into_iter().for_each(|run| self.relay.forget_run(run));
        self.relay.depart(session.mailbox());
        if info.in_room {
            self.events.push_when_there_is_room(Event::Left(info.nickname.clone()));
            for member in self.room_but(id) {
                member.session.announce([Presence::Left(info.nickname.clone())]);
            }
        }
        self.events.push_when_there_is_room(Event::PeerDisconnected { peer: info.clone(), error });
        // Whoever waits for the last peer to leave closes the events.
        self.changed.notify_all();
    }

    /// Says something to everybody in the room, or to one. Gives its sequence.
    ///
    /// # Errors
    /// [`Refusal::Nobody`], [`Error::Argument`] for a text that is too long.
    pub(crate) fn send_text(&self, to: Option<&Nickname>, text: &str) -> Result<u64> {
        check_text(text)?;
        let receivers = self.receivers(to)?;
        let (run, from, to, text) = (self.run, None, to.cloned(), text.to_owned());
        let sequence = {
            let _saying = self.saying.take();
            let sequence = self.next_sequence();
            let text = wire::Text { run, sequence, from, to, leave: false, to_room: false, text };
            deliver(&receivers, text, Some(sequence));
            sequence
        };
        receivers.iter().for_each(|member| member.session.mailbox().wake());
        Ok(sequence)
    }

    /// The number of the next text of the server's own run.
    fn next_sequence(&self) -> u64 {
        let mut state = self.state.take();
        state.last_sequence += 1;
        state.last_sequence
    }

    /// Offers a file to everybody in the room, or to one.
    ///
    /// # Errors
    /// [`Refusal::Nobody`], [`Error::File`].
    pub(crate) fn send_file(&self, to: Option<&Nickname>, path: &Path) -> Result<Vec<TransferId>> {
        let name = offered_name(path)?;
        Named::look(path)?;
        self.receivers(to)?.iter().map(|member| member.session.mailbox().files.add_path(path, &name, None)).collect()
    }

    /// Asks one in the room for what it shares.
    ///
    /// # Errors
    /// [`Refusal::Nobody`], [`Error::Argument`] when there is no place for it.
    pub(crate) fn get(&self, from: &Nickname, path: &SafePath, name: Option<&SafePath>) -> Result<RequestId> {
        if self.store.is_none() && self.pipe.is_none() {
            return Err(no_place_to_store());
        }
        let name = name.cloned().unwrap_or_else(|| SafePath::from(path.file_name().clone()));
        self.ask(from, |requests| requests.get(None, path.clone(), name))
    }

    /// Asks one in the room what it shares.
    ///
    /// # Errors
    /// [`Refusal::Nobody`].
    pub(crate) fn list(&self, from: &Nickname, after: Option<&SafePath>) -> Result<RequestId> {
        self.ask(from, |requests| requests.list(None, after.cloned()))
    }

    fn ask(&self, from: &Nickname, ask: impl FnOnce(&Requests) -> RequestId) -> Result<RequestId> {
        let mailbox = self.mailbox_in_room(from).ok_or(Error::Refused(Refusal::Nobody))?;
        let id = ask(&mailbox.requests);
        mailbox.wake();
        Ok(id)
    }

    /// Everybody who is connected.
    pub(crate) fn peers(&self) -> Vec<PeerInfo> {
        self.state.take().members.values().map(|member| member.info.clone()).collect()
    }

    /// The next peer that nobody asked for yet; waits for one.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Closed`].
    pub(crate) fn wait_for_peer(&self, timeout: Duration) -> Result<PeerInfo> {
        let none = |state: &mut State| state.pending.is_empty() && !state.stopping;
        let (mut state, _) =
            self.changed.wait_timeout_while(self.state.take(), timeout, none).unwrap_or_else(PoisonError::into_inner);
        match state.pending.pop_front() {
            Some(peer) => Ok(peer),
            None if state.stopping => Err(Error::Closed),
            None => Err(Error::Timeout { waiting_for: "a connection", after: timeout }),
        }
    }

    /// Ends a peer's connection in order.
    pub(crate) fn disconnect(&self, id: u32) {
        let session = self.state.take().members.get(&id).map(|member| Arc::clone(&member.session));
        if let Some(session) = session {
            session.close(Goodbye::Removed);
        }
    }

    /// PROTOCOL 2.5: a member wishes another nickname, and gets it or one like it.
    fn rename(&self, id: u32, wished: &Nickname) {
        let (from, to, in_room, session) = {
            let mut state = self.state.take();
            let to = state.free_nickname(Some(wished), id);
            // A newer connection of the run took over.
            let Some(mut member) = state.remove(id) else { return };
            let renamed = Arc::make_mut(&mut member);
            let from = std::mem::replace(&mut renamed.info.nickname, to.clone());
            renamed.called.set(to.clone());
            let (in_room, session) = (renamed.info.in_room, Arc::clone(&renamed.session));
            state.add_shared(member);
            (from, to, in_room, session)
        };
        session.name(to.clone());
        if in_room {
            self.relay.arrive(self, &to, session.mailbox());
        }
        if in_room && from != to {
            for member in self.room_but(id) {
                member.session.announce([Presence::Renamed { from: from.clone(), to: to.clone() }]);
            }
            self.events.push_when_there_is_room(Event::Renamed { from, to });
        }
    }

    /// Ends the connection of whoever has that nickname, whatever is under way.
    ///
    /// # Errors
    /// [`Refusal::Nobody`].
    pub(crate) fn kick(&self, nickname: &Nickname) -> Result<()> {
        self.receivers(Some(nickname))?.iter().for_each(|member| member.session.dismiss(Goodbye::Removed));
        Ok(())
    }

    /// Says GOODBYE to everybody and waits until they are gone, `timeout` at most; then they are cut off.
    pub(crate) fn stop(&self, timeout: Duration) {
        let members: Vec<Arc<Member>> = {
            let mut state = self.state.take();
            state.stopping = true;
            state.members.values().cloned().collect()
        };
        self.changed.notify_all();
        members.iter().for_each(|member| member.session.close(Goodbye::Stopping));
        let (state, _) = self
            .changed
            .wait_timeout_while(self.state.take(), timeout, |state| !state.members.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        drop(state);
        members.iter().for_each(|member| member.session.end());
        self.relay.stop();
        self.events.close();
    }

    /// A text from a member: to the room or to one, and to the application.
    fn said(
        &self,
        sender: &MemberOwner,
        text: wire::Text,
        handled: Handled,
    ) -> std::result::Result<(), (Refusal, Handled)> {
        if !self.state.take().seen.is_new(text.run, text.sequence) {
            return Ok(());
        }
        if !self.events.has_room_for_text(text.text.len()) {
            return Err((Refusal::TooMuch, handled));
        }
        let carried = wire::Text { from: Some(sender.called.get()), ..text };
        if let Some(to) = &carried.to {
            if !self.config.relay {
                return Err((Refusal::NoRelay, handled));
            }
            if carried.leave {
                // Its sender waits for the disk, and nobody else does.
                if let Err(refusal) = self.relay.leave_text(self, carried.clone()) {
                    return Err((refusal, handled));
                }
                self.state.take().seen.remember(carried.run, carried.sequence);
                return Ok(());
            }
            let Ok(receivers) = self.receivers(Some(to)) else { return Err((Refusal::Nobody, handled)) };
            deliver(&receivers, carried.clone(), None);
            sender.gave(&receivers);
        } else if carried.to_room && !self.config.relay {
            return Err((Refusal::NoRelay, handled));
        } else if self.config.relay && (sender.in_room || carried.to_room) {
            let receivers = self.room_but(sender.id);
            deliver(&receivers, carried.clone(), None);
            sender.gave(&receivers);
        }
        self.state.take().seen.remember(carried.run, carried.sequence);
        let private = carried.to.is_some();
        let (from, address) = (carried.from, sender.address);
        let text = crate::event::Text { from, address, private, text: carried.text, handled };
        self.events.push(Event::Text(text));
        Ok(())
    }

    fn receivers(&self, to: Option<&Nickname>) -> Result<Vec<Arc<Member>>> {
        let Some(to) = to else { return Ok(self.room_but(0)) };
        let member = self.state.take().member_called(to);
        member.map(|member| vec![member]).ok_or(Error::Refused(Refusal::Nobody))
    }

    fn room_but(&self, id: u32) -> Vec<Arc<Member>> {
        let state = self.state.take();
        // Room for all at once, for the reason of `FLUSH_BYTES`.
        let mut members = Vec::with_capacity(state.members.len());
        members.extend(state.members.values().filter(|member| member.info.in_room && member.info.id != id).cloned());
        members
    }

    /// Of who has that nickname in the room.
    fn mailbox_in_room(&self, nickname: &Nickname) -> Option<Arc<Mailbox>> {
        let member = self.state.take().member_called(nickname).filter(|member| member.info.in_room);
        member.map(|member| Arc::clone(member.session.mailbox()))
    }

    /// Whether whoever has this mailbox is connected.
    fn is_here(&self, mailbox: &Arc<Mailbox>) -> bool {
        self.state.take().members.values().any(|member| Arc::ptr_eq(member.session.mailbox(), mailbox))
    }

    /// Who has the nickname that another run wishes is asked whether it is alive: a board that was switched off and on comes back
    /// before its old connection is known to be dead.
    fn end_if_dead(&self, wished: &Nickname, run: RunId) {
        let holder = self.state.take().member_called(wished).filter(|member| member.session.peer().run != run);
        let Some(holder) = holder.filter(|holder| !holder.session.answers_within(HOLDER_SILENCE_MAX)) else { return };
        holder.session.end();
        let is_there = |state: &mut State| state.members.contains_key(&holder.info.id);
        drop(self.changed.wait_timeout_while(self.state.take(), REFUSED_TIMEOUT, is_there));
    }

    /// What the latest of so many members is told: as they multiply, what each may have under way shrinks.
    fn introduction(&self, members: usize) -> wire::Peer {
        let peer = introduction(self.run, &self.config, self.store.is_some() || self.pipe.is_some(), members);
        wire::Peer { relays: self.config.relay, in_room: false, ..peer }
    }

    fn new_mailbox(self: &Arc<Self>, called: Called) -> Arc<Mailbox> {
        let (of_texts, of_files, of_answers) = (Arc::downgrade(self), Arc::downgrade(self), Arc::downgrade(self));
        let text_report = move |report| {
            let Some(hub) = of_texts.upgrade() else { return };
            if !hub.relay.hears_text(&hub, report) {
                hub.events.push(Event::from(report));
            }
        };
        let file_report = move |report| {
            let Some(hub) = of_files.upgrade() else { return };
            if !hub.relay.hears(&hub, &report) {
                hub.events.push(event_of(report, Some(&called.get()), None));
            }
        };
        let answers = move |answer| {
            let Some(hub) = of_answers.upgrade() else { return };
            if !hub.relay.hears_answer(&answer) {
                hub.events.push(Event::from(answer));
            }
        };
        let context = MailboxContext {
            ids: Arc::clone(&self.ids),
            pace: Arc::clone(&self.pace),
            outbox: Arc::clone(&self.outbox),
            share: self.share.clone(),
        };
        Arc::new(Mailbox::new(context, text_report, file_report, answers))
    }

    /// How the files of one peer come in.
    fn inbound(
        self: &Arc<Self>,
        called: Called,
        address: SocketAddr,
        run: RunId,
        mailbox: &Arc<Mailbox>,
        me: &wire::Peer,
    ) -> MakeInbound {
        let (offers_max, chunk_bytes_max) = (me.offers, me.chunk_bytes);
        let hub = Arc::clone(self);
        let (requests, mailbox) = (Arc::clone(&mailbox.requests), Arc::clone(mailbox));
        Box::new(move |hooks| {
            let events = hub.events.clone();
            InboundContext {
                store: hub.store.clone(),
                pipe: hub.pipe.clone(),
                takes_offers: hub.config.take_offers,
                requests,
                relaying: Some(Arc::new(MemberRelaying { hub: Arc::downgrade(&hub), run, mailbox })),
                budget: Arc::clone(&hub.budget),
                offers_max,
                chunk_bytes_max,
                holders: Arc::clone(&hub.holders),
                pulse: hooks.pulse,
                report: Arc::new(move |report| {
                    events.push_when_there_is_room(event_of(report, Some(&called.get()), Some(address)))
                }),
                wake: hooks.wake,
                violated: hooks.violated,
                ids: Arc::clone(&hub.ids),
            }
        })
    }
}

impl State {
    /// Whether another than member `id` has it.
    fn is_taken(&self, nickname: &Nickname, id: u32) -> bool {
        is_the_servers(nickname) || self.called.get(nickname).is_some_and(|&holder| holder != id)
    }

    fn member_called(&self, nickname: &Nickname) -> Option<Arc<Member>> {
        self.called.get(nickname).and_then(|id| self.members.get(id)).cloned()
    }

    fn add(&mut self, member: Member) {
        self.add_shared(Arc::new(member));
    }

    fn add_shared(&mut self, member: Arc<Member>) {
        self.called.insert(member.info.nickname.clone(), member.info.id);
        self.members.insert(member.info.id, member);
    }

    fn remove(&mut self, id: u32) -> Option<Arc<Member>> {
        let member = self.members.remove(&id)?;
        // The run's next connection may have it already.
        if self.called.get(&member.info.nickname) == Some(&id) {
            self.called.remove(&member.info.nickname);
        }
        self.counted_from = 0;
        Some(member)
    }

    /// PROTOCOL 2.5.
    fn free_nickname(&mut self, wished: Option<&Nickname>, id: u32) -> Nickname {
        let mut number = if wished.is_some() { 1 } else { self.counted_from.max(1) };
        loop {
            let nickname = match wished {
                Some(wished) if number == 1 => wished.clone(),
                Some(wished) => wished.numbered(number),
                None => Nickname::counted(number),
            };
            if !self.is_taken(&nickname, id) {
                if wished.is_none() {
                    self.counted_from = number;
                }
                return nickname;
            }
            number += 1;
        }
    }
}

/// What the server itself says appears under this name, which nobody gets.
fn is_the_servers(nickname: &Nickname) -> bool {
    nickname.as_str() == "server"
}

/// Queues one text for each receiver, who is woken by the caller; whoever is too slow for it is cut off.
fn deliver(receivers: &[Arc<Member>], text: wire::Text, sequence: Option<u64>) {
    let (frame, tail_bytes) = encode_text(text);
    for member in receivers {
        let mailbox = member.session.mailbox();
        if mailbox.texts.push(&frame, tail_bytes, sequence, receivers.len()).is_err() {
            member.session.end();
        }
    }
}

/// A text's frame and the length of its tail.
pub(crate) fn encode_text(text: wire::Text) -> (Arc<[u8]>, usize) {
    let names = [&text.from, &text.to].into_iter().flatten().map(|name| name.as_str().len()).sum::<usize>();
    let tail_bytes = text.text.len() + names;
    let mut frame = Vec::with_capacity(tail_bytes + 64);
    Message::Text(text).encode(&mut frame);
    (frame.into(), tail_bytes)
}

/// What a peer is told of a process that has this configuration and so many peers with it.
pub(crate) fn introduction(run: RunId, config: &Config, takes_files: bool, peers: usize) -> wire::Peer {
    let limit = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    let memory = config.max_memory / 4;
    let chunk_bytes_max = (config.max_memory / 32).clamp(CHUNK_BYTES_LEAST, CHUNK_BYTES_MAX);
    // The credit bounds what they hold together, but for what was under way to a transfer that has ended, and many long chunks
    // are hard to find room for.
    let chunk_bytes_among_many = config.max_memory / 1024;
    wire::Peer {
        run,
        in_room: config.join_room,
        takes_files,
        relays: false,
        text_bytes: limit(TEXT_BYTES_MAX),
        text_window_bytes: limit(TEXT_WINDOW_BYTES.min(config.read_buffer_bytes)),
        chunk_bytes: limit(
            (memory / peers.max(1)).max(chunk_bytes_among_many).clamp(CHUNK_BYTES_LEAST, chunk_bytes_max),
        ),
        offers: limit(memory / OFFER_BYTES / peers.max(1)).clamp(OFFERS_LEAST, OFFERS_MAX),
        nickname: config.nick.clone(),
    }
}

/// The part of `max_memory` that received data may hold; half is for texts on their way out, the rest for offers and chunks.
pub(crate) fn receive_budget(config: &Config) -> u64 {
    u64::try_from(config.max_memory / 4).unwrap_or(u64::MAX)
}

/// 16 random bytes.
///
/// # Errors
/// [`Error::System`].
pub(crate) fn random_run() -> Result<RunId> {
    let mut run = [0; 16];
    fill_random(&mut run)?;
    Ok(RunId(run))
}

/// A key means nothing to a build that can't seal: it must not be passed over.
///
/// # Errors
/// [`Error::Argument`].
pub(crate) fn check_key(config: &Config) -> Result<()> {
    if config.key.is_some() && !cfg!(feature = "encrypt") {
        let expected = "none, as this build can't encrypt: build it with --features full";
        return Err(Error::Argument { what: "key", got: "…".to_owned(), expected });
    }
    Ok(())
}

/// What is asked for can't be stored.
pub(crate) fn no_place_to_store() -> Error {
    let expected = "a directory to store what is asked for";
    Error::Argument { what: "configuration", got: "no dir".to_owned(), expected }
}

/// The name under which a file is offered: its own last one, also of a path such as `..`.
///
/// # Errors
/// [`Error::Argument`] for a path without one, or with one that no receiver takes.
pub(crate) fn offered_name(path: &Path) -> Result<SafePath> {
    let whole = match path.file_name() {
        Some(_) => path.to_owned(),
        None => std::fs::canonicalize(path).unwrap_or_default(),
    };
    let name = whole.file_name().map(std::os::unix::ffi::OsStrExt::as_bytes).unwrap_or_default();
    SafeName::parse(name).map(SafePath::from).map_err(|_| Error::Argument {
        what: "file name",
        got: String::from_utf8_lossy(name).into_owned(),
        expected: "a name that is safe on the other side",
    })
}

/// # Errors
/// [`Error::Argument`] for a text that is too long.
pub(crate) fn check_text(text: &str) -> Result<()> {
    if text.len() <= TEXT_BYTES_MAX {
        return Ok(());
    }
    Err(Error::Argument { what: "text", got: format!("{} bytes", text.len()), expected: "at most 65536 bytes" })
}

/// A transfer's report as the application hears it.
pub(crate) fn event_of(report: Report, peer: Option<&Nickname>, address: Option<SocketAddr>) -> Event {
    use crate::transfer::Direction;
    match report {
        Report::Progress(progress) => Event::Progress(progress),
        Report::Stored(mut receipt) => {
            receipt.peer = receipt.peer.or_else(|| peer.cloned());
            receipt.address = address;
            match receipt.direction {
                Direction::Outgoing => Event::Sent(receipt),
                Direction::Incoming => Event::Received(receipt),
            }
        }
        Report::Failed(mut failure) => {
            failure.peer = failure.peer.or_else(|| peer.cloned());
            Event::TransferFailed(failure)
        }
        Report::Relayed { transfer } => Event::Relayed { transfer },
        Report::Skipped { path, why } => Event::Skipped { path, why },
    }
}

/// Strangers are counted by address, and by /64 where one machine has many.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
    }
}
