//! A fleet on its GPUs: which flows may come, and what faults leave of them.

use super::fleet::{Fleet, Pool};
use super::network::Ground;
use super::replica::Replica;
use crate::fabric::{Fabric, Keep, Site, lay_out};
use crate::ports::{self, Outages};
use rackflow_network::FlowNet;
use rackflow_plan::{Flows, Pattern, may_block};
use rackflow_topology::Health;

/// GPUs of the fleet, counted over the cluster where it sits in one.
pub(crate) fn all_gpus(fleet: &Fleet<'_>) -> Vec<u32> {
    let end = |pool: &Pool<'_>| pool.first_gpu + pool.replicas * pool.gpus;
    let gpus = fleet.pools.iter().map(end).max().unwrap_or(0);
    (0..gpus).map(|gpu| seat(fleet, gpu)).collect()
}

fn seat(fleet: &Fleet<'_>, gpu: u32) -> u32 {
    fleet.site.map_or(gpu, |site| site.gpu_of(gpu))
}

/// The flows that may come over NICs: caches from every prefill to every decode replica, and what
/// replicas of several domains send in a step.
pub(crate) fn visitors(fleet: &Fleet<'_>) -> Vec<Flows> {
    let Some(site) = fleet.site else {
        return Vec::new();
    };
    let mut all = Vec::new();
    if let [from, to] = fleet.pools.as_slice() {
        let pairs = from.cache_gpus.max(to.cache_gpus);
        let mut caches = Flows {
            each: 1,
            edges: Vec::new(),
        };
        for source in groups(from) {
            for target in groups(to) {
                caches.edges.extend((0..pairs).map(|pair| {
                    let from = seat(fleet, source + pair % from.cache_gpus);
                    (from, seat(fleet, target + pair % to.cache_gpus), false)
                }));
            }
        }
        let map = site.map;
        let across = |edge: &(u32, u32, bool)| map.place(edge.0).domain != map.place(edge.1).domain;
        caches.edges.retain(across);
        all.push(caches);
    }
    for pool in &fleet.pools {
        for replica in 0..pool.replicas {
            let first = pool.first_gpu + replica * pool.gpus;
            all.push(steps(fleet, first, pool.gpus));
        }
    }
    all.retain(|flows| !flows.edges.is_empty());
    all
}

/// The first GPU of every attention group of a pool.
fn groups(pool: &Pool<'_>) -> impl Iterator<Item = u32> + use<> {
    let count = pool.replicas * (pool.gpus / pool.cache_gpus.max(1)).max(1);
    let (first, size) = (pool.first_gpu, pool.cache_gpus);
    (0..count).map(move |group| first + group * size)
}

/// What the ranks of one replica send each other over NICs: tokens to their experts.
fn steps(fleet: &Fleet<'_>, first: u32, gpus: u32) -> Flows {
    let Some(site) = fleet.site else {
        return Flows::default();
    };
    let gpus: Vec<u32> = (first..first + gpus).map(|gpu| seat(fleet, gpu)).collect();
    Flows::among(Pattern::Relayed, &gpus, site.map)
}

/// Links over which the steps of a replica send, and flows of its busiest GPU.
pub(super) fn way_of_steps(
    fleet: &Fleet<'_>,
    replica: &Replica,
    ground: &Ground,
) -> (Vec<(u32, u32)>, u32) {
    let Some(roads) = &ground.roads else {
        return (Vec::new(), 1);
    };
    let flows = steps(fleet, replica.gpu, fleet.pools[replica.pool].gpus);
    (roads.of(&flows), flows.each)
}

/// How many times longer the kernels of a replica take: all of its ranks wait for the slowest.
pub(super) fn slowdown(fleet: &Fleet<'_>, replica: &Replica) -> f64 {
    let gpus = replica.gpu..replica.gpu + fleet.pools[replica.pool].gpus;
    fleet
        .stragglers
        .iter()
        .filter(|straggler| gpus.contains(&straggler.gpu))
        .map(|straggler| straggler.slowdown)
        .fold(1.0, f64::max)
}

impl Fleet<'_> {
    /// A net of its own.
    pub(crate) fn alone(&self) -> (FlowNet, Ground, Outages) {
        let gpus = all_gpus(self);
        let Some(site) = self.site else {
            return (
                FlowNet::new(2 * gpus.len()),
                Ground::default(),
                Outages::default(),
            );
        };
        let health = Health::new(site.cluster, site.faults)
            .unwrap_or_else(|(_, error)| panic!("the faults were not checked: {error}"));
        let on_fabric = may_block(site.cluster, site.faults, site.map);
        let visitors = if on_fabric {
            visitors(self)
        } else {
            Vec::new()
        };
        let fabric = if visitors.is_empty() {
            Fabric::default()
        } else {
            let ground = Site {
                host: site.cluster,
                seed: self.seed,
                on_fabric,
                keep: Keep::Narrow,
                visitors: &visitors,
            };
            lay_out(ground, &[], &health).1
        };
        let mut net = FlowNet::with_links(2 * gpus.len(), &fabric.capacities);
        ports::degrade_gpus(&gpus, &health, 0, &mut net);
        let mut toggles = ports::toggles(&health);
        ports::flap_gpus(&mut toggles, &gpus, &health, 0);
        ports::flap_uplinks(&mut toggles, &fabric, &health);
        let ground = Ground {
            roads: fabric.roads.filter(|_| !fabric.capacities.is_empty()),
            ..Ground::default()
        };
        (net, ground, Outages::new(toggles))
    }
}
