//! What the watches have changed since the engine last looked, so that a turn costs what has changed and not what there is.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

/// What has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// More than is listed: everything must be looked at.
    pub all: bool,
    /// Names of nodes that changed, or what the owner's pods use of them.
    pub nodes: HashSet<String>,
    /// Reservations that changed: namespace and name.
    pub reservations: HashSet<(String, String)>,
}

/// Collects what has changed until the engine takes it. Names that are listed need not have changed; what has changed must be listed.
#[derive(Debug, Default)]
pub struct Changed(Mutex<Changes>);

impl Changed {
    fn with(&self, change: impl FnOnce(&mut Changes)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// A watch began anew: what went meanwhile is not told one by one.
    pub fn all(&self) {
        self.with(|changes| changes.all = true);
    }

    /// A node changed, came or went.
    pub fn node(&self, name: &str) {
        self.with(|changes| {
            changes.nodes.insert(name.to_owned());
        });
    }

    /// A reservation changed, came or went.
    pub fn reservation(&self, namespace: &str, name: &str) {
        self.with(|changes| {
            changes.reservations.insert((namespace.to_owned(), name.to_owned()));
        });
    }

    /// Takes what has changed.
    pub fn take(&self) -> Changes {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
