//! Bytes to frames, however the stream was cut (PROTOCOL 1.6).
//!
//! A [`Decoder`] reserves nothing that the head's CRC has not vouched for, and after an error it is done.

use byteorder::{BigEndian, ByteOrder};

use super::layout::{self, layout, may_precede_hello, CRCS_BYTES, HEAD_BYTES_MAX, PREFIX_BYTES};
use super::{Message, MAGIC};
use crate::config::CHUNK_BYTES_MAX;
use crate::error::WireError;

/// What one frame brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A message, all of it right.
    Message(Message),
    /// A CHUNK whose head is right and whose data is not (PROTOCOL 1.5).
    DamagedChunk {
        /// The transfer's number.
        transfer: u32,
        /// Where the data belongs.
        offset: u64,
        /// How many bytes it was.
        length: usize,
    },
    /// A frame of a type that may be skipped (PROTOCOL 1.2).
    Skipped,
}

/// See the module.
pub struct Decoder {
    head: [u8; HEAD_BYTES_MAX],
    head_filled: usize,
    tail: Option<Tail>,
    /// See [`Decoder::take_buffers_from`].
    spares: Option<Spares>,
    /// The type that the first frame must have; `None` after it.
    first_types: Option<&'static [u8]>,
    before_hello: bool,
    chunk_bytes_max: usize,
    error: Option<WireError>,
}

/// Gives buffers that are not needed elsewhere any more.
type Spares = Box<dyn FnMut() -> Option<Vec<u8>> + Send>;

/// A tail that is awaited.
struct Tail {
    head_bytes: usize,
    data: Vec<u8>,
    filled: usize,
}

impl Decoder {
    /// For the side that accepted: the first frame is HELLO.
    #[must_use]
    pub fn for_server() -> Decoder {
        Decoder::starting_with(&[layout::HELLO])
    }

    /// For the side that dialled: the first frame is WELCOME or REFUSED.
    #[must_use]
    pub fn for_client() -> Decoder {
        Decoder::starting_with(&[layout::WELCOME, layout::REFUSED])
    }

    fn starting_with(types: &'static [u8]) -> Decoder {
        Decoder {
            head: [0; HEAD_BYTES_MAX],
            head_filled: 0,
            tail: None,
            spares: None,
            first_types: Some(types),
            before_hello: true,
            chunk_bytes_max: CHUNK_BYTES_MAX,
            error: None,
        }
    }

    /// The hello is complete: every type may come now.
    pub fn hello_complete(&mut self) {
        self.before_hello = false;
    }

    /// Sets the largest chunk to what our PEER said.
    pub fn set_chunk_bytes_max(&mut self, bytes: usize) {
        self.chunk_bytes_max = bytes;
    }

    /// Whether the stream may end here (PROTOCOL 1.7).
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        self.head_filled == 0
    }

    /// The data of chunks takes the memory of buffers that `spares` gives, where it gives one.
    pub fn take_buffers_from(&mut self, spares: impl FnMut() -> Option<Vec<u8>> + Send + 'static) {
        self.spares = Some(Box::new(spares));
    }

    /// Takes bytes from `input`: tells how many, and the frame that ended there, if one did.
    ///
    /// # Errors
    /// The first [`WireError`] of the stream, again and again.
    pub fn decode(&mut self, input: &[u8]) -> Result<(usize, Option<Frame>), WireError> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        let result = self.decode_next(input);
        if let Err(error) = &result {
            self.error = Some(error.clone());
        }
        result
    }

    /// While a tail is awaited: the part that is not there yet, for a reader to read straight into. Else empty.
    pub fn tail_space(&mut self) -> &mut [u8] {
        match &mut self.tail {
            Some(tail) => tail.data.get_mut(tail.filled..).unwrap_or_default(),
            None => &mut [],
        }
    }

    /// `count` bytes of [`Decoder::tail_space`] were filled.
    ///
    /// # Errors
    /// As [`Decoder::decode`].
    pub fn tail_filled(&mut self, count: usize) -> Result<Option<Frame>, WireError> {
        let Some(tail) = &mut self.tail else { return Ok(None) };
        tail.filled = tail.data.len().min(tail.filled + count);
        if tail.filled < tail.data.len() {
            return Ok(None);
        }
        let result = self.complete();
        if let Err(error) = &result {
            self.error = Some(error.clone());
        }
        result.map(Some)
    }

    fn decode_next(&mut self, input: &[u8]) -> Result<(usize, Option<Frame>), WireError> {
        let mut taken = 0;
        if self.tail.is_none() {
            while let Some(wanted) = self.head_wanted(input)? {
                let rest = input.get(taken..).unwrap_or_default();
                let count = (wanted - self.head_filled).min(rest.len());
                let (Some(space), Some(bytes)) =
                    (self.head.get_mut(self.head_filled..self.head_filled + count), rest.get(..count))
                else {
                    break;
                };
                if count == 0 {
                    return Ok((taken, None));
                }
                space.copy_from_slice(bytes);
                self.head_filled += count;
                taken += count;
            }
            self.begin_tail()?;
        }
        let rest = input.get(taken..).unwrap_or_default();
        let space = self.tail_space();
        let count = space.len().min(rest.len());
        if let (Some(space), Some(bytes)) = (space.get_mut(..count), rest.get(..count)) {
            space.copy_from_slice(bytes);
        }
        taken += count;
        let complete = match &mut self.tail {
            Some(tail) => {
                tail.filled += count;
                tail.filled == tail.data.len()
            }
            None => false,
        };
        if complete {
            return self.complete().map(|frame| (taken, Some(frame)));
        }
        Ok((taken, None))
    }

    /// How many bytes of head there must be before more can be said; `None` when the head is there.
    fn head_wanted(&mut self, input: &[u8]) -> Result<Option<usize>, WireError> {
        let Some(&frame_type) = self.head.first().filter(|_| self.head_filled > 0) else {
            return Ok(Some(1));
        };
        let (fixed, _) = self.check_type(frame_type, input)?;
        // A stranger is told by its first words, not only by a whole head.
        if self.first_types.is_some() && self.head_filled < PREFIX_BYTES + MAGIC.len() {
            return Ok(Some((self.head_filled + 1).min(PREFIX_BYTES + fixed + CRCS_BYTES)));
        }
        let head_bytes = PREFIX_BYTES + fixed + CRCS_BYTES;
        Ok((self.head_filled < head_bytes).then_some(head_bytes))
    }

    /// How long the type's head is, or that there is no such type. What is one bit away from what must come first is no
    /// stranger, but damaged: the head's CRC will say so.
    fn check_type(&self, frame_type: u8, input: &[u8]) -> Result<(usize, usize), WireError> {
        if let Some(types) = self.first_types {
            let start = self.head.get(..self.head_filled).unwrap_or_default();
            // The stranger's first words are the evidence: what is held, and what has come with it.
            let evidence = || {
                let mut start = start.to_vec();
                if start.len() < input.len() && input.starts_with(&start) {
                    start = input.to_vec();
                }
                start.truncate(32);
                WireError::NotPostwire { start }
            };
            if !types.contains(&frame_type) {
                let is_damaged = types.iter().any(|known| (known ^ frame_type).count_ones() == 1);
                return Err(if is_damaged { WireError::UnknownType { got: frame_type } } else { evidence() });
            }
            let magic = start.get(PREFIX_BYTES..).unwrap_or_default();
            let wrong_bits: u32 = magic.iter().zip(MAGIC).map(|(got, magic)| (got ^ magic).count_ones()).sum();
            if frame_type != layout::REFUSED && wrong_bits > 1 {
                return Err(evidence());
            }
        }
        layout(frame_type).ok_or(WireError::UnknownType { got: frame_type })
    }

    /// PROTOCOL 1.3 and 2.1, of a head that can be believed.
    fn check_frame(&self, frame_type: u8, got: u64) -> Result<(), WireError> {
        let (fixed, tail_max) = layout(frame_type).ok_or(WireError::UnknownType { got: frame_type })?;
        let tail_max = if frame_type == layout::CHUNK { self.chunk_bytes_max } else { tail_max };
        let least = u64::try_from(fixed + CRCS_BYTES).unwrap_or(u64::MAX);
        let most = u64::try_from(fixed + CRCS_BYTES + tail_max).unwrap_or(u64::MAX);
        if got < least || got > most {
            return Err(WireError::Length { frame_type, got, least, most });
        }
        if self.before_hello && !may_precede_hello(frame_type) && frame_type <= layout::PRESENCE {
            return Err(WireError::Field { frame_type, field: "type: the hello is not complete" });
        }
        Ok(())
    }

    /// PROTOCOL 1.4: the head is there; believes it or ends.
    fn begin_tail(&mut self) -> Result<(), WireError> {
        let head = self.head.get(..self.head_filled).unwrap_or_default();
        let (covered, head_crc) = head.split_at(head.len().saturating_sub(4));
        let (got, expected) = (BigEndian::read_u32(head_crc), crc32fast::hash(covered));
        let frame_type = head.first().copied().unwrap_or_default();
        if got != expected {
            return Err(WireError::HeadCrc { frame_type, got, expected });
        }
        let length = head.get(1..PREFIX_BYTES).map_or(0, BigEndian::read_u64);
        self.check_frame(frame_type, length)?;
        self.first_types = None;
        let tail_bytes = usize::try_from(length).unwrap_or(usize::MAX).saturating_sub(head.len() - PREFIX_BYTES);
        let spares = self.spares.as_mut().filter(|_| frame_type == layout::CHUNK);
        let mut data = spares.and_then(|spares| spares()).unwrap_or_default();
        if data.capacity() < tail_bytes {
            // Nothing of what it holds is worth moving.
            data = vec![0; tail_bytes];
        } else {
            data.resize(tail_bytes, 0);
        }
        self.tail = Some(Tail { head_bytes: head.len(), data, filled: 0 });
        Ok(())
    }

    fn complete(&mut self) -> Result<Frame, WireError> {
        let Some(Tail { head_bytes, data, .. }) = self.tail.take() else { return Ok(Frame::Skipped) };
        self.head_filled = 0;
        let head = self.head.get(..head_bytes).unwrap_or_default();
        let frame_type = head.first().copied().unwrap_or_default();
        let (before, crcs) = head.split_at(head_bytes.saturating_sub(CRCS_BYTES));
        let fixed = before.get(PREFIX_BYTES..).unwrap_or_default();
        let (got, expected) = (BigEndian::read_u32(crcs), crc32fast::hash(&data));
        if frame_type > layout::PRESENCE {
            return Ok(Frame::Skipped);
        }
        if got != expected {
            if frame_type != layout::CHUNK {
                return Err(WireError::TailCrc { frame_type, got, expected });
            }
            let (transfer, offset) = fixed.split_at(4);
            let (transfer, offset) = (BigEndian::read_u32(transfer), BigEndian::read_u64(offset));
            return Ok(Frame::DamagedChunk { transfer, offset, length: data.len() });
        }
        Message::parse(frame_type, fixed, data, expected).map(Frame::Message)
    }
}
