//! `rackflow validate kernels`: published timings of single kernels beside the cost model.
//!
//! An error is the logarithm of modelled over measured time. Rows of one engine share one source:
//! engines weigh alike, however many rows they have.

use super::options::prose;
use super::summary::{
    Scored, Summary, groups_json, percent, signed_percent, summary_json, summary_table,
};
use super::table::Columns;
use super::{Options, ValidateError, Validation};
use clap::Args;
use rackflow_scenario::Catalogue;
use rackflow_scenario::kernels::{self, Comparison, Kind, PublishedKernel};
use rackflow_units::counted;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Options of `rackflow validate kernels`.
#[derive(Debug, Clone, Default, Args)]
pub struct KernelArgs {
    /// What is compared, and how it is written
    #[command(flatten)]
    pub options: Options,
    /// Also a line for every row
    #[arg(long)]
    pub rows: bool,
}

/// Compares published timings with modelled ones and returns the text to print.
///
/// # Errors
/// When the data cannot be read, or when no row remains.
pub fn kernels(args: &KernelArgs) -> Result<String, ValidateError> {
    let rows = args.options.published(kernels::SHIPPED, kernels::read)?;
    let comparisons = Comparisons::of(rows, args)?;
    Ok(args.options.write(&comparisons))
}

/// A row with its comparisons, or with the reason why it has none.
struct Row {
    row: PublishedKernel,
    outcome: Result<Vec<Comparison>, kernels::LeftOut>,
}

struct Comparisons {
    rows: Vec<Row>,
    /// Whether the table has a line for each.
    show_rows: bool,
    ceiling: Vec<(&'static str, u32, f64)>,
}

/// A bound that the model is to keep.
struct Target {
    name: &'static str,
    /// Of the median absolute error.
    bound: f64,
    applies: fn(&PublishedKernel, &Comparison) -> bool,
}

const TARGETS: [Target; 3] = [
    Target {
        name: "GEMM in bf16 and fp8, m, n and k >= 1024",
        bound: 0.08,
        applies: |row, comparison| {
            let narrow = ["nvfp4", "int4_wo", "int8_wo"].contains(&comparison.precision.as_str());
            row.kind.family() == "gemm" && comparison.large && !narrow
        },
    },
    Target {
        name: "GEMM, all shapes and formats",
        bound: 0.15,
        applies: |row, _| row.kind.family() == "gemm",
    },
    Target {
        name: "attention",
        bound: 0.10,
        applies: |row, _| row.kind.family() == "attention",
    },
];

/// What a filter looks into.
fn fields(row: &PublishedKernel) -> Vec<&str> {
    let more = [&row.library, &row.format, &row.kv_format];
    let mut fields: Vec<&str> = more.into_iter().flatten().map(String::as_str).collect();
    fields.extend([&row.id, row.kind.name(), &row.citation, &row.accelerator]);
    fields
}

fn scored<'a>(row: &'a PublishedKernel, comparison: &'a Comparison) -> Scored<'a> {
    Scored {
        source: &comparison.source,
        accelerator: &comparison.accelerator,
        family: row.kind.family(),
        error: comparison.log_error,
    }
}

impl Comparisons {
    fn of(rows: Vec<PublishedKernel>, args: &KernelArgs) -> Result<Self, ValidateError> {
        let catalogue = Catalogue::builtin();
        let rows = args.options.keep(rows, fields)?.into_iter();
        let rows = rows
            .map(|row| Row {
                outcome: kernels::compare(&row, catalogue),
                row,
            })
            .collect();
        Ok(Self {
            rows,
            show_rows: args.rows,
            ceiling: kernels::exponent_ceiling(catalogue),
        })
    }

    fn compared(&self) -> impl Iterator<Item = (&PublishedKernel, &Comparison)> {
        self.rows.iter().flat_map(|row| {
            let comparisons = row.outcome.as_deref().unwrap_or_default();
            comparisons
                .iter()
                .map(move |comparison| (&row.row, comparison))
        })
    }

    fn scored(&self) -> Vec<Scored<'_>> {
        self.compared().map(|(row, c)| scored(row, c)).collect()
    }

    fn grouped<'a, K: Ord>(
        &'a self,
        key: impl Fn(&'a PublishedKernel, &'a Comparison) -> K,
    ) -> BTreeMap<K, Vec<Scored<'a>>> {
        let mut groups: BTreeMap<K, Vec<Scored<'_>>> = BTreeMap::new();
        for (row, comparison) in self.compared() {
            groups
                .entry(key(row, comparison))
                .or_default()
                .push(scored(row, comparison));
        }
        groups
    }

    fn by_kind(&self) -> BTreeMap<&str, Vec<Scored<'_>>> {
        self.grouped(|row, _| row.kind.name())
    }

    fn by_precision(&self) -> BTreeMap<&str, Vec<Scored<'_>>> {
        self.grouped(|_, comparison| comparison.precision.as_str())
    }

    /// Rows left out, by reason and detail.
    fn left_out(&self) -> BTreeMap<(&str, &str), usize> {
        let mut reasons = BTreeMap::new();
        for row in &self.rows {
            if let Err(left_out) = &row.outcome {
                *reasons
                    .entry((left_out.reason, left_out.detail.as_str()))
                    .or_insert(0) += 1;
            }
        }
        reasons
    }

    fn targets(&self) -> Vec<(&'static Target, Summary)> {
        TARGETS
            .iter()
            .filter_map(|target| {
                let rows: Vec<Scored<'_>> = self
                    .compared()
                    .filter(|(row, comparison)| (target.applies)(row, comparison))
                    .map(|(row, comparison)| scored(row, comparison))
                    .collect();
                Some((target, Summary::of(&rows)?))
            })
            .collect()
    }

    /// The error of each kind of kernel on each accelerator in each format.
    fn kind_table(&self) -> Columns {
        let mut table = Columns::new(&[
            "kind",
            "accelerator",
            "format",
            "rows",
            "median |log error|",
            "p90 |log error|",
            "bias",
        ]);
        let groups = self.grouped(|row, comparison| {
            (
                row.kind,
                comparison.accelerator.as_str(),
                comparison.precision.as_str(),
            )
        });
        for ((kind, accelerator, precision), rows) in groups {
            let kind: Kind = kind;
            if let Some(summary) = Summary::of(&rows) {
                table.push(vec![
                    kind.name().to_owned(),
                    accelerator.to_owned(),
                    precision.to_owned(),
                    summary.rows.to_string(),
                    percent(summary.median),
                    percent(summary.p90),
                    signed_percent(summary.bias),
                ]);
            }
        }
        table
    }

    fn overview(&self) -> Columns {
        let kinds = self.by_kind();
        let formats = self.by_precision();
        let mut more: Vec<(&str, &str, Vec<Scored<'_>>)> = Vec::new();
        more.extend(
            kinds
                .iter()
                .map(|(name, rows)| ("kind", *name, rows.clone())),
        );
        more.extend(
            formats
                .iter()
                .map(|(name, rows)| ("format", *name, rows.clone())),
        );
        summary_table(&self.scored(), &more)
    }

    fn target_table(&self) -> Columns {
        let mut table = Columns::new(&["target", "rows", "median |log error|", "bound", ""]);
        for (target, summary) in self.targets() {
            table.push(vec![
                target.name.to_owned(),
                summary.rows.to_string(),
                percent(summary.median),
                percent(target.bound),
                if summary.median <= target.bound {
                    "met"
                } else {
                    "missed"
                }
                .to_owned(),
            ]);
        }
        table
    }

    fn ceiling_table(&self) -> Columns {
        let mut table = Columns::new(&["causal prefill, bf16", "exponentials/SM/clock", "TFLOP/s"]);
        for (name, exponentials, rate) in &self.ceiling {
            table.push(vec![
                (*name).to_owned(),
                exponentials.to_string(),
                format!("{rate:.0}"),
            ]);
        }
        table
    }

    /// Every figure, in a table for each kind of kernel.
    fn row_tables(&self) -> BTreeMap<Kind, Columns> {
        let mut tables: BTreeMap<Kind, Columns> = BTreeMap::new();
        for (row, comparison) in self.compared() {
            let table = tables.entry(row.kind).or_insert_with(|| {
                Columns::new(&[
                    "row", "source", "chip", "format", "what", "measured", "modelled", "unit",
                    "error",
                ])
                .sparing(&["source", "format"])
            });
            table.push(vec![
                row.id.clone(),
                comparison.source.clone(),
                comparison.accelerator.clone(),
                comparison.precision.clone(),
                comparison.what.clone(),
                four_digits(comparison.measured),
                four_digits(comparison.modelled),
                comparison.unit.to_owned(),
                signed_percent(comparison.log_error),
            ]);
        }
        tables
    }

    fn footer(&self) -> String {
        let left_out = self.left_out();
        let mut out = String::new();
        let rows = self.rows.iter().filter(|row| row.outcome.is_ok()).count();
        let _ = writeln!(
            out,
            "Compared: {} of {}. Left out: {}.",
            counted(self.compared().count() as u64, "figure"),
            counted(rows as u64, "row"),
            counted(left_out.values().sum::<usize>() as u64, "row")
        );
        for ((reason, detail), count) in left_out {
            let _ = writeln!(out, "  {count:>4}  {reason}: {detail}");
        }
        out
    }
}

impl Validation for Comparisons {
    fn to_json(&self) -> Value {
        let mut summary = summary_json(&self.scored());
        summary["by_kind"] = groups_json(&self.by_kind());
        summary["by_precision"] = groups_json(&self.by_precision());
        json!({
            "schema_version": 1,
            "command": "validate kernels",
            "summary": summary,
            "targets": self.targets().iter().map(|(target, summary)| json!({
                "name": target.name,
                "bound": target.bound,
                "rows": summary.rows,
                "median_abs_error": summary.median,
                "met": summary.median <= target.bound,
            })).collect::<Vec<_>>(),
            "exponent_ceiling": self.ceiling.iter().map(|(name, exponentials, rate)| json!({
                "accelerator": name,
                "exponentials_per_sm_clock": exponentials,
                "tflops": rate,
            })).collect::<Vec<_>>(),
            "rows": self.compared().map(|(row, comparison)| json!({
                "id": row.id,
                "kind": row.kind,
                "source": comparison.source,
                "accelerator": comparison.accelerator,
                "precision": comparison.precision,
                "what": comparison.what,
                "unit": comparison.unit,
                "measured": comparison.measured,
                "modelled": comparison.modelled,
                "log_error": comparison.log_error,
                "citation": row.citation,
            })).collect::<Vec<_>>(),
            "left_out": self.rows.iter().filter_map(|row| {
                let left_out = row.outcome.as_ref().err()?;
                Some(json!({
                    "id": row.row.id, "reason": left_out.reason, "detail": left_out.detail,
                }))
            }).collect::<Vec<_>>(),
        })
    }

    fn to_table(&self, page: usize) -> String {
        let mut out = String::new();
        if self.show_rows {
            for (kind, table) in self.row_tables() {
                let table = table.aligned(5, page);
                let _ = writeln!(out, "{}\n\n{table}", kind.name());
            }
        }
        let tables = [
            self.kind_table().aligned(3, page),
            self.overview().aligned(1, page),
            self.ceiling_table().aligned(1, page),
            self.target_table().aligned(1, page),
        ];
        out.push_str(&tables.join("\n"));
        out.push('\n');
        let about = "Error is the natural logarithm of modelled over measured time: near 0.1 it is a tenth. Engines \
             and authors weigh alike.\n";
        out.push_str(&prose(&(self.footer() + about), page));
        out
    }

    fn to_markdown(&self) -> String {
        let mut out = String::from("### Targets\n\n");
        out.push_str(&self.target_table().markdown(1));
        out.push_str("\n### Error by kind, accelerator and format\n\n");
        out.push_str(&self.kind_table().markdown(3));
        out.push_str("\n### Error by accelerator, source, family, kind and format\n\n");
        out.push_str(&self.overview().markdown(1));
        out.push_str("\n### Rows left out\n\n```text\n");
        out.push_str(&self.footer());
        out.push_str("```\n");
        out
    }
}

/// A positive number with four significant digits.
fn four_digits(value: f64) -> String {
    let digits = (3 - value.abs().max(1e-3).log10().floor() as i32).max(0) as usize;
    format!("{value:.digits$}")
}
