//! Text messages and files between machines, both ways, for many clients at once, over one framed TCP connection each.
//!
//! A [`Server`] listens, a [`Client`] connects; both send texts and files, and both hear [`Event`]s on a queue. No async
//! runtime: calls that wait take a deadline. A file counts as sent when the other side's disk has it.
//!
//! ```
//! use std::time::Duration;
//! use postwire::{Client, Config, Event, Server};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let server = Server::bind("127.0.0.1:0", Config::default())?;
//! let client = Client::connect(&server.local_addr().to_string(), Config::default())?;
//! client.send_text(None, "hello")?;
//! loop {
//!     match server.next_event(Some(Duration::from_secs(10)))? {
//!         // The text is acknowledged when it is dropped, at the end of this arm.
//!         Some(Event::Text(text)) => break assert_eq!(text.text, "hello"),
//!         Some(_) => {}
//!         None => unreachable!("the server was not stopped"),
//!     }
//! }
//! client.disconnect();
//! client.wait_disconnected(Duration::from_secs(10))?;
//! server.stop();
//! # Ok(())
//! # }
//! ```
//!
//! # For those who know Qt
//!
//! | `QTcpServer`, `QTcpSocket` | here |
//! | --- | --- |
//! | `listen(address, port)`; port 0; `setSocketDescriptor` | [`Server::bind`]; [`Server::from_listener`] |
//! | `isListening`, `serverAddress`, `serverPort`, `close` | [`Server::is_listening`], [`Server::server_address`], [`Server::server_port`], [`Server::close`] |
//! | `nextPendingConnection`, `waitForNewConnection(msec, &timedOut)` | [`Server::next_pending_connection`], [`Server::wait_for_new_connection`], whose [`Error::Timeout`] is told from an error |
//! | `newConnection`, `acceptError`, `errorString` | [`Event::PeerConnected`], [`Event::AcceptError`]; every [`Error`] displays well |
//! | `connectToHost`, `waitForConnected` | [`Client::connect`], which returns at once; [`Client::wait_connected`] |
//! | `disconnectFromHost`, `waitForDisconnected`, `abort` | [`Client::disconnect`], [`Server::disconnect`], which first deliver what is queued; [`Client::wait_disconnected`]; [`Client::abort`] |
//! | `state`, `stateChanged`, `hostFound`, `connected`, `disconnected`, `error` | [`Client::state`], [`Event::StateChanged`] for each [`State`] ([`State::Connecting`] means that the host was found), [`Event::Retrying`], [`Event::Disconnected`] with the error |
//! | `localAddress`, `localPort`, `peerAddress`, `peerPort`, `peerName` | [`Client::local_addr`], [`Client::peer_addr`], [`Client::peer_name`], [`PeerInfo::address`] |
//! | `readBufferSize`, `setReadBufferSize` | [`Client::read_buffer_size`], [`Client::set_read_buffer_size`], and the server's |
//! | `bytesAvailable`, `canReadLine`, `readyRead` | [`Client::bytes_available`], [`Client::can_read_text`], [`Event::Text`] |
//! | `bytesWritten` | [`Event::Progress`], with bytes that the other side has written |
//!
//! # Architecture
//!
//! A module imports only from rows above its own, and siblings do not know each other.
//!
//! | row | modules | know |
//! | --- | --- | --- |
//! | 0 | `error`, [`config`] (every limit: unit, reason), `name` (safe names, nicknames, escaping), `key`, `network`, `capacity` (what the system carries), `worker` (threads on demand) | nothing |
//! | 1 | [`wire`] (codec, messages, [the protocol](wire::protocol)) | bytes only |
//! | 2 | `conn` (all sockets), `storage` (partials, compare, commit; sources, trees, streams; the spool) | row 1 at most |
//! | 3 | `transfer` (sender and receiver as state machines) | no sockets |
//! | 4 | `session` (hello, send turn, reader, keepalive, close) | one peer |
//! | 5 | `event`, `hub` (peers, the room, delivery, relaying) | all peers |
//! | 6 | `server`, `client` | the public API |
//! | 7 | the binary: `main`, `cli` | the public API alone; it prints, reads the environment, exits |
//!
//! `fuzz`, in tests and fuzz builds alone, looks into all of them.
//!
//! What holds everywhere:
//!
//! - A connection costs one thread, its reader. Whoever has a frame for a peer takes the send turn and sends without waiting;
//!   only what the socket does not take, and file data, starts a writer, which ends when idle. There is no clock thread: the
//!   reader's own timeout pings after 15 s of silence.
//! - The reader never waits for a disk or another thread. Disk work has a thread per connection, on demand; a slow disk
//!   withholds acknowledgements and never holds up a text.
//! - The order of sending is control, texts, one chunk. Acknowledgements are state until the turn is taken.
//! - A receiver never holds more than the credit it gave; all credit comes out of one budget. What a peer can make a process hold
//!   in all is said at [`Config::max_memory`].
//! - What is not read is not made: an answer waits until the last one is on its way, and who reads nothing for 30 s is cut off.
//! - A file is acknowledged after data, name and directory are synced, in that order. What a failed sync touched is removed.
//! - What a server carries for others is stored first, in a spool of its own, and then sent as any file is: two transfers, each with
//!   its receipt, that know nothing of each other (`hub::relay`).
//! - Locks survive a panic, and no lock is held while something is read or written.
//! - The library never prints, exits, or panics on anything that a peer or a disk can do.

mod capacity;
mod client;
pub mod config;
mod conn;
mod error;
mod event;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
mod hub;
mod key;
mod name;
mod network;
mod server;
mod session;
mod storage;
mod transfer;
#[doc(hidden)]
pub mod wire;
mod worker;

pub use client::{Client, Recipients};
pub use config::{Config, IfExists, Retry, Sink};
pub use error::{Error, Goodbye, Refusal, Result, Violation, WireError};
pub use event::{Event, PeerInfo, State, Text};
pub use key::Key;
pub use name::{escape, escape_path, Nickname, SafeName, SafePath, Unsafe};
pub use network::Network;
pub use server::Server;
pub use storage::Skipped;
pub use transfer::{Direction, Kind, Listed, Progress, Receipt, RequestId, TransferFailure, TransferId};
