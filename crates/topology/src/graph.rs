//! The cluster as a graph: a GPU in an NVLink domain, its NIC on a leaf, leaves under spines.

use crate::layout::{Layout, TopologyError};
use crate::node::Cluster;
use crate::wiring::Shape;
use petgraph::graph::{DiGraph, NodeIndex};
use rackflow_units::{Bandwidth, SimDuration};

/// A vertex of the cluster graph. Numbers are counted over the whole cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Vertex {
    /// One accelerator, on which one rank sits.
    Gpu(u32),
    /// The switches of one NVLink domain (or its mesh), as one hub.
    Domain(u32),
    /// The NICs that one GPU uses, or the NIC that several GPUs share.
    Nic(u32),
    /// A leaf switch.
    Leaf(u32),
    /// A spine switch.
    Spine(u32),
    /// A core switch.
    Core(u32),
}

/// One direction of the cables between two vertices; parallel cables are one link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Line rate, one direction, all parallel cables together.
    pub bandwidth: Bandwidth,
    /// Time that crossing it adds, the switch behind it included.
    pub latency: SimDuration,
}

/// The graph of a cluster. Every cable is two directed edges.
#[derive(Debug, Clone)]
pub struct ClusterGraph {
    graph: DiGraph<Vertex, Link>,
    gpus: u32,
}

impl ClusterGraph {
    /// Draws `cluster` as a graph.
    ///
    /// # Errors
    /// Any [`TopologyError`], the same as [`crate::ClusterMap::new`].
    pub fn build(cluster: &Cluster) -> Result<Self, TopologyError> {
        let layout = Layout::new(cluster)?;
        let mut drawing = Drawing::new(&layout);
        drawing.domains(cluster);
        drawing.nics(cluster);
        drawing.switches();
        Ok(Self {
            graph: drawing.graph,
            gpus: layout.gpus,
        })
    }

    /// The petgraph graph, for algorithms and drawings.
    pub fn graph(&self) -> &DiGraph<Vertex, Link> {
        &self.graph
    }

    /// The vertex of a GPU.
    ///
    /// # Panics
    /// When there is no such GPU.
    pub fn gpu(&self, gpu: u32) -> NodeIndex {
        assert!(gpu < self.gpus, "GPU {gpu} of a cluster of {}", self.gpus);
        NodeIndex::new(gpu as usize)
    }
}

/// Vertices come in blocks by kind, GPUs first, so that an index is an offset and a number.
struct Drawing<'a> {
    graph: DiGraph<Vertex, Link>,
    layout: &'a Layout,
    domains: usize,
    nics: usize,
    leaves: usize,
    spines: usize,
    cores: usize,
}

impl<'a> Drawing<'a> {
    fn new(layout: &'a Layout) -> Self {
        let edges = 2
            * (2 * layout.gpus as usize
                + layout.ports as usize
                + (layout.leaves_total() * layout.spines) as usize
                + (layout.spines_total() * layout.cores_per_spine) as usize);
        let mut graph = DiGraph::with_capacity(2 * layout.gpus as usize, edges);
        let mut block = |count: u32, vertex: fn(u32) -> Vertex| {
            let start = graph.node_count();
            for i in 0..count {
                graph.add_node(vertex(i));
            }
            start
        };
        block(layout.gpus, Vertex::Gpu);
        let domains = block(layout.hubs(), Vertex::Domain);
        let nics = block(layout.ports, Vertex::Nic);
        let leaves = block(layout.leaves_total(), Vertex::Leaf);
        let spines = block(layout.spines_total(), Vertex::Spine);
        let cores = block(layout.cores_total(), Vertex::Core);
        Self {
            graph,
            layout,
            domains,
            nics,
            leaves,
            spines,
            cores,
        }
    }

    /// Two directed edges, each with its own latency.
    fn cable(
        &mut self,
        a: usize,
        b: usize,
        bandwidth: Bandwidth,
        there: SimDuration,
        back: SimDuration,
    ) {
        let (a, b) = (NodeIndex::new(a), NodeIndex::new(b));
        self.graph.add_edge(
            a,
            b,
            Link {
                bandwidth,
                latency: there,
            },
        );
        self.graph.add_edge(
            b,
            a,
            Link {
                bandwidth,
                latency: back,
            },
        );
    }

    fn domains(&mut self, cluster: &Cluster) {
        let scale_up = &cluster.node.scale_up;
        let layout = self.layout;
        let (there, back) = halves(scale_up.latency);
        for gpu in 0..layout.gpus {
            let domain = layout.domain_of(gpu);
            match &layout.shape {
                Shape::Switched => {
                    let hub = self.domains + (gpu / layout.domain) as usize;
                    self.cable(gpu as usize, hub, scale_up.bandwidth, there, back);
                }
                Shape::Mesh => {
                    for peer in domain.filter(|peer| *peer != gpu) {
                        self.edge(gpu, peer, layout.scale_up_link, scale_up.latency);
                    }
                }
                Shape::Grid(grid) => grid.neighbours(gpu - domain.start, |peer, links| {
                    let bandwidth = bundle(layout.scale_up_link, links);
                    self.edge(gpu, domain.start + peer, bandwidth, scale_up.latency);
                }),
            }
        }
    }

    fn edge(&mut self, from: u32, to: u32, bandwidth: Bandwidth, latency: SimDuration) {
        let (from, to) = (NodeIndex::new(from as usize), NodeIndex::new(to as usize));
        self.graph.add_edge(from, to, Link { bandwidth, latency });
    }

    fn nics(&mut self, cluster: &Cluster) {
        let (there, back) = halves(cluster.node.nic.latency);
        for gpu in 0..self.layout.gpus {
            let nic = self.nics + self.layout.port(gpu) as usize;
            self.cable(gpu as usize, nic, self.layout.nic_share, there, back);
        }
        for port in 0..self.layout.ports {
            let leaf = self.leaves + self.layout.leaf(port) as usize;
            let nic = self.nics + port as usize;
            self.cable(
                nic,
                leaf,
                self.layout.port_rate,
                SimDuration::ZERO,
                SimDuration::ZERO,
            );
        }
    }

    fn switches(&mut self) {
        let layout = self.layout;
        let hop = layout.hop;
        for leaf in 0..layout.leaves_total() {
            let (plane, pod) = (layout.plane_of_leaf(leaf), layout.pod_of_leaf(leaf));
            for i in 0..layout.spines {
                let spine = (plane * layout.pods + pod) * layout.spines + i;
                let bandwidth = bundle(layout.link, layout.uplinks / layout.spines);
                let (a, b) = (self.leaves + leaf as usize, self.spines + spine as usize);
                self.cable(a, b, bandwidth, hop, hop);
            }
        }
        self.spines_directly();
        for spine in 0..layout.spines_total() {
            let plane = spine / (layout.pods * layout.spines);
            for i in 0..layout.cores_per_spine {
                let core =
                    (plane * layout.spines + spine % layout.spines) * layout.cores_per_spine + i;
                let bandwidth = bundle(layout.link, layout.spine_uplinks / layout.cores_per_spine);
                let (a, b) = (self.spines + spine as usize, self.cores + core as usize);
                self.cable(a, b, bandwidth, hop, hop);
            }
        }
    }
}

impl Drawing<'_> {
    /// Cables between spines of different pods; parallel ones are one edge.
    fn spines_directly(&mut self) {
        let layout = self.layout;
        if layout.pair_cables == 0 {
            return;
        }
        for pod in 0..layout.pods {
            let mut ends: Vec<(u32, u32)> = (0..layout.direct_cables())
                .map(|cable| {
                    let (other, far) = layout.direct_end(pod, cable);
                    let spine = |pod, cable| pod * layout.spines + layout.direct_spine(cable);
                    (spine(pod, cable), spine(other, far))
                })
                .collect();
            ends.sort_unstable();
            for run in ends.chunk_by(|a, b| a == b) {
                let bandwidth = bundle(layout.link, run.len() as u32);
                let first = self.spines as u32;
                self.edge(first + run[0].0, first + run[0].1, bandwidth, layout.hop);
            }
        }
    }
}

pub(crate) fn bundle(link: Bandwidth, cables: u32) -> Bandwidth {
    Bandwidth::from_bytes_per_sec(link.bytes_per_sec() * u64::from(cables))
}

/// A latency between two GPUs, split over the way in and the way out.
pub(crate) fn halves(latency: SimDuration) -> (SimDuration, SimDuration) {
    let there = SimDuration::from_picos(latency.as_picos() / 2);
    (there, latency - there)
}
