//! Links of the fabric that many communications share, each of them a session of equal flows.
//!
//! The flows of one communication move together: the pipeline of a collective is as fast as its
//! slowest edge. So a communication is a *session* with one rate, that of each of its flows, which it
//! has on every link as often as it has flows there. Sessions share links max-min fairly, flow by
//! flow: this is the single-rate session of multicast (Rubenstein, Kurose, Towsley, "The impact of
//! multicast layering on network fairness", SIGCOMM 1999). No session can be faster without slowing
//! one whose flows are no faster. Each therefore has a bottleneck: its own cap, or a full link on
//! which no flow is faster.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Rates of flows are integers of 2^-12 bytes per second, so that sums are exact in any order.
const RATE_SHIFT: u32 = 12;
/// Progress of a session over that alone: fixed point with 32 bits, as in [`crate::FlowNet`].
const SHIFT: u32 = 32;

/// What a communication sends over the fabric.
#[derive(Debug, Clone, Copy)]
pub struct Crossing<'a> {
    /// Bytes of each of its flows.
    pub bytes: u64,
    /// The links of all of its flows, each once, with how many flows go over it.
    pub links: &'a [(u32, u32)],
}

impl Crossing<'_> {
    /// Stays below the leaf switches.
    pub const NONE: Self = Self {
        bytes: 0,
        links: &[],
    };
}

#[derive(Debug, Clone, Default)]
struct Link {
    /// What it carries, in units of rate.
    whole: u64,
    capacity: u64,
    /// What all sessions would send if nothing but their caps held them back.
    wanted: u128,
    /// Session, and index of its use of this link.
    members: Vec<(u32, u32)>,
    /// Its sessions are to be looked at.
    dirty: bool,
    /// Room and flows while rates are computed.
    room: u64,
    flows: u64,
    visited: bool,
}

impl Link {
    fn is_contended(&self) -> bool {
        self.wanted > u128::from(self.capacity)
    }

    fn level(&self) -> u64 {
        self.room / self.flows
    }
}

/// A session's use of one link.
#[derive(Debug, Clone, Copy)]
struct Use {
    link: u32,
    flows: u32,
    /// Index among the members of the link.
    member: u32,
}

#[derive(Debug, Clone, Default)]
struct Session {
    /// Rate of a flow when the communication runs as fast as alone.
    full: u64,
    /// Fraction of that which its ports grant.
    cap: u64,
    /// Fraction that it has.
    part: u64,
    uses: Vec<Use>,
    visited: bool,
    open: bool,
}

impl Session {
    /// Rate of a flow at a fraction of the full one.
    fn rate_at(&self, part: u64) -> u64 {
        ((u128::from(self.full) * u128::from(part)) >> SHIFT) as u64
    }

    /// Fraction of the full rate that this rate of a flow is.
    fn part_at(&self, rate: u64) -> u64 {
        if self.full == 0 {
            return self.cap;
        }
        let part = (u128::from(rate) << SHIFT) / u128::from(self.full);
        u64::try_from(part).unwrap_or(u64::MAX).min(self.cap)
    }
}

/// Links and the sessions on them, by slot of their flow in the net.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions {
    links: Vec<Link>,
    sessions: Vec<Session>,
    dirty: Vec<u32>,
    /// New sessions, and sessions whose cap has moved.
    pending: Vec<u32>,
    /// Sessions whose fraction has changed, with the new one.
    pub moved: Vec<(u32, u64)>,
    component: Vec<u32>,
    contended: Vec<u32>,
    heap: BinaryHeap<Reverse<(u64, u32)>>,
    by_cap: Vec<(u64, u32)>,
}

impl Sessions {
    /// Idle links with these capacities, in bytes per second.
    pub fn new(capacities: &[f64]) -> Self {
        let link = |capacity: &f64| {
            let units = (capacity * f64::from(1 << RATE_SHIFT)).round() as u64;
            Link {
                whole: units,
                capacity: units,
                ..Link::default()
            }
        };
        Self {
            links: capacities.iter().map(link).collect(),
            ..Self::default()
        }
    }

    /// The session of this slot begins; alone, its communication takes `picos`.
    pub fn start(&mut self, slot: u32, crossing: Crossing<'_>, picos: u64, cap: u64) {
        if self.sessions.len() <= slot as usize {
            self.sessions
                .resize_with(slot as usize + 1, Session::default);
        }
        let scaled = (u128::from(crossing.bytes) * 1_000_000_000_000) << RATE_SHIFT;
        let session = &mut self.sessions[slot as usize];
        // Rounded down, so that what just fits is not slowed.
        session.full = u64::try_from(scaled / u128::from(picos.max(1))).unwrap_or(u64::MAX);
        session.cap = cap;
        session.part = cap;
        session.open = true;
        session.uses.clear();
        for (index, &(number, flows)) in crossing.links.iter().enumerate() {
            let link = &mut self.links[number as usize];
            session.uses.push(Use {
                link: number,
                flows,
                member: link.members.len() as u32,
            });
            link.members.push((slot, index as u32));
        }
        self.want(slot, 0, cap);
        self.pending.push(slot);
    }

    /// The ports of this slot's flow grant another fraction of its full rate.
    pub fn set_cap(&mut self, slot: u32, cap: u64) {
        let before = self.sessions[slot as usize].cap;
        self.want(slot, before, cap);
        self.sessions[slot as usize].cap = cap;
        self.pending.push(slot);
    }

    /// The session of this slot is over.
    pub fn finish(&mut self, slot: u32) {
        let cap = self.sessions[slot as usize].cap;
        self.want(slot, cap, 0);
        let session = &mut self.sessions[slot as usize];
        session.open = false;
        let mut uses = std::mem::take(&mut session.uses);
        for used in &uses {
            let members = &mut self.links[used.link as usize].members;
            members.swap_remove(used.member as usize);
            if let Some(&(other, index)) = members.get(used.member as usize) {
                // A session is on a link once, so the one that has moved up is another.
                self.sessions[other as usize].uses[index as usize].member = used.member;
            }
        }
        uses.clear();
        self.sessions[slot as usize].uses = uses;
    }

    /// From now on a link carries this fraction of its capacity.
    pub fn set_capacity(&mut self, number: u32, fraction: f64) {
        let link = &mut self.links[number as usize];
        let before = link.is_contended();
        link.capacity = (link.whole as f64 * fraction.clamp(0.0, 1.0)).round() as u64;
        if before || link.is_contended() {
            mark(link, number, &mut self.dirty);
        }
    }

    /// A session's cap goes from one fraction to another.
    fn want(&mut self, slot: u32, before: u64, after: u64) {
        let session = &self.sessions[slot as usize];
        let (before, after) = (session.rate_at(before), session.rate_at(after));
        for used in &session.uses {
            let link = &mut self.links[used.link as usize];
            let was = link.is_contended();
            let flows = u128::from(used.flows);
            link.wanted = link.wanted + flows * u128::from(after) - flows * u128::from(before);
            if was || link.is_contended() {
                mark(link, used.link, &mut self.dirty);
            }
        }
    }

    /// Gives every session that the changes since the last call have touched its fair rate, and
    /// lists those whose fraction is another now in `moved`.
    pub fn settle(&mut self) {
        if self.pending.is_empty() && self.dirty.is_empty() {
            return;
        }
        self.gather();
        self.fill();
        for &slot in &self.component {
            self.sessions[slot as usize].visited = false;
        }
        self.component.clear();
    }

    /// Collects the sessions whose rates may change, and the contended links among them.
    fn gather(&mut self) {
        for index in 0..self.pending.len() {
            let slot = self.pending[index];
            self.visit(slot);
        }
        self.pending.clear();
        for index in 0..self.dirty.len() {
            let number = self.dirty[index];
            self.links[number as usize].dirty = false;
            for member in 0..self.links[number as usize].members.len() {
                let (slot, _) = self.links[number as usize].members[member];
                self.visit(slot);
            }
        }
        self.dirty.clear();
        let mut next = 0;
        while let Some(&slot) = self.component.get(next) {
            next += 1;
            for index in 0..self.sessions[slot as usize].uses.len() {
                let number = self.sessions[slot as usize].uses[index].link;
                let link = &mut self.links[number as usize];
                if link.visited || !link.is_contended() {
                    continue;
                }
                link.visited = true;
                link.room = link.capacity;
                link.flows = 0;
                self.contended.push(number);
                for member in 0..self.links[number as usize].members.len() {
                    let (slot, index) = self.links[number as usize].members[member];
                    let flows = self.sessions[slot as usize].uses[index as usize].flows;
                    self.links[number as usize].flows += u64::from(flows);
                    self.visit(slot);
                }
            }
        }
    }

    fn visit(&mut self, slot: u32) {
        let session = &mut self.sessions[slot as usize];
        if session.open && !session.visited {
            session.visited = true;
            self.component.push(slot);
        }
    }

    /// Progressive filling: all flows rise together until a link is full or a cap is reached; those
    /// stay where they are and the others rise on.
    fn fill(&mut self) {
        self.by_cap.clear();
        for &slot in &self.component {
            let session = &self.sessions[slot as usize];
            self.by_cap.push((session.rate_at(session.cap), slot));
        }
        self.by_cap.sort_unstable();
        self.heap.clear();
        for &number in &self.contended {
            let level = self.links[number as usize].level();
            self.heap.push(Reverse((level, number)));
        }
        // `visited` says from here on that a session still rises.
        let mut capped = 0;
        while capped < self.by_cap.len() {
            let Some(&Reverse((level, number))) = self.heap.peek() else {
                self.freeze_at_caps(&mut capped, u64::MAX);
                break;
            };
            let link = &self.links[number as usize];
            if link.flows == 0 {
                self.heap.pop();
            } else if link.level() > level {
                // Sessions have stopped since, at rates below the level.
                let level = link.level();
                self.heap.pop();
                self.heap.push(Reverse((level, number)));
            } else if self.by_cap[capped].0 <= level {
                self.freeze_at_caps(&mut capped, level);
            } else {
                self.heap.pop();
                self.freeze_on(number, level);
                while capped < self.by_cap.len() && !self.is_rising(self.by_cap[capped].1) {
                    capped += 1;
                }
            }
        }
        for &number in &self.contended {
            self.links[number as usize].visited = false;
        }
        self.contended.clear();
    }

    fn is_rising(&self, slot: u32) -> bool {
        self.sessions[slot as usize].visited
    }

    /// Stops the sessions whose cap is at most `level`.
    fn freeze_at_caps(&mut self, capped: &mut usize, level: u64) {
        while let Some(&(rate, slot)) = self.by_cap.get(*capped) {
            if rate > level {
                return;
            }
            *capped += 1;
            if self.is_rising(slot) {
                let part = self.sessions[slot as usize].cap;
                self.freeze(slot, rate, part);
            }
        }
    }

    /// Stops the sessions that still rise on a full link.
    fn freeze_on(&mut self, number: u32, level: u64) {
        for member in 0..self.links[number as usize].members.len() {
            let (slot, _) = self.links[number as usize].members[member];
            if self.is_rising(slot) {
                let part = self.sessions[slot as usize].part_at(level);
                self.freeze(slot, level, part);
            }
        }
    }

    fn freeze(&mut self, slot: u32, rate: u64, part: u64) {
        let session = &mut self.sessions[slot as usize];
        session.visited = false;
        if session.part != part {
            session.part = part;
            self.moved.push((slot, part));
        }
        for used in &session.uses {
            let link = &mut self.links[used.link as usize];
            if link.visited {
                let flows = u64::from(used.flows);
                link.room -= rate * flows;
                link.flows -= flows;
            }
        }
    }
}

fn mark(link: &mut Link, number: u32, dirty: &mut Vec<u32>) {
    if !link.dirty {
        link.dirty = true;
        dirty.push(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Demand, FlowId, FlowNet, Port};
    use proptest::prelude::*;
    use rackflow_units::{SimDuration, SimTime};

    /// One communication of a random scene.
    #[derive(Debug, Clone)]
    struct Sent {
        endpoint: u32,
        nic: u64,
        bytes: u64,
        links: Vec<(u32, u32)>,
    }

    /// What happens next.
    #[derive(Debug, Clone)]
    enum Act {
        Start(Sent),
        /// The communication at this place among those under way ends.
        End(usize),
        Capacity(u32, f64),
        Port(u32, f64),
    }

    const LINKS: u32 = 5;
    const ENDPOINTS: u32 = 3;
    const LATENCY: u64 = 1_000;

    fn sent() -> impl Strategy<Value = Sent> {
        let links = prop::collection::btree_map(0..LINKS, 1..5_u32, 0..=LINKS as usize);
        (0..ENDPOINTS, 1_000..100_000_u64, 1..1_000_u64, links).prop_map(
            |(endpoint, nic, bytes, links)| Sent {
                endpoint,
                nic,
                bytes,
                links: links.into_iter().collect(),
            },
        )
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => sent().prop_map(Act::Start),
            2 => (0..8_usize).prop_map(Act::End),
            1 => (0..LINKS, 0.0..1.0_f64).prop_map(|(link, part)| Act::Capacity(link, part)),
            1 => (0..ENDPOINTS, 0.1..1.0_f64).prop_map(|(port, part)| Act::Port(port, part)),
        ]
    }

    /// The obvious version: from nothing, in floating point. Rates over the full ones.
    fn slow(sent: &[Sent], caps: &[f64], capacities: &[f64]) -> Vec<f64> {
        let full: Vec<f64> = sent
            .iter()
            .map(|s| s.bytes as f64 / ((s.nic + LATENCY) as f64 * 1e-12))
            .collect();
        let mut parts: Vec<Option<f64>> = vec![None; sent.len()];
        loop {
            let mut level = f64::INFINITY;
            for (link, capacity) in capacities.iter().enumerate() {
                let (mut room, mut flows) = (*capacity, 0.0);
                for (index, session) in sent.iter().enumerate() {
                    let on = session.links.iter().find(|on| on.0 == link as u32);
                    match (on, parts[index]) {
                        (None, _) => {}
                        (Some((_, count)), Some(part)) => {
                            room -= part * full[index] * f64::from(*count);
                        }
                        (Some((_, count)), None) => flows += f64::from(*count),
                    }
                }
                if flows > 0.0 {
                    level = level.min((room / flows).max(0.0));
                }
            }
            let open = || (0..sent.len()).filter(|index| parts[*index].is_none());
            let lowest_cap = open()
                .map(|index| caps[index] * full[index])
                .fold(f64::INFINITY, f64::min);
            if open().next().is_none() {
                return parts.into_iter().flatten().collect();
            }
            if lowest_cap <= level {
                let at_cap: Vec<usize> = open()
                    .filter(|index| caps[*index] * full[*index] <= level)
                    .collect();
                for index in at_cap {
                    parts[index] = Some(caps[index]);
                }
                continue;
            }
            // Those on a full link stop.
            let full_link = |link: u32| {
                let (mut room, mut flows) = (capacities[link as usize], 0.0);
                for (index, session) in sent.iter().enumerate() {
                    if let Some((_, count)) = session.links.iter().find(|on| on.0 == link) {
                        match parts[index] {
                            Some(part) => room -= part * full[index] * f64::from(*count),
                            None => flows += f64::from(*count),
                        }
                    }
                }
                flows > 0.0 && (room / flows).max(0.0) <= level * (1.0 + 1e-12) + 1e-9
            };
            let stop: Vec<usize> = open()
                .filter(|index| sent[*index].links.iter().any(|on| full_link(on.0)))
                .collect();
            for index in stop {
                parts[index] = Some(level / full[index]);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        /// What arrives is what was sent, over every link: the rates of a flow, each for as long as it
        /// lasted, sum to its bytes when it ends, however often others come and go and links change.
        #[test]
        fn bytes_sent_are_bytes_received(
            acts in prop::collection::vec((act(), 0..60_000_u64), 1..25),
            whole in prop::collection::vec(1e10..2e11_f64, LINKS as usize),
        ) {
            let mut net = FlowNet::with_links(ENDPOINTS as usize, &whole);
            let mut changed = Vec::new();
            // Flow, its bytes, and those that have arrived.
            let mut under_way: Vec<(FlowId, Sent, f64)> = Vec::new();
            let mut now = SimTime::ZERO;
            let mut ended = 0;
            let pass = |net: &FlowNet, under_way: &mut Vec<(FlowId, Sent, f64)>, from: SimTime, to: SimTime| {
                let seconds = to.since(from).as_secs_f64();
                for (id, sent, arrived) in under_way.iter_mut() {
                    let full = sent.bytes as f64 / ((sent.nic + LATENCY) as f64 * 1e-12);
                    *arrived += net.rate(*id) * full * seconds;
                }
            };
            let mut acts = acts.into_iter();
            let mut coming = acts.next().map(|(act, after)| (act, now + SimDuration::from_picos(after)));
            loop {
                let next_end = under_way.iter().map(|(id, ..)| net.ends(*id)).min();
                let act_at = coming.as_ref().map(|(_, at)| *at);
                match (next_end, act_at) {
                    (Some(end), at) if end < SimTime::MAX && at.is_none_or(|at| end <= at) => {
                        pass(&net, &mut under_way, now, end);
                        now = end;
                        let index = under_way.iter().position(|(id, ..)| net.ends(*id) == end).expect("it is there");
                        let (id, sent, arrived) = under_way.remove(index);
                        net.finish(now, id, &mut changed);
                        ended += 1;
                        let bytes = sent.bytes as f64;
                        // Ends are rounded up to a picosecond, at a full rate of at most 5e11 bytes per second.
                        prop_assert!((arrived - bytes).abs() < 1.0 + 1e-5 * bytes, "{arrived} of {bytes}");
                    }
                    (_, Some(at)) => {
                        pass(&net, &mut under_way, now, at);
                        now = at;
                        match coming.take().expect("something comes").0 {
                            Act::Start(sent) => {
                                let demand = Demand {
                                    latency: SimDuration::from_picos(LATENCY),
                                    nic: SimDuration::from_picos(sent.nic),
                                    ..Demand::NONE
                                };
                                let crossing = Crossing { bytes: sent.bytes, links: &sent.links };
                                let id = net.start_over(now, &[sent.endpoint], &demand, crossing, &mut changed);
                                under_way.push((id, sent, 0.0));
                            }
                            Act::Capacity(link, part) => {
                                net.set_capacity(now, Port::Shared(link), part.max(0.05), &mut changed);
                            }
                            Act::Port(port, part) => net.set_capacity(now, Port::Nic(port), part, &mut changed),
                            Act::End(_) => {}
                        }
                        coming = acts.next().map(|(act, after)| (act, now + SimDuration::from_picos(after)));
                    }
                    _ => break,
                }
            }
            prop_assert!(under_way.is_empty(), "every flow ends; {ended} did");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1_500, failure_persistence: None, ..ProptestConfig::default() })]

        /// The incremental net and the obvious one agree after every change; no link is ever
        /// over-full; and every session has a bottleneck: its cap, or a full link on which nobody
        /// is faster.
        #[test]
        fn sessions_are_shared_as_the_obvious_version_says(
            acts in prop::collection::vec(act(), 1..30),
            whole in prop::collection::vec(1e9..2e11_f64, LINKS as usize),
        ) {
            let mut net = FlowNet::with_links(ENDPOINTS as usize, &whole);
            let mut twin = FlowNet::new(ENDPOINTS as usize);
            let mut capacities = whole.clone();
            let mut under_way: Vec<(FlowId, FlowId, Sent)> = Vec::new();
            let mut changed = Vec::new();
            let now = SimTime::ZERO;
            for act in acts {
                match act {
                    Act::Start(sent) => {
                        let demand = Demand {
                            latency: SimDuration::from_picos(LATENCY),
                            nic: SimDuration::from_picos(sent.nic),
                            ..Demand::NONE
                        };
                        let crossing = Crossing { bytes: sent.bytes, links: &sent.links };
                        let ends = [sent.endpoint];
                        let id = net.start_over(now, &ends, &demand, crossing, &mut changed);
                        let alone = twin.start(now, &ends, &demand, &mut changed);
                        under_way.push((id, alone, sent));
                    }
                    Act::End(index) if index < under_way.len() => {
                        let (id, alone, _) = under_way.remove(index);
                        net.finish(now, id, &mut changed);
                        twin.finish(now, alone, &mut changed);
                    }
                    Act::End(_) => {}
                    Act::Capacity(link, part) => {
                        capacities[link as usize] = whole[link as usize] * part;
                        net.set_capacity(now, Port::Shared(link), part, &mut changed);
                    }
                    Act::Port(port, part) => {
                        net.set_capacity(now, Port::Nic(port), part, &mut changed);
                        twin.set_capacity(now, Port::Nic(port), part, &mut changed);
                    }
                }
                let sent: Vec<Sent> = under_way.iter().map(|(_, _, sent)| sent.clone()).collect();
                // What the ports grant is what a net without links gives.
                let caps: Vec<f64> = under_way.iter().map(|(_, alone, _)| twin.rate(*alone)).collect();
                let rates: Vec<f64> = under_way.iter().map(|(id, _, _)| net.rate(*id)).collect();
                let expected = slow(&sent, &caps, &capacities);
                for (rate, expected) in rates.iter().zip(&expected) {
                    prop_assert!((rate - expected).abs() <= 1e-6 * expected + 1e-8, "{rates:?} {expected:?}");
                }
                let flow = |index: usize| {
                    let s = &sent[index];
                    rates[index] * s.bytes as f64 / ((s.nic + LATENCY) as f64 * 1e-12)
                };
                let load = |link: u32| -> f64 {
                    let on = |s: &Sent| s.links.iter().find(|on| on.0 == link).map_or(0.0, |on| f64::from(on.1));
                    (0..sent.len()).map(|index| flow(index) * on(&sent[index])).sum()
                };
                for (link, capacity) in capacities.iter().enumerate() {
                    prop_assert!(load(link as u32) <= capacity * (1.0 + 1e-9) + 1.0);
                }
                for (index, session) in sent.iter().enumerate() {
                    let capped = rates[index] >= caps[index] * (1.0 - 1e-9);
                    let held = session.links.iter().any(|(link, _)| {
                        let full = load(*link) >= capacities[*link as usize] * (1.0 - 1e-6) - 1e4;
                        let fastest = (0..sent.len())
                            .filter(|other| sent[*other].links.iter().any(|on| on.0 == *link))
                            .map(flow)
                            .fold(0.0, f64::max);
                        full && flow(index) >= fastest * (1.0 - 1e-6) - 1e3
                    });
                    prop_assert!(capped || held, "{index} of {rates:?} has no bottleneck");
                }
            }
        }
    }
}
