//! What happened: the only bridge between the simulator and the reports.

use crate::traffic::Traffic;
use rackflow_plan::{Accounts, Facts, Fidelity};
use rackflow_units::SimDuration;

/// Ranks that behaved alike.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassRecord {
    /// How many ranks.
    pub ranks: u32,
    /// Their pipeline stage.
    pub stage: u32,
    /// Their kind of accelerator, as the cluster counts them.
    pub kind: u32,
    /// Where the time of one of them went; sums to the step time.
    pub accounts: Accounts,
    /// What one of them sends.
    pub traffic: Traffic,
}

/// How the run was done.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineRecord {
    /// Events handled.
    pub events: u64,
    /// Ranks simulated.
    pub entities: u64,
    /// Which ranks were simulated.
    pub fidelity: Fidelity,
    /// Root of the random streams.
    pub seed: u64,
}

/// One simulated step.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Constants of the plan.
    pub facts: Facts,
    /// Wall time of the step.
    pub step_time: SimDuration,
    /// Classes of equal ranks.
    pub classes: Vec<ClassRecord>,
    /// Class of the rank on each GPU.
    pub class_of_gpu: Vec<u32>,
    /// How the run was done.
    pub engine: EngineRecord,
}

impl Record {
    /// Accounts of all ranks together; they sum to GPUs x step time.
    pub fn total(&self) -> Accounts {
        let mut total = Accounts::default();
        for class in &self.classes {
            total.add(&class.accounts, u64::from(class.ranks));
        }
        total
    }
}
