//! Who may do what (`spec/policy@1.md`): gates decide, say why, and close when their policy is not to be trusted.

use std::path::PathBuf;

use hn_integration::caller::Caller;
use hn_integration::cluster::Node;
use hn_integration::converge::{SOON, eventually};
use hn_integration::hostile::sign;
use hn_protocol::did::SecretSeed;
use reqwest::Method;
use serde_json::{Value, json};

use crate::signed::{awake, past_start};

fn policy_file(node: &Node) -> PathBuf {
    node.home().join("policy/policy@1.json")
}

fn put(node: &Node, policy: &[u8]) {
    std::fs::write(policy_file(node), policy).unwrap();
    node.reload();
}

/// Waits until what the policy says of reading is `state`.
async fn stands(node: &Node, state: &str, why: &str) -> Value {
    eventually(SOON, &format!("the policy is {state}: {why}"), async || {
        let policy = node.status().await["policy"].clone();
        let said = policy["reason"].as_str().unwrap_or_default();
        match policy["state"] == state && said.contains(why) {
            true => Ok(policy),
            false => Err(policy.to_string()),
        }
    })
    .await
}

#[tokio::test]
async fn a_gate_explains_an_allow_and_a_deny_and_another_machine_decides_the_same() {
    let alice = awake("alice").await;
    let bob = SecretSeed::from_bytes(rand::random()).did().to_string();
    let check = ["policy", "check", "publish.hosted", "--caller", &bob];
    let deny = alice.ok(&check).await;
    assert_eq!(deny["mode"], "deny");
    assert!(
        deny["reason"].as_str().unwrap().contains("is false"),
        "{deny}"
    );
    assert_eq!(deny["facts"]["caller"]["friend"], false);
    alice.ok(&["mcp", "allow", &bob, "relay", "--friend"]).await;
    let allow = alice.ok(&check).await;
    assert_eq!(
        (&allow["mode"], &allow["facts"]["caller"]["rights"]),
        (&json!("allow"), &json!(["relay"]))
    );
    let nobody = alice.ok(&["policy", "check", "publish.hosted"]).await;
    assert!(
        nobody["reason"]
            .as_str()
            .unwrap()
            .contains("the fact `caller` is missing"),
        "{nobody}"
    );
    assert!(
        nobody["missing"]
            .as_array()
            .unwrap()
            .contains(&json!("caller"))
    );

    // Another machine: no home, nothing but the file.
    let carol = Node::new("carol");
    let file = carol.scratch().join("explanation.json");
    let name = file.to_str().unwrap();
    for (explanation, mode) in [(&deny, "deny"), (&allow, "allow"), (&nobody, "deny")] {
        std::fs::write(&file, explanation.to_string()).unwrap();
        let replayed = carol.ok(&["policy", "check", "--replay", name]).await;
        assert_eq!(
            (&replayed["agrees"], &replayed["mode"]),
            (&json!(true), &json!(mode))
        );
        assert_eq!(replayed["policy_of"], alice.did().to_string());
    }
    let mut lie = deny.clone();
    lie["mode"] = json!("allow");
    std::fs::write(&file, lie.to_string()).unwrap();
    let caught = carol.cli(&["policy", "check", "--replay", name]).await;
    assert_eq!(
        (caught.status, &caught.json["agrees"]),
        (Some(1), &json!(false))
    );
    lie["policy"]["gates"]["publish.hosted"] = json!({"mode": "allow"});
    std::fs::write(&file, lie.to_string()).unwrap();
    let forged = carol.cli(&["policy", "check", "--replay", name]).await;
    assert_eq!(
        (forged.status, &forged.problem()["code"]),
        (Some(1), &json!("bad_explanation"))
    );
    assert!(
        !carol.home().join("identities").exists(),
        "no home was made"
    );
}

#[tokio::test]
async fn a_condition_that_is_none_is_refused_with_its_place_and_changes_nothing() {
    let alice = awake("alice").await;
    let before = std::fs::read(policy_file(&alice)).unwrap();
    let long = format!("caller.friend{}", " ".repeat(5000));
    let deep = format!("{}true{}", "(".repeat(40), ")".repeat(40));
    for (when, said) in [
        (long.as_str(), "4096 are taken"),
        (&deep, "nested deeper than 32"),
        (
            "caller.freind",
            "line 1, column 7: there is no fact `caller.freind`",
        ),
        ("caller.friend &&\n caller.did", "line 2, column 8"),
        ("1 + 1", "the condition is a number"),
        ("caller.friend &&", "line 1, column"),
        ("caller.rights.all(r, true)", "no all, exists"),
    ] {
        let set = [
            "policy",
            "gate",
            "set",
            "federate.read",
            "--mode",
            "allow",
            "--when",
            when,
        ];
        let refused = alice.cli(&set).await;
        assert_eq!(refused.status, Some(2), "{when:.40}");
        let problem = refused.problem();
        assert_eq!(problem["code"], "bad_condition");
        assert!(
            problem["detail"].as_str().unwrap().contains(said),
            "{problem}"
        );
    }
    for line in [
        vec!["policy", "gate", "set", "federate.reed", "--mode", "allow"],
        vec![
            "policy",
            "gate",
            "set",
            "federate.read",
            "--mode",
            "perhaps",
        ],
        vec![
            "policy",
            "gate",
            "set",
            "federate.read",
            "--mode",
            "deny",
            "--when",
            "true",
        ],
    ] {
        assert_eq!(alice.cli(&line).await.status, Some(2), "{line:?}");
    }
    assert_eq!(std::fs::read(policy_file(&alice)).unwrap(), before);
    assert_eq!(alice.get("/federate/peers").await.status(), 200);
}

#[tokio::test]
async fn a_read_that_a_gate_closes_opens_to_whom_it_names_and_nodes_sign_for_it() {
    let (alice, bob, carol) = (
        awake("alice").await,
        awake("bob").await,
        awake("carol").await,
    );
    alice.publish(&[("a.txt", b"for those I know")]).await;
    let only_known = [
        "policy",
        "gate",
        "set",
        "federate.read",
        "--mode",
        "allow",
        "--when",
        "caller.known",
    ];
    alice.ok(&only_known).await;
    let unsigned = alice.get("/federate/index").await;
    assert_eq!(unsigned.status(), 401);
    assert_eq!(
        unsigned.json::<Value>().await.unwrap()["gate"],
        "federate.read"
    );
    assert_eq!(
        alice.get("/federate").await.status(),
        200,
        "what it offers is open"
    );
    assert_eq!(alice.get("/presence").await.status(), 200);
    let eve = Caller::stranger(&alice);
    for path in [
        "/federate/index",
        "/federate/peers",
        "/federate/forks",
        "/federate/watch",
        "/federate/artifacts",
    ] {
        assert_eq!(
            eve.get(path).refused().await,
            (403, "gate_denied".into()),
            "{path}"
        );
    }
    // Bob is in her roster: his node signs once it is told to, for the log, its artifacts and its news.
    alice.follow(&bob).await;
    bob.follow(&alice).await;
    bob.ok(&["mcp", "federate", "refresh", "--mirror"]).await;
    assert_eq!(bob.log(alice.did()).await.size, 1);
    let listed = bob.ok(&["mcp", "federate", "list"]).await;
    assert_eq!(listed["peers"][0]["state"], "healthy", "{listed}");
    let entries = bob
        .ok(&["shard", "list", "--from", &alice.did().to_string()])
        .await;
    let digest = entries["entries"][0]["digest"].as_str().unwrap().to_owned();
    assert_eq!(bob.get(&format!("/artifact/{digest}")).await.status(), 200);
    // Carol is not.
    carol.follow(&alice).await;
    carol.cli(&["mcp", "federate", "refresh"]).await;
    let listed = carol.ok(&["mcp", "federate", "list"]).await;
    assert_eq!(listed["peers"][0]["state"], "unreachable", "{listed}");
    let reason = listed["peers"][0]["reason"].to_string();
    assert!(reason.contains("403"), "{reason}");
    let denials = alice
        .metric("hn_policy_deny_total{gate=\"federate.read\"}")
        .await;
    assert!(denials.is_some_and(|count| count >= 6.0), "{denials:?}");
}

#[tokio::test]
async fn a_policy_that_is_not_the_newest_of_this_vault_closes_every_gate_and_is_named() {
    let mut alice = awake("alice").await;
    let good = std::fs::read(policy_file(&alice)).unwrap();
    let read: Value = serde_json::from_slice(&good).unwrap();
    let object = || read.as_object().unwrap().clone();
    let eve = SecretSeed::from_bytes([9; 32]).identity();
    let mut foreign = object();
    foreign["did"] = json!(eve.did());
    let mut unsigned = object();
    unsigned.remove("signature");
    let mut changed = object();
    changed["gates"]["publish.hosted"] = json!({"mode": "allow"});
    for (policy, why) in [
        (sign(foreign, &eve).to_vec(), "not of this vault"),
        (
            serde_json::to_vec(&unsigned).unwrap(),
            "signature is missing",
        ),
        (sign(changed.clone(), &eve).to_vec(), "signature is not by"),
        (serde_json::to_vec(&changed).unwrap(), "the id is not"),
        (b"nonsense".to_vec(), "not JSON"),
    ] {
        put(&alice, &policy);
        stands(&alice, "closed", why).await;
        assert_eq!(alice.get("/federate/peers").await.status(), 401, "{why}");
        let steps = alice.status().await["next_steps"].to_string();
        assert!(steps.contains("hn policy gate set"), "{steps}");
    }
    put(&alice, &good);
    stands(&alice, "ok", "").await;
    alice
        .ok(&["policy", "gate", "set", "publish.hosted", "--mode", "deny"])
        .await;
    put(&alice, &good);
    stands(&alice, "closed", "is below").await;
    alice.restart().await;
    stands(&alice, "closed", "is below").await;
    let get = alice.cli(&["policy", "get"]).await;
    assert_eq!(
        (get.status, &get.json["state"]),
        (Some(1), &json!("closed"))
    );
    std::fs::remove_file(policy_file(&alice)).unwrap();
    alice.reload();
    stands(&alice, "closed", "No such file").await;
    let begun = alice
        .ok(&["policy", "gate", "set", "federate.read", "--mode", "allow"])
        .await;
    assert_eq!(begun["state"], "ok");
    assert_eq!(alice.get("/federate/peers").await.status(), 200);
}

#[tokio::test]
async fn a_crash_while_a_gate_is_set_leaves_the_old_policy_or_the_new_one_in_force() {
    for (point, denies) in [
        ("policy.before_rename", false),
        ("policy.after_rename", true),
    ] {
        let mut alice = awake("alice").await;
        let set = ["policy", "gate", "set", "federate.read", "--mode", "deny"];
        alice
            .admin(Method::POST, "/admin/failpoints")
            .json(&json!({point: "crash"}))
            .send()
            .await
            .unwrap();
        let broken = alice.cli(&set).await;
        assert_eq!(broken.status, Some(1), "{point}");
        alice.ended(SOON).await;
        alice.start().await;
        past_start_of_public(&alice).await;
        let status = alice.get("/federate/peers").await.status();
        assert_eq!(status, if denies { 401 } else { 200 }, "{point}");
        alice
            .ok(&["policy", "gate", "set", "federate.read", "--mode", "allow"])
            .await;
        past_start(&alice).await;
    }
}

/// Waits for the node alone: it may let nobody read.
async fn past_start_of_public(node: &Node) {
    eventually(SOON, "the node is ready", async || {
        match node.get("/readyz").await.status().as_u16() {
            200 => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
}

#[tokio::test]
async fn a_disk_too_full_for_the_first_policy_keeps_nobody_from_reading() {
    let mut alice = Node::new("alice").with("HN_FAILPOINTS", "policy.before_rename=error");
    alice.start().await;
    assert_eq!(alice.status().await["policy"]["state"], "ok");
    assert!(!policy_file(&alice).exists(), "nothing could be kept");
    assert_eq!(alice.get("/federate/peers").await.status(), 200);
    alice.set("HN_FAILPOINTS", "");
    alice.restart().await;
    assert!(policy_file(&alice).exists());
    assert_eq!(alice.get("/federate/peers").await.status(), 200);
}
