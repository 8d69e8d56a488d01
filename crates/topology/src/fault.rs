//! Links that are dead, slow or flapping, and what that leaves of every GPU's ports.

use crate::layout::{Layout, TopologyError};
use crate::node::Cluster;
use rackflow_units::SimDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use thiserror::Error;

/// A link that does not work as it should.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinkFault {
    /// Which link.
    pub link: FaultyLink,
    /// What is wrong with it.
    pub state: LinkState,
}

/// Which link, or which links alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FaultyLink {
    /// The NICs of this GPU; of all GPUs that share them.
    Nic(u32),
    /// The NICs of every GPU on this rail (or plane).
    Rail(u32),
    /// The links of this GPU into its scale-up domain.
    ScaleUp(u32),
    /// The links of this leaf switch towards the spines.
    LeafUplinks(u32),
}

/// What is wrong with a link.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// It is dead. Traffic of a dead NIC goes through a neighbour's, which the two then share.
    Down,
    /// It works at this fraction of its rate.
    Degraded(f64),
    /// It is down again and again, and traffic waits until it is up.
    Flapping(Flapping),
}

/// The rhythm of a link that flaps; it goes down first at half a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Flapping {
    /// From one failure to the next.
    pub every: SimDuration,
    /// How long it is down each time.
    pub down: SimDuration,
}

/// Why a fault cannot be.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum FaultError {
    /// A number beyond what there is.
    #[error("there is no {what} {number}: the cluster has {count}, counted from 0")]
    NoSuch {
        /// What is counted.
        what: &'static str,
        /// As given.
        number: u32,
        /// How many there are.
        count: u32,
    },
    /// A dead NIC whose neighbours are dead too.
    #[error("GPU {gpu} has no way out: every NIC that it reaches over its domain is dead")]
    NoWayOut {
        /// Which GPU.
        gpu: u32,
    },
    /// A link that is dead and has no other way.
    #[error("{what} cannot be down altogether: nothing else carries their traffic")]
    NoOtherWay {
        /// Which links.
        what: &'static str,
    },
    /// A fraction outside of its range.
    #[error("a degraded link works at more than 0 and at most 1 of its rate, not at {fraction}")]
    Fraction {
        /// As given.
        fraction: f64,
    },
    /// A rhythm that is none, or too quick to follow.
    #[error(
        "a link that flaps every {every} for {down}: it must be up in between, and flap no more often than once per millisecond"
    )]
    Rhythm {
        /// Period.
        every: SimDuration,
        /// Time down.
        down: SimDuration,
    },
    /// The cluster itself.
    #[error(transparent)]
    Topology(#[from] TopologyError),
}

/// Which ports a flapping link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlappingPorts {
    /// The NICs of these GPUs.
    Nics(Vec<u32>),
    /// The scale-up links of this GPU.
    ScaleUp(u32),
    /// The uplinks of this leaf.
    LeafUplinks(u32),
}

/// One link that flaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flap {
    /// Which ports.
    pub ports: FlappingPorts,
    /// When.
    pub rhythm: Flapping,
}

/// What faults leave of every GPU's ports. Only GPUs and leaves that are not whole are listed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Health {
    /// Fraction of its share of the NICs that a GPU has.
    pub nic: BTreeMap<u32, f64>,
    /// Fraction of its scale-up bandwidth that a GPU has.
    pub scale_up: BTreeMap<u32, f64>,
    /// Fraction of its uplinks that a leaf has.
    pub leaf: BTreeMap<u32, f64>,
    /// Links that are up and down.
    pub flaps: Vec<Flap>,
    /// GPUs whose own NICs are dead: a neighbour's carry what they send.
    pub dead: Vec<u32>,
}

impl Health {
    /// Works out what `faults` do to `cluster`.
    ///
    /// # Errors
    /// The number of the first impossible fault, and why it is.
    pub fn new(cluster: &Cluster, faults: &[LinkFault]) -> Result<Self, (usize, FaultError)> {
        if faults.is_empty() {
            return Ok(Self::default());
        }
        let layout = Layout::new(cluster).map_err(|error| (0, error.into()))?;
        let mut health = Self::default();
        let mut dead: BTreeMap<u32, usize> = BTreeMap::new();
        for (index, fault) in faults.iter().enumerate() {
            health
                .add(&layout, index, fault, &mut dead)
                .map_err(|error| (index, error))?;
        }
        health.relay(&layout, &dead)?;
        health.dead = dead.into_keys().collect();
        Ok(health)
    }

    fn add(
        &mut self,
        layout: &Layout,
        index: usize,
        fault: &LinkFault,
        dead: &mut BTreeMap<u32, usize>,
    ) -> Result<(), FaultError> {
        let ports = ports(layout, fault.link)?;
        match (fault.state, ports) {
            (LinkState::Degraded(fraction), ports) => {
                if !(fraction > 0.0 && fraction <= 1.0) {
                    return Err(FaultError::Fraction { fraction });
                }
                let scale =
                    |of: &mut BTreeMap<u32, f64>, key| *of.entry(key).or_insert(1.0) *= fraction;
                match ports {
                    FlappingPorts::Nics(gpus) => {
                        gpus.into_iter().for_each(|gpu| scale(&mut self.nic, gpu))
                    }
                    FlappingPorts::ScaleUp(gpu) => scale(&mut self.scale_up, gpu),
                    FlappingPorts::LeafUplinks(leaf) => scale(&mut self.leaf, leaf),
                }
            }
            (LinkState::Flapping(rhythm), ports) => {
                let Flapping { every, down } = rhythm;
                if down >= every
                    || every < SimDuration::from_micros(1000)
                    || down == SimDuration::ZERO
                {
                    return Err(FaultError::Rhythm { every, down });
                }
                self.flaps.push(Flap { ports, rhythm });
            }
            (LinkState::Down, FlappingPorts::Nics(gpus)) => {
                dead.extend(gpus.into_iter().map(|gpu| (gpu, index)));
            }
            (LinkState::Down, FlappingPorts::ScaleUp(_)) => {
                return Err(FaultError::NoOtherWay {
                    what: "scale-up links",
                });
            }
            (LinkState::Down, FlappingPorts::LeafUplinks(_)) => {
                return Err(FaultError::NoOtherWay {
                    what: "all uplinks of a leaf",
                });
            }
        }
        Ok(())
    }

    /// Gives every GPU whose NIC is dead a neighbour's, in turn; who shares a NIC has an equal part.
    fn relay(
        &mut self,
        layout: &Layout,
        dead: &BTreeMap<u32, usize>,
    ) -> Result<(), (usize, FaultError)> {
        let unit = layout.gpus_per_node.min(layout.domain);
        let mut tenants: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (&gpu, &index) in dead {
            let start = gpu / unit * unit;
            let alive: Vec<u32> = (start..(start + unit).min(layout.gpus))
                .filter(|other| !dead.contains_key(other))
                .collect();
            let Some(host) = alive.get((gpu - start) as usize % alive.len().max(1)) else {
                return Err((index, FaultError::NoWayOut { gpu }));
            };
            tenants.entry(*host).or_default().push(gpu);
        }
        for (host, guests) in tenants {
            let own = self.nic.get(&host).copied().unwrap_or(1.0);
            let part = own / (guests.len() + 1) as f64;
            for gpu in guests.into_iter().chain([host]) {
                self.nic.insert(gpu, part);
            }
        }
        Ok(())
    }

    /// Nothing is wrong.
    pub fn is_whole(&self) -> bool {
        *self == Self::default()
    }
}

fn ports(layout: &Layout, link: FaultyLink) -> Result<FlappingPorts, FaultError> {
    let within = |what, number: u32, count: u32| {
        if number < count {
            Ok(number)
        } else {
            Err(FaultError::NoSuch {
                what,
                number,
                count,
            })
        }
    };
    Ok(match link {
        FaultyLink::Nic(gpu) => {
            let port = layout.port(within("GPU", gpu, layout.gpus)?);
            let first = port * layout.gpus_per_port;
            let end = (first + layout.gpus_per_port).min(layout.gpus);
            FlappingPorts::Nics((first..end).collect())
        }
        FaultyLink::Rail(rail) => {
            let rails = (layout.rails * layout.planes).max(1);
            let count = if rails == 1 {
                layout.ports_per_node
            } else {
                rails
            };
            let rail = within("rail", rail, count)?;
            let on = |gpu: &u32| layout.rail(layout.port(*gpu)) == rail;
            FlappingPorts::Nics((0..layout.gpus).filter(on).collect())
        }
        FaultyLink::ScaleUp(gpu) => FlappingPorts::ScaleUp(within("GPU", gpu, layout.gpus)?),
        FaultyLink::LeafUplinks(leaf) => {
            FlappingPorts::LeafUplinks(within("leaf", leaf, layout.leaves_total())?)
        }
    })
}
