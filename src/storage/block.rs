//! CRCs of parts of files, read in pieces, so that no block, however large, asks for memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::config::{block_bytes, READ_BYTES};

/// The CRC of block `index` of a file of `size` bytes (PROTOCOL 5.3); the last may be short. `buffer` is scratch.
pub(super) fn block_crc(file: &File, size: u64, index: u64, buffer: &mut Vec<u8>) -> io::Result<u32> {
    let block = block_bytes(size);
    let start = index.saturating_mul(block).min(size);
    crc(file, start, block.min(size - start), buffer)
}

/// The CRC of `length` bytes from `offset`.
///
/// # Errors
/// `UnexpectedEof` where the file is shorter, besides what reading says.
pub(super) fn crc(file: &File, mut offset: u64, length: u64, buffer: &mut Vec<u8>) -> io::Result<u32> {
    buffer.resize(usize::try_from(length).unwrap_or(READ_BYTES).min(READ_BYTES), 0);
    let mut hasher = crc32fast::Hasher::new();
    let end = offset + length;
    while offset < end {
        let left = usize::try_from(end - offset).unwrap_or(usize::MAX);
        let (piece, _) = buffer.split_at_mut(left.min(READ_BYTES));
        file.read_exact_at(piece, offset)?;
        hasher.update(piece);
        offset += u64::try_from(piece.len()).unwrap_or(u64::MAX);
    }
    Ok(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BLOCK_BYTES_LEAST;
    use std::io::Write;

    #[test]
    fn the_last_block_may_be_short_and_a_missing_one_is_an_error() {
        let content: Vec<u8> = (0..BLOCK_BYTES_LEAST + 10).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let size = BLOCK_BYTES_LEAST + 10;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        let mut buffer = Vec::new();
        let (first, last) = content.split_at(usize::try_from(BLOCK_BYTES_LEAST).unwrap());
        assert_eq!(block_crc(&file, size, 0, &mut buffer).unwrap(), crc32fast::hash(first));
        assert_eq!(block_crc(&file, size, 1, &mut buffer).unwrap(), crc32fast::hash(last));
        assert_eq!(crc(&file, 0, size, &mut buffer).unwrap(), crc32fast::hash(&content));
        let error = block_crc(&file, size + 1, 1, &mut buffer).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(block_crc(&file, 0, 0, &mut buffer).unwrap(), 0);
    }
}
