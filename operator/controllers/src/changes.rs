//! What the watches have changed since the engine last looked, so that a turn costs what has changed and not what there is.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
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

/// The reservations of each namespace that do not have their nodes for themselves, by name. One that is gone may be named for a while.
#[derive(Debug, Default)]
pub struct Sharing(Mutex<HashMap<String, BTreeSet<String>>>);

impl Sharing {
    /// Notes one, or that it is gone.
    pub fn note(&self, namespace: &str, name: &str, there: bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if there {
            all.entry(namespace.to_owned()).or_default().insert(name.to_owned());
        } else if let Some(names) = all.get_mut(namespace) {
            names.remove(name);
            if names.is_empty() {
                all.remove(namespace);
            }
        }
    }

    /// Those of a namespace, in order.
    pub fn of(&self, namespace: &str) -> Vec<String> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(namespace).into_iter().flatten().cloned().collect()
    }
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
