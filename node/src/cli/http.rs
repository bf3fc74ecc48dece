//! `hn http`: one request to a node, signed by the identity in use (RFC 9421, `spec/http.md` S1–S9), for people who would
//! otherwise use curl.

use std::io::{Read, Write};
use std::path::Path;

use clap::Args;
use hn_actors::keyring::Keyring;
use hn_actors::revocations;
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::document::Presence;
use hn_protocol::request::{AUDIENCE, BodyProof, ContentDigest, Target, sign};
use hn_protocol::sign::Signed;
use reqwest::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Client, Method, Response, Url};
use serde_json::{Map, Value, json};

use super::Context;
use super::id::keyring_error;
use super::output::{self, CliError, Format, Outcome};
use crate::client::chain;

/// The largest body that a node reads with a `content-digest` (design 9).
const MAX_BODY: u64 = 8 << 20;
/// The largest answer that is shown with `-o json`, which holds it whole.
const MAX_JSON_ANSWER: usize = 64 << 20;
/// How many leading segments of a path are tried as the base of a node, beside none.
const MAX_BASE: usize = 4;

#[derive(Debug, Args)]
pub struct Arguments {
    /// GET, POST, PUT, …
    #[arg(value_parser = parse_method)]
    method: Method,
    /// What to ask for
    url: Url,
    /// Body: a text, @FILE, or @- for stdin
    #[arg(long, value_name = "TEXT|@FILE")]
    data: Option<String>,
    /// Media type of the body [default: application/json]
    #[arg(long = "type", value_name = "MEDIA", requires = "data")]
    media: Option<String>,
    /// One more header
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = parse_header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Prove the body by this digest (64 hex) in place of content-digest: for artifacts and backups, of any size
    #[arg(long, value_name = "HEX", requires = "data")]
    hn_digest: Option<Digest>,
    /// The node that is asked; else it is learnt from its presence
    #[arg(long, value_name = "DID", conflicts_with = "anonymous")]
    audience: Option<Did>,
    /// Sign nothing
    #[arg(long)]
    anonymous: bool,
    /// Print status and headers too
    #[arg(short, long)]
    include: bool,
}

fn parse_method(text: &str) -> Result<Method, String> {
    let upper = text.to_ascii_uppercase();
    upper.parse().map_err(|_| format!("{text:?} is no method"))
}

fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let pair = text
        .split_once(':')
        .and_then(|(name, value)| Some((name.trim().parse().ok()?, value.trim().parse().ok()?)));
    pair.ok_or_else(|| "write a header as `Name: value`".to_owned())
}

/// Sends the request; exit 0 for a 2xx or 304, 1 for any other answer, which is printed all the same.
pub async fn run(ctx: &Context, arguments: Arguments) -> Result<Outcome, CliError> {
    let url = &arguments.url;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(
            CliError::usage("bad_url", format_args!("{url} is neither http nor https"))
                .next("name a whole URL, such as http://127.0.0.1:7733/federate"),
        );
    }
    let client = client()?;
    let mut request = client.request(arguments.method.clone(), url.clone());
    let (body, proof) = body(&arguments)?;
    if !arguments.anonymous {
        let audience = match arguments.audience {
            Some(did) => did,
            None => learn_audience(&client, url).await?,
        };
        let target = Target {
            method: arguments.method.as_str(),
            path: url.path(),
            query: url.query(),
        };
        let (identity, now) = (identity(ctx)?, ctx.clock()?.now());
        let nonce = format!("{:032x}", rand::random::<u128>());
        let fields = sign(target, audience, &proof, &identity, now, &nonce)
            .map_err(|error| CliError::failed("signature", error))?;
        request = request
            .header("signature-input", fields.signature_input)
            .header("signature", fields.signature)
            .header(AUDIENCE, fields.audience);
        if let Some((name, value)) = fields.proof {
            request = request.header(name, value);
        }
    }
    if let Some(body) = body {
        let media = arguments.media.as_deref().unwrap_or("application/json");
        request = request.header(CONTENT_TYPE, media).body(body);
    }
    for (name, value) in &arguments.headers {
        request = request.header(name, value);
    }
    let answer = output::waiting("asking", async {
        request.send().await.map_err(|error| no_answer(url, &error))
    })
    .await?;
    let status = answer.status();
    match ctx.format {
        Format::Json => show_json(answer).await?,
        Format::Text => show_text(answer, arguments.include).await?,
    }
    // A condition that holds is what was asked for.
    if status.is_success() || status.as_u16() == 304 {
        return Ok(Outcome::Done);
    }
    if ctx.format == Format::Text {
        eprintln!("the node answered {status}");
    }
    Ok(Outcome::Failed)
}

fn client() -> Result<Client, CliError> {
    Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(std::time::Duration::from_secs(10))
        .user_agent(concat!("hn/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| CliError::failed("client", chain(&error)))
}

fn identity(ctx: &Context) -> Result<hn_protocol::did::Identity, CliError> {
    let keyring = Keyring::open(&ctx.existing_home()?).map_err(|error| keyring_error(&error))?;
    let alias = keyring.active().map_err(|error| keyring_error(&error))?;
    let alias = alias.ok_or_else(|| {
        CliError::failed("no_identity", "no identity is in use here to sign with")
            .next("hn id create ALIAS, hn id use ALIAS, or add --anonymous")
    })?;
    let did = keyring
        .get(&alias)
        .map_err(|error| keyring_error(&error))?
        .did;
    if revocations::is_kept(&ctx.existing_home()?, &did) {
        return Err(CliError::failed(
            "revoked",
            format_args!("{alias} is revoked: nothing is signed for it any more"),
        )
        .next("hn id use ALIAS of another identity, or add --anonymous"));
    }
    let seed = keyring.unlock(&alias, ctx.passphrase()?.as_ref());
    Ok(seed.map_err(|error| keyring_error(&error))?.identity())
}

/// The body, and what proves it.
fn body(arguments: &Arguments) -> Result<(Option<reqwest::Body>, BodyProof), CliError> {
    let Some(data) = &arguments.data else {
        return Ok((None, BodyProof::None));
    };
    let unreadable = |name: &str, error: std::io::Error| {
        CliError::failed("read", format_args!("{name}: {error}")).next("name a readable file")
    };
    let bytes = match data.strip_prefix('@') {
        None => data.clone().into_bytes(),
        Some("-") => {
            let mut bytes = Vec::new();
            let mut stdin = std::io::stdin().lock().take(MAX_BODY + 1);
            stdin
                .read_to_end(&mut bytes)
                .map_err(|error| unreadable("stdin", error))?;
            bytes
        }
        Some(name) => {
            let file = std::fs::File::open(Path::new(name)).map_err(|e| unreadable(name, e))?;
            if let Some(digest) = arguments.hn_digest {
                let body = reqwest::Body::from(tokio::fs::File::from_std(file));
                return Ok((Some(body), BodyProof::Document(digest)));
            }
            let mut bytes = Vec::new();
            file.take(MAX_BODY + 1)
                .read_to_end(&mut bytes)
                .map_err(|error| unreadable(name, error))?;
            bytes
        }
    };
    if let Some(digest) = arguments.hn_digest {
        return Ok((Some(bytes.into()), BodyProof::Document(digest)));
    }
    if bytes.len() as u64 > MAX_BODY {
        return Err(CliError::usage(
            "body_too_large",
            "a body with content-digest has 8 MiB at most",
        )
        .next("for an artifact or a backup add --hn-digest HEX"));
    }
    let proof = BodyProof::Content(ContentDigest::field_of(&bytes));
    Ok((Some(bytes.into()), proof))
}

/// Whom to ask: the node's presence says so. It may stand below a base path.
async fn learn_audience(client: &Client, url: &Url) -> Result<Did, CliError> {
    let mut last = None;
    let segments: Vec<&str> = url
        .path_segments()
        .map(Iterator::collect)
        .unwrap_or_default();
    for depth in 0..=segments.len().min(MAX_BASE) {
        let mut presence = url.clone();
        presence.set_query(None);
        if let Ok(mut path) = presence.path_segments_mut() {
            path.clear();
            path.extend(segments.iter().take(depth))
                .extend([".well-known", "hn", "presence"]);
        }
        let answer = client.get(presence.clone()).send().await;
        let answer = answer.map_err(|error| no_answer(&presence, &error))?;
        let status = answer.status();
        let bytes = whole(answer, hn_protocol::document::MAX_PRESENCE_BYTES).await;
        match bytes.map(|bytes| Signed::<Presence>::verify(bytes.into())) {
            Ok(Ok(presence)) => return Ok(presence.did),
            _ => {
                last = Some(format!(
                    "{presence} answered {status}, and shows no presence"
                ))
            }
        }
    }
    Err(CliError::failed(
        "no_audience",
        last.unwrap_or_else(|| format!("nobody is at {url}")),
    )
    .next("name the node with --audience DID, or add --anonymous"))
}

async fn whole(mut answer: Response, max: usize) -> Result<Vec<u8>, CliError> {
    let mut bytes = Vec::new();
    let broken = |error: reqwest::Error| CliError::failed("connection_lost", chain(&error));
    while let Some(chunk) = answer.chunk().await.map_err(broken)? {
        if bytes.len() + chunk.len() > max {
            let text = format!("the answer is longer than {max} bytes");
            return Err(CliError::failed("answer_too_large", text));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn headers(answer: &Response) -> impl Iterator<Item = (&str, String)> {
    answer.headers().iter().map(|(name, value)| {
        (
            name.as_str(),
            String::from_utf8_lossy(value.as_bytes()).into_owned(),
        )
    })
}

async fn show_json(answer: Response) -> Result<(), CliError> {
    let status = answer.status().as_u16();
    let headers: Map<String, Value> = headers(&answer)
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    let bytes = whole(answer, MAX_JSON_ANSWER).await?;
    let body: Value = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into());
    let document = json!({"status": status, "headers": headers, "body": body});
    output::print(&format!("{document}\n"))
}

/// The body as it comes: it may be an artifact.
async fn show_text(mut answer: Response, include: bool) -> Result<(), CliError> {
    let mut stdout = std::io::stdout();
    let write = |error: std::io::Error| CliError::failed("write", format_args!("stdout: {error}"));
    if include {
        let lines: String = headers(&answer)
            .map(|(name, value)| format!("{name}: {value}\n"))
            .collect();
        let head = format!("{:?} {}\n{lines}\n", answer.version(), answer.status());
        stdout.write_all(head.as_bytes()).map_err(write)?;
    }
    let broken = |error: reqwest::Error| CliError::failed("connection_lost", chain(&error));
    while let Some(chunk) = answer.chunk().await.map_err(broken)? {
        stdout.write_all(&chunk).map_err(write)?;
    }
    stdout.flush().map_err(write)
}

fn no_answer(url: &Url, error: &reqwest::Error) -> CliError {
    CliError::failed("no_connection", format_args!("{url}: {}", chain(error)))
        .next("look whether a node answers there")
}
