//! Flows that share ports: who gets which rate, and when each ends.

use crate::demand::Demand;
use crate::sessions::{Crossing, Sessions};
use rackflow_units::{SimDuration, SimTime};

/// A flow of a [`FlowNet`] or a [`FairNet`](crate::FairNet). Its slot is used again after it has finished; the generation tells the
/// two flows apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId {
    slot: u32,
    generation: u32,
}

impl FlowId {
    /// Index of the slot: dense, small, and used again. For arrays beside the net.
    pub const fn slot(self) -> usize {
        self.slot as usize
    }

    pub(crate) const fn new(slot: u32, generation: u32) -> Self {
        Self { slot, generation }
    }

    pub(crate) const fn generation(self) -> u32 {
        self.generation
    }
}

/// Fixed point with 32 bits after the point; `ONE` is full rate.
const SHIFT: u32 = 32;
const ONE: u64 = 1 << SHIFT;
const NIL: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct PortState {
    /// Sum of the use of all flows here, each at its full rate.
    load: u64,
    /// What of the port works: [`ONE`] unless it is degraded.
    capacity: u64,
    /// Rate that this port grants: 1, or capacity / load where that is less.
    rate: u64,
    /// First membership of this port.
    first: u32,
}

/// One flow on one port; a link of two lists.
#[derive(Debug, Clone, Copy)]
struct Membership {
    flow: u32,
    port: u32,
    of_flow_next: u32,
    of_port_next: u32,
    of_port_previous: u32,
    /// Use of the port by the flow at full rate.
    load: u64,
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    generation: u32,
    /// First membership; the next free slot when the flow is over.
    first: u32,
    /// What its ports grant.
    granted: u64,
    /// What it has: less where a link of the fabric holds its session back.
    rate: u64,
    /// Time at full rate that is left, in picoseconds with [`SHIFT`] bits after the point, at `at`.
    left: u128,
    at: SimTime,
    ends: SimTime,
    live: bool,
    touched: bool,
    /// Has a session on the fabric.
    crosses: bool,
}

/// A port of a [`FlowNet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// The NVLink port of an endpoint.
    Nvlink(u32),
    /// The share of the NICs of an endpoint.
    Nic(u32),
    /// A link of the fabric, as counted in [`FlowNet::with_links`].
    Shared(u32),
}

/// Ports of ranks, one NVLink port and one NIC port each, and the flows on them.
///
/// # Sharing
/// A flow at full rate takes its [`Demand::duration`] and uses the fraction
/// `port time / duration` of each of its ports. Where the fractions of a port sum to more than 1,
/// every flow there is slowed by that sum; a flow runs at the rate of its slowest port. So no port
/// is ever more than fully used, no flow is faster than alone, and a rate follows from the flows
/// on the ports alone, not from the order in which they came.
///
/// The rule is local: a start or finish changes the flows that it meets and no others. It leaves a
/// port idle where another of a flow's ports holds it back, which max-min sharing would not.
///
/// # The fabric
/// Links that many ranks share are shared max-min fairly among the [`Crossing`]s of flows, none of which
/// is faster than the ports of its flow grant. Where no link is full every flow has what its ports
/// grant, and the links leave no trace.
///
/// Work is counted exactly, so that a rate that dips and recovers at one instant leaves no trace.
#[derive(Debug, Clone)]
pub struct FlowNet {
    ports: Vec<PortState>,
    fabric: Sessions,
    flows: Vec<Flow>,
    memberships: Vec<Membership>,
    free_flow: u32,
    free_membership: u32,
    live: usize,
    touched: Vec<u32>,
}

impl FlowNet {
    /// Idle ports of `endpoints` ranks.
    pub fn new(endpoints: usize) -> Self {
        Self::with_links(endpoints, &[])
    }

    /// The same with links of a fabric that carry so many bytes per second.
    pub fn with_links(endpoints: usize, capacities: &[f64]) -> Self {
        let idle = PortState {
            load: 0,
            capacity: ONE,
            rate: ONE,
            first: NIL,
        };
        Self {
            ports: vec![idle; 2 * endpoints],
            fabric: Sessions::new(capacities),
            flows: Vec::new(),
            memberships: Vec::new(),
            free_flow: NIL,
            free_membership: NIL,
            live: 0,
            touched: Vec::new(),
        }
    }

    /// Flows that have not finished.
    pub fn live(&self) -> usize {
        self.live
    }

    /// When `flow` ends if nothing else starts or finishes.
    ///
    /// # Panics
    /// When it has finished already.
    pub fn ends(&self, flow: FlowId) -> SimTime {
        self.flow(flow).ends
    }

    /// The fraction of its full rate that `flow` has now.
    ///
    /// # Panics
    /// When it has finished already.
    pub fn rate(&self, flow: FlowId) -> f64 {
        self.flow(flow).rate as f64 / ONE as f64
    }

    fn flow(&self, id: FlowId) -> &Flow {
        let flow = &self.flows[id.slot()];
        assert!(
            flow.live && flow.generation == id.generation,
            "{id:?} has finished already"
        );
        flow
    }

    /// From `now` on `port` works at this fraction of its rate; 0 stops every flow on it. Appends
    /// every flow whose end has moved, with its new end, to `changed`: [`SimTime::MAX`] for flows
    /// that stand still.
    ///
    /// # Panics
    /// When there is no such port.
    pub fn set_capacity(
        &mut self,
        now: SimTime,
        port: Port,
        fraction: f64,
        changed: &mut Vec<(FlowId, SimTime)>,
    ) {
        let index = match port {
            Port::Nvlink(endpoint) => 2 * endpoint as usize,
            Port::Nic(endpoint) => 2 * endpoint as usize + 1,
            Port::Shared(link) => {
                self.fabric.set_capacity(link, fraction);
                return self.settle(now, changed);
            }
        };
        let before = self.ports[index].rate;
        let port = &mut self.ports[index];
        port.capacity = (fraction.clamp(0.0, 1.0) * ONE as f64).round() as u64;
        port.rate = rate_of(port.load, port.capacity);
        let (first, rate) = (port.first, port.rate);
        self.touch_members(first, |flow| {
            if rate < before {
                flow > rate
            } else {
                flow == before && rate > before
            }
        });
        self.settle(now, changed);
    }

    /// Marks the flows of a port whose granted rate asks for it.
    fn touch_members(&mut self, first: u32, asks: impl Fn(u64) -> bool) {
        let mut next = first;
        while next != NIL {
            let other = self.memberships[next as usize];
            if asks(self.flows[other.flow as usize].granted) {
                self.touch(other.flow);
            }
            next = other.of_port_next;
        }
    }

    /// Starts a flow that occupies the ports of all `endpoints` (ranks, or representatives of
    /// ranks that cannot differ; each at most once). Appends this flow and every flow whose end
    /// has moved, with its new end, to `changed`.
    pub fn start(
        &mut self,
        now: SimTime,
        endpoints: &[u32],
        demand: &Demand,
        changed: &mut Vec<(FlowId, SimTime)>,
    ) -> FlowId {
        self.start_over(now, endpoints, demand, Crossing::NONE, changed)
    }

    /// The same for a flow that also crosses links of the fabric.
    pub fn start_over(
        &mut self,
        now: SimTime,
        endpoints: &[u32],
        demand: &Demand,
        crossing: Crossing<'_>,
        changed: &mut Vec<(FlowId, SimTime)>,
    ) -> FlowId {
        let duration = demand.duration();
        let slot = self.take_flow(now, duration);
        let uses = [
            use_of(demand.nvlink, duration),
            use_of(demand.nic, duration),
        ];
        let mut rate = ONE;
        for &endpoint in endpoints {
            for (side, &load) in uses.iter().enumerate() {
                if load > 0 {
                    let port = 2 * endpoint + side as u32;
                    rate = rate.min(self.join(slot, port, load));
                }
            }
        }
        let crosses = !crossing.links.is_empty();
        if crosses {
            self.fabric.start(slot, crossing, duration.as_picos(), rate);
        }
        let flow = &mut self.flows[slot as usize];
        flow.crosses = crosses;
        flow.granted = rate;
        flow.rate = rate;
        flow.ends = end_of(flow.at, flow.left, rate);
        let id = FlowId {
            slot,
            generation: flow.generation,
        };
        changed.push((id, flow.ends));
        self.settle(now, changed);
        id
    }

    /// `flow` has ended, or is cancelled, at `now`. Appends every other flow whose end has moved,
    /// with its new end, to `changed`.
    ///
    /// # Panics
    /// When it has finished already.
    pub fn finish(&mut self, now: SimTime, flow: FlowId, changed: &mut Vec<(FlowId, SimTime)>) {
        let &Flow {
            first: mut next,
            crosses,
            ..
        } = self.flow(flow);
        if crosses {
            self.fabric.finish(flow.slot);
        }
        while next != NIL {
            let member = self.memberships[next as usize];
            self.leave(next, member);
            self.memberships[next as usize].of_flow_next = self.free_membership;
            self.free_membership = next;
            next = member.of_flow_next;
        }
        let over = &mut self.flows[flow.slot()];
        over.live = false;
        over.generation = over.generation.wrapping_add(1);
        over.first = self.free_flow;
        self.free_flow = flow.slot;
        self.live -= 1;
        self.settle(now, changed);
    }

    /// A slot for a flow that runs alone for `duration`.
    fn take_flow(&mut self, now: SimTime, duration: SimDuration) -> u32 {
        self.live += 1;
        let fresh = Flow {
            generation: 0,
            first: NIL,
            granted: ONE,
            rate: ONE,
            left: u128::from(duration.as_picos()) << SHIFT,
            at: now,
            ends: now,
            live: true,
            touched: false,
            crosses: false,
        };
        if self.free_flow == NIL {
            self.flows.push(fresh);
            return self.flows.len() as u32 - 1;
        }
        let slot = self.free_flow;
        let old = self.flows[slot as usize];
        self.free_flow = old.first;
        self.flows[slot as usize] = Flow {
            generation: old.generation,
            ..fresh
        };
        slot
    }

    /// Puts a flow on a port, marks the flows that this slows, and returns the port's rate.
    fn join(&mut self, flow: u32, port: u32, load: u64) -> u64 {
        let before = self.ports[port as usize];
        let total = before.load + load;
        let rate = rate_of(total, before.capacity);
        let member = Membership {
            flow,
            port,
            of_flow_next: self.flows[flow as usize].first,
            of_port_next: before.first,
            of_port_previous: NIL,
            load,
        };
        let index = if self.free_membership == NIL {
            self.memberships.push(member);
            self.memberships.len() as u32 - 1
        } else {
            let index = self.free_membership;
            self.free_membership = self.memberships[index as usize].of_flow_next;
            self.memberships[index as usize] = member;
            index
        };
        if before.first != NIL {
            self.memberships[before.first as usize].of_port_previous = index;
        }
        self.flows[flow as usize].first = index;
        self.ports[port as usize] = PortState {
            load: total,
            rate,
            first: index,
            ..before
        };
        if rate < before.rate {
            self.touch_members(before.first, |flow| flow > rate);
        }
        rate
    }

    /// Takes a flow off a port and marks the flows that this port had held back.
    fn leave(&mut self, index: u32, member: Membership) {
        match member.of_port_previous {
            NIL => self.ports[member.port as usize].first = member.of_port_next,
            previous => self.memberships[previous as usize].of_port_next = member.of_port_next,
        }
        if member.of_port_next != NIL {
            self.memberships[member.of_port_next as usize].of_port_previous =
                member.of_port_previous;
        }
        debug_assert!(
            self.memberships[index as usize].flow == member.flow,
            "lists agree"
        );
        let port = &mut self.ports[member.port as usize];
        let before = port.rate;
        port.load -= member.load;
        port.rate = rate_of(port.load, port.capacity);
        if port.rate > before {
            let first = port.first;
            self.touch_members(first, |flow| flow == before);
        }
    }

    fn touch(&mut self, flow: u32) {
        let marked = &mut self.flows[flow as usize].touched;
        if !*marked {
            *marked = true;
            self.touched.push(flow);
        }
    }

    /// Gives every marked flow the rate of its slowest port, or what the fabric leaves of it.
    fn settle(&mut self, now: SimTime, changed: &mut Vec<(FlowId, SimTime)>) {
        while let Some(slot) = self.touched.pop() {
            let mut rate = ONE;
            let mut next = self.flows[slot as usize].first;
            while next != NIL {
                let member = &self.memberships[next as usize];
                rate = rate.min(self.ports[member.port as usize].rate);
                next = member.of_flow_next;
            }
            let flow = &mut self.flows[slot as usize];
            flow.touched = false;
            if rate == flow.granted || !flow.live {
                continue;
            }
            flow.granted = rate;
            if flow.crosses {
                self.fabric.set_cap(slot, rate);
            } else {
                self.set_rate(now, slot, rate, changed);
            }
        }
        self.fabric.settle();
        while let Some((slot, rate)) = self.fabric.moved.pop() {
            self.set_rate(now, slot, rate, changed);
        }
    }

    fn set_rate(
        &mut self,
        now: SimTime,
        slot: u32,
        rate: u64,
        changed: &mut Vec<(FlowId, SimTime)>,
    ) {
        let flow = &mut self.flows[slot as usize];
        let passed = now.since(flow.at).as_picos();
        flow.left = flow
            .left
            .saturating_sub(u128::from(passed) * u128::from(flow.rate));
        flow.at = now;
        flow.rate = rate;
        let ends = end_of(now, flow.left, rate);
        if ends != flow.ends {
            flow.ends = ends;
            changed.push((
                FlowId {
                    slot,
                    generation: flow.generation,
                },
                ends,
            ));
        }
    }
}

/// Use of a port by a flow at full rate, rounded up.
fn use_of(busy: SimDuration, duration: SimDuration) -> u64 {
    if busy == SimDuration::ZERO {
        return 0;
    }
    let exact = u128::from(busy.as_picos()) << SHIFT;
    exact.div_ceil(u128::from(duration.as_picos())) as u64
}

/// Rate that a port of this load and capacity grants, rounded down.
fn rate_of(load: u64, capacity: u64) -> u64 {
    if load <= capacity {
        return ONE;
    }
    ((u128::from(capacity) << SHIFT) / u128::from(load)) as u64
}

/// When `left` is done at `rate`, rounded up.
fn end_of(now: SimTime, left: u128, rate: u64) -> SimTime {
    let ps = if rate == 0 {
        return if left == 0 { now } else { SimTime::MAX };
    } else if rate == ONE {
        left.div_ceil(u128::from(ONE))
    } else {
        left.div_ceil(u128::from(rate))
    };
    // A trickle that outlasts simulated time stands still.
    let ends = u128::from(now.as_picos()) + ps;
    u64::try_from(ends).map_or(SimTime::MAX, SimTime::from_picos)
}
