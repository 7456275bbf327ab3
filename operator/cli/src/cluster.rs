//! Lists of API objects, read consistently and in chunks.

use std::fmt::Debug;

use kube::{Api, api::ListParams};
use serde::de::DeserializeOwned;

use crate::error::{Error, is_forbidden};

/// Objects of a chunk.
const CHUNK: u32 = 1000;

/// All objects.
pub(crate) async fn list<K>(api: Api<K>, params: &ListParams, what: &'static str) -> Result<Vec<K>, Error>
where
    K: Clone + Debug + DeserializeOwned,
{
    let mut params = params.clone().limit(CHUNK);
    let mut items = Vec::new();
    loop {
        let chunk = api.list(&params).await.map_err(|source| Error::Read { what, source })?;
        items.extend(chunk.items);
        match chunk.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(items),
        }
    }
}

/// What may be read; none where it may not, which is noted.
pub(crate) fn optional<T>(
    result: Result<T, Error>,
    what: &'static str,
    not_shown: &mut Vec<&'static str>,
) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::Read { source, .. }) if is_forbidden(&source) => {
            not_shown.push(what);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
