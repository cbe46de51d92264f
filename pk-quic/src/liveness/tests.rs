//! Tests of single checks, and of checks of real connections in virtual time whose peer dies after
//! each possible number of datagrams.

mod pair;

use quinn_proto::ConnectionStats;

use super::*;

const WAIT: Duration = Duration::from_millis(500);
const ON_TIME: Duration = Duration::ZERO;

fn counts(received: u64, sent: u64, content: u64) -> Traffic {
    Traffic { received, sent, content }
}

/// Returns the state of a connection on which data was sent at time 0.
fn watched() -> Liveness {
    let mut liveness = Liveness::default();
    liveness.note_before_send(Instant::ORIGIN, Traffic::default());
    liveness.sent(Instant::ORIGIN);
    liveness.due = Some(Instant::ORIGIN + WAIT / PAUSES[0]);
    liveness
}

/// Checks the connection `late` after the due time.
fn late_look(liveness: &mut Liveness, late: Duration, traffic: Traffic) -> Finding {
    let now = liveness.due.unwrap() + late;
    let finding = liveness.look(now, traffic, WAIT, false);
    liveness.due = Some(liveness.next(now, WAIT));
    finding
}

fn look(liveness: &mut Liveness, traffic: Traffic) -> Finding {
    late_look(liveness, ON_TIME, traffic)
}

/// Checks until the finding is not `Active`. Returns the finding and its time.
fn looks(liveness: &mut Liveness, traffic: Traffic) -> (Finding, Duration) {
    for _ in 0..20 {
        let now = liveness.due.unwrap();
        let finding = look(liveness, traffic);
        if finding != Finding::Active {
            return (finding, now.since(Instant::ORIGIN));
        }
    }
    panic!("no finding: {liveness:?}");
}

#[test]
fn unanswered_frames_count_as_silence_after_the_allowed_time() {
    let mut liveness = watched();
    assert_eq!(look(&mut liveness, counts(1, 1, 1)), Finding::Active);
    assert_eq!(looks(&mut liveness, counts(1, 1, 1)).0, Finding::Quiet, "all is acknowledged");
    let mut liveness = watched();
    assert_eq!(
        looks(&mut liveness, counts(0, 1, 1)),
        (Finding::Silent, WAIT),
        "exactly when its time is over"
    );
    assert_eq!(look(&mut liveness, counts(0, 2, 1)), Finding::Suspected, "it is reported once");
    assert_eq!(look(&mut liveness, counts(1, 2, 1)), Finding::Heard);
    assert_eq!(look(&mut liveness, counts(1, 3, 2)), Finding::Active);
    assert_eq!(looks(&mut liveness, counts(1, 3, 2)).0, Finding::Silent, "and again");
}

#[test]
fn frame_received_before_a_send_does_not_acknowledge_it() {
    let mut liveness = watched();
    let later = Instant::ORIGIN + WAIT / 5;
    liveness.note_before_send(later, counts(1, 1, 1));
    liveness.sent(later);
    assert_eq!(looks(&mut liveness, counts(1, 2, 2)), (Finding::Silent, WAIT + WAIT / 5));
}

#[test]
fn probes_of_either_kind_reveal_silence_behind_an_earlier_packet() {
    let mut stats = ConnectionStats::default();
    stats.frame_tx.stream = 1;
    stats.frame_rx.acks = 1;
    let before = traffic(&stats);
    let ping: fn(&mut ConnectionStats) = |stats| stats.frame_tx.ping += 2;
    for probe in [ping, |stats| stats.frame_tx.immediate_ack += 2] {
        let mut liveness = watched();
        assert_eq!(
            look(&mut liveness, before),
            Finding::Active,
            "received, but perhaps before the send"
        );
        let mut stats = stats;
        probe(&mut stats);
        let (finding, at) = looks(&mut liveness, traffic(&stats));
        assert_eq!((finding, at), (Finding::Silent, WAIT / 4 + WAIT), "since the first look");
    }
}

#[test]
fn keep_alive_is_no_silence_and_does_not_prolong_the_checks() {
    let mut liveness = watched();
    assert_eq!(look(&mut liveness, counts(1, 1, 1)), Finding::Active);
    assert_eq!(
        look(&mut liveness, counts(1, 2, 1)),
        Finding::Active,
        "a keep-alive leaves just now"
    );
    assert_eq!(look(&mut liveness, counts(2, 2, 1)), Finding::Active, "it is acknowledged");
    let (finding, at) = looks(&mut liveness, counts(2, 2, 1));
    assert!(finding == Finding::Quiet && at <= WAIT * 2, "{finding:?} at {at:?}");
}

#[test]
fn connection_is_checked_until_an_expected_answer_arrives() {
    let mut liveness = watched();
    for _ in 0..50 {
        let now = liveness.due.unwrap();
        assert_eq!(liveness.look(now, counts(1, 1, 1), WAIT, true), Finding::Active);
        liveness.due = Some(liveness.next(now, WAIT));
    }
    assert_eq!(look(&mut liveness, counts(1, 2, 1)), Finding::Active);
    assert_eq!(look(&mut liveness, counts(1, 2, 1)), Finding::Silent, "a keep-alive that was lost");
}

#[test]
fn frame_sent_just_before_a_check_has_the_whole_allowed_time() {
    let mut liveness = watched();
    let sent_at = liveness.due.unwrap() - Duration::from_millis(1);
    liveness.note_before_send(sent_at, counts(1, 1, 1));
    liveness.sent(sent_at);
    let (finding, at) = looks(&mut liveness, counts(1, 2, 2));
    assert_eq!((finding, at), (Finding::Silent, sent_at.since(Instant::ORIGIN) + WAIT));
}

#[test]
fn late_check_is_ignored_up_to_the_limit() {
    let mut liveness = watched();
    let late = Duration::from_secs(60);
    assert_eq!(late_look(&mut liveness, late, counts(0, 1, 1)), Finding::Late);
    assert_eq!(
        look(&mut liveness, counts(1, 2, 2)),
        Finding::Active,
        "what had arrived is processed now"
    );
    liveness.sent(liveness.due.unwrap());
    for sent in 3..3 + u64::from(LATE_LOOKS) {
        assert_eq!(late_look(&mut liveness, late, counts(1, sent, sent)), Finding::Late);
    }
    assert_eq!(late_look(&mut liveness, late, counts(1, 9, 9)), Finding::Silent);
}

#[test]
fn every_frame_but_acknowledgements_and_the_end_has_to_be_acknowledged() {
    // The debug text has one counter per frame type; the test sets all of them.
    let mut stats = FrameStats::default();
    let fields = format!("{stats:?}").matches(": 0").count();
    let counters = [
        &mut stats.ack_frequency,
        &mut stats.crypto,
        &mut stats.data_blocked,
        &mut stats.datagram,
        &mut stats.immediate_ack,
        &mut stats.max_data,
        &mut stats.max_stream_data,
        &mut stats.max_streams_bidi,
        &mut stats.max_streams_uni,
        &mut stats.new_connection_id,
        &mut stats.new_token,
        &mut stats.path_challenge,
        &mut stats.path_response,
        &mut stats.ping,
        &mut stats.reset_stream,
        &mut stats.retire_connection_id,
        &mut stats.stream_data_blocked,
        &mut stats.streams_blocked_bidi,
        &mut stats.streams_blocked_uni,
        &mut stats.stop_sending,
        &mut stats.stream,
    ];
    let set = counters.len() as u64;
    counters.into_iter().for_each(|counter| *counter += 1);
    stats.handshake_done = 1;
    assert_eq!(acknowledged(&stats), set + 1);
    let zero = format!("{stats:?}").matches(": 0").count();
    assert_eq!((fields as u64 - set - 1, zero), (2, 2), "ACK and CONNECTION_CLOSE");
}

#[test]
fn patience_is_rounded_to_the_unit_of_instants() {
    let rtt = Duration::from_nanos(165_884_133);
    let patience = patience(rtt, WAIT, Duration::from_secs(30));
    assert_eq!(patience, Duration::from_micros(522_652));
    assert_eq!((Instant::ORIGIN + patience).since(Instant::ORIGIN), patience);
}
