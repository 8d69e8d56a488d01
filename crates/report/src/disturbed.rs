//! Slow GPUs and faulty links, in words, and what they cost.

use crate::format::{percent, seconds};
use rackflow_plan::Straggler;
use rackflow_topology::{FaultyLink, LinkFault, LinkState};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What does not work as it should, and what that costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Disturbed {
    /// Each slow GPU and each faulty link.
    pub faults: Vec<String>,
    /// Of a step, or of a request from end to end on average, in seconds.
    pub time_s: f64,
    /// The same where everything works, if it was simulated.
    pub undisturbed_time_s: Option<f64>,
}

impl Disturbed {
    /// What is wrong; `None` where nothing is. `time_s` is that of a step or a request.
    pub(crate) fn of(faults: &[LinkFault], stragglers: &[Straggler], time_s: f64) -> Option<Self> {
        let slow = |straggler: &Straggler| {
            format!(
                "GPU {} computes {} times as long",
                straggler.gpu, straggler.slowdown
            )
        };
        let all: Vec<String> = stragglers
            .iter()
            .map(slow)
            .chain(faults.iter().map(described))
            .collect();
        (!all.is_empty()).then_some(Self {
            faults: all,
            time_s,
            undisturbed_time_s: None,
        })
    }

    /// In one sentence; `what` is "a step" or "a request".
    pub(crate) fn sentence(&self, what: &str) -> String {
        let mut text = self.faults.join("; ");
        if let Some(whole) = self.undisturbed_time_s {
            let (with, without) = (seconds(self.time_s), seconds(whole));
            let change = self.time_s / whole - 1.0;
            if with == without {
                text.push_str(&format!(
                    ". {} takes {with} with and without",
                    capital(what)
                ));
            } else {
                let sign = if change < 0.0 { "-" } else { "+" };
                text.push_str(&format!(
                    ". {} takes {with} instead of {without} ({sign}{} %)",
                    capital(what),
                    percent(change.abs())
                ));
            }
        }
        text
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    })
}

/// "rail 3 is dead".
fn described(fault: &LinkFault) -> String {
    let (link, many) = match fault.link {
        FaultyLink::Nic(gpu) => (format!("the NIC of GPU {gpu}"), false),
        FaultyLink::Rail(rail) => (format!("rail {rail}"), false),
        FaultyLink::ScaleUp(gpu) => (format!("the scale-up links of GPU {gpu}"), true),
        FaultyLink::LeafUplinks(leaf) => (format!("the uplinks of leaf {leaf}"), true),
    };
    let (is, works) = if many {
        ("are", "work")
    } else {
        ("is", "works")
    };
    match fault.state {
        LinkState::Down => format!("{link} {is} dead"),
        LinkState::Degraded(part) => format!("{link} {works} at {} % of the rate", percent(part)),
        LinkState::Flapping(rhythm) => format!(
            "{link} {is} down for {} every {}",
            seconds(rhythm.down.as_secs_f64()),
            seconds(rhythm.every.as_secs_f64())
        ),
    }
}
