//! What must come out to the integer, by independent programs: without it, no number of this one can be compared with theirs.

use serde_json::{Value, json};

use super::{
    simulation::{Outcome, Router, Setup},
    trace::Trace,
};

/// The first 6,000 requests of Mooncake's conversation trace: so many, with so many tokens of prompts.
const KNOWN: (usize, u64) = (6_000, 76_643_649);
/// With 8 engines that cache 2,048 blocks: cached tokens, sum and p99 of the times to the first token, sum of those to the end, in ns.
const EXPECTED: [(Router, u64, [u64; 4]); 6] = [
    (Router::RoundRobin, 165, [6_347_264, 12_724_725_509_784, 15_811_020_875, 61_595_975_960_587]),
    (Router::RoundRobin, 200, [6_347_264, 29_714_664_162_173, 32_802_784_741, 105_916_261_391_198]),
    (Router::LeastPromptTokens, 165, [6_173_696, 5_471_918_791_519, 7_947_232_856, 44_502_140_571_640]),
    (Router::LeastPromptTokens, 200, [5_640_192, 7_131_590_759_535, 8_634_435_071, 66_290_398_029_910]),
    (Router::Oracle, 165, [17_752_064, 3_913_551_562_537, 7_294_182_253, 36_263_155_059_836]),
    (Router::Oracle, 200, [16_814_080, 4_110_483_875_163, 7_327_258_461, 49_013_682_143_953]),
];

/// A comparison.
pub(crate) struct Check {
    strategy: &'static str,
    load: u64,
    expected: [u64; 4],
    got: [u64; 4],
    pub(crate) exact: bool,
}

impl Check {
    pub(crate) fn json(&self) -> Value {
        let Self { strategy, load, expected, got, exact } = self;
        json!({"strategy": strategy, "load": load, "expected": expected, "got": got, "exact": exact})
    }
}

/// Compares, where it is known what must come out.
pub(crate) fn compare(setup: &Setup, trace: &Trace, strategy: &'static str, outcome: &Outcome) -> Option<Check> {
    let known = (trace.requests.len(), trace.prompt_tokens()) == KNOWN;
    if !known || (setup.gateways, setup.engines, setup.blocks) != (1, 8, 2048) {
        return None;
    }
    let here = |(router, load, _): &&(Router, u64, [u64; 4])| (*router, *load) == (setup.router, setup.speed);
    let &(_, load, expected) = EXPECTED.iter().find(here)?;
    let got = [outcome.cached_tokens, outcome.first_token_sum, outcome.first_token_p99, outcome.end_sum];
    Some(Check { strategy, load, expected, got, exact: got == expected })
}
