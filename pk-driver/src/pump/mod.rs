//! The pump: one task per node that connects the core, the network, the store and the embedder.
//!
//! A turn (one `poll`):
//! 1. serve the sources that woke up, in order, each up to its own budget and all up to [`BUDGET`]:
//!    network, calls of the embedder, store, resolved names. Each input is passed to the state
//!    machine at once, and everything that it has to do and to send is done after it; nothing of
//!    that waits;
//! 2. only then read the clock *again*, and fire due timers, so that no answer that has already
//!    arrived times out;
//! 3. publish the status;
//! 4. set or clear the timer, here and nowhere else;
//! 5. if the budget is used up, wake itself; otherwise sleep.

pub(crate) mod command;
pub(crate) mod event;
pub(crate) mod handle;
pub(crate) mod handle_registry;
pub(crate) mod recording;
pub(crate) mod resolver;
pub(crate) mod spawn;
pub(crate) mod store_backend;

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use pk_proto::{Event, Instant, NodeManager};
use pk_quic::{Effect, Poll as NodePoll, Response};
use tokio::sync::mpsc;

use crate::cx::{Cx, WakeSource};
use crate::job::StoreJob;
use crate::mdns::Mdns;
use crate::net::interfaces::Interfaces;
use crate::net::socket::Socket;
use crate::port_mapping::PortMapper;
use crate::pump::command::{CertificateCheck, Command, SharedStatus};
use crate::pump::handle_registry::HandleRegistry;
use crate::pump::recording::{INTERVAL, Recording};
use crate::pump::resolver::Resolver;
use crate::pump::store_backend::StoreBackend;
use crate::system::runtime::Runtime;
use crate::system::tasks::Tasks;
use pk_host::Clock;
use pk_host::ClockWatch;

/// Sources served in one turn; a read of the socket counts as [`READ_COST`] of them.
const BUDGET: usize = 128;
const READ_COST: usize = 16;

/// Capacity of the queue of reports that is kept while the queue is empty.
const POLLS_KEPT: usize = 64;

/// Calls of the embedder that are served before other sources.
const COMMANDS: usize = 32;

/// The components of a pump.
pub(crate) struct Parts<R> {
    pub(crate) cx: Cx,
    pub(crate) clock: Clock,
    pub(crate) socket: Socket,
    pub(crate) interfaces: Interfaces,
    pub(crate) registry: HandleRegistry,
    pub(crate) store: StoreBackend,
    pub(crate) resolver: Resolver<R>,
    pub(crate) mdns: Mdns,
    pub(crate) port_mapper: PortMapper,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) tasks: Tasks,
    pub(crate) status: Arc<SharedStatus>,
    pub(crate) certificate_check: Option<CertificateCheck>,
    pub(crate) recording: Option<Recording>,
}

/// The pump of one node.
pub(crate) struct Pump<R> {
    parts: Parts<R>,
    commands_waker: Waker,
    timer: Option<Armed>,
    /// What the state machine has reported and the pump has not executed yet.
    polls: VecDeque<NodePoll>,
    phase: Phase,
    /// Wakes the pump when the wall clock is set. If its thread could not be spawned, that is
    /// noticed at the next turn.
    _clock_watch: Option<ClockWatch>,
}

/// The only timer.
struct Armed {
    at: Instant,
    timer: Pin<Box<dyn quinn::AsyncTimer>>,
}

enum Phase {
    Running,
    /// The core has stopped; connections are being closed.
    Draining,
    /// They are closed; the port mapping is being withdrawn.
    Withdrawing,
    Over,
}

impl<R: Runtime> Pump<R> {
    pub(crate) fn new(mut parts: Parts<R>) -> Self {
        let commands_waker = parts.cx.source(WakeSource::Commands);
        // What the state machine reports of its start.
        parts.cx.source(WakeSource::Streams);
        parts.cx.deadlines.set(parts.cx.now, WakeSource::Certificate);
        if parts.recording.is_some() {
            parts.cx.deadlines.set(parts.cx.now + INTERVAL, WakeSource::Recording);
        }
        let clock_watch = ClockWatch::new(parts.cx.source(WakeSource::Clock))
            .inspect_err(
                |error| tracing::warn!(%error, "changes of the wall clock will be noticed late"),
            )
            .ok();
        Self {
            parts,
            commands_waker,
            timer: None,
            polls: VecDeque::new(),
            phase: Phase::Running,
            _clock_watch: clock_watch,
        }
    }

    fn turn(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.parts.cx.metrics.turns += 1;
        self.parts.cx.ready.awake();
        let mut budget = BUDGET;
        while budget > 0
            && let Some(key) = self.parts.cx.ready.pop()
        {
            budget = budget.saturating_sub(if key == WakeSource::Socket { READ_COST } else { 1 });
            self.parts.cx.metrics.served += 1;
            self.parts.cx.now = self.parts.clock.now();
            self.serve(key);
            self.settle();
        }
        self.expire();
        self.publish();
        if matches!(self.phase, Phase::Over) {
            self.record();
            self.parts.cx.ready.close();
            self.parts.cx.node.end();
            return Poll::Ready(());
        }
        self.arm(context);
        if !self.parts.cx.ready.sleep(context.waker()) {
            self.parts.cx.metrics.budget_exhausted += u64::from(budget == 0);
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Serves one source.
    fn serve(&mut self, key: WakeSource) {
        let Parts { cx, socket, interfaces, registry, store, resolver, mdns, port_mapper, .. } =
            &mut self.parts;
        match key {
            WakeSource::Socket => {
                if let Err(error) = socket.receive(cx) {
                    tracing::error!(%error, "the socket of the node has failed; the node stops");
                    cx.core(NodeManager::stop);
                }
            }
            WakeSource::Request(id) => registry.poll_request(cx, id),
            WakeSource::Lease(id) => registry.poll_lease(cx, id),
            WakeSource::Acceptor(id) => registry.poll_acceptor(cx, id),
            WakeSource::Resolve(id) => resolver.poll(cx, id),
            WakeSource::Store => store.poll(cx),
            WakeSource::Mdns => mdns.poll(cx),
            WakeSource::MdnsGroup => mdns.poll_group(cx),
            WakeSource::Interfaces => interfaces.poll(cx),
            WakeSource::PortMapping => port_mapper.poll(cx),
            WakeSource::Commands => self.commands(),
            // What follows is done after every source.
            WakeSource::Streams | WakeSource::Writable => {}
            // These have only a deadline.
            WakeSource::Certificate
            | WakeSource::Recording
            | WakeSource::Browse(_)
            | WakeSource::Drained => {}
            // Every turn compares the clocks.
            WakeSource::Clock => {}
        }
    }

    fn commands(&mut self) {
        for _ in 0..COMMANDS {
            let mut context = Context::from_waker(&self.commands_waker);
            match self.parts.commands.poll_recv(&mut context) {
                Poll::Pending => return,
                Poll::Ready(Some(command)) => {
                    let Parts { cx, registry, .. } = &mut self.parts;
                    command(registry, cx);
                }
                // All handles are dropped: nothing can use the node or wait for it.
                Poll::Ready(None) => return self.parts.cx.core(NodeManager::stop),
            }
        }
        self.commands_waker.wake_by_ref();
    }

    /// Delivers all completions to the state machine, executes everything that it reports, and
    /// sends what it has to send, until there is nothing.
    fn settle(&mut self) {
        loop {
            let Parts { cx, registry, store, socket, port_mapper, .. } = &mut self.parts;
            while let Some(event) = port_mapper.poll_event(cx) {
                registry.port_mapping(event);
            }
            while let Some(answer) = cx.answers.pop_front() {
                cx.node.with(|node| node.answer(cx.now, answer));
            }
            while let Some(job) = cx.jobs.pop_front() {
                store.begin(cx, job);
            }
            cx.node.take_polls(&mut self.polls);
            if self.polls.is_empty() && cx.answers.is_empty() && !socket.transmit(cx) {
                break;
            }
            while let Some(poll) = self.polls.pop_front() {
                self.execute(poll);
            }
        }
        // Release the memory of a burst; the queue is usually short.
        if self.polls.capacity() > POLLS_KEPT {
            self.polls.shrink_to(POLLS_KEPT);
        }
    }

    /// Executes one report of the state machine. Never blocks.
    fn execute(&mut self, poll: NodePoll) {
        let Parts { cx, registry, status, .. } = &mut self.parts;
        match poll {
            NodePoll::Effect(effect) => self.effect(effect),
            NodePoll::Opened(opened) => registry.opened(cx, opened),
            NodePoll::Event(event) => {
                // The identity is updated before the event is sent.
                if let Event::IdentityRenewed { new, .. } = event {
                    status.read().own_id = new;
                }
                let stopped = matches!(event, Event::Stopped);
                registry.event(cx, event);
                if stopped {
                    self.drain();
                }
            }
            // The streams were informed.
            NodePoll::Readable(_)
            | NodePoll::Writable(_)
            | NodePoll::Delivered { .. }
            | NodePoll::Lost { .. } => {}
        }
    }

    /// Executes one effect. Never blocks.
    fn effect(&mut self, effect: Effect) {
        let Parts { cx, store, resolver, mdns, .. } = &mut self.parts;
        match effect {
            Effect::Sign { id, key, .. } => {
                let result = Err(format!("no private key of {key}"));
                cx.answer(Response::Signed { id, result });
            }
            Effect::Persist { .. } => {
                cx.metrics.writes_begun += 1;
                store.begin(cx, StoreJob::Effect(effect));
            }
            Effect::Load { .. } => store.begin(cx, StoreJob::Effect(effect)),
            Effect::Resolve { id, name, port } => resolver.begin(cx, id, &name, port),
            Effect::Browse { id, node, deadline } => mdns.browse(cx, id, node, deadline),
            Effect::CancelBrowse { id } => mdns.end_browse(cx, id),
            Effect::Advertise { node, port } => mdns.advertise(cx, node, port),
        }
    }

    /// Fires due timers.
    fn expire(&mut self) {
        let now = self.parts.clock.now();
        self.parts.cx.now = now;
        if let Some(unix) = self.parts.clock.drift(now) {
            let cx = &mut self.parts.cx;
            cx.metrics.clock_corrections += 1;
            cx.node.with(|node| node.set_wall_clock(now, unix));
            // The certificate may be expired or not valid yet.
            cx.deadlines.set(now, WakeSource::Certificate);
        }
        while let Some(key) = self.parts.cx.deadlines.pop_due(now) {
            let Parts { cx, resolver, mdns, port_mapper, .. } = &mut self.parts;
            match key {
                WakeSource::Resolve(id) => resolver.timed_out(cx, id),
                WakeSource::Browse(id) => mdns.end_browse(cx, id),
                WakeSource::Mdns => mdns.resume(cx),
                WakeSource::MdnsGroup => mdns.poll_group(cx),
                WakeSource::Drained => self.phase = Phase::Withdrawing,
                WakeSource::PortMapping => port_mapper.timed_out(cx),
                WakeSource::Certificate => self.look_after_certificate(),
                WakeSource::Recording => self.record(),
                WakeSource::Interfaces => self.look_at_addresses(),
                // No other source has a deadline.
                _ => {}
            }
        }
        self.settle();
        let is_due = self.parts.cx.node.with(|node| {
            let is_due = node.poll_timeout().is_some_and(|at| at <= now);
            if is_due {
                node.handle_timeout(now);
            }
            is_due
        });
        if is_due {
            self.settle();
        }
        if matches!(self.phase, Phase::Draining) && self.parts.cx.node.with(|node| node.is_over()) {
            self.phase = Phase::Withdrawing;
        }
        if matches!(self.phase, Phase::Withdrawing) && self.parts.port_mapper.is_over() {
            self.phase = Phase::Over;
        }
    }

    fn look_after_certificate(&mut self) {
        let Parts { cx, certificate_check, .. } = &mut self.parts;
        if let Some(certificate_check) = certificate_check {
            let wait = certificate_check();
            cx.deadlines.set(cx.now + wait, WakeSource::Certificate);
        }
    }

    fn look_at_addresses(&mut self) {
        let Parts { cx, socket, interfaces, mdns, port_mapper, tasks, status, .. } =
            &mut self.parts;
        if let Some(addr) = interfaces.look(cx, socket, tasks) {
            mdns.rebound(cx, addr);
            status.read().addrs = vec![addr];
        }
        mdns.addresses_changed(cx);
        port_mapper.addresses_changed(cx, socket.addr());
    }

    /// Writes what was recorded since the last call.
    fn record(&mut self) {
        let Parts { cx, recording, .. } = &mut self.parts;
        let Some(under_way) = recording else { return };
        if under_way.take(cx.core(|core, _| core.take_recording())) {
            cx.deadlines.set(cx.now + INTERVAL, WakeSource::Recording);
        } else {
            *recording = None;
        }
    }

    fn publish(&mut self) {
        let Parts { cx, status, port_mapper, .. } = &mut self.parts;
        let own_id = cx.node.with(|node| {
            cx.metrics.signatures = node.signatures();
            cx.metrics.transport = node.transport().metrics();
            node.manager().own_id()
        });
        let mut view = status.read();
        view.own_id = own_id;
        view.metrics = cx.metrics;
        view.port_mapping = port_mapper.mapping();
    }

    /// Sets the timer to the earliest deadline, or clears it.
    fn arm(&mut self, context: &mut Context<'_>) {
        let Parts { cx, tasks, .. } = &self.parts;
        let of_node = cx.node.with(|node| node.poll_timeout());
        let next = [of_node, cx.deadlines.next()].into_iter().flatten().min();
        let Some(at) = next else {
            self.timer = None;
            return;
        };
        let deadline = || Clock::deadline(at, cx.now, tasks.now());
        let armed = match &mut self.timer {
            Some(armed) => {
                if armed.at != at {
                    armed.timer.as_mut().reset(deadline());
                    armed.at = at;
                }
                armed
            }
            timer @ None => timer.insert(Armed { at, timer: tasks.new_timer(deadline()) }),
        };
        if armed.timer.as_mut().poll(context).is_ready() {
            // Already due, or to be checked again after the longest wait: the next turn decides,
            // with a new timer.
            self.timer = None;
            context.waker().wake_by_ref();
        }
    }

    // -- shutdown

    fn drain(&mut self) {
        let Parts { cx, mdns, port_mapper, tasks, .. } = &mut self.parts;
        mdns.close(cx, tasks);
        port_mapper.stop(cx);
        cx.deadlines.set(cx.now + cx.config.drain_timeout, WakeSource::Drained);
        self.phase = Phase::Draining;
    }
}

impl<R: Runtime> Future for Pump<R> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.get_mut().turn(context)
    }
}

impl<R> Drop for Pump<R> {
    fn drop(&mut self) {
        // Also if the runtime drops the pump early.
        self.parts.cx.ready.close();
        self.parts.cx.node.end();
    }
}

impl<R> fmt::Debug for Pump<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pump")
            .field("cx", &self.parts.cx)
            .field("registry", &self.parts.registry)
            .finish_non_exhaustive()
    }
}
