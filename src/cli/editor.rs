//! The line that is being typed on a terminal: its text, its cursor, those before it. Bytes go in, whole lines and a row to
//! draw come out; it touches no terminal. `print` draws it.

use std::collections::VecDeque;
use std::mem::take;

use postwire::config::TEXT_BYTES_MAX;
use postwire::escape;
use unicode_width::UnicodeWidthChar;

const PROMPT: &str = "> ";
const HISTORY_LINES: usize = 100;
/// No key sends more bytes: what is longer is no sequence of ours.
const SEQUENCE_BYTES_MAX: usize = 16;
const ESCAPE: u8 = 0x1b;

/// What typing led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    Line(String),
    /// ^D on an empty line.
    End,
}

/// See the module.
#[derive(Default)]
pub struct Editor {
    text: Vec<char>,
    /// The cursor stands before this character.
    cursor: usize,
    /// Bytes of a key that is not complete.
    pending: Vec<u8>,
    /// Earlier lines, and the one being typed while an earlier one is shown in its place.
    history: VecDeque<Vec<char>>,
    shown: Option<usize>,
    set_aside: Vec<char>,
}

enum Key {
    Char(char),
    Enter,
    End,
    Left,
    Right,
    Home,
    LineEnd,
    Older,
    Newer,
    Backspace,
    Delete,
    /// ^W, ^U, ^K: to the start of the word, of the line, to the end of it.
    EraseWord,
    EraseBefore,
    EraseAfter,
    Unknown,
}

impl Editor {
    /// Takes in what was typed, in pieces of any length.
    pub fn typed(&mut self, bytes: &[u8]) -> Vec<Typed> {
        self.pending.extend_from_slice(bytes);
        let mut typed = Vec::new();
        let mut pending = take(&mut self.pending);
        while let Some((key, length)) = first_key(&pending) {
            pending.drain(..length);
            typed.extend(self.press(&key));
        }
        self.pending = pending;
        typed
    }

    /// The row to draw, at most `columns` wide, and the column of the cursor. A longer line is seen around its cursor.
    pub fn row(&self, columns: usize) -> (String, usize) {
        let room = columns.saturating_sub(PROMPT.len() + 1);
        let mut start = self.cursor;
        let mut before = 0;
        // The cursor has text before it, up to the whole room.
        while let Some(c) = start.checked_sub(1).and_then(|at| self.text.get(at)) {
            let width = shown(*c).width().unwrap_or(0);
            if before + width > room {
                break;
            }
            before += width;
            start -= 1;
        }
        let mut row = PROMPT.to_owned();
        let mut used = 0;
        for c in self.text.iter().skip(start).map(|&c| shown(c)) {
            used += c.width().unwrap_or(0);
            if used > room {
                break;
            }
            row.push(c);
        }
        (row, PROMPT.len() + before)
    }

    /// A line that was entered, as it stays on the terminal.
    pub fn entered(line: &str) -> String {
        PROMPT.chars().chain(line.chars().map(shown)).collect()
    }

    fn press(&mut self, key: &Key) -> Option<Typed> {
        match key {
            Key::Char(c) => self.insert(*c),
            Key::Enter => return Some(Typed::Line(self.enter())),
            Key::End if self.text.is_empty() => return Some(Typed::End),
            Key::End | Key::Delete => self.erase(self.cursor, self.cursor + 1),
            Key::Left => self.cursor = self.cursor.saturating_sub(1),
            Key::Right => self.cursor = (self.cursor + 1).min(self.text.len()),
            Key::Home => self.cursor = 0,
            Key::LineEnd => self.cursor = self.text.len(),
            Key::Older => self.show(self.shown.unwrap_or(self.history.len()).checked_sub(1)),
            Key::Newer => self.show(self.shown.map(|shown| shown + 1)),
            Key::Backspace => self.erase(self.cursor.saturating_sub(1), self.cursor),
            Key::EraseWord => self.erase(self.word_start(), self.cursor),
            Key::EraseBefore => self.erase(0, self.cursor),
            Key::EraseAfter => self.erase(self.cursor, self.text.len()),
            Key::Unknown => {}
        }
        None
    }

    fn insert(&mut self, c: char) {
        // Whoever says the line finds out whether its bytes are too many.
        if self.text.len() < TEXT_BYTES_MAX {
            self.text.insert(self.cursor, c);
            self.cursor += 1;
        }
    }

    fn erase(&mut self, from: usize, to: usize) {
        self.text.drain(from..to.min(self.text.len()));
        self.cursor = from;
    }

    fn word_start(&self) -> usize {
        let before = self.text.iter().take(self.cursor).collect::<Vec<_>>();
        let word = before.iter().rposition(|c| !c.is_whitespace()).unwrap_or(0);
        before.iter().take(word).rposition(|c| c.is_whitespace()).map_or(0, |space| space + 1)
    }

    fn enter(&mut self) -> String {
        let line = take(&mut self.text);
        (self.cursor, self.shown) = (0, None);
        self.set_aside.clear();
        if !line.is_empty() && self.history.back() != Some(&line) {
            self.history.push_back(line.clone());
            if self.history.len() > HISTORY_LINES {
                self.history.pop_front();
            }
        }
        line.into_iter().collect()
    }

    /// Shows an earlier line; past the last one is the line that was being typed.
    fn show(&mut self, earlier: Option<usize>) {
        let Some(earlier) = earlier else { return };
        if self.shown.is_none() {
            self.set_aside = take(&mut self.text);
        }
        match self.history.get(earlier) {
            Some(line) => (self.text, self.shown) = (line.clone(), Some(earlier)),
            None => (self.text, self.shown) = (take(&mut self.set_aside), None),
        }
        self.cursor = self.text.len();
    }
}

/// What stands for a character on the terminal: one that would be obeyed, or not be seen, as a mark.
fn shown(c: char) -> char {
    match c {
        '\t' => ' ',
        '\\' => c,
        _ if escape(c.encode_utf8(&mut [0; 4]).as_bytes()).starts_with('\\') => '?',
        _ => c,
    }
}

/// The first key in `bytes` and its length; `None` where more has to come.
fn first_key(bytes: &[u8]) -> Option<(Key, usize)> {
    let &first = bytes.first()?;
    let key = match first {
        b'\r' | b'\n' => Key::Enter,
        0x01 => Key::Home,
        0x02 => Key::Left,
        0x04 => Key::End,
        0x05 => Key::LineEnd,
        0x06 => Key::Right,
        0x08 | 0x7f => Key::Backspace,
        b'\t' => Key::Char('\t'),
        0x0b => Key::EraseAfter,
        0x0e => Key::Newer,
        0x10 => Key::Older,
        0x15 => Key::EraseBefore,
        0x17 => Key::EraseWord,
        ESCAPE => return sequence(bytes),
        0..=0x1f => Key::Unknown,
        _ => return character(bytes),
    };
    Some((key, 1))
}

/// A key that sends a sequence: `ESC [ 3 ~`, `ESC O A`.
fn sequence(bytes: &[u8]) -> Option<(Key, usize)> {
    let &kind = bytes.get(1)?;
    if kind != b'[' && kind != b'O' {
        return Some((Key::Unknown, if kind == ESCAPE { 1 } else { 2 }));
    }
    let parameters = bytes.iter().skip(2).take_while(|byte| matches!(byte, 0x20..=0x3f)).count();
    let Some(last) = bytes.get(2 + parameters) else {
        return (bytes.len() > SEQUENCE_BYTES_MAX).then_some((Key::Unknown, bytes.len()));
    };
    let key = match (bytes.get(2..2 + parameters).unwrap_or_default(), last) {
        (_, b'A') => Key::Older,
        (_, b'B') => Key::Newer,
        (_, b'C') => Key::Right,
        (_, b'D') => Key::Left,
        (_, b'H') | (b"1" | b"7", b'~') => Key::Home,
        (_, b'F') | (b"4" | b"8", b'~') => Key::LineEnd,
        (b"3", b'~') => Key::Delete,
        _ => Key::Unknown,
    };
    Some((key, 3 + parameters))
}

/// A character; what is not UTF-8 is passed over byte by byte.
fn character(bytes: &[u8]) -> Option<(Key, usize)> {
    let first = bytes.utf8_chunks().next()?;
    if let Some(c) = first.valid().chars().next() {
        return Some((Key::Char(c), c.len_utf8()));
    }
    let length = match bytes.first()? {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => 1,
    };
    let may_be_completed = first.invalid().len() == bytes.len() && bytes.len() < length;
    (!may_be_completed).then_some((Key::Unknown, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: &str = "\x1b[A";
    const DOWN: &str = "\x1b[B";
    const LEFT: &str = "\x1b[D";

    fn typed(text: &str) -> (Vec<String>, String) {
        let mut editor = Editor::default();
        let lines = editor.typed(text.as_bytes()).into_iter().map(|typed| match typed {
            Typed::Line(line) => line,
            Typed::End => "^D".into(),
        });
        (lines.collect(), editor.text.iter().collect())
    }

    #[test]
    fn lines_are_edited_where_the_cursor_is() {
        assert_eq!(typed("helo\x02l\r\n").0, ["hello", ""]);
        assert_eq!(typed(&format!("ac{LEFT}b\x1b[Fd\x1b[H_\r")).0, ["_abcd"]);
        assert_eq!(typed("abc\x7f\x08d\r").0, ["ad"]);
        assert_eq!(typed(&format!("abc{LEFT}{LEFT}\x1b[3~\x04x")).1, "ax");
        assert_eq!(typed("one two  \x17x").1, "one x");
        assert_eq!(typed("one\x15two\x01\x06\x0b").1, "t");
        assert_eq!(typed("a\x04\x01\x04\x04").0, ["^D"]);
        assert_eq!(typed("Grüße 世界\x7f\r").0, ["Grüße 世"]);
    }

    #[test]
    fn keys_are_the_same_however_their_bytes_come() {
        let bytes = format!("世e\u{301}{LEFT}x\x1b[1;5C\x1bOD\x1b[200~y\x07é\r");
        let mut editor = Editor::default();
        let mut lines = Vec::new();
        bytes.as_bytes().iter().for_each(|byte| lines.extend(editor.typed(&[*byte])));
        assert_eq!(lines, Editor::default().typed(bytes.as_bytes()));
        assert_eq!(lines, [Typed::Line("世exyé\u{301}".into())]);
    }

    #[test]
    fn what_is_no_key_is_passed_over() {
        let mut editor = Editor::default();
        let long = [b"\x1b[".as_slice(), &[b';'; 100], b"a\xff\xc3\xe2\x28\r"].concat();
        assert_eq!(editor.typed(&long), [Typed::Line("(".into())]);
        assert!(editor.typed(&[b'x'; TEXT_BYTES_MAX + 9]).is_empty());
        assert_eq!(editor.typed(b"\r"), [Typed::Line("x".repeat(TEXT_BYTES_MAX))]);
    }

    #[test]
    fn earlier_lines_come_back_and_the_one_being_typed_too() {
        assert_eq!(typed(&format!("one\rtwo\rtwo\rth{UP}{UP}{UP}")).1, "one");
        assert_eq!(typed(&format!("one\rtwo\rth{UP}{UP}{DOWN}{DOWN}ree\r")).0, ["one", "two", "three"]);
        assert_eq!(typed(&format!("one\r{UP}!\r{UP}{UP}\r")).0, ["one", "one!", "one"]);
        assert_eq!(typed(DOWN).1, "");
    }

    #[test]
    fn a_row_fits_and_holds_the_cursor() {
        let mut editor = Editor::default();
        editor.typed("short\t\u{202e}".as_bytes());
        assert_eq!(editor.row(80), ("> short ?".into(), 9));
        editor.typed("世界".repeat(40).as_bytes());
        for _ in 0..90 {
            for columns in 8..30 {
                let (row, cursor) = editor.row(columns);
                assert!(super::super::columns::width(&row) < columns && cursor < columns, "{row} {cursor}");
            }
            editor.typed(LEFT.as_bytes());
        }
    }
}
