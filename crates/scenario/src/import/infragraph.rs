//! InfraGraph (PyPI `infragraph`, `Infrastructure`): devices of components, instances of devices,
//! links, and edges between slices of components. Slices and schemes are those of its own service.

mod wires;

use super::{Beside, Described, which_accelerator};
use crate::catalogue::Catalogue;
use crate::decode::shorten;
use crate::diagnostic::{Diagnostic, Source, Span};
use crate::yaml::{self, Node as Tree, Value};
use rackflow_topology::Wiring;

type Found = Box<Diagnostic>;

/// Devices inside devices; deeper than this is a device inside itself.
const DEEPEST: u32 = 8;
/// Components of a device, instances of it: more is a slip.
const MOST: u32 = 10_000_000;

/// Words that name an accelerator, and its catalogue name.
const WORDS: [(&str, &str); 11] = [
    ("h100", "h100-sxm"),
    ("h200", "h200-sxm"),
    ("h800", "h800-sxm"),
    ("h20", "h20"),
    ("gh200", "gh200"),
    ("b200", "b200-sxm"),
    ("b300", "b300-sxm"),
    ("gb200", "gb200"),
    ("gb300", "gb300"),
    ("mi300x", "mi300x"),
    ("l40s", "l40s"),
];

/// The file while it is read.
struct Reader<'s> {
    file: &'s Source,
    tree: &'s Tree,
}

/// How many of each a device holds, in devices inside it too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Parts {
    xpus: u32,
    nics: u32,
    ports: u32,
}

/// Reads an infrastructure: the node, how many, and the fabric.
pub(super) fn read(file: &Source, beside: Beside<'_>) -> Result<Described, Found> {
    let tree = yaml::parse(file)?;
    let reader = Reader { file, tree: &tree };
    let (instances, devices) = (reader.items("instances"), reader.items("devices"));
    if instances.is_empty() || devices.is_empty() {
        let found = Diagnostic::error(
            file,
            tree.place(""),
            "this is neither a topology of NCCL (XML) nor an InfraGraph: it has no `devices` and `instances`",
        );
        return Err(Box::new(
            found.hint("an InfraGraph is what Infrastructure.serialize() writes"),
        ));
    }
    let mut host: Option<(&Tree, Parts)> = None;
    let mut nodes = 0_u32;
    for instance in instances {
        let device = reader.device(reader.word(instance, "device")?)?;
        let parts = reader.parts(device, 0)?;
        if parts.xpus == 0 {
            continue;
        }
        if let Some((other, _)) = host
            && !std::ptr::eq(other, device)
        {
            let message =
                "this is a second kind of node with accelerators, and a cluster repeats one".into();
            return Err(reader.at(instance, message, "import a file of one kind"));
        }
        nodes = nodes.saturating_add(reader.count(instance)?);
        host = Some((device, parts));
    }
    let Some((host, parts)) = host else {
        let message = "no instance has a component of the choice `xpu`".into();
        return Err(reader.at(
            &instances[0],
            message,
            "accelerators are components with choice: xpu",
        ));
    };
    let accelerator = match beside.accelerator {
        Some(name) => name.to_owned(),
        None => reader.accelerator(host)?,
    };
    let scale_up = reader.scale_up(host, parts.xpus)?;
    let alone = nodes == 1 && reader.items("edges").is_empty();
    if alone {
        return reader.one_node(host, parts, accelerator, scale_up);
    }
    let wires = wires::Wires::read(&reader)?;
    let (nics, nic_rate) = wires.nics(&reader)?;
    let fabric = if beside.fabric {
        None
    } else {
        Some(wires.fabric(&reader)?)
    };
    Ok(Described {
        accelerator,
        gpus: parts.xpus,
        scale_up,
        nics,
        nic_rate: Some(nic_rate),
        mesh_of: None,
        nodes: Some(nodes),
        fabric,
    })
}

impl Reader<'_> {
    fn at(&self, tree: &Tree, message: String, hint: &str) -> Found {
        Box::new(Diagnostic::error(self.file, tree.place(""), message).hint(hint))
    }

    fn at_span(&self, span: Span, message: String, hint: &str) -> Found {
        Box::new(Diagnostic::error(self.file, span, message).hint(hint))
    }

    fn items(&self, key: &str) -> &[Tree] {
        list(self.tree, key)
    }

    /// The text under a key that must be there.
    fn word<'t>(&self, tree: &'t Tree, key: &str) -> Result<&'t Tree, Found> {
        match tree.get(key) {
            Some(word) if word.text().is_some() => Ok(word),
            _ => Err(self.at(
                tree,
                format!("`{key}` is missing here"),
                "InfraGraph requires it",
            )),
        }
    }

    fn count(&self, tree: &Tree) -> Result<u32, Found> {
        let word = self.word(tree, "count")?;
        let text = word.text().unwrap_or_default();
        text.parse()
            .ok()
            .filter(|count| *count <= MOST)
            .ok_or_else(|| {
                let message = format!(
                    "`count` must be a whole number up to {MOST}, not \"{}\"",
                    shorten(text)
                );
                self.at_span(word.span, message, "such as count: 8")
            })
    }

    fn device(&self, name: &Tree) -> Result<&Tree, Found> {
        self.named("devices", name)
    }

    /// The entry of a list of the file that has this name.
    fn named(&self, section: &str, name: &Tree) -> Result<&Tree, Found> {
        let text = name.text().unwrap_or_default();
        find(self.items(section), text).ok_or_else(|| {
            let known: Vec<&str> = self
                .items(section)
                .iter()
                .filter_map(name_of)
                .take(8)
                .collect();
            let message = format!("`{section}` has no `{}`", shorten(text));
            self.at_span(name.span, message, &format!("it has: {}", known.join(", ")))
        })
    }

    fn parts(&self, device: &Tree, depth: u32) -> Result<Parts, Found> {
        if depth > DEEPEST {
            return Err(self.at(
                device,
                "this device is inside itself".into(),
                "a component of the choice `device` names another device",
            ));
        }
        let mut sum = Parts::default();
        for component in list(device, "components") {
            let count = self.count(component)?;
            match self.word(component, "choice")?.text().unwrap_or_default() {
                "xpu" | "npu" => sum.xpus = sum.xpus.saturating_add(count),
                "nic" => sum.nics = sum.nics.saturating_add(count),
                "port" => sum.ports = sum.ports.saturating_add(count),
                "device" => {
                    let inner =
                        self.parts(self.device(self.word(component, "name")?)?, depth + 1)?;
                    sum.xpus = sum.xpus.saturating_add(inner.xpus.saturating_mul(count));
                    // A card: a device of its own with ports, or with a transceiver.
                    let card = inner.xpus == 0 && inner.nics == 0 && inner.ports > 0;
                    let nics = if card { 1 } else { inner.nics };
                    sum.nics = sum.nics.saturating_add(nics.saturating_mul(count));
                    sum.ports = sum.ports.saturating_add(inner.ports.saturating_mul(count));
                }
                _ => {}
            }
        }
        Ok(sum)
    }

    /// The catalogue name of what computes, from the words of its component, else of its device.
    fn accelerator(&self, host: &Tree) -> Result<String, Found> {
        let xpu = xpu(host).unwrap_or(host);
        let mut likely: Vec<&str> = Vec::new();
        for place in [xpu, host] {
            let mut here = Vec::new();
            for key in ["name", "description"] {
                let text = place.get(key).and_then(Tree::text).unwrap_or_default();
                if Catalogue::builtin().accelerator(text).is_some() {
                    return Ok(text.to_owned());
                }
                here.extend(mentioned(text));
            }
            here.sort_unstable();
            here.dedup();
            // Where its component fits several, the name of the device may say which.
            if !likely.is_empty() {
                here.retain(|name| likely.contains(name));
            }
            if !here.is_empty() {
                likely = here;
            }
            if let [only] = likely.as_slice() {
                return Ok((*only).to_owned());
            }
        }
        let place = xpu.get("description").unwrap_or(xpu).place("");
        let message = if likely.is_empty() {
            "nothing here names an accelerator of the catalogue"
        } else {
            "this names more than one accelerator of the catalogue"
        };
        Err(which_accelerator(self.file, place, message.into(), &likely))
    }

    /// Bytes/s out of the first accelerator over the links to others and to switches that have a
    /// bandwidth; `None` where none has.
    fn scale_up(&self, host: &Tree, xpus: u32) -> Result<Option<f64>, Found> {
        let choice = |name: &str| {
            find(list(host, "components"), name).and_then(|c| Some((kind(c)?, self.count(c).ok()?)))
        };
        let mut sum = 0.0;
        for edge in list(host, "edges") {
            let ends = ["ep1", "ep2"].map(|end| {
                edge.get(end)
                    .and_then(|end| end.get("component"))
                    .and_then(Tree::text)
                    .unwrap_or_default()
            });
            let [a, b] = ends.map(wires::base);
            let (Some(a), Some(b)) = (choice(a), choice(b)) else {
                continue;
            };
            let peers = match (a.0, b.0) {
                ("xpu", "xpu") => xpus.saturating_sub(1),
                ("xpu", "switch") => b.1,
                ("switch", "xpu") => a.1,
                _ => continue,
            };
            let link = edge.get("link").and_then(Tree::text).unwrap_or_default();
            let Some(link) = find(list(host, "links"), link) else {
                continue;
            };
            let name = |key| {
                link.get(key)
                    .and_then(Tree::text)
                    .unwrap_or_default()
                    .to_lowercase()
            };
            if ["name", "description"]
                .into_iter()
                .any(|key| name(key).contains("pci"))
            {
                continue;
            }
            if let Some(rate) = self.rate(link)? {
                // Slices would let each edge reach some of the accelerators only.
                let whole = ends.iter().all(|end| !end.contains('['));
                let paired = edge.get("scheme").and_then(Tree::text) != Some("many2many");
                if !whole || paired {
                    return Err(self.at(
                        edge,
                        "only whole components joined many2many say how fast an accelerator is"
                            .into(),
                        "leave the bandwidth of this link out; the catalogue's is taken",
                    ));
                }
                sum += rate * f64::from(peers);
            }
        }
        Ok((sum > 0.0).then_some(sum))
    }

    /// Bytes/s of a link, where it says.
    fn rate(&self, link: &Tree) -> Result<Option<f64>, Found> {
        let Some(bandwidth) = link.at("physical.bandwidth") else {
            return Ok(None);
        };
        for (key, scale) in [
            ("gigabits_per_second", 1e9 / 8.0),
            ("gigabytes_per_second", 1e9),
        ] {
            let Some(value) = bandwidth.get(key) else {
                continue;
            };
            let text = value.text().unwrap_or_default();
            return match text.parse::<f64>() {
                Ok(rate) if (1e-3..=1e6).contains(&rate) => Ok(Some(rate * scale)),
                _ => {
                    let message = format!(
                        "`{key}` must be a number from 0.001 to 1000000, not \"{}\"",
                        shorten(text)
                    );
                    Err(self.at_span(value.place(""), message, "such as gigabits_per_second: 400"))
                }
            };
        }
        let message =
            "this bandwidth is in neither gigabits_per_second nor gigabytes_per_second".into();
        Err(self.at(
            bandwidth,
            message,
            "transfers say nothing of bits: give gigabits_per_second",
        ))
    }

    /// A device alone says how many interfaces it has, not how fast they are.
    fn one_node(
        &self,
        host: &Tree,
        parts: Parts,
        accelerator: String,
        scale_up: Option<f64>,
    ) -> Result<Described, Found> {
        let catalogue = Catalogue::builtin();
        let like = catalogue
            .names(crate::catalogue::Section::Nodes)
            .filter_map(|name| catalogue.node(name))
            .find(|node| {
                node.accelerator.name == accelerator
                    && !matches!(node.scale_up.wiring, Wiring::Torus(_))
            });
        let Some(like) = like.filter(|_| parts.nics > 0) else {
            return Err(self.at(
                host,
                "this node has no component of the choice `nic`".into(),
                "interfaces are components with choice: nic, or devices with ports",
            ));
        };
        Ok(Described {
            accelerator,
            gpus: parts.xpus,
            scale_up,
            nics: parts.nics,
            nic_rate: Some(like.nic.rate.as_f64()),
            mesh_of: None,
            nodes: Some(1),
            fabric: None,
        })
    }
}

fn list<'t>(tree: &'t Tree, key: &str) -> &'t [Tree] {
    match tree.get(key).map(|list| &list.value) {
        Some(Value::Sequence(items)) => items,
        _ => &[],
    }
}

fn name_of(tree: &Tree) -> Option<&str> {
    tree.get("name").and_then(Tree::text)
}

fn find<'t>(items: &'t [Tree], name: &str) -> Option<&'t Tree> {
    items.iter().find(|item| name_of(item) == Some(name))
}

/// What a component is; earlier graphs call an `xpu` an `npu`.
fn kind(component: &Tree) -> Option<&str> {
    let choice = component.get("choice")?.text()?;
    Some(if choice == "npu" { "xpu" } else { choice })
}

fn xpu(device: &Tree) -> Option<&Tree> {
    list(device, "components")
        .iter()
        .find(|c| kind(c) == Some("xpu"))
}

/// Accelerators that a text names.
fn mentioned(text: &str) -> Vec<&'static str> {
    let text = text.to_lowercase();
    let words: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let mut found: Vec<&str> = WORDS
        .iter()
        .filter(|(word, _)| words.contains(word))
        .map(|(_, name)| *name)
        .collect();
    if words.contains(&"a100") {
        match (words.contains(&"80gb"), words.contains(&"40gb")) {
            (true, false) => found.push("a100-80"),
            (false, true) => found.push("a100-40"),
            _ => found.extend(["a100-80", "a100-40"]),
        }
    }
    found
}
