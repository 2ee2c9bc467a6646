//! Where one file goes instead of into a directory: a pipe. It is written in order and can't be read again, so what
//! was written is remembered by its CRCs, and what came too early is kept until its turn. Its lock is held while it writes:
//! only disk threads take it, and one of them at a time has anything to write.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use super::{Failure, Meta};
use crate::config::{block_bytes, Sink, WINDOW_BYTES_MAX};
use crate::error::{Error, Refusal};
use crate::worker::Lock;

/// See the module. Clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct Pipe {
    state: Arc<Mutex<State>>,
}

struct State {
    out: Sink,
    /// The file that it is for, from its first offer on.
    meta: Option<Meta>,
    written: u64,
    /// The CRC of all that was written, and those of its whole blocks; the last one is under way.
    crc: crc32fast::Hasher,
    blocks: Vec<u32>,
    block: crc32fast::Hasher,
    /// What follows a gap.
    early: BTreeMap<u64, Vec<u8>>,
    early_bytes: u64,
}

/// What a part of a file met.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Written,
    /// There is too much before it that has not come: it is to be sent again.
    NoRoom,
}

impl Pipe {
    /// Writes the one file to `out`, which is flushed at its end.
    pub(crate) fn new(out: Sink) -> Pipe {
        let state = State {
            out,
            meta: None,
            written: 0,
            crc: crc32fast::Hasher::new(),
            blocks: Vec::new(),
            block: crc32fast::Hasher::new(),
            early: BTreeMap::new(),
            early_bytes: 0,
        };
        Pipe { state: Arc::new(Mutex::new(state)) }
    }

    /// Takes a file, or the same one again after a break; gives how many bytes of it were written, as SEND says it
    /// (PROTOCOL 5.5 and 5.7).
    pub(crate) fn open(&self, meta: &Meta) -> Result<u64, Failure> {
        let mut state = self.state.take();
        let is_same = |known: &Meta| {
            (&known.path, known.size, known.mtime, known.content_crc)
                == (&meta.path, meta.size, meta.mtime, meta.content_crc)
        };
        if state.written > 0 && !state.meta.as_ref().is_some_and(is_same) {
            return Err(Refusal::TooMuch.into());
        }
        state.meta = Some(meta.clone());
        state.early.clear();
        state.early_bytes = 0;
        Ok(match meta {
            _ if meta.is_stream || state.written == meta.size && !meta.is_small() => state.written,
            _ if meta.is_small() => 0,
            _ => state.written - state.written % block_bytes(meta.size),
        })
    }

    /// The CRC of all that was written.
    pub(crate) fn crc(&self) -> u32 {
        self.state.take().crc.clone().finalize()
    }

    /// The CRC of a block that was written.
    pub(crate) fn block_crc(&self, index: u64) -> Option<u32> {
        let state = self.state.take();
        let index = usize::try_from(index).ok()?;
        let is_last = index == state.blocks.len() && state.is_whole();
        state.blocks.get(index).copied().or_else(|| is_last.then(|| state.block.clone().finalize()))
    }

    /// Takes a part; one that was written before is passed over.
    pub(crate) fn write_at(&self, offset: u64, data: &[u8]) -> Result<Taken, Failure> {
        let mut state = self.state.take();
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        if offset > state.written {
            if state.early_bytes.saturating_add(length) > WINDOW_BYTES_MAX {
                return Ok(Taken::NoRoom);
            }
            state.early_bytes += length;
            state.early.insert(offset, data.to_vec());
            return Ok(Taken::Written);
        }
        state.append(offset, data)?;
        state.append_early()?;
        Ok(Taken::Written)
    }

    /// All of it was written.
    pub(crate) fn finish(&self) -> Result<(), Failure> {
        self.state.take().out.0.take().flush().map_err(|error| failure(&error))
    }
}

impl State {
    fn is_whole(&self) -> bool {
        self.meta.as_ref().is_some_and(|meta| meta.size == self.written)
    }

    /// Writes what was kept and has its turn now.
    fn append_early(&mut self) -> Result<(), Failure> {
        while let Some((&at, _)) = self.early.first_key_value().filter(|(&at, _)| at <= self.written) {
            let data = self.early.remove(&at).unwrap_or_default();
            self.early_bytes -= u64::try_from(data.len()).unwrap_or(0);
            self.append(at, &data)?;
        }
        Ok(())
    }

    /// Writes what of `data`, which begins at `offset`, was not written before.
    fn append(&mut self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        let skipped = usize::try_from(self.written - offset).unwrap_or(usize::MAX);
        let mut rest = data.get(skipped..).unwrap_or_default();
        self.out.0.take().write_all(rest).map_err(|error| failure(&error))?;
        self.crc.update(rest);
        let block_bytes = self.meta.as_ref().map_or(u64::MAX, |meta| block_bytes(meta.size));
        while !rest.is_empty() {
            let left = usize::try_from(block_bytes - self.written % block_bytes).unwrap_or(usize::MAX);
            let (part, after) = rest.split_at(left.min(rest.len()));
            self.block.update(part);
            self.written += u64::try_from(part.len()).unwrap_or(0);
            if part.len() == left {
                let block = std::mem::take(&mut self.block);
                self.blocks.push(block.finalize());
            }
            rest = after;
        }
        Ok(())
    }
}

fn failure(error: &io::Error) -> Failure {
    let source = error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
    let cause = Error::File { action: "write", path: "standard output".into(), source };
    Failure { refusal: Refusal::Failed, cause: Some(cause) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::SafePath;
    use crate::storage::Time;

    #[derive(Clone, Default)]
    struct Out(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Out {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.take().extend_from_slice(data);
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn meta(size: u64, content_crc: u32) -> Meta {
        let path = SafePath::parse(b"a").unwrap();
        let mtime = Time { seconds: 1, nanoseconds: 2 };
        Meta { path, size, mtime, mode: 0, content_crc, is_stream: size == Meta::UNKNOWN_SIZE }
    }

    #[test]
    fn parts_are_written_in_order_and_once() {
        let out = Out::default();
        let pipe = Pipe::new(Sink::new(out.clone()));
        let content: Vec<u8> = (0..600_000_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let meta = meta(600_000, 0);
        assert_eq!(pipe.open(&meta).unwrap(), 0);
        for offset in [100_000, 300_000, 0, 400_000, 200_000] {
            let at = usize::try_from(offset).unwrap();
            assert_eq!(pipe.write_at(offset, &content[at..at + 100_000]).unwrap(), Taken::Written);
        }
        assert_eq!(*out.0.take(), content[..500_000]);
        // After a break.
        assert_eq!(pipe.open(&meta).unwrap(), 262_144);
        assert_eq!(pipe.block_crc(0), Some(crc32fast::hash(&content[..262_144])));
        assert_eq!(pipe.block_crc(1), None);
        pipe.write_at(262_144, &content[262_144..]).unwrap();
        assert_eq!(*out.0.take(), content);
        assert_eq!(pipe.open(&meta).unwrap(), 600_000);
        assert_eq!(pipe.block_crc(2), Some(crc32fast::hash(&content[524_288..])));
        assert_eq!(pipe.crc(), crc32fast::hash(&content));
    }

    #[test]
    fn another_file_is_not_written_behind_the_first() {
        let pipe = Pipe::new(Sink::new(Out::default()));
        pipe.open(&meta(5, 1)).unwrap();
        pipe.open(&meta(5, 2)).unwrap();
        pipe.write_at(0, b"hello").unwrap();
        assert_eq!(pipe.open(&meta(5, 2)).unwrap(), 0);
        assert!(pipe.open(&meta(5, 1)).is_err());
    }

    #[test]
    fn what_follows_a_gap_is_bounded() {
        let pipe = Pipe::new(Sink::new(Out::default()));
        pipe.open(&meta(Meta::UNKNOWN_SIZE, 7)).unwrap();
        let part = vec![0; 1 << 20];
        let fits = (0..).take_while(|n| pipe.write_at((n << 20) + 1, &part).unwrap() == Taken::Written).count();
        assert_eq!(u64::try_from(fits).unwrap() << 20, WINDOW_BYTES_MAX);
    }
}
