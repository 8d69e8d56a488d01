//! A serving scenario from what was typed to what was meant.

use super::{Files, Findings, Scenario};
use crate::catalogue::Section;
use crate::check;
use crate::diagnostic::Diagnostic;
use crate::document::WorkloadText;
use crate::refusal::Written;
use crate::serving_text::{
    DisaggregationText, EngineText, ExpertsText, PoolText, PrecisionText, RequestsText, ServingText,
};
use rackflow_plan::serving::{FleetError, FleetSetup, PoolSetup};
use rackflow_topology::Cluster;
use rackflow_units::{SimDuration, counted};
use rackflow_workload::serving::{Deployment, ServingParallelism, ServingPrecision, ServingStack};
use rackflow_workload::{Decoder, EngineConfig, KvTransfer, RequestPlan, Role, Scheduler, Shapes};

pub(crate) const SERVING: &str = "workload.serving";
const MODEL: &str = "workload.serving.model";
const STACK: &str = "workload.serving.stack";

impl Scenario {
    /// Whether the workload is serving.
    pub fn serves(&self) -> bool {
        matches!(self.document.workload, WorkloadText::Serving(_))
    }

    /// What a serving scenario means; as [`Scenario::resolve`] for training.
    ///
    /// # Errors
    /// With everything that keeps the scenario from being simulated.
    pub fn resolve_serving(self, files: &Files<'_>) -> Result<FleetSetup, Vec<Diagnostic>> {
        if let Some(scenario) = self.imported(files)? {
            return scenario.resolve_serving(files);
        }
        let mut findings = Findings {
            source: &self.source,
            tree: &self.tree,
            published: self.document.published.as_ref(),
            found: Vec::new(),
        };
        let WorkloadText::Serving(text) = &self.document.workload else {
            let found = findings.at("workload", self.not_this("a serving one"));
            return Err(vec![found.hint("write workload: { serving: ... }")]);
        };
        let setup = fleet(&self, text, files, &mut findings);
        match setup {
            Some(setup) if findings.found.is_empty() => Ok(setup),
            _ => Err(findings.found),
        }
    }
}

impl Written {
    /// Says why a fleet, which the scenario resolved to, has no plan.
    pub fn fleet_refusal(&self, setup: &FleetSetup, error: &FleetError) -> Diagnostic {
        let path = match setup.pools[error.pool()].role {
            Role::Both => format!("{SERVING}.parallelism"),
            Role::Prefill => format!("{SERVING}.disaggregation.prefill.parallelism"),
            Role::Decode => format!("{SERVING}.disaggregation.decode.parallelism"),
        };
        Diagnostic::error(&self.source, self.tree.place(&path), error.to_string())
    }
}

fn fleet(
    scenario: &Scenario,
    text: &ServingText,
    files: &Files<'_>,
    findings: &mut Findings<'_>,
) -> Option<FleetSetup> {
    let node = findings.node();
    let fabric = findings.fabric(scenario.document.cluster.fabric.is_some());
    let model = findings.model_at(MODEL, files);
    let stack = findings
        .named::<ServingStack>(Section::ServingStacks, STACK)
        .map(|(mut stack, name)| {
            stack.name = name;
            stack
        });
    let gpus = scenario.document.cluster.gpus;
    let (node, fabric, model, stack) = (node?, fabric?, model?, stack?);
    let fabric = match fabric {
        Some(fabric) => fabric,
        None => findings.default_fabric(&node, gpus)?,
    };
    let cluster = Cluster {
        node,
        gpus,
        fabric,
        parts: Vec::new(),
    };
    check::serving_text(text, findings);
    if !findings.found.is_empty() {
        return None;
    }
    let base = Base {
        text,
        deployment: Deployment::new(
            model,
            precision(&text.precision),
            ServingParallelism::default(),
            stack,
        ),
    };
    let (clusters, pools, transfer) = match &text.disaggregation {
        None => aggregated(&base, cluster, findings)?,
        Some(split) => disaggregated(&base, split, cluster, findings)?,
    };
    let setup = FleetSetup {
        name: scenario.name().to_owned(),
        clusters,
        pools,
        requests: requests(&text.requests),
        decoder: text.decoder,
        router: text.router,
        transfer,
        store: text.store.clone(),
        slo: text.slo,
        seats: None,
        stragglers: scenario.stragglers(),
        faults: scenario.document.simulation.links.clone(),
        assumed: text.assumed.clone(),
        seed: scenario.document.simulation.seed,
    };
    check::serving(&setup, findings);
    Some(setup)
}

/// What all pools share.
struct Base<'t> {
    text: &'t ServingText,
    deployment: Deployment,
}

impl Base<'_> {
    fn pool(
        &self,
        role: Role,
        parallelism: ServingParallelism,
        engine: &EngineText,
        experts: &ExpertsText,
    ) -> PoolSetup {
        let mut deployment = self.deployment.clone();
        deployment.parallelism = parallelism;
        deployment.redundant_experts = experts.redundant;
        deployment.expert_imbalance = experts.imbalance;
        deployment.two_batch_overlap = experts.two_batch_overlap;
        let mut limits = self.engine(engine, &parallelism);
        let said = engine.prefix_caching.or(self.text.engine.prefix_caching);
        if role == Role::Decode && said.is_none() {
            // vLLM looks its own blocks up before it fetches others; SGLang's decode side keeps none.
            limits.prefix_caching = limits.scheduler == Scheduler::Vllm;
        }
        let engine = limits;
        if let Decoder::Speculative(guess) = self.text.decoder {
            deployment.speculation = Some(guess);
        }
        let mut pool = PoolSetup {
            role,
            cluster: 0,
            first_gpu: 0,
            replicas: 1,
            deployment,
            engine,
        };
        pool.fit_activations();
        pool
    }

    /// The pool's own settings, then the workload's, then the stack's.
    fn engine(&self, own: &EngineText, parallelism: &ServingParallelism) -> EngineConfig {
        let shared = &self.text.engine;
        let habit = EngineConfig::of(&self.deployment.stack, parallelism.data);
        EngineConfig {
            scheduler: own
                .scheduler
                .or(shared.scheduler)
                .unwrap_or(habit.scheduler),
            max_num_batched_tokens: own
                .max_num_batched_tokens
                .or(shared.max_num_batched_tokens)
                .unwrap_or(habit.max_num_batched_tokens),
            max_num_seqs: own
                .max_num_seqs
                .or(shared.max_num_seqs)
                .unwrap_or(habit.max_num_seqs),
            chunked_prefill: own
                .chunked_prefill
                .or(shared.chunked_prefill)
                .unwrap_or(habit.chunked_prefill),
            block_size: own
                .block_size
                .or(shared.block_size)
                .unwrap_or(habit.block_size),
            prefix_caching: own
                .prefix_caching
                .or(shared.prefix_caching)
                .unwrap_or(habit.prefix_caching),
            preemption: own
                .preemption
                .or(shared.preemption)
                .unwrap_or(habit.preemption),
            max_queue: own.max_queue.or(shared.max_queue),
            poll_interval: own
                .poll_interval
                .or(shared.poll_interval)
                .unwrap_or(habit.poll_interval),
            batch_wait: own.batch_wait.or(shared.batch_wait),
        }
    }
}

type Pools = (Vec<Cluster>, Vec<PoolSetup>, KvTransfer);

fn aggregated(base: &Base<'_>, cluster: Cluster, findings: &mut Findings<'_>) -> Option<Pools> {
    let text = base.text;
    let parallelism = text.parallelism.unwrap_or_default();
    let mut pool = base.pool(
        Role::Both,
        parallelism,
        &EngineText::default(),
        &text.experts,
    );
    let each = parallelism.gpus();
    let fit = cluster.gpus / each.max(1);
    pool.replicas = text.replicas.unwrap_or(fit);
    let needed = u64::from(each) * u64::from(pool.replicas);
    if fit == 0 || needed > u64::from(cluster.gpus) {
        let found = findings.at(
            &format!("{SERVING}.parallelism"),
            format!(
                "{} of {} (tensor x data x pipeline) {} {}, but the cluster has {}",
                if pool.replicas > 1 {
                    counted(pool.replicas, "replica")
                } else {
                    "a replica".to_owned()
                },
                counted(each, "GPU"),
                if pool.replicas > 1 { "need" } else { "needs" },
                needed.max(u64::from(each)),
                cluster.gpus
            ),
        );
        findings.report(found);
        return None;
    }
    Some((vec![cluster], vec![pool], KvTransfer::default()))
}

fn disaggregated(
    base: &Base<'_>,
    split: &DisaggregationText,
    cluster: Cluster,
    findings: &mut Findings<'_>,
) -> Option<Pools> {
    if base.text.parallelism.is_some() || base.text.replicas.is_some() {
        let path = if base.text.parallelism.is_some() {
            "parallelism"
        } else {
            "replicas"
        };
        let found = findings.at(
            &format!("{SERVING}.{path}"),
            format!("`{path}` belongs to each pool where prefill and decode are apart"),
        );
        findings.report(found.hint("move it under disaggregation.prefill and .decode"));
        return None;
    }
    let sides = [
        (Role::Prefill, &split.prefill, "prefill"),
        (Role::Decode, &split.decode, "decode"),
    ];
    let mut clusters = Vec::new();
    let mut pools = Vec::new();
    let mut first_gpu = 0;
    let own = |pool: &PoolText| pool.node.is_some();
    let shared = !own(&split.prefill) && !own(&split.decode);
    for (role, pool_text, key) in sides {
        let experts = pool_text.experts.as_ref().unwrap_or(&base.text.experts);
        let mut pool = base.pool(role, pool_text.parallelism, &pool_text.engine, experts);
        pool.replicas = pool_text.replicas;
        let needed = u64::from(pool.replicas) * u64::from(pool_text.parallelism.gpus());
        let Ok(needed) = u32::try_from(needed) else {
            let path = format!("{SERVING}.disaggregation.{key}.replicas");
            let found = findings.at(&path, format!("{needed} GPUs are absurdly many"));
            findings.report(found);
            return None;
        };
        pool.first_gpu = first_gpu;
        pool.cluster = if shared { 0 } else { clusters.len() };
        if shared {
            first_gpu += needed;
        } else {
            let node = if own(pool_text) {
                findings.node_at(&format!("{SERVING}.disaggregation.{key}.node"))?
            } else {
                cluster.node.clone()
            };
            // Whole nodes, unless one is more than enough.
            let gpus = if needed < node.gpus {
                needed
            } else {
                needed.div_ceil(node.gpus) * node.gpus
            };
            first_gpu += gpus;
            clusters.push(Cluster {
                parts: Vec::new(),
                node,
                gpus,
                fabric: cluster.fabric.clone(),
            });
        }
        pools.push(pool);
    }
    if shared {
        if first_gpu > cluster.gpus {
            let found = findings.at(
                &format!("{SERVING}.disaggregation"),
                format!(
                    "prefill and decode need {first_gpu} GPUs, but the cluster has {}",
                    cluster.gpus
                ),
            );
            findings.report(found);
            return None;
        }
        clusters.push(cluster);
    }
    Some((clusters, pools, split.transfer))
}

fn precision(text: &PrecisionText) -> ServingPrecision {
    let mut precision = ServingPrecision::uniform(text.weights);
    if let Some(experts) = text.experts {
        precision.dispatch = ServingPrecision::uniform(experts).dispatch;
    }
    precision.kv = text.kv.unwrap_or(precision.kv);
    precision.attention = text.attention.unwrap_or(precision.attention);
    precision.attention_output = text.attention_output.unwrap_or(precision.attention);
    precision.dense = text.dense.unwrap_or(precision.dense);
    precision.experts = text.experts.unwrap_or(precision.experts);
    precision.head = text.head.unwrap_or(precision.head);
    precision.dispatch = text.dispatch.unwrap_or(precision.dispatch);
    precision
}

fn requests(text: &RequestsText) -> RequestPlan {
    let shapes = match (&text.trace, text.input, text.output) {
        (Some(path), _, _) => Shapes::Trace {
            path: path.clone(),
            limit: text.count,
        },
        (None, input, output) => Shapes::Drawn {
            input: input.unwrap_or(rackflow_workload::Length::Fixed(1)),
            output: output.unwrap_or(rackflow_workload::Length::Fixed(1)),
            sessions: text.sessions,
            count: text.count.unwrap_or(1000),
        },
    };
    RequestPlan {
        shapes,
        arrivals: text.arrivals,
        rate_scale: text.rate_scale,
        warm_up: text.warm_up.unwrap_or(SimDuration::ZERO),
        measure_for: text.measure_for,
        priorities: text.priorities,
    }
}
