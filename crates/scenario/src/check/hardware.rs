//! Accelerator, node, fabric and cluster.

use super::{count, fraction, within};
use crate::catalogue::{Catalogue, Section};
use crate::resolve::Findings;
use crate::suggest;
use rackflow_plan::Setup;
use rackflow_topology::{
    Accelerator, ByPrecision, Cluster, ClusterMap, Fabric, Node, TopologyError,
};
use rackflow_units::{
    Bandwidth, Bytes, FlopRate, Frequency, Power, Precision, SimDuration, UsdPerHour, counted,
};
use rackflow_workload::Recipe;

/// More accelerators than anyone has plans for.
pub(super) const MOST_GPUS: u64 = 10_000_000;
/// A petabyte per second.
const FASTEST_LINK: Bandwidth = Bandwidth::from_gigabytes_per_sec(1_000_000);
/// Slower than any link or memory since the 1980s.
const SLOWEST_LINK: Bandwidth = Bandwidth::from_bytes_per_sec(1_000_000);
const LEAST_POWER: Power = Power::from_watts(1.0);
const LARGEST_MEMORY: Bytes = Bytes::new(10_000_000_000_000_000);
const FASTEST_COMPUTE: FlopRate = FlopRate::from_flops_per_sec(1e21);
const SLOWEST_COMPUTE: FlopRate = FlopRate::from_flops_per_sec(1e9);
const MOST_PORTS: u64 = 65_536;

/// Checks the hardware, and what the work asks of one accelerator.
pub(super) fn check(setup: &Setup, findings: &mut Findings<'_>) {
    cluster(&setup.cluster, findings);
    for kind in setup.cluster.kinds() {
        precision(findings, setup.training.recipe, &kind.node.accelerator);
    }
}

/// Checks the hardware alone.
pub(super) fn cluster(cluster: &Cluster, findings: &mut Findings<'_>) {
    let mut sane = vec![
        count(findings, "cluster.gpus", cluster.gpus.into(), MOST_GPUS),
        fabric(findings, &cluster.fabric),
    ];
    let further = cluster.parts.iter().skip(1).map(|part| &part.node);
    for of_kind in std::iter::once(&cluster.node).chain(further) {
        sane.push(node(findings, of_kind));
        sane.push(accelerator(findings, &of_kind.accelerator));
    }
    if !sane.contains(&false)
        && let Err(error) = ClusterMap::new(cluster)
    {
        topology(findings, cluster, &error);
    }
}

fn node(findings: &mut Findings<'_>, node: &Node) -> bool {
    let at = |field: &str| format!("cluster.node.{field}");
    let scale_up = &node.scale_up;
    let nic = &node.nic;
    let checks = [
        count(findings, &at("gpus"), node.gpus.into(), MOST_GPUS),
        hosts(findings, &at("gpus_per_host"), node),
        count(
            findings,
            &at("scale_up.domain"),
            scale_up.domain.into(),
            MOST_GPUS,
        ),
        count(findings, &at("nic.count"), nic.count.into(), MOST_GPUS),
        count(findings, &at("rack.gpus"), node.rack.gpus.into(), MOST_GPUS),
        rate(findings, &at("scale_up.bandwidth"), scale_up.bandwidth),
        rate(findings, &at("nic.rate"), nic.rate),
        latency(findings, &at("scale_up.latency"), scale_up.latency),
        latency(
            findings,
            &at("scale_up.collective_base"),
            scale_up.collective_base,
        ),
        latency(
            findings,
            &at("scale_up.in_switch_fill"),
            scale_up.in_switch_fill,
        ),
        latency(
            findings,
            &at("scale_up.hand_on"),
            scale_up.hand_on.unwrap_or(SimDuration::ZERO),
        ),
        latency(findings, &at("nic.latency"), nic.latency),
        fraction(findings, &at("scale_up.efficiency"), scale_up.efficiency),
        fraction(
            findings,
            &at("scale_up.collective_efficiency"),
            scale_up.collective_efficiency,
        ),
        fraction(
            findings,
            &at("scale_up.in_switch_efficiency"),
            scale_up.in_switch_efficiency,
        ),
        fraction(
            findings,
            &at("scale_up.expert_efficiency"),
            scale_up.expert_efficiency.unwrap_or(scale_up.efficiency),
        ),
        fraction(
            findings,
            &at("scale_up.hybrid_expert_efficiency"),
            scale_up
                .hybrid_expert_efficiency
                .unwrap_or(scale_up.efficiency),
        ),
        part(findings, &at("scale_up.ring_turn"), scale_up.ring_turn),
        part(findings, &at("scale_up.own_part"), scale_up.own_part),
        fraction(findings, &at("nic.efficiency"), nic.efficiency),
        nic.expert_efficiency
            .is_none_or(|share| fraction(findings, &at("nic.expert_efficiency"), share)),
        within(
            findings,
            &at("rack.power"),
            node.rack.power,
            LEAST_POWER,
            Power::from_watts(1e9),
        ),
    ];
    !checks.contains(&false)
}

/// Hosts divide a node. One that was changed from the catalogue may be smaller than its hosts were.
fn hosts(findings: &mut Findings<'_>, path: &str, node: &Node) -> bool {
    let right = node.gpus.is_multiple_of(node.gpus_per_host) || !findings.written(path);
    if !right {
        let message = format!(
            "hosts of {} do not divide a node of {}",
            node.gpus_per_host,
            counted(node.gpus, "GPU")
        );
        let found = findings.at(path, message);
        findings.report(found.hint(format!("write a divisor of {}, or leave it out", node.gpus)));
    }
    right
}

fn rate(findings: &mut Findings<'_>, path: &str, rate: Bandwidth) -> bool {
    within(findings, path, rate, SLOWEST_LINK, FASTEST_LINK)
}

/// Anything beyond a second is not the latency of a link.
fn latency(findings: &mut Findings<'_>, path: &str, latency: SimDuration) -> bool {
    let right = latency.as_secs_f64() <= 1.0;
    if !right {
        let name = path.rsplit('.').next().unwrap_or(path);
        let found = findings.at(
            path,
            format!("`{name}` is {latency}, which is absurdly large"),
        );
        findings.report(found.label("at most 1 s"));
    }
    right
}

/// A part of a step: nothing, or up to the whole.
fn part(findings: &mut Findings<'_>, path: &str, value: f64) -> bool {
    let right = (0.0..=1.0).contains(&value);
    if !right {
        let name = path.rsplit('.').next().unwrap_or(path);
        let found = findings.at(path, format!("`{name}` is {value}; it must be from 0 to 1"));
        findings.report(found);
    }
    right
}

fn accelerator(findings: &mut Findings<'_>, accelerator: &Accelerator) -> bool {
    let at = |field: &str| format!("cluster.node.accelerator.{field}");
    let a = accelerator;
    let mut checks = vec![
        count(findings, &at("sms"), a.sms.into(), 1_000_000),
        count(
            findings,
            &at("exponentials_per_sm_clock"),
            a.exponentials_per_sm_clock.into(),
            1_000_000,
        ),
        within(
            findings,
            &at("clock"),
            a.clock,
            Frequency::from_hertz(1e6),
            Frequency::from_hertz(1e12),
        ),
        within(
            findings,
            &at("vector"),
            a.vector,
            SLOWEST_COMPUTE,
            FASTEST_COMPUTE,
        ),
        within(
            findings,
            &at("memory"),
            a.memory,
            Bytes::new(1),
            LARGEST_MEMORY,
        ),
        rate(findings, &at("memory_bandwidth"), a.memory_bandwidth),
        rate(findings, &at("host_bandwidth"), a.host_bandwidth),
        within(findings, &at("l2"), a.l2, Bytes::new(1), LARGEST_MEMORY),
        within(
            findings,
            &at("power"),
            a.power,
            LEAST_POWER,
            Power::from_watts(1e6),
        ),
        fraction(
            findings,
            &at("measured.continuous_clock"),
            a.measured.continuous_clock,
        ),
        fraction(findings, &at("measured.memory"), a.measured.memory),
        latency(
            findings,
            &at("measured.kernel_floor"),
            a.measured.kernel_floor,
        ),
    ];
    for (format, peak) in formats(&a.peak) {
        checks.push(within(
            findings,
            &at(&format!("peak.{format}")),
            peak,
            SLOWEST_COMPUTE,
            FASTEST_COMPUTE,
        ));
    }
    for (format, share) in formats(&a.measured.gemm) {
        checks.push(fraction(
            findings,
            &at(&format!("measured.gemm.{format}")),
            share,
        ));
    }
    if let Some(price) = a.price {
        // From a hundredth of a cent to what a whole rack costs.
        let (least, most) = (UsdPerHour::new(0.0001), UsdPerHour::new(10_000.0));
        checks.push(within(findings, &at("price"), price, least, most));
    }
    let attention = &a.measured.attention;
    for (kernel, rates) in [
        ("flash1", attention.flash1),
        ("flash2", attention.flash2),
        ("cudnn_9_1", attention.cudnn_9_1.unwrap_or(attention.best)),
        ("cudnn_9_13", attention.cudnn_9_13.unwrap_or(attention.best)),
        ("cudnn_9_19", attention.cudnn_9_19.unwrap_or(attention.best)),
        ("best", attention.best),
    ] {
        let at = |field: &str| at(&format!("measured.attention.{kernel}.{field}"));
        checks.push(fraction(findings, &at("forward"), rates.forward));
        checks.push(fraction(findings, &at("backward"), rates.backward));
        checks.push(fraction(
            findings,
            &at("forward_fp8"),
            rates.forward_fp8.unwrap_or(1.0),
        ));
        let exponentials = rates.exponentials.unwrap_or(1.0);
        let scores = rates.backward_scores.unwrap_or(1.0);
        for (field, value) in [("exponentials", exponentials), ("backward_scores", scores)] {
            checks.push(within(findings, &at(field), value, 0.01, 1000.0));
        }
    }
    !checks.contains(&false)
}

/// The formats that have a value.
fn formats<T: Copy>(values: &ByPrecision<T>) -> Vec<(Precision, T)> {
    let narrow = [(Precision::Fp8, values.fp8), (Precision::Fp4, values.fp4)];
    let mut all = vec![(Precision::Bf16, values.bf16)];
    all.extend(
        narrow
            .into_iter()
            .filter_map(|(format, value)| Some((format, value?))),
    );
    all
}

/// What keeps the arithmetic of the tree within its types; the rest the topology says itself.
fn fabric(findings: &mut Findings<'_>, fabric: &Fabric) -> bool {
    let at = |field: &str| format!("cluster.fabric.{}.{field}", fabric.kind());
    let (radix, spine_radix, link, hop, balance) = match fabric {
        Fabric::FatTree(f) => (f.radix, f.spine_radix, f.link, f.hop, f.load_balance),
        Fabric::RailOptimized(f) => (f.radix, None, f.link, f.hop, f.load_balance),
        Fabric::MultiPlaneFatTree(f) => (f.radix, None, f.link, f.hop, f.load_balance),
        Fabric::RailOnly(f) => (f.radix, None, f.link, f.hop, f.load_balance),
        Fabric::DragonflyPlus(f) => (f.radix, None, f.link, f.hop, f.load_balance),
    };
    let checks = [
        count(findings, &at("radix"), radix.into(), MOST_PORTS),
        count(
            findings,
            &at("spine_radix"),
            spine_radix.unwrap_or(radix).into(),
            MOST_PORTS,
        ),
        link.is_none_or(|link| rate(findings, &at("link"), link)),
        latency(findings, &at("hop"), hop),
        fraction(findings, &at("load_balance"), balance),
    ];
    !checks.contains(&false)
}

/// Puts what the topology says at the number it speaks of.
fn topology(findings: &mut Findings<'_>, cluster: &Cluster, error: &TopologyError) {
    let fabric = format!("cluster.fabric.{}", cluster.fabric.kind());
    let field_path = |field: &str| match field.strip_prefix("fabric.") {
        Some(field) => format!("{fabric}.{field}"),
        None => format!("cluster.{field}"),
    };
    let node = &cluster.node;
    let found = match error {
        TopologyError::ZeroCount { field } => {
            let name = field.rsplit('.').next().unwrap_or(field);
            findings.at(&field_path(field), format!("`{name}` is 0; it must be at least 1"))
        }
        TopologyError::OutOfRange { field, value, wanted } => {
            let name = field.rsplit('.').next().unwrap_or(field);
            findings.at(&field_path(field), format!("`{name}` is {value}; it must be {wanted}"))
        }
        TopologyError::GpusNotMultipleOfNode { gpus, per_node, node, lower, upper } => findings
            .at("cluster.gpus", format!("a cluster of {} is no whole number of nodes: one {node} has {per_node}", counted(*gpus, "GPU")))
            .hint(format!("nearest that are: {lower} or {upper}")),
        TopologyError::DomainDoesNotNest { domain, per_node } => findings
            .at(
                "cluster.node.scale_up.domain",
                format!("an NVLink domain of {} and a node of {per_node} do not nest", counted(*domain, "GPU")),
            )
            .hint("one must be a multiple of the other"),
        TopologyError::NicsNotShared { nics, per_node } => findings
            .at("cluster.node.nic.count", format!("a node of {} does not share {} evenly", counted(*per_node, "GPU"), counted(*nics, "NIC")))
            .hint("one count must be a multiple of the other"),
        TopologyError::Tiers { tiers } => findings
            .at(&format!("{fabric}.tiers"), format!("a tree of {tiers} tiers is not modelled"))
            .hint("1 (one switch), 2 (leaf, spine) and 3 (leaf, spine, core) are"),
        TopologyError::RailsDoNotDivide { what, rails, nics } => findings
            .at(&format!("{fabric}.{what}"), format!("{rails} {what} do not divide the {nics} NICs of a {}", node.name))
            .hint(format!("divisors near it: {}", suggest::either(&suggest::divisors_near((*nics).into(), (*rails).into())))),
        TopologyError::TorusDoesNotFit { dims, chips, domain } => findings
            .at(
                "cluster.node.scale_up.wiring.torus.dims",
                format!("a torus of {dims} has {chips} chips, and its domain {domain}"),
            )
            .hint("the axes, at most four, must multiply to `domain`"),
        TopologyError::TorusNotFull { gpus, domain } => findings
            .at("cluster.gpus", format!("a cluster of {} is no whole number of tori of {domain}", counted(*gpus, "GPU")))
            .hint(format!("use at most {domain}, or a multiple of it")),
        TopologyError::TooManyGroups { .. } | TopologyError::GroupTooLarge { .. } => findings
            .at(&format!("{fabric}.leaves_per_group"), error.to_string())
            .hint("use a larger radix, or groups of another size"),
        TopologyError::LeafTooSmall { radix, nics_per_leaf, uplinks } => findings
            .at(
                &format!("{fabric}.nics_per_leaf"),
                format!("a leaf of {radix} ports does not carry {nics_per_leaf} NICs and {uplinks} uplinks"),
            )
            .hint("use fewer NICs per leaf, more ports, or more oversubscription"),
        TopologyError::FabricTooSmall { nics, capacity, radix, tiers } => {
            let found = findings
                .at("cluster.fabric", format!("the fabric is too small: {nics} NICs on {tiers} tiers of {radix}-port switches"))
                .label(format!("room for {capacity}"));
            let larger = fabrics_that_hold(cluster);
            let found = if *tiers == 2 { found.hint(format!("a third tier holds {} times as many", radix / 2)) } else { found };
            if larger.is_empty() { found } else { found.hint(format!("fabrics that hold them: {}", larger.join(", "))) }
        }
        other => findings.at("cluster.fabric", other.to_string()),
    };
    findings.report(found);
}

/// The fabrics of the catalogue on which this cluster can be built.
fn fabrics_that_hold(cluster: &Cluster) -> Vec<&'static str> {
    let catalogue = Catalogue::builtin();
    catalogue
        .names(Section::Fabrics)
        .filter(|name| {
            catalogue.fabric(name).is_some_and(|fabric| {
                ClusterMap::new(&Cluster {
                    fabric: fabric.clone(),
                    ..cluster.clone()
                })
                .is_ok()
            })
        })
        .collect()
}

/// How a recipe is written in a scenario.
const fn written(recipe: Recipe) -> &'static str {
    match recipe {
        Recipe::Fp16 => "fp16",
        Recipe::Bf16 => "bf16",
        Recipe::Fp8 => "fp8",
        Recipe::Fp8Delayed => "fp8_delayed",
        Recipe::Fp8Rowwise => "fp8_rowwise",
        Recipe::Fp8Blockwise => "fp8_blockwise",
        Recipe::Mxfp8 => "mxfp8",
        Recipe::Nvfp4 => "nvfp4",
    }
}

const RECIPES: [Recipe; 8] = [
    Recipe::Fp16,
    Recipe::Bf16,
    Recipe::Fp8,
    Recipe::Fp8Delayed,
    Recipe::Fp8Rowwise,
    Recipe::Fp8Blockwise,
    Recipe::Mxfp8,
    Recipe::Nvfp4,
];

/// Whether the tensor cores run a recipe. Block scales of 1x32 and 1x16 came with FP4.
fn runs(accelerator: &Accelerator, recipe: Recipe) -> bool {
    match recipe {
        Recipe::Fp16 | Recipe::Bf16 => true,
        Recipe::Fp8 | Recipe::Fp8Delayed | Recipe::Fp8Rowwise | Recipe::Fp8Blockwise => {
            accelerator.peak.fp8.is_some()
        }
        Recipe::Mxfp8 => accelerator.peak.fp8.is_some() && accelerator.peak.fp4.is_some(),
        Recipe::Nvfp4 => accelerator.peak.fp4.is_some(),
    }
}

/// Why an accelerator cannot compute in a number format, and what can be done about it; nothing where it can.
fn missing_format(recipe: Recipe, accelerator: &Accelerator) -> Option<(String, [String; 2])> {
    if runs(accelerator, recipe) {
        return None;
    }
    let name = &accelerator.name;
    let why = match recipe {
        Recipe::Nvfp4 => format!("{name} has no tensor cores for 4-bit floats"),
        Recipe::Mxfp8 if accelerator.peak.fp8.is_some() => {
            format!("{name} cannot apply mxfp8's 1x32 block scales in its tensor cores")
        }
        _ => format!("{name} has no tensor cores for 8-bit floats"),
    };
    let possible: Vec<&str> = RECIPES
        .into_iter()
        .filter(|r| runs(accelerator, *r))
        .map(written)
        .collect();
    let catalogue = Catalogue::builtin();
    let nodes: Vec<&str> = catalogue
        .names(Section::Nodes)
        .filter(|name| {
            catalogue
                .node(name)
                .is_some_and(|node| runs(&node.accelerator, recipe))
        })
        .take(6)
        .collect();
    let hints = [
        format!("it runs {}", suggest::listed(&possible, "and")),
        format!("nodes that run {}: {}", written(recipe), nodes.join(", ")),
    ];
    Some((why, hints))
}

/// Why an accelerator cannot compute in a number format, with hints, as a message of the command line; nothing
/// where it can.
pub fn unsupported(recipe: Recipe, accelerator: &Accelerator) -> Option<String> {
    let (why, hints) = missing_format(recipe, accelerator)?;
    Some(format!("{why}\n  hint: {}", hints.join("\n  hint: ")))
}

fn precision(findings: &mut Findings<'_>, recipe: Recipe, accelerator: &Accelerator) {
    if let Some((why, hints)) = missing_format(recipe, accelerator) {
        let found = findings.at("workload.training.precision", why);
        let found = hints
            .into_iter()
            .fold(found, |found, hint| found.hint(hint));
        findings.report(found);
    }
}
