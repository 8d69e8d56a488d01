//! Pictures of a sweep: curves over the number of GPUs where that varies, bars where it does not.

use super::table::{Cell, Table};
use crate::plot::{Axis, Bar, Bars, Kind, Lines, Picture, Series, Ticks, style};

/// A picture of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedPicture {
    /// What kind of picture it is, such as `scaling`.
    pub kind: &'static str,
    /// A name for a file: the kind and the facet.
    pub name: String,
    /// What it shows, the same for every facet.
    pub subject: &'static str,
    /// Which part of the sweep it shows: the other choices, such as "weak, fp8"; may be empty.
    pub facet: String,
    /// The picture.
    pub picture: Picture,
}

/// Cases that ran and share every choice but the number of GPUs and what follows from it.
struct Curve {
    name: String,
    facet: String,
    rows: Vec<usize>,
}

/// A figure over the number of GPUs.
struct Subject {
    name: &'static str,
    heading: &'static str,
    column: &'static str,
    band: Option<(&'static str, &'static str)>,
    scale: f64,
    label: &'static str,
    log: bool,
    percent: bool,
    ideal: bool,
    title: fn(&[Series]) -> String,
}

const SUBJECTS: &[Subject] = &[
    Subject {
        name: "scaling",
        heading: "Effective FLOP/s of the whole cluster",
        column: "effective_flops",
        band: None,
        scale: 1e-18,
        label: "effective EFLOP/s, while steps run",
        log: true,
        percent: false,
        ideal: true,
        title: scaling_title,
    },
    Subject {
        name: "utilisation",
        heading: "Model FLOPs utilisation",
        column: "mfu_native_causal",
        band: None,
        scale: 1.0,
        label: "MFU of the peak of the linear layers' format",
        log: false,
        percent: true,
        ideal: false,
        title: utilisation_title,
    },
    Subject {
        name: "rack",
        heading: "Effective FLOP/s of one rack",
        column: "effective_flops_per_rack",
        band: None,
        scale: 1e-15,
        label: "effective PFLOP/s per rack",
        log: false,
        percent: false,
        ideal: false,
        title: rack_title,
    },
    Subject {
        name: "goodput",
        heading: "Goodput: useful time over wall time",
        column: "goodput",
        band: Some(("goodput_low", "goodput_high")),
        scale: 1.0,
        label: "useful share of wall time",
        log: false,
        percent: true,
        ideal: false,
        title: goodput_title,
    },
    Subject {
        name: "step-time",
        heading: "Time of one step",
        column: "step_time_s",
        band: None,
        scale: 1.0,
        label: "step time, seconds",
        log: true,
        percent: false,
        ideal: false,
        title: step_title,
    },
];

/// Every picture that the table has figures for.
pub fn figures(table: &Table) -> Vec<NamedPicture> {
    let curves = curves(table);
    if table.columns.iter().any(|column| column.name == USER) {
        return services(table, &curves).into_iter().collect();
    }
    let sizes = |curve: &Curve| curve.rows.len();
    if curves.iter().map(sizes).max().unwrap_or(0) < 2 {
        return bars(table).into_iter().collect();
    }
    let mut facets: Vec<&str> = Vec::new();
    for curve in &curves {
        if !facets.contains(&curve.facet.as_str()) {
            facets.push(&curve.facet);
        }
    }
    let mut found = Vec::new();
    for subject in SUBJECTS {
        for facet in &facets {
            let shown: Vec<&Curve> = curves.iter().filter(|c| c.facet == **facet).collect();
            found.extend(over_gpus(table, subject, facet, &shown));
        }
    }
    for facet in &facets {
        let shown: Vec<&Curve> = curves.iter().filter(|c| c.facet == **facet).collect();
        found.extend(pareto(table, facet, &shown));
        found.extend(loss(table, facet, &shown));
    }
    found
}

const GPUS: &str = "sweep.cluster.gpus";
const USER: &str = "tokens_per_s_per_user";

/// What one user sees against what one GPU delivers, a mark for each service.
fn services(table: &Table, curves: &[Curve]) -> Option<NamedPicture> {
    let mut series: Vec<Series> = curves
        .iter()
        .map(|curve| {
            // A single case has a name of its own, such as `tensor=2`.
            let name = match (curve.rows.as_slice(), curve.facet.as_str()) {
                ([row], _) => table.text(*row, "case"),
                (_, "") => curve.name.clone(),
                (_, facet) => format!("{}, {facet}", curve.name),
            };
            let marks = points(table, curve, USER, "output_tokens_per_s_per_gpu", 1.0);
            Series::line(&name, marks).drawn(Kind::Points)
        })
        .filter(|series| !series.points.is_empty())
        .collect();
    tell_apart(&mut series);
    let all = series
        .iter()
        .flat_map(|s| s.points.iter().map(move |p| (s, p)));
    let (best, most) = all.max_by(|a, b| a.1.1.total_cmp(&b.1.1))?;
    let title = format!(
        "{} delivers most: {} tokens/s per GPU at {} per user",
        best.name,
        short(most.1),
        short(most.0)
    );
    let shown: Vec<&Curve> = curves.iter().collect();
    let picture = Lines {
        title,
        subtitle: format!(
            "{}; each mark is one case; towards the upper right is better",
            subtitle(table, &shown, "")
        ),
        x: Axis::linear("tokens/s per user"),
        y: Axis::linear("output tokens/s per GPU"),
        series,
        note: String::new(),
    }
    .picture();
    Some(NamedPicture {
        kind: "services",
        name: "services".to_owned(),
        subject: "What one user sees, and what one GPU delivers",
        facet: String::new(),
        picture,
    })
}

/// Splits the cases into curves. The first choice names the curve, the others the facet; what the
/// number of GPUs decides (a batch that grows with it) names neither.
fn curves(table: &Table) -> Vec<Curve> {
    let parameters: Vec<&str> = table
        .columns
        .iter()
        .map(|column| column.name.as_str())
        .filter(|name| name.starts_with("sweep.") && *name != GPUS)
        .collect();
    let done: Vec<usize> = (0..table.rows.len())
        .filter(|row| table.real(*row, "gpus").is_some())
        .collect();
    let free: Vec<&str> = parameters
        .iter()
        .copied()
        .filter(|name| !follows_gpus(table, &done, name, &parameters))
        .collect();
    let mut curves: Vec<Curve> = Vec::new();
    for row in done {
        let values: Vec<String> = free.iter().map(|name| table.text(row, name)).collect();
        let (first, others) = values.split_first().map_or(("", &[][..]), |(a, b)| (a, b));
        let name = if first.is_empty() {
            table.text(row, "accelerator")
        } else {
            first.to_owned()
        };
        let others: Vec<&str> = others
            .iter()
            .map(String::as_str)
            .filter(|v| !v.is_empty())
            .collect();
        let facet = others.join(", ");
        match curves
            .iter_mut()
            .find(|c| c.name == name && c.facet == facet)
        {
            Some(curve) => curve.rows.push(row),
            None => curves.push(Curve {
                name,
                facet,
                rows: vec![row],
            }),
        }
    }
    curves
}

/// Whether a swept field is decided by the number of GPUs and the named choices: no two cases that
/// agree in those differ in it, and it is no named choice itself.
fn follows_gpus(table: &Table, rows: &[usize], name: &str, parameters: &[&str]) -> bool {
    let is_field = |name: &str| name.trim_start_matches("sweep.").contains('.');
    if !is_field(name) || !parameters.iter().any(|p| !is_field(p)) && rows.len() < 2 {
        return false;
    }
    let key = |row: usize| {
        let choices = parameters
            .iter()
            .filter(|p| !is_field(p))
            .map(|p| table.text(row, p));
        choices.chain([table.text(row, "gpus")]).collect::<Vec<_>>()
    };
    let mut seen = std::collections::BTreeMap::new();
    rows.iter().all(|row| {
        let value = table.text(*row, name);
        *seen.entry(key(*row)).or_insert_with(|| value.clone()) == value
    }) && seen.len() > 1
}

fn points(table: &Table, curve: &Curve, x: &str, y: &str, scale: f64) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> = curve
        .rows
        .iter()
        .filter_map(|row| Some((table.real(*row, x)?, table.real(*row, y)? * scale)))
        .collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

fn over_gpus(
    table: &Table,
    subject: &Subject,
    facet: &str,
    curves: &[&Curve],
) -> Option<NamedPicture> {
    let mut series: Vec<Series> = curves
        .iter()
        .map(|curve| {
            let line = |column| points(table, curve, "gpus", column, subject.scale);
            let mut series = Series::line(&curve.name, line(subject.column));
            if let Some((low, high)) = subject.band {
                let bounds = line(low).into_iter().zip(line(high));
                series.band = bounds.map(|(low, high)| (low.1, high.1)).collect();
            }
            series
        })
        .filter(|series| !series.points.is_empty())
        .collect();
    if series.is_empty() {
        return None;
    }
    tell_apart(&mut series);
    let title = (subject.title)(&series);
    if subject.ideal {
        series.extend(ideal(&series));
    }
    let scaled = if subject.log { Axis::log } else { Axis::linear };
    let mut y = scaled(subject.label);
    if subject.percent {
        y = y.written(Ticks::Percent);
    }
    if !subject.log {
        let all = series.iter().flat_map(|s| {
            s.points
                .iter()
                .map(|p| p.1)
                .chain(s.band.iter().map(|b| b.1))
        });
        let highest = all.fold(0.0, f64::max);
        y = y.from_to(0.0, highest * 1.05);
    }
    let picture = Lines {
        title,
        subtitle: subtitle(table, curves, facet),
        x: gpu_axis(&series),
        y,
        series,
        note: String::new(),
    }
    .picture();
    Some(NamedPicture {
        kind: subject.name,
        name: file_name(subject.name, facet),
        subject: subject.heading,
        facet: facet.to_owned(),
        picture,
    })
}

/// The palette has seven colours; an eighth curve is black instead of like the first.
fn tell_apart(series: &mut [Series]) {
    if let Some(eighth) = series.get_mut(style::SERIES.len()) {
        eighth.ink = Some(style::TEXT);
    }
}

/// A logarithmic axis that names the sizes of the sweep themselves.
fn gpu_axis(series: &[Series]) -> Axis {
    let mut sizes: Vec<f64> = series
        .iter()
        .flat_map(|s| s.points.iter().map(|p| p.0))
        .collect();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();
    let mut axis = Axis::log("GPUs").written(Ticks::Number);
    if sizes.len() <= 10 {
        axis.named = Some(sizes);
    }
    axis
}

/// What linear scaling from the smallest size of the uppermost curve would be.
fn ideal(series: &[Series]) -> Option<Series> {
    let best = series
        .iter()
        .filter(|s| s.points.len() > 1)
        .max_by(|a, b| a.points[0].1.total_cmp(&b.points[0].1))?;
    let (x, y) = best.points[0];
    let line = best
        .points
        .iter()
        .map(|(at, _)| (*at, y * at / x))
        .collect();
    Some(Series::line("linear", line).drawn(Kind::Ideal))
}

fn subtitle(table: &Table, curves: &[&Curve], facet: &str) -> String {
    let model = curves
        .first()
        .and_then(|curve| curve.rows.first())
        .map_or_else(String::new, |row| table.text(*row, "model"));
    if facet.is_empty() {
        model
    } else {
        format!("{model}: {facet}")
    }
}

fn file_name(subject: &str, facet: &str) -> String {
    let mut name = subject.to_owned();
    for word in facet.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        if !word.is_empty() {
            name.push('-');
            name.push_str(word);
        }
    }
    name
}

/// Where on both axes.
type Point = (f64, f64);

/// The curve that ends highest, with its first and last point.
fn leader(series: &[Series]) -> Option<(&Series, Point, Point)> {
    let with_ends = |s| {
        let s: &Series = s;
        Some((s, *s.points.first()?, *s.points.last()?))
    };
    series
        .iter()
        .filter_map(with_ends)
        .filter(|(s, ..)| s.points.len() > 1)
        .max_by(|a, b| a.2.1.total_cmp(&b.2.1))
}

/// A figure for a title: three digits, and no zeros after the point.
fn short(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    let text = crate::format::number(value, digits);
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

fn percent_of(fraction: f64) -> String {
    format!("{:.0} %", fraction * 100.0)
}

fn scaling_title(series: &[Series]) -> String {
    leader(series).map_or_else(String::new, |(s, first, last)| {
        format!(
            "{} times the GPUs give {} times the FLOP/s on {}",
            short(last.0 / first.0),
            short(last.1 / first.1),
            s.name
        )
    })
}

fn utilisation_title(series: &[Series]) -> String {
    leader(series).map_or_else(String::new, |(s, first, last)| {
        format!(
            "At {} GPUs, {} of peak are left of the {} at {} on {}",
            short(last.0),
            percent_of(last.1),
            percent_of(first.1),
            short(first.0),
            s.name
        )
    })
}

fn rack_title(series: &[Series]) -> String {
    leader(series).map_or_else(String::new, |(s, _, last)| {
        format!(
            "A rack of {} delivers {} PFLOP/s at {} GPUs",
            s.name,
            short(last.1),
            short(last.0)
        )
    })
}

fn goodput_title(series: &[Series]) -> String {
    leader(series).map_or_else(String::new, |(s, first, last)| {
        format!(
            "Failures leave {} of the time at {} GPUs and {} at {}, on {}",
            percent_of(first.1),
            short(first.0),
            percent_of(last.1),
            short(last.0),
            s.name
        )
    })
}

fn step_title(series: &[Series]) -> String {
    let fastest = series
        .iter()
        .filter_map(|s| s.points.last().map(|last| (s, *last)))
        .min_by(|a, b| a.1.1.total_cmp(&b.1.1));
    fastest.map_or_else(String::new, |(s, last)| {
        format!(
            "The shortest step at {} GPUs takes {} s, on {}",
            short(last.0),
            short(last.1),
            s.name
        )
    })
}

/// What a Pareto front weighs against each other; of both, less is better.
struct Tradeoff {
    x: &'static str,
    y: &'static str,
    /// From the column's value to that of the axis.
    of_x: fn(f64) -> f64,
    of_y: fn(f64) -> f64,
    x_label: &'static str,
    y_label: &'static str,
    heading: &'static str,
    /// Both values of a point, in words.
    words: fn(Point) -> String,
}

/// Where runs are simulated, their days and dollars; else what a steady cluster takes for tokens.
const TRADEOFFS: [Tradeoff; 2] = [
    Tradeoff {
        x: "days_to_train",
        y: "usd_to_train",
        of_x: |days| days,
        of_y: |usd| usd * 1e-6,
        x_label: "days to train",
        y_label: "million USD to train",
        heading: "Pareto front: dollars against days",
        words: |(x, y)| format!("{} days for {} M USD", short(x), short(y)),
    },
    Tradeoff {
        x: "tokens_per_day",
        y: "usd_per_million_tokens",
        of_x: |tokens| 1e12 / tokens,
        of_y: |usd| usd,
        x_label: "days for a trillion tokens, while steps run",
        y_label: "USD for a million tokens",
        heading: "Pareto front: price against speed",
        words: |(x, y)| {
            format!(
                "{} days a trillion tokens at {} USD a million",
                short(x),
                short(y)
            )
        },
    },
];

/// Price against time: the lower left is better, a curve shows what haste costs, and the front joins
/// what nothing beats in both.
fn pareto(table: &Table, facet: &str, curves: &[&Curve]) -> Option<NamedPicture> {
    let of = |tradeoff: &'static Tradeoff| {
        let mut series: Vec<Series> = curves
            .iter()
            .map(|curve| {
                let points = points(table, curve, tradeoff.x, tradeoff.y, 1.0);
                let mut points: Vec<Point> = points
                    .into_iter()
                    .map(|(x, y)| ((tradeoff.of_x)(x), (tradeoff.of_y)(y)))
                    .collect();
                points.sort_by(|a, b| a.0.total_cmp(&b.0));
                Series::line(&curve.name, points)
            })
            .filter(|series| !series.points.is_empty())
            .collect();
        tell_apart(&mut series);
        (!series.is_empty()).then_some((tradeoff, series))
    };
    let (tradeoff, mut series) = TRADEOFFS.iter().find_map(of)?;
    let front = front(&series);
    let ((fast, from), (cheap, to)) = (front.first()?.clone(), front.last()?.clone());
    let title = if from == to {
        format!("{fast} is fastest and cheapest: {}", (tradeoff.words)(from))
    } else {
        format!(
            "Between {} ({fast}) and {} ({cheap}), what is faster costs more",
            (tradeoff.words)(from),
            (tradeoff.words)(to)
        )
    };
    let all: usize = series.iter().map(|s| s.points.len()).sum();
    let note = format!(
        "Each mark is one size of the cluster. The dashed front joins the {} of {all} that no other beats in both.",
        front.len()
    );
    let joined = front.into_iter().map(|(_, point)| point).collect();
    series.push(Series::line("Pareto front", joined).drawn(Kind::Ideal));
    let picture = Lines {
        title,
        subtitle: subtitle(table, curves, facet),
        x: Axis::log(tradeoff.x_label),
        y: Axis::log(tradeoff.y_label),
        series,
        note,
    }
    .picture();
    Some(NamedPicture {
        kind: "pareto",
        name: file_name("pareto", facet),
        subject: tradeoff.heading,
        facet: facet.to_owned(),
        picture,
    })
}

/// The points that no other beats in both, the fastest first, with the names of their curves.
fn front(series: &[Series]) -> Vec<(String, Point)> {
    let mut all: Vec<(&str, Point)> = series
        .iter()
        .flat_map(|s| s.points.iter().map(|point| (s.name.as_str(), *point)))
        .collect();
    all.sort_by(|(_, a), (_, b)| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut least = f64::INFINITY;
    let mut front = Vec::new();
    for (name, point) in all {
        if point.1 < least {
            least = point.1;
            front.push((name.to_owned(), point));
        }
    }
    front
}

/// Loss against cost: what a larger cluster buys in the same time.
fn loss(table: &Table, facet: &str, curves: &[&Curve]) -> Option<NamedPicture> {
    let mut series: Vec<Series> = curves
        .iter()
        .map(|curve| {
            let mut points: Vec<(f64, f64)> = curve
                .rows
                .iter()
                .filter_map(|row| {
                    let usd = table.real(*row, "usd_to_train")? * 1e-6;
                    Some((usd, table.real(*row, "optimal_loss")?))
                })
                .collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Series::line(&curve.name, points)
        })
        .filter(|series| series.points.len() > 1)
        .collect();
    tell_apart(&mut series);
    // A run of given tokens has one loss, whatever it costs.
    let spread = |s: &Series| (s.points[0].1 - s.points[s.points.len() - 1].1).abs() > 1e-4;
    if !series.iter().any(spread) {
        return None;
    }
    let (best, first, last) = series
        .iter()
        .map(|s| (s, s.points[0], s.points[s.points.len() - 1]))
        .min_by(|a, b| a.2.1.total_cmp(&b.2.1))?;
    let title = format!(
        "{} times the money lowers the loss from {:.3} to {:.3}, on {}",
        short(last.0 / first.0),
        first.1,
        last.1,
        best.name
    );
    // Nothing here begins at zero: what is drawn is how little of the loss money takes away.
    let losses = || {
        series
            .iter()
            .flat_map(|s| s.points.iter().map(|point| point.1))
    };
    let lowest = losses().fold(f64::INFINITY, f64::min);
    let highest = losses().fold(f64::NEG_INFINITY, f64::max);
    let margin = 0.05 * (highest - lowest);
    let picture = Lines {
        title,
        subtitle: subtitle(table, curves, facet),
        x: Axis::log("million USD"),
        y: Axis::linear("loss of the compute-optimal dense model, nats per token")
            .from_to(lowest - margin, highest + margin),
        series,
        note:
            "Chinchilla law, refit of Besiroglu et al. 2024. Each mark is one size of the cluster."
                .to_owned(),
    }
    .picture();
    Some(NamedPicture {
        kind: "loss",
        name: file_name("loss", facet),
        subject: "Loss against cost",
        facet: facet.to_owned(),
        picture,
    })
}

/// The largest number of bars that is still read.
const MOST_BARS: usize = 40;

/// One bar for each case, best first, where no curve can be drawn.
fn bars(table: &Table) -> Option<NamedPicture> {
    let mut cases: Vec<(String, f64, f64)> = (0..table.rows.len())
        .filter_map(|row| {
            let effective = table.real(row, "effective_flops_per_rack")?;
            let peak = table.real(row, "peak_flops_per_rack")?;
            let Cell::Text(name) = table.cell(row, "case") else {
                return None;
            };
            Some((name.clone(), effective * 1e-15, effective / peak))
        })
        .collect();
    cases.sort_by(|a, b| b.1.total_cmp(&a.1));
    let (best, worst) = (cases.first()?.clone(), cases.last()?.clone());
    cases.truncate(MOST_BARS);
    let title = if cases.len() > 1 {
        format!(
            "{} delivers {} times as much per rack as {}",
            best.0,
            short(best.1 / worst.1),
            worst.0
        )
    } else {
        format!("A rack delivers {} PFLOP/s", short(best.1))
    };
    let bar = |(name, value, share): &(String, f64, f64)| {
        let figure = format!("{}, {}", short(*value), percent_of(*share));
        Bar::new(name, *value, style::USEFUL, &figure)
    };
    let picture = Bars {
        title,
        subtitle: "effective PFLOP/s of one rack, and its share of the dense peak".to_owned(),
        axis: Axis::linear("PFLOP/s per rack"),
        bars: cases.iter().map(bar).collect(),
        ..Bars::default()
    }
    .picture();
    Some(NamedPicture {
        kind: "racks",
        name: "racks".to_owned(),
        subject: "Effective FLOP/s of one rack",
        facet: String::new(),
        picture,
    })
}
