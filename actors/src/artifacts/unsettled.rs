//! Artifacts whose bundle is not settled: held, but without a file of their own that could be trusted.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use hn_protocol::did::Did;
use hn_protocol::digest::Digest;

use crate::vault::{Bundle, Member};

/// The bundles that wait, by artifact.
#[derive(Default)]
pub struct Unsettled {
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    bundles: Vec<(Did, Arc<Bundle>)>,
    members: HashMap<Digest, (Arc<Bundle>, Member)>,
}

impl Unsettled {
    /// The bundle that holds an artifact.
    pub fn find(&self, digest: &Digest) -> Option<(Arc<Bundle>, Member)> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.members.get(digest).cloned()
    }

    /// From now on `bundle` holds its artifacts, in the name of `publisher`; answers how many bundles wait.
    pub fn add(&self, publisher: Did, bundle: &Arc<Bundle>) -> usize {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let members = bundle.members().iter();
        let members = members.map(|member| (member.digest, (Arc::clone(bundle), *member)));
        inner.members.extend(members);
        inner.bundles.push((publisher, Arc::clone(bundle)));
        inner.bundles.len()
    }

    /// Its artifacts have files now.
    pub fn remove(&self, bundle: &Arc<Bundle>) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner
            .bundles
            .retain(|(_, known)| !Arc::ptr_eq(known, bundle));
        for member in bundle.members() {
            let is_of_it = |(known, _): &(Arc<Bundle>, Member)| Arc::ptr_eq(known, bundle);
            if inner.members.get(&member.digest).is_some_and(is_of_it) {
                inner.members.remove(&member.digest);
            }
        }
    }

    /// In whose name a bundle is held, while it waits.
    pub fn publisher(&self, bundle: &Arc<Bundle>) -> Option<Did> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let mut bundles = inner.bundles.iter();
        bundles
            .find(|(_, known)| Arc::ptr_eq(known, bundle))
            .map(|(publisher, _)| *publisher)
    }

    /// Every bundle that waits, the oldest first.
    pub fn all(&self) -> Vec<Arc<Bundle>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let bundles = inner.bundles.iter();
        bundles.map(|(_, bundle)| Arc::clone(bundle)).collect()
    }
}
