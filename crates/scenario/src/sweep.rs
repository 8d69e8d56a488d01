//! Sweeps: one file, many cases.
//!
//! A field that holds a list, or a range such as `{ from: 2048, to: 131072, times: 2 }`, is varied.
//! The cases are made on the YAML tree before anything is decoded, so every value keeps its place
//! and a case that is wrong points at the entry of the list that makes it so. What is a list by
//! nature (`recompute`, `assumed`) is known from the JSON Schema and left alone.
//!
//! Lists are combined each with each. The `sweep` section says where that is not meant: `zip` names
//! lists that advance together, and `axes` (or `cases`, for a single one) name whole sets of changes.

use crate::decode::{DecodeError, shorten};
use crate::diagnostic::{Diagnostic, Source, Span};
use crate::resolve::Scenario;
use crate::schema::scenario_schema;
use crate::yaml::{self, Key, Node, Value};
use std::sync::LazyLock;

/// Cases of the largest sweep. Beyond it a range was mistyped.
const MOST_CASES: usize = 20_000;

/// Every case of a file, in the order of its lists: the last one varies fastest.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    /// The cases. A file without any list is one case.
    pub cases: Vec<Case>,
    /// What varies, in the order in which the file says so: dotted paths, and names of axes.
    pub parameters: Vec<String>,
}

/// One case of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// What tells it from the others, such as `gb200+gpus=2048`; unlike any other of its sweep.
    pub name: String,
    /// What was chosen, by dotted path or name of an axis.
    pub parameters: Vec<(String, String)>,
    source: Source,
    tree: Node,
}

impl Case {
    /// The scenario of this case.
    ///
    /// # Errors
    /// As those of [`crate::parse`]; places are those of the sweep's file.
    pub fn scenario(&self) -> Result<Scenario, Vec<Diagnostic>> {
        Scenario::of_tree(self.source.clone(), self.tree.clone(), Some(&self.name))
    }

    /// The scenario of this case as YAML text of its own.
    pub fn to_yaml(&self) -> String {
        self.tree.to_yaml()
    }
}

/// Reads a file with lists. `seed` replaces the scenario's own.
///
/// # Errors
/// When the text is not YAML, a list or a range is empty or faulty, or the `sweep` section names
/// what is not there. Errors of single cases are theirs: [`Case::scenario`].
pub fn expand(source_name: &str, text: &str, seed: Option<u64>) -> Result<Sweep, Vec<Diagnostic>> {
    let source = Source {
        name: source_name.into(),
        text: text.into(),
    };
    let tree = yaml::parse(&source).map_err(|error| vec![*error])?;
    expand_tree(&source, &tree, seed).map_err(|error| vec![error.in_source(&source)])
}

/// Whether a text is to be run as a sweep: it has a `sweep` section, or a field that varies.
pub fn is_sweep(source_name: &str, text: &str) -> bool {
    let source = Source {
        name: source_name.into(),
        text: text.into(),
    };
    let Ok(tree) = yaml::parse(&source) else {
        return false;
    };
    tree.get("sweep").is_some() || variables(&tree).is_ok_and(|found| !found.is_empty())
}

type Placed<T> = Result<T, DecodeError>;

/// A field that takes several values.
struct Variable {
    path: String,
    span: Span,
    values: Vec<Node>,
}

/// What one axis of the `sweep` section offers.
struct Choice {
    name: String,
    changes: Vec<(Key, Node)>,
}

struct Plan {
    zips: Vec<Vec<(String, Span)>>,
    axes: Vec<(String, Vec<Choice>)>,
    shared_seed: bool,
}

fn expand_tree(source: &Source, tree: &Node, seed: Option<u64>) -> Placed<Sweep> {
    let plan = read_section(tree.get("sweep"))?;
    let mut base = tree.without("sweep");
    if let Some(seed) = seed {
        base.set("simulation.seed", &number(seed, Span::default()))?;
    }
    let mut sweep = Sweep {
        cases: Vec::new(),
        parameters: Vec::new(),
    };
    let mut zipped = vec![false; plan.zips.len()];
    let sizes: Vec<usize> = plan.axes.iter().map(|(_, choices)| choices.len()).collect();
    for at in combinations(&sizes)? {
        let mut tree = base.clone();
        let mut chosen = Vec::new();
        for ((axis, choices), index) in plan.axes.iter().zip(at) {
            let choice = &choices[index];
            chosen.push((axis.clone(), choice.name.clone()));
            for (path, node) in &choice.changes {
                tree.change(path, node)?;
            }
        }
        vary(source, &tree, &plan, &chosen, &mut zipped, &mut sweep)?;
    }
    for (zip, used) in plan.zips.iter().zip(zipped) {
        if let (false, Some((path, span))) = (used, zip.first()) {
            return Err(DecodeError::placed(
                format!("`zip` names `{}`, and no case varies it", shorten(path)),
                *span,
            ));
        }
    }
    for case in &sweep.cases {
        for (path, _) in &case.parameters {
            if !sweep.parameters.contains(path) {
                sweep.parameters.push(path.clone());
            }
        }
    }
    name_cases(&mut sweep);
    Ok(sweep)
}

/// The cases of one choice from every axis: its lists, each with each but for those that are zipped.
fn vary(
    source: &Source,
    tree: &Node,
    plan: &Plan,
    chosen: &[(String, String)],
    zipped: &mut [bool],
    sweep: &mut Sweep,
) -> Placed<()> {
    let variables = variables(tree)?;
    let groups = groups(&variables, &plan.zips, zipped)?;
    let sizes: Vec<usize> = groups
        .iter()
        .map(|group| variables[group[0]].values.len())
        .collect();
    let seed_varies = variables.iter().any(|v| v.path == "simulation.seed");
    for at in combinations(&sizes)? {
        if sweep.cases.len() == MOST_CASES {
            return Err(too_many());
        }
        let mut tree = tree.clone();
        let mut parameters = chosen.to_vec();
        for (group, index) in groups.iter().zip(at) {
            for variable in group {
                let variable = &variables[*variable];
                let value = &variable.values[index];
                tree.set(&variable.path, value)?;
                parameters.push((variable.path.clone(), value.in_short()));
            }
        }
        if !plan.shared_seed && !seed_varies && !parameters.is_empty() {
            give_seed(&mut tree, &parameters)?;
        }
        sweep.cases.push(Case {
            name: String::new(),
            parameters,
            source: source.clone(),
            tree,
        });
    }
    Ok(())
}

/// A seed of the case's own, from the scenario's and from what the case is, so that no other case
/// changes it.
fn give_seed(tree: &mut Node, parameters: &[(String, String)]) -> Placed<()> {
    let written = tree
        .at("simulation.seed")
        .map_or((0, Span::default()), |node| {
            let seed = node
                .text()
                .and_then(|text| text.replace('_', "").parse().ok());
            (seed.unwrap_or(u64::MAX), node.span)
        });
    let (seed, span) = written;
    if seed == u64::MAX {
        // No number: decoding will say so.
        return Ok(());
    }
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ seed;
    for byte in parameters
        .iter()
        .flat_map(|(a, b)| [a, "\0", b, "\0"])
        .flat_map(str::bytes)
    {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    // Exactly representable as a double, so that no program that reads the seed rounds it.
    tree.set("simulation.seed", &number(hash >> 11, span))
}

fn number(value: u64, span: Span) -> Node {
    Node {
        span,
        value: Value::Scalar {
            text: value.to_string(),
            quoted: false,
        },
    }
}

fn too_many() -> DecodeError {
    DecodeError::placed(
        format!("this makes more than {MOST_CASES} cases"),
        Span::default(),
    )
    .hint("lists are combined each with each; `zip` lets them advance together")
}

/// Every way to choose one of each, the last varying fastest.
fn combinations(sizes: &[usize]) -> Placed<Vec<Vec<usize>>> {
    let all = sizes
        .iter()
        .try_fold(1_usize, |all, size| all.checked_mul(*size));
    if all.is_none_or(|all| all > MOST_CASES) {
        return Err(too_many());
    }
    let mut found = vec![Vec::new()];
    for size in sizes {
        found = found
            .iter()
            .flat_map(|at: &Vec<usize>| {
                (0..*size).map(move |index| at.iter().copied().chain([index]).collect())
            })
            .collect();
    }
    Ok(found)
}

/// Indices of the variables that advance together, in the order of their first.
fn groups(
    variables: &[Variable],
    zips: &[Vec<(String, Span)>],
    zipped: &mut [bool],
) -> Placed<Vec<Vec<usize>>> {
    let zip_of = |path: &str| {
        zips.iter()
            .position(|zip| zip.iter().any(|(p, _)| p == path))
    };
    let mut groups: Vec<(Option<usize>, Vec<usize>)> = Vec::new();
    for (index, variable) in variables.iter().enumerate() {
        let zip = zip_of(&variable.path);
        if let Some(zip) = zip {
            zipped[zip] = true;
        }
        match groups
            .iter_mut()
            .find(|(other, _)| zip.is_some() && *other == zip)
        {
            None => groups.push((zip, vec![index])),
            Some((_, group)) => {
                let first = &variables[group[0]];
                if first.values.len() != variable.values.len() {
                    return Err(DecodeError::placed(
                        format!(
                            "`{}` has {} values and `{}`, with which it is zipped, has {}",
                            variable.path,
                            variable.values.len(),
                            first.path,
                            first.values.len()
                        ),
                        variable.span,
                    ));
                }
                group.push(index);
            }
        }
    }
    Ok(groups.into_iter().map(|(_, group)| group).collect())
}

// ---- what varies

static SCHEMA: LazyLock<serde_json::Value> = LazyLock::new(scenario_schema);

/// A place of the scenario's JSON Schema.
type Schema = &'static serde_json::Value;

/// Every field that holds more than one value, in the order of the text.
fn variables(tree: &Node) -> Placed<Vec<Variable>> {
    let mut found = Vec::new();
    find(tree, "", Span::default(), &meanings(&SCHEMA), &mut found)?;
    Ok(found)
}

/// `places` are the schemas that may hold for `node`.
fn find(
    node: &Node,
    path: &str,
    key: Span,
    places: &[Schema],
    found: &mut Vec<Variable>,
) -> Placed<()> {
    if let Some(values) = explicit(node)? {
        found.push(Variable {
            path: path.to_owned(),
            span: key,
            values,
        });
        return Ok(());
    }
    match &node.value {
        Value::Sequence(items) if varies(items, places) => {
            if items.is_empty() {
                return Err(DecodeError::placed(
                    format!("`{path}` is an empty list: no case comes of it"),
                    key,
                ));
            }
            found.push(Variable {
                path: path.to_owned(),
                span: key,
                values: items.clone(),
            });
        }
        Value::Mapping(entries) => {
            for (key, child) in entries {
                if path.is_empty() && key.text == "sweep" {
                    continue;
                }
                let below: Vec<Schema> = places
                    .iter()
                    .flat_map(|place| step(place, &key.text))
                    .collect();
                let path = if path.is_empty() {
                    key.text.clone()
                } else {
                    format!("{path}.{}", key.text)
                };
                find(child, &path, key.span, &below, found)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Whether a list at this place is several values instead of one.
fn varies(items: &[Node], places: &[Schema]) -> bool {
    let lists: Vec<Schema> = places
        .iter()
        .copied()
        .filter(|place| is_list(place))
        .collect();
    if lists.is_empty() {
        // Nothing is known of keys that no type knows; decoding refuses those.
        return !places.is_empty();
    }
    // A list of lists where one list is meant.
    let nested = lists
        .iter()
        .filter_map(|list| list.get("items"))
        .any(|items| meanings(items).into_iter().any(is_list));
    let holds_lists = |item: &Node| matches!(item.value, Value::Sequence(_));
    !nested && !items.is_empty() && items.iter().any(holds_lists)
}

fn is_list(schema: Schema) -> bool {
    match &schema["type"] {
        serde_json::Value::String(kind) => kind == "array",
        serde_json::Value::Array(kinds) => kinds.iter().any(|kind| kind == "array"),
        _ => false,
    }
}

/// A schema without references and alternatives: each of them that may hold.
fn meanings(schema: Schema) -> Vec<Schema> {
    let mut found = Vec::new();
    let mut open = vec![schema];
    // A schema that refers to itself through others would not end; ours are not that deep.
    for _ in 0..10_000 {
        let Some(schema) = open.pop() else { break };
        if let Some(target) = schema["$ref"].as_str() {
            let target = target.trim_start_matches('#');
            open.extend(SCHEMA.pointer(target));
        }
        for alternatives in ["anyOf", "oneOf", "allOf"] {
            if let Some(all) = schema[alternatives].as_array() {
                open.extend(all);
            }
        }
        found.push(schema);
    }
    found
}

/// The schemas of what is under `key`.
fn step(schema: Schema, key: &str) -> Vec<Schema> {
    let named = schema["properties"].get(key);
    let other = || {
        schema
            .get("additionalProperties")
            .filter(|other| other.is_object())
    };
    named.or_else(other).map_or_else(Vec::new, meanings)
}

// ---- values that are written out

/// The values of `{ each: [...] }` or of a range, where that is what is written.
fn explicit(node: &Node) -> Placed<Option<Vec<Node>>> {
    let Value::Mapping(entries) = &node.value else {
        return Ok(None);
    };
    let keys: Vec<&str> = entries.iter().map(|(key, _)| key.text.as_str()).collect();
    if keys == ["each"] {
        return match &entries[0].1.value {
            Value::Sequence(items) if !items.is_empty() => Ok(Some(items.clone())),
            _ => Err(DecodeError::placed(
                "`each` takes a list of values",
                entries[0].0.span,
            )),
        };
    }
    let is_range = keys.len() == 3
        && keys.contains(&"from")
        && keys.contains(&"to")
        && (keys.contains(&"times") || keys.contains(&"step"));
    if is_range {
        range(node).map(Some)
    } else {
        Ok(None)
    }
}

/// A number and what follows it: `400 Gbit/s`.
fn quantity(node: &Node) -> Placed<(f64, String)> {
    let faulty = || DecodeError::placed("expected a number, with or without a unit", node.span);
    let text = node.text().ok_or_else(faulty)?.trim();
    let is_number = |c: char| c.is_ascii_digit() || matches!(c, '.' | '_' | '+' | '-');
    let end = text.find(|c| !is_number(c)).unwrap_or(text.len());
    let value = text[..end]
        .replace('_', "")
        .parse::<f64>()
        .map_err(|_| faulty())?;
    if !value.is_finite() {
        return Err(faulty());
    }
    Ok((value, text[end..].trim().to_owned()))
}

/// The values from `from` up to `to`, both included where they are hit.
fn range(node: &Node) -> Placed<Vec<Node>> {
    // The keys were seen by the caller.
    let part = |key: &str| node.get(key).expect("a range has this key");
    let (from, unit) = quantity(part("from"))?;
    let (to, other_unit) = quantity(part("to"))?;
    if unit != other_unit {
        return Err(DecodeError::placed(
            format!("a range from `{unit}` to `{other_unit}`: write one unit"),
            part("to").span,
        ));
    }
    let (by, geometric) = match node.get("times") {
        Some(times) => (times, true),
        None => (part("step"), false),
    };
    let (pace, pace_unit) = quantity(by)?;
    let grows = if geometric {
        pace > 1.0 && from > 0.0
    } else {
        pace > 0.0
    };
    let fits_unit = pace_unit.is_empty() || (!geometric && pace_unit == unit);
    if !grows || !fits_unit || to < from {
        return Err(DecodeError::placed(
            "this range never gets from `from` to `to`",
            if to < from { part("to").span } else { by.span },
        )
        .hint("`times` is a factor above 1 and `step` a distance above 0, in the unit of `from`"));
    }
    let mut values = Vec::new();
    for index in 0.. {
        let value = if geometric {
            from * pace.powi(index)
        } else {
            from + pace * f64::from(index)
        };
        if value > to * (1.0 + 1e-9) {
            break;
        }
        if values.len() == MOST_CASES {
            return Err(too_many());
        }
        let number = rounded(value);
        let text = if unit.is_empty() {
            number
        } else {
            format!("{number} {unit}")
        };
        values.push(Node {
            span: node.span,
            value: Value::Scalar {
                text,
                quoted: false,
            },
        });
    }
    Ok(values)
}

/// A value without the noise of repeated multiplication.
fn rounded(value: f64) -> String {
    if value.fract() == 0.0 {
        return format!("{value:.0}");
    }
    let rounded: f64 = format!("{value:.9e}")
        .parse()
        .expect("a printed number is a number");
    format!("{rounded}")
}

// ---- the `sweep` section

fn read_section(section: Option<&Node>) -> Placed<Plan> {
    let mut plan = Plan {
        zips: Vec::new(),
        axes: Vec::new(),
        shared_seed: false,
    };
    let Some(section) = section.filter(|section| !section.is_null()) else {
        return Ok(plan);
    };
    let Value::Mapping(entries) = &section.value else {
        return Err(
            DecodeError::placed("`sweep` must be a mapping", section.span)
                .hint("its keys: zip, axes, cases, seed"),
        );
    };
    for (key, node) in entries {
        match key.text.as_str() {
            "zip" => plan.zips = read_zips(key, node)?,
            "axes" => {
                for (name, choices) in mapping(key, node)? {
                    let choices = read_choices(name, choices)?;
                    plan.axes.push((name.text.clone(), choices));
                }
            }
            "cases" => plan
                .axes
                .push(("case".to_owned(), read_choices(key, node)?)),
            "seed" => {
                plan.shared_seed = match node.text() {
                    Some("shared") => true,
                    Some("per_case") => false,
                    _ => {
                        return Err(DecodeError::placed(
                            "`seed` must be per_case or shared",
                            node.span,
                        ));
                    }
                }
            }
            other => {
                return Err(DecodeError::placed(
                    format!("unknown key `{}` in `sweep`", shorten(other)),
                    key.span,
                )
                .hint("known here: `zip`, `axes`, `cases`, `seed`"));
            }
        }
    }
    Ok(plan)
}

fn mapping<'t>(key: &Key, node: &'t Node) -> Placed<&'t [(Key, Node)]> {
    match &node.value {
        Value::Mapping(entries) if !entries.is_empty() => Ok(entries),
        _ => Err(DecodeError::placed(
            format!(
                "`{}` must be a mapping that names its cases",
                shorten(&key.text)
            ),
            key.span,
        )),
    }
}

/// Named sets of changes: `{ small: { cluster.gpus: 64 }, large: { cluster.gpus: 512 } }`.
fn read_choices(key: &Key, node: &Node) -> Placed<Vec<Choice>> {
    mapping(key, node)?
        .iter()
        .map(|(name, changes)| {
            let changes = match &changes.value {
                Value::Mapping(changes) => changes.clone(),
                _ if changes.is_null() => Vec::new(),
                _ => {
                    return Err(DecodeError::placed(
                        format!(
                            "`{}` must be a mapping from fields to their values",
                            shorten(&name.text)
                        ),
                        name.span,
                    )
                    .hint("such as { cluster.gpus: 64 }"));
                }
            };
            Ok(Choice {
                name: name.text.clone(),
                changes,
            })
        })
        .collect()
}

/// A list of paths, or a list of such lists.
fn read_zips(key: &Key, node: &Node) -> Placed<Vec<Vec<(String, Span)>>> {
    let faulty = || {
        DecodeError::placed("`zip` takes lists of dotted paths", key.span)
            .hint("such as zip: [[cluster.gpus, workload.training.global_batch]]")
    };
    let Value::Sequence(items) = &node.value else {
        return Err(faulty());
    };
    let paths = |items: &[Node]| -> Placed<Vec<(String, Span)>> {
        items
            .iter()
            .map(|item| {
                let text = item.text().ok_or_else(faulty)?;
                Ok((text.to_owned(), item.span))
            })
            .collect()
    };
    if items
        .iter()
        .all(|item| matches!(item.value, Value::Scalar { .. }))
    {
        return Ok(vec![paths(items)?]);
    }
    items
        .iter()
        .map(|item| match &item.value {
            Value::Sequence(items) => paths(items),
            _ => Err(faulty()),
        })
        .collect()
}

// ---- names

/// Gives every case its name: the choices of axes as they are, fields with their last key.
fn name_cases(sweep: &mut Sweep) {
    let last = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
    let shorts: Vec<(String, String)> = sweep
        .parameters
        .iter()
        .map(|path| {
            let short = last(path);
            let shared = sweep
                .parameters
                .iter()
                .filter(|other| last(other) == short)
                .count()
                > 1;
            (path.clone(), if shared { path.clone() } else { short })
        })
        .collect();
    let mut seen = std::collections::BTreeMap::<String, u32>::new();
    for case in &mut sweep.cases {
        let parts: Vec<String> = case
            .parameters
            .iter()
            .map(|(path, value)| {
                let short = shorts
                    .iter()
                    .find(|(p, _)| p == path)
                    .map(|(_, short)| short);
                let value = plain(value);
                match short {
                    Some(short) if path.contains('.') => format!("{}={value}", plain(short)),
                    _ => value,
                }
            })
            .collect();
        let mut name = parts.join("+");
        if name.is_empty() {
            "case".clone_into(&mut name);
        }
        if name.len() > LONGEST_NAME {
            name.truncate(LONGEST_NAME);
        }
        let times = seen.entry(name.clone()).or_default();
        *times += 1;
        case.name = if *times == 1 {
            name
        } else {
            format!("{name}+again={times}")
        };
    }
}

/// Names of cases are names of folders.
const LONGEST_NAME: usize = 150;

/// Letters, digits and a few signs that every file system takes.
fn plain(text: &str) -> String {
    let keep = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let mut out = String::new();
    for c in text.chars() {
        match c {
            c if keep(c) => out.push(c),
            // Runs of anything else become one dash.
            _ if !out.ends_with('-') => out.push('-'),
            _ => {}
        }
    }
    let out = out.trim_matches('-').trim_start_matches('.').to_owned();
    if out.is_empty() { "x".to_owned() } else { out }
}

mod schema;
#[cfg(test)]
mod tests;

pub use schema::sweep_schema;
