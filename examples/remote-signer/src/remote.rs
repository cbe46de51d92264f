//! A [`Signer`] over a process.

use std::io;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use pk_driver_tokio::pk_proto::{NodeId, Signature};
use pk_driver_tokio::{PendingSignature, SignatureSender, Signer, SignerError};

use crate::protocol;

/// The signer that a command runs. Requests wait in a queue; a thread sends them to the process one
/// at a time, and starts the process when it is needed.
pub(crate) struct RemoteSigner {
    id: NodeId,
    requests: Sender<(Vec<u8>, SignatureSender)>,
}

impl RemoteSigner {
    /// Returns the signer with this id. Starts nothing.
    pub(crate) fn new(id: NodeId, command: Vec<String>) -> io::Result<Self> {
        let (requests, queue) = channel::<(Vec<u8>, SignatureSender)>();
        thread::Builder::new().name("signer".to_owned()).spawn(move || {
            let mut process = None;
            for (message, sender) in queue {
                let result = sign(&mut process, &command, &message);
                if result.is_err() {
                    // It is started again for the next request.
                    process = None;
                }
                let failed = |error: io::Error| SignerError::Failed(error.to_string());
                sender.complete(result.map(Signature).map_err(failed));
            }
        })?;
        Ok(Self { id, requests })
    }
}

impl Signer for RemoteSigner {
    fn node_id(&self) -> NodeId {
        self.id
    }

    fn sign(&self, message: &[u8]) -> PendingSignature {
        let (sender, pending) = PendingSignature::channel();
        // If the thread has ended, the sender is dropped, and with it the request.
        let _ = self.requests.send((message.to_vec(), sender));
        pending
    }
}

/// Asks the signer of a command for its id.
pub(crate) fn ask_id(command: &[String]) -> io::Result<NodeId> {
    let mut process = Process::start(command)?;
    protocol::write(&mut process.requests, &[])?;
    Ok(NodeId::from_bytes(protocol::read_answer(&mut process.answers)?))
}

fn sign(process: &mut Option<Process>, command: &[String], message: &[u8]) -> io::Result<[u8; 64]> {
    let process = match process {
        Some(process) => process,
        None => process.insert(Process::start(command)?),
    };
    protocol::write(&mut process.requests, message)?;
    protocol::read_answer(&mut process.answers)
}

struct Process {
    child: Child,
    requests: ChildStdin,
    answers: ChildStdout,
}

impl Process {
    fn start(command: &[String]) -> io::Result<Self> {
        let (program, arguments) =
            command.split_first().ok_or_else(|| io::Error::other("no command for the signer"))?;
        let mut command = Command::new(program);
        let command = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(requests), Some(answers)) => Ok(Self { child, requests, answers }),
            _ => Err(io::Error::other("the signer has no pipes")),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
