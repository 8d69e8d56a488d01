//! Why two services differ: what an output token costs, cause by cause.
//!
//! The GPU-time of the window is spent on causes. Divided by the output tokens of the window, two
//! services of any size are on one footing, and their difference is the sum of the differences by cause.

use super::{
    CauseDifference, Pair, Setting, cause_of_both, causes_of_both, list_settings, pair, rows_of,
    sentences, table,
};
use crate::format::{percent, significant};
use crate::serving::ServingReport;
use schemars::JsonSchema;
use serde::Serialize;

/// Two services, and what makes them differ.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct ServingDifference {
    /// Version of this document's layout.
    pub schema_version: u32,
    /// Name of the first.
    pub a: String,
    /// Name of the second.
    pub b: String,
    /// Figures of both, by the names that they have in a report.
    pub figures: Vec<FigureOfBoth>,
    /// What the two do differently.
    pub settings: Vec<Setting>,
    /// GPU-milliseconds per output token by cause, largest difference first. The differences sum to
    /// that of the totals.
    pub causes: Vec<CauseDifference>,
    /// The same over all causes.
    pub total: CauseDifference,
    /// The finding, in sentences.
    pub words: Vec<String>,
}

/// A figure that both have.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct FigureOfBoth {
    /// Its name in a report.
    pub name: String,
    /// Its values.
    #[serde(flatten)]
    pub values: Pair,
}

/// GPU-milliseconds per output token that go to a cause.
fn cost(report: &ServingReport, cause: Option<&str>) -> f64 {
    let serving = &report.serving;
    let tokens = serving.output_tokens_per_s * serving.window_s;
    let losses = report.waterfall.iter();
    let seconds: f64 = losses
        .filter(|loss| cause.is_none_or(|cause| loss.cause == cause))
        .map(|loss| loss.gpu_seconds)
        .sum();
    seconds * 1e3 / tokens
}

/// Why `b` differs from `a`.
pub fn compare(a: &ServingReport, b: &ServingReport) -> ServingDifference {
    let all = cost(a, None);
    let losses = a.waterfall.iter().chain(&b.waterfall);
    let named = losses.map(|loss| (loss.cause.as_str(), loss.label.as_str()));
    let causes = causes_of_both(named, all, |cause| {
        (cost(a, Some(cause)), cost(b, Some(cause)))
    });
    let mut found = ServingDifference {
        schema_version: 1,
        a: a.scenario.clone(),
        b: b.scenario.clone(),
        figures: figures(a, b),
        settings: settings(a, b),
        total: cause_of_both("total", "All", (all, cost(b, None)), all),
        causes,
        words: Vec::new(),
    };
    found.words = words(&found);
    found
}

fn figures(a: &ServingReport, b: &ServingReport) -> Vec<FigureOfBoth> {
    type Get = fn(&ServingReport) -> Option<f64>;
    const FIGURES: [(&str, Get); 9] = [
        ("output_tokens_per_s", |r| {
            Some(r.serving.output_tokens_per_s)
        }),
        ("output_tokens_per_s_per_gpu", |r| {
            Some(r.serving.output_tokens_per_s_per_gpu)
        }),
        ("tokens_per_s_per_user", |r| {
            Some(r.serving.tokens_per_s_per_user)
        }),
        ("ttft_s.mean", |r| Some(r.serving.ttft_s.mean)),
        ("ttft_s.p99", |r| Some(r.serving.ttft_s.p99)),
        ("tpot_s.mean", |r| Some(r.serving.tpot_s.mean)),
        ("e2e_s.mean", |r| Some(r.serving.e2e_s.mean)),
        ("usd_per_million_output_tokens", |r| {
            r.serving.usd_per_million_output_tokens
        }),
        ("joules_per_output_token", |r| {
            Some(r.serving.joules_per_output_token)
        }),
    ];
    let both = FIGURES.iter().filter_map(|(name, get)| {
        Some(FigureOfBoth {
            name: (*name).to_owned(),
            values: pair(get(a)?, get(b)?),
        })
    });
    both.collect()
}

fn settings(a: &ServingReport, b: &ServingReport) -> Vec<Setting> {
    let said = |report: &ServingReport| {
        let mut said = vec![
            ("model".to_owned(), report.model.name.clone()),
            ("node".to_owned(), report.cluster.node.clone()),
            ("gpus".to_owned(), report.cluster.gpus.to_string()),
        ];
        for pool in &report.pools {
            let of = |name: &str, value: String| (format!("{} {name}", pool.role), value);
            said.extend([
                of("replicas", pool.replicas.to_string()),
                of(
                    "parallelism",
                    format!(
                        "TP {} DP {} EP {} PP {}",
                        pool.tensor, pool.data, pool.expert, pool.pipeline
                    ),
                ),
                of("accelerator", pool.accelerator.clone()),
                of("stack", pool.stack.clone()),
                of("scheduler", pool.scheduler.clone()),
                of("decoder", pool.decoder.clone()),
                of("precision", pool.native_precision.clone()),
            ]);
        }
        said
    };
    let (a, b) = (said(a), said(b));
    let value = |side: &[(String, String)], name: &str| {
        let found = side.iter().find(|(known, _)| known == name);
        found.map_or_else(String::new, |(_, value)| value.clone())
    };
    let mut names: Vec<&String> = a.iter().chain(&b).map(|(name, _)| name).collect();
    let mut seen = Vec::new();
    names.retain(|name| {
        !seen.contains(name) && {
            seen.push(name);
            true
        }
    });
    names
        .into_iter()
        .map(|name| Setting {
            name: name.clone(),
            a: value(&a, name),
            b: value(&b, name),
        })
        .filter(|setting| setting.a != setting.b)
        .collect()
}

fn words(found: &ServingDifference) -> Vec<String> {
    let per_gpu = found
        .figures
        .iter()
        .find(|figure| figure.name == "output_tokens_per_s_per_gpu");
    let mut out = Vec::new();
    if let Some(figure) = per_gpu {
        out.push(format!(
            "{} writes {} output tokens/s per GPU where {} writes {}: {} GPU-milliseconds per token instead of {}.",
            found.b,
            significant(figure.values.b),
            found.a,
            significant(figure.values.a),
            significant(found.total.b),
            significant(found.total.a),
        ));
    }
    let named = found
        .causes
        .iter()
        .filter(|cause| cause.of_a.abs() >= 0.005)
        .take(4);
    for cause in named {
        let verb = if cause.difference < 0.0 {
            "saves"
        } else {
            "costs"
        };
        out.push(format!(
            "{}: {} instead of {} GPU-milliseconds per token, which {verb} {} % of all that {} spends.",
            cause.label,
            significant(cause.b),
            significant(cause.a),
            percent(cause.of_a.abs()),
            found.a,
        ));
    }
    if out.len() < 2 {
        out.push("No cause differs by more than half a per cent of the GPU time.".to_owned());
    }
    out
}

impl ServingDifference {
    /// The comparison as one JSON document, indented, with a newline at the end.
    pub fn to_json(&self) -> String {
        crate::json::pretty(self)
    }

    /// The comparison for a terminal.
    pub fn render_text(&self) -> String {
        let figure = |figure: &FigureOfBoth| {
            [
                figure.name.clone(),
                significant(figure.values.a),
                significant(figure.values.b),
                format!("{} x", significant(figure.values.ratio)),
            ]
        };
        let mut out = sentences(&self.words);
        table(
            &mut out,
            "Results",
            self.figures.iter().map(figure).collect(),
        );
        let rows = rows_of(&self.causes, &self.total);
        table(&mut out, "GPU-milliseconds per token", rows);
        list_settings(&mut out, &self.settings);
        out
    }
}
