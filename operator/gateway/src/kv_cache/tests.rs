use proptest::prelude::*;
use rstest::rstest;
use spillway_crds::Preset;

use super::exposition::mean;
use super::*;

/// What vLLM 0.25.1 said at `/metrics` while it answered 64 requests: parts of it.
const VLLM: &str = include_str!("tests/vllm.txt");
/// What llama-server says, all of it: nothing of its KV cache since May 2025.
const LLAMA: &str = include_str!("tests/llama-server.txt");

fn of(preset: Preset, text: &str) -> Result<u32, CacheUnknown> {
    mean(text, preset.kv_cache_metrics())
}

#[test]
fn engines_are_read_by_their_presets() {
    assert_eq!(of(Preset::Vllm, VLLM), Ok(2_065));
    let before = VLLM.replace("kv_cache_usage", "gpu_cache_usage");
    assert_eq!(of(Preset::Vllm, &before), Ok(2_065), "versions of before 2026");
    assert_eq!(of(Preset::LlamaCpp, LLAMA), Err(CacheUnknown::NotExported));
    let older = format!("{LLAMA}# TYPE llamacpp:kv_cache_usage_ratio gauge\nllamacpp:kv_cache_usage_ratio 0.25\n");
    assert_eq!(of(Preset::LlamaCpp, &older), Ok(250_000));
    assert_eq!(of(Preset::OpenAi, VLLM), Err(CacheUnknown::NotExported));
}

#[rstest]
#[case::plain("m 0.5", Ok(500_000))]
#[case::with_a_timestamp("m 0.5 1700000000000", Ok(500_000))]
#[case::small("m 1.2e-05", Ok(12))]
#[case::full("m 1.0", Ok(1_000_000))]
#[case::empty("m 0", Ok(0))]
#[case::several_parts("m{engine=\"0\"} 0.2\nm{engine=\"1\"} 0.4", Ok(300_000))]
#[case::a_brace_in_a_label(r#"m{a="x} 1 \"",b="}"} 0.25"#, Ok(250_000))]
#[case::windows_line_ends("m 0.5\r\nother 1\r\n", Ok(500_000))]
#[case::the_older_name("n 0.1", Ok(100_000))]
#[case::the_newer_name_counts("n 0.1\nm 0.2", Ok(200_000))]
#[case::another_name("my 0.5\nm_total 1\nm:x 1", Err(CacheUnknown::NotExported))]
#[case::only_its_type("# HELP m M.\n# TYPE m gauge\n", Err(CacheUnknown::NotExported))]
#[case::nothing("", Err(CacheUnknown::NotExported))]
#[case::no_number("m NaN", Err(CacheUnknown::NoRatio))]
#[case::no_end("m +Inf", Err(CacheUnknown::NoRatio))]
#[case::below_nothing("m -0.1", Err(CacheUnknown::NoRatio))]
#[case::percent("m 50", Err(CacheUnknown::NoRatio))]
#[case::one_of_two("m{a=\"1\"} 0.5\nm{a=\"2\"} x", Err(CacheUnknown::NoRatio))]
#[case::no_value("m ", Err(CacheUnknown::NoRatio))]
#[case::labels_without_end("m{a=\"", Err(CacheUnknown::NoRatio))]
fn samples(#[case] text: &str, #[case] expected: Result<u32, CacheUnknown>) {
    assert_eq!(mean(text, &["m", "n"]), expected);
}

proptest! {
    #[test]
    fn any_text_is_a_ratio_or_none(text in "([mn{}\"\\\\ .,=\n0-9e#-]|\\PC){0,64}") {
        if let Ok(millionths) = mean(&text, &["m", "n"]) {
            prop_assert!(millionths <= 1_000_000);
        }
    }
}

#[test]
fn one_that_does_not_answer_once_is_known_by_what_it_said() {
    let caches = Caches::new(Clock::default());
    let engine = EngineId(1);
    let known = || caches.lock().get(&engine).map(|reading| reading.map(|(millionths, _)| millionths));
    caches.note(engine, Err(CacheUnknown::NoAnswer));
    assert_eq!(known(), Some(Err(CacheUnknown::NoAnswer)));
    caches.note(engine, Ok(5));
    caches.note(engine, Err(CacheUnknown::NoAnswer));
    assert_eq!(known(), Some(Ok(5)));
    caches.note(engine, Err(CacheUnknown::NoMetrics));
    assert_eq!(known(), Some(Err(CacheUnknown::NoMetrics)));
    // What is gone is forgotten.
    assert!(caches.due(&Catalogue::default(), true).is_empty() && known().is_none());
}
