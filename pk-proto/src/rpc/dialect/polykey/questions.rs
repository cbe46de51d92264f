//! Questions and answers as messages, for who plays a peer: tests, simulations, fuzzers.

use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;

use super::ObjectFault;
use super::methods::{Form, answer, calls, read};
use crate::rpc::codec::{self, Said};
use crate::rpc::{Answer, Question};
use crate::time::UnixMillis;

/// The messages that ask a question, each on a stream of its own, by a caller that waits this long. None if this dialect
/// cannot ask it.
pub fn encode_question(question: &Question, timeout: Duration) -> Vec<Bytes> {
    calls(question, timeout).1.into_iter().map(|(bytes, _)| bytes).collect()
}

/// What the first message of a call asks.
///
/// # Errors
/// `NotAMessage` if it is none, or not of a method that asks a question.
pub fn decode_question(object: &Bytes) -> Result<Question, ObjectFault> {
    match read(object, Form::First)? {
        Said::Call { question, .. } => Ok(question),
        _ => Err(ObjectFault::NotAMessage),
    }
}

/// The messages that answer a question: what is sent before the end of the stream.
pub fn encode_answer(question: &Question, said: Answer, now: UnixMillis) -> Bytes {
    let (_, calls) = calls(question, Duration::ZERO);
    let form = calls.first().map_or(Form::Alive, |(_, form)| *form);
    answer(form, said, now)
}

/// What one message says in answer to a question that is asked by one call: of a list, one element. `Ok(None)` if it says no
/// more than that somebody is there, or is an error.
///
/// # Errors
/// `NotAMessage` if it is no answer to this.
pub fn decode_answer(question: &Question, object: &Bytes) -> Result<Option<Answer>, ObjectFault> {
    let (_, calls) = calls(question, Duration::ZERO);
    let [(_, form)] = calls[..] else { return Err(ObjectFault::NotAMessage) };
    match codec::read(object, codec::Form::Polykey(form)) {
        Ok(Said::Answer(answer)) => Ok(Some(answer)),
        Ok(Said::Part(part)) => Ok(part),
        Ok(Said::Failed(_)) => Ok(None),
        _ => Err(ObjectFault::NotAMessage),
    }
}
