//! The running processes that were started, so that they can be ended at any time.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, kill_process_group};

/// By process id: the directory of its state, if it has its own.
static RUNNING: Mutex<BTreeMap<u32, Option<PathBuf>>> = Mutex::new(BTreeMap::new());

/// Ends every running process that this library has started, with its children, and removes the
/// state of nodes. For the end of a program: calls that wait for one of them return an error.
pub fn end_all() {
    for (pid, state) in std::mem::take(&mut *running()) {
        end_group(pid);
        if let Some(state) = state {
            // A failure cannot be handled here.
            drop(fs::remove_dir_all(state));
        }
    }
}

/// A process in its own group, registered until this is dropped.
#[derive(Debug)]
pub(crate) struct Registered {
    pid: u32,
}

/// Starts a process whose state is in `state`.
pub(crate) fn spawn(
    command: &mut Command,
    state: Option<PathBuf>,
) -> io::Result<(Child, Registered)> {
    // Under the lock, so that `end_all` ends this one too.
    let mut running = running();
    let child = command.process_group(0).spawn()?;
    let pid = child.id();
    running.insert(pid, state);
    Ok((child, Registered { pid }))
}

impl Registered {
    /// Ends the process with its children. It must not have been waited for yet, because its id
    /// could be reused.
    pub(crate) fn end(&self) {
        if running().contains_key(&self.pid) {
            end_group(self.pid);
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        running().remove(&self.pid);
    }
}

fn end_group(pid: u32) {
    if let Some(group) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // Fails if it has ended.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

fn running() -> MutexGuard<'static, BTreeMap<u32, Option<PathBuf>>> {
    // Only single operations of the map happen under this lock.
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn all_of_a_group_ends_and_its_state_is_removed() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("state");
        fs::create_dir(&path).unwrap();
        // Its child would outlive it by a minute.
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 60; true"]);
        let (mut child, registered) = spawn(&mut command, Some(path.clone())).unwrap();
        end_all();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        assert!(!path.exists());
        drop(registered);
    }
}
