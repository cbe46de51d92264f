#![no_main]

#[path = "../datagrams.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    body::datagrams(data);
});
