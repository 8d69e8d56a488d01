//! Several jobs on one fabric, side by side.
//!
//! Every job repeats its step. Each has a clock and a queue of its own; the net is one, and the
//! job with the earliest event goes next. A flow of one job that changes the rate of another's
//! moves the end of that flow in the other's queue.

use crate::fabric::{self, JobLinks, Keep};
use crate::fold::Folding;
use crate::ports::{self, Toggle};
use crate::record::Record;
use crate::step::Step;
use rackflow_network::FlowNet;
use rackflow_plan::Plan;
use rackflow_units::{SimDuration, SimTime};

/// What happened to one job beside the others.
#[derive(Debug, Clone)]
pub struct JobRecord {
    /// The step whose time is nearest the mean of those that count.
    pub record: Record,
    /// Mean time of the steps that count: all but the first, which began when the fabric was empty,
    /// until every job had enough.
    pub step_time: SimDuration,
    /// The shortest and the longest of them.
    pub step_time_range: [SimDuration; 2],
    /// How many there are.
    pub steps: u64,
}

/// Steps of the slowest job that count.
const COUNTED: usize = 3;
/// Records of a job that are kept; of more steps only the times are.
const KEPT: usize = 16;

struct Job<'p> {
    plan: &'p Plan,
    folding: &'p Folding,
    first_port: u32,
    step: Step<'p>,
    began: SimTime,
    times: Vec<SimDuration>,
    records: Vec<Record>,
}

/// Simulates jobs that share a cluster until each has run a few steps beside the others.
///
/// # Panics
/// When the plans do not sit in one cluster, or as [`crate::simulate`].
pub fn simulate_jobs(plans: &[Plan]) -> Vec<JobRecord> {
    let plans: Vec<&Plan> = plans.iter().collect();
    let Some(first) = plans.first() else {
        return Vec::new();
    };
    let same = |plan: &&Plan| plan.setup.host() == first.setup.host();
    assert!(plans.iter().all(same), "jobs share one cluster");
    let health = ports::health(first);
    let (folded, fabric) = fabric::lay_out(&plans, &health, Keep::Narrow);
    let mut first_ports = Vec::new();
    let mut endpoints = 0;
    for folding in &folded {
        first_ports.push(endpoints);
        endpoints += 2 * folding.entities.len() as u32;
    }
    let mut net = FlowNet::with_links(endpoints as usize, &fabric.capacities);
    let parts = || plans.iter().zip(&folded).zip(&first_ports);
    for ((plan, folding), port) in parts() {
        ports::degrade(plan, folding, &health, *port, &mut net);
    }
    let toggles: Vec<Vec<Toggle>> = parts()
        .map(|((plan, folding), port)| ports::toggles(plan, folding, &health, &fabric, *port))
        .collect();
    let mut jobs: Vec<Job<'_>> = parts()
        .zip(&fabric.jobs)
        .zip(&toggles)
        .map(|((((plan, folding), port), links), toggles)| Job {
            plan,
            folding,
            first_port: *port,
            step: Step::beside(plan, folding, links, toggles, *port, SimTime::ZERO),
            began: SimTime::ZERO,
            times: Vec::new(),
            records: Vec::new(),
        })
        .collect();
    for index in 0..jobs.len() {
        with_net(&mut jobs, index, &mut net, |step| step.start());
    }
    while jobs.iter().any(|job| job.times.len() <= COUNTED) {
        let soonest = (0..jobs.len())
            .filter_map(|index| Some((jobs[index].step.next_time()?, index)))
            .min();
        let (_, index) = soonest.expect("a job that is over begins again");
        with_net(&mut jobs, index, &mut net, |step| {
            step.advance();
        });
        if jobs[index].step.next_time().is_none() {
            let fresh = (&fabric.jobs[index], toggles[index].as_slice());
            jobs[index].begin_again(fresh.0, fresh.1);
            with_net(&mut jobs, index, &mut net, |step| step.start());
        }
    }
    jobs.into_iter().map(Job::outcome).collect()
}

/// Lends the net to one job, and tells the others which of their flows it has moved.
fn with_net(
    jobs: &mut [Job<'_>],
    index: usize,
    net: &mut FlowNet,
    act: impl FnOnce(&mut Step<'_>),
) {
    let step = &mut jobs[index].step;
    std::mem::swap(net, &mut step.net);
    act(step);
    std::mem::swap(net, &mut step.net);
    let mut moved = std::mem::take(&mut step.foreign);
    for (flow, ends) in moved.drain(..) {
        for (other, job) in jobs.iter_mut().enumerate() {
            // A flow that ended at this very instant is nobody's any more.
            if other != index && job.step.ends_at(flow, ends) {
                break;
            }
        }
    }
    jobs[index].step.foreign = moved;
}

impl<'p> Job<'p> {
    fn begin_again(&mut self, links: &'p JobLinks, toggles: &'p [Toggle]) {
        let placeholder = Step::beside(
            self.plan,
            self.folding,
            links,
            toggles,
            self.first_port,
            self.began,
        );
        let finished = std::mem::replace(&mut self.step, placeholder);
        let record = finished.record(self.folding.class_of_rank.clone());
        self.began = self.began + record.step_time;
        self.times.push(record.step_time);
        if self.records.len() == KEPT {
            self.records.remove(0);
        }
        self.records.push(record);
        self.step = Step::beside(
            self.plan,
            self.folding,
            links,
            toggles,
            self.first_port,
            self.began,
        );
    }

    fn outcome(self) -> JobRecord {
        let counted = &self.times[1..];
        let sum = counted
            .iter()
            .fold(0_u128, |sum, time| sum + u128::from(time.as_picos()));
        let mean = SimDuration::from_picos((sum / counted.len() as u128) as u64);
        let off = |record: &Record| record.step_time.as_picos().abs_diff(mean.as_picos());
        let kept = self.records.len().min(counted.len());
        let records = &self.records[self.records.len() - kept..];
        let record = records.iter().min_by_key(|record| off(record));
        JobRecord {
            record: record.expect("a job has run steps").clone(),
            step_time: mean,
            step_time_range: [
                counted.iter().min().copied().unwrap_or(mean),
                counted.iter().max().copied().unwrap_or(mean),
            ],
            steps: counted.len() as u64,
        }
    }
}
