//! `hn mcp allow` and `hn mcp invite`: who may do what here, and how they come to ask for it.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal};

use clap::Args;
use hn_actors::roster::Right;
use hn_protocol::invite::Invite;
use reqwest::{Method, Url};
use serde_json::{Value, json};

use super::output::{self, CliError, Format, Outcome};
use super::{Context, qr};
use crate::client;
use crate::names::Names;

#[derive(Debug, Args)]
pub struct Allow {
    /// Whom: a DID, also of one who waits, or a peer's alias
    #[arg(value_name = "DID|ALIAS")]
    did: String,
    /// What they may do from now on, and nothing else: read,relay,backup,inbox, or none
    #[arg(value_parser = parse_rights)]
    rights: Rights,
    /// Count them as a friend; without it they are none
    #[arg(long)]
    friend: bool,
}

/// What stands in the place of RIGHTS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rights(BTreeSet<Right>);

/// A comma list of rights, or `none`.
fn parse_rights(text: &str) -> Result<Rights, String> {
    if text == "none" {
        return Ok(Rights::default());
    }
    let said = |error| format!("{error}; several are joined by commas, and none stands alone");
    let rights = text.split(',').map(|word| word.trim().parse::<Right>());
    let rights: Result<_, _> = rights.collect();
    rights.map(Rights).map_err(said)
}

#[derive(Debug, Args)]
pub struct InviteArguments {
    /// For how long somebody may come with it, in days [default: 30]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=365))]
    expires: Option<u64>,
    /// Draw the QR code also where stdout is no terminal; with -o json, add it as `qr`
    #[arg(long)]
    qr: bool,
    /// Take back every invite that nobody came with, and make none
    #[arg(long, conflicts_with_all = ["expires", "qr"])]
    withdraw: bool,
}

/// Sets what a DID may do, and says what that is.
pub async fn allow(ctx: &Context, arguments: Allow) -> Result<Outcome, CliError> {
    let Allow {
        did,
        rights: Rights(rights),
        friend,
    } = arguments;
    let (answer, shown) = client::with_node(ctx, async |admin| {
        let names = Names::load(ctx, admin).await?;
        let did = names.did(&did)?;
        let path = format!("/admin/friends/{did}");
        let request = if rights.is_empty() && !friend {
            admin.request(Method::DELETE, &path)
        } else {
            let rights: Vec<&str> = rights.iter().map(|right| right.name()).collect();
            let body = json!({ "rights": rights, "friend": friend });
            admin.request(Method::PUT, &path).json(&body)
        };
        Ok((client::json(request).await?, names.show(&did)))
    })
    .await?;
    output::show(ctx.format, &answer, |answer| allowed(answer, &shown))?;
    Ok(Outcome::Done)
}

fn allowed(answer: &Value, shown: &str) -> String {
    let friend = &answer["friend"];
    let rights = rights_of(friend);
    match (friend["friend"] == true, rights.as_str()) {
        (true, "") => format!("{shown} is a friend now, without any right\n"),
        (true, rights) => format!("{shown} is a friend now, and may: {rights}\n"),
        (false, "") if answer["request"] == true => {
            format!("{shown} is dismissed, and may do nothing here\n")
        }
        (false, "") => format!("{shown} may do nothing here\n"),
        (false, rights) => format!("{shown} may now: {rights}\n"),
    }
}

/// The rights of a friend as a person reads them.
pub fn rights_of(friend: &Value) -> String {
    let rights = friend["rights"].as_array().into_iter().flatten();
    let rights: Vec<&str> = rights.filter_map(Value::as_str).collect();
    rights.join(", ")
}

/// Makes an invite and prints it; on a terminal as a QR code as well.
pub async fn invite(ctx: &Context, arguments: InviteArguments) -> Result<Outcome, CliError> {
    if arguments.withdraw {
        return withdraw(ctx).await;
    }
    let body = json!({ "expires_days": arguments.expires });
    let (mut answer, running) = client::with_node(ctx, async |admin| {
        let answer = admin.post("/admin/invites", &body).await?;
        Ok((answer, admin.is_remote()))
    })
    .await?;
    let line = answer["invite"].as_str().unwrap_or_default().to_owned();
    let invite: Invite = line.parse().map_err(|error| {
        CliError::failed("bad_answer", format_args!("the node's invite: {error}"))
    })?;
    let terminal = ctx.format == Format::Text && io::stdout().is_terminal();
    let code = if arguments.qr || terminal {
        Some(drawn(&line)?)
    } else {
        None
    };
    let code = code.filter(|code| arguments.qr || qr::fits(code));
    match (ctx.format, code) {
        (Format::Json, code) => {
            if let Some(code) = code {
                answer["qr"] = code.into();
            }
            output::print_json(&answer)?;
        }
        // The line alone: it is made to be copied, or piped on.
        (Format::Text, None) => output::print(&format!("{line}\n"))?,
        (Format::Text, Some(code)) => output::print(&format!("{line}\n\n{code}\n"))?,
    }
    if ctx.format == Format::Text {
        let until = answer["expires_at"].as_str().unwrap_or_default();
        eprintln!(
            "good until {until}; who comes first with it shows in `hn status`, and `hn mcp allow` says yes"
        );
    }
    if let Some(problem) = unreachable(invite.url.as_str()) {
        eprintln!(
            "warning: {problem}\nnext: hn mcp serve --listen 0.0.0.0:7733 --public-url URL, then invite anew"
        );
    }
    if !running {
        eprintln!(
            "warning: no node runs on this home, so nobody can come with it\nnext: hn mcp serve"
        );
    }
    Ok(Outcome::Done)
}

async fn withdraw(ctx: &Context) -> Result<Outcome, CliError> {
    let answer = client::with_node(ctx, async |admin| {
        client::json(admin.request(Method::DELETE, "/admin/invites")).await
    })
    .await?;
    output::show(ctx.format, &answer, |answer| {
        match answer["withdrawn"].as_u64() {
            Some(1) => "one invite taken back\n".to_owned(),
            count => format!("{} invites taken back\n", count.unwrap_or_default()),
        }
    })?;
    Ok(Outcome::Done)
}

/// The line as a QR code of half blocks: two modules a character, light ones drawn, as terminals are dark.
fn drawn(line: &str) -> Result<String, CliError> {
    qr::drawn(line).map_err(|error| {
        CliError::failed("qr", format_args!("no QR code of the invite: {error}"))
            .next("send the line by chat; it prints without --qr into a file")
    })
}

/// Why others cannot reach a URL, where that can be seen from it.
fn unreachable(url: &str) -> Option<String> {
    let url = Url::parse(url).ok()?;
    let of_this_machine = match url.host()? {
        url::Host::Domain(name) => name == "localhost" || name.ends_with(".localhost"),
        url::Host::Ipv4(address) => address.is_loopback() || address.is_unspecified(),
        url::Host::Ipv6(address) => address.is_loopback() || address.is_unspecified(),
    };
    let shown = url.as_str().trim_end_matches('/');
    of_this_machine.then(|| format!("nobody reaches {shown} but this machine"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use qrcode::{EcLevel, QrCode};

    #[test]
    fn rights_are_a_list_or_none() {
        let rights = |text| parse_rights(text).map(|Rights(rights)| rights);
        assert_eq!(rights("none"), Ok(BTreeSet::new()));
        let two = BTreeSet::from([Right::Read, Right::Inbox]);
        assert_eq!(rights("inbox,read"), Ok(two.clone()));
        assert_eq!(rights("read, inbox,read"), Ok(two));
        for wrong in ["", "root", "read,", "none,read", "READ", "read;inbox"] {
            let error = rights(wrong).unwrap_err();
            assert!(error.contains("read, relay, backup, inbox"), "{error}");
        }
    }

    #[test]
    fn the_code_has_its_modules_and_a_quiet_zone() {
        let line = "did:hn:z6Mkon3Necd6NkkyfoGoHxid2znGc59LU3K7mubaRcFbLfLX=https://alice.example.net#AAAAAAAAAAAAAAAAAAAAAA";
        let width = QrCode::with_error_correction_level(line, EcLevel::L)
            .unwrap()
            .width();
        let code = drawn(line).unwrap();
        let lines: Vec<&str> = code.lines().collect();
        // Four light modules on each side, two modules a line.
        assert_eq!(lines.len(), (width + 8).div_ceil(2));
        for line in &lines {
            assert_eq!(line.chars().count(), width + 8);
        }
        let light = |c: char| matches!(c, '█');
        assert!(lines[0].chars().all(light) && lines[1].chars().all(light));
        // The finder pattern: seven dark modules, framed by light ones.
        assert_eq!(
            lines[2].chars().take(12).collect::<String>(),
            "████ ▄▄▄▄▄ █"
        );
    }

    #[test]
    fn the_longest_invite_can_be_drawn() {
        let longest = "x".repeat(hn_protocol::invite::MAX_INVITE);
        assert!(drawn(&longest).is_ok());
    }

    #[test]
    fn only_this_machine_reaches_its_loopback() {
        for url in [
            "http://127.0.0.1:7733",
            "http://localhost:7733",
            "https://[::1]/",
            "http://0.0.0.0:1",
        ] {
            assert!(unreachable(url).is_some(), "{url}");
        }
        for url in ["https://alice.example.net", "http://192.168.1.4:7733"] {
            assert!(unreachable(url).is_none(), "{url}");
        }
    }

    #[test]
    fn what_somebody_may_do_is_one_sentence() {
        let said = |rights: &[&str], friend, request| {
            let answer =
                json!({"friend": {"rights": rights, "friend": friend}, "request": request});
            allowed(&answer, "bob")
        };
        assert_eq!(
            said(&["read", "relay"], false, true),
            "bob may now: read, relay\n"
        );
        assert_eq!(
            said(&["read"], true, false),
            "bob is a friend now, and may: read\n"
        );
        assert_eq!(
            said(&[], true, false),
            "bob is a friend now, without any right\n"
        );
        assert_eq!(
            said(&[], false, true),
            "bob is dismissed, and may do nothing here\n"
        );
        assert_eq!(said(&[], false, false), "bob may do nothing here\n");
    }
}
