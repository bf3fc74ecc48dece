//! Who may ask for what: the one place where signatures are checked, nonces taken and gates enforced (design 7, 9).
//!
//! Who may ask for a route stands in [`TABLE`], which `/openapi.json` says as well; each route is wrapped by [`enforce`],
//! which runs behind the guard and before the handler. The order: signature and audience (401), nonce (401, 503), gate (403), body (401, 413). So a
//! caller whom nobody knows costs one signature check, and no byte of a body is read for who may not send it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix_web::body::MessageBody;
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, TRANSFER_ENCODING};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage, HttpRequest, web};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::policy::{Gate, Mode};
use hn_protocol::request::{
    self, Audience, BodyProof, ContentDigest, NonceError, Nonces, ReceivedFields, SignatureError,
    SignedRequest, Target,
};
use hn_protocol::time::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::info;

use super::GatewayState;
use super::admin::{Operator, check_operator};
use super::friends::MAX_INTRODUCTION;
use super::guard::SentPath;
use super::problem::Problem;
use crate::policy;

/// The largest body that is held to be proved (design 13).
pub const MAX_BODY: usize = 8 << 20;
/// Memory for bodies that are being read, from all callers together: eight of the largest.
const BODIES: usize = 64 << 20;
/// How long a body may take whatever its sender does...
const BODY_GRACE: Duration = Duration::from_secs(10);
/// ...and for how many bytes of it a second more (F4 asks the same of answers).
pub const SLOWEST: u64 = 16 << 10;

/// How long a body of at most `most` bytes may take.
pub fn body_time(most: usize) -> Duration {
    BODY_GRACE + Duration::from_secs(most as u64 / SLOWEST)
}

/// Who may ask for a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anybody; who asks is not looked at.
    Open,
    /// Whom the gate allows. Without a signature the caller is nobody in particular. The operator's socket passes.
    Gated(Gate),
    /// Whom the gate allows, and who signs.
    Signed(Gate),
    /// Whoever signs, with a body of at most so many bytes; what they may do is the handler's question.
    Named(usize),
    /// The node's operator, over its socket.
    Operator,
}

const READ: Access = Access::Gated(Gate::FederateRead);
const HOSTED: Access = Access::Signed(Gate::PublishHosted);

/// Method, path and who may ask, for every route that is open on TCP. HEAD is as GET.
pub const TABLE: &[(&str, &str, Access)] = &[
    ("GET", "/healthz", Access::Open),
    ("GET", "/readyz", Access::Open),
    ("GET", "/.well-known/hn/presence", Access::Open),
    ("GET", "/presence", Access::Open),
    ("GET", "/presence/digest/{digest}", READ),
    ("GET", "/presence/{did}", READ),
    ("GET", "/.well-known/did.json", Access::Open),
    ("GET", "/1.0/identifiers/{did}", Access::Open),
    ("GET", "/federate", Access::Open),
    ("GET", "/federate/index", READ),
    ("GET", "/federate/peers", READ),
    ("GET", "/federate/forks", READ),
    ("GET", "/federate/artifacts", READ),
    ("GET", "/federate/proof/{publisher}/{seq}", READ),
    ("GET", "/federate/watch", READ),
    ("GET", "/artifact/{digest}", READ),
    ("PUT", "/artifact/{digest}", HOSTED),
    ("POST", "/publish", HOSTED),
    ("POST", "/revocation", Access::Open),
    (
        "POST",
        "/federate/requests",
        Access::Named(MAX_INTRODUCTION),
    ),
    ("GET", "/openapi.json", Access::Open),
    ("GET", "/docs", Access::Open),
];

impl fmt::Display for Access {
    /// As `x-hn-access` of `/openapi.json` says it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("open"),
            Self::Gated(gate) => write!(f, "gate {}", gate.name()),
            Self::Signed(gate) => write!(f, "signed, gate {}", gate.name()),
            Self::Named(_) => f.write_str("signed"),
            Self::Operator => f.write_str("operator"),
        }
    }
}

/// Who may ask for a route; of one that is not in the table the operator alone.
#[must_use]
pub fn of(method: &str, path: &str) -> Access {
    let found = TABLE.iter().find(|(m, p, _)| *m == method && *p == path);
    found.map_or(Access::Operator, |(_, _, access)| *access)
}

/// Signatures and bodies under way.
pub struct Callers {
    own: Audience,
    nonces: Mutex<Nonces>,
    bodies: Arc<Semaphore>,
}

impl Callers {
    /// Of the node `own`, which started at `started`.
    #[must_use]
    pub fn new(own: Did, started: Timestamp) -> Self {
        Self {
            own: Audience::new(own),
            nonces: Mutex::new(Nonces::new(started)),
            bodies: Arc::new(Semaphore::new(BODIES)),
        }
    }
}

/// Who asks, and with what: left in the request for its handler.
pub struct Caller {
    /// Whose key signed the request.
    pub did: Did,
    /// The body, proved by `content-digest`; empty where another digest was signed.
    pub body: Bytes,
    /// What `hn-digest` said, where it was signed: the handler proves the body by it.
    pub document: Option<Digest>,
    /// Gives the body's memory back.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Caller {
    /// Takes it out of a request whose route has [`Access::Signed`] or [`Access::Named`]. Errors: another route's.
    pub fn of(request: &HttpRequest) -> Result<Self, Problem> {
        let caller = request.extensions_mut().remove::<Self>();
        caller.ok_or_else(|| SignatureError::Missing.into())
    }
}

/// The middleware of each resource.
pub async fn enforce<B: MessageBody>(
    access: Access,
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, Error> {
    if access == Access::Operator {
        check_operator(request.request())?;
    } else if access != Access::Open {
        let state = request.app_data::<web::Data<GatewayState>>().cloned();
        let state = state.ok_or_else(|| Problem::internal(&"a route without its state"))?;
        if let Some(caller) = admit(access, &mut request, &state).await? {
            request.extensions_mut().insert(caller);
        }
    }
    next.call(request).await
}

async fn admit(
    access: Access,
    request: &mut ServiceRequest,
    state: &GatewayState,
) -> Result<Option<Caller>, Problem> {
    let must_sign = matches!(access, Access::Signed(_) | Access::Named(_));
    let is_operator = request.conn_data::<Operator>().is_some();
    let signed = match authenticate(request, state) {
        Err(SignatureError::Missing) if !must_sign => None,
        signed => Some(signed?),
    };
    if let Some(signed) = &signed {
        refuse_revoked(signed, state)?;
        take_nonce(signed, state)?;
    }
    let gate = match access {
        Access::Gated(gate) | Access::Signed(gate) => Some(gate),
        Access::Open | Access::Named(_) | Access::Operator => None,
    };
    // The operator asks for himself, unless he asks as somebody.
    let passes = is_operator && signed.is_none();
    if let Some(gate) = gate.filter(|_| !passes) {
        permit(gate, signed.as_ref().map(|signed| signed.caller), state).await?;
    }
    match signed {
        Some(signed) => {
            let most = match access {
                Access::Named(most) => most,
                _ => MAX_BODY,
            };
            Ok(Some(prove_body(signed, most, request, state).await?))
        }
        None => Ok(None),
    }
}

/// Who signed. Errors: nobody did, or not as it should be.
fn authenticate(
    request: &ServiceRequest,
    state: &GatewayState,
) -> Result<SignedRequest, SignatureError> {
    let headers = request.headers();
    let fields = ReceivedFields {
        signature_input: field(headers, "signature-input")?,
        signature: field(headers, "signature")?,
        audience: field(headers, request::AUDIENCE)?,
        content_digest: field(headers, request::CONTENT_DIGEST)?,
        hn_digest: field(headers, request::HN_DIGEST)?,
    };
    let sent = request
        .extensions()
        .get::<SentPath>()
        .map(|sent| sent.0.clone());
    let target = Target {
        method: request.method().as_str(),
        path: sent.as_deref().unwrap_or(request.uri().path()),
        query: request.uri().query(),
    };
    let (own, now) = (&state.admission.callers.own, state.clock.now());
    let signed = request::verify(target, fields, own, now)?;
    if signed.proof == BodyProof::None && has_body(headers) {
        return Err(SignatureError::Components {
            covered: "no digest of the body".to_owned(),
            expected: format!("{} or {}", request::CONTENT_DIGEST, request::HN_DIGEST),
        });
    }
    Ok(signed)
}

/// A header that stands once, in readable characters.
fn field<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, SignatureError> {
    let mut values = headers.get_all(name);
    let first = values.next();
    if values.next().is_some() {
        return Err(SignatureError::Malformed(format!("{name} stands twice")));
    }
    let readable = |_| SignatureError::Malformed(format!("{name} is not ASCII"));
    first
        .map(|value| value.to_str().map_err(readable))
        .transpose()
}

fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH);
    headers.contains_key(TRANSFER_ENCODING) || length.is_some_and(|length| length != "0")
}

fn take_nonce(signed: &SignedRequest, state: &GatewayState) -> Result<(), Problem> {
    let known = state.standings.of(&signed.caller).known;
    let mut nonces = state
        .admission
        .callers
        .nonces
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let now = state.clock.now();
    nonces
        .admit(signed.caller, known, &signed.nonce, signed.created, now)
        .map_err(|error| {
            let code = match error {
                NonceError::Replayed => "signature_replayed",
                NonceError::BeforeStart => "signature_too_early",
                NonceError::Full => "too_many_signatures",
            };
            Problem::new(code, error.to_string())
        })
}

/// Whoever signs for a DID that was revoked is not believed to be its owner.
fn refuse_revoked(signed: &SignedRequest, state: &GatewayState) -> Result<(), Problem> {
    if state.revocations.is_revoked(&signed.caller) {
        let detail = format!(
            "{} is revoked: nothing that it signs is believed",
            signed.caller
        );
        return Err(Problem::new("caller_revoked", detail));
    }
    Ok(())
}

/// Asks the policy. Errors: it does not allow this caller.
async fn permit(gate: Gate, caller: Option<Did>, state: &GatewayState) -> Result<(), Problem> {
    let asks_owner = state.policy.with(|policy| policy.asks_owner(gate)) == Some(true);
    let held = match caller.filter(|_| asks_owner) {
        Some(caller) => {
            let hosting = state.hosting.clone();
            Some(super::blocking(move || Ok(hosting.bytes_of(&caller)?)).await?)
        }
        None => None,
    };
    let facts = policy::facts(caller, &state.standings, held, state.clock.now());
    let decision = state.policy.decide(gate, &facts);
    if decision.mode == Mode::Allow {
        return Ok(());
    }
    state.metrics.policy_denied(gate.name());
    let who = caller.map_or_else(|| "nobody".to_owned(), |caller| caller.to_string());
    info!(
        gate = gate.name(),
        caller = who,
        reason = decision.reason,
        "policy.deny"
    );
    if caller.is_none() {
        let detail = format!("the gate {gate} does not allow this to nobody in particular");
        return Err(Problem::new("signature_required", detail)
            .gate(gate.name())
            .remedy("sign it (RFC 9421): hn http METHOD URL"));
    }
    let detail = match decision.mode {
        Mode::Prompt => format!("the gate {gate} asks a person, whom this route cannot wait for"),
        Mode::Allow | Mode::Deny => format!("the gate {gate} does not allow this to you"),
    };
    Err(Problem::new("gate_denied", detail)
        .gate(gate.name())
        .remedy("the node's operator decides: hn mcp allow, hn policy gate set"))
}

async fn prove_body(
    signed: SignedRequest,
    most: usize,
    request: &mut ServiceRequest,
    state: &GatewayState,
) -> Result<Caller, Problem> {
    let mut caller = Caller {
        did: signed.caller,
        body: Bytes::new(),
        document: None,
        _permit: None,
    };
    match signed.proof {
        BodyProof::None => {}
        BodyProof::Document(digest) => caller.document = Some(digest),
        BodyProof::Content(field) => {
            let wrong = |error: request::ContentDigestError| {
                Problem::new("signature_digest", error.to_string())
            };
            let digest = ContentDigest::parse(&field).map_err(wrong)?;
            let (body, permit) = read_body(most, request, state).await?;
            digest.check(&body).map_err(wrong)?;
            (caller.body, caller._permit) = (body, Some(permit));
        }
    }
    Ok(caller)
}

/// Reads a body of at most `max` bytes whole. Errors: too large, compressed, too slow, too many at a time.
async fn read_body(
    max: usize,
    request: &mut ServiceRequest,
    state: &GatewayState,
) -> Result<(Bytes, OwnedSemaphorePermit), Problem> {
    let headers = request.headers();
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(Problem::new(
            "unsupported_encoding",
            "send the body as it is",
        ));
    }
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    let most = if headers.contains_key(TRANSFER_ENCODING) {
        max
    } else {
        length.unwrap_or(0)
    };
    let too_large = || Problem::new("body_too_large", format!("at most {max} bytes"));
    if most > max {
        return Err(too_large());
    }
    let bodies = Arc::clone(&state.admission.callers.bodies);
    let permit = u32::try_from(most)
        .ok()
        .and_then(|most| bodies.try_acquire_many_owned(most).ok());
    let permit = permit.ok_or_else(|| Problem::new("busy", "other bodies are being read"))?;
    let payload = std::mem::replace(request.parts_mut().1, Payload::None);
    let allowed = body_time(most);
    let reading = whole(payload, most);
    let body = tokio::time::timeout(allowed, reading).await;
    let body =
        body.map_err(|_| Problem::new("body_too_slow", "the body did not come in time"))??;
    Ok((body.ok_or_else(too_large)?, permit))
}

async fn whole(mut payload: Payload, most: usize) -> Result<Option<Bytes>, Problem> {
    let mut bytes = BytesMut::with_capacity(most.min(64 << 10));
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|error| Problem::new("bad_body", error.to_string()))?;
        if bytes.len() + chunk.len() > most {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes.freeze()))
}
