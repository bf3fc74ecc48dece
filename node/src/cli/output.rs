//! What a command says: one JSON document or text on stdout, errors and progress on stderr.
//!
//! An error has two lines: what was wrong and where, then what to do. With `-o json` it is the same problem object
//! (RFC 9457) that the gateway would have answered.

use std::fmt;
use std::future::Future;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use comfy_table::ContentArrangement;
use hn_protocol::did::Did;
use hn_protocol::time::Timestamp;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

/// What takes longer than this shows that it is being worked on.
const QUIET: Duration = Duration::from_secs(1);
/// Stands for a character that is not shown.
const REPLACED: char = char::REPLACEMENT_CHARACTER;

/// The form of what is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    // Tables and sentences for people. (A doc comment here would make every `--help` three times as long.)
    #[default]
    Text,
    // Exactly one JSON document on stdout.
    Json,
}

/// How a command ended when it could do its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit 0.
    Done,
    /// It reported, and the report says that something failed: exit 1 without a further error.
    Failed,
}

/// Whether the world or the caller was wrong; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Failed,
    Usage,
}

/// Why a command did not do its work, and what to do about it.
#[derive(Clone, Debug)]
pub struct CliError {
    kind: Kind,
    code: String,
    status: u16,
    title: Option<String>,
    what: String,
    remedy: Option<String>,
    retry_after: Option<Duration>,
}

impl CliError {
    /// The command was right and could not be carried out: exit 1.
    pub fn failed(code: &str, what: impl fmt::Display) -> Self {
        Self {
            kind: Kind::Failed,
            code: code.to_owned(),
            status: 500,
            title: None,
            what: what.to_string(),
            remedy: None,
            retry_after: None,
        }
    }

    /// The command line, environment or configuration is wrong: exit 2.
    pub fn usage(code: &str, what: impl fmt::Display) -> Self {
        Self {
            kind: Kind::Usage,
            code: code.to_owned(),
            status: 400,
            title: None,
            what: what.to_string(),
            remedy: None,
            retry_after: None,
        }
    }

    /// Says what to do next.
    #[must_use]
    pub fn next(mut self, remedy: impl fmt::Display) -> Self {
        self.remedy = Some(remedy.to_string());
        self
    }

    /// The problem object of the gateway, as it came: exit 1. What is no problem object is quoted.
    pub fn from_problem(status: u16, body: &[u8]) -> Self {
        let problem: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |name: &str| problem.get(name).and_then(Value::as_str).map(str::to_owned);
        let what = text("detail").or_else(|| text("title"));
        Self {
            kind: Kind::Failed,
            code: text("code").unwrap_or_else(|| "unexpected_answer".to_owned()),
            status,
            title: text("title"),
            what: what.unwrap_or_else(|| {
                let quoted: String = String::from_utf8_lossy(body).chars().take(200).collect();
                format!("the node answered {status}: {quoted}")
            }),
            remedy: text("remedy"),
            retry_after: None,
        }
    }

    /// Says that asking again helps, after a while.
    #[must_use]
    pub fn after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// After how long asking again helps, where it does.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The stable word for this error, as in `code` of the problem object.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// The sentence of the error.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Prints to stderr and gives the exit code.
    pub fn report(&self, format: Format) -> ExitCode {
        let text = match format {
            Format::Json => json!({
                "type": format!("urn:hn:problem:{}", self.code),
                "title": self.title.clone().unwrap_or_else(|| self.code.replace('_', " ")),
                "status": self.status,
                "detail": self.what,
                "code": self.code,
                "remedy": self.remedy,
            })
            .to_string(),
            Format::Text => {
                // What the code means, then what was wrong this time; a detail alone may be no more than a value.
                let title = self.title.as_ref().filter(|title| **title != self.what);
                let title = title.map(|title| format!("{title}: ")).unwrap_or_default();
                let next = self
                    .remedy
                    .as_ref()
                    .map(|remedy| format!("\nnext: {remedy}"));
                plain(&format!(
                    "error: {title}{}{}",
                    self.what,
                    next.unwrap_or_default()
                ))
            }
        };
        // Nobody is left to tell when stderr is closed.
        let _ = writeln!(io::stderr(), "{text}");
        match self.kind {
            Kind::Failed => ExitCode::from(1),
            Kind::Usage => ExitCode::from(2),
        }
    }
}

/// Writes text to stdout. A reader that left early (`| head`) is no error.
pub fn print(text: &str) -> Result<(), CliError> {
    print_on(text).map(drop)
}

/// As [`print`], and says whether there still is a reader.
pub fn print_on(text: &str) -> Result<bool, CliError> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(CliError::failed("stdout", format_args!("stdout: {error}"))),
    }
}

/// The one JSON document of a command, on lines of its own.
pub fn print_json(document: &Value) -> Result<(), CliError> {
    print(&format!("{document:#}\n"))
}

/// Prints the document with `-o json`, else what `text` makes of it.
pub fn show(
    format: Format,
    document: &Value,
    text: impl FnOnce(&Value) -> String,
) -> Result<(), CliError> {
    match format {
        Format::Json => print_json(document),
        Format::Text => print(&plain(&text(document))),
    }
}

/// `bob (did:hn:z6Mk…Xy)`, or the whole DID where nobody has a name for it.
pub fn name(did: &str, alias: Option<&str>) -> String {
    match alias {
        Some(alias) => match did.parse::<Did>() {
            Ok(parsed) => format!("{alias} ({})", parsed.short()),
            Err(_) => format!("{alias} ({did})"),
        },
        None => did.to_owned(),
    }
}

/// `text` without what a terminal would obey rather than show: others choose paths, tags, aliases and reasons.
/// Lines stay lines.
pub fn plain(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c != '\n' && is_obeyed(c) {
                REPLACED
            } else {
                c
            }
        })
        .collect()
}

/// As [`plain`], on one line.
pub fn plain_line(text: &str) -> String {
    text.chars()
        .map(|c| if is_obeyed(c) { REPLACED } else { c })
        .collect()
}

/// Control characters, and what reorders or breaks a line.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A table in the one look of this program: no frames, columns apart, nothing broken: a digest has to be copied whole.
pub struct Table(comfy_table::Table);

/// An empty table under `header`.
pub fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = comfy_table::Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    Table(table)
}

impl Table {
    /// Adds a row of [`plain_line`]s.
    pub fn add_row<const N: usize>(&mut self, cells: [impl AsRef<str>; N]) {
        self.0.add_row(cells.map(|cell| plain_line(cell.as_ref())));
    }

    /// Breaks cells rather than lines that are longer than the terminal is wide.
    pub fn fit(&mut self) {
        self.0.set_content_arrangement(ContentArrangement::Dynamic);
    }

    /// Whether it has no row.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A table as text, without blanks at the ends of lines.
pub fn lines(table: &Table) -> String {
    let lines = table.0.lines();
    lines
        .map(|line| {
            line.strip_prefix(' ')
                .unwrap_or(&line)
                .trim_end()
                .to_owned()
                + "\n"
        })
        .collect()
}

/// `1 entry`, `2 entries`; a dash where nothing is known.
pub fn entries(count: &Value) -> String {
    match count.as_u64() {
        Some(1) => "1 entry".to_owned(),
        Some(count) => format!("{count} entries"),
        None => "-".to_owned(),
    }
}

/// 1 536 → `1.5 KiB`.
pub fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" {
                format!("{count} B")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// 3 725 → `1h 2m`: the two largest units.
pub fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// A moment of an answer as seen from `now`: `5s ago`, `in 4s`; nothing where there is none.
pub fn when(moment: &Value, now: Timestamp) -> String {
    let Some(text) = moment.as_str() else {
        return String::new();
    };
    match text.parse::<Timestamp>() {
        Ok(moment) if moment > now => format!("in {}", duration(moment.since(now).as_secs())),
        Ok(moment) => format!("{} ago", duration(now.since(moment).as_secs())),
        Err(_) => text.to_owned(),
    }
}

/// Waits for `work`; says `what` on a terminal once that takes more than a second.
pub async fn waiting<T>(what: &'static str, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = tokio::time::sleep(QUIET) => {}
    }
    let spinner =
        ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_message(what);
    spinner.enable_steady_tick(Duration::from_millis(100));
    let done = work.await;
    spinner.finish_and_clear();
    done
}

/// A bar over bytes, which shows itself on a terminal after a second.
#[derive(Clone, Debug)]
pub struct Progress {
    bar: ProgressBar,
    started: Instant,
}

impl Progress {
    /// A bar from 0 to `total` bytes; without a total it only counts.
    pub fn bytes(total: Option<u64>) -> Self {
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
        let template = if total.is_some() {
            "{bar:30} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta}"
        } else {
            "{decimal_bytes}  {decimal_bytes_per_sec}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self {
            bar,
            started: Instant::now(),
        }
    }

    /// Counts further bytes.
    pub fn add(&self, count: u64) {
        if self.bar.is_hidden()
            && self.started.elapsed() > QUIET
            && io::IsTerminal::is_terminal(&io::stderr())
        {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.inc(count);
    }

    /// Takes the bar off the screen.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(64 << 20), "64.0 MiB");
        assert_eq!(bytes(5 << 40), "5.0 TiB");
        assert_eq!(duration(42), "42s");
        assert_eq!(duration(3725), "1h 2m");
        assert_eq!(duration(200_000), "2d 7h");
    }

    #[test]
    fn a_moment_is_told_from_now() {
        let now: Timestamp = "2026-11-23T12:00:00.000Z".parse().unwrap();
        assert_eq!(when(&json!("2026-11-23T11:58:55.000Z"), now), "1m 5s ago");
        assert_eq!(when(&json!("2026-11-23T12:00:04.000Z"), now), "in 4s");
        assert_eq!(when(&Value::Null, now), "");
        assert_eq!(when(&json!("soon"), now), "soon");
    }

    #[test]
    fn a_problem_keeps_its_words_and_anything_else_is_quoted() {
        let error = CliError::from_problem(
            404,
            br#"{"detail":"no such peer","code":"unknown_peer","remedy":"look"}"#,
        );
        assert_eq!(
            (error.what(), error.code(), error.remedy.as_deref()),
            ("no such peer", "unknown_peer", Some("look"))
        );
        let error = CliError::from_problem(502, b"<html>");
        assert_eq!(error.what(), "the node answered 502: <html>");
    }

    #[test]
    fn a_terminal_is_told_nothing_by_those_who_choose_a_path() {
        let mut table = table(["path"]);
        table.add_row(["\u{1b}[2J\u{9b}31mgone\u{202e}txt.exe\r\nsecond\u{7}"]);
        table.add_row(["grüße/日本"]);
        let page = lines(&table);
        assert_eq!(page.lines().count(), 3, "one line a row: {page:?}");
        assert!(page.chars().all(|c| c == '\n' || !is_obeyed(c)), "{page:?}");
        assert!(page.contains("grüße/日本"), "{page}");
        assert_eq!(plain("a\u{1b}]0;x\u{7}\nb"), "a\u{fffd}]0;x\u{fffd}\nb");
    }

    #[test]
    fn a_known_did_is_named_and_shortened() {
        let did = "did:hn:z6Mkon3Necd6NkkyfoGoHxid2znGc59LU3K7mubaRcFbLfLX";
        assert_eq!(name(did, Some("bob")), "bob (did:hn:z6Mko…LfLX)");
        assert_eq!(name(did, None), did);
    }
}
