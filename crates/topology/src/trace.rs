//! The paths between two GPUs, described.

use crate::fabric::Routing;
use crate::fault::{FaultError, FlappingPorts, Health, LinkFault};
use crate::graph::Vertex;
use crate::layout::TopologyError;
use crate::map::{ClusterMap, Level};
use crate::node::Cluster;
use crate::wires::{LinkId, Wires};
use crate::wiring::Wiring;
use rackflow_units::SimDuration;
use schemars::JsonSchema;
use serde::Serialize;

/// Connections of a pair whose hashed paths are listed.
const CONNECTIONS: u64 = 8;

/// How one GPU reaches another on idle links.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct RouteTrace {
    /// Sender.
    pub from: u32,
    /// Receiver.
    pub to: u32,
    /// Highest tier on the way.
    pub level: Level,
    /// Latency of a small message, in nanoseconds.
    pub latency_ns: f64,
    /// Line rate of the narrowest link of one path, in bytes per second, one direction.
    pub bytes_per_s: u64,
    /// Equal-cost paths, parallel cables counted one by one.
    pub paths: u64,
    /// `adaptive`: packets are spread over all paths; `ecmp`: a hash picks one per connection.
    pub routing: Routing,
    /// The links of one of the paths.
    pub hops: Vec<Hop>,
    /// The path that stays on the receiver's rail, where it differs: a neighbour relays.
    pub by_rail: Option<Vec<Hop>>,
    /// The highest switch that each of the pair's first connections is hashed to; empty where
    /// packets are spread.
    pub hashed: Vec<String>,
}

/// One link of a path.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Hop {
    /// Where it leaves.
    pub from: String,
    /// Where it arrives.
    pub to: String,
    /// Tier of the link.
    pub level: Level,
    /// Line rate, in bytes per second.
    pub bytes_per_s: u64,
    /// Latency that it adds, in nanoseconds.
    pub latency_ns: f64,
    /// Links from which it was chosen.
    pub choices: u64,
    /// What is wrong with it, where something is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// The name of a vertex in texts.
pub(crate) fn name(vertex: Vertex) -> String {
    match vertex {
        Vertex::Gpu(i) => format!("GPU {i}"),
        Vertex::Domain(i) => format!("switches of domain {i}"),
        Vertex::Nic(i) => format!("NIC {i}"),
        Vertex::Leaf(i) => format!("leaf {i}"),
        Vertex::Spine(i) => format!("spine {i}"),
        Vertex::Core(i) => format!("core {i}"),
    }
}

impl RouteTrace {
    /// Follows the paths from one GPU to another; `seed` draws hashed ones.
    ///
    /// # Errors
    /// Any [`TopologyError`], the same as [`Wires::new`].
    ///
    /// # Panics
    /// When there is no such GPU.
    pub fn new(cluster: &Cluster, from: u32, to: u32, seed: u64) -> Result<Self, TopologyError> {
        let wires = Wires::routed(cluster, Routing::Ecmp, seed)?;
        let routing = cluster.fabric.routing();
        let mut route = Vec::new();
        wires.route(from, to, 0, &mut route);
        let mut hops = hops(&wires, &route);
        join(&mut hops);
        let narrowest = hops.iter().map(|hop| hop.bytes_per_s).min().unwrap_or(0);
        let met = ClusterMap::new(cluster)?.path(from, to).bandwidth;
        let narrowest = narrowest.min(met.bytes_per_sec());
        if matches!(cluster.node.scale_up.wiring, Wiring::Bridged(_)) {
            over_bridges(&mut hops);
        }
        let latency: SimDuration = route
            .iter()
            .fold(SimDuration::ZERO, |sum, link| sum + wires.latency(*link));
        let level = route.iter().map(|link| wires.level(*link)).max();
        let mut rail = Vec::new();
        wires.route_by_rail(from, to, 0, &mut rail);
        let hashed = if routing == Routing::Ecmp && wires.paths(from, to) > 1 {
            (0..CONNECTIONS)
                .map(|choice| {
                    let mut route = Vec::new();
                    wires.route(from, to, choice, &mut route);
                    summit(&wires, &route)
                })
                .collect()
        } else {
            Vec::new()
        };
        Ok(Self {
            from,
            to,
            level: level.unwrap_or(Level::Local),
            latency_ns: latency.as_picos() as f64 / 1e3,
            bytes_per_s: narrowest,
            paths: wires.paths(from, to),
            routing,
            by_rail: (rail != route).then(|| self::hops(&wires, &rail)),
            hops,
            hashed,
        })
    }
}

fn hops(wires: &Wires, route: &[LinkId]) -> Vec<Hop> {
    route
        .iter()
        .zip(wires.choices(route))
        .map(|(&link, choices)| {
            let (from, to) = wires.ends(link);
            Hop {
                from: name(from),
                to: name(to),
                level: wires.level(link),
                bytes_per_s: wires.bandwidth(link).bytes_per_sec(),
                latency_ns: wires.latency(link).as_picos() as f64 / 1e3,
                choices,
                fault: None,
            }
        })
        .collect()
}

/// Where parts of several kinds meet, each has numbered the common switches for itself.
fn join(hops: &mut [Hop]) {
    for i in 1..hops.len() {
        if hops[i - 1].to != hops[i].from {
            let tier = hops[i].from.split(' ').next().unwrap_or_default();
            let common = format!("{tier}s in common");
            hops[i - 1].to.clone_from(&common);
            hops[i].from = common;
        }
    }
}

/// Cards reach each other over PCIe: nothing there is a switch of a scale-up network.
fn over_bridges(hops: &mut [Hop]) {
    for end in hops.iter_mut().flat_map(|hop| [&mut hop.from, &mut hop.to]) {
        if let Some(domain) = end.strip_prefix("switches of ") {
            *end = format!("host bridges of {domain}");
        }
    }
}

impl RouteTrace {
    /// Marks what is left of links that are dead, slow or flapping.
    ///
    /// # Errors
    /// The number of the first impossible fault, and why it is.
    pub fn with_faults(
        mut self,
        cluster: &Cluster,
        faults: &[LinkFault],
    ) -> Result<Self, (usize, FaultError)> {
        let health = Health::new(cluster, faults)?;
        for hop in self
            .hops
            .iter_mut()
            .chain(self.by_rail.iter_mut().flatten())
        {
            hop.fault = health.words(&hop.from, &hop.to);
        }
        let left = |hop: &Hop| (hop.bytes_per_s as f64 * health.left(&hop.from, &hop.to)) as u64;
        let narrowest = self.hops.iter().map(left).min().unwrap_or(0);
        self.bytes_per_s = self.bytes_per_s.min(narrowest);
        Ok(self)
    }
}

/// The number behind a word, as in `leaf 3`.
fn number(of: &str, word: &str) -> Option<u32> {
    of.strip_prefix(word)?.trim().parse().ok()
}

impl Health {
    /// What is left of the link between two vertices.
    fn left(&self, from: &str, to: &str) -> f64 {
        self.part(from, to).map_or(1.0, |(part, _)| part)
    }

    fn part(&self, from: &str, to: &str) -> Option<(f64, bool)> {
        let either = |word| number(from, word).or_else(|| number(to, word));
        let is = |word: &str| from.starts_with(word) || to.starts_with(word);
        let (whole, flaps) = if is("NIC") && is("GPU") {
            let gpu = either("GPU")?;
            (
                self.nic.get(&gpu),
                self.flaps(
                    |ports| matches!(ports, FlappingPorts::Nics(gpus) if gpus.contains(&gpu)),
                ),
            )
        } else if is("leaf") && is("spine") {
            let leaf = either("leaf")?;
            (
                self.leaf.get(&leaf),
                self.flaps(|ports| *ports == FlappingPorts::LeafUplinks(leaf)),
            )
        } else if is("GPU") {
            let gpu = either("GPU")?;
            (
                self.scale_up.get(&gpu),
                self.flaps(|ports| *ports == FlappingPorts::ScaleUp(gpu)),
            )
        } else {
            (None, false)
        };
        (whole.is_some() || flaps).then_some((whole.copied().unwrap_or(1.0), flaps))
    }

    fn flaps(&self, is: impl Fn(&FlappingPorts) -> bool) -> bool {
        self.flaps.iter().any(|flap| is(&flap.ports))
    }

    fn words(&self, from: &str, to: &str) -> Option<String> {
        let (part, flaps) = self.part(from, to)?;
        let mut words = Vec::new();
        let dead = |gpu| self.dead.binary_search(&gpu).is_ok();
        let gpu = number(from, "GPU").or_else(|| number(to, "GPU"));
        if (from.starts_with("NIC") || to.starts_with("NIC")) && gpu.is_some_and(dead) {
            let percent = part * 100.0;
            words.push(format!(
                "dead: {percent:.0} % of a neighbour's NIC in its place"
            ));
        } else if part < 1.0 {
            words.push(format!("{:.0} % of its rate is left", part * 100.0));
        }
        if flaps {
            words.push("flaps".to_owned());
        }
        (!words.is_empty()).then(|| words.join(", "))
    }
}

/// The highest vertex of a route.
fn summit(wires: &Wires, route: &[LinkId]) -> String {
    let ends = route.iter().map(|link| wires.ends(*link).1);
    ends.max_by_key(|vertex| match vertex {
        Vertex::Gpu(_) => 0,
        Vertex::Domain(_) => 1,
        Vertex::Nic(_) => 2,
        Vertex::Leaf(_) => 3,
        Vertex::Spine(_) => 4,
        Vertex::Core(_) => 5,
    })
    .map_or_else(String::new, name)
}
