//! The pump: one task per node that connects the core, the network, the store and the embedder.
//!
//! A turn (one `poll`):
//! 1. serve the sources that woke up, in order, each up to its own budget and all up to
//!    [`SOURCES`]: network, calls of the embedder, store, resolved names. Each input is passed to
//!    the core at once, and all outputs are executed after it; nothing of that waits;
//! 2. only then read the clock *again*, and fire due timers, so that no answer that has already
//!    arrived times out;
//! 3. publish the status;
//! 4. set or clear the timer, here and nowhere else;
//! 5. if the budget is used up, wake itself; otherwise sleep.

pub(crate) mod command;
pub(crate) mod core;
pub(crate) mod handle;
pub(crate) mod handle_registry;
pub(crate) mod recording;
pub(crate) mod resolver;
pub(crate) mod spawn;
pub(crate) mod store_backend;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use pk_proto::cert::Certificate;
use pk_proto::{EffectId, Event, Identity, Input, Instant, Output};
use quinn::Runtime as _;
use tokio::sync::mpsc;

use crate::cx::{Cx, WakeSource};
use crate::mdns::Mdns;
use crate::net::Net;
use crate::pump::command::{CertificateCheck, Command, SharedStatus};
use crate::pump::core::Core;
use crate::pump::handle_registry::HandleRegistry;
use crate::pump::recording::{INTERVAL, Recording};
use crate::pump::resolver::Resolver;
use crate::pump::store_backend::StoreBackend;
use crate::system::runtime::{BoxFuture, Runtime};
use crate::system::tasks::Tasks;
use pk_host::Clock;
use pk_host::ClockWatch;

/// Sources served in one turn. Each has its own limit, of at most 16 reads of 16 KiB.
const SOURCES: usize = 128;

/// Capacity of the input queue that is kept while the queue is empty.
const INPUTS_KEPT: usize = 64;

/// Calls of the embedder that are served before other sources.
const COMMANDS: usize = 32;

/// The components of a pump.
pub(crate) struct Parts<C, R> {
    pub(crate) core: C,
    pub(crate) cx: Cx,
    pub(crate) clock: Clock,
    pub(crate) net: Net,
    pub(crate) registry: HandleRegistry,
    pub(crate) store: StoreBackend,
    pub(crate) resolver: Resolver<R>,
    pub(crate) mdns: Mdns,
    pub(crate) commands: mpsc::Receiver<Command<C>>,
    pub(crate) tasks: Tasks,
    pub(crate) status: Arc<SharedStatus>,
    pub(crate) certificate_check: Option<CertificateCheck>,
    pub(crate) recording: Option<Recording>,
}

/// The pump of one node.
pub(crate) struct Pump<C, R> {
    parts: Parts<C, R>,
    commands_waker: Waker,
    timer: Option<Armed>,
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
    Draining {
        drained: BoxFuture<()>,
        waker: Waker,
    },
    Over,
}

impl<C: Core, R: Runtime> Pump<C, R> {
    pub(crate) fn new(mut parts: Parts<C, R>) -> Self {
        let commands_waker = parts.cx.source(WakeSource::Commands);
        let listening = parts.net.listening();
        parts.cx.input(listening);
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
            phase: Phase::Running,
            _clock_watch: clock_watch,
        }
    }

    fn turn(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.parts.cx.metrics.turns += 1;
        self.parts.cx.ready.awake();
        let mut budget = SOURCES;
        while budget > 0
            && let Some(key) = self.parts.cx.ready.pop()
        {
            budget -= 1;
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
            self.parts.tasks.abort();
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
        let Parts { core, cx, net, registry, store, resolver, mdns, .. } = &mut self.parts;
        match key {
            WakeSource::Endpoint => {
                if !net.poll_endpoint(cx) && matches!(self.phase, Phase::Running) {
                    tracing::error!("the socket of the node has failed; the node stops");
                    core.stop(cx.now);
                }
            }
            WakeSource::Handshake(id) => net.poll_handshake(cx, id),
            WakeSource::Dial(conn) => net.poll_dial(cx, conn),
            WakeSource::Connection(conn) => net.poll_connection(cx, conn),
            WakeSource::Stream(stream) => net.poll_stream(cx, stream),
            WakeSource::Detached(stream) => registry.poll_detached(cx, stream),
            WakeSource::Request(id) => registry.poll_request(cx, core, id),
            WakeSource::Lease(id) => registry.poll_lease(cx, core, id),
            WakeSource::Acceptor(id) => registry.poll_acceptor(cx, core, id),
            WakeSource::Resolve(id) => resolver.poll(cx, id),
            WakeSource::Store => store.poll(cx),
            WakeSource::Mdns => mdns.poll(cx),
            WakeSource::Commands => self.commands(),
            WakeSource::Drained => self.poll_drained(),
            // These have only a deadline.
            WakeSource::Certificate
            | WakeSource::Recording
            | WakeSource::Browse(_)
            | WakeSource::Liveness(_) => {}
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
                    let Parts { core, cx, registry, .. } = &mut self.parts;
                    command(registry, cx, core);
                }
                // All handles are dropped: nothing can use the node or wait for it.
                Poll::Ready(None) => return self.parts.core.stop(self.parts.cx.now),
            }
        }
        self.commands_waker.wake_by_ref();
    }

    /// Delivers all queued inputs to the core and executes all its outputs until both queues are
    /// empty.
    fn settle(&mut self) {
        loop {
            let Parts { core, cx, registry, store, .. } = &mut self.parts;
            while let Some(input) = cx.inputs.pop_front() {
                core.handle_input(input, cx.now);
            }
            while let Some(detached) = cx.detached.pop_front() {
                registry.detached(cx, detached);
            }
            while let Some(job) = cx.jobs.pop_front() {
                store.begin(cx, job);
            }
            match core.poll_output() {
                Some(output) => self.execute(output),
                None if cx.inputs.is_empty() => {
                    // Release the memory of a burst; the queue is usually short.
                    if cx.inputs.capacity() > INPUTS_KEPT {
                        cx.inputs.shrink_to(INPUTS_KEPT);
                    }
                    return;
                }
                None => {}
            }
        }
    }

    /// Executes one output. Never blocks.
    fn execute(&mut self, output: Output) {
        let Parts { cx, net, store, resolver, mdns, .. } = &mut self.parts;
        match output {
            Output::Dial { conn, addr, expect, deadline } => {
                net.dial(cx, conn, addr, expect, deadline);
            }
            Output::CancelDial { conn } => net.cancel_dial(cx, conn),
            Output::CloseConnection { conn, code, reason } => {
                net.close_connection(conn, code, &reason);
            }
            Output::OpenStream { conn, stream } => net.open_stream(cx, conn, stream),
            Output::SendStream { stream, bytes, fin } => net.send_stream(stream, bytes, fin),
            Output::ResetStream { stream, code } => net.reset_stream(stream, code),
            Output::StopStream { stream, code } => net.stop_stream(stream, code),
            Output::ReadCredit { stream, bytes } => net.credit(stream, bytes),
            Output::DetachStream { stream, node, protocol, opener, unread, .. } => {
                net.detach(cx, stream, node, protocol, opener, unread);
            }
            Output::Sign { id, key, bytes } => {
                cx.metrics.signatures += 1;
                let result = cx.keys.sign(&key, &bytes);
                cx.input(Input::Signed { id, result });
            }
            Output::Persist { id, ops, durable } => {
                cx.metrics.writes_begun += 1;
                store.apply(cx, id, ops, durable);
            }
            Output::Load { id, range, max_bytes } => store.range(cx, id, range, max_bytes),
            Output::Resolve { id, name, port } => resolver.begin(cx, id, &name, port),
            Output::Browse { id, node, deadline } => mdns.browse(cx, id, node, deadline),
            Output::CancelBrowse { id } => mdns.end_browse(cx, id),
            Output::Advertise { node, port } => mdns.advertise(cx, node, port),
            Output::ReplaceIdentity { id, identity } => self.replace_identity(id, &identity),
            Output::Punch { addr, bytes } => net.punch(cx, addr, &bytes),
            Output::Event(event) => {
                // The identity is updated before the event is sent.
                if let Event::IdentityRenewed { new, .. } = event {
                    self.parts.status.read().own_id = new;
                }
                let Parts { core, cx, registry, .. } = &mut self.parts;
                let stopped = matches!(event, Event::Stopped);
                registry.event(cx, core, event);
                if stopped {
                    self.drain();
                }
            }
        }
    }

    fn replace_identity(&mut self, id: EffectId, identity: &Identity) {
        let Parts { cx, net, .. } = &mut self.parts;
        let mut replace = || {
            let newest = identity.chain.first().ok_or("an identity without a certificate")?;
            let newest = Certificate::parse(newest).map_err(|fault| fault.to_string())?;
            let key = cx.keys.get(&newest.node_id());
            let key = key.ok_or_else(|| format!("no private key of {}", newest.node_id()))?;
            net.replace_identity(cx, identity, key);
            Ok(())
        };
        let result = replace();
        cx.input(Input::IdentityReplaced { id, result });
    }

    /// Fires due timers.
    fn expire(&mut self) {
        let now = self.parts.clock.now();
        self.parts.cx.now = now;
        if let Some(unix) = self.parts.clock.drift(now) {
            self.parts.cx.metrics.clock_corrections += 1;
            self.parts.cx.input(Input::WallClock(unix));
            // The certificate may be expired or not valid yet.
            self.parts.cx.deadlines.set(now, WakeSource::Certificate);
        }
        while let Some(key) = self.parts.cx.deadlines.pop_due(now) {
            let Parts { cx, net, resolver, mdns, .. } = &mut self.parts;
            match key {
                WakeSource::Dial(conn) => net.dial_due(cx, conn),
                WakeSource::Handshake(id) => net.handshake_timed_out(cx, id),
                WakeSource::Liveness(conn) => net.look_due(cx, conn),
                WakeSource::Resolve(id) => resolver.timed_out(cx, id),
                WakeSource::Browse(id) => mdns.end_browse(cx, id),
                WakeSource::Mdns => mdns.resume(cx),
                WakeSource::Drained => self.phase = Phase::Over,
                WakeSource::Certificate => self.look_after_certificate(),
                WakeSource::Recording => self.record(),
                // No other source has a deadline.
                _ => {}
            }
        }
        self.settle();
        if self.parts.core.poll_timeout().is_some_and(|at| at <= now) {
            self.parts.core.handle_timeout(now);
            self.settle();
        }
    }

    fn look_after_certificate(&mut self) {
        let Parts { cx, certificate_check, .. } = &mut self.parts;
        if let Some(certificate_check) = certificate_check {
            let wait = certificate_check();
            cx.deadlines.set(cx.now + wait, WakeSource::Certificate);
        }
    }

    /// Writes what was recorded since the last call.
    fn record(&mut self) {
        let Parts { core, cx, recording, .. } = &mut self.parts;
        let Some(under_way) = recording else { return };
        if under_way.take(core.take_recording()) {
            cx.deadlines.set(cx.now + INTERVAL, WakeSource::Recording);
        } else {
            *recording = None;
        }
    }

    fn publish(&mut self) {
        let Parts { core, cx, net, registry, status, .. } = &mut self.parts;
        net.count(cx);
        registry.count(cx);
        let mut view = status.read();
        view.own_id = core.own_id();
        view.metrics = cx.metrics;
    }

    /// Sets the timer to the earliest deadline, or clears it.
    fn arm(&mut self, context: &mut Context<'_>) {
        let Parts { core, cx, tasks, .. } = &self.parts;
        let next = [core.poll_timeout(), cx.deadlines.next()].into_iter().flatten().min();
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
        let Parts { cx, net, mdns, tasks, .. } = &mut self.parts;
        mdns.close(tasks);
        let waker = cx.source(WakeSource::Drained);
        cx.deadlines.set(cx.now + cx.config.drain_timeout, WakeSource::Drained);
        self.phase = Phase::Draining { drained: net.close(), waker };
    }

    fn poll_drained(&mut self) {
        if let Phase::Draining { drained, waker } = &mut self.phase
            && drained.as_mut().poll(&mut Context::from_waker(waker)).is_ready()
        {
            self.phase = Phase::Over;
        }
    }
}

impl<C: Core, R: Runtime> Future for Pump<C, R> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.get_mut().turn(context)
    }
}

impl<C, R> Drop for Pump<C, R> {
    fn drop(&mut self) {
        // Also if the runtime drops the pump early.
        self.parts.cx.ready.close();
    }
}

impl<C, R> fmt::Debug for Pump<C, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pump")
            .field("cx", &self.parts.cx)
            .field("registry", &self.parts.registry)
            .finish_non_exhaustive()
    }
}
