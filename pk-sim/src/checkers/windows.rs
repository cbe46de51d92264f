//! The unconfirmed bytes of a stream never exceed `send_window`, and the credit of a connection
//! never exceeds `receive_window`.

use std::collections::BTreeMap;

use pk_proto::{Config, ConnectionId, Input, Output, StreamId};

use super::violation::{CheckCounters, Violation};

#[derive(Debug, Default)]
pub(super) struct Windows {
    streams: BTreeMap<StreamId, Stream>,
    /// Unused credit by connection.
    granted: BTreeMap<ConnectionId, u64>,
}

#[derive(Debug)]
struct Stream {
    conn: ConnectionId,
    unconfirmed: u64,
    granted: u64,
}

impl Windows {
    pub(super) fn input(&mut self, input: &Input) {
        match input {
            Input::StreamOpened { conn, stream } => self.open(*conn, *stream),
            Input::StreamWritten { stream, bytes } => {
                if let Some(stream) = self.streams.get_mut(stream) {
                    stream.unconfirmed = stream.unconfirmed.saturating_sub(*bytes);
                }
            }
            Input::StreamData { stream, bytes, fin } => {
                let used = if *fin { u64::MAX } else { bytes.len() as u64 };
                self.take_back(*stream, used);
            }
            Input::StreamReset { stream, .. } => self.take_back(*stream, u64::MAX),
            Input::StreamStopped { stream, .. } => {
                if let Some(stream) = self.streams.get_mut(stream) {
                    stream.unconfirmed = 0;
                }
            }
            Input::OpenFailed { stream } => self.forget(*stream),
            Input::Disconnected { conn, .. } => {
                self.streams.retain(|_, stream| stream.conn != *conn);
                self.granted.remove(conn);
            }
            _ => {}
        }
    }

    pub(super) fn output(
        &mut self,
        output: &Output,
        config: &Config,
        counters: &mut CheckCounters,
    ) -> Result<(), Violation> {
        match output {
            Output::OpenStream { conn, stream } => self.open(*conn, *stream),
            Output::SendStream { stream, bytes, .. } => {
                let Some(of) = self.streams.get_mut(stream) else { return Ok(()) };
                of.unconfirmed += bytes.len() as u64;
                counters.sends += 1;
                if of.unconfirmed > config.send_window {
                    let (sent, window) = (of.unconfirmed, config.send_window);
                    return Err(violation(format!(
                        "stream {stream} has {sent} unconfirmed bytes, over {window}"
                    )));
                }
            }
            Output::ReadCredit { stream, bytes } => {
                let Some(of) = self.streams.get_mut(stream) else { return Ok(()) };
                of.granted = of.granted.saturating_add(*bytes);
                let granted = self.granted.entry(of.conn).or_default();
                *granted = granted.saturating_add(*bytes);
                counters.grants += 1;
                if *granted > config.receive_window {
                    let (granted, window, conn) = (*granted, config.receive_window, of.conn);
                    return Err(violation(format!(
                        "connection {conn} has {granted} bytes of credit, over {window}"
                    )));
                }
            }
            Output::StopStream { stream, .. } => self.take_back(*stream, u64::MAX),
            Output::ResetStream { stream, .. } => {
                if let Some(stream) = self.streams.get_mut(stream) {
                    stream.unconfirmed = 0;
                }
            }
            Output::DetachStream { stream, .. } | Output::AttachCircuit { stream, .. } => {
                self.forget(*stream);
            }
            Output::CloseCircuit { stream } => self.forget(*stream),
            Output::JoinCircuit { stream, other, .. } => {
                self.forget(*stream);
                self.forget(*other);
            }
            _ => {}
        }
        Ok(())
    }

    fn open(&mut self, conn: ConnectionId, stream: StreamId) {
        self.streams.insert(stream, Stream { conn, unconfirmed: 0, granted: 0 });
    }

    fn take_back(&mut self, stream: StreamId, bytes: u64) {
        let Some(of) = self.streams.get_mut(&stream) else { return };
        let bytes = bytes.min(of.granted);
        of.granted -= bytes;
        if let Some(granted) = self.granted.get_mut(&of.conn) {
            *granted = granted.saturating_sub(bytes);
        }
    }

    fn forget(&mut self, stream: StreamId) {
        self.take_back(stream, u64::MAX);
        self.streams.remove(&stream);
    }
}

fn violation(what: String) -> Violation {
    Violation::new("windows", what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use pk_proto::DisconnectReason;

    const CONN: ConnectionId = ConnectionId(0);

    fn config() -> Config {
        let mut config = Config::default();
        config.send_window = 10;
        config.receive_window = 10;
        config
    }

    fn send(stream: u64, bytes: usize) -> Output {
        Output::SendStream {
            stream: StreamId(stream),
            bytes: Bytes::from(vec![0; bytes]),
            fin: false,
        }
    }

    fn grant(stream: u64, bytes: u64) -> Output {
        Output::ReadCredit { stream: StreamId(stream), bytes }
    }

    fn two_streams() -> impl FnMut(Result<Output, Input>) -> Result<(), Violation> {
        let mut windows = Windows::default();
        windows.input(&Input::StreamOpened { conn: CONN, stream: StreamId(1) });
        windows.input(&Input::StreamOpened { conn: CONN, stream: StreamId(3) });
        move |event| match event {
            Ok(output) => windows.output(&output, &config(), &mut CheckCounters::default()),
            Err(input) => {
                windows.input(&input);
                Ok(())
            }
        }
    }

    #[test]
    fn unconfirmed_bytes_are_counted_by_stream() {
        let mut happen = two_streams();
        happen(Ok(send(1, 10))).unwrap();
        happen(Ok(send(3, 10))).unwrap();
        happen(Err(Input::StreamWritten { stream: StreamId(1), bytes: 4 })).unwrap();
        happen(Ok(send(1, 4))).unwrap();
        assert!(happen(Ok(send(1, 1))).unwrap_err().what.contains("stream 1 has 11 unconfirmed"));
    }

    #[test]
    fn credit_is_counted_by_connection_and_released() {
        let mut happen = two_streams();
        happen(Ok(grant(1, 6))).unwrap();
        happen(Ok(grant(3, 4))).unwrap();
        assert!(two_streams()(Ok(grant(1, 11))).is_err());
        for input in [
            Input::StreamData {
                stream: StreamId(1),
                bytes: Bytes::from_static(b"abc"),
                fin: false,
            },
            Input::StreamReset { stream: StreamId(3), code: 0 },
        ] {
            happen(Err(input)).unwrap();
        }
        happen(Ok(grant(1, 7))).unwrap();
        assert!(happen(Ok(grant(1, 1))).unwrap_err().what.contains("connection 0 has 11 bytes"));
        happen(Ok(Output::StopStream { stream: StreamId(1), code: 0 })).unwrap();
        happen(Ok(grant(3, 9))).unwrap();
        happen(Err(Input::Disconnected { conn: CONN, why: DisconnectReason::Local })).unwrap();
        happen(Err(Input::StreamOpened { conn: CONN, stream: StreamId(5) })).unwrap();
        happen(Ok(grant(5, 10))).unwrap();
    }
}
