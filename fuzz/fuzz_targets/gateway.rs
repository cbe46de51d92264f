#![no_main]

#[path = "../gateway.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    body::gateway(data);
});
