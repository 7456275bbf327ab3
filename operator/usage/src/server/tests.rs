//! What the admin port tells.

use axum::body::Body;
use tower::ServiceExt as _;

use super::*;
use crate::store::{Migration, Place};

async fn asked(front: &Arc<Front>, path: &str) -> StatusCode {
    let request = Request::get(path).body(Body::empty()).unwrap();
    admin(Arc::clone(front)).oneshot(request).await.unwrap().status()
}

#[tokio::test]
async fn a_store_whose_thread_has_ended_is_not_alive() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(&Place::Sqlite(home.path().join("usage.db")), Migration::Apply).await.unwrap();
    let front = Front::of(Service::new(store.clone(), leases::Config::default()));
    assert_eq!((asked(&front, "/healthz").await, asked(&front, "/readyz").await), (StatusCode::OK, StatusCode::OK));
    let Store::Sqlite(store) = store else { unreachable!() };
    store.end_writer().await;
    assert_eq!(asked(&front, "/healthz").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(asked(&front, "/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn who_waits_for_its_store_is_alive_and_not_ready() {
    let front = Arc::new(Front::default());
    front.misses("no route".to_owned());
    assert_eq!(asked(&front, "/healthz").await, StatusCode::OK);
    assert_eq!(asked(&front, "/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(front.is_ready().await.unwrap_err(), "the store is not open yet: no route");
}
