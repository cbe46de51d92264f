//! Construction of a pump.

use std::sync::Arc;
use std::time::Instant as StdInstant;

use pk_quic::{Node, NodeError as CoreError, NodeSetup, TransportError};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::config::{DriverConfig, DriverConfigError};
use crate::cx::ready::ReadyQueue;
use crate::cx::{Cx, WakeSource};
use crate::error::StartError;
use crate::mdns::Mdns;
use crate::net::interfaces::Interfaces;
use crate::net::socket::{Bound, Socket};
use crate::port_mapping::PortMapper;
use crate::pump::command::{CertificateCheck, SharedStatus};
use crate::pump::handle::{EventSource, Handle, WeakHandle};
use crate::pump::handle_registry::HandleRegistry;
use crate::pump::recording::{Record, Recording};
use crate::pump::resolver::Resolver;
use crate::pump::store_backend::StoreBackend;
use crate::pump::{Parts, Pump};
use crate::stream::shared::SharedNode;
use crate::system::runtime::Runtime;
use crate::system::tasks::Tasks;
use pk_host::Clock;
use pk_host::HostState;
use pk_host::Store;
use std::net::SocketAddr;

/// The parts of a pump. All of them have been validated.
pub(crate) struct PumpConfig {
    pub(crate) host: HostState,
    pub(crate) core: pk_proto::Config,
    pub(crate) listen: SocketAddr,
    pub(crate) driver: DriverConfig,
    pub(crate) store: Box<dyn Store>,
    pub(crate) record: Option<Record>,
}

/// Starts a pump. The receiver resolves when its core is ready, or fails when the pump has ended.
///
/// On an error nothing is left running.
pub(crate) fn spawn_pump<R: Runtime>(
    runtime: R,
    config: PumpConfig,
    certificate_check: impl FnOnce(WeakHandle) -> Option<CertificateCheck>,
) -> Result<(Handle, oneshot::Receiver<()>), StartError> {
    let PumpConfig { host, core, listen, driver, store, record } = config;
    let clock = Clock::new();
    let now = clock.now();
    let tasks = Tasks::new(runtime.quinn());
    let bound =
        Bound::new(listen, &tasks).map_err(|source| StartError::Bind { addr: listen, source })?;
    let mut setup = NodeSetup::new(host, bound.addr(), StdInstant::now(), now, clock.unix());
    setup.config = core;
    setup.transport = driver.transport.clone();
    setup.transport.mtu_discovery &= !bound.may_fragment();
    setup.record = record.as_ref().map(Record::buffer);
    let node = Node::new(setup).map_err(start_error)?;
    let (own_id, addr) = (node.manager().own_id(), node.transport().bound());

    let (commands, todo) = mpsc::channel(driver.command_limit);
    let (events, first) = broadcast::channel(driver.event_limit);
    let (starter, ready) = oneshot::channel();
    let sources = ReadyQueue::new();
    let node = SharedNode::new(node, clock.clone(), sources.waker(WakeSource::Streams));
    let mut cx = Cx::new(driver, node, sources, now);
    let recording = match record {
        Some(Record::File { path, limit }) => match Recording::begin(&path, limit, &tasks) {
            Ok(recording) => Some(recording),
            Err(source) => return Err(StartError::Record { path, source }),
        },
        Some(Record::Memory(_)) | None => None,
    };
    // Last, so that a failure leaves no thread that still closes the store.
    let store = StoreBackend::new(&cx, store, &tasks).map_err(StartError::Thread)?;
    let status = SharedStatus::new(own_id, addr);
    let source = EventSource::new(events.downgrade(), first);
    let handle = Handle::new(commands, source, Arc::clone(&status), tasks.watch());
    let port_mapper = PortMapper::new(&mut cx, addr);
    let pump = Pump::new(Parts {
        interfaces: Interfaces::new(&cx, &runtime, bound.addr()),
        socket: Socket::new(&cx, bound),
        cx,
        clock,
        registry: HandleRegistry::new(events, starter),
        store,
        resolver: Resolver::new(runtime),
        mdns: Mdns::new(addr, tasks.clone()),
        port_mapper,
        commands: todo,
        tasks: tasks.clone(),
        status,
        certificate_check: certificate_check(handle.downgrade()),
        recording,
    });
    tasks.spawn(Box::pin(pump));
    Ok((handle, ready))
}

fn start_error(error: CoreError) -> StartError {
    match error {
        CoreError::Core(error) => StartError::Core(error),
        CoreError::Transport(TransportError::Settings(error)) => {
            StartError::Driver(DriverConfigError::Transport(error))
        }
        error => StartError::Tls(error.to_string()),
    }
}
