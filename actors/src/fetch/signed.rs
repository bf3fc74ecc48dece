//! Requests that say who asks (`spec/http.md` S1–S9): reads where a node wants to know, and everything that hands
//! something over.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::stream;
use hn_protocol::did::{Did, Identity};
use hn_protocol::digest::Digest;
use hn_protocol::request::{AUDIENCE, BodyProof, ContentDigest, Target, sign};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use reqwest::{Method, RequestBuilder, StatusCode};
use tokio::io::AsyncReadExt;
use url::Url;

use super::{Fetch, FetchError, Trust};
use crate::catalog::Catalog;
use crate::clock::Clock;

/// How long a node that wanted a signature is asked with one at once; then it is asked without again, which costs it less.
const GATED_FOR: Duration = Duration::from_secs(600);
/// Nodes remembered as such; more than a roster has peers. Beyond it each costs one more request.
const MAX_GATED: usize = 1024;
/// What is read of a file and sent at once.
const CHUNK: usize = 64 << 10;
/// The longest answer to a file that was handed over: that it was stored.
const MAX_STORED: usize = 16 << 10;

/// Who signs, and when.
pub struct Signer {
    /// Whose key.
    pub identity: Identity,
    /// Says when.
    pub clock: Clock,
    /// Says whether the key may still be used: nothing is signed by a DID that has ended.
    pub catalog: Catalog,
}

/// Which nodes wanted to know who asks, by authority.
#[derive(Default)]
pub(super) struct Gated(Mutex<BTreeMap<String, Instant>>);

/// What a node answered to what it was given.
#[derive(Debug, Clone)]
pub struct Taken {
    /// 2xx.
    pub status: StatusCode,
    /// The body.
    pub body: Bytes,
}

impl Fetch {
    /// The same for requests to `audience`, which may be signed.
    #[must_use]
    pub fn to(&self, audience: Did) -> Self {
        Self {
            inner: self.inner.clone(),
            audience: Some(audience),
        }
    }

    /// POSTs `body`, signed. Errors: everything but 2xx; an answer of more than `max` bytes; there is no audience, or nobody to
    /// sign.
    pub async fn post(
        &self,
        url: &Url,
        trust: Trust,
        media: &'static str,
        body: Bytes,
        max: usize,
    ) -> Result<Taken, FetchError> {
        let proof = BodyProof::Content(ContentDigest::field_of(&body));
        let request = self.request(Method::POST, url, trust)?;
        let request = request.header(CONTENT_TYPE, media);
        let request = self.sign(request, &Method::POST, url, &proof)?;
        let size = body.len() as u64;
        self.hand_over(request.body(body), size, max).await
    }

    /// PUTs the `size` bytes of `file`, which hash to `digest`, signed. Errors: as [`Fetch::post`].
    pub async fn put_file(
        &self,
        url: &Url,
        trust: Trust,
        digest: &Digest,
        file: std::fs::File,
        size: u64,
    ) -> Result<Taken, FetchError> {
        let request = self.request(Method::PUT, url, trust)?;
        let request = request
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, size);
        let request = self.sign(request, &Method::PUT, url, &BodyProof::Document(*digest))?;
        let file = tokio::fs::File::from_std(file);
        let chunks = stream::try_unfold(file, |mut file| async move {
            let mut chunk = vec![0; CHUNK];
            let length = file.read(&mut chunk).await?;
            chunk.truncate(length);
            let chunk = (length > 0).then(|| (Bytes::from(chunk), file));
            Ok::<_, std::io::Error>(chunk)
        });
        let request = request.body(reqwest::Body::wrap_stream(chunks));
        self.hand_over(request, size, MAX_STORED).await
    }

    /// Sends a body of `size` bytes, which goes out before there are headers: it has as long as its bytes may take.
    async fn hand_over(
        &self,
        request: RequestBuilder,
        size: u64,
        max: usize,
    ) -> Result<Taken, FetchError> {
        let allowed = self.inner.patience + Duration::from_secs(size / super::SLOWEST);
        let mut body = self.send(request, allowed).await?;
        let status = body.response.status();
        if !status.is_success() {
            return Err(body.refusal().await);
        }
        let body = body.whole(max).await?;
        Ok(Taken { status, body })
    }

    pub(super) fn can_sign(&self) -> bool {
        self.audience.is_some() && self.signer().is_some()
    }

    fn signer(&self) -> Option<&Signer> {
        let signer = self.inner.signer.as_ref()?;
        let own = signer.identity.did();
        Some(signer).filter(|signer| !signer.catalog.is_revoked(&own))
    }

    pub(super) fn is_gated(&self, url: &Url) -> bool {
        let mut gated = lock(&self.inner.gated);
        let since = gated.get(url.authority()).copied();
        if since.is_some_and(|since| since.elapsed() > GATED_FOR) {
            gated.remove(url.authority());
        }
        self.can_sign() && gated.contains_key(url.authority())
    }

    pub(super) fn remember_gated(&self, url: &Url) {
        let mut gated = lock(&self.inner.gated);
        if gated.len() < MAX_GATED {
            gated.insert(url.authority().to_owned(), Instant::now());
        }
    }

    /// Adds the headers of a signature.
    pub(super) fn sign(
        &self,
        request: RequestBuilder,
        method: &Method,
        url: &Url,
        proof: &BodyProof,
    ) -> Result<RequestBuilder, FetchError> {
        let refused = |what: &str| FetchError::Url(what.to_owned());
        let audience = self
            .audience
            .ok_or_else(|| refused("no DID is known for it"))?;
        let signer = self.signer();
        let signer = signer.ok_or_else(|| refused("this node cannot sign"))?;
        let target = Target {
            method: method.as_str(),
            path: url.path(),
            query: url.query(),
        };
        let nonce = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 16]>());
        let now = signer.clock.now();
        let fields = sign(target, audience, proof, &signer.identity, now, &nonce)
            .map_err(|error| refused(&error.to_string()))?;
        let mut request = request
            .header("signature-input", fields.signature_input)
            .header("signature", fields.signature)
            .header(AUDIENCE, fields.audience);
        if let Some((name, value)) = fields.proof {
            request = request.header(name, value);
        }
        Ok(request)
    }
}

fn lock(gated: &Gated) -> std::sync::MutexGuard<'_, BTreeMap<String, Instant>> {
    gated.0.lock().unwrap_or_else(PoisonError::into_inner)
}
