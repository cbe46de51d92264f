//! A logged error fails the test: no behavior of a peer is an error of the local node.

use std::fmt::Write;
use std::sync::{Mutex, Once, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

static ERRORS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Installs the subscriber of this process, if it is not installed yet.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing_subscriber::registry().with(Errors).init());
}

/// Fails if any test of this process has logged an error; the log does not contain which one.
pub fn assert_no_errors() {
    let errors = std::mem::take(&mut *ERRORS.lock().unwrap_or_else(PoisonError::into_inner));
    assert!(errors.is_empty(), "logged as errors, by this case or one beside it: {errors:#?}");
}

struct Errors;

impl<S: Subscriber> Layer<S> for Errors {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= Level::ERROR
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text(format!("{}:", event.metadata().target()));
        event.record(&mut text);
        eprintln!("ERROR {}", text.0);
        ERRORS.lock().unwrap_or_else(PoisonError::into_inner).push(text.0);
    }
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }
}
