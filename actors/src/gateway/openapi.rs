//! The API described by itself: OpenAPI 3.1 at `/openapi.json`, browsable at `/docs`.

use actix_web::{HttpResponse, web};
use utoipa::OpenApi;
use utoipa_swagger_ui::SwaggerUi;

use super::problem::ProblemDocument;
use super::{
    artifact, batch, federate, forks, heads, presence, proof, read, revocation, status, watch,
};
use crate::pull::HeldLogHead;
use crate::watch::NewHead;

#[derive(OpenApi)]
#[openapi(
    info(title = "Human.Net node", description = "Signed logs, presences and artifacts of a federated node. Errors are RFC 9457 problem documents."),
    paths(
        status::healthz, status::readyz,
        presence::own, presence::of, presence::by_digest, presence::own_document, presence::resolve,
        federate::offers, federate::index, heads::peers, forks::forks, proof::get, watch::watch,
        artifact::get, batch::artifacts, revocation::tell,
    ),
    components(schemas(revocation::Told, HeldLogHead, NewHead, ProblemDocument<'static>))
)]
struct Api;

/// The description of the open routes: what `spec/openapi.json` holds.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

pub(super) fn routes(config: &mut web::ServiceConfig) {
    let ui = utoipa_swagger_ui::Config::from("/openapi.json");
    config
        .service(read("/openapi.json", description))
        .service(read("/docs", to_ui))
        .service(SwaggerUi::new("/docs/{_:.*}").config(ui));
}

async fn description() -> HttpResponse {
    HttpResponse::Ok().json(document())
}

async fn to_ui() -> HttpResponse {
    HttpResponse::PermanentRedirect()
        .insert_header(("location", "/docs/"))
        .finish()
}
