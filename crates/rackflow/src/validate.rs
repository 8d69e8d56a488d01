//! `rackflow validate`: how far the simulation is from what was measured and published.
//!
//! Each kind of comparison has a file of its own. They share what they are asked and how they
//! read and write ([`options`]), how errors are summed up ([`summary`]) and set in columns ([`table`]), and
//! how a command is refused ([`ValidateError`]).

mod collectives;
mod cross_check;
mod drift;
mod kernels;
mod mechanisms;
mod options;
mod serving;
mod simulated;
mod summary;
mod table;
mod training;

pub use collectives::{CollectivesArgs, collectives};
pub use kernels::{KernelArgs, kernels};
pub use mechanisms::{MechanismArgs, mechanisms};
pub use serving::{ServingArgs, serving};
pub use training::{TrainingArgs, training};

use options::{Jobs, Options, Validation};
use rackflow_scenario::published;
use std::path::PathBuf;

/// Why a validation could not be done. What the user can do about it is in the text.
#[derive(Debug)]
pub enum ValidateError {
    /// The file cannot be read.
    File(PathBuf, std::io::Error),
    /// A line of the file is not a row of its kind.
    Line(PathBuf, published::ReadError),
    /// Nothing is left to compare.
    NoRows(String),
    /// The threads cannot be started.
    Threads(String),
}

impl std::fmt::Display for ValidateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path, error) => write!(f, "cannot read {}: {error}", path.display()),
            Self::Line(path, error) => write!(f, "{}: {error}", path.display()),
            Self::NoRows(why) => write!(f, "nothing published to compare with: {why}"),
            Self::Threads(why) => write!(f, "cannot start threads: {why}"),
        }
    }
}

impl std::error::Error for ValidateError {}
