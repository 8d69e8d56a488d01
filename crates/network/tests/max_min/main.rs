//! Max-min fair flows, beside the obvious way to compute them.

use proptest::prelude::*;
use rackflow_network::{FairNet, FlowId};
use rackflow_topology::LinkId;
use rackflow_units::{Bandwidth, Bytes, SimDuration, SimTime};

/// One flow of the slow net.
#[derive(Debug, Clone)]
struct SlowFlow {
    id: FlowId,
    route: Vec<usize>,
    weight: f64,
    cap: f64,
    left: f64,
    rate: f64,
}

/// Rates from nothing at every change: raise all flows alike, fix those at their cap or on a full
/// link, and go on with the rest.
struct SlowMaxMin {
    capacities: Vec<f64>,
    flows: Vec<SlowFlow>,
}

impl SlowMaxMin {
    fn share(&mut self) {
        let mut open: Vec<usize> = (0..self.flows.len()).collect();
        let mut room = self.capacities.clone();
        for flow in &mut self.flows {
            flow.rate = 0.0;
        }
        while !open.is_empty() {
            let share = |link: usize, open: &[usize], room: &[f64]| {
                let on_it = open
                    .iter()
                    .filter(|i| self.flows[**i].route.contains(&link));
                let count: f64 = on_it.map(|i| self.flows[*i].weight).sum();
                if count > 0.0 {
                    room[link] / count
                } else {
                    f64::INFINITY
                }
            };
            let lowest = (0..room.len())
                .map(|link| share(link, &open, &room))
                .chain(open.iter().map(|i| self.flows[*i].cap))
                .filter(|share| share.is_finite())
                .fold(f64::INFINITY, f64::min);
            let tight = lowest * (1.0 + 1e-12) + 1e-9;
            let (fixed, rest): (Vec<usize>, Vec<usize>) = open.iter().partition(|i| {
                let flow = &self.flows[**i];
                flow.cap <= tight
                    || flow
                        .route
                        .iter()
                        .any(|link| share(*link, &open, &room) <= tight)
            });
            for &i in &fixed {
                self.flows[i].rate = lowest;
                for &link in &self.flows[i].route {
                    room[link] = (room[link] - lowest * self.flows[i].weight).max(0.0);
                }
            }
            assert!(!fixed.is_empty(), "every round fixes a flow");
            open = rest;
        }
    }

    fn next(&self) -> Option<f64> {
        let ends = |flow: &SlowFlow| {
            if flow.left > 0.0 {
                flow.left / flow.rate
            } else {
                0.0
            }
        };
        self.flows
            .iter()
            .map(ends)
            .filter(|t| t.is_finite())
            .reduce(f64::min)
    }

    fn advance(&mut self, seconds: f64) {
        for flow in &mut self.flows {
            flow.left = (flow.left - flow.rate * seconds).max(0.0);
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Start {
        route: Vec<usize>,
        bytes: u64,
        weight: u32,
        cap: Option<u64>,
    },
    Cancel(usize),
    Resize {
        link: usize,
        capacity: u64,
    },
    Wait(u64),
    ToNextEnd,
}

fn steps(links: usize) -> impl Strategy<Value = Vec<Step>> {
    let route =
        prop::sample::subsequence((0..links).collect::<Vec<_>>(), 1..=links.min(5)).prop_shuffle();
    let start = (
        route,
        1_u64..50_000_000,
        1_u32..4,
        prop::option::weighted(0.3, 1_u64..60),
    )
        .prop_map(|(route, bytes, weight, cap)| Step::Start {
            route,
            bytes,
            weight,
            cap: cap.map(|gb| gb * 1_000_000_000),
        });
    let step = prop_oneof![
        6 => start,
        1 => any::<usize>().prop_map(Step::Cancel),
        1 => (0..links, 0_u64..100).prop_map(|(link, gb)| Step::Resize { link, capacity: gb * 1_000_000_000 }),
        2 => (0_u64..1_000_000_000).prop_map(Step::Wait),
        4 => Just(Step::ToNextEnd),
    ];
    prop::collection::vec(step, 1..60)
}

fn check_rates(
    net: &mut FairNet,
    slow: &SlowMaxMin,
    capacities: &[u64],
) -> Result<(), TestCaseError> {
    let mut load = vec![0.0; capacities.len()];
    let mut fastest = vec![0.0_f64; capacities.len()];
    let rates: Vec<f64> = slow.flows.iter().map(|flow| net.rate(flow.id)).collect();
    for (flow, &rate) in slow.flows.iter().zip(&rates) {
        let near = (rate - flow.rate).abs() <= 1e-9 * flow.rate + 0.05;
        prop_assert!(near, "{rate} instead of {} for {flow:?}", flow.rate);
        for &link in &flow.route {
            load[link] += rate * flow.weight;
            fastest[link] = fastest[link].max(rate);
        }
    }
    for (link, capacity) in capacities.iter().enumerate() {
        prop_assert!(
            load[link] <= *capacity as f64,
            "link {link} carries {}",
            load[link]
        );
    }
    // Every flow has a bottleneck: its cap, or a full link where nobody is faster.
    for (flow, &rate) in slow.flows.iter().zip(&rates) {
        let capped = rate >= flow.cap - 0.01;
        let held = flow.route.iter().any(|&link| {
            load[link] >= capacities[link] as f64 - 0.05 && rate >= fastest[link] - 0.05
        });
        prop_assert!(capped || held, "{flow:?} at {rate} has no bottleneck");
    }
    Ok(())
}

fn picos(seconds: f64) -> SimDuration {
    SimDuration::from_picos((seconds * 1e12) as u64)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 12, ..ProptestConfig::default() })]

    /// Rates, ends and bytes agree with the slow net through starts, ends, cancellations, cut and
    /// mended links; no link is over its capacity; every flow has a bottleneck.
    #[test]
    fn the_incremental_net_is_the_slow_one(
        capacities in prop::collection::vec(1_u64..100, 2..9),
        steps in (2_usize..9).prop_flat_map(steps),
    ) {
        let mut capacities: Vec<u64> = capacities.iter().map(|gb| gb * 1_000_000_000).collect();
        capacities.resize(9, 7_000_000_000);
        let mut net = FairNet::new(capacities.iter().map(|c| Bandwidth::from_bytes_per_sec(*c)));
        let mut slow = SlowMaxMin {
            capacities: capacities.iter().map(|c| *c as f64).collect(),
            flows: Vec::new(),
        };
        let mut expected = vec![0_u64; capacities.len()];
        for step in steps {
            let mut to = net.now();
            match step {
                Step::Start { route, bytes, weight, cap } => {
                    let links: Vec<LinkId> = route.iter().map(|link| LinkId(*link as u32)).collect();
                    let id = net.start(&links, Bytes::new(bytes), weight, cap.map(Bandwidth::from_bytes_per_sec));
                    slow.flows.push(SlowFlow {
                        id,
                        route: route.clone(),
                        weight: f64::from(weight),
                        cap: cap.map_or(f64::INFINITY, |cap| cap as f64),
                        left: bytes as f64,
                        rate: 0.0,
                    });
                    for link in route {
                        expected[link] += bytes * u64::from(weight);
                    }
                }
                Step::Cancel(which) if !slow.flows.is_empty() => {
                    let flow = slow.flows.remove(which % slow.flows.len());
                    let unsent = net.cancel(flow.id).get();
                    prop_assert!((unsent as f64 - flow.left).abs() < 2.0 + 1e-9 * flow.left);
                    for link in flow.route {
                        expected[link] -= unsent * flow.weight as u64;
                    }
                }
                Step::Resize { link, capacity } => {
                    capacities[link] = capacity;
                    slow.capacities[link] = capacity as f64;
                    net.set_capacity(LinkId(link as u32), Bandwidth::from_bytes_per_sec(capacity));
                }
                Step::Wait(ps) => to = to + SimDuration::from_picos(ps),
                Step::ToNextEnd => to = net.next_completion().unwrap_or(to),
                Step::Cancel(_) => {}
            }
            slow.share();
            check_rates(&mut net, &slow, &capacities)?;
            // Walk to `to`, from end to end.
            loop {
                let next = net.next_completion();
                let slow_next = slow.next();
                prop_assert_eq!(next.is_some(), slow_next.is_some());
                let Some(next) = next.filter(|next| *next <= to) else { break };
                let span = next.since(net.now());
                let agreed = span.as_secs_f64();
                let seconds = slow_next.expect("both have one");
                prop_assert!((agreed - seconds).abs() <= 3e-12 + 1e-9 * seconds, "{agreed} and {seconds}");
                let mut ended = Vec::new();
                net.advance(next, &mut ended);
                slow.advance(agreed);
                prop_assert!(!ended.is_empty());
                for id in ended {
                    let at = slow.flows.iter().position(|flow| flow.id == id).expect("it was live");
                    let flow = slow.flows.remove(at);
                    prop_assert!(flow.left <= 0.1 + flow.rate * 3e-12, "{} bytes left", flow.left);
                }
                slow.share();
                check_rates(&mut net, &slow, &capacities)?;
            }
            slow.advance(to.since(net.now()).as_secs_f64());
            let mut none = Vec::new();
            net.advance(to, &mut none);
            prop_assert!(none.is_empty());
            prop_assert_eq!(net.live(), slow.flows.len());
        }
        // Bytes are conserved to the last one.
        for flow in slow.flows.drain(..) {
            let unsent = net.cancel(flow.id).get();
            for link in flow.route {
                expected[link] -= unsent * flow.weight as u64;
            }
        }
        for (link, expected) in expected.iter().enumerate() {
            prop_assert_eq!(net.carried(LinkId(link as u32)).get(), *expected);
        }
    }

    /// A bundle of weight k is k flows.
    #[test]
    fn a_bundle_is_its_flows(
        weight in 1_u32..6,
        bytes in 1_u64..1_000_000_000,
        capacities in prop::collection::vec(1_u64..50, 3),
        others in prop::collection::vec((0_u32..3, 1_u64..1_000_000_000), 0..5),
    ) {
        let run = |bundled: bool| {
            let mut net = FairNet::new(capacities.iter().map(|gb| Bandwidth::from_gigabytes_per_sec(*gb)));
            for (link, bytes) in &others {
                net.start(&[LinkId(*link)], Bytes::new(*bytes), 1, None);
            }
            let route = [LinkId(0), LinkId(1)];
            let (pieces, weight) = if bundled { (1, weight) } else { (weight, 1) };
            let flows: Vec<FlowId> = (0..pieces).map(|_| net.start(&route, Bytes::new(bytes), weight, None)).collect();
            let mut ends = Vec::new();
            while let Some(next) = net.next_completion() {
                let mut done = Vec::new();
                net.advance(next, &mut done);
                if done.iter().any(|id| flows.contains(id)) {
                    ends.push(next);
                }
            }
            (ends, net.carried(LinkId(0)), net.carried(LinkId(1)))
        };
        let (one, many) = (run(true), run(false));
        prop_assert_eq!(one.0[0], many.0[0]);
        prop_assert_eq!((one.1, one.2), (many.1, many.2));
    }
}

/// The textbook case: two flows on a thin and a thick link, a third on the thick one alone.
#[test]
fn a_flow_held_back_elsewhere_leaves_its_share_to_others() {
    let mut net = FairNet::new([10, 30].map(Bandwidth::from_gigabytes_per_sec));
    let (thin, thick) = (LinkId(0), LinkId(1));
    let size = Bytes::new(1_000_000_000);
    let a = net.start(&[thin], size, 1, None);
    let b = net.start(&[thin, thick], size, 1, None);
    let c = net.start(&[thick], size, 1, None);
    let gb = |net: &mut FairNet, id| (net.rate(id) / 1e7).round() / 100.0;
    assert_eq!(
        (gb(&mut net, a), gb(&mut net, b), gb(&mut net, c)),
        (5.0, 5.0, 25.0)
    );
    let mut done = Vec::new();
    net.advance(SimTime::ZERO + picos(0.04), &mut done);
    assert_eq!(done, [c]);
    net.set_capacity(thin, Bandwidth::from_gigabytes_per_sec(0));
    assert_eq!(net.next_completion(), None, "a cut link: they wait");
    net.set_capacity(thin, Bandwidth::from_gigabytes_per_sec(20));
    done.clear();
    let last = net.next_completion().expect("mended");
    net.advance(last, &mut done);
    assert_eq!(done.len(), 2);
    assert_eq!(
        last,
        SimTime::ZERO + SimDuration::from_picos(120_000_000_000)
    );
}
