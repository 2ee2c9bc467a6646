//! Slowloris: connections that are as slow as they dare, in each phase of a connection, all at once. Each is gone at its deadline,
//! and whoever is honest does not notice.
//!
//! The phases: a hello of which little comes, the head of a frame and the tail of one that come at less than 64 bytes a second, a
//! line on which nothing is read of what was asked for. Beside them those that say PING each 10 s and nothing else: they
//! keep to the protocol and stay.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use postwire::wire::{Message, RunId, Text};
use postwire::{config, Client, Config, Event};

use crate::attackers::{connected_to, Attacker};
use crate::common::raw;
use crate::common::{Scratch, Server};
use crate::{pause, Programme};

/// How late after its deadline a connection may go.
const LATE_MAX: Duration = Duration::from_secs(1);
/// How often the attackers act, and are looked at.
const TICK: Duration = Duration::from_millis(250);
const PING_EACH: Duration = Duration::from_secs(10);
/// Just below what PROTOCOL 2.7 asks for, a tick at a time.
const TRICKLE_BYTES: usize = 15;
/// What is said in the room: half of it at once, which no slow reader's socket takes; all of it is less than what cuts one off.
const ROOM_TEXTS: usize = 40;
const ROOM_TEXT_BYTES: usize = 4096;
const ROOM_TEXT_EACH: Duration = Duration::from_secs(1);
const ROUND_TRIP_EACH: Duration = Duration::from_millis(20);
/// No attack takes longer.
const ATTACK_MAX: Duration = Duration::from_secs(60);
const WAIT: Duration = Duration::from_secs(30);

/// What an attacker is slow at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Says nothing.
    Silent,
    /// Says HELLO, a byte each second.
    Hello,
    /// Says the head of a frame, a byte each 14 s, so that a look each 15 s sees it late.
    Head,
    /// Says the tail of a text.
    Tail,
    /// Reads nothing of the listings that it asked for.
    ZeroWindow,
    /// The same, and reads nothing of what is said in the room.
    ZeroWindowInRoom,
    /// Says PING each 10 s.
    Ping,
}

impl Phase {
    /// Strangers last: while they take all places there are for them nobody else gets in.
    const ALL: [Phase; 7] = [
        Phase::Head,
        Phase::Tail,
        Phase::ZeroWindow,
        Phase::ZeroWindowInRoom,
        Phase::Ping,
        Phase::Silent,
        Phase::Hello,
    ];

    fn is_zero_window(self) -> bool {
        matches!(self, Phase::ZeroWindow | Phase::ZeroWindowInRoom)
    }

    /// When it is to be gone.
    fn deadline(self) -> Option<Duration> {
        match self {
            // It is told why, and may read that.
            Phase::Silent | Phase::Hello => Some(config::HELLO_TIMEOUT + config::REFUSED_TIMEOUT),
            Phase::Head | Phase::Tail => Some(config::FRAME_PROGRESS),
            Phase::ZeroWindow | Phase::ZeroWindowInRoom => Some(config::WRITE_STALL_MAX),
            Phase::Ping => None,
        }
    }
}

struct Slow {
    phase: Phase,
    attacker: Attacker,
    began: Instant,
    /// What the server's system has taken for it and it did not; while that grows it is not slow yet.
    waiting: u64,
    /// When that was last seen to grow.
    grew: Instant,
    /// What it still has to say, a little at a time.
    rest: Vec<u8>,
    acted: Instant,
    gone: Option<Instant>,
}

impl Slow {
    fn begin(phase: Phase, server: SocketAddr, number: u32) -> Slow {
        let hello = raw::bytes(&[raw::hello()]);
        let text = Text {
            run: RunId([1; 16]),
            sequence: 1,
            from: None,
            to: None,
            leave: false,
            to_room: false,
            text: "x".repeat(60_000),
        };
        let (mut attacker, mut rest) = match phase {
            Phase::Silent => (Attacker::connect(server, number).unwrap(), Vec::new()),
            Phase::Hello => (Attacker::connect(server, number).unwrap(), hello),
            _ => {
                let in_room = phase == Phase::ZeroWindowInRoom;
                let attacker = Attacker::join(server, number, |peer| peer.in_room = in_room).unwrap();
                (attacker, raw::bytes(&[Message::Text(text)]))
            }
        };
        let began = Instant::now();
        match phase {
            Phase::Head | Phase::Tail => {
                let begin = if phase == Phase::Head { 1 } else { 100 };
                attacker.stream.write_all(&rest[..begin]).unwrap();
                rest.drain(..begin);
            }
            Phase::ZeroWindow | Phase::ZeroWindowInRoom => {
                let lists: Vec<_> =
                    (1..=16).map(|request| Message::List { request, from: None, after: Vec::new() }).collect();
                attacker.say(&lists).unwrap();
            }
            _ => {}
        }
        Slow { phase, attacker, began, waiting: 0, grew: began, rest, acted: began, gone: None }
    }

    fn act(&mut self) {
        let (each, bytes) = match self.phase {
            Phase::Silent => return,
            Phase::Hello => (Duration::from_secs(1), 1),
            Phase::Head => (Duration::from_secs(14), 1),
            Phase::Tail => (TICK, TRICKLE_BYTES),
            // Whoever still says something is not silent.
            Phase::ZeroWindow | Phase::ZeroWindowInRoom | Phase::Ping => (PING_EACH, usize::MAX),
        };
        if self.acted.elapsed() < each {
            return;
        }
        self.acted = Instant::now();
        // It may be gone.
        let _ = match bytes {
            usize::MAX => self.attacker.say(&[Message::Ping(1)]),
            bytes => {
                let rest = self.rest.split_off(bytes.min(self.rest.len()));
                let now = std::mem::replace(&mut self.rest, rest);
                self.attacker.stream.write_all(&now)
            }
        };
    }
}

#[test]
#[ignore = "a fault programme: scripts/test-slow"]
fn slow() {
    let programme = Programme::new("slow", 500);
    let count = u32::try_from(programme.rounds().count()).unwrap();
    let scratch = Scratch::new();
    let share = scratch.directory("share");
    (0..1024).for_each(|number| fs::write(format!("{share}/{number:064}"), b"x").unwrap());
    let server = Server::start(&["--share", &share, "--max-clients", "4000"]);
    let address: SocketAddr = server.address().parse().unwrap();
    let healthy = Client::connect(&server.address(), Config::default()).unwrap();
    let talker = Client::connect(&server.address(), Config { join_room: true, ..Config::default() }).unwrap();
    [&healthy, &talker].iter().for_each(|client| client.wait_connected(WAIT).unwrap());
    let idle = median(round_trips(&healthy, || false));

    let phases = Phase::ALL.iter().flat_map(|phase| std::iter::repeat_n(*phase, count.try_into().unwrap()));
    let all: Vec<Slow> = (0..).zip(phases).map(|(number, phase)| Slow::begin(phase, address, number)).collect();
    println!("slow: {} connections stand", connected_to(server.port()).len());
    let attack = thread::spawn({
        let port = server.port();
        move || watch(all, port)
    });
    let talking = thread::spawn({
        move || {
            for number in 0..ROOM_TEXTS {
                // It hears of those that come and go.
                while talker.next_event(Some(Duration::ZERO)).is_ok() {}
                talker.send_text(None, &"y".repeat(ROOM_TEXT_BYTES)).unwrap();
                if number > ROOM_TEXTS / 2 {
                    pause(ROOM_TEXT_EACH);
                }
            }
            talker
        }
    });
    let attacked = median(round_trips(&healthy, || !attack.is_finished()));
    let all = attack.join().unwrap();
    let _talker = talking.join().unwrap();

    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap();
    programme.most("us there and back when idle", micros(idle));
    programme.most("us under attack", micros(attacked));
    for phase in Phase::ALL {
        let ends =
            all.iter().filter(|slow| slow.phase == phase).filter_map(|slow| Some((slow.began, slow.grew, slow.gone?)));
        let latest = ends.clone().map(|(_, grew, gone)| gone - grew).max().unwrap_or_default();
        println!("slow: {phase:?}: {} gone, the last after {:.1} s", ends.count(), latest.as_secs_f64());
    }
    for Slow { phase, began, grew, gone, .. } in &all {
        programme.count("connections");
        let Some(deadline) = phase.deadline() else {
            assert!(gone.is_none(), "{phase:?}: they keep to the protocol");
            continue;
        };
        let gone = gone.unwrap_or_else(|| panic!("{phase:?}: still there"));
        assert!(gone < *grew + deadline + LATE_MAX, "{phase:?}: gone after {:?}", gone - *grew);
        // Of strangers only so many are let in at all.
        let is_stranger = matches!(phase, Phase::Silent | Phase::Hello);
        assert!(is_stranger || gone + LATE_MAX > *began + deadline, "{phase:?}: gone after {:?} only", gone - *began);
    }
    assert!(attacked < 2 * idle, "a text took {attacked:?} there and back, {idle:?} when idle");
    drop(healthy);
    programme.report();
    server.terminate().assert_code(0);
}

/// Lets all act until none is left that must go, or its time is long over.
fn watch(mut all: Vec<Slow>, port: u16) -> Vec<Slow> {
    let is_over = |slow: &Slow| match slow.phase.deadline() {
        Some(_) => slow.gone.is_some(),
        None => true,
    };
    let began = Instant::now();
    while !all.iter().all(is_over) && began.elapsed() < ATTACK_MAX {
        all.iter_mut().filter(|slow| slow.gone.is_none()).for_each(Slow::act);
        let there = connected_to(port);
        for slow in all.iter_mut().filter(|slow| slow.gone.is_none()) {
            match there.get(&slow.attacker.address) {
                None => slow.gone = Some(Instant::now()),
                Some(&waiting) if waiting > slow.waiting && slow.phase.is_zero_window() => {
                    (slow.waiting, slow.grew) = (waiting, Instant::now());
                }
                Some(_) => {}
            }
        }
        pause(TICK);
    }
    all
}

/// How long texts take until they are acknowledged: a hundred, and as many more as there is reason to.
fn round_trips(client: &Client, goes_on: impl Fn() -> bool) -> Vec<Duration> {
    let mut times = Vec::new();
    while times.len() < 100 || goes_on() {
        let begin = Instant::now();
        let sent = client.send_text(None, "there and back").unwrap();
        let is_back = |event: &Event| matches!(event, Event::TextDelivered { sequence } if *sequence == sent);
        while !is_back(&client.next_event(Some(WAIT)).unwrap().unwrap()) {}
        times.push(begin.elapsed());
        pause(ROUND_TRIP_EACH);
    }
    times
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
