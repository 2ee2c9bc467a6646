//! A file that was there before: compared with what is offered, so that a repeated command is harmless.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use rustix::io::{Errno, Result};

use super::dir::Dir;
use crate::config::block_bytes;
use crate::name::SafePath;

/// A regular file of the offered size.
pub(crate) struct Existing {
    pub(super) file: File,
    pub(super) dir: Arc<Dir>,
    pub(super) path: SafePath,
    size: u64,
}

impl Existing {
    /// `None` for another size, a link, a directory or a special file.
    pub(super) fn open(dir: Arc<Dir>, path: SafePath, size: u64) -> Result<Option<Existing>> {
        let file = match dir.open_to_read(path.file_name()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT | Errno::LOOP | Errno::ACCESS | Errno::NXIO | Errno::NODEV) => return Ok(None),
            Err(error) => return Err(error),
        };
        let fits = file.metadata().is_ok_and(|meta| meta.is_file() && meta.size() == size);
        Ok(fits.then_some(Existing { file, dir, path, size }))
    }

    /// The CRC of one block; `None` when it can't be read, which is like being different.
    pub(crate) fn block_crc(&self, index: u64, buffer: &mut Vec<u8>) -> Option<u32> {
        block_crc(&self.file, self.size, index, buffer).ok()
    }
}

/// The CRC of block `index` of a file of `size` bytes (PROTOCOL 5.3); the last block may be short.
pub(super) fn block_crc(file: &File, size: u64, index: u64, buffer: &mut Vec<u8>) -> std::io::Result<u32> {
    const PIECE_BYTES: u64 = 256 * 1024;
    let block = block_bytes(size);
    let mut offset = index.saturating_mul(block);
    let end = size.min(offset.saturating_add(block));
    let mut hasher = crc32fast::Hasher::new();
    while offset < end {
        let piece = PIECE_BYTES.min(end - offset);
        buffer.resize(usize::try_from(piece).unwrap_or_default(), 0);
        file.read_exact_at(buffer, offset)?;
        hasher.update(buffer);
        offset += piece;
    }
    Ok(hasher.finalize())
}
