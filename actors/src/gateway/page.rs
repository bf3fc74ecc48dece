//! A page on its way out, piece by piece. What slow readers keep in memory is bounded: by a budget over all of them,
//! and by the time that a page is kept for one.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::body::{BodySize, BoxBody, MessageBody};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::problem::Problem;

/// Bytes handed to a connection at once: it copies what it is given.
const PIECE: usize = 64 << 10;
/// Memory for pages that are being read, larger than a piece. A follower is at it for milliseconds; 32 of the largest.
const BUDGET: usize = 128 << 20;
/// How long a page is kept whatever its reader does...
const GRACE: Duration = Duration::from_secs(30);
/// ...and for how many bytes of it a second more: what a follower refuses to wait for (F4), we do not keep.
const SLOWEST: u64 = 16 << 10;

/// Memory that pages under way may take together.
pub struct PageBudget(Arc<Semaphore>);

impl Default for PageBudget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BUDGET)))
    }
}

impl PageBudget {
    /// `page` as a body that counts until it was read or given up. Errors: `busy`, too much is under way.
    pub fn body(&self, page: Bytes) -> Result<BoxBody, Problem> {
        if page.len() <= PIECE {
            return Ok(BoxBody::new(page));
        }
        let patience = GRACE + Duration::from_secs(page.len() as u64 / SLOWEST);
        Ok(BoxBody::new(self.paged(page, patience)?))
    }

    fn paged(&self, page: Bytes, patience: Duration) -> Result<PageBody, Problem> {
        let permit = u32::try_from(page.len())
            .ok()
            .and_then(|bytes| Arc::clone(&self.0).try_acquire_many_owned(bytes).ok())
            .ok_or_else(|| Problem::new("busy", "too many pages are being read"))?;
        let size = page.len() as u64;
        let rest = Arc::new(Mutex::new(Some(Rest {
            page,
            _permit: permit,
        })));
        let kept = Arc::downgrade(&rest);
        let timer = actix::spawn(async move {
            tokio::time::sleep(patience).await;
            if let Some(rest) = kept.upgrade() {
                // The connection, which is polled only while its reader reads, finds nothing and breaks off.
                rest.lock().unwrap_or_else(PoisonError::into_inner).take();
            }
        });
        Ok(PageBody { rest, size, timer })
    }
}

/// What was not handed over yet.
struct Rest {
    page: Bytes,
    _permit: OwnedSemaphorePermit,
}

struct PageBody {
    /// Empty once its time is over.
    rest: Arc<Mutex<Option<Rest>>>,
    size: u64,
    timer: JoinHandle<()>,
}

impl MessageBody for PageBody {
    type Error = io::Error;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.size)
    }

    fn poll_next(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, io::Error>>> {
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Rest { page, .. }) = rest.as_mut() else {
            return Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())));
        };
        let piece = page.split_to(page.len().min(PIECE));
        Poll::Ready((!piece.is_empty()).then_some(Ok(piece)))
    }
}

impl Drop for PageBody {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::future::poll_fn;

    async fn next(body: &mut PageBody) -> Option<io::Result<Bytes>> {
        poll_fn(|context| Pin::new(&mut *body).poll_next(context)).await
    }

    #[actix_web::test]
    async fn a_page_goes_out_in_pieces_and_whole() {
        let page: Bytes = (0..3 * PIECE + 7)
            .map(|at| at as u8)
            .collect::<Vec<_>>()
            .into();
        let budget = PageBudget::default();
        let mut body = budget.paged(page.clone(), GRACE).unwrap();
        assert_eq!(body.size(), BodySize::Sized(page.len() as u64));
        let mut read = Vec::new();
        while let Some(piece) = next(&mut body).await {
            let piece = piece.unwrap();
            assert!(piece.len() <= PIECE);
            read.extend_from_slice(&piece);
        }
        assert_eq!(read, page);
    }

    #[actix_web::test]
    async fn pages_under_way_are_bounded_and_give_back_their_share() {
        let budget = PageBudget::default();
        let page = Bytes::from(vec![0; BUDGET / 2]);
        let bodies = [(), ()].map(|()| budget.body(page.clone()).unwrap());
        assert!(budget.body(page.clone()).is_err(), "the budget is used up");
        assert!(
            budget.body(page.slice(..PIECE)).is_ok(),
            "small pages are read all the same"
        );
        drop(bodies);
        assert!(budget.body(page).is_ok());
    }

    #[actix_web::test]
    async fn a_reader_without_end_loses_its_page() {
        let budget = PageBudget::default();
        let page = Bytes::from(vec![0; BUDGET]);
        let mut body = budget.paged(page.clone(), Duration::ZERO).unwrap();
        (&mut body.timer).await.unwrap();
        assert!(
            budget.paged(page, GRACE).is_ok(),
            "the memory is free again"
        );
        assert!(
            next(&mut body).await.unwrap().is_err(),
            "cut off, not ended"
        );
    }
}
