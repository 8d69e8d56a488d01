//! Quantities with their units: time, bytes, bandwidth, FLOPs, power, money, and counts of things.
//!
//! Every quantity is a newtype over one number in one base unit, so that gigabits never meet
//! gigabytes. Text is parsed with its unit ("400 Gbit/s"), and a bare number is refused with the
//! units that would be right. Time is integer picoseconds and sizes are integer bytes; wherever a
//! rate meets a size the direction of rounding is written at the function.

mod count;
mod parse;
mod precision;
mod quantity;
mod time;

pub use count::counted;
pub use parse::ParseQuantityError;
pub use precision::Precision;
pub use quantity::{
    Bandwidth, Bytes, FlopRate, Flops, Frequency, Power, RequestRate, Usd, UsdPerHour,
    UsdPerKilowattHour,
};
pub use time::{SimDuration, SimTime};
