//! Requests that go elsewhere: to another endpoint, to a provider, to the version that is tried, and to none outside of their regions.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use rstest::rstest;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::json;
use spillway_gateway::catalogue::{Absence, Catalogue, Provider, Routing, Served, Target};
use spillway_gateway::providers::Providers;
use spillway_gateway::request::Endpoint;
use spillway_metering::tokens::{Cause, Outcome};
use spillway_tls::Server as Tls;
use tempfile::TempDir;

use crate::engine::{Engine, Script, usage};
use crate::stage::{Setting, Stage, served, text, value};
use crate::tls::Certificate;

/// An endpoint that engines serve under a name of their own.
fn endpoint(name: &str, engines: &[SocketAddr], change: impl FnOnce(&mut Served)) -> Served {
    let mut served = served(name, &[Endpoint::ChatCompletions], engines);
    served.served_name = format!("engine/{name}");
    for replica in &mut served.replicas {
        replica.served_name.clone_from(&served.served_name);
    }
    change(&mut served);
    served
}

/// These are the endpoints from now on.
async fn publish(stage: &Stage, all: Vec<Served>) {
    let mut now: Catalogue = (**stage.catalogue.borrow()).clone();
    now.endpoints = all.into_iter().map(|one| ((one.namespace.clone(), one.name.clone()), Arc::new(one))).collect();
    stage.catalogue.send_replace(Arc::new(now));
    // What the fleet knows follows at once, but not in the same moment.
    tokio::time::sleep(Duration::from_millis(50)).await;
}

fn falls_back(served: &mut Served) {
    served.routing.fallback = vec!["spare".into()];
}

/// An address at which nobody listens.
async fn nobody() -> SocketAddr {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn who_cannot_answer_is_stood_in_for_and_the_bill_says_by_whom() {
    let spare = Engine::start(Script::default()).await;
    let stage = Stage::new(&[]).await;
    let all = |chat| vec![chat, endpoint("spare", &[spare.address], |_| {})];
    // It has no replica, it cannot be reached, it has no room, it fails.
    publish(&stage, all(endpoint("chat", &[], falls_back))).await;
    assert_eq!(value(stage.chat(json!({})).await).await["usage"], usage(7, 5));
    publish(&stage, all(endpoint("chat", &[nobody().await], falls_back))).await;
    assert!(text(stage.chat(json!({"stream": true})).await).await.ends_with("data: [DONE]\n\n"));
    let refuses = |status| Script { refuses: Some((status, "{}")), ..Script::default() };
    let main = Engine::start(refuses(503)).await;
    publish(&stage, all(endpoint("chat", &[main.address], falls_back))).await;
    assert_eq!(stage.chat(json!({})).await.status(), StatusCode::OK);
    main.set(refuses(500));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(stage.chat(json!({})).await.status(), StatusCode::OK);
    assert!(spare.seen().bodies.iter().all(|body| body["model"] == "engine/spare"), "each is asked by its own name");
    let bills = stage.bills(4).await;
    for bill in &bills {
        assert_eq!((bill.opening.endpoint.as_str(), bill.ending.tokens.completion()), ("spare", 5));
        assert_eq!(bill.ending.outcome, Outcome::Complete);
    }
    // What it says no to is the answer: the request's own fault is none elsewhere either.
    main.set(refuses(400));
    assert_eq!(stage.chat(json!({})).await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(spare.seen().bodies.len(), 4);
    // And when it is well again it is asked again.
    main.set(Script::default());
    assert_eq!(stage.chat(json!({})).await.status(), StatusCode::OK);
    assert_eq!(spare.seen().bodies.len(), 4);
    stage.at_rest().await;
}

/// Who is asked in the place of another does not say no in its name; and where all fail, each is asked once.
#[tokio::test]
async fn a_stand_in_decides_nothing() {
    let refuses = |status| Script {
        refuses: Some((status, r#"{"error": {"message": "the stand-in says no"}}"#)),
        ..Script::default()
    };
    let (main, spare) = (Engine::start(refuses(503)).await, Engine::start(refuses(400)).await);
    let stage = Stage::new(&[]).await;
    let all = || vec![endpoint("chat", &[main.address], falls_back), endpoint("spare", &[spare.address], |_| {})];
    publish(&stage, all()).await;
    let response = stage.chat(json!({})).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "it has less context, or no tools");
    assert!(!text(response).await.contains("stand-in"));
    assert!(!spare.seen().bodies.is_empty());
    tokio::time::sleep(Duration::from_millis(300)).await;
    main.set(refuses(500));
    spare.set(refuses(500));
    let before = (main.seen().bodies.len(), spare.seen().bodies.len());
    assert_eq!(stage.chat(json!({})).await.status(), StatusCode::BAD_GATEWAY);
    assert_eq!((main.seen().bodies.len(), spare.seen().bodies.len()), (before.0 + 1, before.1 + 1));
    stage.at_rest().await;
}

/// An engine that answers and then says nothing is at fault, whoever waits for it.
#[tokio::test]
async fn silence_is_a_failure_of_the_version() {
    let engine = Engine::start(Script { pause: Duration::from_secs(60), ..Script::default() }).await;
    let mut setting = Setting::default();
    setting.limits.first_byte = Duration::from_millis(200);
    let stage = Stage::with(setting, &[&engine]).await;
    assert!(text(stage.chat(json!({"stream": true})).await).await.contains("error"));
    let report = stage.gateway.load(u64::MAX).await;
    let chat = report.endpoints.iter().find(|one| one.endpoint.as_str() == "chat").unwrap();
    assert_eq!((chat.versions[0].answered, chat.versions[0].failed), (0, 1), "{report:?}");
    stage.at_rest().await;
}

/// Something that was begun is not begun again elsewhere.
#[tokio::test]
async fn an_answer_that_breaks_off_is_not_asked_for_again() {
    let spare = Engine::start(Script::default()).await;
    let main = Engine::start(Script { breaks_after: Some(2), ..Script::default() }).await;
    let stage = Stage::new(&[]).await;
    let chat = endpoint("chat", &[main.address], falls_back);
    publish(&stage, vec![chat, endpoint("spare", &[spare.address], |_| {})]).await;
    assert!(text(stage.chat(json!({"stream": true})).await).await.contains("upstream_error"));
    assert!(spare.seen().bodies.is_empty());
    assert_eq!(stage.bills(1).await[0].ending.outcome, Outcome::Partial(Cause::EngineFailed));
    stage.at_rest().await;
}

/// One that sleeps is woken, though its requests go elsewhere meanwhile; where nobody stands in, they wait.
#[tokio::test]
async fn a_model_that_sleeps_is_woken_while_another_stands_in() {
    let spare = Engine::start(Script::default()).await;
    let stage = Stage::new(&[]).await;
    let sleeps = |served: &mut Served| (served.wanted, served.absence) = (0, Absence::Starts);
    let asleep = |served: &mut Served| {
        served.routing.fallback = vec!["also".into(), "spare".into()];
        sleeps(served);
    };
    let spare_serves = endpoint("spare", &[spare.address], |_| {});
    publish(&stage, vec![endpoint("chat", &[], asleep), endpoint("also", &[], sleeps), spare_serves]).await;
    assert_eq!(stage.chat(json!({})).await.status(), StatusCode::OK);
    let report = stage.gateway.load(u64::MAX).await;
    assert_eq!(report.calls, 1);
    let load = |name: &str| report.endpoints.iter().find(|one| one.endpoint.as_str() == name).unwrap();
    assert!(load("chat").held > 0, "it calls: {report:?}");
    assert_eq!(load("spare").versions[0].answered, 1, "what it did counts as its own: {report:?}");
    assert!(load("chat").versions.is_empty());
    assert!(report.endpoints.iter().all(|one| one.endpoint.as_str() != "also"), "nobody is woken for another");
    // The stand-in goes: the request waits for the replica that was called for.
    publish(&stage, vec![endpoint("chat", &[], asleep), endpoint("spare", &[], |_| {})]).await;
    let stage = Arc::new(stage);
    let waiting = tokio::spawn({
        let stage = Arc::clone(&stage);
        async move { stage.chat(json!({})).await.status() }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    publish(&stage, vec![endpoint("chat", &[spare.address], |one| one.wanted = 1)]).await;
    assert_eq!(waiting.await.unwrap(), StatusCode::OK);
    stage.at_rest().await;
}

/// A provider that is reached by TLS, and what a gateway that trusts it has in its folder of keys.
async fn provider(script: Script, keys: &[(&str, &str)]) -> (Engine, Certificate, TempDir, Setting) {
    let certificate = Certificate::new();
    let tls = Tls::load(certificate.files(), None).await.unwrap();
    let engine = Engine::start_with(script, Some(tls.acceptor())).await;
    let folder = TempDir::new().unwrap();
    for (name, key) in keys {
        std::fs::write(folder.path().join(name), key).unwrap();
    }
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificate.pem.as_bytes()).unwrap()).unwrap();
    let setting = Setting::default();
    let providers = Providers::new(Some(folder.path().to_owned()), roots, setting.limits.connect).unwrap();
    providers.look(folder.path()).await;
    (engine, certificate, folder, Setting { providers, ..setting })
}

/// An endpoint that a provider serves.
fn external(base: &str, credentials: Option<&str>) -> Served {
    let here = SocketAddr::from(([127, 0, 0, 1], 1));
    endpoint("chat", &[here], |served| {
        let target = Provider { base: base.parse().unwrap(), credentials: credentials.map(str::to_owned) };
        served.replicas[0].target = Target::Provider(Arc::new(target));
    })
}

#[tokio::test]
async fn a_provider_is_asked_with_its_key_and_billed_as_any_other() {
    let (engine, _certificate, folder, setting) =
        provider(Script::default(), &[("big", "secret-1\n"), (".old", "no")]).await;
    let providers = Arc::clone(&setting.providers);
    let stage = Stage::with(setting, &[]).await;
    let base = format!("https://localhost:{}/serving/v1", engine.address.port());
    publish(&stage, vec![external(&base, Some("big"))]).await;
    assert_eq!(value(stage.chat(json!({})).await).await["usage"], usage(7, 5));
    assert!(text(stage.chat(json!({"stream": true})).await).await.ends_with("data: [DONE]\n\n"));
    std::fs::write(folder.path().join("big"), "secret-2").unwrap();
    providers.look(folder.path()).await;
    assert_eq!(stage.chat(json!({})).await.status(), StatusCode::OK);
    let seen = engine.seen();
    assert_eq!(seen.paths, ["/serving/v1/chat/completions"; 3]);
    let keys: Vec<&str> = seen.authorizations.iter().map(|one| one.as_deref().unwrap()).collect();
    assert_eq!(keys, ["Bearer secret-1", "Bearer secret-1", "Bearer secret-2"], "never the client's own");
    assert_eq!(seen.bodies[1]["stream_options"], json!({"include_usage": true}));
    let bills = stage.bills(3).await;
    assert!(bills.iter().all(|bill| bill.ending.tokens.completion() == 5 && bill.ending.outcome == Outcome::Complete));
    stage.at_rest().await;
}

#[rstest]
#[case::no_such_key("https", Some("small"), 0)]
#[case::not_private("http", Some("big"), 0)]
#[case::refused("https", Some("big"), 1)]
#[tokio::test]
async fn a_provider_that_cannot_be_asked_is_stood_in_for_and_its_key_stays_here(
    #[case] scheme: &str,
    #[case] credentials: Option<&str>,
    #[case] asked: usize,
) {
    let refuses =
        Script { refuses: Some((401, r#"{"error": {"message": "wrong key secret-1"}}"#)), ..Script::default() };
    let (engine, _certificate, _folder, setting) = provider(refuses, &[("big", "secret-1")]).await;
    let spare = Engine::start(Script::default()).await;
    let stage = Stage::with(setting, &[]).await;
    let base = format!("{scheme}://localhost:{}/v1", engine.address.port());
    let mut chat = external(&base, credentials);
    publish(&stage, vec![chat.clone()]).await;
    let response = stage.chat(json!({})).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!text(response).await.contains("secret-1"));
    falls_back(&mut chat);
    publish(&stage, vec![chat, endpoint("spare", &[spare.address], |_| {})]).await;
    assert_eq!(stage.chat(json!({})).await.status(), StatusCode::OK);
    assert_eq!(engine.seen().bodies.len(), 2 * asked);
    stage.at_rest().await;
}

/// One that takes connections and says nothing holds nobody up.
#[tokio::test]
async fn a_provider_that_says_nothing_is_stood_in_for() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let spare = Engine::start(Script::default()).await;
    let mut setting = Setting::default();
    let within = Duration::from_millis(200);
    (setting.limits.connect, setting.limits.first_byte) = (within, Duration::from_secs(600));
    setting.providers = Providers::new(None, RootCertStore::empty(), within).unwrap();
    let stage = Stage::with(setting, &[]).await;
    let mut chat = external(&format!("https://{}/v1", silent.local_addr().unwrap()), None);
    falls_back(&mut chat);
    publish(&stage, vec![chat, endpoint("spare", &[spare.address], |_| {})]).await;
    assert_eq!(stage.chat(json!({})).await.status(), StatusCode::OK);
    assert_eq!(stage.bills(1).await[0].opening.endpoint.as_str(), "spare");
    stage.at_rest().await;
}

/// What a provider says of its account is for who has it.
#[tokio::test]
async fn a_providers_words_are_not_given_on() {
    let said =
        r#"{"error": {"message": "organization org-7 has no credit for big-1", "param": "org-7", "code": "billing"}}"#;
    let refuses = Script { refuses: Some((400, said)), ..Script::default() };
    let (engine, _certificate, _folder, setting) = provider(refuses, &[("big", "secret-1")]).await;
    let stage = Stage::with(setting, &[]).await;
    publish(&stage, vec![external(&format!("https://localhost:{}/v1", engine.address.port()), Some("big"))]).await;
    let response = stage.chat(json!({})).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let told = text(response).await;
    assert!(!told.contains("org-7") && !told.contains("big-1") && told.contains("refused_by_model"), "{told}");
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_gets_no_key() {
    let (engine, _certificate, folder, setting) = provider(Script::default(), &[("big", "secret-1")]).await;
    let providers =
        Providers::new(Some(folder.path().to_owned()), RootCertStore::empty(), setting.limits.connect).unwrap();
    providers.look(folder.path()).await;
    let stage = Stage::with(Setting { providers, ..setting }, &[]).await;
    publish(&stage, vec![external(&format!("https://localhost:{}/v1", engine.address.port()), Some("big"))]).await;
    assert!(stage.chat(json!({})).await.status().is_server_error());
    assert!(engine.seen().bodies.is_empty());
}

/// Whose requests must stay in a region are served by whoever is there, and by nobody else.
#[tokio::test]
async fn a_request_leaves_its_regions_for_nobody() {
    let (here, there) = (Engine::start(Script::default()).await, Engine::start(Script::default()).await);
    let stage = Stage::new(&[]).await;
    let regions = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<String>>();
    let all = |spare: &[SocketAddr]| {
        let chat = endpoint("chat", &[there.address], |served| {
            served.routing =
                Routing { fallback: vec!["spare".into()], regions: regions(&["us-east"]), ..Routing::default() };
        });
        let spare = endpoint("spare", spare, |served| served.routing.regions = regions(&["eu-west"]));
        vec![chat, spare]
    };
    let mut now: Catalogue = (**stage.catalogue.borrow()).clone();
    now.residency.insert("acme".into(), regions(&["eu-west"]));
    stage.catalogue.send_replace(Arc::new(now));
    publish(&stage, all(&[here.address])).await;
    for _ in 0..5 {
        assert_eq!(stage.chat(json!({})).await.status(), StatusCode::OK);
    }
    assert_eq!((here.seen().bodies.len(), there.seen().bodies.len()), (5, 0));
    // Rather nobody than somebody elsewhere.
    publish(&stage, all(&[])).await;
    assert_eq!(stage.chat(json!({})).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    publish(&stage, all(&[here.address]).into_iter().take(1).collect()).await;
    let response = stage.chat(json!({})).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert!(text(response).await.contains("region_not_allowed"));
    assert!(there.seen().bodies.is_empty());
    stage.at_rest().await;
}

/// A version that is tried gets its part, and who judges it is told how its requests ended.
#[tokio::test]
async fn a_canary_gets_its_part_and_its_failures_are_told() {
    let (stable, canary) = (Engine::start(Script::default()).await, Engine::start(Script::default()).await);
    canary.set(Script { refuses: Some((500, "{}")), ..Script::default() });
    let stage = Stage::new(&[]).await;
    let chat = |weight| {
        endpoint("chat", &[stable.address, canary.address], |served| {
            served.replicas[1].version = "v2".into();
            served.routing.canary = Some(("v2".into(), weight));
        })
    };
    publish(&stage, vec![chat(25)]).await;
    let mut failed = 0;
    for _ in 0..40 {
        failed += usize::from(stage.chat(json!({})).await.status().is_server_error());
    }
    assert_eq!((failed, canary.seen().bodies.len(), stable.seen().bodies.len()), (10, 10, 30));
    canary.set(Script { refuses: Some((401, "{}")), ..Script::default() });
    for _ in 0..4 {
        failed += usize::from(stage.chat(json!({})).await.status().is_server_error());
    }
    assert_eq!(failed, 11, "a key that the engine asks for is no fault of the client's");
    // What a client does wrong, or does not wait for, is nobody's fault.
    stable.set(Script { refuses: Some((400, "{}")), ..Script::default() });
    assert_eq!(stage.chat(json!({})).await.status(), StatusCode::BAD_REQUEST);
    let report = stage.gateway.load(u64::MAX).await;
    let chat_load = report.endpoints.iter().find(|one| one.endpoint.as_str() == "chat").unwrap();
    let of = |version: &str| chat_load.versions.iter().find(|one| one.version.as_str() == version).unwrap();
    assert_eq!((of("v2").answered, of("v2").failed), (0, 11));
    assert_eq!((of("v1").answered, of("v1").failed), (33, 0), "a refusal says nothing");
    // It is rolled back: nothing goes to it any more.
    stable.set(Script::default());
    publish(&stage, vec![chat(0)]).await;
    for _ in 0..10 {
        assert_eq!(stage.chat(json!({})).await.status(), StatusCode::OK);
    }
    assert_eq!(canary.seen().bodies.len(), 11);
    stage.at_rest().await;
}
