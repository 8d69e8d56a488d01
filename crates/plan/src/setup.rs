//! A scenario as meant: every name looked up, every default filled in, no strings to parse.

use rackflow_topology::{Cluster, LinkFault};
use rackflow_workload::Training;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// Which ranks are simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fidelity {
    /// Ranks that cannot differ are simulated once. The report is identical.
    Folded,
    /// Every rank is simulated.
    Full,
}

/// Which ranks are neighbours in the hall. Tensor-parallel ranks always come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RankOrder {
    /// Tensor, context, data, pipeline (Megatron's default): a stage is contiguous.
    DataBeforePipeline,
    /// Tensor, context, pipeline, data (Llama 3): a model replica is contiguous.
    PipelineBeforeData,
}

/// One GPU that computes more slowly than the others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Straggler {
    /// Which GPU.
    pub gpu: u32,
    /// Its kernels take this many times as long (1.1 is 10 % slower).
    pub slowdown: f64,
}

/// How much longer kernels take than undisturbed ones, drawn at random: `exp(sigma |z|)` times as
/// long, z normal. These are the sigmas.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Jitter {
    /// Of each GPU, for the whole step: cooling, power, silicon.
    pub gpu: f64,
    /// Of each run of kernels on each GPU: clocks that move, interrupts, other traffic.
    pub kernel: f64,
    /// Part of the nodes that are slow for the whole step, each by [`SLOW_NODE`].
    pub slow_nodes: f64,
}

/// Times that kernels of a slow node take: BLOOM fell from 149 to 140 TFLOP/s per GPU for one of its 48
/// nodes (bigscience-workshop/bigscience 9e64ede, train/tr11-176B-ml/chronicles.md).
pub const SLOW_NODE: f64 = 149.0 / 140.0;

/// No draw is slower than this.
pub const MOST_JITTER: f64 = 16.0;

impl Jitter {
    /// No jitter at all.
    pub const NONE: Self = Self {
        gpu: 0.0,
        kernel: 0.0,
        slow_nodes: 0.0,
    };

    /// Whether there is none.
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

/// Standard normal numbers: how far the tokens at a rank's experts lie from their mean, pass by pass.
///
/// Whoever makes a [`Setup`] draws them from a labelled stream of its seed, for random streams are not
/// this crate's. Clones share them.
#[derive(Clone)]
pub struct TokenDraws(Arc<[i32]>);

/// One, as draws are kept.
const UNIT: f64 = (1 << 24) as f64;

impl TokenDraws {
    /// Ranks that have draws of their own.
    pub const RANKS: u32 = 16;
    /// Draws of each; what asks for more begins again.
    pub const OF_RANK: u32 = 1024;

    /// With the numbers that `of_rank` gives for each rank in turn.
    pub fn new<N: FnMut() -> f64>(mut of_rank: impl FnMut(u32) -> N) -> Self {
        let ranks = (0..Self::RANKS).flat_map(|rank| {
            let mut next = of_rank(rank);
            (0..Self::OF_RANK).map(move |_| (next() * UNIT) as i32)
        });
        Self(ranks.collect())
    }

    /// Every rank gets the mean, always.
    pub fn none() -> Self {
        Self(Arc::new([]))
    }

    /// Number `count` of a rank.
    pub(crate) fn of(&self, rank: u32, count: u32) -> f64 {
        let rank = rank % Self::RANKS;
        let place = rank * Self::OF_RANK + count % Self::OF_RANK;
        let draw = self.0.get(place as usize).copied().unwrap_or(0);
        f64::from(draw) / UNIT
    }
}

impl Ord for TokenDraws {
    fn cmp(&self, other: &Self) -> Ordering {
        // Nearly always those of one setup.
        match Arc::ptr_eq(&self.0, &other.0) {
            true => Ordering::Equal,
            false => self.0.cmp(&other.0),
        }
    }
}

impl PartialOrd for TokenDraws {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for TokenDraws {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for TokenDraws {}

impl fmt::Debug for TokenDraws {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenDraws({} numbers)", self.0.len())
    }
}

/// Where the ranks of a job sit in a cluster that it shares with others.
#[derive(Debug, Clone, PartialEq)]
pub struct Seats {
    /// The whole cluster.
    pub cluster: Cluster,
    /// GPU of every rank, each at most once.
    pub gpus: Vec<u32>,
}

/// Everything a run needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    /// Name of the scenario, for the report.
    pub name: String,
    /// The hardware.
    pub cluster: Cluster,
    /// The work.
    pub training: Training,
    /// How ranks are numbered over GPUs.
    pub rank_order: RankOrder,
    /// Where the ranks sit, if the cluster is a part of a larger one; else rank r sits on GPU r.
    pub seats: Option<Seats>,
    /// Slower devices.
    pub stragglers: Vec<Straggler>,
    /// How unevenly kernels run.
    pub jitter: Jitter,
    /// Dead, slow and flapping links, by GPU and leaf of the whole cluster.
    pub faults: Vec<LinkFault>,
    /// Which ranks are simulated.
    pub fidelity: Fidelity,
    /// Root of all random streams.
    pub seed: u64,
    /// Drawn from it: how tokens fall on experts.
    pub token_draws: TokenDraws,
    /// How many seeds are asked for, from `seed` on; 1 for a step and no spread.
    pub seeds: u32,
}

impl Setup {
    /// The cluster that the ranks sit in, with whatever else is there.
    pub fn host(&self) -> &Cluster {
        self.seats
            .as_ref()
            .map_or(&self.cluster, |seats| &seats.cluster)
    }

    /// The GPU of a rank, counted over [`Setup::host`].
    pub fn gpu_of(&self, rank: u32) -> u32 {
        self.seats
            .as_ref()
            .map_or(rank, |seats| seats.gpus[rank as usize])
    }
}
