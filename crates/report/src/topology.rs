//! A cluster and its routes in words.

use crate::format::{number, significant};
use crate::paint::{Ink, Style};
use rackflow_topology::{Hop, Level, PeerSurvey, RouteTrace, Routing, Survey, TierSurvey};
use rackflow_units::counted;

/// A rate of a network cable, as its data sheet has it.
pub(crate) fn gigabits(bytes_per_s: u64) -> String {
    let bits = bytes_per_s as f64 * 8.0;
    let (value, unit) = match bits {
        v if v >= 0.9995e9 => (v / 1e9, "Gbit/s"),
        v if v >= 0.9995e6 => (v / 1e6, "Mbit/s"),
        v => (v / 1e3, "kbit/s"),
    };
    if value < 100.0 {
        format!("{} {unit}", trimmed(value))
    } else {
        format!("{} {unit}", number(value, 0))
    }
}

/// The power of a rack, or of what stands for one.
fn power(watts: f64) -> String {
    if watts < 999.5 {
        format!("{} W", number(watts, 0))
    } else {
        format!("{} kW", number(watts / 1e3, 0))
    }
}

/// A rate of scale-up links and of sums.
pub(crate) fn gigabytes(bytes_per_s: u64) -> String {
    let value = bytes_per_s as f64;
    match value {
        v if v >= 0.9995e15 => format!("{} PB/s", significant(v / 1e15)),
        v if v >= 0.9995e12 => format!("{} TB/s", significant(v / 1e12)),
        v if v >= 0.9995e8 => format!("{} GB/s", significant(v / 1e9)),
        v => format!("{} MB/s", significant(v / 1e6)),
    }
}

fn microseconds(ns: f64) -> String {
    if ns == 0.0 {
        "0".into()
    } else if ns < 1e6 {
        format!("{} us", number(ns / 1e3, 2))
    } else {
        format!("{} ms", number(ns / 1e6, 2))
    }
}

pub(crate) fn count(n: impl Into<u64>) -> String {
    number(n.into() as f64, 0)
}

/// How an oversubscription reads.
pub(crate) fn blocking(oversubscription: f64) -> String {
    if (oversubscription - 1.0).abs() < 0.005 {
        "non-blocking".into()
    } else if oversubscription < 1.0 {
        format!(
            "non-blocking, {} times as wide",
            trimmed(1.0 / oversubscription)
        )
    } else {
        format!("{}:1 oversubscribed", trimmed(oversubscription))
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

pub(crate) fn fabric_name(kind: &str) -> String {
    match kind {
        "fat_tree" => "fat tree".into(),
        "rail_optimized" => "rail-optimised tree".into(),
        "multi_plane_fat_tree" => "multi-plane fat tree".into(),
        "rail_only" => "rail-only fabric".into(),
        "dragonfly_plus" => "Dragonfly+".into(),
        other => other.replace('_', " "),
    }
}

fn level_name(level: Level, direct: bool) -> &'static str {
    match level {
        Level::Local => "itself",
        Level::NvLink => "scale-up domain",
        Level::Leaf => "leaf",
        Level::Spine => "spine",
        Level::Core if direct => "between groups",
        Level::Core => "core",
    }
}

struct Lines<'s> {
    text: String,
    style: &'s Style,
}

impl Lines<'_> {
    fn line(&mut self, text: &str) {
        self.text.push_str(text.trim_end());
        self.text.push('\n');
    }

    fn title(&mut self, title: &str) {
        self.text.push('\n');
        let title = self.style.paint(Ink::Strong, title);
        self.line(&title);
    }

    fn entry(&mut self, name: &str, text: &str) {
        self.line(&format!("  {name:<18}{text}"));
    }

    fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        let widths: Vec<usize> = (0..head.len())
            .map(|column| {
                let cells = rows.iter().map(|row| row[column].chars().count());
                cells
                    .chain([head[column].chars().count()])
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let line = |cells: &[String]| {
            let mut text = String::new();
            for (column, cell) in cells.iter().enumerate() {
                let gap = " ".repeat(widths[column] - cell.chars().count());
                let cell = if column == 0 {
                    format!("{cell}{gap}")
                } else {
                    format!("{gap}{cell}")
                };
                text.push_str(&format!("  {cell}"));
            }
            text
        };
        let head: Vec<String> = head.iter().map(|name| (*name).to_owned()).collect();
        let head = self.style.paint(Ink::Faint, line(&head).trim_end());
        self.line(&head);
        for row in rows {
            self.line(&line(row));
        }
    }
}

/// A cluster in words: what stands there, tier by tier, and how far its GPUs are from each other.
pub fn topology_text(survey: &Survey, style: &Style) -> String {
    let mut page = Lines {
        text: String::new(),
        style,
    };
    let s = survey;
    let title = format!(
        "{} {} {} on a {}",
        count(s.gpus),
        s.node,
        if s.gpus == 1 { "GPU" } else { "GPUs" },
        fabric_name(s.fabric)
    );
    let title = style.paint(Ink::Strong, &title);
    page.line(&title);
    let i = &s.inventory;
    page.entry(
        "racks",
        &format!(
            "{} of up to {}, {} each",
            count(i.racks),
            counted(s.gpus_per_rack, "GPU"),
            power(s.rack_power_w)
        ),
    );
    page.entry(
        "nodes",
        &format!(
            "{} of {} x {}",
            count(i.nodes),
            count(s.gpus_per_node),
            s.accelerator
        ),
    );
    let d = &s.domain;
    page.entry(
        "scale-up domains",
        &format!(
            "{} of {}, {}",
            count(i.domains),
            counted(d.gpus, "GPU"),
            d.wiring
        ),
    );
    page.entry(
        "NICs",
        &format!(
            "{} of {}; {} per GPU",
            count(i.nics),
            gigabits(s.nic_bytes_per_s),
            gigabits(s.nic_share_bytes_per_s)
        ),
    );
    let mut parts = vec![match s.routing {
        Routing::Adaptive => "packets spread over all paths".to_owned(),
        Routing::Ecmp => "a hash picks one path per connection".to_owned(),
    }];
    if s.planes > 1 {
        parts.push(format!(
            "{} planes that meet only inside a domain",
            s.planes
        ));
    }
    if s.rails > 1 {
        parts.push(format!("{} rails", s.rails));
    }
    if s.pods > 1 {
        let what = if s.fabric == "dragonfly_plus" {
            "groups"
        } else {
            "pods"
        };
        parts.push(format!("{} {what}", s.pods));
    }
    if s.in_network_reduction {
        parts.push("switches reduce in flight".to_owned());
    }
    page.entry("fabric", &parts.join("; "));
    let tiers = [
        (i.leaves, "leaf", "leaves"),
        (i.spines, "spine", "spines"),
        (i.cores, "core", "cores"),
    ];
    let tiers: Vec<String> = tiers
        .into_iter()
        .filter(|(all, ..)| *all > 0)
        .map(|(all, one, several)| {
            format!("{} {}", count(all), if all == 1 { one } else { several })
        })
        .collect();
    page.entry(
        "switches",
        &format!("{}: {}", count(i.switches()), tiers.join(", ")),
    );
    page.entry(
        "cables",
        &format!(
            "{}, {} transceivers if all are optical",
            count(i.cables),
            count(s.transceivers)
        ),
    );
    page.entry(
        "bisection",
        &format!(
            "{} one way, {} of what half of the NICs send",
            gigabytes(s.bisection_bytes_per_s),
            if s.bisection_share > 0.9995 {
                "all".to_owned()
            } else {
                format!("{} %", number(s.bisection_share * 100.0, 1))
            }
        ),
    );
    page.title("Tiers");
    let mut rows = vec![vec![
        "scale-up".to_owned(),
        if d.cables > 0 {
            count(d.cables * u64::from(i.domains))
        } else {
            "-".into()
        },
        gigabytes(d.link_bytes_per_s),
        gigabytes(d.bytes_per_s * u64::from(s.gpus)),
        if d.bisection_bytes_per_s * 2 >= d.bytes_per_s * u64::from(d.gpus) - d.bytes_per_s {
            "non-blocking".into()
        } else {
            format!("bisection {}", gigabytes(d.bisection_bytes_per_s))
        },
    ]];
    rows.extend(s.tiers.iter().map(tier_row));
    page.table(
        &[
            "",
            "cables",
            "link, one way",
            "all of them",
            "against the tier below",
        ],
        &rows,
    );
    if s.peers.is_empty() {
        return page.text;
    }
    page.title("Peers of GPU 0");
    let direct = s.fabric == "dragonfly_plus";
    let rows: Vec<Vec<String>> = s.peers.iter().map(|peer| peer_row(peer, direct)).collect();
    page.table(
        &["highest tier", "GPUs", "latency", "narrowest link"],
        &rows,
    );
    page.text
}

fn tier_row(tier: &TierSurvey) -> Vec<String> {
    vec![
        tier.name.to_owned(),
        count(tier.cables),
        gigabits(tier.cable_bytes_per_s),
        gigabytes(tier.bytes_per_s),
        if tier.level == Level::Leaf {
            String::new()
        } else {
            blocking(tier.oversubscription)
        },
    ]
}

fn peer_row(peer: &PeerSurvey, direct: bool) -> Vec<String> {
    let [near, far] = peer.latency_ns;
    vec![
        level_name(peer.level, direct).to_owned(),
        count(peer.gpus),
        if near == far {
            microseconds(near)
        } else {
            format!("{} to {}", number(near / 1e3, 2), microseconds(far))
        },
        gigabytes(peer.bytes_per_s),
    ]
}

/// The paths between two GPUs in words.
pub fn route_text(route: &RouteTrace, style: &Style) -> String {
    let mut page = Lines {
        text: String::new(),
        style,
    };
    let direct = route
        .hops
        .iter()
        .any(|hop| hop.from.starts_with("spine") && hop.to.starts_with("spine"));
    let title = format!("GPU {} to GPU {}", route.from, route.to);
    let title = style.paint(Ink::Strong, &title);
    page.line(&title);
    if route.hops.is_empty() {
        page.line("  the same GPU: nothing is sent");
        return page.text;
    }
    page.entry("highest tier", level_name(route.level, direct));
    page.entry(
        "latency",
        &format!(
            "{} for a small message on idle links",
            microseconds(route.latency_ns)
        ),
    );
    page.entry("narrowest link", &gigabytes(route.bytes_per_s));
    let spread = match (route.paths, route.routing) {
        (1, _) => "one path".to_owned(),
        (n, Routing::Adaptive) => {
            format!("{} of equal length; packets are spread over all", count(n))
        }
        (n, Routing::Ecmp) => format!(
            "{} of equal length; a hash picks one per connection",
            count(n)
        ),
    };
    page.entry("paths", &spread);
    page.title(if route.paths > 1 {
        "One of them, hop by hop"
    } else {
        "Hop by hop"
    });
    hops(&mut page, &route.hops, direct);
    if !route.hashed.is_empty() {
        page.title("Where connections are hashed to");
        let listed: Vec<String> = route
            .hashed
            .iter()
            .enumerate()
            .map(|(i, switch)| format!("{i}: {switch}"))
            .collect();
        page.line(&format!("  {}", listed.join(", ")));
    }
    if let Some(by_rail) = &route.by_rail {
        page.title("By the receiver's rail (PXN)");
        hops(&mut page, by_rail, direct);
    }
    page.text
}

fn hops(page: &mut Lines<'_>, hops: &[Hop], direct: bool) {
    let faulty = hops.iter().any(|hop| hop.fault.is_some());
    let rows: Vec<Vec<String>> = hops
        .iter()
        .map(|hop| {
            let mut cells = vec![
                format!("{} -> {}", hop.from, hop.to),
                gigabytes(hop.bytes_per_s),
                microseconds(hop.latency_ns),
                level_name(hop.level, direct).to_owned(),
                if hop.choices > 1 {
                    format!("1 of {}", count(hop.choices))
                } else {
                    String::new()
                },
            ];
            if faulty {
                cells.push(hop.fault.clone().unwrap_or_default());
            }
            cells
        })
        .collect();
    let mut columns = vec!["link", "rate", "latency", "tier", "chosen from"];
    if faulty {
        columns.push("fault");
    }
    page.table(&columns, &rows);
}
