//! The topology that NCCL writes to `NCCL_TOPO_DUMP_FILE`: `system`, `cpu`, `pci`, `gpu` with
//! `nvlink`, and `nic` with `net` (NVIDIA/nccl, src/graph/xml.cc).

use super::{Beside, Described, which_accelerator};
use crate::decode::shorten;
use crate::diagnostic::{Diagnostic, Source, Span};
use roxmltree::{Document, Node};
use std::collections::BTreeSet;

/// PCI device IDs of vendor 0x10de (The PCI ID Repository) by catalogue name; from memory but for
/// 0x2330, unverified.
const DEVICES: [(&str, &str); 12] = [
    ("0x20b0", "a100-40"),
    ("0x20b2", "a100-80"),
    ("0x2330", "h100-sxm"),
    ("0x2324", "h800-sxm"),
    ("0x2335", "h200-sxm"),
    ("0x2329", "h20"),
    ("0x2342", "gh200"),
    ("0x2901", "b200-sxm"),
    ("0x2941", "gb200"),
    ("0x3182", "b300-sxm"),
    ("0x31c2", "gb300"),
    ("0x26b9", "l40s"),
];

/// Accelerators of the catalogue by CUDA compute capability, the likeliest first.
fn of_capability(sm: &str) -> &'static [&'static str] {
    match sm {
        "80" => &["a100-80", "a100-40"],
        "89" => &["l40s"],
        "90" => &["h100-sxm", "h200-sxm", "h800-sxm", "h20", "gh200"],
        "100" => &["b200-sxm", "gb200"],
        "103" => &["b300-sxm", "gb300"],
        _ => &[],
    }
}

/// Bytes/s one way of one NVLink: 25 GB/s from the second to the fourth generation, 50 GB/s in the
/// fifth (NVIDIA data sheets: 12 links are 600 GB/s both ways on A100, 18 are 900 on H100, 18 are
/// 1,800 on B200).
fn nvlink_rate(accelerator: &str) -> f64 {
    match accelerator {
        "b200-sxm" | "gb200" | "b300-sxm" | "gb300" => 50e9,
        _ => 25e9,
    }
}

type Found = Box<Diagnostic>;

struct Reader<'s> {
    file: &'s Source,
}

/// Reads a dump: the node.
pub(super) fn read(file: &Source, beside: Beside<'_>) -> Result<Described, Found> {
    let document = Document::parse(&file.text).map_err(|error| not_xml(file, &error))?;
    let reader = Reader { file };
    let root = document.root_element();
    if root.tag_name().name() != "system" {
        let message = format!(
            "this XML begins with `{}`, and a topology of NCCL with `system`",
            shorten(root.tag_name().name())
        );
        return Err(reader.at(
            root,
            message,
            "let NCCL write one: NCCL_TOPO_DUMP_FILE=topology.xml",
        ));
    }
    let gpus: Vec<Node<'_, '_>> = all(root, "gpu");
    let Some(first) = gpus.first().copied() else {
        return Err(reader.at(
            root,
            "there is no `gpu` in it".into(),
            "run NCCL on a node with GPUs",
        ));
    };
    let accelerator = match beside.accelerator {
        Some(name) => name.to_owned(),
        None => reader.accelerator(&gpus, first)?,
    };
    let scale_up = reader.scale_up(&gpus, first, &accelerator)?;
    let (nics, nic_rate) = reader.nics(root)?;
    Ok(Described {
        accelerator,
        gpus: u32::try_from(gpus.len()).unwrap_or(u32::MAX),
        scale_up,
        nics,
        nic_rate,
        nodes: None,
        fabric: None,
    })
}

fn all<'a, 'i>(root: Node<'a, 'i>, name: &str) -> Vec<Node<'a, 'i>> {
    root.descendants()
        .filter(|n| n.has_tag_name(name))
        .collect()
}

fn not_xml(file: &Source, error: &roxmltree::Error) -> Found {
    let place = error.pos();
    let mut offset = 0;
    for (row, line) in (1..).zip(file.text.split_inclusive('\n')) {
        if row == place.row {
            let column = place.col.saturating_sub(1) as usize;
            offset += line
                .char_indices()
                .nth(column)
                .map_or(line.len(), |(at, _)| at);
            break;
        }
        offset += line.len();
    }
    let span = Span { offset, len: 1 };
    let found = Diagnostic::error(file, span, format!("this is not XML: {error}"));
    Box::new(found.hint("a topology is what NCCL writes with NCCL_TOPO_DUMP_FILE=topology.xml"))
}

impl Reader<'_> {
    /// An error at an element, without what is in it.
    fn at(&self, node: Node<'_, '_>, message: String, hint: &str) -> Found {
        let range = node.range();
        let span = Span::between(range.start, range.end);
        Box::new(Diagnostic::error(self.file, span, message).hint(hint))
    }

    /// A number of an attribute.
    fn number(&self, node: Node<'_, '_>, name: &str) -> Result<u32, Found> {
        let Some(attribute) = node.attribute_node(name) else {
            let message = format!("`{}` has no `{name}`", node.tag_name().name());
            return Err(self.at(node, message, "let NCCL write the file anew"));
        };
        attribute.value().trim().parse().map_err(|_| {
            let range = attribute.range_value();
            let span = Span::between(range.start, range.end);
            let message = format!(
                "`{name}` must be a whole number, not \"{}\"",
                shorten(attribute.value())
            );
            let found = Diagnostic::error(self.file, span, message);
            Box::new(found.hint("let NCCL write the file anew"))
        })
    }

    fn accelerator(&self, gpus: &[Node<'_, '_>], first: Node<'_, '_>) -> Result<String, Found> {
        let device = |gpu: Node<'_, '_>| {
            gpu.parent()
                .and_then(|pci| pci.attribute("device"))
                .map(str::to_lowercase)
        };
        let kind = |gpu: &Node<'_, '_>| (device(*gpu), gpu.attribute("sm").map(str::to_owned));
        let of_first = kind(&first);
        if let Some(other) = gpus.iter().find(|gpu| kind(gpu) != of_first) {
            let message =
                "this GPU is of another kind than the first: a node holds one kind".into();
            return Err(self.at(*other, message, "leave the others out of the file"));
        }
        let (device, sm) = of_first;
        if let Some((_, name)) = DEVICES
            .iter()
            .find(|(id, _)| Some(*id) == device.as_deref())
        {
            return Ok((*name).to_owned());
        }
        let range = first.range();
        let span = Span::between(range.start, range.end);
        let sm = sm.unwrap_or_default();
        let message = match device {
            Some(device) => format!("the PCI device {} is none that is known", shorten(&device)),
            None => format!(
                "compute capability \"{}\" does not say which GPU this is, and `pci` has no `device`",
                shorten(&sm)
            ),
        };
        Err(which_accelerator(
            self.file,
            span,
            message,
            of_capability(&sm),
        ))
    }

    /// Bytes/s out of one GPU, where there are links.
    fn scale_up(
        &self,
        gpus: &[Node<'_, '_>],
        first: Node<'_, '_>,
        accelerator: &str,
    ) -> Result<Option<f64>, Found> {
        let mut counts = Vec::new();
        for gpu in gpus {
            let mut links = 0_u32;
            for link in gpu.children().filter(|n| n.has_tag_name("nvlink")) {
                links = links.saturating_add(self.number(link, "count")?);
            }
            counts.push(links);
        }
        if let Some(other) = counts.iter().position(|count| *count != counts[0]) {
            let message = format!(
                "this GPU has {} NVLinks and the first has {}: all GPUs of a node are alike",
                counts[other], counts[0]
            );
            return Err(self.at(
                gpus[other],
                message,
                "let NCCL write the file on a healthy node",
            ));
        }
        if counts[0] > 0 {
            return Ok(Some(f64::from(counts[0]) * nvlink_rate(accelerator)));
        }
        let linked = gpus.len() < 2
            || accelerator == "l40s"
            || first.children().any(|n| n.has_tag_name("xgmi"));
        if linked {
            return Ok(None);
        }
        let message = format!(
            "`gpu` has no `nvlink`, and no node of the catalogue joins {accelerator} over PCIe"
        );
        Err(self.at(
            first,
            message,
            "write the node out: cluster: { node: { accelerator: ..., ... } }",
        ))
    }

    /// How many interfaces of the fastest kind, and bytes/s of each.
    fn nics(&self, root: Node<'_, '_>) -> Result<(u32, f64), Found> {
        let mut seen = BTreeSet::new();
        let mut fastest = (0, 0);
        for net in all(root, "net") {
            let name = net
                .attribute("name")
                .or(net.attribute("dev"))
                .unwrap_or_default();
            if !seen.insert((name, net.attribute("port").unwrap_or_default())) {
                continue;
            }
            let speed = self.number(net, "speed")?;
            match speed.cmp(&fastest.0) {
                std::cmp::Ordering::Greater => fastest = (speed, 1),
                std::cmp::Ordering::Equal => fastest.1 += 1,
                std::cmp::Ordering::Less => {}
            }
        }
        let (speed, count) = fastest;
        if speed == 0 {
            let message = "there is no `net` with a `speed` in it, so nothing says how the node reaches others".into();
            return Err(self.at(
                root,
                message,
                "let NCCL write the file in a job of two nodes or more",
            ));
        }
        // NCCL counts in Mbit/s.
        Ok((count, f64::from(speed) * 1e6 / 8.0))
    }
}
