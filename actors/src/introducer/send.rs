//! The one request of an introduction, and what its answer means.

use bytes::Bytes;
use hn_protocol::canonical;
use hn_protocol::did::Did;
use hn_protocol::invite::{BaseUrl, Introducing, Reply};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::fetch::{Fetch, FetchError, Trust};
use crate::pull::route;

/// The most bytes of an answer: it is one word.
const MAX_ANSWER: usize = 16 * 1024;

/// The body of `POST /federate/requests`.
#[derive(Debug, Serialize)]
struct IntroductionBody<'a> {
    token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
}

#[derive(Deserialize)]
struct AnswerBody {
    status: String,
}

/// Introduces us to the inviter; `own_url` is where we are, as far as we know.
pub async fn introduce(fetch: &Fetch, one: &Introducing, own_url: Option<&BaseUrl>) -> Reply {
    let body = IntroductionBody {
        token: one.token.to_string(),
        url: own_url.map(BaseUrl::as_str),
    };
    let body = match canonical::to_vec(&body) {
        Ok(body) => Bytes::from(body),
        Err(error) => return Reply::Failed(error.to_string()),
    };
    let base: Url = match one.url.as_str().parse() {
        Ok(base) => base,
        Err(error) => return Reply::Refused(format!("the invite's URL: {error}")),
    };
    match send_introduction(fetch, &base, one.did, body).await {
        Ok(answer) => understood(&answer),
        Err(error) => refused(error),
    }
}

/// POSTs `body`, signed, to the inviter at `base`, who is `audience`; gives the body of a success.
async fn send_introduction(
    fetch: &Fetch,
    base: &Url,
    audience: Did,
    body: Bytes,
) -> Result<Bytes, FetchError> {
    let url = route(base, &["federate", "requests"]);
    let fetch = fetch.to(audience);
    // The operator pasted the invite, as he types any other URL of the roster.
    let sending = fetch.post(&url, Trust::Operator, "application/json", body, MAX_ANSWER);
    Ok(sending.await?.body)
}

/// What a success says. Anything else than the two words, such as the page of some other server, decides nothing.
fn understood(answer: &[u8]) -> Reply {
    let answer = canonical::from_slice::<AnswerBody>(answer);
    match answer.as_ref().map(|answer| answer.status.as_str()) {
        Ok("friend") => Reply::Friend,
        Ok("pending") => Reply::Pending,
        _ => Reply::Failed("the answer is not one of a node".to_owned()),
    }
}

/// Whether an error is the inviter's decision, or may be over when we try again.
fn refused(error: FetchError) -> Reply {
    let said = error.to_string();
    match error {
        // 401: a clock, or a node that has just started; 408, 425, 429: not now.
        FetchError::Status {
            status: 401 | 408 | 425 | 429,
            ..
        } => Reply::Failed(said),
        FetchError::Status { status, .. } if (400..500).contains(&status) => Reply::Refused(said),
        FetchError::Url(_) => Reply::Refused(said),
        _ => Reply::Failed(said),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_of_a_node_decides() {
        assert_eq!(understood(br#"{"status":"friend"}"#), Reply::Friend);
        assert_eq!(
            understood(br#"{"more":1,"status":"pending"}"#),
            Reply::Pending
        );
        for other in [&b"<html>"[..], b"", b"{}", br#"{"status":"welcome"}"#] {
            assert!(matches!(understood(other), Reply::Failed(_)), "{other:?}");
        }
    }

    #[test]
    fn a_no_is_final_and_what_may_pass_is_not() {
        let status = |status| FetchError::Status {
            status,
            detail: ": there is no such invite".to_owned(),
        };
        for code in [400, 403, 404, 405, 410, 421] {
            let Reply::Refused(reason) = refused(status(code)) else {
                unreachable!("{code} is a no")
            };
            assert!(reason.contains("no such invite"), "{reason}");
        }
        for code in [401, 408, 425, 429, 500, 502, 503, 507] {
            assert!(
                matches!(refused(status(code)), Reply::Failed(_)),
                "{code} may pass"
            );
        }
        let offline = refused(FetchError::Connect("refused".to_owned()));
        assert!(matches!(offline, Reply::Failed(_)));
        assert!(matches!(
            refused(FetchError::Redirect(302)),
            Reply::Failed(_)
        ));
    }
}
