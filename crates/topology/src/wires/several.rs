//! Routes over the parts of a cluster of several kinds of node.
//!
//! Each part has leaves of its own, in three tiers pods of its own. The switches above are common; a
//! part's links to them are its own, and so a route from one part to another is the climb of the first
//! and the descent of the second.

use super::{Draw, LinkId, Other, Wires};
use crate::graph::Vertex;

impl Wires {
    /// The part of a GPU, and its number there.
    pub(super) fn part_of(&self, gpu: u32) -> (usize, u32) {
        let after = self.others.iter().rposition(|other| other.gpu <= gpu);
        after.map_or((0, gpu), |index| (index + 1, gpu - self.others[index].gpu))
    }

    pub(super) fn part(&self, index: usize) -> &Self {
        index
            .checked_sub(1)
            .map_or(self, |index| &self.others[index].wires)
    }

    pub(super) fn first_link(&self, index: usize) -> u32 {
        index
            .checked_sub(1)
            .map_or(0, |index| self.others[index].link)
    }

    pub(super) fn first_gpu(&self, index: usize) -> u32 {
        index
            .checked_sub(1)
            .map_or(0, |index| self.others[index].gpu)
    }

    /// Appends the links from one GPU to another, by the receiver's rail where both are in one part.
    pub(super) fn between_parts(
        &self,
        from: u32,
        to: u32,
        choice: u64,
        by_rail: bool,
        out: &mut Vec<LinkId>,
    ) {
        let ((here, a), (there, b)) = (self.part_of(from), self.part_of(to));
        let (up, down) = (self.part(here), self.part(there));
        let spine = if here == there {
            up.inside_part(a, b, choice, by_rail, out);
            None
        } else {
            let spine = up.climb(a, &mut Draw::new(self.seed, from, to, choice), out);
            // Where both parts count as many spines they are the same ones.
            (up.tiers.spines == down.tiers.spines).then_some(spine)
        };
        let climbed = out.len();
        move_by(out, self.first_link(here));
        if here != there {
            down.descend(b, spine, &mut Draw::new(self.seed, to, from, choice), out);
            move_by(&mut out[climbed..], self.first_link(there));
        }
    }

    /// The links inside one part, which knows nothing of the others.
    fn inside_part(&self, from: u32, to: u32, choice: u64, by_rail: bool, out: &mut Vec<LinkId>) {
        if from == to {
        } else if from / self.layout.domain == to / self.layout.domain {
            self.inside(from, to, choice, out);
        } else {
            let relay = if by_rail {
                self.neighbour_on_rail(from, to).unwrap_or(from)
            } else {
                from
            };
            if relay != from {
                self.inside(from, relay, choice, out);
            }
            self.onward(relay, to, choice, out);
        }
    }

    /// From a GPU up to the switches that join the parts; returns the spine, counted in its pod.
    fn climb(&self, gpu: u32, draw: &mut Draw, out: &mut Vec<LinkId>) -> u32 {
        let (layout, tiers) = (&self.layout, &self.tiers);
        let port = layout.port(gpu);
        let leaf = layout.leaf(port);
        let last = |vertex: u32| self.first[vertex as usize + 1];
        out.push(LinkId(last(gpu) - 1));
        out.push(LinkId(last(self.blocks.nics + port) - 1));
        let cable = draw.below(tiers.uplinks);
        out.push(LinkId(
            last(self.blocks.leaves + leaf) - tiers.uplinks + cable,
        ));
        let number = cable / tiers.leaf_bundle();
        if tiers.spine_uplinks > 0 {
            let (plane, pod) = (layout.plane_of_leaf(leaf), layout.pod_of_leaf(leaf));
            let spine = self.spine(plane, pod, number);
            let up = draw.below(tiers.spine_uplinks);
            out.push(LinkId(last(spine) - tiers.spine_uplinks + up));
        }
        number
    }

    /// From those switches down to a GPU.
    fn descend(&self, gpu: u32, spine: Option<u32>, draw: &mut Draw, out: &mut Vec<LinkId>) {
        let (layout, tiers) = (&self.layout, &self.tiers);
        let port = layout.port(gpu);
        let leaf = layout.leaf(port);
        let (plane, pod) = (layout.plane_of_leaf(leaf), layout.pod_of_leaf(leaf));
        let number = spine.unwrap_or_else(|| draw.below(tiers.spines));
        if tiers.spine_uplinks > 0 {
            let core = self.core(plane, number, draw.below(tiers.cores));
            let down = pod * tiers.spine_bundle() + draw.below(tiers.spine_bundle());
            out.push(LinkId(self.first[core as usize] + down));
        }
        let in_pod = leaf - layout.leaves_of_pod(plane, pod).start;
        let down = in_pod * tiers.leaf_bundle() + draw.below(tiers.leaf_bundle());
        out.push(LinkId(
            self.first[self.spine(plane, pod, number) as usize] + down,
        ));
        out.push(LinkId(self.down[port as usize]));
        let nic = (self.blocks.nics + port) as usize;
        out.push(LinkId(self.first[nic] + gpu - port * layout.gpus_per_port));
    }

    /// A vertex of a part by its number in the whole cluster.
    pub(super) fn renumbered(&self, other: &Other, vertex: Vertex) -> Vertex {
        let before = || {
            let parts = std::iter::once(self).chain(self.others.iter().map(|part| &part.wires));
            let count = self
                .others
                .iter()
                .take_while(|part| part.gpu < other.gpu)
                .count();
            parts.take(count + 1).map(|wires| &wires.blocks)
        };
        match vertex {
            Vertex::Gpu(i) => Vertex::Gpu(i + other.gpu),
            Vertex::Domain(i) => {
                Vertex::Domain(i + before().map(|b| b.nics - b.domains).sum::<u32>())
            }
            Vertex::Nic(i) => Vertex::Nic(i + before().map(|b| b.leaves - b.nics).sum::<u32>()),
            Vertex::Leaf(i) => Vertex::Leaf(i + before().map(|b| b.spines - b.leaves).sum::<u32>()),
            // What joins the parts is common.
            Vertex::Spine(i) if self.tiers.spine_uplinks > 0 => {
                Vertex::Spine(i + before().map(|b| b.cores - b.spines).sum::<u32>())
            }
            above => above,
        }
    }

    /// How many links each link of a route was chosen from.
    pub(super) fn choices_of_parts(&self, route: &[LinkId]) -> Vec<u64> {
        let owner = |link: &LinkId| {
            let after = self.others.iter().rposition(|other| other.link <= link.0);
            after.map_or(0, |index| index + 1)
        };
        let mut choices = Vec::with_capacity(route.len());
        for run in route.chunk_by(|a, b| owner(a) == owner(b)) {
            let part = owner(&run[0]);
            let first = self.first_link(part);
            let inside: Vec<LinkId> = run.iter().map(|link| LinkId(link.0 - first)).collect();
            choices.extend(self.part(part).choices_inside(&inside));
        }
        choices
    }
}

fn move_by(links: &mut [LinkId], by: u32) {
    for link in links {
        link.0 += by;
    }
}
