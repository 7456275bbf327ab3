use rstest::rstest;

use super::*;
use crate::keys::{AllowedModels, KeyId, Secret, SecretHash};

fn key(tenant: &str, namespace: &str, models: AllowedModels) -> Key {
    Key {
        id: KeyId::parse("00000000").unwrap(),
        tenant: tenant.into(),
        namespace: namespace.into(),
        secrets: vec![Secret { hash: SecretHash::from_bytes([1; 32]), expires_at_ms: None }],
        expires_at_ms: None,
        revoked: false,
        models,
        limits: Limits::default(),
        residency: BTreeSet::new(),
    }
}

fn served(tenant: &str, namespace: &str, name: &str, shared_with: &[&str]) -> (FullName, Arc<Served>) {
    let served = Served {
        namespace: namespace.into(),
        name: name.into(),
        tenant: tenant.into(),
        shared_with: shared_with.iter().map(|&tenant| tenant.into()).collect(),
        model: "llama".into(),
        version: "v1".into(),
        served_name: "llama".to_owned(),
        capabilities: BTreeSet::from([Endpoint::ChatCompletions]),
        context_length: 8192,
        created: 1_700_000_000,
        wanted: 1,
        kv_cache_target: None,
        absence: Absence::Starts,
        replicas: Vec::new(),
        routing: Routing::default(),
    };
    ((namespace.into(), name.into()), Arc::new(served))
}

fn catalogue() -> Catalogue {
    let endpoints = [
        served("acme", "acme", "chat", &[]),
        served("acme", "acme-lab", "chat", &[]),
        served("beta", "beta", "chat", &[]),
        served("house", "house", "large", &["acme"]),
        served("house", "house", "secret", &["beta"]),
    ];
    Catalogue { endpoints: endpoints.into(), ..Catalogue::default() }
}

#[rstest]
#[case::own("chat", Some("acme/chat"))]
#[case::own_by_full_name("acme/chat", Some("acme/chat"))]
#[case::another_namespace_of_its_tenant("acme-lab/chat", Some("acme-lab/chat"))]
#[case::another_tenant("beta/chat", None)]
#[case::shared("house/large", Some("house/large"))]
#[case::shared_with_another("house/secret", None)]
#[case::shared_without_namespace("large", None)]
#[case::nothing("", None)]
#[case::slashes("house/large/", None)]
#[case::no_namespace("/chat", None)]
fn whom_a_key_means(#[case] model: &str, #[case] expected: Option<&str>) {
    let catalogue = catalogue();
    let found = catalogue.resolve(&key("acme", "acme", AllowedModels::All), model);
    assert_eq!(found.map(|served| format!("{}/{}", served.namespace, served.name)).as_deref(), expected);
}

#[test]
fn what_is_listed_is_what_may_be_called() {
    let catalogue = catalogue();
    let names = |key: &Key| catalogue.models(key).map(|(name, _)| name).collect::<Vec<_>>();
    let all = key("acme", "acme", AllowedModels::All);
    assert_eq!(names(&all), ["chat", "acme-lab/chat", "house/large"]);
    assert!(names(&all).iter().all(|name| catalogue.resolve(&all, name).is_some()));
    // A key that may use one of them is not let in by another spelling of the others.
    let one = key("acme", "acme", AllowedModels::Only(BTreeSet::from(["chat".to_owned()])));
    assert_eq!(names(&one), ["chat"]);
    assert!(catalogue.resolve(&one, "acme/chat").is_some());
    assert!(catalogue.resolve(&one, "acme-lab/chat").is_none());
    assert_eq!(
        catalogue.list(&one),
        r#"{"object":"list","data":[{"id":"chat","object":"model","created":1700000000,"owned_by":"acme"}]}"#
    );
    assert_eq!(catalogue.entry(&one, "house/large"), None);
}

fn regions(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[rstest]
#[case::anywhere(&[], &[], &["chat", "eu", "unknown"])]
#[case::the_tenants(&["eu-west"], &[], &["eu"])]
#[case::both_of_it(&["eu-west", "us-east"], &[], &["chat", "eu"])]
#[case::the_keys(&[], &["us-east", "eu-west"], &["chat", "eu"])]
#[case::not_all_of_it(&[], &["us-east"], &[])]
#[case::what_both_allow(&["eu-west", "us-east"], &["eu-west"], &["eu"])]
#[case::nothing_in_common(&["eu-west"], &["us-east"], &[])]
fn a_request_stays_where_it_may_be(#[case] tenant: &[&str], #[case] key_only: &[&str], #[case] expected: &[&str]) {
    let mut catalogue = Catalogue::default();
    for (name, of) in [("chat", &["eu-west", "us-east"][..]), ("eu", &["eu-west"]), ("unknown", &[])] {
        let (full, mut one) = served("acme", "acme", name, &[]);
        let fallback = if name == "chat" { vec!["eu".into(), "unknown".into(), "gone".into()] } else { Vec::new() };
        Arc::make_mut(&mut one).routing = Routing { regions: regions(of), fallback, ..Routing::default() };
        catalogue.endpoints.insert(full, one);
    }
    catalogue.residency.insert("acme".into(), regions(tenant));
    let key = Key { residency: regions(key_only), ..key("acme", "acme", AllowedModels::All) };
    let chat = catalogue.resolve(&key, "chat").unwrap();
    let names = |all: Vec<Arc<Served>>| all.iter().map(|one| one.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(catalogue.candidates(&key, chat)), expected);
    // What is listed can be asked.
    let listed = catalogue.models(&key).any(|(name, _)| name == "chat");
    assert_eq!(listed, !expected.is_empty());
    assert_eq!(catalogue.entry(&key, "chat").is_some(), listed);
}
