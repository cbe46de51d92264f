#![no_main]

#[path = "../datagrams.rs"]
mod body;
#[path = "../ending.rs"]
mod ending;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    body::datagrams(data);
});
