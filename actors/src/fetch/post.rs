//! Sending a small JSON body: one request, never repeated here.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_TYPE};
use url::Url;

use super::{Body, Fetch, FetchError, Trust, connect_error, said};

impl Fetch {
    /// POSTs JSON to `url` and gives the body of a 200, 201 or 202. Errors: every other answer, more than `max` bytes, too
    /// slow.
    pub async fn post(
        &self,
        url: &Url,
        trust: Trust,
        json: Bytes,
        max: usize,
    ) -> Result<Bytes, FetchError> {
        self.check(url, trust)?;
        let request = self
            .client(trust)?
            .post(url.clone())
            .header(ACCEPT_ENCODING, "identity")
            .header(CONTENT_TYPE, "application/json")
            .body(json);
        let (started, patience) = (Instant::now(), self.inner.patience);
        let response = tokio::time::timeout(patience, request.send())
            .await
            .map_err(|_| FetchError::Timeout("no headers"))?
            .map_err(|e| connect_error(&e))?;
        let status = response.status();
        let mut body = Body {
            response,
            started,
            received: 0,
            patience,
        };
        if status.is_redirection() {
            return Err(FetchError::Redirect(status.as_u16()));
        }
        if !matches!(status.as_u16(), 200..=202) {
            return Err(FetchError::Status {
                status: status.as_u16(),
                detail: said(&body.problem().await),
            });
        }
        let mut bytes = BytesMut::new();
        while let Some(chunk) = body.chunk().await? {
            if bytes.len() + chunk.len() > max {
                return Err(FetchError::TooLarge(max));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }
}
