//! A key in the hands of others: any few of its shares bring it back, and whatever else they bring is named and writes
//! nothing.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hn_integration::cluster::{Node, Output};
use hn_integration::stranger::python;
use serde_json::Value;

/// The words of each share.
fn words(split: &Value) -> Vec<String> {
    let shares = split["shares"].as_array().unwrap();
    let words = shares
        .iter()
        .map(|share| share["words"].as_str().unwrap().to_owned());
    words.collect()
}

async fn alice() -> (Node, String) {
    let alice = Node::new("alice");
    let made = alice.ok(&["id", "create", "alice"]).await;
    let did = made["identity"]["did"].as_str().unwrap().to_owned();
    (alice, did)
}

/// `hn vault key recover --alias back` with these shares and further arguments.
async fn recover(home: &Node, shares: &[&str], more: &[&str]) -> Output {
    let mut arguments = vec!["vault", "key", "recover", "--alias", "back"];
    for share in shares {
        arguments.extend(["--share", share]);
    }
    arguments.extend(more);
    home.cli(&arguments).await
}

/// That it was refused for this reason, and that nothing was written.
async fn refused(shares: &[&str], more: &[&str], status: i32, code: &str) -> String {
    let home = Node::new("empty");
    let output = recover(&home, shares, more).await;
    assert_eq!(output.status, Some(status), "{code}: {}", output.stderr);
    let problem = output.problem();
    assert_eq!(problem["code"], code, "{problem}");
    assert!(problem["remedy"].is_string(), "{problem}");
    assert!(output.stdout.is_empty(), "{}", output.stdout);
    let left = fs::read_dir(home.home()).unwrap().count();
    assert_eq!(left, 0, "{code}: no home was made");
    problem["detail"].as_str().unwrap().to_owned()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// A file of alice's scratch folder.
fn written(home: &Node, name: &str, text: &str) -> String {
    let path = home.scratch().join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn any_three_of_five_bring_the_same_did_back_on_an_empty_home() {
    let (alice, did) = alice().await;
    let split = alice.ok(&["vault", "key", "split"]).await;
    assert_eq!(
        (&split["threshold"], &split["did"]),
        (&3.into(), &did.as_str().into())
    );
    assert_eq!(split["set"].as_str().unwrap().len(), 8);
    let words = words(&split);
    let indices: Vec<u64> = split["shares"]
        .as_array()
        .unwrap()
        .iter()
        .map(|share| share["index"].as_u64().unwrap())
        .collect();
    assert_eq!(indices, [1, 2, 3, 4, 5]);
    let home = Node::new("new");
    let first = recover(&home, &[&words[0], &words[2], &words[4]], &["--did", &did]).await;
    assert_eq!(first.status, Some(0), "{}", first.stderr);
    assert_eq!(first.json["did"], did.as_str());
    assert!(first.stderr.contains("made anew"), "{}", first.stderr);
    let shown = home.ok(&["id", "get"]).await;
    assert_eq!(
        (&shown["identity"]["did"], &shown["identity"]["in_use"]),
        (&did.as_str().into(), &true.into())
    );
    let secret = home.home().join("identities/back/secret.json");
    let old = alice.home().join("identities/alice/secret.json");
    assert_eq!(mode(&secret), 0o600);
    assert_eq!(
        fs::read(secret).unwrap(),
        fs::read(old).unwrap(),
        "the very seed"
    );

    // The two that are left with one of the others, and both homes have the same key.
    let other = Node::new("other");
    let second = recover(&other, &[&words[3], &words[1], &words[0]], &[]).await;
    assert_eq!(second.json["did"], did.as_str(), "{}", second.stderr);

    // The home has it now: neither the alias nor the DID comes twice.
    for alias in ["back", "again"] {
        let mut arguments = vec!["vault", "key", "recover", "--alias", alias];
        for share in &words[..3] {
            arguments.extend(["--share", share]);
        }
        let again = home.cli(&arguments).await;
        assert_eq!(again.status, Some(1), "{alias}");
        assert_eq!(again.problem()["code"], "identity_exists");
    }
    let listed = home.ok(&["id", "list"]).await;
    assert_eq!(listed["identities"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_came_back_can_end_the_did_and_signs_nothing_before_its_log_is_whole() {
    let (alice, did) = alice().await;
    let words = words(&alice.ok(&["vault", "key", "split"]).await);
    let home = Node::new("new");
    recover(&home, &[&words[0], &words[1], &words[2]], &[]).await;
    let status = home.ok(&["status"]).await;
    assert_eq!(status["log"]["state"], "recovering", "{status}");
    let revoked = home.ok(&["id", "revoke", "--yes"]).await;
    assert_eq!(revoked["did"], did.as_str());
    let listed = home.ok(&["id", "list"]).await;
    assert_eq!(listed["identities"][0]["revoked"], true);
}

#[tokio::test]
async fn each_bad_share_is_named_with_its_code_and_writes_nothing() {
    let (alice, _) = alice().await;
    let first = words(&alice.ok(&["vault", "key", "split"]).await);
    let second = words(&alice.ok(&["vault", "key", "split"]).await);
    let (a, b, c) = (first[0].as_str(), first[1].as_str(), first[2].as_str());
    let slip = {
        let mut words: Vec<&str> = b.split(' ').collect();
        words.swap(10, 20);
        words.join(" ")
    };
    let typo = format!("awakx {}", b.split_once(' ').unwrap().1);
    let said = refused(&[a, &slip, c], &[], 1, "share_damaged").await;
    assert!(said.starts_with("share 2 is damaged"), "{said}");
    let said = refused(&[a, &typo, c], &[], 1, "share_damaged").await;
    assert!(said.contains("word 1 is none of the list"), "{said}");
    assert!(!said.contains("awakx"), "words are not repeated: {said}");
    let said = refused(&[a, b, &second[2]], &[], 1, "share_foreign").await;
    assert!(said.starts_with("share 3 is of another set"), "{said}");
    let said = refused(&[a, b, a], &[], 1, "share_duplicate").await;
    assert_eq!(said, "share 3 is the same share as share 1");
    let said = refused(&[a, b], &[], 1, "too_few_shares").await;
    assert_eq!(said, "it takes 3 shares, and there are 2");
    let other = Node::new("bob").ok(&["id", "create", "bob"]).await;
    let bob = other["identity"]["did"].as_str().unwrap();
    refused(&[a, b, c], &["--did", bob], 1, "share_foreign").await;
    let said = refused(&[a, &slip, &second[0], a], &[], 1, "share_damaged").await;
    for named in ["share 2 is damaged", "share 3 is of", "share 4 is the same"] {
        assert!(said.contains(named), "all of them are: {said}");
    }
    let many = vec![a; 65];
    refused(&many, &[], 1, "too_many_shares").await;
    refused(&[], &[], 2, "no_shares").await;
    refused(&[a, b, c], &["--alias", "../x"], 2, "usage").await;
}

#[tokio::test]
async fn a_forged_share_is_named_and_never_becomes_a_key() {
    let (alice, _) = alice().await;
    let folder = alice.scratch().join("shares");
    let split = [
        "vault",
        "key",
        "split",
        "--out-dir",
        folder.to_str().unwrap(),
    ];
    let made = alice.ok(&split).await;
    let words = words(&made);
    let file = |n: usize| made["shares"][n - 1]["file"].as_str().unwrap().to_owned();

    // Eve changes what is signed: with the old id the file is damaged, and a signature of another share is none.
    let text = fs::read_to_string(file(1)).unwrap();
    let changed = written(
        &alice,
        "changed.json",
        &text.replace("\"index\":1", "\"index\":3"),
    );
    let files = |path: &str| {
        let all = [
            "--file".to_owned(),
            path.to_owned(),
            "--file".to_owned(),
            file(2),
        ];
        [&all[..], &["--file".to_owned(), file(4)]].concat()
    };
    let arguments = files(&changed);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let said = refused(&[], &arguments, 1, "share_damaged").await;
    assert!(said.starts_with(&changed), "named by its file: {said}");
    let mut document: Value = serde_json::from_str(&text).unwrap();
    let other: Value = serde_json::from_str(&fs::read_to_string(file(5)).unwrap()).unwrap();
    document["signature"] = other["signature"].clone();
    let forged = written(&alice, "forged.json", &document.to_string());
    let arguments = files(&forged);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let said = refused(&[], &arguments, 1, "share_forged").await;
    assert!(said.starts_with(&forged), "{said}");

    // Words with a fitting checksum, and another share in them: of the vectors' sets, with alice's set and DID.
    let share = hn_protocol::key_share::Share::from_words(&words[3]).unwrap();
    let foreign = hn_protocol::key_share::Share::from_words(&words[4]).unwrap();
    let mut eves = share.clone();
    eves.value = foreign.value.clone();
    let eves = eves.to_words();
    let three = [words[0].as_str(), words[1].as_str(), eves.as_str()];
    let said = refused(&three, &[], 1, "share_forged").await;
    assert!(said.contains("at least one is forged"), "{said}");
    let four = [three[0], three[1], three[2], words[2].as_str()];
    let said = refused(&four, &[], 1, "share_forged").await;
    assert!(
        said.starts_with("share 3 is forged"),
        "with one to spare: {said}"
    );
}

#[tokio::test]
async fn files_are_their_owners_and_nothing_is_written_over() {
    let (alice, did) = alice().await;
    let folder = alice.scratch().join("deep/shares");
    let split = |count: &'static str| {
        let out = folder.to_str().unwrap();
        [
            "vault",
            "key",
            "split",
            "--threshold",
            "2",
            "--shares",
            count,
            "--out-dir",
            out,
        ]
    };
    let missing = alice.cli(&split("3")).await;
    assert_eq!(
        missing.problem()["code"],
        "write",
        "the folder above is missing"
    );
    fs::create_dir(folder.parent().unwrap()).unwrap();
    let made = alice.ok(&split("3")).await;
    let mut files = BTreeSet::new();
    for share in made["shares"].as_array().unwrap() {
        for form in ["file", "png"] {
            let path = PathBuf::from(share[form].as_str().unwrap());
            assert_eq!(mode(&path), 0o600, "{}", path.display());
            files.insert(path);
        }
    }
    assert_eq!(mode(&folder), 0o700);
    assert_eq!(files.len(), 6);
    // A set that would meet one of these files is not made at all, and takes back what it had made.
    let kept: Vec<Vec<u8>> = files.iter().map(|path| fs::read(path).unwrap()).collect();
    fs::remove_file(folder.join("alice-share-1.json")).unwrap();
    fs::remove_file(folder.join("alice-share-1.png")).unwrap();
    let again = alice.cli(&split("5")).await;
    assert_eq!(
        (again.status, &again.problem()["code"]),
        (Some(1), &"write".into())
    );
    assert!(again.stdout.is_empty(), "no share of it was shown");
    let left: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(left.len(), 4, "{left:?}");
    for (path, bytes) in files.iter().zip(kept) {
        if left.contains(path) {
            assert_eq!(fs::read(path).unwrap(), bytes);
        }
    }
    // A file and words together.
    let home = Node::new("new");
    let file = made["shares"][1]["file"].as_str().unwrap();
    let word = words(&made)[2].clone();
    let back = recover(&home, &[&word], &["--file", file]).await;
    assert_eq!(back.json["did"], did.as_str(), "{}", back.stderr);
    let png = made["shares"][1]["png"].as_str().unwrap();
    refused(&[&word], &["--file", png], 1, "share_damaged").await;
    refused(
        &[&word],
        &["--file", "/nowhere/share.json"],
        1,
        "unreadable",
    )
    .await;
    let huge = written(&alice, "huge", &"awake ".repeat(100_000));
    refused(&[&word], &["--file", &huge], 1, "share_damaged").await;
}

#[tokio::test]
async fn a_passphrase_is_asked_for_besides_and_another_seals_the_key() {
    let (alice, did) = alice().await;
    let right = written(&alice, "right", "a passphrase of shares\n");
    let wrong = written(&alice, "wrong", "another\n");
    let rest = written(&alice, "rest", "the key at rest\n");
    let locked = ["vault", "key", "split", "--share-passphrase-file", &right];
    let open = alice.cli(&["vault", "key", "split"]).await;
    assert!(
        open.stderr.contains("ARE alice"),
        "said plainly: {}",
        open.stderr
    );
    let split = alice.cli(&locked).await;
    assert!(!split.stderr.contains("ARE alice"), "{}", split.stderr);
    assert_eq!(split.json["passphrase"], true);
    let words = words(&split.json);
    let three: Vec<&str> = words[1..4].iter().map(String::as_str).collect();
    refused(&three, &[], 1, "share_passphrase_needed").await;
    let with_wrong = ["--share-passphrase-file", wrong.as_str()];
    refused(&three, &with_wrong, 1, "wrong_share_passphrase").await;
    refused(
        &three,
        &["--share-passphrase-file", "/nowhere"],
        1,
        "passphrase",
    )
    .await;
    let home = Node::new("new");
    let more = [
        "--share-passphrase-file",
        &right,
        "--passphrase-file",
        &rest,
    ];
    let back = recover(&home, &three, &more).await;
    assert_eq!(back.json["did"], did.as_str(), "{}", back.stderr);
    assert_eq!(back.json["sealed"], true);
    // Sealed at rest, it is split with that passphrase alone.
    let refused = home.cli(&["vault", "key", "split"]).await;
    assert_eq!(refused.problem()["code"], "passphrase_needed");
    home.ok(&["--passphrase-file", &rest, "vault", "key", "split"])
        .await;
}

#[tokio::test]
async fn a_set_has_bounds() {
    let (alice, _) = alice().await;
    for (threshold, shares) in [("1", "3"), ("4", "3"), ("2", "17"), ("0", "0"), ("x", "3")] {
        let split = [
            "vault",
            "key",
            "split",
            "--threshold",
            threshold,
            "--shares",
            shares,
        ];
        let output = alice.cli(&split).await;
        assert_eq!(output.status, Some(2), "{threshold} of {shares}");
        assert!(output.stdout.is_empty());
    }
    let largest = [
        "vault",
        "key",
        "split",
        "--threshold",
        "16",
        "--shares",
        "16",
        "--qr",
    ];
    let made = alice.ok(&largest).await;
    let all = words(&made);
    assert!(made["shares"][15]["qr"].as_str().unwrap().contains('█'));
    let home = Node::new("new");
    let shares: Vec<&str> = all.iter().map(String::as_str).collect();
    let back = recover(&home, &shares, &[]).await;
    assert_eq!(back.status, Some(0), "{}", back.stderr);
    refused(&shares[1..], &[], 1, "too_few_shares").await;
    let unknown = alice
        .cli(&["vault", "key", "split", "--alias", "nobody"])
        .await;
    assert_eq!(unknown.problem()["code"], "unknown_identity");
    let nowhere = Node::new("nobody").cli(&["vault", "key", "split"]).await;
    assert_eq!(nowhere.problem()["code"], "no_home");
}

/// Y1 to Y6 by a reader that shares no code with ours.
#[tokio::test]
async fn shares_bring_the_key_back_with_independent_tools() {
    let Some(python) = python() else { return };
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let brought = |lines: &[String], passphrase: Option<&str>| -> Result<Value, String> {
        let mut command = Command::new(&python);
        command
            .arg(format!("{root}/integration/independent/key_share.py"))
            .arg(format!("{root}/spec/words.txt"))
            .args(passphrase.iter().flat_map(|text| ["--passphrase", text]))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(lines.join("\n").as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        serde_json::from_slice(&output.stdout).map_err(|_| said)
    };
    let (alice, did) = alice().await;
    let secret = written(&alice, "secret", "gr\u{fc}n\n");
    let folder = alice.scratch().join("shares");
    let split = |locked: bool| {
        let mut arguments = vec!["vault", "key", "split"];
        if locked {
            arguments.extend(["--out-dir", folder.to_str().unwrap()]);
            arguments.extend(["--share-passphrase-file", &secret]);
        }
        arguments
    };
    let open = words(&alice.ok(&split(false)).await);
    assert_eq!(brought(&open[2..], None).unwrap()["did"], did.as_str());
    let locked = alice.ok(&split(true)).await;
    let file = fs::read_to_string(locked["shares"][0]["file"].as_str().unwrap()).unwrap();
    let mixed = [&[file.trim().to_owned()], &words(&locked)[3..]].concat();
    assert_eq!(
        brought(&mixed, Some("gr\u{fc}n")).unwrap()["did"],
        did.as_str()
    );
    assert!(
        brought(&mixed, Some("rot"))
            .unwrap_err()
            .contains("another key")
    );

    let vectors = fs::read(format!("{root}/spec/vectors/key_share.json")).unwrap();
    let vectors: Value = serde_json::from_slice(&vectors).unwrap();
    for set in vectors["sets"].as_array().unwrap() {
        for form in ["words", "document_utf8"] {
            let shares = set["shares"].as_array().unwrap().iter().rev();
            let lines: Vec<String> = shares
                .map(|share| share[form].as_str().unwrap().to_owned())
                .collect();
            let key = brought(&lines, set["passphrase"].as_str()).unwrap();
            assert_eq!(
                key["seed_hex"], set["seed_hex"],
                "{} as {form}",
                set["name"]
            );
        }
    }
}
