//! [`Server`]: listens, takes peers in, carries texts and files to and from them.
//!
//! It owns the listener and its thread; everything between peers is `hub`'s.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{Config, ACCEPT_PAUSE_FIRST, ACCEPT_PAUSE_LONGEST, ACCEPT_TROUBLE_ENDS, STOP_TIMEOUT};
use crate::conn::{Address, Conn, Listener};
use crate::error::{Error, Refusal, Result};
use crate::event::{Event, PeerInfo};
use crate::hub::Hub;
use crate::name::{Nickname, SafePath};
use crate::session::refuse_at_once;
use crate::transfer::{RequestId, TransferId};
use crate::worker::spawn;

/// A listening server. Clones are handles to the same one.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    hub: Arc<Hub>,
    listener: Listener,
    listening: AtomicBool,
}

impl Server {
    /// Listens on `address`: `host:port`, `[v6]:port`, `host`, or `:port` for all addresses, IPv4 and IPv6. Port 0 picks a
    /// free one. Peers are taken in from now on.
    ///
    /// # Errors
    /// [`Error::Argument`] for the address, [`Error::System`] when it can't be listened on, [`Error::File`] for
    /// [`Config::dir`].
    pub fn bind(address: &str, config: Config) -> Result<Server> {
        let address = Address::parse(address)?;
        let hub = Hub::new(config)?;
        let listener = Listener::bind(&address)?;
        Server::start(hub, listener)
    }

    /// Takes peers in from a socket that listens already, such as one from a service manager. [`Server::close`] leaves it
    /// open for whoever holds it too.
    ///
    /// # Errors
    /// [`Error::Argument`] when it is no listening TCP socket, [`Error::System`], [`Error::File`] for [`Config::dir`].
    pub fn from_listener(listener: TcpListener, config: Config) -> Result<Server> {
        let listener = Listener::adopt(listener)?;
        Server::start(Hub::new(config)?, listener)
    }

    fn start(hub: Arc<Hub>, listener: Listener) -> Result<Server> {
        let shared = Arc::new(Shared { hub, listener, listening: AtomicBool::new(true) });
        let accepting = Arc::clone(&shared);
        spawn("accept", move || accepting.accept()).map_err(Error::system("start a thread"))?;
        Ok(Server { shared })
    }

    /// Whether new connections are taken.
    #[must_use]
    pub fn is_listening(&self) -> bool {
        self.shared.listening.load(Ordering::SeqCst)
    }

    /// The address and port listened on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.listener.address()
    }

    /// The address listened on.
    #[must_use]
    pub fn server_address(&self) -> IpAddr {
        self.local_addr().ip()
    }

    /// The port listened on.
    #[must_use]
    pub fn server_port(&self) -> u16 {
        self.local_addr().port()
    }

    /// How many connections are taken at once: [`Config::max_clients`], or as many as the limits of the process carry; then
    /// also what is short, and how it is called.
    #[must_use]
    pub fn max_clients(&self) -> (usize, Option<&'static str>) {
        let capacity = &self.shared.hub.capacity;
        (capacity.clients, capacity.lowered_by)
    }

    /// Stops listening; the peers stay.
    pub fn close(&self) {
        self.shared.listening.store(false, Ordering::SeqCst);
        self.shared.listener.close();
    }

    /// Stops: no new peers, GOODBYE to everyone, 10 s for what is under way, then the end of the events. Returns at once.
    pub fn stop(&self) {
        self.close();
        let hub = Arc::clone(&self.shared.hub);
        if spawn("stop", move || hub.stop(STOP_TIMEOUT)).is_err() {
            self.shared.hub.stop(Duration::ZERO);
        }
    }

    /// The next event; waits for it at most `timeout`, or for ever. `None` after the end. To be called again and again:
    /// while thousands wait, nothing more comes in.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn next_event(&self, timeout: Option<Duration>) -> Result<Option<Event>> {
        self.shared.hub.events.next(timeout)
    }

    /// The next peer that was not given yet, or `None`.
    #[must_use]
    pub fn next_pending_connection(&self) -> Option<PeerInfo> {
        self.wait_for_new_connection(Duration::ZERO).ok()
    }

    /// The next peer that was not given yet; waits for it.
    ///
    /// # Errors
    /// [`Error::Timeout`], or [`Error::Closed`] once the server stops.
    pub fn wait_for_new_connection(&self, timeout: Duration) -> Result<PeerInfo> {
        self.shared.hub.wait_for_peer(timeout)
    }

    /// Everybody who is connected.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerInfo> {
        self.shared.hub.peers()
    }

    /// Says GOODBYE to one peer, after what is queued for it.
    pub fn disconnect(&self, peer: &PeerInfo) {
        self.shared.hub.disconnect(peer.id);
    }

    /// Ends the connection of whoever has that nickname at once, as the operator: it will not come back by itself.
    ///
    /// # Errors
    /// [`Error::Refused`] when nobody has it.
    pub fn kick(&self, nickname: &Nickname) -> Result<()> {
        self.shared.hub.kick(nickname)
    }

    /// Says something to everybody in the room, or to one peer. Never waits: whoever reads too slowly is cut off. Gives the
    /// sequence that [`Event::TextDelivered`] names.
    ///
    /// # Errors
    /// [`Error::Argument`] over 64 KiB, [`Error::Refused`] when nobody has that nickname.
    pub fn send_text(&self, to: Option<&Nickname>, text: &str) -> Result<u64> {
        self.shared.hub.send_text(to, text)
    }

    /// Offers a file to everybody in the room, or to one peer: one transfer each.
    ///
    /// # Errors
    /// [`Error::File`] when it can't be read, [`Error::Refused`] when nobody has that nickname.
    pub fn send_file(&self, to: Option<&Nickname>, path: &Path) -> Result<Vec<TransferId>> {
        self.shared.hub.send_file(to, path)
    }

    /// Asks one of those in the room for a file or a directory that it shares, to be stored as `name`, or under its own last
    /// name. [`Event::Received`] follows for each file, and at the end [`Event::Got`] or [`Event::RequestFailed`].
    ///
    /// # Errors
    /// [`Error::Refused`] when nobody has that nickname, [`Error::Argument`] without [`Config::dir`].
    pub fn get(&self, from: &Nickname, path: &SafePath, name: Option<&SafePath>) -> Result<RequestId> {
        self.shared.hub.get(from, path, name)
    }

    /// Asks one of those in the room what it shares: the first page, or what follows `after`. [`Event::Listed`] or
    /// [`Event::RequestFailed`] follows.
    ///
    /// # Errors
    /// [`Error::Refused`] when nobody has that nickname.
    pub fn list(&self, from: &Nickname, after: Option<&SafePath>) -> Result<RequestId> {
        self.shared.hub.list(from, after)
    }

    /// How much text may wait to be taken as events, in bytes.
    #[must_use]
    pub fn read_buffer_size(&self) -> usize {
        self.shared.hub.events.text_bytes_max()
    }

    /// Sets how much text may wait; a text past it is refused.
    pub fn set_read_buffer_size(&self, bytes: usize) {
        self.shared.hub.events.set_text_bytes_max(bytes);
    }

    /// Bytes of text that wait.
    #[must_use]
    pub fn bytes_available(&self) -> usize {
        self.shared.hub.events.text_bytes()
    }

    /// Whether a whole text waits.
    #[must_use]
    pub fn can_read_text(&self) -> bool {
        self.shared.hub.events.has_text()
    }
}

impl Shared {
    fn accept(&self) {
        let mut trouble = Trouble { pause: ACCEPT_PAUSE_FIRST, last: None };
        let mut is_refusing = false;
        while self.listening.load(Ordering::SeqCst) {
            let accepted = self.listener.accept();
            match accepted.map_err(Error::system("accept")).and_then(|stream| self.take_in(stream, &mut is_refusing)) {
                Ok(()) => trouble.pause = ACCEPT_PAUSE_FIRST,
                Err(_) if !self.listening.load(Ordering::SeqCst) => return,
                // A connection that was gone before it was taken in.
                Err(Error::System { source, .. })
                    if matches!(source.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::NotConnected) => {}
                Err(error) => {
                    // Out of descriptors, memory or threads: what ends elsewhere makes room.
                    if trouble.is_news(Instant::now()) {
                        self.hub.events.push(Event::AcceptError(error));
                    }
                    std::thread::park_timeout(trouble.next_pause());
                }
            }
        }
    }

    /// Gives a connection a thread, or tells it why it gets none. Of a flood that is refused the first is news.
    ///
    /// # Errors
    /// No thread can be started.
    fn take_in(&self, stream: TcpStream, is_refusing: &mut bool) -> Result<()> {
        // Gone again.
        let Ok(conn) = Conn::new(stream).map(Arc::new) else { return Ok(()) };
        let address = conn.peer_addr().ip();
        if let Err(refusal) = self.hub.admit_stranger(address) {
            refuse_at_once(&conn, refusal);
            if !std::mem::replace(is_refusing, true) {
                let (address, error) = (conn.peer_addr(), Error::Refused(refusal));
                self.hub.events.push(Event::StrangerRefused { address, error });
            }
            return Ok(());
        }
        *is_refusing = false;
        let (hub, taken) = (Arc::clone(&self.hub), Arc::clone(&conn));
        let started = spawn("peer", move || hub.serve(&taken));
        started.map(drop).map_err(|source| {
            self.hub.forget_stranger(address);
            refuse_at_once(&conn, Refusal::Busy(u64::try_from(self.hub.capacity.clients).unwrap_or(u64::MAX)));
            Error::System { action: "start a thread", source }
        })
    }
}

/// Accept that fails, again and again.
struct Trouble {
    pause: Duration,
    last: Option<Instant>,
}

impl Trouble {
    /// Whether it was well for a while before.
    fn is_news(&mut self, now: Instant) -> bool {
        let last = self.last.replace(now);
        last.is_none_or(|last| now.saturating_duration_since(last) > ACCEPT_TROUBLE_ENDS)
    }

    fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(ACCEPT_PAUSE_LONGEST);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_that_fails_again_and_again_is_told_once_and_tried_within_a_second() {
        let mut trouble = Trouble { pause: ACCEPT_PAUSE_FIRST, last: None };
        let mut now = Instant::now();
        let told = (0..100).filter(|_| {
            let is_news = trouble.is_news(now);
            let pause = trouble.next_pause();
            assert!((ACCEPT_PAUSE_FIRST..=ACCEPT_PAUSE_LONGEST).contains(&pause));
            now += pause;
            is_news
        });
        assert_eq!(told.count(), 1);
        assert_eq!(trouble.next_pause(), ACCEPT_PAUSE_LONGEST);
        assert!(trouble.is_news(now + 2 * ACCEPT_TROUBLE_ENDS));
    }
}
