//! `hn mcp storage`: what takes how much of the disk, and what has no room.

use serde_json::Value;

use super::Context;
use super::output::{self, CliError, Outcome};
use crate::client;
use crate::names::Names;

/// Prints the disk, the own log, and each publisher's.
pub async fn run(ctx: &Context) -> Result<Outcome, CliError> {
    let (answer, names) = client::with_node(ctx, async |admin| {
        let names = Names::load(ctx, admin).await?;
        Ok((admin.get("/admin/storage").await?, names))
    })
    .await?;
    output::show(ctx.format, &answer, |answer| page(answer, &names))?;
    Ok(Outcome::Done)
}

fn page(answer: &Value, names: &Names) -> String {
    let disk = &answer["disk"];
    let full = if disk["has_room"] == false {
        ": full, nothing is published or followed until there is room"
    } else {
        ""
    };
    let mut text = format!(
        "disk: {} of {} free, {} of them kept free (storage.min_free){full}\n",
        size(&disk["free_bytes"]),
        size(&disk["total_bytes"]),
        size(&disk["min_free_bytes"]),
    );
    text += &format!(
        "this node: {} in all; index {}\n\n",
        size(&answer["total_bytes"]),
        size(&answer["index_bytes"])
    );
    let mut table = output::table([
        "publisher",
        "journal",
        "files",
        "bytes",
        "quota",
        "left out",
    ]);
    let own = &answer["own"];
    table.add_row(row(own, &names.show(did(own)), "-".to_owned()));
    for publisher in answer["publishers"].as_array().into_iter().flatten() {
        let name = names.show(did(publisher));
        table.add_row(row(publisher, &name, quota(&publisher["quota_bytes"])));
    }
    text += &output::lines(&table);
    let mirrored = &answer["mirrored"];
    text += &format!(
        "\nmirrored: {} files, {}, of at most {} (storage.mirror_quota)\n",
        mirrored["artifacts"],
        size(&mirrored["artifact_bytes"]),
        quota(&mirrored["quota_bytes"]),
    );
    text
}

fn row(publisher: &Value, name: &str, quota: String) -> [String; 6] {
    let left_out = &publisher["left_out"];
    let left_out = match left_out["limit"].as_str() {
        Some(limit) => format!(
            "{} from entry {} on: {limit}",
            output::entries(&left_out["entries"]),
            left_out["from"]
        ),
        None => String::new(),
    };
    [
        name.to_owned(),
        size(&publisher["journal_bytes"]),
        publisher["artifacts"].to_string(),
        size(&publisher["artifact_bytes"]),
        quota,
        left_out,
    ]
}

fn quota(bytes: &Value) -> String {
    match bytes {
        Value::Null => "no limit".to_owned(),
        bytes => size(bytes),
    }
}

fn size(bytes: &Value) -> String {
    output::bytes(bytes.as_u64().unwrap_or_default())
}

fn did(publisher: &Value) -> &str {
    publisher["did"].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_limit_that_is_reached_is_named_with_what_it_leaves_out() {
        let answer = json!({
            "disk": {"free_bytes": 1 << 30, "total_bytes": 2_u64 << 30, "min_free_bytes": 64 << 20, "has_room": true},
            "own": {"did": "did:hn:x", "journal_bytes": 1024, "artifacts": 1, "artifact_bytes": 10},
            "mirrored": {"artifacts": 2, "artifact_bytes": 4096, "quota_bytes": null},
            "publishers": [{"did": "did:hn:y", "journal_bytes": 2048, "artifacts": 2, "artifact_bytes": 4096,
                "quota_bytes": 5000, "left_out": {"limit": "storage.publisher_quota", "from": 7, "entries": 1}}],
            "index_bytes": 1, "total_bytes": 7178,
        });
        let text = page(&answer, &Names::default());
        assert!(
            text.contains("1 entry from entry 7 on: storage.publisher_quota"),
            "{text}"
        );
        assert!(text.contains("of at most no limit"), "{text}");
    }
}
