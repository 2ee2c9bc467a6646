//! [`Client`]: one connection to a server, got back when it breaks; texts and files over it, both ways.
//!
//! A thread of its own looks up, dials, and then is the reader. What was sent and not acknowledged outlives a connection.

use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::capacity::Capacity;
use crate::config::{
    Config, Retry, CONNECTION_STANDS, DAMAGED_CONNECTIONS_MAX, RELAY_NICKNAMES_BYTES_MAX, RETRY_BROKEN, RETRY_FIRST,
    RETRY_LONGEST,
};
use crate::conn::{dial, lookup, Address};
use crate::error::{Error, Goodbye, Refusal, Result};
use crate::event::{Event, Events, State, Text};
use crate::hub::{
    check_key, check_text, encode_text, event_of, introduction, no_place_to_store, offered_name, random_run,
    receive_budget, Seen,
};
use crate::name::{Nickname, SafePath};
use crate::session::{
    greet_as_client, Handled, Hooks, Mailbox, MailboxContext, Outbox, Owner, Session, SessionContext,
};
use crate::storage::{Pipe, Store, Stream, Top};
use crate::transfer::{Budget, Holders, InboundContext, Pace, RequestId, Requests, TransferId, TransferIds};
use crate::wire::{self, Presence, RunId};
use crate::worker::{spawn, Lock, Signal};

/// A connection to a server, or the wish for one. Clones are handles to the same one.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

/// Who a file is for, through the server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recipients {
    /// Their nicknames; `None`: everybody who is in the room and takes files when the file is offered.
    pub to: Option<Vec<Nickname>>,
    /// The server keeps it for those who are not there, and that is enough.
    pub leave: bool,
    /// How long to wait for who is not there; `None`: for ever. Who breaks off is waited for at least 30 s.
    pub wait: Option<Duration>,
}

struct Shared {
    name: String,
    address: Address,
    config: Config,
    run: RunId,
    events: Events,
    store: Option<Arc<Store>>,
    pipe: Option<Pipe>,
    budget: Arc<Budget>,
    holders: Arc<Holders>,
    ids: Arc<TransferIds>,
    mailbox: Arc<Mailbox>,
    /// Whom files are for, as the server is told.
    relays: Mutex<Vec<Arc<wire::Relay>>>,
    link: Mutex<Link>,
    changed: Signal,
    this: Weak<Shared>,
}

struct Link {
    state: State,
    session: Option<Arc<Session>>,
    nickname: Option<Nickname>,
    /// The nickname to ask for at the next hello.
    wish: Option<Nickname>,
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    seen: Seen,
    last_sequence: u64,
    /// The application wants an orderly end.
    closing: bool,
    /// No further connection, and no further event.
    over: bool,
}

impl Client {
    /// Starts to connect to `address` (`host`, `host:port`, `[v6]:port`), and returns at once.
    ///
    /// # Errors
    /// [`Error::Argument`] for the address, [`Error::File`] for [`Config::dir`], [`Error::System`].
    pub fn connect(address: &str, config: Config) -> Result<Client> {
        check_key(&config)?;
        let parsed = Address::parse(address)?;
        let store = config.dir.as_deref().map(|dir| Store::open(dir, &config)).transpose()?.map(Arc::new);
        let events = Events::new(config.read_buffer_bytes);
        let (texts, files) = (events.clone(), events.clone());
        let ids = Arc::new(TransferIds::default());
        let answers = events.clone();
        // Its own texts wait for room in their queue.
        let context = MailboxContext {
            outbox: Arc::new(Outbox::new(usize::MAX)),
            ids: Arc::clone(&ids),
            pace: Arc::new(Pace::new(config.limit_rate)),
            share: config.share.as_deref().map(Top::open).transpose()?.map(Arc::new),
        };
        let mailbox = Mailbox::new(
            context,
            move |report| texts.push(Event::from(report)),
            move |report| files.push(event_of(report, None, None)),
            move |answer| answers.push(Event::from(answer)),
        );
        let run = random_run()?;
        let link = Link {
            state: State::Unconnected,
            session: None,
            nickname: None,
            wish: config.nick.clone(),
            local: None,
            peer: None,
            seen: Seen::default(),
            last_sequence: 0,
            closing: false,
            over: false,
        };
        let shared = Arc::new_cyclic(|this| Shared {
            name: address.to_owned(),
            address: parsed,
            run,
            events,
            store,
            pipe: config.sink.clone().map(Pipe::new),
            budget: Arc::new(Budget::new(receive_budget(&config), Capacity::of_system(1).commits)),
            holders: Arc::default(),
            ids,
            mailbox: Arc::new(mailbox),
            relays: Mutex::default(),
            link: Mutex::new(link),
            changed: Signal::new(),
            this: Weak::clone(this),
            config,
        });
        let connecting = Arc::clone(&shared);
        spawn("client", move || connecting.live()).map_err(Error::system("start a thread"))?;
        Ok(Client { shared })
    }

    /// Where the connection stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.link.take().state
    }

    /// Waits until the connection stands.
    ///
    /// # Errors
    /// [`Error::Timeout`]; [`Error::Closed`] when it ended, for the reason that [`Event::Disconnected`] gives.
    pub fn wait_connected(&self, timeout: Duration) -> Result<()> {
        self.wait_until(timeout, "the connection", |link| link.state == State::Connected)
    }

    /// Waits until the run is over.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn wait_disconnected(&self, timeout: Duration) -> Result<()> {
        self.wait_until(timeout, "the end of the connection", |link| link.over).or_else(|error| match error {
            Error::Closed => Ok(()),
            error => Err(error),
        })
    }

    /// The nickname that the server gave.
    #[must_use]
    pub fn nickname(&self) -> Option<Nickname> {
        self.shared.link.take().nickname.clone()
    }

    /// Asks for another nickname; [`Event::Named`] tells the one that the server gave. Without a connection the next one asks.
    pub fn rename(&self, nickname: &Nickname) {
        let session = {
            let mut link = self.shared.link.take();
            link.wish = Some(nickname.clone());
            link.session.clone()
        };
        if let Some(session) = session {
            session.name(nickname.clone());
        }
    }

    /// The server's address as it was given to [`Client::connect`].
    #[must_use]
    pub fn peer_name(&self) -> &str {
        &self.shared.name
    }

    /// The server's address and port, while connected.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.shared.link.take().peer
    }

    /// This side's address and port, while connected.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.shared.link.take().local
    }

    /// The next event; waits for it at most `timeout`, or for ever. `None` after the end. To be called again and again:
    /// while thousands wait, nothing more comes in.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn next_event(&self, timeout: Option<Duration>) -> Result<Option<Event>> {
        self.shared.events.next(timeout)
    }

    /// Queues a text for everybody, or for one; connected or not. Waits only while 256 KiB of texts are unacknowledged. Gives
    /// the sequence that [`Event::TextDelivered`] or [`Event::TextRefused`] will name.
    ///
    /// # Errors
    /// [`Error::Argument`] over 64 KiB, [`Error::Closed`].
    pub fn send_text(&self, to: Option<&Nickname>, text: &str) -> Result<u64> {
        self.say(to, text, false, false)
    }

    /// As [`Client::send_text`], for one who need not be there: it is handled when the server holds it durably, and said when
    /// `to` comes, after whatever this run left for `to` before.
    ///
    /// # Errors
    /// As [`Client::send_text`].
    pub fn leave_text(&self, to: &Nickname, text: &str) -> Result<u64> {
        self.say(Some(to), text, true, false)
    }

    /// As [`Client::send_text`], to everybody in the room, from one who is not in it ([`Config::join_room`]).
    ///
    /// # Errors
    /// As [`Client::send_text`].
    pub fn send_text_to_room(&self, text: &str) -> Result<u64> {
        self.say(None, text, false, true)
    }

    fn say(&self, to: Option<&Nickname>, text: &str, leave: bool, to_room: bool) -> Result<u64> {
        check_text(text)?;
        let shared = &self.shared;
        shared.mailbox.texts.wait_for_room(text.len())?;
        let sequence = {
            // The lock keeps sequences in the order of the queue.
            let mut link = shared.link.take();
            link.last_sequence += 1;
            let sequence = link.last_sequence;
            let (run, text) = (shared.run, text.to_owned());
            let text = wire::Text { run, sequence, from: None, to: to.cloned(), leave, to_room, text };
            let (frame, tail) = encode_text(text);
            if shared.mailbox.texts.push(&frame, tail, Some(sequence), 1).is_err() {
                return Err(Error::Refused(Refusal::TooMuch));
            }
            sequence
        };
        shared.mailbox.wake();
        Ok(sequence)
    }

    /// Queues what `path` leads to under its own last name: a file, a directory with all that is in it, or a FIFO or device,
    /// which is read to its end. [`Event::Sent`] or [`Event::TransferFailed`] follows with the id that is given here. In a
    /// directory each file has an id of its own, links and special files are left out ([`Event::Skipped`]), and the
    /// directory's own event is the last.
    ///
    /// # Errors
    /// [`Error::File`] when it can't be read, [`Error::Argument`] for its name, [`Error::Closed`].
    pub fn send_file(&self, path: &Path) -> Result<TransferId> {
        self.send_file_as(path, &offered_name(path)?)
    }

    /// Queues what `path` leads to under another name.
    ///
    /// # Errors
    /// As [`Client::send_file`].
    pub fn send_file_as(&self, path: &Path, name: &SafePath) -> Result<TransferId> {
        if self.shared.link.take().over {
            return Err(Error::Closed);
        }
        self.shared.mailbox.files.add_path(path, name, None)
    }

    /// Queues what `path` leads to under `name`, or its own last one, for others than the server, which stores it and hands it on.
    /// [`Event::Sent`] or [`Event::TransferFailed`] follows for each of them, with its nickname as the `peer`, then
    /// [`Event::Relayed`]; or one [`Event::TransferFailed`] without a nickname when the server does not take it. What is left
    /// ([`Recipients::leave`]) has one [`Event::Sent`], of the server, as soon as that holds it durably.
    ///
    /// # Errors
    /// As [`Client::send_file`], and [`Error::Argument`] for nobody or too many.
    pub fn send_file_for(&self, path: &Path, name: Option<&SafePath>, recipients: &Recipients) -> Result<TransferId> {
        let relay = self.relay(recipients)?;
        let name = name.cloned().map_or_else(|| offered_name(path), Ok)?;
        self.shared.mailbox.files.add_path(path, &name, Some(relay))
    }

    /// As [`Client::send_stream`], for others than the server: see [`Client::send_file_for`].
    ///
    /// # Errors
    /// As [`Client::send_file_for`].
    pub fn send_stream_for(
        &self,
        reader: impl Read + Send + 'static,
        name: &SafePath,
        recipients: &Recipients,
    ) -> Result<TransferId> {
        let relay = self.relay(recipients)?;
        Ok(self.shared.mailbox.files.add_stream(Stream::of_reader(reader), name, Some(relay)))
    }

    /// The number under which the server knows whom files are for.
    fn relay(&self, recipients: &Recipients) -> Result<Arc<wire::Relay>> {
        let wrong = |got: String| Error::Argument { what: "recipients", got, expected: "1 to 240 nicknames" };
        let bytes: usize = recipients.to.iter().flatten().map(|nickname| nickname.as_str().len() + 1).sum();
        if bytes > RELAY_NICKNAMES_BYTES_MAX || recipients.to.as_ref().is_some_and(Vec::is_empty) {
            return Err(wrong(format!("{} bytes of them", bytes)));
        }
        if self.shared.link.take().over {
            return Err(Error::Closed);
        }
        let seconds = |wait: Duration| wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let patience = recipients.wait.map_or(u64::MAX, seconds);
        let mut relays = self.shared.relays.take();
        let relay = wire::Relay {
            relay: u32::try_from(relays.len()).unwrap_or(u32::MAX).saturating_add(1),
            patience_seconds: u32::try_from(patience).unwrap_or(u32::MAX),
            leave: recipients.leave,
            to: recipients.to.clone(),
        };
        let is_same = |known: &&Arc<wire::Relay>| wire::Relay { relay: known.relay, ..relay.clone() } == ***known;
        if let Some(known) = relays.iter().find(is_same) {
            return Ok(Arc::clone(known));
        }
        let relay = Arc::new(relay);
        relays.push(Arc::clone(&relay));
        Ok(relay)
    }

    /// Queues what `reader` gives until its end, of unknown length, under `name`. What was sent is kept until the other side
    /// has written it, so a break is survived; a later run can't go on with it.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn send_stream(&self, reader: impl Read + Send + 'static, name: &SafePath) -> Result<TransferId> {
        if self.shared.link.take().over {
            return Err(Error::Closed);
        }
        Ok(self.shared.mailbox.files.add_stream(Stream::of_reader(reader), name, None))
    }

    /// Asks for a file or a directory that the other side shares, to be stored as `name`, or under its own last name.
    /// [`Event::Received`] follows for each file, and at the end [`Event::Got`] or [`Event::RequestFailed`].
    ///
    /// # Errors
    /// [`Error::Closed`]; [`Error::Argument`] without [`Config::dir`].
    pub fn get(&self, path: &SafePath, name: Option<&SafePath>) -> Result<RequestId> {
        self.get_from(None, path, name)
    }

    /// As [`Client::get`]; with a nickname, what that client shares, through the server.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn get_from(&self, from: Option<&Nickname>, path: &SafePath, name: Option<&SafePath>) -> Result<RequestId> {
        if self.shared.store.is_none() && self.shared.pipe.is_none() {
            return Err(no_place_to_store());
        }
        let name = name.cloned().unwrap_or_else(|| SafePath::from(path.file_name().clone()));
        self.ask(|requests| requests.get(from.cloned(), path.clone(), name))
    }

    /// Asks what the other side shares: the first page, or what follows `after`. [`Event::Listed`] or
    /// [`Event::RequestFailed`] follows.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn list(&self, after: Option<&SafePath>) -> Result<RequestId> {
        self.list_from(None, after)
    }

    /// As [`Client::list`]; with a nickname, what that client shares, through the server.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn list_from(&self, from: Option<&Nickname>, after: Option<&SafePath>) -> Result<RequestId> {
        self.ask(|requests| requests.list(from.cloned(), after.cloned()))
    }

    fn ask(&self, ask: impl FnOnce(&Requests) -> RequestId) -> Result<RequestId> {
        if self.shared.link.take().over {
            return Err(Error::Closed);
        }
        let id = ask(&self.shared.mailbox.requests);
        self.shared.mailbox.wake();
        Ok(id)
    }

    /// Delivers what is queued, then says GOODBYE; returns at once.
    pub fn disconnect(&self) {
        let session = {
            let mut link = self.shared.link.take();
            link.closing = true;
            link.session.clone()
        };
        self.shared.changed.notify_all();
        match session {
            Some(session) => {
                self.shared.set_state(State::Closing);
                session.close(Goodbye::Done);
            }
            None if self.shared.mailbox.is_empty() => self.shared.finish(None),
            None => {}
        }
    }

    /// Ends at once; what is not acknowledged fails, partials stay.
    pub fn abort(&self) {
        let session = self.shared.link.take().session.clone();
        self.shared.finish(Some(Error::Closed));
        if let Some(session) = session {
            session.end();
        }
    }

    /// How much text may wait to be taken as events, in bytes.
    #[must_use]
    pub fn read_buffer_size(&self) -> usize {
        self.shared.events.text_bytes_max()
    }

    /// Sets how much text may wait; a text past it is refused.
    pub fn set_read_buffer_size(&self, bytes: usize) {
        self.shared.events.set_text_bytes_max(bytes);
    }

    /// Bytes of text that wait.
    #[must_use]
    pub fn bytes_available(&self) -> usize {
        self.shared.events.text_bytes()
    }

    /// Whether a whole text waits.
    #[must_use]
    pub fn can_read_text(&self) -> bool {
        self.shared.events.has_text()
    }

    fn wait_until(&self, timeout: Duration, what: &'static str, there: impl Fn(&Link) -> bool) -> Result<()> {
        let link = self.shared.link.take();
        let waiting = |link: &mut Link| !there(link) && !link.over;
        let (link, _) =
            self.shared.changed.wait_timeout_while(link, timeout, waiting).unwrap_or_else(PoisonError::into_inner);
        match there(&link) {
            true => Ok(()),
            false if link.over => Err(Error::Closed),
            false => Err(Error::Timeout { waiting_for: what, after: timeout }),
        }
    }
}

impl Shared {
    /// Connection after connection, until the work is done or there is no hope.
    fn live(self: &Arc<Self>) {
        let mut lost = Instant::now();
        let mut pause = RETRY_FIRST;
        let mut was_connected = false;
        let (mut damaged, mut fruitless) = (0, 0);
        loop {
            let began = Instant::now();
            let error = match self.connection() {
                Ok(Goodbye::Done) | Err(Error::Closed | Error::Goodbye(Goodbye::Reconnect))
                    if self.link.take().closing && self.mailbox.is_empty() =>
                {
                    return self.finish(None);
                }
                Ok(reason) => Error::Goodbye(reason),
                Err(error) => error,
            };
            let session = std::mem::take(&mut self.link.take().session);
            was_connected |= session.is_some();
            if session.as_ref().is_some_and(|it| it.has_progressed() || began.elapsed() >= CONNECTION_STANDS) {
                (lost, pause, damaged, fruitless) = (Instant::now(), RETRY_FIRST, 0, 0);
            } else if session.is_some() && fruitless < DAMAGED_CONNECTIONS_MAX {
                // Nothing may have been there to say. Again and again it is no excuse.
                (lost, fruitless) = (Instant::now(), fruitless + 1);
            }
            damaged += u32::from(matches!(&error, Error::Wire(wire) if wire.is_flipped()));
            if damaged > DAMAGED_CONNECTIONS_MAX && self.config.retry != Retry::Forever {
                return self.finish(Some(Error::LineDamaged { connections: damaged }));
            }
            // PROTOCOL 10.5. A connection that brought nothing did not use up its keys.
            let renews = matches!(error, Error::Goodbye(Goodbye::Reconnect))
                && session.is_some_and(|session| session.has_progressed());
            if self.link.take().over || !(renews || self.may_retry(&error, was_connected, lost.elapsed())) {
                return self.finish(Some(error));
            }
            let after = self.varied(pause);
            self.set_state(State::Unconnected);
            self.events.push(Event::Retrying { error, after });
            let link = self.link.take();
            let waiting = |link: &mut Link| !link.over;
            drop(self.changed.wait_timeout_while(link, after, waiting).unwrap_or_else(PoisonError::into_inner));
            pause = (pause * 2).min(RETRY_LONGEST);
        }
    }

    /// One connection from the lookup to its end.
    fn connection(self: &Arc<Self>) -> Result<Goodbye> {
        self.set_state(State::HostLookup);
        let addresses = lookup(&self.address)?;
        self.set_state(State::Connecting);
        let conn = Arc::new(dial(&self.name, &addresses, self.config.connect_timeout)?);
        let wish = self.link.take().wish.clone();
        let takes_files = (self.store.is_some() || self.pipe.is_some()) && self.config.take_offers;
        let me = introduction(self.run, &self.config, takes_files, 1);
        let (offers_max, chunk_bytes_max) = (me.offers, me.chunk_bytes);
        let me = wire::Peer { nickname: wish, ..me };
        let (peer, nickname, reader) = greet_as_client(&conn, &me, self.config.key.as_ref())?;
        let address = conn.peer_addr();
        let owner = Arc::new(ClientOwner { shared: Weak::clone(&self.this), address });
        let (shared, events) = (Arc::clone(self), self.events.clone());
        let inbound = Box::new(move |hooks: Hooks| InboundContext {
            offers_max,
            chunk_bytes_max,
            store: shared.store.clone(),
            pipe: shared.pipe.clone(),
            takes_offers: shared.config.take_offers,
            requests: Arc::clone(&shared.mailbox.requests),
            relaying: None,
            budget: Arc::clone(&shared.budget),
            holders: Arc::clone(&shared.holders),
            pulse: hooks.pulse,
            report: Arc::new(move |report| events.push_when_there_is_room(event_of(report, None, Some(address)))),
            wake: hooks.wake,
            violated: hooks.violated,
            ids: Arc::clone(&shared.ids),
        });
        let context = SessionContext { mailbox: Arc::clone(&self.mailbox), owner, inbound };
        let session = Session::new(Arc::clone(&conn), peer, context);
        let closing = {
            let mut link = self.link.take();
            if link.over {
                return Err(Error::Closed);
            }
            link.session = Some(Arc::clone(&session));
            link.nickname = Some(nickname.clone());
            (link.local, link.peer) = (Some(conn.local_addr()), Some(conn.peer_addr()));
            link.closing
        };
        self.set_state(State::Connected);
        self.events.push(Event::Named(nickname));
        if closing {
            session.close(Goodbye::Done);
        }
        session.run(reader)
    }

    fn may_retry(&self, error: &Error, was_connected: bool, lost_for: Duration) -> bool {
        let passing = match error {
            Error::Broken { .. } | Error::Timeout { .. } | Error::Connect { .. } | Error::NoSuchHost { .. } => true,
            Error::Goodbye(reason) => {
                matches!(reason, Goodbye::Stopping | Goodbye::TooSlow | Goodbye::Done | Goodbye::Reconnect)
            }
            Error::Wire(wire) => wire.is_damage(),
            // Whoever was taken in once may have lost its place for a moment only.
            Error::Refused(Refusal::Stopping | Refusal::Busy(_)) => {
                was_connected || self.config.retry != Retry::Default
            }
            _ => false,
        };
        passing
            && match self.config.retry {
                Retry::Forever => true,
                Retry::For(time) => lost_for < time,
                Retry::Default => was_connected && lost_for < RETRY_BROKEN,
            }
    }

    /// A quarter more or less, so that many clients of one server do not come back at once.
    fn varied(&self, pause: Duration) -> Duration {
        let random = self.run.0.iter().fold(0_u32, |sum, &byte| sum + u32::from(byte)) % 51;
        pause * (75 + random) / 100
    }

    fn set_state(&self, state: State) {
        let changed = {
            let mut link = self.link.take();
            let changed = link.state != state && !link.over;
            if changed {
                link.state = state;
            }
            changed
        };
        if changed {
            self.events.push(Event::StateChanged(state));
        }
        self.changed.notify_all();
    }

    /// The run is over; the first reason counts.
    fn finish(&self, error: Option<Error>) {
        {
            let mut link = self.link.take();
            if link.over {
                return;
            }
            link.over = true;
            link.state = State::Unconnected;
            (link.session, link.local, link.peer) = (None, None, None);
        }
        self.mailbox.files.fail_all(|| Error::Closed);
        self.mailbox.requests.fail_all(|| Error::Closed);
        self.mailbox.texts.close();
        self.events.push(Event::StateChanged(State::Unconnected));
        self.events.push(Event::Disconnected(error));
        self.events.close();
        self.changed.notify_all();
    }
}

/// Takes what the session brings to the client.
struct ClientOwner {
    shared: Weak<Shared>,
    /// The server's.
    address: SocketAddr,
}

impl Owner for ClientOwner {
    fn text(&self, text: wire::Text, handled: Handled) -> std::result::Result<(), (Refusal, Handled)> {
        let Some(shared) = self.shared.upgrade() else { return Ok(()) };
        if !shared.link.take().seen.is_new(text.run, text.sequence) {
            return Ok(());
        }
        if !shared.events.has_room_for_text(text.text.len()) {
            return Err((Refusal::TooMuch, handled));
        }
        shared.link.take().seen.remember(text.run, text.sequence);
        let private = text.to.is_some();
        let (from, address) = (text.from, self.address);
        shared.events.push(Event::Text(Text { from, address, private, text: text.text, handled }));
        Ok(())
    }

    fn presence(&self, presence: Presence) {
        let Some(shared) = self.shared.upgrade() else { return };
        match presence {
            Presence::Joined(nickname) => shared.events.push(Event::Joined(nickname)),
            Presence::Left(nickname) => shared.events.push(Event::Left(nickname)),
            Presence::Renamed { from, to } => shared.events.push(Event::Renamed { from, to }),
            Presence::Unknown => {}
        }
    }

    fn named(&self, nickname: Nickname) {
        let Some(shared) = self.shared.upgrade() else { return };
        shared.link.take().nickname = Some(nickname.clone());
        shared.events.push(Event::Named(nickname));
    }
}

#[cfg(all(test, feature = "encrypt"))]
mod tests {
    use super::*;
    use crate::key::{fill_random, Key};
    use crate::Server;

    /// PROTOCOL 10.5, with a limit that a second reaches.
    #[test]
    fn a_transfer_goes_on_over_connections_whose_keys_are_used_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        ["inbox", "here"].iter().for_each(|name| std::fs::create_dir(path(name)).unwrap());
        let mut content = vec![0; 6_000_000];
        fill_random(&mut content).unwrap();
        std::fs::write(path("file"), &content).unwrap();
        let key = Some(Key::generate().unwrap());
        let (dir, share) = (Some(path("inbox")), Some(path("inbox")));
        let config = Config { key: key.clone(), dir, share, fsync: false, ..Config::default() };
        let server = Server::bind("127.0.0.1:0", config).unwrap();
        let draining = server.clone();
        let drain = std::thread::spawn(move || while draining.next_event(None).unwrap().is_some() {});
        // Whoever never tries again after a break goes on here too: nothing broke.
        let retry = Retry::For(Duration::ZERO);
        let config = Config { key, dir: Some(path("here")), fsync: false, retry, ..Config::default() };
        let client = Client::connect(&server.local_addr().to_string(), config).unwrap();
        let mut renewals = [0, 0];
        client.send_file(&path("file")).unwrap();
        let mut sent = false;
        loop {
            match client.next_event(Some(Duration::from_secs(30))).unwrap().unwrap() {
                Event::Retrying { error: Error::Goodbye(Goodbye::Reconnect), .. } => renewals[usize::from(sent)] += 1,
                Event::Retrying { error, .. } => panic!("{error}"),
                Event::Sent(_) => {
                    sent = true;
                    client.get(&SafePath::parse(b"file").unwrap(), None).unwrap();
                }
                Event::Got { .. } => client.disconnect(),
                Event::Disconnected(error) => break assert!(error.is_none(), "{error:?}"),
                _ => {}
            }
        }
        // The client's keys were used up first, then the server's.
        assert!(renewals.iter().all(|&count| count >= 3), "{renewals:?}");
        assert!(std::fs::read(path("inbox/file")).unwrap() == content);
        assert!(std::fs::read(path("here/file")).unwrap() == content);
        server.stop();
        drain.join().unwrap();
    }
}
