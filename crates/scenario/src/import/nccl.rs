//! The topology that NCCL writes to `NCCL_TOPO_DUMP_FILE`: `system`, `cpu`, `pci`, `gpu` with
//! `nvlink`, and `nic` with `net` (NVIDIA/nccl, src/graph/xml.cc); and the shorter ones that clouds
//! write by hand for `NCCL_TOPO_FILE`, in which a GPU may be no more than a `pci` of its class.

use super::{Beside, Described, which_accelerator};
use crate::decode::shorten;
use crate::diagnostic::{Diagnostic, Source, Span};
use roxmltree::{Document, Node};
use std::collections::{BTreeMap, BTreeSet};

/// PCI device IDs by catalogue name: those of Hopper and L40S from NVIDIA/gpu-admin-tools
/// (`gpu/devid_names.py`), those of A100 and 0x2330, 0x2335 also seen in dumps (NVIDIA/nccl issues
/// 1125, 1182); Blackwell (inside the range 0x2900 to 0x297f of gb100 there) and MI300X from memory,
/// unverified.
const DEVICES: [(&str, &str); 15] = [
    ("0x20b0", "a100-40"),
    ("0x20b2", "a100-80"),
    // On a card, as in the file that Azure ships for its NCv4 machines.
    ("0x20b5", "a100-80"),
    ("0x74a1", "mi300x"),
    ("0x233b", "h200-sxm"),
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
    let gpus = gpus_of(root);
    let Some(first) = gpus.first().copied() else {
        return Err(reader.at(
            root,
            "there is no `gpu` in it, and no `pci` of the class of GPUs (0x0302)".into(),
            "run NCCL on a node with GPUs",
        ));
    };
    let accelerator = match beside.accelerator {
        Some(name) => name.to_owned(),
        None => reader.accelerator(&gpus, first)?,
    };
    let scale_up = reader.scale_up(&gpus, first, &accelerator)?;
    let directly = reader.joined_directly(&gpus)?;
    let (nics, nic_rate) = reader.nics(root, &gpus)?;
    Ok(Described {
        accelerator,
        gpus: u32::try_from(gpus.len()).unwrap_or(u32::MAX),
        mesh_of: directly,
        scale_up,
        nics,
        nic_rate,
        nodes: None,
        fabric: None,
    })
}

/// The elements that stand for GPUs: `gpu`, or where there is none the `pci` of a 3D or VGA
/// controller.
fn gpus_of<'a, 'i>(root: Node<'a, 'i>) -> Vec<Node<'a, 'i>> {
    let named = all(root, "gpu");
    if named.is_empty() {
        of_class(root, &["0x0302", "0x0300"])
    } else {
        named
    }
}

fn of_class<'a, 'i>(root: Node<'a, 'i>, classes: &[&str]) -> Vec<Node<'a, 'i>> {
    let is = |n: &Node<'_, '_>| {
        n.attribute("class")
            .is_some_and(|class| classes.iter().any(|c| class.starts_with(c)))
    };
    all(root, "pci").into_iter().filter(is).collect()
}

/// The `pci` that is or holds an element.
fn device<'a, 'i>(node: Node<'a, 'i>) -> Option<Node<'a, 'i>> {
    node.ancestors().find(|n| n.has_tag_name("pci"))
}

/// Whether a GPU hangs on the same PCI switch.
fn beside_a_gpu(node: Node<'_, '_>) -> bool {
    let switch = device(node).and_then(|pci| pci.parent());
    switch.is_some_and(|switch| switch.has_tag_name("pci") && !gpus_of(switch).is_empty())
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
    let message = match error {
        roxmltree::Error::DtdDetected => {
            "this XML has a document type (hwloc's has), and a topology of NCCL has none".to_owned()
        }
        error => format!("this is not XML: {error}"),
    };
    let found = Diagnostic::error(file, span, message);
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
            device(gpu)
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
            None if sm.is_empty() => {
                "nothing says which GPU this is: `pci` has no `device`, and there is no `gpu` with `sm`".to_owned()
            }
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
        // NCCL writes the device of what it finds; a file without was written by hand, to tell NCCL
        // of PCI switches that a virtual machine hides, and leaves NVLink to be found.
        let by_hand = device(first).is_none_or(|pci| pci.attribute("device").is_none());
        if linked || by_hand {
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

    /// How many GPUs are joined each to each by NVLink; `None` where links lead to switches.
    fn joined_directly(&self, gpus: &[Node<'_, '_>]) -> Result<Option<u32>, Found> {
        let places: BTreeMap<&str, usize> = gpus
            .iter()
            .enumerate()
            .filter_map(|(place, gpu)| Some((device(*gpu)?.attribute("busid")?, place)))
            .collect();
        // Links to switches lead to none of the GPUs.
        let peers: Vec<Vec<usize>> = gpus
            .iter()
            .map(|gpu| {
                let links = gpu.children().filter(|n| n.has_tag_name("nvlink"));
                links
                    .filter_map(|link| places.get(link.attribute("target")?).copied())
                    .collect()
            })
            .collect();
        let Some(linked) = peers.iter().position(|peers| !peers.is_empty()) else {
            return Ok(None);
        };
        let domain = peers[linked].len() + 1;
        let complete = |(place, own): (usize, &Vec<usize>)| {
            let mut all: Vec<usize> = own.iter().copied().chain([place]).collect();
            all.sort_unstable();
            all.dedup();
            let first = all[0];
            // Domains are neighbours in the file, as ranks are.
            all.len() == domain
                && first.is_multiple_of(domain)
                && all[domain - 1] == first + domain - 1
        };
        match peers.iter().enumerate().find(|each| !complete(*each)) {
            None => Ok(Some(domain as u32)),
            Some((odd, _)) => Err(self.at(
                gpus[odd],
                "NVLink joins these GPUs neither over switches nor each to each".into(),
                "write the node out: cluster: { node: { accelerator: ..., ... } }",
            )),
        }
    }

    /// How many interfaces of the fastest kind, and bytes/s of each where the file says.
    fn nics(&self, root: Node<'_, '_>, gpus: &[Node<'_, '_>]) -> Result<(u32, Option<f64>), Found> {
        let shared = |count: usize| {
            count > 0 && (count.is_multiple_of(gpus.len()) || gpus.len().is_multiple_of(count))
        };
        // Interfaces for storage and management hang elsewhere.
        let counted = |nets: &[Node<'_, '_>]| {
            if shared(nets.len()) {
                return nets.len();
            }
            let near = nets.iter().filter(|net| beside_a_gpu(**net)).count();
            if shared(near) { near } else { nets.len() }
        };
        let mut seen = BTreeSet::new();
        let mut fastest = (0, Vec::new());
        for net in all(root, "net") {
            let name = net
                .attribute("name")
                .or(net.attribute("dev"))
                .unwrap_or_default();
            // Dumps of several hosts of one domain repeat names.
            let host = net.ancestors().find_map(|n| n.attribute("host_hash"));
            if !seen.insert((host, name, net.attribute("port").unwrap_or_default())) {
                continue;
            }
            let speed = self.number(net, "speed")?;
            match speed.cmp(&fastest.0) {
                std::cmp::Ordering::Greater => fastest = (speed, vec![net]),
                std::cmp::Ordering::Equal => fastest.1.push(net),
                std::cmp::Ordering::Less => {}
            }
        }
        let (speed, nets) = fastest;
        if speed > 0 {
            // NCCL counts in Mbit/s, the plugin of Slingshot (`cxi`) in kbit/s: no interface has 10 Tbit/s.
            let unit = if speed > 10_000_000 { 1e3 } else { 1e6 };
            return Ok((counted(&nets) as u32, Some(f64::from(speed) * unit / 8.0)));
        }
        // InfiniBand, else Ethernet, that NCCL did not probe.
        for class in ["0x0207", "0x0200"] {
            let nets = of_class(root, &[class]);
            if !nets.is_empty() {
                return Ok((counted(&nets) as u32, None));
            }
        }
        let message = "there is no `net` with a `speed` in it, and no `pci` of the class of interfaces \
                       (0x0207, 0x0200), so nothing says how the node reaches others";
        Err(self.at(
            root,
            message.into(),
            "let NCCL write the file in a job of two nodes or more",
        ))
    }
}
