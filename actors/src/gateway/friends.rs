//! Friends: who may do what here, invitations, and those who came with one.
//!
//! [`introduce`] is for another node, whose signature is checked before; everything else is the operator's.

use std::time::Duration;

use actix::Recipient;
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use hn_protocol::canonical;
use hn_protocol::did::Did;
use hn_protocol::invite::{
    BaseUrl, FriendRequest, Introduced, Introduction, Invite, InviteRefusal, InviteToken, MAX_LIFE,
    Stage,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use url::Url;

use super::access::Caller;
use super::admin::{body, check_operator};
use super::problem::Problem;
use super::{GatewayState, other_methods, parse_did};
use crate::federation_sync::{FriendsView, ListFriends, PutFriend, RemoveFriend};
use crate::introducer::{
    ForgetIntroduction, Introduce, IntroduceError, IntroductionBook, IntroductionView,
};
use crate::invites::{InviteError, Invites};
use crate::own_url::{NoUrl, OwnUrl};
use crate::roster::{Right, RosterFriend};

/// The most bytes of an introduction: a token, a URL of 512 bytes, and room.
pub const MAX_INTRODUCTION: usize = 2048;
/// How long an invite lives where nobody says otherwise: people answer a message within a month.
const LIFE_DAYS: u64 = 30;
/// Seconds of a day.
const DAY: u64 = 86_400;
/// Requests that have a next step of their own; the rest is counted.
const SHOWN: usize = 8;

/// What the routes of friends use.
#[derive(Clone)]
pub struct FriendLinks {
    /// Invitations made, and who came.
    pub invites: Invites,
    /// Invitations taken, and what came of them.
    pub introductions: IntroductionBook,
    /// Where this node is.
    pub own_url: OwnUrl,
    /// Set what a DID may do.
    pub put: Recipient<PutFriend>,
    /// Take it away.
    pub remove: Recipient<RemoveFriend>,
    /// Every friend.
    pub list: Recipient<ListFriends>,
    /// Introduce this node to an inviter.
    pub introduce: Recipient<Introduce>,
    /// End an introduction.
    pub forget: Recipient<ForgetIntroduction>,
}

/// The operator's routes.
pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(super::read("/admin/friends", list))
        .service(
            web::resource("/admin/friends/{did}")
                .route(web::get().to(get))
                .route(web::head().to(get))
                .route(web::put().to(put))
                .route(web::delete().to(remove))
                .default_service(other_methods("GET, HEAD, PUT, DELETE")),
        )
        .service(
            web::resource("/admin/invites")
                .route(web::post().to(invite))
                .route(web::delete().to(withdraw))
                .default_service(other_methods("POST, DELETE")),
        );
}

/// Who comes with an invite.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IntroductionBody {
    /// The invite's token: 16 bytes, unpadded base64url.
    #[schema(pattern = "^[A-Za-z0-9_-]{21}[AQgw]$")]
    token: String,
    /// The base URL of the caller's own node, for people to look at.
    #[schema(format = "base-url")]
    url: Option<String>,
}

/// Comes with an invite, and asks to be let in: the operator decides what the caller may do.
#[utoipa::path(post, path = "/federate/requests", tag = "federate", request_body(content = IntroductionBody, content_type = "application/json"), responses(
    (status = 200, description = "The caller is a friend already", body = RequestStatus),
    (status = 202, description = "The operator is asked", body = RequestStatus)))]
pub async fn request(
    request: HttpRequest,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    let caller = Caller::of(&request)?;
    if caller.document.is_some() {
        return Err(Problem::new(
            "signature_digest",
            "this route takes content-digest",
        ));
    }
    introduce(&state, caller.did, caller.body.clone()).await
}

/// What became of a request.
#[derive(Serialize, utoipa::ToSchema)]
pub struct RequestStatus {
    /// `pending` or `friend`.
    status: &'static str,
}

/// `caller`, whom a signature has proved to be that DID, comes with an invite. 202 when the operator is asked, 200 when they
/// are a friend already; kept before it is answered.
async fn introduce(
    state: &GatewayState,
    caller: Did,
    body: Bytes,
) -> Result<HttpResponse, Problem> {
    let said = introduction(&body)?;
    if caller == state.catalog.own() {
        return Err(Problem::new(
            "own_peer",
            format!("{caller} is this node itself"),
        ));
    }
    let (invites, now) = (state.friends.invites.clone(), state.clock.now());
    let taken = super::blocking(move || Ok(invites.introduce(caller, &said, now)?)).await?;
    Ok(match taken {
        Introduced::Pending => HttpResponse::Accepted().json(RequestStatus { status: "pending" }),
        Introduced::Friend => HttpResponse::Ok().json(RequestStatus { status: "friend" }),
    })
}

/// Reads the body of an introduction. Errors: too large, not JSON of that shape, no token, no plain base URL.
fn introduction(body: &[u8]) -> Result<Introduction, Problem> {
    if body.len() > MAX_INTRODUCTION {
        let detail = format!("at most {MAX_INTRODUCTION} bytes");
        return Err(Problem::new("body_too_large", detail));
    }
    let body = canonical::parse(body)?;
    // serde would take an array of the members as well.
    let body = Some(body).filter(Value::is_object);
    let body = body.ok_or_else(|| Problem::new("invalid_json", "the body is no object"))?;
    let body: IntroductionBody = serde_json::from_value(body)
        .map_err(|error| Problem::new("invalid_json", error.to_string()))?;
    let url = body.url.as_deref().map(base_url).transpose()?;
    let token = token(&body.token)?;
    Ok(Introduction { token, url })
}

fn base_url(text: &str) -> Result<BaseUrl, Problem> {
    text.parse()
        .map_err(|error| Problem::new("bad_url", format!("the URL: {error}")))
}

fn token(text: &str) -> Result<InviteToken, Problem> {
    text.parse()
        .map_err(|error| Problem::new("bad_invite", format!("the token: {error}")))
}

async fn friends(state: &GatewayState) -> Result<FriendsView, Problem> {
    state.ask(&state.friends.list, ListFriends).await
}

async fn list(
    request: HttpRequest,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    check_operator(&request)?;
    let FriendsView {
        friends,
        roster_error,
    } = friends(&state).await?;
    Ok(HttpResponse::Ok().json(json!({
        "friends": friends,
        "requests": requests(&state),
        "introductions": state.friends.introductions.list(),
        "invites_open": state.friends.invites.open_count(state.clock.now()),
        "roster_error": roster_error,
    })))
}

async fn get(
    request: HttpRequest,
    did: web::Path<String>,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    check_operator(&request)?;
    let did = parse_did(&did)?;
    let known = friends(&state).await?.friends;
    let friend = known.into_iter().find(|friend| friend.did == did);
    let friend = friend.ok_or_else(|| {
        Problem::new("unknown_friend", format!("{did} may do nothing here"))
            .remedy(format!("hn mcp allow {did} RIGHTS"))
    })?;
    Ok(HttpResponse::Ok().json(json!({ "friend": friend })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FriendBody {
    rights: Vec<String>,
    #[serde(default)]
    friend: bool,
}

async fn put(
    request: HttpRequest,
    did: web::Path<String>,
    state: web::Data<GatewayState>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let did = parse_did(&did)?;
    let asked: Option<FriendBody> = body(&request, payload).await?;
    let asked = asked.ok_or_else(|| Problem::new("invalid_json", "the body names the `rights`"))?;
    let rights = asked.rights.iter().map(|right| right.parse::<Right>());
    let friend = RosterFriend {
        did,
        rights: rights
            .collect::<Result<_, _>>()
            .map_err(|error| Problem::new("bad_right", error.to_string()))?,
        friend: asked.friend,
    };
    let message = PutFriend {
        friend: friend.clone(),
    };
    state.ask(&state.friends.put, message).await??;
    let settled = settle(&state, did).await?;
    Ok(HttpResponse::Ok().json(json!({ "friend": friend, "request": settled })))
}

/// Takes every right away, and dismisses a request that waits. What was not there needs no taking.
async fn remove(
    request: HttpRequest,
    did: web::Path<String>,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    check_operator(&request)?;
    let did = parse_did(&did)?;
    let removed = state
        .ask(&state.friends.remove, RemoveFriend { did })
        .await??;
    let settled = settle(&state, did).await?;
    let nobody = RosterFriend {
        did,
        rights: Default::default(),
        friend: false,
    };
    Ok(
        HttpResponse::Ok()
            .json(json!({ "friend": nobody, "removed": removed, "request": settled })),
    )
}

/// After the roster is durable: a crash between leaves a request that a friend's standing hides.
async fn settle(state: &GatewayState, did: Did) -> Result<bool, Problem> {
    let invites = state.friends.invites.clone();
    super::blocking(move || Ok(invites.settle(&did)?)).await
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct InviteBody {
    expires_days: Option<u64>,
}

/// Makes an invite: the only time that its secret is told.
async fn invite(
    request: HttpRequest,
    state: web::Data<GatewayState>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let asked: InviteBody = body(&request, payload).await?;
    let days = asked.expires_days.unwrap_or(LIFE_DAYS);
    let most = MAX_LIFE.as_secs() / DAY;
    if !(1..=most).contains(&days) {
        let detail = format!("an invite lives 1 to {most} days, not {days}");
        return Err(Problem::new("bad_expiry", detail));
    }
    let url = state.friends.own_url.find()?;
    let (invites, now) = (state.friends.invites.clone(), state.clock.now());
    let life = Duration::from_secs(days * DAY);
    let made = super::blocking(move || Ok(invites.create(life, now)?)).await?;
    let invite = Invite {
        did: state.catalog.own(),
        url,
        token: made.token,
    };
    Ok(HttpResponse::Ok().json(json!({
        "invite": invite.to_string(),
        "did": invite.did,
        "url": invite.url,
        "expires_at": made.expires_at,
    })))
}

/// Takes back the invites that nobody came with.
async fn withdraw(
    request: HttpRequest,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    check_operator(&request)?;
    let (invites, now) = (state.friends.invites.clone(), state.clock.now());
    let withdrawn = super::blocking(move || Ok(invites.withdraw(now)?)).await?;
    Ok(HttpResponse::Ok().json(json!({ "withdrawn": withdrawn })))
}

/// What following by an invite takes beside the peer: where to introduce ourselves, and with what. Errors: a bad token, and
/// no URL, or none that is plain.
pub fn invited(
    url: Option<&Url>,
    secret: Option<&str>,
) -> Result<Option<(BaseUrl, InviteToken)>, Problem> {
    let Some(secret) = secret else {
        return Ok(None);
    };
    let url = url.ok_or_else(|| Problem::new("bad_url", "an invite comes with its URL"))?;
    Ok(Some((base_url(url.as_str())?, token(secret)?)))
}

/// Introduces us to `peer`, who is in the roster; what they say is no part of the answer. Nothing without an invite.
pub async fn introduce_us(
    state: &GatewayState,
    peer: Did,
    invited: Option<(BaseUrl, InviteToken)>,
) -> Result<Option<IntroductionView>, Problem> {
    let Some((url, token)) = invited else {
        return Ok(None);
    };
    let message = Introduce { peer, url, token };
    Ok(Some(state.ask(&state.friends.introduce, message).await??))
}

/// Ends the introduction to a peer that is not to be followed any more.
pub async fn forget(state: &GatewayState, peer: Did) -> Result<(), Problem> {
    let message = ForgetIntroduction { peer };
    state.ask(&state.friends.forget, message).await??;
    Ok(())
}

/// Who waits for the operator.
pub fn requests(state: &GatewayState) -> Vec<Value> {
    let requests = state.friends.invites.requests();
    let shown = |request: &FriendRequest| {
        json!({
            "did": request.did,
            "url": request.url,
            "since": request.since,
            "invite_made_at": request.invite_made_at,
        })
    };
    requests.iter().map(shown).collect()
}

/// The members of `hn status` that are about friends. An actor that is away leaves its part out.
pub async fn status(state: &GatewayState, into: &mut Value) {
    let friends = friends(state).await.unwrap_or_default().friends;
    into["friends"] = json!(friends);
    into["requests"] = json!(requests(state));
    into["introductions"] = json!(state.friends.introductions.list());
}

/// What the operator could do about them, each with its command.
pub fn next_steps(state: &GatewayState) -> Vec<Value> {
    let step = |text: String, command: String| json!({ "text": text, "command": command });
    let mut steps = Vec::new();
    let requests = state.friends.invites.requests();
    for request in requests.iter().take(SHOWN) {
        let did = request.did;
        let text = format!(
            "{} came with an invite and waits; say what they may do, or dismiss them by the right `none` without --friend",
            did.short()
        );
        let command = format!("hn mcp allow {did} RIGHTS --friend");
        steps.push(step(text, command));
    }
    if let Some(more) = requests.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        steps.push(step(format!("{more} more wait"), "hn status".into()));
    }
    let introductions = state.friends.introductions.list();
    let refused = introductions.iter().filter(|i| i.state == Stage::Refused);
    for one in refused.take(SHOWN) {
        let reason = one.reason.as_deref().unwrap_or("no reason is known");
        let text = format!(
            "{} did not take the introduction ({reason}): ask them for a new invite",
            one.did.short()
        );
        steps.push(step(text, "hn mcp federate add INVITE".into()));
    }
    let troubles = [
        state.friends.invites.trouble(),
        state.friends.introductions.trouble(),
    ];
    for trouble in troubles.into_iter().flatten() {
        steps.push(step(trouble.to_owned(), "hn mcp invite".into()));
    }
    steps
}

impl From<InviteError> for Problem {
    fn from(error: InviteError) -> Self {
        let refusal = match error {
            InviteError::Refused(refusal) => refusal,
            InviteError::Io(error) => return error.into(),
        };
        let detail = refusal.to_string();
        let ask = "ask whoever invited you for a new one";
        match refusal {
            InviteRefusal::Unknown => Self::new("unknown_invite", detail).remedy(ask),
            InviteRefusal::Expired => Self::new("invite_expired", detail).remedy(ask),
            InviteRefusal::Used => Self::new("invite_used", detail).remedy(ask),
            InviteRefusal::TooManyRequests => Self::new("requests_full", detail),
            InviteRefusal::TooManyInvites => Self::new("too_many_invites", detail)
                .remedy("hn mcp invite --withdraw takes back those that nobody came with"),
        }
    }
}

impl From<IntroduceError> for Problem {
    fn from(error: IntroduceError) -> Self {
        match error {
            IntroduceError::Full(error) => Self::new("too_many_introductions", error.to_string())
                .remedy("hn status shows them; hn mcp federate remove DID ends one"),
            IntroduceError::Io(error) => error.into(),
        }
    }
}

impl From<NoUrl> for Problem {
    fn from(error: NoUrl) -> Self {
        let detail = error.to_string();
        let problem = Self::new("no_url", detail);
        match error {
            NoUrl::Unknown => problem.remedy("hn mcp serve --public-url URL, then try again"),
            NoUrl::Form { .. } => problem.remedy("hn mcp serve with another --public-url"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use actix_web::ResponseError;

    const TOKEN: &str = "AAAAAAAAAAAAAAAAAAAAAA";

    fn refused(body: &str) -> String {
        let problem = introduction(body.as_bytes()).unwrap_err();
        assert!(problem.status_code().is_client_error(), "{body}");
        problem.to_string()
    }

    #[test]
    fn an_introduction_is_read_strictly() {
        let said = introduction(
            format!(r#"{{"token":"{TOKEN}","url":"https://bob.example/"}}"#).as_bytes(),
        );
        let said = said.unwrap();
        assert_eq!(said.url.unwrap().as_str(), "https://bob.example");
        assert!(introduction(format!(r#"{{"token":"{TOKEN}"}}"#).as_bytes()).is_ok());

        for (body, code) in [
            (String::new(), "invalid_json"),
            ("[]".into(), "invalid_json"),
            (format!(r#"["{TOKEN}",null]"#), "invalid_json"),
            ("{}".into(), "invalid_json"),
            (r#"{"token":7}"#.into(), "invalid_json"),
            (format!(r#"{{"token":"{TOKEN}","a":1}}"#), "invalid_json"),
            (
                format!(r#"{{"token":"{TOKEN}","token":"{TOKEN}"}}"#),
                "duplicate_key",
            ),
            (r#"{"token":"short"}"#.into(), "bad_invite"),
            (r#"{"token":"AAAAAAAAAAAAAAAAAAAAAB"}"#.into(), "bad_invite"),
            (
                format!(r#"{{"token":"{TOKEN}","url":"javascript:alert(1)"}}"#),
                "bad_url",
            ),
            (
                format!(r#"{{"token":"{TOKEN}","url":"https://a/\u001b[2J"}}"#),
                "bad_url",
            ),
            (
                format!(r#"{{"token":"{TOKEN}","url":"https://u:p@a"}}"#),
                "bad_url",
            ),
            (
                format!(
                    r#"{{"token":"{TOKEN}","url":"https://a/{}"}}"#,
                    "x".repeat(503)
                ),
                "bad_url",
            ),
            ("[".repeat(MAX_INTRODUCTION + 1), "body_too_large"),
            ("[".repeat(MAX_INTRODUCTION), "nested_too_deep"),
        ] {
            let said = refused(&body);
            assert!(said.starts_with(&format!("{code}:")), "{body}: {said}");
        }
    }

    #[test]
    fn a_refused_invite_is_a_403_that_says_what_to_do() {
        for refusal in [
            InviteRefusal::Unknown,
            InviteRefusal::Expired,
            InviteRefusal::Used,
        ] {
            let problem = Problem::from(InviteError::from(refusal));
            assert_eq!(problem.status_code().as_u16(), 403, "{refusal}");
        }
        let full = Problem::from(InviteError::from(InviteRefusal::TooManyRequests));
        assert_eq!(full.status_code().as_u16(), 503, "it may pass");
    }
}
