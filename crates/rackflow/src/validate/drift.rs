//! Whether the error grows with the number of GPUs.
//!
//! Runs that differ in little else are compared with each other: those of one source, model,
//! accelerator, number format and stack on different numbers of GPUs. The slope of the error over the
//! logarithm of that number is fitted to all such groups at once, each around its own mean (a
//! regression with fixed effects), sources weighing alike. What a source's habits add to all of its
//! runs alike is not in it.

use super::summary::signed_percent;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A row as the drift sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sized<'a> {
    /// Who measured.
    pub source: &'a str,
    /// What must be the same for two rows to be comparable.
    pub alike: String,
    /// GPUs of the job.
    pub gpus: u32,
    /// Simulated over measured, minus one.
    pub error: f64,
}

/// The slope of the error over the size of the job.
#[derive(Debug, Clone, PartialEq)]
pub struct Drift {
    /// Rows in groups that hold more than one size.
    pub rows: usize,
    /// Such groups.
    pub groups: usize,
    /// Fewest and most GPUs among them.
    pub gpus: (u32, u32),
    /// Change of the error (a fraction) with each doubling of the GPUs; negative where large jobs come
    /// out too fast.
    pub per_doubling: f64,
    /// Least and greatest of this where one source is left out.
    pub without_one_source: (f64, f64),
}

impl Drift {
    /// `None` where no group holds two sizes.
    pub fn of(rows: &[Sized<'_>]) -> Option<Self> {
        let mut groups: BTreeMap<(&str, &str), Vec<&Sized<'_>>> = BTreeMap::new();
        for row in rows {
            groups
                .entry((row.source, row.alike.as_str()))
                .or_default()
                .push(row);
        }
        groups.retain(|_, rows| rows.iter().any(|row| row.gpus != rows[0].gpus));
        let sources: BTreeSet<&str> = groups.keys().map(|(source, _)| *source).collect();
        let per_doubling = slope(&groups, None)?;
        let without: Vec<f64> = sources
            .iter()
            .filter_map(|source| slope(&groups, Some(source)))
            .collect();
        let sizes = || groups.values().flatten().map(|row| row.gpus);
        Some(Self {
            rows: groups.values().map(Vec::len).sum(),
            groups: groups.len(),
            gpus: (sizes().min()?, sizes().max()?),
            per_doubling,
            without_one_source: without
                .iter()
                .fold((per_doubling, per_doubling), |(low, high), slope| {
                    (low.min(*slope), high.max(*slope))
                }),
        })
    }

    /// One sentence.
    pub fn text(&self) -> String {
        let (few, many) = self.gpus;
        let (low, high) = self.without_one_source;
        format!(
            "Drift: with each doubling of the GPUs of one run the error moves by {} ({} to {} with any one source \
             left out; {} rows in {} groups that differ in their size, {few} to {many} GPUs).\n",
            finely(self.per_doubling),
            finely(low),
            finely(high),
            self.rows,
            self.groups
        )
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        json!({
            "error_per_doubling": self.per_doubling,
            "without_one_source": [self.without_one_source.0, self.without_one_source.1],
            "rows": self.rows,
            "groups": self.groups,
            "least_gpus": self.gpus.0,
            "most_gpus": self.gpus.1,
        })
    }
}

/// A percentage with its sign; two digits where it is under one.
fn finely(fraction: f64) -> String {
    if fraction.abs() < 0.01 {
        format!("{:+.2} %", 100.0 * fraction)
    } else {
        signed_percent(fraction)
    }
}

/// Slope over the base-2 logarithm of the size, without the rows of one source.
fn slope(groups: &BTreeMap<(&str, &str), Vec<&Sized<'_>>>, without: Option<&str>) -> Option<f64> {
    let mut of_source: BTreeMap<&str, usize> = BTreeMap::new();
    for ((source, _), rows) in groups {
        *of_source.entry(source).or_insert(0) += rows.len();
    }
    let (mut covariance, mut variance) = (0.0, 0.0);
    for ((source, _), rows) in groups {
        if without == Some(*source) {
            continue;
        }
        let weight = 1.0 / of_source[source] as f64;
        let points: Vec<(f64, f64)> = rows
            .iter()
            .map(|row| (f64::from(row.gpus).log2(), row.error))
            .collect();
        let count = points.len() as f64;
        let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / count;
        let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / count;
        for (x, y) in points {
            covariance += weight * (x - mean_x) * (y - mean_y);
            variance += weight * (x - mean_x).powi(2);
        }
    }
    (variance > 0.0).then(|| covariance / variance)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(source: &'static str, model: &str, gpus: u32, error: f64) -> Sized<'static> {
        Sized {
            source,
            alike: model.to_owned(),
            gpus,
            error,
        }
    }

    #[test]
    fn a_drift_is_found_and_the_bias_of_a_group_is_not_one() {
        // Two sources with biases of their own; both lose 1 % with each doubling.
        let mut rows = Vec::new();
        for (source, bias) in [("a", 0.2), ("b", -0.1)] {
            for doublings in 3..9 {
                let error = bias - 0.01 * f64::from(doublings);
                rows.push(row(source, "m", 1 << doublings, error));
            }
        }
        // A model of one size says nothing.
        rows.push(row("c", "m", 1 << 14, 0.9));
        let drift = Drift::of(&rows).expect("two groups");
        assert!((drift.per_doubling + 0.01).abs() < 1e-12);
        assert!((drift.without_one_source.0 - drift.without_one_source.1).abs() < 1e-12);
        assert_eq!((drift.rows, drift.groups), (12, 2));
        assert_eq!(drift.gpus, (8, 256));
        assert!(drift.text().contains("-1.0 %"), "{}", drift.text());
        assert!(Drift::of(&rows[12..]).is_none());
    }
}
