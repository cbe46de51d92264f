//! When a port is mapped, renewed and withdrawn, and by which protocol. No IO: tasks and events
//! come out, outcomes and the time go in.
//!
//! | state | ends with |
//! |---|---|
//! | `Idle`: no mapping, after a failed round | the next round, or a change of addresses |
//! | `Asking`: one protocol after the other is tried | a mapping, or the end of the round |
//! | `Mapped` | half of the lifetime, or a change of addresses |
//! | `Renewing` | the answer; a mapping that has ended without one is lost |
//! | `Withdrawing`: the node stops | the answer, or a second |
//! | `Over` | |

use std::collections::VecDeque;
use std::mem;
use std::time::Duration;

use pk_proto::Instant;

use super::failure::PortMappingFailure;
use super::lease::{Lease, PortMapping, PortMappingEvent, PortMappingProtocol};

/// Protocols in the order of their use: those with answers about lifetime and restarts first.
const ORDER: &[PortMappingProtocol] = &[
    PortMappingProtocol::Pcp,
    PortMappingProtocol::NatPmp,
    #[cfg(feature = "igd")]
    PortMappingProtocol::Igd,
];

/// Time until a round that has failed is repeated; doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(30);
const LAST_RETRY: Duration = Duration::from_secs(60 * 60);
/// Least time between two attempts to renew a mapping (RFC 6887 section 11.2.1).
const RENEW_LEAST: Duration = Duration::from_secs(4);
/// Longest lifetime that counts; a longer one is shortened (RFC 6887 section 15).
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// Longest duration of one task.
const TASK_LIMIT: Duration = Duration::from_secs(8);
/// Longest time for which the stop of the node waits.
const STOP_LIMIT: Duration = Duration::from_secs(1);

/// What is to be done next. It replaces a task in progress.
#[derive(Debug, Clone)]
pub(super) enum Task {
    Ask(PortMappingProtocol),
    Renew(Lease),
    Withdraw(Lease),
}

/// The result of a task.
#[derive(Debug)]
pub(super) enum Outcome {
    Granted(Lease),
    Failed(PortMappingFailure),
    /// The node is in another network than the mapping to be renewed.
    Moved,
    Withdrawn,
}

#[derive(Debug)]
pub(super) struct Machine {
    state: State,
    /// Rounds that have failed since the last mapping or change.
    failed: u32,
    /// The addresses have changed while a task was in progress.
    changed: bool,
    stopping: bool,
    task: Option<Task>,
    events: VecDeque<PortMappingEvent>,
}

#[derive(Debug)]
enum State {
    Idle { until: Instant },
    Asking { next: usize, causes: Vec<(PortMappingProtocol, PortMappingFailure)>, limit: Instant },
    Mapped { held: Held, renew_at: Instant },
    Renewing { held: Held, limit: Instant },
    Withdrawing { mapping: PortMapping, limit: Instant },
    Over,
}

/// A mapping and the time of its last confirmation.
#[derive(Debug)]
struct Held {
    lease: Lease,
    at: Instant,
}

impl Held {
    fn ends(&self) -> Instant {
        self.at + self.lease.lifetime
    }
}

impl Machine {
    /// Creates a machine with a first round that is due.
    pub(super) fn new(now: Instant) -> Self {
        let mut machine = Self {
            state: State::Over,
            failed: 0,
            changed: false,
            stopping: false,
            task: None,
            events: VecDeque::new(),
        };
        machine.ask(now, 0, Vec::new());
        machine
    }

    pub(super) fn take_task(&mut self) -> Option<Task> {
        self.task.take()
    }

    pub(super) fn poll_event(&mut self) -> Option<PortMappingEvent> {
        self.events.pop_front()
    }

    /// Returns when [`handle_timeout`](Self::handle_timeout) is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Idle { until } => Some(*until),
            State::Mapped { renew_at, .. } => Some(*renew_at),
            State::Asking { limit, .. }
            | State::Renewing { limit, .. }
            | State::Withdrawing { limit, .. } => Some(*limit),
            State::Over => None,
        }
    }

    /// Returns the mapping that exists.
    pub(super) fn mapping(&self) -> Option<PortMapping> {
        match &self.state {
            State::Mapped { held, .. } | State::Renewing { held, .. } => Some(held.lease.mapping()),
            _ => None,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// The addresses of the machine or of the socket have changed. A renewal shows whether the
    /// mapping still exists.
    pub(super) fn addresses_changed(&mut self, now: Instant) {
        self.failed = 0;
        match mem::replace(&mut self.state, State::Over) {
            State::Idle { .. } => self.ask(now, 0, Vec::new()),
            State::Mapped { held, .. } => self.renew(now, held),
            state => {
                self.changed = matches!(state, State::Asking { .. } | State::Renewing { .. });
                self.state = state;
            }
        }
    }

    /// The node stops: the mapping is withdrawn. One that is being requested is withdrawn when it
    /// is granted within a second.
    pub(super) fn stop(&mut self, now: Instant) {
        self.stopping = true;
        match mem::replace(&mut self.state, State::Over) {
            State::Mapped { held, .. } | State::Renewing { held, .. } => {
                self.withdraw(held.lease, now + STOP_LIMIT);
            }
            State::Asking { next, causes, .. } => {
                self.state = State::Asking { next, causes, limit: now + STOP_LIMIT };
            }
            withdrawing @ State::Withdrawing { .. } => self.state = withdrawing,
            State::Idle { .. } | State::Over => {}
        }
    }

    /// The task that was taken last has ended.
    pub(super) fn task_ended(&mut self, now: Instant, outcome: Outcome) {
        match (mem::replace(&mut self.state, State::Over), outcome) {
            (State::Asking { limit, .. }, Outcome::Granted(lease)) if self.stopping => {
                self.withdraw(lease, limit);
            }
            (State::Asking { .. }, _) if self.stopping => {}
            (State::Asking { .. }, Outcome::Granted(lease)) => {
                let held = self.hold(now, lease);
                self.events.push_back(PortMappingEvent::Mapped(held.lease.mapping()));
                self.keep(now, held);
            }
            (State::Asking { next, mut causes, .. }, outcome) => {
                if let Some(protocol) = ORDER.get(next) {
                    causes.push((*protocol, failure(outcome)));
                }
                self.ask(now, next + 1, causes);
            }
            (State::Renewing { held, .. }, Outcome::Granted(lease)) => {
                self.renewed(now, &held, lease);
            }
            (State::Renewing { held, .. }, Outcome::Moved) => self.lose(now, &held),
            (State::Renewing { held, .. }, outcome) => {
                self.renewal_failed(now, held, failure(outcome));
            }
            (State::Withdrawing { mapping, .. }, outcome) => {
                self.events.push_back(match outcome {
                    Outcome::Withdrawn => PortMappingEvent::Withdrawn(mapping),
                    outcome => {
                        PortMappingEvent::WithdrawalFailed { mapping, why: failure(outcome) }
                    }
                });
            }
            // No task is in progress.
            (state, _) => self.state = state,
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|at| at > now) {
            return;
        }
        match mem::replace(&mut self.state, State::Over) {
            State::Idle { .. } => self.ask(now, 0, Vec::new()),
            State::Mapped { held, .. } if held.ends() <= now => self.lose(now, &held),
            State::Mapped { held, .. } => self.renew(now, held),
            state => {
                self.state = state;
                self.task_ended(now, Outcome::Failed(PortMappingFailure::Silent));
            }
        }
    }

    // -- internal

    /// Asks the next protocol, or ends the round.
    fn ask(
        &mut self,
        now: Instant,
        next: usize,
        causes: Vec<(PortMappingProtocol, PortMappingFailure)>,
    ) {
        if let Some(protocol) = ORDER.get(next) {
            self.task = Some(Task::Ask(*protocol));
            self.state = State::Asking { next, causes, limit: now + TASK_LIMIT };
            return;
        }
        let retry_in = match mem::take(&mut self.changed) {
            true => Duration::ZERO,
            false => FIRST_RETRY.saturating_mul(1 << self.failed.min(16)).min(LAST_RETRY),
        };
        self.failed = self.failed.saturating_add(1);
        self.state = State::Idle { until: now + retry_in };
        self.events.push_back(PortMappingEvent::Failed { causes, retry_in });
    }

    fn hold(&mut self, now: Instant, mut lease: Lease) -> Held {
        self.failed = 0;
        lease.lifetime = lease.lifetime.min(LONGEST);
        Held { lease, at: now }
    }

    /// Keeps a mapping until its renewal, which is due at once if the addresses have changed.
    fn keep(&mut self, now: Instant, held: Held) {
        if mem::take(&mut self.changed) {
            return self.renew(now, held);
        }
        let renew_at = (held.at + (held.lease.lifetime / 2).max(RENEW_LEAST)).min(held.ends());
        self.state = State::Mapped { held, renew_at };
    }

    fn renew(&mut self, now: Instant, held: Held) {
        self.task = Some(Task::Renew(held.lease.clone()));
        self.state = State::Renewing { held, limit: now + TASK_LIMIT };
    }

    fn renewed(&mut self, now: Instant, before: &Held, lease: Lease) {
        let restarted = before.lease.has_restarted(&lease, now.since(before.at));
        let held = self.hold(now, lease);
        let mapping = held.lease.mapping();
        self.events.push_back(match mapping.external == before.lease.mapping().external {
            true => PortMappingEvent::Renewed { mapping, restarted },
            false => PortMappingEvent::Mapped(mapping),
        });
        self.keep(now, held);
    }

    /// Tries again when half of the rest of the lifetime has passed.
    fn renewal_failed(&mut self, now: Instant, held: Held, why: PortMappingFailure) {
        let ends = held.ends();
        let mapping = held.lease.mapping();
        self.events.push_back(PortMappingEvent::RenewalFailed { mapping, why });
        if mem::take(&mut self.changed) {
            return self.renew(now, held);
        }
        let rest = ends.since(now);
        let renew_at = (now + (rest / 2).max(RENEW_LEAST)).min(ends);
        self.state = State::Mapped { held, renew_at };
    }

    fn lose(&mut self, now: Instant, held: &Held) {
        self.events.push_back(PortMappingEvent::Lost(held.lease.mapping()));
        self.changed = false;
        self.ask(now, 0, Vec::new());
    }

    fn withdraw(&mut self, lease: Lease, limit: Instant) {
        self.state = State::Withdrawing { mapping: lease.mapping(), limit };
        self.task = Some(Task::Withdraw(lease));
    }
}

/// Returns the failure of a task that was to grant or withdraw something.
fn failure(outcome: Outcome) -> PortMappingFailure {
    match outcome {
        Outcome::Failed(why) => why,
        Outcome::Granted(_) | Outcome::Moved | Outcome::Withdrawn => {
            PortMappingFailure::Malformed("an answer to another request")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::gateway::Place;
    use super::super::lease::Key;
    use super::*;
    use PortMappingProtocol::{NatPmp, Pcp};

    const HOUR: Duration = Duration::from_secs(3600);

    /// A machine in virtual time.
    struct Run {
        machine: Machine,
        now: Instant,
    }

    impl Run {
        fn new() -> Self {
            let now = Instant::from_micros(5_000_000);
            Self { machine: Machine::new(now), now }
        }

        /// A machine with a mapping of two hours, granted by PCP at the start.
        fn mapped() -> Self {
            let mut run = Self::new();
            assert_eq!(run.task(), "ask PCP");
            run.end(Outcome::Granted(lease(7200, 1000)));
            assert_eq!(run.events(), ["mapped 203.0.113.7:1314"]);
            run
        }

        fn task(&mut self) -> String {
            match self.machine.take_task() {
                Some(Task::Ask(protocol)) => format!("ask {protocol}"),
                Some(Task::Renew(lease)) => format!("renew {}", lease.external),
                Some(Task::Withdraw(lease)) => format!("withdraw {}", lease.external),
                None => "none".to_owned(),
            }
        }

        fn end(&mut self, outcome: Outcome) {
            self.machine.task_ended(self.now, outcome);
        }

        fn fail(&mut self) {
            self.end(Outcome::Failed(PortMappingFailure::Silent));
        }

        /// Lets every protocol fail, and returns the time until the next round.
        fn fail_round(&mut self) -> Duration {
            for _ in ORDER {
                assert!(self.task().starts_with("ask "));
                self.fail();
            }
            assert_eq!(self.task(), "none");
            assert_eq!(self.events().len(), 1);
            self.machine.poll_timeout().unwrap().since(self.now)
        }

        /// Waits for the next deadline, and returns how long that took.
        fn wait(&mut self) -> Duration {
            let at = self.machine.poll_timeout().unwrap();
            let took = at.since(self.now);
            self.machine.handle_timeout(Instant::from_micros(at.as_micros() - 1));
            assert_eq!(self.machine.poll_timeout(), Some(at), "too early");
            self.now = at;
            self.machine.handle_timeout(at);
            took
        }

        fn events(&mut self) -> Vec<String> {
            std::iter::from_fn(|| self.machine.poll_event()).map(|event| text(&event)).collect()
        }
    }

    fn text(event: &PortMappingEvent) -> String {
        match event {
            PortMappingEvent::Mapped(mapping) => format!("mapped {}", mapping.external),
            PortMappingEvent::Renewed { restarted: true, .. } => "renewed after a restart".into(),
            PortMappingEvent::Renewed { .. } => "renewed".into(),
            PortMappingEvent::RenewalFailed { why, .. } => format!("not renewed: {why}"),
            PortMappingEvent::Lost(_) => "lost".into(),
            PortMappingEvent::Failed { causes, .. } => format!("failed {}", causes.len()),
            PortMappingEvent::Withdrawn(_) => "withdrawn".into(),
            PortMappingEvent::WithdrawalFailed { why, .. } => format!("not withdrawn: {why}"),
        }
    }

    fn lease(seconds: u64, epoch: u32) -> Lease {
        Lease {
            key: Key::Pcp([7; 12]),
            place: Place { local: "192.168.1.2:1314".parse().unwrap(), gateway: None },
            external: "203.0.113.7:1314".parse().unwrap(),
            lifetime: Duration::from_secs(seconds),
            epoch: Some(epoch),
        }
    }

    #[test]
    fn protocols_are_tried_in_order_and_the_first_that_grants_is_kept() {
        let mut run = Run::new();
        assert_eq!(run.task(), format!("ask {Pcp}"));
        run.end(Outcome::Failed(PortMappingFailure::Version { version: 0 }));
        assert_eq!(run.task(), format!("ask {NatPmp}"));
        run.end(Outcome::Granted(Lease { key: Key::NatPmp, ..lease(7200, 1) }));
        assert_eq!(
            (run.task(), run.events()),
            ("none".into(), vec!["mapped 203.0.113.7:1314".into()])
        );
        let mapping = run.machine.mapping().unwrap();
        assert_eq!(
            (mapping.protocol, mapping.is_global),
            (NatPmp, false),
            "a documentation address"
        );
    }

    #[test]
    fn failed_round_names_the_cause_of_each_protocol_and_is_repeated_ever_more_rarely() {
        let mut run = Run::new();
        let delays: Vec<_> = (0..9)
            .map(|_| {
                let delay = run.fail_round();
                assert_eq!(run.wait(), delay);
                delay.as_secs()
            })
            .collect();
        assert_eq!(delays, [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]);
        // The next network may have another gateway.
        run.fail_round();
        run.machine.addresses_changed(run.now);
        assert_eq!(run.fail_round(), FIRST_RETRY);
    }

    #[test]
    fn silent_task_ends_after_its_limit() {
        let mut run = Run::new();
        assert_eq!(run.task(), "ask PCP");
        assert_eq!(run.wait(), TASK_LIMIT);
        assert_eq!(run.task(), "ask NAT-PMP");
    }

    #[test]
    fn mapping_is_renewed_at_half_of_its_lifetime() {
        let mut run = Run::mapped();
        for epoch in [4600, 8200] {
            assert_eq!(run.wait(), HOUR);
            assert_eq!(run.task(), "renew 203.0.113.7:1314");
            run.end(Outcome::Granted(lease(7200, epoch)));
            assert_eq!(run.events(), ["renewed"]);
        }
        // The clock of the gateway has started again.
        run.wait();
        run.end(Outcome::Granted(lease(20, 17)));
        assert_eq!(run.events(), ["renewed after a restart"]);
        // As long as the gateway says, but no longer than a day.
        assert_eq!(run.wait(), Duration::from_secs(10));
        let moved = Lease { external: "203.0.113.8:9".parse().unwrap(), ..lease(10_000_000, 27) };
        run.end(Outcome::Granted(moved));
        assert_eq!(run.events(), ["mapped 203.0.113.8:9"], "another address");
        assert_eq!(run.wait(), 12 * HOUR);
    }

    #[test]
    fn failed_renewal_is_repeated_until_the_mapping_ends_and_then_it_is_mapped_again() {
        let mut run = Run::mapped();
        let mut waits = Vec::new();
        loop {
            waits.push(run.wait());
            match run.task().as_str() {
                "renew 203.0.113.7:1314" => run.fail(),
                task => break assert_eq!(task, "ask PCP"),
            }
        }
        assert_eq!(waits.iter().sum::<Duration>(), 2 * HOUR);
        assert_eq!(waits[..4], [HOUR, HOUR / 2, HOUR / 4, HOUR / 8]);
        assert!(waits[..waits.len() - 1].iter().all(|wait| *wait >= RENEW_LEAST), "{waits:?}");
        let events = run.events();
        assert_eq!(events[0], "not renewed: no gateway answers");
        assert_eq!(events[events.len() - 1], "lost");
        assert_eq!(run.machine.mapping(), None);
    }

    #[test]
    fn lifetime_of_seconds_neither_spins_nor_outlives_itself() {
        let mut run = Run::new();
        run.end(Outcome::Granted(lease(1, 0)));
        assert_eq!(run.wait(), Duration::from_secs(1));
        assert_eq!(run.events()[1..], ["lost"]);
    }

    #[test]
    fn change_of_addresses_renews_and_a_mapping_of_another_network_is_lost() {
        let mut run = Run::mapped();
        run.machine.addresses_changed(run.now);
        assert_eq!(run.task(), "renew 203.0.113.7:1314");
        run.end(Outcome::Moved);
        assert_eq!((run.task(), run.events()), ("ask PCP".into(), vec!["lost".into()]));
        // During a task: once more after it.
        run.machine.addresses_changed(run.now);
        run.end(Outcome::Granted(lease(7200, 0)));
        assert_eq!(run.task(), "renew 203.0.113.7:1314");
        run.machine.addresses_changed(run.now);
        run.fail();
        assert_eq!(run.task(), "renew 203.0.113.7:1314");
        run.end(Outcome::Granted(lease(7200, 0)));
        assert_eq!(run.task(), "none");
    }

    #[test]
    fn change_during_a_round_that_fails_starts_the_next_one_at_once() {
        let mut run = Run::new();
        run.machine.addresses_changed(run.now);
        assert_eq!(run.fail_round(), Duration::ZERO);
        run.wait();
        assert_eq!(run.fail_round(), 2 * FIRST_RETRY);
    }

    #[test]
    fn stop_withdraws_the_mapping_and_waits_for_a_second_at_most() {
        for (outcome, event) in
            [(Some(Outcome::Withdrawn), "withdrawn"), (None, "not withdrawn: no gateway answers")]
        {
            let mut run = Run::mapped();
            run.machine.stop(run.now);
            assert_eq!(run.task(), "withdraw 203.0.113.7:1314");
            assert!(!run.machine.is_over());
            match outcome {
                Some(outcome) => run.end(outcome),
                None => assert_eq!(run.wait(), STOP_LIMIT),
            }
            assert_eq!((run.events(), run.machine.is_over()), (vec![event.to_owned()], true));
            assert_eq!(run.machine.poll_timeout(), None);
        }
    }

    #[test]
    fn stop_during_a_request_withdraws_what_is_granted_within_the_same_second() {
        let mut run = Run::new();
        run.machine.stop(run.now);
        run.end(Outcome::Granted(lease(7200, 0)));
        assert!(run.task().starts_with("withdraw"));
        assert_eq!(run.wait(), STOP_LIMIT);
        assert!(run.machine.is_over());

        let mut run = Run::new();
        run.machine.stop(run.now);
        assert_eq!(run.wait(), STOP_LIMIT);
        assert!(run.machine.is_over() && run.events().is_empty());

        let mut run = Run::new();
        run.fail_round();
        run.machine.stop(run.now);
        assert!(run.machine.is_over());
    }

    #[test]
    fn stop_during_a_renewal_withdraws_the_mapping() {
        let mut run = Run::mapped();
        run.wait();
        run.machine.stop(run.now);
        assert_eq!(run.task(), "withdraw 203.0.113.7:1314");
    }
}
