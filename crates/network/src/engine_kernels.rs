//! Communication kernels that serving engines write themselves, because a library's collective
//! costs more than a small message is worth.
//!
//! Both are launched like any kernel and meet by flags in peer memory: their fixed cost is the
//! kernel's own and a few hops. Constants are read off AIConfigurator's tables
//! (ai-dynamo/aiconfigurator 095f58a, `custom_allreduce` and `deepep` of A100 to GB200).

use crate::collective::{in_part, stretched};
use crate::demand::{Algorithm, Demand, Protocol, WHOLE};
use crate::exchange::distinct_bins;
use crate::links::{Crossing, Links, Shape};
use rackflow_topology::GroupSpan;
use rackflow_units::{Bytes, SimDuration};

/// Fixed cost of an exchange by direct stores besides the hops: packing, counting and flags of one
/// kernel (H100 and B200 take 13 to 17 us for one token, fp8 or bf16).
const DIRECT_BASE_NS: u64 = 12_000;
/// What reaching other domains adds to it (H100, one token over 2 to 8 nodes: 23 to 28 us).
const DIRECT_ACROSS_NS: u64 = 8_000;

/// An all-reduce inside one NVLink domain by the engine's own kernels: every rank reads all buffers
/// (one shot), or reduces its slice and gathers the others (two shots), whichever is faster.
/// `kernel` is the shortest time of any kernel on the device.
///
/// `None` where the group leaves its domain: then only a library serves.
pub fn own_all_reduce(
    bytes: Bytes,
    kernel: SimDuration,
    group: &GroupSpan,
    links: &Links,
) -> Option<Demand> {
    if group.domains > 1 {
        return None;
    }
    if group.ranks <= 1 {
        return Some(Demand::NONE);
    }
    let others = u64::from(group.ranks - 1);
    let protocol = Protocol::Simple;
    // A barrier before and a barrier after.
    let meet = kernel + links.nvlink_step(Protocol::Ll) * 2;
    let one = Bytes::new(bytes.get() * others);
    let two = Bytes::new((2 * bytes.get() * others).div_ceil(u64::from(group.ranks)));
    let rate = links.copy_rate(protocol);
    let demand = |latency: SimDuration, wire: Bytes| Demand {
        latency,
        nvlink: rate.time_to_send(wire),
        nic: SimDuration::ZERO,
        level: group.level,
        wire_bytes_nvlink: wire,
        wire_bytes_nic: Bytes::ZERO,
        scale_up_part: WHOLE,
        over_leaf: 0,
        over_pod: 0,
        algorithm: Algorithm::Direct,
        protocol,
    };
    // Two more barriers, and the slice is written and read again.
    let shots = [demand(meet, one), demand(meet * 3, two)];
    shots.into_iter().min_by_key(Demand::duration)
}

/// Dispatching or combining by direct stores: every rank sends each of its `tokens` tokens straight
/// to the ranks of its `top_k` experts, inside and across domains at once. With `once_per_rank`, a
/// rank that holds several of them receives one copy (TensorRT-LLM); else one for each (DeepEP's
/// low-latency kernels).
pub fn direct_exchange(
    tokens: f64,
    bytes_per_token: f64,
    top_k: u64,
    experts: u64,
    once_per_rank: bool,
    group: &GroupSpan,
    links: &Links,
) -> Demand {
    if group.ranks <= 1 || tokens <= 0.0 {
        return Demand::NONE;
    }
    let n = f64::from(group.ranks);
    let copies = if once_per_rank {
        distinct_bins(experts as f64, n, top_k.min(experts))
    } else {
        top_k as f64
    };
    let across = group.domains > 1;
    let near = (f64::from(group.ranks_per_domain_max) - 1.0) / n;
    let far = if across {
        1.0 - f64::from(group.ranks_per_domain_min) / n
    } else {
        0.0
    };
    let volume = |share: f64| Bytes::new((tokens * copies * share * bytes_per_token).ceil() as u64);
    let (nvlink, nic) = (volume(near), volume(far));
    let mut latency = SimDuration::from_nanos(DIRECT_BASE_NS) + links.nvlink_step(Protocol::Ll) * 2;
    if across {
        latency += SimDuration::from_nanos(DIRECT_ACROSS_NS)
            + links.nic_step(group.level, Shape::Ring, Protocol::Ll);
    }
    let nic_time = links.nic_rate(Protocol::Simple).time_to_send(nic);
    let crossing = Crossing::pairs_by_own_nic(group);
    let [over_leaf, over_pod] = crossing.millionths();
    Demand {
        latency,
        nvlink: in_part(links.expert, group.scale_up_pairs).time_to_send(nvlink),
        nic: stretched(nic_time, links.nic_slowdown(crossing)),
        level: group.level,
        wire_bytes_nvlink: nvlink,
        wire_bytes_nic: nic,
        scale_up_part: group.scale_up_pairs,
        over_leaf,
        over_pod,
        algorithm: Algorithm::Direct,
        protocol: Protocol::Simple,
    }
}
