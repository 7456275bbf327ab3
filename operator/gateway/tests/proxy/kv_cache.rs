//! How much of their KV caches replicas have in use: read from engines that are asked as real ones are, and told to the operator.

use std::sync::Arc;

use spillway_crds::Preset;
use spillway_metering::load::{CacheReading, CacheUnknown, EndpointCaches};

use crate::engine::{Engine, Script};
use crate::stage::{BOUND, Stage, catalogue};

/// What the operator is told, once it is as it should be of each replica.
async fn told(stage: &Stage, good: impl Fn(&[CacheReading]) -> bool) -> Vec<EndpointCaches> {
    let begun = std::time::Instant::now();
    loop {
        let caches = stage.gateway.load(u64::MAX).await.caches;
        let readings: Vec<CacheReading> = caches.iter().flat_map(|one| &one.replicas).map(|one| one.reading).collect();
        if good(&readings) {
            return caches;
        }
        assert!(begun.elapsed() < BOUND, "{caches:?}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

fn exports(text: &str) -> Script {
    Script { metrics: Some(text.to_owned()), ..Script::default() }
}

#[tokio::test]
async fn caches_are_read_where_replicas_are_scaled_by_them() {
    let half = Engine::start(exports("vllm:kv_cache_usage_perc{engine=\"0\"} 0.5\n")).await;
    let silent = Engine::start(Script::default()).await;
    let large = Engine::start(exports(&"# much\n".repeat(1 << 20))).await;
    let llama = Engine::start(exports("llamacpp:requests_processing 1\n")).await;
    let engines = [half.address, silent.address, large.address, llama.address];
    let stage = Stage::new(&[&half]).await;
    assert_eq!(told(&stage, |_| true).await, [], "nobody asks for it");

    let mut now = catalogue(Default::default(), &engines);
    let chat = Arc::make_mut(now.endpoints.get_mut(&("acme".into(), "chat".into())).unwrap());
    (chat.wanted, chat.kv_cache_target) = (5, Some(80));
    for (replica, preset) in chat.replicas.iter_mut().zip([Preset::Vllm, Preset::Vllm, Preset::Vllm, Preset::LlamaCpp])
    {
        replica.preset = preset;
    }
    stage.catalogue.send_replace(Arc::new(now.clone()));
    // Before they are read they are not known; it does not take until the next round that they are.
    let not_read = CacheReading::Unknown(CacheUnknown::NotRead);
    let caches = told(&stage, |all| all.len() == 4 && !all.contains(&not_read)).await.remove(0);
    assert_eq!((caches.endpoint.as_str(), caches.wanted, caches.target_percent), ("chat", 5, 80));
    let known = |number: usize| match caches.replicas[number].reading {
        CacheReading::Used { millionths, .. } => Ok(millionths),
        CacheReading::Unknown(why) => Err(why),
    };
    assert_eq!(caches.replicas[0].replica.as_str(), "chat-0");
    assert_eq!(
        [known(0), known(1), known(2), known(3)],
        [Ok(500_000), Err(CacheUnknown::NoMetrics), Err(CacheUnknown::NoAnswer), Err(CacheUnknown::NotExported)]
    );

    // An image of which nothing is known is not asked.
    let chat = Arc::make_mut(now.endpoints.get_mut(&("acme".into(), "chat".into())).unwrap());
    chat.replicas.truncate(1);
    (chat.replicas[0].preset, chat.replicas[0].engine.0) = (Preset::OpenAi, 9);
    stage.catalogue.send_replace(Arc::new(now));
    let unknown = [CacheReading::Unknown(CacheUnknown::NotOfPreset)];
    told(&stage, |all| all == unknown).await;
    stage.at_rest().await;
}
