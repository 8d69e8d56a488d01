//! The model catalogue against what the authors of the models published.

use indexmap::IndexMap;
use rackflow_workload::{AttentionCount, Frozen, Images, Model};

fn catalogue() -> IndexMap<String, Model> {
    serde_saphyr::from_str(include_str!("../catalogue/models.yaml")).expect("catalogue parses")
}

/// "37 B, without the token table (...)": the number, and half a unit of its last digit.
fn published(text: &str) -> (f64, f64) {
    let mut words = text.split_whitespace();
    let number = words.next().unwrap();
    let unit = match words.next().unwrap().trim_end_matches(',') {
        "B" => 1e9,
        "T" => 1e12,
        other => panic!("unit {other} in {text:?}"),
    };
    let decimals = number
        .split_once('.')
        .map_or(0, |(_, decimals)| decimals.len() as i32);
    (
        number.parse::<f64>().unwrap() * unit,
        0.5 * unit * 10f64.powi(-decimals),
    )
}

/// What the source leaves out of its count is left out of ours.
fn counted_alike(model: &Model, count: u64, text: &str) -> f64 {
    let parameters = model.parameters();
    let with = if text.contains("with prediction modules") {
        parameters.mtp
    } else if text.contains("with the vision encoder") {
        parameters.vision
    } else {
        0
    };
    let without = if text.contains("without embeddings") {
        parameters.embedding + parameters.output
    } else if text.contains("without the token table") {
        parameters.embedding
    } else {
        0
    };
    (count + with - without) as f64
}

#[test]
fn every_model_is_consistent_and_says_where_it_is_from() {
    let catalogue = catalogue();
    assert!(catalogue.len() >= 32);
    for (name, model) in &catalogue {
        assert_eq!(model.check(), Ok(()), "{name}");
        for key in ["config", "parameters"] {
            assert!(
                model.sources.contains_key(key),
                "{name} has no source `{key}`"
            );
        }
    }
}

#[test]
fn parameters_are_those_published() {
    for (name, model) in catalogue() {
        let counts = model.parameters();
        let explained = model.sources.contains_key("deviation");
        for (key, ours) in [
            ("parameters", counts.total),
            ("active_parameters", counts.active),
            ("mtp_parameters", counts.mtp),
        ] {
            let Some(text) = model.sources.get(key) else {
                continue;
            };
            let (theirs, rounding) = published(text);
            let ours = counted_alike(&model, ours, text);
            let allowed = if explained {
                0.02
            } else {
                (rounding / theirs).clamp(0.01, 0.015)
            };
            assert!(
                (ours / theirs - 1.0).abs() <= allowed,
                "{name}: {key} {:.3} B, published {text}",
                ours / 1e9
            );
        }
    }
}

/// Where the weights can be downloaded, their number is known exactly.
#[test]
fn parameters_of_open_weights_are_exact() {
    let catalogue = catalogue();
    for (name, exact) in [
        ("llama2-7b", 6_738_415_616),
        ("llama2-13b", 13_015_864_320),
        ("llama2-70b", 68_976_648_192),
        ("llama3-8b", 8_030_261_248),
        ("llama3-70b", 70_553_706_496),
        ("llama3-405b", 405_853_388_800),
        ("mixtral-8x7b", 46_702_792_704),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("qwen3-235b-a22b", 235_093_634_560),
        ("gpt-oss-120b", 116_829_156_672),
    ] {
        assert_eq!(catalogue[name].parameters_total(), exact, "{name}");
    }
}

/// Counted from the modules that the authors' code builds, and with the language model the totals of the
/// weights: 8.29 B (all but 0.1 M biases), 73.4 B, 31.07 B, 7.06 B, 108.6 B.
#[test]
fn parameters_of_vision_encoders_are_exact() {
    let catalogue = catalogue();
    for (name, exact, total) in [
        ("qwen2.5-vl-7b", 676_550_144, 8.292e9),
        ("qwen2.5-vl-72b", 704_573_696, 73.41e9),
        ("qwen3-vl-30b-a3b", 538_631_408, 31.07e9),
        ("llava-1.5-7b", 324_487_168, 7.063e9),
        ("llama4-scout", 871_932_416, 108.64e9),
    ] {
        let model = &catalogue[name];
        let parameters = model.parameters();
        assert_eq!(parameters.vision, exact, "{name}");
        let all = (parameters.total + parameters.vision) as f64;
        assert!((all / total - 1.0).abs() < 2e-4, "{name}: {all}");
    }
}

/// Tokens of one image in the language model's sequence, as their authors say.
#[test]
fn images_take_as_many_tokens_as_published() {
    let catalogue = catalogue();
    for (name, pixels, tokens) in [
        ("llava-1.5-7b", 336, 576),
        ("llama4-scout", 336, 144),
        ("qwen2.5-vl-7b", 448, 256),
        ("qwen3-vl-30b-a3b", 1024, 1024),
    ] {
        let vision = catalogue[name].vision.as_ref().expect(name);
        let images = Images {
            per_sequence: 1,
            height: pixels,
            width: pixels,
            frozen: Frozen::Nothing,
        };
        assert_eq!(vision.tokens(&images), tokens, "{name}");
    }
}

/// An independent recount, without prediction modules: (model, sequence, non-causal, causal).
const RECOUNT: [(&str, u64, f64, f64); 20] = [
    ("gpt3-5b", 2048, 32_665_239_552.0, 31_457_300_000.0),
    ("gpt3-20b", 2048, 128_119_209_984.0, 124_797_000_000.0),
    ("gpt3-175b", 2048, 1_076_442_955_776.0, 1_061_950_000_000.0),
    (
        "mt-nlg-530b",
        2048,
        3_230_033_510_400.0,
        3_203_610_000_000.0,
    ),
    ("bloom-176b", 2048, 1_082_067_517_440.0, 1_069_740_000_000.0),
    ("llama2-7b", 4096, 46_084_915_200.0, 42_863_700_000.0),
    ("llama2-13b", 4096, 87_175_987_200.0, 82_142_800_000.0),
    ("llama2-70b", 4096, 444_491_366_400.0, 428_385_000_000.0),
    ("llama3-8b", 8192, 57_912_852_480.0, 51_470_400_000.0),
    ("llama3-70b", 8192, 481_434_796_032.0, 449_223_000_000.0),
    (
        "llama3-405b",
        8192,
        2_625_424_588_800.0,
        2_523_960_000_000.0,
    ),
    (
        "llama3-405b",
        131_072,
        5_669_482_659_840.0,
        4_045_990_000_000.0,
    ),
    ("mixtral-8x7b", 4096, 82_933_972_992.0, 79_712_700_000.0),
    ("deepseek-v3", 4096, 281_152_192_512.0, 250_450_000_000.0),
    ("moonlight-16b", 8192, 22_269_394_944.0, 18_872_000_000.0),
    ("qwen3-8b", 4096, 52_656_340_992.0, 49_032_500_000.0),
    ("qwen3-30b-a3b", 4096, 27_913_617_408.0, 23_081_800_000.0),
    (
        "qwen3-235b-a22b",
        4096,
        167_255_212_032.0,
        148_331_000_000.0,
    ),
    ("gpt-oss-120b", 4096, 34_636_972_032.0, 32_711_800_000.0),
    (
        "nemotron4-340b",
        4096,
        2_104_794_021_888.0,
        2_061_310_000_000.0,
    ),
];

#[test]
fn flops_per_token_are_those_of_the_recount() {
    let catalogue = catalogue();
    for (name, sequence, noncausal, causal) in RECOUNT {
        for (count, expected) in [
            (AttentionCount::NonCausal, noncausal),
            (AttentionCount::Causal, causal),
        ] {
            let ours = catalogue[name].flops_per_token(sequence, count);
            // GPT-OSS: the recount lets the first queries of a window see a whole window.
            let allowed = if name == "gpt-oss-120b" { 2e-4 } else { 1e-5 };
            let error = (ours / expected - 1.0).abs();
            assert!(
                error < allowed,
                "{name} at {sequence}, {count:?}: {ours:.6e}, {expected:.6e}"
            );
        }
    }
}

/// Zhao et al., arXiv:2505.09343: table 1 (bytes of cache per token in bf16) and table 2 (GFLOP per
/// token at 4,096 tokens, causal).
#[test]
fn deepseek_counts_alike() {
    let catalogue = catalogue();
    for (name, bytes) in [("deepseek-v3", 70_272), ("llama3-405b", 516_096)] {
        assert_eq!(
            catalogue[name].kv_bytes_per_token(16).get(),
            bytes,
            "{name}"
        );
    }
    for (name, gigaflops) in [
        ("deepseek-v2", 155.0),
        ("deepseek-v3", 250.0),
        ("llama3-405b", 2448.0),
    ] {
        let ours = catalogue[name].flops_per_token(4096, AttentionCount::Causal) / 1e9;
        assert!((ours / gigaflops - 1.0).abs() < 0.011, "{name}: {ours}");
    }
}

/// Prints every missing row, as it belongs in the table.
#[test]
fn documentation_shows_our_counts() {
    let documentation = include_str!("../../../docs/models.md");
    let rows = catalogue()
        .into_iter()
        .map(|(name, model)| row(&name, &model));
    let missing: Vec<String> = rows.filter(|row| !documentation.contains(row)).collect();
    assert!(
        missing.is_empty(),
        "docs/models.md lacks\n{}",
        missing.join("\n")
    );
}

fn row(name: &str, model: &Model) -> String {
    let counts = model.parameters();
    let source = |key: &str| {
        model
            .sources
            .get(key)
            .map_or("-", |text| text.split(" (").next().unwrap_or(text))
    };
    let flops = |count| model.flops_per_token(4096, count) / 1e9;
    format!(
        "| `{name}` | {:.2} | {} | {:.2} | {} | {:.1} | {:.1} |",
        counts.total as f64 / 1e9,
        source("parameters"),
        counts.active as f64 / 1e9,
        source("active_parameters"),
        flops(AttentionCount::Causal),
        flops(AttentionCount::NonCausal),
    )
}
