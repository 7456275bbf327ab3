//! Ids and tokens at their edges, the rules for absurd usage, and that any log bills every request once.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use rstest::rstest;

use super::*;

const WIDE: Bounds = Bounds { prompt: 1_000, completion: 500 };

fn id(number: u8) -> RequestId {
    RequestId::new(1_700_000_000_000, [number; 10])
}

fn opening(number: u8, replica: &str) -> Opening {
    Opening {
        id: id(number),
        tenant: "acme".into(),
        namespace: "acme-ns".into(),
        endpoint: "chat".into(),
        model: "llama-3.3-70b".into(),
        version: "v3".into(),
        key: "k-1".into(),
        gateway: "gateway-0".into(),
        replica: replica.into(),
        started_ms: 1_000,
        stream: true,
    }
}

fn tokens(completion: u64) -> Tokens {
    Tokens::new(10, 4, completion).expect("tokens that can be")
}

fn mark(number: u8, at_ms: i64, completion: u64) -> Entry {
    Entry::Mark(Mark { id: id(number), at_ms, tokens: tokens(completion) })
}

fn ending(completion: u64, outcome: Outcome) -> Ending {
    Ending { ended_ms: 2_000, tokens: tokens(completion), outcome, adjusted: Adjustments::default() }
}

fn close(number: u8, completion: u64) -> Entry {
    Entry::Close(UsageRecord::new(opening(number, "a"), ending(completion, Outcome::Complete)))
}

fn reported(prompt: Option<u64>, cached: Option<u64>, completion: Option<u64>) -> Reported {
    Reported { prompt, cached, completion }
}

#[test]
fn an_id_is_a_uuid_of_version_7() {
    let id = RequestId::new(0x0190_0000_0001, [0xff; 10]);
    assert_eq!(id.to_string(), "01900000-0001-7fff-bfff-ffffffffffff");
    assert_eq!(id.unix_ms(), 0x0190_0000_0001);
    assert_eq!(id.to_string().parse(), Ok(id));
    assert_eq!(RequestId::from_bytes(*id.as_bytes()), Ok(id));
}

#[rstest]
#[case::empty("")]
#[case::version_4("01900000-0001-4fff-bfff-ffffffffffff")]
#[case::other_variant("01900000-0001-7fff-ffff-ffffffffffff")]
#[case::upper_case("01900000-0001-7FFF-bfff-ffffffffffff")]
#[case::no_hyphens("0190000000017fffbfffffffffffffff")]
#[case::hyphens_elsewhere("0190000-00001-7fff-bfff-ffffffffffff")]
#[case::sign("+1900000-0001-7fff-bfff-ffffffffffff")]
#[case::too_long("01900000-0001-7fff-bfff-ffffffffffff0")]
fn what_is_no_id_is_refused(#[case] text: &str) {
    assert!(text.parse::<RequestId>().is_err());
}

#[rstest]
#[case::none(0, 0, 0, true)]
#[case::all_cached(5, 5, 1, true)]
#[case::more_cached(5, 6, 1, false)]
#[case::the_most(MOST_TOKENS, MOST_TOKENS, MOST_TOKENS, true)]
#[case::prompt_above(MOST_TOKENS + 1, 0, 0, false)]
#[case::completion_above(0, 0, MOST_TOKENS + 1, false)]
fn tokens_are_parsed(#[case] prompt: u64, #[case] cached: u64, #[case] completion: u64, #[case] can_be: bool) {
    assert_eq!(Tokens::new(prompt, cached, completion).is_ok(), can_be);
}

const COMPLETE: Outcome = Outcome::Complete;
const GONE: Outcome = Outcome::Partial(Cause::ClientGone);
const NO_USAGE: Outcome = Outcome::Partial(Cause::NoUsage);

/// The gateway counted 10 prompt tokens, 4 of them cached, and 7 produced.
#[rstest]
#[case::as_it_came(COMPLETE, (Some(20), Some(8), Some(30)), (20, 8, 30), COMPLETE, &[])]
#[case::no_cache_said(COMPLETE, (Some(20), None, Some(30)), (20, 0, 30), COMPLETE, &[])]
#[case::zero_is_said(COMPLETE, (Some(20), None, Some(0)), (20, 0, 0), COMPLETE, &[])]
#[case::at_the_bounds(COMPLETE, (Some(1_000), Some(1_000), Some(500)), (1_000, 1_000, 500), COMPLETE, &[])]
#[case::more_cached(COMPLETE, (Some(20), Some(21), Some(30)), (20, 20, 30), COMPLETE, &[Adjustment::CachedAbovePrompt])]
#[case::prompt_above(COMPLETE, (Some(1_001), Some(5), Some(1)), (1_000, 5, 1), COMPLETE, &[Adjustment::PromptAboveBound])]
#[case::completion_above(COMPLETE, (Some(1), None, Some(501)), (1, 0, 500), COMPLETE, &[Adjustment::CompletionAboveBound])]
#[case::all_absurd(
    COMPLETE,
    (Some(u64::MAX), Some(u64::MAX), Some(u64::MAX)),
    (1_000, 1_000, 500),
    COMPLETE,
    &[Adjustment::PromptAboveBound, Adjustment::CompletionAboveBound, Adjustment::CachedAbovePrompt]
)]
#[case::no_usage(COMPLETE, (None, None, None), (10, 4, 7), NO_USAGE, &[Adjustment::PromptMissing, Adjustment::CompletionMissing])]
#[case::cached_of_no_prompt(COMPLETE, (None, Some(9), Some(3)), (10, 4, 3), NO_USAGE, &[Adjustment::PromptMissing])]
#[case::only_prompt(COMPLETE, (Some(12), Some(2), None), (12, 2, 7), NO_USAGE, &[Adjustment::CompletionMissing])]
#[case::gone_without_usage(GONE, (None, None, None), (10, 4, 7), GONE, &[Adjustment::PromptMissing, Adjustment::CompletionMissing])]
#[case::gone_with_usage(GONE, (Some(12), Some(2), Some(9)), (12, 2, 9), GONE, &[])]
fn usage_is_settled_by_the_rules(
    #[case] ended: Outcome,
    #[case] said: (Option<u64>, Option<u64>, Option<u64>),
    #[case] billed: (u64, u64, u64),
    #[case] outcome: Outcome,
    #[case] adjusted: &[Adjustment],
) {
    let settled = settle(ended, reported(said.0, said.1, said.2), tokens(7), WIDE);
    let expected = Settled {
        tokens: Tokens::new(billed.0, billed.1, billed.2).expect("tokens that can be"),
        outcome,
        adjusted: adjusted.iter().copied().collect(),
    };
    assert_eq!(settled, expected);
}

#[test]
fn nothing_ends_before_it_started() {
    let record = UsageRecord::new(opening(1, "a"), Ending { ended_ms: 999, ..ending(7, COMPLETE) });
    assert_eq!(record.ending.ended_ms, 1_000);
    assert_eq!(record.ending.adjusted.iter().collect::<Vec<_>>(), [Adjustment::EndBeforeStart]);
    assert_eq!(UsageRecord::new(opening(1, "a"), record.ending), record);
}

#[rstest]
#[case::closed(vec![Entry::Open(opening(1, "a")), close(1, 7)], COMPLETE, 7, 2_000)]
#[case::close_wins_over_marks(vec![Entry::Open(opening(1, "a")), mark(1, 1_500, 64), close(1, 60)], COMPLETE, 60, 2_000)]
#[case::second_close(vec![Entry::Open(opening(1, "a")), close(1, 7), close(1, 9)], COMPLETE, 7, 2_000)]
#[case::what_follows_a_close(vec![close(1, 7), Entry::Open(opening(1, "b")), mark(1, 1_500, 64)], COMPLETE, 7, 2_000)]
#[case::close_alone(vec![close(1, 7)], COMPLETE, 7, 2_000)]
#[case::crash(vec![Entry::Open(opening(1, "a"))], Outcome::Partial(Cause::Crash), 0, 1_000)]
#[case::crash_at_the_last_mark(
    vec![Entry::Open(opening(1, "a")), mark(1, 1_500, 64), mark(1, 1_700, 128)],
    Outcome::Partial(Cause::Crash), 128, 1_700
)]
#[case::opened_again_keeps_its_mark(
    vec![Entry::Open(opening(1, "b")), mark(1, 1_500, 64), Entry::Open(opening(1, "a"))],
    Outcome::Partial(Cause::Crash), 64, 1_500
)]
fn a_request_gives_one_bill(
    #[case] log: Vec<Entry>,
    #[case] outcome: Outcome,
    #[case] completion: u64,
    #[case] ended_ms: i64,
) {
    let found = bills(log);
    let [bill] = found.as_slice() else { panic!("one bill, not {found:?}") };
    assert_eq!(bill.opening, opening(1, "a"));
    assert_eq!(
        (bill.ending.outcome, bill.ending.tokens.completion(), bill.ending.ended_ms),
        (outcome, completion, ended_ms)
    );
}

#[test]
fn a_mark_alone_bills_nobody() {
    assert_eq!(bills([mark(1, 1_500, 64)]), []);
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let number = 0_u8..6;
    let entry = prop_oneof![
        number.clone().prop_map(|number| Entry::Open(opening(number, "a"))),
        (number.clone(), 0_i64..5_000, 0_u64..500).prop_map(|(number, at_ms, made)| mark(number, at_ms, made)),
        (number, 0_u64..500).prop_map(|(number, made)| close(number, made)),
    ];
    vec(entry, 0..40)
}

proptest! {
    /// Against the rule said otherwise: for each id alone, the first close, or else the last mark after the first open.
    #[test]
    fn every_request_is_billed_once(log in entries()) {
        let mut expected = BTreeMap::new();
        for number in 0..6 {
            let own: Vec<_> = log.iter().filter(|entry| entry.id() == id(number)).collect();
            let first_open = own.iter().position(|entry| matches!(entry, Entry::Open(_)));
            let closed = own.iter().find_map(|entry| match entry { Entry::Close(record) => Some(record.clone()), _ => None });
            let bill = closed.or_else(|| {
                let last = own[first_open?..].iter().rev().find_map(|entry| match entry { Entry::Mark(mark) => Some(mark), _ => None });
                Some(UsageRecord::new(opening(number, "a"), Ending::of_crash(1_000, last)))
            });
            if let Some(bill) = bill {
                expected.insert(id(number), bill);
            }
        }
        let found = bills(log);
        prop_assert_eq!(found.len(), expected.len());
        let found: BTreeMap<_, _> = found.into_iter().map(|bill| (bill.opening.id, bill)).collect();
        prop_assert_eq!(found, expected);
    }

    /// A log that is read twice, or whose bills were written back into it, bills the same. (No writer marks before it opens.)
    #[test]
    fn reading_again_changes_nothing(mut log in entries()) {
        let mut opened = BTreeSet::new();
        log.retain(|entry| match entry {
            Entry::Mark(mark) => opened.contains(&mark.id),
            other => { opened.insert(other.id()); true }
        });
        let once = bills(log.clone());
        let sorted = |mut bills: Vec<UsageRecord>| { bills.sort_by_key(|bill| bill.opening.id); bills };
        prop_assert_eq!(sorted(bills(log.iter().chain(&log).cloned())), sorted(once.clone()));
        let written_back = log.into_iter().chain(once.iter().cloned().map(Entry::Close));
        prop_assert_eq!(sorted(bills(written_back)), sorted(once));
    }

    #[test]
    fn whatever_an_engine_says_is_within_the_bounds(
        said in any::<(Option<u64>, Option<u64>, Option<u64>)>(),
        bounds in any::<(u64, u64)>(),
        counted in 0..MOST_TOKENS,
    ) {
        let bounds = Bounds { prompt: bounds.0, completion: bounds.1 };
        let own = Tokens::new(counted, counted, counted).expect("tokens that can be");
        let settled = settle(COMPLETE, reported(said.0, said.1, said.2), own, bounds);
        let (prompt, cached, made) = (settled.tokens.prompt(), settled.tokens.cached(), settled.tokens.completion());
        prop_assert_eq!(Tokens::new(prompt, cached, made), Ok(settled.tokens));
        prop_assert!(prompt <= bounds.prompt && made <= bounds.completion);
        prop_assert_eq!(cached + settled.tokens.uncached(), prompt);
        let believed = said.0 == Some(prompt) && said.2 == Some(made) && said.1.unwrap_or(0) == cached;
        prop_assert_eq!(believed, settled.adjusted.is_empty());
        // What is billed is settled already.
        let again = settle(settled.outcome, reported(Some(prompt), Some(cached), Some(made)), own, bounds);
        prop_assert_eq!((again.tokens, again.adjusted), (settled.tokens, Adjustments::default()));
    }

    #[test]
    fn ids_are_ordered_by_time_and_survive_text(
        (one, other) in (0_u64..1 << 48, 0_u64..1 << 48),
        (random, others) in any::<([u8; 10], [u8; 10])>(),
    ) {
        let (first, second) = (RequestId::new(one, random), RequestId::new(other, others));
        prop_assert!(one == other || (one < other) == (first < second));
        prop_assert_eq!(first.unix_ms(), one);
        prop_assert_eq!(first.to_string().parse(), Ok(first));
    }

    #[test]
    fn a_byte_is_a_set_of_adjustments_or_nothing(bits in any::<u8>()) {
        prop_assert_eq!(Adjustments::from_bits(bits).is_some(), bits < 1 << Adjustment::ALL.len());
        if let Some(set) = Adjustments::from_bits(bits) {
            prop_assert_eq!(set.iter().collect::<Adjustments>(), set);
            prop_assert_eq!(set.bits(), bits);
        }
    }
}
