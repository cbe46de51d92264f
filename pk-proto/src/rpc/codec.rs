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
use super::polykey::{self, MAX_FIRST_OBJECT, MAX_OBJECT, ObjectDecoder};
use crate::error::{Failure, PeerFault};
use crate::io::Dialect;
use crate::time::UnixMillis;

/// Cuts what a stream brings into messages.
#[derive(Debug)]
pub(super) enum Decoder {
    Native(FrameDecoder),
    Polykey(ObjectDecoder),
}

impl Decoder {
    /// `window`: bytes that all streams of a connection may hold.
    pub(super) fn new(dialect: Dialect, window: u64) -> Self {
        match dialect {
            Dialect::Native => Self::Native(FrameDecoder::new()),
            Dialect::Polykey => {
                // Two streams always get on.
                let half = usize::try_from(window / 2).unwrap_or(usize::MAX) - 1;
                Self::Polykey(ObjectDecoder::new(MAX_FIRST_OBJECT.min(half), MAX_OBJECT.min(half)))
            }
        }
    }

    pub(super) fn push(&mut self, chunk: Bytes) {
        match self {
            Self::Native(decoder) => decoder.push(chunk),
            Self::Polykey(decoder) => decoder.push(&chunk),
        }
    }

    /// The next whole message; `None` if more bytes are [`wanted`](Self::wanted).
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, PeerFault> {
        match self {
            Self::Native(decoder) => decoder.next().map_err(PeerFault::Frame),
            Self::Polykey(decoder) => decoder.next().map_err(PeerFault::Object),
        }
    }

    /// Bytes that were pushed and are in no message that was taken.
    pub(super) fn buffered(&self) -> usize {
        match self {
            Self::Native(decoder) => decoder.buffered(),
            Self::Polykey(decoder) => decoder.buffered(),
        }
    }

    /// How many more bytes may come now: on `pk/1` what the message under way needs, on `quic`, where nobody says how long
    /// a message is, some more.
    pub(super) fn wanted(&self) -> usize {
        match self {
            Self::Native(decoder) => decoder.wanted(),
            Self::Polykey(decoder) => decoder.wanted(),
        }
    }

    /// Everything behind the last message that was taken.
    pub(super) fn into_unread(self) -> Bytes {
        match self {
            Self::Native(decoder) => decoder.into_unread(),
            Self::Polykey(decoder) => decoder.into_unread(),
        }
    }
}

/// How a stream is read, and how a question on it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Native,
    Polykey(polykey::Form),
}

impl Form {
    /// How a stream is read before its first message says what it is for.
    pub(super) fn first(dialect: Dialect) -> Self {
        match dialect {
            Dialect::Native => Self::Native,
            Dialect::Polykey => Self::Polykey(polykey::Form::First),
        }
    }

    /// Whether the peer says all that it has to say on a stream whose message was read, and only its end is waited for. On
    /// `pk/1` it is asked to stop. The reference must not be asked: its calls fail then, even those that were answered.
    pub(super) fn awaits_end(self) -> bool {
        matches!(self, Self::Polykey(_))
    }

    /// Whether an answer consists of any number of messages, and ends with the peer's direction.
    pub(super) fn is_list(self) -> bool {
        match self {
            Self::Native => false,
            Self::Polykey(form) => form.is_list(),
        }
    }
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
    /// A part of it, or a message that says no more than that one is there.
    Part(Option<Answer>),
    /// Instead of any more answers to a question of ours.
    Failed(Failure),
    /// A question that is none, and why; an error is due.
    Invalid { why: &'static str, form: Form },
    /// The peer wants a stream for an application, which is to read `header` first.
    Open { protocol: String, header: Bytes },
    /// It gives us one.
    Accepted,
}

/// What a message of a peer says, on a stream of this form.
pub(super) fn read(message: &Bytes, form: Form) -> Result<Said, PeerFault> {
    match form {
        Form::Native => read_native(message),
        Form::Polykey(form) => polykey::read(message, form).map_err(PeerFault::Object),
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
        V1::Open { protocol } => Said::Open { protocol, header: Bytes::new() },
        V1::Accepted => Said::Accepted,
    })
}

/// What asks a question.
pub(super) struct Calls {
    /// The first message of each stream that it takes, and how the answers on it are read. Empty if there is no way to ask.
    pub(super) parts: Vec<(Bytes, Form)>,
    /// The answer if all of them end well and have nothing to say.
    pub(super) otherwise: Option<Answer>,
}

/// What to send to a node with these features to ask a question.
pub(super) fn calls(dialect: Dialect, features: u64, question: Question, timeout: Duration) -> Calls {
    match dialect {
        Dialect::Native => {
            let known = features & native::needed_for(&question) == native::needed_for(&question);
            let message = V1::Call { deadline_ms: millis(timeout), question };
            let parts = native_bytes(message).filter(|_| known).map(|bytes| (bytes, Form::Native));
            Calls { parts: parts.into_iter().collect(), otherwise: None }
        }
        Dialect::Polykey => {
            let (otherwise, parts) = polykey::calls(&question, timeout);
            let parts = parts.into_iter().map(|(bytes, form)| (bytes, Form::Polykey(form))).collect();
            Calls { parts, otherwise }
        }
    }
}

/// The answer to a question that was put in this form.
pub(super) fn answer(form: Form, answer: Answer, now: UnixMillis) -> Result<Bytes, FrameFault> {
    match form {
        Form::Native => {
            let answer = match answer {
                Answer::Closest(closest) => Answer::Closest(native::fit(closest)),
                answer => answer,
            };
            native::encode(&Message::V1(V1::Answer(answer)))
        }
        Form::Polykey(form) => Ok(polykey::answer(form, answer, now)),
    }
}

/// The answer to what is no question.
pub(super) fn invalid(form: Form, why: &str, now: UnixMillis) -> Option<Bytes> {
    match form {
        Form::Native => None,
        Form::Polykey(_) => Some(polykey::invalid(why, now)),
    }
}

/// The first message of an exchange, and how the rest of it is read.
pub(super) fn exchange(dialect: Dialect, token: Bytes, timeout: Duration) -> Option<(Bytes, Form)> {
    match dialect {
        Dialect::Native => {
            let message = V1::Exchange { deadline_ms: millis(timeout), token };
            native_bytes(message).map(|bytes| (bytes, Form::Native))
        }
        Dialect::Polykey => {
            let (bytes, form) = polykey::exchange(core::str::from_utf8(&token).ok()?, timeout);
            Some((bytes, Form::Polykey(form)))
        }
    }
}

/// A further message of an exchange.
pub(super) fn token(form: Form, token: Bytes) -> Option<Bytes> {
    match form {
        Form::Native => native_bytes(V1::Token { token }),
        Form::Polykey(form) => core::str::from_utf8(&token).ok().map(|token| polykey::token(form, token)),
    }
}

/// The first message of a stream for an application; `None` if the embedder writes it itself.
pub(super) fn open(dialect: Dialect, protocol: &str) -> Result<Option<Bytes>, Failure> {
    match dialect {
        Dialect::Native => native_bytes(V1::Open { protocol: protocol.into() }).map(Some).ok_or(Failure::Unsupported),
        Dialect::Polykey if protocol.starts_with(polykey::PREFIX) => Ok(None),
        Dialect::Polykey => Err(Failure::Unsupported),
    }
}

/// What accepts one; empty if nothing does.
pub(super) fn accepted(dialect: Dialect) -> Bytes {
    match dialect {
        Dialect::Native => native_bytes(V1::Accepted).unwrap_or_default(),
        Dialect::Polykey => Bytes::new(),
    }
}

/// What is said first on a connection of `pk/1`.
pub(super) fn hello(hello: Hello) -> Option<Bytes> {
    native_bytes(V1::Hello(hello))
}

fn native_bytes(message: V1) -> Option<Bytes> {
    native::encode(&Message::V1(message)).ok()
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
