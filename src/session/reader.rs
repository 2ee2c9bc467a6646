//! Frames from a connection: one small buffer for heads and texts; a tail that is longer is read straight into its own place.

use std::io;
use std::sync::Arc;

use crate::config::{READ_BUFFER_BYTES, READ_BUFFER_BYTES_MAX, READ_DIRECT_LEAST};
use crate::conn::Conn;
use crate::error::{Error, Result, WireError};
use crate::wire::{Decoder, Frame};

/// The reading half of a connection.
pub(crate) struct FrameReader {
    conn: Arc<Conn>,
    decoder: Decoder,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// There is memory for a larger buffer.
    may_grow: bool,
    /// What a direct read completed.
    ready: Option<std::result::Result<Frame, WireError>>,
    bytes: u64,
}

impl FrameReader {
    pub(crate) fn new(conn: Arc<Conn>, decoder: Decoder) -> FrameReader {
        FrameReader {
            conn,
            decoder,
            buffer: vec![0; READ_BUFFER_BYTES],
            start: 0,
            end: 0,
            may_grow: false,
            ready: None,
            bytes: 0,
        }
    }

    /// The next frame that has come whole, without reading.
    pub(crate) fn buffered_frame(&mut self) -> Result<Option<Frame>> {
        if let Some(ready) = self.ready.take() {
            return Ok(Some(ready?));
        }
        while self.start < self.end {
            let input = self.buffer.get(self.start..self.end).unwrap_or_default();
            let (taken, frame) = self.decoder.decode(input)?;
            self.start += taken;
            if frame.is_some() {
                return Ok(frame);
            }
        }
        Ok(None)
    }

    /// Reads once; `Ok(0)` is the end of the stream. To be called when no buffered frame is left.
    pub(crate) fn read(&mut self) -> io::Result<usize> {
        let space = self.decoder.tail_space();
        let count = if space.len() < READ_DIRECT_LEAST {
            self.fit_buffer();
            let count = self.conn.read(&mut self.buffer)?;
            (self.start, self.end) = (0, count);
            count
        } else {
            // Little was left of it: a buffer that was full then tells nothing of what follows.
            self.end = 0;
            let count = self.conn.read(space)?;
            self.ready = self.decoder.tail_filled(count).transpose();
            count
        };
        self.bytes += u64::try_from(count).unwrap_or_default();
        Ok(count)
    }

    /// Many small frames are read in larger pieces, so that what they cause is done for many at once.
    fn fit_buffer(&mut self) {
        let was_full = self.end == self.buffer.len();
        if was_full && self.may_grow && self.buffer.len() < READ_BUFFER_BYTES_MAX {
            self.buffer = vec![0; READ_BUFFER_BYTES_MAX];
        } else if (self.end < READ_BUFFER_BYTES || !self.may_grow) && self.buffer.len() > READ_BUFFER_BYTES {
            self.buffer = vec![0; READ_BUFFER_BYTES];
        }
    }

    /// Whether no frame has begun.
    pub(crate) fn is_between_frames(&self) -> bool {
        self.decoder.is_between_frames()
    }

    /// What an end of the stream means here (PROTOCOL 1.7).
    pub(crate) fn end_of_stream(&self) -> Error {
        if self.decoder.is_between_frames() {
            Error::Broken { source: None }
        } else {
            WireError::EndInsideFrame.into()
        }
    }

    /// Whether everything that came was taken as frames.
    #[cfg(feature = "encrypt")]
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end && self.decoder.is_between_frames()
    }

    /// The data of chunks takes the memory of buffers that `spares` gives.
    pub(crate) fn take_buffers_from(&mut self, spares: impl FnMut() -> Option<Vec<u8>> + Send + 'static) {
        self.decoder.take_buffers_from(spares);
    }

    /// Whether what comes fast may be read in larger pieces.
    pub(crate) fn let_grow(&mut self, may_grow: bool) {
        self.may_grow = may_grow;
    }

    /// Takes no longer chunk than this: it is refused before anything is reserved for it.
    pub(crate) fn set_chunk_bytes_max(&mut self, bytes: usize) {
        self.decoder.set_chunk_bytes_max(bytes);
    }

    /// All bytes read.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The hello is complete.
    pub(crate) fn hello_complete(&mut self) {
        self.decoder.hello_complete();
    }
}
