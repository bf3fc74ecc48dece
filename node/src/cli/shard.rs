//! `hn shard`: put files into the own log, fetch what is published by digest, list logs.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use hn_protocol::digest::Digest;
use reqwest::{Method, Response, Url};
use serde_json::{Value, json};

use super::Context;
use super::output::{self, CliError, Format, Outcome, Progress};
use crate::client::{self, Admin, Patience};
use crate::names::Names;
use crate::upload::{self, Selection};

/// Entries asked for at once when a log is listed: the most that the node gives.
const LIST_PAGE: u32 = 1000;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Publish files, or the files of folders, into the own log
    Publish(Publish),
    /// Get a published file by its digest, verified
    Fetch(Fetch),
    /// List the entries of a log
    List(List),
}

#[derive(Debug, Args)]
pub struct Publish {
    /// Files, by their names; folders, by the paths of their files relative to the folder
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Say that everybody may read what is published: without it nothing is
    #[arg(long)]
    public: bool,
    /// Label every entry
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
    /// Only say what would be published
    #[arg(long)]
    dry_run: bool,
    /// Hand the log over to the node at this URL, which serves it while this one sleeps
    #[arg(long, value_name = "URL")]
    mcp_url: Option<Url>,
}

#[derive(Debug, Args)]
pub struct Fetch {
    /// BLAKE3 of the file, 64 hex digits
    #[arg(value_parser = parse_digest)]
    digest: Digest,
    /// Ask this publisher or holder first
    #[arg(long, value_name = "DID|ALIAS")]
    from: Option<String>,
    /// File to write; else stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct List {
    /// The log of this publisher; else the own one
    #[arg(long, value_name = "DID|ALIAS")]
    from: Option<String>,
}

/// Carries out one `hn shard` command.
pub async fn run(ctx: &Context, command: Command) -> Result<Outcome, CliError> {
    match command {
        Command::Publish(arguments) => publish(ctx, arguments).await,
        Command::Fetch(arguments) => fetch(ctx, arguments).await,
        Command::List(arguments) => list(ctx, arguments).await,
    }
}

fn parse_tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write a tag as KEY=VALUE".to_owned()),
    }
}

fn parse_digest(text: &str) -> Result<Digest, String> {
    text.parse()
        .map_err(|error: hn_protocol::digest::DigestError| error.to_string())
}

async fn publish(ctx: &Context, arguments: Publish) -> Result<Outcome, CliError> {
    if !arguments.public {
        return Err(CliError::usage(
            "publish_without_public",
            "published files can be read by everybody, and nothing here says that they may",
        )
        .next("add --public, if everybody may read them"));
    }
    let selection = upload::select(&arguments.paths)?;
    if arguments.dry_run {
        return dry_run(ctx, &selection);
    }
    let mut query = vec![("public", "true".to_owned())];
    query.extend(
        arguments
            .tags
            .iter()
            .map(|(key, value)| ("tag", format!("{key}={value}"))),
    );

    let answer = client::with_node(ctx, async |admin| {
        // The body is made while it is sent, so that a busy node is sent another one.
        let mut patience = Patience::default();
        loop {
            match send(admin, &selection, &query).await {
                Err(error) if patience.bears(&error).await => {}
                sent => break push(admin, sent?, arguments.mcp_url.as_ref()).await,
            }
        }
    })
    .await?;
    output::show(ctx.format, &answer, published_text)?;
    let pushed = &answer["pushed"];
    let absent = pushed["absent"]
        .as_array()
        .is_some_and(|absent| !absent.is_empty());
    Ok(match pushed["error"].is_null() && !absent {
        true => Outcome::Done,
        false => Outcome::Failed,
    })
}

/// Hands the log over. What was published here stays published, so that a host that refuses is a part of the answer.
async fn push(admin: &Admin, mut answer: Value, host: Option<&Url>) -> Result<Value, CliError> {
    let Some(url) = host else {
        return Ok(answer);
    };
    let asked = json!({ "url": url });
    let pushing = admin.post("/admin/log/push", &asked);
    answer["pushed"] = match output::waiting("handing the log over", pushing).await {
        Ok(pushed) => pushed,
        Err(error) => json!({"url": url, "error": {"code": error.code(), "detail": error.what()}}),
    };
    Ok(answer)
}

async fn send(
    admin: &Admin,
    selection: &Selection,
    query: &[(&str, String)],
) -> Result<Value, CliError> {
    let progress = Progress::bytes(Some(selection.bytes()));
    let mut upload = upload::stream(selection.clone(), progress.clone());
    let request = admin.request_with(Method::POST, "/admin/log/publish", query)?;
    let sent = client::json(
        request
            .header("content-type", "application/x-tar")
            .body(upload.body),
    )
    .await;
    progress.finish();
    // A file that could not be read breaks the request off, and which one it was says more than the broken request.
    match upload.problem.try_recv() {
        Ok(problem) => Err(problem),
        Err(_) => sent,
    }
}

fn published_text(answer: &Value) -> String {
    let mut table = output::table(["seq", "digest", "path", ""]);
    let published = answer["published"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    for item in published {
        let note = if item["status"] == "existing" {
            "already there"
        } else {
            ""
        };
        table.add_row([
            &item["seq"].to_string(),
            text(item, "digest"),
            text(item, "path"),
            note,
        ]);
    }
    let appended = published
        .iter()
        .filter(|item| item["status"] != "existing")
        .count();
    let size = output::entries(&answer["log_size"]);
    format!(
        "{}\n{appended} appended; the log has {size}, root {}\n{}",
        output::lines(&table),
        text(answer, "log_root"),
        pushed_text(&answer["pushed"])
    )
}

fn pushed_text(pushed: &Value) -> String {
    if pushed.is_null() {
        return String::new();
    }
    let url = text(pushed, "url");
    if !pushed["error"].is_null() {
        let (code, detail) = (
            text(&pushed["error"], "code"),
            text(&pushed["error"], "detail"),
        );
        return format!("{url} did not take the log over: {code}: {detail}\n");
    }
    let absent = pushed["absent"].as_array().map_or(0, Vec::len);
    let absent = match absent {
        0 => String::new(),
        n => format!("; {n} artifacts are not here to be sent"),
    };
    let size = output::entries(&pushed["log_size"]);
    let bytes = output::bytes(pushed["bytes"].as_u64().unwrap_or_default());
    format!(
        "{url} holds {size} now: {} entries and {} artifacts ({bytes}) handed over{absent}\n",
        pushed["entries"], pushed["artifacts"],
    )
}

fn dry_run(ctx: &Context, selection: &Selection) -> Result<Outcome, CliError> {
    let files = selection.digests()?;
    let bytes = selection.bytes();
    let listed: Vec<Value> = files
        .iter()
        .map(|(path, size, digest)| json!({"path": path, "size": size, "digest": digest}))
        .collect();
    let document = json!({"dry_run": true, "would_publish": listed, "bytes": bytes});
    output::show(ctx.format, &document, |_| {
        let mut table = output::table(["digest", "size", "path"]);
        for (path, size, digest) in &files {
            table.add_row([digest.to_string(), output::bytes(*size), path.clone()]);
        }
        format!(
            "{}\n{} files, {}; nothing was published\n",
            output::lines(&table),
            files.len(),
            output::bytes(bytes)
        )
    })?;
    Ok(Outcome::Done)
}

async fn fetch(ctx: &Context, arguments: Fetch) -> Result<Outcome, CliError> {
    if ctx.format == Format::Json && arguments.out.is_none() {
        return Err(CliError::usage(
            "json_needs_out",
            "with -o json stdout holds one JSON document, so the file can't go there",
        )
        .next("add --out FILE"));
    }
    let digest = arguments.digest;
    client::with_node(ctx, async |admin| {
        let mut query = Vec::new();
        if let Some(from) = &arguments.from {
            query.push(("from", Names::load(ctx, admin).await?.did(from)?));
        }
        let request =
            admin.request_with(Method::GET, &format!("/admin/artifact/{digest}"), &query)?;
        let answer = output::waiting("looking for it", client::accepted(request)).await?;
        match &arguments.out {
            Some(out) => {
                let size = to_file(answer, digest, out).await?;
                let document = json!({"digest": digest, "size": size, "out": out});
                output::show(ctx.format, &document, |_| {
                    format!("{} ({})\n", out.display(), output::bytes(size))
                })
            }
            None => to_stdout(answer, digest).await,
        }
    })
    .await?;
    Ok(Outcome::Done)
}

/// Writes beside `out` and renames, so that `out` is there whole and verified, or not at all.
async fn to_file(answer: Response, digest: Digest, out: &Path) -> Result<u64, CliError> {
    let failed = |error: std::io::Error| {
        CliError::failed("write", format_args!("{}: {error}", out.display()))
            .next("name a place that can be written, with room")
    };
    let folder = match out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut temporary = tempfile::Builder::new()
        .prefix(".hn-fetch-")
        .tempfile_in(folder)
        .map_err(failed)?;
    let size = receive(answer, digest, |chunk| {
        temporary.write_all(chunk).map_err(failed)
    })
    .await?;
    temporary.as_file().sync_all().map_err(failed)?;
    temporary
        .persist(out)
        .map_err(|error| failed(error.error))?;
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed)?;
    Ok(size)
}

async fn to_stdout(answer: Response, digest: Digest) -> Result<(), CliError> {
    let mut stdout = std::io::stdout();
    let failed =
        |error: std::io::Error| CliError::failed("stdout", format_args!("stdout: {error}"));
    receive(answer, digest, |chunk| {
        stdout.write_all(chunk).map_err(failed)
    })
    .await?;
    stdout.flush().map_err(failed)
}

/// Hands on each piece and checks the whole. Errors: the connection, the sink, another digest than asked for.
async fn receive(
    mut answer: Response,
    digest: Digest,
    mut sink: impl FnMut(&[u8]) -> Result<(), CliError>,
) -> Result<u64, CliError> {
    let progress = Progress::bytes(answer.content_length());
    let mut hasher = blake3::Hasher::new();
    let mut size = 0;
    while let Some(chunk) = answer.chunk().await.map_err(|error| client::lost(&error))? {
        hasher.update(&chunk);
        sink(&chunk)?;
        size += chunk.len() as u64;
        progress.add(chunk.len() as u64);
    }
    progress.finish();
    let found = Digest::from(hasher.finalize());
    if found == digest {
        return Ok(size);
    }
    Err(CliError::failed(
        "digest_mismatch",
        format_args!("asked for {digest}, got {found} ({size} bytes)"),
    )
    .next("name another holder by --from"))
}

async fn list(ctx: &Context, arguments: List) -> Result<Outcome, CliError> {
    let (document, names) = client::with_node(ctx, async |admin| {
        let names = Names::load(ctx, admin).await?;
        let publisher = arguments
            .from
            .as_deref()
            .map(|from| names.did(from))
            .transpose()?;
        Ok((entries(admin, publisher.as_deref()).await?, names))
    })
    .await?;
    output::show(ctx.format, &document, |document| {
        let mut table = output::table(["seq", "type", "digest", "size", "path", "tags"]);
        for entry in document["entries"].as_array().into_iter().flatten() {
            let seq = entry["seq"].to_string();
            let size = output::bytes(entry["size"].as_u64().unwrap_or_default());
            let tags = entry["tags"].as_object().into_iter().flatten();
            let tags: Vec<String> = tags
                .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
                .collect();
            let row = [
                &seq,
                text(entry, "type"),
                text(entry, "digest"),
                &size,
                text(entry, "path"),
                &tags.join(" "),
            ];
            table.add_row(row);
        }
        let head = format!(
            "{}: {}, root {}\n",
            names.show(text(document, "publisher")),
            output::entries(&document["log_size"]),
            text(document, "log_root")
        );
        if table.is_empty() {
            head
        } else {
            format!("{}\n{head}", output::lines(&table))
        }
    })?;
    Ok(Outcome::Done)
}

/// A whole log, page by page, as one document.
async fn entries(admin: &Admin, publisher: Option<&str>) -> Result<Value, CliError> {
    let mut all = Vec::new();
    let mut cursor = 0_u64;
    loop {
        let mut query = vec![
            ("cursor", cursor.to_string()),
            ("limit", LIST_PAGE.to_string()),
        ];
        query.extend(publisher.map(|did| ("publisher", did.to_owned())));
        let mut page =
            client::json(admin.request_with(Method::GET, "/admin/log/entries", &query)?).await?;
        if let Some(entries) = page["entries"].as_array_mut() {
            all.append(entries);
        }
        match page["next_cursor"].as_u64() {
            Some(next) if next > cursor => cursor = next,
            _ => {
                page["entries"] = Value::Array(all);
                if let Some(page) = page.as_object_mut() {
                    page.remove("next_cursor");
                }
                return Ok(page);
            }
        }
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}
