//! Any bytes: parsed, resolved and refused, never a panic.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::io;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let files = |path: &str| {
        if path.len() % 2 == 0 { Ok(text.to_owned()) } else { Err(io::Error::from(io::ErrorKind::NotFound)) }
    };
    let setup = rackflow_scenario::parse("fuzz.yaml", text).and_then(|scenario| {
        if scenario.serves() {
            scenario.resolve_serving(&files).map(|_| ())
        } else {
            scenario.resolve(&files).map(|_| ())
        }
    });
    if let Err(found) = setup {
        assert!(!found.is_empty());
        for diagnostic in found {
            let _ = diagnostic.to_string();
        }
    }
});
