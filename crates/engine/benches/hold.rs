//! The hold model: pop the earliest event, schedule it again a random while later.
//!
//! `cargo bench -p rackflow-engine` takes a few minutes. One iteration is one hold, so criterion's
//! `Melem/s` is millions of events per second. To measure by hand and get processor time as well as
//! the quietest moment, `cargo bench -p rackflow-engine -- --table` prints the table of
//! `docs/engine.md`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use rackflow_engine::queues::{DaryHeap, LadderQueue, PendingSet, StdHeap};
use rackflow_engine::{EventClass, EventId, EventQueue, RandomStream};
use rackflow_units::{SimDuration, SimTime};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Mean time between pop and rescheduled event [ps].
const MEAN: f64 = 1e9;

/// Increments drawn beforehand.
const INCREMENTS: usize = 1 << 16;

/// The event that stands in for a timeout; the others are numbers.
const TIMEOUT: u64 = u64::MAX;

/// How much later an event is scheduled again.
#[derive(Debug, Clone, Copy)]
enum Increments {
    /// Exponential: no ties to speak of.
    Exponential,
    /// Uniform between nothing and twice the mean.
    Uniform,
    /// Exponential, the same for sixteen events in a row: sixteen share each instant.
    Groups16,
    /// One of sixteen multiples of one step: crowds at each of the next sixteen steps.
    Ties16,
    /// Always the same: everything is pending at one instant.
    AllTied,
    /// Nine of ten within microseconds, one of ten far beyond: two clusters, six decades apart.
    Bimodal,
}

impl Increments {
    const ALL: [Self; 6] = [
        Self::Exponential,
        Self::Uniform,
        Self::Groups16,
        Self::Ties16,
        Self::AllTied,
        Self::Bimodal,
    ];

    /// So many events in a row get the same increment.
    fn group(self) -> usize {
        match self {
            Self::Groups16 => 16,
            _ => 1,
        }
    }

    fn draw(self, random: &mut RandomStream) -> u64 {
        match self {
            Self::Exponential | Self::Groups16 => random.exponential(MEAN) as u64,
            Self::Uniform => (random.uniform() * 2.0 * MEAN) as u64,
            Self::Ties16 => (1 + random.below(16)) * (MEAN / 8.0) as u64,
            Self::AllTied => MEAN as u64,
            Self::Bimodal if random.happens(0.9) => random.exponential(MEAN / 1e3) as u64,
            Self::Bimodal => (MEAN * 1e3) as u64 + random.exponential(MEAN) as u64,
        }
    }
}

/// A queue in the middle of a hold model.
struct Hold<Q> {
    queue: EventQueue<u64, Q>,
    /// Increments drawn beforehand, so that the generator is not what is measured.
    increments: Vec<u64>,
    at: usize,
    /// When cancelling: the ids of events that stand in for timeouts.
    timeouts: Vec<EventId>,
}

impl<Q: PendingSet> Hold<Q> {
    fn new(pending: usize, kind: Increments, cancelling: bool) -> Self {
        let mut random = RandomStream::root(1)
            .derive("hold")
            .derive(&format!("{kind:?}"));
        let mut increments = Vec::with_capacity(INCREMENTS);
        while increments.len() < INCREMENTS {
            let increment = kind.draw(&mut random);
            increments.extend(std::iter::repeat_n(increment, kind.group()));
        }
        let mut queue = EventQueue::with_pending_set();
        let mut at = SimTime::ZERO;
        for i in 0..pending {
            if i % kind.group() == 0 {
                at = SimTime::from_picos(kind.draw(&mut random));
            }
            queue.schedule(at, EventClass((i % 3) as u8), i as u64);
        }
        let mut hold = Self {
            queue,
            increments,
            at: INCREMENTS - 1,
            timeouts: Vec::new(),
        };
        if cancelling {
            for _ in 0..pending.min(1024) {
                let at = hold.next();
                hold.timeouts
                    .push(hold.queue.schedule(at, EventClass(3), TIMEOUT));
            }
        }
        // Reach the steady state.
        let holds = 2 * pending.min(2_000_000);
        hold.run(holds.next_multiple_of(kind.group()) as u64);
        hold
    }

    fn next(&mut self) -> SimTime {
        self.at = (self.at + 1) % INCREMENTS;
        self.queue.now() + SimDuration::from_picos(self.increments[self.at])
    }

    /// Pops and schedules `holds` events. When cancelling, each hold also takes back the oldest
    /// timeout, unless it has expired, and sets another.
    fn run(&mut self, holds: u64) {
        let mut oldest = 0;
        for _ in 0..holds {
            let mut event = TIMEOUT;
            while event == TIMEOUT {
                (_, event) = self.queue.pop().expect("the hold model never runs dry");
            }
            let at = self.next();
            self.queue
                .schedule(at, EventClass((event % 3) as u8), event);
            if !self.timeouts.is_empty() {
                self.queue.cancel(self.timeouts[oldest]);
                let at = self.next();
                self.timeouts[oldest] = self.queue.schedule(at, EventClass(3), TIMEOUT);
                oldest = (oldest + 1) % self.timeouts.len();
            }
        }
        black_box(self.queue.now());
    }
}

fn bench<Q: PendingSet>(c: &mut Criterion, name: &str) {
    let mut group = c.benchmark_group("hold");
    group.throughput(Throughput::Elements(1)).sample_size(10);
    group
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    for (kind, pending) in [
        (Increments::Exponential, 1_000),
        (Increments::Exponential, 10_000),
        (Increments::Exponential, 100_000),
        (Increments::Exponential, 1_000_000),
        (Increments::Exponential, 10_000_000),
        (Increments::Uniform, 100_000),
        (Increments::Groups16, 100_000),
        (Increments::Ties16, 100_000),
        (Increments::AllTied, 100_000),
        (Increments::Bimodal, 100_000),
    ] {
        let mut hold = Hold::<Q>::new(pending, kind, false);
        group.bench_function(BenchmarkId::new(format!("{name}/{kind:?}"), pending), |b| {
            b.iter_custom(|holds| timed(|| hold.run(holds)));
        });
    }
    let mut hold = Hold::<Q>::new(100_000, Increments::Exponential, true);
    group.bench_function(
        BenchmarkId::new(format!("{name}/Cancelling"), 100_000),
        |b| {
            b.iter_custom(|holds| timed(|| hold.run(holds)));
        },
    );
}

#[allow(
    clippy::disallowed_methods,
    reason = "a bench looks at the clock on the wall"
)]
fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn every_queue(c: &mut Criterion) {
    bench::<StdHeap>(c, "std_heap");
    bench::<DaryHeap<4>>(c, "heap_of_4");
    bench::<DaryHeap<8>>(c, "heap_of_8");
    bench::<LadderQueue>(c, "ladder");
}

/// Processor time of this process, from Linux; neighbours on the machine do not count in it.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let nanos = stat
        .split(' ')
        .next()
        .and_then(|field| field.parse().ok())
        .unwrap_or(0);
    Duration::from_nanos(nanos)
}

/// Million holds per second of processor time: the median and the best of five rounds.
fn rates<Q: PendingSet>(pending: usize, kind: Increments, cancelling: bool) -> (f64, f64) {
    const ROUND: Duration = Duration::from_millis(120);
    let mut hold = Hold::<Q>::new(pending, kind, cancelling);
    let mut rates: Vec<f64> = (0..5)
        .map(|_| {
            let (before, mut holds, mut took) = (processor_time(), 0, Duration::ZERO);
            while took < ROUND {
                hold.run(50_000);
                holds += 50_000;
                took = processor_time() - before;
            }
            holds as f64 / took.as_secs_f64() / 1e6
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    (rates[rates.len() / 2], rates[rates.len() - 1])
}

/// Prints a Markdown table: median (best) of each queue, or of one queue, size and kind.
fn table(only: Option<&str>, only_pending: Option<usize>, only_kind: Option<&str>) {
    println!("| pending | increments | std heap | 4-ary heap | 8-ary heap | ladder |");
    println!("|---|---|---|---|---|---|");
    let wanted = |kind: &Increments| only_kind.is_none_or(|only| format!("{kind:?}") == only);
    for kind in Increments::ALL.into_iter().filter(wanted) {
        for pending in [1_000, 10_000, 100_000, 1_000_000, 10_000_000] {
            if pending == 10_000_000 && !matches!(kind, Increments::Exponential) {
                continue;
            }
            if only_pending.is_none_or(|only| only == pending) {
                row(pending, kind, false, only);
            }
        }
    }
    for pending in [1_000, 100_000, 1_000_000] {
        if only_kind.is_none() && only_pending.is_none_or(|only| only == pending) {
            row(pending, Increments::Exponential, true, only);
        }
    }
}

fn row(pending: usize, kind: Increments, cancelling: bool, only: Option<&str>) {
    let cell = |name: &str, rates: fn(usize, Increments, bool) -> (f64, f64)| {
        if only.is_some_and(|only| only != name) {
            return " - |".to_owned();
        }
        let (median, best) = rates(pending, kind, cancelling);
        format!(" {median:.1} ({best:.1}) |")
    };
    let cancelling = if cancelling { ", cancelling" } else { "" };
    let mut line = format!("| {pending:.0e} | {kind:?}{cancelling} |");
    line += &cell("std_heap", rates::<StdHeap>);
    line += &cell("heap_of_4", rates::<DaryHeap<4>>);
    line += &cell("heap_of_8", rates::<DaryHeap<8>>);
    line += &cell("ladder", rates::<LadderQueue>);
    println!("{line}");
}

criterion_group! {
    name = benches;
    config = Criterion::default().without_plots();
    targets = every_queue
}

fn main() {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--table");
    if arguments.next().is_some() {
        let only = arguments.next().filter(|name| name != "--bench");
        let only_pending = arguments.next().and_then(|number| number.parse().ok());
        let only_kind = arguments.next();
        return table(only.as_deref(), only_pending, only_kind.as_deref());
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
