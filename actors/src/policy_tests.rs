#![allow(clippy::unwrap_used)]
use super::*;
use hn_protocol::did::SecretSeed;
use tempfile::TempDir;

fn identity(n: u8) -> Identity {
    SecretSeed::from_bytes([n; 32]).identity()
}

struct Scene {
    dir: TempDir,
    home: Home,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&dir.path().join("home")).unwrap();
        Self { dir, home }
    }

    fn open(&self) -> PolicyShelf {
        self.open_as(1, Profile::Local)
    }

    fn open_as(&self, n: u8, profile: Profile) -> PolicyShelf {
        let own = [identity(1).did(), identity(2).did()];
        PolicyShelf::open(
            self.home.clone(),
            identity(n),
            Clock::system(),
            profile,
            &own,
        )
        .unwrap()
    }

    fn put(&self, bytes: &[u8]) {
        fs::write(self.home.policy_file(), bytes).unwrap();
    }
}

fn document(n: u8, sequence: u64) -> Signed<PolicyDocument> {
    let document = PolicyDocument {
        did: identity(n).did(),
        sequence,
        gates: Gate::defaults(),
        limits: BTreeMap::new(),
    };
    Signed::create(&document, &identity(n)).unwrap()
}

fn reads(shelf: &PolicyShelf) -> bool {
    shelf.decide(Gate::FederateRead, &Facts::default()).mode == Mode::Allow
}

fn deny() -> PolicyGate {
    PolicyGate {
        mode: Mode::Deny,
        when: None,
    }
}

#[test]
fn a_new_home_gets_the_defaults_signed_and_a_change_is_there_after_a_restart() {
    let scene = Scene::new();
    let shelf = scene.open();
    assert!(reads(&shelf));
    let first = shelf.standing();
    assert_eq!((first.state, first.sequence.is_some()), ("ok", true));
    shelf.set_gate(Gate::FederateRead, deny()).unwrap();
    assert!(!reads(&shelf));
    let second = shelf.standing();
    assert!(second.sequence > first.sequence);
    let again = scene.open();
    assert!(!reads(&again));
    assert_eq!(again.standing().digest, second.digest);
    let bad = PolicyGate {
        mode: Mode::Allow,
        when: Some("caller.frend".to_owned()),
    };
    assert!(again.set_gate(Gate::FederateRead, bad).is_err());
    assert_eq!(again.standing().digest, second.digest, "the old one stays");
}

#[test]
fn a_policy_that_is_not_the_newest_of_this_vault_closes_every_gate() {
    let scene = Scene::new();
    let shelf = scene.open();
    let good = fs::read(scene.home.policy_file()).unwrap();
    let sequence = shelf.standing().sequence.unwrap();
    let mut unsigned: serde_json::Value = serde_json::from_slice(&good).unwrap();
    unsigned.as_object_mut().unwrap().remove("signature");
    let mut other_gates = document(1, sequence).bytes().to_vec();
    other_gates.extend_from_slice(b" ");
    let twin = {
        let document = PolicyDocument {
            did: identity(1).did(),
            sequence,
            gates: BTreeMap::new(),
            limits: BTreeMap::new(),
        };
        Signed::create(&document, &identity(1)).unwrap()
    };
    let ahead = Clock::system().now().0 + 600_000;
    for (bytes, why) in [
        (
            document(3, sequence + 1).bytes().to_vec(),
            "not of this vault",
        ),
        (document(1, sequence - 1).bytes().to_vec(), "is below"),
        (twin.bytes().to_vec(), "another one"),
        (document(1, ahead).bytes().to_vec(), "ahead of the clock"),
        (
            serde_json::to_vec(&unsigned).unwrap(),
            "signature is missing",
        ),
        (b"{}".to_vec(), "type"),
        (vec![b' '; 1 << 20], "more than"),
    ] {
        scene.put(&bytes);
        shelf.reload();
        assert!(!reads(&shelf), "{why}");
        let reason = shelf.standing().reason.unwrap();
        assert!(reason.contains(why), "{reason}");
        assert!(!reads(&scene.open()), "{why}: after a restart");
    }
    fs::remove_file(scene.home.policy_file()).unwrap();
    shelf.reload();
    assert!(!reads(&shelf), "a policy that is gone opens nothing");
    scene.put(&good);
    shelf.reload();
    assert!(reads(&shelf), "the good one is good again");
    scene.put(document(1, sequence + 1).bytes());
    shelf.reload();
    assert_eq!(
        shelf.standing().sequence,
        Some(sequence + 1),
        "a newer one is taken"
    );
    scene.put(&good);
    shelf.reload();
    assert!(!reads(&shelf), "and the older one is refused from then on");
    shelf.set_gate(Gate::PublishHosted, deny()).unwrap();
    assert!(reads(&shelf), "who sets a gate starts from the defaults");
    assert!(shelf.standing().sequence > Some(sequence + 1));
}

#[test]
fn each_identity_of_a_home_has_its_own_policy() {
    let scene = Scene::new();
    scene.open().set_gate(Gate::FederateRead, deny()).unwrap();
    assert!(
        reads(&scene.open_as(2, Profile::Local)),
        "the other begins with the defaults"
    );
    assert!(!reads(&scene.open()), "and the first has its own again");
    assert!(reads(&scene.open_as(2, Profile::Local)));
}

#[test]
fn the_profile_federation_writes_templates_and_leaves_those_that_are_there() {
    let scene = Scene::new();
    let shelf = scene.open_as(1, Profile::Federation);
    let template = scene
        .dir
        .path()
        .join("home/policy/templates/trust.exposure.json");
    let read: serde_json::Value = serde_json::from_slice(&fs::read(&template).unwrap()).unwrap();
    assert_eq!(read["when"], "caller.friend");
    assert_eq!(
        read["command"],
        "hn policy gate set trust.exposure --mode allow --when 'caller.friend'"
    );
    let decision = shelf.decide(Gate::TrustExposure, &Facts::default());
    assert_eq!(decision.mode, Mode::Deny, "a template is not in force");
    fs::write(&template, "mine").unwrap();
    scene.open_as(1, Profile::Federation);
    assert_eq!(fs::read_to_string(&template).unwrap(), "mine");
}
