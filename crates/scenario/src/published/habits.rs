//! What a source does where its rows do not say: one table, by source and release.

use super::PublishedRun;
use rackflow_plan::RankOrder;
use rackflow_workload::{CudaGraphs, ExpertDispatcher, Recipe, Zero};

/// The habits of one source's software.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Habits {
    /// Its profile in the catalogue.
    pub stack: &'static str,
    /// ZeRO stage where a row names none.
    pub zero: Zero,
    /// Sequence parallelism beside tensor parallelism where a row does not say.
    pub sequence_parallel: bool,
    /// What a pipeline without a published number of chunks does.
    pub interleaving: Interleaving,
    /// Experts are cut over the tensor ranks where a row does not say.
    pub experts_cut_over_tensor: bool,
    /// How ranks are numbered.
    pub rank_order: RankOrder,
    /// What `FP8` means.
    pub fp8: Recipe,
    /// Tokens of the vocabulary where a row prints none.
    pub vocabulary: (u64, &'static str),
    /// Whole layers are recomputed where a row does not say.
    pub recomputes_layers: Option<&'static str>,
    /// Weights are gathered in fp8 where the GEMMs run in it and a row does not say.
    pub fp8_parameter_gather: bool,
    /// Mixtures whose whole iteration is one graph run the exchange of tokens beside another
    /// micro-batch where the GEMMs run in MXFP8 and a row does not say.
    pub whole_graphs_overlap_experts: bool,
    /// Mixtures in FP8 on H100 launch kernel by kernel, whatever a recipe of the repository's head says.
    pub plain_launches_of_fp8_mixtures: bool,
    /// Models whose gradients are kept and reduced in bf16 where those of the source's others are in fp32.
    pub bf16_gradients: Option<Models>,
    /// Gbit/s of each NIC, where the source's nodes reached less than their interfaces.
    pub nic_gigabits: Option<u64>,
}

/// Models of a source whose configurations differ from those of its others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Models {
    /// Those whose name starts so.
    Named(&'static str),
    /// Mixtures, whose optimizer also keeps narrower states: the lower half of its weights beside bf16 ones,
    /// and where attention is latent (DeepSeek's recipes) moments in bf16.
    Mixtures,
}

/// What a pipeline does where the number of chunks per stage is not published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interleaving {
    /// One chunk per stage.
    None,
    /// One layer per chunk, where that comes out even.
    OneLayerPerChunk,
}

/// Megatron's habits since its distributed optimizer and sequence parallelism (2022).
const MEGATRON: Habits = Habits {
    stack: "megatron-core-25.04",
    zero: Zero::Stage1,
    sequence_parallel: true,
    interleaving: Interleaving::None,
    experts_cut_over_tensor: false,
    rank_order: RankOrder::DataBeforePipeline,
    fp8: Recipe::Fp8,
    vocabulary: (
        50_304,
        "GPT-2's, padded to a multiple of 128 as Megatron does, is usual",
    ),
    recomputes_layers: None,
    fp8_parameter_gather: false,
    whole_graphs_overlap_experts: false,
    plain_launches_of_fp8_mixtures: false,
    bf16_gradients: None,
    nic_gigabits: None,
};

/// Fully sharded data parallelism in PyTorch or JAX.
const SHARDED: Habits = Habits {
    stack: "torchtitan-2024",
    zero: Zero::Stage3,
    ..MEGATRON
};

/// Megatron before 2022 and what was built on it.
const EARLY: Habits = Habits {
    stack: "megatron-lm-2021",
    zero: Zero::Stage0,
    sequence_parallel: false,
    ..MEGATRON
};

/// NeMo, whose recipes interleave one layer per chunk where they interleave.
const NEMO: Habits = Habits {
    interleaving: Interleaving::OneLayerPerChunk,
    experts_cut_over_tensor: true,
    // NeMo's fp8 recipe until 2025, with a history of 1,024 steps.
    fp8: Recipe::Fp8Delayed,
    ..MEGATRON
};

/// The habits of the run's source at the run's release.
pub(super) fn habits(run: &PublishedRun) -> Habits {
    let release = run.release.as_str();
    let year = run.year.unwrap_or(2024);
    let framework = run.declared.framework.as_deref().unwrap_or_default();
    match run.source.as_str() {
        "megatron-sc21" | "mt-nlg" => EARLY,
        "korthikanti22" | "korthikanti22-layer" => Habits {
            stack: "megatron-lm-2022",
            sequence_parallel: true,
            ..EARLY
        },
        "bigscience" => Habits {
            // Gradients accumulate in fp32 since that day (chronicles-prequel.md, Rebalancing layers).
            stack: match release {
                r if ("2022-02-20".."2022-02-28").contains(&r) => "megatron-deepspeed-2022-02",
                _ => "megatron-deepspeed-2022",
            },
            zero: Zero::Stage1,
            // "A100s PCI-Express/NUMA was improved today" (GBS Variations): one plan takes 6 s less after it.
            nic_gigabits: ("2022-02-20".."2022-02-25")
                .contains(&release)
                .then_some(40),
            ..EARLY
        },
        "vtrain-multi" => Habits {
            stack: "vtrain-megatron-2023",
            ..EARLY
        },
        "zero-bubble" => Habits {
            stack: "zero-bubble-megatron-2023",
            // 14.6 and 28.3 billion parameters leave 0.15 to 0.2 billion for the table.
            vocabulary: (
                32_768,
                "what the printed numbers of parameters leave for it",
            ),
            ..EARLY
        },
        "internevo" => Habits {
            stack: "internevo-2023",
            zero: Zero::Stage1,
            ..EARLY
        },
        "llm-foundry" => Habits {
            // The tables of 40-GB cards are older, and reduce in bf16 (MP Mode PURE).
            stack: match release {
                "2023-05" => "llm-foundry-2023",
                "" if run.gpu == "A100-SXM-40GB" => "llm-foundry-2023",
                _ => "llm-foundry-2023-10",
            },
            fp8: Recipe::Fp8Delayed,
            ..SHARDED
        },
        "mlperf" => Habits {
            stack: match (release, year) {
                ("23.04", _) => "mlperf-nemo-2023-04",
                (_, ..=2023) => "mlperf-nemo-2023",
                ("24.04", _) => "mlperf-nemo-2024-04",
                (_, 2024) => "mlperf-nemo-2024",
                ("25.01", _) => "mlperf-nemo-2025-01",
                ("25.04", _) => "mlperf-nemo-2025-04",
                _ => "mlperf-nemo-2025",
            },
            // TP_PP_DP_MAPPING, False by default (conf/custom.yaml) and True in config_common.sh of v5.1.
            rank_order: if release >= "25.09" {
                RankOrder::PipelineBeforeData
            } else {
                RankOrder::DataBeforePipeline
            },
            // FP8_RECIPE="tensorwise" in the configurations of v5.1. Those of v5.0 say "delayed"
            // (config_common_blackwell.sh, and the default of custom.yaml), and so do its rows.
            fp8: if year >= 2025 {
                Recipe::Fp8
            } else {
                Recipe::Fp8Delayed
            },
            ..NEMO
        },
        "nemo" | "nemo-longctx" => Habits {
            stack: match (release, year) {
                ("24.01" | "24.03" | "24.05", _) => "nemo-24.05",
                (_, ..=2024) => "nemo-24.07",
                _ => "dgxc-nemo-25.04",
            },
            bf16_gradients: Some(Models::Named("gpt3")),
            ..NEMO
        },
        "dgxc-benchmarking" if framework.contains("Pax") => Habits {
            stack: "paxml-2024",
            recomputes_layers: Some("Pax's language models save nothing inside a layer"),
            ..SHARDED
        },
        "dgxc-benchmarking" | "maxtext-a3"
            if framework.contains("MaxText") || run.source == "maxtext-a3" =>
        {
            Habits {
                stack: "maxtext-2025",
                ..SHARDED
            }
        }
        "dgxc-benchmarking" => Habits {
            stack: match release {
                r if r < "25" => "dgxc-nemo-24.11",
                r if r < "25.04" => "dgxc-nemo-25.02",
                _ => "dgxc-nemo-25.04",
            },
            ..NEMO
        },
        "megatron-bridge" => Habits {
            stack: match release {
                r if r < "25.11" => "megatron-bridge-25.09",
                r if r < "26.02.01" => "megatron-bridge-25.11",
                r if r < "26.06" => "megatron-bridge-26.02.01",
                _ => "megatron-bridge-26.06",
            },
            // perf_recipes/qwen/common.py, _enable_hybridep_full_iteration_mxfp8.
            whole_graphs_overlap_experts: true,
            // Graphs entered that recipe after 26.06 (scripts/performance/configs/qwen at 01b2977:
            // QWEN3_30B_A3B_PRETRAIN_CONFIG_H100_FP8_CS_V1 has none, its BF16 sister has).
            plain_launches_of_fp8_mixtures: ("26.02.01".."26.08").contains(&release),
            ..MEGATRON
        },
        // A verification card of a performance recipe; the others are of functional ones.
        "mb-cards" if run.declared.cuda_graphs == Some(CudaGraphs::Full) => Habits {
            stack: "megatron-bridge-26.06",
            whole_graphs_overlap_experts: true,
            ..MEGATRON
        },
        "mcore-pr" => Habits {
            stack: "megatron-core-2026",
            ..MEGATRON
        },
        "mb-skills" | "mb-cards" | "mb-pr" => Habits {
            stack: "megatron-bridge-functional-2026",
            // src/megatron/bridge/recipes: moonlight_16b.py, qwen3_moe.py and qwen3.py of h100.
            bf16_gradients: Some(Models::Mixtures),
            ..MEGATRON
        },
        "mcore-dsv3-guide" => Habits {
            // HybridEP is the last but two of its changes.
            stack: if run.declared.dispatcher == Some(ExpertDispatcher::HybridEp) {
                "megatron-core-dsv3-2025-tuned"
            } else {
                "megatron-core-dsv3-2025"
            },
            ..MEGATRON
        },
        "megatron-readme" | "megatron-core-moe" if year <= 2024 => Habits {
            stack: "megatron-core-24.05",
            ..MEGATRON
        },
        "simumax-b200" => Habits {
            stack: "simumax-megatron-0.14",
            ..MEGATRON
        },
        "torchtitan" | "titan-nebius" => Habits {
            stack: if run.declared.compiled == Some(false) {
                "torchtitan-eager-2024"
            } else {
                "torchtitan-2024"
            },
            // float8.enable_fsdp_float8_all_gather, as its float8 guide recommends.
            fp8_parameter_gather: true,
            ..SHARDED
        },
        "fms-fsdp" => Habits {
            stack: "fms-fsdp-2024",
            ..SHARDED
        },
        "tinyllama" => Habits {
            stack: "torchtitan-eager-2024",
            ..SHARDED
        },
        "llama3" => Habits {
            stack: "meta-llama3-2024",
            interleaving: Interleaving::OneLayerPerChunk,
            // Table 4 calls it FSDP, section 3.3.2 says that weights are not resharded after the
            // forward pass: states and gradients are sharded, weights are gathered once per step.
            zero: Zero::Stage2,
            rank_order: RankOrder::PipelineBeforeData,
            ..MEGATRON
        },
        "llama4" => Habits {
            stack: "meta-llama4-2025",
            zero: Zero::Stage2,
            rank_order: RankOrder::PipelineBeforeData,
            ..MEGATRON
        },
        "deepseek-v3" => Habits {
            stack: "deepseek-hai-llm",
            fp8: Recipe::Fp8Blockwise,
            ..MEGATRON
        },
        "megascale" if framework.contains("Megatron-LM") => Habits {
            stack: "megatron-lm-2023",
            ..MEGATRON
        },
        // MegaScale shards optimizer states and gradients (section 3.1).
        "megascale" => Habits {
            stack: "megascale-2024",
            zero: Zero::Stage2,
            ..MEGATRON
        },
        "megascale-moe" => Habits {
            stack: "megascale-moe-2025",
            ..MEGATRON
        },
        _ => unknown_source(run, year, framework),
    }
}

/// A source that this table does not know is taken by what it declares, and by its year.
fn unknown_source(run: &PublishedRun, year: u32, framework: &str) -> Habits {
    if framework.contains("JAX") || framework.contains("MaxText") {
        return Habits {
            stack: "maxtext-2025",
            ..SHARDED
        };
    }
    if run.plan.zero == Some(3) {
        let stack = match (year, run.declared.compiled) {
            (..=2023, _) => "llm-foundry-2023",
            (_, Some(false)) => "torchtitan-eager-2024",
            _ => "torchtitan-2024",
        };
        return Habits { stack, ..SHARDED };
    }
    match year {
        ..=2021 => EARLY,
        2022 => Habits {
            stack: "megatron-lm-2022",
            sequence_parallel: true,
            ..EARLY
        },
        2023 => Habits {
            stack: "megatron-lm-2023",
            ..MEGATRON
        },
        2024 => Habits {
            stack: "megatron-core-24.05",
            ..MEGATRON
        },
        2025 => MEGATRON,
        _ => Habits {
            stack: "megatron-bridge-26.02.01",
            ..MEGATRON
        },
    }
}
