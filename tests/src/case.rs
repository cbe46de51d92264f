//! Running one case on one runtime, with a deadline, and few of them at a time.

use std::fs::{self, File};
use std::panic::resume_unwind;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pk_driver::Runtime;
use pk_driver_smol::Smol;
use pk_driver_tokio::Tokio;

use crate::log;

/// Maximum duration of a case, also on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Number of cases that open sockets at a time.
const SLOTS: usize = 2;

/// Maximum wait for a slot.
const SLOT_LIMIT: Duration = Duration::from_secs(600);

/// A runtime that cases run on.
pub trait Rt: Runtime + Default {
    /// Name of the runtime in the names of tests and in the output.
    const NAME: &'static str;

    /// Runs a future and the tasks that it spawns to their end.
    fn block_on<T>(future: impl Future<Output = T>) -> T;

    /// Number of live tasks on the runtime; `None` if the runtime does not count them.
    fn live_tasks() -> Option<usize>;
}

impl Rt for Tokio {
    const NAME: &'static str = "tokio";

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("tokio has its threads");
        let output = runtime.block_on(future);
        // A task that does not yield would block the drop forever; the case has ended and reported
        // its result.
        runtime.shutdown_timeout(Duration::from_secs(5));
        output
    }

    fn live_tasks() -> Option<usize> {
        Some(tokio::runtime::Handle::current().metrics().num_alive_tasks())
    }
}

impl Rt for Smol {
    const NAME: &'static str = "smol";

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        smol::block_on(future)
    }

    fn live_tasks() -> Option<usize> {
        None
    }
}

/// Declares tests: for each case `name`, an `async fn name<R: Rt>(runtime: R)` beside it, the tests
/// `name::tokio` and `name::smol`.
///
/// Each holds one of two slots while it runs. `unslotted` cases hold none: they spend their time
/// waiting, and take a [`slot`](crate::case::slot) themselves while they do not.
#[macro_export]
macro_rules! cases {
    ($($name:ident),+ $(,)?) => {
        $($crate::cases!(@case run, $name);)+
    };
    (unslotted $($name:ident),+ $(,)?) => {
        $($crate::cases!(@case run_unslotted, $name);)+
    };
    (@case $run:ident, $name:ident) => {
        mod $name {
            #[test]
            fn tokio() {
                $crate::case::$run(stringify!($name), super::$name::<$crate::Tokio>);
            }

            #[test]
            fn smol() {
                $crate::case::$run(stringify!($name), super::$name::<$crate::Smol>);
            }
        }
    };
}

/// Runs a case in a slot.
pub fn run<R: Rt, F: Future<Output = ()>>(name: &str, case: impl FnOnce(R) -> F + Send + 'static) {
    run_within(LIMIT, name, case);
}

/// Runs a case in a slot, and abandons it after `limit`.
pub fn run_within<R: Rt, F: Future<Output = ()>>(
    limit: Duration,
    name: &str,
    case: impl FnOnce(R) -> F + Send + 'static,
) {
    let _slot = slot();
    run_for(limit, name, case);
}

/// Runs a case alone, among those of this process that are run so, and abandons it after `limit`.
pub fn run_alone<R: Rt, F: Future<Output = ()>>(
    limit: Duration,
    name: &str,
    case: impl FnOnce(R) -> F + Send + 'static,
) {
    let _alone = alone();
    run_for(limit, name, case);
}

/// Waits until no other case of this process that has called this runs.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // A failed case must not prevent the next one from running.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a case without a slot.
pub fn run_unslotted<R: Rt, F: Future<Output = ()>>(
    name: &str,
    case: impl FnOnce(R) -> F + Send + 'static,
) {
    run_for(LIMIT, name, case);
}

/// Runs a case on its own thread, so that a case that blocks can be abandoned.
fn run_for<R: Rt, F: Future<Output = ()>>(
    limit: Duration,
    name: &str,
    case: impl FnOnce(R) -> F + Send + 'static,
) {
    log::install();
    let begun = Instant::now();
    let (sender, receiver) = channel();
    let work = move || {
        R::block_on(async { case(R::default()).await });
        let _ = sender.send(());
    };
    let thread = thread::Builder::new().name(format!("{name}::{}", R::NAME)).spawn(work);
    let thread = thread.expect("there is a thread to be had");
    match receiver.recv_timeout(limit) {
        Ok(()) | Err(RecvTimeoutError::Disconnected) => {
            if let Err(panic) = thread.join() {
                eprintln!("{name} on {}: failed after {:?}", R::NAME, begun.elapsed());
                resume_unwind(panic);
            }
        }
        Err(RecvTimeoutError::Timeout) => panic!("{name} on {}: not over after {limit:?}", R::NAME),
    }
    log::assert_no_errors();
    println!("{name} on {}: held, in {:?}", R::NAME, begun.elapsed());
}

/// One of the two rights to open sockets, among all tests of this target directory, whatever
/// process they run in.
#[derive(Debug)]
pub struct Slot {
    // The lock ends with the file handle, also if the process is killed.
    _file: File,
}

/// Waits for a slot.
pub fn slot() -> Slot {
    let exe = std::env::current_exe().expect("this program has a path");
    let dir = exe.parent().expect("it is in a directory").join("pk-tests-slots");
    fs::create_dir_all(&dir).expect("the directory of the slots can be made");
    let begun = Instant::now();
    while begun.elapsed() < SLOT_LIMIT {
        for n in 0..SLOTS {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(dir.join(n.to_string()));
            let file = file.expect("the file of a slot can be opened");
            if file.try_lock().is_ok() {
                return Slot { _file: file };
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("no slot in {SLOT_LIMIT:?}");
}
