//! A service over time: replicas with their steps and requests, caches that move between them, and
//! counters of the cache and of the links.

use super::file::{Arrow, Group, Row, Slice, Stretch, TraceFile, summed};
use rackflow_simulator::serving::{
    Phase, ServiceTrace, TracedReplica, TracedRequest, TracedStep, TracedTransfer,
};
use rackflow_units::{SimDuration, SimTime};
use rackflow_workload::Role;
use std::collections::BTreeMap;

impl TraceFile<'_> {
    /// What chosen replicas of a service did: who arrived, and a group of tracks for each replica.
    pub fn of_service(trace: &ServiceTrace) -> Self {
        let arrows = arrows(trace);
        let widest = trace.replicas.iter().map(|replica| replica.replica).max();
        let width = widest.unwrap_or(0).to_string().len();
        let mut groups = vec![arrivals(trace, &arrows)];
        for replica in &trace.replicas {
            groups.push(of_replica(trace, replica, width, &arrows));
        }
        Self { groups }
    }
}

/// A place on the way of a request through the fleet, in the order in which it comes to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Arrival,
    Prompt,
    Sent,
    Received,
    Answer,
}

/// The arrow of each request at each place that is shown.
type Arrows = BTreeMap<(u64, Place), Arrow>;

/// The way of each request: from its arrival to its prompt, over the links to where it is answered.
fn arrows(trace: &ServiceTrace) -> Arrows {
    let shown = |replica: u32| trace.replicas.iter().any(|known| known.replica == replica);
    let mut places: BTreeMap<u64, Vec<Place>> = BTreeMap::new();
    for request in &trace.requests {
        let way = places.entry(request.number).or_default();
        way.push(Place::Arrival);
        let (before, after) = parts(request);
        if shown(request.prefill_replica) && first(before, Phase::Prefill).is_some() {
            way.push(Place::Prompt);
        }
        if shown(request.decode_replica) && first(after, Phase::Decode).is_some() {
            way.push(Place::Answer);
        }
    }
    for transfer in &trace.transfers {
        let Some(way) = places.get_mut(&transfer.request) else {
            continue;
        };
        way.extend(shown(transfer.from).then_some(Place::Sent));
        way.extend(shown(transfer.to).then_some(Place::Received));
    }
    let mut arrows = Arrows::new();
    for (number, mut way) in places {
        way.sort_unstable();
        way.dedup();
        // An arrow of one place goes nowhere.
        let last = way.len() - 1;
        for (at, place) in way.into_iter().enumerate().filter(|_| last > 0) {
            let arrow = match at {
                0 => Arrow::Starts(number + 1),
                at if at == last => Arrow::Ends(number + 1),
                _ => Arrow::Passes(number + 1),
            };
            arrows.insert((number, place), arrow);
        }
    }
    arrows
}

type Phases<'t> = &'t [(Phase, SimTime, SimTime)];

/// What a request did where its prompt was computed, and where it was answered. Of one replica that
/// does both the parts follow each other.
fn parts(request: &TracedRequest) -> (Phases<'_>, Phases<'_>) {
    let decodes = |(phase, ..): &(Phase, SimTime, SimTime)| *phase == Phase::Decode;
    let at = request.phases.iter().position(decodes);
    request.phases.split_at(at.unwrap_or(request.phases.len()))
}

fn first(phases: Phases<'_>, wanted: Phase) -> Option<usize> {
    phases.iter().position(|(phase, ..)| *phase == wanted)
}

/// The clock of viewers, in picoseconds.
const NANO: u64 = 1000;

/// Requests as they come.
fn arrivals<'t>(trace: &ServiceTrace, arrows: &Arrows) -> Group<'t> {
    let mut slices: Vec<Slice<'t>> = trace
        .requests
        .iter()
        .filter_map(|request| {
            let (_, came, _) = request.phases.first()?;
            Some(Slice {
                track: 1,
                name: format!("request {}", request.number).into(),
                args: tokens(request),
                start: *came,
                end: *came,
                arrow: at(arrows, request.number, Place::Arrival),
            })
        })
        .collect();
    slices.sort_by_key(|slice| slice.start);
    // A nanosecond each, one after the other: arrows hang on slices that last.
    let mut free = SimTime::ZERO;
    for slice in &mut slices {
        let whole = SimTime::from_picos(slice.start.as_picos() / NANO * NANO);
        slice.start = whole.max(free);
        slice.end = slice.start + SimDuration::from_picos(NANO);
        free = slice.end;
    }
    Group {
        // Viewers sort groups by name: before the replicas.
        name: "arrivals".to_owned(),
        rows: vec![Row::Track(1, "arrivals".to_owned())],
        slices,
    }
}

fn at(arrows: &Arrows, number: u64, place: Place) -> Arrow {
    arrows.get(&(number, place)).copied().unwrap_or_default()
}

fn tokens(request: &TracedRequest) -> [Option<(&'static str, u64)>; 3] {
    [
        Some(("request", request.number)),
        Some(("input_tokens", request.input_tokens.into())),
        Some(("output_tokens", request.output_tokens.into())),
    ]
}

/// The tracks of one replica.
fn of_replica<'t>(
    trace: &ServiceTrace,
    replica: &TracedReplica,
    width: usize,
    arrows: &Arrows,
) -> Group<'t> {
    let role = match replica.role {
        Role::Both => "prefill and decode",
        Role::Prefill => "prefill",
        Role::Decode => "decode",
    };
    let mut group = Group {
        name: format!(
            "replica {:0width$}, {role}, GPUs {} to {}",
            replica.replica,
            replica.first_gpu,
            replica.first_gpu + replica.gpus - 1
        ),
        rows: vec![Row::Track(1, "steps".to_owned())],
        slices: replica.steps.iter().map(step).collect(),
    };
    counters(&mut group, trace, replica);
    let mine = |end: fn(&TracedTransfer) -> u32| {
        let transfers = trace.transfers.iter();
        transfers.filter(move |transfer| end(transfer) == replica.replica)
    };
    let moved =
        |transfer: &TracedTransfer, place| cache(transfer, at(arrows, transfer.request, place));
    let sent = mine(|transfer| transfer.from).map(|transfer| moved(transfer, Place::Sent));
    group.side_by_side("KV sent", sent.collect());
    let received = mine(|transfer| transfer.to).map(|transfer| moved(transfer, Place::Received));
    group.side_by_side("KV received", received.collect());
    let requests = trace.requests.iter();
    let stretches = requests.filter_map(|request| held(request, replica.replica, arrows));
    group.side_by_side("requests", stretches.collect());
    group
        .slices
        .sort_by_key(|slice| (slice.track, slice.start, slice.end));
    group
}

fn step<'t>(step: &TracedStep) -> Slice<'t> {
    let name = match (step.prompt_tokens > 0, step.sequences > 0, step.steps) {
        (true, true, _) => "prefill and decode".into(),
        (true, false, _) => "prefill".into(),
        (false, _, 1) => "decode".into(),
        (false, _, steps) => format!("{steps} decode steps").into(),
    };
    Slice {
        track: 1,
        name,
        args: [
            Some(("steps", step.steps)),
            Some(("prompt_tokens", step.prompt_tokens)),
            Some(("sequences", step.sequences)),
        ],
        start: step.start,
        end: step.end,
        arrow: Arrow::None,
    }
}

/// A cache on its way, from its first part to its last.
fn cache<'t>(transfer: &TracedTransfer, arrow: Arrow) -> Stretch<'t> {
    let start = transfer
        .parts
        .first()
        .map_or(SimTime::ZERO, |part| part.start);
    let known = |end: SimTime, start: SimTime| if end == SimTime::MAX { start } else { end };
    let end = transfer
        .parts
        .last()
        .map_or(start, |part| known(part.end, part.start));
    let bytes = transfer.parts.iter().map(|part| part.bytes).sum();
    Stretch {
        start,
        end,
        slices: vec![Slice {
            track: 0,
            name: format!("cache of {}", transfer.request).into(),
            args: [
                Some(("request", transfer.request)),
                Some(("bytes", bytes)),
                Some(("parts", transfer.parts.len() as u64)),
            ],
            start,
            end,
            arrow,
        }],
    }
}

/// What a request did on this replica.
fn held<'t>(request: &TracedRequest, replica: u32, arrows: &Arrows) -> Option<Stretch<'t>> {
    let (before, after) = parts(request);
    let (prompt, answer) = (first(before, Phase::Prefill), first(after, Phase::Decode));
    let mut slices = Vec::new();
    let mut add = |phases: Phases<'_>, marked: Option<usize>, place: Place| {
        for (index, (phase, start, end)) in phases.iter().enumerate() {
            let arrow = match marked {
                Some(marked) if marked == index => at(arrows, request.number, place),
                _ => Arrow::None,
            };
            slices.push(Slice {
                track: 0,
                name: format!("{} {}", phase.key(), request.number).into(),
                args: tokens(request),
                start: *start,
                end: *end,
                arrow,
            });
        }
    };
    if request.prefill_replica == replica {
        add(before, prompt, Place::Prompt);
    }
    if request.decode_replica == replica {
        add(after, answer, Place::Answer);
    }
    let (start, end) = (slices.first()?.start, slices.last()?.end);
    Some(Stretch { start, end, slices })
}

/// What the replica holds, and what its GPUs send.
fn counters(group: &mut Group<'_>, trace: &ServiceTrace, replica: &TracedReplica) {
    let levels = replica.levels.iter();
    let cache = levels.clone().map(|level| (level.at, level.kv_bytes / 1e9));
    let running = levels
        .clone()
        .map(|level| (level.at, f64::from(level.running)));
    let waiting = levels.map(|level| (level.at, f64::from(level.waiting)));
    let mut add = |name, unit, values| {
        let number = group.rows.len() as u64 + 1;
        group.rows.push(Row::Counter((number, name, unit, values)));
    };
    add("KV cache", "GB", cache.collect());
    add("running", "requests", running.collect());
    add("waiting", "requests", waiting.collect());
    let sent: Vec<&TracedTransfer> = trace
        .transfers
        .iter()
        .filter(|transfer| transfer.from == replica.replica)
        .collect();
    for (name, nvlink) in [("NVLink out", true), ("NIC out", false)] {
        let steps = replica.steps.iter().map(|step| {
            let bytes = if nvlink { step.nvlink } else { step.nic };
            (step.start, step.end, bytes)
        });
        let over = |transfer: &&&TracedTransfer| {
            (transfer.level <= rackflow_topology::Level::NvLink) == nvlink
        };
        let parts = sent.iter().filter(over).flat_map(|transfer| {
            let parts = transfer.parts.iter();
            parts.map(|part| (part.start, part.end, part.bytes as f64))
        });
        let sending = steps
            .chain(parts)
            .filter(|(start, end, bytes)| *bytes > 0.0 && end > start && *end < SimTime::MAX);
        let changes: Vec<(SimTime, f64)> = sending
            .flat_map(|(start, end, bytes)| {
                let rate = bytes / end.since(start).as_secs_f64() / 1e9;
                [(start, rate), (end, -rate)]
            })
            .collect();
        if !changes.is_empty() {
            let mut values = summed(0.0, changes.into_iter());
            // A window begins where it begins, and not with the run.
            if values[0] == (SimTime::ZERO, 0.0) {
                values.remove(0);
            }
            add(name, "GB/s", values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::tests::{BEGINS, ENDS, count, read};
    use super::*;
    use rackflow_simulator::serving::{TracedLevel, TracedPart};
    use rackflow_topology::Level;

    fn ms(at: u64) -> SimTime {
        SimTime::from_picos(at * 1_000_000_000)
    }

    fn replica(replica: u32, role: Role, step: (u64, u64)) -> TracedReplica {
        TracedReplica {
            replica,
            role,
            first_gpu: 8 * replica,
            gpus: 8,
            kv_bytes: 1e11,
            steps: vec![TracedStep {
                start: ms(step.0),
                end: ms(step.1),
                steps: 1,
                prompt_tokens: u64::from(role == Role::Prefill) * 1000,
                sequences: u64::from(role == Role::Decode),
                nvlink: 0.0,
                nic: 0.0,
            }],
            levels: vec![TracedLevel {
                at: ms(step.0),
                kv_bytes: 2e9,
                running: 1,
                waiting: 0,
            }],
        }
    }

    /// Two requests that overlap, from a replica of prefill to one of decode.
    fn service() -> ServiceTrace {
        let request = |number, late: u64| TracedRequest {
            number,
            input_tokens: 1000,
            output_tokens: 10,
            prefill_replica: 0,
            decode_replica: 1,
            phases: vec![
                (Phase::Queued, ms(late), ms(late + 1)),
                (Phase::Prefill, ms(late + 1), ms(late + 5)),
                (Phase::Transfer, ms(late + 5), ms(late + 7)),
                (Phase::Decode, ms(late + 7), ms(late + 9)),
            ],
        };
        let transfer = |request, late: u64| TracedTransfer {
            request,
            from: 0,
            to: 1,
            level: Level::Leaf,
            parts: vec![TracedPart {
                start: ms(late + 5),
                end: ms(late + 7),
                bytes: 100_000_000,
            }],
        };
        ServiceTrace {
            replicas: vec![
                replica(0, Role::Prefill, (1, 5)),
                replica(1, Role::Decode, (7, 9)),
            ],
            requests: vec![request(0, 0), request(1, 1)],
            transfers: vec![transfer(0, 0), transfer(1, 1)],
            full_at: None,
        }
    }

    #[test]
    fn requests_are_arrows_from_arrival_over_the_links_to_their_answer() {
        let trace = service();
        let (events, tracks) = read(&TraceFile::of_service(&trace).to_perfetto());
        assert_eq!(count(&events, BEGINS), count(&events, ENDS));
        for number in [1, 2] {
            let on: Vec<&str> = events
                .iter()
                .filter(|event| event.flow_ids.contains(&number))
                .filter_map(|event| event.name.as_deref())
                .collect();
            let request = number - 1;
            let cache = format!("cache of {request}");
            assert_eq!(
                on,
                [
                    &format!("request {request}"),
                    &format!("prefill {request}"),
                    &cache,
                    &cache
                ]
            );
            let ends = events
                .iter()
                .find(|event| event.terminating_flow_ids == [number]);
            let name = ends.and_then(|event| event.name.clone());
            assert_eq!(name, Some(format!("decode {request}")));
        }
        // Readers of JSON hang arrows on slices that last.
        let json = TraceFile::of_service(&trace).to_chrome_json();
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        let mut slices = json["traceEvents"].as_array().expect("events").iter();
        assert!(slices.all(|event| event["ph"] != "X" || event["dur"].as_f64() > Some(0.0)));
        // What overlaps has tracks of its own.
        let named = |name: &str| {
            let names = tracks.iter().filter_map(|track| track.name.as_deref());
            names.filter(|known| *known == name).count()
        };
        assert_eq!(named("requests"), 2 + 2, "two beside each other on each");
        assert_eq!((named("KV sent"), named("KV received")), (2, 2));
    }

    #[test]
    fn parts_of_an_arrow_share_number_and_name_in_json() {
        let json = TraceFile::of_service(&service()).to_chrome_json();
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        let mut parts: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
        for event in json["traceEvents"].as_array().expect("events") {
            let kind = event["ph"].as_str().expect("a kind");
            if ["s", "t", "f"].contains(&kind) {
                let key = (event["id"].to_string(), event["name"].to_string());
                parts.entry(key).or_default().push(kind.to_owned());
            }
        }
        assert_eq!(parts.len(), 2);
        for kinds in parts.values() {
            assert_eq!(kinds, &["s", "t", "t", "t", "f"]);
        }
    }

    #[test]
    fn counters_follow_caches_on_the_links() {
        let trace = service();
        let file = TraceFile::of_service(&trace);
        let counter = |group: usize, wanted: &str| {
            let mut rows = file.groups[group].rows.iter();
            rows.find_map(|row| match row {
                Row::Counter((_, name, _, values)) if *name == wanted => Some(values.clone()),
                _ => None,
            })
        };
        // 100 MB in 2 ms each, from 5 to 7 ms and from 6 to 8 ms.
        let rates: Vec<(SimTime, f64)> =
            vec![(ms(5), 50.0), (ms(6), 100.0), (ms(7), 50.0), (ms(8), 0.0)];
        assert_eq!(counter(1, "NIC out"), Some(rates));
        assert_eq!(counter(2, "NIC out"), None);
        assert_eq!(counter(2, "KV cache"), Some(vec![(ms(7), 2.0)]));
    }
}
