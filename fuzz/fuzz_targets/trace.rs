//! Any bytes: read as a request trace to their end or to an error, never a panic.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for request in rackflow_workload::Trace::new(bytes) {
        if let Err(error) = request {
            assert!(!error.to_string().is_empty());
        }
    }
});
