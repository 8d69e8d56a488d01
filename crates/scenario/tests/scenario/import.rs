//! Clusters that somebody else described.

use proptest::prelude::*;
use rackflow_scenario::{ClusterChanges, Diagnostic, catalogue_cluster, parse, parse_cluster};
use rackflow_topology::{Cluster, ClusterMap, Fabric};
use std::io;

const NCCL: &str = include_str!("../import/hgx-h100.xml");
const RAILS: &str = include_str!("../import/rails.yaml");
const FAT_TREE: &str = include_str!("../import/fat-tree.json");

fn files(path: &str) -> io::Result<String> {
    match path {
        "hgx-h100.xml" => Ok(NCCL.to_owned()),
        "rails.yaml" => Ok(RAILS.to_owned()),
        "fat-tree.json" => Ok(FAT_TREE.to_owned()),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

fn read(text: &str) -> Result<Cluster, Vec<Diagnostic>> {
    parse_cluster("file", text, &ClusterChanges::default(), &files)
}

fn refused(text: &str) -> String {
    let found = read(text).expect_err("it is refused");
    found[0].to_string()
}

/// What nobody but the file says; the rest is the catalogue's.
fn assert_is_dgx_h100(cluster: &Cluster) {
    let catalogue = catalogue_cluster("dgx-h100", &ClusterChanges::default());
    let mut expected = catalogue.expect("it is in the catalogue").node;
    let mut node = cluster.node.clone();
    assert!(node.name.ends_with("(like dgx-h100)"), "{}", node.name);
    node.name.clone_from(&expected.name);
    node.sources.clear();
    expected.sources.clear();
    assert_eq!(node, expected);
}

#[test]
fn a_dump_of_nccl_is_the_node_it_was_made_on() {
    let cluster = read(NCCL).expect("it is sound");
    assert_is_dgx_h100(&cluster);
    assert_eq!(cluster.gpus, 8);
    let many = "cluster: { import: hgx-h100.xml, gpus: 64, fabric: ib-two-tier }";
    let many = read(many).expect("it is sound");
    assert_is_dgx_h100(&many);
    assert_eq!((many.gpus, many.fabric.kind()), (64, "fat_tree"));
}

#[test]
fn numbers_are_those_of_the_file() {
    let half = NCCL
        .replace("count=\"18\"", "count=\"9\"")
        .replace("400000", "200000");
    let node = read(&half).expect("it is sound").node;
    assert_eq!(node.scale_up.bandwidth.as_f64(), 225e9);
    assert_eq!(node.nic.rate.as_f64(), 25e9);
    let h200 = "cluster: { import: hgx-h100.xml, accelerator: h200-sxm }";
    assert_eq!(
        read(h200).expect("it is sound").node.accelerator.name,
        "h200-sxm"
    );
}

#[test]
fn an_infragraph_gives_its_fabric() {
    let rails = read(RAILS).expect("it is sound");
    assert_is_dgx_h100(&rails);
    assert_eq!(rails.gpus, 32);
    let Fabric::RailOptimized(fabric) = &rails.fabric else {
        panic!("{:?}", rails.fabric)
    };
    assert_eq!((fabric.tiers, fabric.radix, fabric.rails), (2, 8, Some(8)));
    assert_eq!(fabric.leaf_oversubscription, 1.0);
    assert!(ClusterMap::new(&rails).is_ok());

    let tree = read(FAT_TREE).expect("it is sound");
    assert_is_dgx_h100(&tree);
    let Fabric::FatTree(fabric) = &tree.fabric else {
        panic!("{:?}", tree.fabric)
    };
    assert_eq!(
        (fabric.tiers, fabric.radix, fabric.nics_per_leaf),
        (2, 12, Some(8))
    );
    assert_eq!(fabric.leaf_oversubscription, 2.0);
}

#[test]
fn rails_without_spines_are_rail_only() {
    let spines = RAILS
        .find("- { scheme: one2one, link: up")
        .expect("there are uplinks");
    let alone = RAILS[..spines].replace("- { name: spine, device: switch, count: 4 }\n", "");
    let cluster = read(&alone).expect("it is sound");
    assert_eq!(cluster.fabric.kind(), "rail_only");
}

#[test]
fn a_scenario_of_an_import_is_the_one_written_out() {
    let work = "workload: { training: { model: llama3-8b, stack: megatron-core-25.04, precision: bf16, \
                sequence_length: 8192, global_batch: 128, parallelism: { tensor: 2 } } }\n";
    let setup = |cluster: &str| {
        let scenario = parse("s.yaml", &format!("cluster: {cluster}\n{work}"))?;
        scenario.resolve(&files)
    };
    let written = setup("{ node: dgx-h100, gpus: 32, fabric: ib-two-tier }").expect("it is sound");
    let setup_of = |cluster: &str| setup(cluster).expect("it is sound");
    let imported = setup_of("{ import: hgx-h100.xml, gpus: 32, fabric: ib-two-tier }");
    assert_is_dgx_h100(&imported.cluster);
    assert_eq!(imported.training, written.training);
    assert_eq!(imported.cluster.fabric, written.cluster.fabric);
    assert_eq!(setup_of("{ import: rails.yaml }").cluster.gpus, 32);
    assert_eq!(
        setup_of("{ import: rails.yaml, gpus: 16 }").cluster.gpus,
        16
    );

    for (cluster, message) in [
        ("{ import: none.xml }", "cannot read none.xml"),
        ("{ import: hgx-h100.xml, gpus: 32 }", "`fabric` is missing"),
        (
            "{ import: hgx-h100.xml, node: dgx-h100, gpus: 8 }",
            "so does `node`",
        ),
        ("{ import: hgx-h100.xml, accelerator: h10 }", "h10"),
        (
            "{ node: dgx-h100, gpus: 8, accelerator: h100-sxm }",
            "none is imported",
        ),
    ] {
        let found = setup(cluster).expect_err("it is refused");
        let text = found[0].to_string();
        assert!(
            text.contains(message) && text.contains("s.yaml:1:"),
            "{text}"
        );
    }
}

#[test]
fn refusals_point_into_the_file() {
    let unknown = refused(&NCCL.replace("0x2330", "0x9999"));
    assert!(
        unknown.contains("0x9999") && unknown.contains("accelerator: h100-sxm"),
        "{unknown}"
    );
    assert!(unknown.contains("file:5:9"), "{unknown}");
    let speed = refused(&NCCL.replace("speed=\"400000\"", "speed=\"fast\""));
    assert!(speed.contains("\"fast\""), "{speed}");
    let cut = refused(&NCCL[..NCCL.len() / 2]);
    assert!(cut.contains("this is not XML"), "{cut}");
    assert!(refused("<a/>").contains("begins with `a`"));
    let both = refused(&RAILS.replace("H100 SXM5", "H100 / H200 SXM5"));
    assert!(both.contains("more than one accelerator"), "{both}");
    let link = refused(&RAILS.replace(
        "link: up, ep1: { instance: 'leaf[3]'",
        "link: pu, ep1: { instance: 'leaf[3]'",
    ));
    assert!(
        link.contains("no `pu`") && link.contains("it has: down, up"),
        "{link}"
    );
    let slice = refused(&RAILS.replace(
        "'leaf[7]', component: 'port[7]'",
        "'leaf[8]', component: 'port[7]'",
    ));
    assert!(slice.contains("`leaf[8]` names none of the 8"), "{slice}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_break_it(
        which in 0_usize..3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..4, any::<u8>()), 1..6),
    ) {
        let mut bytes = [NCCL, RAILS, FAT_TREE][which].as_bytes().to_vec();
        for (at, kind, byte) in changes {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => { bytes.remove(at); }
                2 => bytes.insert(at, b"0123456789-[]:{}<>"[usize::from(byte) % 18]),
                _ => bytes.truncate(at + 1),
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        if let Err(found) = read(&text) {
            prop_assert!(!found.is_empty());
            for diagnostic in found {
                prop_assert!(diagnostic.to_string().starts_with("error: "));
            }
        }
    }
}
