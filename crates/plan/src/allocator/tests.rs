use super::*;
use proptest::prelude::*;

impl Caching {
    /// Live blocks as (address, size).
    fn live(&self) -> Vec<(u64, u64)> {
        let unused: BTreeSet<u32> = self.unused.iter().copied().collect();
        let live =
            self.blocks.iter().enumerate().filter(|(id, block)| {
                block.state == State::Live && !unused.contains(&(*id as u32))
            });
        let mut live: Vec<(u64, u64)> = live.map(|(_, b)| (b.address, b.size)).collect();
        live.sort_unstable();
        live
    }
}

/// Bytes of a piece of a segment, and whose they are.
type Piece = (u64, Option<u32>);

/// The same rules over lists that are searched from end to end.
trait Oracle {
    fn take(&mut self, bytes: u64, stream: usize, whose: u32) -> bool;
    fn give(&mut self, whose: u32);
    /// Bytes that the driver gave, bytes in use, and flushes.
    fn counts(&self) -> [u64; 3];
}

/// Both do the same with the same requests, after each of which `also` is looked at.
fn agree<S: Oracle>(
    policy: AllocatorPolicy,
    limit: u64,
    mut slow: S,
    requests: Requests,
    also: impl Fn(&Caching, &S) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    let mut fast = Caching::new(policy, limit);
    let mut live: Vec<(u32, BlockId)> = Vec::new();
    for (name, (bytes, stream, gone)) in requests.into_iter().enumerate() {
        let taken = fast.take(bytes, stream);
        prop_assert_eq!(taken.is_ok(), slow.take(bytes, stream, name as u32));
        if let Ok(block) = taken {
            live.push((name as u32, block));
        }
        if let (Some(gone), false) = (gone, live.is_empty()) {
            let (name, block) = live.swap_remove(gone.index(live.len()));
            fast.give(block);
            slow.give(name);
        }
        let counts = [fast.reserved, fast.allocated, fast.driver.flushes];
        prop_assert_eq!(counts, slow.counts());
        also(&fast, &slow)?;
    }
    Ok(())
}

/// Segments as pools and pieces.
struct Slow {
    limit: u64,
    segments: Vec<(usize, Vec<Piece>)>,
    flushes: u64,
}

impl Slow {
    fn reserved(&self) -> u64 {
        let sizes = self.segments.iter().flat_map(|(_, pieces)| pieces);
        sizes.map(|(bytes, _)| bytes).sum()
    }

    fn allocated(&self) -> u64 {
        let pieces = self.segments.iter().flat_map(|(_, pieces)| pieces);
        pieces
            .filter(|(_, whose)| whose.is_some())
            .map(|(bytes, _)| bytes)
            .sum()
    }

    fn best(&self, size: u64, pool: usize) -> Option<(usize, usize)> {
        let mut best: Option<(u64, usize, usize)> = None;
        for (segment, (of, pieces)) in self.segments.iter().enumerate() {
            for (piece, (bytes, whose)) in pieces.iter().enumerate() {
                let better = best.is_none_or(|(least, ..)| *bytes < least);
                if *of == pool && whose.is_none() && *bytes >= size && better {
                    best = Some((*bytes, segment, piece));
                }
            }
        }
        best.map(|(_, segment, piece)| (segment, piece))
    }
}

impl Oracle for Slow {
    fn counts(&self) -> [u64; 3] {
        [self.reserved(), self.allocated(), self.flushes]
    }

    fn take(&mut self, bytes: u64, stream: usize, whose: u32) -> bool {
        let size = bytes.max(1).div_ceil(512) * 512;
        let small = size <= 1 << 20;
        let pool = stream * 2 + usize::from(!small);
        if self.best(size, pool).is_none() {
            let segment = if small {
                2 << 20
            } else if size < 10 << 20 {
                20 << 20
            } else {
                size.div_ceil(2 << 20) * (2 << 20)
            };
            if self.reserved() + segment > self.limit {
                self.flushes += 1;
                self.segments
                    .retain(|(_, pieces)| pieces.len() > 1 || pieces[0].1.is_some());
            }
            if self.reserved() + segment > self.limit {
                return false;
            }
            self.segments.push((pool, vec![(segment, None)]));
        }
        let (segment, piece) = self.best(size, pool).expect("there is one now");
        let pieces = &mut self.segments[segment].1;
        let left = pieces[piece].0 - size;
        pieces[piece].1 = Some(whose);
        if (small && left >= 512) || left > 1 << 20 {
            pieces[piece].0 = size;
            pieces.insert(piece + 1, (left, None));
        }
        true
    }

    fn give(&mut self, whose: u32) {
        for (_, pieces) in &mut self.segments {
            for piece in pieces.iter_mut().filter(|piece| piece.1 == Some(whose)) {
                piece.1 = None;
            }
            let mut merged: Vec<Piece> = Vec::new();
            for piece in pieces.drain(..) {
                match merged.last_mut() {
                    Some(last) if last.1.is_none() && piece.1.is_none() => last.0 += piece.0,
                    _ => merged.push(piece),
                }
            }
            *pieces = merged;
        }
    }
}

/// Expandable segments over lists that are searched from end to end: by pool, pieces of addresses from zero on.
struct SlowExpandable {
    limit: u64,
    pools: Vec<Vec<(u64, Part)>>,
    flushes: u64,
    refused: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Of(u32),
    Cached,
    Hole,
}

impl SlowExpandable {
    fn new(limit: u64) -> Self {
        Self {
            limit,
            pools: vec![vec![(SPAN, Part::Hole)]; 2 * STREAMS],
            flushes: 0,
            refused: 0,
        }
    }

    fn sum(&self, counts: impl Fn(Part) -> bool) -> u64 {
        let pieces = self.pools.iter().flatten();
        pieces
            .filter(|(_, part)| counts(*part))
            .map(|(bytes, _)| bytes)
            .sum()
    }

    fn reserved(&self) -> u64 {
        self.sum(|part| part != Part::Hole)
    }

    /// Neighbours of one kind are one piece.
    fn tidy(&mut self, pool: usize) {
        let mut tidy: Vec<(u64, Part)> = Vec::new();
        for (bytes, part) in self.pools[pool].drain(..) {
            match tidy.last_mut() {
                Some(last) if last.1 == part && !matches!(part, Part::Of(_)) => last.0 += bytes,
                _ => tidy.push((bytes, part)),
            }
        }
        self.pools[pool] = tidy;
    }

    /// Of the cached pieces that are large enough, smallest and lowest first: the first whose follower could not
    /// grow less.
    fn cached(&self, size: u64, pool: usize) -> Option<usize> {
        let pieces = &self.pools[pool];
        let mut fitting: Vec<usize> = (0..pieces.len())
            .filter(|i| pieces[*i].1 == Part::Cached && pieces[*i].0 >= size)
            .collect();
        fitting.sort_by_key(|i| (pieces[*i].0, *i));
        let grown = |i: usize| match pieces.get(i + 1) {
            Some((hole, Part::Hole)) => pieces[i].0 + hole,
            _ => pieces[i].0,
        };
        let mut next = fitting.windows(2);
        match next.find(|two| grown(two[1]) >= grown(two[0])) {
            Some(two) => Some(two[0]),
            None => fitting.last().copied(),
        }
    }

    /// Bytes from the piece `from` on to the next one in use.
    fn place(&self, from: usize, pool: usize) -> u64 {
        let pieces = self.pools[pool][from..].iter();
        let free = pieces.take_while(|(_, part)| !matches!(part, Part::Of(_)));
        free.map(|(bytes, _)| bytes).sum()
    }

    fn grow(&mut self, size: u64, pool: usize) -> Option<usize> {
        let page = if pool.is_multiple_of(2) {
            2 * MIB
        } else {
            20 * MIB
        };
        let pieces = &self.pools[pool];
        let holes = (0..pieces.len()).filter(|i| pieces[*i].1 == Part::Hole);
        let mut starts = holes.map(|i| match i.checked_sub(1).map(|i| pieces[i].1) {
            Some(Part::Cached) => i - 1,
            _ => i,
        });
        let start = starts.find(|start| self.place(*start, pool) >= size)?;
        loop {
            let (bytes, part) = self.pools[pool][start];
            if part == Part::Cached && bytes >= size {
                return Some(start);
            }
            let (hole, lacking) = match part {
                Part::Cached => (start + 1, size - bytes),
                _ => (start, size),
            };
            let all = self.pools[pool][hole].0;
            let mapped = (lacking.div_ceil(page) * page).min(all);
            let left = self.limit - self.reserved();
            if mapped > left {
                self.refused += left / page;
                return None;
            }
            let rest = (all - mapped, Part::Hole);
            self.pools[pool].splice(hole..=hole, [(mapped, Part::Cached), rest]);
            self.pools[pool].retain(|(bytes, _)| *bytes > 0);
            self.tidy(pool);
        }
    }

    fn flush(&mut self) {
        self.flushes += 1;
        for pool in 0..self.pools.len() {
            let page = if pool.is_multiple_of(2) {
                2 * MIB
            } else {
                20 * MIB
            };
            let mut at = 0;
            let mut after = Vec::new();
            for (bytes, part) in &self.pools[pool] {
                let (from, to) = (at, at + bytes);
                at = to;
                let (first, last) = (from.div_ceil(page) * page, to / page * page);
                if *part != Part::Cached || first >= last {
                    after.push((*bytes, *part));
                    continue;
                }
                after.extend([
                    (first - from, Part::Cached),
                    (last - first, Part::Hole),
                    (to - last, Part::Cached),
                ]);
            }
            after.retain(|(bytes, _)| *bytes > 0);
            self.pools[pool] = after;
            self.tidy(pool);
        }
    }

    /// Blocks in use as (address, size).
    fn live(&self) -> Vec<(u64, u64)> {
        let mut live = Vec::new();
        for (pool, pieces) in self.pools.iter().enumerate() {
            let mut at = SPAN * pool as u64;
            for (bytes, part) in pieces {
                if matches!(part, Part::Of(_)) {
                    live.push((at, *bytes));
                }
                at += bytes;
            }
        }
        live
    }
}

impl Oracle for SlowExpandable {
    fn counts(&self) -> [u64; 3] {
        let used = self.sum(|part| matches!(part, Part::Of(_)));
        [self.reserved(), used, self.flushes]
    }

    fn take(&mut self, bytes: u64, stream: usize, whose: u32) -> bool {
        let size = bytes.max(1).div_ceil(512) * 512;
        let pool = stream * 2 + usize::from(size > MIB);
        let found = self.cached(size, pool).or_else(|| {
            self.grow(size, pool).or_else(|| {
                self.flush();
                self.grow(size, pool)
            })
        });
        let Some(found) = found else {
            return false;
        };
        let rest = (self.pools[pool][found].0 - size, Part::Cached);
        self.pools[pool].splice(found..=found, [(size, Part::Of(whose)), rest]);
        self.pools[pool].retain(|(bytes, _)| *bytes > 0);
        true
    }

    fn give(&mut self, whose: u32) {
        for pool in 0..self.pools.len() {
            for piece in &mut self.pools[pool] {
                if piece.1 == Part::Of(whose) {
                    piece.1 = Part::Cached;
                }
            }
            self.tidy(pool);
        }
    }
}

/// Bytes and stream of a request, and which of the live blocks goes then.
type Requests = Vec<(u64, usize, Option<prop::sample::Index>)>;

/// Requests as a step makes them: tiny, small, under and over the exact size; which of the live ones goes.
fn requests() -> impl Strategy<Value = Requests> {
    let bytes = prop_oneof![
        1u64..5_000,
        100_000u64..3_000_000,
        5_000_000u64..30_000_000,
        prop::sample::select(vec![512, MIB, MIB + 1, 10 * MIB - 1, 10 * MIB, 33 * MIB]),
    ];
    prop::collection::vec(
        (
            bytes,
            0..STREAMS,
            prop::option::of(any::<prop::sample::Index>()),
        ),
        1..120,
    )
}

proptest! {
    /// Step by step the same as a list that is searched from end to end.
    #[test]
    fn native_is_what_a_slow_allocator_does(requests in requests(), limit in 100u64..400) {
        let limit = limit * MIB;
        let slow = Slow { limit, segments: Vec::new(), flushes: 0 };
        agree(AllocatorPolicy::Native, limit, slow, requests, |_, _| Ok(()))?;
    }

    /// The same of expandable segments; the blocks that are in use stand at the same addresses as well.
    #[test]
    fn expandable_is_what_a_slow_allocator_does(requests in requests(), limit in 100u64..400) {
        let limit = limit * MIB;
        let slow = SlowExpandable::new(limit);
        agree(AllocatorPolicy::ExpandableSegments, limit, slow, requests, |fast, slow| {
            prop_assert_eq!(fast.driver.refused, slow.refused);
            prop_assert_eq!(fast.live(), slow.live());
            Ok(())
        })?;
    }

    /// Whatever is asked for: live blocks never overlap, the driver gives no more than it has and no less
    /// than tensors hold, nothing goes back to it unless it had nothing left, and once all is freed and
    /// given back nothing is held.
    #[test]
    fn no_byte_is_lent_twice(requests in requests(), limit in 100u64..400, expandable: bool) {
        let policy = if expandable {
            AllocatorPolicy::ExpandableSegments
        } else {
            AllocatorPolicy::Native
        };
        let mut allocator = Caching::new(policy, limit * MIB);
        let mut live: Vec<BlockId> = Vec::new();
        for (bytes, stream, gone) in requests {
            let (before, reserved) = (allocator.driver, allocator.reserved);
            if let Ok(block) = allocator.take(bytes, stream) {
                prop_assert!(allocator.blocks[block.0 as usize].size >= bytes);
                live.push(block);
            }
            let flushed = allocator.driver.flushes > before.flushes;
            prop_assert!(flushed || allocator.driver.returned == before.returned);
            prop_assert!(!flushed || reserved + bytes + 20 * MIB > limit * MIB);
            if let (Some(gone), false) = (gone, live.is_empty()) {
                let gone = live.swap_remove(gone.index(live.len()));
                if bytes % 3 == 0 {
                    allocator.give_later(gone, bytes);
                } else {
                    allocator.give(gone);
                }
            }
            allocator.settle(bytes / 2);
            prop_assert!(allocator.allocated <= allocator.reserved);
            prop_assert!(allocator.reserved <= limit * MIB);
            let blocks = allocator.live();
            prop_assert_eq!(blocks.len(), live.len() + allocator.pending.len());
            prop_assert!(blocks.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0));
        }
        for block in live {
            allocator.give(block);
        }
        prop_assert_eq!(allocator.allocated, 0);
        allocator.flush();
        prop_assert_eq!(allocator.reserved, 0);
        prop_assert_eq!(allocator.driver.asked, allocator.driver.returned);
    }
}

/// Where 12 of a segment's 60 MiB stay in use, it has no place for 60 again; an expandable one grows at
/// its end.
#[test]
fn pieces_of_a_segment_serve_no_larger_request() {
    for (policy, retries) in [
        (AllocatorPolicy::Native, 1),
        (AllocatorPolicy::ExpandableSegments, 0),
    ] {
        let mut allocator = Caching::new(policy, 150 * MIB);
        let large = allocator.take(60 * MIB, 0).expect("there is room");
        allocator.give(large);
        let kept = allocator.take(12 * MIB, 0).expect("a piece of it");
        let again = allocator.take(60 * MIB, 0);
        assert!(again.is_ok(), "{policy:?}");
        let third = allocator.take(50 * MIB, 0);
        // Native holds 60 MiB, of which 12 are used, and 60 more.
        assert_eq!(third.is_ok(), policy == AllocatorPolicy::ExpandableSegments);
        assert_eq!(allocator.driver.flushes, retries, "{policy:?}");
        allocator.give(kept);
    }
}

/// After its cache went back, a segment has holes between blocks in use. A request goes to the lowest place that is large
/// enough, over a hole, the rest of a page behind it and what follows.
#[test]
fn a_request_may_span_holes_and_what_is_cached_between_them() {
    let mut allocator = Caching::new(AllocatorPolicy::ExpandableSegments, 120 * MIB);
    let mut take = |size: u64| allocator.take(size * MIB, 0).expect("there is room");
    let [first, _, third, _, _] = [30, 10, 45, 10, 25].map(&mut take);
    allocator.give(first);
    allocator.give(third);
    allocator.flush();
    // Of 0 to 30 a page is gone, of 40 to 85 two are: 40 to 80.
    assert_eq!(allocator.reserved, 60 * MIB);
    let again = allocator.take(44 * MIB, 0).expect("there is room");
    assert_eq!(allocator.blocks[again.0 as usize].address, SPAN + 40 * MIB);
    assert_eq!(allocator.reserved, 100 * MIB);
    assert_eq!(allocator.driver.flushes, 1);
}

/// A block that could grow over the hole behind it is left for a larger one that could not.
#[test]
fn a_block_before_a_hole_gives_way_to_one_that_cannot_grow() {
    let mut allocator = Caching::new(AllocatorPolicy::ExpandableSegments, 400 * MIB);
    let mut take = |size: u64| allocator.take(size * MIB, 0).expect("there is room");
    let [_, before, hole, _, larger, _] = [20, 5, 55, 20, 20, 20].map(&mut take);
    allocator.give(hole);
    allocator.flush();
    // 25 to 40 is cached, 40 to 80 is a hole.
    allocator.give(before);
    allocator.give(larger);
    let found = allocator.take(18 * MIB, 0).expect("there is room");
    assert_eq!(allocator.blocks[found.0 as usize].address, SPAN + 100 * MIB);
    let found = allocator.take(18 * MIB, 0).expect("there is room");
    assert_eq!(allocator.blocks[found.0 as usize].address, SPAN + 20 * MIB);
}

/// PyTorch's cross-entropy of an fp32 copy, op by op: the gradient of the log-probabilities takes the place of
/// the copy, and for the copy's own there is none left, though the 16-bit logits are gone. So 14 bytes are held
/// for each logit, of which 12 are in use.
#[test]
fn a_loss_op_by_op_holds_14_bytes_for_each_logit() {
    let logits = 200 * MIB;
    for policy in [AllocatorPolicy::Native, AllocatorPolicy::ExpandableSegments] {
        let mut allocator = Caching::new(policy, 100 * logits);
        let mut take = |bytes: u64| allocator.take(bytes * logits, 0).expect("there is room");
        let (narrow, copy, _log) = (take(2), take(4), take(4));
        allocator.give(copy);
        allocator.give(narrow);
        let mut take = |bytes: u64| allocator.take(bytes * logits, 0).expect("there is room");
        let _gradients = (take(4), take(4));
        assert_eq!(allocator.peak_reserved(), 14 * logits, "{policy:?}");
        assert_eq!(allocator.peak_allocated(), 12 * logits, "{policy:?}");
    }
}
