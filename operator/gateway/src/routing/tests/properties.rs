//! What holds for any requests, engines and orders of events.

use proptest::{
    collection::vec,
    prelude::{Just, any, prop_assert, prop_assert_eq, prop_oneof, proptest},
    strategy::Strategy as Generated,
};

use super::*;

/// What happens to strategies.
#[derive(Clone, Debug)]
enum Happening {
    /// A request arrives, with so many blocks of a conversation, while these engines are closed.
    Arrival {
        conversation: u64,
        blocks: u64,
        closed: BTreeSet<u64>,
    },
    /// A token of one of the requests, or its end; how many of its tokens were cached.
    Token(usize),
    End(usize, Option<u64>),
    /// These are the engines from now on.
    Engines(BTreeSet<u64>),
}

fn any_happening() -> impl Generated<Value = Happening> {
    let ids = || proptest::collection::btree_set(10_u64..16, 0..6);
    prop_oneof![
        8 => (1_u64..12, 0_u64..100, ids())
            .prop_map(|(conversation, blocks, closed)| Happening::Arrival { conversation, blocks, closed }),
        8 => any::<usize>().prop_map(Happening::Token),
        4 => (any::<usize>(), proptest::option::of(any::<u64>())).prop_map(|(which, cached)| Happening::End(which, cached)),
        1 => ids().prop_map(Happening::Engines),
    ]
}

fn any_time() -> impl Generated<Value = u64> {
    prop_oneof![Just(0), 0..100 * MS, 0..10 * SECOND, Just(1 << 50)]
}

fn any_history() -> impl Generated<Value = Vec<(u64, Happening)>> {
    vec((any_time(), any_happening()), 0..120)
}

/// Every strategy, with tables that are seeded so. Engines cache 64 blocks.
fn every_strategy(seed: u64) -> Vec<Box<dyn Strategy>> {
    let affinity = |peers, cache| Box::new(PrefixAffinity::new(Config { cache, seed, ..config(peers) }));
    vec![
        Box::new(RoundRobin::new()),
        Box::new(Least::requests()),
        Box::new(Least::prompt_tokens()),
        affinity(Peers::None, Cache::Blocks(64)),
        affinity(Peers::Any, Cache::Blocks(64)),
        affinity(Peers::ByPrefix, Cache::AtMost(64)),
    ]
}

/// Lets it all happen, and gives what was chosen, which engines there were, and which of them were open.
fn live(strategy: &mut dyn Strategy, history: &[(u64, Happening)]) -> Vec<(Option<EngineId>, BTreeSet<u64>)> {
    let (mut now, mut tickets, mut chosen) = (0_u64, Vec::new(), Vec::new());
    let mut engines: BTreeSet<u64> = ENGINES.map(|engine| engine.0).into();
    strategy.set_engines(&ENGINES);
    for (later, happening) in history {
        now = now.saturating_add(*later);
        match happening {
            Happening::Arrival { conversation: number, blocks, closed } => {
                let blocks = conversation(*number, *blocks);
                let open: BTreeSet<u64> = engines.difference(closed).copied().collect();
                let engine = strategy.choose(now, &prompt(&blocks), &|engine| !closed.contains(&engine.0));
                tickets.extend(engine.map(|engine| strategy.dispatched(now, engine, &prompt(&blocks))));
                chosen.push((engine, open));
            }
            Happening::Token(which) if !tickets.is_empty() => strategy.token(now, tickets[which % tickets.len()]),
            Happening::End(which, cached_tokens) if !tickets.is_empty() => {
                let usage = Usage { output_tokens: 1, cached_tokens: *cached_tokens };
                strategy.ended(now, tickets[which % tickets.len()], Some(usage));
            }
            Happening::Token(_) | Happening::End(..) => {}
            Happening::Engines(ids) => {
                engines.clone_from(ids);
                let ids: Vec<EngineId> = ids.iter().copied().map(EngineId).collect();
                strategy.set_engines(&ids);
            }
        }
    }
    chosen
}

proptest! {
    /// An engine that is closed or gone is never chosen, and one is chosen where one is open.
    #[test]
    fn what_is_chosen_is_open(history in any_history()) {
        for mut strategy in every_strategy(1) {
            for (engine, open) in live(&mut *strategy, &history) {
                prop_assert_eq!(engine.is_some(), !open.is_empty());
                prop_assert!(engine.is_none_or(|engine| open.contains(&engine.0)));
            }
        }
    }

    /// The same history gives the same decisions, however the tables are seeded.
    #[test]
    fn decisions_are_deterministic(history in any_history(), seed in any::<u64>()) {
        for (mut one, mut other) in every_strategy(1).into_iter().zip(every_strategy(seed)) {
            prop_assert_eq!(live(&mut *one, &history), live(&mut *other, &history));
        }
    }

    /// The indexes hold no more than the engines cache, and nothing is left of requests that are over.
    #[test]
    fn memory_is_bounded(history in any_history(), peers in prop_oneof![Just(Peers::None), Just(Peers::Any)]) {
        let mut affinity = PrefixAffinity::new(config(peers));
        live(&mut affinity, &history);
        prop_assert!(affinity.blocks() <= 6 * 64);
        let arrivals = history.iter().filter(|(_, one)| matches!(one, Happening::Arrival { .. })).count();
        prop_assert!(affinity.in_flight() <= arrivals);
        affinity.end_all();
        prop_assert_eq!(affinity.in_flight(), 0);
        prop_assert!(affinity.is_at_rest());
    }

    /// The index is the list of the most recently touched blocks, as many as it has room for.
    #[test]
    fn the_index_is_a_list_of_recent_blocks(
        capacity in 0_usize..20,
        touches in vec((1_u64..6, 0_u64..12, proptest::option::weighted(0.1, 0_usize..20)), 0..60),
    ) {
        let (mut capacity, mut recent) = (capacity, Vec::new());
        let mut index = BlockIndex::new(capacity as u32, 7);
        for (number, length, resized) in touches {
            let blocks = conversation(number, length);
            index.touch(&blocks);
            recent.retain(|block| !blocks.contains(block));
            recent.splice(0..0, blocks.iter().copied());
            recent.truncate(capacity);
            if let Some(resized) = resized {
                capacity = resized;
                index.set_capacity(capacity as u32);
            }
            recent.truncate(capacity);
            prop_assert_eq!(index.len(), recent.len());
            prop_assert!(recent.iter().all(|block| index.contains(*block)));
            // Of every prompt the first blocks are left.
            for number in 1..6 {
                let blocks = conversation(number, 12);
                let known = blocks.iter().filter(|block| recent.contains(block)).count();
                prop_assert_eq!(index.leading(&blocks), known);
            }
        }
    }

    /// Prompts have as many blocks in common as their starts, also when what follows is cut into other parts.
    #[test]
    fn equal_prefixes_have_equal_blocks(
        common in vec(vec(any::<u8>(), 0..40), 0..4),
        one in vec(any::<u8>(), 0..40),
        other in vec(any::<u8>(), 0..40),
        size in 1_usize..20,
    ) {
        let shape = BlockShape { salt: 3, size };
        let blocks = |more: &[u8]| shape.of_bytes(common.iter().map(Vec::as_slice).chain([more]));
        let same = one.iter().zip(&other).take_while(|(one, other)| one == other).count();
        let length: usize = common.iter().map(Vec::len).sum();
        let (one, other) = (blocks(&one), blocks(&other));
        let in_common = one.iter().zip(&other).take_while(|(one, other)| one == other).count();
        prop_assert_eq!(in_common, ((length + same) / size).min(one.len()).min(other.len()));
    }
}
