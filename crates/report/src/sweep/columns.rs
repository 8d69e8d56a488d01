//! The columns of a sweep: one row per case, names that do not change.

use super::table::{Cell, Column, ColumnKind, Table};
use crate::causes::{Family, family};
use crate::outlook::{Economics, Run};
use crate::report::Report;
use crate::serving::ServingReport;

/// How a case ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome<'r> {
    /// It trained.
    Done(&'r Report),
    /// It served.
    Served(&'r ServingReport),
    /// It trains and cannot be simulated, and why: one line.
    Infeasible(String),
    /// It serves and cannot be simulated, and why: one line.
    Unserved(String),
}

/// What a row needs besides the report.
#[derive(Debug, Clone, PartialEq)]
pub struct CaseFacts<'c> {
    /// Name of the case.
    pub name: &'c str,
    /// What was chosen, by dotted path or name of an axis.
    pub parameters: &'c [(String, String)],
}

struct Metric<R: 'static> {
    name: &'static str,
    kind: ColumnKind,
    unit: &'static str,
    meaning: &'static str,
    get: fn(&R) -> Cell,
}

const fn text<R>(name: &'static str, meaning: &'static str, get: fn(&R) -> Cell) -> Metric<R> {
    Metric {
        name,
        kind: ColumnKind::Text,
        unit: "",
        meaning,
        get,
    }
}

const fn count<R>(name: &'static str, meaning: &'static str, get: fn(&R) -> Cell) -> Metric<R> {
    Metric {
        name,
        kind: ColumnKind::Count,
        unit: "",
        meaning,
        get,
    }
}

const fn real<R>(
    name: &'static str,
    unit: &'static str,
    meaning: &'static str,
    get: fn(&R) -> Cell,
) -> Metric<R> {
    Metric {
        name,
        kind: ColumnKind::Real,
        unit,
        meaning,
        get,
    }
}

fn word(text: &str) -> Cell {
    Cell::Text(text.to_owned())
}

fn whole(value: impl Into<u64>) -> Cell {
    Cell::Count(i64::try_from(value.into()).unwrap_or(i64::MAX))
}

/// Share of all GPU-seconds of the step that go to causes which `counts` accepts.
fn share(report: &Report, counts: impl Fn(&str) -> bool) -> Cell {
    let found = report.waterfall.iter().filter(|loss| counts(&loss.cause));
    Cell::Real(found.map(|loss| loss.fraction).sum())
}

fn exposed(report: &Report, kind: &str) -> Cell {
    let prefix = format!("exposed_{kind}_");
    share(report, |cause| cause.starts_with(&prefix))
}

fn known(value: Option<f64>) -> Cell {
    value.map_or(Cell::Missing, Cell::Real)
}

fn economics(report: &Report, get: impl Fn(&Economics) -> Option<f64>) -> Cell {
    known(report.economics.as_ref().and_then(get))
}

fn run(report: &Report, get: impl Fn(&Run) -> Option<f64>) -> Cell {
    known(report.run.as_ref().and_then(get))
}

fn of_run(report: &Report, cause: &str) -> Cell {
    run(report, |run| {
        let found = run.waterfall.iter().find(|loss| loss.cause == cause);
        Some(found.map_or(0.0, |loss| loss.fraction))
    })
}

/// Effective FLOP/s of the mean rack.
fn rack_effective(report: &Report) -> f64 {
    let sum: f64 = report.racks.iter().map(|rack| rack.effective_flops).sum();
    sum / report.racks.len().max(1) as f64
}

/// Everything that is known of a case that ran, in the order of the table.
const METRICS: &[Metric<Report>] = &[
    text("model", "What is trained.", |r| word(&r.model.name)),
    real("parameters", "", "Parameters, all.", |r| {
        Cell::Real(r.model.parameters)
    }),
    real(
        "active_parameters",
        "",
        "Parameters that one token meets.",
        |r| Cell::Real(r.model.active_parameters),
    ),
    text("accelerator", "Catalogue name of the accelerator.", |r| {
        word(&r.cluster.accelerator)
    }),
    text("node", "Catalogue name of the node.", |r| {
        word(&r.cluster.node)
    }),
    text("fabric", "What connects the nodes.", |r| {
        word(&r.cluster.fabric)
    }),
    count("gpus", "Accelerators.", |r| whole(r.cluster.gpus)),
    count("racks", "Racks.", |r| whole(r.cluster.racks)),
    count("gpus_per_rack", "Accelerators in a full rack.", |r| {
        whole(r.cluster.gpus_per_rack)
    }),
    text("precision", "Number formats of the step.", |r| {
        word(&r.plan.precision)
    }),
    text("stack", "Software stack.", |r| word(&r.plan.stack)),
    text("schedule", "Pipeline schedule.", |r| word(&r.plan.schedule)),
    count("tensor", "Tensor-parallel ranks.", |r| whole(r.plan.tensor)),
    count("context", "Context-parallel ranks.", |r| {
        whole(r.plan.context)
    }),
    count("pipeline", "Pipeline stages.", |r| whole(r.plan.pipeline)),
    count("data", "Data-parallel ranks.", |r| whole(r.plan.data)),
    count("expert", "Expert-parallel ranks.", |r| whole(r.plan.expert)),
    count("zero", "ZeRO stage.", |r| whole(r.plan.zero)),
    count("sequence_length", "Tokens per sequence.", |r| {
        whole(r.plan.sequence_length)
    }),
    count("global_batch", "Sequences per step.", |r| {
        whole(r.plan.global_batch)
    }),
    count(
        "micro_batches",
        "Micro-batches per data-parallel rank and step.",
        |r| whole(r.plan.micro_batches),
    ),
    real("step_time_s", "s", "Wall time of one step.", |r| {
        Cell::Real(r.training.step_time_s)
    }),
    real(
        "tokens_per_s",
        "1/s",
        "Tokens per second while steps run.",
        |r| Cell::Real(r.training.tokens_per_s),
    ),
    real(
        "tokens_per_day",
        "1/d",
        "Tokens per day while steps run.",
        |r| Cell::Real(r.training.tokens_per_s * 86_400.0),
    ),
    real(
        "tokens_per_s_per_gpu",
        "1/s",
        "Tokens per second and GPU.",
        |r| Cell::Real(r.training.tokens_per_s_per_gpu),
    ),
    real(
        "tflops_per_gpu_causal",
        "TFLOP/s",
        "Model FLOP/s per GPU, causal attention.",
        |r| Cell::Real(r.training.model_tflops_per_gpu.causal),
    ),
    real(
        "tflops_per_gpu_noncausal",
        "TFLOP/s",
        "Model FLOP/s per GPU, attention over the full square.",
        |r| Cell::Real(r.training.model_tflops_per_gpu.noncausal),
    ),
    real(
        "mfu_bf16_causal",
        "",
        "MFU over the bf16 peak, causal attention.",
        |r| Cell::Real(r.training.mfu.bf16_causal),
    ),
    real(
        "mfu_bf16_noncausal",
        "",
        "MFU over the bf16 peak, full-square attention.",
        |r| Cell::Real(r.training.mfu.bf16_noncausal),
    ),
    real(
        "mfu_native_causal",
        "",
        "MFU over the peak of the format of the linear layers, causal attention.",
        |r| Cell::Real(r.training.mfu.native_causal),
    ),
    real(
        "mfu_native_noncausal",
        "",
        "MFU over the peak of the format of the linear layers, full-square attention.",
        |r| Cell::Real(r.training.mfu.native_noncausal),
    ),
    real(
        "hfu_bf16_noncausal",
        "",
        "HFU as the literature prints it.",
        |r| Cell::Real(r.training.hfu),
    ),
    real(
        "effective_flops",
        "FLOP/s",
        "Model FLOP/s of the whole cluster, causal attention.",
        |r| Cell::Real(r.racks.iter().map(|rack| rack.effective_flops).sum()),
    ),
    real(
        "effective_flops_per_rack",
        "FLOP/s",
        "Model FLOP/s of the mean rack, causal attention.",
        |r| Cell::Real(rack_effective(r)),
    ),
    real(
        "peak_flops_per_rack",
        "FLOP/s",
        "Dense peak of the mean rack in the format of the linear layers.",
        |r| {
            Cell::Real(
                r.racks.iter().map(|rack| rack.peak_flops).sum::<f64>()
                    / r.racks.len().max(1) as f64,
            )
        },
    ),
    real(
        "memory_bytes",
        "B",
        "Peak memory of one GPU of the fullest stage.",
        |r| Cell::Real(r.training.memory_per_gpu_bytes.total as f64),
    ),
    real("memory_capacity_bytes", "B", "Memory of one GPU.", |r| {
        Cell::Real(r.training.memory_per_gpu_bytes.capacity as f64)
    }),
    real(
        "share_useful",
        "",
        "Share of all GPU-seconds that is useful math at peak.",
        |r| share(r, |cause| family(cause) == Family::Useful),
    ),
    real(
        "share_math",
        "",
        "Share lost to math below peak, recomputation and launches.",
        |r| share(r, |cause| family(cause) == Family::Math),
    ),
    real(
        "share_exposed_tp",
        "",
        "Share lost waiting for tensor-parallel communication.",
        |r| exposed(r, "tp"),
    ),
    real(
        "share_exposed_cp",
        "",
        "Share lost waiting for context-parallel communication.",
        |r| exposed(r, "cp"),
    ),
    real(
        "share_exposed_ep",
        "",
        "Share lost waiting for expert dispatch and combine.",
        |r| exposed(r, "ep"),
    ),
    real(
        "share_exposed_pp",
        "",
        "Share lost waiting for another stage's activations on the wire.",
        |r| exposed(r, "pp"),
    ),
    real(
        "share_exposed_dp",
        "",
        "Share lost waiting for gradients and sharded parameters.",
        |r| exposed(r, "dp"),
    ),
    real(
        "share_bubble",
        "",
        "Share lost in the pipeline bubble.",
        |r| share(r, |cause| cause == "bubble"),
    ),
    real(
        "share_imbalance",
        "",
        "Share lost waiting for slower or fuller ranks.",
        |r| share(r, |cause| matches!(cause, "imbalance" | "straggler")),
    ),
    text(
        "largest_loss",
        "The cause that takes the largest share.",
        |r| {
            let losses = r
                .waterfall
                .iter()
                .filter(|loss| loss.cause != "useful_math");
            losses
                .max_by(|a, b| a.fraction.total_cmp(&b.fraction))
                .map_or(Cell::Missing, |loss| word(&loss.cause))
        },
    ),
    real(
        "kw_per_rack",
        "kW",
        "Power of a full rack under this load, without cooling.",
        |r| economics(r, |e| Some(e.kw_per_rack)),
    ),
    real(
        "facility_mw",
        "MW",
        "Power of the whole cluster under this load, with cooling.",
        |r| economics(r, |e| Some(e.facility_mw)),
    ),
    real(
        "joules_per_token",
        "J",
        "Energy per token while steps run, with cooling.",
        |r| economics(r, |e| Some(e.joules_per_token)),
    ),
    real(
        "usd_per_gpu_hour",
        "USD/h",
        "Cost of one accelerator.",
        |r| economics(r, |e| e.usd_per_gpu_hour),
    ),
    real(
        "usd_per_million_tokens",
        "USD",
        "Cost of a million tokens while steps run.",
        |r| economics(r, |e| e.usd_per_million_tokens),
    ),
    real(
        "goodput",
        "",
        "Useful time over wall time of the whole run, mean.",
        |r| run(r, |run| Some(run.goodput.mean)),
    ),
    real(
        "goodput_low",
        "",
        "Lower end of its 95 % confidence interval.",
        |r| run(r, |run| Some(run.goodput.low)),
    ),
    real(
        "goodput_high",
        "",
        "Upper end of its 95 % confidence interval.",
        |r| run(r, |run| Some(run.goodput.high)),
    ),
    real("ettr", "", "Effective training time ratio, mean.", |r| {
        run(r, |run| Some(run.ettr.mean))
    }),
    real(
        "effective_flops_of_run",
        "FLOP/s",
        "Model FLOP/s of the whole cluster over the run, causal attention: while steps run, times goodput.",
        |r| {
            let flops: f64 = r.racks.iter().map(|rack| rack.effective_flops).sum();
            run(r, |run| Some(flops * run.goodput.mean))
        },
    ),
    real(
        "mtbf_hours",
        "h",
        "Mean time between unexpected interruptions.",
        |r| run(r, |run| run.mtbf_hours),
    ),
    real(
        "interruptions",
        "",
        "Unexpected interruptions of the run, mean.",
        |r| run(r, |run| Some(run.interruptions.mean)),
    ),
    real(
        "checkpoint_interval_s",
        "s",
        "Between the starts of two checkpoints.",
        |r| {
            run(r, |run| {
                run.checkpoint.map(|checkpoint| checkpoint.interval_s)
            })
        },
    ),
    real(
        "tokens_trained",
        "",
        "Tokens trained and kept, mean.",
        |r| run(r, |run| Some(run.tokens.mean)),
    ),
    real(
        "days_to_train",
        "d",
        "Days from start to end of the run, mean.",
        |r| run(r, |run| Some(run.days.mean)),
    ),
    real(
        "mwh_to_train",
        "MWh",
        "Energy of the run, with cooling, mean.",
        |r| run(r, |run| Some(run.mwh)),
    ),
    real("usd_to_train", "USD", "Cost of the run, mean.", |r| {
        run(r, |run| run.usd)
    }),
    real(
        "loss",
        "nat",
        "Loss of the model after the run by the Chinchilla law (refit of 2024, active parameters).",
        |r| run(r, |run| Some(run.scaling_law.loss)),
    ),
    real(
        "optimal_loss",
        "nat",
        "Loss of the dense model that the same FLOPs serve best.",
        |r| run(r, |run| Some(run.scaling_law.compute_optimal.loss)),
    ),
    real(
        "share_of_run_checkpoint",
        "",
        "Share of the run's wall time that goes to checkpoints.",
        |r| of_run(r, "checkpoint"),
    ),
    real(
        "share_of_run_lost_work",
        "",
        "Share of the run's wall time that failures undid.",
        |r| of_run(r, "lost_work"),
    ),
    real(
        "share_of_run_idle",
        "",
        "Share of the run's wall time for detection, restarts and missing hosts.",
        |r| of_run(r, "idle"),
    ),
    count("events", "Events that the simulation handled.", |r| {
        whole(r.engine.events)
    }),
    count("seed", "Root of the random streams.", |r| {
        whole(r.engine.seed)
    }),
];

/// The first columns: which case it is, and how it ended.
const IDENTITY: [(&str, &str); 3] = [
    ("case", "Name of the case; its reports are in `cases/NAME`."),
    ("status", "`done` or `infeasible`."),
    ("reason", "Why it is infeasible."),
];

/// Everything that is known of a case that served, in the order of the table.
const SERVED: &[Metric<ServingReport>] = &[
    text("model", "What is served.", |r| word(&r.model.name)),
    text("accelerator", "Catalogue name of the accelerator.", |r| {
        word(&r.cluster.accelerator)
    }),
    text("node", "Catalogue name of the node.", |r| {
        word(&r.cluster.node)
    }),
    count("gpus", "Accelerators of the cluster.", |r| {
        whole(r.cluster.gpus)
    }),
    text("stack", "Serving stack of the last pool.", |r| {
        r.pools
            .last()
            .map_or(Cell::Missing, |pool| word(&pool.stack))
    }),
    real(
        "requests_per_s",
        "1/s",
        "Requests answered per second.",
        |r| Cell::Real(r.serving.requests_per_s),
    ),
    real(
        "output_tokens_per_s",
        "1/s",
        "Tokens of answers per second.",
        |r| Cell::Real(r.serving.output_tokens_per_s),
    ),
    real(
        "output_tokens_per_s_per_gpu",
        "1/s",
        "The same per GPU.",
        |r| Cell::Real(r.serving.output_tokens_per_s_per_gpu),
    ),
    real(
        "output_tokens_per_s_per_rack",
        "1/s",
        "The same per full rack.",
        |r| Cell::Real(r.serving.output_tokens_per_s_per_rack),
    ),
    real(
        "tokens_per_s_per_user",
        "1/s",
        "What one user sees: 1 over mean TPOT.",
        |r| Cell::Real(r.serving.tokens_per_s_per_user),
    ),
    real("ttft_mean_s", "s", "Time to the first token, mean.", |r| {
        Cell::Real(r.serving.ttft_s.mean)
    }),
    real(
        "ttft_p99_s",
        "s",
        "Time to the first token, 99th percentile.",
        |r| Cell::Real(r.serving.ttft_s.p99),
    ),
    real("tpot_mean_s", "s", "Time per token after it, mean.", |r| {
        Cell::Real(r.serving.tpot_s.mean)
    }),
    real(
        "tpot_p99_s",
        "s",
        "Time per token after it, 99th percentile.",
        |r| Cell::Real(r.serving.tpot_s.p99),
    ),
    real(
        "e2e_mean_s",
        "s",
        "From arrival to the last token, mean.",
        |r| Cell::Real(r.serving.e2e_s.mean),
    ),
    real(
        "e2e_p99_s",
        "s",
        "From arrival to the last token, 99th percentile.",
        |r| Cell::Real(r.serving.e2e_s.p99),
    ),
    real(
        "slo_attainment",
        "",
        "Share of requests inside every limit of `slo`.",
        |r| known(r.serving.slo_attainment),
    ),
    real("mfu_prefill", "", "MFU of steps with prompts.", |r| {
        known(r.serving.mfu.prefill)
    }),
    real("mfu_decode", "", "MFU of steps that only decode.", |r| {
        known(r.serving.mfu.decode)
    }),
    real(
        "mbu_prefill",
        "",
        "Memory-bandwidth utilisation of steps with prompts.",
        |r| known(r.serving.mbu.prefill),
    ),
    real(
        "mbu_decode",
        "",
        "Memory-bandwidth utilisation of steps that only decode.",
        |r| known(r.serving.mbu.decode),
    ),
    real(
        "kv_hit_rate",
        "",
        "Share of prompt tokens that HBM held.",
        |r| Cell::Real(r.serving.kv.hit_rate),
    ),
    real(
        "kv_occupancy_mean",
        "",
        "Share of the cache in use, mean.",
        |r| Cell::Real(r.serving.kv.occupancy_mean),
    ),
    count(
        "preemptions",
        "Requests whose blocks were taken away.",
        |r| whole(r.serving.kv.preemptions),
    ),
    count("requests_refused", "Requests turned away.", |r| {
        whole(r.serving.requests_refused)
    }),
    real(
        "usd_per_million_output_tokens",
        "USD",
        "Rent per million output tokens.",
        |r| known(r.serving.usd_per_million_output_tokens),
    ),
    real(
        "joules_per_output_token",
        "J",
        "Energy of the racks per output token.",
        |r| Cell::Real(r.serving.joules_per_output_token),
    ),
    real("share_idle", "", "Share of GPU time without a step.", |r| {
        let idle = r.waterfall.iter().filter(|loss| loss.cause == "idle");
        Cell::Real(idle.map(|loss| loss.fraction).sum())
    }),
    text(
        "largest_loss",
        "Machine name of the largest loss of the waterfall.",
        |r| {
            let losses = r
                .waterfall
                .iter()
                .filter(|loss| loss.cause != "useful_math");
            let largest = losses.max_by(|a, b| a.fraction.total_cmp(&b.fraction));
            largest.map_or(Cell::Missing, |loss| word(&loss.cause))
        },
    ),
    count("events", "Events that the simulation handled.", |r| {
        whole(r.engine.events)
    }),
    count("seed", "Root of the random streams.", |r| {
        whole(r.engine.seed)
    }),
];

// The number of cells tells rows of the two kinds apart.
const _: () = assert!(METRICS.len() != SERVED.len());

/// Every column of a sweep of training runs that varies `parameters`: identity, then one text column
/// for each parameter, then the metrics.
pub fn columns(parameters: &[String]) -> Vec<Column> {
    columns_of(parameters, METRICS)
}

/// The same of a sweep of services.
pub fn serving_columns(parameters: &[String]) -> Vec<Column> {
    columns_of(parameters, SERVED)
}

fn columns_of<R>(parameters: &[String], metrics: &[Metric<R>]) -> Vec<Column> {
    let fixed = |name: &str, kind, unit, meaning| Column {
        name: name.to_owned(),
        kind,
        unit,
        meaning,
    };
    let identity = IDENTITY
        .iter()
        .map(|(name, meaning)| fixed(name, ColumnKind::Text, "", *meaning));
    let chosen = parameters.iter().map(|name| {
        fixed(
            &parameter(name),
            ColumnKind::Text,
            "",
            "As the sweep says it.",
        )
    });
    let metrics = metrics
        .iter()
        .map(|m| fixed(m.name, m.kind, m.unit, m.meaning));
    identity.chain(chosen).chain(metrics).collect()
}

/// Name of the column of a parameter: never that of a metric.
fn parameter(name: &str) -> String {
    format!("sweep.{name}")
}

/// One row, under [`columns`] of the same parameters.
pub fn row(case: &CaseFacts<'_>, outcome: &Outcome<'_>, parameters: &[String]) -> Vec<Cell> {
    let (status, reason) = match outcome {
        Outcome::Done(_) | Outcome::Served(_) => ("done", Cell::Missing),
        Outcome::Infeasible(reason) | Outcome::Unserved(reason) => ("infeasible", word(reason)),
    };
    let mut cells = vec![word(case.name), word(status), reason];
    for name in parameters {
        let chosen = case.parameters.iter().find(|(path, _)| path == name);
        cells.push(chosen.map_or(Cell::Missing, |(_, value)| word(value)));
    }
    match outcome {
        Outcome::Done(report) => cells.extend(METRICS.iter().map(|metric| (metric.get)(report))),
        Outcome::Served(report) => cells.extend(SERVED.iter().map(|metric| (metric.get)(report))),
        Outcome::Infeasible(_) => cells.extend(METRICS.iter().map(|_| Cell::Missing)),
        Outcome::Unserved(_) => cells.extend(SERVED.iter().map(|_| Cell::Missing)),
    }
    cells
}

/// The columns as Markdown tables, for the documentation.
pub fn describe() -> String {
    format!(
        "{}\nOf services, after the same first columns:\n\n{}",
        described(columns(&[])),
        described(serving_columns(&[]).split_off(IDENTITY.len()))
    )
}

fn described(columns: Vec<Column>) -> String {
    let mut out = String::from("| column | type | unit | meaning |\n|---|---|---|---|\n");
    for column in columns {
        let kind = match column.kind {
            ColumnKind::Count => "int64",
            ColumnKind::Real => "double",
            ColumnKind::Text => "string",
        };
        out.push_str(&format!(
            "| `{}` | {kind} | {} | {} |\n",
            column.name, column.unit, column.meaning
        ));
    }
    out
}

/// A table of rows made by [`row`], all of training runs or all of services.
pub fn table(parameters: &[String], rows: Vec<Vec<Cell>>) -> Table {
    let served = IDENTITY.len() + parameters.len() + SERVED.len();
    let columns = if rows.first().is_some_and(|row| row.len() == served) {
        serving_columns(parameters)
    } else {
        columns(parameters)
    };
    Table { columns, rows }
}
