//! What was written and has not come back by the watch yet, so that nothing is decided on what is known to be old.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use kube::ResourceExt;

/// A write that did not come back for so long is forgotten: then what the watch says stands.
const FORGET: Duration = Duration::from_secs(30);

/// The version of each object that was written last, while the watch has not brought it back.
#[derive(Debug, Default)]
pub struct Written(Mutex<HashMap<String, (u64, Instant)>>);

fn version(object: &impl ResourceExt) -> Option<u64> {
    object.resource_version()?.parse().ok()
}

impl Written {
    /// Notes what the API server answered to a write.
    pub fn note(&self, object: &impl ResourceExt) {
        if let Some(version) = version(object) {
            self.insert(object, version);
        }
    }

    /// Notes that nothing is left to be written of an object: it goes.
    pub fn note_last(&self, object: &impl ResourceExt) {
        self.insert(object, u64::MAX);
    }

    fn insert(&self, object: &impl ResourceExt, version: u64) {
        let Some(uid) = object.uid() else { return };
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if written.len() > 1024 && written.len().is_power_of_two() {
            written.retain(|_, (_, at)| at.elapsed() < FORGET);
        }
        written.insert(uid, (version, Instant::now()));
    }

    /// Whether a later version of the object was written than this one.
    pub fn is_old(&self, object: &impl ResourceExt) -> bool {
        let (Some(uid), Some(version)) = (object.uid(), version(object)) else { return false };
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((last, at)) = written.get(&uid) else { return false };
        let old = *last > version && at.elapsed() < FORGET;
        if !old {
            written.remove(&uid);
        }
        old
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn object(version: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.uid = Some("one".to_owned());
        object.metadata.resource_version = Some(version.to_owned());
        object
    }

    #[test]
    fn what_was_written_over_is_old_until_it_comes_back() {
        let written = Written::default();
        assert!(!written.is_old(&object("9")), "nothing was written");
        written.note(&object("10"));
        assert!(written.is_old(&object("9")), "nine is less than ten");
        assert!(!written.is_old(&object("10")));
        assert!(!written.is_old(&object("9")), "it came back: from then on the watch is right");
        written.note_last(&object("11"));
        assert!(written.is_old(&object("12")));
        assert!(!written.is_old(&object("no number")));
    }
}
