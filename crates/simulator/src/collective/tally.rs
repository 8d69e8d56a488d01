//! Exchanges of more flows than can be kept: what each link carries, counted pair by pair.
//!
//! # Why a count is enough
//! Of equal flows that start together and share links max-min fairly, those on the busiest link have
//! the lowest rate of all, `C / m` where `m` of them are on a link of capacity `C`: water is filled
//! link by link, the one that gives least first. They keep it until they end, which is when the
//! link has carried all of them; the others are no slower and no larger, and are done by then. So the
//! exchange takes as long as its busiest link, however flows are routed and hashed. Flows within
//! domains and flows between them are equal among themselves and meet only where members hand over
//! what goes to another rail; there the count is a lower bound, and the test beside
//! `Group::simulate` says how far off.

use super::flows::{crosses, find_route};
use rackflow_network::{Edge, Outline, Via};
use rackflow_topology::{Level, LinkId, Routing, Wires};
use rackflow_units::{Bandwidth, Bytes, SimDuration};

/// How often each link is used by each kind of edge; edges of one kind have equal loads.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    kinds: usize,
    /// By link, for every kind.
    flows: Vec<u32>,
    /// Whether the flows of a kind leave by the NIC.
    across: Vec<bool>,
}

/// A load as it is told from others.
type Load = (Bytes, SimDuration);

/// Most different loads: uneven domains make a handful.
const MOST_KINDS: usize = 64;

/// What an exchange came to.
pub(super) struct Counted {
    /// From the call to the last byte.
    pub time: SimDuration,
    /// The time of the busiest link at line rate.
    pub bound: SimDuration,
}

/// The different loads of an outline, in the order of their first edge; `None` where there are too
/// many.
fn kinds(outline: &Outline<'_>) -> Option<Vec<Load>> {
    let mut kinds: Vec<Load> = Vec::new();
    let mut last = None;
    outline.each(|edge| {
        let load = (edge.bytes, edge.busy);
        if last != Some(load) && kinds.len() <= MOST_KINDS && !kinds.contains(&load) {
            kinds.push(load);
        }
        last = Some(load);
    });
    (kinds.len() <= MOST_KINDS).then_some(kinds)
}

impl Tally {
    fn count(
        outline: &Outline<'_>,
        kinds: &[Load],
        wires: &Wires,
        gpus: &[u32],
        connections: u32,
    ) -> Self {
        let width = kinds.len();
        let mut tally = Self {
            kinds: width,
            flows: vec![0; wires.links() * width],
            across: vec![false; width],
        };
        let hashed = wires.routing() == Routing::Ecmp;
        let connections = if hashed { connections.max(1) } else { 1 };
        let mut route = Vec::new();
        let mut number = 0;
        let (mut last, mut kind) = (None, 0);
        outline.each(|edge: Edge| {
            let load = (edge.bytes, edge.busy);
            if last != Some(load) {
                kind = kinds.iter().position(|other| *other == load).unwrap_or(0);
                last = Some(load);
            }
            let (from, to) = (gpus[edge.from as usize], gpus[edge.to as usize]);
            let choice = choice(&edge, number);
            number += 1;
            for connection in 0..u64::from(connections) {
                let drawn = choice + (connection << 32);
                find_route(wires, from, to, edge.via, drawn, &mut route);
                tally.across[kind] |= crosses(wires, &route);
                // A flow on one path stands for all of its pair's connections.
                let apart = route.iter().any(|link| wires.level(*link) > Level::Leaf);
                let flows = if apart { 1 } else { connections };
                for link in &route {
                    tally.flows[link.index() * width + kind] += flows;
                }
                if !apart {
                    break;
                }
            }
        });
        tally
    }

    /// The time of the busiest link when edges have these loads. `lines` are the line rates of a link
    /// into a domain and of a share of the NICs, `connections` those of a pair.
    fn counted(
        &self,
        outline: &Outline<'_>,
        kinds: &[Load],
        wires: &Wires,
        lines: (Bandwidth, Bandwidth),
        connections: u32,
    ) -> Counted {
        let hashed = wires.routing() == Routing::Ecmp;
        let parts = u128::from(if hashed { connections.max(1) } else { 1 });
        let mut busiest = 0_u128;
        let mut bound = SimDuration::ZERO;
        for (index, flows) in self.flows.chunks_exact(self.kinds).enumerate() {
            let link = LinkId(index as u32);
            let capacity = u128::from(wires.bandwidth(link).bytes_per_sec());
            let (mut work, mut bytes) = (0_u128, 0_u128);
            for ((flows, load), across) in flows.iter().zip(kinds).zip(&self.across) {
                let line = if *across { lines.1 } else { lines.0 };
                let flows = u128::from(*flows);
                work += flows * u128::from(load.1.as_picos()) * u128::from(line.bytes_per_sec());
                bytes += flows * u128::from(load.0.get());
            }
            if work > 0 {
                busiest = busiest.max(work.div_ceil(capacity.max(1) * parts));
                let bytes = u64::try_from(bytes / parts).unwrap_or(u64::MAX);
                bound = bound.max(wires.bandwidth(link).time_to_send(Bytes::new(bytes)));
            }
        }
        let picos = u64::try_from(busiest).unwrap_or(u64::MAX);
        Counted {
            time: outline.lead() + SimDuration::from_picos(picos),
            bound,
        }
    }
}

/// What the path of an edge is drawn from besides its ends: what is handed to a neighbour on the
/// receiver's rail goes over that neighbour's connection.
pub(super) fn choice(edge: &Edge, number: u64) -> u64 {
    if edge.via == Via::Rail { 0 } else { number }
}

/// Counts an exchange, or takes an earlier count of the same exchange at another size.
pub(super) fn counted(
    outline: &Outline<'_>,
    wires: &Wires,
    gpus: &[u32],
    lines: (Bandwidth, Bandwidth),
    connections: u32,
    earlier: &mut Option<Tally>,
) -> Option<Counted> {
    let kinds = kinds(outline)?;
    if kinds.is_empty() {
        return Some(Counted {
            time: outline.lead(),
            bound: SimDuration::ZERO,
        });
    }
    let tally = match earlier.take().filter(|tally| tally.kinds == kinds.len()) {
        Some(tally) => tally,
        None => Tally::count(outline, &kinds, wires, gpus, connections),
    };
    let result = tally.counted(outline, &kinds, wires, lines, connections);
    *earlier = Some(tally);
    Some(result)
}
