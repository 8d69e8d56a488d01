//! Several jobs on one fabric, side by side.
//!
//! A job that trains repeats its step, and a job that serves answers its requests. Each has a clock
//! and a queue of its own; the net is one, and the job with the earliest event goes next. A flow of
//! one job that changes the rate of another's moves the end of that flow in the other's queue.

use crate::fabric::{self, Fabric, JobLinks, Keep, Site};
use crate::fold::Folding;
use crate::ports::{self, Outages, Toggle};
use crate::record::Record;
use crate::serving::{
    Fleet, Ground, Rows, ServeError, ServiceTrace, ServiceWish, ServingRecord, ServingRun,
    all_gpus, visitors,
};
use crate::step::Step;
use crate::trace::Trace;
use rackflow_network::{FlowId, FlowNet};
use rackflow_plan::serving::FleetPlan;
use rackflow_plan::{Flows, Plan};
use rackflow_topology::{Cluster, Health, LinkFault};
use rackflow_units::{SimDuration, SimTime};

/// What happened to one job beside the others.
#[derive(Debug, Clone)]
pub struct JobRecord {
    /// The step whose time is nearest the mean of those that count.
    pub record: Record,
    /// Mean time of the steps that count: all but the first, which began when the fabric was empty,
    /// until every job had enough.
    pub step_time: SimDuration,
    /// The shortest and the longest of them.
    pub step_time_range: [SimDuration; 2],
    /// How many there are.
    pub steps: u64,
}

/// The rows of the trace of a serving job, from its beginning.
pub type JobRows<'r> = dyn Fn() -> Rows<'static> + 'r;

/// A job beside others.
#[derive(Clone, Copy)]
pub enum Job<'a> {
    /// It repeats its step.
    Training(&'a Plan),
    /// It answers its requests, those of the trace where there is one, and begins again while others
    /// need company.
    Serving(&'a FleetPlan, Option<&'a JobRows<'a>>),
}

/// What became of a job.
#[derive(Debug, Clone)]
pub enum JobOutcome {
    /// It trained.
    Training(Box<JobRecord>),
    /// It served: its first run.
    Serving(Box<ServingRecord>),
}

/// Steps of the slowest job that count.
const COUNTED: usize = 3;
/// Records of a job that are kept; of more steps only the times are.
const KEPT: usize = 16;

/// Simulates jobs that train and share a cluster until each has run a few steps beside the others.
///
/// # Panics
/// When the plans do not sit in one cluster, or as [`crate::simulate`].
pub fn simulate_jobs(plans: &[Plan]) -> Vec<JobRecord> {
    let jobs: Vec<Job<'_>> = plans.iter().map(Job::Training).collect();
    let outcomes = simulate_mixed(&jobs).expect("only serving fails");
    outcomes
        .into_iter()
        .map(|outcome| match outcome {
            JobOutcome::Training(record) => *record,
            JobOutcome::Serving(_) => unreachable!("all jobs train"),
        })
        .collect()
}

/// Simulates jobs that share a cluster until each that trains has run a few steps beside the others
/// and each that serves has answered its requests.
///
/// # Errors
/// As [`serving::serve`].
///
/// # Panics
/// When the jobs do not sit in one cluster, or as [`crate::simulate`].
pub fn simulate_mixed(jobs: &[Job<'_>]) -> Result<Vec<JobOutcome>, ServeError> {
    simulate_mixed_for(jobs, COUNTED)
}

/// The same until so many steps of each job that trains count. Jobs whose steps are not equally long
/// meet in another way at every step, so that the mean of more of them says more.
///
/// # Errors
/// As [`simulate_mixed`].
///
/// # Panics
/// As [`simulate_mixed`], and when no step is to count.
pub fn simulate_mixed_for(jobs: &[Job<'_>], counted: usize) -> Result<Vec<JobOutcome>, ServeError> {
    assert!(counted > 0, "the mean of no step");
    simulate_watched(jobs, counted, None).map(|(outcomes, _)| outcomes)
}

/// As [`simulate_mixed`], and what one of the jobs did when: of one that trains the step whose time is
/// nearest the mean, on its own clock.
///
/// # Errors
/// As [`simulate_mixed`].
///
/// # Panics
/// As [`simulate_mixed`].
pub fn simulate_mixed_traced(
    jobs: &[Job<'_>],
    job: usize,
    wish: &JobWish,
) -> Result<(Vec<JobOutcome>, JobTrace), ServeError> {
    let (outcomes, trace) = simulate_watched(jobs, COUNTED, Some((job, wish)))?;
    Ok((outcomes, trace.expect("one of the jobs was watched")))
}

/// What of a job is written down.
#[derive(Debug, Clone, PartialEq)]
pub enum JobWish {
    /// Of one that trains, what these ranks do.
    Ranks(Vec<u32>),
    /// Of one that serves.
    Service(ServiceWish),
}

/// What a job did when.
#[derive(Debug, Clone, PartialEq)]
pub enum JobTrace {
    /// It trained.
    Training(Trace),
    /// It served.
    Serving(ServiceTrace),
}

fn simulate_watched(
    jobs: &[Job<'_>],
    counted: usize,
    watched: Option<(usize, &JobWish)>,
) -> Result<(Vec<JobOutcome>, Option<JobTrace>), ServeError> {
    let Some(first) = jobs.first() else {
        return Ok((Vec::new(), None));
    };
    let (host, faults, seed) = first.place();
    let same = |job: &Job<'_>| job.place().0 == host;
    assert!(jobs.iter().all(same), "jobs share one cluster");
    let fleets: Vec<Fleet<'_>> = jobs.iter().filter_map(Job::fleet).collect();
    let plans: Vec<&Plan> = jobs.iter().filter_map(Job::plan).collect();
    let health = Health::new(host, faults)
        .unwrap_or_else(|(_, error)| panic!("the faults were not checked: {error}"));
    let visitors: Vec<Flows> = fleets.iter().flat_map(visitors).collect();
    let site = Site {
        host,
        seed,
        // Plans that have the tiers in their prices must not meet them again.
        on_fabric: plans.iter().any(|plan| plan.on_fabric)
            || fleets
                .iter()
                .any(|fleet| fleet.site.is_some_and(|site| site.on_fabric)),
        keep: Keep::Narrow,
        visitors: &visitors,
    };
    let (folded, fabric) = fabric::lay_out(site, &plans, &health);
    let seated = Seated::new(jobs, &fleets, &folded, &fabric, &health);
    let mut net = FlowNet::with_links(seated.endpoints as usize, &fabric.capacities);
    let mut running = Vec::new();
    let (mut trained, mut served) = (0, 0);
    for (index, job) in jobs.iter().enumerate() {
        let first_port = seated.first_ports[index];
        match job {
            Job::Training(plan) => {
                ports::degrade(plan, &folded[trained], &health, first_port, &mut net);
                let ranks = match watched {
                    Some((at, JobWish::Ranks(ranks))) if at == index => ranks.as_slice(),
                    _ => &[],
                };
                running.push(Running::Training(Box::new(Training::new(
                    plan,
                    &folded[trained],
                    &fabric.jobs[trained],
                    first_port,
                    ranks,
                ))));
                trained += 1;
            }
            Job::Serving(_, trace) => {
                let gpus = all_gpus(&fleets[served]);
                ports::degrade_gpus(&gpus, &health, first_port, &mut net);
                let ground = Ground {
                    first_port,
                    roads: fabric.roads.clone(),
                    ..Ground::default()
                };
                let mut serving = Serving::new(&fleets[served], *trace, ground);
                if let Some((at, JobWish::Service(wish))) = watched
                    && at == index
                {
                    serving.run.watch(wish);
                }
                running.push(Running::Serving(Box::new(serving)));
                served += 1;
            }
        }
    }
    let mut outages = Outages::new(seated.toggles);
    run(&mut running, &mut net, &mut outages, counted)?;
    let mut traces: Vec<Option<JobTrace>> = Vec::new();
    let mut outcomes = Vec::new();
    for job in running {
        let (outcome, trace) = job.outcome()?;
        outcomes.push(outcome);
        traces.push(trace);
    }
    let trace = watched.and_then(|(job, _)| traces.swap_remove(job));
    Ok((outcomes, trace))
}

impl<'a> Job<'a> {
    /// The cluster, its faults, and the seed.
    fn place(&self) -> (&'a Cluster, &'a [LinkFault], u64) {
        match self {
            Self::Training(plan) => {
                let setup = &plan.setup;
                (setup.host(), &setup.faults, setup.seed)
            }
            Self::Serving(plan, _) => {
                let setup = &plan.setup;
                let host = setup.host().expect("a job sits in one cluster");
                (host, &setup.faults, setup.seed)
            }
        }
    }

    fn plan(&self) -> Option<&'a Plan> {
        match self {
            Self::Training(plan) => Some(plan),
            Self::Serving(..) => None,
        }
    }

    fn fleet(&self) -> Option<Fleet<'a>> {
        match self {
            Self::Training(_) => None,
            Self::Serving(plan, _) => Some(Fleet::of(plan)),
        }
    }
}

/// Where each job is in the net.
struct Seated {
    endpoints: u32,
    first_ports: Vec<u32>,
    /// Links that flap, with the ports of all jobs.
    toggles: Vec<Toggle>,
}

impl Seated {
    fn new(
        jobs: &[Job<'_>],
        fleets: &[Fleet<'_>],
        folded: &[Folding],
        fabric: &Fabric,
        health: &Health,
    ) -> Self {
        let mut seated = Self {
            endpoints: 0,
            first_ports: Vec::new(),
            toggles: ports::toggles(health),
        };
        ports::flap_uplinks(&mut seated.toggles, fabric, health);
        let (mut folded, mut fleets) = (folded.iter(), fleets.iter());
        for job in jobs {
            let first = seated.endpoints;
            seated.first_ports.push(first);
            match job {
                Job::Training(plan) => {
                    let folding = folded.next().expect("every plan is folded");
                    ports::flap_ranks(&mut seated.toggles, plan, folding, health, first);
                    seated.endpoints += 2 * folding.entities.len() as u32;
                }
                Job::Serving(..) => {
                    let gpus = all_gpus(fleets.next().expect("every job that serves has one"));
                    ports::flap_gpus(&mut seated.toggles, &gpus, health, first);
                    seated.endpoints += 2 * gpus.len() as u32;
                }
            }
        }
        seated
    }
}

/// A job under way.
enum Running<'a> {
    Training(Box<Training<'a>>),
    Serving(Box<Serving<'a>>),
}

/// Runs all jobs in the order of time until none needs more.
fn run(
    jobs: &mut [Running<'_>],
    net: &mut FlowNet,
    outages: &mut Outages,
    counted: usize,
) -> Result<(), ServeError> {
    let mut moved = Vec::new();
    for index in 0..jobs.len() {
        with_net(jobs, index, net, Running::start)?;
    }
    while jobs.iter().any(|job| job.needs_more(counted)) {
        let soonest = (0..jobs.len())
            .filter_map(|index| Some((jobs[index].next_time()?, index)))
            .min();
        let (now, index) = soonest.expect("a job that is over begins again");
        if outages.next_time().is_some_and(|next| next < now) {
            outages.advance(net, &mut moved);
            tell(jobs, None, &mut moved);
            continue;
        }
        with_net(jobs, index, net, Running::advance)?;
        if jobs[index].next_time().is_none() {
            jobs[index].begin_again(now)?;
            with_net(jobs, index, net, Running::start)?;
        }
    }
    Ok(())
}

/// Lends the net to one job, and tells the others which of their flows it has moved.
fn with_net<'a>(
    jobs: &mut [Running<'a>],
    index: usize,
    net: &mut FlowNet,
    act: impl FnOnce(&mut Running<'a>) -> Result<(), ServeError>,
) -> Result<(), ServeError> {
    jobs[index].lend(net);
    let acted = act(&mut jobs[index]);
    jobs[index].lend(net);
    let mut moved = jobs[index].take_foreign();
    tell(jobs, Some(index), &mut moved);
    acted
}

/// Tells jobs, but for one, which of their flows end at another time.
fn tell(jobs: &mut [Running<'_>], but: Option<usize>, moved: &mut Vec<(FlowId, SimTime)>) {
    for (flow, ends) in moved.drain(..) {
        for (other, job) in jobs.iter_mut().enumerate() {
            // A flow that ended at this very instant is nobody's any more.
            if Some(other) != but && job.ends_at(flow, ends) {
                break;
            }
        }
    }
}

impl Running<'_> {
    fn lend(&mut self, net: &mut FlowNet) {
        match self {
            Self::Training(job) => std::mem::swap(net, &mut job.step.net),
            Self::Serving(job) => {
                if let Some((own, _)) = job.run.shared() {
                    std::mem::swap(net, own);
                }
            }
        }
    }

    fn take_foreign(&mut self) -> Vec<(FlowId, SimTime)> {
        match self {
            Self::Training(job) => std::mem::take(&mut job.step.foreign),
            Self::Serving(job) => job
                .run
                .shared()
                .map(|(_, foreign)| std::mem::take(foreign))
                .unwrap_or_default(),
        }
    }

    fn ends_at(&mut self, flow: FlowId, ends: SimTime) -> bool {
        match self {
            Self::Training(job) => job.step.ends_at(flow, ends),
            Self::Serving(job) => job.run.ends_at(flow, ends),
        }
    }

    fn start(&mut self) -> Result<(), ServeError> {
        match self {
            Self::Training(job) => job.step.start(),
            Self::Serving(job) => job.run.start()?,
        }
        Ok(())
    }

    fn advance(&mut self) -> Result<(), ServeError> {
        match self {
            Self::Training(job) => {
                job.step.advance();
            }
            Self::Serving(job) => {
                job.run.advance()?;
            }
        }
        Ok(())
    }

    fn next_time(&mut self) -> Option<SimTime> {
        match self {
            Self::Training(job) => job.step.next_time(),
            Self::Serving(job) => job.run.next_time(),
        }
    }

    fn needs_more(&self, counted: usize) -> bool {
        match self {
            Self::Training(job) => job.times.len() <= counted,
            Self::Serving(job) => job.outcome.is_none(),
        }
    }

    fn begin_again(&mut self, now: SimTime) -> Result<(), ServeError> {
        match self {
            Self::Training(job) => job.begin_again(),
            Self::Serving(job) => return job.begin_again(now),
        }
        Ok(())
    }

    fn outcome(self) -> Result<(JobOutcome, Option<JobTrace>), ServeError> {
        match self {
            Self::Training(job) => {
                let (record, trace) = job.outcome();
                let trace = trace.map(JobTrace::Training);
                Ok((JobOutcome::Training(Box::new(record)), trace))
            }
            Self::Serving(job) => {
                let (record, trace) = job.outcome.expect("it has answered its requests")?;
                let trace = Some(JobTrace::Serving(trace));
                Ok((JobOutcome::Serving(Box::new(record)), trace))
            }
        }
    }
}

struct Serving<'a> {
    fleet: &'a Fleet<'a>,
    trace: Option<&'a JobRows<'a>>,
    ground: Ground,
    run: ServingRun<'a, 'static>,
    outcome: Option<Result<(ServingRecord, ServiceTrace), ServeError>>,
}

impl<'a> Serving<'a> {
    fn new(fleet: &'a Fleet<'a>, trace: Option<&'a JobRows<'a>>, ground: Ground) -> Self {
        Self {
            fleet,
            trace,
            run: run_of(fleet, trace, ground.clone()),
            ground,
            outcome: None,
        }
    }

    fn begin_again(&mut self, now: SimTime) -> Result<(), ServeError> {
        self.ground.began = now;
        let next = run_of(self.fleet, self.trace, self.ground.clone());
        let mut over = std::mem::replace(&mut self.run, next);
        if self.outcome.is_none() {
            let trace = over.take_trace();
            self.outcome = Some(Ok((over.finish()?, trace)));
        }
        Ok(())
    }
}

fn run_of<'a>(
    fleet: &'a Fleet<'a>,
    trace: Option<&JobRows<'_>>,
    ground: Ground,
) -> ServingRun<'a, 'static> {
    ServingRun::new(
        fleet,
        trace.map(|rows| rows()),
        None,
        FlowNet::new(0),
        ground,
    )
}

struct Training<'p> {
    plan: &'p Plan,
    folding: &'p Folding,
    links: &'p JobLinks,
    first_port: u32,
    step: Step<'p>,
    began: SimTime,
    times: Vec<SimDuration>,
    /// The last steps, each with what the watched ranks did.
    records: Vec<(Record, Option<Trace>)>,
    watched: &'p [u32],
}

impl<'p> Training<'p> {
    fn new(
        plan: &'p Plan,
        folding: &'p Folding,
        links: &'p JobLinks,
        first_port: u32,
        watched: &'p [u32],
    ) -> Self {
        let began = SimTime::ZERO;
        let mut step = Step::beside(plan, folding, links, first_port, began);
        step.watch_ranks(watched, folding);
        Self {
            plan,
            folding,
            links,
            first_port,
            step,
            began,
            times: Vec::new(),
            records: Vec::new(),
            watched,
        }
    }

    fn fresh(&self) -> Step<'p> {
        let mut step = Step::beside(
            self.plan,
            self.folding,
            self.links,
            self.first_port,
            self.began,
        );
        step.watch_ranks(self.watched, self.folding);
        step
    }

    fn begin_again(&mut self) {
        let placeholder = self.fresh();
        let mut finished = std::mem::replace(&mut self.step, placeholder);
        let trace = (!self.watched.is_empty())
            .then(|| finished.seen_of(&[self.watched], self.folding))
            .and_then(|mut seen| seen.pop());
        let record = finished.record(self.folding.class_of_rank.clone());
        self.began = self.began + record.step_time;
        self.times.push(record.step_time);
        if self.records.len() == KEPT {
            self.records.remove(0);
        }
        self.records.push((record, trace));
        self.step = self.fresh();
    }

    fn outcome(self) -> (JobRecord, Option<Trace>) {
        let counted = &self.times[1..];
        let sum = counted
            .iter()
            .fold(0_u128, |sum, time| sum + u128::from(time.as_picos()));
        let mean = SimDuration::from_picos((sum / counted.len() as u128) as u64);
        let off = |record: &Record| record.step_time.as_picos().abs_diff(mean.as_picos());
        let kept = self.records.len().min(counted.len());
        let records = &self.records[self.records.len() - kept..];
        let nearest = records.iter().min_by_key(|(record, _)| off(record));
        let (record, trace) = nearest.expect("a job has run steps").clone();
        let outcome = JobRecord {
            record,
            step_time: mean,
            step_time_range: [
                counted.iter().min().copied().unwrap_or(mean),
                counted.iter().max().copied().unwrap_or(mean),
            ],
            steps: counted.len() as u64,
        };
        (outcome, trace)
    }
}
