//! Claims about serving: what decode leaves unused.

use super::{Claim, FU, Finding, Lab, Verdict, percent};
use crate::failure::Failure;

const LLAMA: &str = "serve-llama3-70b-8-h100";

pub fn claims() -> Vec<Claim> {
    vec![Claim {
        id: "decode-utilisation",
        claim: "Decode runs under 5 % MFU, while it keeps about 70 % of the memory bandwidth busy",
        source: FU,
        try_it: decode,
    }]
}

fn decode(lab: &mut Lab) -> Result<Finding, Failure> {
    let report = lab.serving(LLAMA)?;
    let (mfu, mbu) = (report.serving.mfu.decode, report.serving.mbu.decode);
    let (Some(mfu), Some(mbu)) = (mfu, mbu) else {
        return Err(Failure::run(format_args!(
            "{LLAMA} has no step that only decodes"
        )));
    };
    Ok(Finding {
        simulated: format!(
            "Llama 3 70B on 8 H100 under the load of {LLAMA}: {} MFU and {} MBU in steps that only decode; the first holds below \
             5 %, the second between 55 and 85 %",
            percent(mfu),
            percent(mbu)
        ),
        verdict: match (mfu < 0.05, (0.55..=0.85).contains(&mbu)) {
            (true, true) => Verdict::Holds,
            (true, false) | (false, true) => Verdict::HoldsWhen,
            (false, false) => Verdict::DoesNot,
        },
        command: format!("rackflow run {LLAMA}"),
    })
}
