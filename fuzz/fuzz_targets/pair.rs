#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(pk_sim::fuzz::pair(data)));
