//! Events in time: a clock, a queue with a promised order, and random streams with labels.
//!
//! A simulation is a [`Model`] that handles one event after another. Handling an event may
//! schedule others, now or later, never earlier. The engine pops them in the order
//! **(time, class, sequence)**: first the earliest, at one instant the lowest [`EventClass`], and
//! within a class the one that was scheduled first. That order is a promise and not an accident of
//! a heap, so the same model with the same seed does the same thing on every machine.
//!
//! The engine does not know what an event means. It has no threads, no wall clock and no hash
//! tables, and it never looks inside an event.
//!
//! # Two clocks
//!
//! One clock ticks every 2 ns and one every 3 ns. At 6 ns both tick, and the class decides who is
//! first.
//!
//! ```
//! use rackflow_engine::{EventClass, EventQueue, Model, run_until};
//! use rackflow_units::{SimDuration, SimTime};
//!
//! /// The order of simultaneous events is part of the model: it is written once, here.
//! const FAST: EventClass = EventClass(0);
//! const SLOW: EventClass = EventClass(1);
//!
//! #[derive(Debug)]
//! enum Ticked {
//!     Fast,
//!     Slow,
//! }
//!
//! #[derive(Default)]
//! struct Clocks {
//!     log: Vec<String>,
//! }
//!
//! impl Model for Clocks {
//!     type Event = Ticked;
//!
//!     fn handle(&mut self, event: Ticked, queue: &mut EventQueue<Ticked>) {
//!         self.log.push(format!("{} {event:?}", queue.now()));
//!         let (period, class) = match event {
//!             Ticked::Fast => (SimDuration::from_nanos(2), FAST),
//!             Ticked::Slow => (SimDuration::from_nanos(3), SLOW),
//!         };
//!         queue.schedule(queue.now() + period, class, event);
//!     }
//! }
//!
//! let mut queue = EventQueue::new();
//! queue.schedule(SimTime::from_picos(3_000), SLOW, Ticked::Slow);
//! queue.schedule(SimTime::from_picos(2_000), FAST, Ticked::Fast);
//!
//! let mut clocks = Clocks::default();
//! let summary = run_until(&mut clocks, &mut queue, SimTime::from_picos(6_000));
//!
//! assert_eq!(clocks.log, ["2 ns Fast", "3 ns Slow", "4 ns Fast", "6 ns Fast", "6 ns Slow"]);
//! assert_eq!(summary.events_handled, 5);
//! assert_eq!(queue.len(), 2, "the ticks of 8 ns and 9 ns are still to come");
//! ```
//!
//! # Randomness
//!
//! Random numbers come from a [`RandomStream`], a tree of streams with labels: each consumer
//! derives its own, so a draw added in one place changes nothing elsewhere.
//!
//! ```
//! use rackflow_engine::RandomStream;
//!
//! let mut arrivals = RandomStream::root(7).derive("arrivals");
//! let mut jitter_of_rank_17 = RandomStream::root(7).derive("jitter").derive_index(17);
//! let gap_s = arrivals.exponential(0.5);
//! let slowdown = jitter_of_rank_17.lognormal(1.0, 0.02);
//! assert!(gap_s > 0.0 && slowdown > 0.0);
//! ```

mod event_queue;
mod model;
pub mod queues;
mod random;

pub use event_queue::{EventClass, EventId, EventQueue};
pub use model::{Model, RunSummary, run, run_until};
pub use random::RandomStream;
