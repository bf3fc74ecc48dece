//! The own log handed over to a node that hosts it.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use serde_json::json;
use url::Url;

use super::admin::body;
use super::problem::Problem;
use super::{GatewayState, other_methods};
use crate::fetch::FetchError;
use crate::log_recovery::AskHolders;
use crate::push::{Push, PushError};
use crate::roster::is_base_url;

/// The operator's routes.
pub fn routes(config: &mut web::ServiceConfig) {
    config.service(
        web::resource("/admin/log/push")
            .route(web::post().to(push))
            .default_service(other_methods("POST")),
    );
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PushBody {
    url: Option<Url>,
}

async fn push(
    request: HttpRequest,
    state: web::Data<GatewayState>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let asked: PushBody = body(&request, payload).await?;
    let url = asked.url.filter(is_base_url);
    let url =
        url.ok_or_else(|| Problem::new("bad_url", "name the node that is to host the log"))?;
    super::revocation::check_own(&state)?;
    // A log that was restored goes nowhere before its holders were asked: they may have more of it.
    state.ask(&state.links.ask_holders, AskHolders).await?;
    let push = Push {
        fetch: state.fetch.clone(),
        catalog: state.catalog.clone(),
        artifacts: state.artifacts.clone(),
    };
    let pushed = push.run(&url).await?;
    let mut answer = json!(pushed);
    answer["url"] = json!(url);
    Ok(HttpResponse::Ok().json(answer))
}

impl From<PushError> for Problem {
    fn from(error: PushError) -> Self {
        let detail = error.to_string();
        match error {
            PushError::Fetch(FetchError::Status {
                status: 401 | 403, ..
            }) => Self::new("host_refused", detail)
                .remedy("ask the host's operator for hn mcp allow DID none --friend"),
            PushError::Fetch(_) | PushError::Answer(_) => Self::new("host_failed", detail),
            PushError::Read(error) => error.into(),
            PushError::Io(error) => error.into(),
            PushError::Nothing => Self::new("nothing_published", detail),
        }
    }
}
