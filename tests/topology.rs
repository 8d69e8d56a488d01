//! `topology` and `route`, as a user calls them.

mod common;

use common::{json, outcome, scratch};

#[test]
fn published_switch_counts_and_bisections() {
    // arXiv 2505.09343: eight planes, 16,384 end points, 768 switches.
    let mpft = json(&[
        "topology",
        "hgx-h800",
        "--gpus",
        "16384",
        "--fabric",
        "deepseek-mpft",
        "--format",
        "json",
    ]);
    let inventory = &mpft["inventory"];
    assert_eq!(
        inventory["leaves"].as_u64().unwrap() + inventory["spines"].as_u64().unwrap(),
        768
    );
    assert_eq!(mpft["planes"], 8);
    // Half of 16,384 NICs of 50 GB/s.
    assert_eq!(mpft["bisection_bytes_per_s"], 8192_u64 * 50_000_000_000);
    assert_eq!(mpft["transceivers"], 4 * 16_384);
    // Llama 3: 7:1 between pods of 3,072.
    let meta = json(&[
        "topology",
        "hgx-h100",
        "--gpus",
        "24576",
        "--fabric",
        "meta-roce-24k",
        "--format",
        "json",
    ]);
    let over = meta["tiers"][2]["oversubscription"].as_f64().unwrap();
    assert!((6.5..7.01).contains(&over), "{over}");
    // A TPU v5p pod: 8,960 chips of three links up, cut across the axis of 28.
    let pod = json(&["topology", "tpu-v5p-pod", "--format", "json"]);
    assert_eq!(pod["domain"]["cables"], 3 * 8960);
    assert_eq!(
        pod["domain"]["bisection_bytes_per_s"],
        2 * 16 * 20 * 90_000_000_000_u64
    );
}

#[test]
fn the_cluster_of_a_shipped_scenario_in_words_and_as_a_picture() {
    let (status, text, _) = outcome(&["topology", "deepseek-v3-2048-h800"]);
    assert_eq!(status, 0);
    assert!(
        text.starts_with("2,048 hgx-h800 GPUs on a multi-plane fat tree"),
        "{text}"
    );
    let (status, svg, _) = outcome(&["topology", "deepseek-v3-2048-h800", "--format", "svg"]);
    assert_eq!(status, 0);
    assert!(
        svg.starts_with("<svg") && svg.contains("plane 7"),
        "{}",
        &svg[..200]
    );
}

#[test]
fn clusters_of_every_size_are_drawn() {
    for gpus in ["8", "1024", "131072"] {
        let (status, svg, err) =
            outcome(&["topology", "dgx-h100", "--gpus", gpus, "--format", "svg"]);
        assert_eq!((status, err.as_str()), (0, ""), "{gpus}");
        // Repeats are counted, not drawn: a picture stays small.
        assert!(svg.len() < 400_000, "{gpus}: {}", svg.len());
    }
}

#[test]
fn a_cluster_file_and_its_folder() {
    let folder = scratch("cluster-file");
    let file = folder.join("mine.yaml");
    std::fs::write(
        &file,
        "node: dgx-h100\ngpus: 64\nfabric: { rail_only: { tiers: 1, radix: 64 } }\n",
    )
    .expect("a scratch file");
    let path = file.to_str().expect("a plain path");
    let out = folder.join("out");
    let (status, text, _) = outcome(&["topology", path, "-o", out.to_str().expect("a plain path")]);
    assert_eq!(status, 0);
    assert!(
        text.contains("8 planes that meet only inside a domain"),
        "{text}"
    );
    for name in [
        "topology.txt",
        "topology.json",
        "topology.svg",
        "topology.png",
    ] {
        assert!(out.join(name).exists(), "{name}");
    }
    std::fs::write(&file, "node: dgx-h100\ngpu: 64\n").expect("a scratch file");
    let (status, _, err) = outcome(&["topology", path]);
    assert_eq!(status, 2);
    assert!(
        err.contains("unknown key `gpu`") && err.contains("did you mean `gpus`?"),
        "{err}"
    );
}

#[test]
fn routes_hop_by_hop() {
    let spread = json(&[
        "route",
        "0",
        "1023",
        "--cluster",
        "dgx-h100",
        "--gpus",
        "1024",
        "--format",
        "json",
    ]);
    // 32 uplinks of a leaf, two cables from each of 16 spines down.
    assert_eq!(spread["paths"], 64);
    assert_eq!(spread["level"], "spine");
    assert_eq!(spread["latency_ns"], 3300.0);
    let names: Vec<&str> = spread["hops"]
        .as_array()
        .unwrap()
        .iter()
        .map(|hop| hop["from"].as_str().unwrap())
        .collect();
    assert_eq!(names.len(), 6);
    assert_eq!(spread["by_rail"][1]["to"], "GPU 7");
    let (status, text, _) = outcome(&[
        "route",
        "0",
        "1021",
        "--cluster",
        "dgx-h100",
        "--gpus",
        "1024",
        "--fabric",
        "roce-oversubscribed",
    ]);
    assert_eq!(status, 0);
    assert!(
        text.contains("a hash picks one per connection") && text.contains("0: spine"),
        "{text}"
    );
}

#[test]
fn what_cannot_be_is_said() {
    let (status, _, err) = outcome(&["route", "0", "8", "--cluster", "dgx-h100"]);
    assert_eq!(status, 2);
    assert!(
        err.contains("there is no GPU 8: the cluster has 8 GPUs"),
        "{err}"
    );
    let (status, _, err) = outcome(&["topology", "dgx-h10"]);
    assert_eq!(status, 2);
    assert!(err.contains("did you mean dgx-h100?"), "{err}");
    let (status, _, err) = outcome(&["topology", "dgx-h100", "--gpus", "12"]);
    assert_eq!(status, 2);
    assert!(err.contains("8 or 16"), "{err}");
    let (status, _, err) = outcome(&["topology", "dgx-h100", "--fabric", "rail-optimised"]);
    assert_eq!(status, 2);
    assert!(err.contains("did you mean `rail-optimized`?"), "{err}");
}

/// The files under examples/imports, as their owners would name them on the command line.
#[test]
fn clusters_that_somebody_else_described() {
    let file = |name: &str| {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/imports");
        root.join(name).to_str().expect("a plain path").to_owned()
    };
    let described = |args: &[&str]| {
        let mut all = vec!["topology"];
        all.extend(args);
        all.extend(["--format", "json"]);
        json(&all)
    };
    let (dump, rails, tree) = (
        file("hgx-h100.xml"),
        file("rails.yaml"),
        file("fat-tree.json"),
    );
    let node = described(&[&dump]);
    assert_eq!(node["gpus"], 8);
    assert!(node["node"].as_str().unwrap().contains("(like dgx-h100)"));
    let many = described(&[&dump, "--gpus", "1024", "--fabric", "ib-two-tier"]);
    assert_eq!(
        (&many["gpus"], &many["fabric"]),
        (&1024.into(), &"fat_tree".into())
    );
    let hall = described(&[&rails]);
    assert_eq!(
        (&hall["gpus"], &hall["fabric"]),
        (&32.into(), &"rail_optimized".into())
    );
    assert_eq!(hall["inventory"]["leaves"], 8);
    assert_eq!(described(&[&tree])["fabric"], "fat_tree");
    // Routes and collectives take them too.
    let spread = json(&["route", "0", "9", "--cluster", &rails, "--format", "json"]);
    assert_eq!(spread["level"], "spine");
    let table = json(&[
        "collective",
        "all-reduce",
        "--cluster",
        &dump,
        "--sizes",
        "1G",
        "--format",
        "json",
    ]);
    let like = json(&[
        "collective",
        "all-reduce",
        "--cluster",
        "dgx-h100",
        "--sizes",
        "1G",
        "--format",
        "json",
    ]);
    assert_eq!(table["rows"][0]["time_us"], like["rows"][0]["time_us"]);
    // A file that leaves the GPU open names the way out, and a scenario goes it.
    let (status, _, err) = outcome(&["topology", &file("cloud-a100.xml")]);
    assert_eq!(status, 2);
    assert!(
        err.contains("cloud-a100.xml:5:7") && err.contains("accelerator:"),
        "{err}"
    );
    let (status, text, err) = outcome(&["run", &file("llama3-8b-on-a-cloud.yaml")]);
    assert_eq!((status, err.as_str()), (0, ""));
    assert!(text.contains("cloud-a100.xml"), "{text}");
}
