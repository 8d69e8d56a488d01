//! Ctrl-C: the cases that run are finished, no other begins, and what is finished is written up.

use crate::failure::Failure;
use crate::files;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Exit status of a program that an interrupt ended, as shells count.
const INTERRUPTED: i32 = 130;

/// Whether the user asked to stop.
#[derive(Clone)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens from now on, beside all that computes. A second Ctrl-C ends the program at once, which
    /// loses the cases that run and nothing that is finished.
    pub fn listen() -> Result<Self, Failure> {
        let asked = Self(Arc::new(AtomicBool::new(false)));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(|error| Failure::run(format_args!("signals cannot be heard: {error}")))?;
        let heard = asked.clone();
        thread::spawn(move || {
            runtime.block_on(async {
                if tokio::signal::ctrl_c().await.is_err() {
                    return;
                }
                heard.0.store(true, Ordering::Relaxed);
                files::tell("stopping after the cases that run; Ctrl-C again stops at once");
                if tokio::signal::ctrl_c().await.is_ok() {
                    std::process::exit(INTERRUPTED);
                }
            });
        });
        Ok(asked)
    }

    /// Whether no other case should begin.
    pub fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
