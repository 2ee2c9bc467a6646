//! The key that both sides of a sealed connection have: 32 bytes, kept as 64 hexadecimal digits.

use std::fmt;

use crate::error::{Error, Result};

/// A shared secret. It shows itself to nobody but [`Key::to_text`]'s caller.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// A new one, from the system's random numbers.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn generate() -> Result<Key> {
        let mut key = [0; 32];
        fill_random(&mut key)?;
        Ok(Key(key))
    }

    /// Reads 64 hexadecimal digits; space around them does not matter.
    ///
    /// # Errors
    /// [`Error::Argument`], which does not repeat what it got; also for a key of nothing but zeros.
    pub fn parse(text: &str) -> Result<Key> {
        let wrong =
            || Error::Argument { what: "key", got: "…".to_owned(), expected: "64 hexadecimal digits, not all 0" };
        let text = text.trim().as_bytes();
        let mut key = [0; 32];
        if text.len() != 64 {
            return Err(wrong());
        }
        for (byte, digits) in key.iter_mut().zip(text.chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
            let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            *byte = u8::from_str_radix(digits, 16).ok().filter(|_| is_hex).ok_or_else(wrong)?;
        }
        if key == [0; 32] {
            return Err(wrong());
        }
        Ok(Key(key))
    }

    /// 64 hexadecimal digits, for the file that both sides get.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[cfg(feature = "encrypt")]
    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0 = [0; 32];
        // Else nobody would have to write the zeros.
        std::hint::black_box(&self.0);
    }
}

/// # Errors
/// [`Error::System`].
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        let space = bytes.get_mut(filled..).unwrap_or_default();
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(space, flags).map_err(Error::system("get random bytes"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_its_text_and_shows_itself_nowhere_else() {
        let key = Key::generate().unwrap();
        assert_eq!(Key::parse(&format!(" {}\n", key.to_text().to_uppercase())).unwrap(), key);
        assert_ne!(Key::generate().unwrap(), key);
        assert_eq!(format!("{key:?}"), "Key(…)");
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_repeated() {
        let short = "0".repeat(63) + "1 ";
        for text in ["", "secret", &"0".repeat(64), &"g".repeat(64), &"+1".repeat(32), &short[..63], &"é".repeat(32)] {
            let error = Key::parse(text).unwrap_err().to_string();
            assert!(text.len() < 6 || !error.contains(text), "{error}");
        }
    }
}
