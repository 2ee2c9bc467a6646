//! Names that came from elsewhere: [`SafeName`] and [`SafePath`] for files, [`Nickname`] for peers, and [`escape`], the
//! one function that everything a peer sent passes before a terminal or a log sees it.
//!
//! Names are rejected, never cleaned (PROTOCOL 5.2): what is not safe never becomes one of these types.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::config::{NAME_BYTES_MAX, NICKNAME_BYTES_MAX, PATH_DEPTH_MAX};

/// How the names of partials begin.
pub(crate) const PARTIAL_PREFIX: &str = ".postwire-";
/// How the names of partials end.
pub(crate) const PARTIAL_SUFFIX: &str = ".part";

/// One name in one directory, safe to create there.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SafeName(Vec<u8>);

/// A path of 1 to 64 safe names below a directory that the receiver chose.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SafePath(Vec<SafeName>);

/// What a peer is called: 1 to 32 bytes of `A-Z a-z 0-9 . _ -` (PROTOCOL 2.5).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nickname(String);

/// The name is not safe (PROTOCOL 5.2), or is no nickname (2.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsafe;

impl SafeName {
    /// The only door to a safe name.
    ///
    /// # Errors
    /// [`Unsafe`] for an empty name, `.`, `..`, more than 255 bytes, a `/`, NUL, control, bidirectional or invisible
    /// character, or the name of one of our partials.
    pub fn parse(bytes: &[u8]) -> Result<SafeName, Unsafe> {
        let is_long = bytes.len() > NAME_BYTES_MAX;
        if bytes.is_empty() || is_long || bytes == b"." || bytes == b".." || is_like_partial(bytes) {
            return Err(Unsafe);
        }
        let unsafe_inside =
            bytes.utf8_chunks().any(|chunk| chunk.valid().chars().any(|c| c == '/' || is_unprintable(c)));
        if unsafe_inside {
            return Err(Unsafe);
        }
        Ok(SafeName(bytes.to_vec()))
    }

    /// A name of hexadecimal digits.
    pub(crate) fn hexadecimal(digits: &str) -> SafeName {
        SafeName(digits.bytes().filter(u8::is_ascii_hexdigit).collect())
    }

    /// The bytes of the name, UTF-8 or not.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name as the system takes it.
    #[must_use]
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// The name that stands for this one when it is taken: `-number` before its first dot (`a-1.tar.gz`), a leading dot
    /// apart, shortened where it would pass 255 bytes.
    #[must_use]
    pub fn numbered(&self, number: u32) -> SafeName {
        let after_leading_dot = usize::from(self.0.starts_with(b"."));
        let rest = self.0.iter().skip(after_leading_dot);
        let stem_length = after_leading_dot + rest.take_while(|&&byte| byte != b'.').count();
        let (stem, extension) = self.0.split_at(stem_length);
        let number = format!("-{number}");
        let mut room = NAME_BYTES_MAX - number.len();
        let mut name = shortened(stem, room).to_vec();
        room -= name.len();
        name.extend_from_slice(number.as_bytes());
        name.extend_from_slice(shortened(extension, room));
        if is_like_partial(&name) {
            // The number made it one, or that it was shortened.
            name.pop();
        }
        SafeName(name)
    }
}

impl SafePath {
    /// Reads `a/b/c` as it stands in an offer.
    ///
    /// # Errors
    /// [`Unsafe`] where one of the names is, or where there are more than 64.
    pub fn parse(bytes: &[u8]) -> Result<SafePath, Unsafe> {
        let names: Vec<SafeName> = bytes
            .split(|&byte| byte == b'/')
            .take(PATH_DEPTH_MAX + 1)
            .map(SafeName::parse)
            .collect::<Result<_, _>>()?;
        if names.len() > PATH_DEPTH_MAX {
            return Err(Unsafe);
        }
        Ok(SafePath(names))
    }

    /// All its names, outermost first.
    #[must_use]
    pub fn names(&self) -> &[SafeName] {
        &self.0
    }

    /// The directories above the last name, outermost first.
    #[must_use]
    pub fn directories(&self) -> &[SafeName] {
        self.0.split_last().map_or(&[], |(_, directories)| directories)
    }

    /// The last name.
    ///
    /// # Panics
    /// Never: a path has at least one name by construction.
    #[must_use]
    #[allow(clippy::expect_used)]
    pub fn file_name(&self) -> &SafeName {
        self.0.last().expect("a path has at least one name")
    }

    /// The same path with another last name.
    #[must_use]
    pub fn with_file_name(&self, name: SafeName) -> SafePath {
        let mut names = self.directories().to_vec();
        names.push(name);
        SafePath(names)
    }

    /// The path of `name` below this one.
    ///
    /// # Errors
    /// [`Unsafe`] past 64 names.
    pub fn join(&self, name: SafeName) -> Result<SafePath, Unsafe> {
        if self.0.len() >= PATH_DEPTH_MAX {
            return Err(Unsafe);
        }
        let mut names = self.0.clone();
        names.push(name);
        Ok(SafePath(names))
    }

    /// `a/b/c`, as in an offer.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let names: Vec<&[u8]> = self.0.iter().map(SafeName::as_bytes).collect();
        names.join(&b'/')
    }
}

impl From<SafeName> for SafePath {
    fn from(name: SafeName) -> SafePath {
        SafePath(vec![name])
    }
}

impl Nickname {
    /// The only door to a nickname.
    ///
    /// # Errors
    /// [`Unsafe`] for anything but 1 to 32 bytes of `A-Z a-z 0-9 . _ -`.
    pub fn parse(bytes: &[u8]) -> Result<Nickname, Unsafe> {
        let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
        if bytes.is_empty() || bytes.len() > NICKNAME_BYTES_MAX || !bytes.iter().all(fits) {
            return Err(Unsafe);
        }
        String::from_utf8(bytes.to_vec()).map(Nickname).map_err(|_| Unsafe)
    }

    /// The nickname as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The nickname of somebody who wished none: `c1`, `c2`.
    #[must_use]
    pub fn counted(number: u32) -> Nickname {
        Nickname(format!("c{number}"))
    }

    /// The nickname that stands for this one when it is taken: `b7-2`.
    #[must_use]
    pub fn numbered(&self, number: u32) -> Nickname {
        let number = format!("-{number}");
        let stem: String = self.0.chars().take(NICKNAME_BYTES_MAX - number.len()).collect();
        Nickname(stem + &number)
    }
}

/// Bytes from elsewhere as text that no terminal obeys: control, bidirectional and invisible characters, and bytes that are
/// not UTF-8, become `\xNN` or `\u{NNNN}`, and `\` becomes `\\`, so that the text can be read back without doubt.
#[must_use]
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '\t' => text.push_str("\\t"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                _ if is_unprintable(c) => text.extend(c.escape_unicode()),
                _ => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// [`escape`] for a path of this machine.
#[must_use]
pub fn escape_path(path: &Path) -> String {
    escape(path.as_os_str().as_bytes())
}

/// Whether a character is a control, changes the direction of what follows, or can't be seen.
/// Source: Unicode 16, general categories Cc, Cf, Zl and Zp, and the blank letters and fillers that fonts draw as nothing.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}'
            | '\u{8e2}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}')
}

fn is_like_partial(name: &[u8]) -> bool {
    name.starts_with(PARTIAL_PREFIX.as_bytes()) && name.ends_with(PARTIAL_SUFFIX.as_bytes())
}

/// The longest start of `bytes` within `room` bytes that does not cut a UTF-8 character in two.
fn shortened(bytes: &[u8], room: usize) -> &[u8] {
    let is_continuation = |at: usize| bytes.get(at).is_some_and(|byte| byte & 0b1100_0000 == 0b1000_0000);
    let mut end = room.min(bytes.len());
    while end > 0 && end < bytes.len() && is_continuation(end) {
        end -= 1;
    }
    bytes.get(..end).unwrap_or(bytes)
}

impl fmt::Display for SafeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.0))
    }
}

impl fmt::Debug for SafeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SafeName({self})")
    }
}

impl fmt::Display for SafePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.to_bytes()))
    }
}

impl fmt::Debug for SafePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SafePath({self})")
    }
}

impl fmt::Display for Nickname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Nickname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nickname({})", self.0)
    }
}

impl fmt::Display for Unsafe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the name is not allowed")
    }
}

impl std::error::Error for Unsafe {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for name in ["", ".", "..", "a/b", "/", "a\0b", "a\nb", "a\u{202e}b", "a\u{200b}b", "\u{9b}31m"] {
            assert_eq!(SafeName::parse(name.as_bytes()), Err(Unsafe), "{name:?}");
        }
        for path in ["/etc/passwd", "a//b", "a/", "../a", "a/../b", "./a", ""] {
            assert_eq!(SafePath::parse(path.as_bytes()), Err(Unsafe), "{path:?}");
        }
    }

    #[test]
    fn names_of_partials_are_refused() {
        assert_eq!(SafeName::parse(b".postwire-0123456789abcdef-0.part"), Err(Unsafe));
        assert!(SafeName::parse(b".postwire-notes.txt").is_ok());
    }

    #[test]
    fn names_that_are_not_utf8_are_kept() {
        let name = SafeName::parse(b"caf\xe9").unwrap();
        assert_eq!(name.as_bytes(), b"caf\xe9");
        assert_eq!(name.to_string(), "caf\\xe9");
    }

    #[test]
    fn lengths_and_depths_are_bounded() {
        assert!(SafeName::parse(&[b'a'; 255]).is_ok());
        assert_eq!(SafeName::parse(&[b'a'; 256]), Err(Unsafe));
        assert!(SafePath::parse(&["a"; 64].join("/").into_bytes()).is_ok());
        assert_eq!(SafePath::parse(&["a"; 65].join("/").into_bytes()), Err(Unsafe));
    }

    #[test]
    fn a_number_goes_before_the_first_dot() {
        let numbered = |name: &str| SafeName::parse(name.as_bytes()).unwrap().numbered(1).to_string();
        assert_eq!(numbered("core"), "core-1");
        assert_eq!(numbered("a.tar.gz"), "a-1.tar.gz");
        assert_eq!(numbered(".bashrc"), ".bashrc-1");
        assert_eq!(numbered(".config.toml"), ".config-1.toml");
        assert_eq!(numbered(&"x".repeat(255)).len(), 255);
        assert!(String::from_utf8(SafeName::parse("é".repeat(127).as_bytes()).unwrap().numbered(7).0).is_ok());
    }

    #[test]
    fn no_number_makes_the_name_of_a_partial() {
        let numbered = |name: &str| SafeName::parse(name.as_bytes()).unwrap().numbered(1).to_string();
        assert_eq!(numbered(".postwire.part"), ".postwire-1.par");
        let start = format!(".postwire-{}", "x".repeat(238));
        assert_eq!(numbered(&format!("{start}.partzz")), format!("{start}-1.par"));
    }

    #[test]
    fn nicknames_are_short_and_plain() {
        assert_eq!(Nickname::parse(b"b7").unwrap().numbered(2).as_str(), "b7-2");
        assert_eq!(Nickname::parse(&[b'n'; 32]).unwrap().numbered(12).as_str().len(), 32);
        for bad in ["", "a b", "é", "a:b", &"n".repeat(33)] {
            assert_eq!(Nickname::parse(bad.as_bytes()), Err(Unsafe), "{bad:?}");
        }
    }

    #[test]
    fn nothing_escaped_is_obeyed_by_a_terminal() {
        let hostile = "a\x1b[2J\u{9b}\r\n\t\u{202e}\u{200b}\u{feff}\u{e0041}\x7f\\".as_bytes();
        let text = escape(&[hostile, b"\xff\xc3"].concat());
        assert!(text.chars().all(|c| !is_unprintable(c)), "{text}");
        assert!(text.starts_with("a\\u{1b}[2J"), "{text}");
        assert!(text.ends_with("\\\\\\xff\\xc3"), "{text}");
        assert_eq!(escape("Grüße, 世界".as_bytes()), "Grüße, 世界");
    }
}
