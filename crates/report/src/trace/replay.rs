//! The timeline of a replayed execution trace: one group per rank.

use super::file::{Arrow, Group, Row, Slice, Stretch, TraceFile, summed};
use rackflow_plan::replay::{Action, CommunicationKind, ReplayPlan};
use rackflow_simulator::replay::NodeTimes;
use rackflow_units::SimTime;
use std::collections::BTreeMap;

impl TraceFile<'static> {
    /// What ranks did in a replay: `times` are those of every rank of the plan, `shown` the positions
    /// of the ranks that the trace shows.
    pub fn of_replay(plan: &ReplayPlan, times: &[Vec<NodeTimes>], shown: &[usize]) -> Self {
        let arrows = arrows(plan, shown);
        let widest = shown.iter().map(|at| plan.ranks[*at].rank).max();
        let width = widest.unwrap_or(0).to_string().len();
        Self {
            groups: shown
                .iter()
                .map(|at| of_rank(plan, *at, &times[*at], &arrows, width))
                .collect(),
        }
    }
}

/// By rank and node: the arrow of a message whose both ends are shown.
type Arrows = BTreeMap<(usize, usize), Arrow>;

fn arrows(plan: &ReplayPlan, shown: &[usize]) -> Arrows {
    // By message: the nodes that have come up, each with its rank.
    let mut ends: BTreeMap<u32, Vec<(usize, usize)>> = BTreeMap::new();
    for at in shown {
        for (index, node) in plan.ranks[*at].nodes.iter().enumerate() {
            let Action::Communicate(communication) = node.action else {
                continue;
            };
            if plan.communications[communication as usize].kind == CommunicationKind::Message {
                ends.entry(communication).or_default().push((*at, index));
            }
        }
    }
    let mut arrows = Arrows::new();
    for (communication, ends) in ends.into_iter().filter(|(_, ends)| ends.len() == 2) {
        let id = u64::from(communication) + 1;
        for end in ends {
            let arrow = if receives(plan, communication, end.0) {
                Arrow::Ends(id)
            } else {
                Arrow::Starts(id)
            };
            arrows.insert(end, arrow);
        }
    }
    arrows
}

/// Whether the rank at this position is the receiver of a message.
fn receives(plan: &ReplayPlan, communication: u32, at: usize) -> bool {
    let one = &plan.communications[communication as usize];
    match &plan.members[one.members.0 as usize..one.members.1 as usize] {
        [_, to] => *to as usize == at,
        _ => one.ends[1],
    }
}

fn of_rank(
    plan: &ReplayPlan,
    at: usize,
    times: &[NodeTimes],
    arrows: &Arrows,
    width: usize,
) -> Group<'static> {
    let rank = &plan.ranks[at];
    let mut kernels: BTreeMap<u32, Vec<Stretch<'static>>> = BTreeMap::new();
    let (mut host, mut memory) = (Vec::new(), Vec::new());
    let (mut collectives, mut messages) = (Vec::new(), Vec::new());
    let mut sending: Vec<(SimTime, SimTime, f64, f64)> = Vec::new();
    for (index, (node, time)) in rank.nodes.iter().zip(times).enumerate() {
        let slice = |name: &'static str, start, end, arrow| Slice {
            track: 0,
            name: name.into(),
            args: [Some(("node", node.id)), None, None],
            start,
            end,
            arrow,
        };
        let alone = |name| Stretch {
            start: time.started,
            end: time.ended,
            slices: vec![slice(name, time.started, time.ended, Arrow::None)],
        };
        match node.action {
            Action::Kernel { stream, .. } => {
                kernels.entry(stream).or_default().push(alone("kernel"));
            }
            Action::Host(_) => host.push(alone("host")),
            Action::Load(_) => memory.push(alone("load")),
            Action::Store(_) => memory.push(alone("store")),
            Action::Communicate(communication) => {
                let one = &plan.communications[communication as usize];
                let demand = &plan.demands[one.demand as usize];
                let arrow = arrows.get(&(at, index)).copied().unwrap_or_default();
                let message = one.kind == CommunicationKind::Message;
                let sends = !(message && receives(plan, communication, at));
                let mut slices = Vec::new();
                if time.started > time.ready {
                    slices.push(slice("wait", time.ready, time.started, Arrow::None));
                }
                slices.push(slice(one.kind.name(), time.started, time.ended, arrow));
                let stretch = Stretch {
                    start: time.ready,
                    end: time.ended,
                    slices,
                };
                match one.kind {
                    CommunicationKind::Collective(_) => collectives.push(stretch),
                    CommunicationKind::Message => messages.push(stretch),
                }
                if sends && time.ended > time.started {
                    let (nvlink, nic) = (demand.wire_bytes_nvlink, demand.wire_bytes_nic);
                    sending.push((time.started, time.ended, nvlink.as_f64(), nic.as_f64()));
                }
            }
            Action::Nothing => {}
        }
    }
    let mut group = Group {
        name: format!("rank {:0width$}", rank.rank),
        ..Group::default()
    };
    for (stream, stretches) in kernels {
        group.side_by_side(&format!("kernels, stream {stream}"), stretches);
    }
    group.side_by_side("host", host);
    group.side_by_side("memory beyond the accelerator's", memory);
    group.side_by_side("collectives", collectives);
    group.side_by_side("messages", messages);
    for (name, of) in [
        (
            "NVLink out",
            (|(_, _, bytes, _)| *bytes) as fn(&(_, _, f64, f64)) -> f64,
        ),
        ("NIC out", |(_, _, _, bytes)| *bytes),
    ] {
        let changes = sending.iter().filter(|one| of(one) > 0.0).flat_map(|one| {
            let rate = of(one) / one.1.since(one.0).as_secs_f64() / 1e9;
            [(one.0, rate), (one.1, -rate)]
        });
        let values = summed(0.0, changes);
        if values.len() > 1 {
            let number = group.rows.len() as u64 + 1;
            group
                .rows
                .push(Row::Counter((number, name, "GB/s", values)));
        }
    }
    group
        .slices
        .sort_by_key(|slice| (slice.track, slice.start, slice.end));
    group
}
