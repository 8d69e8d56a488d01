//! Other plans for the same work on the same cluster.
//!
//! [`Search`] lists every plan that divides the work without a remainder, in [`Branch`]es that
//! share the cost of a layer. [`Search::expand`] says of each plan of a branch whether it fits into
//! memory, and bounds its step time from below ([`crate::bound`]), so that a plan that cannot win
//! needs no simulation.

use crate::bound::{self, PieceTimes};
use crate::compile::Compiler;
use crate::error::{self, PlanError};
use crate::memory::{self, MemoryUse};
use crate::placement::Placement;
use crate::schedule::Shape;
use crate::setup::{RankOrder, Setup};
use rackflow_topology::ClusterMap;
use rackflow_units::{Bytes, SimDuration};
use rackflow_workload::{Attention, Parallelism, Recipe, Recompute, Schedule, Zero};

/// Most virtual stages that are tried.
const MOST_VIRTUAL: u32 = 12;
/// Most sequences in a micro-batch that are tried.
const MOST_MICRO_BATCH: u64 = 8;
/// Schedules that are tried. GPipe is left out: 1F1B takes the same time and less memory.
const SCHEDULES: [Schedule; 4] = [
    Schedule::OneForwardOneBackward,
    Schedule::ZeroBubbleH1,
    Schedule::ZeroBubbleH2,
    Schedule::Dualpipe,
];

/// How a plan may differ from the scenario's own.
#[derive(Debug, Clone, PartialEq)]
pub struct Space {
    /// Number formats that are tried.
    pub recipes: Vec<Recipe>,
    /// Recomputation that is tried.
    pub recomputes: Vec<Recompute>,
}

impl Space {
    /// The scenario's number formats; no, full and the scenario's own recomputation.
    pub fn of(setup: &Setup) -> Self {
        let mut recomputes = vec![Recompute::None, Recompute::Full];
        if !recomputes.contains(&setup.training.recompute) {
            recomputes.push(setup.training.recompute.clone());
        }
        Self {
            recipes: vec![setup.training.recipe],
            recomputes,
        }
    }
}

/// What divides a layer: all plans of a branch share the cost of one.
#[derive(Debug, Clone, PartialEq)]
pub struct Branch {
    parallelism: Parallelism,
    micro_batch: u64,
    recipe: Recipe,
    recompute: Recompute,
    schedule: Schedule,
}

/// One plan that fits.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// How the ranks divide the work.
    pub parallelism: Parallelism,
    /// Sequences per micro-batch.
    pub micro_batch: u64,
    /// Number formats.
    pub recipe: Recipe,
    /// What is computed twice.
    pub recompute: Recompute,
    /// Order of the passes.
    pub schedule: Schedule,
    /// No simulation of it takes less time.
    pub at_least: SimDuration,
    /// Memory of the fullest stage.
    pub memory: Bytes,
}

impl Candidate {
    /// The scenario with this plan in place of its own.
    pub fn setup(&self, of: &Setup) -> Setup {
        let mut setup = of.clone();
        self.write(&mut setup);
        setup
    }

    fn write(&self, setup: &mut Setup) {
        let training = &mut setup.training;
        training.parallelism.clone_from(&self.parallelism);
        training.micro_batch = self.micro_batch;
        training.recipe = self.recipe;
        training.recompute.clone_from(&self.recompute);
        training.schedule = self.schedule;
        // A list of layers belongs to one number of stages.
        training.layers_per_chunk = None;
    }
}

/// The plans of one branch.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Expansion {
    /// Those that fit, in a fixed order.
    pub candidates: Vec<Candidate>,
    /// How many do not fit into memory.
    pub too_large: u64,
}

/// All plans for one scenario.
pub struct Search {
    setup: Setup,
    map: ClusterMap,
    space: Space,
}

impl Search {
    /// A search around `setup`, which must have a plan itself.
    ///
    /// # Errors
    /// Those of [`crate::compile`].
    pub fn new(setup: &Setup, space: Space) -> Result<Self, PlanError> {
        error::check(setup)?;
        Ok(Self {
            setup: setup.clone(),
            map: ClusterMap::new(&setup.cluster)?,
            space,
        })
    }

    /// Everything that can divide a layer, in a fixed order.
    pub fn branches(&self) -> Vec<Branch> {
        let training = &self.setup.training;
        let mut branches = Vec::new();
        for tensor in self.tensors() {
            for context in self.contexts(tensor) {
                for (expert, expert_tensor) in self.experts(tensor, context) {
                    let parallelism = Parallelism {
                        tensor,
                        sequence_parallel: tensor > 1,
                        context,
                        pipeline: 1,
                        virtual_pipeline: 1,
                        data: 1,
                        expert,
                        expert_tensor,
                        zero: Zero::Stage1,
                        zero_group: None,
                    };
                    for micro_batch in powers_to(MOST_MICRO_BATCH.max(training.micro_batch)) {
                        for recipe in &self.space.recipes {
                            for recompute in &self.space.recomputes {
                                branches.extend(SCHEDULES.map(|schedule| Branch {
                                    parallelism: parallelism.clone(),
                                    micro_batch,
                                    recipe: *recipe,
                                    recompute: recompute.clone(),
                                    schedule,
                                }));
                            }
                        }
                    }
                }
            }
        }
        branches
    }

    /// The plans of one branch, each held against memory and bounded.
    pub fn expand(&self, branch: &Branch) -> Expansion {
        let mut setup = self.setup.clone();
        let mut times: Vec<((Zero, u32), PieceTimes)> = Vec::new();
        let mut expansion = Expansion::default();
        for parallelism in self.divisions(branch) {
            let mut candidate = Candidate {
                parallelism,
                micro_batch: branch.micro_batch,
                recipe: branch.recipe,
                recompute: branch.recompute.clone(),
                schedule: branch.schedule,
                at_least: SimDuration::ZERO,
                memory: Bytes::ZERO,
            };
            candidate.write(&mut setup);
            if error::check(&setup).is_err() {
                continue;
            }
            let placement = Placement::new(&candidate.parallelism, setup.rank_order);
            let compiler = Compiler::new(&setup, &placement);
            candidate.memory = fullest(&compiler, &setup, &placement).total();
            if candidate.memory > setup.cluster.node.accelerator.memory {
                expansion.too_large += 1;
                continue;
            }
            // Where groups lie depends on the stages where those come first in the hall, and where
            // data-parallel ranks gather weights.
            let zero = candidate.parallelism.zero;
            let stages =
                if setup.rank_order == RankOrder::PipelineBeforeData || zero == Zero::Stage3 {
                    candidate.parallelism.pipeline
                } else {
                    0
                };
            let known = times.iter().position(|(of, _)| *of == (zero, stages));
            let known = known.unwrap_or_else(|| {
                times.push(((zero, stages), PieceTimes::new(&setup, &self.map)));
                times.len() - 1
            });
            candidate.at_least = bound::step_time(&compiler, &setup, &times[known].1);
            expansion.candidates.push(candidate);
        }
        expansion
    }

    fn tensors(&self) -> Vec<u32> {
        let node = &self.setup.cluster.node;
        let domain = node.scale_up.domain.min(self.setup.cluster.gpus);
        let model = &self.setup.training.model;
        let (Attention::Grouped { heads, .. } | Attention::Latent { heads, .. }) = model.attention;
        let cuts = |tensor: &u32| {
            let tensor = u64::from(*tensor);
            heads.is_multiple_of(tensor)
                && model.ffn.is_multiple_of(tensor)
                && self.setup.training.sequence_length.is_multiple_of(tensor)
        };
        divisors(domain).into_iter().filter(cuts).collect()
    }

    fn contexts(&self, tensor: u32) -> Vec<u32> {
        let length = self.setup.training.sequence_length;
        let most = self.setup.cluster.gpus / tensor;
        // Below two thousand tokens a rank, context parallelism moves more than it computes.
        powers_to(length / 2048)
            .map(|context| context as u32)
            .filter(|context| {
                *context <= most && length.is_multiple_of(u64::from(context * tensor))
            })
            .collect()
    }

    fn experts(&self, tensor: u32, context: u32) -> Vec<(u32, u32)> {
        let Some(moe) = &self.setup.training.model.moe else {
            return vec![(1, 1)];
        };
        let most = self.setup.cluster.gpus / (tensor * context) * tensor * context;
        let within = |expert: &u32| *expert <= most;
        let ways = divisors(moe.experts as u32).into_iter().filter(within);
        let mut pairs: Vec<(u32, u32)> = ways.clone().map(|expert| (expert, 1)).collect();
        if tensor > 1 && moe.expert_ffn.is_multiple_of(u64::from(tensor)) {
            pairs.extend(ways.map(|expert| (expert, tensor)));
        }
        pairs
    }

    /// The pipeline, data parallelism and sharding that a branch leaves open.
    fn divisions(&self, branch: &Branch) -> Vec<Parallelism> {
        let training = &self.setup.training;
        let layer = &branch.parallelism;
        let gpus = self.setup.cluster.gpus;
        let mut found = Vec::new();
        let width = layer.tensor * layer.context;
        if !gpus.is_multiple_of(width) {
            return found;
        }
        for pipeline in divisors(gpus / width) {
            let data = gpus / width / pipeline;
            let step = u64::from(data) * branch.micro_batch;
            if u64::from(pipeline) > training.model.layers
                || !training.global_batch.is_multiple_of(step)
            {
                continue;
            }
            let interleaves = branch.schedule == Schedule::OneForwardOneBackward && pipeline > 1;
            // Without a pipeline all schedules are one.
            if pipeline == 1 && branch.schedule != Schedule::OneForwardOneBackward {
                continue;
            }
            let most = (training.model.layers / u64::from(pipeline)) as u32;
            let virtuals = if interleaves {
                MOST_VIRTUAL.min(most)
            } else {
                1
            };
            for virtual_pipeline in 1..=virtuals {
                for zero in [Zero::Stage1, Zero::Stage3] {
                    // One rank shards nothing.
                    if zero == Zero::Stage3 && data * layer.context == 1 {
                        continue;
                    }
                    found.push(Parallelism {
                        pipeline,
                        virtual_pipeline,
                        data,
                        zero,
                        ..layer.clone()
                    });
                }
            }
        }
        found
    }
}

/// Memory of the fullest stage. No schedule starts more than two rounds of micro-batches before the
/// first comes back, and once a pipeline is full it stays as full as it is: four rounds stand for
/// all, and two where each takes several chunks.
fn fullest(compiler: &Compiler<'_>, setup: &Setup, placement: &Placement) -> MemoryUse {
    let training = &setup.training;
    let stages = training.parallelism.pipeline;
    let rounds = if training.parallelism.virtual_pipeline > 1 {
        2 * stages
    } else {
        4 * stages
    };
    let shape = Shape {
        micro_batches: (training.micro_batches() as u32).min(rounds),
        ..compiler.shape()
    };
    (0..stages)
        .map(|stage| {
            let order = crate::schedule::order(training.schedule, shape, stage);
            memory::of_stage(
                &compiler.sizes,
                placement,
                &compiler.stage_chunks(stage),
                &order,
            )
        })
        .max_by_key(MemoryUse::total)
        .unwrap_or_default()
}

fn divisors(of: u32) -> Vec<u32> {
    (1..=of).filter(|n| of.is_multiple_of(*n)).collect()
}

fn powers_to(most: u64) -> impl Iterator<Item = u64> {
    (0..63)
        .map(|power| 1 << power)
        .take_while(move |n| *n <= most.max(1))
}
