//! Which ranks stand for a plan while it is bounded, and how layers are dealt out among them.
//!
//! In a cluster of one kind of node the first rank of each stage stands for all. Where kinds differ, a
//! line of ranks is followed from each place at which another kind begins: one rank of each stage,
//! each sending to the next.

use super::{Open, Search, TimesKey, spans_key, times_key};
use crate::bound::{LineTimes, PieceTimes, SeatedLine};
use crate::placement::{Coordinates, Placement};
use crate::price::{self, Prices, Spans};
use crate::setup::Setup;
use crate::split::{self, Speeds, spread_layers, spread_layers_by_speed};
use rackflow_network::Links;
use rackflow_workload::Zero;
use std::borrow::Cow;
use std::sync::Arc;

/// Layers are spread by the speed of each stage to these powers, in eighths: from evenly, past in
/// proportion, where the fast stages have memory for more.
const EVENNESS: std::ops::RangeInclusive<u32> = 0..=12;

/// Of these, in proportion to speed.
const IN_PROPORTION: u32 = 8;

/// Quarters of what the first and the last chunk do besides layers that is made up for by fewer layers:
/// where the stages behind wait anyway, a long first stage costs less than it takes.
const END_WORK: [u32; 2] = [2, 4];

/// Lines that are followed.
const MOST_LINES: usize = 4;

/// Least times on one rank: whether weights are gathered in each layer, the kind of accelerator, the
/// communicators.
pub(super) type KnownTimes = (bool, u32, Arc<Spans>, Arc<PieceTimes>);

/// The kind of each rank of a line, by stage, and its communicators.
struct Seats {
    different: Vec<(u32, Arc<Spans>)>,
    of_stage: Vec<u32>,
}

impl Search {
    /// What links of these sections cost.
    pub(super) fn links_of(&self, sections: &[u32]) -> Arc<Links> {
        let on_fabric = self.dearer_links.is_some();
        let find = || price::links_among(&self.setup, &self.map, sections, on_fabric);
        self.links_of.get(sections.to_vec(), find)
    }

    fn kind_of(&self, rank: u32) -> u32 {
        self.kind_of_gpus.get(rank as usize).copied().unwrap_or(0)
    }

    /// A setup as an accelerator of this kind sees it.
    fn on_kind<'s>(&self, setup: &'s Setup, kind: u32) -> Cow<'s, Setup> {
        if !setup.cluster.is_mixed() {
            return Cow::Borrowed(setup);
        }
        let mut alike = setup.clone();
        alike.cluster.node.clone_from(&self.kinds[kind as usize]);
        Cow::Owned(alike)
    }

    /// The communicators of a rank; where `inside`, only those that meet in a layer.
    fn spans_of(
        &self,
        setup: &Setup,
        placement: &Placement,
        rank: u32,
        inside: bool,
    ) -> Arc<Spans> {
        // Without weights to gather, data-parallel ranks meet once per step and not in a layer.
        let all = !inside || setup.training.parallelism.zero == Zero::Stage3;
        let key = (spans_key(setup, placement), rank, all);
        let find = || Spans::of_rank(&self.map, placement, rank, all);
        self.rank_spans.get(key, find)
    }

    /// What communicators cost, seen from the first kind of accelerator.
    fn prices_over(&self, setup: &Setup, spans: Arc<Spans>) -> Prices {
        if self.map.sections().len() == 1 {
            return Prices::over(&self.first_links, spans, setup);
        }
        Prices::new(setup, &self.map, spans, self.dearer_links.is_some())
    }

    /// A setup as an accelerator of this kind sees it, and what its communicators cost: the links are
    /// those of all, as where a plan is compiled.
    fn seen_by<'s>(
        &self,
        setup: &'s Setup,
        kind: u32,
        spans: Arc<Spans>,
    ) -> (Cow<'s, Setup>, Prices) {
        let prices = self.prices_over(setup, spans);
        let setup = self.on_kind(setup, kind);
        let memory = setup.cluster.node.accelerator.memory_bandwidth.as_f64();
        (setup, prices.with_memory(memory))
    }

    /// What the communicators of a rank cost; where `inside`, only those that meet in a layer.
    pub(super) fn prices(
        &self,
        setup: &Setup,
        placement: &Placement,
        rank: u32,
        inside: bool,
    ) -> Prices {
        self.prices_over(setup, self.spans_of(setup, placement, rank, inside))
    }

    /// The ranks of the first stage from which lines are followed.
    fn line_heads(&self, placement: &Placement) -> Vec<u32> {
        if self.kinds.len() == 1 && self.map.sections().len() == 1 {
            return vec![0];
        }
        let expert = placement.group_size(crate::program::GroupSlot::Expert);
        let fullest = self.loads.get(&expert).and_then(|(_, position)| *position);
        let kinds = |head: u32| -> Vec<usize> {
            let stages = placement.ranks() / placement.stage_ranks();
            let ranks = (0..stages).map(|stage| placement.shifted(head, stage));
            let kind = |rank: u32| (self.kind_of(rank) as usize, self.map.section_of(rank));
            ranks
                .map(kind)
                .map(|(kind, section)| kind << 16 | section)
                .collect()
        };
        let mut heads: Vec<u32> = Vec::new();
        let mut known = Vec::new();
        for rank in 0..placement.ranks() {
            let at = placement.coordinates(rank);
            let full = fullest.is_none_or(|position| placement.expert_position(rank) == position);
            // Tensor-parallel ranks are neighbours, and so on one kind.
            if at.stage > 0 || !full || fullest.is_none() && at.tensor > 0 {
                continue;
            }
            let head = placement.rank(Coordinates { stage: 0, ..at });
            let kinds = kinds(head);
            if !known.contains(&kinds) {
                known.push(kinds);
                heads.push(head);
            }
            if heads.len() == MOST_LINES {
                break;
            }
        }
        heads
    }

    fn seats(&self, setup: &Setup, placement: &Placement, head: u32, inside: bool) -> Seats {
        let mut seats = Seats {
            different: Vec::new(),
            of_stage: Vec::new(),
        };
        if self.kinds.len() == 1 && self.map.sections().len() == 1 {
            let spans = self.spans_of(setup, placement, head, inside);
            seats.different.push((0, spans));
            return seats;
        }
        for stage in 0..setup.training.parallelism.pipeline {
            let rank = placement.shifted(head, stage);
            let kind = self.kind_of(rank);
            let spans = self.spans_of(setup, placement, rank, inside);
            let same = |(of, known): &(u32, Arc<Spans>)| *of == kind && known.cost_alike(&spans);
            let seat = seats.different.iter().position(same);
            seats
                .of_stage
                .push(seat.unwrap_or(seats.different.len()) as u32);
            if seat.is_none() {
                seats.different.push((kind, spans));
            }
        }
        seats
    }

    /// The lines of a plan, each rank with all its communicators.
    pub(super) fn seated_lines<'a>(
        &self,
        setup: &'a Setup,
        placement: &Placement,
        times: &'a [LineTimes],
    ) -> Vec<SeatedLine<'a>> {
        let heads = self.line_heads(placement);
        let several = setup.cluster.is_mixed();
        let line = |(head, times): (u32, &'a LineTimes)| {
            let seats = self.seats(setup, placement, head, false);
            let of_seat = |(kind, spans)| self.seen_by(setup, kind, spans);
            SeatedLine {
                rank: several.then_some(head),
                seats: seats.different.into_iter().map(of_seat).collect(),
                times,
                of_stage: seats.of_stage,
            }
        };
        heads.into_iter().zip(times).map(line).collect()
    }
}

impl Open<'_> {
    /// What the lines of this plan take at least.
    pub(super) fn times(&mut self) -> Arc<Vec<LineTimes>> {
        let key = self.times_key();
        if let Some((_, times)) = self.times.iter().find(|(of, _)| *of == key) {
            return times.clone();
        }
        let placement = self.placement();
        let mut lines = Vec::new();
        for head in self.search.line_heads(&placement) {
            let seats = self.search.seats(&self.setup, &placement, head, true);
            let of_seat = |(kind, spans)| self.times_of(kind, spans);
            lines.push(LineTimes {
                seats: seats.different.into_iter().map(of_seat).collect(),
                of_stage: seats.of_stage,
            });
        }
        let lines = Arc::new(lines);
        self.times.push((key, lines.clone()));
        lines
    }

    fn times_key(&self) -> TimesKey {
        let (gathers, lie) = times_key(&self.setup);
        if self.setup.cluster.is_mixed() {
            let plan = &self.setup.training.parallelism;
            return (gathers, Some((plan.pipeline, self.setup.rank_order)));
        }
        (gathers, lie)
    }

    fn times_of(&mut self, kind: u32, spans: Arc<Spans>) -> Arc<PieceTimes> {
        let gathers = times_key(&self.setup).0;
        let same = |(of, kind_of, known, _): &&KnownTimes| {
            *of == gathers && *kind_of == kind && known.cost_alike(&spans)
        };
        if let Some((.., known)) = self.by_spans.iter().find(same) {
            return known.clone();
        }
        let (setup, prices) = self.search.seen_by(&self.setup, kind, spans.clone());
        let kernels = &self.kernels[kind as usize];
        let found = Arc::new(PieceTimes::new(&setup, &prices, self.load, kernels));
        self.by_spans.push((gathers, kind, spans, found.clone()));
        found
    }

    /// The ways to deal layers out to chunks that are tried. Where all chunks take alike: evenly, said
    /// only where a scenario must say so.
    pub(super) fn splits(&mut self) -> Vec<Option<Vec<u64>>> {
        let own = &self.search.setup.training;
        let plan = &self.setup.training.parallelism;
        let (layers, chunks) = (
            own.model.layers,
            u64::from(plan.pipeline) * u64::from(plan.virtual_pipeline),
        );
        if !split::is_by_time(&self.setup) {
            let is_told = chunks > layers || own.layers_per_chunk.is_some();
            return vec![is_told.then(|| spread_layers(layers, chunks))];
        }
        if chunks == 1 {
            return vec![None];
        }
        let speeds = self.speeds();
        if speeds.alike {
            return vec![Some(split::within_memory(
                &self.setup,
                &self.placement(),
                &speeds,
            ))];
        }
        let of_chunks = speeds.of_chunks(&self.setup.training);
        let mut splits: Vec<Option<Vec<u64>>> = Vec::new();
        let mut add = |split: Vec<u64>| {
            let split = Some(split);
            if !splits.contains(&split) {
                splits.push(split);
            }
        };
        let [first, last] = speeds.ends;
        if own.vision().is_some() {
            add(spread_layers(layers, chunks));
        }
        let unbounded = vec![layers; of_chunks.len()];
        let end_work = if own.vision().is_some() {
            &END_WORK[..]
        } else {
            &END_WORK[1..]
        };
        let evenness = if self.setup.cluster.is_mixed() {
            EVENNESS
        } else {
            IN_PROPORTION..=IN_PROPORTION
        };
        for eighths in evenness {
            let power = f64::from(eighths) / f64::from(IN_PROPORTION);
            let speeds: Vec<f64> = of_chunks.iter().map(|speed| speed.powf(power)).collect();
            for quarters in end_work {
                let part = f64::from(*quarters) / 4.0;
                let ends = [first * part, last * part];
                add(spread_layers_by_speed(layers, &speeds, ends, &unbounded));
            }
        }
        add(split::within_memory(
            &self.setup,
            &self.placement(),
            &speeds,
        ));
        splits
    }

    /// How fast a layer of each stage is on the slowest rank that computes it.
    fn speeds(&mut self) -> Speeds {
        self.setup.training.parallelism.zero = Zero::Stage1;
        let times = self.times();
        let stages = 0..self.setup.training.parallelism.pipeline;
        let seats = stages.map(|stage| {
            let of_line = move |line: &LineTimes| line.seat(stage) as usize;
            times
                .iter()
                .map(move |line| line.seats[of_line(line)].as_ref())
        });
        Speeds::of_seats(&self.setup, seats)
    }
}
