//! The links above the leaves, where flows of all groups and all jobs meet.
//!
//! A folded group stands for groups that cannot differ and run at the same time, so its flow uses
//! of every link what all of them use of it. Links that every flow uses alike are one.

use crate::fold::Folding;
use rackflow_network::Demand;
use rackflow_plan::Plan;
use rackflow_topology::{ClusterMap, Health};
use rustc_hash::FxHashMap;

/// Which share of a flow's NIC bytes a link carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Tier {
    Leaf,
    Pod,
}

/// A flow's use of one link.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Use {
    /// Index among the shared links.
    pub link: u32,
    tier: Tier,
    /// Ranks' worth of crossing traffic, over what the link can carry, in seconds per byte.
    seconds_per_byte: f64,
}

impl Use {
    /// Fraction of the link that a flow uses at full rate.
    pub fn of(&self, demand: &Demand) -> f64 {
        let share = match self.tier {
            Tier::Leaf => demand.over_leaf,
            Tier::Pod => demand.over_pod,
        };
        let seconds = demand.duration().as_secs_f64();
        if share == 0 || seconds <= 0.0 {
            return 0.0;
        }
        let rate = demand.wire_bytes_nic.as_f64() * f64::from(share) / 1e6 / seconds;
        rate * self.seconds_per_byte
    }
}

/// The shared links that the flows of one job use.
#[derive(Debug, Clone, Default)]
pub(crate) struct JobTiers {
    /// By folded group.
    pub groups: Vec<Vec<Use>>,
    /// By entity: its messages to the next stage, and those to the one before.
    pub messages: [Vec<Vec<Use>>; 2],
}

/// The shared links of a cluster.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tiers {
    /// How many there are.
    pub links: u32,
    pub jobs: Vec<JobTiers>,
    /// Shared links of each leaf that flaps.
    pub of_leaf: FxHashMap<u32, Vec<u32>>,
}

/// One direction of the cables above a leaf or a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Cut {
    tier: Tier,
    number: u32,
    down: bool,
}

/// Who uses a cut: a job's group, or messages of an entity in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct User {
    job: u32,
    /// 0: a group; 1, 2: messages to the next stage and to the one before.
    kind: u32,
    index: u32,
}

impl Tiers {
    /// The links above the leaves that can hold flows of these jobs back: those that are narrower
    /// than what is below them, or not whole.
    pub fn new(plans: &[&Plan], folded: &[&Folding], health: &Health) -> Self {
        let Some(first) = plans.first().filter(|plan| plan.setup.shares_tiers()) else {
            return Self::none(folded);
        };
        let host = first.setup.host();
        let map = ClusterMap::new(host).expect("the plan was compiled on this cluster");
        let narrow = Narrow::new(&map, health);
        if narrow.none() {
            return Self::none(folded);
        }
        let mut used: FxHashMap<Cut, Vec<(User, f64)>> = FxHashMap::default();
        for (job, (plan, folding)) in plans.iter().zip(folded).enumerate() {
            collect(job as u32, plan, folding, &map, &narrow, &mut used);
        }
        let mut cuts: Vec<(Cut, Vec<(User, f64)>)> = used.into_iter().collect();
        cuts.sort_unstable_by_key(|(cut, _)| *cut);
        let efficiency = host.node.nic.efficiency;
        Self::merged(cuts, folded, &map, health, efficiency)
    }

    fn none(folded: &[&Folding]) -> Self {
        let jobs = folded
            .iter()
            .map(|folding| JobTiers::empty(folding))
            .collect();
        Self {
            jobs,
            ..Self::default()
        }
    }

    /// Makes cuts that are used alike one link.
    fn merged(
        cuts: Vec<(Cut, Vec<(User, f64)>)>,
        folded: &[&Folding],
        map: &ClusterMap,
        health: &Health,
        efficiency: f64,
    ) -> Self {
        let mut tiers = Self::none(folded);
        let mut known: FxHashMap<Vec<(User, u64)>, u32> = FxHashMap::default();
        for (cut, users) in cuts {
            let whole = match cut.tier {
                Tier::Leaf => map.leaf_capacity(),
                Tier::Pod => map.pod_capacity(),
            };
            let part = match cut.tier {
                Tier::Leaf => health.leaf.get(&cut.number).copied().unwrap_or(1.0),
                Tier::Pod => 1.0,
            };
            let capacity = whole * part * efficiency;
            let mut summed = sum_by_user(users);
            for (_, ranks) in &mut summed {
                *ranks /= capacity;
            }
            let flaps = cut.tier == Tier::Leaf && flapping(health, cut.number);
            let mut key: Vec<(User, u64)> = summed
                .iter()
                .map(|(user, use_)| (*user, use_.to_bits()))
                .collect();
            if flaps {
                // Whatever else is used alike does not flap with it.
                key.push((
                    User {
                        job: u32::MAX,
                        kind: cut.number,
                        index: cut.down.into(),
                    },
                    0,
                ));
            }
            let next = tiers.links;
            let link = *known.entry(key).or_insert(next);
            if flaps {
                tiers.of_leaf.entry(cut.number).or_default().push(link);
            }
            if link < next {
                continue;
            }
            tiers.links += 1;
            for (user, seconds_per_byte) in summed {
                let job = &mut tiers.jobs[user.job as usize];
                let uses = match user.kind {
                    0 => &mut job.groups[user.index as usize],
                    kind => &mut job.messages[kind as usize - 1][user.index as usize],
                };
                uses.push(Use {
                    link,
                    tier: cut.tier,
                    seconds_per_byte,
                });
            }
        }
        tiers
    }
}

/// A number for every rank of every job: equal where as many ranks of each job sit on its leaf and
/// in its pod, and its leaf is as whole. Empty where no link above the leaves is looked at.
pub(crate) fn seats(plans: &[&Plan], health: &Health) -> Vec<Vec<u32>> {
    let Some(first) = plans.first().filter(|plan| plan.setup.shares_tiers()) else {
        return vec![Vec::new(); plans.len()];
    };
    let map = ClusterMap::new(first.setup.host()).expect("the plan was compiled on this cluster");
    let mut on: FxHashMap<(Tier, u32), Vec<u32>> = FxHashMap::default();
    let places = |plan: &Plan, rank: u32| {
        let gpu = plan.setup.gpu_of(rank);
        [(Tier::Leaf, map.place(gpu).leaf), (Tier::Pod, map.pod(gpu))]
    };
    for (job, plan) in plans.iter().enumerate() {
        for rank in 0..plan.placement.ranks() {
            for place in places(plan, rank) {
                on.entry(place).or_insert_with(|| vec![0; plans.len()])[job] += 1;
            }
        }
    }
    let mut known: FxHashMap<(Vec<u32>, Vec<u32>, u64, bool), u32> = FxHashMap::default();
    let mut class = |plan: &Plan, rank: u32| {
        let [leaf, pod] = places(plan, rank);
        let whole = health.leaf.get(&leaf.1).copied().unwrap_or(1.0).to_bits();
        let next = known.len() as u32;
        let key = (
            on[&leaf].clone(),
            on[&pod].clone(),
            whole,
            flapping(health, leaf.1),
        );
        *known.entry(key).or_insert(next)
    };
    plans
        .iter()
        .map(|plan| {
            (0..plan.placement.ranks())
                .map(|rank| class(plan, rank))
                .collect()
        })
        .collect()
}

fn flapping(health: &Health, leaf: u32) -> bool {
    let ports = rackflow_topology::FlappingPorts::LeafUplinks(leaf);
    health.flaps.iter().any(|flap| flap.ports == ports)
}

impl JobTiers {
    fn empty(folding: &Folding) -> Self {
        let per_entity = vec![Vec::new(); folding.entities.len()];
        Self {
            groups: vec![Vec::new(); folding.groups.len()],
            messages: [per_entity.clone(), per_entity],
        }
    }
}

fn sum_by_user(mut users: Vec<(User, f64)>) -> Vec<(User, f64)> {
    users.sort_by_key(|(user, _)| *user);
    users
        .chunk_by(|a, b| a.0 == b.0)
        .map(|run| (run[0].0, run.iter().map(|(_, ranks)| ranks).sum()))
        .collect()
}

/// Which tiers can hold flows back.
struct Narrow<'h> {
    leaves: bool,
    pods: bool,
    health: &'h Health,
}

impl<'h> Narrow<'h> {
    fn new(map: &ClusterMap, health: &'h Health) -> Self {
        Self {
            leaves: map.leaf_oversubscription() > 1.0,
            pods: map.spine_oversubscription() > 1.0,
            health,
        }
    }

    fn leaf(&self, leaf: u32) -> bool {
        self.leaves || self.health.leaf.contains_key(&leaf) || flapping(self.health, leaf)
    }

    fn none(&self) -> bool {
        !self.leaves && !self.pods && self.health.leaf.is_empty() && self.health.flaps.is_empty()
    }
}

/// Adds what the groups and messages of one job send over every cut that can hold them back.
fn collect(
    job: u32,
    plan: &Plan,
    folding: &Folding,
    map: &ClusterMap,
    narrow: &Narrow<'_>,
    used: &mut FxHashMap<Cut, Vec<(User, f64)>>,
) {
    let placement = &plan.placement;
    let mut members = Vec::new();
    for (at, slot) in plan.slots.iter().enumerate() {
        for group in 0..placement.groups(*slot) {
            members.clear();
            placement.members(*slot, group, &mut members);
            let index = folding.group_index[at][group as usize];
            let user = User {
                job,
                kind: 0,
                index,
            };
            let seats = || members.iter().map(|rank| plan.setup.gpu_of(*rank));
            for (cut, ranks) in spread(seats().map(|gpu| map.place(gpu).leaf)) {
                if narrow.leaf(cut) {
                    both(used, Tier::Leaf, cut, user, ranks);
                }
            }
            if narrow.pods {
                for (cut, ranks) in spread(seats().map(|gpu| map.pod(gpu))) {
                    both(used, Tier::Pod, cut, user, ranks);
                }
            }
        }
    }
    if plan.next_paths.is_empty() {
        return;
    }
    let stages = plan.setup.training.parallelism.pipeline;
    for rank in 0..placement.ranks() {
        for (kind, by) in [(1, 1), (2, stages - 1)] {
            let index = folding.class_of_rank[rank as usize];
            let user = User { job, kind, index };
            let from = plan.setup.gpu_of(rank);
            let to = plan.setup.gpu_of(placement.shifted(rank, by));
            let mut add = |tier, number, down| {
                let cut = Cut { tier, number, down };
                used.entry(cut).or_default().push((user, 1.0));
            };
            let (leaf_from, leaf_to) = (map.place(from).leaf, map.place(to).leaf);
            if leaf_from != leaf_to {
                if narrow.leaf(leaf_from) {
                    add(Tier::Leaf, leaf_from, false);
                }
                if narrow.leaf(leaf_to) {
                    add(Tier::Leaf, leaf_to, true);
                }
            }
            if narrow.pods && map.pod(from) != map.pod(to) {
                add(Tier::Pod, map.pod(from), false);
                add(Tier::Pod, map.pod(to), true);
            }
        }
    }
}

/// A collective sends as much out of a leaf as into it.
fn both(
    used: &mut FxHashMap<Cut, Vec<(User, f64)>>,
    tier: Tier,
    number: u32,
    user: User,
    ranks: f64,
) {
    for down in [false, true] {
        let cut = Cut { tier, number, down };
        used.entry(cut).or_default().push((user, ranks));
    }
}

/// Spreads the crossing traffic of a group's `n` members over the leaves (or pods) that they sit
/// on: with `m` of them on one, in proportion to `m (n - m)`, the pairs that it has with others.
/// Sums to `n`.
fn spread(places: impl Iterator<Item = u32>) -> Vec<(u32, f64)> {
    let mut places: Vec<u32> = places.collect();
    places.sort_unstable();
    let n = places.len() as f64;
    let runs: Vec<(u32, f64)> = places
        .chunk_by(|a, b| a == b)
        .map(|run| (run[0], run.len() as f64 * (n - run.len() as f64)))
        .collect();
    let all: f64 = runs.iter().map(|(_, pairs)| pairs).sum();
    if all == 0.0 {
        return Vec::new();
    }
    runs.into_iter()
        .map(|(place, pairs)| (place, pairs / all * n))
        .collect()
}
