//! The links above the leaves, where flows of all groups and all jobs meet.
//!
//! Every communicator and every message has its flows on the real links, along the routes that the
//! fabric's routing and the seed give them. A folded group stands for groups that cannot differ and
//! run at the same time, so its session has on a link the flows of all of them. Links cannot differ
//! where they are as wide and as whole and the same groups have as many flows on them; ranks that
//! differ in what their communicators meet are told apart, and this goes on until nothing splits.

use crate::fold::{Folding, fold};
use rackflow_plan::{Fidelity, Flows, Pattern, Plan, Reach, Sender, route_of};
use rackflow_topology::{Cluster, ClusterMap, FlappingPorts, Health, LinkId, Vertex, Wires};
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// What a communication has on the fabric: flows that carry alike.
#[derive(Debug, Clone, Copy, Default)]
struct Session {
    first: u32,
    end: u32,
    /// Flows among which a rank that sends most divides its bytes.
    each: u32,
}

/// The sessions of one job.
#[derive(Debug, Clone, Default)]
pub(crate) struct JobLinks {
    /// Link, and flows on it.
    uses: Vec<(u32, u32)>,
    /// By folded group and pattern.
    groups: Vec<[Session; Pattern::COUNT]>,
    /// By entity: its messages to the next stage, and those to the one before.
    messages: [Vec<Session>; 2],
}

impl JobLinks {
    fn empty(folding: &Folding) -> Self {
        let messages = vec![Session::default(); folding.entities.len()];
        Self {
            uses: Vec::new(),
            groups: vec![[Session::default(); Pattern::COUNT]; folding.groups.len()],
            messages: [messages.clone(), messages],
        }
    }

    /// Links with their flows, and among how many flows the busiest rank divides its bytes, of a
    /// collective.
    pub fn of_group(&self, group: u32, pattern: Pattern) -> (&[(u32, u32)], u32) {
        self.of(self.groups[group as usize][pattern as usize])
    }

    /// The same of a message.
    pub fn of_message(&self, entity: u32, forward: bool) -> (&[(u32, u32)], u32) {
        self.of(self.messages[usize::from(!forward)][entity as usize])
    }

    fn of(&self, session: Session) -> (&[(u32, u32)], u32) {
        let range = session.first as usize..session.end as usize;
        (&self.uses[range], session.each.max(1))
    }
}

/// Links that may hold flows back, and who is on them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fabric {
    /// What each link carries, in bytes per second.
    pub capacities: Vec<f64>,
    pub jobs: Vec<JobLinks>,
    /// Links of each leaf that flaps.
    pub of_leaf: FxHashMap<u32, Vec<u32>>,
    /// For flows that come with requests.
    pub roads: Option<Arc<Roads>>,
    /// Links that those may use.
    pinned: FxHashMap<LinkId, u32>,
}

/// Which links are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Those that may be asked for more than they carry.
    Narrow,
    /// All: for the test that wide links leave no trace.
    All,
}

/// Where jobs run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site<'a> {
    /// The whole cluster.
    pub host: &'a Cluster,
    /// From which hashed paths follow.
    pub seed: u64,
    /// Flows run over links.
    pub on_fabric: bool,
    pub keep: Keep,
    /// Flows that may come at any time: those of serving jobs follow their requests.
    pub visitors: &'a [Flows],
}

impl<'a> Site<'a> {
    /// One training step alone.
    pub fn of(plan: &'a Plan, keep: Keep) -> Self {
        Self {
            host: plan.setup.host(),
            seed: plan.setup.seed,
            on_fabric: plan.on_fabric || keep == Keep::All,
            keep,
            visitors: &[],
        }
    }
}

/// The way of flows that come with requests over the links that may hold them back.
#[derive(Debug)]
pub(crate) struct Roads {
    wires: Wires,
    link_of: FxHashMap<LinkId, u32>,
}

impl Roads {
    /// Links, with how many of these flows go over each.
    pub fn of(&self, flows: &Flows) -> Vec<(u32, u32)> {
        let (mut route, mut links) = (Vec::new(), Vec::<u32>::new());
        for edge in &flows.edges {
            route_of(&self.wires, *edge, VISITORS, &mut route);
            links.extend(
                route
                    .iter()
                    .filter_map(|link| self.link_of.get(link).copied()),
            );
        }
        links.sort_unstable();
        links
            .chunk_by(|a, b| a == b)
            .map(|run| (run[0], run.len() as u32))
            .collect()
    }
}

/// Folds the jobs that train, and lays all flows out over the fabric.
pub(crate) fn lay_out(site: Site<'_>, plans: &[&Plan], health: &Health) -> (Vec<Folding>, Fabric) {
    if !site.on_fabric {
        let folded: Vec<Folding> = plans
            .iter()
            .map(|plan| fold(plan, health, &[], false))
            .collect();
        let jobs = folded.iter().map(JobLinks::empty).collect();
        return (
            folded,
            Fabric {
                jobs,
                ..Fabric::default()
            },
        );
    }
    let map = ClusterMap::new(site.host).expect("the plans were compiled on this cluster");
    let wires = Wires::new(site.host, site.seed).expect("the plans were compiled on this cluster");
    let layout = Layout::new(site, plans, health, (&map, &wires));
    let (folded, mut fabric) = layout.fold(plans, health);
    if !site.visitors.is_empty() {
        let link_of = std::mem::take(&mut fabric.pinned);
        fabric.roads = Some(Arc::new(Roads { wires, link_of }));
    }
    (folded, fabric)
}

/// The flows of one sender: on every link so many.
struct Laid {
    sender: Sender,
    each: u32,
    first: usize,
    end: usize,
}

/// The flows of all senders of all jobs on the wires.
struct Layout {
    jobs: Vec<Vec<Laid>>,
    uses: Vec<(LinkId, u32)>,
    /// Of the links that are kept.
    capacity: FxHashMap<LinkId, f64>,
    /// The leaf whose flapping uplink it is.
    flapping: FxHashMap<LinkId, u32>,
    /// Kept links that visitors may use: none of them stands for another.
    pinned: Vec<LinkId>,
}

/// Messages, and flows that come with requests, have connections of their own.
const MESSAGES: u64 = 64;
const VISITORS: u64 = 128;

impl Layout {
    fn new(
        site: Site<'_>,
        plans: &[&Plan],
        health: &Health,
        (map, wires): (&ClusterMap, &Wires),
    ) -> Self {
        let mut layout = Self {
            jobs: Vec::new(),
            uses: Vec::new(),
            capacity: FxHashMap::default(),
            flapping: FxHashMap::default(),
            pinned: Vec::new(),
        };
        let mut reach = Reach::default();
        let (mut route, mut links) = (Vec::new(), Vec::new());
        for plan in plans {
            let mut laid = Vec::new();
            let uses = &mut layout.uses;
            plan.crossings(map, &mut |sender, flows, _| {
                let choice = match sender {
                    Sender::Group { at, .. } => plan.slots[at] as u64,
                    Sender::Message { forward, .. } => MESSAGES + u64::from(forward),
                };
                reach.add(wires, flows, 1.0, choice, &mut route);
                links.clear();
                for edge in &flows.edges {
                    route_of(wires, *edge, choice, &mut route);
                    links.extend_from_slice(&route);
                }
                links.sort_unstable();
                let first = uses.len();
                uses.extend(
                    links
                        .chunk_by(|a, b| a == b)
                        .map(|run| (run[0], run.len() as u32)),
                );
                laid.push(Laid {
                    sender,
                    each: flows.each,
                    first,
                    end: uses.len(),
                });
            });
            layout.jobs.push(laid);
        }
        for flows in site.visitors {
            reach.add(wires, flows, 1.0, VISITORS, &mut route);
            for edge in &flows.edges {
                route_of(wires, *edge, VISITORS, &mut route);
                layout.pinned.extend_from_slice(&route);
            }
            layout.pinned.sort_unstable();
            layout.pinned.dedup();
        }
        layout.keep(site, (map, wires), health, reach);
        let capacity = &layout.capacity;
        layout.pinned.retain(|link| capacity.contains_key(link));
        layout
    }

    /// Chooses the links that may hold flows back.
    fn keep(
        &mut self,
        site: Site<'_>,
        (map, wires): (&ClusterMap, &Wires),
        health: &Health,
        reach: Reach,
    ) {
        let efficiency = site.host.node.nic.efficiency;
        let rate = map.nic_share().as_f64();
        for (link, ranks) in reach.most() {
            let (from, to) = wires.ends(link);
            let leaf = match (from, to) {
                (Vertex::Leaf(leaf), _) | (_, Vertex::Leaf(leaf)) => Some(leaf),
                _ => None,
            };
            let part = leaf.and_then(|leaf| health.leaf.get(&leaf)).copied();
            let carries = wires.bandwidth(link).as_f64() * part.unwrap_or(1.0);
            let flaps = leaf.filter(|leaf| flapping(health, *leaf));
            let narrow = ranks * rate > carries * (1.0 + 1e-9);
            if narrow || flaps.is_some() || site.keep == Keep::All {
                self.capacity.insert(link, carries * efficiency);
            }
            if let Some(leaf) = flaps {
                self.flapping.insert(link, leaf);
            }
        }
    }

    /// Splits ranks and links until nothing differs any more, and writes down who is on which link.
    fn fold(&self, plans: &[&Plan], health: &Health) -> (Vec<Folding>, Fabric) {
        let mut seats: Vec<Vec<u32>> = vec![Vec::new(); plans.len()];
        let mut count = 0;
        loop {
            let folded: Vec<Folding> = plans
                .iter()
                .zip(&seats)
                .map(|(plan, seats)| fold(plan, health, seats, true))
                .collect();
            let classes = self.classes(&folded);
            let entities: usize = folded.iter().map(|folding| folding.entities.len()).sum();
            let apart = plans
                .iter()
                .all(|plan| plan.setup.fidelity == Fidelity::Full);
            if entities == count || apart {
                let fabric = self.fabric(&folded, &classes);
                return (folded, fabric);
            }
            count = entities;
            seats = self.seats(plans, &folded, &classes);
        }
    }

    /// Links that cannot differ have one number.
    fn classes(&self, folded: &[Folding]) -> Classes {
        let mut on: Vec<(LinkId, User, u32)> = Vec::new();
        for (job, (laid, folding)) in self.jobs.iter().zip(folded).enumerate() {
            for laid in laid {
                let user = User::of(job as u32, laid.sender, folding);
                for &(link, flows) in &self.uses[laid.first..laid.end] {
                    if self.capacity.contains_key(&link) {
                        on.push((link, user, flows));
                    }
                }
            }
        }
        on.sort_unstable();
        let mut known: FxHashMap<(u64, Apart, Users), u32> = FxHashMap::default();
        let mut classes = Classes::default();
        let mut add = |link: LinkId, users: Users| {
            let capacity = self.capacity[&link];
            let apart = Apart {
                flaps: self.flapping.get(&link).copied(),
                pinned: self.pinned.binary_search(&link).ok().map(|_| link),
            };
            let next = known.len() as u32;
            let class = *known
                .entry((capacity.to_bits(), apart, users.clone()))
                .or_insert(next);
            classes.of_link.insert(link, class);
            if class == next {
                classes.links.push(SharedLink {
                    capacity,
                    apart,
                    users,
                });
            }
        };
        for run in on.chunk_by(|a, b| a.0 == b.0) {
            let users: Users = run
                .chunk_by(|a, b| a.1 == b.1)
                .map(|same| (same[0].1, same.iter().map(|(_, _, flows)| flows).sum()))
                .collect();
            add(run[0].0, users);
        }
        for link in &self.pinned {
            if on.binary_search_by_key(link, |(link, _, _)| *link).is_err() {
                add(*link, Users::new());
            }
        }
        classes
    }

    /// A number for every rank: equal where its class is and its communicators and messages are on
    /// equal links.
    fn seats(&self, plans: &[&Plan], folded: &[Folding], classes: &Classes) -> Vec<Vec<u32>> {
        let mut known: FxHashMap<Vec<(u32, u32)>, u32> = FxHashMap::default();
        let mut numbers: FxHashMap<(u32, u32, Vec<u32>), u32> = FxHashMap::default();
        let mut seats = Vec::new();
        for (job, ((plan, folding), laid)) in plans.iter().zip(folded).zip(&self.jobs).enumerate() {
            // What the sessions of each communicator and of each rank's messages are on.
            let mut of_group: FxHashMap<(usize, u32), Vec<u32>> = FxHashMap::default();
            let mut of_rank: FxHashMap<u32, Vec<u32>> = FxHashMap::default();
            for laid in laid {
                let mut on: Vec<(u32, u32)> = self.uses[laid.first..laid.end]
                    .iter()
                    .filter_map(|(link, flows)| Some((*classes.of_link.get(link)?, *flows)))
                    .collect();
                on.sort_unstable();
                let next = known.len() as u32;
                let number = *known.entry(on).or_insert(next);
                match laid.sender {
                    Sender::Group { at, group, pattern } => {
                        let of = of_group.entry((at, group)).or_default();
                        of.extend([pattern as u32, number]);
                    }
                    Sender::Message { rank, forward } => {
                        let of = of_rank.entry(rank).or_default();
                        of.extend([u32::from(forward), number]);
                    }
                }
            }
            let seat = |rank: u32| {
                let mut key = Vec::new();
                for (at, slot) in plan.slots.iter().enumerate() {
                    let group = plan.placement.group_of(*slot, rank);
                    key.extend(of_group.get(&(at, group)).into_iter().flatten());
                    key.push(u32::MAX);
                }
                key.extend(of_rank.get(&rank).into_iter().flatten());
                let next = numbers.len() as u32;
                let class = folding.class_of_rank[rank as usize];
                *numbers.entry((job as u32, class, key)).or_insert(next)
            };
            seats.push((0..plan.placement.ranks()).map(seat).collect());
        }
        seats
    }

    fn fabric(&self, folded: &[Folding], classes: &Classes) -> Fabric {
        let mut fabric = Fabric {
            jobs: folded.iter().map(JobLinks::empty).collect(),
            ..Fabric::default()
        };
        let mut uses: FxHashMap<User, Vec<(u32, u32)>> = FxHashMap::default();
        // Of links that the same flows are on the narrowest holds them back.
        let mut known: FxHashMap<(Apart, &Users), u32> = FxHashMap::default();
        for SharedLink {
            capacity,
            apart,
            users,
        } in &classes.links
        {
            let next = fabric.capacities.len() as u32;
            let link = *known.entry((*apart, users)).or_insert(next);
            if link < next {
                let narrowest = &mut fabric.capacities[link as usize];
                *narrowest = narrowest.min(*capacity);
                continue;
            }
            fabric.capacities.push(*capacity);
            if let Some(leaf) = apart.flaps {
                fabric.of_leaf.entry(leaf).or_default().push(link);
            }
            if let Some(wire) = apart.pinned {
                fabric.pinned.insert(wire, link);
            }
            for (user, flows) in users {
                uses.entry(*user).or_default().push((link, *flows));
            }
        }
        for (job, (laid, folding)) in self.jobs.iter().zip(folded).enumerate() {
            let links = &mut fabric.jobs[job];
            for laid in laid {
                let user = User::of(job as u32, laid.sender, folding);
                // Of senders that stand for each other the first is written down.
                let Some(on) = uses.remove(&user) else {
                    continue;
                };
                let first = links.uses.len() as u32;
                links.uses.extend(on);
                let session = Session {
                    first,
                    end: links.uses.len() as u32,
                    each: laid.each,
                };
                match laid.sender {
                    Sender::Group { at, group, pattern } => {
                        let index = folding.group_index[at][group as usize];
                        links.groups[index as usize][pattern as usize] = session;
                    }
                    Sender::Message { rank, forward } => {
                        let entity = folding.class_of_rank[rank as usize];
                        links.messages[usize::from(!forward)][entity as usize] = session;
                    }
                }
            }
        }
        fabric
    }
}

/// Links that cannot differ.
#[derive(Default)]
struct Classes {
    of_link: FxHashMap<LinkId, u32>,
    links: Vec<SharedLink>,
}

/// One that stands for all that cannot differ from it.
struct SharedLink {
    /// What it carries, in bytes per second.
    capacity: f64,
    apart: Apart,
    users: Users,
}

/// What tells a link from others that are used alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Apart {
    /// The leaf that it flaps with.
    flaps: Option<u32>,
    /// Itself, where visitors may use it.
    pinned: Option<LinkId>,
}

/// Who has how many flows on a link.
type Users = Vec<(User, u32)>;

/// Who has flows on a link: a folded group by one of its patterns, or an entity's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct User {
    job: u32,
    /// The pattern; beyond those, messages to the next stage and to the one before.
    kind: u32,
    index: u32,
}

impl User {
    fn of(job: u32, sender: Sender, folding: &Folding) -> Self {
        match sender {
            Sender::Group { at, group, pattern } => Self {
                job,
                kind: pattern as u32,
                index: folding.group_index[at][group as usize],
            },
            Sender::Message { rank, forward } => Self {
                job,
                kind: Pattern::COUNT as u32 + u32::from(!forward),
                index: folding.class_of_rank[rank as usize],
            },
        }
    }
}

fn flapping(health: &Health, leaf: u32) -> bool {
    let ports = FlappingPorts::LeafUplinks(leaf);
    health.flaps.iter().any(|flap| flap.ports == ports)
}
