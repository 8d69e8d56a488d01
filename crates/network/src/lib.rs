//! What a communication asks of the links, and flows that share them.
//!
//! [`collective`], [`send_recv`] and [`expert_exchange`] turn an operation, a size and the
//! [`GroupSpan`](rackflow_topology::GroupSpan) of its ranks into a [`Demand`]: a latency, and how long it keeps each rank's NVLink
//! port and NIC busy on idle links. [`FlowNet`] then runs demands beside each other: flows that
//! meet at a port share it.
//!
//! **Invariant:** this crate never schedules. It answers when a flow ends and is told that time
//! has passed; the clock and the queue belong to the simulator.

mod collective;
mod demand;
mod engine_kernels;
mod exchange;
mod fair;
mod flow;
mod links;
mod program;
mod shares;
mod sms;

pub use collective::{CollectiveOp, collective, collective_by, collective_with, send_recv, tuned};
pub use demand::{Algorithm, Demand, Protocol};
pub use engine_kernels::{direct_exchange, own_all_reduce};
pub use exchange::{ExchangeStyle, TokenExchange, expert_exchange, ranks_visited};
pub use fair::FairNet;
pub use flow::{Crossing, FlowId, FlowNet, Port};
pub use links::{HOST_LAUNCH, Links, Shape, TIMED_LAUNCH};
pub use program::{Edge, Message, Outline, Pattern, Phase, Program, Teams, Via};
pub use sms::{DISPATCH_SMS, ExchangeWay};
