//! What the pages say of the node, against the node's sources: problem codes, routes, commands, failpoints,
//! settings. The node's behaviour itself is tested in `integration/`.

use std::path::Path;

use crate::{page, promised};

fn source(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The text between two marks.
fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let (_, rest) = text
        .split_once(from)
        .unwrap_or_else(|| panic!("no {from:?}"));
    rest.split_once(to).unwrap_or_else(|| panic!("no {to:?}")).0
}

/// Every string literal of a piece of source; none of those asked for has escapes.
fn literals(source: &str) -> Vec<&str> {
    source.split('"').skip(1).step_by(2).collect()
}

#[test]
fn the_problem_table_is_the_gateways() {
    let table = source("actors/src/gateway/problem.rs");
    let table = between(&table, "pub const TABLE", "\n];");
    let mut rows = String::from("\n| code | status | meaning |\n|---|---|---|\n");
    for pair in literals(table).chunks(2) {
        let [code, title] = pair else {
            panic!("a code without a title: {pair:?}")
        };
        let status = between(table, &format!("\"{code}\","), "\"");
        let status = status.trim().trim_end_matches(',');
        rows += &format!("| `{code}` | {status} | {title} |\n");
    }
    let text = page("http.md");
    let (head, _) = text.split_once("<!-- problems -->\n").expect("the mark");
    promised("http.md", &format!("{head}<!-- problems -->\n{rows}"));
}

#[test]
fn every_route_stands_in_http_md() {
    let text = page("http.md");
    let mut routes = 0;
    for file in ["mod.rs", "admin.rs", "friends.rs", "openapi.rs"] {
        let source = source(&format!("actors/src/gateway/{file}"));
        for route in literals(&source).into_iter().filter(|l| l.starts_with('/')) {
            // Patterns of the matcher and the alias below /docs are no routes of their own.
            let route = route.trim_end_matches(|c| c != '/' && route.contains("{_:"));
            if route.contains("{rest") || route == "/docs/" {
                continue;
            }
            routes += 1;
            assert!(text.contains(&format!("{route}`")), "{route} of {file}");
        }
    }
    assert!(routes > 20, "the sources are read: {routes}");
}

#[test]
fn every_failpoint_stands_in_cli_md() {
    let names = source("actors/src/failpoint.rs");
    let names = literals(between(&names, "pub const NAMES: &[&str] = &[", "];"));
    let text = page("cli.md");
    for name in &names {
        assert!(text.contains(&format!("`{name}`")), "{name}");
    }
    assert!(names.len() > 15);
}

#[test]
fn every_setting_stands_in_cli_md_with_its_default() {
    let text = page("cli.md");
    let (mut section, mut found) = (String::new(), 0);
    for line in source("node/src/profiles/local.toml").lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_end_matches(']'));
        }
        let option = line.trim_start_matches('#').split_once(" = ");
        let Some((name, value)) = option.filter(|(name, _)| !name.contains(' ')) else {
            continue;
        };
        found += 1;
        let row = format!("| `{section}{name}` |");
        let row = text
            .lines()
            .find(|l| l.starts_with(&row))
            .unwrap_or_else(|| panic!("{row}"));
        let unset = line.starts_with('#');
        assert!(
            unset || row.contains(&format!("`{}`", value.trim_matches('"'))),
            "{row}: {value}"
        );
    }
    assert!(found > 12, "the profile is read: {found}");
}

/// Flags and commands as clap prints them in the session that tests `--help`.
#[test]
fn every_flag_stands_in_cli_md() {
    let text = page("cli.md");
    for file in [
        "mod.rs",
        "id.rs",
        "mcp.rs",
        "federate.rs",
        "http.rs",
        "policy.rs",
        "friends.rs",
        "proof.rs",
        "shard.rs",
        "status.rs",
        "vault/key/split.rs",
        "vault/key/recover.rs",
    ] {
        let source = source(&format!("node/src/cli/{file}"));
        for declared in source.split("#[arg(").skip(1) {
            let (attributes, rest) = declared.split_once(")]").expect("the attribute's end");
            let field = rest.split(':').next().unwrap_or_default().trim();
            let name = field.trim_start_matches("pub ").trim().replace('_', "-");
            if attributes.contains("long = \"") {
                let name = between(attributes, "long = \"", "\"");
                assert!(text.contains(&format!("--{name}")), "--{name} of {file}");
            } else if attributes.contains("long") {
                assert!(text.contains(&format!("--{name}")), "--{name} of {file}");
            }
        }
    }
}
