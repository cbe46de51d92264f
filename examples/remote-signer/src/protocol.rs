//! The messages between the node and the signer: see README.md.

use std::io::{self, ErrorKind, Read, Write};

/// Maximum length of a message, in bytes.
const MAX: u32 = 65_536;

/// Writes a message.
pub(crate) fn write(to: &mut impl Write, message: &[u8]) -> io::Result<()> {
    let len = u32::try_from(message.len()).ok().filter(|len| *len <= MAX);
    let len = len.ok_or_else(|| invalid("a message is too long"))?;
    to.write_all(&len.to_be_bytes())?;
    to.write_all(message)?;
    to.flush()
}

/// Reads a message; `None` at the end of the input.
pub(crate) fn read(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut len = [0; 4];
    match from.read_exact(&mut len) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let len = u32::from_be_bytes(len);
    if len > MAX {
        return Err(invalid("a message is too long"));
    }
    let mut message = Vec::new();
    from.take(len.into()).read_to_end(&mut message)?;
    if message.len() == usize::try_from(len).unwrap_or(usize::MAX) {
        Ok(Some(message))
    } else {
        Err(ErrorKind::UnexpectedEof.into())
    }
}

/// Writes an answer.
pub(crate) fn answer(to: &mut impl Write, answer: Result<&[u8], &str>) -> io::Result<()> {
    let (kind, bytes) = match answer {
        Ok(bytes) => (0, bytes),
        Err(error) => (1, error.as_bytes()),
    };
    write(to, &[&[kind], bytes].concat())
}

/// Reads an answer of `N` bytes. An error of the signer is an error.
pub(crate) fn read_answer<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let answer = read(from)?.ok_or(ErrorKind::UnexpectedEof)?;
    match answer.split_first() {
        Some((0, bytes)) => {
            bytes.try_into().map_err(|_| invalid("an answer has an unexpected length"))
        }
        Some((1, error)) => Err(io::Error::other(String::from_utf8_lossy(error).into_owned())),
        _ => Err(invalid("an answer has an unknown kind")),
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_were_written() {
        let mut bytes = Vec::new();
        write(&mut bytes, b"one").unwrap();
        answer(&mut bytes, Ok(&[7; 64])).unwrap();
        answer(&mut bytes, Err("locked")).unwrap();
        let mut input = bytes.as_slice();
        assert_eq!(read(&mut input).unwrap().unwrap(), b"one");
        assert_eq!(read_answer::<64>(&mut input).unwrap(), [7; 64]);
        assert_eq!(read_answer::<64>(&mut input).unwrap_err().to_string(), "locked");
        assert_eq!(read(&mut input).unwrap(), None);
        assert!(write(&mut Vec::new(), &vec![0; 65_537]).is_err());
        for bad in [&[0, 1, 0, 1][..], &[0, 0, 0, 2, 0]] {
            assert!(read(&mut &*bad).is_err(), "{bad:?}");
        }
        assert!(read_answer::<64>(&mut &[0, 0, 0, 2, 0, 0][..]).is_err());
    }
}
