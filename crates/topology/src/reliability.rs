//! How often parts of a cluster fail, as published.

use rackflow_units::SimDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A part of a cluster that interrupts a job.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// The GPU package but for its memory: faults, SRAM, system processor, thermal interface,
    /// silent corruption.
    Gpu,
    /// The GPU's memory.
    Hbm,
    /// Network interfaces.
    Nic,
    /// Switches and cables.
    Switch,
    /// The server around the GPUs: processor, memory, power supply, disks, unplanned maintenance.
    Host,
    /// Programs and their dependencies.
    Software,
    /// Maintenance and upgrades that are announced: a checkpoint is taken first.
    Planned,
}

impl Component {
    /// All of them, in report order.
    pub const ALL: [Self; 7] = [
        Self::Gpu,
        Self::Hbm,
        Self::Nic,
        Self::Switch,
        Self::Host,
        Self::Software,
        Self::Planned,
    ];

    /// Stable machine name.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::Hbm => "hbm",
            Self::Nic => "nic",
            Self::Switch => "switch",
            Self::Host => "host",
            Self::Software => "software",
            Self::Planned => "planned",
        }
    }

    /// Whether its failure takes a host out until that is repaired. A switch is routed around or
    /// replaced within the restart; software is started again on the same hosts.
    pub const fn takes_host(self) -> bool {
        matches!(self, Self::Gpu | Self::Hbm | Self::Nic | Self::Host)
    }
}

/// How often jobs were interrupted, by what, and what each interruption cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FailureProfile {
    /// Catalogue name. Filled from the key where it is left out.
    #[serde(default)]
    pub name: String,
    /// One line for lists.
    #[serde(default, skip_serializing)]
    pub description: Option<String>,
    /// GPUs times days over which `interruptions` were counted.
    pub gpu_days: f64,
    /// Interruptions in that time, by component.
    pub interruptions: BTreeMap<Component, f64>,
    /// GPUs that are taken out together when one of them, or its host, fails.
    pub gpus_per_host: u32,
    /// From an explicit error to the decision to restart.
    pub detection: SimDuration,
    /// Fraction of interruptions that show as a hang, without an error.
    #[serde(default)]
    pub hang_fraction: f64,
    /// From a hang to the decision to restart.
    #[serde(default = "watchdog")]
    pub hang_detection: SimDuration,
    /// From the decision to the first step, without reading the checkpoint: scheduling, starting
    /// processes, communicators, warm-up.
    pub restart: SimDuration,
    /// Mean time for which a host that failed is away.
    pub repair: SimDuration,
    /// Hosts that become slow, per 1,000 host-days.
    #[serde(default)]
    pub slow_hosts: f64,
    /// How many times as long everything takes beside a slow host.
    #[serde(default = "one")]
    pub slowdown: f64,
    /// From the moment a host becomes slow to its exchange.
    #[serde(default = "half_a_day")]
    pub slow_detection: SimDuration,
    /// Source of each value, by field name; `"*"` covers the fields that are not named.
    #[serde(default)]
    pub sources: BTreeMap<String, String>,
}

impl FailureProfile {
    /// Interruptions of a component per GPU and day.
    pub fn per_gpu_day(&self, component: Component) -> f64 {
        self.interruptions.get(&component).copied().unwrap_or(0.0) / self.gpu_days
    }

    /// Unexpected interruptions per GPU and day.
    pub fn unexpected_per_gpu_day(&self) -> f64 {
        let unexpected = Component::ALL
            .into_iter()
            .filter(|component| *component != Component::Planned);
        unexpected
            .map(|component| self.per_gpu_day(component))
            .sum()
    }
}

/// NCCL's watchdog ends a collective after ten minutes.
fn watchdog() -> SimDuration {
    SimDuration::from_micros(600_000_000)
}

fn half_a_day() -> SimDuration {
    SimDuration::from_micros(43_200_000_000)
}

fn one() -> f64 {
    1.0
}
