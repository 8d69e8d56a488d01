//! Tiers of KV cache below HBM: what fell out of it, and how long it takes to come back.

use rackflow_units::{Bytes, SimTime};
use rackflow_workload::{Eviction, KvTier, Medium};
use rustc_hash::FxHashMap;

const NIL: u32 = u32::MAX;

/// One tier of one replica, or of all.
#[derive(Debug)]
pub(super) struct Tier {
    plan: KvTier,
    capacity: u64,
    names: FxHashMap<u64, u32>,
    /// hash, older, newer
    nodes: Vec<(u64, u32, u32)>,
    spare: Vec<u32>,
    oldest: u32,
    newest: u32,
    /// Loads wait for each other.
    busy_until: SimTime,
    pub blocks_read: u64,
}

impl Tier {
    fn new(plan: KvTier, block_bytes: u64) -> Self {
        Self {
            plan,
            capacity: plan.capacity.get() / block_bytes.max(1),
            names: FxHashMap::default(),
            nodes: Vec::new(),
            spare: Vec::new(),
            oldest: NIL,
            newest: NIL,
            busy_until: SimTime::ZERO,
            blocks_read: 0,
        }
    }

    pub fn medium(&self) -> Medium {
        self.plan.medium
    }

    pub fn blocks(&self) -> u64 {
        self.names.len() as u64
    }

    fn unlink(&mut self, index: u32) {
        let (_, older, newer) = self.nodes[index as usize];
        match older {
            NIL => self.oldest = newer,
            older => self.nodes[older as usize].2 = newer,
        }
        match newer {
            NIL => self.newest = older,
            newer => self.nodes[newer as usize].1 = older,
        }
    }

    fn push_newest(&mut self, index: u32) {
        let before = self.newest;
        self.nodes[index as usize].1 = before;
        self.nodes[index as usize].2 = NIL;
        match before {
            NIL => self.oldest = index,
            before => self.nodes[before as usize].2 = index,
        }
        self.newest = index;
    }

    /// Whether the block is here; it is then the one used last.
    fn touch(&mut self, hash: u64) -> bool {
        let Some(&index) = self.names.get(&hash) else {
            return false;
        };
        if self.plan.eviction == Eviction::Lru {
            self.unlink(index);
            self.push_newest(index);
        }
        true
    }

    /// Keeps a block; the one that loses its place.
    fn put(&mut self, hash: u64) -> Option<u64> {
        if self.capacity == 0 {
            return Some(hash);
        }
        if self.touch(hash) {
            return None;
        }
        let mut lost = None;
        if self.blocks() >= self.capacity {
            let index = self.oldest;
            self.unlink(index);
            let name = self.nodes[index as usize].0;
            self.names.remove(&name);
            self.spare.push(index);
            lost = Some(name);
        }
        let index = self.spare.pop().unwrap_or_else(|| {
            self.nodes.push((0, NIL, NIL));
            (self.nodes.len() - 1) as u32
        });
        self.nodes[index as usize].0 = hash;
        self.names.insert(hash, index);
        self.push_newest(index);
        lost
    }

    /// When `blocks` of `bytes` each are read, in turn with other reads.
    fn read(&mut self, now: SimTime, blocks: u64, block_bytes: u64) -> SimTime {
        self.blocks_read += blocks;
        let start = self.busy_until.max(now);
        let span = self
            .plan
            .read
            .time_to_send(Bytes::new(block_bytes) * blocks);
        self.busy_until = start + span;
        start + span + self.plan.latency
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

    /// A block fell out of a replica's HBM: it goes down tier by tier as each is full.
    pub fn demote(&mut self, replica: usize, hash: u64) {
        let mut falling = Some(hash);
        for level in 0..self.tiers.len() {
            let Some(hash) = falling else { return };
            falling = self.tier(level, replica).put(hash);
        }
    }

    /// Looks the rest of a prompt up, block after block as long as some tier has it, and reads it.
    pub fn fetch(&mut self, now: SimTime, replica: usize, chain: &[u64]) -> Found {
        let mut found = Found {
            blocks: 0,
            local: now,
            remote: 0,
            remote_read: now,
        };
        let mut reads = [0_u64; 8];
        for &hash in chain {
            let level = (0..self.tiers.len()).find(|&level| self.tier(level, replica).touch(hash));
            let Some(level) = level else { break };
            reads[level.min(7)] += 1;
            found.blocks += 1;
        }
        let block_bytes = self.block_bytes;
        for (level, &blocks) in reads.iter().enumerate() {
            if blocks == 0 {
                continue;
            }
            let tier = self.tier(level, replica);
            let done = tier.read(now, blocks, block_bytes);
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
    use rackflow_units::{Bandwidth, SimDuration};

    fn tier(medium: Medium, blocks: u64, eviction: Eviction) -> KvTier {
        KvTier {
            medium,
            capacity: Bytes::new(blocks * 1000),
            read: Bandwidth::from_bytes_per_sec(1_000_000),
            latency: SimDuration::from_micros(10),
            eviction,
        }
    }

    #[test]
    fn what_does_not_fit_falls_to_the_next_tier() {
        let plan = [
            tier(Medium::HostDram, 2, Eviction::Lru),
            tier(Medium::LocalSsd, 2, Eviction::Lru),
        ];
        let mut store = Store::new(&plan, 1, 1000);
        for hash in 1..=5 {
            store.demote(0, hash);
        }
        // 1 is gone, 2 and 3 on disk, 4 and 5 in memory.
        assert_eq!(store.fetch(SimTime::ZERO, 0, &[1]).blocks, 0);
        let found = store.fetch(SimTime::ZERO, 0, &[2, 3, 4, 5, 6]);
        assert_eq!(found.blocks, 4);
        // Two blocks of 1 ms from each tier at once, and its latency.
        let expected = SimDuration::from_micros(2_000) + plan[0].latency;
        assert_eq!(found.local, SimTime::ZERO + expected);
    }

    #[test]
    fn used_blocks_stay_where_use_counts() {
        for (eviction, kept) in [(Eviction::Lru, 1), (Eviction::Fifo, 0)] {
            let plan = [tier(Medium::HostDram, 2, eviction)];
            let mut store = Store::new(&plan, 1, 1000);
            store.demote(0, 1);
            store.demote(0, 2);
            store.fetch(SimTime::ZERO, 0, &[1]);
            store.demote(0, 3);
            assert_eq!(
                store.fetch(SimTime::ZERO, 0, &[1]).blocks,
                kept,
                "{eviction:?}"
            );
        }
    }
}
