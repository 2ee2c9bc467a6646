//! Which bytes of a file are there and verified, with their CRC.
//!
//! Parts that touch become one, their CRCs combined, so a file that arrives in order is one part, and the CRC of the whole
//! is known without a second pass. It refuses overlaps: no byte is believed twice.

use std::collections::BTreeMap;

use super::combine_crc;
use crate::config::PARTS_MAX;

/// Verified parts of a file.
#[derive(Default)]
pub(crate) struct Coverage {
    /// Start to (length, CRC); no two parts touch.
    parts: BTreeMap<u64, (u64, u32)>,
}

/// Part of what was to be added is there already.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Overlap;

impl Coverage {
    /// Adds a part of `length` bytes, at least one.
    ///
    /// # Errors
    /// [`Overlap`].
    pub(crate) fn add(&mut self, offset: u64, length: u64, crc: u32) -> Result<(), Overlap> {
        if length == 0 || self.overlaps(offset, length) {
            return Err(Overlap);
        }
        let (mut start, mut total, mut crc) = (offset, length, crc);
        if let Some((&before, &(before_length, before_crc))) = self.parts.range(..offset).next_back() {
            if before + before_length == offset {
                crc = combine_crc(before_crc, crc, length);
                start = before;
                total += before_length;
            }
        }
        if let Some((after_length, after_crc)) = self.parts.remove(&(offset + length)) {
            crc = combine_crc(crc, after_crc, after_length);
            total += after_length;
        }
        self.parts.insert(start, (total, crc));
        Ok(())
    }

    /// Whether any of these bytes is there.
    pub(crate) fn overlaps(&self, offset: u64, length: u64) -> bool {
        let Some(end) = offset.checked_add(length) else { return true };
        self.parts.range(..end).next_back().is_some_and(|(&start, &(held, _))| start + held > offset)
    }

    /// Whether there are more parts than an honest line leaves.
    pub(crate) fn has_too_many_gaps(&self) -> bool {
        self.parts.len() > PARTS_MAX
    }

    /// Whether half of the gaps are there.
    pub(crate) fn is_half_full(&self) -> bool {
        self.parts.len() >= PARTS_MAX / 2
    }

    /// Where the part that begins at `offset` ends.
    pub(crate) fn end_from(&self, offset: u64) -> u64 {
        let part = self.parts.range(..=offset).next_back();
        part.map_or(offset, |(&start, &(length, _))| offset.max(start + length))
    }

    /// The CRC of the whole, once every byte of `size` is there.
    pub(crate) fn whole(&self, size: u64) -> Option<u32> {
        if size == 0 {
            return Some(0);
        }
        match self.parts.get(&0) {
            Some(&(length, crc)) if length == size => Some(crc),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_in_any_order_give_the_crc_of_the_whole() {
        let data: Vec<u8> = (0..100u8).collect();
        let mut order: Vec<u64> = (0..10).collect();
        for turn in 0..20 {
            order.rotate_left(turn % 7 + 1);
            order.swap(0, turn % 10);
            let mut coverage = Coverage::default();
            for &part in &order {
                assert_eq!(coverage.whole(100), None);
                let at = usize::try_from(part).unwrap() * 10;
                coverage.add(part * 10, 10, crc32fast::hash(&data[at..at + 10])).unwrap();
            }
            assert_eq!(coverage.whole(100), Some(crc32fast::hash(&data)));
            assert_eq!(coverage.parts.len(), 1);
        }
    }

    #[test]
    fn a_byte_is_not_believed_twice() {
        let mut coverage = Coverage::default();
        coverage.add(10, 10, 1).unwrap();
        for (offset, length) in [(10, 10), (0, 11), (19, 1), (19, 5), (5, 100), (0, u64::MAX), (1, u64::MAX)] {
            assert_eq!(coverage.add(offset, length, 1), Err(Overlap), "{offset}+{length}");
        }
        coverage.add(0, 10, 1).unwrap();
        coverage.add(20, 1, 1).unwrap();
        assert!(coverage.whole(21).is_some());
    }

    #[test]
    fn gaps_are_counted_and_filling_one_makes_room() {
        let mut coverage = Coverage::default();
        (0..512).for_each(|part| coverage.add(2 * part, 1, 0).unwrap());
        assert!(!coverage.has_too_many_gaps() && coverage.is_half_full());
        coverage.add(2000, 1, 0).unwrap();
        assert!(coverage.has_too_many_gaps());
        coverage.add(1, 1, 0).unwrap();
        assert!(!coverage.has_too_many_gaps());
    }

    #[test]
    fn an_empty_file_is_whole_at_once() {
        assert_eq!(Coverage::default().whole(0), Some(0));
    }
}
