//! `hn vault key recover`: shares → a key in the home. Nothing is written before the key was compared with what the
//! shares say of it.

use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use hn_actors::keyring::{IdentityInfo, KeyringError};
use hn_protocol::did::Did;
use hn_protocol::key_share::{
    BadShare, Gathered, MAX_GIVEN, MAX_SHARE_TEXT, RecoverError, Recovered,
};
use serde_json::json;
use zeroize::Zeroizing;

use super::{pad, share_passphrase};
use crate::cli::Context;
use crate::cli::id::{self, parse_alias};
use crate::cli::output::{self, CliError};

/// What pictures of our making begin with.
const PNG: &[u8] = b"\x89PNG";

#[derive(Debug, Args)]
pub struct Recover {
    /// The words of a share, or the text of its QR code; once a share. Without any they are asked for
    #[arg(long = "share", value_name = "WORDS")]
    shares: Vec<String>,
    /// A file with a share: its JSON or its words; once a share
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What the identity is called here
    #[arg(long, value_parser = parse_alias)]
    alias: String,
    /// Whose key it has to be
    #[arg(long)]
    did: Option<Did>,
    /// The passphrase of the shares, where they have one: the first line of this file
    #[arg(long, value_name = "FILE")]
    share_passphrase_file: Option<PathBuf>,
}

/// What was given, and what each is called when it is spoken of.
#[derive(Default)]
struct Pile {
    texts: Vec<Zeroizing<String>>,
    names: Vec<String>,
}

impl Pile {
    fn add(&mut self, name: String, text: Zeroizing<String>) {
        self.texts.push(text);
        self.names.push(name);
    }

    fn gathered(&self, did: Option<Did>) -> Result<Gathered, RecoverError> {
        let texts: Vec<&str> = self.texts.iter().map(|text| text.as_str()).collect();
        Gathered::of(&texts, did)
    }

    fn name(&self, place: usize) -> &str {
        self.names.get(place).map_or("a share", String::as_str)
    }

    /// `share 2 is damaged: …`.
    fn said(&self, place: usize, bad: &BadShare) -> String {
        let name = self.name(place);
        match bad {
            BadShare::Duplicate(twin) => {
                format!("{name} is the same share as {}", self.name(*twin))
            }
            BadShare::Rival(twin) => format!(
                "{name} has the number of {} and another content: one of the two is forged",
                self.name(*twin)
            ),
            bad => format!("{name} is {bad}"),
        }
    }

    fn error(&self, error: &RecoverError) -> CliError {
        let failed = |code: &str| CliError::failed(code, error);
        match error {
            RecoverError::Bad(all) => {
                let said: Vec<String> =
                    all.iter().map(|(place, bad)| self.said(*place, bad)).collect();
                let code = all.first().map_or("share_damaged", |(_, bad)| bad.code());
                CliError::failed(code, said.join("; ")).next(match code {
                    "share_damaged" => "compare it with what was written down, or leave it out",
                    "share_foreign" => {
                        "bring shares of one set together; --did DID says whose key it has to be"
                    }
                    _ => "leave it out, and bring another if too few are left",
                })
            }
            RecoverError::TooFew { have, need } => {
                let need = need.map_or(0, usize::from);
                let are = if *have == 1 { "is" } else { "are" };
                let text = format_args!("it takes {need} shares, and there {are} {have}");
                CliError::failed("too_few_shares", text)
                    .next(format_args!("bring {} more", need.saturating_sub(*have)))
            }
            RecoverError::TooMany(_) => {
                failed("too_many_shares").next("bring those of one set, each once")
            }
            RecoverError::PassphraseNeeded => failed("share_passphrase_needed")
                .next("name the file that has it by --share-passphrase-file"),
            RecoverError::Mismatch { passphrase: true } => CliError::failed(
                "wrong_share_passphrase",
                "under this passphrase the shares are not the key that they say",
            )
            .next(
                "name the file with the right one by --share-passphrase-file; if it is right, a share is forged: bring others",
            ),
            RecoverError::Mismatch { passphrase: false } => CliError::failed(
                "share_forged",
                "the shares fit together, and are not the key that they say: at least one is forged",
            )
            .next("bring more of the set: with one to spare the forged one is named"),
        }
    }
}

/// Reads the shares, brings the key back, and puts it into the home.
pub fn run(ctx: &Context, arguments: Recover) -> Result<(), CliError> {
    let Recover { alias, did, .. } = arguments;
    if ctx.kept_home()?.is_some() && id::open(ctx)?.get(&alias).is_ok() {
        // Said before anybody has typed in a hundred words.
        return Err(id::keyring_error(&KeyringError::Exists(alias)));
    }
    let passphrase = share_passphrase(arguments.share_passphrase_file.as_deref())?;
    let mut pile = Pile::default();
    for (at, words) in arguments.shares.into_iter().enumerate() {
        pile.add(format!("share {}", at + 1), Zeroizing::new(words));
    }
    for path in arguments.files {
        let text = read(&path)?;
        pile.add(path.display().to_string(), text);
    }
    if pile.texts.is_empty() {
        if !io::stdin().is_terminal() {
            return Err(CliError::usage("no_shares", "no shares, and nobody to ask")
                .next("give each by --share \"WORDS\" or --file FILE"));
        }
        let (input, mut terminal) = (&mut io::stdin().lock(), io::stderr());
        pile = ask(input, &mut terminal, did, passphrase.is_some())?;
    }
    let gathered = pile.gathered(did).map_err(|error| pile.error(&error))?;
    let layout = *gathered.layout();
    let pad = match passphrase {
        // Stretching it for nothing would take half a second, and other errors come first.
        Some(secret) if layout.passphrase && gathered.missing() == 0 => {
            Some(pad(&secret, &layout)?)
        }
        Some(_) if !layout.passphrase => {
            eprintln!("these shares have no passphrase, so the one given was not used");
            None
        }
        _ => None,
    };
    let recovered = gathered.recover(pad.as_ref());
    let Recovered { seed, keepers } = recovered.map_err(|error| pile.error(&error))?;

    let keyring = id::open(ctx)?;
    let restored = keyring.restore(
        &alias,
        &seed,
        ctx.passphrase()?.as_ref(),
        ctx.clock()?.now(),
        &mut rand::rng(),
    );
    let identity = restored.map_err(|error| id::keyring_error(&error))?;
    let document = json!({
        "did": identity.did,
        "alias": identity.alias,
        "sealed": identity.sealed,
        "set": layout.set,
        "keepers": keepers,
    });
    output::show(ctx.format, &document, |_| {
        let mut page = format!("{} is {}\n", identity.alias, identity.did);
        for keeper in &keepers {
            page += &format!("backups are kept by {} at {}\n", keeper.did, keeper.url);
        }
        page
    })?;
    tell(&identity);
    Ok(())
}

/// What the home has now, and what it has not.
fn tell(identity: &IdentityInfo) {
    let alias = &identity.alias;
    eprintln!(
        "the key is back, and nothing else: its log comes from followers or a backup; the revocation put aside was made anew, and ends the DID as the first one does"
    );
    if !identity.sealed {
        eprintln!(
            "the key lies here in plain: whoever reads it is {alias}; --passphrase-file would have sealed it"
        );
    }
}

/// The text of a file, as far as a share can be long.
fn read(path: &Path) -> Result<Zeroizing<String>, CliError> {
    // Room for all of it at once: growing would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SHARE_TEXT + 2));
    File::open(path)
        .and_then(|file| file.take(MAX_SHARE_TEXT as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| {
            CliError::failed("unreadable", format_args!("{}: {error}", path.display()))
                .next("name a readable file with one share in it")
        })?;
    if bytes.starts_with(PNG) {
        let text = format_args!("{} is a picture, and a share is a text", path.display());
        return Err(CliError::failed("share_damaged", text)
            .next("scan the code, and give its text by --share, or name the .json beside it"));
    }
    Ok(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Asks for one share after the other until there are enough. A bad one is named at once and asked for again.
fn ask(
    input: &mut impl BufRead,
    terminal: &mut impl Write,
    did: Option<Did>,
    has_passphrase: bool,
) -> Result<Pile, CliError> {
    let failed = |error| CliError::failed("terminal", format_args!("the terminal: {error}"));
    let mut pile = Pile::default();
    let mut of = String::new();
    for _ in 0..MAX_GIVEN {
        let number = pile.texts.len() + 1;
        write!(
            terminal,
            "share {number}{of}, its words or the text of its code: "
        )
        .and_then(|()| terminal.flush())
        .map_err(failed)?;
        let mut line = Zeroizing::new(String::with_capacity(MAX_SHARE_TEXT + 2));
        let mut bounded = input.take(MAX_SHARE_TEXT as u64 + 1);
        bounded.read_line(&mut line).map_err(failed)?;
        if line.trim().is_empty() {
            let error = CliError::failed("too_few_shares", "no more shares were given");
            return Err(error.next("bring as many as the shares say"));
        }
        pile.add(format!("share {number}"), line);
        match pile.gathered(did) {
            Ok(gathered) if gathered.layout().passphrase && !has_passphrase => {
                return Err(pile.error(&RecoverError::PassphraseNeeded));
            }
            Ok(gathered) if gathered.missing() == 0 => return Ok(pile),
            Ok(gathered) => of = format!(" of {}", gathered.layout().threshold),
            Err(error) => {
                // All before it were good together, so this one is not.
                let what = output::plain(pile.error(&error).what());
                writeln!(terminal, "{what}\ntry it again").map_err(failed)?;
                pile.texts.pop();
                pile.names.pop();
            }
        }
    }
    let text = format_args!("{MAX_GIVEN} shares were asked for, and too few are good");
    Err(CliError::failed("too_many_shares", text).next("bring those of one set, each once"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use hn_protocol::did::SecretSeed;
    use hn_protocol::key_share::{Layout, Pad, Share, split};

    fn words(pad: Option<&Pad>) -> Vec<String> {
        let (seed, rng) = (SecretSeed::from_bytes([1; 32]), &mut rand::rng());
        let layout = Layout::new(&seed.did(), 2, 3, pad.is_some(), rng).unwrap();
        let shares: Vec<Share> = split(&seed, layout, 3, pad, rng).unwrap();
        shares.iter().map(|s| s.to_words().to_string()).collect()
    }

    /// What was asked and answered on the terminal, and what came of it.
    fn asked(typed: &str, has_passphrase: bool) -> (Result<Pile, CliError>, String) {
        let mut terminal = Vec::new();
        let pile = ask(&mut typed.as_bytes(), &mut terminal, None, has_passphrase);
        (pile, String::from_utf8(terminal).unwrap())
    }

    #[test]
    fn a_bad_share_is_named_at_once_and_asked_for_again() {
        let (words, foreign) = (words(None), words(None));
        let typed = [&words[0], "x", &words[0], &foreign[1], &words[2]].join("\n");
        let (pile, terminal) = asked(&typed, false);
        let pile = pile.unwrap();
        assert_eq!(pile.texts.len(), 2);
        assert!(pile.gathered(None).unwrap().recover(None).is_ok());
        for said in [
            "share 2 of 2, its words",
            "share 2 is damaged",
            "share 2 is the same share as share 1",
            "share 2 is of another set",
        ] {
            assert!(terminal.contains(said), "{said}: {terminal}");
        }
        assert_eq!(terminal.matches("try it again").count(), 3);
    }

    #[test]
    fn who_has_no_more_ends_it_and_nobody_asks_for_ever() {
        let words = words(None);
        for typed in [String::new(), words[0].clone(), format!("{}\n\n", words[0])] {
            assert_eq!(
                asked(&typed, false).0.err().unwrap().code(),
                "too_few_shares"
            );
        }
        let typed = "never\n".repeat(2 * MAX_GIVEN);
        assert_eq!(
            asked(&typed, false).0.err().unwrap().code(),
            "too_many_shares"
        );
        let endless = "a".repeat(MAX_GIVEN * 2 * MAX_SHARE_TEXT);
        assert_eq!(
            asked(&endless, false).0.err().unwrap().code(),
            "too_many_shares"
        );
    }

    #[test]
    fn a_missing_passphrase_is_said_before_more_is_typed() {
        let words = words(Some(&Pad::from_bytes([7; 32])));
        let (pile, terminal) = asked(&words[0], false);
        assert_eq!(pile.err().unwrap().code(), "share_passphrase_needed");
        assert_eq!(terminal.matches("share ").count(), 1);
        assert!(asked(&words[..2].join("\n"), true).0.is_ok());
    }
}
