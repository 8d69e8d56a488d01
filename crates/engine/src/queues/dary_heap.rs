//! A heap with `D` children per node, keys apart from slots.

use super::{Key, PendingSet, packed_time};
use rackflow_units::SimTime;

/// An implicit heap with `D` children per node: shallower than a binary one, so it misses the
/// cache less often when there are many keys.
#[derive(Debug, Default)]
pub struct DaryHeap<const D: usize> {
    keys: Vec<u128>,
    slots: Vec<u32>,
}

impl<const D: usize> DaryHeap<D> {
    fn sift_up(&mut self, mut at: usize) {
        let (key, slot) = (self.keys[at], self.slots[at]);
        while at > 0 {
            let parent = (at - 1) / D;
            if self.keys[parent] <= key {
                break;
            }
            self.keys[at] = self.keys[parent];
            self.slots[at] = self.slots[parent];
            at = parent;
        }
        self.keys[at] = key;
        self.slots[at] = slot;
    }

    fn sift_down(&mut self, mut at: usize) {
        let (key, slot) = (self.keys[at], self.slots[at]);
        loop {
            let first = at * D + 1;
            if first >= self.keys.len() {
                break;
            }
            let children = &self.keys[first..(first + D).min(self.keys.len())];
            let mut least = 0;
            for i in 1..children.len() {
                if children[i] < children[least] {
                    least = i;
                }
            }
            if key <= children[least] {
                break;
            }
            self.keys[at] = children[least];
            self.slots[at] = self.slots[first + least];
            at = first + least;
        }
        self.keys[at] = key;
        self.slots[at] = slot;
    }
}

impl<const D: usize> PendingSet for DaryHeap<D> {
    #[inline]
    fn push(&mut self, key: Key, slot: u32) {
        self.keys.push(key.packed());
        self.slots.push(slot);
        self.sift_up(self.keys.len() - 1);
    }

    #[inline]
    fn pop(&mut self) -> Option<(SimTime, u32)> {
        let (key, slot) = (self.keys.pop()?, self.slots.pop()?);
        if self.keys.is_empty() {
            return Some((packed_time(key), slot));
        }
        let least = (packed_time(self.keys[0]), self.slots[0]);
        self.keys[0] = key;
        self.slots[0] = slot;
        self.sift_down(0);
        Some(least)
    }

    #[inline]
    fn peek(&mut self) -> Option<(SimTime, u32)> {
        Some((packed_time(*self.keys.first()?), self.slots[0]))
    }

    fn retain(&mut self, mut keep: impl FnMut(u32) -> bool) {
        let mut kept = 0;
        for i in 0..self.keys.len() {
            if keep(self.slots[i]) {
                self.keys[kept] = self.keys[i];
                self.slots[kept] = self.slots[i];
                kept += 1;
            }
        }
        self.keys.truncate(kept);
        self.slots.truncate(kept);
        for at in (0..kept.div_ceil(D)).rev() {
            self.sift_down(at);
        }
    }

    fn len(&self) -> usize {
        self.keys.len()
    }
}
