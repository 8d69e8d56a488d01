//! Which ranks cannot differ.
//!
//! Ranks begin with the colour of what they are: stage, expert load, speed, and what their
//! communicators and neighbours cost. Colours are refined by the colours of those they talk to
//! until nothing splits any more (colour refinement). Two ranks of one colour then run the same
//! program at the same speed beside the same partners, so one of them stands for all.

use rackflow_engine::RandomStream;
use rackflow_plan::{Fidelity, GroupSlot, Plan, Setup};
use rackflow_topology::{FlappingPorts, Health};
use rackflow_workload::Routing;
use rustc_hash::FxHashMap;
use std::cmp::Reverse;

/// Fixed point of loads and slowdowns: this is 1.
pub(crate) const ONE: u64 = rackflow_plan::MEAN_LOAD;

/// A rank, or all ranks of one colour.
#[derive(Debug, Clone)]
pub(crate) struct Entity {
    /// Ranks that it stands for.
    pub ranks: u32,
    pub stage: u32,
    /// Kind of accelerator, as the plan counts them.
    pub kind: u32,
    /// Position of its program: one for each stage and kind.
    pub program: u32,
    /// Expert load over the mean, fixed point.
    pub load: u64,
    /// Kernel time over the nominal, fixed point.
    pub slowdown: u64,
    /// Index into [`Folding::groups`], by slot.
    pub groups: [u32; GroupSlot::COUNT],
    pub next: u32,
    pub previous: u32,
    /// Path class to `next` and to `previous`.
    pub next_path: u32,
    pub previous_path: u32,
}

/// A communicator.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    /// Which kind.
    pub slot: GroupSlot,
    /// Entities in it, each once.
    pub members: Vec<u32>,
    pub span_class: u32,
}

pub(crate) struct Folding {
    pub entities: Vec<Entity>,
    pub groups: Vec<Group>,
    pub class_of_rank: Vec<u32>,
    /// Index into `groups` of every communicator, by position of its slot in the plan and number, if
    /// it was asked for.
    pub group_index: Vec<Vec<u32>>,
}

/// Gives every distinct key the next number, in order of appearance.
struct Interner<K>(FxHashMap<K, u32>);

impl<K: std::hash::Hash + Eq> Interner<K> {
    fn new() -> Self {
        Self(FxHashMap::default())
    }

    fn number(&mut self, key: K) -> u32 {
        let next = self.0.len() as u32;
        *self.0.entry(key).or_insert(next)
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// Folds the ranks of `plan`, whose ports are what `health` leaves of them. Ranks whose `seats`
/// differ are told apart; empty where all are alike.
pub(crate) fn fold(plan: &Plan, health: &Health, seats: &[u32], with_index: bool) -> Folding {
    let placement = &plan.placement;
    let ranks = placement.ranks();
    let stages = plan.setup.training.parallelism.pipeline;
    let loads = expert_loads(&plan.setup, plan.setup.training.parallelism.expert);
    let slowdowns = slowdowns(plan, ranks);
    let load_of = |rank: u32| {
        if loads.is_empty() {
            ONE
        } else {
            loads[placement.expert_position(rank) as usize]
        }
    };
    let next_path = |rank: u32| {
        plan.spans
            .next_paths
            .get(rank as usize)
            .copied()
            .unwrap_or(0)
    };
    let previous = |rank: u32| placement.shifted(rank, stages - 1);
    let group_of: Vec<Vec<u32>> = plan
        .slots
        .iter()
        .map(|slot| {
            (0..ranks)
                .map(|rank| placement.group_of(*slot, rank))
                .collect()
        })
        .collect();

    let colours = match plan.setup.fidelity {
        Fidelity::Full => (0..ranks).collect(),
        // Every rank draws for itself.
        Fidelity::Folded if plan.setup.jitter.kernel > 0.0 => (0..ranks).collect(),
        Fidelity::Folded => {
            let faulty =
                !(health.nic.is_empty() && health.scale_up.is_empty() && health.flaps.is_empty());
            let mut interner = Interner::new();
            let first: Vec<u32> = (0..ranks)
                .map(|rank| {
                    let mut spans = [0; GroupSlot::COUNT];
                    for (slot, groups) in plan.slots.iter().zip(&group_of) {
                        let group = groups[rank as usize] as usize;
                        spans[*slot as usize] = plan.spans.classes[*slot as usize][group];
                    }
                    interner.number((
                        (placement.coordinates(rank).stage, plan.kind_of(rank)),
                        load_of(rank),
                        slowdowns[rank as usize],
                        next_path(rank),
                        spans,
                        faulty.then(|| ports(plan.setup.gpu_of(rank), health)),
                        seats.get(rank as usize).copied(),
                    ))
                })
                .collect();
            let count = interner.len();
            if count == stages as usize {
                // All ranks of a stage are alike, and they meet none but those of their own stage
                // and of its neighbours: nothing is left to tell apart.
                first
            } else {
                refine(plan, &group_of, first, count)
            }
        }
    };
    quotient(
        plan,
        &group_of,
        colours,
        &load_of,
        &slowdowns,
        (&next_path, &previous),
        with_index,
    )
}

/// Rounds of refinement after which a placement counts as irregular. Regular ones settle in a few.
const MOST_ROUNDS: u64 = 64;
/// Looks at a rank, as itself or as a member, that refinement may take: some seconds. A million ranks
/// have ten rounds of it.
const MOST_LOOKS: u64 = 1 << 27;

/// Rounds that refinement may take among `ranks` with so many communicators each.
fn most_rounds(ranks: u32, slots: usize) -> u64 {
    let looks = u64::from(ranks) * (2 * slots as u64 + 3);
    (MOST_LOOKS / looks).clamp(LEAST_ROUNDS, MOST_ROUNDS)
}

/// Enough for every regular placement.
const LEAST_ROUNDS: u64 = 8;

fn refine(plan: &Plan, group_of: &[Vec<u32>], mut colours: Vec<u32>, mut count: usize) -> Vec<u32> {
    let placement = &plan.placement;
    let ranks = placement.ranks();
    let stages = plan.setup.training.parallelism.pipeline;
    for _ in 0..most_rounds(ranks, plan.slots.len()) {
        let mut group_colours: Vec<Vec<u32>> = Vec::with_capacity(plan.slots.len());
        let mut members = Vec::new();
        for slot in &plan.slots {
            let mut interner: Interner<Vec<u32>> = Interner::new();
            let of_slot = (0..placement.groups(*slot))
                .map(|group| {
                    members.clear();
                    placement.members(*slot, group, &mut members);
                    let mut key: Vec<u32> =
                        members.iter().map(|rank| colours[*rank as usize]).collect();
                    key.sort_unstable();
                    interner.number(key)
                })
                .collect();
            group_colours.push(of_slot);
        }
        let mut interner = Interner::new();
        let refined: Vec<u32> = (0..ranks)
            .map(|rank| {
                let groups: Vec<u32> = group_of
                    .iter()
                    .zip(&group_colours)
                    .map(|(of_rank, colours)| colours[of_rank[rank as usize] as usize])
                    .collect();
                interner.number((
                    colours[rank as usize],
                    colours[placement.shifted(rank, 1) as usize],
                    colours[placement.shifted(rank, stages - 1) as usize],
                    groups,
                ))
            })
            .collect();
        let refined_count = interner.len();
        colours = refined;
        if refined_count == count {
            return colours;
        }
        count = refined_count;
    }
    // So irregular a placement leaves next to nothing to fold; every rank apart is always exact.
    (0..ranks).collect()
}

fn quotient(
    plan: &Plan,
    group_of: &[Vec<u32>],
    colours: Vec<u32>,
    load_of: &dyn Fn(u32) -> u64,
    slowdowns: &[u64],
    (next_path, previous): (&dyn Fn(u32) -> u32, &dyn Fn(u32) -> u32),
    with_index: bool,
) -> Folding {
    let placement = &plan.placement;
    let ranks = placement.ranks();
    let mut entities: Vec<Entity> = Vec::new();
    let mut groups: Vec<Group> = Vec::new();
    // Groups with the same members after folding are one; in full fidelity each is its own.
    let mut known: FxHashMap<(GroupSlot, Vec<u32>, u32), u32> = FxHashMap::default();
    let mut scratch = Vec::new();
    let key_of = |slot: GroupSlot, group: u32, scratch: &mut Vec<u32>| {
        scratch.clear();
        placement.members(slot, group, scratch);
        let mut members: Vec<u32> = scratch.iter().map(|r| colours[*r as usize]).collect();
        members.sort_unstable();
        members.dedup();
        (
            slot,
            members,
            plan.spans.classes[slot as usize][group as usize],
        )
    };
    for rank in 0..ranks {
        let colour = colours[rank as usize] as usize;
        if let Some(entity) = entities.get_mut(colour) {
            entity.ranks += 1;
            continue;
        }
        debug_assert_eq!(
            colour,
            entities.len(),
            "colours are numbered by first appearance"
        );
        let mut of_slot = [u32::MAX; GroupSlot::COUNT];
        for (slot, of_rank) in plan.slots.iter().zip(group_of) {
            let group = of_rank[rank as usize];
            let key = key_of(*slot, group, &mut scratch);
            let number = groups.len() as u32;
            let index = *known
                .entry(key)
                .or_insert_with_key(|(_, members, span_class)| {
                    groups.push(Group {
                        slot: *slot,
                        members: members.clone(),
                        span_class: *span_class,
                    });
                    number
                });
            of_slot[*slot as usize] = index;
        }
        let (stage, kind) = (placement.coordinates(rank).stage, plan.kind_of(rank));
        entities.push(Entity {
            ranks: 1,
            stage,
            kind,
            program: stage * plan.kinds() as u32 + kind,
            load: load_of(rank),
            slowdown: slowdowns[rank as usize],
            groups: of_slot,
            next: colours[placement.shifted(rank, 1) as usize],
            previous: colours[previous(rank) as usize],
            next_path: next_path(rank),
            previous_path: next_path(previous(rank)),
        });
    }
    let group_index = if with_index {
        let of_slot = |slot: &GroupSlot| {
            (0..placement.groups(*slot))
                .map(|group| known[&key_of(*slot, group, &mut scratch)])
                .collect()
        };
        plan.slots.iter().map(of_slot).collect()
    } else {
        Vec::new()
    };
    Folding {
        entities,
        groups,
        class_of_rank: colours,
        group_index,
    }
}

/// Load of each expert-parallel position over the mean; empty where all are equal.
fn expert_loads(setup: &Setup, expert: u32) -> Vec<u64> {
    let training = &setup.training;
    match training.routing {
        Routing::Lognormal { sigma } if training.model.moe.is_some() && sigma > 0.0 => {
            let root = RandomStream::root(setup.seed).derive("expert load");
            let draws: Vec<f64> = (0..expert)
                .map(|position| root.derive_index(u64::from(position)).lognormal(1.0, sigma))
                .collect();
            apportion(&draws)
        }
        _ => Vec::new(),
    }
}

/// Load of the fullest of `expert` expert-parallel positions, in parts of [`ONE`], and which one that is;
/// `None` where all are alike.
pub(crate) fn most_load(setup: &Setup, expert: u32) -> (u64, Option<u32>) {
    let loads = (0..).zip(expert_loads(setup, expert));
    let fullest = loads.max_by_key(|(position, load)| (*load, Reverse(*position)));
    fullest.map_or((ONE, None), |(position, load)| (load, Some(position)))
}

/// Steps of the mean load in which ranks are told apart: those of equal load are simulated once.
const LOAD_STEPS: u64 = 16;

/// Loads in proportion to `draws`, in whole steps, whose mean is exactly one: every token meets
/// its experts. What rounding down leaves goes to the largest remainders.
fn apportion(draws: &[f64]) -> Vec<u64> {
    let total = LOAD_STEPS * draws.len() as u64;
    let scale = total as f64 / draws.iter().sum::<f64>();
    let mut steps: Vec<u64> = draws.iter().map(|draw| (draw * scale) as u64).collect();
    let mut by_remainder: Vec<usize> = (0..draws.len()).collect();
    let remainder = |i: &usize| draws[*i] * scale - (draws[*i] * scale).floor();
    by_remainder.sort_by(|a, b| remainder(b).total_cmp(&remainder(a)).then(a.cmp(b)));
    let left = total - steps.iter().sum::<u64>();
    for i in by_remainder.into_iter().cycle().take(left as usize) {
        steps[i] += 1;
    }
    steps
        .into_iter()
        .map(|steps| steps * ONE / LOAD_STEPS)
        .collect()
}

/// What faults leave of the ports of a GPU, as far as it tells ranks apart.
fn ports(gpu: u32, health: &Health) -> (u64, u64, Vec<u32>) {
    let whole = |of: Option<&f64>| of.copied().unwrap_or(1.0).to_bits();
    let flaps = health
        .flaps
        .iter()
        .enumerate()
        .filter(|(_, flap)| match &flap.ports {
            FlappingPorts::Nics(gpus) => gpus.contains(&gpu),
            FlappingPorts::ScaleUp(flapping) => *flapping == gpu,
            FlappingPorts::LeafUplinks(_) => false,
        });
    (
        whole(health.nic.get(&gpu)),
        whole(health.scale_up.get(&gpu)),
        flaps.map(|(index, _)| index as u32).collect(),
    )
}

fn slowdowns(plan: &Plan, ranks: u32) -> Vec<u64> {
    let mut slowdowns = crate::jitter::of_gpus(&plan.setup, ranks);
    for straggler in &plan.setup.stragglers {
        if let Some(slowdown) = slowdowns.get_mut(straggler.gpu as usize) {
            let factor = straggler.slowdown.max(1.0);
            *slowdown = (factor * *slowdown as f64).round() as u64;
        }
    }
    slowdowns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_keep_their_mean_and_their_order() {
        let draws = [0.8, 1.0, 1.37, 0.95, 1.1];
        let loads = apportion(&draws);
        assert_eq!(loads.iter().sum::<u64>(), ONE * draws.len() as u64);
        assert!(loads[0] <= loads[3] && loads[3] <= loads[1] && loads[4] <= loads[2]);
        assert!(loads.iter().all(|load| load % (ONE / LOAD_STEPS) == 0));
    }
}
