//! How the GPUs of one domain are wired: through switches, each to each, or on a torus.

use crate::map::{Axis, Joined};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The wires inside a domain. A GPU's `bandwidth` is that of all its links together.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Wiring {
    /// Every GPU on every switch: any peer is reached at full bandwidth (NVSwitch).
    #[default]
    Switched,
    /// One link from each GPU to each other one (xGMI); a pair has only its own link.
    Mesh,
    /// Two links along each axis (TPU interconnect).
    Torus(Torus),
    /// Over PCIe switches, host bridges and sockets: the further apart the members of a group are, the
    /// less of `bandwidth` they reach. The nearest first.
    Bridged(Vec<Bridge>),
}

/// One step away from a card.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bridge {
    /// Neighbours, counted from the first card of the domain, that meet there.
    pub gpus: u32,
    /// Fraction of `bandwidth` that a group reaches which meets there and no nearer.
    pub part: f64,
}

/// Where the members of one domain, counted from its first, meet: the part of `bandwidth` that they
/// reach.
pub(crate) fn bridged_part(bridges: &[Bridge], members: impl Iterator<Item = u32> + Clone) -> f64 {
    let together = |bridge: &&Bridge| {
        let block = |member: u32| member / bridge.gpus.max(1);
        let mut blocks = members.clone().map(block);
        let first = blocks.next();
        blocks.all(|block| Some(block) == first)
    };
    let met = bridges.iter().find(together).or(bridges.last());
    met.map_or(1.0, |bridge| bridge.part)
}

/// A torus of up to four axes. A smaller slice takes the most cubic shape of as many axes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Torus {
    /// Chips along each axis; their product is the domain.
    pub dims: Vec<u32>,
    /// An axis closes to a ring where its extent is a multiple of this, and is a line otherwise:
    /// 1 always closes; 4 on a TPU v5p, whose cubes of 4 x 4 x 4 are joined by optical switches.
    #[serde(default = "always")]
    pub wrap_multiple_of: u32,
}

fn always() -> u32 {
    1
}

/// More axes than any machine has.
pub(crate) const MOST_AXES: usize = 4;

/// The shape of one domain as it is built, and the arithmetic of its places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shape {
    Switched,
    Mesh,
    Grid(Grid),
}

/// A torus or a grid; chip numbers run along the first axis first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grid {
    pub dims: Vec<u32>,
    pub wrap: Vec<bool>,
}

impl Grid {
    /// The torus that `chips` of `domain` form.
    pub(crate) fn new(torus: &Torus, domain: u32, chips: u32) -> Self {
        let dims = if chips == domain {
            torus.dims.clone()
        } else {
            most_cubic(chips, torus.dims.len())
        };
        let closes = |extent: &u32| extent.is_multiple_of(torus.wrap_multiple_of) && *extent > 1;
        let wrap = dims.iter().map(closes).collect();
        Self { dims, wrap }
    }

    pub(crate) fn coordinates(&self, chip: u32) -> [u32; MOST_AXES] {
        let mut at = [0; MOST_AXES];
        let mut rest = chip;
        for (axis, extent) in self.dims.iter().enumerate() {
            at[axis] = rest % extent;
            rest /= extent;
        }
        at
    }

    fn stride(&self, axis: usize) -> u32 {
        self.dims[..axis].iter().product()
    }

    /// Signed number of hops from `from` to `to` along one axis, the shorter way; both ways are as
    /// short on an even ring, then the way up.
    fn offset(&self, axis: usize, from: u32, to: u32) -> i64 {
        let extent = i64::from(self.dims[axis]);
        let up = i64::from(to) - i64::from(from);
        if !self.wrap[axis] {
            return up;
        }
        let up = up.rem_euclid(extent);
        if 2 * up <= extent { up } else { up - extent }
    }

    /// Hops between two chips.
    pub(crate) fn hops(&self, from: u32, to: u32) -> u32 {
        let (a, b) = (self.coordinates(from), self.coordinates(to));
        let hops = |axis| self.offset(axis, a[axis], b[axis]).unsigned_abs() as u32;
        (0..self.dims.len()).map(hops).sum()
    }

    /// Neighbours of a chip, and the number of parallel links to each: along every axis first the
    /// one above, then the one below; on a ring of two both links lead to the same chip.
    pub(crate) fn neighbours(&self, chip: u32, mut each: impl FnMut(u32, u32)) {
        let at = self.coordinates(chip);
        for (axis, &extent) in self.dims.iter().enumerate() {
            let stride = self.stride(axis);
            let base = chip - at[axis] * stride;
            let wrap = self.wrap[axis];
            let next = |to: u32| base + to * stride;
            if extent == 2 {
                each(next(1 - at[axis]), if wrap { 2 } else { 1 });
                continue;
            }
            if at[axis] + 1 < extent || (wrap && extent > 1) {
                each(next((at[axis] + 1) % extent), 1);
            }
            if at[axis] > 0 || (wrap && extent > 1) {
                each(next((at[axis] + extent - 1) % extent), 1);
            }
        }
    }

    /// The chips after `from` on the way to `to`: axis by axis, beginning with axis `choice`
    /// modulo their number; a bit of `choice` per axis decides between two ways that are as short.
    pub(crate) fn walk(&self, from: u32, to: u32, choice: u64, mut each: impl FnMut(u32)) {
        let (mut at, goal) = (self.coordinates(from), self.coordinates(to));
        let axes = self.dims.len();
        for i in 0..axes {
            let axis = (i + (choice % axes as u64) as usize) % axes;
            let extent = self.dims[axis];
            let mut left = self.offset(axis, at[axis], goal[axis]);
            let half = self.wrap[axis] && 2 * left == i64::from(extent);
            if half && choice >> (8 + axis) & 1 == 1 {
                left = -left;
            }
            for _ in 0..left.unsigned_abs() {
                at[axis] = (at[axis] + if left > 0 { 1 } else { extent - 1 }) % extent;
                each(self.chip(&at));
            }
        }
    }

    fn chip(&self, at: &[u32; MOST_AXES]) -> u32 {
        (0..self.dims.len())
            .map(|axis| at[axis] * self.stride(axis))
            .sum()
    }

    /// Shortest paths between two chips: the orders of their hops along the axes, times two for
    /// every axis on which both ways are as short; saturates.
    pub(crate) fn paths(&self, from: u32, to: u32) -> u64 {
        let (a, b) = (self.coordinates(from), self.coordinates(to));
        let mut total = 0_u64;
        let mut paths = 1_u128;
        for axis in 0..self.dims.len() {
            let hops = self.offset(axis, a[axis], b[axis]).unsigned_abs();
            for i in 1..=hops {
                total += 1;
                paths = (paths.saturating_mul(total.into()) / u128::from(i)).min(u64::MAX.into());
            }
            if self.wrap[axis] && 2 * hops == u64::from(self.dims[axis]) && self.dims[axis] > 2 {
                paths = paths.saturating_mul(2);
            }
        }
        u64::try_from(paths).unwrap_or(u64::MAX)
    }

    /// Cables of the whole torus.
    pub(crate) fn cables(&self) -> u64 {
        let chips: u64 = self.dims.iter().map(|d| u64::from(*d)).product();
        let along = |(extent, wrap): (&u32, &bool)| {
            let lines = chips / u64::from(*extent);
            lines * u64::from(if *wrap { *extent } else { extent - 1 })
        };
        self.dims.iter().zip(&self.wrap).map(along).sum()
    }

    /// Links, one direction, across the narrowest cut into two halves.
    pub(crate) fn bisection_links(&self) -> u64 {
        let chips: u64 = self.dims.iter().map(|d| u64::from(*d)).product();
        let cut = |(extent, wrap): (&u32, &bool)| {
            (*extent > 1).then(|| chips / u64::from(*extent) * if *wrap { 2 } else { 1 })
        };
        self.dims
            .iter()
            .zip(&self.wrap)
            .filter_map(cut)
            .min()
            .unwrap_or(0)
    }

    /// How some chips stand along each axis.
    fn spread(&self, members: impl Iterator<Item = u32> + Clone) -> Vec<Along> {
        let along = |axis: usize| {
            let mut seen: Vec<u32> = members.clone().map(|m| self.coordinates(m)[axis]).collect();
            seen.sort_unstable();
            seen.dedup();
            let extent = self.dims[axis];
            let count = seen.len() as u32;
            let span = seen[seen.len() - 1] - seen[0] + 1;
            let stride = (f64::from(span - 1) / f64::from((count - 1).max(1))).max(1.0);
            // A ring needs members all around; a part of it is a line.
            let closed =
                count > 1 && self.wrap[axis] && f64::from(extent) - f64::from(span) < stride;
            Along {
                count,
                stride,
                closed,
                length: if closed { extent } else { span },
            }
        };
        (0..self.dims.len()).map(along).collect()
    }

    /// How these chips, lowest number first, are joined: as the box that they fill, or along one ring
    /// through all.
    pub(crate) fn joined(&self, chips: &[u32]) -> Joined {
        let spread = self.spread(chips.iter().copied());
        let boxed: u64 = spread.iter().map(|along| u64::from(along.count)).product();
        if boxed == chips.len() as u64 {
            let axis = |along: &Along| Axis {
                extent: along.count,
                closed: along.closed,
            };
            return Joined::Torus(spread.iter().map(axis).collect());
        }
        let mut order: Vec<u32> = (0..chips.len() as u32).collect();
        // Row by row, every other one backwards, so that the next is near.
        order.sort_by_key(|member| {
            let at = self.coordinates(chips[*member as usize]);
            let mut key = [0; MOST_AXES];
            let mut backwards = false;
            for axis in (0..self.dims.len()).rev() {
                let place = if backwards {
                    self.dims[axis] - 1 - at[axis]
                } else {
                    at[axis]
                };
                key[MOST_AXES - 1 - axis] = place;
                backwards ^= at[axis] % 2 == 1;
            }
            key
        });
        Joined::Loop {
            order,
            axes: self.dims.len() as u32,
        }
    }

    /// Shares of a chip's links that the members of a group can use: those of its neighbours on
    /// rings through the group, and those of all its pairs sending alike.
    ///
    /// Per axis along which members differ: rings use both directions of a closed axis and one of
    /// a line, divided by the distance between members, since the chips between run groups of
    /// their own. Pairs are bound by the cut of the longest axis: with `m` members on `k` chips of
    /// a ring each cut link carries `m k / 8` times what a pair sends, on a line `m k / 4`. Members
    /// that fill no box have one ring both ways through all.
    pub(crate) fn shares(&self, members: impl Iterator<Item = u32> + Clone) -> (f64, f64) {
        let links = 2.0 * self.dims.len() as f64;
        let count = members.clone().count() as f64;
        let spread = self.spread(members);
        let boxed: f64 = spread.iter().map(|along| f64::from(along.count)).product();
        let (mut ring, mut worst_cut) = (0.0, 0.0_f64);
        for along in spread.iter().filter(|along| along.count > 1) {
            let (directions, cuts) = if along.closed { (2.0, 8.0) } else { (1.0, 4.0) };
            ring += directions / along.stride;
            worst_cut = worst_cut.max(count * f64::from(along.length) / cuts);
        }
        if boxed > count {
            ring = ring.min(2.0);
        }
        let pairs = if worst_cut > 0.0 {
            (count - 1.0) / worst_cut / links
        } else {
            1.0
        };
        ((ring / links).min(1.0), pairs.min(1.0))
    }
}

/// How some chips stand along one axis.
struct Along {
    /// Places with a chip of them.
    count: u32,
    /// Mean distance of two such places that follow each other.
    stride: f64,
    /// They go all around.
    closed: bool,
    /// Chips of the axis that they reach over.
    length: u32,
}

/// `n` as the product of `axes` factors, as equal as they can be, smallest first.
fn most_cubic(n: u32, axes: usize) -> Vec<u32> {
    fn search(n: u32, axes: usize, least: u32, taken: &mut Vec<u32>, best: &mut Option<Vec<u32>>) {
        if axes == 1 {
            let spread = |v: &[u32]| v.iter().map(|f| u64::from(*f)).sum::<u64>();
            taken.push(n);
            if best.as_ref().is_none_or(|b| spread(taken) < spread(b)) {
                *best = Some(taken.clone());
            }
            taken.pop();
            return;
        }
        let mut factor = least;
        while u64::from(factor).pow(axes as u32) <= u64::from(n) {
            if n.is_multiple_of(factor) {
                taken.push(factor);
                search(n / factor, axes - 1, factor, taken, best);
                taken.pop();
            }
            factor += 1;
        }
    }
    let mut best = None;
    search(n, axes, 1, &mut Vec::new(), &mut best);
    best.unwrap_or_else(|| vec![n])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(dims: &[u32], multiple: u32) -> Grid {
        let torus = Torus {
            dims: dims.to_vec(),
            wrap_multiple_of: multiple,
        };
        let chips = dims.iter().product();
        Grid::new(&torus, chips, chips)
    }

    #[test]
    fn cards_meet_at_the_nearest_bridge() {
        let bridge = |gpus, part| Bridge { gpus, part };
        let bridges = [bridge(2, 1.0), bridge(4, 0.25), bridge(8, 0.07)];
        let part = |members: &[u32]| bridged_part(&bridges, members.iter().copied());
        assert_eq!(part(&[2, 3]), 1.0);
        assert_eq!(part(&[1, 2]), 0.25);
        assert_eq!(part(&[0, 1, 2, 3]), 0.25);
        assert_eq!(part(&[3, 4]), 0.07);
        assert_eq!(part(&[0, 9]), 0.07);
        assert_eq!(bridged_part(&[], [0, 1].into_iter()), 1.0);
    }

    #[test]
    fn slices_are_as_cubic_as_their_number_allows() {
        for (n, axes, dims) in [
            (64, 3, vec![4, 4, 4]),
            (128, 3, vec![4, 4, 8]),
            (256, 2, vec![16, 16]),
            (7, 3, vec![1, 1, 7]),
            (2048, 3, vec![8, 16, 16]),
        ] {
            assert_eq!(most_cubic(n, axes), dims);
        }
    }

    #[test]
    fn walks_are_as_long_as_breadth_first_search_finds() {
        for grid in [
            grid(&[4, 3, 5], 1),
            grid(&[4, 3, 2], 4),
            grid(&[6, 6], 4),
            grid(&[2, 2, 2], 1),
        ] {
            let n = grid.dims.iter().product::<u32>();
            let mut cables = 0;
            for from in 0..n {
                let mut distance = vec![u32::MAX; n as usize];
                let mut count = vec![0_u64; n as usize];
                (distance[from as usize], count[from as usize]) = (0, 1);
                let mut queue = std::collections::VecDeque::from([from]);
                grid.neighbours(from, |_, links| cables += links);
                while let Some(at) = queue.pop_front() {
                    let (d, c) = (distance[at as usize], count[at as usize]);
                    grid.neighbours(at, |next, _| {
                        let there = &mut distance[next as usize];
                        if *there == u32::MAX {
                            *there = d + 1;
                            queue.push_back(next);
                        }
                        if *there == d + 1 {
                            count[next as usize] += c;
                        }
                    });
                }
                for to in 0..n {
                    assert_eq!(grid.hops(from, to), distance[to as usize]);
                    assert_eq!(
                        grid.paths(from, to),
                        count[to as usize],
                        "{grid:?} {from} {to}"
                    );
                    for choice in [0, 1, 2, 0x300] {
                        let mut at = from;
                        let mut hops = 0;
                        grid.walk(from, to, choice, |next| {
                            let mut joined = false;
                            grid.neighbours(at, |n, _| joined |= n == next);
                            assert!(joined, "{at} to {next}");
                            at = next;
                            hops += 1;
                        });
                        assert_eq!((at, hops), (to, distance[to as usize]));
                    }
                }
            }
            assert_eq!(u64::from(cables), 2 * grid.cables());
        }
    }

    #[test]
    fn groups_use_the_links_along_their_axes() {
        let pod = grid(&[16, 20, 28], 4);
        let (ring, pairs) = pod.shares(0..8960);
        assert!((ring - 1.0).abs() < 1e-12);
        // The cut of the long axis: 8,959 peers, each cut link carries 8,960 x 28 / 8 pairs.
        assert!((pairs - 8959.0 / (8960.0 * 28.0 / 8.0) / 6.0).abs() < 1e-12);
        // One closed axis of three; every other chip of it; four neighbours of it.
        assert!((pod.shares(0..16).0 - 2.0 / 6.0).abs() < 1e-12);
        assert!((pod.shares((0..16).step_by(2)).0 - 1.0 / 6.0).abs() < 1e-12);
        assert!((pod.shares(0..4).0 - 1.0 / 6.0).abs() < 1e-12);
    }
}
