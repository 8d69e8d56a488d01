//! Pictures of a serving run: its steps under the roofline, the memory of its GPUs, its links.

use super::bars::{Bar, Bars, Part};
use super::lines::{Kind, Lines, Series};
use super::picture::Picture;
use super::scale::Axis;
use super::style;
use crate::format::{number, percent, significant};
use crate::serving::{PoolReport, ServingReport};
use crate::serving_detail::{PoolLink, RooflinePoint};

/// Tera.
const T: f64 = 1e-12;

/// A pool in titles and beside its marks.
fn named(report: &ServingReport, pool: &PoolReport, what: &str) -> String {
    if report.pools.len() > 1 && pool.role != what {
        format!("{what} of {}", pool.role)
    } else {
        what.to_owned()
    }
}

/// Steps of prefill and decode under the ceilings of memory and tensor cores; none where the report
/// does not hold them.
pub fn serving_roofline(report: &ServingReport) -> Option<Picture> {
    let first = report.pools.first()?.roofline.as_ref()?;
    let mut points: Vec<(String, RooflinePoint)> = Vec::new();
    let mut series = Vec::new();
    let mut curve_of = Vec::new();
    for pool in &report.pools {
        let roofline = pool.roofline.as_ref()?;
        if let Some(prefill) = roofline.prefill {
            points.push((named(report, pool, "prefill"), prefill));
        }
        if let Some(decode) = roofline.decode {
            let name = named(report, pool, "decode");
            let batch = number(decode.sequences, 0);
            points.push((format!("{name}, {batch} sequences"), decode));
        }
        if !roofline.decode_by_sequences.is_empty() {
            curve_of.push(&roofline.decode_by_sequences);
        }
    }
    let all = || {
        let curves = curve_of.iter().flat_map(|curve| curve.iter().copied());
        points.iter().map(|(_, point)| *point).chain(curves)
    };
    let (peak, memory) = (first.peak_flops_per_s, first.memory_bytes_per_s);
    let ridge = peak / memory;
    let bound = |least: bool, of: fn(&RooflinePoint) -> f64| {
        let values = all().map(|point| of(&point)).filter(|value| *value > 0.0);
        if least {
            values.fold(f64::INFINITY, f64::min)
        } else {
            values.fold(0.0, f64::max)
        }
    };
    let from = bound(true, |point| point.flops_per_byte).min(ridge / 8.0) / 1.5;
    let to = bound(false, |point| point.flops_per_byte).max(ridge * 4.0) * 2.0;
    let low = bound(true, |point| point.flops_per_s).min(memory * from) * T / 1.5;
    for curve in curve_of {
        let labels = curve
            .iter()
            .enumerate()
            .map(|(at, point)| {
                // Every third doubling has its number.
                if at % 3 == 0 {
                    number(point.sequences, 0)
                } else {
                    String::new()
                }
            })
            .collect();
        series.push(Series {
            name: "decode by sequences in a step".to_owned(),
            points: curve
                .iter()
                .map(|point| (point.flops_per_byte, point.flops_per_s * T))
                .collect(),
            labels,
            ink: Some(style::series(2)),
            ..Series::default()
        });
    }
    for (at, (name, point)) in points.iter().enumerate() {
        series.push(Series {
            // Named beside its mark.
            name: String::new(),
            points: vec![(point.flops_per_byte, point.flops_per_s * T)],
            kind: Kind::Points,
            labels: vec![name.clone()],
            radii: vec![8.0],
            ink: Some(style::series(at % 2)),
            ..Series::default()
        });
    }
    series.push(Series {
        name: format!(
            "{} {} TFLOP/s, memory {} TB/s",
            report.cluster.native_precision,
            number(peak * T, 0),
            significant(memory * T)
        ),
        points: vec![(from, from * memory * T), (ridge, peak * T), (to, peak * T)],
        kind: Kind::Ideal,
        ..Series::default()
    });
    let mixed = if report.pools.len() == 1 {
        "; steps with prompts decode too"
    } else {
        ""
    };
    let share = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), percent);
    let (mfu, mbu) = (&report.serving.mfu, &report.serving.mbu);
    let title = match (mfu.prefill, mfu.decode) {
        (Some(prefill), Some(_)) => format!(
            "Prefill reaches {} % of peak; decode {} %, and {} % of the memory's bandwidth",
            percent(prefill),
            share(mfu.decode),
            share(mbu.decode)
        ),
        (None, Some(decode)) => format!(
            "Decode reaches {} % of peak and {} % of the memory's bandwidth",
            percent(decode),
            share(mbu.decode)
        ),
        _ => format!("Steps with prompts reach {} % of peak", share(mfu.prefill)),
    };
    Some(
        Lines {
            title,
            subtitle: format!(
                "{}: steps of {} on one {}, with everything that they wait for{mixed}",
                report.scenario, report.model.name, report.cluster.accelerator
            ),
            x: Axis::log("FLOP per byte of weights and cache").from_to(from, to),
            y: Axis::log("TFLOP/s of one GPU").from_to(low, peak * T * 1.6),
            series,
            note: "The line is what decode steps of 1, 2, 4 and more sequences come to at the mean context of the run."
                .to_owned(),
        }
        .picture(),
    )
}

/// Memory of one GPU of each pool by what it holds; none where the report does not say.
pub fn serving_memory(report: &ServingReport) -> Option<Picture> {
    let parts = [
        "weights",
        "activations",
        "reserved",
        "cache in use, mean",
        "cache not in use",
    ];
    let gigabytes = |bytes: f64| bytes * 1e-9;
    let mut bars = Vec::new();
    for pool in &report.pools {
        let memory = pool.memory.as_ref()?;
        let values = [
            memory.weights,
            memory.activations,
            memory.reserved,
            memory.cache_used_mean,
            memory.cache - memory.cache_used_mean,
        ];
        let sum: f64 = values.iter().sum();
        bars.push(Bar {
            name: if pool.role == "both" {
                "each GPU".to_owned()
            } else {
                pool.role.clone()
            },
            parts: values
                .iter()
                .enumerate()
                .map(|(at, bytes)| Part {
                    value: gigabytes(*bytes),
                    ink: style::series(at),
                })
                .collect(),
            figure: format!("{} GB", number(gigabytes(sum), 1)),
        });
    }
    let last = report.pools.last()?;
    let memory = last.memory.as_ref()?;
    let of = if report.pools.len() > 1 {
        format!(" of {}", last.role)
    } else {
        String::new()
    };
    Some(
        Bars {
            title: format!(
                "Weights take {} GB of a GPU{of}, the cache {} GB, of which {} % is in use on average",
                number(gigabytes(memory.weights), 1),
                number(gigabytes(memory.cache), 1),
                percent(memory.cache_used_mean / memory.cache.max(1.0))
            ),
            subtitle: format!(
                "{}: memory of one {} of each pool; the cache is full at most to {} %",
                report.scenario,
                last.accelerator,
                percent(last.kv_occupancy_peak)
            ),
            axis: Axis::linear("GB of one GPU"),
            bars,
            limit: Some((
                gigabytes(memory.capacity),
                format!("{} GB of the GPU", number(gigabytes(memory.capacity), 0)),
            )),
            legend: parts
                .iter()
                .enumerate()
                .map(|(at, name)| (style::series(at), (*name).to_owned()))
                .collect(),
            note: String::new(),
        }
        .picture(),
    )
}

/// How busy the links of one GPU of each pool are, by what they carry; none where the report does not
/// say.
pub fn serving_links(report: &ServingReport) -> Option<Picture> {
    let parts = [
        "steps of the engine",
        "caches from prefill to decode",
        "KV store",
    ];
    let words = |link: &PoolLink| {
        if link.tier == "nvlink" {
            "NVLink"
        } else {
            "NICs"
        }
    };
    let links = || report.pools.iter().flat_map(|pool| &pool.links);
    let carries = [
        links().any(|link| link.steps > 0.0),
        links().any(|link| link.caches > 0.0),
        links().any(|link| link.store > 0.0),
    ];
    let busy = |link: &PoolLink| (link.steps + link.caches + link.store) / link.line_rate;
    let mut bars = Vec::new();
    let mut busiest: Option<(f64, String)> = None;
    for pool in &report.pools {
        for link in &pool.links {
            let name = if pool.role == "both" {
                words(link).to_owned()
            } else {
                format!("{} of {}", words(link), pool.role)
            };
            let share = busy(link);
            if busiest.as_ref().is_none_or(|(most, _)| share > *most) {
                busiest = Some((share, name.clone()));
            }
            bars.push(Bar {
                name,
                parts: [link.steps, link.caches, link.store]
                    .into_iter()
                    .enumerate()
                    .map(|(at, bytes)| Part {
                        value: bytes / link.line_rate * 100.0,
                        ink: style::series(at),
                    })
                    .collect(),
                figure: format!(
                    "{} % of {} GB/s",
                    percent(share),
                    significant(link.line_rate * 1e-9)
                ),
            });
        }
    }
    let (share, name) = busiest?;
    let title = if share > 0.0 {
        let verb = if name.starts_with("NVLink") {
            "is"
        } else {
            "are"
        };
        format!(
            "{name} {verb} busiest: {} % of the line rate",
            percent(share)
        )
    } else {
        "Nothing is sent: every replica is one GPU".to_owned()
    };
    Some(
        Bars {
            title,
            subtitle: format!(
                "{}: bytes that one GPU sends, or receives where caches arrive, over the line rate, mean over {} s",
                report.scenario,
                significant(report.serving.window_s)
            ),
            axis: Axis::linear("per cent of the line rate, one way"),
            bars,
            legend: parts
                .iter()
                .enumerate()
                .filter(|(at, _)| carries[*at])
                .map(|(at, name)| (style::series(at), (*name).to_owned()))
                .collect(),
            ..Bars::default()
        }
        .picture(),
    )
}
