//! THE pump: one task per node that moves everything between the core, the network, the store and the embedder.
//!
//! A turn (one `poll`):
//! 1. serve what woke up, in order, each source bounded, all of them bounded ([`SOURCES`]): the network, the embedder's
//!    calls, the store, resolved names. Each input goes to the core at once, and each time all outputs are carried out;
//!    none of that waits for anybody;
//! 2. only then look at a *fresh* clock, and fire what is due, so that no answer that is already here times out;
//! 3. publish;
//! 4. re-arm the timer, or clear it, here and nowhere else;
//! 5. if the budget ran out, wake itself; else sleep.

use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use pk_proto::cert::Certificate;
use pk_proto::{EffectId, Event, Identity, Input, Instant, NodeId, Output};
use quinn::Runtime as _;
use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::core::Core;
use crate::cx::{Cx, Key};
use crate::desk::Desk;
use crate::mdns::Mdns;
use crate::metrics::DriverMetrics;
use crate::net::Net;
use crate::recording::{INTERVAL, Recording};
use crate::renewal::Upkeep;
use crate::resolver::Resolver;
use crate::runtime::{BoxFuture, Runtime};
use crate::store_place::StorePlace;
use crate::tasks::Tasks;

/// Sources that one turn serves. Each is bounded itself, by 16 reads of 16 KiB at most.
const SOURCES: usize = 128;

/// Inputs that there is room for as long as there are none.
const INPUTS_KEPT: usize = 64;

/// Calls of the embedder that are served before other sources get their turn.
const COMMANDS: usize = 32;

/// A call of the embedder: runs on the pump's task and must not wait.
pub(crate) type Command<C> = Box<dyn FnOnce(&mut Desk, &mut Cx, &mut C) + Send>;

/// What can be seen without asking the pump.
#[derive(Debug)]
pub(crate) struct Published(Mutex<View>);

#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) own_id: NodeId,
    pub(crate) addrs: Vec<SocketAddr>,
    pub(crate) metrics: DriverMetrics,
}

impl Published {
    pub(crate) fn new(own_id: NodeId, addr: SocketAddr) -> Arc<Self> {
        Arc::new(Self(Mutex::new(View { own_id, addrs: vec![addr], metrics: DriverMetrics::default() })))
    }

    pub(crate) fn view(&self) -> MutexGuard<'_, View> {
        // Only assignments happen under this lock, so that a poisoned one still holds a whole view.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The parts of a pump.
pub(crate) struct Parts<C, R> {
    pub(crate) core: C,
    pub(crate) cx: Cx,
    pub(crate) clock: Clock,
    pub(crate) net: Net,
    pub(crate) desk: Desk,
    pub(crate) store: StorePlace,
    pub(crate) resolver: Resolver<R>,
    pub(crate) mdns: Mdns,
    pub(crate) commands: mpsc::Receiver<Command<C>>,
    pub(crate) tasks: Tasks,
    pub(crate) published: Arc<Published>,
    pub(crate) upkeep: Option<Upkeep>,
    pub(crate) recording: Option<Recording>,
}

/// One node at work.
pub(crate) struct Pump<C, R> {
    parts: Parts<C, R>,
    commands_waker: Waker,
    timer: Option<Armed>,
    phase: Phase,
}

/// The one timer.
struct Armed {
    at: Instant,
    timer: Pin<Box<dyn quinn::AsyncTimer>>,
}

enum Phase {
    Running,
    /// The core has stopped; peers are being told.
    Draining {
        drained: BoxFuture<()>,
        waker: Waker,
    },
    Over,
}

impl<C: Core, R: Runtime> Pump<C, R> {
    pub(crate) fn new(mut parts: Parts<C, R>) -> Self {
        let commands_waker = parts.cx.source(Key::Commands);
        let listening = parts.net.listening();
        parts.cx.input(listening);
        parts.cx.deadlines.set(parts.cx.now, Key::Certificate);
        if parts.recording.is_some() {
            parts.cx.deadlines.set(parts.cx.now + INTERVAL, Key::Recording);
        }
        Self { parts, commands_waker, timer: None, phase: Phase::Running }
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

    /// Polls one source.
    fn serve(&mut self, key: Key) {
        let Parts { core, cx, net, desk, store, resolver, mdns, .. } = &mut self.parts;
        match key {
            Key::Endpoint => {
                if !net.poll_endpoint(cx) && matches!(self.phase, Phase::Running) {
                    tracing::error!("the socket of the node has failed; the node stops");
                    core.stop(cx.now);
                }
            }
            Key::Handshake(id) => net.poll_handshake(cx, id),
            Key::Dial(conn) => net.poll_dial(cx, conn),
            Key::Connection(conn) => net.poll_connection(cx, conn),
            Key::Stream(stream) => net.poll_stream(cx, stream),
            Key::Handed(stream) => desk.poll_handed(cx, stream),
            Key::Request(id) => desk.poll_request(cx, core, id),
            Key::Lease(id) => desk.poll_lease(cx, core, id),
            Key::Acceptor(id) => desk.poll_acceptor(cx, core, id),
            Key::Resolve(id) => resolver.poll(cx, id),
            Key::Store => store.poll(cx),
            Key::Mdns => mdns.poll(cx),
            Key::Commands => self.commands(),
            Key::Drained => self.poll_drained(),
            // These have a deadline and nothing else.
            Key::Certificate | Key::Recording | Key::Browse(_) => {}
        }
    }

    fn commands(&mut self) {
        for _ in 0..COMMANDS {
            let mut context = Context::from_waker(&self.commands_waker);
            match self.parts.commands.poll_recv(&mut context) {
                Poll::Pending => return,
                Poll::Ready(Some(command)) => {
                    let Parts { core, cx, desk, .. } = &mut self.parts;
                    command(desk, cx, core);
                }
                // Every handle is dropped: nobody can use the node any more, or wait for it.
                Poll::Ready(None) => return self.parts.core.stop(self.parts.cx.now),
            }
        }
        self.commands_waker.wake_by_ref();
    }

    /// Brings core and world to an understanding: until the core has been told everything and wants nothing more.
    fn settle(&mut self) {
        loop {
            let Parts { core, cx, desk, store, .. } = &mut self.parts;
            while let Some(input) = cx.inputs.pop_front() {
                core.handle_input(input, cx.now);
            }
            while let Some(handed) = cx.handed.pop_front() {
                desk.handed_over(cx, handed);
            }
            while let Some(job) = cx.jobs.pop_front() {
                store.begin(cx, job);
            }
            match core.poll_output() {
                Some(output) => self.execute(output),
                None if cx.inputs.is_empty() => {
                    // A burst of inputs is no reason to keep room for one.
                    if cx.inputs.capacity() > INPUTS_KEPT {
                        cx.inputs.shrink_to(INPUTS_KEPT);
                    }
                    return;
                }
                None => {}
            }
        }
    }

    /// Carries out one output. Waits for nobody.
    fn execute(&mut self, output: Output) {
        let Parts { cx, net, store, resolver, mdns, .. } = &mut self.parts;
        match output {
            Output::Dial { conn, addr, expect, deadline } => net.dial(cx, conn, addr, expect, deadline),
            Output::CancelDial { conn } => net.cancel_dial(cx, conn),
            Output::CloseConnection { conn, code, reason } => net.close_connection(conn, code, &reason),
            Output::OpenStream { conn, stream } => net.open_stream(cx, conn, stream),
            Output::SendStream { stream, bytes, fin } => net.send_stream(cx, stream, bytes, fin),
            Output::ResetStream { stream, code } => net.reset_stream(cx, stream, code),
            Output::StopStream { stream, code } => net.stop_stream(cx, stream, code),
            Output::ReadCredit { stream, bytes } => net.credit(cx, stream, bytes),
            Output::HandOver { stream, node, protocol, opener, unread, .. } => {
                net.hand_over(cx, stream, node, protocol, opener, unread);
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
                // Whoever is told finds it to be so.
                if let Event::IdentityRenewed { new, .. } = event {
                    self.parts.published.view().own_id = new;
                }
                let Parts { core, cx, desk, .. } = &mut self.parts;
                let stopped = matches!(event, Event::Stopped);
                desk.event(cx, core, event);
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
            let key = key.ok_or_else(|| format!("there is no private key of {}", newest.node_id()))?;
            net.replace_identity(cx, identity, key);
            Ok(())
        };
        let result = replace();
        cx.input(Input::IdentityReplaced { id, result });
    }

    /// Fires what is due.
    fn expire(&mut self) {
        let now = self.parts.clock.now();
        self.parts.cx.now = now;
        if let Some(unix) = self.parts.clock.drift(now) {
            self.parts.cx.metrics.clock_corrections += 1;
            self.parts.cx.input(Input::WallClock(unix));
        }
        while let Some(key) = self.parts.cx.deadlines.pop_due(now) {
            let Parts { cx, net, resolver, mdns, .. } = &mut self.parts;
            match key {
                Key::Dial(conn) => net.dial_due(cx, conn),
                Key::Handshake(id) => net.handshake_timed_out(cx, id),
                Key::Resolve(id) => resolver.timed_out(cx, id),
                Key::Browse(id) => mdns.end_browse(cx, id),
                Key::Mdns => mdns.resume(cx),
                Key::Drained => self.phase = Phase::Over,
                Key::Certificate => self.look_after_certificate(),
                Key::Recording => self.record(),
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
        let Parts { cx, upkeep, .. } = &mut self.parts;
        if let Some(upkeep) = upkeep {
            let wait = upkeep();
            cx.deadlines.set(cx.now + wait, Key::Certificate);
        }
    }

    /// Passes on what was recorded since the last time.
    fn record(&mut self) {
        let Parts { core, cx, recording, .. } = &mut self.parts;
        let Some(under_way) = recording else { return };
        if under_way.take(core.take_recording()) {
            cx.deadlines.set(cx.now + INTERVAL, Key::Recording);
        } else {
            *recording = None;
        }
    }

    fn publish(&mut self) {
        let Parts { core, cx, net, desk, published, .. } = &mut self.parts;
        net.count(cx);
        desk.count(cx);
        let mut view = published.view();
        view.own_id = core.own_id();
        view.metrics = cx.metrics;
    }

    /// Arms the timer for whatever comes first, or clears it.
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
            // Due already, or asked for again after the longest wait: the next turn decides, with a new timer.
            self.timer = None;
            context.waker().wake_by_ref();
        }
    }

    // -- the end

    fn drain(&mut self) {
        let Parts { cx, net, mdns, tasks, .. } = &mut self.parts;
        mdns.close(tasks);
        let waker = cx.source(Key::Drained);
        cx.deadlines.set(cx.now + cx.config.drain_timeout, Key::Drained);
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
        // Also where the runtime drops the pump in the midst of its work.
        self.parts.cx.ready.close();
    }
}

impl<C, R> fmt::Debug for Pump<C, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pump").field("cx", &self.parts.cx).field("desk", &self.parts.desk).finish_non_exhaustive()
    }
}
