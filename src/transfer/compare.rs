//! Comparing what is held with the sender's sums, on a thread of its own, so that new data flows beside it (PROTOCOL 6.5).

use std::sync::Arc;

use super::combine_crc;
use super::holders::Hold;
use crate::config::block_bytes;
use crate::storage::{Existing, Partial};

/// What is to be compared.
pub(super) enum Compare {
    /// Blocks of a partial, from this index on.
    Partial { partial: Arc<Partial>, hold: Option<Arc<Hold>>, first_block: u64, crcs: Vec<u32> },
    /// The beginning of a stream that came on an earlier connection.
    Prefix { partial: Arc<Partial>, hold: Option<Arc<Hold>>, length: u64 },
    /// Whole files that were there before; the first equal one counts.
    Existing { candidates: Vec<Existing>, crcs: Vec<u32> },
}

/// What came of it.
pub(super) enum Compared {
    /// Each block's index, with its CRC where it is equal.
    Partial(Vec<(u64, Option<u32>)>),
    /// Its CRC, where it can be read.
    Prefix { length: u64, crc: Option<u32> },
    /// The equal file with its CRC, or the sums for a comparison with the partial.
    Existing(Result<(Existing, u32), Vec<u32>>),
}

impl Compare {
    pub(super) fn run(self) -> Compared {
        let mut buffer = Vec::new();
        match self {
            Compare::Partial { partial, hold, first_block, crcs } => {
                let blocks = (first_block..).zip(crcs);
                let equal =
                    |(index, crc)| (index, partial.block_crc(index, &mut buffer).ok().filter(|&held| held == crc));
                let compared = blocks.map(equal).collect();
                drop((partial, hold));
                Compared::Partial(compared)
            }
            Compare::Prefix { partial, hold, length } => {
                let crc = partial.crc_until(length, &mut buffer).ok();
                drop((partial, hold));
                Compared::Prefix { length, crc }
            }
            Compare::Existing { candidates, crcs } => {
                let mut is_equal = |existing: &Existing| {
                    (0..).zip(&crcs).all(|(index, &crc)| existing.block_crc(index, &mut buffer).ok() == Some(crc))
                };
                let equal = candidates.into_iter().find(|existing| is_equal(existing));
                Compared::Existing(match equal {
                    Some(existing) => {
                        let crc = whole_crc(&crcs, existing.size());
                        Ok((existing, crc))
                    }
                    None => Err(crcs),
                })
            }
        }
    }
}

/// The CRC of a file of `size` bytes, of those of its blocks.
fn whole_crc(crcs: &[u32], size: u64) -> u32 {
    let block = block_bytes(size);
    let parts = crcs.iter().zip(0..);
    parts.fold(0, |whole, (&crc, index)| combine_crc(whole, crc, block.min(size.saturating_sub(index * block))))
}
