//! Message boundaries: consecutive JSON objects, with nothing or white space in between.

use bytes::{Buf, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// Maximum nesting of a message.
pub const MAX_DEPTH: u8 = 127;
/// Maximum length of a message after the first one of a stream, in bytes.
pub const MAX_OBJECT: usize = 64 * 1024;
/// Maximum length of the first message of a stream and of a response, in bytes, where memory
/// allows.
pub const MAX_FIRST_OBJECT: usize = 1024 * 1024;

/// Bytes that are requested at once while an object is short.
const STEP: usize = 4096;

/// Why bytes are not a message of Polykey 1.x.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectFault {
    /// The object exceeds the limit.
    #[error("a message exceeds its limit")]
    TooLong,
    /// The bytes are not the start of a JSON object.
    #[error("not a JSON object")]
    NotAnObject,
    /// The object is not a message: a member is missing or has the wrong type.
    #[error("not a message of JSON-RPC 2.0")]
    NotAMessage,
}

/// Splits a stream of bytes, in chunks of any size, into JSON objects.
///
/// [`push`](Self::push) a chunk, then call [`next`](Self::next) until it returns `None`. The ends
/// of objects are found by brackets and strings alone; their content is parsed by the reader of the
/// object. Bytes that cannot become an object are refused at the first invalid one.
///
/// **Memory.** Once `next` returns `None`, the decoder holds less than the limit of one object, in
/// at most twice as much memory.
///
/// **Errors are final.** After one, every `next` returns it again, buffered bytes are dropped and
/// pushes are ignored.
#[derive(Debug)]
pub struct ObjectDecoder {
    buffer: BytesMut,
    scan: Scan,
    /// Limits of the present object, and of later ones, in bytes.
    limits: (usize, usize),
    fault: Option<ObjectFault>,
}

/// State of the scan of the present object.
#[derive(Debug, Default, Clone, Copy)]
struct Scan {
    at: usize,
    depth: u8,
    in_string: bool,
    escaped: bool,
}

impl ObjectDecoder {
    /// Creates a decoder at the start of a stream, whose first object may have `first` bytes, and
    /// each later one `later`.
    pub fn new(first: usize, later: usize) -> Self {
        Self { buffer: BytesMut::new(), scan: Scan::default(), limits: (first, later), fault: None }
    }

    /// Appends bytes of the stream.
    pub fn push(&mut self, chunk: &[u8]) {
        if self.fault.is_none() {
            self.buffer.extend_from_slice(chunk);
        }
    }

    /// Returns the next object, from its first bracket to its last; `None` if more bytes are
    /// needed.
    ///
    /// # Errors
    /// `TooLong` and `NotAnObject`, as soon as they are certain.
    #[expect(clippy::should_implement_trait, reason = "not an iterator: None is not the end")]
    pub fn next(&mut self) -> Result<Option<Bytes>, ObjectFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        self.cut().inspect_err(|fault| {
            *self = Self { fault: Some(*fault), ..Self::new(self.limits.0, self.limits.1) };
        })
    }

    fn cut(&mut self) -> Result<Option<Bytes>, ObjectFault> {
        if self.scan.at == 0 {
            let blank = self.buffer.iter().take_while(|byte| is_space(**byte)).count();
            self.buffer.advance(blank);
        }
        let Scan { at: before, .. } = self.scan;
        for byte in self.buffer.iter().skip(before) {
            self.scan.at += 1;
            if self.scan.at > self.limits.0 {
                return Err(ObjectFault::TooLong);
            }
            if self.scan.step(*byte)? {
                let object = self.buffer.split_to(self.scan.at).freeze();
                self.scan = Scan::default();
                self.limits.0 = self.limits.1;
                return Ok(Some(object));
            }
        }
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        Ok(None)
    }

    /// Returns the number of pushed bytes that are in no returned object.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Returns how many more bytes are useful now: at most what the present object may have, and at
    /// least one as long as `next` returns nothing.
    pub fn wanted(&self) -> usize {
        match self.fault {
            Some(_) => 0,
            // One more than the limit, so that an object that is too long is detected.
            None => STEP
                .max(self.buffer.len())
                .min((self.limits.0 + 1).saturating_sub(self.buffer.len())),
        }
    }

    /// Returns everything that was pushed and is in no returned object, for the next reader of the
    /// stream. Empty after an error.
    pub fn into_unread(self) -> Bytes {
        self.buffer.freeze()
    }
}

impl Scan {
    /// Scans the next byte; returns whether the object ends with it.
    fn step(&mut self, byte: u8) -> Result<bool, ObjectFault> {
        if self.in_string {
            match byte {
                0..0x20 => return Err(ObjectFault::NotAnObject),
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return Ok(false);
        }
        match byte {
            b'{' | b'[' if self.depth > 0 || byte == b'{' => {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return Err(ObjectFault::NotAnObject);
                }
            }
            _ if self.depth == 0 => return Err(ObjectFault::NotAnObject),
            b'}' | b']' => self.depth -= 1,
            b'"' => self.in_string = true,
            b',' | b':' | b'+' | b'-' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'E' => {}
            byte if is_space(byte) => {}
            _ => return Err(ObjectFault::NotAnObject),
        }
        Ok(self.depth == 0)
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn drain(decoder: &mut ObjectDecoder) -> Vec<Vec<u8>> {
        core::iter::from_fn(|| decoder.next().unwrap()).map(|object| object.to_vec()).collect()
    }

    fn all(bytes: &[u8]) -> Result<Vec<Vec<u8>>, ObjectFault> {
        let mut decoder = ObjectDecoder::new(64, 32);
        decoder.push(bytes);
        let mut objects = Vec::new();
        while let Some(object) = decoder.next()? {
            objects.push(object.to_vec());
        }
        Ok(objects)
    }

    #[test]
    fn any_split_gives_the_same_objects() {
        let objects =
            [&br#"{"a":[1,{"b":"}\"{\\"}],"c":-1.5E+3}"#[..], b"{}", br#"{"d":"\u00e9\\"}"#];
        let bytes = [b" \n", objects[0], b"\t", objects[1], objects[2], b"  {\""].concat();
        for size in 1..=bytes.len() {
            let mut decoder = ObjectDecoder::new(64, 32);
            let mut found = Vec::new();
            for chunk in bytes.chunks(size) {
                decoder.push(chunk);
                found.extend(drain(&mut decoder));
                assert!(decoder.wanted() > 0);
            }
            assert_eq!(found, objects, "chunks of {size}");
            assert_eq!(&decoder.into_unread()[..], b"{\"");
        }
    }

    #[test]
    fn bytes_that_cannot_become_an_object_are_refused_at_once() {
        for bad in [
            &b"["[..],
            b"1",
            b"GET",
            b"\0",
            b"}",
            b"\xef\xbb\xbf{",
            b"{\"\n",
            b"{\x01",
            b"{\"a\":\x80",
            b"{'",
        ] {
            for (end, _) in bad.iter().enumerate() {
                let whole = end + 1 == bad.len();
                assert_eq!(
                    all(&bad[..=end]).is_err(),
                    whole || all(&bad[..1]).is_err(),
                    "{bad:?} to {end}"
                );
            }
            let mut decoder = ObjectDecoder::new(64, 32);
            decoder.push(bad);
            assert_eq!(decoder.next(), Err(ObjectFault::NotAnObject), "{bad:?}");
            decoder.push(b"{}");
            assert_eq!(decoder.next(), Err(ObjectFault::NotAnObject));
            assert_eq!((decoder.buffered(), decoder.wanted()), (0, 0));
        }
    }

    #[test]
    fn length_and_depth_have_limits() {
        let object =
            |length: usize| [&b"{\""[..], &alloc::vec![b'x'; length - 7], b"\":12}"].concat();
        assert_eq!(all(&[object(64), object(32)].concat()).map(|objects| objects.len()), Ok(2));
        assert_eq!(all(&object(65)), Err(ObjectFault::TooLong));
        assert_eq!(all(&[object(64), object(33)].concat()), Err(ObjectFault::TooLong));
        assert_eq!(all(&object(65)[..64]), Ok(alloc::vec![]));
        let deep = |depth: usize| [alloc::vec![b'{'; depth], alloc::vec![b'}'; depth]].concat();
        let mut decoder = ObjectDecoder::new(1000, 1000);
        decoder.push(&deep(127));
        assert_eq!(drain(&mut decoder).len(), 1);
        decoder.push(&deep(128));
        assert_eq!(decoder.next(), Err(ObjectFault::NotAnObject));
    }

    #[test]
    fn blank_bytes_use_no_memory() {
        let mut decoder = ObjectDecoder::new(64, 32);
        for _ in 0..100 {
            decoder.push(&[b' '; 100]);
            assert_eq!(decoder.next(), Ok(None));
            assert_eq!(decoder.buffered(), 0);
        }
        decoder.push(b"{}");
        assert_eq!(drain(&mut decoder), [b"{}"]);
    }

    #[test]
    fn wanted_reaches_the_limit_and_not_beyond() {
        let mut decoder = ObjectDecoder::new(10_000, 10);
        decoder.push(b"{\"");
        assert_eq!(decoder.wanted(), 4096);
        decoder.push(&[b'x'; 5998]);
        assert_eq!((decoder.next(), decoder.wanted()), (Ok(None), 4001));
        decoder.push(&[b'x'; 4000]);
        assert_eq!((decoder.next(), decoder.wanted()), (Ok(None), 1));
        decoder.push(b"x");
        assert_eq!(decoder.next(), Err(ObjectFault::TooLong));
    }
}
