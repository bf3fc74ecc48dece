//! `$HN_HOME`: where each file stands, whose schema it is, and who holds it (design 11).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hn_protocol::did::Did;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::vault;

/// The schema of the files that this version writes, as in `version`.
pub const SCHEMA: u32 = 1;
/// How often a held lock is tried again: a command that waits must not burn the processor.
const LOCK_RETRY: Duration = Duration::from_millis(25);

/// Why a home cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// A newer `hn` wrote it.
    #[error(
        "{path} has schema {found}, this hn knows up to {SCHEMA}: install a newer hn, or name another home with --home"
    )]
    Newer {
        /// The home.
        path: PathBuf,
        /// The schema number in its `version`.
        found: u32,
    },
    /// There are files, but no `version` among them.
    #[error(
        "{0} is not empty and holds no `version` file, so it is no home of hn: name another with --home, or an empty folder"
    )]
    NotAHome(PathBuf),
    /// `version` holds something else than a number.
    #[error(
        "{path} holds {text:?} where a schema number belongs: restore the home from a backup, or name another with --home"
    )]
    Damaged {
        /// The version file.
        path: PathBuf,
        /// What stands in it.
        text: String,
    },
    /// Another process works on it.
    #[error(
        "{path} is in use by {holder}: stop it, or use another home",
        holder = pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    Locked {
        /// The home.
        path: PathBuf,
        /// The holder, where it has said so.
        pid: Option<u32>,
    },
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// What was worked on.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl HomeError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// The paths of one home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// Opens the home at `path`, making it (mode 0700, `version` written and fsynced) where there is none or an empty
    /// folder. Errors: a newer schema, a folder of somebody else's files, IO.
    pub fn open(path: &Path) -> Result<Self, HomeError> {
        let home = Self {
            root: std::path::absolute(path).map_err(HomeError::io(path))?,
        };
        vault::create_dirs(&home.root).map_err(HomeError::io(&home.root))?;
        let version = home.version_file();
        match fs::read_to_string(&version) {
            Ok(text) => home.check_version(&text)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if !is_vacant(&home.root).map_err(HomeError::io(&home.root))? {
                    return Err(HomeError::NotAHome(home.root));
                }
                let text = format!("{SCHEMA}\n");
                vault::write_atomic(&version, text.as_bytes(), vault::FILE_MODE)
                    .map_err(HomeError::io(&version))?;
            }
            Err(e) => return Err(HomeError::io(&version)(e)),
        }
        Ok(home)
    }

    fn check_version(&self, text: &str) -> Result<(), HomeError> {
        match text.trim().parse::<u32>() {
            Ok(SCHEMA) => Ok(()),
            Ok(found) if found > SCHEMA => Err(HomeError::Newer {
                path: self.root.clone(),
                found,
            }),
            _ => Err(HomeError::Damaged {
                path: self.version_file(),
                text: text.chars().take(40).collect(),
            }),
        }
    }

    /// The home itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `version`: the schema number.
    #[must_use]
    pub fn version_file(&self) -> PathBuf {
        self.root.join("version")
    }

    /// `config/`.
    #[must_use]
    pub fn config_dir(&self) -> PathBuf {
        self.root.join("config")
    }

    /// `config/mcp.<profile>.toml`.
    #[must_use]
    pub fn config_file(&self, profile: &str) -> PathBuf {
        self.config_dir().join(format!("mcp.{profile}.toml"))
    }

    /// `policy/`.
    #[must_use]
    pub fn policy_dir(&self) -> PathBuf {
        self.root.join("policy")
    }

    /// `policy/policy@1.json`: the signed policy of the identity that serves.
    #[must_use]
    pub fn policy_file(&self) -> PathBuf {
        self.policy_dir().join("policy@1.json")
    }

    /// `config/federation.toml`: the roster.
    #[must_use]
    pub fn federation_toml(&self) -> PathBuf {
        self.config_dir().join("federation.toml")
    }

    /// `identities/`.
    #[must_use]
    pub fn identities_dir(&self) -> PathBuf {
        self.root.join("identities")
    }

    /// `identities/<alias>/`.
    #[must_use]
    pub fn identity_dir(&self, alias: &str) -> PathBuf {
        self.identities_dir().join(alias)
    }

    /// `log/<alias>/`: the own journal.
    #[must_use]
    pub fn log_dir(&self, alias: &str) -> PathBuf {
        self.root.join("log").join(alias)
    }

    /// `log/<alias>/artifacts/`.
    #[must_use]
    pub fn own_artifacts(&self, alias: &str) -> PathBuf {
        self.log_dir(alias).join("artifacts")
    }

    /// `presence/<alias>/`.
    #[must_use]
    pub fn presence_dir(&self, alias: &str) -> PathBuf {
        self.root.join("presence").join(alias)
    }

    /// `presence/<alias>/presence.json`: a copy of the current own presence.
    #[must_use]
    pub fn presence_file(&self, alias: &str) -> PathBuf {
        self.presence_dir(alias).join("presence.json")
    }

    /// `cache/federation/`: one folder a followed publisher.
    #[must_use]
    pub fn cache_root(&self) -> PathBuf {
        self.root.join("cache").join("federation")
    }

    /// `cache/federation/<publisher>/`: the publisher's journal.
    #[must_use]
    pub fn cache_dir(&self, publisher: &Did) -> PathBuf {
        self.cache_root().join(publisher.to_string())
    }

    /// `cache/federation/<publisher>/artifacts/`.
    #[must_use]
    pub fn cache_artifacts(&self, publisher: &Did) -> PathBuf {
        self.cache_dir(publisher).join("artifacts")
    }

    /// The publishers that `cache/federation/` has a folder of, sorted. What is no DID is passed over.
    pub fn cached_publishers(&self) -> io::Result<Vec<Did>> {
        let folder = match fs::read_dir(self.cache_root()) {
            Ok(folder) => folder,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut publishers = Vec::new();
        for entry in folder {
            let name = entry?.file_name();
            publishers.extend(name.to_str().and_then(|name| name.parse::<Did>().ok()));
        }
        publishers.sort_unstable();
        Ok(publishers)
    }

    /// `trust/revocations/`.
    #[must_use]
    pub fn revocations_dir(&self) -> PathBuf {
        self.root.join("trust").join("revocations")
    }

    /// `trust/revocations/<did>.json`: a revocation that is held.
    #[must_use]
    pub fn revocation_file(&self, did: &Did) -> PathBuf {
        self.revocations_dir().join(format!("{did}.json"))
    }

    /// `mcp/invites.json`: invitations that were made, and who came with one.
    #[must_use]
    pub fn invites_file(&self) -> PathBuf {
        self.root.join("mcp").join("invites.json")
    }

    /// `mcp/introductions.json`: invitations that were taken, and what their makers said.
    #[must_use]
    pub fn introductions_file(&self) -> PathBuf {
        self.root.join("mcp").join("introductions.json")
    }

    /// `state/`: sled, derived from the files.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.root.join("state")
    }

    /// `state/trees/`: the nodes of each held log's tree, derived from the journals.
    #[must_use]
    pub fn trees_dir(&self) -> PathBuf {
        self.state_dir().join("trees")
    }

    /// `run/`: the lock and the sockets.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.root.join("run")
    }

    /// `run/lock`.
    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.run_dir().join("lock")
    }

    /// `run/hn.sock`: the running node's admin socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("hn.sock")
    }

    /// `run/cli-<pid>.sock`: the socket of a command that runs the node in its own process.
    #[must_use]
    pub fn cli_socket(&self, pid: u32) -> PathBuf {
        self.run_dir().join(format!("cli-{pid}.sock"))
    }
}

/// Whether a folder holds nothing but what a first start that crashed, the file system itself, or an operator who
/// configures a node before its first start left there.
fn is_vacant(folder: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        let expected = ["config", "lost+found"].contains(&name.as_ref());
        if !expected && !name.starts_with("version.tmp-") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The right to work on a home: one process has it. Given back when dropped, also by a crash.
#[derive(Debug)]
pub struct HomeLock {
    file: File,
    home: Home,
}

impl HomeLock {
    /// Takes the lock of `home`, trying for `wait`. Blocks. Errors: [`HomeError::Locked`], naming the holder's pid.
    pub fn acquire(home: &Home, wait: Duration) -> Result<Self, HomeError> {
        let path = home.lock_file();
        vault::create_dirs(&home.run_dir()).map_err(HomeError::io(&path))?;
        let mut file = open_lock(&path).map_err(HomeError::io(&path))?;
        let deadline = Instant::now() + wait;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(LOCK_RETRY);
                }
                Err(Errno::WOULDBLOCK) => {
                    return Err(HomeError::Locked {
                        path: home.root.clone(),
                        pid: Self::holder(home),
                    });
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(HomeError::io(&path)(e.into())),
            }
        }
        write_pid(&mut file).map_err(HomeError::io(&path))?;
        Ok(Self {
            file,
            home: home.clone(),
        })
    }

    /// Whether some process holds the lock of `home` now.
    pub fn is_held(home: &Home) -> io::Result<bool> {
        let file = match File::open(home.lock_file()) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        // Shared, so that two who look do not see each other; given back when the file is closed.
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(e) => Err(e.into()),
        }
    }

    /// The pid that the holder wrote into the lock; nothing when it is free or does not say.
    #[must_use]
    pub fn holder(home: &Home) -> Option<u32> {
        let mut text = String::new();
        let file = File::open(home.lock_file()).ok()?;
        // A pid is short; whatever else stands there need not be read.
        file.take(16).read_to_string(&mut text).ok()?;
        text.trim().parse().ok()
    }

    /// Removes the sockets in `run/`: under the lock all of them are left over from processes that are gone.
    pub fn remove_stale_sockets(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.home.run_dir())? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "sock") {
                match fs::remove_file(&path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

impl Drop for HomeLock {
    /// The pid goes with the lock; the file stays, or two processes could hold two files of one name.
    fn drop(&mut self) {
        let _ = self.file.set_len(0);
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(vault::FILE_MODE)
        .open(path)
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

/// A file system in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskBytes {
    /// What an unprivileged process may still write.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// The file system that holds `path`.
pub fn disk_bytes(path: &Path) -> io::Result<DiskBytes> {
    let system = rustix::fs::statvfs(path)?;
    Ok(DiskBytes {
        free: system.f_bavail.saturating_mul(system.f_frsize),
        total: system.f_blocks.saturating_mul(system.f_frsize),
    })
}

/// How many bytes an unprivileged process may still write to the file system that holds `path`.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    disk_bytes(path).map(|disk| disk.free)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_empty_folder_becomes_a_home_and_stays_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/home");
        let home = Home::open(&path).unwrap();
        assert_eq!(fs::read_to_string(home.version_file()).unwrap(), "1\n");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert_eq!(Home::open(&path).unwrap(), home);
        assert_eq!(home.socket(), path.join("run/hn.sock"));
        assert_eq!(home.cached_publishers().unwrap(), []);
    }

    #[test]
    fn a_first_start_that_crashed_is_taken_up() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("version.tmp-7-0"), "1").unwrap();
        assert!(Home::open(folder.path()).is_ok());
    }

    #[test]
    fn a_newer_home_is_refused_with_both_numbers() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("version"), "7\n").unwrap();
        let error = Home::open(folder.path()).unwrap_err();
        assert!(matches!(error, HomeError::Newer { found: 7, .. }));
        let text = error.to_string();
        assert!(
            text.contains("schema 7") && text.contains("up to 1"),
            "{text}"
        );
        assert!(text.contains("--home"), "says what to do: {text}");
    }

    #[test]
    fn a_folder_of_somebody_else_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.tex"), "x").unwrap();
        let error = Home::open(folder.path()).unwrap_err();
        assert!(matches!(error, HomeError::NotAHome(_)));
        fs::write(folder.path().join("version"), "soon").unwrap();
        let error = Home::open(folder.path()).unwrap_err();
        assert!(matches!(error, HomeError::Damaged { .. }));
    }

    #[test]
    fn one_process_holds_a_home() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(folder.path()).unwrap();
        assert!(!HomeLock::is_held(&home).unwrap());
        let lock = HomeLock::acquire(&home, Duration::ZERO).unwrap();
        assert!(HomeLock::is_held(&home).unwrap());
        let pid = std::process::id();
        // flock belongs to the open file, so this process conflicts with itself like any other.
        let error = HomeLock::acquire(&home, Duration::from_millis(60)).unwrap_err();
        assert!(matches!(error, HomeError::Locked { pid: Some(p), .. } if p == pid));
        assert!(error.to_string().contains(&format!("process {pid}")));
        drop(lock);
        assert!(!HomeLock::is_held(&home).unwrap());
        assert_eq!(HomeLock::holder(&home), None);
        HomeLock::acquire(&home, Duration::ZERO).unwrap();
    }

    #[test]
    fn the_holder_sweeps_stale_sockets() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(folder.path()).unwrap();
        let lock = HomeLock::acquire(&home, Duration::ZERO).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(home.cli_socket(7)).unwrap();
        drop(listener);
        assert!(home.cli_socket(7).exists());
        lock.remove_stale_sockets().unwrap();
        assert!(!home.cli_socket(7).exists());
        assert!(home.lock_file().exists());
    }
}
