//! All sockets: [`Conn`] is one TCP connection, [`Listener`] takes them in, [`dial`] makes them.
//!
//! Nothing here knows frames or threads; nothing elsewhere calls the socket interface. `session` reads and writes through
//! a [`Conn`], `server` and `client` own the listener and the dialling.

mod address;
#[cfg(feature = "encrypt")]
mod cipher;
mod dial;
mod listen;
#[cfg(feature = "encrypt")]
mod sealed;

use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr, TcpStream};
#[cfg(feature = "encrypt")]
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::retry_on_intr;
use rustix::net::{recv, send, RecvFlags, SendFlags};

pub(crate) use address::{Address, Host};
pub(crate) use dial::{dial, lookup};
pub(crate) use listen::Listener;
#[cfg(feature = "encrypt")]
pub(crate) use sealed::{Handshake, Seal, HANDSHAKE_BYTES};

use crate::config::{HELLO_BYTES_MAX, REFUSED_BYTES_MAX, REFUSED_TIMEOUT, WRITE_STALL_MAX};
use crate::error::{Error, Result};
use crate::worker::at_most;

/// One TCP connection: one descriptor, read by one thread, written by whoever has the send turn.
pub(crate) struct Conn {
    stream: TcpStream,
    /// Both ends are asked for once: after a reset the system no longer tells.
    local: SocketAddr,
    peer: SocketAddr,
    /// Once the connection is sealed.
    #[cfg(feature = "encrypt")]
    seal: OnceLock<Seal>,
}

impl Conn {
    /// Prepares a fresh connection: no delay for small frames.
    ///
    /// # Errors
    /// [`Error::System`] when the peer is gone already.
    pub(crate) fn new(stream: TcpStream) -> Result<Conn> {
        let prepare = || {
            stream.set_nodelay(true)?;
            Ok((stream.local_addr()?, stream.peer_addr()?))
        };
        let (local, peer) = prepare().map_err(Error::system::<io::Error>("prepare the connection"))?;
        Ok(Conn {
            stream,
            local: unmapped(local),
            peer: unmapped(peer),
            #[cfg(feature = "encrypt")]
            seal: OnceLock::new(),
        })
    }

    /// A connection to the other end of a pair of sockets, which costs a fuzz target less than TCP.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn of_pair(stream: std::os::unix::net::UnixStream) -> Conn {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        Conn {
            stream: std::os::fd::OwnedFd::from(stream).into(),
            local: nowhere,
            peer: nowhere,
            #[cfg(feature = "encrypt")]
            seal: OnceLock::new(),
        }
    }

    /// What follows is sealed, both ways.
    #[cfg(feature = "encrypt")]
    pub(crate) fn seal(&self, seal: Seal) {
        // A fresh cell takes a value.
        let _ = self.seal.set(seal);
    }

    /// Whether its keys are nearly used up.
    pub(crate) fn is_worn(&self) -> bool {
        #[cfg(feature = "encrypt")]
        return self.seal.get().is_some_and(Seal::is_worn);
        #[cfg(not(feature = "encrypt"))]
        false
    }

    /// Reads what has come, waiting for the first byte. `Ok(0)` is the end of the stream.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        #[cfg(feature = "encrypt")]
        if let Some(seal) = self.seal.get() {
            return seal.read(buffer, |space| self.receive(space));
        }
        self.receive(buffer)
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        #[cfg(any(test, feature = "fuzzing"))]
        crate::worker::held::meanwhile(crate::worker::held::Wait::ToReceive);
        loop {
            match (&self.stream).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// How long [`Conn::read`] waits before it gives `WouldBlock`; the system is late by up to an eighth of it.
    pub(crate) fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(timeout.max(Duration::from_millis(1))))
    }

    /// The same for who must not be late: less than is left, so whoever reads looks at the clock and reads again.
    pub(crate) fn set_read_deadline(&self, at: Instant) -> io::Result<()> {
        self.set_read_timeout(at.saturating_duration_since(Instant::now()) * 8 / 9)
    }

    /// Writes what the system takes at once; perhaps nothing.
    pub(crate) fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        let send = |bytes: &[u8]| match self.send(bytes, SendFlags::DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            result => result,
        };
        #[cfg(feature = "encrypt")]
        if let Some(seal) = self.seal.get() {
            return seal.write(bytes, send);
        }
        send(bytes)
    }

    /// Writes, waiting until the system takes some.
    ///
    /// # Errors
    /// `TimedOut` when the system takes nothing for 30 s.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let send = |bytes: &[u8]| self.send_waiting(bytes);
        #[cfg(feature = "encrypt")]
        if let Some(seal) = self.seal.get() {
            return seal.write(bytes, send);
        }
        send(bytes)
    }

    /// The wait is one for room alone, so it begins when the other side stops reading. The socket's own timeout would be late by
    /// up to an eighth.
    fn send_waiting(&self, bytes: &[u8]) -> io::Result<usize> {
        let stall_max = Timespec::try_from(at_most(WRITE_STALL_MAX)).map_err(io::Error::other)?;
        loop {
            match self.send(bytes, SendFlags::DONTWAIT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
            let mut wanted = [PollFd::new(&self.stream, PollFlags::OUT)];
            if retry_on_intr(|| poll(&mut wanted, Some(&stall_max)))? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    fn send(&self, bytes: &[u8], flags: SendFlags) -> io::Result<usize> {
        #[cfg(any(test, feature = "fuzzing"))]
        crate::worker::held::meanwhile(crate::worker::held::Wait::ToSend);
        loop {
            match send(&self.stream, bytes, flags | SendFlags::NOSIGNAL) {
                Err(rustix::io::Errno::INTR) => {}
                result => return result.map_err(io::Error::from),
            }
        }
    }

    /// Says that nothing more will be written.
    pub(crate) fn shutdown_write(&self) {
        // An error means that the connection is gone, which the reader notices.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Nothing more is read; the reader wakes up.
    pub(crate) fn end_reading(&self) {
        let _ = self.stream.shutdown(Shutdown::Read);
    }

    /// Ends both directions at once; the reader wakes up.
    pub(crate) fn end(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// PROTOCOL 2.9: after a refusal, shuts down writing and reads away what the other side still sends, a little.
    pub(crate) fn linger_after_refusal(&self) {
        self.shutdown_write();
        let mut scratch = [0; 4096];
        let mut left = REFUSED_BYTES_MAX;
        let deadline = Instant::now() + REFUSED_TIMEOUT;
        while left > 0 && Instant::now() < deadline && self.set_read_deadline(deadline).is_ok() {
            match self.read(&mut scratch) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => break,
                Ok(count) => left = left.saturating_sub(count),
            }
        }
    }

    /// Reads away what is there: ending a connection with something unread is a reset, which overtakes what was said.
    pub(crate) fn read_away_what_came(&self) {
        let _ = recv(&self.stream, &mut [0; HELLO_BYTES_MAX], RecvFlags::DONTWAIT);
    }

    /// This side's address and port.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The other side's address and port.
    pub(crate) fn peer_addr(&self) -> SocketAddr {
        self.peer
    }
}

/// An IPv4 address that came through a dual-stack socket, as IPv4.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
