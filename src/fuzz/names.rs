//! Names from elsewhere, and what a terminal gets to see.

use super::Bytes;
use crate::config::{NAME_BYTES_MAX, NICKNAME_BYTES_MAX, PATH_DEPTH_MAX};
use crate::name::{Nickname, SafeName, SafePath};

/// Paths and nicknames that are taken can do no harm, are what was sent, and stay so when they are numbered.
pub(super) fn name(data: &[u8]) {
    let mut bytes = Bytes(data);
    let number = u32::from(bytes.u16());
    let mut text = Vec::new();
    while !bytes.is_empty() {
        let count = bytes.below(4);
        text.extend(match count {
            0 => bytes.string(),
            1 => b".postwire-".to_vec(),
            2 => b".part".to_vec(),
            _ => b"/".to_vec(),
        });
    }
    if let Ok(path) = SafePath::parse(&text) {
        assert_eq!(path.to_bytes(), text);
        assert!((1..=PATH_DEPTH_MAX).contains(&path.names().len()));
        path.names().iter().for_each(|name| assert_harmless(name.as_bytes()));
        assert_eq!(path.names().split_last(), Some((path.file_name(), path.directories())));
        let numbered = path.file_name().numbered(number);
        assert_ne!(&numbered, path.file_name());
        assert_harmless(numbered.as_bytes());
        let renamed = path.with_file_name(numbered.clone());
        assert_eq!(SafePath::parse(&renamed.to_bytes()), Ok(renamed));
        match path.join(numbered) {
            Ok(longer) => assert_eq!(SafePath::parse(&longer.to_bytes()), Ok(longer)),
            Err(_) => assert_eq!(path.names().len(), PATH_DEPTH_MAX),
        }
        assert_printable(&path.to_string());
    } else {
        let is_plain = |name: &[u8]| name.len() <= NAME_BYTES_MAX && name.iter().all(u8::is_ascii_alphanumeric);
        let names: Vec<_> = text.split(|&byte| byte == b'/').collect();
        let is_plain = names.iter().all(|name| !name.is_empty() && is_plain(name)) && names.len() <= PATH_DEPTH_MAX;
        assert!(!is_plain, "{text:?} is refused");
    }
    let plain = |byte: &u8| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    let nickname = Nickname::parse(&text);
    assert_eq!(nickname.is_ok(), (1..=NICKNAME_BYTES_MAX).contains(&text.len()) && text.iter().all(plain));
    if let Ok(nickname) = nickname {
        assert_eq!(nickname.as_str().as_bytes(), text);
        for other in [nickname.numbered(number), Nickname::counted(number)] {
            assert_eq!(Nickname::parse(other.as_str().as_bytes()), Ok(other));
        }
    }
}

fn assert_harmless(name: &[u8]) {
    assert_eq!(SafeName::parse(name).map(|name| name.as_bytes().to_vec()), Ok(name.to_vec()));
    assert!((1..=NAME_BYTES_MAX).contains(&name.len()) && name != b"." && name != b".." && !name.contains(&b'/'));
    assert!(!(name.starts_with(b".postwire-") && name.ends_with(b".part")));
    name.utf8_chunks().for_each(|chunk| assert_printable(chunk.valid()));
}

/// Whatever is escaped is text that no terminal obeys, not much longer, and can be read back.
pub(super) fn escape(data: &[u8]) {
    let text = crate::name::escape(data);
    assert_printable(&text);
    assert!(text.len() <= 6 * data.len());
    assert_eq!(unescape(&text), data);
    if data.iter().all(|byte| matches!(byte, b' '..=b'~') && *byte != b'\\') {
        assert_eq!(text.as_bytes(), data);
    }
}

/// The reverse of what [`crate::escape`] says that it does.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            bytes.extend(c.encode_utf8(&mut [0; 4]).bytes());
            continue;
        }
        let digits = |chars: &mut std::str::Chars<'_>, end| -> u32 {
            let digits: String = chars.take_while(|&c| c != end).collect();
            u32::from_str_radix(&digits, 16).unwrap()
        };
        match chars.next().unwrap() {
            '\\' => bytes.push(b'\\'),
            't' => bytes.push(b'\t'),
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            'x' => {
                let digits: String = chars.by_ref().take(2).collect();
                bytes.push(u8::from_str_radix(&digits, 16).unwrap());
            }
            'u' => {
                assert_eq!(chars.next(), Some('{'));
                let c = char::from_u32(digits(&mut chars, '}')).unwrap();
                bytes.extend(c.encode_utf8(&mut [0; 4]).bytes());
            }
            other => panic!("an escape that is not documented: {other:?}"),
        }
    }
    bytes
}

/// Controls, and the characters that turn or hide what is around them, by name: not the table that is tested.
fn assert_printable(text: &str) {
    let direction = ['\u{61c}', '\u{200e}', '\u{200f}'];
    let hidden = ['\u{ad}', '\u{200b}', '\u{200c}', '\u{200d}', '\u{2060}', '\u{feff}', '\u{180e}', '\u{3164}'];
    for c in text.chars() {
        let turns = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') || direction.contains(&c);
        let ends_a_line = matches!(c, '\u{2028}' | '\u{2029}');
        let is_tag = matches!(c, '\u{e0000}'..='\u{e007f}');
        assert!(!c.is_control() && !turns && !ends_a_line && !is_tag && !hidden.contains(&c), "{c:?} in {text:?}");
    }
}
