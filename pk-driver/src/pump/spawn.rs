//! Construction of a pump.

use std::net::SocketAddr;
use std::sync::Arc;

use pk_proto::{Identity, Instant, UnixMillis};
use quinn::Runtime as _;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::config::DriverConfig;
use crate::cx::Cx;
use crate::error::StartError;
use crate::mdns::Mdns;
use crate::net::Net;
use crate::pump::command::{CertificateCheck, SharedStatus};
use crate::pump::core::Core;
use crate::pump::handle::{EventSource, Handle, WeakHandle};
use crate::pump::handle_registry::HandleRegistry;
use crate::pump::recording::{Record, Recording};
use crate::pump::resolver::Resolver;
use crate::pump::store_backend::StoreBackend;
use crate::pump::{Parts, Pump};
use crate::system::runtime::Runtime;
use crate::system::tasks::Tasks;
use pk_host::Clock;
use pk_host::KeyPair;
use pk_host::Store;
use pk_host::TransportSecret;

/// The parts of a pump beside its core. All of them have been validated.
pub(crate) struct PumpConfig {
    pub(crate) key: KeyPair,
    pub(crate) identity: Identity,
    pub(crate) transport_secret: TransportSecret,
    pub(crate) listen: SocketAddr,
    /// Maximum number of open streams that a peer may have on one connection.
    pub(crate) streams: usize,
    pub(crate) driver: DriverConfig,
    pub(crate) store: Box<dyn Store>,
    pub(crate) record: Option<Record>,
}

/// Starts a pump. The receiver resolves when its core is ready, or fails when the pump has ended.
///
/// On an error nothing is left running.
pub(crate) fn spawn_pump<C: Core, R: Runtime>(
    runtime: R,
    config: PumpConfig,
    core: impl FnOnce(Instant, UnixMillis) -> Result<C, pk_proto::StartError>,
    certificate_check: impl FnOnce(WeakHandle<C>) -> Option<CertificateCheck>,
) -> Result<(Handle<C>, oneshot::Receiver<()>), StartError> {
    let PumpConfig { key, identity, transport_secret, listen, streams, driver, store, record } =
        config;
    let clock = Clock::new();
    let now = clock.now();
    let core = core(now, clock.unix())?;
    let tasks = Tasks::new(runtime.quinn());
    let (commands, todo) = mpsc::channel(driver.command_limit);
    let (events, first) = broadcast::channel(driver.event_limit);
    let (starter, ready) = oneshot::channel();
    let mut cx = Cx::new(driver, now);
    let net = Net::bind(&mut cx, listen, &identity, &key, &transport_secret, streams, &tasks)?;
    let recording = match record {
        Some(Record::File { path, limit }) => match Recording::begin(&path, limit, &tasks) {
            Ok(recording) => Some(recording),
            Err(source) => return Err(StartError::Record { path, source }),
        },
        Some(Record::Memory(_)) | None => None,
    };
    // Last, so that a failure leaves no thread that still closes the store.
    let store = StoreBackend::new(&cx, store, &tasks).map_err(StartError::Thread)?;
    cx.keys.add(key);
    let mdns = Mdns::new(net.bound());
    let status = SharedStatus::new(core.own_id(), net.bound());
    let source = EventSource::new(events.downgrade(), first);
    let handle = Handle::new(commands, source, Arc::clone(&status), tasks.watch());
    let pump = Pump::new(Parts {
        core,
        cx,
        clock,
        net,
        registry: HandleRegistry::new(events, starter),
        store,
        resolver: Resolver::new(runtime),
        mdns,
        commands: todo,
        tasks: tasks.clone(),
        status,
        certificate_check: certificate_check(handle.downgrade()),
        recording,
    });
    tasks.spawn(Box::pin(pump));
    Ok((handle, ready))
}
