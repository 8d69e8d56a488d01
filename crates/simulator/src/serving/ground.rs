//! A fleet on its GPUs: which flows may come, and what faults leave of them.

use super::fleet::{Fleet, FleetSite, Pool};
use super::network::{Ground, Spread};
use super::replica::Replica;
use crate::fabric::{Fabric, Keep, Site, lay_out};
use crate::ports::{self, Outages};
use rackflow_network::FlowNet;
use rackflow_plan::{Flows, Pattern};
use rackflow_topology::Health;
use rackflow_workload::Medium;

/// GPUs of the fleet, counted over the cluster where it sits in one.
pub(crate) fn all_gpus(fleet: &Fleet<'_>) -> Vec<u32> {
    let end = |pool: &Pool<'_>| pool.first_gpu + pool.replicas * pool.gpus;
    let gpus = fleet.pools.iter().map(end).max().unwrap_or(0);
    (0..gpus).map(|gpu| seat(fleet, gpu)).collect()
}

fn seat(fleet: &Fleet<'_>, gpu: u32) -> u32 {
    fleet.site.map_or(gpu, |site| site.gpu_of(gpu))
}

/// The flows that may come over NICs: caches from every prefill to every decode replica, what replicas of
/// several domains send in a step, and what they read from a remote store and write to it.
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
        caches.edges.retain(|edge| crosses(site, edge));
        all.push(caches);
    }
    let hosts = Hosts::of(fleet, site);
    for pool in &fleet.pools {
        for replica in 0..pool.replicas {
            let first = pool.first_gpu + replica * pool.gpus;
            all.extend(steps(fleet, site, pool, first));
            if let Some(hosts) = &hosts {
                all.extend(hosts.blocks(fleet, pool, first));
            }
        }
    }
    all.retain(|flows| !flows.edges.is_empty());
    all
}

/// Whether a flow leaves its NVLink domain.
fn crosses(site: FleetSite<'_>, (from, to, _): &(u32, u32, bool)) -> bool {
    site.map.place(*from).domain != site.map.place(*to).domain
}

/// The first GPU of every attention group of a pool.
fn groups(pool: &Pool<'_>) -> impl Iterator<Item = u32> + use<> {
    let count = pool.replicas * (pool.gpus / pool.cache_gpus.max(1)).max(1);
    let (first, size) = (pool.first_gpu, pool.cache_gpus);
    (0..count).map(move |group| first + group * size)
}

/// What the ranks of one replica send each other over NICs: tokens to their experts, or the sums of
/// tensor ranks, in every stage, and activations from stage to stage. All flows of one set carry alike.
fn steps(fleet: &Fleet<'_>, site: FleetSite<'_>, pool: &Pool<'_>, first: u32) -> Vec<Flows> {
    let gpus: Vec<u32> = (first..first + pool.gpus)
        .map(|gpu| seat(fleet, gpu))
        .collect();
    let stage = pool.stage_gpus.clamp(1, pool.gpus) as usize;
    let pattern = if pool.exchanges {
        Pattern::Relayed
    } else {
        Pattern::Ring
    };
    let mut inside = Flows::default();
    for stage in gpus.chunks(stage) {
        let flows = Flows::among(pattern, stage, site.map);
        inside.each = inside.each.max(flows.each);
        inside.edges.extend(flows.edges);
    }
    let next = gpus.iter().zip(gpus.iter().skip(stage));
    let mut onward = Flows {
        each: 1,
        edges: next.map(|(from, to)| (*from, *to, false)).collect(),
    };
    onward.edges.retain(|edge| crosses(site, edge));
    vec![inside, onward]
}

/// More hosts than this are taken at even distances.
const MOST_HOSTS: usize = 256;

/// The NVLink domains of a fleet, over which the blocks of a remote store are spread.
struct Hosts {
    /// Members of each.
    domains: Vec<Vec<u32>>,
}

impl Hosts {
    /// Those of a fleet that has a remote store.
    fn of(fleet: &Fleet<'_>, site: FleetSite<'_>) -> Option<Self> {
        let mut store = fleet.store.iter();
        if !store.any(|tier| tier.medium == Medium::Remote) {
            return None;
        }
        let mut gpus = all_gpus(fleet);
        gpus.sort_unstable();
        let domain = |gpu: &u32| site.map.place(*gpu).domain;
        let domains: Vec<Vec<u32>> = gpus
            .chunk_by(|a, b| domain(a) == domain(b))
            .map(<[u32]>::to_vec)
            .collect();
        let every = domains.len().div_ceil(MOST_HOSTS).max(1);
        Some(Self {
            domains: domains.into_iter().step_by(every).collect(),
        })
    }

    /// From all other hosts to the GPUs of a replica that hold a cache, and back.
    fn blocks(&self, fleet: &Fleet<'_>, pool: &Pool<'_>, first: u32) -> [Flows; 2] {
        let mut flows = Flows::default();
        for column in 0..pool.cache_gpus {
            let to = seat(fleet, first + column);
            let others = self.domains.iter().filter(|domain| !domain.contains(&to));
            let before = flows.edges.len();
            flows
                .edges
                .extend(others.map(|domain| (domain[column as usize % domain.len()], to, false)));
            flows.each = flows.each.max((flows.edges.len() - before) as u32);
        }
        let back = flows.edges.iter().map(|(from, to, way)| (*to, *from, *way));
        let back = Flows {
            each: flows.each,
            edges: back.collect(),
        };
        [flows, back]
    }
}

/// Links over which the steps of a replica send, and flows of its busiest GPU.
pub(super) fn way_of_steps(fleet: &Fleet<'_>, replica: &Replica, ground: &Ground) -> Spread {
    let (Some(roads), Some(site)) = (&ground.roads, fleet.site) else {
        return (Vec::new(), 1);
    };
    let sets = steps(fleet, site, &fleet.pools[replica.pool], replica.gpu);
    // What goes from stage to stage is small beside what goes around inside one.
    let flows = sets.into_iter().find(|flows| !flows.edges.is_empty());
    flows.map_or((Vec::new(), 1), |flows| (roads.of(&flows), flows.each))
}

/// Links over which a replica reads from a remote store and writes to it, and flows of each of its GPUs.
pub(super) fn ways_of_store(fleet: &Fleet<'_>, replica: &Replica, ground: &Ground) -> [Spread; 2] {
    let hosts = fleet.site.and_then(|site| Hosts::of(fleet, site));
    match (&ground.roads, hosts) {
        (Some(roads), Some(hosts)) => hosts
            .blocks(fleet, &fleet.pools[replica.pool], replica.gpu)
            .map(|flows| (roads.of(&flows), flows.each)),
        _ => [(Vec::new(), 1), (Vec::new(), 1)],
    }
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
        let on_fabric = site.on_fabric;
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
