#![no_main]

#[path = "../relay.rs"]
mod body;
#[path = "../ending.rs"]
mod ending;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    body::relay(data);
});
