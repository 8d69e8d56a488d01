//! Every candidate queue against a slow, obvious one.

use proptest::prelude::*;
use rackflow_engine::queues::{DaryHeap, Key, LadderQueue, PendingSet, StdHeap};
use rackflow_engine::{EventClass, EventId, EventQueue};
use rackflow_units::SimTime;

/// The promise in its plainest form: a list of what is pending, sorted before every pop.
#[derive(Default)]
struct SlowQueue {
    now: SimTime,
    pending: Vec<(Key, u32)>,
    pushed: u64,
}

impl SlowQueue {
    fn schedule(&mut self, time: SimTime, class: EventClass, name: u32) -> u64 {
        self.pending.push((
            Key {
                time,
                class,
                sequence: self.pushed,
            },
            name,
        ));
        self.pushed += 1;
        self.pushed - 1
    }

    fn cancel(&mut self, sequence: u64) -> bool {
        let before = self.pending.len();
        self.pending.retain(|(key, _)| key.sequence != sequence);
        self.pending.len() < before
    }

    fn next_time(&mut self) -> Option<SimTime> {
        self.pending.sort();
        self.pending.first().map(|(key, _)| key.time)
    }

    fn pop(&mut self) -> Option<(SimTime, u32)> {
        self.now = self.next_time()?;
        Some((self.now, self.pending.remove(0).1))
    }
}

/// How far from now an event lands.
#[derive(Debug, Clone, Copy)]
enum Delay {
    Now,
    /// A small number of ticks: many ties.
    Ticks(u64),
    /// Any number of bits: from picoseconds to months.
    Bits(u32, u64),
    /// A fixed instant far ahead, shared by all who name it.
    Landmark(u64),
    EndOfTime,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Schedule {
        delay: Delay,
        class: u8,
        count: usize,
    },
    Cancel {
        which: usize,
    },
    /// Cancels many in a row, so that the queue sweeps.
    CancelMost {
        modulus: u64,
    },
    Pop {
        count: usize,
    },
    Peek,
}

impl Delay {
    fn after(self, now: SimTime, index: usize) -> SimTime {
        let now = now.as_picos();
        SimTime::from_picos(match self {
            Self::Now => now,
            Self::Ticks(ticks) => now.saturating_add(ticks),
            Self::Bits(bits, word) => {
                let word = word.wrapping_mul(2 * index as u64 + 1);
                now.saturating_add(word.checked_shr(64 - bits).unwrap_or(0))
            }
            Self::Landmark(landmark) => now.max(landmark),
            Self::EndOfTime => u64::MAX,
        })
    }
}

fn delay() -> impl Strategy<Value = Delay> {
    prop_oneof![
        2 => Just(Delay::Now),
        3 => (0u64..8).prop_map(Delay::Ticks),
        4 => (0u32..=64, any::<u64>()).prop_map(|(bits, word)| Delay::Bits(bits, word)),
        2 => (0u64..4).prop_map(|i| Delay::Landmark([100, 5_000, 1 << 40, u64::MAX - 1][i as usize])),
        1 => Just(Delay::EndOfTime),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let class = prop_oneof![4 => 0u8..3, 1 => any::<u8>()];
    let count = prop_oneof![8 => 1usize..4, 2 => 1usize..300];
    let pops = prop_oneof![8 => 1usize..4, 2 => 1usize..400];
    prop_oneof![
        8 => (delay(), class, count)
            .prop_map(|(delay, class, count)| Step::Schedule { delay, class, count }),
        2 => any::<usize>().prop_map(|which| Step::Cancel { which }),
        1 => (2u64..9).prop_map(|modulus| Step::CancelMost { modulus }),
        5 => pops.prop_map(|count| Step::Pop { count }),
        2 => Just(Step::Peek),
    ]
}

/// Runs the same steps on the queue and on the slow one.
fn check<Q: PendingSet>(steps: &[Step]) {
    let mut queue = EventQueue::<u32, Q>::with_pending_set();
    let mut slow = SlowQueue::default();
    let mut ids: Vec<(EventId, u64)> = Vec::new();
    for step in steps {
        match *step {
            Step::Schedule {
                delay,
                class,
                count,
            } => {
                for index in 0..count {
                    let time = delay.after(queue.now(), index);
                    let name = ids.len() as u32;
                    let id = queue.schedule(time, EventClass(class), name);
                    ids.push((id, slow.schedule(time, EventClass(class), name)));
                }
            }
            Step::Cancel { .. } if ids.is_empty() => {}
            Step::Cancel { which } => {
                let (id, sequence) = ids[which % ids.len()];
                assert_eq!(queue.cancel(id), slow.cancel(sequence));
                assert!(!queue.cancel(id), "an id works once");
            }
            Step::CancelMost { modulus } => {
                for &(id, sequence) in ids.iter().filter(|(_, s)| !s.is_multiple_of(modulus)) {
                    assert_eq!(queue.cancel(id), slow.cancel(sequence));
                }
            }
            Step::Pop { count } => {
                for _ in 0..count {
                    assert_eq!(queue.pop(), slow.pop());
                }
            }
            Step::Peek => assert_eq!(queue.next_time(), slow.next_time()),
        }
        assert_eq!(queue.len(), slow.pending.len());
        assert_eq!(queue.now(), slow.now);
    }
    while let Some(expected) = slow.pop() {
        assert_eq!(queue.pop(), Some(expected));
    }
    assert_eq!(queue.pop(), None);
    assert!(queue.is_empty());
}

/// Pushes, pops a few, drops some keys, pushes again: what a sweep does to a queue.
fn check_retain<Q: PendingSet>(delays: &[(Delay, u8)], pops: usize, modulus: u32) {
    let mut queue = Q::default();
    let mut slow: Vec<(Key, u32)> = Vec::new();
    let mut now = SimTime::ZERO;
    let mut sequence = 0;
    for round in 0..3 {
        for &(delay, class) in delays {
            for index in 0..8 {
                let time = delay.after(now, index);
                let key = Key {
                    time,
                    class: EventClass(class),
                    sequence,
                };
                queue.push(key, sequence as u32);
                slow.push((key, sequence as u32));
                sequence += 1;
            }
        }
        slow.sort();
        for (key, slot) in slow.drain(..pops.min(slow.len())) {
            assert_eq!(queue.pop(), Some((key.time, slot)));
            now = key.time;
        }
        let keep = |slot: u32| slot % modulus == round;
        queue.retain(keep);
        slow.retain(|(_, slot)| keep(*slot));
        assert_eq!(queue.len(), slow.len());
    }
    for (key, slot) in slow {
        assert_eq!(queue.peek(), Some((key.time, slot)));
        assert_eq!(queue.pop(), Some((key.time, slot)));
    }
    assert_eq!(queue.pop(), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ladder_pops_in_the_promised_order(steps in prop::collection::vec(step(), 1..60)) {
        check::<LadderQueue>(&steps);
    }

    #[test]
    fn std_heap_pops_in_the_promised_order(steps in prop::collection::vec(step(), 1..60)) {
        check::<StdHeap>(&steps);
    }

    #[test]
    fn dary_heap_pops_in_the_promised_order(steps in prop::collection::vec(step(), 1..60)) {
        check::<DaryHeap<4>>(&steps);
        check::<DaryHeap<8>>(&steps);
    }

    #[test]
    fn a_sweep_changes_nothing_for_the_living(
        delays in prop::collection::vec((delay(), 0u8..4), 1..80),
        pops in 0usize..200,
        modulus in 3u32..6,
    ) {
        check_retain::<LadderQueue>(&delays, pops, modulus);
        check_retain::<StdHeap>(&delays, pops, modulus);
        check_retain::<DaryHeap<4>>(&delays, pops, modulus);
    }
}
