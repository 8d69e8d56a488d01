//! KV caches on the move over the links, beside the traffic of the steps.

use super::fleet::FleetSite;
use crate::fabric::Roads;
use crate::ports::Outages;
use rackflow_engine::{EventClass, EventId, EventQueue};
use rackflow_network::{Algorithm, Crossing, Demand, FlowId, FlowNet};
use rackflow_plan::Flows;
use rackflow_topology::Level;
use rackflow_units::{Bandwidth, Bytes, SimDuration, SimTime};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::sync::Arc;

/// What one GPU's ports carry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wires {
    /// Payload rate of the NVLink port.
    pub nvlink: Bandwidth,
    /// Payload rate of its share of the NICs.
    pub nic: Bandwidth,
    /// One small message inside the domain.
    pub nvlink_latency: SimDuration,
    /// One small message over NICs.
    pub nic_latency: SimDuration,
}

/// What a flow belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A piece of this transfer.
    Transfer(u32),
    /// The step of this replica.
    Step(u32),
    /// Blocks that this request waits for.
    Load(u32),
    /// Blocks on their way to the remote tier.
    Write,
}

/// A part of a cache: some layers of some tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub ready: SimTime,
    /// From this token of the prompt to before that one.
    pub tokens: (u64, u64),
    pub layers: u64,
}

/// One request's cache on its way.
#[derive(Debug)]
pub(super) struct Transfer {
    pub request: u32,
    pub source: u32,
    /// Where to, once there is room.
    pub target: Option<u32>,
    pub pieces: VecDeque<Piece>,
    /// Flows under way.
    pub active: u32,
    /// When the last layer of the last token was computed.
    pub computed_at: Option<SimTime>,
}

/// The part of a shared net that a fleet has: its GPUs are end points, two each, one after the other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ground {
    /// Number of the first.
    pub first_port: u32,
    /// When the fleet began, on the clock of the net.
    pub began: SimTime,
    /// The fabric, where its links can hold flows back.
    pub roads: Option<Arc<Roads>>,
}

/// Flows on the ports of all GPUs.
#[derive(Debug)]
pub(super) struct Network {
    /// Lent by the jobs beside which the fleet runs.
    pub net: FlowNet,
    pub ground: Ground,
    /// Flows of other jobs whose ends have moved, on the clock of the net.
    pub foreign: Vec<(FlowId, SimTime)>,
    /// Links of the pairs that have sent.
    routes: FxHashMap<(u32, u32), Vec<(u32, u32)>>,
    ends: Vec<u32>,
    /// By slot of the flow.
    flows: Vec<Option<(FlowId, Purpose, EventId)>>,
    changed: Vec<(FlowId, SimTime)>,
    class: EventClass,
}

/// At which GPUs of the fleet a flow leaves and enters. Each has two sides, sending and receiving.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sides<'a> {
    /// All send and receive.
    Both(&'a [u32]),
    /// One sends, the other receives.
    Pair(u32, u32),
    /// The first send, the second receive.
    Between(&'a [u32], &'a [u32]),
}

impl Sides<'_> {
    /// End points in a net in which those of the fleet begin with this one.
    fn endpoints(self, first: u32, ends: &mut Vec<u32>) {
        let side = |gpu: u32, side: u32| first + 2 * gpu + side;
        match self {
            Self::Both(gpus) => {
                ends.extend(gpus.iter().flat_map(|gpu| [side(*gpu, 0), side(*gpu, 1)]));
            }
            Self::Pair(from, to) => ends.extend([side(from, 0), side(to, 1)]),
            Self::Between(from, to) => {
                ends.extend(from.iter().map(|gpu| side(*gpu, 0)));
                ends.extend(to.iter().map(|gpu| side(*gpu, 1)));
            }
        }
    }
}

/// Links of the fabric with how many flows go over each, and how many of these the busiest GPU has.
pub(super) type Spread = (Vec<(u32, u32)>, u32);

/// Which links of the fabric a flow goes over.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way<'a> {
    /// None.
    Inside,
    /// From one GPU of the cluster to another.
    Pair(u32, u32),
    /// These, by flows of which the busiest GPU has so many.
    Links(&'a [(u32, u32)], u32),
}

impl Network {
    pub fn new(net: FlowNet, ground: Ground, class: EventClass) -> Self {
        Self {
            net,
            ground,
            foreign: Vec::new(),
            routes: FxHashMap::default(),
            ends: Vec::new(),
            flows: Vec::new(),
            changed: Vec::new(),
            class,
        }
    }

    /// The instant on the clock of the net.
    pub fn shared(&self, now: SimTime) -> SimTime {
        self.ground.began + now.since(SimTime::ZERO)
    }

    /// The instant of the net on the clock of the fleet.
    fn own(&self, at: SimTime) -> SimTime {
        if at == SimTime::MAX {
            return at;
        }
        SimTime::ZERO + at.since(self.ground.began)
    }

    /// Starts a flow between GPUs of the fleet; `event` makes the event of a slot's end.
    pub fn start<E>(
        &mut self,
        queue: &mut EventQueue<E>,
        sides: Sides<'_>,
        demand: &Demand,
        way: Way<'_>,
        purpose: Purpose,
        event: impl Fn(u32) -> E,
    ) {
        let now = self.shared(queue.now());
        self.changed.clear();
        self.ends.clear();
        sides.endpoints(self.ground.first_port, &mut self.ends);
        let bytes = demand.wire_bytes_nic.get();
        let crossing = match (way, &self.ground.roads) {
            (Way::Pair(from, to), Some(roads)) => {
                let links = self.routes.entry((from, to)).or_insert_with(|| {
                    roads.of(&Flows {
                        each: 1,
                        edges: vec![(from, to, false)],
                    })
                });
                Crossing { bytes, links }
            }
            (Way::Links(links, each), Some(_)) => Crossing {
                bytes: bytes / u64::from(each.max(1)),
                links,
            },
            _ => Crossing::NONE,
        };
        let (net, changed) = (&mut self.net, &mut self.changed);
        let id = if matches!(purpose, Purpose::Step(_)) && !crossing.links.is_empty() {
            // Links that all ranks want at once are narrow for as long as they send, and no longer.
            net.start_over(now, &self.ends, demand, crossing, changed)
        } else {
            // Layers compute between their collectives, caches are posted message by message, and a store
            // is read block by block.
            net.start_spread(now, &self.ends, demand, crossing, changed)
        };
        let slot = id.slot();
        if self.flows.len() <= slot {
            self.flows.resize(slot + 1, None);
        }
        let ends = self.own(self.net.ends(id));
        let at = queue.schedule(ends, self.class, event(slot as u32));
        self.flows[slot] = Some((id, purpose, at));
        self.reschedule(queue, Some(id), event);
    }

    /// The flow of this slot has ended: what it was for. `None` where only its lead has.
    pub fn arrive<E>(
        &mut self,
        queue: &mut EventQueue<E>,
        slot: u32,
        event: impl Fn(u32) -> E,
    ) -> Option<Purpose> {
        let (id, purpose, _) = self.flows[slot as usize].expect("the flow runs");
        self.changed.clear();
        let now = self.shared(queue.now());
        let over = self.net.arrive(now, id, &mut self.changed);
        if over {
            self.flows[slot as usize] = None;
        }
        self.reschedule(queue, None, event);
        over.then_some(purpose)
    }

    /// Takes every flow off the net: the run is over, and others go on.
    pub fn abandon(&mut self, now: SimTime) {
        let now = self.shared(now);
        for place in 0..self.flows.len() {
            if let Some((id, ..)) = self.flows[place].take() {
                self.net.finish(now, id, &mut self.foreign);
            }
        }
        // Ends of flows of its own may have moved before they were taken off; nobody waits for them.
    }

    /// Flapping links go down or come up, on a net of its own.
    pub fn flap<E>(
        &mut self,
        outages: &mut Outages,
        queue: &mut EventQueue<E>,
        event: impl Fn(u32) -> E,
    ) {
        self.changed.clear();
        outages.advance(&mut self.net, &mut self.changed);
        self.reschedule(queue, None, event);
    }

    /// A flow ends at this instant on the clock of the net; false where it is not of this fleet.
    pub fn ends_at<E>(
        &mut self,
        queue: &mut EventQueue<E>,
        flow: FlowId,
        ends: SimTime,
        event: impl Fn(u32) -> E,
    ) -> bool {
        let ends = self.own(ends);
        let Some(Some((id, _, at))) = self.flows.get_mut(flow.slot()) else {
            return false;
        };
        if *id != flow {
            return false;
        }
        queue.cancel(*at);
        *at = queue.schedule(ends.max(queue.now()), self.class, event(flow.slot() as u32));
        true
    }

    fn reschedule<E>(
        &mut self,
        queue: &mut EventQueue<E>,
        except: Option<FlowId>,
        event: impl Fn(u32) -> E,
    ) {
        for index in 0..self.changed.len() {
            let (id, ends) = self.changed[index];
            if Some(id) == except {
                continue;
            }
            if !self.ends_at(queue, id, ends, &event) {
                self.foreign.push((id, ends));
            }
        }
    }
}

/// What moving `bytes` between two ranks asks of their ports. Messages that cost more than the bytes
/// make the flow longer and leave the ports idle.
pub(super) fn demand(
    (source, target): (&Wires, &Wires),
    level: Level,
    bytes: u64,
    posting: SimDuration,
) -> Demand {
    let narrow = |a: Bandwidth, b: Bandwidth| {
        if a.bytes_per_sec() < b.bytes_per_sec() {
            a
        } else {
            b
        }
    };
    let (rate, latency) = if level <= Level::NvLink {
        (
            narrow(source.nvlink, target.nvlink),
            source.nvlink_latency.max(target.nvlink_latency),
        )
    } else {
        (
            narrow(source.nic, target.nic),
            source.nic_latency.max(target.nic_latency),
        )
    };
    let wire = rate.time_to_send(Bytes::new(bytes));
    let over_nvlink = level <= Level::NvLink;
    let (nvlink, nic) = if over_nvlink {
        (wire, SimDuration::ZERO)
    } else {
        (SimDuration::ZERO, wire)
    };
    let (sent_nvlink, sent_nic) = if over_nvlink { (bytes, 0) } else { (0, bytes) };
    Demand {
        latency: latency + posting.saturating_sub(wire),
        nvlink,
        nic,
        level,
        wire_bytes_nvlink: Bytes::new(sent_nvlink),
        wire_bytes_nic: Bytes::new(sent_nic),
        algorithm: Algorithm::Direct,
        ..Demand::NONE
    }
}

/// The tier at which two GPUs meet. Pools of different hardware meet above the leaves.
pub(super) fn level(site: Option<FleetSite<'_>>, a: u32, b: u32) -> Level {
    site.map_or(Level::Spine, |site| {
        site.map.level(site.gpu_of(a), site.gpu_of(b))
    })
}
