//! The edges between instances, and the tree that they make.

use super::{Found, Reader, find, list, name_of};
use crate::decode::shorten;
use crate::yaml::Node as Tree;
use std::collections::{BTreeMap, BTreeSet};

/// Edges written out; more is no file that somebody wrote.
const MOST_WIRES: usize = 1_000_000;

/// One copy of an instance: which instance of the list, which of its copies.
type Unit = (usize, u32);

/// A component of a unit, numbered through the device.
type Port = (String, u32);

/// What is between two units.
struct Wire {
    ends: [Unit; 2],
    /// The component at each end, numbered through the device.
    ports: [Port; 2],
    rate: Option<f64>,
    /// The edge of the file that it is from.
    edge: usize,
}

/// A switch of the fabric.
#[derive(Debug, Default)]
struct Switch {
    /// Links to hosts, their bytes/s and which interfaces of the hosts they are.
    hosts: u32,
    nics: BTreeSet<Port>,
    /// Bytes/s and links to each switch.
    switches: BTreeMap<Unit, u32>,
    tier: u32,
}

/// The wires between hosts and switches.
pub(super) struct Wires {
    wires: Vec<Wire>,
    /// Whether each instance of the list is a host.
    hosts: Vec<bool>,
}

/// `host[0:2]` without its slice.
pub(super) fn base(text: &str) -> &str {
    text.split(['[', '.']).next().unwrap_or_default().trim()
}

impl Wires {
    pub fn read(reader: &Reader<'_>) -> Result<Self, Found> {
        let instances = reader.items("instances");
        let mut hosts = Vec::new();
        for instance in instances {
            let device = reader.device(reader.word(instance, "device")?)?;
            hosts.push(reader.parts(device, 0)?.xpus > 0);
        }
        let mut wires = Vec::new();
        for (index, edge) in reader.items("edges").iter().enumerate() {
            let link = reader.named("links", reader.word(edge, "link")?)?;
            let rate = reader.rate(link)?;
            let [a, b] = ["ep1", "ep2"].map(|end| Endpoint::read(reader, edge, end));
            let (a, b) = (a?, b?);
            let all_pairs = match edge.get("scheme").and_then(Tree::text) {
                None | Some("one2one") => false,
                Some("many2many") => true,
                Some(other) => {
                    let message = format!("the scheme `{}` cannot be read", shorten(other));
                    return Err(reader.at(edge, message, "one2one and many2many can"));
                }
            };
            for (copy_a, copy_b) in a.copies.iter().zip(&b.copies) {
                let pairs = a.ports.iter().enumerate().flat_map(|(i, x)| {
                    let partners = if all_pairs {
                        &b.ports[..]
                    } else {
                        b.ports.get(i..=i).unwrap_or_default()
                    };
                    partners.iter().map(move |y| (x, y))
                });
                for (x, y) in pairs {
                    if wires.len() == MOST_WIRES {
                        return Err(reader.at(
                            edge,
                            format!("there are more than {MOST_WIRES} links"),
                            "import one node, and name a fabric",
                        ));
                    }
                    wires.push(Wire {
                        ends: [(a.instance, *copy_a), (b.instance, *copy_b)],
                        ports: [x.clone(), y.clone()],
                        rate,
                        edge: index,
                    });
                }
            }
        }
        Ok(Self { wires, hosts })
    }

    fn edge<'t>(reader: &'t Reader<'_>, wire: &Wire) -> &'t Tree {
        &reader.items("edges")[wire.edge]
    }

    fn is_host(&self, of: Unit) -> bool {
        self.hosts[of.0]
    }

    /// Interfaces of a node that are wired, and bytes/s of one.
    pub fn nics(&self, reader: &Reader<'_>) -> Result<(u32, f64), Found> {
        let mut wired: BTreeMap<Unit, u32> = BTreeMap::new();
        let mut rate: Option<f64> = None;
        for wire in &self.wires {
            for end in wire.ends.into_iter().filter(|end| self.is_host(*end)) {
                *wired.entry(end).or_default() += 1;
                let Some(own) = wire.rate else {
                    let edge = Self::edge(reader, wire);
                    return Err(reader.at(
                        edge,
                        "the link of this edge has no bandwidth".into(),
                        "physical: { bandwidth: { gigabits_per_second: 400 } }",
                    ));
                };
                if rate.is_some_and(|rate| (rate / own - 1.0).abs() > 1e-6) {
                    let edge = Self::edge(reader, wire);
                    return Err(reader.at(
                        edge,
                        "this edge is not as fast as the first of a node".into(),
                        "all interfaces of a node are alike; leave the slower network out",
                    ));
                }
                rate = Some(own);
            }
        }
        let counts: BTreeSet<u32> = wired.values().copied().collect();
        let edges = &reader.tree;
        match (counts.iter().collect::<Vec<_>>().as_slice(), rate) {
            ([only], Some(rate)) => Ok((**only, rate)),
            ([], _) => Err(reader.at(
                edges,
                "no edge reaches a node with accelerators".into(),
                "join its interfaces to switches under `edges`",
            )),
            _ => {
                let message = format!(
                    "the nodes are not alike: some have {} wired interfaces, some {}",
                    counts.first().unwrap_or(&0),
                    counts.last().unwrap_or(&0)
                );
                Err(reader.at(edges, message, "every node needs as many edges to switches"))
            }
        }
    }

    /// The fabric as it is written in a scenario.
    pub fn fabric(&self, reader: &Reader<'_>) -> Result<String, Found> {
        let way_out = "name one beside: cluster: { import: ..., fabric: rail-optimized }";
        let (nics, nic_rate) = self.nics(reader)?;
        let (mut switches, link) = self.switches(reader, way_out)?;
        let not_a_tree = |message: String| reader.at(reader.tree, message, way_out);
        let tiers = tiers(&mut switches).map_err(|message| not_a_tree(message.into()))?;
        let mut radix = BTreeMap::new();
        for (switch, of) in &switches {
            let ports = reader
                .ports(switch.0)?
                .max(of.hosts + of.switches.values().sum::<u32>());
            let most: &mut u32 = radix.entry(of.tier).or_default();
            *most = ports.max(*most);
        }
        let leaf_radix = radix.get(&0).copied().unwrap_or(1);
        let spine_radix = radix
            .iter()
            .filter(|(tier, _)| **tier > 0)
            .map(|(_, ports)| *ports)
            .max();
        let ratio = |tier: u32| {
            let (mut down, mut up) = (0.0_f64, 0.0_f64);
            for of in switches.values().filter(|of| of.tier == tier) {
                let links = |wanted: bool| {
                    let to = of
                        .switches
                        .iter()
                        .filter(|(to, _)| (switches[*to].tier > tier) == wanted);
                    f64::from(to.map(|(_, links)| *links).sum::<u32>()) * link.unwrap_or(nic_rate)
                };
                // A leaf that is not full says nothing of how it was meant.
                down = down.max(f64::from(of.hosts) * nic_rate + links(false));
                up = up.max(links(true));
            }
            (down / up).max(1.0)
        };
        let leaves: Vec<&Switch> = switches.values().filter(|of| of.tier == 0).collect();
        let rails = nics > 1 && leaves.len() > 1 && leaves.iter().all(|leaf| leaf.nics.len() == 1);
        let parts = parts(&switches);
        let mut text = format!("tiers: {tiers}, radix: {leaf_radix}");
        if let Some(link) = link {
            text.push_str(&format!(", link: {} Gbit/s", link * 8.0 / 1e9));
        }
        if tiers > 1 {
            text.push_str(&format!(", leaf_oversubscription: {}", ratio(0)));
        }
        if rails && parts == nics as usize {
            if tiers == 3 {
                return Err(not_a_tree(
                    "separate rails of three tiers cannot be read".into(),
                ));
            }
            return Ok(format!("{{ rail_only: {{ {text}, rails: {nics} }} }}"));
        }
        if parts > 1 {
            return Err(not_a_tree(format!(
                "the switches fall into {parts} networks that never meet"
            )));
        }
        if tiers == 3 {
            text.push_str(&format!(", spine_oversubscription: {}", ratio(1)));
        }
        if rails {
            if spine_radix.is_some_and(|radix| radix != leaf_radix) {
                return Err(not_a_tree(
                    "leaves and spines of rails differ in their ports".into(),
                ));
            }
            return Ok(format!("{{ rail_optimized: {{ {text}, rails: {nics} }} }}"));
        }
        if let Some(radix) = spine_radix.filter(|radix| *radix != leaf_radix) {
            text.push_str(&format!(", spine_radix: {radix}"));
        }
        let per_leaf = leaves.iter().map(|leaf| leaf.hosts).max().unwrap_or(1);
        Ok(format!(
            "{{ fat_tree: {{ {text}, nics_per_leaf: {per_leaf} }} }}"
        ))
    }

    /// What each switch is joined to, and bytes/s of the links between them.
    fn switches(
        &self,
        reader: &Reader<'_>,
        way_out: &str,
    ) -> Result<(BTreeMap<Unit, Switch>, Option<f64>), Found> {
        let mut switches: BTreeMap<Unit, Switch> = BTreeMap::new();
        let mut link: Option<f64> = None;
        for wire in &self.wires {
            let [a, b] = wire.ends;
            let refuse =
                |message: &str| reader.at(Self::edge(reader, wire), message.into(), way_out);
            match (self.is_host(a), self.is_host(b)) {
                (true, true) => return Err(refuse("this edge joins two nodes without a switch")),
                (false, false) => {
                    let Some(own) = wire.rate else {
                        return Err(refuse("the link of this edge has no bandwidth"));
                    };
                    if link.is_some_and(|link| (link / own - 1.0).abs() > 1e-6) {
                        return Err(refuse(
                            "this edge is not as fast as others between switches",
                        ));
                    }
                    link = Some(own);
                    *switches
                        .entry(a)
                        .or_default()
                        .switches
                        .entry(b)
                        .or_default() += 1;
                    *switches
                        .entry(b)
                        .or_default()
                        .switches
                        .entry(a)
                        .or_default() += 1;
                }
                (host_first, _) => {
                    let (switch, port) = if host_first {
                        (b, &wire.ports[0])
                    } else {
                        (a, &wire.ports[1])
                    };
                    let of = switches.entry(switch).or_default();
                    of.hosts += 1;
                    of.nics.insert(port.clone());
                }
            }
        }
        Ok((switches, link))
    }
}

impl Reader<'_> {
    /// Ports of the switches of an instance, where it says.
    fn ports(&self, instance: usize) -> Result<u32, Found> {
        let instance = &self.items("instances")[instance];
        Ok(self
            .parts(self.device(self.word(instance, "device")?)?, 0)?
            .ports)
    }
}

/// Numbers the tiers from the nodes up, and says how many there are.
fn tiers(switches: &mut BTreeMap<Unit, Switch>) -> Result<u32, &'static str> {
    let mut tier: BTreeMap<Unit, u32> = switches
        .iter()
        .filter(|(_, of)| of.hosts > 0)
        .map(|(at, _)| (*at, 0))
        .collect();
    let mut front: Vec<Unit> = tier.keys().copied().collect();
    let mut number = 0;
    while !front.is_empty() {
        number += 1;
        if number > 3 {
            return Err("the switches have more than three tiers");
        }
        let mut next = BTreeSet::new();
        for at in front {
            next.extend(
                switches[&at]
                    .switches
                    .keys()
                    .filter(|to| !tier.contains_key(to)),
            );
        }
        tier.extend(next.iter().map(|at| (*at, number)));
        front = next.into_iter().collect();
    }
    for (at, of) in switches.iter() {
        let Some(own) = tier.get(at) else {
            return Err("some switches reach no node");
        };
        if of
            .switches
            .keys()
            .any(|to| tier.get(to).is_none_or(|to| to.abs_diff(*own) != 1))
        {
            return Err("two switches of one tier are joined, which no tree does");
        }
    }
    for (at, of) in switches.iter_mut() {
        of.tier = tier[at];
    }
    Ok(number)
}

/// Networks that are not joined to each other.
fn parts(switches: &BTreeMap<Unit, Switch>) -> usize {
    let mut seen = BTreeSet::new();
    let mut parts = 0;
    for start in switches.keys() {
        if !seen.insert(*start) {
            continue;
        }
        parts += 1;
        let mut open = vec![*start];
        while let Some(at) = open.pop() {
            open.extend(
                switches[&at]
                    .switches
                    .keys()
                    .filter(|to| seen.insert(**to))
                    .copied()
                    .collect::<Vec<_>>(),
            );
        }
    }
    parts
}

/// One end of an edge.
struct Endpoint {
    instance: usize,
    copies: Vec<u32>,
    ports: Vec<Port>,
}

impl Endpoint {
    fn read(reader: &Reader<'_>, edge: &Tree, end: &str) -> Result<Self, Found> {
        let Some(text) = edge.get(end) else {
            return Err(reader.at(
                edge,
                format!("this edge has no `{end}`"),
                "ep1: { instance: 'host[0]', component: 'nic[0]' }",
            ));
        };
        let place = reader.word(text, "instance")?;
        let name = place.text().unwrap_or_default();
        let known = reader.items("instances");
        let Some(instance) = known.iter().position(|of| name_of(of) == Some(base(name))) else {
            let names: Vec<&str> = known.iter().filter_map(name_of).take(8).collect();
            let message = format!("`instances` has no `{}`", shorten(base(name)));
            return Err(reader.at_span(
                place.span,
                message,
                &format!("it has: {}", names.join(", ")),
            ));
        };
        let bad = |place: &Tree, text: &str, count: u32| {
            let message = format!("`{}` names none of the {count} there are", shorten(text));
            reader.at_span(
                place.span,
                message,
                "slices are Python's: nic[0], nic[0:4], nic[0:8:2]",
            )
        };
        let count = reader.count(&known[instance])?;
        let copies = slice(name, count).ok_or_else(|| bad(place, name, count))?;
        let place = reader.word(text, "component")?;
        let path = place.text().unwrap_or_default();
        let mut device = reader.device(reader.word(&known[instance], "device")?)?;
        let mut ports: Vec<Port> = vec![(String::new(), 0)];
        let steps: Vec<&str> = path.split('.').collect();
        for (index, step) in steps.iter().enumerate() {
            let Some(component) = find(list(device, "components"), base(step)) else {
                let message = format!(
                    "`{}` has no component `{}`",
                    shorten(name_of(device).unwrap_or_default()),
                    shorten(base(step))
                );
                let names: Vec<&str> = list(device, "components")
                    .iter()
                    .filter_map(name_of)
                    .take(8)
                    .collect();
                return Err(reader.at_span(
                    place.span,
                    message,
                    &format!("it has: {}", names.join(", ")),
                ));
            };
            let count = reader.count(component)?;
            let chosen = slice(step, count).ok_or_else(|| bad(place, step, count))?;
            if ports.len().saturating_mul(chosen.len()) > MOST_WIRES {
                return Err(reader.at_span(
                    place.span,
                    format!("these are more than {MOST_WIRES}"),
                    "import one node, and name a fabric",
                ));
            }
            let longer = |(name, at): &Port| {
                let name = format!("{name}.{}", base(step));
                let at = at.saturating_mul(count);
                chosen
                    .iter()
                    .map(move |i| (name.clone(), at.saturating_add(*i)))
                    .collect::<Vec<_>>()
            };
            ports = ports.iter().flat_map(longer).collect();
            if index + 1 < steps.len() {
                device = reader.device(reader.word(component, "name")?)?;
            }
        }
        Ok(Self {
            instance,
            copies,
            ports,
        })
    }
}

/// The indices of `name[start:stop:step]` among `count`; all of them without brackets. `None` where
/// it names none.
fn slice(text: &str, count: u32) -> Option<Vec<u32>> {
    let Some((_, rest)) = text.split_once('[') else {
        return Some((0..count).collect()).filter(|all: &Vec<u32>| !all.is_empty());
    };
    let inner = rest.trim_end().strip_suffix(']')?;
    let parts: Vec<&str> = inner.split(':').map(str::trim).collect();
    let number = |text: &str, default: i64| -> Option<i64> {
        if text.is_empty() {
            return Some(default);
        }
        let at: i64 = text
            .parse()
            .ok()
            .filter(|at: &i64| at.unsigned_abs() <= u64::from(u32::MAX))?;
        Some(if at < 0 { at + i64::from(count) } else { at })
    };
    let all = i64::from(count);
    let (start, stop, step) = match parts.as_slice() {
        [""] => (0, all, 1),
        [only] => {
            let at = number(only, 0).filter(|at| (0..all).contains(at))?;
            (at, at + 1, 1)
        }
        [start, stop] => (number(start, 0)?, number(stop, all)?, 1),
        [start, stop, step] => {
            let step = if step.is_empty() {
                1
            } else {
                step.parse().ok().filter(|step| *step > 0)?
            };
            (number(start, 0)?, number(stop, all)?, step)
        }
        _ => return None,
    };
    let chosen: Vec<u32> = (start.max(0)..stop.min(all))
        .step_by(step)
        .filter_map(|at| u32::try_from(at).ok())
        .collect();
    Some(chosen).filter(|chosen| !chosen.is_empty())
}
