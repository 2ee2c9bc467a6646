//! One peer over one connection: hello, the send turn, the reader, keepalive, close.
//!
//! A [`Session`] does not outlive its connection; what must (texts without acknowledgement, files without receipt) is in the
//! [`Mailbox`], which a next connection of the same run takes over. It does not know other peers: what arrives goes to its
//! [`Owner`], in `hub` or `client`.

mod hello;
mod mailbox;
mod outbox;
mod reader;
mod texts;
mod turn;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

pub(crate) use hello::{greet_as_client, greet_as_server, refuse, refuse_at_once, welcome};
pub(crate) use mailbox::{Mailbox, MailboxContext, TextReport};
pub(crate) use outbox::Outbox;
pub(crate) use reader::FrameReader;

use crate::config::{
    CLOSE_TIMEOUT, FRAME_BYTES_PER_SECOND, FRAME_PROGRESS, HOLDER_LOOK, NICKNAME_BYTES_MAX, PING_AFTER, SILENCE_MAX,
    TEXTS_MAX, TEXT_WINDOW_BYTES,
};
use crate::conn::Conn;
use crate::error::{Error, Goodbye, Refusal, Result};
use crate::name::{Nickname, SafePath};
use crate::transfer::{Inbound, InboundContext, Pulse};
use crate::wire::{self, Frame, Message, Presence, Subject};
use crate::worker::{Lock, Signal};
use turn::Turn;

/// Who a session's texts and announcements go to.
pub(crate) trait Owner: Send + Sync {
    /// A text came. It is acknowledged when `handled` is dropped. An error refuses it, and gives `handled` back: the
    /// refusal must be said first (PROTOCOL 4.4).
    fn text(&self, text: wire::Text, handled: Handled) -> std::result::Result<(), (Refusal, Handled)>;
    /// All that has come was taken in: what it gave to others may go.
    fn rest(&self) {}
    /// Asks another peer for what it shares. An error refuses the request.
    fn get_from(&self, _: &Nickname, _: RequestOf, _: Option<SafePath>) -> std::result::Result<(), Refusal> {
        Err(Refusal::NoRelay)
    }
    /// As [`Owner::get_from`], for what there is.
    fn list_from(&self, _: &Nickname, _: RequestOf, _: Option<SafePath>) -> std::result::Result<(), Refusal> {
        Err(Refusal::NoRelay)
    }
    /// Somebody came or left.
    fn presence(&self, presence: Presence);
    /// A client hears its nickname from now on; a server hears a wish (PROTOCOL 2.5).
    fn named(&self, nickname: Nickname);
}

/// A request of the other side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestOf {
    /// The connection, as [`Mailbox`] counts them.
    pub(crate) epoch: u32,
    pub(crate) number: u32,
}

/// Acknowledges a text when it is dropped.
pub(crate) struct Handled(Option<Box<dyn FnOnce() + Send>>);

impl Handled {
    pub(crate) fn new(body: impl FnOnce() + Send + 'static) -> Handled {
        Handled(Some(Box::new(body)))
    }
}

impl Drop for Handled {
    fn drop(&mut self) {
        if let Some(body) = self.0.take() {
            body();
        }
    }
}

/// One connection whose hello is complete.
pub(crate) struct Session {
    conn: Arc<Conn>,
    peer: wire::Peer,
    mailbox: Arc<Mailbox>,
    inbound: Inbound,
    owner: Arc<dyn Owner>,
    turn: Mutex<Turn>,
    heard: Mutex<Heard>,
    /// Something was brought or acknowledged on it.
    has_progressed: AtomicBool,
    /// Wakes the writer.
    work: Signal,
    this: Weak<Session>,
}

/// What [`Session::new`] needs besides the connection.
pub(crate) struct SessionContext {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) owner: Arc<dyn Owner>,
    /// Makes the context of the incoming files.
    pub(crate) inbound: MakeInbound,
}

/// What incoming files can do to their session.
pub(crate) struct Hooks {
    pub(crate) wake: Arc<dyn Fn() + Send + Sync>,
    pub(crate) violated: Box<dyn Fn(Error) + Send + Sync>,
    pub(crate) pulse: Arc<dyn Pulse>,
}

/// See [`SessionContext::inbound`].
pub(crate) type MakeInbound = Box<dyn FnOnce(Hooks) -> InboundContext>;

impl Session {
    /// A session on a connection whose hello is complete; the mailbox's content begins to flow when [`Session::run`] is called.
    pub(crate) fn new(conn: Arc<Conn>, peer: wire::Peer, context: SessionContext) -> Arc<Session> {
        Arc::new_cyclic(|this: &Weak<Session>| {
            let pulse = Arc::new(SessionPulse(this.clone()));
            let inbound = (context.inbound)(Hooks { wake: waker(this), violated: violation_handler(this), pulse });
            Session {
                conn,
                peer,
                mailbox: context.mailbox,
                inbound: Inbound::new(inbound),
                owner: context.owner,
                turn: Mutex::new(Turn::new()),
                has_progressed: AtomicBool::new(false),
                heard: Mutex::new(Heard { at: Instant::now(), pong: 0 }),
                work: Signal::new(),
                this: this.clone(),
            }
        })
    }

    /// Reads until the connection ends. `Ok` after GOODBYE from the other side; its reason. That new keys are due is an error:
    /// the work goes on.
    ///
    /// # Errors
    /// Why it broke, or was ended.
    pub(crate) fn run(self: &Arc<Self>, mut reader: FrameReader) -> Result<Goodbye> {
        let epoch = self.mailbox.attach(&self.peer, waker(&self.this));
        self.begin();
        let result = self.read(&mut reader, epoch);
        self.owner.rest();
        let violation = self.turn.take().violation.take();
        let result = match violation.map_or(result, Err) {
            Ok(Goodbye::Reconnect) => Err(Error::Goodbye(Goodbye::Reconnect)),
            Ok(Goodbye::Done) if self.turn.take().said_reconnect() => Err(Error::Goodbye(Goodbye::Reconnect)),
            result => result,
        };
        match &result {
            // A peer that is told of a rule gives up; what the line did is a break, and is taken up again.
            Err(Error::Wire(error)) if error.is_damage() => {}
            Err(Error::Violation(_) | Error::Wire(_)) => {
                self.refuse_connection(Refusal::Protocol);
                self.conn.linger_after_refusal();
            }
            _ => {}
        }
        self.mailbox.detach(epoch);
        self.inbound.close();
        self.turn.take().ended = true;
        self.work.notify_all();
        self.conn.end();
        result
    }

    /// Who is at the other end.
    pub(crate) fn peer(&self) -> &wire::Peer {
        &self.peer
    }

    /// What outlives this session.
    pub(crate) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// Tells who came or left; nothing where the session has ended.
    pub(crate) fn announce(&self, presence: impl IntoIterator<Item = Presence>) {
        self.turn.take().announce(presence);
        self.flush();
    }

    /// Tells a client its nickname, or a server our wish; of several only the last.
    pub(crate) fn name(&self, nickname: Nickname) {
        self.turn.take().named = Some(nickname);
        self.flush();
    }

    /// Delivers what is queued, then says GOODBYE.
    pub(crate) fn close(&self, reason: Goodbye) {
        self.turn.take().close(reason);
        self.flush();
    }

    /// Says GOODBYE before what is queued; that goes nowhere then.
    pub(crate) fn dismiss(&self, reason: Goodbye) {
        self.turn.take().dismiss(reason);
        self.flush();
    }

    /// Whether anything was brought or acknowledged on it.
    pub(crate) fn has_progressed(&self) -> bool {
        self.has_progressed.load(Ordering::Relaxed)
    }

    /// Asks whether the other side is alive, and waits for anything from it at most so long.
    pub(crate) fn answers_within(&self, time: Duration) -> bool {
        let pulse = SessionPulse(self.this.clone());
        let (token, deadline) = (pulse.ping(), Instant::now() + time);
        while !pulse.has_answered(token) {
            if Instant::now() > deadline {
                // On a slow line the answer stands behind data.
                return pulse.silent_for() < time / 2;
            }
            std::thread::park_timeout(HOLDER_LOOK);
        }
        true
    }

    /// Ends the connection without a word.
    pub(crate) fn end(&self) {
        self.conn.end();
    }

    fn read(self: &Arc<Self>, reader: &mut FrameReader, epoch: u32) -> Result<Goodbye> {
        let failed = |result: io::Result<()>| result.map_err(Error::system("set a timeout"));
        failed(self.conn.set_read_timeout(PING_AFTER))?;
        reader.take_buffers_from(self.inbound.spares());
        let mut has_deadline = false;
        let mut progress = (Instant::now(), 0_u64);
        let mut goodbye = None;
        let mut closes_at = None;
        loop {
            reader.set_chunk_bytes_max(self.inbound.chunk_bytes_max());
            // Acknowledgements and answers go out together, once all that came is taken in.
            match reader.buffered_frame()? {
                Some(_) if !self.mailbox.is_current(epoch) => return Err(Error::Goodbye(Goodbye::Replaced)),
                Some(frame) => {
                    if let Some(reason) = self.take_in(frame)? {
                        goodbye = Some(reason);
                    }
                    progress = (Instant::now(), reader.bytes());
                    continue;
                }
                None => {
                    self.owner.rest();
                    self.flush();
                }
            }
            let due = closes_at.or((!reader.is_between_frames()).then_some(progress.0 + FRAME_PROGRESS));
            let due = due.filter(|due| *due < Instant::now() + PING_AFTER);
            match due {
                Some(due) => failed(self.conn.set_read_deadline(due))?,
                None if has_deadline => failed(self.conn.set_read_timeout(PING_AFTER))?,
                None => {}
            }
            has_deadline = due.is_some();
            reader.let_grow(self.inbound.is_roomy());
            match reader.read() {
                Ok(0) => {
                    return match goodbye {
                        Some(reason) => Ok(reason),
                        None if self.turn.take().said_goodbye() => Ok(Goodbye::Done),
                        None => Err(reader.end_of_stream()),
                    };
                }
                Ok(_) => self.heard.take().at = Instant::now(),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    self.silence()?;
                }
                Err(_) if self.turn.take().said_goodbye() => return Ok(goodbye.unwrap_or(Goodbye::Done)),
                Err(source) => return Err(Error::Broken { source: Some(source) }),
            }
            if self.turn.take().violation.is_some() {
                // The disk thread found it; `run` says it.
                return Err(Error::Closed);
            }
            if self.turn.take().said_goodbye() {
                if goodbye.is_some() {
                    return Ok(goodbye.unwrap_or(Goodbye::Done));
                }
                let closes_at = *closes_at.get_or_insert_with(|| Instant::now() + CLOSE_TIMEOUT);
                if Instant::now() >= closes_at {
                    return Err(Error::Timeout { waiting_for: "the other side's goodbye", after: CLOSE_TIMEOUT });
                }
            }
            check_progress(&mut progress, reader)?;
        }
    }

    /// PROTOCOL 2.7: asks a silent side whether it is there, and gives it up after a while.
    fn silence(&self) -> Result<()> {
        let since = self.heard.take().at.elapsed();
        if since >= SILENCE_MAX {
            return Err(Error::Timeout { waiting_for: "the other side to say anything", after: since });
        }
        if since < PING_AFTER {
            return Ok(());
        }
        self.turn.take().ping();
        self.flush();
        Ok(())
    }

    /// One frame. Gives the other side's GOODBYE.
    fn take_in(self: &Arc<Self>, frame: Frame) -> Result<Option<Goodbye>> {
        let files = &self.mailbox.files;
        let message = match frame {
            Frame::Skipped => return Ok(None),
            Frame::DamagedChunk { transfer, offset, length } => {
                self.inbound.on_damaged_chunk(transfer, offset, length)?;
                return Ok(None);
            }
            Frame::Message(message) => message,
        };
        let progresses = matches!(
            message,
            Message::Chunk(_)
                | Message::Ack { .. }
                | Message::Receipt(_)
                | Message::Text(_)
                | Message::TextAck { .. }
                | Message::Entry(_)
                | Message::Ended { .. }
        );
        if progresses {
            self.has_progressed.store(true, Ordering::Relaxed);
        }
        match message {
            Message::Chunk(chunk) => self.inbound.on_chunk(chunk)?,
            Message::Text(text) => self.text(text)?,
            Message::TextAck { count } => self.mailbox.texts.on_ack(count)?,
            Message::Offer(offer) => self.inbound.on_offer(offer)?,
            Message::Send { transfer, have, credit } => files.on_send(transfer, have, credit)?,
            Message::Ack { transfer, received, credit } => files.on_ack(transfer, received, credit)?,
            Message::Repair { transfer, offset, length } => files.on_repair(transfer, offset, length)?,
            Message::Sums { transfer, first_block, crcs } => self.inbound.on_sums(transfer, first_block, crcs)?,
            Message::Finish { transfer, size, crc, grew } => self.inbound.on_finish(transfer, size, crc, grew)?,
            Message::Receipt(receipt) => files.on_receipt(receipt)?,
            Message::Cancel { transfer, .. } => self.inbound.on_cancel(transfer)?,
            Message::Refused { subject, refusal } => match subject {
                Subject::Connection => return Err(Error::Refused(refusal)),
                Subject::Text(number) => self.mailbox.texts.on_refused(number, refusal)?,
                Subject::Transfer(number) => files.on_refused(number, refusal)?,
                Subject::Request(number) => self.mailbox.requests.on_refused(number, refusal)?,
            },
            Message::Get { request, from: None, path } => self.mailbox.sharing.on_get(request, path)?,
            Message::List { request, from: None, after } => self.mailbox.sharing.on_list(request, after)?,
            Message::Get { request, from: Some(from), path } => {
                self.ask_others(request, path, |request, path| self.owner.get_from(&from, request, path))?;
            }
            Message::List { request, from: Some(from), after } => {
                self.ask_others(request, after, |request, path| self.owner.list_from(&from, request, path))?;
            }
            Message::Relay(relay) => self.inbound.on_relay(relay),
            Message::Relayed(relayed) => files.on_relayed(relayed)?,
            Message::Entry(entry) => self.mailbox.requests.on_entry(entry)?,
            Message::Ended { request, more, left_out, failed } => {
                self.mailbox.requests.on_ended(request, more, left_out, failed)?;
            }
            Message::Ping(token) => self.turn.take().pong(token),
            Message::Pong(token) => self.heard.take().pong = token,
            Message::Presence(presence) => self.owner.presence(presence),
            Message::Named(nickname) => self.owner.named(nickname),
            Message::Goodbye(reason) => {
                self.turn.take().answer_goodbye();
                return Ok(Some(reason));
            }
            Message::Hello { .. } | Message::Welcome { .. } | Message::Peer(_) => {
                return Err(Error::violation("2.1", "a second hello"));
            }
        }
        Ok(None)
    }

    /// PROTOCOL 11.6: somebody else is asked.
    fn ask_others(
        &self,
        number: u32,
        path: Vec<u8>,
        ask: impl FnOnce(RequestOf, Option<SafePath>) -> std::result::Result<(), Refusal>,
    ) -> Result<()> {
        let epoch = self.mailbox.files.asked(number)?;
        let path = (!path.is_empty()).then(|| SafePath::parse(&path)).transpose();
        let asked = path.map_err(|_| Refusal::BadName).and_then(|path| ask(RequestOf { epoch, number }, path));
        if let Err(refusal) = asked {
            self.mailbox.files.refuse_request(epoch, number, refusal);
        }
        Ok(())
    }

    fn text(self: &Arc<Self>, text: wire::Text) -> Result<()> {
        let bytes = text.text.len();
        let number = self.turn.take().text_arrived(bytes);
        let (unacknowledged_bytes, unacknowledged) = self.turn.take().unacknowledged();
        let texts_max = u64::try_from(TEXTS_MAX).unwrap_or(u64::MAX);
        if unacknowledged_bytes > TEXT_WINDOW_BYTES + wire_slack() + bytes || unacknowledged > texts_max {
            return Err(Error::violation("4.5", "more unacknowledged texts than the window allows"));
        }
        let this = Weak::clone(&self.this);
        let handled = Handled::new(move || {
            if let Some(session) = this.upgrade() {
                let mut turn = session.turn.take();
                turn.text_handled(number, bytes);
                if turn.is_to_acknowledge() {
                    drop(turn);
                    session.flush();
                }
            }
        });
        if let Err((refusal, handled)) = self.owner.text(text, handled) {
            self.turn.take().refuse_text(number, refusal);
            drop(handled);
        }
        Ok(())
    }
}

/// What was last heard from the other side.
struct Heard {
    at: Instant,
    /// The token of the last PONG.
    pong: u64,
}

/// A session for those who want to know whether it is alive; one that has ended is silent.
struct SessionPulse(Weak<Session>);

impl Pulse for SessionPulse {
    fn ping(&self) -> u64 {
        let Some(session) = self.0.upgrade() else { return 0 };
        let token = session.turn.take().ping();
        session.flush();
        token
    }

    fn has_answered(&self, token: u64) -> bool {
        self.0.upgrade().is_some_and(|session| session.heard.take().pong >= token)
    }

    fn silent_for(&self) -> Duration {
        self.0.upgrade().map_or(Duration::MAX, |session| session.heard.take().at.elapsed())
    }

    fn end(&self) {
        if let Some(session) = self.0.upgrade() {
            session.end();
        }
    }
}

/// The nicknames in TEXT tails count in the window (PROTOCOL 4.5) and are not kept here.
fn wire_slack() -> usize {
    2 * NICKNAME_BYTES_MAX
}

/// PROTOCOL 2.7: a started frame goes on arriving.
fn check_progress(progress: &mut (Instant, u64), reader: &FrameReader) -> Result<()> {
    let (since, bytes) = *progress;
    if reader.is_between_frames() {
        *progress = (Instant::now(), reader.bytes());
        return Ok(());
    }
    if since.elapsed() < FRAME_PROGRESS {
        return Ok(());
    }
    if reader.bytes() - bytes < FRAME_BYTES_PER_SECOND * FRAME_PROGRESS.as_secs() {
        return Err(Error::Timeout { waiting_for: "the rest of a frame", after: FRAME_PROGRESS });
    }
    *progress = (Instant::now(), reader.bytes());
    Ok(())
}

fn waker(session: &Weak<Session>) -> Arc<dyn Fn() + Send + Sync> {
    let session = Weak::clone(session);
    Arc::new(move || {
        if let Some(session) = session.upgrade() {
            session.flush();
        }
    })
}

fn violation_handler(session: &Weak<Session>) -> Box<dyn Fn(Error) + Send + Sync> {
    let session = Weak::clone(session);
    Box::new(move |error| {
        if let Some(session) = session.upgrade() {
            session.turn.take().violation.get_or_insert(error);
            // The reader wakes up, and refuses.
            session.conn.end_reading();
        }
    })
}
