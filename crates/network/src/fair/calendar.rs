//! Ends of flows by time. Flows of a symmetric collective end together, so ends at one instant
//! share a bucket and cost next to nothing.

use rackflow_units::SimTime;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Buckets of the last instants that were named, so that ties are found without a search.
const RECENT: usize = 64;

/// Slots by the instant at which they may end. An entry whose flow has changed is stale; whoever
/// asks says which are not.
#[derive(Debug, Clone)]
pub(super) struct Calendar {
    instants: BinaryHeap<Reverse<(SimTime, u32)>>,
    buckets: Vec<Vec<u32>>,
    free: Vec<u32>,
    recent: [(SimTime, u32); RECENT],
    spare: Vec<Vec<u32>>,
}

impl Default for Calendar {
    fn default() -> Self {
        Self {
            instants: BinaryHeap::new(),
            buckets: Vec::new(),
            free: Vec::new(),
            recent: [(SimTime::MAX, 0); RECENT],
            spare: Vec::new(),
        }
    }
}

/// Where the bucket of an instant is remembered (Fibonacci hashing).
fn place(at: SimTime) -> usize {
    (at.as_picos().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize
}

impl Calendar {
    pub(super) fn push(&mut self, at: SimTime, slot: u32) {
        let recent = &mut self.recent[place(at)];
        if recent.0 == at {
            self.buckets[recent.1 as usize].push(slot);
            return;
        }
        let bucket = self.free.pop().unwrap_or_else(|| {
            self.buckets.push(self.spare.pop().unwrap_or_default());
            self.buckets.len() as u32 - 1
        });
        self.buckets[bucket as usize].push(slot);
        *recent = (at, bucket);
        self.instants.push(Reverse((at, bucket)));
    }

    /// The first instant at which a flow still ends, as `ends(slot, at)` says.
    pub(super) fn next(&mut self, ends: impl Fn(u32, SimTime) -> bool) -> Option<SimTime> {
        loop {
            let &Reverse((at, bucket)) = self.instants.peek()?;
            if self.buckets[bucket as usize]
                .iter()
                .any(|slot| ends(*slot, at))
            {
                return Some(at);
            }
            self.buckets[bucket as usize].clear();
            self.drop_first();
        }
    }

    /// Takes the first bucket; [`next`](Self::next) has just found a flow in it.
    pub(super) fn take(&mut self) -> Vec<u32> {
        let &Reverse((_, bucket)) = self.instants.peek().expect("a flow ends");
        let spare = self.spare.pop().unwrap_or_default();
        let taken = std::mem::replace(&mut self.buckets[bucket as usize], spare);
        self.drop_first();
        taken
    }

    /// Returns the memory of a bucket that was taken, emptied.
    pub(super) fn give_back(&mut self, bucket: Vec<u32>) {
        self.spare.push(bucket);
    }

    fn drop_first(&mut self) {
        let Reverse((at, bucket)) = self.instants.pop().expect("there is a first");
        self.free.push(bucket);
        let recent = &mut self.recent[place(at)];
        if *recent == (at, bucket) {
            recent.0 = SimTime::MAX;
        }
    }
}
