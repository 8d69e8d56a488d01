//! Ways to use the same GPUs for the same requests.

use super::ceiling::{Ceiling, Demand};
use super::fleet::{FleetPlan, FleetSetup, PoolSetup, compile_fleet};
use rackflow_topology::Cluster;
use rackflow_workload::serving::{ServingParallelism, ServingPrecision, WeightFormat};
use rackflow_workload::{Attention, Decoder, Role};

/// Shapes of a prefill or decode replica that are combined with each other: the best by their
/// ceilings.
const SHAPES: usize = 8;
/// Splits of the GPUs that are kept of each pair of shapes.
const SPLITS: usize = 2;

/// One way to use the GPUs.
#[derive(Debug, Clone, PartialEq)]
pub struct Way {
    /// In a few words: "2 x TP4", "prefill 3 x 1 GPU, decode 1 x TP4".
    pub name: String,
    /// The fleet.
    pub setup: FleetSetup,
    /// Requests per second that it cannot exceed with this share inside the objective, per GPU.
    pub ceiling_per_gpu: f64,
    /// Tokens per second of one answer, alone.
    pub pace: f64,
}

impl Way {
    /// GPUs that it uses.
    pub fn gpus(&self) -> u32 {
        let of = |pool: &PoolSetup| pool.replicas * pool.deployment.parallelism.gpus();
        self.setup.pools.iter().map(of).sum()
    }
}

/// Everything that is worth a look.
#[derive(Debug, Clone, PartialEq)]
pub struct Ways {
    /// The scenario's own first, then by their ceilings, the highest first.
    pub ways: Vec<Way>,
    /// Replicas that cannot be, and why.
    pub impossible: Vec<(String, String)>,
}

/// What the search varies, and what it is for.
#[derive(Debug, Clone, PartialEq)]
pub struct ServingSpace {
    /// Formats of weights; none for the scenario's own alone.
    pub weights: Vec<WeightFormat>,
    /// Share of requests that must be inside the objective.
    pub attainment: f64,
    /// What requests ask for at least.
    pub demand: Demand,
}

/// A replica, and what it could do at most.
#[derive(Debug, Clone, Copy)]
struct Shape {
    parallelism: ServingParallelism,
    ceiling: Ceiling,
}

impl ServingSpace {
    /// All ways to use the GPUs of `setup`: replicas of every power of two of tensor ranks, of
    /// pipeline stages, and, of mixtures, of attention groups with the experts spread over all; as
    /// many as the GPUs hold; and prefill and decode apart, in every pair of such replicas.
    pub fn ways(&self, setup: &FleetSetup) -> Ways {
        let mut all = Ways {
            ways: Vec::new(),
            impossible: Vec::new(),
        };
        let own = setup.pools[0].deployment.precision;
        let mut formats: Vec<ServingPrecision> = self
            .weights
            .iter()
            .map(|weights| ServingPrecision {
                kv: own.kv,
                ..ServingPrecision::uniform(*weights)
            })
            .collect();
        if formats.is_empty() {
            formats.push(own);
        }
        let named = formats.len() > 1 || formats[0] != own;
        for precision in formats {
            let mut base = setup.clone();
            for pool in &mut base.pools {
                pool.deployment.precision = precision;
            }
            let label = if named {
                format!(" {}", precision.dense.key())
            } else {
                String::new()
            };
            self.of_precision(&base, &label, &mut all);
        }
        all.ways.sort_by(|a, b| {
            b.ceiling_per_gpu
                .total_cmp(&a.ceiling_per_gpu)
                .then_with(|| a.name.cmp(&b.name))
        });
        let same = |way: &Way| way.setup.pools == setup.pools;
        if let Some(place) = all.ways.iter().position(same) {
            let own = all.ways.remove(place);
            all.ways.insert(0, own);
        } else if let Some(way) = self.way(setup.clone(), "") {
            all.ways.insert(0, way);
        }
        all
    }

    fn of_precision(&self, setup: &FleetSetup, label: &str, all: &mut Ways) {
        if setup.clusters.len() > 1 {
            return self.own_hardware(setup, label, all);
        }
        let gpus = setup.clusters[0].gpus;
        let both = self.shapes(setup, Role::Both, gpus, label, &mut all.impossible);
        for shape in &both {
            let fleet = aggregated(setup, shape.parallelism, gpus);
            all.ways.extend(self.way(fleet, label));
        }
        let diffusion = matches!(
            setup.decoder,
            Decoder::BlockDiffusion { .. } | Decoder::FullDiffusion { .. }
        );
        if gpus < 2 || diffusion {
            return;
        }
        let mut ignored = Vec::new();
        let [prefill, decode] = [Role::Prefill, Role::Decode].map(|role| {
            let mut shapes = self.shapes(setup, role, gpus - 1, label, &mut ignored);
            let each = |shape: &Shape| {
                let ceiling = match role {
                    Role::Prefill => shape.ceiling.prefill,
                    _ => shape.ceiling.decode,
                };
                ceiling / f64::from(shape.parallelism.gpus())
            };
            shapes.sort_by(|a, b| each(b).total_cmp(&each(a)));
            // The scenario's own shapes stay.
            let kept = setup.pools.iter().find(|pool| pool.role == role);
            let kept = kept.map(|pool| pool.deployment.parallelism);
            let mut place = 0;
            shapes.retain(|shape| {
                place += 1;
                place <= SHAPES || Some(shape.parallelism) == kept
            });
            shapes
        });
        for from in &prefill {
            for to in &decode {
                for (replicas, others) in splits(from, to, gpus) {
                    let fleet = apart(
                        setup,
                        (from.parallelism, replicas),
                        (to.parallelism, others),
                    );
                    all.ways.extend(self.way(fleet, label));
                }
            }
        }
    }

    /// Pools on hardware of their own keep it: each is shaped anew on its GPUs.
    fn own_hardware(&self, setup: &FleetSetup, label: &str, all: &mut Ways) {
        let mut shapes: Vec<Vec<Shape>> = Vec::new();
        for pool in &setup.pools {
            let gpus = setup.clusters[pool.cluster].gpus;
            shapes.push(self.shapes(setup, pool.role, gpus, label, &mut all.impossible));
        }
        let [prefill, decode] = shapes.as_slice() else {
            return;
        };
        for from in prefill {
            for to in decode {
                let mut fleet = setup.clone();
                for (pool, shape) in fleet.pools.iter_mut().zip([from, to]) {
                    reshape(pool, shape.parallelism);
                    pool.replicas = setup.clusters[pool.cluster].gpus / shape.parallelism.gpus();
                }
                all.ways.extend(self.way(fleet, label));
            }
        }
    }

    /// The replicas of at most so many GPUs that can be, with their ceilings.
    fn shapes(
        &self,
        setup: &FleetSetup,
        role: Role,
        gpus: u32,
        label: &str,
        impossible: &mut Vec<(String, String)>,
    ) -> Vec<Shape> {
        let base = template(setup, role);
        let cluster = &setup.clusters[base.cluster];
        let mut shapes = Vec::new();
        for parallelism in degrees(&base, cluster, gpus) {
            let mut pool = base.clone();
            reshape(&mut pool, parallelism);
            let mut one = setup.clone();
            pool.replicas = 1;
            one.pools = vec![pool];
            // The only pool of the fleet, on the first GPUs of its cluster.
            one.pools[0].first_gpu = setup.clusters[..base.cluster]
                .iter()
                .map(|cluster| cluster.gpus)
                .sum();
            match compile_fleet(one) {
                Ok(plan) => shapes.push(Shape {
                    parallelism,
                    ceiling: self.ceiling(&plan),
                }),
                Err(error) => {
                    let name = format!("{}{label}", words(&parallelism));
                    if impossible.iter().all(|(known, _)| *known != name) {
                        impossible.push((name, error.to_string()));
                    }
                }
            }
        }
        shapes
    }

    fn ceiling(&self, plan: &FleetPlan) -> Ceiling {
        Ceiling::of(
            &plan.instances[0],
            &plan.setup.pools[0].engine,
            plan.setup.decoder,
            &self.demand,
            plan.setup.slo.tpot,
        )
    }

    /// A fleet with its ceiling; nothing where it cannot be.
    pub fn way(&self, setup: FleetSetup, label: &str) -> Option<Way> {
        let plan = compile_fleet(setup).ok()?;
        let setup = plan.setup;
        let mut ceiling = f64::INFINITY;
        let mut pace = f64::INFINITY;
        for (pool, instance) in setup.pools.iter().zip(&plan.instances) {
            let one = Ceiling::of(
                instance,
                &pool.engine,
                setup.decoder,
                &self.demand,
                setup.slo.tpot,
            );
            let of_role = match pool.role {
                Role::Both => one.both(),
                Role::Prefill => one.prefill,
                Role::Decode => one.decode,
            };
            ceiling = ceiling.min(of_role * f64::from(pool.replicas));
            if pool.role != Role::Prefill {
                pace = pace.min(one.pace);
            }
        }
        let way = Way {
            name: format!("{}{label}", name(&setup)),
            setup,
            ceiling_per_gpu: 0.0,
            pace,
        };
        Some(Way {
            // Who is outside the objective may have cost nothing.
            ceiling_per_gpu: ceiling / self.attainment.max(1e-3) / f64::from(way.gpus()),
            ..way
        })
    }
}

/// Other limits of the engine for the same replicas: half, twice and four times the tokens and
/// sequences of a step.
pub fn other_limits(way: &Way, space: &ServingSpace) -> Vec<Way> {
    let mut all = Vec::new();
    for (what, factor) in [
        ("tokens", 0.25),
        ("tokens", 0.5),
        ("tokens", 2.0),
        ("tokens", 4.0),
        ("sequences", 0.25),
        ("sequences", 0.5),
        ("sequences", 2.0),
    ] {
        let mut setup = way.setup.clone();
        let mut said = Vec::new();
        for pool in &mut setup.pools {
            let tokens = what == "tokens";
            let applies = match pool.role {
                Role::Both => true,
                Role::Prefill => tokens,
                Role::Decode => !tokens,
            };
            if !applies {
                continue;
            }
            let limit = if tokens {
                &mut pool.engine.max_num_batched_tokens
            } else {
                &mut pool.engine.max_num_seqs
            };
            *limit = (f64::from(*limit) * factor).round().max(1.0) as u32;
            said.push(*limit);
            pool.fit_activations();
        }
        let Some(limit) = said.first() else { continue };
        let label = format!(", {limit} {what}/step");
        if let Some(mut other) = space.way(setup, "") {
            other.name = format!("{}{label}", way.name);
            all.push(other);
        }
    }
    all
}

/// What a replica of this role is, where the scenario has none: its other pool's.
fn template(setup: &FleetSetup, role: Role) -> PoolSetup {
    let same = setup.pools.iter().find(|pool| pool.role == role);
    let mut pool = same.unwrap_or(&setup.pools[0]).clone();
    if role == Role::Both
        && let [prefill, decode] = setup.pools.as_slice()
    {
        // A step's tokens from where prompts are computed, its sequences from where they are answered.
        let (p, d) = (prefill, decode);
        let groups = |pool: &PoolSetup| pool.deployment.parallelism.data.max(1);
        pool.engine.max_num_seqs = (d.engine.max_num_seqs / groups(d))
            .saturating_mul(groups(p))
            .max(1);
    }
    pool.role = role;
    pool
}

/// Divisions of at most `gpus` GPUs that the model allows.
fn degrees(pool: &PoolSetup, cluster: &Cluster, gpus: u32) -> Vec<ServingParallelism> {
    let model = &pool.deployment.model;
    let heads = match model.attention {
        Attention::Grouped { heads, .. } | Attention::Latent { heads, .. } => heads,
    };
    let experts = model.moe.as_ref().map_or(0, |moe| moe.experts);
    let copies = experts + pool.deployment.redundant_experts;
    let domain = cluster.node.scale_up.domain.max(1);
    let mut all = Vec::new();
    let own = pool.deployment.parallelism;
    let mut add = |parallelism: ServingParallelism| {
        if parallelism.gpus() <= gpus && !all.contains(&parallelism) {
            all.push(parallelism);
        }
    };
    add(own);
    let doubles = |most: u32| {
        (0..)
            .map(|power| 1_u32 << power)
            .take_while(move |n| *n <= most)
    };
    for tensor in
        doubles(domain.min(gpus)).filter(|tensor| heads.is_multiple_of(u64::from(*tensor)))
    {
        for pipeline in doubles(4.min(gpus / tensor)) {
            add(ServingParallelism {
                tensor,
                pipeline,
                data: 1,
                expert: 1,
            });
            if experts > 0 && u64::from(tensor) <= copies {
                add(ServingParallelism {
                    tensor,
                    pipeline,
                    data: 1,
                    expert: tensor,
                });
            }
        }
        if experts == 0 {
            continue;
        }
        for data in 2..=gpus / tensor {
            let spread = tensor * data;
            let usual = spread.is_power_of_two() || gpus.is_multiple_of(spread);
            if usual && u64::from(spread) <= copies {
                add(ServingParallelism {
                    tensor,
                    pipeline: 1,
                    data,
                    expert: spread,
                });
            }
        }
    }
    all
}

/// Gives a pool replicas of another shape; limits stay those of an attention group.
fn reshape(pool: &mut PoolSetup, parallelism: ServingParallelism) {
    let (before, after) = (
        pool.deployment.parallelism.data.max(1),
        parallelism.data.max(1),
    );
    pool.deployment.parallelism = parallelism;
    for limit in [
        &mut pool.engine.max_num_batched_tokens,
        &mut pool.engine.max_num_seqs,
    ] {
        *limit = (f64::from(*limit) / f64::from(before) * f64::from(after))
            .round()
            .max(1.0) as u32;
    }
    pool.fit_activations();
}

fn aggregated(setup: &FleetSetup, parallelism: ServingParallelism, gpus: u32) -> FleetSetup {
    let mut fleet = setup.clone();
    let mut pool = template(setup, Role::Both);
    reshape(&mut pool, parallelism);
    pool.replicas = gpus / parallelism.gpus();
    pool.first_gpu = 0;
    fleet.pools = vec![pool];
    fleet
}

fn apart(
    setup: &FleetSetup,
    prefill: (ServingParallelism, u32),
    decode: (ServingParallelism, u32),
) -> FleetSetup {
    let mut fleet = setup.clone();
    let mut first_gpu = 0;
    fleet.pools = [(Role::Prefill, prefill), (Role::Decode, decode)]
        .into_iter()
        .map(|(role, (parallelism, replicas))| {
            let mut pool = template(setup, role);
            reshape(&mut pool, parallelism);
            pool.replicas = replicas;
            pool.first_gpu = first_gpu;
            first_gpu += replicas * parallelism.gpus();
            pool
        })
        .collect();
    fleet
}

/// How many replicas of each, by what they could do together at most, the best first.
fn splits(prefill: &Shape, decode: &Shape, gpus: u32) -> Vec<(u32, u32)> {
    let (from, to) = (prefill.parallelism.gpus(), decode.parallelism.gpus());
    let mut all: Vec<(f64, u32, u32)> = (1..=gpus / from)
        .map(|replicas| (replicas, (gpus - replicas * from) / to))
        .filter(|(_, others)| *others > 0)
        .map(|(replicas, others)| {
            let rate = (prefill.ceiling.prefill * f64::from(replicas))
                .min(decode.ceiling.decode * f64::from(others));
            let used = replicas * from + others * to;
            (rate / f64::from(used), replicas, others)
        })
        .collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    all.truncate(SPLITS);
    all.into_iter()
        .map(|(_, replicas, others)| (replicas, others))
        .collect()
}

fn words(parallelism: &ServingParallelism) -> String {
    let all = [
        ("TP", parallelism.tensor),
        ("DP", parallelism.data),
        ("EP", parallelism.expert),
        ("PP", parallelism.pipeline),
    ];
    let said: Vec<String> = all
        .iter()
        .filter(|(_, degree)| *degree > 1)
        .map(|(name, degree)| format!("{name}{degree}"))
        .collect();
    if said.is_empty() {
        "1 GPU".to_owned()
    } else {
        said.join(" ")
    }
}

fn name(setup: &FleetSetup) -> String {
    let parts: Vec<String> = setup
        .pools
        .iter()
        .map(|pool| {
            let role = match pool.role {
                Role::Both => String::new(),
                role => format!("{} ", role.key()),
            };
            let shape = words(&pool.deployment.parallelism);
            format!("{role}{} x {shape}", pool.replicas)
        })
        .collect();
    parts.join(", ")
}
