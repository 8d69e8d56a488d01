//! A little more of one resource for a replay: what the elasticities of a trace are measured with.

use super::{Action, ReplayPlan, ReplaySetup};
use crate::resource::{Resource, STEP, shorter, wider};
use rackflow_network::Demand;
use rackflow_units::SimDuration;

/// What a replay cannot say of a resource, and why.
pub type Meaningless = &'static str;

impl Resource {
    /// The replay with a little more of this resource, and how many times as much that is. `plan` is
    /// that of `setup`.
    ///
    /// # Errors
    /// Where more of it has no meaning for this trace: why, as the second half of a sentence.
    pub fn more_of_replay(
        self,
        setup: &ReplaySetup,
        plan: &ReplayPlan,
    ) -> Result<(ReplaySetup, f64), Meaningless> {
        self.means_something(plan)?;
        let mut more = setup.clone();
        let floor = |more: &mut ReplaySetup| {
            more.cluster
                .for_each_node(|node| shorter(&mut node.accelerator.measured.kernel_floor, STEP));
        };
        let factor = match self {
            Self::RecordedKernels => {
                more.speed.kernels *= STEP;
                STEP
            }
            Self::Launch => {
                more.speed.host *= STEP;
                floor(&mut more);
                STEP
            }
            Self::HostLink => {
                more.cluster
                    .for_each_node(|node| wider(&mut node.accelerator.host_bandwidth, STEP));
                STEP
            }
            _ => self
                .of_hardware(&mut more.cluster, STEP)
                .ok_or("this cluster has none")?,
        };
        Ok((more, factor))
    }

    /// Whether a replay can answer to more of it.
    fn means_something(self, plan: &ReplayPlan) -> Result<(), Meaningless> {
        let counts = &plan.counts;
        let uses = |part: fn(&Demand) -> SimDuration| {
            plan.demands
                .iter()
                .any(|demand| part(demand) > SimDuration::ZERO)
        };
        let does = |wanted: fn(&Action) -> bool| {
            let nodes = plan.ranks.iter().flat_map(|rank| &rank.nodes);
            nodes.map(|node| &node.action).any(wanted)
        };
        let (fine, why) = match self {
            Self::RecordedKernels => (
                counts.kernels_recorded > 0,
                "no kernel takes its recorded time; all follow from operations and bytes",
            ),
            Self::TensorFlops | Self::MemoryBandwidth | Self::Clock => (
                counts.kernels_priced > 0,
                "kernels take as long as was recorded, and a trace does not say what held them; \
                 `kernels: roofline` takes their time from operations and bytes",
            ),
            Self::NvLink => (uses(|demand| demand.nvlink), "nothing crosses it"),
            Self::Nic => (uses(|demand| demand.nic), "nothing crosses them"),
            Self::Latency => (
                uses(|demand| demand.latency),
                "the trace has no communication that takes any",
            ),
            Self::Launch => (
                counts.kernels_priced > 0
                    || does(
                        |action| matches!(action, Action::Host(span) if *span > SimDuration::ZERO),
                    ),
                "the trace has no work of the host",
            ),
            Self::HostLink => (
                does(
                    |action| matches!(action, Action::Load(span) | Action::Store(span) if *span > SimDuration::ZERO),
                ),
                "nothing is loaded from or stored beyond the accelerator's memory",
            ),
            Self::VectorFlops => (
                false,
                "a trace counts operations, not the unit that runs them; all are taken for matrix products",
            ),
            Self::Exponentials => (false, "a trace does not count them"),
            Self::CommunicationSms => (
                false,
                "recorded kernels include what communication took from them, and are not slowed again",
            ),
            Self::MemoryCapacity => (
                false,
                "what runs is settled; only another plan could use it",
            ),
            Self::Batch => (false, "the trace is of one batch"),
            _ => (false, "it is of a service"),
        };
        if fine { Ok(()) } else { Err(why) }
    }
}
