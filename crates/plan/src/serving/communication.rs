//! What the ranks of an instance tell each other, as [`Parts`].

use super::parts::Parts;
use rackflow_network::{
    self as network, CollectiveOp, Demand, ExchangeStyle, ExchangeWay, Links, TokenExchange,
    direct_exchange, own_all_reduce,
};
use rackflow_topology::{ClusterMap, GroupSpan, Level, Path};
use rackflow_units::{Bytes, SimDuration};
use rackflow_workload::MoE;
use rackflow_workload::serving::{CustomAllReduce, DispatchKernel, ServingParallelism};

/// Groups of an instance on its GPUs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Groups {
    links: Links,
    /// Ranks that share the heads.
    tensor: GroupSpan,
    /// All ranks of a stage: those that share the experts.
    stage: GroupSpan,
    /// From one stage to the next.
    hop: Option<Path>,
    /// Shortest kernel.
    kernel: SimDuration,
}

/// Which way tokens go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To the experts.
    Dispatch,
    /// Back.
    Combine,
}

/// What a communication is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    Tensor,
    Expert,
    Pipeline,
}

impl Groups {
    /// `gpus` in order: tensor ranks first, then attention groups, then stages.
    pub fn new(
        links: Links,
        map: &ClusterMap,
        gpus: &[u32],
        plan: &ServingParallelism,
        kernel: SimDuration,
    ) -> Self {
        let stage = plan.stage_gpus() as usize;
        let hop = (plan.pipeline > 1).then(|| {
            let hops =
                (1..plan.pipeline as usize).map(|s| map.path(gpus[s * stage - 1], gpus[s * stage]));
            hops.max_by_key(|path| path.latency)
                .expect("two stages have a hop")
        });
        Self {
            links,
            tensor: map.span(&gpus[..plan.tensor as usize]),
            stage: map.span(&gpus[..stage]),
            hop,
            kernel,
        }
    }

    /// The highest tier that tensor ranks cross.
    pub fn tensor_level(&self) -> Level {
        self.tensor.level
    }

    /// The highest tier that tokens cross on their way to experts.
    pub fn expert_level(&self) -> Level {
        self.stage.level
    }

    /// Whether tokens reach all experts inside one NVLink domain.
    pub fn experts_in_one_domain(&self) -> bool {
        self.stage.domains <= 1
    }

    /// The highest tier between stages.
    pub fn pipeline_level(&self) -> Level {
        self.hop.map_or(Level::NvLink, |hop| hop.level)
    }

    fn parts(&self, demand: &Demand, what: For) -> Parts {
        let seconds = demand.duration().as_secs_f64();
        let of = |kind: For| if kind == what { seconds } else { 0.0 };
        Parts {
            tensor: of(For::Tensor),
            expert: of(For::Expert),
            pipeline: of(For::Pipeline),
            wire_nvlink: demand.wire_bytes_nvlink.as_f64(),
            wire_nic: demand.wire_bytes_nic.as_f64(),
            kernels: f64::from(u8::from(seconds > 0.0)),
            ..Parts::default()
        }
    }

    /// Sum of `bytes` over the tensor ranks.
    pub fn all_reduce(&self, bytes: Bytes, own: Option<CustomAllReduce>) -> Parts {
        let library =
            network::collective(CollectiveOp::AllReduce, bytes, &self.tensor, &self.links);
        let demand = own
            .filter(|own| bytes <= own.up_to)
            .and_then(|_| own_all_reduce(bytes, self.kernel, &self.tensor, &self.links))
            .filter(|own| own.duration() < library.duration())
            .unwrap_or(library);
        self.parts(&demand, For::Tensor)
    }

    /// Logits of the tensor ranks' parts of the vocabulary, gathered.
    pub fn gather_logits(&self, bytes: Bytes) -> Parts {
        let demand = network::collective(CollectiveOp::AllGather, bytes, &self.tensor, &self.links);
        self.parts(&demand, For::Tensor)
    }

    /// One activation to the next stage.
    pub fn to_next_stage(&self, bytes: Bytes) -> Parts {
        self.hop.map_or(Parts::default(), |hop| {
            self.parts(&network::send_recv(bytes, &hop, &self.links), For::Pipeline)
        })
    }

    /// `tokens` of one rank to their experts, or back. `bytes` per token; `kernel` with the SMs that
    /// it holds; `decoding` steps choose those of low latency.
    pub fn exchange(
        &self,
        moe: &MoE,
        way: Way,
        tokens: u64,
        bytes: f64,
        (kernel, sms): (DispatchKernel, u32),
        decoding: bool,
    ) -> Parts {
        if self.stage.ranks <= 1 {
            return Parts::default();
        }
        let per_token = Bytes::new(bytes.ceil() as u64);
        let demand = match kernel {
            DispatchKernel::AllGather => {
                let op = match way {
                    Way::Dispatch => CollectiveOp::AllGather,
                    Way::Combine => CollectiveOp::ReduceScatter,
                };
                let all = tokens as f64 * bytes * f64::from(self.stage.ranks);
                network::collective(op, Bytes::new(all as u64), &self.stage, &self.links)
            }
            DispatchKernel::DeepEp if !decoding => {
                let exchange = TokenExchange {
                    tokens,
                    bytes_per_token: per_token,
                    top_k: moe.top_k,
                    experts: moe.experts,
                    style: ExchangeStyle::Relayed {
                        max_domains: moe.group_limit.map(|limit| {
                            let met = u64::from(self.stage.domains) * limit.chosen;
                            met.div_ceil(limit.groups) as u32
                        }),
                        hybrid: false,
                    },
                    way: match way {
                        Way::Dispatch => ExchangeWay::Dispatch,
                        Way::Combine => ExchangeWay::Combine,
                    },
                    sms,
                };
                network::expert_exchange(exchange, &self.stage, &self.links)
            }
            DispatchKernel::DeepEp | DispatchKernel::OneSided => direct_exchange(
                tokens as f64,
                bytes,
                moe.top_k,
                moe.experts,
                kernel == DispatchKernel::OneSided,
                &self.stage,
                &self.links,
            ),
        };
        self.parts(&demand, For::Expert)
    }
}
