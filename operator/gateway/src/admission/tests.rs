//! One step over all limits: what is let in, what comes back, and that nothing is overshot, by turns or at once.

use std::sync::atomic::AtomicU32;

use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::keys::{AllowedModels, Key, Secret, SecretHash};

const MODEL: &str = "chat";

fn id(text: &str) -> KeyId {
    KeyId::parse(text).expect("an id")
}

fn limits(
    requests: impl Into<Option<u32>>,
    tokens: impl Into<Option<u64>>,
    concurrency: impl Into<Option<u32>>,
) -> Limits {
    Limits { requests_per_minute: requests.into(), tokens_per_minute: tokens.into(), concurrency: concurrency.into() }
}

/// A request of 10 tokens of prompt and 10 at most of answer, of tenant `acme` and key `a`.
fn ask(key_limits: Limits, tenant_limits: Limits) -> Ask<'static> {
    Ask {
        tenant: "acme",
        key: id("aaaaaaaa"),
        model: MODEL,
        tenant_limits,
        key_limits,
        prompt_tokens: 10,
        max_completion_tokens: Some(10),
        choices: 1,
    }
}

fn local() -> Arc<Admission> {
    Arc::new(Admission::new(Mode::Local))
}

/// Lets in as many as there is room for at `now_ms`.
fn fill(admission: &Arc<Admission>, now_ms: u64, ask: &Ask<'_>) -> (Vec<Guard>, Refusal) {
    let mut guards = Vec::new();
    loop {
        match admission.admit(now_ms, ask) {
            Ok(guard) => guards.push(guard),
            Err(refusal) => return (guards, refusal),
        }
    }
}

fn told(refusal: &Refusal) -> (ScopeKind, LimitKind, u64, Retry) {
    (refusal.scope, refusal.limit, refusal.allowed, refusal.retry)
}

#[rstest]
#[case::requests_of_the_key(limits(6, None, None), limits(9, None, None), 6, (ScopeKind::Key, LimitKind::Requests, 6, Retry::AfterMs(10_000)))]
#[case::requests_of_the_tenant(limits(9, None, None), limits(6, None, None), 6, (ScopeKind::Tenant, LimitKind::Requests, 6, Retry::AfterMs(10_000)))]
#[case::tokens_of_the_key(limits(None, 119, None), limits(None, 999, None), 5, (ScopeKind::Key, LimitKind::Tokens, 119, Retry::AfterMs(505)))]
#[case::tokens_of_the_tenant(limits(9, 999, 9), limits(9, 60, 9), 3, (ScopeKind::Tenant, LimitKind::Tokens, 60, Retry::AfterMs(20_000)))]
#[case::at_once(limits(9, 999, 9), limits(9, 999, 2), 2, (ScopeKind::Tenant, LimitKind::Concurrency, 2, Retry::AfterMs(1_000)))]
#[case::the_longest_wait_is_told(limits(6, None, 6), limits(None, None, 6), 6, (ScopeKind::Key, LimitKind::Requests, 6, Retry::AfterMs(10_000)))]
#[case::nothing_is_allowed(limits(0, None, None), limits(None, None, None), 0, (ScopeKind::Key, LimitKind::Requests, 0, Retry::Never))]
#[case::none_at_once(limits(None, None, None), limits(None, None, 0), 0, (ScopeKind::Tenant, LimitKind::Concurrency, 0, Retry::Never))]
#[case::the_prompt_is_too_long(limits(None, 9, None), limits(None, 999, None), 0, (ScopeKind::Key, LimitKind::Tokens, 9, Retry::Never))]
fn a_limit_lets_in_what_it_says(
    #[case] key: Limits,
    #[case] tenant: Limits,
    #[case] admitted: usize,
    #[case] refusal: (ScopeKind, LimitKind, u64, Retry),
) {
    let admission = local();
    let (guards, refused) = fill(&admission, 0, &ask(key, tenant));
    assert_eq!((guards.len(), told(&refused)), (admitted, refusal));
    assert_eq!(admission.in_flight("acme") as usize, admitted);
}

/// A refusal by one limit takes nothing of the others, however often.
#[test]
fn a_refusal_takes_nothing() {
    let admission = local();
    let (tight, wide) = (limits(None, None, 1), limits(100, 1_000, 100));
    let guard = admission.admit(0, &ask(tight, wide)).expect("room");
    for _ in 0..500 {
        assert!(admission.admit(0, &ask(tight, wide)).is_err());
    }
    let rates = admission.admit(0, &ask(tight, wide)).expect_err("no room").rates;
    assert_eq!(rates.requests.map(|rate| rate.remaining), Some(99));
    assert_eq!(rates.tokens.map(|rate| rate.remaining), Some(980));
    drop(guard);
    assert_eq!(admission.counts(), Counts { admitted: 1, refused: 501, dropped: 1, ..Counts::default() });
}

/// What is left of the limits after each way to end.
#[rstest]
#[case::as_reserved(|guard: Guard| guard.settle(0, 10, 10, true), 99, 980)]
#[case::less(|guard: Guard| guard.settle(0, 8, 1, true), 99, 991)]
#[case::more(|guard: Guard| guard.settle(0, 10, 90, true), 99, 900)]
#[case::refunded(|guard: Guard| guard.refund(0), 100, 1_000)]
#[case::dropped(|guard: Guard| drop(guard), 100, 1_000)]
#[case::dropped_after_some(|mut guard: Guard| guard.progress(5), 99, 985)]
#[case::dropped_after_more(|mut guard: Guard| guard.progress(90), 99, 900)]
#[case::settled_after_some(|mut guard: Guard| { guard.progress(90); guard.settle(0, 10, 100, true) }, 99, 890)]
#[case::settled_with_less_than_was_counted(|mut guard: Guard| { guard.progress(90); guard.settle(0, 10, 80, true) }, 99, 910)]
#[case::progress_does_not_go_back(|mut guard: Guard| { guard.progress(90); guard.progress(1) }, 99, 900)]
fn every_end_is_exact(#[case] end: fn(Guard), #[case] requests: u64, #[case] tokens: u64) {
    let admission = local();
    let wide = limits(100, 1_000, 1);
    end(admission.admit(0, &ask(wide, wide)).expect("room"));
    assert_eq!(admission.in_flight("acme"), 0);
    let mut next = ask(wide, wide);
    next.prompt_tokens = 2_000;
    let rates = admission.admit(0, &next).expect_err("too long").rates;
    assert_eq!(
        (rates.requests.map(|rate| rate.remaining), rates.tokens.map(|rate| rate.remaining)),
        (Some(requests), Some(tokens))
    );
}

/// A stream that is longer than its estimate is paid for while it runs: the next request waits.
#[test]
fn progress_is_charged_at_once() {
    let admission = local();
    let tight = limits(None, 100, None);
    let mut guard = admission.admit(0, &ask(tight, tight)).expect("room");
    guard.progress(90);
    assert_eq!(guard.reserved(), 100);
    let refused = admission.admit(0, &ask(tight, tight)).expect_err("nothing is left");
    assert_eq!(refused.retry, Retry::AfterMs(12_000));
    guard.settle(0, 10, 90, true);
}

/// Ten agents that ask for all a model can give share a limit that three worst cases would exhaust.
#[test]
fn a_worst_case_locks_nobody_out() {
    let admission = local();
    let tight = limits(None, 100_000, None);
    let agent = Ask { max_completion_tokens: Some(32_000), ..ask(tight, tight) };
    admission.admit(0, &agent).expect("room").settle(0, 10, 400, true);
    let (guards, _) = fill(&admission, 0, &agent);
    assert!(guards.len() > 100, "{}", guards.len());
    // Even where the limit is less than one estimate.
    let tiny = limits(None, 100, None);
    let small = Ask { tenant: "tiny", ..ask(tiny, tiny) };
    let guard = admission.admit(0, &Ask { max_completion_tokens: None, ..small }).expect("room for the prompt");
    assert_eq!(guard.reserved(), 100);
}

#[rstest]
#[case::first(None, None, 1, 10 + estimate::FIRST_ESTIMATE)]
#[case::bounded(None, Some(5), 1, 15)]
#[case::bounded_by_zero(None, Some(0), 1, 10)]
#[case::learned(Some((100, true)), None, 1, 210)]
#[case::learned_and_bounded(Some((100, true)), Some(50), 1, 60)]
#[case::each_choice(Some((100, true)), None, 3, 610)]
#[case::cut_off_answers_teach_nothing(Some((100, false)), None, 1, 10 + estimate::FIRST_ESTIMATE)]
#[case::embeddings(None, None, 0, 10)]
fn what_is_reserved(
    #[case] before: Option<(u64, bool)>,
    #[case] most: Option<u64>,
    #[case] choices: u32,
    #[case] reserved: u64,
) {
    let admission = local();
    let ask = ask(Limits::default(), Limits::default());
    if let Some((tokens, whole)) = before {
        admission.admit(0, &ask).expect("no limit").settle(0, 10, tokens, whole);
    }
    let guard = admission.admit(0, &Ask { max_completion_tokens: most, choices, ..ask }).expect("no limit");
    assert_eq!(guard.reserved(), reserved);
    guard.refund(0);
}

#[test]
fn estimates_are_of_one_key_and_one_model() {
    let admission = local();
    let ask = Ask { max_completion_tokens: None, ..ask(Limits::default(), Limits::default()) };
    admission.admit(0, &ask).expect("no limit").settle(0, 10, 8, true);
    let reserved = |ask: &Ask<'_>| admission.admit(0, ask).map(|guard| guard.reserved());
    assert_eq!(reserved(&ask), Ok(26));
    assert_eq!(reserved(&Ask { model: "other", ..ask }), Ok(10 + estimate::FIRST_ESTIMATE));
    assert_eq!(reserved(&Ask { key: id("bbbbbbbb"), ..ask }), Ok(10 + estimate::FIRST_ESTIMATE));
}

fn keyring(ids: &[&str]) -> Keyring {
    let secret = Secret { hash: SecretHash::from_bytes([1; 32]), expires_at_ms: None };
    let key = |text: &&str| Key {
        id: id(text),
        tenant: "acme".into(),
        namespace: "acme".into(),
        secrets: vec![secret],
        expires_at_ms: None,
        revoked: false,
        models: AllowedModels::All,
        limits: Limits::default(),
        residency: Default::default(),
    };
    ids.iter().map(key).collect()
}

/// A key that comes and goes gives its tenant nothing.
#[test]
fn forgetting_a_key_gives_nothing() {
    let admission = local();
    let limit = limits(2, None, None);
    let guard = admission.admit(0, &ask(limit, limit)).expect("room");
    admission.retain(&keyring(&[]), |_| limit, 60_000);
    assert_eq!(admission.in_flight("acme"), 1);
    guard.settle(60_000, 10, 10, true);
    for now_ms in [60_000, 89_999] {
        fill(&admission, 60_000, &ask(limit, limit)).0.into_iter().for_each(|guard| guard.settle(60_000, 10, 10, true));
        admission.retain(&keyring(&[]), |_| limit, now_ms);
        assert!(admission.admit(60_000, &ask(limit, limit)).is_err());
    }
    admission.retain(&keyring(&["aaaaaaaa"]), |_| limit, 1_000_000);
    assert_eq!(admission.shards.iter().map(|shard| lock(shard).len()).sum::<usize>(), 1);
    admission.retain(&keyring(&[]), |_| limit, 1_000_000);
    assert_eq!(admission.shards.iter().map(|shard| lock(shard).len()).sum::<usize>(), 0);
}

/// A limit that is lowered is the new one for the others too: what is asked of the service is asked with it, without a request.
#[test]
fn limits_change_without_a_request() {
    let admission = Arc::new(Admission::new(Mode::Leased));
    let before = limits(None, None, 10);
    assert!(admission.admit(0, &ask(Limits::default(), before)).is_err());
    let asked = admission.needs(0);
    let [(name, told, need)] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!(*told, before);
    let grant =
        lease::Grant { sequence: need.sequence, block: need.want, slots: 1, valid_ms: 10_000, retry_after_ms: 0 };
    admission.grant(5, name, &grant);
    let guard = admission.admit(10, &ask(Limits::default(), before)).expect("a slot");
    let after = limits(None, None, 5);
    admission.retain(&keyring(&["aaaaaaaa"]), |_| after, 2_000);
    // What is in use is asked for again before it ends.
    let asked = admission.needs(9_000);
    assert!(!asked.is_empty() && asked.iter().all(|(_, limits, _)| *limits == after), "{asked:?}");
    guard.settle(9_000, 1, 1, true);
}

/// A request that waits for a lease and tries at each grant is one request, which is refused once or not at all.
#[test]
fn who_waits_counts_once() {
    let admission = Arc::new(Admission::new(Mode::Leased));
    let ask = ask(limits(None, None, 10), Limits::default());
    let mut waiter = Waiter::default();
    for _ in 0..5 {
        assert!(admission.admit_waiting(0, &ask, &mut waiter).is_err_and(|refusal| refusal.retry == Retry::Lease));
    }
    let asked = admission.needs(0);
    let [(name, _, need)] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!((need.slots, admission.counts().refused), (1, 0));
    let (sequence, slots) = (need.sequence, need.slots);
    admission.grant(5, name, &lease::Grant { sequence, block: need.want, slots, valid_ms: 10_000, retry_after_ms: 0 });
    let guard = admission.admit_waiting(10, &ask, &mut waiter).expect("a slot");
    assert!(admission.admit(10, &ask).is_err());
    assert_eq!((admission.counts().admitted, admission.counts().refused), (1, 1));
    guard.refund(10);
}

#[test]
fn limits_are_those_of_now() {
    let admission = local();
    let (guards, _) = fill(&admission, 0, &ask(limits(None, None, 3), Limits::default()));
    assert_eq!(guards.len(), 3);
    assert!(admission.admit(0, &ask(limits(None, None, 2), Limits::default())).is_err());
    assert!(admission.admit(0, &ask(limits(None, None, 4), Limits::default())).is_ok());
}

/// A request that came before there was a limit gives nothing to the limit when it ends.
#[rstest]
#[case::local(Mode::Local)]
#[case::leased(Mode::Leased)]
fn a_new_limit_gets_nothing_from_before(#[case] mode: Mode) {
    let admission = Arc::new(Admission::new(mode));
    let guards: Vec<Guard> =
        (0..9).filter_map(|_| admission.admit(0, &ask(Limits::default(), Limits::default())).ok()).collect();
    let tight = limits(2, 40, None);
    let (others, _) = fill(&admission, 0, &ask(tight, tight));
    assert_eq!(others.len(), if mode == Mode::Local { 2 } else { 0 });
    others.into_iter().for_each(|guard| guard.settle(0, 10, 10, true));
    for (index, guard) in guards.into_iter().enumerate() {
        // Nor does it owe what it uses beyond its estimate.
        if index % 2 == 0 { guard.refund(0) } else { guard.settle(0, 10, 500, true) }
    }
    let refused = admission.admit(0, &ask(tight, tight)).expect_err("nothing is left");
    let left = [refused.rates.requests, refused.rates.tokens].map(|rate| rate.map(|rate| rate.remaining));
    assert_eq!(left, [Some(0), Some(0)]);
    assert_eq!(refused.retry, if mode == Mode::Local { Retry::AfterMs(30_000) } else { Retry::Lease });
    assert!(admission.needs(0).iter().all(|(_, _, need)| need.returned == lease::Block::default()));
}

/// A gateway with leases admits what it holds, asks for what it does not, and says the service's wait.
#[test]
fn leases_are_asked_for_and_used() {
    let admission = Arc::new(Admission::new(Mode::Leased));
    let (key, tenant) = (limits(10, None, None), limits(None, 1_000, 4));
    let ask = ask(key, tenant);
    let refused = admission.admit(0, &ask).expect_err("nothing is held");
    assert_eq!(refused.retry, Retry::Lease);
    let needs = admission.needs(0);
    assert_eq!(needs.len(), 2);
    for (name, limits, need) in &needs {
        let (expected, block) = match name.key {
            None => (tenant, lease::Block { requests: 0, tokens: 20 }),
            Some(_) => (key, lease::Block { requests: 1, tokens: 0 }),
        };
        assert_eq!((*limits, need.want, need.least), (expected, block, block));
        let grant = Grant { sequence: need.sequence, block, slots: 1, valid_ms: 10_000, retry_after_ms: 0 };
        assert!(admission.grant(1, name, &grant));
    }
    let guard = admission.admit(1, &ask).expect("held");
    assert_eq!(guard.rates().requests.map(|rate| (rate.limit, rate.remaining)), Some((10, 0)));
    assert_eq!(admission.admit(1, &ask).expect_err("used up").retry, Retry::Lease);
    for (name, _, need) in admission.needs(1) {
        let grant = Grant {
            sequence: need.sequence,
            block: lease::Block::default(),
            slots: 1,
            valid_ms: 10_000,
            retry_after_ms: 2_000,
        };
        assert!(admission.grant(2, &name, &grant));
    }
    assert_eq!(admission.admit(2, &ask).expect_err("the service has none").retry, Retry::AfterMs(2_000));
    guard.settle(2, 10, 10, true);
    // With nothing left of its time, what is held ends.
    assert_eq!(admission.admit(20_000, &ask).expect_err("over").retry, Retry::Lease);
    // Without limits there is nothing to ask for.
    let free = Ask { tenant: "free", key_limits: Limits::default(), tenant_limits: Limits::default(), ..ask };
    admission.admit(0, &free).expect("no limit").settle(0, 10, 10, true);
    assert!(admission.needs(0).iter().all(|(name, _, _)| &*name.tenant == "acme"));
}

/// What one of many requests does next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Admit { key: usize, prompt: u64, most: u64 },
    Progress { index: usize, tokens: u64 },
    Settle { index: usize, tokens: u64, whole: bool },
    Refund { index: usize },
    Drop { index: usize },
    Pause { ms: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<usize>;
    prop_oneof![
        10 => (0_usize..3, 0_u64..50, 0_u64..100).prop_map(|(key, prompt, most)| Step::Admit { key, prompt, most }),
        1 => (index(), 0_u64..300).prop_map(|(index, tokens)| Step::Progress { index, tokens }),
        3 => (index(), 0_u64..300, any::<bool>()).prop_map(|(index, tokens, whole)| Step::Settle { index, tokens, whole }),
        1 => index().prop_map(|index| Step::Refund { index }),
        1 => index().prop_map(|index| Step::Drop { index }),
        3 => (0_u64..4_000).prop_map(|ms| Step::Pause { ms }),
    ]
}

fn any_limits() -> impl Strategy<Value = Limits> {
    (prop::option::of(0_u32..400), prop::option::of(0_u64..20_000), prop::option::of(0_u32..40))
        .prop_map(|(requests, tokens, concurrency)| limits(requests, tokens, concurrency))
}

/// What was taken of one scope, and when: reserved tokens less those that came back, requests less those refunded.
#[derive(Clone, Debug, Default)]
struct Taken {
    in_flight: u32,
    requests: i64,
    tokens: i64,
    marks: Vec<(u64, i64, i64)>,
}

impl Taken {
    fn check(&mut self, limits: Limits, now_ms: u64) -> Result<(), TestCaseError> {
        prop_assert!(limits.concurrency.is_none_or(|limit| self.in_flight <= limit));
        self.marks.push((now_ms, self.requests, self.tokens));
        for &(from_ms, requests, tokens) in &self.marks {
            let within = |limit: Option<u64>, taken: i64| {
                limit.is_none_or(|limit| {
                    i128::from(taken) * 60_000 <= i128::from(limit) * (60_000 + i128::from(now_ms - from_ms))
                })
            };
            prop_assert!(within(limits.requests_per_minute.map(u64::from), self.requests - requests));
            prop_assert!(within(limits.tokens_per_minute, self.tokens - tokens));
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// 1,000 requests of three keys of one tenant, interleaved in any way with their ends, overshoot none of the limits: not in any stretch of
    /// time, not at once. When all have ended, nothing is in flight and every request has ended in one way.
    #[test]
    fn a_thousand_requests_overshoot_nothing(
        tenant in any_limits(),
        keys in prop::array::uniform3(any_limits()),
        steps in prop::collection::vec(step(), 1_000),
    ) {
        let admission = local();
        let ids = ["aaaaaaaa", "bbbbbbbb", "cccccccc"].map(id);
        let mut now_ms = 0;
        let mut guards: Vec<(usize, Guard)> = Vec::new();
        let mut taken: [Taken; 4] = Default::default();
        let end = |taken: &mut [Taken; 4], key: usize, requests: i64, tokens: i64| {
            for at in [key, 3] {
                taken[at].in_flight -= 1;
                taken[at].requests -= requests;
                // What is used beyond what was reserved is a debt, not let in.
                taken[at].tokens -= tokens.max(0);
            }
        };
        for step in steps {
            let pick = |index: usize| (!guards.is_empty()).then(|| index % guards.len());
            match step {
                Step::Admit { key, prompt, most } => {
                    let ask = Ask {
                        tenant: "acme",
                        key: ids[key],
                        model: MODEL,
                        tenant_limits: tenant,
                        key_limits: keys[key],
                        prompt_tokens: prompt,
                        max_completion_tokens: Some(most),
                        choices: 1,
                    };
                    if let Ok(guard) = admission.admit(now_ms, &ask) {
                        for at in [key, 3] {
                            taken[at].in_flight += 1;
                            taken[at].requests += 1;
                            taken[at].tokens += guard.reserved() as i64;
                        }
                        guards.push((key, guard));
                    }
                }
                Step::Progress { index, tokens } => if let Some(index) = pick(index) {
                    let (key, mut guard) = guards.swap_remove(index);
                    let before = guard.reserved();
                    guard.progress(tokens);
                    let more = (guard.reserved() - before) as i64;
                    let prompt = guard.prompt_tokens;
                    drop(guard);
                    // Dropped: what was produced stays, and a debt is no request let in.
                    let kept = if tokens == 0 { 0 } else { (prompt + tokens) as i64 };
                    end(&mut taken, key, i64::from(tokens == 0), before as i64 - kept.min(before as i64));
                    prop_assert!(more == 0 || more == kept - before as i64);
                },
                Step::Settle { index, tokens, whole } => if let Some(index) = pick(index) {
                    let (key, guard) = guards.swap_remove(index);
                    let reserved = guard.reserved() as i64;
                    guard.settle(now_ms, 0, tokens, whole);
                    end(&mut taken, key, 0, reserved - tokens as i64);
                },
                Step::Refund { index } => if let Some(index) = pick(index) {
                    let (key, guard) = guards.swap_remove(index);
                    let reserved = guard.reserved() as i64;
                    guard.refund(now_ms);
                    end(&mut taken, key, 1, reserved);
                },
                Step::Drop { index } => if let Some(index) = pick(index) {
                    let (key, guard) = guards.swap_remove(index);
                    let reserved = guard.reserved() as i64;
                    drop(guard);
                    end(&mut taken, key, 1, reserved);
                },
                Step::Pause { ms } => {
                    now_ms += ms;
                    for (taken, limits) in taken.iter_mut().zip(keys.into_iter().chain([tenant])) {
                        taken.check(limits, now_ms)?;
                    }
                }
            }
            prop_assert_eq!(admission.in_flight("acme"), taken[3].in_flight);
        }
        for (taken, limits) in taken.iter_mut().zip(keys.into_iter().chain([tenant])) {
            taken.check(limits, now_ms)?;
        }
        guards.clear();
        prop_assert_eq!(admission.in_flight("acme"), 0);
        let counts = admission.counts();
        prop_assert_eq!(counts.admitted, counts.settled + counts.refunded + counts.dropped);
    }

    /// A wait that is told ends when it says, not a millisecond before.
    #[test]
    fn waits_are_exact(tenant in any_limits(), key in any_limits(), prompt in 0_u64..500, used in 0_u64..3_000) {
        let (tenant, key) = (Limits { concurrency: None, ..tenant }, Limits { concurrency: None, ..key });
        let admission = local();
        let ask = Ask { prompt_tokens: prompt, ..ask(key, tenant) };
        let mut refused = None;
        for _ in 0..1_000 {
            match admission.admit(7, &ask) {
                Ok(guard) => guard.settle(7, prompt, used, true),
                Err(refusal) => {
                    refused = Some(refusal.retry);
                    break;
                }
            }
        }
        if let Some(Retry::AfterMs(wait_ms)) = refused {
            prop_assert!(admission.admit(7 + wait_ms - 1, &ask).is_err());
            prop_assert!(admission.admit(7 + wait_ms, &ask).is_ok());
        }
    }
}

/// 1,000 requests from eight threads against each limit alone and all together: exactly as many are let in as there is room for, never more at
/// once, and no thread waits for ever.
#[rstest]
#[case::requests(limits(137, None, None), 137)]
#[case::tokens(limits(None, 137 * 20, None), 137)]
#[case::all(limits(300, 137 * 20, 64), 137)]
fn threads_overshoot_nothing(#[case] limit: Limits, #[case] room: u64) {
    let admission = local();
    let (now, most) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (admission, now, most) = (&admission, &now, &most);
            scope.spawn(move || {
                let key = id(["aaaaaaaa", "bbbbbbbb"][thread % 2]);
                let ask = Ask { key, ..ask(Limits::default(), limit) };
                for turn in 0..125 {
                    if let Ok(guard) = admission.admit(0, &ask) {
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::yield_now();
                        now.fetch_sub(1, Ordering::SeqCst);
                        guard.settle(0, 10, 10, true);
                    }
                    if turn % 10 == 0 {
                        admission.retain(&keyring(&["aaaaaaaa", "bbbbbbbb"]), |_| limit, 0);
                        let _ = admission.needs(0);
                    }
                }
            });
        }
    });
    let counts = admission.counts();
    assert_eq!((counts.admitted, counts.settled, counts.admitted + counts.refused), (room, room, 1_000));
    assert!(limit.concurrency.is_none_or(|limit| most.into_inner() <= limit));
    assert_eq!(admission.in_flight("acme"), 0);
}

/// The same, at once: no more than the limit are held, and all of it can be.
#[test]
fn threads_hold_no_more_than_the_limit() {
    let admission = local();
    let limit = limits(None, None, 24);
    let guards: Vec<Guard> = std::thread::scope(|scope| {
        let admission = &admission;
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(move || {
                    (0..125).filter_map(|_| admission.admit(0, &ask(limit, limit)).ok()).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!((guards.len(), admission.in_flight("acme")), (24, 24));
    drop(guards);
    assert_eq!((admission.in_flight("acme"), admission.counts().dropped), (0, 24));
}
