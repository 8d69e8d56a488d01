//! Clusters that somebody else described.

use proptest::prelude::*;
use rackflow_scenario::{ClusterChanges, Diagnostic, catalogue_cluster, parse, parse_cluster};
use rackflow_topology::{Cluster, ClusterMap, Fabric};
use std::io;

const NCCL: &str = include_str!("../../../../examples/imports/hgx-h100.xml");
const RAILS: &str = include_str!("../../../../examples/imports/rails.yaml");
const FAT_TREE: &str = include_str!("../../../../examples/imports/fat-tree.json");
const CLOUD: &str = include_str!("../../../../examples/imports/cloud-a100.xml");

fn files(path: &str) -> io::Result<String> {
    match path {
        "hgx-h100.xml" => Ok(NCCL.to_owned()),
        "rails.yaml" => Ok(RAILS.to_owned()),
        "fat-tree.json" => Ok(FAT_TREE.to_owned()),
        "cloud-a100.xml" => Ok(CLOUD.to_owned()),
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
fn interfaces_of_slingshot_count_in_kilobits() {
    let slingshot = NCCL.replace("speed=\"400000\"", "speed=\"200000000\"");
    let node = read(&slingshot).expect("it is sound").node;
    assert_eq!(node.nic.rate.bytes_per_sec(), 25_000_000_000);
}

#[test]
fn the_command_line_says_which_accelerator() {
    let changes = ClusterChanges {
        accelerator: Some("h200-sxm".to_owned()),
        ..ClusterChanges::default()
    };
    let cluster = parse_cluster("file", NCCL, &changes, &files).expect("it is sound");
    assert_eq!(cluster.node.accelerator.name, "h200-sxm");
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

/// What clouds write by hand for NCCL: GPUs and interfaces are PCI devices of their class, and no
/// more is said of them.
#[test]
fn a_file_of_a_cloud_needs_its_accelerator() {
    let open = refused(CLOUD);
    assert!(
        open.contains("no `device`") && open.contains("cluster: { import: file, accelerator:"),
        "{open}"
    );
    let named = "cluster: { import: cloud-a100.xml, accelerator: a100-80 }";
    let node = read(named).expect("it is sound").node;
    let like = catalogue_cluster("dgx-a100", &ClusterChanges::default()).expect("it is sound");
    assert_eq!((node.gpus, node.nic.count), (8, 8));
    assert_eq!(
        (node.scale_up.bandwidth, node.nic.rate),
        (like.node.scale_up.bandwidth, like.node.nic.rate)
    );
    let none = refused(&CLOUD.replace("0x030200", "0x010802"));
    assert!(none.contains("no `pci` of the class"), "{none}");
}

fn dump(gpus: &str, nets: &str) -> String {
    format!("<system version=\"1\"><cpu numaid=\"0\">{gpus}{nets}</cpu></system>")
}

fn gpu(bus: u32, links: &str) -> String {
    format!(
        "<pci busid=\"0000:{bus:02x}:00.0\" class=\"0x030200\" vendor=\"0x10de\" device=\"0x20b2\">\
         <gpu dev=\"{bus}\" sm=\"80\" rank=\"{bus}\" gdr=\"1\">{links}</gpu></pci>"
    )
}

fn net(name: &str, speed: u32) -> String {
    format!("<nic><net name=\"{name}\" dev=\"0\" speed=\"{speed}\" port=\"1\"/></nic>")
}

/// Bridges of NVLink between pairs are domains of two, four GPUs each to each a mesh, and what is
/// neither is refused.
#[test]
fn links_without_switches_are_meshes() {
    let link = |to: u32, count: u32| {
        format!("<nvlink target=\"0000:{to:02x}:00.0\" count=\"{count}\" tclass=\"0x030200\"/>")
    };
    let pairs: String = (0..4).map(|bus| gpu(bus, &link(bus ^ 1, 12))).collect();
    let node = read(&dump(&pairs, &net("eth0", 100_000)))
        .expect("it is sound")
        .node;
    assert_eq!((node.gpus, node.scale_up.domain), (4, 2));
    assert_eq!(node.scale_up.bandwidth.as_f64(), 300e9);
    assert!(!node.scale_up.in_switch_reduction);
    let others = |bus: u32| -> String {
        (0..4)
            .filter(|to| *to != bus)
            .map(|to| link(to, 4))
            .collect()
    };
    let mesh: String = (0..4).map(|bus| gpu(bus, &others(bus))).collect();
    let node = read(&dump(&mesh, &net("eth0", 100_000)))
        .expect("it is sound")
        .node;
    assert_eq!(node.scale_up.domain, 4);
    assert_eq!(node.scale_up.wiring, rackflow_topology::Wiring::Mesh);
    let ring: String = (0..4)
        .map(|bus: u32| gpu(bus, &(link((bus + 1) % 4, 6) + &link((bus + 3) % 4, 6))))
        .collect();
    let odd = refused(&dump(&ring, &net("eth0", 100_000)));
    assert!(odd.contains("nor each to each"), "{odd}");
}

/// Storage interfaces as fast as those of the GPUs hang on no GPU's switch; slower ones and the same
/// name on another host are told apart.
#[test]
fn interfaces_of_a_node() {
    let switch = "<nvlink target=\"0000:c4:00.0\" count=\"12\" tclass=\"0x068000\"/>";
    let beside: String = (0..4)
        .map(|bus| {
            let net = net(&format!("mlx5_{bus}"), 200_000);
            format!(
                "<pci busid=\"0000:f{bus}:00.0\" class=\"0x060400\">{}<pci busid=\"0000:e{bus}:00.0\" class=\"0x020700\">{net}</pci></pci>",
                gpu(bus, switch)
            )
        })
        .collect();
    let count = |nets: &str| {
        let node = read(&dump(&beside, nets)).expect("it is sound").node;
        (node.nic.count, node.nic.rate.as_f64())
    };
    assert_eq!(count(""), (4, 25e9));
    let storage = net("mlx5_8", 200_000) + &net("mlx5_9", 200_000) + &net("eth0", 25_000);
    assert_eq!(count(&storage), (4, 25e9));
    let hosts: String = ["a", "b"]
        .map(|host| {
            let gpus: String = (0..2)
                .map(|gpu_of| gpu(gpu_of + if host == "a" { 0 } else { 2 }, switch))
                .collect();
            let nets = net("mlx5_0", 400_000) + &net("mlx5_1", 400_000);
            format!("<cpu host_hash=\"0x{host}\" numaid=\"0\">{gpus}{nets}</cpu>")
        })
        .concat();
    let two = read(&format!("<system version=\"1\">{hosts}</system>")).expect("it is sound");
    assert_eq!((two.node.gpus, two.node.nic.count), (4, 4));
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

/// Cards that are devices of their own, with a transceiver in each, are interfaces; an `npu` computes.
#[test]
fn cards_and_npus_of_an_infragraph_count() {
    let graph = "devices:\n\
        - name: server\n  components:\n\
        \x20 - { choice: npu, count: 8, description: NVIDIA H100 SXM5, name: npu }\n\
        \x20 - { choice: switch, count: 4, name: nvsw }\n\
        \x20 - { choice: device, count: 4, name: card }\n\
        \x20 edges:\n\
        \x20 - { ep1: { component: nvsw }, ep2: { component: npu }, link: nvlink, scheme: many2many }\n\
        \x20 links: [{ name: nvlink }]\n\
        - name: card\n  components:\n\
        \x20 - { choice: port, count: 1, name: port }\n\
        \x20 - { choice: device, count: 1, name: plug }\n\
        - name: plug\n  components:\n\
        \x20 - { choice: port, count: 2, name: lane }\n\
        instances:\n- { name: server, count: 1, device: server }\nname: alone\n";
    let cluster = read(graph).expect("it is sound");
    assert_eq!((cluster.gpus, cluster.node.nic.count), (8, 4));
}

#[test]
fn what_is_no_topology_of_nccl_says_so() {
    let hwloc = "<?xml version=\"1.0\"?>\n<!DOCTYPE topology SYSTEM \"hwloc2.dtd\">\n<topology/>\n";
    let found = refused(hwloc);
    assert!(
        found.contains("hwloc") && found.contains("NCCL_TOPO_DUMP_FILE"),
        "{found}"
    );
    let bare = refused(CLOUD);
    assert!(bare.contains("nothing says which GPU this is"), "{bare}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 2, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_break_it(
        which in 0_usize..4,
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..4, any::<u8>()), 1..6),
    ) {
        let mut bytes = [NCCL, RAILS, FAT_TREE, CLOUD][which].as_bytes().to_vec();
        for (at, kind, byte) in changes {
            if bytes.is_empty() {
                break;
            }
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
