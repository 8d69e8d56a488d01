//! From what was typed to what was meant: names are looked up, defaults filled in, numbers checked.

mod replay;
mod serving;

use crate::catalogue::{Catalogue, Section};
use crate::check;
use crate::decode::{self, DecodeError, shorten};
use crate::diagnostic::{Diagnostic, Source};
use crate::document::{
    Document, FidelityText, NodeText, ParallelismText, PartText, Published, RankOrderText,
    StragglerText, TrainingText, WorkloadText,
};
use crate::draws;
use crate::huggingface;
use crate::import;
use crate::refusal::Written;
use crate::yaml::{self, Node as Tree};
use rackflow_plan::{Fidelity, RankOrder, Setup, Straggler};
use rackflow_topology::{Accelerator, Cluster, Fabric, Node, Part};
use rackflow_workload::{Images, Model, Parallelism, SoftwareStack, Training};
use serde::de::DeserializeOwned;

pub use replay::ReplayScenario;

/// A scenario as typed: well-formed, with known keys and right types, its names not yet looked up.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    source: Source,
    tree: Tree,
    document: Document,
    /// What tells this case of a sweep from the others.
    case: Option<String>,
}

/// Reads the text of a scenario. `source_name` is what messages call it.
///
/// # Errors
/// When the text is not YAML, a key is unknown, missing or given twice, or a value is of the wrong
/// type. The first such error is reported alone.
pub fn parse(source_name: &str, text: &str) -> Result<Scenario, Vec<Diagnostic>> {
    let source = Source {
        name: source_name.into(),
        text: text.into(),
    };
    let tree = yaml::parse(&source).map_err(|error| vec![*error])?;
    if let Some((key, _)) = tree.entry("sweep") {
        let error = DecodeError::placed("this file describes many cases, not one", key.span)
            .hint("`rackflow sweep` runs them all");
        return Err(vec![error.in_source(&source)]);
    }
    if let Some((key, _)) = tree.entry("jobs") {
        let error = DecodeError::placed(
            "this scenario has several jobs, and one is needed",
            key.span,
        )
        .hint(
            "`rackflow run` and `rackflow check` take all; for one, write its `cluster` and `workload` as a scenario",
        );
        return Err(vec![error.in_source(&source)]);
    }
    Scenario::of_tree(source, tree, None)
}

/// Reads a file that a scenario names, relative to the scenario.
pub(crate) type Files<'f> = dyn Fn(&str) -> std::io::Result<String> + 'f;

impl Scenario {
    pub(crate) fn of_tree(
        source: Source,
        tree: Tree,
        case: Option<&str>,
    ) -> Result<Self, Vec<Diagnostic>> {
        let known = import::with_stand_ins(&tree);
        let document = decode::decode(&known, decode::ROOT, tree.place(""))
            .map_err(|error: DecodeError| vec![error.in_source(&source)])?;
        Ok(Self {
            source,
            tree,
            document,
            case: case.map(str::to_owned),
        })
    }

    /// GPUs that compute more slowly than the others.
    fn stragglers(&self) -> Vec<Straggler> {
        let simulation = &self.document.simulation;
        let meant = |straggler: &StragglerText| Straggler {
            gpu: straggler.gpu,
            slowdown: straggler.slowdown,
        };
        simulation.stragglers.iter().map(meant).collect()
    }

    pub(crate) fn findings(&self) -> Findings<'_> {
        Findings {
            published: self.document.published.as_ref(),
            ..Findings::new(&self.source, &self.tree)
        }
    }

    pub(crate) fn document(&self) -> &Document {
        &self.document
    }

    /// What a source printed about the same run, where the scenario says.
    pub fn published(&self) -> Option<&Published> {
        self.document.published.as_ref()
    }

    /// Where each part of the scenario is written, for what is found out later.
    pub fn written(&self) -> Written {
        Written {
            source: self.source.clone(),
            tree: self.tree.clone(),
        }
    }

    /// The name of the scenario: its file without directory and extension, or the case of a sweep.
    pub fn name(&self) -> &str {
        if let Some(case) = &self.case {
            return case;
        }
        let file = self
            .source
            .name
            .rsplit(['/', '\\'])
            .next()
            .unwrap_or_default();
        let stem = file
            .strip_suffix(".yaml")
            .or_else(|| file.strip_suffix(".yml"))
            .unwrap_or(file);
        if stem.is_empty() { "scenario" } else { stem }
    }

    /// With this seed and fidelity in place of its own, as a command line may ask.
    #[must_use]
    pub fn simulated_with(mut self, seed: Option<u64>, fidelity: Option<Fidelity>) -> Self {
        let simulation = &mut self.document.simulation;
        simulation.seed = seed.unwrap_or(simulation.seed);
        simulation.fidelity = match fidelity {
            None => simulation.fidelity,
            Some(Fidelity::Folded) => FidelityText::Folded,
            Some(Fidelity::Full) => FidelityText::Full,
        };
        self
    }

    /// What the scenario does, for a message that something else is needed.
    fn not_this(&self, needed: &str) -> String {
        let does = match self.document.workload {
            WorkloadText::Training(_) => "trains",
            WorkloadText::Serving(_) => "serves",
            WorkloadText::Chakra(_) => "replays a trace",
        };
        format!("this scenario {does}; {needed} is needed")
    }

    /// The same with the cluster that it imports in place, or `None` where it imports none.
    pub(crate) fn imported(&self, files: &Files<'_>) -> Result<Option<Self>, Vec<Diagnostic>> {
        let Some(tree) = import::imported(&self.source, &self.tree, files)? else {
            return Ok(None);
        };
        let simulation = self.document.simulation.clone();
        let mut scenario = Self::of_tree(self.source.clone(), tree, self.case.as_deref())?;
        // The command line may have changed it.
        scenario.document.simulation = simulation;
        Ok(Some(scenario))
    }

    /// Looks every name up, fills defaults in and checks the numbers. `files` reads a Hugging Face
    /// `config.json` that the scenario names and a cluster that it imports, relative to the scenario.
    ///
    /// # Errors
    /// With everything that keeps the scenario from being simulated.
    pub fn resolve(&self, files: &Files<'_>) -> Result<Setup, Vec<Diagnostic>> {
        if let Some(scenario) = self.imported(files)? {
            return scenario.resolve(files);
        }
        let mut findings = self.findings();
        let WorkloadText::Training(text) = &self.document.workload else {
            let found = findings.at("workload", self.not_this("a training one"));
            let way_out = match self.document.workload {
                WorkloadText::Chakra(_) => {
                    "`rackflow run` and `rackflow check` take it; else write workload: { training: ... }"
                }
                _ => "write workload: { training: ... }",
            };
            return Err(vec![found.hint(way_out)]);
        };
        let cluster = &self.document.cluster;
        let parts = findings.parts(cluster.nodes.as_deref(), cluster.gpus);
        let fabric = findings.fabric(self.document.cluster.fabric.is_some());
        let model = findings.model_at(MODEL, files);
        let stack =
            findings
                .named::<SoftwareStack>(Section::Stacks, STACK)
                .map(|(mut stack, name)| {
                    stack.name = name;
                    stack
                });
        let (Some(parts), Some(fabric), Some(model), Some(stack)) = (parts, fabric, model, stack)
        else {
            return Err(findings.found);
        };
        let gpus = parts
            .iter()
            .fold(0, |sum: u32, part| sum.saturating_add(part.gpus));
        let Some(fabric) = fabric.or_else(|| findings.default_fabric(&parts[0].node, gpus)) else {
            return Err(findings.found);
        };
        let cluster = Cluster::of_parts(parts, fabric);
        if cluster.is_mixed() {
            findings.refuse_beside_several_kinds();
        }
        let training = training(text, cluster.gpus, model, stack);
        let simulation = &self.document.simulation;
        let token_draws = draws::tokens(&training.model, simulation.seed);
        let setup = Setup {
            name: self.name().to_owned(),
            cluster,
            training,
            rank_order: match text.rank_order {
                RankOrderText::DataBeforePipeline => RankOrder::DataBeforePipeline,
                RankOrderText::PipelineBeforeData => RankOrder::PipelineBeforeData,
            },
            stragglers: self.stragglers(),
            seeds: simulation.seeds.unwrap_or(1),
            jitter: simulation.jitter.0,
            seats: None,
            faults: simulation.links.clone(),
            fidelity: match simulation.fidelity {
                FidelityText::Folded => Fidelity::Folded,
                FidelityText::Full => Fidelity::Full,
            },
            seed: simulation.seed,
            token_draws,
        };
        check::check(&setup, text, &mut findings);
        if findings.found.is_empty() {
            Ok(setup)
        } else {
            Err(findings.found)
        }
    }
}

const NODE: &str = "cluster.node";
const NODES: &str = "cluster.nodes";
const FABRIC: &str = "cluster.fabric";
const MODEL: &str = "workload.training.model";
const STACK: &str = "workload.training.stack";

/// The training step with its defaults. `data` is what the other dimensions leave, rounded down;
/// the check says so where they leave no whole number.
fn training(text: &TrainingText, gpus: u32, model: Model, stack: SoftwareStack) -> Training {
    let images = text.images.as_ref().map(|images| {
        let own = model.vision.as_ref().and_then(|vision| vision.image);
        let [height, width] = images.pixels.unwrap_or([own.unwrap_or(0); 2]);
        Images {
            per_sequence: images.per_sequence,
            height,
            width,
            frozen: images.frozen,
        }
    });
    Training {
        model,
        stack,
        recipe: text.precision,
        sequence_length: text.sequence_length,
        global_batch: text.global_batch,
        micro_batch: text.micro_batch,
        parallelism: parallelism(&text.parallelism, gpus),
        schedule: text.schedule,
        recompute: text.recompute.0.clone(),
        routing: text.routing,
        images,
        layers_per_chunk: text.layers_per_chunk.clone(),
        assumed: text.assumed.clone(),
    }
}

fn parallelism(text: &ParallelismText, gpus: u32) -> Parallelism {
    let others = [text.tensor, text.context, text.pipeline]
        .map(u64::from)
        .iter()
        .product::<u64>();
    let derived = u64::from(gpus).checked_div(others).unwrap_or(1);
    Parallelism {
        tensor: text.tensor,
        sequence_parallel: text.sequence_parallel.unwrap_or(text.tensor > 1),
        context: text.context,
        pipeline: text.pipeline,
        virtual_pipeline: text.virtual_pipeline,
        data: text
            .data
            .unwrap_or(u32::try_from(derived).unwrap_or(u32::MAX)),
        expert: text.expert,
        expert_tensor: text.expert_tensor,
        zero: text.zero,
        zero_group: text.zero_group,
    }
}

/// Collects what is wrong.
pub(crate) struct Findings<'s> {
    source: &'s Source,
    tree: &'s Tree,
    published: Option<&'s Published>,
    found: Vec<Diagnostic>,
}

impl<'s> Findings<'s> {
    /// Nothing found yet.
    pub fn new(source: &'s Source, tree: &'s Tree) -> Self {
        Self {
            source,
            tree,
            published: None,
            found: Vec::new(),
        }
    }

    /// Everything that was found.
    pub fn into_found(self) -> Vec<Diagnostic> {
        self.found
    }

    /// Nothing was found so far.
    pub fn is_clean(&self) -> bool {
        self.found.is_empty()
    }
}

impl Findings<'_> {
    /// `value`, unless something was found.
    pub fn into_result<T>(self, value: T) -> Result<T, Vec<Diagnostic>> {
        if self.found.is_empty() {
            Ok(value)
        } else {
            Err(self.found)
        }
    }

    /// An error at a path of the document, or at the longest part of it that is written.
    pub fn at(&self, path: &str, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(self.source, self.tree.place(path), message)
    }

    /// Keeps an error.
    pub fn report(&mut self, diagnostic: Diagnostic) {
        self.found.push(diagnostic);
    }

    /// Keeps an error of decoding.
    pub fn refuse(&mut self, error: DecodeError) {
        self.found.push(error.in_source(self.source));
    }

    /// What a source printed, where the scenario says.
    pub fn published(&self) -> Option<&Published> {
        self.published
    }

    /// Whether the author wrote something at this path.
    pub fn written(&self, path: &str) -> bool {
        self.tree.at(path).is_some_and(|node| !node.is_null())
    }

    /// An entry of the catalogue, or one that is defined in place, alone or by changing an entry.
    /// With the name by which the report calls it.
    pub fn named<T: DeserializeOwned>(
        &mut self,
        section: Section,
        path: &str,
    ) -> Option<(T, String)> {
        let (tree, name) = self.definition(section, path)?;
        let key = path.rsplit('.').next().unwrap_or(path);
        match decode::decode::<T>(&tree, key, self.tree.place(path)) {
            Ok(value) => Some((value, name)),
            Err(error) => {
                self.refuse(error);
                None
            }
        }
    }

    /// The tree of an entry or a definition, and its name.
    fn definition(&mut self, section: Section, path: &str) -> Option<(Tree, String)> {
        let catalogue = Catalogue::builtin();
        let node = self.tree.at(path)?;
        if let Some(name) = node.text() {
            return match catalogue.tree(section, name) {
                Some(tree) => Some((tree.placed_at(node.span), name.to_owned())),
                None => {
                    self.refuse(decode::unknown_name(section, name, node.span));
                    None
                }
            };
        }
        let given = node.get("name").and_then(Tree::text);
        let Some((_, like)) = node.entry("like") else {
            let name =
                given.map_or_else(|| format!("custom {}", section.singular()), str::to_owned);
            return Some((node.clone(), name));
        };
        let Some(base) = like.text() else {
            let known = section.plural();
            self.report(self.at(
                path,
                format!("`like` must be the name of one of the {known}"),
            ));
            return None;
        };
        let Some(tree) = catalogue.tree(section, base) else {
            self.refuse(decode::unknown_name(section, base, like.span));
            return None;
        };
        let changed = tree.placed_at(like.span).changed_by(&node.without("like"));
        Some((
            changed,
            given.map_or_else(|| format!("{base} (changed)"), str::to_owned),
        ))
    }

    /// The node of the cluster, which has one kind of them.
    pub fn node(&mut self) -> Option<Node> {
        if self.written(NODES) {
            let found = self.at(
                NODES,
                "nodes of several kinds work on one training job only",
            );
            self.report(found.hint("write `node` and `gpus`"));
            return None;
        }
        self.node_at(NODE)
    }

    /// The nodes of the cluster, kind by kind in the order of GPUs.
    pub fn parts(&mut self, nodes: Option<&[PartText]>, gpus: u32) -> Option<Vec<Part>> {
        let Some(parts) = nodes else {
            let node = self.node_at(NODE)?;
            return Some(vec![Part { node, gpus }]);
        };
        for path in [NODE, "cluster.gpus"] {
            if self.written(path) {
                let name = path.rsplit('.').next().unwrap_or(path);
                let message = format!("`nodes` says which nodes there are, and so does `{name}`");
                self.report(self.at(path, message).hint("leave one of them out"));
            }
        }
        if parts.is_empty() {
            let found = self.at(NODES, "`nodes` is empty");
            self.report(found.hint("write nodes: [{ node: dgx-h100, count: 4 }, ...]"));
        }
        let mut found = Vec::with_capacity(parts.len());
        for (index, part) in parts.iter().enumerate() {
            if part.count == 0 {
                let path = format!("{NODES}.{index}.count");
                self.report(self.at(&path, "`count` is 0; it must be at least 1"));
            }
            if let Some(node) = self.node_at(&format!("{NODES}.{index}.node")) {
                let gpus = node.gpus.saturating_mul(part.count);
                found.push(Part { node, gpus });
            }
        }
        (self.is_clean() && !found.is_empty()).then_some(found)
    }

    /// What is modelled for clusters of one kind only.
    fn refuse_beside_several_kinds(&mut self) {
        let path = "simulation.links";
        if self.written(path) {
            let message = "`links` is modelled for clusters of one kind of node";
            self.report(self.at(path, message).hint("leave it out, or `nodes`"));
        }
    }

    /// The node that is named or defined at this path.
    fn node_at(&mut self, path: &str) -> Option<Node> {
        let (tree, name) = self.definition(Section::Nodes, path)?;
        let text: NodeText = match decode::decode(&tree, "node", self.tree.place(path)) {
            Ok(text) => text,
            Err(error) => {
                self.refuse(error);
                return None;
            }
        };
        let accelerator = self.accelerator(path, &tree)?;
        Some(text.with(name, accelerator))
    }

    fn accelerator(&mut self, node_path: &str, node: &Tree) -> Option<Accelerator> {
        // A node of the catalogue names its accelerator there, a defined one here.
        let path = format!("{node_path}.accelerator");
        let (mut accelerator, name) = if self.written(&path) {
            self.named::<Accelerator>(Section::Accelerators, &path)?
        } else {
            let name = node.get("accelerator").and_then(Tree::text)?;
            (
                Catalogue::builtin().accelerator(name)?.clone(),
                name.to_owned(),
            )
        };
        accelerator.name = name;
        Some(accelerator)
    }

    /// `Some(None)` where the scenario leaves it out.
    pub fn fabric(&mut self, written: bool) -> Option<Option<Fabric>> {
        if !written {
            return Some(None);
        }
        self.named::<Fabric>(Section::Fabrics, FABRIC)
            .map(|(fabric, _)| Some(fabric))
    }

    /// One node needs no fabric; more than one must say.
    pub fn default_fabric(&mut self, node: &Node, gpus: u32) -> Option<Fabric> {
        // A node of none is refused where nodes are checked.
        if gpus > node.gpus && node.gpus > 0 {
            let names: Vec<&str> = Catalogue::builtin().names(Section::Fabrics).collect();
            let message = format!(
                "`fabric` is missing: {gpus} GPUs are more than one {} of {}",
                node.name, node.gpus
            );
            self.report(
                self.at("cluster", message)
                    .hint(format!("known fabrics: {}", names.join(", "))),
            );
            return None;
        }
        Catalogue::builtin().fabric("rail-optimized").cloned()
    }

    fn model_at(&mut self, at: &str, files: &Files<'_>) -> Option<Model> {
        let node = self.tree.at(at)?;
        let Some(path) = node.text().filter(|text| text.ends_with(".json")) else {
            let (mut model, name) = self.named::<Model>(Section::Models, at)?;
            model.name = name;
            return Some(model);
        };
        let text = match files(path) {
            Ok(text) => text,
            Err(error) => {
                let found = self.at(at, format!("cannot read {}: {error}", shorten(path)));
                self.report(found.hint("the path is relative to the scenario"));
                return None;
            }
        };
        match huggingface::parse(&text) {
            Ok(mut model) => {
                if model.name.is_empty() {
                    path.clone_into(&mut model.name);
                }
                Some(model)
            }
            Err(error) => {
                self.report(self.at(at, format!("{} is not a model: {error}", shorten(path))));
                None
            }
        }
    }
}
