//! A ladder of ever finer calendars, with lanes for ties.
//!
//! Keys travel from right to left, and each place sorts them a little more:
//!
//! ```text
//! lanes         front              rungs                          top
//! one instant   a few dozen keys,  buckets of one width each,     everything later,
//! by class      sorted             the last rung is the finest    in the order of arrival
//! ```
//!
//! - The **top** only collects. When all else is empty, its nearer half (at least) becomes a rung.
//! - A **rung** cuts a range of time into buckets whose width follows the median spacing of its
//!   keys, not their range, so a few keys in the far future do not spoil it.
//! - The **front** takes the next few buckets and sorts them. A bucket with too many keys becomes
//!   a finer rung of its own, and so does a front into which too many are inserted. Widths shrink
//!   by a constant factor each time, so there are at most a few dozen rungs, whatever the times.
//! - A bucket with many keys of one instant is not sorted at all: it goes to the **lanes**, one
//!   first-in-first-out lane per class. So do keys that are pushed at the current instant.
//!
//! Within one instant and class every place keeps the order of arrival. That makes the sequence
//! number superfluous: a stored key is 16 bytes.

use super::{Key, PendingSet};
use rackflow_units::SimTime;

/// A crowd: more keys than this in one bucket are split, or go to the lanes.
const CROWD: usize = 64;
/// The front takes buckets until it has this many keys,
const FRONT_KEYS: usize = 48;
/// but not beyond this many buckets, so that a rung made from a front is finer than its parent.
const FRONT_BUCKETS: usize = 16;
/// A front with more keys becomes a rung.
const FRONT_MAX: usize = 256;
/// Keys that a bucket should have where keys are as dense as at the median.
const KEYS_PER_BUCKET: usize = 12;
/// A rung from the top reaches this many times as far as its keys would need at median density.
const REACH: usize = 4;
/// Buckets of the smallest rung. CORRECTNESS: more than `FRONT_BUCKETS`, or rungs need not shrink.
const RUNG_BUCKETS_MIN: usize = 64;

/// A key with its slot. The sequence is implied by the order of arrival.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    time: u64,
    /// Class in the upper half, slot in the lower.
    tag: u64,
}

impl Entry {
    #[inline]
    fn new(key: Key, slot: u32) -> Self {
        Self {
            time: key.time.as_picos(),
            tag: u64::from(key.class.0) << 32 | u64::from(slot),
        }
    }

    #[inline]
    fn class(self) -> u8 {
        (self.tag >> 32) as u8
    }

    #[inline]
    fn slot(self) -> u32 {
        self.tag as u32
    }

    /// What is left to compare when arrival order is kept.
    #[inline]
    fn order(self) -> (u64, u64) {
        (self.time, self.tag >> 32)
    }
}

/// Entries in chunks of two cache lines each, chained into buckets and recycled.
#[derive(Debug, Default)]
struct ChunkPool {
    chunks: Vec<Chunk>,
    next: Vec<u32>,
    free: Vec<u32>,
}

const CHUNK: usize = 8;

#[derive(Debug, Default, Clone)]
#[repr(align(128))]
struct Chunk([Entry; CHUNK]);

/// A first-in-first-out list of entries: a ring of chunks, known by its last one.
#[derive(Debug, Default, Clone, Copy)]
struct Bucket {
    last: u32,
    len: u32,
}

impl ChunkPool {
    #[inline]
    fn push(&mut self, bucket: &mut Bucket, entry: Entry) {
        let at = bucket.len as usize % CHUNK;
        if at == 0 {
            self.lengthen(bucket);
        }
        self.chunks[bucket.last as usize].0[at] = entry;
        bucket.len += 1;
    }

    /// Appends a chunk to `bucket`, whose chunks are full.
    #[inline(never)]
    fn lengthen(&mut self, bucket: &mut Bucket) {
        let chunk = self.take();
        if bucket.len == 0 {
            self.next[chunk as usize] = chunk;
        } else {
            self.next[chunk as usize] = self.next[bucket.last as usize];
            self.next[bucket.last as usize] = chunk;
        }
        bucket.last = chunk;
    }

    #[inline]
    fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            let chunk = u32::try_from(self.chunks.len()).expect("fewer than 2^32 chunks");
            self.chunks.push(Chunk::default());
            self.next.push(0);
            chunk
        })
    }

    /// Moves all of `bucket` to the end of `to`, in order.
    #[inline]
    fn drain(&mut self, bucket: Bucket, to: &mut Vec<Entry>) {
        let mut left = bucket.len as usize;
        let mut chunk = bucket.last;
        while left > 0 {
            chunk = self.next[chunk as usize];
            let entries = &self.chunks[chunk as usize].0;
            to.extend_from_slice(&entries[..left.min(CHUNK)]);
            self.free.push(chunk);
            left = left.saturating_sub(CHUNK);
        }
    }
}

/// A stretch of time cut into buckets of 2^`shift` picoseconds.
#[derive(Debug, Default)]
struct Rung {
    /// First instant of bucket 0.
    start: u64,
    /// The first instant that is not covered. INVARIANT: of all rungs, the last ends first.
    end: u64,
    shift: u32,
    /// Buckets before this one have been taken.
    cursor: usize,
    /// The time pushed last and its bucket, which its equals need not look for.
    last_time: u64,
    last_index: usize,
    buckets: Vec<Bucket>,
    /// One bit per bucket, set when it is not empty.
    occupied: Vec<u64>,
}

impl Rung {
    /// Makes this an empty rung of at most `buckets` buckets.
    fn reset(&mut self, start: u64, shift: u32, buckets: usize, end: u64) {
        self.start = start;
        self.end = end;
        self.shift = shift;
        self.cursor = 0;
        self.forget_last();
        self.buckets.clear();
        self.buckets.resize(buckets, Bucket::default());
        self.occupied.clear();
        self.occupied.resize(buckets.div_ceil(64), 0);
    }

    #[inline]
    fn push(&mut self, pool: &mut ChunkPool, entry: Entry) {
        if entry.time != self.last_time {
            self.last_time = entry.time;
            self.last_index = ((entry.time - self.start) >> self.shift) as usize;
            self.occupied[self.last_index / 64] |= 1 << (self.last_index % 64);
        }
        debug_assert!(
            self.last_index >= self.cursor,
            "the bucket was taken already"
        );
        pool.push(&mut self.buckets[self.last_index], entry);
    }

    /// Makes the next push look for its bucket.
    fn forget_last(&mut self) {
        // No rung holds the end of time.
        self.last_time = u64::MAX;
    }

    /// The first bucket at or after the cursor with an entry, if it is before `limit`.
    #[inline]
    fn next_occupied(&self, limit: usize) -> Option<usize> {
        let mut word = self.cursor / 64;
        let mut bits = *self.occupied.get(word)? & (u64::MAX << (self.cursor % 64));
        while bits == 0 {
            word += 1;
            if word * 64 >= limit {
                return None;
            }
            bits = *self.occupied.get(word)?;
        }
        let index = word * 64 + bits.trailing_zeros() as usize;
        (index < limit).then_some(index)
    }

    /// Takes bucket `index` and leaves the cursor behind it.
    #[inline]
    fn take(&mut self, index: usize) -> Bucket {
        self.occupied[index / 64] &= !(1 << (index % 64));
        self.cursor = index + 1;
        std::mem::take(&mut self.buckets[index])
    }

    /// First instant of bucket `index`, or the end of the rung.
    #[inline]
    fn start_of(&self, index: usize) -> u64 {
        let start = u128::from(self.start) + ((index as u128) << self.shift);
        u64::try_from(start).map_or(self.end, |start| start.min(self.end))
    }
}

/// The slots of one instant and class, first in, first out.
#[derive(Debug, Default)]
struct Lane {
    slots: Vec<u32>,
    /// Slots before this one were popped.
    at: usize,
}

impl Lane {
    #[inline]
    fn push(&mut self, slot: u32) {
        if self.slots.len() == self.slots.capacity() {
            self.make_room();
        }
        self.slots.push(slot);
    }

    /// Forgets what was popped when that is at least half, so that a lane which never runs empty
    /// does not grow for ever.
    #[cold]
    fn make_room(&mut self) {
        if self.at * 2 >= self.slots.len() {
            self.forget_popped();
        }
    }

    fn forget_popped(&mut self) {
        self.slots.drain(..self.at);
        self.at = 0;
    }

    #[inline]
    fn waiting(&self) -> &[u32] {
        &self.slots[self.at..]
    }
}

/// All that is pending at one instant and came there in bulk, or while it was the current one.
#[derive(Debug, Default)]
struct Lanes {
    instant: u64,
    /// The lowest class that is not empty, when there is one.
    class: u8,
    /// One bit per class, set when its lane is not empty.
    occupied: [u64; 4],
    by_class: Vec<Lane>,
}

impl Lanes {
    /// The lane of `class`, into which something is about to be put.
    #[inline]
    fn lane_to_fill(&mut self, class: u8) -> &mut Lane {
        let lane = usize::from(class);
        if lane >= self.by_class.len() {
            self.by_class.resize_with(lane + 1, Lane::default);
        }
        if self.is_empty() || class < self.class {
            self.class = class;
        }
        self.occupied[lane / 64] |= 1 << (lane % 64);
        &mut self.by_class[lane]
    }

    #[inline]
    fn push(&mut self, entry: Entry) {
        self.lane_to_fill(entry.class()).push(entry.slot());
    }

    /// Puts all `entries` into their lanes.
    fn extend(&mut self, entries: &[Entry]) {
        for alike in entries.chunk_by(|a, b| a.class() == b.class()) {
            let lane = self.lane_to_fill(alike[0].class());
            lane.slots.extend(alike.iter().map(|entry| entry.slot()));
        }
    }

    /// Takes the next slot, and says whether others of its class wait behind it.
    #[inline]
    fn pop(&mut self) -> (u32, bool) {
        let lane = &mut self.by_class[usize::from(self.class)];
        let slot = lane.slots[lane.at];
        lane.at += 1;
        (slot, lane.at < lane.slots.len())
    }

    /// Goes on to the next class when the lane of the lowest has run empty.
    fn leave_class(&mut self) {
        let lane = &mut self.by_class[usize::from(self.class)];
        lane.slots.clear();
        lane.at = 0;
        self.occupied[usize::from(self.class) / 64] &= !(1 << (self.class % 64));
        self.find_class();
    }

    fn find_class(&mut self) {
        if let Some(word) = self.occupied.iter().position(|bits| *bits != 0) {
            self.class = (word * 64) as u8 + self.occupied[word].trailing_zeros() as u8;
        }
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.occupied == [0; 4]
    }

    /// What is to be popped next.
    #[inline]
    fn waiting(&self) -> &[u32] {
        self.by_class[usize::from(self.class)].waiting()
    }
}

/// Keys later than all others, in the order of arrival.
#[derive(Debug)]
struct Top {
    entries: Vec<Entry>,
    /// Least and greatest time; `u64::MAX` and 0 when there are no entries.
    min: u64,
    max: u64,
}

impl Default for Top {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            min: u64::MAX,
            max: 0,
        }
    }
}

impl Top {
    #[inline]
    fn push(&mut self, entry: Entry) {
        self.min = self.min.min(entry.time);
        self.max = self.max.max(entry.time);
        self.entries.push(entry);
    }

    fn measure(&mut self) {
        let times = self.entries.iter().map(|entry| entry.time);
        self.min = times.clone().min().unwrap_or(u64::MAX);
        self.max = times.max().unwrap_or(0);
    }
}

/// Where the least key is.
enum Least {
    Front,
    Lanes,
}

/// The ladder queue: constant time per key, amortised, for every distribution of times, and
/// nearly free for ties. The head of its source file draws how.
///
/// # Memory
/// 16 bytes per key, half-filled cache lines in the rungs, and 8 bytes per bucket. It is kept for
/// reuse and never shrinks.
#[derive(Debug, Default)]
pub struct LadderQueue {
    len: usize,
    /// Time of the key popped last.
    now: u64,
    /// No later than this are the current instant, all lanes, and every time before `front_end`.
    near: u64,
    /// Lanes of different instants; the last is the earliest, and there is rarely more than one.
    /// INVARIANT: none is empty.
    lanes: Vec<Lanes>,
    /// The last lanes are known to hold the least key.
    lanes_lead: bool,
    /// Sorted, from `front_at` on. INVARIANT: holds every key before `front_end`, except in lanes.
    front: Vec<Entry>,
    front_at: usize,
    front_end: u64,
    /// Each covers the time from the cursor of the next finer one's end; the last is the finest.
    rungs: Vec<Rung>,
    /// Keys at or after the end of the first rung (or of the front, when there is no rung), and
    /// always those at the end of time, which no exclusive end can cover.
    top: Top,
    pool: ChunkPool,
    spare_rungs: Vec<Rung>,
    spare_lanes: Vec<Lanes>,
    scratch: Vec<Entry>,
    scratch_times: Vec<u64>,
}

impl LadderQueue {
    /// Finds the least key, refilling the front as needed.
    #[inline]
    fn settle(&mut self) -> Option<Least> {
        let least = self.find_least()?;
        self.lanes_lead = matches!(least, Least::Lanes);
        Some(least)
    }

    #[inline]
    fn find_least(&mut self) -> Option<Least> {
        loop {
            match (self.front.get(self.front_at), self.lanes.last()) {
                (Some(_), None) => return Some(Least::Front),
                (Some(entry), Some(lanes)) => {
                    // Keys in the front came before those in the lanes of the same instant.
                    let front_first = entry.order() <= (lanes.instant, u64::from(lanes.class));
                    return Some(if front_first {
                        Least::Front
                    } else {
                        Least::Lanes
                    });
                }
                (None, Some(lanes)) if self.front_end > lanes.instant => return Some(Least::Lanes),
                (None, Some(_)) => {
                    if !self.refill() {
                        return Some(Least::Lanes);
                    }
                }
                (None, None) => {
                    if !self.refill() {
                        return None;
                    }
                }
            }
        }
    }

    /// Puts the next keys into the empty front, or into lanes. False when there are none, or none
    /// before those that already wait in lanes.
    #[cold]
    #[inline(never)]
    fn refill(&mut self) -> bool {
        let refilled = self.refill_front_or_lanes();
        self.near = self.front_end.saturating_sub(1);
        if let Some(latest) = self.lanes.first() {
            self.near = self.near.max(latest.instant);
        }
        refilled
    }

    fn refill_front_or_lanes(&mut self) -> bool {
        debug_assert!(self.front_at == self.front.len(), "the front is empty");
        self.front.clear();
        self.front_at = 0;
        loop {
            let Some(rung) = self.rungs.last_mut() else {
                if self.top.entries.is_empty() {
                    return false;
                }
                if let Some(lanes) = self.lanes.last()
                    && lanes.instant < self.top.min
                {
                    self.front_end = lanes.instant + 1;
                    return false;
                }
                if self.take_from_top() {
                    return true;
                }
                continue;
            };
            let Some(first) = rung.next_occupied(usize::MAX) else {
                self.front_end = rung.end;
                let rung = self.rungs.pop().expect("there is a rung");
                self.spare_rungs.push(rung);
                continue;
            };
            if rung.buckets[first].len as usize > CROWD {
                let (start, end) = (rung.start_of(first), rung.start_of(first + 1));
                self.front_end = end;
                self.scratch.clear();
                let bucket = rung.take(first);
                self.pool.drain(bucket, &mut self.scratch);
                if self.take_from_crowd(start, end) {
                    return true;
                }
                continue;
            }
            let limit = first + FRONT_BUCKETS;
            let mut next = Some(first);
            while let Some(index) = next
                && self.front.len() < FRONT_KEYS
                && rung.buckets[index].len as usize <= CROWD
            {
                let bucket = rung.take(index);
                let from = self.front.len();
                self.pool.drain(bucket, &mut self.front);
                sort_unless_sorted(&mut self.front[from..]);
                next = rung.next_occupied(limit);
            }
            self.front_end = rung.start_of(rung.cursor);
            return true;
        }
    }

    /// Distributes the scratch, all that was in one bucket. True when that made the front or the
    /// lanes ready, false when it made a rung.
    fn take_from_crowd(&mut self, start: u64, end: u64) -> bool {
        let instant = self.scratch[0].time;
        let differences = self
            .scratch
            .iter()
            .fold(0, |differences, entry| differences | (entry.time ^ instant));
        if differences != 0 {
            self.spawn_rung(start, end);
            return false;
        }
        if self
            .lanes
            .last()
            .is_none_or(|lanes| instant < lanes.instant)
        {
            self.open_lanes(instant);
            let lanes = self.lanes.last_mut().expect("lanes were opened");
            lanes.extend(&self.scratch);
        } else {
            // Rare: lanes are waiting at an earlier instant, or at this one.
            self.front.append(&mut self.scratch);
            sort(&mut self.front);
        }
        true
    }

    fn open_lanes(&mut self, instant: u64) {
        let mut lanes = self.spare_lanes.pop().unwrap_or_default();
        lanes.instant = instant;
        self.lanes.push(lanes);
        self.lanes_lead = false;
    }

    /// When the first lane of the last lanes has run empty.
    #[cold]
    #[inline(never)]
    fn leave_lane(&mut self) {
        self.lanes_lead = false;
        let lanes = self.lanes.last_mut().expect("lanes led");
        lanes.leave_class();
        if lanes.is_empty() {
            self.spare_lanes.extend(self.lanes.pop());
        }
    }

    /// Moves the scratch into a new finest rung over `start..end`.
    fn spawn_rung(&mut self, start: u64, end: u64) {
        let wanted = (self.scratch.len() / KEYS_PER_BUCKET).next_power_of_two();
        let wanted = wanted.max(RUNG_BUCKETS_MIN);
        let last = end - start - 1;
        let shift = (u64::BITS - last.leading_zeros()).saturating_sub(wanted.ilog2());
        let mut rung = self.spare_rungs.pop().unwrap_or_default();
        rung.reset(start, shift, (last >> shift) as usize + 1, end);
        for entry in &self.scratch {
            rung.push(&mut self.pool, *entry);
        }
        self.front_end = start;
        self.rungs.push(rung);
    }

    /// Makes the nearer part of the top, at least half of it, a rung, a front or lanes. True when
    /// that made the front or the lanes ready.
    fn take_from_top(&mut self) -> bool {
        let (len, min) = (self.top.entries.len(), self.top.min);
        self.scratch.clear();
        if min == self.top.max && (len > CROWD || min == u64::MAX) {
            std::mem::swap(&mut self.scratch, &mut self.top.entries);
            self.top.measure();
            self.front_end = min.saturating_add(1);
            return self.take_from_crowd(min, self.front_end);
        }
        if len <= CROWD {
            // The end of time stays in the top until it is alone.
            let end = self
                .top
                .entries
                .iter()
                .map(|entry| entry.time)
                .filter(|time| *time < u64::MAX)
                .max();
            let end = end.expect("some key is before the end of time") + 1;
            self.split_top(end);
            self.front.append(&mut self.scratch);
            sort(&mut self.front);
            self.front_end = end;
            return true;
        }
        self.scratch_times.clear();
        self.scratch_times
            .extend(self.top.entries.iter().map(|entry| entry.time));
        let (_, median, _) = self.scratch_times.select_nth_unstable(len / 2);
        let half = *median - min;
        if half == 0 {
            self.split_top(min + 1);
            self.front_end = min + 1;
            return self.take_from_crowd(min, min + 1);
        }
        let width = u128::from(half) * 2 * KEYS_PER_BUCKET as u128 / len as u128;
        let shift = width.max(1).ilog2();
        // At least up to the median, so that the top shrinks by half.
        let buckets = (REACH * len / KEYS_PER_BUCKET).max((half >> shift) as usize + 1);
        let end = u128::from(min) + ((buckets as u128) << shift);
        let end = u64::try_from(end).unwrap_or(u64::MAX);
        self.split_top(end);
        let mut rung = self.spare_rungs.pop().unwrap_or_default();
        rung.reset(min, shift, buckets, end);
        for entry in &self.scratch {
            rung.push(&mut self.pool, *entry);
        }
        self.front_end = min;
        self.rungs.push(rung);
        false
    }

    /// Moves what is before `end` from the top to the scratch, in order.
    fn split_top(&mut self, end: u64) {
        let scratch = &mut self.scratch;
        self.top.entries.retain(|entry| {
            let stays = entry.time >= end;
            if !stays {
                scratch.push(*entry);
            }
            stays
        });
        self.top.measure();
    }

    /// Inserts into the sorted front, after its equals.
    fn push_front(&mut self, entry: Entry) {
        self.lanes_lead = false;
        if self.front.len() - self.front_at >= FRONT_MAX {
            self.spill_front();
            return self.push_later(entry);
        }
        if self.front_at >= FRONT_MAX {
            self.front.drain(..self.front_at);
            self.front_at = 0;
        }
        let waiting = &self.front[self.front_at..];
        let at = waiting.partition_point(|other| other.order() <= entry.order());
        self.front.insert(self.front_at + at, entry);
    }

    /// Makes the front a rung, since too many keys were inserted into it.
    fn spill_front(&mut self) {
        let (start, end) = (self.front[self.front_at].time, self.front_end);
        self.scratch.clear();
        self.scratch.extend_from_slice(&self.front[self.front_at..]);
        self.front.clear();
        self.front_at = 0;
        self.spawn_rung(start, end);
    }

    fn push_later(&mut self, entry: Entry) {
        if entry.time < self.front_end {
            self.push_front(entry);
        } else {
            self.push_far(entry);
        }
    }

    /// Pushes a key that is not before the end of the front.
    #[inline]
    fn push_far(&mut self, entry: Entry) {
        for rung in self.rungs.iter_mut().rev() {
            if entry.time < rung.end {
                return rung.push(&mut self.pool, entry);
            }
        }
        self.top.push(entry);
    }

    /// Pushes a key that may belong into lanes, or into the front.
    #[inline(never)]
    fn push_near(&mut self, entry: Entry) {
        for lanes in self.lanes.iter_mut().rev() {
            if lanes.instant == entry.time {
                return lanes.push(entry);
            }
        }
        // The clock may have gone back behind lanes, when the keys popped last were dead.
        let earliest = self
            .lanes
            .last()
            .is_none_or(|lanes| entry.time < lanes.instant);
        if entry.time == self.now && earliest {
            self.open_lanes(entry.time);
            let lanes = self.lanes.last_mut().expect("lanes were opened");
            return lanes.push(entry);
        }
        self.push_later(entry);
    }
}

/// Sorts by time and class and keeps the order of arrival.
#[inline]
fn sort(entries: &mut [Entry]) {
    entries.sort_by_key(|entry| entry.order());
}

/// As [`sort`], for what is probably in order because most of it is simultaneous.
#[inline]
fn sort_unless_sorted(entries: &mut [Entry]) {
    if !entries.is_sorted_by_key(|entry| entry.order()) {
        sort(entries);
    }
}

impl PendingSet for LadderQueue {
    #[inline]
    fn push(&mut self, key: Key, slot: u32) {
        let entry = Entry::new(key, slot);
        self.len += 1;
        if entry.time <= self.near {
            self.push_near(entry);
        } else {
            self.push_far(entry);
        }
    }

    #[inline]
    fn pop(&mut self) -> Option<(SimTime, u32)> {
        if !self.lanes_lead
            && let Least::Front = self.settle()?
        {
            let entry = self.front[self.front_at];
            self.front_at += 1;
            self.len -= 1;
            self.now = entry.time;
            return Some((SimTime::from_picos(entry.time), entry.slot()));
        }
        let lanes = self.lanes.last_mut().expect("lanes hold the least key");
        let instant = lanes.instant;
        let (slot, others) = lanes.pop();
        if !others {
            self.leave_lane();
        }
        self.len -= 1;
        self.now = instant;
        Some((SimTime::from_picos(instant), slot))
    }

    #[inline]
    fn peek(&mut self) -> Option<(SimTime, u32)> {
        let (time, slot) = match self.settle()? {
            Least::Front => {
                let entry = self.front[self.front_at];
                (entry.time, entry.slot())
            }
            Least::Lanes => {
                let lanes = self.lanes.last().expect("lanes hold the least key");
                (lanes.instant, lanes.waiting()[0])
            }
        };
        Some((SimTime::from_picos(time), slot))
    }

    #[inline]
    fn look_ahead(&self, count: usize, mut visit: impl FnMut(u32)) {
        if let Some(lanes) = self.lanes.last() {
            let next = lanes.waiting().iter().take(count);
            next.for_each(|slot| visit(*slot));
        } else {
            let next = self.front[self.front_at..].iter().take(count);
            next.for_each(|entry| visit(entry.slot()));
        }
    }

    fn retain(&mut self, mut keep: impl FnMut(u32) -> bool) {
        self.len = 0;
        for lanes in &mut self.lanes {
            lanes.occupied = [0; 4];
            for (class, lane) in lanes.by_class.iter_mut().enumerate() {
                lane.forget_popped();
                lane.slots.retain(|slot| keep(*slot));
                self.len += lane.slots.len();
                lanes.occupied[class / 64] |= u64::from(!lane.slots.is_empty()) << (class % 64);
            }
            lanes.find_class();
        }
        let emptied = self.lanes.extract_if(.., |lanes| lanes.is_empty());
        self.spare_lanes.extend(emptied);
        self.lanes_lead = false;

        self.front.drain(..self.front_at);
        self.front_at = 0;
        self.front.retain(|entry| keep(entry.slot()));
        self.len += self.front.len();

        for rung in &mut self.rungs {
            rung.forget_last();
            for index in rung.cursor..rung.buckets.len() {
                let bucket = std::mem::take(&mut rung.buckets[index]);
                self.scratch.clear();
                self.pool.drain(bucket, &mut self.scratch);
                self.scratch.retain(|entry| keep(entry.slot()));
                for entry in &self.scratch {
                    self.pool.push(&mut rung.buckets[index], *entry);
                }
                if self.scratch.is_empty() {
                    rung.occupied[index / 64] &= !(1 << (index % 64));
                }
                self.len += self.scratch.len();
            }
        }

        self.top.entries.retain(|entry| keep(entry.slot()));
        self.top.measure();
        self.len += self.top.entries.len();
    }

    fn len(&self) -> usize {
        self.len
    }
}
