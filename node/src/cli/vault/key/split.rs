//! `hn vault key split`: a key → shares on stdout, and as files where a folder is named. The files are durable before
//! anything is shown.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, IsTerminal, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use hn_actors::keyring::IdentityInfo;
use hn_actors::vault::{DIR_MODE, FILE_MODE, sync_dir};
use hn_protocol::document::KeyShare;
use hn_protocol::key_share::{
    Gathered, Layout, MAX_SHARES, MIN_THRESHOLD, Pad, Share, SplitError, split,
};
use hn_protocol::sign::Signed;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{pad, share_passphrase};
use crate::cli::Context;
use crate::cli::id::{self, parse_alias};
use crate::cli::output::{self, CliError, Format};
use crate::cli::qr;

/// Words on a line: five lines a share.
const WORDS_A_LINE: usize = 7;

#[derive(Debug, Args)]
pub struct Split {
    /// How many shares bring the key back, 2 to 16
    #[arg(long, value_name = "K", default_value_t = 3, value_parser = number())]
    threshold: u8,
    /// How many shares to make, at most 16
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = number())]
    shares: u8,
    /// The identity; else the one in use
    #[arg(long, value_parser = parse_alias)]
    alias: Option<String>,
    /// Also put each share into a file and a picture of its QR code in this folder
    #[arg(long, value_name = "DIR")]
    out_dir: Option<PathBuf>,
    /// Ask for a passphrase besides the shares: the first line of this file
    #[arg(long, value_name = "FILE")]
    share_passphrase_file: Option<PathBuf>,
    /// Draw the QR codes also where stdout is no terminal; with -o json, add them as `qr`
    #[arg(long)]
    qr: bool,
}

fn number() -> clap::builder::RangedI64ValueParser<u8> {
    clap::value_parser!(u8).range(i64::from(MIN_THRESHOLD)..=i64::from(MAX_SHARES))
}

/// One share in each of its forms.
struct Sheet {
    index: u8,
    words: Zeroizing<String>,
    document: Zeroizing<String>,
    /// The document's and the picture's file, where they were made.
    files: Option<(PathBuf, PathBuf)>,
    qr: Option<String>,
}

/// Splits, writes the files, then shows the shares.
pub fn run(ctx: &Context, arguments: Split) -> Result<(), CliError> {
    let Split {
        threshold,
        shares: count,
        ..
    } = arguments;
    if threshold > count {
        let text = format_args!("of {count} shares there are not {threshold} to bring together");
        return Err(CliError::usage("bad_threshold", text)
            .next("give a --threshold that is at most --shares"));
    }
    ctx.existing_home()?;
    let keyring = id::open(ctx)?;
    let identity = id::named_or_active(&keyring, arguments.alias)?;
    let passphrase = share_passphrase(arguments.share_passphrase_file.as_deref())?;
    let seed = keyring.unlock(&identity.alias, ctx.passphrase()?.as_ref());
    let seed = seed.map_err(|error| id::keyring_error(&error))?;

    let mut rng = rand::rng();
    let layout = Layout::new(
        &identity.did,
        threshold,
        count,
        passphrase.is_some(),
        &mut rng,
    );
    let layout = layout.map_err(not_split)?;
    let pad = passphrase.map(|secret| pad(&secret, &layout)).transpose()?;
    let shares = split(&seed, layout, count, pad.as_ref(), &mut rng).map_err(not_split)?;
    proved(&shares, &layout, &identity, pad.as_ref())?;
    let signer = seed.identity();
    let mut sheets = Vec::with_capacity(shares.len());
    for share in &shares {
        let document = KeyShare::new(share, identity.did, Vec::new());
        let signed = Signed::create(&document, &signer)
            .map_err(|error| CliError::failed("not_split", error))?;
        sheets.push(Sheet {
            index: share.index,
            words: share.to_words(),
            document: Zeroizing::new(String::from_utf8_lossy(signed.bytes()).into_owned()),
            files: None,
            qr: None,
        });
    }
    if let Some(folder) = &arguments.out_dir {
        write_all(folder, &identity.alias, &mut sheets)?;
    }
    let terminal = ctx.format == Format::Text && io::stdout().is_terminal();
    if arguments.qr || (terminal && arguments.out_dir.is_none()) {
        draw(&mut sheets, arguments.qr)?;
    }
    match ctx.format {
        Format::Json => output::print_json(&json(&sheets, &layout, &identity))?,
        Format::Text => output::print(&text(&sheets, &layout, &identity))?,
    }
    warn(count, &layout, &identity);
    Ok(())
}

fn not_split(error: SplitError) -> CliError {
    CliError::failed("not_split", error)
}

/// Shares that bring nothing back are worse than none, so the first and the last ones do it once here.
fn proved(
    shares: &[Share],
    layout: &Layout,
    identity: &IdentityInfo,
    pad: Option<&Pad>,
) -> Result<(), CliError> {
    let words: Vec<Zeroizing<String>> = shares.iter().map(Share::to_words).collect();
    let threshold = usize::from(layout.threshold);
    for few in [&words[..threshold], &words[words.len() - threshold..]] {
        let texts: Vec<&str> = few.iter().map(|words| words.as_str()).collect();
        Gathered::of(&texts, Some(identity.did))
            .and_then(|gathered| gathered.recover(pad))
            .map_err(|error| {
                CliError::failed("not_split", format_args!("the shares are no good: {error}"))
                    .next("try again; this is a fault of the machine or of hn")
            })?;
    }
    Ok(())
}

/// Draws the codes; where nobody asked for them and the terminal is too narrow, there are none.
fn draw(sheets: &mut [Sheet], asked: bool) -> Result<(), CliError> {
    for sheet in sheets {
        let code = qr::drawn(&sheet.document).map_err(|error| {
            CliError::failed("qr", format_args!("no QR code of a share: {error}"))
                .next("take the words, or the files that --out-dir makes")
        })?;
        if !asked && !qr::fits(&code) {
            eprintln!("next: widen it, or give --out-dir DIR for pictures");
            return Ok(());
        }
        sheet.qr = Some(code);
    }
    Ok(())
}

/// Makes a file and a picture a share. Nothing that is there is touched; where one of them cannot be made none stays.
fn write_all(folder: &Path, alias: &str, sheets: &mut [Sheet]) -> Result<(), CliError> {
    let failed = |path: &Path, error: &dyn std::fmt::Display| {
        CliError::failed("write", format_args!("{}: {error}", path.display()))
            .next("name an empty folder, or one that can be made")
    };
    match DirBuilder::new().mode(DIR_MODE).create(folder) {
        Ok(()) => sync_dir(folder.parent().unwrap_or(Path::new(".")))
            .map_err(|error| failed(folder, &error))?,
        Err(error) if !folder.is_dir() => return Err(failed(folder, &error)),
        Err(_) => {}
    }
    let mut made: Vec<PathBuf> = Vec::new();
    let mut make = |path: &Path, bytes: &[u8]| -> io::Result<()> {
        let options = &mut OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(path)?;
        made.push(path.to_owned());
        file.write_all(bytes)?;
        file.sync_all()
    };
    let mut write = || -> Result<(), CliError> {
        for sheet in sheets.iter_mut() {
            let name = format!("{alias}-share-{}", sheet.index);
            let document = folder.join(format!("{name}.json"));
            let picture = folder.join(format!("{name}.png"));
            let code = qr::png(&sheet.document).map(Zeroizing::new);
            let code = code.map_err(|error| failed(&picture, &error))?;
            let line = Zeroizing::new(format!("{}\n", *sheet.document));
            make(&document, line.as_bytes()).map_err(|error| failed(&document, &error))?;
            make(&picture, &code).map_err(|error| failed(&picture, &error))?;
            sheet.files = Some((document, picture));
        }
        sync_dir(folder).map_err(|error| failed(folder, &error))
    };
    let written = write();
    if written.is_err() {
        for path in &made {
            // Part of a set that nobody was shown; what cannot be removed is told by the error's folder.
            let _ = fs::remove_file(path);
        }
    }
    written
}

fn json(sheets: &[Sheet], layout: &Layout, identity: &IdentityInfo) -> Value {
    let shares: Vec<Value> = sheets
        .iter()
        .map(|sheet| {
            let mut share = json!({"index": sheet.index, "words": *sheet.words});
            if let Some((document, picture)) = &sheet.files {
                share["file"] = json!(document);
                share["png"] = json!(picture);
            }
            if let Some(code) = &sheet.qr {
                share["qr"] = json!(code);
            }
            share
        })
        .collect();
    json!({
        "set": layout.set,
        "threshold": layout.threshold,
        "passphrase": layout.passphrase,
        "alias": identity.alias,
        "did": identity.did,
        "shares": shares,
    })
}

fn text(sheets: &[Sheet], layout: &Layout, identity: &IdentityInfo) -> String {
    let mut page = format!(
        "{}: set {}, any {} of {} shares{}\n",
        output::name(&identity.did.to_string(), Some(&identity.alias)),
        layout.set,
        layout.threshold,
        sheets.len(),
        if layout.passphrase {
            ", and their passphrase"
        } else {
            ""
        }
    );
    for sheet in sheets {
        let _ = writeln!(page, "\nshare {}", sheet.index);
        let words: Vec<&str> = sheet.words.split(' ').collect();
        for line in words.chunks(WORDS_A_LINE) {
            let _ = writeln!(page, "  {}", line.join(" "));
        }
        if let Some((document, picture)) = &sheet.files {
            let _ = writeln!(page, "  {}\n  {}", document.display(), picture.display());
        }
        if let Some(code) = &sheet.qr {
            let _ = writeln!(page, "\n{code}");
        }
    }
    page
}

/// What the shares are worth to whoever has them.
fn warn(count: u8, layout: &Layout, identity: &IdentityInfo) {
    let (alias, threshold) = (&identity.alias, layout.threshold);
    if layout.passphrase {
        eprintln!(
            "any {threshold} of these {count} shares together with the passphrase are {alias}; without the passphrase they bring nothing back, so keep it where the machine is not"
        );
    } else {
        eprintln!(
            "any {threshold} people who hold these {count} shares ARE {alias}: they need nobody's leave and no passphrase; --share-passphrase-file asks for one besides"
        );
    }
    eprintln!(
        "next: give each to somebody else, keep none beside the machine, and try them: hn --home EMPTY vault key recover --alias {alias}"
    );
}
