//! PyTorch's caching allocator: what it holds of a GPU's memory, and what it asks of the driver.
//!
//! After `c10/cuda/CUDACachingAllocator.cpp` of PyTorch 2: a freed block is kept for the next request of
//! its stream. A request takes the smallest block that fits and splits it. If none fits, the driver gives
//! a new segment; if the driver has nothing left, all that is cached goes back to it and is asked for
//! again, which is what makes a step slow close to the limit of memory. [`pressure`] plays a step through it.

mod layers;
pub(crate) mod pressure;

use rackflow_workload::AllocatorPolicy;
use std::collections::BTreeSet;

const MIB: u64 = 1 << 20;
/// Requests are rounded up to this (`kMinBlockSize`).
const ROUND: u64 = 512;
/// Requests up to this share segments of their own (`kSmallSize`); what a larger block leaves beyond a
/// request is split off where it is more.
const SMALL: u64 = MIB;
/// Size of such a segment (`kSmallBuffer`).
const SMALL_SEGMENT: u64 = 2 * MIB;
/// Segment of requests under [`EXACT_FROM`] (`kLargeBuffer`), and what an expandable segment grows by.
const LARGE_SEGMENT: u64 = 20 * MIB;
/// A request of this size gets a segment of its own (`kMinLargeAlloc`),
const EXACT_FROM: u64 = 10 * MIB;
/// rounded up to this (`kRoundLarge`).
const PAGE: u64 = 2 * MIB;

/// Streams that allocate: blocks of one are never given to another.
pub(crate) const STREAMS: usize = 3;

/// A live block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockId(u32);

/// The driver has no memory left, even with nothing cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exhausted;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Live,
    Cached,
    /// Addresses of an expandable segment without memory behind them.
    Unmapped,
}

#[derive(Debug, Clone, Copy)]
struct Block {
    size: u64,
    address: u64,
    pool: usize,
    state: State,
    before: Option<u32>,
    after: Option<u32>,
}

/// What was asked of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Driver {
    /// Times that all cached blocks went back.
    pub flushes: u64,
    /// Bytes that it gave.
    pub asked: u64,
    /// Bytes that it got back.
    pub returned: u64,
    /// Pieces of memory that it gave: segments, or pages of expandable ones.
    pub mapped: u64,
    /// Pieces that it got back.
    pub unmapped: u64,
    /// Pieces that it gave and got back before they were mapped, since one more was lacking.
    pub refused: u64,
}

/// Free blocks, the smallest and lowest first.
type Cached = BTreeSet<(u64, u64, u32)>;

/// The allocator of one GPU.
#[derive(Debug)]
pub(crate) struct Caching {
    expandable: bool,
    limit: u64,
    blocks: Vec<Block>,
    unused: Vec<u32>,
    /// By pool: of each stream, small and large.
    cached: [Cached; 2 * STREAMS],
    /// Of expandable segments, the parts without memory, lowest first.
    unmapped: [BTreeSet<(u64, u32)>; 2 * STREAMS],
    /// Freed, but another stream may not be done with them.
    pending: Vec<(u64, u32)>,
    next_address: u64,
    allocated: u64,
    reserved: u64,
    peak_allocated: u64,
    peak_reserved: u64,
    driver: Driver,
}

/// What an expandable segment of a pool grows by.
fn page_of(pool: usize) -> u64 {
    if pool.is_multiple_of(2) {
        SMALL_SEGMENT
    } else {
        LARGE_SEGMENT
    }
}

/// Length of an expandable segment: more than any GPU has, in whole pages.
const SPAN: u64 = LARGE_SEGMENT << 22;

impl Caching {
    /// With so many bytes for the driver to give.
    pub fn new(policy: AllocatorPolicy, limit: u64) -> Self {
        let mut new = Self {
            expandable: policy == AllocatorPolicy::ExpandableSegments,
            limit,
            blocks: Vec::new(),
            unused: Vec::new(),
            cached: Default::default(),
            unmapped: Default::default(),
            pending: Vec::new(),
            next_address: SPAN * (2 * STREAMS as u64 + 1),
            allocated: 0,
            reserved: 0,
            peak_allocated: 0,
            peak_reserved: 0,
            driver: Driver::default(),
        };
        if new.expandable {
            for pool in 0..2 * STREAMS {
                let address = SPAN * pool as u64;
                let id = new.insert(Block {
                    size: SPAN,
                    address,
                    pool,
                    state: State::Unmapped,
                    before: None,
                    after: None,
                });
                new.unmapped[pool].insert((address, id));
            }
        }
        new
    }

    /// Most bytes that tensors held at once.
    pub fn peak_allocated(&self) -> u64 {
        self.peak_allocated
    }

    /// Most bytes that the driver had given.
    pub fn peak_reserved(&self) -> u64 {
        self.peak_reserved
    }

    /// What was asked of the driver until now.
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// A block of at least so many bytes for a stream.
    pub fn take(&mut self, bytes: u64, stream: usize) -> Result<BlockId, Exhausted> {
        let size = bytes.max(1).next_multiple_of(ROUND);
        let small = size <= SMALL;
        let pool = 2 * stream + usize::from(!small);
        let found = match self.find(size, pool) {
            Some(found) => found,
            None => match self.ask_for(size, pool) {
                Some(given) => given,
                None => {
                    self.flush();
                    self.ask_for(size, pool).ok_or(Exhausted)?
                }
            },
        };
        self.uncache(found);
        self.blocks[found as usize].state = State::Live;
        let left = self.blocks[found as usize].size - size;
        let splits = if small || self.expandable {
            left >= ROUND
        } else {
            left > SMALL
        };
        if splits {
            let rest = self.split(found, size);
            self.cache(rest);
        }
        self.allocated += self.blocks[found as usize].size;
        self.peak_allocated = self.peak_allocated.max(self.allocated);
        Ok(BlockId(found))
    }

    /// Gives a block back to the cache.
    pub fn give(&mut self, BlockId(id): BlockId) {
        self.allocated -= self.blocks[id as usize].size;
        self.free(id);
    }

    /// Gives a block back that another stream uses (`record_stream`): it is free when the device has come
    /// as far, at the moment `due`; see [`Self::settle`].
    pub fn give_later(&mut self, BlockId(id): BlockId, due: u64) {
        self.allocated -= self.blocks[id as usize].size;
        self.pending.push((due, id));
    }

    /// The device has come to the moment `now`.
    pub fn settle(&mut self, now: u64) {
        let mut pending = std::mem::take(&mut self.pending);
        pending.retain(|(due, id)| {
            let waits = *due > now;
            if !waits {
                self.free(*id);
            }
            waits
        });
        self.pending = pending;
    }

    /// Makes one cached block of this one and its cached neighbours.
    fn free(&mut self, id: u32) -> u32 {
        let Block { before, after, .. } = self.blocks[id as usize];
        let mut id = id;
        if let Some(before) = before.filter(|b| self.is(*b, State::Cached)) {
            self.uncache(before);
            self.merge(before, id);
            id = before;
        }
        if let Some(after) = after.filter(|b| self.is(*b, State::Cached)) {
            self.uncache(after);
            self.merge(id, after);
        }
        self.cache(id);
        id
    }

    /// Waits for the device and gives all that is cached back to the driver: whole segments, or, of
    /// expandable ones, whole pages.
    pub fn flush(&mut self) {
        self.settle(u64::MAX);
        self.driver.flushes += 1;
        for pool in 0..2 * STREAMS {
            let cached: Vec<u32> = self.cached[pool].iter().map(|(_, _, id)| *id).collect();
            for id in cached {
                if self.expandable {
                    self.unmap(id);
                    continue;
                }
                let block = self.blocks[id as usize];
                if block.before.is_none() && block.after.is_none() {
                    self.uncache(id);
                    self.unused.push(id);
                    self.returned(block.size, 1);
                }
            }
        }
    }

    /// The cached block for a request: the smallest that fits. Of an expandable segment a block counts as large as it could
    /// grow, so a block before a hole gives way to the next larger ones as long as each could grow less
    /// (`get_free_block`).
    fn find(&self, size: u64, pool: usize) -> Option<u32> {
        let mut fitting = self.cached[pool].range((size, 0, 0)..);
        let (_, _, mut found) = *fitting.next()?;
        if self.expandable {
            for (_, _, next) in fitting {
                if self.could_grow_to(*next) >= self.could_grow_to(found) {
                    break;
                }
                found = *next;
            }
        }
        Some(found)
    }

    fn could_grow_to(&self, id: u32) -> u64 {
        let Block { size, after, .. } = self.blocks[id as usize];
        let hole = after.filter(|b| self.is(*b, State::Unmapped));
        size + hole.map_or(0, |b| self.blocks[b as usize].size)
    }

    /// A cached block that holds a request, with memory that the driver gives now.
    fn ask_for(&mut self, size: u64, pool: usize) -> Option<u32> {
        if self.expandable {
            self.grow(size, pool)
        } else {
            self.segment(size, pool)
        }
    }

    /// A new segment that holds a request, as one cached block.
    fn segment(&mut self, size: u64, pool: usize) -> Option<u32> {
        let segment = if size <= SMALL {
            SMALL_SEGMENT
        } else if size < EXACT_FROM {
            LARGE_SEGMENT
        } else {
            size.next_multiple_of(PAGE)
        };
        self.ask(segment, 1)?;
        let id = self.insert(Block {
            size: segment,
            address: self.next_address,
            pool,
            state: State::Cached,
            before: None,
            after: None,
        });
        // Segments never touch.
        self.next_address += segment + PAGE;
        self.cache(id);
        Some(id)
    }

    /// Maps memory behind the lowest addresses where a request fits between what is in use, cached blocks among them
    /// (`try_allocate_expandable_block`).
    fn grow(&mut self, size: u64, pool: usize) -> Option<u32> {
        let holes = self.unmapped[pool].iter().map(|(_, id)| *id);
        let mut starts = holes.map(|id| {
            let before = self.blocks[id as usize].before;
            before.filter(|b| self.is(*b, State::Cached)).unwrap_or(id)
        });
        let mut id = starts.find(|start| self.has_place(*start, size))?;
        if self.is(id, State::Unmapped) {
            id = self.map(id, size)?;
        }
        loop {
            let Block {
                size: now, after, ..
            } = self.blocks[id as usize];
            if now >= size {
                return Some(id);
            }
            // What follows is a hole, or it would have been merged.
            id = self.map(after?, size - now)?;
        }
    }

    /// Whether a request fits from this block on, before one that is in use.
    fn has_place(&self, start: u32, size: u64) -> bool {
        let mut bytes = 0;
        let mut next = Some(start);
        while let Some(id) = next.filter(|id| bytes < size && !self.is(*id, State::Live)) {
            bytes += self.blocks[id as usize].size;
            next = self.blocks[id as usize].after;
        }
        bytes >= size
    }

    /// Maps so many bytes of a hole, from its start, or all of it if it has less, and returns the cached block that they are in.
    fn map(&mut self, id: u32, size: u64) -> Option<u32> {
        let hole = self.blocks[id as usize];
        let step = page_of(hole.pool);
        let mapped = size.next_multiple_of(step).min(hole.size);
        if self.ask(mapped, mapped / step).is_none() {
            // Pages that were there before one was lacking go back unmapped (`ExpandableSegment::map`).
            self.driver.refused += (self.limit - self.reserved) / step;
            return None;
        }
        self.unmapped[hole.pool].remove(&(hole.address, id));
        if hole.size > mapped {
            let rest = self.split(id, mapped);
            self.blocks[rest as usize].state = State::Unmapped;
            self.unmapped[hole.pool].insert((self.blocks[rest as usize].address, rest));
        }
        Some(self.free(id))
    }

    /// Takes the memory from behind the whole pages of a cached block.
    fn unmap(&mut self, id: u32) {
        let block = self.blocks[id as usize];
        let step = page_of(block.pool);
        let from = block.address.next_multiple_of(step);
        let to = (block.address + block.size) / step * step;
        if from >= to {
            return;
        }
        self.uncache(id);
        let mut middle = id;
        if from > block.address {
            middle = self.split(id, from - block.address);
            self.cache(id);
        }
        if to - from < self.blocks[middle as usize].size {
            let rest = self.split(middle, to - from);
            self.cache(rest);
        }
        self.returned(to - from, (to - from) / step);
        self.blocks[middle as usize].state = State::Unmapped;
        for neighbour in [
            self.blocks[middle as usize].before,
            self.blocks[middle as usize].after,
        ] {
            let Some(other) = neighbour.filter(|b| self.is(*b, State::Unmapped)) else {
                continue;
            };
            let (first, second) = if self.blocks[other as usize].address < from {
                (other, middle)
            } else {
                (middle, other)
            };
            self.unmapped[block.pool].remove(&(self.blocks[other as usize].address, other));
            self.merge(first, second);
            middle = first;
        }
        self.unmapped[block.pool].insert((self.blocks[middle as usize].address, middle));
    }

    fn ask(&mut self, bytes: u64, pieces: u64) -> Option<()> {
        if self.reserved + bytes > self.limit {
            return None;
        }
        self.reserved += bytes;
        self.peak_reserved = self.peak_reserved.max(self.reserved);
        self.driver.asked += bytes;
        self.driver.mapped += pieces;
        Some(())
    }

    fn returned(&mut self, bytes: u64, pieces: u64) {
        self.reserved -= bytes;
        self.driver.returned += bytes;
        self.driver.unmapped += pieces;
    }

    fn is(&self, id: u32, state: State) -> bool {
        self.blocks[id as usize].state == state
    }

    fn insert(&mut self, block: Block) -> u32 {
        match self.unused.pop() {
            Some(id) => {
                self.blocks[id as usize] = block;
                id
            }
            None => {
                self.blocks.push(block);
                self.blocks.len() as u32 - 1
            }
        }
    }

    fn cache(&mut self, id: u32) {
        let block = &mut self.blocks[id as usize];
        block.state = State::Cached;
        self.cached[block.pool].insert((block.size, block.address, id));
    }

    fn uncache(&mut self, id: u32) {
        let block = &self.blocks[id as usize];
        self.cached[block.pool].remove(&(block.size, block.address, id));
    }

    /// Cuts a block after so many bytes and returns what follows.
    fn split(&mut self, id: u32, size: u64) -> u32 {
        let block = self.blocks[id as usize];
        let rest = self.insert(Block {
            size: block.size - size,
            address: block.address + size,
            before: Some(id),
            ..block
        });
        if let Some(after) = block.after {
            self.blocks[after as usize].before = Some(rest);
        }
        let first = &mut self.blocks[id as usize];
        first.size = size;
        first.after = Some(rest);
        rest
    }

    /// Makes one of a block and the one after it, which is no more.
    fn merge(&mut self, first: u32, second: u32) {
        let Block { size, after, .. } = self.blocks[second as usize];
        self.blocks[first as usize].size += size;
        self.blocks[first as usize].after = after;
        if let Some(after) = after {
            self.blocks[after as usize].before = Some(first);
        }
        self.unused.push(second);
    }
}

#[cfg(test)]
mod tests;
