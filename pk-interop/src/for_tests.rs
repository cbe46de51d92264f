//! What tests do where Polykey is not to be had.

use std::env;
use std::io::Write;
use std::path::PathBuf;

use crate::install::Polykey;

/// Polykey for a test, installed into a folder. `None` if the test has nothing to do, because something is missing, which is
/// said on stderr so that it is heard also where the test passes; or because `PK_INTEROP` is `off`, without a word.
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
    assert!(!set("PK_INTEROP", "required") && !set("CI", "true"), "the reference is required here: {error}");
    // Not by `eprintln`, which is heard only where a test fails.
    let _ = writeln!(
        std::io::stderr(),
        "\n***\n*** NOTHING IS TESTED AGAINST REAL POLYKEY NODES: {error}\n*** Install Node.js 20 or later and npm; \
         PK_INTEROP=required makes this an error.\n***"
    );
    None
}
