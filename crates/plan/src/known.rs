//! What is found once and asked for again, by any thread.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What has been found, by all that it depends on.
pub(crate) struct Known<K, V>(Mutex<BTreeMap<K, Arc<V>>>);

impl<K, V> Default for Known<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord, V> Known<K, V> {
    pub fn get(&self, key: K, find: impl FnOnce() -> V) -> Arc<V> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(&key) {
            return known.clone();
        }
        // Two threads may find the same; what they find is equal.
        let found = Arc::new(find());
        lock().entry(key).or_insert(found).clone()
    }
}
