//! Each mechanism moves the step in the direction that physics says.

use crate::plans::{self, model, plain};
use rackflow_plan::kernel::{KernelOptions, Load, cost_with};
use rackflow_plan::{Cause, CommKind, Plan, Resource, SLOW_NODE, Setup, Straggler, Work, compile};
use rackflow_scenario::{Catalogue, published};
use rackflow_simulator::{Record, simulate};
use rackflow_topology::Level;
use rackflow_units::{Bandwidth, Bytes, SimDuration};
use rackflow_workload::{
    Access, AllocatorPolicy, Attention, AttentionKernel, CudaGraphs, ExpertDispatcher,
    OffloadedInput, Operation, Recipe, Recompute, Routing, Schedule, SoftwareStack, Zero,
};

fn run(setup: &Setup) -> Record {
    simulate(&compile(setup).expect("a valid plan"))
}

fn exposed(record: &Record, kind: CommKind) -> f64 {
    [Level::NvLink, Level::Leaf, Level::Spine, Level::Core]
        .into_iter()
        .map(|level| record.total().seconds(Cause::Exposed(kind, level)))
        .sum()
}

fn pipelined(stages: u32, micro_batches: u64) -> Setup {
    let mut setup = plain(stages);
    let t = &mut setup.training;
    t.parallelism.pipeline = stages;
    t.parallelism.data = 1;
    t.global_batch = micro_batches;
    // A small vocabulary keeps the last stage like the others, and the host is not what these
    // tests are about.
    t.model.vocab = 1024;
    t.stack.cuda_graphs = CudaGraphs::Full;
    setup
}

/// Of m micro-batches over p equal stages, (p - 1) / (m + p - 1) of the time is bubble, before
/// communication and the unequal first and last stage.
#[test]
fn the_bubble_is_that_of_the_closed_form() {
    for (stages, micro_batches) in [(4, 8), (4, 16), (8, 16)] {
        let mut setup = pipelined(stages, micro_batches);
        setup.training.stack.overlap.pipeline = true;
        // The loss of the last stage is little beside four layers.
        setup.training.model.layers = u64::from(4 * stages);
        let record = run(&setup);
        let total = record.total();
        let bubble = total.seconds(Cause::Bubble) / (total.total_picos() as f64 * 1e-12);
        let ideal = f64::from(stages - 1) / (micro_batches as f64 + f64::from(stages - 1));
        assert!(
            (bubble - ideal).abs() < 0.02,
            "{stages} stages, {micro_batches}: {bubble} vs {ideal}"
        );
    }
}

#[test]
fn interleaving_shrinks_the_bubble_and_zero_bubble_more() {
    let mut one = pipelined(4, 8);
    one.training.stack.overlap.pipeline = true;
    let mut two = one.clone();
    two.training.parallelism.virtual_pipeline = 2;
    let mut zero = one.clone();
    zero.training.schedule = Schedule::ZeroBubbleH2;
    let bubble = |setup: &Setup| run(setup).total().seconds(Cause::Bubble);
    let (one, two, zero) = (bubble(&one), bubble(&two), bubble(&zero));
    assert!(two < 0.7 * one, "interleaved {two} of {one}");
    assert!(zero < 0.7 * one, "zero-bubble {zero} of {one}");
}

#[test]
fn overlapping_the_gradient_reduction_hides_it() {
    let mut apart = plain(32);
    apart.training.stack.overlap.gradient_reduce = false;
    apart.training.stack.overlap.parameter_gather = false;
    let mut beside = apart.clone();
    beside.training.stack.overlap.gradient_reduce = true;
    beside.training.stack.overlap.parameter_gather = true;
    beside.training.stack.bucket = rackflow_units::Bytes::new(40_000_000);
    let (apart, beside) = (run(&apart), run(&beside));
    assert!(exposed(&beside, CommKind::Data) < 0.7 * exposed(&apart, CommKind::Data));
    assert!(beside.step_time < apart.step_time);
    // What runs beside the kernels slows them: nothing is free.
    assert!(beside.total().seconds(Cause::Contention) > 0.0);
}

/// Tables of 16 bits beside layers of 8: the same bytes move, before the first layer and after the last
/// gradient, where less hides them.
#[test]
fn tables_that_move_with_the_first_layers_are_less_hidden() {
    let mut by_use = plain(32);
    let stack = &mut by_use.training.stack;
    stack.overlap.gradient_reduce = true;
    stack.overlap.parameter_gather = true;
    stack.bucket = Bytes::new(10_000_000);
    stack.parameter_gather_bytes = 1;
    let mut last = by_use.clone();
    last.training.stack.wide_parameters_last = true;
    let (by_use_run, last_run) = (run(&by_use), run(&last));
    let moved = |r: &Record| sent(r, CommKind::Data);
    assert_eq!(moved(&by_use_run), moved(&last_run));
    assert!(exposed(&last_run, CommKind::Data) > exposed(&by_use_run, CommKind::Data));
    assert!(last_run.step_time > by_use_run.step_time);
    // Where all are of 16 bits, buckets do not differ.
    by_use.training.stack.parameter_gather_bytes = 2;
    last.training.stack.parameter_gather_bytes = 2;
    let (by_use_run, last_run) = (run(&by_use), run(&last));
    assert_eq!(by_use_run.step_time, last_run.step_time);
}

/// Layers of one bucket are gathered together and awaited before the first of them. The same bytes move.
#[test]
fn parameters_of_large_buckets_are_less_hidden() {
    let mut setup = plain(32);
    setup.training.model.layers = 8;
    let stack = &mut setup.training.stack;
    stack.overlap.gradient_reduce = false;
    stack.overlap.parameter_gather = true;
    let mut fewer = setup.training.model.clone();
    fewer.layers -= 1;
    let parameters = setup.training.model.parameters_total() - fewer.parameters_total();
    let layer = parameters * setup.training.stack.gradient_bytes;
    let mut with = |bytes: u64| {
        setup.training.stack.bucket = Bytes::new(bytes);
        run(&setup)
    };
    let tensors = with(400);
    let layers = with(layer);
    let halves = with(layer * 4);
    let whole = with(layer * 1000);
    assert_eq!(tensors.step_time, layers.step_time);
    for record in [&halves, &whole] {
        assert_eq!(sent(record, CommKind::Data), sent(&layers, CommKind::Data));
    }
    let hidden = |record: &Record| exposed(record, CommKind::Data);
    assert!(hidden(&layers) < hidden(&halves) && hidden(&halves) < hidden(&whole));
    assert!(layers.step_time < whole.step_time);
}

/// Weight gradients of the output layer that wait cost nothing more, and run while the stages before the last drain;
/// what they need of every micro-batch stays in memory.
#[test]
fn weight_gradients_of_the_output_layer_can_wait_for_the_flush() {
    let mut at_once = pipelined(4, 16);
    let t = &mut at_once.training;
    t.parallelism.tensor = 2;
    t.parallelism.sequence_parallel = true;
    at_once.cluster = plain(8).cluster;
    // The last stage is the longest, so all wait for it.
    t.model.vocab = 64_000;
    t.stack.overlap.pipeline = true;
    let deferred = |count: u64| {
        let mut setup = at_once.clone();
        setup.training.stack.deferred_output_gradients = count;
        setup
    };
    let on_last = |setup: &Setup| {
        let plan = compile(setup).expect("a valid plan");
        plan.facts.stages.last().expect("four").memory.buffers.get()
    };
    let (now, few, all, more) = (run(&at_once), deferred(3), deferred(16), deferred(1000));
    let (three, sixteen) = (run(&few), run(&all));
    let useful = |r: &Record| r.total().seconds(Cause::UsefulMath);
    assert!((useful(&three) / useful(&now) - 1.0).abs() < 1e-9);
    assert!((useful(&sixteen) / useful(&now) - 1.0).abs() < 1e-9);
    // The stages before drain for some milliseconds: as much as that is gained, whatever waits beyond.
    assert!(
        three.step_time < now.step_time,
        "{} {}",
        three.step_time,
        now.step_time
    );
    assert!(
        sixteen.step_time < now.step_time,
        "{} {}",
        sixteen.step_time,
        now.step_time
    );
    assert!(now.step_time.as_secs_f64() < 1.1 * sixteen.step_time.as_secs_f64());
    assert_eq!(run(&more).step_time, sixteen.step_time);
    // Gradient of the logits, and the sharded input, in 16 bits.
    let each = 2 * (2048 * 64_000 / 2 + 2048 * 1024 / 2);
    assert_eq!(on_last(&few) - on_last(&at_once), 3 * each);
    assert_eq!(on_last(&all) - on_last(&at_once), 16 * each);
    // Without stages there is no flush, and zero-bubble schedules put all weight gradients off themselves.
    let mut one = plain(4);
    let before = run(&one).step_time;
    one.training.stack.deferred_output_gradients = 3;
    assert_eq!(run(&one).step_time, before);
    let mut zero = deferred(0);
    zero.training.schedule = Schedule::ZeroBubbleH1;
    let before = run(&zero).step_time;
    zero.training.stack.deferred_output_gradients = 3;
    assert_eq!(run(&zero).step_time, before);
}

/// Cut into pieces, tensor-parallel collectives move the same bytes beside the products; a pipeline's kernels
/// take SMs from the products of the forward pass, a ring takes none.
#[test]
fn pieces_of_tensor_parallel_collectives_hide_beside_products() {
    let mut whole = plain(8);
    let t = &mut whole.training;
    t.parallelism.tensor = 8;
    t.parallelism.data = 1;
    t.parallelism.sequence_parallel = true;
    t.model.hidden = 8192;
    t.model.ffn = 28_672;
    t.sequence_length = 8192;
    t.global_batch = 2;
    t.stack.cuda_graphs = CudaGraphs::Full;
    let mut ring = whole.clone();
    ring.training.stack.overlap.tensor = true;
    let pipeline = |sms: u32| {
        let mut setup = ring.clone();
        setup.training.stack.tensor_reduce_sms = sms;
        run(&setup)
    };
    let (apart, beside) = (run(&whole), run(&ring));
    let (little, much) = (pipeline(8), pipeline(32));
    let moved = |r: &Record| sent(r, CommKind::Tensor) as f64;
    for other in [&beside, &little, &much] {
        assert!(
            (moved(other) / moved(&apart) - 1.0).abs() < 0.01,
            "{} {}",
            moved(other),
            moved(&apart)
        );
        let (bare, all) = (
            exposed(other, CommKind::Tensor),
            exposed(&apart, CommKind::Tensor),
        );
        assert!(bare < 0.8 * all, "{bare} of {all} s");
        assert!(other.step_time < apart.step_time);
    }
    assert!(beside.step_time < much.step_time && little.step_time < much.step_time);
    // Two of seven products of a layer's forward pass, a third of all, on 100 of 132 SMs.
    let longer = much.step_time.as_secs_f64() / little.step_time.as_secs_f64() - 1.0;
    assert!((0.01..0.1).contains(&longer), "{longer}");
}

/// Scales that all replicas compare after each pass cost the latency of an all-reduce over them, twice per
/// micro-batch and chunk, more over more of them, and nothing where scales are not delayed.
#[test]
fn comparing_scales_costs_its_latency_after_each_pass() {
    let slower = |gpus: u32, recipe: Recipe| {
        let mut setup = plain(gpus);
        setup.training.recipe = recipe;
        let apart = run(&setup);
        setup.training.stack.compares_scales = true;
        let compared = run(&setup);
        let more = compared.step_time.as_secs_f64() - apart.step_time.as_secs_f64();
        (
            more,
            exposed(&compared, CommKind::Data) - exposed(&apart, CommKind::Data),
        )
    };
    let (few, shown) = slower(16, Recipe::Fp8Delayed);
    assert!(few > 0.0 && shown > 0.0);
    let (many, _) = slower(64, Recipe::Fp8Delayed);
    assert!(many > few, "{many} over 64, {few} over 16");
    assert_eq!(slower(16, Recipe::Fp8).0, 0.0);
}

#[test]
fn a_straggler_holds_up_everybody() {
    let even = run(&plain(16));
    let mut setup = plain(16);
    setup.stragglers = vec![Straggler {
        gpu: 5,
        slowdown: 1.2,
    }];
    let slow = run(&setup);
    let ratio = slow.step_time.as_secs_f64() / even.step_time.as_secs_f64();
    assert!((1.1..1.21).contains(&ratio), "{ratio}");
    let share =
        slow.total().seconds(Cause::Straggler) / (slow.total().total_picos() as f64 * 1e-12);
    assert!(
        share > 0.1,
        "waiting for the straggler is {share} of the time"
    );
}

#[test]
fn uneven_experts_cost_waiting() {
    let mut even = plain(8);
    even.training.model = model(8, true);
    even.training.parallelism.expert = 8;
    let mut uneven = even.clone();
    uneven.training.routing = Routing::Lognormal { sigma: 0.3 };
    let (even, uneven) = (run(&even), run(&uneven));
    assert!(uneven.step_time > even.step_time);
    assert_eq!(even.total().picos(Cause::Imbalance), 0);
    assert!(uneven.total().picos(Cause::Imbalance) > 0);
    // Every token still meets as many experts as before.
    let useful = |r: &Record| r.total().seconds(Cause::UsefulMath);
    assert!((useful(&even) / useful(&uneven) - 1.0).abs() < 0.01);
}

#[test]
fn a_slow_host_shows_as_launch_gaps() {
    let mut setup = plain(1);
    setup.training.stack.launch = rackflow_units::SimDuration::from_micros(200);
    let record = run(&setup);
    let total = record.total();
    let share = total.seconds(Cause::Launch) / (total.total_picos() as f64 * 1e-12);
    assert!(share > 0.4, "launch gaps are {share} of the time");
}

/// A node waits for its slowest GPU; the figures are those that `typical` jitter is derived from.
/// Where launches block, all that the host spends on a rank's kernels is on its way: the step grows with
/// it, where it was hidden before.
#[test]
fn blocking_launches_add_the_hosts_time_to_the_kernels() {
    let mut setup = plain(1);
    let t = &mut setup.training;
    t.global_batch = t.micro_batch;
    t.stack.cuda_graphs = CudaGraphs::None;
    let step = |launch_us: u64, blocking: bool| {
        let mut setup = setup.clone();
        let stack = &mut setup.training.stack;
        stack.launch = SimDuration::from_micros(launch_us);
        stack.linear_launch = None;
        stack.quantized_linear_launch = None;
        stack.blocking_launches = blocking;
        run(&setup).step_time.as_secs_f64()
    };
    let free = step(0, true);
    let hidden = step(2, false) - step(0, false);
    let (one, two) = (step(2, true) - free, step(4, true) - free);
    assert!(one > 10.0 * hidden.max(1e-6), "{one} s, hidden {hidden} s");
    assert!((two / one - 2.0).abs() < 0.01, "{two} s of {one} s");
}

/// Without its kernel, the rotary embedding of latent attention takes what its tensors take, counted one by
/// one, in place of what the kernel does.
#[test]
fn rotary_parts_of_latent_attention_cost_their_copies() {
    let (tokens, heads, own, rotary, value) = (4096, 32, 128, 64, 128);
    let mut setup = plain(1);
    let t = &mut setup.training;
    t.sequence_length = tokens;
    t.model.attention = Attention::Latent {
        heads,
        q_lora_rank: Some(512),
        kv_lora_rank: 256,
        qk_nope_head_dim: own,
        qk_rope_head_dim: rotary,
        v_head_dim: value,
        latents: 1,
        sparse: None,
    };
    t.stack.cuda_graphs = CudaGraphs::Full;
    let passes = t.model.layers * t.global_batch;
    let step = |fused: bool, latent: Option<bool>| {
        let mut setup = setup.clone();
        setup.training.stack.fused_rope = fused;
        setup.training.stack.fused_latent_rope = latent;
        run(&setup).step_time.as_secs_f64()
    };
    let apart = step(true, Some(false));
    assert_eq!(apart, step(false, None), "left out, it is as `fused_rope`");
    assert_eq!(step(true, None), step(false, Some(true)));

    let seconds = |access, kernels: &[(u64, u64)], small: u32| {
        let bytes = |elements: u64| 2 * tokens * heads * elements;
        let read = bytes(kernels.iter().map(|k| k.0).sum());
        let write = bytes(kernels.iter().map(|k| k.1).sum());
        streamed(&setup, access, read, write, kernels.len() as u32 + small)
    };
    // Elements of a head that each kernel reads and writes. Kernels of the rotary part of the keys, which all
    // heads share, and of angles are as many and small.
    let [all, half] = [(rotary, rotary), (rotary / 2, rotary / 2)];
    let (whole, both) = (own + rotary, own + value);
    let forward = [
        all,
        all,
        half,
        all,
        all,
        (whole, whole),
        (own, whole),
        (value, value),
    ];
    let backward = [
        all,
        all,
        half,
        all,
        half,
        half,
        (whole, whole),
        (both, both),
        (rotary, 0),
    ];
    let sum = (2 * rotary, rotary);
    let zeros = [(0, rotary); 3];
    let beside = [sum, sum, sum, zeros[0], zeros[1], zeros[2]];
    let counted = seconds(Access::Strided, &forward, 5)
        + seconds(Access::Elementwise, &[sum, all], 14)
        + seconds(Access::Strided, &backward, 6)
        + seconds(Access::Elementwise, &beside, 6);
    let kernel = 2.0 * seconds(Access::Elementwise, &[(whole, whole); 2], 0);
    let expected = (counted - kernel) * passes as f64;
    let found = apart - step(true, None);
    assert!(
        (found / expected - 1.0).abs() < 0.01,
        "{found} s, counted {expected} s"
    );
}

#[test]
fn jitter_spreads_step_times_as_published() {
    let setup = plain(8);
    let undisturbed = run(&setup).step_time.as_secs_f64();
    let mut times: Vec<f64> = (0..200)
        .map(|seed| {
            let mut setup = setup.clone();
            setup.seed = seed;
            setup.jitter.gpu = 0.01;
            let record = run(&setup);
            assert!(record.total().picos(Cause::Straggler) > 0);
            record.step_time.as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    assert!(times[0] > undisturbed);
    let (median, high) = (times[100], times[190]);
    assert!(
        (1.005..1.02).contains(&(median / undisturbed)),
        "{median} {undisturbed}"
    );
    // MLPerf logs of 14 systems of eight GPUs: 1.0097.
    assert!((1.005..1.015).contains(&(high / median)), "{high} {median}");
}

#[test]
fn jitter_of_kernels_is_paid_at_every_meeting() {
    let mut setup = plain(8);
    setup.training.parallelism.tensor = 8;
    setup.training.parallelism.data = 1;
    let even = run(&setup);
    setup.jitter.kernel = 0.05;
    let uneven = run(&setup);
    assert_ne!(
        uneven,
        {
            setup.seed += 1;
            run(&setup)
        },
        "another seed, another step"
    );
    let ratio = uneven.step_time.as_secs_f64() / even.step_time.as_secs_f64();
    // The slowest of eight draws, half-normal: 1 + 0.05 x 1.8 in the median, less what never waits.
    assert!((1.02..1.12).contains(&ratio), "{ratio}");
    assert_eq!(uneven.engine.entities, 8, "no rank stands for another");
}

/// Some nodes in a hundred are slow, by what BLOOM measured, and the step waits for them.
#[test]
fn slow_nodes_hold_up_the_step() {
    let mut setup = plain(64);
    let even = run(&setup);
    setup.jitter.slow_nodes = 0.5;
    let uneven = run(&setup);
    let ratio = uneven.step_time.as_secs_f64() / even.step_time.as_secs_f64();
    assert!((1.03..=SLOW_NODE + 0.001).contains(&ratio), "{ratio}");
    assert!(uneven.total().picos(Cause::Straggler) > 0);
}

/// Bytes that all ranks send of one kind.
fn sent(record: &Record, kind: CommKind) -> u64 {
    let classes = record.classes.iter();
    classes
        .map(|class| {
            let of = &class.traffic.0[kind as usize];
            u64::from(class.ranks) * (of.nvlink + of.nic)
        })
        .sum()
}

/// Two nodes of eight stages each, two chunks on each stage, two data-parallel ranks.
fn interleaved() -> Setup {
    let mut setup = plain(16);
    let t = &mut setup.training;
    t.model = model(16, false);
    t.model.vocab = 1024;
    t.parallelism.pipeline = 8;
    t.parallelism.data = 2;
    t.parallelism.virtual_pipeline = 2;
    t.global_batch = 32;
    t.stack.cuda_graphs = CudaGraphs::Full;
    t.stack.overlap.pipeline = true;
    t.stack.overlap.gradient_reduce = true;
    t.stack.overlap.parameter_gather = true;
    setup
}

#[test]
fn aligned_stages_move_the_same_bytes_at_other_times() {
    let apart = run(&interleaved());
    let mut setup = interleaved();
    setup.training.stack.overlap.align_gradient_reduce = true;
    setup.training.stack.overlap.align_parameter_gather = true;
    let aligned = run(&setup);
    let rounding = 16 * 64;
    let (before, after) = (sent(&apart, CommKind::Data), sent(&aligned, CommKind::Data));
    assert!(before.abs_diff(after) <= rounding, "{before} {after}");
    assert_ne!(apart.step_time, aligned.step_time);
    let ratio = aligned.step_time.as_secs_f64() / apart.step_time.as_secs_f64();
    assert!((0.8..1.2).contains(&ratio), "{ratio}");
    // The first chunk's parameters beside the optimizer: the same bytes again.
    setup.training.stack.overlap.optimizer_step_gather = true;
    let beside = run(&setup);
    let moved = sent(&beside, CommKind::Data);
    assert!(before.abs_diff(moved) <= rounding, "{before} {moved}");
}

#[test]
fn scattered_messages_are_a_tensor_ranks_part() {
    let mut setup = pipelined(4, 8);
    setup.cluster = crate::plans::cluster("dgx-h100", 16);
    setup.training.parallelism.tensor = 4;
    setup.training.stack.scatters_messages = false;
    let whole = run(&setup);
    setup.training.stack.scatters_messages = true;
    let parts = run(&setup);
    // A quarter of each message, and the gathers of the receivers: three quarters of the whole.
    let (whole_bytes, part_bytes) = (
        sent(&whole, CommKind::Pipeline),
        sent(&parts, CommKind::Pipeline),
    );
    let ratio = part_bytes as f64 / whole_bytes as f64;
    assert!((0.99..1.01).contains(&ratio), "{ratio}");
    // With sequence parallelism a rank has its part only, and nothing is scattered.
    setup.training.parallelism.sequence_parallel = true;
    let sharded = run(&setup);
    assert_eq!(sent(&sharded, CommKind::Pipeline) * 4, whole_bytes);
}

#[test]
fn activations_on_the_host_leave_memory_and_cost_the_link() {
    let mut setup = plain(8);
    setup.training.model.vocab = 1024;
    setup.training.stack.cuda_graphs = CudaGraphs::Full;
    let memory = |setup: &Setup| {
        let plan = compile(setup).expect("a valid plan");
        plan.facts.stages[0].memory.total()
    };
    let here = (run(&setup), memory(&setup));
    setup.training.stack.activation_offload.inputs = vec![OffloadedInput::Layer];
    let away = (run(&setup), memory(&setup));
    assert!(away.1 < here.1, "{} of {}", away.1, here.1);
    assert!(
        away.0.step_time > here.0.step_time,
        "PCIe is slower than these layers"
    );
    assert!(away.0.total().picos(Cause::Offload) > 0);
    // Half of the layers: less memory freed, less time lost.
    setup.training.stack.activation_offload.fraction = 0.5;
    let half = (run(&setup), memory(&setup));
    assert!(away.1 < half.1 && half.1 < here.1);
    assert!(half.0.step_time < away.0.step_time);
    // A link between chips hides what PCIe does not.
    setup.training.stack.activation_offload.fraction = 1.0;
    let link = Bandwidth::from_bytes_per_sec(450_000_000_000);
    setup.cluster.node.accelerator.host_bandwidth = link;
    let near = run(&setup);
    assert!(near.step_time < away.0.step_time);
    // Copies take memory bandwidth from the kernels beside them.
    assert!(near.total().picos(Cause::Contention) > here.0.total().picos(Cause::Contention));
}

#[test]
fn optimizer_states_on_the_host_leave_memory_and_cost_its_time() {
    let mut setup = plain(8);
    setup.training.stack.optimizer_offload = 0.0;
    let states = |setup: &Setup| {
        let plan = compile(setup).expect("a valid plan");
        plan.facts.stages[0].memory.optimizer
    };
    let (here, before) = (states(&setup), run(&setup).step_time);
    // Nothing passes the link to the host: a faster one has no meaning.
    assert!(Resource::HostLink.more(&setup).is_none());
    setup.training.stack.optimizer_offload = 0.5;
    let (half, halfway) = (states(&setup), run(&setup).step_time);
    assert!(half.get().abs_diff(here.get() / 2) <= setup.training.stack.optimizer_bytes);
    setup.training.stack.optimizer_offload = 1.0;
    let (none, after) = (states(&setup), run(&setup).step_time);
    assert_eq!(none.get(), 0);
    assert!(before < halfway && halfway < after);
    let (faster, factor) = Resource::HostLink.more(&setup).expect("states pass it");
    assert!(factor > 1.0 && run(&faster).step_time < after);
}

#[test]
fn a_plain_pipeline_may_block_where_an_interleaved_one_does_not() {
    let mut setup = pipelined(4, 16);
    setup.training.stack.overlap.pipeline = true;
    let goes_on = run(&setup);
    setup.training.stack.overlap.pipeline_if_interleaved = true;
    let blocks = run(&setup);
    assert!(blocks.step_time > goes_on.step_time);
    setup.training.parallelism.virtual_pipeline = 2;
    let interleaved = run(&setup);
    setup.training.stack.overlap.pipeline_if_interleaved = false;
    assert_eq!(interleaved.step_time, run(&setup).step_time);
}

/// Heads whose rows tensor cores cannot read, of about as many FLOPs, take several times as long.
#[test]
fn misaligned_heads_lose_the_tensor_cores() {
    let attention = |width: u64| {
        let mut setup = plain(1);
        setup.training.stack.attention = AttentionKernel::Unfused;
        setup.training.model.attention = Attention::Grouped {
            heads: 8,
            kv_heads: 8,
            head_dim: width,
            sliding_window: None,
            full_every: None,
            chunked: false,
            qk_norm: false,
            sinks: false,
        };
        run(&setup).step_time.as_secs_f64()
    };
    let (aligned, misaligned, wider) = (attention(104), attention(108), attention(112));
    assert!(
        aligned < wider && 1.2 * wider < misaligned,
        "{aligned} {misaligned} {wider}"
    );
}

/// Six gathers and four reductions of a layer over the sequence, and three of the two ends, each read and
/// written once more.
#[test]
fn parts_of_the_sequence_are_copied_where_the_batch_comes_first() {
    let step = |tensor: u32, copies: bool, pieces: bool| {
        let mut setup = plain(4);
        let t = &mut setup.training;
        t.parallelism.tensor = tensor;
        t.parallelism.data = 4 / tensor;
        t.parallelism.sequence_parallel = tensor > 1;
        t.stack.cuda_graphs = CudaGraphs::Full;
        t.stack.copies_sequence_parts = copies;
        t.stack.overlap.tensor = pieces;
        run(&setup).step_time
    };
    assert_eq!(step(1, true, false), step(1, false, false));
    assert_eq!(step(4, true, true), step(4, false, true));
    let longer = step(4, true, false) - step(4, false, false);
    let setup = plain(4);
    let t = &setup.training;
    let bytes = t.micro_batch * t.sequence_length * t.model.hidden * 2;
    let copies = (10 * t.model.layers) * (t.global_batch / t.micro_batch);
    let least = (copies * bytes * 2) as f64
        / setup
            .cluster
            .node
            .accelerator
            .memory_bandwidth
            .bytes_per_sec() as f64;
    let longer = longer.as_secs_f64();
    assert!(longer > least && longer < 3.0 * least, "{longer} {least}");
}

/// Three products instead of one and two instead of one: three more gradients of each layer's input are
/// read to be added up, and its input itself three times more going forward.
#[test]
fn products_of_their_own_add_up_their_gradients() {
    let step = |separate: bool| {
        let mut setup = plain(1);
        let t = &mut setup.training;
        t.model.gated = true;
        t.stack.cuda_graphs = CudaGraphs::Full;
        t.stack.fused_activation = true;
        t.stack.separate_projections = separate;
        run(&setup).step_time
    };
    let longer = (step(true) - step(false)).as_secs_f64();
    let setup = plain(1);
    let t = &setup.training;
    let bytes = t.micro_batch * t.sequence_length * t.model.hidden * 2;
    let layers = t.model.layers * (t.global_batch / t.micro_batch);
    let least = (3 * layers * bytes) as f64
        / setup
            .cluster
            .node
            .accelerator
            .memory_bandwidth
            .bytes_per_sec() as f64;
    assert!(longer > least, "{longer} {least}");
}

/// Scales of rows and columns: more passes over everything, and where tensor ranks share a row, two
/// collectives more for each product along it.
#[test]
fn scales_of_rows_cost_more_where_ranks_share_the_rows() {
    let dearer = |tensor: u32| {
        let step = |recipe: Recipe| {
            let mut setup = plain(4);
            let t = &mut setup.training;
            t.parallelism.tensor = tensor;
            t.parallelism.data = 4 / tensor;
            t.parallelism.sequence_parallel = tensor > 1;
            t.micro_batch = u64::from(tensor);
            t.stack.cuda_graphs = CudaGraphs::Full;
            t.stack.fused_quantization = false;
            t.recipe = recipe;
            run(&setup).step_time.as_secs_f64()
        };
        step(Recipe::Fp8Rowwise) / step(Recipe::Fp8)
    };
    let (alone, shared) = (dearer(1), dearer(4));
    assert!(1.0 < alone && alone < shared, "{alone} {shared}");
}

/// PyTorch's ring gathers what Transformer Engine's passes on, and adds up in more kernels: it costs the
/// same without a ring, and with one at least the bytes that it moves more.
#[test]
fn a_ring_written_in_the_framework_takes_longer() {
    let step = |context: u32, framework: bool| {
        let mut setup = plain(4);
        let t = &mut setup.training;
        t.parallelism.context = context;
        t.parallelism.data = 4 / context;
        t.stack.cuda_graphs = CudaGraphs::Full;
        t.stack.framework_ring = framework;
        let rounds = t.global_batch / t.micro_batch / u64::from(t.parallelism.data);
        let layers = rounds * t.model.layers;
        (run(&setup).step_time, layers)
    };
    assert_eq!(step(1, true), step(1, false));
    let setup = plain(4);
    let t = &setup.training;
    let Attention::Grouped {
        heads, head_dim, ..
    } = t.model.attention
    else {
        unreachable!("the plain model has grouped attention")
    };
    for context in [2, 4] {
        let (fused, layers) = step(context, false);
        let (framework, _) = step(context, true);
        let tokens = t.micro_batch * t.sequence_length / u64::from(context);
        let queries = tokens * heads * head_dim;
        // 15 bytes less than 65 forward and 104 backward are moved by fused kernels at each step.
        let more = Bytes::new(queries * (40 + 80) * u64::from(context - 1) * layers);
        let memory = setup.cluster.node.accelerator.memory_bandwidth;
        let least = memory.time_to_send(more);
        let longer = framework - fused;
        assert!(longer > least, "{context}: {longer} {least}");
    }
}

/// The setup of a published run that ships.
fn shipped(id: &str) -> Setup {
    let runs = published::read(published::SHIPPED).expect("well formed");
    let row = runs.iter().find(|run| run.id == id).expect("shipped");
    published::setup(row, Catalogue::builtin()).expect("a whole plan")
}

/// 14 layers of DeepSeek-V3 without recomputation, with so many bytes more than its fullest stage needs.
fn with_free(free: u64) -> Setup {
    let mut setup = shipped("pr6429-dsv3-14L-overlap-rc");
    setup.training.recompute = Recompute::None;
    let needed = compile(&setup).expect("a valid plan").facts.stages;
    let needed = needed.iter().map(|stage| stage.memory.total()).max();
    let accelerator = &mut setup.cluster.node.accelerator;
    accelerator.reported_memory = 1.0;
    accelerator.memory = needed.unwrap_or_default() + Bytes::new(free);
    setup
}

/// A step that runs out of cached blocks waits for the driver, and what it waits is booked as that.
#[test]
fn close_to_the_limit_of_memory_the_allocator_slows_the_step() {
    let roomy = run(&with_free(30_000_000_000));
    assert_eq!(roomy.total().picos(Cause::Allocator), 0);
    let setup = with_free(3_000_000_000);
    let crowded = run(&setup);
    let waits = crowded.facts.stages.iter().map(|s| s.pressure.time);
    let longest = waits.clone().max().unwrap_or_default();
    let longer = crowded.step_time - roomy.step_time;
    assert!(longer > longest.scale(1, 2), "{longer} of {longest}");
    // The host waits for all of it, sixteen ranks of each stage. While memory goes back the device does, too; while more is
    // given it may have work left.
    let [drained, all] = allocator_seconds(&compile(&setup).expect("a valid plan"));
    let of_stages: f64 = waits.map(|wait| 16.0 * wait.as_secs_f64()).sum();
    assert!((all / of_stages - 1.0).abs() < 1e-6, "{all} of {of_stages}");
    let booked = crowded.total().seconds(Cause::Allocator);
    assert!(
        0.0 < drained && drained < booked * (1.0 + 1e-6) && booked < all,
        "{drained} {booked} {all}"
    );
}

/// Seconds that all ranks of a plan wait for the allocator: the devices, and the hosts.
fn allocator_seconds(plan: &Plan) -> [f64; 2] {
    let of = &plan.setup.training.parallelism;
    let ranks = of.data * of.tensor * of.context;
    let mut sums = [0.0; 2];
    for task in plan.programs.iter().flat_map(|program| &program.tasks) {
        let Work::Compute(id) = task.work else {
            continue;
        };
        let segment = &plan.segments[id.0 as usize];
        if segment.late == Cause::Allocator {
            let device = segment.time[0].as_secs_f64();
            sums[0] += f64::from(ranks) * device;
            sums[1] += f64::from(ranks) * (device + segment.launch.as_secs_f64());
        }
    }
    sums
}

/// Memory that goes back waits for the device and keeps it waiting; what more is asked for holds up the host alone, which does not
/// show while it is ahead. A step whose kernels are long hides more of that than the same one by a slow host.
#[test]
fn what_is_asked_for_hides_behind_a_device_that_has_work_left() {
    let mut setup = shipped("fms-70b-H100-96");
    let mut hidden = |launch: u64| {
        setup.training.stack.launch = SimDuration::from_micros(launch);
        let [drained, all] = allocator_seconds(&compile(&setup).expect("a valid plan"));
        let booked = run(&setup).total().seconds(Cause::Allocator);
        assert!(
            0.0 < drained && drained <= booked * (1.0 + 1e-6),
            "{drained} {booked}"
        );
        (all - booked) / all
    };
    let (fast, slow) = (hidden(1), hidden(20_000));
    assert!(fast > 0.5, "{fast}");
    assert!(slow < 0.1, "{slow}");
    setup.training.stack.blocking_launches = true;
    let [drained, all] = allocator_seconds(&compile(&setup).expect("a valid plan"));
    assert!((drained / all - 1.0).abs() < 1e-9, "{drained} of {all}");
}

/// The driver is the host's: a GPU whose kernels are slow waits for it as long as any other.
#[test]
fn a_straggler_waits_no_longer_for_the_driver() {
    let mut setup = with_free(4_500_000_000);
    let mut waits = |slowdown: Option<f64>, allocator| {
        let straggler = slowdown.map(|slowdown| Straggler { gpu: 33, slowdown });
        setup.stragglers = straggler.into_iter().collect();
        setup.training.stack.allocator = allocator;
        run(&setup)
    };
    let mut longer = |slowdown| {
        let waiting = waits(slowdown, AllocatorPolicy::ExpandableSegments).step_time;
        (waiting - waits(slowdown, AllocatorPolicy::Preallocated).step_time).as_secs_f64()
    };
    let (even, slow) = (longer(None), longer(Some(2.0)));
    assert!(even > 1.0, "{even}");
    assert!((slow / even - 1.0).abs() < 0.1, "{slow} {even}");
}

/// SMs that an exchange of tokens holds matter where tokens are exchanged, and nowhere else.
#[test]
fn a_dense_model_does_not_depend_on_what_an_exchange_holds() {
    let times = |moe: bool, zero, tensor, pipeline| {
        let mut setup = plain(8);
        setup.training.model = model(8, moe);
        let plan = &mut setup.training.parallelism;
        plan.zero = zero;
        (plan.tensor, plan.pipeline) = (tensor, pipeline);
        plan.sequence_parallel = tensor > 1;
        plan.data = 8 / tensor / pipeline;
        if moe {
            plan.expert = 8;
        }
        let mut with = |sms: u32| {
            setup.training.stack.dispatch_sms = sms;
            // One SM fewer counts as so much more of the resource.
            let fewer = Resource::CommunicationSms.more(&setup);
            (run(&setup).step_time, fewer.map(|(_, step)| step))
        };
        [4, 20, 68, 132].map(&mut with)
    };
    for (zero, tensor, pipeline) in [(Zero::Stage3, 1, 1), (Zero::Stage1, 2, 2)] {
        let dense = times(false, zero, tensor, pipeline);
        assert!(dense.iter().all(|of| *of == dense[0]), "{dense:?}");
    }
    let moe = times(true, Zero::Stage3, 1, 1);
    assert!(moe[1..].iter().all(|of| of.0 != moe[0].0), "{moe:?}");
}

/// Two nodes of eight ranks, a stage on each, with a table of tokens that counts.
fn with_ends(tied: bool, modules: u64) -> Setup {
    let mut setup = plain(16);
    setup.training.parallelism.pipeline = 2;
    setup.training.parallelism.data = 8;
    plans::with_ends(&mut setup, (tied, modules));
    setup
}

/// Bytes of the table of tokens of [`with_ends`] in 16 bits.
fn table_bytes(setup: &Setup) -> f64 {
    let model = &setup.training.model;
    (2 * model.vocab * model.hidden) as f64
}

/// The last stage keeps a table of its own where embeddings are tied or a module looks the next token up, once for
/// both reasons, and none beside the first stage's on one rank.
#[test]
fn the_last_stage_keeps_a_table_where_it_needs_one() {
    let weights = |setup: &Setup| {
        let stages = compile(setup).expect("a valid plan").facts.stages;
        stages.last().expect("a stage").memory.weights.as_f64()
    };
    let table = table_bytes(&with_ends(false, 0));
    // Untied, the last stage has the output matrix, which is as large.
    let plain = weights(&with_ends(false, 0));
    assert_eq!(weights(&with_ends(true, 0)), plain);
    let module = weights(&with_ends(true, 1)) - plain;
    assert_eq!(weights(&with_ends(false, 1)) - plain, module + table);
    // Both ends on one rank: by one stage, and by DualPipe.
    for (stages, schedule) in [
        (1, Schedule::OneForwardOneBackward),
        (2, Schedule::Dualpipe),
    ] {
        let of = |tied, modules| {
            let mut setup = with_ends(tied, modules);
            setup.training.parallelism.pipeline = stages;
            setup.training.parallelism.data = 16 / stages;
            setup.training.schedule = schedule;
            weights(&setup)
        };
        assert_eq!(of(false, 0) - of(true, 0), table);
        assert_eq!(of(false, 1) - of(false, 0), module);
    }
}

/// The first and the last stage add up the gradients of the table that both have: each sends all of it over its NIC, or
/// its shard, and waits as long before the host goes on to the optimizer.
#[test]
fn a_table_of_two_stages_is_summed_over_them() {
    let step = |zero, bytes, tied, modules| {
        let mut setup = with_ends(tied, modules);
        setup.training.parallelism.zero = zero;
        setup.training.stack.gradient_bytes = bytes;
        setup.training.stack.step_overhead = SimDuration::from_micros(60_000);
        run(&setup)
    };
    let setup = with_ends(true, 0);
    let nic = setup.cluster.node.nic.rate.as_f64();
    for (zero, shard) in [
        (Zero::Stage0, 1.0),
        (Zero::Stage1, 1.0),
        (Zero::Stage2, 8.0),
    ] {
        for bytes in [2, 4] {
            let sum = bytes as f64 / 2.0 * table_bytes(&setup) / nic / shard;
            let plain = step(zero, bytes, false, 0);
            for (tied, modules) in [(true, 0), (false, 1)] {
                let summed = step(zero, bytes, tied, modules);
                let waits = |record| exposed(record, CommKind::Pipeline) / 16.0;
                let longer = waits(&summed) - waits(&plain);
                assert!(
                    (0.9..1.5).contains(&(longer / sum)),
                    "{zero:?}: {longer} of {sum}"
                );
                if tied {
                    // As much is computed as with an output matrix.
                    let longer = (summed.step_time - plain.step_time).as_secs_f64();
                    assert!(longer > 0.9 * sum, "{zero:?}: {longer} of {sum}");
                }
            }
        }
    }
}

/// The table's gradient is reduced after the last of its parts, tied or not.
#[test]
fn a_table_whose_gradient_waits_is_reduced_after_it() {
    for tied in [false, true] {
        let mut setup = with_ends(tied, 0);
        setup.training.stack.overlap.gradient_reduce = true;
        setup.training.stack.deferred_output_gradients = 100;
        let plan = compile(&setup).expect("a valid plan");
        let tasks = &plan.programs.last().expect("a stage").tasks;
        let last = |of: &dyn Fn(&Work) -> bool| tasks.iter().rposition(|task| of(&task.work));
        let computed = last(&|work| match work {
            Work::Compute(id) => plan.segments[id.0 as usize].label == "logits backward",
            _ => false,
        });
        let reduced = last(&|work| match work {
            Work::Collective(_, id) => plan.transfers[id.0 as usize].label == "gradient reduce",
            _ => false,
        });
        assert!(computed.is_some() && reduced > computed, "{tied}");
    }
}

/// Each backward pass through a look-up clears a gradient of the whole table and adds it into its buffer.
#[test]
fn the_gradient_of_a_table_is_as_large_as_the_table() {
    for kept in [2, 4] {
        let embedding = |vocab: u64| {
            let mut setup = with_ends(false, 0);
            setup.training.model.vocab = vocab;
            setup.training.stack.fused_gradient_accumulation = true;
            setup.training.stack.gradient_bytes = kept;
            let plan = compile(&setup).expect("a valid plan");
            let of = plan.segments.iter().filter(|s| s.label == "embedding");
            let times = of.map(|segment| segment.time[0].as_secs_f64());
            (times.fold(0.0, f64::max), setup)
        };
        let ((small, setup), (large, _)) = (embedding(64_000), embedding(256_000));
        let elements = (256_000 - 64_000) * setup.training.model.hidden;
        let moved = elements * (2 + 2 + kept + kept);
        let memory = setup.cluster.node.accelerator.memory_bandwidth;
        let least = moved as f64 / memory.as_f64();
        let ratio = (large - small) / least;
        assert!((1.0..1.5).contains(&ratio), "{kept}: {ratio}");
    }
}

/// Recomputation of whole layers includes that of a prediction module, of so many layers of each chunk does not
/// (Megatron-Core warns that it does not support it).
#[test]
fn whole_layers_are_computed_again_in_prediction_modules_too() {
    let again = |recompute: Recompute, modules| {
        let mut setup = with_ends(false, modules);
        setup.training.recompute = recompute;
        run(&setup).total().seconds(Cause::Recomputation)
    };
    let layers = model(8, false).layers as f64;
    let more = again(Recompute::Full, 1) / again(Recompute::Full, 0);
    // A layer more, and its projection.
    assert!(
        (1.0 + 1.0 / layers..1.0 + 1.5 / layers).contains(&more),
        "{more}"
    );
    let some = Recompute::FullLayers(2);
    assert_eq!(again(some.clone(), 1), again(some, 0));
}

/// Autograd adds up the gradients that nobody reads where prediction modules use the output layer too: the first two are one
/// tensor, read once and written to another.
#[test]
fn two_uses_of_an_output_layer_add_up_gradients_that_nobody_reads() {
    let mut setup = plain(1);
    setup.training.stack.cuda_graphs = CudaGraphs::Full;
    setup.training.stack.fused_gradient_accumulation = true;
    let t = &setup.training;
    let output = 2 * t.model.vocab * t.model.hidden;
    let micro_batches = t.global_batch as f64;
    for modules in [0, 1, 3] {
        plans::with_ends(&mut setup, (false, modules));
        let step = |dummies| seconds_of(&setup, |stack| stack.dummy_gradients = dummies);
        // The third use and what follows are added into the sum of the first two.
        let sums = (1..=modules).map(|use_before| {
            streamed(
                &setup,
                Access::Elementwise,
                output * use_before.min(2),
                output,
                1,
            )
        });
        let expected = micro_batches * sums.sum::<f64>();
        let found = step(true) - step(false);
        assert!(
            (found - expected).abs() <= 0.02 * expected,
            "{modules}: {found} and not {expected}"
        );
    }
}

/// Mixtures on one node, whose host takes no time.
fn exchanging(gpus: u32, expert: u32) -> Setup {
    let mut setup = plain(gpus);
    let t = &mut setup.training;
    t.model = model(8, true);
    t.parallelism.expert = expert;
    t.stack.dispatcher = ExpertDispatcher::NcclAllToAll;
    t.stack.cuda_graphs = CudaGraphs::Full;
    t.stack.weighted_activation = true;
    t.stack.fused_router = true;
    t.stack.fused_permutation = true;
    t.stack.pads_experts = false;
    setup
}

/// Bytes that a rank's own tokens are, and their copies for all experts that they chose.
fn own_and_copies(setup: &Setup) -> (u64, u64) {
    let t = &setup.training;
    let moe = t.model.moe.as_ref().expect("a mixture");
    let own = 2 * t.sequence_length * t.micro_batch * t.model.hidden;
    (own, own * moe.top_k)
}

/// Passes through a mixture layer that a rank makes in a step, each way.
fn mixture_passes(setup: &Setup) -> f64 {
    let t = &setup.training;
    let moe = t.model.moe.as_ref().expect("a mixture");
    let layers = t.model.layers - moe.first_dense_layers;
    (layers * t.global_batch / u64::from(t.parallelism.data)) as f64
}

/// Time of kernels that read and write so many bytes [s].
fn streamed(setup: &Setup, access: Access, read: u64, write: u64, kernels: u32) -> f64 {
    let accelerator = &setup.cluster.node.accelerator;
    let op = Operation::Stream {
        read: Bytes::new(read),
        write: Bytes::new(write),
        kernels,
        flops: 0.0,
        access,
    };
    let options = KernelOptions {
        attention: setup.training.stack.attention,
        load: Load::Continuous,
    };
    let cost = cost_with(&op, accelerator, accelerator.sms, options);
    cost.time.as_secs_f64()
}

fn seconds_of(setup: &Setup, change: impl Fn(&mut SoftwareStack)) -> f64 {
    let mut setup = setup.clone();
    change(&mut setup.training.stack);
    run(&setup).step_time.as_secs_f64()
}

/// Without kernels made for it, tokens are put in the order of their experts by the framework's: rows are taken by
/// an index, and added with atomics, whose gradients are each other's. The maps of the sorts go.
#[test]
fn permutation_by_the_frameworks_kernels_costs_their_time() {
    let setup = exchanging(1, 1);
    let (own, copies) = own_and_copies(&setup);
    let time = |access, read, write, kernels| streamed(&setup, access, read, write, kernels);
    for weighted in [true, false] {
        let step = |fused| {
            seconds_of(&setup, |stack| {
                stack.weighted_activation = weighted;
                stack.fused_permutation = fused;
            })
        };
        let moe = setup.training.model.moe.as_ref().expect("a mixture");
        let map = 4 * setup.training.sequence_length * moe.experts.next_power_of_two();
        let rows = copies / (2 * setup.training.model.hidden);
        // Forward: copies are taken and summed into zeros, and two sorts lose their maps. Backward: the gradients of both.
        let framework = time(Access::Maps, map, map, 6)
            + 2.0 * time(Access::Rows, own, copies, 1)
            + 2.0 * time(Access::Copy, 0, own, 1)
            + time(Access::ScatterAdd, copies, own, 1)
            + time(Access::IndexAdd, copies, own, 1);
        let made_for_it = time(Access::Maps, map, map, 3)
            + 2.0 * time(Access::Elementwise, own, copies, 1)
            + 2.0 * time(Access::Elementwise, copies, own, 1)
            + 2.0 * time(Access::Maps, 48 * rows, 48 * rows, 1);
        // Weights apart: times the copies; their gradients one product and one sum, the copies' another product.
        let weights = if weighted {
            0.0
        } else {
            time(Access::Elementwise, copies, copies, 1)
                + time(Access::Elementwise, copies, copies, 1)
                + time(Access::Elementwise, 2 * copies, copies, 1)
                + time(Access::Elementwise, copies, 0, 1)
                - (time(Access::Elementwise, own + copies, copies, 1)
                    - time(Access::Elementwise, own, copies, 1))
        };
        let expected = (framework - made_for_it + weights) * mixture_passes(&setup);
        let found = step(false) - step(true);
        assert!(
            (found / expected - 1.0).abs() < 0.02,
            "weighted: {weighted}: {found} and not {expected}"
        );
    }
}

/// What arrives is sorted by local expert only where a rank has several; a fixed number of rows for each needs no map, but a
/// transposed copy.
#[test]
fn what_arrives_is_sorted_where_a_rank_has_several_experts() {
    let several = exchanging(8, 4);
    let mut one = exchanging(8, 8);
    one.training.model.moe.as_mut().expect("a mixture").experts = 8;
    let alone = exchanging(8, 1);
    for (setup, local, senders) in [(&several, 4, 4), (&one, 1, 8), (&alone, 16, 1)] {
        let (_, copies) = own_and_copies(setup);
        let tokens = setup.training.sequence_length * setup.training.micro_batch;
        let moe = setup.training.model.moe.as_ref().expect("a mixture");
        assert_eq!(
            moe.experts,
            local * u64::from(setup.training.parallelism.expert)
        );
        let rows = copies / (2 * setup.training.model.hidden);
        let time = |access, read, write, kernels| streamed(setup, access, read, write, kernels);
        let fixed = seconds_of(setup, |stack| stack.static_expert_shapes = true);
        let counted = seconds_of(setup, |_| ());
        let search = time(
            Access::Maps,
            4 * tokens * moe.experts,
            4 * tokens * moe.experts,
            0,
        );
        let sorted = if local > 1 {
            let transposed = if senders > 1 {
                4.0 * time(Access::Strided, copies, copies, 1)
            } else {
                0.0
            };
            transposed
                - 4.0 * time(Access::Elementwise, copies, copies, 1)
                - 2.0 * time(Access::Maps, 48 * rows, 48 * rows, 1)
        } else {
            0.0
        };
        let expected = (search + sorted) * mixture_passes(setup);
        let found = fixed - counted;
        // What the counts took is gone: a small all-gather in each forward pass, 20 to 60 us, where there is anyone to tell.
        let counts = (expected - found) / mixture_passes(setup);
        let range = if senders > 1 {
            1e-6..80e-6
        } else {
            -1e-7..1e-7
        };
        assert!(
            range.contains(&counts),
            "{local} experts: {expected}, {found}: {counts}"
        );
    }
}

/// A permutation by kernels made for it is three launches for its map and one, a sort one and one for its map. The framework's
/// take more for the map.
#[test]
fn a_host_launches_what_permutes() {
    let mut setup = exchanging(1, 1);
    setup.training.stack.cuda_graphs = CudaGraphs::None;
    let step = |launch: u64, fused| {
        seconds_of(&setup, |stack| {
            stack.launch = SimDuration::from_micros(launch);
            stack.fused_permutation = fused;
        })
    };
    // So slow a host bounds every kernel; a launch more costs a launch.
    let launches = |fused| (step(4000, fused) - step(2000, fused)) / 2e-3;
    let more = (launches(false) - launches(true)) / mixture_passes(&setup);
    // Three more for the map, one more to clear each sum, less one map of each sort of the forward pass.
    assert!((more - (3.0 + 2.0 - 2.0)).abs() < 0.01, "{more}");
}

/// Rows of narrow formats are padded and taken back by kernels of their own only around a plain all-to-all, where their
/// number is not fixed and the stack does so.
#[test]
fn rows_of_narrow_formats_are_padded_around_a_plain_all_to_all() {
    let mut setup = exchanging(8, 4);
    setup.training.recipe = Recipe::Fp8;
    let (_, copies) = own_and_copies(&setup);
    let cost = |setup: &Setup, change: &dyn Fn(&mut SoftwareStack)| {
        let step = |pads| {
            seconds_of(setup, |stack| {
                change(stack);
                stack.pads_experts = pads;
            })
        };
        step(true) - step(false)
    };
    let passes = 4.0 * streamed(&setup, Access::Elementwise, copies, copies, 1);
    let expected = passes * mixture_passes(&setup);
    let found = cost(&setup, &|_| ());
    assert!(
        (found / expected - 1.0).abs() < 0.02,
        "{found} and not {expected}"
    );
    assert_eq!(cost(&setup, &|s| s.static_expert_shapes = true), 0.0);
    for dispatcher in [ExpertDispatcher::DeepEp, ExpertDispatcher::HybridEp] {
        assert_eq!(cost(&setup, &|s| s.dispatcher = dispatcher), 0.0);
    }
    setup.training.recipe = Recipe::Bf16;
    assert_eq!(cost(&setup, &|_| ()), 0.0);
}

/// Weights that go to the experts' activation travel with the tokens of a plain all-to-all, four bytes for each copy, and
/// their gradients back; a library sends them with the tokens.
#[test]
fn weights_of_a_plain_all_to_all_travel_on_their_own() {
    let setup = exchanging(8, 8);
    let bytes = |dispatcher, weighted| {
        let mut setup = setup.clone();
        setup.training.stack.dispatcher = dispatcher;
        setup.training.stack.weighted_activation = weighted;
        sent(&run(&setup), CommKind::Expert)
    };
    let plain = ExpertDispatcher::NcclAllToAll;
    let (_, copies) = own_and_copies(&setup);
    let rows = copies / (2 * setup.training.model.hidden);
    // Seven of eight leave a rank.
    let expected = 8.0 * 2.0 * 4.0 * rows as f64 * 7.0 / 8.0 * mixture_passes(&setup);
    let found = (bytes(plain, true) - bytes(plain, false)) as f64;
    assert!(
        (found / expected - 1.0).abs() < 0.01,
        "{found} and not {expected}"
    );
    for library in [ExpertDispatcher::DeepEp, ExpertDispatcher::HybridEp] {
        assert_eq!(bytes(library, true), bytes(library, false));
    }
}

/// What a dispatch or combine takes beyond its bytes is paid between domains, by whichever dispatcher, four times in each
/// layer.
#[test]
fn an_exchange_between_domains_takes_longer_than_its_bytes() {
    let overhead = SimDuration::from_micros(350);
    for dispatcher in [
        ExpertDispatcher::NcclAllToAll,
        ExpertDispatcher::DeepEp,
        ExpertDispatcher::HybridEp,
    ] {
        for (gpus, expert, across) in [(8, 8, 0.0), (16, 16, 4.0)] {
            let mut setup = exchanging(gpus, expert);
            setup
                .training
                .model
                .moe
                .as_mut()
                .expect("a mixture")
                .experts = 16;
            setup.training.stack.dispatcher = dispatcher;
            let step = |time| seconds_of(&setup, |stack| stack.dispatch_overhead = time);
            let found = step(overhead) - step(SimDuration::ZERO);
            let expected = across * overhead.as_secs_f64() * mixture_passes(&setup);
            assert!(
                (found - expected).abs() <= 0.001 * expected,
                "{dispatcher:?} over {gpus}: {found} and not {expected}"
            );
        }
    }
}
