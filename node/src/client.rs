//! The admin API as the commands see it: HTTP/1.1 over a Unix socket.
//!
//! Where a node runs on the home, it is its socket. Where none does, the same node is started in this process,
//! without a gateway for others and without pulling by itself, and the command talks to that. One code path either way.

use std::path::Path;
use std::time::{Duration, Instant};

use hn_actors::settings::Profile;
use reqwest::{Client, Method, RequestBuilder, Response, Url};
use serde_json::Value;
use tokio::net::UnixStream;

use crate::cli::id::keyring_error;
use crate::cli::output::CliError;
use crate::cli::{Context, home_error};
use crate::config::Flags;
use crate::node::{Mode, Node, NodeHandle, StartError, StartOptions};

/// How long a command, or a daemon, waits for another command that holds the home (design 11).
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// How often it looks meanwhile. Short, since most commands are.
const LOCK_POLL: Duration = Duration::from_millis(50);
/// A node on this machine accepts at once or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A read is answered from memory and the database; a node that takes longer is in trouble, and says so by this.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a node that has enough to do, or restarts a part of itself, is asked again.
const RETRIES: u32 = 8;
/// The longest wait before the next time, whatever the node says.
const RETRY_WAIT: Duration = Duration::from_secs(5);
/// The host of URLs to the socket; the node accepts `localhost` (design 13).
const BASE: &str = "http://localhost";

/// A connection to the node of a home. Close it: a node in this process has to stop in order.
pub struct Admin {
    http: Client,
    started: Option<NodeHandle>,
}

impl Admin {
    /// The running node of the home, if one answers on its socket.
    pub async fn running(ctx: &Context) -> Result<Option<Self>, CliError> {
        let socket = ctx.socket();
        if answers(&socket).await? {
            Ok(Some(Self {
                http: client(&socket)?,
                started: None,
            }))
        } else {
            Ok(None)
        }
    }

    /// The running node, or one started here. Waits while another command holds the home.
    pub async fn open(ctx: &Context) -> Result<Self, CliError> {
        Self::open_as(ctx, Mode::InProcess { follow: false }).await
    }

    /// The running node, or one started here that also follows its peers by itself.
    pub async fn open_following(ctx: &Context) -> Result<Self, CliError> {
        Self::open_as(ctx, Mode::InProcess { follow: true }).await
    }

    async fn open_as(ctx: &Context, mode: Mode) -> Result<Self, CliError> {
        let profile = ctx.profile(None)?;
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            if let Some(running) = Self::running(ctx).await? {
                return Ok(running);
            }
            ctx.must_be_there()?;
            match Node::start(options(ctx, profile, &Flags::default(), mode)?).await {
                Ok(node) => {
                    return Ok(Self {
                        http: client(&node.socket)?,
                        started: Some(node),
                    });
                }
                Err(StartError::Locked { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(LOCK_POLL).await;
                }
                Err(error) => return Err(start_error(ctx, &error)),
            }
        }
    }

    /// Whether the node runs in another process.
    pub fn is_remote(&self) -> bool {
        self.started.is_none()
    }

    /// Stops a node that was started here.
    pub async fn close(self) {
        let Self { http, started } = self;
        // Its connections first, or the node would wait for what may still be asked on them.
        drop(http);
        if let Some(node) = started {
            node.stop().await;
        }
    }

    /// A request that is not sent yet, for bodies and streams.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{BASE}{path}"))
    }

    /// A request with a query, percent-encoded here. Errors: none that a path of ours can cause.
    pub fn request_with(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<RequestBuilder, CliError> {
        if query.is_empty() {
            return Ok(self.request(method, path));
        }
        let url = Url::parse_with_params(&format!("{BASE}{path}"), query)
            .map_err(|error| CliError::failed("client", format_args!("{path}: {error}")))?;
        Ok(self.http.request(method, url))
    }

    /// GET, answered with JSON.
    pub async fn get(&self, path: &str) -> Result<Value, CliError> {
        json(self.request(Method::GET, path).timeout(READ_TIMEOUT)).await
    }

    /// POST of JSON, answered with JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, CliError> {
        json(self.request(Method::POST, path).json(body)).await
    }
}

/// Starts the daemon. Another daemon that answers is told of at once; a command that holds the home is soon done.
pub async fn start_daemon(
    ctx: &Context,
    profile: Profile,
    flags: &Flags,
) -> Result<NodeHandle, CliError> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match Node::start(options(ctx, profile, flags, Mode::Serve)?).await {
            Ok(node) => return Ok(node),
            Err(error @ StartError::Locked { .. }) => {
                if Instant::now() > deadline || Admin::running(ctx).await?.is_some() {
                    return Err(start_error(ctx, &error));
                }
                tokio::time::sleep(LOCK_POLL).await;
            }
            Err(error) => return Err(start_error(ctx, &error)),
        }
    }
}

/// Opens the node, does the work, and closes it whatever came of the work.
pub async fn with_node<T>(
    ctx: &Context,
    work: impl AsyncFnOnce(&Admin) -> Result<T, CliError>,
) -> Result<T, CliError> {
    let admin = Admin::open(ctx).await?;
    let result = work(&admin).await;
    admin.close().await;
    result
}

/// Everything that starting a node takes, from the flags, the environment and the files.
pub fn options(
    ctx: &Context,
    profile: Profile,
    flags: &Flags,
    mode: Mode,
) -> Result<StartOptions, CliError> {
    // The settings first: a configuration that is refused makes no home.
    let settings = ctx.settings(profile, flags)?;
    Ok(StartOptions {
        home: ctx.home()?,
        settings,
        profile,
        passphrase: ctx.passphrase()?,
        mode,
    })
}

/// Sends, and takes the JSON of a success; anything else becomes the error that the node gave.
pub async fn json(request: RequestBuilder) -> Result<Value, CliError> {
    let answer = accepted(request).await?;
    answer.json().await.map_err(|error| {
        CliError::failed(
            "bad_answer",
            format_args!("the node's answer: {}", chain(&error)),
        )
    })
}

/// Sends, and takes a success with its body still to be read. A node that is busy or restarts a part of itself is asked
/// again, unless the body is a stream, which can be sent but once.
pub async fn accepted(mut request: RequestBuilder) -> Result<Response, CliError> {
    let mut patience = Patience::default();
    loop {
        let again = request.try_clone();
        match (once(request).await, again) {
            (Err(error), Some(next)) if patience.bears(&error).await => request = next,
            (answer, _) => return answer,
        }
    }
}

async fn once(request: RequestBuilder) -> Result<Response, CliError> {
    let answer = request.send().await.map_err(|error| lost(&error))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let wait = answer.headers().get(reqwest::header::RETRY_AFTER);
    let wait = wait.and_then(|value| value.to_str().ok()?.parse().ok());
    let body = answer.bytes().await.map_err(|error| lost(&error))?;
    let error = CliError::from_problem(status.as_u16(), &body);
    Err(match wait {
        // Others that come with a wait, such as a log that is being recovered, do not pass at once.
        Some(seconds) if matches!(error.code(), "busy" | "restarting") => {
            error.after(Duration::from_secs(seconds).min(RETRY_WAIT))
        }
        _ => error,
    })
}

/// How often more a node is asked again.
pub struct Patience(u32);

impl Default for Patience {
    fn default() -> Self {
        Self(RETRIES)
    }
}

impl Patience {
    /// Whether `error` passes and there was patience left; then it has been waited for.
    pub async fn bears(&mut self, error: &CliError) -> bool {
        let (Some(wait), Some(left)) = (error.retry_after(), self.0.checked_sub(1)) else {
            return false;
        };
        self.0 = left;
        tokio::time::sleep(wait).await;
        true
    }
}

/// The connection broke: the node stopped, or stopped this request.
pub fn lost(error: &reqwest::Error) -> CliError {
    CliError::failed(
        "connection_lost",
        format_args!("the node on this home: {}", chain(error)),
    )
    .next("look at its log (journalctl -u hn, or its stderr), then try again")
}

/// Says why a node could not be started.
pub fn start_error(ctx: &Context, error: &StartError) -> CliError {
    match error {
        StartError::Home(error) => return home_error(error),
        StartError::Keyring(error) => return keyring_error(error),
        _ => {}
    }
    let said = match error {
        // What the environment asks for is wrong: usage, like a flag.
        StartError::Clock(_) | StartError::Failpoints(_) => CliError::usage(error.code(), error),
        _ => CliError::failed(error.code(), error),
    };
    match error.remedy(ctx.root()) {
        Some(remedy) => said.next(remedy),
        None => said,
    }
}

async fn answers(socket: &Path) -> Result<bool, CliError> {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    match tokio::time::timeout(CONNECT_TIMEOUT, UnixStream::connect(socket)).await {
        Ok(Ok(_)) => Ok(true),
        Ok(Err(error)) if matches!(error.kind(), ConnectionRefused | NotFound) => Ok(false),
        Ok(Err(error)) => Err(CliError::failed(
            "socket",
            format_args!("{}: {error}", socket.display()),
        )
        .next("run this as the user who runs the node, or name another --home")),
        Err(_) => Err(CliError::failed(
            "socket",
            format_args!("{}: no answer in 5 s", socket.display()),
        )
        .next("look at the node's log; it may be stopped or overloaded")),
    }
}

fn client(socket: &Path) -> Result<Client, CliError> {
    // No timeout in all: a large publish or a first pull takes as long as it takes, and ^C ends it.
    Client::builder()
        .unix_socket(socket)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .build()
        .map_err(|error| CliError::failed("client", chain(&error)))
}

/// An error with all its causes, since the outermost one rarely says what happened.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Asks a node that gives `refusals` times this problem and then a success; says how often it was asked.
    async fn ask(code: &str, refusals: u32) -> (Result<Value, CliError>, u32) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let mut asked = 0;
        let node = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 4096];
                assert!(stream.read(&mut head).await.unwrap() > 0);
                asked += 1;
                let (status, body) = if asked <= refusals {
                    ("503 no", format!("{{\"code\":\"{code}\"}}"))
                } else {
                    ("200 OK", "{}".to_owned())
                };
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {status}\r\nretry-after: 0\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        };
        let request = client(&socket).unwrap().get(BASE);
        let answer = tokio::select! {
            answer = json(request) => answer,
            () = node => unreachable!("it serves for ever"),
        };
        (answer, asked)
    }

    #[tokio::test]
    async fn a_busy_node_is_asked_again_but_not_for_ever() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (answer, asked) = ask("busy", 2).await;
        assert_eq!(
            (answer.unwrap(), asked),
            (Value::Object(Default::default()), 3)
        );
        assert!(ask("restarting", 1).await.0.is_ok());
        let (answer, asked) = ask("busy", u32::MAX).await;
        assert_eq!((answer.unwrap_err().code(), asked), ("busy", RETRIES + 1));
        let (answer, asked) = ask("log_recovering", 1).await;
        assert_eq!((answer.unwrap_err().code(), asked), ("log_recovering", 1));
    }
}
