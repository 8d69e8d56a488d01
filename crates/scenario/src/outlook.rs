//! What a scenario says besides its step: power and money, and the whole training run.

use crate::catalogue::Section;
use crate::diagnostic::Diagnostic;
use crate::document::{
    CheckpointMode, CheckpointText, CostText, EconomicsText, IntervalText, RunText, WorkloadText,
};
use crate::resolve::{Findings, Scenario};
use rackflow_plan::{
    Checkpoint, Cost, Economics, Interval, Length, MemoryTier, Outlook, Setup, TrainingRun,
};
use rackflow_topology::{Accelerator, Cluster, FailureProfile};

const RUN: &str = "workload.training.run";

impl Scenario {
    /// What the scenario says besides its step, which is `setup`.
    ///
    /// # Errors
    /// With everything that is wrong with it.
    pub fn outlook(&self, setup: &Setup) -> Result<Outlook, Vec<Diagnostic>> {
        let mut findings = self.findings();
        let economics = economics(&self.document().economics, &setup.cluster, &mut findings);
        let run = match &self.document().workload {
            WorkloadText::Training(training) => training.run.as_ref(),
            WorkloadText::Serving(_) | WorkloadText::Chakra(_) => None,
        };
        let run = run.and_then(|text| run_of(text, &mut findings));
        findings.into_result(Outlook { economics, run })
    }
}

fn economics(text: &EconomicsText, cluster: &Cluster, findings: &mut Findings<'_>) -> Economics {
    if !(1.0..=3.0).contains(&text.pue) {
        findings.report(findings.at("economics.pue", "a PUE is between 1 and 3").hint(
            "it is the power of the building over that of the racks: 1.1 in the best, 1.5 in older ones",
        ));
    }
    let kinds = cluster.kinds();
    // What one accelerator costs in the mean, where every kind has a price.
    let mean = |price: &dyn Fn(&Accelerator) -> Option<f64>| -> Option<f64> {
        let sum: Option<f64> = kinds
            .iter()
            .map(|kind| Some(price(&kind.node.accelerator)? * f64::from(kind.gpus)))
            .sum();
        Some(sum? / f64::from(cluster.gpus))
    };
    let price = mean(&|accelerator| Some(accelerator.price?.get()));
    let cost = match text.cost {
        None => price.map(|per_gpu_hour| Cost::Rent { per_gpu_hour }),
        Some(CostText::Rent(rent)) => Some(Cost::Rent {
            per_gpu_hour: rent.get(),
        }),
        Some(CostText::Purchase(purchase)) => {
            if purchase.years.is_nan() || purchase.years < 0.5 {
                findings.report(findings.at(
                    "economics.cost.purchase.years",
                    "hardware is used for half a year or more",
                ));
            }
            let given = purchase.per_gpu.map(|usd| usd.get());
            let capital = given.or_else(|| mean(&|accelerator| Some(accelerator.capital?.get())));
            if capital.is_none() {
                let unknown = kinds
                    .iter()
                    .map(|kind| &kind.node.accelerator)
                    .find(|accelerator| accelerator.capital.is_none());
                let message = format!(
                    "`per_gpu` is missing: the catalogue has no price of a {}",
                    unknown.map_or("GPU", |accelerator| &accelerator.name)
                );
                findings.report(
                    findings
                        .at("economics.cost.purchase", message)
                        .hint("such as per_gpu: 50000 USD"),
                );
            }
            capital.map(|capital| Cost::Purchase {
                per_gpu: capital,
                years: purchase.years,
                operation: purchase.operation,
            })
        }
    };
    Economics {
        pue: text.pue,
        electricity: text.electricity.get(),
        cost,
    }
}

fn run_of(text: &RunText, findings: &mut Findings<'_>) -> Option<TrainingRun> {
    let length = match (text.tokens, text.days) {
        (Some(tokens), None) if tokens >= 1.0 => Length::Tokens(tokens),
        (None, Some(days)) if days > 0.0 && days <= 3650.0 => Length::Days(days),
        (Some(_), None) => {
            findings
                .report(findings.at(&format!("{RUN}.tokens"), "a run trains one token or more"));
            return None;
        }
        (None, Some(_)) => {
            findings.report(findings.at(
                &format!("{RUN}.days"),
                "a run takes more than 0 and at most 3650 days",
            ));
            return None;
        }
        _ => {
            findings.report(
                findings
                    .at(RUN, "`run` takes either `tokens` or `days`")
                    .hint("such as tokens: 14.8e12"),
            );
            return None;
        }
    };
    let failures = text.failures.as_ref().and_then(|_| {
        let path = format!("{RUN}.failures");
        let (mut profile, name) = findings.named::<FailureProfile>(Section::Failures, &path)?;
        profile.name = name;
        check_profile(&profile, findings);
        Some(profile)
    });
    if text.failures.is_some() && text.checkpoint.is_none() {
        findings.report(
            findings
                .at(&format!("{RUN}.failures"), "`checkpoint` is missing: without one, every failure starts the run from its beginning")
                .hint("such as checkpoint: { write: 200 GB/s }"),
        );
    }
    if text.replications == 0 || text.replications > 10_000 {
        findings.report(findings.at(
            &format!("{RUN}.replications"),
            "a run is simulated between 1 and 10,000 times",
        ));
    }
    Some(TrainingRun {
        length,
        checkpoint: text
            .checkpoint
            .as_ref()
            .and_then(|text| checkpoint(text, findings)),
        failures,
        spares: text.spares,
        elastic: text.elastic,
        replications: text.replications,
    })
}

fn check_profile(profile: &FailureProfile, findings: &mut Findings<'_>) {
    let at = |findings: &Findings<'_>, key: &str, message: &str| {
        findings.at(&format!("{RUN}.failures.{key}"), message)
    };
    let counts = profile.interruptions.values();
    let refused = [
        (
            "gpu_days",
            "`gpu_days` is above zero",
            profile.gpu_days > 0.0,
        ),
        (
            "interruptions",
            "a count of interruptions is not negative",
            counts.into_iter().all(|count| *count >= 0.0),
        ),
        (
            "gpus_per_host",
            "a host has one GPU or more",
            profile.gpus_per_host > 0,
        ),
        (
            "hang_fraction",
            "`hang_fraction` is between 0 and 1",
            (0.0..=1.0).contains(&profile.hang_fraction),
        ),
        (
            "slow_hosts",
            "`slow_hosts` is not negative",
            profile.slow_hosts >= 0.0,
        ),
        (
            "slowdown",
            "`slowdown` is 1 or more: 1.1 is 10 % slower",
            profile.slowdown >= 1.0,
        ),
    ];
    for (key, message, holds) in refused {
        if !holds {
            findings.report(at(findings, key, message));
        }
    }
}

fn checkpoint(text: &CheckpointText, findings: &mut Findings<'_>) -> Option<Checkpoint> {
    let path = |key: &str| format!("{RUN}.checkpoint.{key}");
    let read = text.read.unwrap_or(text.write);
    for (key, rate) in [("write", text.write), ("read", read)] {
        if rate.bytes_per_sec() < 1_000_000 {
            findings.report(findings.at(
                &path(key),
                "a whole cluster reaches its storage with 1 MB/s or more",
            ));
            return None;
        }
    }
    if text.interval == IntervalText::Steps(0) {
        findings.report(findings.at(&path("interval"), "checkpoints are one step apart or more"));
    }
    if text
        .memory
        .is_some_and(|tier| !(0.0..=1.0).contains(&tier.survives) || tier.steps == 0)
    {
        findings.report(findings.at(
            &path("memory"),
            "`survives` is between 0 and 1, and `steps` is 1 or more",
        ));
    }
    Some(Checkpoint {
        interval: match text.interval {
            IntervalText::YoungDaly => Interval::YoungDaly,
            IntervalText::Time(time) => Interval::Time(time),
            IntervalText::Steps(steps) => Interval::Steps(steps),
        },
        synchronous: text.mode == CheckpointMode::Synchronous,
        write: text.write,
        read,
        memory: text.memory.map(|tier| MemoryTier {
            steps: tier.steps,
            stall: tier.stall,
            survives: tier.survives,
        }),
    })
}
