//! The loop: pop, handle, repeat.

use crate::EventQueue;
use rackflow_units::SimTime;

/// What a simulation does when something has happened.
///
/// The event says what has happened and [`EventQueue::now`] says when. An enum of events makes a
/// forgotten case a compile error.
pub trait Model {
    /// Everything that can happen, usually an enum.
    type Event;

    /// Reacts to `event` at `queue.now()`, and may schedule and cancel others.
    fn handle(&mut self, event: Self::Event, queue: &mut EventQueue<Self::Event>);
}

/// What one call of [`run`] or [`run_until`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct RunSummary {
    /// Events that this call handled. Cancelled events do not count.
    pub events_handled: u64,
    /// The clock when the call returned: the time of the last event handled.
    pub end: SimTime,
}

/// Runs `model` until nothing is pending.
pub fn run<M: Model>(model: &mut M, queue: &mut EventQueue<M::Event>) -> RunSummary {
    let before = queue.events_handled();
    while let Some((_, event)) = queue.pop() {
        model.handle(event, queue);
    }
    RunSummary {
        events_handled: queue.events_handled() - before,
        end: queue.now(),
    }
}

/// Runs `model` until nothing is pending at or before `last`.
///
/// Events at `last` itself are handled, also those which they cause at that same instant. The
/// clock stops at the last event handled, so a later call may go on from there.
pub fn run_until<M: Model>(
    model: &mut M,
    queue: &mut EventQueue<M::Event>,
    last: SimTime,
) -> RunSummary {
    let before = queue.events_handled();
    while queue.next_time().is_some_and(|next| next <= last) {
        let (_, event) = queue.pop().expect("an event is pending");
        model.handle(event, queue);
    }
    RunSummary {
        events_handled: queue.events_handled() - before,
        end: queue.now(),
    }
}
