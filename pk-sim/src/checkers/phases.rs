//! Nothing is dialed, sent or written before Ready, and nothing starts while a node stops.
//!
//! The rules are written here independently, because the table of the core is what is checked.

use pk_proto::{Metrics, Output, Phase};

use super::violation::Violation;

/// Checks an output before it is executed; `phase` is that of the machine after the call that
/// caused it.
pub(super) fn output(phase: Phase, output: &Output) -> Result<(), Violation> {
    let legal = match phase {
        Phase::Starting => matches!(output, Output::CloseConnection { .. }),
        Phase::Running => true,
        // The outputs of the call that stopped it; `discipline` checks what follows `Stopped`.
        Phase::Stopping | Phase::Stopped => !starts_something(output),
    };
    if legal { Ok(()) } else { Err(violation(format!("while {phase:?}: {output:?}"))) }
}

/// Called after a drain: the core itself did not have to suppress an output.
pub(super) fn drained(metrics: &Metrics) -> Result<(), Violation> {
    match metrics.outputs_suppressed {
        0 => Ok(()),
        suppressed => {
            Err(violation(format!("{suppressed} outputs were dropped because of the phase")))
        }
    }
}

fn starts_something(output: &Output) -> bool {
    matches!(
        output,
        Output::Dial { .. }
            | Output::OpenStream { .. }
            | Output::DetachStream { .. }
            | Output::AttachCircuit { .. }
            | Output::JoinCircuit { .. }
            | Output::ProbePath { .. }
            | Output::Sign { .. }
            | Output::Resolve { .. }
            | Output::Browse { .. }
            | Output::Punch { .. }
            | Output::Advertise { port: Some(_), .. }
    )
}

fn violation(what: String) -> Violation {
    Violation::new("phases", what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pk_proto::{ConnectionId, EffectId, Event, Instant, NodeId};

    const NODE: NodeId = NodeId::from_bytes([7; 32]);

    fn dial() -> Output {
        let (addr, deadline) = ("10.0.0.1:1".parse().unwrap(), Instant::FAR_FUTURE);
        Output::Dial { conn: ConnectionId(0), addr, expect: [NODE].into(), deadline }
    }

    fn persist() -> Output {
        Output::Persist { id: EffectId(0), ops: Vec::new(), durable: true }
    }

    fn advertise(port: Option<u16>) -> Output {
        Output::Advertise { node: NODE, port }
    }

    fn close() -> Output {
        Output::CloseConnection { conn: ConnectionId(1), code: 0, reason: String::new() }
    }

    #[test]
    fn planted_bugs_are_caught() {
        for early in [
            dial(),
            persist(),
            advertise(Some(1)),
            Output::Event(Event::NodeRemoved { node: NODE }),
        ] {
            assert!(
                output(Phase::Starting, &early).unwrap_err().what.contains("Starting"),
                "{early:?}"
            );
        }
        for late in [
            dial(),
            advertise(Some(1)),
            Output::Browse { id: EffectId(0), node: NODE, deadline: Instant::ORIGIN },
        ] {
            assert_eq!(output(Phase::Running, &late), Ok(()));
            assert!(
                output(Phase::Stopping, &late).unwrap_err().what.contains("Stopping"),
                "{late:?}"
            );
        }
        for ending in [persist(), advertise(None), close(), Output::Event(Event::Stopped)] {
            assert_eq!(output(Phase::Stopped, &ending), Ok(()));
        }
        assert_eq!(output(Phase::Starting, &close()), Ok(()));

        let mut metrics = Metrics::default();
        assert_eq!(drained(&metrics), Ok(()));
        metrics.outputs_suppressed = 1;
        assert!(drained(&metrics).is_err());
    }
}
