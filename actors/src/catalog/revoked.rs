//! Whose logs have ended: what stands where the current presence stood (`spec/revocation@1.md`).

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use bytes::Bytes;
use hn_protocol::did::Did;

use super::{Catalog, LogView};

/// The revocations that are held, each durable and verified before it comes here.
#[derive(Default)]
pub(super) struct Revoked(RwLock<BTreeMap<Did, Bytes>>);

impl Revoked {
    fn get(&self, did: &Did) -> Option<Bytes> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.get(did).cloned()
    }
}

impl Catalog {
    /// The `revocation@1` of `did`, byte for byte; `None` where none is held.
    #[must_use]
    pub fn revocation(&self, did: &Did) -> Option<Bytes> {
        self.inner.revoked.get(did)
    }

    /// Whether the revocation of `did` is held: nothing newer by it is believed, shown or, where it is ours, signed.
    #[must_use]
    pub fn is_revoked(&self, did: &Did) -> bool {
        let known = self.inner.revoked.0.read();
        known
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(did)
    }

    /// How many revocations are held.
    pub(crate) fn revocations(&self) -> usize {
        let known = self.inner.revoked.0.read();
        known.unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Shows the revocation of `did`, durable by now, from here on. The first one stays.
    pub(crate) fn revoke(&self, did: Did, line: Bytes) {
        let revoked = &self.inner.revoked.0;
        let mut known = revoked.write().unwrap_or_else(PoisonError::into_inner);
        known.entry(did).or_insert(line);
        drop(known);
        self.changed();
        // Of a log that is not shown there are no news.
        if self.log(&did).is_some() {
            self.inner.news.changed(did);
        }
    }

    /// The line with which the log ends here: the revocation, else the current presence.
    #[must_use]
    pub fn last_line(&self, view: &LogView) -> Bytes {
        self.revocation(&view.state.publisher)
            .unwrap_or_else(|| view.presence.clone())
    }
}
