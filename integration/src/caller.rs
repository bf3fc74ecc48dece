//! Somebody with a key who asks a node: signed requests as data, so that a test can break one rule at a time.

use bytes::Bytes;
use hn_protocol::did::{Did, Identity, SecretSeed};
use hn_protocol::digest::Digest;
use hn_protocol::request::{AUDIENCE, BodyProof, ContentDigest, SignatureFields, Target, sign};
use hn_protocol::time::Timestamp;
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::Value;

use crate::cluster::Node;
use crate::log::now;
use crate::net::client;

/// A caller and whom it asks.
#[derive(Clone)]
pub struct Caller {
    /// Its key.
    pub identity: Identity,
    /// The node's DID.
    pub audience: Did,
    base: String,
    http: Client,
}

/// A request that is not sent yet.
#[derive(Clone)]
pub struct Ask {
    caller: Caller,
    /// What is done.
    pub method: Method,
    /// Path and query as they are sent.
    pub path: String,
    /// What is sent.
    pub body: Option<Bytes>,
    /// What proves it.
    pub proof: BodyProof,
    /// Its media type.
    pub media: &'static str,
    /// When it is signed.
    pub at: Timestamp,
    /// Used once.
    pub nonce: String,
    /// For whom it is signed.
    pub audience: Did,
    /// What the signature says that the path is; what is sent by default.
    pub signed_path: Option<String>,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
}

impl Caller {
    /// A stranger with a new key at the door of `node`.
    pub fn stranger(node: &Node) -> Self {
        Self::with(SecretSeed::from_bytes(rand::random()).identity(), node)
    }

    /// `identity` at the door of `node`.
    pub fn with(identity: Identity, node: &Node) -> Self {
        Self {
            identity,
            audience: node.did(),
            base: format!("http://{}", node.address()),
            http: client(None),
        }
    }

    /// Who asks.
    pub fn did(&self) -> Did {
        self.identity.did()
    }

    /// The same on connections that are kept, for many requests.
    #[must_use]
    pub fn keeping(mut self) -> Self {
        self.http = Client::builder().no_proxy().build().expect("a client");
        self
    }

    /// A request without a body.
    pub fn ask(&self, method: Method, path: &str) -> Ask {
        Ask {
            caller: self.clone(),
            method,
            path: path.to_owned(),
            body: None,
            proof: BodyProof::None,
            media: "application/octet-stream",
            at: now(),
            nonce: format!("{:032x}", rand::random::<u128>()),
            audience: self.audience,
            signed_path: None,
            headers: Vec::new(),
        }
    }

    /// `GET`.
    pub fn get(&self, path: &str) -> Ask {
        self.ask(Method::GET, path)
    }

    /// `POST /publish` of these lines.
    pub fn publish(&self, lines: &[Bytes]) -> Ask {
        let body: Vec<u8> = lines
            .iter()
            .flat_map(|line| [line, &b"\n"[..]].concat())
            .collect();
        let mut ask = self.ask(Method::POST, "/publish").content(body);
        ask.media = "application/x-ndjson";
        ask
    }

    /// `PUT /artifact/{digest}` of these bytes.
    pub fn put(&self, digest: Digest, bytes: &[u8]) -> Ask {
        let mut ask = self.ask(Method::PUT, &format!("/artifact/{digest}"));
        (ask.body, ask.proof) = (
            Some(Bytes::copy_from_slice(bytes)),
            BodyProof::Document(digest),
        );
        ask
    }
}

impl Ask {
    /// With a body, proved by `content-digest`.
    #[must_use]
    pub fn content(mut self, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        self.proof = BodyProof::Content(ContentDigest::field_of(&body));
        self.body = Some(body);
        self
    }

    /// The headers of its signature.
    pub fn fields(&self) -> SignatureFields {
        let sent = self.signed_path.as_deref().unwrap_or(&self.path);
        let (path, query) = match sent.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (sent, None),
        };
        let target = Target {
            method: self.method.as_str(),
            path,
            query,
        };
        let identity = &self.caller.identity;
        sign(
            target,
            self.audience,
            &self.proof,
            identity,
            self.at,
            &self.nonce,
        )
        .expect("signed")
    }

    /// The request with these headers in place of its own.
    pub fn with(&self, fields: &SignatureFields) -> RequestBuilder {
        let url = format!("{}{}", self.caller.base, self.path);
        let mut request = self
            .caller
            .http
            .request(self.method.clone(), url)
            .header("signature-input", &fields.signature_input)
            .header("signature", &fields.signature)
            .header(AUDIENCE, &fields.audience);
        if let Some((name, value)) = &fields.proof {
            request = request.header(*name, value);
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        match &self.body {
            Some(body) => request
                .header("content-type", self.media)
                .body(body.clone()),
            None => request,
        }
    }

    /// Sends it as it is.
    pub async fn send(&self) -> Response {
        self.with(&self.fields())
            .send()
            .await
            .expect("the node answers")
    }

    /// Sends it, and gives status and JSON of the answer.
    pub async fn answer(&self) -> (u16, Value) {
        read(self.send().await).await
    }

    /// Sends it, and gives the code of the problem that must be the answer, with its status.
    pub async fn refused(&self) -> (u16, String) {
        code(self.send().await).await
    }
}

/// Status and JSON of an answer.
pub async fn read(answer: Response) -> (u16, Value) {
    let status = answer.status().as_u16();
    (status, answer.json().await.unwrap_or_default())
}

/// Status and code of a problem.
pub async fn code(answer: Response) -> (u16, String) {
    let media = answer.headers().get("content-type").cloned();
    let (status, problem) = read(answer).await;
    assert_eq!(
        media.as_ref().map(|m| m.as_bytes()),
        Some(&b"application/problem+json"[..]),
        "{problem}"
    );
    assert_eq!(problem["status"], status, "{problem}");
    (
        status,
        problem["code"].as_str().unwrap_or_default().to_owned(),
    )
}
