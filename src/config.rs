//! Every limit with its unit and its reason, and [`Config`], which holds those that a user may set.
//!
//! Nothing else in the crate holds a bare number that bounds what a peer or a disk can do. Zero never means unlimited.

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::key::Key;
use crate::name::Nickname;
use crate::network::Network;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// A fuzz target meets every border with little data, thousands of times a second.
const IS_FUZZED: bool = cfg!(feature = "fuzzing");

/// The port when an address names none.
pub const DEFAULT_PORT: u16 = 7117;

// Names.

/// What file systems take for one name.
pub const NAME_BYTES_MAX: usize = 255;
/// Deeper trees than any real one, and a bound on the directory handles held at once.
pub const PATH_DEPTH_MAX: usize = 64;
/// 64 names of 255 bytes and the slashes between them.
pub const PATH_BYTES_MAX: usize = 16 * KIB;
/// A nickname and a text's first words fit a line of 80.
pub const NICKNAME_BYTES_MAX: usize = 32;
/// How many numbered names are tried when one is taken; a directory fuller than that is a loop, not an archive.
pub const NUMBERED_NAMES_MAX: u32 = 10_000;

// Wire.

/// A text: more is a file.
pub const TEXT_BYTES_MAX: usize = 64 * KIB;
/// Texts that are acknowledged in one frame while more wait to be handled.
pub const TEXTS_ACKNOWLEDGED_TOGETHER: u64 = 16;
/// The least that a peer must take for a text to be of use.
pub const TEXT_BYTES_LEAST: usize = KIB;
/// Unacknowledged texts a peer may have under way, however short: each is kept with who said it until it is printed.
pub const TEXTS_MAX: usize = 1024;
/// Bytes of unacknowledged texts a peer may have under way: a few of the longest.
pub const TEXT_WINDOW_BYTES: usize = 256 * KIB;
/// A chunk: a fast line wants long ones, so that one read takes much; on a slow one the window makes them shorter.
pub const CHUNK_BYTES_MAX: usize = 1024 * KIB;
/// The least chunk: below it heads and system calls cost more than data.
pub const CHUNK_BYTES_LEAST: usize = 16 * KIB;
/// Long chunks are as many times as long, so that the receiver's buffers fit again.
pub const CHUNK_BYTES_STEP: u64 = 256 * 1024;
/// Transfers that are offered and have not ended: 4,096 small files share one round trip.
pub const OFFERS_MAX: u32 = 4096;
/// The same where memory is short: still more than one a round trip.
pub const OFFERS_LEAST: u32 = 16;
/// What an open offer may cost, path included: as many are granted as a part of [`Config::max_memory`] has room for.
pub const OFFER_BYTES: usize = 4 * KIB;
/// How long the paths of open offers are on average, at most.
pub const OFFER_PATH_BYTES: usize = 256;
/// CRCs in one SUMS frame: a tail of 64 KiB.
pub const SUMS_PER_FRAME: usize = 16 * KIB;
/// A frame that may be skipped when unknown (PROTOCOL 1.2).
pub const SKIPPED_TAIL_BYTES_MAX: usize = 64 * KIB;
/// What a client may send before its hello is complete.
pub const HELLO_BYTES_MAX: usize = KIB;

// Relaying.

/// The nicknames of one RELAY: 240 of the longest.
pub const RELAY_NICKNAMES_BYTES_MAX: usize = 8 * KIB;
/// RELAYs of one connection that offers may name; one that is forgotten is said again.
pub const RELAYS_MAX: usize = 16;
/// Files that a server has for others, each counted once for everybody it is for: a tree of a thousand files for 16 boards.
pub const RELAYED_MAX: usize = 16_384;
/// Of these, what one sender has there at a time, so that four of them have room; it offers no more before.
pub const OUTCOMES_DUE_MAX: usize = RELAYED_MAX / 4;
/// How many a sender takes for everybody in the room: it does not know before they have it.
pub const ROOM_GUESSED: usize = 16;
/// Files and texts that are left for who is not there.
pub const LEFT_MAX: usize = 4096;

// Files.

/// The least block: what is compared and sent again after a break, and the size up to which a file is small.
pub const BLOCK_BYTES_LEAST: u64 = if IS_FUZZED { 2 * 1024 } else { 256 * 1024 };
/// What is read of it at once to compare it: larger pieces are no faster.
pub const READ_BYTES: usize = 64 * KIB;
/// Blocks a file has at most: their CRCs fit 1 MiB.
pub const BLOCKS_MAX: u64 = 262_144;
/// Parts of a file with gaps between them: a line that loses so much at once is not a line.
pub const PARTS_MAX: usize = 512;
/// Chunks without acknowledgement that a sender has, however short; a receiver takes twice as many, for those of transfers that ended.
pub const CHUNKS_MAX: usize = 4096;
/// Ranges asked for again and not yet received.
pub const REPAIRS_MAX: usize = 256;
/// Damaged chunks of one transfer; a line that bad is not a line.
pub const DAMAGED_CHUNKS_MAX: u32 = 1000;
/// Larger files open at once on a connection; more wait as offers.
pub const OPEN_TRANSFERS_MAX: usize = 4;
/// Small files begun and not complete on a connection: each holds descriptors. Senders have one begun, and a few more where
/// chunks were damaged.
pub const SMALL_FILES_BEGUN_MAX: usize = 16;
/// Room is taken from the file system this far ahead: all at once costs 0.1 s a GiB.
pub const FALLOCATE_BYTES: u64 = 64 * 1024 * 1024;
/// A file that arrives is synced this often, so that the last sync and the loss at a power cut stay short.
pub const SYNC_BYTES: u64 = 64 * 1024 * 1024;
/// Files that one round of group commit takes.
pub const GROUP_FILES_MAX: usize = 128;
/// The largest file that joins a group; a larger one's sync would hold up the others.
pub const GROUP_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// From this many files one `syncfs` beats an `fsync` each.
pub const SYNCFS_FILES_LEAST: usize = 8;

/// Files of an offered size whose content may be compared with it: the name and numbered ones.
pub const SAME_SIZE_FILES_MAX: usize = 64;
/// Partials of one file: as many runs may send the same file at once.
pub const PARTIALS_OF_A_FILE_MAX: u32 = 256;
/// Directories known to be synced into their parents; one that is forgotten is synced once more.
pub const DIRECTORIES_REMEMBERED: usize = 4096;
/// Directories that are kept open from one file to the next, from the top down.
pub const TRAIL_MAX: usize = 4;

// Flow.

/// How often the progress of a transfer is told: more often it costs more than a chunk.
pub const PROGRESS_PAUSE: Duration = Duration::from_millis(50);
/// The least window: a slow line still keeps a few chunks under way.
pub const WINDOW_BYTES_LEAST: u64 = 128 * 1024;
/// The largest window: 100 MB/s over 160 ms.
pub const WINDOW_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// What the window allows beyond the shortest round trip: as much waits in queues, and a text behind it.
pub const WINDOW_QUEUE: Duration = Duration::from_millis(30);
/// The same in bytes, at most: 30 ms at 100 MB/s. More than a processor's cache holds makes a faster line slower.
pub const WINDOW_QUEUE_BYTES_MAX: u64 = 3 * 1024 * 1024;
/// The least share of the receive budget that a connection with an open transfer gets.
pub const CREDIT_BYTES_LEAST: u64 = if IS_FUZZED { 1024 } else { 64 * 1024 };
/// Buffers of chunks that a connection keeps for the next ones.
pub const SPARES_MAX: usize = 4;
/// It keeps one for each so much of its share of the receive budget, and reads in larger pieces where it has so much.
pub const SPARE_SHARE_LEAST: u64 = 2 * 1024 * 1024;
/// Texts and control waiting for a slow reader: at once, it is cut.
pub const OUTBOX_BYTES_MAX: usize = MIB;
/// Texts waiting for a slow reader: longer than `OUTBOX_SLOW_AFTER`, it is cut.
pub const OUTBOX_BYTES_SLOW: usize = 256 * KIB;
/// How long a reader may leave `OUTBOX_BYTES_SLOW` waiting.
pub const OUTBOX_SLOW_AFTER: Duration = Duration::from_secs(10);

/// The least [`Config::limit_rate`], bytes a second: below it a chunk's head is a fifth of it.
pub const LIMIT_RATE_LEAST: u64 = 1024;
/// Chunks a second under [`Config::limit_rate`], at least: so short are the bursts that others on the line see.
pub const LIMIT_RATE_CHUNKS: u64 = 8;
/// What a chunk that left late may make up for.
pub const LIMIT_RATE_BURST: Duration = Duration::from_millis(100);

// Time.

/// A whole hello; slow phones on slow links make it in 3.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A side that heard nothing this long sends PING: below the shortest NAT timeouts seen.
pub const PING_AFTER: Duration = Duration::from_secs(15);
/// Who receives a file that a newcomer offers too, and says nothing for so long, is taken for dead.
pub const HOLDER_SILENCE_MAX: Duration = Duration::from_secs(5);
/// How often it is looked at meanwhile.
pub const HOLDER_LOOK: Duration = Duration::from_millis(20);
/// A side that heard nothing this long is gone: six pings.
pub const SILENCE_MAX: Duration = Duration::from_secs(90);
/// A started frame brings at least `FRAME_BYTES_PER_SECOND` over this time.
pub const FRAME_PROGRESS: Duration = Duration::from_secs(30);
/// What a started frame brings at least: a 9600-baud line brings 960.
pub const FRAME_BYTES_PER_SECOND: u64 = 64;
/// A connection whose other side takes nothing this long is broken, whatever it says: what it does not read we have to keep.
pub const WRITE_STALL_MAX: Duration = Duration::from_secs(30);
/// How long a side that is done waits for the other's GOODBYE.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long open transfers get when the program stops.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// What a refused stranger may still send, so that the reset does not overtake the refusal.
pub const REFUSED_BYTES_MAX: usize = 64 * KIB;
/// How long a refused stranger may still send.
pub const REFUSED_TIMEOUT: Duration = Duration::from_secs(1);
/// A thread without work stays this long: the next chunk or text saves a start.
pub const IDLE_THREAD: Duration = Duration::from_millis(200);
/// Old partials are looked for when a file comes and the last look is this long ago: a server runs for months.
pub const HOUSEKEEPING_PAUSE: Duration = Duration::from_secs(3600);
/// A stream is read in pieces of this many bytes: what a pipe holds.
pub const STREAM_READ_BYTES: usize = 64 * KIB;
/// How far a stream is read ahead of what is sent.
pub const STREAM_AHEAD_BYTES: u64 = 512 * 1024;
/// What is kept of a stream for repair and for a new connection, as it can't be read again.
pub const STREAM_KEPT_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Events that wait to be taken; past them what comes in waits on its disk thread, which withholds acknowledgements.
pub const EVENTS_MAX: usize = 4096;
/// Requests of one side that are not ended at a time.
pub const REQUESTS_MAX: usize = 16;
/// Entries in the answer to one LIST.
pub const LIST_ENTRIES_MAX: usize = 1024;
/// Bytes of paths in it, the last one apart.
pub const LIST_BYTES_MAX: usize = 64 * KIB;
/// Entries of a tree that are looked at in one go, when nothing else is left to offer.
pub const TREE_STEP: usize = 64;
/// Connections in a row that were damaged before they brought anything: past them it is no accident. As many that broke
/// otherwise, with nothing said, are forgiven before the patience for them runs on.
pub const DAMAGED_CONNECTIONS_MAX: u32 = 5;
/// A connection that stood this long counts as progress, though nothing was to be said on it. Longer than a dial, a hello
/// and [`SILENCE_MAX`] together: one that only waits for the rest of a damaged frame must not count.
pub const CONNECTION_STANDS: Duration = Duration::from_secs(180);
/// First pause between tries to connect.
pub const RETRY_FIRST: Duration = Duration::from_millis(200);
/// Longest pause between tries to connect.
pub const RETRY_LONGEST: Duration = Duration::from_secs(10);
/// How long a broken connection is tried again when nothing was said about it.
pub const RETRY_BROKEN: Duration = Duration::from_secs(30);
/// A try to connect.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after accept had no descriptor or memory, at first.
pub const ACCEPT_PAUSE_FIRST: Duration = Duration::from_millis(50);
/// Pause after accept had no descriptor or memory, at last: so soon after there is room again it is used.
pub const ACCEPT_PAUSE_LONGEST: Duration = Duration::from_secs(1);
/// Accept that fails again within this time is the same trouble, and no news.
pub const ACCEPT_TROUBLE_ENDS: Duration = Duration::from_secs(10);

// `--exec`.

/// Programs that run at once: a small board's processors.
pub const EXEC_AT_ONCE: usize = 4;
/// Runs that wait for their turn; each holds a text at most, 4 MiB in all.
pub const EXEC_WAITING_MAX: usize = 64;
/// A run that takes longer is killed: a handful of those would hold up all others.
pub const EXEC_TIMEOUT: Duration = Duration::from_secs(60);

// Many peers.

/// Connections before their hello is complete.
pub const STRANGERS_MAX: usize = 256;
/// The same from one address (IPv6: one /64).
pub const STRANGERS_PER_ADDRESS_MAX: usize = 64;
/// One address may always have so many of them, however few there may be: many run several clients.
pub const STRANGERS_LEAST: usize = 4;
/// Files between their last byte and their receipt, in the whole process.
pub const COMMITS_MAX: usize = 256;
/// Descriptors of each: its own, and its directory's.
pub const DESCRIPTORS_PER_COMMIT: usize = 2;
/// Runs whose last text is remembered (PROTOCOL 4.3).
pub const RUNS_REMEMBERED: usize = 4096;
/// How long a run's last text, and what waits for a run that broke off, is remembered.
pub const RUN_REMEMBERED: Duration = Duration::from_secs(600);
/// Connections that the kernel holds until they are accepted.
pub const LISTEN_BACKLOG: i32 = 4096;
/// A thread's stack: the deepest call chain needs a quarter of it.
pub const THREAD_STACK_BYTES: usize = 128 * KIB;
/// What a connection may hold beside [`Config::max_memory`]: half a frame of 64 KiB, a text of as much that nobody reads, a listing of
/// 1,024 entries on its way to who does not read it, the touched part of its threads' stacks, and its books.
pub const CONNECTION_BYTES_MAX: usize = 512 * KIB;
/// The read buffer of a connection: heads and texts; what is larger is read straight into its own place.
pub const READ_BUFFER_BYTES: usize = 2 * KIB;
/// The same while texts and small files come faster than they are read.
pub const READ_BUFFER_BYTES_MAX: usize = 32 * KIB;
/// Room that a write without a thread of its own begins with: what a buffer that grows from nothing gives back on its way is so
/// small that the allocator leaves it with each thread.
pub const FLUSH_BYTES: usize = 2 * KIB;
/// Offers and small files are gathered for one write until there is so much: the other side is to have something to do soon.
pub const WRITE_BYTES: usize = 32 * KIB;
/// The rest of a tail that is so long is read straight into its own place.
pub const READ_DIRECT_LEAST: usize = 8 * KIB;

/// Descriptors of the process itself: standard streams, signals, the listener, directories, programs of `--exec`.
pub const DESCRIPTORS_OWN: usize = 24;
/// Descriptors of a connection: its socket, its open transfers, and a small file.
pub const DESCRIPTORS_PER_CLIENT: usize = 2 + OPEN_TRANSFERS_MAX;
/// Threads and processes besides those of connections: the console, signals, commits, programs of `--exec`.
pub const THREADS_OWN: usize = 24;
/// Threads of a connection that is busy: it reads, writes, and works on its disk.
pub const THREADS_PER_CLIENT: usize = 3;
/// Memory maps of the process itself: its parts, its libraries, and two for each arena of the allocator.
pub const MAPS_OWN: usize = 2048;
/// Memory maps of a thread: its stack, the one for signals, and a guard below either.
pub const MAPS_PER_THREAD: usize = 4;

/// The default of [`Config::max_clients`].
pub const MAX_CLIENTS: usize = 1024;
/// The default of [`Config::max_memory`].
pub const MAX_MEMORY_BYTES: usize = 64 * MIB;
/// The least [`Config::max_memory`]: one connection's window and a few texts.
pub const MAX_MEMORY_BYTES_LEAST: usize = 2 * MIB;
/// The default of [`Config::max_file`]: what file systems take.
pub const MAX_FILE_BYTES: u64 = 1 << 62;
/// The default of [`Config::min_free`]: a log can still be written.
pub const MIN_FREE_BYTES: u64 = 1024 * 1024;
/// The default of [`Config::keep_partials`].
pub const KEEP_PARTIALS: Duration = Duration::from_secs(7 * 24 * 3600);
/// The default of [`Config::read_buffer_bytes`].
pub const READ_QUEUE_BYTES: usize = MIB;

/// What to do when a name is taken by other content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IfExists {
    /// Store under a numbered name: `core-1`, `a-1.tar.gz`.
    #[default]
    Rename,
    /// Replace the old file, in one step.
    Replace,
    /// Refuse the new one.
    Refuse,
}

/// What a server or a client does. The default fits a client that sends; set the fields you need:
///
/// ```
/// let config = postwire::Config { dir: Some("inbox".into()), ..postwire::Config::default() };
/// ```
#[derive(Debug, Clone)]
pub struct Config {
    /// What both sides know: connections are sealed with it, and others are refused. Needs the feature `encrypt`.
    pub key: Option<Key>,
    /// A server: where connections may come from; empty takes all.
    pub allow: Vec<Network>,
    /// Where received files go; `None` refuses them.
    pub dir: Option<PathBuf>,
    /// Takes one file instead of [`Config::dir`]: it is written there in order, checked, and never durable.
    pub sink: Option<Sink>,
    /// Take files that the other side offers unasked; without it only what was asked for comes into [`Config::dir`].
    pub take_offers: bool,
    /// What the other side may list and get; `None` shares nothing.
    pub share: Option<PathBuf>,
    /// The nickname to ask for; `None` takes `c1`, `c2`, ….
    pub nick: Option<Nickname>,
    /// A client: join the room, hear what is said there, be announced.
    pub join_room: bool,
    /// A server: carry texts from each client in the room to the others.
    pub relay: bool,
    /// What to do when a name is taken.
    pub if_exists: IfExists,
    /// The largest file taken, in bytes.
    pub max_file: u64,
    /// What a transfer leaves free on the file system, in bytes.
    pub min_free: u64,
    /// All transfer buffers and queues, in bytes; 2 MiB at least. A quarter is for data that was received and is not written, half for
    /// texts on their way out, the rest for offers and chunks, of which each newcomer is granted fewer. Beside it a process holds its
    /// program and at most [`CONNECTION_BYTES_MAX`] for each connection, which only those take that do not read or do not end what
    /// they begin; an idle one takes some 30 KiB.
    pub max_memory: usize,
    /// A server: connections at once; fewer where the process may not have [`descriptors_for`] them, or not as many threads.
    /// [`Server::max_clients`](crate::Server::max_clients) tells.
    pub max_clients: usize,
    /// How long a partial that nobody continues is kept.
    pub keep_partials: Duration,
    /// Sync files and directories before they are acknowledged; without it receipts say `durable: false`.
    pub fsync: bool,
    /// How much file data is sent, in bytes a second over all connections; at least 1024. Texts are never held back.
    pub limit_rate: Option<u64>,
    /// How much received text may wait in the event queue, in bytes; also set by `set_read_buffer_size`.
    pub read_buffer_bytes: usize,
    /// A client: one try to connect.
    pub connect_timeout: Duration,
    /// A client: how long to try without progress.
    pub retry: Retry,
}

/// Where one file goes, to be written in order: standard output, a pipe. Clones are handles to the same one.
#[derive(Clone)]
pub struct Sink(pub(crate) Arc<Mutex<Box<dyn Write + Send>>>);

impl Sink {
    /// Writes to `out`, which is flushed at the end of the file.
    #[must_use]
    pub fn new(out: impl Write + Send + 'static) -> Sink {
        Sink(Arc::new(Mutex::new(Box::new(out))))
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sink")
    }
}

/// How long a client tries to get a connection, or to get one back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The first connection is tried once; a broken one for 30 s.
    Default,
    /// Either for this long without progress; zero: never again.
    For(Duration),
    /// For ever.
    Forever,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            key: None,
            allow: Vec::new(),
            dir: None,
            sink: None,
            take_offers: true,
            share: None,
            nick: None,
            join_room: false,
            relay: true,
            if_exists: IfExists::default(),
            max_file: MAX_FILE_BYTES,
            min_free: MIN_FREE_BYTES,
            max_memory: MAX_MEMORY_BYTES,
            max_clients: MAX_CLIENTS,
            keep_partials: KEEP_PARTIALS,
            fsync: true,
            limit_rate: None,
            read_buffer_bytes: READ_QUEUE_BYTES,
            connect_timeout: CONNECT_TIMEOUT,
            retry: Retry::Default,
        }
    }
}

/// The descriptors that a server with this [`Config::max_clients`] needs (`RLIMIT_NOFILE`).
#[must_use]
pub fn descriptors_for(max_clients: usize) -> usize {
    let own = DESCRIPTORS_OWN + STRANGERS_MAX + COMMITS_MAX * DESCRIPTORS_PER_COMMIT;
    // Of what is few a quarter is for strangers, and an eighth for commits: both have all they may have.
    max_clients
        .saturating_mul(DESCRIPTORS_PER_CLIENT)
        .saturating_add(own)
        .max(DESCRIPTORS_OWN + 8 * COMMITS_MAX * DESCRIPTORS_PER_COMMIT)
}

/// The block of a file of `size_bytes`: 256 KiB, doubled until there are at most 262,144 (PROTOCOL 5.3).
#[must_use]
pub fn block_bytes(size_bytes: u64) -> u64 {
    let mut block = BLOCK_BYTES_LEAST;
    while size_bytes.div_ceil(block) > BLOCKS_MAX {
        block *= 2;
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_at_most_262144_blocks() {
        assert_eq!(block_bytes(0), 256 * 1024);
        assert_eq!(block_bytes(BLOCK_BYTES_LEAST * BLOCKS_MAX), BLOCK_BYTES_LEAST);
        assert_eq!(block_bytes(BLOCK_BYTES_LEAST * BLOCKS_MAX + 1), 2 * BLOCK_BYTES_LEAST);
        assert!(u64::MAX.div_ceil(block_bytes(u64::MAX)) <= BLOCKS_MAX);
    }
}
