//! Software: values that can be, and habits that go together.
//!
//! A profile of the catalogue is the habit of many runs, so what it says of things that a run lacks (experts
//! of a dense model) is no mistake. What is refused here stands in the scenario and contradicts itself.

use super::within;
use crate::resolve::Findings;
use rackflow_plan::Setup;
use rackflow_units::Bytes;
use rackflow_workload::{
    Activation, CudaGraphs, ExpertDispatcher, OffloadedInput, Recompute, Training,
};

/// Passes through layers by which a host can be ahead of its device.
const MOST_PASSES_HELD: u64 = 1000;

fn at(field: &str) -> String {
    format!("workload.training.stack.{field}")
}

/// Checks the software, and whether its habits go together.
pub(super) fn check(findings: &mut Findings<'_>, setup: &Setup, model_right: bool) {
    values(findings, setup);
    contradictions(findings, setup);
    if model_right {
        offload(findings, &setup.training);
    }
}

/// Every value by itself.
fn values(findings: &mut Findings<'_>, setup: &Setup) {
    let stack = &setup.training.stack;
    let accelerator = &setup.cluster.node.accelerator;
    for (field, sms) in [
        ("communication_sms", stack.communication_sms),
        ("dispatch_sms", stack.dispatch_sms),
        ("tensor_reduce_sms", stack.tensor_reduce_sms),
    ] {
        if sms >= accelerator.sms && accelerator.sms > 0 {
            let found = findings.at(
                &at(field),
                format!(
                    "`{field}` is {sms}: nothing is left of the {} SMs of {} to compute with",
                    accelerator.sms, accelerator.name
                ),
            );
            findings.report(found);
        }
    }
    for (field, bytes) in [
        ("gradient_bytes", stack.gradient_bytes),
        ("optimizer_bytes", stack.optimizer_bytes),
        ("parameter_gather_bytes", stack.parameter_gather_bytes),
    ] {
        // Plain SGD keeps no state, but a gradient or a weight of no bytes is none.
        if bytes == 0 && field != "optimizer_bytes" {
            let found = findings.at(&at(field), format!("`{field}` is 0; it must be at least 1"));
            findings.report(found);
        }
        if bytes > 64 {
            let found = findings.at(
                &at(field),
                format!("`{field}` is {bytes}: no software keeps so much per parameter"),
            );
            findings.report(found);
        }
    }
    if stack.exchange_held > MOST_PASSES_HELD {
        let found = findings.at(
            &at("exchange_held"),
            format!(
                "`exchange_held` is {}: no host is so many passes through layers ahead",
                stack.exchange_held
            ),
        );
        findings.report(found.label(format!("at most {MOST_PASSES_HELD}")));
    }
    within(
        findings,
        &at("bucket"),
        stack.bucket,
        Bytes::new(1),
        Bytes::new(1_000_000_000_000_000),
    );
    let launches = [
        ("launch", Some(stack.launch)),
        ("linear_launch", stack.linear_launch),
        ("quantized_linear_launch", stack.quantized_linear_launch),
        ("mixture_launch", Some(stack.mixture_launch)),
        ("dispatch_overhead", Some(stack.dispatch_overhead)),
        ("checkpoint_launch", Some(stack.checkpoint_launch)),
    ];
    for (field, launch) in launches {
        let Some(launch) = launch.filter(|launch| launch.as_secs_f64() > 1.0) else {
            continue;
        };
        let found = findings.at(
            &at(field),
            format!("`{field}` is {launch}: no kernel takes so long to launch"),
        );
        findings.report(found.label("at most 1 s"));
    }
    for (field, value) in [
        ("optimizer_offload", stack.optimizer_offload),
        ("mixture_launch_router", stack.mixture_launch_router),
        ("allocator_slack", stack.allocator_slack),
        (
            "activation_offload.fraction",
            stack.activation_offload.fraction,
        ),
    ] {
        if !(0.0..=1.0).contains(&value) {
            let found = findings.at(
                &at(field),
                format!("`{field}` is {value:?}; it is a fraction"),
            );
            findings.report(found.label("0 to 1"));
        }
    }
    if !(1.0..=100.0).contains(&stack.collective_slowdown) {
        let found = findings.at(
            &at("collective_slowdown"),
            format!(
                "`collective_slowdown` is {:?}: 1 is as fast as alone, 1.3 takes 30 % longer",
                stack.collective_slowdown
            ),
        );
        findings.report(found.label("1 to 100"));
    }
    if stack.step_overhead.as_secs_f64() > 3600.0 {
        let found = findings.at(
            &at("step_overhead"),
            format!(
                "`step_overhead` is {}, which is absurdly large",
                stack.step_overhead
            ),
        );
        findings.report(found.label("at most 1 h"));
    }
    if stack.reserved_memory > accelerator.memory {
        let found = findings.at(
            &at("reserved_memory"),
            format!(
                "`reserved_memory` is {}, more than the {} of {}",
                stack.reserved_memory, accelerator.memory, accelerator.name
            ),
        );
        findings.report(found);
    }
}

/// Two settings of which one makes the other impossible.
fn contradictions(findings: &mut Findings<'_>, setup: &Setup) {
    let stack = &setup.training.stack;
    let graphs = stack.cuda_graphs == CudaGraphs::Full;
    let waits = stack.dispatcher == ExpertDispatcher::NcclAllToAll && !stack.static_expert_shapes;
    let expert = setup.training.parallelism.expert;
    let found = [
        (
            stack.grouped_in_one_kernel && !stack.grouped_gemm,
            &["grouped_in_one_kernel", "grouped_gemm"][..],
            "`grouped_in_one_kernel` has all experts in one kernel, and without `grouped_gemm` each has a product of its own",
            "set grouped_gemm: true, or grouped_in_one_kernel: false",
        ),
        (
            graphs && stack.blocking_launches,
            &["blocking_launches", "cuda_graphs"],
            "`blocking_launches` waits at every launch, and `cuda_graphs: full` leaves none to wait at",
            "set blocking_launches: false, or cuda_graphs: none",
        ),
        (
            graphs && waits && setup.training.model.moe.is_some() && expert > 1,
            &["cuda_graphs", "dispatcher", "static_expert_shapes"],
            "`cuda_graphs: full` launches the whole step at once, and with `nccl_all_to_all` the host waits in every mixture layer for the counts of tokens",
            "set static_expert_shapes: true, dispatcher: hybrid_ep, or cuda_graphs: partial",
        ),
        (
            stack.tensor_reduce_sms > 0 && !stack.overlap.tensor,
            &["tensor_reduce_sms"],
            "`tensor_reduce_sms` are left to pieces of a reduction beside a product, and without `overlap.tensor` it is not cut",
            "set overlap.tensor: true, or leave tensor_reduce_sms out",
        ),
        (
            stack.optimizer_offload > 0.0 && stack.optimizer_bytes == 0,
            &["optimizer_offload", "optimizer_bytes"],
            "`optimizer_offload` moves the optimizer's states to the host, and `optimizer_bytes` says that there are none",
            "set optimizer_offload: 0, or leave optimizer_bytes out",
        ),
    ];
    for (wrong, fields, message, hint) in found {
        let written = fields.iter().find(|field| findings.written(&at(field)));
        if let (true, Some(field)) = (wrong, written) {
            let found = findings.at(&at(field), message);
            findings.report(found.hint(hint));
        }
    }
}

/// Activations on the host are there to be moved, and named once.
fn offload(findings: &mut Findings<'_>, t: &Training) {
    let offload = &t.stack.activation_offload;
    let path = at("activation_offload");
    if offload.inputs.is_empty() {
        if findings.written(&format!("{path}.fraction")) {
            let found = findings.at(
                &format!("{path}.fraction"),
                "`fraction` of nothing: `inputs` names no activation",
            );
            findings.report(found.hint("write inputs: [layer], or leave activation_offload out"));
        }
        return;
    }
    let inputs = &offload.inputs;
    for (index, input) in inputs.iter().enumerate() {
        let (message, hint) = if inputs[..index].contains(input) {
            (
                format!("entry {} of `inputs` was named before", index + 1),
                "name each input once",
            )
        } else if *input != OffloadedInput::Layer && inputs.contains(&OffloadedInput::Layer) {
            (
                "`layer` is all inputs of a layer already".to_owned(),
                "write inputs: [layer], or leave `layer` out",
            )
        } else if let Some(why) = nothing_kept(t, *input) {
            (
                format!("nothing is there to move to the host: {why}"),
                "leave it out of `inputs`, or recompute less",
            )
        } else {
            continue;
        };
        let found = findings.at(&format!("{path}.inputs.{index}"), message);
        findings.report(found.hint(hint));
    }
}

/// Why no layer of a training keeps this input.
fn nothing_kept(t: &Training, input: OffloadedInput) -> Option<String> {
    let recomputes = |activation| match &t.recompute {
        Recompute::Activations(list) => list.contains(&activation),
        _ => false,
    };
    match input {
        OffloadedInput::ExpertFc1 | OffloadedInput::MoeActivation if t.model.moe.is_none() => {
            Some(format!("{} has no experts", t.model.name))
        }
        OffloadedInput::Layer | OffloadedInput::AttentionNorm => None,
        _ if t.recompute == Recompute::Full => {
            Some("whole layers are recomputed and keep the input of their first norm only".into())
        }
        OffloadedInput::QkvLinear | OffloadedInput::ExpertFc1 | OffloadedInput::MoeActivation
            if t.recompute == Recompute::Operators =>
        {
            Some("recomputation by operator computes it again".into())
        }
        OffloadedInput::ExpertFc1 | OffloadedInput::MoeActivation
            if recomputes(Activation::Moe) =>
        {
            Some("the experts are recomputed".into())
        }
        OffloadedInput::QkvLinear if recomputes(Activation::Norms) => {
            Some("the norms are recomputed".into())
        }
        _ => None,
    }
}
