//! Flows that share ports: who gets which rate, and when each ends.

use crate::demand::Demand;
use crate::shares::{ONE, SHIFT, Shares, USE_SHIFT, WHOLE};
use rackflow_units::{SimDuration, SimTime};
use std::collections::BTreeMap;

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

const NIL: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Flow {
    generation: u32,
    /// The next free slot when the flow is over.
    next: u32,
    /// Part of its full rate.
    rate: u64,
    /// Time at full rate that is left, in picoseconds with [`SHIFT`] bits after the point, at `at`.
    left: u128,
    /// When it had `left` left; ahead of now while it leads.
    at: SimTime,
    /// When it ends, or when its lead does.
    ends: SimTime,
    live: bool,
    lead: Lead,
}

/// The time before a flow's first byte, in which it uses no port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lead {
    /// It began with nobody beside it, so that its lead needs no event.
    Alone,
    /// Under way: the net is told when it is over.
    Ahead,
    Over,
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

/// Ports of end points, one NVLink port and one NIC port each, links of a fabric, and the flows on them.
/// A GPU that sends and receives at once is two end points.
///
/// # Sharing
/// A flow has a *lead*, its [`Demand::latency`], in which it uses nothing, and a *body*, in which at
/// full rate it uses `port time / body` of each of its ports, and of each link of its [`Crossing`] what
/// its flows would send there. All share all ports max-min fairly: nobody can be faster, of its full
/// rate, without slowing one that is no faster. So every flow has a bottleneck: its own full rate, or a
/// full port on which nobody is faster. No port is ever more than fully used, no flow is faster than
/// alone, and rates follow from who is there and not from the order in which they came.
///
/// # The end of a lead
/// Whoever waits for a flow calls [`arrive`](Self::arrive) when it [`ends`](Self::ends). That may be the
/// end of its lead; then it says so and the flow goes on. A flow that meets nobody ends once.
///
/// Work is counted exactly, so that a rate that dips and recovers at one instant leaves no trace.
#[derive(Debug, Clone)]
pub struct FlowNet {
    shares: Shares,
    flows: Vec<Flow>,
    /// Ports of end points; links come after them.
    endpoints: u32,
    /// What links carry, in bytes per second.
    capacities: Vec<f64>,
    /// Ports that are not whole: what works of them, and how many outages they have now.
    health: BTreeMap<u32, (f64, u32)>,
    free: u32,
    live: usize,
}

impl FlowNet {
    /// Idle ports of `endpoints` ranks.
    pub fn new(endpoints: usize) -> Self {
        Self::with_links(endpoints, &[])
    }

    /// The same with links of a fabric that carry so many bytes per second.
    pub fn with_links(endpoints: usize, capacities: &[f64]) -> Self {
        Self {
            shares: Shares::new(2 * endpoints + capacities.len()),
            flows: Vec::new(),
            endpoints: endpoints as u32,
            capacities: capacities.to_vec(),
            health: BTreeMap::new(),
            free: NIL,
            live: 0,
        }
    }

    /// Flows that have not finished.
    pub fn live(&self) -> usize {
        self.live
    }

    /// When `flow` ends if nothing else starts or finishes, or when its lead ends where it meets others.
    ///
    /// # Panics
    /// When it has finished already.
    pub fn ends(&self, flow: FlowId) -> SimTime {
        self.flow(flow).ends
    }

    /// The fraction of its full rate that `flow` has now; 0 while it leads.
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

    fn number(&self, port: Port) -> u32 {
        match port {
            Port::Nvlink(endpoint) => 2 * endpoint,
            Port::Nic(endpoint) => 2 * endpoint + 1,
            Port::Shared(link) => 2 * self.endpoints + link,
        }
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
        let number = self.number(port);
        self.health.entry(number).or_insert((1.0, 0)).0 = fraction;
        self.rate_port(now, number, changed);
    }

    /// An outage of `port` begins or ends at `now`: while it has any, nothing passes. Appends as
    /// [`set_capacity`](Self::set_capacity) does.
    ///
    /// # Panics
    /// When there is no such port, or more outages have ended than began.
    pub fn set_outage(
        &mut self,
        now: SimTime,
        port: Port,
        begins: bool,
        changed: &mut Vec<(FlowId, SimTime)>,
    ) {
        let number = self.number(port);
        let outages = &mut self.health.entry(number).or_insert((1.0, 0)).1;
        *outages = if begins {
            *outages + 1
        } else {
            outages.checked_sub(1).expect("an outage ends that began")
        };
        self.rate_port(now, number, changed);
    }

    fn rate_port(&mut self, now: SimTime, number: u32, changed: &mut Vec<(FlowId, SimTime)>) {
        let (works, outages) = self.health[&number];
        self.meet(now, number, changed);
        let fraction = if outages == 0 { works } else { 0.0 };
        self.shares.set_capacity(number, fraction);
        self.settle(now, changed);
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
        let body = demand.nvlink.max(demand.nic);
        self.begin(
            now,
            endpoints,
            demand,
            (demand.latency, body),
            crossing,
            changed,
        )
    }

    /// The same for many communications one after the other with other work between them: a flow
    /// without a lead, which uses its ports a little all the time.
    pub fn start_spread(
        &mut self,
        now: SimTime,
        endpoints: &[u32],
        demand: &Demand,
        crossing: Crossing<'_>,
        changed: &mut Vec<(FlowId, SimTime)>,
    ) -> FlowId {
        let times = (SimDuration::ZERO, demand.duration());
        self.begin(now, endpoints, demand, times, crossing, changed)
    }

    fn begin(
        &mut self,
        now: SimTime,
        endpoints: &[u32],
        demand: &Demand,
        (lead, body): (SimDuration, SimDuration),
        crossing: Crossing<'_>,
        changed: &mut Vec<(FlowId, SimTime)>,
    ) -> FlowId {
        let slot = self.take_flow(now + lead, body);
        self.shares.open(slot);
        let mut alone = true;
        let uses = [use_of(demand.nvlink, body), use_of(demand.nic, body)];
        for &endpoint in endpoints {
            for (side, &used) in uses.iter().enumerate() {
                if used > 0 {
                    alone &= self.join(now, slot, 2 * endpoint + side as u32, used, changed);
                }
            }
        }
        for &(link, flows) in crossing.links {
            let used = self.use_of_link(link, flows, crossing.bytes, body);
            if used > 0 {
                let number = 2 * self.endpoints + link;
                alone &= self.join(now, slot, number, used, changed);
            }
        }
        let flow = &mut self.flows[slot as usize];
        let id = FlowId::new(slot, flow.generation);
        if alone || lead == SimDuration::ZERO {
            flow.lead = if lead == SimDuration::ZERO {
                Lead::Over
            } else {
                Lead::Alone
            };
            self.activate(now, id, changed);
        } else {
            flow.lead = Lead::Ahead;
            flow.ends = flow.at;
            changed.push((id, flow.ends));
        }
        id
    }

    /// A flow begins to use its ports.
    fn activate(&mut self, now: SimTime, id: FlowId, changed: &mut Vec<(FlowId, SimTime)>) {
        let place = changed.len();
        changed.push((id, now));
        self.shares.activate(id.slot);
        self.settle(now, changed);
        let flow = &mut self.flows[id.slot()];
        flow.rate = self.shares.part(id.slot);
        flow.ends = end_of(flow.at, flow.left, flow.rate);
        changed[place].1 = flow.ends;
        // Told once, with its place before the others.
        if let Some(again) = changed[place + 1..]
            .iter()
            .position(|(other, _)| *other == id)
        {
            changed.remove(place + 1 + again);
        }
    }

    /// Puts a flow on a port; whether nobody else is there.
    fn join(
        &mut self,
        now: SimTime,
        slot: u32,
        port: u32,
        used: u64,
        changed: &mut Vec<(FlowId, SimTime)>,
    ) -> bool {
        let alone = self.shares.on(port).is_none();
        if !alone {
            self.meet(now, port, changed);
        }
        self.shares.join(slot, port, used);
        alone
    }

    /// Something changes at a port: a flow that leads there, until now with nobody beside it, uses
    /// nothing until its lead is over.
    fn meet(&mut self, now: SimTime, port: u32, changed: &mut Vec<(FlowId, SimTime)>) {
        let Some(slot) = self.shares.on(port) else {
            return;
        };
        let flow = &mut self.flows[slot as usize];
        if flow.lead != Lead::Alone {
            return;
        }
        if flow.at <= now {
            flow.lead = Lead::Over;
            return;
        }
        flow.lead = Lead::Ahead;
        flow.rate = 0;
        flow.ends = flow.at;
        changed.push((FlowId::new(slot, flow.generation), flow.ends));
        self.shares.deactivate(slot);
    }

    /// `flow` has come to where it [`ends`](Self::ends). True where it is over and gone. False where its lead
    /// is over: it goes on, and its end is among those in `changed`.
    ///
    /// # Panics
    /// When it has finished already.
    pub fn arrive(
        &mut self,
        now: SimTime,
        flow: FlowId,
        changed: &mut Vec<(FlowId, SimTime)>,
    ) -> bool {
        if self.flow(flow).lead == Lead::Ahead {
            self.flows[flow.slot()].lead = Lead::Over;
            self.activate(now, flow, changed);
            return false;
        }
        self.finish(now, flow, changed);
        true
    }

    /// `flow` has ended, or is cancelled, at `now`. Appends every other flow whose end has moved,
    /// with its new end, to `changed`.
    ///
    /// # Panics
    /// When it has finished already.
    pub fn finish(&mut self, now: SimTime, flow: FlowId, changed: &mut Vec<(FlowId, SimTime)>) {
        self.flow(flow);
        self.shares.remove(flow.slot);
        let over = &mut self.flows[flow.slot()];
        over.live = false;
        over.generation = over.generation.wrapping_add(1);
        over.next = self.free;
        self.free = flow.slot;
        self.live -= 1;
        self.settle(now, changed);
    }

    /// A slot for a flow that begins to send at `at` and then takes `body` alone.
    fn take_flow(&mut self, at: SimTime, body: SimDuration) -> u32 {
        self.live += 1;
        let fresh = Flow {
            generation: 0,
            next: NIL,
            rate: 0,
            left: u128::from(body.as_picos()) << SHIFT,
            at,
            ends: at,
            live: true,
            lead: Lead::Over,
        };
        if self.free == NIL {
            self.flows.push(fresh);
            return self.flows.len() as u32 - 1;
        }
        let slot = self.free;
        let old = self.flows[slot as usize];
        self.free = old.next;
        self.flows[slot as usize] = Flow {
            generation: old.generation,
            ..fresh
        };
        slot
    }

    /// Gives every flow that a change has reached its new rate.
    fn settle(&mut self, now: SimTime, changed: &mut Vec<(FlowId, SimTime)>) {
        self.shares.settle();
        while let Some((slot, rate)) = self.shares.moved.pop() {
            let flow = &mut self.flows[slot as usize];
            // Of a flow that leads alone nothing is done before it sends.
            if now > flow.at {
                let passed = now.since(flow.at).as_picos();
                let done = u128::from(passed) * u128::from(flow.rate);
                flow.left = flow.left.saturating_sub(done);
                flow.at = now;
            }
            flow.rate = rate;
            let ends = end_of(flow.at, flow.left, rate);
            if ends != flow.ends {
                flow.ends = ends;
                changed.push((FlowId::new(slot, flow.generation), ends));
            }
        }
    }

    /// Use of a link at full rate, rounded down for each flow: what just fits is not slowed, and a session
    /// that stands for several uses what they would.
    fn use_of_link(&self, link: u32, flows: u32, bytes: u64, body: SimDuration) -> u64 {
        let carries = self.capacities[link as usize] * body.as_picos().max(1) as f64 * 1e-12;
        let part = bytes as f64 / carries * WHOLE as f64;
        // Far beyond what any flow asks, and far from overflow when many are added.
        part.min((1_u64 << 44) as f64) as u64 * u64::from(flows)
    }
}

/// Use of a port by a flow at full rate, rounded down.
fn use_of(busy: SimDuration, body: SimDuration) -> u64 {
    if busy == SimDuration::ZERO {
        return 0;
    }
    let exact = u128::from(busy.as_picos()) << USE_SHIFT;
    // Who uses a port at all is on it.
    ((exact / u128::from(body.as_picos())) as u64).max(1)
}

/// When `left` is done at `rate`, rounded up.
fn end_of(at: SimTime, left: u128, rate: u64) -> SimTime {
    let ps = if left == 0 {
        0
    } else if rate == 0 {
        return SimTime::MAX;
    } else if rate == ONE {
        left.div_ceil(u128::from(ONE))
    } else {
        left.div_ceil(u128::from(rate))
    };
    // A trickle that outlasts simulated time stands still.
    let ends = u128::from(at.as_picos()) + ps;
    u64::try_from(ends).map_or(SimTime::MAX, SimTime::from_picos)
}
