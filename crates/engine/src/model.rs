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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EventClass;
    use rackflow_units::SimDuration;

    /// Each event causes one at the same instant and one a tick later, `left` times.
    #[derive(Default)]
    struct Echo {
        heard: Vec<u64>,
    }

    struct Sounded {
        echoes_left: u32,
        is_echo: bool,
    }

    impl Model for Echo {
        type Event = Sounded;

        fn handle(&mut self, event: Sounded, queue: &mut EventQueue<Sounded>) {
            self.heard.push(queue.now().as_picos());
            if event.is_echo || event.echoes_left == 0 {
                return;
            }
            let next = Sounded {
                echoes_left: event.echoes_left - 1,
                is_echo: false,
            };
            queue.schedule(
                queue.now() + SimDuration::from_picos(1),
                EventClass(0),
                next,
            );
            queue.schedule(
                queue.now(),
                EventClass(0),
                Sounded {
                    echoes_left: 0,
                    is_echo: true,
                },
            );
        }
    }

    fn queue() -> EventQueue<Sounded> {
        let mut queue = EventQueue::new();
        let first = Sounded {
            echoes_left: 3,
            is_echo: false,
        };
        queue.schedule(SimTime::ZERO, EventClass(0), first);
        queue
    }

    #[test]
    fn run_ends_when_nothing_is_pending() {
        let (mut echo, mut queue) = (Echo::default(), queue());
        let summary = run(&mut echo, &mut queue);
        assert_eq!(echo.heard, [0, 0, 1, 1, 2, 2, 3]);
        assert_eq!(
            summary,
            RunSummary {
                events_handled: 7,
                end: SimTime::from_picos(3)
            }
        );
        assert_eq!(run(&mut echo, &mut queue).events_handled, 0);
    }

    #[test]
    fn run_until_includes_the_last_instant_and_can_go_on() {
        let (mut echo, mut queue) = (Echo::default(), queue());
        let summary = run_until(&mut echo, &mut queue, SimTime::from_picos(1));
        assert_eq!(echo.heard, [0, 0, 1, 1], "also what was caused at 1 ps");
        assert_eq!(summary.end, SimTime::from_picos(1));
        assert_eq!(run(&mut echo, &mut queue).events_handled, 3);
    }
}
