//! What changed when: each log once, at its last change. Whoever reads slowly finds the newest of each, never a backlog.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hn_protocol::did::Did;
use tokio::sync::watch;

/// The order of changes over all logs.
pub struct News {
    order: Mutex<Order>,
    /// The number of the last change.
    last: watch::Sender<u64>,
}

#[derive(Default)]
struct Order {
    by_change: BTreeMap<u64, Did>,
    by_log: HashMap<Did, u64>,
}

impl Default for News {
    fn default() -> Self {
        Self {
            order: Mutex::default(),
            last: watch::Sender::new(0),
        }
    }
}

impl News {
    /// `publisher`'s log is another one now.
    pub(crate) fn changed(&self, publisher: Did) {
        let mut order = self.order();
        let change = *self.last.borrow() + 1;
        if let Some(before) = order.by_log.insert(publisher, change) {
            order.by_change.remove(&before);
        }
        order.by_change.insert(change, publisher);
        // Told while the order is held: numbers never go backwards.
        self.last.send_replace(change);
    }

    /// `publisher`'s log is shown no more: it has no news.
    pub(super) fn withdrawn(&self, publisher: &Did) {
        let mut order = self.order();
        if let Some(before) = order.by_log.remove(publisher) {
            order.by_change.remove(&before);
        }
    }

    /// The first logs, at most `most`, that changed last after the change `seen`, in the order of their last changes. The
    /// second number is up to where that is all.
    #[must_use]
    pub fn since(&self, seen: u64, most: usize) -> (Vec<(u64, Did)>, u64) {
        let order = self.order();
        let after = order.by_change.range(seen.saturating_add(1)..);
        let logs: Vec<(u64, Did)> = after.take(most).map(|(at, did)| (*at, *did)).collect();
        let upto = match logs.last() {
            Some((at, _)) if logs.len() == most => *at,
            _ => *self.last.borrow(),
        };
        (logs, upto)
    }

    /// The number of the last change, and to be told of each.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hn_protocol::did::SecretSeed;

    fn did(n: u8) -> Did {
        SecretSeed::from_bytes([n; 32]).did()
    }

    #[test]
    fn a_log_that_changed_often_is_told_once_at_its_last_change() {
        let news = News::default();
        for n in [1, 2, 1, 3, 1] {
            news.changed(did(n));
        }
        let (logs, upto) = news.since(0, 10);
        assert_eq!(logs, [(2, did(2)), (4, did(3)), (5, did(1))]);
        assert_eq!(upto, 5);
        assert_eq!(news.since(5, 10), (vec![], 5));
    }

    #[test]
    fn who_takes_few_at_a_time_misses_none() {
        let news = News::default();
        (1..=7).for_each(|n| news.changed(did(n)));
        let (mut seen, mut got) = (0, Vec::new());
        loop {
            let (logs, upto) = news.since(seen, 2);
            if logs.is_empty() {
                break;
            }
            got.extend(logs.into_iter().map(|(_, did)| did));
            seen = upto;
        }
        assert_eq!(got, (1..=7).map(did).collect::<Vec<_>>());
    }

    #[test]
    fn a_log_that_is_shown_no_more_has_no_news() {
        let news = News::default();
        news.changed(did(1));
        news.changed(did(2));
        news.withdrawn(&did(1));
        assert_eq!(news.since(0, 10).0, [(2, did(2))]);
    }

    #[tokio::test]
    async fn whoever_waits_is_told() {
        let news = News::default();
        let mut told = news.subscribe();
        news.changed(did(1));
        assert!(told.changed().await.is_ok());
        assert_eq!(*told.borrow_and_update(), 1);
    }
}
