//! Whether a home is the one that its log was written in: `identities/<alias>/place.json` (O3 of `spec/index@2.md`).
//!
//! The file names the moment at which it was created itself, as the file system keeps it. A copy, an archive or a backup
//! brings the file back with the old content and another creation time; a reboot, a rename or a restart change neither.
//! While the own log is recovered the file says so, and why, so that no restart forgets it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use hn_protocol::recovery::Troubles;
use serde::{Deserialize, Serialize};

use crate::vault;

/// The file's name within the identity's folder.
pub const PLACE_FILE: &str = "place.json";

/// What the file says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlaceFile {
    /// When, or where the file system does not keep that, as which inode the file was created.
    born: String,
    /// What the recovery that is under way has to mend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recovering: Option<Troubles>,
}

/// The marker of one identity in one home.
#[derive(Debug, Clone)]
pub struct PlaceMarker {
    path: PathBuf,
}

impl PlaceMarker {
    /// The marker in the identity's folder.
    #[must_use]
    pub fn new(identity: &Path) -> Self {
        Self {
            path: identity.join(PLACE_FILE),
        }
    }

    /// What is to be mended before the home's log may be signed upon; nothing where this is the home's own place.
    #[must_use]
    pub fn read(&self) -> Troubles {
        let restored = Troubles {
            restored: true,
            ..Troubles::default()
        };
        let (place, born) = match self.open() {
            Ok(read) => read,
            Err(error) => {
                tracing::debug!(path = %self.path.display(), %error, "no place marker");
                return restored;
            }
        };
        let mut troubles = place.recovering.unwrap_or_default();
        troubles.restored |= place.born != born;
        troubles
    }

    fn open(&self) -> io::Result<(PlaceFile, String)> {
        let place = serde_json::from_slice(&fs::read(&self.path)?)?;
        Ok((place, birth(&File::open(&self.path)?)?))
    }

    /// Makes this the home's place, durably; where `troubles` are left, as one whose log is being recovered.
    pub fn write(&self, troubles: &Troubles) -> io::Result<()> {
        let Some(folder) = self.path.parent() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let temp = folder.join(format!("{PLACE_FILE}.tmp-{}", std::process::id()));
        let written = write_new(&temp, troubles)
            .and_then(|()| fs::rename(&temp, &self.path))
            .and_then(|()| vault::sync_dir(folder));
        if written.is_err() {
            // Renamed already or never made: then there is nothing to remove.
            let _ = fs::remove_file(&temp);
        }
        written
    }
}

/// A file that says when it was created; a rename keeps that.
fn write_new(path: &Path, troubles: &Troubles) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(vault::FILE_MODE)
        .open(path)?;
    let place = PlaceFile {
        born: birth(&file)?,
        recovering: troubles.any().then(|| troubles.clone()),
    };
    let mut bytes = serde_json::to_vec(&place)?;
    bytes.push(b'\n');
    file.write_all(&bytes)?;
    file.sync_all()
}

/// What no copy of the file has: its creation time in nanoseconds, or its inode.
fn birth(file: &File) -> io::Result<String> {
    let meta = file.metadata()?;
    let created = meta.created().ok();
    let created = created.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    Ok(match created {
        Some(at) => format!("time:{}", at.as_nanos()),
        None => format!("inode:{}", meta.ino()),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::Command;

    fn marked() -> (tempfile::TempDir, PlaceMarker) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("node")).unwrap();
        let marker = PlaceMarker::new(&folder.path().join("node"));
        marker.write(&Troubles::default()).unwrap();
        (folder, marker)
    }

    #[test]
    fn a_home_in_its_place_has_no_trouble_also_after_a_rename() {
        let (folder, marker) = marked();
        assert_eq!(marker.read(), Troubles::default());
        let moved = folder.path().join("moved");
        fs::rename(folder.path().join("node"), &moved).unwrap();
        assert_eq!(PlaceMarker::new(&moved).read(), Troubles::default());
        let names: Vec<_> = fs::read_dir(&moved).unwrap().collect();
        assert_eq!(names.len(), 1, "no temp file stays");
    }

    #[test]
    fn a_copy_that_keeps_every_time_is_noticed() {
        let (folder, _) = marked();
        let copy = folder.path().join("copy");
        let status = Command::new("cp")
            .arg("-a")
            .args([folder.path().join("node"), copy.clone()])
            .status();
        assert!(status.unwrap().success());
        assert!(PlaceMarker::new(&copy).read().restored);
    }

    #[test]
    fn a_marker_that_was_put_back_in_its_own_place_is_noticed() {
        let (_folder, marker) = marked();
        let bytes = fs::read(&marker.path).unwrap();
        fs::remove_file(&marker.path).unwrap();
        assert!(marker.read().restored, "none at all");
        fs::write(&marker.path, bytes).unwrap();
        assert!(marker.read().restored, "the old one in a new file");
        fs::write(&marker.path, "{}").unwrap();
        assert!(marker.read().restored, "one that says nothing");
        marker.write(&Troubles::default()).unwrap();
        assert!(!marker.read().any());
    }

    #[test]
    fn what_is_to_be_mended_is_remembered_and_a_copy_of_it_is_still_a_copy() {
        let (folder, marker) = marked();
        let troubles = Troubles {
            damaged: Some("a line does not verify".into()),
            ..Troubles::default()
        };
        marker.write(&troubles).unwrap();
        assert_eq!(marker.read(), troubles);
        fs::create_dir(folder.path().join("copy")).unwrap();
        let copy = PlaceMarker::new(&folder.path().join("copy"));
        fs::copy(&marker.path, &copy.path).unwrap();
        let copied = copy.read();
        assert!(copied.restored && copied.damaged.is_some(), "{copied:?}");
    }
}
