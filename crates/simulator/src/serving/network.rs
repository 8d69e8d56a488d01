//! KV caches on the move over the links, beside the traffic of the steps.

use rackflow_engine::{EventClass, EventId, EventQueue};
use rackflow_network::{Algorithm, Demand, FlowId, FlowNet};
use rackflow_topology::{ClusterMap, Level};
use rackflow_units::{Bandwidth, Bytes, SimDuration, SimTime};
use std::collections::VecDeque;

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
}

/// A part of a cache: some layers of some tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub ready: SimTime,
    pub bytes: u64,
    /// Messages that each pair of ranks sends.
    pub messages: u64,
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

/// Flows on the ports of all GPUs.
#[derive(Debug)]
pub(super) struct Network {
    net: FlowNet,
    /// By slot of the flow.
    flows: Vec<Option<(FlowId, Purpose, EventId)>>,
    changed: Vec<(FlowId, SimTime)>,
    class: EventClass,
}

impl Network {
    pub fn new(gpus: u32, class: EventClass) -> Self {
        Self {
            net: FlowNet::new(gpus as usize),
            flows: Vec::new(),
            changed: Vec::new(),
            class,
        }
    }

    /// Starts a flow; `event` makes the event of a slot's end.
    pub fn start<E>(
        &mut self,
        queue: &mut EventQueue<E>,
        endpoints: &[u32],
        demand: &Demand,
        purpose: Purpose,
        event: impl Fn(u32) -> E,
    ) {
        let now = queue.now();
        self.changed.clear();
        let id = self.net.start(now, endpoints, demand, &mut self.changed);
        let slot = id.slot();
        if self.flows.len() <= slot {
            self.flows.resize(slot + 1, None);
        }
        let ends = self.net.ends(id);
        let at = queue.schedule(ends, self.class, event(slot as u32));
        self.flows[slot] = Some((id, purpose, at));
        self.reschedule(queue, Some(id), event);
    }

    /// The flow of this slot has ended.
    pub fn finish<E>(
        &mut self,
        queue: &mut EventQueue<E>,
        slot: u32,
        event: impl Fn(u32) -> E,
    ) -> Purpose {
        let (id, purpose, _) = self.flows[slot as usize].take().expect("the flow runs");
        self.changed.clear();
        self.net.finish(queue.now(), id, &mut self.changed);
        self.reschedule(queue, None, event);
        purpose
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
            if let Some((_, _, at)) = &mut self.flows[id.slot()] {
                queue.cancel(*at);
                *at = queue.schedule(ends.max(queue.now()), self.class, event(id.slot() as u32));
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
pub(super) fn level(map: Option<&ClusterMap>, a: u32, b: u32) -> Level {
    map.map_or(Level::Spine, |map| map.level(a, b))
}
