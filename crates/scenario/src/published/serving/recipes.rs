//! How InferenceMAX deploys prefill and decode apart: workers, plans and limits of each run, which the
//! table of its results mostly leaves out.

use super::ServingRun;
use crate::published::json_lines;
use serde::Deserialize;
use std::sync::OnceLock;

/// The recipes that ship with the catalogue; the first line cites them.
const SHIPPED: &str = include_str!("../../../data/serving_recipes.jsonl");

/// One deployment and the runs that it is for.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Recipe {
    model: String,
    gpu: String,
    engine: String,
    precision: String,
    isl: u64,
    osl: u64,
    /// Workers and plan of one, such as `5xTEP8`.
    prefill: String,
    /// Tokens of a prefill step on one attention rank (`max_num_tokens`).
    pub prefill_tokens: u32,
    decode: String,
    /// Sequences that one attention rank decodes at once (`max_batch_size`): a request beyond them
    /// waits, before its first token is delivered.
    pub sequences: u32,
    /// Tokens guessed ahead per step.
    guesses: u32,
    /// Requests in flight.
    concurrency: Vec<u64>,
}

/// What the recipes say about a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Known {
    /// Nothing.
    Nothing,
    /// More than one fits, or the one that does guesses tokens ahead.
    Unclear,
    /// This is how it was deployed.
    As(&'static Recipe),
}

/// Workers and GPUs of one, of prefill and decode, as the table of results has them.
pub(super) type Sides = [(u32, u32); 2];

fn all() -> &'static [Recipe] {
    static ALL: OnceLock<Vec<Recipe>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut recipes = Vec::new();
        json_lines(SHIPPED, |value| {
            if value.get("citation").is_none() {
                recipes.push(serde_json::from_value(value).map_err(|error| error.to_string())?);
            }
            Ok(())
        })
        .expect("the shipped recipes are well formed");
        recipes
    })
}

/// The recipe of `run`, whose model the catalogue calls `model`. Where its number of workers is not
/// `recorded`, GPUs of a worker and requests in flight must name one recipe only.
pub(super) fn find(run: &ServingRun, model: &str, sides: &Sides, recorded: bool) -> Known {
    let engine = run.engine.as_deref().unwrap_or("");
    let fits = |recipe: &&Recipe| {
        let [prefill, decode] = recipe.sides();
        let same = |own: (u32, &str), row: (u32, u32)| {
            gpus(own.1) == Some(row.1) && (!recorded || own.0 == row.0)
        };
        recipe.model == model
            && run.gpu.to_ascii_lowercase().split('_').next() == Some(recipe.gpu.as_str())
            && engine.starts_with(&recipe.engine)
            && run.precision == recipe.precision
            && (run.isl, run.osl) == (recipe.isl, recipe.osl)
            && run
                .concurrency
                .is_some_and(|n| recipe.concurrency.contains(&n))
            && same(prefill, sides[0])
            && same(decode, sides[1])
    };
    let fitting: Vec<&'static Recipe> = all().iter().filter(fits).collect();
    // Rows with recorded workers are taken to guess nothing, as everywhere.
    match fitting.as_slice() {
        [] => Known::Nothing,
        [one] if recorded || one.guesses == 0 => Known::As(one),
        several if recorded => {
            let plain = several.iter().find(|recipe| recipe.guesses == 0);
            Known::As(plain.unwrap_or(&several[0]))
        }
        _ => Known::Unclear,
    }
}

impl Recipe {
    /// Workers and the plan of one, of prefill and decode.
    pub fn sides(&self) -> [(u32, &str); 2] {
        let side = |text: &'_ str| -> Option<(u32, usize)> {
            let (count, plan) = text.split_once('x')?;
            Some((count.parse().ok()?, text.len() - plan.len()))
        };
        [&self.prefill, &self.decode].map(|text| {
            let (count, at) = side(text).expect("the shipped recipes are well formed");
            (count, &text[at..])
        })
    }
}

/// GPUs of `TEP8`.
fn gpus(plan: &str) -> Option<u32> {
    plan.trim_start_matches(|c: char| c.is_ascii_uppercase())
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_recipe_can_be_read() {
        assert!(all().len() > 150);
        for recipe in all() {
            for (workers, plan) in recipe.sides() {
                assert!(workers > 0 && gpus(plan).is_some_and(|n| n > 0), "{plan}");
                assert!(super::super::parallelism(plan, true).is_some(), "{plan}");
            }
            assert!(recipe.sequences > 0 && recipe.prefill_tokens > 0);
        }
    }
}
