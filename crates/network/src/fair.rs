//! Max-min fair flows over directed links.

mod calendar;
mod fill;

use crate::flow::FlowId;
use calendar::Calendar;
use fill::Fill;
use rackflow_topology::LinkId;
use rackflow_units::{Bandwidth, Bytes, SimDuration, SimTime};

/// Rates are integers in units of 2^-12 bytes per second, so that sums over the flows of a link are
/// exact and do not depend on the order in which flows came.
pub(crate) const RATE_SHIFT: u32 = 12;
/// One byte, in the unit of work: 2^-12 bytes per second for one picosecond.
const WORK_PER_BYTE: u128 = 1_000_000_000_000 << RATE_SHIFT;
/// No flow, no link in a list.
const NIL: u32 = u32::MAX;
/// The level of a link that holds nobody back.
const FREE: u64 = u64::MAX;
/// Longest route: across a large torus.
const MOST_HOPS: usize = 64;

/// One directed link and who is on it.
#[derive(Debug, Clone, Copy)]
struct Link {
    /// What it can carry.
    capacity: u64,
    /// Sum of the rates of its flows.
    load: u64,
    /// The rate of the flows that this link holds back; [`FREE`] where it holds nobody back.
    level: u64,
    /// Bytes of flows that have gone over it.
    carried: u64,
    /// Live flows, bundles by their weight.
    count: u32,
    /// First membership.
    first: u32,
    /// Already in the list of links that may have gained room.
    released: bool,
}

/// One flow on one link, in the list of the link. Those of a flow lie side by side.
#[derive(Debug, Clone, Copy)]
struct Member {
    link: u32,
    flow: u32,
    previous: u32,
    next: u32,
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    /// Work that is left at `at`, of one flow of the bundle.
    left: u128,
    /// Of one flow of the bundle.
    rate: u64,
    /// The rate may not exceed it.
    cap: u64,
    at: SimTime,
    ends: SimTime,
    bytes: u64,
    /// Work of one byte.
    work_per_byte: u64,
    /// First membership; the next free slot when the flow is over.
    first: u32,
    generation: u32,
    weight: u32,
    hops: u8,
    live: bool,
    /// In the set whose rates are being computed.
    affected: bool,
}

/// Directed links and the flows that share them, each at its max-min fair rate.
///
/// # Sharing
/// Rates are max-min fair: no flow can be faster without slowing one that is no faster than it.
/// Every flow therefore has a bottleneck: its own cap, or a link that is full and on which no flow
/// is faster. A start, an end or a change of a link recomputes the flows whose bottleneck it moves
/// and no others; changes at one instant are taken together.
///
/// # Bundles
/// A flow of weight `k` stands for `k` equal flows on the same links. It counts `k` times at its
/// links and ends when all of them end.
///
/// # Exactness
/// A flow delivers its bytes, no more and no less: work is counted in integers that hold one
/// picosecond of 2^-12 bytes per second, and only its end is rounded, up.
///
/// # Time
/// The net has no clock of its own: [`next_completion`](Self::next_completion) says when the next
/// flow ends, and [`advance`](Self::advance) tells the net that time has passed.
#[derive(Debug, Clone)]
pub struct FairNet {
    links: Vec<Link>,
    flows: Vec<Flow>,
    members: Vec<Member>,
    free_flow: u32,
    /// First free run of members, by length.
    free_members: [u32; MOST_HOPS + 1],
    live: usize,
    now: SimTime,
    /// New flows without a rate.
    fresh: Vec<u32>,
    /// Links that were full and have lost load, or whose capacity has changed.
    released: Vec<u32>,
    calendar: Calendar,
    fill: Fill,
    /// The last quotient of [`time_for`](Self::time_for): equal flows ask again.
    quotient: (u128, u64, u64),
}

const fn units(bandwidth: Bandwidth) -> u64 {
    bandwidth.bytes_per_sec() << RATE_SHIFT
}

impl FairNet {
    /// Idle links of these capacities, numbered in their order.
    pub fn new(capacities: impl IntoIterator<Item = Bandwidth>) -> Self {
        let idle = |capacity| Link {
            capacity: units(capacity),
            load: 0,
            level: FREE,
            carried: 0,
            count: 0,
            first: NIL,
            released: false,
        };
        let links: Vec<Link> = capacities.into_iter().map(idle).collect();
        Self {
            fill: Fill::new(links.len()),
            links,
            flows: Vec::new(),
            members: Vec::new(),
            free_flow: NIL,
            free_members: [NIL; MOST_HOPS + 1],
            live: 0,
            now: SimTime::ZERO,
            fresh: Vec::new(),
            released: Vec::new(),
            calendar: Calendar::default(),
            quotient: (0, 1, 0),
        }
    }

    /// The time that the net has been told.
    pub fn now(&self) -> SimTime {
        self.now
    }

    /// Flows and bundles that have not ended.
    pub fn live(&self) -> usize {
        self.live
    }

    /// Starts a bundle of `weight` equal flows of `bytes` each along `route`, none of them faster
    /// than `cap`. A flow over no links at all ends at once unless it has a cap.
    ///
    /// # Panics
    /// When the weight is zero, the route is longer than 64 links or names one twice.
    pub fn start(
        &mut self,
        route: &[LinkId],
        bytes: Bytes,
        weight: u32,
        cap: Option<Bandwidth>,
    ) -> FlowId {
        let work = u128::from(bytes.get()) * WORK_PER_BYTE;
        self.start_work(route, bytes, work, weight, cap)
    }

    /// The same for one flow that would keep a link of rate `line` busy for `busy`: longer than its
    /// bytes alone, by what headers, flags and gaps take.
    ///
    /// # Panics
    /// When the route is longer than 64 links or names one twice.
    pub fn start_busy(
        &mut self,
        route: &[LinkId],
        bytes: Bytes,
        busy: SimDuration,
        line: Bandwidth,
    ) -> FlowId {
        let work = u128::from(busy.as_picos()) * u128::from(units(line));
        self.start_work(route, bytes, work, 1, None)
    }

    fn start_work(
        &mut self,
        route: &[LinkId],
        bytes: Bytes,
        work: u128,
        weight: u32,
        cap: Option<Bandwidth>,
    ) -> FlowId {
        assert!(weight > 0, "a bundle has at least one flow");
        // What is empty ends at once and is on no link.
        let route = if work == 0 { &[] } else { route };
        let cap = cap.map_or(FREE, units);
        let per_byte = work / u128::from(bytes.get().max(1));
        let slot = self.take_slot(Flow {
            left: work,
            rate: 0,
            cap,
            at: self.now,
            ends: SimTime::MAX,
            bytes: bytes.get(),
            work_per_byte: u64::try_from(per_byte.max(1)).unwrap_or(u64::MAX),
            first: NIL,
            generation: 0,
            weight,
            hops: u8::try_from(route.len()).expect("a route has at most 64 links"),
            live: true,
            affected: false,
        });
        let alone = self.join(slot, route);
        let id = FlowId::new(slot, self.flows[slot as usize].generation);
        if work == 0 || (route.is_empty() && cap == FREE) {
            self.set_end(slot, self.now);
        } else if alone {
            self.run_alone(slot, cap);
        } else {
            self.fresh.push(slot);
        }
        id
    }

    /// Ends `flow` before its time and returns the bytes that it (one of its bundle) has not sent,
    /// part of a byte counted whole.
    ///
    /// # Panics
    /// When it has ended already.
    pub fn cancel(&mut self, flow: FlowId) -> Bytes {
        self.settle();
        let left = self.remaining(flow);
        self.remove(flow.slot() as u32, left.get());
        left
    }

    /// When the next flow ends, if nothing else happens; `None` when none ever does.
    pub fn next_completion(&mut self) -> Option<SimTime> {
        self.settle();
        let flows = &self.flows;
        self.calendar
            .next(|slot, at| ends_at(&flows[slot as usize], at))
    }

    /// Tells the net that it is now `to`. Appends the flows that have ended by then to `completed`:
    /// by time, and in the order of their last change of rate where they end together.
    ///
    /// # Panics
    /// When `to` is in the past.
    pub fn advance(&mut self, to: SimTime, completed: &mut Vec<FlowId>) {
        assert!(
            to >= self.now,
            "time ran backward: {to:?} is before {:?}",
            self.now
        );
        while let Some(at) = self.next_completion().filter(|at| *at <= to) {
            self.now = at;
            let mut bucket = self.calendar.take();
            for &slot in &bucket {
                if ends_at(&self.flows[slot as usize], at) {
                    completed.push(FlowId::new(slot, self.flows[slot as usize].generation));
                    self.remove(slot, 0);
                }
            }
            bucket.clear();
            self.calendar.give_back(bucket);
        }
        self.now = to;
    }

    /// Degrades, cuts (zero) or mends a link. Flows over a cut link wait.
    pub fn set_capacity(&mut self, link: LinkId, capacity: Bandwidth) {
        self.settle();
        let place = &mut self.links[link.index()];
        place.capacity = units(capacity);
        // No flow is slower than this level: all of them are looked at.
        place.level = 0;
        self.release(link.0);
    }

    /// Rate of one flow of the bundle now, in bytes per second.
    ///
    /// # Panics
    /// When it has ended already.
    pub fn rate(&mut self, flow: FlowId) -> f64 {
        self.settle();
        self.flow(flow).rate as f64 / f64::from(1_u32 << RATE_SHIFT)
    }

    /// Bytes that one flow of the bundle has not sent by now, part of a byte counted whole.
    ///
    /// # Panics
    /// When it has ended already.
    pub fn remaining(&self, flow: FlowId) -> Bytes {
        let flow = self.flow(flow);
        let left = left_at(flow, self.now);
        let bytes = left.div_ceil(u128::from(flow.work_per_byte));
        Bytes::new(u64::try_from(bytes).map_or(flow.bytes, |bytes| bytes.min(flow.bytes)))
    }

    /// Bytes of ended and cancelled flows that went over a link.
    pub fn carried(&self, link: LinkId) -> Bytes {
        Bytes::new(self.links[link.index()].carried)
    }

    /// Fraction of a link that is in use now; 0 where it is cut.
    pub fn utilization(&mut self, link: LinkId) -> f64 {
        self.settle();
        let link = &self.links[link.index()];
        link.load as f64 / link.capacity.max(1) as f64
    }

    fn flow(&self, id: FlowId) -> &Flow {
        let flow = &self.flows[id.slot()];
        assert!(
            flow.live && flow.generation == id.generation(),
            "{id:?} has ended already"
        );
        flow
    }

    fn take_slot(&mut self, fresh: Flow) -> u32 {
        self.live += 1;
        if self.free_flow == NIL {
            self.flows.push(fresh);
            return self.flows.len() as u32 - 1;
        }
        let slot = self.free_flow;
        let old = &mut self.flows[slot as usize];
        self.free_flow = old.first;
        let generation = old.generation;
        *old = Flow {
            generation,
            ..fresh
        };
        slot
    }

    /// Puts a flow on its links. Returns whether it is alone on all of them.
    fn join(&mut self, slot: u32, route: &[LinkId]) -> bool {
        let hops = route.len();
        assert!(hops <= MOST_HOPS, "a route has at most {MOST_HOPS} links");
        let mut first = self.free_members[hops];
        if first == NIL {
            first = self.members.len() as u32;
            let unused = Member {
                link: NIL,
                flow: NIL,
                previous: NIL,
                next: NIL,
            };
            self.members.resize(self.members.len() + hops, unused);
        } else if hops > 0 {
            self.free_members[hops] = self.members[first as usize].next;
        }
        let weight = self.flows[slot as usize].weight;
        let mut alone = true;
        for (index, &LinkId(link)) in (first..).zip(route) {
            let place = &mut self.links[link as usize];
            alone &= place.count == 0 && !place.released;
            let next = place.first;
            debug_assert!(
                next == NIL || self.members[next as usize].flow != slot,
                "a route names a link once"
            );
            place.count += weight;
            place.first = index;
            self.members[index as usize] = Member {
                link,
                flow: slot,
                previous: NIL,
                next,
            };
            if next != NIL {
                self.members[next as usize].previous = index;
            }
        }
        self.flows[slot as usize].first = if hops == 0 { NIL } else { first };
        alone
    }

    /// The rate of a flow (or bundle) that meets nobody.
    fn run_alone(&mut self, slot: u32, cap: u64) {
        let Flow {
            first,
            hops,
            weight,
            ..
        } = self.flows[slot as usize];
        let members = first as usize..first as usize + usize::from(hops);
        let mut rate = cap;
        if hops > 0 {
            for member in &self.members[members.clone()] {
                rate = rate.min(self.links[member.link as usize].capacity / u64::from(weight));
            }
            for member in &self.members[members] {
                let link = &mut self.links[member.link as usize];
                link.load = rate * u64::from(weight);
                let full = link.capacity - link.load < u64::from(weight);
                link.level = if full { rate } else { FREE };
            }
        }
        self.flows[slot as usize].rate = rate;
        self.schedule(slot);
    }

    /// Takes a flow off its links and frees its slot.
    fn remove(&mut self, slot: u32, unsent: u64) {
        let Flow {
            first,
            hops,
            weight,
            rate,
            bytes,
            ..
        } = self.flows[slot as usize];
        let sent = (bytes - unsent) * u64::from(weight);
        let hops = u32::from(hops);
        for index in first..first.saturating_add(hops) {
            if hops == 0 {
                break;
            }
            let Member {
                link,
                previous,
                next,
                ..
            } = self.members[index as usize];
            match previous {
                NIL => self.links[link as usize].first = next,
                previous => self.members[previous as usize].next = next,
            }
            if next != NIL {
                self.members[next as usize].previous = previous;
            }
            let place = &mut self.links[link as usize];
            place.count -= weight;
            place.load -= rate * u64::from(weight);
            place.carried += sent;
            if place.count == 0 {
                place.level = FREE;
            } else if place.level != FREE {
                self.release(link);
            }
        }
        if hops > 0 {
            self.members[first as usize].next = self.free_members[hops as usize];
            self.free_members[hops as usize] = first;
        }
        let over = &mut self.flows[slot as usize];
        over.live = false;
        over.generation = over.generation.wrapping_add(1);
        over.first = self.free_flow;
        self.free_flow = slot;
        self.live -= 1;
    }

    fn release(&mut self, link: u32) {
        let place = &mut self.links[link as usize];
        if !place.released {
            place.released = true;
            self.released.push(link);
        }
    }

    /// Gives every flow that the changes since the last call have touched its fair rate.
    fn settle(&mut self) {
        if self.fresh.is_empty() && self.released.is_empty() {
            return;
        }
        let mut fill = std::mem::replace(&mut self.fill, Fill::new(0));
        fill.solve(self);
        for &slot in fill.affected() {
            let flow = &mut self.flows[slot as usize];
            flow.affected = false;
            let before = fill.rate_before(slot);
            if before == flow.rate && flow.ends != SimTime::MAX {
                continue;
            }
            let after = flow.rate;
            flow.rate = before;
            flow.left = left_at(flow, self.now);
            flow.rate = after;
            flow.at = self.now;
            self.schedule(slot);
        }
        fill.clear();
        self.fill = fill;
    }

    /// Computes the end of a flow whose rate is new, and puts it into the calendar.
    fn schedule(&mut self, slot: u32) {
        let Flow { left, rate, at, .. } = self.flows[slot as usize];
        let ends = match self.time_for(left, rate) {
            Some(ps) => SimTime::from_picos(at.as_picos().saturating_add(ps)),
            None => SimTime::MAX,
        };
        self.set_end(slot, ends);
    }

    fn set_end(&mut self, slot: u32, ends: SimTime) {
        self.flows[slot as usize].ends = ends;
        if ends != SimTime::MAX {
            self.calendar.push(ends, slot);
        }
    }

    /// Picoseconds that `left` takes at `rate`, rounded up; `None`: for ever.
    fn time_for(&mut self, left: u128, rate: u64) -> Option<u64> {
        if rate == 0 {
            return (left == 0).then_some(0);
        }
        if (left, rate) != (self.quotient.0, self.quotient.1) {
            let ps = u64::try_from(left.div_ceil(u128::from(rate))).unwrap_or(u64::MAX);
            self.quotient = (left, rate, ps);
        }
        Some(self.quotient.2).filter(|ps| *ps < u64::MAX)
    }
}

fn ends_at(flow: &Flow, at: SimTime) -> bool {
    flow.live && flow.ends == at
}

fn left_at(flow: &Flow, now: SimTime) -> u128 {
    let passed = now.since(flow.at).as_picos();
    flow.left
        .saturating_sub(u128::from(passed) * u128::from(flow.rate))
}
