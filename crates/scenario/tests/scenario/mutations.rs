//! Nothing panics, whatever the bytes.

use proptest::prelude::*;
use rackflow_scenario::{parse, shipped};
use std::io;

/// A file that is a model, one that is not, and none.
fn files(path: &str) -> io::Result<String> {
    match path.len() % 3 {
        0 => Ok("{}".to_owned()),
        1 => Ok("[1, 2".to_owned()),
        _ => Err(io::Error::from(io::ErrorKind::NotFound)),
    }
}

/// Parses, resolves and renders; all that must hold is that it returns, and that a refusal says
/// something at a place that exists.
fn digest(text: &str) {
    if let Err(found) = parse("mutant.yaml", text).and_then(|scenario| {
        if scenario.serves() {
            scenario.resolve_serving(&files).map(|_| ())
        } else if scenario.replays() {
            scenario.resolve_replay(&files).map(|_| ())
        } else {
            scenario.resolve(&files).map(|_| ())
        }
    }) {
        assert!(!found.is_empty());
        for diagnostic in found {
            let end = diagnostic.span.offset + diagnostic.span.len;
            assert!(text.is_char_boundary(diagnostic.span.offset) && text.is_char_boundary(end));
            assert!(diagnostic.to_string().starts_with("error: "));
        }
    }
}

fn scenario() -> impl Strategy<Value = &'static str> {
    (0..shipped().len()).prop_map(|index| shipped()[index].1)
}

/// Values that have broken parsers and arithmetic before.
const NASTY: &[&str] = &[
    "0",
    "1",
    "-1",
    "3",
    "7",
    "65536",
    "4294967295",
    "4294967296",
    "9999999",
    "18446744073709551615",
    "99999999999999999999",
    "1e308",
    "1e-308",
    "0.0",
    ".nan",
    ".inf",
    "-.inf",
    "~",
    "null",
    "\"\"",
    "true",
    "[]",
    "{}",
    "[[]]",
    "{a: {}}",
    "*a",
    "&a 1",
    "!!binary x",
    "|",
    ">",
    "0 GB/s",
    "1e19 B/s",
    "1 PB",
    "1e300 TFLOP/s",
    "213 d",
    "0 s",
    "1000000 s",
    "\u{feff}",
    "\u{0}",
    "\u{2028}",
    "größer",
    "x.json",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 3 / 4, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        digest(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_yaml_punctuation(text in "[a-c:\\-\\[\\]{}&*!|>'\"#%@, \t\n0-9]{0,200}") {
        digest(&text);
    }

    #[test]
    fn cut_short(text in scenario(), at in any::<prop::sample::Index>()) {
        let mut end = at.index(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        digest(&text[..end]);
    }

    #[test]
    fn lines_removed_and_doubled(
        text in scenario(),
        picks in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 1..4),
    ) {
        let mut lines: Vec<&str> = text.lines().collect();
        for (index, remove) in picks {
            let index = index.index(lines.len().max(1));
            if remove && index < lines.len() {
                lines.remove(index);
            } else if let Some(line) = lines.get(index).copied() {
                lines.insert(index, line);
            }
        }
        digest(&lines.join("\n"));
    }

    #[test]
    fn words_swapped(text in scenario(), a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>()) {
        let mut words: Vec<&str> = text.split(' ').collect();
        let (a, b) = (a.index(words.len()), b.index(words.len()));
        words.swap(a, b);
        digest(&words.join(" "));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 4, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn values_replaced(
        text in scenario(),
        picks in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(NASTY)), 1..4),
    ) {
        let mut lines: Vec<String> = text.lines().filter(|line| !line.trim_start().starts_with('#')).map(str::to_owned).collect();
        for (index, value) in picks {
            let index = index.index(lines.len());
            if let Some((key, _)) = lines[index].split_once(": ") {
                lines[index] = format!("{key}: {value}");
            }
        }
        digest(&lines.join("\n"));
    }

    #[test]
    fn hardware_of_nasty_numbers(
        numbers in prop::collection::vec(prop::sample::select(NASTY), 12),
        fabric in prop::sample::select(&["fat_tree", "rail_optimized", "multi_plane_fat_tree"][..]),
    ) {
        let n = &numbers;
        digest(&format!(
            "cluster:
  node: {{ like: dgx-h100, gpus: {}, scale_up: {{ domain: {} }}, nic: {{ count: {}, rate: {} }}, rack: {{ gpus: {} }} }}
  gpus: {}
  fabric: {{ {fabric}: {{ {}: {}, radix: {}, link: {} }} }}
workload:
  training:
    model: {{ like: deepseek-v3, layers: {} }}
    stack: deepseek-hai-llm
    precision: fp8
    sequence_length: 4096
    global_batch: 64
    parallelism: {{ tensor: {} }}
",
            n[0], n[1], n[2], n[3], n[4], n[5],
            if fabric == "multi_plane_fat_tree" { "planes" } else { "tiers" },
            n[6], n[7], n[8], n[9], n[10],
        ));
    }
}

/// Numbers that pass every single check may still be too much together.
#[test]
fn large_fabrics_are_answered() {
    for gpus in [8, 4096, 1_000_000, 9_999_992] {
        for radix in [1, 2, 3, 64, 65_536] {
            for tiers in [2, 3] {
                for over in ["0.01", "1", "999"] {
                    digest(&format!(
                        "cluster: {{ node: dgx-h100, gpus: {gpus}, fabric: {{ fat_tree: {{ tiers: {tiers}, radix: {radix}, \
                         leaf_oversubscription: {over}, spine_oversubscription: {over} }} }} }}\n\
                         workload: {{ training: {{ model: llama3-8b, stack: torchtitan-2024, precision: bf16, \
                         sequence_length: 8192, global_batch: {gpus} }} }}\n"
                    ));
                }
            }
        }
    }
}
