//! Shares equal texts and label sets: ten thousand pods come from a few hundred templates.

use std::{
    collections::{BTreeMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use sluice_mesh::{Labels, ServicePort};

/// Hands out one shared copy of equal values.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    texts: Pool<str>,
    labels: Pool<BTreeMap<String, String>>,
    ports: Pool<[ServicePort]>,
}

#[derive(Debug)]
struct Pool<T: ?Sized> {
    shared: HashSet<Arc<T>>,
    /// The size at which unused copies are dropped.
    limit: usize,
}

const FIRST_LIMIT: usize = 1024;

// === impl Interner ===

impl Interner {
    pub(crate) fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(shared) = self.texts.shared.get(text) {
            return Arc::clone(shared);
        }
        self.texts.add(text.into())
    }

    pub(crate) fn labels(&mut self, labels: BTreeMap<String, String>) -> Labels {
        if let Some(shared) = self.labels.shared.get(&labels) {
            return Arc::clone(shared);
        }
        self.labels.add(Arc::new(labels))
    }

    pub(crate) fn ports(&mut self, ports: Vec<ServicePort>) -> Arc<[ServicePort]> {
        if let Some(shared) = self.ports.shared.get(ports.as_slice()) {
            return Arc::clone(shared);
        }
        self.ports.add(ports.into())
    }
}

// === impl Pool ===

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { shared: HashSet::new(), limit: FIRST_LIMIT }
    }
}

impl<T: ?Sized + Hash + Eq> Pool<T> {
    fn add(&mut self, new: Arc<T>) -> Arc<T> {
        if self.shared.len() >= self.limit {
            self.shared.retain(|shared| Arc::strong_count(shared) > 1);
            self.limit = FIRST_LIMIT.max(2 * self.shared.len());
        }
        self.shared.insert(Arc::clone(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_uses_is_dropped() {
        let mut interner = Interner::default();
        let kept = interner.text("kept");
        for number in 0..10 * FIRST_LIMIT {
            drop(interner.text(&number.to_string()));
        }
        assert!(interner.texts.shared.len() <= 2 * FIRST_LIMIT);
        assert!(Arc::ptr_eq(&kept, &interner.text("kept")));
    }
}
