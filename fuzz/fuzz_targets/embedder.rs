#![no_main]

libfuzzer_sys::fuzz_target!(|script: fuzz_embedder::Script| {
    fuzz_embedder::run(script);
});
