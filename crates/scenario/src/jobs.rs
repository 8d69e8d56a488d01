//! Several jobs on one cluster: who gets which accelerators.

use crate::decode::{self, shorten};
use crate::diagnostic::{Diagnostic, Source, Span};
use crate::document::{JobText, JobsDocument, PlacementText};
use crate::import;
use crate::refusal::Written;
use crate::resolve::{Files, Findings, Scenario};
use crate::yaml::{self, Key, Node as Tree, Value};
use rackflow_plan::serving::FleetSetup;
use rackflow_plan::{Fidelity, Seats, Setup};
use rackflow_topology::{Cluster, LinkFault};
use rackflow_units::counted;

/// A scenario of several jobs, its names not yet looked up.
#[derive(Debug, Clone, PartialEq)]
pub struct JobsScenario {
    source: Source,
    tree: Tree,
    document: JobsDocument,
    seed: Option<u64>,
    fidelity: Option<Fidelity>,
}

/// One job as meant.
#[derive(Debug, Clone)]
pub struct Job {
    /// What the report calls it.
    pub name: String,
    /// How its accelerators were chosen, as it is written in a scenario.
    pub placement: &'static str,
    /// What it does, and on which seats.
    pub work: JobWork,
    /// Where each part of it is written.
    pub written: Written,
}

/// What a job does.
#[derive(Debug, Clone)]
pub enum JobWork {
    /// It trains.
    Training(Box<Setup>),
    /// It answers requests.
    Serving(Box<FleetSetup>),
}

impl JobWork {
    /// A cluster of the job's size.
    fn cluster(&self) -> &Cluster {
        match self {
            Self::Training(setup) => &setup.cluster,
            Self::Serving(setup) => &setup.clusters[0],
        }
    }

    fn sit(&mut self, at: Seats, links: &[LinkFault]) {
        let (seats, faults) = match self {
            Self::Training(setup) => (&mut setup.seats, &mut setup.faults),
            Self::Serving(setup) => (&mut setup.seats, &mut setup.faults),
        };
        *seats = Some(at);
        *faults = links.to_vec();
    }
}

/// Whether a text describes several jobs. What is no YAML does not.
pub fn has_jobs(source_name: &str, text: &str) -> bool {
    let source = Source {
        name: source_name.into(),
        text: text.into(),
    };
    yaml::parse(&source).is_ok_and(|tree| tree.get("jobs").is_some())
}

/// Reads the text of a scenario of several jobs.
///
/// # Errors
/// As [`crate::parse`].
pub fn parse_jobs(source_name: &str, text: &str) -> Result<JobsScenario, Vec<Diagnostic>> {
    let source = Source {
        name: source_name.into(),
        text: text.into(),
    };
    let tree = yaml::parse(&source).map_err(|error| vec![*error])?;
    if let Some((key, _)) = tree.entry("workload") {
        let found = Diagnostic::error(
            &source,
            key.span,
            "a scenario has either `workload` or `jobs`",
        );
        return Err(vec![
            found.hint("move it into a job of its own, with `name` and `gpus`"),
        ]);
    }
    let known = import::with_stand_ins(&tree);
    let document: JobsDocument = decode::decode(&known, decode::ROOT, tree.place(""))
        .map_err(|error| vec![error.in_source(&source)])?;
    Ok(JobsScenario {
        source,
        tree,
        document,
        seed: None,
        fidelity: None,
    })
}

impl JobsScenario {
    /// With this seed and fidelity in place of its own.
    #[must_use]
    pub fn simulated_with(mut self, seed: Option<u64>, fidelity: Option<Fidelity>) -> Self {
        self.seed = seed;
        self.fidelity = fidelity;
        if let Some(seed) = seed {
            self.document.simulation.seed = seed;
        }
        self
    }

    /// Gives every job its accelerators, and resolves each as a scenario of its own.
    ///
    /// # Errors
    /// With everything that keeps the jobs from being simulated.
    pub fn resolve(mut self, files: &Files<'_>) -> Result<Vec<Job>, Vec<Diagnostic>> {
        if let Some(tree) = import::imported(&self.source, &self.tree, files)? {
            let document: JobsDocument = decode::decode(&tree, decode::ROOT, tree.place(""))
                .map_err(|error| vec![error.in_source(&self.source)])?;
            self.document.cluster = document.cluster;
            self.tree = tree;
        }
        let mut findings = Findings::new(&self.source, &self.tree);
        self.check_names(&mut findings);
        if !findings.is_clean() {
            return Err(findings.into_found());
        }
        let mut jobs = Vec::new();
        let mut wrong = Vec::new();
        for (index, job) in self.document.jobs.iter().enumerate() {
            match self.job(index, job, files) {
                Ok(job) => jobs.push(job),
                // A fault of the cluster would be found again in every job.
                Err(found) => wrong.extend(
                    found
                        .into_iter()
                        .filter(|f| !wrong.contains(f))
                        .collect::<Vec<_>>(),
                ),
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        self.seat(&mut jobs, &mut findings);
        if findings.is_clean() {
            Ok(jobs)
        } else {
            Err(findings.into_found())
        }
    }

    fn check_names(&self, findings: &mut Findings<'_>) {
        let jobs = &self.document.jobs;
        if jobs.is_empty() {
            let found = findings.at("jobs", "there is no job");
            findings.report(found.hint("- { name: first, gpus: 64, workload: { training: ... } }"));
        }
        for (index, job) in jobs.iter().enumerate() {
            let path = format!("jobs.{index}.name");
            if job.name.trim().is_empty() {
                let found = findings.at(&path, "a job needs a name");
                findings.report(found);
            } else if jobs[..index].iter().any(|other| other.name == job.name) {
                let found = findings.at(
                    &path,
                    format!("two jobs are named `{}`", shorten(&job.name)),
                );
                findings.report(found);
            }
        }
        let asked: u64 = jobs.iter().map(|job| u64::from(job.gpus)).sum();
        let gpus = self.document.cluster.gpus;
        if asked > u64::from(gpus) {
            let found = findings.at(
                "jobs",
                format!(
                    "the jobs ask for {}, and the cluster has {gpus}",
                    counted(asked, "GPU")
                ),
            );
            findings.report(found);
        }
        for (index, job) in jobs.iter().enumerate() {
            for straggler in &self.document.simulation.stragglers {
                if straggler.gpu >= job.gpus {
                    let found = findings.at(
                        &format!("jobs.{index}.gpus"),
                        format!(
                            "`stragglers` name rank {} of every job, and `{}` has {}",
                            straggler.gpu,
                            shorten(&job.name),
                            job.gpus
                        ),
                    );
                    findings
                        .report(found.hint("beside jobs, a straggler is a rank of each of them"));
                }
            }
        }
    }

    /// One job as a scenario on a cluster of its size. Faults of links are those of the whole
    /// cluster and are left to [`Self::seat`].
    fn job(&self, index: usize, job: &JobText, files: &Files<'_>) -> Result<Job, Vec<Diagnostic>> {
        let path = format!("jobs.{index}");
        let span = self.tree.place(&format!("{path}.gpus"));
        let items = match self.tree.get("jobs").map(|jobs| &jobs.value) {
            Some(Value::Sequence(items)) => items,
            _ => unreachable!("jobs were decoded as a list"),
        };
        let workload = items[index].entry("workload").cloned();
        let Some((workload_key, workload)) = workload else {
            unreachable!("a job was decoded with its workload")
        };
        let mut entries = Vec::new();
        if let Some((key, cluster)) = self.tree.entry("cluster") {
            entries.push((key.clone(), with_gpus(cluster, job.gpus, span)));
        }
        entries.push((workload_key, workload));
        if let Some((key, simulation)) = self.tree.entry("simulation") {
            entries.push((key.clone(), simulation.without("links")));
        }
        let tree = Tree {
            span: items[index].span,
            value: Value::Mapping(entries),
        };
        let scenario = Scenario::of_tree(self.source.clone(), tree, Some(&job.name))?
            .simulated_with(self.seed, self.fidelity);
        let written = scenario.written();
        let work = if scenario.serves() {
            let setup = scenario.resolve_serving(files)?;
            if setup.clusters.len() > 1 {
                let found = Diagnostic::error(
                    &self.source,
                    self.tree
                        .place(&format!("{path}.workload.serving.disaggregation")),
                    "beside other jobs both pools sit on the nodes of the cluster",
                );
                return Err(vec![found.hint("leave `node` of the pools out")]);
            }
            JobWork::Serving(Box::new(setup))
        } else {
            JobWork::Training(Box::new(scenario.resolve(files)?))
        };
        Ok(Job {
            name: job.name.clone(),
            placement: written_placement(&job.placement),
            work,
            written,
        })
    }

    /// Gives the jobs their accelerators, in the order in which they are written.
    fn seat(&self, jobs: &mut [Job], findings: &mut Findings<'_>) {
        let Some(first) = jobs.first() else { return };
        let cluster = Cluster {
            gpus: self.document.cluster.gpus,
            ..first.work.cluster().clone()
        };
        crate::check::cluster(&cluster, findings);
        if !findings.is_clean() {
            return;
        }
        crate::check::links(&cluster, &self.document.simulation.links, findings);
        let mut free = vec![true; cluster.gpus as usize];
        for (index, (job, text)) in jobs.iter_mut().zip(&self.document.jobs).enumerate() {
            match seats(text, &cluster, &free, self.document.simulation.seed) {
                Ok(gpus) => {
                    for gpu in &gpus {
                        free[*gpu as usize] = false;
                    }
                    let seats = Seats {
                        cluster: cluster.clone(),
                        gpus,
                    };
                    job.work.sit(seats, &self.document.simulation.links);
                }
                Err(message) => {
                    let found = findings.at(&format!("jobs.{index}.placement"), message);
                    findings.report(found);
                }
            }
        }
    }
}

fn written_placement(placement: &PlacementText) -> &'static str {
    match placement {
        PlacementText::Packed => "packed",
        PlacementText::RailAligned => "rail_aligned",
        PlacementText::Scattered => "scattered",
        PlacementText::Explicit(_) => "explicit",
    }
}

/// A mapping with another value of `gpus`.
fn with_gpus(cluster: &Tree, gpus: u32, span: Span) -> Tree {
    let mut cluster = cluster.without("gpus");
    if let Value::Mapping(entries) = &mut cluster.value {
        let key = Key {
            text: "gpus".into(),
            span,
        };
        let value = Value::Scalar {
            text: gpus.to_string(),
            quoted: false,
        };
        entries.push((key, Tree { span, value }));
    }
    cluster
}

/// The accelerators of one job, of those that are free.
fn seats(job: &JobText, cluster: &Cluster, free: &[bool], seed: u64) -> Result<Vec<u32>, String> {
    let wanted = job.gpus as usize;
    let per_node = cluster.node.gpus.min(cluster.gpus);
    let nodes: Vec<u32> = (0..cluster.gpus / per_node)
        .filter(|node| (0..per_node).all(|gpu| free[(node * per_node + gpu) as usize]))
        .collect();
    let of_nodes = |nodes: &[u32]| -> Vec<u32> {
        let gpus = nodes
            .iter()
            .flat_map(|node| node * per_node..(node + 1) * per_node);
        gpus.take(wanted).collect()
    };
    let gpus: Vec<u32> = match &job.placement {
        PlacementText::Packed => (0..cluster.gpus)
            .filter(|gpu| free[*gpu as usize])
            .take(wanted)
            .collect(),
        PlacementText::RailAligned => of_nodes(&nodes),
        PlacementText::Scattered => {
            let mut drawn = nodes;
            shuffle(&mut drawn, seed, &job.name);
            drawn.truncate(wanted.div_ceil(per_node as usize));
            of_nodes(&drawn)
        }
        PlacementText::Explicit(parts) => explicit(parts, cluster.gpus)?,
    };
    if matches!(job.placement, PlacementText::Explicit(_)) && gpus.len() != wanted {
        return Err(format!(
            "{} listed, and the job has {wanted}",
            match gpus.len() {
                1 => "1 GPU is".to_owned(),
                many => counted(many as u64, "GPU") + " are",
            }
        ));
    }
    let mut seen = std::collections::BTreeSet::new();
    if let Some(gpu) = gpus
        .iter()
        .find(|gpu| !free[**gpu as usize] || !seen.insert(**gpu))
    {
        return Err(format!("GPU {gpu} is taken already"));
    }
    if gpus.len() < wanted {
        let what = written_placement(&job.placement);
        return Err(format!(
            "`{what}` takes whole free nodes of {}, and they hold {} of the {}",
            counted(per_node, "GPU"),
            gpus.len(),
            counted(wanted as u64, "GPU")
        ));
    }
    Ok(gpus)
}

/// `0-255` and `7`, in this order.
fn explicit(parts: &[String], gpus: u32) -> Result<Vec<u32>, String> {
    let mut all = Vec::new();
    for part in parts {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u32>().ok();
        let range = number(first)
            .zip(number(last))
            .filter(|(first, last)| first <= last);
        let Some((first, last)) = range else {
            return Err(format!(
                "`{}` is neither a GPU nor a range such as 0-255",
                shorten(part)
            ));
        };
        if last >= gpus {
            return Err(format!(
                "there is no GPU {last}: the cluster has {gpus}, counted from 0"
            ));
        }
        all.extend(first..=last);
    }
    Ok(all)
}

/// A random order that follows from the seed and the name of the job (Fisher and Yates).
fn shuffle(nodes: &mut [u32], seed: u64, name: &str) {
    let mut stream = rackflow_engine::RandomStream::root(seed)
        .derive("placement")
        .derive(name);
    for last in (1..nodes.len()).rev() {
        nodes.swap(last, stream.below(last as u64 + 1) as usize);
    }
}
