//! One direction of a stream: what its writer has written, what is in flight, and what its reader
//! may read.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::wire::packet::Piece;

/// One direction of a stream.
#[derive(Debug)]
pub(crate) struct Half {
    // -- at the writer
    /// Written bytes that the transport has not accepted, because the window is closed.
    waiting: VecDeque<Bytes>,
    /// Whether the writer has ended this direction.
    fin: bool,
    /// Whether the end was sent.
    fin_sent: bool,
    /// Whether this direction was neither reset nor stopped.
    writable: bool,
    /// Number of bytes that the reader's transport still accepts.
    window: u64,
    sent_pieces: u64,

    // -- at the reader
    /// Pieces that arrived before an earlier one.
    early: BTreeMap<u64, (Bytes, bool)>,
    next_piece: u64,
    arrived: VecDeque<Bytes>,
    fin_arrived: bool,
    credit: u64,
    /// Whether the reader has not seen an end, a reset or its own stop.
    readable: bool,
    /// Bytes read since the writer's window was last opened.
    freed: u64,
}

impl Half {
    pub(crate) fn new(window: u64) -> Self {
        Self {
            waiting: VecDeque::new(),
            fin: false,
            fin_sent: false,
            writable: true,
            window,
            sent_pieces: 0,
            early: BTreeMap::new(),
            next_piece: 0,
            arrived: VecDeque::new(),
            fin_arrived: false,
            credit: 0,
            readable: true,
            freed: 0,
        }
    }

    /// Returns whether the writer is done: all bytes and the end were sent, or the direction was
    /// reset or stopped.
    pub(crate) fn written(&self) -> bool {
        !self.writable || self.fin_sent
    }

    /// Returns whether the reader is done.
    pub(crate) fn was_read(&self) -> bool {
        !self.readable
    }

    /// Returns whether bytes wait for the window to open.
    pub(crate) fn is_blocked(&self) -> bool {
        self.writable && !self.waiting.is_empty()
    }

    /// Writes bytes, and the end if `fin`. Returns whether they were accepted.
    pub(crate) fn write(&mut self, bytes: Bytes, fin: bool) -> bool {
        if !self.writable || self.fin {
            return false;
        }
        if !bytes.is_empty() {
            self.waiting.push_back(bytes);
        }
        self.fin = fin;
        true
    }

    /// Increases the window of the writer.
    pub(crate) fn open_window(&mut self, bytes: u64) {
        self.window = self.window.saturating_add(bytes);
    }

    /// Returns the next piece that can be sent.
    pub(crate) fn next_piece(&mut self, most: usize) -> Option<Piece> {
        if self.written() {
            return None;
        }
        let most = most.min(usize::try_from(self.window).unwrap_or(usize::MAX));
        let bytes = take(&mut self.waiting, most);
        if bytes.is_empty() && (!self.waiting.is_empty() || !self.fin) {
            return None;
        }
        self.window -= bytes.len() as u64;
        self.fin_sent = self.fin && self.waiting.is_empty();
        self.sent_pieces += 1;
        Some(Piece { number: self.sent_pieces - 1, bytes, fin: self.fin_sent })
    }

    /// Resets the direction. Returns whether the peer must be informed.
    pub(crate) fn reset(&mut self) -> bool {
        self.waiting.clear();
        std::mem::replace(&mut self.writable, false)
    }

    /// Handles the reader's request to stop. Returns whether it has an effect.
    pub(crate) fn stopped(&mut self) -> bool {
        self.reset()
    }

    /// Receives a piece.
    pub(crate) fn arrive(&mut self, piece: Piece) {
        if !self.readable || piece.number < self.next_piece {
            return;
        }
        self.early.insert(piece.number, (piece.bytes, piece.fin));
        while let Some((bytes, fin)) = self.early.remove(&self.next_piece) {
            self.next_piece += 1;
            self.fin_arrived |= fin;
            if !bytes.is_empty() {
                self.arrived.push_back(bytes);
            }
        }
    }

    /// Receives a reset. Returns whether the reader must be informed. It need not be if it has
    /// received everything.
    pub(crate) fn reset_arrives(&mut self) -> bool {
        if self.fin_arrived {
            return false;
        }
        self.arrived.clear();
        self.early.clear();
        std::mem::replace(&mut self.readable, false)
    }

    /// Stops reading. Returns whether the writer must be informed.
    pub(crate) fn stop(&mut self) -> bool {
        self.arrived.clear();
        self.early.clear();
        std::mem::replace(&mut self.readable, false) && !self.fin_arrived
    }

    /// Grants the reader credit for more bytes.
    pub(crate) fn grant(&mut self, bytes: u64) {
        self.credit = self.credit.saturating_add(bytes);
    }

    /// Revokes the reader's credit, because the stream is passed to another reader.
    pub(crate) fn revoke(&mut self) {
        self.credit = 0;
    }

    /// Returns the next bytes for the reader, and whether they are the last.
    pub(crate) fn read(&mut self, most: usize, fin_needs_credit: bool) -> Option<(Bytes, bool)> {
        if !self.readable {
            return None;
        }
        let bytes = match self.arrived.front_mut() {
            Some(front) => {
                let length =
                    front.len().min(most).min(usize::try_from(self.credit).unwrap_or(usize::MAX));
                if length == 0 {
                    return None;
                }
                let bytes = front.split_to(length);
                if front.is_empty() {
                    self.arrived.pop_front();
                }
                bytes
            }
            None if self.fin_arrived && (self.credit > 0 || !fin_needs_credit) => Bytes::new(),
            None => return None,
        };
        self.credit -= bytes.len() as u64;
        self.freed += bytes.len() as u64;
        // The end is reported with the last bytes only if credit is left, or if the end needs none.
        let fin =
            self.fin_arrived && self.arrived.is_empty() && (self.credit > 0 || !fin_needs_credit);
        self.readable = !fin;
        Some((bytes, fin))
    }

    /// Returns by how much to open the writer's window; `None` if only a few bytes were read. QUIC
    /// does not update a window for every few bytes either (RFC 9000 section 4.2).
    pub(crate) fn free(&mut self, window: u64) -> Option<u64> {
        let worth_it = self.readable && self.freed >= (window / 8).max(1);
        worth_it.then(|| std::mem::take(&mut self.freed))
    }

    /// Returns the length of the first piece, which may be cut at a random place.
    pub(crate) fn front(&self) -> usize {
        self.arrived.front().map_or(0, Bytes::len)
    }
}

/// Takes up to `most` bytes off the front, as one piece.
fn take(queue: &mut VecDeque<Bytes>, most: usize) -> Bytes {
    let mut joined = Vec::new();
    while let Some(front) = queue.front_mut() {
        let room = most - joined.len();
        if front.len() > room && joined.is_empty() {
            return front.split_to(room);
        }
        if front.len() > room {
            joined.extend_from_slice(&front.split_to(room));
            break;
        }
        // Usually this is one whole piece, which is not copied.
        if let Some(front) = queue.pop_front() {
            if joined.is_empty() && queue.is_empty() {
                return front;
            }
            joined.extend_from_slice(&front);
        }
    }
    joined.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(half: &mut Half, most: usize) -> Vec<Piece> {
        std::iter::from_fn(|| half.next_piece(most)).collect()
    }

    fn text(pieces: &[Piece]) -> String {
        pieces
            .iter()
            .map(|piece| String::from_utf8_lossy(&piece.bytes).into_owned() + "|")
            .collect()
    }

    #[test]
    fn window_of_the_transport_blocks_the_writer() {
        let mut half = Half::new(5);
        assert!(half.write(Bytes::from_static(b"abcdefgh"), true));
        let sent = pieces(&mut half, 3);
        assert_eq!((text(&sent).as_str(), half.written()), ("abc|de|", false));
        half.open_window(1);
        assert_eq!(text(&pieces(&mut half, 3)), "f|");
        half.open_window(10);
        let sent = pieces(&mut half, 3);
        assert_eq!((text(&sent).as_str(), sent[0].fin, half.written()), ("gh|", true, true));
        assert!(!half.write(Bytes::from_static(b"late"), false));
    }

    #[test]
    fn pieces_arrive_in_order_and_are_read_by_credit() {
        let mut half = Half::new(100);
        half.write(Bytes::from_static(b"abcdef"), true);
        let mut sent = pieces(&mut half, 2);
        sent.reverse();
        sent.into_iter().for_each(|piece| half.arrive(piece));
        assert_eq!(half.read(9, true), None);
        half.grant(3);
        assert_eq!(half.read(9, true), Some((Bytes::from_static(b"ab"), false)));
        assert_eq!(half.read(9, true), Some((Bytes::from_static(b"c"), false)));
        assert_eq!(half.read(9, true), None);
        half.grant(3);
        assert_eq!(half.read(9, true), Some((Bytes::from_static(b"d"), false)));
        // The credit is used up exactly: the end is reported only after another grant, or if it
        // needs no credit.
        assert_eq!(half.read(9, true), Some((Bytes::from_static(b"ef"), false)));
        assert_eq!(half.read(9, true), None);
        half.grant(1);
        assert_eq!(half.read(9, true), Some((Bytes::new(), true)));
        assert!(half.was_read());
    }

    #[test]
    fn small_writes_are_combined_and_small_reads_open_no_window() {
        let mut half = Half::new(16);
        ["a", "bc", "def"]
            .iter()
            .for_each(|text| assert!(half.write(Bytes::from_static(text.as_bytes()), false)));
        let sent = pieces(&mut half, 4);
        assert_eq!(text(&sent), "abcd|ef|");
        sent.into_iter().for_each(|piece| half.arrive(piece));
        half.grant(1);
        assert_eq!(
            (half.read(9, true).map(|(bytes, _)| bytes.len()), half.free(16)),
            (Some(1), None)
        );
        half.grant(2);
        assert_eq!(
            (half.read(9, true).map(|(bytes, _)| bytes.len()), half.free(16)),
            (Some(2), Some(3))
        );
        assert_eq!(half.free(16), None);
    }

    #[test]
    fn end_without_bytes_is_a_piece() {
        let mut half = Half::new(0);
        half.write(Bytes::new(), true);
        let sent = pieces(&mut half, 9);
        assert_eq!((sent.len(), sent[0].fin), (1, true));
        half.arrive(sent[0].clone());
        assert_eq!(half.read(9, false), Some((Bytes::new(), true)));
    }

    #[test]
    fn reset_drops_unread_bytes_unless_all_have_arrived() {
        let mut half = Half::new(100);
        half.write(Bytes::from_static(b"ab"), false);
        let sent = pieces(&mut half, 9);
        half.arrive(sent[0].clone());
        assert!(half.reset() && !half.reset());
        half.grant(10);
        assert!(half.reset_arrives());
        assert_eq!(half.read(9, true), None);

        let mut half = Half::new(100);
        half.write(Bytes::from_static(b"ab"), true);
        let sent = pieces(&mut half, 9);
        half.arrive(sent[0].clone());
        assert!(!half.reset_arrives() && !half.stop());
    }
}
