//! Files for end-to-end tests: a place, random content, and whether two are the same.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use tempfile::TempDir;

/// A temporary directory, gone at the end of the test, whose paths are strings, as arguments are.
pub struct Scratch(TempDir);

impl Scratch {
    pub fn new() -> Scratch {
        Scratch(TempDir::new().unwrap())
    }

    /// The path of `name` in it, which need not exist.
    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).into_os_string().into_string().unwrap()
    }

    /// Makes a directory in it.
    pub fn directory(&self, name: &str) -> String {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Makes a file of random bytes in it.
    pub fn file(&self, name: &str, size_bytes: u64, seed: u64) -> String {
        let path = self.path(name);
        fs::create_dir_all(Path::new(&path).parent().unwrap()).unwrap();
        random_file(&path, usize::try_from(size_bytes).unwrap(), seed);
        path
    }
}

/// Writes `size_bytes` random bytes; the same for the same seed.
pub fn random_file(path: impl AsRef<Path>, size_bytes: usize, seed: u64) {
    let mut file = File::create(path).unwrap();
    // xorshift64, by Marsaglia: any start but 0 will do.
    let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut part = vec![0; PART_BYTES.min(size_bytes.next_multiple_of(8))];
    let mut left = size_bytes;
    while left > 0 {
        for word in part.chunks_exact_mut(8) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            word.copy_from_slice(&random.to_le_bytes());
        }
        let count = left.min(part.len());
        file.write_all(&part[..count]).unwrap();
        left -= count;
    }
}

/// Fails, saying where they begin to differ, unless both files hold the same bytes.
#[track_caller]
pub fn assert_same_file(left: impl AsRef<Path>, right: impl AsRef<Path>) {
    let (left, right) = (left.as_ref(), right.as_ref());
    let open = |path: &Path| File::open(path).unwrap_or_else(|error| panic!("can't open {}: {error}", path.display()));
    let (mut left_file, mut right_file) = (open(left), open(right));
    let sizes = (left_file.metadata().unwrap().len(), right_file.metadata().unwrap().len());
    assert_eq!(sizes.0, sizes.1, "sizes of {} and {}", left.display(), right.display());
    let mut offset = 0;
    loop {
        let (left_part, right_part) = (read_part(&mut left_file), read_part(&mut right_file));
        if left_part != right_part {
            let equal = left_part.iter().zip(&right_part).take_while(|(left, right)| left == right).count();
            panic!("{} and {} differ at byte {}", left.display(), right.display(), offset + equal);
        }
        if left_part.is_empty() {
            return;
        }
        offset += left_part.len();
    }
}

fn read_part(file: &mut File) -> Vec<u8> {
    let mut part = Vec::with_capacity(PART_BYTES);
    file.take(PART_BYTES.try_into().unwrap()).read_to_end(&mut part).unwrap();
    part
}

const PART_BYTES: usize = 1024 * 1024;
