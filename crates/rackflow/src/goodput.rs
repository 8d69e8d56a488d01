//! `plan` of a serving scenario: which use of its GPUs bears the highest rate.
//!
//! Ways are taken in waves, the most promising first. Between waves those are left out whose steps
//! are too expensive in the best of batches to come near what has been seen. Waves are of one size on
//! any number of cores, so that the answer is the same.

use crate::args::{PlanArgs, PlanFormat, Precision};
use crate::failure::Failure;
use crate::input::{self, Input};
use crate::{files, planner, serve, terminal};
use clap::ColorChoice;
use indicatif::ProgressBar;
use rackflow_plan::serving::{
    Demand, FleetPlan, FleetSetup, ServingSpace, Way, compile_fleet, other_limits,
};
use rackflow_report::{Beaten, Impossible, ServingPlan, Tried, summarize_serving};
use rackflow_simulator::serving::{RequestRecord, RequestSink, highest_rate};
use rackflow_units::SimDuration;
use rackflow_workload::serving::WeightFormat;
use rackflow_workload::{Shapes, Slo};
use rayon::prelude::*;
use std::path::Path;

/// The rate is known to within this.
const PRECISION: f64 = 0.02;
/// Ways that are tried between two looks at what is worth trying.
const WAVE: usize = 4;
/// A way that fails at this part of the best rate is not searched further.
const NEAR: f64 = 0.7;
/// Ways whose engine limits are varied, of the best.
const VARIED: usize = 2;
/// Other limits of the engine must bear so much more to be told.
const WORTH_TELLING: f64 = 1.02;
/// Parts of the rate at which a way is looked at, too: where users are served faster.
const QUIETER: [f64; 3] = [0.6, 0.25, 0.06];
/// Requests outside the objective, beyond those that may be, after which a run is given up.
const HOPELESS: u64 = 2_000;

/// Searches each way's highest rate.
pub fn run(args: &PlanArgs, input: &Input, color: ColorChoice) -> Result<(), Failure> {
    if args.limit.is_some() {
        return Err(Failure::input(
            "--limit belongs to training scenarios, and this one serves\n  hint: without it, every way that is worth a look gets one",
        ));
    }
    let weights = args
        .precision
        .iter()
        .map(|precision| weights(*precision))
        .collect::<Result<_, _>>()?;
    let bar = planner::bar();
    let plan = search(input, args.attainment, weights, &bar)?;
    bar.finish_and_clear();
    if let Some(folder) = &args.output {
        let picture = plan.picture();
        files::write_folder(
            folder,
            &[
                ("plan.json", plan.to_json().as_bytes()),
                ("pareto.svg", picture.svg().as_bytes()),
                ("pareto.png", &picture.png()),
            ],
        )?;
    }
    files::print(&match args.format {
        PlanFormat::Table => plan.render(args.top as usize, &terminal::style(color)),
        PlanFormat::Json => plan.to_json(),
        PlanFormat::Markdown => {
            return Err(Failure::input(
                "--format markdown belongs to training scenarios, and this one serves
  hint: --format json",
            ));
        }
    })
}

fn weights(precision: Precision) -> Result<WeightFormat, Failure> {
    match precision {
        Precision::Bf16 => Ok(WeightFormat::Bf16),
        Precision::Fp8 => Ok(WeightFormat::Fp8),
        Precision::Fp8Blockwise => Ok(WeightFormat::Fp8Block),
        Precision::Nvfp4 => Ok(WeightFormat::Nvfp4),
        Precision::Fp16
        | Precision::Fp8Delayed
        | Precision::Fp8Rowwise
        | Precision::Mxfp8
        | Precision::All => Err(Failure::input(
            "weights are not served in that format\n  hint: bf16, fp8, fp8_blockwise or nvfp4; others are written in the scenario",
        )),
    }
}

/// The highest rate of each way to use the GPUs at which a share of requests is inside the objective.
pub fn plan(input: &Input, attainment: f64) -> Result<ServingPlan, Failure> {
    search(input, attainment, Vec::new(), &ProgressBar::hidden())
}

fn search(
    input: &Input,
    attainment: f64,
    weights: Vec<WeightFormat>,
    bar: &ProgressBar,
) -> Result<ServingPlan, Failure> {
    if !(0.0..=1.0).contains(&attainment) {
        return Err(Failure::input(format_args!(
            "--attainment is {attainment}; it must be between 0 and 1"
        )));
    }
    let resolved = input::resolve_fleet(input, None)?;
    let slo = resolved.setup.slo;
    if slo.ttft.is_none() && slo.tpot.is_none() && slo.e2e.is_none() {
        return Err(Failure::input(
            "the scenario has no `slo`, so that any rate is inside it\n  hint: slo: { ttft: 1 s, tpot: 50 ms }",
        ));
    }
    let open = resolved
        .setup
        .requests
        .arrivals
        .is_none_or(|arrivals| arrivals.rate().is_some());
    if !open {
        return Err(Failure::input(
            "the rate of a closed loop or a burst cannot be searched\n  hint: arrivals: { poisson: { rate: 2 requests/s } }",
        ));
    }
    let trace = serve::trace_path(&resolved);
    let setup = resolved.setup.clone();
    // The scenario's own way must work; others may not.
    serve::compile(resolved)?;
    let space = ServingSpace {
        weights,
        attainment,
        demand: Demand::of(&setup.requests),
    };
    let ways = space.ways(&setup);
    let mut search = Search {
        trace: trace.as_deref(),
        attainment,
        best: 0.0,
        tried: Vec::new(),
        beaten: Vec::new(),
    };
    bar.set_length(ways.ways.len() as u64);
    bar.set_message("ways of using the GPUs");
    for wave in ways.ways.chunks(WAVE) {
        search.wave(wave, NEAR)?;
        bar.inc(wave.len() as u64);
    }
    // Where no way bears anything, no limit will.
    let varied = if search.best > 0.0 { VARIED } else { 0 };
    let other: Vec<Way> = search
        .ranked()
        .into_iter()
        .take(varied)
        .filter_map(|(_, name)| ways.ways.iter().find(|way| way.name == name))
        .flat_map(|way| other_limits(way, &space))
        .collect();
    bar.inc_length(other.len() as u64);
    bar.set_message("limits of the engine");
    for wave in other.chunks(WAVE) {
        search.wave(wave, WORTH_TELLING)?;
        bar.inc(wave.len() as u64);
    }
    let impossible = ways.impossible.into_iter();
    Ok(ServingPlan::of(
        &setup.name,
        attainment,
        &search.tried,
        search.beaten,
        impossible
            .map(|(name, reason)| Impossible { name, reason })
            .collect(),
    ))
}

/// What has been found so far.
struct Search<'t> {
    trace: Option<&'t Path>,
    attainment: f64,
    /// The highest rate per GPU that was borne.
    best: f64,
    tried: Vec<Tried>,
    beaten: Vec<Beaten>,
}

impl Search<'_> {
    /// Tries ways that may come to a part of the best.
    fn wave(&mut self, ways: &[Way], part: f64) -> Result<(), Failure> {
        let worth = self.best * part;
        let (near, far): (Vec<&Way>, Vec<&Way>) =
            ways.iter().partition(|way| way.ceiling_per_gpu >= worth);
        // A way that cannot come near may still be the fastest for one user.
        let fastest = self.fastest();
        let quick: Vec<&Way> = far
            .iter()
            .copied()
            .filter(|way| way.pace > fastest)
            .collect();
        self.beaten.extend(far.iter().map(|way| Beaten {
            name: way.name.clone(),
            gpus: way.gpus().into(),
            below_requests_per_s_per_gpu: worth.min(way.ceiling_per_gpu),
            simulated: false,
        }));
        let this = &*self;
        let found: Vec<Tried> = near
            .par_iter()
            .map(|way| this.highest(way, worth))
            .chain(quick.par_iter().map(|way| this.few(way)))
            .collect::<Result<_, _>>()?;
        for (way, tried) in near.iter().zip(&found) {
            if !tried.sought {
                self.beaten.push(Beaten {
                    name: way.name.clone(),
                    gpus: way.gpus().into(),
                    below_requests_per_s_per_gpu: worth,
                    simulated: true,
                });
            }
        }
        self.tried.extend(found);
        let best = self.ranked().first().map_or(0.0, |(rate, _)| *rate);
        self.best = self.best.max(best);
        Ok(())
    }

    /// The highest rate per GPU of each way that was searched, the best first.
    fn ranked(&self) -> Vec<(f64, String)> {
        let mut all: Vec<(f64, String)> = self
            .tried
            .iter()
            .filter(|way| way.sought)
            .map(|way| {
                let passed = way.runs.iter().filter(|run| run.1);
                let rate = passed.map(|run| run.0 / run.2.cluster.gpus as f64);
                (rate.fold(0.0, f64::max), way.name.clone())
            })
            .collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        all
    }

    /// Tokens per second that a user has seen at most.
    fn fastest(&self) -> f64 {
        let runs = self.tried.iter().flat_map(|way| &way.runs);
        runs.map(|run| run.2.serving.tokens_per_s_per_user)
            .fold(0.0, f64::max)
    }

    /// The highest rate that a way bears; of one that fails at `worth` per GPU a few runs.
    fn highest(&self, way: &Way, worth: f64) -> Result<Tried, Failure> {
        let runner = Runner::of(way, self)?;
        let gpus = f64::from(way.gpus());
        let first = if worth > 0.0 {
            worth * gpus
        } else {
            runner.own
        };
        let mut runs = vec![runner.at(first)?];
        let sought = worth == 0.0 || runs[0].1;
        if sought {
            let mut known = runs.pop();
            let trials = highest_rate(PRECISION, first, |rate| {
                let run = match known.take() {
                    Some(run) => run,
                    None => runner.at(rate)?,
                };
                Ok::<_, Failure>((run.1, run))
            })?;
            runs.extend(trials.into_iter().map(|trial| trial.result));
        }
        for part in QUIETER {
            runs.push(runner.at(first * part)?);
        }
        Ok(Tried {
            name: way.name.clone(),
            runs,
            sought,
        })
    }

    /// Where a way stands that is not searched.
    fn few(&self, way: &Way) -> Result<Tried, Failure> {
        let runner = Runner::of(way, self)?;
        let most = way.ceiling_per_gpu * f64::from(way.gpus());
        Ok(Tried {
            name: way.name.clone(),
            runs: QUIETER
                .iter()
                .map(|part| runner.at(most * part))
                .collect::<Result<_, _>>()?,
            sought: false,
        })
    }
}

/// Offered rate, whether it was borne, and what it came to.
type Run = (f64, bool, rackflow_report::ServingReport);

/// One way at any rate.
struct Runner<'t> {
    plan: FleetPlan,
    trace: Option<&'t Path>,
    attainment: f64,
    /// The scenario's own rate; of a trace, 1 and the rates are multiples of its own.
    own: f64,
    /// The trace's own rate of requests, once it is known.
    of_trace: f64,
}

impl<'t> Runner<'t> {
    fn of(way: &Way, search: &Search<'t>) -> Result<Self, Failure> {
        let plan = compile_fleet(way.setup.clone()).map_err(Failure::run)?;
        let mut runner = Self {
            own: plan.setup.requests.rate_scale,
            of_trace: 1.0,
            plan,
            trace: search.trace,
            attainment: search.attainment,
        };
        let rate = runner.plan.setup.requests.arrivals.and_then(|a| a.rate());
        match rate {
            Some(rate) => runner.of_trace = rate.per_sec(),
            // Answered per second, which is what comes where the fleet can keep up.
            None => {
                let plain = runner.run(&runner.plan)?;
                runner.of_trace = plain.2.serving.requests_per_s / runner.own;
            }
        }
        runner.own *= runner.of_trace;
        Ok(runner)
    }

    /// A run at so many requests per second.
    fn at(&self, rate: f64) -> Result<Run, Failure> {
        let mut faster = self.plan.clone();
        at_rate(&mut faster.setup, rate / self.of_trace);
        let (_, passed, report) = self.run(&faster)?;
        Ok((rate, passed, report))
    }

    fn run(&self, plan: &FleetPlan) -> Result<Run, Failure> {
        let mut patience = Patience::new(plan, self.attainment);
        let record = serve::record(plan, self.trace, &mut patience)?;
        let report = summarize_serving(plan, &record, 0.0).map_err(Failure::run)?;
        // Who is turned away is not inside.
        let asked = record.measured + record.refused;
        let inside = record.inside_slo as f64 / asked.max(1) as f64;
        let passed = !patience.enough() && inside >= self.attainment;
        Ok((0.0, passed, report))
    }
}

/// The same requests at another rate. As many are measured: of drawn ones more come, since more come
/// while the fleet warms up; of a trace, which ends where it ends, the warm-up is as much shorter.
fn at_rate(setup: &mut FleetSetup, scale: f64) {
    let requests = &mut setup.requests;
    let times = scale / requests.rate_scale;
    let rate = requests.arrivals.and_then(|arrivals| arrivals.rate());
    match (&mut requests.shapes, rate) {
        (Shapes::Drawn { count, .. }, Some(rate)) => {
            let window = requests.warm_up + requests.measure_for.unwrap_or(SimDuration::ZERO);
            let more = rate.per_sec() * (scale - requests.rate_scale) * window.as_secs_f64();
            *count += more.max(0.0).ceil() as u64;
        }
        _ if times > 1.0 => {
            let spans = [Some(&mut requests.warm_up), requests.measure_for.as_mut()];
            for span in spans.into_iter().flatten() {
                *span = SimDuration::from_secs_f64(span.as_secs_f64() / times);
            }
        }
        _ => {}
    }
    requests.rate_scale = scale;
}

/// Counts requests outside the objective, and gives up when they are far too many.
struct Patience {
    slo: Slo,
    outside: u64,
    most: Option<u64>,
}

impl Patience {
    fn new(plan: &FleetPlan, attainment: f64) -> Self {
        let count = match &plan.setup.requests.shapes {
            Shapes::Drawn { count, .. } => Some(*count),
            Shapes::Trace { limit, .. } => *limit,
        };
        Self {
            slo: plan.setup.slo,
            outside: 0,
            most: count.map(|count| ((1.0 - attainment) * count as f64) as u64 + HOPELESS),
        }
    }
}

impl RequestSink for Patience {
    fn answered(&mut self, request: &RequestRecord) {
        self.outside += u64::from(request.measured && !request.inside(&self.slo));
    }

    fn enough(&self) -> bool {
        self.most.is_some_and(|most| self.outside > most)
    }
}
