//! What the event loop keeps of every rank, of every communication and of every channel.

use crate::compiled::Compiled;
use rackflow_engine::EventId;
use rackflow_plan::{Accounts, Cause, Peer, Stream, TransferId};
use rackflow_topology::Level;
use rackflow_units::SimTime;

/// The computation that an entity runs.
#[derive(Clone, Copy)]
pub(crate) struct Running {
    pub task: u32,
    pub started: SimTime,
    pub updated: SimTime,
    /// Kernel time over the nominal, fixed point: of this entity, and of this run of kernels.
    pub slowdown: u64,
    /// Work left, in picoseconds of nominal time.
    pub left: u64,
    /// Nominal time of the whole, and its time under the present communication.
    pub nominal: u64,
    pub stretched: u64,
    /// When the device is through, if the host is in time.
    pub natural: SimTime,
    /// The host issues the last kernel no earlier.
    pub issued: SimTime,
    pub event: EventId,
}

/// One bit per stream.
#[derive(Clone, Copy, Default)]
pub(crate) struct Streams(u16);

const _: () = assert!(Stream::COUNT <= u16::BITS as usize);

impl Streams {
    pub fn contains(self, stream: usize) -> bool {
        self.0 & 1 << stream != 0
    }

    pub fn insert(&mut self, stream: usize) {
        self.0 |= 1 << stream;
    }

    pub fn remove(&mut self, stream: usize) {
        self.0 &= !(1 << stream);
    }
}

pub(crate) struct State {
    pub busy: Streams,
    /// The host will issue the head of these at a time that is scheduled.
    pub waking: Streams,
    pub held_sms: u32,
    pub position: [u32; Stream::COUNT],
    pub running: Option<Running>,
    /// Memory bandwidth that communication takes, of `ONE`.
    pub memory_share: u64,
    pub host_time: SimTime,
    pub host_base: u32,
    pub idle_from: SimTime,
    /// The last wait that was booked since something ran: until when, since when, for what.
    pub last_wait: Option<(SimTime, SimTime, Blocker)>,
    pub finished: SimTime,
    /// When the communication at the head of each stream was ready to start.
    pub ready: [SimTime; Stream::COUNT],
    pub accounts: Accounts,
}

impl Default for State {
    fn default() -> Self {
        Self {
            busy: Streams::default(),
            waking: Streams::default(),
            held_sms: 0,
            position: [0; Stream::COUNT],
            running: None,
            memory_share: 0,
            host_time: SimTime::ZERO,
            host_base: 0,
            idle_from: SimTime::ZERO,
            last_wait: None,
            finished: SimTime::ZERO,
            ready: [SimTime::ZERO; Stream::COUNT],
            accounts: Accounts::default(),
        }
    }
}

impl State {
    /// When the host has issued everything before `task`. What it issued before it last waited was
    /// issued by then.
    pub fn issued(&self, compiled: &Compiled<'_>, task: u32) -> SimTime {
        let base = compiled.issue[self.host_base as usize];
        self.host_time + compiled.issue[task as usize].saturating_sub(base)
    }
}

/// A communication on its way.
#[derive(Clone, Copy)]
pub(crate) struct Active {
    pub event: EventId,
    /// The queue of `event`.
    pub home: u32,
    pub started: SimTime,
    pub transfer: TransferId,
    pub level: Level,
    /// Over NVLink and over NICs, of each rank that sends.
    pub bytes: [u64; 2],
    pub what: What,
}

#[derive(Clone, Copy)]
pub(crate) enum What {
    Collective {
        group: u32,
        stream: Stream,
    },
    Message {
        from: u32,
        to: u32,
        peer: Peer,
        sending: Stream,
        receiving: Stream,
    },
    /// Between a rank and its host's memory.
    Copy {
        entity: u32,
        stream: Stream,
    },
}

/// Both ends of a message must be ready before it starts.
#[derive(Clone, Copy, Default)]
pub(crate) struct Channel {
    pub sender: Option<(u32, TransferId, u32, Peer)>,
    pub receiver: bool,
}

/// What ended an idle interval of the compute stream.
#[derive(Clone, Copy)]
pub(crate) struct Blocker {
    pub ready: SimTime,
    pub started: SimTime,
    /// What waiting for it is.
    pub exposed: Cause,
    pub message: bool,
}

impl Blocker {
    /// Which of several that end at one instant counts: the lowest.
    pub fn rank(&self) -> (bool, Cause, SimTime, SimTime) {
        (self.message, self.exposed, self.started, self.ready)
    }
}
