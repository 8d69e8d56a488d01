//! Constants fitted on half of the sources, scored on the other half, both ways.
//!
//! What is fitted is what these steps are used to fit at all: `continuous_clock` of each
//! accelerator. For each accelerator it is the clock at which the median error of the dense rows of
//! the half vanishes, sources weighing alike. An accelerator without such rows in the half gets the
//! median change of the others. Nothing of the other half is looked at.

use super::simulated::{SECOND_CLOCK, Simulated};
use super::summary::{Scored, Summary, weighted_quantile};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Largest ratio of the error on sources that were not fitted to over that on those that were.
pub const AGREES_WITHIN: f64 = 1.5;
/// Bounds of a fitted clock over the shipped one.
const CLOCK_RANGE: (f64, f64) = (0.6, 1.5);

/// A row as the cross-check sees it.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// What it belongs to, with its error under the shipped constants.
    pub scored: Scored<'a>,
    /// The clock that ships for its accelerator.
    pub clock: f64,
    /// Logarithm of the step time per logarithm of the clock: -1 where the clock decides all.
    elasticity: f64,
}

impl<'a> Sample<'a> {
    /// `None` where the row was not simulated under a second clock.
    pub fn new(scored: Scored<'a>, clock: f64, simulated: &Simulated) -> Option<Self> {
        let ratio = simulated.at_second_clock_s? / simulated.step_time_s;
        Some(Self {
            scored,
            clock,
            elasticity: ratio.ln() / SECOND_CLOCK.ln(),
        })
    }

    /// The row's error where the clock is `change` times the shipped one.
    fn at(&self, change: f64) -> Scored<'a> {
        let time = (1.0 + self.scored.error) * change.powf(self.elasticity);
        Scored {
            error: time - 1.0,
            ..self.scored
        }
    }
}

/// One half: what was fitted on it, and how it does on both.
pub struct Half {
    /// Sources fitted to.
    pub sources: Vec<String>,
    /// The fitted clock of each accelerator of all rows.
    pub clocks: BTreeMap<String, f64>,
    /// Errors on the half itself.
    pub fitted: Summary,
    /// Errors on the other half.
    pub unseen: Summary,
}

/// Both halves.
pub struct CrossCheck {
    /// Fitted on the first, scored on the second; and the other way round.
    pub halves: [Half; 2],
    /// The clock of each accelerator that has dense rows, fitted on all of them.
    pub of_all: BTreeMap<String, f64>,
}

impl CrossCheck {
    /// `None` where one half would have no rows to fit.
    pub fn of(samples: &[Sample<'_>]) -> Option<Self> {
        let sources: BTreeSet<&str> = samples.iter().map(|sample| sample.scored.source).collect();
        let first: BTreeSet<&str> = sources.iter().copied().step_by(2).collect();
        let (a, b): (Vec<Sample<'_>>, Vec<Sample<'_>>) = samples
            .iter()
            .partition(|sample| first.contains(sample.scored.source));
        let changes = fitted_changes(samples);
        let fitted = |sample: &Sample<'_>| {
            let change = changes.get(sample.scored.accelerator)?;
            Some((sample.scored.accelerator.to_owned(), sample.clock * change))
        };
        Some(Self {
            halves: [half(&a, &b)?, half(&b, &a)?],
            of_all: samples.iter().filter_map(fitted).collect(),
        })
    }

    /// The median error on sources not fitted to over that on the same sources fitted to, the
    /// larger of both directions.
    pub fn ratio(&self) -> f64 {
        let [a, b] = &self.halves;
        // Each half twice: under its own constants, and under the other's.
        let ratio = |own: &Summary, others: &Summary| others.median / own.median.max(1e-9);
        ratio(&a.fitted, &b.unseen).max(ratio(&b.fitted, &a.unseen))
    }

    /// How far apart the two unseen halves are, as a ratio of at least 1.
    pub fn between(&self) -> f64 {
        let [a, b] = &self.halves;
        let (low, high) = if a.unseen.median < b.unseen.median {
            (a.unseen.median, b.unseen.median)
        } else {
            (b.unseen.median, a.unseen.median)
        };
        high / low.max(1e-9)
    }

    /// Both ratios are within [`AGREES_WITHIN`].
    pub fn agrees(&self) -> bool {
        self.ratio() <= AGREES_WITHIN && self.between() <= AGREES_WITHIN
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        json!({
            "halves": self.halves.iter().map(|half| json!({
                "fitted_on": half.sources,
                "continuous_clock": half.clocks,
                "fitted": half.fitted.to_json(),
                "unseen": half.unseen.to_json(),
            })).collect::<Vec<_>>(),
            "continuous_clock_of_all": self.of_all,
            "unseen_over_fitted": self.ratio(),
            "between_halves": self.between(),
            "agrees_within": AGREES_WITHIN,
            "agrees": self.agrees(),
        })
    }
}

fn half(fit: &[Sample<'_>], score: &[Sample<'_>]) -> Option<Half> {
    let changes = fitted_changes(fit);
    let all: Vec<f64> = changes.values().copied().collect();
    let usual = weighted_quantile(all.into_iter().map(|change| (change, 1.0)).collect(), 0.5);
    let usual = if usual > 0.0 { usual } else { 1.0 };
    let change = |sample: &Sample<'_>| {
        changes
            .get(sample.scored.accelerator)
            .copied()
            .unwrap_or(usual)
    };
    let errors = |samples: &[Sample<'_>]| {
        let rows: Vec<Scored<'_>> = samples.iter().map(|s| s.at(change(s))).collect();
        Summary::of(&rows)
    };
    let clocks = fit
        .iter()
        .chain(score)
        .map(|s| (s.scored.accelerator.to_owned(), s.clock * change(s)))
        .collect();
    let sources: BTreeSet<&str> = fit.iter().map(|sample| sample.scored.source).collect();
    Some(Half {
        sources: sources.into_iter().map(str::to_owned).collect(),
        clocks,
        fitted: errors(fit)?,
        unseen: errors(score)?,
    })
}

/// For each accelerator with dense rows, the change of its clock at which their bias vanishes.
pub fn fitted_changes<'a>(samples: &[Sample<'a>]) -> BTreeMap<&'a str, f64> {
    let mut groups: BTreeMap<&str, Vec<&Sample<'_>>> = BTreeMap::new();
    for sample in samples {
        if sample.scored.family == "dense" {
            groups
                .entry(sample.scored.accelerator)
                .or_default()
                .push(sample);
        }
    }
    groups
        .into_iter()
        .map(|(accelerator, rows)| {
            let bias = |change: f64| {
                let rows: Vec<Scored<'_>> = rows.iter().map(|row| row.at(change)).collect();
                Summary::of(&rows).map_or(0.0, |summary| summary.bias)
            };
            // The bias falls with the clock: halve the interval.
            let (mut low, mut high) = CLOCK_RANGE;
            for _ in 0..40 {
                let middle = f64::midpoint(low, high);
                if bias(middle) > 0.0 {
                    low = middle;
                } else {
                    high = middle;
                }
            }
            (accelerator, f64::midpoint(low, high))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(source: &'static str, accelerator: &'static str, error: f64) -> Sample<'static> {
        Sample {
            scored: Scored {
                source,
                accelerator,
                family: "dense",
                error,
            },
            clock: 0.8,
            elasticity: -1.0,
        }
    }

    #[test]
    fn a_wrong_clock_is_found_again() {
        // All steps 10 % too long, so the clock must rise by 10 %.
        let samples: Vec<Sample<'_>> = ["a", "b", "c", "d"]
            .into_iter()
            .map(|source| sample(source, "h100-sxm", 0.1))
            .collect();
        let check = CrossCheck::of(&samples).expect("two halves");
        for half in &check.halves {
            assert!((half.clocks["h100-sxm"] - 0.88).abs() < 1e-6);
            assert!(half.fitted.median < 1e-6 && half.unseen.median < 1e-6);
        }
    }

    #[test]
    fn halves_that_contradict_each_other_do_not_agree() {
        let mut samples = Vec::new();
        for (source, error) in [("a", 0.1), ("b", -0.2), ("c", 0.12), ("d", -0.22)] {
            samples.push(sample(source, "h100-sxm", error));
        }
        let check = CrossCheck::of(&samples).expect("two halves");
        assert!(!check.agrees(), "{}", check.ratio());
        // One source alone leaves nothing for the other half.
        assert!(CrossCheck::of(&samples[..1]).is_none());
    }
}
