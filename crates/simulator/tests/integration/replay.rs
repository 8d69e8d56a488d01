//! Replayed execution traces against closed forms and a slow oracle.

use proptest::prelude::*;
use rackflow_network::{CollectiveOp, Links, collective, send_recv};
use rackflow_plan::replay::{
    CommunicationKind, KernelTime, RecordedSpeed, ReplayError, ReplayPlan, ReplaySetup,
    compile_replay,
};
use rackflow_scenario::{ClusterChanges, catalogue_cluster};
use rackflow_simulator::replay::{ReplayCause, ReplayRecord, simulate_replay};
use rackflow_topology::{Cluster, ClusterMap, Level};
use rackflow_units::{Bytes, Precision, SimDuration};
use rackflow_workload::chakra::{
    Activity, ExecutionTrace, Payload, RankTrace, TraceGroup, TraceNode, TraceOp,
};

fn cluster(gpus: u32) -> Cluster {
    let changes = ClusterChanges {
        gpus: Some(gpus),
        ..ClusterChanges::default()
    };
    catalogue_cluster("hgx-h100", &changes).expect("it is of the catalogue")
}

const KERNEL: Activity = Activity::Kernel {
    ops: 0.0,
    bytes: Bytes::ZERO,
};

/// A rank whose nodes are an activity, a duration in microseconds, and what they wait for.
fn rank(rank: u32, nodes: &[(Activity, u64, &[u32])]) -> RankTrace {
    let mut trace = RankTrace {
        rank,
        ..RankTrace::default()
    };
    for (id, (activity, micros, deps)) in nodes.iter().enumerate() {
        let start = trace.deps.len() as u32;
        trace.deps.extend_from_slice(deps);
        trace.nodes.push(TraceNode {
            id: id as u64,
            deps: (start, trace.deps.len() as u32),
            stream: 0,
            recorded: (*micros > 0).then(|| SimDuration::from_micros(*micros)),
            activity: *activity,
        });
    }
    trace
}

fn trace(ranks: Vec<RankTrace>, payloads: Vec<Payload>) -> ExecutionTrace {
    let members = ranks.iter().map(|rank| rank.rank).collect();
    ExecutionTrace {
        ranks,
        groups: vec![TraceGroup {
            name: String::new(),
            members,
        }],
        payloads,
        recorded_on: Vec::new(),
    }
}

fn compiled(cluster: &Cluster, trace: ExecutionTrace) -> Result<ReplayPlan, ReplayError> {
    compile_replay(&ReplaySetup {
        name: "test".into(),
        cluster: cluster.clone(),
        trace: trace.into(),
        kernels: KernelTime::Recorded,
        precision: Precision::Bf16,
        speed: RecordedSpeed::default(),
    })
}

fn replayed(cluster: &Cluster, trace: ExecutionTrace) -> ReplayRecord {
    simulate_replay(&compiled(cluster, trace).expect("it is sound")).expect("it is not stuck")
}

const ALL_REDUCE: Activity = Activity::Collective {
    group: 0,
    payload: 0,
};

#[test]
fn a_collective_takes_its_time_from_the_last_to_come() {
    let cluster = cluster(16);
    let map = ClusterMap::new(&cluster).expect("it can be built");
    let bytes = Bytes::new(64 << 20);
    let all: Vec<u32> = (0..16).collect();
    let links = Links::new(&cluster, &map);
    let alone = collective(CollectiveOp::AllReduce, bytes, &map.span(&all), &links).duration();
    let payload = Payload::of_standard(TraceOp::AllReduce, bytes.get(), 16);
    let ranks = all
        .iter()
        .map(|r| {
            let first = if *r == 3 { 150 } else { 100 };
            rank(
                *r,
                &[
                    (KERNEL, first, &[]),
                    (ALL_REDUCE, 0, &[0]),
                    (KERNEL, 10, &[1]),
                ],
            )
        })
        .collect();
    let record = replayed(&cluster, trace(ranks, vec![payload]));
    assert_eq!(record.step_time, SimDuration::from_micros(160) + alone);
    let waited = record.accounts[0].picos(ReplayCause::Partners);
    assert_eq!(waited, 50_000_000, "picoseconds until rank 3 came");
    let kind = CommunicationKind::Collective(TraceOp::AllReduce);
    let exposed = record.accounts[3].picos(ReplayCause::Exposed(kind, Level::Leaf));
    assert_eq!(exposed, u128::from(alone.as_picos()));
}

#[test]
fn a_message_waits_for_both_ends_and_pays_its_path() {
    let cluster = cluster(8);
    let map = ClusterMap::new(&cluster).expect("it can be built");
    let bytes = Bytes::new(8 << 20);
    let alone = send_recv(bytes, &map.path(0, 1), &Links::new(&cluster, &map)).duration();
    let send = Activity::Send {
        peer: 1,
        tag: 7,
        bytes,
    };
    let receive = Activity::Receive {
        peer: 0,
        tag: 7,
        bytes: Bytes::ZERO,
    };
    let ranks = vec![
        rank(0, &[(KERNEL, 200, &[]), (send, 0, &[0])]),
        rank(1, &[(receive, 0, &[]), (KERNEL, 30, &[0])]),
    ];
    let record = replayed(&cluster, trace(ranks, vec![]));
    assert_eq!(record.step_time, SimDuration::from_micros(230) + alone);
    assert_eq!(record.accounts[1].picos(ReplayCause::Peer), 200_000_000);
}

#[test]
fn communication_beside_a_kernel_is_hidden_and_the_host_is_not() {
    let cluster = cluster(8);
    let payload = Payload::of_standard(TraceOp::AllReduce, 1 << 20, 8);
    let ranks: Vec<RankTrace> = (0..8)
        .map(|r| {
            rank(
                r,
                &[
                    (ALL_REDUCE, 0, &[]),
                    (KERNEL, 5_000, &[]),
                    (Activity::Host, 40, &[1]),
                    (KERNEL, 10, &[0, 2]),
                ],
            )
        })
        .collect();
    let record = replayed(&cluster, trace(ranks, vec![payload]));
    assert_eq!(record.step_time, SimDuration::from_micros(5_050));
    let total = record.total();
    assert_eq!(total.picos(ReplayCause::Host), 8 * 40_000_000);
    assert_eq!(total.picos(ReplayCause::Kernels), 8 * 5_010_000_000);
}

#[test]
fn a_rank_without_a_trace_is_always_ready() {
    let cluster = cluster(8);
    let mut part = trace(
        vec![rank(2, &[(KERNEL, 100, &[]), (ALL_REDUCE, 0, &[0])])],
        vec![Payload::of_standard(TraceOp::AllReduce, 1 << 20, 8)],
    );
    part.groups[0].members = (0..8).collect();
    let plan = compiled(&cluster, part).expect("it is sound");
    assert_eq!(plan.counts.ranks_missing, 7);
    let record = simulate_replay(&plan).expect("it is not stuck");
    assert!(record.step_time > SimDuration::from_micros(100));
    assert_eq!(record.total().picos(ReplayCause::Partners), 0);
}

#[test]
fn what_cannot_be_replayed_is_refused() {
    let cluster = cluster(8);
    let payload = |op| Payload::of_standard(op, 1024, 2);
    let cycle = trace(
        vec![rank(0, &[(KERNEL, 1, &[1]), (KERNEL, 1, &[0])])],
        vec![],
    );
    assert!(matches!(
        compiled(&cluster, cycle),
        Err(ReplayError::Cycle { rank: 0, .. })
    ));
    let far = trace(vec![rank(9, &[(KERNEL, 1, &[])])], vec![]);
    assert!(matches!(
        compiled(&cluster, far),
        Err(ReplayError::TooFewGpus { rank: 9, gpus: 8 })
    ));
    let uneven = trace(
        vec![
            rank(0, &[(ALL_REDUCE, 0, &[])]),
            rank(1, &[(KERNEL, 1, &[])]),
        ],
        vec![payload(TraceOp::AllReduce)],
    );
    assert!(matches!(
        compiled(&cluster, uneven),
        Err(ReplayError::Collectives { counts: [1, 0], .. })
    ));
    let other = Activity::Collective {
        group: 0,
        payload: 1,
    };
    let mixed = trace(
        vec![
            rank(0, &[(ALL_REDUCE, 0, &[])]),
            rank(1, &[(other, 0, &[])]),
        ],
        vec![payload(TraceOp::AllReduce), payload(TraceOp::AllToAll)],
    );
    assert!(matches!(
        compiled(&cluster, mixed),
        Err(ReplayError::Mismatch { index: 0, .. })
    ));
    let long = trace(
        vec![rank(
            0,
            &[
                (KERNEL, 9_000_000_000_000, &[]),
                (KERNEL, 9_000_000_000_000, &[]),
            ],
        )],
        vec![],
    );
    assert!(matches!(
        compiled(&cluster, long),
        Err(ReplayError::TooLong { .. })
    ));
}

#[test]
fn ranks_that_wait_for_each_other_are_named() {
    let cluster = cluster(8);
    let send = |peer, tag| Activity::Send {
        peer,
        tag,
        bytes: Bytes::new(8),
    };
    let receive = |peer, tag| Activity::Receive {
        peer,
        tag,
        bytes: Bytes::new(8),
    };
    let ranks = vec![
        rank(0, &[(receive(1, 2), 0, &[]), (send(1, 1), 0, &[0])]),
        rank(1, &[(receive(0, 1), 0, &[]), (send(0, 2), 0, &[0])]),
    ];
    let plan = compiled(&cluster, trace(ranks, vec![])).expect("each rank is sound");
    let stuck = simulate_replay(&plan).expect_err("nobody sends first");
    assert_eq!((stuck.rank, stuck.node), (0, 0));
}

/// When each kernel of one stream ends: whenever the stream is free, the first of the file that is
/// ready goes.
fn oracle(nodes: &[(u64, Vec<u32>)]) -> u64 {
    let mut ends = vec![None; nodes.len()];
    let mut now = 0;
    while let Some(next) = (0..nodes.len())
        .find(|i| ends[*i].is_none() && nodes[*i].1.iter().all(|dep| ends[*dep as usize].is_some()))
    {
        now += nodes[next].0;
        ends[next] = Some(now);
    }
    now
}

proptest! {
    #[test]
    fn kernels_of_one_stream_run_one_after_the_other(
        nodes in proptest::collection::vec(
            (1..50u64, proptest::collection::vec(any::<proptest::sample::Index>(), 0..3)),
            1..30,
        ),
    ) {
        let nodes: Vec<(u64, Vec<u32>)> = nodes
            .iter()
            .enumerate()
            .map(|(i, (time, deps))| {
                let mut deps: Vec<u32> = deps
                    .iter()
                    .filter(|_| i > 0)
                    .map(|dep| dep.index(i) as u32)
                    .collect();
                deps.sort_unstable();
                deps.dedup();
                (*time, deps)
            })
            .collect();
        let entries: Vec<(Activity, u64, &[u32])> = nodes
            .iter()
            .map(|(time, deps)| (KERNEL, *time, deps.as_slice()))
            .collect();
        let record = replayed(&cluster(8), trace(vec![rank(0, &entries)], vec![]));
        prop_assert_eq!(record.step_time, SimDuration::from_micros(oracle(&nodes)));
    }
}
