//! A trace for timeline viewers: Perfetto's own format, and the JSON of Chrome's trace viewer.
//!
//! One process per rank, one track per stream, arrows from a send to its receive, and counters of
//! the links and of memory. <https://ui.perfetto.dev> opens both formats.

use crate::plot::{Axis, Gantt, Picture, Span as Bar, style};
use prost::Message as _;
use rackflow_plan::{PassKind, Stream};
use rackflow_simulator::{Span, Trace, TracedRank};
use rackflow_units::SimTime;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The few messages of `perfetto_trace.proto` that a timeline needs, with their field numbers
/// (google/perfetto, `protos/perfetto/trace/trace_packet.proto` and `track_event/`).
mod proto {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Trace {
        #[prost(message, repeated, tag = "1")]
        pub packet: Vec<TracePacket>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct TracePacket {
        #[prost(uint64, optional, tag = "8")]
        pub timestamp: Option<u64>,
        #[prost(uint32, optional, tag = "10")]
        pub trusted_packet_sequence_id: Option<u32>,
        #[prost(message, optional, tag = "11")]
        pub track_event: Option<TrackEvent>,
        #[prost(uint32, optional, tag = "13")]
        pub sequence_flags: Option<u32>,
        #[prost(message, optional, tag = "60")]
        pub track_descriptor: Option<TrackDescriptor>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct TrackDescriptor {
        #[prost(uint64, optional, tag = "1")]
        pub uuid: Option<u64>,
        #[prost(string, optional, tag = "2")]
        pub name: Option<String>,
        #[prost(uint64, optional, tag = "5")]
        pub parent_uuid: Option<u64>,
        #[prost(message, optional, tag = "8")]
        pub counter: Option<CounterDescriptor>,
        #[prost(int32, optional, tag = "11")]
        pub child_ordering: Option<i32>,
        #[prost(int32, optional, tag = "12")]
        pub sibling_order_rank: Option<i32>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct CounterDescriptor {
        #[prost(string, optional, tag = "6")]
        pub unit_name: Option<String>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct TrackEvent {
        #[prost(message, repeated, tag = "4")]
        pub debug_annotations: Vec<DebugAnnotation>,
        #[prost(int32, optional, tag = "9")]
        pub r#type: Option<i32>,
        #[prost(uint64, optional, tag = "11")]
        pub track_uuid: Option<u64>,
        #[prost(string, optional, tag = "23")]
        pub name: Option<String>,
        #[prost(double, optional, tag = "44")]
        pub double_counter_value: Option<f64>,
        #[prost(fixed64, repeated, packed = "false", tag = "47")]
        pub flow_ids: Vec<u64>,
        #[prost(fixed64, repeated, packed = "false", tag = "48")]
        pub terminating_flow_ids: Vec<u64>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct DebugAnnotation {
        #[prost(string, optional, tag = "10")]
        pub name: Option<String>,
        #[prost(uint64, optional, tag = "3")]
        pub uint_value: Option<u64>,
    }
}

/// `TrackEvent.Type`.
const SLICE_BEGIN: i32 = 1;
const SLICE_END: i32 = 2;
const COUNTER: i32 = 4;
/// `ChildTracksOrdering`: by `sibling_order_rank`.
const EXPLICIT: i32 = 3;
/// Packets of one writer carry its number.
const SEQUENCE: u32 = 1;
/// Tracks of one rank, counters included.
const TRACKS: u64 = 32;
const PASSES: u64 = 20;
const NVLINK: u64 = 21;
const NIC: u64 = 22;
const MEMORY: u64 = 23;

fn stream_name(stream: Stream) -> &'static str {
    match stream {
        Stream::Compute => "compute",
        Stream::Tensor => "tensor and context collectives",
        Stream::Expert => "expert dispatch and combine",
        Stream::Data => "gradients and parameters",
        Stream::SendActivation => "send activations",
        Stream::ReceiveActivation => "receive activations",
        Stream::SendGradient => "send gradients",
        Stream::ReceiveGradient => "receive gradients",
        Stream::SendActivationReverse => "send activations, reverse",
        Stream::ReceiveActivationReverse => "receive activations, reverse",
        Stream::SendGradientReverse => "send gradients, reverse",
        Stream::ReceiveGradientReverse => "receive gradients, reverse",
        Stream::Offload => "activations to the host",
        Stream::Reload => "activations from the host",
    }
}

fn pass_name(kind: PassKind) -> &'static str {
    match kind {
        PassKind::Forward => "forward",
        PassKind::Backward => "backward",
        PassKind::InputGradient => "input gradient",
        PassKind::WeightGradient => "weight gradient",
        PassKind::Overlapped => "forward beside backward",
    }
}

/// Viewers count nanoseconds.
fn nanos(time: SimTime) -> u64 {
    time.as_picos() / 1000
}

/// One slice of a track, whatever the format.
struct Slice<'a> {
    rank: usize,
    track: u64,
    name: &'a str,
    micro_batch: u32,
    start: SimTime,
    end: SimTime,
    sends: Option<u64>,
    receives: Option<u64>,
}

fn slices(trace: &Trace) -> Vec<Slice<'_>> {
    let mut sends = BTreeMap::new();
    let mut receives = BTreeMap::new();
    for (id, message) in trace.messages.iter().enumerate() {
        sends.insert(message.from, id as u64 + 1);
        receives.insert(message.to, id as u64 + 1);
    }
    let mut slices = Vec::new();
    for (rank, traced) in trace.ranks.iter().enumerate() {
        for (at, span) in traced.spans.iter().enumerate() {
            slices.push(Slice {
                rank,
                track: 1 + span.stream as u64,
                name: span.label,
                micro_batch: span.micro_batch,
                start: span.start,
                end: span.end,
                sends: sends.get(&(rank, at)).copied(),
                receives: receives.get(&(rank, at)).copied(),
            });
        }
        for pass in &traced.passes {
            slices.push(Slice {
                rank,
                track: PASSES,
                name: pass_name(pass.kind),
                micro_batch: pass.micro_batch,
                start: pass.start,
                end: pass.end,
                sends: None,
                receives: None,
            });
        }
    }
    // A viewer that reads in order must meet the end of a slice before the start of the next.
    slices.sort_by_key(|slice| (slice.rank, slice.track, slice.start, slice.end));
    slices
}

/// A counter's track, name, unit, and values over time, each from its instant on.
type Counter = (u64, &'static str, &'static str, Vec<(SimTime, f64)>);

/// The counters of a rank: both kinds of links, and memory.
fn counters(rank: &TracedRank) -> [Counter; 3] {
    let link = |bytes: fn(&Span) -> f64| {
        let sending = rank
            .spans
            .iter()
            .filter(|span| bytes(span) > 0.0 && span.end > span.start);
        let steps = sending.flat_map(|span| {
            let rate = bytes(span) / span.end.since(span.start).as_secs_f64() / 1e9;
            [(span.start, rate), (span.end, -rate)]
        });
        summed(0.0, steps)
    };
    let passes = rank.passes.iter().flat_map(|pass| {
        [
            (pass.start, pass.keeps as f64 / 1e9),
            (pass.end, -(pass.frees as f64) / 1e9),
        ]
    });
    [
        (
            NVLINK,
            "NVLink out",
            "GB/s",
            link(|span| span.nvlink.as_f64()),
        ),
        (NIC, "NIC out", "GB/s", link(|span| span.nic.as_f64())),
        (
            MEMORY,
            "memory",
            "GB",
            summed(rank.resident.as_f64() / 1e9, passes),
        ),
    ]
}

/// The running sum of changes, one value per instant.
fn summed(start: f64, changes: impl Iterator<Item = (SimTime, f64)>) -> Vec<(SimTime, f64)> {
    let mut by_time: BTreeMap<SimTime, f64> = BTreeMap::new();
    by_time.insert(SimTime::ZERO, 0.0);
    for (time, change) in changes {
        *by_time.entry(time).or_default() += change;
    }
    let mut value = start;
    by_time
        .into_iter()
        .map(|(time, change)| {
            value += change;
            // What is left of rounding is nothing.
            (time, if value.abs() < 1e-9 { 0.0 } else { value })
        })
        .collect()
}

fn rank_name(rank: &TracedRank) -> String {
    format!("rank {}, stage {}", rank.rank, rank.stage + 1)
}

/// What the ranks are called in a viewer that sorts by name: their numbers are as wide as the widest.
fn track_names(trace: &Trace) -> Vec<String> {
    let widest = trace.ranks.iter().map(|rank| rank.rank).max().unwrap_or(0);
    let width = widest.to_string().len();
    let name = |rank: &TracedRank| format!("rank {:0width$}, stage {}", rank.rank, rank.stage + 1);
    trace.ranks.iter().map(name).collect()
}

/// The trace in Perfetto's format.
pub fn to_perfetto(trace: &Trace) -> Vec<u8> {
    let mut packets = vec![proto::TracePacket {
        trusted_packet_sequence_id: Some(SEQUENCE),
        track_descriptor: Some(proto::TrackDescriptor {
            uuid: Some(0),
            child_ordering: Some(EXPLICIT),
            ..Default::default()
        }),
        ..Default::default()
    }];
    for ((at, rank), name) in trace.ranks.iter().enumerate().zip(track_names(trace)) {
        describe(&mut packets, at as u64, rank, name);
    }
    for slice in slices(trace) {
        let uuid = TRACKS * (slice.rank as u64 + 1) + slice.track;
        let begin = proto::TrackEvent {
            r#type: Some(SLICE_BEGIN),
            track_uuid: Some(uuid),
            name: Some(slice.name.to_owned()),
            debug_annotations: vec![proto::DebugAnnotation {
                name: Some("micro_batch".to_owned()),
                uint_value: Some(u64::from(slice.micro_batch)),
            }],
            flow_ids: slice.sends.into_iter().collect(),
            terminating_flow_ids: slice.receives.into_iter().collect(),
            ..Default::default()
        };
        let end = proto::TrackEvent {
            r#type: Some(SLICE_END),
            track_uuid: Some(uuid),
            ..Default::default()
        };
        packets.push(event(slice.start, begin));
        packets.push(event(slice.end, end));
    }
    for (at, rank) in trace.ranks.iter().enumerate() {
        for (track, _, _, values) in counters(rank) {
            for (time, value) in values {
                packets.push(event(
                    time,
                    proto::TrackEvent {
                        r#type: Some(COUNTER),
                        track_uuid: Some(TRACKS * (at as u64 + 1) + track),
                        double_counter_value: Some(value),
                        ..Default::default()
                    },
                ));
            }
        }
    }
    if let Some(first) = packets.first_mut() {
        // The writer's state begins here.
        first.sequence_flags = Some(1);
    }
    proto::Trace { packet: packets }.encode_to_vec()
}

fn event(time: SimTime, event: proto::TrackEvent) -> proto::TracePacket {
    proto::TracePacket {
        timestamp: Some(nanos(time)),
        trusted_packet_sequence_id: Some(SEQUENCE),
        track_event: Some(event),
        ..Default::default()
    }
}

/// The tracks of one rank, under one of its own: its passes, its streams, its counters, shown in this
/// order. A process would put them in the order of their names, and the ranks in the order of their
/// numbers of slices.
fn describe(packets: &mut Vec<proto::TracePacket>, at: u64, rank: &TracedRank, name: String) {
    let parent = TRACKS * (at + 1);
    let mut track = |descriptor| {
        packets.push(proto::TracePacket {
            trusted_packet_sequence_id: Some(SEQUENCE),
            track_descriptor: Some(descriptor),
            ..Default::default()
        });
    };
    track(proto::TrackDescriptor {
        uuid: Some(parent),
        name: Some(name),
        child_ordering: Some(EXPLICIT),
        sibling_order_rank: Some(at as i32),
        ..Default::default()
    });
    let mut order = 0;
    let mut child = |number: u64, name: &str, unit: Option<&str>| {
        order += 1;
        track(proto::TrackDescriptor {
            uuid: Some(parent + number),
            name: Some(name.to_owned()),
            parent_uuid: Some(parent),
            sibling_order_rank: Some(order),
            counter: unit.map(|unit| proto::CounterDescriptor {
                unit_name: Some(unit.to_owned()),
            }),
            ..Default::default()
        });
    };
    if !rank.passes.is_empty() {
        child(PASSES, "passes", None);
    }
    for stream in used_streams(rank) {
        child(1 + stream as u64, stream_name(stream), None);
    }
    for (number, name, unit, _) in counters(rank) {
        child(number, name, Some(unit));
    }
}

fn used_streams(rank: &TracedRank) -> Vec<Stream> {
    let mut streams: Vec<Stream> = rank.spans.iter().map(|span| span.stream).collect();
    streams.sort_unstable();
    streams.dedup();
    streams
}

/// The trace as JSON for Chrome's trace viewer (`chrome://tracing`) and Perfetto.
pub fn to_chrome_json(trace: &Trace) -> String {
    // Whole nanoseconds, as the readers keep them: of an end rounded apart from the start of the
    // slice after it Perfetto would say that the two overlap, and drop one.
    let micros = |nanos: u64| nanos as f64 / 1e3;
    let mut events: Vec<Value> = Vec::new();
    for ((at, rank), name) in trace.ranks.iter().enumerate().zip(track_names(trace)) {
        let pid = at + 1;
        events.push(json!({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}));
        events.push(json!({"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}}));
        let mut named = vec![(PASSES, "passes")];
        named.extend(
            used_streams(rank)
                .into_iter()
                .map(|stream| (1 + stream as u64, stream_name(stream))),
        );
        for (tid, name) in named {
            events.push(json!({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}));
        }
        for (_, name, unit, values) in counters(rank) {
            for (time, value) in values {
                events.push(json!({"ph": "C", "name": format!("{name} [{unit}]"), "pid": pid, "ts": micros(nanos(time)), "args": {"value": value}}));
            }
        }
    }
    for slice in slices(trace) {
        let (pid, tid, ts) = (slice.rank + 1, slice.track, micros(nanos(slice.start)));
        let dur = micros(nanos(slice.end) - nanos(slice.start));
        events.push(json!({"ph": "X", "name": slice.name, "pid": pid, "tid": tid, "ts": ts, "dur": dur, "args": {"micro_batch": slice.micro_batch}}));
        if let Some(id) = slice.sends {
            events.push(json!({"ph": "s", "cat": "message", "name": slice.name, "id": id, "pid": pid, "tid": tid, "ts": ts}));
        }
        if let Some(id) = slice.receives {
            events.push(json!({"ph": "f", "bp": "e", "cat": "message", "name": slice.name, "id": id, "pid": pid, "tid": tid, "ts": ts}));
        }
    }
    json!({"displayTimeUnit": "ms", "traceEvents": events}).to_string()
}

/// The passes of the traced ranks over time: the pipeline as a picture.
pub fn pipeline(trace: &Trace, scenario: &str) -> Picture {
    let millis = |time: SimTime| time.as_picos() as f64 / 1e9;
    let mut spans = Vec::new();
    let (mut busy, mut last) = (0.0, 0.0_f64);
    for (row, rank) in trace.ranks.iter().enumerate() {
        for pass in &rank.passes {
            let ink = match pass.kind {
                PassKind::Forward => style::ORDER,
                PassKind::Backward => style::USEFUL,
                PassKind::InputGradient => style::series(5),
                PassKind::WeightGradient => style::MATH,
                PassKind::Overlapped => style::WAIT,
            };
            let (start, end) = (millis(pass.start), millis(pass.end));
            busy += end - start;
            last = last.max(end);
            spans.push(Bar {
                row,
                start,
                end,
                ink,
                label: format!("{}", pass.micro_batch),
            });
        }
    }
    let share = busy / (last * trace.ranks.len().max(1) as f64).max(1e-12);
    let kinds = [
        (PassKind::Forward, style::ORDER),
        (PassKind::Backward, style::USEFUL),
        (PassKind::InputGradient, style::series(5)),
        (PassKind::WeightGradient, style::MATH),
        (PassKind::Overlapped, style::WAIT),
    ];
    let used = |kind: PassKind| {
        let mut passes = trace.ranks.iter().flat_map(|rank| &rank.passes);
        passes.any(|pass| pass.kind == kind)
    };
    Gantt {
        title: format!(
            "Stages are inside a pass for {} % of the time",
            crate::format::percent(share)
        ),
        subtitle: format!("{scenario}: one rank of each stage; numbers are micro-batches"),
        axis: Axis::linear("ms"),
        rows: trace.ranks.iter().map(rank_name).collect(),
        spans,
        legend: kinds
            .into_iter()
            .filter(|(kind, _)| used(*kind))
            .map(|(kind, ink)| (ink, pass_name(kind).to_owned()))
            .collect(),
    }
    .picture()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rackflow_simulator::{Message, TracedPass};
    use rackflow_units::Bytes;

    fn at(picos: u64) -> SimTime {
        SimTime::from_picos(picos)
    }

    fn span(stream: Stream, start: u64, end: u64, nic: u64) -> Span {
        Span {
            stream,
            label: "work",
            micro_batch: 3,
            start: at(start),
            end: at(end),
            nvlink: Bytes::ZERO,
            nic: Bytes::new(nic),
        }
    }

    fn rank(rank: u32, spans: Vec<Span>) -> TracedRank {
        TracedRank {
            rank,
            stage: rank,
            spans,
            passes: vec![TracedPass {
                kind: PassKind::Forward,
                micro_batch: 3,
                chunk: 0,
                start: at(0),
                end: at(5_000_000),
                keeps: 2_000_000_000,
                frees: 0,
            }],
            resident: Bytes::new(1_000_000_000),
        }
    }

    fn two_ranks() -> Trace {
        let compute = span(Stream::Compute, 0, 5_000_000, 0);
        let send = span(Stream::SendActivation, 5_000_000, 7_000_000, 100_000);
        let receive = span(Stream::ReceiveActivation, 5_000_000, 7_000_000, 0);
        Trace {
            ranks: vec![
                rank(0, vec![compute, send]),
                rank(1, vec![compute, receive]),
            ],
            messages: vec![Message {
                from: (0, 1),
                to: (1, 1),
            }],
        }
    }

    #[test]
    fn a_perfetto_trace_reads_back_with_its_arrow() {
        let bytes = to_perfetto(&two_ranks());
        let trace = proto::Trace::decode(bytes.as_slice()).expect("what is written can be read");
        let events: Vec<&proto::TrackEvent> = trace
            .packet
            .iter()
            .filter_map(|packet| packet.track_event.as_ref())
            .collect();
        let sent: Vec<u64> = events
            .iter()
            .flat_map(|event| event.flow_ids.clone())
            .collect();
        let received = events
            .iter()
            .flat_map(|event| event.terminating_flow_ids.clone());
        assert_eq!(sent, received.collect::<Vec<u64>>());
        assert_eq!(sent, [1]);
        let count = |kind| {
            events
                .iter()
                .filter(|event| event.r#type == Some(kind))
                .count()
        };
        assert_eq!(count(SLICE_BEGIN), count(SLICE_END));
        assert_eq!(count(SLICE_BEGIN), 6, "four spans and two passes");
        // Every event is on a track that was described.
        let described: Vec<u64> = trace
            .packet
            .iter()
            .filter_map(|packet| packet.track_descriptor.as_ref()?.uuid)
            .collect();
        assert!(
            events
                .iter()
                .all(|event| described.contains(&event.track_uuid.unwrap_or(0)))
        );
    }

    #[test]
    fn slices_of_one_track_do_not_overlap_in_whole_nanoseconds() {
        // Back to back at instants that are no whole nanoseconds.
        let ends: Vec<u64> = (0..200_u64)
            .map(|at| at * 1_234_567 + at * at * 377)
            .collect();
        let spans = ends
            .windows(2)
            .map(|pair| span(Stream::Compute, pair[0], pair[1], 0))
            .collect();
        let trace = Trace {
            ranks: vec![rank(0, spans)],
            messages: Vec::new(),
        };
        let json: Value = serde_json::from_str(&to_chrome_json(&trace)).expect("JSON");
        let events = json["traceEvents"].as_array().expect("events");
        let nanos = |event: &Value, key: &str| {
            let micros = event[key].as_f64().expect("a number");
            let nanos = (micros * 1e3).round();
            assert!(
                (nanos / 1e3 - micros).abs() < 1e-9,
                "{key} {micros} is in whole nanoseconds"
            );
            nanos as u64
        };
        let compute: Vec<(u64, u64)> = events
            .iter()
            .filter(|event| event["ph"] == "X" && event["tid"] == 1 + Stream::Compute as u64)
            .map(|event| (nanos(event, "ts"), nanos(event, "dur")))
            .collect();
        assert_eq!(compute.len(), 199);
        assert!(
            compute
                .windows(2)
                .all(|pair| pair[0].0 + pair[0].1 == pair[1].0)
        );
    }

    #[test]
    fn ranks_sort_by_name_as_by_number() {
        let mut trace = two_ranks();
        trace.ranks[1].rank = 128;
        let mut names = track_names(&trace);
        assert_eq!(
            names,
            ["rank 000, stage 1", "rank 128, stage 2"].map(str::to_owned)
        );
        names.sort();
        assert_eq!(names, track_names(&trace));
    }

    #[test]
    fn counters_follow_bytes_and_activations() {
        let trace = two_ranks();
        let [_, (_, _, _, nic), (_, _, _, memory)] = counters(&trace.ranks[0]);
        // 100 kB in 2 us are 50 GB/s.
        assert_eq!(
            nic,
            [(at(0), 0.0), (at(5_000_000), 50.0), (at(7_000_000), 0.0)]
        );
        assert_eq!(memory, [(at(0), 3.0), (at(5_000_000), 3.0)]);
    }

    #[test]
    fn the_pipeline_is_drawn_with_its_micro_batches() {
        let svg = pipeline(&two_ranks(), "a run").svg();
        assert!(
            svg.contains("rank 0, stage 1") && svg.contains("forward"),
            "{svg}"
        );
    }
}
