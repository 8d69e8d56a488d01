//! `rackflow validate kernels` as a person uses it.

mod common;

use common::{fine, refused, scratch};
use serde_json::Value;
use std::collections::BTreeSet;

#[test]
fn every_shipped_row_is_compared_or_counted_and_the_targets_are_kept() {
    let text = fine(&["validate", "kernels", "--format", "json"]);
    let value: Value = serde_json::from_str(&text).expect("one JSON document");
    for key in [
        "rows",
        "median_abs_error",
        "p90_abs_error",
        "bias",
        "by_source",
        "by_accelerator",
        "by_family",
        "by_kind",
        "by_precision",
    ] {
        assert!(!value["summary"][key].is_null(), "{key}");
    }
    let targets = value["targets"].as_array().expect("targets");
    assert_eq!(targets.len(), 3);
    for target in targets {
        assert_eq!(target["met"], true, "{target}");
    }
    let compared: BTreeSet<&str> = value["rows"]
        .as_array()
        .expect("rows")
        .iter()
        .map(|row| row["id"].as_str().expect("an id"))
        .collect();
    let left_out = value["left_out"].as_array().expect("rows left out").len();
    let shipped = include_str!("../crates/scenario/data/kernels.jsonl");
    assert_eq!(compared.len() + left_out, shipped.lines().count());
    // Equal tensor cores, twice the exponentials.
    let rate = |name: &str| {
        let rows = value["exponent_ceiling"].as_array().expect("rates");
        let row = rows.iter().find(|row| row["accelerator"] == name);
        row.expect(name)["tflops"].as_f64().expect("a rate")
    };
    let gain = rate("b300-sxm") / rate("b200-sxm");
    assert!((1.08..1.35).contains(&gain), "{gain}");
}

#[test]
fn rows_of_ones_own_are_compared_and_bad_ones_named() {
    let file = scratch("rows").join("mine.jsonl");
    let path = file.to_str().expect("a path");
    let row = r#"{"id":"a","kind":"gemm","src":"mine","gpu":"h100_sxm","dtype":"bf16","m":8192,"n":8192,"k":8192,"us":1500}"#;
    std::fs::write(&file, row).expect("written");
    let text = fine(&["validate", "kernels", "--data", path, "--rows"]);
    assert!(text.contains("8192 x 8192 x 8192"), "{text}");
    std::fs::write(
        &file,
        format!("{row}\n{{\"id\":\"b\",\"kind\":\"gemm\",\"mm\":3}}"),
    )
    .expect("written");
    let text = refused(&["validate", "kernels", "--data", path]);
    assert!(text.contains("line 2") && text.contains("mm"), "{text}");
    let text = refused(&["validate", "kernels", "--filter", "no such kernel"]);
    assert!(text.contains("no row contains"), "{text}");
}
