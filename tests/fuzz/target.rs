//! The target that the binary is named after.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postwire::fuzz::run(env!("CARGO_BIN_NAME"), data));
