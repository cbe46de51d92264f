//! Phases of a node, and the table of what each allows.
//!
//! The table has four parts: public calls ([`Entry`]), inputs, timers, outputs. Each part is an
//! exhaustive `match`, so that a new variant does not compile without its row. Each is checked in
//! one place: calls and inputs in `NodeManager::enter`, timers where they are set
//! ([`TimerQueue`](crate::machine::timers::TimerQueue)), outputs in
//! [`Cx::output`](crate::machine::cx::Cx).

use alloc::string::String;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::timer::Timer;
use crate::api::error::RequestError;
use crate::api::input::Input;
use crate::api::output::Output;
use crate::api::recorded_call::RecordedCall;
use crate::api::request::Request;
use crate::types::id::{ApprovalId, BucketIndex, LeaseId, NodeId, RequestId};

/// Phases of a node, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// From the constructor to the first [`Input::Listening`](crate::Input::Listening). Nothing is
    /// dialed, sent or written.
    Starting,
    /// From [`Event::Ready`](crate::Event::Ready) to `stop`.
    Running,
    /// From `stop` to [`Event::Stopped`](crate::Event::Stopped). Work in progress ends; nothing new
    /// starts.
    Stopping,
    /// After [`Event::Stopped`](crate::Event::Stopped). Nothing is emitted, no timer is set.
    Stopped,
}

impl Phase {
    /// Returns the error of a call that this phase does not allow.
    pub(crate) fn refusal(self) -> RequestError {
        match self {
            Self::Starting => RequestError::NotReady,
            Self::Running | Self::Stopping | Self::Stopped => RequestError::Stopping,
        }
    }

    pub(crate) fn allows_entry(self, entry: &Entry<'_>) -> bool {
        entry_row(entry).allows(self)
    }

    pub(crate) fn allows_timer(self, timer: &Timer) -> bool {
        timer_row(timer).allows(self)
    }

    pub(crate) fn allows_output(self, output: &Output) -> bool {
        output_row(output).allows(self)
    }
}

/// One public call of `NodeManager`, with its arguments.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Entry<'a> {
    Input(&'a Input),
    Timeout,
    Request(&'a Request),
    Cancel(RequestId),
    Release(LeaseId),
    Disconnect(NodeId),
    UnsetNode(NodeId),
    AcceptProtocol(&'a str),
    RefuseProtocol(&'a str),
    SetRefreshDelay { bucket: BucketIndex, delay: Duration, lazy: bool },
    ResolveClaimApproval { approval: ApprovalId, sign: bool },
    ResetBuckets,
    Stop,
}

impl Entry<'_> {
    /// Returns the call as it is recorded.
    pub(crate) fn to_call(self) -> RecordedCall {
        match self {
            Self::Input(input) => RecordedCall::Input(input.clone()),
            Self::Timeout => RecordedCall::Timeout,
            Self::Request(request) => RecordedCall::Request(request.clone()),
            Self::Cancel(id) => RecordedCall::Cancel(id),
            Self::Release(lease) => RecordedCall::Release(lease),
            Self::Disconnect(node) => RecordedCall::Disconnect(node),
            Self::UnsetNode(node) => RecordedCall::UnsetNode(node),
            Self::AcceptProtocol(protocol) => RecordedCall::AcceptProtocol(String::from(protocol)),
            Self::RefuseProtocol(protocol) => RecordedCall::RefuseProtocol(String::from(protocol)),
            Self::SetRefreshDelay { bucket, delay, lazy } => {
                RecordedCall::SetRefreshDelay { bucket, delay, lazy }
            }
            Self::ResolveClaimApproval { approval, sign } => {
                RecordedCall::ResolveClaimApproval { approval, sign }
            }
            Self::ResetBuckets => RecordedCall::ResetBuckets,
            Self::Stop => RecordedCall::Stop,
        }
    }
}

/// One row of the table: the phases that allow something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    starting: bool,
    running: bool,
    stopping: bool,
}

impl Row {
    /// Until the node has stopped.
    const LIFE: Self = Self { starting: true, running: true, stopping: true };
    /// Before `stop`.
    const BEFORE_STOP: Self = Self { starting: true, running: true, stopping: false };
    /// Only while the node runs.
    const RUNNING: Self = Self { starting: false, running: true, stopping: false };
    /// From Ready to Stopped: ends or completes something.
    const SINCE_READY: Self = Self { starting: false, running: true, stopping: true };
    /// Only while the node stops.
    const STOPPING: Self = Self { starting: false, running: false, stopping: true };

    /// Nothing is allowed once the node has stopped.
    fn allows(self, phase: Phase) -> bool {
        match phase {
            Phase::Starting => self.starting,
            Phase::Running => self.running,
            Phase::Stopping => self.stopping,
            Phase::Stopped => false,
        }
    }
}

fn entry_row(entry: &Entry<'_>) -> Row {
    match entry {
        Entry::Input(input) => input_row(input),
        Entry::Request(request) => request_row(request),
        Entry::Timeout => Row::LIFE,
        Entry::Stop | Entry::AcceptProtocol(_) | Entry::RefuseProtocol(_) => Row::BEFORE_STOP,
        Entry::Cancel(_) | Entry::Release(_) | Entry::Disconnect(_) => Row::SINCE_READY,
        Entry::UnsetNode(_)
        | Entry::SetRefreshDelay { .. }
        | Entry::ResolveClaimApproval { .. }
        | Entry::ResetBuckets => Row::RUNNING,
    }
}

fn request_row(request: &Request) -> Row {
    match request {
        Request::FindNode { .. }
        | Request::PingNode { .. }
        | Request::PingNodeAddress { .. }
        | Request::Connect { .. }
        | Request::ConnectThrough { .. }
        | Request::AcquireConnection { .. }
        | Request::OpenStream { .. }
        | Request::QueryClosestNodes { .. }
        | Request::SyncNodeGraph { .. }
        | Request::SetNode { .. }
        | Request::RefreshBucket { .. }
        | Request::Renew { .. }
        | Request::ClaimNode { .. }
        | Request::AddClaim { .. }
        | Request::ClaimNetwork { .. }
        | Request::AllowClaim { .. }
        | Request::QueryMdns { .. }
        | Request::RequestChainData { .. }
        | Request::Claims { .. }
        | Request::Gestalt { .. }
        | Request::Flush { .. }
        | Request::FindClosest { .. } => Row::RUNNING,
    }
}

fn input_row(input: &Input) -> Row {
    match input {
        Input::Listening { .. } | Input::LocalAddresses { .. } | Input::External { .. } => {
            Row::BEFORE_STOP
        }
        Input::WallClock(_) => Row::LIFE,
        // A connection that arrives too early or too late is closed, so that its end must be
        // handled as well.
        Input::Connected(_) | Input::Disconnected { .. } => Row::LIFE,
        Input::DialFailed { .. } | Input::Resolved { .. } | Input::Discovered { .. } => {
            Row::SINCE_READY
        }
        Input::RemoteAddressChanged { .. } | Input::Suspected { .. } | Input::Heard { .. } => {
            Row::RUNNING
        }
        Input::StreamOpened { .. }
        | Input::StreamData { .. }
        | Input::StreamWritten { .. }
        | Input::StreamReset { .. }
        | Input::StreamStopped { .. }
        | Input::OpenFailed { .. }
        | Input::CircuitClosed { .. }
        | Input::StreamClosed { .. } => Row::SINCE_READY,
        Input::Signed { .. }
        | Input::Persisted { .. }
        | Input::Loaded { .. }
        | Input::IdentityReplaced { .. } => Row::SINCE_READY,
    }
}

fn timer_row(timer: &Timer) -> Row {
    match timer {
        Timer::Stop => Row::STOPPING,
        // The last changes of the graph are still written.
        Timer::Store => Row::SINCE_READY,
        // The outcome of a write in progress is determined.
        Timer::Evidence(_) => Row::SINCE_READY,
        Timer::Request(_)
        | Timer::RaceDeadline(_)
        | Timer::RaceNext(_)
        | Timer::RaceRelay(_)
        | Timer::Path(_)
        | Timer::Upgrade(_)
        | Timer::Hello(_)
        | Timer::Idle(_)
        | Timer::Silent(_)
        | Timer::Stream(_)
        | Timer::Stall(_)
        | Timer::Verify(_)
        | Timer::Collect(_)
        | Timer::Refresh(_)
        | Timer::ClaimRetry(_)
        | Timer::ClaimResume(_)
        | Timer::Approval(_)
        | Timer::ClaimTurn
        | Timer::Punch(_)
        | Timer::Check
        | Timer::Recheck
        | Timer::Lost
        | Timer::Retry => Row::RUNNING,
    }
}

fn output_row(output: &Output) -> Row {
    match output {
        Output::CloseConnection { .. } => Row::LIFE,
        Output::Dial { .. }
        | Output::OpenStream { .. }
        | Output::DetachStream { .. }
        | Output::AttachCircuit { .. }
        | Output::JoinCircuit { .. }
        | Output::ProbePath { .. }
        | Output::Sign { .. }
        | Output::Resolve { .. }
        | Output::Browse { .. }
        | Output::Punch { .. }
        | Output::Advertise { port: Some(_), .. } => Row::RUNNING,
        // Ends or completes something that was started.
        Output::CancelDial { .. }
        | Output::CloseCircuit { .. }
        | Output::SendStream { .. }
        | Output::ResetStream { .. }
        | Output::StopStream { .. }
        | Output::ReadCredit { .. }
        | Output::Persist { .. }
        // Determines the outcome of a write in progress.
        | Output::Load { .. }
        | Output::CancelBrowse { .. }
        | Output::ReplaceIdentity { .. }
        | Output::Advertise { port: None, .. }
        | Output::Event(_) => Row::SINCE_READY,
    }
}
