//! `rackflow validate kernels`: published timings of single kernels beside the cost model.
//!
//! An error is the logarithm of modelled over measured time. Rows of one engine share one source:
//! engines weigh alike, however many rows they have.

use super::summary::{
    Columns, Scored, Summary, groups_json, percent, signed_percent, summary_json, summary_table,
};
use super::{Format, ValidateError};
use clap::Args;
use rackflow_scenario::Catalogue;
use rackflow_scenario::kernels::{self, Comparison, Kind, PublishedKernel};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Options of `rackflow validate kernels`.
#[derive(Debug, Clone, Default, Args)]
pub struct KernelArgs {
    /// Published timings to compare with, as JSON Lines [default: those that ship with Rackflow]
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// How the result is written
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Only rows whose name, kind, source, accelerator, library or format contains this text
    #[arg(long, value_name = "SUBSTRING")]
    pub filter: Option<String>,
    /// Also a line for every row
    #[arg(long)]
    pub rows: bool,
}

/// Compares published timings with modelled ones and returns the text to print.
///
/// # Errors
/// When the data cannot be read, or when no row remains.
pub fn kernels(args: &KernelArgs) -> Result<String, ValidateError> {
    let text = match &args.data {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| ValidateError::File(path.clone(), error))?,
        None => kernels::SHIPPED.to_owned(),
    };
    let shown = args
        .data
        .clone()
        .unwrap_or_else(|| PathBuf::from("shipped timings"));
    let rows = kernels::read(&text).map_err(|error| ValidateError::Line(shown, error))?;
    let validation = Validation::of(rows, args)?;
    Ok(match args.format {
        Format::Json => format!("{:#}\n", validation.to_json()),
        Format::Markdown => validation.to_markdown(),
        Format::Table => validation.to_table(args.rows),
    })
}

/// A row with its comparisons, or with the reason why it has none.
struct Row {
    row: PublishedKernel,
    outcome: Result<Vec<Comparison>, kernels::LeftOut>,
}

struct Validation {
    rows: Vec<Row>,
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

fn matches(row: &PublishedKernel, text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    [
        Some(row.id.as_str()),
        Some(row.kind.name()),
        Some(row.citation.as_str()),
        Some(row.accelerator.as_str()),
        row.library.as_deref(),
        row.format.as_deref(),
        row.kv_format.as_deref(),
    ]
    .iter()
    .flatten()
    .any(|field| field.to_ascii_lowercase().contains(&text))
}

fn scored<'a>(row: &'a PublishedKernel, comparison: &'a Comparison) -> Scored<'a> {
    Scored {
        source: &comparison.source,
        accelerator: &comparison.accelerator,
        family: row.kind.family(),
        error: comparison.log_error,
    }
}

impl Validation {
    fn of(rows: Vec<PublishedKernel>, args: &KernelArgs) -> Result<Self, ValidateError> {
        let catalogue = Catalogue::builtin();
        let rows: Vec<Row> = rows
            .into_iter()
            .filter(|row| args.filter.as_deref().is_none_or(|text| matches(row, text)))
            .map(|row| Row {
                outcome: kernels::compare(&row, catalogue),
                row,
            })
            .collect();
        if rows.is_empty() {
            return Err(ValidateError::NoRows(match &args.filter {
                Some(text) => format!("no row contains \"{text}\""),
                None => "the file has no rows".to_owned(),
            }));
        }
        Ok(Self {
            rows,
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

    fn row_table(&self) -> Columns {
        let mut table = Columns::new(&[
            "row",
            "kind",
            "source",
            "accelerator",
            "format",
            "what",
            "measured",
            "modelled",
            "unit",
            "log error",
        ]);
        for (row, comparison) in self.compared() {
            table.push(vec![
                row.id.clone(),
                row.kind.name().to_owned(),
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
        table
    }

    fn footer(&self) -> String {
        let left_out = self.left_out();
        let mut out = String::new();
        let rows = self.rows.iter().filter(|row| row.outcome.is_ok()).count();
        let _ = writeln!(
            out,
            "Compared: {} figures of {rows} rows. Left out: {} rows.",
            self.compared().count(),
            left_out.values().sum::<usize>()
        );
        for ((reason, detail), count) in left_out {
            let _ = writeln!(out, "  {count:>4}  {reason}: {detail}");
        }
        out
    }

    fn to_table(&self, rows: bool) -> String {
        let mut out = String::new();
        if rows {
            out.push_str(&self.row_table().aligned(6));
            out.push('\n');
        }
        let tables = [
            self.kind_table().aligned(3),
            self.overview().aligned(1),
            self.ceiling_table().aligned(1),
            self.target_table().aligned(1),
        ];
        out.push_str(&tables.join("\n"));
        out.push('\n');
        out.push_str(&self.footer());
        out.push_str(
            "Error is the natural logarithm of modelled over measured time: near 0.1 it is a tenth. Engines \
             and authors weigh alike.\n",
        );
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
