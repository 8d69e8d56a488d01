//! Published timings of collectives: facts with sources, read from JSON Lines.
//!
//! Two spellings of the field names are read: our own, which ships, and that of the survey it was
//! taken from. [`PublishedCollective::hardware`] says on which cluster of the catalogue a row was
//! measured, and [`PublishedCollective::what`] what was run; no rule looks at a single row.

use crate::cluster::{ClusterChanges, catalogue_cluster};
use crate::published::{ReadError, json_lines};
use rackflow_topology::Cluster;
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;

/// The timings that ship with the catalogue.
pub const SHIPPED: &str = include_str!("../data/collectives.jsonl");

/// One published timing. What a source does not say is absent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PublishedCollective {
    /// Name of the row.
    pub id: String,
    /// Who measured, in short.
    #[serde(alias = "src")]
    pub source: String,
    /// Where it was read.
    #[serde(default)]
    pub citation: String,
    /// The accelerator as the source spells it.
    pub gpu: String,
    /// Ranks.
    #[serde(alias = "n_gpus")]
    pub gpus: u32,
    /// Servers (trays of a rack).
    #[serde(default, alias = "n_nodes")]
    pub nodes: Option<u32>,
    /// What was run, as the source spells it.
    #[serde(alias = "op")]
    pub operation: String,
    /// Size as nccl-tests counts it; absent where only an asymptote was published.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// Tokens of one rank, for exchanges of experts.
    #[serde(default)]
    pub tokens_per_rank: Option<u64>,
    /// Time [us].
    #[serde(default)]
    pub time_us: Option<f64>,
    /// Bus bandwidth [GB/s].
    #[serde(default, alias = "busbw_GBps")]
    pub busbw_gb_per_s: Option<f64>,
    /// Bandwidth by the source's own definition [GB/s].
    #[serde(default, alias = "bw_GBps")]
    pub bandwidth_gb_per_s: Option<f64>,
    /// The library's algorithm, where the source forces or names it.
    #[serde(default, alias = "algo")]
    pub algorithm: Option<String>,
    /// Links as the source describes them.
    #[serde(default)]
    pub fabric: Option<String>,
    /// Element type.
    #[serde(default)]
    pub dtype: Option<String>,
    /// Version of NCCL.
    #[serde(default)]
    pub nccl: Option<String>,
    /// A remark of the source.
    #[serde(default)]
    pub note: Option<String>,
    /// How calls were started, where it is known.
    #[serde(default)]
    pub launch: Option<Launch>,
    /// Read off a plot.
    #[serde(default)]
    pub digitized: bool,
}

/// How the calls of a benchmark are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Launch {
    /// In a CUDA graph, or far enough ahead of the GPU to cost nothing.
    Ahead,
    /// From the host, one behind the other: no call takes less than starting the next.
    Host,
    /// From the host, each timed on its own between two events: the GPU waits for it in between.
    Each,
}

/// How the harness of each source starts calls, as the rows that ship say. Two call from the host:
/// stas00/ml-engineering puts events around each call in PyTorch
/// (`network/benchmarks/all_reduce_bench.py`) and times each, and the tables of Azure/AI-benchmarking-guide stand still
/// at 42 us below 1 MiB on links of two generations, as only launches do.
fn harnesses() -> &'static [(String, Launch)] {
    static KNOWN: OnceLock<Vec<(String, Launch)>> = OnceLock::new();
    KNOWN.get_or_init(|| {
        let mut known: Vec<(String, Launch)> = read(SHIPPED)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|row| Some((row.source, row.launch?)))
            .collect();
        known.sort_by(|a, b| a.0.cmp(&b.0));
        known.dedup();
        known
    })
}

/// Reads rows from JSON Lines; empty lines are skipped.
///
/// # Errors
/// At the first line that is not a row.
pub fn read(text: &str) -> Result<Vec<PublishedCollective>, ReadError> {
    json_lines(text, |value| {
        serde_json::from_value(value)
            .map_err(|error| format!("not a published collective: {error}"))
    })
}

/// What a row ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// All-reduce.
    AllReduce,
    /// All-gather.
    AllGather,
    /// Reduce-scatter.
    ReduceScatter,
    /// All-to-all.
    AllToAll,
    /// Tokens to experts.
    Dispatch(Kernels),
    /// Results back.
    Combine(Kernels),
}

/// The kernels of an exchange of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kernels {
    /// Once to each domain, forwarded there (DeepEP's normal ones).
    Relayed,
    /// Straight to each expert (DeepEP's low-latency ones).
    LowLatency,
    /// Straight to each rank, once (TensorRT-LLM's one-sided ones).
    OneSided,
}

/// The exchange that all sources run: DeepSeek-V3's.
pub mod deepseek_v3 {
    /// Elements of a token.
    pub const HIDDEN: u64 = 7168;
    /// Experts.
    pub const EXPERTS: u64 = 256;
    /// Experts of a token.
    pub const TOP_K: u64 = 8;
    /// Groups of experts that a token may choose from.
    pub const GROUPS: u32 = 4;
}

impl PublishedCollective {
    /// What was run; `None` for copies and transfers that no library of collectives makes.
    pub fn what(&self) -> Option<What> {
        Some(match self.operation.as_str() {
            "all_reduce" => What::AllReduce,
            "all_gather" => What::AllGather,
            "reduce_scatter" => What::ReduceScatter,
            "alltoall" | "all_to_all" => What::AllToAll,
            "ep_dispatch_normal" => What::Dispatch(Kernels::Relayed),
            "ep_combine_normal" => What::Combine(Kernels::Relayed),
            "ep_dispatch_ll" => What::Dispatch(Kernels::LowLatency),
            "ep_combine_ll" => What::Combine(Kernels::LowLatency),
            "ep_dispatch" => What::Dispatch(Kernels::OneSided),
            "ep_combine" => What::Combine(Kernels::OneSided),
            _ => return None,
        })
    }

    /// How its harness started the calls: what the row says, else what shipped rows of the same source
    /// say, else ahead.
    pub fn launch(&self) -> Launch {
        let known = || {
            harnesses()
                .iter()
                .find(|(source, _)| *source == self.source)
        };
        self.launch
            .or_else(|| known().map(|(_, launch)| *launch))
            .unwrap_or(Launch::Ahead)
    }

    /// The cluster it was measured on, of nodes of the catalogue; `None` where the catalogue has no
    /// such node.
    pub fn hardware(&self) -> Option<Cluster> {
        let fabric = self.fabric.as_deref().unwrap_or_default();
        let says = |text: &str| fabric.contains(text);
        let node = match self.gpu.as_str() {
            "A100-SXM" => "dgx-a100",
            "H100-SXM" if says("RoCE") => "hgx-h100",
            "H100-SXM" => "dgx-h100",
            "H200" => "hgx-h200",
            "H800" => "hgx-h800",
            "B200" if says("EFA") => "p6-b200",
            "B200" => "dgx-b200",
            "GB200" => "gb200-nvl72",
            "MI300X" => "mi300x-8",
            gpu if gpu.starts_with("L40S") => "l40s-8-bridged",
            _ => return None,
        };
        let changes = ClusterChanges {
            gpus: Some(self.gpus),
            whole_nodes: true,
            ..ClusterChanges::default()
        };
        let mut cluster = catalogue_cluster(node, &changes).ok()?;
        if says("4x200G") || says("4xHDR200") {
            cluster.node.nic.count = 4;
        }
        // What the switches were asked for, and not what they could do.
        if self.algorithm.as_deref() == Some("SHARP")
            && let Some(reduces) = cluster.fabric.reduces_mut()
        {
            *reduces = true;
        }
        Some(cluster)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read_and_most_rows_have_their_hardware() {
        let survey = r#"{"id":"c1","src":"aic","gpu":"H100-SXM","n_gpus":8,"n_nodes":1,"op":"all_reduce","bytes":1024,"time_us":9.5,"busbw_GBps":0.2,"verified":true}"#;
        let rows = read(survey).expect("a row of the survey");
        assert_eq!((rows[0].gpus, rows[0].what()), (8, Some(What::AllReduce)));
        let shipped = read(SHIPPED).expect("what ships is well-formed");
        let known = shipped
            .iter()
            .filter(|row| row.hardware().is_some())
            .count();
        assert!(
            known * 20 > shipped.len() * 19,
            "{known} of {}",
            shipped.len()
        );
        assert!(shipped.iter().all(|row| row.citation.len() > 3));
        assert!(read("{}").is_err());
    }
}
