//! Beyond the step: what it draws and costs, and what a whole run comes to.

use crate::causes::{explain, key};
use crate::report::{Loss, Report};
use crate::scaling_law::{CHINCHILLA_REFIT, ComputeOptimal};
use rackflow_plan::{Accounts, Cause, Cost, Economics as Prices};
use rackflow_simulator::{Record, Replication, RunRecord};
use rackflow_topology::{Accelerator, Component, Part};
use rackflow_units::Precision;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

const HOURS_PER_YEAR: f64 = 8766.0;

/// Share of what a rack is rated for beyond its GPUs' limit that is drawn under load: an 8-GPU H100
/// server rated at 10.2 kW draws at most 8.4 kW, 5.6 of them by the GPUs (arXiv 2412.08602).
const REST_OF_RACK: f64 = 0.6;

/// What the cluster draws and costs while it works.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Economics {
    /// Mean power of one accelerator over the step, in watts.
    pub gpu_watts: f64,
    /// Power of a full rack under this load, without cooling, in kilowatts.
    pub kw_per_rack: f64,
    /// What one rack draws where its accelerators stand idle, in kilowatts.
    pub kw_per_idle_rack: f64,
    /// Power of the building over power of the racks.
    pub pue: f64,
    /// Power of the whole cluster under this load, cooling included, in megawatts.
    pub facility_mw: f64,
    /// Energy per trained token, cooling included, in joules.
    pub joules_per_token: f64,
    /// Cost of one accelerator for one hour, all included. Absent where no price is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usd_per_gpu_hour: Option<f64>,
    /// Cost of a million tokens while steps run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usd_per_million_tokens: Option<f64>,
    /// `rent` or `purchase`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paid_by: Option<String>,
}

/// A mean with its confidence interval over replications.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Estimate {
    /// Mean over the replications.
    pub mean: f64,
    /// Lower end of the interval that holds the expected value with 95 % confidence (Student's t).
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// Standard deviation from run to run.
    pub deviation: f64,
}

/// What a whole training run comes to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// Runs simulated, each with its own random numbers.
    pub replications: u64,
    /// Runs that trained all their tokens; the others were given up after twenty times as long.
    pub finished: u64,
    /// Tokens trained and kept.
    pub tokens: Estimate,
    /// Days from start to end.
    pub days: Estimate,
    /// Days that the same tokens would take if nothing interrupted the steps.
    pub undisturbed_days: f64,
    /// Useful time over wall time: steps at full pace that are kept.
    pub goodput: Estimate,
    /// Effective training time ratio: time in which steps run that are kept, at whatever pace, over
    /// wall time.
    pub ettr: Estimate,
    /// Unexpected interruptions.
    pub interruptions: Estimate,
    /// Interruptions by component, mean over the replications.
    pub by_component: Vec<ComponentCount>,
    /// Mean time between unexpected interruptions, in hours. Absent where nothing fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtbf_hours: Option<f64>,
    /// What interrupts the run: name of the failure profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failures: Option<String>,
    /// How its state is saved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointReport>,
    /// From peak to effective over the whole run: the waterfall of the step, shortened by what the
    /// run loses besides. The fractions sum to 1.
    pub waterfall: Vec<Loss>,
    /// Energy, cooling included, in megawatt-hours; mean over the replications.
    pub mwh: f64,
    /// Cost in USD; mean over the replications. Absent where no price is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usd: Option<f64>,
    /// What the trained model is worth, by a published scaling law.
    pub scaling_law: ScalingLawReport,
}

/// How often a component interrupted the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ComponentCount {
    /// `gpu`, `hbm`, `nic`, `switch`, `host`, `software` or `planned`.
    pub component: String,
    /// Interruptions, mean over the replications.
    pub interruptions: f64,
}

/// Checkpoints of a run. Times in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CheckpointReport {
    /// Size of one.
    pub bytes: u64,
    /// Between the starts of two.
    pub interval_s: f64,
    /// For which each holds the run up.
    pub stall_s: f64,
    /// Until one is safe on storage.
    pub write_s: f64,
    /// Reading one back.
    pub read_s: f64,
    /// The interval that Young and Daly give for this stall and rate of failures. Absent where
    /// nothing fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub young_daly_s: Option<f64>,
    /// Checkpoints that reached storage, mean over the replications.
    pub written: f64,
}

/// What the run's tokens and compute are worth, by L(N, D) = E + A / N^alpha + B / D^beta with the
/// constants of Besiroglu et al. 2024 (arXiv 2404.10102). It ranks runs; it is not the loss on other
/// data. Parameters are those that a token meets, which understates a mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScalingLawReport {
    /// Loss of this model after these tokens, in nats per token.
    pub loss: f64,
    /// The dense model that the same FLOPs serve best.
    pub compute_optimal: ComputeOptimal,
}

/// Mean share of its limit that an accelerator draws over these accounts.
fn load(accounts: &Accounts, accelerator: &Accelerator, native: Precision) -> f64 {
    let draw = &accelerator.draw;
    let math = draw.math.get(native);
    let of_cause = |cause: Cause| match cause {
        Cause::UsefulMath
        | Cause::WiderPrecision
        | Cause::SustainedRate
        | Cause::Shape
        | Cause::ExponentBound
        | Cause::Recomputation
        | Cause::Contention => math,
        Cause::MemoryBound => draw.memory,
        Cause::Launch
        | Cause::Exposed(..)
        | Cause::Offload
        | Cause::Allocator
        | Cause::Bubble
        | Cause::Imbalance
        | Cause::Straggler => draw.waiting,
        Cause::Checkpoint | Cause::LostWork | Cause::Idle => draw.idle,
    };
    let all = accounts.total_picos() as f64;
    Cause::all()
        .map(|cause| accounts.picos(cause) as f64 / all * of_cause(cause))
        .sum()
}

/// What the cluster draws and costs while `report` is true. Of several kinds of node, what is said of
/// one accelerator or one rack is the mean.
pub(crate) fn economics(record: &Record, report: &Report, prices: &Prices) -> Economics {
    let facts = &record.facts;
    let (mut gpu_watts, mut kw, mut idle_kw, mut racks) = (0.0, 0.0, 0.0, 0.0);
    for (index, Part { node, gpus }) in facts.cluster.kinds().iter().enumerate() {
        let limit = node.accelerator.power.watts();
        let rated_rest = node.rack.power.watts() - f64::from(node.rack.gpus) * limit;
        let rest = REST_OF_RACK * rated_rest.max(0.0);
        let rack = |gpu_watts: f64| (f64::from(node.rack.gpus) * gpu_watts + rest) * 1e-3;
        let watts = load(&of_kind(record, index), &node.accelerator, facts.native) * limit;
        let count = f64::from(*gpus) / f64::from(node.rack.gpus);
        racks += count;
        gpu_watts += watts * f64::from(*gpus);
        kw += rack(watts) * count;
        idle_kw += rack(node.accelerator.draw.idle * limit) * count;
    }
    let gpus = f64::from(facts.cluster.gpus);
    let facility_mw = kw * prices.pue * 1e-3;
    let tokens_per_s = report.training.tokens_per_s;
    let kw_per_gpu = kw / gpus * prices.pue;
    let usd_per_gpu_hour = prices.cost.map(|cost| match cost {
        Cost::Rent { per_gpu_hour } => per_gpu_hour,
        Cost::Purchase {
            per_gpu,
            years,
            operation,
        } => per_gpu * (1.0 / years + operation) / HOURS_PER_YEAR + kw_per_gpu * prices.electricity,
    });
    Economics {
        gpu_watts: gpu_watts / gpus,
        kw_per_rack: kw / racks,
        kw_per_idle_rack: idle_kw / racks,
        pue: prices.pue,
        facility_mw,
        joules_per_token: facility_mw * 1e6 / tokens_per_s,
        usd_per_gpu_hour,
        usd_per_million_tokens: usd_per_gpu_hour
            .map(|usd| usd * gpus / 3600.0 / tokens_per_s * 1e6),
        paid_by: prices.cost.map(|cost| {
            match cost {
                Cost::Rent { .. } => "rent",
                Cost::Purchase { .. } => "purchase",
            }
            .to_owned()
        }),
    }
}

/// Accounts of all ranks on one kind of accelerator, by its place among the kinds.
fn of_kind(record: &Record, kind: usize) -> Accounts {
    let mut sum = Accounts::default();
    let classes = record.classes.iter();
    for class in classes.filter(|class| class.kind as usize == kind) {
        sum.add(&class.accounts, u64::from(class.ranks));
    }
    sum
}

const SECONDS: f64 = 1e-9;
const DAYS: f64 = 1e-9 / 86_400.0;

/// What a simulated run means, on top of the report of its step.
pub(crate) fn run(record: &RunRecord, report: &Report, economics: &Economics) -> Run {
    let all = &record.replications;
    let estimate =
        |value: &dyn Fn(&Replication) -> f64| estimate(&all.iter().map(value).collect::<Vec<_>>());
    let share = |value: &dyn Fn(&Replication) -> u64| {
        estimate(&|r: &Replication| value(r) as f64 / r.wall.max(1) as f64)
    };
    let useful_days = estimate(&|r| r.time.useful as f64 * DAYS);
    let step_s = record.step.as_secs_f64();
    let tokens = estimate(&|r| r.time.useful as f64 * SECONDS / step_s * record.tokens_per_step);
    let goodput = share(&|r| r.time.useful);
    let days = estimate(&|r| r.wall as f64 * DAYS);
    let unexpected = |r: &Replication| -> u64 {
        Component::ALL
            .iter()
            .zip(r.interruptions)
            .filter(|(component, _)| **component != Component::Planned)
            .map(|(_, count)| count)
            .sum()
    };
    let mean = |value: &dyn Fn(&Replication) -> f64| estimate(value).mean;
    let running =
        mean(&|r| (r.time.useful + r.time.slow + r.time.lost) as f64 / r.wall.max(1) as f64);
    let racks = economics.facility_mw * 1e3 / (economics.pue * economics.kw_per_rack);
    let kw = running * economics.kw_per_rack + (1.0 - running) * economics.kw_per_idle_rack;
    let hours = days.mean * 24.0;
    let flops = report.model.flops_per_step_causal * tokens.mean / record.tokens_per_step;
    Run {
        replications: all.len() as u64,
        finished: all.iter().filter(|r| r.finished).count() as u64,
        tokens,
        days,
        undisturbed_days: useful_days.mean,
        goodput,
        ettr: share(&|r| r.time.useful + r.time.slow + r.time.shrunk),
        interruptions: estimate(&|r| unexpected(r) as f64),
        by_component: Component::ALL
            .iter()
            .enumerate()
            .map(|(index, component)| ComponentCount {
                component: component.key().to_owned(),
                interruptions: mean(&|r| r.interruptions[index] as f64),
            })
            .filter(|count| count.interruptions > 0.0)
            .collect(),
        mtbf_hours: record.mtbf_s.is_finite().then_some(record.mtbf_s / 3600.0),
        failures: record
            .run
            .failures
            .as_ref()
            .map(|profile| profile.name.clone()),
        checkpoint: record.run.checkpoint.map(|_| CheckpointReport {
            bytes: record.checkpoint_bytes,
            interval_s: record.interval_s,
            stall_s: record.stall_s,
            write_s: record.write_s,
            read_s: record.read_s,
            young_daly_s: record
                .mtbf_s
                .is_finite()
                .then(|| rackflow_simulator::young_daly(record.stall_s, record.mtbf_s)),
            written: mean(&|r| r.checkpoints as f64),
        }),
        waterfall: waterfall(record, report),
        mwh: kw * 1e-3 * racks * economics.pue * hours,
        usd: economics
            .usd_per_gpu_hour
            .map(|usd| usd * report.cluster.gpus as f64 * hours),
        scaling_law: ScalingLawReport {
            loss: CHINCHILLA_REFIT.loss(report.model.active_parameters, tokens.mean.max(1.0)),
            compute_optimal: CHINCHILLA_REFIT.optimal(flops.max(1.0)),
        },
    }
}

/// Mean and confidence interval of independent values.
fn estimate(values: &[f64]) -> Estimate {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    if values.len() < 2 {
        return Estimate {
            mean,
            low: mean,
            high: mean,
            deviation: 0.0,
        };
    }
    let deviation = (squares / (n - 1.0)).sqrt();
    let t = StudentsT::new(0.0, 1.0, n - 1.0).map_or(1.96, |t| t.inverse_cdf(0.975));
    let reach = t * deviation / n.sqrt();
    Estimate {
        mean,
        low: mean - reach,
        high: mean + reach,
        deviation,
    }
}

/// The step's waterfall, shortened to the time in which steps are kept, and what the run loses.
fn waterfall(record: &RunRecord, report: &Report) -> Vec<Loss> {
    let gpus = report.cluster.gpus as f64;
    let wall: f64 = record.replications.iter().map(|r| r.wall as f64).sum();
    let share = |pick: &dyn Fn(&Replication) -> u64| {
        record
            .replications
            .iter()
            .map(|r| pick(r) as f64)
            .sum::<f64>()
            / wall.max(1.0)
    };
    let kept = share(&|r| r.time.useful);
    let besides = |cause: Cause| match cause {
        Cause::Straggler => share(&|r| r.time.slow),
        Cause::Checkpoint => share(&|r| r.time.checkpoint),
        Cause::LostWork => share(&|r| r.time.lost),
        Cause::Idle => {
            share(&|r| r.time.detection + r.time.restart + r.time.waiting + r.time.shrunk)
        }
        _ => 0.0,
    };
    let mean_wall_s = wall * SECONDS / record.replications.len().max(1) as f64;
    Cause::all()
        .filter_map(|cause| {
            let name = key(cause);
            let in_step = report.waterfall.iter().find(|loss| loss.cause == name);
            let fraction = in_step.map_or(0.0, |loss| loss.fraction * kept) + besides(cause);
            (fraction > 0.0).then(|| {
                let words = explain(cause);
                Loss {
                    cause: name,
                    label: words.label,
                    explanation: words.sentence,
                    gpu_seconds: fraction * gpus * mean_wall_s,
                    fraction,
                }
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_is_a_mean_with_students_interval() {
        let found = estimate(&[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(found.mean, 2.5);
        // t(3, 0.975) = 3.1824; standard error = 1.2910 / 2.
        assert!(
            (found.high - (2.5 + 3.1824 * 0.645_497)).abs() < 1e-3,
            "{found:?}"
        );
        assert_eq!(estimate(&[7.0]).low, 7.0);
    }
}
