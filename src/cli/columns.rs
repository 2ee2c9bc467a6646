//! How wide a text is on a terminal, and how it is made to fit. Functions of texts that were escaped.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// What stands for the middle of a name.
const MIDDLE: &str = "..";

/// The columns that a text takes; wide characters take two, combining ones none.
pub fn width(text: &str) -> usize {
    text.width()
}

/// A text of at most `columns`, without its middle where it has more.
pub fn shortened(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let Some(room) = columns.checked_sub(MIDDLE.len()) else { return String::new() };
    let start = taken(text.chars(), room.div_ceil(2));
    let end: String = taken(text.chars().rev(), room / 2).chars().rev().collect();
    // A character that combines with one that is gone would sit on the dots.
    let end = end.trim_start_matches(|c: char| c.width() == Some(0));
    format!("{start}{MIDDLE}{end}")
}

/// Lines of at most `columns`, broken at spaces; what follows the first begins with two.
pub fn wrapped(line: &str, columns: usize) -> String {
    let mut text = String::new();
    let mut used = 0;
    for (number, word) in line.split(' ').enumerate() {
        let word_width = width(word);
        if number > 0 && used + 1 + word_width > columns {
            text.push_str("\n  ");
            used = 2;
        } else if number > 0 {
            text.push(' ');
            used += 1;
        }
        text.push_str(word);
        used += word_width;
    }
    text
}

/// The first characters that fit.
fn taken(chars: impl Iterator<Item = char>, columns: usize) -> String {
    let mut used = 0;
    chars
        .take_while(|c| {
            used += c.width().unwrap_or(0);
            used <= columns
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_loses_its_middle_and_never_half_a_character() {
        assert_eq!(shortened("firmware.bin", 12), "firmware.bin");
        assert_eq!(shortened("firmware-of-the-board.bin", 12), "firmw..d.bin");
        assert_eq!(shortened("世界世界世界世界", 9), "世界..界");
        assert_eq!(shortened("e\u{301}e\u{301}e\u{301}e\u{301}", 4), "e\u{301}e\u{301}e\u{301}e\u{301}");
        for columns in 0..20 {
            assert!(width(&shortened("世界e\u{301}ab世界e\u{301}cd世界", columns)) <= columns);
        }
    }

    #[test]
    fn a_line_is_broken_at_spaces() {
        assert_eq!(wrapped("one two three", 7), "one two\n  three");
        assert_eq!(wrapped("one  two", 80), "one  two");
        assert_eq!(wrapped("a-word-that-is-longer x", 5), "a-word-that-is-longer\n  x");
    }
}
