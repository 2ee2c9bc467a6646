//! A source of unknown length: standard input, a FIFO, a device, a file of /proc.
//!
//! A thread reads it a little ahead. What was sent is kept until the other side has written it, as it can't be read again.

use std::collections::VecDeque;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Time;
use crate::config::{STREAM_AHEAD_BYTES, STREAM_KEPT_BYTES_MAX, STREAM_READ_BYTES};
use crate::error::{Error, Result};
use crate::worker::{spawn, Lock, Signal};

/// See the module.
pub(crate) struct Stream {
    /// Where it is read from, if that has a name.
    path: Option<PathBuf>,
    mtime: Time,
    mode: u32,
    stamp: u32,
    state: Mutex<State>,
    /// Wakes the thread that reads.
    room: Signal,
}

struct State {
    /// Until reading begins.
    input: Option<Input>,
    /// What is kept: sent and not yet written over there, then what is read ahead.
    bytes: VecDeque<u8>,
    /// Where `bytes` begins in the stream, and the CRC of all before.
    start: u64,
    start_crc: u32,
    /// How far it was ever sent.
    sent: u64,
    end: Option<io::Result<()>>,
    closed: bool,
}

enum Input {
    Reader(Box<dyn Read + Send>),
    /// To be opened by the thread that reads: a FIFO waits for its other end.
    Path(PathBuf),
}

impl Stream {
    /// What a reader gives.
    pub(crate) fn of_reader(reader: impl Read + Send + 'static) -> Stream {
        Stream::new(Input::Reader(Box::new(reader)), None, 0o644)
    }

    /// What is read from a path that is no regular file.
    pub(crate) fn of_path(path: &Path, mode: u32) -> Stream {
        Stream::new(Input::Path(path.to_owned()), Some(path.to_owned()), mode)
    }

    /// What is read from an open file.
    pub(super) fn of_file(file: File, path: PathBuf, mode: u32) -> Stream {
        Stream::new(Input::Reader(Box::new(file)), Some(path), mode)
    }

    fn new(input: Input, path: Option<PathBuf>, mode: u32) -> Stream {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mtime = Time { seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX), nanoseconds: now.subsec_nanos() };
        let state = State {
            input: Some(input),
            bytes: VecDeque::new(),
            start: 0,
            start_crc: 0,
            sent: 0,
            end: None,
            closed: false,
        };
        // A hasher's keys are random: a clock that stands still gives two streams one time.
        let stamp = u32::try_from(RandomState::new().build_hasher().finish() >> 32).unwrap_or_default();
        Stream { path, mtime, mode, stamp, state: Mutex::new(state), room: Signal::new() }
    }

    /// Begins to read, at the first call; `wake` hears of each piece and of the end.
    pub(crate) fn begin(self: &Arc<Self>, wake: impl Fn() + Send + 'static) -> Result<()> {
        let Some(input) = self.state.take().input.take() else { return Ok(()) };
        let this = Arc::clone(self);
        let body = move || {
            let end = this.read(input, &wake);
            this.state.take().end = Some(end);
            wake();
        };
        spawn("stream", body).map_err(Error::system("start a thread"))
    }

    fn read(&self, input: Input, wake: &impl Fn()) -> io::Result<()> {
        let mut reader = match input {
            Input::Reader(reader) => reader,
            Input::Path(path) => Box::new(File::open(path)?),
        };
        let mut piece = vec![0; STREAM_READ_BYTES];
        loop {
            {
                let is_full = |state: &mut State| state.is_ahead() && !state.closed;
                let state = self.room.wait_while(self.state.take(), is_full).unwrap_or_else(PoisonError::into_inner);
                if state.closed {
                    return Ok(());
                }
            }
            match reader.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(count) => self.state.take().bytes.extend(piece.iter().take(count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            wake();
        }
    }

    /// Where it is read from, if that has a name.
    pub(crate) fn path(&self) -> Option<&PathBuf> {
        self.path.as_ref()
    }

    /// When it was named.
    pub(crate) fn mtime(&self) -> Time {
        self.mtime
    }

    /// Permission bits.
    pub(crate) fn mode(&self) -> u32 {
        self.mode
    }

    /// A random number that tells it from another of the same name and time.
    pub(crate) fn stamp(&self) -> u32 {
        self.stamp
    }

    /// How far it may be sent now, and whether that is its end.
    pub(crate) fn extent(&self) -> (u64, bool) {
        let state = self.state.take();
        let end = state.end();
        let kept_end = state.start + STREAM_KEPT_BYTES_MAX;
        (end.min(kept_end), state.end.is_some() && end <= kept_end)
    }

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// [`Error::StreamLost`] for what is not kept any more.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut state = self.state.take();
        let end = offset.saturating_add(u64::try_from(buffer.len()).unwrap_or(u64::MAX));
        if offset < state.start || end > state.end() {
            return Err(Error::StreamLost);
        }
        let skipped = usize::try_from(offset - state.start).unwrap_or(usize::MAX);
        let (first, second) = state.bytes.as_slices();
        let in_first = first.get(skipped..).unwrap_or_default();
        let in_second = second.get(skipped.saturating_sub(first.len())..).unwrap_or_default();
        let (head, tail) = buffer.split_at_mut(in_first.len().min(buffer.len()));
        head.copy_from_slice(in_first.get(..head.len()).unwrap_or_default());
        tail.copy_from_slice(in_second.get(..tail.len()).unwrap_or_default());
        state.sent = state.sent.max(end);
        drop(state);
        self.room.notify_all();
        Ok(())
    }

    /// What is before `offset` will not be asked for again.
    pub(crate) fn release_until(&self, offset: u64) {
        let mut state = self.state.take();
        let count = offset.min(state.end()).saturating_sub(state.start);
        state.start_crc = state.crc_after(count);
        state.start += count;
        state.bytes.drain(..usize::try_from(count).unwrap_or(usize::MAX));
    }

    /// The CRC of all before `offset`.
    ///
    /// # Errors
    /// [`Error::StreamLost`] where it can't go on from there: the other side lost what it had, or never got it.
    pub(crate) fn crc_until(&self, offset: u64) -> Result<u32> {
        let state = self.state.take();
        if offset < state.start || offset > state.sent {
            return Err(Error::StreamLost);
        }
        Ok(state.crc_after(offset - state.start))
    }

    /// What reading said, once it ended.
    ///
    /// # Errors
    /// [`Error::File`].
    pub(crate) fn check(&self) -> Result<()> {
        match &self.state.take().end {
            Some(Err(error)) => Err(Error::File {
                action: "read",
                path: self.path.clone().unwrap_or_else(|| "-".into()),
                source: error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error),
            }),
            _ => Ok(()),
        }
    }

    /// Nobody wants the rest.
    pub(crate) fn close(&self) {
        let mut state = self.state.take();
        state.closed = true;
        state.bytes = VecDeque::new();
        drop(state);
        self.room.notify_all();
    }
}

impl State {
    fn end(&self) -> u64 {
        self.start + u64::try_from(self.bytes.len()).unwrap_or(u64::MAX)
    }

    fn is_ahead(&self) -> bool {
        self.end() >= self.sent.saturating_add(STREAM_AHEAD_BYTES)
    }

    /// The CRC of all before `start` and the first `count` bytes that are kept.
    fn crc_after(&self, count: u64) -> u32 {
        let mut left = usize::try_from(count).unwrap_or(usize::MAX);
        let mut hasher = crc32fast::Hasher::new_with_initial(self.start_crc);
        let (first, second) = self.bytes.as_slices();
        for part in [first, second] {
            let part = part.get(..left.min(part.len())).unwrap_or_default();
            hasher.update(part);
            left -= part.len();
        }
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn stream(content: &'static [u8]) -> Arc<Stream> {
        let stream = Arc::new(Stream::of_reader(content));
        let (sender, receiver) = mpsc::channel();
        stream.begin(move || sender.send(()).unwrap_or_default()).unwrap();
        while stream.extent() != (u64::try_from(content.len()).unwrap(), true) {
            receiver.recv().unwrap();
        }
        stream
    }

    #[test]
    fn what_was_sent_is_kept_until_it_is_released() {
        let stream = stream(b"0123456789");
        let mut buffer = [0; 6];
        stream.read_at(0, &mut buffer).unwrap();
        assert_eq!(&buffer, b"012345");
        stream.release_until(4);
        assert!(matches!(stream.read_at(3, &mut buffer), Err(Error::StreamLost)));
        stream.read_at(4, &mut buffer).unwrap();
        assert_eq!(&buffer, b"456789");
        assert_eq!(stream.crc_until(10).unwrap(), crc32fast::hash(b"0123456789"));
        assert_eq!(stream.crc_until(4).unwrap(), crc32fast::hash(b"0123"));
        assert!(matches!(stream.crc_until(3), Err(Error::StreamLost)));
    }

    #[test]
    fn nothing_can_go_on_from_what_was_never_sent() {
        let stream = stream(b"0123456789");
        assert_eq!(stream.crc_until(0).unwrap(), 0);
        assert!(matches!(stream.crc_until(1), Err(Error::StreamLost)));
    }

    #[test]
    fn no_more_is_read_ahead_than_is_kept() {
        let stream = Arc::new(Stream::of_reader(io::repeat(7)));
        let (sender, receiver) = mpsc::channel();
        stream.begin(move || sender.send(()).unwrap_or_default()).unwrap();
        while stream.extent().0 < STREAM_AHEAD_BYTES {
            receiver.recv().unwrap();
        }
        let mut sent = 0;
        let mut buffer = vec![0; 100_000];
        while sent + 100_000 <= STREAM_KEPT_BYTES_MAX {
            if stream.extent().0 < sent + 100_000 {
                receiver.recv().unwrap();
                continue;
            }
            stream.read_at(sent, &mut buffer).unwrap();
            sent += 100_000;
        }
        assert!(stream.state.take().end() <= STREAM_KEPT_BYTES_MAX + STREAM_AHEAD_BYTES + 65_536);
        assert!(!stream.extent().1);
        stream.close();
        receiver.iter().for_each(drop);
    }

    #[test]
    fn a_failure_of_reading_is_told_at_the_end() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::from_raw_os_error(5))
            }
        }
        let stream = Arc::new(Stream::of_reader(Broken));
        let (sender, receiver) = mpsc::channel();
        stream.begin(move || sender.send(()).unwrap_or_default()).unwrap();
        receiver.iter().for_each(drop);
        assert_eq!(stream.extent(), (0, true));
        assert!(matches!(stream.check(), Err(Error::File { .. })));
    }
}
