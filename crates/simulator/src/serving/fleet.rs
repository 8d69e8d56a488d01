//! The run of a fleet: arrivals, steps, transfers, and what becomes of each request.

use super::blocks;
use super::cost::{DecodeTable, StepModel, Work};
use super::ground::{all_gpus, slowdown, way_of_steps, ways_of_store};
use super::live::{Live, Lives};
use super::luck::Luck;
use super::network::{self, Ground, Network, Piece, Purpose, Sides, Spread, Transfer, Way, Wires};
use super::record::{
    KvRecord, Phase, PoolRecord, RequestRecord, RequestSink, ServingRecord, Spans, TierRecord,
};
use super::replica::{Replica, Run};
use super::source::{Answered, Rows, Source};
use super::store::Store;
use super::trace::{ServiceTrace, ServiceWish, TracedReplica, TracedStep, TracedTransfer, Watch};
use crate::ports::Outages;
use rackflow_engine::{EventClass, EventQueue, RandomStream};
use rackflow_network::{Demand, FlowId, FlowNet, Links, Protocol, Shape};
use rackflow_plan::Straggler;
use rackflow_plan::serving::{FleetPlan, FleetSetup, Instance, PoolSetup, StepBatch};
use rackflow_plan::{Accounts, Cause};
use rackflow_topology::{Cluster, ClusterMap, Level, LinkFault};
use rackflow_units::{Bandwidth, Bytes, SimDuration, SimTime};
use rackflow_workload::{
    Decoder, EngineConfig, KvTier, KvTransfer, Request, RequestPlan, Role, Router, Slo, TraceError,
};

/// Equal replicas of the model.
#[derive(Clone)]
pub struct Pool<'a> {
    /// What they do.
    pub role: Role,
    /// What their steps cost.
    pub model: &'a dyn StepModel,
    /// How many.
    pub replicas: u32,
    /// GPUs of one; replicas lie one after the other.
    pub gpus: u32,
    /// GPUs among which one sequence's cache is spread: the tensor-parallel ranks of one attention
    /// group.
    pub cache_gpus: u32,
    /// GPUs of one pipeline stage of a replica.
    pub stage_gpus: u32,
    /// Tokens go to experts on other GPUs.
    pub exchanges: bool,
    /// Attention groups of one replica, each with its own part of a step's tokens.
    pub groups: u32,
    /// First GPU of the pool.
    pub first_gpu: u32,
    /// Limits and habits.
    pub engine: EngineConfig,
    /// Tokens that the cache of one replica holds.
    pub kv_tokens: u64,
    /// Bytes of one token in the cache, all layers.
    pub kv_bytes_per_token: f64,
    /// Layers of the model.
    pub layers: u64,
    /// Ports of one GPU.
    pub wires: Wires,
    /// Rate between one GPU and its host.
    pub host: Bandwidth,
    /// From a request's arrival to its place in the queue: the server in front of the engine.
    pub request_overhead: SimDuration,
}

/// What is simulated.
#[derive(Clone)]
pub struct Fleet<'a> {
    /// One pool that does everything, or prefill and decode.
    pub pools: Vec<Pool<'a>>,
    /// Where GPUs sit; `None` where the pools are of different hardware.
    pub site: Option<FleetSite<'a>>,
    /// GPUs of the fleet whose kernels take longer.
    pub stragglers: &'a [Straggler],
    /// What is asked.
    pub requests: &'a RequestPlan,
    /// How answers are produced.
    pub decoder: Decoder,
    /// How a request finds its replica.
    pub router: Router,
    /// How caches move between pools.
    pub transfer: KvTransfer,
    /// Tiers below HBM, the nearest first.
    pub store: &'a [KvTier],
    /// What requests should not exceed.
    pub slo: Slo,
    /// Root of all random streams.
    pub seed: u64,
    /// Steps of equal batches are taken together. The results are the same without.
    pub together: bool,
}

/// Where a fleet sits.
#[derive(Debug, Clone, Copy)]
pub struct FleetSite<'a> {
    /// The cluster, with whatever else is there.
    pub cluster: &'a Cluster,
    /// The same.
    pub map: &'a ClusterMap,
    /// Its GPUs, if they are not the first ones.
    pub seats: Option<&'a [u32]>,
    /// Dead, slow and flapping links of the cluster.
    pub faults: &'a [LinkFault],
    /// Links above the leaves may hold flows back, and are not in the prices of steps.
    pub on_fabric: bool,
}

impl FleetSite<'_> {
    /// A GPU of the fleet, counted over the cluster.
    pub fn gpu_of(&self, gpu: u32) -> u32 {
        self.seats.map_or(gpu, |seats| seats[gpu as usize])
    }
}

impl<'a> Fleet<'a> {
    /// The fleet of a compiled plan.
    pub fn of(plan: &'a FleetPlan) -> Self {
        let setup = &plan.setup;
        let pools = setup.pools.iter().zip(&plan.instances);
        Self {
            pools: pools
                .map(|(pool, instance)| Pool::of(setup, pool, instance, plan))
                .collect(),
            site: setup.host().map(|cluster| FleetSite {
                cluster,
                map: &plan.maps[0],
                seats: setup.seats.as_ref().map(|seats| seats.gpus.as_slice()),
                faults: &setup.faults,
                on_fabric: plan.on_fabric,
            }),
            stragglers: &setup.stragglers,
            requests: &setup.requests,
            decoder: setup.decoder,
            router: setup.router,
            transfer: setup.transfer,
            store: &setup.store,
            slo: setup.slo,
            seed: setup.seed,
            together: true,
        }
    }
}

impl<'a> Pool<'a> {
    fn of(setup: &FleetSetup, pool: &PoolSetup, instance: &'a Instance, plan: &FleetPlan) -> Self {
        let cluster = &setup.clusters[pool.cluster];
        let links = Links::new(cluster, &plan.maps[pool.cluster]);
        let wires = Wires {
            nvlink: links.copy_rate(Protocol::Simple),
            nic: links.nic_rate(Protocol::Simple),
            nvlink_latency: links.nvlink_step(Protocol::Ll),
            nic_latency: links.nic_step(Level::Spine, Shape::Ring, Protocol::Ll),
        };
        let deployment = &pool.deployment;
        Self {
            role: pool.role,
            model: instance,
            replicas: pool.replicas,
            gpus: instance.gpus(),
            cache_gpus: deployment.parallelism.tensor,
            stage_gpus: deployment.parallelism.stage_gpus(),
            exchanges: deployment.model.moe.is_some() && deployment.parallelism.data > 1,
            groups: deployment.parallelism.data,
            first_gpu: pool.first_gpu,
            engine: pool.engine,
            kv_tokens: instance.kv_capacity_tokens(),
            kv_bytes_per_token: deployment.kv_bytes_per_token().as_f64(),
            layers: deployment.model.layers,
            wires,
            host: cluster.node.accelerator.host_bandwidth,
            request_overhead: deployment.stack.request_overhead,
        }
    }
}

/// Why a fleet cannot be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The trace is wrong.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// No request was measured.
    #[error(
        "no request was measured: {answered} were answered and {refused} refused, all of them outside the measured window or too long for the cache\n  hint: more requests (`count`), a shorter `warm_up`, a longer `measure_for`, or more room for the cache"
    )]
    NothingMeasured {
        /// Requests answered.
        answered: u64,
        /// Requests refused.
        refused: u64,
    },
}

/// At one instant: what ends, who comes, who is chosen; last where prompts are computed, since that asks
/// for room where answers are.
const ENDED: EventClass = EventClass(0);
const CAME: EventClass = EventClass(1);
const CHOOSE: EventClass = EventClass(2);
const CHOOSE_PREFILL: EventClass = EventClass(3);

#[derive(Debug)]
enum Event {
    /// The warm-up is over.
    WarmedUp,
    /// The measured window is over.
    WindowClosed,
    /// The steps under way of this replica have ended.
    StepsEnded(u32),
    /// A flow has ended.
    FlowEnded(u32),
    /// The next request of the source is here.
    Arrived(Box<Request>),
    /// A later turn is here.
    Returned(Box<Request>),
    /// The server has handed the request to the engine.
    Queued(u32),
    /// Blocks of lower tiers are here.
    Loaded(u32),
    /// Layers of this transfer are computed.
    LayersReady(u32),
    /// This replica chooses its next step.
    Choose(u32),
    /// Flapping links go down or come up.
    Flapped,
}

/// Parts in which the layers of a cache move: the last is one layer, since it is the only one that
/// nothing hides.
const PARTS: u64 = 8;

/// Runs `fleet` until every request is answered. `rows` are those of the trace, where the plan names
/// one.
///
/// # Errors
/// When the trace is faulty, or nothing was measured.
pub fn serve(
    fleet: &Fleet<'_>,
    rows: Option<Rows<'_>>,
    sink: &mut dyn RequestSink,
) -> Result<ServingRecord, ServeError> {
    let (net, ground, outages) = fleet.alone();
    let mut run = ServingRun::new(fleet, rows, Some(sink), net, ground);
    run.serving.outages = outages;
    run.start()?;
    while run.advance()? {}
    run.finish()
}

/// The same, and what chosen replicas did when.
///
/// # Errors
/// As [`serve`].
pub fn serve_traced(
    fleet: &Fleet<'_>,
    rows: Option<Rows<'_>>,
    sink: &mut dyn RequestSink,
    wish: &ServiceWish,
) -> Result<(ServingRecord, ServiceTrace), ServeError> {
    let (net, ground, outages) = fleet.alone();
    let mut run = ServingRun::new(fleet, rows, Some(sink), net, ground);
    run.serving.outages = outages;
    run.watch(wish);
    run.start()?;
    while run.advance()? {}
    let trace = run.take_trace();
    Ok((run.finish()?, trace))
}

/// A run of a fleet that can be taken event by event.
pub(crate) struct ServingRun<'a, 's> {
    serving: Serving<'a, 's>,
    queue: EventQueue<Event>,
    events: u64,
    /// When it began, on the clock of the net.
    began: SimTime,
    /// It ended before all was answered.
    cut: bool,
}

impl<'a, 's> ServingRun<'a, 's> {
    pub fn new(
        fleet: &'a Fleet<'a>,
        rows: Option<Rows<'s>>,
        sink: Option<&'s mut dyn RequestSink>,
        net: FlowNet,
        ground: Ground,
    ) -> Self {
        Self {
            began: ground.began,
            serving: Serving::new(fleet, rows, sink, net, ground),
            queue: EventQueue::new(),
            events: 0,
            cut: false,
        }
    }

    /// Writes down what these replicas do.
    pub fn watch(&mut self, wish: &ServiceWish) {
        let serving = &mut self.serving;
        let traced = serving.replicas.iter().enumerate().map(|(index, replica)| {
            let pool = &serving.fleet.pools[replica.pool];
            TracedReplica {
                replica: index as u32,
                role: pool.role,
                first_gpu: replica.gpu,
                gpus: pool.gpus,
                kv_bytes: pool.kv_tokens as f64 * pool.kv_bytes_per_token,
                steps: Vec::new(),
                levels: Vec::new(),
            }
        });
        serving.watch = Some(Box::new(Watch::new(wish, traced.collect())));
    }

    /// What was written down; nothing where nobody watched.
    pub fn take_trace(&mut self) -> ServiceTrace {
        let watch = self.serving.watch.take();
        watch.map_or_else(ServiceTrace::default, |watch| {
            watch.finish(&self.serving.lives, self.queue.now())
        })
    }

    /// Asks for the first requests.
    pub fn start(&mut self) -> Result<(), ServeError> {
        let (serving, queue) = (&mut self.serving, &mut self.queue);
        let warm_up = serving.fleet.requests.warm_up;
        if warm_up > SimDuration::ZERO {
            queue.schedule(SimTime::ZERO + warm_up, ENDED, Event::WarmedUp);
        }
        if serving.window_end < SimTime::MAX {
            queue.schedule(serving.window_end, ENDED, Event::WindowClosed);
        }
        serving.await_outage(queue);
        let first = serving.source.closed_loop().unwrap_or(1);
        for _ in 0..first {
            serving.pull(queue)?;
        }
        Ok(())
    }

    /// When something happens next, on the clock of the net; `None` when all is answered.
    pub fn next_time(&mut self) -> Option<SimTime> {
        if self.is_over() {
            return None;
        }
        let next = self.queue.next_time()?;
        // Flows that stand still end never.
        let never = next == SimTime::MAX;
        Some(if never {
            next
        } else {
            self.began + next.since(SimTime::ZERO)
        })
    }

    /// Links flap for ever: the run is over when nothing else is left, or when nothing that is left
    /// is measured.
    fn is_over(&self) -> bool {
        let outages = usize::from(!self.serving.outages.is_empty());
        self.cut || self.queue.len() <= outages && (outages == 0 || self.serving.lives.len() == 0)
    }

    /// Handles one event; false when all is answered.
    pub fn advance(&mut self) -> Result<bool, ServeError> {
        if self.is_over() {
            return Ok(false);
        }
        let Some((_, event)) = self.queue.pop() else {
            return Ok(false);
        };
        self.serving.handle(event, &mut self.queue)?;
        self.events += 1;
        let enough = self.serving.sink.as_ref().is_some_and(|sink| sink.enough());
        if enough || self.queue.now() > self.serving.window_end && self.serving.all_measured() {
            self.cut = true;
            if let Some(network) = &mut self.serving.network {
                network.abandon(self.queue.now());
            }
        }
        Ok(true)
    }

    pub fn finish(self) -> Result<ServingRecord, ServeError> {
        self.serving.finish(self.events, !self.cut)
    }

    /// The net that it runs on, and flows of others whose ends it has moved.
    pub fn shared(&mut self) -> Option<(&mut FlowNet, &mut Vec<(FlowId, SimTime)>)> {
        let network = self.serving.network.as_mut()?;
        Some((&mut network.net, &mut network.foreign))
    }

    /// A flow ends at this instant on the clock of the net; false where it is not of this fleet.
    pub fn ends_at(&mut self, flow: FlowId, ends: SimTime) -> bool {
        let network = self.serving.network.as_mut();
        network
            .is_some_and(|network| network.ends_at(&mut self.queue, flow, ends, Event::FlowEnded))
    }
}

struct Serving<'a, 's> {
    fleet: &'a Fleet<'a>,
    sink: Option<&'s mut dyn RequestSink>,
    /// Of a fleet alone: jobs side by side have one clock for the links.
    outages: Outages,
    /// How many times longer the kernels of each replica take.
    slowdowns: Vec<f64>,
    /// Links over which the steps of each replica send, and flows of its busiest GPU.
    ways: Vec<Spread>,
    /// Links over which blocks of a remote store come to each replica and go back, and flows of each of
    /// its GPUs.
    store_ways: Vec<[Spread; 2]>,
    /// GPUs of all replicas.
    fleet_gpus: u32,
    /// The GPU of the fleet whose host has the next blocks of the remote store.
    store_turn: u32,
    source: Source<'s>,
    tables: Vec<DecodeTable>,
    replicas: Vec<Replica>,
    /// Replicas of each pool.
    ranges: Vec<std::ops::Range<u32>>,
    lives: Lives,
    network: Option<Network>,
    transfers: Vec<Option<Transfer>>,
    free_transfers: Vec<u32>,
    /// Transfer of each live request.
    transfer_of: Vec<u32>,
    store: Store,
    turn: [u32; 2],
    routing: RandomStream,
    luck: RandomStream,
    window_start: SimTime,
    window_end: SimTime,
    /// Measured requests that are not answered.
    measured_live: u64,
    last_end: SimTime,
    numbered: u64,
    record: ServingRecord,
    endpoints: Vec<u32>,
    /// Ends on the hosts of a remote store.
    store_ends: Vec<u32>,
    exhausted: bool,
    watch: Option<Box<Watch>>,
}

const NO_TRANSFER: u32 = u32::MAX;

impl<'a, 's> Serving<'a, 's> {
    fn new(
        fleet: &'a Fleet<'a>,
        rows: Option<Rows<'s>>,
        sink: Option<&'s mut dyn RequestSink>,
        net: FlowNet,
        ground: Ground,
    ) -> Self {
        let mut replicas = Vec::new();
        let mut ranges = Vec::new();
        for (index, pool) in fleet.pools.iter().enumerate() {
            let first = replicas.len() as u32;
            let host = pool.host.as_f64() * f64::from(pool.gpus);
            for replica in 0..pool.replicas {
                replicas.push(Replica::new(
                    index,
                    pool.first_gpu + replica * pool.gpus,
                    (pool.engine, pool.groups),
                    fleet.decoder,
                    pool.kv_tokens,
                    Store::keeps(fleet.store),
                    pool.kv_bytes_per_token / host.max(1.0),
                ));
            }
            ranges.push(first..replicas.len() as u32);
        }
        let remote = fleet
            .store
            .iter()
            .any(|tier| tier.medium == rackflow_workload::Medium::Remote);
        let first = &fleet.pools[0];
        let block_bytes = (first.kv_bytes_per_token * f64::from(first.engine.block_size)) as u64;
        let root = RandomStream::root(fleet.seed);
        Self {
            fleet,
            sink,
            source: Source::new(fleet.requests, rows, fleet.seed),
            tables: fleet
                .pools
                .iter()
                .map(|pool| DecodeTable::new(pool.gpus))
                .collect(),
            store: Store::new(fleet.store, replicas.len(), block_bytes),
            outages: Outages::default(),
            slowdowns: replicas
                .iter()
                .map(|replica| slowdown(fleet, replica))
                .collect(),
            ways: replicas
                .iter()
                .map(|replica| way_of_steps(fleet, replica, &ground))
                .collect(),
            store_ways: replicas
                .iter()
                .map(|replica| ways_of_store(fleet, replica, &ground))
                .collect(),
            network: (fleet.pools.len() > 1
                || remote
                || ground.roads.is_some()
                || fleet.site.is_some_and(|site| !site.faults.is_empty()))
            .then(|| Network::new(net, ground, ENDED)),
            replicas,
            ranges,
            lives: Lives::default(),
            transfers: Vec::new(),
            free_transfers: Vec::new(),
            transfer_of: Vec::new(),
            fleet_gpus: all_gpus(fleet).len() as u32,
            store_turn: 0,
            turn: [0; 2],
            routing: root.derive("router"),
            luck: root.derive("acceptance"),
            window_start: SimTime::ZERO,
            window_end: fleet.requests.measure_for.map_or(SimTime::MAX, |span| {
                SimTime::ZERO + fleet.requests.warm_up + span
            }),
            measured_live: 0,
            last_end: SimTime::ZERO,
            numbered: 0,
            record: empty_record(fleet),
            endpoints: Vec::new(),
            store_ends: Vec::new(),
            exhausted: false,
            watch: None,
        }
    }

    /// Asks the source for the next request and schedules its arrival.
    fn pull(&mut self, queue: &mut EventQueue<Event>) -> Result<(), ServeError> {
        if self.exhausted {
            return Ok(());
        }
        match self.source.next(queue.now())? {
            Some((at, request)) => {
                queue.schedule(at, CAME, Event::Arrived(Box::new(request)));
            }
            None => self.exhausted = true,
        }
        Ok(())
    }

    fn handle(&mut self, event: Event, queue: &mut EventQueue<Event>) -> Result<(), ServeError> {
        match event {
            Event::WarmedUp => self.warmed_up(queue),
            Event::WindowClosed => {
                for index in 0..self.replicas.len() as u32 {
                    let begun = self.catch_up(index, queue.now());
                    self.cut_after(index, begun, queue);
                    self.replicas[index as usize].close_window();
                }
            }
            Event::StepsEnded(replica) => self.steps_ended(replica, queue)?,
            Event::FlowEnded(slot) => self.flow_ended(slot, queue)?,
            Event::Arrived(request) => {
                let closed = self.source.closed_loop().is_some();
                let admitted = self.arrive(*request, queue);
                // In a closed loop the answer asks for the next; who was refused asks at once.
                if !closed || !admitted {
                    self.pull(queue)?;
                }
            }
            Event::Returned(request) => {
                self.arrive(*request, queue);
            }
            Event::Queued(id) => self.queued(id, queue),
            Event::Loaded(id) => self.loaded(id, queue),
            Event::LayersReady(transfer) => self.send_next(transfer, queue),
            Event::Choose(replica) => self.choose(replica, queue),
            Event::Flapped => self.flap(queue),
        }
        Ok(())
    }

    // ---- links that flap

    fn await_outage(&mut self, queue: &mut EventQueue<Event>) {
        if let Some(next) = self.outages.next_time() {
            queue.schedule(next, CHOOSE, Event::Flapped);
        }
    }

    /// Flapping links go down or come up.
    fn flap(&mut self, queue: &mut EventQueue<Event>) {
        let network = self.network.as_mut().expect("links are of a network");
        network.flap(&mut self.outages, queue, Event::FlowEnded);
        self.await_outage(queue);
    }

    // ---- arrival

    /// Numbers a request and finds its replica; `false` where it is turned away.
    fn arrive(&mut self, request: Request, queue: &mut EventQueue<Event>) -> bool {
        let now = queue.now();
        let mut live = Live::new(self.numbered, now, request);
        self.numbered += 1;
        live.measured = now >= self.window_start && self.warm(now) && now < self.window_end;
        live.traced = self.watch.is_some().then(Box::default);
        if matches!(self.fleet.decoder, Decoder::FullDiffusion { .. }) {
            live.target = 0;
        }
        if let Decoder::Speculative(guess) = self.fleet.decoder {
            live.luck = Some(Luck::new(
                guess.acceptance,
                self.luck.derive_index(live.number),
            ));
        }
        let pool = &self.fleet.pools[0];
        blocks::chain(
            &live.prefix,
            u64::from(live.input),
            pool.engine.block_size,
            &mut live.chain,
        );
        let last = &self.fleet.pools[self.fleet.pools.len() - 1];
        let fits = live.all_tokens() <= last.kv_tokens && u64::from(live.input) <= pool.kv_tokens;
        let replica = self.route(0, &live, now);
        let chosen = &self.replicas[replica as usize];
        let full = chosen
            .config
            .max_queue
            .is_some_and(|most| chosen.waiting.len() + chosen.unseen.len() >= most as usize);
        if !fits || full || !chosen.could_hold(live.all_tokens().min(pool.kv_tokens)) {
            self.record.refused += 1;
            return false;
        }
        self.measured_live += u64::from(live.measured);
        live.prefill_replica = replica;
        live.decode_replica = replica;
        self.load(replica, &live, true);
        let id = self.lives.insert(live);
        if self.transfer_of.len() <= id as usize {
            self.transfer_of.resize(id as usize + 1, NO_TRANSFER);
        }
        self.transfer_of[id as usize] = NO_TRANSFER;
        if pool.request_overhead == SimDuration::ZERO {
            self.queued(id, queue);
        } else {
            queue.schedule(now + pool.request_overhead, CAME, Event::Queued(id));
        }
        true
    }

    fn warm(&self, now: SimTime) -> bool {
        now >= SimTime::ZERO + self.fleet.requests.warm_up
    }

    /// Adds a request to a replica's load, or takes it off.
    fn load(&mut self, replica: u32, live: &Live, added: bool) {
        let replica = &mut self.replicas[replica as usize];
        let tokens = live.all_tokens();
        if added {
            replica.requests += 1;
            replica.tokens += tokens;
            replica.backlog += live.target;
        } else {
            replica.requests -= 1;
            replica.tokens -= tokens;
        }
    }

    /// The replica of `pool` for this request.
    fn route(&mut self, pool: usize, live: &Live, now: SimTime) -> u32 {
        let range = self.ranges[pool].clone();
        let count = range.end - range.start;
        if count == 1 {
            return range.start;
        }
        if self.fleet.router == Router::CacheAware {
            for index in range.clone() {
                self.catch_up(index, now);
            }
        }
        let replicas = &self.replicas;
        let least = |key: &dyn Fn(&Replica) -> u64| {
            range
                .clone()
                .min_by_key(|index| key(&replicas[*index as usize]))
                .expect("a pool has a replica")
        };
        match self.fleet.router {
            Router::RoundRobin => {
                let turn = &mut self.turn[pool.min(1)];
                let chosen = range.start + *turn % count;
                *turn = turn.wrapping_add(1);
                chosen
            }
            Router::Random => range.start + self.routing.below(u64::from(count)) as u32,
            Router::LeastRequests => least(&|replica| replica.requests),
            Router::LeastTokens => least(&|replica| replica.tokens),
            Router::CacheAware => least(&|replica| {
                let (hit, _) = replica.cached(live);
                replica.backlog + live.target - hit
            }),
        }
    }

    /// The engine has the request: its cache is looked for, then it waits.
    fn queued(&mut self, id: u32, queue: &mut EventQueue<Event>) {
        let now = queue.now();
        let live = &self.lives[id];
        let index = live.prefill_replica;
        if !self.store.is_empty() {
            let replica = &self.replicas[index as usize];
            let missing = replica.missing(live);
            let in_hbm = live.chain.len() - missing.len();
            let found = self.store.fetch(now, index as usize, missing);
            if found.blocks > 0 {
                let live = &mut self.lives[id];
                live.fetched = in_hbm as u64 + found.blocks;
                live.loads = 1;
                live.enter(Phase::Loading, now);
                queue.schedule(found.local.max(now), CAME, Event::Loaded(id));
                if found.remote > 0 {
                    live.loads = 2;
                    let posting = found.remote_read.saturating_since(now);
                    self.over_nics(index, found.remote, posting, Purpose::Load(id), queue);
                }
                return;
            }
        }
        self.wait(id, queue);
    }

    /// Blocks come from the remote tier, or go there, over the replica's NICs.
    fn over_nics(
        &mut self,
        index: u32,
        blocks: u64,
        posting: SimDuration,
        purpose: Purpose,
        queue: &mut EventQueue<Event>,
    ) {
        let replica = &self.replicas[index as usize];
        let pool = &self.fleet.pools[replica.pool];
        let bytes = blocks * self.store.block_bytes() / u64::from(pool.cache_gpus);
        let demand = network::demand((&pool.wires, &pool.wires), Level::Spine, bytes, posting);
        self.endpoints.clear();
        self.endpoints
            .extend((0..pool.cache_gpus).map(|gpu| replica.gpu + gpu));
        self.store_hosts(index);
        let network = self.network.as_mut().expect("a remote tier has a network");
        let [reads, writes] = &self.store_ways[index as usize];
        let (here, there) = (&self.endpoints, &self.store_ends);
        let (sides, way) = if purpose == Purpose::Write {
            (Sides::Between(here, there), writes)
        } else {
            (Sides::Between(there, here), reads)
        };
        network.start(
            queue,
            sides,
            &demand,
            Way::Links(&way.0, way.1),
            purpose,
            Event::FlowEnded,
        );
    }

    /// Blocks lie on the hosts of the fleet alike: as many NICs of others as the replica has take part,
    /// in turn.
    fn store_hosts(&mut self, index: u32) {
        let replica = &self.replicas[index as usize];
        let pool = &self.fleet.pools[replica.pool];
        let own = replica.gpu..replica.gpu + pool.gpus;
        self.store_ends.clear();
        if self.fleet_gpus - pool.gpus < pool.cache_gpus {
            return;
        }
        while self.store_ends.len() < pool.cache_gpus as usize {
            let gpu = self.store_turn;
            self.store_turn = (gpu + 1) % self.fleet_gpus;
            if !own.contains(&gpu) {
                self.store_ends.push(gpu);
            }
        }
    }

    fn loaded(&mut self, id: u32, queue: &mut EventQueue<Event>) {
        let live = &mut self.lives[id];
        live.loads -= 1;
        if live.loads == 0 {
            live.enter(Phase::Queued, queue.now());
            self.wait(id, queue);
        }
    }

    fn wait(&mut self, id: u32, queue: &mut EventQueue<Event>) {
        let index = self.lives[id].prefill_replica;
        let first = self.replicas[index as usize].receive(id, &self.lives);
        self.stir(index, first, queue);
    }

    /// Something has changed: an idle replica chooses, a busy one at the end of the step under way,
    /// if `now_first` says that the later ones of its run may be different.
    fn stir(&mut self, index: u32, now_first: bool, queue: &mut EventQueue<Event>) {
        let replica = &mut self.replicas[index as usize];
        if replica.run.is_none() {
            if !replica.decide {
                self.choose_soon(index, queue);
            }
        } else if now_first {
            self.cut_short(index, queue);
        }
    }

    /// The replica chooses its next step when everything of this instant is known.
    fn choose_soon(&mut self, index: u32, queue: &mut EventQueue<Event>) {
        let replica = &mut self.replicas[index as usize];
        replica.decide = true;
        let class = match self.fleet.pools[replica.pool].role {
            Role::Prefill => CHOOSE_PREFILL,
            Role::Both | Role::Decode => CHOOSE,
        };
        queue.schedule(queue.now(), class, Event::Choose(index));
    }

    /// Ends a run of several steps with the one under way.
    fn cut_short(&mut self, index: u32, queue: &mut EventQueue<Event>) {
        let begun = self.begun_before(index, queue.now());
        self.cut_after(index, begun, queue);
    }

    /// Steps of a run that have begun before an instant, and the time that they take; `None` where
    /// no run of several is under way.
    fn begun_before(&mut self, index: u32, at: SimTime) -> Option<(u64, SimDuration)> {
        let replica = &self.replicas[index as usize];
        let run = replica.run.as_ref().filter(|run| run.steps > 1)?;
        let span = at.since(run.start).saturating_sub(run.stall);
        let model = self.fleet.pools[replica.pool].model;
        // A run that begins now has one step under way.
        let span = span.max(SimDuration::from_picos(1));
        Some(self.tables[replica.pool].steps_reaching(model, run.decode, span, run.steps))
    }

    /// Ends a run of several steps after so many.
    fn cut_after(
        &mut self,
        index: u32,
        after: Option<(u64, SimDuration)>,
        queue: &mut EventQueue<Event>,
    ) {
        let run = self.replicas[index as usize].run.as_mut();
        let (Some(run), Some((steps, time))) = (run, after) else {
            return;
        };
        if steps < run.steps {
            run.steps = steps;
            let end = (run.start + run.stall + time).max(queue.now());
            if let Some(old) = run.end.take() {
                queue.cancel(old);
            }
            run.end = Some(queue.schedule(end, ENDED, Event::StepsEnded(index)));
        }
    }

    /// Takes the blocks of the steps of a run that have begun before an instant, before somebody looks
    /// at what a replica holds.
    fn catch_up(&mut self, index: u32, at: SimTime) -> Option<(u64, SimDuration)> {
        let begun = self.begun_before(index, at)?;
        self.replicas[index as usize].grow(begun.0, &mut self.lives);
        Some(begun)
    }

    // ---- steps

    fn choose(&mut self, index: u32, queue: &mut EventQueue<Event>) {
        let now = queue.now();
        let slowdown = self.slowdowns[index as usize];
        let ahead = self.may_run_ahead(index) && slowdown <= 1.0;
        let replica = &mut self.replicas[index as usize];
        replica.decide = false;
        if replica.run.is_some() {
            return;
        }
        if replica.plan(&mut self.lives, now) && !replica.incoming.is_empty() {
            // Who was pushed out leaves room for caches that wait for it.
            self.grant_room(index, queue);
        }
        if !self.store.is_empty() {
            self.keep_blocks(index, queue);
        }
        let replica = &mut self.replicas[index as usize];
        if replica.prefilling.is_empty() && replica.decoding.is_empty() {
            return;
        }
        let pool_index = replica.pool;
        let pool = &self.fleet.pools[pool_index];
        let context = replica.context(&self.lives);
        let n = replica.decoding.len() as u64;
        let stall = replica.take_stall();
        let plain = replica.chunks.is_empty() && self.fleet.decoder == Decoder::Autoregressive;
        let full_diffusion = matches!(self.fleet.decoder, Decoder::FullDiffusion { .. });
        let mut steps = 1;
        let (cost, time) = if plain {
            if ahead {
                steps = replica.steps_together(&self.lives);
            }
            let time = self.tables[pool_index].time(pool.model, n, context, steps);
            (None, time)
        } else {
            let batch = StepBatch {
                prefill: &replica.chunks,
                decode_sequences: if full_diffusion { 0 } else { n },
                decode_context_tokens: if full_diffusion { 0 } else { context },
                tokens_per_sequence: replica.tokens_per_sequence().max(1),
            };
            let cost = pool.model.step(&batch);
            let time = cost.time;
            (Some(cost), time)
        };
        let mut run = Run {
            start: now,
            steps,
            decode: (n, context),
            cost,
            stall,
            slow: SimDuration::from_secs_f64(time.as_secs_f64() * (slowdown - 1.0)),
            end: None,
            flow: false,
        };
        let time = time + run.slow;
        let span = stall + time;
        let flows = self.steps_are_flows(index);
        let replica = &mut self.replicas[index as usize];
        if flows {
            run.flow = true;
            replica.run = Some(run);
            self.start_as_flow(index, span, queue);
        } else {
            run.end = Some(queue.schedule(now + span, ENDED, Event::StepsEnded(index)));
            replica.run = Some(run);
        }
        self.trace_level(index, now);
        if self.fleet.pools[pool_index].role == Role::Prefill {
            self.send_layers(index, time, queue);
        }
    }

    /// Blocks that were named or lost their place since the last step go to the tiers below.
    fn keep_blocks(&mut self, index: u32, queue: &mut EventQueue<Event>) {
        let now = queue.now();
        let replica = &mut self.replicas[index as usize];
        let blocks = replica.blocks.drain_published();
        let computed = self.store.computed(now, index as usize, blocks);
        let blocks = replica.blocks.drain_evicted();
        let fallen = self.store.demote(now, index as usize, blocks);
        replica.wait_for(fallen.wait);
        let remote = computed.remote + fallen.remote;
        if remote > 0 {
            self.over_nics(index, remote, SimDuration::ZERO, Purpose::Write, queue);
        }
    }

    /// Whether steps of a replica may be taken together: nobody meets them or looks at the replica in
    /// the middle of a run. Beside transfers every step with traffic is a flow of its own; and a store
    /// must see the evictions of every step when they happen.
    fn may_run_ahead(&self, index: u32) -> bool {
        self.fleet.together && self.store.is_empty() && !self.steps_are_flows(index)
    }

    /// Whether the steps of a replica can meet others on the links.
    fn steps_are_flows(&self, index: u32) -> bool {
        let pool = self.replicas[index as usize].pool;
        self.network.is_some() && self.fleet.pools[pool].gpus > 1
    }

    /// The work of the step that is about to run, from the table or from the model.
    fn work_of(&mut self, index: u32) -> Work {
        let replica = &self.replicas[index as usize];
        let run = replica.run.as_ref().expect("a step is under way");
        let mut work = Work::default();
        match &run.cost {
            Some(cost) => work.add_step(cost),
            None => {
                let model = self.fleet.pools[replica.pool].model;
                self.tables[replica.pool].book(model, run.decode, run.steps, &mut work);
            }
        }
        work
    }

    /// A step whose traffic shares the ports with caches on the move: where it meets them, both take
    /// longer.
    fn start_as_flow(&mut self, index: u32, span: SimDuration, queue: &mut EventQueue<Event>) {
        let work = self.work_of(index);
        let replica = &self.replicas[index as usize];
        let pool = &self.fleet.pools[replica.pool];
        let per_gpu = |bytes: u128| Bytes::new((bytes / u128::from(pool.gpus)) as u64);
        let nvlink = per_gpu(work.wire[Level::NvLink as usize]);
        let nic = per_gpu(
            work.wire[Level::Leaf as usize]
                + work.wire[Level::Spine as usize]
                + work.wire[Level::Core as usize],
        );
        let busy = |rate: Bandwidth, bytes: Bytes| {
            if bytes == Bytes::ZERO {
                SimDuration::ZERO
            } else {
                rate.time_to_send(bytes).min(span)
            }
        };
        let (nvlink_busy, nic_busy) = (busy(pool.wires.nvlink, nvlink), busy(pool.wires.nic, nic));
        let demand = Demand {
            latency: span.saturating_sub(nvlink_busy.max(nic_busy)),
            nvlink: nvlink_busy,
            nic: nic_busy,
            wire_bytes_nvlink: nvlink,
            wire_bytes_nic: nic,
            ..Demand::NONE
        };
        self.endpoints.clear();
        if nvlink_busy > SimDuration::ZERO || nic_busy > SimDuration::ZERO {
            self.endpoints
                .extend((0..pool.gpus).map(|gpu| replica.gpu + gpu));
        }
        let network = self.network.as_mut().expect("asked by the caller");
        network.start(
            queue,
            Sides::Both(&self.endpoints),
            &demand,
            Way::Links(&self.ways[index as usize].0, self.ways[index as usize].1),
            Purpose::Step(index),
            Event::FlowEnded,
        );
    }

    fn flow_ended(&mut self, slot: u32, queue: &mut EventQueue<Event>) -> Result<(), ServeError> {
        let network = self.network.as_mut().expect("a flow has a network");
        let Some(purpose) = network.arrive(queue, slot, Event::FlowEnded) else {
            return Ok(());
        };
        match purpose {
            Purpose::Step(replica) => self.steps_ended(replica, queue)?,
            Purpose::Load(id) => self.loaded(id, queue),
            // Nobody waits for it.
            Purpose::Write => {}
            Purpose::Transfer(transfer) => {
                let moving = self.transfers[transfer as usize]
                    .as_mut()
                    .expect("the transfer is under way");
                moving.active -= 1;
                if moving.active == 0 {
                    if let Some(watch) = &mut self.watch {
                        watch.came(transfer, queue.now());
                    }
                    self.send_next(transfer, queue);
                }
            }
        }
        Ok(())
    }

    fn steps_ended(&mut self, index: u32, queue: &mut EventQueue<Event>) -> Result<(), ServeError> {
        let now = queue.now();
        self.book(index, now);
        self.trace_step(index, now);
        let replica = &mut self.replicas[index as usize];
        let run = replica.run.take().expect("steps were under way");
        self.last_end = self.last_end.max(now);
        replica.grow(run.steps, &mut self.lives);
        if replica.prefilling.is_empty() {
            replica.count_calm(run.steps);
        }
        replica.count_looks(run.steps, !replica.prefilling.is_empty());
        let inside = now > self.window_start && now <= self.window_end;
        let mut prefilling = std::mem::take(&mut replica.prefilling);
        for &(id, tokens) in &prefilling {
            self.prefilled(index, id, tokens, inside, queue)?;
        }
        prefilling.clear();
        self.replicas[index as usize].prefilling = prefilling;
        let mut decoding = std::mem::take(&mut self.replicas[index as usize].decoding);
        let straddles = run.start < self.window_start;
        let counted = if now <= self.window_start || run.start >= self.window_end {
            0
        } else if straddles {
            // A run is cut where the window opens: only its last step ends later.
            u64::from(now <= self.window_end)
        } else if now > self.window_end {
            // All but the last, which ends outside.
            run.steps - 1
        } else {
            run.steps
        };
        for &id in &decoding {
            self.decoded(index, id, run.steps, counted, queue)?;
        }
        decoding.clear();
        self.replicas[index as usize].decoding = decoding;
        self.end_static_batch(index, queue)?;
        self.grant_room(index, queue);
        self.trace_level(index, now);
        let replica = &mut self.replicas[index as usize];
        if !replica.decide {
            self.choose_soon(index, queue);
        }
        Ok(())
    }

    // ---- the trace

    /// Writes the steps that end now down, where somebody watches.
    fn trace_step(&mut self, index: u32, now: SimTime) {
        let replica = &self.replicas[index as usize];
        let run = replica.run.as_ref().expect("steps were under way");
        let (start, steps, sequences) = (run.start, run.steps, run.decode.0);
        let watched = self.watch.as_ref();
        if !watched.is_some_and(|watch| watch.wants_step(index, start, now)) {
            return;
        }
        let prompt_tokens = replica.prefilling.iter().map(|(_, tokens)| tokens).sum();
        let work = self.work_of(index);
        let wire = |levels: &[Level]| -> f64 {
            let bytes = levels.iter().map(|level| work.wire[*level as usize]);
            bytes.sum::<u128>() as f64
        };
        let step = TracedStep {
            start,
            end: now,
            steps,
            prompt_tokens,
            sequences,
            nvlink: wire(&[Level::NvLink]),
            nic: wire(&[Level::Leaf, Level::Spine, Level::Core]),
        };
        if let Some(watch) = &mut self.watch {
            watch.step(index, step);
        }
    }

    /// Writes down what a replica holds, where somebody watches.
    fn trace_level(&mut self, index: u32, now: SimTime) {
        if let Some(watch) = &mut self.watch {
            let replica = &self.replicas[index as usize];
            let bytes = self.fleet.pools[replica.pool].kv_bytes_per_token;
            watch.level(index, replica, bytes, now);
        }
    }

    /// Whether no measured request and no step of the measured window is left.
    fn all_measured(&self) -> bool {
        let outside = |run: &Run| run.start >= self.window_end;
        let mut replicas = self.replicas.iter();
        self.measured_live == 0 && replicas.all(|replica| replica.run.as_ref().is_none_or(outside))
    }

    /// Whether what ends now ends inside the measured window.
    fn measures(&self, now: SimTime) -> bool {
        now > self.window_start && now <= self.window_end
    }

    /// Books the steps that end now. Of several steps that end after the window the last is booked
    /// apart: the others are inside.
    fn book(&mut self, index: u32, now: SimTime) {
        let run = self.replicas[index as usize].run.as_mut();
        let run = run.expect("steps were under way");
        if run.start >= self.window_end {
            return;
        }
        let (start, stall, decode, steps) = (run.start, run.stall, run.decode, run.steps);
        if now <= self.window_end || steps == 1 {
            return self.book_run(index, now);
        }
        let (n, context) = decode;
        let before = steps - 1;
        run.steps = before;
        let pool = self.replicas[index as usize].pool;
        let model = self.fleet.pools[pool].model;
        let middle = start + stall + self.tables[pool].time(model, n, context, before);
        self.book_run(index, middle);
        let run = self.replicas[index as usize].run.as_mut();
        let run = run.expect("as before");
        (run.start, run.stall, run.steps) = (middle, SimDuration::ZERO, 1);
        run.decode = (n, context + n * before);
        self.book_run(index, now);
        let run = self.replicas[index as usize].run.as_mut();
        let run = run.expect("as before");
        (run.start, run.stall, run.decode, run.steps) = (start, stall, decode, steps);
    }

    /// Books steps: of those that begin before the window or end after it only what is inside.
    fn book_run(&mut self, index: u32, now: SimTime) {
        let counts = self.measures(now);
        let late = now > self.window_end;
        let replica = &mut self.replicas[index as usize];
        let pool = &self.fleet.pools[replica.pool];
        let run = replica.run.as_ref().expect("steps were under way");
        let straddles = run.start < self.window_start;
        let mut booked = Work::default();
        let undisturbed = run.stall == SimDuration::ZERO && run.slow == SimDuration::ZERO;
        let direct = !straddles && !late && !run.flow && undisturbed;
        let is_prefill = !replica.prefilling.is_empty();
        let into = if direct {
            if is_prefill {
                &mut replica.prefill
            } else {
                &mut replica.decode
            }
        } else {
            &mut booked
        };
        match &run.cost {
            Some(cost) => into.add_step(cost),
            None => {
                let (n, context) = run.decode;
                let (context, steps) = if straddles {
                    (context + n * (run.steps - 1), 1)
                } else {
                    (context, run.steps)
                };
                self.tables[replica.pool].book(pool.model, (n, context), steps, into);
            }
        }
        if !direct {
            // Copies to the host and shared links made the steps longer than their cost.
            let start = run.start.max(self.window_start);
            let span = now.since(run.start);
            let nominal = run.stall + run.slow;
            let stretched = if straddles {
                SimDuration::ZERO
            } else {
                span.saturating_sub(nominal)
                    .saturating_sub(SimDuration::from_picos(booked.time_ps as u64))
            };
            let gpus = u64::from(pool.gpus);
            if !straddles {
                booked.time_ps += u128::from((nominal + stretched).as_picos());
                booked
                    .causes
                    .book_times(Cause::MemoryBound, run.stall, gpus);
                booked.causes.book_times(Cause::Straggler, run.slow, gpus);
                booked.causes.book_times(Cause::Contention, stretched, gpus);
            }
            let inside = now.min(self.window_end).saturating_since(start);
            if booked.time_ps != u128::from(inside.as_picos()) {
                booked = scaled(&booked, inside, gpus);
            }
            if now > self.window_start {
                let into = if is_prefill {
                    &mut replica.prefill
                } else {
                    &mut replica.decode
                };
                into.add(&booked);
            }
        }
        if counts {
            let (n, context) = run.decode;
            let (context, steps) = if straddles {
                (context + n * (run.steps - 1), 1)
            } else {
                (context, run.steps)
            };
            replica.decode_sequences += if is_prefill { 0 } else { n * steps };
            let all = u128::from(context) * u128::from(steps)
                + u128::from(n) * u128::from(steps) * u128::from(steps - 1) / 2;
            let chunks: u64 = replica
                .prefilling
                .iter()
                .map(|(id, tokens)| self.lives[*id].computed + tokens)
                .sum();
            replica.kv_token_steps += all + u128::from(chunks);
        }
    }

    fn prefilled(
        &mut self,
        index: u32,
        id: u32,
        tokens: u64,
        inside: bool,
        queue: &mut EventQueue<Event>,
    ) -> Result<(), ServeError> {
        let now = queue.now();
        let replica = &mut self.replicas[index as usize];
        let role = self.fleet.pools[replica.pool].role;
        let live = &mut self.lives[id];
        live.computed += tokens;
        replica.backlog = replica.backlog.saturating_sub(tokens);
        replica.prefill_tokens += if inside { tokens } else { 0 };
        replica.publish(live);
        if role == Role::Prefill {
            self.last_layer_ready(id, queue);
        }
        let replica = &mut self.replicas[index as usize];
        let live = &mut self.lives[id];
        if !live.decodes() {
            return Ok(());
        }
        let autoregressive = matches!(
            self.fleet.decoder,
            Decoder::Autoregressive | Decoder::Speculative(_)
        );
        if autoregressive {
            live.generated += 1;
            self.record.output_tokens += u64::from(inside);
        }
        if role == Role::Prefill && live.generated < live.output {
            live.enter(Phase::Transfer, now);
            replica.running.retain(|other| *other != id);
            self.all_computed(id, queue);
            return Ok(());
        }
        live.enter(Phase::Decode, now);
        if autoregressive && live.first_at.is_none() {
            live.first_at = Some(now);
            live.first_tokens = 1;
        }
        if live.generated >= live.output {
            self.complete(index, id, queue)?;
        }
        Ok(())
    }

    /// A sequence has decoded for so many steps, of which `counted` are measured.
    fn decoded(
        &mut self,
        index: u32,
        id: u32,
        steps: u64,
        counted: u64,
        queue: &mut EventQueue<Event>,
    ) -> Result<(), ServeError> {
        let now = queue.now();
        let live = &mut self.lives[id];
        if live.padding {
            live.computed += steps;
            return Ok(());
        }
        let left = live.output - live.generated;
        let tokens = match self.fleet.decoder {
            Decoder::Autoregressive => steps as u32,
            Decoder::Speculative(guess) => {
                let luck = live.luck.as_mut().expect("given at arrival");
                (1 + luck.accepted(guess.draft_tokens)).min(left)
            }
            Decoder::BlockDiffusion { block, steps } => {
                live.denoised += 1;
                if live.denoised >= steps.max(1) {
                    live.denoised = 0;
                    block.min(left)
                } else {
                    0
                }
            }
            Decoder::FullDiffusion {
                tokens_per_step, ..
            } => {
                live.denoised += 1;
                let done = u64::from(live.denoised) * u64::from(tokens_per_step.max(1));
                if done >= u64::from(live.output) {
                    left
                } else {
                    0
                }
            }
        };
        if tokens == 0 {
            return Ok(());
        }
        live.computed += match self.fleet.decoder {
            Decoder::FullDiffusion { .. } => live.all_tokens(),
            _ => u64::from(tokens),
        };
        live.generated += tokens;
        let counted = if counted == 0 {
            0
        } else if steps == 1 {
            u64::from(tokens)
        } else {
            counted
        };
        self.record.output_tokens += counted;
        self.replicas[index as usize].decode_tokens += counted;
        if live.first_at.is_none() {
            live.first_at = Some(now);
            live.first_tokens = tokens;
        }
        if live.generated >= live.output {
            self.complete(index, id, queue)?;
        }
        Ok(())
    }

    // ---- the end of a request

    fn complete(
        &mut self,
        index: u32,
        id: u32,
        queue: &mut EventQueue<Event>,
    ) -> Result<(), ServeError> {
        let replica = &mut self.replicas[index as usize];
        if replica.config.scheduler == rackflow_workload::Scheduler::Static {
            // It stays in the batch until the last is complete.
            self.lives[id].padding = true;
            return Ok(());
        }
        replica.running.retain(|other| *other != id);
        self.answer(index, id, queue)
    }

    /// A static batch whose answers are all complete is handed over.
    fn end_static_batch(
        &mut self,
        index: u32,
        queue: &mut EventQueue<Event>,
    ) -> Result<(), ServeError> {
        let replica = &mut self.replicas[index as usize];
        if replica.config.scheduler != rackflow_workload::Scheduler::Static
            || replica.running.iter().any(|id| !self.lives[*id].padding)
        {
            return Ok(());
        }
        for id in std::mem::take(&mut replica.running) {
            self.answer(index, id, queue)?;
        }
        Ok(())
    }

    fn answer(
        &mut self,
        index: u32,
        id: u32,
        queue: &mut EventQueue<Event>,
    ) -> Result<(), ServeError> {
        let now = queue.now();
        let mut live = self.lives.remove(id);
        live.enter(Phase::Decode, now);
        if let Some(watch) = &mut self.watch {
            watch.request(&live, now);
        }
        let replica = &mut self.replicas[index as usize];
        let follows = live.session.is_some();
        replica.leave(&mut live, follows);
        self.load(index, &live, false);
        self.record_request(&live, now);
        let said = live.prefix.last().map_or(0, |last| last.tokens);
        let answered = Answered {
            session: live.session,
            said: if follows && !self.replicas[index as usize].config.prefix_caching {
                said.saturating_add(live.generated)
            } else {
                said
            },
        };
        match self.source.answered(&answered, now) {
            Some((at, next)) => {
                queue.schedule(at, CAME, Event::Returned(Box::new(next)));
            }
            None if self.source.closed_loop().is_some() => self.pull(queue)?,
            None => {}
        }
        Ok(())
    }

    fn record_request(&mut self, live: &Live, now: SimTime) {
        let first = live.first_at.unwrap_or(now);
        let request = RequestRecord {
            number: live.number,
            arrival: live.arrival,
            ttft: first.since(live.arrival),
            e2e: now.since(live.arrival),
            first_tokens: live.first_tokens.max(1),
            input_tokens: live.input,
            output_tokens: live.generated,
            cached_tokens: live.cached as u32,
            loaded_tokens: live.loaded as u32,
            priority: live.priority,
            prefill_replica: live.prefill_replica,
            decode_replica: live.decode_replica,
            preemptions: live.preemptions,
            phases: live.spent,
            measured: live.measured,
        };
        self.record.answered += 1;
        if let Some(sink) = &mut self.sink {
            sink.answered(&request);
        }
        if !request.measured {
            return;
        }
        self.measured_live -= 1;
        let record = &mut self.record;
        record.measured += 1;
        record.input_tokens += u64::from(request.input_tokens);
        record.ttft.add(request.ttft);
        record.e2e.add(request.e2e);
        let tpot = request.tpot();
        if request.output_tokens > 1 {
            record.tpot.add(tpot);
        }
        record.inside_slo += u64::from(request.inside(&self.fleet.slo));
        for (sum, spent) in record.phases.iter_mut().zip(request.phases) {
            *sum += u128::from(spent.as_picos());
        }
        record.kv.prompt_tokens += u64::from(request.input_tokens);
        record.kv.hit_tokens += live.cached;
        record.kv.loaded_tokens += live.loaded;
    }

    // ---- from prefill to decode

    /// The transfer of a request, begun with its first chunk: a decode replica is chosen, and room
    /// is asked for there.
    fn transfer(&mut self, id: u32, source: u32, queue: &mut EventQueue<Event>) -> u32 {
        let known = self.transfer_of[id as usize];
        if known != NO_TRANSFER {
            return known;
        }
        let moving = Transfer {
            request: id,
            source,
            target: None,
            pieces: std::collections::VecDeque::new(),
            active: 0,
            computed_at: None,
        };
        let transfer = match self.free_transfers.pop() {
            Some(slot) => {
                self.transfers[slot as usize] = Some(moving);
                slot
            }
            None => {
                self.transfers.push(Some(moving));
                (self.transfers.len() - 1) as u32
            }
        };
        self.transfer_of[id as usize] = transfer;
        let target = self.route_decode(id, queue.now());
        self.lives[id].decode_replica = target;
        let tokens = self.lives[id].all_tokens();
        let replica = &mut self.replicas[target as usize];
        replica.requests += 1;
        replica.tokens += tokens;
        replica.incoming.push_back(id);
        self.grant_room(target, queue);
        transfer
    }

    /// The replica that will decode.
    fn route_decode(&mut self, id: u32, now: SimTime) -> u32 {
        let range = self.ranges[1].clone();
        if self.fleet.router == Router::CacheAware {
            for index in range.clone() {
                // As where room is asked for: after the decode steps of this instant.
                self.catch_up(index, now + SimDuration::from_picos(1));
                self.replicas[index as usize].name_blocks(&mut self.lives[id]);
            }
        }
        let live = &self.lives[id];
        let replicas = &self.replicas;
        match self.fleet.router {
            Router::RoundRobin => {
                let chosen = range.start + self.turn[1] % (range.end - range.start);
                self.turn[1] = self.turn[1].wrapping_add(1);
                chosen
            }
            Router::Random => {
                range.start + self.routing.below(u64::from(range.end - range.start)) as u32
            }
            Router::LeastRequests => range
                .min_by_key(|index| replicas[*index as usize].requests)
                .expect("a pool has a replica"),
            Router::LeastTokens => range
                .min_by_key(|index| replicas[*index as usize].tokens)
                .expect("a pool has a replica"),
            // What is there already need neither come nor be kept twice.
            Router::CacheAware => range
                .min_by_key(|index| {
                    let replica = &replicas[*index as usize];
                    replica.tokens + live.all_tokens() - replica.holds(live)
                })
                .expect("a pool has a replica"),
        }
    }

    /// Gives room to caches that wait for it, in the order in which they asked.
    fn grant_room(&mut self, index: u32, queue: &mut EventQueue<Event>) {
        // Whoever asks for room comes after the decode steps of this instant.
        let begun = self.catch_up(index, queue.now() + SimDuration::from_picos(1));
        loop {
            let replica = &mut self.replicas[index as usize];
            let Some(&id) = replica.incoming.front() else {
                return;
            };
            if !replica.reserve(&mut self.lives[id]) {
                return;
            }
            // Later steps may find no blocks.
            self.cut_after(index, begun, queue);
            let replica = &mut self.replicas[index as usize];
            replica.incoming.pop_front();
            let transfer = self.transfer_of[id as usize];
            if let Some(moving) = &mut self.transfers[transfer as usize] {
                moving.target = Some(index);
            }
            self.send_next(transfer, queue);
        }
    }

    /// A prefill step has begun: its layers will be ready one after the other.
    fn send_layers(&mut self, index: u32, time: SimDuration, queue: &mut EventQueue<Event>) {
        let now = queue.now();
        let plan = self.fleet.transfer;
        for at in 0..self.replicas[index as usize].prefilling.len() {
            let (id, tokens) = self.replicas[index as usize].prefilling[at];
            let live = &self.lives[id];
            // An answer of one token ends here.
            if live.output <= 1 {
                continue;
            }
            let first = self.transfer_of[id as usize] == NO_TRANSFER;
            let transfer = self.transfer(id, index, queue);
            let live = &self.lives[id];
            let pool = &self.fleet.pools[self.replicas[index as usize].pool];
            // What the prefix cache held goes with the first chunk.
            let from = if first { 0 } else { live.computed };
            let tokens = (from, live.computed + tokens);
            let layers = pool.layers.max(1);
            let parts = if plan.layer_by_layer {
                layers.min(PARTS)
            } else {
                1
            };
            let mut done = 0;
            for part in 1..=parts {
                let upto = if part == parts {
                    layers
                } else {
                    (layers - 1) * part / (parts - 1)
                };
                let count = upto - done;
                done = upto;
                if count == 0 {
                    continue;
                }
                // The last layer is ready when the step has really ended.
                let last = part == parts;
                let ready = if last {
                    SimTime::MAX
                } else {
                    now + time.scale(upto, layers)
                };
                let piece = Piece {
                    ready,
                    tokens,
                    layers: count,
                };
                if let Some(moving) = &mut self.transfers[transfer as usize] {
                    moving.pieces.push_back(piece);
                }
                if !last {
                    queue.schedule(ready, CAME, Event::LayersReady(transfer));
                }
            }
        }
    }

    /// A chunk is computed to its last layer.
    fn last_layer_ready(&mut self, id: u32, queue: &mut EventQueue<Event>) {
        let transfer = self.transfer_of[id as usize];
        if transfer == NO_TRANSFER {
            return;
        }
        let now = queue.now();
        if let Some(moving) = &mut self.transfers[transfer as usize] {
            for piece in &mut moving.pieces {
                piece.ready = piece.ready.min(now);
            }
        }
        self.send_next(transfer, queue);
    }

    /// All of a prompt is computed.
    fn all_computed(&mut self, id: u32, queue: &mut EventQueue<Event>) {
        let transfer = self.transfer_of[id as usize];
        if let Some(moving) = &mut self.transfers[transfer as usize] {
            moving.computed_at = Some(queue.now());
        }
        self.send_next(transfer, queue);
    }

    /// Sends the next piece if it is computed, there is room for it, and the one before is there.
    fn send_next(&mut self, transfer: u32, queue: &mut EventQueue<Event>) {
        let now = queue.now();
        let Some(moving) = &mut self.transfers[transfer as usize] else {
            return;
        };
        let (0, Some(target)) = (moving.active, moving.target) else {
            return;
        };
        let Some(piece) = moving.pieces.front().copied() else {
            if moving.computed_at.is_some() {
                self.arrived(transfer, target, queue);
            }
            return;
        };
        if piece.ready > now {
            return;
        }
        moving.pieces.pop_front();
        let live = &self.lives[moving.request];
        let source = &self.replicas[moving.source as usize];
        let target_index = target;
        let target = &self.replicas[target as usize];
        let from = &self.fleet.pools[source.pool];
        let to = &self.fleet.pools[target.pool];
        let (begin, end) = piece.tokens;
        let sent = end.saturating_sub(begin.max(live.room.tokens));
        let part = piece.layers as f64 / from.layers.max(1) as f64;
        if now <= self.window_end {
            let spared = (end - begin - sent) as f64;
            self.record.kv.spared += spared * from.kv_bytes_per_token * part;
        }
        if sent == 0 {
            // All of it is there already.
            return self.send_next(transfer, queue);
        }
        let number = live.number;
        let bytes = (sent as f64 * from.kv_bytes_per_token * part) as u64;
        let each = u64::from(self.fleet.transfer.tokens_per_message);
        let messages = piece.layers * sent.div_ceil(each);
        let first = |replica: &Replica, pool: &Pool<'_>| {
            let groups = u64::from(pool.gpus / pool.cache_gpus);
            replica.gpu + (number % groups) as u32 * pool.cache_gpus
        };
        let (from_gpu, to_gpu) = (first(source, from), first(target, to));
        let pairs = from.cache_gpus.max(to.cache_gpus);
        let seats = self.fleet.site;
        let level = network::level(seats, from_gpu, to_gpu);
        let posting = self.fleet.transfer.per_message * messages;
        let each = bytes / u64::from(pairs);
        let demand = network::demand((&from.wires, &to.wires), level, each, posting);
        if now <= self.window_end {
            self.record.kv.sent[level as usize] += bytes;
        }
        moving.active = pairs;
        if let Some(watch) = &mut self.watch {
            let whole = TracedTransfer {
                request: number,
                from: moving.source,
                to: target_index,
                level,
                parts: Vec::new(),
            };
            watch.sent(transfer, whole, now, bytes);
        }
        let network = self.network.as_mut().expect("two pools have a network");
        for pair in 0..pairs {
            let ends = [
                from_gpu + pair % from.cache_gpus,
                to_gpu + pair % to.cache_gpus,
            ];
            network.start(
                queue,
                Sides::Pair(ends[0], ends[1]),
                &demand,
                seats.map_or(Way::Inside, |seats| {
                    Way::Pair(seats.gpu_of(ends[0]), seats.gpu_of(ends[1]))
                }),
                Purpose::Transfer(transfer),
                Event::FlowEnded,
            );
        }
    }

    /// The whole cache is on the decode side.
    fn arrived(&mut self, transfer: u32, target: u32, queue: &mut EventQueue<Event>) {
        let now = queue.now();
        let moving = self.transfers[transfer as usize]
            .take()
            .expect("the transfer is under way");
        self.free_transfers.push(transfer);
        let id = moving.request;
        self.transfer_of[id as usize] = NO_TRANSFER;
        if now <= self.window_end {
            if let Some(computed) = moving.computed_at {
                self.record.kv.exposed.add(now.since(computed));
            }
            self.record.kv.transfers += 1;
        }
        let live = &mut self.lives[id];
        let source = &mut self.replicas[moving.source as usize];
        source.leave(live, false);
        source.requests -= 1;
        source.tokens -= live.all_tokens();
        let replica = &mut self.replicas[target as usize];
        replica.receive_cache(live);
        live.enter(Phase::Decode, now);
        if let Some(watch) = &mut self.watch {
            watch.arrived(transfer);
        }
        if live.first_at.is_none() && live.generated > 0 {
            live.first_at = Some(now);
            live.first_tokens = live.generated;
        }
        replica.running.push(id);
        self.stir(target, true, queue);
        self.stir(moving.source, true, queue);
    }

    // ---- the window

    /// What was done so far is forgotten.
    fn warmed_up(&mut self, queue: &mut EventQueue<Event>) {
        let now = queue.now();
        self.window_start = now;
        for index in 0..self.replicas.len() as u32 {
            self.cut_short(index, queue);
            let replica = &mut self.replicas[index as usize];
            replica.prefill = Work::default();
            replica.decode = Work::default();
            replica.prefill_tokens = 0;
            replica.decode_tokens = 0;
            replica.decode_sequences = 0;
            replica.kv_token_steps = 0;
            replica.kv_peak = replica.blocks.used();
            replica.preemptions = 0;
        }
        self.record.output_tokens = 0;
        let kv = &mut self.record.kv;
        kv.sent = [0; Level::ALL.len()];
        kv.spared = 0.0;
        kv.transfers = 0;
        kv.exposed = Spans::new();
    }

    /// `all`: the run went to its end; else whoever came after the window may be left.
    fn finish(mut self, events: u64, all: bool) -> Result<ServingRecord, ServeError> {
        assert!(
            !all || self.lives.len() == 0,
            "every request is answered or refused"
        );
        let end = self.last_end.min(self.window_end);
        let window = end.saturating_since(self.window_start);
        self.record.window = window;
        self.record.events = events;
        if self.record.measured == 0 || window == SimDuration::ZERO {
            return Err(ServeError::NothingMeasured {
                answered: self.record.answered,
                refused: self.record.refused,
            });
        }
        for (index, pool) in self.record.pools.iter_mut().enumerate() {
            for replica in self.replicas.iter().filter(|replica| replica.pool == index) {
                assert!(!all || replica.blocks.used() == 0, "no block leaks");
                let mut accounts = Accounts::default();
                accounts.add(&replica.prefill.causes, 1);
                accounts.add(&replica.decode.causes, 1);
                let busy = replica.prefill.time_ps + replica.decode.time_ps;
                let idle = u128::from(window.as_picos())
                    .checked_sub(busy)
                    .expect("a replica is busy inside the window only");
                accounts.book_times(
                    Cause::Idle,
                    SimDuration::from_picos(idle as u64),
                    u64::from(pool.gpus),
                );
                pool.accounts.push(accounts);
                pool.prefill.add(&replica.prefill);
                pool.decode.add(&replica.decode);
                pool.prefill_tokens += replica.prefill_tokens;
                pool.decode_tokens += replica.decode_tokens;
                pool.decode_sequences += replica.decode_sequences;
                pool.kv_token_steps += replica.kv_token_steps;
                let (peak, preemptions) = replica.peak_and_preemptions();
                pool.kv_peak_blocks = pool.kv_peak_blocks.max(peak);
                pool.kv_blocks = replica.blocks.total();
                pool.preemptions += preemptions;
            }
        }
        let block_bytes = self.store.block_bytes();
        self.record.kv.tiers = self
            .store
            .tiers()
            .map(|copies| TierRecord {
                medium: copies[0].medium(),
                read: copies.iter().map(|tier| tier.blocks_read).sum::<u64>() * block_bytes,
                written: copies.iter().map(|tier| tier.blocks_written).sum::<u64>() * block_bytes,
            })
            .collect();
        Ok(self.record)
    }
}

/// The same work in another span: causes in proportion, the largest takes what rounding leaves.
fn scaled(work: &Work, span: SimDuration, gpus: u64) -> Work {
    let whole = work.time_ps.max(1);
    let part = u128::from(span.as_picos());
    let scale = |value: u128| value / whole * part + value % whole * part / whole;
    let mut causes = Accounts::default();
    for cause in Cause::all() {
        let picos = scale(work.causes.picos(cause));
        causes.book(cause, SimDuration::from_picos(picos as u64));
    }
    let largest = Cause::all()
        .max_by_key(|cause| work.causes.picos(*cause))
        .unwrap_or(Cause::Idle);
    let left = part * u128::from(gpus) - causes.total_picos();
    causes.book(largest, SimDuration::from_picos(left as u64));
    Work {
        steps: work.steps,
        time_ps: part,
        causes,
        flops: scale(work.flops),
        bytes: scale(work.bytes),
        wire: work.wire.map(scale),
    }
}

fn empty_record(fleet: &Fleet<'_>) -> ServingRecord {
    let pools = fleet
        .pools
        .iter()
        .map(|pool| PoolRecord {
            role: pool.role,
            replicas: pool.replicas,
            gpus: pool.gpus,
            prefill: Work::default(),
            decode: Work::default(),
            accounts: Vec::new(),
            prefill_tokens: 0,
            decode_tokens: 0,
            decode_sequences: 0,
            kv_token_steps: 0,
            kv_peak_blocks: 0,
            kv_blocks: 0,
            block_size: pool.engine.block_size,
            preemptions: 0,
        })
        .collect();
    ServingRecord {
        window: SimDuration::ZERO,
        pools,
        measured: 0,
        answered: 0,
        refused: 0,
        inside_slo: 0,
        input_tokens: 0,
        output_tokens: 0,
        ttft: Spans::new(),
        tpot: Spans::new(),
        e2e: Spans::new(),
        phases: [0; Phase::COUNT],
        kv: KvRecord::default(),
        events: 0,
        seed: fleet.seed,
    }
}
