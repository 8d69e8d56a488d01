//! What faulty links leave of the ports of ranks, and when flapping ones change.

use crate::fabric::Fabric;
use crate::fold::Folding;
use rackflow_network::{FlowId, FlowNet, Port};
use rackflow_plan::Plan;
use rackflow_topology::{Flap, FlappingPorts, Health};
use rackflow_units::{SimDuration, SimTime};

/// A link that flaps.
#[derive(Debug)]
pub(crate) struct Toggle {
    pub ports: Vec<Port>,
    /// When it goes down first.
    pub first: SimDuration,
    pub every: SimDuration,
    pub down: SimDuration,
}

/// What the faults of a plan leave of the cluster.
pub(crate) fn health(plan: &Plan) -> Health {
    Health::new(plan.setup.host(), &plan.setup.faults)
        .unwrap_or_else(|(_, error)| panic!("the faults were not checked: {error}"))
}

/// Lowers the ports of ranks on faulty links. Entities of a job are numbered from `first_port` on,
/// two end points each.
pub(crate) fn degrade(
    plan: &Plan,
    folding: &Folding,
    health: &Health,
    first_port: u32,
    net: &mut FlowNet,
) {
    let mut changed = Vec::new();
    for (entity, rank) in first_ranks(folding) {
        let gpu = plan.setup.gpu_of(rank);
        for end in endpoints(first_port, entity) {
            for (port, part) in [
                (Port::Nic(end), health.nic.get(&gpu)),
                (Port::Nvlink(end), health.scale_up.get(&gpu)),
            ] {
                if let Some(part) = part {
                    net.set_capacity(SimTime::ZERO, port, *part, &mut changed);
                }
            }
        }
    }
}

/// The links that flap, with no ports yet.
pub(crate) fn toggles(health: &Health) -> Vec<Toggle> {
    health.flaps.iter().map(Toggle::new).collect()
}

/// Adds the ports of the ranks of a plan to the links that flap.
pub(crate) fn flap_ranks(
    toggles: &mut [Toggle],
    plan: &Plan,
    folding: &Folding,
    health: &Health,
    first_port: u32,
) {
    let ends = first_ranks(folding).flat_map(|(entity, rank)| {
        let gpu = plan.setup.gpu_of(rank);
        endpoints(first_port, entity).map(|end| (gpu, end))
    });
    flap(toggles, ends, health);
}

/// The same for the GPUs of a job that are end points one by one, from `first_port` on.
pub(crate) fn flap_gpus(toggles: &mut [Toggle], gpus: &[u32], health: &Health, first_port: u32) {
    flap(toggles, sides_of(gpus, first_port), health);
}

/// The same for links above the leaves.
pub(crate) fn flap_uplinks(toggles: &mut [Toggle], fabric: &Fabric, health: &Health) {
    for (toggle, flap) in toggles.iter_mut().zip(&health.flaps) {
        if let FlappingPorts::LeafUplinks(leaf) = flap.ports {
            let links = fabric.of_leaf.get(&leaf).into_iter().flatten();
            toggle.ports.extend(links.map(|link| Port::Shared(*link)));
        }
    }
}

fn flap(toggles: &mut [Toggle], ends: impl Iterator<Item = (u32, u32)>, health: &Health) {
    for (gpu, end) in ends {
        for (toggle, flap) in toggles.iter_mut().zip(&health.flaps) {
            match &flap.ports {
                FlappingPorts::Nics(gpus) if gpus.contains(&gpu) => {
                    toggle.ports.push(Port::Nic(end));
                }
                FlappingPorts::ScaleUp(flapping) if *flapping == gpu => {
                    toggle.ports.push(Port::Nvlink(end));
                }
                _ => {}
            }
        }
    }
}

/// The same as [`degrade`] for the GPUs of a job that are end points one by one.
pub(crate) fn degrade_gpus(gpus: &[u32], health: &Health, first_port: u32, net: &mut FlowNet) {
    let mut changed = Vec::new();
    for (gpu, end) in sides_of(gpus, first_port) {
        for (port, part) in [
            (Port::Nic(end), health.nic.get(&gpu)),
            (Port::Nvlink(end), health.scale_up.get(&gpu)),
        ] {
            if let Some(part) = part {
                net.set_capacity(SimTime::ZERO, port, *part, &mut changed);
            }
        }
    }
}

impl Toggle {
    fn new(flap: &Flap) -> Self {
        let rhythm = flap.rhythm;
        Self {
            ports: Vec::new(),
            first: SimDuration::from_picos(rhythm.every.as_picos() / 2),
            every: rhythm.every,
            down: rhythm.down,
        }
    }

    /// How long it stays as it is after it has changed so many times: it goes down at every even time.
    fn rest(&self, times: u64) -> SimDuration {
        if times.is_multiple_of(2) {
            self.down
        } else {
            self.every - self.down
        }
    }
}

/// When the links of a net flap. There is one clock for all who use the net.
#[derive(Debug, Default)]
pub(crate) struct Outages {
    toggles: Vec<Toggle>,
    /// When each changes next, and how many times it has.
    next: Vec<(SimTime, u64)>,
}

impl Outages {
    /// Those of the links that anybody uses.
    pub fn new(mut toggles: Vec<Toggle>) -> Self {
        toggles.retain(|toggle| !toggle.ports.is_empty());
        let next = |toggle: &Toggle| (SimTime::ZERO + toggle.first, 0);
        Self {
            next: toggles.iter().map(next).collect(),
            toggles,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.toggles.is_empty()
    }

    /// When a link goes down or comes up next.
    pub fn next_time(&self) -> Option<SimTime> {
        self.next.iter().map(|(at, _)| *at).min()
    }

    /// Takes what happens at that time to the net. Appends the flows whose ends have moved to `changed`.
    pub fn advance(&mut self, net: &mut FlowNet, changed: &mut Vec<(FlowId, SimTime)>) {
        let Some(now) = self.next_time() else { return };
        for (toggle, (at, times)) in self.toggles.iter().zip(&mut self.next) {
            if *at > now {
                continue;
            }
            for port in &toggle.ports {
                net.set_outage(now, *port, times.is_multiple_of(2), changed);
            }
            *at = now + toggle.rest(*times);
            *times += 1;
        }
    }
}

/// Every entity with the first rank that it stands for.
fn first_ranks(folding: &Folding) -> impl Iterator<Item = (u32, u32)> + '_ {
    let mut next = 0;
    folding
        .class_of_rank
        .iter()
        .enumerate()
        .filter_map(move |(rank, class)| {
            // Classes are numbered by first appearance.
            let new = *class == next;
            next += u32::from(new);
            new.then_some((*class, rank as u32))
        })
}

/// Both end points of every GPU of a fleet.
fn sides_of(gpus: &[u32], first_port: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
    let sides =
        move |(gpu, entity): (&u32, u32)| endpoints(first_port, entity).map(|end| (*gpu, end));
    gpus.iter().zip(0..).flat_map(sides)
}

fn endpoints(first_port: u32, entity: u32) -> [u32; 2] {
    [first_port + 2 * entity, first_port + 2 * entity + 1]
}
