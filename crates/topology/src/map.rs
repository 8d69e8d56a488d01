//! The cluster as flat arrays: who sits where, how two GPUs reach each other, what a group spans.

use crate::layout::{self, Layout, TopologyError};
use crate::node::{Cluster, Nic, Part, ScaleUp};
use crate::wiring::{Shape, bridged_part};
use rackflow_units::{Bandwidth, SimDuration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

/// The highest tier that a communication crosses.
///
/// The order of these variants is important: a higher tier is greater.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Inside one GPU.
    Local,
    /// Inside one NVLink domain.
    #[serde(rename = "nvlink")]
    NvLink,
    /// Over one leaf switch.
    Leaf,
    /// Over a spine switch.
    Spine,
    /// Over a core switch, or over direct links between groups of spines.
    Core,
}

impl Level {
    /// All levels, lowest first.
    pub const ALL: [Self; 5] = [
        Self::Local,
        Self::NvLink,
        Self::Leaf,
        Self::Spine,
        Self::Core,
    ];
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Local => "local",
            Self::NvLink => "NVLink",
            Self::Leaf => "leaf",
            Self::Spine => "spine",
            Self::Core => "core",
        })
    }
}

/// Where a GPU sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// Node.
    pub node: u32,
    /// NVLink domain.
    pub domain: u32,
    /// Rack.
    pub rack: u32,
    /// Rail or plane of its NIC; in a plain fat tree the NIC's position in the node.
    pub rail: u32,
    /// Leaf switch of its NIC.
    pub leaf: u32,
    /// Leaves that serve the same nodes as this leaf, one per rail, make one segment; in a plain
    /// tree a segment is a leaf. Counted inside a plane.
    pub segment: u32,
    /// Pod of its leaf, inside a plane; 0 in two tiers.
    pub pod: u32,
}

/// How two GPUs reach each other on an idle cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// The highest tier on the way.
    pub level: Level,
    /// The narrowest link on the way, line rate, one direction; one GPU's share of its NICs.
    pub bandwidth: Bandwidth,
    /// Sum of the latencies on the way, one small message.
    pub latency: SimDuration,
}

/// Switches, cables and racks of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Inventory {
    /// Racks, the last one perhaps not full.
    pub racks: u32,
    /// Nodes.
    pub nodes: u32,
    /// NVLink domains.
    pub domains: u32,
    /// NICs.
    pub nics: u32,
    /// Leaf switches.
    pub leaves: u32,
    /// Spine switches.
    pub spines: u32,
    /// Core switches.
    pub cores: u32,
    /// Cables between NICs and leaves and between switches.
    pub cables: u64,
}

impl Inventory {
    /// Switches of all tiers.
    pub const fn switches(&self) -> u32 {
        self.leaves + self.spines + self.cores
    }
}

/// All of a rank's scale-up bandwidth, in millionths.
const WHOLE: u32 = 1_000_000;

/// A set of ranks as the network sees it: how many domains it has, and which share of what it
/// sends crosses which tier. Equal spans cost the same, so they may be compared and hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupSpan {
    /// Members.
    pub ranks: u32,
    /// NVLink domains with at least one member.
    pub domains: u32,
    /// Members in the fullest domain.
    pub ranks_per_domain_max: u32,
    /// Members in the emptiest domain that has any.
    pub ranks_per_domain_min: u32,
    /// Leaf segments with at least one member.
    pub leaves: u32,
    /// Pods with at least one member.
    pub pods: u32,
    /// The highest tier that members cross to reach each other.
    pub level: Level,
    /// Every domain has members on the same rails, so that traffic between domains keeps its rail
    /// (peers on other rails are reached over NVLink first). Always so in a plain fat tree.
    pub rail_aligned: bool,
    /// Of one ring per column of members, `ranks` hops in all: hops from one leaf to another.
    pub ring_hops_over_leaf: u32,
    /// Of those, hops from one pod to another.
    pub ring_hops_over_pod: u32,
    /// Ordered pairs of members in different domains.
    pub pairs_remote: u64,
    /// Of those, pairs on different leaves.
    pub pairs_over_leaf: u64,
    /// Of those, pairs in different pods.
    pub pairs_over_pod: u64,
    /// Pairs on different leaves when every member uses its own NIC in place of that of the
    /// neighbour on the receiver's rail.
    pub pairs_over_leaf_by_own_nic: u64,
    /// Rails or planes that every domain has members on, where all are on the same ones; else 1.
    pub rails: u32,
    /// Part of a member's scale-up bandwidth, in millionths, that rings through its domain's
    /// members can use: all of it on switches, the links among members of a mesh or a torus.
    pub scale_up_rings: u32,
    /// The same for all pairs of a domain's members sending alike.
    pub scale_up_pairs: u32,
}

/// How the members of a domain reach each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Joined {
    /// Over switches.
    Switched {
        /// The switches reduce in flight.
        reduces: bool,
    },
    /// By a link per pair.
    Mesh {
        /// Links of each: to all of the domain, members or not.
        links: u32,
    },
    /// They fill a box of a torus, all of it or a part, numbered along the first axis first. Axes
    /// along which they do not differ have an extent of one.
    Torus(Vec<Axis>),
    /// They are some chips of a torus that fill no box.
    Loop {
        /// The members, each as near to the one before as a walk row by row, to and fro, has it.
        order: Vec<u32>,
        /// Axes of the torus.
        axes: u32,
    },
}

impl Joined {
    /// Over switches that reduce nothing.
    pub const PLAIN: Self = Self::Switched { reduces: false };

    /// Whether switches join them.
    pub const fn is_switched(&self) -> bool {
        matches!(self, Self::Switched { .. })
    }

    /// Links of a chip into its domain, where it has several.
    pub fn links(&self) -> u32 {
        match self {
            Self::Switched { .. } => 1,
            Self::Mesh { links } => *links,
            Self::Torus(axes) => 2 * axes.len() as u32,
            Self::Loop { axes, .. } => 2 * axes,
        }
    }
}

/// Which ranks of a group sit in one domain, and how they are joined there. Ranks are numbered in the
/// order of their GPUs, so that those of a domain follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seats {
    /// First rank of every domain; one more at the end.
    first: Vec<u32>,
    /// One for all domains where they are joined alike, else one for each.
    joined: Vec<Joined>,
}

impl Seats {
    /// `domains` with `members` ranks each, joined alike.
    pub fn even(domains: u32, members: u32, joined: Joined) -> Self {
        Self {
            first: (0..=domains).map(|domain| domain * members).collect(),
            joined: vec![joined],
        }
    }

    /// Ranks.
    pub fn ranks(&self) -> u32 {
        self.first.last().copied().unwrap_or(0)
    }

    /// Domains with a rank.
    pub fn domains(&self) -> u32 {
        self.first.len() as u32 - 1
    }

    /// Ranks of a domain.
    pub fn members(&self, domain: u32) -> u32 {
        self.first[domain as usize + 1] - self.first[domain as usize]
    }

    /// The number of ranks in every domain, where it is the same.
    pub fn evenly(&self) -> Option<u32> {
        let members = self.members(0);
        (1..self.domains())
            .all(|domain| self.members(domain) == members)
            .then_some(members)
    }

    /// A rank by its domain and its place there.
    pub fn rank(&self, domain: u32, member: u32) -> u32 {
        self.first[domain as usize] + member
    }

    /// Domain of a rank, and its place there.
    pub fn split(&self, rank: u32) -> (u32, u32) {
        let domain = self.first.partition_point(|first| *first <= rank) - 1;
        (domain as u32, rank - self.first[domain])
    }

    /// How the ranks of a domain are joined.
    pub fn joined(&self, domain: u32) -> &Joined {
        self.joined.get(domain as usize).unwrap_or(&self.joined[0])
    }

    /// Whether switches join the ranks of all domains.
    pub fn switched(&self) -> bool {
        self.joined.iter().all(Joined::is_switched)
    }
}

/// One axis of a torus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Axis {
    /// Chips along it.
    pub extent: u32,
    /// Whether its last chip is a neighbour of its first.
    pub closed: bool,
}

/// A cluster compiled for use in inner loops. Built once, then only read.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterMap {
    places: Vec<Place>,
    /// Of the first section.
    layout: Layout,
    sections: Vec<Section>,
    inventory: Inventory,
}

/// GPUs whose nodes look alike to the network, side by side; a cluster of one kind is one section.
#[derive(Debug, Clone, PartialEq)]
pub struct Section {
    first: u32,
    layout: Layout,
    scale_up: ScaleUp,
    nic: Nic,
}

/// The parts of a cluster that differ in what the network sees, each as a cluster of its own; of one
/// kind only the cluster itself.
pub(crate) fn parts(cluster: &Cluster) -> Vec<Cluster> {
    let mut parts: Vec<Part> = Vec::new();
    for part in &cluster.parts {
        match parts.last_mut() {
            Some(last) if last.node.connects_as(&part.node) => last.gpus += part.gpus,
            _ => parts.push(part.clone()),
        }
    }
    if parts.len() < 2 {
        return vec![Cluster {
            parts: Vec::new(),
            ..cluster.clone()
        }];
    }
    parts
        .into_iter()
        .map(|part| Cluster {
            node: part.node,
            gpus: part.gpus,
            fabric: cluster.fabric.clone(),
            parts: Vec::new(),
        })
        .collect()
}

impl Section {
    /// The network inside its nodes.
    pub fn scale_up(&self) -> &ScaleUp {
        &self.scale_up
    }

    /// The interfaces of its nodes.
    pub fn nic(&self) -> &Nic {
        &self.nic
    }

    /// Line rate of one GPU's share of its node's NICs, one direction.
    pub fn nic_share(&self) -> Bandwidth {
        self.layout.nic_share
    }

    /// One direction of one link inside a domain.
    pub fn scale_up_link(&self) -> Bandwidth {
        self.layout.scale_up_link
    }

    /// The sections of a cluster: parts that differ in what the network sees.
    fn of(cluster: &Cluster) -> Result<Vec<Self>, TopologyError> {
        let parts = parts(cluster);
        if parts.len() < 2 {
            return Ok(vec![Self::new(0, cluster, Layout::new(cluster)?)]);
        }
        let mut sections = Vec::with_capacity(parts.len());
        let mut first = 0;
        for alone in parts {
            sections.push(Self::new(first, &alone, Layout::part(&alone)?));
            first += alone.gpus;
        }
        let layouts: Vec<&Layout> = sections.iter().map(|section| &section.layout).collect();
        layout::check_joined(&layouts, &cluster.fabric)?;
        Ok(sections)
    }

    fn new(first: u32, cluster: &Cluster, layout: Layout) -> Self {
        Self {
            first,
            layout,
            scale_up: cluster.node.scale_up.clone(),
            nic: cluster.node.nic.clone(),
        }
    }

    /// Where its GPUs sit, after those of `before`.
    fn places(&self, before: &Inventory, segments: u32, pods: u32) -> impl Iterator<Item = Place> {
        let layout = &self.layout;
        (0..layout.gpus).map(move |gpu| {
            let port = layout.port(gpu);
            Place {
                node: before.nodes + gpu / layout.gpus_per_node,
                domain: before.domains + gpu / layout.domain,
                rack: before.racks + gpu / layout.rack,
                rail: layout.rail(port),
                leaf: before.leaves + layout.leaf(port),
                segment: segments + layout.segment(port),
                pod: pods + layout.pod(port),
            }
        })
    }
}

impl Inventory {
    fn add(&mut self, other: &Self) {
        self.racks += other.racks;
        self.nodes += other.nodes;
        self.domains += other.domains;
        self.nics += other.nics;
        self.leaves += other.leaves;
        self.spines += other.spines;
        self.cores += other.cores;
        self.cables += other.cables;
    }
}

impl ClusterMap {
    /// Places every GPU of `cluster`.
    ///
    /// # Errors
    /// Any [`TopologyError`]: the cluster does not nest, or does not fit its fabric.
    pub fn new(cluster: &Cluster) -> Result<Self, TopologyError> {
        let sections = Section::of(cluster)?;
        let mut places = Vec::with_capacity(cluster.gpus as usize);
        let mut all: Option<Inventory> = None;
        let (mut segments, mut pods) = (0, 0);
        for section in &sections {
            let own = inventory(&section.layout);
            let before = all.unwrap_or(NOTHING);
            places.extend(section.places(&before, segments, pods));
            segments += section.layout.segments;
            // In two tiers all leaves hang on the same spines.
            if layout::tiers(&cluster.fabric) > 2 {
                pods += section.layout.pods;
            }
            all.get_or_insert(NOTHING).add(&own);
        }
        Ok(Self {
            places,
            inventory: all.unwrap_or(NOTHING),
            layout: sections[0].layout.clone(),
            sections,
        })
    }

    /// GPUs of the cluster.
    pub fn gpus(&self) -> u32 {
        self.places.len() as u32
    }

    /// Sections, in the order of GPUs.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// The section of a GPU.
    pub fn section_of(&self, gpu: u32) -> usize {
        let after = self.sections.iter().skip(1);
        after.take_while(|section| section.first <= gpu).count()
    }

    /// Where `gpu` sits.
    ///
    /// # Panics
    /// When there is no such GPU.
    pub fn place(&self, gpu: u32) -> Place {
        self.places[gpu as usize]
    }

    /// The highest tier between two GPUs.
    pub fn level(&self, a: u32, b: u32) -> Level {
        let (from, to) = (&self.places[a as usize], &self.places[b as usize]);
        if a == b {
            Level::Local
        } else if from.domain == to.domain {
            Level::NvLink
        } else {
            self.fabric_level(from, to)
        }
    }

    /// The highest tier between two domains' GPUs. Planes never meet: a peer in another plane is
    /// reached over NVLink first, and only the segments count.
    fn fabric_level(&self, from: &Place, to: &Place) -> Level {
        let same_leaf = if self.layout.planes > 1 {
            from.segment == to.segment
        } else {
            from.leaf == to.leaf
        };
        if same_leaf {
            Level::Leaf
        } else if from.pod == to.pod {
            Level::Spine
        } else {
            Level::Core
        }
    }

    /// How two GPUs reach each other: over NVLink inside a domain, else over their NICs; a third
    /// GPU relays only where the planes of the two never meet.
    pub fn path(&self, a: u32, b: u32) -> Path {
        let level = self.level(a, b);
        let from = &self.sections[self.section_of(a)];
        let to = &self.sections[self.section_of(b)];
        if from.first != to.first {
            return Path {
                level,
                bandwidth: from.nic_share().min_of(to.nic_share()),
                latency: from.nic.latency.max(to.nic.latency) + self.tier_latency(level),
            };
        }
        let (layout, scale_up) = (&from.layout, &from.scale_up);
        let (a, b) = (a - from.first, b - from.first);
        match level {
            Level::Local => Path {
                level,
                bandwidth: scale_up.bandwidth,
                latency: SimDuration::ZERO,
            },
            Level::NvLink => Path {
                level,
                bandwidth: layout.link_between(a, b),
                latency: scale_up.latency * layout.scale_up_hops(a, b),
            },
            Level::Leaf | Level::Spine | Level::Core => {
                let mut bandwidth = layout.nic_share.min_of(layout.tier_bandwidth(level));
                let mut latency = from.nic.latency + self.tier_latency(level);
                let sender = layout.sender(a, b);
                if sender != a {
                    latency += scale_up.latency * layout.scale_up_hops(a, sender);
                    bandwidth = bandwidth.min_of(layout.scale_up_link);
                }
                Path {
                    level,
                    bandwidth,
                    latency,
                }
            }
        }
    }

    /// Latency that a tier adds to that of two NICs on one leaf.
    pub fn tier_latency(&self, level: Level) -> SimDuration {
        let hops = match level {
            Level::Local | Level::NvLink | Level::Leaf => 0,
            Level::Spine => 2,
            Level::Core => self.layout.core_hops(),
        };
        self.layout.hop * hops
    }

    /// Line rate of one GPU's share of its node's NICs, one direction.
    pub fn nic_share(&self) -> Bandwidth {
        self.layout.nic_share
    }

    /// Downlink over uplink capacity at a leaf.
    pub fn leaf_oversubscription(&self) -> f64 {
        self.layout.leaf_oversubscription
    }

    /// Downlink over uplink capacity at a spine.
    pub fn spine_oversubscription(&self) -> f64 {
        self.layout.spine_oversubscription
    }

    /// Fraction of the fair share that load balancing delivers between leaves.
    pub fn load_balance(&self) -> f64 {
        self.layout.load_balance
    }

    /// Whether the switches of the fabric reduce in flight.
    pub fn reduces_in_network(&self) -> bool {
        self.layout.reduces
    }

    /// One direction of one link inside a domain: all of a GPU's bandwidth behind switches, a part
    /// of it on a mesh or a torus.
    pub fn scale_up_link(&self) -> Bandwidth {
        self.layout.scale_up_link
    }

    /// Who of a group sits in which domain, and how those of a domain are joined.
    ///
    /// # Panics
    /// When `gpus` are none, are not in order, or name a GPU that does not exist.
    pub fn seats(&self, gpus: &[u32]) -> Seats {
        assert!(
            !gpus.is_empty() && gpus.is_sorted(),
            "ranks are numbered in the order of their GPUs"
        );
        let mut seats = Seats {
            first: vec![0],
            joined: Vec::new(),
        };
        for members in runs(gpus, |gpu| self.places[gpu as usize].domain) {
            let last = seats.ranks();
            seats.first.push(last + members.len() as u32);
            seats.joined.push(self.joined(members));
        }
        if seats.joined.iter().all(|joined| *joined == seats.joined[0]) {
            seats.joined.truncate(1);
        }
        seats
    }

    /// How some GPUs of one domain are joined.
    fn joined(&self, members: &[u32]) -> Joined {
        let section = &self.sections[self.section_of(members[0])];
        match &section.layout.shape {
            Shape::Switched => Joined::Switched {
                reduces: section.layout.domain_reduces,
            },
            Shape::Mesh => Joined::Mesh {
                links: section.layout.domain - 1,
            },
            Shape::Grid(grid) => {
                let local = members[0] - section.first;
                let start = section.first + section.layout.domain_of(local).start;
                let chips: Vec<u32> = members.iter().map(|gpu| gpu - start).collect();
                grid.joined(&chips)
            }
        }
    }

    /// Capacity of one leaf's cables towards the spines, one direction, as load balancing leaves it;
    /// zero where there is one leaf.
    pub fn leaf_capacity(&self) -> f64 {
        let layout = &self.layout;
        f64::from(layout.uplinks) * layout.link.as_f64() * layout.load_balance
    }

    /// The same of one pod's cables towards the cores, or of a group's towards other groups.
    pub fn pod_capacity(&self) -> f64 {
        let layout = &self.layout;
        let cables = layout.spines * layout.spine_uplinks
            + if layout.pair_cables > 0 {
                layout.direct_cables()
            } else {
                0
            };
        f64::from(cables) * layout.link.as_f64() * layout.load_balance
    }

    /// Pod of a GPU's leaf, counted over all planes.
    pub fn pod(&self, gpu: u32) -> u32 {
        let place = self.place(gpu);
        if self.sections.len() > 1 {
            // Sections have one plane.
            return place.pod;
        }
        self.layout.plane_of_leaf(place.leaf) * self.layout.pods + place.pod
    }

    /// Counts of switches, cables and racks.
    pub fn inventory(&self) -> Inventory {
        self.inventory
    }

    /// The GPUs of each rack.
    pub fn racks(&self) -> Vec<Range<u32>> {
        let mut racks = Vec::with_capacity(self.inventory.racks as usize);
        for section in &self.sections {
            let (first, size) = (section.first, section.layout.rack);
            let end = first + section.layout.gpus;
            let starts = (first..end).step_by(size as usize);
            racks.extend(starts.map(|start| start..start.saturating_add(size).min(end)));
        }
        racks
    }

    /// What a set of distinct GPUs spans. The order of `gpus` does not matter: collectives order
    /// their rings by place.
    ///
    /// # Panics
    /// When `gpus` is empty or names a GPU that does not exist.
    pub fn span(&self, gpus: &[u32]) -> GroupSpan {
        assert!(!gpus.is_empty(), "a group has at least one rank");
        if gpus.is_sorted() {
            return self.span_sorted(gpus);
        }
        let mut sorted = gpus.to_vec();
        sorted.sort_unstable();
        self.span_sorted(&sorted)
    }

    fn span_sorted(&self, gpus: &[u32]) -> GroupSpan {
        let n = gpus.len() as u32;
        let domain_of = |gpu: u32| self.places[gpu as usize].domain;
        let domains = runs(gpus, domain_of);
        let (largest, smallest, count) =
            domains.clone().fold((0, u32::MAX, 0), |(l, s, c), run| {
                let len = run.len() as u32;
                (l.max(len), s.min(len), c + 1)
            });
        let mut span = GroupSpan {
            ranks: n,
            domains: count,
            ranks_per_domain_max: largest,
            ranks_per_domain_min: smallest,
            leaves: 1,
            pods: 1,
            level: if n == 1 { Level::Local } else { Level::NvLink },
            rail_aligned: true,
            ring_hops_over_leaf: 0,
            ring_hops_over_pod: 0,
            pairs_remote: 0,
            pairs_over_leaf: 0,
            pairs_over_pod: 0,
            pairs_over_leaf_by_own_nic: 0,
            rails: 1,
            scale_up_rings: WHOLE,
            scale_up_pairs: WHOLE,
        };
        let switched = |section: &Section| {
            section.layout.shape == Shape::Switched && section.layout.bridges.is_empty()
        };
        if !self.sections.iter().all(switched) {
            self.span_inside(domains.clone(), &mut span);
        }
        if count > 1 {
            self.span_fabric(gpus, domains, &mut span);
        }
        span
    }

    /// The part of a span that a mesh or a torus adds.
    fn span_inside<'a>(&self, domains: impl Iterator<Item = &'a [u32]>, span: &mut GroupSpan) {
        for members in domains.filter(|members| members.len() > 1) {
            let section = &self.sections[self.section_of(members[0])];
            let (rings, pairs) = match &section.layout.shape {
                Shape::Switched => {
                    let local = members[0] - section.first;
                    let start = section.first + section.layout.domain_of(local).start;
                    let places = members.iter().map(|gpu| gpu - start);
                    let part = bridged_part(&section.layout.bridges, places);
                    (part, part)
                }
                Shape::Mesh => {
                    let links = f64::from(section.layout.domain - 1);
                    let share = (members.len() - 1) as f64 / links;
                    (share, share)
                }
                Shape::Grid(grid) => {
                    let local = members[0] - section.first;
                    let start = section.first + section.layout.domain_of(local).start;
                    grid.shares(members.iter().map(|gpu| gpu - start))
                }
            };
            let millionths = |share: f64| ((share * f64::from(WHOLE)).round() as u32).max(1);
            span.scale_up_rings = span.scale_up_rings.min(millionths(rings));
            span.scale_up_pairs = span.scale_up_pairs.min(millionths(pairs));
        }
    }

    /// The part of a span that more than one domain adds.
    fn span_fabric<'a>(
        &self,
        gpus: &'a [u32],
        domains: impl Iterator<Item = &'a [u32]> + Clone,
        span: &mut GroupSpan,
    ) {
        let place = |gpu: u32| &self.places[gpu as usize];
        let first = domains.clone().next().expect("a group has a domain");
        let rails = |section: &Section| section.layout.rails * section.layout.planes;
        let rails = self.sections.iter().map(rails).max().unwrap_or(1);
        span.rail_aligned = rails == 1
            || domains.clone().all(|d| {
                d.len() == first.len()
                    && d.iter()
                        .zip(first)
                        .all(|(a, b)| place(*a).rail == place(*b).rail)
            });
        // Off its rail, a pair meets above its leaf even inside a segment; planes never meet there.
        let by_leaf = !span.rail_aligned && self.layout.planes == 1;
        let tier = |gpu: u32| {
            if by_leaf {
                place(gpu).leaf
            } else {
                place(gpu).segment
            }
        };
        let pod = |gpu: u32| place(gpu).pod;

        let next = domains.clone().skip(1).chain(std::iter::once(first));
        for (here, there) in domains.clone().zip(next) {
            for (i, &a) in here.iter().enumerate() {
                let b = there[i.min(there.len() - 1)];
                span.ring_hops_over_leaf += u32::from(tier(a) != tier(b));
                span.ring_hops_over_pod += u32::from(pod(a) != pod(b));
            }
        }

        let squares = |lengths: &mut dyn Iterator<Item = usize>| -> u64 {
            lengths.map(|len| (len * len) as u64).sum()
        };
        // Ordered pairs that differ in both domain and `key`: inclusion and exclusion.
        let all = (gpus.len() * gpus.len()) as u64;
        let in_domain = squares(&mut domains.clone().map(<[u32]>::len));
        span.pairs_remote = all - in_domain;
        let apart = |key: &dyn Fn(u32) -> u32| -> u64 {
            let mut keys: Vec<u32> = gpus.iter().map(|g| key(*g)).collect();
            let mut both: Vec<(u32, u32)> =
                gpus.iter().map(|g| (place(*g).domain, key(*g))).collect();
            keys.sort_unstable();
            both.sort_unstable();
            let in_key = squares(&mut keys.chunk_by(|a, b| a == b).map(<[u32]>::len));
            let in_both = squares(&mut both.chunk_by(|a, b| a == b).map(<[(u32, u32)]>::len));
            all + in_both - in_domain - in_key
        };
        let distinct = |key: &dyn Fn(u32) -> u32| runs(gpus, key).count() as u32;
        span.leaves = distinct(&|gpu| place(gpu).segment);
        span.pods = distinct(&pod);
        let one_leaf = span.leaves == 1 && !by_leaf;
        span.pairs_over_leaf = if one_leaf { 0 } else { apart(&tier) };
        span.pairs_over_leaf_by_own_nic = if self.layout.rails > 1 {
            apart(&|gpu| place(gpu).leaf)
        } else {
            span.pairs_over_leaf
        };
        if rails > 1 && span.rail_aligned {
            let mut used: Vec<u32> = first.iter().map(|gpu| place(*gpu).rail).collect();
            used.sort_unstable();
            used.dedup();
            span.rails = used.len() as u32;
        }
        span.pairs_over_pod = if span.pods == 1 { 0 } else { apart(&pod) };
        span.level = if span.pairs_over_pod > 0 {
            Level::Core
        } else if span.pairs_over_leaf > 0 {
            Level::Spine
        } else {
            Level::Leaf
        };
    }
}

/// Runs of equal `key` in `gpus`.
fn runs<'a, K: Fn(u32) -> u32 + Clone + 'a>(
    gpus: &'a [u32],
    key: K,
) -> impl Iterator<Item = &'a [u32]> + Clone + 'a {
    let mut rest = gpus;
    std::iter::from_fn(move || {
        let first = key(*rest.first()?);
        let end = rest
            .iter()
            .position(|g| key(*g) != first)
            .unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        rest = after;
        Some(run)
    })
}

trait MinOf {
    fn min_of(self, other: Self) -> Self;
}

impl MinOf for Bandwidth {
    fn min_of(self, other: Self) -> Self {
        if other.bytes_per_sec() < self.bytes_per_sec() {
            other
        } else {
            self
        }
    }
}

const NOTHING: Inventory = Inventory {
    racks: 0,
    nodes: 0,
    domains: 0,
    nics: 0,
    leaves: 0,
    spines: 0,
    cores: 0,
    cables: 0,
};

pub(crate) fn inventory(layout: &Layout) -> Inventory {
    let nics = layout.ports * layout.nics_per_port;
    let leaf_uplinks = u64::from(layout.leaves_total()) * u64::from(layout.uplinks);
    Inventory {
        racks: layout.gpus.div_ceil(layout.rack),
        nodes: layout.gpus.div_ceil(layout.gpus_per_node),
        domains: layout.gpus.div_ceil(layout.domain),
        nics,
        leaves: layout.leaves_total(),
        spines: layout.spines_total(),
        cores: layout.cores_total(),
        cables: u64::from(nics) + leaf_uplinks + layout.top_cables(),
    }
}

impl Layout {
    /// Bandwidth of one bundle of cables towards one switch of the tiers up to `level`.
    pub(crate) fn tier_bandwidth(&self, level: Level) -> Bandwidth {
        let up = |links: u32, switches: u32| {
            Bandwidth::from_bytes_per_sec(
                self.link.bytes_per_sec() * u64::from(links / switches.max(1)),
            )
        };
        match level {
            Level::Local | Level::NvLink | Level::Leaf => self.port_rate,
            Level::Spine => up(self.uplinks, self.spines),
            Level::Core if self.pair_cables > 0 => up(self.uplinks, self.spines).min_of(self.link),
            Level::Core => {
                up(self.uplinks, self.spines).min_of(up(self.spine_uplinks, self.cores_per_spine))
            }
        }
    }
}
