//! The search for goodput: which way to use the GPUs bears the highest rate inside the objective.

use crate::elasticity::sentence;
use crate::format::{number, percent, seconds, significant};
use crate::paint::{Ink, Style};
use crate::plot::{Axis, Kind, Lines, Picture, Series, style};
use crate::serving::ServingReport;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the search found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServingPlan {
    /// Name of the scenario.
    pub scenario: String,
    /// Share of requests that must be inside the objective.
    pub attainment: f64,
    /// Every way whose highest rate was sought, the highest goodput per GPU first.
    pub candidates: Vec<CandidateReport>,
    /// Ways that failed at a part of the best rate, or cannot reach it by what their steps cost.
    pub beaten: Vec<Beaten>,
    /// Replicas that cannot be, and why.
    pub impossible: Vec<Impossible>,
    /// Tokens/s per user against tokens/s per GPU: the runs inside the objective that no other one
    /// beats in both.
    pub pareto: Vec<Point>,
    /// Every run of every way.
    pub points: Vec<Point>,
}

/// Ways that a picture can tell apart.
const NAMED: usize = 6;
/// Replicas that cannot be and are told why.
const IMPOSSIBLE: usize = 3;
/// Points of a front closer than this in pace are one row of the table.
const CLOSE: f64 = 1.04;

/// A front without points that are nearly the same.
fn thinned(front: &[Point]) -> impl Iterator<Item = &Point> {
    let mut last = f64::INFINITY;
    let count = front.len();
    front.iter().enumerate().filter_map(move |(at, point)| {
        let apart = last / point.tokens_per_s_per_user >= CLOSE;
        (apart || at + 1 == count).then(|| {
            last = point.tokens_per_s_per_user;
            point
        })
    })
}

/// One way to use the GPUs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CandidateReport {
    /// In a few words.
    pub name: String,
    /// GPUs that it uses.
    pub gpus: u64,
    /// The highest rate of requests at which enough of them are inside the objective; 0 where none
    /// is low enough.
    pub goodput_requests_per_s: f64,
    /// The same per GPU.
    pub goodput_requests_per_s_per_gpu: f64,
    /// Requests inside the objective per dollar of rent, at that rate; null without a price.
    pub goodput_requests_per_usd: Option<f64>,
    /// Share inside the objective at that rate.
    pub slo_attainment: f64,
    /// Even the highest rate that was tried was inside the objective.
    pub unbounded: bool,
    /// The report at that rate.
    pub at_goodput: Option<PointAt>,
    /// Every rate that was tried, in rising order.
    pub points: Vec<Point>,
}

/// Latency and pace at the highest rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PointAt {
    /// 99 % of requests see their first token in this time.
    pub ttft_p99_s: f64,
    /// 99 % of requests have at most this time per token.
    pub tpot_p99_s: f64,
    /// Output tokens per second and GPU.
    pub output_tokens_per_s_per_gpu: f64,
    /// Tokens per second that a user sees.
    pub tokens_per_s_per_user: f64,
    /// Dollars per million output tokens; null without a price.
    pub usd_per_million_output_tokens: Option<f64>,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Point {
    /// Which way.
    pub candidate: String,
    /// Requests that came per second (of a closed loop: were answered).
    pub requests_per_s: f64,
    /// Tokens per second that a user sees.
    pub tokens_per_s_per_user: f64,
    /// Output tokens per second and GPU.
    pub output_tokens_per_s_per_gpu: f64,
    /// Share inside the objective.
    pub slo_attainment: f64,
    /// That is as many as asked for.
    pub inside: bool,
}

/// A way that is known to be worse, by how much was not asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Beaten {
    /// In a few words.
    pub name: String,
    /// GPUs that it uses.
    pub gpus: u64,
    /// Its goodput is below this.
    pub below_requests_per_s_per_gpu: f64,
    /// Simulated at this rate it failed; else its ceiling says so: no batch of its steps is cheap
    /// enough.
    pub simulated: bool,
}

/// A replica that cannot be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Impossible {
    /// In a few words.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// What the search knows of one way.
#[derive(Debug, Clone)]
pub struct Tried {
    /// In a few words.
    pub name: String,
    /// Offered rate, whether it passed, and the report of each run.
    pub runs: Vec<(f64, bool, ServingReport)>,
    /// Its highest rate was sought; else a few runs show where it stands.
    pub sought: bool,
}

impl ServingPlan {
    /// What `tried` comes to.
    pub fn of(
        scenario: &str,
        attainment: f64,
        tried: &[Tried],
        beaten: Vec<Beaten>,
        impossible: Vec<Impossible>,
    ) -> Self {
        let sought = tried.iter().filter(|way| way.sought);
        let mut candidates: Vec<CandidateReport> = sought.map(candidate).collect();
        candidates.sort_by(|a, b| {
            b.goodput_requests_per_s_per_gpu
                .total_cmp(&a.goodput_requests_per_s_per_gpu)
        });
        let points: Vec<Point> = tried.iter().flat_map(points).collect();
        let pareto = front(points.iter().filter(|point| point.inside));
        Self {
            scenario: scenario.to_owned(),
            attainment,
            candidates,
            beaten,
            impossible,
            pareto,
            points,
        }
    }

    /// The document for programs.
    pub fn to_json(&self) -> String {
        crate::json::pretty(self)
    }

    /// The table for people, with the best `top` ways.
    pub fn render(&self, top: usize, style: &Style) -> String {
        let strong = |text: &str| style.paint(Ink::Strong, text);
        let faint = |text: &str| style.paint(Ink::Faint, text);
        let mut out = format!(
            "{}\n  the highest rate at which {} % of requests are inside the objective\n\n",
            strong(&self.scenario),
            percent(self.attainment)
        );
        let shown = &self.candidates[..self.candidates.len().min(top)];
        let wide = shown
            .iter()
            .map(|way| &way.name)
            .chain(thinned(&self.pareto).map(|point| &point.candidate))
            .map(|name| name.len() + 2)
            .max()
            .unwrap_or(0)
            .max(20);
        out.push_str(&faint(&format!(
            "  {:<wide$}{:>5}{:>12}{:>12}{:>12}{:>11}{:>11}{:>12}\n",
            "", "GPUs", "requests/s", "per GPU", "per USD", "TTFT p99", "TPOT p99", "tok/s/GPU"
        )));
        for (place, candidate) in shown.iter().enumerate() {
            let cells = match &candidate.at_goodput {
                None => format!("{:>12}", "none"),
                Some(at) => format!(
                    "{:>12}{:>12}{:>12}{:>11}{:>11}{:>12}",
                    format!(
                        "{}{}",
                        if candidate.unbounded { ">" } else { "" },
                        significant(candidate.goodput_requests_per_s)
                    ),
                    significant(candidate.goodput_requests_per_s_per_gpu),
                    candidate
                        .goodput_requests_per_usd
                        .map_or_else(|| "-".to_owned(), significant),
                    seconds(at.ttft_p99_s),
                    seconds(at.tpot_p99_s),
                    significant(at.output_tokens_per_s_per_gpu)
                ),
            };
            let name = format!(
                "  {:<wide$}{:>5}",
                candidate.name,
                number(candidate.gpus as f64, 0)
            );
            let line = if place == 0 { strong(&name) } else { name };
            out.push_str(&format!("{line}{cells}\n"));
        }
        let more = self.candidates.len() - shown.len();
        let failed = self.beaten.iter().filter(|way| way.simulated).count();
        let ruled_out = self.beaten.len() - failed;
        let mut rest = Vec::new();
        for (count, what) in [
            (more, "were searched and are worse"),
            (failed, "failed at a part of the best rate"),
            (ruled_out, "cannot reach it, by what their steps cost"),
        ] {
            if count > 0 {
                rest.push(format!("{count} {what}"));
            }
        }
        if !rest.is_empty() {
            out.push_str(&faint(&format!(
                "  of the other ways {}\n",
                rest.join(", ")
            )));
        }
        for impossible in self.impossible.iter().take(IMPOSSIBLE) {
            out.push_str(&faint(&format!(
                "  {:<wide$}{}\n",
                impossible.name, impossible.reason
            )));
        }
        if self.impossible.len() > IMPOSSIBLE {
            let more = self.impossible.len() - IMPOSSIBLE;
            out.push_str(&faint(&format!("  and {more} more replicas cannot be\n")));
        }
        out.push_str(&format!(
            "\n{}\n",
            faint("  Pareto front, inside the objective: tokens/s per user against output tokens/s per GPU")
        ));
        for point in thinned(&self.pareto) {
            out.push_str(&format!(
                "  {:<wide$}{:>10} requests/s{:>10} per user{:>10} per GPU\n",
                point.candidate,
                significant(point.requests_per_s),
                significant(point.tokens_per_s_per_user),
                significant(point.output_tokens_per_s_per_gpu)
            ));
        }
        out
    }

    /// The Pareto front, above every run of every way.
    pub fn picture(&self) -> Picture {
        let pair = |point: &Point| {
            (
                point.tokens_per_s_per_user,
                point.output_tokens_per_s_per_gpu,
            )
        };
        // The ways on the front have names, the others are one cloud.
        let mut names: Vec<&str> = Vec::new();
        for point in &self.pareto {
            let name = base(&point.candidate);
            if !names.contains(&name) && names.len() < NAMED {
                names.push(name);
            }
        }
        let of = |wanted: &dyn Fn(&Point) -> bool| {
            let chosen = self.points.iter().filter(|point| wanted(point));
            chosen.map(pair).collect::<Vec<_>>()
        };
        let inside = |point: &Point| point.inside && point.tokens_per_s_per_user > 0.0;
        let others = of(&|point| inside(point) && !names.contains(&base(&point.candidate)));
        let mut series: Vec<Series> = Vec::new();
        if !others.is_empty() {
            series.push(Series {
                ink: Some(style::PEAK),
                ..Series::line("other ways", others).drawn(Kind::Points)
            });
        }
        series.extend(names.iter().map(|name| {
            let points = of(&|point| inside(point) && base(&point.candidate) == *name);
            Series::line(name, points).drawn(Kind::Points)
        }));
        let front = self.pareto.iter().map(pair).collect();
        series.push(Series::line("Pareto front", front).drawn(Kind::Ideal));
        let title = match self.candidates.first() {
            Some(best) if best.goodput_requests_per_s > 0.0 => format!(
                "{} bears most: {} requests/s per GPU inside the objective",
                sentence(&best.name),
                significant(best.goodput_requests_per_s_per_gpu)
            ),
            _ => "No rate is inside the objective".to_owned(),
        };
        Lines {
            title,
            subtitle: format!(
                "{}: each point is one run at one rate with {} % of the requests inside the objective; towards the upper right is better",
                self.scenario,
                percent(self.attainment)
            ),
            x: Axis::linear("tokens/s per user"),
            y: Axis::linear("output tokens/s per GPU"),
            series,
            note: String::new(),
        }
        .picture()
    }
}

fn point(name: &str, rate: f64, inside: bool, report: &ServingReport) -> Point {
    let serving = &report.serving;
    Point {
        candidate: name.to_owned(),
        requests_per_s: rate,
        tokens_per_s_per_user: serving.tokens_per_s_per_user,
        output_tokens_per_s_per_gpu: serving.output_tokens_per_s_per_gpu,
        slo_attainment: serving.slo_attainment.unwrap_or(1.0),
        inside,
    }
}

fn candidate(tried: &Tried) -> CandidateReport {
    let mut runs: Vec<&(f64, bool, ServingReport)> = tried.runs.iter().collect();
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let best = runs.iter().rev().find(|(_, passed, _)| *passed);
    let gpus = runs.first().map_or(0, |(_, _, report)| report.cluster.gpus);
    let rate = best.map_or(0.0, |(rate, _, _)| *rate);
    let inside = best.map_or(0.0, |(_, _, report)| {
        report.serving.slo_attainment.unwrap_or(1.0)
    });
    let usd_per_s = best.and_then(|(_, _, report)| {
        let serving = &report.serving;
        serving
            .usd_per_million_output_tokens
            .map(|usd| usd * 1e-6 * serving.output_tokens_per_s)
    });
    CandidateReport {
        name: tried.name.clone(),
        gpus,
        goodput_requests_per_s: rate,
        goodput_requests_per_s_per_gpu: rate / gpus.max(1) as f64,
        goodput_requests_per_usd: usd_per_s
            .filter(|usd| *usd > 0.0)
            .map(|usd| rate * inside / usd),
        slo_attainment: inside,
        unbounded: runs.iter().all(|(_, passed, _)| *passed),
        at_goodput: best.map(|(_, _, report)| PointAt {
            ttft_p99_s: report.serving.ttft_s.p99,
            tpot_p99_s: report.serving.tpot_s.p99,
            output_tokens_per_s_per_gpu: report.serving.output_tokens_per_s_per_gpu,
            tokens_per_s_per_user: report.serving.tokens_per_s_per_user,
            usd_per_million_output_tokens: report.serving.usd_per_million_output_tokens,
        }),
        points: points(tried),
    }
}

/// Every run of one way, in rising order.
fn points(tried: &Tried) -> Vec<Point> {
    let mut runs: Vec<&(f64, bool, ServingReport)> = tried.runs.iter().collect();
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    runs.iter()
        .map(|(rate, inside, report)| point(&tried.name, *rate, *inside, report))
        .collect()
}

/// The way without what its engine is told.
fn base(name: &str) -> &str {
    match name.rsplit_once(", ") {
        Some((way, limit)) if limit.ends_with("/step") => way,
        _ => name,
    }
}

/// The points that no other beats in both, the fastest for a user first.
fn front<'p>(points: impl Iterator<Item = &'p Point>) -> Vec<Point> {
    let mut sorted: Vec<&Point> = points
        .filter(|point| point.tokens_per_s_per_user > 0.0)
        .collect();
    sorted.sort_by(|a, b| {
        b.tokens_per_s_per_user
            .total_cmp(&a.tokens_per_s_per_user)
            .then(
                b.output_tokens_per_s_per_gpu
                    .total_cmp(&a.output_tokens_per_s_per_gpu),
            )
    });
    let mut best = f64::NEG_INFINITY;
    let mut front = Vec::new();
    for point in sorted {
        if point.output_tokens_per_s_per_gpu > best {
            best = point.output_tokens_per_s_per_gpu;
            front.push(point.clone());
        }
    }
    front
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_point_of_the_front_is_beaten() {
        let point = |user: f64, gpu: f64| Point {
            candidate: String::new(),
            requests_per_s: 1.0,
            tokens_per_s_per_user: user,
            output_tokens_per_s_per_gpu: gpu,
            slo_attainment: 1.0,
            inside: true,
        };
        let points = [
            point(10.0, 50.0),
            point(20.0, 40.0),
            point(15.0, 30.0),
            point(20.0, 10.0),
            point(30.0, 5.0),
        ];
        let kept: Vec<f64> = front(points.iter())
            .iter()
            .map(|p| p.output_tokens_per_s_per_gpu)
            .collect();
        assert_eq!(kept, [5.0, 40.0, 50.0]);
    }
}
