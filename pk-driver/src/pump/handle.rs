//! Handles to a running pump.

use std::sync::{Arc, Mutex, PoisonError};

use pk_proto::NodeManager;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::cx::Cx;
use crate::error::NodeError;
use crate::pump::command::{Command, SharedStatus};
use crate::pump::event::NodeEvent;
use crate::pump::handle_registry::HandleRegistry;
use crate::system::tasks::TaskWatch;

/// Where listeners for events come from. Does not keep the pump running.
#[derive(Debug, Clone)]
pub(crate) struct EventSource {
    sender: broadcast::WeakSender<NodeEvent>,
    /// The listener that was created before the first event, until it is taken at the start: an
    /// unused listener keeps events in memory.
    first: Arc<Mutex<Option<broadcast::Receiver<NodeEvent>>>>,
}

impl EventSource {
    pub(crate) fn new(
        sender: broadcast::WeakSender<NodeEvent>,
        first: broadcast::Receiver<NodeEvent>,
    ) -> Self {
        Self { sender, first: Arc::new(Mutex::new(Some(first))) }
    }

    /// Returns a listener for the events from now on, or `None` if the pump has ended.
    pub(crate) fn subscribe(&self) -> Option<broadcast::Receiver<NodeEvent>> {
        self.sender.upgrade().map(|sender| sender.subscribe())
    }

    /// Returns the listener that was created before the first event; `None` if it was returned
    /// before.
    pub(crate) fn take_first(&self) -> Option<broadcast::Receiver<NodeEvent>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Handle to a running pump. When the last clone is dropped, the pump stops its core and ends.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    pub(crate) events: EventSource,
    pub(crate) status: Arc<SharedStatus>,
    pub(crate) tasks: TaskWatch,
}

/// Handle to a pump that does not keep it running.
#[derive(Debug)]
pub(crate) struct WeakHandle {
    commands: mpsc::WeakSender<Command>,
    events: EventSource,
    status: Arc<SharedStatus>,
    tasks: TaskWatch,
}

impl WeakHandle {
    /// Returns `None` if all [`Handle`]s were dropped.
    pub(crate) fn upgrade(&self) -> Option<Handle> {
        Some(Handle {
            commands: self.commands.upgrade()?,
            events: self.events.clone(),
            status: Arc::clone(&self.status),
            tasks: self.tasks.clone(),
        })
    }
}

impl Handle {
    pub(crate) fn new(
        commands: mpsc::Sender<Command>,
        events: EventSource,
        status: Arc<SharedStatus>,
        tasks: TaskWatch,
    ) -> Self {
        Self { commands, events, status, tasks }
    }

    /// Returns a handle to the pump that does not keep it running.
    pub(crate) fn downgrade(&self) -> WeakHandle {
        WeakHandle {
            commands: self.commands.downgrade(),
            events: self.events.clone(),
            status: Arc::clone(&self.status),
            tasks: self.tasks.clone(),
        }
    }

    /// Like [`command`](Self::command), for threads outside of a runtime.
    pub(crate) fn command_blocking(&self, command: Command) -> Result<(), NodeError> {
        self.commands.blocking_send(command).map_err(|_| NodeError::Closed)
    }

    /// Reads from the core.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&NodeManager) -> T + Send + 'static,
    ) -> Result<T, NodeError> {
        self.call(move |_, cx| cx.node.with(|node| question(node.manager()))).await
    }

    /// Runs a function on the pump's task and returns its result.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        action: impl FnOnce(&mut HandleRegistry, &mut Cx) -> T + Send + 'static,
    ) -> Result<T, NodeError> {
        let (done, answer) = oneshot::channel();
        let command = move |registry: &mut HandleRegistry, cx: &mut Cx| {
            // Fails if the caller is gone.
            let _ = done.send(action(registry, cx));
        };
        self.command(Box::new(command)).await?;
        answer.await.map_err(|_| NodeError::Closed)
    }

    /// Queues a command; waits for room in the queue and not for its execution. Fails if the pump
    /// has ended.
    pub(crate) async fn command(&self, command: Command) -> Result<(), NodeError> {
        self.commands.send(command).await.map_err(|_| NodeError::Closed)
    }
}
