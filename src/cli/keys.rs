//! The key of a sealed connection: where it is read from, and `postwire keygen`, which makes one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use postwire::{escape_path, Error, Key, Result};

use super::options::{Side, Usage};

/// Where a key is said to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    File(PathBuf),
    Stdin,
    /// In the environment.
    Text(String),
}

/// Why there is no key: wrong usage, or a file.
#[derive(Debug)]
pub enum NoKey {
    Usage(Usage),
    Error(Error),
}

/// More than any key's file has.
const KEY_FILE_BYTES_MAX: u64 = 4096;

/// Reads the key. A file that others can read is none to rely on.
pub fn load(side: Side, source: &KeySource) -> std::result::Result<Key, NoKey> {
    let usage = |message: String| NoKey::Usage(Usage::new(Some(side), message));
    let mut text = String::new();
    let from = match source {
        KeySource::Text(given) => {
            text.clone_from(given);
            "POSTWIRE_KEY".to_owned()
        }
        KeySource::Stdin => {
            let read = io::stdin().lock().take(KEY_FILE_BYTES_MAX).read_to_string(&mut text);
            read.map_err(|error| usage(format!("--key-file - can't be read: {error}")))?;
            "--key-file -".to_owned()
        }
        KeySource::File(path) => {
            let failed = |source| NoKey::Error(Error::File { action: "read the key in", path: path.clone(), source });
            let file = File::open(path).map_err(failed)?;
            let shown = escape_path(path);
            if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
                return Err(usage(format!(
                    "others can read the key in \"{shown}\": chmod 600 it, or --key-file - < it where there are no modes"
                )));
            }
            file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
            format!("--key-file \"{shown}\"")
        }
    };
    Key::parse(&text)
        .map_err(|_| usage(format!("{from}: no key: it takes 64 hexadecimal digits, as postwire keygen makes them")))
}

/// Makes a new key in a file that nobody else can read and that was not there before, or on standard output.
///
/// # Errors
/// [`Error::File`].
pub fn make(path: &Path) -> Result<String> {
    let text = format!("{}\n", Key::generate()?.to_text());
    if path == Path::new("-") {
        return Ok(text);
    }
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = made.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    written.map_err(|source| Error::File { action: "make a key in", path: path.to_owned(), source })?;
    Ok(String::new())
}
