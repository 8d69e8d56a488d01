//! How many bytes every rank sends in a step, by tier of the network and by what they are for.
//!
//! Which transfers a rank takes part in is in its program and what each sends is in its demand, so this
//! is a sum and no event: the bytes of a step do not depend on when they are sent. Expert exchanges
//! are those of the mean load.

use crate::fold::{Entity, Group};
use rackflow_network::Demand;
use rackflow_plan::{CommKind, Peer, Plan, Program, Work};

/// Bytes that one rank sends, by the tier that they enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TierBytes {
    /// Into its NVLink domain.
    pub nvlink: u64,
    /// Out of its share of the NICs.
    pub nic: u64,
    /// Of these, from its leaf to the spines.
    pub leaf_up: u64,
    /// Of these, from its pod to the cores.
    pub pod_up: u64,
}

impl TierBytes {
    /// Adds `times` of what a transfer asks for.
    fn add(&mut self, demand: &Demand, times: u64) {
        let nic = demand.wire_bytes_nic.get();
        let share = |millionths: u32| (u128::from(nic) * u128::from(millionths) / 1_000_000) as u64;
        let leaf_up = share(demand.over_leaf);
        self.nvlink += times * demand.wire_bytes_nvlink.get();
        self.nic += times * nic;
        self.leaf_up += times * leaf_up;
        self.pod_up += times * share(demand.over_pod);
    }
}

/// Bytes that one rank sends in a step, by kind in the order of [`CommKind::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic(pub [TierBytes; CommKind::ALL.len()]);

impl Traffic {
    /// Over all kinds.
    pub fn total(&self) -> TierBytes {
        self.0
            .iter()
            .fold(TierBytes::default(), |sum, of| TierBytes {
                nvlink: sum.nvlink + of.nvlink,
                nic: sum.nic + of.nic,
                leaf_up: sum.leaf_up + of.leaf_up,
                pod_up: sum.pod_up + of.pod_up,
            })
    }
}

/// What every entity sends.
pub(crate) fn traffic(plan: &Plan, entities: &[Entity], groups: &[Group]) -> Vec<Traffic> {
    let sent: Vec<Vec<(Work, u64)>> = plan.programs.iter().map(sent).collect();
    let of_entity = |entity: &Entity| {
        let mut traffic = Traffic::default();
        for (work, times) in &sent[entity.stage as usize] {
            let (transfer, class) = match *work {
                Work::Collective(slot, transfer) => {
                    let group = entity.groups[slot as usize];
                    (transfer, groups[group as usize].span_class)
                }
                Work::Send(Peer::Next, transfer) => (transfer, entity.next_path),
                Work::Send(Peer::Previous, transfer) => (transfer, entity.previous_path),
                Work::Compute(_) | Work::Receive(..) | Work::Copy(_) => continue,
            };
            let kind = plan.transfers[transfer.0 as usize].kind as usize;
            let demand = &plan.demands[transfer.0 as usize][class as usize];
            traffic.0[kind].add(demand, *times);
        }
        traffic
    };
    entities.iter().map(of_entity).collect()
}

/// Distinct transfers that a program sends, and how often.
fn sent(program: &Program) -> Vec<(Work, u64)> {
    let mut found: Vec<(Work, u64)> = Vec::new();
    for task in &program.tasks {
        if matches!(
            task.work,
            Work::Compute(_) | Work::Receive(..) | Work::Copy(_)
        ) {
            continue;
        }
        match found.iter_mut().find(|(work, _)| *work == task.work) {
            Some((_, times)) => *times += 1,
            None => found.push((task.work, 1)),
        }
    }
    found
}
