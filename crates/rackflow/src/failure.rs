//! Why a command failed, and the exit status that follows.

use crate::files;
use std::fmt;
use std::io;
use std::panic::{self, PanicHookInfo, UnwindSafe};
use std::path::Path;
use std::process::ExitCode;

/// Why a command failed. Its text goes to standard error.
#[derive(Debug)]
pub enum Failure {
    /// The run failed: status 1.
    Run(String),
    /// The input or the usage is wrong: status 2. The text has its own heading.
    Input(String),
    /// Nobody reads the output any more, which is no failure: `rackflow list | head`.
    ReaderGone,
}

impl Failure {
    /// A wrong input, as one line.
    pub fn input(message: impl fmt::Display) -> Self {
        Self::Input(format!("error: {message}"))
    }

    /// A failed run, as one line.
    pub fn run(message: impl fmt::Display) -> Self {
        Self::Run(format!("error: {message}"))
    }

    /// A file that could not be `read` or `written`.
    pub fn file(done: &str, path: &Path, error: &io::Error) -> Self {
        let missing = path.parent().filter(|folder| {
            done == "written" && !folder.as_os_str().is_empty() && !folder.exists()
        });
        let hint = missing.map_or_else(String::new, |folder| {
            format!("\n  hint: make the folder {} first", folder.display())
        });
        Self::run(format_args!(
            "{} cannot be {done}: {error}{hint}",
            path.display()
        ))
    }

    /// The exit status.
    pub fn status(&self) -> ExitCode {
        match self {
            Self::ReaderGone => ExitCode::SUCCESS,
            Self::Run(_) => ExitCode::from(1),
            Self::Input(_) => ExitCode::from(2),
        }
    }
}

/// Runs `work`. A panic is a defect of ours: it is told in the words of any other failure, with
/// status 1, so that a script never meets a status that is not documented.
pub fn guarded(work: impl FnOnce() -> Result<(), Failure> + UnwindSafe) -> Result<(), Failure> {
    let backtrace = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
    let standard = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if backtrace {
            standard(panic);
        }
        files::tell(&defect(panic));
    }));
    panic::catch_unwind(work).unwrap_or_else(|_| Err(Failure::Run(String::new())))
}

fn defect(panic: &PanicHookInfo<'_>) -> String {
    let what = panic.payload_as_str().unwrap_or("no reason given");
    let place = panic.location().map_or_else(String::new, |place| {
        format!(
            "\n  --> {}:{}:{}",
            place.file(),
            place.line(),
            place.column()
        )
    });
    format!(
        "error: the run failed, which is a defect of Rackflow: {what}{place}\n  \
         hint: please report it with the scenario"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_failed_run() {
        let outcome = guarded(|| panic!("on purpose"));
        assert!(matches!(outcome, Err(Failure::Run(_))), "{outcome:?}");
    }
}
