//! The built-in catalogue: accelerators, nodes, fabrics, models and software stacks, every value
//! with its source.

use crate::decode::{self, DecodeError};
use crate::diagnostic::{Diagnostic, Source, Span};
use crate::document::{FabricEntry, NodeText};
use crate::yaml::{self, Key, Node as Tree, Value};
use indexmap::IndexMap;
use rackflow_topology::{Accelerator, Fabric, FailureProfile, Node};
use rackflow_workload::serving::ServingStack;
use rackflow_workload::{Model, SoftwareStack};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

/// A section of the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// What computes.
    Accelerators,
    /// What a cluster repeats.
    Nodes,
    /// What connects nodes.
    Fabrics,
    /// What is trained.
    Models,
    /// With what software, training.
    Stacks,
    /// With what software, serving.
    ServingStacks,
    /// What interrupts a run.
    Failures,
}

impl Section {
    /// Every section, in the order of `list`.
    pub const ALL: [Self; 7] = [
        Self::Models,
        Self::Accelerators,
        Self::Nodes,
        Self::Fabrics,
        Self::Stacks,
        Self::ServingStacks,
        Self::Failures,
    ];

    /// What one entry is called.
    pub const fn singular(self) -> &'static str {
        match self {
            Self::Accelerators => "accelerator",
            Self::Nodes => "node",
            Self::Fabrics => "fabric",
            Self::Models => "model",
            Self::Stacks => "stack",
            Self::ServingStacks => "serving stack",
            Self::Failures => "failure profile",
        }
    }

    /// The heading of the section.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Accelerators => "accelerators",
            Self::Nodes => "nodes",
            Self::Fabrics => "fabrics",
            Self::Models => "models",
            Self::Stacks => "stacks",
            Self::ServingStacks => "serving stacks",
            Self::Failures => "failure profiles",
        }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.plural())
    }
}

/// The text of an entry, for people.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    description: String,
    /// The entry as written in the catalogue, with the comment above it.
    text: String,
    sources: BTreeMap<String, String>,
    tree: Tree,
}

/// Hardware, models and software by name.
#[derive(Debug, Clone, PartialEq)]
pub struct Catalogue {
    entries: BTreeMap<Section, IndexMap<String, Entry>>,
    accelerators: IndexMap<String, Accelerator>,
    nodes: IndexMap<String, Node>,
    fabrics: IndexMap<String, Fabric>,
    models: IndexMap<String, Model>,
    stacks: IndexMap<String, SoftwareStack>,
    serving_stacks: IndexMap<String, ServingStack>,
    failures: IndexMap<String, FailureProfile>,
}

/// Name and text of each file of the catalogue.
const FILES: [(Section, &str, &str); 7] = [
    (
        Section::Accelerators,
        "catalogue/accelerators.yaml",
        include_str!("../catalogue/accelerators.yaml"),
    ),
    (
        Section::Nodes,
        "catalogue/nodes.yaml",
        include_str!("../catalogue/nodes.yaml"),
    ),
    (
        Section::Fabrics,
        "catalogue/fabrics.yaml",
        include_str!("../catalogue/fabrics.yaml"),
    ),
    (
        Section::Models,
        "catalogue/models.yaml",
        include_str!("../catalogue/models.yaml"),
    ),
    (
        Section::Stacks,
        "catalogue/stacks.yaml",
        include_str!("../catalogue/stacks.yaml"),
    ),
    (
        Section::ServingStacks,
        "catalogue/serving_stacks.yaml",
        include_str!("../catalogue/serving_stacks.yaml"),
    ),
    (
        Section::Failures,
        "catalogue/failures.yaml",
        include_str!("../catalogue/failures.yaml"),
    ),
];

impl Catalogue {
    /// The catalogue that ships with the program, parsed once.
    ///
    /// # Panics
    /// When the embedded text is faulty, which a test rules out.
    pub fn builtin() -> &'static Self {
        static BUILTIN: LazyLock<Catalogue> = LazyLock::new(|| match Catalogue::read() {
            Ok(catalogue) => catalogue,
            Err(diagnostic) => panic!("the built-in catalogue is faulty\n{diagnostic}"),
        });
        &BUILTIN
    }

    fn read() -> Result<Self, Box<Diagnostic>> {
        let mut catalogue = Self {
            entries: BTreeMap::new(),
            accelerators: IndexMap::new(),
            nodes: IndexMap::new(),
            fabrics: IndexMap::new(),
            models: IndexMap::new(),
            stacks: IndexMap::new(),
            serving_stacks: IndexMap::new(),
            failures: IndexMap::new(),
        };
        for (section, name, text) in FILES {
            let source = Source {
                name: name.into(),
                text: text.into(),
            };
            catalogue.read_section(section, &source)?;
        }
        Ok(catalogue)
    }

    fn read_section(&mut self, section: Section, source: &Source) -> Result<(), Box<Diagnostic>> {
        let root = yaml::parse(source)?;
        let Value::Mapping(named) = root.value else {
            let message = format!("the {section} are a mapping of names");
            return Err(Box::new(Diagnostic::error(source, root.span, message)));
        };
        let texts = entry_texts(&source.text, &named);
        for ((key, tree), text) in named.into_iter().zip(texts) {
            self.read_entry(section, &key, &tree)
                .map_err(|error| Box::new(error.in_source(source)))?;
            let sources = tree.get("sources").map_or(Ok(BTreeMap::new()), |node| {
                decode::decode(node, "sources", node.span)
            });
            let sources = sources.map_err(|error| Box::new(error.in_source(source)))?;
            let description = self.describe(section, &key.text, &tree, &text);
            let entry = Entry {
                description,
                text,
                sources,
                tree,
            };
            self.entries
                .entry(section)
                .or_default()
                .insert(key.text, entry);
        }
        Ok(())
    }

    fn read_entry(&mut self, section: Section, key: &Key, tree: &Tree) -> Result<(), DecodeError> {
        let name = key.text.clone();
        match section {
            Section::Accelerators => {
                let mut accelerator: Accelerator = decode::decode(tree, &name, key.span)?;
                accelerator.name.clone_from(&name);
                self.accelerators.insert(name, accelerator);
            }
            Section::Nodes => {
                let text: NodeText = decode::decode(tree, &name, key.span)?;
                let wanted = tree
                    .get("accelerator")
                    .and_then(Tree::text)
                    .unwrap_or_default();
                let accelerator = self.accelerators.get(wanted).cloned().ok_or_else(|| {
                    DecodeError::placed(
                        format!("there is no accelerator `{wanted}`"),
                        tree.place("accelerator"),
                    )
                })?;
                let node = text.with(name.clone(), accelerator);
                self.nodes.insert(name, node);
            }
            Section::Fabrics => {
                let entry: FabricEntry = decode::decode(tree, &name, key.span)?;
                self.fabrics.insert(name, entry.fabric);
            }
            Section::Models => {
                let mut model: Model = decode::decode(tree, &name, key.span)?;
                model.name.clone_from(&name);
                self.models.insert(name, model);
            }
            Section::Stacks => {
                let mut stack: SoftwareStack = decode::decode(tree, &name, key.span)?;
                stack.name.clone_from(&name);
                self.stacks.insert(name, stack);
            }
            Section::Failures => {
                let mut profile: FailureProfile = decode::decode(tree, &name, key.span)?;
                profile.name.clone_from(&name);
                self.failures.insert(name, profile);
            }
            Section::ServingStacks => {
                let mut stack: ServingStack = decode::decode(tree, &name, key.span)?;
                stack.name.clone_from(&name);
                self.serving_stacks.insert(name, stack);
            }
        }
        Ok(())
    }

    /// The entry's own description, the comment above it, or what its numbers say.
    fn describe(&self, section: Section, name: &str, tree: &Tree, text: &str) -> String {
        if let Some(own) = tree.get("description").and_then(Tree::text) {
            return own.to_owned();
        }
        let comment: Vec<&str> = text
            .lines()
            .map_while(|line| line.strip_prefix('#'))
            .map(str::trim)
            .collect();
        if !comment.is_empty() {
            return comment.join(" ");
        }
        match section {
            Section::Nodes => self.nodes.get(name).map_or_else(String::new, |node| {
                format!(
                    "{} x {}, NVLink domain of {} at {}, {} NICs of {} Gbit/s",
                    node.gpus,
                    node.accelerator.name,
                    node.scale_up.domain,
                    node.scale_up.bandwidth,
                    node.nic.count,
                    node.nic.rate.bytes_per_sec() / 125_000_000,
                )
            }),
            Section::Models => self.models.get(name).map_or_else(String::new, |model| {
                let experts = model.moe.as_ref().map_or_else(String::new, |moe| {
                    format!(
                        ", {} experts of which a token visits {}",
                        moe.experts, moe.top_k
                    )
                });
                format!("{} layers, {} wide{experts}", model.layers, model.hidden)
            }),
            _ => String::new(),
        }
    }

    /// An accelerator by name.
    pub fn accelerator(&self, name: &str) -> Option<&Accelerator> {
        self.accelerators.get(name)
    }

    /// A node by name, with its accelerator.
    pub fn node(&self, name: &str) -> Option<Node> {
        self.nodes.get(name).cloned()
    }

    /// A fabric by name.
    pub fn fabric(&self, name: &str) -> Option<&Fabric> {
        self.fabrics.get(name)
    }

    /// A model by name.
    pub fn model(&self, name: &str) -> Option<&Model> {
        self.models.get(name)
    }

    /// A software stack by name.
    pub fn stack(&self, name: &str) -> Option<&SoftwareStack> {
        self.stacks.get(name)
    }

    /// A serving stack by name.
    pub fn serving_stack(&self, name: &str) -> Option<&ServingStack> {
        self.serving_stacks.get(name)
    }

    /// A failure profile by name.
    pub fn failures(&self, name: &str) -> Option<&FailureProfile> {
        self.failures.get(name)
    }

    /// Names and one-line descriptions of a section, in the order of its file.
    pub fn list(&self, section: Section) -> impl Iterator<Item = (&str, &str)> {
        let entries = self.entries.get(&section);
        entries
            .into_iter()
            .flatten()
            .map(|(name, entry)| (name.as_str(), entry.description.as_str()))
    }

    /// The names of a section, in the order of its file.
    pub fn names(&self, section: Section) -> impl Iterator<Item = &str> + Clone {
        self.entries
            .get(&section)
            .into_iter()
            .flatten()
            .map(|(name, _)| name.as_str())
    }

    /// The sections that have an entry of this name.
    pub fn sections_of(&self, name: &str) -> impl Iterator<Item = Section> {
        Section::ALL
            .into_iter()
            .filter(move |section| self.entry(*section, name).is_some())
    }

    /// An entry as it is written in the catalogue, with the comment above it.
    pub fn text(&self, section: Section, name: &str) -> Option<&str> {
        Some(&self.entry(section, name)?.text)
    }

    /// Where the values of an entry were read, by field name; `*` covers the rest.
    pub fn sources(&self, section: Section, name: &str) -> Option<&BTreeMap<String, String>> {
        Some(&self.entry(section, name)?.sources)
    }

    /// An entry as a tree, to be changed in place by a scenario.
    pub(crate) fn tree(&self, section: Section, name: &str) -> Option<&Tree> {
        let tree = &self.entry(section, name)?.tree;
        if section == Section::Fabrics {
            tree.get("fabric")
        } else {
            Some(tree)
        }
    }

    fn entry(&self, section: Section, name: &str) -> Option<&Entry> {
        self.entries.get(&section)?.get(name)
    }
}

/// Cuts the text into entries, each with the comment lines right above its key.
fn entry_texts(text: &str, entries: &[(Key, Tree)]) -> Vec<String> {
    let starts: Vec<usize> = entries
        .iter()
        .map(|(key, _)| comment_start(text, key.span))
        .collect();
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|(start, end)| text[*start..end].trim_end().to_owned())
        .collect()
}

fn comment_start(text: &str, key: Span) -> usize {
    let mut start = key.offset;
    while let Some(line) = text[..start].strip_suffix('\n') {
        let line_start = line.rfind('\n').map_or(0, |newline| newline + 1);
        if !line[line_start..].starts_with('#') {
            break;
        }
        start = line_start;
    }
    start
}

/// Entries of the section that resemble `name`.
pub(crate) fn nearest(section: Section, name: &str) -> Vec<&'static str> {
    let names = Catalogue::builtin().names(section);
    crate::suggest::near(name, names, 4)
}

/// No server in the catalogue has more accelerators on one host.
const HOST_GPUS: u32 = 8;

impl NodeText {
    /// The node, with its accelerator.
    pub(crate) fn with(self, name: String, accelerator: Accelerator) -> Node {
        Node {
            name,
            accelerator,
            gpus: self.gpus,
            gpus_per_host: self
                .gpus_per_host
                .map_or(self.gpus.min(HOST_GPUS), |gpus| gpus.get()),
            scale_up: self.scale_up,
            nic: self.nic,
            rack: self.rack,
            host_slowdown: self.host_slowdown,
            sources: self.sources,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_catalogue_parses() {
        if let Err(diagnostic) = Catalogue::read() {
            panic!("{diagnostic}");
        }
    }

    #[test]
    fn every_entry_has_a_description_and_a_source() {
        let catalogue = Catalogue::builtin();
        for section in Section::ALL {
            assert!(catalogue.names(section).count() > 5, "{section}");
            for (name, description) in catalogue.list(section) {
                assert!(
                    !description.is_empty(),
                    "{section} {name} has no description"
                );
                assert!(
                    !catalogue.sources(section, name).unwrap().is_empty(),
                    "{section} {name} has no source"
                );
                let text = catalogue.text(section, name).unwrap();
                assert!(
                    text.contains(&format!("{name}:")),
                    "{section} {name}: {text}"
                );
            }
        }
    }
}
