//! [`Server`]: listens, takes peers in, carries texts and files to and from them.
//!
//! It owns the listener and its thread; everything between peers is `hub`'s.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Config, ACCEPT_PAUSE_FIRST, ACCEPT_PAUSE_LONGEST, STOP_TIMEOUT};
use crate::conn::{Address, Listener};
use crate::error::{Error, Result};
use crate::event::{Event, PeerInfo};
use crate::hub::Hub;
use crate::name::{Nickname, SafePath};
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
    fn accept(self: &Arc<Self>) {
        let mut pause = ACCEPT_PAUSE_FIRST;
        while self.listening.load(Ordering::SeqCst) {
            let result = self.listener.accept().and_then(|stream| {
                let address = stream.peer_addr()?.ip().to_canonical();
                if !self.hub.admit_stranger(address) {
                    return Ok(());
                }
                let hub = Arc::clone(&self.hub);
                let started = spawn("peer", move || hub.serve(stream, address));
                started.map(|_| ()).inspect_err(|_| self.hub.forget_stranger(address))
            });
            match result {
                Ok(()) => pause = ACCEPT_PAUSE_FIRST,
                Err(_) if !self.listening.load(Ordering::SeqCst) => return,
                // A connection that was gone before it was taken in.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::NotConnected) => {}
                Err(source) => {
                    // Out of descriptors, memory or threads: what ends elsewhere makes room.
                    self.hub.events.push(Event::AcceptError(Error::System { action: "accept", source }));
                    std::thread::park_timeout(pause);
                    pause = (pause * 2).min(ACCEPT_PAUSE_LONGEST);
                }
            }
        }
    }
}
