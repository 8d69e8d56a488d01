//! A cluster without work: what commands that look at the network alone ask for.

use crate::catalogue::{Catalogue, Section, nearest};
use crate::check;
use crate::decode;
use crate::diagnostic::{Diagnostic, Source};
use crate::document::ClusterText;
use crate::resolve::Findings;
use crate::yaml;
use rackflow_topology::{Cluster, ClusterMap, Fabric, Node};

/// Fabrics that a cluster gets when nobody names one: the smallest that holds its NICs.
const DEFAULT_FABRICS: [&str; 3] = [
    "rail-optimized",
    "rail-optimized-three-tier",
    "rail-optimized-xdr",
];

/// Why there is no such cluster.
#[derive(Debug, Clone, PartialEq)]
pub enum ClusterError {
    /// No node of the catalogue has this name. The nearest one, if any is near.
    Unknown(Option<String>),
    /// The node is known, and so many GPUs of it cannot be wired together.
    TooLarge(String),
}

/// A cluster of catalogue nodes on a fabric that fits: rail-optimised, with as many tiers as its
/// size asks for. `gpus` is rounded up to whole nodes; one node where it is left out.
///
/// # Errors
/// When no node has this name, or no default fabric holds that many GPUs.
pub fn named_cluster(name: &str, gpus: Option<u32>) -> Result<Cluster, ClusterError> {
    let catalogue = Catalogue::builtin();
    let Some(node) = catalogue.node(name) else {
        let near = nearest(Section::Nodes, name);
        return Err(ClusterError::Unknown(
            near.first().map(|name| (*name).to_owned()),
        ));
    };
    let wanted = gpus.unwrap_or(node.gpus);
    let gpus = wanted.div_ceil(node.gpus).saturating_mul(node.gpus);
    on_default_fabric(node, gpus).ok_or_else(|| {
        ClusterError::TooLarge(format!("{wanted} GPUs of {name} fit no default fabric"))
    })
}

fn on_default_fabric(node: Node, gpus: u32) -> Option<Cluster> {
    let fabrics = DEFAULT_FABRICS
        .iter()
        .filter_map(|name| Catalogue::builtin().fabric(name));
    let mut clusters = fabrics.map(|fabric: &Fabric| Cluster {
        node: node.clone(),
        gpus,
        fabric: fabric.clone(),
    });
    clusters.find(|cluster| ClusterMap::new(cluster).is_ok())
}

/// The cluster of a text: a scenario, or a text that has only its `cluster:` part. `gpus` replaces
/// the number that is written; it is rounded up to whole nodes.
///
/// # Errors
/// With everything that is wrong with the cluster.
pub fn parse_cluster(
    source_name: &str,
    text: &str,
    gpus: Option<u32>,
) -> Result<Cluster, Vec<Diagnostic>> {
    let source = Source {
        name: source_name.into(),
        text: text.into(),
    };
    let tree = yaml::parse(&source).map_err(|error| vec![*error])?;
    let mut findings = Findings::new(&source, &tree);
    let Some(written) = tree.at("cluster") else {
        let found = findings.at("", "there is no `cluster` in it");
        return Err(vec![found.hint(
            "write `cluster: { node: hgx-h100, gpus: 64, fabric: rail-optimized }`, or name a node of the catalogue",
        )]);
    };
    let text: ClusterText = decode::decode(written, "cluster", tree.place("cluster"))
        .map_err(|error| vec![error.in_source(&source)])?;
    let node = findings.node();
    let fabric = findings.fabric(text.fabric.is_some());
    let (Some(node), Some(fabric)) = (node, fabric) else {
        return Err(findings.into_found());
    };
    let gpus = gpus.map_or(text.gpus, |gpus| {
        gpus.div_ceil(node.gpus.max(1)).saturating_mul(node.gpus)
    });
    let cluster = match fabric {
        Some(fabric) => Cluster { node, gpus, fabric },
        None => {
            let name = node.name.clone();
            match on_default_fabric(node, gpus) {
                Some(cluster) => cluster,
                None => {
                    let found = findings.at(
                        "cluster",
                        format!(
                            "`fabric` is missing, and {gpus} GPUs of {name} fit no default one"
                        ),
                    );
                    return Err(vec![found]);
                }
            }
        }
    };
    check::cluster(&cluster, &mut findings);
    let found = findings.into_found();
    if found.is_empty() {
        Ok(cluster)
    } else {
        Err(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_gets_a_fabric_that_holds_it() {
        for (name, gpus) in [
            ("hgx-h100", 8),
            ("hgx-h100", 16_384),
            ("gb200-nvl72", 576),
            ("gb200-nvl72", 100_000),
        ] {
            let cluster = named_cluster(name, Some(gpus)).expect("it can be wired");
            assert!(cluster.gpus >= gpus && cluster.gpus < gpus + cluster.node.gpus);
        }
        assert_eq!(
            named_cluster("gb200-nv72", None),
            Err(ClusterError::Unknown(Some("gb200-nvl72".into())))
        );
        assert!(matches!(
            named_cluster("hgx-h100", Some(u32::MAX)),
            Err(ClusterError::TooLarge(_))
        ));
    }

    #[test]
    fn a_text_may_have_no_work() {
        let text = "cluster:\n  node: hgx-h100\n  gpus: 64\n  fabric: ib-two-tier\n";
        let cluster = parse_cluster("my.yaml", text, None).expect("it is sound");
        assert_eq!((cluster.gpus, cluster.node.gpus), (64, 8));
        let wrong =
            parse_cluster("my.yaml", "cluster:\n  node: hgx-h10\n  gpus: 64\n", None).unwrap_err();
        assert!(wrong[0].to_string().contains("my.yaml:2:9"), "{}", wrong[0]);
        let none = parse_cluster("my.yaml", "workload: 1\n", None).unwrap_err();
        assert!(none[0].to_string().contains("no `cluster`"), "{}", none[0]);
    }
}
