//! Published timings of single kernels: facts with sources, read from JSON Lines and held against
//! the cost model.
//!
//! Two spellings of the field names are read: our own, which ships, and that of the survey it was
//! taken from (`src`, `gpu`, `dtype`, `backend`). A row that gives a rate or a statistic over many
//! shapes is compared in that rate or statistic. No rule looks at a single row.

mod compare;

pub use compare::{Comparison, LeftOut, compare, exponent_ceiling};

use crate::published::{ReadError, json_lines};
use serde::{Deserialize, Serialize};

/// The timings that ship with the catalogue.
pub const SHIPPED: &str = include_str!("../data/kernels.jsonl");

/// What was timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One product of an m x k with a k x n matrix; with a library, its quantisation included.
    Gemm,
    /// The best product of a search over shapes.
    GemmMamf,
    /// The best product that a library's authors state.
    GemmPeak,
    /// Statistics of a library's products over many shapes.
    GemmSummary,
    /// Products that share n and k, rows laid one after the other.
    GroupedGemmContiguous,
    /// The same with room for more rows in each group.
    GroupedGemmMasked,
    /// An expert layer: two grouped products with what is between them.
    Experts,
    /// Attention by its authors' benchmark; the implementation says which.
    Attention,
    /// One pass of a training step's attention over a batch of sequences.
    AttentionTraining,
    /// Causal attention of a prompt over itself, after the copy of keys and values to the cache.
    AttentionPrefill,
    /// Statistics of prefill over many shapes.
    AttentionPrefillSummary,
    /// Attention of one new token per sequence.
    AttentionDecode,
    /// Statistics of decode attention over many shapes.
    AttentionDecodeSummary,
    /// The same over a latent cache (MLA).
    MlaDecode,
    /// Prefill of a model with latent caches.
    MlaPrefill,
    /// The best of a library's decode attention over latents.
    MlaDecodeSummary,
    /// Reading and writing of memory by a benchmark with long arrays.
    HbmStream,
    /// One kernel that reads and writes so many bytes.
    Stream,
    /// Reading from the last-level cache.
    L2Bandwidth,
    /// Latencies of caches and memory.
    Latency,
    /// Time between kernels.
    Launch,
    /// The rate that the clock under load leaves.
    Clock,
}

impl Kind {
    /// Its name in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gemm => "gemm",
            Self::GemmMamf => "gemm_mamf",
            Self::GemmPeak => "gemm_peak",
            Self::GemmSummary => "gemm_summary",
            Self::GroupedGemmContiguous => "grouped_gemm_contiguous",
            Self::GroupedGemmMasked => "grouped_gemm_masked",
            Self::Experts => "experts",
            Self::Attention => "attention",
            Self::AttentionTraining => "attention_training",
            Self::AttentionPrefill => "attention_prefill",
            Self::AttentionPrefillSummary => "attention_prefill_summary",
            Self::AttentionDecode => "attention_decode",
            Self::AttentionDecodeSummary => "attention_decode_summary",
            Self::MlaDecode => "mla_decode",
            Self::MlaPrefill => "mla_prefill",
            Self::MlaDecodeSummary => "mla_decode_summary",
            Self::HbmStream => "hbm_stream",
            Self::Stream => "stream",
            Self::L2Bandwidth => "l2_bandwidth",
            Self::Latency => "latency",
            Self::Launch => "launch",
            Self::Clock => "clock",
        }
    }

    /// `gemm`, `experts`, `attention` or `device`.
    pub fn family(self) -> &'static str {
        match self {
            Self::Gemm | Self::GemmMamf | Self::GemmPeak | Self::GemmSummary => "gemm",
            Self::GroupedGemmContiguous | Self::GroupedGemmMasked | Self::Experts => "experts",
            Self::Attention
            | Self::AttentionTraining
            | Self::AttentionPrefill
            | Self::AttentionPrefillSummary
            | Self::AttentionDecode
            | Self::AttentionDecodeSummary
            | Self::MlaDecode
            | Self::MlaPrefill
            | Self::MlaDecodeSummary => "attention",
            Self::HbmStream
            | Self::Stream
            | Self::L2Bandwidth
            | Self::Latency
            | Self::Launch
            | Self::Clock => "device",
        }
    }
}

/// A pass of a training step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pass {
    /// From the input to the loss.
    Forward,
    /// From the loss to the gradients.
    Backward,
}

/// What ran on the accelerator before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Before {
    /// Nothing for long: milliseconds of this kernel.
    Burst,
    /// Seconds or more of this kernel, which hold the accelerator at its power limit.
    Continuous,
}

/// One published timing. What a source does not say is absent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedKernel {
    /// Name of the row.
    pub id: String,
    /// What was timed.
    pub kind: Kind,
    /// Where it was read.
    #[serde(alias = "src")]
    pub citation: String,
    /// The accelerator as the source spells it.
    #[serde(alias = "gpu")]
    pub accelerator: String,
    /// Format of the operands, as the source spells it.
    #[serde(default, alias = "dtype", skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Format of the cache of keys and values.
    #[serde(default, alias = "kv_dtype", skip_serializing_if = "Option::is_none")]
    pub kv_format: Option<String>,
    /// Serving engine whose kernels ran.
    #[serde(default, alias = "backend", skip_serializing_if = "Option::is_none")]
    pub library: Option<String>,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Which of several kernels.
    #[serde(default, alias = "impl", skip_serializing_if = "Option::is_none")]
    pub implementation: Option<String>,
    /// Which test of a benchmark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<String>,
    /// A remark of the source, such as the shape.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Rows of the left operand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub m: Option<u64>,
    /// Columns of the right operand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    /// The reduced dimension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k: Option<u64>,
    /// Products in one launch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<u64>,
    /// Rows of each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub m_per_group: Option<u64>,
    /// Tokens of an expert layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Experts of a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u64>,
    /// Experts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<u64>,
    /// Width of the residual stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden: Option<u64>,
    /// Width of an expert.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inner: Option<u64>,
    /// Sequences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u64>,
    /// Query heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<u64>,
    /// Key-value heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<u64>,
    /// New positions of a prompt, or positions in the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// Width of a head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<u64>,
    /// Width of a head's values where it differs from that of its keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim_v: Option<u64>,
    /// Whether a position sees those after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causal: Option<bool>,
    /// Most positions that a position sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u64>,
    /// Which pass of a training step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pass: Option<Pass>,
    /// What ran before; absent, nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<Before>,
    /// Bytes that a stream reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<u64>,
    /// Bytes that it writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<u64>,
    /// Time [us].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub us: Option<f64>,
    /// Rate, or the best of many [TFLOP/s].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tflops: Option<f64>,
    /// Median of many [TFLOP/s].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_tflops: Option<f64>,
    /// Median of products with m, n and k of 4096 and more [TFLOP/s].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_big_tflops: Option<f64>,
    /// Rate, or the best of many [GB/s].
    #[serde(default, alias = "GBps", skip_serializing_if = "Option::is_none")]
    pub gbps: Option<f64>,
    /// Median of many [GB/s].
    #[serde(
        default,
        alias = "median_GBps",
        skip_serializing_if = "Option::is_none"
    )]
    pub median_gbps: Option<f64>,
    /// Rate at which weights of 2^27 elements and more are read at m up to 16 [GB/s].
    #[serde(
        default,
        alias = "weight_stream_GBps",
        skip_serializing_if = "Option::is_none"
    )]
    pub weight_stream_gbps: Option<f64>,
    /// Rate [TB/s].
    #[serde(default, alias = "TBps", skip_serializing_if = "Option::is_none")]
    pub tbps: Option<f64>,
}

/// What the survey adds and no comparison needs.
const UNUSED: [&str; 13] = [
    "frac",
    "hbm_cycles",
    "hbm_ns",
    "l1_cycles",
    "l2_cycles",
    "l2_far_cycles",
    "l2_ns",
    "min_us",
    "rows",
    "spec_TBps",
    "spec_dense",
    "speedup_vs_cutlass36",
    "verified",
];

/// Reads JSON Lines of published timings in either spelling. Empty lines are skipped.
///
/// # Errors
/// When a line is not a JSON object, lacks what every row must have, or has a field that nobody
/// knows.
pub fn read(text: &str) -> Result<Vec<PublishedKernel>, ReadError> {
    json_lines(text, |mut value| {
        let Some(object) = value.as_object_mut() else {
            return Err("a published timing is a JSON object".to_owned());
        };
        object.retain(|key, _| !UNUSED.contains(&key.as_str()));
        serde_json::from_value(value).map_err(|error| error.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Catalogue;
    use proptest::prelude::*;
    use proptest::sample::select;

    /// Values that fields of a row have, should have, and should not have.
    fn value() -> impl Strategy<Value = serde_json::Value> {
        prop_oneof![
            select(vec![0u64, 1, 3, 128, 4096, 65536, u64::MAX]).prop_map(|n| n.into()),
            select(vec![-1.0, 0.0, 1e-300, 2.5, 1e300]).prop_map(|x: f64| x.into()),
            select(vec!["fp8", "nvfp4", "vllm", "FA2", "read", "d64 d0", ""])
                .prop_map(|s| s.into()),
        ]
    }

    proptest! {
        #[test]
        fn any_row_is_compared_or_refused(
            line in 0..100_000usize,
            changes in proptest::collection::vec((0..40usize, value()), 1..5),
        ) {
            let lines: Vec<&str> = SHIPPED.lines().collect();
            let mut row: serde_json::Value =
                serde_json::from_str(lines[line % lines.len()]).unwrap();
            let object = row.as_object_mut().unwrap();
            let keys: Vec<String> = object.keys().cloned().collect();
            for (index, value) in changes {
                let key = keys[index % keys.len()].clone();
                object.insert(key, value);
            }
            if let Ok(rows) = read(&row.to_string()) {
                for row in rows {
                    if let Ok(comparisons) = compare(&row, Catalogue::builtin()) {
                        prop_assert!(comparisons.iter().all(|c| c.log_error.is_finite()));
                    }
                }
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
            let _ = read(&text);
        }
    }

    /// The one comparison of a row on H100.
    fn compared(fields: &str) -> Comparison {
        let row =
            format!(r#"{{"id":"a","citation":"x","accelerator":"h100-sxm","us":1000.0,{fields}}}"#);
        let rows = read(&row).unwrap();
        let mut all = compare(&rows[0], Catalogue::builtin()).unwrap();
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    #[test]
    fn seconds_of_a_kernel_are_held_against_continuous_load() {
        let h100 = Catalogue::builtin().accelerator("h100-sxm").unwrap();
        let gemm = r#""kind":"gemm","format":"bf16","m":8192,"n":8192,"k":8192"#;
        let long = compared(&format!(r#"{gemm},"load":"continuous""#));
        let left = compared(gemm).modelled / long.modelled;
        let clock = h100.measured.continuous_clock;
        assert!((left / clock - 1.0).abs() < 0.01, "{left} {clock}");
        assert!(long.what.ends_with("continuous"), "{}", long.what);
        // Its clock hardly falls, and never rises.
        let attention = r#""kind":"attention_training","implementation":"cuDNN 9.19","batch":4,"heads":16,"kv_heads":16,"length":4096,"head_dim":128,"causal":true,"pass":"forward""#;
        let long = compared(&format!(r#"{attention},"load":"continuous""#));
        assert!(long.modelled >= compared(attention).modelled);
    }

    #[test]
    fn a_stream_takes_as_long_as_its_bytes() {
        let stream = |test: &str, read: u64, written: u64| {
            let fields =
                format!(r#""kind":"stream","test":"{test}","read":{read},"written":{written}"#);
            compared(&fields).modelled
        };
        let gib = 1u64 << 30;
        let (one, two) = (stream("copy", gib, gib), stream("copy", 2 * gib, 2 * gib));
        assert!((two / one - 2.0).abs() < 0.01, "{one} {two}");
        assert!(stream("sum", gib, 0) < one && one < stream("add", 2 * gib, gib));
        assert!(stream("copy", 4096, 4096) > 1.0, "a kernel has a floor");
        for lacks in [
            r#""test":"copy","read":4096"#,
            r#""test":"copy","read":0,"written":0"#,
            r#""read":4096,"written":4096"#,
            r#""test":"copy","read":4096,"written":4096,"load":"continuous""#,
            r#""test":"sort","read":4096,"written":4096"#,
            r#""test":"copy","read":4096,"written":18446744073709551615"#,
        ] {
            let row = format!(
                r#"{{"id":"a","kind":"stream","citation":"x","accelerator":"h100-sxm","us":1,{lacks}}}"#
            );
            let rows = read(&row).unwrap();
            assert!(compare(&rows[0], Catalogue::builtin()).is_err(), "{lacks}");
        }
    }

    #[test]
    fn both_spellings_say_the_same() {
        let ours = r#"{"id":"a","kind":"gemm","citation":"x","accelerator":"h100_sxm","format":"fp8","library":"vllm","m":1,"n":2,"k":3,"us":4.5}"#;
        let survey = r#"{"id":"a","kind":"gemm","src":"x","gpu":"h100_sxm","dtype":"fp8","backend":"vllm","m":1,"n":2,"k":3,"us":4.5,"verified":true}"#;
        assert_eq!(read(ours).unwrap(), read(survey).unwrap());
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = read("\n{\"id\":\"a\",\"kind\":\"gem\"}").unwrap_err();
        assert_eq!(error.line, 2);
        assert!(
            error.message.contains("unknown variant `gem`"),
            "{}",
            error.message
        );
        let error = read(r#"{"id":"a","kind":"gemm","src":"x","gpu":"y","mm":1}"#).unwrap_err();
        assert!(
            error.message.contains("unknown field `mm`"),
            "{}",
            error.message
        );
        assert!(read("[]").is_err());
        assert!(read("{").is_err());
    }

    #[test]
    fn shipped_rows_can_be_read_and_name_their_source() {
        let rows = read(SHIPPED).unwrap();
        assert!(rows.len() > 1000);
        assert!(rows.iter().all(|row| row.citation.len() > 8), "a citation");
        let mut ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), rows.len(), "names are unique");
    }
}
