//! Tiers of KV cache below HBM: which blocks each holds, and how long they take to come and go.

use super::blocks::{Keeps, Named};
use rackflow_units::{Bandwidth, Bytes, SimDuration, SimTime};
use rackflow_workload::{Eviction, KvTier, Medium, WritePolicy};
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;

/// A block in a tier.
#[derive(Debug, Clone, Copy)]
struct Kept {
    depth: u32,
    uses: u32,
    /// Its place among those that leave: the smallest goes first.
    rank: (u64, u64),
    /// When it is all there.
    written: SimTime,
}

/// One direction of a tier: copies wait for each other.
#[derive(Debug, Clone, Copy, Default)]
struct Channel {
    busy_until: SimTime,
}

impl Channel {
    /// When a copy that may start at `now` ends.
    fn copy(&mut self, now: SimTime, rate: Bandwidth, bytes: Bytes) -> SimTime {
        self.busy_until = self.busy_until.max(now) + rate.time_to_send(bytes);
        self.busy_until
    }
}

/// One tier of one replica, or of all.
#[derive(Debug)]
pub(super) struct Tier {
    plan: KvTier,
    capacity: u64,
    blocks: FxHashMap<u64, Kept>,
    /// Rank and name of every block.
    order: BTreeSet<((u64, u64), u64)>,
    /// Uses and arrivals so far.
    clock: u64,
    reads: Channel,
    /// A disk has one for both.
    writes: Channel,
    pub blocks_read: u64,
    pub blocks_written: u64,
}

impl Tier {
    fn new(plan: KvTier, block_bytes: u64) -> Self {
        Self {
            plan,
            capacity: plan.capacity.get() / block_bytes.max(1),
            blocks: FxHashMap::default(),
            order: BTreeSet::new(),
            clock: 0,
            reads: Channel::default(),
            writes: Channel::default(),
            blocks_read: 0,
            blocks_written: 0,
        }
    }

    pub fn medium(&self) -> Medium {
        self.plan.medium
    }

    /// Where a block stands after a use, or after its arrival.
    fn rank(&mut self, depth: u32, uses: u32, came: Option<u64>) -> (u64, u64) {
        self.clock += 1;
        let now = self.clock;
        match self.plan.eviction {
            Eviction::Lru => (0, now),
            Eviction::Fifo => (0, came.unwrap_or(now)),
            Eviction::Lfu => (uses.into(), now),
            Eviction::Mru => (0, u64::MAX - now),
            Eviction::LengthAware => (uses.into(), u64::from(u32::MAX - depth) << 32 | now >> 32),
        }
    }

    /// When the block is here, if it ever is; it is then the one used last.
    fn touch(&mut self, hash: u64) -> Option<SimTime> {
        let Kept {
            depth,
            uses,
            rank,
            written,
        } = *self.blocks.get(&hash)?;
        let new = self.rank(depth, uses + 1, Some(rank.1));
        self.order.remove(&(rank, hash));
        self.order.insert((new, hash));
        let kept = self.blocks.get_mut(&hash).expect("it was just read");
        (kept.uses, kept.rank) = (uses + 1, new);
        Some(written)
    }

    /// Keeps a block that comes at `now`: when it is all here, and the one that loses its place.
    fn put(
        &mut self,
        now: SimTime,
        (hash, depth): Named,
        block_bytes: u64,
    ) -> (SimTime, Option<Named>) {
        if self.capacity == 0 {
            return (now, Some((hash, depth)));
        }
        if let Some(written) = self.touch(hash) {
            return (written, None);
        }
        let lost = if self.blocks.len() as u64 >= self.capacity {
            self.order.pop_first().map(|(_, name)| {
                let kept = self.blocks.remove(&name).expect("both know every block");
                (name, kept.depth)
            })
        } else {
            None
        };
        let rate = self.plan.write.unwrap_or(self.plan.read);
        let written = self.channel().copy(now, rate, Bytes::new(block_bytes));
        self.blocks_written += 1;
        let rank = self.rank(depth, 0, None);
        self.order.insert((rank, hash));
        let kept = Kept {
            depth,
            uses: 0,
            rank,
            written,
        };
        self.blocks.insert(hash, kept);
        (written, lost)
    }

    /// What writes go through.
    fn channel(&mut self) -> &mut Channel {
        if self.plan.medium == Medium::LocalSsd {
            &mut self.reads
        } else {
            &mut self.writes
        }
    }

    /// When `blocks` of `bytes` each are read, in turn with other reads.
    fn read(&mut self, from: SimTime, blocks: u64, block_bytes: u64) -> SimTime {
        self.blocks_read += blocks;
        let bytes = Bytes::new(block_bytes) * blocks;
        self.reads.copy(from, self.plan.read, bytes) + self.plan.latency
    }
}

/// The tiers of all replicas, the nearest first.
#[derive(Debug)]
pub(super) struct Store {
    /// By tier, then by replica; one for all where the tier is remote.
    tiers: Vec<Vec<Tier>>,
    block_bytes: u64,
}

/// What a look-up found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// Blocks beyond those in HBM.
    pub blocks: u64,
    /// When local tiers have delivered theirs.
    pub local: SimTime,
    /// Blocks that come over the network, and when the pool has read them.
    pub remote: u64,
    pub remote_read: SimTime,
}

/// What writing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Written {
    /// How long places in HBM are not free yet.
    pub wait: SimDuration,
    /// Blocks that leave over the network.
    pub remote: u64,
}

impl Store {
    pub fn new(plan: &[KvTier], replicas: usize, block_bytes: u64) -> Self {
        let tiers = plan
            .iter()
            .map(|tier| {
                let copies = if tier.medium == Medium::Remote {
                    1
                } else {
                    replicas
                };
                (0..copies).map(|_| Tier::new(*tier, block_bytes)).collect()
            })
            .collect();
        Self { tiers, block_bytes }
    }

    /// What HBM must remember for tiers like these.
    pub fn keeps(plan: &[KvTier]) -> Keeps {
        Keeps {
            evicted: !plan.is_empty(),
            published: plan
                .iter()
                .any(|tier| tier.write_policy == WritePolicy::WriteThrough),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.tiers.is_empty()
    }

    pub fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    pub fn tiers(&self) -> impl Iterator<Item = &[Tier]> {
        self.tiers.iter().map(Vec::as_slice)
    }

    fn tier(&mut self, level: usize, replica: usize) -> &mut Tier {
        let copies = &mut self.tiers[level];
        let index = if copies.len() == 1 { 0 } else { replica };
        &mut copies[index]
    }

    /// Puts a block into a tier, and what falls out of it into the one below.
    fn put(
        &mut self,
        now: SimTime,
        replica: usize,
        level: usize,
        block: Named,
        written: &mut Written,
    ) -> SimTime {
        let bytes = self.block_bytes;
        let tier = self.tier(level, replica);
        let before = tier.blocks_written;
        let (ready, mut falling) = tier.put(now, block, bytes);
        if tier.medium() == Medium::Remote {
            written.remote += tier.blocks_written - before;
        }
        for below in level + 1..self.tiers.len() {
            let Some(block) = falling else { break };
            if self.tier(below, replica).plan.write_policy == WritePolicy::WriteThrough {
                // It went there when it was computed.
                break;
            }
            let upper = self.tier(below - 1, replica);
            let read = upper.reads.copy(now, upper.plan.read, Bytes::new(bytes));
            let tier = self.tier(below, replica);
            let before = tier.blocks_written;
            (_, falling) = tier.put(read, block, bytes);
            if tier.medium() == Medium::Remote {
                written.remote += tier.blocks_written - before;
            }
        }
        ready
    }

    /// Blocks fell out of a replica's HBM: each goes down tier by tier as each is full.
    pub fn demote(
        &mut self,
        now: SimTime,
        replica: usize,
        blocks: impl Iterator<Item = Named>,
    ) -> Written {
        let mut written = Written::default();
        let mut free = now;
        for block in blocks {
            let first = (0..self.tiers.len()).find(|&level| {
                let tier = self.tier(level, replica);
                tier.plan.write_policy == WritePolicy::WriteBack
                    || tier.blocks.contains_key(&block.0)
            });
            let Some(level) = first else { continue };
            let tier = self.tier(level, replica);
            let remote = tier.medium() == Medium::Remote;
            let ready = if tier.plan.write_policy == WritePolicy::WriteThrough {
                tier.blocks[&block.0].written
            } else {
                self.put(now, replica, level, block, &mut written)
            };
            // What goes over the network is copied to a buffer of the host first.
            if !remote {
                free = free.max(ready);
            }
        }
        written.wait = free.since(now);
        written
    }

    /// Blocks were computed: tiers that are written at once get them.
    pub fn computed(
        &mut self,
        now: SimTime,
        replica: usize,
        blocks: impl Iterator<Item = Named>,
    ) -> Written {
        let mut written = Written::default();
        for block in blocks {
            for level in 0..self.tiers.len() {
                if self.tier(level, replica).plan.write_policy == WritePolicy::WriteThrough {
                    self.put(now, replica, level, block, &mut written);
                }
            }
        }
        written
    }

    /// Looks the rest of a prompt up, block after block as long as some tier has it, and reads it.
    pub fn fetch(&mut self, now: SimTime, replica: usize, chain: &[u64]) -> Found {
        let mut found = Found {
            blocks: 0,
            local: now,
            remote: 0,
            remote_read: now,
        };
        // Blocks of each tier, and when the last of them is there to be read.
        let mut reads = [(0_u64, now); 8];
        for &hash in chain {
            let here = (0..self.tiers.len())
                .find_map(|level| Some((level, self.tier(level, replica).touch(hash)?)));
            let Some((level, written)) = here else { break };
            let (blocks, from) = &mut reads[level.min(7)];
            *blocks += 1;
            *from = (*from).max(written);
            found.blocks += 1;
        }
        let block_bytes = self.block_bytes;
        for (level, &(blocks, from)) in reads.iter().enumerate() {
            if blocks == 0 {
                continue;
            }
            let tier = self.tier(level, replica);
            let done = tier.read(from, blocks, block_bytes);
            if tier.medium() == Medium::Remote {
                found.remote += blocks;
                found.remote_read = found.remote_read.max(done);
            } else {
                found.local = found.local.max(done);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCK: u64 = 1000;

    fn tier(medium: Medium, blocks: u64, eviction: Eviction) -> KvTier {
        KvTier {
            medium,
            capacity: Bytes::new(blocks * BLOCK),
            read: Bandwidth::from_bytes_per_sec(1_000_000),
            write: None,
            latency: SimDuration::from_micros(10),
            write_policy: WritePolicy::WriteBack,
            eviction,
        }
    }

    fn late() -> SimTime {
        SimTime::ZERO + SimDuration::from_secs_f64(1.0)
    }

    fn fall(store: &mut Store, hash: u64, depth: u32) -> Written {
        store.demote(SimTime::ZERO, 0, [(hash, depth)].into_iter())
    }

    #[test]
    fn what_does_not_fit_falls_to_the_next_tier() {
        let plan = [
            tier(Medium::HostDram, 2, Eviction::Lru),
            tier(Medium::LocalSsd, 2, Eviction::Lru),
        ];
        let mut store = Store::new(&plan, 1, BLOCK);
        for hash in 1..=5 {
            fall(&mut store, hash, 0);
        }
        // 1 is gone, 2 and 3 on disk, 4 and 5 in memory.
        assert_eq!(store.fetch(late(), 0, &[1]).blocks, 0);
        let found = store.fetch(late(), 0, &[2, 3, 4, 5, 6]);
        assert_eq!(found.blocks, 4);
        // Two blocks of 1 ms from each tier at once, and its latency.
        let expected = SimDuration::from_micros(2_000) + plan[0].latency;
        assert_eq!(found.local, late() + expected);
    }

    /// One of three blocks was used twice, one more was used last; the third is the deepest.
    #[test]
    fn each_policy_gives_up_its_own_block() {
        for (eviction, lost) in [
            (Eviction::Lru, 1),
            (Eviction::Fifo, 1),
            (Eviction::Lfu, 2),
            (Eviction::Mru, 3),
            (Eviction::LengthAware, 3),
        ] {
            let mut store = Store::new(&[tier(Medium::HostDram, 3, eviction)], 1, BLOCK);
            for (hash, depth) in [(1, 0), (2, 1), (3, 2)] {
                fall(&mut store, hash, depth);
            }
            for hash in [1, 1, 2, 3] {
                store.fetch(late(), 0, &[hash]);
            }
            fall(&mut store, 4, 0);
            let left: Vec<u64> = (1..=3)
                .filter(|hash| store.fetch(late(), 0, &[*hash]).blocks == 0)
                .collect();
            assert_eq!(left, [lost], "{eviction:?}");
        }
    }

    #[test]
    fn writes_take_time() {
        let mut plan = tier(Medium::HostDram, 9, Eviction::Lru);
        plan.write = Some(Bandwidth::from_bytes_per_sec(500_000));
        let mut store = Store::new(&[plan], 1, BLOCK);
        let blocks = [(1, 0), (2, 1), (3, 2)];
        // Whoever needs the place waits for the copy, 2 ms a block.
        let written = store.demote(SimTime::ZERO, 0, blocks.into_iter());
        assert_eq!(written.wait, SimDuration::from_micros(6_000));
        // And nobody reads a block before it is there.
        let found = store.fetch(SimTime::ZERO, 0, &[1]);
        assert_eq!(
            found.local,
            SimTime::ZERO + SimDuration::from_micros(2_000 + 1_000 + 10)
        );
        // Written when computed: the place is free at once when it is needed later.
        plan.write_policy = WritePolicy::WriteThrough;
        let mut store = Store::new(&[plan], 1, BLOCK);
        assert_eq!(
            store.computed(SimTime::ZERO, 0, blocks.into_iter()),
            Written::default()
        );
        assert_eq!(
            store.demote(late(), 0, blocks.into_iter()),
            Written::default()
        );
        assert_eq!(store.fetch(late(), 0, &[1, 2, 3]).blocks, 3);
        // A disk reads and writes in turn, memory does both at once.
        for (medium, millis) in [(Medium::HostDram, 1), (Medium::LocalSsd, 3)] {
            let mut store = Store::new(
                &[KvTier {
                    medium,
                    ..tier(medium, 9, Eviction::Lru)
                }],
                1,
                BLOCK,
            );
            fall(&mut store, 1, 0);
            store.demote(late(), 0, [(2, 0), (3, 0)].into_iter());
            let found = store.fetch(late(), 0, &[1]);
            let expected = SimDuration::from_micros(1000 * millis + 10);
            assert_eq!(found.local, late() + expected, "{medium:?}");
        }
    }

    fn evictions() -> impl Strategy<Value = Eviction> {
        prop_oneof![
            Just(Eviction::Lru),
            Just(Eviction::Fifo),
            Just(Eviction::Lfu),
            Just(Eviction::Mru),
            Just(Eviction::LengthAware),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a list that is searched for the block to give up.
        #[test]
        fn a_tier_is_a_slow_list(
            eviction in evictions(),
            capacity in 1u64..6,
            script in prop::collection::vec((0u64..9, any::<bool>()), 1..120),
        ) {
            let mut tier = Tier::new(tier(Medium::HostDram, capacity, eviction), BLOCK);
            // name, uses, came, used
            let mut list: Vec<(u64, u64, usize, usize)> = Vec::new();
            for (at, (hash, reads)) in script.into_iter().enumerate() {
                let here = list.iter().position(|kept| kept.0 == hash);
                if let Some(place) = here {
                    list[place].1 += 1;
                    list[place].3 = at;
                }
                if reads {
                    prop_assert_eq!(tier.touch(hash).is_some(), here.is_some());
                    continue;
                }
                let depth = hash as u32;
                let (_, lost) = tier.put(SimTime::ZERO, (hash, depth), BLOCK);
                let mut expected = None;
                if here.is_none() {
                    if list.len() as u64 == capacity {
                        let key = |kept: &(u64, u64, usize, usize)| match eviction {
                            Eviction::Lru => (0, kept.3 as u64),
                            Eviction::Fifo => (0, kept.2 as u64),
                            Eviction::Lfu => (kept.1, kept.3 as u64),
                            Eviction::Mru => (0, u64::MAX - kept.3 as u64),
                            Eviction::LengthAware => (kept.1, u64::MAX - kept.0),
                        };
                        let place = (0..list.len()).min_by_key(|place| key(&list[*place]));
                        expected = place.map(|place| list.remove(place).0);
                    }
                    list.push((hash, 0, at, at));
                }
                prop_assert_eq!(lost.map(|lost| lost.0), expected);
            }
        }
    }
}
