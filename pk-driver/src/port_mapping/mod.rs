//! Port mapping: asks the router of the local network to pass packets on to this node.
//!
//! - [`machine`]: what is done when, without IO;
//! - [`worker`]: does it, on a thread per task, with pk-portmap (PCP, NAT-PMP) and `igd` (UPnP-IGD,
//!   igd-next).
//!
//! docs/DESIGN.md, Port mapping.

pub(crate) mod failure;
mod gateway;
#[cfg_attr(not(feature = "igd"), path = "no_igd.rs")]
mod igd;
pub(crate) mod lease;
mod machine;
mod worker;

use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use pk_proto::Instant;
use tokio::sync::oneshot;

use self::failure::PortMappingFailure;
use self::gateway::Place;
use self::lease::{PortMapping, PortMappingEvent};
use self::machine::{Machine, Outcome, Task};
use self::worker::Work;
use crate::cx::{Cx, WakeSource};
use crate::system::blocking;

/// The port mapping of a node.
pub(crate) struct PortMapper {
    /// `None` if it is off.
    machine: Option<Machine>,
    /// Address of the node's socket.
    bound: SocketAddr,
    /// Where the node was at the last look.
    place: Result<Place, PortMappingFailure>,
    waker: Waker,
    running: Option<Running>,
    /// The deadline that is set.
    deadline: Option<Instant>,
    /// The mapping that the core knows.
    advertised: Option<SocketAddr>,
}

/// A task in progress.
struct Running {
    outcome: oneshot::Receiver<Outcome>,
    cancelled: Arc<AtomicBool>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

impl PortMapper {
    /// Starts to map the port, if the settings say so.
    pub(crate) fn new(cx: &mut Cx, bound: SocketAddr) -> Self {
        let is_on = cx.config.port_mapping.enabled;
        let mut mapper = Self {
            machine: is_on.then(|| Machine::new(cx.now)),
            bound,
            place: if is_on { gateway::look(bound) } else { Err(PortMappingFailure::NoAddress) },
            waker: cx.ready.waker(WakeSource::PortMapping),
            running: None,
            deadline: None,
            advertised: None,
        };
        mapper.proceed(cx);
        mapper
    }

    /// Takes the outcome of a task.
    pub(crate) fn poll(&mut self, cx: &mut Cx) {
        let Some(running) = &mut self.running else { return };
        let mut context = Context::from_waker(&self.waker);
        let Poll::Ready(outcome) = Pin::new(&mut running.outcome).poll(&mut context) else {
            return;
        };
        self.running = None;
        let panicked =
            |_| Outcome::Failed(PortMappingFailure::System("the task failed".to_owned()));
        let outcome = outcome.unwrap_or_else(panicked);
        self.update(cx, |machine, now| machine.task_ended(now, outcome));
    }

    /// The deadline has passed.
    pub(crate) fn timed_out(&mut self, cx: &mut Cx) {
        self.deadline = None;
        self.update(cx, Machine::handle_timeout);
    }

    /// The addresses of this machine may have changed; the socket is bound to this one now.
    pub(crate) fn addresses_changed(&mut self, cx: &mut Cx, bound: SocketAddr) {
        if self.machine.is_none() {
            return;
        }
        self.bound = bound;
        let place = gateway::look(bound);
        if place != self.place {
            self.place = place;
            self.update(cx, Machine::addresses_changed);
        }
    }

    /// Withdraws the mapping. The stop of the node waits for it, a second at most.
    pub(crate) fn stop(&mut self, cx: &mut Cx) {
        self.update(cx, Machine::stop);
    }

    /// Returns the mapping that exists.
    pub(crate) fn mapping(&self) -> Option<PortMapping> {
        self.machine.as_ref()?.mapping()
    }

    /// Returns whether nothing is left to be withdrawn.
    pub(crate) fn is_over(&self) -> bool {
        self.machine.as_ref().is_none_or(Machine::is_over)
    }

    /// Returns what happened, in order.
    pub(crate) fn poll_event(&mut self, cx: &mut Cx) -> Option<PortMappingEvent> {
        let event = self.machine.as_mut()?.poll_event()?;
        count(cx, &event);
        log(&event);
        Some(event)
    }

    fn update(&mut self, cx: &mut Cx, change: impl FnOnce(&mut Machine, Instant)) {
        if let Some(machine) = &mut self.machine {
            change(machine, cx.now);
            self.proceed(cx);
        }
    }

    /// Starts the next task, sets the deadline, and informs the core.
    fn proceed(&mut self, cx: &mut Cx) {
        let Some(machine) = &mut self.machine else { return };
        if let Some(task) = machine.take_task() {
            self.running = self.begin(cx, task);
        }
        let Some(machine) = &mut self.machine else { return };
        let deadline = machine.poll_timeout();
        if deadline != self.deadline {
            if let Some(before) = self.deadline {
                cx.deadlines.cancel(before, WakeSource::PortMapping);
            }
            if let Some(at) = deadline {
                cx.deadlines.set(at, WakeSource::PortMapping);
            }
            self.deadline = deadline;
        }
        let global = machine.mapping().filter(|mapping| mapping.is_global);
        let external = global.map(|mapping| mapping.external);
        if external != self.advertised {
            self.advertised = external;
            cx.node.with(|node| node.set_external(cx.now, external));
        }
        if machine.is_over() {
            self.running = None;
        }
    }

    /// Starts a task in place of the one in progress.
    fn begin(&self, cx: &Cx, task: Task) -> Option<Running> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let work = Work {
            task,
            bound: self.bound,
            lifetime: cx.config.port_mapping.lifetime,
            cancelled: Arc::clone(&cancelled),
        };
        // The waker is registered in the next turn.
        self.waker.wake_by_ref();
        match blocking::spawn("pk-port-mapping", || work.run()) {
            Ok(outcome) => Some(Running { outcome, cancelled }),
            Err(error) => {
                // The machine gives the task up after its limit.
                tracing::warn!(%error, "a thread for the port mapping could not be spawned");
                None
            }
        }
    }
}

fn count(cx: &mut Cx, event: &PortMappingEvent) {
    let metrics = &mut cx.metrics;
    let refused = |why: &PortMappingFailure| matches!(why, PortMappingFailure::Refused { .. });
    match event {
        PortMappingEvent::Mapped(_) => metrics.port_mappings += 1,
        PortMappingEvent::Renewed { restarted, .. } => {
            metrics.port_mapping_renewals += 1;
            metrics.port_mapping_restarts += u64::from(*restarted);
        }
        PortMappingEvent::RenewalFailed { why, .. } => {
            metrics.port_mapping_renewals_failed += 1;
            metrics.port_mapping_refusals += u64::from(refused(why));
        }
        PortMappingEvent::Lost(_) => metrics.port_mappings_lost += 1,
        PortMappingEvent::Failed { causes, .. } => {
            metrics.port_mapping_failures += 1;
            metrics.port_mapping_refusals +=
                causes.iter().filter(|(_, why)| refused(why)).count() as u64;
        }
        PortMappingEvent::Withdrawn(_) => metrics.port_mappings_withdrawn += 1,
        PortMappingEvent::WithdrawalFailed { why, .. } => {
            metrics.port_mapping_refusals += u64::from(refused(why));
        }
    }
}

fn log(event: &PortMappingEvent) {
    match event {
        PortMappingEvent::Mapped(PortMapping { protocol, external, lifetime, is_global: true }) => {
            tracing::info!(%protocol, %external, ?lifetime, "the port of the node is mapped");
        }
        PortMappingEvent::Mapped(PortMapping { protocol, external, .. }) => tracing::warn!(
            %protocol, %external,
            "the port of the node is mapped to an address that is not public: the router is itself behind a NAT"
        ),
        PortMappingEvent::Renewed { mapping, restarted } => {
            tracing::debug!(external = %mapping.external, restarted, "the port mapping is renewed");
        }
        PortMappingEvent::RenewalFailed { mapping, why } => {
            tracing::warn!(external = %mapping.external, %why, "the port mapping is not renewed");
        }
        PortMappingEvent::Lost(mapping) => {
            tracing::warn!(external = %mapping.external, "the port mapping has ended");
        }
        PortMappingEvent::Failed { causes, retry_in } => {
            for (protocol, why) in causes {
                tracing::info!(%protocol, %why, ?retry_in, "the port of the node is not mapped");
            }
        }
        PortMappingEvent::Withdrawn(mapping) => {
            tracing::info!(external = %mapping.external, "the port mapping is withdrawn");
        }
        PortMappingEvent::WithdrawalFailed { mapping, why } => {
            tracing::warn!(external = %mapping.external, %why, "the port mapping is not withdrawn");
        }
    }
}

impl fmt::Debug for PortMapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortMapper").field("machine", &self.machine).finish_non_exhaustive()
    }
}
