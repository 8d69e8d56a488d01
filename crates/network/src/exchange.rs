//! Tokens on their way to experts and back.

use crate::collective::{in_part, stretched};
use crate::demand::{Algorithm, Demand, Protocol};
use crate::links::{Crossing, Links, Shape};
use crate::sms::{ExchangeWay, TokenWork};
use rackflow_topology::GroupSpan;
use rackflow_units::{Bytes, SimDuration};

/// How tokens travel to their experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExchangeStyle {
    /// A plain all-to-all: one copy per chosen expert, each over the wire on its own.
    AllToAll,
    /// One copy per visited domain over the NIC, forwarded there over NVLink, one copy per rank.
    Relayed {
        /// NVLink domains that one token may visit (node-limited routing); `None`: any number.
        max_domains: Option<u32>,
        /// By HybridEP's kernels instead of DeepEP's.
        hybrid: bool,
    },
}

/// Expected number of distinct bins, of `bins` equal ones, that hold at least one of `chosen`
/// different items drawn from `items` spread evenly over them.
pub(crate) fn distinct_bins(items: f64, bins: f64, chosen: u64) -> f64 {
    let outside = items - items / bins;
    let missed: f64 = (0..chosen)
        .map(|i| ((outside - i as f64) / (items - i as f64)).max(0.0))
        .product();
    bins * (1.0 - missed)
}

/// Expected number of ranks, its own among them, that a token visits whose `top_k` of `experts`
/// experts are spread over `ranks` ranks.
pub fn ranks_visited(experts: u64, ranks: u32, top_k: u64) -> f64 {
    distinct_bins(experts as f64, f64::from(ranks.max(1)), top_k)
}

/// Tokens on their way to experts or back, and whose kernels carry them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenExchange {
    /// Tokens of one rank.
    pub tokens: u64,
    /// Size of one on the wire.
    pub bytes_per_token: Bytes,
    /// Experts that a token chooses, all different.
    pub top_k: u64,
    /// Experts, spread evenly over the group and chosen evenly.
    pub experts: u64,
    /// How tokens travel.
    pub style: ExchangeStyle,
    /// Which way.
    pub way: ExchangeWay,
    /// SMs that the kernels hold, where they relay.
    pub sms: u32,
}

/// What dispatching or combining asks of one rank.
///
/// # Panics
/// When more experts are chosen than there are.
pub fn expert_exchange(exchange: TokenExchange, group: &GroupSpan, links: &Links) -> Demand {
    let TokenExchange {
        tokens,
        bytes_per_token,
        top_k,
        experts,
        style,
        way,
        sms,
    } = exchange;
    assert!(top_k <= experts, "{top_k} experts are chosen of {experts}");
    if group.ranks <= 1 || tokens == 0 {
        return Demand::NONE;
    }
    let n = f64::from(group.ranks);
    let domains = f64::from(group.domains);
    let experts = experts as f64;
    // Shares of the peers: the domain with the fewest members sends most over its NICs, the one
    // with the most members sends most over NVLink.
    let remote = 1.0 - f64::from(group.ranks_per_domain_min) / n;
    // What SMs do to each token, where kernels relay.
    let mut work = None;
    let (algorithm, copies_nvlink, copies_nic) = match style {
        ExchangeStyle::AllToAll => {
            let local = (f64::from(group.ranks_per_domain_max) - 1.0) / n;
            let copies = top_k as f64;
            let far = if domains > 1.0 { copies * remote } else { 0.0 };
            // The library hands what goes to another rail to the neighbour there (PXN).
            let rails = f64::from(group.rails);
            let algorithm = if group.rails > 1 && domains > 1.0 {
                Algorithm::Pxn
            } else {
                Algorithm::Direct
            };
            (algorithm, copies * local + far * (1.0 - 1.0 / rails), far)
        }
        ExchangeStyle::Relayed {
            max_domains,
            hybrid,
        } => {
            let reach = max_domains.map_or(domains, |max| f64::from(max.max(1)).min(domains));
            let part = reach / domains;
            // A limit that leaves fewer experts than are chosen cannot be kept; then all are met.
            let items = (experts * part).max(top_k as f64);
            let visited = distinct_bins(items, reach, top_k);
            let ranks = distinct_bins(items, (n * part).max(1.0), top_k);
            let neighbours = 1.0 - 1.0 / f64::from(group.ranks_per_domain_max);
            let nic = if domains > 1.0 { visited * remote } else { 0.0 };
            work = Some(TokenWork {
                way,
                hybrid,
                bytes: bytes_per_token.as_f64(),
                copies: ranks,
                remote: nic,
                across: domains > 1.0,
            });
            (Algorithm::Relayed, ranks * neighbours, nic)
        }
    };
    let volume =
        |copies: f64| Bytes::new((tokens as f64 * copies * bytes_per_token.as_f64()).ceil() as u64);
    let (nvlink, nic) = (volume(copies_nvlink), volume(copies_nic));
    let protocol = Protocol::Simple;
    let across = group.domains > 1;
    let relayed = algorithm == Algorithm::Relayed;
    let nvlink_rate = match style {
        ExchangeStyle::Relayed { hybrid: true, .. } => links.hybrid_expert,
        ExchangeStyle::Relayed { .. } => links.expert,
        ExchangeStyle::AllToAll => links.copy_rate(protocol),
    };
    let nvlink_rate = in_part(nvlink_rate, group.scale_up_pairs);
    let mut latency = links.base(algorithm, protocol);
    if relayed && way == ExchangeWay::Combine {
        latency += links.combine_base(bytes_per_token);
    }
    if across {
        latency += links.nic_step(group.level, Shape::Ring, protocol);
        latency += if relayed {
            links.exchange_across(group.domains)
        } else {
            SimDuration::ZERO
        };
    }
    if !across || relayed {
        latency += links.nvlink_step(protocol);
    }
    if !relayed {
        latency += links.peers(u64::from(group.ranks) - 1);
    }
    let nic_rate = if relayed {
        links.nic_relay_rate(protocol)
    } else {
        links.nic_rate(protocol)
    };
    let nic_time = nic_rate.time_to_send(nic);
    let crossing = Crossing::pairs(group);
    let [over_leaf, over_pod] = crossing.millionths();
    let nvlink_time = nvlink_rate.time_to_send(nvlink);
    let nic_time = stretched(nic_time, links.nic_slowdown(crossing));
    // What the SMs take longer than the links keeps no link busy.
    let on_sms = work.map_or(SimDuration::ZERO, |work| {
        links.sms.exchange(tokens as f64, work, sms)
    });
    Demand {
        latency: latency + on_sms.saturating_sub(nvlink_time.max(nic_time)),
        nvlink: nvlink_time,
        nic: nic_time,
        level: group.level,
        wire_bytes_nvlink: nvlink,
        wire_bytes_nic: nic,
        scale_up_part: group.scale_up_pairs,
        over_leaf,
        over_pod,
        algorithm,
        protocol,
    }
}
