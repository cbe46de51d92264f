//! stdin and stdout without blocking the runtime: a thread each, with a bounded channel between.

use std::io::{BufRead, Read, stdin};
use std::thread;

use futures_util::FutureExt;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::command::Line;
use crate::output;

/// Maximum length of a line, in bytes. A longer one is refused and skipped.
const MAX_LINE: u64 = 64 * 1024;
/// Capacity of either channel, in lines. If it is full, stdin is not read, and printing waits.
const QUEUE: usize = 256;

/// Starts to read stdin. Returns the lines to be executed in order, and the tagged ones. Both
/// channels end with stdin.
///
/// # Errors
///
/// No thread can be started.
pub(crate) fn read() -> std::io::Result<(mpsc::Receiver<Line>, mpsc::Receiver<Line>)> {
    let (in_order, in_order_rx) = mpsc::channel(QUEUE);
    let (tagged, tagged_rx) = mpsc::channel(QUEUE);
    thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let mut stdin = stdin().lock();
        while let Some(text) = read_line(&mut stdin) {
            let line = match text {
                Ok(text) => Line::parse(&text),
                Err(why) => Some(Line { tag: None, name: String::new(), command: Err(why) }),
            };
            let Some(line) = line else { continue };
            let queue = if line.tag.is_some() { &tagged } else { &in_order };
            // Both are closed at the end of the session.
            if queue.blocking_send(line).is_err() && in_order.is_closed() && tagged.is_closed() {
                break;
            }
        }
    })?;
    Ok((in_order_rx, tagged_rx))
}

/// Returns the next line, or an error in it; `None` at the end.
fn read_line(from: &mut impl BufRead) -> Option<Result<String, String>> {
    let mut bytes = Vec::new();
    from.by_ref().take(MAX_LINE).read_until(b'\n', &mut bytes).ok()?;
    if bytes.is_empty() {
        return None;
    }
    if bytes.last() != Some(&b'\n') && bytes.len() as u64 == MAX_LINE {
        from.skip_until(b'\n').ok()?;
        return Some(Err(format!("the line is longer than {MAX_LINE} bytes")));
    }
    Some(String::from_utf8(bytes).map_err(|_| "the line is not UTF-8".to_owned()))
}

/// Prints lines of JSON on stdout, in the order of the calls.
#[derive(Clone)]
pub(crate) struct Printer {
    queue: mpsc::Sender<String>,
}

impl Printer {
    /// Starts a printer. The future completes when the last clone is dropped and everything is
    /// printed, or when a write to stdout fails.
    ///
    /// # Errors
    ///
    /// No thread can be started.
    pub(crate) fn start() -> std::io::Result<(Self, impl Future<Output = ()> + Clone + Unpin)> {
        let (queue, mut lines) = mpsc::channel::<String>(QUEUE);
        let (ended, ended_rx) = oneshot::channel::<()>();
        thread::Builder::new().name("stdout".to_owned()).spawn(move || {
            while let Some(mut line) = lines.blocking_recv() {
                line.push('\n');
                if !output::write_through(&line) {
                    break;
                }
            }
            drop(ended);
        })?;
        Ok((Self { queue }, ended_rx.map(drop).shared()))
    }

    /// Prints a line.
    pub(crate) async fn print(&self, value: &impl Serialize) {
        if let Ok(line) = serde_json::to_string(value) {
            // Fails if stdout is closed; `ended` reports that.
            drop(self.queue.send(line).await);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_long_line_is_skipped_and_the_next_one_is_read() {
        let mut text = vec![b'x'; MAX_LINE as usize];
        text.extend_from_slice(b"xx\nquit\n\xff\nlast");
        let mut from = text.as_slice();
        let lines: Vec<_> = std::iter::from_fn(|| read_line(&mut from)).collect();
        assert!(lines[0].as_ref().unwrap_err().contains("longer"), "{lines:?}");
        assert_eq!(lines[1], Ok("quit\n".to_owned()));
        assert!(lines[2].as_ref().unwrap_err().contains("UTF-8"), "{lines:?}");
        assert_eq!(lines[3..], [Ok("last".to_owned())]);
    }
}
