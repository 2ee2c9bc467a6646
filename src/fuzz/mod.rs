//! The bodies of the fuzz targets: each takes any bytes, makes of them what a peer could send, and asserts what must hold.
//!
//! They are here since they look inside. `tests/fuzz` runs them by the billion, the ordinary tests on the corpus and
//! on some thousands of its mutations. A plain build has nothing of this.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod connection;
mod names;
mod receiver;
mod session;
#[cfg(test)]
mod tests;
mod wire;

/// A target: its name, which is that of its corpus, and its body.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("decoder", wire::decoder),
    ("escape", names::escape),
    ("hello", connection::hello),
    ("inbound", receiver::inbound),
    ("message", wire::message),
    ("name", names::name),
    #[cfg(feature = "encrypt")]
    ("record", connection::record),
    ("session", session::session),
];

/// Runs one target on one input.
///
/// # Panics
/// That is a finding.
pub fn run(target: &str, data: &[u8]) {
    let (_, body) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target of this name");
    body(data);
}

/// An input that is taken from its start; past its end all is zero.
pub(crate) struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Up to `count` bytes.
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    fn u8(&mut self) -> u8 {
        u8::from_be_bytes(self.array())
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.array())
    }

    /// One of the first `limit` numbers, of one byte.
    fn below(&mut self, limit: u8) -> usize {
        usize::from(self.u8() % limit)
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.u8()) % choices.len()]
    }

    /// A short string of bytes, its length before it; a long one of few kinds of bytes every now and then.
    fn string(&mut self) -> Vec<u8> {
        match self.u8() {
            length @ 0..=0xdf => self.take(usize::from(length)).to_vec(),
            times => self.take(4).repeat(usize::from(times & 0x1f) * 9),
        }
    }
}

/// xorshift64, by Marsaglia: any seed but 0 will do.
pub(crate) struct Random(u64);

impl Random {
    /// The same for the same bytes.
    fn of(data: &[u8]) -> Random {
        Random(u64::from(crc32fast::hash(data)) << 1 | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % limit.max(1)
    }
}
