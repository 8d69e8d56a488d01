//! What every validation computes from its rows: errors by source, accelerator and family, sources
//! weighing alike, as a table, as Markdown and as JSON.

use super::table::Columns;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// One comparison: what it belongs to, and how far the simulation is from what was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored<'a> {
    /// Who measured: rows of one source share their habits, and a weight of one.
    pub source: &'a str,
    /// The accelerator.
    pub accelerator: &'a str,
    /// `dense` or `moe`; the kind of kernel, of collective or of serving run.
    pub family: &'a str,
    /// A fraction: simulated over measured, minus one, or its logarithm. Positive: too slow.
    pub error: f64,
}

/// The error of a group of rows, sources weighing alike. All errors are fractions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Rows in the group.
    pub rows: usize,
    /// Median of the absolute error.
    pub median: f64,
    /// 90th percentile of the absolute error.
    pub p90: f64,
    /// Median of the signed error.
    pub bias: f64,
}

impl Summary {
    /// Each source has a total weight of one, spread evenly over its rows in the group. `None`
    /// without rows.
    pub fn of(rows: &[Scored<'_>]) -> Option<Self> {
        if rows.is_empty() {
            return None;
        }
        let mut per_source: BTreeMap<&str, usize> = BTreeMap::new();
        for row in rows {
            *per_source.entry(row.source).or_insert(0) += 1;
        }
        let weighted = |error: &dyn Fn(f64) -> f64| -> Vec<(f64, f64)> {
            rows.iter()
                .map(|row| (error(row.error), 1.0 / per_source[row.source] as f64))
                .collect()
        };
        Some(Self {
            rows: rows.len(),
            median: weighted_quantile(weighted(&f64::abs), 0.5),
            p90: weighted_quantile(weighted(&f64::abs), 0.9),
            bias: weighted_quantile(weighted(&|error| error), 0.5),
        })
    }

    /// `{rows, median_abs_error, p90_abs_error, bias}`.
    pub fn to_json(self) -> Value {
        json!({
            "rows": self.rows,
            "median_abs_error": self.median,
            "p90_abs_error": self.p90,
            "bias": self.bias,
        })
    }
}

/// The smallest value at which the weights of the values up to it reach `share` of all weights;
/// half way to the next value where they reach it exactly.
pub fn weighted_quantile(mut values: Vec<(f64, f64)>, share: f64) -> f64 {
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    let target = share * values.iter().map(|(_, weight)| weight).sum::<f64>();
    let mut reached = 0.0;
    for (index, (value, weight)) in values.iter().enumerate() {
        reached += weight;
        if (reached - target).abs() < 1e-9 * target
            && let Some((next, _)) = values.get(index + 1)
        {
            return f64::midpoint(*value, *next);
        }
        if reached >= target {
            return *value;
        }
    }
    values.last().map_or(0.0, |(value, _)| *value)
}

/// Rows by a name of theirs, in its order.
pub fn grouped<'a>(
    rows: &[Scored<'a>],
    name: impl Fn(&Scored<'a>) -> &'a str,
) -> BTreeMap<&'a str, Vec<Scored<'a>>> {
    let mut groups: BTreeMap<&str, Vec<Scored<'_>>> = BTreeMap::new();
    for row in rows {
        groups.entry(name(row)).or_default().push(*row);
    }
    groups
}

/// The same summary of each group, by its name.
pub fn groups_json(groups: &BTreeMap<&str, Vec<Scored<'_>>>) -> Value {
    groups
        .iter()
        .filter_map(|(name, rows)| Some(((*name).to_owned(), Summary::of(rows)?.to_json())))
        .collect::<Map<_, _>>()
        .into()
}

/// The object that every `validate` command prints as `summary`: exactly `{rows,
/// median_abs_error, p90_abs_error, bias, by_source, by_accelerator, by_family}`.
pub fn summary_json(rows: &[Scored<'_>]) -> Value {
    let mut summary = Summary::of(rows).map_or_else(
        || json!({ "rows": 0, "median_abs_error": null, "p90_abs_error": null, "bias": null }),
        Summary::to_json,
    );
    summary["by_source"] = groups_json(&grouped(rows, |row| row.source));
    summary["by_accelerator"] = groups_json(&grouped(rows, |row| row.accelerator));
    summary["by_family"] = groups_json(&grouped(rows, |row| row.family));
    summary
}

/// The table of errors: one line for each accelerator, source and family, then for each group of
/// `more` (what kind it is, its name, its rows), and for all.
pub fn summary_table(rows: &[Scored<'_>], more: &[(&str, &str, Vec<Scored<'_>>)]) -> Columns {
    let mut table = Columns::new(&["", "rows", "median |error|", "p90 |error|", "bias"]);
    let mut push = |name: String, rows: &[Scored<'_>]| {
        if let Some(summary) = Summary::of(rows) {
            table.push(vec![
                name,
                summary.rows.to_string(),
                percent(summary.median),
                percent(summary.p90),
                signed_percent(summary.bias),
            ]);
        }
    };
    let sections = [
        ("accelerator", grouped(rows, |row| row.accelerator)),
        ("source", grouped(rows, |row| row.source)),
        ("family", grouped(rows, |row| row.family)),
    ];
    for (kind, groups) in &sections {
        for (name, rows) in groups {
            push(format!("{kind} {name}"), rows);
        }
    }
    for (kind, name, rows) in more {
        push(format!("{kind} {name}").trim().to_owned(), rows);
    }
    push("all, sources weighing alike".to_owned(), rows);
    table
}

/// A fraction as a percentage with one digit.
pub fn percent(fraction: f64) -> String {
    format!("{:.1} %", 100.0 * fraction)
}

/// The same with its sign.
pub fn signed_percent(fraction: f64) -> String {
    format!("{:+.1} %", 100.0 * fraction)
}

/// Seconds with four significant digits.
pub fn seconds(value: f64) -> String {
    let digits = if value >= 100.0 {
        1
    } else if value >= 10.0 {
        2
    } else {
        3
    };
    format!("{value:.digits$}")
}

/// The text, or a dash where there is none.
pub fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_lies_half_way_where_the_weights_meet_it() {
        let check = |values: &[(f64, f64)], share, expected: f64| {
            let found = weighted_quantile(values.to_vec(), share);
            assert!(
                (found - expected).abs() < 1e-12,
                "{found} instead of {expected}"
            );
        };
        check(&[(1.0, 1.0), (2.0, 1.0), (3.0, 1.0)], 0.5, 2.0);
        check(&[(4.0, 1.0), (1.0, 1.0), (2.0, 1.0), (3.0, 1.0)], 0.5, 2.5);
        check(&[(7.0, 1.0)], 0.9, 7.0);
        // Ten rows of one source weigh as much as one row of another.
        let mut rows = vec![(0.0, 0.1); 10];
        rows.push((1.0, 1.0));
        rows.push((1.0, 1.0));
        check(&rows, 0.5, 1.0);
    }

    #[test]
    fn a_summary_has_the_promised_keys_and_sources_weigh_alike() {
        let row = |source, accelerator, family, error| Scored {
            source,
            accelerator,
            family,
            error,
        };
        let mut rows = vec![row("many", "h100-sxm", "dense", 0.1); 9];
        rows.push(row("one", "a100-80", "moe", -0.3));
        let summary = summary_json(&rows);
        let keys: Vec<&String> = summary.as_object().unwrap().keys().collect();
        let mut expected = [
            "rows",
            "median_abs_error",
            "p90_abs_error",
            "bias",
            "by_source",
            "by_accelerator",
            "by_family",
        ];
        expected.sort_unstable();
        let mut found: Vec<&str> = keys.iter().map(|key| key.as_str()).collect();
        found.sort_unstable();
        assert_eq!(found, expected);
        assert_eq!(summary["rows"], 10);
        // Nine rows of one source and one of the other meet in the middle.
        assert!((summary["bias"].as_f64().unwrap() + 0.1).abs() < 1e-12);
        assert_eq!(summary["by_family"]["moe"]["rows"], 1);
        assert!(Summary::of(&[]).is_none());
    }
}
