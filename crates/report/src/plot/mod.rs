//! Pictures. This module owns the style of all of them: colours, type, axes, labels.
//!
//! A chart is data ([`Lines`], [`Bars`], [`Gantt`], [`Heat`]) and draws itself into a [`Picture`]:
//! a list of marks on a canvas, that [`Picture::svg`] and [`Picture::png`] hand to plotters. Titles
//! say the finding, axes carry their unit, curves are labelled where they end, and the colours stay
//! apart for readers who see fewer of them and on paper.

mod bars;
mod gantt;
mod heat;
mod lines;
mod links;
mod memory;
mod picture;
mod roofline;
mod scale;
mod serving;
pub mod style;
mod timeline;
mod topology;
mod waterfall;

pub use bars::{Bar, Bars, Part};
pub use gantt::{Gantt, Span};
pub use heat::Heat;
pub use lines::{Kind, Lines, Series};
pub use links::links;
pub use memory::memory;
pub use picture::{Anchor, Picture};
pub use roofline::roofline;
pub use scale::{Axis, Scale, Ticks};
pub use serving::{serving_links, serving_memory, serving_roofline};
pub use timeline::pipeline;
pub use topology::{topology, topology_of_parts};
pub use waterfall::{replay_waterfall, serving_waterfall, waterfall};
