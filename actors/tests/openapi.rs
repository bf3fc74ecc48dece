//! `spec/openapi.json` is what the node answers at `/openapi.json`. `HN_SPEC_WRITE=1` writes it anew.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[test]
fn the_api_is_described_as_promised() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../spec/openapi.json");
    let document = hn_actors::gateway::openapi_document();
    let made = format!("{}\n", serde_json::to_string_pretty(&document).unwrap());
    if std::env::var_os("HN_SPEC_WRITE").is_some() {
        std::fs::write(path, &made).unwrap();
    }
    let promised = std::fs::read_to_string(path).unwrap();
    assert!(
        promised == made,
        "spec/openapi.json is not what the node answers; look at the change, then \
         HN_SPEC_WRITE=1 cargo test -p hn-actors --test openapi"
    );
}
