//! Ports and links that flows share: closed forms, and the slow obvious version on random scenes.

use proptest::prelude::*;
use rackflow_network::{Crossing, Demand, FlowId, FlowNet, Port};
use rackflow_units::{SimDuration, SimTime};
use std::collections::BTreeMap;

/// A demand that leads for a while and then keeps the NVLink port and the NIC busy.
fn demand(latency: u64, nvlink: u64, nic: u64) -> Demand {
    Demand {
        latency: SimDuration::from_picos(latency),
        nvlink: SimDuration::from_picos(nvlink),
        nic: SimDuration::from_picos(nic),
        ..Demand::NONE
    }
}

fn at(ps: u64) -> SimTime {
    SimTime::from_picos(ps)
}

/// A net that handles its own events.
struct Run {
    net: FlowNet,
    now: SimTime,
    /// What everybody was told.
    ends: BTreeMap<FlowId, SimTime>,
    over: Vec<(FlowId, SimTime)>,
    changed: Vec<(FlowId, SimTime)>,
}

impl Run {
    fn new(endpoints: usize, capacities: &[f64]) -> Self {
        Self {
            net: FlowNet::with_links(endpoints, capacities),
            now: at(0),
            ends: BTreeMap::new(),
            over: Vec::new(),
            changed: Vec::new(),
        }
    }

    fn hear(&mut self) {
        for (flow, ends) in self.changed.drain(..) {
            self.ends.insert(flow, ends);
        }
    }

    fn start(&mut self, endpoints: &[u32], demand: &Demand) -> FlowId {
        self.start_over(endpoints, demand, Crossing::NONE)
    }

    fn start_over(&mut self, endpoints: &[u32], demand: &Demand, crossing: Crossing<'_>) -> FlowId {
        let (net, changed) = (&mut self.net, &mut self.changed);
        let id = net.start_over(self.now, endpoints, demand, crossing, changed);
        self.hear();
        id
    }

    fn set(&mut self, port: Port, fraction: f64) {
        self.net
            .set_capacity(self.now, port, fraction, &mut self.changed);
        self.hear();
    }

    fn cancel(&mut self, flow: FlowId) {
        self.net.finish(self.now, flow, &mut self.changed);
        self.ends.remove(&flow);
        self.hear();
    }

    fn next(&self) -> Option<(SimTime, FlowId)> {
        let next = self.ends.iter().map(|(flow, ends)| (*ends, *flow)).min();
        next.filter(|(ends, _)| *ends < SimTime::MAX)
    }

    /// Handles what comes first; the flow that has ended, if one has.
    fn step(&mut self) -> Option<FlowId> {
        let (ends, flow) = self.next().expect("something comes");
        self.now = ends;
        let over = self.net.arrive(ends, flow, &mut self.changed);
        if over {
            self.ends.remove(&flow);
            self.over.push((flow, ends));
        }
        self.hear();
        over.then_some(flow)
    }

    fn run_to(&mut self, to: SimTime) {
        while self.next().is_some_and(|(ends, _)| ends <= to) {
            self.step();
        }
        self.now = to;
    }

    fn end_of(&mut self, flow: FlowId) -> SimTime {
        self.run_to(at(1 << 60));
        let found = self.over.iter().find(|(over, _)| *over == flow);
        found.expect("it ends").1
    }
}

/// A port at half its rate takes twice as long, one that is down stops its flows, and time that
/// passes meanwhile is not lost to what was done before.
#[test]
fn a_degraded_port_slows_and_a_dead_one_stops() {
    let mut run = Run::new(2, &[]);
    let flow = run.start(&[0, 1], &demand(0, 0, 1000));
    run.run_to(at(400));
    run.set(Port::Nic(1), 0.5);
    assert_eq!(run.ends[&flow], at(400 + 1200));
    run.run_to(at(600));
    run.set(Port::Nic(1), 0.0);
    assert_eq!(run.ends[&flow], SimTime::MAX);
    run.run_to(at(5000));
    run.set(Port::Nic(1), 1.0);
    assert_eq!(run.ends[&flow], at(5000 + 500));
    // A port that the flow needs a quarter of may be degraded that far.
    run.run_to(at(5500));
    let light = run.start(&[1], &demand(0, 1000, 250));
    run.set(Port::Nic(1), 0.25);
    assert!((run.net.rate(light) - 1.0).abs() < 1e-9);
}

/// A port that fails during a lead costs nothing if it is whole again when the flow sends.
#[test]
fn a_lead_needs_no_port() {
    let mut run = Run::new(1, &[]);
    let flow = run.start(&[0], &demand(700, 0, 300));
    assert_eq!(run.ends[&flow], at(1000));
    run.run_to(at(100));
    run.set(Port::Nic(0), 0.0);
    run.run_to(at(600));
    run.set(Port::Nic(0), 1.0);
    assert_eq!(run.end_of(flow), at(1000));
}

/// Flows that meet on a shared link are slowed by what they would use of it together.
#[test]
fn shared_links_are_shared() {
    // A byte per picosecond.
    let mut run = Run::new(2, &[1e12]);
    let crossing = Crossing {
        bytes: 750,
        links: &[(0, 1)],
    };
    let one = run.start_over(&[0], &demand(0, 0, 1000), crossing);
    assert_eq!(run.ends[&one], at(1000), "alone it fits");
    run.run_to(at(500));
    let two = run.start_over(&[1], &demand(0, 0, 1000), crossing);
    // Three halves of the link are asked for; the rate is kept in 32 binary places, the end rounded up.
    assert_eq!((run.ends[&one], run.ends[&two]), (at(1251), at(2001)));
    run.run_to(at(1251));
    assert!((at(1750)..=at(1751)).contains(&run.ends[&two]));
}

/// Alone: the demand's own time. Two that fill one port: half rate each. One ends: full rate.
#[test]
fn two_flows_share_one_port() {
    let mut net = FlowNet::new(2);
    let mut changed = Vec::new();
    let a = net.start(at(0), &[0], &demand(0, 1000, 0), &mut changed);
    assert_eq!(changed, [(a, at(1000))]);
    changed.clear();
    // On another rank, and on the same rank's other port: nothing moves.
    let elsewhere = net.start(at(100), &[1], &demand(0, 1000, 0), &mut changed);
    let nic = net.start(at(100), &[0], &demand(0, 0, 1000), &mut changed);
    assert_eq!(changed, [(elsewhere, at(1100)), (nic, at(1100))]);
    changed.clear();
    let b = net.start(at(500), &[0], &demand(0, 1000, 0), &mut changed);
    assert_eq!(changed, [(b, at(2500)), (a, at(1500))]);
    changed.clear();
    assert!(net.arrive(at(1500), a, &mut changed));
    assert_eq!(
        changed,
        [(b, at(2000))],
        "500 done by half, 500 left at full rate"
    );
    assert_eq!(net.live(), 3);
}

/// A flow that leads leaves its port to others, and its lead is not stretched.
#[test]
fn latency_does_not_occupy_a_port() {
    let mut run = Run::new(1, &[]);
    let sends = run.start(&[0], &demand(0, 600, 0));
    let leads = run.start(&[0], &demand(600, 400, 0));
    assert_eq!(run.end_of(sends), at(600));
    assert_eq!(run.end_of(leads), at(1000));
    // Both lead at once and then share.
    let mut run = Run::new(1, &[]);
    let both = [(); 2].map(|()| run.start(&[0], &demand(600, 400, 0)));
    assert_eq!(both.map(|flow| run.end_of(flow)), [at(1400); 2]);
}

/// What one flow cannot use, because another port holds it back, others have.
#[test]
fn what_a_flow_that_is_held_back_elsewhere_leaves_is_used() {
    let mut run = Run::new(2, &[]);
    // Two share the NIC of 1; one of them is also on the NIC of 0, beside a third.
    let wide = run.start(&[0, 1], &demand(0, 0, 1000));
    for _ in 0..3 {
        run.start(&[1], &demand(0, 0, 1000));
    }
    let other = run.start(&[0], &demand(0, 0, 1000));
    assert!((run.net.rate(wide) - 0.25).abs() < 1e-9);
    assert!((run.net.rate(other) - 0.75).abs() < 1e-9);
}

/// Work that is spread over its time uses a little of a port all the time.
#[test]
fn a_spread_flow_has_no_lead() {
    let mut run = Run::new(1, &[]);
    let (net, changed) = (&mut run.net, &mut run.changed);
    let spread = net.start_spread(at(0), &[0], &demand(750, 0, 250), Crossing::NONE, changed);
    run.hear();
    let sends = run.start(&[0], &demand(0, 0, 1000));
    let expected = 1.0 / 1.25;
    assert!((run.net.rate(spread) - expected).abs() < 1e-9);
    assert!((run.net.rate(sends) - expected).abs() < 1e-9);
    assert_eq!(run.end_of(spread), at(1251), "rounded up");
}

/// One communication of a random scene.
#[derive(Debug, Clone)]
struct Sent {
    endpoints: Vec<u32>,
    latency: u64,
    nvlink: u64,
    nic: u64,
    bytes: u64,
    links: Vec<(u32, u32)>,
}

impl Sent {
    fn demand(&self) -> Demand {
        demand(self.latency, self.nvlink, self.nic)
    }

    fn body(&self) -> f64 {
        self.nvlink.max(self.nic) as f64
    }

    /// What it uses of each port at full rate: two for each end point, then links.
    fn uses(&self, links: &[f64]) -> Vec<(usize, f64)> {
        let body = self.body();
        let sides = [(0, self.nvlink), (1, self.nic)];
        let ports = self.endpoints.iter().flat_map(|endpoint| {
            sides.map(|(side, busy)| (2 * *endpoint as usize + side, busy as f64 / body))
        });
        let over = self.links.iter().map(|(link, flows)| {
            let rate = self.bytes as f64 / (body * 1e-12);
            let number = 2 * ENDPOINTS as usize + *link as usize;
            (number, f64::from(*flows) * rate / links[*link as usize])
        });
        ports.chain(over).filter(|(_, used)| *used > 0.0).collect()
    }
}

const LINKS: u32 = 4;
const ENDPOINTS: u32 = 5;

fn sent() -> impl Strategy<Value = Sent> {
    let links = prop::collection::btree_map(0..LINKS, 1..5_u32, 0..=LINKS as usize);
    let endpoints = prop::collection::btree_set(0..ENDPOINTS, 1..4);
    let busy = || prop_oneof![Just(0_u64), 1_000..100_000_u64, Just(30_000_u64)];
    let latency = prop_oneof![Just(0_u64), 1..60_000_u64];
    (endpoints, latency, busy(), busy(), 1..1_000_u64, links).prop_map(
        |(endpoints, latency, nvlink, nic, bytes, links)| Sent {
            endpoints: endpoints.into_iter().collect(),
            latency,
            nvlink,
            nic: if nvlink == 0 { nic.max(1_000) } else { nic },
            bytes,
            links: links.into_iter().collect(),
        },
    )
}

/// What happens next.
#[derive(Debug, Clone)]
enum Act {
    Start(Sent),
    /// The communication at this place among those under way is cancelled.
    Cancel(usize),
    Capacity(Port, f64),
}

fn act() -> impl Strategy<Value = Act> {
    let part = || prop_oneof![Just(1.0), Just(0.5), 0.05..1.0_f64];
    prop_oneof![
        5 => sent().prop_map(Act::Start),
        1 => (0..8_usize).prop_map(Act::Cancel),
        1 => (0..LINKS, part()).prop_map(|(link, part)| Act::Capacity(Port::Shared(link), part)),
        1 => (0..ENDPOINTS, part()).prop_map(|(end, part)| Act::Capacity(Port::Nic(end), part)),
        1 => (0..ENDPOINTS, part()).prop_map(|(end, part)| Act::Capacity(Port::Nvlink(end), part)),
    ]
}

fn number(port: Port) -> usize {
    match port {
        Port::Nvlink(endpoint) => 2 * endpoint as usize,
        Port::Nic(endpoint) => 2 * endpoint as usize + 1,
        Port::Shared(link) => (2 * ENDPOINTS + link) as usize,
    }
}

/// The obvious version: everything from nothing, in floating point.
fn slow(uses: &[Vec<(usize, f64)>], capacities: &[f64]) -> Vec<f64> {
    let mut parts: Vec<Option<f64>> = vec![None; uses.len()];
    loop {
        let level_of = |port: usize| {
            let (mut room, mut open) = (capacities[port], 0.0);
            for (uses, part) in uses.iter().zip(&parts) {
                let used = uses
                    .iter()
                    .find(|used| used.0 == port)
                    .map_or(0.0, |used| used.1);
                match part {
                    Some(part) => room -= used * part,
                    None => open += used,
                }
            }
            if open > 0.0 {
                (room / open).max(0.0)
            } else {
                f64::INFINITY
            }
        };
        let levels: Vec<f64> = (0..capacities.len()).map(level_of).collect();
        let lowest = levels.iter().copied().fold(1.0, f64::min);
        let mut done = true;
        for (uses, part) in uses.iter().zip(&mut parts) {
            if part.is_none() {
                let full = uses
                    .iter()
                    .any(|used| levels[used.0] <= lowest * (1.0 + 1e-11));
                if full || lowest >= 1.0 {
                    *part = Some(lowest);
                } else {
                    done = false;
                }
            }
        }
        if done {
            return parts.into_iter().flatten().collect();
        }
    }
}

fn capacities_of(links: &[f64]) -> Vec<f64> {
    vec![1.0; 2 * ENDPOINTS as usize + links.len()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 6, failure_persistence: None, ..ProptestConfig::default() })]

    /// The incremental net and the obvious one agree after every change, what has happened is what was
    /// told; no port is ever over-full; every flow has a bottleneck: its full rate, or a full port on which
    /// nobody is faster.
    #[test]
    fn parts_are_those_of_filling_from_nothing(
        acts in prop::collection::vec((act(), 0..40_000_u64), 1..30),
        links in prop::collection::vec(1e9..2e11_f64, LINKS as usize),
    ) {
        let mut run = Run::new(ENDPOINTS as usize, &links);
        let mut capacities = capacities_of(&links);
        // Flow, when it begins to send, and what.
        let mut under_way: Vec<(FlowId, SimTime, Sent)> = Vec::new();
        for (act, after) in acts {
            let then = run.now + SimDuration::from_picos(after);
            run.run_to(then);
            under_way.retain(|(id, ..)| run.ends.contains_key(id));
            match act {
                Act::Start(sent) => {
                    let crossing = Crossing { bytes: sent.bytes, links: &sent.links };
                    let id = run.start_over(&sent.endpoints, &sent.demand(), crossing);
                    under_way.push((id, run.now + SimDuration::from_picos(sent.latency), sent));
                }
                Act::Cancel(index) if index < under_way.len() => {
                    let (id, ..) = under_way.remove(index);
                    run.cancel(id);
                }
                Act::Cancel(_) => {}
                Act::Capacity(port, part) => {
                    capacities[number(port)] = part;
                    run.set(port, part);
                }
            }
            run.run_to(run.now);
            under_way.retain(|(id, ..)| run.ends.contains_key(id));
            let sending: Vec<&(FlowId, SimTime, Sent)> =
                under_way.iter().filter(|(_, begins, _)| *begins <= run.now).collect();
            let uses: Vec<Vec<(usize, f64)>> = sending.iter().map(|(.., sent)| sent.uses(&links)).collect();
            let rates: Vec<f64> = sending.iter().map(|(id, ..)| run.net.rate(*id)).collect();
            let expected = slow(&uses, &capacities);
            for (rate, expected) in rates.iter().zip(&expected) {
                // Uses are kept in 32 binary places.
                prop_assert!((rate - expected).abs() <= 2e-5 * expected + 1e-7, "{rates:?} {expected:?}");
            }
            let load = |port: usize| -> f64 {
                let of = |uses: &Vec<(usize, f64)>| uses.iter().find(|used| used.0 == port).map_or(0.0, |used| used.1);
                uses.iter().zip(&rates).map(|(uses, rate)| of(uses) * rate).sum()
            };
            for (port, capacity) in capacities.iter().enumerate() {
                prop_assert!(load(port) <= capacity + 1e-5, "{port} carries {}", load(port));
            }
            for (index, uses_of) in uses.iter().enumerate() {
                let held = uses_of.iter().any(|(port, _)| {
                    let others = uses.iter().zip(&rates).filter(|(uses, _)| uses.iter().any(|used| used.0 == *port));
                    let fastest = others.map(|(_, rate)| *rate).fold(0.0, f64::max);
                    load(*port) >= capacities[*port] - 1e-5 && rates[index] >= fastest - 1e-5
                });
                prop_assert!(rates[index] > 1.0 - 1e-6 || held, "{index} of {rates:?} has no bottleneck");
            }
            for (id, ..) in &under_way {
                prop_assert_eq!(run.net.ends(*id), run.ends[id]);
            }
            prop_assert_eq!(run.net.live(), under_way.len());
        }
    }

    /// What arrives is what was sent: the rates of a flow, each for as long as it lasted, sum to its
    /// bytes when it ends, however often others come and go and ports change; and no flow beats its
    /// own demand.
    #[test]
    fn bytes_sent_are_bytes_received(
        acts in prop::collection::vec((act(), 0..60_000_u64), 1..25),
        links in prop::collection::vec(1e10..2e11_f64, LINKS as usize),
    ) {
        let mut run = Run::new(ENDPOINTS as usize, &links);
        // Flow, when it may end, what it sends, and how much of that has arrived, in full time.
        let mut under_way: Vec<(FlowId, SimTime, Sent, f64)> = Vec::new();
        let mut acts = acts.into_iter();
        let mut coming = acts.next().map(|(act, after)| (act, at(after)));
        let mut checked = 0;
        loop {
            let before = run.now;
            let begins = |earliest: SimTime, sent: &Sent| at(earliest.as_picos() - sent.nvlink.max(sent.nic));
            let rates: Vec<f64> = under_way.iter().map(|(id, earliest, sent, _)| {
                // A flow that leads alone has a rate and sends nothing yet.
                if begins(*earliest, sent) > before { 0.0 } else { run.net.rate(*id) }
            }).collect();
            // Leads that need no event end between two: time passes up to there first.
            let lead_ends = under_way.iter().filter_map(|(id, earliest, sent, _)| {
                let begins = begins(*earliest, sent);
                (begins > before && run.net.ends(*id) > begins).then_some(begins)
            }).min();
            let next = [run.next().map(|(ends, _)| ends), coming.as_ref().map(|(_, at)| *at), lead_ends];
            let Some(next) = next.into_iter().flatten().min() else { break };
            for ((.., arrived), rate) in under_way.iter_mut().zip(&rates) {
                *arrived += rate * next.since(before).as_picos() as f64;
            }
            if run.next().is_some_and(|(ends, _)| ends == next) {
                if let Some(over) = run.step() {
                    let index = under_way.iter().position(|(id, ..)| *id == over).expect("it was under way");
                    let (_, earliest, sent, arrived) = under_way.remove(index);
                    prop_assert!(next >= earliest, "a flow beat its own demand");
                    // Ends are rounded up to a picosecond.
                    prop_assert!((arrived - sent.body()).abs() < 2.0 + 1e-6 * sent.body(), "{arrived} of {}", sent.body());
                    checked += 1;
                }
                continue;
            }
            run.now = next;
            if coming.as_ref().is_some_and(|(_, at)| *at == next) {
                match coming.take().expect("it comes").0 {
                    Act::Start(sent) => {
                        let crossing = Crossing { bytes: sent.bytes, links: &sent.links };
                        let id = run.start_over(&sent.endpoints, &sent.demand(), crossing);
                        let earliest = next + sent.demand().duration();
                        under_way.push((id, earliest, sent, 0.0));
                    }
                    Act::Capacity(port, part) => run.set(port, part),
                    Act::Cancel(_) => {}
                }
                coming = acts.next().map(|(act, after)| (act, next + SimDuration::from_picos(after)));
            }
        }
        prop_assert!(under_way.is_empty(), "every flow ends; {checked} did");
    }

    /// The order of simultaneous starts and finishes does not matter, to the last bit.
    #[test]
    fn order_within_an_instant_does_not_matter(
        flows in prop::collection::vec(sent(), 2..9),
        links in prop::collection::vec(1e9..2e11_f64, LINKS as usize),
        shuffle in any::<prop::sample::Index>(),
    ) {
        let order_of = |order: &[usize]| {
            let mut run = Run::new(ENDPOINTS as usize, &links);
            let all: Vec<u32> = (0..ENDPOINTS).collect();
            let first = run.start(&all, &demand(0, 90_000, 30_000));
            run.run_to(at(333));
            let mut ids = vec![first; flows.len()];
            for &i in order {
                let crossing = Crossing { bytes: flows[i].bytes, links: &flows[i].links };
                ids[i] = run.start_over(&flows[i].endpoints, &flows[i].demand(), crossing);
            }
            run.cancel(ids[0]);
            run.run_to(at(20_000));
            let of = |id: &FlowId| (run.ends.get(id).copied(), run.over.iter().find(|(over, _)| over == id).map(|over| over.1));
            ids[1..].iter().chain([&first]).map(of).collect::<Vec<_>>()
        };
        let forward: Vec<usize> = (0..flows.len()).collect();
        let mut other = forward.clone();
        other.rotate_left(shuffle.index(flows.len()));
        prop_assert_eq!(order_of(&forward), order_of(&other));
    }
}

/// Slots are used again: a million flows through a small net leave it small.
#[test]
fn a_steady_state_does_not_grow() {
    let mut net = FlowNet::new(8);
    let mut changed = Vec::with_capacity(16);
    let mut now = at(0);
    let mut last: Vec<FlowId> = Vec::with_capacity(4);
    for i in 0..1_000_000_u64 {
        let rank = (i % 8) as u32;
        let flow = net.start(now, &[rank], &demand(100, 700, 300), &mut changed);
        assert!(flow.slot() <= 4, "slot {}", flow.slot());
        last.push(flow);
        if last.len() == 4 {
            net.finish(now, last.remove(0), &mut changed);
        }
        changed.clear();
        now = now + SimDuration::from_picos(50);
    }
}
