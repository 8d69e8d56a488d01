//! A timeline as a file, whatever it shows: Perfetto's own format, and the JSON of Chrome's trace
//! viewer. <https://ui.perfetto.dev> opens both.

use prost::Message as _;
use rackflow_units::SimTime;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
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
/// Tracks of one group, at least.
const TRACKS: u64 = 32;

/// Viewers count nanoseconds.
fn nanos(time: SimTime) -> u64 {
    time.as_picos() / 1000
}

/// What a timeline viewer shows: groups of tracks, one below the other.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TraceFile<'t> {
    pub(super) groups: Vec<Group<'t>>,
}

/// Tracks that belong together: of a rank, of a replica.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Group<'t> {
    pub name: String,
    /// Its tracks and counters, as they are shown.
    pub rows: Vec<Row>,
    /// Of all tracks, those of each in the order of time.
    pub slices: Vec<Slice<'t>>,
}

/// One row of a group.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Row {
    /// Slices: its number in the group, and its name.
    Track(u64, String),
    /// Values over time.
    Counter(Counter),
}

/// A counter's number in the group, name, unit, and values, each from its instant on.
pub(super) type Counter = (u64, &'static str, &'static str, Vec<(SimTime, f64)>);

/// An arrow that a slice is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Arrow {
    /// None.
    #[default]
    None,
    /// The arrow of this number begins here.
    Starts(u64),
    /// It goes through.
    Passes(u64),
    /// It ends here.
    Ends(u64),
}

/// One slice of a track.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Slice<'t> {
    pub track: u64,
    pub name: Cow<'t, str>,
    /// Names and values beside it.
    pub args: [Option<(&'static str, u64)>; 3],
    pub start: SimTime,
    pub end: SimTime,
    pub arrow: Arrow,
}

/// A stretch of time that needs a track for itself, with its slices.
pub(super) struct Stretch<'t> {
    pub start: SimTime,
    pub end: SimTime,
    pub slices: Vec<Slice<'t>>,
}

/// The running sum of changes, one value per instant.
pub(super) fn summed(
    start: f64,
    changes: impl Iterator<Item = (SimTime, f64)>,
) -> Vec<(SimTime, f64)> {
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

impl<'t> Group<'t> {
    /// Puts stretches on as few tracks of this name as hold them side by side.
    pub fn side_by_side(&mut self, name: &str, mut stretches: Vec<Stretch<'t>>) {
        stretches.sort_by_key(|stretch| (stretch.start, stretch.end));
        // By the instant until which it is taken: the tracks.
        let mut taken: BTreeMap<(SimTime, u64), ()> = BTreeMap::new();
        for mut stretch in stretches {
            let free = taken.first_key_value().map(|(key, ())| *key);
            let track = match free.filter(|(until, _)| *until <= stretch.start) {
                Some(key) => {
                    taken.remove(&key);
                    key.1
                }
                None => {
                    let number = self.rows.len() as u64 + 1;
                    self.rows.push(Row::Track(number, name.to_owned()));
                    number
                }
            };
            taken.insert((stretch.end, track), ());
            for slice in &mut stretch.slices {
                slice.track = track;
            }
            self.slices.append(&mut stretch.slices);
        }
    }

    /// Rows that hold slices.
    fn tracks(&self) -> impl Iterator<Item = (u64, &str)> {
        self.rows.iter().filter_map(|row| match row {
            Row::Track(number, name) => Some((*number, name.as_str())),
            Row::Counter(_) => None,
        })
    }

    fn counters(&self) -> impl Iterator<Item = &Counter> {
        self.rows.iter().filter_map(|row| match row {
            Row::Track(..) => None,
            Row::Counter(counter) => Some(counter),
        })
    }

    /// The tracks of the group under one of its own, shown in this order. A process would put them in
    /// the order of their names, and groups in the order of their numbers of slices.
    fn describe(&self, packets: &mut Vec<proto::TracePacket>, at: u64, parent: u64) {
        let mut track = |descriptor| {
            packets.push(proto::TracePacket {
                trusted_packet_sequence_id: Some(SEQUENCE),
                track_descriptor: Some(descriptor),
                ..Default::default()
            });
        };
        track(proto::TrackDescriptor {
            uuid: Some(parent),
            name: Some(self.name.clone()),
            child_ordering: Some(EXPLICIT),
            sibling_order_rank: Some(at as i32),
            ..Default::default()
        });
        for (order, row) in (1..).zip(&self.rows) {
            let (number, name, unit) = match row {
                Row::Track(number, name) => (number, name.as_str(), None),
                Row::Counter((number, name, unit, _)) => (number, *name, Some(*unit)),
            };
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
        }
    }
}

impl TraceFile<'_> {
    /// The trace in Perfetto's format.
    pub fn to_perfetto(&self) -> Vec<u8> {
        let mut packets = vec![proto::TracePacket {
            trusted_packet_sequence_id: Some(SEQUENCE),
            track_descriptor: Some(proto::TrackDescriptor {
                uuid: Some(0),
                child_ordering: Some(EXPLICIT),
                ..Default::default()
            }),
            ..Default::default()
        }];
        // Tracks of all groups have numbers of their own.
        let widest = self.groups.iter().map(|group| group.rows.len() as u64);
        let tracks = widest.max().unwrap_or(0).max(TRACKS - 1) + 1;
        let parent = |at: usize| tracks * (at as u64 + 1);
        for (at, group) in self.groups.iter().enumerate() {
            group.describe(&mut packets, at as u64, parent(at));
        }
        for (at, slice) in self.in_time() {
            slice.write(&mut packets, parent(at) + slice.track);
        }
        for (at, group) in self.groups.iter().enumerate() {
            for (track, _, _, values) in group.counters() {
                for (time, value) in values {
                    packets.push(event(
                        *time,
                        proto::TrackEvent {
                            r#type: Some(COUNTER),
                            track_uuid: Some(parent(at) + track),
                            double_counter_value: Some(*value),
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

    /// All slices with the position of their group, in the order of time. Where an arrow leaves and
    /// arrives at one instant, it leaves first: a reader drops one that arrives before it has left.
    fn in_time(&self) -> Vec<(usize, &Slice<'_>)> {
        let groups = self.groups.iter().enumerate();
        let mut slices: Vec<(usize, &Slice<'_>)> = groups
            .flat_map(|(at, group)| group.slices.iter().map(move |slice| (at, slice)))
            .collect();
        slices.sort_by_key(|(_, slice)| {
            let arrow = match slice.arrow {
                Arrow::Starts(_) => 0,
                Arrow::None | Arrow::Passes(_) => 1,
                Arrow::Ends(_) => 2,
            };
            (slice.start, arrow)
        });
        slices
    }

    /// The trace as JSON for Chrome's trace viewer (`chrome://tracing`) and Perfetto.
    pub fn to_chrome_json(&self) -> String {
        // Whole nanoseconds, as the readers keep them: of an end rounded apart from the start of the
        // slice after it Perfetto would say that the two overlap, and drop one.
        let micros = |nanos: u64| nanos as f64 / 1e3;
        let mut events: Vec<Value> = Vec::new();
        for (at, group) in self.groups.iter().enumerate() {
            let pid = at + 1;
            events.push(json!({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": group.name}}));
            events.push(json!({"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}}));
            for (tid, name) in group.tracks() {
                events.push(json!({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}));
            }
            for (_, name, unit, values) in group.counters() {
                for (time, value) in values {
                    events.push(json!({"ph": "C", "name": format!("{name} [{unit}]"), "pid": pid, "ts": micros(nanos(*time)), "args": {"value": value}}));
                }
            }
        }
        for (at, slice) in self.in_time() {
            let (pid, tid, ts) = (at + 1, slice.track, micros(nanos(slice.start)));
            let dur = micros(nanos(slice.end) - nanos(slice.start));
            let args: Map<String, Value> = slice
                .args
                .iter()
                .flatten()
                .map(|(name, value)| ((*name).to_owned(), (*value).into()))
                .collect();
            events.push(json!({"ph": "X", "name": slice.name, "pid": pid, "tid": tid, "ts": ts, "dur": dur, "args": args}));
            // Readers join by number and name, so every part of an arrow has one name.
            let arrow = |ph: &str, id: u64| json!({"ph": ph, "cat": "message", "name": "message", "id": id, "pid": pid, "tid": tid, "ts": ts});
            match slice.arrow {
                Arrow::None => {}
                Arrow::Starts(id) => events.push(arrow("s", id)),
                Arrow::Passes(id) => events.push(arrow("t", id)),
                Arrow::Ends(id) => {
                    let mut end = arrow("f", id);
                    end["bp"] = "e".into();
                    events.push(end);
                }
            }
        }
        json!({"displayTimeUnit": "ms", "traceEvents": events}).to_string()
    }
}

impl Slice<'_> {
    /// Its begin and its end, on the track of this number.
    fn write(&self, packets: &mut Vec<proto::TracePacket>, track: u64) {
        let annotations = self
            .args
            .iter()
            .flatten()
            .map(|(name, value)| proto::DebugAnnotation {
                name: Some((*name).to_owned()),
                uint_value: Some(*value),
            });
        let (through, ends) = match self.arrow {
            Arrow::None => (None, None),
            Arrow::Starts(id) | Arrow::Passes(id) => (Some(id), None),
            Arrow::Ends(id) => (None, Some(id)),
        };
        let begin = proto::TrackEvent {
            r#type: Some(SLICE_BEGIN),
            track_uuid: Some(track),
            name: Some(self.name.clone().into_owned()),
            debug_annotations: annotations.collect(),
            flow_ids: through.into_iter().collect(),
            terminating_flow_ids: ends.into_iter().collect(),
            ..Default::default()
        };
        let end = proto::TrackEvent {
            r#type: Some(SLICE_END),
            track_uuid: Some(track),
            ..Default::default()
        };
        packets.push(event(self.start, begin));
        packets.push(event(self.end, end));
    }
}

fn event(time: SimTime, event: proto::TrackEvent) -> proto::TracePacket {
    proto::TracePacket {
        timestamp: Some(nanos(time)),
        trusted_packet_sequence_id: Some(SEQUENCE),
        track_event: Some(event),
        ..Default::default()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A file as a reader sees it: events, of which each is on a track that was described.
    pub fn read(bytes: &[u8]) -> (Vec<proto::TrackEvent>, Vec<proto::TrackDescriptor>) {
        let trace = proto::Trace::decode(bytes).expect("what is written can be read");
        let tracks: Vec<proto::TrackDescriptor> = trace
            .packet
            .iter()
            .filter_map(|packet| packet.track_descriptor.clone())
            .collect();
        let known: Vec<Option<u64>> = tracks.iter().map(|track| track.uuid).collect();
        let events: Vec<proto::TrackEvent> = trace
            .packet
            .into_iter()
            .filter_map(|packet| packet.track_event)
            .collect();
        assert!(events.iter().all(|event| known.contains(&event.track_uuid)));
        (events, tracks)
    }

    /// Events of a kind.
    pub fn count(events: &[proto::TrackEvent], kind: i32) -> usize {
        events
            .iter()
            .filter(|event| event.r#type == Some(kind))
            .count()
    }

    pub const BEGINS: i32 = SLICE_BEGIN;
    pub const ENDS: i32 = SLICE_END;
}
