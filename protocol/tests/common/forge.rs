//! How eve, or a publisher gone bad, makes documents that are well-formed and well-signed, and wrong.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use hn_protocol::did::Identity;
use hn_protocol::digest::Digest;
use hn_protocol::{canonical, merkle};
use serde_json::{Map, Value};

/// The members of a document.
pub type Object = Map<String, Value>;

/// The edit that gives member `key` this value.
pub fn set(key: &'static str, value: impl Into<Value>) -> impl FnOnce(&mut Object) {
    move |object| {
        object.insert(key.into(), value.into());
    }
}

/// The digest by which other documents name this line.
pub fn digest_of(bytes: &Bytes) -> String {
    let id = object(bytes)["id"].as_str().unwrap().to_owned();
    id.split_once(':').unwrap().1.to_owned()
}

/// The members of a line.
pub fn object(bytes: &Bytes) -> Object {
    serde_json::from_slice(bytes).unwrap()
}

/// `bytes` after `edit`, everything else as it was: id and signature no longer fit.
pub fn edited(bytes: &Bytes, edit: impl FnOnce(&mut Object)) -> Bytes {
    let mut object = object(bytes);
    edit(&mut object);
    Bytes::from(canonical::to_vec(&Value::Object(object)).unwrap())
}

/// `bytes` after `edit`, with the id that it then has; the signature no longer fits.
pub fn with_id(bytes: &Bytes, edit: impl FnOnce(&mut Object)) -> Bytes {
    edited(bytes, |object| {
        let signature = object.remove("signature").unwrap();
        object.remove("id");
        edit(object);
        let digest = Digest::of(&canonical::to_vec(object).unwrap());
        let name = object["type"].as_str().unwrap().split('@').next().unwrap();
        let id = format!("{name}:{digest}");
        object.insert("id".into(), id.into());
        object.insert("signature".into(), signature);
    })
}

/// `bytes` after `edit`, with a right id and a right signature by `signer`.
pub fn signed(bytes: &Bytes, signer: &Identity, edit: impl FnOnce(&mut Object)) -> Bytes {
    edited(&with_id(bytes, edit), |object| {
        object.remove("signature");
        let signature = signer.sign(&canonical::to_vec(object).unwrap());
        let text = format!("ed25519:{}", URL_SAFE_NO_PAD.encode(signature));
        object.insert("signature".into(), text.into());
    })
}

/// Makes `merkle_root` that of the entries, whatever they are.
pub fn reroot(object: &mut Object) {
    let entries = object["entries"].as_array().unwrap();
    let leaves: Vec<Digest> = entries
        .iter()
        .map(|entry| merkle::leaf_hash(&canonical::to_vec(entry).unwrap()))
        .collect();
    object.insert(
        "merkle_root".into(),
        merkle::root(&leaves).to_string().into(),
    );
}
