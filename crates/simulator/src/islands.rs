//! Ranks that meet the others only in the collectives of data parallelism.
//!
//! Between two such collectives nothing reaches an island from outside, so it can be simulated alone
//! and ahead of the others: its state stays in the processor's cache, where that of a hundred
//! thousand ranks would not. While one of its ranks waits in, or takes part in, a collective that
//! islands share, its events are handled in the order of time with all others.
//!
//! The order of handling changes, and nothing else: what happens at one island at one instant does not
//! depend on when it is handled.

use crate::fold::{Entity, Group};
use rackflow_plan::GroupSlot;
use rackflow_units::SimTime;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

pub(crate) struct Islands {
    of_entity: Vec<u32>,
    /// The queue of each group: that of its island, or the one of what islands share.
    of_group: Vec<u32>,
    count: u32,
    /// Ranks of each island that are at, or in, a shared collective.
    outstanding: Vec<u32>,
    /// Islands that nothing can reach.
    free: Vec<u32>,
    /// When each of the others has its next event. An entry may be out of date.
    bound: BinaryHeap<Reverse<(SimTime, u32)>>,
    /// Queues into which another one's event has put something.
    disturbed: Vec<u32>,
    /// The queue whose event is being handled.
    current: u32,
}

/// Smaller islands are not worth a queue of their own.
const LEAST_ENTITIES_OF_ISLAND: usize = 16;

impl Islands {
    /// The islands, where there are at least `least` entities, and otherwise one of all.
    pub fn of(entities: &[Entity], groups: &[Group], least: usize) -> Self {
        let shared = |slot: GroupSlot| {
            matches!(
                slot,
                GroupSlot::Data | GroupSlot::ExpertData | GroupSlot::Shard | GroupSlot::Replica
            )
        };
        let mut sets = Sets::new(entities.len());
        if entities.len() >= least {
            for (index, entity) in entities.iter().enumerate() {
                sets.join(index as u32, entity.next);
                sets.join(index as u32, entity.previous);
            }
            for group in groups.iter().filter(|group| !shared(group.slot)) {
                for pair in group.members.windows(2) {
                    sets.join(pair[0], pair[1]);
                }
            }
        }
        let mut of_entity = sets.numbered();
        let mut count = of_entity.iter().max().map_or(0, |last| last + 1);
        let worthwhile =
            entities.len() >= least.max(LEAST_ENTITIES_OF_ISLAND * count as usize) || least == 0;
        if !worthwhile || count < 2 {
            of_entity.fill(0);
            count = 1;
        }
        let of_group = groups
            .iter()
            .map(|group| match group.members.first() {
                Some(first) if count == 1 || !shared(group.slot) => of_entity[*first as usize],
                _ => count,
            })
            .collect();
        Self {
            of_entity,
            of_group,
            count,
            outstanding: vec![0; count as usize],
            free: Vec::new(),
            bound: BinaryHeap::new(),
            disturbed: Vec::new(),
            current: 0,
        }
    }

    pub fn count(&self) -> u32 {
        self.count
    }

    /// One for each island, and one for what they share.
    pub fn queues(&self) -> u32 {
        if self.count == 1 { 1 } else { self.count + 1 }
    }

    pub fn of_entity(&self, entity: u32) -> u32 {
        self.of_entity[entity as usize]
    }

    pub fn of_group(&self, group: u32) -> u32 {
        self.of_group[group as usize]
    }

    pub fn is_shared(&self, group: u32) -> bool {
        self.of_group[group as usize] == self.count
    }

    /// An event of this queue is about to be handled.
    pub fn enter(&mut self, queue: u32) {
        self.current = queue;
    }

    /// Something was put into this queue.
    pub fn scheduled(&mut self, queue: u32) {
        if queue != self.current && !self.disturbed.contains(&queue) {
            self.disturbed.push(queue);
        }
    }

    /// A rank of this island has come to a shared collective.
    pub fn bind(&mut self, island: u32) {
        self.outstanding[island as usize] += 1;
    }

    /// A rank of this island is through with a shared collective.
    pub fn release(&mut self, island: u32) {
        let left = &mut self.outstanding[island as usize];
        *left -= 1;
        if *left == 0 {
            self.free.push(island);
        }
    }

    /// All islands have begun.
    pub fn begin(&mut self) {
        self.disturbed.clear();
        self.free = (0..self.count)
            .rev()
            .filter(|island| self.is_free(*island))
            .collect();
    }

    pub fn is_free(&self, island: u32) -> bool {
        self.outstanding[island as usize] == 0
    }

    /// An island to run alone.
    pub fn next_free(&mut self) -> Option<u32> {
        let island = self.free.pop()?;
        self.current = island;
        Some(island)
    }

    /// This queue waits for its turn at `next`, if it has anything.
    pub fn wait(&mut self, queue: u32, next: Option<SimTime>) {
        if let Some(next) = next {
            self.bound.push(Reverse((next, queue)));
        }
    }

    /// The queue whose turn it is, if what was noted still holds.
    pub fn next_bound(&mut self) -> Option<(SimTime, u32)> {
        let Reverse((at, queue)) = self.bound.pop()?;
        self.current = queue;
        Some((at, queue))
    }

    /// When the turn of the next one is, or earlier.
    pub fn next_time(&self) -> Option<SimTime> {
        self.bound.peek().map(|Reverse((at, _))| *at)
    }

    /// Whether the present queue's events have stayed its own.
    pub fn undisturbed(&self) -> bool {
        self.disturbed.is_empty() && self.free.is_empty()
    }

    pub fn next_disturbed(&mut self) -> Option<u32> {
        self.disturbed.pop()
    }
}

/// Disjoint sets.
struct Sets(Vec<u32>);

impl Sets {
    fn new(count: usize) -> Self {
        Self((0..count as u32).collect())
    }

    fn first(&mut self, mut of: u32) -> u32 {
        while self.0[of as usize] != of {
            // Halve the way for the next one.
            self.0[of as usize] = self.0[self.0[of as usize] as usize];
            of = self.0[of as usize];
        }
        of
    }

    fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.first(a), self.first(b));
        self.0[a.max(b) as usize] = a.min(b);
    }

    /// The set of each, numbered by first appearance.
    fn numbered(mut self) -> Vec<u32> {
        let mut next = 0;
        let mut number = vec![u32::MAX; self.0.len()];
        (0..self.0.len() as u32)
            .map(|of| {
                let first = self.first(of) as usize;
                if number[first] == u32::MAX {
                    number[first] = next;
                    next += 1;
                }
                number[first]
            })
            .collect()
    }
}
