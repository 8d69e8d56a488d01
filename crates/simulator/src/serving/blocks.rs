//! Blocks of KV cache in HBM, and the prefixes that they hold.
//!
//! A block that belongs to a shared prefix has the hash of everything up to its end as its name, as
//! in vLLM; the chains of names form SGLang's radix tree. Blocks that nobody uses stay until their
//! place is needed: the one that was used longest ago goes first, and of one request the end
//! before the beginning.

use rackflow_workload::Segment;
use rustc_hash::FxHashMap;

const NIL: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Node {
    /// Name; meaningless for blocks of a private run.
    hash: u64,
    /// Requests that use it.
    uses: u32,
    /// Blocks: 1, or the length of a run of private blocks.
    blocks: u32,
    /// Blocks of its prompt before it.
    depth: u32,
    named: bool,
    older: u32,
    newer: u32,
}

/// The blocks of one replica.
#[derive(Debug)]
pub struct Blocks {
    total: u64,
    /// Hold nothing.
    free: u64,
    /// Hold something that nobody uses.
    idle: u64,
    names: FxHashMap<u64, u32>,
    nodes: Vec<Node>,
    spare: Vec<u32>,
    oldest: u32,
    newest: u32,
    caching: bool,
    /// Blocks that lost their place, for the tiers below.
    evicted: Vec<Named>,
    /// Blocks that got a name.
    published: Vec<Named>,
    keeps: Keeps,
}

/// A block that tiers can hold: its name, and how many blocks of its prompt come before it.
pub type Named = (u64, u32);

/// What is remembered for the tiers below HBM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keeps {
    /// Blocks that lose their place.
    pub evicted: bool,
    /// Blocks that get a name.
    pub published: bool,
}

impl Blocks {
    /// `total` empty blocks. `caching`: prefixes are kept. What `keeps` says is remembered until
    /// [`Blocks::drain_evicted`] and [`Blocks::drain_published`].
    pub fn new(total: u64, caching: bool, keeps: Keeps) -> Self {
        Self {
            total,
            free: total,
            idle: 0,
            names: FxHashMap::default(),
            nodes: Vec::new(),
            spare: Vec::new(),
            oldest: NIL,
            newest: NIL,
            caching,
            evicted: Vec::new(),
            published: Vec::new(),
            keeps,
        }
    }

    /// Blocks that a request could have now.
    pub fn available(&self) -> u64 {
        self.free + self.idle
    }

    /// Blocks that requests use.
    pub fn used(&self) -> u64 {
        self.total - self.free - self.idle
    }

    /// All blocks.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Blocks of the longest cached beginning of `chain`, and how many of them are idle.
    pub fn hit(&self, chain: &[u64]) -> (u64, u64) {
        let mut idle = 0;
        for (index, hash) in chain.iter().enumerate() {
            match self.names.get(hash) {
                Some(&node) => idle += u64::from(self.nodes[node as usize].uses == 0),
                None => return (index as u64, idle),
            }
        }
        (chain.len() as u64, idle)
    }

    /// Uses these named blocks, which are cached.
    pub fn share(&mut self, chain: &[u64]) {
        for hash in chain {
            let node = self.names[hash];
            if self.nodes[node as usize].uses == 0 {
                self.unlink(node);
                self.idle -= 1;
            }
            self.nodes[node as usize].uses += 1;
        }
    }

    /// Takes `count` blocks for one request alone; `false`, and nothing taken, where there are not
    /// so many.
    pub fn take(&mut self, count: u64) -> bool {
        if count > self.available() {
            return false;
        }
        while self.free < count {
            self.evict(count - self.free);
        }
        self.free -= count;
        true
    }

    /// Gives private blocks the names of `chain` from `from` on. Where a name is taken, the block that
    /// has it is used instead and the private one is free again.
    pub fn publish(&mut self, chain: &[u64], from: u64) {
        for (depth, &hash) in (0_u32..).zip(chain).skip(from as usize) {
            if let Some(&node) = self.names.get(&hash) {
                if self.nodes[node as usize].uses == 0 {
                    self.unlink(node);
                    self.idle -= 1;
                }
                self.nodes[node as usize].uses += 1;
                self.free += 1;
            } else {
                let node = self.node(Node {
                    hash,
                    uses: 1,
                    blocks: 1,
                    depth,
                    named: true,
                    older: NIL,
                    newer: NIL,
                });
                self.names.insert(hash, node);
                if self.keeps.published {
                    self.published.push((hash, depth));
                }
            }
        }
    }

    /// A request gives back its named and its private blocks.
    pub fn release(&mut self, named: &[u64], private: u64) {
        if private > 0 {
            if self.caching {
                let run = self.node(Node {
                    hash: 0,
                    uses: 0,
                    blocks: u32::try_from(private).expect("a request has fewer than 2^32 blocks"),
                    depth: 0,
                    named: false,
                    older: NIL,
                    newer: NIL,
                });
                self.push_newest(run);
                self.idle += private;
            } else {
                self.free += private;
            }
        }
        for hash in named.iter().rev() {
            let node = self.names[hash];
            let uses = &mut self.nodes[node as usize].uses;
            *uses -= 1;
            if *uses == 0 {
                self.push_newest(node);
                self.idle += 1;
            }
        }
    }

    /// Blocks that were evicted since the last call.
    pub fn drain_evicted(&mut self) -> std::vec::Drain<'_, Named> {
        self.evicted.drain(..)
    }

    /// Blocks that were named since the last call.
    pub fn drain_published(&mut self) -> std::vec::Drain<'_, Named> {
        self.published.drain(..)
    }

    /// Frees up to `wanted` blocks at the old end of the list.
    fn evict(&mut self, wanted: u64) {
        let index = self.oldest;
        assert!(index != NIL, "idle blocks are on the list");
        let node = self.nodes[index as usize];
        let gone = u64::from(node.blocks).min(wanted);
        self.idle -= gone;
        self.free += gone;
        if gone < u64::from(node.blocks) {
            self.nodes[index as usize].blocks -= gone as u32;
            return;
        }
        self.unlink(index);
        self.spare.push(index);
        if node.named {
            self.names.remove(&node.hash);
            if self.keeps.evicted {
                self.evicted.push((node.hash, node.depth));
            }
        }
    }

    fn node(&mut self, node: Node) -> u32 {
        if let Some(index) = self.spare.pop() {
            self.nodes[index as usize] = node;
            return index;
        }
        self.nodes.push(node);
        (self.nodes.len() - 1) as u32
    }

    fn push_newest(&mut self, index: u32) {
        let before = self.newest;
        self.nodes[index as usize].older = before;
        self.nodes[index as usize].newer = NIL;
        match before {
            NIL => self.oldest = index,
            before => self.nodes[before as usize].newer = index,
        }
        self.newest = index;
    }

    fn unlink(&mut self, index: u32) {
        let Node { older, newer, .. } = self.nodes[index as usize];
        match older {
            NIL => self.oldest = newer,
            older => self.nodes[older as usize].newer = newer,
        }
        match newer {
            NIL => self.newest = older,
            newer => self.nodes[newer as usize].older = older,
        }
    }
}

/// Names of the whole blocks of a text that begins with `segments`, up to `tokens`.
pub fn chain(segments: &[Segment], tokens: u64, block_size: u32, names: &mut Vec<u64>) {
    names.clear();
    let covered: u64 = segments
        .iter()
        .map(|segment| u64::from(segment.tokens))
        .sum();
    let block = u64::from(block_size);
    let blocks = covered.min(tokens) / block;
    let mut name = 0x9e37_79b9_7f4a_7c15_u64;
    let (mut index, mut offset) = (0, 0_u64);
    for _ in 0..blocks {
        let mut left = block;
        while left > 0 {
            let segment = segments[index];
            let here = left.min(u64::from(segment.tokens) - offset);
            name = mix(name ^ mix(segment.key ^ mix(offset.wrapping_mul(0x1_0000_0001) ^ here)));
            left -= here;
            offset += here;
            if offset == u64::from(segment.tokens) {
                index += 1;
                offset = 0;
            }
        }
        names.push(name);
    }
}

/// The finaliser of `SplitMix64`.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(segments: &[(u64, u32)], tokens: u64) -> Vec<u64> {
        let segments: Vec<Segment> = segments
            .iter()
            .map(|&(key, tokens)| Segment { key, tokens })
            .collect();
        let mut out = Vec::new();
        chain(&segments, tokens, 16, &mut out);
        out
    }

    #[test]
    fn chains_agree_exactly_as_far_as_the_texts_do() {
        let one = names(&[(1, 40), (2, 100)], 140);
        let other = names(&[(1, 40), (3, 100)], 140);
        assert_eq!(one.len(), 8);
        assert_eq!(one[..2], other[..2]);
        assert!(one[2..].iter().zip(&other[2..]).all(|(a, b)| a != b));
        assert_eq!(
            names(&[(1, 64)], 64),
            names(&[(1, 200)], 64),
            "a longer turn of one session"
        );
    }

    #[test]
    fn the_end_of_a_prefix_is_evicted_first() {
        let chain = names(&[(1, 64)], 64);
        let mut blocks = Blocks::new(
            4,
            true,
            Keeps {
                evicted: true,
                published: false,
            },
        );
        assert!(blocks.take(4));
        blocks.publish(&chain, 0);
        blocks.release(&chain, 0);
        assert!(blocks.take(1));
        assert_eq!(blocks.hit(&chain), (3, 3));
        assert_eq!(blocks.drain_evicted().collect::<Vec<_>>(), [(chain[3], 3)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a list of requests: blocks never leak, never exceed the total, and what is used
        /// is never evicted.
        #[test]
        fn blocks_never_leak(
            total in 8u64..40,
            caching in any::<bool>(),
            script in prop::collection::vec((0u64..4, 1u64..6, any::<bool>()), 1..80),
        ) {
            let mut blocks = Blocks::new(total, caching, Keeps::default());
            let mut live: Vec<(Vec<u64>, u64)> = Vec::new();
            for (key, length, leave) in script {
                if leave && !live.is_empty() {
                    let (chain, private) = live.remove(0);
                    blocks.release(&chain, private);
                } else {
                    let chain = if caching { names(&[(key, 16 * length as u32)], 16 * length) } else { Vec::new() };
                    let (hit, idle) = blocks.hit(&chain);
                    let fresh = length - hit + 1;
                    if blocks.available() - idle >= fresh {
                        blocks.share(&chain[..hit as usize]);
                        prop_assert!(blocks.take(fresh));
                        blocks.publish(&chain, hit);
                        let private = if caching { 1 } else { length + 1 };
                        live.push((chain, private));
                    }
                }
                for (chain, _) in &live {
                    prop_assert_eq!(blocks.hit(chain), (chain.len() as u64, 0));
                }
                let mut distinct: Vec<u64> = live.iter().flat_map(|(chain, _)| chain.clone()).collect();
                distinct.sort_unstable();
                distinct.dedup();
                let private: u64 = live.iter().map(|(_, private)| private).sum();
                prop_assert_eq!(blocks.used(), distinct.len() as u64 + private);
            }
            for (chain, private) in live {
                blocks.release(&chain, private);
            }
            prop_assert_eq!(blocks.used(), 0);
            prop_assert!(blocks.take(total), "every block can be had again");
        }
    }
}
