//! One run over one log: what is missing, within which bounds, from whom.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use futures_util::StreamExt;
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::federation::Reason;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::batch;
use super::download::PER_HOST;
use super::mark::{self, MirrorMark};
use super::{Holder, Limit, MirrorError, MirrorLog, MirrorReport, Work, Worker, blocking};
use crate::artifacts::{Listed, listed};
use crate::catalog::LogView;
use crate::fetch::FetchError;
use crate::store::{Batch, Tree};
use crate::vault::{ArtifactStore, BundleWriter, MAX_MEMBER, Staged};

/// Entries that are looked at together, when their artifacts are fetched...
const WINDOW: usize = 8192;
/// ...and when they are only looked for.
const CHECKED_AT_ONCE: usize = 512;
/// The most requests of one run that only looks.
const MAX_CHECKED: u64 = 2048;
/// Artifacts of which one that only takes samples looks for, a run.
const SAMPLES: u64 = 16;
/// Artifacts made durable by one group commit, where each comes by itself.
const COMMIT_SIZE: usize = 64;
/// After so many false answers a holder is asked nothing more in a run.
const MAX_LIES: usize = 16;

/// After so many answers that did not come in time a holder counts as gone.
const MAX_TIMEOUTS: usize = 4;

/// One log, in the name of one peer.
pub(super) struct Run {
    worker: Worker,
    job: MirrorLog,
    view: Arc<LogView>,
    target: ArtifactStore,
    key: Vec<u8>,
    mark: MirrorMark,
    report: MirrorReport,
    /// Holders that are asked no more: gone, or false too often.
    dropped: BTreeSet<Did>,
    /// Holders that offer no batches.
    single: BTreeSet<Did>,
    /// False answers, with the first reason.
    lies: BTreeMap<Did, (usize, Reason)>,
    /// Answers that did not come in time.
    slow: BTreeMap<Did, usize>,
    /// Why the last one is gone that is.
    gone: Option<Reason>,
    /// Requests of a run that only looks.
    looked: u64,
}

/// Why a run ends before its log does.
enum Stop {
    /// A bound, or everybody is gone: the next run goes on here.
    Here,
    /// Our own disk.
    Failed(MirrorError),
}

impl From<MirrorError> for Stop {
    fn from(error: MirrorError) -> Self {
        Self::Failed(error)
    }
}

impl Run {
    pub(super) fn new(worker: Worker, job: MirrorLog, view: Arc<LogView>) -> Self {
        Self {
            target: worker.shelf.mirrored(&job.publisher),
            key: mark::key(job.work, &job.publisher, &job.peer),
            worker,
            job,
            view,
            mark: MirrorMark::default(),
            report: MirrorReport::default(),
            dropped: BTreeSet::new(),
            single: BTreeSet::new(),
            lies: BTreeMap::new(),
            slow: BTreeMap::new(),
            gone: None,
            looked: 0,
        }
    }

    /// Does everything that is to do, and says how it went. Errors: our own disk or index.
    pub(super) async fn report(mut self) -> Result<MirrorReport, MirrorError> {
        // One that cannot be read was written by another version: the log is looked through again.
        let mark = self.worker.store.get(Tree::Meta, &self.key);
        self.mark = mark.ok().flatten().unwrap_or_default();
        if self.worker.shelf.has_unsettled() {
            // What a full disk kept from being settled.
            let shelf = self.worker.shelf.clone();
            tokio::task::spawn_blocking(move || settled(shelf.settle_all()));
        }
        let outcome = self.run().await;
        for (liar, (_, reason)) in &self.lies {
            if self.mark.missing() > 0 {
                self.mark.lied(*liar, reason);
            }
        }
        // What is durable is remembered, however the run ended.
        self.save().await?;
        if let Err(Stop::Failed(error)) = outcome {
            return Err(error);
        }
        let mut report = self.report;
        report.missing = self.mark.missing();
        report.error = self.mark.reason().or(report.error);
        report.kept = self.mark.kept();
        report.limit = self.mark.limit();
        report.left_out = report.limit.is_some();
        let lies = self.lies.into_iter();
        let mut lies: BTreeMap<Did, Reason> = lies.map(|(liar, (_, why))| (liar, why)).collect();
        lies.extend(self.mark.liars());
        report.lies = lies.into_iter().collect();
        report.availability = self.mark.availability(self.view.state.size());
        Ok(report)
    }

    async fn run(&mut self) -> Result<(), Stop> {
        let missing = self.mark.due(self.job.now, self.job.again);
        let seq = self.mark.next();
        let missing = missing.into_iter();
        let missing = missing.map(|(digest, size)| Listed { seq, digest, size });
        // They may stand anywhere in the log: no batch has them together.
        let due = self.fetch(missing.collect(), false).await?;
        if due.cut.is_some() {
            return Err(Stop::Here);
        }
        let (size, base) = (self.view.state.size(), self.view.state.base);
        if self.mark.next() < base {
            // What was pruned before anybody looked at it is nothing that is missing.
            self.mark.advance(base);
        }
        let window = match self.job.work {
            Work::Keep => WINDOW,
            Work::Check => CHECKED_AT_ONCE,
            Work::Sample => return self.sample(size).await,
        };
        while self.mark.next() < size && !self.mark.is_full() && self.looked < MAX_CHECKED {
            let from = self.mark.next();
            let (mut entries, next) = self.listed(from, window).await?;
            if next <= from {
                break;
            }
            // What is missing already has its own time.
            entries.retain(|entry| !self.mark.misses(&entry.digest));
            let fetched = self.fetch(entries, true).await?;
            let next = fetched.cut.unwrap_or(next);
            self.mark.looked(next - from, fetched.held);
            self.mark.advance(next);
            self.save().await?;
            if fetched.cut.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// A few entries of what is new, as far from each other as they can be.
    async fn sample(&mut self, size: u64) -> Result<(), Stop> {
        let next = self.mark.next();
        let new = size.saturating_sub(next);
        let count = new.min(SAMPLES);
        let mut picked = Vec::new();
        for n in 0..count {
            let (entries, _) = self.listed(next + n * new / count, 1).await?;
            picked.extend(entries.first().copied());
        }
        let fetched = self.fetch(picked, false).await?;
        if new > 0 {
            self.mark.looked(count, fetched.held);
            self.mark.advance(size);
        }
        Ok(())
    }

    async fn listed(&self, cursor: u64, most: usize) -> Result<(Vec<Listed>, u64), MirrorError> {
        let (catalog, view) = (self.worker.catalog.clone(), Arc::clone(&self.view));
        blocking(move || listed(&catalog, &view, cursor, most)).await
    }

    /// Fetches those of `entries` that are not here, from whoever has them; many together where it pays and `batches`
    /// may.
    async fn fetch(&mut self, entries: Vec<Listed>, batches: bool) -> Result<Fetched, Stop> {
        let (mut missing, held) = self.absent(&entries).await?;
        let cut = self.afford(&mut missing, &entries).await?;
        let mut errors: BTreeMap<Digest, MirrorError> = BTreeMap::new();
        for holder in self.job.holders.clone() {
            if missing.is_empty() || self.dropped.contains(&holder.did) {
                continue;
            }
            let mut wish = Wish {
                ask: missing.clone(),
                missing: &mut missing,
                errors: &mut errors,
            };
            if batches && self.job.work == Work::Keep {
                self.batches(&holder, &entries, &mut wish).await?;
            }
            self.singles(&holder, &mut wish).await?;
        }
        let mut goes_on = true;
        for (digest, size) in missing {
            match errors.remove(&digest) {
                Some(error) => goes_on &= self.mark.missed(digest, size, &error, self.job.now),
                None => {
                    // Who is gone lacks nothing: the next run goes on here.
                    self.report.error = self.gone.take().or(self.report.error.take());
                    goes_on = false;
                }
            }
        }
        if goes_on {
            Ok(Fetched { held, cut })
        } else {
            Err(Stop::Here)
        }
    }

    /// Those of `entries` that are not here, and how many are.
    async fn absent(
        &mut self,
        entries: &[Listed],
    ) -> Result<(BTreeMap<Digest, u64>, u64), MirrorError> {
        let (shelf, list) = (self.worker.shelf.clone(), entries.to_vec());
        let (held, absent) = blocking(move || {
            let (mut held, mut absent) = (Vec::new(), BTreeMap::new());
            for Listed { digest, size, .. } in list {
                if shelf.contains(&digest)? {
                    held.push(digest);
                } else {
                    absent.insert(digest, size);
                }
            }
            Ok((held, absent))
        })
        .await?;
        held.iter().for_each(|digest| self.mark.found(digest, 0));
        Ok((absent, held.len() as u64))
    }

    /// Takes out of `missing` what is beyond a limit: from the first entry on that does not fit, which is the answer.
    async fn afford(
        &mut self,
        missing: &mut BTreeMap<Digest, u64>,
        entries: &[Listed],
    ) -> Result<Option<u64>, MirrorError> {
        if self.job.work != Work::Keep || (missing.is_empty() && self.mark.limit().is_none()) {
            return Ok(None);
        }
        let (shelf, publisher) = (self.worker.shelf.clone(), self.job.publisher);
        let quotas = self.worker.limits;
        let (own, all) = blocking(move || {
            let own = shelf.usage(&publisher)?.bytes;
            let all = match quotas.mirror_quota {
                0 => 0,
                _ => shelf.mirrored_bytes()?,
            };
            Ok((own, all))
        })
        .await?;
        let of = |quota: u64, used: u64| match quota {
            0 => u64::MAX,
            quota => quota.saturating_sub(used),
        };
        let limits = [
            (Limit::Publisher, of(quotas.publisher_quota, own)),
            (Limit::Mirror, of(quotas.mirror_quota, all)),
            (
                Limit::Held,
                self.job.budget.saturating_sub(self.mark.kept()),
            ),
        ];
        let tightest = limits.into_iter().min_by_key(|(_, left)| *left);
        let Some((limit, mut left)) = tightest else {
            return Ok(None);
        };
        let mut affordable = BTreeMap::new();
        let mut cut = None;
        for entry in entries {
            let Some(size) = missing.get(&entry.digest) else {
                continue;
            };
            if affordable.contains_key(&entry.digest) {
                continue;
            }
            let Some(after) = left.checked_sub(*size) else {
                cut = Some(entry.seq);
                break;
            };
            left = after;
            affordable.insert(entry.digest, *size);
        }
        *missing = affordable;
        self.mark.set_limit(cut.map(|_| limit));
        Ok(cut)
    }

    /// What `holder` gives in batches.
    async fn batches(
        &mut self,
        holder: &Holder,
        entries: &[Listed],
        wish: &mut Wish<'_>,
    ) -> Result<(), Stop> {
        for range in batch::ranges(entries, wish.missing) {
            let mut at = Some(range.start);
            while let Some(from) = at.take() {
                if self.single.contains(&holder.did) {
                    return Ok(());
                }
                let answer = batch::fetch(
                    &self.worker.downloads,
                    &self.target,
                    &self.job.publisher,
                    holder,
                    from..range.end,
                    entries,
                    wish.missing,
                );
                let answer = match answer.await {
                    Ok(Some(answer)) => answer,
                    Err(error) if error.is_local() => return Err(error.into()),
                    refused => {
                        self.single.insert(holder.did);
                        if let Err(error) = refused {
                            self.failed(holder, &error);
                        }
                        return Ok(());
                    }
                };
                let members = answer.bundle.members().iter();
                let came: Vec<(Digest, u64)> = members.map(|m| (m.digest, m.size)).collect();
                self.keep_bundle(answer.bundle).await?;
                for (digest, size) in came {
                    self.mark.found(&digest, size);
                    wish.came(&digest);
                }
                match answer.error {
                    None => {
                        // It would have come. Nobody asks for it again by itself.
                        let covered = entries.iter().filter(|e| answer.covered.contains(&e.seq));
                        for entry in covered.filter(|entry| entry.size <= MAX_MEMBER) {
                            if wish.ask.remove(&entry.digest).is_some() {
                                wish.failed(entry.digest, MirrorError::Absent);
                            }
                        }
                        at = answer.next;
                    }
                    Some(error) if error.is_local() => return Err(error.into()),
                    Some(error) => {
                        self.single.insert(holder.did);
                        if error.is_lie() {
                            self.lied(holder, &error);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// What `holder` gives one by one: a few at a time, durable together.
    async fn singles(&mut self, holder: &Holder, wish: &mut Wish<'_>) -> Result<(), Stop> {
        let ask = std::mem::take(&mut wish.ask);
        if ask.is_empty() || self.dropped.contains(&holder.did) {
            return Ok(());
        }
        let (sender, mut done) = mpsc::channel(COMMIT_SIZE);
        let (worker, target) = (self.worker.clone(), self.target.clone());
        let asking = ask_each(worker, target, holder.clone(), self.job.work, ask, sender);
        let _asking = Asking(actix::spawn(asking));
        let mut answers = Vec::with_capacity(COMMIT_SIZE);
        while done.recv_many(&mut answers, COMMIT_SIZE).await > 0 {
            let mut staged = Vec::with_capacity(answers.len());
            let mut stop = None;
            for (digest, outcome) in answers.drain(..) {
                if self.job.work != Work::Keep {
                    self.looked += 1;
                }
                match outcome {
                    Ok(artifact) => {
                        wish.came(&digest);
                        match artifact {
                            Some(artifact) => staged.push(artifact),
                            None => self.mark.found(&digest, 0),
                        }
                    }
                    Err(error) if error.is_local() => stop = Some(error),
                    Err(error) => {
                        self.failed(holder, &error);
                        if !error.is_gone() {
                            wish.failed(digest, error);
                        }
                    }
                }
            }
            self.keep(staged).await?;
            if let Some(error) = stop {
                return Err(error.into());
            }
            if self.dropped.contains(&holder.did) {
                break;
            }
        }
        Ok(())
    }

    /// A request failed: who is gone is asked no more, who lied is charged.
    fn failed(&mut self, holder: &Holder, error: &MirrorError) {
        if error.is_gone() {
            self.gone = Some(error.reason());
            self.dropped.insert(holder.did);
        }
        if matches!(error, MirrorError::Fetch(FetchError::Timeout(_))) {
            let slow = self.slow.entry(holder.did).or_insert(0);
            *slow += 1;
            if *slow >= MAX_TIMEOUTS {
                self.gone = Some(error.reason());
                self.dropped.insert(holder.did);
            }
        }
        if error.is_lie() {
            self.lied(holder, error);
        }
    }

    /// Remembers whom a false answer is charged to; who gives too many is asked no more.
    fn lied(&mut self, holder: &Holder, error: &MirrorError) {
        let first = || (0, error.reason());
        let (count, _) = self.lies.entry(holder.did).or_insert_with(first);
        *count += 1;
        if *count >= MAX_LIES && self.job.holders.len() > 1 {
            self.dropped.insert(holder.did);
        }
    }

    async fn keep(&mut self, staged: Vec<Staged>) -> Result<(), MirrorError> {
        if staged.is_empty() {
            return Ok(());
        }
        let kept: Vec<(Digest, u64)> = staged.iter().map(|s| (s.digest(), s.size())).collect();
        let (shelf, publisher) = (self.worker.shelf.clone(), self.job.publisher);
        blocking(move || shelf.keep(&publisher, staged)).await?;
        for (digest, size) in &kept {
            self.mark.found(digest, *size);
        }
        self.count(kept.len() as u64, kept.iter().map(|(_, size)| size).sum());
        Ok(())
    }

    /// Makes a bundle durable; its files are made in the background.
    async fn keep_bundle(&mut self, bundle: BundleWriter) -> Result<(), MirrorError> {
        let sizes = bundle.members().iter().map(|member| member.size);
        let (count, bytes) = (bundle.members().len() as u64, sizes.sum());
        let (shelf, publisher) = (self.worker.shelf.clone(), self.job.publisher);
        let kept = blocking(move || shelf.keep_bundle(&publisher, bundle)).await?;
        if let Some(bundle) = kept {
            let shelf = self.worker.shelf.clone();
            tokio::task::spawn_blocking(move || settled(shelf.settle(&bundle)));
        }
        self.count(count, bytes);
        Ok(())
    }

    fn count(&mut self, artifacts: u64, bytes: u64) {
        self.report.artifacts += artifacts;
        self.report.bytes += bytes;
        self.worker.metrics.artifacts_mirrored(artifacts, bytes);
    }

    /// Keeps the mark, if it is another one than the Store has.
    async fn save(&mut self) -> Result<(), MirrorError> {
        if !self.mark.take_changed() {
            return Ok(());
        }
        let mut batch = Batch::default();
        batch
            .put(Tree::Meta, &self.key, &self.mark)
            .map_err(io::Error::other)?;
        let store = self.worker.store.clone();
        blocking(move || store.apply(batch).map_err(io::Error::other)).await
    }
}

/// What is asked for, of one holder after the other.
struct Wish<'a> {
    /// What this one is still to be asked for, one by one.
    ask: BTreeMap<Digest, u64>,
    /// What nobody has given.
    missing: &'a mut BTreeMap<Digest, u64>,
    /// Why not, a lie before an absence.
    errors: &'a mut BTreeMap<Digest, MirrorError>,
}

impl Wish<'_> {
    fn came(&mut self, digest: &Digest) {
        self.missing.remove(digest);
        self.ask.remove(digest);
    }

    fn failed(&mut self, digest: Digest, error: MirrorError) {
        let known = self.errors.get(&digest);
        if known.is_none_or(|known| error.is_lie() && !known.is_lie()) {
            self.errors.insert(digest, error);
        }
    }
}

/// What became of entries: how many were here, and the first that is beyond a limit.
struct Fetched {
    held: u64,
    cut: Option<u64>,
}

/// How one request ended: with an artifact, or, when it was only looked for, without.
type Answered = (Digest, Result<Option<Staged>, MirrorError>);

/// Requests that nobody waits for any more are given up.
struct Asking(JoinHandle<()>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Asks `holder` for one artifact after the other, a few at a time, also while those that came are made durable.
async fn ask_each(
    worker: Worker,
    target: ArtifactStore,
    holder: Holder,
    work: Work,
    ask: BTreeMap<Digest, u64>,
    sender: mpsc::Sender<Answered>,
) {
    let requests = ask.into_iter().map(|(digest, size)| {
        let (downloads, target, holder) = (&worker.downloads, &target, &holder);
        async move {
            let outcome = match work {
                Work::Keep => downloads
                    .download(target, holder, &digest, Some(size))
                    .await
                    .map(Some),
                Work::Sample | Work::Check => {
                    downloads.look(holder, &digest, size).await.map(|()| None)
                }
            };
            (digest, outcome)
        }
    });
    let mut requests = futures_util::stream::iter(requests).buffer_unordered(PER_HOST);
    while let Some(answered) = requests.next().await {
        if sender.send(answered).await.is_err() {
            return;
        }
    }
}

fn settled(outcome: io::Result<()>) {
    if let Err(error) = outcome {
        tracing::warn!(%error, "a bundle of artifacts waits to be settled");
    }
}
