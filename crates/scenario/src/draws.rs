//! Random numbers that a plan needs, from streams of the scenario's seed.

use rackflow_engine::RandomStream;
use rackflow_plan::TokenDraws;
use rackflow_workload::Model;

/// How the tokens of a mixture fall on its experts.
pub fn tokens(model: &Model, seed: u64) -> TokenDraws {
    if model.moe.is_none() {
        return TokenDraws::none();
    }
    let root = RandomStream::root(seed).derive("tokens at experts");
    TokenDraws::new(|rank| {
        let mut stream = root.derive_index(rank.into());
        move || stream.normal(0.0, 1.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Catalogue;

    #[test]
    fn draws_follow_from_the_seed_and_are_for_mixtures() {
        let model = |name: &str| Catalogue::builtin().model(name).expect("built in").clone();
        let mixture = model("deepseek-v3");
        assert_eq!(tokens(&mixture, 7), tokens(&mixture, 7));
        assert_ne!(tokens(&mixture, 7), tokens(&mixture, 8));
        assert_ne!(tokens(&mixture, 7), TokenDraws::none());
        assert_eq!(tokens(&model("llama3-70b"), 7), TokenDraws::none());
    }
}
