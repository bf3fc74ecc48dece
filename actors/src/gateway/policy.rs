//! The policy as the operator sees and changes it.

use actix_web::{HttpRequest, HttpResponse, web};
use hn_protocol::canonical;
use hn_protocol::did::Did;
use hn_protocol::document::PolicyGate;
use hn_protocol::policy::{Explanation, Gate, LIMITS, Mode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::admin::{body, check_operator};
use super::problem::Problem;
use super::{GatewayState, other_methods, read};
use crate::policy::{PolicyError, facts};

/// The operator's routes.
pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(read("/admin/policy", show))
        .service(
            web::resource("/admin/policy/gates/{name}")
                .route(web::put().to(set))
                .default_service(other_methods("PUT")),
        )
        .service(
            web::resource("/admin/policy/check")
                .route(web::post().to(check))
                .default_service(other_methods("POST")),
        );
}

/// How the policy stands, its gates, and the signed document.
fn view(state: &GatewayState) -> Result<Value, Problem> {
    let (gates, limits, document) = state
        .policy
        .with(|policy| {
            let gate = |gate: Gate| {
                let rule = policy.document().gates.get(gate.name());
                let is_default = rule == Some(&gate.default_rule());
                json!({
                    "name": gate.name(),
                    "mode": rule.map_or(Mode::Deny, |rule| rule.mode),
                    "when": rule.and_then(|rule| rule.when.as_deref()),
                    "default": is_default,
                })
            };
            let limits: Value = LIMITS
                .iter()
                .map(|(name, _)| ((*name).to_owned(), json!(policy.limit(name))))
                .collect::<serde_json::Map<_, _>>()
                .into();
            let gates: Vec<Value> = Gate::ALL.into_iter().map(gate).collect();
            let document = canonical::parse(policy.document().bytes());
            document.map(|document| (gates, limits, document))
        })
        .transpose()
        .map_err(|error| Problem::internal(&error))?
        .unwrap_or_default();
    let mut answer = json!(state.policy.standing());
    answer["gates"] = gates.into();
    answer["limits"] = limits;
    answer["policy"] = document;
    Ok(answer)
}

async fn show(
    request: HttpRequest,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    check_operator(&request)?;
    Ok(HttpResponse::Ok().json(view(&state)?))
}

fn parse_gate(name: &str) -> Result<Gate, Problem> {
    name.parse()
        .map_err(|error: hn_protocol::policy::UnknownGate| {
            Problem::new("bad_gate", error.to_string())
        })
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct GateBody {
    mode: Option<Mode>,
    when: Option<String>,
}

async fn set(
    request: HttpRequest,
    name: web::Path<String>,
    state: web::Data<GatewayState>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let asked: GateBody = body(&request, payload).await?;
    let gate = parse_gate(&name)?;
    let mode = asked
        .mode
        .ok_or_else(|| Problem::new("bad_gate", "mode is missing: allow, prompt or deny"))?;
    if mode == Mode::Deny && asked.when.is_some() {
        return Err(Problem::new(
            "bad_condition",
            "a gate that denies has no condition",
        ));
    }
    if let Some(when) = &asked.when {
        hn_protocol::policy::Condition::compile(when)
            .map_err(|error| Problem::new("bad_condition", error.to_string()))?;
    }
    let policy = state.policy.clone();
    let rule = PolicyGate {
        mode,
        when: asked.when,
    };
    super::blocking(move || Ok(policy.set_gate(gate, rule)?)).await?;
    Ok(HttpResponse::Ok().json(view(&state)?))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckBody {
    gate: Option<String>,
    caller: Option<Did>,
}

/// What a gate would say to a caller now, with everything that it rests on.
async fn check(
    request: HttpRequest,
    state: web::Data<GatewayState>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let asked: CheckBody = body(&request, payload).await?;
    let gate = parse_gate(asked.gate.as_deref().unwrap_or_default())?;
    let hosting = state.hosting.clone();
    let bytes = match asked.caller {
        Some(did) => Some(super::blocking(move || Ok(hosting.bytes_of(&did)?)).await?),
        None => None,
    };
    let facts = facts(asked.caller, &state.standings, bytes, state.clock.now());
    let decision = state.policy.decide(gate, &facts);
    let explained = state
        .policy
        .with(|policy| Explanation::new(policy, &decision, facts));
    match explained {
        Some(explanation) => Ok(HttpResponse::Ok().json(explanation?)),
        None => Err(Problem::new("no_policy", decision.reason)
            .remedy("put the newest policy@1.json back, or begin again by hn policy gate set")),
    }
}

impl From<PolicyError> for Problem {
    fn from(error: PolicyError) -> Self {
        let detail = error.to_string();
        match error {
            PolicyError::Document(_) => Self::new("bad_condition", detail),
            PolicyError::Io { error, .. } => error.into(),
        }
    }
}
