//! What faulty links leave of the ports of ranks, and when flapping ones change.

use crate::fabric::Fabric;
use crate::fold::Folding;
use rackflow_network::{FlowNet, Port};
use rackflow_plan::Plan;
use rackflow_topology::{FlappingPorts, Health};
use rackflow_units::{SimDuration, SimTime};

/// A link that flaps: its ports, with what works of each while it is up.
#[derive(Debug)]
pub(crate) struct Toggle {
    pub ports: Vec<(Port, f64)>,
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

/// The flapping links that ranks of this plan use.
pub(crate) fn toggles(
    plan: &Plan,
    folding: &Folding,
    health: &Health,
    fabric: &Fabric,
    first_port: u32,
) -> Vec<Toggle> {
    let entities: Vec<(u32, u32)> = first_ranks(folding).collect();
    let whole = |part: Option<&f64>| part.copied().unwrap_or(1.0);
    let toggle = |flap: &rackflow_topology::Flap| {
        let mut ports = Vec::new();
        for (entity, rank) in &entities {
            let gpu = plan.setup.gpu_of(*rank);
            for end in endpoints(first_port, *entity) {
                match &flap.ports {
                    FlappingPorts::Nics(gpus) if gpus.contains(&gpu) => {
                        ports.push((Port::Nic(end), whole(health.nic.get(&gpu))));
                    }
                    FlappingPorts::ScaleUp(flapping) if *flapping == gpu => {
                        ports.push((Port::Nvlink(end), whole(health.scale_up.get(&gpu))));
                    }
                    _ => {}
                }
            }
        }
        shared(flap, fabric, first_port, &mut ports);
        Toggle::new(ports, flap)
    };
    health.flaps.iter().map(toggle).collect()
}

/// The same for the GPUs of a job that are end points one by one, from `first_port` on.
pub(crate) fn toggles_of_gpus(
    gpus: &[u32],
    health: &Health,
    fabric: &Fabric,
    first_port: u32,
) -> Vec<Toggle> {
    let whole = |part: Option<&f64>| part.copied().unwrap_or(1.0);
    let toggle = |flap: &rackflow_topology::Flap| {
        let mut ports = Vec::new();
        for (gpu, end) in gpus.iter().zip(first_port..) {
            match &flap.ports {
                FlappingPorts::Nics(flapping) if flapping.contains(gpu) => {
                    ports.push((Port::Nic(end), whole(health.nic.get(gpu))));
                }
                FlappingPorts::ScaleUp(flapping) if flapping == gpu => {
                    ports.push((Port::Nvlink(end), whole(health.scale_up.get(gpu))));
                }
                _ => {}
            }
        }
        shared(flap, fabric, first_port, &mut ports);
        Toggle::new(ports, flap)
    };
    health.flaps.iter().map(toggle).collect()
}

/// The same as [`degrade`] for the GPUs of a job that are end points one by one.
pub(crate) fn degrade_gpus(gpus: &[u32], health: &Health, first_port: u32, net: &mut FlowNet) {
    let mut changed = Vec::new();
    for (gpu, end) in gpus.iter().zip(first_port..) {
        for (port, part) in [
            (Port::Nic(end), health.nic.get(gpu)),
            (Port::Nvlink(end), health.scale_up.get(gpu)),
        ] {
            if let Some(part) = part {
                net.set_capacity(SimTime::ZERO, port, *part, &mut changed);
            }
        }
    }
}

/// A link that jobs share flaps once, by the first job's clock.
fn shared(
    flap: &rackflow_topology::Flap,
    fabric: &Fabric,
    first_port: u32,
    ports: &mut Vec<(Port, f64)>,
) {
    if let FlappingPorts::LeafUplinks(leaf) = flap.ports
        && first_port == 0
    {
        let links = fabric.of_leaf.get(&leaf).into_iter().flatten();
        ports.extend(links.map(|link| (Port::Shared(*link), 1.0)));
    }
}

impl Toggle {
    fn new(ports: Vec<(Port, f64)>, flap: &rackflow_topology::Flap) -> Self {
        let rhythm = flap.rhythm;
        Self {
            ports,
            first: SimDuration::from_picos(rhythm.every.as_picos() / 2),
            every: rhythm.every,
            down: rhythm.down,
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

fn endpoints(first_port: u32, entity: u32) -> [u32; 2] {
    [first_port + 2 * entity, first_port + 2 * entity + 1]
}
