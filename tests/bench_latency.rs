//! How long a text takes there and back (until it is acknowledged) while a file flows on the same connection, over a line of
//! 10 MB/s. A measurement, so it is ignored among the tests; `scripts/bench latency` runs it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]
#![allow(clippy::print_stdout, dead_code)]

#[path = "tools/proxy.rs"]
mod proxy;

use std::time::{Duration, Instant};

use postwire::{Client, Config, Event, Server};
use proxy::{Faults, Line, Proxy};

const WAIT: Duration = Duration::from_secs(60);

/// Sends a text and waits until it is acknowledged.
fn round_trip(client: &Client) -> Duration {
    let begin = Instant::now();
    let sent = client.send_text(None, &"x".repeat(64)).unwrap();
    loop {
        match client.next_event(Some(WAIT)).unwrap().unwrap() {
            Event::TextDelivered { sequence } if sequence == sent => return begin.elapsed(),
            Event::Sent(_) => panic!("the file was over before the measurement"),
            _ => {}
        }
    }
}

fn median_and_p99(mut times: Vec<Duration>) -> String {
    times.sort();
    let ms = |index: usize| times[index].as_secs_f64() * 1000.0;
    format!("median {:.1} ms, p99 {:.1} ms, {} texts", ms(times.len() / 2), ms(times.len() * 99 / 100), times.len())
}

#[test]
#[ignore = "a measurement"]
fn texts_beside_a_file_on_a_line_of_10_mb_s() {
    let inbox = tempfile::tempdir().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(150_000_000).unwrap();
    let server = Server::bind("127.0.0.1:0", Config { dir: Some(inbox.path().into()), ..Config::default() }).unwrap();
    let events = server.clone();
    // Takes each text, and acknowledges it by that.
    std::thread::spawn(move || while let Ok(Some(_)) = events.next_event(None) {});
    let line = Line { rate_bytes_per_second: Some(10_000_000), ..Line::default() };
    let proxy = Proxy::start(server.local_addr(), Faults { to_server: line, ..Faults::default() });
    let client = Client::connect(&proxy.address().to_string(), Config::default()).unwrap();
    client.wait_connected(WAIT).unwrap();
    let idle: Vec<Duration> = (0..300).map(|_| round_trip(&client)).collect();
    client.send_file(file.path()).unwrap();
    let begin = Instant::now();
    // The window is measured within the first second.
    while begin.elapsed() < Duration::from_secs(1) {
        round_trip(&client);
    }
    let mut busy = Vec::new();
    while begin.elapsed() < Duration::from_secs(10) {
        busy.push(round_trip(&client));
    }
    println!("idle line:     {}", median_and_p99(idle));
    println!("beside a file: {}", median_and_p99(busy));
}
