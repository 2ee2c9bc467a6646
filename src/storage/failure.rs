//! Why this side's disk says no: what the peer is told of it, and what stays here.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::config::MAX_FILE_BYTES;
use crate::error::{Error, Refusal};

/// Refused to the peer with `refusal`; `cause`, with this side's paths, is for its own log.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) refusal: Refusal,
    pub(crate) cause: Option<Error>,
}

impl Failure {
    pub(super) fn new(action: &'static str, path: PathBuf, error: Errno) -> Failure {
        Failure::at(action, path, error, MAX_FILE_BYTES)
    }

    /// Of a write that reached this offset.
    pub(super) fn at(action: &'static str, path: PathBuf, error: Errno, reached_bytes: u64) -> Failure {
        let cause = Error::File { action, path, source: error.into() };
        Failure { refusal: refusal(error, reached_bytes), cause: Some(cause) }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure { refusal, cause: None }
    }
}

/// The one table from what the system says to what the peer is told.
fn refusal(error: Errno, reached_bytes: u64) -> Refusal {
    match error {
        Errno::NOSPC | Errno::DQUOT => Refusal::NoRoom,
        // The file system's own limit, or the process's: what fitted is the largest that does.
        Errno::FBIG => Refusal::TooBig(reached_bytes),
        Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::NOTDIR | Errno::LOOP | Errno::ISDIR => Refusal::NotWritable,
        // Some file systems take less than we do: shorter names, fewer characters.
        Errno::NAMETOOLONG | Errno::ILSEQ => Refusal::BadName,
        _ => Refusal::Failed,
    }
}

/// The system's number in an error of the standard library; `IO` where it has none.
pub(super) fn errno_of(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Whether the system says that this way is not offered here, so that the next one is taken.
pub(super) fn is_not_offered(error: Errno) -> bool {
    matches!(error, Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_learns_the_kind_and_neither_path_nor_system_text() {
        let told = |error| Failure::at("write", PathBuf::from("/secret"), error, 4096).refusal;
        assert_eq!(told(Errno::NOSPC), Refusal::NoRoom);
        assert_eq!(told(Errno::DQUOT), Refusal::NoRoom);
        assert_eq!(told(Errno::FBIG), Refusal::TooBig(4096));
        assert_eq!(told(Errno::ROFS), Refusal::NotWritable);
        assert_eq!(told(Errno::NOTDIR), Refusal::NotWritable);
        assert_eq!(told(Errno::NAMETOOLONG), Refusal::BadName);
        assert_eq!(told(Errno::IO), Refusal::Failed);
    }
}
