//! The main loop: time, delivery of inputs, execution of outputs.

use std::time::Duration;

use pk_proto::{Event, Input, Instant, Output, Phase};

use super::{Completed, World};
use crate::host::id::HostId;
use crate::machine::Machine;
use crate::wire::Happening;
use crate::world::effects;
use crate::world::journal::Entry;

/// More steps than this at one moment are a livelock.
const STEPS_AT_ONCE: u64 = 1_000_000;

/// More answers than this in one drain are a livelock.
const ANSWERS_AT_ONCE: u32 = 10_000;

/// Time.
impl<M: Machine> World<M> {
    /// Returns when the next event happens; `None` if there is none.
    pub fn next(&self) -> Option<Instant> {
        let timer = self.timers.first().map(|(at, _)| *at);
        [self.wire.next(), timer].into_iter().flatten().min()
    }

    /// Executes the next event. Returns whether there was one.
    pub fn step(&mut self) -> bool {
        let timer = self.timers.first().copied();
        let at = match (self.wire.next(), timer) {
            (None, None) => return false,
            // At one moment, machines receive all inputs before their timers fire.
            (Some(at), timer) if timer.is_none_or(|(due, _)| at <= due) => {
                self.advance(at);
                if let Some((_, happening)) = self.wire.pop() {
                    self.happen(happening);
                }
                return true;
            }
            (_, Some(timer)) => timer,
            (Some(_), None) => return false,
        };
        self.advance(at.0);
        self.fire(at.1);
        true
    }

    /// Executes the next event if it happens by `end`; otherwise advances the clock to `end`.
    /// Returns whether there was an event.
    pub fn step_by(&mut self, end: Instant) -> bool {
        if self.next().is_some_and(|at| at <= end) {
            return self.step();
        }
        self.advance(end);
        false
    }

    /// Executes all events within `duration`, and advances the clock to its end.
    pub fn drive(&mut self, duration: Duration) {
        let end = self.wire.now + duration;
        while self.step_by(end) {}
    }

    /// Runs until `done` returns true, for at most `limit`. Returns whether it did.
    pub fn drive_until(&mut self, mut done: impl FnMut(&Self) -> bool, limit: Duration) -> bool {
        let end = self.wire.now + limit;
        while !done(self) {
            if !self.step_by(end) {
                return done(self);
            }
        }
        true
    }

    /// Runs until `done` returns true; fails after `max_steps`, or if nothing is left to happen.
    pub fn drive_bounded(&mut self, max_steps: u64, mut done: impl FnMut(&Self) -> bool) {
        for _ in 0..max_steps {
            if done(self) {
                return;
            }
            if !self.step() {
                self.fail("nothing is left to happen, and the condition is not met");
            }
        }
        if !done(self) {
            self.fail(&format!("the condition is not met within {max_steps} steps: a livelock?"));
        }
    }
}

/// Steps of the loop.
impl<M: Machine> World<M> {
    pub(super) fn advance(&mut self, to: Instant) {
        if to > self.wire.now {
            self.wire.now = to;
            self.steps_now = 0;
        }
        self.steps_now += 1;
        if self.steps_now > STEPS_AT_ONCE {
            self.fail(&format!("{STEPS_AT_ONCE} steps without time passing: a livelock"));
        }
    }

    fn happen(&mut self, happening: Happening) {
        self.counters.steps += 1;
        let Self { wire, transport, .. } = self;
        let alive =
            |host: HostId, life: u32| wire.hosts[host].life == life && wire.hosts[host].alive;
        match happening {
            Happening::Deliver { host, life, input }
                if alive(host, life) && wire.hosts[host].frozen =>
            {
                wire.hosts[host].thawing.push(input);
            }
            Happening::Deliver { host, life, input } if alive(host, life) => {
                if let Input::Discovered { id, done: false, .. } = &input {
                    // It arrived after the browse had ended.
                    if !wire.hosts[host].browses.contains_key(id) {
                        return;
                    }
                }
                self.input(host, input);
                self.drain(host);
            }
            Happening::Store { host, life } if alive(host, life) => effects::stored(wire, host),
            Happening::BrowseEnd { host, life, id } if alive(host, life) => {
                effects::end_browse(wire, host, id);
            }
            Happening::Deliver { .. } | Happening::Store { .. } | Happening::BrowseEnd { .. } => {}
            Happening::Arrive(arrival) => transport.arrive(wire, arrival),
            Happening::DialDeadline { serial } => transport.dial_deadline(wire, serial),
            Happening::Idle { serial, side, since } => transport.idle(wire, serial, side, since),
            Happening::Forgotten { serial, side } => transport.forgotten(wire, serial, side),
            Happening::Unanswered { serial, side, since } => {
                transport.unanswered(wire, serial, side, since);
            }
            Happening::Heard { serial, side } => transport.heard(wire, serial, side),
            Happening::Resend(arrival) => transport.resend(wire, arrival),
            Happening::Beat { serial, side } => transport.beat(wire, serial, side),
            Happening::Punched { by, from, to } => {
                transport.counters.punches_arrived +=
                    u64::from(effects::punched(wire, by, from, to));
            }
        }
    }

    /// Delivers an input to a machine.
    fn input(&mut self, id: HostId, input: Input) {
        self.counters.inputs += 1;
        if self.observation.coverage {
            self.coverage.input(&input);
        }
        self.journal.input(id, self.wire.now, &input);
        let checked = self.checkers.input(id, &input, &self.wire.hosts[id].store);
        self.check(id, checked);
        if let Some(machine) = self.machines[id].as_mut() {
            machine.handle_input(input, self.wire.now);
            if self.is_last_word(id) {
                let machine = self.machines[id].take();
                self.die(id, machine);
            }
        }
    }

    /// Counts an input or output of a machine. Returns whether it is the last one.
    fn is_last_word(&mut self, id: HostId) -> bool {
        self.io_count[id] += 1;
        self.kill_at[id].take_if(|kill_at| *kill_at <= self.io_count[id]).is_some()
    }

    fn die(&mut self, id: HostId, machine: Option<M>) {
        self.killed_machines[id] = machine;
        self.kill(id);
    }

    /// Fires a machine's timers.
    pub(super) fn fire(&mut self, id: HostId) {
        let now = self.wire.now;
        self.counters.steps += 1;
        self.counters.timeouts += 1;
        let Some(machine) = self.machines[id].as_mut() else { return };
        let before = machine.poll_timeout();
        self.journal.add(id, now, Entry::Timeout);
        machine.handle_timeout(now);
        let outputs = self.drain(id);
        let after = self.machines[id].as_ref().and_then(M::poll_timeout);
        match before.filter(|before| *before <= now) {
            None => self.counters.spurious_timeouts += 1,
            Some(before) => {
                let checked = self.checkers.fired(id, before, after, outputs);
                self.check(id, checked);
            }
        }
    }

    /// Executes and checks all outputs of a machine. Returns their number.
    pub(super) fn drain(&mut self, id: HostId) -> u64 {
        let Some(mut machine) = self.machines[id].take() else { return 0 };
        let mut outputs = 0;
        let mut answers = 0;
        loop {
            while let Some(output) = machine.poll_output() {
                outputs += 1;
                self.output(id, machine.phase(), output);
                if self.is_last_word(id) {
                    self.die(id, Some(machine));
                    return outputs;
                }
            }
            let Some(input) = self.wire.hosts[id].at_once.pop_front() else { break };
            answers += 1;
            if answers > ANSWERS_AT_ONCE {
                self.fail(&format!(
                    "host {id}: {ANSWERS_AT_ONCE} answers in one drain: a livelock"
                ));
            }
            self.machines[id] = Some(machine);
            self.input(id, input);
            match self.machines[id].take() {
                Some(same) => machine = same,
                None => return outputs,
            }
        }
        let checked = self.checkers.drained(id, &machine, &mut self.wire.rngs.probes);
        self.machines[id] = Some(machine);
        self.check(id, checked);
        self.arm(id);
        outputs
    }

    fn output(&mut self, id: HostId, phase: Option<Phase>, output: Output) {
        self.counters.outputs += 1;
        if self.observation.coverage {
            self.coverage.output(&output);
        }
        self.journal.output(id, self.wire.now, &output);
        let checked = self.checkers.output(id, phase, &output);
        self.check(id, checked);
        if let Output::Event(event) = &output {
            let now = self.wire.now;
            push_bounded(&mut self.events[id], self.observation.log, || (now, event.clone()));
            match event {
                Event::Done { id: request, result } if self.observation.done => {
                    self.done.insert((id, *request), result.clone());
                }
                Event::Done { id: request, result } => {
                    let life = self.wire.hosts[id].life;
                    let (request, result) = (*request, result.clone());
                    self.completed.push_back(Completed {
                        at: now,
                        host: id,
                        life,
                        request,
                        result,
                    });
                }
                Event::Stopped => {
                    self.wire.hosts[id].listening = false;
                    self.transport.shut_down(&mut self.wire, id);
                }
                _ => {}
            }
        }
        if let Output::Dial { addr, .. } = &output {
            let now = self.wire.now;
            push_bounded(&mut self.dials[id], self.observation.log, || (now, *addr));
        }
        effects::perform(&mut self.wire, &mut self.transport, id, output);
    }

    /// Re-arms or clears the timer of a machine.
    pub(super) fn arm(&mut self, id: HostId) {
        let runs = self.machines[id].as_ref().filter(|_| !self.wire.hosts[id].frozen);
        let due = runs.and_then(M::poll_timeout).filter(|due| *due < Instant::FAR_FUTURE);
        let before = std::mem::replace(&mut self.armed[id], due);
        if before != due {
            if let Some(before) = before {
                self.timers.remove(&(before, id));
            }
            self.timers.extend(due.map(|due| (due, id)));
        }
    }
}

/// Adds an entry to a log that keeps the last `limit` entries, and up to as many again.
fn push_bounded<T>(log: &mut Vec<T>, limit: Option<usize>, entry: impl FnOnce() -> T) {
    match limit {
        Some(0) => return,
        Some(limit) if log.len() >= limit.saturating_mul(2) => drop(log.drain(..limit)),
        _ => {}
    }
    log.push(entry());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_log_keeps_the_last_entries() {
        let (mut all, mut some, mut none) = (Vec::new(), Vec::new(), Vec::new());
        for entry in 0..100 {
            push_bounded(&mut all, None, || entry);
            push_bounded(&mut some, Some(7), || entry);
            push_bounded(&mut none, Some(0), || entry);
            assert!(some.len() <= 14 && some.len() >= 7.min(entry + 1));
            assert_eq!(some.last(), Some(&entry));
        }
        assert_eq!((all.len(), none.len()), (100, 0));
    }
}
