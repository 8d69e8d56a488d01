//! A cluster described: what stands there, what is wired to what, how wide each tier is, and a few
//! of each kind with their links for a drawing.

use crate::graph::Vertex;
use crate::layout::{Layout, TopologyError};
use crate::map::{ClusterMap, Inventory, Level, inventory};
use crate::node::Cluster;
use crate::wiring::{Shape, bridged_part};
use schemars::JsonSchema;
use serde::Serialize;

/// What a cluster is made of. Rates are one direction.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Survey {
    /// Name of the node.
    pub node: String,
    /// Name of its accelerator.
    pub accelerator: String,
    /// Accelerators in all.
    pub gpus: u32,
    /// Accelerators per node.
    pub gpus_per_node: u32,
    /// Accelerators per full rack.
    pub gpus_per_rack: u32,
    /// Power of a full rack under load, in watts.
    pub rack_power_w: f64,
    /// Racks, nodes, domains, NICs, switches and cables.
    pub inventory: Inventory,
    /// Switch ports and NICs that hold an optical transceiver, if every cable is optical: two per
    /// cable.
    pub transceivers: u64,
    /// The scale-up domain.
    pub domain: DomainSurvey,
    /// NICs of one node.
    pub nics_per_node: u32,
    /// Line rate of one NIC, in bytes per second.
    pub nic_bytes_per_s: u64,
    /// One GPU's share of its node's NICs, in bytes per second.
    pub nic_share_bytes_per_s: u64,
    /// Kind of the fabric, as it is written in a scenario.
    pub fabric: &'static str,
    /// `adaptive` or `ecmp`.
    pub routing: crate::Routing,
    /// The switches of the fabric can reduce in flight.
    pub in_network_reduction: bool,
    /// Trees that never meet outside a domain.
    pub planes: u32,
    /// Rails that have leaves of their own inside a tree.
    pub rails: u32,
    /// Pods (Dragonfly+: groups) of one plane.
    pub pods: u32,
    /// Tiers of cables, lowest first.
    pub tiers: Vec<TierSurvey>,
    /// Bytes per second across the narrowest cut of the fabric into halves, in one direction.
    pub bisection_bytes_per_s: u64,
    /// The same over what the NICs of one half could send; 1 is non-blocking.
    pub bisection_share: f64,
    /// How far GPU 0's peers are.
    pub peers: Vec<PeerSurvey>,
    /// A few of everything, for a drawing.
    #[serde(skip)]
    pub sketch: Sketch,
}

/// One scale-up domain.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct DomainSurvey {
    /// GPUs of a full domain.
    pub gpus: u32,
    /// `switched`, `mesh`, or `torus 4 x 4 x 4`; open axes of a torus are marked by `|`.
    pub wiring: String,
    /// Bandwidth of one GPU, all its links together, in bytes per second.
    pub bytes_per_s: u64,
    /// Bandwidth of one link, in bytes per second; of all of a GPU's ports through switches.
    pub link_bytes_per_s: u64,
    /// Latency of one hop, in nanoseconds.
    pub hop_ns: f64,
    /// Cables between GPUs of one domain; zero where switches join them.
    pub cables: u64,
    /// Bytes per second across the narrowest cut of one domain into halves, in one direction.
    pub bisection_bytes_per_s: u64,
    /// The switches can reduce in flight.
    pub in_switch_reduction: bool,
}

/// The cables between two tiers.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct TierSurvey {
    /// What they join, as in `leaf - spine`.
    pub name: &'static str,
    /// The level that traffic over it has.
    pub level: Level,
    /// Cables in all.
    pub cables: u64,
    /// Line rate of one cable, in bytes per second.
    pub cable_bytes_per_s: u64,
    /// Capacity of all cables of the tier, in bytes per second.
    pub bytes_per_s: u64,
    /// Capacity of the tier below over that of this one; 1 is non-blocking.
    pub oversubscription: f64,
}

/// The peers of GPU 0 at one distance.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct PeerSurvey {
    /// Highest tier on the way.
    pub level: Level,
    /// How many.
    pub gpus: u32,
    /// Latency of a small message to the nearest and to the farthest, in nanoseconds.
    pub latency_ns: [f64; 2],
    /// Line rate of the narrowest link on the way, in bytes per second.
    pub bytes_per_s: u64,
}

/// A few racks and switches with the links between them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sketch {
    /// Racks from left to right.
    pub racks: Vec<SketchRack>,
    /// Leaves, with their plane, pod and rail.
    pub leaves: Vec<SketchSwitch>,
    /// Spines, with their plane and pod.
    pub spines: Vec<SketchSwitch>,
    /// Cores, with their plane.
    pub cores: Vec<SketchSwitch>,
    /// Links between what is drawn, by GPU and switch numbers.
    pub links: Vec<(Vertex, Vertex)>,
}

/// One rack of a sketch.
#[derive(Debug, Clone, PartialEq)]
pub struct SketchRack {
    /// Its number.
    pub rack: u32,
    /// GPUs of the rack that are drawn, by domain.
    pub domains: Vec<(u32, Vec<u32>)>,
    /// GPUs in it.
    pub gpus: u32,
}

/// One switch of a sketch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SketchSwitch {
    /// Which, counted over the cluster.
    pub vertex: Vertex,
    /// Its plane.
    pub plane: u32,
    /// Its pod in the plane.
    pub pod: u32,
    /// Its rail; 0 where leaves have none.
    pub rail: u32,
}

/// Drawn at most: racks, domains of a rack, GPUs of a domain in a rack.
const DRAWN_RACKS: u32 = 3;
const DRAWN_DOMAINS: usize = 2;
const DRAWN_GPUS: usize = 8;
/// Drawn at most: leaves, and spines and cores in all.
const DRAWN_LEAVES: usize = 16;
const DRAWN_SWITCHES: u32 = 8;

impl Survey {
    /// Describes a cluster.
    ///
    /// # Errors
    /// Any [`TopologyError`], the same as [`ClusterMap::new`].
    pub fn new(cluster: &Cluster) -> Result<Self, TopologyError> {
        Self::of_layout(cluster, &Layout::new(cluster)?)
    }

    /// The same for each part of a cluster of several kinds of node, with its links to what joins the
    /// parts.
    ///
    /// # Errors
    /// Any [`TopologyError`].
    pub fn parts(cluster: &Cluster) -> Result<Vec<Self>, TopologyError> {
        ClusterMap::new(cluster)?;
        let alone = cluster.parts.iter().map(|part| Cluster {
            node: part.node.clone(),
            gpus: part.gpus,
            fabric: cluster.fabric.clone(),
            parts: Vec::new(),
        });
        alone
            .map(|part| Self::of_layout(&part, &Layout::part(&part)?))
            .collect()
    }

    fn of_layout(cluster: &Cluster, layout: &Layout) -> Result<Self, TopologyError> {
        let map = ClusterMap::new(cluster)?;
        let node = &cluster.node;
        let inventory = inventory(layout);
        let (bisection, share) = bisection(layout);
        Ok(Self {
            node: node.name.clone(),
            accelerator: node.accelerator.name.clone(),
            gpus: cluster.gpus,
            gpus_per_node: node.gpus.min(cluster.gpus),
            gpus_per_rack: node.rack.gpus,
            rack_power_w: node.rack.power.watts(),
            inventory,
            transceivers: 2 * inventory.cables,
            domain: domain(cluster, layout),
            nics_per_node: node.nic.count,
            nic_bytes_per_s: node.nic.rate.bytes_per_sec(),
            nic_share_bytes_per_s: map.nic_share().bytes_per_sec(),
            fabric: cluster.fabric.kind(),
            routing: cluster.fabric.routing(),
            in_network_reduction: cluster.fabric.reduces(),
            planes: layout.planes,
            rails: layout.rails,
            pods: layout.pods,
            tiers: tiers(layout),
            bisection_bytes_per_s: bisection,
            bisection_share: share,
            peers: peers(&map),
            sketch: Sketch::new(layout),
        })
    }
}

fn domain(cluster: &Cluster, layout: &Layout) -> DomainSurvey {
    let scale_up = &cluster.node.scale_up;
    let gpus = scale_up.domain.min(cluster.gpus);
    let half = u64::from(gpus / 2);
    let link = layout.scale_up_link.bytes_per_sec();
    let (wiring, cables, bisection) = match &layout.shape {
        Shape::Switched if !layout.bridges.is_empty() => {
            let far = bridged_part(&layout.bridges, [0, gpus - 1].into_iter());
            let across = (half as f64 * link as f64 * far) as u64;
            ("over PCIe and host bridges".to_owned(), 0, across)
        }
        Shape::Switched => ("switched".to_owned(), 0, half * link),
        Shape::Mesh => {
            let all = u64::from(gpus) * u64::from(gpus - 1) / 2;
            (
                "mesh".to_owned(),
                all,
                half * (u64::from(gpus) - half) * link,
            )
        }
        Shape::Grid(grid) => {
            let axes: Vec<String> = grid
                .dims
                .iter()
                .zip(&grid.wrap)
                .map(|(extent, wrap)| {
                    let open = *extent > 1 && !wrap;
                    if open {
                        format!("|{extent}|")
                    } else {
                        extent.to_string()
                    }
                })
                .collect();
            let name = format!("torus {}", axes.join(" x "));
            (name, grid.cables(), grid.bisection_links() * link)
        }
    };
    DomainSurvey {
        gpus,
        wiring,
        bytes_per_s: scale_up.bandwidth.bytes_per_sec(),
        link_bytes_per_s: link,
        hop_ns: nanoseconds(scale_up.latency),
        cables,
        bisection_bytes_per_s: bisection,
        in_switch_reduction: scale_up.in_switch_reduction,
    }
}

fn nanoseconds(time: rackflow_units::SimDuration) -> f64 {
    time.as_picos() as f64 / 1e3
}

fn tiers(layout: &Layout) -> Vec<TierSurvey> {
    let nics = u64::from(layout.ports) * u64::from(layout.nics_per_port);
    let nic_rate = layout.port_rate.bytes_per_sec() / u64::from(layout.nics_per_port);
    let mut below = nics * nic_rate;
    let mut tiers = vec![TierSurvey {
        name: "NIC - leaf",
        level: Level::Leaf,
        cables: nics,
        cable_bytes_per_s: nic_rate,
        bytes_per_s: below,
        oversubscription: 1.0,
    }];
    let link = layout.link.bytes_per_sec();
    let climbing = u64::from(layout.leaves_total()) * u64::from(layout.uplinks);
    let direct = layout.pair_cables > 0;
    let top = layout.top_cables();
    // A direct cable serves two groups, one direction each.
    let ends = if direct { 2 } else { 1 };
    for (name, level, cables, ends) in [
        ("leaf - spine", Level::Spine, climbing, 1),
        (
            if direct {
                "group - group"
            } else {
                "spine - core"
            },
            Level::Core,
            top,
            ends,
        ),
    ] {
        if cables == 0 {
            continue;
        }
        let capacity = cables * ends * link;
        tiers.push(TierSurvey {
            name,
            level,
            cables,
            cable_bytes_per_s: link,
            bytes_per_s: capacity,
            oversubscription: below as f64 / capacity as f64,
        });
        below = capacity;
    }
    tiers
}

/// Across the fabric's halves: half of what the narrowest tier carries (of groups that are joined
/// each to each, the cables between one half of the groups and the other), and that over what half
/// of the NICs send.
fn bisection(layout: &Layout) -> (u64, f64) {
    let tiers = tiers(layout);
    let half = tiers[0].bytes_per_s / 2;
    let pods = u64::from(layout.pods);
    let between = |tier: &TierSurvey| match tier.level {
        Level::Core if layout.pair_cables > 0 => {
            let pairs = pods / 2 * pods.div_ceil(2);
            pairs * u64::from(layout.pair_cables) * tier.cable_bytes_per_s
        }
        _ => tier.bytes_per_s / 2,
    };
    let narrowest = tiers.iter().map(between).min().unwrap_or(half);
    (
        narrowest,
        if half == 0 {
            0.0
        } else {
            narrowest as f64 / half as f64
        },
    )
}

fn peers(map: &ClusterMap) -> Vec<PeerSurvey> {
    let mut found: Vec<PeerSurvey> = Vec::new();
    for gpu in 1..map.gpus() {
        let path = map.path(0, gpu);
        let latency = nanoseconds(path.latency);
        match found.iter_mut().find(|peer| peer.level == path.level) {
            Some(peer) => {
                peer.gpus += 1;
                peer.latency_ns[0] = peer.latency_ns[0].min(latency);
                peer.latency_ns[1] = peer.latency_ns[1].max(latency);
                peer.bytes_per_s = peer.bytes_per_s.min(path.bandwidth.bytes_per_sec());
            }
            None => found.push(PeerSurvey {
                level: path.level,
                gpus: 1,
                latency_ns: [latency; 2],
                bytes_per_s: path.bandwidth.bytes_per_sec(),
            }),
        }
    }
    found.sort_by_key(|peer| peer.level);
    found
}

impl Sketch {
    fn new(layout: &Layout) -> Self {
        let mut sketch = Self::default();
        sketch.racks(layout);
        sketch.leaves(layout);
        sketch.spines(layout);
        sketch.cores(layout);
        sketch
    }

    /// The first two racks and the last.
    fn racks(&mut self, layout: &Layout) {
        let racks = layout.gpus.div_ceil(layout.rack);
        for rack in (0..racks).filter(|r| r + 1 == racks || r + 1 < DRAWN_RACKS) {
            let gpus = rack * layout.rack..((rack + 1) * layout.rack).min(layout.gpus);
            let all: Vec<u32> = gpus.collect();
            let domains = all
                .chunk_by(|a, b| a / layout.domain == b / layout.domain)
                .take(DRAWN_DOMAINS)
                .map(|gpus| {
                    let drawn = gpus.iter().take(DRAWN_GPUS).copied().collect();
                    (gpus[0] / layout.domain, drawn)
                })
                .collect();
            let count = all.len() as u32;
            self.racks.push(SketchRack {
                rack,
                domains,
                gpus: count,
            });
        }
    }

    /// The leaves of the GPUs that are drawn.
    fn leaves(&mut self, layout: &Layout) {
        let drawn: Vec<u32> = self
            .racks
            .iter()
            .flat_map(|rack| {
                rack.domains
                    .iter()
                    .flat_map(|(_, gpus)| gpus.iter().copied())
            })
            .collect();
        let mut leaves: Vec<u32> = Vec::new();
        for gpu in drawn {
            let leaf = layout.leaf(layout.port(gpu));
            if !leaves.contains(&leaf) {
                if leaves.len() == DRAWN_LEAVES {
                    continue;
                }
                leaves.push(leaf);
            }
            self.links.push((Vertex::Gpu(gpu), Vertex::Leaf(leaf)));
        }
        leaves.sort_unstable();
        let switch = |leaf: u32| SketchSwitch {
            vertex: Vertex::Leaf(leaf),
            plane: layout.plane_of_leaf(leaf),
            pod: layout.pod_of_leaf(leaf),
            rail: leaf % layout.rails,
        };
        self.leaves = leaves.into_iter().map(switch).collect();
    }

    /// Some spines of each plane and pod that has leaves here.
    fn spines(&mut self, layout: &Layout) {
        let mut groups: Vec<(u32, u32)> = self.leaves.iter().map(|l| (l.plane, l.pod)).collect();
        groups.dedup();
        let each = (DRAWN_SWITCHES / groups.len().max(1) as u32)
            .max(1)
            .min(layout.spines);
        for (plane, pod) in groups {
            for i in spread(each, layout.spines) {
                let spine = (plane * layout.pods + pod) * layout.spines + i;
                let vertex = Vertex::Spine(spine);
                self.spines.push(SketchSwitch {
                    vertex,
                    plane,
                    pod,
                    rail: 0,
                });
                for leaf in self
                    .leaves
                    .iter()
                    .filter(|l| (l.plane, l.pod) == (plane, pod))
                {
                    self.links.push((leaf.vertex, vertex));
                }
            }
        }
    }

    /// Some cores of each plane, or the direct links between the spines that are drawn.
    fn cores(&mut self, layout: &Layout) {
        if layout.pair_cables > 0 {
            let spines = self.spines.clone();
            for (i, a) in spines.iter().enumerate() {
                for b in spines[i + 1..].iter().filter(|b| b.pod != a.pod) {
                    self.links.push((a.vertex, b.vertex));
                }
            }
            return;
        }
        if layout.cores_per_spine == 0 {
            return;
        }
        // Spine i of every pod reaches the same cores.
        let mut columns: Vec<(u32, u32)> = self
            .spines
            .iter()
            .filter_map(|s| match s.vertex {
                Vertex::Spine(spine) => Some((s.plane, spine % layout.spines)),
                _ => None,
            })
            .collect();
        columns.sort_unstable();
        columns.dedup();
        let each = (DRAWN_SWITCHES / columns.len().max(1) as u32)
            .max(1)
            .min(layout.cores_per_spine);
        for (plane, column) in columns {
            for i in spread(each, layout.cores_per_spine) {
                let core = (plane * layout.spines + column) * layout.cores_per_spine + i;
                let vertex = Vertex::Core(core);
                self.cores.push(SketchSwitch {
                    vertex,
                    plane,
                    pod: 0,
                    rail: 0,
                });
                for spine in &self.spines {
                    let Vertex::Spine(number) = spine.vertex else {
                        continue;
                    };
                    if spine.plane == plane && number % layout.spines == column {
                        self.links.push((spine.vertex, vertex));
                    }
                }
            }
        }
    }
}

/// The first few of `all`, and the last; the first where there is one.
fn spread(few: u32, all: u32) -> impl Iterator<Item = u32> {
    (0..few).map(move |i| if i > 0 && i + 1 == few { all - 1 } else { i })
}
