//! `rackflow validate collectives`: published timings of collectives beside simulated ones.
//!
//! An error is the logarithm of simulated over measured time. Sizes from 1 MiB on and below are
//! summed up apart: one is about links, the other about launches and latencies.

use super::options::prose;
use super::summary::{
    Scored, Summary, grouped, groups_json, percent, signed_percent, summary_json, summary_table,
};
use super::table::Columns;
use super::{Options, ValidateError, Validation};
use clap::Args;
use rackflow_scenario::collectives::{
    self, Kernels, Launch, PublishedCollective, What, deepseek_v3,
};
use rackflow_simulator::collective::{
    Algorithm, CollectiveOp, ExpertKernels, Experts, Group, HOST_LAUNCH, Measurement, Operation,
    TIMED_LAUNCH,
};
use rackflow_units::Bytes;
use rackflow_units::counted;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Options of `rackflow validate collectives`.
#[derive(Debug, Clone, Default, Args)]
pub struct CollectivesArgs {
    /// What is compared, and how it is written
    #[command(flatten)]
    pub options: Options,
    /// Also a line for every row
    #[arg(long)]
    pub rows: bool,
}

/// Compares published timings with simulated ones and returns the text to print.
///
/// # Errors
/// When the data cannot be read, or when no row remains.
pub fn collectives(args: &CollectivesArgs) -> Result<String, ValidateError> {
    let rows = args
        .options
        .published(collectives::SHIPPED, collectives::read)?;
    let comparisons = Comparisons::of(rows, args)?;
    Ok(args.options.write(&comparisons))
}

/// The size at which an asymptote is read: beyond it no curve of the set rises.
const ASYMPTOTE: u64 = 16 << 30;
/// Where links begin to matter more than latencies.
const LARGE: u64 = 1 << 20;

/// One comparison.
struct Row {
    row: PublishedCollective,
    accelerator: String,
    operation: String,
    measured_us: f64,
    simulated: Measurement,
    simulated_us: f64,
}

impl Row {
    fn error(&self) -> f64 {
        (self.simulated_us / self.measured_us).ln()
    }

    fn scored(&self) -> Scored<'_> {
        Scored {
            source: &self.row.source,
            accelerator: &self.accelerator,
            family: &self.operation,
            error: self.error(),
        }
    }

    fn large(&self) -> bool {
        self.simulated.bytes.get() >= LARGE
    }

    /// Accelerators, servers and what connects them.
    fn system(&self) -> String {
        let fabric = match (self.row.nodes, self.row.fabric.as_deref()) {
            (Some(nodes), Some(fabric)) if nodes > 1 => format!(", {fabric}"),
            _ => String::new(),
        };
        let size = |gpus: u32| match gpus {
            0..=8 => "up to 8".to_owned(),
            _ => gpus.to_string(),
        };
        format!("{} {}{fabric}", size(self.row.gpus), self.accelerator)
    }
}

/// A row that cannot be compared.
struct LeftOut {
    row: PublishedCollective,
    reason: &'static str,
}

struct Comparisons {
    rows: Vec<Row>,
    /// Whether the table has a line for each.
    show_rows: bool,
    left_out: Vec<LeftOut>,
}

/// What a filter looks into.
fn fields(row: &PublishedCollective) -> Vec<&str> {
    let mut fields: Vec<&str> = row.fabric.as_deref().into_iter().collect();
    fields.extend([&row.id, &row.source, &row.gpu, &row.operation].map(String::as_str));
    fields
}

/// Tokens of DeepSeek-V3, by which kernels, out (fp8 or bf16) or back (bf16).
fn experts(kernels: Kernels, eight_bit: bool) -> Experts {
    let hidden = deepseek_v3::HIDDEN;
    Experts {
        experts: deepseek_v3::EXPERTS,
        top_k: deepseek_v3::TOP_K,
        bytes_per_token: Bytes::new(if eight_bit {
            hidden + hidden / 128 * 4
        } else {
            2 * hidden
        }),
        max_domains: Some(deepseek_v3::GROUPS),
        kernels: match kernels {
            Kernels::Relayed => ExpertKernels::Normal,
            Kernels::LowLatency => ExpertKernels::LowLatency,
            Kernels::OneSided => ExpertKernels::OneSided,
        },
    }
}

fn operation(row: &PublishedCollective, what: What) -> (Operation, &'static str) {
    let named = |op, name| (Operation::Collective(op), name);
    match what {
        What::AllReduce => named(CollectiveOp::AllReduce, "all-reduce"),
        What::AllGather => named(CollectiveOp::AllGather, "all-gather"),
        What::ReduceScatter => named(CollectiveOp::ReduceScatter, "reduce-scatter"),
        What::AllToAll => named(CollectiveOp::AllToAll, "all-to-all"),
        What::Dispatch(kernels) => {
            let eight_bit = row.dtype.as_deref() != Some("bf16");
            (Operation::Dispatch(experts(kernels, eight_bit)), "dispatch")
        }
        What::Combine(kernels) => (Operation::Combine(experts(kernels, false)), "combine"),
    }
}

/// The number before "tok/batch" in a remark.
fn tokens(row: &PublishedCollective) -> Option<u64> {
    let note = row.note.as_deref()?;
    row.tokens_per_rank
        .or_else(|| note.split(" tok/batch").next()?.parse().ok())
}

/// The library's algorithm where the row names one that was forced; a list or a general name is
/// no choice.
fn forced(row: &PublishedCollective, group: &Group) -> Option<Algorithm> {
    let in_switch = if group.domains() > 1 {
        Algorithm::InSwitchTree
    } else {
        Algorithm::InSwitch
    };
    match row.algorithm.as_deref()? {
        "Ring" => Some(Algorithm::Ring),
        "NVLSTree" => Some(in_switch),
        "SHARP" => Some(Algorithm::InNetwork),
        // Measured where NVLS is enabled: small sizes may still take another.
        _ => None,
    }
}

fn compare(row: PublishedCollective) -> Result<Row, Box<LeftOut>> {
    let refuse = |row, reason| Err(Box::new(LeftOut { row, reason }));
    let Some(what) = row.what() else {
        return refuse(
            row,
            "no collective: a copy or a transfer of another library",
        );
    };
    let Some(cluster) = row.hardware() else {
        return refuse(row, "the catalogue has no such node");
    };
    let Ok(group) = Group::new(&cluster, row.gpus) else {
        return refuse(row, "the cluster cannot be built");
    };
    let (operation, name) = operation(&row, what);
    let bytes = match operation {
        Operation::Collective(_) => row.bytes.unwrap_or(ASYMPTOTE),
        Operation::Dispatch(experts) | Operation::Combine(experts) => {
            let Some(tokens) = tokens(&row) else {
                return refuse(row, "no number of tokens");
            };
            tokens * experts.bytes_per_token.get()
        }
    };
    let algorithm = forced(&row, &group);
    let measure = |algorithm| group.measure(operation, Bytes::new(bytes), algorithm, None);
    let Some(mut simulated) = measure(algorithm).or_else(|| measure(None)) else {
        return refuse(row, "no algorithm serves it");
    };
    simulated = match row.launch() {
        Launch::Ahead => simulated,
        Launch::Host => simulated.no_faster_than(HOST_LAUNCH),
        Launch::Each => simulated.after(TIMED_LAUNCH),
    };
    let Some(measured_us) = measured_us(&row, operation, &group, &simulated) else {
        return refuse(row, "neither a time nor a bandwidth");
    };
    let simulated_us = simulated.time.as_secs_f64() * 1e6;
    Ok(Row {
        accelerator: cluster.node.accelerator.name,
        operation: name.to_owned(),
        measured_us,
        simulated,
        simulated_us,
        row,
    })
}

/// The published time, or the time that the published bandwidth comes to.
fn measured_us(
    row: &PublishedCollective,
    operation: Operation,
    group: &Group,
    simulated: &Measurement,
) -> Option<f64> {
    let bytes = simulated.bytes.as_f64();
    let positive = |us: f64| (us.is_finite() && us > 0.0).then_some(us);
    row.time_us.and_then(positive).or_else(|| match operation {
        Operation::Collective(op) => {
            positive(bytes * op.bus_factor(row.gpus) / (row.busbw_gb_per_s? * 1e3))
        }
        // DeepEP counts what a rank receives, its own part among it: over NVLink one copy for each
        // rank that a token visits, over the NICs one for each domain.
        Operation::Dispatch(experts) | Operation::Combine(experts) => {
            let copies = group.copies(experts);
            positive(bytes * copies / (row.bandwidth_gb_per_s? * 1e3))
        }
    })
}

impl Comparisons {
    fn of(rows: Vec<PublishedCollective>, args: &CollectivesArgs) -> Result<Self, ValidateError> {
        let mut comparisons = Self {
            rows: Vec::new(),
            show_rows: args.rows,
            left_out: Vec::new(),
        };
        for row in args.options.keep(rows, fields)? {
            match compare(row) {
                Ok(row) => comparisons.rows.push(row),
                Err(left_out) => comparisons.left_out.push(*left_out),
            }
        }
        Ok(comparisons)
    }

    fn scored(&self, large: Option<bool>) -> Vec<Scored<'_>> {
        self.rows
            .iter()
            .filter(|row| large.is_none_or(|large| row.large() == large))
            .map(Row::scored)
            .collect()
    }

    fn by_system(&self) -> BTreeMap<(String, &str), Vec<&Row>> {
        let mut systems: BTreeMap<(String, &str), Vec<&Row>> = BTreeMap::new();
        for row in &self.rows {
            let key = (row.system(), row.operation.as_str());
            systems.entry(key).or_default().push(row);
        }
        systems
    }

    fn reasons(&self) -> BTreeMap<&str, usize> {
        let mut reasons = BTreeMap::new();
        for left_out in &self.left_out {
            *reasons.entry(left_out.reason).or_insert(0) += 1;
        }
        reasons
    }

    /// One line per system and operation: rows, median and 90th percentile, from 1 MiB and below.
    fn system_table(&self) -> Columns {
        let mut table = Columns::new(&[
            "system",
            "operation",
            "rows >= 1 MiB",
            "median",
            "p90",
            "bias",
            "rows < 1 MiB",
            "median",
            "p90",
            "bias",
        ]);
        for ((system, operation), rows) in self.by_system() {
            let mut cells = vec![system, operation.to_owned()];
            for large in [true, false] {
                let scored: Vec<Scored<'_>> = rows
                    .iter()
                    .filter(|row| row.large() == large)
                    .map(|row| row.scored())
                    .collect();
                cells.extend(match Summary::of(&scored) {
                    Some(summary) => [
                        summary.rows.to_string(),
                        percent(summary.median),
                        percent(summary.p90),
                        signed_percent(summary.bias),
                    ],
                    None => ["0", "-", "-", "-"].map(str::to_owned),
                });
            }
            table.push(cells);
        }
        table
    }

    fn overview(&self) -> Columns {
        summary_table(
            &self.scored(None),
            &[
                ("sizes", "from 1 MiB", self.scored(Some(true))),
                ("sizes", "below 1 MiB", self.scored(Some(false))),
            ],
        )
    }

    fn row_table(&self) -> Columns {
        let mut table = Columns::new(&[
            "row",
            "source",
            "accelerator",
            "operation",
            "algorithm",
            "GPUs",
            "bytes",
            "measured us",
            "simulated us",
            "log error",
        ]);
        for row in &self.rows {
            table.push(vec![
                row.row.id.clone(),
                row.row.source.clone(),
                row.accelerator.clone(),
                row.operation.clone(),
                format!("{} {}", row.simulated.algorithm, row.simulated.protocol),
                row.row.gpus.to_string(),
                row.simulated.bytes.get().to_string(),
                format!("{:.1}", row.measured_us),
                format!("{:.1}", row.simulated_us),
                signed_percent(row.error()),
            ]);
        }
        table.sparing(&["source", "algorithm"])
    }

    fn footer(&self) -> String {
        let mut out = String::new();
        for (name, large) in [("From 1 MiB", true), ("Below 1 MiB", false)] {
            let rows = self.scored(Some(large));
            if !rows.is_empty() {
                let _ = writeln!(
                    out,
                    "{name}, every row weighing alike: median |log error| {} over {} rows.",
                    percent(unweighted(&rows)),
                    rows.len()
                );
            }
        }
        let _ = writeln!(
            out,
            "Compared: {}. Left out: {}.",
            counted(self.rows.len() as u64, "row"),
            self.left_out.len()
        );
        for (reason, count) in self.reasons() {
            let _ = writeln!(out, "  {count:>4}  {reason}");
        }
        out
    }
}

impl Validation for Comparisons {
    fn to_json(&self) -> Value {
        let part = |large| {
            let rows = self.scored(Some(large));
            let mut part = Summary::of(&rows).map_or(Value::Null, Summary::to_json);
            if !rows.is_empty() {
                part["unweighted_median_abs_error"] = json!(unweighted(&rows));
                part["by_accelerator"] = groups_json(&grouped(&rows, |row| row.accelerator));
                part["by_source"] = groups_json(&grouped(&rows, |row| row.source));
            }
            part
        };
        let mut summary = summary_json(&self.scored(None));
        summary["from_1_mib"] = part(true);
        summary["below_1_mib"] = part(false);
        json!({
            "schema_version": 1,
            "command": "validate collectives",
            "summary": summary,
            "rows": self.rows.iter().map(|row| json!({
                "id": row.row.id,
                "source": row.row.source,
                "accelerator": row.accelerator,
                "gpus": row.row.gpus,
                "operation": row.operation,
                "bytes": row.simulated.bytes.get(),
                "measured_us": row.measured_us,
                "simulated_us": row.simulated_us,
                "log_error": row.error(),
                "algorithm": row.simulated.algorithm.to_string(),
                "protocol": row.simulated.protocol.to_string(),
                "citation": row.row.citation,
            })).collect::<Vec<_>>(),
            "left_out": self.left_out.iter().map(|left_out| json!({
                "id": left_out.row.id,
                "source": left_out.row.source,
                "reason": left_out.reason,
            })).collect::<Vec<_>>(),
        })
    }

    fn to_table(&self, page: usize) -> String {
        let mut out = String::new();
        if self.show_rows {
            out.push_str(&self.row_table().aligned(5, page));
            out.push('\n');
        }
        out.push_str(&self.system_table().aligned(2, page));
        out.push('\n');
        out.push_str(&self.overview().aligned(1, page));
        out.push('\n');
        let about = "Error is the logarithm of simulated over measured time. Each source weighs alike in the summary.\n";
        out.push_str(&prose(&(self.footer() + about), page));
        out
    }

    fn to_markdown(&self) -> String {
        let mut out = self.system_table().markdown(2);
        out.push('\n');
        out.push_str(&self.overview().markdown(1));
        let _ = write!(out, "\n```text\n{}```\n", self.footer());
        out
    }
}

/// The median absolute error with every row weighing alike.
fn unweighted(rows: &[Scored<'_>]) -> f64 {
    let errors = rows.iter().map(|row| (row.error.abs(), 1.0)).collect();
    super::summary::weighted_quantile(errors, 0.5)
}
