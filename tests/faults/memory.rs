//! Memory under attack: a server's peak stays within what its limits say (the documentation of `Config::max_memory`), however much
//! its peers try to make it keep, and with little memory it still serves many at once.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use postwire::wire::{Chunk, Message, RunId, Text};
use postwire::{config, Nickname};

use crate::attackers::Attacker;
use crate::common::raw::{bytes, hello, offer};
use crate::common::{assert_same_file, client, client_spawn, Running, Scratch, Server};
use crate::{pause, Programme};

const MIB: u64 = 1 << 20;
/// What a server holds that has no peers.
const BASE_BYTES: u64 = 4 * MIB;
/// How long each kind of attack goes on.
const ATTACK: Duration = Duration::from_secs(8);

/// The most that a server holds with so many peers.
fn bound(max_memory: u64, peers: u64) -> u64 {
    BASE_BYTES + max_memory + peers * u64::try_from(config::CONNECTION_BYTES_MAX).unwrap()
}

/// The peak of what a process had resident.
fn peak(process: &Running) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid().as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn memory_of_many() {
    let programme = Programme::new("memory_of_many", 30);
    let scratch = Scratch::new();
    let (inbox, mut peaks) = (scratch.directory("inbox"), Vec::new());
    let sources: Vec<_> = (1..=20).map(|number| scratch.file(&format!("out/{number}"), 8 * MIB, number)).collect();
    for _ in programme.rounds() {
        let server = Server::start(&["--dir", &inbox, "--max-memory", "4M"]);
        let address: SocketAddr = server.address().parse().unwrap();
        let idle: Vec<_> = (0..50).map(|number| Attacker::join(address, number, |peer| peer.in_room = true)).collect();
        let to = server.address();
        let runs: Vec<_> = sources.iter().map(|source| client_spawn(&["--to", &to, source])).collect();
        for (mut run, source) in runs.into_iter().zip(&sources) {
            run.wait().assert_code(0);
            let name = source.rsplit('/').next().unwrap();
            assert_same_file(source, format!("{inbox}/{name}"));
            fs::remove_file(format!("{inbox}/{name}")).unwrap();
            programme.count("uploads");
        }
        assert!(idle.iter().all(Result::is_ok));
        peaks.push(peak(&server));
        programme.most("KiB at the peak", peak(&server) / 1024);
        server.terminate().assert_code(0);
    }
    programme.report();
    // Which of the allocator's arenas the threads meet is chance, and worth a MiB.
    peaks.sort_unstable();
    assert!(peaks[peaks.len() / 2] <= 8 * MIB && peaks[peaks.len() - 1] <= 10 * MIB, "{peaks:?} bytes resident");
}

/// What an attacker of this number says after its hello, in this round; it reads nothing.
type Says = fn(u32, u64) -> Vec<u8>;

fn text(number: u32, sequence: u64, to: Option<u32>, length: usize) -> Message {
    let to = to.map(|to| Nickname::parse(format!("a{to}").as_bytes()).unwrap());
    let mut run = [0x5E; 16];
    run[..4].copy_from_slice(&number.to_be_bytes());
    Message::Text(Text {
        run: RunId(run),
        sequence,
        from: None,
        to,
        leave: false,
        to_room: false,
        text: "t".repeat(length),
    })
}

/// All but the last byte, in the first round alone.
fn half(round: u64, messages: &[Message]) -> Vec<u8> {
    let mut said = if round == 0 { bytes(messages) } else { Vec::new() };
    said.pop();
    said
}

fn hundred_texts(number: u32, round: u64, to: Option<u32>) -> Vec<u8> {
    bytes(&(1..=100).map(|index| text(number, round * 100 + index, to, 0)).collect::<Vec<_>>())
}

const ATTACKS: [(&str, Says); 9] = [
    ("half a text", |number, round| half(round, &[text(number, 1, None, config::TEXT_BYTES_MAX)])),
    ("half a chunk", |number, round| {
        let chunk = Chunk { transfer: 1, offset: 0, crc: 0, data: vec![7; config::CHUNK_BYTES_LEAST] };
        let path = format!("half{number}").into_bytes();
        half(round, &[Message::Offer(offer(1, 16 * MIB, &path)), Message::Chunk(chunk)])
    }),
    ("offers with long paths", |_, round| {
        let path = |number: u32| format!("{number:0255}/{}", vec!["d".repeat(200); 63].join("/")).into_bytes();
        let offers: Vec<_> = (1..=16).map(|number| Message::Offer(offer(number, 16 * MIB, &path(number)))).collect();
        if round == 0 {
            bytes(&offers)
        } else {
            Vec::new()
        }
    }),
    ("offers of bad names", |_, round| {
        let first = u32::try_from(round * 16).unwrap() + 1;
        let offers: Vec<_> = (first..first + 16).map(|number| Message::Offer(offer(number, 10, b".."))).collect();
        bytes(&offers)
    }),
    ("texts for who does not read", |number, round| bytes(&[text(number, round + 1, Some(number ^ 1), 60_000)])),
    ("empty texts", |number, round| hundred_texts(number, round, None)),
    ("texts for nobody", |number, round| hundred_texts(number, round, Some(99_999))),
    ("pings", |_, _| bytes(&vec![Message::Ping(1); 100])),
    ("listings", |_, round| {
        let lists: Vec<_> = (1..=16).map(|request| Message::List { request, from: None, after: Vec::new() }).collect();
        if round == 0 {
            bytes(&lists)
        } else {
            Vec::new()
        }
    }),
];

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn memory_under_attack() {
    let programme = Programme::new("memory_under_attack", 1000);
    let count = u32::try_from(programme.rounds().count()).unwrap();
    let scratch = Scratch::new();
    let (inbox, share) = (scratch.directory("inbox"), scratch.directory("share"));
    (0..1024).for_each(|number| fs::write(format!("{share}/{number:064}"), b"x").unwrap());
    let mut failed = Vec::new();
    let strangers: (&str, Says) = ("strangers", |_, _| Vec::new());
    for (name, says) in ATTACKS.iter().chain([&strangers]) {
        let server = Server::start(&["--dir", &inbox, "--share", &share, "--max-clients", "1100", "--no-fsync", "-q"]);
        let address: SocketAddr = server.address().parse().unwrap();
        let is_stranger = *name == "strangers";
        let mut all: Vec<Attacker> = Vec::new();
        for number in 0..count {
            let attacker = if is_stranger {
                Attacker::connect(address, number).map(|mut attacker| {
                    // As much of a hello as is taken, without its end.
                    let hello = bytes(&[hello()]);
                    let _ = attacker.stream.write_all(&hello);
                    attacker
                })
            } else {
                let nickname = Nickname::parse(format!("a{number}").as_bytes()).unwrap();
                Attacker::join(address, number, |peer| peer.nickname = Some(nickname))
            };
            all.extend(attacker);
        }
        let joined = peak(&server);
        all.iter().for_each(|attacker| attacker.stream.set_nonblocking(true).unwrap());
        let mut said = vec![(0_u64, Vec::new()); all.len()];
        let began = Instant::now();
        while began.elapsed() < ATTACK {
            let mut took = 0;
            for (number, (attacker, (round, rest))) in (0..).zip(all.iter_mut().zip(&mut said)) {
                if rest.is_empty() {
                    *rest = says(number, *round);
                    *round += 1;
                }
                // It may be cut off: it comes no more.
                let count = attacker.stream.write(rest).unwrap_or(0);
                took += rest.drain(..count).count();
            }
            if took == 0 {
                pause(Duration::from_millis(20));
            }
        }
        if !is_stranger {
            client(&["--to", &server.address(), "--text", "honest"]).assert_code(0);
        }
        let peak = peak(&server);
        println!("memory: {name}: {} KiB when all had come, {} KiB at the peak", joined / 1024, peak / 1024);
        if peak > bound(64 * MIB, count.into()) {
            failed.push(*name);
        }
        programme.most("KiB at the peak", peak / 1024);
        programme.add("connections", count.into());
        drop(all);
        server.terminate().assert_code(0);
        let _ = fs::remove_dir_all(&inbox);
        fs::create_dir(&inbox).unwrap();
    }
    programme.report();
    assert!(failed.is_empty(), "past the bound: {failed:?}");
}
