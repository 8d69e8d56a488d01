//! Which rank sits on which GPU, and who talks to whom.
//!
//! Rank r sits on GPU r. What is chosen is how the coordinates (tensor, context, data, pipeline)
//! are numbered.

use crate::program::GroupSlot;
use crate::setup::RankOrder;
use rackflow_workload::{Parallelism, Zero};

/// Coordinates of one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coordinates {
    /// Position among tensor-parallel ranks.
    pub tensor: u32,
    /// Position among context-parallel ranks.
    pub context: u32,
    /// Position among data-parallel ranks.
    pub data: u32,
    /// Pipeline stage.
    pub stage: u32,
}

/// The numbering of all ranks.
#[derive(Debug, Clone)]
pub struct Placement {
    parallelism: Parallelism,
    order: RankOrder,
}

impl Placement {
    /// A placement of `parallelism` in this order.
    pub fn new(parallelism: &Parallelism, order: RankOrder) -> Self {
        Self {
            parallelism: parallelism.clone(),
            order,
        }
    }

    /// Ranks in all.
    pub fn ranks(&self) -> u32 {
        let p = &self.parallelism;
        p.tensor * p.context * p.data * p.pipeline
    }

    /// Ranks of one pipeline stage.
    pub fn stage_ranks(&self) -> u32 {
        self.ranks() / self.parallelism.pipeline
    }

    /// Ranks of a pipeline stage on the host that holds most of them, from the host of every rank.
    pub fn stage_ranks_on_host(&self, stage: u32, host_of: impl Fn(u32) -> u32) -> u32 {
        let positions = 0..self.stage_ranks();
        let mut hosts: Vec<u32> = positions
            .map(|position| host_of(self.at_stage_position(stage, position)))
            .collect();
        hosts.sort_unstable();
        let ranks = hosts.chunk_by(|a, b| a == b).map(<[u32]>::len);
        ranks.max().unwrap_or(0) as u32
    }

    /// Where `rank` is in the plan.
    pub fn coordinates(&self, rank: u32) -> Coordinates {
        let p = &self.parallelism;
        let tensor = rank % p.tensor;
        let rest = rank / p.tensor;
        let context = rest % p.context;
        let rest = rest / p.context;
        let (data, stage) = match self.order {
            RankOrder::DataBeforePipeline => (rest % p.data, rest / p.data),
            RankOrder::PipelineBeforeData => (rest / p.pipeline, rest % p.pipeline),
        };
        Coordinates {
            tensor,
            context,
            data,
            stage,
        }
    }

    /// The rank at these coordinates.
    pub fn rank(&self, at: Coordinates) -> u32 {
        let p = &self.parallelism;
        let outer = match self.order {
            RankOrder::DataBeforePipeline => at.data + p.data * at.stage,
            RankOrder::PipelineBeforeData => at.stage + p.pipeline * at.data,
        };
        at.tensor + p.tensor * (at.context + p.context * outer)
    }

    /// Position of a rank among the ranks of its stage.
    fn within_stage(&self, at: Coordinates) -> u32 {
        let p = &self.parallelism;
        at.tensor + p.tensor * (at.context + p.context * at.data)
    }

    fn at_stage_position(&self, stage: u32, position: u32) -> u32 {
        let p = &self.parallelism;
        self.rank(Coordinates {
            tensor: position % p.tensor,
            context: position / p.tensor % p.context,
            data: position / (p.tensor * p.context),
            stage,
        })
    }

    /// Position of `rank` among the ranks of its expert-parallel group.
    pub fn expert_position(&self, rank: u32) -> u32 {
        let p = &self.parallelism;
        self.within_stage(self.coordinates(rank)) / p.expert_tensor % p.expert
    }

    /// Number of ranks in each group of `slot`.
    pub fn group_size(&self, slot: GroupSlot) -> u32 {
        let p = &self.parallelism;
        match slot {
            GroupSlot::Tensor => p.tensor,
            GroupSlot::Context => p.context,
            GroupSlot::Expert => p.expert,
            GroupSlot::ExpertTensor => p.expert_tensor,
            GroupSlot::Data => p.data * p.context,
            GroupSlot::ExpertData => self.stage_ranks() / (p.expert * p.expert_tensor),
            GroupSlot::Shard => self.shard_size(),
            GroupSlot::Replica => p.data * p.context / self.shard_size(),
        }
    }

    /// Ranks over which ZeRO shards the dense parameters.
    pub fn shard_size(&self) -> u32 {
        let p = &self.parallelism;
        let all = p.data * p.context;
        if p.zero == Zero::Stage0 {
            1
        } else {
            p.zero_group.unwrap_or(all).min(all)
        }
    }

    /// Number of groups of `slot`.
    pub fn groups(&self, slot: GroupSlot) -> u32 {
        self.ranks() / self.group_size(slot)
    }

    /// The group of `slot` that `rank` is in. Groups are numbered densely from 0.
    pub fn group_of(&self, slot: GroupSlot, rank: u32) -> u32 {
        let p = &self.parallelism;
        let at = self.coordinates(rank);
        let position = self.within_stage(at);
        let stage_groups = self.stage_ranks() / self.group_size(slot);
        let within = match slot {
            GroupSlot::Tensor => at.context + p.context * at.data,
            GroupSlot::Context => at.tensor + p.tensor * at.data,
            GroupSlot::Data => at.tensor,
            GroupSlot::ExpertTensor => position / p.expert_tensor,
            GroupSlot::Expert => {
                position % p.expert_tensor
                    + p.expert_tensor * (position / (p.expert_tensor * p.expert))
            }
            GroupSlot::ExpertData => position % (p.expert_tensor * p.expert),
            GroupSlot::Shard => {
                let index = at.context + p.context * at.data;
                at.tensor + p.tensor * (index / self.shard_size())
            }
            GroupSlot::Replica => {
                let index = at.context + p.context * at.data;
                at.tensor + p.tensor * (index % self.shard_size())
            }
        };
        at.stage * stage_groups + within
    }

    /// The ranks of `group`, ascending, appended to `members`.
    pub fn members(&self, slot: GroupSlot, group: u32, members: &mut Vec<u32>) {
        let p = &self.parallelism;
        let size = self.group_size(slot);
        let stage_groups = self.stage_ranks() / size;
        let (stage, within) = (group / stage_groups, group % stage_groups);
        let start = members.len();
        for i in 0..size {
            let position = match slot {
                GroupSlot::Tensor => within * p.tensor + i,
                GroupSlot::Context => {
                    within % p.tensor + p.tensor * (i + p.context * (within / p.tensor))
                }
                GroupSlot::Data => within + p.tensor * i,
                GroupSlot::ExpertTensor => within * p.expert_tensor + i,
                GroupSlot::Expert => {
                    within % p.expert_tensor
                        + p.expert_tensor * (i + p.expert * (within / p.expert_tensor))
                }
                GroupSlot::ExpertData => within + p.expert_tensor * p.expert * i,
                GroupSlot::Shard => within % p.tensor + p.tensor * (within / p.tensor * size + i),
                GroupSlot::Replica => {
                    within % p.tensor + p.tensor * (within / p.tensor + self.shard_size() * i)
                }
            };
            members.push(self.at_stage_position(stage, position));
        }
        members[start..].sort_unstable();
    }

    /// The rank at the same place `by` stages further, around the end.
    pub fn shifted(&self, rank: u32, by: u32) -> u32 {
        let at = self.coordinates(rank);
        self.rank(Coordinates {
            stage: (at.stage + by) % self.parallelism.pipeline,
            ..at
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parallelism() -> Parallelism {
        Parallelism {
            tensor: 2,
            sequence_parallel: true,
            context: 2,
            pipeline: 3,
            virtual_pipeline: 1,
            data: 4,
            expert: 4,
            expert_tensor: 2,
            zero: Zero::Stage1,
            zero_group: Some(4),
        }
    }

    #[test]
    fn groups_partition_the_ranks_and_agree_with_their_members() {
        for order in [RankOrder::DataBeforePipeline, RankOrder::PipelineBeforeData] {
            let placement = Placement::new(&parallelism(), order);
            for slot in GroupSlot::ALL {
                let mut seen = vec![false; placement.ranks() as usize];
                for group in 0..placement.groups(slot) {
                    let mut members = Vec::new();
                    placement.members(slot, group, &mut members);
                    assert_eq!(members.len() as u32, placement.group_size(slot));
                    for rank in members {
                        assert_eq!(
                            placement.group_of(slot, rank),
                            group,
                            "{slot:?} of rank {rank}"
                        );
                        assert!(!std::mem::replace(&mut seen[rank as usize], true));
                    }
                }
                assert!(seen.into_iter().all(|s| s), "{slot:?} covers all ranks");
            }
        }
    }

    #[test]
    fn coordinates_and_rank_are_inverse() {
        for order in [RankOrder::DataBeforePipeline, RankOrder::PipelineBeforeData] {
            let placement = Placement::new(&parallelism(), order);
            for rank in 0..placement.ranks() {
                assert_eq!(placement.rank(placement.coordinates(rank)), rank);
            }
        }
    }

    /// Whatever hosts the ranks sit on: no host has more of a stage, and one has as many.
    #[test]
    fn the_host_with_most_ranks_of_a_stage_counts() {
        let hosts: [fn(u32) -> u32; 4] =
            [|_| 7, |rank| rank, |rank| rank / 5, |rank| rank * rank % 11];
        for order in [RankOrder::DataBeforePipeline, RankOrder::PipelineBeforeData] {
            let placement = Placement::new(&parallelism(), order);
            for (of, host_of) in hosts.iter().enumerate() {
                for stage in 0..3 {
                    let on = |host: u32| {
                        let ranks = 0..placement.ranks();
                        let there = ranks.filter(|rank| {
                            host_of(*rank) == host && placement.coordinates(*rank).stage == stage
                        });
                        there.count() as u32
                    };
                    let most = (0..=placement.ranks()).map(on).max();
                    let found = placement.stage_ranks_on_host(stage, host_of);
                    assert_eq!(Some(found), most, "{order:?} {of} {stage}");
                }
            }
        }
    }

    #[test]
    fn tensor_ranks_are_neighbours_and_stages_follow() {
        let placement = Placement::new(&parallelism(), RankOrder::DataBeforePipeline);
        assert_eq!(
            placement.group_of(GroupSlot::Tensor, 0),
            placement.group_of(GroupSlot::Tensor, 1)
        );
        assert_eq!(placement.shifted(0, 1), placement.stage_ranks());
        assert_eq!(placement.shifted(2 * placement.stage_ranks(), 1), 0);
    }
}
