#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| spillway_gateway::sse::fuzz_sse(data));
