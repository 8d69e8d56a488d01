//! The queue that models see: events by value, ids that can be cancelled, and the clock.

use crate::queues::{DefaultSet, Key, PendingSet};
use rackflow_units::SimTime;
use std::hint::black_box;

/// Rank of an event among those of the same instant; the lowest is handled first.
///
/// The order of simultaneous events is part of a model, so a model lists its classes once:
///
/// ```
/// use rackflow_engine::EventClass;
///
/// const FINISHED: EventClass = EventClass(0); // resources are free
/// const ARRIVED: EventClass = EventClass(1); // before newcomers ask for them
/// const DECIDED: EventClass = EventClass(2); // and only then is somebody chosen
/// # assert!(FINISHED < ARRIVED && ARRIVED < DECIDED);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct EventClass(pub u8);

/// Names one scheduled event, for [`EventQueue::cancel`]; 8 bytes.
///
/// An id belongs to the queue that gave it. It names nothing once its event was popped or
/// cancelled, also when the place in memory has been given to another event. (A generation of 32
/// bits tells them apart, so an id must not be kept while one place is used 2^32 times.)
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EventId {
    slot: u32,
    generation: u32,
}

/// Where an event waits. One enum and not an `Option` beside a generation: so the slot of an event
/// of 8 bytes takes 16 bytes and lies in one cache line.
#[derive(Debug)]
enum Slot<E> {
    /// Pending.
    Full { generation: u32, event: E },
    /// Cancelled, and its key is not yet passed.
    Dead { generation: u32 },
    /// To be used again. `next` is the one that became free before it.
    Free { generation: u32, next: u32 },
}

/// No slot: the end of the list of free ones.
const NONE: u32 = u32::MAX;

/// Pending events in the order (time, class, sequence), and the clock that they drive.
///
/// `Q` is the priority queue inside; models leave it at the default, which was chosen by
/// measurement among the candidates in [`queues`](crate::queues).
///
/// # Memory
/// One slot per event that was ever pending at the same time. A cancelled event is dropped at once;
/// its slot and key follow at the latest when more keys are dead than alive.
#[derive(Debug)]
pub struct EventQueue<E, Q = DefaultSet> {
    now: SimTime,
    /// Events ever scheduled.
    sequence: u64,
    /// Events ever cancelled.
    cancelled: u64,
    slots: Vec<Slot<E>>,
    /// The slot that became free last.
    free: u32,
    /// Keys in `pending` whose event was cancelled.
    dead: usize,
    /// Pops until it is worth while to look ahead again.
    looked_ahead: usize,
    pending: Q,
}

/// With more bytes of slots than this, an event is often out of the cache when its turn comes.
const BYTES_IN_CACHE: usize = 512 << 10;
/// So many events are fetched together, which takes hardly longer than fetching one.
const LOOK_AHEAD: usize = 16;

/// Below this many dead keys a sweep is not worth its walk.
const DEAD_KEYS_TOLERATED: usize = 1024;

impl<E> EventQueue<E> {
    /// An empty queue with the clock at zero.
    pub fn new() -> Self {
        Self::with_pending_set()
    }
}

impl<E> Default for EventQueue<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E, Q: PendingSet> EventQueue<E, Q> {
    /// An empty queue over another candidate, for benches and comparisons.
    pub fn with_pending_set() -> Self {
        Self {
            now: SimTime::ZERO,
            sequence: 0,
            cancelled: 0,
            slots: Vec::new(),
            free: NONE,
            dead: 0,
            looked_ahead: 0,
            pending: Q::default(),
        }
    }

    /// The time of the event popped last; zero before the first.
    #[inline]
    pub fn now(&self) -> SimTime {
        self.now
    }

    /// Puts `event` at `at`, which may be now: it is then handled after the events of its class
    /// that already wait at this instant.
    ///
    /// # Panics
    /// When `at` is before [`now`](Self::now), or when 2^32 events are pending.
    #[inline]
    pub fn schedule(&mut self, at: SimTime, class: EventClass, event: E) -> EventId {
        if at < self.now {
            scheduled_into_the_past(at, self.now);
        }
        let slot = self.free;
        let id = match self.slots.get_mut(slot as usize) {
            Some(place @ &mut Slot::Free { generation, next }) => {
                *place = Slot::Full { generation, event };
                self.free = next;
                EventId { slot, generation }
            }
            _ => self.schedule_in_new_slot(event),
        };
        self.pending.push(
            Key {
                time: at,
                class,
                sequence: self.sequence,
            },
            id.slot,
        );
        self.sequence += 1;
        id
    }

    #[cold]
    #[inline(never)]
    fn schedule_in_new_slot(&mut self, event: E) -> EventId {
        let slot = u32::try_from(self.slots.len()).expect("fewer than 2^32 events are pending");
        assert!(slot < NONE, "fewer than 2^32 events are pending");
        self.slots.push(Slot::Full {
            generation: 0,
            event,
        });
        EventId {
            slot,
            generation: 0,
        }
    }

    /// Takes back an event that has not been popped. Returns whether it was still pending: an id
    /// works once.
    ///
    /// Takes constant time, amortised.
    pub fn cancel(&mut self, id: EventId) -> bool {
        let Some(place) = self.slots.get_mut(id.slot as usize) else {
            return false;
        };
        match place {
            Slot::Full { generation, .. } if *generation == id.generation => {}
            _ => return false,
        }
        *place = Slot::Dead {
            generation: id.generation,
        };
        self.dead += 1;
        self.cancelled += 1;
        if self.dead > DEAD_KEYS_TOLERATED && self.dead * 2 > self.pending.len() {
            self.sweep();
        }
        true
    }

    /// Removes the keys of cancelled events and frees their slots.
    fn sweep(&mut self) {
        let (slots, free) = (&mut self.slots, &mut self.free);
        self.pending.retain(|slot| match slots[slot as usize] {
            Slot::Full { .. } => true,
            Slot::Dead { generation } | Slot::Free { generation, .. } => {
                slots[slot as usize] = Slot::Free {
                    generation: generation.wrapping_add(1),
                    next: *free,
                };
                *free = slot;
                false
            }
        });
        self.dead = 0;
    }

    /// Takes the next event and moves the clock to its time.
    #[inline]
    pub fn pop(&mut self) -> Option<(SimTime, E)> {
        loop {
            if self.slots.len() > const { BYTES_IN_CACHE / size_of::<Slot<E>>() } {
                self.look_ahead();
            }
            let (time, slot) = self.pending.pop()?;
            let Some(event) = self.take(slot) else {
                self.dead -= 1;
                continue;
            };
            if time < self.now {
                time_ran_backward(time, self.now);
            }
            self.now = time;
            return Some((time, event));
        }
    }

    /// Frees `slot`, and returns its event unless it was cancelled.
    #[inline]
    fn take(&mut self, slot: u32) -> Option<E> {
        let place = &mut self.slots[slot as usize];
        let (Slot::Full { generation, .. }
        | Slot::Dead { generation }
        | Slot::Free { generation, .. }) = *place;
        let free = Slot::Free {
            generation: generation.wrapping_add(1),
            next: self.free,
        };
        self.free = slot;
        match std::mem::replace(place, free) {
            Slot::Full { event, .. } => Some(event),
            _ => None,
        }
    }

    /// Reads the slots of the next events, so that their cache misses overlap.
    #[inline]
    fn look_ahead(&mut self) {
        if self.looked_ahead > 0 {
            self.looked_ahead -= 1;
            return;
        }
        let mut read = 0;
        self.pending.look_ahead(LOOK_AHEAD, |slot| {
            read ^= u8::from(matches!(self.slots[slot as usize], Slot::Full { .. }));
            self.looked_ahead += 1;
        });
        black_box(read);
    }

    /// The time of the event that [`pop`](Self::pop) would take. The clock does not move.
    #[inline]
    pub fn next_time(&mut self) -> Option<SimTime> {
        loop {
            let (time, slot) = self.pending.peek()?;
            if let Slot::Full { .. } = self.slots[slot as usize] {
                return Some(time);
            }
            self.pending.pop();
            self.take(slot);
            self.dead -= 1;
        }
    }

    /// Events that are scheduled and neither popped nor cancelled.
    pub fn len(&self) -> usize {
        self.pending.len() - self.dead
    }

    /// Whether nothing is pending.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Events popped since the queue was made. Cancelled events do not count.
    pub fn events_handled(&self) -> u64 {
        self.sequence - self.cancelled - self.len() as u64
    }
}

// Out of the way of the fast path.

#[cold]
#[inline(never)]
fn scheduled_into_the_past(at: SimTime, now: SimTime) -> ! {
    panic!("scheduled into the past: {at:?} is before {now:?}");
}

#[cold]
#[inline(never)]
fn time_ran_backward(time: SimTime, now: SimTime) -> ! {
    panic!("time ran backward: {time:?} is before {now:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ps: u64) -> SimTime {
        SimTime::from_picos(ps)
    }

    fn popped<E>(queue: &mut EventQueue<E>) -> Vec<E> {
        std::iter::from_fn(|| queue.pop().map(|(_, event)| event)).collect()
    }

    #[test]
    fn simultaneous_events_come_by_class_then_in_order_of_scheduling() {
        let mut queue = EventQueue::new();
        for (class, event) in [(1, 'c'), (1, 'd'), (0, 'a'), (2, 'e'), (0, 'b')] {
            queue.schedule(at(5), EventClass(class), event);
        }
        assert_eq!(popped(&mut queue), ['a', 'b', 'c', 'd', 'e']);
    }

    #[test]
    fn an_event_now_waits_behind_its_class_and_before_higher_ones() {
        let mut queue = EventQueue::new();
        for (class, event) in [(0, 'a'), (1, 'b'), (1, 'c'), (2, 'e')] {
            queue.schedule(at(5), EventClass(class), event);
        }
        assert_eq!(queue.pop(), Some((at(5), 'a')));
        queue.schedule(at(5), EventClass(1), 'd');
        assert_eq!(popped(&mut queue), ['b', 'c', 'd', 'e']);
    }

    #[test]
    #[should_panic(expected = "scheduled into the past")]
    fn the_past_is_closed() {
        let mut queue = EventQueue::new();
        queue.schedule(at(5), EventClass(0), ());
        queue.pop();
        queue.schedule(at(4), EventClass(0), ());
    }

    #[test]
    fn an_id_works_once_and_never_for_the_next_in_its_slot() {
        let mut queue = EventQueue::new();
        let first = queue.schedule(at(1), EventClass(0), 'a');
        assert!(queue.cancel(first));
        assert!(!queue.cancel(first));
        assert_eq!(queue.pop(), None);
        let second = queue.schedule(at(1), EventClass(0), 'b');
        assert_eq!(first.slot, second.slot, "the slot is used again");
        assert!(!queue.cancel(first));
        assert_eq!(queue.pop(), Some((at(1), 'b')));
        assert!(!queue.cancel(second));
        assert_eq!(queue.events_handled(), 1);
    }

    #[test]
    fn cancelled_events_do_not_pile_up() {
        let mut queue = EventQueue::new();
        for i in 0..1_000_000 {
            let id = queue.schedule(at(1_000_000 + i), EventClass(0), i);
            assert!(queue.cancel(id));
        }
        assert!(queue.is_empty());
        assert!(
            queue.slots.len() <= 2 * DEAD_KEYS_TOLERATED,
            "{} slots",
            queue.slots.len()
        );
    }

    #[test]
    fn a_cancelled_event_is_dropped_at_once() {
        let witness = std::rc::Rc::new(());
        let mut queue = EventQueue::new();
        let id = queue.schedule(at(1), EventClass(0), witness.clone());
        queue.cancel(id);
        assert_eq!(std::rc::Rc::strong_count(&witness), 1);
    }

    #[test]
    fn an_id_is_small() {
        assert_eq!(size_of::<EventId>(), 8);
    }
}
