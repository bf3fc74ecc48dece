//! Going on with a log of our own whose journal was damaged: what does not verify is set aside, never thrown away.

use std::fs::{self, File};

use hn_protocol::recovery::Extent;
use hn_protocol::time::Timestamp;

use super::{Log, LogError, Shelf};
use crate::vault;

impl Log {
    /// Whether something in the journal stands in the way of what comes next.
    #[must_use]
    pub const fn must_be_cut(&self) -> bool {
        self.cut_at.is_some()
    }

    /// How far the log reached by what the index knew when it was opened.
    #[must_use]
    pub const fn reach(&self) -> Extent {
        self.reach
    }
}

impl Shelf {
    /// Ends the journal where its damage begins, and lets the log be signed upon again. The damaged file stays as
    /// `<file>.damaged-<ms>`. A crash midway is mended by the next call. Errors: disk.
    pub fn mend(&self, log: &mut Log, now: Timestamp) -> Result<(), LogError> {
        if let Some((file, offset)) = log.cut_at {
            let files = log.journal.files();
            if let Some(damaged) = files.iter().find(|known| known.id == file) {
                let folder = log.journal.folder().to_owned();
                let aside = folder.join(format!("{}.damaged-{}", damaged.name, now.0));
                fs::copy(folder.join(&damaged.name), &aside)?;
                File::open(&aside)?.sync_all()?;
                vault::sync_dir(&folder)?;
                log.journal.truncate_tail(file, offset)?;
                tracing::warn!(log = %log.state.publisher, aside = %aside.display(), "the damaged end of the journal was set aside");
            }
            log.cut_at = None;
        }
        log.damaged = None;
        Ok(())
    }

    /// From now on this log's presences have sequences above `sequence`: it was used once, and is not in the journal.
    pub fn sign_above(&self, log: &mut Log, sequence: u64) {
        if log
            .state
            .presence
            .is_some_and(|held| held.sequence >= sequence)
        {
            return;
        }
        log.state.floor = log.state.floor.max(sequence);
        self.show(log);
    }
}
