//! Water-filling: the fair rates of the flows that a change affects.

use super::{FREE, FairNet, Flow, NIL};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What a link has for the affected flows.
#[derive(Debug, Clone, Copy)]
struct Share {
    /// Capacity that the other flows and those already fixed leave.
    room: u64,
    /// Affected flows without a rate.
    open: u32,
    /// The level before the change.
    before: u64,
    /// Highest rate that an affected flow has here.
    fastest: u64,
    touched: bool,
}

const UNTOUCHED: Share = Share {
    room: 0,
    open: 0,
    before: FREE,
    fastest: 0,
    touched: false,
};

/// Working memory of [`FairNet::settle`].
#[derive(Debug, Clone)]
pub(super) struct Fill {
    shares: Vec<Share>,
    touched: Vec<u32>,
    affected: Vec<u32>,
    /// Rate before the change, by slot; meaningful for affected flows.
    before: Vec<u64>,
    /// Touched links by what they can give each open flow, and how many are taken.
    order: Vec<(u64, u32)>,
    taken: usize,
    /// Those that turned out to give more when their turn came.
    heap: BinaryHeap<Reverse<(u64, u32)>>,
    /// Affected flows that have a cap, lowest first.
    capped: Vec<(u64, u32)>,
}

impl Fill {
    pub(super) fn new(links: usize) -> Self {
        Self {
            shares: vec![UNTOUCHED; links],
            touched: Vec::new(),
            affected: Vec::new(),
            before: Vec::new(),
            order: Vec::new(),
            taken: 0,
            heap: BinaryHeap::new(),
            capped: Vec::new(),
        }
    }

    pub(super) fn affected(&self) -> &[u32] {
        &self.affected
    }

    pub(super) fn rate_before(&self, slot: u32) -> u64 {
        self.before[slot as usize]
    }

    pub(super) fn clear(&mut self) {
        for &link in &self.touched {
            self.shares[link as usize] = UNTOUCHED;
        }
        self.touched.clear();
        self.affected.clear();
    }

    /// Finds the flows that the changes affect and gives them their rates. The set begins with
    /// the new flows and those that a link with new room held back. It grows by every flow that
    /// the new rates deprive of its bottleneck, or that they leave faster than its link's level,
    /// until every flow has a bottleneck again.
    pub(super) fn solve(&mut self, net: &mut FairNet) {
        self.before.resize(net.flows.len(), 0);
        for slot in std::mem::take(&mut net.fresh) {
            if net.flows[slot as usize].live {
                self.affect(net, slot);
            }
        }
        for link in std::mem::take(&mut net.released) {
            let place = &mut net.links[link as usize];
            place.released = false;
            let level = place.level;
            self.touch(net, link);
            self.affect_where(net, link, |rate| rate >= level);
            net.links[link as usize].level = FREE;
        }
        loop {
            self.fill(net);
            let known = self.affected.len();
            self.check(net);
            if self.affected.len() == known {
                return;
            }
            // Take the rates of the set back and fill again with the newcomers.
            for index in 0..known {
                self.unfix(net, self.affected[index]);
            }
        }
    }

    fn touch(&mut self, net: &FairNet, link: u32) {
        let share = &mut self.shares[link as usize];
        if !share.touched {
            share.touched = true;
            share.before = net.links[link as usize].level;
            self.touched.push(link);
        }
    }

    /// Adds a flow to the set and takes its load off its links.
    fn affect(&mut self, net: &mut FairNet, slot: u32) {
        let flow = &mut net.flows[slot as usize];
        if flow.affected {
            return;
        }
        flow.affected = true;
        self.before[slot as usize] = flow.rate;
        self.affected.push(slot);
        self.unfix(net, slot);
    }

    fn unfix(&mut self, net: &mut FairNet, slot: u32) {
        let flow = &mut net.flows[slot as usize];
        let load = flow.rate * u64::from(flow.weight);
        flow.rate = 0;
        let (first, hops) = (flow.first as usize, usize::from(flow.hops));
        if hops == 0 {
            return;
        }
        for index in first..first + hops {
            let link = net.members[index].link;
            net.links[link as usize].load -= load;
            self.touch(net, link);
        }
    }

    /// Adds the flows of a link whose rate is `wanted`.
    fn affect_where(&mut self, net: &mut FairNet, link: u32, wanted: impl Fn(u64) -> bool) {
        let mut next = net.links[link as usize].first;
        while next != NIL {
            let member = net.members[next as usize];
            next = member.next;
            let flow = &net.flows[member.flow as usize];
            if !flow.affected && wanted(flow.rate) {
                self.affect(net, member.flow);
            }
        }
    }

    /// Gives the set its fair rates beside the flows outside it, whose rates stand.
    fn fill(&mut self, net: &mut FairNet) {
        self.open(net);
        let mut capped = 0;
        while let Some((key, link)) = self.next_link() {
            let Share { room, open, .. } = self.shares[link as usize];
            if open == 0 {
                self.take_link(key, link);
                continue;
            }
            // Rates that were fixed since only raised it: what is shared is less than its part.
            let share = room / u64::from(open);
            if share > key {
                self.take_link(key, link);
                self.heap.push(Reverse((share, link)));
                continue;
            }
            if let Some(&(cap, slot)) = self.capped.get(capped)
                && cap <= share
            {
                capped += 1;
                if net.flows[slot as usize].rate == 0 {
                    self.fix(net, slot, cap);
                }
                continue;
            }
            self.take_link(key, link);
            net.links[link as usize].level = share;
            let mut next = net.links[link as usize].first;
            while next != NIL {
                let member = net.members[next as usize];
                next = member.next;
                if is_open(&net.flows[member.flow as usize]) {
                    self.fix(net, member.flow, share);
                }
            }
        }
        // Those over no link at all.
        for index in capped..self.capped.len() {
            let (cap, slot) = self.capped[index];
            if is_open(&net.flows[slot as usize]) {
                self.fix(net, slot, cap);
            }
        }
        self.capped.clear();
        for &slot in &self.affected {
            let flow = &mut net.flows[slot as usize];
            if flow.rate == STALLED {
                flow.rate = 0;
            }
        }
    }

    /// The link that can give least.
    fn next_link(&self) -> Option<(u64, u32)> {
        let sorted = self.order.get(self.taken).copied();
        let pushed = self.heap.peek().map(|Reverse(link)| *link);
        match (sorted, pushed) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Takes what [`next_link`](Self::next_link) has just named.
    fn take_link(&mut self, key: u64, link: u32) {
        if self.order.get(self.taken) == Some(&(key, link)) {
            self.taken += 1;
        } else {
            self.heap.pop();
        }
    }

    /// Counts the open flows of every touched link and queues the links.
    fn open(&mut self, net: &mut FairNet) {
        for &link in &self.touched {
            let share = &mut self.shares[link as usize];
            let place = &mut net.links[link as usize];
            share.room = place.capacity.saturating_sub(place.load);
            share.open = 0;
            share.fastest = 0;
            place.level = FREE;
        }
        for &slot in &self.affected {
            let flow = &net.flows[slot as usize];
            if flow.cap != FREE {
                self.capped.push((flow.cap, slot));
            }
            let first = flow.first as usize;
            for index in 0..usize::from(flow.hops) {
                let link = net.members[first + index].link;
                self.shares[link as usize].open += flow.weight;
            }
        }
        self.capped.sort_unstable();
        self.heap.clear();
        self.order.clear();
        self.taken = 0;
        for &link in &self.touched {
            let Share { room, open, .. } = self.shares[link as usize];
            if open > 0 {
                self.order.push((room / u64::from(open), link));
            }
        }
        // A sort walks memory in order, which a heap of as many links does not.
        self.order.sort_unstable();
    }

    fn fix(&mut self, net: &mut FairNet, slot: u32, rate: u64) {
        let flow = &mut net.flows[slot as usize];
        flow.rate = if rate == 0 { STALLED } else { rate };
        let load = rate * u64::from(flow.weight);
        let (first, hops) = (flow.first as usize, usize::from(flow.hops));
        for index in 0..hops {
            let link = net.members[first + index].link;
            let share = &mut self.shares[link as usize];
            share.room -= load;
            share.open -= flow.weight;
            share.fastest = share.fastest.max(rate);
            net.links[link as usize].load += load;
        }
    }

    /// Adds to the set the flows outside it that have lost their bottleneck or are too fast.
    fn check(&mut self, net: &mut FairNet) {
        for index in 0..self.touched.len() {
            let link = self.touched[index];
            let Share {
                before, fastest, ..
            } = self.shares[link as usize];
            let place = &mut net.links[link as usize];
            // A link that no affected flow filled is still full of the others where no room is
            // left, and holds them back unless somebody is faster than they.
            let full = place.capacity.saturating_sub(place.load) < u64::from(place.count);
            if place.level == FREE && before != FREE && full && fastest <= before {
                place.level = before;
            }
            let level = place.level;
            if level == before {
                continue;
            }
            if level == FREE || (before != FREE && level > before) {
                self.affect_where(net, link, |rate| rate >= before);
            }
            if level != FREE {
                self.affect_where(net, link, |rate| rate > level);
            }
        }
    }
}

/// Stands for a rate of zero that is decided.
const STALLED: u64 = u64::MAX;

/// Whether an affected flow has no rate yet.
fn is_open(flow: &Flow) -> bool {
    flow.affected && flow.rate == 0
}
