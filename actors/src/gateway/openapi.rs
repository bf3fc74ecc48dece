//! The API described by itself: OpenAPI 3.1 at `/openapi.json`, browsable at `/docs`.
//!
//! Handlers say what they answer when all is well, and what is special about them. What every route has in common is
//! added here from the tables that the node works by: who may ask ([`access::TABLE`]), the form of parameters, and the
//! problems that each kind of route answers.

use actix_web::{HttpResponse, web};
use serde_json::{Map, Value, json};
use utoipa::OpenApi;
use utoipa_swagger_ui::SwaggerUi;

use super::access::{self, Access};
use super::problem::ProblemDocument;
use super::{
    artifact, batch, federate, forks, friends, heads, hosted, presence, proof, read, revocation,
    status, watch,
};
use crate::pull::HeldLogHead;
use crate::watch::NewHead;

#[derive(OpenApi)]
#[openapi(
    info(title = "Human.Net node", description = "Signed logs, presences and artifacts of a federated node. Errors are RFC 9457 problem documents. Requests are signed by RFC 9421 where it says so; spec/http.md has the rules."),
    paths(
        status::healthz, status::readyz,
        presence::own, presence::well_known, presence::of, presence::by_digest, presence::own_document, presence::resolve,
        federate::offers, federate::index, heads::peers, forks::forks, proof::get, watch::watch,
        artifact::get, batch::artifacts, hosted::publish, hosted::put_artifact, revocation::tell, friends::request,
    ),
    components(schemas(revocation::Told, HeldLogHead, NewHead, ProblemDocument<'static>))
)]
struct Api;

/// What a gate or a signature adds to a route's answers.
const UNAUTHORIZED: (&str, &str) = ("401", "Not signed, or not as it must be");
const FORBIDDEN: (&str, &str) = ("403", "The policy does not allow this caller");
/// What any route may answer.
const COMMON: [(&str, &str); 4] = [
    ("421", "The Host is not this node's"),
    ("429", "Too many requests of this client"),
    ("500", "The node failed to answer"),
    ("503", "Busy, or a part of the node is being restarted"),
];
/// What a route that takes a body may answer.
const WITH_BODY: [(&str, &str); 8] = [
    ("400", "The body, or a part of the path, cannot be read"),
    (
        "403",
        "The policy does not allow this caller, or a document is not its own",
    ),
    ("408", "The body did not come in time"),
    (
        "409",
        "What is handed over contradicts what is held, or breaks a rule",
    ),
    ("413", "The body is too large"),
    ("415", "Another media type, or a compressed body"),
    ("422", "The bytes are not what was named"),
    ("507", "No room"),
];

/// The description of the open routes: what `spec/openapi.json` holds.
#[must_use]
pub fn document() -> Value {
    let mut api = serde_json::to_value(Api::openapi()).unwrap_or_default();
    if let Some(paths) = api.get_mut("paths").and_then(Value::as_object_mut) {
        for (path, item) in paths {
            complete(path, item);
        }
    }
    api["components"]["securitySchemes"] = json!({
        "signature": {
            "type": "apiKey",
            "in": "header",
            "name": "signature",
            "description": "HTTP message signature (RFC 9421) by a did:hn, with Signature-Input and hn-audience: spec/http.md, S1 to S11",
        },
    });
    api
}

fn complete(path: &str, item: &mut Value) {
    let Some(operations) = item.as_object_mut() else {
        return;
    };
    for (method, operation) in operations.iter_mut() {
        let access = access::of(&method.to_ascii_uppercase(), path);
        operation["x-hn-access"] = access.to_string().into();
        match access {
            // A signature opens what a gate closes to strangers; without one it may be open as well.
            Access::Gated(_) => operation["security"] = json!([{}, {"signature": []}]),
            Access::Signed(_) | Access::Named(_) => {
                operation["security"] = json!([{"signature": []}]);
            }
            Access::Open | Access::Operator => {}
        }
        parameters(operation);
        body(operation);
        responses(operation, access);
    }
    if let Some(get) = operations.get("get") {
        let head = as_head(get);
        operations.insert("head".to_owned(), head);
    }
}

/// The form of each parameter, by its name.
fn parameters(operation: &mut Value) {
    let Some(all) = operation
        .get_mut("parameters")
        .and_then(Value::as_array_mut)
    else {
        return;
    };
    for parameter in all {
        let name = parameter
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let schema = match name {
            // No pattern: most texts that one would allow hold no key.
            "did" | "publisher" | "after" => json!({"type": "string", "format": "did-hn"}),
            "digest" => json!({"type": "string", "pattern": "^[0-9a-f]{64}$"}),
            "cursor" | "seq" | "epoch" => {
                json!({"type": "string", "format": "decimal", "pattern": "^(0|[1-9][0-9]{0,14})$"})
            }
            _ => continue,
        };
        parameter["schema"] = schema;
    }
}

/// A body that is no JSON is bytes; that an empty one is as good is said by the handler's type.
fn body(operation: &mut Value) {
    let content = operation
        .get_mut("requestBody")
        .and_then(|body| body.get_mut("content"))
        .and_then(Value::as_object_mut);
    let media = content.into_iter().flatten();
    for (_, media) in media.filter(|(name, _)| *name != "application/json") {
        media["schema"] = json!({"type": "string", "format": "binary"});
    }
}

/// What is not said at the handler, and the form of every problem.
fn responses(operation: &mut Value, access: Access) {
    let takes_body = operation.get("requestBody").is_some();
    let mut added: Vec<(&str, &str)> = COMMON.to_vec();
    if matches!(
        access,
        Access::Gated(_) | Access::Signed(_) | Access::Named(_)
    ) {
        added.push(UNAUTHORIZED);
        added.push(FORBIDDEN);
    }
    if takes_body {
        added.splice(0..0, WITH_BODY);
    }
    let responses = operation
        .get_mut("responses")
        .and_then(Value::as_object_mut);
    let Some(responses) = responses else {
        return;
    };
    for (status, description) in added {
        let said = responses.entry(status);
        said.or_insert_with(|| json!({"description": description}));
    }
    for (status, response) in responses {
        let is_problem = status.starts_with(['4', '5']);
        if is_problem && response.get("content").is_none() {
            let schema = json!({"$ref": "#/components/schemas/ProblemDocument"});
            response["content"] = json!({"application/problem+json": {"schema": schema}});
        }
    }
}

/// HEAD answers as GET does, without a body.
fn as_head(get: &Value) -> Value {
    let mut head = get.clone();
    let id = get
        .get("operationId")
        .and_then(Value::as_str)
        .unwrap_or_default();
    head["operationId"] = format!("{id}_head").into();
    let responses: Map<String, Value> = get
        .get("responses")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(status, response)| {
            let mut response = response.clone();
            if let Some(response) = response.as_object_mut() {
                response.remove("content");
            }
            (status.clone(), response)
        })
        .collect();
    head["responses"] = responses.into();
    head
}

pub(super) fn routes(config: &mut web::ServiceConfig) {
    // Nothing is asked of any other host: the page's own validator would be one.
    let ui = utoipa_swagger_ui::Config::from("/openapi.json").validator_url("none");
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_route_of_the_table_is_described_and_no_other() {
        let document = document();
        let described: Vec<(String, String)> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, item)| {
                let methods = item.as_object().unwrap().keys();
                methods.map(|method| (method.to_ascii_uppercase(), path.clone()))
            })
            .collect();
        for (method, path) in &described {
            let method = if method == "HEAD" { "GET" } else { method };
            assert_ne!(
                access::of(method, path),
                Access::Operator,
                "{method} {path}"
            );
        }
        for (method, path, _) in access::TABLE {
            let itself = ["/docs", "/openapi.json"].contains(path);
            let found = described.iter().any(|(m, p)| m == method && p == path);
            assert!(found || itself, "{method} {path} is not described");
        }
    }

    #[test]
    fn every_problem_has_the_one_form() {
        for (path, item) in document()["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let answers = operation["responses"].as_object().unwrap();
                assert!(
                    answers.contains_key("421") && answers.contains_key("500"),
                    "{method} {path}"
                );
                let refuses = answers.iter().filter(|(status, _)| status.starts_with('4'));
                for (status, answer) in refuses.filter(|_| method != "head") {
                    let problem = &answer["content"]["application/problem+json"];
                    assert!(problem.is_object(), "{method} {path} {status}");
                }
            }
        }
    }
}
