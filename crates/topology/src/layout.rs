//! The arithmetic of a cluster: how many switches of each tier there are and who hangs on which.
//!
//! The petgraph graph and the flat map are both drawn from one [`Layout`], so that they cannot
//! disagree about who sits where.

use crate::fabric::Fabric;
use crate::node::{Cluster, ScaleUp};
use crate::wiring::{Bridge, Grid, MOST_AXES, Shape, Wiring, bridged_part};
use rackflow_units::{Bandwidth, SimDuration, counted};
use thiserror::Error;

/// Why a cluster cannot be built. Reads after "failed to build the cluster:".
#[derive(Debug, Clone, PartialEq, Error)]
pub enum TopologyError {
    /// A count that must be at least one.
    #[error("{field} is zero")]
    ZeroCount {
        /// Which one, as a path in the scenario.
        field: &'static str,
    },
    /// A rate or share that must be positive and finite.
    #[error("{field} is {value}, which is not {wanted}")]
    OutOfRange {
        /// Which one.
        field: &'static str,
        /// As given.
        value: f64,
        /// What would be right.
        wanted: &'static str,
    },
    /// More than one node, and the last one is not full.
    #[error(
        "a cluster of {} is not a multiple of the {per_node} of one {node}; {lower} or {upper} would be", counted(*gpus, "GPU")
    )]
    GpusNotMultipleOfNode {
        /// GPUs of the cluster.
        gpus: u32,
        /// GPUs of one node.
        per_node: u32,
        /// Name of the node.
        node: String,
        /// Nearest multiple below.
        lower: u32,
        /// Nearest multiple above.
        upper: u64,
    },
    /// A domain neither divides a node nor is made of whole nodes.
    #[error(
        "an NVLink domain of {} and a node of {per_node} do not nest: one must be a multiple of the other", counted(*domain, "GPU")
    )]
    DomainDoesNotNest {
        /// GPUs of one domain.
        domain: u32,
        /// GPUs of one node.
        per_node: u32,
    },
    /// GPUs do not share the NICs evenly.
    #[error(
        "a node of {} does not share {} evenly: one count must be a multiple of the other", counted(*per_node, "GPU"), counted(*nics, "NIC")
    )]
    NicsNotShared {
        /// NICs of one node.
        nics: u32,
        /// GPUs of one node.
        per_node: u32,
    },
    /// A tree of no tier or of more than three.
    #[error("a fabric of {tiers} tiers is not supported; 1, 2 and 3 are")]
    Tiers {
        /// As given.
        tiers: u32,
    },
    /// Rails or planes do not share the NICs evenly.
    #[error("{rails} {what} do not divide the {nics} NICs of a node")]
    RailsDoNotDivide {
        /// "rails" or "planes".
        what: &'static str,
        /// How many.
        rails: u32,
        /// NICs of one node (those of one GPU count as one).
        nics: u32,
    },
    /// Planes meet only inside an NVLink domain, and a domain does not reach them all.
    #[error(
        "{planes} planes never meet: an NVLink domain of {} does not reach all of them", counted(*domain, "GPU")
    )]
    PlanesNeverMeet {
        /// Planes of the fabric.
        planes: u32,
        /// GPUs of one domain.
        domain: u32,
    },
    /// The axes of a torus do not multiply to its domain.
    #[error("a torus of {dims} has {chips} chips and its domain {domain}")]
    TorusDoesNotFit {
        /// The axes, as in `4 x 4 x 4`.
        dims: String,
        /// Their product.
        chips: u64,
        /// GPUs of the domain.
        domain: u32,
    },
    /// Several tori, the last of which is not full.
    #[error("a cluster of {} is no whole number of tori of {domain}", counted(*gpus, "GPU"))]
    TorusNotFull {
        /// GPUs of the cluster.
        gpus: u32,
        /// GPUs of one torus.
        domain: u32,
    },
    /// Groups that are to be joined each to each have fewer links than there are groups.
    #[error("{groups} groups of {links} links each are too many to be joined each to each")]
    TooManyGroups {
        /// Groups of the fabric.
        groups: u32,
        /// Links of one group to others.
        links: u32,
    },
    /// Several kinds of node on a fabric that joins one kind only.
    #[error("several kinds of node are not joined by {what}")]
    NotJoined {
        /// What the fabric has.
        what: &'static str,
    },
    /// More leaves in a group than a spine has ports.
    #[error("a group of {leaves} leaves needs spines of more than {radix} ports")]
    GroupTooLarge {
        /// Leaves of one group.
        leaves: u32,
        /// Ports of a spine.
        radix: u32,
    },
    /// A leaf has no port left for a NIC or for an uplink.
    #[error(
        "a leaf of {radix} ports cannot carry {nics_per_leaf} NICs and {uplinks} uplinks to the spine"
    )]
    LeafTooSmall {
        /// Ports of the leaf.
        radix: u32,
        /// NICs on it.
        nics_per_leaf: u32,
        /// Uplinks that the oversubscription asks for.
        uplinks: u32,
    },
    /// More NICs than the tree has ports for.
    #[error(
        "{nics} NICs do not fit a {tiers}-tier fabric of {radix}-port switches, which holds {capacity}; use a larger radix, another tier or more planes"
    )]
    FabricTooSmall {
        /// NICs of the cluster (of one plane, in a multi-plane fabric).
        nics: u64,
        /// NICs that fit.
        capacity: u64,
        /// Ports of the leaf.
        radix: u32,
        /// Tiers.
        tiers: u32,
    },
}

/// Why several kinds of node do not hang on one fabric.
fn not_joined(what: &'static str) -> TopologyError {
    TopologyError::NotJoined { what }
}

/// Tiers of a fabric.
pub(crate) fn tiers(fabric: &Fabric) -> u32 {
    Tree::of(fabric, 1).tiers
}

/// Checks that parts with leaves of their own fit one fabric: under common spines in two tiers, in
/// pods of their own under common cores in three.
pub(crate) fn check_joined(layouts: &[&Layout], fabric: &Fabric) -> Result<(), TopologyError> {
    let tree = Tree::of(fabric, 1);
    if tree.direct {
        return Err(not_joined("groups that are joined each to each"));
    }
    if layouts.iter().any(|layout| layout.planes > 1) {
        return Err(not_joined("planes that never meet"));
    }
    if tree.tiers == 1 {
        return Err(not_joined("a single tier"));
    }
    let sum = |of: &dyn Fn(&Layout) -> u32| -> u64 {
        layouts.iter().map(|layout| u64::from(of(layout))).sum()
    };
    let (switches, ports) = if tree.tiers == 2 {
        (
            sum(&|layout| layout.segments * layout.rails),
            tree.spine_radix,
        )
    } else {
        (sum(&|layout| layout.pods), tree.spine_radix)
    };
    if switches <= u64::from(ports) {
        return Ok(());
    }
    let nics = sum(&|layout| layout.ports * layout.nics_per_port);
    Err(TopologyError::FabricTooSmall {
        nics,
        capacity: nics * u64::from(ports) / switches,
        radix: tree.radix,
        tiers: tree.tiers,
    })
}

/// Counts of one tree, and how places follow from a NIC's number.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Layout {
    pub gpus: u32,
    pub gpus_per_node: u32,
    pub domain: u32,
    pub rack: u32,
    /// GPUs that share one port group: 1, or more where a node has fewer NICs than GPUs.
    pub gpus_per_port: u32,
    /// NICs in one port group: 1, or more where a GPU has several NICs.
    pub nics_per_port: u32,
    /// Port groups of a full node.
    pub ports_per_node: u32,
    /// Port groups of the cluster.
    pub ports: u32,
    /// Rate of one GPU's share of its NICs.
    pub nic_share: Bandwidth,
    /// Rate of all NICs of one port group.
    pub port_rate: Bandwidth,
    /// Trees that never meet outside a node.
    pub planes: u32,
    /// Rails that have leaves of their own inside one tree.
    pub rails: u32,
    /// Port groups of one leaf.
    pub ports_per_leaf: u32,
    /// Segments of one plane: sets of `rails` leaves that serve the same nodes.
    pub segments: u32,
    /// Segments of one pod (all, in two tiers).
    pub segments_per_pod: u32,
    /// Pods of one plane (1 in two tiers).
    pub pods: u32,
    /// Uplinks of one leaf; zero where a plane has a single leaf.
    pub uplinks: u32,
    /// Spines of one pod.
    pub spines: u32,
    /// Uplinks of one spine; zero in two tiers or with a single pod.
    pub spine_uplinks: u32,
    /// Cores that spine i of every pod reaches.
    pub cores_per_spine: u32,
    /// Cables between every two pods where spines are joined directly; else zero.
    pub pair_cables: u32,
    /// How the GPUs of one domain are wired.
    pub shape: Shape,
    /// Where cards meet that no switch joins at full bandwidth.
    pub bridges: Vec<Bridge>,
    /// One direction of one link inside a domain.
    pub scale_up_link: Bandwidth,
    pub link: Bandwidth,
    pub hop: SimDuration,
    pub leaf_oversubscription: f64,
    pub spine_oversubscription: f64,
    pub load_balance: f64,
    /// Whether the fabric's switches reduce in flight.
    pub reduces: bool,
    /// Whether those of a domain do.
    pub domain_reduces: bool,
}

/// The fields that the kinds of fabric share.
struct Tree {
    tiers: u32,
    /// Spines reach other pods' spines directly.
    direct: bool,
    segments_per_pod: Option<u32>,
    radix: u32,
    spine_radix: u32,
    nics_per_leaf: Option<u32>,
    planes: u32,
    rails: u32,
    link: Option<Bandwidth>,
    leaf_oversubscription: f64,
    spine_oversubscription: f64,
    load_balance: f64,
    hop: SimDuration,
}

/// Rails of a rail-optimised tree that does not name them.
fn default_rails(ports: u32) -> u32 {
    if ports <= 16 { ports } else { 4 }
}

impl Tree {
    fn of(fabric: &Fabric, ports_per_node: u32) -> Self {
        match fabric {
            Fabric::FatTree(f) => Self {
                tiers: f.tiers,
                direct: false,
                segments_per_pod: None,
                radix: f.radix,
                spine_radix: f.spine_radix.unwrap_or(f.radix),
                nics_per_leaf: f.nics_per_leaf,
                planes: 1,
                rails: 1,
                link: f.link,
                leaf_oversubscription: f.leaf_oversubscription,
                spine_oversubscription: f.spine_oversubscription,
                load_balance: f.load_balance,
                hop: f.hop,
            },
            Fabric::RailOptimized(f) => Self {
                tiers: f.tiers,
                direct: false,
                segments_per_pod: None,
                radix: f.radix,
                spine_radix: f.radix,
                nics_per_leaf: None,
                planes: 1,
                rails: f.rails.unwrap_or_else(|| default_rails(ports_per_node)),
                link: f.link,
                leaf_oversubscription: f.leaf_oversubscription,
                spine_oversubscription: f.spine_oversubscription,
                load_balance: f.load_balance,
                hop: f.hop,
            },
            Fabric::MultiPlaneFatTree(f) => Self {
                tiers: 2,
                direct: false,
                segments_per_pod: None,
                radix: f.radix,
                spine_radix: f.radix,
                nics_per_leaf: None,
                planes: f.planes,
                rails: 1,
                link: f.link,
                leaf_oversubscription: 1.0,
                spine_oversubscription: 1.0,
                load_balance: f.load_balance,
                hop: f.hop,
            },
            Fabric::RailOnly(f) => Self {
                tiers: f.tiers,
                direct: false,
                segments_per_pod: None,
                radix: f.radix,
                spine_radix: f.radix,
                nics_per_leaf: None,
                planes: f.rails.unwrap_or_else(|| default_rails(ports_per_node)),
                rails: 1,
                link: f.link,
                leaf_oversubscription: f.leaf_oversubscription,
                spine_oversubscription: 1.0,
                load_balance: f.load_balance,
                hop: f.hop,
            },
            Fabric::DragonflyPlus(f) => Self {
                tiers: 3,
                direct: true,
                segments_per_pod: Some(f.leaves_per_group.unwrap_or((f.radix / 2).max(1))),
                radix: f.radix,
                spine_radix: f.radix,
                nics_per_leaf: f.nics_per_leaf,
                planes: 1,
                rails: 1,
                link: f.link,
                leaf_oversubscription: f.leaf_oversubscription,
                spine_oversubscription: f.global_oversubscription,
                load_balance: f.load_balance,
                hop: f.hop,
            },
        }
    }
}

fn at_least_one(field: &'static str, value: u64) -> Result<(), TopologyError> {
    if value == 0 {
        Err(TopologyError::ZeroCount { field })
    } else {
        Ok(())
    }
}

fn in_range(
    field: &'static str,
    value: f64,
    wanted: &'static str,
    right: bool,
) -> Result<(), TopologyError> {
    if right {
        Ok(())
    } else {
        Err(TopologyError::OutOfRange {
            field,
            value,
            wanted,
        })
    }
}

fn check_wiring(scale_up: &ScaleUp) -> Result<(), TopologyError> {
    if let Wiring::Bridged(bridges) = &scale_up.wiring {
        for bridge in bridges {
            at_least_one("node.scale_up.wiring.bridged.gpus", bridge.gpus.into())?;
            in_range(
                "node.scale_up.wiring.bridged.part",
                bridge.part,
                "a fraction of at least 0.0001 and at most 1",
                (1e-4..=1.0).contains(&bridge.part),
            )?;
        }
    }
    let Wiring::Torus(torus) = &scale_up.wiring else {
        return Ok(());
    };
    at_least_one(
        "node.scale_up.wiring.torus.wrap_multiple_of",
        torus.wrap_multiple_of.into(),
    )?;
    let chips = torus.dims.iter().fold(1_u64, |product, extent| {
        product.saturating_mul((*extent).into())
    });
    let axes = (1..=MOST_AXES).contains(&torus.dims.len());
    if !axes || chips != u64::from(scale_up.domain) {
        let dims: Vec<String> = torus.dims.iter().map(u32::to_string).collect();
        return Err(TopologyError::TorusDoesNotFit {
            dims: dims.join(" x "),
            chips,
            domain: scale_up.domain,
        });
    }
    Ok(())
}

fn shape(cluster: &Cluster) -> Shape {
    let scale_up = &cluster.node.scale_up;
    match &scale_up.wiring {
        Wiring::Switched | Wiring::Bridged(_) => Shape::Switched,
        Wiring::Mesh => Shape::Mesh,
        Wiring::Torus(torus) => {
            let chips = scale_up.domain.min(cluster.gpus);
            Shape::Grid(Grid::new(torus, scale_up.domain, chips))
        }
    }
}

/// A GPU's bandwidth is spread evenly over its links.
fn scale_up_link(scale_up: &ScaleUp) -> Bandwidth {
    let links = match &scale_up.wiring {
        Wiring::Switched | Wiring::Bridged(_) => 1,
        Wiring::Mesh => u64::from(scale_up.domain.saturating_sub(1)),
        Wiring::Torus(torus) => 2 * torus.dims.len() as u64,
    };
    Bandwidth::from_bytes_per_sec(scale_up.bandwidth.bytes_per_sec() / links.max(1))
}

/// The smallest divisor of `n` that is at least `wanted`: links spread evenly over so many switches.
fn divisor_from(n: u32, wanted: u32) -> u32 {
    (wanted.max(1)..n)
        .find(|d| n.is_multiple_of(*d))
        .unwrap_or(n)
}

impl Layout {
    /// Checks, in this order: counts and shares, nesting of node, domain and NICs, tiers, rails,
    /// room at the leaf, room in the tree.
    pub(crate) fn new(cluster: &Cluster) -> Result<Self, TopologyError> {
        Self::sized(cluster, false)
    }

    /// The same for a part of a cluster of several kinds: it climbs to what joins the parts, however
    /// small it is.
    pub(crate) fn part(cluster: &Cluster) -> Result<Self, TopologyError> {
        Self::sized(cluster, true)
    }

    fn sized(cluster: &Cluster, joined: bool) -> Result<Self, TopologyError> {
        let node = &cluster.node;
        Self::check_counts(cluster)?;
        if cluster.gpus > node.gpus && !cluster.gpus.is_multiple_of(node.gpus) {
            let lower = cluster.gpus / node.gpus * node.gpus;
            return Err(TopologyError::GpusNotMultipleOfNode {
                gpus: cluster.gpus,
                per_node: node.gpus,
                node: node.name.clone(),
                lower,
                upper: u64::from(lower) + u64::from(node.gpus),
            });
        }
        let domain = node.scale_up.domain;
        if !domain.is_multiple_of(node.gpus) && !node.gpus.is_multiple_of(domain) {
            return Err(TopologyError::DomainDoesNotNest {
                domain,
                per_node: node.gpus,
            });
        }
        let torus = matches!(node.scale_up.wiring, Wiring::Torus(_));
        if torus && cluster.gpus > domain && !cluster.gpus.is_multiple_of(domain) {
            let gpus = cluster.gpus;
            return Err(TopologyError::TorusNotFull { gpus, domain });
        }
        let nics = node.nic.count;
        if !nics.is_multiple_of(node.gpus) && !node.gpus.is_multiple_of(nics) {
            return Err(TopologyError::NicsNotShared {
                nics,
                per_node: node.gpus,
            });
        }
        let ports_per_node = nics.min(node.gpus);
        let gpus_per_port = node.gpus / ports_per_node;
        let nics_per_port = nics / ports_per_node;
        let port_rate =
            Bandwidth::from_bytes_per_sec(node.nic.rate.bytes_per_sec() * u64::from(nics_per_port));
        let nic_share =
            Bandwidth::from_bytes_per_sec(port_rate.bytes_per_sec() / u64::from(gpus_per_port));
        let tree = Tree::of(&cluster.fabric, ports_per_node);
        let mut layout = Self {
            gpus: cluster.gpus,
            gpus_per_node: node.gpus,
            domain,
            rack: node.rack.gpus,
            gpus_per_port,
            nics_per_port,
            ports_per_node,
            ports: cluster.gpus.div_ceil(gpus_per_port),
            nic_share,
            port_rate,
            planes: tree.planes,
            rails: tree.rails,
            ports_per_leaf: 0,
            segments: 0,
            segments_per_pod: 0,
            pods: 1,
            uplinks: 0,
            spines: 0,
            spine_uplinks: 0,
            cores_per_spine: 0,
            pair_cables: 0,
            shape: shape(cluster),
            bridges: match &node.scale_up.wiring {
                Wiring::Bridged(bridges) => bridges.clone(),
                _ => Vec::new(),
            },
            scale_up_link: scale_up_link(&node.scale_up),
            link: tree.link.unwrap_or(node.nic.rate),
            hop: tree.hop,
            leaf_oversubscription: tree.leaf_oversubscription,
            spine_oversubscription: tree.spine_oversubscription,
            load_balance: tree.load_balance,
            reduces: cluster.fabric.reduces(),
            domain_reduces: node.scale_up.in_switch_reduction,
        };
        layout.wire(&tree, joined)?;
        Ok(layout)
    }

    fn check_counts(cluster: &Cluster) -> Result<(), TopologyError> {
        let node = &cluster.node;
        at_least_one("gpus", cluster.gpus.into())?;
        at_least_one("node.gpus", node.gpus.into())?;
        at_least_one("node.rack.gpus", node.rack.gpus.into())?;
        at_least_one("node.scale_up.domain", node.scale_up.domain.into())?;
        at_least_one(
            "node.scale_up.bandwidth",
            node.scale_up.bandwidth.bytes_per_sec(),
        )?;
        at_least_one("node.nic.count", node.nic.count.into())?;
        at_least_one(
            "node.nic.rate",
            node.nic.rate.bytes_per_sec() / u64::from(node.gpus),
        )?;
        let share = "a fraction above 0 and at most 1";
        for (field, value) in [
            ("node.scale_up.efficiency", node.scale_up.efficiency),
            (
                "node.scale_up.collective_efficiency",
                node.scale_up.collective_efficiency,
            ),
            (
                "node.scale_up.in_switch_efficiency",
                node.scale_up.in_switch_efficiency,
            ),
            (
                "node.scale_up.expert_efficiency",
                node.scale_up
                    .expert_efficiency
                    .unwrap_or(node.scale_up.efficiency),
            ),
            (
                "node.scale_up.hybrid_expert_efficiency",
                node.scale_up
                    .hybrid_expert_efficiency
                    .unwrap_or(node.scale_up.efficiency),
            ),
            ("node.nic.efficiency", node.nic.efficiency),
            (
                "node.nic.expert_efficiency",
                node.nic.expert_efficiency.unwrap_or(node.nic.efficiency),
            ),
        ] {
            in_range(field, value, share, value > 0.0 && value <= 1.0)?;
        }
        let tree = Tree::of(&cluster.fabric, 1);
        at_least_one("fabric.radix", tree.radix.into())?;
        at_least_one("fabric.spine_radix", tree.spine_radix.into())?;
        at_least_one("fabric.planes", tree.planes.into())?;
        at_least_one("fabric.rails", tree.rails.into())?;
        at_least_one(
            "fabric.nics_per_leaf",
            tree.nics_per_leaf.unwrap_or(1).into(),
        )?;
        if let Some(link) = tree.link {
            at_least_one("fabric.link", link.bytes_per_sec())?;
        }
        let balance = tree.load_balance;
        in_range(
            "fabric.load_balance",
            balance,
            share,
            balance > 0.0 && balance <= 1.0,
        )?;
        for (field, value) in [
            ("fabric.leaf_oversubscription", tree.leaf_oversubscription),
            ("fabric.spine_oversubscription", tree.spine_oversubscription),
        ] {
            in_range(
                field,
                value,
                "between 0.01 and 1000",
                (0.01..=1000.0).contains(&value),
            )?;
        }
        check_wiring(&node.scale_up)?;
        at_least_one(
            "fabric.leaves_per_group",
            tree.segments_per_pod.unwrap_or(1).into(),
        )?;
        if !(1..=3).contains(&tree.tiers) {
            return Err(TopologyError::Tiers { tiers: tree.tiers });
        }
        Ok(())
    }

    /// Sizes the tiers of one plane. What is `joined` to other parts has uplinks in every tier.
    fn wire(&mut self, tree: &Tree, joined: bool) -> Result<(), TopologyError> {
        for (what, rails) in [("rails", self.rails), ("planes", self.planes)] {
            if !self.ports_per_node.is_multiple_of(rails) {
                let nics = self.ports_per_node;
                return Err(TopologyError::RailsDoNotDivide { what, rails, nics });
            }
        }
        let meets = self.planes == 1 || self.domain / self.gpus_per_port >= self.planes;
        if self.gpus > self.domain && !meets {
            let (planes, domain) = (self.planes, self.domain);
            return Err(TopologyError::PlanesNeverMeet { planes, domain });
        }
        let ratio = self.port_rate.as_f64() / self.link.as_f64();
        self.ports_per_leaf = self.size_leaf(tree, ratio)?;
        let per_leaf = self.ports_per_leaf;
        let uplinks =
            ((f64::from(per_leaf) * ratio / tree.leaf_oversubscription) - 1e-9).ceil() as u32;
        let ports = self.ports.div_ceil(self.planes);
        self.segments = ports.div_ceil(self.rails).div_ceil(per_leaf);
        let leaves = u64::from(self.segments) * u64::from(self.rails);
        let too_small = |leaves_max: u64| TopologyError::FabricTooSmall {
            nics: u64::from(ports) * u64::from(self.nics_per_port),
            capacity: leaves_max * u64::from(per_leaf) * u64::from(self.nics_per_port),
            radix: tree.radix,
            tiers: tree.tiers,
        };
        if leaves == 1 && (!joined || tree.tiers == 1) {
            self.segments_per_pod = 1;
            return Ok(());
        }
        if tree.tiers == 1 {
            return Err(too_small(1));
        }
        self.uplinks = uplinks.max(1);
        if tree.tiers == 2 {
            if leaves > u64::from(tree.spine_radix) {
                return Err(too_small(tree.spine_radix.into()));
            }
            self.segments_per_pod = self.segments;
            let wanted = (leaves as u32)
                .saturating_mul(self.uplinks)
                .div_ceil(tree.spine_radix);
            self.spines = divisor_from(self.uplinks, wanted);
            return Ok(());
        }
        let over = tree.spine_oversubscription;
        let down = (f64::from(tree.spine_radix) * over / (1.0 + over) + 1e-9).floor() as u32;
        self.segments_per_pod = match tree.segments_per_pod {
            Some(wanted) => wanted,
            None => down / self.rails,
        };
        if tree.direct {
            return self.join_directly(tree);
        }
        let pods_max = u64::from(tree.spine_radix);
        let leaves_max = u64::from(self.segments_per_pod) * u64::from(self.rails) * pods_max;
        if leaves > leaves_max {
            return Err(too_small(leaves_max));
        }
        self.pods = self.segments.div_ceil(self.segments_per_pod);
        let leaves_of_pod = self.segments.min(self.segments_per_pod) * self.rails;
        self.spines = divisor_from(
            self.uplinks,
            leaves_of_pod.saturating_mul(self.uplinks).div_ceil(down),
        );
        if self.pods > 1 || joined {
            let spine_down = f64::from(leaves_of_pod * (self.uplinks / self.spines));
            self.spine_uplinks = ((spine_down / over - 1e-9).ceil() as u32).max(1);
            let wanted = self
                .pods
                .saturating_mul(self.spine_uplinks)
                .div_ceil(tree.spine_radix);
            self.cores_per_spine = divisor_from(self.spine_uplinks, wanted);
        }
        Ok(())
    }

    /// Joins the spines of every two pods by as many cables as ports and oversubscription allow.
    fn join_directly(&mut self, tree: &Tree) -> Result<(), TopologyError> {
        self.pods = self.segments.div_ceil(self.segments_per_pod);
        let leaves = self.segments.min(self.segments_per_pod);
        let leaf_cables = leaves.saturating_mul(self.uplinks);
        // As many spines as leave half the ports of each to other groups.
        let half = (tree.spine_radix / 2).max(1);
        self.spines = divisor_from(self.uplinks, leaf_cables.div_ceil(half));
        let down = leaf_cables / self.spines;
        if down > tree.spine_radix {
            return Err(TopologyError::GroupTooLarge {
                leaves,
                radix: tree.spine_radix,
            });
        }
        if self.pods == 1 {
            return Ok(());
        }
        let wanted = (f64::from(leaf_cables) / tree.spine_oversubscription + 1e-9) as u32;
        let links = wanted.min(self.spines * (tree.spine_radix - down));
        self.pair_cables = links / (self.pods - 1);
        if self.pair_cables == 0 {
            let groups = self.pods;
            return Err(TopologyError::TooManyGroups { groups, links });
        }
        self.spine_oversubscription = f64::from(leaf_cables) / f64::from(self.direct_cables());
        Ok(())
    }

    /// Cables of one pod to all others, where spines are joined directly.
    pub(crate) fn direct_cables(&self) -> u32 {
        self.pair_cables * (self.pods - 1)
    }

    /// Where the direct cable `cable` of `pod` leads: the other pod, and its number there. Cables
    /// of a pod are numbered so that those to one other pod are spread over its spines.
    pub(crate) fn direct_end(&self, pod: u32, cable: u32) -> (u32, u32) {
        let others = self.pods - 1;
        let (round, offset) = (cable / others, cable % others + 1);
        let other = (pod + offset) % self.pods;
        (other, round * others + (self.pods - offset - 1))
    }

    /// The direct cable of `pod` number `round` of those to `other`.
    pub(crate) fn direct_cable(&self, pod: u32, other: u32, round: u32) -> u32 {
        let offset = (other + self.pods - pod) % self.pods;
        round * (self.pods - 1) + offset - 1
    }

    /// Spine, inside its pod, of a direct cable.
    pub(crate) fn direct_spine(&self, cable: u32) -> u32 {
        let all = u64::from(cable) * u64::from(self.spines);
        (all / u64::from(self.direct_cables())) as u32
    }

    /// Switches that a message between pods passes beyond its first leaf.
    pub(crate) fn core_hops(&self) -> u64 {
        if self.pair_cables > 0 { 3 } else { 4 }
    }

    /// Hub vertices of the domains; meshes and tori have none.
    pub(crate) fn hubs(&self) -> u32 {
        match self.shape {
            Shape::Switched => self.gpus.div_ceil(self.domain),
            Shape::Mesh | Shape::Grid(_) => 0,
        }
    }

    /// First GPU of the domain of `gpu`, and one past its last.
    pub(crate) fn domain_of(&self, gpu: u32) -> std::ops::Range<u32> {
        let start = gpu / self.domain * self.domain;
        start..(start + self.domain).min(self.gpus)
    }

    /// Who puts a message from one domain to another on the wire: `from`, or its neighbour on the
    /// receiver's plane.
    pub(crate) fn sender(&self, from: u32, to: u32) -> u32 {
        if self.planes == 1 {
            return from;
        }
        let plane = |gpu: u32| self.plane(self.port(gpu));
        self.neighbour(from, to, &|gpu| plane(gpu) == plane(to))
            .expect("a domain reaches all planes: the layout was checked")
    }

    /// `from` where it is `right`; else one of its domain: the nearest in the node if there is
    /// one, at the place that `to` has in its own domain if that is right.
    pub(crate) fn neighbour(&self, from: u32, to: u32, right: &dyn Fn(u32) -> bool) -> Option<u32> {
        if right(from) {
            return Some(from);
        }
        let domain = self.domain_of(from);
        let unit = self.gpus_per_node.min(self.domain);
        let own = from / unit * unit;
        let twin = own + to % unit;
        if twin < domain.end && right(twin) {
            return Some(twin);
        }
        (own..(own + unit).min(domain.end))
            .chain(domain)
            .find(|gpu| right(*gpu))
    }

    /// What two GPUs of a domain have for a message: one link, or what the host bridges between them
    /// leave of it.
    pub(crate) fn link_between(&self, a: u32, b: u32) -> Bandwidth {
        if self.bridges.is_empty() {
            return self.scale_up_link;
        }
        let places = [a % self.domain, b % self.domain];
        let part = bridged_part(&self.bridges, places.into_iter());
        self.scale_up_link.scaled(part)
    }

    /// Links of its domain that a message from one GPU to another of the same domain crosses, hub
    /// and all counted as one.
    pub(crate) fn scale_up_hops(&self, from: u32, to: u32) -> u64 {
        match &self.shape {
            Shape::Switched | Shape::Mesh => u64::from(from != to),
            Shape::Grid(grid) => {
                let start = self.domain_of(from).start;
                grid.hops(from - start, to - start).into()
            }
        }
    }

    /// Port groups of one leaf, whole nodes where they fit.
    fn size_leaf(&self, tree: &Tree, ratio: f64) -> Result<u32, TopologyError> {
        let over = tree.leaf_oversubscription;
        let switch_ports = ratio.ceil().max(f64::from(self.nics_per_port));
        let radix = f64::from(tree.radix);
        let climbs = if tree.tiers == 1 { 0.0 } else { ratio / over };
        let uplinks_of = |ports: f64| (ports * climbs - 1e-9).ceil().max(0.0);
        if let Some(nics) = tree.nics_per_leaf {
            let ports = nics / self.nics_per_port;
            let uplinks = uplinks_of(f64::from(ports));
            if ports == 0 || f64::from(ports) * switch_ports + uplinks > radix {
                return Err(TopologyError::LeafTooSmall {
                    radix: tree.radix,
                    nics_per_leaf: nics,
                    uplinks: uplinks as u32,
                });
            }
            return Ok(ports);
        }
        let mut ports = (radix / (switch_ports + climbs) + 1e-9).floor() as u32;
        while ports > 0 && f64::from(ports) * switch_ports + uplinks_of(f64::from(ports)) > radix {
            ports -= 1;
        }
        if ports == 0 {
            return Err(TopologyError::LeafTooSmall {
                radix: tree.radix,
                nics_per_leaf: self.nics_per_port,
                uplinks: uplinks_of(1.0) as u32,
            });
        }
        // Ports of one node that share a leaf stay together where a leaf holds them all.
        let together = self.ports_per_node / (self.rails * self.planes);
        Ok(if ports >= together {
            ports / together * together
        } else {
            ports
        })
    }

    /// Port group of a GPU, over the whole cluster.
    pub(crate) fn port(&self, gpu: u32) -> u32 {
        gpu / self.gpus_per_port
    }

    /// Position of a port group in its node.
    fn port_in_node(&self, port: u32) -> u32 {
        port % self.ports_per_node
    }

    /// Plane of a port group.
    pub(crate) fn plane(&self, port: u32) -> u32 {
        self.port_in_node(port) % self.planes
    }

    /// Rail or plane of a port group; in a plain tree its position in the node.
    pub(crate) fn rail(&self, port: u32) -> u32 {
        let within = self.port_in_node(port);
        match (self.rails, self.planes) {
            (1, 1) => within,
            (rails, 1) => within % rails,
            (_, planes) => within % planes,
        }
    }

    /// Segment of a port group inside its plane.
    pub(crate) fn segment(&self, port: u32) -> u32 {
        let share = self.rails * self.planes;
        let node = port / self.ports_per_node;
        let index = node * (self.ports_per_node / share) + self.port_in_node(port) / share;
        index / self.ports_per_leaf
    }

    /// Leaf of a port group, numbered over all planes.
    pub(crate) fn leaf(&self, port: u32) -> u32 {
        let rail = if self.rails == 1 { 0 } else { self.rail(port) };
        (self.plane(port) * self.segments + self.segment(port)) * self.rails + rail
    }

    /// Pod of a port group inside its plane.
    pub(crate) fn pod(&self, port: u32) -> u32 {
        self.segment(port) / self.segments_per_pod
    }

    /// Plane of a leaf.
    pub(crate) fn plane_of_leaf(&self, leaf: u32) -> u32 {
        leaf / (self.segments * self.rails)
    }

    /// Pod of a leaf, inside its plane.
    pub(crate) fn pod_of_leaf(&self, leaf: u32) -> u32 {
        leaf % (self.segments * self.rails) / self.rails / self.segments_per_pod
    }

    /// Leaves of one pod of one plane.
    pub(crate) fn leaves_of_pod(&self, plane: u32, pod: u32) -> std::ops::Range<u32> {
        let start = (plane * self.segments + pod * self.segments_per_pod) * self.rails;
        let end = ((pod + 1) * self.segments_per_pod).min(self.segments);
        start..(plane * self.segments + end) * self.rails
    }

    /// Leaves of all planes.
    pub(crate) fn leaves_total(&self) -> u32 {
        self.planes * self.segments * self.rails
    }

    /// Spines of all planes.
    pub(crate) fn spines_total(&self) -> u32 {
        self.planes * self.pods * self.spines
    }

    /// Cables between switches of the top tier.
    pub(crate) fn top_cables(&self) -> u64 {
        let up = u64::from(self.spines_total()) * u64::from(self.spine_uplinks);
        up + u64::from(self.direct_cables()) * u64::from(self.pods) / 2
    }

    /// Cores of all planes.
    pub(crate) fn cores_total(&self) -> u32 {
        self.planes * self.spines * self.cores_per_spine
    }
}
