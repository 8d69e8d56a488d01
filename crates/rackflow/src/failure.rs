//! Why a command failed, and the exit status that follows.

use std::fmt;
use std::io;
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
        Self::run(format_args!("{} cannot be {done}: {error}", path.display()))
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
