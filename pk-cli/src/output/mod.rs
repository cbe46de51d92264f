//! Writes to stdout and stderr. No function here blocks a node: see [`Sink`].

pub(crate) mod format;
pub(crate) mod polykey_json;
mod sink;

use std::fmt::Display;
use std::io::{self, ErrorKind, Write, stderr, stdout};

use serde::Serialize;
use tracing_subscriber::fmt::MakeWriter;

use crate::output::sink::Sink;

/// Exit code if the reader of stdout has closed it: as after SIGPIPE (13).
const CLOSED_PIPE: u8 = 128 + 13;

static STDOUT: Sink = Sink::new(|bytes| {
    let mut stdout = stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
});

static STDERR: Sink = Sink::new(|bytes| stderr().lock().write_all(bytes));

/// Prints a result as text. Waits for a slow reader.
pub(crate) fn line(text: impl Display) {
    STDOUT.write(format!("{}\n", escape_control(text)).as_bytes());
}

/// Prints a result as one line of JSON. Waits for a slow reader.
pub(crate) fn json(value: &impl Serialize) {
    if let Ok(text) = serde_json::to_string(value) {
        STDOUT.write(format!("{text}\n").as_bytes());
    }
}

/// Prints a line about a running node. Never waits: the line is dropped if the queue is full.
pub(crate) fn notice(text: impl Display) {
    STDOUT.offer(format!("{}\n", escape_control(text)).as_bytes());
}

/// Prints one line, and waits until it is written. Returns whether it was.
pub(crate) fn write_through(line: &str) -> bool {
    STDOUT.write_through(line.as_bytes())
}

/// Returns whether a write to stdout has failed. If so, further results have no effect.
pub(crate) fn is_broken() -> bool {
    STDOUT.is_broken()
}

/// Prints the error of a command on stderr.
pub(crate) fn error(text: impl Display) {
    STDERR.write(format!("error: {}\n", escape_control(text)).as_bytes());
}

/// Prints the state of a long command on stderr. Never waits: it is dropped if the queue is full.
pub(crate) fn status(text: impl Display) {
    STDERR.offer(text.to_string().as_bytes());
}

/// Announces that the program ends soon, whether its output is read or not.
pub(crate) fn leave() {
    STDOUT.leave();
    STDERR.leave();
}

/// Completes the output of a program that exits with `code`. Returns the exit code, which reports a
/// failed write.
pub(crate) fn end(code: u8) -> u8 {
    let code = match STDOUT.finish() {
        Ok(()) => code,
        Err(unwritable) => failed(&unwritable, code),
    };
    // There is no place left to report it.
    drop(STDERR.finish());
    code
}

/// Reports that stdout cannot be written. A closed pipe needs no message. Returns the exit code of
/// a program that would have exited with `code`.
pub(crate) fn failed(unwritable: &io::Error, code: u8) -> u8 {
    if unwritable.kind() == ErrorKind::BrokenPipe {
        return if code == 0 { CLOSED_PIPE } else { code };
    }
    error(format_args!("cannot write to stdout: {unwritable}"));
    code.max(1)
}

/// The log, on stderr. Never waits: a line is dropped if the queue is full.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Log;

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        STDERR.offer(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Escapes control characters, so that text from peers cannot move the cursor or change colors.
fn escape_control(text: impl Display) -> String {
    let mut shown = String::new();
    for char in text.to_string().chars() {
        if char.is_control() && char != '\n' {
            shown.extend(char.escape_default());
        } else {
            shown.push(char);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(
            escape_control("✓ a\tb\u{1b}[2J\r\u{9b}1m\nc"),
            "✓ a\\tb\\u{1b}[2J\\r\\u{9b}1m\nc"
        );
    }
}
