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
use crate::net::Net;
use crate::pump::{Command, Parts, Published, Pump};
use crate::resolver::Resolver;
use crate::runtime::Runtime;
use crate::store::{Store, StoreError};
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
}

/// Starts a pump. The receiver resolves when its core is ready, or fails when the pump has ended.
///
/// Errors: nothing is left running.
pub(crate) fn launch<C: Core, R: Runtime>(
    runtime: R,
    launch: Launch,
    core: impl FnOnce(Instant, UnixMillis) -> Result<C, pk_proto::StartError>,
) -> Result<(Handle<C>, oneshot::Receiver<()>), StartError> {
    let Launch { key, identity, listen, streams, driver, store } = launch;
    let clock = Clock::new();
    let now = clock.now();
    let core = core(now, clock.unix())?;
    let tasks = Tasks::new(runtime.quinn());
    let (commands, todo) = mpsc::channel(driver.command_limit);
    let (events, _) = broadcast::channel(driver.event_limit);
    let (starter, ready) = oneshot::channel();
    let mut cx = Cx::new(driver, now);
    let store =
        StorePlace::new(&cx, store, &tasks).map_err(|error| StartError::Store(StoreError(error.to_string())))?;
    let net = Net::bind(&mut cx, listen, &identity, &key, streams, &tasks)?;
    cx.keys.add(key);
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
        commands: todo,
        tasks: tasks.clone(),
        published,
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
