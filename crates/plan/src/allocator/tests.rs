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

/// The same rules over lists that are searched from end to end: segments as pools and pieces.
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

/// Requests as a step makes them: tiny, small, under and over the exact size; which of the live ones goes.
fn requests() -> impl Strategy<Value = Vec<(u64, usize, Option<prop::sample::Index>)>> {
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
        let mut fast = Caching::new(AllocatorPolicy::Native, limit);
        let mut slow = Slow { limit, segments: Vec::new(), flushes: 0 };
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
            prop_assert_eq!(fast.reserved, slow.reserved());
            prop_assert_eq!(fast.allocated, slow.allocated());
            prop_assert_eq!(fast.driver.flushes, slow.flushes);
        }
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
