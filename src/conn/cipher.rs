//! ChaCha20-Poly1305 by a library that has it in assembly: snow's own takes more than twice the time.

use ring::aead::{Aad, LessSafeKey, Nonce, Tag, UnboundKey, CHACHA20_POLY1305, NONCE_LEN};
use snow::types::Cipher;

/// The key that snow gives, and nothing else: the numbers of records are `sealed`'s.
pub(super) struct ChaChaPoly(LessSafeKey);

impl ChaChaPoly {
    /// Without a key yet: snow sets it before it asks for anything.
    pub(super) fn new() -> Option<ChaChaPoly> {
        key(&[0; 32]).map(ChaChaPoly)
    }
}

impl Cipher for ChaChaPoly {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }

    fn set(&mut self, bytes: &[u8; 32]) {
        // Every key of 32 bytes is one.
        if let Some(key) = key(bytes) {
            self.0 = key;
        }
    }

    /// `out` has room for the tag, which follows the ciphertext.
    fn encrypt(&self, number: u64, authenticated: &[u8], plain: &[u8], out: &mut [u8]) -> usize {
        let Some((cipher, rest)) = out.split_at_mut_checked(plain.len()) else { return 0 };
        cipher.copy_from_slice(plain);
        let sealed = self.0.seal_in_place_separate_tag(nonce(number), Aad::from(authenticated), cipher);
        let (Ok(tag), Some(room)) = (sealed, rest.get_mut(..CHACHA20_POLY1305.tag_len())) else {
            // Nothing may leave that is not sealed; whoever opens what is left of it finds no tag.
            cipher.fill(0);
            return 0;
        };
        room.copy_from_slice(tag.as_ref());
        plain.len() + room.len()
    }

    fn decrypt(&self, number: u64, authenticated: &[u8], cipher: &[u8], out: &mut [u8]) -> Result<usize, snow::Error> {
        let length = cipher.len().checked_sub(CHACHA20_POLY1305.tag_len()).ok_or(snow::Error::Decrypt)?;
        let (cipher, tag) = cipher.split_at_checked(length).ok_or(snow::Error::Decrypt)?;
        let tag = Tag::try_from(tag).map_err(|_| snow::Error::Decrypt)?;
        let plain = out.get_mut(..length).ok_or(snow::Error::Decrypt)?;
        plain.copy_from_slice(cipher);
        let opened = self.0.open_in_place_separate_tag(nonce(number), Aad::from(authenticated), tag, plain, 0..);
        opened.map(|plain| plain.len()).map_err(|_| snow::Error::Decrypt)
    }
}

fn key(bytes: &[u8; 32]) -> Option<LessSafeKey> {
    UnboundKey::new(&CHACHA20_POLY1305, bytes).ok().map(LessSafeKey::new)
}

/// Noise, 12.3: 32 bits of zeros, then the number, little-endian.
fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    let [_, _, _, _, place @ ..] = &mut bytes;
    *place = number.to_le_bytes();
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use snow::params::CipherChoice;
    use snow::resolvers::{CryptoResolver, DefaultResolver};

    #[test]
    fn it_gives_what_snows_own_gives_and_opens_what_that_sealed() {
        let mut theirs = DefaultResolver.resolve_cipher(&CipherChoice::ChaChaPoly).unwrap();
        let mut ours = ChaChaPoly::new().unwrap();
        assert_eq!(ours.name(), theirs.name());
        let mut key = [0; 32];
        for (number, length) in [(0, 0), (1, 1), (2, 63), (3, 64), (255, 65), (256, 1000), (u64::MAX - 1, 16_384)] {
            key[0] = u8::try_from(length % 251).unwrap();
            ours.set(&key);
            theirs.set(&key);
            let plain: Vec<u8> = (0..length).map(|i| u8::try_from(i % 256).unwrap()).collect();
            let mut sealed = [vec![0; length + 16], vec![0; length + 16]];
            assert_eq!(ours.encrypt(number, b"with", &plain, &mut sealed[0]), length + 16);
            assert_eq!(theirs.encrypt(number, b"with", &plain, &mut sealed[1]), length + 16);
            assert_eq!(sealed[0], sealed[1], "{length} bytes in record {number}");
            let mut opened = vec![0; length];
            assert_eq!(ours.decrypt(number, b"with", &sealed[1], &mut opened).unwrap(), length);
            assert_eq!(opened, plain);
            for (number, authenticated) in [(number + 1, b"with"), (number, b"else")] {
                assert!(ours.decrypt(number, authenticated, &sealed[1], &mut opened).is_err());
            }
            sealed[1][length / 2] ^= 1;
            assert!(ours.decrypt(number, b"with", &sealed[1], &mut opened).is_err());
            assert!(ours.decrypt(number, b"with", &sealed[1][..15], &mut opened).is_err());
        }
    }
}
