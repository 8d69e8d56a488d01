//! Who gets how much of which port: max-min fair parts of full rate.
//!
//! A *port* is anything that flows share: a side of a rank's NVLink port or NIC, a directed link of
//! the fabric. A communication alone runs at part 1 and then *uses* a part of each of its ports.
//! Its flows move together, since the pipeline of a collective is as fast as its slowest edge: it
//! is a single-rate session (Rubenstein, Kurose, Towsley, "The impact of multicast layering on network
//! fairness", SIGCOMM 1999) with one part on all of its ports. Parts are max-min fair: none can be larger
//! without taking from one that is no larger. Since a communication uses the whole of the port that
//! bounds it, equal parts are equal dominant shares (Ghodsi and others, "Dominant resource fairness",
//! NSDI 2011).
//!
//! # Exactness
//! A port's *level* is the part of those whom it holds back: what the others leave of it, over what
//! they would use, rounded down to 2^-44. Levels that only this rounding tells apart, on ports with a flow in
//! common, are one, the lowest of them. By induction from the lowest level up, one set of flows then has one
//! set of parts, in whatever order they came.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Parts of full rate: fixed point with 44 bits after the point, far finer than times need.
pub(crate) const SHIFT: u32 = 44;
/// Full rate.
pub(crate) const ONE: u64 = 1 << SHIFT;
/// Uses of a port: fixed point with 32 bits, coarser than parts, so that levels that differ at all
/// differ by more than the rounding of parts.
pub(crate) const USE_SHIFT: u32 = 32;
/// All of a port.
pub(crate) const WHOLE: u64 = 1 << USE_SHIFT;
const NIL: u32 = u32::MAX;
/// Ports up to which looking through all is faster than a heap.
const FEW: usize = 16;

/// The part of those whom a port holds back.
#[derive(Debug, Clone, Copy)]
struct Level {
    part: u64,
    /// By how much rounding may have moved it.
    slack: u64,
}

/// Holds nobody back.
const FREE: Level = Level {
    part: u64::MAX,
    slack: 0,
};

impl Level {
    fn is_free(self) -> bool {
        self.part == u64::MAX
    }

    /// Whether nothing but rounding tells a part from it.
    fn is_near(self, part: u64) -> bool {
        self.part.abs_diff(part) <= self.slack
    }

    /// Whether a part is no smaller.
    fn is_reached(self, part: u64) -> bool {
        part.saturating_add(self.slack) >= self.part
    }
}

#[derive(Debug, Clone, Copy)]
struct Port {
    /// What of it works, of [`WHOLE`].
    capacity: u64,
    /// What its active flows use at full rate.
    wanted: u64,
    /// They ask for more than it has. Only then it can hold anybody back, and only then its load is kept.
    contended: bool,
    /// What they use at their parts.
    load: u128,
    level: Level,
    first: u32,
    /// Its flows are to be looked at.
    released: bool,
    /// It is among those whose levels are computed.
    touched: bool,
}

// A port is one line of the processor's cache: steps of a hundred thousand ranks wait for memory.
const _: () = assert!(size_of::<Port>() == 64);

/// What is known of a port while parts are computed.
#[derive(Debug, Clone, Copy)]
struct Work {
    /// Its level before.
    before: Level,
    /// What is left of it for flows without a part.
    room: u128,
    /// What those would use at full rate.
    open: u64,
}

/// One flow on one port; a link of three lists.
#[derive(Debug, Clone, Copy)]
struct Member {
    flow: u32,
    port: u32,
    of_flow_next: u32,
    of_port_next: u32,
    of_port_previous: u32,
    /// Among the flow's contended ports, while it is active.
    contended_next: u32,
    contended_previous: u32,
    /// What it uses at full rate.
    used: u64,
}

#[derive(Debug, Clone, Copy)]
struct Sharer {
    first: u32,
    /// The first of its contended ports.
    contended: u32,
    part: u64,
    active: bool,
    // While parts are computed:
    affected: bool,
    open: bool,
    before: u64,
}

const NOBODY: Sharer = Sharer {
    first: NIL,
    contended: NIL,
    part: 0,
    active: false,
    affected: false,
    open: false,
    before: 0,
};

/// Ports and the flows on them, by slot.
#[derive(Debug, Clone)]
pub(crate) struct Shares {
    ports: Vec<Port>,
    work: Vec<Work>,
    flows: Vec<Sharer>,
    members: Vec<Member>,
    free_member: u32,
    fresh: Vec<u32>,
    released: Vec<u32>,
    affected: Vec<u32>,
    touched: Vec<u32>,
    /// Affected flows that are yet to be given a part.
    without_part: usize,
    /// Ports by what they can give: few are looked through, many are a heap.
    few: Vec<(u64, u32)>,
    heap: BinaryHeap<Reverse<(u64, u32)>>,
    /// Flows whose part is another now, with the new one.
    pub moved: Vec<(u32, u64)>,
}

impl Shares {
    /// So many idle ports.
    pub fn new(ports: usize) -> Self {
        let idle = Port {
            capacity: WHOLE,
            wanted: 0,
            contended: false,
            load: 0,
            level: FREE,
            first: NIL,
            released: false,
            touched: false,
        };
        let unknown = Work {
            before: FREE,
            room: 0,
            open: 0,
        };
        Self {
            ports: vec![idle; ports],
            work: vec![unknown; ports],
            flows: Vec::new(),
            members: Vec::new(),
            free_member: NIL,
            fresh: Vec::new(),
            released: Vec::new(),
            affected: Vec::new(),
            touched: Vec::new(),
            without_part: 0,
            few: Vec::new(),
            heap: BinaryHeap::new(),
            moved: Vec::new(),
        }
    }

    /// The part that a flow has.
    pub fn part(&self, slot: u32) -> u64 {
        self.flows[slot as usize].part
    }

    /// A flow on this port, if there is one.
    pub fn on(&self, port: u32) -> Option<u32> {
        let first = self.ports[port as usize].first;
        (first != NIL).then(|| self.members[first as usize].flow)
    }

    /// A slot without ports.
    pub fn open(&mut self, slot: u32) {
        if self.flows.len() <= slot as usize {
            self.flows.resize(slot as usize + 1, NOBODY);
        }
        self.flows[slot as usize] = NOBODY;
    }

    /// Puts a flow that is not active on a port; it would use `used` of it.
    pub fn join(&mut self, slot: u32, port: u32, used: u64) {
        let next = self.ports[port as usize].first;
        let member = Member {
            flow: slot,
            port,
            of_flow_next: self.flows[slot as usize].first,
            of_port_next: next,
            of_port_previous: NIL,
            contended_next: NIL,
            contended_previous: NIL,
            used,
        };
        let index = if self.free_member == NIL {
            self.members.push(member);
            self.members.len() as u32 - 1
        } else {
            let index = self.free_member;
            self.free_member = self.members[index as usize].of_flow_next;
            self.members[index as usize] = member;
            index
        };
        if next != NIL {
            self.members[next as usize].of_port_previous = index;
        }
        self.flows[slot as usize].first = index;
        self.ports[port as usize].first = index;
    }

    /// From now on the flow uses its ports. Its part is known after [`settle`](Self::settle).
    pub fn activate(&mut self, slot: u32) {
        let flow = &mut self.flows[slot as usize];
        flow.active = true;
        flow.part = 0;
        let mut next = flow.first;
        while next != NIL {
            let index = next;
            let member = self.members[index as usize];
            next = member.of_flow_next;
            let port = &mut self.ports[member.port as usize];
            port.wanted += member.used;
            if port.contended {
                self.link(index);
            } else if port.wanted > port.capacity {
                self.contend(member.port);
            }
        }
        let flow = &mut self.flows[slot as usize];
        if flow.contended == NIL {
            flow.part = ONE;
        } else {
            self.fresh.push(slot);
        }
    }

    /// The flow stays on its ports and uses nothing of them.
    pub fn deactivate(&mut self, slot: u32) {
        let mut next = self.flows[slot as usize].first;
        while next != NIL {
            self.give_back(next);
            next = self.members[next as usize].of_flow_next;
        }
        self.flows[slot as usize].active = false;
    }

    /// Takes the flow off its ports.
    pub fn remove(&mut self, slot: u32) {
        let Sharer { first, active, .. } = self.flows[slot as usize];
        let mut next = first;
        while next != NIL {
            let index = next;
            let member = self.members[index as usize];
            next = member.of_flow_next;
            if active {
                self.give_back(index);
            }
            match member.of_port_previous {
                NIL => self.ports[member.port as usize].first = member.of_port_next,
                previous => self.members[previous as usize].of_port_next = member.of_port_next,
            }
            if member.of_port_next != NIL {
                self.members[member.of_port_next as usize].of_port_previous =
                    member.of_port_previous;
            }
            self.members[index as usize].of_flow_next = self.free_member;
            self.free_member = index;
        }
        self.flows[slot as usize] = NOBODY;
    }

    /// What works of a port, from 0 to 1.
    pub fn set_capacity(&mut self, number: u32, fraction: f64) {
        let port = &mut self.ports[number as usize];
        port.capacity = (fraction.clamp(0.0, 1.0) * WHOLE as f64).round() as u64;
        let before = port.contended;
        let after = port.wanted > port.capacity;
        match (before, after) {
            (false, false) => return,
            (false, true) => self.contend(number),
            (true, false) => self.relax(number),
            (true, true) => {}
        }
        // Nobody is below this level: all are looked at.
        self.ports[number as usize].level = Level { part: 0, slack: 0 };
        self.release(number);
    }

    /// A member uses nothing of its port any more.
    fn give_back(&mut self, index: u32) {
        let member = self.members[index as usize];
        let port = &mut self.ports[member.port as usize];
        port.wanted -= member.used;
        if !port.contended {
            return;
        }
        port.load -= product(member.used, self.flows[member.flow as usize].part);
        let relaxed = port.wanted <= port.capacity;
        if !port.level.is_free() {
            self.release(member.port);
        }
        if relaxed {
            self.relax(member.port);
        } else {
            self.unlink(index);
        }
    }

    /// A port is asked for more than it has from now on.
    fn contend(&mut self, number: u32) {
        let mut load = 0;
        let mut next = self.ports[number as usize].first;
        while next != NIL {
            let member = self.members[next as usize];
            let flow = &self.flows[member.flow as usize];
            if flow.active {
                load += product(member.used, flow.part);
                self.link(next);
            }
            next = member.of_port_next;
        }
        let port = &mut self.ports[number as usize];
        port.contended = true;
        port.load = load;
    }

    /// A port has enough for all from now on.
    fn relax(&mut self, number: u32) {
        let mut next = self.ports[number as usize].first;
        while next != NIL {
            let member = self.members[next as usize];
            if self.flows[member.flow as usize].active {
                self.unlink(next);
            }
            next = member.of_port_next;
        }
        self.ports[number as usize].contended = false;
    }

    /// Puts a member among the contended ones of its flow.
    fn link(&mut self, index: u32) {
        let flow = &mut self.flows[self.members[index as usize].flow as usize];
        let next = std::mem::replace(&mut flow.contended, index);
        let member = &mut self.members[index as usize];
        member.contended_next = next;
        member.contended_previous = NIL;
        if next != NIL {
            self.members[next as usize].contended_previous = index;
        }
    }

    fn unlink(&mut self, index: u32) {
        let Member {
            flow,
            contended_next: next,
            contended_previous: previous,
            ..
        } = self.members[index as usize];
        match previous {
            NIL => self.flows[flow as usize].contended = next,
            previous => self.members[previous as usize].contended_next = next,
        }
        if next != NIL {
            self.members[next as usize].contended_previous = previous;
        }
    }

    fn release(&mut self, number: u32) {
        let port = &mut self.ports[number as usize];
        if !port.released {
            port.released = true;
            self.released.push(number);
        }
    }

    /// Adds what a flow uses at its part to its ports.
    fn put_on(&mut self, slot: u32) {
        let Sharer {
            contended, part, ..
        } = self.flows[slot as usize];
        let mut next = contended;
        while next != NIL {
            let member = &self.members[next as usize];
            let port = &mut self.ports[member.port as usize];
            let load = product(member.used, part);
            port.load += load;
            let work = &mut self.work[member.port as usize];
            work.room -= load;
            work.open -= member.used;
            next = member.contended_next;
        }
    }

    /// Gives every flow that the changes since the last call have touched its fair part, and lists
    /// those whose part is another now in `moved`.
    ///
    /// Computed are the new flows and those that a port with new room held back, beside the others,
    /// whose parts stand. Flows that this deprives of their bottleneck, or that are larger than a port's
    /// level allows, are then computed as well, until nobody is left.
    pub fn settle(&mut self) {
        if self.fresh.is_empty() && self.released.is_empty() {
            return;
        }
        for index in 0..self.fresh.len() {
            let slot = self.fresh[index];
            self.affect(slot);
            // Whoever is at full rate beside it will hardly stay there: looked at now, and not after a
            // first filling without them. Looking at more flows never changes a part.
            let mut next = self.flows[slot as usize].contended;
            while next != NIL {
                let member = self.members[next as usize];
                self.affect_where(member.port, |part| part == ONE);
                next = member.contended_next;
            }
        }
        self.fresh.clear();
        for index in 0..self.released.len() {
            let number = self.released[index];
            let port = &mut self.ports[number as usize];
            let level = std::mem::replace(&mut port.level, FREE);
            port.released = false;
            self.work[number as usize].before = FREE;
            let mut next = self.ports[number as usize].first;
            while next != NIL {
                let member = self.members[next as usize];
                let part = self.flows[member.flow as usize].part;
                // Whom another port holds back as well, this one's new room does not help.
                if level.is_reached(part) && !(level.is_near(part) && self.is_held(member.flow)) {
                    self.affect(member.flow);
                }
                next = member.of_port_next;
            }
        }
        self.released.clear();
        loop {
            self.fill();
            let known = self.affected.len();
            self.check();
            if self.affected.len() == known {
                break;
            }
            for index in 0..known {
                self.take_off(self.affected[index]);
            }
        }
        for index in 0..self.touched.len() {
            self.ports[self.touched[index] as usize].touched = false;
        }
        self.touched.clear();
        for index in 0..self.affected.len() {
            let slot = self.affected[index];
            let flow = &mut self.flows[slot as usize];
            flow.affected = false;
            if flow.part != flow.before {
                self.moved.push((slot, flow.part));
            }
        }
        self.affected.clear();
    }

    /// Adds a flow to those whose parts are computed.
    fn affect(&mut self, slot: u32) {
        let flow = &mut self.flows[slot as usize];
        if flow.affected || !flow.active {
            return;
        }
        flow.affected = true;
        flow.before = flow.part;
        self.affected.push(slot);
        self.take_off(slot);
    }

    /// Adds the flows of a port whose part is `wanted`.
    fn affect_where(&mut self, port: u32, wanted: impl Fn(u64) -> bool) {
        let mut next = self.ports[port as usize].first;
        while next != NIL {
            let member = self.members[next as usize];
            if wanted(self.flows[member.flow as usize].part) {
                self.affect(member.flow);
            }
            next = member.of_port_next;
        }
    }

    /// Takes what an affected flow uses off its ports.
    fn take_off(&mut self, slot: u32) {
        let Sharer {
            contended, part, ..
        } = self.flows[slot as usize];
        let mut next = contended;
        while next != NIL {
            let member = &self.members[next as usize];
            let port = &mut self.ports[member.port as usize];
            port.load -= product(member.used, part);
            if !port.touched {
                port.touched = true;
                self.work[member.port as usize].before = port.level;
                self.touched.push(member.port);
            }
            next = member.contended_next;
        }
        self.flows[slot as usize].part = 0;
    }

    /// Progressive filling of the affected flows: all grow together until a port is full; those on
    /// it stay where they are and the others grow on.
    fn fill(&mut self) {
        for index in 0..self.touched.len() {
            let number = self.touched[index] as usize;
            let port = &mut self.ports[number];
            port.level = FREE;
            let work = &mut self.work[number];
            work.room = (u128::from(port.capacity) << SHIFT).saturating_sub(port.load);
            work.open = 0;
        }
        for index in 0..self.affected.len() {
            let slot = self.affected[index] as usize;
            self.flows[slot].open = true;
            let mut next = self.flows[slot].contended;
            while next != NIL {
                let member = &self.members[next as usize];
                self.work[member.port as usize].open += member.used;
                next = member.contended_next;
            }
        }
        self.without_part = self.affected.len();
        self.queue();
        while self.without_part > 0
            && let Some((now, number)) = self.fullest()
        {
            let port = &self.ports[number as usize];
            let level = self.joined(
                number,
                Level {
                    part: now,
                    slack: port.wanted / self.work[number as usize].open + 1,
                },
            );
            self.ports[number as usize].level = level;
            let mut next = self.ports[number as usize].first;
            while next != NIL {
                let member = self.members[next as usize];
                self.fix(member.flow, level.part);
                next = member.of_port_next;
            }
        }
        for index in 0..self.affected.len() {
            self.fix(self.affected[index], ONE);
        }
    }

    /// Puts the touched ports in a queue by what they can give each open flow.
    fn queue(&mut self) {
        let work = &self.work;
        let entries = self
            .touched
            .iter()
            .map(|number| (work[*number as usize].now(), *number));
        if self.touched.len() <= FEW {
            self.few.clear();
            self.few.extend(entries);
            return;
        }
        let mut heap = std::mem::take(&mut self.heap).into_vec();
        heap.clear();
        heap.extend(entries.map(Reverse));
        self.heap = BinaryHeap::from(heap);
    }

    /// Takes the port that is full first out of the queue, with the part at which it is.
    ///
    /// What a port can give only grows while parts are fixed, so that what the queue knows of it is never
    /// too much.
    fn fullest(&mut self) -> Option<(u64, u32)> {
        if self.touched.len() <= FEW {
            loop {
                let places = 0..self.few.len();
                let place = places.min_by_key(|place| self.few[*place])?;
                let (known, number) = self.few[place];
                if known >= ONE {
                    return None;
                }
                let now = self.work[number as usize].now();
                if now <= known {
                    self.few.swap_remove(place);
                    return Some((now, number));
                }
                self.few[place].0 = now;
            }
        }
        loop {
            let Reverse((known, number)) = self.heap.pop()?;
            if known >= ONE {
                return None;
            }
            let now = self.work[number as usize].now();
            if now <= known {
                return Some((now, number));
            }
            // A port that has room for all holds nobody back any more.
            if now < ONE {
                self.heap.push(Reverse((now, number)));
            }
        }
    }

    /// The level of a port that now can give each open flow this much: that of a flow on it whose part
    /// is so near that they fill at once.
    fn joined(&self, number: u32, now: Level) -> Level {
        let mut level = now;
        let mut next = self.ports[number as usize].first;
        while next != NIL {
            let member = &self.members[next as usize];
            let flow = &self.flows[member.flow as usize];
            if flow.active && !flow.open && now.is_near(flow.part) {
                level.part = level.part.min(flow.part);
            }
            next = member.of_port_next;
        }
        level
    }

    fn fix(&mut self, slot: u32, part: u64) {
        let flow = &mut self.flows[slot as usize];
        if !flow.open {
            return;
        }
        flow.open = false;
        flow.part = part;
        self.without_part -= 1;
        self.put_on(slot);
    }

    /// Adds the flows outside the affected ones that have lost their bottleneck or are too large.
    fn check(&mut self) {
        for index in 0..self.touched.len() {
            let number = self.touched[index];
            let level = self.ports[number as usize].level;
            let before = self.work[number as usize].before;
            if level.is_free() && before.is_free() {
                continue;
            }
            if level.is_free() {
                if self.still_holds(number, before) {
                    self.ports[number as usize].level = before;
                } else {
                    self.affect_outside(number, |shares, slot, part| {
                        before.is_near(part) && !shares.is_held(slot)
                    });
                }
                continue;
            }
            let (alone, _) = self.level_of(number, level);
            self.affect_outside(number, |shares, slot, part| {
                if level.is_near(part) {
                    // It stays where this port, asked alone, holds it, or another does and this one
                    // has room for it.
                    alone < part || alone > part && !shares.is_held(slot)
                } else if level.is_reached(part) {
                    true
                } else {
                    !before.is_free() && before.is_near(part) && !shares.is_held(slot)
                }
            });
        }
    }

    fn affect_outside(&mut self, port: u32, wanted: impl Fn(&Self, u32, u64) -> bool) {
        let mut next = self.ports[port as usize].first;
        while next != NIL {
            let member = self.members[next as usize];
            let flow = self.flows[member.flow as usize];
            if flow.active && !flow.affected && wanted(self, member.flow, flow.part) {
                self.affect(member.flow);
            }
            next = member.of_port_next;
        }
    }

    /// Whether a port whose flows all have their parts holds a flow back, to the last bit: then its part
    /// stands, whatever happens on other ports.
    fn is_held(&self, slot: u32) -> bool {
        let Sharer {
            contended, part, ..
        } = self.flows[slot as usize];
        let mut next = contended;
        while next != NIL {
            let member = &self.members[next as usize];
            let port = &self.ports[member.port as usize];
            if port.level.part == part
                && !port.released
                && self.level_of(member.port, port.level).0 == part
            {
                return true;
            }
            next = member.contended_next;
        }
        false
    }

    /// What a port leaves for those near this level, over what they use, whatever other ports say; 0
    /// where a flow is larger, or has no part yet. And whether any of them stands outside the affected.
    fn level_of(&self, number: u32, level: Level) -> (u64, bool) {
        let port = &self.ports[number as usize];
        let (mut room, mut at, mut outside) = (u128::from(port.capacity) << SHIFT, 0, false);
        let mut next = port.first;
        while next != NIL {
            let member = self.members[next as usize];
            let flow = &self.flows[member.flow as usize];
            if flow.active {
                if level.is_near(flow.part) {
                    at += member.used;
                    outside |= !flow.affected;
                } else if flow.part < level.part && !(flow.affected && flow.part == 0) {
                    room = room.saturating_sub(product(member.used, flow.part));
                } else {
                    return (0, false);
                }
            }
            next = member.of_port_next;
        }
        ((room / u128::from(at.max(1))) as u64, outside)
    }

    /// Whether a port that held others back at this level still does: it is what the smaller ones
    /// leave for those that have it, and nobody is larger.
    fn still_holds(&self, number: u32, level: Level) -> bool {
        self.level_of(number, level) == (level.part, true)
    }
}

/// What a flow of this part uses of a port.
fn product(used: u64, part: u64) -> u128 {
    u128::from(used) * u128::from(part)
}

impl Work {
    /// What it can give each flow without a part.
    fn now(&self) -> u64 {
        if self.room >= u128::from(self.open) << SHIFT {
            return u64::MAX;
        }
        (self.room / u128::from(self.open)) as u64
    }
}
