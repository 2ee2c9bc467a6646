//! Files under way: [`Outbound`] sends, [`Inbound`] receives. Both are state machines over messages and `storage`.
//!
//! Nothing here knows a socket: `session` passes in what arrived and takes out what is to be sent. What the application should
//! know leaves as a [`Report`]. Chunks are read and written on disk threads, so a slow disk withholds acknowledgements and
//! never holds up a text.

mod budget;
mod compare;
mod coverage;
mod holders;
mod inbound;
mod incoming;
mod ledger;
mod outbound;
mod outgoing;
mod pace;
mod relaying;
mod requests;
mod sharing;
mod window;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::config::PROGRESS_PAUSE;
use crate::error::Error;
use crate::name::Nickname;
use crate::storage::Skipped;
use crate::{storage, wire};

pub(crate) use budget::Budget;
pub(crate) use holders::{Holders, Pulse};
pub(crate) use inbound::{Inbound, InboundContext};
pub(crate) use outbound::{Outbound, Parcel};
pub(crate) use pace::Pace;
pub(crate) use relaying::{Arrived, Passage, Relaying, Way};
pub(crate) use requests::{Answer, Requests};
pub use requests::{Listed, RequestId};
pub(crate) use sharing::Sharing;

/// Which side a transfer's bytes go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the other side.
    Outgoing,
    /// To this side.
    Incoming,
}

/// Names a transfer to the application: unique in its direction for the life of the server or client.
pub type TransferId = u32;

/// Gives each transfer of a server or client its [`TransferId`].
#[derive(Default)]
pub(crate) struct TransferIds(AtomicU32);

impl TransferIds {
    /// The next one, from 1.
    pub(crate) fn next(&self) -> TransferId {
        self.0.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }
}

/// What is offered (PROTOCOL 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Kind {
    /// A regular file.
    #[default]
    File,
    /// A directory, after all that is in it.
    Directory,
    /// Bytes of unknown length: a pipe, a device, a file of /proc.
    Stream,
}

impl Kind {
    pub(crate) fn to_wire(self) -> u8 {
        match self {
            Kind::File => 0,
            Kind::Directory => 1,
            Kind::Stream => 2,
        }
    }

    pub(crate) fn from_wire(kind: u8) -> Option<Kind> {
        [Kind::File, Kind::Directory, Kind::Stream].into_iter().find(|known| known.to_wire() == kind)
    }
}

/// How far a transfer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Which.
    pub transfer: TransferId,
    /// Which way.
    pub direction: Direction,
    /// The file's name as offered, unescaped.
    pub name: Vec<u8>,
    /// Bytes written on the receiving side, held ones included.
    pub bytes: u64,
    /// The offered size; `None` for a stream, which has none yet.
    pub size_bytes: Option<u64>,
}

/// Lets a report through at once, and the next ones as often as anybody can see.
#[derive(Default)]
struct Seldom(Option<Instant>);

impl Seldom {
    fn is_due(&mut self) -> bool {
        let is_due = self.0.is_none_or(|last| last.elapsed() >= PROGRESS_PAUSE);
        if is_due {
            self.0 = Some(Instant::now());
        }
        is_due
    }
}

/// A file that is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Which transfer.
    pub transfer: TransferId,
    /// Which way.
    pub direction: Direction,
    /// What it is. A directory has no bytes and no CRC.
    pub kind: Kind,
    /// The other side's nickname; `None`: a server.
    pub peer: Option<Nickname>,
    /// The other end of the connection that brought it (incoming only).
    pub address: Option<SocketAddr>,
    /// The request of this side that it answers.
    pub request: Option<RequestId>,
    /// The file that was sent (outgoing only; `None` for standard input and the like).
    pub source: Option<PathBuf>,
    /// The name as offered, unescaped.
    pub name: Vec<u8>,
    /// The path it has on the receiving side, below its directory, unescaped.
    pub stored: Vec<u8>,
    /// The size of the stored file.
    pub bytes: u64,
    /// The CRC32 of the stored file.
    pub crc32: u32,
    /// Data, name and directories are synced.
    pub durable: bool,
    /// The same content was there before.
    pub already: bool,
    /// Bytes that did not travel on this connection.
    pub resumed_bytes: u64,
    /// The source was longer at the end than offered; what was offered is what was stored.
    pub grew: bool,
    /// From the offer to the receipt.
    pub elapsed: Duration,
}

/// A transfer that ended without a stored file.
#[derive(Debug)]
pub struct TransferFailure {
    /// Which transfer.
    pub transfer: TransferId,
    /// Which way.
    pub direction: Direction,
    /// The other side's nickname; `None`: a server.
    pub peer: Option<Nickname>,
    /// The request of this side that it would have answered.
    pub request: Option<RequestId>,
    /// The file that was to be sent (outgoing only).
    pub source: Option<PathBuf>,
    /// The name as offered, unescaped.
    pub name: Vec<u8>,
    /// Why: [`Error::Refused`] when the other side refused an outgoing file, or this side an incoming one.
    pub error: Error,
}

/// What the application should know of a transfer; `peer` is filled in by whoever knows it.
#[derive(Debug)]
pub(crate) enum Report {
    /// See [`Progress`].
    Progress(Progress),
    /// See [`Receipt`].
    Stored(Receipt),
    /// See [`TransferFailure`].
    Failed(TransferFailure),
    /// All those that a file was for have it, or will not get it.
    Relayed { transfer: TransferId },
    /// Something in a tree is not sent.
    Skipped { path: PathBuf, why: Skipped },
}

impl From<wire::Time> for storage::Time {
    fn from(wire::Time { seconds, nanoseconds }: wire::Time) -> storage::Time {
        storage::Time { seconds, nanoseconds }
    }
}

impl From<storage::Time> for wire::Time {
    fn from(storage::Time { seconds, nanoseconds }: storage::Time) -> wire::Time {
        wire::Time { seconds, nanoseconds }
    }
}

/// The CRC of two parts, from the parts' CRCs and the length of the second.
fn combine_crc(first: u32, second: u32, second_bytes: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(first);
    hasher.combine(&crc32fast::Hasher::new_with_initial_len(second, second_bytes));
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combined_parts_have_the_crc_of_the_whole() {
        let (first, second) = (b"hello ".as_slice(), b"world".as_slice());
        let combined = combine_crc(crc32fast::hash(first), crc32fast::hash(second), 5);
        assert_eq!(combined, crc32fast::hash(b"hello world"));
        assert_eq!(combine_crc(0, crc32fast::hash(second), 5), crc32fast::hash(second));
        assert_eq!(combine_crc(crc32fast::hash(first), 0, 0), crc32fast::hash(first));
    }
}
