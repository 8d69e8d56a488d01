//! Which nodes of different ranks are one communication.
//!
//! The n-th collective of a communicator is one and the same on all its ranks, and the n-th message
//! from a rank to another with one tag is the n-th that arrives there: that is how the libraries
//! match them too.

use super::{Communication, CommunicationKind, Prices, ReplayError};
use rackflow_units::Bytes;
use rackflow_workload::chakra::{Activity, ExecutionTrace};
use std::collections::BTreeMap;

/// Communications, and which one each node takes part in.
pub(super) struct Connected {
    pub communications: Vec<Communication>,
    pub members: Vec<u32>,
    /// By position of the rank and of the node; [`NONE`] for other nodes.
    pub of_node: Vec<Vec<u32>>,
}

/// Takes part in no communication.
const NONE: u32 = u32::MAX;

/// One node that takes part: position of its rank, its own position, and what it says.
#[derive(Clone, Copy)]
struct End {
    rank: u32,
    node: u32,
    says: u64,
}

pub(super) fn connect(
    trace: &ExecutionTrace,
    prices: &mut Prices<'_>,
) -> Result<Connected, ReplayError> {
    let mut connected = Connected {
        communications: Vec::new(),
        members: Vec::new(),
        of_node: trace
            .ranks
            .iter()
            .map(|rank| vec![NONE; rank.nodes.len()])
            .collect(),
    };
    let mut of_group: BTreeMap<u32, BTreeMap<u32, Vec<End>>> = BTreeMap::new();
    let mut messages: BTreeMap<(u32, u32, u32), [Vec<End>; 2]> = BTreeMap::new();
    for (position, rank) in trace.ranks.iter().enumerate() {
        for (index, node) in rank.nodes.iter().enumerate() {
            let end = |says| End {
                rank: position as u32,
                node: index as u32,
                says,
            };
            match node.activity {
                Activity::Collective { group, payload } => of_group
                    .entry(group)
                    .or_default()
                    .entry(position as u32)
                    .or_default()
                    .push(end(payload.into())),
                Activity::Send { peer, tag, bytes } => {
                    messages.entry((rank.rank, peer, tag)).or_default()[0].push(end(bytes.get()));
                }
                Activity::Receive { peer, tag, bytes } => {
                    messages.entry((peer, rank.rank, tag)).or_default()[1].push(end(bytes.get()));
                }
                _ => {}
            }
        }
    }
    for (group, by_rank) in &of_group {
        connected.collectives(trace, *group, by_rank, prices)?;
    }
    let present: Vec<u32> = trace.ranks.iter().map(|rank| rank.rank).collect();
    for ((from, to, tag), ends) in &messages {
        let both = [from, to].map(|rank| present.binary_search(rank).is_ok());
        if both == [true, true] && ends[0].len() != ends[1].len() {
            return Err(ReplayError::Messages {
                from: *from,
                to: *to,
                tag: *tag,
                sent: ends[0].len(),
                received: ends[1].len(),
            });
        }
        connected.messages(*from, *to, ends, both, prices);
    }
    Ok(connected)
}

impl Connected {
    fn take_part(&mut self, end: End) {
        self.of_node[end.rank as usize][end.node as usize] = self.communications.len() as u32;
        self.members.push(end.rank);
    }

    fn collectives(
        &mut self,
        trace: &ExecutionTrace,
        group: u32,
        by_rank: &BTreeMap<u32, Vec<End>>,
        prices: &mut Prices<'_>,
    ) -> Result<(), ReplayError> {
        let described = &trace.groups[group as usize];
        let number = |position: u32| trace.ranks[position as usize].rank;
        let lists: Vec<&Vec<End>> = by_rank.values().collect();
        let Some(first) = lists.first() else {
            return Ok(());
        };
        // Members that have a trace and run none of the collectives are missed too.
        let silent = trace.ranks.iter().enumerate().find(|(position, rank)| {
            described.members.binary_search(&rank.rank).is_ok()
                && !by_rank.contains_key(&(*position as u32))
        });
        let uneven = lists.iter().find(|list| list.len() != first.len());
        let other = uneven
            .map(|list| (number(list[0].rank), list.len()))
            .or(silent.map(|(_, rank)| (rank.rank, 0)));
        if let Some((rank, count)) = other {
            return Err(ReplayError::Collectives {
                group: described.name.clone(),
                ranks: [number(first[0].rank), rank],
                counts: [first.len(), count],
            });
        }
        let span = prices.span(&described.members);
        let ranks = described.members.len() as u64;
        for index in 0..first.len() {
            let standard = |end: &End| trace.payloads[end.says as usize].standard(ranks);
            let (op, _) = standard(&first[index]);
            let start = self.members.len() as u32;
            let mut largest = first[index];
            for list in &lists {
                let end = list[index];
                let (this, bytes) = standard(&end);
                if this != op {
                    return Err(ReplayError::Mismatch {
                        group: described.name.clone(),
                        index,
                        ranks: [number(first[index].rank), number(end.rank)],
                        ops: [op, this],
                    });
                }
                if bytes > standard(&largest).1 {
                    largest = end;
                }
                self.take_part(end);
            }
            let payload = largest.says as u32;
            let demand = prices.collective(payload, &trace.payloads[payload as usize], span);
            self.communications.push(Communication {
                kind: CommunicationKind::Collective(op),
                demand,
                members: (start, self.members.len() as u32),
                ends: [true, true],
            });
        }
        Ok(())
    }

    fn messages(
        &mut self,
        from: u32,
        to: u32,
        ends: &[Vec<End>; 2],
        both: [bool; 2],
        prices: &mut Prices<'_>,
    ) {
        for index in 0..ends[0].len().max(ends[1].len()) {
            let start = self.members.len() as u32;
            let taking_part: Vec<End> = ends
                .iter()
                .filter_map(|end| end.get(index).copied())
                .collect();
            // The sender knows the size, where it has a trace.
            let bytes = Bytes::new(taking_part.first().map_or(0, |end| end.says));
            let demand = prices.message(from, to, bytes);
            for end in taking_part {
                self.take_part(end);
            }
            self.communications.push(Communication {
                kind: CommunicationKind::Message,
                demand,
                members: (start, self.members.len() as u32),
                ends: both,
            });
        }
    }
}
