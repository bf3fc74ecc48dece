//! Where settings come from: defaults < profile < `config/mcp.<profile>.toml` < `HN_*` environment < flags.
//!
//! The layers are merged by the `config` crate. Each is first looked at alone, because an unknown key or a value of
//! the wrong kind has to name its place: the file with its line, the variable, or the flag.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use config::{Config, File, FileFormat};
use hn_actors::settings::{Profile, Settings, SettingsError};
use serde_json::Value;
use toml::de::{DeTable, DeValue};

/// The profile `local`, every option with its value and why.
const LOCAL: &str = include_str!("profiles/local.toml");
/// The profile `federation`, every option with its value and why.
const FEDERATION: &str = include_str!("profiles/federation.toml");

/// A configuration file is a page of text; what is larger was put there by mistake.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// `HN_*` variables that are read elsewhere and are no settings.
const NOT_SETTINGS: [&str; 8] = [
    "HN_HOME",
    "HN_LOG",
    "HN_PASSPHRASE_FILE",
    "HN_FAILPOINTS",
    "HN_CLOCK_OFFSET",
    "HN_PROFILE",
    "HN_SEED",
    "HN_BIN",
];

/// The test hooks of design 11, which the profile federation refuses.
const TEST_HOOKS: [&str; 2] = ["HN_FAILPOINTS", "HN_CLOCK_OFFSET"];

/// Flags that set something. They win over every other layer.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--listen`.
    pub listen: Option<SocketAddr>,
    /// `--public-url`.
    pub public_url: Option<String>,
}

/// What is wrong with the configuration, and where.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that can't be read.
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// A file that is no TOML, or holds a key or value that isn't one of ours.
    #[error("{}:{line}: {problem}", path.display())]
    File {
        path: PathBuf,
        line: usize,
        problem: String,
    },
    /// An environment variable that names no setting, or with a value of the wrong kind.
    #[error("environment variable {name}: {problem}")]
    Env { name: String, problem: String },
    /// A value that is well formed and still makes no sense.
    #[error("{origin}: {error}")]
    Value {
        origin: String,
        error: SettingsError,
    },
    /// A test hook where strangers reach the node.
    #[error("environment variable {name} is a test hook, and the profile federation refuses it")]
    TestHook { name: &'static str },
    /// The layers could not be joined; a bug, since each was read alone before.
    #[error("the configuration can't be put together: {0}")]
    Merge(#[from] config::ConfigError),
}

impl ConfigError {
    /// What the operator does about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Read { path, .. } => format!("make {} readable, or move it away", path.display()),
            Self::File { path, line, .. } => format!("edit line {line} of {}", path.display()),
            Self::Env { name, .. } => format!("correct it, or unset {name}"),
            Self::Value { error, .. } => format!("give `{}` another value", error.key),
            Self::TestHook { name } => format!("unset {name}, or take --profile local"),
            Self::Merge(_) => "report this as a bug, with the configuration file".to_owned(),
        }
    }
}

/// The file of a profile inside a home, present or not.
pub fn file_of(home: &Path, profile: Profile) -> PathBuf {
    home.join("config").join(format!("mcp.{profile}.toml"))
}

/// The variables of this process, those that are Unicode. Others can't be ours.
pub fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Reads and joins all layers. Errors name the file and line, the variable or the flag.
pub fn load(
    home: &Path,
    profile: Profile,
    env: &BTreeMap<String, String>,
    flags: &Flags,
) -> Result<Settings, ConfigError> {
    if !profile.allows_test_hooks()
        && let Some(name) = TEST_HOOKS.into_iter().find(|name| env.contains_key(*name))
    {
        return Err(ConfigError::TestHook { name });
    }
    let path = file_of(home, profile);
    let text = read_file(&path)?;
    if let Some(text) = &text {
        check_file(&path, text)?;
    }
    let variables = env_settings(env)?;

    let mut layers = Config::builder()
        .add_source(Config::try_from(&Settings::default())?)
        .add_source(File::from_str(profile_text(profile), FileFormat::Toml));
    if let Some(text) = &text {
        layers = layers.add_source(File::from_str(text, FileFormat::Toml));
    }
    for (key, (_, value)) in &variables {
        layers = layers.set_override(key, value.as_str())?;
    }
    let settings: Settings = layers
        .set_override_option("listen", flags.listen.map(|address| address.to_string()))?
        .set_override_option("public_url", flags.public_url.clone())?
        .build()?
        .try_deserialize()?;

    settings.validate().map_err(|error| {
        let flag = match error.key {
            "public_url" if flags.public_url.is_some() => Some("--public-url".to_owned()),
            _ => None,
        };
        let variable = || {
            variables
                .get(error.key)
                .map(|(name, _)| format!("environment variable {name}"))
        };
        let line = || {
            let line = line_of(text.as_deref()?, error.key)?;
            Some(format!("{}:{line}", path.display()))
        };
        let origin = flag
            .or_else(variable)
            .or_else(line)
            .unwrap_or_else(|| format!("profile {profile}"));
        ConfigError::Value { origin, error }
    })?;
    Ok(settings)
}

fn profile_text(profile: Profile) -> &'static str {
    match profile {
        Profile::Local => LOCAL,
        Profile::Federation => FEDERATION,
    }
}

fn read_file(path: &Path) -> Result<Option<String>, ConfigError> {
    let read = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(read(error)),
        Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
            return Err(read(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "larger than 1 MiB",
            )));
        }
        Ok(_) => {}
    }
    std::fs::read_to_string(path).map(Some).map_err(read)
}

/// The shape of [`Settings`] as a tree: objects are sections, everything else is a key.
fn known() -> Value {
    serde_json::to_value(Settings::default()).unwrap_or_default()
}

/// Every key must be one of ours and every value of its kind; the line of the first that isn't goes into the error.
fn check_file(path: &Path, text: &str) -> Result<(), ConfigError> {
    let at = |offset: usize, problem: String| ConfigError::File {
        path: path.to_owned(),
        line: line_at(text, offset),
        problem,
    };
    let table = DeTable::parse(text).map_err(|error| {
        at(
            error.span().map_or(0, |span| span.start),
            error.message().to_owned(),
        )
    })?;
    check_table(table.get_ref(), &known(), "").map_err(|(offset, problem)| at(offset, problem))?;
    toml::from_str::<Settings>(text).map_err(|error| {
        at(
            error.span().map_or(0, |span| span.start),
            error.message().to_owned(),
        )
    })?;
    Ok(())
}

/// Walks a table beside the shape of the settings. Errors: the byte offset of the key, and what is wrong with it.
fn check_table(table: &DeTable<'_>, shape: &Value, prefix: &str) -> Result<(), (usize, String)> {
    for (name, value) in table {
        let key = format!("{prefix}{}", name.get_ref());
        let offset = name.span().start;
        match (shape.get(name.get_ref().as_ref()), value.get_ref()) {
            (None, _) => return Err((offset, unknown(&key, shape, prefix))),
            (Some(section @ Value::Object(_)), DeValue::Table(inner)) => {
                check_table(inner, section, &format!("{key}."))?;
            }
            (Some(Value::Object(_)), _) => {
                return Err((offset, format!("`{key}` is a section, not a value")));
            }
            (Some(_), DeValue::Table(_)) => {
                return Err((offset, format!("`{key}` is a value, not a section")));
            }
            (Some(_), _) => {}
        }
    }
    Ok(())
}

fn unknown(key: &str, shape: &Value, prefix: &str) -> String {
    let names: Vec<String> = shape
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, _)| format!("`{prefix}{name}`"))
        .collect();
    format!("unknown key `{key}`; there are {}", names.join(", "))
}

/// The settings among the variables: dotted key → (name, value). An empty value counts as unset.
fn env_settings(
    env: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, (String, String)>, ConfigError> {
    let shape = known();
    let mut found = BTreeMap::new();
    for (name, value) in env {
        let Some(rest) = name.strip_prefix("HN_") else {
            continue;
        };
        if NOT_SETTINGS.contains(&name.as_str()) {
            continue;
        }
        let key = rest.to_ascii_lowercase().replace("__", ".");
        let pointer = format!("/{}", key.replace('.', "/"));
        match shape.pointer(&pointer) {
            None => {
                return Err(ConfigError::Env {
                    name: name.clone(),
                    problem: format!("unknown key `{key}`"),
                });
            }
            Some(Value::Object(_)) => {
                return Err(ConfigError::Env {
                    name: name.clone(),
                    problem: format!("`{key}` is a section"),
                });
            }
            Some(_) if value.is_empty() => {}
            Some(_) => {
                check_value(&key, value).map_err(|error| ConfigError::Env {
                    name: name.clone(),
                    problem: plain(&error),
                })?;
                found.insert(key, (name.clone(), value.clone()));
            }
        }
    }
    Ok(found)
}

/// Whether one value alone can be put over the defaults.
fn check_value(key: &str, value: &str) -> Result<(), config::ConfigError> {
    Config::builder()
        .add_source(Config::try_from(&Settings::default())?)
        .set_override(key, value)?
        .build()?
        .try_deserialize::<Settings>()
        .map(drop)
}

/// The `config` crate's words without its own idea of where: that is said better by the caller.
fn plain(error: &config::ConfigError) -> String {
    match error {
        config::ConfigError::Type {
            unexpected,
            expected,
            ..
        } => format!("{unexpected} where {expected} was expected"),
        config::ConfigError::At { error, .. } => plain(error),
        other => other.to_string(),
    }
}

/// The line (from 1) on which a dotted key stands, if it does.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let table = DeTable::parse(text).ok()?;
    let mut names = key.split('.').peekable();
    let mut table = table.get_ref();
    loop {
        let name = names.next()?;
        let (found, value) = table
            .iter()
            .find(|(candidate, _)| candidate.get_ref() == name)?;
        if names.peek().is_none() {
            return Some(line_at(text, found.span().start));
        }
        let DeValue::Table(inner) = value.get_ref() else {
            return None;
        };
        table = inner;
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    text.bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
        + 1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn home_with(file: &str) -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("config")).unwrap();
        std::fs::write(home.path().join("config/mcp.local.toml"), file).unwrap();
        home
    }

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn refused(file: &str, variables: &[(&str, &str)]) -> String {
        let home = home_with(file);
        let error = load(
            home.path(),
            Profile::Local,
            &env(variables),
            &Flags::default(),
        )
        .unwrap_err();
        error
            .to_string()
            .replace(&home.path().display().to_string(), "HOME")
    }

    /// Takes the `#` off a commented option, so that what the profiles say about unset options is parsed too.
    fn with_every_option(text: &str) -> String {
        let option = |line: &str| {
            line.strip_prefix('#')
                .filter(|rest| rest.starts_with(char::is_alphabetic))
                .map(str::to_owned)
        };
        text.lines()
            .map(|line| option(line).unwrap_or_else(|| line.to_owned()) + "\n")
            .collect()
    }

    fn keys(shape: &Value, prefix: &str) -> Vec<String> {
        let inner = |(name, value): (&String, &Value)| match value {
            Value::Object(_) => keys(value, &format!("{prefix}{name}.")),
            _ => vec![format!("{prefix}{name}")],
        };
        shape.as_object().unwrap().iter().flat_map(inner).collect()
    }

    #[test]
    fn both_profiles_hold_every_option_with_a_valid_value_and_a_reason() {
        for profile in [Profile::Local, Profile::Federation] {
            let text = with_every_option(profile_text(profile));
            check_file(Path::new("profile"), &text).unwrap();
            for key in keys(&known(), "") {
                let line =
                    line_of(&text, &key).unwrap_or_else(|| panic!("{profile} doesn't say {key}"));
                let above = text.lines().nth(line - 2).unwrap();
                assert!(
                    above.starts_with("# "),
                    "{profile}: {key} has no reason above it"
                );
            }
            let home = tempfile::tempdir().unwrap();
            load(home.path(), profile, &BTreeMap::new(), &Flags::default()).unwrap();
        }
    }

    #[test]
    fn the_profile_local_is_what_the_defaults_are() {
        let home = tempfile::tempdir().unwrap();
        let local = load(
            home.path(),
            Profile::Local,
            &BTreeMap::new(),
            &Flags::default(),
        )
        .unwrap();
        assert_eq!(local, Settings::default());
    }

    #[test]
    fn a_later_layer_wins() {
        let home =
            home_with("listen = \"127.0.0.1:1\"\n[federation]\ninterval_s = 5\nconcurrency = 3\n");
        let variables = env(&[
            ("HN_LISTEN", "127.0.0.1:2"),
            ("HN_FEDERATION__INTERVAL_S", "7"),
            ("HN_LOG", "debug"),
        ]);
        let flags = Flags {
            listen: Some("127.0.0.1:3".parse().unwrap()),
            public_url: None,
        };
        let settings = load(home.path(), Profile::Local, &variables, &flags).unwrap();
        assert_eq!(
            settings.listen.port(),
            3,
            "a flag wins over the environment"
        );
        assert_eq!(
            settings.federation.interval_s, 7,
            "the environment wins over the file"
        );
        assert_eq!(
            settings.federation.concurrency, 3,
            "the file wins over the profile"
        );
        assert_eq!(
            settings.gateway.workers, 2,
            "what nobody says is the default"
        );
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_file_and_line() {
        let error = refused(
            "listen = \"127.0.0.1:1\"\n\n[federation]\nintervall_s = 5\n",
            &[],
        );
        assert!(
            error.starts_with(
                "HOME/config/mcp.local.toml:4: unknown key `federation.intervall_s`; there are"
            ),
            "{error}"
        );
        let error = refused("# a comment\nlisen = 1\n", &[]);
        assert!(
            error.starts_with("HOME/config/mcp.local.toml:2: unknown key `lisen`"),
            "{error}"
        );
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_refused_with_its_line() {
        let error = refused("[gateway]\nworkers = \"many\"\n", &[]);
        assert!(
            error.starts_with("HOME/config/mcp.local.toml:2: "),
            "{error}"
        );
        let error = refused("[gateway]\nworkers = 0\n", &[]);
        assert!(
            error.starts_with("HOME/config/mcp.local.toml:2: gateway.workers is 0"),
            "{error}"
        );
        let error = refused("gateway = 3\n", &[]);
        assert!(
            error.ends_with("`gateway` is a section, not a value"),
            "{error}"
        );
        let error = refused("listen = \n", &[]);
        assert!(
            error.starts_with("HOME/config/mcp.local.toml:1: "),
            "{error}"
        );
    }

    #[test]
    fn a_wrong_variable_is_refused_by_name() {
        for (name, value) in [
            ("HN_FEDERATION__X", "1"),
            ("HN_LISEN", "x"),
            ("HN_GATEWAY", "1"),
            ("HN_LISTEN", "here"),
        ] {
            let error = refused("", &[(name, value)]);
            assert!(
                error.starts_with(&format!("environment variable {name}: ")),
                "{error}"
            );
        }
        let error = refused("", &[("HN_PRESENCE__TTL_S", "1")]);
        assert!(
            error.starts_with("environment variable HN_PRESENCE__TTL_S: presence.ttl_s is 1"),
            "{error}"
        );
    }

    #[test]
    fn the_profile_federation_refuses_test_hooks() {
        let home = tempfile::tempdir().unwrap();
        for name in TEST_HOOKS {
            let variables = env(&[(name, "")]);
            let error = load(
                home.path(),
                Profile::Federation,
                &variables,
                &Flags::default(),
            )
            .unwrap_err();
            assert!(matches!(error, ConfigError::TestHook { name: found } if found == name));
            load(home.path(), Profile::Local, &variables, &Flags::default()).unwrap();
        }
    }
}
