//! The lines of standard input: [`Splitter`] cuts bytes into lines, [`LineReader`] reads them.
//!
//! It refuses to read a terminal that the program is not in the foreground of: the kernel would stop the whole program
//! (SIGTTIN), its transfers included. Called by `feed`.

use std::io;

use postwire::config::TEXT_BYTES_MAX;
use rustix::event::{poll, PollFd, PollFlags, Timespec};

use super::{screen, terminal};

/// One line of input, without its end.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    Text(String),
    /// Longer than a text may be.
    TooLong,
    NotUtf8,
    /// No line: bytes that were typed, for whoever edits the line.
    Typed(Vec<u8>),
}

/// Cuts bytes into lines, however they come.
#[derive(Default)]
pub struct Splitter {
    pending: Vec<u8>,
    /// The rest of a line that was too long is dropped.
    skipping: bool,
}

/// Reads standard input.
pub struct LineReader {
    /// The terminal gives each key as it is typed.
    edits: bool,
    splitter: Splitter,
    ended: bool,
}

const READ_BYTES: usize = 16 * 1024;
/// How often a terminal is asked whether we are in its foreground again.
const FOREGROUND_CHECK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

impl Splitter {
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole line.
    pub fn next_line(&mut self) -> Option<Line> {
        let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') else {
            // One more byte than a text may be a carriage return.
            if self.pending.len() > TEXT_BYTES_MAX + 1 {
                self.pending.clear();
                self.skipping = true;
            }
            return None;
        };
        let mut line: Vec<u8> = self.pending.drain(..=end).collect();
        line.pop();
        Some(self.finished(line))
    }

    /// What is left when the input has ended: a line without an end is one too.
    pub fn last_line(&mut self) -> Option<Line> {
        let line = std::mem::take(&mut self.pending);
        (self.skipping || !line.is_empty()).then(|| self.finished(line))
    }

    fn finished(&mut self, mut line: Vec<u8>) -> Line {
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        if std::mem::take(&mut self.skipping) || line.len() > TEXT_BYTES_MAX {
            return Line::TooLong;
        }
        String::from_utf8(line).map_or(Line::NotUtf8, Line::Text)
    }
}

impl LineReader {
    pub fn new(edits: bool) -> LineReader {
        LineReader { edits, splitter: Splitter::default(), ended: false }
    }

    /// Waits for the next line; `None` after the last.
    pub fn next_line(&mut self) -> Option<Line> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            if let Some(line) = self.splitter.next_line() {
                return Some(line);
            }
            if self.ended {
                return self.splitter.last_line();
            }
            wait_until_readable(self.edits);
            match rustix::io::read(io::stdin(), &mut buffer) {
                Ok(0) => self.ended = true,
                Ok(count) if self.edits => return Some(Line::Typed(buffer.split_at(count).0.to_vec())),
                Ok(count) => self.splitter.push(buffer.split_at(count).0),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(_) => self.ended = true,
            }
        }
    }
}

/// Waits for bytes or the end, and for the foreground; between the last look and the read a shell could still take it away.
fn wait_until_readable(edits: bool) {
    let stdin = io::stdin();
    loop {
        if terminal::is_in_background() {
            // Nothing tells of a change.
            let _ = poll(&mut [], Some(&FOREGROUND_CHECK));
            continue;
        }
        if edits {
            screen::resume_editing();
        }
        let mut wanted = [PollFd::new(&stdin, PollFlags::IN)];
        let ready = poll(&mut wanted, Some(&FOREGROUND_CHECK));
        if ready != Ok(0) && ready != Err(rustix::io::Errno::INTR) && !terminal::is_in_background() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<Line> {
        let mut splitter = Splitter::default();
        let mut lines = Vec::new();
        for piece in pieces {
            splitter.push(piece);
            lines.extend(std::iter::from_fn(|| splitter.next_line()));
        }
        lines.extend(splitter.last_line());
        lines
    }

    fn text(text: &str) -> Line {
        Line::Text(text.into())
    }

    #[test]
    fn lines_are_the_same_however_they_come() {
        let bytes = "eins\r\nzwei\n\n\u{e9}\nlast".as_bytes();
        let expected = ["eins", "zwei", "", "\u{e9}", "last"].map(text);
        assert_eq!(lines(&[bytes]), expected);
        assert_eq!(lines(&bytes.chunks(1).collect::<Vec<_>>()), expected);
    }

    #[test]
    fn a_line_that_is_too_long_is_dropped_alone() {
        let fits = vec![b'x'; TEXT_BYTES_MAX];
        let long = vec![b'x'; TEXT_BYTES_MAX + 1];
        let expected = [text(std::str::from_utf8(&fits).unwrap()), Line::TooLong, text("after")];
        let bytes = [&fits[..], b"\r\n", &long, b"\nafter\n"].concat();
        assert_eq!(lines(&[&bytes]), expected);
        assert_eq!(lines(&bytes.chunks(1000).collect::<Vec<_>>()), expected);
        assert_eq!(lines(&[&long, &long]), [Line::TooLong]);
    }

    #[test]
    fn the_rest_of_a_long_line_is_not_kept() {
        let mut splitter = Splitter::default();
        for _ in 0..100 {
            splitter.push(&[b'x'; READ_BYTES]);
            assert_eq!(splitter.next_line(), None);
            assert!(splitter.pending.len() <= TEXT_BYTES_MAX + 1 + READ_BYTES);
        }
    }

    #[test]
    fn what_is_not_utf8_is_no_text() {
        assert_eq!(lines(&[b"a\xff\nb\n"]), [Line::NotUtf8, text("b")]);
    }
}
