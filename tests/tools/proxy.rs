//! A TCP proxy that damages what it carries: delay, rate, small pieces, stall, half-close, reset, flipped bits, blackhole.
//!
//! One thread accepts, one thread carries each connection with both its directions; all end when the [`Proxy`] is
//! dropped. It refuses to know the protocol: faults are placed by their distance from a direction's first byte.
//! Integration tests use it: `#[path = "tools/proxy.rs"] mod proxy;`. The sockets' options need `rustix`, a dependency
//! of the crate anyway; all else is std.
#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod link;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::net::sockopt;

pub use link::Line;
use link::Pump;

/// What happens to the connections.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// What happens on the way from the client to the server.
    pub to_server: Line,
    /// What happens on the way back.
    pub to_client: Line,
    /// Only the first so many connections have faults; later ones are clean.
    pub only_connections: Option<usize>,
    /// The first connections have these instead, each its own: to the server, to the client.
    pub by_connection: Vec<[Line; 2]>,
    /// Where the random sizes of the pieces start.
    pub seed: u64,
}

impl Faults {
    fn of_connection(&self, number: usize) -> Faults {
        match self.by_connection.get(number) {
            Some([to_server, to_client]) => {
                Faults { to_server: to_server.clone(), to_client: to_client.clone(), ..Faults::default() }
            }
            None if self.only_connections.is_none_or(|first| number < first) => self.clone(),
            None => Faults::default(),
        }
    }
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
}

/// A listening proxy on a free port.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    acceptor: Option<JoinHandle<()>>,
}

/// What the tests and the threads tell each other.
struct Shared {
    target: SocketAddr,
    faults: Faults,
    /// How many had been accepted when these faults were set.
    accepted_before: usize,
    accepted: usize,
    forwarded_to_server: u64,
    forwarded_to_client: u64,
    flipped_bits: u64,
    paused: bool,
    stopping: bool,
    /// Connections accepted before the last `kill_all` have a lower number than this.
    kills: usize,
    carriers: Vec<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on 127.0.0.1, and carries each connection to `target`.
    pub fn start(target: SocketAddr, faults: Faults) -> Proxy {
        Proxy::start_on(Ipv4Addr::LOCALHOST, target, faults)
    }

    /// The same on another address of this machine.
    pub fn start_on(here: Ipv4Addr, target: SocketAddr, faults: Faults) -> Proxy {
        let listener = TcpListener::bind((here, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let has_rate = |line: &Line| line.rate_bytes_per_second.is_some();
        if has_rate(&faults.to_server) || faults.by_connection.iter().any(|[to_server, _]| has_rate(to_server)) {
            // Connections inherit it; set later it would not shrink the first window.
            sockopt::set_socket_recv_buffer_size(&listener, SLOW_BUFFER_BYTES).unwrap();
        }
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Mutex::new(Shared {
            target,
            faults,
            accepted_before: 0,
            accepted: 0,
            forwarded_to_server: 0,
            forwarded_to_client: 0,
            flipped_bits: 0,
            paused: false,
            stopping: false,
            kills: 0,
            carriers: Vec::new(),
        }));
        let for_thread = Arc::clone(&shared);
        let acceptor = thread::spawn(move || accept_until_stopped(&listener, &for_thread));
        Proxy { address, shared, acceptor: Some(acceptor) }
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Later connections go to `target`: a server that was started again has another port.
    pub fn set_target(&self, target: SocketAddr) {
        lock(&self.shared).target = target;
    }

    /// Later connections have these faults, and are counted anew.
    pub fn set_faults(&self, faults: Faults) {
        let mut shared = lock(&self.shared);
        (shared.faults, shared.accepted_before) = (faults, shared.accepted);
    }

    /// How many connections have been accepted so far.
    pub fn connections(&self) -> usize {
        lock(&self.shared).accepted
    }

    /// How many bytes have been written out in a direction, over all connections.
    pub fn bytes_forwarded(&self, direction: Direction) -> u64 {
        let shared = lock(&self.shared);
        match direction {
            Direction::ToServer => shared.forwarded_to_server,
            Direction::ToClient => shared.forwarded_to_client,
        }
    }

    /// How many of the bits to flip have come by, over all connections.
    pub fn flipped_bits(&self) -> u64 {
        lock(&self.shared).flipped_bits
    }

    /// Resets every connection at both ends; returns when that is done. The proxy goes on accepting.
    pub fn kill_all(&self) {
        let carriers = {
            let mut shared = lock(&self.shared);
            shared.kills += 1;
            std::mem::take(&mut shared.carriers)
        };
        carriers.into_iter().for_each(|carrier| carrier.join().unwrap());
    }

    /// A blackhole: nothing is accepted, read or written until [`Proxy::resume`]; nothing is closed.
    pub fn pause(&self) {
        lock(&self.shared).paused = true;
    }

    /// Ends the blackhole.
    pub fn resume(&self) {
        lock(&self.shared).paused = false;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        lock(&self.shared).stopping = true;
        // A carrier's panic has been printed by its own thread; here may be the unwinding of a failed test.
        let _ = self.acceptor.take().map(JoinHandle::join);
        let carriers = std::mem::take(&mut lock(&self.shared).carriers);
        carriers.into_iter().for_each(|carrier| drop(carrier.join()));
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn accept_until_stopped(listener: &TcpListener, shared: &Arc<Mutex<Shared>>) {
    loop {
        let paused = {
            let shared = lock(shared);
            if shared.stopping {
                return;
            }
            shared.paused
        };
        if paused {
            wait(&mut [], LOOK_AGAIN);
            continue;
        }
        match listener.accept() {
            Ok((client, _)) => start_carrier(client, shared),
            Err(_) => wait(&mut [PollFd::new(listener, PollFlags::IN)], LOOK_AGAIN),
        }
    }
}

fn start_carrier(client: TcpStream, shared: &Arc<Mutex<Shared>>) {
    let mut locked = lock(shared);
    let number = locked.accepted - locked.accepted_before;
    locked.accepted += 1;
    let kills = locked.kills;
    let faults = locked.faults.of_connection(number);
    let seed = locked.faults.seed.wrapping_add(u64::try_from(number).unwrap());
    let target = locked.target;
    let for_thread = Arc::clone(shared);
    locked.carriers.push(thread::spawn(move || {
        let outcome = TcpStream::connect_timeout(&target, CONNECT_TIMEOUT);
        let Ok(server) = outcome.and_then(|server| prepare(&client, &faults, server)) else {
            return reset(client);
        };
        let now = Instant::now();
        let up = Pump::new(faults.to_server, seed, now);
        let down = Pump::new(faults.to_client, !seed, now);
        let mut carrier = Carrier { client, server, up, down, shared: for_thread, kills };
        if carrier.carry() == End::Reset {
            reset(carrier.client);
            reset(carrier.server);
        }
    }));
}

/// Sets both sockets' options; gives the server's back.
fn prepare(client: &TcpStream, faults: &Faults, server: TcpStream) -> io::Result<TcpStream> {
    for stream in [client, &server] {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
    }
    for (line, source, destination) in [(&faults.to_server, client, &server), (&faults.to_client, &server, client)] {
        if line.rate_bytes_per_second.is_some() {
            sockopt::set_socket_recv_buffer_size(source, SLOW_BUFFER_BYTES)?;
            sockopt::set_socket_send_buffer_size(destination, SLOW_BUFFER_BYTES)?;
        }
    }
    Ok(server)
}

/// Closes so that the other end sees a reset.
fn reset(stream: TcpStream) {
    // A socket that is broken already needs none.
    let _ = sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
}

/// Waits until one of `sockets` is ready, `at_most` so long.
fn wait(sockets: &mut [PollFd<'_>], at_most: Duration) {
    let timeout = Timespec::try_from(at_most).unwrap();
    // Interrupted or not: the caller looks again.
    let _ = poll(sockets, Some(&timeout));
}

/// One connection.
struct Carrier {
    client: TcpStream,
    server: TcpStream,
    up: Pump,
    down: Pump,
    shared: Arc<Mutex<Shared>>,
    /// `Shared::kills` when it was accepted.
    kills: usize,
}

#[derive(PartialEq)]
enum End {
    /// Both directions ended in order, or the proxy stops.
    Closed,
    Reset,
}

impl Carrier {
    fn carry(&mut self) -> End {
        loop {
            let paused = {
                let shared = lock(&self.shared);
                if shared.stopping {
                    return End::Closed;
                }
                if shared.kills > self.kills {
                    return End::Reset;
                }
                shared.paused
            };
            if paused {
                wait(&mut [], LOOK_AGAIN);
                continue;
            }
            let now = Instant::now();
            let up = self.up.step(&self.client, &self.server, now);
            let down = self.down.step(&self.server, &self.client, now);
            {
                let mut shared = lock(&self.shared);
                shared.forwarded_to_server += up.as_ref().unwrap_or(&0);
                shared.forwarded_to_client += down.as_ref().unwrap_or(&0);
                shared.flipped_bits += self.up.take_flipped() + self.down.take_flipped();
            }
            if up.is_err() || down.is_err() {
                return End::Reset;
            }
            if self.up.is_done && self.down.is_done {
                return End::Closed;
            }
            self.wait_for_work();
        }
    }

    /// Waits for a socket that a pump wants, or the next moment at which one has something to do.
    fn wait_for_work(&self) {
        let now = Instant::now();
        let mut sockets = Vec::new();
        for (pump, source, destination) in
            [(&self.up, &self.client, &self.server), (&self.down, &self.server, &self.client)]
        {
            if pump.wants_to_read(now) {
                sockets.push(PollFd::new(source, PollFlags::IN));
            }
            if pump.wants_to_write(now) {
                sockets.push(PollFd::new(destination, PollFlags::OUT));
            }
        }
        let moments = [self.up.next_moment(now), self.down.next_moment(now)];
        let next = moments.into_iter().flatten().min().map_or(LOOK_AGAIN, |moment| moment - now);
        wait(&mut sockets, next.min(LOOK_AGAIN));
    }
}

/// How soon a thread notices `pause`, `kill_all` or the drop of the proxy.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// The sockets' buffers on a slow link: small, so that the sender feels the link and not the kernel's megabytes.
const SLOW_BUFFER_BYTES: usize = 16 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
