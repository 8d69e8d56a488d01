//! The command line as typed.

use crate::claims::ClaimsArgs;
use crate::collective::CollectiveArgs;
use crate::plot::PlotArgs;
use crate::validate;
use clap::{Args, ColorChoice, Parser, Subcommand, ValueEnum};
use rackflow_units::{Bytes, SimDuration};
use std::path::PathBuf;

/// A discrete-event simulator of AI datacenters.
///
/// It answers three questions about a training run: how many useful FLOP/s each rack delivers, where
/// every lost FLOP went, and what to change first.
#[derive(Debug, Parser)]
#[command(
    name = "rackflow",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "\
Examples:
  rackflow list scenarios                     what can be run right away
  rackflow run deepseek-v3-2048-h800          replay a published run
  rackflow show h100-sxm                      what the simulator believes, and on whose word
  rackflow show bloom-176b-384-a100 > my.yaml start a scenario of your own from a shipped one
  rackflow check my.yaml && rackflow run my.yaml -o results

Results go to standard output and everything else to standard error. Exit status: 0 fine, 1 the run
failed, 2 the input or the usage is wrong."
)]
pub struct Cli {
    /// When to use colours; `auto` does on a terminal unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: ColorChoice,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Simulate a scenario: what does it deliver, and where does the rest go?
    #[command(after_help = "\
Examples:
  rackflow run scenarios/deepseek-v3-2048-h800.yaml
  rackflow run deepseek-v3-2048-h800 --format json | jq .training.mfu
  rackflow run my.yaml -o results             also writes results/report.txt, .json and waterfall.svg
  rackflow run my.yaml --trace step.pftrace   a timeline, for https://ui.perfetto.dev
  rackflow run serving.yaml --trace requests.pftrace --trace-window 10s..20s
  rackflow run two-jobs-oversubscribed-roce --trace step.pftrace --trace-job large
  rackflow run my.yaml --chakra traces/       execution traces, for other simulators
  cat my.yaml | rackflow run -

A plan that does not fit into memory is refused with the arithmetic and a plan that would fit.")]
    Run {
        /// What to run.
        #[command(flatten)]
        args: RunArgs,
        /// What to write down of it.
        #[command(flatten)]
        trace: TraceArgs,
    },
    /// Simulate a scenario again with a little more of each resource: what is it bound by?
    #[command(after_help = "\
Examples:
  rackflow elasticities deepseek-v3-2048-h800
  rackflow elasticities my.yaml --format json | jq -r .bound_by
  rackflow elasticities my.yaml -o results    also writes results/elasticities.txt, .json, .svg and .png

  rackflow elasticities serve-llama3-70b-8-h100     of a service: times of requests, and limits too
  rackflow elasticities two-jobs-oversubscribed-roce     of several jobs: each, and all together
  rackflow elasticities replay-chakra-8-h100     of a trace: links, and kernels as recorded

An elasticity of 0.4 means that one per cent more of the resource brings 0.4 per cent more tokens per
second. Nothing but that resource changes; the plan stays as it is.")]
    Elasticities(RunArgs),
    /// Search for better plans: how should the ranks divide this work?
    #[command(after_help = "\
Examples:
  rackflow plan llama3-405b-16384-h100
  rackflow plan my.yaml --top 3 --format json | jq .best[0].plan
  rackflow plan my.yaml --precision fp8 --precision bf16
  rackflow plan my.yaml --precision all
  rackflow plan scenarios/llama3-405b-*.yaml      each one's own plan beside the best

Tried are all divisors of tensor, context, pipeline, data and expert parallelism, virtual stages,
schedules, micro-batches, ZeRO stages and recomputation; model, batch, cluster and stack stay. A plan is
left out only if it does not fit into memory, or if a bound proves that it cannot be among the best.

  rackflow plan serve-llama3-70b-8-h100
  rackflow plan serving.yaml --attainment 0.99 -o results   also writes plan.json and pareto.svg, .png
  rackflow plan serving.yaml --precision bf16 --precision fp8   number formats of weights

Of a serving scenario, ways to use its GPUs are tried: tensor, pipeline, data and expert parallelism,
replicas, prefill and decode apart, limits of the engine. For each the rate of arrivals is raised until too
few requests are inside the scenario's `slo`, by bisection to two per cent, always with the same random
numbers. Every run is a point of tokens/s per user against tokens/s per GPU.")]
    Plan(PlanArgs),
    /// Measure a collective: how long does one take, alone, on this cluster?
    #[command(after_help = "\
Examples:
  rackflow collective all-reduce --cluster gb200-nvl72 --gpus 576 --sizes 8K..8G
  rackflow collective all-to-all --cluster hgx-h100 --cluster gb200-nvl72 --gpus 64 -o results
  rackflow collective all-reduce --cluster my.yaml --algorithm ring --protocol simple --sizes 1M,64M
  rackflow collective dispatch --cluster hgx-h800 --gpus 64 --max-domains 4 --sizes 1M..64M
  rackflow collective all-reduce --cluster my.yaml --gpus 1024 --fidelity full --seed 3
  rackflow collective all-reduce --cluster hgx-h100 --format json | jq '.rows[].busbw_gb_per_s'

Size, time, algbw and busbw are those of nccl-tests: the size is the whole buffer of one rank, algbw is
size over time, and busbw is algbw times 2(n-1)/n for an all-reduce, (n-1)/n for an all-gather,
reduce-scatter and all-to-all, 1 for a broadcast and a send/recv, so that it compares with the rate of
a link. For dispatch and combine the size is the tokens of one rank, each counted once, and busbw counts
every rank that a token visits. bound is the time that the busiest link would need at its line rate.

A named cluster gets as many nodes as --gpus asks for and a rail-optimised fabric with as many tiers as
they need. A file is a scenario or has only its cluster:

  cluster:
    node: hgx-h100
    gpus: 1024
    fabric: roce-oversubscribed")]
    Collective(CollectiveArgs),
    /// Simulate many cases of one scenario: what changes with the size, the hardware, the plan?
    #[command(after_help = "\
Examples:
  rackflow sweep scenarios/sweeps/deepseek-v3-2k-to-100k.yaml -o out
  rackflow sweep my.yaml -o out --jobs 8      after a kill, the same line goes on where it stopped
  rackflow sweep my.yaml -o out --filter gpus=2048 --filter '*fp8*'
  rackflow sweep my.yaml --list               the cases, without running them

Any field of the scenario may hold a list, or a range such as { from: 64, to: 4096, times: 2 }. The
folder gets results.parquet and results.csv with one row per case, report.html, figures and the
report of every case. A case that cannot be simulated is a row with its reason.")]
    Sweep(SweepArgs),
    /// Explain the difference between two runs, cause by cause: why is one faster?
    #[command(after_help = "\
Examples:
  rackflow compare deepseek-v3-2048-h800 deepseek-v3-2048-gb200-nvl72
  rackflow compare out/cases/A/report.json out/cases/B/report.json
  rackflow compare old.json my.yaml --format json | jq -r '.words[]'

What is compared is GPU time per model FLOP, so runs of different sizes, batches and models stand on one
footing; the differences by cause sum to the whole difference.")]
    Compare(CompareArgs),
    /// Draw one picture of a report, a sweep or a scenario, as SVG or PNG
    #[command(after_help = "\
Examples:
  rackflow plot roofline deepseek-v3-2048-h800 > roofline.svg
  rackflow plot gantt results/report.json -o gantt.png
  rackflow plot scaling out -o pictures           the folder of a sweep
  rackflow plot scaling small.json medium.json large.json > scaling.svg
  rackflow plot pareto serve-llama3-70b-8-h100 -o pareto.png

A report holds all that pictures of one run need: `rackflow run SCENARIO --format json`. Pictures of many
runs are made of a sweep, its folder, or several reports.")]
    Plot(PlotArgs),
    /// Check scenarios without running them: is every name, unit and count right, and does it fit?
    Check {
        /// Scenario files, names of shipped scenarios, or `-` for standard input
        #[arg(required = true, value_name = "FILE")]
        scenarios: Vec<String>,
    },
    /// List the catalogue: which models, hardware, stacks and scenarios are there?
    List {
        /// Which part of it [default: all]
        kind: Option<Kind>,
        /// How the result is written
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Show one entry of the catalogue: what are its values, and where is each from?
    Show {
        /// Its name, as `list` prints it
        name: String,
        /// How the result is written
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Describe and draw a cluster: racks, domains, rails, tiers, cables, bisection
    #[command(after_help = "\
Examples:
  rackflow topology dgx-h100 --gpus 1024
  rackflow topology gb200-nvl72 --gpus 576 --fabric rail-optimized --format svg > cluster.svg
  rackflow topology deepseek-v3-2048-h800     the cluster of a shipped scenario
  rackflow topology my-cluster.yaml -o drawn  a file with `node`, `gpus` and `fabric`
  rackflow topology topology.xml --gpus 64    the node that NCCL wrote to NCCL_TOPO_DUMP_FILE
  rackflow topology hall.json                 an InfraGraph, in YAML or JSON")]
    Topology(TopologyArgs),
    /// Show the paths between two GPUs, hop by hop
    #[command(after_help = "\
Examples:
  rackflow route 0 1023 --cluster dgx-h100 --gpus 1024
  rackflow route 3 700 --cluster deepseek-v3-2048-h800 --format json")]
    Route(RouteArgs),
    /// Compare with published runs: how far is the simulation to be trusted?
    Validate {
        /// What to validate
        #[command(subcommand)]
        what: Validate,
    },
    /// Replay the argument: what do the simulations say to two essays' figures?
    #[command(after_help = "\
Examples:
  rackflow claims
  rackflow claims --filter fp4
  rackflow claims --format json | jq '.claims[] | {id, verdict}'")]
    Claims(ClaimsArgs),
    /// Print a JSON Schema: how is a scenario written, what does a report hold?
    #[command(after_help = "\
Examples:
  rackflow schema scenario > scenario.schema.json

Put `# yaml-language-server: $schema=scenario.schema.json` on the first line of a scenario, and an
editor with a YAML language server completes it and explains every key.")]
    Schema {
        /// Of which document
        of: Document,
    },
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// What to run, and how to report it.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// A scenario file, the name of a shipped scenario, or `-` for standard input
    #[arg(value_name = "FILE|NAME|-")]
    pub scenario: String,
    /// How the report is written to standard output
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Also write the report into this folder, as text, JSON and a picture
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Root of all random streams, in place of the scenario's
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub seed: Option<u64>,
    /// Simulate equal ranks once (folded) or every rank (full); the report is the same
    #[arg(long, value_enum)]
    pub fidelity: Option<Fidelity>,
    /// Of a serving scenario: write one row per request, as .csv or .parquet
    #[arg(long, value_name = "FILE")]
    pub requests: Option<PathBuf>,
}

/// One rank of a list.
fn rank(text: &str) -> Result<u32, String> {
    let wrong = |_| "ranks are whole numbers with commas between them, such as 0,8,16".to_owned();
    text.trim().parse().map_err(wrong)
}

/// A part of a run, from one instant to another: `10s..20s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub from: SimDuration,
    pub until: SimDuration,
}

/// A part of a run, either end of which may be left out.
fn window(text: &str) -> Result<Window, String> {
    let wrong = || "a window is two times from the start of the run, such as 10s..20s".to_owned();
    let (from, until) = text.split_once("..").ok_or_else(wrong)?;
    let time = |text: &str, open: SimDuration| match text.trim() {
        "" => Ok(open),
        text => text
            .parse::<SimDuration>()
            .map_err(|error| format!("{error}: {}", wrong())),
    };
    let window = Window {
        from: time(from, SimDuration::ZERO)?,
        until: time(until, SimDuration::MAX)?,
    };
    if window.from < window.until {
        Ok(window)
    } else {
        Err(format!("{text} is empty: {}", wrong()))
    }
}

/// What to write down of a run, for a timeline viewer.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Write a trace for <https://ui.perfetto.dev>: out.pftrace, out.json or out.json.gz
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub trace: Option<PathBuf>,
    /// Ranks that the trace shows, and of a service replicas [default: the first of each pipeline stage,
    /// or of each pool the first eight]
    #[arg(
        long,
        value_name = "RANK,...",
        value_delimiter = ',',
        value_parser = rank,
        requires = "trace"
    )]
    pub trace_ranks: Vec<u32>,
    /// Of several jobs, the one that the trace shows, beside the others
    #[arg(long, value_name = "NAME", requires = "trace")]
    pub trace_job: Option<String>,
    /// Of a service, the part that the trace shows: 10s..20s, 10s.. or ..20s
    #[arg(long, value_name = "FROM..UNTIL", value_parser = window, requires = "trace")]
    pub trace_window: Option<Window>,
    /// Write execution traces of MLCommons Chakra into this folder, one file per rank
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub chakra: Option<PathBuf>,
    /// Ranks whose execution traces are written [default: all]
    #[arg(
        long,
        value_name = "RANK,...",
        value_delimiter = ',',
        value_parser = rank,
        requires = "chakra"
    )]
    pub chakra_ranks: Vec<u32>,
    /// Execution traces may take so much in all [default: 1 GB]
    #[arg(long, value_name = "SIZE", requires = "chakra")]
    pub chakra_limit: Option<Bytes>,
}

/// Which cases to run, and where their results go.
#[derive(Debug, Args)]
pub struct SweepArgs {
    /// A scenario file with lists, the name of a shipped sweep, or `-` for standard input
    #[arg(value_name = "FILE|NAME|-")]
    pub scenario: String,
    /// Write the results into this folder; cases that it already holds are not run again
    #[arg(short, long, value_name = "DIR", required_unless_present = "list")]
    pub output: Option<PathBuf>,
    /// Cases that run at once [default: as many as the machine has threads]
    #[arg(short, long, value_name = "N")]
    pub jobs: Option<std::num::NonZeroUsize>,
    /// Run only cases whose name matches, or whose choice does (`gpus=2048`, `'platform=gb*'`);
    /// may be given several times
    #[arg(short, long, value_name = "PATTERN")]
    pub filter: Vec<String>,
    /// Root of all random streams, in place of the scenario's
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub seed: Option<u64>,
    /// Print the cases and run nothing
    #[arg(long)]
    pub list: bool,
    /// How the results are written to standard output
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// Which cluster, of how many GPUs, on which fabric.
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// Accelerators in all, in place of the file's; one node where nothing says
    #[arg(long, value_name = "N")]
    pub gpus: Option<u32>,
    /// A fabric of the catalogue, in place of the file's
    #[arg(long, value_name = "NAME")]
    pub fabric: Option<String>,
    /// The accelerator of a file that somebody else wrote, where the file leaves it open (`rackflow list
    /// accelerators`)
    #[arg(long, value_name = "NAME")]
    pub accelerator: Option<String>,
}

/// What to describe.
#[derive(Debug, Args)]
pub struct TopologyArgs {
    /// A node of the catalogue, a scenario or cluster file, the name of a shipped scenario, or a file
    /// that somebody else wrote: a topology of NCCL (XML) or an InfraGraph (YAML, JSON)
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
    /// Which part of it.
    #[command(flatten)]
    pub changes: ClusterArgs,
    /// How the description is written to standard output
    #[arg(long, value_enum, default_value_t = DrawnFormat::Table)]
    pub format: DrawnFormat,
    /// Also write the description into this folder, as text, JSON and a picture
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
}

/// Which paths to show.
#[derive(Debug, Args)]
pub struct RouteArgs {
    /// Sending GPU, counted from 0
    #[arg(value_name = "A")]
    pub from: u32,
    /// Receiving GPU
    #[arg(value_name = "B")]
    pub to: u32,
    /// A node of the catalogue, a scenario or cluster file, the name of a shipped scenario, a topology
    /// of NCCL (XML) or an InfraGraph (YAML, JSON)
    #[arg(long, value_name = "CLUSTER")]
    pub cluster: String,
    /// Which part of it.
    #[command(flatten)]
    pub changes: ClusterArgs,
    /// Root of the hashes that pick paths
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// How the paths are written
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// How a result is written that can also be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DrawnFormat {
    /// For people.
    Table,
    /// For programs: one JSON document.
    Json,
    /// A picture.
    Svg,
}

/// What to search for, and how to report it.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// A scenario file, the name of a shipped scenario, or `-` for standard input; of several, each
    /// one's own plan is set beside the best
    #[arg(value_name = "FILE|NAME|-", required = true)]
    pub scenarios: Vec<String>,
    /// How many of the best plans are shown
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub top: u32,
    /// Number formats to try [default: the scenario's, because another one changes what is learnt]
    #[arg(long, value_name = "RECIPE", value_enum)]
    pub precision: Vec<Precision>,
    /// Of a training scenario: simulate at most so many plans, those that promise most, and say what
    /// is left unproved [default: as many as the proof takes]
    #[arg(long, value_name = "PLANS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub limit: Option<u32>,
    /// Of a serving scenario: share of requests that must be inside every limit of its `slo`
    #[arg(long, value_name = "SHARE", default_value_t = 0.95)]
    pub attainment: f64,
    /// How the result is written to standard output
    #[arg(long, value_enum, default_value_t = PlanFormat::Table)]
    pub format: PlanFormat,
    /// Of a serving scenario: also write the result into this folder, as JSON and a picture
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
}

/// How found plans are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PlanFormat {
    /// For people.
    Table,
    /// For programs: one JSON document.
    Json,
    /// A table of each scenario's own plan beside the best one.
    Markdown,
}

/// Number formats of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Precision {
    /// 16-bit floats with loss scaling.
    Fp16,
    /// bfloat16.
    Bf16,
    /// 8-bit floats with scales per tensor.
    Fp8,
    /// 8-bit floats with scales per tensor from earlier steps.
    Fp8Delayed,
    /// 8-bit floats with scales per row and column.
    Fp8Rowwise,
    /// 8-bit floats with scales per block.
    Fp8Blockwise,
    /// 8-bit floats with block scales in hardware.
    Mxfp8,
    /// 4-bit floats with block scales in hardware.
    Nvfp4,
    /// All that the accelerator has a rate for, but fp16, fp8_delayed and fp8_rowwise.
    All,
}

/// What to compare.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The first: a report (.json), a scenario file or the name of a shipped scenario
    #[arg(value_name = "A")]
    pub a: String,
    /// The second
    #[arg(value_name = "B")]
    pub b: String,
    /// How the result is written
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// What can be validated.
#[derive(Debug, Subcommand)]
pub enum Validate {
    /// Training: published step times beside simulated ones
    Training(validate::TrainingArgs),
    /// Mechanisms: experiments in which one setting changed, measured beside simulated
    Mechanisms(validate::MechanismArgs),
    /// Serving: published tokens per second and latencies beside simulated ones
    Serving(validate::ServingArgs),
    /// Collectives: published timings beside simulated ones
    Collectives(validate::CollectivesArgs),
    /// Kernels: published timings beside the cost model
    Kernels(validate::KernelArgs),
}

/// How a result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs: one JSON document.
    Json,
}

/// Which ranks are simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Fidelity {
    /// One of those that cannot differ.
    Folded,
    /// Every one.
    Full,
}

/// A part of the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// What can be trained.
    Models,
    /// GPUs and TPUs.
    Accelerators,
    /// Servers and NVLink domains.
    Nodes,
    /// What stands in one rack.
    Racks,
    /// Networks between nodes.
    Fabrics,
    /// Training frameworks, dated.
    Stacks,
    /// Serving engines, dated.
    ServingStacks,
    /// What interrupts a run, and how often.
    Failures,
    /// Runs that ship with Rackflow.
    Scenarios,
    /// Losses that a report names.
    Causes,
}

/// A document with a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Document {
    /// What `run` reads.
    Scenario,
    /// What `sweep` reads: a scenario whose fields may hold several values.
    Sweep,
    /// What `run --format json` writes of a training scenario.
    Report,
    /// What `run --format json` writes of a serving scenario.
    ServingReport,
    /// What `run --format json` writes of several jobs.
    JobsReport,
    /// What `run --format json` writes of a replayed execution trace.
    ReplayReport,
    /// What `elasticities --format json` writes of a training scenario, or of an execution trace.
    Elasticities,
    /// What it writes of a serving scenario.
    ServingElasticities,
    /// What it writes of several jobs.
    JobsElasticities,
}
