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
