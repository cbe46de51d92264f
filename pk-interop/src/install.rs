//! Installation of the npm package.

use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::processes::spawn;

/// Input of npm. All versions are those that Polykey itself was released with. Newer versions of
/// `@peculiar/x509` break its verification of rotated certificates.
const PACKAGE: &str = include_str!("../node/package.json");
const LOCK: &str = include_str!("../node/package-lock.json");

/// The program that runs a node.
const PROGRAM: &str = include_str!("../node/polykey.js");
pub(crate) const PROGRAM_NAME: &str = "polykey.js";

/// Written last; contains what is installed.
const STAMP: &str = "installed";

/// Minimum major version of Node.js for Polykey.
const NODE_MAJOR: u32 = 20;

/// Maximum length of npm's output in an error, in bytes.
const MAX_OUTPUT: usize = 2000;

/// Why Polykey cannot be installed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// A program is missing.
    #[error("`{program}` is not installed: {source}")]
    Missing {
        /// Name of the program.
        program: &'static str,
        /// Error of the system.
        source: io::Error,
    },
    /// Node.js is too old, or its version cannot be parsed.
    #[error("Node.js {NODE_MAJOR} or later is required, but `node --version` returned {0:?}")]
    Version(String),
    /// npm failed to install the package.
    #[error("npm failed to install Polykey: {0}")]
    Npm(String),
    /// The directory cannot be used.
    #[error("{}: {source}", path.display())]
    Folder {
        /// Directory.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
}

/// The installed package.
#[derive(Debug, Clone)]
pub struct Polykey {
    pub(crate) dir: PathBuf,
}

impl Polykey {
    /// Installs the package in a directory, about 120 MB, unless it is installed. A concurrent call
    /// waits for the first one.
    ///
    /// Blocks, for up to several minutes.
    ///
    /// # Errors
    ///
    /// [`InstallError`]; the next attempt starts from the beginning.
    pub fn install(dir: impl Into<PathBuf>) -> Result<Self, InstallError> {
        let dir = dir.into();
        check_node()?;
        fs::create_dir_all(&dir).map_err(|source| folder(&dir, source))?;
        // Absolute, because other processes may have another working directory.
        let dir = dir.canonicalize().map_err(|source| folder(&dir, source))?;
        let lock = dir.join("lock");
        let lock = File::create(&lock)
            .and_then(|file| file.lock().map(|()| file))
            .map_err(|e| folder(&lock, e))?;
        let polykey = Self { dir };
        if !polykey.is_installed() {
            polykey.install_again()?;
        }
        polykey.write(PROGRAM_NAME, PROGRAM)?;
        drop(lock);
        Ok(polykey)
    }

    fn is_installed(&self) -> bool {
        fs::read_to_string(self.dir.join(STAMP)).is_ok_and(|stamp| stamp == stamp_text())
    }

    fn install_again(&self) -> Result<(), InstallError> {
        for name in [STAMP, "node_modules"] {
            let path = self.dir.join(name);
            let removed =
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(folder(&path, error));
                }
                _ => {}
            }
        }
        self.write("package.json", PACKAGE)?;
        self.write("package-lock.json", LOCK)?;
        // Not `npm ci`: the lock file lacks the native builds of other platforms, so that it fails.
        // Without scripts: the native parts are prebuilt, so that no downloaded code is run.
        let missing = |source| InstallError::Missing { program: "npm", source };
        let mut npm = Command::new("npm");
        npm.args([
            "install",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--no-update-notifier",
        ]);
        npm.current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let (npm, registered) = spawn(&mut npm, None).map_err(missing)?;
        let npm = npm.wait_with_output().map_err(missing)?;
        drop(registered);
        if !npm.status.success() {
            let says = String::from_utf8_lossy(&npm.stderr).into_owned();
            let from = says.len().saturating_sub(MAX_OUTPUT);
            let says = says.get(from..).unwrap_or(&says).trim();
            return Err(InstallError::Npm(format!("{}: {says}", npm.status)));
        }
        self.write(STAMP, &stamp_text())
    }

    fn write(&self, name: &str, content: &str) -> Result<(), InstallError> {
        let path = self.dir.join(name);
        if fs::read_to_string(&path).is_ok_and(|present| present == content) {
            return Ok(());
        }
        // In one step, for processes that read it now.
        let new = self.dir.join(format!("{name}.new"));
        fs::write(&new, content)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|source| folder(&path, source))
    }
}

fn stamp_text() -> String {
    format!("{PACKAGE}\n{LOCK}")
}

fn check_node() -> Result<(), InstallError> {
    let output = Command::new("node").arg("--version").output();
    let output = output.map_err(|source| InstallError::Missing { program: "node", source })?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let major = version
        .strip_prefix('v')
        .and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    if major.is_some_and(|major| major >= NODE_MAJOR) {
        Ok(())
    } else {
        Err(InstallError::Version(version))
    }
}

fn folder(path: &Path, source: io::Error) -> InstallError {
    InstallError::Folder { path: path.to_owned(), source }
}

/// Returns the cache directory of a program for the package: below `$XDG_CACHE_HOME`, or `.cache`
/// in the home directory. `None` if neither is set.
pub fn cache_dir() -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(cache.join("pk-interop"))
}
