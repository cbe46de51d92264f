//! Putting a pump together, and the handle to it.

use std::net::SocketAddr;
use std::sync::Arc;

use pk_proto::{Event, Identity, Instant, UnixMillis};
use quinn::Runtime as _;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::clock::Clock;
use crate::config::DriverConfig;
use crate::core::Core;
use crate::cx::Cx;
use crate::desk::Desk;
use crate::error::{NodeError, StartError};
use crate::keys::KeyPair;
use crate::mdns::Mdns;
use crate::net::Net;
use crate::pump::{Command, Parts, Published, Pump};
use crate::recording::{Record, Recording};
use crate::renewal::Upkeep;
use crate::resolver::Resolver;
use crate::runtime::Runtime;
use crate::store::Store;
use crate::store_place::StorePlace;
use crate::tasks::{TaskWatch, Tasks};

/// What a pump is made of, beside its core. All of it has been checked.
pub(crate) struct Launch {
    pub(crate) key: KeyPair,
    pub(crate) identity: Identity,
    pub(crate) listen: SocketAddr,
    /// Streams that a peer may have open on one connection.
    pub(crate) streams: usize,
    pub(crate) driver: DriverConfig,
    pub(crate) store: Box<dyn Store>,
    pub(crate) record: Option<Record>,
}

/// Starts a pump. The receiver resolves when its core is ready, or fails when the pump has ended.
///
/// Errors: nothing is left running.
pub(crate) fn launch<C: Core, R: Runtime>(
    runtime: R,
    launch: Launch,
    core: impl FnOnce(Instant, UnixMillis) -> Result<C, pk_proto::StartError>,
    upkeep: impl FnOnce(WeakHandle<C>) -> Option<Upkeep>,
) -> Result<(Handle<C>, oneshot::Receiver<()>), StartError> {
    let Launch { key, identity, listen, streams, driver, store, record } = launch;
    let clock = Clock::new();
    let now = clock.now();
    let core = core(now, clock.unix())?;
    let tasks = Tasks::new(runtime.quinn());
    let (commands, todo) = mpsc::channel(driver.command_limit);
    let (events, _) = broadcast::channel(driver.event_limit);
    let (starter, ready) = oneshot::channel();
    let mut cx = Cx::new(driver, now);
    let net = Net::bind(&mut cx, listen, &identity, &key, streams, &tasks)?;
    let recording = match record {
        Some(Record::File { path, limit }) => match Recording::begin(&path, limit, &tasks) {
            Ok(recording) => Some(recording),
            Err(source) => return Err(StartError::Record { path, source }),
        },
        Some(Record::Memory(_)) | None => None,
    };
    // Last, so that a failure leaves no thread that still closes the store.
    let store = StorePlace::new(&cx, store, &tasks).map_err(StartError::Thread)?;
    cx.keys.add(key);
    let mdns = Mdns::new(net.bound());
    let published = Published::new(core.own_id(), net.bound());
    let handle =
        Handle { commands, events: events.downgrade(), published: Arc::clone(&published), tasks: tasks.watch() };
    let pump = Pump::new(Parts {
        core,
        cx,
        clock,
        net,
        desk: Desk::new(events, starter),
        store,
        resolver: Resolver::new(runtime),
        mdns,
        commands: todo,
        tasks: tasks.clone(),
        published,
        upkeep: upkeep(handle.downgrade()),
        recording,
    });
    tasks.spawn(Box::pin(pump));
    Ok((handle, ready))
}

/// A way to a running pump. When the last clone is dropped, the pump stops its core and ends.
#[derive(Debug)]
pub(crate) struct Handle<C> {
    commands: mpsc::Sender<Command<C>>,
    pub(crate) events: broadcast::WeakSender<Event>,
    pub(crate) published: Arc<Published>,
    pub(crate) tasks: TaskWatch,
}

impl<C> Clone for Handle<C> {
    fn clone(&self) -> Self {
        Self {
            commands: self.commands.clone(),
            events: self.events.clone(),
            published: Arc::clone(&self.published),
            tasks: self.tasks.clone(),
        }
    }
}

/// A way to a pump that does not keep it running.
#[derive(Debug)]
pub(crate) struct WeakHandle<C> {
    commands: mpsc::WeakSender<Command<C>>,
    events: broadcast::WeakSender<Event>,
    published: Arc<Published>,
    tasks: TaskWatch,
}

impl<C> WeakHandle<C> {
    /// `None` if nobody holds the node any more.
    pub(crate) fn upgrade(&self) -> Option<Handle<C>> {
        Some(Handle {
            commands: self.commands.upgrade()?,
            events: self.events.clone(),
            published: Arc::clone(&self.published),
            tasks: self.tasks.clone(),
        })
    }
}

impl<C> Handle<C> {
    fn downgrade(&self) -> WeakHandle<C> {
        WeakHandle {
            commands: self.commands.downgrade(),
            events: self.events.clone(),
            published: Arc::clone(&self.published),
            tasks: self.tasks.clone(),
        }
    }

    /// As [`command`](Self::command), from a thread that no runtime has a claim on.
    pub(crate) fn command_blocking(&self, command: Command<C>) -> Result<(), NodeError> {
        self.commands.blocking_send(command).map_err(|_| NodeError::Closed)
    }
}

impl<C: Core> Handle<C> {
    /// Reads from the core.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&C) -> T + Send + 'static,
    ) -> Result<T, NodeError> {
        self.call(move |_, _, core| question(core)).await
    }

    /// Does something on the pump's task and returns what came of it.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        action: impl FnOnce(&mut Desk, &mut Cx, &mut C) -> T + Send + 'static,
    ) -> Result<T, NodeError> {
        let (done, answer) = oneshot::channel();
        let command = move |desk: &mut Desk, cx: &mut Cx, core: &mut C| {
            // Fails if the caller has gone.
            let _ = done.send(action(desk, cx, core));
        };
        self.command(Box::new(command)).await?;
        answer.await.map_err(|_| NodeError::Closed)
    }

    /// Waits for room in the queue, then for nothing. Errors: the pump has ended.
    pub(crate) async fn command(&self, command: Command<C>) -> Result<(), NodeError> {
        self.commands.send(command).await.map_err(|_| NodeError::Closed)
    }
}
