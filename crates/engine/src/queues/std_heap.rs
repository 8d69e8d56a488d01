//! The binary heap of the standard library.

use super::{Key, PendingSet, packed_time};
use rackflow_units::SimTime;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// `std::collections::BinaryHeap`: logarithmic, indifferent to the distribution of times, and
/// the yardstick for the others.
#[derive(Debug, Default)]
pub struct StdHeap {
    heap: BinaryHeap<Reverse<(u128, u32)>>,
}

impl PendingSet for StdHeap {
    #[inline]
    fn push(&mut self, key: Key, slot: u32) {
        self.heap.push(Reverse((key.packed(), slot)));
    }

    #[inline]
    fn pop(&mut self) -> Option<(SimTime, u32)> {
        let Reverse((key, slot)) = self.heap.pop()?;
        Some((packed_time(key), slot))
    }

    #[inline]
    fn peek(&mut self) -> Option<(SimTime, u32)> {
        let Reverse((key, slot)) = self.heap.peek()?;
        Some((packed_time(*key), *slot))
    }

    fn retain(&mut self, mut keep: impl FnMut(u32) -> bool) {
        self.heap.retain(|Reverse((_, slot))| keep(*slot));
    }

    fn len(&self) -> usize {
        self.heap.len()
    }
}
