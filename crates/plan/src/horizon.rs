//! Whether a step is sure to end while simulated time lasts.
//!
//! Simulated time ends after 213 days. A step of hardware that somebody mistyped may not, so a bound
//! is held against that limit before anything runs.

use crate::compile::Plan;
use crate::error::{Longest, PlanError};
use crate::program::{SEGMENT_LEVELS, Stream, Work};
use crate::setup::MOST_JITTER;
use rackflow_units::SimDuration;
use rackflow_workload::Routing;

/// Half of what simulated time can say. What is below it leaves room for rounding.
const LIMIT: SimDuration = SimDuration::from_picos(u64::MAX / 2);

/// Flows that a rank can have at once, one per stream of communication. Each slows the others at
/// most as if it took as much of their links as they do themselves.
const MOST_FLOWS: u128 = Stream::COUNT as u128;

/// Holds the longest that the step can take against [`LIMIT`].
///
/// # Why it is an upper bound
/// What ends last waited for something that ended when it began, and so on back to the start. Such a
/// chain meets each task of each stage at most once, on whichever rank: a task waits for earlier
/// tasks of its own stage and for messages, and a schedule that met one twice would be stuck. So
/// the step takes no longer than all tasks of all stages one after the other, each with the host
/// time to issue it, on the slowest rank, with the most that can run beside it.
pub(crate) fn check(plan: &Plan) -> Result<(), PlanError> {
    let (longest, total) = longest(plan);
    if total <= u128::from(LIMIT.as_picos()) {
        return Ok(());
    }
    Err(PlanError::TooLong {
        longest,
        bound: SimDuration::from_picos(u64::try_from(total).unwrap_or(u64::MAX)),
    })
}

/// The bound in picoseconds, and what makes the most of it.
fn longest(plan: &Plan) -> (Longest, u128) {
    let slowdown = plan
        .setup
        .stragglers
        .iter()
        .map(|straggler| straggler.slowdown.ceil() as u128)
        .max()
        .unwrap_or(1);
    let drawn = |sigma: f64| if sigma > 0.0 { MOST_JITTER as u128 } else { 1 };
    let jitter = plan.setup.jitter;
    let slowdown = slowdown * drawn(jitter.gpu) * drawn(jitter.kernel);
    // The loads of a group sum to its ranks.
    let load = match plan.setup.training.routing {
        Routing::Balanced => 1,
        Routing::Lognormal { .. } => u128::from(plan.setup.training.parallelism.expert),
    };
    let (mut computation, mut communication, mut host) = (0u128, 0u128, 0u128);
    for task in plan.programs.iter().flat_map(|program| &program.tasks) {
        match task.work {
            Work::Compute(id) => {
                let on = |kind: usize| &plan.segments_on(kind as u32)[id.0 as usize];
                let all = (0..plan.kinds()).map(|kind| {
                    let segment = on(kind);
                    picos(segment.time[SEGMENT_LEVELS - 1]) + picos(segment.memory_time)
                });
                let span = all.max().unwrap_or(0);
                let segment = on(0);
                let load = if segment.routed { load } else { 1 };
                computation = computation.saturating_add(span * load * slowdown + 1);
                let launches = (0..plan.kinds()).map(|kind| picos(on(kind).launch));
                host = host.saturating_add(launches.max().unwrap_or(0));
            }
            Work::Collective(_, id) | Work::Send(_, id) | Work::Copy(id) => {
                let slowest = plan.demands[id.0 as usize]
                    .iter()
                    .map(|demand| picos(demand.latency) + picos(demand.nvlink) + picos(demand.nic))
                    .max();
                let span = slowest.unwrap_or(0) * MOST_FLOWS * load + 1;
                communication = communication.saturating_add(span);
                host = host.saturating_add(picos(plan.communication_launch));
            }
            Work::Receive(..) => host = host.saturating_add(picos(plan.communication_launch)),
        }
    }
    let total = computation
        .saturating_add(communication)
        .saturating_add(host);
    let longest = if computation >= communication.max(host) {
        Longest::Computation
    } else if communication >= host {
        Longest::Communication
    } else {
        Longest::Host
    };
    (longest, total)
}

fn picos(span: SimDuration) -> u128 {
    u128::from(span.as_picos())
}
