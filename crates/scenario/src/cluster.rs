//! Hardware without work: a cluster for the commands that look at networks alone.

use crate::catalogue::Catalogue;
use crate::check;
use crate::decode::{self, Subtree};
use crate::diagnostic::{Diagnostic, Source, Span};
use crate::document::PartText;
use crate::import;
use crate::resolve::{Files, Findings};
use crate::yaml::{self, Key, Node as Tree, Value};
use rackflow_topology::{Cluster, ClusterMap, Fabric, Node};
use serde::Deserialize;

/// What the command line says in place of the text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterChanges {
    /// Accelerators in all.
    pub gpus: Option<u32>,
    /// Name of a fabric of the catalogue.
    pub fabric: Option<String>,
    /// Catalogue name of the accelerator of a file that somebody else wrote, where the file leaves it open.
    pub accelerator: Option<String>,
    /// Rounds `gpus` up to whole nodes, where it counts ranks.
    pub whole_nodes: bool,
}

/// The hardware as typed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HardwareText {
    #[allow(dead_code, reason = "it is decoded from the tree")]
    #[serde(default)]
    node: Option<Subtree>,
    #[serde(default)]
    nodes: Option<Vec<PartText>>,
    #[serde(default)]
    gpus: Option<u32>,
    #[serde(default)]
    fabric: Option<Subtree>,
    #[allow(dead_code, reason = "it is replaced by what it names")]
    #[serde(default)]
    import: Option<String>,
    #[allow(dead_code, reason = "it is replaced by what it names")]
    #[serde(default)]
    accelerator: Option<String>,
}

/// Reads the cluster of a scenario, or of a text that holds a cluster alone (`node`, `gpus`,
/// `fabric`, perhaps under `cluster`). Where nothing says how many GPUs, it is one node; where
/// nothing names a fabric, it is rail-optimised, with as many tiers as its size asks for. `files`
/// reads a cluster that the text imports; a text may also be such a cluster itself: a topology that
/// NCCL dumped, or an InfraGraph.
///
/// # Errors
/// With everything that keeps the cluster from being built.
pub fn parse_cluster(
    source_name: &str,
    text: &str,
    changes: &ClusterChanges,
    files: &Files<'_>,
) -> Result<Cluster, Vec<Diagnostic>> {
    let source = Source {
        name: source_name.into(),
        text: text.into(),
    };
    if import::is_foreign(text, None) {
        return foreign(&source, changes);
    }
    let tree = yaml::parse(&source).map_err(|error| vec![*error])?;
    if import::is_foreign(text, Some(&tree)) {
        return foreign(&source, changes);
    }
    if ["cluster", "node", "import"]
        .iter()
        .all(|key| tree.get(key).is_none())
    {
        let found = Diagnostic::error(&source, tree.place(""), "there is no `cluster` in it");
        return Err(vec![found.hint(
            "write `cluster: { node: hgx-h100, gpus: 64, fabric: rail-optimized }`, or name a node of the catalogue",
        )]);
    }
    let mut tree = under_cluster(tree, changes);
    if let Some(imported) = import::imported(&source, &tree, files)? {
        tree = imported;
    }
    of_tree(&source, &tree, changes)
}

/// The cluster that is under the key `cluster`.
fn of_tree(
    source: &Source,
    tree: &Tree,
    changes: &ClusterChanges,
) -> Result<Cluster, Vec<Diagnostic>> {
    let mut findings = Findings::new(source, tree);
    read(&mut findings, tree, changes).ok_or_else(|| findings.into_found())
}

/// A file that somebody else wrote, with the changes.
fn foreign(source: &Source, changes: &ClusterChanges) -> Result<Cluster, Vec<Diagnostic>> {
    let span = Span::default();
    let empty = Tree {
        span,
        value: Value::Mapping(Vec::new()),
    };
    let tree = import::of_file(source, &under_cluster(empty, changes), span)?;
    of_tree(source, &tree, changes)
}

/// The same for nodes of the catalogue.
///
/// # Errors
/// As [`parse_cluster`]; the text that messages show is `node: ...` with the changes.
pub fn catalogue_cluster(node: &str, changes: &ClusterChanges) -> Result<Cluster, Vec<Diagnostic>> {
    let mut text = format!("node: {node}\n");
    if let Some(gpus) = changes.gpus {
        text.push_str(&format!("gpus: {gpus}\n"));
    }
    if let Some(fabric) = &changes.fabric {
        text.push_str(&format!("fabric: {fabric}\n"));
    }
    let whole_nodes = changes.whole_nodes;
    let changes = ClusterChanges {
        whole_nodes,
        ..ClusterChanges::default()
    };
    parse_cluster("(command line)", &text, &changes, &|path| {
        Err(std::io::Error::other(format!(
            "{path} is not beside a node of the catalogue"
        )))
    })
}

/// Fabrics that a cluster gets when nobody names one: the smallest that holds its NICs.
const DEFAULT_FABRICS: [&str; 3] = [
    "rail-optimized",
    "rail-optimized-three-tier",
    "rail-optimized-xdr",
];

fn roomy_fabric(node: &Node, gpus: u32) -> Option<Fabric> {
    let holds = |fabric: &&Fabric| {
        let cluster = Cluster {
            node: node.clone(),
            parts: Vec::new(),
            gpus,
            fabric: (*fabric).clone(),
        };
        ClusterMap::new(&cluster).is_ok()
    };
    DEFAULT_FABRICS
        .iter()
        .filter_map(|name| Catalogue::builtin().fabric(name))
        .find(holds)
        .cloned()
}

/// The tree under the key `cluster`, where it is in a scenario, with the changes.
fn under_cluster(tree: Tree, changes: &ClusterChanges) -> Tree {
    let span = tree.place("cluster");
    let mut cluster = tree.get("cluster").cloned().unwrap_or(tree);
    // Ranks of a cluster whose nodes are listed are some of its GPUs.
    let counted = !(changes.whole_nodes && cluster.get("nodes").is_some());
    let gpus = changes
        .gpus
        .filter(|_| counted)
        .map(|gpus| gpus.to_string());
    // Only what is imported leaves its accelerator open.
    let open = cluster.get("node").is_none() && cluster.get("nodes").is_none();
    let accelerator = changes.accelerator.clone().filter(|_| open);
    for (name, text) in [
        ("gpus", gpus),
        ("fabric", changes.fabric.clone()),
        ("accelerator", accelerator),
    ] {
        let Some(text) = text else { continue };
        cluster = cluster.without(name);
        if let Value::Mapping(entries) = &mut cluster.value {
            let value = Value::Scalar {
                text,
                quoted: false,
            };
            entries.push((key(name, span), Tree { span, value }));
        }
    }
    Tree {
        span: cluster.span,
        value: Value::Mapping(vec![(key("cluster", span), cluster)]),
    }
}

fn key(text: &str, span: Span) -> Key {
    Key {
        text: text.into(),
        span,
    }
}

fn read(findings: &mut Findings<'_>, tree: &Tree, changes: &ClusterChanges) -> Option<Cluster> {
    let text = tree.at("cluster")?;
    let place = tree.place("cluster");
    let hardware: HardwareText = match decode::decode(text, "cluster", place) {
        Ok(hardware) => hardware,
        Err(error) => {
            findings.refuse(error);
            return None;
        }
    };
    if let Some(nodes) = &hardware.nodes {
        return several(findings, nodes, hardware.fabric.is_some());
    }
    if hardware.node.is_none() {
        let found = findings.at("cluster", "there is no `node` in it");
        findings.report(found.hint("write `node: hgx-h100`, or `nodes` of several kinds"));
        return None;
    }
    let node = findings.node()?;
    let mut gpus = hardware.gpus.unwrap_or(node.gpus);
    if changes.whole_nodes {
        gpus = gpus.div_ceil(node.gpus.max(1)).saturating_mul(node.gpus);
    }
    let fabric = match findings.fabric(hardware.fabric.is_some())? {
        Some(fabric) => fabric,
        // A cluster that cannot be built on any is told why on the first.
        None => roomy_fabric(&node, gpus)
            .or_else(|| Catalogue::builtin().fabric("rail-optimized").cloned())?,
    };
    let cluster = Cluster {
        node,
        gpus,
        fabric,
        parts: Vec::new(),
    };
    check::cluster(&cluster, findings);
    findings.is_clean().then_some(cluster)
}

/// Nodes of several kinds.
fn several(findings: &mut Findings<'_>, nodes: &[PartText], fabric: bool) -> Option<Cluster> {
    let parts = findings.parts(Some(nodes), 0)?;
    let fabric = match findings.fabric(fabric)? {
        Some(fabric) => fabric,
        None => {
            let gpus = parts
                .iter()
                .fold(0, |sum: u32, part| sum.saturating_add(part.gpus));
            roomy_fabric(&parts[0].node, gpus)
                .or_else(|| Catalogue::builtin().fabric("rail-optimized").cloned())?
        }
    };
    let cluster = Cluster::of_parts(parts, fabric);
    check::cluster(&cluster, findings);
    findings.is_clean().then_some(cluster)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_files(_: &str) -> std::io::Result<String> {
        Err(std::io::ErrorKind::NotFound.into())
    }

    fn of(gpus: u32) -> ClusterChanges {
        ClusterChanges {
            gpus: Some(gpus),
            whole_nodes: true,
            ..ClusterChanges::default()
        }
    }

    #[test]
    fn a_name_gets_a_fabric_that_holds_it() {
        for (name, gpus) in [
            ("hgx-h100", 8),
            ("hgx-h100", 16_384),
            ("gb200-nvl72", 576),
            ("gb200-nvl72", 100_000),
        ] {
            let cluster = catalogue_cluster(name, &of(gpus)).expect("it can be wired");
            assert!(cluster.gpus >= gpus && cluster.gpus < gpus + cluster.node.gpus);
        }
        let unknown = catalogue_cluster("gb200-nv72", &ClusterChanges::default()).unwrap_err();
        assert_eq!(unknown[0].label, "did you mean `gb200-nvl72`?");
        assert!(catalogue_cluster("hgx-h100", &of(u32::MAX)).is_err());
        let wrong = catalogue_cluster("hgx-h100", &of(1_000_000)).unwrap_err();
        assert!(wrong[0].to_string().contains("too small"), "{}", wrong[0]);
    }

    #[test]
    fn a_text_may_have_no_work() {
        let none = ClusterChanges::default();
        for text in [
            "cluster:\n  node: hgx-h100\n  gpus: 64\n  fabric: ib-two-tier\n",
            "node: hgx-h100\ngpus: 64\n",
        ] {
            let cluster = parse_cluster("my.yaml", text, &none, &no_files).expect("it is sound");
            assert_eq!((cluster.gpus, cluster.node.gpus), (64, 8));
        }
        let wrong = parse_cluster(
            "my.yaml",
            "cluster:\n  node: hgx-h10\n  gpus: 64\n",
            &none,
            &no_files,
        )
        .unwrap_err();
        assert!(wrong[0].to_string().contains("my.yaml:2:9"), "{}", wrong[0]);
        let missing = parse_cluster("my.yaml", "workload: 1\n", &none, &no_files).unwrap_err();
        assert!(
            missing[0].to_string().contains("no `cluster`"),
            "{}",
            missing[0]
        );
    }
}
