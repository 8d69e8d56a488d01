//! A trace for timeline viewers: Perfetto's own format, and the JSON of Chrome's trace viewer.
//!
//! One group per rank, one track per stream, arrows from a send to its receive, and counters of
//! the links and of memory; of a service one group per replica. <https://ui.perfetto.dev> opens both
//! formats.

mod file;
mod replay;
mod service;

pub use file::TraceFile;

use crate::plot::{Axis, Gantt, Picture, Span as Bar, style};
use rackflow_plan::{PassKind, Stream};
use rackflow_simulator::{Span, Trace, TracedRank};
use rackflow_units::SimTime;
use std::collections::BTreeMap;

use file::{Arrow, Counter, Group, Row, Slice, summed};

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

impl<'t> TraceFile<'t> {
    /// What chosen ranks did in a step.
    pub fn of_step(trace: &'t Trace) -> Self {
        let mut arrows = BTreeMap::new();
        for (id, message) in (1..).zip(&trace.messages) {
            arrows.insert(message.from, Arrow::Starts(id));
            arrows.insert(message.to, Arrow::Ends(id));
        }
        let ranks = trace.ranks.iter().enumerate().zip(track_names(trace));
        Self {
            groups: ranks
                .map(|((at, rank), name)| Group {
                    name,
                    rows: rows(rank),
                    slices: slices(rank, |span| {
                        arrows.get(&(at, span)).copied().unwrap_or_default()
                    }),
                })
                .collect(),
        }
    }
}

/// The rows of a rank: its passes, its streams, its counters.
fn rows(rank: &TracedRank) -> Vec<Row> {
    let mut rows = Vec::new();
    if !rank.passes.is_empty() {
        rows.push(Row::Track(PASSES, "passes".to_owned()));
    }
    let streams = used_streams(rank).into_iter();
    rows.extend(
        streams.map(|stream| Row::Track(1 + stream as u64, stream_name(stream).to_owned())),
    );
    rows.extend(counters(rank).map(Row::Counter));
    rows
}

/// What a rank did; `arrow` says which arrow each of its spans is on.
fn slices(traced: &TracedRank, arrow: impl Fn(usize) -> Arrow) -> Vec<Slice<'_>> {
    let micro_batch = |number: u32| [Some(("micro_batch", number.into())), None, None];
    let spans = traced.spans.iter().enumerate().map(|(at, span)| Slice {
        track: 1 + span.stream as u64,
        name: span.label.into(),
        args: micro_batch(span.micro_batch),
        start: span.start,
        end: span.end,
        arrow: arrow(at),
    });
    let passes = traced.passes.iter().map(|pass| Slice {
        track: PASSES,
        name: pass_name(pass.kind).into(),
        args: micro_batch(pass.micro_batch),
        start: pass.start,
        end: pass.end,
        arrow: Arrow::None,
    });
    let mut slices: Vec<Slice<'_>> = spans.chain(passes).collect();
    // A viewer that reads in order must meet the end of a slice before the start of the next.
    slices.sort_by_key(|slice| (slice.track, slice.start, slice.end));
    slices
}

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

fn used_streams(rank: &TracedRank) -> Vec<Stream> {
    let mut streams: Vec<Stream> = rank.spans.iter().map(|span| span.stream).collect();
    streams.sort_unstable();
    streams.dedup();
    streams
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
    use file::tests::{BEGINS, ENDS, count, read};
    use rackflow_simulator::{Message, TracedPass};
    use rackflow_units::Bytes;
    use serde_json::Value;

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
        let (events, _) = read(&TraceFile::of_step(&two_ranks()).to_perfetto());
        let sent: Vec<u64> = events
            .iter()
            .flat_map(|event| event.flow_ids.clone())
            .collect();
        let received = events
            .iter()
            .flat_map(|event| event.terminating_flow_ids.clone());
        assert_eq!(sent, received.collect::<Vec<u64>>());
        assert_eq!(sent, [1]);
        assert_eq!(count(&events, BEGINS), count(&events, ENDS));
        assert_eq!(count(&events, BEGINS), 6, "four spans and two passes");
    }

    #[test]
    fn an_arrow_leaves_before_it_arrives_whatever_the_order_of_ranks() {
        let mut trace = two_ranks();
        // From the later rank to the earlier one, at one instant.
        trace.messages[0] = Message {
            from: (1, 1),
            to: (0, 1),
        };
        let (events, _) = read(&TraceFile::of_step(&trace).to_perfetto());
        let leaves = events.iter().position(|event| event.flow_ids == [1]);
        let arrives = events
            .iter()
            .position(|event| event.terminating_flow_ids == [1]);
        assert!(
            leaves.is_some() && leaves < arrives,
            "{leaves:?} {arrives:?}"
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
        let json: Value =
            serde_json::from_str(&TraceFile::of_step(&trace).to_chrome_json()).expect("JSON");
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
