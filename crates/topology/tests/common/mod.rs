//! Clusters from the built-in catalogue, for tests of this crate and of the network.

use rackflow_topology::{Accelerator, Cluster, Fabric, Nic, Node, Rack, ScaleUp};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::LazyLock;

const ACCELERATORS: &str = include_str!("../../../scenario/catalogue/accelerators.yaml");
const NODES: &str = include_str!("../../../scenario/catalogue/nodes.yaml");
const FABRICS: &str = include_str!("../../../scenario/catalogue/fabrics.yaml");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeEntry {
    accelerator: String,
    gpus: u32,
    scale_up: ScaleUp,
    nic: Nic,
    rack: Rack,
    #[serde(default = "one")]
    host_slowdown: f64,
    #[serde(default)]
    gpus_per_host: Option<u32>,
    sources: BTreeMap<String, String>,
}

fn one() -> f64 {
    1.0
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FabricEntry {
    description: String,
    fabric: Fabric,
    sources: BTreeMap<String, String>,
}

static NODE_TABLE: LazyLock<BTreeMap<String, Node>> = LazyLock::new(read_nodes);
static FABRIC_TABLE: LazyLock<BTreeMap<String, Fabric>> = LazyLock::new(read_fabrics);

/// All nodes of the catalogue, by name.
pub fn nodes() -> &'static BTreeMap<String, Node> {
    &NODE_TABLE
}

/// All fabrics of the catalogue, by name.
pub fn fabrics() -> &'static BTreeMap<String, Fabric> {
    &FABRIC_TABLE
}

fn read_nodes() -> BTreeMap<String, Node> {
    let accelerators: BTreeMap<String, Accelerator> =
        serde_saphyr::from_str(ACCELERATORS).expect("accelerators.yaml parses");
    let entries: BTreeMap<String, NodeEntry> =
        serde_saphyr::from_str(NODES).expect("nodes.yaml parses");
    let node = |(name, entry): (String, NodeEntry)| {
        let accelerator = accelerators
            .get(&entry.accelerator)
            .unwrap_or_else(|| panic!("{name} names an unknown accelerator"))
            .clone();
        assert!(entry.sources.contains_key("*"), "{name} has sources");
        let node = Node {
            name: name.clone(),
            accelerator,
            gpus: entry.gpus,
            gpus_per_host: entry.gpus_per_host.unwrap_or(entry.gpus.min(8)),
            scale_up: entry.scale_up,
            nic: entry.nic,
            rack: entry.rack,
            host_slowdown: entry.host_slowdown,
            sources: entry.sources,
        };
        (name, node)
    };
    entries.into_iter().map(node).collect()
}

fn read_fabrics() -> BTreeMap<String, Fabric> {
    let entries: BTreeMap<String, FabricEntry> =
        serde_saphyr::from_str(FABRICS).expect("fabrics.yaml parses");
    let fabric = |(name, entry): (String, FabricEntry)| {
        assert!(entry.sources.contains_key("*"), "{name} has sources");
        assert!(!entry.description.is_empty(), "{name} is described");
        (name, entry.fabric)
    };
    entries.into_iter().map(fabric).collect()
}

/// `gpus` GPUs of a catalogue node on a catalogue fabric.
pub fn cluster(node: &str, gpus: u32, fabric: &str) -> Cluster {
    Cluster {
        parts: Vec::new(),
        node: nodes()[node].clone(),
        gpus,
        fabric: fabrics()[fabric].clone(),
    }
}
