//! How the program ends: the exit codes, the one function that gives an error its code, and the only place that ends the process.

use std::io;

use postwire::{Error, Refusal, WireError};

use super::terminal;

/// The exit codes of README and `--help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Done,
    Other,
    Usage,
    Connect,
    Timeout,
    Protocol,
    Damaged,
    Refused,
    File,
    Partly,
    /// Ended by this signal.
    Signal(i32),
}

/// What each code means, for `--help`.
pub const TABLE: [(Exit, &str); 10] = [
    (Exit::Done, "all done, and durable unless the receiver runs with --no-fsync"),
    (Exit::Other, "other failure"),
    (Exit::Usage, "usage"),
    (Exit::Connect, "could not connect, no such name"),
    (Exit::Timeout, "timed out"),
    (Exit::Protocol, "not our protocol, or broken"),
    (Exit::Damaged, "data damaged beyond repair"),
    (Exit::Refused, "refused by the other side"),
    (Exit::File, "a file or directory here could not be read or written"),
    (Exit::Partly, "some done, some not"),
];

/// What a pipe's reader that went away ends us with, as it would any other program.
const SIGPIPE: i32 = signal_hook::consts::SIGPIPE;

impl Exit {
    /// The code that stands for an error.
    pub fn of(error: &Error) -> Exit {
        match error {
            Error::Argument { .. } => Exit::Usage,
            Error::NoSuchHost { .. } | Error::Connect { .. } => Exit::Connect,
            Error::Timeout { .. } | Error::Refused(Refusal::HelloTimeout(_)) => Exit::Timeout,
            Error::LineDamaged { .. } | Error::Wire(WireError::HeadCrc { .. } | WireError::TailCrc { .. }) => {
                Exit::Damaged
            }
            Error::Wire(_) | Error::Violation(_) | Error::Broken { .. } => Exit::Protocol,
            Error::Refused(Refusal::Protocol | Refusal::Version(_) | Refusal::NotPostwire) => Exit::Protocol,
            Error::Refused(Refusal::Damaged) => Exit::Damaged,
            Error::Refused(_) | Error::Goodbye(_) => Exit::Refused,
            Error::File { .. } | Error::SourceChanged { .. } => Exit::File,
            _ => Exit::Other,
        }
    }

    /// The number that the system is told.
    pub fn code(self) -> i32 {
        match self {
            Exit::Done => 0,
            Exit::Other => 1,
            Exit::Usage => 2,
            Exit::Connect => 3,
            Exit::Timeout => 4,
            Exit::Protocol => 5,
            Exit::Damaged => 6,
            Exit::Refused => 7,
            Exit::File => 8,
            Exit::Partly => 9,
            Exit::Signal(number) => 128 + number,
        }
    }

    /// Ends the process.
    #[allow(clippy::disallowed_methods)]
    pub fn end(self) -> ! {
        terminal::leave_editing();
        std::process::exit(self.code())
    }

    /// How the program ends when its standard output can't be written.
    pub fn of_output(error: &io::Error) -> Exit {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Exit::Signal(SIGPIPE)
        } else {
            Exit::File
        }
    }
}

/// How many things of a run were done, and how the first failed.
#[derive(Debug, Default)]
pub struct Tally {
    done: usize,
    first_failure: Option<Exit>,
}

impl Tally {
    pub fn done(&mut self) {
        self.done += 1;
    }

    pub fn failed(&mut self, how: Exit) {
        self.first_failure.get_or_insert(how);
    }

    /// All done, some done, or the code of the first failure.
    pub fn exit(&self) -> Exit {
        match self.first_failure {
            None => Exit::Done,
            Some(_) if self.done > 0 => Exit::Partly,
            Some(how) => how,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_did_some_and_not_all_exits_9() {
        let mut tally = Tally::default();
        assert_eq!(tally.exit().code(), 0);
        tally.failed(Exit::File);
        tally.failed(Exit::Refused);
        assert_eq!(tally.exit().code(), 8);
        tally.done();
        assert_eq!(tally.exit().code(), 9);
    }

    #[test]
    fn errors_have_the_codes_of_the_table() {
        let refused = |refusal| Exit::of(&Error::Refused(refusal)).code();
        assert_eq!(refused(Refusal::Exists), 7);
        assert_eq!(refused(Refusal::Damaged), 6);
        assert_eq!(refused(Refusal::HelloTimeout(1)), 4);
        assert_eq!(refused(Refusal::NotPostwire), 5);
        assert_eq!(Exit::of(&Error::Broken { source: None }).code(), 5);
        assert_eq!(Exit::of(&Error::Closed).code(), 1);
        assert_eq!(Exit::of(&Error::SourceChanged { path: "x".into() }).code(), 8);
        assert_eq!(Exit::of_output(&io::ErrorKind::BrokenPipe.into()).code(), 141);
        let codes: Vec<i32> = TABLE.iter().map(|(exit, _)| exit.code()).collect();
        assert_eq!(codes, (0..10).collect::<Vec<_>>());
    }
}
