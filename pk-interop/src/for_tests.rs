//! Behavior of tests where Polykey is not available.

use std::env;
use std::io::Write;
use std::path::PathBuf;

use crate::install::Polykey;

/// Returns Polykey for a test, installed in a directory. Returns `None` if the test has nothing to
/// do: something is missing, which is printed to stderr even if the test passes, or `PK_INTEROP` is
/// `off`.
///
/// # Panics
///
/// Something is missing, and `PK_INTEROP` is `required` or `CI` is `true`.
pub fn for_tests(dir: impl Into<PathBuf>) -> Option<Polykey> {
    let set = |name, to| env::var(name).is_ok_and(|value| value == to);
    if set("PK_INTEROP", "off") {
        return None;
    }
    let error = match Polykey::install(dir) {
        Ok(polykey) => return Some(polykey),
        Err(error) => error,
    };
    assert!(
        !set("PK_INTEROP", "required") && !set("CI", "true"),
        "the reference is required here: {error}"
    );
    // Not with `eprintln`, whose output is shown only if a test fails.
    let _ = writeln!(
        std::io::stderr(),
        "\n***\n*** NOTHING IS TESTED AGAINST REAL POLYKEY NODES: {error}\n*** Install Node.js 20 or later and npm; \
         PK_INTEROP=required makes this an error.\n***"
    );
    None
}
