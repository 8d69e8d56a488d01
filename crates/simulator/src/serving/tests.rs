//! Promises of the fleet: nothing is lost, steps taken together change nothing, and queues that have
//! closed forms follow them.

use super::*;
use proptest::prelude::*;
use rackflow_engine::RandomStream;
use rackflow_plan::serving::{StepBatch, StepCost};
use rackflow_plan::{Accounts, Cause};
use rackflow_topology::{FaultyLink, Level, LinkFault, LinkState};
use rackflow_units::{Bandwidth, Bytes, RequestRate, SimDuration, SimTime};
use rackflow_workload::serving::{Acceptance, Draft, Speculation};
use rackflow_workload::{
    Arrivals, BatchWait, Decoder, EngineConfig, Eviction, KvTier, KvTransfer, Length, Medium,
    Preemption, Request, RequestPlan, Role, Router, Scheduler, Sessions, Shapes, Slo, WritePolicy,
};

const GPUS: u32 = 2;

/// Costs that are plain to see: so much per step, per token and per token of context.
#[derive(Debug, Clone, Copy)]
struct Plain {
    gpus: u32,
    step: u64,
    prompt_token: u64,
    sequence: u64,
    context: u64,
}

impl StepModel for Plain {
    fn step(&self, batch: &StepBatch<'_>) -> StepCost {
        let prompt: u64 = batch.prefill.iter().map(|chunk| chunk.new_tokens).sum();
        let math = self.prompt_token * prompt
            + self.sequence * batch.decode_sequences * batch.tokens_per_sequence;
        // A bend, so that the table is not simply the function.
        let memory = self.context * batch.decode_context_tokens
            + (batch.decode_context_tokens / 700) * self.context * 3;
        // Something that others hide as they grow.
        let fading = if self.context > 0 && batch.decode_sequences > 0 {
            (self.step / 9).saturating_sub(batch.decode_context_tokens * 40_009)
        } else {
            0
        };
        let time = SimDuration::from_picos(self.step + math + memory + fading);
        let mut causes = Accounts::default();
        let gpus = u64::from(self.gpus);
        causes.book_times(Cause::UsefulMath, SimDuration::from_picos(math), gpus);
        causes.book_times(Cause::MemoryBound, SimDuration::from_picos(memory), gpus);
        causes.book_times(Cause::Shape, SimDuration::from_picos(fading), gpus);
        causes.book_times(Cause::Launch, SimDuration::from_picos(self.step), gpus);
        let mut wire_bytes = [0.0; Level::ALL.len()];
        // One GPU sends nothing.
        wire_bytes[Level::NvLink as usize] = math as f64 / 1000.0 * f64::from(self.gpus - 1);
        StepCost {
            time,
            causes,
            flops: math as f64,
            bytes_read: memory as f64,
            wire_bytes,
        }
    }
}

const MODEL: Plain = Plain {
    gpus: GPUS,
    step: 5_000_000_000,
    prompt_token: 20_000_000,
    sequence: 50_000_000,
    context: 11_003,
};

fn pool(model: &dyn StepModel) -> Pool<'_> {
    Pool {
        role: Role::Both,
        model,
        replicas: 1,
        gpus: GPUS,
        cache_gpus: GPUS,
        stage_gpus: GPUS,
        exchanges: false,
        groups: 1,
        first_gpu: 0,
        engine: EngineConfig::default(),
        kv_tokens: 100_000,
        kv_bytes_per_token: 100_000.0,
        layers: 12,
        wires: Wires {
            nvlink: Bandwidth::from_gigabytes_per_sec(300),
            nic: Bandwidth::from_gigabytes_per_sec(40),
            nvlink_latency: SimDuration::from_nanos(800),
            nic_latency: SimDuration::from_micros(4),
        },
        host: Bandwidth::from_gigabytes_per_sec(50),
        request_overhead: SimDuration::ZERO,
    }
}

fn plan(arrivals: Arrivals, input: Length, output: Length, count: u64) -> RequestPlan {
    RequestPlan {
        shapes: Shapes::Drawn {
            input,
            output,
            sessions: None,
            count,
        },
        arrivals: Some(arrivals),
        rate_scale: 1.0,
        warm_up: SimDuration::ZERO,
        measure_for: None,
        priorities: 1,
    }
}

fn fleet<'a>(pools: Vec<Pool<'a>>, requests: &'a RequestPlan) -> Fleet<'a> {
    Fleet {
        pools,
        site: None,
        stragglers: &[],
        requests,
        decoder: Decoder::Autoregressive,
        router: Router::RoundRobin,
        transfer: KvTransfer::default(),
        store: &[],
        slo: Slo::default(),
        seed: 7,
        together: true,
    }
}

fn poisson(rate: f64) -> Arrivals {
    Arrivals::Poisson {
        rate: RequestRate::from_per_sec(rate),
    }
}

fn run(fleet: &Fleet<'_>) -> (ServingRecord, Vec<RequestRecord>) {
    let mut requests = Vec::new();
    let record = serve(fleet, None, &mut requests).expect("the fleet runs");
    (record, requests)
}

/// What must hold of every run.
fn holds_together(record: &ServingRecord, requests: &[RequestRecord], issued: u64) {
    assert_eq!(
        record.answered + record.refused,
        issued,
        "every request ends exactly once"
    );
    let mut numbers: Vec<u64> = requests.iter().map(|request| request.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(
        numbers.len() as u64,
        record.answered,
        "nobody is answered twice"
    );
    for request in requests {
        let spent: SimDuration = request.phases.iter().copied().sum();
        assert_eq!(
            spent, request.e2e,
            "time by phase sums to latency: {request:?}"
        );
        assert!(request.ttft <= request.e2e);
    }
    let expected = u128::from(record.window.as_picos()) * u128::from(record.gpus());
    assert_eq!(
        record.total().total_picos(),
        expected,
        "every GPU-second has one cause"
    );
    for pool in &record.pools {
        for work in [&pool.prefill, &pool.decode] {
            assert_eq!(
                work.causes.total_picos(),
                work.time_ps * u128::from(pool.gpus)
            );
        }
    }
}

#[test]
fn one_request_alone_takes_what_its_steps_take() {
    let plan = plan(
        Arrivals::Burst {},
        Length::Fixed(1000),
        Length::Fixed(11),
        1,
    );
    let mut fleet = fleet(vec![pool(&MODEL)], &plan);
    fleet.pools[0].engine.max_num_batched_tokens = 400;
    let (record, requests) = run(&fleet);
    // 400, 400 and 200 tokens, then ten steps.
    let ttft = 3 * 5_000_000_000 + 1000 * 20_000_000;
    assert_eq!(requests[0].ttft.as_picos(), ttft);
    let mut decode = 0;
    for context in 1000..1010_u64 {
        decode += MODEL.step(&StepBatch::decode(1, context)).time.as_picos();
    }
    let simulated = (requests[0].e2e - requests[0].ttft).as_picos();
    // Between grid points the cost is a line.
    assert!(
        (simulated as f64 / decode as f64 - 1.0).abs() < 1e-3,
        "{simulated} {decode}"
    );
    assert_eq!(record.output_tokens, 11);
    holds_together(&record, &requests, 1);
}

/// A queue of one place with constant service: the mean wait of M/D/1 is rho s / (2 (1 - rho)).
#[test]
fn a_queue_of_one_place_is_an_m_d_1_queue() {
    let service = 0.01;
    for rho in [0.3, 0.7] {
        let plan = plan(
            poisson(rho / service),
            Length::Fixed(10),
            Length::Fixed(1),
            60_000,
        );
        let model = Plain {
            gpus: GPUS,
            step: 10_000_000_000,
            prompt_token: 0,
            sequence: 0,
            context: 0,
        };
        let mut fleet = fleet(vec![pool(&model)], &plan);
        fleet.pools[0].engine.max_num_seqs = 1;
        let (record, _) = run(&fleet);
        let wait = record.e2e.mean_s() - service;
        let theory = rho * service / (2.0 * (1.0 - rho));
        assert!(
            (wait / theory - 1.0).abs() < 0.06,
            "rho {rho}: {wait} against {theory}"
        );
    }
}

/// So many places whose pace does not depend on company, and exponential answers: the wait of M/M/c
/// is Erlang's C over c mu - lambda.
#[test]
fn places_that_do_not_share_are_an_m_m_c_queue() {
    let (servers, load) = (4_u32, 3.2_f64);
    let step = 0.001;
    let mean_tokens = 200.0;
    let service = step * mean_tokens;
    let rate = load / service;
    let mut stream = RandomStream::root(5);
    let mut clock = 0.0;
    let rows: Vec<_> = (0..40_000)
        .map(|_| {
            clock += stream.exponential(1.0 / rate);
            Ok(Request {
                arrival: Some(SimTime::ZERO + SimDuration::from_secs_f64(clock)),
                input_tokens: 1,
                output_tokens: stream.exponential(mean_tokens).ceil() as u32,
                ..Request::default()
            })
        })
        .collect();
    let plan = RequestPlan {
        shapes: Shapes::Trace {
            path: String::new(),
            limit: None,
        },
        arrivals: None,
        rate_scale: 1.0,
        warm_up: SimDuration::ZERO,
        measure_for: None,
        priorities: 1,
    };
    let model = Plain {
        gpus: GPUS,
        step: 1_000_000_000,
        prompt_token: 0,
        sequence: 0,
        context: 0,
    };
    let mut fleet = fleet(vec![pool(&model)], &plan);
    fleet.pools[0].engine.max_num_seqs = servers;
    fleet.pools[0].kv_tokens = 10_000_000;
    let mut requests = Vec::new();
    serve(&fleet, Some(Box::new(rows.into_iter())), &mut requests).expect("the fleet runs");
    let waits: f64 = requests
        .iter()
        .map(|request| request.phases[Phase::Queued as usize].as_secs_f64())
        .sum();
    let wait = waits / requests.len() as f64;
    let factorial = |n: u32| (1..=n).map(f64::from).product::<f64>();
    let last = load.powi(servers as i32) / factorial(servers) * f64::from(servers)
        / (f64::from(servers) - load);
    let sum: f64 = (0..servers)
        .map(|k| load.powi(k as i32) / factorial(k))
        .sum();
    let erlang_c = last / (sum + last);
    let theory = erlang_c / (f64::from(servers) / service - rate);
    // A newcomer also waits for the step under way, half of one on average.
    assert!(
        (wait / (theory + step / 2.0) - 1.0).abs() < 0.12,
        "{wait} against {theory}"
    );
}

#[test]
fn a_shared_prefix_is_computed_once() {
    let mut plan = plan(poisson(1.0), Length::Fixed(64), Length::Fixed(16), 40);
    plan.shapes = Shapes::Drawn {
        input: Length::Fixed(64),
        output: Length::Fixed(16),
        sessions: Some(Sessions {
            turns: Length::Fixed(4),
            think_time: SimDuration::from_micros(500_000),
            system_prompt: 160,
            system_prompts: 1,
        }),
        count: 40,
    };
    let fleet = fleet(vec![pool(&MODEL)], &plan);
    let (record, requests) = run(&fleet);
    holds_together(&record, &requests, 40);
    let longest = requests.iter().map(|request| request.input_tokens).max();
    assert_eq!(longest, Some(160 + 4 * 64 + 3 * 16));
    // All but the first begin with a cached system prompt; later turns with all that was said.
    let hits = requests
        .iter()
        .filter(|request| request.cached_tokens >= 160)
        .count();
    assert!(hits >= 38, "{hits}");
    let last = requests
        .iter()
        .find(|request| Some(request.input_tokens) == longest)
        .unwrap();
    assert!(last.cached_tokens >= 160 + 3 * 80 - 16, "{last:?}");
}

#[test]
fn caches_that_meet_on_a_link_share_it() {
    let plan = plan(Arrivals::Burst {}, Length::Fixed(4000), Length::Fixed(4), 8);
    let split = |replicas: u32, plan| {
        let mut prefill = pool(&MODEL);
        prefill.role = Role::Prefill;
        prefill.replicas = replicas;
        prefill.engine.prefix_caching = false;
        let mut decode = pool(&MODEL);
        decode.role = Role::Decode;
        decode.first_gpu = replicas * GPUS;
        fleet(vec![prefill, decode], plan)
    };
    // Slow links, so that moving takes longer than computing.
    let slow = |fleet: &mut Fleet<'_>| {
        for pool in &mut fleet.pools {
            pool.wires.nic = Bandwidth::from_gigabytes_per_sec(1);
        }
    };
    let (mut one, mut four) = (split(1, &plan), split(4, &plan));
    slow(&mut one);
    slow(&mut four);
    let (alone, requests) = run(&one);
    holds_together(&alone, &requests, 8);
    let (together, requests) = run(&four);
    holds_together(&together, &requests, 8);
    // 400 MB in all to one port pair of 2 GB/s: never faster than the target's ports.
    assert_eq!(alone.kv.sent[Level::Spine as usize] / 1_000_000, 3_199);
    assert!(together.window.as_secs_f64() > 1.6, "{}", together.window);
    assert!(together.kv.exposed.mean_s() > alone.kv.exposed.quantile_s(0.0));
}

#[test]
fn layers_hide_behind_the_layers_that_follow() {
    let plan = plan(poisson(0.5), Length::Fixed(4000), Length::Fixed(4), 20);
    let mut exposed = Vec::new();
    for layer_by_layer in [true, false] {
        let mut prefill = pool(&MODEL);
        prefill.role = Role::Prefill;
        let mut decode = pool(&MODEL);
        decode.role = Role::Decode;
        decode.first_gpu = GPUS;
        let mut fleet = fleet(vec![prefill, decode], &plan);
        fleet.transfer.layer_by_layer = layer_by_layer;
        let (record, requests) = run(&fleet);
        holds_together(&record, &requests, 20);
        exposed.push(record.kv.exposed.mean_s());
    }
    // 400 MB over two NICs of 40 GB/s are 5 ms; of twelve layers one remains.
    assert!((exposed[1] - 5.0e-3).abs() < 3.0e-4, "{exposed:?}");
    assert!((exposed[0] - 5.0e-3 / 12.0).abs() < 2.0e-4, "{exposed:?}");
}

/// A turn of a conversation brings only what its decode replica has not kept.
#[test]
fn the_decode_side_keeps_conversations() {
    let mut plan = plan(poisson(1.0), Length::Fixed(160), Length::Fixed(32), 60);
    plan.shapes = Shapes::Drawn {
        input: Length::Fixed(160),
        output: Length::Fixed(32),
        sessions: Some(Sessions {
            turns: Length::Fixed(4),
            think_time: SimDuration::from_micros(500_000),
            system_prompt: 0,
            system_prompts: 1,
        }),
        count: 60,
    };
    let sent = |caching: bool, replicas: u32, router: Router| {
        let mut prefill = pool(&MODEL);
        prefill.role = Role::Prefill;
        let mut decode = pool(&MODEL);
        decode.role = Role::Decode;
        decode.first_gpu = GPUS;
        decode.replicas = replicas;
        decode.engine.prefix_caching = caching;
        let mut fleet = fleet(vec![prefill, decode], &plan);
        fleet.router = router;
        let (record, requests) = run(&fleet);
        holds_together(&record, &requests, 60);
        let bytes = record.kv.sent.iter().sum::<u64>() as f64;
        let tokens = |request: &RequestRecord| f64::from(request.input_tokens);
        let asked: f64 = requests.iter().map(tokens).sum();
        let again: f64 = requests.iter().map(|request| tokens(request) - 160.0).sum();
        (bytes, record.kv.spared, again / asked)
    };
    let (all, none, _) = sent(false, 1, Router::RoundRobin);
    let (fresh, spared, again) = sent(true, 1, Router::RoundRobin);
    assert_eq!(none, 0.0);
    assert!(
        (fresh + spared - all).abs() < 1e-3 * all,
        "{all} {fresh} {spared}"
    );
    // Of every later turn all but the new part is there, but for the last block.
    let share = spared / all;
    assert!(share > 0.85 * again && share <= again, "{share} of {again}");
    // Of two replicas one has it: a router that looks finds it more often.
    let spared = |router| sent(true, 2, router).1;
    let (blind, aware) = (spared(Router::RoundRobin), spared(Router::CacheAware));
    assert!(aware > 1.3 * blind, "{aware} {blind}");
}

#[test]
fn what_falls_out_of_hbm_comes_back_from_below() {
    let mut plan = plan(poisson(2.0), Length::Fixed(640), Length::Fixed(16), 120);
    plan.shapes = Shapes::Drawn {
        input: Length::Fixed(640),
        output: Length::Fixed(16),
        sessions: Some(Sessions {
            turns: Length::Fixed(6),
            think_time: SimDuration::from_micros(20_000_000),
            system_prompt: 0,
            system_prompts: 1,
        }),
        count: 120,
    };
    let tiers = [
        KvTier {
            medium: Medium::HostDram,
            capacity: Bytes::new(100_000 * 20_000),
            read: Bandwidth::from_gigabytes_per_sec(40),
            write: None,
            latency: SimDuration::from_micros(20),
            write_policy: WritePolicy::WriteBack,
            eviction: Eviction::Lru,
        },
        KvTier {
            medium: Medium::Remote,
            capacity: Bytes::new(100_000 * 2_000_000),
            read: Bandwidth::from_gigabytes_per_sec(10),
            write: None,
            latency: SimDuration::from_micros(50),
            write_policy: WritePolicy::WriteThrough,
            eviction: Eviction::LengthAware,
        },
    ];
    let mut small = fleet(vec![pool(&MODEL)], &plan);
    small.pools[0].kv_tokens = 8_000;
    let (without, requests) = run(&small);
    holds_together(&without, &requests, 120);
    small.store = &tiers;
    let (with, requests) = run(&small);
    holds_together(&with, &requests, 120);
    assert!(with.kv.loaded_tokens > 50_000, "{}", with.kv.loaded_tokens);
    assert!(
        with.kv
            .tiers
            .iter()
            .all(|tier| tier.read > 0 && tier.written > 0),
        "{:?}",
        with.kv.tiers
    );
    assert!(with.pools[0].prefill_tokens < without.pools[0].prefill_tokens);
}

/// A service that reads its system prompts from a remote store, on 32 H100 of one fabric.
fn beside_a_store(
    oversubscription: u32,
    faults: &[LinkFault],
) -> (ServingRecord, Vec<RequestRecord>) {
    let mut plan = plan(poisson(60.0), Length::Fixed(64), Length::Fixed(4), 300);
    let Shapes::Drawn { sessions, .. } = &mut plan.shapes else {
        unreachable!("the plan draws")
    };
    *sessions = Some(Sessions {
        turns: Length::Fixed(1),
        think_time: SimDuration::ZERO,
        system_prompt: 4_000,
        system_prompts: 48,
    });
    let tiers = [KvTier {
        medium: Medium::Remote,
        capacity: Bytes::new(100_000 * 2_000_000),
        read: Bandwidth::from_gigabytes_per_sec(2_000),
        write: None,
        write_policy: WritePolicy::WriteBack,
        latency: SimDuration::from_micros(50),
        eviction: Eviction::Lru,
    }];
    let text = format!(
        "cluster: {{ node: dgx-h100, gpus: 32, fabric: {{ like: roce-oversubscribed, \
         fat_tree: {{ nics_per_leaf: 8, leaf_oversubscription: {oversubscription} }} }} }}\n\
         workload: {{ training: {{ model: llama3-8b, stack: megatron-core-25.04, precision: bf16, \
         sequence_length: 4096, global_batch: 64, parallelism: {{ tensor: 2 }} }} }}"
    );
    let files = |_: &str| Err(std::io::Error::other("no files"));
    let scenario = rackflow_scenario::parse("test", &text).expect("it parses");
    let cluster = scenario.resolve(&files).expect("it resolves").cluster;
    let map = rackflow_topology::ClusterMap::new(&cluster).expect("it nests");
    let mut fleet = fleet(vec![pool(&MODEL)], &plan);
    fleet.pools[0].kv_tokens = 9_000;
    fleet.pools[0].replicas = 16;
    fleet.store = &tiers;
    fleet.site = Some(FleetSite {
        cluster: &cluster,
        map: &map,
        seats: None,
        faults,
        on_fabric: true,
    });
    let (record, requests) = run(&fleet);
    holds_together(&record, &requests, 300);
    assert!(
        record.kv.loaded_tokens > 50_000,
        "{}",
        record.kv.loaded_tokens
    );
    (record, requests)
}

/// Blocks of a remote store come from all hosts, over the uplinks of the leaves where those are narrow.
#[test]
fn loads_from_a_remote_store_meet_the_uplinks() {
    let end_to_end = |oversubscription| beside_a_store(oversubscription, &[]).0.e2e.mean_s();
    // Eight NICs on eight cables, and on one.
    let (wide, narrow) = (end_to_end(1), end_to_end(8));
    assert!(narrow > 1.02 * wide, "{narrow} {wide}");
}

/// A host whose NIC is slow holds up those who read blocks from it.
#[test]
fn a_slow_host_of_a_remote_store_holds_its_readers_up() {
    let slow = LinkFault {
        link: FaultyLink::Nic(9),
        state: LinkState::Degraded(0.01),
    };
    // GPU 9 is of the fifth replica; the longest load of the others is what counts.
    let longest = |faults: &[LinkFault]| {
        let (_, requests) = beside_a_store(1, faults);
        let others = requests
            .iter()
            .filter(|request| request.prefill_replica != 4);
        others
            .map(|request| request.phases[Phase::Loading as usize])
            .max()
    };
    let (whole, held) = (longest(&[]), longest(&[slow]));
    assert!(held > whole.map(|time| time * 5), "{held:?} {whole:?}");
}

#[test]
fn a_diffusion_model_delivers_blocks() {
    let plan = plan(Arrivals::Burst {}, Length::Fixed(100), Length::Fixed(64), 4);
    let mut fleet = fleet(vec![pool(&MODEL)], &plan);
    fleet.decoder = Decoder::BlockDiffusion {
        block: 16,
        steps: 8,
    };
    let (record, requests) = run(&fleet);
    holds_together(&record, &requests, 4);
    assert_eq!(
        record.pools[0].decode.steps,
        4 * 8,
        "four blocks of eight steps"
    );
    assert_eq!(requests[0].first_tokens, 16);
    fleet.decoder = Decoder::FullDiffusion {
        tokens_per_step: 2,
        refresh_every: 1,
    };
    let (record, requests) = run(&fleet);
    holds_together(&record, &requests, 4);
    assert_eq!(record.pools[0].decode.steps, 32);
    assert_eq!(requests[0].ttft, requests[0].e2e, "everything at the end");
}

#[test]
fn guesses_save_steps() {
    let plan = plan(
        Arrivals::Burst {},
        Length::Fixed(100),
        Length::Fixed(4000),
        8,
    );
    let mut fleet = fleet(vec![pool(&MODEL)], &plan);
    let guess = Speculation {
        draft: Draft::NGram,
        draft_tokens: 3,
        acceptance: Acceptance::Each(0.7),
    };
    fleet.decoder = Decoder::Speculative(guess);
    let (record, requests) = run(&fleet);
    holds_together(&record, &requests, 8);
    let per_step = 3999.0 * 8.0 / record.pools[0].decode_sequences as f64;
    assert!(
        (per_step / guess.tokens_per_step() - 1.0).abs() < 0.02,
        "{per_step}"
    );
}

#[test]
fn a_warm_up_is_simulated_and_not_measured() {
    let mut plan = plan(poisson(4.0), Length::Fixed(300), Length::Fixed(50), 400);
    plan.warm_up = SimDuration::from_secs_f64(20.0);
    let fleet = fleet(vec![pool(&MODEL)], &plan);
    let (record, requests) = run(&fleet);
    holds_together(&record, &requests, 400);
    let late = requests.iter().filter(|request| request.measured).count();
    assert_eq!(late as u64, record.measured);
    assert!((300..340).contains(&late), "{late}");
    assert!(record.output_tokens < 50 * 340 && record.output_tokens > 50 * 300);
}

fn schedulers() -> impl Strategy<Value = Scheduler> {
    prop_oneof![
        Just(Scheduler::Vllm),
        Just(Scheduler::Sglang),
        Just(Scheduler::TensorrtLlm),
        Just(Scheduler::Orca),
        Just(Scheduler::Static),
    ]
}

fn arrivals() -> impl Strategy<Value = Arrivals> {
    prop_oneof![
        (0.5..40.0f64).prop_map(poisson),
        (0.5..40.0f64, 0.2..3.0f64).prop_map(|(rate, cv)| Arrivals::Gamma {
            rate: RequestRate::from_per_sec(rate),
            cv,
        }),
        (1u32..20).prop_map(|concurrency| Arrivals::ClosedLoop { concurrency }),
        Just(Arrivals::Burst {}),
    ]
}

fn engines() -> impl Strategy<Value = EngineConfig> {
    (
        schedulers(),
        16u32..900,
        1u32..12,
        any::<bool>(),
        1u32..33,
        any::<bool>(),
        any::<bool>(),
        1u32..7,
        prop::option::of((1u32..9, 0.0..1.0f64)),
    )
        .prop_map(
            |(scheduler, tokens, seqs, chunked, block, caching, swap, poll, wait)| EngineConfig {
                scheduler,
                max_num_batched_tokens: tokens,
                max_num_seqs: seqs,
                chunked_prefill: chunked,
                block_size: block,
                prefix_caching: caching,
                preemption: if swap {
                    Preemption::Swap
                } else {
                    Preemption::Recompute
                },
                max_queue: None,
                poll_interval: poll,
                batch_wait: wait.map(|(steps, budget)| BatchWait { steps, budget }),
            },
        )
}

/// Two runs came to the same.
fn same_bits(record: &ServingRecord, slow: &ServingRecord) -> Result<(), TestCaseError> {
    prop_assert_eq!(record.window, slow.window);
    prop_assert_eq!(record.output_tokens, slow.output_tokens);
    for (a, b) in record.pools.iter().zip(&slow.pools) {
        prop_assert_eq!(&a.prefill, &b.prefill);
        prop_assert_eq!(&a.decode, &b.decode);
        prop_assert_eq!(&a.accounts, &b.accounts);
        prop_assert_eq!(
            (
                a.kv_peak_blocks,
                a.kv_token_steps,
                a.preemptions,
                a.decode_sequences,
                a.decode_tokens
            ),
            (
                b.kv_peak_blocks,
                b.kv_token_steps,
                b.preemptions,
                b.decode_sequences,
                b.decode_tokens
            )
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: ProptestConfig::default().cases * 3 / 4, ..ProptestConfig::default() })]

    /// With little cache, any scheduler, conversations and priorities: every request ends once, and
    /// every token, moment and GPU-second is accounted for; and steps taken together give the same
    /// bits as steps one by one.
    #[test]
    fn together_is_one_by_one_and_nothing_is_lost(
        engine in engines(),
        arrivals in arrivals(),
        input in 1u32..400,
        output in 1u32..90,
        talk in any::<bool>(),
        priorities in 1u32..3,
        kv_tokens in 600u64..4000,
        warm_up in 0u64..2,
        measure_for in prop::option::of(1u64..3_000_000),
        replicas in 1u32..3,
        seed in any::<u64>(),
    ) {
        let sessions = talk.then_some(Sessions {
            turns: Length::Uniform { min: 1, max: 4 },
            think_time: SimDuration::from_micros(300_000),
            system_prompt: 40,
            system_prompts: 2,
        });
        let mut plan = plan(arrivals, Length::Fixed(1), Length::Fixed(1), 60);
        plan.shapes = Shapes::Drawn {
            input: Length::Uniform { min: 1, max: input },
            output: Length::Uniform { min: 1, max: output },
            sessions,
            count: 60,
        };
        plan.priorities = priorities;
        plan.warm_up = SimDuration::from_micros(warm_up * 200_000);
        plan.measure_for = measure_for.map(SimDuration::from_micros);
        let mut fleet = fleet(vec![pool(&MODEL)], &plan);
        fleet.pools[0].engine = engine;
        fleet.pools[0].kv_tokens = kv_tokens;
        fleet.pools[0].replicas = replicas;
        fleet.router = Router::CacheAware;
        fleet.seed = seed;
        let mut requests = Vec::new();
        let Ok(record) = serve(&fleet, None, &mut requests) else {
            // Everything came before the warm-up ended.
            prop_assert!(requests.iter().all(|request| !request.measured));
            return Ok(());
        };
        holds_together(&record, &requests, record.answered + record.refused);
        if !talk && measure_for.is_none() {
            prop_assert_eq!(record.answered + record.refused, 60);
        }
        if warm_up == 0 && measure_for.is_none() {
            let asked: u64 = requests.iter().map(|request| u64::from(request.output_tokens)).sum();
            prop_assert_eq!(record.output_tokens, asked, "tokens out are tokens asked");
        }
        fleet.together = false;
        let mut slowly = Vec::new();
        let slow = serve(&fleet, None, &mut slowly).expect("as before");
        prop_assert_eq!(&requests, &slowly);
        same_bits(&record, &slow)?;
    }

    /// The same over two pools and a network; and where the steps of a replica send nothing, they are
    /// taken together, with the same bits as one by one.
    #[test]
    fn nothing_is_lost_between_prefill_and_decode(
        gpus in 1u32..3,
        engine in engines(),
        arrivals in arrivals(),
        kv_tokens in 900u64..4000,
        prefill_replicas in 1u32..4,
        decode_replicas in 1u32..3,
        layer_by_layer in any::<bool>(),
        gigabytes in 1u64..50,
        talk in any::<bool>(),
        aware in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let pools = TwoPools {
            gpus, engine, arrivals, kv_tokens, prefill_replicas, decode_replicas, layer_by_layer, gigabytes, talk, aware, seed,
        };
        pools.check()?;
    }
}

/// Fifty requests or conversations between a pool for prompts and one for answers.
struct TwoPools {
    gpus: u32,
    engine: EngineConfig,
    arrivals: Arrivals,
    kv_tokens: u64,
    prefill_replicas: u32,
    decode_replicas: u32,
    layer_by_layer: bool,
    gigabytes: u64,
    talk: bool,
    aware: bool,
    seed: u64,
}

impl TwoPools {
    fn check(self) -> Result<(), TestCaseError> {
        let Self { gpus, engine, .. } = self;
        let short = |max| Length::Uniform { min: 1, max };
        let mut plan = plan(self.arrivals, short(300), short(60), 50);
        if self.talk
            && let Shapes::Drawn { sessions, .. } = &mut plan.shapes
        {
            *sessions = Some(Sessions {
                turns: Length::Uniform { min: 1, max: 4 },
                think_time: SimDuration::from_micros(100_000),
                system_prompt: 40,
                system_prompts: 2,
            });
        }
        let model = Plain { gpus, ..MODEL };
        let mut prefill = pool(&model);
        (prefill.gpus, prefill.cache_gpus) = (gpus, gpus);
        prefill.role = Role::Prefill;
        prefill.replicas = self.prefill_replicas;
        prefill.kv_tokens = self.kv_tokens;
        prefill.engine = EngineConfig {
            scheduler: Scheduler::Vllm,
            ..engine
        };
        let mut decode = pool(&model);
        (decode.gpus, decode.cache_gpus) = (gpus, gpus);
        decode.role = Role::Decode;
        decode.first_gpu = self.prefill_replicas * gpus;
        decode.replicas = self.decode_replicas;
        decode.kv_tokens = self.kv_tokens;
        decode.engine = EngineConfig {
            scheduler: match engine.scheduler {
                Scheduler::Static => Scheduler::Sglang,
                other => other,
            },
            ..engine
        };
        let mut fleet = fleet(vec![prefill, decode], &plan);
        for pool in &mut fleet.pools {
            pool.wires.nic = Bandwidth::from_gigabytes_per_sec(self.gigabytes);
        }
        fleet.transfer.layer_by_layer = self.layer_by_layer;
        fleet.router = if self.aware {
            Router::CacheAware
        } else {
            Router::LeastTokens
        };
        fleet.seed = self.seed;
        let (record, requests) = run(&fleet);
        let issued = if self.talk {
            record.answered + record.refused
        } else {
            50
        };
        holds_together(&record, &requests, issued);
        let asked = requests
            .iter()
            .map(|request| u64::from(request.output_tokens));
        prop_assert_eq!(record.output_tokens, asked.sum::<u64>());
        fleet.together = false;
        let (slow, slowly) = run(&fleet);
        prop_assert_eq!(&requests, &slowly);
        same_bits(&record, &slow)
    }
}

/// Talks that push each other out of little caches.
fn crowded(block_size: u32, preemption: Preemption) -> TwoPools {
    TwoPools {
        gpus: 1,
        engine: EngineConfig {
            scheduler: Scheduler::Vllm,
            max_num_batched_tokens: 16,
            max_num_seqs: 4,
            chunked_prefill: false,
            block_size,
            prefix_caching: false,
            preemption,
            max_queue: None,
            poll_interval: 1,
            batch_wait: None,
        },
        arrivals: Arrivals::Gamma {
            rate: RequestRate::from_per_sec(39.529_509_088_396_15),
            cv: 0.324_807_307_114_234_93,
        },
        kv_tokens: 1008,
        prefill_replicas: 1,
        decode_replicas: 1,
        layer_by_layer: false,
        gigabytes: 33,
        talk: true,
        aware: false,
        seed: 16_324_065_725_643_399_952,
    }
}

/// Caches do not come in the order of requests: whoever is pushed out for itself may stand before older
/// ones, which go on.
#[test]
fn a_request_that_pushes_itself_out_does_not_end_the_step_of_those_behind() {
    crowded(28, Preemption::Swap).check().expect("holds");
}

/// Caches that wait for room get that of whoever is pushed out at once, and not with the end of a step
/// that comes later where steps are taken together.
#[test]
fn who_is_pushed_out_leaves_room_for_caches_that_wait() {
    let pools = TwoPools {
        arrivals: Arrivals::Gamma {
            rate: RequestRate::from_per_sec(18.263_450_583_111_65),
            cv: 2.121_700_572_550_16,
        },
        kv_tokens: 960,
        prefill_replicas: 3,
        decode_replicas: 2,
        gigabytes: 2,
        seed: 15_063_200_137_524_004_150,
        ..crowded(1, Preemption::Recompute)
    };
    pools.check().expect("holds");
}

#[test]
fn watching_a_service_changes_nothing_and_a_full_trace_says_so() {
    let requests = plan(poisson(20.0), Length::Fixed(400), Length::Fixed(30), 200);
    let prefill = Pool {
        role: Role::Prefill,
        ..pool(&MODEL)
    };
    let decode = Pool {
        role: Role::Decode,
        first_gpu: GPUS,
        ..pool(&MODEL)
    };
    let fleet = fleet(vec![prefill, decode], &requests);
    let (record, answered) = run(&fleet);
    let wish = |most| ServiceWish {
        replicas: vec![0, 1],
        from: SimTime::ZERO,
        until: SimTime::MAX,
        most,
    };
    let traced = |wish: &ServiceWish| {
        let mut requests: Vec<RequestRecord> = Vec::new();
        let (record, trace) = serve_traced(&fleet, None, &mut requests, wish).expect("it runs");
        (record, requests, trace)
    };
    let (watched, same, trace) = traced(&wish(usize::MAX));
    assert_eq!(watched.events, record.events);
    assert_eq!(same, answered);
    assert_eq!((trace.requests.len(), trace.transfers.len()), (200, 200));
    assert_eq!(trace.full_at, None);
    for (request, told) in trace.requests.iter().zip(&answered) {
        // Its phases follow each other from arrival to answer, and sum to those of the record.
        assert_eq!(request.number, told.number);
        assert!(request.phases.windows(2).all(|pair| pair[0].2 == pair[1].1));
        let mut spent = [SimDuration::ZERO; Phase::COUNT];
        for (phase, start, end) in &request.phases {
            spent[*phase as usize] += end.since(*start);
        }
        assert_eq!(spent, told.phases);
        assert_eq!(request.phases[0].1, told.arrival);
    }
    // A step begins when the one before has ended, and caches move within their request's wait.
    for replica in &trace.replicas {
        let steps = &replica.steps;
        assert!(!steps.is_empty() && steps.windows(2).all(|pair| pair[0].end <= pair[1].start));
        let levels = &replica.levels;
        assert!(
            levels
                .iter()
                .all(|level| level.kv_bytes <= replica.kv_bytes)
        );
    }
    let (_, _, short) = traced(&wish(500));
    assert!(short.full_at.is_some());
    assert!(short.requests.len() < 60, "{}", short.requests.len());
    // A window holds what overlaps it.
    let at = |seconds| SimTime::ZERO + SimDuration::from_secs_f64(seconds);
    let (_, _, part) = traced(&ServiceWish {
        from: at(2.0),
        until: at(3.0),
        ..wish(usize::MAX)
    });
    assert!(!part.requests.is_empty() && part.requests.len() < 100);
    let steps = part.replicas.iter().flat_map(|replica| &replica.steps);
    assert!(
        steps
            .clone()
            .all(|step| step.end >= at(2.0) && step.start < at(3.0))
    );
}
