//! Candidates for the priority queue inside [`EventQueue`](crate::EventQueue), kept for benches
//! and comparisons.
//!
//! Each holds keys and slot numbers only; the events stay with the caller. All of them pop in the
//! same order, (time, class, sequence), and differ in speed alone.

mod dary_heap;
mod ladder;
mod std_heap;

use crate::EventClass;
use rackflow_units::SimTime;

pub use dary_heap::DaryHeap;
pub use ladder::LadderQueue;
pub use std_heap::StdHeap;

/// The candidate that models get.
pub type DefaultSet = LadderQueue;

/// When an event happens, and its place among simultaneous ones. Compares in the promised order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// First the time,
    pub time: SimTime,
    /// then the class,
    pub class: EventClass,
    /// then the insertion number: below 2^56, and larger with every push.
    pub sequence: u64,
}

impl Key {
    /// The whole order in one number.
    #[inline]
    pub(crate) fn packed(self) -> u128 {
        let tail = u64::from(self.class.0) << 56 | self.sequence;
        u128::from(self.time.as_picos()) << 64 | u128::from(tail)
    }
}

/// The time in a [`Key::packed`].
#[inline]
fn packed_time(packed: u128) -> SimTime {
    SimTime::from_picos((packed >> 64) as u64)
}

/// Keys in order, each with the slot of its event.
///
/// CONTRACT: sequences grow with every push.
pub trait PendingSet: Default {
    /// Adds `key`.
    fn push(&mut self, key: Key, slot: u32);

    /// Takes the least key: its time and its slot.
    fn pop(&mut self) -> Option<(SimTime, u32)>;

    /// What [`pop`](Self::pop) would take. May reorganise, hence `mut`.
    fn peek(&mut self) -> Option<(SimTime, u32)>;

    /// Visits the slots of some of the next keys, at most `count` and perhaps none, so that the
    /// caller can have their events in the cache when they are popped.
    fn look_ahead(&self, _count: usize, _visit: impl FnMut(u32)) {}

    /// Drops every key whose slot is refused by `keep`.
    fn retain(&mut self, keep: impl FnMut(u32) -> bool);

    /// Number of keys.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
