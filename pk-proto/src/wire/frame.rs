//! Frames of the native dialect: a `u32` length, big-endian, and that many bytes (1 to
//! [`MAX_FRAME`]).

use alloc::vec::Vec;
use core::mem;

use bytes::{Buf, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// Maximum payload of a frame, in bytes.
pub const MAX_FRAME: usize = 65_536;

/// Length of the header in bytes.
const HEADER: usize = 4;

/// Why bytes are not a frame of the native dialect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum FrameFault {
    /// The length exceeds the limit.
    #[error("frame of {0} bytes exceeds the limit of 65536")]
    TooLong(u32),
    /// The bytes are not a message, or not its only valid encoding.
    #[error("not a message of pk/1")]
    Malformed,
    /// The version or kind of the message is unknown to this version.
    #[error("a message that is unknown to this version")]
    Unknown,
}

/// Returns a frame with this payload.
///
/// # Errors
/// `TooLong` above [`MAX_FRAME`], `Malformed` for an empty payload: no reader accepts them.
pub fn encode_frame(payload: &[u8]) -> Result<Bytes, FrameFault> {
    build_frame(payload.len(), |mut frame| {
        frame.extend_from_slice(payload);
        Ok(frame)
    })
}

/// Returns a frame whose payload `append` writes after the header. `expected` is the likely length
/// of the payload, for which memory is allocated.
pub(crate) fn build_frame(
    expected: usize,
    append: impl FnOnce(Vec<u8>) -> Result<Vec<u8>, FrameFault>,
) -> Result<Bytes, FrameFault> {
    let mut frame = Vec::with_capacity(HEADER + expected);
    frame.extend_from_slice(&[0; HEADER]);
    let mut frame = append(frame)?;
    let length = u32::try_from(frame.len().saturating_sub(HEADER)).unwrap_or(u32::MAX);
    check_length(length)?;
    frame.iter_mut().zip(length.to_be_bytes()).for_each(|(byte, length)| *byte = length);
    // What is not used stays allocated until the peer has read the frame.
    if frame.capacity() - frame.len() > 64 + frame.len() / 8 {
        frame.shrink_to_fit();
    }
    Ok(frame.into())
}

/// Returns the length of a payload, if a frame may have it.
fn check_length(length: u32) -> Result<usize, FrameFault> {
    match usize::try_from(length) {
        Ok(0) => Err(FrameFault::Malformed),
        Ok(length @ 1..=MAX_FRAME) => Ok(length),
        _ => Err(FrameFault::TooLong(length)),
    }
}

/// Splits a stream of bytes, in chunks of any size, into the payloads of its frames.
///
/// [`push`](Self::push) a chunk, then call [`next`](Self::next) until it returns `None`. A payload
/// within one chunk is a slice of it; only one that spans chunks is copied.
///
/// **Memory.** Nothing is allocated for a length that is only announced. Once `next` returns
/// `None`, the decoder holds less than one frame in its own memory, at most twice the
/// [`buffered`](Self::buffered) bytes, and none of the chunks.
///
/// **Errors are final.** After one, every `next` returns it again, buffered bytes are dropped and
/// pushes are ignored, because the start of the next frame is lost.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    /// Start of a frame, header included, that no chunk contains completely; never a complete
    /// frame.
    partial: Vec<u8>,
    /// Bytes after it that were not parsed yet.
    front: Bytes,
    /// Bytes after these, of chunks that were pushed before earlier frames were taken.
    back: BytesMut,
    fault: Option<FrameFault>,
}

impl FrameDecoder {
    /// Creates a decoder at the start of a frame.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends bytes of the stream.
    pub fn push(&mut self, chunk: Bytes) {
        if self.fault.is_some() {
            return;
        }
        if self.front.is_empty() && self.back.is_empty() {
            self.front = chunk;
        } else {
            self.back.extend_from_slice(&chunk);
        }
    }

    /// Returns the payload of the next frame; `None` if more bytes are [`wanted`](Self::wanted).
    ///
    /// # Errors
    /// `TooLong` for a length above [`MAX_FRAME`], as soon as the header is complete; `Malformed`
    /// for a length of zero.
    #[expect(clippy::should_implement_trait, reason = "not an iterator: None is not the end")]
    pub fn next(&mut self) -> Result<Option<Bytes>, FrameFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        self.cut().inspect_err(|fault| *self = Self { fault: Some(*fault), ..Self::default() })
    }

    fn cut(&mut self) -> Result<Option<Bytes>, FrameFault> {
        loop {
            if self.front.is_empty() {
                self.front = mem::take(&mut self.back).freeze();
            }
            if self.partial.is_empty()
                && let Some((header, rest)) = self.front.split_first_chunk::<HEADER>()
            {
                let length = check_length(u32::from_be_bytes(*header))?;
                if rest.len() >= length {
                    self.front.advance(HEADER);
                    return Ok(Some(self.front.split_to(length)));
                }
            }
            let whole = match self.partial.first_chunk::<HEADER>() {
                Some(header) => HEADER + check_length(u32::from_be_bytes(*header))?,
                None => HEADER,
            };
            if self.front.is_empty() {
                return Ok(None);
            }
            let missing = whole.saturating_sub(self.partial.len());
            let taken = self.front.split_to(missing.min(self.front.len()));
            self.collect(&taken, whole);
            if whole > HEADER && self.partial.len() == whole {
                let mut frame = Bytes::from(mem::take(&mut self.partial));
                frame.advance(HEADER);
                return Ok(Some(frame));
            }
        }
    }

    /// Appends to the incomplete frame, which will have `whole` bytes. The capacity doubles, so
    /// that few copies are made and announced bytes take no memory, up to `whole`.
    fn collect(&mut self, bytes: &[u8], whole: usize) {
        let (have, need) = (self.partial.len(), self.partial.len() + bytes.len());
        if need > self.partial.capacity() {
            self.partial.reserve_exact(need.max((2 * have).min(whole)) - have);
        }
        self.partial.extend_from_slice(bytes);
    }

    /// Returns the number of pushed bytes that are in no returned frame.
    pub fn buffered(&self) -> usize {
        self.partial.len() + self.front.len() + self.back.len()
    }

    /// Returns how many more bytes the current frame needs, or its header if that is incomplete.
    /// Zero if `next` returns a frame or an error.
    pub fn wanted(&self) -> usize {
        if self.fault.is_some() {
            return 0;
        }
        let mut header = [0; HEADER];
        let mut bytes = self.partial.iter().chain(&self.front).chain(&self.back);
        header.iter_mut().zip(&mut bytes).for_each(|(to, from)| *to = *from);
        let buffered = self.buffered();
        if buffered < HEADER {
            return HEADER - buffered;
        }
        check_length(u32::from_be_bytes(header))
            .map_or(0, |length| (HEADER + length).saturating_sub(buffered))
    }

    /// Returns everything that was pushed and is in no returned frame, for the next reader of the
    /// stream. Empty after an error.
    pub fn into_unread(self) -> Bytes {
        let Self { mut partial, front, back, .. } = self;
        if partial.is_empty() && back.is_empty() {
            return front;
        }
        partial.extend_from_slice(&front);
        partial.extend_from_slice(&back);
        partial.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn frame(payload: &[u8]) -> Vec<u8> {
        encode_frame(payload).unwrap().to_vec()
    }

    fn drain(decoder: &mut FrameDecoder) -> Vec<Vec<u8>> {
        core::iter::from_fn(|| decoder.next().unwrap()).map(|frame| frame.to_vec()).collect()
    }

    #[test]
    fn frame_is_length_and_payload() {
        assert_eq!(frame(b"abc"), [0, 0, 0, 3, b'a', b'b', b'c']);
        assert_eq!(frame(&vec![7; MAX_FRAME]).len(), MAX_FRAME + 4);
        assert_eq!(encode_frame(&vec![7; MAX_FRAME + 1]), Err(FrameFault::TooLong(65_537)));
        assert_eq!(encode_frame(b""), Err(FrameFault::Malformed));
    }

    #[test]
    fn any_split_gives_the_same_frames() {
        let payloads = [&b"a"[..], b"bc", &[9; 300], b"d"];
        let mut bytes: Vec<u8> = payloads.iter().flat_map(|payload| frame(payload)).collect();
        bytes.extend([0, 0]); // half a header stays
        for size in 1..=bytes.len() {
            for drained in [true, false] {
                let mut decoder = FrameDecoder::new();
                let mut frames = Vec::new();
                for chunk in bytes.chunks(size) {
                    decoder.push(Bytes::copy_from_slice(chunk));
                    if drained {
                        frames.extend(drain(&mut decoder));
                        assert!(decoder.wanted() > 0);
                    }
                }
                frames.extend(drain(&mut decoder));
                assert_eq!(frames, payloads, "chunks of {size}, drained: {drained}");
                assert_eq!((decoder.buffered(), decoder.wanted()), (2, 2));
                assert_eq!(&decoder.into_unread()[..], [0, 0]);
            }
        }
    }

    #[test]
    fn frame_within_a_chunk_is_not_copied() {
        let chunk = Bytes::from([frame(b"first"), frame(b"second"), frame(b"third")].concat());
        let mut decoder = FrameDecoder::new();
        decoder.push(chunk.slice(..20));
        decoder.push(Bytes::new());
        let first = decoder.next().unwrap().unwrap();
        assert_eq!(&first[..], b"first");
        assert_eq!(first.as_ptr(), chunk[4..].as_ptr());
        assert_eq!(&decoder.next().unwrap().unwrap()[..], b"second");
        assert_eq!(decoder.next(), Ok(None));
        assert_eq!((decoder.buffered(), decoder.wanted()), (1, 3));
        decoder.push(chunk.slice(20..));
        assert_eq!(&decoder.next().unwrap().unwrap()[..], b"third");
        assert_eq!((decoder.buffered(), decoder.wanted()), (0, 4));
    }

    #[test]
    fn wanted_bytes_decrease_to_the_end_of_the_frame() {
        let bytes = frame(b"hello");
        let mut decoder = FrameDecoder::new();
        for (i, byte) in bytes.iter().enumerate() {
            assert_eq!(decoder.wanted(), if i < 4 { 4 - i } else { 9 - i }, "{i}");
            assert_eq!(decoder.next(), Ok(None));
            decoder.push(Bytes::copy_from_slice(&[*byte]));
        }
        assert_eq!(decoder.wanted(), 0);
        decoder.push(Bytes::from_static(b"\0"));
        assert_eq!(decoder.wanted(), 0);
        assert_eq!(&decoder.next().unwrap().unwrap()[..], b"hello");
        assert_eq!(decoder.wanted(), 3);
    }

    #[test]
    fn invalid_length_is_an_immediate_and_permanent_error() {
        for (header, fault) in [
            ([0, 0, 0, 0], FrameFault::Malformed),
            ([0, 1, 0, 1], FrameFault::TooLong(65_537)),
            ([255; 4], FrameFault::TooLong(u32::MAX)),
        ] {
            for split in 0..4 {
                let mut decoder = FrameDecoder::new();
                decoder.push([frame(b"good"), header[..split].to_vec()].concat().into());
                assert_eq!(drain(&mut decoder), [b"good"]);
                decoder.push(Bytes::copy_from_slice(&header[split..]));
                assert_eq!(decoder.wanted(), 0);
                assert_eq!(decoder.next(), Err(fault));
                decoder.push(frame(b"lost").into());
                assert_eq!(decoder.next(), Err(fault));
                assert_eq!((decoder.buffered(), decoder.wanted()), (0, 0));
                assert!(decoder.into_unread().is_empty());
            }
        }
    }

    #[test]
    fn unread_bytes_are_those_after_the_last_returned_frame() {
        let mut decoder = FrameDecoder::new();
        decoder.push([frame(b"open"), b"app".to_vec()].concat().into());
        assert_eq!(&decoder.next().unwrap().unwrap()[..], b"open");
        decoder.push(Bytes::from_static(b"lication"));
        assert_eq!(&decoder.into_unread()[..], b"application");

        let mut decoder = FrameDecoder::new();
        decoder.push(Bytes::from_static(b"\0\0\0"));
        assert_eq!(decoder.next(), Ok(None));
        decoder.push(Bytes::from_static(b"\x05he"));
        assert_eq!(decoder.next(), Ok(None));
        decoder.push(Bytes::from_static(b"l"));
        decoder.push(Bytes::from_static(b"lo, and more"));
        assert_eq!(&decoder.into_unread()[..], b"\0\0\0\x05hello, and more");
    }

    #[test]
    fn memory_follows_the_bytes_and_not_the_announcement() {
        let mut decoder = FrameDecoder::new();
        let bytes = frame(&vec![1; MAX_FRAME]);
        for (i, byte) in bytes.iter().enumerate() {
            assert!(
                decoder.partial.capacity() <= (2 * i).max(8),
                "{} for {i}",
                decoder.partial.capacity()
            );
            decoder.push(Bytes::copy_from_slice(&[*byte]));
            assert_eq!(decoder.next().unwrap().is_some(), i + 1 == bytes.len());
        }
        assert_eq!(decoder.partial.capacity(), 0);
    }
}
