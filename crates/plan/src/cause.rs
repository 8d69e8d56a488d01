//! The causes to which every GPU-second is booked, each exactly once.

use rackflow_topology::Level;
use rackflow_units::SimDuration;

/// What a communication is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CommKind {
    /// Tensor parallelism.
    Tensor,
    /// Context parallelism.
    Context,
    /// Expert dispatch and combine.
    Expert,
    /// Between pipeline stages.
    Pipeline,
    /// Gradients and sharded parameters.
    Data,
}

impl CommKind {
    /// All kinds, in report order.
    pub const ALL: [Self; 5] = [
        Self::Tensor,
        Self::Context,
        Self::Expert,
        Self::Pipeline,
        Self::Data,
    ];

    /// Short name, such as "TP".
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tensor => "TP",
            Self::Context => "CP",
            Self::Expert => "EP",
            Self::Pipeline => "PP",
            Self::Data => "DP",
        }
    }
}

/// Why a GPU-second was spent. The causes of a run sum to GPUs x wall time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// Model FLOPs at the dense peak of the recipe's GEMM precision.
    UsefulMath,
    /// Math that runs in a wider format than the recipe's GEMMs (attention, logits, router).
    WiderPrecision,
    /// Clocks, power and operand delivery below the data-sheet peak.
    SustainedRate,
    /// Tile and wave quantisation, pipeline fill, ragged groups, masked blocks.
    Shape,
    /// Waiting for memory.
    MemoryBound,
    /// Waiting for the exponent unit.
    ExponentBound,
    /// Gaps between kernels: device floor and host launches.
    Launch,
    /// Computing activations a second time.
    Recomputation,
    /// Kernels slowed by communication that holds SMs and memory bandwidth.
    Contention,
    /// Waiting for a communication of this kind, whose slowest level is this.
    Exposed(CommKind, Level),
    /// Waiting for activations on their way to or from the host's memory.
    Offload,
    /// Memory goes back to the driver and is asked for again, close to its limit.
    Allocator,
    /// Waiting for another pipeline stage.
    Bubble,
    /// Waiting for partners that are not there yet, as the rank with more expert load is.
    Imbalance,
    /// A slower device, or waiting for partners where there is one.
    Straggler,
    /// Writing checkpoints.
    Checkpoint,
    /// Work that a failure undid.
    LostWork,
    /// Nothing to do.
    Idle,
}

const LEVELS: [Level; 4] = [Level::NvLink, Level::Leaf, Level::Spine, Level::Core];
const EXPOSED_AT: usize = 9;
const AFTER: usize = EXPOSED_AT + 20;

impl Cause {
    /// Number of causes.
    pub const COUNT: usize = AFTER + 8;

    /// Position in a table of all causes.
    pub const fn index(self) -> usize {
        match self {
            Self::UsefulMath => 0,
            Self::WiderPrecision => 1,
            Self::SustainedRate => 2,
            Self::Shape => 3,
            Self::MemoryBound => 4,
            Self::ExponentBound => 5,
            Self::Launch => 6,
            Self::Recomputation => 7,
            Self::Contention => 8,
            Self::Exposed(kind, level) => {
                let level = match level {
                    Level::Local | Level::NvLink => 0,
                    Level::Leaf => 1,
                    Level::Spine => 2,
                    Level::Core => 3,
                };
                EXPOSED_AT + kind as usize * 4 + level
            }
            Self::Offload => AFTER,
            Self::Allocator => AFTER + 1,
            Self::Bubble => AFTER + 2,
            Self::Imbalance => AFTER + 3,
            Self::Straggler => AFTER + 4,
            Self::Checkpoint => AFTER + 5,
            Self::LostWork => AFTER + 6,
            Self::Idle => AFTER + 7,
        }
    }

    /// Every cause, in waterfall order (the order of [`Cause::index`]).
    pub fn all() -> impl Iterator<Item = Self> {
        let exposed = CommKind::ALL.into_iter().flat_map(|kind| {
            LEVELS
                .into_iter()
                .map(move |level| Self::Exposed(kind, level))
        });
        [
            Self::UsefulMath,
            Self::WiderPrecision,
            Self::SustainedRate,
            Self::Shape,
            Self::MemoryBound,
            Self::ExponentBound,
            Self::Launch,
            Self::Recomputation,
            Self::Contention,
        ]
        .into_iter()
        .chain(exposed)
        .chain([
            Self::Offload,
            Self::Allocator,
            Self::Bubble,
            Self::Imbalance,
            Self::Straggler,
            Self::Checkpoint,
            Self::LostWork,
            Self::Idle,
        ])
    }

    /// Stable machine name, such as `exposed_ep_spine`.
    pub fn key(self) -> String {
        match self {
            Self::UsefulMath => "useful_math".into(),
            Self::WiderPrecision => "wider_precision".into(),
            Self::SustainedRate => "sustained_rate".into(),
            Self::Shape => "shape".into(),
            Self::MemoryBound => "memory_bound".into(),
            Self::ExponentBound => "exponent_bound".into(),
            Self::Launch => "launch".into(),
            Self::Recomputation => "recomputation".into(),
            Self::Contention => "contention".into(),
            Self::Exposed(kind, level) => format!("exposed_{}_{level}", kind.name()).to_lowercase(),
            Self::Offload => "offload".into(),
            Self::Allocator => "allocator".into(),
            Self::Bubble => "bubble".into(),
            Self::Imbalance => "imbalance".into(),
            Self::Straggler => "straggler".into(),
            Self::Checkpoint => "checkpoint".into(),
            Self::LostWork => "lost_work".into(),
            Self::Idle => "idle".into(),
        }
    }
}

/// Picoseconds by cause, for one rank or summed over many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accounts([u128; Cause::COUNT]);

impl Default for Accounts {
    fn default() -> Self {
        Self([0; Cause::COUNT])
    }
}

impl Accounts {
    /// Books `span` to `cause`.
    pub fn book(&mut self, cause: Cause, span: SimDuration) {
        self.0[cause.index()] += u128::from(span.as_picos());
    }

    /// Takes back a `span` that was booked to `cause`.
    ///
    /// # Panics
    /// When less than that was booked.
    pub fn unbook(&mut self, cause: Cause, span: SimDuration) {
        let booked = &mut self.0[cause.index()];
        *booked = booked
            .checked_sub(u128::from(span.as_picos()))
            .expect("only what was booked is taken back");
    }

    /// Books `span` to `cause` so many times.
    pub fn book_times(&mut self, cause: Cause, span: SimDuration, times: u64) {
        self.0[cause.index()] += u128::from(span.as_picos()) * u128::from(times);
    }

    /// Adds `times` copies of `other`.
    pub fn add(&mut self, other: &Self, times: u64) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs * u128::from(times);
        }
    }

    /// Each part divided by `by`, rounded down.
    #[must_use]
    pub fn divided_by(&self, by: u64) -> Self {
        Self(self.0.map(|picos| picos / u128::from(by)))
    }

    /// Picoseconds booked to `cause`.
    pub fn picos(&self, cause: Cause) -> u128 {
        self.0[cause.index()]
    }

    /// Seconds booked to `cause`.
    pub fn seconds(&self, cause: Cause) -> f64 {
        self.picos(cause) as f64 * 1e-12
    }

    /// Picoseconds in all.
    pub fn total_picos(&self) -> u128 {
        self.0.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_its_own_index() {
        let indices: Vec<usize> = Cause::all().map(Cause::index).collect();
        assert_eq!(indices, (0..Cause::COUNT).collect::<Vec<_>>());
    }
}
