//! What a person can do about an error: the few words after its own. A function of the error; `human` puts them there.

use std::io::{self, ErrorKind};

use postwire::{Error, Refusal, WireError};

/// The line of an error, with advice where there is some.
pub fn line(error: &Error) -> String {
    match advice(error) {
        Some(advice) => format!("{error}; {advice}"),
        None => error.to_string(),
    }
}

fn advice(error: &Error) -> Option<&'static str> {
    match error {
        Error::Connect { source, .. } => unreached(source),
        Error::NoSuchHost { source, .. } => Some(unknown(source)),
        Error::Timeout { waiting_for: "the server to answer", .. } => {
            Some("is the address right, and does no firewall drop what goes there?")
        }
        Error::Timeout { waiting_for: "the other side's hello", .. } => Some("is the port right?"),
        Error::Wire(WireError::NotPostwire { .. }) => Some("is the port right?"),
        Error::File { action, source, .. } => file(action, source),
        Error::System { action: "listen", source } => listen(source),
        Error::Refused(refusal) => refused(*refusal),
        _ => None,
    }
}

fn unreached(source: &io::Error) -> Option<&'static str> {
    Some(match source.kind() {
        ErrorKind::ConnectionRefused => "does the server run there, and on this port?",
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => "is the network up, and the address right?",
        _ => return None,
    })
}

/// Resolvers tell an unknown name from no answer in words only: glibc's, and musl's.
fn unknown(source: &io::Error) -> &'static str {
    let words = source.to_string();
    if ["not known", "not resolve", "No address"].iter().any(|unknown| words.contains(unknown)) {
        "is the name right?"
    } else {
        "no name server answers here: give an address in place of the name"
    }
}

fn file(action: &str, source: &io::Error) -> Option<&'static str> {
    Some(match (source.kind(), action) {
        (ErrorKind::NotFound, _) => "is the path right? directories are not made for it",
        (ErrorKind::PermissionDenied, "open" | "read") => "run this as a user who may read it",
        (ErrorKind::PermissionDenied, _) => "run this as a user who may write there",
        (ErrorKind::ReadOnlyFilesystem, _) => "the file system is mounted read-only",
        (ErrorKind::StorageFull | ErrorKind::QuotaExceeded, _) => "make room, then run the same again",
        (ErrorKind::IsADirectory, "send") => "name the files in it",
        _ => return None,
    })
}

fn listen(source: &io::Error) -> Option<&'static str> {
    Some(match source.kind() {
        ErrorKind::AddrInUse => "another program listens there: --listen takes another address or port",
        ErrorKind::AddrNotAvailable => "no interface of this machine has that address",
        ErrorKind::PermissionDenied => "ports below 1024 are root's: --listen takes another",
        _ => return None,
    })
}

fn refused(refusal: Refusal) -> Option<&'static str> {
    Some(match refusal {
        Refusal::Version(_) | Refusal::Mode(2..) => "update the older side",
        Refusal::Exists => "--as gives the file another name",
        Refusal::NoRoom => "make room there, then run the same again: what arrived is kept",
        Refusal::NotWritable => "the server's user must be able to write there",
        Refusal::BadName => "--as gives the file another name",
        Refusal::TooBig(_) => "its --max-file or its file system says so",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_told_from_a_silent_resolver() {
        let host = |words: &str| Error::NoSuchHost { host: "h".into(), source: io::Error::other(words) };
        let gai = "failed to lookup address information: ";
        for words in ["Name or service not known", "Name does not resolve", "No address associated with hostname"] {
            assert!(line(&host(&format!("{gai}{words}"))).ends_with("; is the name right?"), "{words}");
        }
        for words in ["Temporary failure in name resolution", "Try again", "System error"] {
            assert!(line(&host(&format!("{gai}{words}"))).ends_with("give an address in place of the name"), "{words}");
        }
    }

    #[test]
    fn an_error_that_says_all_there_is_to_say_stays_as_it_is() {
        assert_eq!(line(&Error::Closed), "closed");
        assert_eq!(line(&Error::Refused(Refusal::NoDirectory)), Error::Refused(Refusal::NoDirectory).to_string());
    }
}
