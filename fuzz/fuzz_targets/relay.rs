#![no_main]

#[path = "../relay.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    body::relay(data);
});
