//! Reports of records built by hand.

mod fixture;
mod planner;

use rackflow_plan::{Cause, CommKind};
use rackflow_report::{
    Options, Published, Report, ReportError, Style, explain, key, plot, render_text, summarize,
};
use rackflow_simulator::Record;
use rackflow_topology::Level;
use rackflow_units::{Bytes, SimDuration};

fn report(record: &Record) -> Report {
    let published = Published {
        source:
            "DeepSeek-V3 technical report, arXiv:2412.19437: 14.8 T tokens in 2.664 M GPU hours"
                .into(),
        step_time_s: Some(19.93),
        tflops_per_gpu: None,
        mfu: Some(0.437),
    };
    summarize(
        record,
        Options {
            wall_s: 0.0431,
            published: Some(published),
            ..Options::default()
        },
    )
    .expect("the fixture adds up")
}

#[test]
fn fractions_of_the_waterfall_sum_to_one() {
    for record in [fixture::even(), fixture::uneven()] {
        let report = report(&record);
        let sum: f64 = report.waterfall.iter().map(|loss| loss.fraction).sum();
        assert!((sum - 1.0).abs() < 1e-12, "{sum}");
        let seconds: f64 = report.waterfall.iter().map(|loss| loss.gpu_seconds).sum();
        let whole = 2048.0 * fixture::STEP.as_secs_f64();
        assert!(
            (seconds / whole - 1.0).abs() < 1e-12,
            "{seconds} of {whole}"
        );
    }
}

#[test]
fn racks_add_up_to_the_useful_work_of_the_cluster() {
    let report = report(&fixture::uneven());
    let racks: f64 = report.racks.iter().map(|rack| rack.effective_flops).sum();
    let useful = report.waterfall[0].fraction * report.cluster.peak_flops.native;
    assert_eq!(report.waterfall[0].cause, "useful_math");
    assert!((racks / useful - 1.0).abs() < 1e-12, "{racks} and {useful}");
}

#[test]
fn mfu_is_model_flops_over_each_peak() {
    let mfu = report(&fixture::even()).training.mfu;
    assert!((mfu.native_causal - 0.196).abs() < 1e-12);
    assert!((mfu.bf16_causal - 0.392).abs() < 1e-12);
    assert!((mfu.native_noncausal - 0.2152).abs() < 1e-12);
}

#[test]
fn a_picosecond_booked_twice_is_refused() {
    let mut record = fixture::even();
    record.classes[0]
        .accounts
        .book(Cause::Bubble, rackflow_units::SimDuration::from_picos(1));
    let refusal = summarize(&record, Options::default()).expect_err("one picosecond too many");
    assert!(
        matches!(refusal, ReportError::AccountsDoNotSum { class: 0, .. }),
        "{refusal}"
    );
}

#[test]
fn a_gpu_without_a_class_is_refused() {
    let mut record = fixture::even();
    record.class_of_gpu[7] = 3;
    let refusal = summarize(&record, Options::default()).expect_err("class 3 does not exist");
    assert_eq!(
        refusal,
        ReportError::Coverage {
            what: "the record",
            found: 2047,
            gpus: 2048
        }
    );
}

#[test]
fn racks_that_leave_gpus_out_are_refused() {
    let mut record = fixture::even();
    record.facts.racks.pop();
    let refusal = summarize(&record, Options::default()).expect_err("the last rack is missing");
    assert_eq!(
        refusal,
        ReportError::Coverage {
            what: "the list of racks",
            found: 2016,
            gpus: 2048
        }
    );
}

#[test]
fn the_largest_losses_that_can_be_changed_come_first() {
    let report = report(&fixture::even());
    let causes: Vec<&str> = report
        .what_to_change
        .iter()
        .map(|change| change.cause.as_str())
        .collect();
    // Clocks take 11.8 %, more than two of these, and are nobody's to change.
    assert_eq!(causes, ["memory_bound", "exposed_ep", "shape"]);
    let first = &report.what_to_change[0];
    assert!((first.gain_at_most - 0.168 / 0.832).abs() < 1e-9);
}

#[test]
fn every_loss_has_advice_or_is_nobodys_to_change() {
    for cause in Cause::all() {
        let mut record = fixture::even();
        let mut accounts = rackflow_plan::Accounts::default();
        let half = fixture::STEP.scale(1, 2);
        accounts.book(cause, half);
        accounts.book(Cause::UsefulMath, fixture::STEP - half);
        record.classes[0].accounts = accounts;
        let report = report(&record);
        let silent = matches!(cause, Cause::UsefulMath | Cause::SustainedRate);
        assert_eq!(report.what_to_change.is_empty(), silent, "{cause:?}");
    }
}

#[test]
fn the_json_has_the_keys_that_others_rely_on() {
    let json: serde_json::Value =
        serde_json::from_str(&report(&fixture::even()).to_json()).expect("the report is JSON");
    for pointer in [
        "/schema_version",
        "/scenario",
        "/cluster/gpus",
        "/cluster/racks",
        "/cluster/gpus_per_rack",
        "/cluster/peak_flops/bf16",
        "/cluster/peak_flops/native",
        "/training/step_time_s",
        "/training/tokens_per_s",
        "/training/tokens_per_s_per_gpu",
        "/training/model_tflops_per_gpu/causal",
        "/training/model_tflops_per_gpu/noncausal",
        "/training/mfu/bf16_causal",
        "/training/mfu/bf16_noncausal",
        "/training/mfu/native_causal",
        "/training/mfu/native_noncausal",
        "/training/hfu",
        "/training/bubble_fraction",
        "/training/exposed_comm_fraction",
        "/training/memory_per_gpu_bytes/weights",
        "/training/memory_per_gpu_bytes/gradients",
        "/training/memory_per_gpu_bytes/optimizer",
        "/training/memory_per_gpu_bytes/activations",
        "/training/memory_per_gpu_bytes/buffers",
        "/training/memory_per_gpu_bytes/reserved",
        "/training/memory_per_gpu_bytes/total",
        "/training/memory_per_gpu_bytes/capacity",
        "/racks/0/id",
        "/racks/0/gpus",
        "/racks/0/effective_flops",
        "/racks/0/peak_flops",
        "/racks/0/fraction",
        "/waterfall/0/cause",
        "/waterfall/0/gpu_seconds",
        "/waterfall/0/fraction",
        "/engine/events",
        "/engine/wall_s",
        "/engine/fidelity",
        "/engine/seed",
        "/what_to_change/0/change",
        "/published/figures/0/error",
        "/assumed/0",
    ] {
        assert!(
            json.pointer(pointer).is_some_and(|value| !value.is_null()),
            "{pointer} is missing"
        );
    }
}

#[test]
fn a_cause_has_one_stable_lower_case_name() {
    let mut record = fixture::even();
    let mut accounts = rackflow_plan::Accounts::default();
    accounts.book(
        Cause::Exposed(CommKind::Tensor, Level::NvLink),
        fixture::STEP,
    );
    record.classes[0].accounts = accounts;
    assert_eq!(report(&record).waterfall[0].cause, "exposed_tp_nvlink");
}

#[test]
fn text_of_an_even_cluster() {
    insta::assert_snapshot!(render_text(&report(&fixture::even()), &Style::default()));
}

#[test]
fn text_of_an_uneven_cluster() {
    insta::assert_snapshot!(render_text(
        &report(&fixture::uneven()),
        &Style {
            color: false,
            width: 100
        }
    ));
}

#[test]
fn no_line_is_wider_than_asked() {
    for width in [0, 80, 91, 100, 300] {
        for record in [fixture::even(), fixture::uneven()] {
            let text = render_text(
                &report(&record),
                &Style {
                    color: false,
                    width,
                },
            );
            let most = text
                .lines()
                .map(|line| line.chars().count())
                .max()
                .unwrap_or(0);
            assert!(most <= width.clamp(80, 100), "{most} columns of {width}");
        }
    }
}

#[test]
fn colour_changes_nothing_but_colour() {
    let report = report(&fixture::uneven());
    let colored = render_text(
        &report,
        &Style {
            color: true,
            width: 92,
        },
    );
    let mut plain = String::new();
    let mut rest = colored.as_str();
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain.push_str(before);
        rest = after.split_once('m').expect("a colour ends").1;
    }
    plain.push_str(rest);
    let trimmed: String = plain
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect();
    assert_eq!(
        trimmed,
        render_text(
            &report,
            &Style {
                color: false,
                width: 92
            }
        )
    );
}

#[test]
fn the_picture_names_every_loss_and_escapes_what_it_is_given() {
    let mut report = report(&fixture::uneven());
    report.scenario = "<a> & b".into();
    let svg = plot::waterfall(&report).svg();
    for loss in &report.waterfall[1..] {
        assert!(svg.contains(&loss.label), "{}", loss.label);
    }
    assert!(svg.contains("&lt;a&gt; &amp; b") && !svg.contains("<a>"));
}

#[test]
fn a_simulated_step_adds_up_to_the_picosecond() {
    let plan = rackflow_plan::compile(&fixture::small_setup()).expect("the fixture is a plan");
    let report = report(&rackflow_simulator::simulate(&plan));
    // Useful math is the causal model FLOPs at native peak, so the two ways to MFU agree.
    let useful = report.waterfall[0].fraction;
    let mfu = report.training.mfu.native_causal;
    assert!((useful / mfu - 1.0).abs() < 1e-3, "{useful} and {mfu}");
}

#[test]
fn the_documentation_explains_every_cause_in_the_same_words() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
    let page = std::fs::read_to_string(path).expect("docs/metrics.md is there");
    for cause in Cause::all().filter(|cause| !matches!(cause, Cause::Exposed(..))) {
        let words = explain(cause);
        let row = format!(
            "| `{}` | {} | {} |",
            key(cause),
            words.label,
            words.sentence
        );
        assert!(
            page.contains(&row),
            "docs/metrics.md lacks this row:\n{row}"
        );
    }
}

#[test]
fn several_seeds_are_summed_up_and_one_is_not() {
    use rackflow_report::OverSeeds;
    assert_eq!(OverSeeds::of(&[2.0]), None);
    let over = OverSeeds::of(&[2.0, 4.0, 6.0]).expect("three steps");
    assert_eq!((over.seeds, over.mean_s, over.std_dev_s), (3, 4.0, 2.0));
    assert_eq!((over.least_s, over.most_s), (2.0, 6.0));
}

/// Segments of the other kind are suggested where the play of the allocator shows that less is waited with
/// them, with how much.
#[test]
fn segments_of_the_other_kind_are_suggested_where_they_gain() {
    use rackflow_workload::AllocatorPolicy::{self, ExpandableSegments, Native, Preallocated};
    let warned = |allocator: AllocatorPolicy, otherwise: Option<u64>| {
        let mut record = fixture::even();
        record.facts.training.stack.allocator = allocator;
        let stage = &mut record.facts.stages[0];
        stage.capacity = stage.memory.total();
        stage.pressure.flushes = 4.0;
        stage.pressure.time = SimDuration::from_micros(2_000_000);
        stage.pressure.otherwise = otherwise.map(SimDuration::from_micros);
        report(&record).warnings.join("\n")
    };
    for (allocator, other) in [
        (Native, "expandable_segments"),
        (ExpandableSegments, "native"),
    ] {
        let gains = warned(allocator, Some(500_000));
        let words = format!("with allocator: {other} it would wait 500 ms in place of 2 s");
        assert!(gains.contains(&words), "{gains}");
        let all = warned(allocator, Some(0));
        assert!(
            all.contains(&format!("with allocator: {other} it would not wait")),
            "{all}"
        );
        for none in [Some(2_000_000), Some(2_500_000), Some(1_990_000), None] {
            let text = warned(allocator, none);
            assert!(text.contains("a smaller micro-batch"), "{text}");
            assert!(!text.contains("with allocator:"), "{text}");
        }
    }
    assert!(!warned(Preallocated, Some(0)).contains("with allocator:"));
}

/// So they are where those of the plan leave no place, which is said.
#[test]
fn segments_of_the_other_kind_are_suggested_where_those_of_the_plan_leave_no_place() {
    let warned = |lacking: u64, otherwise: Option<u64>| {
        let mut record = fixture::even();
        record.facts.training.stack.allocator = rackflow_workload::AllocatorPolicy::Native;
        let stage = &mut record.facts.stages[0];
        stage.capacity = stage.memory.total() + Bytes::new(1 << 40);
        stage.pressure.lacking = Bytes::new(lacking);
        stage.pressure.otherwise = otherwise.map(SimDuration::from_micros);
        report(&record).warnings.join("\n")
    };
    let no_place = "leave no place for all tensors";
    let fits = warned(512 << 20, Some(0));
    assert!(fits.contains(no_place), "{fits}");
    let words = "with allocator: expandable_segments it would have place and not wait";
    assert!(fits.contains(words), "{fits}");
    let slower = warned(512 << 20, Some(3_000));
    assert!(slower.contains("have place and wait 3 ms"), "{slower}");
    let neither = warned(512 << 20, None);
    assert!(
        neither.contains(no_place) && !neither.contains("with allocator:"),
        "{neither}"
    );
    assert_eq!(warned(0, Some(0)), "");
}
