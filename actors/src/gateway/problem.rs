//! The one table from error code to HTTP status, and errors as RFC 9457 problem documents.
//!
//! What a caller reads is the code's title, a detail and a remedy; what went wrong inside stands in the log.

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use hn_protocol::canonical::JsonError;
use hn_protocol::request::SignatureError;
use serde::Serialize;

use crate::artifact_mirror::MirrorError;
use crate::catalog::ReadError;
use crate::federation_sync::SyncError;
use crate::index_federator::{AcceptError, FederateError};
use crate::log_recovery::RecoverError;
use crate::revocations::RevocationError;
use crate::roster::RosterError;

/// Code, status, title. Codes are stable; `spec/http.md` lists them.
pub const TABLE: &[(&str, u16, &str)] = &[
    ("bad_cursor", 400, "The cursor is not a decimal number"),
    ("bad_limit", 400, "The limit is not a number from 1 to 64"),
    ("bad_epoch", 400, "The epoch is not a decimal number"),
    ("bad_seq", 400, "The seq is not a decimal number"),
    ("bad_did", 400, "Not a did:hn"),
    (
        "bad_digest",
        400,
        "Not a digest of 64 lower-case hex digits",
    ),
    ("bad_alias", 400, "Not a name that this peer can have"),
    ("bad_right", 400, "No such right"),
    ("bad_invite", 400, "Not an invite's token"),
    ("bad_expiry", 400, "No life that an invite can have"),
    ("bad_tag", 400, "A tag is written KEY=VALUE"),
    ("bad_url", 400, "Not a plain http or https URL"),
    ("bad_body", 400, "The body cannot be read"),
    ("bad_path", 400, "Not a plain relative path"),
    (
        "unsupported_file_type",
        400,
        "Only regular files can be published",
    ),
    (
        "publish_without_public",
        400,
        "Publishing must say that it is public",
    ),
    ("invalid_utf8", 400, "The body is not UTF-8"),
    (
        "invalid_json",
        400,
        "The body is not JSON of the expected shape",
    ),
    ("duplicate_key", 400, "An object has one key twice"),
    (
        "number_out_of_range",
        400,
        "A number is not finite or above 2^53",
    ),
    ("nested_too_deep", 400, "The body is nested too deep"),
    (
        "malformed_document",
        400,
        "A member breaks a rule of its type",
    ),
    (
        "document_too_large",
        400,
        "The document is larger than its type allows",
    ),
    ("wrong_type", 400, "The document is of another type"),
    (
        "bad_signature_form",
        400,
        "The signature is missing or of another form",
    ),
    ("wrong_signature", 400, "The signature is not the signer's"),
    ("wrong_id", 400, "The id is not the document's digest"),
    ("own_peer", 400, "A node does not follow itself"),
    (
        "no_url",
        409,
        "No URL is known by which others reach this node",
    ),
    ("too_many_invites", 409, "Too many invites are open"),
    (
        "too_many_introductions",
        409,
        "Too many introductions are under way",
    ),
    ("bad_roster", 409, "The roster file cannot be read as it is"),
    (
        "log_forked",
        409,
        "The own key signed two histories; only a new epoch ends that",
    ),
    ("bad_failpoint", 400, "No such failpoint or action"),
    ("bad_gate", 400, "No such gate or mode"),
    ("bad_condition", 400, "The condition is none"),
    ("no_policy", 409, "No policy is in force; every gate denies"),
    ("signature_required", 401, "The route takes signed requests"),
    ("signature_malformed", 401, "The signature cannot be read"),
    ("signature_several", 401, "One signature is taken"),
    (
        "signature_components",
        401,
        "The signature covers too little, or too much",
    ),
    ("signature_algorithm", 401, "The algorithm is not ed25519"),
    ("signature_keyid", 401, "keyid is not a did:hn"),
    ("signature_nonce", 401, "The nonce has not the right form"),
    (
        "signature_time",
        401,
        "The signature is too old, or lies in the future",
    ),
    ("signature_audience", 401, "The request is for another node"),
    (
        "signature_invalid",
        401,
        "The signature is not the caller's",
    ),
    (
        "signature_digest",
        401,
        "The body is not what the signature covers",
    ),
    ("signature_replayed", 401, "The request was seen before"),
    (
        "signature_too_early",
        401,
        "The request was signed before this node's start",
    ),
    ("gate_denied", 403, "The policy does not allow this"),
    ("caller_revoked", 403, "The caller's DID is revoked"),
    (
        "own_publisher",
        403,
        "The own log grows over the socket alone",
    ),
    (
        "foreign_document",
        403,
        "A document is not the caller's own",
    ),
    (
        "foreign_origin",
        403,
        "A page of another origin changes nothing here",
    ),
    ("socket_only", 403, "Only over the node's Unix socket"),
    ("unknown_invite", 403, "No such invite"),
    ("invite_expired", 403, "The invite has expired"),
    ("invite_used", 403, "The invite is somebody else's by now"),
    ("unknown_friend", 404, "Nothing is allowed to this DID"),
    ("unknown_route", 404, "No such route"),
    ("unknown_publisher", 404, "No log of this publisher is held"),
    ("unknown_epoch", 404, "No such epoch of this log is held"),
    (
        "unknown_entry",
        404,
        "No such entry of this log can be proved here",
    ),
    ("unknown_presence", 404, "No such presence is held"),
    ("unknown_artifact", 404, "No such artifact is held"),
    ("unknown_peer", 404, "Not in the roster"),
    ("peer_unresolved", 404, "No URL of this peer is known"),
    (
        "unnamed_artifact",
        404,
        "No slice that was handed over names this artifact",
    ),
    ("not_forked", 404, "No fork of this log is known"),
    (
        "unknown_head",
        409,
        "The head is of neither log of the publisher",
    ),
    (
        "method_not_allowed",
        405,
        "The route does not take this method",
    ),
    ("body_too_slow", 408, "The body did not come in time"),
    (
        "nothing_published",
        409,
        "There is nothing to hand over yet",
    ),
    (
        "page_refused",
        409,
        "The documents break a rule of logs; nothing was taken",
    ),
    ("publisher_forked", 409, "The publisher signed two logs"),
    ("pruned", 410, "The log's beginning was pruned here"),
    ("revoked", 410, "The DID is revoked"),
    (
        "body_too_large",
        413,
        "The body is larger than the route takes",
    ),
    (
        "too_many_entries",
        413,
        "More entries than one request takes",
    ),
    (
        "unsupported_encoding",
        415,
        "Compressed bodies are not taken",
    ),
    (
        "unsupported_media_type",
        415,
        "The route takes another media type",
    ),
    ("bad_range", 416, "No such range"),
    ("wrong_artifact", 422, "The bytes are not the artifact's"),
    ("misdirected", 421, "The Host is not this node's"),
    ("rate_limited", 429, "Too many requests"),
    ("internal", 500, "The node failed to answer"),
    ("artifact_mismatch", 502, "What came is not the artifact"),
    ("source_failed", 502, "No peer gave the artifact"),
    ("host_refused", 502, "The host does not take the log"),
    ("host_failed", 502, "The host did not take the log"),
    (
        "too_many_signatures",
        503,
        "Too many signed requests at a time",
    ),
    (
        "requests_full",
        503,
        "Too many requests wait for the operator",
    ),
    ("busy", 503, "The node has enough to do"),
    ("restarting", 503, "A part of the node is being restarted"),
    (
        "log_recovering",
        503,
        "The own log is being recovered; nothing is signed on top of it",
    ),
    ("storage_full", 507, "The disk is full"),
    ("quota_exceeded", 507, "The publisher has no more room here"),
];

/// How long a caller should wait after a 503 or 429, in seconds: restarts take less.
const RETRY_SECONDS: u32 = 1;

/// What a 401 asks for (RFC 9110, 11.6.1). HTTP message signatures have no scheme of their own.
const CHALLENGE: &str = "Signature algorithm=\"ed25519\"";

/// The ways out of a recovery.
const RECOVERY: &str = "hn status names who has not answered; hn mcp log resume asks them again, hn mcp log resume --accept-loss goes on with what is here, hn mcp log reset begins a new log";

/// What there is to do for somebody whose DID has ended.
pub(super) const REVOKED: &str =
    "it is final; make another identity by hn id create ALIAS, and choose it by hn id use ALIAS";

/// An error as the caller sees it.
#[derive(Debug, Clone)]
pub struct Problem {
    code: &'static str,
    status: StatusCode,
    title: &'static str,
    // A box each: problems travel in every result of the gateway.
    detail: Box<str>,
    remedy: Option<Box<str>>,
    first_cursor: Option<u64>,
    gate: Option<&'static str>,
    reason: Option<&'static str>,
}

/// RFC 9457, with `code`, `remedy` and `first_cursor` as extension members.
#[derive(Serialize, utoipa::ToSchema)]
pub struct ProblemDocument<'a> {
    /// `urn:hn:problem:<code>`.
    #[serde(rename = "type")]
    kind: String,
    /// What the code means.
    title: &'a str,
    /// The HTTP status.
    status: u16,
    /// What was wrong this time.
    detail: &'a str,
    /// The stable code.
    code: &'a str,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'a str>,
    /// Where the log begins here, when what was asked for is pruned; decimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_cursor: Option<String>,
    /// The gate that does not allow it.
    #[serde(skip_serializing_if = "Option::is_none")]
    gate: Option<&'a str>,
    /// The rule that a document breaks.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

impl Problem {
    /// A problem of the table. A code that is not in it is `internal`, which a test of the table forbids.
    #[must_use]
    pub fn new(code: &'static str, detail: impl Into<String>) -> Self {
        let found = TABLE.iter().find(|(known, ..)| *known == code);
        let (code, status, title) =
            found
                .copied()
                .unwrap_or(("internal", 500, "The node failed to answer"));
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self {
            code,
            status,
            title,
            detail: detail.into().into_boxed_str(),
            remedy: None,
            first_cursor: None,
            gate: None,
            reason: None,
        }
    }

    /// With the gate that does not allow it.
    #[must_use]
    pub const fn gate(mut self, gate: &'static str) -> Self {
        self.gate = Some(gate);
        self
    }

    /// With the rule that a document breaks.
    #[must_use]
    pub const fn reason(mut self, code: &'static str) -> Self {
        self.reason = Some(code);
        self
    }

    /// With where the log begins here.
    #[must_use]
    pub fn first_cursor(mut self, cursor: u64) -> Self {
        self.first_cursor = Some(cursor);
        self
    }

    /// With what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into().into_boxed_str());
        self
    }

    /// What happened inside goes to the log, not to the caller.
    #[must_use]
    pub fn internal(error: &dyn fmt::Display) -> Self {
        tracing::error!(%error, "a request failed");
        Self::new("internal", "see the log of the node")
    }

    /// A part of the node is away for a moment.
    #[must_use]
    pub fn restarting() -> Self {
        Self::new("restarting", "ask again in a second; nothing is done twice")
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let document = ProblemDocument {
            kind: format!("urn:hn:problem:{}", self.code),
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
            remedy: self.remedy.as_deref(),
            first_cursor: self.first_cursor.map(|cursor| cursor.to_string()),
            gate: self.gate,
            reason: self.reason,
        };
        let mut response = HttpResponse::build(self.status).json(document);
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if matches!(self.status.as_u16(), 429 | 503) || self.code == "signature_too_early" {
            headers.insert(RETRY_AFTER, HeaderValue::from(RETRY_SECONDS));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(CHALLENGE));
        }
        response
    }
}

impl From<JsonError> for Problem {
    fn from(error: JsonError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<SignatureError> for Problem {
    fn from(error: SignatureError) -> Self {
        let problem = Self::new(error.code(), error.to_string());
        match error {
            SignatureError::Missing => problem.remedy("sign it (RFC 9421): hn http METHOD URL"),
            _ => problem,
        }
    }
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::UnknownPublisher(_) => Self::new("unknown_publisher", error.to_string()),
            ReadError::UnknownEpoch(_) => Self::new("unknown_epoch", error.to_string()),
            ReadError::Pruned { first_cursor } => {
                Self::new("pruned", error.to_string()).first_cursor(first_cursor)
            }
            ReadError::Io(_) => Self::internal(&error),
        }
    }
}

impl From<FederateError> for Problem {
    fn from(error: FederateError) -> Self {
        let detail = error.to_string();
        match error {
            FederateError::Document(inner) => match inner.code() {
                "bad_path" => Self::new("bad_path", detail),
                _ => Self::new("malformed_document", detail),
            },
            FederateError::Full(_) => full(detail),
            FederateError::Recovering(_) => Self::new("log_recovering", detail).remedy(RECOVERY),
            FederateError::Revoked(_) => Self::new("revoked", detail).remedy(REVOKED),
            FederateError::Failed(_) => Self::internal(&detail),
            FederateError::Restarting => Self::restarting(),
        }
    }
}

impl From<RevocationError> for Problem {
    fn from(error: RevocationError) -> Self {
        let detail = error.to_string();
        match error {
            RevocationError::Document(inner) => Self::new(inner.code(), detail),
            RevocationError::Unknown(_) => Self::new("unknown_publisher", detail),
            RevocationError::Full => full(detail),
            RevocationError::Io(error) => error.into(),
        }
    }
}

impl From<AcceptError> for Problem {
    fn from(error: AcceptError) -> Self {
        let detail = error.to_string();
        match error {
            AcceptError::NotForked(_) => {
                Self::new("not_forked", detail).remedy("hn mcp federate forks shows which are")
            }
            AcceptError::UnknownHead { .. } => Self::new("unknown_head", detail)
                .remedy("name one of the two documents; hn mcp federate forks shows them"),
            AcceptError::Federate(error) => error.into(),
        }
    }
}

impl From<RecoverError> for Problem {
    fn from(error: RecoverError) -> Self {
        match error {
            RecoverError::Forked(_) => {
                Self::new("log_forked", error.to_string()).remedy("hn mcp log reset")
            }
            RecoverError::Federate(error) => error.into(),
            RecoverError::Restarting => Self::restarting(),
        }
    }
}

impl From<SyncError> for Problem {
    fn from(error: SyncError) -> Self {
        let detail = error.to_string();
        match error {
            SyncError::UnknownPeer(_) => {
                Self::new("unknown_peer", detail).remedy("hn mcp federate list shows the roster")
            }
            SyncError::Unresolved(_) => Self::new("peer_unresolved", detail),
            SyncError::Ourselves(_) => Self::new("own_peer", detail),
            SyncError::Roster(RosterError::Io { error, .. }) => error.into(),
            SyncError::Roster(_) => {
                Self::new("bad_roster", detail).remedy("mend config/federation.toml first")
            }
            SyncError::Restarting => Self::restarting(),
        }
    }
}

impl From<MirrorError> for Problem {
    fn from(error: MirrorError) -> Self {
        let detail = error.to_string();
        match error {
            MirrorError::NoSource | MirrorError::Absent => Self::new("unknown_artifact", detail),
            MirrorError::Full(_) => full(detail),
            MirrorError::Failed(_) => Self::internal(&detail),
            MirrorError::Digest { .. }
            | MirrorError::Size(_)
            | MirrorError::Length { .. }
            | MirrorError::Range { .. }
            | MirrorError::Answer(_) => {
                Self::new("artifact_mismatch", detail).remedy("name another holder by --from")
            }
            MirrorError::Fetch(_) => Self::new("source_failed", detail),
        }
    }
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                full(error.to_string())
            }
            _ => Self::internal(&error),
        }
    }
}

impl From<actix::MailboxError> for Problem {
    fn from(_: actix::MailboxError) -> Self {
        Self::restarting()
    }
}

fn full(detail: String) -> Problem {
    Problem::new("storage_full", detail)
        .remedy("free space on the disk of the home, or lower storage.min_free")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_code_stands_once_with_a_real_status() {
        let codes: BTreeSet<_> = TABLE.iter().map(|(code, ..)| code).collect();
        assert_eq!(codes.len(), TABLE.len());
        for (code, status, title) in TABLE {
            assert!(
                StatusCode::from_u16(*status)
                    .is_ok_and(|s| s.is_client_error() || s.is_server_error()),
                "{code}"
            );
            assert!(!title.is_empty());
        }
    }

    #[test]
    fn every_code_in_the_gateway_is_in_the_table() {
        let sources = [
            include_str!("access.rs"),
            include_str!("admin.rs"),
            include_str!("artifact.rs"),
            include_str!("batch.rs"),
            include_str!("federate.rs"),
            include_str!("forks.rs"),
            include_str!("friends.rs"),
            include_str!("guard.rs"),
            include_str!("heads.rs"),
            include_str!("hosted.rs"),
            include_str!("mod.rs"),
            include_str!("own_log.rs"),
            include_str!("page.rs"),
            include_str!("policy.rs"),
            include_str!("presence.rs"),
            include_str!("problem.rs"),
            include_str!("proof.rs"),
            include_str!("publish.rs"),
            include_str!("push.rs"),
            include_str!("revocation.rs"),
            include_str!("storage.rs"),
            include_str!("tar_stream.rs"),
        ];
        for source in sources {
            for used in source
                .split("Problem::new(\"")
                .skip(1)
                .chain(source.split("Self::new(\"").skip(1))
            {
                let code = used.split('"').next().unwrap_or_default();
                assert!(TABLE.iter().any(|(known, ..)| *known == code), "{code}");
            }
        }
    }

    #[test]
    fn every_json_error_has_its_problem() {
        for error in [
            JsonError::Utf8(0),
            JsonError::Syntax(String::new()),
            JsonError::DuplicateKey(String::new()),
            JsonError::Number,
            JsonError::Depth,
        ] {
            assert_eq!(Problem::from(error).status, StatusCode::BAD_REQUEST);
        }
    }
}
