//! Counts and what they count, as people read them.

/// A count with commas between thousands, and its noun in number: "1 job", "2,048 GPUs", "3 micro-batches".
/// `noun` is in the singular.
pub fn counted(count: impl Into<u64>, noun: &str) -> String {
    let count = count.into();
    let hisses = ["s", "x", "ch", "sh"].iter().any(|end| noun.ends_with(end));
    let ending = match count {
        1 => "",
        _ if hisses => "es",
        _ => "s",
    };
    format!("{} {noun}{ending}", with_commas(count))
}

fn with_commas(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn nouns_agree_with_their_number() {
        assert_eq!(counted(0_u32, "job"), "0 jobs");
        assert_eq!(counted(1_u32, "job"), "1 job");
        assert_eq!(counted(1_u64, "micro-batch"), "1 micro-batch");
        assert_eq!(counted(12_u64, "micro-batch"), "12 micro-batches");
        assert_eq!(counted(100_352_u32, "GPU"), "100,352 GPUs");
        assert_eq!(counted(1_000_000_u64, "token"), "1,000,000 tokens");
    }
}
