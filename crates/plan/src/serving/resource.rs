//! A little more of one resource of a fleet: what the elasticities of a service are measured with.

use super::{FleetPlan, FleetSetup, PoolSetup};
use crate::resource::{Resource, SERVING_STEP, shorter, wider};
use rackflow_units::SimDuration;
use rackflow_workload::Preemption;

impl Resource {
    /// The fleet with a little more of this resource, and how many times as much that is. `None`
    /// where the fleet has no such thing.
    pub fn more_of_fleet(self, plan: &FleetPlan) -> Option<(FleetSetup, f64)> {
        self.more_of_fleet_by(plan, SERVING_STEP)
    }

    /// The same with `step` times as much, where the resource can grow by any amount. Of a fleet that
    /// shares a cluster the whole cluster grows: give every job of it as much more.
    pub fn more_of_fleet_by(self, plan: &FleetPlan, step: f64) -> Option<(FleetSetup, f64)> {
        let mut more = plan.setup.clone();
        let factor = match self {
            Self::KvCapacity => {
                for (pool, instance) in more.pools.iter_mut().zip(&plan.instances) {
                    let stack = &mut pool.deployment.stack;
                    let cache = instance.memory().cache.as_f64();
                    let memory = more.clusters[pool.cluster].node.accelerator.memory.as_f64();
                    stack.memory_fraction *= if stack.fraction_of_free {
                        step
                    } else {
                        1.0 + (step - 1.0) * cache / (memory * stack.memory_fraction)
                    };
                }
                step
            }
            Self::Sequences => higher(&mut more, step, |pool| &mut pool.engine.max_num_seqs),
            Self::StepTokens => {
                let factor = higher(&mut more, step, |pool| {
                    &mut pool.engine.max_num_batched_tokens
                });
                more.pools.iter_mut().for_each(PoolSetup::fit_activations);
                factor
            }
            Self::HostLink => {
                let swaps = |pool: &PoolSetup| pool.engine.preemption == Preemption::Swap;
                if !more.pools.iter().any(swaps) {
                    return None;
                }
                for cluster in &mut more.clusters {
                    wider(&mut cluster.node.accelerator.host_bandwidth, step);
                }
                step
            }
            Self::Store => {
                if more.store.is_empty() {
                    return None;
                }
                for tier in &mut more.store {
                    wider(&mut tier.read, step);
                    if let Some(write) = &mut tier.write {
                        wider(write, step);
                    }
                    shorter(&mut tier.latency, step);
                }
                step
            }
            Self::Server => times(&mut more, step, |pool| {
                vec![&mut pool.deployment.stack.request_overhead]
            })?,
            Self::KernelLatency => {
                for pool in &mut more.pools {
                    pool.deployment.kernel_latency /= step;
                }
                step
            }
            Self::Launch => {
                for cluster in &mut more.clusters {
                    shorter(&mut cluster.node.accelerator.measured.kernel_floor, step);
                }
                times(&mut more, step, |pool| {
                    let stack = &mut pool.deployment.stack;
                    vec![
                        &mut stack.launch,
                        &mut stack.eager_mixture,
                        &mut stack.eager_fused_mixture,
                        &mut stack.eager_latent,
                        &mut stack.step_overhead,
                        &mut stack.sequence_overhead,
                        &mut stack.prompt_overhead,
                    ]
                })?
            }
            Self::CommunicationSms => fewer_sms(&mut more)?,
            _ => {
                let seats = more.seats.as_mut().map(|seats| &mut seats.cluster);
                let clusters = more.clusters.iter_mut().chain(seats);
                self.of_clusters(clusters, step)?
            }
        };
        Some((more, factor))
    }
}

/// Raises a limit of every pool by one at least: how many times as high the one that rises most is.
fn higher(setup: &mut FleetSetup, step: f64, limit: impl Fn(&mut PoolSetup) -> &mut u32) -> f64 {
    let mut most: f64 = 1.0;
    for pool in &mut setup.pools {
        let limit = limit(pool);
        let before = f64::from(*limit);
        *limit = ((before * step) as u32).max(limit.saturating_add(1));
        most = most.max(f64::from(*limit) / before);
    }
    most
}

/// Shortens times of every pool; `None` where all are zero.
fn times(
    setup: &mut FleetSetup,
    step: f64,
    of: impl Fn(&mut PoolSetup) -> Vec<&mut SimDuration>,
) -> Option<f64> {
    let mut any = false;
    for pool in &mut setup.pools {
        for time in of(pool) {
            any |= *time > SimDuration::ZERO;
            shorter(time, step);
        }
    }
    any.then_some(step)
}

/// One SM fewer for exchanges of tokens.
fn fewer_sms(setup: &mut FleetSetup) -> Option<f64> {
    let mut factor: Option<f64> = None;
    for pool in &mut setup.pools {
        let held = &mut pool.deployment.stack.dispatch_sms;
        if *held > 1 && pool.deployment.parallelism.data > 1 {
            let times = f64::from(*held) / f64::from(*held - 1);
            *held -= 1;
            factor = Some(factor.map_or(times, |most| most.max(times)));
        }
    }
    factor
}
