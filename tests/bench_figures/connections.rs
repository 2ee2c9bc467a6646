//! Many at once: what uploads get of the machine together, what a connection holds, and what the idle cost the others.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use postwire::{Client, Config, Event, Nickname, SafePath};

use crate::common::{assert_same_file, Scratch, Server, DEADLINE};
use crate::process::{command, free_port, resident_kib, run, server, Daemon};
use crate::raw::Idle;
use crate::report::{bytes, digits, median, p99, seconds, thousands, Row};
use crate::{pause, Bench, Measured};

fn address(server: &Server) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], server.port()))
}

fn connected(server: &Server, config: Config) -> Client {
    let client = Client::connect(&server.address(), config).unwrap();
    client.wait_connected(DEADLINE).unwrap();
    client
}

pub fn uploads_at_once(bench: &Bench) -> Measured {
    let scratch = Scratch::new();
    let total = bench.scaled(1 << 30);
    let inbox = scratch.directory("inbox");
    let server = server(&["--dir", &inbox]);
    let counts = [1, 10, 100, 1000].map(|count| bench.connections(count) as u64);
    let files = counts.map(|count| scratch.file(&format!("{count}"), total / count, count));
    let mut rates = [const { Vec::new() }; 4];
    for round in 0..bench.rounds {
        for turn in 0..counts.len() {
            let at = (round + turn) % counts.len();
            let rate = upload(&server, &files[at], counts[at], &inbox);
            rates[at].push(rate);
        }
    }
    let rates = rates.map(|rates| median(&rates));
    let gb = |rate: f64| format!("{} GB/s in all", digits(rate / 1e9));
    let peer = format!("one upload {}", gb(rates[0]));
    let row = |at: usize, must: f64| {
        let what = format!("{} in {} uploads at once, default `--max-memory`", bytes(total), thousands(counts[at]));
        Row::at_least(&[&what, &gb(rates[at]), &peer], rates[at] / rates[0], must, 1.0)
    };
    Ok(vec![row(1, 0.9), row(2, 0.9), row(3, 0.7)])
}

/// One file under so many names, each from a client of its own: bytes a second from the first offer to the last receipt.
fn upload(server: &Server, file: &str, count: u64, inbox: &str) -> f64 {
    for number in 0..count {
        run(command("cp", &[file, &format!("{inbox}/{number}")]));
    }
    clear(inbox);
    // At once is about uploads, not about how fast connections are made: a server takes few strangers at a time.
    let clients: Vec<Client> = (0..count).map(|_| connected(server, Config::default())).collect();
    let begin = Instant::now();
    for (number, client) in clients.iter().enumerate() {
        let name = SafePath::parse(number.to_string().as_bytes()).unwrap();
        client.send_file_as(file.as_ref(), &name).unwrap();
    }
    for client in &clients {
        loop {
            match client.next_event(Some(UPLOAD_MAX)).unwrap().unwrap() {
                Event::Sent(_) => break,
                Event::TransferFailed(failure) => panic!("{failure:?}"),
                _ => {}
            }
        }
    }
    let time = begin.elapsed().as_secs_f64();
    clients.iter().for_each(Client::disconnect);
    for number in 0..count {
        assert_same_file(file, Path::new(inbox).join(number.to_string()));
    }
    clear(inbox);
    (count * fs::metadata(file).unwrap().len()) as f64 / time
}

const UPLOAD_MAX: Duration = Duration::from_secs(300);

fn clear(inbox: &str) {
    fs::read_dir(inbox).unwrap().for_each(|entry| fs::remove_file(entry.unwrap().path()).unwrap());
}

pub fn memory(bench: &Bench) -> Measured {
    let scratch = Scratch::new();
    let inbox = scratch.directory("inbox");
    let count = bench.connections(1000);
    let (server_kib, full_kib) = with_idle_clients(count, true)?;
    let bare_kib = bare_listener_kib(&scratch);
    let each = (full_kib - server_kib) / count as f64;
    let transfers = 16;
    let busy_kib = each_running_transfer_kib(&scratch, &inbox, transfers);
    let kib = |value: f64| format!("{} KiB", digits(value));
    let above = server_kib - bare_kib;
    Ok(vec![
        Row::at_most(
            &["resident: idle server, above a program that binds and accepts", &kib(server_kib), &kib(bare_kib)],
            above,
            "KiB",
            900.0,
            400.0,
        ),
        Row::at_most(
            &[&format!("resident: each of {} idle clients in the room", thousands(count as u64)), &kib(each), "none"],
            each,
            "KiB",
            24.0,
            14.0,
        ),
        Row::at_most(
            &[&format!("resident: each of {transfers} running transfers, at most"), &kib(busy_kib), "none"],
            busy_kib,
            "KiB",
            2048.0,
            1024.0,
        ),
    ])
}

/// How many of so many connections the system carries; when fewer, for want of what.
fn carried(count: usize) -> (usize, Option<&'static str>) {
    let server = postwire::Server::bind("127.0.0.1:0", Config { max_clients: count, ..Config::default() }).unwrap();
    let carried = server.max_clients();
    server.stop();
    carried
}

/// The memory of a server of its own, before and with so many.
pub fn with_idle_clients(count: usize, in_room: bool) -> Result<(f64, f64), String> {
    if let (fewer, Some(by)) = carried(count + 10) {
        return Err(format!("{fewer} connections are carried, for want of {by}"));
    }
    let server = server(&["--max-clients", &(count + 10).to_string()]);
    pause(SETTLED);
    let before = resident_kib(server.pid());
    let idle = Idle::connect(address(&server), count, in_room);
    pause(SETTLED);
    let with = resident_kib(server.pid());
    drop(idle);
    Ok((before, with))
}

/// Threads that had work end 0.2 s after it.
const SETTLED: Duration = Duration::from_millis(500);

fn bare_listener_kib(scratch: &Scratch) -> f64 {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/bare_listener.rs");
    let program = scratch.path("bare_listener");
    run(command("rustc", &["--edition", "2021", "-O", "-o", &program, source]));
    let port = free_port();
    let mut listener = Command::new(&program);
    listener.arg(port.to_string());
    let listener = Daemon::start(port, listener);
    pause(SETTLED);
    resident_kib(listener.pid())
}

/// The most that was seen while all run as fast as they can.
fn each_running_transfer_kib(scratch: &Scratch, inbox: &str, count: u32) -> f64 {
    // All must find room, and none gets so much in the time, however unfair it is.
    let file = scratch.path("holes");
    File::create(&file).unwrap().set_len(1 << 30).unwrap();
    let server = server(&["--dir", inbox]);
    let clients: Vec<Client> = (0..count).map(|_| connected(&server, Config::default())).collect();
    pause(SETTLED);
    let before = resident_kib(server.pid());
    for (number, client) in clients.iter().enumerate() {
        let name = SafePath::parse(number.to_string().as_bytes()).unwrap();
        client.send_file_as(file.as_ref(), &name).unwrap();
    }
    let begin = Instant::now();
    let mut most = before;
    while begin.elapsed() < Duration::from_secs(1) {
        most = most.max(resident_kib(server.pid()));
        pause(Duration::from_millis(10));
    }
    for client in &clients {
        while let Ok(Some(event)) = client.next_event(Some(Duration::ZERO)) {
            let is_over = matches!(event, Event::Sent(_) | Event::TransferFailed(_));
            assert!(!is_over, "a transfer was over before it was looked at: {event:?}");
        }
        client.abort();
    }
    (most - before) / f64::from(count)
}

pub fn texts_among_the_idle(bench: &Bench) -> Measured {
    let few = 10;
    let (all, fewer_for) = carried(bench.connections(10_000) + few);
    let many = all - few;
    let places = [few, many].map(|count| {
        let server = server(&["--max-clients", &(count + 10).to_string()]);
        let idle = Idle::connect(address(&server), count, false);
        let nickname: Nickname = Nickname::parse(b"b").unwrap();
        let to = connected(&server, Config { nick: Some(nickname.clone()), ..Config::default() });
        (connected(&server, Config::default()), to, nickname, idle, server)
    });
    let texts = bench.scaled(2000);
    let mut figures = [const { Vec::new() }; 2];
    for _ in 0..bench.rounds {
        for ((from, to, nickname, ..), figure) in places.iter().zip(&mut figures) {
            let times: Vec<f64> = (0..texts).map(|_| direct_text(from, to, nickname)).collect();
            figure.push(p99(&times));
        }
    }
    let [few_p99, many_p99] = figures.map(|figure| median(&figure));
    let no_more = fewer_for.map_or(String::new(), |by| format!(" (no more, for want of {by})"));
    let what = format!("text for one among {} idle clients{no_more}, p99", thousands(many as u64));
    let peer = format!("among {few}: {}", seconds(few_p99));
    // Flat: what a fifth more or less says at p99 is noise.
    Ok(vec![Row::at_most(&[&what, &seconds(many_p99), &peer], many_p99 / few_p99, "", 2.0, 1.2)])
}

/// From the call until the other one has it.
fn direct_text(from: &Client, to: &Client, nickname: &Nickname) -> f64 {
    let begin = Instant::now();
    let sent = from.send_text(Some(nickname), &"x".repeat(64)).unwrap();
    while !matches!(to.next_event(Some(DEADLINE)).unwrap().unwrap(), Event::Text(_)) {}
    let time = begin.elapsed().as_secs_f64();
    // The next one begins when this one is over.
    while !matches!(from.next_event(Some(DEADLINE)).unwrap().unwrap(), Event::TextDelivered { sequence } if sequence == sent)
    {
    }
    time
}
