#![no_main]

#[path = "../mdns.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    body::mdns(data);
});
