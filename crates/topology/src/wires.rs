//! The cluster as directed links in flat arrays, and the routes over them: what flows run on.

mod several;

use crate::fabric::Routing;
use crate::graph::{Vertex, bundle, halves};
use crate::layout::{Layout, TopologyError};
use crate::map::{ClusterMap, Level, parts};
use crate::node::Cluster;
use crate::wiring::Shape;
use rackflow_units::{Bandwidth, SimDuration};
use std::ops::Range;

/// A directed link of [`Wires`]: dense, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u32);

impl LinkId {
    /// For arrays beside the wires.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Every directed link of a cluster, grouped by the vertex it leaves (compressed sparse rows), and
/// routes by arithmetic. Built once; links may then be degraded or cut.
///
/// # Parallel cables
/// With [`Routing::Ecmp`] every cable between two switches is a link of its own, and a hash of the
/// flow picks one, so that flows collide as they do on hashed fabrics. With [`Routing::Adaptive`]
/// packets are sprayed, so that all cables from a leaf to the spines of its pod act as one link,
/// and all from a pod to its cores as another; each carries the `load_balance` of its cables' sum.
#[derive(Debug, Clone)]
pub struct Wires {
    layout: Layout,
    blocks: Blocks,
    /// First link of every vertex; one more at the end.
    first: Vec<u32>,
    from: Vec<u32>,
    to: Vec<u32>,
    bandwidth: Vec<Bandwidth>,
    latency: Vec<SimDuration>,
    level: Vec<Level>,
    /// The link from its leaf down to each port group.
    down: Vec<u32>,
    tiers: Tiers,
    routing: Routing,
    seed: u64,
    /// The other parts of a cluster of several kinds; their links and vertices follow in the arrays.
    others: Vec<Other>,
}

/// A part that is not the first.
#[derive(Debug, Clone)]
struct Other {
    wires: Wires,
    /// Its first GPU, link and vertex.
    gpu: u32,
    link: u32,
    vertex: u32,
}

/// Vertices come in blocks by kind, GPUs first. Each field is where its block starts.
#[derive(Debug, Clone, Copy)]
struct Blocks {
    domains: u32,
    nics: u32,
    leaves: u32,
    spines: u32,
    cores: u32,
    end: u32,
}

/// Cables as the links see them: the physical ones, or one that stands for all of a tier.
#[derive(Debug, Clone, Copy)]
struct Tiers {
    /// Links from one leaf to the spines of its pod.
    uplinks: u32,
    /// Spines of one pod of one plane.
    spines: u32,
    /// Links from one spine to its cores.
    spine_uplinks: u32,
    /// Cores that one spine reaches.
    cores: u32,
    leaf_link: Bandwidth,
    spine_link: Bandwidth,
    /// Links between every two pods, where spines are joined directly.
    pair: u32,
}

impl Tiers {
    fn physical(layout: &Layout) -> Self {
        Self {
            uplinks: layout.uplinks,
            spines: layout.spines,
            spine_uplinks: layout.spine_uplinks,
            cores: layout.cores_per_spine,
            leaf_link: layout.link,
            spine_link: layout.link,
            pair: layout.pair_cables,
        }
    }

    fn sprayed(layout: &Layout) -> Self {
        let sum = |cables: u32| {
            let all = layout.link.as_f64() * f64::from(cables) * layout.load_balance;
            Bandwidth::from_bytes_per_sec(all.round() as u64)
        };
        Self {
            uplinks: layout.uplinks.min(1),
            spines: layout.spines.min(1),
            spine_uplinks: layout.spine_uplinks.min(1),
            cores: layout.cores_per_spine.min(1),
            leaf_link: sum(layout.uplinks),
            spine_link: if layout.pair_cables > 0 {
                sum(layout.pair_cables)
            } else {
                sum(layout.spines * layout.spine_uplinks)
            },
            pair: layout.pair_cables.min(1),
        }
    }

    /// Ways from a leaf to what joins the parts of a cluster, and back from there.
    fn climbs(&self) -> u64 {
        u64::from(self.uplinks) * u64::from(self.spine_uplinks.max(1))
    }

    fn descents(&self) -> u64 {
        u64::from(self.leaf_bundle()) * u64::from(self.spine_bundle().max(1))
    }

    /// Parallel links between one leaf and one spine.
    fn leaf_bundle(&self) -> u32 {
        self.uplinks / self.spines.max(1)
    }

    /// Parallel links between one spine and one core.
    fn spine_bundle(&self) -> u32 {
        self.spine_uplinks / self.cores.max(1)
    }
}

impl Wires {
    /// Compiles `cluster`, with hashed routes drawn from `seed`.
    ///
    /// # Errors
    /// Any [`TopologyError`], the same as [`crate::ClusterMap::new`].
    pub fn new(cluster: &Cluster, seed: u64) -> Result<Self, TopologyError> {
        Self::routed(cluster, cluster.fabric.routing(), seed)
    }

    /// The same with this routing in place of the fabric's: hashed wires have every cable.
    ///
    /// # Errors
    /// As [`Wires::new`].
    pub fn routed(cluster: &Cluster, routing: Routing, seed: u64) -> Result<Self, TopologyError> {
        if !cluster.is_mixed() {
            return Ok(Self::of_layout(
                cluster,
                Layout::new(cluster)?,
                routing,
                seed,
            ));
        }
        // Refuses parts that their fabric does not join.
        ClusterMap::new(cluster)?;
        let parts = parts(cluster);
        if let [one] = &parts[..] {
            return Self::routed(one, routing, seed);
        }
        let mut parts = parts
            .iter()
            .map(|part| Ok(Self::of_layout(part, Layout::part(part)?, routing, seed)))
            .collect::<Result<Vec<_>, TopologyError>>()?
            .into_iter();
        let mut all = parts.next().expect("there are several parts");
        for part in parts {
            all.append(part);
        }
        Ok(all)
    }

    /// Puts another part behind those that are here.
    fn append(&mut self, part: Self) {
        let (vertex, link) = (self.vertices(), self.links() as u32);
        self.first.pop();
        self.first
            .extend(part.first.iter().map(|first| first + link));
        self.from.extend(part.from.iter().map(|from| from + vertex));
        self.to.extend(part.to.iter().map(|to| to + vertex));
        self.bandwidth.extend(&part.bandwidth);
        self.latency.extend(&part.latency);
        self.level.extend(&part.level);
        self.others.push(Other {
            gpu: self.gpus(),
            link,
            vertex,
            wires: part,
        });
    }

    fn of_layout(cluster: &Cluster, layout: Layout, routing: Routing, seed: u64) -> Self {
        let tiers = match routing {
            Routing::Ecmp => Tiers::physical(&layout),
            Routing::Adaptive => Tiers::sprayed(&layout),
        };
        let pods = layout.planes * layout.pods;
        let domains = layout.gpus;
        let nics = domains + layout.hubs();
        let leaves = nics + layout.ports;
        let spines = leaves + layout.leaves_total();
        let cores = spines + pods * tiers.spines;
        let blocks = Blocks {
            domains,
            nics,
            leaves,
            spines,
            cores,
            end: cores + layout.planes * tiers.spines * tiers.cores,
        };
        let mut wires = Self {
            down: vec![0; layout.ports as usize],
            layout,
            blocks,
            first: Vec::with_capacity(blocks.end as usize + 1),
            from: Vec::new(),
            to: Vec::new(),
            bandwidth: Vec::new(),
            latency: Vec::new(),
            level: Vec::new(),
            tiers,
            routing,
            seed,
            others: Vec::new(),
        };
        wires.gpus_and_domains(cluster);
        wires.nics(cluster);
        wires.leaves();
        wires.spines();
        wires.cores();
        wires.first.push(wires.to.len() as u32);
        wires
    }

    /// The links that `push` will add leave the next vertex.
    fn next_vertex(&mut self) {
        self.first.push(self.to.len() as u32);
    }

    fn push(&mut self, to: u32, bandwidth: Bandwidth, latency: SimDuration, level: Level) {
        self.from.push(self.first.len() as u32 - 1);
        self.to.push(to);
        self.bandwidth.push(bandwidth);
        self.latency.push(latency);
        self.level.push(level);
    }

    fn gpus_and_domains(&mut self, cluster: &Cluster) {
        let layout = self.layout.clone();
        let scale_up = &cluster.node.scale_up;
        let (nv_there, nv_back) = halves(scale_up.latency);
        let (nic_there, _) = halves(cluster.node.nic.latency);
        for gpu in 0..layout.gpus {
            self.next_vertex();
            let domain = layout.domain_of(gpu);
            match &layout.shape {
                Shape::Switched => {
                    let hub = self.blocks.domains + gpu / layout.domain;
                    self.push(hub, scale_up.bandwidth, nv_there, Level::NvLink);
                }
                Shape::Mesh => {
                    for peer in domain.filter(|peer| *peer != gpu) {
                        self.push(peer, layout.scale_up_link, scale_up.latency, Level::NvLink);
                    }
                }
                Shape::Grid(grid) => grid.neighbours(gpu - domain.start, |peer, links| {
                    let bandwidth = bundle(layout.scale_up_link, links);
                    self.push(
                        domain.start + peer,
                        bandwidth,
                        scale_up.latency,
                        Level::NvLink,
                    );
                }),
            }
            let nic = self.blocks.nics + layout.port(gpu);
            self.push(nic, layout.nic_share, nic_there, Level::Leaf);
        }
        for hub in 0..layout.hubs() {
            self.next_vertex();
            for gpu in layout.domain_of(hub * layout.domain) {
                self.push(gpu, scale_up.bandwidth, nv_back, Level::NvLink);
            }
        }
    }

    fn nics(&mut self, cluster: &Cluster) {
        let layout = self.layout.clone();
        let (_, back) = halves(cluster.node.nic.latency);
        for port in 0..layout.ports {
            self.next_vertex();
            let end = ((port + 1) * layout.gpus_per_port).min(layout.gpus);
            for gpu in port * layout.gpus_per_port..end {
                self.push(gpu, layout.nic_share, back, Level::Leaf);
            }
            let leaf = self.blocks.leaves + layout.leaf(port);
            self.push(leaf, layout.port_rate, SimDuration::ZERO, Level::Leaf);
        }
    }

    fn leaves(&mut self) {
        let layout = self.layout.clone();
        let tiers = self.tiers;
        let ports = ports_by_leaf(&layout);
        for leaf in 0..layout.leaves_total() {
            self.next_vertex();
            for &port in ports.of(leaf) {
                self.down[port as usize] = self.to.len() as u32;
                let nic = self.blocks.nics + port;
                self.push(nic, layout.port_rate, SimDuration::ZERO, Level::Leaf);
            }
            let (plane, pod) = (layout.plane_of_leaf(leaf), layout.pod_of_leaf(leaf));
            for cable in 0..tiers.uplinks {
                let spine = self.spine(plane, pod, cable / tiers.leaf_bundle());
                self.push(spine, tiers.leaf_link, layout.hop, Level::Spine);
            }
        }
    }

    fn spines(&mut self) {
        let layout = self.layout.clone();
        let tiers = self.tiers;
        for plane in 0..layout.planes {
            for pod in 0..layout.pods {
                for spine in 0..tiers.spines {
                    self.next_vertex();
                    for leaf in layout.leaves_of_pod(plane, pod) {
                        for _ in 0..tiers.leaf_bundle() {
                            let to = self.blocks.leaves + leaf;
                            self.push(to, tiers.leaf_link, layout.hop, Level::Spine);
                        }
                    }
                    for cable in 0..tiers.spine_uplinks {
                        let core = self.core(plane, spine, cable / tiers.spine_bundle());
                        self.push(core, tiers.spine_link, layout.hop, Level::Core);
                    }
                    for cable in self.direct_links(spine) {
                        let (other, far) = layout.direct_end(pod, cable);
                        let to = self.spine(plane, other, self.direct_spine(far));
                        self.push(to, tiers.spine_link, layout.hop, Level::Core);
                    }
                }
            }
        }
    }

    fn cores(&mut self) {
        let layout = self.layout.clone();
        let tiers = self.tiers;
        for plane in 0..layout.planes {
            for spine in 0..tiers.spines {
                for _ in 0..tiers.cores {
                    self.next_vertex();
                    for pod in 0..layout.pods {
                        for _ in 0..tiers.spine_bundle() {
                            let to = self.spine(plane, pod, spine);
                            self.push(to, tiers.spine_link, layout.hop, Level::Core);
                        }
                    }
                }
            }
        }
    }

    fn spine(&self, plane: u32, pod: u32, spine: u32) -> u32 {
        self.blocks.spines + (plane * self.layout.pods + pod) * self.tiers.spines + spine
    }

    fn core(&self, plane: u32, spine: u32, core: u32) -> u32 {
        self.blocks.cores + (plane * self.tiers.spines + spine) * self.tiers.cores + core
    }

    /// Links of one pod to all others, where spines are joined directly.
    fn direct_total(&self) -> u32 {
        self.tiers.pair * (self.layout.pods - 1)
    }

    /// Spine, inside its pod, of a direct link.
    fn direct_spine(&self, link: u32) -> u32 {
        (u64::from(link) * u64::from(self.tiers.spines) / u64::from(self.direct_total())) as u32
    }

    /// The direct links of spine number `spine` of any pod.
    fn direct_links(&self, spine: u32) -> Range<u32> {
        let (all, spines) = (u64::from(self.direct_total()), u64::from(self.tiers.spines));
        let start = |spine: u32| (u64::from(spine) * all).div_ceil(spines.max(1)) as u32;
        start(spine)..start(spine + 1)
    }

    /// GPUs of the cluster.
    pub fn gpus(&self) -> u32 {
        let last = self.others.last();
        last.map_or(self.layout.gpus, |last| last.gpu + last.wires.layout.gpus)
    }

    /// Directed links.
    pub fn links(&self) -> usize {
        self.to.len()
    }

    /// Line rate of a link, or what the load balancing leaves of it where it stands for the
    /// cables of a tier. Zero where the link is cut.
    pub fn bandwidth(&self, link: LinkId) -> Bandwidth {
        self.bandwidth[link.index()]
    }

    /// Time that crossing the link adds, the switch behind it included.
    pub fn latency(&self, link: LinkId) -> SimDuration {
        self.latency[link.index()]
    }

    /// The tier that the link belongs to.
    pub fn level(&self, link: LinkId) -> Level {
        self.level[link.index()]
    }

    /// Where the link leaves and where it arrives. With adaptive routing `Spine(i)` stands for all
    /// spines of pod `i` and `Core(i)` for all cores of plane `i`.
    pub fn ends(&self, link: LinkId) -> (Vertex, Vertex) {
        let [from, to] = self.end_indices(link);
        (self.vertex(from), self.vertex(to))
    }

    /// The ends as dense indices, below [`Wires::vertices`]; a GPU's index is its number, where all nodes
    /// are of one kind.
    pub fn end_indices(&self, link: LinkId) -> [u32; 2] {
        [self.from[link.index()], self.to[link.index()]]
    }

    /// Number of vertices.
    pub fn vertices(&self) -> u32 {
        let last = self.others.last();
        last.map_or(self.blocks.end, |last| last.vertex + last.wires.blocks.end)
    }

    /// The links that leave a vertex.
    pub fn out(&self, vertex: u32) -> impl Iterator<Item = LinkId> + use<> {
        (self.first[vertex as usize]..self.first[vertex as usize + 1]).map(LinkId)
    }

    /// How parallel paths are used.
    pub fn routing(&self) -> Routing {
        self.routing
    }

    /// The vertex of an index; of several parts each has numbers that follow those of the part before.
    fn vertex(&self, index: u32) -> Vertex {
        let after = self.others.iter().rev().find(|other| other.vertex <= index);
        if let Some(other) = after {
            return self.renumbered(other, other.wires.vertex(index - other.vertex));
        }
        let b = &self.blocks;
        match index {
            i if i < b.domains => Vertex::Gpu(i),
            i if i < b.nics => Vertex::Domain(i - b.domains),
            i if i < b.leaves => Vertex::Nic(i - b.nics),
            i if i < b.spines => Vertex::Leaf(i - b.leaves),
            i if i < b.cores => Vertex::Spine(i - b.spines),
            i => Vertex::Core(i - b.cores),
        }
    }

    /// Writes the links from one GPU to another into `out`, which is emptied first, in order; none
    /// from a GPU to itself. Inside a domain a message goes over NVLink, else by its own GPU's
    /// NIC; where the planes of the two never meet, a neighbour on the right plane relays.
    ///
    /// On hashed fabrics the path follows from the seed, both ports and `choice`: different
    /// choices stand for different connections (queue pairs, channels) of the pair.
    ///
    /// Returns false, and leaves `out` empty, where no path is left.
    ///
    /// # Panics
    /// When there is no such GPU.
    pub fn route(&self, from: u32, to: u32, choice: u64, out: &mut Vec<LinkId>) -> bool {
        let gpus = self.gpus();
        assert!(
            from < gpus && to < gpus,
            "a route from {from} to {to} of {gpus} GPUs"
        );
        out.clear();
        if from == to {
            return true;
        }
        if !self.others.is_empty() {
            self.between_parts(from, to, choice, false, out);
            return true;
        }
        if from / self.layout.domain == to / self.layout.domain {
            self.inside(from, to, choice, out);
        } else {
            self.onward(from, to, choice, out);
        }
        true
    }

    /// Appends the way to a GPU of another domain.
    fn onward(&self, from: u32, to: u32, choice: u64, out: &mut Vec<LinkId>) {
        let sender = self.layout.sender(from, to);
        if sender != from {
            self.inside(from, sender, choice, out);
        }
        self.across(sender, to, choice, out);
    }

    /// The same with the message handed over NVLink to the neighbour on the receiver's rail first
    /// (NCCL's PXN), so that it stays on that rail's leaf where the rail has one.
    ///
    /// # Panics
    /// When there is no such GPU.
    pub fn route_by_rail(&self, from: u32, to: u32, choice: u64, out: &mut Vec<LinkId>) -> bool {
        if !self.others.is_empty() {
            out.clear();
            self.between_parts(from, to, choice, true, out);
            return true;
        }
        match self.rail_neighbour(from, to) {
            Some(relay)
                if relay != from && from / self.layout.domain != to / self.layout.domain =>
            {
                out.clear();
                self.inside(from, relay, choice, out);
                self.onward(relay, to, choice, out);
                true
            }
            _ => self.route(from, to, choice, out),
        }
    }

    /// The GPU in the domain of `from` whose NIC is on the rail (or plane) of that of `to`: `from`
    /// itself where it is or the fabric has no rails, `None` where the domain has none.
    pub fn rail_neighbour(&self, from: u32, to: u32) -> Option<u32> {
        if !self.others.is_empty() {
            let ((here, a), (there, b)) = (self.part_of(from), self.part_of(to));
            // Parts have leaves of their own, so that no rail of one leads to the other.
            return if here == there {
                let neighbour = self.part(here).neighbour_on_rail(a, b)?;
                Some(neighbour + self.first_gpu(here))
            } else {
                Some(from)
            };
        }
        self.neighbour_on_rail(from, to)
    }

    fn neighbour_on_rail(&self, from: u32, to: u32) -> Option<u32> {
        let layout = &self.layout;
        if layout.rails * layout.planes == 1 {
            return Some(from);
        }
        let rail = |gpu: u32| layout.rail(layout.port(gpu));
        layout.neighbour(from, to, &|gpu| rail(gpu) == rail(to))
    }

    fn inside(&self, from: u32, to: u32, choice: u64, out: &mut Vec<LinkId>) {
        let domain = self.layout.domain_of(from);
        match &self.layout.shape {
            Shape::Switched => {
                let hub = (self.blocks.domains + from / self.layout.domain) as usize;
                out.push(LinkId(self.first[from as usize]));
                out.push(LinkId(self.first[hub] + to - domain.start));
            }
            Shape::Mesh => {
                let place = to - domain.start - u32::from(to > from);
                out.push(LinkId(self.first[from as usize] + place));
            }
            Shape::Grid(grid) => {
                let drawn = Draw::new(self.seed, from, to, choice).0;
                let mut at = from;
                grid.walk(from - domain.start, to - domain.start, drawn, |next| {
                    let next = domain.start + next;
                    let link = self.out(at).find(|link| self.to[link.index()] == next);
                    out.push(link.expect("neighbours on a torus are joined"));
                    at = next;
                });
            }
        }
    }

    fn across(&self, from: u32, to: u32, choice: u64, out: &mut Vec<LinkId>) {
        let (layout, tiers) = (&self.layout, &self.tiers);
        let (a, b) = (layout.port(from), layout.port(to));
        let nic = |port: u32| (self.blocks.nics + port) as usize;
        let to_gpu = LinkId(self.first[nic(b)] + to - b * layout.gpus_per_port);
        out.push(LinkId(self.first[from as usize + 1] - 1));
        if a == b {
            out.push(to_gpu);
            return;
        }
        out.push(LinkId(self.first[nic(a) + 1] - 1));
        let (leaf_a, leaf_b) = (layout.leaf(a), layout.leaf(b));
        if leaf_a != leaf_b {
            let mut draw = Draw::new(self.seed, a, b, choice);
            let plane = layout.plane_of_leaf(leaf_a);
            let (pod_a, pod_b) = (layout.pod_of_leaf(leaf_a), layout.pod_of_leaf(leaf_b));
            let climb = |spine: u32, cable: u32| {
                let end = self.first[(self.blocks.leaves + leaf_a) as usize + 1];
                LinkId(end - tiers.uplinks + spine * tiers.leaf_bundle() + cable)
            };
            let spine = if pod_a == pod_b || tiers.pair == 0 {
                let up = draw.below(tiers.uplinks);
                out.push(climb(0, up));
                up / tiers.leaf_bundle()
            } else {
                let round = draw.below(tiers.pair);
                let cable = layout.direct_cable(pod_a, pod_b, round);
                let spine = self.direct_spine(cable);
                out.push(climb(spine, draw.below(tiers.leaf_bundle())));
                let end = self.first[self.spine(plane, pod_a, spine) as usize + 1];
                out.push(LinkId(end - (self.direct_links(spine).end - cable)));
                self.direct_spine(layout.direct_end(pod_a, cable).1)
            };
            if pod_a != pod_b && tiers.pair == 0 {
                let up = draw.below(tiers.spine_uplinks);
                let spine_end = self.first[self.spine(plane, pod_a, spine) as usize + 1];
                out.push(LinkId(spine_end - tiers.spine_uplinks + up));
                let core = self.core(plane, spine, up / tiers.spine_bundle());
                let down = pod_b * tiers.spine_bundle() + draw.below(tiers.spine_bundle());
                out.push(LinkId(self.first[core as usize] + down));
            }
            let in_pod = leaf_b - layout.leaves_of_pod(plane, pod_b).start;
            let down = in_pod * tiers.leaf_bundle() + draw.below(tiers.leaf_bundle());
            let spine = self.spine(plane, pod_b, spine);
            out.push(LinkId(self.first[spine as usize] + down));
        }
        out.push(LinkId(self.down[b as usize]));
        out.push(to_gpu);
    }

    /// The flows of a reduction in the switches and its way back: every GPU's links to its leaf and
    /// from it, then each link between switches once, since what meets there is one stream. `choice`
    /// tells trees apart: it picks the spine and the core. Calls `each` with the links of every flow,
    /// first all that go up. Returns false, and calls nothing, where these GPUs have no switch in
    /// common.
    ///
    /// # Panics
    /// When there is no such GPU.
    pub fn reduction_tree(
        &self,
        gpus: &[u32],
        choice: u64,
        mut each: impl FnMut(&[LinkId]),
    ) -> bool {
        if !self.others.is_empty() {
            // Which core sums up several parts is not laid out.
            let part = gpus.first().map_or(0, |gpu| self.part_of(*gpu).0);
            let inside: Vec<u32> = gpus.iter().map(|gpu| self.part_of(*gpu).1).collect();
            let together = gpus.iter().all(|gpu| self.part_of(*gpu).0 == part);
            let first = self.first_link(part);
            let mut moved = |route: &[LinkId]| {
                let route: Vec<LinkId> = route.iter().map(|link| LinkId(link.0 + first)).collect();
                each(&route);
            };
            return together
                && self
                    .part(part)
                    .reduction_tree_inside(&inside, choice, &mut moved);
        }
        self.reduction_tree_inside(gpus, choice, &mut each)
    }

    fn reduction_tree_inside(
        &self,
        gpus: &[u32],
        choice: u64,
        each: &mut dyn FnMut(&[LinkId]),
    ) -> bool {
        let layout = &self.layout;
        let leaf_of = |gpu: u32| layout.leaf(layout.port(gpu));
        let Some(&first) = gpus.first() else {
            return true;
        };
        let plane = layout.plane_of_leaf(leaf_of(first));
        let mut leaves: Vec<u32> = gpus.iter().map(|gpu| leaf_of(*gpu)).collect();
        leaves.sort_unstable();
        leaves.dedup();
        let mut pods: Vec<u32> = leaves
            .iter()
            .map(|leaf| layout.pod_of_leaf(*leaf))
            .collect();
        pods.dedup();
        let apart = leaves
            .iter()
            .any(|leaf| layout.plane_of_leaf(*leaf) != plane);
        if apart || (pods.len() > 1 && self.tiers.pair > 0) {
            return false;
        }
        if leaves.len() == 1 {
            leaves.clear();
        }
        if pods.len() == 1 {
            pods.clear();
        }
        let tiers = &self.tiers;
        let mut draw = Draw::new(self.seed, plane, u32::MAX, choice);
        let spine = draw.below(tiers.spines.max(1));
        let core = draw.below(tiers.cores.max(1));
        let cable = draw.below(tiers.leaf_bundle().max(1));
        let top = draw.below(tiers.spine_bundle().max(1));
        let nic = |gpu: u32| (self.blocks.nics + layout.port(gpu)) as usize;
        let spine_of = |pod: u32| self.spine(plane, pod, spine) as usize;
        for &gpu in gpus {
            let own = LinkId(self.first[gpu as usize + 1] - 1);
            each(&[own, LinkId(self.first[nic(gpu) + 1] - 1)]);
        }
        for &leaf in &leaves {
            let end = self.first[(self.blocks.leaves + leaf) as usize + 1];
            each(&[LinkId(
                end - tiers.uplinks + spine * tiers.leaf_bundle() + cable,
            )]);
        }
        for &pod in &pods {
            let end = self.first[spine_of(pod) + 1];
            each(&[LinkId(
                end - tiers.spine_uplinks + core * tiers.spine_bundle() + top,
            )]);
        }
        for &pod in &pods {
            let start = self.first[self.core(plane, spine, core) as usize];
            each(&[LinkId(start + pod * tiers.spine_bundle() + top)]);
        }
        for &leaf in &leaves {
            let pod = layout.pod_of_leaf(leaf);
            let place = leaf - layout.leaves_of_pod(plane, pod).start;
            let start = self.first[spine_of(pod)];
            each(&[LinkId(start + place * tiers.leaf_bundle() + cable)]);
        }
        for &gpu in gpus {
            let port = layout.port(gpu);
            let to_gpu = self.first[nic(gpu)] + gpu - port * layout.gpus_per_port;
            each(&[LinkId(self.down[port as usize]), LinkId(to_gpu)]);
        }
        true
    }

    /// How many links each link of a route was chosen from.
    pub(crate) fn choices(&self, route: &[LinkId]) -> Vec<u64> {
        if !self.others.is_empty() {
            return self.choices_of_parts(route);
        }
        self.choices_inside(route)
    }

    fn choices_inside(&self, route: &[LinkId]) -> Vec<u64> {
        let tiers = &self.tiers;
        let ends: Vec<(Vertex, Vertex)> = route.iter().map(|link| self.ends(*link)).collect();
        let is_direct =
            |(a, b): &(Vertex, Vertex)| matches!((a, b), (Vertex::Spine(_), Vertex::Spine(_)));
        let direct = ends.iter().any(is_direct);
        ends.iter()
            .map(|ends| match ends {
                (Vertex::Leaf(_), Vertex::Spine(_)) if !direct => tiers.uplinks,
                (Vertex::Leaf(_), Vertex::Spine(_)) | (Vertex::Spine(_), Vertex::Leaf(_)) => {
                    tiers.leaf_bundle()
                }
                (Vertex::Spine(_), Vertex::Core(_)) => tiers.spine_uplinks,
                (Vertex::Core(_), Vertex::Spine(_)) => tiers.spine_bundle(),
                (Vertex::Spine(_), Vertex::Spine(_)) => tiers.pair,
                _ => 1,
            })
            .map(u64::from)
            .collect()
    }

    /// Equal-cost paths between two GPUs, parallel cables counted one by one: what packet spraying
    /// spreads over and what a hash chooses from.
    ///
    /// # Panics
    /// When there is no such GPU.
    pub fn paths(&self, from: u32, to: u32) -> u64 {
        if !self.others.is_empty() {
            let ((here, a), (there, b)) = (self.part_of(from), self.part_of(to));
            if here == there {
                return self.part(here).paths_inside(a, b);
            }
            let (up, down) = (self.part(here), self.part(there));
            let (up, down) = (Tiers::physical(&up.layout), Tiers::physical(&down.layout));
            return up.climbs() * down.descents();
        }
        self.paths_inside(from, to)
    }

    fn paths_inside(&self, from: u32, to: u32) -> u64 {
        let layout = &self.layout;
        if from / layout.domain == to / layout.domain {
            return match &layout.shape {
                Shape::Switched | Shape::Mesh => 1,
                Shape::Grid(grid) => {
                    let start = layout.domain_of(from).start;
                    grid.paths(from - start, to - start)
                }
            };
        }
        let cables = Tiers::physical(layout);
        let leaf = |gpu: u32| layout.leaf(layout.port(gpu));
        let (a, b) = (leaf(layout.sender(from, to)), leaf(to));
        let bundle = u64::from(cables.leaf_bundle());
        if a == b {
            1
        } else if layout.pod_of_leaf(a) == layout.pod_of_leaf(b) {
            u64::from(cables.uplinks) * bundle
        } else if cables.pair > 0 {
            u64::from(cables.pair) * bundle * bundle
        } else {
            let top = u64::from(cables.spine_uplinks) * u64::from(cables.spine_bundle());
            u64::from(cables.uplinks) * bundle * top
        }
    }
}

/// Port groups sorted by leaf.
struct PortsByLeaf {
    first: Vec<u32>,
    ports: Vec<u32>,
}

impl PortsByLeaf {
    fn of(&self, leaf: u32) -> &[u32] {
        let (start, end) = (self.first[leaf as usize], self.first[leaf as usize + 1]);
        &self.ports[start as usize..end as usize]
    }
}

fn ports_by_leaf(layout: &Layout) -> PortsByLeaf {
    let mut first = vec![0_u32; layout.leaves_total() as usize + 1];
    for port in 0..layout.ports {
        first[layout.leaf(port) as usize + 1] += 1;
    }
    for leaf in 1..first.len() {
        first[leaf] += first[leaf - 1];
    }
    let mut next = first.clone();
    let mut ports = vec![0; layout.ports as usize];
    for port in 0..layout.ports {
        let at = &mut next[layout.leaf(port) as usize];
        ports[*at as usize] = port;
        *at += 1;
    }
    PortsByLeaf { first, ports }
}

/// Hash values of one flow, one per switch that chooses.
struct Draw(u64);

impl Draw {
    fn new(seed: u64, from: u32, to: u32, choice: u64) -> Self {
        let pair = u64::from(from) << 32 | u64::from(to);
        Self(mixed(seed ^ mixed(pair ^ mixed(choice))))
    }

    fn below(&mut self, count: u32) -> u32 {
        self.0 = mixed(self.0);
        ((u128::from(self.0) * u128::from(count)) >> 64) as u32
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014) after its step.
const fn mixed(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
