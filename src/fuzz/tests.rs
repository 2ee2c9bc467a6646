//! Each target's body on its corpus and on mutations of it, the same each time.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Random, TARGETS};

/// So many mutations of each target, or as many as there is time for on a slow machine.
const MUTATIONS: usize = 3000;
const TIME_EACH: Duration = Duration::from_millis(400);

#[test]
fn no_input_of_the_corpus_and_none_near_it_is_a_finding() {
    for (name, body) in TARGETS {
        let inputs = corpus(name);
        inputs.iter().for_each(|input| body(input));
        let started = Instant::now();
        let mut random = Random::of(name.as_bytes());
        let mut done = 0;
        while done < MUTATIONS && started.elapsed() < TIME_EACH {
            let mut input = inputs[random.below(inputs.len())].clone();
            mutate(&mut input, &inputs, &mut random);
            if std::panic::catch_unwind(|| body(&input)).is_err() {
                panic!("target {name}, mutation {done}: {input:02x?}");
            }
            done += 1;
        }
    }
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{name} has no corpus");
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// A few changes: bits, bytes, parts left out, doubled, or of another input.
fn mutate(input: &mut Vec<u8>, inputs: &[Vec<u8>], random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(input.len() + 1);
        let end = (at + random.below(16)).min(input.len());
        match random.below(6) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = random.next().to_be_bytes()[0],
            2 => input.insert(at, random.next().to_be_bytes()[0]),
            3 => drop(input.drain(at..end)),
            4 => input.splice(at..at, input[at..end].to_vec()).for_each(drop),
            _ => {
                let other = &inputs[random.below(inputs.len())];
                let from = random.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
    }
    input.truncate(8192);
}

#[test]
fn every_target_can_be_run() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/Cargo.toml")).unwrap();
    let mut names: Vec<_> = manifest.split("[[bin]]\nname = \"").skip(1).map(|bin| bin.split('"').next()).collect();
    if !cfg!(feature = "encrypt") {
        names.retain(|name| *name != Some("record"));
    }
    assert_eq!(names, TARGETS.iter().map(|(name, _)| Some(*name)).collect::<Vec<_>>());
}
