//! `ApiKey`: made once, written into a new Secret, and known by its hash from then on (`spillway_manifests::apikey` has the steps).

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::{controller::Action, events::EventType},
};
use serde_json::json;
use spillway_crds::{
    ApiKey, KeyRecord,
    apikey::{keys_secret, shard_of},
    key::{ID_BYTES, KeyId, PREFIX, PresentedKey, SECRET_BYTES, mint},
    names::TENANT_LABEL,
};
use spillway_manifests::apikey::{
    Facts, build_secret, build_status, with_candidate, with_secret_found, with_secret_made,
};

use crate::{
    context::Context,
    error::{Error, call},
    kill, status,
};

/// A key in which nothing happens is looked at again after so long.
const RESYNC: Duration = Duration::from_secs(300);
/// What stands in the way is looked for again after so long.
const RETRY: Duration = Duration::from_secs(15);

/// A record, and the Secret that it is kept in.
struct Kept {
    shard: Arc<Secret>,
    id: Option<KeyId>,
    record: Option<KeyRecord>,
}

/// Looks at a key.
///
/// # Errors
/// When the API server cannot be asked or told.
pub async fn reconcile(object: Arc<ApiKey>, context: Arc<Context>) -> Result<Action, Error> {
    if object.metadata.deletion_timestamp.is_some() {
        // No gateway takes it any more; what is kept of it is swept.
        return Ok(Action::await_change());
    }
    let namespace = object.namespace().unwrap_or_default();
    let uid = object.uid().unwrap_or_default();
    let mut problem = None;
    let tenant = context.namespace(&namespace).is_some_and(|found| found.labels().contains_key(TENANT_LABEL));
    let mut kept = find(&context, &uid);
    match &mut kept {
        None => {
            let message = format!(
                "Secret {} is not in the operator's namespace: helm upgrade makes it.",
                keys_secret(shard_of(&uid))
            );
            problem = Some(("KeysMissing", message));
        }
        Some(_) if !tenant => {
            let message = format!("No Tenant lists namespace {namespace}: an administrator adds it to one.");
            problem = Some(("NoTenant", message));
        }
        Some(kept) => {
            let is_issued = |record: &KeyRecord| record.issued && record.secret_name == object.spec.secret_name;
            if !kept.record.as_ref().is_some_and(is_issued) {
                problem = issue(&context, &object, kept).await?;
            }
        }
    }
    let prefix = kept.as_ref().and_then(|kept| kept.id).map(|id| format!("{PREFIX}{id}"));
    let facts = Facts {
        problem: problem.as_ref().map(|(reason, message)| (*reason, message.as_str())),
        prefix: prefix.as_deref(),
        record: kept.as_ref().and_then(|kept| kept.record.as_ref()),
    };
    let next = build_status(&object, facts, Timestamp::now());
    let api: Api<ApiKey> = Api::namespaced(context.client.clone(), &namespace);
    let is_news = object.status.as_ref().is_none_or(|before| before.secret_name != next.secret_name);
    status::write("writing a key's status", &api, &*object, object.status.as_ref(), &next).await?;
    if is_news && next.secret_name.is_some() {
        let note = next.conditions.first().map(|ready| ready.message.clone()).unwrap_or_default();
        context.event(&*object, EventType::Normal, "Issued", &note, "Issue").await;
    }
    Ok(Action::requeue(if problem.is_some() { RETRY } else { RESYNC }))
}

/// What is kept of the key of this UID, if its shard is there.
fn find(context: &Context, uid: &str) -> Option<Kept> {
    let shard = context.hosted.shard(shard_of(uid))?;
    let found = records(&shard).find(|(_, record)| record.uid == uid);
    let (id, record) = found.map_or((None, None), |(id, record)| (Some(id), Some(record)));
    Some(Kept { shard, id, record })
}

/// All records of a shard. What cannot be read is left out, as gateways do.
pub fn records(shard: &Secret) -> impl Iterator<Item = (KeyId, KeyRecord)> {
    shard
        .data
        .iter()
        .flatten()
        .filter_map(|(id, bytes)| Some((KeyId::parse(id)?, serde_json::from_slice(&bytes.0).ok()?)))
}

/// Makes a key and its Secret; gives why it cannot.
async fn issue(context: &Context, object: &ApiKey, kept: &mut Kept) -> Result<Option<(&'static str, String)>, Error> {
    let Some(random) = random() else {
        return Ok(Some(("NoRandomness", "The system gives no random bytes: look at the operator's node.".to_owned())));
    };
    let (id_bytes, secret_bytes) = random;
    let id = kept.id.unwrap_or_else(|| KeyId::new(&id_bytes));
    if kept.id.is_none() && context.hosted.knows(id) {
        // Forty bits met: the next look takes others.
        return Ok(Some(("Retrying", "Its id is another key's: another one is made.".to_owned())));
    }
    let key = mint(id, &secret_bytes);
    let Some(hash) = PresentedKey::parse(&key).map(|presented| presented.hash().to_hex()) else {
        return Ok(Some(("Retrying", "What was made is no key: another one is made.".to_owned())));
    };
    let before = kept.record.take();
    let candidate = with_candidate(before.as_ref(), object, hash, Timestamp::now().as_millisecond());
    write(context, kept, id, Some(candidate.clone())).await?;
    kill::point("apikey.after-candidate");
    let namespace = object.namespace().unwrap_or_default();
    let secret: Secret = match serde_json::from_value(build_secret(object, &key)) {
        Ok(secret) => secret,
        Err(error) => return Ok(Some(("Retrying", format!("The Secret cannot be made: {error}.")))),
    };
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &namespace);
    let made = call("making the Secret of a key", api.create(&PostParams::default(), &secret)).await;
    kill::point("apikey.after-secret");
    match made {
        Ok(_) => write(context, kept, id, Some(with_secret_made(candidate))).await.map(|()| None),
        Err(error) if error.is_conflict() => {
            let stands = with_secret_found(before.as_ref(), candidate);
            let is_ours = stands.as_ref().is_some_and(|record| record.secret_name == object.spec.secret_name);
            write(context, kept, id, stands).await?;
            let message = format!(
                "There is a Secret {} already, and it is not written: set spec.secretName to a name that is free.",
                object.spec.secret_name
            );
            Ok((!is_ours).then_some(("SecretExists", message)))
        }
        Err(error) => Err(error),
    }
}

fn random() -> Option<([u8; ID_BYTES], [u8; SECRET_BYTES])> {
    let (mut id, mut secret) = ([0; ID_BYTES], [0; SECRET_BYTES]);
    getrandom::fill(&mut id).and_then(|()| getrandom::fill(&mut secret)).ok()?;
    Some((id, secret))
}

/// Writes what is kept of a key, if nobody else wrote the shard.
async fn write(context: &Context, kept: &mut Kept, id: KeyId, record: Option<KeyRecord>) -> Result<(), Error> {
    let name = kept.shard.name_any();
    let bytes = record.as_ref().map(|record| ByteString(serde_json::to_vec(record).unwrap_or_default()));
    let patch = json!({
        "metadata": {"resourceVersion": kept.shard.resource_version()},
        "data": {id.as_str(): bytes},
    });
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &context.config.namespace);
    let written =
        call("keeping the hash of a key", api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch))).await?;
    kept.shard = Arc::new(written);
    kept.id = record.as_ref().map(|_| id);
    kept.record = record;
    Ok(())
}

/// Forgets keys whose objects are gone, as the API server itself says, once in a while.
pub async fn sweep(context: Arc<Context>) {
    loop {
        tokio::time::sleep(Duration::from_secs(60)).await;
        for shard in (0..spillway_crds::apikey::KEY_SHARDS).filter_map(|shard| context.hosted.shard(shard)) {
            if let Err(error) = sweep_shard(&context, shard).await {
                tracing::debug!(%error, "keys that are gone are forgotten later");
            }
        }
    }
}

async fn sweep_shard(context: &Context, shard: Arc<Secret>) -> Result<(), Error> {
    let mut kept = Kept { shard: Arc::clone(&shard), id: None, record: None };
    for (id, record) in records(&shard) {
        if context.hosted.has_key(&record.namespace, &record.name, &record.uid) {
            continue;
        }
        let api: Api<ApiKey> = Api::namespaced(context.client.clone(), &record.namespace);
        let there = call("reading a key that may be gone", api.get_opt(&record.name)).await?;
        if there.is_none_or(|there| there.uid().as_deref() != Some(record.uid.as_str())) {
            write(context, &mut kept, id, None).await?;
        }
    }
    Ok(())
}
