//! Clusters that somebody else described: a topology that NCCL dumped, an InfraGraph.
//!
//! Both become the YAML of a cluster, as an author would have typed it, and then go the way of
//! every scenario. What a file measures of nothing (efficiencies, latencies, rack power) is that of
//! the catalogue's node with the same accelerator.

mod infragraph;
mod nccl;

use crate::catalogue::{Catalogue, Section};
use crate::decode::shorten;
use crate::diagnostic::{Diagnostic, Source, Span};
use crate::resolve::Files;
use crate::yaml::{self, Key, Node as Tree, Value};
use rackflow_topology::{Node, Wiring};
use std::fmt::Write as _;

/// What a file says of a cluster.
#[derive(Debug, Default)]
struct Described {
    /// Catalogue name of the accelerator.
    accelerator: String,
    /// Accelerators per node.
    gpus: u32,
    /// How many accelerators a link per pair joins to a domain, where no switch joins all.
    mesh_of: Option<u32>,
    /// Out of one accelerator into its domain, bytes/s one way, where the file says.
    scale_up: Option<f64>,
    /// Interfaces per node to the fabric.
    nics: u32,
    /// Rate of one, bytes/s one way, where the file says.
    nic_rate: Option<f64>,
    /// How many nodes, where the file says.
    nodes: Option<u32>,
    /// The fabric as it is written in a scenario, where the file says.
    fabric: Option<String>,
}

/// What the scenario says itself.
#[derive(Debug, Clone, Copy, Default)]
struct Beside<'a> {
    accelerator: Option<&'a str>,
    fabric: bool,
}

/// `cluster` of a document that imports it, with stand-ins for what only the file can tell, so that
/// the rest of the document can be decoded before the file is read.
pub(crate) fn with_stand_ins(tree: &Tree) -> Tree {
    let elsewhere = ["import", "nodes"];
    let found = elsewhere
        .iter()
        .find_map(|key| Some((key, tree.get("cluster")?.entry(key)?)));
    let (Some((key, _)), Some(cluster)) = (found, tree.get("cluster")) else {
        return tree.clone();
    };
    let span = tree.place(&format!("cluster.{key}"));
    let missing = [("node", "imported"), ("gpus", "1")]
        .into_iter()
        .filter(|(key, _)| cluster.get(key).is_none())
        .map(|(key, text)| entry(key, text, span));
    with_cluster(tree, with_entries(cluster.clone(), missing))
}

/// The document with the imported cluster in place, or `None` where it imports none.
pub(crate) fn imported(
    source: &Source,
    tree: &Tree,
    files: &Files<'_>,
) -> Result<Option<Tree>, Vec<Diagnostic>> {
    let wrong = |place: &str, message: String, hint: &str| {
        vec![Diagnostic::error(source, tree.place(place), message).hint(hint)]
    };
    let Some(cluster) = tree.get("cluster") else {
        return Ok(None);
    };
    let Some(import) = cluster.get("import") else {
        if cluster.get("accelerator").is_some() {
            return Err(wrong(
                "cluster.accelerator",
                "`accelerator` says what an imported file leaves open, and none is imported".into(),
                "write it under `node`: { like: hgx-h100, accelerator: h200-sxm }",
            ));
        }
        return Ok(None);
    };
    if cluster.get("node").is_some() || cluster.get("nodes").is_some() {
        return Err(wrong(
            "cluster.node",
            "`import` gives the node, and so does `node`".into(),
            "leave one of them out",
        ));
    }
    if let Some(named) = cluster.get("accelerator") {
        let name = named.text().unwrap_or_default();
        if Catalogue::builtin().accelerator(name).is_none() {
            let error = crate::decode::unknown_name(Section::Accelerators, name, named.span);
            return Err(vec![error.in_source(source)]);
        }
    }
    let Some(path) = import.text() else {
        return Err(wrong(
            "cluster.import",
            "`import` must be the path of a file".into(),
            "such as import: topology.xml",
        ));
    };
    let text = files(path).map_err(|error| {
        let message = format!("cannot read {}: {error}", shorten(path));
        wrong(
            "cluster.import",
            message,
            "the path is relative to the scenario",
        )
    })?;
    let file = Source {
        name: path.into(),
        text: text.into(),
    };
    of_file(&file, tree, import.span).map(Some)
}

/// Whether a text is such a file, and not a scenario.
pub(crate) fn is_foreign(text: &str, tree: Option<&Tree>) -> bool {
    let start = text.trim_start_matches('\u{feff}').trim_start();
    start.starts_with('<')
        || tree.is_some_and(|tree| tree.get("devices").is_some() && tree.get("instances").is_some())
}

/// `cluster` of `tree` completed by what the file says. All of it is placed at `span`.
pub(crate) fn of_file(file: &Source, tree: &Tree, span: Span) -> Result<Tree, Vec<Diagnostic>> {
    let empty = Tree {
        span,
        value: Value::Mapping(Vec::new()),
    };
    let cluster = tree.get("cluster").unwrap_or(&empty);
    let beside = Beside {
        accelerator: cluster.get("accelerator").and_then(Tree::text),
        fabric: cluster
            .get("fabric")
            .is_some_and(|fabric| !fabric.is_null()),
    };
    let described = if is_foreign(&file.text, None) {
        nccl::read(file, beside)
    } else {
        infragraph::read(file, beside)
    }
    .map_err(|found| vec![*found])?;
    let text = described.yaml(file).map_err(|found| vec![*found])?;
    let text = Source {
        name: file.name.clone(),
        text: text.into(),
    };
    let read = yaml::parse(&text).map_err(|found| vec![*found])?;
    let Value::Mapping(entries) = read.placed_at(span).value else {
        unreachable!("a cluster is written as a mapping")
    };
    let own = cluster.without("import").without("accelerator");
    let missing: Vec<_> = entries
        .into_iter()
        .filter(|(key, _)| own.get(&key.text).is_none())
        .collect();
    Ok(with_cluster(tree, with_entries(own, missing)))
}

fn entry(key: &str, text: &str, span: Span) -> (Key, Tree) {
    let value = Value::Scalar {
        text: text.into(),
        quoted: false,
    };
    let key = Key {
        text: key.into(),
        span,
    };
    (key, Tree { span, value })
}

fn with_entries(mut tree: Tree, more: impl IntoIterator<Item = (Key, Tree)>) -> Tree {
    if let Value::Mapping(entries) = &mut tree.value {
        entries.extend(more);
    }
    tree
}

/// The document with another cluster, in the place of the one it has.
fn with_cluster(tree: &Tree, cluster: Tree) -> Tree {
    let mut tree = tree.clone();
    if let Value::Mapping(entries) = &mut tree.value {
        match entries.iter_mut().find(|(key, _)| key.text == "cluster") {
            Some((_, old)) => *old = cluster,
            None => {
                let key = Key {
                    text: "cluster".into(),
                    span: cluster.span,
                };
                entries.push((key, cluster));
            }
        }
    }
    tree
}

/// The longest text that stands for a cluster's size.
const LARGEST: u32 = 10_000_000;

impl Described {
    /// As an author would have typed it.
    fn yaml(&self, file: &Source) -> Result<String, Box<Diagnostic>> {
        let whole = Span::default();
        let Some(like) = self.like() else {
            let message = format!(
                "no node of the catalogue has the accelerator {}, whose efficiencies it would take",
                self.accelerator
            );
            return Err(Box::new(Diagnostic::error(file, whole, message).hint(
                "write the node out: cluster: { node: { accelerator: ..., ... } }",
            )));
        };
        let nodes = self.nodes.unwrap_or(1);
        let gpus = u64::from(self.gpus) * u64::from(nodes);
        if gpus > u64::from(LARGEST) {
            let message =
                format!("{gpus} GPUs are more than the {LARGEST} that a cluster may have");
            return Err(Box::new(Diagnostic::error(file, whole, message)));
        }
        let name = file.name.rsplit(['/', '\\']).next().unwrap_or_default();
        let name = serde_json::Value::from(format!("{name} (like {})", like.name));
        let mut text = format!(
            "node:\n  like: {}\n  name: {name}\n  gpus: {}\n  scale_up: {{ domain: {}",
            like.name,
            self.gpus,
            self.mesh_of.unwrap_or(self.gpus)
        );
        if self.mesh_of.is_some() {
            text.push_str(", wiring: mesh, in_switch_reduction: false");
        }
        if let Some(bandwidth) = self.scale_up {
            let _ = write!(text, ", bandwidth: {} GB/s", bandwidth / 1e9);
        }
        let _ = write!(text, " }}\n  nic: {{ count: {}", self.nics);
        if let Some(rate) = self.nic_rate {
            let _ = write!(text, ", rate: {} Gbit/s", rate * 8.0 / 1e9);
        }
        text.push_str(" }\n");
        if like.accelerator.name != self.accelerator {
            let _ = writeln!(text, "  accelerator: {}", self.accelerator);
        }
        let _ = writeln!(text, "gpus: {gpus}");
        if let Some(fabric) = &self.fabric {
            let _ = writeln!(text, "fabric: {fabric}");
        }
        Ok(text)
    }

    /// The node of the catalogue that is most like it.
    fn like(&self) -> Option<Node> {
        let catalogue = Catalogue::builtin();
        let likeness = |node: &Node| {
            let rate = self
                .nic_rate
                .is_none_or(|rate| (node.nic.rate.as_f64() / rate - 1.0).abs() < 0.01);
            (node.gpus == self.gpus, rate, node.nic.count == self.nics)
        };
        let mut best: Option<Node> = None;
        for node in catalogue
            .names(Section::Nodes)
            .filter_map(|name| {
                let mut node = catalogue.node(name)?;
                name.clone_into(&mut node.name);
                Some(node)
            })
            .filter(|node| node.accelerator.name == self.accelerator)
            .filter(|node| !matches!(node.scale_up.wiring, Wiring::Torus(_)))
        {
            // The first of equals: the catalogue lists the plainest first.
            if best
                .as_ref()
                .is_none_or(|best| likeness(&node) > likeness(best))
            {
                best = Some(node);
            }
        }
        best
    }
}

/// Why a file does not say which accelerator it has, with the way out.
fn which_accelerator(
    file: &Source,
    span: Span,
    message: String,
    likely: &[&str],
) -> Box<Diagnostic> {
    let first = likely.first().unwrap_or(&"h100-sxm");
    let found = Diagnostic::error(file, span, message).hint(format!(
        "say which in a scenario: cluster: {{ import: {}, accelerator: {first} }}",
        file.name
    ));
    Box::new(if likely.len() > 1 {
        found.hint(format!("likely: {}", likely.join(", ")))
    } else {
        found.hint("`rackflow list accelerators` names those of the catalogue")
    })
}
