//! What everything above a dialect sees of it: questions and answers in, bytes out, and back.
//!
//! A connection speaks one [`Dialect`], chosen by its ALPN. A dialect decides how messages are framed and written, how many
//! streams a question takes, and what a stream may carry after its first message; it decides nothing else.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;

use super::call::{Answer, Question};
use super::frame::{FrameDecoder, FrameFault};
use super::native::{self, Hello, Message, V1};
use crate::error::PeerFault;
use crate::io::Dialect;

/// Cuts what a stream brings into messages.
#[derive(Debug)]
pub(super) enum Decoder {
    Native(FrameDecoder),
}

impl Decoder {
    pub(super) fn new(dialect: Dialect) -> Self {
        match dialect {
            Dialect::Native | Dialect::Polykey => Self::Native(FrameDecoder::new()),
        }
    }

    pub(super) fn push(&mut self, chunk: Bytes) {
        match self {
            Self::Native(decoder) => decoder.push(chunk),
        }
    }

    /// The next whole message; `None` if more bytes are [`wanted`](Self::wanted).
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, PeerFault> {
        match self {
            Self::Native(decoder) => decoder.next().map_err(PeerFault::Frame),
        }
    }

    /// Bytes that were pushed and are in no message that was taken.
    pub(super) fn buffered(&self) -> usize {
        match self {
            Self::Native(decoder) => decoder.buffered(),
        }
    }

    /// How many more bytes may come now.
    pub(super) fn wanted(&self) -> usize {
        match self {
            Self::Native(decoder) => decoder.wanted(),
        }
    }

    /// Everything behind the last message that was taken.
    pub(super) fn into_unread(self) -> Bytes {
        match self {
            Self::Native(decoder) => decoder.into_unread(),
        }
    }
}

/// How a question was put, which is how its answer is read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Native,
}

/// What one message says.
#[derive(Debug)]
pub(super) enum Said {
    /// The greeting of a connection.
    Hello(Hello),
    /// A question of the peer, and for how long it waits.
    Call { question: Question, form: Form, timeout: Option<Duration> },
    /// The first token of an exchange that the peer begins.
    Exchange { token: Bytes, form: Form, timeout: Option<Duration> },
    /// A further token of an exchange.
    Token(Bytes),
    /// The whole answer to a question of ours.
    Answer(Answer),
    /// The peer wants a stream for an application.
    Open { protocol: String },
    /// It gives us one.
    Accepted,
}

/// What a message of a peer says, on a stream of this form.
pub(super) fn read(message: &Bytes, form: Form) -> Result<Said, PeerFault> {
    match form {
        Form::Native => read_native(message),
    }
}

fn read_native(frame: &[u8]) -> Result<Said, PeerFault> {
    let form = Form::Native;
    let Message::V1(message) = native::decode(frame)?;
    let wait = |ms: u32| Some(Duration::from_millis(ms.into()));
    Ok(match message {
        V1::Hello(hello) => Said::Hello(hello),
        V1::Call { deadline_ms, question } => Said::Call { question, form, timeout: wait(deadline_ms) },
        V1::Exchange { deadline_ms, token } => Said::Exchange { token, form, timeout: wait(deadline_ms) },
        V1::Token { token } => Said::Token(token),
        V1::Answer(answer) => Said::Answer(answer),
        V1::Open { protocol } => Said::Open { protocol },
        V1::Accepted => Said::Accepted,
    })
}

/// How a stream is read before its first message says what it is for.
pub(super) fn first_form(dialect: Dialect) -> Form {
    match dialect {
        Dialect::Native | Dialect::Polykey => Form::Native,
    }
}

/// What to send to ask a question: the first message of each stream that it takes, and how the answers on it are read.
/// Empty if this dialect has no way to ask it.
pub(super) fn question(dialect: Dialect, question: Question, timeout: Duration) -> Vec<(Bytes, Form)> {
    match dialect {
        Dialect::Native | Dialect::Polykey => {
            let message = V1::Call { deadline_ms: millis(timeout), question };
            native_bytes(message).map(|bytes| (bytes, Form::Native)).into_iter().collect()
        }
    }
}

/// The answer to a question that was put in this form.
pub(super) fn answer(form: Form, answer: Answer) -> Result<Bytes, FrameFault> {
    match form {
        Form::Native => {
            let answer = match answer {
                Answer::Closest(closest) => Answer::Closest(native::fit(closest)),
                answer => answer,
            };
            native::encode(&Message::V1(V1::Answer(answer)))
        }
    }
}

#[allow(dead_code, reason = "the claims machines are its users")]
/// The first message of an exchange, and how the rest of it is read.
pub(super) fn exchange(dialect: Dialect, token: Bytes, timeout: Duration) -> Option<(Bytes, Form)> {
    match dialect {
        Dialect::Native | Dialect::Polykey => {
            let message = V1::Exchange { deadline_ms: millis(timeout), token };
            native_bytes(message).map(|bytes| (bytes, Form::Native))
        }
    }
}

#[allow(dead_code, reason = "the claims machines are its users")]
/// A further message of an exchange.
pub(super) fn token(form: Form, token: Bytes) -> Option<Bytes> {
    match form {
        Form::Native => native_bytes(V1::Token { token }),
    }
}

/// The first message of a stream for an application.
pub(super) fn open(protocol: &str) -> Option<Bytes> {
    native_bytes(V1::Open { protocol: protocol.into() })
}

/// What accepts one.
pub(super) fn accepted() -> Option<Bytes> {
    native_bytes(V1::Accepted)
}

pub(super) fn hello(hello: Hello) -> Option<Bytes> {
    native_bytes(V1::Hello(hello))
}

fn native_bytes(message: V1) -> Option<Bytes> {
    native::encode(&Message::V1(message)).ok()
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
