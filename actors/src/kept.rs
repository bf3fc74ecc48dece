//! A small file that holds one JSON value: read strictly, written atomically, durable before a change is seen.
//!
//! A file that cannot be read as what it is to be is set aside as `<file>.damaged-<ms>` and said; it is never overwritten.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use hn_protocol::canonical;
use hn_protocol::time::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::error;

use crate::failpoint;
use crate::vault;

/// The largest file that is read: some 256 entries of a kilobyte each, and room.
const MAX_BYTES: u64 = 1 << 20;

/// The file, with what it holds. Readers never wait for the disk.
pub(crate) struct Kept<T> {
    path: PathBuf,
    failpoint: &'static str,
    value: RwLock<Arc<T>>,
    writing: Mutex<()>,
    trouble: Option<String>,
}

impl<T: Clone + Default + PartialEq + Serialize + DeserializeOwned> Kept<T> {
    /// Reads the file; an absent one holds the default. What a crash left beside it is removed: whoever holds the home is
    /// the only one who writes here. Errors: the disk.
    pub fn open(path: PathBuf, failpoint: &'static str, now: Timestamp) -> io::Result<Self> {
        sweep(&path)?;
        let (value, trouble) = match read(&path)? {
            Ok(value) => (value, None),
            Err(wrong) => {
                let mut aside = path.clone().into_os_string();
                aside.push(format!(".damaged-{}", now.0));
                let aside = PathBuf::from(aside);
                fs::rename(&path, &aside)?;
                vault::sync_dir(path.parent().unwrap_or(Path::new(".")))?;
                error!(path = %path.display(), set_aside = %aside.display(), wrong, "a file was damaged and is begun anew");
                let trouble = format!(
                    "{} could not be read ({wrong}); it was set aside as {}",
                    path.display(),
                    aside.display()
                );
                (T::default(), Some(trouble))
            }
        };
        Ok(Self {
            path,
            failpoint,
            value: RwLock::new(Arc::new(value)),
            writing: Mutex::new(()),
            trouble,
        })
    }

    /// What was found damaged at the start, and where it is now.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// What it holds.
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.value.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes it; durable when it returns, and not changed at all after an error. Blocks. What stays as it was is not
    /// written.
    pub fn change<R, E: From<io::Error>>(
        &self,
        change: impl FnOnce(&mut T) -> Result<R, E>,
    ) -> Result<R, E> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.get();
        let mut new = T::clone(&old);
        let result = change(&mut new)?;
        if new != *old {
            self.write(&new)?;
            *self.value.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        }
        Ok(result)
    }

    fn write(&self, value: &T) -> io::Result<()> {
        let mut bytes = canonical::to_vec(value).map_err(io::Error::other)?;
        bytes.push(b'\n');
        if let Some(folder) = self.path.parent() {
            vault::create_dirs(folder)?;
        }
        let before_rename = || failpoint::hit(self.failpoint);
        vault::write_atomic_with(&self.path, &bytes, vault::FILE_MODE, before_rename)
    }
}

/// The value, or what is wrong with the file. Errors: the disk.
fn read<T: Default + DeserializeOwned>(path: &Path) -> io::Result<Result<T, String>> {
    let length = match fs::metadata(path) {
        Ok(meta) => meta.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ok(T::default())),
        Err(error) => return Err(error),
    };
    if length > MAX_BYTES {
        return Ok(Err(format!("larger than {MAX_BYTES} bytes")));
    }
    let bytes = fs::read(path)?;
    Ok(canonical::from_slice(&bytes).map_err(|error| error.to_string()))
}

fn sweep(path: &Path) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    let temporary = format!("{}.tmp-", name.to_string_lossy());
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&temporary) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    type List = Vec<u64>;

    fn open(path: &Path) -> Kept<List> {
        Kept::open(path.to_owned(), "invites.before_rename", Timestamp(7)).unwrap()
    }

    fn push(kept: &Kept<List>, n: u64) {
        let pushed: io::Result<()> = kept.change(|list| {
            list.push(n);
            Ok(())
        });
        pushed.unwrap();
    }

    #[test]
    fn what_was_changed_is_there_again_and_what_failed_never_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mcp/list.json");
        let kept = open(&path);
        push(&kept, 1);
        let refused: io::Result<()> = kept.change(|list| {
            list.push(2);
            Err(io::ErrorKind::Other.into())
        });
        assert!(refused.is_err());
        assert_eq!(*kept.get(), [1]);
        let leftover = folder.path().join("mcp/list.json.tmp-1-1");
        fs::write(&leftover, "[1,").unwrap();
        assert_eq!(*open(&path).get(), [1]);
        assert!(!leftover.exists());
        // Where it cannot be written, nothing has changed either.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let failed: io::Result<()> = kept.change(|list| {
            list.push(3);
            Ok(())
        });
        assert!(failed.is_err());
        assert_eq!(*kept.get(), [1]);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_said() {
        for damage in ["[1,", "{\"a\":1}", "[1] [2]", "\u{0}"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("list.json");
            fs::write(&path, damage).unwrap();
            let kept = open(&path);
            assert_eq!(*kept.get(), List::new());
            let aside = folder.path().join("list.json.damaged-7");
            assert!(kept.trouble().unwrap().contains("damaged-7"));
            assert_eq!(fs::read_to_string(aside).unwrap(), damage);
            push(&kept, 4);
            assert_eq!(*open(&path).get(), [4]);
            assert!(open(&path).trouble().is_none());
        }
    }
}
